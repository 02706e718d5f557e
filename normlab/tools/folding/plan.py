"""Decide where each norm goes."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from normlab.tools.folding.affine import Affine
from normlab.tools.folding.kernels import Weights, into_input, into_output
from normlab.tools.folding.network import Network, affine_at
from normlab.tools.folding.reasons import not_affine, not_before, not_behind
from normlab.tools.folding.report import How
from normlab.tools.sites import Site

__all__ = ["Decision", "Form", "folded_weights", "plan"]

Form = Literal["model", "variables"]


@dataclass(frozen=True)
class Decision:
    """Fate of one norm.

    Attributes:
        site: The norm.
        how: See `normlab.tools.folding.report.How`.
        affine: The norm as a map; `None` where it is none.
        into: Path of the layer that takes it up.
        side: Whether this layer is before the norm (`output`) or behind it (`input`).
        reason: Why no layer takes it up.
    """

    site: Site
    how: How
    affine: Affine | None = None
    into: str = ""
    side: Literal["output", "input"] = "output"
    reason: str = ""


def plan(
    network: Network, chosen: Collection[str], *, form: Form, follow: bool, refused: Mapping[str, str]
) -> list[Decision]:
    """Decide where each norm goes.

    Args:
        network: The network.
        chosen: Paths of the norms that may be folded.
        form: Whether norms may disappear.
        follow: Whether a norm may go into the layer behind it.
        refused: Reasons against norms that are not to be folded, by path.
    """
    decisions: list[Decision] = []
    for site in network.sites:
        refusal = refused.get(site.path, "" if site.path in chosen else f"`{site.path}` is not chosen by `where`.")
        decisions.append(Decision(site, "kept", reason=refusal) if refusal else _decided(site, network, form))
    if form == "variables":
        decisions = [_within_variables(one, network) for one in decisions]
    holders = {one.into: one.site.path for one in decisions if one.into}
    return [_followed(one, network, form, holders) if follow else one for one in decisions]


def _decided(site: Site, network: Network, form: Form) -> Decision:
    """Decide on a norm for the layer before it."""
    seen = network.seen.get(site.path)
    if site.kind == "none" and not (seen and seen.given):
        return Decision(site, "identity" if form == "model" else "variables")
    if reason := not_affine(site, network):
        return Decision(site, "kept", reason=reason)
    affine = affine_at(network, site)
    if affine.is_identity and form == "model":
        return Decision(site, "identity", affine)
    if reason := not_before(site, network):
        return Decision(site, "affine" if form == "model" else "kept", affine, reason=reason)
    return Decision(site, _how(network, site.before.path), affine, site.before.path)


def _how(network: Network, layer: str) -> How:
    """Return whether a shift has to find another place than the layer before the norm."""
    held = network.read(layer, "bias") is not None or network.kernel_name(layer) == "embedding"
    return "identity" if held else "bias"


def _within_variables(decision: Decision, network: Network) -> Decision:
    """Keep the norm of a decision, where it can add its shift."""
    if not decision.into:
        return decision
    path = decision.site.path
    if decision.how == "bias" and network.read(path, "bias") is None:
        reason = f"Neither `{path}` nor `{decision.into}` has a bias to take up the shift."
        return Decision(decision.site, "kept", decision.affine, reason=reason)
    return Decision(decision.site, "variables", decision.affine, decision.into)


def _followed(decision: Decision, network: Network, form: Form, holders: Mapping[str, str]) -> Decision:
    """Decide on a norm that no layer before it takes up, for the layer behind it."""
    site, affine = decision.site, decision.affine
    if affine is None or not decision.reason:
        return decision
    direct = len(site.after) == 1 and site.after[0].kind == "linear"
    reason = not_behind(site, network, affine)
    if direct and not reason:
        reason = _no_bias(site.after[0].path, network, affine, holders)
    if not reason:
        return Decision(site, "identity" if form == "model" else "variables", affine, site.after[0].path, "input")
    both = f"{decision.reason} {reason}" if direct else decision.reason
    return Decision(site, decision.how, affine, reason=both)


def _no_bias(layer: str, network: Network, affine: Affine, holders: Mapping[str, str]) -> str:
    """Return why the shift of a norm has no place in the layer behind it."""
    held = network.read(layer, "bias") is not None or layer in holders or network.takes_bias(layer)
    return "" if held or not affine.shift.any() else f"`{layer}` has no bias to take up the shift."


def folded_weights(decisions: Collection[Decision], network: Network) -> dict[str, Weights]:
    """Return new weights by the path of the layer."""
    weights: dict[str, Weights] = {}
    for one in decisions:
        if not one.into or one.affine is None:
            continue
        layout = network.layout(one.into)
        assert layout is not None
        before = weights.get(one.into) or network.weights(one.into)
        fold = into_output if one.side == "output" else into_input
        weights[one.into] = fold(before, one.affine, layout)
    return {path: _without_zeros(new, network.read(path, "bias") is None) for path, new in weights.items()}


def _without_zeros(weights: Weights, had_none: bool) -> Weights:
    """Leave out a bias of zeros of a layer that had none."""
    empty = had_none and weights.bias is not None and not np.any(weights.bias)
    return Weights(weights.kernel, None) if empty else weights
