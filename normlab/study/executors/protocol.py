"""Interface between executors, their pools of workers, and the scheduler."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from normlab.study.design.records import Configuration, Record, Run
from normlab.study.worker.strategy import Strategy, Task

Pending = Callable[[], Sequence[Sequence[Run]]]
"""Returns the runs without a record in rounds, the most urgent round first. The runs of a configuration in a round are
handed out together, once no configuration of an earlier round waits for a worker."""

Stop = Callable[[], bool]
Limit = Callable[[Configuration], float]


@dataclass(frozen=True)
class Begun:
    """A worker is ready for the first run of a configuration, or was delayed, so that its time counts anew."""

    configuration: Configuration


@dataclass(frozen=True)
class Done:
    """A worker has finished its runs of a configuration."""

    configuration: Configuration


@dataclass(frozen=True)
class Died:
    """The worker of a configuration died.

    Attributes:
        configuration: The configuration that the worker had.
        how: The cause as a clause, e.g. `it ended with exit code 3`.
    """

    configuration: Configuration
    how: str


Event = Begun | Record | Done | Died


class Pool(Protocol):
    """Workers of one kind for one task. A worker has one configuration at a time, and makes its runs in order.

    Attributes:
        jobs: Number of configurations that may be under way at a time.
    """

    jobs: int

    def submit(self, configurations: Mapping[Configuration, Sequence[Run]], room: int) -> Collection[Configuration]:
        """Submit configurations to workers.

        Args:
            configurations: Configurations that wait, and their runs.
            room: The most configurations to take.

        Returns:
            The configurations that were taken, at least one.
        """
        ...

    def events(self) -> Iterator[Event]:
        """Yield the events since the last call, in order for each configuration; wait briefly where there are none.

        Raises:
            Fault: If the identity of a worker differs from that of the task.
        """
        ...

    def cancel(self, configuration: Configuration) -> None:
        """Stop work on a configuration at once; it has no further events."""
        ...

    def close(self) -> None:
        """Stop all workers at once."""
        ...


class Executor(Protocol):
    """A kind of workers with its options."""

    def check(self, strategy: Strategy, output: Path | None) -> None:
        """Check that the executor can work here.

        Args:
            strategy: Strategy of the runs.
            output: The folder of the comparison, if it has one.

        Raises:
            BadInput: If something is missing, before anything is written.
        """
        ...

    def start(self, task: Task, output: Path | None) -> Pool | None:
        """Start a pool of workers; return `None` where runs are made in this process.

        Raises:
            Fault: If workers cannot be reached.
        """
        ...
