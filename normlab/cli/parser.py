"""The parser of the command line; its options are those of `design.request`."""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from normlab.errors import BadInput, nearest
from normlab.study.design.comparison import Comparison
from normlab.study.design.request import options


class Parser(argparse.ArgumentParser):
    """A parser that raises `BadInput`, one line, instead of printing its usage."""

    def __init__(self, prog: str, description: str, *, add_help: bool = True, epilog: str | None = None) -> None:
        """Describe a command."""
        super().__init__(
            prog,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            add_help=add_help,
            argument_default=argparse.SUPPRESS,
        )

    def error(self, message: str) -> NoReturn:
        """Raise `BadInput`."""
        raise BadInput(f"{message[:1].upper()}{message[1:]}. See `{self.prog} --help`.")

    def parse(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Parse all arguments.

        Returns:
            The values of the arguments that were given.

        Raises:
            BadInput: If an option is unknown, with the nearest known one, or is given twice.
        """
        options = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
        for option in options:
            if option not in self._option_string_actions:
                raise BadInput(f"Unknown option `{option}`. {nearest(option, self._option_string_actions)}")
            if options.count(option) > 1:
                raise BadInput(f"Expected `{option}` once, got it {options.count(option)} times.")
        return vars(self.parse_args(arguments))


def run_parser(comparison: Comparison | None, *, add_help: bool = True) -> Parser:
    """Make the parser of `normlab run`; the options of curves and problems need the comparison."""
    parser = Parser(
        "normlab run", "Run a comparison, or resume it, and write its report.", add_help=add_help, epilog=_EPILOG
    )
    parser.add_argument(
        "source", metavar="NAME_OR_FILE", help="name of a comparison (see `normlab list`) or a file that defines one"
    )
    for option in options(comparison).values():
        option.add_to(parser)
    parser.add_argument("--config", metavar="FILE.toml", help="options by name; flags take precedence")
    parser.add_argument("--dry-run", action="store_true", help="check the input and print the plan; write nothing")
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


_EPILOG = (
    "Exit codes: 0; 1 if no run succeeded, or the machine failed (disk, worker processes); 2 for bad input, with "
    "nothing written; 3 if the time budget ended before the last run; 130 if interrupted, 128 + n by another signal n."
)
