"""Make the records of pending runs, in workers or in this process."""

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import nullcontext
from itertools import chain
from typing import TYPE_CHECKING

from normlab.study.design.plan import Plan
from normlab.study.design.records import Record, by_configuration
from normlab.study.executors.protocol import Limit, Pending, Stop
from normlab.study.worker.outcome import make_record
from normlab.study.worker.runner import ConfigurationRunner
from normlab.study.worker.strategy import Task

if TYPE_CHECKING:
    from normlab.study.executors.protocol import Pool


def records(
    task: Task,
    plan: Plan,
    pending: Pending,
    start: "Callable[[Task], Pool | None]",
    stop: Stop = lambda: False,
    limit: Limit = lambda configuration: math.inf,
) -> Generator[Record, None, None]:
    """Execute until nothing is pending, one record at a time.

    Args:
        task: The task of the workers.
        plan: The plan of the comparison of `task.source`, under the settings of the task.
        pending: See `Pending`; called whenever there is room for more work, after all records so far have been taken
            from this iterator.
        start: Starts workers (see `Executor.start`); returns `None` for runs in this process.
        stop: Returns true once no run must start. Workers are then stopped; in this process the current run ends first.
        limit: Seconds that a run of a configuration may take in a worker.

    Yields:
        A record for every run, also for runs that fail or cannot be run.

    Raises:
        RuntimeError: If workers cannot start.
        Fault: If the identity of a worker differs from that of the task.
    """
    from normlab.study.executors.scheduler import work

    yield from _invalid(task, plan, pending)
    if stop() or not any(pending()):
        return
    if pool := start(task):
        yield from work(task, pool, pending, stop, ConfigurationRunner(task, plan).lanes, limit)
        return
    from normlab.study.training.compilation_cache import cached

    with cached() if task.strategy.lanes else nullcontext():
        yield from _in_this_process(ConfigurationRunner(task, plan), pending, stop)


def _invalid(task: Task, plan: Plan, pending: Pending) -> Iterator[Record]:
    for configuration, runs in by_configuration([*dict.fromkeys(chain.from_iterable(pending()))]).items():
        reason = plan.incompatible(configuration)
        if reason:
            yield from [make_record(task, run, "invalid", reason) for run in runs]


def _in_this_process(runner: ConfigurationRunner, pending: Pending, stop: Stop) -> Iterator[Record]:
    while not stop() and (runs := next(filter(None, pending()), None)):
        configuration, runs = next(iter(by_configuration(runs).items()))
        lanes = runner.lanes(configuration)
        for start in range(0, len(runs), lanes):
            if stop():
                return
            yield from runner(configuration, runs[start : start + lanes])
