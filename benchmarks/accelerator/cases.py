"""Norms and shapes whose speed is measured, and the bytes that they have to move."""

import math
from dataclasses import dataclass
from typing import Literal

from benchmarks.accelerator.stage import Row

__all__ = ["BOTH", "CASES", "EPSILON", "FORWARD", "GROUPS", "OURS", "PALLAS", "SAVING", "TINY", "Case"]

GROUPS = 32
EPSILON = 1e-6
FORWARD, BOTH = "forward", "forward + backward"
OURS, SAVING, PALLAS = "ours", "ours, saves x", "Pallas"
"""Contenders between which measurements decide."""

PASSES = {
    ("layer", FORWARD): 2,
    ("layer", BOTH): 5,
    ("rms", FORWARD): 2,
    ("rms", BOTH): 5,
    ("batch", FORWARD): 3,
    ("batch", BOTH): 8,
    ("group", FORWARD): 3,
    ("group", BOTH): 8,
}
"""Times that an array of the size of the input is read or written, at least.

A row stays on chip, so that `x` is read and `y` is written once, and backward reads `x` and `dy` and writes `dx`. The
statistics of batch and group norm are over more than fits: `x` is read twice, and backward reads `x` and `dy` twice. An
array that stays in the cache of the device between two passes can lift the fraction of the bandwidth of a copy above 1.
"""


@dataclass(frozen=True)
class Case:
    """A norm on activations, features last."""

    norm: Literal["layer", "rms", "batch", "group"]
    shape: tuple[int, ...]
    dtype: Literal["float32", "bfloat16"]

    @property
    def columns(self) -> Row:
        """Columns of its rows."""
        return {"norm": self.norm, "shape": "x".join(map(str, self.shape)), "dtype": self.dtype}

    @property
    def bytes(self) -> int:
        """Size of the input."""
        return math.prod(self.shape) * (2 if self.dtype == "bfloat16" else 4)

    def copies(self, what: str) -> float:
        """Return the least time in units of a copy of the input, which reads and writes it."""
        return PASSES[self.norm, what] / 2


CASES = (
    Case("layer", (65536, 1024), "bfloat16"),
    Case("batch", (256, 56, 56, 64), "bfloat16"),
    Case("rms", (16384, 4096), "bfloat16"),
    Case("group", (16, 64, 64, 640), "bfloat16"),
    Case("layer", (32768, 768), "float32"),
    Case("batch", (256, 56, 56, 256), "bfloat16"),
    Case("batch", (32, 56, 56, 256), "float32"),
    Case("group", (64, 56, 56, 256), "float32"),
    Case("layer", (16384, 4096), "bfloat16"),
    Case("rms", (65536, 1024), "bfloat16"),
    Case("rms", (32768, 768), "float32"),
    Case("layer", (262144, 256), "float32"),
    Case("batch", (256, 14, 14, 1024), "bfloat16"),
    Case("layer", (589824, 128), "bfloat16"),
    Case("layer", (4096, 16384), "bfloat16"),
)
"""Sizes of transformers and of ResNets, most telling first: each norm in its main dtype, then the other."""

TINY = (
    Case("layer", (50, 96), "float32"),
    Case("rms", (50, 96), "bfloat16"),
    Case("batch", (3, 5, 5, 64), "float32"),
    Case("group", (3, 5, 5, 64), "bfloat16"),
)
"""For a CPU, where Pallas is interpreted."""
