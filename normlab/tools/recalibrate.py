"""Estimate running statistics again while the weights stay as they are (PreciseBN: Wu & Johnson, 2021).

References:
    Wu, Johnson. Rethinking "Batch" in BatchNorm. 2021. https://arxiv.org/abs/2105.07576
"""

from collections.abc import Callable, Mapping

import jax
from flax.traverse_util import flatten_dict, unflatten_dict
from flax.typing import Collection
from jax import Array

from normlab import norms
from normlab.norms import Norm

__all__ = ["latest_only", "reestimated"]

Path = tuple[str, ...]


def latest_only(norm: Norm) -> Norm:
    """Return a norm whose running statistics after a training call are the statistics of that call's batch.

    Args:
        norm: Batch norm or a variant of it, by running mean and variance or deviation.
    """
    blind = {"r_max": 1.0, "d_max": 0.0} if norm.name == "batch_renorm" else {}  # to the earlier running statistics
    biased = {"unbiased_running_var": False} if hasattr(norm.linen(train=False), "unbiased_running_var") else {}
    return norms.get(norm, momentum=0.0, **biased, **blind)


def reestimated(batch_stats: Collection, statistics_of: Callable[[Array], Collection], batches: Array) -> Collection:
    """Replace running statistics by the statistics of many batches.

    The new mean is the mean of the batch means; the new variance is the mean of the batch variances plus the variance
    of the batch means.

    Args:
        batch_stats: Flax's collection; entries other than means, variances and deviations are kept.
        statistics_of: Maps a batch to the collection after it, by a model whose norms are `latest_only`.
        batches: Batches stacked along the first axis, processed one at a time.

    Returns:
        The collection with the new statistics.
    """
    found = jax.lax.map(lambda batch: flatten_dict(statistics_of(batch)), batches)
    return unflatten_dict({**flatten_dict(batch_stats), **_merged(found)})


def _merged(stacked: Mapping[Path, Array]) -> dict[Path, Array]:
    """Merge the statistics of equally large batches; batch renorm keeps standard deviations."""
    merged = {}
    for (*path, name), values in stacked.items():
        if name == "mean":
            merged[(*path, name)] = values.mean(0)
        elif name in ("var", "std"):
            power = 2 if name == "std" else 1
            means = stacked.get((*path, "mean"))  # which a norm that does not centre lacks
            total = (values**power).mean(0) + (0 if means is None else means.var(0))
            merged[(*path, name)] = total ** (1 / power)
    return merged
