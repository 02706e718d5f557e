"""How long do passes of the tools over data, and a folded model, take beside an evaluation of the same batches?

All contenders take turns in one process, in shuffled rounds; the table contains medians, and ratios within rounds to
the compiled evaluation. Compile time is not included.

    python -m benchmarks.speed.tools                                   # both models
    python -m benchmarks.speed.tools --models resnet --rounds 30
    python -m benchmarks.speed.tools --output benchmarks/results/tools-cpu  # writes .csv and .md
"""

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import flax.linen as nn
import jax
import numpy as np

from benchmarks.speed._timing import at_least_one, environment, interleave, ratio, write
from normlab import norms
from normlab.models import MLP, ResNet
from normlab.tools import fold
from normlab.tools.estimation.collecting import Collector

MODELS: Mapping[str, tuple[Callable[[norms.Norm], nn.Module], tuple[int, ...]]] = {
    "resnet": (lambda norm: ResNet(norm, depth=20), (32, 32, 32, 3)),
    "mlp": (lambda norm: MLP(norm, hidden=(512, 512)), (256, 784)),
}
BATCHES = 4
EVALUATION, TRAINING, FOLDED = "evaluation", "training forward", "evaluation, folded"
BAR = 1.3
"""Largest acceptable ratio of precise statistics to an evaluation."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contender; milliseconds of a pass, medians over rounds."""

    model: str
    what: str
    ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    rounds: int

    HEADING: ClassVar = f"{'model':10}{'what':26}{'ms':>9}{'ratio':>8}   quartiles"

    def __str__(self) -> str:
        """Return a line of the table; `!` marks a ratio over the bar."""
        over = "!" if self.what.startswith("precise") and self.ratio > BAR else " "
        return (
            f"{self.model:10}{self.what:26}{self.ms:9.1f}{self.ratio:8.2f}{over}  "
            f"{self.ratio_low:.2f} to {self.ratio_high:.2f}"
        )


def main() -> None:
    """Measure, print, and write files if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS), help="comma-separated")
    parser.add_argument("--rounds", type=at_least_one, default=21)
    parser.add_argument("--output", type=Path, help="write OUTPUT.csv and OUTPUT.md")
    args = parser.parse_args()
    names = args.models.split(",")
    if unknown := [name for name in names if name not in MODELS]:
        parser.error(f"Expected models among {', '.join(MODELS)}, got {unknown[0]!r}.")
    heading = f"{environment(jax.devices()[0].device_kind)}\n{Row.HEADING}"
    print(heading)
    rows: list[Row] = []
    for name in names:
        found = measured(name, args.rounds)
        print("\n".join(map(str, found)), flush=True)
        rows += found
    ratios = [row.ratio for row in rows if row.what.startswith("precise")]
    summary = f"{sum(one <= BAR for one in ratios)} of {len(ratios)} ratios of precise statistics at most {BAR}."
    print(summary)
    if args.output:
        write(args.output, "Speed of the tools", rows, "\n".join([heading, *map(str, rows)]), summary)


def measured(name: str, rounds: int) -> Sequence[Row]:
    """Time the passes of a model."""
    seconds = interleave(passes(name), rounds)
    return [
        Row(
            model=name,
            what=what,
            ms=1e3 * statistics.median(times),
            rounds=rounds,
            **ratio(times, seconds[EVALUATION])._asdict(),
        )
        for what, times in seconds.items()
    ]


def passes(name: str) -> dict[str, Callable[[], Any]]:
    """Return passes over the batches of a model, each compiled once."""
    make, shape = MODELS[name]
    model, rng = make(norms.get("batch")), np.random.default_rng(0)
    batches = [rng.normal(size=shape).astype(np.float32) for _ in range(BATCHES)]
    variables = model.init(jax.random.key(0), batches[0], train=False)
    evaluate = jax.jit(lambda variables, x: model.apply(variables, x, train=False))
    train = jax.jit(lambda variables, x: model.apply(variables, x, train=True, mutable=["batch_stats"]))

    folded = fold(model, variables, batches[0], evaluate={"train": False})

    def over(step: Callable[..., Any], variables: Any = variables) -> Callable[[], Any]:
        return lambda: jax.block_until_ready([step(variables, x) for x in batches])

    def estimate(collector: Collector) -> Callable[[], Any]:
        return lambda: collector.moments(variables, batches).apply(variables)

    return {
        EVALUATION: over(evaluate),
        FOLDED: over(jax.jit(folded.apply), folded.variables),
        TRAINING: over(train),
        "precise, by batch": estimate(Collector(model, variables, through="batch")),
        "precise, by running": estimate(Collector(model, variables, through="evaluation")),
    }


if __name__ == "__main__":
    main()
