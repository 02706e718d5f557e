"""Which norm, at which batch size?

    normlab run batch_size

Statistics that cross examples are noisier in smaller batches, and so is the gradient. The curve `deployed` lets both
shrink together, as they do for someone whose accelerator holds only a few examples; the curve `isolated` shrinks the
statistics alone. Every norm gets its own learning rate in every column, from one grid, by the validation error of seeds
that are never used again; within a run, validation and test examples are disjoint.
"""

from dataclasses import replace
from typing import Any

from normlab import study
from normlab.norms import Norm
from normlab.study.data import TEST, TRAIN, VALIDATION, digits


def _mlp(norm: Norm) -> Any:
    from normlab.study.models import MLP

    return MLP(norm)


def _conv_net(norm: Norm) -> Any:
    from normlab.study.models import ConvNet

    return ConvNet(norm)


_DIGITS: dict[str, Any] = {
    "data": digits,
    "metric": study.MISCLASSIFICATION,
    "validation": VALIDATION,
    "test": TEST,
}
_SMOKE, _QUICK = study.TIERS["smoke"], study.TIERS["quick"]

comparison = study.Comparison(
    name="batch_size",
    title="Test error against batch size",
    problems=(
        study.supervised(
            name="digits-mlp",
            title="MLP on digits",
            model=_mlp,
            norm_options={norm: {"num_groups": 10} for norm in ("group", "continual")},
            **_DIGITS,
        ),
        study.supervised(
            name="digits-conv",
            title="conv net on digits",
            model=_conv_net,
            norm_options={norm: {"num_groups": 4} for norm in ("group", "continual")},
            spatial=True,
            **_DIGITS,
        ),
    ),
    norms=("none", "batch", "batch_renorm", "layer", "rms", "group", "instance"),
    curves=study.batch_size_curves(reference=32),
    tiers={
        **study.TIERS,
        "smoke": replace(_SMOKE, values={"deployed": (8, 32), "isolated": (8, 128)}),
        "quick": replace(
            _QUICK,
            values={"deployed": (2, 4, 32, 128), "isolated": (2, 8, 32, 128)},
            leaves_out=f"{_QUICK.leaves_out} Quick also leaves out batch size 8, and 4 examples in the statistics.",
        ),
    },
    default_learning_rate=0.1,
    fixed=(
        f"Data: scikit-learn's 1,797 digits of 8 x 8 pixels; each seed has its own split into {TRAIN:,} for training, "
        f"{VALIDATION} for validation and {TEST} for the test. Split, initial weights and order are the same for every "
        "norm.",
        "Models: an MLP 64-100-100-10, and three 3 x 3 convolutions of 16, 16 and 32 channels with strides 2, 1 and 2 "
        "before a mean over positions; the norm stands before each ReLU.",
        "Training: softmax cross entropy, SGD with momentum 0.9, cosine decay from the tuned learning rate to zero; "
        "the number of epochs is the same at every batch size, so larger batches make fewer updates; no weight decay, "
        "no augmentation.",
        "Batch norm and batch renorm: running statistics with a time constant of one epoch of examples (momentum = 1 - "
        f"batch size / {TRAIN:,}), used at evaluation.",
        "Batch renorm: r_max from 1 to 3 and d_max from 0 to 5 between 10 % and 35 % of the updates; running "
        "statistics start from the first batch.",
        "Group norm: 10 groups of 10 features in the MLP; 4 groups in the conv net, of 4 channels or more.",
    ),
)
