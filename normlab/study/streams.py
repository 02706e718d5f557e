"""Streams of examples in the order in which they come: made, recorded or the user's own, and kept on disk as arrays.

Importing this module imports neither JAX nor river nor scikit-learn.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from importlib.metadata import version
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from normlab.study import expect
from normlab.study.cache import kept
from normlab.study.config import content_key
from normlab.study.data import digits, numbers_of
from normlab.study.errors import BadInput, nearest
from normlab.study.extras import importing, require
from normlab.study.generators import KINDS, changing_options, drifting
from normlab.study.rows import DELIMITERS, Rows, numbered, read_csv, read_npz

FORMAT = 1
"""To be raised when the same source and seed are to give other arrays than before."""

DRIFTS = ("none", "abrupt", "gradual", "recurring", "incremental")

STANDARDIZED = (
    "Each feature is standardized by the mean and standard deviation of the examples so far, this one included"
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Stream:
    """Labelled examples in the order in which they come. Whatever NumPy takes as an array is taken and checked.

    Attributes:
        name: Short, for records and flags.
        inputs: Shape (n, ...), channels last, float32.
        labels: Shape (n,): classes counted from 0, int32, or numbers, float32.
        classes: How many there are; 0 for numbers.
        drifts: Index of the first example of each new concept, for a gradual change the middle; empty where unknown.
        tasks: For sequences of tasks the index where each begins.
        held_out: For sequences of tasks the inputs, labels and task of examples that are not in the stream, as many for
            each task.
        about: What the stream is, in words, for the report.
        skipped: How many examples were left out because a value was not finite.

    Raises:
        BadInput: For what cannot be learned from.
    """

    name: str
    inputs: np.ndarray
    labels: np.ndarray
    classes: int
    drifts: tuple[int, ...] = ()
    tasks: tuple[int, ...] = ()
    held_out: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
    about: str = ""
    skipped: int = 0

    def __post_init__(self) -> None:
        expect.check_fields(self, name=expect.TEXT, classes=expect.COUNT, about=expect.TEXT, skipped=expect.COUNT)
        labels = numbers_of("labels", self.labels)
        _check_finite(self.name, labels)
        if self.classes and (labels % 1 != 0).any():
            raise BadInput(
                f"Expected whole numbers as labels of the {self.classes} classes in the stream `{self.name}`, got "
                f"{labels.dtype} with others among them. Number the classes, or write `classes=0` for numbers."
            )
        with np.errstate(over="ignore"):  # to infinity, which is found below
            object.__setattr__(self, "inputs", numbers_of("inputs", self.inputs).astype(np.float32, copy=False))
        object.__setattr__(self, "labels", labels.astype(np.int32 if self.classes else np.float32, copy=False))
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
    """Where a stream comes from.

    Attributes:
        name: Short, for records and flags; that of its streams.
        make: `seed -> stream`.
        replicated: Whether each seed gives another stream; where there is one real stream, every seed gives the same.
        content: Gives what decides the arrays besides the seed, as something JSON can hold; then they are made once and
            kept on disk. `None` to make them every time.
        libraries: Distributions that the stream comes from, e.g. `river`.
    """

    name: str
    make: Callable[[int], Stream]
    replicated: bool
    content: Callable[[], Any] | None = None
    libraries: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            BadInput: If one cannot be what it should.
        """
        expect.check_fields(
            self,
            name=expect.LABEL,
            make=expect.function("a function of a seed", "Write `lambda seed: stream`.", arguments=1),
            replicated=expect.SWITCH,
            content=expect.optional(expect.function("a function without arguments", arguments=0)),
        )

    def __call__(self, seed: int = 0) -> Stream:
        """Give the stream of a seed: the same arrays in every process.

        Raises:
            BadInput: If there is none, or not the right thing in it.
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


def synthetic(
    kind: str,
    *,
    n: int = 10_000,
    drift: str = "abrupt",
    positions: Sequence[int] | None = None,
    width: int | None = None,
    standardize: bool = True,
    **options: Any,
) -> Source:
    """Make a stream of one of river's generators, in which what is to be learned changes.

    Each concept is a generator with a seed of its own, so that none repeats the examples of another, and goes on where
    it stopped when it comes back.

    Args:
        kind: `sea`, `agrawal`, `hyperplane`, `rbf` or `led`.
        n: Examples.
        drift: `abrupt`: from one example to the next. `gradual`: more and more examples of the new concept among those
            of the old one, by river's `ConceptDriftStream`. `recurring`: from one concept to another and back, abruptly
            unless `width` is given. `incremental`: the concept moves on a little at every example; `hyperplane` and
            `rbf` only. `none`.
        positions: Index of the first example of each new concept; unless given, the changes divide the stream into
            equal parts: two, or three where concepts recur.
        width: Of a change, in examples: half of it before the position 12 % are of the new concept, half of it behind
            88 %. A tenth of the stream for `gradual` unless given.
        standardize: Whether features are standardized online; see `standardized`.
        **options: For river's generator, as it names them; a tuple has a value for one concept after the other. Unless
            given, the concepts are `variant=(2, 3)` of `sea`, `classification_function=(0, 5, 2, 6)` of `agrawal`,
            `n_drift_features=(0, 7)` of `led`, and another seed for the others.

    Raises:
        BadInput: If there is no such stream.
    """
    _check_synthetic(kind, n, drift, positions, width, options)
    parts = {"abrupt": 2, "gradual": 2, "recurring": 3}.get(drift, 1)
    given = [n * part // parts for part in range(1, parts)] if positions is None else positions
    spread = max(1, n // 10) if drift == "gradual" and width is None else width
    return _source(
        f"{kind}-{drift}",
        partial(
            _synthetic,
            kind=kind,
            n=n,
            drift=drift,
            positions=check_positions(given, n),
            width=spread,
            standardize=standardize,
            options=options,
        ),
        replicated=True,
        libraries=("river",),
    )


def bundled(name: str, *, standardize: bool = True) -> Source:
    """Read one of the data sets that river brings along; nothing is downloaded.

    Args:
        name: `phishing`, `bananas`, `image_segments`, `shuttle` (classes), or `trump_approval` (numbers).
        standardize: Whether features are standardized online; see `standardized`.

    Raises:
        BadInput: If there is no such data set.
    """
    if name not in _BUNDLED:
        raise BadInput(f"Expected a data set of river's, got `{name}`. {nearest(name, _BUNDLED)}")
    return _source(name, partial(_bundled, name=name, standardize=standardize), libraries=("river",))


def recorded(name: str, data_dir: str | os.PathLike[str] | None = None, *, standardize: bool = True) -> Source:
    """Read a stream that was recorded in the world.

    Args:
        name: `weather`: 18,159 days at an air base, 8 measurements, whether it rained. `outdoor`: 4,000 pictures of 40
            objects out of doors, 21 chromaticities.
        data_dir: The folder in which `raw/weather/weather.csv`, or `raw/outdoor/outdoorStream.data` and `.labels` are;
            `NORMLAB_DATA` unless given.
        standardize: Whether features are standardized online; see `standardized`.

    Raises:
        BadInput: If there is no such stream.
    """
    if name not in _RECORDED:
        raise BadInput(f"Expected a recorded stream, got `{name}`. {nearest(name, _RECORDED)}")
    folder = data_dir or os.environ.get("NORMLAB_DATA")
    if not folder:
        raise BadInput(f"Expected the folder of recorded streams for `{name}`, got none. Set `NORMLAB_DATA`.")
    files = [str(Path(folder, "raw", name, file)) for file in _RECORDED[name].files]
    missing = next((file for file in files if not os.path.isfile(file)), None)
    if missing:
        raise BadInput(f"Expected the stream `{name}` in `{missing}`, got no such file. Check `NORMLAB_DATA`.")
    return _source(name, partial(_recorded, name=name, files=files, standardize=standardize), files=files)


def from_file(
    path: str | os.PathLike[str],
    *,
    label: str | None = None,
    classes: Sequence[str | int] | None = None,
    numbers: bool = False,
    drifts: Sequence[int] = (),
    skip_nonfinite: bool = False,
    standardize: bool = True,
    drop: Sequence[str] = (),
    header: bool | None = None,
    delimiter: str = ",",
) -> Source:
    """Read a stream of your own, in the order of the file.

    Args:
        path: A `.csv` file in UTF-8 with names of columns in its first line and numbers below, an example a line; or an
            `.npz` file with `inputs`, shape (n, ...), and `labels`, shape (n,).
        label: The column of labels; the last one unless given.
        classes: All labels that there can be, in the order of the outputs. Unless given: integers are classes
            themselves, counted from 0; other numbers are targets; text is a class, counted as it first appears.
        numbers: Whether labels are targets though all of them are integers.
        drifts: Index of the first example of each new concept, as far as known, counted in the file.
        skip_nonfinite: Leave out examples in which something is missing, NaN or infinite; they are refused otherwise.
        standardize: Whether features are standardized online; see `standardized`.
        drop: Columns that are left out, whatever is in them.
        header: Whether the first line has names of columns; without them, columns are counted from 1. Unless given it
            has, and is refused where it looks like an example.
        delimiter: Between values: `","`, `";"`, `"|"` or `"tab"`.

    Raises:
        BadInput: If there is no such file, or something in it cannot be learned from; when the stream is asked for.
    """
    path = os.fspath(path)
    if Path(path).suffix not in (".csv", ".npz"):
        raise BadInput(f"Expected a .csv or .npz file, got `{path}`.")
    if delimiter not in DELIMITERS:
        raise BadInput(f"Expected `delimiter` to be one of {', '.join(DELIMITERS)}, got `{delimiter}`.")
    of_csv = {"label": label, "drop": [str(name) for name in drop], "header": header, "delimiter": delimiter}
    if path.endswith(".npz"):
        if label is not None:
            raise BadInput(f"Expected no `label` for an .npz file, got `{label}`. Its labels are the array `labels`.")
        if drop or header is not None or delimiter != ",":
            raise BadInput(f"Expected `drop`, `header` and `delimiter` for a .csv file only, got `{path}`.")
    make = partial(
        _own,
        path=path,
        of_csv=of_csv,
        classes=None if classes is None else [str(name) for name in classes],
        numbers=numbers,
        drifts=tuple(map(int, drifts)),
        skip_nonfinite=skip_nonfinite,
        standardize=standardize,
    )
    return _source(Path(path).stem, make, files=[path])


def split_digits(*, per_task: int = 290, held_out: int = 60) -> Source:
    """Make five tasks of two digits each, one after the other: 0 and 1, 2 and 3, ...; labels stay 0 to 9.

    Args:
        per_task: Examples of each task in the stream.
        held_out: Examples of each task that are not in the stream; each pair has at least 354 in all.

    Raises:
        BadInput: If there are not so many; when the stream is asked for.
    """
    make = partial(_split_digits, per_task=per_task, held_out=held_out)
    return _source("split-digits", make, replicated=True, libraries=("scikit-learn",))


def permuted_digits(*, tasks: int = 5, per_task: int = 1437, held_out: int = 360) -> Source:
    """Make tasks of the same digits, each with its own order of the pixels; the first has them as they are.

    Args:
        tasks: How many.
        per_task: Examples of each task in the stream.
        held_out: Digits that are not in the stream, the same for each task; there are 1,797 in all.

    Raises:
        BadInput: If there are not so many; when the stream is asked for.
    """
    if tasks < 1:
        raise BadInput(f"Expected at least 1 task, got {tasks}.")
    make = partial(_permuted_digits, tasks=tasks, per_task=per_task, held_out=held_out)
    return _source("permuted-digits", make, replicated=True, libraries=("scikit-learn",))


def bursts(n: int, size: int, *, varying: bool = False, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Divide a stream into bursts of consecutive examples that come at the same time.

    Args:
        n: Examples in the stream.
        size: Of a burst; the last one may be smaller.
        varying: Whether sizes are 1 to `2 * size - 1` instead, each once in every `2 * size - 1` bursts.
        seed: Decides their order.

    Returns:
        Indices, shape (steps, most), int32, filled up with `n - 1`; and which of them count, bool.

    Raises:
        BadInput: If there is nothing to divide, or no size.

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


def standardized(inputs: np.ndarray) -> np.ndarray:
    """Standardize each feature by the mean and standard deviation of the examples so far, this one included.

    Nothing of what comes later is in it; `preprocessing.StandardScaler` of river gives the same. A feature that has not
    varied yet is 0.

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


def check_positions(positions: Sequence[int], n: int) -> tuple[int, ...]:
    """Take positions of drifts if they are increasing and within the stream.

    Raises:
        BadInput: If they are not.
    """
    positions = tuple(map(int, positions))
    wrong = next((p for p in positions if not 0 < p < n), None)
    if wrong is not None:
        raise BadInput(f"Expected positions of drifts from 1 to {n - 1}, in a stream of {n} examples, got {wrong}.")
    if any(first >= second for first, second in pairwise(positions)):
        raise BadInput(f"Expected positions of drifts that increase, got {positions}.")
    return positions


def river_version() -> str:
    """The version of river.

    Raises:
        MissingExtra: If it is not installed.
    """
    require("online", "river")
    with importing("online"):
        return version("river")  # an `ImportError` where there is none


class _Recorded(NamedTuple):
    """A recorded stream: its files, and what it is in words."""

    files: Sequence[str]
    about: str


_BUNDLED = {
    "phishing": ("Phishing", "web pages, whether they are phishing"),
    "bananas": ("Bananas", "points of two clusters in the shape of bananas"),
    "image_segments": ("ImageSegments", "segments of images, which of 7 things they show"),
    "shuttle": ("Shuttle", "sensor readings of a space shuttle, whether they are out of the ordinary"),
    "trump_approval": ("TrumpApproval", "ratings by five polling agencies, from which a sixth follows"),
}

_RECORDED = {
    "weather": _Recorded(("weather.csv",), "Days at Offutt Air Force Base, 1949 to 1999, whether it rained"),
    "outdoor": _Recorded(
        ("outdoorStream.data", "outdoorStream.labels"),
        "Pictures of 40 objects out of doors, chromaticities (Losing et al., 2015)",
    ),
}


def _version(library: str) -> str:
    return river_version() if library == "river" else version(library)


def _source(
    name: str,
    make: "partial[Stream]",
    *,
    replicated: bool = False,
    libraries: tuple[str, ...] = (),
    files: Sequence[str] = (),
) -> Source:
    """A source that is known by what its function is given, what its files hold, and the versions of libraries."""

    def content() -> list[Any]:
        return [make.func.__name__, make.keywords, list(map(_sha256, files)), list(map(_version, libraries))]

    return Source(name, make, replicated, content, libraries)


def _check_synthetic(
    kind: str, n: int, drift: str, positions: Sequence[int] | None, width: int | None, options: Mapping[str, Any]
) -> None:
    """Refuse what makes no stream; see `synthetic`."""
    if kind not in KINDS:
        raise BadInput(f"Expected a kind of stream, got `{kind}`. {nearest(kind, KINDS)}")
    if drift not in DRIFTS:
        raise BadInput(f"Expected a kind of drift, got `{drift}`. {nearest(drift, DRIFTS)}")
    if n < 1:
        raise BadInput(f"Expected `n` to be at least 1 example, got {n}.")
    if drift == "incremental" and not KINDS[kind].moving:
        moving = " or ".join(f"`{name}`" for name in KINDS if KINDS[name].moving)
        raise BadInput(f"Expected a generator that moves by itself for incremental drift, {moving}, got `{kind}`.")
    if positions is not None and bool(positions) != (drift in ("abrupt", "gradual", "recurring")):
        raise BadInput(f"Expected `positions` for abrupt, gradual or recurring drift, got {positions} for `{drift}`.")
    if width is not None and (width < 1 or drift not in ("gradual", "recurring")):
        raise BadInput(f"Expected `width` from 1 on, for gradual or recurring drift, got {width} for `{drift}`.")
    alike = {name for name in changing_options(kind) & set(options) if not isinstance(options[name], tuple)}
    if alike and drift != "none":
        raise BadInput(f"Expected a tuple of different values of `{min(alike)}`, got the same for every concept.")


def _synthetic(
    seed: int,
    *,
    kind: str,
    n: int,
    drift: str,
    positions: Sequence[int],
    width: int | None,
    standardize: bool,
    options: Mapping[str, Any],
) -> Stream:
    examples = drifting(
        kind,
        seed,
        positions,
        recurring=drift == "recurring",
        moving=drift == "incremental",
        width=width,
        options=options,
    )
    inputs, labels = _materialized(examples, n)
    where = f" at {', '.join(f'{position:,}' for position in positions)}" if positions else ""
    given = "".join(f", {name}={value}" for name, value in options.items())
    drifts = "no drift" if drift == "none" else f"{drift} drift{where}"
    what = f"{KINDS[kind].generator} of river {river_version()}, {n:,} examples, {drifts}{given}"
    return Stream(
        name=kind,
        inputs=_features(inputs, standardize),
        labels=labels,
        classes=examples.n_classes or 2,  # river does not say where there are two
        drifts=tuple(positions),
        about=_about(what, standardize),
    )


def _materialized(dataset: Any, n: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Inputs, float64, and labels as they are, of the first `n` examples, features in the order of the first."""
    inputs, labels = [], []
    for x, y in islice(dataset, n):
        inputs.append(list(x.values()))
        labels.append(y)
    return np.array(inputs, np.float64), np.array(labels)


def _bundled(seed: int, *, name: str, standardize: bool) -> Stream:
    from river import datasets

    dataset, about = _BUNDLED[name]
    if not hasattr(datasets, dataset):
        raise BadInput(f"Expected a river that brings `{dataset}` along, got river {river_version()}. Update it.")
    rows = numbered(name, *_materialized(getattr(datasets, dataset)()))
    return _of_rows(rows, f"{dataset} of river {river_version()}: {about}", standardize=standardize)


def _recorded(seed: int, *, name: str, files: Sequence[str], standardize: bool) -> Stream:
    if name == "weather":
        rows = read_csv(files[0])
    else:
        inputs, labels = (np.loadtxt(file) for file in files)
        rows = numbered(name, inputs, labels.astype(int))
    return _of_rows(rows, _RECORDED[name].about, standardize=standardize)


def _own(
    seed: int,
    *,
    path: str,
    of_csv: Mapping[str, Any],
    classes: Sequence[str] | None,
    numbers: bool,
    drifts: Sequence[int],
    skip_nonfinite: bool,
    standardize: bool,
) -> Stream:
    rows = read_npz(path) if path.endswith(".npz") else read_csv(path, **of_csv)
    about = f"`{Path(path).name}`, sha256 {_sha256(path)}"
    return _of_rows(rows, about, classes, numbers, drifts, skip_nonfinite, standardize)


def _of_rows(
    rows: Rows,
    about: str,
    classes: Sequence[str] | None = None,
    numbers: bool = False,
    drifts: Sequence[int] = (),
    skip_nonfinite: bool = False,
    standardize: bool = True,
) -> Stream:
    """A stream of what is in a file, if all of it can be learned from."""
    stays = rows.whole(skip=skip_nonfinite)
    drifts = [int(stays[:drift].sum()) for drift in check_positions(drifts, len(stays))]
    labels, number = rows.classes(classes, numbers, stays)
    skipped = int(np.sum(~stays))
    left_out = f", {skipped:,} left out because a value was not finite" if skipped else ""
    return Stream(
        name=Path(rows.path).stem,
        inputs=_features(rows.inputs[stays], standardize),
        labels=labels,
        classes=number,
        drifts=tuple(drifts),
        about=_about(f"{about}, {len(labels):,} examples{left_out}", standardize),
        skipped=skipped,
    )


def _sha256(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadInput(f"Expected a stream in `{path}`, which cannot be read: {error.strerror}.") from error


def _features(inputs: np.ndarray, standardize: bool) -> np.ndarray:
    return standardized(inputs) if standardize else inputs


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
        about="5 tasks of two digits each, one after the other",
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
        about=f"{tasks} tasks of all digits, one after the other, each with its own order of the pixels",
    )


def _of_tasks(
    name: str, stream: tuple[np.ndarray, np.ndarray], held_out: tuple[np.ndarray, np.ndarray], *, tasks: int, about: str
) -> Stream:
    """A stream of digits in which as many examples come of each task."""
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
        about=f"scikit-learn's digits, {len(labels):,} examples, {about}. Pixels are divided by 16, not standardized.",
    )


def _check_enough(there: int, per_task: int, held_out: int) -> None:
    if min(per_task, held_out) < 1 or per_task + held_out > there:
        raise BadInput(
            f"Expected `per_task` and `held_out` from 1 on and up to {there} together, got {per_task} and {held_out}."
        )


def _check_finite(name: str, array: np.ndarray) -> None:
    wrong = np.argwhere(~np.isfinite(array))
    if len(wrong):
        raise BadInput(
            f"Expected finite numbers in the stream `{name}`, got {array[tuple(wrong[0])]} in example {wrong[0][0]}. "
            "Remove or replace them."
        )


def _about(what: str, standardize: bool) -> str:
    return f"{what}. {STANDARDIZED if standardize else 'Features are as they came'}."


_HELD_OUT = ("held_out_inputs", "held_out_labels", "held_out_task")


def _to_arrays(stream: Stream) -> dict[str, np.ndarray]:
    """Everything in a stream, under the name of its field."""
    values = {field.name: getattr(stream, field.name) for field in fields(stream)}
    held_out = dict(zip(_HELD_OUT, values.pop("held_out") or (), strict=False))
    values |= {name: np.array(values[name], np.int64) for name in ("drifts", "tasks")}
    return {name: np.asarray(value) for name, value in {**values, **held_out}.items()}


def _from_arrays(arrays: Mapping[str, np.ndarray]) -> Stream:
    values: dict[str, Any] = {name: array for name, array in arrays.items() if name not in _HELD_OUT}
    values |= {name: values[name].item() for name in ("name", "classes", "about", "skipped")}
    values |= {name: tuple(values[name].tolist()) for name in ("drifts", "tasks")}
    held_out: Any = tuple(arrays[name] for name in _HELD_OUT if name in arrays)
    return Stream(**values, held_out=held_out or None)
