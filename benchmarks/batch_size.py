"""How does test error depend on the batch? The batch is what the optimizer and the statistics see, as when deployed.

    normlab run batch_size

Statistics that cross examples are noisier in smaller batches, and so is the gradient; here both shrink together, as
they do for someone whose accelerator holds only a few examples. Every norm gets its own learning rate at every batch
size, from one grid, on validation data and seeds that the reported errors never use.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from normlab.norms import Norm, Ramp
from normlab.study import Comparison, Factor, Problem, Tier
from normlab.study.data import TRAIN

if TYPE_CHECKING:
    from normlab.study.train import Program

_HALF_DECADES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def _build(model: str) -> Callable[[Norm, Mapping[str, Any]], "Program"]:
    """How to build the program of a cell for a model of `normlab.study.models`."""

    def build(norm: Norm, config: Mapping[str, Any]) -> "Program":
        from normlab.study import models
        from normlab.study.data import digits
        from normlab.study.train import supervised

        return supervised(digits(), getattr(models, model)(norm), **config)

    return build


def _options(groups: int, norm: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Options of a norm: running averages over about one epoch, batch renorm's schedule scaled to the run."""
    if norm == "group":
        return {"num_groups": groups}
    if norm not in ("batch", "batch_renorm"):
        return {}
    averages = {"momentum": max(0.0, 1 - config["batch_size"] / TRAIN)}
    if norm == "batch":
        return averages
    steps = config["epochs"] * max(1, TRAIN // config["batch_size"])
    begin = round(0.1 * steps)
    end = max(begin + 1, round(0.35 * steps))
    return {
        **averages,
        "r_max": Ramp(1.0, 3.0, begin, end),
        "d_max": Ramp(0.0, 5.0, begin, end),
        "initialize_from_first_batch": True,
    }


comparison = Comparison(
    name="batch_size",
    title="Test error against batch size",
    question="How does test error depend on the batch?",
    problems=(
        Problem(
            name="digits-mlp",
            title="MLP on digits",
            build=_build("MLP"),
            norm_options=lambda norm, config: _options(10, norm, config),
        ),
        Problem(
            name="digits-conv",
            title="conv net on digits",
            build=_build("ConvNet"),
            norm_options=lambda norm, config: _options(4, norm, config),
            spatial=True,
        ),
    ),
    norms=("none", "batch", "batch_renorm", "layer", "rms", "group", "instance"),
    factor=Factor(
        name="batch_size", label="batch size (examples)", flag="--batch-sizes", values=(2, 4, 8, 32, 128), reference=32
    ),
    config=lambda value: {"batch_size": value},
    tiers={
        "smoke": Tier(
            epochs=2,
            learning_rates=(0.03, 0.1),
            tuning_seeds=1,
            seeds=2,
            values=(8, 32),
            claims=False,
            leaves_out="Smoke only shows that everything runs; its errors mean nothing.",
        ),
        "quick": Tier(
            epochs=20,
            learning_rates=_HALF_DECADES[1:-1],
            tuning_seeds=1,
            seeds=5,
            values=(2, 4, 32, 128),
            leaves_out=(
                "Quick leaves out batch size 8, tunes over 5 learning rates with 1 seed each and evaluates with 5 "
                "seeds; standard takes all batch sizes, 7 learning rates with 2 seeds each, and 10 seeds."
            ),
        ),
        "standard": Tier(
            epochs=20,
            learning_rates=_HALF_DECADES,
            tuning_seeds=2,
            seeds=10,
            leaves_out="Standard evaluates with 10 seeds; paper takes 20.",
        ),
        "paper": Tier(epochs=20, learning_rates=_HALF_DECADES, tuning_seeds=2, seeds=20),
    },
    fixed=(
        "Data: scikit-learn's 1,797 digits of 8 x 8 pixels; each seed has its own split into 1,024 for training, 256 "
        "for validation and 517 for the test. Split, initial weights and order are the same for every norm.",
        "Models: an MLP 64-100-100-10, and three 3 x 3 convolutions of 16, 16 and 32 channels with strides 2, 1 and 2 "
        "before a mean over positions; the norm stands before each ReLU.",
        "Training: softmax cross entropy, SGD with momentum 0.9, cosine decay from the tuned learning rate to zero; "
        "the number of epochs is the same at every batch size, so larger batches make fewer updates; no weight decay, "
        "no augmentation.",
        "The batch of the optimizer is the batch of the statistics: noise of gradient and statistics change together.",
        "Batch norm and batch renorm: running statistics with a time constant of one epoch of examples (momentum = 1 - "
        "batch size / 1,024), used at evaluation.",
        "Batch renorm: r_max from 1 to 3 and d_max from 0 to 5 between 10 % and 35 % of the updates; running "
        "statistics start from the first batch.",
        "Group norm: 10 groups of 10 features in the MLP; 4 groups in the conv net, of 4 channels or more.",
    ),
)
