"""Measure the error rates and the power of verdicts and recommendations on simulated results with a known truth.

    python benchmarks/error_rates.py

The script prints the tables of `docs/explanation/statistics.md`. Errors are in percentage points, and the margin is
half a point. Numbers in brackets are for Student's interval with the same margin, without a minimum number of runs.
"""

import argparse
import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from normlab import study
from normlab.study.analysis import estimates
from normlab.study.analysis.analyse import analyse
from normlab.study.analysis.estimates import BETTER, CAUTIOUS, EQUIVALENT, WORSE, runs_to_see
from normlab.study.analysis.results import Analysis
from normlab.study.data import dataset
from normlab.study.data.splits import split
from normlab.study.design.budgets import Tier
from normlab.study.design.comparison import Comparison, Settings
from normlab.study.design.factors import Curve, Factor
from normlab.study.design.plan import Plan
from normlab.study.design.program import Program
from normlab.study.design.records import Configuration, Record, Run, content_key
from normlab.study.report.advice import recommend
from normlab.study.report.headline import headlines

MARGIN = 0.5
SEEDS = (5, 10, 20, 30, 46)
Numbers = np.ndarray
Draw = Callable[[np.random.Generator, tuple[int, int]], tuple[Numbers, Numbers]]
"""Draws errors of two norms, a row for each simulation, with equal means unless stated; NaN is a missing run."""


class Ends(NamedTuple):
    """Intervals of many differences, as one array for each end."""

    low: Numbers
    high: Numbers


def normal(random: np.random.Generator, shape: tuple[int, int]) -> tuple[Numbers, Numbers]:
    """Draw noise of which pairs share half, so that differences have a standard deviation of half a point."""
    shared, *own = 0.5 * math.sqrt(0.5) * random.normal(size=(3, *shape))
    return own[0] + shared, own[1] + shared


def student_t(freedom: float) -> Draw:
    """Return a draw with heavy tails on both sides."""

    def draw(random: np.random.Generator, shape: tuple[int, int]) -> tuple[Numbers, Numbers]:
        first, second = 0.3 * random.standard_t(freedom, size=(2, *shape))
        return first, second

    return draw


def lognormal(sigma: float, *, both: bool) -> Draw:
    """Return a draw with a long tail of bad runs, for both norms or only the first."""

    def draw(random: np.random.Generator, shape: tuple[int, int]) -> tuple[Numbers, Numbers]:
        first, second = 0.3 * (np.exp(sigma * random.normal(size=(2, *shape))) - math.exp(sigma**2 / 2))
        return first, second if both else 0.1 * random.normal(size=shape)

    return draw


def in_steps(random: np.random.Generator, shape: tuple[int, int]) -> tuple[Numbers, Numbers]:
    """Draw errors that are multiples of one test example of 517, so that many differences are equal."""
    step = 100 / 517
    first, second = (np.round(side / step) * step for side in normal(random, shape))
    return first, second


def unequal(random: np.random.Generator, shape: tuple[int, int]) -> tuple[Numbers, Numbers]:
    """Draw a norm with ten times the noise of the other and two missing runs: Welch's test."""
    first, second = np.array([1.0, 0.1])[:, None, None] * 0.5 * random.normal(size=(2, *shape))
    first[:, :2] = np.nan
    return first, second


def bad_runs(share: float, size: float, *, lead: float = 0.0) -> Draw:
    """Return a draw with a failure mode that counts as `ok`: some runs of the first norm, otherwise ahead by `lead`."""

    def draw(random: np.random.Generator, shape: tuple[int, int]) -> tuple[Numbers, Numbers]:
        first, second = normal(random, shape)
        return first + size * (random.random(shape) < share) - lead, second

    return draw


@dataclass(frozen=True)
class Noise:
    """Kind of noise, and the true difference that it causes."""

    title: str
    draw: Draw
    truth: float = 0.0


NOISES = (
    Noise("normal", normal),
    Noise("t, 3 degrees of freedom", student_t(3)),
    Noise("t, 2 degrees of freedom", student_t(2)),
    Noise("lognormal, both norms", lognormal(1.0, both=True)),
    Noise("lognormal (0.5), one norm", lognormal(0.5, both=False)),
    Noise("lognormal (1.0), one norm", lognormal(1.0, both=False)),
    Noise("steps of a test example", in_steps),
    Noise("unequal variances, missing runs", unequal),
    Noise("+2.5 points in 20 % of runs", bad_runs(0.2, 2.5), 0.5),
    Noise("+5 points in 10 % of runs", bad_runs(0.1, 5.0), 0.5),
    Noise("+30 points in 10 % of runs", bad_runs(0.1, 30.0), 3.0),
)


def intervals(first: Numbers, second: Numbers, level: float, *, hall: bool = True) -> Ends:
    """Compute the interval of the difference in every row, as `estimates.paired` does, or Student's interval."""
    parts = (first, second) if np.isnan(first).any() else (first - second,)
    n = [np.isfinite(part).sum(1) for part in parts]
    mean = [np.nanmean(part, 1) for part in parts]
    squares = [np.nanvar(part, 1, ddof=1) / size for part, size in zip(parts, n, strict=True)]
    third = [_third(part, size, middle) for part, size, middle in zip(parts, n, mean, strict=True)]
    error = np.sqrt(np.maximum(sum(squares), 1e-60))
    if len(parts) == 1:
        centre, freedom, tail = mean[0], n[0] - 1.0, third[0]
    else:
        centre, tail = mean[0] - mean[1], third[0] - third[1]
        freedom = error**4 / sum(square**2 / (size - 1) for square, size in zip(squares, n, strict=True))
    low, high = estimates.reach(freedom, tail / error**3 if hall else 0 * centre, level)
    return Ends(centre - low * error, centre + high * error)


def _third(part: Numbers, n: Numbers, mean: Numbers) -> Numbers:
    """Estimate the third central moment of each row's mean."""
    centred = part - mean[:, None]
    second = np.maximum(np.nanmean(centred**2, 1), 1e-100)
    return np.nanmean(centred**3, 1) / second**1.5 * np.nanvar(part, 1, ddof=1) ** 1.5 / n**2


def found(first: Numbers, second: Numbers, margin: float = MARGIN, *, student: bool = False) -> Mapping[str, float]:
    """Return the shares of rows that `estimates.judge` or Student's interval calls `better`, `worse`, `equivalent`."""
    low, high = intervals(first, second, 0.95, hall=not student)
    wide = Ends(low, high) if student else intervals(first, second, CAUTIOUS)
    runs = min(int(np.isfinite(side).sum(1).min()) for side in (first, second))
    within = (-margin < wide.low) & (wide.high < margin) & (student or runs >= runs_to_see())
    return {
        BETTER: float(np.mean(high < -margin)),
        WORSE: float(np.mean(low > margin)),
        EQUIVALENT: float(np.mean(within)),
    }


def false_equivalent(noise: Noise, seeds: int, simulations: int, *, student: bool = False) -> float:
    """Return how often norms that differ by the margin or more are called equivalent, in the worse direction."""
    first, second = noise.draw(np.random.default_rng(seeds), (simulations, seeds))
    shifts = (0.0,) if noise.truth else (MARGIN, -MARGIN)
    return max(found(first + shift, second, student=student)[EQUIVALENT] for shift in shifts)


def false_claim(noise: Noise, seeds: int, simulations: int, *, student: bool = False) -> float:
    """Return how often a norm that differs by exactly the margin is called better or worse by more than the margin."""
    first, second = noise.draw(np.random.default_rng(seeds), (simulations, seeds))
    first = first - noise.truth
    lower, upper = (found(first + shift, second, student=student) for shift in (-MARGIN, MARGIN))
    return max(lower[BETTER], upper[WORSE])


def power(seeds: int, simulations: int) -> dict[str, tuple[float, float]]:
    """Measure how often `judge` and Student's interval decide on normal data, where Student's does in 80 %."""
    first, second = normal(np.random.default_rng(seeds), (simulations, seeds))

    def better(effect: float, student: bool) -> float:
        return found(first - effect - MARGIN, second, student=student)[BETTER]

    def alike(margin: float, student: bool) -> float:
        return found(first, second, margin, student=student)[EQUIVALENT]

    rates: dict[str, tuple[float, float]] = {}
    for name, rate in ((BETTER, better), (EQUIVALENT, alike)):
        sizes = np.linspace(0.02, 3, 300).tolist()
        size = sizes[bisect_left(sizes, 0.8, key=lambda size, rate=rate: rate(size, True))]
        rates[name] = rate(size, False), rate(size, True)
    return rates


# ------------------------------------------------------------------------------------------------ whole comparisons

Errors = Callable[[np.random.Generator, int], Numbers]
"""Draws the errors of a norm by seed, in points; NaN is a run that collapsed."""


class Simulated:
    """Comparison with simulated records: norms by columns by seeds."""

    def __init__(self, norms: int, seeds: int, columns: int = 1) -> None:
        """Make the plan and records without errors."""
        values = tuple(2**power for power in range(1, columns + 1))
        factor = Factor(name="batch_size", label="batch size", flag="--batch-sizes", values=values)
        curve = Curve(name="deployed", title="deployed", factor=factor, config=lambda value: {"batch_size": value})
        self.names = NORMS[:norms]
        self.comparison = Comparison(
            name="simulated",
            problems=(study.Problem(name="numbers", title="numbers", build=_nothing),),
            norms=self.names,
            curves=(curve,),
            tiers={"standard": Tier(epochs=1, learning_rates=(0.1,), tuning_seeds=1, seeds=seeds)},
            baseline=self.names[0],
            margin=MARGIN / 100,
        )
        self.settings = Settings(
            comparison="simulated", source="", tier="standard", problems=("numbers",), norms=self.names,
            curves=("deployed",), values={"deployed": values}, learning_rates=(0.1,), epochs=1, tuning_seeds=1,
            seeds=seeds,
        )  # fmt: skip
        self.plan = Plan(self.comparison, self.settings)
        self.tuned, self.evaluated = self._records()

    def _records(self) -> tuple[list[Record], list[Record]]:
        tuned = [_record(run) for run in self.plan.pending([])]
        return tuned, [_record(run) for run in self.plan.pending(tuned)]

    def analysis(self, errors: Mapping[Configuration, Numbers]) -> Analysis:
        """Analyse errors by configuration, a number for each seed."""
        return analyse(
            self.comparison,
            self.settings,
            self.tuned
            + [_with_error(record, errors[record.run.configuration][record.run.seed]) for record in self.evaluated],
        )

    def column(self, errors: Mapping[str, Numbers]) -> Analysis:
        """Analyse errors by norm, a number for each seed."""
        return self.analysis({configuration: errors[configuration.norm] for configuration in self.plan.configurations})


NORMS = ("batch", "layer", "rms", "none", "group", "batch_renorm", "online")


def _nothing(norm: object, config: object) -> Program:
    raise NotImplementedError


def _record(run: Run) -> Record:
    metrics = {"validation": 0.1, "chance": 0.9, "train_loss": 0.1}
    return Record(key=content_key(run), run=run, identity={}, status="ok", metrics=metrics)


def _with_error(record: Record, points: float) -> Record:
    if math.isnan(points):
        return replace(record, status="collapsed", metrics={"chance": 0.9})
    return replace(record, metrics={"test": 0.05 + points / 100, "train_loss": 0.1, "chance": 0.9})


def hard_seeds(seeds: int, simulations: int) -> dict[str, float]:
    """Count claims if layer norm is a point better but collapses at 30 % of seeds, and batch norm never does."""
    made, random, said = Simulated(2, seeds), np.random.default_rng(seeds), {"better": 0, "use": 0, "neither": 0}
    for _ in range(simulations):
        batch, layer = 0.6 * random.normal(size=(2, seeds))
        layer = np.where(random.random(seeds) < 0.3, np.nan, layer - 1.0)
        analysis = made.column({"batch": batch, "layer": layer})
        gap, choice = analysis.cells[1].gap, recommend(analysis).choices[0]
        said["better"] += gap is not None and gap.verdict == BETTER
        said["use"] += choice.norm == "layer"
        said["neither"] += choice.norm is None
    return {name: count / simulations for name, count in said.items()}


@dataclass(frozen=True)
class Field:
    """Norms whose true errors are known, in the order of `NORMS`.

    Attributes:
        title: Title of the row.
        means: True errors without bad runs.
        bad: Points that a bad run adds, for all norms but the first.
        share: Share of bad runs.
        tail: Draw of the noise.
    """

    title: str
    means: tuple[float, ...]
    bad: float = 0.0
    share: float = 0.0
    tail: Draw = normal

    @property
    def truth(self) -> dict[str, float]:
        """True error of each norm."""
        return {
            name: mean + (self.bad * self.share if place else 0.0)
            for place, (name, mean) in enumerate(zip(NORMS, self.means, strict=False))
        }

    def draw(self, random: np.random.Generator, seeds: int) -> dict[str, Numbers]:
        """Draw errors by norm, one for each seed."""
        errors: dict[str, Numbers] = {}
        for place, (name, mean) in enumerate(zip(NORMS, self.means, strict=False)):
            noise, _ = self.tail(random, (1, seeds))
            bad = self.bad * (random.random(seeds) < self.share) if place else 0.0
            errors[name] = mean + noise[0] + bad
        return errors


FIELDS = (
    Field("the other is 3 points better", (0.0, 3.0)),
    Field("+30 points in 10 % of runs, else equal", (0.0, 0.0), bad=30.0, share=0.1),
    Field("+30 points in 10 % of runs, else 0.3 better", (0.0, -0.3), bad=30.0, share=0.1),
    Field("the same of six among seven norms", (0.0, *[-0.3] * 6), bad=30.0, share=0.1),
    Field("0.5 worse, t with 2 degrees of freedom", (0.0, 0.5), tail=student_t(2)),
    Field("0.5 worse, lognormal (1.0)", (0.0, 0.5), tail=lognormal(1.0, both=True)),
    Field("six of seven 0.5 worse, normal", (0.0, *[0.5] * 6)),
)


def sure(field: Field, seeds: int, simulations: int) -> tuple[float, float]:
    """Return how often a recommendation is sure and wrong by the margin or more, and how often sure and right."""
    made, random, truth = Simulated(len(field.means), seeds), np.random.default_rng(seeds), field.truth
    wrong = right = 0
    for _ in range(simulations):
        choice = recommend(made.column(field.draw(random, seeds))).choices[0]
        if choice.norm and choice.sure:
            off = truth[choice.norm] - min(truth.values()) >= MARGIN - 1e-9
            wrong, right = wrong + off, right + (not off)
    return wrong / simulations, right / simulations


HEADLINES = (
    (Field("batch norm is the lowest, six norms are 0.5 worse", (0.0, *[0.5] * 6)), 0.0),
    (Field("layer norm is the lowest, the others are 0.5 worse", (0.5, 0.0, *[0.5] * 5)), 0.0),
    (Field("the same, and 20 % of all runs collapse", (0.5, 0.0, *[0.5] * 5)), 0.2),
    (Field("all norms are the same, and 20 % of all runs collapse", (0.0,) * 7), 0.2),
)
"""Fields in which no norm is worse by more than the margin or collapses more often, with the share that collapses."""


def false_headlines(field: Field, collapses: float, columns: int, *, seeds: int = 10) -> float:
    """Return how often a headline rules out a norm in one of `HEADLINES`."""
    made, random, said = Simulated(len(field.means), seeds), np.random.default_rng(seeds), 0
    for _ in range(columns):
        errors = field.draw(random, seeds)
        run = {norm: np.where(random.random(seeds) < collapses, np.nan, found) for norm, found in errors.items()}
        said += "Avoid" in headlines(made.column(run))[0]
    return said / columns


def alike_reports(reports: int, *, norms: int = 7, columns: int = 5, seeds: int = 10) -> dict[str, float]:
    """Return the rates of columns and reports with a false better or worse, if all norms are the same."""
    made, random = Simulated(norms, seeds, columns), np.random.default_rng(0)
    made.comparison = replace(made.comparison, margin=0.0)
    false_columns = false_reports = 0
    for _ in range(reports):
        shared = random.normal(size=(columns, 1, seeds))
        noise = math.sqrt(0.5) * (shared + random.normal(size=(columns, norms, seeds)))
        by_configuration = dict(zip(made.plan.configurations, noise.reshape(-1, seeds), strict=True))
        analysis = made.analysis(by_configuration)
        claimed = {cell.value for cell in analysis.cells if cell.gap and cell.gap.verdict in (BETTER, WORSE)}
        false_columns, false_reports = false_columns + len(claimed), false_reports + bool(claimed)
    return {"column": false_columns / (reports * columns), "report": false_reports / reports}


# ------------------------------------------------------------------------------------------------ how data are split

STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0)
"""Grid for the learner of the digits, in place of five learning rates of a network."""


class Learner:
    """Ridge regression of the digits' classes on random features: real data and a network that trains at once."""

    def __init__(self, features: int, seed: int) -> None:
        """Draw the features, which are the same for all seeds of a comparison, like a norm."""
        digits = dataset.digits()
        inputs = digits.inputs.reshape(len(digits.inputs), -1)
        weights = np.random.default_rng(seed).normal(size=(inputs.shape[1], features)) / 4
        self.features = np.maximum(inputs @ weights, 0)
        self.labels = digits.labels

    def wrong(self, train: Numbers, strength: float) -> Numbers:
        """Train on some examples, and return for every example whether it is misclassified."""
        x, y = self.features[train], np.eye(10)[self.labels[train]]
        weights = np.linalg.solve(x.T @ x + strength * np.eye(x.shape[1]), x.T @ y)
        return (self.features @ weights).argmax(1) != self.labels


@threadpool_limits.wrap(1)  # matrices are small
def optimism(simulations: int) -> tuple[float, float]:
    """Measure by how many points a test error is too low because tuning has seen some of its examples.

    A strength is chosen on one seed's validation set. It is evaluated on another seed's test set: on all examples, and
    on those that were not in the validation set.

    Returns:
        The mean and its standard error.
    """
    learner, gains = Learner(100, 0), []
    for seed in range(simulations):
        tuning, other = split(1797, 1000 + seed), split(1797, seed)
        chosen = min(STRENGTHS, key=lambda s: learner.wrong(tuning["train"], s)[tuning["validation"]].mean())
        wrong, test = learner.wrong(other["train"], chosen), other["test"]
        seen = np.isin(test, tuning["validation"])
        gains.append(100 * (wrong[test[~seen]].mean() - wrong[test].mean()))
    return float(np.mean(gains)), float(np.std(gains) / math.sqrt(simulations))


@threadpool_limits.wrap(1)
def missed(simulations: int, *, fixed: bool, seeds: int = 10, splits: int = 200) -> float:
    """Return how often the interval of the difference of two learners misses the difference over all splits.

    Args:
        simulations: Number of comparisons, which use seven pairs of learners in turn.
        fixed: True for one test set for all seeds of a comparison, False for one drawn by each seed.
        seeds: Evaluation seeds of a comparison.
        splits: Number of splits over which the true difference is computed.
    """
    misses = 0
    pairs = [(Learner(100, 2 * pair), Learner(100, 2 * pair + 1)) for pair in range(7)]
    errors = [_difference_of_all(*pair, splits) for pair in pairs]
    for comparison in range(simulations):
        pair, truth = pairs[comparison % 7], errors[comparison % 7]
        held_out = split(1797, 10_000 + comparison)["test"]
        differences = []
        for seed in range(comparison * seeds, (comparison + 1) * seeds):
            parts = split(1797, seed)
            rest = np.setdiff1d(np.random.default_rng(seed).permutation(1797), held_out, assume_unique=True)
            train, test = (rest[: len(parts["train"])], held_out) if fixed else (parts["train"], parts["test"])
            first, second = (learner.wrong(train, 1.0)[test].mean() for learner in pair)
            differences.append(first - second)
        interval = estimates.paired(differences, [0.0] * seeds).interval
        misses += interval is not None and not interval[0] <= truth <= interval[1]
    return misses / simulations


def _difference_of_all(first: Learner, second: Learner, splits: int) -> float:
    differences = []
    for seed in range(20_000, 20_000 + splits):
        parts = split(1797, seed)
        a, b = (learner.wrong(parts["train"], 1.0)[parts["test"]].mean() for learner in (first, second))
        differences.append(a - b)
    return float(np.mean(differences))


# ------------------------------------------------------------------------------------------------ tables


def tables(simulations: int, reports: int) -> Iterator[str]:
    """Yield the tables of the page, as Markdown."""
    head = ("noise", *map(_seeds, SEEDS))
    for title, rate in (("False “equivalent”", false_equivalent), ("False “better” or “worse”", false_claim)):
        yield f"{title}, % of comparisons at a true difference of the margin, or as stated"
        yield _table(head, [(noise.title, *_beside_student(rate, noise, simulations)) for noise in NOISES])
    yield "Power on normal data, %, at differences at which Student's interval has about 80"
    found = [power(n, simulations) for n in SEEDS]
    rows = [(name, *(_both(*rates[name]) for rates in found)) for name in (BETTER, EQUIVALENT)]
    yield _table(("verdict", *head[1:]), rows)
    yield "Layer norm is a point better but collapses at 30 % of seeds; batch norm never collapses; % of comparisons"
    said = {n: hard_seeds(n, reports // 2) for n in (10, 20, 40)}
    titles = {"better": "“layer norm is better”", "use": "“use layer norm”", "neither": "no norm is recommended"}
    rows = [(title, *(_percent(rates[name]) for rates in said.values())) for name, title in titles.items()]
    yield _table(("said", *map(_seeds, said)), rows)
    yield "“Sure”: wrong (right), % of reports"
    rows = [(field.title, *(_both(*sure(field, n, reports // 2)) for n in SEEDS[2:])) for field in FIELDS]
    yield _table(("the other norms", *head[3:]), rows)
    yield f"Headlines that rule out a norm, % of {reports // 2} columns with seven norms and ten seeds"
    rows = [(field.title, _percent(false_headlines(field, share, reports // 2))) for field, share in HEADLINES]
    yield _table(("the norms", "% of columns"), rows)
    yield f"Seven identical norms, five columns, ten seeds, no margin: “better” or “worse” in {reports} reports"
    rates = alike_reports(reports)
    yield _table(("% of columns", "% of reports"), [(_percent(rates["column"]), _percent(rates["report"]))])
    yield "Splits of the digits"
    gain, deviation = optimism(reports // 2)
    misses = [_percent(missed(reports // 5, fixed=fixed, splits=min(200, reports))) for fixed in (False, True)]
    rows = [
        ("a tuned error is too low by, points", f"{gain:.3f} ± {deviation:.3f}", "0 by construction"),
        ("95 % intervals of a difference that miss it, %", *misses),
    ]
    yield _table(("", "drawn by every seed", "one test set for all"), rows)


def _beside_student(rate: Callable[..., float], noise: Noise, simulations: int) -> Iterator[str]:
    for n in SEEDS:
        yield _both(rate(noise, n, simulations), rate(noise, n, simulations, student=True))


def _seeds(n: int) -> str:
    return f"{n} seeds"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _both(ours: float, other: float) -> str:
    return f"{_percent(ours)} ({_percent(other)})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description="Error rates and power of verdicts on simulated results.")
    parser.add_argument("--simulations", type=int, default=5_000, help="simulations of each difference (default: 5000)")
    parser.add_argument("--reports", type=int, default=1_000, help="simulations of whole comparisons (default: 1000)")
    given = parser.parse_args(arguments)
    for text in tables(given.simulations, given.reports):
        print(text, end="\n\n", flush=True)


if __name__ == "__main__":
    main()
