"""How fast are the other norms, compared with the norm whose statistics are most like theirs?

The script times each norm that Flax does not have beside batch norm, layer norm, group norm or instance norm of this
package, forward and forward plus backward (gradients of input, parameters and state), in one process: contenders take
turns in shuffled rounds, and the table contains medians. Compile time is not included. Times are also in units of the
time to copy the input; memory is the temporary memory of the compiled program in units of the input's size.

    python -m benchmarks.speed.variants                                    # all norms, all shapes
    python -m benchmarks.speed.variants --norms frn,whiten --rounds 50 --shapes 64x8x8x32
    python -m benchmarks.speed.variants --output benchmarks/results/variants-cpu  # writes .csv and .md
"""

import argparse
import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jax

from benchmarks.speed._shapes import SHAPES
from benchmarks.speed._timing import at_least_one, environment, interleave, ratio, write
from benchmarks.speed.norms import FORWARD, PEERS, TRAINING, Call, draw, shape_of, sizes, training_call
from normlab import norms

GROUPED = ("evonorm_s0", "evonorm_s1", "evonorm_s2", "group_whiten", "batch_channel")
"""Norms with statistics of groups of features."""

OPTIONS = {"domain_batch": {"splits": 2}}
"""Options without which a norm needs more than an input."""

BAR = 1.3
"""Largest acceptable ratio."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One measurement; times are medians over rounds, memory is in units of the input's."""

    norm: str
    beside: str
    shape: str
    what: str
    copy_ms: float
    beside_copies: float
    norm_copies: float
    ratio: float
    ratio_low: float
    ratio_high: float
    beside_memory: float
    norm_memory: float
    rounds: int

    HEADING: ClassVar = (
        f"{'norm':17}{'beside':14}{'shape':14}{'what':20}{'copy ms':>9}{'beside':>8}{'norm':>8}{'ratio':>8}"
        f"  {'quartiles':13}{'memory':>8}{'norm':>6}"
    )

    def __str__(self) -> str:
        """Return a row of the table; `!` marks a ratio over the bar."""
        quartiles = f"{self.ratio_low:.2f} to {self.ratio_high:.2f}"
        return (
            f"{self.norm:17}{self.beside:14}{self.shape:14}{self.what:20}{self.copy_ms:9.2f}{self.beside_copies:8.1f}"
            f"{self.norm_copies:8.1f}{self.ratio:8.2f}{'!' if self.ratio > BAR else ' '} {quartiles:13}"
            f"{self.beside_memory:8.1f}{self.norm_memory:6.1f}"
        )


def main() -> None:
    """Measure, print, and write files if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--norms", help="comma-separated; default: all that Flax does not have")
    parser.add_argument("--shapes", default=",".join(SHAPES), help="comma-separated names, or sizes as in 64x8x8x32")
    parser.add_argument("--rounds", type=at_least_one, default=20)
    parser.add_argument("--output", type=Path, help="write OUTPUT.csv and OUTPUT.md")
    args = parser.parse_args()
    try:
        chosen = [norms.get(name) for name in (norms.parse_list(args.norms) if args.norms else default())]
        shapes = [shape_of(text, 1) for text in args.shapes.split(",")]
    except ValueError as error:
        parser.error(str(error))

    heading = f"{environment(jax.devices()[0].device_kind)}\n{Variant.HEADING}"
    print(heading)
    rows: list[Variant] = []
    for shape, norm, what in itertools.product(shapes, chosen, (FORWARD, TRAINING)):
        if norm.needs_spatial and len(shape) < 3:
            continue
        rows.append(measured(norm, shape, what, args.rounds))
        print(rows[-1], flush=True)
    summary = f"{sum(row.ratio <= BAR for row in rows)} of {len(rows)} ratios at most {BAR}."
    print(summary)
    if args.output:
        write(args.output, "Speed of the other norms", rows, "\n".join([heading, *map(str, rows)]), summary)


def default() -> list[str]:
    """Return the names of the norms that Flax does not have."""
    return [name for name in norms.names() if name not in PEERS and name != "none"]


def beside(norm: norms.Norm) -> norms.Norm:
    """Return the norm whose statistics are most like those of `norm`."""
    if norm.stateful:
        return norms.get("batch")
    if norm.name in GROUPED:
        return norms.get("group")
    return norms.get("instance" if norm.needs_spatial else "layer")


def measured(norm: norms.Norm, shape: Sequence[int], what: str, rounds: int) -> Variant:
    """Time one norm beside another."""
    x, dy = draw(tuple(shape))
    other = beside(norm)
    modules = {
        "norm": norms.get(norm, **OPTIONS.get(norm.name, {})).linen(train=True),
        "beside": other.linen(train=True),
    }
    calls = {name: training_call(module, x, dy, what).compiled() for name, module in modules.items()}
    memory = {name: call.function.memory_analysis().temp_size_in_bytes / x.nbytes for name, call in calls.items()}
    calls["copy"] = Call(lambda x: x + 1, (x,)).compiled()
    seconds = interleave(calls, rounds)
    copy = statistics.median(seconds["copy"])
    return Variant(
        norm=str(norm),
        beside=str(other),
        shape=sizes(tuple(shape)),
        what=what,
        copy_ms=1e3 * copy,
        beside_copies=statistics.median(seconds["beside"]) / copy,
        norm_copies=statistics.median(seconds["norm"]) / copy,
        beside_memory=memory["beside"],
        norm_memory=memory["norm"],
        rounds=rounds,
        **ratio(seconds["norm"], seconds["beside"])._asdict(),
    )


if __name__ == "__main__":
    main()
