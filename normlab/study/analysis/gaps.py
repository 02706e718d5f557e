"""Paired differences between norms, and verdicts that failures do not contradict."""

import dataclasses
from collections.abc import Mapping, Sequence

from normlab.study.analysis.estimates import (
    BETTER,
    EQUIVALENT,
    INCONCLUSIVE,
    WORSE,
    Difference,
    Estimate,
    holm,
    judge,
    mean_interval,
    outliers,
    paired,
    runs_to_see,
    seeds_needed,
    sign_test,
    verdict,
)
from normlab.study.analysis.results import LEVEL, CellResult, Gap, Point, seeds_alone
from normlab.study.design.records import FAILURES


def with_failures_counted(column: Sequence[CellResult]) -> list[CellResult]:
    """Set the error that a failed run counts as in a column: chance, or the worst error there if that is worse."""
    errors = [point.error for cell in column for point in cell.points]
    chances = [cell.failure_error for cell in column]
    worst = max((error for error in (*errors, *chances) if error is not None), default=None)
    return [
        dataclasses.replace(
            cell,
            failure_error=worst,
            error_counting_failures=counting_failures(cell.points, worst),
            untuned=cell.untuned
            and dataclasses.replace(
                cell.untuned, error_counting_failures=counting_failures(cell.untuned.points, worst)
            ),
        )
        for cell in column
    ]


def counting_failures(points: Sequence[Point], worst: float | None) -> Estimate:
    """Estimate the error over all runs, with `worst` for failed ones; no estimate where that is needed and unknown."""
    if worst is None and any(point.status in FAILURES for point in points):
        return Estimate(mean=None, interval=None, sd=None, n=0)
    return mean_interval([_counted(point, worst) for point in points], LEVEL)


def _counted(point: Point, worst: float | None) -> float | None:
    return worst if point.status in FAILURES else point.error


def gaps_to(column: Sequence[CellResult], reference: str, margin: float, claims: bool) -> dict[str, Gap]:
    """Compare every norm of a column to a reference, with p-values adjusted over the column."""
    against = next(cell for cell in column if cell.norm == reference)
    cells = [cell for cell in column if cell.norm != reference and not cell.invalid]
    trained = _Family([difference_between(cell.points, against.points) for cell in cells], margin)
    some_failed = any(cell.failures.k for cell in (against, *cells))
    counted = (
        _Family([difference_between(*_all_runs(cell, against)) for cell in cells], margin) if some_failed else trained
    )
    return {
        cell.norm: _gap(cell, against, trained, counted, place, claims)
        for place, cell in enumerate(cells)
        if trained.differences[place].mean is not None
    }


class _Family:
    """The differences of a column, and the verdict of each."""

    def __init__(self, differences: Sequence[Difference], margin: float) -> None:
        self.differences, self.margin = differences, margin
        self.adjusted = holm([difference.p for difference in differences])
        self.tests = sum(p is not None for p in self.adjusted)
        self.shown = [self._shown(*both) for both in zip(differences, self.adjusted, strict=True)]

    def _shown(self, difference: Difference, p_holm: float | None) -> str:
        shown = judge(difference, self.margin)
        unsupported = shown in (BETTER, WORSE) and (p_holm is None or p_holm > 1 - LEVEL)
        return INCONCLUSIVE if unsupported else shown

    def needed(self, place: int) -> int | None:
        """Estimate the total number of seeds that would decide."""
        difference = self.differences[place]
        if difference.mean is None:
            return None
        beyond = abs(difference.mean) > self.margin  # a claim that Holm corrects
        level = 1 - (1 - LEVEL) / self.tests if beyond and self.tests else LEVEL
        needed = seeds_needed(difference.mean, difference.sd, self.margin, level=level)
        return None if needed is None else max(needed, difference.n + 1, 0 if beyond else runs_to_see())


def difference_between(points: Sequence[Point], against: Sequence[Point]) -> Difference:
    """Compare the errors of two configurations, seed by seed."""
    return _paired({point.seed: point.error for point in points}, {point.seed: point.error for point in against})


def _paired(ours: Mapping[int, float | None], theirs: Mapping[int, float | None]) -> Difference:
    seeds = sorted(ours.keys() | theirs.keys())
    return paired([ours.get(seed) for seed in seeds], [theirs.get(seed) for seed in seeds], LEVEL)


def _gap(cell: CellResult, against: CellResult, trained: _Family, counted: _Family, place: int, claims: bool) -> Gap:
    alone, alone_against = _failed_alone(cell, against), _failed_alone(against, cell)
    gap = Gap(
        reference=against.norm,
        difference=trained.differences[place],
        counted=counted.differences[place],
        p_holm=trained.adjusted[place],
        p_fails_more=sign_test(alone, alone_against),
        p_fails_less=sign_test(alone_against, alone),
        when_trained=trained.shown[place],
        verdict=None,
        note="",
        carried_by=(),
        seeds_needed=None,
    )
    contradicted = _contradicted(gap, counted.shown[place], cell, against)
    shown = INCONCLUSIVE if contradicted else gap.when_trained
    undecided = gap.when_trained == INCONCLUSIVE
    carried_by = _carried_by(gap.difference, cell, against, trained.margin) if undecided else ()
    return dataclasses.replace(
        gap,
        verdict=shown if claims else None,
        note=contradicted or (_why_undecided(gap.difference, carried_by, trained.margin) if undecided else ""),
        carried_by=carried_by,
        seeds_needed=trained.needed(place) if undecided else None,
    )


def _contradicted(gap: Gap, counted: str, cell: CellResult, against: CellResult) -> str:
    """Describe how failures contradict the verdict over successful runs; empty where they do not.

    Failures of the norm that is worse anyway can only add to that, so those of the other one are asked for.
    """
    shown, ours, theirs = gap.when_trained, cell.failures, against.failures
    failures, more = {
        BETTER: (ours.k, gap.fails_more),
        WORSE: (theirs.k, gap.fails_less),
        EQUIVALENT: (ours.k + theirs.k, gap.fails_more or gap.fails_less),
        INCONCLUSIVE: (0, False),
    }[shown]
    if not failures or (counted == shown and not more):
        return ""
    failed = f"{ours.k} of {ours.n} runs failed, against {theirs.k} of {theirs.n}"
    return f"{shown} over runs that ended well, but {failed}"


def _why_undecided(difference: Difference, carried_by: Sequence[int], margin: float) -> str:
    """Name the reason for an open verdict besides the width of an interval."""
    if verdict(difference.interval, margin) == EQUIVALENT and difference.n < runs_to_see():
        return f"alike so far; equivalent takes {runs_to_see()} runs"
    return f"{seeds_alone(carried_by)} it open" if carried_by else ""


def _carried_by(difference: Difference, cell: CellResult, against: CellResult, margin: float) -> tuple[int, ...]:
    """Find the seeds with outlying differences, where the interval would decide without them."""
    if verdict(difference.interval, margin) != INCONCLUSIVE:
        return ()
    values = {point.seed: point.error for point in cell.points if point.error is not None}
    others = {point.seed: point.error for point in against.points if point.error is not None}
    seeds = sorted(values.keys() & others.keys())
    carrying = tuple(seeds[place] for place in outliers([values[seed] - others[seed] for seed in seeds]))
    rest = [seed for seed in seeds if seed not in carrying]
    without = _paired({seed: values[seed] for seed in rest}, {seed: others[seed] for seed in rest})
    return () if verdict(without.interval, margin) == INCONCLUSIVE else carrying


def _all_runs(cell: CellResult, against: CellResult) -> tuple[list[Point], list[Point]]:
    """Return the runs of both sides with errors, failed ones counted."""

    def counted(one: CellResult) -> list[Point]:
        return [dataclasses.replace(point, error=_counted(point, one.failure_error)) for point in one.points]

    return counted(cell), counted(against)


def _failed_alone(cell: CellResult, other: CellResult) -> int:
    """Count the seeds of both at which a norm failed and the other did not."""
    sound = {point.seed for point in other.points if point.status not in FAILURES}
    return sum(point.status in FAILURES and point.seed in sound for point in cell.points)
