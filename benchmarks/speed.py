"""How fast are the norms, beside Flax's?

Forward, and forward plus backward (gradients of input, scale and bias), each norm against its Flax peer, side by side
in one process: contenders take turns in shuffled rounds, medians are quoted, and all times are also given in units of
the time of copying the input, measured in the same rounds. Compile time is not included.

    python benchmarks/speed.py                                        # all norms, all shapes
    python benchmarks/speed.py --norms layer,batch --rounds 50
    python benchmarks/speed.py --output benchmarks/results/speed-cpu  # writes .csv and .md
"""

import argparse
import csv
import dataclasses
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import flax.linen as nn
import jax

try:
    from benchmarks.cases import SHAPES
except ImportError:  # run as a file
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    from cases import SHAPES

from normlab import norms

PEERS: dict[str, Callable[..., nn.Module]] = {
    "batch": partial(nn.BatchNorm, use_running_average=False),
    "batch_renorm": partial(nn.BatchNorm, use_running_average=False),  # Flax has no batch renorm: its batch norm
    "layer": nn.LayerNorm,
    "rms": nn.RMSNorm,
    "group": nn.GroupNorm,
    "instance": nn.InstanceNorm,
}
T = TypeVar("T")

BAR = {"forward": 1.5, "forward + backward": 1.1}
"""Largest acceptable ratio to Flax: stability may cost a pass forward, and nothing in training."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement; times are medians over rounds."""

    norm: str
    shape: tuple[int, ...]
    what: str
    copy_ms: float
    flax_copies: float
    ours_copies: float
    ratio: float
    ratio_low: float
    ratio_high: float
    rounds: int


def main() -> None:
    """Measure, print, and write where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--norms", default=",".join(PEERS), help="comma-separated; default: all with a peer")
    parser.add_argument("--shapes", default=",".join(SHAPES), help="comma-separated names")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--output", type=Path, help="write OUTPUT.csv and OUTPUT.md")
    args = parser.parse_args()

    try:
        chosen = norms.parse_list(args.norms)
        shapes = [_named(SHAPES, name, "shape") for name in args.shapes.split(",")]
        for norm in chosen:
            _named(PEERS, norms.get(norm).name, "norm with a Flax peer")
    except ValueError as error:
        parser.error(str(error))

    rows = []
    print(header())
    for shape in shapes:
        for norm in chosen:
            if norms.get(norm).needs_spatial and len(shape) < 3:
                continue
            for what in BAR:
                rows.append(measure(norm, shape, what, args.rounds))
                print(line(rows[-1]), flush=True)
    print(summary(rows))
    if args.output:
        write(args.output, rows)


def _named(known: Mapping[str, T], name: str, what: str) -> T:
    if name not in known:
        raise ValueError(f"Expected a {what} among {', '.join(known)}, got {name!r}.")
    return known[name]


def measure(norm: str, shape: tuple[int, ...], what: str, rounds: int) -> Row:
    """Time one norm against its peer."""
    x, dy = (jax.random.normal(jax.random.key(i), shape) for i in range(2))
    modules = {
        "ours": norms.get(norm).linen(train=True),
        "flax": PEERS[norms.get(norm).name](**norms.get(norm).options),
    }
    contenders = {name: build(module, x, dy, what) for name, module in modules.items()}
    contenders["copy"] = (jax.jit(lambda x: x + 1).lower(x).compile(), (x,))
    times = interleave(contenders, rounds)
    ratios = sorted(a / b for a, b in zip(times["ours"], times["flax"], strict=True))
    copy = statistics.median(times["copy"])
    return Row(
        norm=norm,
        shape=shape,
        what=what,
        copy_ms=1e3 * copy,
        flax_copies=statistics.median(times["flax"]) / copy,
        ours_copies=statistics.median(times["ours"]) / copy,
        ratio=statistics.median(ratios),
        ratio_low=ratios[len(ratios) // 4],
        ratio_high=ratios[-1 - len(ratios) // 4],
        rounds=rounds,
    )


def build(module: nn.Module, x: jax.Array, dy: jax.Array, what: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Compile a module's training call; running statistics are outputs, as in a training step."""
    variables = module.init(jax.random.key(0), x)
    params = variables.get("params", {})
    state = {k: v for k, v in variables.items() if k != "params"}

    def forward(params: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        return module.apply({"params": params, **state}, x, mutable=list(state))  # pyright: ignore[reportReturnType]

    def both(params: Any, x: jax.Array, dy: jax.Array) -> Any:
        y, pull, state = jax.vjp(forward, params, x, has_aux=True)
        return y, state, pull(dy)

    if what == "forward":
        return jax.jit(forward).lower(params, x).compile(), (params, x)
    return jax.jit(both).lower(params, x, dy).compile(), (params, x, dy)


def interleave(
    contenders: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]], rounds: int
) -> dict[str, list[float]]:
    """Seconds of each call: all contenders once per round, in shuffled order, after two rounds of warm-up."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    shuffle = random.Random(0).shuffle
    for turn in range(-2, rounds):
        shuffle(order)
        for name in order:
            call, arguments = contenders[name]
            start = time.perf_counter()
            jax.block_until_ready(call(*arguments))
            if turn >= 0:
                times[name].append(time.perf_counter() - start)
    return times


def header() -> str:
    """Return the heading of the table."""
    return (
        f"{environment()}\n"
        f"{'norm':13}{'shape':20}{'what':20}{'copy ms':>9}{'Flax':>8}{'ours':>8}{'ours/Flax':>11}  quartiles"
    )


def line(row: Row) -> str:
    """Return a row of the table; `!` marks a ratio over the bar."""
    mark = "!" if row.ratio > BAR[row.what] else " "
    shape = "x".join(map(str, row.shape))
    return (
        f"{row.norm:13}{shape:20}{row.what:20}{row.copy_ms:9.2f}{row.flax_copies:8.1f}{row.ours_copies:8.1f}"
        f"{row.ratio:11.2f}{mark} {row.ratio_low:.2f} to {row.ratio_high:.2f}"
    )


def summary(rows: Sequence[Row]) -> str:
    """Say how many rows keep the bar."""
    over = [row for row in rows if row.ratio > BAR[row.what]]
    bars = ", ".join(f"{what} {bar}" for what, bar in BAR.items())
    return f"{len(rows) - len(over)} of {len(rows)} rows within the bars ({bars}); Flax and ours in units of a copy."


def environment() -> str:
    """Name versions, device and load."""
    device = jax.devices()[0]
    packages = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax"))
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    return f"{packages}, Python {platform.python_version()}, {device.device_kind}, {os.cpu_count()} cores, {load}"


def write(output: Path, rows: Sequence[Row]) -> None:
    """Write the rows as CSV and as a page."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in dataclasses.fields(Row)])
        writer.writeheader()
        writer.writerows({**dataclasses.asdict(row), "shape": "x".join(map(str, row.shape))} for row in rows)
    table = "\n".join([header(), *map(line, rows)])
    command = "python " + " ".join(sys.argv)
    output.with_suffix(".md").write_text(
        f"# Speed beside Flax\n\n`{command}`\n\n```\n{table}\n```\n\n{summary(rows)}\n"
    )
    print(f"wrote {output.with_suffix('.csv')} and {output.with_suffix('.md')}")


if __name__ == "__main__":
    main()
