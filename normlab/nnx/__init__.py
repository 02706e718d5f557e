"""Flax NNX modules: parameters and state, then one call into `normlab.functional`."""

from normlab.nnx._batch import BatchNorm, BatchRenorm
from normlab.nnx._combined import (
    BatchChannelNorm,
    DomainBatchNorm,
    MeanOnlyBatchNorm,
    RepresentativeBatchNorm,
    SwitchableNorm,
)
from normlab.nnx._modulated import Modulated
from normlab.nnx._norm import FrozenParam
from normlab.nnx._per_example import DyT, GroupNorm, Identity, InstanceNorm, LayerNorm, RMSNorm
from normlab.nnx._recurrent import RNN, GRUCell, LSTMCell, SimpleCell
from normlab.nnx._stream import ContinualNorm, OnlineNorm, OverwriteWithGradient, StreamingNorm, overwrite_with_gradient

__all__ = [
    "BatchChannelNorm",
    "BatchNorm",
    "BatchRenorm",
    "ContinualNorm",
    "DomainBatchNorm",
    "DyT",
    "FrozenParam",
    "GRUCell",
    "GroupNorm",
    "Identity",
    "InstanceNorm",
    "LSTMCell",
    "LayerNorm",
    "MeanOnlyBatchNorm",
    "Modulated",
    "OnlineNorm",
    "OverwriteWithGradient",
    "RMSNorm",
    "RNN",
    "RepresentativeBatchNorm",
    "SimpleCell",
    "StreamingNorm",
    "SwitchableNorm",
    "overwrite_with_gradient",
]
