"""Checks of JSON that others may have written: types, lengths and ranges, declared as small values.

A check takes a value from `json` and returns it with tuples for lists, or raises `Malformed`, whose message names the
place: `settings.seeds: expected a whole number from 1 to 1000, got "3"`.
"""

import json
import os
import re
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeGuard, TypeVar

Value = TypeVar("Value")
Check = Callable[[object], Value]

LARGEST = 1e75
"""The largest number in files: statistics need its fourth power to be finite."""

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
"""Characters that would control a terminal, or that no file can contain."""


class Malformed(ValueError):
    """Invalid content of a file. The message is a clause: the place, the expected value, and the value found."""

    def __init__(self, problem: str, *place: str | int) -> None:
        """Store the problem and its place, outermost part first."""
        self.problem, self.place = problem, place
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{_short(part)}" for part in place).lstrip(".")
        super().__init__(f"{where}: {problem}" if where else problem)

    def within(self, part: str | int) -> "Malformed":
        """Prefix the place with an outer part."""
        return Malformed(self.problem, part, *self.place)


def read_json(path: Path, most: int) -> Any:
    """Parse a file of at most so many bytes.

    Raises:
        Malformed: If it is no regular file, too large, no JSON, nested too deeply, or contains NaN or an infinity.
        OSError: If the file cannot be read.
    """
    return parse_json(read_bytes(path, most))


def read_bytes(path: Path | str, most: int) -> bytes:
    """Read a file of at most so many bytes.

    Raises:
        Malformed: If it is no regular file, or too large.
        OSError: If the file cannot be read.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # before it is opened, which would wait for a pipe
        raise Malformed("expected a file")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise Malformed(f"expected at most {most} bytes, got {size}")
        return file.read(size)


def parse_json(content: bytes) -> Any:
    """Parse the content of a file.

    Raises:
        Malformed: If it is no JSON, nested too deeply, or contains NaN or an infinity.
    """
    try:
        return _DECODER.decode(content.decode("utf-8"))
    except RecursionError:
        raise Malformed("expected JSON, got brackets that are nested too deeply") from None
    except ValueError as error:
        raise (
            error if isinstance(error, Malformed) else Malformed(f"expected JSON, got something else ({error})")
        ) from error


def is_list(value: object) -> TypeGuard[Sequence[object]]:
    """Report whether a value is a list or a tuple."""
    return isinstance(value, list | tuple)


def printable(text: str) -> str:
    """Replace characters that would control a terminal."""
    return _UNPRINTABLE.sub("?", text)


def text(most: int = 200, pattern: str = "") -> Check[str]:
    """Check for printable text up to a length, which a pattern matches as a whole."""

    def check(value: object) -> str:
        if not isinstance(value, str):
            raise _wrong("text", value)
        if len(value) > most:
            raise Malformed(f"expected at most {most} characters, got {len(value)}")
        if _UNPRINTABLE.search(value) or (pattern and not re.fullmatch(pattern, value)):
            raise _wrong("printable text" if not pattern else f"text like `{pattern}`", value)
        return value

    return check


def whole(low: int, high: int) -> Check[int]:
    """Check for a whole number in a range, ends included."""

    def check(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise _wrong(f"a whole number from {low} to {high}", value)
        return value

    return check


def number(low: float = -LARGEST, high: float = LARGEST, *, positive: bool = False) -> Check[float]:
    """Check for a finite number in a range, ends included, or above zero."""

    def check(value: object) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high:
            if value > 0 or not positive:
                return value
        raise _wrong("a positive number" if positive else f"a number from {low:g} to {high:g}", value)

    return check


def flag(value: object) -> bool:
    """Check for true or false."""
    if not isinstance(value, bool):
        raise _wrong("true or false", value)
    return value


def one_of(*known: str) -> Check[str]:
    """Check for one of some texts."""

    def check(value: object) -> str:
        if not isinstance(value, str) or value not in known:
            raise _wrong(f"one of {', '.join(known)}", value)
        return value

    return check


def optional(check: Check[Value]) -> Check[Value | None]:
    """Accept `None`, or a value that passes a check."""
    return lambda value: None if value is None else check(value)


def any_of(*checks: Check[Value]) -> Check[Value]:
    """Accept a value that passes one of some checks."""

    def check(value: object) -> Value:
        for each in checks[:-1]:
            try:
                return each(value)
            except Malformed:
                continue
        return checks[-1](value)

    return check


def listed(check: Check[Value], most: int, *, least: int = 0, once: bool = False) -> Check[tuple[Value, ...]]:
    """Check for a list with a number of items in a range, optionally all different; convert it to a tuple."""

    def check_all(value: object) -> tuple[Value, ...]:
        if not is_list(value):
            raise _wrong("a list", value)
        if not least <= len(value) <= most:
            raise Malformed(f"expected {least} to {most} items, got {len(value)}")
        found = tuple(_at(index, check, item) for index, item in enumerate(value))
        if once and len(set(found)) < len(found):
            raise Malformed("expected every item once, got one twice")
        return found

    return check_all


def table(check: Check[Value], most: int = 1000, keys: Check[str] | None = None) -> Check[dict[str, Value]]:
    """Check for an object with up to so many names, whose values all pass one check."""
    of_keys = keys or text()

    def check_all(value: object) -> dict[str, Value]:
        if not _is_object(value):
            raise _wrong("an object", value)
        if len(value) > most:
            raise Malformed(f"expected at most {most} names, got {len(value)}")
        found: dict[str, Value] = {}
        for name, item in value.items():
            key = of_keys(name)
            try:
                found[key] = check(item)
            except Malformed as error:
                raise error.within(name) from None
        return found

    return check_all


def fields(
    required: Mapping[str, Check[object]],
    others: Mapping[str, Check[object]] | None = None,
    any_other: Check[object] | None = None,
) -> Check[dict[str, Any]]:
    """Check for an object with all required names, optional names, and further names if they have a check."""
    known, other = {**required, **(others or {})}, any_other or _unknown

    def check(value: object) -> dict[str, object]:
        if not _is_object(value):
            raise _wrong("an object", value)
        for name in required:
            if name not in value:
                raise Malformed(f"expected `{name}`, got nothing")
        found: dict[str, object] = {}
        for name, item in value.items():
            try:
                found[name] = known.get(name, other)(item)
            except Malformed as error:
                raise error.within(name) from None
        return found

    return check


def plain(depth: int, most: int = 1000, *, objects: bool = True) -> Check[object]:
    """Check for scalars, and lists (and objects, unless excluded) of scalars down to some depth."""
    scalar = any_of(flag, number(), optional(text(10_000)))
    if not depth:
        return scalar
    inner = plain(depth - 1, most, objects=objects)

    def check(value: object) -> object:
        if objects and _is_object(value):
            return table(inner, most)(value)
        return listed(inner, most)(value) if is_list(value) else scalar(value)

    return check


def _unknown(_: object) -> NoReturn:
    raise Malformed("unknown name")


def _is_object(value: object) -> TypeGuard[Mapping[str, object]]:
    return isinstance(value, Mapping)


def _at(index: int, check: Check[Value], value: object) -> Value:
    try:
        return check(value)
    except Malformed as error:
        raise error.within(index) from None


def _wrong(expected: str, value: object) -> Malformed:
    if isinstance(value, Mapping | list | tuple):
        return Malformed(f"expected {expected}, got {'an object' if isinstance(value, Mapping) else 'a list'}")
    return Malformed(f"expected {expected}, got {_short(json.dumps(value, default=repr))}")


def _short(text: str, most: int = 60) -> str:
    cleaned = printable(text)
    return cleaned if len(cleaned) <= most else f"{cleaned[: most - 3]}..."


def _no_number(name: str) -> NoReturn:
    raise Malformed(f"expected numbers that are finite, got {name}")


_DECODER = json.JSONDecoder(parse_constant=_no_number)
