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
from normlab.nnx._moving import MABN, PowerNorm
from normlab.nnx._norm import FrozenParam
from normlab.nnx._per_example import GroupNorm, Identity, InstanceNorm, LayerNorm, RMSNorm
from normlab.nnx._queries_and_keys import qk_norm
from normlab.nnx._recurrent import RNN, GRUCell, LSTMCell, SimpleCell
from normlab.nnx._reparametrized import Reparametrized, StandardizedConv, StandardizedLinear
from normlab.nnx._responses import FRN, GRN, EvoNormBatch, EvoNormSample
from normlab.nnx._squashing import BHyT, Derf, DyT, SeeDNorm
from normlab.nnx._stream import ContinualNorm, OnlineNorm, OverwriteWithGradient, StreamingNorm, overwrite_with_gradient
from normlab.nnx._unit import L2Norm, LocalResponseNorm
from normlab.nnx._whitening import GroupWhiten, Whiten

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
    "FrozenParam",
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
    "OverwriteWithGradient",
    "PowerNorm",
    "RMSNorm",
    "RNN",
    "Reparametrized",
    "RepresentativeBatchNorm",
    "SeeDNorm",
    "SimpleCell",
    "StandardizedConv",
    "StandardizedLinear",
    "StreamingNorm",
    "SwitchableNorm",
    "Whiten",
    "overwrite_with_gradient",
    "qk_norm",
]
