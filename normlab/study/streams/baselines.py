"""What needs no network: simple guesses and river's models, tested on each example before they learn from it.

Importing this module imports neither JAX nor river.
"""

from collections import Counter
from typing import Any

import numpy as np

from normlab.errors import BadInput
from normlab.study.data.cache import kept
from normlab.study.design.provenance import data_hash
from normlab.study.design.records import content_key
from normlab.study.streams.stream import Stream, river_version

FORMAT = 1
"""To be raised when the same stream is to give other errors than before."""

MAJORITY, MEAN, NO_CHANGE = "majority", "mean so far", "no change"
LOGISTIC, LINEAR, TREE = "logistic regression", "linear regression", "Hoeffding adaptive tree"

TREE_SEED = 0
"""Of river's trees, which draw how often they learn from an example."""


def errors(stream: Stream, *, delay: int = 0) -> dict[str, np.ndarray]:
    """Test each baseline on each example, then let it learn from it.

    For classes these are `majority`, the class seen most often, among several the one that was first seen so often;
    `no change`, the last label; and river's `logistic regression`, for more than two classes one against the rest, and
    `Hoeffding adaptive tree`, with river's own options. For numbers they are `mean so far`, `no change`, and river's
    `linear regression` and `Hoeffding adaptive tree`. Where nothing was seen yet, no class is told, which is an error,
    and the number 0. river's models run under its own `evaluate.iter_progressive_val_score`; what they give is kept on
    disk.

    Args:
        stream: Its inputs go to river as they are, pixels as one feature each.
        delay: How late labels come, as river counts: what is known when an example is predicted are the labels of those
            that came at least so many examples before it. An example's own label is not: 0 is the same as 1.

    Returns:
        For each baseline, whether each example was wrong, or its squared error, shape (n,), float32.

    Raises:
        BadInput: If `delay` is negative, or river is not installed.
    """
    if delay < 0:
        raise BadInput(f"Expected `delay` from 0 examples on, got {delay}.")
    data = data_hash({"inputs": stream.inputs, "labels": stream.labels})
    key = content_key("baselines", FORMAT, river_version(), TREE_SEED, stream.classes, delay, data)
    return {**_simple(stream, max(1, delay)), **kept("streams", key, lambda: _of_river(stream, delay))}


def names(*, classes: bool) -> tuple[str, ...]:
    """Give the names of the baselines, for classes or for numbers."""
    return (MAJORITY, NO_CHANGE, LOGISTIC, TREE) if classes else (MEAN, NO_CHANGE, LINEAR, TREE)


def _simple(stream: Stream, lag: int) -> dict[str, np.ndarray]:
    """The errors of guesses that do not look at inputs."""
    labels = stream.labels
    name, told = (MAJORITY, _majority(labels)) if stream.classes else (MEAN, _mean(labels))
    return {
        name: _errors(stream, _late(told, lag, stream)),
        NO_CHANGE: _errors(stream, _late(labels, lag, stream)),
    }


def _majority(labels: np.ndarray) -> np.ndarray:
    """The majority after each label."""
    counts, leader, leaders = Counter[int](), int(labels[0]), []
    for label in labels.tolist():
        counts[label] += 1
        leader = label if counts[label] > counts[leader] else leader
        leaders.append(leader)
    return np.array(leaders)


def _mean(labels: np.ndarray) -> np.ndarray:
    """The mean after each label."""
    return np.cumsum(labels, dtype=np.float64) / np.arange(1, len(labels) + 1)


def _late(told: np.ndarray, lag: int, stream: Stream) -> np.ndarray:
    """What is told at each example by someone who knows the labels up to `lag` examples before it."""
    unknown = np.full(min(lag, len(told)), -1 if stream.classes else 0)
    return np.concatenate([unknown, told[: len(told) - len(unknown)]])


def _errors(stream: Stream, predictions: np.ndarray) -> np.ndarray:
    wrong = predictions != stream.labels if stream.classes else (predictions - stream.labels.astype(np.float64)) ** 2
    return wrong.astype(np.float32)


def _of_river(stream: Stream, delay: int) -> dict[str, np.ndarray]:
    """The errors of river's models."""
    from river import evaluate, metrics

    metric: Any = metrics.Accuracy if stream.classes else metrics.MSE
    nothing = -1 if stream.classes else 0
    found = {}
    for name, model in _models(stream.classes).items():
        steps = evaluate.iter_progressive_val_score(
            _examples(stream), model, metric(), delay=delay or None, yield_predictions=True
        )
        told = [step["Prediction"] for step in steps]
        found[name] = _errors(stream, np.array([nothing if one is None else float(one) for one in told]))
    return found


def _models(classes: int) -> dict[str, Any]:
    """Models of river for so many classes; 0 for numbers."""
    from river import linear_model, multiclass, tree

    if not classes:
        return {LINEAR: linear_model.LinearRegression(), TREE: tree.HoeffdingAdaptiveTreeRegressor(seed=TREE_SEED)}
    logistic = linear_model.LogisticRegression()
    return {
        LOGISTIC: logistic if classes == 2 else multiclass.OneVsRestClassifier(logistic),
        TREE: tree.HoeffdingAdaptiveTreeClassifier(seed=TREE_SEED),
    }


def _examples(stream: Stream) -> list[tuple[dict[Any, float], Any]]:
    """The stream as river has it: features by number; two classes as `False` and `True`."""
    labels = stream.labels.astype(bool) if stream.classes == 2 else stream.labels
    rows = stream.inputs.reshape(len(labels), -1).tolist()
    return [(dict(enumerate(row)), label) for row, label in zip(rows, labels.tolist(), strict=True)]
