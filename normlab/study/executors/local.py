"""Workers on this machine: spawned processes, a pipe to each. On GPUs there is one for each device."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from itertools import count
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic
from typing import NoReturn, Self

from normlab.errors import BadInput, Fault, one_line
from normlab.study.design.comparison import Settings
from normlab.study.design.provenance import usable_cpus
from normlab.study.design.records import Configuration, Run
from normlab.study.executors.protocol import Begun, Died, Done, Event
from normlab.study.worker.runner import ConfigurationRunner, before_the_task, worker
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

    def warm(self, settings: Settings, most: int) -> "Warm | None":
        """Return workers that can start before there is a task: one for each processor but one, at most `most`."""
        jobs = min(usable_cpus() - 1, most, self.jobs or most)
        return Warm(self, settings, jobs) if settings.source and jobs else None

    def start(self, task: Task, output: Path | None = None, warm: "Warm | None" = None) -> "LocalPool | None":
        """Create a pool of processes, each started when it is needed; those that are `warm` come first."""
        if task.strategy.alone or (task.strategy.lanes and self.jobs in (None, 1) and not self._apart()):
            return None
        return LocalPool(task, self.jobs or (1 if task.strategy.lanes else usable_cpus()), warm)

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
        warm: Whether it started before there was a task, and has no configuration yet.
        compiled: Configurations that it has compiled so far.
    """

    process: BaseProcess
    connection: Connection
    index: int
    configuration: Configuration | None = None
    warm: bool = False
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

    def __init__(self, task: Task, jobs: int, warm: "Warm | None" = None) -> None:
        """Store the task; workers start on first use, after those that are warm."""
        self.jobs = jobs
        self._task, self._workers, self._warm = task, list[_Worker](), warm
        self._compiling: list[Configuration] = []

    def submit(self, configurations: Mapping[Configuration, Sequence[Run]], room: int) -> Collection[Configuration]:
        """Send each idle worker a configuration, preferably one that it has compiled."""
        waiting, taken = dict(configurations), list[Configuration]()
        idle = [one for one in self._workers if one.configuration is None]
        idle += [self._start() for _ in range(min(room, len(waiting)) - len(idle))]
        for one in idle[: len(waiting)]:
            taken.append(self._best(one, waiting))
            one.send(taken[-1], waiting.pop(taken[-1]))
            if one.warm:  # it may be compiling, which counts as if it had begun
                one.warm = False
                self._compiling.append(taken[-1])
        return taken

    def events(self) -> Iterator[Event]:
        """Yield one message of each worker that has any; return after a second, so that a reason to stop is noticed."""
        while self._compiling:
            yield Begun(self._compiling.pop())
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
        one = self._warm.take() if self._warm else None
        if not one:
            taken = {other.index for other in self._workers}
            one = _spawned(self._task.strategy, next(index for index in count() if index not in taken))
        with suppress(OSError):  # it died while it got warm, which `receive` reports
            one.connection.send(self._task)
        self._workers.append(one)
        return one


class Warm:
    """Workers that start while the comparison is checked: they import, and compile the first program of each problem.

    They make no run, and write nothing but the cache of compiled programs, before they have a task.
    """

    def __init__(self, executor: Local, settings: Settings, jobs: int) -> None:
        """Store whose workers they are, and the settings; `jobs` is the number of workers."""
        self._executor, self._settings, self._jobs, self._path = executor, settings, jobs, list(sys.path)
        self._workers: list[_Worker] = []

    def start(self, strategy: Strategy) -> None:
        """Start the workers, if the strategy has any; without processes or memory there are none.

        They get the search path of imports of the time when this object was made, without the folder of a comparison
        that this process may be in, so that its files do not hide modules of libraries.
        """
        with suppress(OSError), _search_path(self._path):
            while strategy.one_thread and len(self._workers) < self._jobs:
                self._workers.append(_spawned(strategy, len(self._workers), self._settings))

    def pool(self, task: Task, output: Path | None = None) -> LocalPool | None:
        """Create the pool of the executor, with these workers; see `Executor.start`."""
        return self._executor.start(task, output, self)

    def take(self) -> _Worker | None:
        """Hand over one living worker; `None` if none is left."""
        while self._workers:
            one = self._workers.pop(0)
            if one.process.is_alive():
                return one
            one.connection.close()
        return None

    def __enter__(self) -> Self:
        """Return the workers."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the workers that nobody has taken; a function that makes data may clean up."""
        for one in self._workers:
            one.process.terminate()
        end = monotonic() + GRACE
        for one in self._workers:
            one.connection.close()
            one.process.join(max(0.0, end - monotonic()))
            one.process.kill()
            one.process.join()


def _spawned(strategy: Strategy, index: int, settings: Settings | None = None) -> _Worker:
    """Start a process that waits for its task; with settings it gets warm before."""
    process, connection = spawned(_work, strategy, index, settings, index, name="normlab-worker")
    return _Worker(process, connection, index, warm=settings is not None)


def spawned(
    target: Callable[..., None], strategy: Strategy, index: int, *arguments: object, name: str
) -> tuple[BaseProcess, Connection]:
    """Start a process with the environment of a worker, which Ctrl-C does not end.

    Args:
        target: Function `(connection, strategy, *arguments)` of the process.
        strategy: Strategy of the runs.
        index: Index of the worker on this machine.
        *arguments: Further arguments, which can be pickled.
        name: Name of the process.

    Returns:
        The process, and the connection to it.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, strategy, *arguments), daemon=True, name=name)
    with environment(strategy.environment(os.environ, index)), _without_interrupts():
        process.start()
    theirs.close()
    return process, ours


@contextmanager
def silenced() -> Iterator[None]:
    """Leave output and exceptions of a comparison's code to the process that runs it with both."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere), suppress(Exception):
        yield


@contextmanager
def _search_path(path: list[str]) -> Iterator[None]:
    before = list(sys.path)
    sys.path[:] = path
    try:
        yield
    finally:
        sys.path[:] = before


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Start a process that Ctrl-C does not end, and whose end is up to its parent."""
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # it would let interrupts through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _how(exitcode: int | None) -> str:
    if exitcode == -signal.SIGKILL:
        return "it was killed, as the system does when memory runs out"
    return f"it ended by signal {-exitcode}" if exitcode and exitcode < 0 else f"it ended with exit code {exitcode}"


GRACE = 0.5
"""Seconds in which a worker without a task can end by itself, so that a function that writes a file can clean up."""

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


def _work(connection: Connection, strategy: Strategy, settings: Settings | None, index: int) -> None:
    """Serve one parent until it closes the connection or ends."""
    end_with_parent()
    os.umask(0o077)  # compiled programs are written by JAX; what users are to read, the parent writes
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C ends
    with suppress(EOFError, OSError):
        ahead = _compiled_ahead(connection, strategy, settings, index) if settings else None
        task = connection.recv()
        try:
            runner = worker(task, ahead)
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


def _compiled_ahead(
    connection: Connection, strategy: Strategy, settings: Settings, index: int
) -> ConfigurationRunner | None:
    """Compile until there is a task; errors are left to the checks, which report them."""
    signal.signal(signal.SIGTERM, _exit)
    runner = None
    with silenced():
        runner = before_the_task(settings, strategy)
        firsts = runner.first_of_each_problem()
        for configuration in (*firsts[index % len(firsts) :], *firsts[: index % len(firsts)]):
            if connection.poll():
                break
            runner.compile(configuration)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return runner


def _exit(*_: object) -> NoReturn:
    """End the process by an exception, so that the code of the comparison can clean up."""
    raise SystemExit
