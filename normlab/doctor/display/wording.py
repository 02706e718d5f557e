"""Words that the text and the page of a report share: the verdict, numbers beside their bounds, reasons once each."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Protocol

from normlab.doctor.findings import ORDER, Finding, Measurement, Skipped
from normlab.doctor.thresholds import Thresholds

__all__ = [
    "Examined",
    "bound",
    "counts",
    "is_healthy",
    "listed",
    "measured",
    "number",
    "others",
    "plain",
    "reasons",
    "sentence",
    "verdict",
]


class Examined(Protocol):
    """The parts of a report that are shown."""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The faults, the worst first."""
        ...

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """Checks that were not made."""
        ...

    @property
    def measurements(self) -> Mapping[str, Measurement]:
        """Numbers of each norm by path."""
        ...

    @property
    def model(self) -> str:
        """Name of the model's class."""
        ...

    @property
    def passed(self) -> tuple[str, ...]:
        """Codes of the checks that found nothing."""
        ...

    @property
    def thresholds(self) -> Thresholds:
        """The bounds of the checks."""
        ...


def verdict(report: Examined) -> str:
    """Return one sentence: that the model is healthy, or what to fix first."""
    if not is_healthy(report):
        first = report.findings[0]
        where = f", at `{plain(first.path)}`" if first.path else ""
        return f"Fix first: {first.code}, {plain(first.title).rstrip('.')}{where}{others(first)}."
    if report.findings:
        found = f": {_passed(report)}" if report.passed else ""
        return f"Healthy but for {_many(len(report.findings), 'note')}{found}."
    return f"Healthy: {_passed(report)}." if report.passed else "Nothing was checked."


def is_healthy(report: Examined) -> bool:
    """Return whether no finding is worse than a note."""
    return all(finding.severity == "note" for finding in report.findings)


def counts(report: Examined) -> str:
    """Return the numbers that the verdict does not have: of findings by severity, and of checks by result."""
    found = Counter(finding.severity for finding in report.findings)
    parts = [_many(found[severity], severity) for severity in ORDER if found[severity]]
    said = [] if is_healthy(report) else [", ".join(parts), *[_passed(report)] * bool(report.passed)]
    if codes := {one.code for one in report.skipped}:
        said.append(f"{_many(len(codes), 'check')} {'was' if len(codes) == 1 else 'were'} not made")
    return f"{'; '.join(said)}." if said else ""


def others(finding: Finding) -> str:
    """Return ` and 39 more` for a fault of 40 norms; empty for one."""
    return f" and {len(finding.others)} more" if finding.others else ""


def measured(finding: Finding) -> tuple[tuple[str, str, str], ...]:
    """Return the names and numbers of a finding's evidence, the first with the bound that it crossed."""
    rows = [(plain(name).replace("_", " "), number(value), "") for name, value in finding.evidence.items()]
    if finding.threshold is None:
        return tuple(rows)
    if not rows:
        return (("threshold", number(finding.threshold), ""),)
    crossed = bound(next(iter(finding.evidence.values())), finding.threshold)
    return ((*rows[0][:2], crossed), *rows[1:])


def bound(value: float, threshold: float) -> str:
    """Return a threshold with its relation to a value: `> 0.25` for a value above 0.25."""
    if value > threshold:
        return f"> {number(threshold)}"
    return f"< {number(threshold)}" if value < threshold else f"(threshold {number(threshold)})"


def number(value: float) -> str:
    """Write a number with three digits.

    >>> [number(value) for value in (0.8312, 19292.4, 3.84e-6, 40, float("nan"))]
    ['0.831', '19,292', '3.84e-6', '40', 'NaN']
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "infinity" if value > 0 else "-infinity"
    size = abs(value)
    if value == int(value) and size < 1e7:
        return f"{int(value):,}"
    if 1e-3 <= size < 1e7:
        return f"{value:,.0f}" if size >= 1e3 else f"{value:.3g}"
    digits, _, exponent = f"{value:.2e}".partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(exponent)}"


def reasons(skipped: Iterable[Skipped]) -> dict[str, tuple[str, ...]]:
    """Return the codes of the checks that were not made by the reason, each once."""
    found: dict[str, dict[str, None]] = {}
    for one in skipped:
        found.setdefault(sentence(one.why), {})[one.code] = None
    return {why: tuple(codes) for why, codes in found.items()}


def listed(codes: Iterable[str]) -> str:
    """Write codes as a list.

    >>> listed(["NL204", "NL205", "NL206"])
    'NL204, NL205 and NL206'
    """
    *front, last = codes
    return f"{', '.join(front)} and {last}" if front else last


def plain(text: str) -> str:
    """Return text on one line, without characters that control a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text).strip()


def sentence(text: str) -> str:
    """Return text on one line with a capital letter and a full stop."""
    text = plain(text).rstrip(".")
    return f"{text[:1].upper()}{text[1:]}."


def _passed(report: Examined) -> str:
    return f"{_many(len(report.passed), 'check')} found nothing"


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
