"""Stage `correctness`: norms and recurrent cells against float64 in NumPy.

Rows of kind `check` say, for a norm, a case, a dtype and an offset of the input, the errors of the output, of the
running statistics and of each gradient. Errors of values are in units of the largest, and errors of gradients
in units of their Euclidean norm. Programs are compiled with XLA's defaults except for its autotuning.
"""

import itertools
from collections.abc import Collection, Iterator

from benchmarks.accelerator.cell_checks import cell_checks
from benchmarks.accelerator.checks import results
from benchmarks.accelerator.norm_checks import norm_checks, special_checks
from benchmarks.accelerator.references import processes
from benchmarks.accelerator.stage import Clock, Row, plan

__all__ = ["rows"]


def rows(clock: Clock, *, tiny: bool, skip: Collection[str]) -> Iterator[Row]:
    """Yield the checks of norms, those of devices and export, and then those of cells, which compile longest."""
    workers = processes()
    try:
        checks = list(itertools.chain(norm_checks(tiny), special_checks(tiny), cell_checks(tiny)))
        yield plan(sum(len(check.draws) for check in checks), "checks", "norm", "case", "dtype", "offset")
        yield from results(checks, workers)
    finally:
        workers.shutdown(wait=False, cancel_futures=True)
