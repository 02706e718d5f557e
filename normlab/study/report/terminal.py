"""Results on a terminal: a table for each problem and curve, the headlines, and the lowest error at each value."""

import io
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from normlab.study.analysis.estimates import BETTER, WORSE, Estimate
from normlab.study.analysis.results import Analysis, CellResult, CurveResult, ProblemResult
from normlab.study.design.factors import Value
from normlab.study.design.problem import Metric
from normlab.study.report import advice, formatting
from normlab.study.report.advice import Choice, Recommendation
from normlab.study.report.headline import headlines
from normlab.study.report.tables import MARKS, margins, not_run

COLOURS = {BETTER: "green", WORSE: "red"}
EDGE = "^"
PROVISIONAL = "~"

_CELL_WIDTH = 12


def print_table(analysis: Analysis, console: Console, recommendation: Recommendation | None = None) -> None:
    """Print errors, failures and verdicts, a table for each problem and curve, headlines and recommendations.

    Args:
        analysis: The analysis.
        console: Console to print on, in plain text without colour unless it is a terminal.
        recommendation: The recommendation; computed from the analysis unless given.
    """
    _Printer(analysis, console, recommendation).print()


def table_text(analysis: Analysis, width: int = 100, recommendation: Recommendation | None = None) -> str:
    """Return the output of `print_table` as text of at most `width` characters a line."""
    console = Console(file=io.StringIO(), width=width, force_terminal=False, force_jupyter=False, color_system=None)
    _Printer(analysis, console, recommendation, plus_minus="±").print()
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


class _Printer:
    def __init__(
        self, analysis: Analysis, console: Console, recommendation: Recommendation | None, plus_minus: str = ""
    ) -> None:
        self.analysis, self.console = analysis, console
        self.plus_minus = plus_minus or ("±" if console.encoding.lower().startswith("utf") else "+-")
        self.recommendation = recommendation or advice.recommend(analysis)

    def print(self) -> None:
        for problem in self.analysis.problems:
            for curve in problem.curves:
                self._curve(problem, curve)
        self._line()
        for line in self._legend():
            self._line(line, style="dim")
        self._line()
        for sentence in headlines(self.analysis):
            self._line(self._plain(sentence))
        if self.recommendation.choices:
            self._line()
            self.console.print(self._choices())
            self._line(self._plain(advice.STEP_TIMES), style="dim")
        for sentence in not_run(self.analysis):
            self._line(self._plain(sentence), style="dim")

    def _line(self, text: str = "", style: str = "") -> None:
        self.console.print(text, markup=False, highlight=False, style=style)

    def _curve(self, problem: ProblemResult, curve: CurveResult) -> None:
        unit = formatting.unit(problem.metric)
        self._line()
        self._line(f"{problem.title}, {curve.name}: {problem.metric.name}{f' in {unit}' if unit else ''}", style="bold")
        self._line(curve.title, style="dim")
        for values in self._chunks(curve):
            self.console.print(self._table(problem, curve, values))

    def _chunks(self, curve: CurveResult) -> Iterator[Sequence[Value]]:
        """Split factor values into groups that fit the width."""
        names = max(len(norm) for norm in self.analysis.norms) + 2
        size = max(1, (self.console.width - names) // (_CELL_WIDTH + 1))
        for start in range(0, len(curve.values), size):
            yield curve.values[start : start + size]

    def _table(self, problem: ProblemResult, curve: CurveResult, values: Sequence[Value]) -> Table:
        table = _table(str(curve.factor["name"]).replace("_", " "))
        for value in values:
            table.add_column(Text(str(value)), justify="right", min_width=_CELL_WIDTH, overflow="fold")
        for norm in self.analysis.norms:
            column = [curve.cell(norm, value) for value in curve.values]
            if all(cell.invalid for cell in column):
                continue
            cells = [self._cell(problem.metric, curve.cell(norm, value)) for value in values]
            table.add_row(Text(norm, style="bold" if norm == self.analysis.baseline else ""), *cells)
        for metric in problem.side:
            if metric.shared:
                cells = [self._estimate(metric, curve.shared(metric, value)) for value in values]
                table.add_row(Text(metric.name), *cells, style="dim")
        return table

    def _estimate(self, metric: Metric, estimate: Estimate) -> Text:
        """Write `17.9 ±2.1  `, a baseline without a norm."""
        half = formatting.half(metric, estimate.interval)
        mean = self._plain(formatting.value(metric, estimate.mean))
        return Text(f"{mean}{f' {self.plus_minus}{half}' if half else ''}  ")

    def _cell(self, metric: Metric, cell: CellResult) -> Text:
        """Write `17.9 ±2.1 -^`, with `2/5 failed` below where runs failed."""
        if cell.invalid:
            return Text("invalid  ", style="dim")
        verdict = (cell.gap.verdict if cell.gap else None) or ""
        half = formatting.half(metric, cell.error.interval) if self.analysis.claims else ""
        text = Text(f"{self._mean(metric, cell)}{f' {self.plus_minus}{half}' if half else ''} ")
        text.append(MARKS.get(verdict, " "), style=COLOURS.get(verdict, ""))
        text.append(PROVISIONAL if cell.tuned_over else EDGE if cell.edge and cell.error.mean is not None else " ")
        if cell.failures.k:
            text.append(f"\n{cell.failures.k}/{cell.failures.n} failed", style="red")
        return text

    def _mean(self, metric: Metric, cell: CellResult) -> str:
        if cell.error.mean is not None:
            return self._plain(formatting.value(metric, cell.error.mean))
        return "..." if cell.counts["missing"] else self._plain(formatting.DASH)

    def _legend(self) -> Iterator[str]:
        analysis = self.analysis
        level = formatting.percent(analysis.level, 0)
        few = "; verdicts from fewer than 10 are a first look" if analysis.exploratory and analysis.claims else ""
        yield f"{self.plus_minus} half of the {level} % interval over {formatting.seeds_so_far(analysis)}{few}"
        if analysis.claims:
            marks = ", ".join(f"{mark} {verdict}" for verdict, mark in MARKS.items())
            yield f"against {analysis.baseline}, margin {margins(analysis)}: {marks}"
        for rates in dict.fromkeys(cell.tuned_over for cell in analysis.cells if cell.tuned_over):
            yield f"{PROVISIONAL} provisional: {formatting.tuned_over(rates)}"
        if any(cell.edge and not cell.tuned_over for cell in analysis.cells):
            yield f"{EDGE} chosen learning rate is at the edge of the grid"
        if analysis.baseline_note:
            yield analysis.baseline_note

    def _choices(self) -> Table:
        table = _table("")
        for name in ("lowest", "error", "sure", "step", "vs baseline"):
            left = name in ("lowest", "sure")
            table.add_column(name, justify="left" if left else "right", overflow="fold")
        problems = {problem.name: problem for problem in self.analysis.problems}
        for choice in self.recommendation.choices:
            table.add_row(*map(Text, self._choice(problems[choice.problem], choice)))
        return table

    def _choice(self, problem: ProblemResult, choice: Choice) -> Iterator[str]:
        yield f"{choice.problem} {choice.value}"
        yield choice.norm or "undecided"
        yield self._plain(formatting.value(problem.metric, choice.error.mean if choice.error else None))
        yield self._sure(choice)
        yield self._plain(formatting.seconds(choice.step_seconds))
        yield self._plain(formatting.ratio(choice.to_baseline))

    def _sure(self, choice: Choice) -> str:
        if choice.sure or not choice.norm:
            return "yes" if choice.sure else "no"
        if not choice.undecided:
            return f"for now; {choice.seeds_needed} seeds"
        worthwhile = choice.seeds_needed and choice.seeds_needed <= formatting.WORTHWHILE
        seeds = f", {choice.seeds_needed} seeds" if worthwhile else ""
        return f"or {', '.join(choice.undecided)}?{seeds}"

    def _plain(self, text: str) -> str:
        """Remove characters that the terminal's encoding lacks."""
        if self.plus_minus == "±":
            return text
        for character, plain in ((formatting.DASH, "-"), (formatting.MINUS, "-"), ("µ", "u"), ("“", '"'), ("”", '"')):
            text = text.replace(character, plain)
        return text


def _table(first: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    table.add_column(Text(first), overflow="fold")
    return table
