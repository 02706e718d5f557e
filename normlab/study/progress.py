"""What a person sees while a comparison runs: a bar on a terminal, a line for each finished cell everywhere."""

import statistics
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from normlab.study import plan
from normlab.study.config import EVALUATE, Cell, Comparison, Record, Settings


class Display:
    """Counts runs and announces cells; give it every record, those of an earlier invocation through `done`."""

    def __init__(self, console: Console, comparison: Comparison, settings: Settings, done: Iterable[Record]) -> None:
        """Take what is planned and what is there."""
        self.console, self.comparison, self.settings = console, comparison, settings
        self._found: dict[Cell, list[Record]] = {cell: [] for cell in plan.cells(settings, comparison)}
        for record in done:
            self._found[record.run.cell].append(record)
        self._finished = sum(self._complete(cell) for cell in self._found)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("runs"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        runs = sum(plan.expected_runs(comparison, settings, cell) for cell in self._found)
        self._task = self._bar.add_task("", total=runs, completed=sum(map(len, self._found.values())))
        self._describe()

    def __enter__(self) -> Self:
        """Show the bar, on a terminal."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the terminal in order."""
        self._bar.stop()

    def add(self, record: Record) -> None:
        """Count a run, and announce its cell if it was the last."""
        cell = record.run.cell
        self._found[cell].append(record)
        self._bar.advance(self._task)
        if self._complete(cell):
            self._finished += 1
            line = f"[{self._finished:>3}/{len(self._found)}] {describe_cell(cell, self._found[cell])}"
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
            self._describe()

    def _complete(self, cell: Cell) -> bool:
        return len(self._found[cell]) >= plan.expected_runs(self.comparison, self.settings, cell)

    def _describe(self) -> None:
        self._bar.update(self._task, description=f"{self._finished}/{len(self._found)} cells")


def describe_cell(cell: Cell, records: Sequence[Record]) -> str:
    """One line: the mean error of evaluation runs that ended well, how many failed, the learning rate, the time."""
    name = f"{cell.problem}  {cell.value!s:>5}  {cell.norm}"
    invalid = next((record for record in records if record.status == "invalid"), None)
    if invalid:
        return f"{name}: invalid. {invalid.reason}"
    runs = [record for record in records if record.run.stage == EVALUATE]
    errors = [value for record in runs if record.status == "ok" and (value := record.metrics.get("test")) is not None]
    failed = [record for record in runs if record.status != "ok"]
    parts = [f"{100 * statistics.fmean(errors):.1f} % error"] if errors else []
    parts += [f"{len(failed)} of {len(runs)} runs failed ({failed[0].reason})"] if failed else []
    parts += [f"learning rate {runs[0].run.learning_rate:g}"] if runs else []
    seconds = sum(r.timing.get("run", 0.0) for r in records) + max(r.timing.get("compile", 0.0) for r in records)
    return f"{name}: {', '.join(parts)}, {seconds:.1f} s"
