"""Workers as tasks of a Ray cluster: one task for each configuration, which yields its records one at a time.

Without an address a cluster of this machine is started, and ended with the comparison. Ray never retries a task: the
scheduler decides what a death costs, as for all executors.
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
from normlab.study.executors.protocol import Begun, Died, Done, Event
from normlab.study.worker.runner import ConfigurationRunner, worker
from normlab.study.worker.strategy import Strategy, Task

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")  # else Ray prints every death, which is reported here
with importing("cluster"):
    import ray
    from ray import exceptions

REACHED_WITHIN = 5.0
"""Seconds until a machine must accept a connection; Ray itself would try for two minutes."""
JOINED_WITHIN = 20.0
"""Seconds until a process must have joined a cluster."""


@dataclass(frozen=True)
class Ray:
    """A Ray cluster.

    Attributes:
        jobs: Number of configurations at a time; unless given, as many as the cluster has CPUs, or GPUs where they
            are used.
        address: Address of a running cluster; unless given, `RAY_ADDRESS`, else a cluster is started.
    """

    jobs: int | None
    address: str | None

    def check(self, strategy: Strategy, output: Path | None) -> None:
        """Check that a cluster answers at the address."""
        address = self._address()
        if address and not ray.is_initialized():
            if address.startswith("ray://"):
                raise BadInput(
                    f"Expected the address of a Ray cluster as HOST:PORT, from one of its machines, got `{address}`, "
                    "which is for Ray's clients. Start this on a machine of the cluster with `--ray-address auto`."
                )
            _reach(address)

    def start(self, task: Task, output: Path | None = None) -> "RayPool":
        """Create a pool of tasks in the cluster that this process has joined or joins now."""
        ours = not ray.is_initialized()
        try:
            if ours:
                _join(**self._connection())
            return RayPool(task, self.jobs, leave=ours)
        except (OSError, RuntimeError, ValueError, exceptions.RayError) as error:
            if ours:
                ray.shutdown()
            raise error if isinstance(error, Fault) else Fault(f"Ray does not start: {one_line(error)}") from error

    def _address(self) -> str | None:
        return self.address or os.environ.get("RAY_ADDRESS")

    def _connection(self) -> dict[str, object]:
        address = self._address()
        new = {"address": "local", "num_cpus": self.jobs, "include_dashboard": False}
        return {"address": address} if address else new


class RayPool:
    """Tasks, each for one configuration. Without GPUs, processes of Ray keep compiled programs between tasks."""

    def __init__(self, task: Task, jobs: int | None, *, leave: bool) -> None:
        """Store the task; tasks of Ray start on first use.

        Args:
            task: The task of the workers.
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
        self._streams: dict[Configuration, ray.ObjectRefGenerator] = {}
        self._remote = ray.remote(_configuration).options(
            num_cpus=needs["CPU"],
            num_gpus=needs["GPU"],
            max_retries=0,
            _generator_backpressure_num_objects=1,  # a death may lose what was yielded and not yet taken
            runtime_env={"env_vars": task.strategy.environment(os.environ)},
        )

    def submit(self, configurations: Mapping[Configuration, Sequence[Run]], room: int) -> Collection[Configuration]:
        """Start a task for each configuration that there is room for."""
        taken = list(configurations)[:room]
        self._streams |= {
            configuration: self._remote.remote(self._task, configuration, list(configurations[configuration]))
            for configuration in taken
        }
        return taken

    def events(self) -> Iterator[Event]:
        """Yield the next message of a task; return after a second, so that a reason to stop is noticed."""
        ready, _ = ray.wait(list(self._streams.values()), timeout=1.0)
        for configuration in [configuration for configuration, stream in self._streams.items() if stream in ready]:
            stream = self._streams.pop(configuration)
            event = _next(configuration, stream)
            if not isinstance(event, Done | Died):
                self._streams[configuration] = stream  # behind the others, whose turn comes first
            yield event

    def cancel(self, configuration: Configuration) -> None:
        """Cancel the task."""
        ray.cancel(self._streams.pop(configuration), force=True)

    def close(self) -> None:
        """Cancel all tasks, and end a cluster that was started for this comparison."""
        for configuration in list(self._streams):
            self.cancel(configuration)
        if self._leave:
            ray.shutdown()


def _next(configuration: Configuration, stream: ray.ObjectRefGenerator) -> Event:
    """Receive one message of a task.

    Raises:
        Fault: If the message is a fault.
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
"""The latest runner of a process of Ray, with the programs that it has compiled."""


def _configuration(task: Task, configuration: Configuration, runs: Sequence[Run]) -> Iterator[Begun | Record | Fault]:
    """Run a configuration inside a task of Ray."""
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
        # JAX warns of any fork in its process; a fork of Ray executes another program at once.
        warnings.filterwarnings("ignore", r"os\.fork\(\) was called", RuntimeWarning)
        ray.init(**connection, log_to_driver=False, logging_level=logging.ERROR)


def _reach(address: str) -> None:
    """Check that a cluster answers at an address.

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
