"""Batch norm at evaluation as one multiplication and one addition for each feature, in float64."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Affine", "affine_of", "as_float64"]

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Affine:
    """`y = factor * x + shift`, an entry for each feature.

    Attributes:
        factor: Multiplies a feature.
        shift: Added to it.
    """

    factor: Numbers
    shift: Numbers

    @property
    def is_identity(self) -> bool:
        """Return whether features stay as they are, up to 1e-7 in the square of the factor."""
        close = np.abs(self.factor**-2.0 - 1) <= 1e-7 if np.all(self.factor > 0) else np.zeros(1, bool)
        return bool(np.all(close) and not np.any(self.shift))


def affine_of(
    mean: ArrayLike, variance: ArrayLike, epsilon: float, scale: ArrayLike | None, bias: ArrayLike | None
) -> Affine:
    """Return batch norm by running statistics as an affine map.

    Args:
        mean: Running mean, `[features]`.
        variance: Running variance, `[features]`.
        epsilon: Added to the variance.
        scale: Gain; `None` is 1.
        bias: Shift; `None` is 0.

    Example:
        >>> one = affine_of([1, -2], [3.99999, 0.24999], 1e-5, [2, 3], [0.1, 0.2])
        >>> one.factor.round(9).tolist(), one.shift.round(9).tolist()
        ([1.0, 6.0], [-0.9, 12.2])
    """
    mean, variance = as_float64(mean), as_float64(variance)
    factor = (1.0 if scale is None else as_float64(scale)) / np.sqrt(variance + epsilon)
    return Affine(factor, (0.0 if bias is None else as_float64(bias)) - mean * factor)


def as_float64(values: ArrayLike) -> Numbers:
    """Return values on the host in float64."""
    return np.asarray(values).astype(np.float64)
