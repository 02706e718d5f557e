"""Strategies of execution on a machine, and the environment of its processes."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from normlab.study.design.comparison import Settings
from normlab.study.design.records import RunIdentity

THREADS_PER_DEVICE = 4
"""Threads of XLA's pool for each virtual device. By default there is one; when all of them wait in a collective, no
thread is left to compute, and XLA ends the process."""

USUAL_LANES = 16
"""Runs in a stack where no probe has chosen another number; see `driver.lanes`."""

_ONE_THREAD = {
    "JAX_PLATFORMS": "cpu",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PJRT_NPROC": "1",  # the flags below leave XLA a pool of threads, and cut matrix products by the number of cores
    "TF_CPP_MIN_LOG_LEVEL": "3",  # XLA logs an error for every cached program it loads on some processors, and loads it
}
_ONE_THREAD_FLAGS = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


@dataclass(frozen=True)
class Strategy:
    """The way runs are executed on any machine; part of their identity.

    Attributes:
        lanes: Number of runs of a configuration in a stack; `None` for one after another.
        alone: Whether all runs stay in this process, for functions that cannot be sent to another.
        devices: Number of devices that train a model together; virtual ones on CPU.
        processes: Number of processes that make each run together; see `driver.multiprocess`.
    """

    lanes: int | None = None
    alone: bool = False
    devices: int = 1
    processes: int = 1

    @property
    def one_thread(self) -> bool:
        """True if runs are made in single-thread processes."""
        return not self.lanes and not self.alone

    def __str__(self) -> str:
        """Return the name of the strategy in records."""
        if self.lanes:
            return f"vmap of {self.lanes}"
        if self.processes > 1:
            return f"sequential in {self.processes} processes together"
        return "sequential in single-thread processes" if self.one_thread else "sequential in one process"

    def environment(self, given: Mapping[str, str], index: int | None = None) -> dict[str, str]:
        """Compute the environment that a worker process needs before it imports anything.

        Args:
            given: Environment of the parent process. Applying this twice has no further effect.
            index: Index of the worker on this machine; `None` where a scheduler assigns devices.

        Returns:
            The variables to set; others stay as they are.
        """
        if self.one_thread:
            pretended = {"JAX_NUM_CPU_DEVICES": str(self.devices)} if self.devices > 1 else {}
            return {**_ONE_THREAD, **pretended, "XLA_FLAGS": _with_flags(given.get("XLA_FLAGS", ""), _ONE_THREAD_FLAGS)}
        if self.lanes and index is not None:
            return {"CUDA_VISIBLE_DEVICES": _visible_device(given, index)}
        return {}


def lanes_in(identity: Mapping[str, object]) -> int | None:
    """Read the number of runs in a stack from the identity of runs; `None` where runs are not stacked."""
    stacked = re.fullmatch(r"vmap of (\d+)", str(identity.get("strategy")))
    return int(stacked[1]) if stacked else None


def _with_flags(given: str, added: str) -> str:
    return given if given.endswith(added) else f"{given} {added}".strip()


def _visible_device(given: Mapping[str, str], index: int) -> str:
    """Return the device with an index among those visible in an environment."""
    visible = given.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[index].strip() if visible else str(index)


@dataclass(frozen=True, kw_only=True)
class Task:
    """The work of a pool of workers, which load the comparison from its source since its functions cannot be sent.

    Attributes:
        source: Name or path of the comparison.
        settings: Settings of the invocation.
        identity: RunIdentity of the records.
        strategy: Strategy of the runs.
        about: Descriptions of the data by problem.
    """

    source: str
    settings: Settings
    identity: RunIdentity
    strategy: Strategy
    about: Mapping[str, str] = field(default_factory=dict)


def choose_strategy(
    *, alone: bool = False, share: bool = False, devices: int = 1, lanes: int | None = None
) -> Strategy:
    """Choose a strategy by platform.

    Args:
        alone: Whether all runs must stay in this process.
        devices: Number of devices that train one model together. On CPU this process gets as many virtual devices,
            unless its backend is initialized; on other platforms runs on several devices are not stacked.
        share: Whether workers will use this machine's devices. This process then leaves their memory free, unless its
            backend is initialized.
        lanes: Number of runs in a stack. Unless given, runs are stacked on accelerators alone, by `USUAL_LANES`.
    """
    import jax

    if devices > 1:
        with suppress(RuntimeError):  # `loop.mesh_of` reports missing devices
            jax.config.update("jax_num_cpu_devices", devices)
    variables = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if share else {}
    if alone and devices > 1:
        variables["PJRT_NPROC"] = str(THREADS_PER_DEVICE * devices)
    with environment(variables):
        backend = jax.default_backend()
    if devices > 1 and backend != "cpu":
        return Strategy(alone=True, devices=devices)
    if backend == "cpu" and not lanes:
        return Strategy(alone=alone, devices=devices)
    return Strategy(lanes=lanes or USUAL_LANES, alone=alone)


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for processes started inside."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
