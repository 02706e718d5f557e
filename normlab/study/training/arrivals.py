"""Arrival of a stream: which examples a program tests, and which it learns from, at each step."""

from typing import NamedTuple

import numpy as np

from normlab.study.design.program import Array
from normlab.study.streams.protocol import PARTS
from normlab.study.streams.stream import Stream, bursts


class Ends(NamedTuple):
    """Ends of the parts and tasks of a stream.

    Attributes:
        newest: Latest example of each step, shape (steps,).
        part: Last step of each part, shape (parts,).
        task: Last step of each task, shape (tasks,).
    """

    newest: Array
    part: Array
    task: Array


class Arranged(NamedTuple):
    """A stream as arrays that a compiled program reads.

    Attributes:
        inputs: Shape (examples, ...).
        labels: Shape (examples,).
        tested: Examples that each step predicts, shape (steps, most).
        arrived: Whether these count, shape (steps, most).
        learned: Examples that each step learns from, shape (steps, most).
        known: Whether these count, shape (steps, most).
        ends: Ends of parts and tasks.
        held_out: Inputs and labels of each task, shape (tasks, examples, ...); `None` for a stream without tasks.
    """

    inputs: Array
    labels: Array
    tested: Array
    arrived: Array
    learned: Array
    known: Array
    ends: Ends
    held_out: tuple[Array, Array] | None


def arrivals(n: int, seed: int, batch_size: int, varying: bool) -> tuple[np.ndarray, np.ndarray]:
    """Divide a stream into bursts, equally many for all seeds: one compiled program serves them all.

    Args:
        n: Examples in the stream.
        seed: Decides the sizes of bursts that vary.
        batch_size: Examples of a burst.
        varying: Whether bursts vary in size; the first ones may then be empty.

    Returns:
        Indices of the examples, shape (steps, most), and which of them count.
    """
    index, counted = bursts(n, batch_size, varying=varying, seed=seed)
    round_of_sizes = 2 * batch_size - 1
    steps = -(-n // (batch_size * round_of_sizes)) * round_of_sizes if varying else len(index)
    empty = steps - len(index), index.shape[1]
    return np.concatenate([np.full(empty, n - 1, index.dtype), index]), np.concatenate([np.zeros(empty, bool), counted])


def arranged(stream: Stream, seed: int, batch_size: int, *, varying: bool, delay: int) -> Arranged:
    """Arrange a stream for a compiled program.

    Args:
        stream: The stream of the seed.
        seed: See `arrivals`.
        batch_size: See `arrivals`.
        varying: See `arrivals`.
        delay: Delay of labels in examples, rounded up to whole bursts.
    """
    tested, arrived = arrivals(len(stream.labels), seed, batch_size, varying)
    late = min(-(-max(0, delay - 1) // batch_size), len(tested))
    return Arranged(
        inputs=stream.inputs,
        labels=stream.labels,
        tested=tested,
        arrived=arrived,
        learned=np.roll(tested, late, axis=0),
        known=np.roll(arrived, late, axis=0) & (np.arange(len(tested)) >= late)[:, None],
        ends=ends_of(stream, tested, arrived),
        held_out=_held_out(stream),
    )


def ends_of(stream: Stream, tested: np.ndarray, arrived: np.ndarray) -> Ends:
    """Find the steps at which the parts and the tasks of a stream end."""
    n = len(stream.labels)
    newest = np.maximum.accumulate(np.where(arrived, tested, 0).max(1))
    parts, tasks = [(part + 1) * n // PARTS for part in range(PARTS)], [*stream.tasks[1:], n]
    return Ends(newest, *(np.searchsorted(newest, np.array(end) - 1) for end in (parts, tasks)))


def _held_out(stream: Stream) -> tuple[np.ndarray, np.ndarray] | None:
    if stream.held_out is None:
        return None
    inputs, labels, tasks = stream.held_out
    order = np.argsort(tasks, kind="stable").reshape(len(stream.tasks), -1)
    return inputs[order], labels[order]
