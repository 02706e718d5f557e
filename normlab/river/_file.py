"""A model as one file: a line that says what it is, a line of JSON about the model, the bytes of its arrays."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import jax.numpy as jnp
import numpy as np

from normlab.river._examples import LARGEST, REFUSE, SKIP

FORMAT, VERSION = "normlab online model", 1


def write(path: str | os.PathLike[str], about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write a file so that nobody sees half of it; where that fails, what was there stays.

    Args:
        path: Of the file.
        about: Plain values and names.
        arrays: By name.

    Raises:
        TypeError: If there is no JSON for something in `about`.
        OSError: As the system says.
    """
    listed = [[name, str(array.dtype), list(array.shape)] for name, array in arrays.items()]
    text = json.dumps({**about, "arrays": listed}).encode()
    content = b"".join([text, b"\n", *(np.ascontiguousarray(array).tobytes() for array in arrays.values())])
    head = {"format": FORMAT, "version": VERSION, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    _replace(Path(path), json.dumps(head).encode() + b"\n" + content)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read a file.

    Returns:
        What `write` was given, every part of it of the kind that a model has.

    Raises:
        ValueError: If the file is truncated, damaged, of a newer version or not one of ours.
        OSError: As the system says.
    """
    first, _, content = Path(path).read_bytes().partition(b"\n")
    head = _head(first)
    if head is None:
        raise ValueError(f"Expected `{path}` to be a model that was saved, it is something else.")
    if head["version"] > VERSION:
        raise ValueError(
            f"Expected a file of version {VERSION} or older, `{path}` has version {head['version']}. Update normlab."
        )
    if len(content) != head["bytes"]:
        raise ValueError(
            f"Expected {head['bytes']} bytes behind the first line of `{path}`, got {len(content)}: it was not written "
            "or copied to its end. Use another copy."
        )
    if hashlib.sha256(content).hexdigest() != head["sha256"]:
        raise ValueError(f"Expected `{path}` to be as it was written, its checksum differs. Use another copy.")
    text, _, data = content.partition(b"\n")
    try:
        about = _checked(_json(text))
        return about, _arrays(about.pop("arrays"), data)
    except _WrongContent as error:
        raise ValueError(f"Expected `{path}` to hold a model as `save` writes it, {error}. Use another copy.") from None


class _WrongContent(Exception):
    """Says what is wrong with a file whose checksum is right."""


class _Field(NamedTuple):
    """A requirement on a part of a file, in words and as a check."""

    words: str
    holds: Callable[[Any], bool]


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_listed(value: Any) -> bool:
    """Tell whether something declares an array."""
    return (
        isinstance(value, list)
        and len(value) == 3
        and isinstance(value[0], str)
        and isinstance(value[1], str)
        and isinstance(value[2], list)
        and all(map(_is_count, value[2]))
    )


def _are_names(value: Any) -> bool:
    """Tell whether something is a list of different names of features or classes."""
    try:
        names = [*map(from_json, value)] if isinstance(value, list) else None
        return names is not None and len(set(names)) == len(names) and value == [*map(to_json, names)]
    except (TypeError, RecursionError):  # what has no hash, NaN, lists in lists in lists
        return False


_TEXT = _Field("text", lambda value: isinstance(value, str))
_PERHAPS_TEXT = _Field("text or nothing", lambda value: value is None or isinstance(value, str))
_NAMES = _Field("a list of different names", _are_names)
_FIELDS = {
    "kind": _Field("Classifier or Regressor", lambda value: value in ("Classifier", "Regressor")),
    "normlab": _TEXT,
    "norm": _TEXT,
    "model": _PERHAPS_TEXT,
    "optimizer": _PERHAPS_TEXT,
    "loss": _PERHAPS_TEXT,
    "learning_rate": _Field("a positive number", lambda value: type(value) in (int, float) and 0 < value <= LARGEST),
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


def _checked(about: Any) -> dict[str, Any]:
    """Check each part of what a file says of its model, and that they fit each other.

    Raises:
        _WrongContent: If they do not.
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
    # As many as there are and at most twice as many, which is how room is made: nobody can ask for more.
    most = max(1, 2 * len(about["features"])), max(2, 2 * len(targets)) if classify else 1
    least = len(about["features"]) or 1, len(targets) or 1
    if not all(map(lambda low, there, high: low <= there <= high, least, about["room"], most)):
        raise _WrongContent("its `room` does not fit its `features` and `targets`")
    if targets and not classify:
        raise _WrongContent("its `targets` are classes, but it is a Regressor")
    if classify and about["classes"] not in (None, targets):
        raise _WrongContent("its `targets` are not its `classes`")
    return about


def _arrays(listed: Sequence[tuple[str, str, Sequence[int]]], data: bytes) -> dict[str, np.ndarray]:
    """The arrays of a file, if its bytes are as many as they declare together.

    Raises:
        _WrongContent: If they are not, or one is no array of numbers.
    """
    declared = {name: (_dtype(name, dtype), tuple(shape)) for name, dtype, shape in listed}
    if len(declared) < len(listed):
        raise _WrongContent("its `arrays` have a name twice")
    size = sum(math.prod(shape) * dtype.itemsize for dtype, shape in declared.values())
    if size != len(data) or any(len(shape) > 32 for _, shape in declared.values()):
        raise _WrongContent(f"its `arrays` do not have the shapes that its {len(data):,} bytes are for")
    arrays, at = {}, 0
    for name, (dtype, shape) in declared.items():
        array = np.frombuffer(data, dtype, math.prod(shape), at).reshape(shape)
        arrays[name], at = array.copy(), at + array.nbytes
    return arrays


def _dtype(array: str, name: str) -> np.dtype:
    """A type of numbers or bools by its name."""
    with suppress(TypeError, ValueError, SyntaxError):  # NumPy parses names
        dtype = jnp.dtype(name)
        if str(dtype) == name and (dtype == np.bool_ or jnp.issubdtype(dtype, np.number)):
            return dtype
    raise _WrongContent(f"its array {array[:80]!r} is not of numbers")


def _json(text: bytes) -> Any:
    """Parse a line; `None` where it is no JSON."""
    with suppress(ValueError, RecursionError):  # also of text that is no UTF-8, and lists in lists in lists
        return json.loads(text)
    return None


def _head(line: bytes) -> dict[str, Any] | None:
    """The first line of a file of ours."""
    head = _json(line)
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        return None
    whole = _is_count(head.get("version")) and head["version"] > 0 and _is_count(head.get("bytes"))
    return head if whole and isinstance(head.get("sha256"), str) else None


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


def to_json(name: Hashable) -> Any:
    """Return the name of a feature or a class as JSON has it.

    Raises:
        TypeError: If that would not give it back.
    """
    if isinstance(name, np.generic):
        name = name.item()
    if isinstance(name, tuple):
        return [to_json(part) for part in name]
    if name is None or (isinstance(name, str | bool | int | float) and name == name):  # which NaN is not
        return name
    raise TypeError(
        f"Expected names of features and classes to be text, numbers, bools, `None` or tuples of these, got {name!r}, "
        "which cannot be saved. Rename it."
    )


def from_json(name: Any) -> Hashable:
    """Return what `to_json` was given."""
    return tuple(map(from_json, name)) if isinstance(name, list) else name
