"""Batch and group whitening for NNX."""

from collections.abc import Sequence
from typing import Required, Unpack

from flax import nnx

from normlab._core.checks import AxisName
from normlab.functional.batch_norm import Momentum
from normlab.functional.whitening.group_whiten import GroupWhitenLayer
from normlab.functional.whitening.whiten import Average, WhitenLayer
from normlab.nnx._norm import NormOptions, PerExample, Stateful, groups_of


class WhiteningOptions(NormOptions, total=False):
    """Options of both whitening norms; see `normlab.functional.whiten`."""

    rngs: Required[nnx.Rngs]
    epsilon: float
    steps: int
    exact: bool
    axis_name: AxisName | None
    allow: bool


class BatchWhiteningOptions(WhiteningOptions, total=False):
    """Options of whitening over the batch."""

    axis: int
    momentum: Momentum
    average: Average
    ghost_batch_size: int | None


class Whiten(Stateful):
    """Batch whitening; see `normlab.functional.whiten`.

    Attributes:
        mean: Running mean, an `nnx.BatchStat`, float32.
        matrix: Running average of the whitening matrices, or of the covariances, likewise.
    """

    _kind = WhitenLayer

    def __init__(
        self,
        num_features: int,
        *,
        use_running_average: bool | None = False,
        group_size: int = 64,
        axis_index_groups: Sequence[Sequence[int]] | None = None,
        **options: Unpack[BatchWhiteningOptions],
    ) -> None:
        """Make parameters and state, with `group_size` features in a group."""
        self.axis_index_groups, self.group_size = groups_of(axis_index_groups), group_size
        super().__init__(num_features, use_running_average=use_running_average, **options)


class GroupWhiten(PerExample):
    """Group whitening; see `normlab.functional.group_whiten`."""

    _kind = GroupWhitenLayer

    def __init__(
        self,
        num_features: int,
        *,
        num_groups: int = 32,
        axis_index_groups: Sequence[Sequence[int]] | None = None,
        **options: Unpack[WhiteningOptions],
    ) -> None:
        """Make the parameters, for `num_groups` groups of neighbouring features."""
        self.axis_index_groups, self.num_groups = groups_of(axis_index_groups), num_groups
        super().__init__(num_features, **options)
