"""Flax Linen modules: parameters and state, then one call into `normlab.functional`."""

from normlab.linen._batch import BatchNorm, BatchRenorm
from normlab.linen._frozen import trainable
from normlab.linen._per_example import DyT, GroupNorm, Identity, InstanceNorm, LayerNorm, RMSNorm
from normlab.linen._recurrent import RNN, GRUCell, LSTMCell, SimpleCell
from normlab.linen._stream import ContinualNorm, OnlineNorm, StreamingNorm
from normlab.linen._whitening import GroupWhiten, Whiten

__all__ = [
    "BatchNorm",
    "BatchRenorm",
    "ContinualNorm",
    "DyT",
    "GRUCell",
    "GroupNorm",
    "GroupWhiten",
    "Identity",
    "InstanceNorm",
    "LSTMCell",
    "LayerNorm",
    "OnlineNorm",
    "RMSNorm",
    "RNN",
    "SimpleCell",
    "StreamingNorm",
    "Whiten",
    "trainable",
]
