"""The command line, and from it the settings of an invocation. Imports nothing heavy."""

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from normlab.study.config import Comparison, Settings
from normlab.study.errors import BadInput, nearest, one_line
from normlab.study.plan import TUNING_SEEDS_FROM

DEFAULT_TIER = "quick"

T = TypeVar("T")


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are `BadInput`: one line instead of a usage text."""

    def __init__(self, prog: str, description: str, *, add_help: bool = True) -> None:
        """Describe a command."""
        super().__init__(prog, description=description, allow_abbrev=False, add_help=add_help)

    def error(self, message: str) -> NoReturn:
        """Raise `BadInput`."""
        raise BadInput(f"{message[:1].upper()}{message[1:]}. See `{self.prog} --help`.")

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse all arguments, naming the nearest option where one is misspelt."""
        for argument in arguments:
            option = argument.partition("=")[0]
            if option.startswith("--") and option not in self._option_string_actions:
                raise BadInput(f"Unknown option `{option}`. {nearest(option, self._option_string_actions)}")
        return self.parse_args(arguments)


def run_parser(comparison: Comparison | None, *, add_help: bool = True) -> Parser:
    """The options of `normlab run`; the factor's own needs the comparison."""
    parser = Parser("normlab run", "Run a comparison, or go on with it, and write its report.", add_help=add_help)
    add = parser.add_argument
    add("source", metavar="NAME_OR_FILE", help="name of a comparison (see `normlab list`) or a file that defines one")
    if comparison:
        factor = comparison.factor
        known = " ".join(str(value) for value in factor.values)
        add(factor.flag, dest="values", nargs="+", metavar="VALUE", help=f"{factor.label}: {known}")
    add("--norms", nargs="+", metavar="NORM", help="e.g. `batch group:num_groups=8` (see `normlab list`)")
    add("--problems", nargs="+", metavar="NAME", help="some of the comparison's problems")
    add("--tier", default=DEFAULT_TIER, help="smoke, quick, standard or paper (default: %(default)s)")
    add("--seeds", metavar="N", help="evaluation seeds; more keep the runs that are there")
    add("--learning-rates", nargs="+", metavar="RATE", help="the grid of every norm")
    add("--epochs", metavar="N", help="passes over the training set")
    add("--jobs", metavar="N", help="worker processes on CPU (default: one a core)")
    add("--output", type=Path, metavar="FOLDER", help="where runs and report go (default: results/NAME-TIER)")
    add("--dry-run", action="store_true", help="check everything and print the plan; write nothing")
    add("--open", action=argparse.BooleanOptionalAction, default=False, help="show the report in the browser")
    return parser


def source_of(arguments: Sequence[str]) -> str | None:
    """Find NAME_OR_FILE before the comparison is known; `None` where help is asked for without it.

    Raises:
        BadInput: If it is missing.
    """
    parser = run_parser(None, add_help=False)
    if not any(not argument.startswith("-") for argument in arguments):
        if {"-h", "--help"} & set(arguments):
            return None
        parser.error("expected the name of a comparison or a file after `run`")
    if not arguments[0].startswith("-"):
        return arguments[0]
    return parser.parse_known_args(arguments)[0].source


def settings_of(arguments: argparse.Namespace, comparison: Comparison) -> Settings:
    """Resolve what was given and what was not.

    Raises:
        BadInput: For what is unknown, twice there, or not a positive number.
    """
    if arguments.tier not in comparison.tiers:
        raise BadInput(f"Unknown tier `{arguments.tier}`. {nearest(arguments.tier, comparison.tiers)}")
    tier, factor = comparison.tiers[arguments.tier], comparison.factor
    kind = type(factor.values[0])
    settings = Settings(
        comparison=comparison.name,
        source=_stable(arguments.source),
        tier=arguments.tier,
        problems=_problems(arguments.problems, [problem.name for problem in comparison.problems]),
        norms=_norms(arguments.norms or comparison.norms),
        values=_listed(factor.flag, arguments.values, _positive(factor.flag, kind)) or tier.values or factor.values,
        learning_rates=_listed("--learning-rates", arguments.learning_rates, _positive("--learning-rates", float))
        or tier.learning_rates,
        epochs=_number("--epochs", arguments.epochs, tier.epochs),
        tuning_seeds=tier.tuning_seeds,
        seeds=_number("--seeds", arguments.seeds, tier.seeds),
    )
    if settings.seeds > TUNING_SEEDS_FROM:
        raise BadInput(f"Expected `--seeds` to be at most {TUNING_SEEDS_FROM} (the others tune), got {settings.seeds}.")
    return settings


def jobs_of(arguments: argparse.Namespace) -> int:
    """How many worker processes: as many as cores that this process may use, unless given."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return _number("--jobs", arguments.jobs, cores)


def output_of(arguments: argparse.Namespace, settings: Settings) -> Path:
    """The folder for runs and report."""
    return arguments.output or Path("results") / f"{settings.comparison}-{settings.tier}"


def _stable(source: str) -> str:
    """A source that means the same from another folder."""
    return str(Path(source).resolve()) if source.endswith(".py") or os.sep in source else source


def _problems(given: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    names = _listed("--problems", given, str) or tuple(known)
    for name in names:
        if name not in known:
            raise BadInput(f"Unknown problem `{name}`. {nearest(name, known)}")
    return names


def _norms(given: Iterable[str]) -> tuple[str, ...]:
    from normlab import norms

    try:
        return _unique("--norms", [str(norms.get(text)) for text in norms.parse_list(",".join(given))])
    except BadInput:
        raise
    except (ValueError, TypeError) as error:
        raise BadInput(one_line(error)) from error


def _listed(flag: str, given: Sequence[str] | None, convert: Callable[[str], T]) -> tuple[T, ...]:
    texts = [text for part in given or () for text in part.split(",") if text]
    if given and not texts:
        raise BadInput(f"Expected `{flag}` to name at least one, got nothing.")
    return _unique(flag, [convert(text) for text in texts])


def _unique(flag: str, items: Sequence[T]) -> tuple[T, ...]:
    for i, item in enumerate(items):
        if item in items[:i]:
            raise BadInput(f"Expected every value of `{flag}` once, got `{item}` twice.")
    return tuple(items)


def _positive(flag: str, kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise BadInput(f"Expected `{flag}` to take {_WORDS[kind]}, got `{text}`.") from None
        if not isinstance(value, str) and not (value > 0 and math.isfinite(value)):
            raise BadInput(f"Expected `{flag}` to take {_WORDS[kind]}, got `{text}`.")
        return value

    return convert


_WORDS = {int: "positive whole numbers", float: "positive numbers", str: "text"}


def _number(flag: str, text: str | None, default: int) -> int:
    return default if text is None else int(_positive(flag, int)(text))
