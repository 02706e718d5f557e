"""Standardization of the features of a stream by its beginning."""

import numpy as np

STANDARDIZED = (
    "Each feature is standardized by the mean and standard deviation of the examples so far, this one included"
)


def standardized(inputs: np.ndarray) -> np.ndarray:
    """Standardize each feature by the mean and standard deviation of the examples so far, this one included.

    Later examples have no influence; `preprocessing.StandardScaler` of river gives the same numbers. A feature that has
    not varied yet is 0.

    Args:
        inputs: Shape (n, ...).

    Returns:
        Shape (n, ...), float64.

    Example:
        >>> standardized(np.array([[1.0], [3.0], [2.0]])).ravel().tolist()
        [0.0, 1.0, 0.0]
    """
    shifted = np.asarray(inputs, np.float64) - np.asarray(inputs[:1], np.float64)  # exact zeros for a constant
    count = np.arange(1.0, len(inputs) + 1).reshape(-1, *[1] * (inputs.ndim - 1))
    mean = np.cumsum(shifted, axis=0) / count
    before = np.concatenate([np.zeros_like(mean[:1]), mean[:-1]])
    deviation = np.sqrt(np.cumsum((shifted - before) * (shifted - mean), axis=0) / count)
    return np.divide(shifted - mean, deviation, out=np.zeros_like(mean), where=deviation > 0)


def features_of(inputs: np.ndarray, standardize: bool) -> np.ndarray:
    """Standardize features if `standardize` is true."""
    return standardized(inputs) if standardize else inputs
