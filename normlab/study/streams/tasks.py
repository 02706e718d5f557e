"""Streams of tasks: split and permuted digits."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from normlab.errors import BadInput
from normlab.study.data.dataset import digits
from normlab.study.streams.stream import Source, Stream, source_of


def split_digits(*, per_task: int = 290, held_out: int = 60) -> Source:
    """Make five tasks of two digits each, one after the other: 0 and 1, 2 and 3, ...; labels stay 0 to 9.

    Args:
        per_task: Examples of each task in the stream.
        held_out: Examples of each task that are not in the stream; each pair has at least 354 in all.

    Raises:
        BadInput: If there are too few examples, when the stream is made.
    """
    make = partial(_split_digits, per_task=per_task, held_out=held_out)
    return source_of("split-digits", make, replicated=True, libraries=("scikit-learn",))


def permuted_digits(*, tasks: int = 5, per_task: int = 1437, held_out: int = 360) -> Source:
    """Make tasks of the same digits, each with its own order of the pixels; the first has the original order.

    Args:
        tasks: Number of tasks.
        per_task: Examples of each task in the stream.
        held_out: Digits that are not in the stream, the same for each task; there are 1,797 in all.

    Raises:
        BadInput: If there are too few examples, when the stream is made.
    """
    if tasks < 1:
        raise BadInput(f"Expected at least 1 task, got {tasks}.")
    make = partial(_permuted_digits, tasks=tasks, per_task=per_task, held_out=held_out)
    return source_of("permuted-digits", make, replicated=True, libraries=("scikit-learn",))


def _split_digits(seed: int, *, per_task: int, held_out: int) -> Stream:
    random, data = np.random.default_rng(seed), digits()
    drawn = [random.permutation(np.flatnonzero(data.labels // 2 == task)) for task in range(5)]
    _check_enough(min(map(len, drawn)), per_task, held_out)
    streamed = np.concatenate([index[:per_task] for index in drawn])
    kept_back = np.concatenate([index[per_task : per_task + held_out] for index in drawn])
    return _of_tasks(
        "split-digits",
        (data.inputs[streamed], data.labels[streamed]),
        (data.inputs[kept_back], data.labels[kept_back]),
        tasks=5,
        description="5 tasks of two digits each, one after the other",
    )


def _permuted_digits(seed: int, *, tasks: int, per_task: int, held_out: int) -> Stream:
    random, data = np.random.default_rng(seed), digits()
    _check_enough(len(data.labels), per_task, held_out)
    shuffled = random.permutation(len(data.labels))
    orders = [np.arange(64), *(random.permutation(64) for _ in range(tasks - 1))]
    drawn = [random.permutation(shuffled[held_out:])[:per_task] for _ in orders]
    pixels = data.inputs.reshape(-1, 64)

    def seen(indices: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        inputs = [pixels[index][:, order] for index, order in zip(indices, orders, strict=True)]
        return np.concatenate(inputs).reshape(-1, 8, 8, 1), data.labels[np.concatenate(indices)]

    return _of_tasks(
        "permuted-digits",
        seen(drawn),
        seen([shuffled[:held_out]] * tasks),
        tasks=tasks,
        description=f"{tasks} tasks of all digits, one after the other, each with its own order of the pixels",
    )


def _of_tasks(
    name: str,
    stream: tuple[np.ndarray, np.ndarray],
    held_out: tuple[np.ndarray, np.ndarray],
    *,
    tasks: int,
    description: str,
) -> Stream:
    """Make a stream of digits with equally many examples of each task."""
    inputs, labels = stream
    begins = tuple(range(0, len(labels), len(labels) // tasks))
    task = np.repeat(np.arange(tasks, dtype=np.int32), len(held_out[1]) // tasks)
    return Stream(
        name=name,
        inputs=inputs,
        labels=labels,
        classes=10,
        drifts=begins[1:],
        tasks=begins,
        held_out=(*held_out, task),
        description=f"scikit-learn's digits, {len(labels):,} examples, {description}. Pixels are divided by 16, not "
        "standardized.",
    )


def _check_enough(there: int, per_task: int, held_out: int) -> None:
    if min(per_task, held_out) < 1 or per_task + held_out > there:
        raise BadInput(
            f"Expected `per_task` and `held_out` from 1 on and up to {there} together, got {per_task} and {held_out}."
        )
