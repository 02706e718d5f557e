"""Headlines: one or two sentences on each problem, for a reader in a hurry.

A norm is ruled out at a factor value where a verdict shows an error above that of the lowest norm or of the baseline by
more than the margin, where it is shown to fail more often, and where all of its runs fail. The first sentence names the
norms that are ruled out, the second one describes the rest. No norm is called a winner: one that is left over is only
named as not ruled out.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from normlab.study.analysis.estimates import BETTER, EQUIVALENT, FEWEST_TO_RECOMMEND, WORSE
from normlab.study.analysis.results import LEVEL, Analysis, CellResult, CurveResult, ProblemResult, Standing
from normlab.study.design.factors import Value
from normlab.study.report import formatting
from normlab.study.report.advice import in_sentence

__all__ = ["headline", "headlines", "preface", "where"]

_MOST_ITEMS = 3
"""Items of the first sentence; the table has the rest."""


def headlines(analysis: Analysis) -> tuple[str, ...]:
    """Write the answer of a comparison in one or two sentences for every problem.

    Args:
        analysis: The analysis.

    Returns:
        `preface` unless it is empty, and `headline` for every problem and advising curve, with the name of the problem
        where there are several.
    """
    texts = [
        (_title(problem, curve), text)
        for problem in analysis.problems
        for curve in problem.curves
        if (text := headline(analysis, problem, curve))
    ]
    said = [f"{title}: {text}" if len(texts) > 1 else text for title, text in texts]
    return tuple(filter(None, (preface(analysis), *said)))


def preface(analysis: Analysis) -> str:
    """Write the limits of the whole comparison: no claims, no advice, missing runs, provisional tuning."""
    missing, planned = analysis.counts["missing"], analysis.counts["planned"]
    if not analysis.claims:
        seeds = formatting.count(analysis.seeds, "seed")
        return (
            f"Tier `{analysis.tier}` shows whether everything runs; {seeds} per configuration compare nothing. "
            "For a first answer, run the same command with `--tier quick`."
        )
    if not _evaluated(analysis):
        return f"Unfinished: nothing has been evaluated yet, {missing} of {planned} runs are still missing."
    if not any(curve.advises for problem in analysis.problems for curve in problem.curves):
        return "These curves show causes and not which norm to use; the tables have the differences."
    tuned = formatting.provisional(analysis)
    parts = [f"Unfinished: {missing} of {planned} runs are still missing."] if missing else []
    parts += [f"Provisional: {tuned}."] if tuned else []
    return " ".join(parts)


def headline(analysis: Analysis, problem: ProblemResult, curve: CurveResult) -> str:
    """Write the answer of one curve in one or two sentences, without the name of the problem.

    Args:
        analysis: The analysis.
        problem: One of its problems.
        curve: One of the curves of the problem.

    Returns:
        The sentences; empty where there is no answer: see `preface`.
    """
    if not (analysis.claims and curve.advises and _evaluated(analysis)):
        return ""
    if problem.same_for_all_norms:
        return "All norms gave identical runs; does the model use its norm?"
    columns = [_Column(curve, standing, analysis.baseline) for standing in curve.standings]
    return _Sentences(analysis, problem, curve, columns).text()


@dataclass(frozen=True)
class _Loss:
    """Evidence against a norm: another result at the same factor value that is lower, or fails less often."""

    cell: CellResult
    other: CellResult | None
    fails: bool

    @property
    def damage(self) -> tuple[float, float]:
        """The share of failed runs if they rule the norm out, and the excess of the error; larger is worse."""
        failures, other = self.cell.failures, self.other.error.mean if self.other else None
        excess = (self.cell.error.mean or 0.0) - (other or 0.0)
        return failures.k / failures.n if self.fails else 0.0, excess


class _Column:
    """The norms at one factor value: ruled out, left over."""

    def __init__(self, curve: CurveResult, standing: Standing, baseline: str) -> None:
        self.value, self.standing, self.baseline = standing.value, standing, baseline
        cells = [cell for cell in curve.cells if cell.value == standing.value and not cell.invalid]
        self.cells = {cell.norm: cell for cell in cells}

    @cached_property
    def losses(self) -> Mapping[str, _Loss]:
        """The evidence against each norm that is ruled out."""
        found = [*self._to_best(), *self._to_baseline(), *self._failing()]
        return {norm: next(loss for loss in found if loss.cell.norm == norm) for norm in self._ordered(found)}

    @property
    def left(self) -> tuple[str, ...]:
        """The norms that are not ruled out."""
        return tuple(norm for norm in self.cells if norm not in self.losses)

    @property
    def few_are_left(self) -> bool:
        """True if it is shorter to name the norms that are left over."""
        return len(self.left) < len(self.losses)

    @property
    def unfinished(self) -> bool:
        """True if evaluation runs are missing."""
        return any(cell.counts["missing"] for cell in self.cells.values())

    @property
    def within_margin(self) -> bool:
        """True if a norm that is left over differs from the lowest by more than noise, but not by the margin."""
        gaps = [gap for norm, gap in self.standing.gaps.items() if norm in self.left]
        return any(gap.p_holm is not None and self._pairs * gap.p_holm <= 1 - LEVEL for gap in gaps)

    def rest(self, names: Mapping[str, str], margin: str) -> str:
        """Describe what is known of a column in which no norm is ruled out.

        Args:
            names: Titles of norms.
            margin: The margin with its unit.
        """
        standing, cells = self.standing, self.cells
        if len(cells) < 2:
            return "there is nothing to compare"
        if self.unfinished:
            finished = [cell for cell in cells.values() if not cell.counts["missing"]]
            several = standing.best is not None and len(finished) > 1
            return "no finished norm differs by more than noise" if several else "norms cannot be compared yet"
        if standing.trained is None:
            runs = max(cell.failures.n for cell in cells.values())
            few = f"{formatting.count(runs, 'run')} of each norm are too few to compare them"
            return few if runs < FEWEST_TO_RECOMMEND else "runs of every norm fail"
        if standing.best is None:
            failures = cells[standing.trained].failures
            lowest = f"{in_sentence(names[standing.trained])} has the lowest error"
            return f"{lowest} but fails in {failures.k} of {formatting.count(failures.n, 'run')}"
        if len(standing.gaps) == len(cells) - 1 and all(g.verdict == EQUIVALENT for g in standing.gaps.values()):
            return "all norms are equivalent"
        if self.within_margin:
            return f"no norm is shown to differ by more than {margin}"
        return "no norm differs by more than noise"

    @property
    def _pairs(self) -> float:
        """Pairs of norms over the comparisons that `p_holm` is corrected for."""
        return len(self.cells) / 2

    def _ordered(self, losses: Sequence[_Loss]) -> list[str]:
        there = {loss.cell.norm for loss in losses}
        return [norm for norm in self.cells if norm in there]

    def _to_best(self) -> Iterable[_Loss]:
        """Yield norms behind the lowest: since it was not chosen beforehand, tests are corrected for all pairs."""
        for norm, gap in self.standing.gaps.items():
            worse = gap.verdict == WORSE and gap.p_holm is not None and self._pairs * gap.p_holm <= 1 - LEVEL
            if worse or self._shown(self._pairs * gap.p_fails_more):
                yield _Loss(self.cells[norm], self.cells[gap.reference], not worse)

    def _to_baseline(self) -> Iterable[_Loss]:
        """Yield norms behind the baseline, and the baseline if it is behind another norm."""
        baseline = self.cells.get(self.baseline)
        for cell in sorted(self.cells.values(), key=_mean):
            if baseline and (gap := cell.gap):
                if gap.verdict == WORSE or self._shown(gap.p_fails_more):
                    yield _Loss(cell, baseline, gap.verdict != WORSE)
                if gap.verdict == BETTER or self._shown(gap.p_fails_less):
                    yield _Loss(baseline, cell, gap.verdict != BETTER)

    def _shown(self, p: float) -> bool:
        """Check a p-value of failures, corrected for the comparisons with one norm."""
        return (len(self.cells) - 1) * p <= 1 - LEVEL

    def _failing(self) -> Iterable[_Loss]:
        """Yield norms of which every run failed, where others train."""
        failing = [c for c in self.cells.values() if c.failures.k == c.failures.n >= FEWEST_TO_RECOMMEND]
        if any(cell.error.mean is not None for cell in self.cells.values()):
            yield from (_Loss(cell, None, True) for cell in failing)


class _Sentences:
    """The sentences on one curve."""

    def __init__(
        self, analysis: Analysis, problem: ProblemResult, curve: CurveResult, columns: Sequence[_Column]
    ) -> None:
        self.names, self.problem, self.curve, self.columns = analysis.names, problem, curve, columns

    def text(self) -> str:
        """Write the sentences."""
        items = self._items()
        rest = self._rest(short=bool(items))
        if not items:
            return _sentence(rest)
        named = [*items[:_MOST_ITEMS], *(["others in the table"] if len(items) > _MOST_ITEMS else [])]
        nested = any(item.startswith("every") for item in items)
        avoided = "; ".join(named) if nested else formatting.listed(named)
        return " ".join(filter(None, (_sentence(f"avoid {avoided}"), rest)))

    def _items(self) -> list[str]:
        """List the norms to avoid with values and evidence, the worst first."""
        groups = [*self._all_but(), *self._single()]
        ordered = sorted(groups, key=lambda group: max(loss.damage for loss in group[2]), reverse=True)
        return [
            f"{what} {self._where(values, short=place > 0)} ({evidence})"
            for place, (what, values, losses) in enumerate(ordered)
            for evidence in [self._evidence(losses, at_least=what.startswith("every"))]
        ]

    def _all_but(self) -> Iterable[tuple[str, list[Value], list[_Loss]]]:
        """Yield `every norm but layer norm` for values where few norms are left."""
        columns = [column for column in self.columns if column.few_are_left]
        for left in dict.fromkeys(column.left for column in columns):
            of_left = [column for column in columns if column.left == left]
            what = f"every norm but {self._listed(left)}" if left else "every norm"
            yield what, [c.value for c in of_left], [loss for c in of_left for loss in c.losses.values()]

    def _single(self) -> Iterable[tuple[str, list[Value], list[_Loss]]]:
        """Yield the norms that are ruled out at the same values."""
        columns = [column for column in self.columns if not column.few_are_left]
        where: dict[tuple[Value, ...], list[str]] = {}
        for norm in dict.fromkeys(norm for column in columns for norm in column.losses):
            where.setdefault(tuple(c.value for c in columns if norm in c.losses), []).append(norm)
        for values, norms in where.items():
            losses = [c.losses[norm] for c in columns if c.value in values for norm in norms]
            yield self._listed(norms), list(values), losses

    def _evidence(self, losses: Sequence[_Loss], *, at_least: bool) -> str:
        """Write `17.8 % against 2.1 %`: of several the worst, or the mildest where all but a few are ruled out."""
        loss = (min if at_least else max)(losses, key=lambda one: one.damage)
        up_to = "up to " if not at_least and len({one.cell.norm for one in losses}) > 1 else ""
        if loss.fails or loss.other is None:
            text = f"{up_to}{loss.cell.failures.k} of {formatting.count(loss.cell.failures.n, 'run')} fail"
        else:
            ours, theirs = (formatting.quantity(self.problem.metric, c.error.mean) for c in (loss.cell, loss.other))
            text = f"{up_to}{ours}{' or more' * at_least} against {theirs}"
        same = len({one.cell.value for one in losses}) == 1
        return text if same else f"{text} {self._where([loss.cell.value], short=True)}"

    def _rest(self, *, short: bool) -> str:
        """Write what is known where no norm is ruled out; without such values, of the norms that are left over."""
        margin = formatting.points(self.problem.metric, self.problem.margin)
        values: dict[str, list[Value]] = {}
        for column in self.columns:
            if not column.losses:
                values.setdefault(column.rest(self.names, margin), []).append(column.value)
        if not values:
            return self._others(margin)
        parts = [f"{self._where(where, short=short)} {what}" for what, where in values.items()]
        if len(values) == 1 and not short:
            ((what, where),) = values.items()
            parts = [f"{what} {self._where(where, short=False)}"]
        return _sentence("; ".join(parts))

    def _others(self, margin: str) -> str:
        """Describe the norms that are left over where some are ruled out at every value."""
        if any(column.unfinished for column in self.columns) or all(len(column.left) < 2 for column in self.columns):
            return ""
        if any(column.within_margin for column in self.columns):
            return f"No other norm is shown to differ by more than {margin}."
        return "No other norm differs by more than noise."

    def _listed(self, norms: Sequence[str]) -> str:
        return formatting.listed([in_sentence(self.names[norm]) for norm in norms])

    def _where(self, values: Sequence[Value], *, short: bool) -> str:
        return where(self.curve, values, short=short)


def where(curve: CurveResult, values: Sequence[Value], *, short: bool = False) -> str:
    """Write factor values for a sentence: `at batch size 2`, `with 4 devices`, `from 4 up`, `at any batch size`.

    Args:
        curve: The curve.
        values: Some of its values, in its order.
        short: Whether the factor has been named before.
    """
    name, every = str(curve.factor["name"]).replace("_", " "), curve.values
    if not all(isinstance(value, int | float) for value in every):
        return f"with {'any' if len(values) == len(every) > 1 else formatting.listed(list(map(str, values)))} {name}"
    first, _, others = name.partition(" ")
    plural = first.endswith("s")
    if len(values) == len(every) > 1:
        return f"at any {'number of ' * plural}{name}"
    if plural and values[-1] == 1:
        name = f"{first.removesuffix('es') if first.endswith('sses') else first.removesuffix('s')} {others}".rstrip()
    ascending = list(every) == sorted(every, key=_numeric)
    if ascending and len(values) > 1 and list(values) == list(every[-len(values) :]):
        start = f"{values[0]} {name}" if plural else f"{name} {values[0]}"
        return f"from {values[0] if short else start} up"
    if ascending and len(values) > 2 and list(values) == list(every[: len(values)]):
        end = f"{values[-1]} {name}" if plural else f"{name} {values[-1]}"
        return f"up to {values[-1] if short else end}"
    listed = formatting.listed([str(value) for value in values])
    if short:
        return f"{'with' if plural else 'at'} {listed}"
    return f"with {listed} {name}" if plural else f"at {name} {listed}"


def _evaluated(analysis: Analysis) -> bool:
    return any(cell.failures.n for cell in analysis.cells)


def _title(problem: ProblemResult, curve: CurveResult) -> str:
    several = sum(other.advises for other in problem.curves) > 1
    return f"{problem.title}, {curve.name}" if several else problem.title


def _mean(cell: CellResult) -> float:
    return math.inf if cell.error.mean is None else cell.error.mean


def _numeric(value: Value) -> float:
    return float(value)


def _sentence(text: str) -> str:
    return text if not text else f"{text[0].upper()}{text[1:].removesuffix('.')}."
