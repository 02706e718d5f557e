"""How far running statistics moved."""

from collections.abc import Mapping

import numpy as np
from jax import Array

from normlab.introspect.applied import Variables
from normlab.tools import leaves
from normlab.tools.moments import Form, Moments

__all__ = ["changes"]


def changes(moments: Moments, before: Variables, after: Variables) -> dict[str, float]:
    """Return how far the statistics of each norm moved, in standard deviations.

    Args:
        moments: Moments of the norms, which say where the statistics are.
        before: Variables, or a state of NNX.
        after: Others; their deviations are the unit.
    """
    old, new = leaves.by_path(before), leaves.by_path(after)
    moved: dict[str, float] = {}
    for path in moments:
        form, otherwise = moments.forms[path], np.sqrt(moments[path].var)
        (mean, std), (new_mean, new_std) = (_mean_and_std(form, tree, otherwise) for tree in (old, new))
        apart = np.maximum(np.abs(new_mean - mean), np.abs(new_std - std))
        unit = np.where(new_std > 0, new_std, 1)
        moved[path] = float((apart / unit).max(initial=_of_matrices(form, old, new)))
    return moved


def _of_matrices(form: Form, old: Mapping[str, Array | np.ndarray], new: Mapping[str, Array | np.ndarray]) -> float:
    """Return the largest change of a matrix of a whitening norm, each element beside those of its diagonal."""
    if "matrix" not in form.variables:
        return 0.0
    before, after = (np.asarray(tree[form.variables["matrix"]], np.float64) for tree in (old, new))
    size = np.sqrt(np.maximum(np.diagonal(after, axis1=-2, axis2=-1), 0))
    unit = size[..., :, None] * size[..., None, :]
    return float((np.abs(after - before) / np.where(unit > 0, unit, 1)).max(initial=0))


def _mean_and_std(
    form: Form, tree: Mapping[str, Array | np.ndarray], otherwise: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    kept = {name: np.asarray(tree[path], np.float64) for name, path in form.variables.items()}
    mean = kept.get("mean", np.zeros_like(otherwise))
    for square in ("var", "phi", "run"):
        if square in kept:
            return mean, np.sqrt(np.maximum(kept[square], 0))
    return mean, kept.get("std", otherwise)
