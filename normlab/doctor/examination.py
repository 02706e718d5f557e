"""Make the checks of a patient, and put together what they found."""

import time
from collections.abc import Collection, Iterator
from dataclasses import replace
from fnmatch import fnmatchcase

from normlab.doctor.checks import inputs, state, static, statistics, training
from normlab.doctor.checks.measured import left_out
from normlab.doctor.checks.registry import CHECKS, Check
from normlab.doctor.checks.statistics import gaps, lag
from normlab.doctor.findings import Finding, Measurement, Skipped
from normlab.doctor.patient import Patient
from normlab.doctor.report import Report, collected
from normlab.doctor.skip import Skip
from normlab.errors import BadInput, nearest, one_line

__all__ = ["Examination", "chosen", "pattern"]

_GROUPS = (static, state, statistics, inputs, training)
"""Modules of checks, which register them when they are imported."""


def chosen(codes: Collection[str] | None) -> list[Check]:
    """Return the checks with these codes; `None` is all.

    Raises:
        BadInput: If there is no such check.
    """
    for code in codes or ():
        if code not in CHECKS:
            raise BadInput(f"Expected a code of a check, got `{code}`. {nearest(code, CHECKS)}")
    return [CHECKS[code] for code in sorted(CHECKS) if codes is None or code in codes]


def pattern(entry: str) -> tuple[str, str]:
    """Return code and glob of an entry such as `NL206@head*`.

    Raises:
        BadInput: If there is no such check.
    """
    code, _, glob = entry.partition("@")
    if code not in CHECKS:
        raise BadInput(f"Expected a code of a check to ignore, got `{entry}`. {nearest(code, CHECKS)}")
    return code, glob or "*"


class Examination:
    """The checks of a patient, one after another."""

    def __init__(self, patient: Patient, ignored: Collection[tuple[str, str]] = ()) -> None:
        """Take a patient, and what to ignore: codes with globs of paths."""
        self._patient, self._ignored = patient, ignored
        self._used: set[tuple[str, str]] = set()
        self._made_codes: set[str] = set()
        self._seconds: dict[str, float] = {}

    def report(self, checks: list[Check]) -> Report:
        """Make checks, and return what they found."""
        findings, skipped, passed = list[Finding](), list[Skipped](), list[str]()
        for check in checks:
            made = list(self._made(check))
            found = [one for one in made if isinstance(one, Finding)]
            skipped += [one for one in made if isinstance(one, Skipped)]
            kept = [one for finding in found if (one := self._kept(finding)) is not None]
            if found or not made:
                self._made_codes.add(check.code)
            findings += kept
            if not made:
                passed.append(check.code)
        findings += self._unused()
        started = time.perf_counter()
        numbers = self._measurements() if any("data" in check.needs for check in checks) else {}
        self._seconds["numbers"] = time.perf_counter() - started
        return Report(
            findings=collected(findings),
            skipped=tuple(skipped),
            measurements=numbers,
            model=type(self._patient.model).__name__,
            passed=tuple(passed),
            cost=self._seconds,
            thresholds=self._patient.thresholds,
        )

    def _made(self, check: Check) -> Iterator[Finding | Skipped]:
        """Make a check; yield what it found, or why it was skipped."""
        options, started = self._patient.options, time.perf_counter()
        lacking = [need for need in check.needs if need not in ("data", "finite") and getattr(options, need) is None]
        try:
            if lacking:
                raise Skip(f"no `{lacking[0]}` was given")
            if "data" in check.needs:
                self._patient.can_measure  # noqa: B018
            yield from check.run(self._patient)
            if "finite" in check.needs:
                yield from (Skipped(check.code, f"{reason}.") for reason in left_out(self._patient))
        except Skip as reason:
            yield Skipped(check.code, f"{reason}.")
        except BadInput:
            raise
        except Exception as error:
            yield Skipped(check.code, f"the check failed: {one_line(error, 200)}")
        finally:
            self._seconds[check.code] = time.perf_counter() - started

    def _kept(self, finding: Finding) -> Finding | None:
        """Return a finding without what is to be ignored; `None` where nothing is left."""
        paths = [finding.path, *finding.others]
        kept = list(paths)
        for code, glob in self._ignored:
            out = [path for path in paths if code == finding.code and (path == glob or fnmatchcase(path, glob))]
            if out:
                self._used.add((code, glob))
                kept = [path for path in kept if path not in out]
        if not kept:
            return None
        if kept[0] == finding.path:
            return replace(finding, others=tuple(kept[1:]))
        remedy = finding.remedy.replace(f"`{finding.path}`", f"`{kept[0]}`")  # whose numbers are not known
        return replace(finding, path=kept[0], others=tuple(kept[1:]), evidence={}, threshold=None, remedy=remedy)

    def _unused(self) -> Iterator[Finding]:
        for code, glob in self._ignored:
            if (code, glob) not in self._used and code in self._made_codes:
                yield Finding(
                    code=code,
                    severity="note",
                    path="",
                    title=f"nothing to ignore for `{code}@{glob}`",
                    evidence={},
                    threshold=None,
                    why="The entry hides nothing today, and may hide a fault tomorrow.",
                    source="",
                    remedy="# leave the entry out of `ignore`",
                )

    def _measurements(self) -> dict[str, Measurement]:
        try:
            self._patient.can_measure  # noqa: B018
            return {path: _measurement(self._patient, path) for path in self._patient.trained}
        except Exception:  # for which each check has given its reason
            return {}


def _measurement(patient: Patient, path: str) -> Measurement:
    """Return the numbers of a norm."""
    site, found = patient.site_of(path), patient.pooled[path]
    running = patient.running_of(path)
    both = running is not None and patient.modes.known
    apart, expected = gaps(patient, path) if both else (float("nan"), float("nan"))
    lagging = lag(patient, path)
    mean, var = running if running is not None else (None, None)
    return Measurement(
        path=path,
        kind=site.kind,
        mean=found.mean,
        var=found.var,
        running_mean=mean,
        running_var=var,
        effective=found.n_eff,
        gap=apart,
        expected_gap=expected,
        lag=float("nan") if lagging is None else lagging[0],
    )
