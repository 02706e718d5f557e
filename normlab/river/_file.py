"""Save a model as one file: a line that identifies the format, a line of JSON about the model, and its arrays."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, NotRequired, TypeAlias, TypedDict, TypeGuard, cast
from uuid import uuid4

import jax.numpy as jnp
import numpy as np

from normlab.river._examples import LARGEST, REFUSE, SKIP

FORMAT, VERSION = "normlab online model", 1

Name: TypeAlias = "bool | int | float | str | list[Name] | None"
"""Name of a feature or a class in JSON, where a tuple is a list."""


class About(TypedDict):
    """Everything that a file contains about a model besides its arrays.

    Attributes:
        kind: `Classifier` or `Regressor`.
        normlab: Version of this package.
        norm: Norm as text.
        model: Name of the model's function or class, for messages; files contain no code.
        optimizer: Name of the optimizer's function.
        loss: Name of the loss function.
        learning_rate: Learning rate.
        nonfinite: Treatment of NaN and infinity.
        seed: Seed of the initial weights.
        skipped: Number of examples that were skipped.
        features: Names of the features, in the order of the inputs.
        targets: Names of the classes, in the order of the outputs.
        room: Numbers of inputs and outputs.
        classes: Classes that were declared; classifiers only.
        arrays: Name, dtype and shape of each array.
    """

    kind: str
    normlab: str
    norm: str
    model: str | None
    optimizer: str | None
    loss: str | None
    learning_rate: float
    nonfinite: str
    seed: int
    skipped: int
    features: list[Name]
    targets: list[Name]
    room: list[int]
    classes: NotRequired[list[Name] | None]
    arrays: NotRequired[list[tuple[str, str, list[int]]]]


def write(path: str | os.PathLike[str], about: About, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a file atomically; if writing fails, a file that was there before stays.

    Args:
        path: Path of the file.
        about: Plain values and names.
        arrays: Arrays by name.

    Raises:
        TypeError: If there is no JSON for a value of `about`.
        OSError: If the system reports an error.
    """
    listed = [[name, str(array.dtype), list(array.shape)] for name, array in arrays.items()]
    text = json.dumps({**about, "arrays": listed}).encode()
    content = b"".join([text, b"\n", *(np.ascontiguousarray(array).tobytes() for array in arrays.values())])
    head = {"format": FORMAT, "version": VERSION, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    _replace(Path(path), json.dumps(head).encode() + b"\n" + content)


def read(path: str | os.PathLike[str]) -> tuple[About, dict[str, np.ndarray]]:
    """Read a file.

    Returns:
        The arguments `about` and `arrays` of `write`, checked field by field.

    Raises:
        ValueError: If the file is truncated, damaged, of a newer version or of another format.
        OSError: If the system reports an error.
    """
    first, _, content = Path(path).read_bytes().partition(b"\n")
    head = _head(first)
    if head is None:
        raise ValueError(f"Expected `{path}` to be a saved model, got another file. Name a file that `save` wrote.")
    if head["version"] > VERSION:
        raise ValueError(
            f"Expected `{path}` to have version {VERSION} or older, got version {head['version']}. Update normlab."
        )
    if len(content) != head["bytes"]:
        raise ValueError(
            f"Expected {head['bytes']} bytes after the first line of `{path}`, got {len(content)}: it was not written "
            "or copied completely. Use another copy."
        )
    if hashlib.sha256(content).hexdigest() != head["sha256"]:
        raise ValueError(f"Expected `{path}` to be unchanged, got another checksum. Use another copy.")
    text, _, data = content.partition(b"\n")
    try:
        about = _checked(_json(text))
        return about, _arrays(about.pop("arrays"), data)
    except _WrongContent as error:
        raise ValueError(
            f"Expected `{path}` to contain a model as `save` writes it, but {error}. Use another copy."
        ) from None


class _WrongContent(Exception):
    """Error in the content of a file whose checksum is right."""


class _Field(NamedTuple):
    """A requirement on a field of a file, in words and as a check."""

    words: str
    holds: Callable[[object], bool]


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and value >= 0


def _is_number(value: object) -> TypeGuard[float]:
    return type(value) in (int, float)


def _is_listed(value: object) -> bool:
    """Report whether a value declares an array."""
    return (
        isinstance(value, list)
        and len(value) == 3
        and isinstance(value[0], str)
        and isinstance(value[1], str)
        and isinstance(value[2], list)
        and all(map(_is_count, value[2]))
    )


def _are_names(value: object) -> bool:
    """Report whether a value is a list of distinct names of features or classes."""
    try:
        names = [*map(from_json, value)] if isinstance(value, list) else None
        return names is not None and len(set(names)) == len(names) and value == [*map(to_json, names)]
    except (TypeError, RecursionError):  # dicts, NaN, deeply nested lists
        return False


_TEXT = _Field("text", lambda value: isinstance(value, str))
_PERHAPS_TEXT = _Field("text or nothing", lambda value: value is None or isinstance(value, str))
_NAMES = _Field("a list of different names", _are_names)
_FIELDS: dict[str, _Field] = {
    "kind": _Field("Classifier or Regressor", lambda value: value in ("Classifier", "Regressor")),
    "normlab": _TEXT,
    "norm": _TEXT,
    "model": _PERHAPS_TEXT,
    "optimizer": _PERHAPS_TEXT,
    "loss": _PERHAPS_TEXT,
    "learning_rate": _Field("a positive number", lambda value: _is_number(value) and 0 < value <= LARGEST),
    "nonfinite": _Field(f"{REFUSE} or {SKIP}", lambda value: value in (REFUSE, SKIP)),
    "seed": _Field("a whole number of 32 bits", lambda value: _is_count(value) and value < 2**32),
    "skipped": _Field("a count", _is_count),
    "features": _NAMES,
    "targets": _NAMES,
    "room": _Field(
        "two counts", lambda value: isinstance(value, list) and len(value) == 2 and all(map(_is_count, value))
    ),
    "arrays": _Field(
        "a list of names, types and shapes", lambda value: isinstance(value, list) and all(map(_is_listed, value))
    ),
}
_OF_CLASSIFIER = {
    "classes": _Field("nothing or a list of different names", lambda value: value is None or _are_names(value))
}


def _checked(about: object) -> About:
    """Check each field of a file's second line, and that the fields fit each other.

    Raises:
        _WrongContent: If a field is wrong.
    """
    if not isinstance(about, dict):
        raise _WrongContent("its second line is no JSON object")
    fields = _FIELDS | (_OF_CLASSIFIER if about.get("kind") == "Classifier" else {})
    for name, field in fields.items():
        if name not in about:
            raise _WrongContent(f"its `{name}` is missing")
        if not field.holds(about[name]):
            raise _WrongContent(f"its `{name}` is not {field.words}")
    for name in sorted(about.keys() - fields.keys()):
        raise _WrongContent(f"its {name[:80]!r} is unknown")
    classify, targets = about["kind"] == "Classifier", about["targets"]
    # Room is at most twice what is needed, since it grows by doubling: no file can ask for more memory.
    most = max(1, 2 * len(about["features"])), max(2, 2 * len(targets)) if classify else 1
    least = len(about["features"]) or 1, len(targets) or 1
    if not all(map(lambda low, there, high: low <= there <= high, least, about["room"], most)):
        raise _WrongContent("its `room` does not fit its `features` and `targets`")
    if targets and not classify:
        raise _WrongContent("its `targets` are classes, but it is a Regressor")
    if classify and about["classes"] not in (None, targets):
        raise _WrongContent("its `targets` are not its `classes`")
    return cast(About, about)


def _arrays(listed: Sequence[tuple[str, str, Sequence[int]]], data: bytes) -> dict[str, np.ndarray]:
    """Return the arrays of a file, if their declared sizes add up to its number of bytes.

    Raises:
        _WrongContent: If they do not, or an array is not of numbers.
    """
    declared = {name: (_dtype(name, dtype), tuple(shape)) for name, dtype, shape in listed}
    if len(declared) < len(listed):
        raise _WrongContent("its `arrays` contain a name twice")
    size = sum(math.prod(shape) * dtype.itemsize for dtype, shape in declared.values())
    if size != len(data) or any(len(shape) > 32 for _, shape in declared.values()):
        raise _WrongContent(f"the shapes of its `arrays` do not match its {len(data):,} bytes of data")
    arrays, at = {}, 0
    for name, (dtype, shape) in declared.items():
        array = np.frombuffer(data, dtype, math.prod(shape), at).reshape(shape)
        arrays[name], at = array.copy(), at + array.nbytes
    return arrays


def _dtype(array: str, name: str) -> np.dtype:
    """Return a dtype of numbers or bools by its name."""
    with suppress(TypeError, ValueError, SyntaxError):  # NumPy parses names
        dtype = jnp.dtype(name)
        if str(dtype) == name and (dtype == np.bool_ or jnp.issubdtype(dtype, np.number)):
            return dtype
    raise _WrongContent(f"its array {array[:80]!r} is not of numbers")


def _json(text: bytes) -> object:
    """Parse a line; return `None` if it is no JSON."""
    with suppress(ValueError, RecursionError):  # also for text that is no UTF-8, and deeply nested lists
        return json.loads(text)
    return None


class _Head(TypedDict):
    """First line of a file."""

    format: str
    version: int
    bytes: int
    sha256: str


def _head(line: bytes) -> _Head | None:
    """Return the first line of a file, or `None` if the file has another format."""
    head = _json(line)
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        return None
    whole = _is_count(head.get("version")) and head["version"] > 0 and _is_count(head.get("bytes"))
    return cast(_Head, head) if whole and isinstance(head.get("sha256"), str) else None


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def to_json(name: Hashable) -> Name:
    """Convert the name of a feature or a class to JSON.

    Raises:
        TypeError: If `from_json` would not restore the name.
    """
    if isinstance(name, np.generic):
        name = name.item()
    if isinstance(name, tuple):
        return [to_json(part) for part in name]
    if name is None or (isinstance(name, str | bool | int | float) and name == name):  # NaN is not equal to itself
        return name
    raise TypeError(
        f"Expected names of features and classes to be text, numbers, bools, `None` or tuples of these, got {name!r}, "
        "which cannot be saved. Rename it."
    )


def from_json(name: Name) -> Hashable:
    """Restore a name from JSON; the inverse of `to_json`."""
    return tuple(map(from_json, name)) if isinstance(name, list) else name
