"""The number of runs that an accelerator trains as one stack, chosen by a probe.

A small network leaves most of an accelerator idle, and `vmap` over runs fills the device. The gain ends where the
device is full, at a number that depends on network, batch size and device. The probe compiles a few updates for 1, 2,
4, ... runs, and takes the last number that still gained. Numbers of runs depend on this choice by their last digits, so
it is part of their keys, and a folder keeps the number that it has.
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from time import monotonic, perf_counter

import jax
import jax.numpy as jnp

from normlab.models import stacking
from normlab.notation import PyTree
from normlab.study.design import discovery
from normlab.study.design.comparison import Settings
from normlab.study.design.plan import Plan
from normlab.study.design.program import Program
from normlab.study.design.records import Configuration
from normlab.study.executors.local import end_with_parent, silenced, spawned
from normlab.study.report.formatting import count
from normlab.study.training.compilation import executable, memory_of, starting
from normlab.study.training.compilation_cache import cached
from normlab.study.training.loop import on_devices, window_training
from normlab.study.worker.runner import build
from normlab.study.worker.strategy import USUAL_LANES, Strategy

__all__ = ["CANDIDATES", "GAIN", "Choice", "Trial", "choose", "choose_apart", "trials"]

CANDIDATES = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of runs in a stack that are tried, in this order."""
GAIN = 1.1
"""Factor by which a number must train more models a minute than the number before it."""
ENOUGH = 120.0
"""Seconds after which no further number is tried."""
MEASURED = 0.2
"""Seconds for which updates of a stack are made."""
REPEATS = 3
"""Measurements of a stack, of which the fastest counts."""
PATIENCE = 3.0
"""Times its seconds that a probe in another process may take: it starts, and ends what it has begun."""
SHARE = 0.8
"""Share of the device's memory that a stack may need."""

Run = tuple[PyTree, PyTree]
"""Learning rate and state, of one run or of a stack."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The measurement of a stack.

    Attributes:
        lanes: Number of runs in the stack.
        seconds: Time to train all runs of the stack, estimated from some updates.
        compile_seconds: Time to trace and compile, or to load a cached program.
        memory: Bytes that the stack needs on the device; `None` if unknown.
    """

    lanes: int
    seconds: float
    compile_seconds: float
    memory: int | None

    def models_per_minute(self, runs: Sequence[int] = ()) -> float:
        """Return the trained models per minute.

        Args:
            runs: Numbers of runs that are trained together; the last stack of each is padded. Full stacks unless given.
        """
        runs = [number for number in runs if number] or [self.lanes]
        stacks = sum(math.ceil(number / self.lanes) for number in runs)
        return 60 * sum(runs) / (stacks * self.seconds)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The number of runs in a stack, and its reasons.

    Attributes:
        lanes: The chosen number.
        rates: Models a minute by number of runs in a stack, in the order of measurement.
    """

    lanes: int
    rates: Mapping[int, float]

    @classmethod
    def of(cls, measured: Iterable[Trial], runs: Sequence[int] = ()) -> "Choice":
        """Choose the last number before the first that does not train `GAIN` times the models of the one before it.

        Args:
            measured: Measurements of growing numbers, of which no more are made than needed.
            runs: See `Trial.models_per_minute`.
        """
        lanes, rates = 0, dict[int, float]()
        for trial in measured:
            rates[trial.lanes] = trial.models_per_minute(runs)
            if rates[trial.lanes] < GAIN * rates.get(lanes, 0.0):
                break
            lanes = trial.lanes
        return cls(lanes=lanes or 1, rates=rates)

    def __str__(self) -> str:
        """Return a sentence for the console."""
        stacks = f"Stacks of {count(self.lanes, 'run')}"
        measured = ", ".join(f"{rate:.3g} in stacks of {lanes}" for lanes, rate in self.rates.items())
        return f"{stacks}, chosen by a probe; models a minute: {measured}." if measured else f"{stacks}."


def choose(plan: Plan, seconds: float = ENOUGH) -> Choice:
    """Choose the number of runs in a stack, on the device of this process.

    The probe measures the program that takes longest, of those with the most updates of every problem. Stacks of those
    with the fewest updates, which have the largest batches, must fit into the memory, too.

    Args:
        plan: The plan of the comparison.
        seconds: Time after which no further number is tried.
    """
    end, limit = monotonic() + seconds, _room()
    found = [(one.problem, program) for one, program in _extremes(plan) if not program.window_source]
    slow = list(dict(reversed(found)).values())  # the first of every problem has the most updates
    if not slow:
        return Choice(lanes=1, rates={})
    settings = plan.settings
    runs = len(settings.learning_rates) * settings.tuning_seeds, settings.seeds
    with cached():
        slowest = max(slow, key=_seconds_alone) if len(slow) > 1 else slow[0]
        choice = Choice.of(trials(slowest, limit, end), runs)
        lanes = choice.lanes
        while lanes > 1 and math.isfinite(limit) and any(_needed(program, lanes) > limit for _, program in found):
            lanes //= 2
    return Choice(lanes=lanes, rates=choice.rates)


def _extremes(plan: Plan) -> Iterator[tuple[Configuration, Program]]:
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


def choose_apart(settings: Settings, seconds: float = ENOUGH) -> Choice:
    """Choose in a process of its own, whose memory is free again when workers use the same device.

    Args:
        settings: Settings of the invocation, of a comparison with a source.
        seconds: See `choose`; without an answer long after, stacks have their usual number.
    """
    process, connection = spawned(_answer, Strategy(lanes=USUAL_LANES), 0, settings, seconds, name="normlab-probe")
    try:
        with suppress(EOFError, OSError):
            if connection.poll(PATIENCE * seconds):
                return connection.recv()
        return Choice(lanes=USUAL_LANES, rates={})
    finally:
        connection.close()
        process.kill()
        process.join()


def _answer(connection: Connection, strategy: Strategy, settings: Settings, seconds: float) -> None:
    """Send the choice."""
    end_with_parent()
    os.umask(0o077)  # compiled programs are written by JAX
    with silenced():
        comparison = discovery.load(settings.source)
        with discovery.importing(discovery.locate(settings.source)):
            connection.send(choose(Plan(comparison, settings), seconds))


def trials(program: Program, limit: float = math.inf, end: float = math.inf) -> Iterator[Trial]:
    """Measure stacks of `CANDIDATES` runs, until the device refuses one.

    Args:
        program: Program of one configuration.
        limit: Bytes that a stack may need.
        end: Time of `monotonic` after which no further stack is measured.
    """
    data, run = on_devices(program, dict(program.data)), _run(program)
    for lanes in CANDIDATES:
        with suppress(jax.errors.JaxRuntimeError):  # out of memory
            trial = _tried(program, run, lanes, data)
            if (trial.memory or 0) <= limit:
                yield trial
                if monotonic() < end:
                    continue
        return


def _run(program: Program) -> Run:
    """Return the learning rate and the state of a run, which all lanes of a trial have."""
    return on_devices(program, starting(program, None)([0.01], [0]))


def _copies(run: Run, lanes: int) -> Run:
    rate, state = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (lanes, *jnp.shape(leaf))), run)
    return rate, state


def _tried(program: Program, run: Run, lanes: int, data: Mapping[str, jax.Array]) -> Trial:
    """Compile a stack, and make a few updates."""
    rates, states = jax.block_until_ready(_copies(run, lanes))
    start = perf_counter()
    update = _compiled(program, (rates, states), data)
    compile_seconds = perf_counter() - start

    def seconds_of(updates: int) -> float:
        start = perf_counter()
        jax.block_until_ready(update(rates, states, data, jnp.int32(0), jnp.int32(updates)))
        return perf_counter() - start

    updates, seconds = 1, seconds_of(1)
    while seconds < MEASURED and updates < program.steps:
        updates = min(program.steps, 4 * updates)
        seconds = seconds_of(updates)
    seconds = min(seconds, *(seconds_of(updates) for _ in range(REPEATS - 1)))
    return Trial(
        lanes=lanes,
        seconds=program.steps * seconds / updates,
        compile_seconds=compile_seconds,
        memory=memory_of(update),
    )


def _compiled(program: Program, stack: Run, data: Mapping[str, jax.Array]) -> jax.stages.Compiled:
    """Compile updates of a stack; their number is an argument."""
    update = jax.vmap(
        window_training(program, program.steps), in_axes=(0, 0, None, None, None), axis_name=stacking.AXIS
    )
    one = jnp.int32(1)
    return executable(jax.jit(update).lower(*stack, data, one, one))


def _seconds_alone(program: Program) -> float:
    """Measure a run in a stack of one; zero for a program that fails, which the runs report."""
    with suppress(Exception):
        return _tried(program, _run(program), 1, on_devices(program, dict(program.data))).seconds
    return 0.0


def _needed(program: Program, lanes: int) -> float:
    """Return the bytes that a stack needs; more than there are where XLA refuses to compile it."""
    with suppress(jax.errors.JaxRuntimeError):
        stack = jax.eval_shape(lambda: _copies((jnp.float32(0), program.init(0)), lanes))
        return memory_of(_compiled(program, stack, on_devices(program, dict(program.data)))) or 0.0
    return math.inf


def _room() -> float:
    """Return the bytes that a stack may need."""
    stats = jax.devices()[0].memory_stats() or {}
    return SHARE * stats["bytes_limit"] if "bytes_limit" in stats else math.inf
