"""Networks by name, for studies that compare several of them."""

import math
import re
from collections.abc import Callable

from flax import linen as nn

from experiments.claims.images import Images
from normlab import norms
from normlab.errors import BadInput
from normlab.introspect.pure import Network, network
from normlab.models import MLP, ConvNet, ResNet
from normlab.norms import Norm

HE = math.sqrt(2.0)
"""Factor of LeCun's standard deviation that makes He's."""


def of(model: Callable[..., nn.Module], norm: str | Norm, images: Images, **fields: object) -> Network:
    """Make a network for images.

    Args:
        model: A model that takes a norm and `classes`.
        norm: Its norm.
        images: Images whose shape and number of classes it has.
        **fields: Further fields of the model.
    """
    return network(model, norms.get(norm), images.train.inputs[:2], classes=images.classes, **fields)


def made(name: str, norm: str | Norm, images: Images) -> Network:
    """Make a network.

    Args:
        name: `mlp-DEPTH`, hidden layers of 100 units by He's initializer; `conv`, three convolutions; or
            `resnet-DEPTH`, with a depth of 6n + 2.
        norm: Its norm.
        images: Images whose shape and number of classes it has.

    Raises:
        BadInput: If there is no such network.
    """
    kind, depth = _parts(name)
    if kind == "mlp":
        return of(MLP, norm, images, hidden=(100,) * depth, kernel_scale=HE)
    return of(ConvNet, norm, images) if kind == "conv" else of(ResNet, norm, images, depth=depth)


def title(name: str) -> str:
    """Return the name of a network in sentences and tables, e.g. `MLP 3 x 100`."""
    kind, depth = _parts(name)
    return {"mlp": f"MLP {depth} x 100", "conv": "ConvNet", "resnet": f"ResNet-{depth}"}[kind]


def dense(name: str) -> bool:
    """Report whether a network has dense layers only: its runs train together, and its statistics have no positions."""
    return _parts(name)[0] == "mlp"


def _parts(name: str) -> tuple[str, int]:
    found = re.fullmatch(r"(mlp|resnet)-([1-9]\d*)|conv", name)
    kind, depth = (found[1] or "conv", int(found[2] or 3)) if found else ("", 0)
    if not kind or (kind == "resnet" and (depth < 8 or depth % 6 != 2)):
        raise BadInput(
            f"Expected a network `mlp-DEPTH`, `conv` or `resnet-DEPTH` with a depth of 8, 14, 20 and so on, got "
            f"`{name}`. Choose one of them."
        )
    return kind, depth
