"""Results of an analysis as plain values."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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


def to_json(analysis: Analysis) -> str:
    """Give the analysis as JSON text, the same for runs that are repeated: without costs."""
    plain = dataclasses.asdict(dataclasses.replace(analysis, runs=(), costs=(), series=()))
    del plain["runs"], plain["costs"], plain["series"]
    return json.dumps(plain, separators=(",", ":"), sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def seeds_alone(seeds: Sequence[int]) -> str:
    """`seed 7 alone keeps`, or `seeds 3, 7 alone keep`."""
    return f"seed {seeds[0]} alone keeps" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))} alone keep"
