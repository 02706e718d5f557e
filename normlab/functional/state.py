"""State by name: all of it and nothing else, and batch norm's as batch renorm's."""

from collections.abc import Collection, Mapping
from typing import Any, cast

import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from normlab._core.dtypes import float32_or_wider

Tree = Mapping[str, Any]
"""Statistics of a model: arrays by name, in mappings by the names of modules."""

NewTree = dict[str, Any]
"""Statistics that a caller may change."""

_CONVERTED = {
    ("std", "var"): "Convert a batch norm's by `normlab.functional.as_batch_renorm`.",
    ("var", "std"): "Convert a batch renorm's by `normlab.functional.as_batch_norm`.",
}


def check_state(kind: str, found: Collection[str], needed: Collection[str], known: Collection[str]) -> None:
    """Raise a `ValueError` unless the names of a norm's state are all that is needed, and none that is not known.

    Args:
        kind: The norm, for the message.
        found: Names that are there.
        needed: Names that must be.
        known: Names that may be.
    """
    missing = [name for name in needed if name not in found]
    unknown = sorted(set(found) - set(known))
    if not (missing or unknown):
        return
    faults = [f"{_listed(names)} {fault}" for names, fault in ((missing, "missing"), (unknown, "unknown")) if names]
    remedy = "Give all of it and nothing else, or none of it to start anew."
    if missing == ["step"] and not unknown:
        remedy = (
            "Add `step`, the number of updates behind the averages, as an int32: options depend on it, and 0 would "
            "take them for initial ones."
        )
    for (ours, theirs), conversion in _CONVERTED.items():
        if ours in needed and theirs in unknown:
            remedy = conversion
    raise ValueError(f"Expected the state of {kind} to be {_listed(needed)}, got {' and '.join(faults)}. {remedy}")


def as_batch_renorm(batch_stats: Tree, *, epsilon: float = 1e-5, step: ArrayLike = 1) -> NewTree:
    """Turn running statistics of batch norms into those of batch renorms: `std = sqrt(var + epsilon)`.

    Args:
        batch_stats: Linen's `batch_stats`, or the pure dict of NNX's `BatchStat` variables: of a norm or of a model, in
            which what is no batch norm stays as it is.
        epsilon: The `epsilon` of the norms.
        step: Updates behind the averages, where they do not say, one for each of stacked models; schedules resume from
            it. At 0 the options `momentum=None` and `initialize_from_first_batch` take averages for initial ones.

    Returns:
        The same tree, with `mean`, `std` and `step` in place of `mean` and `var`.

    Example:
        >>> as_batch_renorm({"norm": {"mean": jnp.zeros(1), "var": jnp.full(1, 4.0)}}, epsilon=0.0)["norm"]["std"]
        Array([2.], dtype=float32)
    """

    def convert(stats: Tree) -> NewTree:
        std = jnp.sqrt(_wide(stats["var"]) + epsilon)
        return {"mean": stats["mean"], "std": std, "step": stats.get("step", jnp.asarray(step, jnp.int32))}

    return _converted(batch_stats, "var", convert)


def as_batch_norm(batch_stats: Tree, *, epsilon: float = 1e-5, step: bool = False) -> NewTree:
    """Turn running statistics of batch renorms into those of batch norms: `var = std^2 - epsilon`, at least 0.

    Args:
        batch_stats: See `as_batch_renorm`.
        epsilon: The `epsilon` of the norms.
        step: Whether `step` is kept, for norms whose `momentum` is a function or `None`.

    Returns:
        The same tree, with `mean` and `var` in place of `mean`, `std` and `step`.

    Example:
        >>> as_batch_norm({"mean": jnp.zeros(1), "std": jnp.full(1, 2.0), "step": jnp.int32(7)}, epsilon=0.0)["var"]
        Array([4.], dtype=float32)
    """

    def convert(stats: Tree) -> NewTree:
        var = jnp.maximum(lax.square(_wide(stats["std"])) - epsilon, 0)
        return {"mean": stats["mean"], "var": var, **({"step": stats["step"]} if step else {})}

    return _converted(batch_stats, "std", convert)


def _converted(tree: Tree, spread: str, convert: Any) -> NewTree:
    """The tree with what holds exactly `mean` and `spread`, and perhaps `step`, converted."""
    if {"mean", spread} <= tree.keys() <= {"mean", spread, "step"}:
        return convert(tree)
    return {k: _converted(cast(Tree, v), spread, convert) if isinstance(v, Mapping) else v for k, v in tree.items()}


def _wide(array: Any) -> Array:
    return float32_or_wider(jnp.asarray(array))


def _listed(names: Collection[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
