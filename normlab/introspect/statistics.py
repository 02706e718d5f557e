"""Find and read the running statistics in the variables of a Linen model."""

from typing import NamedTuple

import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from flax.typing import VariableDict
from jax import Array

__all__ = ["Path", "Statistics", "paths", "read"]

Path = tuple[str, ...]


class Statistics(NamedTuple):
    """Running mean and variance of a norm, each with the shape of its feature axes."""

    mean: Array
    var: Array


def paths(variables: VariableDict) -> list[Path]:
    """Return the paths of modules that keep a running mean, in the order of the variables."""
    return [path[:-1] for path in flatten_dict(variables.get("batch_stats", {})) if path[-1] == "mean"]


def read(variables: VariableDict, path: Path) -> Statistics:
    """Read the running statistics of the module at `path`; batch renorm keeps a standard deviation."""
    kept = variables["batch_stats"]
    for name in path:
        kept = kept[name]
    return Statistics(kept["mean"], kept["var"] if "var" in kept else jnp.square(kept["std"]))
