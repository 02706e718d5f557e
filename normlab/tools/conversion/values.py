"""The values of a new norm's variables: those of the old one, or their start."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from normlab.tools.conversion.targets import same_family

__all__ = ["Before", "Values", "advice", "new_values", "started"]

_AFFINE = ("scale", "bias")
_STARTS = {"scale": 1, "bias": 0, "mean": 0, "var": 1, "std": 1, "step": 0}
_SOURCES = {"std": "var", "var": "std"}
_NO_STATISTICS = "The running statistics start at 0 and 1: run `tools.precise` before evaluation."
_WARM_UP = "Start with `r_max=1, d_max=0`, then let them grow, as `normlab.norms.Ramp` does."


@dataclass(frozen=True)
class Before:
    """The norm that had the place.

    Attributes:
        kind: Its kind.
        epsilon: Its epsilon.
        values: The values of its variables by name.
    """

    kind: str
    epsilon: float
    values: Mapping[str, Array]


@dataclass(frozen=True)
class Values:
    """The values of a new norm's variables.

    Attributes:
        values: Values by name.
        sources: For each value that was carried, the name of the old variable.
        notes: Sentences on what else to do.
    """

    values: Mapping[str, Array]
    sources: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def fresh(self) -> tuple[str, ...]:
        """Names of the variables that start anew."""
        return tuple(name for name in self.values if name not in self.sources)


def new_values(before: Before, kind: str, epsilon: float, starts: Mapping[str, Array], keep: Collection[str]) -> Values:
    """Return the values of a new norm's variables.

    A batch renorm keeps the deviation `std = sqrt(var + epsilon)` where a batch norm keeps the variance.

    Args:
        before: The old norm.
        kind: Kind of the new norm.
        epsilon: Epsilon of the new norm.
        starts: Values with which the new norm's variables start, by name.
        keep: With `affine` among them, scale and bias are carried between kinds, too.
    """
    family = same_family(before.kind, kind)
    values: dict[str, Array] = {}
    sources: dict[str, str] = {}
    notes: list[str] = []
    for name in sorted(starts, key=_order):
        start = starts[name]
        source = name if name in before.values else _SOURCES.get(name, name) if family else name
        carried = family or (name in _AFFINE and "affine" in keep)
        old = before.values.get(source) if carried else None
        if old is None or old.shape != start.shape:
            values[name] = start
            continue
        values[name], sources[name] = _in_form(name, source, old, before.epsilon, epsilon), source
        if name == "var" and source == "std" and bool(jnp.any(jnp.square(old) < epsilon)):
            notes.append("A deviation was smaller than the root of epsilon: its variance is 0.")
    if any(name in values and name not in sources for name in ("mean", "var", "std")):
        notes.append(_NO_STATISTICS)
    return Values(values, sources, tuple(notes))


def _order(name: str) -> int:
    return [*_STARTS].index(name) if name in _STARTS else len(_STARTS)


def _in_form(name: str, source: str, old: Array, before: float, after: float) -> Array:
    """Return a statistic in the form of the new norm."""
    if name == source:
        return old
    wide = old.astype(jnp.promote_types(old.dtype, jnp.float32))
    return jnp.sqrt(wide + before) if name == "std" else jnp.maximum(jnp.square(wide) - after, 0)


def started(shapes: Mapping[str, jax.ShapeDtypeStruct], extra: tuple[int, ...]) -> dict[str, Array] | None:
    """Return the values with which variables start; `None` where a norm has others than the usual ones.

    Args:
        shapes: Shapes by name, of one norm.
        extra: Leading axes along which norms are stacked.
    """
    if not shapes.keys() <= _STARTS.keys():
        return None
    return {name: jnp.full((*extra, *shape.shape), _STARTS[name], shape.dtype) for name, shape in shapes.items()}


def advice(before: str, after: str, norm: object, values: Values) -> tuple[str, ...]:
    """Return what else to do once a norm of one kind is of another."""
    ramped = all(callable(getattr(norm, name, None)) for name in ("r_max", "d_max"))
    warm_up = after == "batch_renorm" != before and not ramped
    return (*values.notes, *[_WARM_UP] * warm_up)
