"""Measures of recurrent networks: gradients, statistics and errors along a sequence."""

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import jax
import jax.numpy as jnp
from jax import Array

from normlab import linen as nl
from normlab.models.lstm import NOISE, LSTMNet, Trace, first_hidden, first_recurrent_statistics, last_of, lengths_of
from normlab.notation import PyTree
from normlab.study.training.supervised import Fitted

ALONE = 64
"""Test examples that are evaluated one by one."""


def gradients(model: Fitted) -> dict[str, Array]:
    """Measure gradients of the loss on the first batch of training.

    Returns:
        `gradient`: norm over batch and features of the gradient with respect to the hidden state of the first cell at
        every step. `parameter_gradient`: norm over all parameters. `from_zero`: the same if the state starts from zero
        instead of noise. Larger numbers are clipped to the largest of float32.
    """
    inputs, labels = model.batch
    module = _module(model)
    averages = model.model_state[0]
    perturbations = jnp.zeros((inputs.shape[1], len(inputs), module.features))

    def loss(params: PyTree, perturbations: Array, noise: Array) -> Array:
        variables = {"params": params, **averages, "perturbations": first_hidden(perturbations)}
        rngs = {"params": jax.random.key(0)}
        outputs, _ = module.apply(variables, inputs, train=True, noise=noise, mutable=list(averages), rngs=rngs)
        return model.loss(outputs, labels)

    def norms(noise: Array) -> tuple[Array, Array]:
        value, (by_params, by_hidden) = jax.value_and_grad(loss, (0, 1))(model.params, perturbations, noise)
        overflow = jnp.where(jnp.isfinite(value), jnp.finfo(jnp.float32).max, jnp.nan)
        found = _norm(by_params), jax.vmap(_norm)(by_hidden)
        return jax.tree.map(lambda norm: jnp.where(jnp.isfinite(norm), norm, overflow), found)

    of_params, of_hidden = jax.lax.map(norms, jnp.array([NOISE, 0.0]))  # one program for both
    return {"gradient": of_hidden[0], "parameter_gradient": of_params[:1], "from_zero": of_params[1:]}


def running_variance(model: Fitted) -> Array:
    """Return the running variance of the first cell's recurrent path at every step, as a mean over features.

    NaN if the norm keeps none. Statistics that all steps share are repeated.
    """
    steps = model.batch[0].shape[1]
    kept = first_recurrent_statistics(model.model_state[0])
    if kept is None:
        return jnp.full(steps, jnp.nan)
    rows = kept.var.mean(-1)
    return rows[jnp.minimum(jnp.arange(steps), len(rows) - 1)]


def beyond(model: Fitted, inputs: Array, error: Callable[[Array], Array]) -> dict[str, Array]:
    """Evaluate sequences longer than those of training.

    Args:
        model: The network.
        inputs: Sequences.
        error: Maps outputs at every step to errors.

    Returns:
        `error_at_length`: result of `error`. `activation`: root mean square of the first cell's hidden states at every
        step, over the sequences that have not ended.
    """
    module = _module(model)
    trace = _traced(module, {"params": model.params, **model.model_state[0]}, inputs)
    there = inputs[..., -1] if module.padded else jnp.ones(inputs.shape[:2])
    squares = (there[..., None] * trace.hidden[0] ** 2).mean(-1).sum(0)
    return {"error_at_length": error(trace.outputs), "activation": jnp.sqrt(squares / there.sum(0))}


def with_blanks(model: Fitted, lengths: Sequence[int]) -> dict[str, Array]:
    """Evaluate test examples with blank steps appended, up to each of `lengths`; see `beyond`."""
    inputs, labels = model.test
    blank = jnp.zeros((len(inputs), max(lengths) - inputs.shape[1], *inputs.shape[2:]))

    def error(outputs: Array) -> Array:
        return jnp.stack([model.error(outputs[:, length - 1], labels).mean() for length in lengths])

    return beyond(model, jnp.concatenate([inputs, blank], axis=1), error)


def joined(model: Fitted, ends: Sequence[int]) -> dict[str, Array]:
    """Evaluate consecutive test examples as longer sequences, with an output at every step; see `beyond`.

    Args:
        model: The network.
        ends: Ends of the ranges of steps over which the error is averaged; the last is the length.
    """
    inputs, labels = model.test
    n = ends[-1] // inputs.shape[1]
    inputs, labels = (x[: len(x) // n * n].reshape(-1, ends[-1]) for x in (inputs, labels))
    ranges = list(zip((0, *ends[:-1]), ends, strict=True))

    def error(outputs: Array) -> Array:
        return jnp.stack([model.error(outputs[:, a:b], labels[:, a:b]).mean() for a, b in ranges])

    return beyond(model, inputs, error)


def longer(model: Fitted, inputs: Array, labels: Array, lengths: Sequence[int]) -> dict[str, Array]:
    """Evaluate padded sequences, equally many of each length; see `beyond`."""
    wanted = labels.reshape(len(lengths), -1)

    def error(outputs: Array) -> Array:
        at_end = last_of(outputs, lengths_of(inputs)).reshape(*wanted.shape, -1)
        return jnp.stack([model.error(of, right).mean() for of, right in zip(at_end, wanted, strict=True)])

    return beyond(model, inputs, error)


def one_by_one(model: Fitted, outputs: Array) -> dict[str, Array]:
    """Compare test examples that are evaluated together with the same examples one by one, step by step.

    Args:
        model: The network.
        outputs: Outputs of the test examples.

    Returns:
        `blank`: largest change of outputs if all other examples in the batch are blank. Both are the same program, so
        it is 0 unless examples affect each other. `alone`: the same for a batch of 1 against the ordinary evaluation,
        whose matrix products have other shapes and round differently. `error`: change of the error with a batch of 1.
    """
    inputs, labels = (x[:ALONE] for x in model.test)
    n = len(inputs)
    only = jnp.eye(n, dtype=inputs.dtype).reshape(n, n, *[1] * (inputs.ndim - 1)) * inputs

    def compare(reference: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        i, x = at
        found = _streamed(model, x)
        reference = jnp.where(i < 0, found, reference)
        return reference, jnp.abs(found[i] - reference[i]).max()

    together = outputs[:n]
    batches = jnp.arange(-1, n), jnp.concatenate([inputs[None], only])  # all together come first
    _, changes = jax.lax.scan(compare, jnp.zeros_like(together), batches)
    alone = jax.lax.map(lambda x: _streamed(model, x[None])[0], inputs)
    return {
        "blank": changes.max(),
        "alone": jnp.abs(together - alone).max(),
        "error": (model.error(alone, labels) - model.error(together, labels)).mean(),
    }


def gap(model: Fitted, outputs: Array) -> Array:
    """Measure the test error with running statistics minus the error with the statistics of the test examples.

    Args:
        model: The network.
        outputs: Outputs of the test examples with running statistics.
    """
    inputs, labels = model.test
    module = _module(model)
    averages = model.model_state[0]
    variables = {"params": model.params, **averages}
    rngs = {"params": jax.random.key(0)}
    own, _ = module.apply(variables, inputs, train=True, noise=0.0, mutable=list(averages), rngs=rngs)
    return (model.error(outputs, labels) - model.error(own, labels)).mean()


def _module(model: Fitted) -> LSTMNet:
    return cast(LSTMNet, model.network.module)


def _traced(module: LSTMNet, variables: Mapping[str, PyTree], inputs: Array, carries: PyTree = None) -> Trace:
    return cast(Trace, module.apply(variables, inputs, train=False, carries=carries, trace=True))


def _streamed(model: Fitted, inputs: Array) -> Array:
    """Compute the outputs of sequences that arrive step by step."""
    module = _module(model)
    variables = {"params": model.params, **model.model_state[0]}
    cell = nl.LSTMCell(module.features, norm=module.norm, use_running_average=True)
    carry = cell.initialize_carry(jax.random.key(0), (len(inputs), 1))

    def step(carries: PyTree, x: Array) -> tuple[PyTree, Array]:
        trace = _traced(module, variables, x[:, None], carries)
        return trace.carries, trace.outputs[:, 0]

    _, outputs = jax.lax.scan(step, (carry,) * module.depth, inputs.swapaxes(0, 1))
    outputs = outputs.swapaxes(0, 1)
    return outputs if module.every_step else last_of(outputs, lengths_of(inputs) if module.padded else None)


def _norm(tree: PyTree) -> Array:
    """Compute the root of the sum of squares, even if the squares overflow float32."""
    leaves = jax.tree.leaves(tree)
    largest = jnp.stack([jnp.abs(leaf).max() for leaf in leaves]).max()
    scale = jnp.where(largest > 0, largest, 1.0)
    return scale * jnp.sqrt(jnp.stack([((leaf / scale) ** 2).sum() for leaf in leaves]).sum())
