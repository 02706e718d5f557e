"""The registry of checks, and how a check says what it found."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from normlab.doctor.findings import Finding, Severity, Skipped
from normlab.doctor.patient import Patient

__all__ = ["CHECKS", "Check", "Fault", "Found", "Need", "Texts", "check"]

Need: TypeAlias = Literal["data", "finite", "step", "optimizer", "steps", "padding"]
"""Something that a check asks of an examination beside the model; `finite` are numbers that can be measured."""

Found: TypeAlias = Iterable[Finding | Skipped]
Run: TypeAlias = Callable[[Patient], Found]


@dataclass(frozen=True)
class Check:
    """A check.

    Attributes:
        code: Its code, such as `NL303`.
        run: `patient -> findings`, and parts that were skipped.
        needs: Arguments of `examine` that it needs.
    """

    code: str
    run: Run
    needs: tuple[Need, ...] = ()

    @property
    def finds(self) -> str:
        """The fault in words: the first line of the docstring."""
        return (self.run.__doc__ or "").strip().split("\n")[0].rstrip(".")

    @property
    def measured_by(self) -> str:
        """The way it is measured: the rest of the docstring."""
        _, _, rest = (self.run.__doc__ or "").strip().partition("\n")
        return " ".join(rest.split())


CHECKS: dict[str, Check] = {}
"""All checks by code."""


def check(code: str, *needs: Need) -> Callable[[Run], Run]:
    """Register a check."""

    def register(run: Run) -> Run:
        CHECKS[code] = Check(code, run, needs)
        return run

    return register


class Fault(NamedTuple):
    """A norm with a fault, and the numbers that show it, the one that is compared with the threshold first."""

    path: str
    evidence: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Texts:
    """The words of a check about a fault.

    Attributes:
        title: The fault, in a few words.
        why: The harm.
        source: A paper or a thread.
        remedy: A line to paste; `{path}` stands for the path of the norm.
    """

    title: str
    why: str
    source: str
    remedy: str

    def finding(
        self,
        code: str,
        severity: Severity,
        faults: Sequence[Fault],
        *,
        threshold: float | None = None,
        certain: bool = True,
    ) -> Finding:
        """Return the finding for one or more norms with the fault; that of the first in the model is shown."""
        first = faults[0]
        return Finding(
            code=code,
            severity=severity,
            path=first.path,
            title=self.title,
            evidence={name: float(value) for name, value in first.evidence.items()},
            threshold=threshold,
            why=self.why,
            source=self.source,
            remedy=self.remedy.replace("{path}", first.path or "the model"),
            certain=certain,
            others=tuple(fault.path for fault in faults[1:]),
        )

    def findings(
        self,
        code: str,
        severity: Severity,
        faults: Sequence[Fault],
        *,
        threshold: float | None = None,
        certain: bool = True,
    ) -> Iterator[Finding]:
        """Yield the finding for norms with the fault, if there are any; see `finding`."""
        if faults:
            yield self.finding(code, severity, faults, threshold=threshold, certain=certain)

    def by_share(
        self, code: str, many: Sequence[Fault], few: Sequence[Fault], *, threshold: float
    ) -> Iterator[Finding]:
        """Yield a warning for the norms with many features that have the fault, and a note for those with few."""
        yield from self.findings(code, "warning", many, threshold=threshold, certain=False)
        yield from self.findings(code, "note", few, threshold=threshold, certain=False)
