"""A run as one compiled program: the whole training in one scan, everything that differs between runs an argument."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from normlab.study.config import MEASURED_AT
from normlab.study.data import data_hash

Arrays = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Feed:
    """How a program whose data do not fit gets them: in windows of arrays, which it finds among its data by name.

    `Program.step` then sees the window that its step is in, and `Program.evaluate` one window of held-out examples
    after the other, of which it gives `errors`, one for each example, and `finite`.

    Attributes:
        steps: How many updates a window is for.
        mark: `seed -> a hash` of which examples are in which of its windows.
        windows: `(seed, n) -> windows`, those behind the first n; the last one is filled up.
        held_out: `seed -> windows` of the examples for validation and the test; the last one is filled up.
        shapes: Of the arrays of these two kinds of windows.
        metrics: `errors of all held-out examples -> metrics`.
    """

    steps: int
    mark: Callable[[int], str]
    windows: Callable[[int, int], Iterator[Arrays]]
    held_out: Callable[[int], Iterator[Arrays]]
    shapes: tuple[Arrays, Arrays]
    metrics: Callable[[np.ndarray], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Program:
    """The training of one cell, as functions; a run is `init`, then `steps` times `step`, then `evaluate`.

    `step` and `evaluate` are pure and traced once a cell. `init` runs operation by operation, outside of the compiled
    programs: its operations are the same in all cells of a problem, so a process compiles them once, where inside they
    were more than half of the time to compile a cell (3 of 5 s for the MLP).

    Attributes:
        data: Arrays that all runs share, by name.
        marks: What else is to tell these data from others, by name; no device sees it.
        init: `seed -> state`, a pytree of arrays that holds all that the seed decides: split, parameters, order.
        step: `(state, t, learning_rate, data) -> (state, loss)` for t = 0, 1, ..., `steps - 1`.
        evaluate: `(state, data) -> metrics`: scalars `validation`, `test` and `finite` (whether all outputs are finite:
            the argmax of NaN is class 0, so an error alone does not show it); `validation_sem`, the standard error of
            `validation`, and `validation_chance`, chance on the validation examples where that is another, say what
            has collapsed (see `execute.status_of`); others are kept beside them.
        steps: Number of updates.
        last: Over how many of the last steps `train_loss` is averaged.
        chance: The metric of a model that has learned nothing; `None` where there is no such number.
        mesh: The devices that train one model together, each with its share of every batch; `None` is one device.
        series: `(state, data) -> vectors by name`, measured at all of `config.MEASURED_AT`; `None` for nothing.
        at_end: Whether series are measured at the end alone, and are NaN before.
        about: What the data are, in words, for the report.
        feed: Where the rest of the data comes from while the program runs; `None` if all of them are in `data`.
        libraries: Distributions beside JAX, Flax, Optax and NumPy that decide its numbers, e.g. `river`; their versions
            are in the key of every run.
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
    at_end: bool = False
    about: str = ""
    feed: Feed | None = None
    marks: Mapping[str, np.ndarray] = field(default_factory=dict)
    libraries: tuple[str, ...] = ()

    @property
    def data_hash(self) -> str:
        """The sha256 of data and marks, for run keys."""
        return data_hash({**self.data, **self.marks})

    def sees(self, *, held_out: bool = False) -> dict[str, jax.ShapeDtypeStruct]:
        """Tell the shapes of all data that a step sees, or an evaluation."""
        return {**jax.eval_shape(lambda: dict(self.data)), **(self.feed.shapes[held_out] if self.feed else {})}


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


def standard_error(errors: jax.Array | np.ndarray) -> jax.Array:
    """The standard error of the mean of the errors of examples, one for each."""
    return jnp.asarray(errors, jnp.float32).std() / len(errors) ** 0.5


def training(program: Program) -> Callable[[jax.Array, Any, Arrays], Trained]:
    """The function that trains one model, `(learning_rate, state, data) -> (state, metrics, series)`, to be compiled.

    Metrics are `train_loss` and `first_nonfinite`: the step of the first loss that is not finite, -1 if there is none.
    Series have a row for each of `MEASURED_AT`.
    """

    def train(learning_rate: jax.Array, state: Any, data: Arrays) -> Trained:
        def step(state: Any, t: jax.Array) -> tuple[Any, jax.Array]:
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


def window_training(program: Program, steps: int) -> Callable[..., tuple[Any, jax.Array]]:
    """The function that trains on a window, `(learning_rate, state, data, first, n) -> (state, losses)`.

    It makes the n updates from `first` on; there are as many losses as a window has steps, those behind the n zero.
    """

    def train(learning_rate: jax.Array, state: Any, data: Arrays, first: jax.Array, n: jax.Array) -> Any:
        def one(i: jax.Array, carry: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
            state, loss = program.step(carry[0], first + i, learning_rate, data)
            return state, carry[1].at[i].set(loss)

        return jax.lax.fori_loop(0, n, one, (state, jnp.zeros(steps)))

    return train


def _measured(
    step: Callable[[Any, jax.Array], tuple[Any, jax.Array]],
    steps: int,
    state: Any,
    measure: Callable[[Any], Mapping[str, jax.Array]],
    at_end: bool,
) -> tuple[Any, jax.Array, Mapping[str, jax.Array]]:
    """Train with a measurement at each of `MEASURED_AT`; step and measurement are in the program once.

    The loops within are as long as their bounds say, so any number of steps can be divided.
    """

    def one(t: jax.Array, carry: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
        state, loss = step(carry[0], t)
        return state, carry[1].at[t].set(loss)

    def part(carry: Any, bounds: jax.Array) -> tuple[Any, Mapping[str, jax.Array]]:
        carry = jax.lax.fori_loop(bounds[0], bounds[1], one, carry)
        if not at_end:
            return carry, measure(carry[0])
        nothing = jax.tree.map(lambda shape: jnp.full(shape.shape, jnp.nan), jax.eval_shape(measure, carry[0]))
        return carry, jax.lax.cond(bounds[1] == steps, measure, lambda _: nothing, carry[0])

    ends = [round(share * steps) for share in MEASURED_AT]
    (state, losses), series = jax.lax.scan(part, (state, jnp.zeros(steps)), jnp.asarray([[0, *ends[:-1]], ends]).T)
    return state, losses, series


def check(program: Program) -> None:
    """Trace a program without compiling or running it.

    Raises:
        Exception: Whatever the model raises for shapes it cannot take.
    """
    state, learning_rate = jax.eval_shape(lambda: program.init(0)), jax.ShapeDtypeStruct((), jnp.float32)
    state, _, _ = jax.eval_shape(training(program), learning_rate, state, program.sees())
    jax.eval_shape(program.evaluate, state, program.sees(held_out=True))
