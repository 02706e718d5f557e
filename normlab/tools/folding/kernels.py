"""Fold an affine map of features into the kernel of a linear layer: of the layer before, or of the one behind."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from normlab.tools.folding.affine import Affine, Numbers

__all__ = ["Layout", "Weights", "into_input", "into_output"]


class Weights(NamedTuple):
    """Kernel and bias of a linear layer in float64; `bias` is `None` where there is none."""

    kernel: Numbers
    bias: Numbers | None


@dataclass(frozen=True)
class Layout:
    """Which axes of a kernel are features.

    Attributes:
        outputs: Axes of output features, counted from the end.
        inputs: Axes of input features, counted from the end; empty for a table of embeddings.
        groups: Groups of features; each output feature sees the inputs of its group.
        pads: Whether the layer sees zeros beside its input, such as those at the border of an image.
        table: Whether the kernel is a table whose rows are outputs, so that a shift fits into it.
    """

    outputs: tuple[int, ...] = (-1,)
    inputs: tuple[int, ...] = (-2,)
    groups: int = 1
    pads: bool = False
    table: bool = False


def into_output(weights: Weights, affine: Affine, layout: Layout) -> Weights:
    """Return the weights of a layer whose outputs are mapped: `kernel * factor`, `bias * factor + shift`.

    Args:
        weights: Of the layer before the map.
        affine: The map, of the shape of the output features.
        layout: Axes of the kernel.

    Returns:
        The kernel and the bias; a table of embeddings has taken up the shift, and keeps no bias.

    Example:
        >>> from normlab.tools.folding.affine import Affine
        >>> weights = Weights(np.array([[1.0, 2], [3, 4]]), np.array([0.5, -1]))
        >>> kernel, bias = into_output(weights, Affine(np.array([1.0, 6]), np.array([-0.9, 12.2])), Layout())
        >>> kernel.tolist(), bias.round(9).tolist()
        ([[1.0, 12.0], [3.0, 24.0]], [-0.4, 6.2])
    """
    kernel = weights.kernel * _along(affine.factor, layout.outputs, weights.kernel.ndim)
    if layout.table:
        return Weights(kernel + _along(affine.shift, layout.outputs, kernel.ndim), None)
    bias = np.zeros_like(affine.shift) if weights.bias is None else weights.bias
    return Weights(kernel, bias * affine.factor + affine.shift)


def into_input(weights: Weights, affine: Affine, layout: Layout) -> Weights:
    """Return the weights of a layer whose inputs are mapped: `factor · kernel`, `bias + shiftᵀ kernel`.

    Args:
        weights: Of the layer behind the map.
        affine: The map, of the shape of the input features.
        layout: Axes of the kernel; a layer that pads is exact for a shift of 0 alone.

    Returns:
        The kernel and the bias.
    """
    kernel, groups = weights.kernel, layout.groups
    if groups > 1:
        maps = (_of_groups(values, groups, kernel.shape[-1]) for values in (affine.factor, affine.shift))
        factor, shift = (values.reshape(*[1] * (kernel.ndim - 2), *values.shape) for values in maps)
    else:
        factor, shift = (_along(values, layout.inputs, kernel.ndim) for values in (affine.factor, affine.shift))
    axes = tuple(axis for axis in range(kernel.ndim) if axis - kernel.ndim not in layout.outputs)
    added = (kernel * shift).sum(axes)
    return Weights(kernel * factor, added if weights.bias is None else weights.bias + added)


def _along(values: Numbers, axes: tuple[int, ...], ndim: int) -> Numbers:
    """Give the values of features the rank of a kernel."""
    shape = [1] * ndim
    for size, axis in zip(values.shape, axes, strict=True):
        shape[axis] = size
    return values.reshape(shape)


def _of_groups(values: Numbers, groups: int, outputs: int) -> Numbers:
    """Return for each input of a group (rows) and each output (columns) the value of the feature it reads."""
    return np.repeat(values.reshape(groups, -1), outputs // groups, axis=0).T
