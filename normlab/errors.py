"""What a user got wrong, or the machine refused, in one sentence."""

import difflib
from collections.abc import Iterable


class BadInput(ValueError):
    """The message is one line for the terminal: what was expected, what came, the remedy."""


class Fault(RuntimeError):
    """Something outside of the program broke: the message is one line that says what is kept and how to go on."""


class Unfinished(Fault):
    """Time was over before the last run."""


def nearest(name: str, known: Iterable[str]) -> str:
    """A question to put behind "unknown": the known name that looks most like `name`, or all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean `{close[0]}`?" if close else f"Known: {', '.join(known) or 'none'}."


def one_line(error: BaseException, limit: int = 300, *, kind: bool = True) -> str:
    """The first line of an error's message, with its type unless that is not wanted or it is a `ValueError`."""
    lines = str(error).strip().splitlines() or [""]
    prefix = f"{type(error).__name__}: " if kind and not isinstance(error, ValueError) else ""
    text = f"{prefix}{lines[0].strip()}"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


class StatisticsError(ValueError):
    """Raised at trace time where there is nothing to take statistics over, so that the output would be constant."""
