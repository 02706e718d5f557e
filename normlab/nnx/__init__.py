"""Flax NNX modules: parameters and state, then one call into `normlab.functional`."""

from normlab.nnx._batch import BatchNorm, BatchRenorm
from normlab.nnx._moving import MABN, PowerNorm
from normlab.nnx._norm import FrozenParam
from normlab.nnx._per_example import DyT, GroupNorm, Identity, InstanceNorm, LayerNorm, RMSNorm
from normlab.nnx._recurrent import RNN, GRUCell, LSTMCell, SimpleCell
from normlab.nnx._stream import ContinualNorm, OnlineNorm, OverwriteWithGradient, StreamingNorm, overwrite_with_gradient

__all__ = [
    "BatchNorm",
    "BatchRenorm",
    "ContinualNorm",
    "DyT",
    "FrozenParam",
    "GRUCell",
    "GroupNorm",
    "Identity",
    "InstanceNorm",
    "LSTMCell",
    "LayerNorm",
    "MABN",
    "OnlineNorm",
    "OverwriteWithGradient",
    "PowerNorm",
    "RMSNorm",
    "RNN",
    "SimpleCell",
    "StreamingNorm",
    "overwrite_with_gradient",
]
