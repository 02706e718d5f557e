"""From records to what they show: one pure function, the same result for the same records in any order.

Every number of the report is a field here. Errors and differences are fractions, times seconds; what the data do not
give is `None`. The protocol: errors of the evaluation runs that ended well, each norm paired by seed with the baseline
in the same cell, p-values adjusted by Holm over the norms of one problem and factor value, failures counted beside the
error.
"""

import dataclasses
import json
import math
import statistics as quantiles
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from normlab.study import plan
from normlab.study.advice import advise
from normlab.study.config import EVALUATE, FAILURES, TUNE, Cell, Comparison, Problem, Record, Settings, Value
from normlab.study.statistics import (
    BETTER,
    INCONCLUSIVE,
    WORSE,
    Difference,
    Estimate,
    Interval,
    holm,
    mean_interval,
    minimal_difference,
    paired,
    seeds_needed,
    verdict,
    wilson,
)

LEVEL = 0.95
SEEDS_FOR_CLAIMS = 10
"""Results of fewer evaluation seeds are called exploratory."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One evaluation run: `error` is `None` unless `status` is `ok`."""

    seed: int
    status: str
    reason: str
    error: float | None
    train_loss: float | None


@dataclass(frozen=True, kw_only=True)
class TuningPoint:
    """One learning rate: median validation error over seeds, `None` where the median run failed, and its failures."""

    learning_rate: float
    error: float | None
    failures: int
    runs: int


@dataclass(frozen=True, kw_only=True)
class Failures:
    """`k` of `n` runs failed; `interval` is Wilson's."""

    k: int
    n: int
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class Gap:
    """A norm against a reference in the same cell, negative where the norm is lower.

    Attributes:
        reference: The norm it is compared with.
        difference: Estimate and tests over runs that ended well.
        p_holm: `difference.p` adjusted over the norms of this problem and factor value.
        verdict: What the interval shows against the margin; `better` and `worse` also need `p_holm` within the level.
            `None` where the tier makes no claims.
        seeds_needed: About how many seeds in total would decide; `None` where decided or out of reach.
    """

    reference: str
    difference: Difference
    p_holm: float | None
    verdict: str | None
    seeds_needed: int | None


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """One norm at one factor value.

    Attributes:
        counts: Evaluation runs by status, and `missing` for those without a record.
        invalid: Why the cell cannot be run at all, else empty.
        learning_rate: The chosen one, or `None` while tuning is incomplete.
        edge: Whether it is the smallest or largest of the grid, so that the norm may be less than fully tuned.
        tuning: The whole learning-rate curve.
        points: Every evaluation run, by seed.
        error: Over runs that ended well.
        error_counting_failures: Over all runs that ended, a failed one counted at the metric's chance level.
        train_loss: Mean over runs that ended well.
        gap: Against the baseline; `None` for the baseline itself and without data.
        change: Against the same norm at the factor's reference value; `None` there and without data.
    """

    problem: str
    norm: str
    value: Value
    counts: Mapping[str, int]
    invalid: str
    learning_rate: float | None
    edge: bool
    tuning: tuple[TuningPoint, ...]
    points: tuple[Point, ...]
    error: Estimate
    error_counting_failures: Estimate
    failures: Failures
    train_loss: float | None
    gap: Gap | None
    change: Difference | None


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Which norms remain at one factor value.

    Attributes:
        best: The norm with the lowest mean error among those without failures; `None` where there is none.
        gaps: Every other norm against `best`; a gap's `verdict` is `worse` where that is shown.
        candidates: Norms without failures that are not shown worse than `best` by more than the margin, in order of
            mean error.
    """

    value: Value
    best: str | None
    gaps: Mapping[str, Gap]
    candidates: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ProblemResult:
    """All cells of one problem.

    Attributes:
        minimal_difference: Differences of about this size are found with a chance of 80 % at this number of seeds, at
            the median spread of the problem's paired differences.
    """

    name: str
    title: str
    metric: str
    chance: float
    cells: tuple[CellResult, ...]
    standings: tuple[Standing, ...]
    minimal_difference: float | None

    def cell(self, norm: str, value: Value) -> CellResult:
        """The cell of a norm and a factor value."""
        return next(cell for cell in self.cells if (cell.norm, cell.value) == (norm, value))


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of one cell: median over runs, and the compile they share."""

    problem: str
    norm: str
    value: Value
    run: float | None
    compile: float | None


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What the records of a comparison show.

    Attributes:
        names: Norm string -> what people call it.
        factor: `name`, `label`, `log`, `reference`.
        values: Factor values, in order.
        baseline: The norm that others are compared with.
        baseline_note: Why that is not the declared one, else empty.
        claims: Whether the tier makes claims.
        exploratory: Whether there are fewer seeds than `SEEDS_FOR_CLAIMS`.
        runs: Runs `planned` (tuning included), `done` and `missing`.
        advice: One sentence.
        timings: In order of the cells. Left out of `to_json`: they alone differ when the same runs are repeated.
    """

    comparison: str
    tier: str
    claims: bool
    exploratory: bool
    seeds: int
    level: float
    margin: float
    baseline: str
    baseline_note: str
    norms: tuple[str, ...]
    names: Mapping[str, str]
    factor: Mapping[str, Any]
    values: tuple[Value, ...]
    problems: tuple[ProblemResult, ...]
    runs: Mapping[str, int]
    advice: str
    timings: tuple[Timing, ...]

    @property
    def cells(self) -> tuple[CellResult, ...]:
        """The cells of all problems."""
        return tuple(cell for problem in self.problems for cell in problem.cells)


def analyse(comparison: Comparison, settings: Settings, records: Iterable[Record]) -> Analysis:
    """Say what the records show about a comparison.

    Args:
        comparison: The question, with baseline and margin.
        settings: What was asked for; records of other runs are left out.
        records: In any order; fewer than planned is fine.

    Returns:
        The analysis; equal for equal records.
    """
    kept = plan.relevant(comparison, settings, sorted(records, key=lambda record: record.key))
    tier = comparison.tiers[settings.tier]
    baseline, note = _baseline(comparison, settings)
    by_cell: dict[Cell, list[Record]] = {cell: [] for cell in plan.cells(settings, comparison)}
    for record in kept:
        by_cell[record.run.cell].append(record)
    problems = tuple(
        _problem(plan.problem_named(comparison, name), by_cell, baseline, settings, comparison, tier.claims)
        for name in settings.problems
    )
    factor = comparison.factor
    bare = Analysis(
        comparison=comparison.name,
        tier=settings.tier,
        claims=tier.claims,
        exploratory=settings.seeds < SEEDS_FOR_CLAIMS,
        seeds=settings.seeds,
        level=LEVEL,
        margin=comparison.margin,
        baseline=baseline,
        baseline_note=note,
        norms=settings.norms,
        names={norm: norm_name(norm) for norm in settings.norms},
        factor={
            "name": factor.name,
            "label": factor.label,
            "log": factor.log,
            "reference": factor.reference if factor.reference in settings.values else None,
        },
        values=settings.values,
        problems=problems,
        runs=_count_runs(by_cell, settings),
        advice="",
        timings=tuple(_timing(cell, found) for cell, found in by_cell.items()),
    )
    return dataclasses.replace(bare, advice=advise(bare))


def to_json(analysis: Analysis) -> str:
    """Give the analysis as JSON text, the same for runs that are repeated: without timings."""
    plain = dataclasses.asdict(analysis)
    del plain["timings"]
    return json.dumps(plain, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def norm_name(norm: str) -> str:
    """What people call a norm: its title, with the options that its string names; the string itself if unknown."""
    from normlab import norms

    try:
        spec = norms.get(norm)
    except ValueError:
        return norm
    _, _, options = norm.partition(":")
    return f"{spec.title} ({options})" if options else spec.title


def _baseline(comparison: Comparison, settings: Settings) -> tuple[str, str]:
    if comparison.baseline in settings.norms:
        return comparison.baseline, ""
    first = settings.norms[0]
    return first, f"The declared baseline `{comparison.baseline}` is not among the norms; `{first}` takes its place."


def _problem(
    problem: Problem,
    by_cell: Mapping[Cell, Sequence[Record]],
    baseline: str,
    settings: Settings,
    comparison: Comparison,
    claims: bool,
) -> ProblemResult:
    margin = comparison.margin
    cells: list[CellResult] = []
    standings: list[Standing] = []
    for value in settings.values:
        column = [
            _cell(cell, found, problem, settings)
            for cell, found in by_cell.items()
            if (cell.problem, cell.value) == (problem.name, value)
        ]
        gaps = _gaps(column, baseline, margin, claims)
        cells += [dataclasses.replace(cell, gap=gaps.get(cell.norm)) for cell in column]
        standings.append(_standing(value, column, margin, claims))
    return ProblemResult(
        name=problem.name,
        title=problem.title,
        metric=problem.metric,
        chance=problem.chance,
        cells=tuple(_with_change(cell, cells, comparison.factor.reference) for cell in cells),
        standings=tuple(standings),
        minimal_difference=_minimal_difference(cells, settings.seeds),
    )


def _cell(cell: Cell, records: Sequence[Record], problem: Problem, settings: Settings) -> CellResult:
    tuned = [record for record in records if record.run.stage == TUNE]
    runs = sorted((r for r in records if r.run.stage == EVALUATE), key=lambda record: record.run.seed)
    points = tuple(_point(record) for record in runs)
    invalid = next((r.reason or "cannot be run" for r in records if r.status == "invalid"), "")
    complete = len(tuned) == len(plan.tuning_runs(cell, settings))
    choice = plan.choose_learning_rate(tuned) if complete else None
    failed = sum(point.status in FAILURES for point in points)
    return CellResult(
        problem=cell.problem,
        norm=cell.norm,
        value=cell.value,
        counts=_counts(points, 0 if invalid else settings.seeds),
        invalid=invalid,
        learning_rate=choice.learning_rate if choice else None,
        edge=choice.edge if choice else False,
        tuning=_tuning(tuned),
        points=points,
        error=mean_interval([point.error for point in points], LEVEL),
        error_counting_failures=mean_interval(
            [problem.chance if point.status in FAILURES else point.error for point in points], LEVEL
        ),
        failures=Failures(k=failed, n=len(points), interval=wilson(failed, len(points), LEVEL)),
        train_loss=mean_interval([point.train_loss for point in points]).mean,
        gap=None,
        change=None,
    )


def _point(record: Record) -> Point:
    ended_well = record.status == "ok"
    return Point(
        seed=record.run.seed,
        status=record.status,
        reason=record.reason,
        error=_finite(record.metrics.get("test")) if ended_well else None,
        train_loss=_finite(record.metrics.get("train_loss")) if ended_well else None,
    )


def _counts(points: Sequence[Point], planned: int) -> dict[str, int]:
    counts = {status: 0 for status in ("ok", *FAILURES)}
    for point in points:
        counts[point.status] = counts.get(point.status, 0) + 1
    return counts | {"missing": max(0, planned - len(points))}


def _tuning(records: Sequence[Record]) -> tuple[TuningPoint, ...]:
    """The learning-rate curve, judged as the choice is: a failed run is worse than any error."""
    by_rate: dict[float, list[Record]] = {}
    for record in records:
        if record.status != "invalid":
            by_rate.setdefault(record.run.learning_rate, []).append(record)
    return tuple(
        TuningPoint(
            learning_rate=rate,
            error=_finite(quantiles.median(sorted(plan.validation_error(record) for record in found))),
            failures=sum(record.status in FAILURES for record in found),
            runs=len(found),
        )
        for rate, found in sorted(by_rate.items())
    )


def _gaps(column: Sequence[CellResult], reference: str, margin: float, claims: bool) -> dict[str, Gap]:
    """Every norm of a column against one of them, p-values adjusted over the column."""
    against = next(cell for cell in column if cell.norm == reference)
    norms = [cell.norm for cell in column if cell.norm != reference and not cell.invalid]
    differences = [_difference(cell, against) for cell in column if cell.norm in norms]
    adjusted = holm([difference.p for difference in differences])
    return {
        norm: _gap(reference, difference, p, margin, claims)
        for norm, difference, p in zip(norms, differences, adjusted, strict=True)
        if difference.mean is not None
    }


def _difference(cell: CellResult, against: CellResult) -> Difference:
    ours, theirs = ({point.seed: point.error for point in side.points} for side in (cell, against))
    seeds = sorted(ours.keys() | theirs.keys())
    return paired([ours.get(seed) for seed in seeds], [theirs.get(seed) for seed in seeds], LEVEL)


def _with_change(cell: CellResult, cells: Sequence[CellResult], reference: Value | None) -> CellResult:
    """Compare a cell with the same norm at the reference value, paired by seed."""
    against = next((other for other in cells if (other.norm, other.value) == (cell.norm, reference)), None)
    if against is None or against is cell:
        return cell
    change = _difference(cell, against)
    return cell if change.mean is None else dataclasses.replace(cell, change=change)


def _gap(reference: str, difference: Difference, p_holm: float | None, margin: float, claims: bool) -> Gap:
    shown = verdict(difference.interval, margin)
    if shown in (BETTER, WORSE) and (p_holm is None or p_holm > 1 - LEVEL):
        shown = INCONCLUSIVE
    needed = seeds_needed(difference.mean, difference.sd, margin, level=LEVEL) if shown == INCONCLUSIVE else None
    return Gap(
        reference=reference,
        difference=difference,
        p_holm=p_holm,
        verdict=shown if claims else None,
        seeds_needed=None if needed is None else max(needed, difference.n + 1),
    )


def _standing(value: Value, column: Sequence[CellResult], margin: float, claims: bool) -> Standing:
    sound = sorted(
        (cell.error.mean, index, cell.norm)
        for index, cell in enumerate(column)
        if cell.error.mean is not None and not cell.failures.k
    )
    if not sound:
        return Standing(value=value, best=None, gaps={}, candidates=())
    best = sound[0][2]
    gaps = _gaps(column, best, margin, claims)
    candidates = tuple(norm for _, _, norm in sound if norm == best or gaps[norm].verdict != WORSE)
    return Standing(value=value, best=best, gaps=gaps, candidates=candidates)


def _minimal_difference(cells: Sequence[CellResult], seeds: int) -> float | None:
    spreads = [cell.gap.difference.sd for cell in cells if cell.gap and cell.gap.difference.sd is not None]
    return _finite(minimal_difference(quantiles.median(sorted(spreads)), seeds)) if spreads else None


def _count_runs(by_cell: Mapping[Cell, Sequence[Record]], settings: Settings) -> dict[str, int]:
    done = sum(len(records) for records in by_cell.values())
    missing = sum(_missing(records, settings) for records in by_cell.values())
    return {"planned": done + missing, "done": done, "missing": missing}


def _missing(records: Sequence[Record], settings: Settings) -> int:
    if any(record.status == "invalid" for record in records):
        return 0
    return max(0, plan.runs_per_cell(settings) - len(records))


def _timing(cell: Cell, records: Sequence[Record]) -> Timing:
    def median(name: str) -> float | None:
        seconds = sorted(record.timing[name] for record in records if name in record.timing)
        return quantiles.median(seconds) if seconds else None

    return Timing(problem=cell.problem, norm=cell.norm, value=cell.value, run=median("run"), compile=median("compile"))


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
