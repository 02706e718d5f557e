"""Decide where each norm goes."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from normlab.tools.folding.affine import Affine
from normlab.tools.folding.kernels import Weights, into_input, into_output
from normlab.tools.folding.network import Network, affine_at
from normlab.tools.folding.reasons import not_affine, not_before, not_behind
from normlab.tools.folding.report import How
from normlab.tools.sites import Site

__all__ = ["GONE", "Decision", "Form", "Planner", "folded_weights"]

Form = Literal["model", "variables"]

GONE: Collection[How] = ("identity", "bias", "affine")
"""Fates of norms that run no more."""


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

    @property
    def is_gone(self) -> bool:
        """Return whether the norm runs no more."""
        return self.how in GONE


@dataclass(frozen=True)
class Planner:
    """Decides where each norm goes.

    Attributes:
        network: The network.
        chosen: Paths of the norms that may be folded.
        form: Whether norms may disappear.
        follow: Whether a norm may go into the layer behind it.
    """

    network: Network
    chosen: frozenset[str]
    form: Form
    follow: bool

    def plan(self, refused: Mapping[str, str]) -> list[Decision]:
        """Decide where each norm goes.

        Args:
            refused: Reasons against norms that are not to be folded, by path.
        """
        decisions = [self._before(site, refused) for site in self.network.sites]
        holders = {one.into for one in decisions if one.into}
        return [self._behind(one, holders) if self.follow else one for one in decisions]

    def _before(self, site: Site, refused: Mapping[str, str]) -> Decision:
        """Decide on a norm for the layer before it."""
        if site.path in refused:
            return Decision(site, "kept", reason=refused[site.path])
        if site.path not in self.chosen:
            return Decision(site, "kept", reason=f"`{site.path}` is not chosen by `where`.")
        gone = self.form == "model"
        if reason := not_affine(site, self.network):
            return Decision(site, "kept", reason=reason)
        if site.kind == "none":
            return Decision(site, "identity" if gone else "variables")
        affine = affine_at(self.network, site)
        if affine.is_identity and gone:
            return Decision(site, "identity", affine)
        if reason := not_before(site, self.network) or self._no_place(site):
            return Decision(site, "affine" if gone else "kept", affine, reason=reason)
        return Decision(site, self._how(site), affine, site.before.path)

    def _how(self, site: Site) -> How:
        """Return how a norm is folded into the layer before it."""
        if self.form == "variables":
            return "variables"
        return "identity" if self._holds(site.before.path) else "bias"

    def _holds(self, layer: str) -> bool:
        """Return whether a layer has a place for a shift."""
        return self.network.read(layer, "bias") is not None or self.network.kernel_name(layer) == "embedding"

    def _no_place(self, site: Site) -> str:
        """Return why a shift finds no place in a model whose modules are to stay."""
        layer = site.before.path
        if self.form == "model" or self._holds(layer) or self.network.read(site.path, "bias") is not None:
            return ""
        return f"Neither `{site.path}` nor `{layer}` has a bias to take up the shift."

    def _behind(self, decision: Decision, holders: Collection[str]) -> Decision:
        """Decide on a norm that no layer before it takes up, for the layer behind it."""
        site, affine, after = decision.site, decision.affine, decision.site.after
        if affine is None or not decision.reason or site.calls > 1:
            return decision
        if len(after) != 1 or after[0].kind != "linear":
            return decision
        layer = after[0].path
        if reason := not_behind(site, self.network, affine) or self._no_bias(layer, affine, holders):
            return replace(decision, reason=f"{decision.reason} {reason}")
        return Decision(site, "identity" if self.form == "model" else "variables", affine, layer, "input")

    def _no_bias(self, layer: str, affine: Affine, holders: Collection[str]) -> str:
        """Return why the shift of a norm has no place in the layer behind it."""
        held = self._holds(layer) or layer in holders or self.network.takes_bias(layer)
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
