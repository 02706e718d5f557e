"""The command `normlab`: run a comparison, write its report again, list what there is."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from normlab.study import arguments, catalogue
from normlab.study.errors import BadInput, nearest

OK, USAGE, INTERRUPTED = 0, 2, 130

_HELP = """\
usage: normlab COMMAND ...

Which normalization layer for which batch size: comparisons that tune, repeat, and say what they cannot see.

commands:
  run NAME_OR_FILE   run a comparison, or go on with it, and write its report
  report FOLDER      write the report of a comparison again
  list               comparisons and norms

options:
  -h, --help         this text; `normlab COMMAND --help` for a command's options
  --version          the version"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Returns:
        0; 1 if no run succeeded; 2 for bad input, with one line on stderr and nothing written; 130 if interrupted.
    """
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        return _command(given)
    except BadInput as error:
        print(f"normlab: {error}", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        print("normlab: Interrupted. Finished runs are kept; the same command goes on from there.", file=sys.stderr)
        return INTERRUPTED


def _command(given: list[str]) -> int:
    name, rest = (given[0], given[1:]) if given else ("--help", [])
    commands = {"run": _run, "report": _report, "list": _list}
    if name in commands:
        return commands[name](rest)
    if name in ("-h", "--help"):
        print(_HELP)
    elif name == "--version":
        from normlab import __version__

        print(f"normlab {__version__}")
    else:
        raise BadInput(f"Unknown command `{name}`. {nearest(name, [*commands, '--help', '--version'])}")
    return OK


def _run(given: list[str]) -> int:
    source = arguments.source_of(given)
    if source is None:
        arguments.run_parser(None).print_help()
        return OK
    comparison = catalogue.load(source)
    parser = arguments.run_parser(comparison)
    if {"-h", "--help"} & set(given):
        parser.print_help()
        return OK
    options = parser.parse(given)
    settings = arguments.settings_of(options, comparison)
    jobs, output = arguments.jobs_of(options), arguments.output_of(options, settings)
    command = shlex.join(["normlab", "run", *given])
    from normlab.study.invocation import Invocation

    return Invocation(comparison, settings, output, command).run(jobs, dry=options.dry_run, show=options.open)


def _report(given: list[str]) -> int:
    parser = arguments.Parser("normlab report", "Write the report of a comparison again, from its runs.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="what `normlab run` wrote to")
    if {"-h", "--help"} & set(given):
        parser.print_help()
        return OK
    folder = parser.parse(given).folder
    from normlab.study.invocation import Invocation
    from normlab.study.store import Store

    header = Store(folder).header()
    if header is None:
        raise BadInput(f"Expected a folder that `normlab run` wrote, got `{folder}`.")
    comparison = catalogue.load(header.settings.source)
    return Invocation(comparison, header.settings, folder, header.command).report(header)


def _list(given: list[str]) -> int:
    from normlab import norms

    if {"-h", "--help"} & set(given):
        print("usage: normlab list\n\nPrint the comparisons that `normlab run` knows by name, and the norms.")
        return OK
    if given:
        raise BadInput(f"Expected no arguments after `list`, got `{given[0]}`.")
    print("Comparisons:")
    for name in catalogue.known():
        print(f"  {name:<16}{catalogue.load(name).question}")
    print("Norms:")
    for name in norms.names():
        print(f"  {name:<16}{norms.get(name).title}")
    return OK
