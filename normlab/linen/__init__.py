"""Flax Linen modules: parameters and state, then one call into `normlab.functional`."""

from normlab.linen._batch import BatchNorm, BatchRenorm
from normlab.linen._frozen import trainable
from normlab.linen._moving import MABN, PowerNorm
from normlab.linen._per_example import DyT, GroupNorm, Identity, InstanceNorm, LayerNorm, RMSNorm
from normlab.linen._recurrent import RNN, GRUCell, LSTMCell, SimpleCell
from normlab.linen._stream import ContinualNorm, OnlineNorm, StreamingNorm

__all__ = [
    "BatchNorm",
    "BatchRenorm",
    "ContinualNorm",
    "DyT",
    "GRUCell",
    "GroupNorm",
    "Identity",
    "InstanceNorm",
    "LSTMCell",
    "LayerNorm",
    "MABN",
    "OnlineNorm",
    "PowerNorm",
    "RMSNorm",
    "RNN",
    "SimpleCell",
    "StreamingNorm",
    "trainable",
]
