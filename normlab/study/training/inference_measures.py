"""What a trained model's errors are by other statistics than its running ones. For Linen models.

At evaluation batch norm may use the running averages of training; statistics estimated again from training examples,
with the weights as they are (PreciseBN: Wu & Johnson, 2021); or those of the batch that is evaluated. Norms that do not
look across examples make the same of all three, which is a check of what is measured here.
"""

from typing import Any

import jax
import jax.numpy as jnp

from normlab import norms
from normlab.functional import StatisticsError
from normlab.introspect.pure import Network
from normlab.study.training.supervised import Fitted
from normlab.tools import recalibrate

Array = jax.Array

REESTIMATED_FROM = 4096
"""Training examples, at most, from which statistics are estimated again."""

EVALUATED = 2048
"""Test examples, at most, that are evaluated batch by batch."""

AT_ONCE = 512
"""Examples of several batches that go through a model together."""


def reestimated(model: Fitted) -> Any:
    """Estimate the running statistics again, in batches as large as in training; see `normlab.tools.recalibrate`.

    Returns:
        The state that `model.network.evaluate` takes in place of `model.model_state`.
    """
    if not model.norm.entry.ghost_batches:
        return model.model_state
    of_batch, size = model.variant(recalibrate.latest_only(model.norm)), len(model.batch[1])
    examples = model.train[: min(len(model.train), REESTIMATED_FROM) // size * size].reshape(-1, size)

    def statistics_of(batch: Array) -> Any:
        _, (averages, _) = of_batch.train(model.params, model.model_state, model.take(batch)[0], jnp.asarray(0))
        return averages["batch_stats"]

    averages, seed = model.model_state
    found = recalibrate.reestimated(averages["batch_stats"], statistics_of, jnp.asarray(examples))
    return {**averages, "batch_stats": found}, seed


def by_batches(model: Fitted, inputs: Array, size: int) -> Array:
    """Give the outputs of examples by the statistics of batches that are cut from them in order.

    Args:
        model: The network.
        inputs: Examples; as many as make whole batches.
        size: Of a batch.

    Returns:
        Outputs of all of them.

    Raises:
        StatisticsError: If a batch has one element to average over.
    """
    network = model.network
    if model.norm.entry.ghost_batches:
        network = model.variant(norms.get(model.norm, statistics="batch"))
    return _evaluated(model, network, inputs, size)


def changes_by_size(model: Fitted, outputs: Array, sizes: tuple[int, ...]) -> Array:
    """Measure the error by the statistics of test batches minus that of the same examples as deployed.

    Args:
        model: The network.
        outputs: Of the test examples, by running statistics.
        sizes: Of the batches.

    Returns:
        A number for each size; NaN where a batch has one element to average over, or where the test is no such batch.
    """
    return jnp.stack([_change(model, outputs, size) for size in sizes])


def compared(model: Fitted, outputs: Array, others: Array) -> dict[str, Array]:
    """Compare outputs of the test examples as deployed with others of theirs.

    Returns:
        `error`: by the others. `gap`: as deployed minus that. `logit`: mean absolute difference of outputs. `flipped`:
        the share of predictions that differ.
    """
    deployed, other = (model.error(some, model.test[1]) for some in (outputs, others))
    return {
        "error": other.mean(),
        "gap": (deployed - other).mean(),  # exactly zero where all of them are
        "logit": jnp.abs(outputs - others).mean(),
        "flipped": (outputs.argmax(-1) != others.argmax(-1)).mean(),
    }


def in_batches(model: Fitted, batches: Array) -> tuple[Array, Array]:
    """Measure the error in batches by the statistics of each, and that of the same examples as deployed.

    Args:
        model: The network.
        batches: Examples, shape (batches, batch); as many of them as come to `EVALUATED`.
    """
    size = batches.shape[1]
    inputs, labels = model.take(batches[: max(1, EVALUATED // size)].ravel())
    both = by_batches(model, inputs, size), _evaluated(model, model.network, inputs, size)
    own, deployed = (model.error(outputs, labels).mean() for outputs in both)
    return own, deployed


def _evaluated(model: Fitted, network: Network, inputs: Array, size: int) -> Array:
    """Outputs of examples in batches; some of them at a time, which `vmap` keeps apart."""
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
