"""New values of a network's variables after a fold, by module and name."""

from collections.abc import Collection
from typing import TypeAlias

import numpy as np

from normlab.tools.folding.affine import Affine, Numbers
from normlab.tools.folding.kernels import Weights
from normlab.tools.folding.network import Network
from normlab.tools.folding.plan import Decision, folded_weights

__all__ = ["Values", "new_values"]

Values: TypeAlias = dict[str, Numbers]


def new_values(decisions: Collection[Decision], network: Network) -> dict[str, Values]:
    """Return the values that a fold changes or adds, by the path of the module and the name of the variable.

    A layer without a bias that cannot be given one leaves it to the norm whose outputs it computes.

    Args:
        decisions: Fates of the norms.
        network: The network before the fold.
    """
    values: dict[str, Values] = {}
    weights = folded_weights(decisions, network)
    norms = {one.into: one for one in decisions if one.into and one.side == "output"}
    for path, new in weights.items():
        values[path] = {network.kernel_name(path): new.kernel}
        norm = norms.get(path)
        for owner, bias in _biases(path, new, norm, network).items():
            values.setdefault(owner, {})["bias"] = bias
    for one in decisions:
        if one.how == "variables" and one.affine is not None:
            values[one.site.path] = _still(one, network) | values.get(one.site.path, {})
        elif one.how == "affine" and one.affine is not None:
            values[one.site.path] = {"scale": one.affine.factor, "bias": one.affine.shift}
    return values


def _biases(path: str, weights: Weights, norm: Decision | None, network: Network) -> Values:
    """Return which module takes up which bias."""
    bias = weights.bias
    if bias is None:
        return {}
    held = network.read(path, "bias") is not None
    if norm is None or norm.affine is None or norm.how == "identity" or network.takes_bias(path):
        return {path: bias}
    if norm.how == "variables" and held:
        if network.read(norm.site.path, "bias") is None:
            return {path: bias}
        return {path: bias - norm.affine.shift, norm.site.path: norm.affine.shift}
    return {norm.site.path: bias}


def _still(decision: Decision, network: Network) -> Values:
    """Return the values of a norm that is to change nothing: mean 0, variance 1 less `epsilon`, scale 1, bias 0."""
    path, site = decision.site.path, decision.site
    shape = _shape(decision.affine)
    found: Values = {"mean": np.zeros(shape)}
    if network.read(path, "std") is not None:
        found["std"] = np.ones(shape)
    else:
        found["var"] = np.full(shape, 1 - site.module.epsilon)
    for name, value in (("scale", 1.0), ("bias", 0.0)):
        if network.read(path, name) is not None:
            found[name] = np.full(shape, value)
    return found


def _shape(affine: Affine | None) -> tuple[int, ...]:
    assert affine is not None
    return affine.factor.shape
