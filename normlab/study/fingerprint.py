"""The content of a comparison that only lives in this process: what its functions do, not where they lie in memory.

A comparison from a file is identified by the text of the file. In a notebook there is none, and a comparison that was
changed must not find the runs from before the change.
"""

import hashlib
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

_LIBRARIES = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
_INSTALLED = (*_LIBRARIES, str(Path(__file__).resolve().parents[1]), "<frozen")
_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def fingerprint(value: Any) -> str:
    """The sha256 of a value and all that it refers to: functions, classes, arrays, and what they use in turn.

    What comes from installed packages and from this one counts by name: the identity of a run has their versions.
    """
    digest = hashlib.sha256()
    for part in _parts(value, {}):
        digest.update(f"{len(part)} ".encode() + part)
    return digest.hexdigest()


def _parts(value: Any, seen: dict[int, tuple[int, Any]]) -> Iterator[bytes]:
    """The content of a value, depth first; what was seen before counts by when that was."""
    if isinstance(value, _PLAIN):
        yield repr(value).encode()
        return
    first, _ = seen.setdefault(id(value), (len(seen), value))  # the value is kept, so that no other gets its id
    yield f"{type(value).__qualname__} {first}".encode()
    if first == len(seen) - 1:
        for item in _content(value):
            yield from _parts(item, seen)


def _content(value: Any) -> Iterator[Any]:
    """What a value is made of, without what changes from process to process."""
    if isinstance(value, Mapping):
        yield from (part for key in sorted(value, key=str) for part in (key, value[key]))
    elif isinstance(value, tuple | list):
        yield from value
    elif isinstance(value, set | frozenset):
        yield from sorted(value, key=str)
    elif isinstance(value, types.FunctionType):
        yield from _of_function(value)
    elif isinstance(value, types.CodeType):
        yield from (value.co_code, value.co_names, value.co_consts)
    elif isinstance(value, property):
        yield from (value.fget, value.fset, value.fdel)
    elif isinstance(value, type):
        yield from _of_class(value)
    elif isinstance(value, types.ModuleType | types.BuiltinFunctionType):
        yield value.__name__
    else:
        yield from _of_object(value)


def _of_function(function: types.FunctionType) -> Iterator[Any]:
    """Name and captured variables; for a function that is not installed also what it does and uses."""
    yield function.__qualname__
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # not assigned yet
            yield cell.cell_contents
    code = function.__code__
    if not code.co_filename.startswith(_INSTALLED):
        used = {name: function.__globals__[name] for name in code.co_names if name in function.__globals__}
        yield from (code, function.__defaults__, function.__kwdefaults__, used)


def _of_class(kind: type) -> Iterator[Any]:
    yield f"{kind.__module__}.{kind.__qualname__}"
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    if kind.__module__ == "__main__" or (file and not file.startswith(_INSTALLED)):
        yield kind.__bases__
        yield {name: item for name, item in vars(kind).items() if callable(item) or not name.startswith("_")}


def _of_object(value: Any) -> Iterator[Any]:
    """The state of an object as it would be copied; only its class where it cannot be."""
    yield type(value)
    try:
        state = value.__reduce_ex__(2)
    except (TypeError, AttributeError, NotImplementedError):
        return
    yield from (list(part) if isinstance(part, Iterator) else part for part in state)
