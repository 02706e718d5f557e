"""Measures of learning from a stream: recovery from drifts, forgetting, running against true statistics, chance."""

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from normlab.introspect import statistics
from normlab.introspect.capture import inputs_of
from normlab.notation import PyTree
from normlab.study.streams.protocol import (
    DROP,
    FINAL,
    FORGETTING,
    LOST,
    NOT_RECOVERED,
    PARTS,
    RECOVERED_WITHIN,
    RECOVERY,
    SETTLED,
)
from normlab.study.streams.stream import Stream
from normlab.study.training.objectives import MISCLASSIFICATION, Error


def drift_metrics(errors: jax.Array, stream: Stream, scored: int = 0) -> dict[str, jax.Array]:
    """Measure how the error rises after drifts and recovers, as means over the drifts of a stream.

    A window is as long as a part of the stream. The level before a drift is the error over the `SETTLED` windows before
    it. The model has recovered with the first window that is within `RECOVERED_WITHIN` of this level, if the mean error
    from there to the next drift is, too, and at least `SETTLED` windows remain: a single window may be lucky. Without
    recovery, all examples until the next drift count. Drifts without enough windows around them are left out.

    Args:
        errors: Error of each example, shape (examples,).
        stream: A stream that knows its drifts.
        scored: First example that is reported on.
    """
    n, window = len(stream.labels), len(stream.labels) // PARTS
    found = []
    for drift, end in zip(stream.drifts, (*stream.drifts, n)[1:], strict=True):
        windows = (end - drift) // window
        if drift - SETTLED * window < scored or windows < SETTLED:
            continue
        before = errors[drift - SETTLED * window : drift].mean()
        after = errors[drift : drift + windows * window].reshape(windows, window).mean(1)
        onward = jnp.cumsum(after[::-1])[::-1] / jnp.arange(windows, 0, -1)  # from each window to the last
        back = jnp.maximum(after, onward)[: windows - SETTLED + 1] <= before + RECOVERED_WITHIN
        needed = jnp.where(back.any(), window * (1 + jnp.argmax(back)), end - drift)
        lost = jnp.where(jnp.arange(end - drift) < needed, errors[drift:end] - before, 0).sum()
        found.append([after[0] - before, needed, back.any(), lost])
    if not found:
        return {}
    drop, needed, recovered, lost = jnp.asarray(found).mean(0)
    return {DROP: drop, RECOVERY: needed, NOT_RECOVERED: 1 - recovered, LOST: lost}


def task_metrics(by_task: jax.Array) -> dict[str, jax.Array]:
    """Measure the error on all tasks at the end, and forgetting.

    Forgetting is the error on a task at the end minus its lowest error since the task was learned, as a mean over all
    tasks but the last.

    Args:
        by_task: Error on each task (columns) after each task (rows).
    """
    since = jnp.where(jnp.tril(jnp.ones_like(by_task)) > 0, by_task, jnp.inf)
    return {FINAL: by_task[-1].mean(), FORGETTING: (by_task[-1, :-1] - since[:-1].min(0)[:-1]).mean()}


def first_running_norm(module: nn.Module | None, inputs: np.ndarray) -> statistics.Path | None:
    """Find the first module that keeps a running mean; `None` if there is none, or the model is not Linen."""
    if module is None:
        return None
    shapes = jax.eval_shape(partial(module.init, train=False), jax.random.key(0), inputs)
    return next(iter(statistics.paths(shapes)), None)


def lag(module: nn.Module, path: statistics.Path, variables: Mapping[str, PyTree], inputs: jax.Array) -> jax.Array:
    """Compare the running statistics of the norm at `path` with the true statistics of its inputs.

    Returns:
        Absolute difference of means in true standard deviations, and running over true variance: means over features.
    """
    captured = inputs_of(path, lambda: module.apply(variables, inputs, train=False))
    mean, var = statistics.read(variables, path)
    x = captured[-1].reshape(-1, captured[-1].shape[-1])
    true_mean, true_var = x.mean(0), x.var(0) + 1e-5
    return jnp.stack([(jnp.abs(mean - true_mean) / jnp.sqrt(true_var)).mean(), (var / true_var).mean()])


def chance(stream: Stream, error: Error, part: slice) -> float | None:
    """Return the error of the best constant answer between two drifts, over a part of the stream."""
    if error.function is not MISCLASSIFICATION.function:
        return None
    concept = np.searchsorted(stream.drifts, np.arange(len(stream.labels)), side="right")
    labels, concept = stream.labels[part], concept[part]
    right = sum(np.bincount(labels[concept == one]).max() for one in np.unique(concept))
    return float(1 - right / len(labels))
