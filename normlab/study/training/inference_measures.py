"""Evaluate a trained model otherwise than with its running averages. For Linen models.

At evaluation batch norm may use the running averages of training, statistics that are re-estimated from training
examples with the final weights (PreciseBN: Wu & Johnson, 2021), or the statistics of the batch that is evaluated.
Per-example norms give identical results for all three, which serves as a sanity check. For deployment norms are folded
into the layers around them; deleting them instead, with the weights of the layers kept, gives another network.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.typing import VariableDict

from normlab import norms
from normlab.functional import StatisticsError
from normlab.introspect.pure import Network
from normlab.norms import Norm
from normlab.notation import PyTree
from normlab.study.training.supervised import Fitted
from normlab.tools import fold, precise, sites
from normlab.tools.estimation.estimated import estimated

Array = jax.Array

REESTIMATED_FROM = 4096
"""Training examples, at most, from which statistics are re-estimated."""

EVALUATED = 2048
"""Test examples, at most, that are evaluated batch by batch."""

AT_ONCE = 512
"""Examples of several batches that are evaluated together."""


def reestimated(model: Fitted) -> PyTree | None:
    """Re-estimate the running statistics, in batches as large as in training; see `normlab.tools.precise`.

    Args:
        model: The network, with values: `precise` works on the host.

    Returns:
        The state that `model.network.evaluate` takes in place of `model.model_state`; `None` if the norm's running
        statistics do not follow from batches.
    """
    if not model.norm.entry.averages:
        return model.model_state
    (module, variables), (inputs, labels) = _linen(model), model.batch
    if not any(map(estimated, sites(module, variables, inputs, train={"train": True}))):
        return None
    size = len(labels)
    batches = model.train[: min(len(model.train), REESTIMATED_FROM) // size * size].reshape(-1, size)
    found = precise(module, variables, [model.take(batch)[0] for batch in batches], where=estimated)
    averages, seed = model.model_state
    return {**averages, "batch_stats": found.variables["batch_stats"]}, seed


def folded(model: Fitted) -> Array:
    """Compute the outputs of the test examples after the norms are folded into layers; see `normlab.tools.fold`.

    Args:
        model: The network, with values: `fold` works on the host.

    Returns:
        Outputs of the test examples. Norms that cannot be folded still run.
    """
    inputs, _ = model.test
    found = fold(*_linen(model), inputs[:1], check=False)
    call: Callable[[Array], Array] = jax.jit(found)
    return jnp.concatenate([call(inputs[first : first + EVALUATED]) for first in range(0, len(inputs), EVALUATED)])


def without_norms(model: Fitted, inputs: Array) -> Array:
    """Compute the outputs of examples by the layers alone: the norms are deleted, and the layers' weights kept.

    Args:
        model: The network.
        inputs: Inputs of examples.
    """
    return model.variant(norms.get("none")).evaluate(model.params, model.model_state, inputs)


def one_by_one(model: Fitted, inputs: Array) -> Array:
    """Compute the outputs of examples at evaluation, each in a batch of its own.

    Args:
        model: The network.
        inputs: Inputs of examples.
    """
    return _evaluated(model, model.network, inputs, 1)


def by_batches(model: Fitted, inputs: Array, size: int) -> Array:
    """Compute the outputs of examples with the statistics of batches that are cut from them in order.

    Args:
        model: The network.
        inputs: Inputs of whole batches.
        size: Size of a batch.

    Raises:
        StatisticsError: If a batch has one element to average over.
    """
    network = model.network
    if _is_batch_norm(model.norm):
        network = model.variant(norms.get(model.norm, statistics="batch"))
    return _evaluated(model, network, inputs, size)


def changes_by_size(model: Fitted, outputs: Array, sizes: tuple[int, ...]) -> Array:
    """Measure the error with the statistics of test batches minus the error of the same examples as deployed.

    Args:
        model: The network.
        outputs: Outputs of the test examples with running statistics.
        sizes: Sizes of the batches.

    Returns:
        A number for each size; NaN if a batch has one element to average over, or the test set is smaller than a batch.
    """
    return jnp.stack([_change(model, outputs, size) for size in sizes])


def compared(model: Fitted, outputs: Array, others: Array) -> dict[str, Array]:
    """Compare the outputs of the test examples as deployed with other outputs.

    Returns:
        `error`: error of the other outputs. `gap`: error as deployed minus this. `logit`: mean absolute difference of
        outputs. `largest`: largest one, in units of the largest output or of 1. `flipped`: share of predictions that
        differ.
    """
    deployed, other = (model.error(some, model.test[1]) for some in (outputs, others))
    return {
        "error": other.mean(),
        "gap": (deployed - other).mean(),  # exactly zero if all differences are
        "logit": jnp.abs(outputs - others).mean(),
        "largest": jnp.abs(outputs - others).max() / jnp.maximum(1, jnp.abs(outputs).max()),
        "flipped": (outputs.argmax(-1) != others.argmax(-1)).mean(),
    }


def in_batches(model: Fitted, batches: Array) -> tuple[Array, Array]:
    """Measure the error with the statistics of each batch, and the error of the same examples as deployed.

    Args:
        model: The network.
        batches: Examples, shape (batches, batch); at most `EVALUATED` of them are used.
    """
    size = batches.shape[1]
    inputs, labels = model.take(batches[: max(1, EVALUATED // size)].ravel())
    both = by_batches(model, inputs, size), _evaluated(model, model.network, inputs, size)
    own, deployed = (model.error(outputs, labels).mean() for outputs in both)
    return own, deployed


def _linen(model: Fitted) -> tuple[nn.Module, VariableDict]:
    """Return the module and its variables."""
    module = model.network.module
    assert module is not None
    return module, {"params": model.params, **model.model_state[0]}


def _is_batch_norm(norm: Norm) -> bool:
    """Check for batch norm or a variant of it, which takes an option for the statistics that normalize."""
    return norm.entry.ghost_batches and hasattr(norm.linen(train=False), "statistics")


def _evaluated(model: Fitted, network: Network, inputs: Array, size: int) -> Array:
    """Compute the outputs of examples in batches, several of them at a time under `vmap`."""
    batches = inputs.reshape(-1, size, *inputs.shape[1:])
    outputs = jax.lax.map(
        lambda batch: network.evaluate(model.params, model.model_state, batch),
        batches,
        batch_size=max(1, AT_ONCE // size),
    )
    return outputs.reshape(-1, *outputs.shape[2:])


def _change(model: Fitted, outputs: Array, size: int) -> Array:
    inputs, labels = model.test
    n = min(len(labels), EVALUATED) // size * size
    if not n:
        return jnp.asarray(jnp.nan)
    try:
        own = by_batches(model, inputs[:n], size)
    except StatisticsError:
        return jnp.asarray(jnp.nan)
    return (model.error(own, labels[:n]) - model.error(outputs[:n], labels[:n])).mean()
