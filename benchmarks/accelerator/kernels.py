"""Stage `kernels`: speed of norms that are kernels of their own, measured as in stage `layers`.

A kernel that reads outside its arrays ends all work of its process on the device, and costs no row of other stages.
"""

from collections.abc import Collection, Iterator

from benchmarks.accelerator.contenders import KERNELS
from benchmarks.accelerator.layers import measured
from benchmarks.accelerator.stage import Clock, Row

__all__ = ["rows"]


def rows(clock: Clock, *, tiny: bool, skip: Collection[str]) -> Iterator[Row]:
    """Yield a copy, and the kernels, of each case."""
    return measured(clock, [name for name in KERNELS if name not in skip], tiny=tiny)
