"""L2 norm and local response norm for Linen."""

from jax.typing import DTypeLike

from normlab._core.reduction import Axes
from normlab.functional.responses.l2_norm import L2NormLayer
from normlab.functional.responses.local_response import LocalResponseLayer
from normlab.linen._norm import PerExample
from normlab.linen._squashing import Magnitude


class L2Norm(Magnitude):
    """L2 norm; see `normlab.functional.l2_norm`. Parameters are `scale`, and `temperature`, a scalar, if asked for.

    Attributes:
        epsilon: Smallest length; where `additive`, added to the sum of squares.
        additive: Whether `epsilon` is added to the sum of squares, and no smallest length.
        use_temperature: Whether to multiply by a learned scalar.
        temperature_init: Its initial value.
    """

    epsilon: float = 1e-12
    additive: bool = False
    use_temperature: bool = False
    temperature_init: float = 1.0

    _kind = L2NormLayer


class LocalResponseNorm(PerExample):
    """Local response norm; see `normlab.functional.local_response`. It has no parameters.

    Attributes:
        dtype: Dtype of the output; `None` is that of the input.
        size: Features in a window.
        alpha: Weight of the squares.
        beta: Exponent.
        k: Added to the squares.
        divide: Whether to divide the sum of squares by `size`.
        feature_axes: The axis along which elements are neighbours.
    """

    dtype: DTypeLike | None = None
    size: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 1.0
    divide: bool = True
    feature_axes: Axes = -1

    _kind = LocalResponseLayer
