"""Baselines without a network: simple guesses and river's models, tested on each example before learning from it.

Importing this module imports neither JAX nor river.
"""

from collections import Counter
from collections.abc import Hashable
from typing import TYPE_CHECKING

import numpy as np

from normlab.errors import BadInput
from normlab.study.data.cache import kept
from normlab.study.design.provenance import data_hash
from normlab.study.design.records import content_key
from normlab.study.streams.stream import Stream, river_version

if TYPE_CHECKING:
    from river.base import Estimator

FORMAT = 1
"""Increment when the same stream gives different errors."""

MAJORITY, MEAN, NO_CHANGE = "majority", "mean so far", "no change"
LOGISTIC, LINEAR, TREE = "logistic regression", "linear regression", "Hoeffding adaptive tree"

TREE_SEED = 0
"""Seed of river's trees, which draw how often they learn from an example."""


def errors(stream: Stream, *, delay: int = 0) -> dict[str, np.ndarray]:
    """Test each baseline on each example before it learns from the example.

    For classes these are `majority`, the most frequent class, in a tie the one that first reached this count; `no
    change`, the last label; and river's `logistic regression`, for more than two classes one against the rest, and
    `Hoeffding adaptive tree`, with river's default options. For numbers they are `mean so far`, `no change`, and
    river's `linear regression` and `Hoeffding adaptive tree`. Before the first label no class is predicted, which is an
    error, or the number 0. river's models run under `evaluate.iter_progressive_val_score`; their errors are cached on
    disk.

    Args:
        stream: Stream whose inputs go to river unchanged, each pixel as one feature.
        delay: Delay of labels, as river counts: the prediction of an example knows the labels of examples that arrived
            at least this many examples earlier. It never knows its own label: 0 is the same as 1.

    Returns:
        For each baseline, whether each prediction was wrong, or its squared error, shape (n,), float32.

    Raises:
        BadInput: If `delay` is negative, or river is not installed.
    """
    if delay < 0:
        raise BadInput(f"Expected `delay` from 0 examples on, got {delay}.")
    data = data_hash({"inputs": stream.inputs, "labels": stream.labels})
    key = content_key("baselines", FORMAT, river_version(), TREE_SEED, stream.classes, delay, data)
    return {**_simple(stream, max(1, delay)), **kept("streams", key, lambda: _of_river(stream, delay))}


def names(*, classes: bool) -> tuple[str, ...]:
    """Return the names of the baselines, for classes or for numbers."""
    return (MAJORITY, NO_CHANGE, LOGISTIC, TREE) if classes else (MEAN, NO_CHANGE, LINEAR, TREE)


def _simple(stream: Stream, lag: int) -> dict[str, np.ndarray]:
    """Compute the errors of guesses that ignore inputs."""
    labels = stream.labels
    name, guesses = (MAJORITY, _majority(labels)) if stream.classes else (MEAN, _mean(labels))
    return {
        name: _errors(stream, _late(guesses, lag, stream)),
        NO_CHANGE: _errors(stream, _late(labels, lag, stream)),
    }


def _majority(labels: np.ndarray) -> np.ndarray:
    """Return the majority after each label."""
    counts, leader, leaders = Counter[int](), int(labels[0]), []
    for label in labels.tolist():
        counts[label] += 1
        leader = label if counts[label] > counts[leader] else leader
        leaders.append(leader)
    return np.array(leaders)


def _mean(labels: np.ndarray) -> np.ndarray:
    """Return the mean after each label."""
    return np.cumsum(labels, dtype=np.float64) / np.arange(1, len(labels) + 1)


def _late(guesses: np.ndarray, lag: int, stream: Stream) -> np.ndarray:
    """Delay guesses by `lag` examples."""
    unknown = np.full(min(lag, len(guesses)), -1 if stream.classes else 0)
    return np.concatenate([unknown, guesses[: len(guesses) - len(unknown)]])


def _errors(stream: Stream, predictions: np.ndarray) -> np.ndarray:
    wrong = predictions != stream.labels if stream.classes else (predictions - stream.labels.astype(np.float64)) ** 2
    return wrong.astype(np.float32)


def _of_river(stream: Stream, delay: int) -> dict[str, np.ndarray]:
    """Compute the errors of river's models."""
    from river import evaluate, metrics

    metric = metrics.Accuracy if stream.classes else metrics.MSE
    nothing = -1 if stream.classes else 0
    found = {}
    for name, model in _models(stream.classes).items():
        steps = evaluate.iter_progressive_val_score(
            _examples(stream), model, metric(), delay=delay or None, yield_predictions=True
        )
        predictions = [step["Prediction"] for step in steps]
        found[name] = _errors(stream, np.array([nothing if one is None else float(one) for one in predictions]))
    return found


def _models(classes: int) -> dict[str, "Estimator"]:
    """Make the models of river for a number of classes; 0 for numbers."""
    from river import linear_model, multiclass, tree

    if not classes:
        return {LINEAR: linear_model.LinearRegression(), TREE: tree.HoeffdingAdaptiveTreeRegressor(seed=TREE_SEED)}
    logistic = linear_model.LogisticRegression()
    return {
        LOGISTIC: logistic if classes == 2 else multiclass.OneVsRestClassifier(logistic),
        TREE: tree.HoeffdingAdaptiveTreeClassifier(seed=TREE_SEED),
    }


def _examples(stream: Stream) -> list[tuple[dict[Hashable, float], bool | int | float]]:
    """Convert a stream for river: features by number; two classes as `False` and `True`."""
    labels = stream.labels.astype(bool) if stream.classes == 2 else stream.labels
    rows = stream.inputs.reshape(len(labels), -1).tolist()
    return [(dict[Hashable, float](enumerate(row)), label) for row, label in zip(rows, labels.tolist(), strict=True)]
