"""Hand runs to workers, retry those of workers that die, and collect records."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import monotonic

from normlab.study.design.records import Configuration, Record, Run, by_configuration
from normlab.study.executors.protocol import Begun, Died, Done, Event, Limit, Pending, Pool, Stop
from normlab.study.worker.outcome import make_record
from normlab.study.worker.strategy import Task

DEATHS = 3

HELD_UP = 30.0
"""Seconds between two polls above which this process, and perhaps its workers, must have been suspended."""


def work(
    task: Task,
    pool: Pool,
    pending: Pending,
    stop: Stop,
    lanes: Callable[[Configuration], int],
    limit: Limit = lambda configuration: math.inf,
) -> Iterator[Record]:
    """Keep a pool at work until nothing is pending.

    Args:
        task: The task of the pool.
        pool: Workers; closed at the end, also after an exception.
        pending: See `driver.schedule.records`.
        stop: Returns true once all workers must be stopped; the runs under way stay pending.
        lanes: Number of runs of a configuration that a worker stacks.
        limit: Seconds after which a run of a configuration is given up; a stack of runs may take as long for each run.

    Yields:
        Records in the order of their arrival.

    Raises:
        RuntimeError: If workers cannot start.
        Fault: If the identity of a worker differs from that of the task.
    """
    tracker = _Tracker(task, lanes, limit, looked=monotonic())
    try:
        while not stop():
            _hand_out(pool, pending, tracker)
            if not tracker.under_way:
                return
            for event in pool.events():
                yield from tracker.handle(event)
            for configuration in tracker.overdue():
                pool.cancel(configuration)
                yield from tracker.give_up(configuration)
    finally:
        pool.close()


def _hand_out(pool: Pool, pending: Pending, tracker: "_Tracker") -> None:
    room = pool.jobs - len(tracker.under_way)
    for runs in pending() if room else ():
        waiting = {
            configuration: of
            for configuration, of in by_configuration(runs).items()
            if configuration not in tracker.under_way
        }
        for configuration in pool.submit(waiting, room) if waiting and room else ():
            tracker.under_way[configuration] = _Assignment(list(waiting[configuration]))
            room -= 1


@dataclass(eq=False)
class _Assignment:
    """The runs that a worker still owes, whether it has begun, and the time at which the first of them began."""

    owed: list[Run]
    begun: bool = False
    since: float = 0.0


@dataclass(eq=False)
class _Tracker:
    """Tracks which worker holds which configuration, and why workers died.

    Attributes:
        looked: Time of the last poll.
        under_way: Configurations that workers have.
        deaths: For each run, the causes of death of its workers.
        false_starts: Causes of deaths before the first run, since a worker last began.
    """

    task: Task
    lanes: Callable[[Configuration], int]
    limit: Limit
    looked: float
    under_way: dict[Configuration, _Assignment] = field(default_factory=dict)
    deaths: dict[Run, list[str]] = field(default_factory=dict)
    false_starts: list[str] = field(default_factory=list)

    def handle(self, event: Event) -> Iterator[Record]:
        """Update the state by an event, and yield the records that follow from it."""
        match event:
            case Record():
                assignment = self.under_way[event.run.configuration]
                assignment.owed.remove(event.run)
                assignment.since = monotonic()
                yield event
            case Begun():
                assignment = self.under_way[event.configuration]
                assignment.begun, assignment.since = True, monotonic()
                self.false_starts.clear()
            case Done():
                del self.under_way[event.configuration]
            case Died():
                yield from self._on_death(event.configuration, self.under_way.pop(event.configuration), event.how)

    def overdue(self) -> list[Configuration]:
        """Find the configurations whose current run, or stack of runs, exceeds its limit."""
        now = monotonic()
        held_up = now - self.looked if now - self.looked > HELD_UP else 0.0
        self.looked = now
        for assignment in self.under_way.values():
            assignment.since = min(now, assignment.since + held_up)
        return [
            configuration
            for configuration, assignment in self.under_way.items()
            if assignment.begun and assignment.owed and now - assignment.since > self._limit(configuration, assignment)
        ]

    def give_up(self, configuration: Configuration) -> Iterator[Record]:
        """Record the current runs of a configuration as timeouts, and forget its worker."""
        assignment = self.under_way.pop(configuration)
        seconds = self._limit(configuration, assignment)
        reason = f"No end after {seconds:.3g} s, the limit of `--run-timeout`: the worker was stopped."
        for run in self._first(configuration, assignment):
            yield make_record(self.task, run, "timeout", reason)

    def _limit(self, configuration: Configuration, assignment: _Assignment) -> float:
        """Compute the seconds that the current runs of a worker may take."""
        return self.limit(configuration) * len(self._first(configuration, assignment))

    def _first(self, configuration: Configuration, assignment: _Assignment) -> list[Run]:
        return assignment.owed[: self.lanes(configuration)]

    def _on_death(self, configuration: Configuration, lost: _Assignment, how: str) -> Iterator[Record]:
        if not lost.begun:
            self.false_starts.append(how)
            if len(self.false_starts) == DEATHS:
                how = _clauses(self.false_starts)
                raise RuntimeError(f"Worker processes cannot start: {DEATHS} died before their first run: {how}.")
            return
        for run in self._first(configuration, lost):
            hows = self.deaths.setdefault(run, [])
            hows.append(how)
            if len(hows) == DEATHS:
                reason = f"The worker died {DEATHS} times during this run: {_clauses(hows)}."
                yield make_record(self.task, run, "error", reason)


def _clauses(hows: Sequence[str]) -> str:
    return "; ".join(dict.fromkeys(hows))
