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
from normlab.linen._moving import MABN, PowerNorm
from normlab.linen._per_example import GroupNorm, Identity, InstanceNorm, LayerNorm, RMSNorm
from normlab.linen._queries_and_keys import qk_norm
from normlab.linen._recurrent import RNN, GRUCell, LSTMCell, SimpleCell
from normlab.linen._reparametrized import Reparametrized, StandardizedConv, StandardizedDense
from normlab.linen._responses import FRN, GRN, EvoNormBatch, EvoNormSample
from normlab.linen._squashing import BHyT, Derf, DyT, SeeDNorm
from normlab.linen._stream import ContinualNorm, OnlineNorm, StreamingNorm
from normlab.linen._unit import L2Norm, LocalResponseNorm
from normlab.linen._whitening import GroupWhiten, Whiten

__all__ = [
    "BHyT",
    "BatchChannelNorm",
    "BatchNorm",
    "BatchRenorm",
    "ContinualNorm",
    "Derf",
    "DomainBatchNorm",
    "DyT",
    "EvoNormBatch",
    "EvoNormSample",
    "FRN",
    "GRN",
    "GRUCell",
    "GroupNorm",
    "GroupWhiten",
    "Identity",
    "InstanceNorm",
    "L2Norm",
    "LSTMCell",
    "LayerNorm",
    "LocalResponseNorm",
    "MABN",
    "MeanOnlyBatchNorm",
    "Modulated",
    "OnlineNorm",
    "PowerNorm",
    "RMSNorm",
    "RNN",
    "Reparametrized",
    "RepresentativeBatchNorm",
    "SeeDNorm",
    "SimpleCell",
    "StandardizedConv",
    "StandardizedDense",
    "StreamingNorm",
    "SwitchableNorm",
    "Whiten",
    "qk_norm",
    "trainable",
]
