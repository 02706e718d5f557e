"""A model as one file: a line that says what it is, a line of JSON about the model, the bytes of its arrays."""

import hashlib
import json
import os
from collections.abc import Hashable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import jax.numpy as jnp
import numpy as np

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
        What `write` was given.

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
    about = json.loads(text)
    arrays, at = {}, 0
    for name, dtype, shape in about.pop("arrays"):
        array = np.frombuffer(data, jnp.dtype(dtype), int(np.prod(shape)), at).reshape(shape)
        arrays[name], at = array.copy(), at + array.nbytes
    return about, arrays


def _head(line: bytes) -> dict[str, Any] | None:
    """The first line of a file of ours."""
    with suppress(ValueError):  # also of text that is no UTF-8
        head = json.loads(line)
        if isinstance(head, dict) and head.get("format") == FORMAT and head.keys() >= {"version", "bytes", "sha256"}:
            return head
    return None


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
    if name is None or isinstance(name, str | bool | int | float):
        return name
    raise TypeError(
        f"Expected names of features and classes to be text, numbers, bools, `None` or tuples of these, got {name!r}, "
        "which cannot be saved. Rename it."
    )


def from_json(name: Any) -> Hashable:
    """Return what `to_json` was given."""
    return tuple(map(from_json, name)) if isinstance(name, list) else name
