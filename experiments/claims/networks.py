"""The networks of the studies, one table for all of them."""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from flax import linen as nn

from experiments.claims.images import Images
from normlab import norms
from normlab.errors import BadInput
from normlab.introspect.pure import Network, network
from normlab.models import MLP, VGG, ConvNet, ResNet
from normlab.norms import Norm
from normlab.study.problems.zoo import HE

LECUN = 1.0
"""`kernel_scale` of LeCun's initializer."""

CONVOLUTIONS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "conv": ("ConvNet", {}),
    "conv-16-32": ("ConvNet 16-32", {"widths": (16, 32), "strides": (2, 2)}),
    "conv-16-32-64": (
        "ConvNet 16-32-64",
        {"widths": (16, 32, 64), "strides": (1, 2, 2), "kernel_scale": HE},
    ),
    "conv-32-32-64": ("ConvNet 32-32-64", {"widths": (32, 32, 64), "kernel_scale": HE}),
    "conv-32-64-64-128": (
        "ConvNet 32-64-64-128",
        {"widths": (32, 64, 64, 128), "strides": (1, 2, 1, 2), "kernel_scale": HE},
    ),
    "conv-32-64-128-128": (
        "ConvNet 32-64-128-128",
        {"widths": (32, 64, 128, 128), "strides": (1, 2, 2, 2)},
    ),
}
"""Titles and fields of the conv nets, by their channels; `conv` has 16-16-32."""

_GRAMMAR = re.compile(r"mlp-(?P<layers>[1-9]\d*)(x(?P<width>[1-9]\d*))?|(?P<kind>vgg|resnet)-(?P<depth>[1-9]\d*)")
_VGG = (11, 13, 16, 19)


class Described(NamedTuple):
    """A network without its norm.

    Attributes:
        title: Name in sentences and tables.
        model: A model that takes a norm and `classes`.
        fields: Its fields.
    """

    title: str
    model: Callable[..., nn.Module]
    fields: Mapping[str, object]


def described(name: str) -> Described:
    """Look up a network.

    Args:
        name: `mlp-LAYERS`, hidden layers of 100 units by He's initializer; `mlp-LAYERSxWIDTH`, of other widths; one of
            `CONVOLUTIONS`; `vgg-DEPTH`; or `resnet-DEPTH`, with a depth of 6n + 2.

    Raises:
        BadInput: If there is no such network.
    """
    if name in CONVOLUTIONS:
        title, fields = CONVOLUTIONS[name]
        return Described(title, ConvNet, fields)
    found = _GRAMMAR.fullmatch(name)
    if found and found["layers"]:
        layers, width = int(found["layers"]), int(found["width"] or 100)
        return Described(f"MLP {layers} x {width}", MLP, {"hidden": (width,) * layers, "kernel_scale": HE})
    depth = int(found["depth"]) if found else 0
    if found and found["kind"] == "vgg" and depth in _VGG:
        return Described(f"VGG-{depth}", VGG, {"depth": depth})
    if found and found["kind"] == "resnet" and depth >= 8 and depth % 6 == 2:
        return Described(f"ResNet-{depth}", ResNet, {"depth": depth})
    raise BadInput(
        f"Expected a network `mlp-LAYERS`, `mlp-LAYERSxWIDTH`, {', '.join(f'`{one}`' for one in CONVOLUTIONS)}, "
        f"`vgg-DEPTH` with a depth of 11, 13, 16 or 19, or `resnet-DEPTH` with a depth of 8, 14, 20 and so on, got "
        f"`{name}`. Choose one of them."
    )


def model(name: str, norm: str | Norm, **fields: object) -> nn.Module:
    """Make the Linen model of a network.

    Args:
        name: Name, see `described`.
        norm: Its norm.
        **fields: Fields in place of those of the table, and the number of `classes`.
    """
    found = described(name)
    return found.model(norms.get(norm), **{**found.fields, **fields})


def made(name: str, norm: str | Norm, images: Images, **fields: object) -> Network:
    """Make a network for images.

    Args:
        name: Name, see `described`.
        norm: Its norm.
        images: Images whose shape and number of classes it has.
        **fields: Fields of the model in place of those of the table.
    """
    found = described(name)
    every = {**found.fields, "classes": images.classes, **fields}
    return network(found.model, norms.get(norm), images.train.inputs[:2], **every)


def title(name: str) -> str:
    """Return the name of a network in sentences and tables, e.g. `MLP 3 x 100`."""
    return described(name).title


def dense(name: str) -> bool:
    """Report whether a network has dense layers only: its runs train together, and its statistics have no positions."""
    return described(name).model is MLP
