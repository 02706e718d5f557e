"""The report as text: the verdict, each finding with its remedy, and the checks that were not made."""

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING

from normlab.doctor.display import paste
from normlab.doctor.display.wording import (
    Examined,
    counts,
    is_healthy,
    listed,
    measured,
    others,
    plain,
    reasons,
    sentence,
    verdict,
)
from normlab.doctor.findings import Finding, Severity
from normlab.extras import importing

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["print_table", "table"]

WIDTH = 100
"""Columns beyond which lines are hard to read."""

COLOURS: dict[Severity, str] = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}
"""Styles of the severities on a terminal."""

_INDENT = 7
"""Columns before the lines of a finding: a code and a gap."""


def table(report: Examined, width: int = WIDTH) -> str:
    """Return a report as plain text.

    Args:
        report: The report.
        width: Columns that no line exceeds, but for code that cannot be broken without harm.

    Raises:
        MissingExtra: If `rich` is not installed.
    """
    with importing("doctor"):
        from rich.console import Console
    written = io.StringIO()
    console = Console(file=written, width=width, force_terminal=False, force_jupyter=False, color_system=None)
    print_table(report, console)
    return "".join(f"{line.rstrip()}\n" for line in written.getvalue().splitlines())


def print_table(report: Examined, console: "Console") -> None:
    """Print a report on a console of rich: with colours where it is a terminal that has them.

    Raises:
        MissingExtra: If `rich` is not installed.
    """
    with importing("doctor"):
        from rich.console import Console  # noqa: F401
    style = "bold green" if is_healthy(report) and report.passed else "bold"
    _line(console, verdict(report), style=style if is_healthy(report) else COLOURS[report.findings[0].severity])
    if said := counts(report):
        _line(console, said, style="dim")
    for finding in report.findings:
        _finding(console, finding)
    for line in _skipped(report):
        _line(console, line, style="dim")


def _finding(console: "Console", finding: Finding) -> None:
    """Print a finding: heading, evidence, harm and remedy."""
    _line(console)
    console.print(_heading(finding))
    _line(console, sentence(finding.title), style="bold", indent=_INDENT)
    evidence = ", ".join(" ".join(part for part in row if part) for row in measured(finding))
    estimated = "" if finding.certain else " (estimated from the batches)"
    if evidence:
        _line(console, f"{evidence}{estimated}", indent=_INDENT)
    _line(console, " ".join(part for part in (plain(finding.why), "Remedy:") if part), style="dim", indent=_INDENT)
    for line in paste.lines(finding.remedy, console.width - _INDENT):
        _code(console, line)


def _heading(finding: Finding) -> "Table":
    """Return code, severity and path side by side; a long path is folded in its own column."""
    from rich.table import Table
    from rich.text import Text

    heading = Table.grid(padding=(0, 2, 0, 0))
    heading.add_column(no_wrap=True)
    heading.add_column(no_wrap=True, min_width=7)
    heading.add_column(overflow="fold")
    place = Text(plain(finding.path) or "the whole model").append(others(finding), style="dim")
    heading.add_row(Text(finding.code, style="bold"), Text(finding.severity, style=COLOURS[finding.severity]), place)
    return heading


def _skipped(report: Examined) -> Iterator[str]:
    """Yield a line for each reason, with its codes."""
    found = reasons(report.skipped)
    if found:
        yield ""
        yield "Not checked:"
    for why, codes in found.items():
        yield f"{listed(codes)}: {why}"


def _line(console: "Console", text: str = "", *, style: str = "", indent: int = 0) -> None:
    """Print text that is wrapped between words, and inside a word that is too long."""
    from rich.padding import Padding
    from rich.text import Text

    console.print(Padding(Text(text, style=style, overflow="fold"), (0, 0, 0, indent)) if text else "")


def _code(console: "Console", line: str) -> None:
    """Print a line that nothing wraps."""
    from rich.text import Text

    shown = "".join(letter if letter.isprintable() else " " for letter in line)
    console.print(Text(f"{' ' * _INDENT}{shown}", style="green"), soft_wrap=True)
