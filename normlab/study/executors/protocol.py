"""What an executor and its workers say to the scheduler."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from normlab.study.design.records import Configuration, Record, Run
from normlab.study.worker.strategy import Strategy, Task

Pending = Callable[[], Sequence[Run]]
Stop = Callable[[], bool]
Limit = Callable[[Configuration], float]


@dataclass(frozen=True)
class Begun:
    """A worker is ready for the first run of a configuration, or was delayed, so that its time counts anew."""

    configuration: Configuration


@dataclass(frozen=True)
class Done:
    """A worker has no more to say of a configuration."""

    configuration: Configuration


@dataclass(frozen=True)
class Died:
    """The worker of a configuration is gone.

    Attributes:
        configuration: What it was given.
        how: A clause, e.g. `it ended with exit code 3`.
    """

    configuration: Configuration
    how: str


News = Begun | Record | Done | Died


class Crew(Protocol):
    """Workers of one kind, hired for one task. A worker has one configuration at a time, and makes its runs in order.

    Attributes:
        jobs: How many configurations may be under way at a time.
    """

    jobs: int

    def give(self, configurations: Mapping[Configuration, Sequence[Run]], room: int) -> Collection[Configuration]:
        """Hand out as many configurations as there is room for, at least one; the configurations that were taken."""
        ...

    def news(self) -> Iterator[News]:
        """What has happened since, of each configuration in order; waits for a moment where that is nothing.

        Raises:
            Fault: If a worker is not what its runs would be recorded as.
        """
        ...

    def drop(self, configuration: Configuration) -> None:
        """Stop work on a configuration at once; nothing more is heard of it."""
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
