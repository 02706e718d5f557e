"""Recommendations: a norm for each factor value, its certainty and its cost; or that the data cannot decide.

The rule, for every column of a curve that advises: recommended is the norm with the lowest mean error, failed runs
counted as the worst error, unless it is shown to be worse than another where both train, or to fail more often; then
none is. It is sure where intervals rule out that another norm is better by more than the margin, and there are so many
runs that a failure mode of one run in ten would have been seen. Step times, which depend on what else the machine did,
are shown and decide nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from normlab.study.analysis.estimates import (
    CAUTIOUS,
    FEWEST_TO_RECOMMEND,
    UNSEEN,
    WORSE,
    Estimate,
    rules_out,
    runs_to_see,
)
from normlab.study.analysis.results import (
    Analysis,
    CellResult,
    CurveResult,
    Failures,
    Gap,
    ProblemResult,
    Standing,
    seeds_alone,
)
from normlab.study.design.factors import Value
from normlab.study.report import formatting

STEP_TIMES = (
    "Step times are medians over runs that may have shared the machine, and decide nothing here; for speed, measure "
    "norms alone."
)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The recommendation for one column.

    Attributes:
        problem: Name of the problem.
        curve: Name of the curve.
        value: The factor's value.
        norm: The recommended norm; `None` where the data cannot decide.
        reason: Reason for this norm, or for none.
        error: Error of the norm; `None` without one.
        failures: Failures of the norm; `None` without one.
        sure: Whether intervals rule out that another norm is better by more than the margin, over enough runs to see a
            failure of one run in ten.
        undecided: The norms that may be better.
        seeds_needed: Approximate total number of seeds for certainty; `None` where unknown or not needed.
        step_seconds: Median time of an update.
        to_baseline: Ratio of the step time to that of the baseline.
        to_fastest: Ratio of the step time to the lowest of the column.
    """

    problem: str
    curve: str
    value: Value
    norm: str | None
    reason: str
    error: Estimate | None = None
    failures: Failures | None = None
    sure: bool = False
    undecided: tuple[str, ...] = ()
    seeds_needed: int | None = None
    step_seconds: float | None = None
    to_baseline: float | None = None
    to_fastest: float | None = None


@dataclass(frozen=True, kw_only=True, repr=False)
class Recommendation:
    """The answer of a comparison.

    Attributes:
        preface: Limits of the whole recommendation, e.g. too few seeds; empty without any.
        sentences: At most two sentences for every problem and advising curve.
        choices: Choices in the order of problems, curves and values.
    """

    preface: str = ""
    sentences: tuple[str, ...] = ()
    choices: tuple[Choice, ...] = ()

    @property
    def sentence(self) -> str:
        """Return the whole recommendation as one text."""
        return " ".join(part for part in (self.preface, *self.sentences) if part)

    def __str__(self) -> str:
        """Return a paragraph for each sentence, and a note on step times."""
        timed = any(choice.step_seconds is not None for choice in self.choices)
        return "\n".join(part for part in (self.preface, *self.sentences, STEP_TIMES if timed else "") if part)

    __repr__ = __str__


def recommend(analysis: Analysis) -> Recommendation:
    """Recommend norms for every problem and every advising curve."""
    if not analysis.claims:
        return Recommendation(preface=_no_claim(analysis))
    advising = [(problem, curve) for problem in analysis.problems for curve in problem.curves if curve.advises]
    if not advising:
        return Recommendation(preface="No recommendation: none of the curves that were run advises.")
    parts = [_CurveAdvice(analysis, problem, curve) for problem, curve in advising]
    return Recommendation(
        preface=_preface(analysis),
        sentences=tuple(part.sentence() for part in parts),
        choices=tuple(choice for part in parts for choice in part.choices),
    )


def support(seeds: int, norms: int) -> str:
    """State the claims that a number of seeds cannot support, whatever the results; empty without any.

    Args:
        seeds: Number of evaluation seeds.
        norms: Number of norms.
    """
    if norms < 2:
        return ""
    sure, alike = runs_to_see(norms - 1), runs_to_see()
    if seeds < FEWEST_TO_RECOMMEND:
        few = f"no recommendation, which takes {FEWEST_TO_RECOMMEND}, or {sure} to be sure"
    elif seeds < sure:
        few = f"recommendations for now, none that is sure: with {formatting.count(norms, 'norm')} that takes {sure}"
    else:
        return ""
    equivalent = f", and {alike} to call norms equivalent" if seeds < alike else ""
    return f"{formatting.count(seeds, 'seed')} can support {few}{equivalent}."


class _CurveAdvice:
    """The choices for one curve of one problem, and sentences about them."""

    def __init__(self, analysis: Analysis, problem: ProblemResult, curve: CurveResult) -> None:
        self.analysis, self.problem, self.curve = analysis, problem, curve
        self.steps: dict[Value, dict[str, float]] = {value: {} for value in curve.values}
        for cost in analysis.costs:
            if (cost.problem, cost.curve) == (problem.name, curve.name) and cost.step is not None:
                self.steps[cost.value][cost.norm] = cost.step
        same = problem.same_for_all_norms
        self.choices = () if same else tuple(self._choice(standing) for standing in curve.standings)

    def sentence(self) -> str:
        """Write the answer of this curve in at most two sentences."""
        if self.problem.same_for_all_norms:
            return f"{self.problem.title}: all norms gave identical runs; does the model use its norm?"
        chosen = [choice for choice in self.choices if choice.norm]
        if not chosen:
            return f"{self.problem.title}: no norm can be recommended {self._nowhere(self.choices)}."
        none = [choice for choice in self.choices if not choice.norm]
        settled = "for now use" if not any(choice.undecided for choice in chosen) else "not settled; for now use"
        use = "use" if all(choice.sure for choice in chosen) else settled
        first = f"{self.problem.title}: {use} {self._uses(chosen)}{self._certainty(chosen)}"
        if none:
            first += f"; none can be recommended {self._nowhere(none)}"
        second = "; ".join(part for part in (self._lowest(chosen), self._when_trained(chosen), self._breaks()) if part)
        return f"{first}. {second[0].upper()}{second[1:]}."

    def _choice(self, standing: Standing) -> Choice:
        column = [cell for cell in self.curve.cells if cell.value == standing.value]
        place = {"problem": self.problem.name, "curve": self.curve.name, "value": standing.value}
        if standing.best is None:
            return Choice(**place, norm=None, reason=self._why_none(column, standing))
        steps, norm = self.steps[standing.value], standing.best
        cell = next(cell for cell in column if cell.norm == norm)
        others = [c for c in column if c.norm != norm and not c.invalid]
        undecided = tuple(c.norm for c in others if self._may_be_better(c, cell, standing, len(others)))
        enough = runs_to_see(len(others))
        sure = not undecided and cell.failures.n >= enough and not cell.tuned_over
        return Choice(
            **place,
            norm=norm,
            reason=self._why(standing),
            error=cell.error,
            failures=cell.failures,
            sure=sure,
            undecided=undecided,
            seeds_needed=None if sure else _seeds_needed(standing.gaps, undecided, enough),
            step_seconds=steps.get(norm),
            to_baseline=_ratio(steps, norm, steps.get(self.analysis.baseline)),
            to_fastest=_ratio(steps, norm, min(steps.values(), default=None)),
        )

    def _may_be_better(self, other: CellResult, cell: CellResult, standing: Standing, others: int) -> bool:
        """Check whether more seeds might show another norm to be better by more than the margin.

        Args:
            other: Result of the other norm.
            cell: Result of the recommended norm.
            standing: The order of the column.
            others: Number of other norms.
        """
        if not other.failures.n:
            return True
        gap = standing.gaps.get(other.norm)
        if gap is None:  # no run of it ended well
            return other.failures.n < FEWEST_TO_RECOMMEND
        if gap.fails_more:
            return False
        margin = self.problem.margin
        if gap.fails_less or not rules_out(gap.difference, margin, others):
            return True
        return bool(cell.failures.k) and not rules_out(gap.counted, margin, others)

    def _why(self, standing: Standing) -> str:
        assert standing.best
        if standing.best == standing.trained:
            return "lowest mean error"
        return f"lowest mean error with failures counted; where it trains, {self._failing(standing, standing.trained)}"

    def _why_none(self, column: Sequence[CellResult], standing: Standing) -> str:
        runnable = [cell for cell in column if not cell.invalid]
        evaluated = [cell for cell in runnable if cell.failures.n]
        if not evaluated:
            return "nothing has been evaluated yet" if runnable else "no norm can be run there"
        if standing.trained is None:
            if max(cell.failures.n for cell in evaluated) < FEWEST_TO_RECOMMEND:
                return f"too few runs to recommend a norm, which takes {FEWEST_TO_RECOMMEND}"
            return "runs of every norm failed"
        return f"where it trains, {self._failing(standing, standing.trained)}"

    def _failing(self, standing: Standing, norm: str | None) -> str:
        """Write `layer norm is lowest, but fails in 12 of 40 runs, and batch norm in 0 of 40`."""
        cells = {cell.norm: cell for cell in self.curve.cells if cell.value == standing.value}
        assert norm and standing.counted
        ours, theirs = cells[norm].failures, cells[standing.counted].failures
        text = f"{self._name(norm)} has the lowest error, but fails in {ours.k} of {formatting.count(ours.n, 'run')}"
        other = standing.counted
        return text if other == norm else f"{text}, and {self._name(other)} in {theirs.k} of {theirs.n}"

    def _uses(self, chosen: Sequence[Choice]) -> str:
        """Write `layer norm at batch size 2 and batch norm at 4 to 128`."""
        by_norm: dict[str, list[Choice]] = {}
        for choice in chosen:
            by_norm.setdefault(choice.norm or "", []).append(choice)
        parts = [
            f"{self._name(norm)} at {'' if index else f'{self._factor} '}{self._range([c.value for c in choices])}"
            f"{_failed(choices)}"
            for index, (norm, choices) in enumerate(by_norm.items())
        ]
        return formatting.listed(parts)

    def _certainty(self, chosen: Sequence[Choice]) -> str:
        open_ones = [choice for choice in chosen if choice.undecided]
        if not open_ones:
            level, margin = formatting.percent(CAUTIOUS, 0), formatting.points(self.problem.metric, self.problem.margin)
            ruled_out = f"{level} % intervals rule out that another norm is better by more than {margin}"
            return f"; {ruled_out}{self._unseen(chosen)}"
        among = {norm for choice in open_ones for norm in choice.undecided}
        names = formatting.listed([self._name(norm) for norm in self.analysis.norms if norm in among], "or")
        where = "" if len(open_ones) == len(chosen) else f" at {self._range([choice.value for choice in open_ones])}"
        needed = [choice.seeds_needed for choice in open_ones if choice.seeds_needed]
        notes = [seeds_to_decide(max(needed))] if len(needed) == len(open_ones) else []
        carried_by = sorted({seed for choice in open_ones for seed in self._carried_by(choice)})
        notes += [f"{seeds_alone(carried_by)} that open"] if carried_by else []
        noted = f" ({'; '.join(notes)})" if notes else ""
        return f", but{where} {names} may still be the better choice{noted}"

    def _carried_by(self, choice: Choice) -> set[int]:
        """Find the seeds that alone keep another norm undecided."""
        gaps = next(standing.gaps for standing in self.curve.standings if standing.value == choice.value)
        return {seed for norm in choice.undecided if norm in gaps for seed in gaps[norm].carried_by}

    def _unseen(self, chosen: Sequence[Choice]) -> str:
        """State how likely too few runs have missed a failure mode; empty where there are enough."""
        needed = [choice.seeds_needed for choice in chosen if choice.seeds_needed]
        if not needed:
            return ""
        runs = min(choice.failures.n for choice in chosen if choice.failures and not choice.sure)
        missed = formatting.percent((1 - UNSEEN) ** runs, 0)
        return (
            f" in runs like these, but {formatting.count(runs, 'run')} miss what goes wrong in one of ten with a "
            f"chance of {missed} % ({max(needed)} seeds would be sure)"
        )

    def _when_trained(self, chosen: Sequence[Choice]) -> str:
        """Name norms that have the lowest error but fail."""
        values = {choice.value for choice in chosen}
        found = [s for s in self.curve.standings if s.value in values and s.best != s.trained]
        parts = [f"where it trains, {self._failing(s, s.trained)} at {self._factor} {s.value}" for s in found]
        return "; ".join(parts)

    def _nowhere(self, choices: Sequence[Choice]) -> str:
        reasons = list(dict.fromkeys(choice.reason for choice in choices))
        return f"at {self._factor} {self._range([choice.value for choice in choices])}: {'; '.join(reasons)}"

    def _lowest(self, chosen: Sequence[Choice]) -> str:
        """Describe the place and the cost of the best result."""
        best = min(chosen, key=_mean)
        assert best.error and best.norm
        metric, name = self.problem.metric, self._name(best.norm)
        ends = formatting.interval(metric, best.error.interval)
        error = f"{formatting.quantity(metric, best.error.mean)} {ends}".rstrip()
        text = f"the lowest {metric.name} is {error} with {name} at {self._factor} {best.value}"
        return text if best.step_seconds is None else f"{text}, at {self._cost(best)}"

    def _cost(self, choice: Choice) -> str:
        step, baseline = f"{formatting.seconds(choice.step_seconds)} a step", self.analysis.baseline
        if choice.to_baseline is not None and choice.norm != baseline:
            return f"{step} ({formatting.ratio(choice.to_baseline)} that of {self._name(baseline)})"
        return (
            step if choice.to_fastest in (None, 1.0) else f"{step} ({formatting.ratio(choice.to_fastest)} the fastest)"
        )

    def _breaks(self) -> str:
        """Describe where the baseline fails or is shown worse, the worst place first."""
        found = {s.value: text for s in self.curve.standings if (text := self._broken(s))}
        if not found:
            return ""
        worst = max(found, key=self._damage)
        others = [value for value in found if value != worst]
        also = f" (it does not qualify at {self._range(others)} either)" if others else ""
        return f"{self._name(self.analysis.baseline)} {found[worst]} at {self._factor} {worst}{also}"

    def _broken(self, standing: Standing) -> str:
        """Describe the failure of the baseline in a column; empty without one."""
        cell = self.curve.cell(self.analysis.baseline, standing.value)
        gap = standing.gaps.get(cell.norm)
        if cell.invalid:
            return "cannot be run"
        if self._unreliable(cell, gap):
            return f"fails in {cell.failures.k} of {formatting.count(cell.failures.n, 'run')}"
        if gap and gap.verdict == WORSE:
            return f"loses {formatting.gap(self.problem.metric, gap.difference)} to {self._name(gap.reference)}"
        return ""

    def _damage(self, value: Value) -> tuple[float, float]:
        cell = self.curve.cell(self.analysis.baseline, value)
        gap = next(s for s in self.curve.standings if s.value == value).gaps.get(cell.norm)
        return cell.failures.k / max(1, cell.failures.n), (gap.difference.mean if gap else None) or 0.0

    def _name(self, norm: str) -> str:
        return in_sentence(self.analysis.names[norm])

    def _unreliable(self, cell: CellResult, gap: Gap | None) -> bool:
        """Check whether a norm is shown to fail more often than the recommended one, or never trains."""
        return gap.fails_more if gap else cell.failures.k == cell.failures.n > 0

    @property
    def _factor(self) -> str:
        return str(self.curve.factor["name"]).replace("_", " ")

    def _range(self, values: Sequence[Value]) -> str:
        """Write `4 to 32` for neighbours in the order of the curve, else `2 and 8`."""
        places = [self.curve.values.index(value) for value in values]
        if len(places) > 2 and places == list(range(places[0], places[-1] + 1)):
            return f"{values[0]} to {values[-1]}"
        return formatting.listed([str(value) for value in values])


def in_sentence(name: str) -> str:
    """Return the name of a norm, quoted where it would read as a negation, like `no norm`."""
    return f"“{name}”" if name.startswith("no ") else name


def seeds_to_decide(seeds: int) -> str:
    """State how many seeds would decide, unless these are more than are worth their time."""
    if seeds > formatting.WORTHWHILE:
        return "the difference is too small to matter here"
    return f"about {seeds} seeds would decide"


def _no_claim(analysis: Analysis) -> str:
    return (
        f"No claim is made: tier `{analysis.tier}` trains {formatting.count(analysis.seeds, 'seed')} per "
        "configuration, which shows that everything runs, not which norm is better."
    )


def _preface(analysis: Analysis) -> str:
    missing = analysis.counts["missing"]
    parts = (
        [f"Exploratory, with {formatting.count(analysis.seeds, 'seed')} per configuration."]
        if analysis.exploratory
        else []
    )
    tuned = formatting.provisional(analysis)
    parts += [f"Provisional: {tuned}."] if tuned else []
    parts += [f"Unfinished: {missing} of {analysis.counts['planned']} runs are still missing."] if missing else []
    return " ".join(parts)


def _failed(choices: Sequence[Choice]) -> str:
    """Write ` (1 of 10 runs failed)`; empty without failures."""
    failures = [choice.failures for choice in choices if choice.failures]
    failed, runs = sum(f.k for f in failures), sum(f.n for f in failures)
    return f" ({failed} of {formatting.count(runs, 'run')} failed)" if failed else ""


def _seeds_needed(gaps: Mapping[str, Gap], undecided: Sequence[str], enough: int) -> int | None:
    """Estimate the seeds that decide all undecided norms, but at least `enough`; `None` where one is unknown."""
    needed = [gap.seeds_needed if (gap := gaps.get(norm)) else None for norm in undecided]
    known = [number for number in needed if number is not None]
    return max([enough, *known]) if len(known) == len(needed) else None


def _ratio(steps: Mapping[str, float], norm: str, other: float | None) -> float | None:
    return steps[norm] / other if norm in steps and other else None


def _mean(choice: Choice) -> float:
    return math.inf if choice.error is None or choice.error.mean is None else choice.error.mean
