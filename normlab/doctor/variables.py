"""The variables of a model's norms: running statistics, scales and biases."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from jax import Array

from normlab.introspect.applied import Variables
from normlab.tools import Site, leaves
from normlab.tools.estimation.estimated import is_moments

__all__ = ["NormVariables"]


class NormVariables:
    """The numbers that the norms of a model keep, as the model was given."""

    def __init__(self, variables: Variables | None, sites: Sequence[Site]) -> None:
        """Take the variables of a model, `None` where only shapes are known, and its norms."""
        self._variables, self._sites = variables, sites

    def running(self, site: Site) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the running mean and variance of a norm; `None` where it keeps none, or not both."""
        names = site.variables
        if not is_moments(site) or not {"var", "std"} & names.keys() or self._variables is None:
            return None
        there = self.leaves
        mean = np.asarray(there[names["mean"]], np.float64)
        if "var" in names:
            return mean, np.asarray(there[names["var"]], np.float64)
        epsilon = float(getattr(site.module, "epsilon", 0.0))
        return mean, np.maximum(np.square(np.asarray(there[names["std"]], np.float64)) - epsilon, 0)

    @functools.cached_property
    def leaves(self) -> Mapping[str, Array | np.ndarray]:
        """Variables by path."""
        return dict(leaves.by_path(self._variables))

    def parameter(self, site: Site, role: str) -> np.ndarray | None:
        """Return a variable of a norm; `None` where it has none."""
        name = site.variables.get(role)
        return None if name is None or name not in self.leaves else np.asarray(self.leaves[name], np.float64)

    @functools.cached_property
    def untouched(self) -> bool:
        """True if the model is as it was initialized: statistics 0 and 1, scales and biases constant."""
        return all(self.is_fresh(site) and not self.has_learned(site) for site in self._sites)

    def is_fresh(self, site: Site) -> bool:
        """Return whether the running statistics of a norm, if it has any, are mean 0 and variance 1."""
        running = self.running(site)
        if running is None:
            return True
        mean, var = running
        return not mean.any() and np.allclose(var, 1, rtol=0, atol=1e-4)

    def has_learned(self, site: Site) -> bool:
        """Return whether the scale or the bias of a norm differs between its features, as none does at the start."""
        values = [self.parameter(site, role) for role in ("scale", "bias")]
        return any(one is not None and one.size > 1 and np.ptp(one) > 0 for one in values)
