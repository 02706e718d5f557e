"""A run as one compiled program: the whole training in one scan, everything that differs between runs an argument."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from normlab.study.data import Data, permutations, split

Arrays = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Program:
    """The training of one cell, as functions; a run is `init`, then `steps` times `step`, then `evaluate`.

    `step` and `evaluate` are pure and traced once a cell. `init` runs operation by operation, outside of the compiled
    program: its operations are the same in all cells of a problem, so a process compiles them once, where inside they
    were more than half of the time to compile a cell (3 of 5 s for the MLP).

    Attributes:
        data: Arrays that all runs share, by name.
        init: `seed -> state`, a pytree of arrays that holds all that the seed decides: split, parameters, order.
        step: `(state, t, learning_rate, data) -> (state, loss)` for t = 0, 1, ..., `steps - 1`.
        evaluate: `(state, data) -> metrics`: scalars `validation`, `test` and `finite` (whether all outputs are finite:
            the argmax of NaN is class 0, so an error alone does not show it).
        steps: Number of updates.
        last: Over how many of the last steps `train_loss` is averaged.
    """

    data: Mapping[str, np.ndarray]
    init: Callable[[int], Any]
    step: Callable[[Any, jax.Array, jax.Array, Arrays], tuple[Any, jax.Array]]
    evaluate: Callable[[Any, Arrays], Mapping[str, jax.Array]]
    steps: int
    last: int


class Supervised(NamedTuple):
    """State of supervised training.

    Attributes:
        variables: The model's collections: `params` and, for norms with running averages, `batch_stats`.
        momentum: State of the optimizer.
        order: Examples of all batches, shape (steps, batch).
        held_out: Examples for validation and, behind them, for the test.
    """

    variables: Mapping[str, Any]
    momentum: optax.OptState
    order: Any
    held_out: Any


def supervised(data: Data, model: nn.Module, *, batch_size: int, epochs: int, momentum: float = 0.9) -> Program:
    """Make the program of a classifier: softmax cross entropy, SGD with momentum, cosine decay to zero.

    Every seed has its own split (`data.split`); every epoch is a new permutation of the training set, and a last batch
    that would be smaller than the others is left out. Evaluation uses running statistics.

    Args:
        data: Inputs and labels.
        model: Called as `model(inputs, train=...)`, gives logits (batch, classes).
        batch_size: Examples an update.
        epochs: Passes over the training set.
        momentum: Of SGD.

    Raises:
        ValueError: If a batch is larger than the training set.
    """
    parts = {name: len(indices) for name, indices in split(len(data.labels), 0).items()}
    if not 1 <= batch_size <= parts["train"]:
        raise ValueError(f"Expected a batch of 1 to {parts['train']} examples (the training set), got {batch_size}.")
    per_epoch = parts["train"] // batch_size
    steps = epochs * per_epoch

    def optimizer(learning_rate: Any) -> optax.GradientTransformation:
        return optax.sgd(lambda t: learning_rate * 0.5 * (1 + jnp.cos(jnp.pi * t / steps)), momentum=momentum)

    def init(seed: int) -> Supervised:
        parts = split(len(data.labels), seed)
        order = permutations(parts["train"], epochs, seed)[:, : per_epoch * batch_size]
        variables = model.init(jax.random.key(seed), data.inputs[:2], train=False)
        return Supervised(
            variables,
            optimizer(0.0).init(variables["params"]),
            order.reshape(steps, batch_size),
            np.concatenate([parts["validation"], parts["test"]]),
        )

    def step(state: Supervised, t: jax.Array, learning_rate: jax.Array, arrays: Arrays) -> tuple[Supervised, jax.Array]:
        batch = state.order[t]
        averages = {name: value for name, value in state.variables.items() if name != "params"}

        def loss(params: Any) -> tuple[jax.Array, Any]:
            variables = {"params": params, **averages}
            logits, after = model.apply(variables, arrays["inputs"][batch], train=True, mutable=list(averages))
            return optax.softmax_cross_entropy_with_integer_labels(logits, arrays["labels"][batch]).mean(), after

        params = state.variables["params"]
        (value, averages), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, moments = optimizer(learning_rate).update(gradients, state.momentum, params)
        variables = {"params": optax.apply_updates(params, updates), **averages}
        return state._replace(variables=variables, momentum=moments), value

    def evaluate(state: Supervised, arrays: Arrays) -> dict[str, jax.Array]:
        logits: Any = model.apply(state.variables, arrays["inputs"][state.held_out], train=False)
        wrong = jnp.argmax(logits, -1) != arrays["labels"][state.held_out]
        return {
            "validation": wrong[: parts["validation"]].mean(),
            "test": wrong[parts["validation"] :].mean(),
            "finite": jnp.isfinite(logits).all(),
        }

    arrays = {"inputs": data.inputs, "labels": data.labels}
    return Program(data=arrays, init=init, step=step, evaluate=evaluate, steps=steps, last=per_epoch)


def training(program: Program) -> Callable[[jax.Array, Any, Arrays], dict[str, jax.Array]]:
    """The function of one run, `(learning_rate, state, data) -> metrics`, to be compiled.

    Metrics are those of `evaluate`, `train_loss`, and `first_nonfinite`: the step of the first loss that is not finite,
    -1 if there is none.
    """

    def train(learning_rate: jax.Array, state: Any, data: Arrays) -> dict[str, jax.Array]:
        steps = jnp.arange(program.steps)
        state, losses = jax.lax.scan(lambda s, t: program.step(s, t, learning_rate, data), state, steps)
        bad = ~jnp.isfinite(losses)
        return {
            **program.evaluate(state, data),
            "train_loss": losses[-program.last :].mean(),
            "first_nonfinite": jnp.where(bad.any(), jnp.argmax(bad), -1),
        }

    return train


def compile_cell(program: Program) -> Callable[[float, int], dict[str, float]]:
    """Compile a cell once for all its runs, which then go one after another: `(learning_rate, seed) -> metrics`."""
    data = jax.device_put(dict(program.data))
    compiled = jax.jit(training(program)).lower(np.float32(0), program.init(0), data).compile()

    def run(learning_rate: float, seed: int) -> dict[str, float]:
        metrics = jax.device_get(compiled(np.float32(learning_rate), program.init(seed), data))
        return {name: float(value) for name, value in metrics.items()}

    return run


def compile_stack(program: Program, lanes: int) -> Callable[[Sequence[float], Sequence[int]], list[dict[str, float]]]:
    """Compile a cell once for stacks of `lanes` runs: `(learning_rates, seeds) -> metrics of each`.

    A stack that is not full is filled up with copies of its last run: there is one program, and the numbers of a run do
    not depend on how many others are asked for.
    """
    data = jax.device_put(dict(program.data))
    train = jax.jit(jax.vmap(training(program), in_axes=(0, 0, None)))
    compiled = train.lower(np.zeros(lanes, np.float32), _stack([program.init(0)] * lanes), data).compile()

    def run(learning_rates: Sequence[float], seeds: Sequence[int]) -> list[dict[str, float]]:
        fill = lanes - len(seeds)
        rates = np.asarray([*learning_rates, *[learning_rates[-1]] * fill], np.float32)
        states = [program.init(seed) for seed in seeds]
        metrics = jax.device_get(compiled(rates, _stack(states + states[-1:] * fill), data))
        return [{name: float(values[lane]) for name, values in metrics.items()} for lane in range(len(seeds))]

    return run


def check(program: Program) -> None:
    """Trace a program without compiling or running it.

    Raises:
        Exception: Whatever the model raises for shapes it cannot take.
    """
    state = jax.eval_shape(lambda: program.init(0))
    jax.eval_shape(training(program), jax.ShapeDtypeStruct((), jnp.float32), state, dict(program.data))


def _stack(states: Sequence[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *states)
