"""A run as one compiled program: the whole training in one scan, everything that differs between runs an argument."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from normlab.study.config import MEASURED_AT

Arrays = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Program:
    """The training of one cell, as functions; a run is `init`, then `steps` times `step`, then `evaluate`.

    `step` and `evaluate` are pure and traced once a cell. `init` runs operation by operation, outside of the compiled
    programs: its operations are the same in all cells of a problem, so a process compiles them once, where inside they
    were more than half of the time to compile a cell (3 of 5 s for the MLP).

    Attributes:
        data: Arrays that all runs share, by name.
        init: `seed -> state`, a pytree of arrays that holds all that the seed decides: split, parameters, order.
        step: `(state, t, learning_rate, data) -> (state, loss)` for t = 0, 1, ..., `steps - 1`.
        evaluate: `(state, data) -> metrics`: scalars `validation`, `test` and `finite` (whether all outputs are finite:
            the argmax of NaN is class 0, so an error alone does not show it); others are kept beside them.
        steps: Number of updates.
        last: Over how many of the last steps `train_loss` is averaged.
        chance: The metric of a model that has learned nothing; `None` where there is no such number.
        mesh: The devices that train one model together, each with its share of every batch; `None` is one device.
        series: `(state, data) -> vectors by name`, measured at all of `config.MEASURED_AT`; `None` for nothing.
        about: What the data are, in words, for the report.
    """

    data: Mapping[str, np.ndarray]
    init: Callable[[int], Any]
    step: Callable[[Any, jax.Array, jax.Array, Arrays], tuple[Any, jax.Array]]
    evaluate: Callable[[Any, Arrays], Mapping[str, jax.Array]]
    steps: int
    last: int
    chance: float | None = None
    mesh: Mesh | None = None
    series: Callable[[Any, Arrays], Mapping[str, jax.Array]] | None = None
    about: str = ""


Trained = tuple[Any, dict[str, jax.Array], Mapping[str, jax.Array]]


def mesh_of(devices: int) -> Mesh | None:
    """The first `devices` devices of all processes as a mesh with the one axis `data`; `None` for one.

    Raises:
        ValueError: If there are fewer.
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
    """All of an array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def shared_out(tree: Any, mesh: Mesh | None) -> Any:
    """Divide the first axis of arrays among the devices, within a compiled program."""
    return tree if mesh is None else jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec("data")))


def training(program: Program) -> Callable[[jax.Array, Any, Arrays], Trained]:
    """The function that trains one model, `(learning_rate, state, data) -> (state, metrics, series)`, to be compiled.

    Metrics are `train_loss` and `first_nonfinite`: the step of the first loss that is not finite, -1 if there is none.
    Series have a row for each of `MEASURED_AT`.
    """

    def train(learning_rate: jax.Array, state: Any, data: Arrays) -> Trained:
        def step(state: Any, t: jax.Array) -> tuple[Any, jax.Array]:
            return program.step(state, t, learning_rate, data)

        if measure := program.series:
            state, losses, series = _measured(step, program.steps, state, lambda state: measure(state, data))
        else:
            (state, losses), series = jax.lax.scan(step, state, jnp.arange(program.steps)), {}
        bad = ~jnp.isfinite(losses)
        first = jnp.where(bad.any(), jnp.argmax(bad), -1)
        return state, {"train_loss": losses[-program.last :].mean(), "first_nonfinite": first}, series

    return train


def _measured(
    step: Callable[[Any, jax.Array], tuple[Any, jax.Array]],
    steps: int,
    state: Any,
    measure: Callable[[Any], Mapping[str, jax.Array]],
) -> tuple[Any, jax.Array, Mapping[str, jax.Array]]:
    """Train with a measurement at each of `MEASURED_AT`; step and measurement are in the program once.

    The loops within are as long as their bounds say, so any number of steps can be divided.
    """

    def one(t: jax.Array, carry: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
        state, loss = step(carry[0], t)
        return state, carry[1].at[t].set(loss)

    def part(carry: Any, bounds: jax.Array) -> tuple[Any, Mapping[str, jax.Array]]:
        carry = jax.lax.fori_loop(bounds[0], bounds[1], one, carry)
        return carry, measure(carry[0])

    ends = [round(share * steps) for share in MEASURED_AT]
    (state, losses), series = jax.lax.scan(part, (state, jnp.zeros(steps)), jnp.asarray([[0, *ends[:-1]], ends]).T)
    return state, losses, series


def check(program: Program) -> None:
    """Trace a program without compiling or running it.

    Raises:
        Exception: Whatever the model raises for shapes it cannot take.
    """
    state, data = jax.eval_shape(lambda: program.init(0)), dict(program.data)
    state, _, _ = jax.eval_shape(training(program), jax.ShapeDtypeStruct((), jnp.float32), state, data)
    jax.eval_shape(program.evaluate, state, data)
