"""How fast are the other norms, compared with the norm whose statistics are most like theirs?

The script times each norm that Flax does not have beside batch norm, layer norm, group norm or instance norm of this
package, or two of them in turn, forward and forward plus backward (gradients of input, parameters and state), in one
process: contenders take turns in shuffled rounds, and the table contains medians. Compile time is not included. Times
are also in units of the time to copy the input; memory is the temporary memory of the compiled program in units of the
input's size. No ratio is to be above 1.3; the page says of rows above it, which `!` marks, why they are.

    python -m benchmarks.speed.variants                                    # all norms, a transformer and an image net
    python -m benchmarks.speed.variants --norms frn,whiten --rounds 50 --shapes 64x8x8x32
    python -m benchmarks.speed.variants --output benchmarks/results/variants-cpu  # writes .csv and .md; 8 minutes
"""

import argparse
import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import flax.linen as nn
import jax

from benchmarks.speed._timing import at_least_one, environment, interleave, ratio, write
from benchmarks.speed.norms import FORWARD, PEERS, TRAINING, Call, draw, shape_of, sizes, training_call
from normlab import norms

GROUPED = ("evonorm_s0", "evonorm_s1", "evonorm_s2", "group_whiten")
"""Norms with statistics of groups of features."""

IN_TURN = {"batch_channel": ("batch", "group"), "continual": ("group", "batch")}
"""Norms that are two norms, one after the other."""

OPTIONS = {"domain_batch": {"splits": 2}, "group_whiten": {"num_groups": 16}}
"""Options without which a norm needs more than an input, or another input."""

DEFAULT = ("transformer", "small image net")
"""Shapes measured unless others are asked for."""

BAR = 1.3
"""Largest acceptable ratio."""

_WHITENS = "covariance and output are products of matrices, with as many multiplications an element as a group has rows"
_DIVIDES = (
    "each element has a divisor of its own, which every gradient computes again, and the variance is of two kinds"
)
_SIGMOID = "each element has a sigmoid, which the gradients of input, scale and slope each compute again"
REASONS = {
    "online": "examples come one after the other, each normalized by those before it",
    "local_response": "sums over windows of neighbours are passes of their own, which XLA:CPU fuses with nothing",
    "seednorm": "it has three parameters, and two sums along each example",
    "derf": "the derivative is an exponential, computed beside the error function",
    "evonorm_b0": _DIVIDES,
    "evonorm_b1": _DIVIDES,
    "evonorm_b2": _DIVIDES,
    "evonorm_s0": _SIGMOID,
    "evonorm_s1": _SIGMOID,
    "representative": "it adds a mean of each example and a sigmoid of each element to batch norm",
    "switchable": "it has the statistics of three norms, and gradients flow through all of them",
    "domain_batch": "there are two sets of statistics; without positions each domain is a pass over all examples",
    "whiten": _WHITENS,
    "group_whiten": _WHITENS,
    "power": "it has two kinds of statistics: of the features of a position, then of the batch",
}
"""Known reasons why a norm is above the bar, the end of a sentence."""


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
        f"{'norm':29}{'beside':14}{'shape':14}{'what':20}{'copy ms':>9}{'beside':>8}{'norm':>8}{'ratio':>8}"
        f"  {'quartiles':13}{'memory':>8}{'norm':>6}"
    )

    def __str__(self) -> str:
        """Return a row of the table; `!` marks a ratio over the bar."""
        quartiles = f"{self.ratio_low:.2f} to {self.ratio_high:.2f}"
        return (
            f"{self.norm:29}{self.beside:14}{self.shape:14}{self.what:20}{self.copy_ms:9.2f}{self.beside_copies:8.1f}"
            f"{self.norm_copies:8.1f}{self.ratio:8.2f}{'!' if self.ratio > BAR else ' '} {quartiles:13}"
            f"{self.beside_memory:8.1f}{self.norm_memory:6.1f}"
        )


def main() -> None:
    """Measure, print, and write files if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--norms", help="comma-separated; default: all that Flax does not have")
    parser.add_argument("--shapes", default=",".join(DEFAULT), help="comma-separated names, or sizes as in 64x8x8x32")
    parser.add_argument("--rounds", type=at_least_one, default=10)
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
        table = "\n".join([heading, *map(str, rows)])
        write(args.output, "Speed of the other norms", rows, table, f"{summary} {explained(rows)}")


def default() -> list[str]:
    """Return the names of the norms that Flax does not have."""
    return [name for name in norms.names() if name not in PEERS and name != "none"]


def explained(rows: Sequence[Variant]) -> str:
    """Return the bar in words, and a sentence for each norm above it."""
    above = dict.fromkeys(row.norm for row in rows if row.ratio > BAR)
    known = {text: REASONS.get(norms.get(text).name) for text in above}
    sentences = [f"- `{text}`: {reason or 'not known'}." for text, reason in known.items()]
    bar = f"The bar is {BAR} times the norm beside it, forward and with the backward pass; `!` marks rows above it."
    return "\n".join([bar, *(["", "Why they are above it:", "", *sentences] if sentences else [])])


def beside(norm: norms.Norm) -> tuple[norms.Norm, ...]:
    """Return the norm whose statistics are most like those of `norm`, or two that follow each other."""
    if norm.name in IN_TURN:
        groups = {name: size for name, size in norm.options.items() if name in ("num_groups", "group_size")}
        return tuple(norms.get(name, **(groups if name == "group" else {})) for name in IN_TURN[norm.name])
    if norm.stateful:
        return (norms.get("batch"),)
    if norm.name in GROUPED:
        return (norms.get("group"),)
    return (norms.get("instance" if norm.needs_spatial else "layer"),)


def measured(norm: norms.Norm, shape: Sequence[int], what: str, rounds: int) -> Variant:
    """Time one norm beside another."""
    x, dy = draw(tuple(shape))
    norm = norms.get(norm, **{**OPTIONS.get(norm.name, {}), **norm.options})
    others = beside(norm)
    modules = {
        "norm": norm.linen(train=True),
        "beside": nn.Sequential([other.linen(train=True) for other in others]),
    }
    calls = {name: training_call(module, x, dy, what).compiled() for name, module in modules.items()}
    memory = {name: call.function.memory_analysis().temp_size_in_bytes / x.nbytes for name, call in calls.items()}
    calls["copy"] = Call(lambda x: x + 1, (x,)).compiled()
    seconds = interleave(calls, rounds)
    copy = statistics.median(seconds["copy"])
    return Variant(
        norm=str(norm),
        beside=", ".join(other.name for other in others),
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
