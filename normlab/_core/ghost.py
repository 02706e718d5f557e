"""Ghost batches: the batch in chunks that share statistics."""

import math
import numbers
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from normlab._core.checks import one_element_allowed
from normlab._core.collectives import Devices, names_in
from normlab._core.reduction import Reduction, elements
from normlab._core.sharding import explicit_of, is_explicit, placed
from normlab.errors import StatisticsError

Statistics = TypeVar("Statistics")


def each_ghost(
    normalize: Callable[[Array, Array | None], tuple[Array, Statistics]], x: Array, where: Array | None, size: int
) -> tuple[Array, Statistics]:
    """Normalize full chunks under `vmap` and the remainder on its own; statistics get a leading axis of chunks.

    Args:
        normalize: Takes a chunk and its mask, and returns arrays as the chunk's statistics, too.
        x: Activations.
        where: Mask, of the rank of `x`.
        size: Examples in a chunk.
    """
    full = x.shape[0] // size * size
    if where is not None:
        where = beside(jnp.broadcast_to(where, x.shape[:1] + where.shape[1:]), x)
    y, m = jax.vmap(normalize)(split_first(x, size), where if where is None else split_first(where, size))
    y = join_first(y)
    if full == x.shape[0]:
        return y, m
    rest, last = normalize(x[full:], where if where is None else where[full:])
    return jnp.concatenate([y, rest]), jax.tree.map(_appended, m, last)


def _appended(chunks: Array, last: Array) -> Array:
    """Append the statistics of the last chunk to those of the others."""
    return jnp.concatenate([chunks, last[None]])


def check_ghost(size: int | None) -> None:
    """Raise a `ValueError` unless `size` is a positive whole number or `None`."""
    whole = isinstance(size, numbers.Integral) and not isinstance(size, bool)
    if size is not None and not (whole and int(size) >= 1):
        raise ValueError(f"Expected `ghost_batch_size` to be a positive whole number or None, got {size!r}.")


def check_chunks(size: int, x: Array, over: Reduction, devices: Devices | None) -> None:
    """Raise unless a batch can be cut into chunks of `size` examples.

    Args:
        size: Examples in a chunk.
        x: Activations.
        over: The elements of a chunk that share a statistic.
        devices: Devices over which the chunks' moments are averaged.

    Raises:
        ValueError: If the size of the batch is not known, or the batch of a device is smaller than a chunk.
        StatisticsError: If the remainder is a single element.
    """
    if not isinstance(x.shape[0], int):
        raise ValueError(
            f"Expected a batch of known size with `ghost_batch_size`, got the symbolic size {x.shape[0]}. Export "
            "with a fixed batch, or export evaluation."
        )
    if devices is not None and size > x.shape[0]:
        raise ValueError(
            f"Expected `ghost_batch_size` with `axis_name` to be at most the {x.shape[0]} examples of a device, got "
            f"{size}. For statistics over groups of devices split the mesh axis in two and name the inner one, "
            "without `ghost_batch_size`."
        )
    if 0 not in over.axis:
        raise ValueError(f"Expected the first axis among the reduced ones with `ghost_batch_size`, got {over.axis}.")
    rest = x.shape[0] % size
    alone = rest and rest * elements(x.shape, over) == x.shape[0]
    if size < x.shape[0] and alone and not one_element_allowed():
        raise StatisticsError(
            f"Expected `ghost_batch_size` to leave a remainder of more than one element, got {size} for a batch of "
            f"{x.shape[0]}. Choose a size that divides the batch."
        )


def split_first(x: Array, size: int) -> Array:
    """Split the first axis into `(chunks, size)`, without a remainder; what lies on a device stays there.

    Raises:
        ValueError: On a mesh with explicit axes, if chunks do not begin and end where the parts of devices do.
    """
    chunks = x.shape[0] // size
    shape, whole = (chunks, size, *x.shape[1:]), chunks * size == x.shape[0]
    sharding = explicit_of(x)
    if sharding is None or not sharding.spec[0]:
        return x[: chunks * size].reshape(shape)
    names, mesh = names_in(sharding.spec[0]), sharding.mesh
    for cut in range(len(names), -1, -1):
        outer, inner = names[:cut], names[cut:]
        groups = math.prod(mesh.shape[name] for name in outer)
        if whole and (chunks == groups or (not inner and not chunks % groups)):
            spec = PartitionSpec(outer or None, inner or None, *sharding.spec[1:])
            return lax.reshape(x, shape, out_sharding=NamedSharding(mesh, spec))
    raise ValueError(
        f"Expected `ghost_batch_size` to cut a batch of {x.shape[0]} between devices, since it is sharded as "
        f"{sharding.spec} over the explicit mesh axes {dict(mesh.shape)}, got {size}. Take a device's share or a part "
        "of it that divides it; for groups of devices split the mesh axis in two, or make it of type "
        "`jax.sharding.AxisType.Auto`."
    )


def check_whole_groups(x: Array, size: int, axis: int = -1) -> None:
    """Raise a `ValueError` where groups of neighbours on an axis lie on several devices of an explicit mesh axis."""
    sharding = jax.typeof(x).sharding
    explicit = any(kind == AxisType.Explicit for kind in sharding.mesh.axis_types)
    names = names_in(sharding.spec[axis]) if explicit and x.ndim else ()
    if x.shape[axis] // size % math.prod(sharding.mesh.shape[name] for name in names):
        raise ValueError(
            f"Expected groups of {size} features to lie within devices, since the features of `x` are sharded as "
            f"{sharding.spec} over the explicit mesh axes {dict(sharding.mesh.shape)}. Make the axis of type "
            "`jax.sharding.AxisType.Auto`, or use `jax.shard_map` and `axis_name`."
        )


def beside(x: Array, like: Array) -> Array:
    """Put the first axis of `x` where that of `like` is, on a mesh with explicit axes."""
    sharding = explicit_of(like)
    if sharding is None:
        return x
    rest = (None,) * (x.ndim - 1)
    return jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec(sharding.spec[0], *rest)))


def whole_first(x: Array) -> Array:
    """Put all of the first axis on every device, on a mesh with explicit axes: for a loop along it."""
    sharding = jax.typeof(x).sharding
    return placed(x, sharding.mesh, (None, *sharding.spec[1:])) if is_explicit(sharding.mesh) else x


def join_first(x: Array) -> Array:
    """Undo `split_first`."""
    shape = (x.shape[0] * x.shape[1], *x.shape[2:])
    sharding = explicit_of(x)
    if sharding is None:
        return x.reshape(shape)
    outer, inner, *rest = sharding.spec
    spec = PartitionSpec((*names_in(outer), *names_in(inner)) or None, *rest)
    return lax.reshape(x, shape, out_sharding=NamedSharding(sharding.mesh, spec))
