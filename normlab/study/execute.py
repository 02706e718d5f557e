"""Making records of runs: in single-thread worker processes on CPU, or stacked by `vmap` in this process elsewhere.

Whoever asks for records says what is pending each time a cell comes back, so a cell's evaluation follows its tuning
without a plan made ahead, and a comparison that was stopped goes on from its records. A run that fails becomes a
record.
"""

import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from time import perf_counter
from typing import Any

from normlab.study import catalogue, identity, plan
from normlab.study.config import EVALUATE, Cell, Comparison, Record, Run, Settings
from normlab.study.errors import one_line

Pending = Callable[[], Sequence[Run]]
Metrics = Mapping[str, float]

COLLAPSED_WITHIN = 0.05
"""A validation error this close to chance, or above it, means that nothing was learned."""

_READY, _DONE = "ready", "done"
_ONE_THREAD = {
    "JAX_PLATFORMS": "cpu",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
}


@dataclass(frozen=True)
class Strategy:
    """How runs are executed; part of their identity.

    Attributes:
        lanes: How many runs of a cell are stacked in this process; `None` is one after another in worker processes.
    """

    lanes: int | None = None

    def __str__(self) -> str:
        """Name it as records do."""
        return f"vmap of {self.lanes} in one process" if self.lanes else "sequential in single-thread processes"


@dataclass(frozen=True, kw_only=True)
class Task:
    """What workers need to know; a comparison holds functions, so they load it from its source again."""

    source: str
    settings: Settings
    identity: Mapping[str, Any]
    strategy: Strategy


def choose_strategy() -> Strategy:
    """Choose by platform."""
    import jax

    return Strategy() if jax.default_backend() == "cpu" else Strategy(lanes=16)


def records(task: Task, comparison: Comparison, pending: Pending, jobs: int) -> Generator[Record, None, None]:
    """Execute until nothing is pending, one record at a time.

    Args:
        task: What to execute, and how.
        comparison: The comparison of `task.source`.
        pending: Gives the runs that have no record yet; called whenever there is room for more work, after all records
            so far have been taken from this iterator.
        jobs: How many worker processes at most.

    Yields:
        A record for every run, those that cannot be run or fail included.

    Raises:
        RuntimeError: If worker processes cannot start.
    """
    yield from _invalid(task, comparison, pending)
    if task.strategy.lanes:
        yield from _in_this_process(CellRunner(task, comparison), pending)
    else:
        yield from _in_workers(task, comparison, pending, jobs)


def status_of(metrics: Metrics, chance: float) -> tuple[str, str]:
    """Judge a finished run by its metrics.

    Args:
        metrics: See `train.training`.
        chance: Error of a model that has learned nothing.

    Returns:
        The status, and the reason if it is not `ok`.
    """
    if metrics["first_nonfinite"] >= 0:
        return "diverged", f"The loss is not finite from step {int(metrics['first_nonfinite'])}."
    if not metrics["finite"]:
        return "diverged", "Outputs are not finite after training."
    if metrics["validation"] >= chance - COLLAPSED_WITHIN:
        return "collapsed", f"Validation error {metrics['validation']:.3f}, chance is {chance:.3f}."
    return "ok", ""


class CellRunner:
    """Makes records of the runs of cells in this process; programs are kept until their cell is evaluated."""

    def __init__(self, task: Task, comparison: Comparison) -> None:
        """Take what all cells share; nothing is compiled yet."""
        self.task, self.comparison = task, comparison
        self._cells: dict[Cell, _CompiledCell] = {}

    def __call__(self, cell: Cell, runs: Sequence[Run]) -> Iterator[Record]:
        """Make the records of some runs of a cell, in order; an exception becomes a record."""
        lanes = self.task.strategy.lanes or 1
        for start in range(0, len(runs), lanes):
            yield from self._stack(cell, runs[start : start + lanes])
        if runs[-1].stage == EVALUATE:
            self._cells.pop(cell, None)

    def _stack(self, cell: Cell, runs: Sequence[Run]) -> list[Record]:
        from_start = perf_counter()
        try:
            compiled = self._cells.setdefault(cell, _CompiledCell(self.task, self.comparison, cell))
            train, compile_seconds = compiled.program
            start = perf_counter()
            results = train([run.learning_rate for run in runs], [run.seed for run in runs])
            timing = {"compile": compile_seconds, "run": (perf_counter() - start) / len(runs)}
        except Exception as error:
            status, timing = _failure(error), {"run": (perf_counter() - from_start) / len(runs)}
            return [make_record(self.task, self.comparison, run, *status, timing=timing) for run in runs]
        return [self._finished(run, metrics, timing) for run, metrics in zip(runs, results, strict=True)]

    def _finished(self, run: Run, metrics: Metrics, timing: Mapping[str, float]) -> Record:
        status = status_of(metrics, plan.problem_named(self.comparison, run.cell.problem).chance)
        return make_record(self.task, self.comparison, run, *status, metrics=metrics, timing=timing)


def make_record(
    task: Task,
    comparison: Comparison,
    run: Run,
    status: str,
    reason: str,
    metrics: Metrics | None = None,
    timing: Mapping[str, float] | None = None,
) -> Record:
    """Make the record of a run: errors of diverged runs are `None`, the test error of tuning runs is dropped unseen."""
    config = plan.run_config(comparison, task.settings, run.cell)
    of_problem = identity.of_problem(task.identity, run.cell.problem)
    kept = _kept(metrics, status, run.stage) if metrics else {"validation": None}
    return Record(
        key=identity.run_key(run, config, of_problem),
        run=run,
        config=config,
        identity=of_problem,
        status=status,
        reason=reason,
        metrics=kept,
        timing=dict(timing or {}),
    )


class _CompiledCell:
    """A cell whose program is compiled when it is first used; a failure to compile is tried again by the next run."""

    def __init__(self, task: Task, comparison: Comparison, cell: Cell) -> None:
        self.task, self.comparison, self.cell = task, comparison, cell

    @cached_property
    def program(self) -> tuple[Callable[[Sequence[float], Sequence[int]], list[dict[str, float]]], float]:
        """The compiled training of several runs, and the seconds it took to build and compile."""
        from normlab.study import train

        start = perf_counter()
        program = build(self.comparison, self.task.settings, self.cell)
        if self.task.strategy.lanes:
            return train.compile_stack(program, self.task.strategy.lanes), perf_counter() - start
        one = train.compile_cell(program)
        return lambda rates, seeds: [one(*pair) for pair in zip(rates, seeds, strict=True)], perf_counter() - start


def build(comparison: Comparison, settings: Settings, cell: Cell) -> Any:
    """Build the program of a cell.

    Raises:
        Exception: Whatever the problem raises for what it cannot train.
    """
    norm, config = plan.resolve(comparison, settings, cell)
    return plan.problem_named(comparison, cell.problem).build(norm, config)


def _kept(metrics: Metrics, status: str, stage: str) -> dict[str, float | None]:

    names = ("validation", "test", "train_loss") if stage == EVALUATE else ("validation", "train_loss")
    kept = {name: metrics[name] if math.isfinite(metrics[name]) else None for name in names}
    if status == "diverged":
        kept |= {name: None for name in names if name != "train_loss"}
    return kept


def _failure(error: Exception) -> tuple[str, str]:
    oom = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error)
    return "oom" if oom else "error", one_line(error)


def _by_cell(runs: Sequence[Run]) -> dict[Cell, list[Run]]:
    groups: dict[Cell, list[Run]] = {}
    for run in runs:
        groups.setdefault(run.cell, []).append(run)
    return groups


def _invalid(task: Task, comparison: Comparison, pending: Pending) -> Iterator[Record]:
    for cell, runs in _by_cell(pending()).items():
        reason = plan.incompatible(comparison, cell)
        if reason:
            yield from [make_record(task, comparison, run, "invalid", reason) for run in runs]


def _in_this_process(runner: CellRunner, pending: Pending) -> Iterator[Record]:
    while jobs := _by_cell(pending()):
        yield from runner(*next(iter(jobs.items())))


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


def _in_workers(task: Task, comparison: Comparison, pending: Pending, jobs: int) -> Iterator[Record]:
    workers: list[_Worker] = []
    try:
        while True:
            _hand_out(task, workers, pending(), jobs)
            busy: dict[Any, _Worker] = {worker.connection: worker for worker in workers if worker.cell}
            if not busy:
                return
            for worker in [busy[connection] for connection in wait(list(busy))]:
                try:
                    record = worker.take()
                except (EOFError, OSError):
                    record = _bury(task, comparison, worker, workers)
                if record:
                    yield record
    finally:
        for worker in workers:
            worker.process.kill()
            worker.end()


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


def _bury(task: Task, comparison: Comparison, worker: _Worker, workers: list[_Worker]) -> Record | None:
    """Remove a worker that died; the run it was at, if any, gets a record, the rest of its cell is pending again."""
    workers.remove(worker)
    exitcode = worker.end()
    if not worker.ready:
        raise RuntimeError(f"Worker processes cannot start: one ended with exit code {exitcode} before its first run.")
    how = f"by signal {-exitcode}" if exitcode is not None and exitcode < 0 else f"with exit code {exitcode}"
    reason = f"The worker process ended {how} during this run."
    return make_record(task, comparison, worker.owed[0], "error", reason) if worker.owed else None


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
