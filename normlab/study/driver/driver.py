"""One invocation of a comparison, from checked input to the report."""

import math
import os
import sys
import webbrowser
from collections.abc import Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from time import monotonic
from typing import Any
from uuid import uuid4

from rich.console import Console

from normlab.errors import BadInput, Fault, Unfinished, one_line
from normlab.study.design import discovery
from normlab.study.design.comparison import Comparison, Settings
from normlab.study.design.plan import Plan
from normlab.study.design.recorded import RecordedPlan, describe, fits
from normlab.study.design.records import RETRIED, Configuration, Record, Run, of_problem, run_key
from normlab.study.design.request import Request
from normlab.study.design.shard import Shard
from normlab.study.driver import limits, preflight, schedule
from normlab.study.driver.progress import Display
from normlab.study.executors.local import Local
from normlab.study.executors.protocol import Executor
from normlab.study.worker import identity
from normlab.study.worker.store import Header, MemoryStore, RunStore, Store
from normlab.study.worker.strategy import Strategy, Task, choose_strategy

OK, FAILED, UNFINISHED = 0, 1, 3


def new_console(*, quiet: bool = False) -> Console:
    """Where people read along; as wide as a page where it is no terminal."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 120, quiet=quiet)


@dataclass(frozen=True, kw_only=True)
class Ways:
    """How to execute; none of it decides a number, except for the strategy, which is part of every key.

    Attributes:
        executor: Where workers are.
        time_budget: Seconds after which all workers are stopped.
        run_timeout: Seconds that a run may take in a worker; chosen by the median run unless given (see `limits`).
        retry_failed: Whether runs with a status in `RETRIED` are done again.
        strategy: Chosen by platform unless given.
    """

    executor: Executor = field(default_factory=Local)
    time_budget: float = math.inf
    run_timeout: float | None = None
    retry_failed: bool = False
    strategy: Strategy | None = None

    @classmethod
    def of(cls, request: Request) -> "Ways":
        """The ways that were asked for.

        Raises:
            BadInput: If they need what is not installed, or contradict each other.
        """
        return cls(
            executor=_executor(request),
            time_budget=request.get("time_budget", math.inf),
            run_timeout=request.get("run_timeout"),
            retry_failed=request.get("retry_failed", False),
        )


@dataclass(frozen=True, kw_only=True)
class Execution:
    """What an execution leaves.

    Attributes:
        header: As in the folder.
        records: Of this and earlier invocations, as far as they are current.
        done: How many of the planned runs have a record.
        planned: How many runs there are, about as many while tuning goes on.
        outdated: See `identity.outdated`.
    """

    header: Header
    records: list[Record]
    done: int
    planned: int
    outdated: str = ""


@dataclass(frozen=True)
class Invocation:
    """What to run, where to, and how it was asked for.

    Attributes:
        comparison: The question.
        settings: What was asked for.
        output: The folder; `None` to write nothing.
        command: For the report.
        shard: Which part; `None` is all of it.
        console: For progress and results.
        recorded: The plan that a folder describes, where the comparison's own code is not to be run.
    """

    comparison: Comparison
    settings: Settings
    output: Path | None
    command: str
    shard: Shard | None = None
    console: Console = field(default_factory=new_console)
    recorded: RecordedPlan | None = None

    @classmethod
    def of_folder(cls, folder: Path) -> "tuple[Invocation, Header]":
        """Find what made a folder, as far as the folder says it.

        Raises:
            BadInput: If the folder is none that `normlab run` wrote.
        """
        header, plan = Store(folder).recorded()
        return cls(plan.comparison, header.settings, folder, header.command, recorded=plan), header

    @cached_property
    def plan(self) -> Plan:
        """The configurations.

        Raises:
            BadInput: If a norm has options that contradict each other.
        """
        if self.recorded:
            return self.recorded
        try:
            with discovery.importing(self._file):
                return Plan(self.comparison, self.settings)
        except (ValueError, TypeError) as error:
            raise BadInput(one_line(error)) from error

    @property
    def _file(self) -> Path | None:
        """The comparison's; `None` where it is an object."""
        return discovery.locate(self.settings.source) if self.settings.source else None

    @cached_property
    def configurations(self) -> frozenset[Configuration]:
        """Those of them that are run here."""
        return self.shard.configurations(self.plan) if self.shard else frozenset(self.plan.configurations)

    @cached_property
    def store(self) -> RunStore:
        """The folder, or the memory of this process."""
        return MemoryStore() if self.output is None else Store(self.output)

    def run(self, ways: Ways, *, show: bool = False) -> int:
        """Check, run what has no record yet, report.

        Args:
            ways: How to execute.
            show: Open the report in the browser.

        Returns:
            The exit code: `OK`, `FAILED` if no run succeeded, `UNFINISHED` if the time budget came first.

        Raises:
            BadInput: Before anything is written.
            Fault: If something outside broke; finished runs are kept.
        """
        outcome = self.complete(ways)
        code = self.report(outcome.header, show=show)
        if outcome.done == outcome.planned:
            return code
        self._print(
            f"Stopped by the time budget: {outcome.done} of about {outcome.planned} runs are done. The same "
            "command resumes from there."
        )
        return UNFINISHED

    def complete(self, ways: Ways) -> Execution:
        """Check, and run what has no record yet.

        Raises:
            BadInput: Before anything is written.
            Fault: If something outside broke; finished runs are kept.
        """
        start, configurations, task = monotonic(), self.configurations, self.task(ways)
        with self.store.writing():
            self._set_aside()
            for sentence in self._too_few_seeds():
                self._print(sentence)
            spent = self._spent(task.identity)
            header = Header(
                settings=self.settings,
                identity=task.identity,
                command=self.command,
                wall_seconds=spent,
                shard=str(self.shard or ""),
                about=task.about,
                described=describe(self.plan),
            )
            self.store.write_header(header)
            found = self.store.records()
            known = current(self.plan, task.identity, found)
            if outdated := identity.outdated(task.identity, found):
                self._print(outdated)
            try:
                done, planned = self._execute(task, configurations, known, ways, start + ways.time_budget)
            except RuntimeError as error:
                raise error if isinstance(error, Fault) else Fault(str(error)) from error
            finally:
                header = replace(header, wall_seconds=spent + monotonic() - start)
                with suppress(Fault):  # where the disk is full, that has been said
                    self.store.write_header(header)
        records = list(known.values())
        return Execution(header=header, records=records, done=done, planned=planned, outdated=outdated)

    def dry_run(self, ways: Ways) -> None:
        """Check what can be checked soon, and print the plan."""
        strategy = self._strategy(ways)
        checked = self._checked(ways, every=False)
        task = self._task(strategy, checked)
        found = self.store.records()
        done = self.plan.relevant(current(self.plan, task.identity, found).values())
        said = [_not_traced(checked), identity.outdated(task.identity, found)]
        self._print("\n".join([*self._described(done), *filter(None, said)]))

    def report(self, header: Header, *, show: bool = False) -> int:
        """Print and write the report of what is in the folder.

        Returns:
            The exit code: `OK`, or `FAILED` if all is done and no run succeeded.

        Raises:
            BadInput: If the runs that are there are those of something else.
            Fault: If it cannot be written.
        """
        from normlab.study.analysis.analyse import analyse
        from normlab.study.report import advice, html

        if self.output is None:
            raise ValueError("Expected an invocation with a folder, where its report is written, got none.")
        store = Store(self.output)
        with store.reporting():
            for path in store.damaged():
                self._print(f"Left out `{path}`, which does not hold the run that it should; `normlab run` repeats it.")
            found = store.records()
            records = list(current(self.plan, header.identity, found).values())
            outdated = identity.outdated(header.identity, found)
            if not records:
                return self._nothing_to_report(len(found), outdated)
            analysed = analyse(self.comparison, self.settings, records, self.plan)
            recommendation = advice.recommend(analysed)
            html.print_table(analysed, self.console, recommendation)
            if outdated:
                self._print(outdated)
            path = html.write_html(
                analysed,
                self.output,
                comparison=self.comparison,
                settings=self.settings,
                identity=header.identity,
                command=header.command,
                wall_seconds=header.wall_seconds,
                about=header.about,
                outdated=outdated,
                recommendation=recommendation,
            )
        self._print(f"Report: {path}")
        if show and _has_display():
            webbrowser.open(path.resolve().as_uri())
        return OK if any(record.status == "ok" for record in records) or self.plan.pending(records) else FAILED

    def task(self, ways: Ways) -> Task:
        """Check everything that can be checked before a run.

        Raises:
            BadInput: If something is wrong.
        """
        strategy = self._strategy(ways)
        return self._task(strategy, self._checked(ways))

    def _strategy(self, ways: Ways) -> Strategy:
        """Check the folder and the ways, and choose how runs are executed, before JAX looks at its devices.

        Raises:
            BadInput: If something is wrong.
        """
        self.store.check(self.settings.comparison)
        source = self.settings.source
        if not source and not isinstance(ways.executor, Local):
            raise BadInput(
                "Expected a comparison from a file with `executor`, got an object, whose functions cannot be sent to "
                "other processes. Put it into a file and give its path."
            )
        if not source and ways.run_timeout is not None:
            raise BadInput(
                "Expected a comparison from a file with `run_timeout`, got an object, whose runs are in this process, "
                "where nothing can stop them. Put it into a file and give its path."
            )
        share = not isinstance(ways.executor, Local) or (ways.executor.jobs or 1) > 1 or ways.executor.apart
        strategy = ways.strategy or choose_strategy(alone=not source, share=share, devices=self.plan.devices)
        ways.executor.check(strategy, self.output)
        return strategy

    def _task(self, strategy: Strategy, checked: preflight.Checked) -> Task:
        source = self.settings.source
        files = discovery.code(source) if source else {}  # now that all configurations have been traced
        described = identity.describe(files, checked.hashes, strategy, checked.libraries)
        if not source:
            described["code"]["object"] = _token(self.comparison)
        return Task(source=source, settings=self.settings, identity=described, strategy=strategy, about=checked.about)

    def _checked(self, ways: Ways, *, every: bool = True) -> preflight.Checked:
        """Trace every configuration, or the representatives alone, which runs code of the comparison in this process.

        Raises:
            BadInput: If something is wrong.
            Unfinished: If the time budget is over.
        """
        deadline = monotonic() + ways.time_budget
        of_one = math.inf if ways.run_timeout is None else ways.run_timeout
        try:
            with discovery.importing(self._file):
                return preflight.data_of(self.plan, lambda: min(of_one, deadline - monotonic()), every=every)
        except limits.OutOfTime:
            if monotonic() >= deadline:
                raise Unfinished("Stopped by the time budget before the first run. Nothing is lost.") from None
            raise BadInput(
                f"Expected each model to be built within the {of_one:g} s of `run_timeout`, got no end. Look for what "
                "waits when a model is built, or give more time."
            ) from None

    def _execute(
        self,
        task: Task,
        configurations: frozenset[Configuration],
        known: dict[Run, Record],
        ways: Ways,
        deadline: float,
    ) -> tuple[int, int]:
        """Add to `known` until nothing is pending or time is over; how many runs are done, of how many."""
        again = {run for run, record in known.items() if ways.retry_failed and record.status in RETRIED}

        def settled() -> list[Record]:
            return [record for run, record in known.items() if run not in again]

        def pending() -> list[Run]:
            return [run for run in self.plan.pending(settled()) if run.configuration in configurations]

        limit = limits.RunLimit(self.plan, ways.run_timeout)
        for record in known.values():
            limit.add(record)
        display = Display(self.console, self.plan, configurations, settled())
        start = partial(ways.executor.start, output=self.output)
        made = schedule.records(task, self.plan, pending, start, lambda: monotonic() > deadline, limit)
        with display, closing(made):
            for record in made:
                self.store.add(record)
                known[record.run] = record
                limit.add(record)
                again.discard(record.run)
                display.add(record)
        return display.runs

    def _too_few_seeds(self) -> Iterable[str]:
        from normlab.study.report.advice import support

        return filter(None, [support(self.settings.seeds, len(self.settings.norms))])

    def _set_aside(self) -> None:
        for path, aside in self.store.set_aside_damaged():
            self._print(
                f"`{path}` does not hold the run that it should; it is `{aside.name}` now, and the run repeated."
            )

    def _spent(self, described: Mapping[str, Any]) -> float:
        """Seconds of earlier invocations that made the runs this one goes on from."""
        header = self.store.header()
        return header.wall_seconds if header and header.identity == described else 0.0

    def _nothing_to_report(self, others: int, outdated: str) -> int:
        if others:
            raise BadInput(
                f"Expected runs of the last invocation in `{self.output}`, got {others} of earlier ones: "
                f"{outdated or 'the comparison has changed since.'} Run it again."
            )
        self._print("No run has finished yet.")
        return OK

    def _described(self, done: list[Record]) -> Iterable[str]:
        plan, settings = self.plan, self.settings
        reasons = {
            configuration: reason
            for configuration in plan.configurations
            if (reason := plan.incompatible(configuration))
        }
        mine = [
            planned
            for configuration, planned in plan.of([]).items()
            if configuration in self.configurations and configuration not in reasons
        ]
        rates = ", ".join(f"{rate:g}" for rate in settings.learning_rates)
        yield self.comparison.question
        yield f"Problems: {', '.join(settings.problems)}"
        yield f"Norms: {', '.join(settings.norms)}"
        for name in settings.curves:
            yield f"Curve {name}: {plan.curve(name).factor.label} {', '.join(map(str, settings.values[name]))}"
        yield (
            f"Learning rates: {rates}, {settings.tuning_seeds} tuning seed(s) each"
            f"{', and two beyond an end where an optimum lies' if settings.extend else ''}; {settings.seeds} "
            f"evaluation seeds; {settings.epochs} epochs"
        )
        invalid = len(self.configurations & reasons.keys())
        yield (
            f"{len(self.configurations)} configurations, {invalid} of them invalid: {len(mine)} compiles and "
            f"{sum(len(planned.runs) + planned.to_come for planned in mine)} runs, {len(done)} records are there."
        )
        yield from sorted(set(reasons.values()))
        yield from self._too_few_seeds()
        yield f"Output: {self.output} (nothing written)"

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _executor(request: Request) -> Executor:
    """What `executor` names, with the options that are its own; what others need is not imported."""
    name, jobs = request.get("executor", "local"), request.get("jobs")
    for option, owner in {"slurm": "slurm", "ray_address": "ray"}.items():
        if option in request.given and name != owner:
            raise BadInput(f"Expected {request.given[option].where} only with the executor `{owner}`, got `{name}`.")
    if name == "slurm":
        from normlab.study.executors.slurm import Slurm

        return Slurm(jobs, request.get("slurm", ()))
    if name == "ray":
        from normlab.study.executors.ray import Ray

        return Ray(jobs, request.get("ray_address"))
    return Local(jobs, apart=bool({"run_timeout", "time_budget"} & request.given.keys()))


def _not_traced(checked: preflight.Checked) -> str:
    if checked.traced == checked.built:
        return ""
    return (
        f"All {checked.built} programs were built and {checked.traced} of them traced, one for each norm of a curve; "
        "without `--dry-run` all are, before the first run."
    )


def current(plan: Plan, described: Mapping[str, Any], records: Iterable[Record]) -> dict[Run, Record]:
    """The records that this code, configuration and machine would make again, by run."""
    configurations = frozenset(plan.configurations)
    keys = {name: of_problem(described, name) for name in plan.settings.problems}
    return {
        record.run: record
        for record in records
        if record.run.configuration in configurations
        and record.key == run_key(record.run, keys[record.run.configuration.problem])
        and fits(plan, record)
    }


_TOKENS: list[tuple[Comparison, str]] = []


def _token(comparison: Comparison) -> str:
    """What stands for the code of a comparison that has no file: a number for this object, in this process.

    There is nothing to tell a changed function by, so what was run for one object is not used for another.
    """
    for known, token in _TOKENS:
        if known is comparison:
            return token
    _TOKENS.append((comparison, uuid4().hex))
    return _TOKENS[-1][1]


def _has_display() -> bool:
    graphical = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return sys.stdout.isatty() and bool(graphical)
