"""Options of a comparison, and the kinds of their values."""

import argparse
import ast
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, SupportsFloat, SupportsIndex

from normlab.errors import BadInput
from normlab.expect import NAME, Kind, Several, an, check_fields, finite, positive, whole


class Given(NamedTuple):
    """A value, and its origin for messages."""

    value: object
    where: str


@dataclass(frozen=True, kw_only=True)
class Option:
    """An option of the command line, of files and of Python calls.

    Attributes:
        name: The key in files and in Python; the flag is `--` and the name with dashes.
        kind: The kind of its values.
        help: Help text of the command line.
        many: Whether it takes several values, each once.
        metavar: Placeholder of a value in the help; none for a switch.
        folder: Maps its value to a part of the name of the default folder; no part unless given.
        group: Heading above it in the help; unless given, the heading of the comparison's own options.
    """

    name: str
    kind: Kind[Any]
    help: str
    many: bool = False
    metavar: str | None = None
    folder: Callable[[Any], str] | None = None
    group: str = ""

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            BadInput: If its name or kind is invalid.
        """
        check_fields(self, name=NAME, kind=an(Kind, "Write `study.TEXT`, or `study.Kind(words, convert)`."))

    @property
    def flag(self) -> str:
        """The flag on the command line."""
        return f"--{self.name.replace('_', '-')}"

    def add_to(self, parser: "argparse._ActionsContainer") -> argparse.Action:  # pyright: ignore[reportPrivateUsage]
        """Add the option to a parser, or to a group of one."""
        if self.metavar is None:
            return parser.add_argument(self.flag, action=argparse.BooleanOptionalAction, help=self.help)
        return parser.add_argument(self.flag, nargs="+" if self.many else None, metavar=self.metavar, help=self.help)

    def checked(self, given: Given) -> Any:
        """Check and convert a value.

        Raises:
            BadInput: If the value is of another kind, or a list contains a value twice.
        """
        kind = Several(self.kind) if self.many else self.kind
        return kind.of(given.where, given.value)


def seconds_of(duration: object) -> float:
    """Convert a duration such as `90s`, `10min`, `1h30m` or `1.5 h` to seconds.

    >>> seconds_of("1h30m"), seconds_of("1 h 30 min"), seconds_of("1.5h")
    (5400.0, 5400.0, 5400.0)

    Raises:
        ValueError: If it is no duration, has a number without a unit, or is zero.
    """
    match = _DURATION.fullmatch(text_of(duration).strip().lower())
    parts = match.groups() if match else ()
    seconds = sum(unit * float(part) for unit, part in zip((86400, 3600, 60, 1), parts, strict=False) if part)
    if not seconds > 0:
        raise ValueError(duration)
    return seconds


_UNITS = ("d|days?", "h|hrs?|hours?", "m|mins?|minutes?", "s|secs?|seconds?")
_DURATION = re.compile("".join(rf"(?:(\d+\.?\d*|\.\d+)\s*(?:{unit})\s*)?" for unit in _UNITS))


def _whole(value: str | SupportsIndex) -> int:
    return whole(int(value) if isinstance(value, str) else value)


def _number(value: str | SupportsFloat) -> float:
    return positive(float(value) if isinstance(value, str) else value)


def rate_of(value: str | SupportsFloat) -> float | None:
    """Convert a learning rate; `none` is `None`."""
    return None if isinstance(value, str) and value == "none" else _number(value)


def timeout_of(value: str | SupportsFloat) -> float:
    """Convert seconds of Python or a file, or a duration such as `90s`."""
    return seconds_of(value) if isinstance(value, str) else _number(value)


def text_of(value: object) -> str:
    """Return a text unchanged, and reject anything else."""
    if not isinstance(value, str):
        raise ValueError(value)
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(value)
    return value


def _path(value: str | os.PathLike[str]) -> Path:
    path = os.fspath(value)
    if not text_of(path) or "\0" in path:
        raise ValueError(value)
    return Path(path)


def _file(value: str | os.PathLike[str]) -> str:
    path = _path(value).expanduser().resolve()  # the same for workers elsewhere
    if not path.is_file():
        raise BadInput(
            f"Expected the path of a file, got `{value}`, which {'is none' if path.exists() else 'does not exist'}."
        )
    return str(path)


def key_value(value: object) -> tuple[str, object]:
    """Split `key=value`; the value is a Python literal or plain text, like in the string of a norm."""
    key, equals, text = text_of(value).partition("=")
    if not equals or not key.isidentifier():
        raise ValueError(value)
    switches = {"true": True, "false": False}
    if text.lower() in switches:
        return key, switches[text.lower()]
    with suppress(ValueError, SyntaxError):
        return key, ast.literal_eval(text)
    return key, text


WHOLE = Kind("a positive whole number", _whole, "Give one such as 5.")
NUMBER = Kind("a positive number", _number, "Give one such as 0.1.")
ANY_NUMBER = Kind("a number", lambda value: finite(float(value)), "Give one such as 0 or 0.1.")
TEXT = Kind("text", text_of, "Write it in quotes.")
YES_NO = Kind("true or false", _flag, "Write one of them.")
FILE = Kind("the path of a file", _file, "Write it in quotes.")
FOLDER = Kind("the path of a folder", _path, "Write one such as `results`.")
"""For options of a problem."""


def stable(source: str) -> str:
    """Convert a source to a form that is valid in any working directory."""
    return str(Path(source).resolve()) if source.endswith(".py") or os.sep in source else source
