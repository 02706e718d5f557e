"""Filter response norm, EvoNorm and global response norm for Linen."""

from typing import Literal

from flax import linen as nn

from normlab._core.checks import AxisName
from normlab._core.reduction import Groups
from normlab.functional.responses.evonorm import EvoNormBatchLayer, EvoNormSampleLayer, OfBatch, OfExample
from normlab.functional.responses.frn import FRNLayer
from normlab.functional.responses.grn import GRNLayer
from normlab.linen._batch import BatchNorm
from normlab.linen._norm import Affine, Initializer
from normlab.linen._per_example import GroupNorm


class FRN(Affine):
    """Filter response norm; see `normlab.functional.frn`. Parameters are `scale`, `bias`, `tau`, and `e` where learned.

    Attributes:
        epsilon: Added to the mean square, inside the root.
        nonlinear: Whether the threshold `tau` follows; False where a branch ends.
        learn_epsilon: Whether `abs(e)` is added to epsilon, a single one or `per_feature`; one position is then enough.
        axis_name: Mapped axes over which the positions are spread.
        axis_index_groups: Sub-groups of devices along `axis_name`.
    """

    epsilon: float = 1e-6
    nonlinear: bool = True
    learn_epsilon: bool | Literal["per_feature"] = False
    axis_name: AxisName | None = None
    axis_index_groups: Groups | None = None

    use_fast_variance = False  # a mean square is one pass
    _kind = FRNLayer


class EvoNormBatch(BatchNorm):
    """EvoNorm over a batch; see `normlab.functional.evonorm_batch`.

    The fields of `BatchNorm`, then its own. Parameters are `scale`, `bias`, and `v` of `b0`; state is `var`.

    Attributes:
        variant: `b0`, `b1` or `b2`.
        nonlinear: Whether there is a division; False where a branch ends: scale and bias alone, no state.
    """

    variant: OfBatch = "b0"
    nonlinear: bool = True

    _kind = EvoNormBatchLayer


class EvoNormSample(GroupNorm):
    """EvoNorm over one example; see `normlab.functional.evonorm_sample`.

    The fields of `GroupNorm`, then its own. Parameters are `scale`, `bias`, and `v` of `s0`.

    Attributes:
        variant: `s0`, `s1` or `s2`.
        nonlinear: Whether there are a swish and a division; False where a branch ends: scale and bias alone.
    """

    epsilon: float = 1e-5
    variant: OfExample = "s0"
    nonlinear: bool = True

    _kind = EvoNormSampleLayer


class GRN(Affine):
    """Global response norm; see `normlab.functional.grn`. Scale and bias start at 0: the output is the input.

    Attributes:
        epsilon: Added to the mean response.
        axis_name: Mapped axes over which the positions are spread.
        axis_index_groups: Sub-groups of devices along `axis_name`.
    """

    scale_init: Initializer = nn.initializers.zeros
    epsilon: float = 1e-6
    axis_name: AxisName | None = None
    axis_index_groups: Groups | None = None

    use_fast_variance = False  # a sum of squares is one pass
    _kind = GRNLayer
