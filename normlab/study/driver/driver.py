"""One invocation of a comparison, from checked input to the report."""

import math
import os
import sys
import webbrowser
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from time import monotonic
from uuid import uuid4

from rich.console import Console

from normlab.errors import BadInput, Fault, Unfinished, one_line
from normlab.study.design import discovery
from normlab.study.design.comparison import Comparison, Settings
from normlab.study.design.plan import Plan
from normlab.study.design.program import Program
from normlab.study.design.provenance import usable_cpus
from normlab.study.design.recorded import RecordedPlan, describe, fits
from normlab.study.design.records import (
    RETRIED,
    Configuration,
    Record,
    Run,
    RunIdentity,
    canonical_json,
    cell_text,
    of_problem,
)
from normlab.study.design.request import Request
from normlab.study.design.shard import Shard
from normlab.study.driver import announce, cost_model, estimate, limits, preflight, schedule, time_budget
from normlab.study.driver.ongoing import Ongoing
from normlab.study.driver.progress import Display
from normlab.study.executors.local import Local, Warm
from normlab.study.executors.protocol import Executor
from normlab.study.report import formatting
from normlab.study.worker import identity
from normlab.study.worker.store import Header, MemoryStore, RunStore, Store
from normlab.study.worker.strategy import Strategy, Task, choose_strategy, lanes_in

OK, FAILED, UNFINISHED = 0, 1, 3

PATIENCE = 10.0
"""Seconds that tracing a program may take where only its cost is estimated."""


def new_console(*, quiet: bool = False) -> Console:
    """Make the console for messages, as wide as a page where it is no terminal, and plain text in a notebook."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 120, quiet=quiet, force_jupyter=False)


@dataclass(frozen=True, kw_only=True)
class ExecutionOptions:
    """Options of the execution. Only the strategy, which is part of every key, decides numbers.

    Attributes:
        executor: The executor of the workers.
        time_budget: Seconds after which all workers are stopped.
        run_timeout: Seconds that a run may take in a worker; chosen by the median run unless given (see `limits`).
        retry_failed: Whether runs with a status in `RETRIED` are repeated.
        strategy: Strategy of the runs; chosen by platform unless given.
        lanes: Number of runs in a stack; chosen by a probe on accelerators unless given.
    """

    executor: Executor = field(default_factory=Local)
    time_budget: float = math.inf
    run_timeout: float | None = None
    retry_failed: bool = False
    strategy: Strategy | None = None
    lanes: int | None = None

    @classmethod
    def of(cls, request: Request) -> "ExecutionOptions":
        """Read the options of a request.

        Raises:
            BadInput: If options need a missing package, or contradict each other.
        """
        return cls(
            executor=_executor(request),
            time_budget=request.get("time_budget", math.inf),
            run_timeout=request.get("run_timeout"),
            retry_failed=request.get("retry_failed", False),
            lanes=request.get("lanes"),
        )


@dataclass(frozen=True, kw_only=True)
class Completion:
    """The result of `Invocation.complete`.

    Attributes:
        header: The header of the folder.
        records: The current records of this and earlier invocations.
        done: Number of planned runs with a record.
        planned: Number of planned runs, an estimate until tuning ends.
        outdated: See `identity.outdated`.
    """

    header: Header
    records: list[Record]
    done: int
    planned: int
    outdated: str = ""


@dataclass(frozen=True)
class Invocation:
    """One invocation of a comparison.

    Attributes:
        comparison: The comparison.
        settings: The settings.
        output: The folder; `None` to write nothing.
        command: The command, for the report.
        shard: The part to run; `None` for the whole.
        console: Console for progress and results.
        recorded: The plan that a folder describes, used instead of the comparison's code.
    """

    comparison: Comparison
    settings: Settings
    output: Path | None
    command: str
    shard: Shard | None = None
    console: Console = field(default_factory=new_console)
    recorded: RecordedPlan | None = None
    _folder: Store | None = field(default=None, repr=False, compare=False)
    _written: list[Header] = field(default_factory=list[Header], init=False, repr=False, compare=False)

    @classmethod
    def of_folder(cls, folder: Path, store: Store | None = None) -> "tuple[Invocation, Header]":
        """Read the invocation that made a folder.

        Args:
            folder: The folder.
            store: The folder as it has been read.

        Raises:
            BadInput: If `normlab run` did not write the folder.
        """
        store = store or Store(folder)
        header, plan = store.recorded()
        return cls(plan.comparison, header.settings, folder, header.command, recorded=plan, _folder=store), header

    @cached_property
    def plan(self) -> Plan:
        """The plan of the comparison.

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
        """The file of the comparison; `None` for a comparison object."""
        return discovery.locate(self.settings.source) if self.settings.source else None

    @cached_property
    def configurations(self) -> frozenset[Configuration]:
        """The configurations of this shard."""
        return self.shard.configurations(self.plan) if self.shard else frozenset(self.plan.configurations)

    @cached_property
    def store(self) -> RunStore:
        """The folder, or the memory of this process."""
        return MemoryStore() if self.output is None else self._folder or Store(self.output)

    def run(self, execution: ExecutionOptions, *, show: bool = False) -> int:
        """Check the input, make the pending runs, and report.

        Args:
            execution: Options of the execution.
            show: Open the report in the browser.

        Returns:
            The exit code: `OK`, `FAILED` if no run succeeded, `UNFINISHED` if the time budget came first.

        Raises:
            BadInput: Before anything is written.
            Fault: If something outside failed; finished runs are kept.
        """
        outcome = self.complete(execution, opening=True)
        code = self.report(outcome.header, show=show)
        if outcome.done == outcome.planned:
            return code
        self._print(
            f"Stopped by the time budget: {outcome.done} of about {outcome.planned} runs are done. The same "
            "command resumes from there."
        )
        return UNFINISHED

    def complete(self, execution: ExecutionOptions, *, opening: bool = False) -> Completion:
        """Check the input, and make the pending runs.

        Args:
            execution: Options of the execution.
            opening: Whether to print first what will be run, and how long it takes.

        Raises:
            BadInput: Before anything is written.
            Fault: If something outside failed; finished runs are kept.
        """
        start = monotonic()
        with self._warm(execution) or nullcontext() as warm:
            task, ongoing = self._prepare(execution, opening=opening, warm=warm)
            return self._complete(task, ongoing, execution, warm, start)

    def _complete(
        self, task: Task, ongoing: Ongoing | None, execution: ExecutionOptions, warm: Warm | None, start: float
    ) -> Completion:
        with self.store.writing():
            found = self._sound_records()
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
            self._written.append(header)
            known = current(self.plan, task.identity, found)
            if outdated := identity.outdated(task.identity, found):
                self._print(outdated)
            try:
                until = start + execution.time_budget
                done, planned = self._execute(task, known, ongoing, execution, warm, until)
            except RuntimeError as error:
                raise error if isinstance(error, Fault) else Fault(str(error)) from error
            finally:
                header = replace(header, wall_seconds=spent + monotonic() - start)
                with suppress(Fault):  # a full disk has been reported
                    self.store.write_header(header)
        records = list(known.values())
        return Completion(header=header, records=records, done=done, planned=planned, outdated=outdated)

    def so_far(self) -> Completion | None:
        """Read the finished runs of an interrupted `complete` from the store; `None` where there are none.

        There are none before `complete` has written its header: the folder's runs may be those of other code.
        """
        header, found = self.store.header(), self.store.records()
        if not header or not self._written:
            return None
        records = list(current(self.plan, header.identity, found).values())
        if not records:
            return None
        planned = self.plan.planned(records)
        outdated = identity.outdated(header.identity, found)
        return Completion(
            header=header,
            records=records,
            done=len(self.plan.relevant(records)),
            planned=len(planned),
            outdated=outdated,
        )

    def dry_run(self, execution: ExecutionOptions) -> None:
        """Run the quick checks, and print the plan, an estimate of its time, and the claims it can support."""
        strategy = self._strategy(execution)
        checked = self._checked(execution, every=False)
        known_lanes = self._known_lanes(strategy, execution)
        task = self._task(replace(strategy, lanes=known_lanes or strategy.lanes), checked)
        ongoing = self._ongoing(task)
        lines = [
            self.comparison.question,
            *announce.described(self.plan),
            announce.size(ongoing, self.configurations),
            self._time(execution, task, checked, ongoing),
            announce.stacks(known_lanes) if strategy.lanes else "",
            announce.cannot_run(reason for c, reason in checked.invalid.items() if c in self.configurations),
            *self._too_few_seeds(),
            _not_traced(checked),
            identity.outdated(task.identity, self.store.records()),
            f"Output: {self.output} (nothing written)",
        ]
        self._print("\n".join(filter(None, lines)))

    def report(self, header: Header, *, show: bool = False) -> int:
        """Print and write the report of the runs in the folder.

        Returns:
            The exit code: `OK`, or `FAILED` if all runs are done and none succeeded.

        Raises:
            BadInput: If all runs in the folder are outdated.
            Fault: If the report cannot be written.
        """
        from normlab.study.analysis.analyse import analyse
        from normlab.study.report import advice, html

        store = self.store
        if self.output is None or not isinstance(store, Store):
            raise ValueError("Expected an invocation with a folder, where its report is written, got none.")
        with store.reporting():
            found, damaged = store.read()
            store.index()
            for path in damaged:
                self._print(f"Left out `{path}`, which does not contain the run of its name; `normlab run` repeats it.")
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

    def task(self, execution: ExecutionOptions) -> Task:
        """Check everything that can be checked before a run, and make the task of the workers.

        Raises:
            BadInput: If a check fails.
        """
        return self._prepare(execution)[0]

    def _prepare(
        self, execution: ExecutionOptions, *, opening: bool = False, warm: Warm | None = None
    ) -> tuple[Task, Ongoing | None]:
        """Make the task of the workers as `task` does, and plan the runs where the folder may have some.

        Args:
            execution: Options of the execution.
            opening: Whether to print what will be run, and how long it takes.
            warm: Workers to start once the data of every problem have been made, so that a function that downloads
                or writes a file on its first call has done so, and no other process was there.

        Raises:
            BadInput: If a check fails.
        """
        strategy = self._strategy(execution)
        made = partial(warm.start, strategy) if warm else lambda: None
        resumed = self.store.header() is not None
        with self._status("Checking every program before the first run") if opening else nullcontext():
            checked = self._checked(execution, every=not resumed, made=made)
            strategy = self._with_lanes(strategy, execution)
            task = self._task(strategy, checked)
            if not opening and not resumed:
                return task, None
            ongoing = self._ongoing(task)
            if resumed and self._check_pending(execution, ongoing):
                task = self._task(strategy, checked)
                ongoing = self._ongoing(task)
            if not opening:
                return task, ongoing
            time = self._time(execution, task, checked, ongoing)
        where = (
            f" Runs are kept in `{self.output}`: Ctrl-C is safe, and the same command resumes." if self.output else ""
        )
        self._print(f"{self.comparison.question} {announce.size(ongoing, self.configurations)}")
        self._print(f"{time}{where}".lstrip())
        return task, ongoing

    def _warm(self, execution: ExecutionOptions) -> Warm | None:
        """Make workers that start early, for a whole comparison of which no run has been made.

        A given limit of a run counts from the start of its worker's compiling, so that there are none with it.
        """
        if self.shard or self.store.header() or not isinstance(execution.executor, Local) or execution.run_timeout:
            return None
        return execution.executor.warm(self.settings, len(self.configurations))

    def _strategy(self, execution: ExecutionOptions) -> Strategy:
        """Check the folder and the options, and choose the strategy, before JAX initializes its devices.

        Raises:
            BadInput: If a check fails.
        """
        self.store.check(self.settings.comparison)
        source = self.settings.source
        if not source and not isinstance(execution.executor, Local):
            raise BadInput(
                "Expected a comparison from a file with `executor`, got an object, whose functions cannot be sent to "
                "other processes. Put it into a file and give its path."
            )
        if not source and execution.run_timeout is not None:
            raise BadInput(
                "Expected a comparison from a file with `run_timeout`, got an object, whose runs are in this process, "
                "where nothing can stop them. Put it into a file and give its path."
            )
        if execution.lanes and (self.plan.devices > 1 or execution.strategy):
            raise BadInput(
                "Expected `lanes` only where one device trains a model, got it for models on several devices, whose "
                "runs are not stacked. Leave one of the two out."
            )
        strategy = execution.strategy or choose_strategy(
            alone=not source, share=_apart(execution), devices=self.plan.devices, lanes=execution.lanes
        )
        execution.executor.check(strategy, self.output)
        return strategy

    def _known_lanes(self, strategy: Strategy, execution: ExecutionOptions) -> int | None:
        """Return the number of runs in a stack: the given one, or that of the folder's runs on the same device.

        All shards have the same number, so that they can be merged. `None` where a probe has to choose, or for runs
        that are not stacked.
        """
        if not strategy.lanes or execution.strategy or execution.lanes:
            return strategy.lanes
        header = self.store.header()
        kept = lanes_in(header.identity) if header and identity.same_device(header.identity) else None
        return kept or (strategy.lanes if self.shard else None)

    def _with_lanes(self, strategy: Strategy, execution: ExecutionOptions) -> Strategy:
        """Choose the number of runs in a stack by a probe, unless it is known."""
        if not strategy.lanes:
            return strategy
        known = self._known_lanes(strategy, execution)
        if known:
            return replace(strategy, lanes=known)
        import jax

        from normlab.study.driver import lanes

        seconds = min(lanes.ENOUGH, execution.time_budget / 10)
        if self.settings.source and _apart(execution) and jax.default_backend() in ("cpu", "gpu"):
            choice = lanes.choose_apart(self.settings, seconds)
        else:
            with discovery.importing(self._file):
                choice = lanes.choose(self.plan, seconds)
        self._print(str(choice))
        return replace(strategy, lanes=choice.lanes)

    def _task(self, strategy: Strategy, checked: preflight.Checked) -> Task:
        source = self.settings.source
        files = discovery.code(source) if source else {}  # now that all configurations have been traced
        described = identity.describe(files, checked.hashes, strategy, checked.libraries)
        if not source:
            described["code"]["object"] = _token(self.comparison)
        return Task(source=source, settings=self.settings, identity=described, strategy=strategy, about=checked.about)

    def _checked(
        self, execution: ExecutionOptions, *, every: bool = True, made: Callable[[], None] = lambda: None
    ) -> preflight.Checked:
        """Trace every configuration, or the representatives alone, which runs code of the comparison in this process.

        Under a time budget, which the checks share with the runs, the representatives have to do.

        Args:
            execution: Options of the execution.
            every: Whether to trace every configuration.
            made: Called once the data of every problem have been made.

        Raises:
            BadInput: If a check fails.
            Unfinished: If the time budget ends.
        """
        with self._tracing(execution) as limit:
            return preflight.data_of(self.plan, limit, every=every and math.isinf(execution.time_budget), made=made)

    def _check_pending(self, execution: ExecutionOptions, ongoing: Ongoing) -> bool:
        """Trace the configurations of a resumed comparison that have runs to make; return whether there are any.

        Under a time budget none is traced.

        Raises:
            BadInput: If a check fails.
        """
        if math.isfinite(execution.time_budget):
            return False
        left = estimate.remaining(ongoing, self.configurations)
        again = _again(ongoing.known, execution)
        pending = {one for one, runs in left.items() if runs} | {run.configuration for run in again}
        with self._tracing(execution) as limit:
            preflight.trace(self.plan, [one for one in left if one in pending], limit)
        return bool(pending)

    @contextmanager
    def _tracing(self, execution: ExecutionOptions) -> Iterator[Callable[[], float]]:
        """Import like the comparison, and yield a function that returns the seconds a configuration may take.

        Raises:
            BadInput: If a configuration takes longer than a run may.
            Unfinished: If the time budget ends.
        """
        deadline = monotonic() + execution.time_budget
        run_timeout = math.inf if execution.run_timeout is None else execution.run_timeout
        try:
            with discovery.importing(self._file):
                yield lambda: min(run_timeout, deadline - monotonic())
        except limits.OutOfTime:
            if monotonic() >= deadline:
                raise Unfinished("Stopped by the time budget before the first run. Nothing is lost.") from None
            raise BadInput(
                f"Expected each model to be built within the {run_timeout:g} s of `run_timeout`, got no end. Look for "
                "code that waits when a model is built, or give more time."
            ) from None

    def _execute(
        self,
        task: Task,
        known: dict[Run, Record],
        before: Ongoing | None,
        execution: ExecutionOptions,
        warm: Warm | None,
        deadline: float,
    ) -> tuple[int, int]:
        """Add to `known` until nothing is pending or time is over; return the numbers of finished and planned runs.

        The plan of `before` is used if its records are still those of the folder.
        """
        again = _again(known, execution)
        if before and not again and before.known == known:
            ongoing = before
        else:
            ongoing = Ongoing(self.plan, (record for run, record in known.items() if run not in again))
        rounds = time_budget.rounds(self.plan) if math.isfinite(execution.time_budget) else ()

        def pending() -> list[list[Run]]:
            return list(time_budget.pending(ongoing, rounds, self.configurations))

        limit = limits.RunLimit(self.plan, execution.run_timeout)
        for record in known.values():
            limit.add(record)
        display = Display(self.console, ongoing, self.configurations, deadline)
        start = partial(warm.pool if warm else execution.executor.start, output=self.output)
        made = schedule.records(task, self.plan, pending, start, lambda: monotonic() > deadline, limit)
        with display, closing(made):
            for record in made:
                self.store.add(record)
                known[record.run] = record
                limit.add(record)
                ongoing.add(record)
                display.add(record)
        return display.runs

    def _too_few_seeds(self) -> Iterable[str]:
        from normlab.study.report.advice import support

        return filter(None, [support(self.settings.seeds, len(self.settings.norms))])

    def _sound_records(self) -> list[Record]:
        """Read the store, and set damaged files aside."""
        found, renamed = self.store.repaired()
        for path, aside in renamed:
            self._print(
                f"`{path}` does not contain the run of its name; it is `{aside.name}` now, and the run repeated."
            )
        return found

    def _spent(self, described: RunIdentity) -> float:
        """Return the seconds of the earlier invocations from which this one resumes."""
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

    def _ongoing(self, task: Task) -> Ongoing:
        """Plan what the current records of the folder leave to do."""
        return Ongoing(self.plan, current(self.plan, task.identity, self.store.records()).values())

    def _time(
        self,
        execution: ExecutionOptions,
        task: Task,
        checked: preflight.Checked,
        ongoing: Ongoing,
    ) -> str:
        """Say how long the pending runs take, from the records that are there, else from the size of programs."""
        stops, budget = "", execution.time_budget
        if math.isfinite(budget):
            stops = f"Stops after {formatting.duration(budget)}."
        if not task.strategy.one_thread or not isinstance(execution.executor, Local):
            return stops
        workers = min(execution.executor.jobs or usable_cpus(), usable_cpus())
        left = estimate.remaining(ongoing, self.configurations)
        costs = estimate.costs_of(ongoing.relevant)
        needed = {configuration.problem for configuration, runs in left.items() if runs}
        unknown = needed - {configuration.problem for configuration in costs}
        found = {c: self._by_size(program) for c, program in checked.extremes.items() if c.problem in unknown}
        by_size = {configuration: cost for configuration, cost in found.items() if cost}
        costs |= by_size
        said = announce.time(self.plan, left, checked.steps, costs, workers, measured=not by_size)
        return f"{said} {stops}".strip()

    def _by_size(self, program: Program) -> estimate.Cost | None:
        """Estimate a cost; `None` for a program that cannot be traced, which the runs report."""
        with suppress(Exception, limits.OutOfTime), discovery.importing(self._file), limits.at_most(PATIENCE):
            return cost_model.estimated(program)
        return None

    def _status(self, text: str) -> "AbstractContextManager[object]":
        """Show a text on a terminal while something lasts."""
        return self.console.status(text) if self.console.is_terminal else nullcontext()

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _apart(execution: ExecutionOptions) -> bool:
    """Check whether other processes use the devices of this machine."""
    executor = execution.executor
    return not isinstance(executor, Local) or (executor.jobs or 1) > 1 or executor.apart


def _executor(request: Request) -> Executor:
    """Make the requested executor with its own options, without importing the packages of others."""
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


def _again(known: Mapping[Run, Record], execution: ExecutionOptions) -> set[Run]:
    """Select the failed runs that are repeated."""
    return {run for run, record in known.items() if execution.retry_failed and record.status in RETRIED}


def _not_traced(checked: preflight.Checked) -> str:
    if checked.traced == checked.built:
        return ""
    return (
        f"All {checked.built} programs were built and {checked.traced} of them traced, one for each norm of a problem; "
        "without `--dry-run` all are that have runs to make, before the first of these."
    )


def current(plan: Plan, described: RunIdentity, records: Iterable[Record]) -> dict[Run, Record]:
    """Select the records whose key this code, comparison and machine would give again, by run.

    The key of a record is that of its run and identity, so that these two decide; records share them.
    """
    cells = {configuration: cell_text(configuration) for configuration in plan.configurations}
    identities = {name: canonical_json(of_problem(described, name)) for name in plan.settings.problems}

    def is_ours(configuration: Configuration, of: Mapping[str, object]) -> bool:
        """Compare texts, since equality does not distinguish 1 from 1.0 and from true."""
        ours = cells.get(configuration) == cell_text(configuration)
        return ours and identities[configuration.problem] == canonical_json(of)

    there, known = list(records), dict[tuple[int, int], bool]()
    found: dict[Run, Record] = {}
    for record in there:
        shared = id(record.run.configuration), id(record.identity)
        if shared not in known:
            known[shared] = is_ours(record.run.configuration, record.identity)
        if known[shared] and fits(plan, record):
            found[record.run] = record
    return found


_TOKENS: list[tuple[Comparison, str]] = []


def _token(comparison: Comparison) -> str:
    """Return a token for the code of a comparison without a file: a random number for this object in this process.

    Changes of a function cannot be detected, so the runs of one object are not used for another.
    """
    for known, token in _TOKENS:
        if known is comparison:
            return token
    _TOKENS.append((comparison, uuid4().hex))
    return _TOKENS[-1][1]


def _has_display() -> bool:
    graphical = sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    return sys.stdout.isatty() and bool(graphical)
