"""Running statistics of several replicas of a model: how far they are apart, and one set of statistics from all."""

import functools
import operator
from typing import Literal, TypeVar, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import multihost_utils

from normlab.errors import BadInput
from normlab.functional import BatchMoments
from normlab.tools import leaves
from normlab.tools.moments import Moments

__all__ = ["merge", "reduce", "spread", "sync"]

Variables = TypeVar("Variables")
How = Literal["merge", "mean", "first"]
_AVERAGED = ("mean", "var", "std")


def spread(variables: object, axis: int = 0) -> dict[str, float]:
    """Return how far the statistics of replicas are apart, by the path of the norm.

    Args:
        variables: Variables whose leaves have an axis of replicas, as `jax.pmap` makes them; batch statistics are read.
        axis: Axis of the replicas.

    Returns:
        The largest distance of a replica's mean or deviation from the average of the replicas, in standard deviations:
        0 where all agree.

    Example:
        >>> spread({"batch_stats": {"bn": {"mean": np.array([[0.0], [2.0]]), "var": np.array([[1.0], [1.0]])}}})
        {'bn': 1.0}
    """
    there = leaves.by_path(variables)
    found: dict[str, float] = {}
    for norm, paths in leaves.statistics(variables).items():
        named = {name: _first_axis(there[path], axis) for name, path in paths.items()}
        if (std := _deviation(named)) is not None:
            apart = [np.abs(a - a.mean(0)).max(0) for a in (std, named.get("mean", std))]
            found[norm] = float(_over(np.maximum(*apart), np.sqrt(np.square(std).mean(0))).max(initial=0))
    return found


def reduce(variables: Variables, how: How = "merge", axis: int = 0) -> Variables:
    """Return the variables of one model from those of its replicas.

    Args:
        variables: Variables whose leaves have an axis of replicas, as `jax.pmap` makes them.
        how: `merge`: the mean of means, and the mean of variances plus the variance of means, which is the variance of
            all examples. `mean`: averages of both, which leave out the spread between replicas. `first`: those of the
            first replica.
        axis: Axis of the replicas.

    Returns:
        The same tree without the axis. Leaves that are no running statistics are those of the first replica.

    Raises:
        BadInput: If replicas differ in a leaf that is no running mean, variance or deviation, such as a parameter or a
            `step`.

    Example:
        >>> stats = {"mean": np.array([[0.0], [2.0]]), "var": np.array([[1.0], [3.0]])}
        >>> reduce({"batch_stats": {"bn": stats}})
        {'batch_stats': {'bn': {'mean': array([1.]), 'var': array([3.])}}}
    """
    if how not in get_args(How):
        raise BadInput(f"Expected `how` to be one of {get_args(How)}, got {how!r}. Choose one.")
    there = leaves.by_path(variables)
    values: dict[str, np.ndarray] = {}
    for paths in leaves.statistics(variables).values():
        named = {name: _first_axis(there[path], axis) for name, path in paths.items() if name in _AVERAGED}
        values |= {paths[name]: _reduced(named, name, how) for name in named}

    def leaf_of_one(path: str, leaf: Array | np.ndarray) -> Array | np.ndarray:
        if path not in values:
            return _agreed(path, leaf, axis)
        value = values[path].astype(leaf.dtype)
        return jnp.asarray(value) if isinstance(leaf, Array) else value

    return leaves.mapped(leaf_of_one, variables)


def merge(moments: Moments) -> Moments:
    """Merge the moments that the processes of a JAX cluster collected, each from its own batches.

    Every process calls it and gets the same bits: processes are merged in the order of their index. A process without
    a batch counts 0.

    Args:
        moments: Moments of this process; see `normlab.tools.precise.collect`.

    Returns:
        Moments of all batches; with one process, its own.
    """
    if jax.process_count() == 1:
        return moments
    content = np.frombuffer(moments.to_bytes(), np.uint8)  # bytes, because JAX would round float64 on the way
    sizes = multihost_utils.process_allgather(np.array([content.size], np.int32)).ravel()
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: content.size] = content
    rows = multihost_utils.process_allgather(padded)
    of_processes = (Moments.from_bytes(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True))
    return functools.reduce(operator.add, of_processes, Moments())


def sync(moments: BatchMoments, axis_name: str | tuple[str, ...]) -> BatchMoments:
    """Merge the moments of a batch over devices, inside `jax.shard_map`, `jax.pmap` or `jax.vmap`.

    Args:
        moments: Moments of the device's part of the batch; see `normlab.functional.batch_moments`.
        axis_name: Mapped axes of the devices.

    Returns:
        The moments of the whole batch, on each device.
    """
    mean, count = moments.mean, jnp.broadcast_to(jnp.asarray(moments.count, moments.mean.dtype), moments.mean.shape)
    total = lax.psum(count, axis_name)
    share = count / jnp.maximum(total, 1)
    center = lax.pmean(mean, axis_name)  # near the mean, so that no digits are lost
    shift = lax.psum((mean - center) * share, axis_name)
    var = lax.psum((moments.var + lax.square(mean - center - shift)) * share, axis_name)
    unbiased = var * jnp.where(total > 1, total / jnp.maximum(total - 1, 1), 1)
    return BatchMoments(center + shift, var, unbiased, total)


def _first_axis(leaf: Array | np.ndarray, axis: int) -> np.ndarray:
    return np.moveaxis(np.asarray(leaf, np.float64), axis, 0)


def _deviation(named: dict[str, np.ndarray]) -> np.ndarray | None:
    """Return the standard deviations of replicas; `None` for a norm that keeps none."""
    return np.sqrt(named["var"]) if "var" in named else named.get("std")


def _reduced(named: dict[str, np.ndarray], name: str, how: How) -> np.ndarray:
    values = named[name]
    if how == "first":
        return values[0]
    if how == "mean" or name == "mean":
        return values.mean(0)
    between = named["mean"].var(0) if "mean" in named else 0
    return values.mean(0) + between if name == "var" else np.sqrt(np.square(values).mean(0) + between)


def _agreed(path: str, leaf: Array | np.ndarray, axis: int) -> Array | np.ndarray:
    """Return the value of a leaf that is the same in all replicas."""
    replicas = [leaf[(*[slice(None)] * axis, number)] for number in range(leaf.shape[axis])]
    for number, other in enumerate(replicas):
        if not np.array_equal(_plain(replicas[0]), _plain(other)):
            raise BadInput(
                f"Expected `{path}` to be the same in all replicas, got others in replica {number} than in replica 0. "
                "Synchronize it, or take the leaf of one replica first."
            )
    return replicas[0]


def _plain(leaf: Array | np.ndarray) -> np.ndarray:
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def _over(apart: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Divide; replicas without a spread of their own are infinitely far apart unless they agree."""
    return np.divide(apart, std, out=np.where(apart > 0, np.inf, 0.0), where=std > 0)
