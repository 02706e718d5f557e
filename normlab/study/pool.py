"""Handing cells to workers and taking their records: the loop that all ways of working share, wherever workers are.

A crew (`local`, `slurm`, `ray_core`) knows its workers. The loop knows what is pending, which cells are under way, and
what a death costs: a worker that dies, however it does, costs its cell a retry and nothing else. Finished records are
kept, and what it left of its cell is pending again. A run that was under way at `DEATHS` deaths is recorded as an
error; workers that die as often before their first run, one after another, cannot start.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from normlab.study.config import Cell, Record, Run
from normlab.study.execute import Pending, Stop, Strategy, Task, by_cell, make_record

DEATHS = 3


@dataclass(frozen=True)
class Begun:
    """A worker is ready for the first run of a cell."""

    cell: Cell


@dataclass(frozen=True)
class Done:
    """A worker has no more to say of a cell."""

    cell: Cell


@dataclass(frozen=True)
class Died:
    """The worker of a cell is gone.

    Attributes:
        cell: What it was given.
        how: A clause, e.g. `it ended with exit code 3`.
    """

    cell: Cell
    how: str


News = Begun | Record | Done | Died


class Crew(Protocol):
    """Workers of one kind, hired for one task. A worker has one cell at a time, and makes its runs in order.

    Attributes:
        jobs: How many cells may be under way at a time.
    """

    jobs: int

    def give(self, cells: Mapping[Cell, Sequence[Run]], room: int) -> Collection[Cell]:
        """Hand out as many cells as there is room for, at least one; the cells that were taken."""
        ...

    def news(self) -> Iterator[News]:
        """What has happened since, of each cell in order; waits for a moment where that is nothing.

        Raises:
            Fault: If a worker is not what its runs would be recorded as.
        """
        ...

    def drop(self, cell: Cell) -> None:
        """Stop work on a cell at once; nothing more is heard of it."""
        ...

    def close(self) -> None:
        """Let all workers go at once, whatever they are at."""
        ...


class Executor(Protocol):
    """A way of working, as it was asked for."""

    def check(self, strategy: Strategy, output: Path | None) -> None:
        """Refuse what cannot be.

        Args:
            strategy: How runs are to be executed.
            output: The folder of the comparison, if it has one.

        Raises:
            BadInput: If something is missing here, before anything is written.
        """
        ...

    def hire(self, task: Task, output: Path | None) -> Crew | None:
        """Find workers; none where runs are to be made in this process.

        Raises:
            Fault: If they cannot be reached.
        """
        ...


def work(task: Task, crew: Crew, pending: Pending, stop: Stop, lanes: Callable[[Cell], int]) -> Iterator[Record]:
    """Keep a crew at work until nothing is pending.

    Args:
        task: What the crew was hired for.
        crew: It is let go at the end, however that comes.
        pending: See `execute.records`.
        stop: Once it says yes, the run that each worker is at is waited for, and no other.
        lanes: How many runs of a cell a worker makes together.

    Yields:
        The records, in the order in which they come.

    Raises:
        RuntimeError: If workers cannot start.
        Fault: If a worker is not what its runs would be recorded as.
    """
    books = _Books(task, lanes)
    try:
        while not stop():
            _hand_out(crew, pending, books)
            if not books.under_way:
                return
            for news in crew.news():
                yield from books.enter(news)
        yield from _last(crew, books)
    finally:
        crew.close()


def _last(crew: Crew, books: "_Books") -> Iterator[Record]:
    """The runs that workers are at; each is let go when it has made its own."""
    awaited = books.at_hand()
    while True:
        for cell in [cell for cell, runs in awaited.items() if not any(map(books.owes, runs))]:
            del awaited[cell]
            if books.under_way.pop(cell, None):
                crew.drop(cell)
        if not awaited:
            return
        for news in crew.news():
            yield from books.enter(news)


def _hand_out(crew: Crew, pending: Pending, books: "_Books") -> None:
    room = crew.jobs - len(books.under_way)
    waiting = {cell: runs for cell, runs in by_cell(pending()).items() if cell not in books.under_way} if room else {}
    for cell in crew.give(waiting, room) if waiting else ():
        books.under_way[cell] = _Assignment(list(waiting[cell]))


@dataclass(eq=False)
class _Assignment:
    """The runs that a worker still owes, and whether it has begun with them."""

    owed: list[Run]
    begun: bool = False


@dataclass(eq=False)
class _Books:
    """Who is at what, and what workers have died of.

    Attributes:
        under_way: The cells that workers have.
        deaths: For each run, how workers died that were at it.
        false_starts: How workers died before their first run, since one last began.
    """

    task: Task
    lanes: Callable[[Cell], int]
    under_way: dict[Cell, _Assignment] = field(default_factory=dict)
    deaths: dict[Run, list[str]] = field(default_factory=dict)
    false_starts: list[str] = field(default_factory=list)

    def enter(self, news: News) -> Iterator[Record]:
        """Take note of news, which may make records."""
        match news:
            case Record():
                self.under_way[news.run.cell].owed.remove(news.run)
                yield news
            case Begun():
                self.under_way[news.cell].begun = True
                self.false_starts.clear()
            case Done():
                del self.under_way[news.cell]
            case Died():
                yield from self._bury(news.cell, self.under_way.pop(news.cell), news.how)

    def at_hand(self) -> dict[Cell, list[Run]]:
        """For each cell the runs that its worker is at: those of a stack together, none before it begins."""
        return {cell: self._first(cell, given) if given.begun else [] for cell, given in self.under_way.items()}

    def owes(self, run: Run) -> bool:
        """Whether a worker that was given a run has neither made it nor died."""
        return run.cell in self.under_way and run in self.under_way[run.cell].owed

    def _first(self, cell: Cell, given: _Assignment) -> list[Run]:
        return given.owed[: self.lanes(cell)]

    def _bury(self, cell: Cell, lost: _Assignment, how: str) -> Iterator[Record]:
        if not lost.begun:
            self.false_starts.append(how)
            if len(self.false_starts) == DEATHS:
                how = _clauses(self.false_starts)
                raise RuntimeError(f"Worker processes cannot start: {DEATHS} died before their first run: {how}.")
            return
        for run in self._first(cell, lost):
            hows = self.deaths.setdefault(run, [])
            hows.append(how)
            if len(hows) == DEATHS:
                reason = f"The worker died {DEATHS} times during this run: {_clauses(hows)}."
                yield make_record(self.task, run, "error", reason)


def _clauses(hows: Sequence[str]) -> str:
    return "; ".join(dict.fromkeys(hows))
