"""Norms of kernels: they normalize the weights of a layer and not its activations. One norm in each file."""

from normlab.functional.kernels.centralize import Centralize, centralize
from normlab.functional.kernels.kernel_norm import KernelNorm, Unchanged
from normlab.functional.kernels.registry import get, kinds, names, register, stateless, unregister
from normlab.functional.kernels.scaled_standardize import ACTIVATION_GAINS, ScaledStandardize, scaled_standardize
from normlab.functional.kernels.spectral_norm import SpectralNorm, initial_u, spectral_norm
from normlab.functional.kernels.standardize import Standardize, standardize
from normlab.functional.kernels.weight_norm import WeightNorm, column_norms, fit_to_batch, weight_norm

__all__ = [
    "ACTIVATION_GAINS",
    "Centralize",
    "KernelNorm",
    "ScaledStandardize",
    "SpectralNorm",
    "Standardize",
    "Unchanged",
    "WeightNorm",
    "centralize",
    "column_norms",
    "fit_to_batch",
    "get",
    "initial_u",
    "kinds",
    "names",
    "register",
    "scaled_standardize",
    "spectral_norm",
    "standardize",
    "stateless",
    "unregister",
    "weight_norm",
]

for _kind in (Unchanged, Standardize, ScaledStandardize, Centralize, WeightNorm, SpectralNorm):
    register(_kind)
