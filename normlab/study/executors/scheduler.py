"""Hand runs to workers, retry those of workers that die, and collect records."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import monotonic

from normlab.study.design.records import Configuration, Record, Run, by_configuration
from normlab.study.executors.protocol import Begun, Crew, Died, Done, Limit, News, Pending, Stop
from normlab.study.worker.outcome import make_record
from normlab.study.worker.strategy import Task

DEATHS = 3

HELD_UP = 30.0
"""Seconds between two looks at workers that only pass where this process, and perhaps its workers, did not run."""


def work(
    task: Task,
    crew: Crew,
    pending: Pending,
    stop: Stop,
    lanes: Callable[[Configuration], int],
    limit: Limit = lambda configuration: math.inf,
) -> Iterator[Record]:
    """Keep a crew at work until nothing is pending.

    Args:
        task: What the crew was hired for.
        crew: It is let go at the end, however that comes.
        pending: See `driver.schedule.records`.
        stop: Once it says yes, all workers are stopped; the runs that they are at stay pending.
        lanes: How many runs of a configuration a worker makes together.
        limit: Seconds after which a run of a configuration is given up; a stack of runs may take as long for each run.

    Yields:
        The records, in the order in which they come.

    Raises:
        RuntimeError: If workers cannot start.
        Fault: If a worker is not what its runs would be recorded as.
    """
    books = _Books(task, lanes, limit, looked=monotonic())
    try:
        while not stop():
            _hand_out(crew, pending, books)
            if not books.under_way:
                return
            for news in crew.news():
                yield from books.enter(news)
            for configuration in books.overdue():
                crew.drop(configuration)
                yield from books.give_up(configuration)
    finally:
        crew.close()


def _hand_out(crew: Crew, pending: Pending, books: "_Books") -> None:
    room = crew.jobs - len(books.under_way)
    waiting = (
        {
            configuration: runs
            for configuration, runs in by_configuration(pending()).items()
            if configuration not in books.under_way
        }
        if room
        else {}
    )
    for configuration in crew.give(waiting, room) if waiting else ():
        books.under_way[configuration] = _Assignment(list(waiting[configuration]))


@dataclass(eq=False)
class _Assignment:
    """The runs that a worker still owes, whether it has begun with them, and since when it is at the first of them."""

    owed: list[Run]
    begun: bool = False
    since: float = 0.0


@dataclass(eq=False)
class _Books:
    """Who is at what, and what workers have died of.

    Attributes:
        looked: When workers were last looked at.
        under_way: The configurations that workers have.
        deaths: For each run, how workers died that were at it.
        false_starts: How workers died before their first run, since one last began.
    """

    task: Task
    lanes: Callable[[Configuration], int]
    limit: Limit
    looked: float
    under_way: dict[Configuration, _Assignment] = field(default_factory=dict)
    deaths: dict[Run, list[str]] = field(default_factory=dict)
    false_starts: list[str] = field(default_factory=list)

    def enter(self, news: News) -> Iterator[Record]:
        """Take note of news, which may make records."""
        match news:
            case Record():
                given = self.under_way[news.run.configuration]
                given.owed.remove(news.run)
                given.since = monotonic()
                yield news
            case Begun():
                given = self.under_way[news.configuration]
                given.begun, given.since = True, monotonic()
                self.false_starts.clear()
            case Done():
                del self.under_way[news.configuration]
            case Died():
                yield from self._bury(news.configuration, self.under_way.pop(news.configuration), news.how)

    def overdue(self) -> list[Configuration]:
        """The configurations whose workers are at a run, or at a stack of them, for longer than they may."""
        now = monotonic()
        held_up = now - self.looked if now - self.looked > HELD_UP else 0.0
        self.looked = now
        for given in self.under_way.values():
            given.since = min(now, given.since + held_up)
        return [
            configuration
            for configuration, given in self.under_way.items()
            if given.begun and given.owed and now - given.since > self._limit(configuration, given)
        ]

    def give_up(self, configuration: Configuration) -> Iterator[Record]:
        """Record the runs that a configuration's worker was at as timeouts; it has none of the others any more."""
        given = self.under_way.pop(configuration)
        seconds = self._limit(configuration, given)
        reason = f"No end after {seconds:.3g} s, the limit of `--run-timeout`: the worker was stopped."
        for run in self._first(configuration, given):
            yield make_record(self.task, run, "timeout", reason)

    def _limit(self, configuration: Configuration, given: _Assignment) -> float:
        """Seconds for the runs that a worker is at."""
        return self.limit(configuration) * len(self._first(configuration, given))

    def _first(self, configuration: Configuration, given: _Assignment) -> list[Run]:
        return given.owed[: self.lanes(configuration)]

    def _bury(self, configuration: Configuration, lost: _Assignment, how: str) -> Iterator[Record]:
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
