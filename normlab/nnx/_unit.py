"""L2 norm and local response norm for NNX."""

from collections.abc import Sequence
from typing import Unpack

from flax import nnx
from jax.typing import DTypeLike

from normlab._core.reduction import Axes
from normlab.functional.responses.l2_norm import L2NormLayer
from normlab.functional.responses.local_response import LocalResponseLayer
from normlab.nnx._norm import PerExample
from normlab.nnx._squashing import Magnitude, MagnitudeOptions


class L2Norm(Magnitude):
    """L2 norm; see `normlab.functional.l2_norm`. Parameters are `scale`, and `temperature`, a scalar, if asked for."""

    _kind = L2NormLayer

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        additive: bool = False,
        use_temperature: bool = False,
        temperature_init: float = 1.0,
        **options: Unpack[MagnitudeOptions],
    ) -> None:
        """Make the parameters.

        Args:
            num_features: Size of the feature axis, or of each.
            additive: Whether `epsilon` is added to the sum of squares, and no smallest length.
            use_temperature: Whether to multiply by a learned scalar.
            temperature_init: Its initial value.
            **options: See `MagnitudeOptions`.
        """
        own = {"additive": additive, "use_temperature": use_temperature, "temperature_init": temperature_init}
        super().__init__(num_features, **own, **options)


class LocalResponseNorm(PerExample):
    """Local response norm; see `normlab.functional.local_response`. It has no parameters."""

    _kind = LocalResponseLayer

    def __init__(
        self,
        num_features: int,
        *,
        dtype: DTypeLike | None = None,
        size: int = 5,
        alpha: float = 1e-4,
        beta: float = 0.75,
        k: float = 1.0,
        divide: bool = True,
        feature_axes: Axes = -1,
        rngs: nnx.Rngs,
    ) -> None:
        """Keep the options.

        Args:
            num_features: Size of the feature axis.
            dtype: Dtype of the output; `None` is that of the input.
            size: Features in a window.
            alpha: Weight of the squares.
            beta: Exponent.
            k: Added to the squares.
            divide: Whether to divide the sum of squares by `size`.
            feature_axes: The axis along which elements are neighbours.
            rngs: Not used.
        """
        own = {"size": size, "alpha": alpha, "beta": beta, "k": k, "divide": divide, "feature_axes": feature_axes}
        super().__init__(num_features, dtype=dtype, use_scale=False, use_bias=False, rngs=rngs, **own)
