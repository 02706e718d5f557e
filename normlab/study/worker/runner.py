"""Run the runs of a configuration in this process, and make a record of each."""

import platform
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from normlab.errors import BadInput, Fault
from normlab.study.design import discovery, imports
from normlab.study.design.plan import Plan
from normlab.study.design.provenance import file_hash
from normlab.study.design.records import EVALUATE, Configuration, Record, Run, RunIdentity
from normlab.study.worker.identity import describe, differences, files_of
from normlab.study.worker.outcome import TUNING_SEES, failure, make_record, rows_of, status_of
from normlab.study.worker.strategy import Strategy, Task

if TYPE_CHECKING:
    import jax
    from jax.sharding import Mesh

    from normlab.study.design.comparison import Comparison, Settings
    from normlab.study.design.program import Program
    from normlab.study.training.compilation import Compiled
    from normlab.study.training.loop import Outcome


PROGRAMS_KEPT = 64
"""Compiled programs that a process keeps: a configuration is evaluated once its whole column has been tuned."""


def before_the_task(settings: "Settings", strategy: Strategy) -> "ConfigurationRunner":
    """Load the comparison in a process of its own, and make a runner that can compile, but not yet run.

    Raises:
        BadInput: If the comparison cannot be loaded.
    """
    comparison = _loaded(settings.source)
    identity = describe(discovery.code(settings.source), {}, strategy)
    return _runner(comparison, Task(source=settings.source, settings=settings, identity=identity, strategy=strategy))


def _loaded(source: str) -> "Comparison":
    from normlab.study.training.compilation_cache import use_cache

    use_cache()
    return discovery.load(source)


def _runner(comparison: "Comparison", task: Task) -> "ConfigurationRunner":
    with discovery.importing(discovery.locate(task.source)):
        return ConfigurationRunner(task, Plan(comparison, task.settings))


def worker(task: Task, runner: "ConfigurationRunner | None" = None) -> "ConfigurationRunner":
    """Load the comparison in a process of its own, check the identity, and make its runner.

    Args:
        task: The task.
        runner: A runner from before there was a task, which then gets it.

    Raises:
        Fault: If the comparison cannot be loaded, or code, versions or platform differ from those of the task.
    """
    try:
        comparison = runner.plan.comparison if runner else _loaded(task.source)
        files = discovery.code(task.source, files_of(task.identity))
    except BadInput as error:
        raise Fault(f"Worker processes cannot start on {platform.node()}: {error}") from error
    here = describe(files, task.identity["data"], task.strategy, task.identity.get("libraries"))
    for what, theirs, ours in differences(_findable(task.identity, files), here):
        raise Fault(
            f"Expected workers like the process that gives them runs, got `{what}` {ours} on {platform.node()} instead "
            f"of {theirs}. Install the same there, or leave that machine out; finished runs are kept."
        )
    if not runner:
        return _runner(comparison, task)
    runner.adopt(task)
    return runner


def _findable(identity: RunIdentity, files: Mapping[str, Path]) -> RunIdentity:
    """Drop the user's files that this process has not imported yet; see `ConfigurationRunner`."""
    known = {name: content for name, content in files_of(identity).items() if name in files}
    return {**identity, "code": {**identity.get("code", {}), "comparison": known}}


class ConfigurationRunner:
    """Makes records of runs in this process, and keeps the programs of the latest configurations."""

    def __init__(self, task: Task, plan: Plan) -> None:
        """Store the task and the plan; programs are compiled on first use."""
        self.task, self.plan = task, plan
        self._programs: OrderedDict[Configuration, _Ready | Exception] = OrderedDict()
        self._data: dict[tuple[str, Mesh | None], Mapping[str, jax.Array]] = {}
        self._lanes: dict[Configuration, int] = {}
        self._hashes: dict[str, str] = {}
        self._file = discovery.locate(task.source) if files_of(task.identity) else None
        self._checked = set(self._run_here())

    def __call__(self, configuration: Configuration, runs: Sequence[Run]) -> Iterator[Record]:
        """Yield the records of some runs of a configuration, in order; an exception becomes a record."""
        lanes = self.lanes(configuration)
        for start in range(0, len(runs), lanes):
            yield from self._stack(configuration, runs[start : start + lanes])

    def first_of_each_problem(self) -> list[Configuration]:
        """Return the configurations with which the runs of the problems begin."""
        usable = [
            configuration for configuration in self.plan.configurations if not self.plan.incompatible(configuration)
        ]
        return list({configuration.problem: configuration for configuration in reversed(usable)}.values())[::-1]

    def compile(self, configuration: Configuration) -> None:
        """Compile a program ahead of its runs; an exception is left to them."""
        with suppress(Exception), discovery.importing(self._file):
            self._ready(configuration)

    def adopt(self, task: Task) -> None:
        """Take over a task; programs that failed, or have other data, are compiled again when their runs come."""
        self.task, self._checked = task, set(self._run_here())
        data = task.identity["data"]
        same = {problem for problem, found in self._hashes.items() if data.get(problem, found) == found}
        self._data = {there: arrays for there, arrays in self._data.items() if there[0] in same}
        self._programs = OrderedDict(
            (configuration, ready)
            for configuration, ready in self._programs.items()
            if configuration.problem in same and isinstance(ready, _Ready)
        )

    def lanes(self, configuration: Configuration) -> int:
        """Return the size of a stack of runs: one where data are read meanwhile, so that no run fails with another."""
        if configuration not in self._lanes:
            self._lanes[configuration] = self.task.strategy.lanes or 1
            with suppress(Exception), discovery.importing(self._file):  # `_stack` records the failure
                if self._lanes[configuration] > 1 and build(self.plan, configuration).window_source:
                    self._lanes[configuration] = 1
        return self._lanes[configuration]

    def _stack(self, configuration: Configuration, runs: Sequence[Run]) -> list[Record]:
        start = perf_counter()
        try:
            with discovery.importing(self._file):
                ready = self._ready(configuration)
                outcomes = list(ready.compiled.train([run.learning_rate for run in runs], [run.seed for run in runs]))
        except Exception as error:
            status, seconds = failure(error), (perf_counter() - start) / len(runs)
            return [make_record(self.task, run, *status, cost={"run": seconds}) for run in runs]
        return [self._finished(run, outcome, ready) for run, outcome in zip(runs, outcomes, strict=True)]

    def _run_here(self) -> list[Path]:
        return imports.run_by(self._file, mentioned=False) if self._file else []

    def _not_in_key(self) -> str:
        """Give the reason why the key of the runs lacks a file that decided them; empty where it has all.

        The user's files are searched before the first run, when every configuration has been traced. A file that is
        imported later, for example by a function that draws batches, or that has changed since, is found here.
        """
        known = files_of(self.task.identity)
        new = [file for file in self._run_here() if file not in self._checked]
        for name, file in imports.named(new, self._file).items() if self._file and new else ():
            if not file.is_file() or known.get(name) != file_hash(file):
                change = "which has changed since" if name in known else "imported during a run"
                return (
                    f"Expected all files that `{self.task.source}` imports to be known before its runs, got `{name}`, "
                    f"{change}. Import it at the top of the comparison's file, and run the same command again."
                )
            self._checked.add(file)
        return ""

    def _finished(self, run: Run, outcome: "Outcome", ready: "_Ready") -> Record:
        """Make the record of a finished run; test metrics of a tuning run are dropped unseen."""
        evaluated, cost = run.stage == EVALUATE, _cost(ready, outcome.seconds)
        seen = {name: value for name, value in outcome.metrics.items() if evaluated or name in TUNING_SEES}
        status = status_of(seen, ready.program.chance)
        try:
            with discovery.importing(self._file):
                examined = outcome.examined() if evaluated and status[0] != "diverged" else {}
        except Exception as error:
            return make_record(self.task, run, *failure(error), cost=cost)
        if why := self._not_in_key():
            return make_record(self.task, run, "error", why, cost=cost)
        return make_record(
            self.task,
            run,
            *status,
            metrics={**seen, **examined, "chance": ready.program.chance},
            series={name: rows_of(rows) for name, rows in outcome.series.items()} if evaluated else {},
            cost=cost,
        )

    def _ready(self, configuration: Configuration) -> "_Ready":
        """Return the compiled program of a configuration; a failed compile is remembered and raised again."""
        if configuration not in self._programs:
            try:
                self._programs[configuration] = self._prepared(configuration)
            except Exception as error:
                self._programs[configuration] = error
            if len(self._programs) > PROGRAMS_KEPT:
                self._programs.popitem(last=False)
        self._programs.move_to_end(configuration)
        ready = self._programs[configuration]
        if isinstance(ready, Exception):
            raise ready
        return ready

    def _prepared(self, configuration: Configuration) -> "_Ready":
        """Build and compile a program; the data of a problem are put on the device once.

        Raises:
            ValueError: If the data have changed since the comparison began.
        """
        from normlab.study.training.compilation import compile_program
        from normlab.study.training.loop import on_devices

        program = build(self.plan, configuration)
        there = configuration.problem, program.mesh
        if there not in self._data:
            self._hashes[configuration.problem] = found = program.data_hash
            if (
                self.task.identity["data"].get(configuration.problem, found) != found
            ):  # absent where nothing could be traced
                raise ValueError("Expected the same data whenever they are loaded, got others. Seed what draws them.")
            self._data[there] = on_devices(program, dict(program.data))
        return _Ready(program, compile_program(program, self.task.strategy.lanes, self._data[there]))


@dataclass(frozen=True)
class _Ready:
    """A program and its executables."""

    program: "Program"
    compiled: "Compiled"


def _cost(ready: _Ready, seconds: float) -> dict[str, float]:
    cost = {"compile": ready.compiled.seconds, "run": seconds, "step": seconds / ready.program.steps}
    if ready.program.mesh:
        cost["moved"] = float(ready.compiled.moved)
    return cost if ready.compiled.memory is None else {**cost, "memory": float(ready.compiled.memory)}


def build(plan: Plan, configuration: Configuration) -> "Program":
    """Build the program of a configuration.

    Raises:
        Exception: Whatever the problem raises for what it cannot train.
    """
    norm, config = plan.resolve(plan.place(configuration))
    program = plan.problem(configuration.problem).build(norm, config)
    devices, found = config.get("devices", 1), program.mesh.size if program.mesh else 1
    if devices != found:
        raise ValueError(
            f"Expected a program for the {devices} devices of `config['devices']`, got one for {found}: `build` makes "
            "`Program(mesh=...)` by `normlab.study.training.loop.mesh_of`, or the problem by `study.supervised`."
        )
    return program
