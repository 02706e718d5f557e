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
from normlab.functional.layer_norm import layer_norm
from normlab.functional.online_norm import Guard, OnlineErrors, evaluate_online_norm, guarded, online_norm
from normlab.functional.recurrent.cell_norm import CELL_NORMS, CellNorm, Path, cell_norm
from normlab.functional.recurrent.cells import GRU, LSTM, SIMPLE, Activations, CellParameters
from normlab.functional.recurrent.unroll import TimedCarry, initial_carry, initial_rows, unroll
from normlab.functional.rms_norm import rms_norm
from normlab.functional.squashing.dyt import dyt
from normlab.functional.state import as_batch_norm, as_batch_renorm
from normlab.functional.streaming_norm import StreamingMemory, StreamingSlopes, initial_streaming, streaming_norm

__all__ = [
    "Activations",
    "BatchMoments",
    "CELL_NORMS",
    "CellNorm",
    "CellParameters",
    "GRU",
    "Guard",
    "LSTM",
    "OnlineErrors",
    "Path",
    "RenormStatistics",
    "RunningStatistics",
    "SIMPLE",
    "StatisticsError",
    "StreamingMemory",
    "StreamingSlopes",
    "TimedCarry",
    "adain",
    "as_batch_norm",
    "as_batch_renorm",
    "batch_channel_norm",
    "batch_elements",
    "batch_moments",
    "batch_norm",
    "batch_renorm",
    "cell_norm",
    "domain_batch_norm",
    "dyt",
    "evaluate_online_norm",
    "first_batch",
    "group_norm",
    "guarded",
    "initial_carry",
    "initial_rows",
    "initial_streaming",
    "instance_norm",
    "layer_norm",
    "mean_only_batch_norm",
    "merge_batch_norm",
    "merge_batch_renorm",
    "normalize",
    "one_device",
    "one_element",
    "online_norm",
    "representative_batch_norm",
    "rms_norm",
    "streaming_norm",
    "switchable_norm",
    "unroll",
    "update_batch_norm",
    "update_batch_renorm",
]
