"""Filter response norm, EvoNorm and global response norm for NNX."""

from collections.abc import Sequence
from typing import Any, Literal, Unpack

from flax import nnx

from normlab._core.checks import AxisName
from normlab._core.reduction import Groups
from normlab.functional.responses.evonorm import EvoNormBatchLayer, EvoNormSampleLayer, OfBatch, OfExample
from normlab.functional.responses.frn import FRNLayer
from normlab.functional.responses.grn import GRNLayer
from normlab.nnx._batch import BatchNorm, BatchNormOptions
from normlab.nnx._norm import PerExample, groups_of, zeros
from normlab.nnx._per_example import GroupNorm, PerExampleOptions


class FRN(PerExample):
    """Filter response norm; see `normlab.functional.frn`. Parameters: `scale`, `bias`, `tau`; `e` where learned."""

    _kind = FRNLayer

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        epsilon: float = 1e-6,
        nonlinear: bool = True,
        learn_epsilon: bool | Literal["per_feature"] = False,
        axis_name: AxisName | None = None,
        axis_index_groups: Groups | None = None,
        **options: Unpack[PerExampleOptions],
    ) -> None:
        """Make the parameters.

        Args:
            num_features: Size of the feature axis, or of each.
            epsilon: Added to the mean square, inside the root.
            nonlinear: Whether the threshold `tau` follows; False where a branch ends.
            learn_epsilon: Whether `abs(e)` is added to epsilon, a single one or `per_feature`.
            axis_name: Mapped axes over which the positions are spread.
            axis_index_groups: Sub-groups of devices along `axis_name`.
            **options: Those of all norms of one example.
        """
        super().__init__(
            num_features,
            epsilon=epsilon,
            nonlinear=nonlinear,
            learn_epsilon=learn_epsilon,
            axis_name=axis_name,
            axis_index_groups=groups_of(axis_index_groups),
            **options,
        )


class EvoNormBatch(BatchNorm):
    """EvoNorm over a batch; see `normlab.functional.evonorm_batch`: `scale`, `bias`, `v` of `b0`, and state `var`."""

    _kind = EvoNormBatchLayer

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        variant: OfBatch = "b0",
        nonlinear: bool = True,
        rngs: nnx.Rngs,
        **options: Unpack[BatchNormOptions],
    ) -> None:
        """Make parameters and state.

        Args:
            num_features: Size of the feature axis, or of each.
            variant: `b0`, `b1` or `b2`.
            nonlinear: Whether there is a division; False where a branch ends: scale and bias alone, no state.
            rngs: Random streams; `params` is used.
            **options: The arguments of `BatchNorm`.
        """
        self.variant: OfBatch = variant
        self.nonlinear = nonlinear
        super().__init__(num_features, rngs=rngs, **options)


class EvoNormSample(GroupNorm):
    """EvoNorm over one example; see `normlab.functional.evonorm_sample`: `scale`, `bias`, and `v` of `s0`."""

    _kind = EvoNormSampleLayer

    def __init__(
        self,
        num_features: int,
        num_groups: int | None = 32,
        group_size: int | None = None,
        *,
        epsilon: float = 1e-5,
        variant: OfExample = "s0",
        nonlinear: bool = True,
        rngs: nnx.Rngs,
        **options: Any,
    ) -> None:
        """Make the parameters.

        Args:
            num_features: Size of the feature axis.
            num_groups: Number of groups; leave it out beside `group_size`.
            group_size: Features per group.
            epsilon: Added to the variance or the mean square, inside the root.
            variant: `s0`, `s1` or `s2`.
            nonlinear: Whether there are a swish and a division; False where a branch ends: scale and bias alone.
            rngs: Random streams; `params` is used.
            **options: The arguments of `GroupNorm`.
        """
        self.variant: OfExample = variant
        self.nonlinear = nonlinear
        super().__init__(num_features, num_groups, group_size, epsilon=epsilon, rngs=rngs, **options)


class GRN(PerExample):
    """Global response norm; see `normlab.functional.grn`. Scale and bias start at 0: the output is the input."""

    _kind = GRNLayer

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        epsilon: float = 1e-6,
        axis_name: AxisName | None = None,
        axis_index_groups: Groups | None = None,
        **options: Unpack[PerExampleOptions],
    ) -> None:
        """Make the parameters.

        Args:
            num_features: Size of the feature axis, or of each.
            epsilon: Added to the mean response.
            axis_name: Mapped axes over which the positions are spread.
            axis_index_groups: Sub-groups of devices along `axis_name`.
            **options: Those of all norms of one example; `scale_init` is zeros by default.
        """
        options.setdefault("scale_init", zeros)
        super().__init__(
            num_features,
            epsilon=epsilon,
            axis_name=axis_name,
            axis_index_groups=groups_of(axis_index_groups),
            **options,
        )
