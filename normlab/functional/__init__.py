"""The definitions: pure functions of arrays, with no Flax, no state and no parameters of their own."""

from normlab._core.checks import one_element
from normlab._core.collectives import one_device
from normlab._core.standardize import normalize
from normlab.errors import StatisticsError
from normlab.functional.adain import adain
from normlab.functional.batch_norm import (
    BatchMoments,
    RunningStatistics,
    batch_elements,
    batch_moments,
    batch_norm,
    merge_batch_norm,
    update_batch_norm,
)
from normlab.functional.batch_renorm import (
    RenormStatistics,
    batch_renorm,
    first_batch,
    merge_batch_renorm,
    update_batch_renorm,
)
from normlab.functional.combined.batch_channel import batch_channel_norm
from normlab.functional.combined.domain_batch import domain_batch_norm
from normlab.functional.combined.mean_only_batch import mean_only_batch_norm
from normlab.functional.combined.representative import representative_batch_norm
from normlab.functional.combined.switchable import switchable_norm
from normlab.functional.group_norm import group_norm
from normlab.functional.instance_norm import instance_norm
from normlab.functional.kernels import (
    centralize,
    scaled_standardize,
    spectral_norm,
    standardize,
    weight_norm,
)
from normlab.functional.layer_norm import layer_norm
from normlab.functional.moving.mabn import MABNMemory, MABNSlopes, initial_mabn, mabn
from normlab.functional.moving.power_norm import PowerMemory, PowerSlopes, evaluate_power_norm, power_norm
from normlab.functional.online_norm import Guard, OnlineErrors, evaluate_online_norm, guarded, online_norm
from normlab.functional.recurrent.cell_norm import CELL_NORMS, CellNorm, Path, cell_norm
from normlab.functional.recurrent.cells import GRU, LSTM, SIMPLE, Activations, CellParameters
from normlab.functional.recurrent.unroll import TimedCarry, initial_carry, initial_rows, unroll
from normlab.functional.responses.evonorm import evonorm_batch, evonorm_sample
from normlab.functional.responses.frn import frn
from normlab.functional.responses.grn import grn
from normlab.functional.responses.l2_norm import l2_norm
from normlab.functional.responses.local_response import local_response
from normlab.functional.rms_norm import rms_norm
from normlab.functional.squashing.bhyt import bhyt
from normlab.functional.squashing.derf import derf
from normlab.functional.squashing.dyt import dyt
from normlab.functional.squashing.seednorm import seednorm
from normlab.functional.state import as_batch_norm, as_batch_renorm
from normlab.functional.streaming_norm import StreamingMemory, StreamingSlopes, initial_streaming, streaming_norm
from normlab.functional.whitening.group_whiten import group_whiten
from normlab.functional.whitening.whiten import Whitening, whiten, whiten_by

__all__ = [
    "Activations",
    "BatchMoments",
    "CELL_NORMS",
    "CellNorm",
    "CellParameters",
    "GRU",
    "Guard",
    "LSTM",
    "MABNMemory",
    "MABNSlopes",
    "OnlineErrors",
    "Path",
    "PowerMemory",
    "PowerSlopes",
    "RenormStatistics",
    "RunningStatistics",
    "SIMPLE",
    "StatisticsError",
    "StreamingMemory",
    "StreamingSlopes",
    "TimedCarry",
    "Whitening",
    "adain",
    "as_batch_norm",
    "as_batch_renorm",
    "batch_channel_norm",
    "batch_elements",
    "batch_moments",
    "batch_norm",
    "batch_renorm",
    "bhyt",
    "cell_norm",
    "centralize",
    "derf",
    "domain_batch_norm",
    "dyt",
    "evaluate_online_norm",
    "evaluate_power_norm",
    "evonorm_batch",
    "evonorm_sample",
    "first_batch",
    "frn",
    "grn",
    "group_norm",
    "group_whiten",
    "guarded",
    "initial_carry",
    "initial_mabn",
    "initial_rows",
    "initial_streaming",
    "instance_norm",
    "l2_norm",
    "layer_norm",
    "local_response",
    "mabn",
    "mean_only_batch_norm",
    "merge_batch_norm",
    "merge_batch_renorm",
    "normalize",
    "one_device",
    "one_element",
    "online_norm",
    "power_norm",
    "representative_batch_norm",
    "rms_norm",
    "scaled_standardize",
    "seednorm",
    "spectral_norm",
    "standardize",
    "streaming_norm",
    "switchable_norm",
    "unroll",
    "update_batch_norm",
    "update_batch_renorm",
    "weight_norm",
    "whiten",
    "whiten_by",
]
