"""The networks of `normlab.study` as problems. Importing this imports neither JAX nor Flax."""

import importlib
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from normlab.errors import BadInput
from normlab.norms import Norm
from normlab.study.data.dataset import Dataset
from normlab.study.data.options import DATA_OPTIONS, chosen
from normlab.study.design.problem import Problem
from normlab.study.problems.supervised import supervised
from normlab.study.training.objectives import MISCLASSIFICATION, Optimizer

WEIGHT_DECAY = 1e-4
"""Of all parameters, those of norms included, as He et al. (2016) and Wu & He (2018) have it."""

VIT_WEIGHT_DECAY, VIT_RATE = 0.05, 0.01
"""Of AdamW, which wants about a hundredth of the rates of SGD; grids are the same for all networks."""


FIXED = (
    "Networks: the norm stands before each nonlinearity (in the ViT before attention and MLP). Split, initial weights "
    "and order are the same for every norm.",
    "Training: softmax cross entropy, SGD with momentum 0.9, cosine decay from the tuned learning rate to zero. No "
    f"weight decay for MLP and conv net; {WEIGHT_DECAY:g} for VGG and ResNet; the ViT has AdamW with "
    f"{VIT_WEIGHT_DECAY:g} at {VIT_RATE:g} of the learning rate. No augmentation unless the data say so.",
    "Batch renorm: r_max from 1 to 3 and d_max from 0 to 5 between 10 % and 35 % of the updates; running statistics "
    "start from the first batch.",
    "Group norm: 10 groups in the MLPs, 4 in the conv net and in ResNet-20 and 56, 16 in VGG, 32 in ResNet-50, 12 in "
    "the ViT.",
)
"""Sentences for a comparison's report."""


class Member(NamedTuple):
    """A network.

    Attributes:
        title: For people.
        module: Of `normlab.models`, where its class is.
        kind: The class, which takes a norm and the number of `classes`.
        fields: What else it takes.
        groups: Of group norm and continual norm.
        spatial: Whether activations have axes between batch and features.
        optimizer: See `supervised`.
    """

    title: str
    module: str
    kind: str
    fields: Mapping[str, Any]
    groups: int
    spatial: bool = True
    optimizer: Optimizer | None = None


def problems(*names: str, **fields: Any) -> tuple[Problem, ...]:
    """Make problems of networks, on the data that `--data` chooses: digits unless given.

    Args:
        *names: Of `MEMBERS`.
        **fields: For `supervised`, the same for all.
    """
    return tuple(_problem(name, MEMBERS[name], fields) for name in names)


def _problem(name: str, member: Member, fields: Mapping[str, Any]) -> Problem:
    return supervised(
        name=name,
        title=member.title,
        model=partial(_made, member),
        norm_options={norm: {"num_groups": member.groups} for norm in ("group", "continual")},
        spatial=member.spatial,
        optimizer=member.optimizer,
        data=partial(_suitable, name, member),
        metric=MISCLASSIFICATION,
        options=DATA_OPTIONS,
        **fields,
    )


def _suitable(name: str, member: Member, **options: Any) -> Dataset:
    """The data that were chosen.

    Raises:
        BadInput: If the network cannot take them.
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


def _made(member: Member, norm: Norm, *, classes: int) -> Any:
    kind = getattr(importlib.import_module(f"normlab.models.{member.module}"), member.kind)
    return kind(norm, classes=classes, **member.fields)


def _sgd_with_decay(schedule: Any) -> Any:
    import optax

    return optax.chain(optax.add_decayed_weights(WEIGHT_DECAY), optax.sgd(schedule, momentum=0.9))


def _adamw(schedule: Any) -> Any:
    import optax

    return optax.adamw(lambda t: VIT_RATE * schedule(t), weight_decay=VIT_WEIGHT_DECAY)


def _resnet(title: str, groups: int = 4, kind: str = "ResNet", **fields: Any) -> Member:
    return Member(title, "resnet", kind, fields, groups, optimizer=_sgd_with_decay)


def _vgg(depth: int) -> Member:
    return Member(f"VGG-{depth}", "vgg", "VGG", {"depth": depth}, groups=16, optimizer=_sgd_with_decay)


MEMBERS: Mapping[str, Member] = {
    "mlp": Member("MLP 100-100", "mlp", "MLP", {}, groups=10, spatial=False),
    "mlp-sigmoid": Member(
        "MLP 100-100-100, sigmoid units",
        "mlp",
        "MLP",
        {"hidden": (100, 100, 100), "activation": "sigmoid"},
        groups=10,
        spatial=False,
    ),
    "conv": Member("conv net 16-16-32", "mlp", "ConvNet", {}, groups=4),
    "vgg11": _vgg(11),
    "vgg16": _vgg(16),
    "resnet20": _resnet("ResNet-20", depth=20),
    "resnet20-pre": _resnet("ResNet-20, pre-activation", depth=20, placement="pre"),
    "resnet56": _resnet("ResNet-56", depth=56),
    "resnet50": _resnet("ResNet-50", groups=32, kind="ResNet50"),
    "vit": Member("ViT-tiny, patches of 4", "vit", "ViTTiny", {"patch": 4}, groups=12, optimizer=_adamw),
}
"""By the names of their problems."""
