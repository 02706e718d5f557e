"""Batch and group whitening for Linen."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from normlab._core.checks import AxisName
from normlab.functional.batch_norm import Momentum
from normlab.functional.whitening.group_whiten import GroupWhitenLayer
from normlab.functional.whitening.whiten import Average, WhitenLayer
from normlab.linen._norm import Initializer, PerExample, Stateful


class Whiten(Stateful):
    """Batch whitening; see `normlab.functional.whiten`. `batch_stats` holds `mean`, `matrix` and perhaps `step`.

    The fields of `BatchNorm` that apply, then those of whitening. State is not updated during `init`.

    Attributes:
        axis: Feature axis; the others are reduced.
        epsilon: Added to the diagonal of the covariance.
        group_size: Features per group, which must divide them.
        steps: Steps of Newton's iteration.
        exact: Whether to decompose the covariance instead.
        average: Running average that whitens at evaluation: `matrix`, or the root of that of the `covariance`.
        allow: Whether a group may have as many features as there are elements.
    """

    use_running_average: bool | None = None
    axis: int = -1
    momentum: Momentum = 0.99
    epsilon: float = 1e-5
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones
    axis_name: AxisName | None = None
    axis_index_groups: Sequence[Sequence[int]] | None = None
    group_size: int = 64
    steps: int = 5
    exact: bool = False
    average: Average = "matrix"
    ghost_batch_size: int | None = None
    allow: bool = False

    _kind = WhitenLayer


class GroupWhiten(PerExample):
    """Group whitening; see `normlab.functional.group_whiten`.

    Attributes:
        num_groups: Number of groups of neighbouring features, which must divide them.
        epsilon: Added to the diagonal of the covariance.
        steps: Steps of Newton's iteration.
        exact: Whether to decompose the covariance instead.
        allow: Whether a group may have no more elements than there are groups.
    """

    num_groups: int = 32
    epsilon: float = 1e-5
    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones
    axis_name: AxisName | None = None
    axis_index_groups: Sequence[Sequence[int]] | None = None
    steps: int = 5
    exact: bool = False
    allow: bool = False

    _kind = GroupWhitenLayer
