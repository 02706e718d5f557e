"""Measure some programs of a comparison in a process of its own, while the others are checked.

The process has the environment of a worker. It compiles the programs with the most and with the fewest updates of every
problem, as far as time permits, and makes a few updates with each.

It makes the data once more, so it starts only after the checks have made the data of every problem: a function that
downloads or writes a file on its first call has then done so, and no other process was there. Workers, too, make the
data at the same time as each other, but never for the first time.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from time import monotonic, process_time
from typing import Any, NoReturn, Self

import jax
import jax.numpy as jnp
import numpy as np

from normlab.notation import PyTree
from normlab.study.design import discovery
from normlab.study.design.comparison import Settings
from normlab.study.design.plan import Plan
from normlab.study.design.program import Program
from normlab.study.design.records import Configuration
from normlab.study.driver.estimate import Cost
from normlab.study.executors.local import end_with_parent
from normlab.study.worker.runner import build
from normlab.study.worker.strategy import Strategy, environment

__all__ = ["Probe", "measured", "representatives"]

ENOUGH = 7.0
"""Seconds of the process after which it begins no further program."""
MEASURED = 0.1
"""Seconds for which updates of a program are made."""
GRACE = 0.5
"""Seconds in which the process can end by itself, so that a function that writes a file can clean up."""


class Probe:
    """A process that measures programs, once it has been started."""

    def __init__(self, settings: Settings, strategy: Strategy) -> None:
        """Store the arguments of the process.

        Args:
            settings: Settings of the invocation, of a comparison with a source.
            strategy: Strategy of the workers.
        """
        self._strategy, self._started = strategy, monotonic()
        self._costs: dict[int, Cost] = {}
        context = multiprocessing.get_context("spawn")
        self._connection, self._theirs = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_measure_all, args=(self._theirs, settings), daemon=True, name="normlab-probe"
        )

    def start(self) -> None:
        """Start the process; without processes or memory there are no costs, and a run reports the fault."""
        with suppress(OSError), environment(self._strategy.environment(os.environ, 0)), _without_interrupts():
            self._process.start()
        self._theirs.close()

    def __enter__(self) -> Self:
        """Return the probe."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        if self._process.pid is not None:
            self._process.terminate()
            self._process.join(GRACE)
            self._process.kill()
            self._process.join()
        self._theirs.close()
        self._connection.close()

    @property
    def age(self) -> float:
        """Seconds since the checks began."""
        return monotonic() - self._started

    def costs(self, plan: Plan, *, wait: float) -> dict[Configuration, Cost]:
        """Return the costs that have been measured.

        Args:
            plan: The plan of the comparison.
            wait: Seconds to wait for further ones at most.
        """
        if self._process.pid is None:
            return {}
        end = self.age + wait
        with suppress(EOFError, OSError):  # it has measured everything
            while self._connection.poll(max(0.0, end - self.age)):
                index, cost = self._connection.recv()
                self._costs[index] = cost
        return {plan.configurations[index]: cost for index, cost in self._costs.items()}


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


def _measure_all(connection: Connection, settings: Settings) -> None:
    """Send the costs of programs, those of every problem in turn, until it has been enough."""
    end_with_parent()
    signal.signal(signal.SIGTERM, _exit)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere), suppress(Exception):
        comparison = discovery.load(settings.source)
        with discovery.importing(discovery.locate(settings.source)):
            plan = Plan(comparison, settings)
            for configuration, program in representatives(plan):
                if process_time() > ENOUGH:
                    return
                with suppress(Exception):  # the checks report it
                    connection.send((plan.configurations.index(configuration), measured(program)))


def _exit(*_: object) -> NoReturn:
    """End the process by an exception, so that the code of the comparison can clean up."""
    raise SystemExit


def representatives(plan: Plan) -> Iterator[tuple[Configuration, Program]]:
    """Yield the programs with the most updates of every problem, then those with the fewest.

    Of the norms of a column, it is the one in the middle.
    """
    by_problem: dict[str, list[tuple[Configuration, Program]]] = {}
    for group in plan.groups:
        usable = [configuration for configuration in group if not plan.incompatible(configuration)]
        with suppress(Exception):  # the checks report it
            chosen = usable[len(usable) // 2]
            by_problem.setdefault(chosen.problem, []).append((chosen, build(plan, chosen)))
    ordered = [sorted(found, key=lambda one: -one[1].steps) for found in by_problem.values()]
    yield from (found[0] for found in ordered)
    yield from (found[-1] for found in ordered if len(found) > 1)


def measured(program: Program) -> Cost:
    """Compile a program and make a few updates.

    Times are those of this process on the processor, so that other processes do not count.
    """
    from normlab.study.training.loop import on_devices, window_training

    state = on_devices(program, _state(program))
    start = process_time()
    data = dict(on_devices(program, dict(program.data)))
    source = program.window_source
    if source:
        data |= on_devices(program, dict(next(iter(source.windows(0, 0)))))
    longest = source.steps if source else program.steps
    rate, first = jnp.float32(0.01), jnp.int32(0)
    update = jax.jit(window_training(program, longest)).lower(rate, state, data, first, first).compile()
    calls = [] if source else [jax.jit(program.evaluate).lower(state, data).compile()]
    if program.series:
        series = jax.jit(program.series).lower(state, data).compile()
        calls += [series] * (1 if program.at_end else 5)
    compiling = process_time() - start
    n, seconds = 1, _seconds(update, rate, state, data, first, jnp.int32(1))
    while seconds < MEASURED and n < longest:
        n = min(longest, 8 * n)
        seconds = _seconds(update, rate, state, data, first, jnp.int32(n))
    others = sum(_seconds(call, state, data) for call in calls)
    return Cost(compile=compiling, run=program.steps * seconds / n + others)


def _state(program: Program) -> PyTree:
    """Return a state of the right shape: the real one takes longer to compile than the updates that are measured."""
    shapes = jax.eval_shape(lambda: program.init(0))
    if any(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in jax.tree.leaves(shapes)):  # random keys
        return program.init(0)
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


def _seconds(call: Callable[..., Any], *arguments: Any) -> float:
    start = process_time()
    jax.block_until_ready(call(*arguments))
    return process_time() - start
