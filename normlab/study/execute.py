"""Making records of runs: in single-thread worker processes on CPU, or stacked by `vmap` in this process elsewhere.

Whoever asks for records says what is pending each time a cell comes back, so a cell's evaluation follows its tuning
without a plan made ahead, and a comparison that was stopped goes on from its records. A run that fails becomes a
record.
"""

import math
import multiprocessing
import os
import signal
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from time import perf_counter
from typing import TYPE_CHECKING, Any

from normlab.study import catalogue, identity
from normlab.study.config import EVALUATE, Cell, Comparison, Record, Run, Settings
from normlab.study.errors import one_line
from normlab.study.plan import Plan

if TYPE_CHECKING:
    from normlab.study.compilation import Compiled, Outcome
    from normlab.study.train import Program

Pending = Callable[[], Sequence[Run]]
Stop = Callable[[], bool]
Metrics = Mapping[str, float]

COLLAPSED_WITHIN = 0.05
"""A validation error within this share of chance, or above it, means that nothing was learned."""

PROGRAMS_KEPT = 64
"""Compiled cells that a process keeps: evaluation comes back to a cell when its whole column has been tuned."""

_READY, _DONE = "ready", "done"
_ONE_THREAD = {
    "JAX_PLATFORMS": "cpu",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PJRT_NPROC": "1",  # the flags below leave XLA a pool of threads, and cut matrix products by the number of cores
    "TF_CPP_MIN_LOG_LEVEL": "3",  # XLA logs an error for every cached program it loads on some processors, and loads it
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}


@dataclass(frozen=True)
class Strategy:
    """How runs are executed; part of their identity.

    Attributes:
        lanes: How many runs of a cell are stacked; `None` is one after another.
        alone: Whether runs that are not stacked stay in this process, instead of single-thread worker processes: for
            comparisons whose functions cannot be sent to another process.
    """

    lanes: int | None = None
    alone: bool = False

    @property
    def in_workers(self) -> bool:
        """Whether runs are in single-thread worker processes."""
        return not self.lanes and not self.alone

    def __str__(self) -> str:
        """Name it as records do."""
        if self.lanes:
            return f"vmap of {self.lanes} in one process"
        return "sequential in single-thread processes" if self.in_workers else "sequential in one process"


@dataclass(frozen=True, kw_only=True)
class Task:
    """What workers need to know; a comparison holds functions, so they load it from its source again."""

    source: str
    settings: Settings
    identity: Mapping[str, Any]
    strategy: Strategy


def choose_strategy(*, alone: bool = False) -> Strategy:
    """Choose by platform; `alone` rules worker processes out."""
    import jax

    return Strategy(alone=alone) if jax.default_backend() == "cpu" else Strategy(lanes=16)


def records(
    task: Task, comparison: Comparison, pending: Pending, jobs: int, stop: Stop = lambda: False
) -> Generator[Record, None, None]:
    """Execute until nothing is pending, one record at a time.

    Args:
        task: What to execute, and how.
        comparison: The comparison of `task.source`.
        pending: Gives the runs that have no record yet; called whenever there is room for more work, after all records
            so far have been taken from this iterator.
        jobs: How many worker processes at most.
        stop: Asked between runs; once it says yes, no run starts and those under way are finished.

    Yields:
        A record for every run, those that cannot be run or fail included.

    Raises:
        RuntimeError: If worker processes cannot start.
    """
    yield from _invalid(task, Plan(comparison, task.settings), pending)
    if task.strategy.lanes:
        from normlab.study.compilation import use_cache

        use_cache()
    if task.strategy.in_workers:
        yield from _in_workers(task, pending, jobs, stop)
    else:
        yield from _in_this_process(CellRunner(task, comparison), pending, stop)


def status_of(metrics: Metrics, chance: float | None) -> tuple[str, str]:
    """Judge a finished run by its metrics.

    Args:
        metrics: See `train.training`; without `test` where it must not be seen.
        chance: Error of a model that has learned nothing; `None` where that is unknown.

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
    if not all(math.isfinite(metrics[name]) for name in ("validation", "test") if name in metrics):
        return "diverged", "The metric is not finite after training."
    if chance is not None and metrics["validation"] >= chance * (1 - COLLAPSED_WITHIN):
        return "collapsed", f"Validation error {metrics['validation']:.3g}, chance is {chance:.3g}."
    return "ok", ""


class CellRunner:
    """Makes records of the runs of cells in this process; the programs of the latest cells are kept."""

    def __init__(self, task: Task, comparison: Comparison) -> None:
        """Take what all cells share; nothing is compiled yet."""
        self.task, self.plan = task, Plan(comparison, task.settings)
        self._programs: OrderedDict[Cell, _Ready | Exception] = OrderedDict()
        self._data: dict[str, Any] = {}

    def __call__(self, cell: Cell, runs: Sequence[Run]) -> Iterator[Record]:
        """Make the records of some runs of a cell, in order; an exception becomes a record."""
        lanes = self.task.strategy.lanes or 1
        for start in range(0, len(runs), lanes):
            yield from self._stack(cell, runs[start : start + lanes])

    def _stack(self, cell: Cell, runs: Sequence[Run]) -> list[Record]:
        start = perf_counter()
        try:
            ready = self._ready(cell)
            outcomes = list(ready.compiled.train([run.learning_rate for run in runs], [run.seed for run in runs]))
        except Exception as error:
            status, seconds = _failure(error), (perf_counter() - start) / len(runs)
            return [make_record(self.task, run, *status, cost={"run": seconds}) for run in runs]
        return [self._finished(run, outcome, ready) for run, outcome in zip(runs, outcomes, strict=True)]

    def _finished(self, run: Run, outcome: "Outcome", ready: "_Ready") -> Record:
        """The record of a finished run; the test error of a tuning run is dropped unseen."""
        seen = {name: value for name, value in outcome.metrics.items() if run.stage == EVALUATE or name != "test"}
        status = status_of(seen, ready.program.chance)
        metrics = {**seen, "chance": ready.program.chance}
        return make_record(self.task, run, *status, metrics=metrics, cost=_cost(ready, outcome.seconds))

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
        import jax

        from normlab.study.compilation import compile_program
        from normlab.study.data import data_hash

        program = build(self.plan, cell)
        if cell.problem not in self._data:
            if data_hash(program.data) != self.task.identity["data"].get(cell.problem):
                raise ValueError("Expected the same data whenever they are loaded, got others. Seed what draws them.")
            self._data[cell.problem] = jax.device_put(dict(program.data))
        return _Ready(program, compile_program(program, self.task.strategy.lanes, self._data[cell.problem]))


@dataclass(frozen=True)
class _Ready:
    """A program and its executables."""

    program: "Program"
    compiled: "Compiled"


def _cost(ready: _Ready, seconds: float) -> dict[str, float]:
    cost = {"compile": ready.compiled.seconds, "run": seconds, "step": seconds / ready.program.steps}
    return cost if ready.compiled.memory is None else {**cost, "memory": float(ready.compiled.memory)}


def make_record(
    task: Task,
    run: Run,
    status: str,
    reason: str,
    metrics: Mapping[str, float | None] | None = None,
    cost: Mapping[str, float] | None = None,
) -> Record:
    """Make the record of a run; errors of diverged runs are `None`."""
    of_problem = identity.of_problem(task.identity, run.cell.problem)
    return Record(
        key=identity.run_key(run, of_problem),
        run=run,
        identity=of_problem,
        status=status,
        reason=reason,
        metrics=_kept(metrics, status) if metrics else {"validation": None},
        cost=dict(cost or {}),
    )


def build(plan: Plan, cell: Cell) -> "Program":
    """Build the program of a cell.

    Raises:
        Exception: Whatever the problem raises for what it cannot train.
    """
    norm, config = plan.resolve(plan.place(cell))
    return plan.problem(cell.problem).build(norm, config)


def _kept(metrics: Mapping[str, float | None], status: str) -> dict[str, float | None]:
    kept = {name: _finite(metrics[name]) for name in ("validation", "test", "train_loss", "chance") if name in metrics}
    return kept | {name: None for name in kept.keys() & {"validation", "test"}} if status == "diverged" else kept


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _failure(error: Exception) -> tuple[str, str]:
    oom = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error)
    return "oom" if oom else "error", one_line(error)


def _by_cell(runs: Sequence[Run]) -> dict[Cell, list[Run]]:
    groups: dict[Cell, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.cell, []).append(run)
    return groups


def _invalid(task: Task, plan: Plan, pending: Pending) -> Iterator[Record]:
    for cell, runs in _by_cell(pending()).items():
        reason = plan.incompatible(cell)
        if reason:
            yield from [make_record(task, run, "invalid", reason) for run in runs]


def _in_this_process(runner: CellRunner, pending: Pending, stop: Stop) -> Iterator[Record]:
    lanes = runner.task.strategy.lanes or 1
    while not stop() and (jobs := _by_cell(pending())):
        cell, runs = next(iter(jobs.items()))
        for start in range(0, len(runs), lanes):
            if stop():
                return
            yield from runner(cell, runs[start : start + lanes])


@dataclass(eq=False)
class _Worker:
    """A worker process as its parent sees it: the runs it still owes, and the cells it has compiled."""

    process: BaseProcess
    connection: Connection
    ready: bool = False
    cell: Cell | None = None
    owed: list[Run] = field(default_factory=list)
    compiled: set[Cell] = field(default_factory=set)

    def give(self, cell: Cell, runs: list[Run]) -> None:
        self.cell, self.owed = cell, []
        self.compiled.add(cell)
        with suppress(OSError):  # it died while idle, which shows when it is waited for
            self.connection.send((cell, runs))
            self.owed = list(runs)

    def take(self) -> Record | None:
        """Receive a message: a record, or none if it was news of the worker itself."""
        message = self.connection.recv()
        if isinstance(message, Record):
            self.owed.remove(message.run)
            return message
        self.ready = True
        if message == _DONE:
            self.cell = None
        return None

    def end(self) -> int | None:
        self.connection.close()
        self.process.join()
        return self.process.exitcode


def _in_workers(task: Task, pending: Pending, jobs: int, stop: Stop) -> Iterator[Record]:
    workers: list[_Worker] = []
    killed: set[Run | None] = set()
    try:
        while not stop():
            if len(workers) < jobs or any(worker.cell is None for worker in workers):
                _hand_out(task, workers, pending(), jobs)
            busy = {worker.connection: worker for worker in workers if worker.cell}
            if not busy:
                return
            for worker in [busy[connection] for connection in _wait(busy)]:
                yield from _take(task, worker, workers, killed)
        yield from _last(task, workers, killed)
    finally:
        for worker in workers:
            worker.process.kill()
            worker.end()


def _wait(busy: "Mapping[Connection, _Worker]") -> "list[Connection]":
    """Connections with news, or none after a second, so that a reason to stop is noticed."""
    return [ready for ready in wait(list(busy), timeout=1.0) if isinstance(ready, Connection)]


def _take(task: Task, worker: _Worker, workers: list[_Worker], killed: set[Run | None]) -> Iterator[Record]:
    """The record that a worker has for us, or that of its death."""
    try:
        record = worker.take()
    except (EOFError, OSError):
        record = _bury(task, worker, workers, killed)
    if record:
        yield record


def _last(task: Task, workers: list[_Worker], killed: set[Run | None]) -> Iterator[Record]:
    """The run that each worker is at; those behind it are not waited for."""
    for worker in list(workers):
        owed = len(worker.owed)
        while worker in workers and worker.cell and len(worker.owed) == owed > 0:
            yield from _take(task, worker, workers, killed)


def _hand_out(task: Task, workers: list[_Worker], runs: Sequence[Run], jobs: int) -> None:
    """Give each idle worker a cell, one that it has compiled if there is one; start workers while there are too few."""
    taken = {worker.cell for worker in workers}
    waiting = {cell: found for cell, found in _by_cell(runs).items() if cell not in taken}
    idle = [worker for worker in workers if worker.cell is None]
    idle += [_start(task) for _ in range(min(jobs - len(workers), len(waiting) - len(idle)))]
    workers += [worker for worker in idle if worker not in workers]
    for worker in idle[: len(waiting)]:
        others = set().union(*(other.compiled for other in workers if other is not worker))
        cell = min(waiting, key=lambda cell: (cell not in worker.compiled, cell in others))
        worker.give(cell, waiting.pop(cell))


def _bury(task: Task, worker: _Worker, workers: list[_Worker], killed: set[Run | None]) -> Record | None:
    """Remove a worker that died; what it left of its cell is pending again.

    The run it was at gets a record, except when it was killed for the first time: whoever did that, the system short of
    memory most likely, may have meant the process and not the run. One may be killed before its first run (`None`).
    """
    workers.remove(worker)
    exitcode = worker.end()
    if not worker.ready and exitcode == -signal.SIGKILL and None not in killed:
        killed.add(None)
        return None
    if not worker.ready:
        raise RuntimeError(f"Worker processes cannot start: one ended with exit code {exitcode} before its first run.")
    if not worker.owed:
        return None
    run = worker.owed[0]
    if exitcode == -signal.SIGKILL and run not in killed:
        killed.add(run)
        return None
    if exitcode == -signal.SIGKILL:
        reason = "The worker process was killed twice during this run, as the system does when memory runs out."
        return make_record(task, run, "oom", reason)
    how = f"by signal {-exitcode}" if exitcode is not None and exitcode < 0 else f"with exit code {exitcode}"
    return make_record(task, run, "error", f"The worker process ended {how} during this run.")


def _start(task: Task) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, task), daemon=True, name="normlab-worker")
    with _environment(_ONE_THREAD):
        process.start()
    theirs.close()
    return _Worker(process, ours)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    flags = f"{before.get('XLA_FLAGS', '')} {values['XLA_FLAGS']}".strip()
    os.environ.update({**values, "XLA_FLAGS": flags})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _work(connection: Connection, task: Task) -> None:
    """Serve one parent until it closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C ends
    from normlab.study.compilation import use_cache

    use_cache()
    runner = CellRunner(task, catalogue.load(task.source))
    try:
        connection.send(_READY)
        while True:
            cell, runs = connection.recv()
            for record in runner(cell, runs):
                connection.send(record)
            connection.send(_DONE)
    except (EOFError, OSError):
        return
