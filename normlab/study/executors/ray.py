"""Workers as tasks of a Ray cluster: a task for each configuration, whose records come back one at a time.

Without an address a cluster of this machine is started, and ended with the comparison. Ray starts no task again: what a
death costs is decided here as everywhere (see `pool`).
"""

import logging
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from normlab.errors import BadInput, Fault, one_line
from normlab.extras import importing
from normlab.study.design.records import Configuration, Record, Run
from normlab.study.executors.protocol import Begun, Died, Done, News
from normlab.study.worker.runner import ConfigurationRunner, worker
from normlab.study.worker.strategy import Strategy, Task

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")  # else Ray prints every death, which is told here
with importing("cluster"):
    import ray
    from ray import exceptions

REACHED_WITHIN = 5.0
"""Seconds until a machine must take a connection; Ray itself would try for two minutes."""
JOINED_WITHIN = 20.0
"""Seconds until a cluster must have let a process join it."""


@dataclass(frozen=True)
class Ray:
    """A Ray cluster.

    Attributes:
        jobs: How many configurations run at a time; unless given, as many as the cluster has CPUs, or GPUs where they
            are used.
        address: Of a running cluster; unless given, that in `RAY_ADDRESS`, else there is one for this comparison.
    """

    jobs: int | None
    address: str | None

    def check(self, strategy: Strategy, output: Path | None) -> None:
        """Refuse an address where no cluster is."""
        address = self._address()
        if address and not ray.is_initialized():
            if address.startswith("ray://"):
                raise BadInput(
                    f"Expected the address of a Ray cluster as HOST:PORT, from one of its machines, got `{address}`, "
                    "which is for Ray's clients. Start this on a machine of the cluster with `--ray-address auto`."
                )
            _reach(address)

    def hire(self, task: Task, output: Path | None = None) -> "RayCrew":
        """Tasks, in the cluster that this process is in already or joins."""
        ours = not ray.is_initialized()
        try:
            if ours:
                _join(**self._connection())
            return RayCrew(task, self.jobs, leave=ours)
        except (OSError, RuntimeError, ValueError, exceptions.RayError) as error:
            if ours:
                ray.shutdown()
            raise error if isinstance(error, Fault) else Fault(f"Ray does not start: {one_line(error)}") from error

    def _address(self) -> str | None:
        return self.address or os.environ.get("RAY_ADDRESS")

    def _connection(self) -> dict[str, Any]:
        address = self._address()
        new = {"address": "local", "num_cpus": self.jobs, "include_dashboard": False}
        return {"address": address} if address else new


class RayCrew:
    """Tasks, each for one configuration. Without GPUs, processes of Ray keep compiled programs between tasks."""

    def __init__(self, task: Task, jobs: int | None, *, leave: bool) -> None:
        """Nothing is started yet.

        Args:
            task: What to give.
            jobs: See `Ray`.
            leave: Whether to leave the cluster at the end.

        Raises:
            Fault: If no machine of the cluster has what a task needs.
        """
        on_gpu = task.identity["platform"]["backend"] == "gpu"
        needs = {"CPU": 1, "GPU": task.strategy.devices if on_gpu else 0}
        there = ray.cluster_resources()
        for resource, number in needs.items():
            if there.get(resource, 0) < number:
                raise Fault(f"Expected a Ray cluster with a {resource} for each task, got {there.get(resource, 0):g}.")
        self.jobs = jobs or int(min(there[resource] for resource, number in needs.items() if number))
        self._task, self._leave = task, leave
        self._streams: dict[Configuration, Any] = {}
        self._remote = ray.remote(_configuration).options(
            num_cpus=needs["CPU"],
            num_gpus=needs["GPU"],
            max_retries=0,
            _generator_backpressure_num_objects=1,  # a death may lose what was yielded and not yet taken
            runtime_env={"env_vars": task.strategy.environment(os.environ)},
        )

    def give(self, configurations: Mapping[Configuration, Sequence[Run]], room: int) -> Collection[Configuration]:
        """Start a task for each configuration that there is room for."""
        taken = list(configurations)[:room]
        self._streams |= {
            configuration: self._remote.remote(self._task, configuration, list(configurations[configuration]))
            for configuration in taken
        }
        return taken

    def news(self) -> Iterator[News]:
        """The next message of a task; none after a second, so that a reason to stop is noticed."""
        ready, _ = ray.wait(list(self._streams.values()), timeout=1.0)
        for configuration in [configuration for configuration, stream in self._streams.items() if stream in ready]:
            stream = self._streams.pop(configuration)
            news = _next(configuration, stream)
            if not isinstance(news, Done | Died):
                self._streams[configuration] = stream  # behind the others, who are asked first then
            yield news

    def drop(self, configuration: Configuration) -> None:
        """Cancel the task."""
        ray.cancel(self._streams.pop(configuration), force=True)

    def close(self) -> None:
        """Cancel all tasks; the end of a cluster that was started for this."""
        for configuration in list(self._streams):
            self.drop(configuration)
        if self._leave:
            ray.shutdown()


def _next(configuration: Configuration, stream: Any) -> News:
    """One message of a task.

    Raises:
        Fault: If that is the message.
    """
    try:
        message: Any = ray.get(next(stream))
    except StopIteration:
        return Done(configuration)
    except exceptions.RayError as error:
        cause = f": {one_line(error.cause)}" if isinstance(error, exceptions.RayTaskError) else ""
        return Died(configuration, f"Ray reports {type(error).__name__}{cause}")
    if isinstance(message, Fault):
        raise message
    return message


_AT_WORK: list[ConfigurationRunner] = []
"""What a process of Ray was last, with the programs that it has compiled."""


def _configuration(task: Task, configuration: Configuration, runs: Sequence[Run]) -> Iterator[Begun | Record | Fault]:
    """What a task does."""
    try:
        if not _AT_WORK or _AT_WORK[0].task != task:
            _AT_WORK[:] = [worker(task)]
    except Fault as fault:
        yield fault
        return
    yield Begun(configuration)
    yield from _AT_WORK[0](configuration, runs)


def _join(**connection: Any) -> None:
    with warnings.catch_warnings():
        # JAX warns of any fork in its process; Ray's go on to be another program at once.
        warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
        ray.init(**connection, log_to_driver=False, logging_level=logging.ERROR)


def _reach(address: str) -> None:
    """Make sure that a cluster answers.

    Raises:
        BadInput: If none does in time.
    """
    host, colon, port = address.rpartition(":")
    try:
        if colon and port.isdigit():
            socket.create_connection((host.strip("[]"), int(port)), REACHED_WITHIN).close()
        joining = f"import ray; ray.init(address={address!r}, log_to_driver=False, logging_level='ERROR')"
        subprocess.run(
            [sys.executable, "-c", joining], check=True, capture_output=True, text=True, timeout=JOINED_WITHIN
        )
    except OSError as error:
        reason = error.strerror or str(error)
    except subprocess.TimeoutExpired:
        reason = f"nothing that lets a process join within {JOINED_WITHIN:g} s"
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no reason given"])[-1]
    else:
        return
    raise BadInput(
        f"Expected a Ray cluster at `{address}`, got: {reason}. Start one there with `ray start --head`, or give no "
        "address for one of this machine."
    )
