"""Test-time adaptation: let the batch norms of a trained model follow data that look different, without labels.

References:
    Li et al. Revisiting Batch Normalization for Practical Domain Adaptation (AdaBN). 2016.
    https://arxiv.org/abs/1603.04779
    Nado et al. Evaluating Prediction-Time Batch Normalization for Robustness under Covariate Shift. 2020.
    https://arxiv.org/abs/2006.10963
    Schneider et al. Improving Robustness Against Common Corruptions by Covariate Shift Adaptation. NeurIPS 2020.
    https://arxiv.org/abs/2006.16971
    Wang et al. Tent: Fully Test-Time Adaptation by Entropy Minimization. ICLR 2021. https://arxiv.org/abs/2006.10726
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from normlab.introspect.applied import Variables
from normlab.introspect.calls import Module
from normlab.tools.adaptation.adapter import Adaptation, Adapter
from normlab.tools.adaptation.record import Record
from normlab.tools.batches import Call
from normlab.tools.estimation.collecting import Collecting, Given
from normlab.tools.precise import Precise, precise
from normlab.tools.select import Where

if TYPE_CHECKING:
    import optax

__all__ = ["Adaptation", "Adapted", "Adapter", "Record", "adabn", "blended", "prediction_time", "tent"]


@dataclass(frozen=True, eq=False)
class Adapted:
    """Predictions of a model that adapted to batches.

    Attributes:
        outputs: Output of the model for each batch.
        variables: Variables after the last batch; of an NNX model its state.
        model: The model after the last batch: the given one for Linen, a copy for NNX.
        curve: A record of each batch.
        collapsed: Whether nearly all predictions became one class; see `Adapter.collapsed`.
    """

    outputs: list[Any]
    variables: Variables
    model: Module
    curve: list[Record]
    collapsed: bool


class Adapting(TypedDict, total=False):
    """Options of every method; see `Adapter`."""

    evaluate: Mapping[str, object] | None
    where: Where
    seed: int
    call: Call


def adabn(model: Module, variables: Given, batches: Iterable[object], **options: Unpack[Collecting]) -> Precise:
    """Replace running statistics by those of target data; weights stay as they are (AdaBN: Li et al., 2016).

    The function is `precise` on target data. `Adapter(model, variables, "adabn")` does it batch by batch.

    Args:
        model: A module of Linen or NNX.
        variables: Variables of a Linen model; `None` for NNX.
        batches: Batches of target data without labels.
        **options: Options of `precise`, but for `estimator`.

    Returns:
        The new variables or model, with moments, changes and counts.

    Raises:
        BadInput: If the model keeps no running statistics, there is no batch, or an input of a norm is not finite.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import linen as nn
        >>> model = nn.BatchNorm(use_running_average=None)
        >>> x = jnp.array([[8.0], [12.0]])
        >>> variables = model.init(jax.random.key(0), x, use_running_average=True)
        >>> adabn(model, variables, [x]).variables["batch_stats"]
        {'mean': Array([10.], dtype=float32), 'var': Array([4.], dtype=float32)}

    References:
        Li et al. Revisiting Batch Normalization for Practical Domain Adaptation. 2016.
        https://arxiv.org/abs/1603.04779
    """
    return precise(model, variables, batches, **options)


def prediction_time(model: Module, variables: Given, batches: Iterable[object], **options: Unpack[Adapting]) -> Adapted:
    """Predict each batch by its own statistics, of which nothing is kept (Nado et al., 2020).

    Args:
        model: A module of Linen or NNX.
        variables: Variables of a Linen model; `None` for NNX.
        batches: Batches of data without labels.
        **options: `evaluate`, `where`, `seed` and `call`; see `Adapter`.

    Returns:
        The outputs, and a record of each batch.

    Raises:
        BadInput: If the model has no batch norm, or an input of a norm is not finite.
        StatisticsError: If a batch has one element per statistic.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import linen as nn
        >>> model = nn.BatchNorm(use_running_average=True)
        >>> x = jnp.array([[8.0], [12.0]])
        >>> variables = model.init(jax.random.key(0), x)
        >>> prediction_time(model, variables, [x, 100 * x]).outputs[1].round(3)
        Array([[-1.],
               [ 1.]], dtype=float32)

    References:
        Nado et al. Evaluating Prediction-Time Batch Normalization for Robustness under Covariate Shift. 2020.
        https://arxiv.org/abs/2006.10963
    """
    return _through(Adapter(model, variables, "prediction_time", **options), batches)


def blended(
    model: Module,
    variables: Given,
    batches: Iterable[object],
    *,
    alpha: float | None = None,
    source_count: float | None = None,
    between: bool = False,
    **options: Unpack[Adapting],
) -> Adapted:
    """Predict each batch by statistics between the running ones and its own (Schneider et al., 2020).

    The mean is `(1 - alpha) * running + alpha * batch`, and so is the variance. Nothing is kept.

    Args:
        model: A module of Linen or NNX.
        variables: Variables of a Linen model; `None` for NNX.
        batches: Batches of data without labels.
        alpha: Weight of the batch.
        source_count: Examples N that the running statistics count as: alpha is n / (n + N) for n examples.
        between: Whether the variance also counts `alpha * (1 - alpha)` times the squared distance of the means, as
            that of a mixture does.
        **options: `evaluate`, `where`, `seed` and `call`; see `Adapter`.

    Returns:
        The outputs, and a record of each batch.

    Raises:
        BadInput: If not exactly one of `alpha` and `source_count` is given, the model has no batch norm, or an input of
            a norm is not finite.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import linen as nn
        >>> model = nn.BatchNorm(use_running_average=True, epsilon=0.0)
        >>> variables = model.init(jax.random.key(0), jnp.ones((1, 1)))
        >>> x = jnp.array([[0.0], [6.0]])  # mean 3 and variance 9, where 0 and 1 are kept
        >>> blended(model, variables, [x], alpha=0.375).outputs[0]  # by mean 1.125 and variance 4
        Array([[-0.5625],
               [ 2.4375]], dtype=float32)

    References:
        Schneider et al. Improving Robustness Against Common Corruptions by Covariate Shift Adaptation. NeurIPS 2020.
        https://arxiv.org/abs/2006.16971
    """
    blend: _Blended = {"alpha": alpha, "source_count": source_count, "between": between}
    return _through(Adapter(model, variables, "blended", **blend, **options), batches)


def tent(
    model: Module,
    variables: Given,
    batches: Iterable[object],
    *,
    optimizer: "optax.GradientTransformation | None" = None,
    steps: int = 1,
    episodic: bool = False,
    after: bool = False,
    **options: Unpack[Adapting],
) -> Adapted:
    """Predict each batch by its own statistics while scale and bias learn to make predictions sure (TENT).

    Scale and bias of the batch norms descend the mean entropy of the softmax; all else stays as it is. Predictions of
    batches that are small, or of one class, may collapse into one class: look at `collapsed`.

    Args:
        model: A module of Linen or NNX that returns logits `[batch, ..., classes]`.
        variables: Variables of a Linen model; `None` for NNX.
        batches: Batches of data without labels.
        optimizer: An optimizer of optax; `None` is `optax.sgd(1e-3)`.
        steps: Steps for each batch.
        episodic: Whether each batch starts from the model as it was given.
        after: Whether predictions are made after the last step, by another pass, and not those that the last step
            learned from.
        **options: `evaluate`, `where`, `seed` and `call`; see `Adapter`.

    Returns:
        The outputs, the variables after the last batch, and a record of each batch.

    Raises:
        BadInput: If the model has no batch norm with scale or bias, its output is no array of logits, or an input of a
            norm is not finite.
        StatisticsError: If a batch has one element per statistic.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import linen as nn
        >>> model = nn.BatchNorm(use_running_average=True)
        >>> x = jnp.array([[2.0, 0.0], [0.0, 1.0]])
        >>> variables = model.init(jax.random.key(0), x)
        >>> adapted = tent(model, variables, [x] * 20)
        >>> adapted.curve[-1].entropy < adapted.curve[0].entropy
        True

    References:
        Wang et al. Tent: Fully Test-Time Adaptation by Entropy Minimization. ICLR 2021.
        https://arxiv.org/abs/2006.10726
    """
    learning: _Tent = {"optimizer": optimizer, "steps": steps, "episodic": episodic, "after": after}
    return _through(Adapter(model, variables, "tent", **learning, **options), batches)


class _Blended(TypedDict):
    """Options of `blended`."""

    alpha: float | None
    source_count: float | None
    between: bool


class _Tent(TypedDict):
    """Options of `tent`."""

    optimizer: "optax.GradientTransformation | None"
    steps: int
    episodic: bool
    after: bool


def _through(adapter: Adapter, batches: Iterable[object]) -> Adapted:
    """Adapt to batches in turn."""
    outputs = [adapter(batch) for batch in batches]
    return Adapted(outputs, adapter.variables, adapter.model, adapter.curve, adapter.collapsed)
