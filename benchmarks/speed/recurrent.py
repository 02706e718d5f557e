"""How fast are recurrent cells: plain ones compared with Flax's and PyTorch's, cells with a norm with plain ones?

Forward, and forward plus backward (gradients of inputs and of parameters, as in training: statistics of the batch,
running statistics updated), in one process: all contenders take turns in shuffled rounds, medians and quartiles of
ratios within rounds are quoted. Compile time is not included; the memory that a compiled program takes beside its
arguments and results is.

    python -m benchmarks.speed.recurrent                                # LSTM, all norms, hidden 128 and 512
    python -m benchmarks.speed.recurrent --cell gru --norms layer,batch_step --shapes 64x64x128 --rounds 30
    python -m benchmarks.speed.recurrent --output benchmarks/results/recurrent-speed-cpu  # writes .csv and .md

A shape is batch x time x features; inputs and hidden state have the same number of features. The plain cell is measured
beside each peer: Flax's `nn.RNN` over its cells, and `torch.nn` (extra `peers`) where it is installed, with as many
threads as PyTorch chooses.
"""

import argparse
import os
import re
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax
import numpy as np

import normlab.linen
from benchmarks.speed._timing import at_least_one, environment, interleave, ratio, write
from benchmarks.speed.norms import FORWARD, TRAINING, draw, sizes, training_call
from normlab import norms


class Kind(NamedTuple):
    """Kind of cell: ours and its peers."""

    ours: Callable[..., nn.RNNCellBase]
    flax: tuple[Callable[..., nn.RNNCellBase], ...]
    torch: str


CELLS = {
    "lstm": Kind(normlab.linen.LSTMCell, (nn.LSTMCell, nn.OptimizedLSTMCell), "LSTM"),
    "gru": Kind(normlab.linen.GRUCell, (nn.GRUCell,), "GRU"),
    "simple": Kind(normlab.linen.SimpleCell, (nn.SimpleCell,), "RNN"),
}
PLAIN = "none"
NORMS = ("layer", "layer_per_gate", "rms", "group", "batch_step", "batch_input", "batch_shared")
SHAPES = ("64x64x128", "64x64x512")
FLAX = "Flax"

Shape = tuple[int, int, int]


class Contender(NamedTuple):
    """Call that returns when its work is done, and its temporary memory in MiB, if known."""

    call: Callable[[], Any]
    mib: float | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """Ours compared with another contender; times are medians over rounds."""

    cell: str
    shape: str
    what: str
    ours: str
    other: str
    ours_ms: float
    other_ms: float
    ours_mib: float | None
    other_mib: float | None
    ratio: float
    ratio_low: float
    ratio_high: float
    rounds: int

    TITLE: ClassVar = "Speed of recurrent cells"
    HEADING: ClassVar = (
        f"{'cell':8}{'shape':12}{'what':20}{'ours':18}{'beside':24}{'ours ms':>9}{'its ms':>9}{'ours MiB':>10}"
        f"{'its MiB':>9}{'ratio':>8}  quartiles"
    )
    BARS: ClassVar = {(PLAIN, f"{FLAX} LSTMCell"): 1.0, ("layer", PLAIN): 1.3, ("batch_step", PLAIN): 1.5}
    """Largest acceptable ratios of an LSTM."""

    SUMMARY: ClassVar = f"({', '.join(f'{ours} beside {other} {bar}' for (ours, other), bar in BARS.items())})."

    @property
    def within_bar(self) -> bool | None:
        """True if the ratio keeps the bar; `None` without a bar."""
        bar = self.BARS.get((self.ours.partition(":")[0], self.other)) if self.cell == "lstm" else None
        return None if bar is None else self.ratio <= bar

    def __str__(self) -> str:
        """Return a row of the table; `!` marks a ratio over the bar."""
        memory = "".join(f"{'-' if mib is None else f'{mib:.1f}':>9}" for mib in (self.ours_mib, self.other_mib))
        return (
            f"{self.cell:8}{self.shape:12}{self.what:20}{self.ours:18}{self.other:24}{self.ours_ms:9.1f}"
            f"{self.other_ms:9.1f} {memory}{self.ratio:8.2f}{'!' if self.within_bar is False else ' '} "
            f"{self.ratio_low:.2f} to {self.ratio_high:.2f}"
        )


def main() -> None:
    """Measure, print, and write files if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cell", choices=CELLS, default="lstm")
    parser.add_argument("--norms", default=",".join(NORMS), help="comma-separated; the plain cell is always there")
    parser.add_argument("--shapes", default=",".join(SHAPES), help="comma-separated, batch x time x features")
    parser.add_argument("--rounds", type=at_least_one, default=10)
    parser.add_argument("--output", type=Path, help="write OUTPUT.csv and OUTPUT.md")
    args = parser.parse_args()
    try:
        shapes = [shape_of(text) for text in args.shapes.split(",")]
        chosen = [normalized(text) for text in norms.parse_list(args.norms)]
    except ValueError as error:
        parser.error(str(error))

    heading = f"{environment(jax.devices()[0].device_kind)}\n{Row.HEADING}"
    print(heading)
    rows: list[Row] = []
    for shape in shapes:
        for what in (FORWARD, TRAINING):
            measured = measure(args.cell, shape, what, chosen, args.rounds)
            print(*measured, sep="\n", flush=True)
            rows += measured
    kept = [row.within_bar for row in rows if row.within_bar is not None]
    summary = f"{sum(kept)} of {len(kept)} rows within the bars {Row.SUMMARY}"
    print(summary)
    if args.output:
        write(args.output, Row.TITLE, rows, "\n".join([heading, *map(str, rows)]), summary)


def shape_of(text: str) -> Shape:
    """Return the sizes in 64x64x128."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", text)
    if not found:
        raise ValueError(f"Expected a shape as in 64x64x128 (batch x time x features), got {text!r}.")
    batch, time, features = map(int, found.groups())
    if batch == 1:
        raise ValueError(f"Expected a batch of at least 2, over which there are statistics, got {text!r}.")
    return batch, time, features


def normalized(text: str) -> str:
    """Check that a norm exists and acts inside cells."""
    norm = norms.get(text)
    norm.cell()
    if norm.name == PLAIN:
        raise ValueError(f"Expected norms, got {PLAIN!r}. The plain cell is always measured: leave it out.")
    return str(norm)


def measure(cell: str, shape: Shape, what: str, chosen: list[str], rounds: int) -> list[Row]:
    """Time the plain cell and its peers, and cells with a norm and the plain one."""
    peers = peers_of(cell, shape, what)
    contenders = {**peers, **{norm: ours(cell, norm, shape, what) for norm in (PLAIN, *chosen)}}
    seconds = interleave({name: contender.call for name, contender in contenders.items()}, rounds)
    return [
        Row(
            cell=cell,
            shape=sizes(shape),
            what=what,
            ours=one,
            other=other,
            ours_ms=1e3 * statistics.median(seconds[one]),
            other_ms=1e3 * statistics.median(seconds[other]),
            ours_mib=contenders[one].mib,
            other_mib=contenders[other].mib,
            rounds=rounds,
            **ratio(seconds[one], seconds[other])._asdict(),
        )
        for one, other in [*((PLAIN, peer) for peer in peers), *((norm, PLAIN) for norm in chosen)]
    ]


def peers_of(cell: str, shape: Shape, what: str) -> dict[str, Contender]:
    """Return Flax's cells, and PyTorch's if it is installed."""
    cells = [peer(shape[-1]) for peer in CELLS[cell].flax]
    flax = {f"{FLAX} {type(peer).__name__}": linen(nn.RNN(peer), shape, what) for peer in cells}
    if not find_spec("torch"):
        return flax
    return {**flax, f"torch {CELLS[cell].torch}": torch_call(CELLS[cell].torch, shape, what)}


def ours(cell: str, norm: str, shape: Shape, what: str) -> Contender:
    """Return a cell of ours, normalizing as in training."""
    train = {"use_running_average": False} if norms.get(norm).stateful else {}
    return linen(normlab.linen.RNN(CELLS[cell].ours(shape[-1], norm=norm, **train)), shape, what)


def linen(module: nn.Module, shape: Shape, what: str) -> Contender:
    """Return a Linen module's compiled call, as in a training step."""
    call = training_call(module, *draw(shape), what).compiled()
    memory = call.function.memory_analysis()
    return Contender(call, memory.temp_size_in_bytes / 2**20 if memory else None)


def torch_call(name: str, shape: Shape, what: str) -> Contender:
    """Return the call of a layer of `torch.nn`."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads would slow the next contender
    import torch

    features = shape[-1]
    module = getattr(torch.nn, name)(features, features, batch_first=True)
    x, dy = (torch.tensor(np.asarray(a)) for a in draw(shape))
    x.requires_grad_()

    def forward() -> Any:
        with torch.no_grad():
            return module(x)

    def both() -> Any:
        return torch.autograd.grad(module(x)[0], [x, *module.parameters()], dy)

    return Contender(forward if what == FORWARD else both, None)


if __name__ == "__main__":
    main()
