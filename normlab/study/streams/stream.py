"""Streams: examples in the order in which they arrive, and bursts of them."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from importlib.metadata import version
from itertools import pairwise

import numpy as np

from normlab import expect
from normlab.errors import BadInput
from normlab.extras import importing, require
from normlab.study.data.cache import kept
from normlab.study.data.dataset import numbers_of
from normlab.study.design.records import content_key
from normlab.study.streams.preprocessing import STANDARDIZED

FORMAT = 2
"""Increment when the same source and seed give different arrays."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Stream:
    """Labelled examples in the order of their arrival. It accepts and checks whatever NumPy accepts as an array.

    Attributes:
        name: Short name for records and flags.
        inputs: Shape (n, ...), channels last, float32.
        labels: Shape (n,): classes counted from 0, int32, or numbers, float32.
        classes: Number of classes; 0 for numbers.
        drifts: Index of the first example of each new concept, for a gradual change its middle; empty if unknown.
        tasks: For sequences of tasks the index at which each begins.
        held_out: For sequences of tasks the inputs, labels and tasks of examples that are not in the stream, equally
            many for each task.
        description: Description of the stream, for the report.
        skipped: Number of examples that were left out because a value was not finite.

    Raises:
        BadInput: For examples that cannot be learned from.
    """

    name: str
    inputs: np.ndarray
    labels: np.ndarray
    classes: int
    drifts: tuple[int, ...] = ()
    tasks: tuple[int, ...] = ()
    held_out: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    description: str = ""
    skipped: int = 0

    def __post_init__(self) -> None:
        expect.check_fields(self, name=expect.TEXT, classes=expect.COUNT, description=expect.TEXT, skipped=expect.COUNT)
        labels = numbers_of("labels", self.labels)
        _check_finite(self.name, labels)
        if self.classes and (labels % 1 != 0).any():
            raise BadInput(
                f"Expected whole numbers as labels of the {self.classes} classes in the stream `{self.name}`, got "
                f"{labels.dtype} with others among them. Number the classes, or write `classes=0` for numbers."
            )
        with np.errstate(over="ignore"):  # to infinity, which is found below
            inputs = numbers_of("inputs", self.inputs).astype(np.float32, copy=False)
        labels = labels.astype(np.int32 if self.classes else np.float32, copy=False)
        expect.convert_fields(self, inputs=inputs, labels=labels)
        if not len(self.labels) or self.inputs.shape[:1] != self.labels.shape:
            raise BadInput(
                f"Expected examples with a label each in the stream `{self.name}`, got inputs of shape "
                f"{self.inputs.shape} and labels of shape {self.labels.shape}. The first axis of both counts examples."
            )
        _check_finite(self.name, self.inputs)
        _check_finite(self.name, self.labels)
        outside = np.flatnonzero((self.labels < 0) | (self.labels >= self.classes)) if self.classes else []
        if len(outside):
            raise BadInput(
                f"Expected labels from 0 to {self.classes - 1} in the stream `{self.name}`, got "
                f"{self.labels[outside[0]]} in example {outside[0]}. Count classes from 0."
            )
        check_positions(self.drifts, len(self.labels))


@dataclass(frozen=True)
class Source:
    """A source of streams.

    Attributes:
        name: Short name for records and flags; its streams have it, too.
        make: `seed -> stream`.
        replicated: Whether each seed has its own stream; a real stream is the same for all seeds.
        content: Returns everything that decides the arrays besides the seed, as values for JSON; the arrays are then
            made once and cached on disk. `None` to make them every time.
        libraries: Distributions that the stream comes from, e.g. `river`.
    """

    name: str
    make: Callable[[int], Stream]
    replicated: bool
    content: Callable[[], object] | None = None
    libraries: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            BadInput: If a field has a wrong type or value.
        """
        expect.check_fields(
            self,
            name=expect.LABEL,
            make=expect.function("a function of a seed", "Write `lambda seed: stream`.", arguments=1),
            replicated=expect.SWITCH,
            content=expect.optional(expect.function("a function without arguments", arguments=0)),
        )

    def __call__(self, seed: int = 0) -> Stream:
        """Return the stream of a seed: the same arrays in every process.

        Raises:
            BadInput: If there is no such stream, or its examples cannot be learned from.
        """
        seed = int(seed) if self.replicated else 0
        if self.content is None:
            return replace(self._made(seed), name=self.name)
        key = content_key("stream", FORMAT, self.content(), seed)
        return replace(_from_arrays(kept("streams", key, lambda: _to_arrays(self._made(seed)))), name=self.name)

    def _made(self, seed: int) -> Stream:
        stream = self.make(seed)
        if not isinstance(stream, Stream):
            raise expect.refusal(f"`make` of the source `{self.name}` to return a `Stream`", stream, "Return one.")
        return stream


def bursts(n: int, size: int, *, varying: bool = False, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Divide a stream into bursts of consecutive examples that arrive at the same time.

    Args:
        n: Examples in the stream.
        size: Size of a burst; the last one may be smaller.
        varying: Whether sizes are 1 to `2 * size - 1` instead, each once in every `2 * size - 1` bursts.
        seed: Decides the order of sizes.

    Returns:
        Indices, shape (steps, most), int32, padded with `n - 1`; and whether each counts, bool.

    Raises:
        BadInput: If `n` or `size` is less than 1.

    Example:
        >>> index, counted = bursts(5, 2)
        >>> index.tolist(), counted.sum(axis=1).tolist()
        ([[0, 1], [2, 3], [4, 4]], [2, 2, 1])
    """
    if min(n, size) < 1:
        raise BadInput(f"Expected `n` and `size` of at least 1, got {n} and {size}.")
    if varying:
        rounds = np.tile(np.arange(1, 2 * size), (-(-n // (size * (2 * size - 1))), 1))
        drawn = np.random.default_rng(seed).permuted(rounds, axis=1).ravel()
    else:
        drawn = np.full(-(-n // size), size)
    begins = np.concatenate([[0], np.cumsum(drawn)])
    begins = np.append(begins[begins < n], n)
    index = begins[:-1, None] + np.arange(np.diff(begins).max())
    counted = index < begins[1:, None]
    return np.where(counted, index, n - 1).astype(np.int32), counted


def check_positions(positions: Sequence[int], n: int) -> tuple[int, ...]:
    """Check that positions of drifts increase and are within the stream.

    Raises:
        BadInput: If they do not.
    """
    positions = tuple(map(int, positions))
    wrong = next((p for p in positions if not 0 < p < n), None)
    if wrong is not None:
        raise BadInput(f"Expected positions of drifts from 1 to {n - 1}, in a stream of {n} examples, got {wrong}.")
    if any(first >= second for first, second in pairwise(positions)):
        raise BadInput(f"Expected positions of drifts that increase, got {positions}.")
    return positions


def river_version() -> str:
    """Return the version of river.

    Raises:
        MissingExtra: If it is not installed.
    """
    require("online", "river")
    with importing("online"):
        return version("river")  # an `ImportError` where there is none


def _version(library: str) -> str:
    return river_version() if library == "river" else version(library)


def source_of(
    name: str,
    make: "partial[Stream]",
    *,
    replicated: bool = False,
    libraries: tuple[str, ...] = (),
    files: Sequence[str] = (),
) -> Source:
    """Make a source that the arguments of its function, the content of its files and versions of libraries identify."""

    def content() -> list[object]:
        return [make.func.__name__, make.keywords, list(map(sha256_of, files)), list(map(_version, libraries))]

    return Source(name, make, replicated, content, libraries)


def _check_finite(name: str, array: np.ndarray) -> None:
    wrong = np.argwhere(~np.isfinite(array))
    if len(wrong):
        raise BadInput(
            f"Expected finite numbers in the stream `{name}`, got {array[tuple(wrong[0])]} in example {wrong[0][0]}. "
            "Remove or replace them."
        )


def describe(what: str, standardize: bool) -> str:
    """Describe a stream, and say whether its features are standardized."""
    return f"{what}. {STANDARDIZED if standardize else 'Features are as they came'}."


_HELD_OUT = ("held_out_inputs", "held_out_labels", "held_out_task")


def _to_arrays(stream: Stream) -> dict[str, np.ndarray]:
    """Return all fields of a stream as arrays, by name."""
    values = {field.name: getattr(stream, field.name) for field in fields(stream)}
    held_out = dict(zip(_HELD_OUT, values.pop("held_out") or (), strict=False))
    values |= {name: np.array(values[name], np.int64) for name in ("drifts", "tasks")}
    return {name: np.asarray(value) for name, value in {**values, **held_out}.items()}


def _from_arrays(arrays: Mapping[str, np.ndarray]) -> Stream:
    inputs, labels, task = (arrays.get(name) for name in _HELD_OUT)
    return Stream(
        name=str(arrays["name"]),
        inputs=arrays["inputs"],
        labels=arrays["labels"],
        classes=int(arrays["classes"]),
        drifts=tuple(arrays["drifts"].tolist()),
        tasks=tuple(arrays["tasks"].tolist()),
        held_out=None if inputs is None or labels is None or task is None else (inputs, labels, task),
        description=str(arrays["description"]),
        skipped=int(arrays["skipped"]),
    )


def sha256_of(path: str) -> str:
    """Hash the content of a file."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadInput(f"Expected a stream in `{path}`, which cannot be read: {error.strerror}.") from error
