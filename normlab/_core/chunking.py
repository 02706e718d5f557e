"""Ghost batches: the batch in chunks that share statistics."""

import math

import jax
from jax import Array, lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from normlab._core.collectives import names_in
from normlab._core.sharding import explicit_of, is_explicit, placed


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


def check_whole_groups(x: Array, size: int) -> None:
    """Raise a `ValueError` where groups of neighbours on the last axis lie on several devices of an explicit axis."""
    sharding = jax.typeof(x).sharding
    explicit = any(kind == AxisType.Explicit for kind in sharding.mesh.axis_types)
    names = names_in(sharding.spec[-1]) if explicit and x.ndim else ()
    if x.shape[-1] // size % math.prod(sharding.mesh.shape[name] for name in names):
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
