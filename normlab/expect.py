"""Check values and refuse them in one line: what was expected, what was passed, what to do.

The module imports nothing heavy.
"""

import inspect
import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from numbers import Real
from typing import Any, Generic, NoReturn, SupportsFloat, SupportsIndex, TypeVar

from normlab.errors import BadInput

Value = TypeVar("Value")

_SHOWN = 80
"""Most characters of a value in a message."""

_NAME = re.compile(r"\w([\w.+ -]*[\w.+-])?")


@dataclass(frozen=True)
class Kind(Generic[Value]):
    """A kind of value.

    Attributes:
        words: Phrase after "Expected ... to be".
        convert: Converts a value; raises `ValueError` or `TypeError` for a value of another kind.
        remedy: A sentence that says what to write instead.
    """

    words: str
    convert: Callable[[Any], Value]
    remedy: str = ""

    def of(self, where: str, value: object) -> Value:
        """Convert a value.

        Args:
            where: Place of the value, for the message.
            value: The value.

        Raises:
            BadInput: If the value is of another kind.
        """
        try:
            return self.convert(value)
        except BadInput:
            raise
        except (ValueError, TypeError, OverflowError):
            raise refusal(f"{where} to be {self.words}", value, self.remedy) from None


def refusal(expected: str, value: object, remedy: str = "") -> BadInput:
    """Make the error for a value.

    Args:
        expected: Phrase after "Expected".
        value: The value that was passed.
        remedy: A sentence that says what to do.
    """
    return BadInput(f"Expected {expected}, got {shown(value)}.{f' {remedy}' if remedy else ''}")


def shown(value: object) -> str:
    """Describe a value in a few words on one line: arrays by type and shape, classes and functions by name.

    >>> shown("batch"), shown(dict), shown(len), shown(1.5)
    ('`batch`', 'the class `dict`', 'the function `len`', '1.5')
    """
    if isinstance(value, str):
        text = value if value.isprintable() else repr(value)[1:-1]
        return f"`{text if len(text) <= _SHOWN else f'{text[: _SHOWN - 3]}...'}`"
    if isinstance(value, type):
        return f"the class `{value.__name__}`"
    shape, name = getattr(value, "shape", ()), getattr(value, "__name__", None)
    if isinstance(shape, tuple) and shape:
        return f"`{type(value).__name__}` of {getattr(value, 'dtype', 'numbers')}, shape {shape}"
    if callable(value) and isinstance(name, str):
        return f"the function `{name}`"
    text = repr(value)
    if text.isprintable() and len(text) <= _SHOWN and type(value).__module__ in ("builtins", "numpy"):
        return text
    many = f" of {len(value)}" if isinstance(value, list | tuple | dict | set) else ""
    return f"a value of type `{type(value).__name__}`{many}"


@dataclass(frozen=True)
class Several(Generic[Value]):
    """A tuple of distinct values of a kind, from any iterable but text and mappings.

    Attributes:
        kind: Kind of each value.
        empty: Whether the tuple may be empty.
        remedy: A sentence that says what to write instead of a value that is no list.
    """

    kind: Kind[Value]
    empty: bool = False
    remedy: str = "Write a list, also of a single one."

    def of(self, where: str, value: object) -> tuple[Value, ...]:
        """Convert a list; see `Kind.of`.

        Raises:
            BadInput: If the value is no list, is empty, or contains a value of another kind or a value twice.
        """
        if isinstance(value, str | bytes | Mapping | type) or not isinstance(value, Iterable) or is_scalar(value):
            raise refusal(f"{where} to be a list, each {self.kind.words}", value, self.remedy)
        items = tuple(self.kind.of(f"each of {where}", item) for item in value)
        if not items and not self.empty:
            raise BadInput(f"Expected {where} to name at least one, got nothing. Name one, or leave it out.")
        check_distinct(where, items)
        return items


Check = Kind[Any] | Several[Any]


def check_distinct(where: str, items: Sequence[object]) -> None:
    """Refuse duplicates.

    Raises:
        BadInput: If a value occurs twice.
    """
    for i, item in enumerate(items):
        if item in items[:i]:
            raise BadInput(f"Expected every value of {where} once, got {shown(item)} twice. Remove one of them.")


_RECORDED: ContextVar[bool] = ContextVar("recorded", default=False)


@contextmanager
def recorded() -> Iterator[None]:
    """Accept fields unchecked: a schema has checked those of a folder, and only the folder's code knows some norms."""
    token = _RECORDED.set(True)
    try:
        yield
    finally:
        _RECORDED.reset(token)


def check_fields(owner: object, **kinds: Check) -> None:
    """Check fields of a frozen dataclass that is being initialized, and store the converted values.

    Args:
        owner: The dataclass.
        **kinds: Kinds of the fields to check.

    Raises:
        BadInput: If a field is of another kind.
    """
    if _RECORDED.get():
        return
    given = {name: getattr(owner, name) for name in kinds}
    convert_fields(owner, **checked(type(owner).__name__, given, kinds))


def convert_fields(owner: object, **values: object) -> None:
    """Set fields of a frozen dataclass that is being made to their converted values."""
    for name, value in values.items():
        object.__setattr__(owner, name, value)


def checked(owner: str, given: Mapping[str, object], kinds: Mapping[str, Check]) -> dict[str, Any]:
    """Convert arguments by name.

    Args:
        owner: Name of the class or function that takes the arguments, for messages.
        given: The arguments.
        kinds: Kinds of the arguments, by name.

    Raises:
        BadInput: If an argument is of another kind.
    """
    return {name: kind.of(f"`{name}` of `{owner}`", given[name]) for name, kind in kinds.items()}


def optional(kind: Kind[Value]) -> Kind[Value | None]:
    """Return a kind that also accepts `None`."""
    return Kind(f"{kind.words}, or None", lambda value: None if value is None else kind.convert(value), kind.remedy)


def kept(test: Callable[[Value], bool]) -> Callable[[Value], Value]:
    """Return a conversion for `Kind` that keeps values that pass a test, and refuses others."""
    return lambda value: value if test(value) else _refuse(value)


def an(kind: type[Value], remedy: str) -> Kind[Value]:
    """Return the kind of the instances of a class."""
    return Kind(f"a `{kind.__name__}`", kept(lambda value: isinstance(value, kind)), remedy)


def function(
    words: str, remedy: str = "Write a function.", *, arguments: int | None = None
) -> Kind[Callable[..., Any]]:
    """Return the kind of values that can be called.

    Args:
        words: Phrase that names the function and its arguments.
        remedy: A sentence that says what to write instead.
        arguments: Number of positional arguments that the function must take; not checked unless given.
    """
    return Kind(words, kept(lambda value: _takes(value, arguments)), remedy)


def _takes(value: object, arguments: int | None) -> bool:
    if not callable(value) or arguments is None:
        return callable(value)
    try:
        signature = inspect.signature(value)
    except (ValueError, TypeError):  # some functions written in C have none
        return True
    with suppress(TypeError):
        signature.bind(*[None] * arguments)
        return True
    return False


def whole(value: SupportsIndex) -> int:
    """Convert a positive whole number of Python or NumPy.

    Raises:
        ValueError: If the value is not positive.
        TypeError: If the value is no whole number.
    """
    return _natural(value) or _refuse(value)


def finite(value: SupportsFloat) -> int | float:
    """Convert a finite number of Python or NumPy; whole numbers become `int`.

    Raises:
        ValueError: If the value is not finite.
        TypeError: If the value is no number.
    """
    if _is_switch(value) or not (isinstance(value, Real) or is_scalar(value)):
        raise TypeError(value)
    with suppress(TypeError):
        return operator.index(value)  # pyright: ignore[reportArgumentType]
    return float(value) if math.isfinite(value) else _refuse(value)


def is_scalar(value: object) -> bool:
    """Report whether a value is an array without axes."""
    return getattr(value, "shape", None) == ()


def positive(value: SupportsFloat) -> float:
    """Convert a positive finite number to a float.

    Raises:
        ValueError: If the value is not positive or not finite.
        TypeError: If the value is no number.
    """
    return float(value) if finite(value) > 0 else _refuse(value)


def _natural(value: SupportsIndex) -> int:
    if isinstance(value, bool) or operator.index(value) < 0:
        raise ValueError(value)
    return operator.index(value)


def _share(value: SupportsFloat) -> int | float:
    number = finite(value)
    return number if (number >= 1 if isinstance(number, int) else 0 < number < 1) else _refuse(value)


def _text(value: object) -> str:
    return value if isinstance(value, str) else _refuse(value)


def _label(value: object) -> str:
    text = _text(value)
    return text if text.strip() and text.isprintable() else _refuse(value)


def _name(value: object) -> str:
    text = _text(value)
    return text if _NAME.fullmatch(text) else _refuse(value)


def _refuse(value: object) -> NoReturn:
    raise ValueError(value)


WHOLE = Kind("a positive whole number", whole, "Give one such as 5.")
COUNT = Kind("a whole number from 0 on", _natural, "Give one such as 5.")
NUMBER = Kind("a finite number", finite, "Give one such as 0.5.")
POSITIVE = Kind("a positive number", positive, "Give one such as 0.1.")
MARGIN = Kind(
    "a number from 0 on, in the unit of the metric",
    lambda value: float(value) if finite(value) >= 0 else _refuse(value),
    "Give the smallest difference that matters to you, such as 0.005 for half a percentage point.",
)
SHARE = Kind(
    "a number of examples (1, 2, ...) or a share between 0 and 1",
    _share,
    "Give a whole number such as 500, or a fraction such as 0.2.",
)
SWITCH = Kind("true or false", lambda value: bool(value) if _is_switch(value) else _refuse(value), "Write one of them.")
TEXT = Kind("text", _text, "Write it in quotes.")
LABEL = Kind("text on one line", _label, "Write some words in quotes.")
NAME = Kind(
    "a short name of letters, digits, `_`, `-`, `.` and `+`",
    _name,
    "Names are in paths and flags: write one such as `my-net`, and longer ones as the `title`.",
)


def _is_switch(value: object) -> bool:
    return isinstance(value, bool) or (is_scalar(value) and str(getattr(value, "dtype", "")) == "bool")
