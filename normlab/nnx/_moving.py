"""Power norm and moving average batch norm for NNX."""

from collections.abc import Sequence
from typing import Unpack

import jax
from flax import nnx

from normlab._core.checks import AxisName
from normlab._core.reduction import Axes, Groups
from normlab.functional.moving.mabn import MABNLayer
from normlab.functional.moving.power_norm import PowerNormLayer
from normlab.nnx._norm import NormOptions, groups_of
from normlab.nnx._stream import StreamNorm


class PowerNorm(StreamNorm):
    """Power norm; see `normlab.functional.power_norm`.

    State: `phi` and `step`, each an `nnx.BatchStat`, and `nu`, an `OverwriteWithGradient`, for which see `OnlineNorm`.
    Evaluation is by `phi`.
    """

    _kind = PowerNormLayer

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        use_running_average: bool | None = False,
        axis: Axes = -1,
        momentum: jax.Array | float = 0.9,
        epsilon: float = 1e-5,
        backward_momentum: jax.Array | float = 0.9,
        num_groups: int = 1,
        warmup_steps: int = 10000,
        axis_name: AxisName | None = None,
        axis_index_groups: Groups | None = None,
        rngs: nnx.Rngs,
        **options: Unpack[NormOptions],
    ) -> None:
        """Make parameters and state.

        Args:
            num_features: Size of the feature axis, or of each.
            use_running_average: True at evaluation, False in training; `train()` and `eval()` set it.
            axis: Feature axis or axes.
            momentum: Weight of the OLD running mean square.
            epsilon: Added to mean squares, inside the root.
            backward_momentum: 1 minus the rate at which `nu` moves.
            num_groups: Groups of features that are scaled first, each on its own.
            warmup_steps: Calls that divide by the mean square of their own batch.
            axis_name: Mapped axes (devices) whose examples belong to the same batch.
            axis_index_groups: Sub-groups of devices along `axis_name`.
            rngs: Random streams; `params` is used.
            **options: Those of all norms.
        """
        super().__init__(
            num_features,
            use_running_average=use_running_average,
            rngs=rngs,
            axis=axis,
            momentum=momentum,
            epsilon=epsilon,
            backward_momentum=backward_momentum,
            num_groups=num_groups,
            warmup_steps=warmup_steps,
            axis_name=axis_name,
            axis_index_groups=groups_of(axis_index_groups),
            **options,
        )


class MABN(StreamNorm):
    """Moving average batch norm; see `normlab.functional.mabn`.

    State: `run`, `chi` and `step`, each an `nnx.BatchStat`, and `gz`, an `OverwriteWithGradient`, for which see
    `OnlineNorm`. Evaluation is by `run`.
    """

    _kind = MABNLayer

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        use_running_average: bool | None = False,
        axis: Axes = -1,
        momentum: jax.Array | float = 0.98,
        epsilon: float = 1e-5,
        buffer_size: int = 16,
        warmup_steps: int = 100,
        clip_from: int = 100,
        ghost_batch_size: int | None = None,
        axis_name: AxisName | None = None,
        axis_index_groups: Groups | None = None,
        rngs: nnx.Rngs,
        **options: Unpack[NormOptions],
    ) -> None:
        """Make parameters and state.

        Args:
            num_features: Size of the feature axis, or of each.
            use_running_average: True at evaluation, False in training; `train()` and `eval()` set it.
            axis: Feature axis or axes.
            momentum: Weight of the OLD running mean square.
            epsilon: Added to mean squares, inside the root.
            buffer_size: Batches that are averaged.
            warmup_steps: First call that takes the mean square of the last batches.
            clip_from: First call that corrects towards the running mean square.
            ghost_batch_size: Examples that share statistics in training.
            axis_name: Mapped axes (devices) whose examples belong to the same batch.
            axis_index_groups: Sub-groups of devices along `axis_name`.
            rngs: Random streams; `params` is used.
            **options: Those of all norms.
        """
        super().__init__(
            num_features,
            use_running_average=use_running_average,
            rngs=rngs,
            axis=axis,
            momentum=momentum,
            epsilon=epsilon,
            buffer_size=buffer_size,
            warmup_steps=warmup_steps,
            clip_from=clip_from,
            ghost_batch_size=ghost_batch_size,
            axis_name=axis_name,
            axis_index_groups=groups_of(axis_index_groups),
            **options,
        )
