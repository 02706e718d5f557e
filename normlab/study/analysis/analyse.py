"""Analyse records: the results of each configuration, column and problem."""

import dataclasses
import math
import statistics as quantiles
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter

from normlab.study.analysis.estimates import (
    BETTER,
    FEWEST_TO_RECOMMEND,
    Estimate,
    mean_interval,
    minimal_difference,
    wilson,
)
from normlab.study.analysis.gaps import counting_failures, difference_between, gaps_to, with_failures_counted
from normlab.study.analysis.results import (
    LEVEL,
    SEEDS_FOR_CLAIMS,
    Analysis,
    Basin,
    CellResult,
    Cost,
    CurveResult,
    Failures,
    Line,
    Point,
    ProblemResult,
    RunStatus,
    SeriesResult,
    Standing,
    TuningPoint,
    Untuned,
)
from normlab.study.design.comparison import Comparison, Settings
from normlab.study.design.factors import Curve, Value
from normlab.study.design.plan import ConfigurationPlan, Place, Plan
from normlab.study.design.problem import Metric, Problem
from normlab.study.design.records import FAILURES, TUNE, Configuration, Record, Run
from normlab.study.design.tuning import validation_error


def analyse(
    comparison: Comparison, settings: Settings, records: Iterable[Record], plan: Plan | None = None
) -> Analysis:
    """Analyse the records of a comparison.

    Args:
        comparison: The comparison, with baseline and margin.
        settings: The settings; records of other runs are left out.
        records: Records in any order, also fewer than planned.
        plan: The plan of these settings; built from the comparison unless given.

    Returns:
        The analysis; equal for equal records.
    """
    the_plan, ordered = plan or Plan(comparison, settings), sorted(records, key=lambda record: record.key)
    known = {record.run: record for record in ordered}
    results = _Results(the_plan, known)
    baseline, note = the_plan.baseline, _baseline_note(the_plan)
    claims = comparison.tiers[settings.tier].claims
    planned = [run for one in results.planned.values() for run in one.runs]
    missing = sum(run not in known for run in planned)
    to_come = sum(one.to_come for one in results.planned.values())
    additional = dict.fromkeys(run for one in results.planned.values() for run in one.reported if run in known)
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
        looks={norm: the_plan.look(norm) for norm in settings.norms},
        problems=tuple(_problem(results, name, baseline, claims) for name in settings.problems),
        counts={"planned": len(planned) + to_come, "done": len(planned) - missing, "missing": missing + to_come},
        runs=tuple(_statuses(dict.fromkeys((*planned, *additional)), known)),
        costs=tuple(_cost(place, results.records(configuration)) for place, configuration in the_plan.places.items()),
        series=tuple(found for name in settings.problems for found in _series(results, name) if found.lines),
    )


def _baseline_note(plan: Plan) -> str:
    declared = plan.comparison.baseline
    if plan.baseline == declared:
        return ""
    return f"The declared baseline `{declared}` is not among the norms; `{plan.baseline}` takes its place."


class _Results:
    """The records of each configuration, and results without comparisons."""

    def __init__(self, the_plan: Plan, known: Mapping[Run, Record]) -> None:
        self.plan, self.known = the_plan, known
        self.planned = the_plan.of(known.values())
        self._records = {configuration: self._of(planned) for configuration, planned in self.planned.items()}
        places = {configuration: place for place, configuration in the_plan.places.items()}
        self._alone = {configuration: self._result(configuration, place) for configuration, place in places.items()}

    def records(self, configuration: Configuration) -> list[Record]:
        """Select the records of the planned runs."""
        return self._records[configuration]

    def _of(self, planned: ConfigurationPlan) -> list[Record]:
        return [self.known[run] for run in dict.fromkeys((*planned.runs, *planned.reported)) if run in self.known]

    def evaluated(self, configuration: Configuration) -> list[Record]:
        """Select the records of the evaluation at the tuned learning rate."""
        return [self.known[run] for run in self.planned[configuration].reported if run in self.known]

    def at(self, place: Place) -> CellResult:
        """Return the result of the configuration at a place, without comparisons to others."""
        configuration = self.plan.places[place]
        row = {self.plan.places[place_] for place_ in self._row(place)}
        flat = len(row) == 1 and len(self.plan.settings.values[place.curve]) > 1
        return dataclasses.replace(self._alone[configuration], curve=place.curve, value=place.value, flat=flat)

    def _row(self, place: Place) -> list[Place]:
        values = self.plan.settings.values[place.curve]
        return [dataclasses.replace(place, value=value) for value in values]

    def _result(self, configuration: Configuration, place: Place) -> CellResult:
        records, planned, settings = self.records(configuration), self.planned[configuration], self.plan.settings
        tuned = [record for record in records if record.run.stage == TUNE]
        points = tuple(_point(record) for record in self.evaluated(configuration))
        invalid = next((r.reason or "cannot be run" for r in records if r.status == "invalid"), "")
        chance = next((c for r in records if (c := _finite(r.metrics.get("chance"))) is not None), None)
        curve, choice = _tuning(tuned), planned.reported_choice
        return CellResult(
            problem=configuration.problem,
            curve=place.curve,
            norm=configuration.norm,
            value=place.value,
            flat=False,
            counts=_counts(points, 0 if invalid else settings.seeds),
            invalid=invalid,
            learning_rate=choice.learning_rate if choice else None,
            edge=choice.edge if choice else False,
            tuned_over=_tuned_over(planned),
            added=tuple(sorted({run.learning_rate for run in planned.tuning} - set(settings.learning_rates))),
            tuning=curve,
            basin=_basin(curve, self.plan.margin(configuration.problem))
            if choice and not planned.provisional
            else None,
            points=points,
            error=mean_interval([point.error for point in points], LEVEL),
            failure_error=chance,
            error_counting_failures=counting_failures(points, chance),
            failures=_failures(points),
            train_loss=mean_interval([point.train_loss for point in points], LEVEL),
            side=_side(self.plan.problem(configuration.problem).extra_metrics, self.evaluated(configuration)),
            untuned=self._untuned(planned, points),
        )

    def _untuned(self, planned: ConfigurationPlan, tuned: Sequence[Point]) -> Untuned | None:
        points = [_point(self.known[run]) for run in planned.untuned if run in self.known]
        if not points:
            return None
        loss = difference_between(points, tuned)
        return Untuned(
            learning_rate=planned.untuned[0].learning_rate,
            points=tuple(points),
            error=mean_interval([point.error for point in points], LEVEL),
            error_counting_failures=counting_failures(points, None),
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
        side=problem.extra_metrics,
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
        column = with_failures_counted([results.at(place) for place in places])
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
    """Yield the series of a problem at the reference value of the first curve, or at its first value."""
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
    """Summarize a series at one time of training, with a row for every run."""
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
    """Check whether all norms have identical numbers in every column with results."""
    columns = [[c for c in k.cells if c.value == v and c.error.n] for k in curves for v in k.values]
    columns = [column for column in columns if len(column) > 1]
    return bool(columns) and all(len({_numbers(cell) for cell in column}) == 1 for column in columns)


def _numbers(cell: CellResult) -> tuple[object, ...]:
    return tuple((point.seed, point.error, point.train_loss) for point in cell.points)


def _failures(points: Sequence[Point]) -> Failures:
    failed = sum(point.status in FAILURES for point in points)
    return Failures(k=failed, n=len(points), interval=wilson(failed, len(points), LEVEL))


def _basin(curve: Sequence[TuningPoint], margin: float) -> Basin | None:
    """Find the contiguous rates around the best one whose errors are within the margin of the best."""
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


def _tuned_over(planned: ConfigurationPlan) -> tuple[int, int] | None:
    if not planned.provisional or not planned.early_choice:
        return None
    over, of = ({run.learning_rate for run in runs} for runs in (planned.coarse, planned.tuning))
    return len(over), len(of)


def _statuses(runs: Iterable[Run], known: Mapping[Run, Record]) -> Iterator[RunStatus]:
    """Yield the status of every run; the runs of a configuration share its fields."""
    for configuration, of in groupby(runs, key=attrgetter("configuration")):
        config = dict(configuration.config)
        options = str(config.pop("norm"))
        for run in of:
            record = known.get(run)
            yield RunStatus(
                problem=configuration.problem,
                norm=configuration.norm,
                options=options,
                config=config,
                stage=run.stage,
                learning_rate=run.learning_rate,
                seed=run.seed,
                status=record.status if record else "missing",
                reason=record.reason if record else "",
                metrics=record.metrics if record else {},
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
    """Compute the learning-rate curve by the rule of the choice: a failed run is worse than any error."""
    by_rate: dict[float, list[Record]] = {}
    for record in records:
        if record.status != "invalid":
            by_rate.setdefault(record.run.learning_rate, []).append(record)
    return tuple(
        TuningPoint(
            learning_rate=rate,
            error=_finite(quantiles.median(sorted(validation_error(record) for record in found))),
            failures=sum(record.status in FAILURES for record in found),
            runs=len(found),
            statuses=dict(sorted(Counter(record.status for record in found if record.status in FAILURES).items())),
        )
        for rate, found in sorted(by_rate.items())
    )


def _with_change(cell: CellResult, cells: Sequence[CellResult], reference: Value | None) -> CellResult:
    """Compare a cell with the same norm at the reference value, paired by seed."""
    against = next((other for other in cells if (other.norm, other.value) == (cell.norm, reference)), None)
    if against is None or against is cell or cell.flat:
        return cell
    change = difference_between(cell.points, against.points)
    return cell if change.mean is None else dataclasses.replace(cell, change=change)


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
