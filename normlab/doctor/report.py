"""The report of an examination: findings, what was not checked, and the numbers of each norm."""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from normlab.doctor.findings import ORDER, Finding, Measurement, Severity, Skipped
from normlab.doctor.thresholds import Thresholds
from normlab.expect import refusal

__all__ = ["Report"]


@dataclass(frozen=True)
class Report:
    """The result of an examination.

    Attributes:
        findings: The faults, the worst first.
        skipped: Checks that were not made, with the reasons.
        measurements: Numbers of each norm by path.
        model: Name of the model's class.
        passed: Codes of the checks that were made and found nothing.
        cost: Seconds by stage; not part of what `json` writes unless it is asked for.
        thresholds: The bounds of the checks, which the page draws.
    """

    findings: tuple[Finding, ...]
    skipped: tuple[Skipped, ...]
    measurements: Mapping[str, Measurement]
    model: str = ""
    passed: tuple[str, ...] = ()
    cost: Mapping[str, float] | None = None
    thresholds: Thresholds = field(default_factory=Thresholds)

    @property
    def by_code(self) -> dict[str, tuple[Finding, ...]]:
        """The findings by code."""
        codes = dict.fromkeys(finding.code for finding in self.findings)
        return {code: tuple(one for one in self.findings if one.code == code) for code in codes}

    def ok(self, at: Severity = "warning") -> bool:
        """Return whether no finding is as bad as a severity, or worse.

        Raises:
            BadInput: If there is no such severity.
        """
        if at not in ORDER:
            raise refusal("`at` to be `error`, `warning` or `note`", at)
        return all(ORDER.index(finding.severity) > ORDER.index(at) for finding in self.findings)

    def json(self, *, timings: bool = False) -> str:
        """Return the report as JSON, the same bytes for the same model and input.

        Args:
            timings: Whether to write the seconds of each stage, too.
        """
        plain: dict[str, object] = {
            "model": self.model,
            "findings": [_plain(asdict(finding)) for finding in self.findings],
            "passed": list(self.passed),
            "skipped": [asdict(one) for one in self.skipped],
            "measurements": [_plain(vars(one)) for one in self.measurements.values()],
        }
        if timings:
            plain["seconds"] = dict(self.cost or {})
        return json.dumps(plain, indent=2, allow_nan=False) + "\n"

    def table(self, width: int = 100) -> str:
        """Return the report as text, at most `width` columns wide; needs `rich`."""
        from normlab.doctor.display.text import table

        return table(self, width)

    def html(self, path: str | Path) -> Path:
        """Write the report as one HTML file without scripts; needs `jinja2`.

        Args:
            path: The file; it must not exist as a folder.

        Returns:
            The path.
        """
        from normlab.doctor.display.page import write

        return write(self, Path(path))

    def __str__(self) -> str:
        lines = [_line(finding) for finding in self.findings] or ["No fault was found."]
        return "\n".join([*lines, *(f"{one.code} was not checked: {one.why}" for one in self.skipped)])


def _line(finding: Finding) -> str:
    where = f" at `{finding.path}`" if finding.path else ""
    more = f" and {len(finding.others)} more" if finding.others else ""
    return f"{finding.code} {finding.severity}{where}{more}: {finding.title}. {finding.remedy}"


def _plain(values: Mapping[str, object]) -> dict[str, object]:
    """Return values as JSON has them: arrays as lists, and no number for one that is not finite."""
    return {name: _value(value) for name, value in values.items()}


def _value(value: object) -> object:
    if isinstance(value, np.ndarray | list | tuple):
        return [_value(one) for one in (value.tolist() if isinstance(value, np.ndarray) else value)]
    if isinstance(value, Mapping):
        return _plain(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value


def collected(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return findings sorted, the worst first."""
    return tuple(sorted(findings, key=Finding.sort_key))
