"""Dynamic tanh and its like for NNX."""

from collections.abc import Sequence
from typing import Any, Required, TypedDict, Unpack

from flax import nnx
from jax.typing import DTypeLike

from normlab._core.checks import AxisName
from normlab._core.reduction import Axes, Groups
from normlab.functional.squashing.bhyt import BHyTLayer
from normlab.functional.squashing.derf import DerfLayer
from normlab.functional.squashing.dyt import DyTLayer
from normlab.functional.squashing.seednorm import SeeDNormLayer
from normlab.nnx._norm import Initializer, Metadata, PerExample, groups_of
from normlab.nnx._per_example import PerExampleOptions


class DyT(PerExample):
    """Dynamic tanh; see `normlab.functional.dyt`. Parameters are `alpha`, a scalar, and `scale` and `bias`."""

    _kind = DyTLayer

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        alpha_init: float = 0.5,
        axis_name: AxisName | None = None,
        **options: Unpack[PerExampleOptions],
    ) -> None:
        """Make the parameters; `alpha` starts at `alpha_init`, and `axis_name` is without effect."""
        super().__init__(num_features, alpha_init=alpha_init, axis_name=axis_name, **options)


class Derf(PerExample):
    """Dynamic erf; see `normlab.functional.derf`. Parameters are `alpha` and `shift`, scalars, `scale` and `bias`."""

    _kind = DerfLayer

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        alpha_init: float = 0.5,
        shift_init: float = 0.0,
        axis_name: AxisName | None = None,
        **options: Unpack[PerExampleOptions],
    ) -> None:
        """Make the parameters; they start at `alpha_init` and `shift_init`, and `axis_name` is without effect."""
        initial = {"alpha_init": alpha_init, "shift_init": shift_init}
        super().__init__(num_features, axis_name=axis_name, **initial, **options)


class MagnitudeOptions(TypedDict, total=False):
    """Options of norms by the size of an example's features, which have no bias.

    Attributes:
        rngs: Random streams; `params` is used.
        epsilon: Keeps the divisor from 0.
        dtype: Dtype of the output; `None`, the default, promotes input and parameters.
        param_dtype: Dtype of the parameters; float32 by default.
        use_scale: Whether there is a scale; True by default.
        scale_init: Initializer of the scale.
        scale_metadata: Metadata of the scale variable, such as sharding.
        reduction_axes: Axes reduced; the last by default.
        feature_axes: Axes along which the parameters vary; the last by default.
        axis_name: Mapped axes over which the features are spread.
        axis_index_groups: Sub-groups of devices along `axis_name`.
    """

    rngs: Required[nnx.Rngs]
    epsilon: float
    dtype: DTypeLike | None
    param_dtype: DTypeLike
    use_scale: bool
    scale_init: Initializer
    scale_metadata: Metadata
    reduction_axes: Axes
    feature_axes: Axes
    axis_name: AxisName | None
    axis_index_groups: Groups | None


class Magnitude(PerExample):
    """The base of norms by the size of an example's features."""

    def __init__(
        self, num_features: int | Sequence[int], *, axis_index_groups: Groups | None = None, **options: Any
    ) -> None:
        """Make the parameters; see `MagnitudeOptions`."""
        groups = groups_of(axis_index_groups)
        super().__init__(num_features, use_bias=False, axis_index_groups=groups, **options)


class SeeDNorm(Magnitude):
    """SeeDNorm; see `normlab.functional.seednorm`. Parameters are `alpha`, `beta` and `scale`, one for each feature."""

    _kind = SeeDNormLayer

    def __init__(
        self, num_features: int | Sequence[int], *, num_heads: int = 1, **options: Unpack[MagnitudeOptions]
    ) -> None:
        """Make the parameters; with `num_heads`, groups of neighbouring features have a sum each."""
        super().__init__(num_features, num_heads=num_heads, **options)


class BHyT(Magnitude):
    """BHyT; see `normlab.functional.bhyt`. Parameters are `lam`, a scalar, and `scale`."""

    _kind = BHyTLayer

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        bound: float = 0.1,
        lam_init: float = 2.0,
        learn_lam: bool = True,
        **options: Unpack[MagnitudeOptions],
    ) -> None:
        """Make the parameters; `lam` starts at `lam_init`, and stays there unless `learn_lam`."""
        own = {"bound": bound, "lam_init": lam_init, "learn_lam": learn_lam}
        super().__init__(num_features, **own, **options)
