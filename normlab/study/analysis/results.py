"""Results of an analysis as plain values."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

from normlab.study.analysis.estimates import (
    Difference,
    Estimate,
    Interval,
)
from normlab.study.design.factors import Value
from normlab.study.design.problem import Metric, Series

LEVEL = 0.95
SEEDS_FOR_CLAIMS = 10
"""Results of fewer evaluation seeds are called exploratory."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One evaluation run.

    Attributes:
        seed: Its seed.
        status: `ok`, a kind of failure, or `missing`.
        reason: One line; empty when `ok`.
        error: Test error in the metric's unit; `None` unless `status` is `ok`.
        train_loss: Training loss at the end; `None` where not finite.
    """

    seed: int
    status: str
    reason: str
    error: float | None
    train_loss: float | None


@dataclass(frozen=True, kw_only=True)
class TuningPoint:
    """One learning rate of a tuning grid.

    Attributes:
        learning_rate: The learning rate.
        error: Median validation error over seeds, in the metric's unit; `None` where the median run failed.
        failures: Number of failed runs.
        runs: Number of runs.
        statuses: Number of failed runs by status.
    """

    learning_rate: float
    error: float | None
    failures: int
    runs: int
    statuses: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Failures:
    """Failed runs.

    Attributes:
        k: Number of failed runs.
        n: Number of finished runs.
        interval: Wilson's interval of the share of failed runs, from 0 to 1.
    """

    k: int
    n: int
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class Gap:
    """The difference of a norm to a reference at the same factor value, negative where the norm is lower.

    Attributes:
        reference: The reference norm.
        difference: Estimate and tests over runs that ended well.
        counted: The same over all finished runs, with failed runs counted as `CellResult.failure_error`.
        p_holm: `difference.p` adjusted over the norms of this problem and factor value.
        p_fails_more: Exact one-sided p of the seeds at which only the norm failed, against those of the reference.
        p_fails_less: The same for the other direction.
        when_trained: The verdict of `difference` alone; `better` and `worse` also need `p_holm` within the
            level.
        verdict: `when_trained` unless the failures contradict it, else `inconclusive`; `None` in a budget without
            claims.
        note: Reason for `inconclusive` beyond a wide interval; else empty.
        carried_by: Seeds with outlying differences, without which the verdict would be decided.
        seeds_needed: Approximate total number of seeds for a decision; `None` where decided or out of reach.
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
        """True if the norm is shown to fail more often than the reference."""
        return self.p_fails_more <= 1 - LEVEL

    @property
    def fails_less(self) -> bool:
        """True if the norm is shown to fail less often than the reference."""
        return self.p_fails_less <= 1 - LEVEL


@dataclass(frozen=True, kw_only=True)
class Basin:
    """The learning rates around the best that are within the margin of its median validation error.

    Attributes:
        low: The smallest learning rate.
        high: The largest learning rate.
        open_low: Whether `low` is the smallest that was tried, so that the basin may extend below.
        open_high: Whether `high` is the largest that was tried.
    """

    low: float
    high: float
    open_low: bool
    open_high: bool

    @property
    def width(self) -> float:
        """The ratio of the ends; 1 where only the best rate is within the margin."""
        return self.high / self.low


@dataclass(frozen=True, kw_only=True)
class Untuned:
    """A norm at the default learning rate.

    Attributes:
        learning_rate: The default learning rate.
        points: See `CellResult`.
        error: Error over successful runs.
        error_counting_failures: See `CellResult`.
        failures: Failed runs among the evaluation runs.
        loss: Error of the untuned minus the tuned norm, paired by seed; `None` without data.
    """

    learning_rate: float
    points: tuple[Point, ...]
    error: Estimate
    error_counting_failures: Estimate
    failures: Failures
    loss: Difference | None


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """The result of a norm at a factor value: one cell of the table of a curve.

    Attributes:
        problem: Name of the problem.
        curve: Name of the curve.
        norm: The norm as it was written.
        value: Value of the curve's factor.
        flat: Whether the same runs are the result at every value of the curve: a reference independent of the factor.
        counts: Number of evaluation runs by status, and `missing` for those without a record.
        invalid: Reason why the configuration cannot be run at all, else empty.
        learning_rate: The chosen learning rate; `None` while tuning is incomplete and there is no provisional
            choice.
        edge: Whether it is the smallest or largest that was tried, so that the norm may be less than fully tuned.
        tuned_over: Number of learning rates behind a provisional choice, and of those planned so far (see `plan`);
            `None` for a final choice, and where there is none.
        added: Learning rates by which the grid of the column has grown.
        tuning: The whole learning-rate curve.
        basin: Learning rates close to the best; `None` where no learning rate gave a result.
        points: Every evaluation run, by seed.
        error: Error over successful runs.
        failure_error: The error that a failed run counts as: the metric's chance level, or the worst error of any norm
            in the column, whichever is worse; `None` where neither is known.
        error_counting_failures: Error over all finished runs, with failed runs counted as `failure_error`; no mean
            where it is unknown.
        failures: Failed runs among the finished evaluation runs.
        train_loss: Training loss over successful runs.
        side: The problem's side metrics by name, over successful runs.
        untuned: The norm at the default learning rate; `None` without such runs.
        gap: Difference to the baseline; `None` for the baseline itself and without data.
        change: Difference to the same norm at the factor's reference value; `None` there and without data.
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
    tuned_over: tuple[int, int] | None
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
    """The order of the norms at one factor value, failures counted.

    Attributes:
        value: Value of the curve's factor.
        trained: The norm with the lowest mean error over successful runs; `None` where there are too few runs.
        counted: The norm with the lowest mean error with failed runs counted; `None` where there are too few runs.
        best: `counted`, unless another norm is shown to be better over successful runs, or `trained` to fail less
            often: an order that failures reverse gives no best norm, `None`.
        gaps: Gaps of every other norm to `best`, with `verdict` `worse` where shown.
    """

    value: Value
    trained: str | None
    counted: str | None
    best: str | None
    gaps: Mapping[str, Gap]


class Axis(TypedDict):
    """A factor, as results show it.

    Attributes:
        name: See `Factor`.
        label: See `Factor`.
        log: See `Factor`.
        reference: See `Factor`; `None` where the settings leave it out.
    """

    name: str
    label: str
    log: bool
    reference: Value | None


@dataclass(frozen=True, kw_only=True)
class CurveResult:
    """The result of one curve on one problem.

    Attributes:
        name: Name of the curve.
        title: A heading.
        factor: The x-axis.
        values: Factor values, in order.
        shows: A sentence on what the curve shows.
        hides: A sentence on what it cannot show.
        advises: Whether recommendations rest on it.
        cells: The cells of its table, column by column.
        standings: The order of the norms at each factor value.
    """

    name: str
    title: str
    factor: Axis
    values: tuple[Value, ...]
    shows: str
    hides: str
    advises: bool
    cells: tuple[CellResult, ...]
    standings: tuple[Standing, ...]

    def cell(self, norm: str, value: Value) -> CellResult:
        """Find the cell of a norm and a factor value."""
        return next(cell for cell in self.cells if (cell.norm, cell.value) == (norm, value))

    def shared(self, metric: Metric, value: Value) -> Estimate:
        """Return a side metric that is the same for all norms, from the cell with the most successful runs."""
        column = [cell.side[metric.name] for cell in self.cells if cell.value == value]
        return max(column, key=lambda found: found.n)


@dataclass(frozen=True, kw_only=True)
class ProblemResult:
    """The result of one problem.

    Attributes:
        name: Name of the problem.
        title: A heading.
        metric: Metric of errors, differences and margins.
        margin: Margin in the metric's unit.
        side: Further metrics.
        curves: Results by curve.
        minimal_difference: Approximate difference that is found with a chance of 80 % at this number of seeds, at the
            median spread of the problem's paired differences.
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
        """The cells of all curves; flat references have one cell a value."""
        return tuple(cell for curve in self.curves for cell in curve.cells)

    def curve(self, name: str) -> CurveResult:
        """Find a curve by name."""
        return next(curve for curve in self.curves if curve.name == name)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of a configuration: medians over its runs, in seconds and bytes, `None` where unknown.

    Attributes:
        step: Time of an update.
        run: Time of all updates of a run.
        compile: Time to compile the program that the runs share.
        memory: Bytes that the training program holds on the device.
        moved: Bytes that collectives send to a device in an update, where several devices train one model.
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
        seeds: Number of runs.
    """

    middle: Numbers
    low: Numbers
    high: Numbers
    seeds: int


@dataclass(frozen=True, kw_only=True)
class SeriesResult:
    """A series of one problem, at one value of one curve.

    Attributes:
        lines: For every norm that has the series, a line for each time of measurement.
        without: Evaluated norms without the series.
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
    config: Mapping[str, object]
    stage: str
    learning_rate: float
    seed: int
    status: str
    reason: str
    metrics: Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """The analysis of the records of a comparison.

    Attributes:
        comparison: Name of the comparison.
        tier: Name of the budget.
        seeds: Number of evaluation seeds.
        level: Level of the intervals, e.g. 0.95.
        default_learning_rate: The learning rate of untuned norms; `None` where none was trained untuned.
        norms: The norms as they were written.
        names: Titles of the norms by their strings.
        looks: Colours and markers of the norms by their strings. Left out of `to_json`.
        baseline: The norm to which others are compared.
        baseline_note: Reason why the baseline is not the declared one, else empty.
        claims: Whether the budget makes claims.
        exploratory: Whether there are fewer seeds than `SEEDS_FOR_CLAIMS`.
        problems: Results by problem.
        counts: Numbers of runs `planned` (tuning included), `done` and `missing`.
        runs: Every planned run. Left out of `to_json`.
        costs: Costs in the order of the cells. Left out of `to_json`: only they differ when the same runs are repeated.
        series: Series measured before, during and after training, at the reference value of the first curve. Left out
            of `to_json`, where they would be most of the text.
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
    looks: Mapping[str, tuple[str, str]]
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
        """Find the cost of a cell."""
        where = (cell.problem, cell.curve, cell.norm, cell.value)
        return next(cost for cost in self.costs if (cost.problem, cost.curve, cost.norm, cost.value) == where)


def to_json(analysis: Analysis) -> str:
    """Write the analysis as JSON without costs, so that repeated runs give the same text."""
    plain = dataclasses.asdict(dataclasses.replace(analysis, runs=(), costs=(), series=()))
    del plain["runs"], plain["costs"], plain["series"], plain["looks"]
    return json.dumps(plain, separators=(",", ":"), sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def seeds_alone(seeds: Sequence[int]) -> str:
    """Write `seed 7 alone keeps`, or `seeds 3, 7 alone keep`."""
    return f"seed {seeds[0]} alone keeps" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))} alone keep"
