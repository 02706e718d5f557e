"""Learned factors of the branches of residual networks, with which they train without norms, or deeper.

References:
    De & Smith. Batch Normalization Biases Residual Blocks Towards the Identity Function in Deep Networks. NeurIPS 2020
        (`skipinit`). https://arxiv.org/abs/2002.10444
    Bachlechner et al. ReZero is All You Need. UAI 2021 (`rezero`). https://arxiv.org/abs/2003.04887
    Touvron et al. Going deeper with Image Transformers. ICCV 2021 (`layer_scale`). https://arxiv.org/abs/2103.17239
"""

from typing import Literal, get_args

import jax
from flax import linen as nn

from normlab.errors import nearest
from normlab.norms import Norm

__all__ = ["LAYER_SCALE", "Residual", "check_no_norm", "check_residual", "weighted"]

Residual = Literal["none", "rezero", "skipinit", "layer_scale"]
"""Factor of each branch: none; a number from 0 on, without or with biases in the branch; a number for each feature."""

LAYER_SCALE = 1e-5
"""Initial factor of `layer_scale`."""


def weighted(module: nn.Module, residual: Residual, name: str, branch: jax.Array) -> jax.Array:
    """Multiply the output of a branch by its learned factor, in a compact method.

    Args:
        module: The module whose parameter the factor is.
        residual: Its kind.
        name: Its name.
        branch: Output of the branch, `[..., features]`.
    """
    if residual == "none":
        return branch
    shape, start = (branch.shape[-1:], LAYER_SCALE) if residual == "layer_scale" else ((), 0.0)
    return branch * module.param(name, nn.initializers.constant(start), shape)


def check_residual(residual: str) -> None:
    """Raise a `ValueError` unless a kind of factor is known."""
    known = get_args(Residual)
    if residual not in known:
        raise ValueError(
            f"Expected `residual` to be one of {', '.join(known)}, got {residual!r}. {nearest(residual, known)}"
        )


def check_no_norm(norm: Norm) -> None:
    """Raise a `ValueError` unless a network that is made without norms was given `none`."""
    if norm.name != "none":
        raise ValueError(f"Expected the norm 'none' in a network without norms, got {str(norm)!r}.")
