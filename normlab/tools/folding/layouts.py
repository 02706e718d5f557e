"""Which axes of the kernel of a Flax layer are features, in Linen and NNX."""

from collections.abc import Iterable, Sequence

from flax import linen as nn
from flax import nnx

from normlab.tools.folding.kernels import Layout

__all__ = ["KERNELS", "is_known", "layout_of", "normalizes_kernel"]

KERNELS = ("kernel", "embedding")
"""Names of the variable that a norm is folded into."""

_PER_POSITION = (nn.Einsum, nn.ConvLocal, nnx.Einsum)
_EMBED, _GENERAL = (nn.Embed, nnx.Embed), (nn.DenseGeneral, nnx.LinearGeneral)
_TRANSPOSED, _CONV = (nn.ConvTranspose, nnx.ConvTranspose), (nn.Conv, nnx.Conv)
_KNOWN = (*_EMBED, *_GENERAL, *_TRANSPOSED, *_CONV, nn.Dense, nnx.Linear)
_KERNEL_NORMS = ("WeightNorm", "SpectralNorm", "Reparametrized", "Standardized")
_NO_ZEROS = ("VALID", "CIRCULAR", "REFLECT")


def layout_of(layer: object, shape: tuple[int, ...]) -> Layout | None:
    """Return the layout of the kernel of a layer; `None` where no axis is its output features alone.

    The kernel of a layer of another class than Flax's counts as one whose last axes are inputs and outputs, and its
    border as zeros.

    Args:
        layer: The layer.
        shape: Shape of its kernel.
    """
    if isinstance(layer, _PER_POSITION) or _has_batch_axes(layer):
        return None
    if isinstance(layer, _EMBED):
        return Layout(inputs=(), table=True)
    if isinstance(layer, _GENERAL):
        outputs, inputs = _general(layer)
        return Layout(tuple(range(-outputs, 0)), tuple(range(-outputs - inputs, -outputs)))
    if isinstance(layer, _TRANSPOSED):
        swapped = layer.transpose_kernel
        return Layout((-2,), (-1,), pads=True) if swapped else Layout(pads=True)
    wide = any(size > 1 for size in shape[:-2])
    if isinstance(layer, _CONV):
        return Layout(groups=layer.feature_group_count, pads=_pads(layer, wide))
    return Layout(pads=wide)


def is_known(layer: object) -> bool:
    """Return whether a layer is of a class whose kernel Flax documents."""
    return isinstance(layer, _KNOWN)


def normalizes_kernel(module: object) -> bool:
    """Return whether a module normalizes its kernel, or the kernel of a layer inside of it."""
    return any(kind.__name__ in _KERNEL_NORMS for kind in type(module).__mro__)


def _has_batch_axes(layer: object) -> bool:
    """Return whether a layer has a kernel for each index along some axes."""
    dims = getattr(layer, "batch_dims", ())
    return isinstance(dims, int) or len(dims) > 0 or bool(getattr(layer, "batch_axis", {}))


def _general(layer: nn.DenseGeneral | nnx.LinearGeneral) -> tuple[int, int]:
    """Return how many axes of the kernel are outputs, and how many are inputs."""
    features = layer.features if isinstance(layer, nn.DenseGeneral) else layer.out_features
    return _count(features), _count(layer.axis)


def _count(axes: int | Iterable[int]) -> int:
    return 1 if isinstance(axes, int) else len(list(axes))


def _pads(layer: nn.Conv | nnx.Conv, wide: bool) -> bool:
    """Return whether a convolution sees zeros at the border of its input, or between its elements."""
    if any(step != 1 for step in _numbers(layer.input_dilation)):
        return True
    if isinstance(layer.padding, str):
        return wide and layer.padding not in _NO_ZEROS
    return any(number != 0 for number in _numbers(layer.padding))


def _numbers(given: object) -> list[object]:
    """Return the numbers of an option that is a number, several, or pairs of them."""
    if isinstance(given, Sequence):
        return [number for one in given for number in _numbers(one)]
    return [1 if given is None else given]
