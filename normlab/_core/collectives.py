"""Mapped axes: sums and gathers across devices."""

import functools
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from normlab._core.checks import AxisName

Tree = TypeVar("Tree")

_ONE_DEVICE: ContextVar[frozenset[str]] = ContextVar("one_device", default=frozenset())


@contextmanager
def one_device(*axis_names: str) -> Generator[None]:
    """Let norms whose `axis_name` is one of these work where no such axis is bound: on a single device.

    Within this context an axis of these names has a single device unless it is bound, and a norm takes its statistics
    from that device. Names that are not listed stay errors where they are not bound, so a typo never goes unseen.
    Evaluation by running statistics does not need it. It is read while a function is traced: enter it around the first
    call of what `jax.jit` compiles.

    Args:
        *axis_names: Names of mapped axes.

    Raises:
        TypeError: If a name is not a string.

    Example:
        >>> from normlab.functional import batch_norm
        >>> with one_device("data"):
        ...     y, _ = batch_norm(jnp.array([[1.0], [3.0]]), axis_name="data", epsilon=0.0)
        >>> y.ravel()
        Array([-1.,  1.], dtype=float32)
    """
    for name in axis_names:
        if not isinstance(name, str):
            raise TypeError(f"Expected the names of mapped axes, each a string, got {name!r}.")
    token = _ONE_DEVICE.set(_ONE_DEVICE.get() | frozenset(axis_names))
    try:
        yield
    finally:
        _ONE_DEVICE.reset(token)


class Devices(NamedTuple):
    """The devices that share statistics; hashable.

    Attributes:
        axis_name: Names of mapped axes.
        groups: Sub-groups of them; `None` for all together.
    """

    axis_name: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...] | None = None

    @classmethod
    def of(
        cls, axis_name: AxisName | None, axis_index_groups: Sequence[Sequence[int]] | None = None
    ) -> "Devices | None":
        """Resolve what a norm was given; `None` for this device alone.

        Raises:
            ValueError: If an axis is not bound (see `one_device`), or groups do not partition it.
        """
        if axis_name is None:
            if axis_index_groups is not None:
                raise ValueError(
                    "Expected `axis_name` beside `axis_index_groups`, got None. Name the axis the groups belong to."
                )
            return None
        names = (axis_name,) if isinstance(axis_name, str) else tuple(axis_name)
        if not names or len(set(names)) < len(names):
            raise ValueError(f"Expected `axis_name` to name at least one axis, and each once, got {axis_name!r}.")
        bound = tuple(name for name in names if _is_bound(name, names))
        if not bound:
            return None
        if axis_index_groups is None:
            return cls(bound)
        groups = tuple(tuple(group) for group in axis_index_groups)
        _check_groups(groups, bound)
        return cls(bound, groups)

    @property
    def size(self) -> int:
        """Number of devices that share statistics."""
        return len(self.groups[0]) if self.groups else lax.axis_size(self.axis_name)

    def sum(self, x: Array) -> Array:
        """Add up `x` of all devices.

        Raises:
            ValueError: For groups where JAX cannot reduce over groups.
        """
        try:
            return lax.psum(x, self.axis_name, axis_index_groups=self.groups)  # pyright: ignore[reportUnknownVariableType]
        except NotImplementedError as error:
            raise ValueError(
                "Expected `axis_index_groups` under `jax.pmap`, or under `jax.shard_map` with `check_vma=False`, only: "
                f"JAX cannot reduce over the groups {self.groups} along {_quoted(self.axis_name)} here. Split the mesh "
                "axis in two and name the inner one, such as a mesh of (outer, inner) with axis_name='inner'."
            ) from error
        except (AssertionError, ValueError) as error:
            manual = jax.sharding.get_abstract_mesh().manual_axes
            if not manual or all(name in manual for name in self.axis_name):
                raise
            raise ValueError(
                f"Expected `axis_name` to name no axis of `jax.vmap` inside `jax.shard_map`, got "
                f"{_quoted(self.axis_name)}: JAX cannot reduce over it while it tracks what varies. Pass "
                "`check_vma=False` to `jax.shard_map`, or make the lanes examples of one batch."
            ) from error

    def gather(self, x: Array) -> Array:
        """Stack `x` of all devices, as an all-reduce: its result is known to be the same everywhere."""
        index = lax.axis_index(self.axis_name)
        if self.groups:
            places = {device: place for group in self.groups for place, device in enumerate(group)}
            index = jnp.asarray([places[device] for device in sorted(places)])[index]
        slots = jnp.arange(self.size).reshape((-1,) + (1,) * x.ndim)
        return self.sum(jnp.where(slots == index, x[None], 0))


def varying_like(tree: Tree, *others: object) -> Tree:
    """Mark arrays as varying along the mapped axes of `jax.shard_map` along which any of `others` varies.

    What a loop hands on must be of one type, and a state that starts as zeros varies along none.
    """
    names = frozenset[str]().union(*map(varying_axes, jax.tree.leaves(others)))
    return jax.tree.map(functools.partial(_varying_along, names=names), tree)


def varying_axes(x: object) -> frozenset[str]:
    """The mapped axes along which JAX knows `x` to vary; none where it does not track that."""
    return jax.typeof(x).manual_axis_type.varying


def _varying_along(x: Array, names: frozenset[str]) -> Array:
    missing = tuple(sorted(names - varying_axes(x)))
    return lax.pcast(x, missing, to="varying") if missing else x  # pyright: ignore[reportUnknownVariableType]


def names_in(entry: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _is_bound(name: str, names: tuple[str, ...]) -> bool:
    try:
        lax.axis_size(name)
    except NameError as error:
        if name in _ONE_DEVICE.get():
            return False
        raise ValueError(
            f"Expected `axis_name` {_quoted(names)} to be an axis of an enclosing `jax.shard_map`, `jax.pmap` or "
            f"`jax.vmap`, but {name!r} is not bound here. Under `jit` with a sharded batch leave `axis_name=None`: "
            "statistics are global there. On a single device say so: "
            f"`with normlab.functional.one_device({name!r}):`."
        ) from error
    return True


def _check_groups(groups: tuple[tuple[int, ...], ...], names: tuple[str, ...]) -> None:
    size = lax.axis_size(names)
    if sorted(index for group in groups for index in group) != list(range(size)):
        raise ValueError(
            f"Expected `axis_index_groups` to hold every index of {_quoted(names)}, 0 to {size - 1}, once, got "
            f"{groups}."
        )
    if len({len(group) for group in groups}) != 1:
        raise ValueError(f"Expected groups of equal size in `axis_index_groups`, got {groups}.")


def _quoted(names: tuple[str, ...]) -> str:
    return repr(names[0] if len(names) == 1 else names)
