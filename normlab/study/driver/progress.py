"""Progress of a comparison: a line for each finished configuration, a bar on a terminal, and a clock elsewhere."""

import math
import statistics
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import timedelta
from time import monotonic
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from normlab.study.design.plan import ConfigurationPlan, Plan
from normlab.study.design.records import Configuration, Record, Run
from normlab.study.design.tuning import choose_learning_rate
from normlab.study.driver import estimate
from normlab.study.driver.notebook import NotebookProgress, in_notebook
from normlab.study.report import formatting

EVERY = 10.0
"""Seconds between two lines with the time that is left, where there is no terminal."""


class Display:
    """Counts runs and announces finished configurations and grown grids.

    Configurations that cannot be run are not announced, since the table names them. Records of earlier invocations come
    as `done`, all others through `add`.
    """

    def __init__(
        self,
        console: Console,
        plan: Plan,
        configurations: Collection[Configuration],
        done: Iterable[Record],
        deadline: float = math.inf,
    ) -> None:
        """Store the planned configurations and the finished runs.

        Args:
            console: Console for the progress.
            plan: The plan of the comparison.
            configurations: The configurations of this shard.
            done: Records of earlier invocations.
            deadline: Time on the monotonic clock at which a time budget ends.
        """
        self.console, self.plan, self._configurations = console, plan, configurations
        self._deadline = deadline
        self._known = {record.run: record for record in done}
        self._planned = self._plan()
        self._complete = {configuration for configuration in self._planned if self._is_complete(configuration)}
        self._grown = set(self._grown_groups())
        notebook = in_notebook() and not console.quiet
        self._bar = (NotebookProgress if notebook else Progress)(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("runs"),
            TimeElapsedColumn(),
            TextColumn("left"),
            _TimeLeft(deadline),
            console=console,
            disable=not (console.is_terminal or notebook),
        )
        self._task = self._bar.add_task("")
        self._before, _ = self.all_runs
        self._clock = _Clock(self._report_time)
        self._describe()

    def __enter__(self) -> Self:
        """Show the bar, or start the clock where there is none."""
        self._bar.start()
        if self._bar.disable and not self.console.quiet:
            self._clock.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the terminal."""
        self._clock.stop()
        self._bar.stop()

    @property
    def runs(self) -> tuple[int, int]:
        """The number of finished runs, and about how many there will be, without configurations that cannot be run."""
        planned = [planned for c, planned in self._planned.items() if not self.plan.incompatible(c)]
        done = sum(run in self._known for of in planned for run in of.runs)
        return done, sum(len(of.runs) + of.to_come for of in planned)

    @property
    def all_runs(self) -> tuple[int, int]:
        """The same numbers with the finished runs of provisional choices, which leave the results later."""
        early = [run for of in self._planned.values() for run in {*of.early}.difference(of.runs)]
        additional = sum(run in self._known for run in early)
        return self.runs[0] + additional, self.runs[1] + additional

    def add(self, record: Record) -> None:
        """Count a run; announce configurations and grids that it completes."""
        self._known[record.run] = record
        self._bar.advance(self._task)
        planned = self._planned[record.run.configuration]
        if self._has_all(planned.runs) or (record.run in planned.coarse and self._has_all(planned.coarse)):
            self._planned = self._plan()  # only these records complete anything, or bring a provisional choice
            self._announce()
            self._describe()
        elif record.run not in planned.runs:  # an additional run of a provisional choice
            self._describe()

    def _plan(self) -> dict[Configuration, ConfigurationPlan]:
        return {
            configuration: planned
            for configuration, planned in self.plan.of(self._known.values()).items()
            if configuration in self._configurations
        }

    def _announce(self) -> None:
        for group in set(self._grown_groups()) - self._grown:
            self._grown.add(group)
            self._print(self._growth(self.plan.groups[group]))
        for configuration in self._planned:
            if configuration not in self._complete and self._is_complete(configuration):
                self._complete.add(configuration)
                if configuration not in self._invalid():
                    done, total = self._configurations_done()
                    self._print(f"[{done:>3}/{total}] {self._summary(configuration)}")

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _report_time(self, seconds: float) -> None:
        """Print the number of runs, and the time that is left at the speed so far or until the time budget ends."""
        done, total = self.all_runs
        new, budget = done - self._before, self._deadline - monotonic()
        needed = seconds * (total - done) / new if new else math.inf
        left = f", {estimate.about(needed)} left" if new else ", the first programs compile"
        if budget < needed:
            left = f", stops in {estimate.about(max(0.0, budget))}"
        self._print(f"{formatting.seconds(seconds)}: {done} of about {total} runs{left}")

    def _invalid(self) -> dict[Configuration, str]:
        """Return the reasons of the configurations that cannot be run, as far as they are known."""
        reasons = {configuration: self.plan.incompatible(configuration) for configuration in self._planned}
        for configuration in self._complete:
            first = self._known[self._planned[configuration].runs[0]]
            if first.status == "invalid":
                reasons[configuration] = first.reason
        return {configuration: reason for configuration, reason in reasons.items() if reason}

    def _configurations_done(self) -> tuple[int, int]:
        """The number of finished configurations, and of all, without those that cannot be run."""
        invalid = self._invalid()
        return len(self._complete - invalid.keys()), len(self._planned.keys() - invalid.keys())

    def _describe(self) -> None:
        done, total = self.all_runs
        finished, configurations = self._configurations_done()
        self._bar.update(
            self._task, completed=done, total=total, description=f"{finished}/{configurations} configurations"
        )

    def _has_all(self, runs: Iterable[Run]) -> bool:
        return all(run in self._known for run in runs)

    def _is_complete(self, configuration: Configuration) -> bool:
        planned = self._planned[configuration]
        return not planned.to_come and self._has_all(planned.runs)

    def _grown_groups(self) -> Iterator[int]:
        """Yield the groups whose grid has grown."""
        grid = len(self.plan.settings.learning_rates)
        for index, group in enumerate(self.plan.groups):
            if any(
                len(_rates(self._planned[configuration])) > grid
                for configuration in group
                if configuration in self._planned
            ):
                yield index

    def _growth(self, group: Sequence[Configuration]) -> str:
        """Describe the growth of a grid: its place, the added learning rates, and the norms that caused it."""
        base, rates = (
            self.plan.settings.learning_rates,
            max((_rates(self._planned[configuration]) for configuration in group), key=len),
        )
        sides = [
            (formatting.listed([*map(formatting.rate, added)]), end)
            for added, end in (
                ([r for r in rates if r < base[0]], base[0]),
                ([r for r in rates if r > base[-1]], base[-1]),
            )
            if added
        ]
        reasons = [f"{added} ({', '.join(self._best_at(end, group))} best at {end:g})" for added, end in sides]
        return f"{self._columns(group)}: the grid grows by {', and by '.join(reasons)}"

    def _best_at(self, rate: float, group: Sequence[Configuration]) -> list[str]:
        base = self.plan.settings.learning_rates
        tuned = {
            configuration: [self._known[run] for run in self.plan.tuning_runs(configuration, base)]
            for configuration in group
        }
        choices = {configuration: choose_learning_rate(records) for configuration, records in tuned.items()}
        return list(dict.fromkeys(c.norm for c, choice in choices.items() if choice and choice.learning_rate == rate))

    def _columns(self, group: Sequence[Configuration]) -> str:
        values: dict[str, list[str]] = {}
        for place, configuration in self.plan.places.items():
            if configuration in group and str(place.value) not in values.setdefault(place.curve, []):
                values[place.curve].append(str(place.value))
        curves = ", ".join(f"{curve} {' '.join(found)}" for curve, found in values.items())
        return f"{group[0].problem}  {curves}"

    def _summary(self, configuration: Configuration) -> str:
        place, planned = self.plan.place(configuration), self._planned[configuration]
        name = f"{place.problem}  {place.curve} {place.value!s:>5}  {place.norm}"
        records = [self._known[run] for run in planned.runs]
        assert planned.choice
        runs = [self._known[run] for run in planned.evaluation]
        failed = [record for record in runs if record.status != "ok"]
        parts = [self._error(configuration, runs)] if len(failed) < len(runs) else []
        parts += [f"{len(failed)} of {len(runs)} runs failed ({failed[0].reason})"] if failed else []
        seconds = sum(r.cost.get("run", 0.0) for r in records) + max(r.cost.get("compile", 0.0) for r in records)
        parts += [f"learning rate {formatting.rate(planned.choice.learning_rate)}", formatting.seconds(seconds)]
        return f"{name}: {', '.join(parts)}"

    def _error(self, configuration: Configuration, runs: Sequence[Record]) -> str:
        metric = self.plan.problem(configuration.problem).metric
        errors = [value for run in runs if run.status == "ok" and (value := run.metrics.get("test")) is not None]
        return f"{metric.name} {formatting.quantity(metric, statistics.fmean(errors))}"


class _TimeLeft(TimeRemainingColumn):
    """The time that is left, at most until the time budget ends."""

    def __init__(self, deadline: float) -> None:
        super().__init__()
        self._deadline = deadline

    def render(self, task: Task) -> Text:
        """Show hours, minutes and seconds."""
        budget = self._deadline - monotonic()
        if budget < (math.inf if task.time_remaining is None else task.time_remaining):
            return Text(str(timedelta(seconds=max(0, math.ceil(budget)))), style="progress.remaining")
        return super().render(task)


class _Clock:
    """Calls a function every few seconds in a thread of its own, with the seconds since the start."""

    def __init__(self, call: Callable[[float], None]) -> None:
        self._call, self._stopped = call, threading.Event()
        self._thread = threading.Thread(target=self._run, name="clock", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Call no more, and wait for a call that has begun."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        start = monotonic()
        while not self._stopped.wait(EVERY):
            self._call(monotonic() - start)


def _rates(planned: ConfigurationPlan) -> list[float]:
    return sorted({run.learning_rate for run in planned.tuning})
