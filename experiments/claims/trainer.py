"""One trainer for all studies: many runs of one network in one program.

Compiling a program takes longer than the training of a small network. So seed, learning rate, scale of the initial
weights and number of training examples are arguments of the program, and runs that differ in nothing else share it.

Under one seed all arms start from the same weights and see the same batches, drawn with replacement.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from experiments.claims.images import Images, Part
from normlab.introspect.pure import Network

Seen = TypeVar("Seen")
Result = TypeVar("Result")
Tree = Any
"""Parameters or model state of a network; after training with a leading axis of runs."""

_AT_ONCE = 1_000
"""Images that are evaluated together."""


class Settings(NamedTuple):
    """Arguments of runs; arrays [runs], or numbers for all of them.

    Attributes:
        seed: Seed of weights and batches.
        rate: Learning rate.
        scale: Factor of the initial kernels of all layers but the head.
        examples: Training images that batches are drawn from, the first ones.
    """

    seed: int | Sequence[int] | np.ndarray | Array
    rate: float | Sequence[float] | np.ndarray | Array
    scale: float | Sequence[float] | np.ndarray | Array = 1.0
    examples: int | Sequence[int] | np.ndarray | Array = 0


class Moment(NamedTuple):
    """A run between two updates.

    Attributes:
        params: Parameters.
        state: Running statistics, and whatever else training changes without the optimizer.
        t: Updates so far.
        rate: Learning rate of the next update.
        batch: Images of the next update.
    """

    params: Tree
    state: Tree
    t: Array
    rate: Array
    batch: Part


class Trained(NamedTuple, Generic[Seen]):
    """Runs at their end.

    Attributes:
        params: Parameters, with a leading axis of runs.
        state: Model state, likewise.
        seen: Observations, arrays [runs, observations, ...]: before the first update, and after every `every` updates.
    """

    params: Tree
    state: Tree
    seen: Seen


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The part of a training that a program is compiled for.

    Attributes:
        steps: Updates; a multiple of `every`.
        batch: Images in a batch.
        every: Updates between observations.
        momentum: Momentum of SGD.
        cosine: Whether the learning rate decays to zero along a cosine; constant otherwise.
    """

    steps: int
    batch: int = 60
    every: int = 20
    momentum: float = 0.9
    cosine: bool = False

    def at(self) -> np.ndarray:
        """Return the updates after which there is an observation."""
        return np.arange(0, self.steps + 1, self.every)


def nothing(moment: Moment) -> tuple[()]:
    """Observe nothing."""
    return ()


def train(
    net: Network,
    images: Images,
    budget: Budget,
    settings: Settings,
    *,
    observe: Callable[[Moment], Seen] = nothing,
    start: Tree | None = None,
    together: bool = True,
) -> Trained[Seen]:
    """Train runs of one network.

    Args:
        net: The network.
        images: Batches come from the first `examples` of its training images.
        budget: Length and kind of the training.
        settings: Arguments of the runs.
        observe: `moment -> arrays`, traced.
        start: `(parameters, model state)` with a leading axis of runs; new weights from the seeds unless given.
        together: Whether runs train as one batch of networks, which is faster for dense layers; one after the other
            otherwise, on as many processors as there are.
    """
    return trainer(net, images, budget, observe=observe, together=together)(settings, start)


def new(net: Network, settings: Settings) -> Tree:
    """Return the weights and the model state that training starts from, to change them and pass them as `start`."""
    runs = _columns(settings, 1)
    return jax.vmap(partial(_new, net))(runs.seed, runs.scale)  # without `jit`, networks share what is compiled


def trainer(
    net: Network,
    images: Images,
    budget: Budget,
    *,
    observe: Callable[[Moment], Seen] = nothing,
    together: bool = True,
) -> Callable[..., Trained[Seen]]:
    """Return `train` with its program: `(settings, start=None) -> trained`. Use it where settings follow results."""
    if budget.steps % budget.every:
        raise ValueError(f"Expected `steps` to be a multiple of `every`, got {budget.steps} and {budget.every}.")
    inputs, labels = jnp.asarray(images.train.inputs), jnp.asarray(images.train.labels)
    single = partial(_run, net, budget, observe)
    program = jax.jit(jax.vmap(single, in_axes=(None, None, 0, 0)) if together else single)
    compiled: list[Callable[..., Trained[Seen]]] = []

    def run(settings: Settings, start: Tree | None = None) -> Trained[Seen]:
        runs = _columns(settings, len(labels))
        begun = new(net, runs) if start is None else start
        if together:
            return program(inputs, labels, runs, begun)
        pieces = [jax.tree.map(lambda a, i=i: a[i], (runs, begun)) for i in range(len(runs.seed))]
        if not compiled:  # here, because threads that meet a new program compile it each
            compiled.append(program.lower(inputs, labels, *pieces[0]).compile())
        ended = at_once([partial(compiled[0], inputs, labels, *piece) for piece in pieces])
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *ended)

    return run


def at_once(jobs: Sequence[Callable[[], Result]]) -> list[Result]:
    """Run programs side by side: each keeps about one processor busy."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda job: jax.block_until_ready(job()), jobs))


def error(net: Network, trained: Trained, part: Part, *, together: bool = True) -> np.ndarray:
    """Return the share of wrong classes in evaluation, [runs]; `together` as in `train`."""
    outputs = logits(net, trained.params, trained.state, part, together=together)
    return (outputs.argmax(-1) != part.labels).mean(-1)


def logits(net: Network, params: Tree, state: Tree, part: Part, *, together: bool = True) -> np.ndarray:
    """Return the outputs in evaluation, [runs, images, classes]; `together` as in `train`."""
    each = partial(jax.vmap, in_axes=(0, 0, None)) if together else _one_by_one
    program = jax.jit(each(net.evaluate))
    pieces = [part.inputs[i : i + _AT_ONCE] for i in range(0, len(part.labels), _AT_ONCE)]
    return np.concatenate([np.asarray(program(params, state, piece)) for piece in pieces], axis=1)


def _one_by_one(evaluate: Callable[[Tree, Tree, Array], Array]) -> Callable[[Tree, Tree, Array], Array]:
    return lambda params, state, inputs: jax.lax.map(lambda run: evaluate(*run, inputs), (params, state))


def accuracy(net: Network, part: Part) -> Callable[[Moment], Array]:
    """Return an observation: the share of right classes in evaluation."""
    inputs, labels = jnp.asarray(part.inputs), jnp.asarray(part.labels)
    return lambda moment: (net.evaluate(moment.params, moment.state, inputs).argmax(-1) == labels).mean()


def loss(outputs: Array, labels: Array) -> Array:
    """Average the cross entropy of logits."""
    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()


def best_rate(errors: np.ndarray, rates: Sequence[float]) -> float:
    """Choose the learning rate of the lowest mean error.

    Args:
        errors: Errors on images that are not reported, [rates, seeds].
        rates: Learning rates.
    """
    means = np.nan_to_num(np.asarray(errors, np.float64), nan=1.0).mean(1)
    return float(rates[int(means.argmin())])


def chosen_rate(net: Network, runs: Iterable[Trained], part: Part, rates: Sequence[float]) -> float:
    """Choose the learning rate of the lowest error.

    Args:
        net: The network.
        runs: Runs of a `grid` of these rates, in order, in one group or several.
        part: Images that are not reported.
        rates: Learning rates.
    """
    errors = np.concatenate([error(net, some, part) for some in runs])
    return best_rate(errors.reshape(len(rates), -1), rates)


def tuned_rate(
    net: Network,
    run: Callable[[Settings], Trained],
    part: Part,
    rates: Sequence[float],
    seeds: Sequence[int],
    examples: int = 0,
) -> float:
    """Train with every learning rate and choose that of the lowest error; a single rate needs no training.

    Args:
        net: The network.
        run: Trains it.
        part: Images that are not reported.
        rates: Learning rates.
        seeds: Seeds of the choice.
        examples: Training examples.
    """
    if len(rates) == 1:
        return rates[0]
    return chosen_rate(net, [run(grid(seeds, rates, examples=examples))], part, rates)


def grid(seeds: Sequence[int], rates: Sequence[float], **others: float) -> Settings:
    """Return the settings of all pairs of learning rates and seeds, rates first: reshape to [rates, seeds]."""
    return Settings(np.tile(seeds, len(rates)), np.repeat(np.asarray(rates, np.float32), len(seeds)), **others)


def _columns(settings: Settings, examples: int) -> Settings:
    seed, rate, scale, first = np.broadcast_arrays(
        settings.seed, settings.rate, settings.scale, np.where(settings.examples, settings.examples, examples)
    )
    columns = (np.atleast_1d(a) for a in (seed, rate, scale, first))
    kinds = (np.uint32, np.float32, np.float32, np.int32)
    return Settings(*(jnp.asarray(a.astype(kind)) for a, kind in zip(columns, kinds, strict=True)))


def _new(net: Network, seed: Array, scale: Array) -> Tree:
    params, state = net.init(seed)

    def scaled(path: tuple[Any, ...], leaf: Array) -> Array:
        names = [getattr(key, "key", "") for key in path]
        return leaf * scale if names[-1] == "kernel" and names[0] != "head" else leaf

    return jax.tree_util.tree_map_with_path(scaled, params), state


def _run(
    net: Network,
    budget: Budget,
    observe: Callable[[Moment], Seen],
    inputs: Array,
    labels: Array,
    settings: Settings,
    begun: Tree,
) -> Trained[Seen]:
    seed, rate, _, examples = settings
    rates = optax.cosine_decay_schedule(1.0, budget.steps) if budget.cosine else lambda t: jnp.ones(())
    optimizer = optax.trace(budget.momentum) if budget.momentum else optax.identity()
    draws = jax.random.fold_in(jax.random.key(seed), 1)

    def moment(params: Tree, state: Tree, t: Array) -> Moment:
        drawn = jax.random.randint(jax.random.fold_in(draws, t), (budget.batch,), 0, examples)
        return Moment(params, state, t, rate * rates(t), Part(inputs[drawn], labels[drawn]))

    def update(_: Array, carry: tuple) -> tuple:
        params, state, momenta, t = carry
        now = moment(params, state, t)
        _, gradients, state = net.gradients(
            lambda outputs: (loss(outputs, now.batch.labels), None), params, state, now.batch.inputs, t
        )
        steps, momenta = optimizer.update(gradients, momenta)
        params = jax.tree.map(lambda p, step: p - (now.rate * step).astype(p.dtype), params, steps)
        return params, state, momenta, t + 1

    def block(carry: tuple, updates: Array) -> tuple[tuple, Seen]:
        params, state, _, t = carry
        seen = observe(moment(params, state, t))
        return jax.lax.fori_loop(0, updates, update, carry), seen

    params, state = begun
    carry = params, state, optimizer.init(params), jnp.zeros((), jnp.int32)
    blocks = jnp.full(budget.steps // budget.every + 1, budget.every).at[-1].set(0)  # after the last there is no update
    (params, state, *_), seen = jax.lax.scan(block, carry, blocks)
    return Trained(params, state, seen)
