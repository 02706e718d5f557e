"""Flax NNX modules: parameters and state, then one call into `normlab.functional`."""

from normlab.nnx._batch import BatchNorm, BatchRenorm
from normlab.nnx._norm import FrozenParam
from normlab.nnx._per_example import DyT, GroupNorm, Identity, InstanceNorm, LayerNorm, RMSNorm
from normlab.nnx._recurrent import RNN, GRUCell, LSTMCell, SimpleCell
from normlab.nnx._stream import ContinualNorm, OnlineNorm, OverwriteWithGradient, StreamingNorm, overwrite_with_gradient
from normlab.nnx._whitening import GroupWhiten, Whiten

__all__ = [
    "BatchNorm",
    "BatchRenorm",
    "ContinualNorm",
    "DyT",
    "FrozenParam",
    "GRUCell",
    "GroupNorm",
    "GroupWhiten",
    "Identity",
    "InstanceNorm",
    "LSTMCell",
    "LayerNorm",
    "OnlineNorm",
    "OverwriteWithGradient",
    "RMSNorm",
    "RNN",
    "SimpleCell",
    "StreamingNorm",
    "Whiten",
    "overwrite_with_gradient",
]
