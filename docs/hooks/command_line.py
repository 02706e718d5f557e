"""Write the page of the command line from its help and its parsers."""

import argparse
import io
import re
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from unittest import mock

from normlab.cli.main import main
from normlab.cli.parser import run_parser
from normlab.study.design import discovery


def command_line() -> str:
    """Return the page as Markdown."""
    overview, _ = _help()
    commands = re.findall(r"^  (\w+)", overview.partition("commands:")[2].partition("\n\n")[0], re.MULTILINE)
    lines = ["# Command line", "", *_block(overview)]
    for command in dict.fromkeys(commands):
        text, parser = _help(command)
        lines += [f"## normlab {command}", "", *(_section(parser) if parser else _block(text))]
        if command == "run":
            lines += _of_comparisons()
    return "\n".join(lines) + "\n"


def _help(*command: str) -> tuple[str, argparse.ArgumentParser | None]:
    """Ask a command for help; return the text, and the parser that wrote it."""
    with redirect_stdout(io.StringIO()) as printed, suppress(SystemExit):
        wrote = mock.patch.object(argparse.ArgumentParser, "print_help", autospec=True)
        with wrote as asked:
            main([*command, "--help"])
    return printed.getvalue(), asked.call_args.args[0] if asked.called else None


def _of_comparisons() -> Iterator[str]:
    """Yield the options that only single comparisons have."""
    general = run_parser(None)._option_string_actions
    for name in discovery.known():
        comparison = discovery.load(name)
        actions = run_parser(comparison)._actions
        own = [one for one in actions if one.option_strings and one.option_strings[0] not in general]
        if own:
            yield from (f"### normlab run {name}", "", f"{comparison.question} Its own options:", "")
            yield from map(_row, own)


def _section(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield the lines on a command."""
    yield from (parser.description or "", "")
    for group in parser._action_groups:
        rows = [_row(action) for action in group._group_actions if action.help != argparse.SUPPRESS]
        if rows:
            yield from (f"**{group.title}**", "") if group.title else ()
            yield from rows
    yield from (parser.epilog or "", "")


def _row(action: argparse.Action) -> str:
    """Write an argument as a term and its definition."""
    value = f" {action.metavar}" if action.option_strings and action.metavar else ""
    several = " ..." if action.nargs in ("+", "*") else ""
    names = action.option_strings or [str(action.metavar or action.dest)]
    term = ", ".join(f"`{name}{value}{several}`" for name in names)
    return f"{term}\n:   {(action.help or '').replace('%%', '%')}\n"


def _block(text: str) -> tuple[str, ...]:
    return ("```text", text.rstrip(), "```", "")
