"""Kinds of norms, by how they take their statistics."""

import math

from normlab.catalogue import ROWS
from normlab.tools import Site

__all__ = [
    "centres_each_feature",
    "frozen",
    "group_size",
    "is_of_single_examples",
    "takes_batch_statistics",
    "to_group",
]

_BATCH = frozenset(row.name for row in ROWS if row.needs_batch)
_CENTRE_EACH = frozenset({"batch", "batch_renorm", "domain_batch", "instance", "mean_only_batch", "whiten"})


def takes_batch_statistics(site: Site) -> bool:
    """Return whether a norm takes statistics over a batch in training."""
    return site.kind in _BATCH and not frozen(site)


def frozen(site: Site) -> bool:
    """Return whether a norm uses its running statistics in training by an option of its own."""
    return getattr(site.module, "frozen", False) is True or getattr(site.module, "statistics", "") == "running"


def is_of_single_examples(site: Site) -> bool:
    """Return whether a norm takes statistics of each example alone, and its output is the bias where one is all."""
    return site.kind in ("layer", "group", "instance")


def centres_each_feature(site: Site) -> bool:
    """Return whether a norm subtracts the mean of each feature, so that a constant added to it is lost."""
    if site.kind == "group":
        return group_size(site) == 1
    return site.kind in _CENTRE_EACH and not site.running and not frozen(site)


def group_size(site: Site) -> int:
    """Return the features in a group of a group norm; 0 for other norms."""
    if site.kind != "group" or not site.shape:
        return 0
    features = math.prod(site.shape[axis] for axis in site.features)
    return getattr(site.module, "group_size", None) or features // (getattr(site.module, "num_groups", None) or 1)


def to_group(site: Site | None) -> str:
    """Return the line that converts a model's norms to group norm, in groups of at least 4 features if there are 4."""
    features = math.prod(site.shape[axis] for axis in site.features) if site is not None and site.shape else 32
    groups = math.gcd(32, features, features // 4 or 1)
    return f"normlab.tools.convert(model, variables, to='group:num_groups={groups}', args=(x,), fresh='init')"
