"""The report as a page: one file without scripts that needs no network."""

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from normlab.doctor.display import files, wording
from normlab.doctor.display.strips import columns
from normlab.doctor.display.wording import Examined
from normlab.doctor.findings import ORDER, Finding, Severity
from normlab.extras import importing

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

__all__ = ["page", "write"]

_SIGNS: Mapping[Severity, str] = {"error": "✕", "warning": "▲", "note": "i"}
"""Signs of the severities, which need no colour to be told apart."""


def write(report: Examined, path: Path) -> Path:
    """Write the page of a report; see `Report.html`.

    Raises:
        BadInput: If the path is a folder's.
        MissingExtra: If `jinja2` is not installed.
    """
    files.check(path, "the path of the page")
    return files.write(path, page(report))


def page(report: Examined) -> str:
    """Return the page of a report.

    Raises:
        MissingExtra: If `jinja2` is not installed.
    """
    return (
        _environment()
        .from_string(_asset("report.html"))
        .render(
            report=report,
            verdict=wording.verdict(report),
            counts=wording.counts(report),
            healthy=wording.is_healthy(report),
            level=report.findings[0].severity if report.findings else "good" if report.passed else "unknown",
            tally=[(severity, _of(report.findings, severity)) for severity in ORDER],
            reasons=wording.reasons(report.skipped),
            columns=columns(report.measurements.values(), report.thresholds),
            faults=_faults(report.findings),
        )
    )


def _environment() -> "Environment":
    with importing("doctor"):
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_without_control
    )
    environment.globals.update(style=Markup(_asset("report.css")), wording=wording, signs=_SIGNS)
    environment.filters.update(prose=_prose, linked=_linked, ticks=_ticks, breakable=_breakable)
    return environment


def _without_control(value: object) -> object:
    """Return text without characters that HTML does not allow."""
    return value.translate(_CONTROL) if isinstance(value, str) else value


_CONTROL = {code: " " for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


def _asset(name: str) -> str:
    return resources.files("normlab.doctor.display").joinpath("templates", name).read_text("utf-8")


def _of(findings: Sequence[Finding], severity: Severity) -> int:
    return sum(finding.severity == severity for finding in findings)


def _faults(findings: Sequence[Finding]) -> dict[str, list[tuple[int, str]]]:
    """Return number and code of the findings at each path."""
    found: dict[str, list[tuple[int, str]]] = {}
    for index, finding in enumerate(findings, 1):
        for path in dict.fromkeys((finding.path, *finding.others)):
            found.setdefault(path, []).append((index, finding.code))
    return found


def _prose(text: str) -> "Markup":
    """Escape text, with the words between backticks as code."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _linked(text: str) -> "Markup":
    """Escape text, with addresses as links."""
    from markupsafe import Markup, escape

    address = re.compile(r"https?://[^\s<>&;\"']*[^\s<>&;\"'.,)]")
    return Markup(address.sub(r'<a href="\g<0>" rel="noreferrer">\g<0></a>', str(escape(text))))


def _ticks(places: Sequence[float], low: int, high: int) -> str:
    """Return vertical lines as the data of a path, in tenths of a per cent."""
    return "".join(f"M{place * 10:.1f} {low}V{high}" for place in places)


def _breakable(path: str) -> "Markup":
    """Escape the path of a norm; a line may end behind each slash."""
    from markupsafe import Markup, escape

    return Markup("/<wbr>").join(escape(part) for part in wording.plain(path).split("/"))
