"""Progress of a comparison: a line for each finished configuration, a bar on a terminal, and a clock elsewhere."""

import math
import statistics
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
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

from normlab.study.design.plan import ConfigurationPlan
from normlab.study.design.records import Configuration, Record, Run
from normlab.study.design.tuning import choose_learning_rate
from normlab.study.driver import estimate
from normlab.study.driver.notebook import NotebookProgress, in_notebook
from normlab.study.driver.ongoing import Ongoing
from normlab.study.report import formatting

EVERY = 10.0
"""Seconds between two lines with the time that is left, where there is no terminal."""


class Display:
    """Counts runs and announces finished configurations and grown grids.

    Configurations that cannot be run are not announced, since the table names them. The plan of the driver has all
    records; those after the beginning come through `add`, too.
    """

    def __init__(
        self,
        console: Console,
        ongoing: Ongoing,
        configurations: Collection[Configuration],
        deadline: float = math.inf,
    ) -> None:
        """Store the planned configurations and the finished runs.

        Args:
            console: Console for the progress.
            ongoing: The plan with the records of earlier invocations, to which the caller adds all others.
            configurations: The configurations of this shard.
            deadline: Time on the monotonic clock at which a time budget ends.
        """
        plan = ongoing.plan
        self.console, self.plan, self._deadline = console, plan, deadline
        self._ongoing, self._known, self._configurations = ongoing, ongoing.known, frozenset(configurations)
        self._counts, self._complete = dict[Configuration, _Counts](), set[Configuration]()
        self._cannot = {one for one in plan.configurations if one in self._configurations and plan.incompatible(one)}
        self._grown = set[int]()
        for number in range(len(plan.groups)):
            self._count(number)
            self._complete.update(self._completed(number))
            self._grown.update([number] if self._has_grown(number) else ())
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
        counts = [counts for one, counts in self._counts.items() if not self.plan.incompatible(one)]
        return sum(of.planned - len(of.missing) for of in counts), sum(of.planned + of.to_come for of in counts)

    @property
    def all_runs(self) -> tuple[int, int]:
        """The same numbers with the finished runs of provisional choices, which leave the results later."""
        additional = sum(of.additional for of in self._counts.values())
        return self.runs[0] + additional, self.runs[1] + additional

    def add(self, record: Record) -> None:
        """Count a run that has been added to the plan; announce configurations and grids that it completes."""
        self._bar.advance(self._task)
        counts, run = self._counts[record.run.configuration], record.run
        if counts.takes(run):
            number = self._ongoing.group(run.configuration)
            self._count(number)  # only these records complete anything, or bring a provisional choice
            self._announce(number)
            self._describe()
        elif run not in counts.runs:  # an additional run of a provisional choice
            self._describe()

    def _count(self, number: int) -> None:
        """Plan the runs of a group, and count those that are there."""
        for configuration in self._of_group(number):
            self._counts[configuration] = _Counts.of(self._ongoing.planned[configuration], self._known)

    def _announce(self, number: int) -> None:
        if number not in self._grown and self._has_grown(number):
            self._grown.add(number)
            self._print(self._growth(self.plan.groups[number]))
        for configuration in self._completed(number):
            if configuration not in self._complete:
                self._complete.add(configuration)
                if configuration not in self._cannot:
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

    def _configurations_done(self) -> tuple[int, int]:
        """The number of finished configurations, and of all, without those that cannot be run."""
        return len(self._complete - self._cannot), len(self._counts) - len(self._cannot)

    def _describe(self) -> None:
        done, total = self.all_runs
        finished, configurations = self._configurations_done()
        self._bar.update(
            self._task, completed=done, total=total, description=f"{finished}/{configurations} configurations"
        )

    def _of_group(self, number: int) -> list[Configuration]:
        return [configuration for configuration in self.plan.groups[number] if configuration in self._configurations]

    def _completed(self, number: int) -> list[Configuration]:
        """List the finished configurations of a group, and note those that a run has shown to be impossible."""
        finished = [one for one in self._of_group(number) if self._counts[one].finished]
        planned = self._ongoing.planned
        self._cannot.update(one for one in finished if self._known[planned[one].tuning[0]].status == "invalid")
        return finished

    def _has_grown(self, number: int) -> bool:
        grid, planned = len(self.plan.settings.learning_rates), self._ongoing.planned
        return any(len(_rates(planned[configuration])) > grid for configuration in self._of_group(number))

    def _growth(self, group: Sequence[Configuration]) -> str:
        """Describe the growth of a grid: its place, the added learning rates, and the norms that caused it."""
        base, rates = (
            self.plan.settings.learning_rates,
            max((_rates(self._ongoing.planned[configuration]) for configuration in group), key=len),
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
        place, planned = self.plan.place(configuration), self._ongoing.planned[configuration]
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


@dataclass(eq=False)
class _Counts:
    """The runs of a configuration.

    Attributes:
        runs: Its planned runs.
        missing: Those without a record.
        coarse: The runs without a record that its provisional choice waits for.
        early: Runs of a provisional choice beside the planned ones.
        additional: Number of those that are finished.
        to_come: See `ConfigurationPlan`.
    """

    runs: frozenset[Run]
    missing: set[Run]
    coarse: set[Run]
    early: frozenset[Run]
    additional: int
    to_come: int

    @classmethod
    def of(cls, planned: ConfigurationPlan, known: Mapping[Run, Record]) -> Self:
        """Count the runs of a plan."""
        runs, early = frozenset(planned.runs), frozenset(planned.early).difference(planned.runs)
        return cls(
            runs=runs,
            missing={run for run in runs if run not in known},
            coarse={run for run in planned.coarse if run not in known},
            early=early,
            additional=sum(run in known for run in early),
            to_come=planned.to_come,
        )

    @property
    def planned(self) -> int:
        """The number of planned runs."""
        return len(self.runs)

    @property
    def finished(self) -> bool:
        """True if all runs that will be planned have a record."""
        return not self.missing and not self.to_come

    def takes(self, run: Run) -> bool:
        """Count a finished run; return whether the runs that the plan waits for are now there."""
        waited = run in self.coarse
        self.missing.discard(run)
        self.coarse.discard(run)
        self.additional += run in self.early
        return (run in self.runs and not self.missing) or (waited and not self.coarse)


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
