"""Estimate running statistics again, with the weights as they are (PreciseBN: Wu & Johnson, 2021).

References:
    Wu, Johnson. Rethinking "Batch" in BatchNorm. 2021. https://arxiv.org/abs/2105.07576
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from normlab import norms
from normlab.norms import Norm

Tree = Mapping[str, Any]
Path = tuple[str, ...]


def latest_only(norm: Norm) -> Norm:
    """Return a norm whose running statistics after a call in training are those of the batch of the call.

    Args:
        norm: Batch norm or one of its kin; see `Entry.ghost_batches`.
    """
    blind = {"r_max": 1.0, "d_max": 0.0} if norm.name == "batch_renorm" else {}  # to what was estimated before
    return norms.get(norm, momentum=0.0, unbiased_running_var=False, **blind)


def reestimated(batch_stats: Tree, statistics_of: Callable[[Array], Tree], batches: Array) -> Tree:
    """Replace running statistics by those of many batches.

    The mean is that of the batches' means; the variance the mean of their variances and the variance of their means.

    Args:
        batch_stats: Flax's collection; whatever is no mean, variance or deviation is kept.
        statistics_of: From a batch to the collection after it, by a model whose norms are `latest_only`.
        batches: Stacked along the first axis; one after another is given.

    Returns:
        The collection with other numbers.
    """
    found = jax.lax.map(lambda batch: flatten_dict(statistics_of(batch)), batches)
    return unflatten_dict({**flatten_dict(batch_stats), **_merged(found)})


def _merged(stacked: Mapping[Path, Array]) -> dict[Path, Array]:
    """Merge the statistics of batches of one size; batch renorm keeps standard deviations."""
    merged = {}
    for (*path, name), values in stacked.items():
        if name == "mean":
            merged[(*path, name)] = values.mean(0)
        elif name in ("var", "std"):
            power = 2 if name == "std" else 1
            total = (values**power).mean(0) + stacked[(*path, "mean")].var(0)
            merged[(*path, name)] = total ** (1 / power)
    return merged
