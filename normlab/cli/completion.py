"""Tab completion by `argcomplete`: commands, options, and the names that options take."""

import argparse
import os
from collections.abc import Callable, Iterable

import argcomplete
from argcomplete.completers import DirectoriesCompleter, FilesCompleter

from normlab import norms
from normlab.cli import listing
from normlab.cli.parser import FAIL_ON, Parser, run_parser
from normlab.study.design import discovery
from normlab.study.design.budgets import TIERS
from normlab.study.design.comparison import Comparison
from normlab.study.design.request import EXECUTORS

__all__ = ["complete"]

Completer = Callable[..., Iterable[str]]


def complete(commands: "dict[str, Callable[[], Parser]]") -> None:
    """Print what may follow the line that the shell is completing, and end the process.

    Args:
        commands: Parsers by command, but for `run`, whose options depend on the line.
    """
    words = os.environ.get("COMP_LINE", "")[: int(os.environ.get("COMP_POINT", "0"))].split()
    top = argparse.ArgumentParser("normlab")
    top.add_argument("--version", action="store_true")
    known = top.add_subparsers()
    for name in ("run", *commands):
        parser = _run(words) if name == "run" else _completed(commands[name](), _OTHERS.get(name, _FOLDERS))
        known.add_parser(name, parents=[parser], add_help=False, help=parser.description)
    argcomplete.autocomplete(top, always_complete_options=False)


def _run(words: list[str]) -> Parser:
    """Make the parser of `run` for the comparison on the line, if it has a known name.

    A user's file is not loaded, since the key must not execute its code: it has the options of every comparison.
    """
    named = next((word for word in words[2:] if word in discovery.known() or word.endswith(".py")), "")
    comparison = discovery.load(named) if named in discovery.known() else None
    return _completed(run_parser(comparison), _names(comparison))


def _names(comparison: Comparison | None) -> dict[str, Completer]:
    """Return what completes the values of the options of `run`."""
    found: dict[str, Completer] = {
        "source": _sources,
        "norms": _from(norms.names() if comparison is None else (*norms.names(), *norms.cell_names())),
        "tier": _from(comparison.tiers if comparison else TIERS),
        "executor": _from(EXECUTORS),
        "output": DirectoriesCompleter(),
        "config": FilesCompleter(("toml",)),
    }
    if comparison:
        found["problems"] = _from(problem.name for problem in comparison.problems)
        found["curves"] = _from(curve.name for curve in comparison.curves)
    return found


def _completed(parser: Parser, completers: dict[str, Completer]) -> Parser:
    """Attach completers to the arguments of a parser; others complete nothing."""
    for action in parser.arguments():
        action.completer = completers.get(action.dest, _from(()))  # pyright: ignore[reportAttributeAccessIssue]
    return parser


def _from(names: Iterable[str]) -> Completer:
    listed = tuple(dict.fromkeys(names))
    return lambda **_: listed


def _sources(prefix: str, **_: object) -> Iterable[str]:
    """Return comparisons, and Python files once they are begun."""
    return [*discovery.known(), *(FilesCompleter(("py",))(prefix) if prefix else ())]


def _new_norms(prefix: str, **_: object) -> Iterable[str]:
    """Return norms to convert to, after a glob over paths where one is begun."""
    glob, equals, _norm = prefix.partition("=")
    start = f"{glob}=" if equals and ":" not in glob else ""
    return [f"{start}{name}" for name in ("flax", "normlab", *norms.names())]


_FOLDERS: dict[str, Completer] = {
    "folder": DirectoriesCompleter(),
    "folders": DirectoriesCompleter(),
    "output": DirectoriesCompleter(),
    "kind": _from(listing.KINDS),
    "source": _sources,
}
_CHECKPOINTS: dict[str, Completer] = {
    "source": FilesCompleter(("py",)),
    "checkpoint": DirectoriesCompleter(),
    "output": DirectoriesCompleter(),
    "json": FilesCompleter(("json",)),
    "to": _new_norms,
    "keep": _from(("epsilon", "momentum", "axis_name", "dtype", "affine")),
    "form": _from(("model", "variables")),
    "fresh": _from(("raise", "init")),
}
_OTHERS: dict[str, dict[str, Completer]] = {
    "fold": _CHECKPOINTS,
    "convert": _CHECKPOINTS,
    "doctor": {
        "source": FilesCompleter(("py",)),
        "html": FilesCompleter(("html",)),
        "json": FilesCompleter(("json",)),
        "fail_on": _from(FAIL_ON),
    },
}
