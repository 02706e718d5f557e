"""One invocation of a comparison, from checked input to the report."""

import os
import sys
import webbrowser
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

from rich.console import Console

from normlab.study import catalogue, execute, identity, plan
from normlab.study.config import Cell, Comparison, Record, Run, Settings
from normlab.study.errors import BadInput, one_line
from normlab.study.progress import Display
from normlab.study.store import Header, Store


@dataclass(frozen=True)
class Invocation:
    """What to run, where to, and how it was asked for.

    Attributes:
        comparison: The question.
        settings: What was asked for.
        output: The folder.
        command: For the report.
    """

    comparison: Comparison
    settings: Settings
    output: Path
    command: str

    def run(self, jobs: int, *, dry: bool = False, show: bool = False, strategy: execute.Strategy | None = None) -> int:
        """Check, run what has no record yet, report.

        Args:
            jobs: Worker processes on CPU.
            dry: Print the plan and stop.
            show: Open the report in the browser.
            strategy: How to execute; chosen by platform unless given.

        Returns:
            The exit code: 0, or 1 if no run succeeded.

        Raises:
            BadInput: Before anything is written.
        """
        start, console, store = monotonic(), _console(), Store(self.output)
        store.check(self.settings.comparison)
        strategy = strategy or execute.choose_strategy()
        described = identity.describe(
            catalogue.locate(self.settings.source), check_cells(self.comparison, self.settings), str(strategy)
        )
        known = current(self.comparison, self.settings, described, store.records())
        if dry:
            self._print_plan(console, known.values())
            return 0
        spent = _spent(store, described)
        header = Header(settings=self.settings, identity=described, command=self.command, wall_seconds=spent)
        _write_first(store, header)
        task = execute.Task(source=self.settings.source, settings=self.settings, identity=described, strategy=strategy)
        try:
            self._execute(console, store, task, known, jobs)
        except RuntimeError as error:
            console.print(f"normlab: {one_line(error)}", markup=False, highlight=False, soft_wrap=True)
            return 1
        finally:
            header = replace(header, wall_seconds=header.wall_seconds + monotonic() - start)
            store.write_header(header)
        return self._finish(console, header, list(known.values()), show=show)

    def report(self, header: Header) -> int:
        """Write the report of what is there."""
        known = current(self.comparison, self.settings, header.identity, Store(self.output).records())
        if not known:
            raise BadInput(f"Expected runs of `{self.settings.source}` as it is now in `{self.output}`, found none.")
        return self._finish(_console(), header, list(known.values()), show=False)

    def _execute(self, console: Console, store: Store, task: execute.Task, known: dict[Run, Record], jobs: int) -> None:
        def pending() -> list[Run]:
            return plan.pending(self.comparison, self.settings, known.values())

        done = plan.relevant(self.comparison, self.settings, known.values())
        display = Display(console, self.comparison, self.settings, done)
        with display, closing(execute.records(task, self.comparison, pending, jobs)) as records:
            for record in records:
                store.add(record)
                known[record.run] = record
                display.add(record)

    def _finish(self, console: Console, header: Header, records: list[Record], *, show: bool) -> int:
        from normlab.study import analysis, report

        found = analysis.analyse(self.comparison, self.settings, records)
        report.print_table(found, console)
        path = report.write_html(
            found,
            self.output,
            comparison=self.comparison,
            settings=self.settings,
            identity=header.identity,
            command=header.command,
            wall_seconds=header.wall_seconds,
        )
        console.print(f"Report: {path}", markup=False, highlight=False, soft_wrap=True)
        if show and _has_display():
            webbrowser.open(path.resolve().as_uri())
        return 0 if any(record.status == "ok" for record in records) else 1

    def _print_plan(self, console: Console, known: Iterable[Record]) -> None:
        planned = plan.cells(self.settings, self.comparison)
        invalid = {cell: reason for cell in planned if (reason := plan.incompatible(self.comparison, cell))}
        per_cell = plan.runs_per_cell(self.settings)
        done = len(plan.relevant(self.comparison, self.settings, known))
        lines = [
            self.comparison.question,
            f"Problems: {', '.join(self.settings.problems)}",
            f"Norms: {', '.join(self.settings.norms)}",
            f"{self.comparison.factor.label}: {', '.join(map(str, self.settings.values))}",
            f"Learning rates: {', '.join(f'{rate:g}' for rate in self.settings.learning_rates)}, "
            f"{self.settings.tuning_seeds} tuning seed(s) each; {self.settings.seeds} evaluation seeds; "
            f"{self.settings.epochs} epochs",
            f"{len(planned)} cells, {len(invalid)} of them invalid: {len(planned) - len(invalid)} compiles and "
            f"{per_cell * (len(planned) - len(invalid))} runs, {done} records are there.",
            *sorted(set(invalid.values())),
            f"Output: {self.output} (nothing written)",
        ]
        console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def check_cells(comparison: Comparison, settings: Settings) -> dict[str, str]:
    """Trace the program of every cell that can be run, without compiling it.

    Returns:
        For each problem the hash of its data.

    Raises:
        BadInput: If a cell cannot be traced, or none can be run.
    """
    from normlab.study import train
    from normlab.study.data import data_hash

    hashes: dict[str, str] = {}
    reasons = {cell: plan.incompatible(comparison, cell) for cell in plan.cells(settings, comparison)}
    if all(reasons.values()):
        raise BadInput(f"Expected at least one norm that can be run. {next(iter(reasons.values()))}")
    for cell in [cell for cell, reason in reasons.items() if not reason]:
        try:
            program = execute.build(comparison, settings, cell)
            train.check(program)
        except Exception as error:
            raise BadInput(f"{_where(comparison, cell)}: {one_line(error)}") from error
        if cell.problem not in hashes:
            hashes[cell.problem] = data_hash(program.data)
    return hashes


def current(
    comparison: Comparison, settings: Settings, described: Mapping[str, Any], records: Iterable[Record]
) -> dict[Run, Record]:
    """The records that this code, configuration and machine would make again, by run."""
    cells = plan.cells(settings, comparison)
    configs = {cell: plan.run_config(comparison, settings, cell) for cell in cells}
    identities = {name: identity.of_problem(described, name) for name in settings.problems}

    def is_current(record: Record) -> bool:
        cell = record.run.cell
        return cell in configs and record.key == identity.run_key(record.run, configs[cell], identities[cell.problem])

    return {record.run: record for record in records if is_current(record)}


def _where(comparison: Comparison, cell: Cell) -> str:
    return f"`{cell.norm}` on `{cell.problem}` with {comparison.factor.name} {cell.value}"


def _spent(store: Store, described: Mapping[str, Any]) -> float:
    """Seconds of earlier invocations that made the runs this one goes on from."""
    header = store.header()
    return header.wall_seconds if header and header.identity == described else 0.0


def _write_first(store: Store, header: Header) -> None:
    try:
        store.write_header(header)
    except OSError as error:
        reason = f"Cannot write to `{store.directory}`: {error.strerror}. Choose another with `--output`."
        raise BadInput(reason) from error


def _console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else 120)


def _has_display() -> bool:
    graphical = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return sys.stdout.isatty() and bool(graphical)
