"""Headlines: one or two sentences on each problem, for a reader in a hurry.

A norm is ruled out at a factor value where a verdict shows an error above that of the lowest norm or of the baseline by
more than the margin, where it is shown to fail more often, and where all of its runs fail; with fewer runs than a
recommendation takes, none is. The first sentence names the norms that are ruled out, the second one describes the rest.
No norm is called a winner: one that is left over is only named as not ruled out.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from normlab.study.analysis.estimates import BETTER, EQUIVALENT, FEWEST_TO_RECOMMEND, WORSE, Difference
from normlab.study.analysis.results import LEVEL, Analysis, CellResult, CurveResult, ProblemResult, Standing
from normlab.study.design.factors import Value
from normlab.study.report import formatting
from normlab.study.report.advice import in_sentence

__all__ = ["headline", "headlines", "preface", "where"]

_MOST_ITEMS = 3
"""Items of the first sentence; the table has the rest."""

_WIDE = 4
"""Margins between two means from which on a difference that is not shown is named as open."""


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
    columns = [_Column(curve, standing, analysis.baseline, problem.margin) for standing in curve.standings]
    return _Sentences(analysis, problem, curve, columns).text()


@dataclass(frozen=True)
class _Loss:
    """Evidence against a norm: another result at the same factor value that is lower, or fails less often."""

    cell: CellResult
    other: CellResult | None
    fails: bool

    @property
    def supported(self) -> bool:
        """True if both norms have as many runs as a recommendation takes."""
        return all(cell.failures.n >= FEWEST_TO_RECOMMEND for cell in (self.cell, self.other) if cell)

    @property
    def damage(self) -> tuple[bool, float]:
        """The share of failed runs if they rule the norm out, else the error; larger is worse."""
        failures = self.cell.failures
        return self.fails, failures.k / failures.n if self.fails else self.cell.error.mean or 0.0


class _Column:
    """The norms at one factor value: ruled out, left over."""

    def __init__(self, curve: CurveResult, standing: Standing, baseline: str, margin: float) -> None:
        self.value, self.standing, self.baseline, self.margin = standing.value, standing, baseline, margin
        cells = [cell for cell in curve.cells if cell.value == standing.value and not cell.invalid]
        self.cells = {cell.norm: cell for cell in cells}

    @cached_property
    def losses(self) -> Mapping[str, _Loss]:
        """The evidence against each norm that is ruled out."""
        every = (*self._to_best(), *self._to_baseline(), *self._failing())
        found = [loss for loss in every if loss.supported]
        return {norm: next(loss for loss in found if loss.cell.norm == norm) for norm in self._ordered(found)}

    @property
    def left(self) -> tuple[str, ...]:
        """The norms that are not ruled out."""
        return tuple(norm for norm in self.cells if norm not in self.losses)

    @property
    def few_are_left(self) -> bool:
        """True if it is shorter to name the norms that are left over, and the others have evidence of one kind."""
        return len(self.left) < len(self.losses) and len({loss.fails for loss in self.losses.values()}) == 1

    @property
    def unfinished(self) -> bool:
        """True if evaluation runs are missing."""
        return any(cell.counts["missing"] for cell in self.cells.values())

    @property
    def within_margin(self) -> bool:
        """True if a norm that is left over differs from the lowest by more than noise, but not by the margin."""
        gaps = [gap for norm, gap in self.standing.gaps.items() if norm in self.left]
        return any(gap.p_holm is not None and self._pairs * gap.p_holm <= 1 - LEVEL for gap in gaps)

    @property
    def open(self) -> tuple[CellResult, CellResult] | None:
        """The norms with the highest and the lowest error of those that are left over, if far apart for the margin."""
        cells = [self.cells[norm] for norm in self.left if not self.cells[norm].counts["missing"]]
        found = sorted((cell for cell in cells if cell.error.mean is not None), key=_mean)
        if self.standing.best is None or not found or _mean(found[-1]) - _mean(found[0]) <= _WIDE * self.margin:
            return None
        return found[-1], found[0]

    @property
    def seeds(self) -> str:
        """The number of seeds that norms are compared over."""
        return f"the {formatting.count(max(cell.failures.n for cell in self.cells.values()), 'seed')}"

    def rest(self, names: Mapping[str, str], margin: str) -> str:
        """Describe what is known of a column in which no norm is ruled out.

        Args:
            names: Titles of norms.
            margin: The margin with its unit.
        """
        standing, cells = self.standing, self.cells
        if len(cells) < 2:
            return "there is nothing to compare"
        runs = max(cell.failures.n for cell in cells.values())
        few = f"{formatting.count(runs, 'run')} of each norm are too few to compare them"
        if 0 < runs < FEWEST_TO_RECOMMEND:
            return few
        if self.unfinished:
            finished = [cell for cell in cells.values() if not cell.counts["missing"]]
            several = standing.best is not None and len(finished) > 1
            return f"{self.seeds} show no difference so far" if several else "norms cannot be compared yet"
        if standing.trained is None:
            return few if runs < FEWEST_TO_RECOMMEND else "runs of every norm fail"
        if standing.best is None:
            failures = cells[standing.trained].failures
            lowest = f"{in_sentence(names[standing.trained])} has the lowest error"
            return f"{lowest} but fails in {failures.k} of {formatting.count(failures.n, 'run')}"
        if len(standing.gaps) == len(cells) - 1 and all(g.verdict == EQUIVALENT for g in standing.gaps.values()):
            return "all norms are equivalent"
        if self.within_margin:
            return f"no norm is shown to differ by more than {margin}"
        return f"{self.seeds} show no difference"

    @property
    def _pairs(self) -> float:
        """Pairs of norms over the comparisons with one norm."""
        return len(self.cells) / 2

    def _ordered(self, losses: Sequence[_Loss]) -> list[str]:
        there = {loss.cell.norm for loss in losses}
        return [norm for norm in self.cells if norm in there]

    def _to_best(self) -> Iterable[_Loss]:
        """Yield norms behind the lowest: since it was not chosen beforehand, tests are corrected for all pairs."""
        for norm, gap in self.standing.gaps.items():
            worse = gap.verdict == WORSE and self._beyond_margin(gap.difference)
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

    def _beyond_margin(self, difference: Difference) -> bool:
        """Check a difference whose two norms were chosen among all pairs."""
        interval = difference.at(1 - (1 - LEVEL) / (self._pairs * (len(self.cells) - 1)))
        return interval is not None and interval[0] > self.margin

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
        groups: dict[tuple[bool, tuple[str, ...]], list[_Column]] = {}
        for column in self.columns:
            if column.few_are_left:
                fails = any(loss.fails for loss in column.losses.values())
                groups.setdefault((fails, column.left), []).append(column)
        for (_, left), columns in groups.items():
            what = f"every norm but {self._listed(left)}" if left else "every norm"
            yield what, [c.value for c in columns], [loss for c in columns for loss in c.losses.values()]

    def _single(self) -> Iterable[tuple[str, list[Value], list[_Loss]]]:
        """Yield the norms that are ruled out at the same values by evidence of one kind."""
        losses = [loss for column in self.columns if not column.few_are_left for loss in column.losses.values()]
        of_norm: dict[tuple[bool, str], list[_Loss]] = {}
        for loss in losses:
            of_norm.setdefault((loss.fails, loss.cell.norm), []).append(loss)
        groups: dict[tuple[bool, tuple[Value, ...]], list[_Loss]] = {}
        for (fails, _), found in of_norm.items():
            groups.setdefault((fails, tuple(loss.cell.value for loss in found)), []).extend(found)
        for (_, values), found in groups.items():
            yield self._listed(list(dict.fromkeys(loss.cell.norm for loss in found))), list(values), found

    def _evidence(self, losses: Sequence[_Loss], *, at_least: bool) -> str:
        """Write `17.8 % against 2.1 %`: of several the worst, or the mildest where all but a few are ruled out."""
        loss = (min if at_least else max)(losses, key=lambda one: one.damage)
        up_to = "up to " if not at_least and len({one.cell.norm for one in losses}) > 1 else ""
        if loss.fails or loss.other is None:
            bound = "at least " if at_least and loss.cell.failures.k < loss.cell.failures.n else up_to
            text = f"{bound}{loss.cell.failures.k} of {formatting.count(loss.cell.failures.n, 'run')} fail"
        else:
            ours, theirs = (formatting.quantity(self.problem.metric, c.error.mean) for c in (loss.cell, loss.other))
            text = f"{up_to}{ours}{' or more' * at_least} against {theirs}"
        same = len({one.cell.value for one in losses}) == 1
        return text if same else f"{text} {self._where([loss.cell.value], short=True)}"

    def _rest(self, *, short: bool) -> str:
        """Write what is known where no norm is ruled out; without such values, of the norms that are left over."""
        margin = formatting.points(self.problem.metric, self.problem.margin)
        groups: dict[str, list[_Column]] = {}
        for column in self.columns:
            if not column.losses:
                groups.setdefault(column.rest(self.names, margin), []).append(column)
        if not groups:
            return self._others(margin)
        first = len(groups) == 1 and not short
        parts = []
        for what, columns in groups.items():
            where = self._where([column.value for column in columns], short=short)
            parts.append((f"{what} {where}" if first else f"{where} {what}") + self._open(columns))
        return _sentence("; ".join(parts))

    def _open(self, columns: Sequence[_Column]) -> str:
        """Write ` (13.2 % against 4.4 % is open)` for the widest difference that the seeds do not settle."""
        found = [(column.value, column.open) for column in columns if column.open]
        if not found:
            return ""
        value, cells = max(found, key=lambda one: _mean(one[1][0]) - _mean(one[1][1]))
        high, low = (formatting.quantity(self.problem.metric, cell.error.mean) for cell in cells)
        place = f" {self._where([value], short=True)}" if len(columns) > 1 else ""
        return f" ({high} against {low}{place} is open)"

    def _others(self, margin: str) -> str:
        """Describe the norms that are left over where some are ruled out at every value."""
        if any(column.unfinished for column in self.columns) or all(len(column.left) < 2 for column in self.columns):
            return ""
        if any(column.within_margin for column in self.columns):
            return f"No other norm is shown to differ by more than {margin}{self._open(self.columns)}."
        return _sentence(f"{self.columns[0].seeds} show no other difference{self._open(self.columns)}")

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
