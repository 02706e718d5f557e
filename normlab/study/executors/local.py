"""Workers on this machine: spawned processes, a pipe to each. On GPUs there is one for each device."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from normlab.errors import BadInput, Fault, one_line
from normlab.study.design.provenance import usable_cpus
from normlab.study.design.records import Configuration, Run
from normlab.study.executors.protocol import Begun, Died, Done, Event
from normlab.study.worker.runner import worker
from normlab.study.worker.strategy import Strategy, Task, environment


@dataclass(frozen=True)
class Local:
    """This machine.

    Attributes:
        jobs: Number of worker processes; unless given, one a core where runs are in single threads, else this process.
        apart: Whether runs need a process apart from this one, since only another process can be stopped.
    """

    jobs: int | None = None
    apart: bool = False

    def check(self, strategy: Strategy, output: Path | None) -> None:
        """Refuse more workers than devices."""
        if strategy.lanes and self.jobs and self.jobs > 1:
            import jax

            check_devices(self.jobs, jax.default_backend(), jax.local_device_count())
        if strategy.alone and strategy.devices > 1 and (self.jobs or 1) > 1:
            raise BadInput(
                f"Expected one job where {strategy.devices} devices of this machine train each model, got {self.jobs}."
            )

    def start(self, task: Task, output: Path | None = None) -> "LocalPool | None":
        """Create a pool of processes, each started when it is needed."""
        if task.strategy.alone or (task.strategy.lanes and self.jobs in (None, 1) and not self._apart()):
            return None
        return LocalPool(task, self.jobs or (1 if task.strategy.lanes else usable_cpus()))

    def _apart(self) -> bool:
        """Check whether another process can use the device that this process has opened."""
        import jax

        return self.apart and jax.default_backend() in ("cpu", "gpu")


def check_devices(jobs: int, backend: str, devices: int) -> None:
    """Check that so many jobs can share the devices of a machine.

    Raises:
        BadInput: If there are more jobs than GPUs, or several on devices that one process holds together.
    """
    most = devices if backend in ("cpu", "gpu") else 1
    if backend != "cpu" and jobs > most:
        raise BadInput(
            f"Expected `jobs` to be at most {most} (one process for each GPU, one in all for other "
            f"accelerators; here are {devices} of `{backend}`), got {jobs}."
        )


@dataclass(eq=False)
class _Worker:
    """A process as its parent sees it.

    Attributes:
        index: Index of its device, where workers have one each.
        configuration: Its current configuration; `None` while it is idle.
        compiled: Configurations that it has compiled so far.
    """

    process: BaseProcess
    connection: Connection
    index: int
    configuration: Configuration | None = None
    compiled: set[Configuration] = field(default_factory=set)

    def send(self, configuration: Configuration, runs: Sequence[Run]) -> None:
        self.configuration = configuration
        self.compiled.add(configuration)
        with suppress(OSError):  # it died while idle, which `receive` reports
            self.connection.send((configuration, list(runs)))

    def receive(self, configuration: Configuration) -> Event:
        """Receive one message; a closed connection means that the process died.

        Raises:
            Fault: If the message is a fault.
        """
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            return Died(configuration, _how(self.process.exitcode))
        if isinstance(message, Fault):
            raise message
        if isinstance(message, Done):
            self.configuration = None
        return message


class LocalPool:
    """Worker processes, each started when there is a first configuration for it."""

    def __init__(self, task: Task, jobs: int) -> None:
        """Store the task; workers start on first use."""
        self.jobs = jobs
        self._task, self._workers = task, list[_Worker]()

    def submit(self, configurations: Mapping[Configuration, Sequence[Run]], room: int) -> Collection[Configuration]:
        """Send each idle worker a configuration, preferably one that it has compiled."""
        waiting, taken = dict(configurations), list[Configuration]()
        idle = [one for one in self._workers if one.configuration is None]
        idle += [self._start() for _ in range(min(room, len(waiting)) - len(idle))]
        for one in idle[: len(waiting)]:
            taken.append(self._best(one, waiting))
            one.send(taken[-1], waiting.pop(taken[-1]))
        return taken

    def events(self) -> Iterator[Event]:
        """Yield one message of each worker that has any; return after a second, so that a reason to stop is noticed."""
        busy = {one.connection: one for one in self._workers if one.configuration}
        for connection in wait(list(busy), timeout=1.0):
            if isinstance(connection, Connection) and (configuration := busy[connection].configuration):
                event = busy[connection].receive(configuration)
                if isinstance(event, Died):
                    self._end(busy[connection])
                yield event

    def cancel(self, configuration: Configuration) -> None:
        """Kill the process of a configuration."""
        for one in [one for one in self._workers if one.configuration == configuration]:
            self._end(one)

    def close(self) -> None:
        """Kill all processes."""
        for one in list(self._workers):
            self._end(one)

    def _end(self, one: _Worker) -> None:
        """Kill a process, wait for its end, and forget it."""
        self._workers.remove(one)
        one.connection.close()
        one.process.kill()
        one.process.join()

    def _best(self, one: _Worker, configurations: Iterable[Configuration]) -> Configuration:
        """Choose a configuration that a worker has compiled, else one that no other worker has."""
        others = set[Configuration]().union(*(other.compiled for other in self._workers if other is not one))
        return min(
            configurations, key=lambda configuration: (configuration not in one.compiled, configuration in others)
        )

    def _start(self) -> _Worker:
        taken = {one.index for one in self._workers}
        index = next(index for index in count() if index not in taken)
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, self._task), daemon=True, name="normlab-worker")
        with environment(self._task.strategy.environment(os.environ, index)):
            process.start()
        theirs.close()
        self._workers.append(_Worker(process, ours, index))
        return self._workers[-1]


def _how(exitcode: int | None) -> str:
    if exitcode == -signal.SIGKILL:
        return "it was killed, as the system does when memory runs out"
    return f"it ended by signal {-exitcode}" if exitcode and exitcode < 0 else f"it ended with exit code {exitcode}"


_PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """End this process as soon as its parent ends, on Linux also while it computes outside of Python."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def _work(connection: Connection, task: Task) -> None:
    """Serve one parent until it closes the connection or ends."""
    end_with_parent()
    os.umask(0o077)  # compiled programs are written by JAX; what users are to read, the parent writes
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C ends
    with suppress(EOFError, OSError):
        try:
            runner = worker(task)
        except Fault as error:
            connection.send(error)
            return
        except Exception as error:  # above all out of memory
            connection.send(Fault(f"Worker processes cannot start: {one_line(error)}"))
            return
        while True:
            configuration, runs = connection.recv()
            connection.send(Begun(configuration))
            for record in runner(configuration, runs):
                connection.send(record)
            connection.send(Done(configuration))
