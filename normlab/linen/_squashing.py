"""Dynamic tanh and its like for Linen."""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from normlab._core.checks import AxisName
from normlab._core.reduction import Axes, Groups
from normlab.functional.squashing.bhyt import BHyTLayer
from normlab.functional.squashing.derf import DerfLayer
from normlab.functional.squashing.dyt import DyTLayer
from normlab.functional.squashing.seednorm import SeeDNormLayer
from normlab.linen._norm import Affine, Initializer, PerExample


class DyT(Affine):
    """Dynamic tanh; see `normlab.functional.dyt`. Parameters are `alpha`, a scalar, and `scale` and `bias`.

    Attributes:
        alpha_init: Initial value of `alpha`.
        axis_name: Without effect, since there are no statistics; a network gives it to all norms alike.
    """

    alpha_init: float = 0.5
    axis_name: AxisName | None = None

    _kind = DyTLayer


class Derf(Affine):
    """Dynamic erf; see `normlab.functional.derf`. Parameters are `alpha` and `shift`, scalars, `scale` and `bias`.

    Attributes:
        alpha_init: Initial value of `alpha`.
        shift_init: Initial value of `shift`.
        axis_name: Without effect, since there are no statistics; a network gives it to all norms alike.
    """

    alpha_init: float = 0.5
    shift_init: float = 0.0
    axis_name: AxisName | None = None

    _kind = DerfLayer


class Magnitude(PerExample):
    """Fields of norms by the size of an example's features, before their own; they have no bias."""

    epsilon: float = 1e-6
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_scale: bool = True
    scale_init: Initializer = nn.initializers.ones
    reduction_axes: Axes = -1
    feature_axes: Axes = -1
    axis_name: AxisName | None = None
    axis_index_groups: Groups | None = None


class SeeDNorm(Magnitude):
    """SeeDNorm; see `normlab.functional.seednorm`. Parameters are `alpha`, `beta` and `scale`, one for each feature.

    Attributes:
        num_heads: Groups of neighbouring features, each with a sum of its own within the tangent.
    """

    num_heads: int = 1

    _kind = SeeDNormLayer


class BHyT(Magnitude):
    """BHyT; see `normlab.functional.bhyt`. Parameters are `lam`, a scalar, and `scale`.

    Attributes:
        bound: Constant factor within the tangent.
        lam_init: Initial value of `lam`.
        learn_lam: Whether `lam` is a parameter, and not the constant `lam_init`.
    """

    bound: float = 0.1
    lam_init: float = 2.0
    learn_lam: bool = True

    _kind = BHyTLayer
