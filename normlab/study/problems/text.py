"""Language models as problems. Importing this module imports neither JAX nor Flax."""

from functools import partial
from typing import TYPE_CHECKING, Unpack

from normlab import norms
from normlab.norms import Norm
from normlab.study.data import sequences
from normlab.study.data.options import TEXT_OPTION
from normlab.study.design.problem import Problem
from normlab.study.problems import zoo
from normlab.study.problems.supervised import Measures, supervised
from normlab.study.training.objectives import BITS_PER_CHARACTER, mean_cross_entropy

if TYPE_CHECKING:
    import optax

    from normlab.models.gpt import GPT
    from normlab.models.residual import Residual
    from normlab.models.transformer import Placement

DEPTH, WIDTH, HEADS = 4, 64, 4
"""Size of the model."""

WEIGHT_DECAY = 0.1
"""Weight decay of all parameters, including norms."""


def gpt(*, rate: float = 1.0, **fields: Unpack[Measures]) -> Problem:
    """Make the problem of a GPT that learns a text by character.

    A configuration may have `placement`, `residual` and `qk_norm` (the string of a norm).

    Args:
        rate: Factor of the learning rate, where the grid is that of other optimizers.
        **fields: See `supervised`.
    """
    return supervised(
        name="gpt",
        title=f"GPT {DEPTH} x {WIDTH}, text by character",
        model=_model,
        data=sequences.characters,
        loss=mean_cross_entropy,
        metric=BITS_PER_CHARACTER,
        chance=sequences.unigram_bits,
        optimizer=partial(_adamw, rate),
        norm_options=zoo.norm_options(groups=4, whitened=16),
        options=(TEXT_OPTION,),
        **fields,
    )


def _model(
    norm: Norm, *, placement: "Placement" = "pre", residual: "Residual" = "none", qk_norm: str | None = None
) -> "GPT":
    from normlab.models.gpt import GPT

    return GPT(
        norm,
        vocabulary=sequences.SYMBOLS,
        depth=DEPTH,
        width=WIDTH,
        heads=HEADS,
        placement=placement,
        residual=residual,
        qk_norm=None if qk_norm is None else norms.get(qk_norm),
    )


def _adamw(rate: float, schedule: "optax.Schedule") -> "optax.GradientTransformation":
    import optax

    return optax.adamw(lambda t: rate * schedule(t), b2=0.95, weight_decay=WEIGHT_DECAY)
