"""Making records of runs: how they are executed, what a worker does with a cell, and what a finished run is worth.

Runs are made one after another in single-thread processes on CPU, or stacked by `vmap` elsewhere, in this process or by
workers (see `pool`). Whoever asks for records says what is pending each time a cell comes back, so a cell's evaluation
follows its tuning without a plan made ahead, and a comparison that was stopped goes on from its records. A run that
fails becomes a record.
"""

import math
import os
import platform
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from normlab.study import catalogue, identity, imports, schema
from normlab.study.config import EVALUATE, Cell, Comparison, Record, Run, Settings
from normlab.study.errors import BadInput, Fault, one_line
from normlab.study.plan import Plan

if TYPE_CHECKING:
    import numpy as np

    from normlab.study.compilation import Compiled, Outcome
    from normlab.study.pool import Crew
    from normlab.study.train import Program

Pending = Callable[[], Sequence[Run]]
Stop = Callable[[], bool]
Limit = Callable[[Cell], float]
Metrics = Mapping[str, float]

COLLAPSED_WITHIN = 2.5
"""Standard errors: a validation error that is not further than this below chance means that nothing was learned. Luck
alone takes a model that has learned nothing below that in 0.6 % of runs."""

PROGRAMS_KEPT = 64
"""Compiled cells that a process keeps: evaluation comes back to a cell when its whole column has been tuned."""

THREADS_PER_DEVICE = 4
"""Of XLA's pool, where virtual devices share it: by default there is one, and when as many wait for each other in a
collective as there are threads, nothing is left to compute what they wait for, and XLA ends the process."""

_ONE_THREAD = {
    "JAX_PLATFORMS": "cpu",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PJRT_NPROC": "1",  # the flags below leave XLA a pool of threads, and cut matrix products by the number of cores
    "TF_CPP_MIN_LOG_LEVEL": "3",  # XLA logs an error for every cached program it loads on some processors, and loads it
}
_ONE_THREAD_FLAGS = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


@dataclass(frozen=True)
class Strategy:
    """How runs are executed, wherever that is; part of their identity.

    Attributes:
        lanes: How many runs of a cell are stacked; `None` is one after another.
        alone: Whether all runs stay in this process: for comparisons whose functions cannot be sent to another.
        devices: How many train a model together; on CPU a worker pretends to have as many.
        processes: How many make each run together; see `together`.
    """

    lanes: int | None = None
    alone: bool = False
    devices: int = 1
    processes: int = 1

    @property
    def one_thread(self) -> bool:
        """Whether runs are in single-thread processes."""
        return not self.lanes and not self.alone

    def __str__(self) -> str:
        """Name it as records do."""
        if self.lanes:
            return f"vmap of {self.lanes}"
        if self.processes > 1:
            return f"sequential in {self.processes} processes together"
        return "sequential in single-thread processes" if self.one_thread else "sequential in one process"

    def environment(self, given: Mapping[str, str], index: int | None = None) -> dict[str, str]:
        """What a worker process needs in its environment before it imports anything.

        Args:
            given: The environment of who starts it; that of the worker itself gives the same again.
            index: Which worker of this machine it is, from 0; `None` where a scheduler assigns devices.

        Returns:
            The variables to set; others stay as they are.
        """
        if self.one_thread:
            pretended = {"JAX_NUM_CPU_DEVICES": str(self.devices)} if self.devices > 1 else {}
            return {**_ONE_THREAD, **pretended, "XLA_FLAGS": _with_flags(given.get("XLA_FLAGS", ""), _ONE_THREAD_FLAGS)}
        if self.lanes and index is not None:
            return {"CUDA_VISIBLE_DEVICES": _visible_device(given, index)}
        return {}


def _with_flags(given: str, added: str) -> str:
    return given if given.endswith(added) else f"{given} {added}".strip()


def _visible_device(given: Mapping[str, str], index: int) -> str:
    """The device that a process with this environment calls its `index`-th."""
    visible = given.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[index].strip() if visible else str(index)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What workers need to know; a comparison holds functions, so they load it from its source again.

    Attributes:
        source: Of the comparison.
        settings: What was asked for.
        identity: What their runs are to be recorded as.
        strategy: How runs are executed.
        about: What the data of problems are, in words.
    """

    source: str
    settings: Settings
    identity: Mapping[str, Any]
    strategy: Strategy
    about: Mapping[str, str] = field(default_factory=dict)


def choose_strategy(*, alone: bool = False, share: bool = False, devices: int = 1) -> Strategy:
    """Choose by platform.

    Args:
        alone: Rules worker processes out.
        devices: How many train one model together. On CPU this process pretends to have as many, too, unless its
            backend is at work already; elsewhere runs that take several devices are not stacked.
        share: Whether workers will use this machine's devices: then this process, which only looks at them, leaves
            their memory alone, unless its backend is at work already.
    """
    import jax

    if devices > 1:
        with suppress(RuntimeError):  # `train.mesh_of` says what is missing
            jax.config.update("jax_num_cpu_devices", devices)
    variables = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if share else {}
    if alone and devices > 1:
        variables["PJRT_NPROC"] = str(THREADS_PER_DEVICE * devices)
    with environment(variables):
        backend = jax.default_backend()
    if backend == "cpu":
        return Strategy(alone=alone, devices=devices)
    return Strategy(lanes=16) if devices == 1 else Strategy(alone=True, devices=devices)


def records(
    task: Task,
    comparison: Comparison,
    pending: Pending,
    hire: "Callable[[Task], Crew | None]",
    stop: Stop = lambda: False,
    limit: Limit = lambda cell: math.inf,
) -> Generator[Record, None, None]:
    """Execute until nothing is pending, one record at a time.

    Args:
        task: What to execute, and how.
        comparison: The comparison of `task.source`.
        pending: Gives the runs that have no record yet; called whenever there is room for more work, after all records
            so far have been taken from this iterator.
        hire: Finds workers (see `pool.Executor`); none for runs that are to be made in this process.
        stop: Once it says yes, no run starts, and workers are stopped; in this process the run under way is finished.
        limit: Seconds that a run of a cell may take in a worker.

    Yields:
        A record for every run, those that cannot be run or fail included.

    Raises:
        RuntimeError: If workers cannot start.
        Fault: If a worker is not what its runs would be recorded as.
    """
    from normlab.study import pool  # which is made of what is here

    yield from _invalid(task, Plan(comparison, task.settings), pending)
    if stop() or not pending():
        return
    if crew := hire(task):
        yield from pool.work(task, crew, pending, stop, CellRunner(task, comparison).lanes, limit)
        return
    if task.strategy.lanes:
        from normlab.study.compilation import use_cache

        use_cache()
    yield from _in_this_process(CellRunner(task, comparison), pending, stop)


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables for what starts meanwhile."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def worker(task: Task) -> "CellRunner":
    """Become a worker, in a process of its own: load the comparison, and check that this is the place for it.

    Raises:
        Fault: If the comparison cannot be loaded, or code, versions or platform are not those of who gives the task.
    """
    from normlab.study.compilation import use_cache

    use_cache()
    try:
        comparison = catalogue.load(task.source)
        files = catalogue.code(task.source, identity.files_of(task.identity))
    except BadInput as error:
        raise Fault(f"Worker processes cannot start on {platform.node()}: {error}") from error
    here = identity.describe(files, task.identity["data"], task.strategy, task.identity.get("libraries"))
    for what, theirs, ours in identity.differences(_findable(task.identity, files), here):
        raise Fault(
            f"Expected workers like the process that gives them runs, got `{what}` {ours} on {platform.node()} instead "
            f"of {theirs}. Install the same there, or leave that machine out; finished runs are kept."
        )
    return CellRunner(task, comparison)


def _findable(told: Mapping[str, Any], files: Mapping[str, Path]) -> dict[str, Any]:
    """An identity without the user's files that this process has not come to yet; see `CellRunner`."""
    known = {name: content for name, content in identity.files_of(told).items() if name in files}
    return {**told, "code": {**told.get("code", {}), "comparison": known}}


def status_of(metrics: Metrics, chance: float | None) -> tuple[str, str]:
    """Judge a finished run by its metrics.

    Args:
        metrics: See `train.training` and `train.Program.evaluate`; without `test` where it must not be seen. Without
            `validation_sem` the validation error is taken as exact.
        chance: Error of a model that has learned nothing; `None` where that is unknown. On the validation examples it
            is `validation_chance`, where that is among the metrics.

    Returns:
        The status, and the reason if it is not `ok`.
    """
    step = int(metrics["first_nonfinite"])
    if step == 0:
        return "diverged", "The loss is not finite at step 0, before any update: look at model, loss and data."
    if step > 0:
        return "diverged", f"The loss is not finite from step {step}."
    if not metrics["finite"]:
        return "diverged", "Outputs are not finite after training."
    if any(_finite(metrics[name]) is None for name in ("validation", "test") if name in metrics):
        return "diverged", "The metric is not finite after training."
    chance = metrics.get("validation_chance", chance)
    sem = metrics.get("validation_sem", 0.0)
    if chance is not None and metrics["validation"] + COLLAPSED_WITHIN * sem >= chance:
        about = f" ± {sem:.2g}" if sem else ""
        return "collapsed", f"Validation error {metrics['validation']:.3g}{about}, chance is {chance:.3g}."
    return "ok", ""


class CellRunner:
    """Makes records of the runs of cells in this process; the programs of the latest cells are kept."""

    def __init__(self, task: Task, comparison: Comparison) -> None:
        """Take what all cells share; nothing is compiled yet."""
        self.task, self.plan = task, Plan(comparison, task.settings)
        self._programs: OrderedDict[Cell, _Ready | Exception] = OrderedDict()
        self._data: dict[tuple[str, Any], Any] = {}
        self._lanes: dict[Cell, int] = {}
        self._file = catalogue.locate(task.source) if identity.files_of(task.identity) else None
        self._checked = set(self._run_here())

    def __call__(self, cell: Cell, runs: Sequence[Run]) -> Iterator[Record]:
        """Make the records of some runs of a cell, in order; an exception becomes a record."""
        lanes = self.lanes(cell)
        for start in range(0, len(runs), lanes):
            yield from self._stack(cell, runs[start : start + lanes])

    def lanes(self, cell: Cell) -> int:
        """How many runs are made together: one where data are read meanwhile, so that none is lost with another."""
        if cell not in self._lanes:
            self._lanes[cell] = self.task.strategy.lanes or 1
            with suppress(Exception):  # which becomes a record where runs are made
                if self._lanes[cell] > 1 and build(self.plan, cell).feed:
                    self._lanes[cell] = 1
        return self._lanes[cell]

    def _stack(self, cell: Cell, runs: Sequence[Run]) -> list[Record]:
        start = perf_counter()
        try:
            ready = self._ready(cell)
            outcomes = list(ready.compiled.train([run.learning_rate for run in runs], [run.seed for run in runs]))
        except Exception as error:
            status, seconds = _failure(error), (perf_counter() - start) / len(runs)
            return [make_record(self.task, run, *status, cost={"run": seconds}) for run in runs]
        return [self._finished(run, outcome, ready) for run, outcome in zip(runs, outcomes, strict=True)]

    def _run_here(self) -> list[Path]:
        return imports.run_by(self._file, mentioned=False) if self._file else []

    def _not_in_key(self) -> str:
        """Say why the key of the runs does not have all that they were made of; empty where it has.

        The user's files are looked for before there are runs, when every cell has been traced. One that is imported
        later, such as by what draws a batch, or that has changed by then, is found here.
        """
        known = identity.files_of(self.task.identity)
        new = [file for file in self._run_here() if file not in self._checked]
        for name, file in imports.named(new, self._file).items() if self._file and new else ():
            if not file.is_file() or known.get(name) != identity.file_hash(file):
                found = "which has changed since" if name in known else "imported during a run"
                return (
                    f"Expected all files that `{self.task.source}` imports to be known before its runs, got `{name}`, "
                    f"{found}. Import it at the top of the comparison's file, and run the same command again."
                )
            self._checked.add(file)
        return ""

    def _finished(self, run: Run, outcome: "Outcome", ready: "_Ready") -> Record:
        """The record of a finished run; of a tuning run, what is measured of test examples is dropped unseen."""
        if why := self._not_in_key():
            return make_record(self.task, run, "error", why, cost=_cost(ready, outcome.seconds))
        evaluated = run.stage == EVALUATE
        seen = {name: value for name, value in outcome.metrics.items() if evaluated or name in _TUNING_SEES}
        status = status_of(seen, ready.program.chance)
        return make_record(
            self.task,
            run,
            *status,
            metrics={**seen, "chance": ready.program.chance},
            series={name: _rows(rows) for name, rows in outcome.series.items()} if evaluated else {},
            cost=_cost(ready, outcome.seconds),
        )

    def _ready(self, cell: Cell) -> "_Ready":
        """The compiled program of a cell; what failed to compile once fails again at once."""
        if cell not in self._programs:
            try:
                self._programs[cell] = self._prepared(cell)
            except Exception as error:
                self._programs[cell] = error
            if len(self._programs) > PROGRAMS_KEPT:
                self._programs.popitem(last=False)
        self._programs.move_to_end(cell)
        found = self._programs[cell]
        if isinstance(found, Exception):
            raise found
        return found

    def _prepared(self, cell: Cell) -> "_Ready":
        """Build and compile; the data of a problem are on the device once.

        Raises:
            ValueError: If they are not those that the comparison began with.
        """
        from normlab.study.compilation import compile_program, on_devices

        program = build(self.plan, cell)
        there = cell.problem, program.mesh
        if there not in self._data:
            found = program.data_hash
            if self.task.identity["data"].get(cell.problem, found) != found:  # none where no cell could be traced
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


def make_record(
    task: Task,
    run: Run,
    status: str,
    reason: str,
    metrics: Mapping[str, float | None] | None = None,
    series: Mapping[str, list[list[float | None]]] | None = None,
    cost: Mapping[str, float] | None = None,
) -> Record:
    """Make the record of a run; errors of diverged runs are `None`."""
    of_problem = identity.of_problem(task.identity, run.cell.problem)
    return Record(
        key=identity.run_key(run, of_problem),
        run=run,
        identity=of_problem,
        status=status,
        reason=schema.printable(reason),
        metrics=_kept(metrics, status) if metrics else {"validation": None},
        series=dict(series or {}),
        cost=dict(cost or {}),
    )


def build(plan: Plan, cell: Cell) -> "Program":
    """Build the program of a cell.

    Raises:
        Exception: Whatever the problem raises for what it cannot train.
    """
    norm, config = plan.resolve(plan.place(cell))
    program = plan.problem(cell.problem).build(norm, config)
    devices, found = config.get("devices", 1), program.mesh.size if program.mesh else 1
    if devices != found:
        raise ValueError(
            f"Expected a program for the {devices} devices of `config['devices']`, got one for {found}: `build` makes "
            "`Program(mesh=...)` by `normlab.study.train.mesh_of`, or the problem by `study.supervised`."
        )
    return program


_TUNING_SEES = ("validation", "validation_sem", "validation_chance", "train_loss", "finite", "first_nonfinite")


def _kept(metrics: Mapping[str, float | None], status: str) -> dict[str, float | None]:
    named = dict.fromkeys(("validation", "test", "train_loss", "chance", *metrics))
    kept = {name: _finite(metrics[name]) for name in named if name in metrics and name not in _JUDGED}
    return {name: None if status == "diverged" and name not in _ALWAYS else value for name, value in kept.items()}


_JUDGED, _ALWAYS = ("finite", "first_nonfinite", "validation_sem", "validation_chance"), ("train_loss", "chance")
"""Metrics that only make a status, and those that a diverged run keeps."""


def _rows(values: "np.ndarray") -> list[list[float | None]]:
    """Rows of numbers with six digits, which is more than a drawing shows."""
    return [[_finite(float(f"{value:.6g}")) for value in row] for row in values]


def _finite(value: float | None) -> float | None:
    """A number that records hold."""
    return value if value is not None and abs(value) <= schema.LARGEST else None


def _failure(error: Exception) -> tuple[str, str]:
    """Status and reason; a statistic over one element is no accident, but a norm where it cannot be."""
    from normlab.functional import StatisticsError

    if isinstance(error, StatisticsError):
        return "invalid", one_line(error)
    oom = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error)
    return "oom" if oom else "error", one_line(error)


def by_cell(runs: Sequence[Run]) -> dict[Cell, list[Run]]:
    """Group runs, in their order."""
    groups: dict[Cell, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.cell, []).append(run)
    return groups


def _invalid(task: Task, plan: Plan, pending: Pending) -> Iterator[Record]:
    for cell, runs in by_cell(pending()).items():
        reason = plan.incompatible(cell)
        if reason:
            yield from [make_record(task, run, "invalid", reason) for run in runs]


def _in_this_process(runner: CellRunner, pending: Pending, stop: Stop) -> Iterator[Record]:
    while not stop() and (jobs := by_cell(pending())):
        cell, runs = next(iter(jobs.items()))
        lanes = runner.lanes(cell)
        for start in range(0, len(runs), lanes):
            if stop():
                return
            yield from runner(cell, runs[start : start + lanes])
