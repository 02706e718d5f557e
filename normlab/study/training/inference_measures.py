"""Evaluate a trained model with statistics other than its running averages. For Linen models.

At evaluation batch norm may use the running averages of training, statistics that are re-estimated from training
examples with the final weights (PreciseBN: Wu & Johnson, 2021), or the statistics of the batch that is evaluated.
Per-example norms give identical results for all three, which serves as a sanity check.
"""

import jax
import jax.numpy as jnp

from normlab import norms
from normlab.functional import StatisticsError
from normlab.introspect.pure import Network
from normlab.norms import Norm
from normlab.notation import PyTree
from normlab.study.training.supervised import Fitted
from normlab.tools import recalibrate

Array = jax.Array

REESTIMATED_FROM = 4096
"""Training examples, at most, from which statistics are re-estimated."""

EVALUATED = 2048
"""Test examples, at most, that are evaluated batch by batch."""

AT_ONCE = 512
"""Examples of several batches that are evaluated together."""


def reestimated(model: Fitted) -> PyTree:
    """Re-estimate the running statistics, in batches as large as in training; see `normlab.tools.recalibrate`.

    Returns:
        The state that `model.network.evaluate` takes in place of `model.model_state`.
    """
    if not _is_batch_norm(model.norm):
        return model.model_state
    of_batch, size = model.variant(recalibrate.latest_only(model.norm)), len(model.batch[1])
    examples = model.train[: min(len(model.train), REESTIMATED_FROM) // size * size].reshape(-1, size)

    def statistics_of(batch: Array) -> PyTree:
        _, (averages, _) = of_batch.train(model.params, model.model_state, model.take(batch)[0], jnp.asarray(0))
        return averages["batch_stats"]

    averages, seed = model.model_state
    found = recalibrate.reestimated(averages["batch_stats"], statistics_of, jnp.asarray(examples))
    return {**averages, "batch_stats": found}, seed


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
        outputs. `flipped`: share of predictions that differ.
    """
    deployed, other = (model.error(some, model.test[1]) for some in (outputs, others))
    return {
        "error": other.mean(),
        "gap": (deployed - other).mean(),  # exactly zero if all differences are
        "logit": jnp.abs(outputs - others).mean(),
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
