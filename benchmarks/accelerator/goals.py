"""Goals for layer and RMS norm at inputs of 64 MB or more: parts of the bandwidth of a copy, by medians."""

import math
from collections.abc import Iterable, Iterator

from benchmarks.accelerator.cases import BOTH, FORWARD, OURS
from benchmarks.accelerator.stage import Row

__all__ = ["goals"]

GOALS = {FORWARD: 0.85, BOTH: 0.75}
NORMS = ("layer", "rms")
LARGE = 64e6


def goals(rows: Iterable[Row]) -> Iterator[str]:
    """Yield, for each goal, where ours reaches it and where it does not."""
    ours = [row for row in rows if row["kind"] == "layer" and row.get("contender") == OURS and row["norm"] in NORMS]
    for what, goal in GOALS.items():
        large = [row for row in ours if row.get("what") == what and size(row) >= LARGE]
        missed = [row for row in large if float(str(row["fraction"])) < goal]
        if large:
            listed = ", ".join(f"{row['norm']} {row['shape']} {row['dtype']}" for row in missed)
            where = f"; missed at {listed}" if missed else ""
            yield f"{what}, {goal:.0%}: kept at {len(large) - len(missed)} of {len(large)}{where}."


def size(row: Row) -> int:
    """Return the bytes of the input of a case."""
    return math.prod(map(int, str(row["shape"]).split("x"))) * (2 if row["dtype"] == "bfloat16" else 4)
