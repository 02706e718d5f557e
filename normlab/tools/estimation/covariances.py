"""Mergeable covariances of neighbouring features, beside the moments of each."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["Covariances", "of_sets"]


@dataclass(frozen=True, eq=False)
class Covariances:
    """Covariances of the features of each group; NumPy arrays in float64 of one shape, `[..., groups, size, size]`.

    Attributes:
        scatter: Sums of products of distances from the means.
        mean_of_unbiased: Plain average of the covariances of batches times n / (n - 1).
        mean_of_matrices: Plain average of the matrices of batches that a running average would average.
    """

    scatter: np.ndarray
    mean_of_unbiased: np.ndarray
    mean_of_matrices: np.ndarray

    @classmethod
    def of_batch(cls, count: np.ndarray, covariance: ArrayLike, matrix: ArrayLike) -> Self:
        """Return the covariances of one batch.

        Args:
            count: Elements counted, for each feature.
            covariance: Biased covariances.
            matrix: What a running average would average.
        """
        covariance, matrix = np.asarray(covariance, np.float64), np.asarray(matrix, np.float64)
        count = of_sets(count, covariance.shape)
        covariance, matrix = np.where(count > 0, covariance, 0), np.where(count > 0, matrix, 0)
        more = np.where(count > 1, count / np.where(count > 1, count - 1, 1), 1)
        return cls(covariance * count, covariance * more, matrix)

    def joined(self, other: Self, apart: np.ndarray, between: np.ndarray, weight: np.ndarray) -> Self:
        """Merge with the covariances of other batches.

        Args:
            other: The others.
            apart: Their means minus these, for each feature.
            between: Weight of the products of these distances, for each feature.
            weight: Share of the other batches in all.
        """
        shape = self.scatter.shape
        rows = apart.reshape(shape[:-1])
        products = rows[..., :, None] * rows[..., None, :] * of_sets(between, shape)
        averages = (
            one + (two - one) * of_sets(weight, shape)
            for one, two in (
                (self.mean_of_unbiased, other.mean_of_unbiased),
                (self.mean_of_matrices, other.mean_of_matrices),
            )
        )
        return type(self)(self.scatter + other.scatter + products, *averages)


def of_sets(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return `[..., features]`, alike within each group, as `[..., groups, 1, 1]` for matrices of a shape."""
    return array.reshape(shape[:-1])[..., :1, None]
