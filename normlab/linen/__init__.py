"""Flax Linen modules: parameters and state, then one call into `normlab.functional`."""

from normlab.linen._batch import BatchNorm, BatchRenorm
from normlab.linen._combined import (
    BatchChannelNorm,
    DomainBatchNorm,
    MeanOnlyBatchNorm,
    RepresentativeBatchNorm,
    SwitchableNorm,
)
from normlab.linen._frozen import trainable
from normlab.linen._modulated import Modulated
from normlab.linen._per_example import DyT, GroupNorm, Identity, InstanceNorm, LayerNorm, RMSNorm
from normlab.linen._recurrent import RNN, GRUCell, LSTMCell, SimpleCell
from normlab.linen._stream import ContinualNorm, OnlineNorm, StreamingNorm

__all__ = [
    "BatchChannelNorm",
    "BatchNorm",
    "BatchRenorm",
    "ContinualNorm",
    "DomainBatchNorm",
    "DyT",
    "GRUCell",
    "GroupNorm",
    "Identity",
    "InstanceNorm",
    "LSTMCell",
    "LayerNorm",
    "MeanOnlyBatchNorm",
    "Modulated",
    "OnlineNorm",
    "RMSNorm",
    "RNN",
    "RepresentativeBatchNorm",
    "SimpleCell",
    "StreamingNorm",
    "SwitchableNorm",
    "trainable",
]
