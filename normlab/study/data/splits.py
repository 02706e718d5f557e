"""Splits of a data set, and the order of its examples in batches."""

import numpy as np

from normlab.errors import BadInput
from normlab.study.data.dataset import TRAIN, VALIDATION, Dataset

FEWEST = 5
"""Examples that each part of the data must have: with fewer, errors change in steps of more than 20 points."""


def sizes(data: Dataset, validation: float | None = None, test: float | None = None) -> tuple[int, int]:
    """Count the examples for training and for validation.

    Args:
        data: All examples.
        validation: A number of examples, or below 1 a share of the examples that are in no set of the data; without
            effect if the data contain a validation set. `Data.drawn` unless given.
        test: Likewise.

    Raises:
        BadInput: If one of the parts would be empty.
    """
    free = len(data.labels) - data.test - data.validation
    parts = (drawn if part is None else part for part, drawn in zip((validation, test), data.drawn, strict=True))
    validating, testing = (
        given or (round(part * free) if part < 1 else int(part))
        for given, part in zip((data.validation, data.test), parts, strict=True)
    )
    train = len(data.labels) - validating - testing
    if min(train, validating, testing) < 1:
        raise BadInput(
            f"Expected examples to train on, for validation and for the test, got {train}, {validating} and "
            f"{testing} of {len(data.labels)}. Change `validation` or `test`."
        )
    return train, validating


def check_enough(data: Dataset, validation: float | None = None, test: float | None = None) -> None:
    """Refuse parts that are too small to measure an error.

    Args:
        data: All examples.
        validation: See `sizes`.
        test: Likewise.

    Raises:
        BadInput: If one of the parts is smaller than `FEWEST`, or than the number of classes.
    """
    train, validating = sizes(data, validation, test)
    testing = len(data.labels) - train - validating
    classes = len(np.unique(data.labels)) if data.classes and data.labels.ndim == 1 else 0
    if min(train, validating, testing) < max(FEWEST, classes):
        each = f" and one for each of {classes} classes" if classes else ""
        raise BadInput(
            f"Expected at least {FEWEST} examples{each} to train on, for validation and for the test, got {train}, "
            f"{validating} and {testing} of {len(data.labels)}. Change `validation` or `test`, or take more data."
        )


def split(
    n: int, seed: int, train: int = TRAIN, validation: int = VALIDATION, *, fixed: int = 0
) -> dict[str, np.ndarray]:
    """Divide `n` examples at random; the seed alone decides, so every norm gets the same split.

    Args:
        n: Number of examples.
        seed: Seed of the run.
        train: Size of the training set.
        validation: Size of the validation set.
        fixed: Number of the last examples that no seed moves: they are for validation and then for the test.

    Returns:
        Disjoint int32 indices `train`, `validation` and `test`, the rest.

    Raises:
        ValueError: If nothing would be left to test on.
    """
    if train + validation >= n:
        raise ValueError(f"Expected `train + validation` below {n} examples, got {train} + {validation}.")
    drawn = n - fixed
    order = np.random.default_rng(seed).permutation(drawn).astype(np.int32)
    order = np.concatenate([order, np.arange(drawn, n, dtype=np.int32)])
    return {
        "train": order[:train],
        "validation": order[train : train + validation],
        "test": order[train + validation :],
    }


def divided(
    data: Dataset, seed: int, validation: float | None = None, test: float | None = None
) -> dict[str, np.ndarray]:
    """Divide data for a run: `split`, with the sets of the data in random order, too.

    Args:
        data: All examples.
        seed: Seed of the run.
        validation: See `sizes`.
        test: Likewise.
    """
    fixed = data.test + data.validation
    parts = split(len(data.labels), seed, *sizes(data, validation, test), fixed=fixed)
    if data.test:  # files may be sorted
        parts["test"] = np.random.default_rng((seed, 3)).permutation(parts["test"])
    return parts


def shuffled(examples: np.ndarray, batch_size: int, epochs: int, seed: int) -> np.ndarray:
    """Shuffle examples anew for every epoch; the seed alone decides.

    Returns:
        Shape (steps, batch_size), without the incomplete last batch of each epoch.
    """
    per_epoch = len(examples) // batch_size
    generator = np.random.default_rng((seed, 1))  # not the stream of `split`
    order = generator.permuted(np.tile(examples, (epochs, 1)), axis=1)
    return order[:, : per_epoch * batch_size].reshape(epochs * per_epoch, batch_size)


def composed(labels: np.ndarray, batches: int, batch_size: int, classes: int, seed: int) -> np.ndarray:
    """Draw batches of a number of classes each, chosen anew for every batch, with equal shares as far as they go.

    Args:
        labels: A class for each example, shape (examples,).
        batches: Number of batches.
        batch_size: Examples in each, drawn from their class independently: one may occur twice.
        classes: Number of classes in a batch.
        seed: Seed of all draws.

    Returns:
        Indices into `labels`, shape (batches, batch_size).

    Raises:
        ValueError: If there are fewer classes.
    """
    random = np.random.default_rng((seed, 2))  # not the streams of `split`, `shuffled` and `divided`
    by_class = np.argsort(labels, kind="stable")
    _, first, count = np.unique(labels[by_class], return_index=True, return_counts=True)
    if classes > len(count):
        raise ValueError(
            f"Expected {classes} classes among the examples that batches are drawn from, got {len(count)} among "
            f"{len(labels)}."
        )
    chosen = random.permuted(np.tile(np.arange(len(count)), (batches, 1)), axis=1)
    kind = chosen[:, np.arange(batch_size) % classes]
    return by_class[first[kind] + (random.random(kind.shape) * count[kind]).astype(int)].astype(np.int32)
