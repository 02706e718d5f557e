"""Arrays on meshes with explicit axes."""

from collections.abc import Sequence
from typing import Any

import jax
from jax import Array
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def sharded_along(x: Array, axis: Sequence[int]) -> bool:
    """Check for sharding along any of `axis` over explicit mesh axes, where `x` can be reduced but not sliced."""
    sharding = jax.typeof(x).sharding
    return is_explicit(sharding.mesh) and any(sharding.spec[a] for a in axis)


def aligned(*arrays: Array) -> tuple[Array, ...]:
    """Give arrays of one rank the same sharding on a mesh with explicit axes, which `jnp.where` and loops ask for.

    Along an axis it is that of the first array that is sharded there; axes of size 1 are on every device.
    """
    shardings: list[Any] = [jax.typeof(x).sharding for x in arrays]
    mesh = next((s.mesh for s in shardings if is_explicit(s.mesh)), None)
    if mesh is None:
        return arrays
    spec = [_first_given(along) for along in zip(*(s.spec for s in shardings), strict=True)]
    return tuple(placed(x, mesh, spec) for x in arrays)


def _first_given(along: Sequence[Any]) -> Any:
    """Return the first mesh axes given along an axis; `None` where none are."""
    for axes in along:
        if axes:
            return axes
    return None


def spread_like(x: Array, like: Array) -> Array:
    """Put `x` where `like` of the same rank is along each axis, on a mesh with explicit axes."""
    sharding = jax.typeof(like).sharding
    return placed(x, sharding.mesh, sharding.spec) if is_explicit(sharding.mesh) else x


def whole_last(x: Array) -> Array:
    """Put all of the last axis on every device, on a mesh with explicit axes."""
    sharding = jax.typeof(x).sharding
    return placed(x, sharding.mesh, (*sharding.spec[:-1], None)) if is_explicit(sharding.mesh) else x


def is_sharded(x: Array) -> bool:
    """Return whether `x` is sharded over explicit axes of a mesh."""
    sharding = jax.typeof(x).sharding
    return is_explicit(sharding.mesh) and any(sharding.spec)


def is_explicit(mesh: Any) -> bool:
    return any(kind == AxisType.Explicit for kind in mesh.axis_types)


def placed(x: Array, mesh: Any, spec: Sequence[Any]) -> Array:
    target = NamedSharding(mesh, PartitionSpec(*(None if n == 1 else s for n, s in zip(x.shape, spec, strict=True))))
    return x if jax.typeof(x).sharding == target else jax.sharding.reshard(x, target)


def explicit_of(x: Array) -> Any:
    """The sharding that is part of the type of `x`; `None` where its first axis has none."""
    sharding = jax.typeof(x).sharding
    explicit = any(kind == AxisType.Explicit for kind in sharding.mesh.axis_types)
    return sharding if explicit and any(sharding.spec[:2]) else None
