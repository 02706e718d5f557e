"""How runs are executed on a machine, and the environment that its processes need."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from normlab.study.design.comparison import Settings

THREADS_PER_DEVICE = 4
"""Of XLA's pool, where virtual devices share it: by default there is one, and when as many wait for each other in a
collective as there are threads, nothing is left to compute what they wait for, and XLA ends the process."""

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
    """How runs are executed, wherever that is; part of their identity.

    Attributes:
        lanes: How many runs of a configuration are stacked; `None` is one after another.
        alone: Whether all runs stay in this process: for comparisons whose functions cannot be sent to another.
        devices: How many train a model together; on CPU a worker pretends to have as many.
        processes: How many make each run together; see `together`.
    """

    lanes: int | None = None
    alone: bool = False
    devices: int = 1
    processes: int = 1

    @property
    def one_thread(self) -> bool:
        """Whether runs are in single-thread processes."""
        return not self.lanes and not self.alone

    def __str__(self) -> str:
        """Name it as records do."""
        if self.lanes:
            return f"vmap of {self.lanes}"
        if self.processes > 1:
            return f"sequential in {self.processes} processes together"
        return "sequential in single-thread processes" if self.one_thread else "sequential in one process"

    def environment(self, given: Mapping[str, str], index: int | None = None) -> dict[str, str]:
        """What a worker process needs in its environment before it imports anything.

        Args:
            given: The environment of who starts it; that of the worker itself gives the same again.
            index: Which worker of this machine it is, from 0; `None` where a scheduler assigns devices.

        Returns:
            The variables to set; others stay as they are.
        """
        if self.one_thread:
            pretended = {"JAX_NUM_CPU_DEVICES": str(self.devices)} if self.devices > 1 else {}
            return {**_ONE_THREAD, **pretended, "XLA_FLAGS": _with_flags(given.get("XLA_FLAGS", ""), _ONE_THREAD_FLAGS)}
        if self.lanes and index is not None:
            return {"CUDA_VISIBLE_DEVICES": _visible_device(given, index)}
        return {}


def _with_flags(given: str, added: str) -> str:
    return given if given.endswith(added) else f"{given} {added}".strip()


def _visible_device(given: Mapping[str, str], index: int) -> str:
    """The device that a process with this environment calls its `index`-th."""
    visible = given.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",")[index].strip() if visible else str(index)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What workers need to know; a comparison holds functions, so they load it from its source again.

    Attributes:
        source: Of the comparison.
        settings: What was asked for.
        identity: What their runs are to be recorded as.
        strategy: How runs are executed.
        about: What the data of problems are, in words.
    """

    source: str
    settings: Settings
    identity: Mapping[str, Any]
    strategy: Strategy
    about: Mapping[str, str] = field(default_factory=dict)


def choose_strategy(*, alone: bool = False, share: bool = False, devices: int = 1) -> Strategy:
    """Choose by platform.

    Args:
        alone: Rules worker processes out.
        devices: How many train one model together. On CPU this process pretends to have as many, too, unless its
            backend is at work already; elsewhere runs that take several devices are not stacked.
        share: Whether workers will use this machine's devices: then this process, which only looks at them, leaves
            their memory alone, unless its backend is at work already.
    """
    import jax

    if devices > 1:
        with suppress(RuntimeError):  # `loop.mesh_of` says what is missing
            jax.config.update("jax_num_cpu_devices", devices)
    variables = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if share else {}
    if alone and devices > 1:
        variables["PJRT_NPROC"] = str(THREADS_PER_DEVICE * devices)
    with environment(variables):
        backend = jax.default_backend()
    if backend == "cpu":
        return Strategy(alone=alone, devices=devices)
    return Strategy(lanes=16) if devices == 1 else Strategy(alone=True, devices=devices)


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables for what starts meanwhile."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
