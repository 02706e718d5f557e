"""Errors whose message is one sentence: bad input, and faults of the machine."""

from collections.abc import Iterable

from normlab.suggestions import suggestion

__all__ = ["BadInput", "Fault", "StatisticsError", "Unfinished"]


class BadInput(ValueError):
    """Error of the user. The message is one line: what was expected, what was passed, what to do."""


class Fault(RuntimeError):
    """Failure outside the program. The message is one line that says what was saved and how to resume."""


class Unfinished(Fault):
    """The time budget ended before the last run."""


def nearest(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """Return a sentence to follow "unknown": a question with the name that is meant.

    Args:
        name: The unknown name.
        known: The known names.
        otherwise: The sentence where none of them is meant; unless given, a list of all of them.
    """
    known = sorted(known)
    if meant := suggestion(name, known):
        return f"Did you mean `{meant}`?"
    return otherwise or f"Known: {', '.join(known) or 'none'}."


def one_line(error: BaseException, limit: int = 300, *, kind: bool = True) -> str:
    """Return the first line of an error's message, after its type unless `kind` is false or it is a `ValueError`."""
    lines = str(error).strip().splitlines() or [""]
    prefix = f"{type(error).__name__}: " if kind and not isinstance(error, ValueError) else ""
    text = f"{prefix}{lines[0].strip()}"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


class StatisticsError(ValueError):
    """Error at trace time if a statistic is over a single element, so that the output would be constant."""
