"""Data sets that come with a dependency, and their splits. NumPy only."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

TRAIN, VALIDATION, TEST = 1024, 256, 517
"""How the 1,797 digits are divided."""


@dataclass(frozen=True)
class Data:
    """A labelled data set.

    Attributes:
        inputs: float32, shape (examples, ...), channels last.
        labels: int32, shape (examples,).
    """

    inputs: np.ndarray
    labels: np.ndarray


@cache
def digits() -> Data:
    """Load scikit-learn's 1,797 handwritten digits: 8 x 8 pixels in [0, 1], 10 classes; no download."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    inputs = (bunch.images / 16).astype(np.float32)[..., None]  # pyright: ignore[reportAttributeAccessIssue]
    return Data(inputs, bunch.target.astype(np.int32))  # pyright: ignore[reportAttributeAccessIssue]


def split(n: int, seed: int, train: int = TRAIN, validation: int = VALIDATION) -> dict[str, np.ndarray]:
    """Divide `n` examples at random; the seed alone decides, so every norm gets the same split.

    Args:
        n: Number of examples.
        seed: Of the run.
        train: Size of the training set.
        validation: Size of the validation set.

    Returns:
        Disjoint int32 indices `train`, `validation` and `test`, the rest.

    Raises:
        ValueError: If nothing would be left to test on.
    """
    if train + validation >= n:
        raise ValueError(f"Expected `train + validation` below {n} examples, got {train} + {validation}.")
    order = np.random.default_rng(seed).permutation(n).astype(np.int32)
    return {
        "train": order[:train],
        "validation": order[train : train + validation],
        "test": order[train + validation :],
    }


def permutations(indices: np.ndarray, epochs: int, seed: int) -> np.ndarray:
    """Shuffle `indices` anew for every epoch, shape (epochs, len(indices)); the seed alone decides."""
    generator = np.random.default_rng((seed, 1))  # not the stream of `split`
    return generator.permuted(np.tile(indices, (epochs, 1)), axis=1)


def data_hash(arrays: Mapping[str, np.ndarray]) -> str:
    """The sha256 of names, types, shapes and bytes, for run keys."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
