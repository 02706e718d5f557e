"""The networks of `normlab.models` as problems. Importing this module imports neither JAX nor Flax."""

import importlib
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Unpack

from normlab.errors import BadInput
from normlab.norms import Norm
from normlab.study.data.dataset import Dataset
from normlab.study.data.options import DATA_OPTIONS, DataOptions, chosen
from normlab.study.design.problem import Problem
from normlab.study.problems.supervised import Measures, supervised
from normlab.study.training.objectives import MISCLASSIFICATION, Optimizer

if TYPE_CHECKING:
    import optax
    from flax import linen as nn

WEIGHT_DECAY = 1e-4
"""Weight decay of all parameters, including norms, like He et al. (2016) and Wu & He (2018)."""

VIT_WEIGHT_DECAY, VIT_RATE = 0.05, 0.01
"""Weight decay and learning-rate factor of AdamW, which needs about a hundredth of the rates of SGD. The grids are the
same for all networks."""


NF_CLIPPING = 0.16
"""Adaptive clipping of gradients, for batches that are small beside the published ones of 4096, which take 0.01."""

FIXED = (
    "Networks: the norm stands before each nonlinearity (in the ViT before attention and MLP). Split, initial weights "
    "and order are the same for every norm.",
    "Training: softmax cross entropy, SGD with momentum 0.9, cosine decay from the tuned learning rate to zero. No "
    f"weight decay for MLP and conv net; {WEIGHT_DECAY:g} for VGG and ResNet; the ViT has AdamW with "
    f"{VIT_WEIGHT_DECAY:g} at {VIT_RATE:g} of the learning rate. No augmentation unless the data say so.",
    "Batch renorm: r_max from 1 to 3 and d_max from 0 to 5 between 10 % and 35 % of the updates; running statistics "
    "start from the first batch.",
    "Group norm: 10 groups in the MLPs, 4 in the conv net and in ResNet-20 and 56, 16 in VGG, 32 in ResNet-50, 12 in "
    "the ViT. The same for other norms that group features; half as many for group whitening. Whitening takes 10 "
    "features together in the MLPs, 8 in the conv net, 16 in the others, also where a batch has fewer elements.",
)
"""Sentences for a comparison's report."""


GROUPED = ("group", "continual", "batch_channel", "evonorm_s0", "evonorm_s1", "evonorm_s2")
"""Norms with statistics of groups of features, into 32 unless told otherwise."""


class Architecture(NamedTuple):
    """A network.

    Attributes:
        title: Title for the report.
        module: Module of `normlab.models` that contains the class.
        kind: Name of the class, which takes a norm and the number of `classes`.
        fields: Further fields of the class.
        groups: Groups of norms that group features.
        whitened: Features that whitening takes together.
        spatial: Whether activations have axes between batch and features.
        optimizer: See `supervised`.
        norm_options: Further options of norms by name; see `supervised`.
    """

    title: str
    module: str
    kind: str
    fields: Mapping[str, object]
    groups: int
    whitened: int = 16
    spatial: bool = True
    optimizer: Optimizer | None = None
    norm_options: Mapping[str, Mapping[str, object]] = {}


def problems(*names: str, **fields: Unpack[Measures]) -> tuple[Problem, ...]:
    """Make problems of networks, on the data that `--data` chooses: digits unless given.

    Args:
        *names: Names of `MEMBERS`.
        **fields: Arguments of `supervised`, the same for all.
    """
    return tuple(problem(name, MEMBERS[name], **fields) for name in names)


def problem(name: str, member: Architecture, **fields: Unpack[Measures]) -> Problem:
    """Make a problem of one network, on the data that `--data` chooses.

    Fields of a curve's `config` that are none of training are fields of the network, in place of those of `member`.

    Args:
        name: Name of the problem.
        member: The network, e.g. `MEMBERS["mlp"]`, `mlp(3)`, or one of them with other fields by `_replace`.
        **fields: Further arguments of `supervised`.
    """
    return supervised(
        name=name,
        title=member.title,
        model=partial(_made, member),
        norm_options={**norm_options(member.groups, member.whitened), **member.norm_options},
        spatial=member.spatial,
        optimizer=member.optimizer,
        data=partial(_suitable, name, member),
        metric=MISCLASSIFICATION,
        options=DATA_OPTIONS,
        **fields,
    )


def norm_options(groups: int, whitened: int) -> dict[str, dict[str, object]]:
    """Return the options of norms that group features.

    Args:
        groups: Groups of features.
        whitened: Features that whitening takes together.
    """
    return {
        **{norm: {"num_groups": groups} for norm in GROUPED},
        "whiten": {"group_size": whitened, "allow": True},
        "group_whiten": {"num_groups": groups // 2},
    }


def _suitable(name: str, member: Architecture, **options: Unpack[DataOptions]) -> Dataset:
    """Load the data that were chosen.

    Raises:
        BadInput: If they do not fit the network.
    """
    data = chosen(**options)
    shape = len(data.labels), *data.sample_inputs().shape[1:]
    if member.spatial and len(shape) != 4:
        raise BadInput(
            f"Expected images of shape (examples, height, width, channels) for `{name}`, got inputs of shape "
            f"{shape}. Add the axis that is missing, or take the problem `mlp`."
        )
    if data.labels.ndim != 1:
        raise BadInput(f"Expected one label for each example, got labels of shape {data.labels.shape}.")
    return data


def _made(member: Architecture, norm: Norm, *, classes: int, **fields: object) -> "nn.Module":
    kind = getattr(importlib.import_module(f"normlab.models.{member.module}"), member.kind)
    return kind(norm, classes=classes, **{**member.fields, **fields})


def _sgd_with_decay(schedule: "optax.Schedule") -> "optax.GradientTransformation":
    import optax

    return optax.chain(optax.add_decayed_weights(WEIGHT_DECAY), optax.sgd(schedule, momentum=0.9))


def _adamw(schedule: "optax.Schedule") -> "optax.GradientTransformation":
    import optax

    return optax.adamw(lambda t: VIT_RATE * schedule(t), weight_decay=VIT_WEIGHT_DECAY)


def _fixup(schedule: "optax.Schedule") -> "optax.GradientTransformation":
    import optax

    from normlab.models.fixup import fixup_optimizer

    return optax.chain(optax.add_decayed_weights(WEIGHT_DECAY), fixup_optimizer(schedule))


def _nf(schedule: "optax.Schedule") -> "optax.GradientTransformation":
    from normlab.models.nfnet import nf_optimizer

    return nf_optimizer(schedule, clipping=NF_CLIPPING, weight_decay=WEIGHT_DECAY)


def _resnet(title: str, groups: int = 4, kind: str = "ResNet", **fields: object) -> Architecture:
    return Architecture(title, "resnet", kind, fields, groups, optimizer=_sgd_with_decay)


def _vgg(depth: int) -> Architecture:
    return Architecture(f"VGG-{depth}", "vgg", "VGG", {"depth": depth}, groups=16, optimizer=_sgd_with_decay)


MEMBERS: Mapping[str, Architecture] = {
    "mlp": Architecture("MLP 100-100", "mlp", "MLP", {}, groups=10, whitened=10, spatial=False),
    "mlp-sigmoid": Architecture(
        "MLP 100-100-100, sigmoid units",
        "mlp",
        "MLP",
        {"hidden": (100, 100, 100), "activation": "sigmoid"},
        groups=10,
        whitened=10,
        spatial=False,
    ),
    "conv": Architecture("conv net 16-16-32", "mlp", "ConvNet", {}, groups=4, whitened=8),
    "vgg11": _vgg(11),
    "vgg16": _vgg(16),
    "resnet20": _resnet("ResNet-20", depth=20),
    "resnet20-pre": _resnet("ResNet-20, pre-activation", depth=20, placement="pre"),
    "resnet20-skipinit": _resnet("ResNet-20, SkipInit", depth=20, placement="pre", residual="skipinit"),
    "resnet20-fixup": Architecture("ResNet-20, Fixup", "fixup", "FixupResNet", {}, groups=4, optimizer=_fixup),
    "resnet20-nf": Architecture("ResNet-20, NF", "nfnet", "NFResNet", {}, groups=4, optimizer=_nf),
    "resnet56": _resnet("ResNet-56", depth=56),
    "resnet50": _resnet("ResNet-50", groups=32, kind="ResNet50"),
    "vit": Architecture("ViT-tiny, patches of 4", "vit", "ViTTiny", {"patch": 4}, groups=12, optimizer=_adamw),
}
"""Networks by the names of their problems."""


HE = 2**0.5
"""`kernel_scale` of He et al. (2015): standard deviation sqrt(2 / inputs)."""

RECENT: Mapping[str, Mapping[str, object]] = {"batch": {"momentum": 0.9}}
"""Running statistics over the last ten or so updates, for trainings of few epochs."""


def mlp(depth: int, width: int = 100, *, activation: str = "relu", optimizer: Optimizer | None = None) -> Architecture:
    """Describe an MLP of hidden layers of one width, with He's initial weights.

    Args:
        depth: Number of hidden layers.
        width: Their width; a multiple of 10.
        activation: `relu` or `sigmoid`.
        optimizer: See `supervised`.
    """
    units = "" if activation == "relu" else f", {activation} units"
    fields = {"hidden": (width,) * depth, "activation": activation, "kernel_scale": HE}
    title = f"MLP {depth} x {width}{units}"
    return Architecture(title, "mlp", "MLP", fields, 10, 10, False, optimizer, RECENT)


def conv6(*widths: int) -> Architecture:
    """Describe a conv net in the style of VGG, for images of 32 x 32 pixels or fewer, with He's initial weights.

    Args:
        *widths: Channels of the six layers; every second halves the image. Multiples of 8.
    """
    fields = {"widths": widths, "strides": (1, 2, 1, 2, 1, 2), "kernel_scale": HE}
    title = f"conv net {'-'.join(map(str, widths))}"
    return Architecture(title, "mlp", "ConvNet", fields, groups=8, norm_options=RECENT)


CONVS = problem("conv", conv6(32, 32, 64, 64, 128, 128)), problem("conv-narrow", conv6(16, 16, 32, 32, 64, 64))
"""Conv nets of six layers; the narrow one takes about a quarter of the multiplications."""

LAYERS = (
    "MLPs: hidden layers of 100 units, each dense, norm, ReLU, unless said; conv net: six 3 x 3 convolutions, each "
    "with norm and ReLU, every second with stride 2. Initial kernels after He et al. (2015). Split, initial weights "
    "and order are the same for every norm.",
    "Training: softmax cross entropy, batches of 64, SGD with momentum 0.9, cosine decay from the tuned learning rate "
    "to zero, no weight decay. Batch norm: running statistics with momentum 0.9.",
)
"""Sentences for reports of comparisons on these networks."""
