"""From records to what they show: one pure function, the same result for the same records in any order.

Every number of the report is a field here. Errors and differences are in the metric's own unit (fractions where it is
shown in percent), times seconds; what the data do not give is `None`. The protocol: errors of the evaluation runs that
ended well, each norm paired by seed with the baseline in the same column, p-values adjusted by Holm over the norms of
one column (a problem, a curve, a factor value). No verdict contradicts the failures: it holds over the runs that ended
well and with failed ones counted as the worst error, and failure rates do not differ against it.
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
    EQUIVALENT,
    FEWEST_TO_RECOMMEND,
    INCONCLUSIVE,
    WORSE,
    Difference,
    Estimate,
    Interval,
    holm,
    judge,
    mean_interval,
    minimal_difference,
    outliers,
    paired,
    runs_to_see,
    seeds_needed,
    sign_test,
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
        counted: The same over all runs that ended, a failed one counted as `CellResult.failure_error`.
        p_holm: `difference.p` adjusted over the norms of this problem and factor value.
        p_fails_more: Exact one-sided p of the seeds at which the norm alone failed against those of the reference.
        p_fails_less: Likewise for the other direction.
        when_trained: The verdict of `difference` alone; `better` and `worse` also need `p_holm` within the
            level.
        verdict: That, where the failures do not contradict it, else `inconclusive`; `None` where the tier makes no
            claims.
        note: Why it is inconclusive, where there is more to say than a wide interval; else empty.
        carried_by: Seeds whose differences lie far from the others', and without which it would be decided.
        seeds_needed: About how many seeds in total would decide; `None` where decided or out of reach.
    """

    reference: str
    difference: Difference
    counted: Difference
    p_holm: float | None
    p_fails_more: float
    p_fails_less: float
    when_trained: str
    verdict: str | None
    note: str
    carried_by: tuple[int, ...]
    seeds_needed: int | None

    @property
    def fails_more(self) -> bool:
        """True where it is shown that the norm fails more often than the reference."""
        return self.p_fails_more <= 1 - LEVEL

    @property
    def fails_less(self) -> bool:
        """True where it is shown that it fails less often."""
        return self.p_fails_less <= 1 - LEVEL


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
        points: As in `CellResult`.
        error: Over runs that ended well.
        error_counting_failures: As in `CellResult`.
        loss: What is lost against the tuned norm, paired by seed: untuned minus tuned; `None` without data.
    """

    learning_rate: float
    points: tuple[Point, ...]
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
        failure_error: The error that a failed run counts as: the metric's chance level, or the worst error that any
            norm of the column had, whichever is worse; `None` where neither is known.
        error_counting_failures: Over all runs that ended, a failed one counted as that; no mean where it is unknown.
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
    failure_error: float | None
    error_counting_failures: Estimate
    failures: Failures
    train_loss: Estimate
    side: Mapping[str, Estimate]
    untuned: Untuned | None
    gap: Gap | None = None
    change: Difference | None = None


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Which norm is best at one factor value, failures counted.

    Attributes:
        trained: The norm with the lowest mean error over runs that ended well; `None` where there are too few runs.
        counted: The norm with the lowest mean error with failed runs counted; likewise.
        best: That norm, unless another is shown to be better over runs that ended well, or `trained` to fail less
            often: an order that failures reverse gives no best norm, `None`.
        gaps: Every other norm against `best`; a gap's `verdict` is `worse` where that is shown.
    """

    value: Value
    trained: str | None
    counted: str | None
    best: str | None
    gaps: Mapping[str, Gap]


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
            failure_error=chance,
            error_counting_failures=_counting_failures(points, chance),
            failures=_failures(points),
            train_loss=mean_interval([point.train_loss for point in points], LEVEL),
            side=_side(self.plan.problem(cell.problem).side, self.evaluated(cell)),
            untuned=self._untuned(planned, points),
        )

    def _untuned(self, planned: CellPlan, tuned: Sequence[Point]) -> Untuned | None:
        points = [_point(self.known[run]) for run in planned.untuned if run in self.known]
        if not points:
            return None
        loss = _difference(points, tuned)
        return Untuned(
            learning_rate=planned.untuned[0].learning_rate,
            points=tuple(points),
            error=mean_interval([point.error for point in points], LEVEL),
            error_counting_failures=_counting_failures(points, None),
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
        column = _with_failures_counted([results.at(place) for place in places])
        gaps = gaps_to(column, baseline, margin, claims)
        cells += [dataclasses.replace(cell, gap=gaps.get(cell.norm)) for cell in column]
        standings.append(_standing(value, column, margin, claims))
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


def _with_failures_counted(column: Sequence[CellResult]) -> list[CellResult]:
    """Say what a failed run counts in a column: chance, or the worst error there if that is worse."""
    errors = [point.error for cell in column for point in cell.points]
    chances = [cell.failure_error for cell in column]
    worst = max((error for error in (*errors, *chances) if error is not None), default=None)
    return [
        dataclasses.replace(
            cell,
            failure_error=worst,
            error_counting_failures=_counting_failures(cell.points, worst),
            untuned=cell.untuned
            and dataclasses.replace(
                cell.untuned, error_counting_failures=_counting_failures(cell.untuned.points, worst)
            ),
        )
        for cell in column
    ]


def _counting_failures(points: Sequence[Point], worst: float | None) -> Estimate:
    """The error over all runs, a failed one as the worst; no estimate where a run failed and that is unknown."""
    if worst is None and any(point.status in FAILURES for point in points):
        return Estimate(mean=None, interval=None, sd=None, n=0)
    return mean_interval([_counted(point, worst) for point in points], LEVEL)


def _counted(point: Point, worst: float | None) -> float | None:
    return worst if point.status in FAILURES else point.error


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
    cells = [cell for cell in column if cell.norm != reference and not cell.invalid]
    trained = _Family([_difference(cell.points, against.points) for cell in cells], margin)
    some_failed = any(cell.failures.k for cell in (against, *cells))
    counted = _Family([_difference(*_all_runs(cell, against)) for cell in cells], margin) if some_failed else trained
    return {
        cell.norm: _gap(cell, against, trained, counted, place, claims)
        for place, cell in enumerate(cells)
        if trained.differences[place].mean is not None
    }


class _Family:
    """The differences of a column, and what each shows."""

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
        """About how many seeds in total would decide."""
        difference = self.differences[place]
        if difference.mean is None:
            return None
        beyond = abs(difference.mean) > self.margin  # a claim that Holm corrects
        level = 1 - (1 - LEVEL) / self.tests if beyond and self.tests else LEVEL
        needed = seeds_needed(difference.mean, difference.sd, self.margin, level=level)
        return None if needed is None else max(needed, difference.n + 1, 0 if beyond else runs_to_see())


def _difference(points: Sequence[Point], against: Sequence[Point]) -> Difference:
    return _paired({point.seed: point.error for point in points}, {point.seed: point.error for point in against})


def _paired(ours: Mapping[int, float | None], theirs: Mapping[int, float | None]) -> Difference:
    seeds = sorted(ours.keys() | theirs.keys())
    return paired([ours.get(seed) for seed in seeds], [theirs.get(seed) for seed in seeds], LEVEL)


def _with_change(cell: CellResult, cells: Sequence[CellResult], reference: Value | None) -> CellResult:
    """Compare a cell with the same norm at the reference value, paired by seed."""
    against = next((other for other in cells if (other.norm, other.value) == (cell.norm, reference)), None)
    if against is None or against is cell or cell.flat:
        return cell
    change = _difference(cell.points, against.points)
    return cell if change.mean is None else dataclasses.replace(cell, change=change)


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
    """How failures contradict what the runs that ended well show; empty where they do not.

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
    """Name what keeps a verdict back besides the width of an interval."""
    if verdict(difference.interval, margin) == EQUIVALENT and difference.n < runs_to_see():
        return f"alike so far; equivalent takes {runs_to_see()} runs"
    return f"{seeds_alone(carried_by)} it open" if carried_by else ""


def seeds_alone(seeds: Sequence[int]) -> str:
    """`seed 7 alone keeps`, or `seeds 3, 7 alone keep`."""
    return f"seed {seeds[0]} alone keeps" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))} alone keep"


def _carried_by(difference: Difference, cell: CellResult, against: CellResult, margin: float) -> tuple[int, ...]:
    """The seeds whose differences are outliers, where the interval would decide without them."""
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
    """Both sides' runs with errors, failed ones' counted."""

    def counted(one: CellResult) -> list[Point]:
        return [dataclasses.replace(point, error=_counted(point, one.failure_error)) for point in one.points]

    return counted(cell), counted(against)


def _failed_alone(cell: CellResult, other: CellResult) -> int:
    """At how many seeds that both have run it failed and the other did not."""
    sound = {point.seed for point in other.points if point.status not in FAILURES}
    return sum(point.status in FAILURES and point.seed in sound for point in cell.points)


def _standing(value: Value, column: Sequence[CellResult], margin: float, claims: bool) -> Standing:
    cells = [cell for cell in column if cell.error.mean is not None and cell.failures.n >= FEWEST_TO_RECOMMEND]
    if not cells:
        return Standing(value=value, trained=None, counted=None, best=None, gaps={})
    trained, counted = min(cells, key=_mean), min(cells, key=_mean_counted)
    gaps = gaps_to(column, counted.norm, margin, claims)
    lost = gaps.get(trained.norm)
    reversed_ = any(gap.when_trained == BETTER for gap in gaps.values()) or (lost is not None and lost.fails_less)
    return Standing(
        value=value,
        trained=trained.norm,
        counted=counted.norm,
        best=None if reversed_ else counted.norm,
        gaps={} if reversed_ else gaps,
    )


def _mean(cell: CellResult) -> float:
    return math.inf if cell.error.mean is None else cell.error.mean


def _mean_counted(cell: CellResult) -> tuple[float, float]:
    mean = cell.error_counting_failures.mean
    return math.inf if mean is None else mean, _mean(cell)


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
