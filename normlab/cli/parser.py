"""The parser of the command line; its options are those of `design.request`."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias

from normlab import norms
from normlab.errors import BadInput, nearest
from normlab.study.design import discovery
from normlab.study.design.comparison import Comparison
from normlab.study.design.request import BUDGET, COMPARED, OUTPUT, PLACE, options

_TEXTS = {
    r"argument (--[\w-]+)\S*: expected (one|at least one) argument": r"Expected a value after `\1`, got none",
    r"argument (--[\w-]+)\S*: ignored explicit argument '(.*)'": r"Expected `\1` without a value, got `\2`",
    r"unrecognized arguments: (.*)": r"Expected nothing more, got `\1`",
    r"the following arguments are required: (.*)": r"Expected `\1`, got none",
}
"""Messages of `argparse`, and how they read here."""


class Parser(argparse.ArgumentParser):
    """A parser that raises `BadInput`, one line, instead of printing its usage."""

    def __init__(
        self,
        prog: str,
        description: str,
        *,
        usage: str | None = None,
        add_help: bool = True,
        epilog: str | None = None,
    ) -> None:
        """Describe a command."""
        super().__init__(
            prog,
            usage=usage,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            add_help=add_help,
            argument_default=argparse.SUPPRESS,
            formatter_class=_Formatter,
        )
        self.repeated: set[str] = set()  # options that may be given several times

    def error(self, message: str) -> NoReturn:
        """Raise `BadInput`."""
        for theirs, ours in _TEXTS.items():
            message = re.sub(theirs, ours, message)
        raise BadInput(f"{message[:1].upper()}{message[1:]}. See `{self.prog} --help`.")

    def arguments(self) -> list[argparse.Action]:
        """List all arguments, positional ones and options."""
        return list(self._actions)

    def parse(self, arguments: Sequence[str]) -> dict[str, Any]:
        """Parse all arguments.

        Returns:
            The values of the arguments that were given.

        Raises:
            BadInput: If an option is unknown, with the nearest known one, or is given twice and may not be.
        """
        options = [argument.partition("=")[0] for argument in arguments if _OPTION.match(argument)]
        for option in options:
            if option not in self._option_string_actions:
                hint = nearest(option, self._option_string_actions, f"See `{self.prog} --help`.")
                raise BadInput(f"Unknown option `{option}`. {hint}")
            if options.count(option) > 1 and option not in self.repeated:
                raise BadInput(f"Expected `{option}` once, got it {options.count(option)} times.")
        return vars(self.parse_args(arguments))


_OPTION = re.compile(r"--|-[A-Za-z]")


class _Formatter(argparse.HelpFormatter):
    """Help with a column that is wide enough for most options."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, max_help_position=26, **options)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.nargs == argparse.ONE_OR_MORE:
            return f"{self._metavar_formatter(action, default_metavar)(1)[0]} ..."
        return super()._format_args(action, default_metavar)


def run_parser(comparison: Comparison | None, source: str = "NAME_OR_FILE") -> Parser:
    """Make the parser of `normlab run`.

    Args:
        comparison: The comparison, for the options of its curves and problems; `None` before it is known.
        source: Name or path of the comparison as the user typed it.
    """
    prog = f"normlab run {source}"
    description = _RUN if comparison else f"{_RUN} {_OWN_OPTIONS}"
    parser = Parser(prog, description, usage=f"{prog} [OPTION ...]", epilog=_EPILOG, add_help=False)
    own = f"options of `{comparison.name}`: its curves and data" if comparison else ""
    titles = {COMPARED: "what is compared", own: own, BUDGET: "how long, and how sure", PLACE: PLACE, OUTPUT: OUTPUT}
    groups = {name: parser.add_argument_group(title) for name, title in titles.items()}
    groups[COMPARED].add_argument(
        "source", metavar="NAME_OR_FILE", help="name of a comparison (see `normlab list`) or a file that defines one"
    )
    for option in options(comparison).values():
        option.add_to(groups[option.group or own])
    groups[OUTPUT].add_argument(
        "--dry-run",
        action="store_true",
        help="check the input, and print runs, minutes and what the seeds can show; write nothing",
    )
    groups[OUTPUT].add_argument("--config", metavar="FILE.toml", help="options by name; flags take precedence")
    groups[OUTPUT].add_argument("-h", "--help", action="help", help="this text")
    return parser


def report_parser() -> Parser:
    """Make the parser of `normlab report`."""
    parser = Parser("normlab report", "Print and write the report of the runs so far.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a folder of `normlab run`")
    return parser


def merge_parser() -> Parser:
    """Make the parser of `normlab merge`."""
    parser = Parser("normlab merge", "Merge the runs of folders of one comparison, e.g. of `--shard`, and report.")
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="a folder of `normlab run`")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="new, or of the same comparison")
    return parser


def verify_parser() -> Parser:
    """Make the parser of `normlab verify`."""
    parser = Parser("normlab verify", "Repeat a recorded run and compare its numbers bit by bit.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a folder of `normlab run`")
    parser.add_argument("--run", metavar="KEY", help="start of a run's key (default: one evaluation run at random)")
    parser.add_argument(
        "--trust", action="store_true", help="run the Python file that FOLDER names; comparisons by name need no trust"
    )
    return parser


def fold_parser() -> Parser:
    """Make the parser of `normlab fold`."""
    parser = Parser(
        "normlab fold",
        "Fold batch norms into the layers around them, for a model that only evaluates, and write a new checkpoint.",
        usage="normlab fold FILE.py:build CHECKPOINT --output NEW [OPTION ...]",
        epilog=_OF_CHECKPOINTS.format(none="no norm was folded, or outputs differ"),
    )
    _add_checkpoints(parser, "model, args, kwargs, method, rngs, evaluate and variables")
    parser.add_argument("--where", nargs="+", metavar="GLOB", help="paths of the norms to fold, as in 'stage_1/*'")
    parser.add_argument(
        "--form",
        choices=("model", "variables"),
        metavar="FORM",
        help="model (default): folded norms run no more; variables: the model stays, and its norms add a shift",
    )
    parser.add_argument("--no-follow", action="store_true", help="fold into the layer before a norm, not behind it")
    parser.add_argument("--no-check", action="store_true", help="do not compare outputs; shapes are enough as inputs")
    parser.add_argument("--tolerance", metavar="NUMBER", help="largest difference of outputs, relative to the largest")
    _add_outputs(parser)
    return parser


def convert_parser() -> Parser:
    """Make the parser of `normlab convert`."""
    parser = Parser(
        "normlab convert",
        "Replace the norms of a trained model by others, and write a new checkpoint.",
        usage="normlab convert FILE.py:build CHECKPOINT --to [GLOB=]NORM --output NEW [OPTION ...]",
        epilog=_OF_CHECKPOINTS.format(none="the machine failed"),
    )
    _add_checkpoints(parser, "model, args, rngs, evaluate and variables")
    parser.repeated.add("--to")
    parser.add_argument(
        "--to",
        required=True,
        action="append",
        metavar="[GLOB=]NORM",
        help="the new norm, as in group:num_groups=8 (see `normlab list norms`); flax or normlab for the same norms of "
        "that library; repeat it with globs over paths for several, as in 'stage_*=group' (the first that matches "
        "counts, and a norm without a glob takes what is left)",
    )
    parser.add_argument("--where", nargs="+", metavar="GLOB", help="paths of the norms to convert, as in 'stage_1/*'")
    parser.add_argument(
        "--keep",
        nargs="+",
        metavar="NAME",
        help="options that are kept (default: epsilon momentum axis_name dtype), and affine, which carries scale and "
        "bias to norms of another kind",
    )
    parser.add_argument(
        "--fresh",
        choices=("raise", "init"),
        metavar="HOW",
        help="variables that nothing can be carried to: raise (default) refuses, init starts them anew",
    )
    _add_outputs(parser)
    return parser


def _add_checkpoints(parser: Parser, keywords: str) -> None:
    """Add the arguments that say which model and which checkpoint are read."""
    parser.add_argument(
        "source",
        metavar="FILE.py:build",
        help="a Python file and its function, which returns a Flax model and the inputs of a call, as in "
        f"`return model, x`, or a dict of {keywords}",
    )
    parser.add_argument(
        "checkpoint", type=Path, metavar="CHECKPOINT", help="a folder that Orbax wrote; it is read, never changed"
    )
    parser.add_argument("--output", type=Path, metavar="NEW", help="folder of the new checkpoint, which must not exist")
    parser.add_argument(
        "--key", metavar="KEYS", help="keys above the variables in the checkpoint, as in state/ema (default: found)"
    )


def _add_outputs(parser: Parser) -> None:
    """Add the arguments that say what is written."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON, too")
    parser.add_argument("--dry-run", action="store_true", help="print the report and write no checkpoint")
    parser.add_argument("--traceback", action="store_true", help="show where an error came from")


def list_parser() -> Parser:
    """Make the parser of `normlab list`."""
    parser = Parser(
        "normlab list",
        "List what there is, without training anything. Unless KIND is given: an overview.",
        usage="normlab list [KIND [NAME_OR_FILE]]",
    )
    parser.add_argument(
        "kind",
        nargs="?",
        metavar="KIND",
        help="comparisons; norms, with formula, statistics and paper of each; problems, the models and data of each "
        "comparison; or tiers, the budgets of each comparison with runs and minutes",
    )
    parser.add_argument("source", nargs="?", metavar="NAME_OR_FILE", help="one comparison (default: all known ones)")
    return parser


def doctor_parser() -> Parser:
    """Make the parser of `normlab doctor`."""
    parser = Parser(
        "normlab doctor",
        "Examine the norms of a model: faults with their numbers, what was not checked, and a line to paste for each.",
        usage="normlab doctor FILE.py:build [OPTION ...]",
        epilog="Exit codes: 0; 1 if there is a finding of `--fail-on` or worse; 2 for a model that cannot be examined.",
    )
    add = parser.add_argument
    add("source", metavar="FILE.py:build", help=f"a function that returns the keywords of `examine`, as in {_BUILD}")
    add("--html", type=Path, metavar="FILE", help="write the report as one page that opens offline")
    add("--json", metavar="FILE", help="write the report as JSON; `-` prints it in place of the text")
    add("--fail-on", metavar="SEVERITY", help="`error`, `warning` (the default), `note` or `never`")
    add(
        "--ignore",
        metavar="CODE[@GLOB],...",
        help="leave out checks, or their findings at paths: `NL101,NL206@head*`; also by NORMLAB_DOCTOR_IGNORE",
    )
    add("--limit", metavar="N", help="read at most N batches (default: 8)")
    add("--static", action="store_true", help="look at the structure alone: no batch is computed, no step made")
    add("--timings", action="store_true", help="show the seconds of each stage")
    add("--traceback", action="store_true", help="show where a model fails that cannot be examined")
    return parser


FailOn: TypeAlias = Literal["error", "warning", "note", "never"]
FAIL_ON: tuple[FailOn, ...] = ("error", "warning", "note", "never")
"""Severities from which on findings are a failure."""

_BUILD = '`return {"model": model, "variables": variables, "batches": batches}`'


def source_of(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Find NAME_OR_FILE before the options of the comparison are known.

    Returns:
        The name or file, `None` where help is asked for without it; and the other arguments.

    Raises:
        BadInput: If it is missing, or could as well be a value of an option.
    """
    free, in_lists = _words(arguments)
    if free:
        place = free[0]
    else:
        found = [at for at in in_lists if arguments[at].endswith(".py")] or [
            at for at in in_lists if arguments[at] in discovery.known().keys() - set(norms.names())
        ]
        if not found and {"-h", "--help"} & set(arguments):
            return None, list(arguments)
        if len(found) != 1:
            raise BadInput(
                "Expected the name of a comparison or a file after `run`, got none. Put it first: `normlab run NAME "
                "[OPTION ...]`."
            )
        place = found[0]
    return arguments[place], [*arguments[:place], *arguments[place + 1 :]]


def _words(arguments: Sequence[str]) -> tuple[list[int], list[int]]:
    """List the places of the words that no option takes, and of those that a list of an option takes.

    An option of a comparison is unknown here and may take a list.
    """
    known = run_parser(None).arguments()
    single = {name for action in known if action.nargs is None for name in action.option_strings}
    switches = {name for action in known if action.nargs == 0 for name in action.option_strings}
    free, in_lists, option = list[int](), list[int](), ""
    for place, argument in enumerate(arguments):
        if argument.startswith("-"):
            option = "" if "=" in argument or argument in switches else argument
        elif option in single:
            option = ""
        else:
            (in_lists if option else free).append(place)
    return free, in_lists


def without(arguments: Sequence[str], *options: str) -> list[str]:
    """Leave out options and their values.

    Args:
        arguments: Arguments after a command.
        options: Options that take one value each.

    >>> without(["--tier", "smoke", "--seeds", "2", "--output=there"], "--tier", "--output")
    ['--seeds', '2']
    """
    values = [at + 1 for at, argument in enumerate(arguments) if argument in options]
    return [
        argument
        for at, argument in enumerate(arguments)
        if at not in values and argument.partition("=")[0] not in options
    ]


_OF_CHECKPOINTS = (
    "Exit codes: 0; 1 if {none}; 2 for bad input. A checkpoint is written only with code 0. `normlab.tools.restore` "
    "loads it."
)
_RUN = "Run a comparison, or resume it, and write its report."
_OWN_OPTIONS = (
    "Each comparison has further options, for its curves and its data: `normlab run batch_size --help` shows those of "
    "`batch_size`."
)
_EPILOG = (
    "Exit codes: 0; 1 if no run succeeded, or the machine failed (disk, worker processes); 2 for bad input, with "
    "nothing written; 3 if the time budget ended before the last run; 130 if interrupted, 128 + n by another signal n."
)
