"""The rule by which measurements decide about formulations and kernels of a norm.

With the backward pass, by medians and by minima alike:
    saving only `x` is taken where it is at least 1.1 times as fast as ours;
    a kernel is written where neither reaches 0.75 of the bandwidth of a copy, and the prototype in Pallas is at
    least 1.3 times as fast as the faster of both.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from benchmarks.accelerator.cases import BOTH, OURS, PALLAS, SAVING
from benchmarks.accelerator.stage import Row

__all__ = ["Decision", "decisions"]

FAST_ENOUGH, FASTER, MUCH_FASTER = 0.75, 1.1, 1.3


@dataclass(frozen=True)
class Decision:
    """Decision about a norm.

    Attributes:
        norm: Its name.
        cases: Cases measured, as a shape with a dtype.
        saving: Those at which saving only `x` is taken.
        slow: Those at which no formulation for XLA is fast enough.
        kernel: Those at which a kernel is worth writing.
        measured: Contenders that were measured at every case.
    """

    norm: str
    cases: tuple[str, ...]
    saving: tuple[str, ...]
    slow: tuple[str, ...]
    kernel: tuple[str, ...]
    measured: frozenset[str]

    def __str__(self) -> str:
        """Return the decision as a sentence."""
        return f"{self.norm}: {self._saving()}; {self._kernel()}."

    def _saving(self) -> str:
        if self.saving:
            return f"save only `x` {self._where(self.saving)}"
        return "save what ours saves" if SAVING in self.measured else "open, as saving only `x` was not measured"

    def _kernel(self) -> str:
        if self.kernel:
            return f"write a kernel {self._where(self.kernel)}"
        if not self.slow:
            return "no kernel, XLA is fast enough"
        slow = f"XLA is slow {self._where(self.slow)}"
        if PALLAS not in self.measured:
            return f"open, {slow} and no kernel was measured"
        return f"no kernel, {slow} but the kernel in Pallas is not {MUCH_FASTER} times as fast"

    def _where(self, some: tuple[str, ...]) -> str:
        return "everywhere" if some == self.cases else f"at {', '.join(some)}"


def decisions(rows: Iterable[Row]) -> list[Decision]:
    """Decide about each norm that was measured with ours.

    Args:
        rows: All rows.
    """
    norms: dict[str, dict[str, dict[str, tuple[float, float]]]] = {}
    for row in rows:
        if row["kind"] == "layer" and row.get("what") == BOTH:
            of_case = norms.setdefault(str(row["norm"]), {}).setdefault(f"{row['shape']} {row['dtype']}", {})
            of_case[str(row["contender"])] = (float(str(row["fraction"])), float(str(row["fraction_least"])))
    complete = {norm: {case: found for case, found in cases.items() if OURS in found} for norm, cases in norms.items()}
    return [_decision(norm, cases) for norm, cases in complete.items() if cases]


def _decision(norm: str, cases: Mapping[str, Mapping[str, tuple[float, float]]]) -> Decision:
    """Decide from the fractions of contenders at each case."""
    best = {
        case: max((found[name] for name in (OURS, SAVING) if name in found), key=min) for case, found in cases.items()
    }
    slow = tuple(case for case, fractions in best.items() if max(fractions) < FAST_ENOUGH)
    return Decision(
        norm,
        tuple(cases),
        tuple(case for case, found in cases.items() if _faster(found.get(SAVING), found[OURS], FASTER)),
        slow,
        tuple(case for case in slow if _faster(cases[case].get(PALLAS), best[case], MUCH_FASTER)),
        frozenset.intersection(*map(frozenset, cases.values())),
    )


def _faster(fractions: tuple[float, float] | None, than: tuple[float, float], times: float) -> bool:
    """Check that medians and minima are that many times as fast."""
    return fractions is not None and all(a >= times * b for a, b in zip(fractions, than, strict=True))
