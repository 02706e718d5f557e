"""The training loop as one compiled program, and the outcome of a run."""

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from normlab.notation import PyTree
from normlab.study.design.problem import MEASURED_AT
from normlab.study.design.program import Arrays, Program

Trained = tuple[PyTree, dict[str, jax.Array], Mapping[str, jax.Array]]
"""State, metrics and series after training."""

Fit = tuple[PyTree, jax.Array]
"""State and losses."""

WindowTraining = Callable[[jax.Array, PyTree, Arrays, jax.Array, jax.Array], Fit]
"""See `window_training`."""

Tree = TypeVar("Tree")


def mesh_of(devices: int) -> Mesh | None:
    """Make a mesh of the first `devices` devices of all processes, with the one axis `data`; `None` for one device.

    Raises:
        ValueError: If there are fewer devices.
    """
    if devices == 1:
        return None
    there = jax.devices()
    if len(there) < devices:
        raise ValueError(
            f"Expected {devices} devices for one model, got {len(there)} ({there[0].platform}). On CPU, where JAX can "
            f"pretend, call `jax.config.update('jax_num_cpu_devices', {devices})` before JAX is first used."
        )
    return Mesh(np.asarray(there[:devices]), ("data",))


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding that puts all of an array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def shared_out(tree: Tree, mesh: Mesh | None) -> Tree:
    """Divide the first axis of arrays among the devices, within a compiled program."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec("data")))


def standard_error(errors: jax.Array | np.ndarray) -> jax.Array:
    """Compute the standard error of the mean of the errors of examples."""
    return jnp.asarray(errors, jnp.float32).std() / len(errors) ** 0.5


def training(program: Program) -> Callable[[jax.Array, PyTree, Arrays], Trained]:
    """Make the function that trains one model, `(learning_rate, state, data) -> (state, metrics, series)`.

    Metrics are `train_loss` and `first_nonfinite`: the step of the first loss that is not finite, -1 if there is none.
    Series have a row for each of `MEASURED_AT`.
    """

    def train(learning_rate: jax.Array, state: PyTree, data: Arrays) -> Trained:
        def step(state: PyTree, t: jax.Array) -> tuple[PyTree, jax.Array]:
            return program.step(state, t, learning_rate, data)

        if measure := program.series:
            measured = _measured(step, program.steps, state, lambda state: measure(state, data), program.at_end)
            state, losses, series = measured
        else:
            (state, losses), series = jax.lax.scan(step, state, jnp.arange(program.steps)), {}
        bad = ~jnp.isfinite(losses)
        first = jnp.where(bad.any(), jnp.argmax(bad), -1)
        return state, {"train_loss": losses[-program.last :].mean(), "first_nonfinite": first}, series

    return train


def window_training(program: Program, steps: int) -> WindowTraining:
    """Make the function that trains on a window, `(learning_rate, state, data, first, n) -> (state, losses)`.

    It makes n updates, beginning with update `first`. It returns as many losses as a window has steps; those after the
    n-th are zero.
    """

    def train(learning_rate: jax.Array, state: PyTree, data: Arrays, first: jax.Array, n: jax.Array) -> Fit:
        def one(i: jax.Array, carry: Fit) -> Fit:
            state, loss = program.step(carry[0], first + i, learning_rate, data)
            return state, carry[1].at[i].set(loss)

        return jax.lax.fori_loop(0, n, one, (state, jnp.zeros(steps)))

    return train


def _measured(
    step: Callable[[PyTree, jax.Array], Fit],
    steps: int,
    state: PyTree,
    measure: Callable[[PyTree], Mapping[str, jax.Array]],
    at_end: bool,
) -> tuple[PyTree, jax.Array, Mapping[str, jax.Array]]:
    """Train with a measurement at each of `MEASURED_AT`; the program contains step and measurement once.

    The inner loops have dynamic bounds, so the number of steps need not be divisible.
    """

    def one(t: jax.Array, carry: Fit) -> Fit:
        state, loss = step(carry[0], t)
        return state, carry[1].at[t].set(loss)

    def part(carry: Fit, bounds: jax.Array) -> tuple[Fit, Mapping[str, jax.Array]]:
        carry = jax.lax.fori_loop(bounds[0], bounds[1], one, carry)
        if not at_end:
            return carry, measure(carry[0])
        nothing = jax.tree.map(lambda shape: jnp.full(shape.shape, jnp.nan), jax.eval_shape(measure, carry[0]))
        return carry, jax.lax.cond(bounds[1] == steps, measure, lambda _: nothing, carry[0])

    ends = [round(share * steps) for share in MEASURED_AT]
    (state, losses), series = jax.lax.scan(part, (state, jnp.zeros(steps)), jnp.asarray([[0, *ends[:-1]], ends]).T)
    return state, losses, series


def check(program: Program, *, whole: bool = True) -> None:
    """Trace a program without compiling or running it.

    Args:
        program: Program of one configuration.
        whole: Whether to trace the backward pass and the update, too. They take most of the time and are the same for
            all values of a factor. A program without `forward` is always traced as a whole.

    Raises:
        Exception: Any exception that the model raises for shapes that do not fit.
    """
    state, learning_rate = jax.eval_shape(lambda: program.init(0)), jax.ShapeDtypeStruct((), jnp.float32)
    if whole or not program.forward:
        state, _, _ = jax.eval_shape(training(program), learning_rate, state, program.sees())
    else:
        jax.eval_shape(program.forward, state, jax.ShapeDtypeStruct((), jnp.int32), program.sees())
        if program.series:
            jax.eval_shape(program.series, state, program.sees())
    jax.eval_shape(program.evaluate, state, program.sees(held_out=True))


class Outcome(NamedTuple):
    """A finished run.

    Attributes:
        metrics: Metrics of `training` and of the program's `evaluate`, as Python numbers.
        series: Series of `training`: a row for each measurement.
        seconds: Time for all updates and series, without evaluation. For stacked runs, the time of the stack divided by
            its lanes.
        examined: Returns the metrics of the program's `examine`, which it computes when it is called.
    """

    metrics: dict[str, float]
    series: dict[str, np.ndarray]
    seconds: float
    examined: Callable[[], dict[str, float]] = dict


def on_devices(program: Program, tree: PyTree) -> PyTree:
    """Put arrays on the device of a program, or on all of its devices."""
    if program.mesh is None:
        return jax.device_put(tree)
    return jax.device_put(jax.device_get(tree), replicated(program.mesh))  # from the host of each process
