"""From records to what they show: one pure function, the same result for the same records in any order.

Every number of the report is a field here. Errors and differences are in the metric's own unit (fractions where it is
shown in percent), times seconds; what the data do not give is `None`. The protocol: errors of the evaluation runs that
ended well, each norm paired by seed with the baseline in the same column, p-values adjusted by Holm over the norms of
one column (a problem, a curve, a factor value), failures counted beside the error.
"""

import dataclasses
import json
import math
import statistics as quantiles
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from normlab.study import plan
from normlab.study.config import (
    FAILURES,
    TUNE,
    Cell,
    Comparison,
    Curve,
    Metric,
    Problem,
    Record,
    Run,
    Series,
    Settings,
    Value,
)
from normlab.study.plan import CellPlan, Place, Plan
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
    """One learning rate: median validation error over seeds, `None` where the median run failed, and its failures.

    Attributes:
        statuses: How many runs failed in which way.
    """

    learning_rate: float
    error: float | None
    failures: int
    runs: int
    statuses: Mapping[str, int]


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
class Basin:
    """The learning rates around the best that are within the margin of its median validation error.

    Attributes:
        low: The smallest of them.
        high: The largest of them.
        open_low: Whether `low` is the smallest that was tried: the basin may go on.
        open_high: Likewise for `high`.
    """

    low: float
    high: float
    open_low: bool
    open_high: bool

    @property
    def width(self) -> float:
        """The ratio of its ends; 1 where only the best rate is within the margin."""
        return self.high / self.low


@dataclass(frozen=True, kw_only=True)
class Untuned:
    """A norm at the learning rate that people take who do not tune.

    Attributes:
        error: Over runs that ended well.
        error_counting_failures: As in `CellResult`.
        loss: What is lost against the tuned norm, paired by seed: untuned minus tuned; `None` without data.
    """

    learning_rate: float
    error: Estimate
    error_counting_failures: Estimate
    failures: Failures
    loss: Difference | None


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """One norm at one factor value of one curve.

    Attributes:
        flat: Whether the same runs stand at every value of the curve: a reference that the factor does not touch.
        counts: Evaluation runs by status, and `missing` for those without a record.
        invalid: Why the cell cannot be run at all, else empty.
        learning_rate: The chosen one, or `None` while tuning is incomplete.
        edge: Whether it is the smallest or largest that was tried, so that the norm may be less than fully tuned.
        added: Learning rates by which the grid of the column has grown.
        tuning: The whole learning-rate curve.
        basin: `None` where no learning rate gave a result.
        points: Every evaluation run, by seed.
        error: Over runs that ended well.
        error_counting_failures: Over all runs that ended, a failed one counted at the metric's chance level; no mean
            where that is unknown.
        train_loss: Over runs that ended well.
        side: The problem's side metrics by name, over runs that ended well.
        untuned: `None` without such runs.
        gap: Against the baseline; `None` for the baseline itself and without data.
        change: Against the same norm at the factor's reference value; `None` there and without data.
    """

    problem: str
    curve: str
    norm: str
    value: Value
    flat: bool
    counts: Mapping[str, int]
    invalid: str
    learning_rate: float | None
    edge: bool
    added: tuple[float, ...]
    tuning: tuple[TuningPoint, ...]
    basin: Basin | None
    points: tuple[Point, ...]
    error: Estimate
    error_counting_failures: Estimate
    failures: Failures
    train_loss: Estimate
    side: Mapping[str, Estimate]
    untuned: Untuned | None
    gap: Gap | None = None
    change: Difference | None = None


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Which norms qualify at one factor value.

    Attributes:
        best: The norm with the lowest mean error among those whose failure rate is shown to stay below the limit;
            `None` where there is none.
        gaps: Every other norm against `best`; a gap's `verdict` is `worse` where that is shown.
        candidates: Norms of such failure rates whose interval of the gap to `best` stays below the margin, `best`
            among them, in order of mean error.
    """

    value: Value
    best: str | None
    gaps: Mapping[str, Gap]
    candidates: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class CurveResult:
    """All cells of one curve on one problem.

    Attributes:
        factor: `name`, `label`, `log`, `reference`.
        values: Factor values, in order.
        shows: What can be read off it.
        hides: What cannot.
        advises: Whether recommendations rest on it.
    """

    name: str
    title: str
    factor: Mapping[str, Any]
    values: tuple[Value, ...]
    shows: str
    hides: str
    advises: bool
    cells: tuple[CellResult, ...]
    standings: tuple[Standing, ...]

    def cell(self, norm: str, value: Value) -> CellResult:
        """The cell of a norm and a factor value."""
        return next(cell for cell in self.cells if (cell.norm, cell.value) == (norm, value))

    def shared(self, metric: Metric, value: Value) -> Estimate:
        """A side metric that is the same for all norms, from the cell where most runs ended well."""
        column = [cell.side[metric.name] for cell in self.cells if cell.value == value]
        return max(column, key=lambda found: found.n)


@dataclass(frozen=True, kw_only=True)
class ProblemResult:
    """All curves of one problem.

    Attributes:
        margin: In the metric's unit.
        side: What is reported beside the metric.
        minimal_difference: Differences of about this size are found with a chance of 80 % at this number of seeds, at
            the median spread of the problem's paired differences.
        same_for_all_norms: Whether all norms gave identical runs, which means that the model does not use its norm.
    """

    name: str
    title: str
    metric: Metric
    margin: float
    side: tuple[Metric, ...]
    curves: tuple[CurveResult, ...]
    minimal_difference: float | None
    same_for_all_norms: bool

    @property
    def cells(self) -> tuple[CellResult, ...]:
        """The cells of all curves; flat references stand there once a value."""
        return tuple(cell for curve in self.curves for cell in curve.cells)

    def curve(self, name: str) -> CurveResult:
        """The curve of that name."""
        return next(curve for curve in self.curves if curve.name == name)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a cell took: medians over its runs, in seconds and bytes, `None` where unknown.

    Attributes:
        step: An update.
        run: All updates of a run.
        compile: The program that the runs share.
        memory: What the training program holds on the device.
        moved: What collectives give to a device in an update, where several train one model.
    """

    problem: str
    curve: str
    norm: str
    value: Value
    step: float | None
    run: float | None
    compile: float | None
    memory: float | None
    moved: float | None


Numbers = tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A series of one norm at one time of its training, over the evaluation runs that have it.

    Attributes:
        middle: Means over seeds, medians of a logarithmic series; `None` where no run gave a number.
        low: The lowest numbers.
        high: The highest.
        seeds: How many runs there are.
    """

    middle: Numbers
    low: Numbers
    high: Numbers
    seeds: int


@dataclass(frozen=True, kw_only=True)
class SeriesResult:
    """A series of one problem, at one value of one curve.

    Attributes:
        lines: For every norm that has the series, a line for each time when it was measured.
        without: The norms that were evaluated and do not have it.
    """

    problem: str
    curve: str
    value: Value
    series: Series
    lines: Mapping[str, tuple[Line, ...]]
    without: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """One planned run: `status` is `missing` where there is no record yet."""

    problem: str
    norm: str
    options: str
    config: Mapping[str, Any]
    stage: str
    learning_rate: float
    seed: int
    status: str
    reason: str
    metrics: Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """What the records of a comparison show.

    Attributes:
        names: Norm string -> what people call it.
        baseline: The norm that others are compared with.
        baseline_note: Why that is not the declared one, else empty.
        claims: Whether the tier makes claims.
        exploratory: Whether there are fewer seeds than `SEEDS_FOR_CLAIMS`.
        counts: Runs `planned` (tuning included), `done` and `missing`.
        runs: Every planned run. Left out of `to_json`.
        costs: In order of the cells. Left out of `to_json`: they alone differ when the same runs are repeated.
        series: What was measured before, during and after training, at the reference value of the first curve. Left
            out of `to_json`, where it would be most of the text.
    """

    comparison: str
    tier: str
    claims: bool
    exploratory: bool
    seeds: int
    level: float
    failure_limit: float
    baseline: str
    baseline_note: str
    default_learning_rate: float | None
    norms: tuple[str, ...]
    names: Mapping[str, str]
    problems: tuple[ProblemResult, ...]
    counts: Mapping[str, int]
    runs: tuple[RunStatus, ...]
    costs: tuple[Cost, ...]
    series: tuple[SeriesResult, ...]

    @property
    def cells(self) -> tuple[CellResult, ...]:
        """The cells of all problems and curves."""
        return tuple(cell for problem in self.problems for cell in problem.cells)

    def cost(self, cell: CellResult) -> Cost:
        """The cost of a cell."""
        where = (cell.problem, cell.curve, cell.norm, cell.value)
        return next(cost for cost in self.costs if (cost.problem, cost.curve, cost.norm, cost.value) == where)


def analyse(
    comparison: Comparison, settings: Settings, records: Iterable[Record], plan: Plan | None = None
) -> Analysis:
    """Say what the records show about a comparison.

    Args:
        comparison: The question, with baseline and margin.
        settings: What was asked for; records of other runs are left out.
        records: In any order; fewer than planned is fine.
        plan: Of these settings; made from the comparison unless given.

    Returns:
        The analysis; equal for equal records.
    """
    the_plan, ordered = plan or Plan(comparison, settings), sorted(records, key=lambda record: record.key)
    known = {record.run: record for record in ordered}
    results = _Results(the_plan, known)
    baseline, note = _baseline(comparison, settings)
    claims = comparison.tiers[settings.tier].claims
    runs = [_status(run, known.get(run)) for planned in results.planned.values() for run in planned.runs]
    missing = sum(run.status == "missing" for run in runs)
    to_come = sum(planned.to_come for planned in results.planned.values())
    return Analysis(
        comparison=comparison.name,
        tier=settings.tier,
        claims=claims,
        exploratory=settings.seeds < SEEDS_FOR_CLAIMS,
        seeds=settings.seeds,
        level=LEVEL,
        failure_limit=comparison.failure_limit,
        baseline=baseline,
        baseline_note=note,
        default_learning_rate=settings.default_learning_rate,
        norms=settings.norms,
        names={norm: the_plan.title(norm) for norm in settings.norms},
        problems=tuple(_problem(results, name, baseline, claims) for name in settings.problems),
        counts={"planned": len(runs) + to_come, "done": len(runs) - missing, "missing": missing + to_come},
        runs=tuple(runs),
        costs=tuple(_cost(place, results.records(cell)) for place, cell in the_plan.places.items()),
        series=tuple(found for name in settings.problems for found in _series(results, name) if found.lines),
    )


def to_json(analysis: Analysis) -> str:
    """Give the analysis as JSON text, the same for runs that are repeated: without costs."""
    plain = dataclasses.asdict(dataclasses.replace(analysis, runs=(), costs=(), series=()))
    del plain["runs"], plain["costs"], plain["series"]
    return json.dumps(plain, separators=(",", ":"), sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def _baseline(comparison: Comparison, settings: Settings) -> tuple[str, str]:
    if comparison.baseline in settings.norms:
        return comparison.baseline, ""
    first = settings.norms[0]
    return first, f"The declared baseline `{comparison.baseline}` is not among the norms; `{first}` takes its place."


class _Results:
    """The records of each cell, and what they alone show."""

    def __init__(self, the_plan: Plan, known: Mapping[Run, Record]) -> None:
        self.plan, self.known = the_plan, known
        self.planned = the_plan.of(known.values())
        places = {cell: place for place, cell in the_plan.places.items()}
        self._alone = {cell: self._result(cell, place) for cell, place in places.items()}

    def records(self, cell: Cell) -> list[Record]:
        return [self.known[run] for run in self.planned[cell].runs if run in self.known]

    def evaluated(self, cell: Cell) -> list[Record]:
        """The records of the evaluation at the tuned learning rate."""
        return [self.known[run] for run in self.planned[cell].evaluation if run in self.known]

    def at(self, place: Place) -> CellResult:
        """The result of the cell at a place, without comparisons to others."""
        cell = self.plan.places[place]
        row = {self.plan.places[place_] for place_ in self._row(place)}
        flat = len(row) == 1 and len(self.plan.settings.values[place.curve]) > 1
        return dataclasses.replace(self._alone[cell], curve=place.curve, value=place.value, flat=flat)

    def _row(self, place: Place) -> list[Place]:
        values = self.plan.settings.values[place.curve]
        return [dataclasses.replace(place, value=value) for value in values]

    def _result(self, cell: Cell, place: Place) -> CellResult:
        records, planned, settings = self.records(cell), self.planned[cell], self.plan.settings
        tuned = [record for record in records if record.run.stage == TUNE]
        points = tuple(_point(record) for record in self.evaluated(cell))
        invalid = next((r.reason or "cannot be run" for r in records if r.status == "invalid"), "")
        chance = next((c for r in records if (c := _finite(r.metrics.get("chance"))) is not None), None)
        curve = _tuning(tuned)
        return CellResult(
            problem=cell.problem,
            curve=place.curve,
            norm=cell.norm,
            value=place.value,
            flat=False,
            counts=_counts(points, 0 if invalid else settings.seeds),
            invalid=invalid,
            learning_rate=planned.choice.learning_rate if planned.choice else None,
            edge=planned.choice.edge if planned.choice else False,
            added=tuple(sorted({run.learning_rate for run in planned.tuning} - set(settings.learning_rates))),
            tuning=curve,
            basin=_basin(curve, self.plan.margin(cell.problem)) if planned.choice else None,
            points=points,
            error=mean_interval([point.error for point in points], LEVEL),
            error_counting_failures=_counting_failures(points, chance),
            failures=_failures(points),
            train_loss=mean_interval([point.train_loss for point in points], LEVEL),
            side=_side(self.plan.problem(cell.problem).side, self.evaluated(cell)),
            untuned=self._untuned(planned, points, chance),
        )

    def _untuned(self, planned: CellPlan, tuned: Sequence[Point], chance: float | None) -> Untuned | None:
        points = [_point(self.known[run]) for run in planned.untuned if run in self.known]
        if not points:
            return None
        loss = _difference(points, tuned)
        return Untuned(
            learning_rate=planned.untuned[0].learning_rate,
            error=mean_interval([point.error for point in points], LEVEL),
            error_counting_failures=_counting_failures(points, chance),
            failures=_failures(points),
            loss=None if loss.mean is None else loss,
        )


def _problem(results: _Results, name: str, baseline: str, claims: bool) -> ProblemResult:
    problem, settings = results.plan.problem(name), results.plan.settings
    curves = tuple(_curve(results, problem, results.plan.curve(curve), baseline, claims) for curve in settings.curves)
    cells = [cell for curve in curves for cell in curve.cells]
    return ProblemResult(
        name=problem.name,
        title=problem.title,
        metric=problem.metric,
        margin=results.plan.margin(name),
        side=problem.side,
        curves=curves,
        minimal_difference=_minimal_difference(cells, settings.seeds),
        same_for_all_norms=_same_for_all_norms(curves),
    )


def _curve(results: _Results, problem: Problem, curve: Curve, baseline: str, claims: bool) -> CurveResult:
    settings, margin = results.plan.settings, results.plan.margin(problem.name)
    cells: list[CellResult] = []
    standings: list[Standing] = []
    for value in settings.values[curve.name]:
        places = [Place(problem=problem.name, curve=curve.name, value=value, norm=norm) for norm in settings.norms]
        column = [results.at(place) for place in places]
        gaps = gaps_to(column, baseline, margin, claims)
        cells += [dataclasses.replace(cell, gap=gaps.get(cell.norm)) for cell in column]
        standings.append(_standing(value, column, margin, results.plan.comparison.failure_limit, claims))
    reference = curve.factor.reference if curve.factor.reference in settings.values[curve.name] else None
    return CurveResult(
        name=curve.name,
        title=curve.title,
        factor={
            "name": curve.factor.name,
            "label": curve.factor.label,
            "log": curve.factor.log,
            "reference": reference,
        },
        values=settings.values[curve.name],
        shows=curve.shows,
        hides=curve.hides,
        advises=curve.advises,
        cells=tuple(_with_change(cell, cells, reference) for cell in cells),
        standings=tuple(standings),
    )


def _series(results: _Results, name: str) -> Iterator[SeriesResult]:
    """The series of a problem at the reference value of the first curve, or at its first value."""
    problem, settings = results.plan.problem(name), results.plan.settings
    curve = results.plan.curve(settings.curves[0])
    values = settings.values[curve.name]
    value = curve.factor.reference if curve.factor.reference in values else values[0]
    assert value is not None
    places = {norm: Place(problem=name, curve=curve.name, value=value, norm=norm) for norm in settings.norms}
    records = {norm: results.evaluated(results.plan.places[place]) for norm, place in places.items()}
    for series in problem.series:
        taken = {norm: [r.series[series.name] for r in of if series.name in r.series] for norm, of in records.items()}
        drawn = {
            norm: tuple(_line(rows, series.log) for rows in zip(*runs, strict=True)) for norm, runs in taken.items()
        }
        lines = {
            norm: found for norm, found in drawn.items() if any(x is not None for one in found for x in one.middle)
        }
        without = tuple(norm for norm, runs in taken.items() if runs and norm not in lines)
        yield SeriesResult(problem=name, curve=curve.name, value=value, series=series, lines=lines, without=without)


def _line(rows: Sequence[Sequence[float | None]], log: bool) -> Line:
    """One time of training, a row for every run."""
    columns = [sorted(x for x in column if x is not None) for column in zip(*rows, strict=True)]
    middle = quantiles.median if log else quantiles.fmean
    return Line(
        middle=tuple(middle(column) if column else None for column in columns),
        low=tuple(min(column, default=None) for column in columns),
        high=tuple(max(column, default=None) for column in columns),
        seeds=len(rows),
    )


def _side(metrics: Sequence[Metric], records: Sequence[Record]) -> dict[str, Estimate]:
    good = [record for record in records if record.status == "ok"]
    return {
        metric.name: mean_interval([_finite(record.metrics.get(metric.name)) for record in good], LEVEL)
        for metric in metrics
    }


def _same_for_all_norms(curves: Sequence[CurveResult]) -> bool:
    """Whether in every column that has results, all norms that can be run have the same numbers, bit by bit."""
    columns = [[c for c in k.cells if c.value == v and c.error.n] for k in curves for v in k.values]
    columns = [column for column in columns if len(column) > 1]
    return bool(columns) and all(len({_numbers(cell) for cell in column}) == 1 for column in columns)


def _numbers(cell: CellResult) -> tuple[Any, ...]:
    return tuple((point.seed, point.error, point.train_loss) for point in cell.points)


def _failures(points: Sequence[Point]) -> Failures:
    failed = sum(point.status in FAILURES for point in points)
    return Failures(k=failed, n=len(points), interval=wilson(failed, len(points), LEVEL))


def _counting_failures(points: Sequence[Point], chance: float | None) -> Estimate:
    """The error over all runs, a failed one at chance; no estimate where a run failed and chance is unknown."""
    if chance is None and any(point.status in FAILURES for point in points):
        return Estimate(mean=None, interval=None, sd=None, n=0)
    return mean_interval([chance if point.status in FAILURES else point.error for point in points], LEVEL)


def _basin(curve: Sequence[TuningPoint], margin: float) -> Basin | None:
    """The contiguous rates around the best one whose error is within the margin of the best."""
    errors = [math.inf if point.error is None else point.error for point in curve]
    if not errors or min(errors) == math.inf:
        return None
    low = high = errors.index(min(errors))
    within = min(errors) + margin
    while low > 0 and errors[low - 1] <= within:
        low -= 1
    while high < len(errors) - 1 and errors[high + 1] <= within:
        high += 1
    return Basin(
        low=curve[low].learning_rate,
        high=curve[high].learning_rate,
        open_low=low == 0,
        open_high=high == len(errors) - 1,
    )


def _status(run: Run, record: Record | None) -> RunStatus:
    config = dict(run.cell.config)
    return RunStatus(
        problem=run.cell.problem,
        norm=run.cell.norm,
        options=config.pop("norm"),
        config=config,
        stage=run.stage,
        learning_rate=run.learning_rate,
        seed=run.seed,
        status=record.status if record else "missing",
        reason=record.reason if record else "",
        metrics=dict(record.metrics) if record else {},
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
            statuses=dict(sorted(Counter(record.status for record in found if record.status in FAILURES).items())),
        )
        for rate, found in sorted(by_rate.items())
    )


def gaps_to(column: Sequence[CellResult], reference: str, margin: float, claims: bool) -> dict[str, Gap]:
    """Every norm of a column against one of them, p-values adjusted over the column."""
    against = next(cell for cell in column if cell.norm == reference)
    norms = [cell.norm for cell in column if cell.norm != reference and not cell.invalid]
    differences = [_difference(cell.points, against.points) for cell in column if cell.norm in norms]
    adjusted = holm([difference.p for difference in differences])
    tests = sum(p is not None for p in adjusted)
    return {
        norm: _gap(reference, difference, p, margin, claims, tests)
        for norm, difference, p in zip(norms, differences, adjusted, strict=True)
        if difference.mean is not None
    }


def _difference(points: Sequence[Point], against: Sequence[Point]) -> Difference:
    ours, theirs = ({point.seed: point.error for point in side} for side in (points, against))
    seeds = sorted(ours.keys() | theirs.keys())
    return paired([ours.get(seed) for seed in seeds], [theirs.get(seed) for seed in seeds], LEVEL)


def _with_change(cell: CellResult, cells: Sequence[CellResult], reference: Value | None) -> CellResult:
    """Compare a cell with the same norm at the reference value, paired by seed."""
    against = next((other for other in cells if (other.norm, other.value) == (cell.norm, reference)), None)
    if against is None or against is cell or cell.flat:
        return cell
    change = _difference(cell.points, against.points)
    return cell if change.mean is None else dataclasses.replace(cell, change=change)


def _gap(reference: str, difference: Difference, p_holm: float | None, margin: float, claims: bool, tests: int) -> Gap:
    shown = verdict(difference.interval, margin)
    if shown in (BETTER, WORSE) and (p_holm is None or p_holm > 1 - LEVEL):
        shown = INCONCLUSIVE
    beyond = difference.mean is not None and abs(difference.mean) > margin  # a claim that Holm corrects
    level = 1 - (1 - LEVEL) / tests if beyond and tests else LEVEL
    needed = seeds_needed(difference.mean, difference.sd, margin, level=level) if shown == INCONCLUSIVE else None
    return Gap(
        reference=reference,
        difference=difference,
        p_holm=p_holm,
        verdict=shown if claims else None,
        seeds_needed=None if needed is None else max(needed, difference.n + 1),
    )


def _standing(
    value: Value, column: Sequence[CellResult], margin: float, failure_limit: float, claims: bool
) -> Standing:
    reliable = sorted(
        (cell.error.mean, index, cell.norm)
        for index, cell in enumerate(column)
        if cell.error.mean is not None and cell.failures.interval[1] < failure_limit
    )
    if not reliable:
        return Standing(value=value, best=None, gaps={}, candidates=())
    best = reliable[0][2]
    gaps = gaps_to(column, best, margin, claims)
    close = {norm for norm, gap in gaps.items() if _below(gap.difference.interval, margin)}
    candidates = tuple(norm for _, _, norm in reliable if norm == best or norm in close)
    return Standing(value=value, best=best, gaps=gaps, candidates=candidates)


def _below(interval: Interval | None, limit: float) -> bool:
    return interval is not None and interval[1] < limit


def _minimal_difference(cells: Sequence[CellResult], seeds: int) -> float | None:
    spreads = [cell.gap.difference.sd for cell in cells if cell.gap and cell.gap.difference.sd is not None]
    return _finite(minimal_difference(quantiles.median(sorted(spreads)), seeds)) if spreads else None


def _cost(place: Place, records: Sequence[Record]) -> Cost:
    def median(name: str) -> float | None:
        there = sorted(record.cost[name] for record in records if name in record.cost)
        return quantiles.median(there) if there else None

    return Cost(
        problem=place.problem,
        curve=place.curve,
        norm=place.norm,
        value=place.value,
        step=median("step"),
        run=median("run"),
        compile=median("compile"),
        memory=median("memory"),
        moved=median("moved"),
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
