"""How long does an update take on images of 32 x 32 pixels, beside PyTorch and a Flax loop?

All contenders make the same update: forward, backward, SGD with momentum, on one set of random images. They wait in
processes of their own and take turns in shuffled rounds; compiling and warming up come first and are not counted.

    python -m benchmarks.speed.images                                    # four networks, batches of 2, 32 and 128
    python -m benchmarks.speed.images --networks resnet20 --batch-sizes 32 --rounds 7
    python -m benchmarks.speed.images --output benchmarks/results/images-cpu  # writes .csv and .md

With `--output`, measurements of other networks and batch sizes that are in OUTPUT.csv stay, so that a long measurement
can be made in parts.

Contenders:
    ours             the compiled training of `normlab run`; its workers are as many one-thread processes as cores
    flax             Flax's own layers, a jitted update in a Python loop
    torch            PyTorch eager (extra `peers`), images as (batch, channels, height, width)
    torch, channels  the same with `channels_last`
"""

import argparse
import csv
import importlib.util
import itertools
import os
import statistics
import time
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmarks.speed import _timing
from benchmarks.speed.throughput import spawn

if TYPE_CHECKING:
    from flax import linen as nn

    from normlab.norms import Norm

LEARNING_RATE = 0.01
MEGAFLOPS = {"conv": 6, "resnet20": 250, "vgg11": 920, "vit": 2100}
"""Work of an update for each example."""

PER_TURN = 120_000
"""Work of a turn, in the same unit: some seconds on one core."""

UPDATES = (4, 300)
"""Fewest and most updates of a turn."""

Turn = Callable[[], float]
"""Makes the updates of a turn; returns their seconds."""


class Case(NamedTuple):
    """A network and a batch size."""

    network: str
    batch_size: int

    @property
    def updates(self) -> int:
        """Updates of a turn."""
        fewest, most = UPDATES
        return min(most, max(fewest, PER_TURN // (MEGAFLOPS[self.network] * self.batch_size)))


class Contender(NamedTuple):
    """A library, and how many processes of how many threads train with it at the same time."""

    library: str
    threads: int
    processes: int = 1

    def __str__(self) -> str:
        """Return the name in the table."""
        return f"{self.library} {self.threads}{f' x {self.processes}' if self.processes > 1 else ''}"


ENGINE, OURS_1, OURS_2, FLAX_2 = (
    Contender("ours", 1, 2),
    Contender("ours", 1),
    Contender("ours", 2),
    Contender("flax", 2),
)
TORCH_1, TORCH_2 = (
    tuple(Contender(library, threads) for library in ("torch", "torch, channels")) for threads in (1, 2)
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contender at one case: milliseconds of an update, median and range over rounds.

    Attributes:
        ms: With several processes, the time of an update divided by their number.
        ratio: Median over rounds of the contender's time divided by that of the engine, two processes of one thread.
        load: Processes that competed for cores over the minute before.
    """

    network: str
    batch_size: int
    contender: str
    threads: int
    processes: int
    ms: float
    ms_low: float
    ms_high: float
    ratio: float
    updates: int
    rounds: int
    load: float


def main() -> None:
    """Measure, print, and write files if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(MEGAFLOPS), default=list(MEGAFLOPS))
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[2, 32, 128])
    parser.add_argument("--rounds", type=_timing.at_least_one, default=5)
    parser.add_argument("--output", type=Path, help="write OUTPUT.csv and OUTPUT.md")
    args = parser.parse_args()
    if min(args.batch_sizes) < 2:
        parser.error(f"Expected `--batch-sizes` of at least 2, got {min(args.batch_sizes)}.")

    rows = read(args.output) if args.output else []
    print(environment(), heading(), sep="\n")
    for case in itertools.starmap(Case, itertools.product(args.networks, args.batch_sizes)):
        measured = measure(case, args.rounds)
        print(line(measured), flush=True)
        others = [row for row in rows if (row.network, row.batch_size) != case]
        rows = sorted([*others, *measured], key=lambda row: (list(MEGAFLOPS).index(row.network), row.batch_size))
        if args.output:
            write(args.output, rows)
    print(summary(rows))


def contenders() -> list[Contender]:
    """Return ours, Flax, and PyTorch if it is installed."""
    peers = [*TORCH_1, *TORCH_2] if importlib.util.find_spec("torch") else []
    return [ENGINE, OURS_1, OURS_2, FLAX_2, *peers]


def measure(case: Case, rounds: int) -> list[Row]:
    """Let all contenders make updates in turns."""
    there = contenders()
    teams = {contender: Team(contender, case) for contender in there if contender != OURS_1}
    teams[OURS_1] = teams[ENGINE]  # one of its processes alone
    for contender in there:
        teams[contender].wait()
    seconds: dict[Contender, list[float]] = {contender: [] for contender in there}
    for _, contender in _timing.turns(there, rounds):
        seconds[contender].append(teams[contender].turn(contender.processes))
    for contender in there:
        teams[contender].end()
    load = os.getloadavg()[0]
    return [
        Row(
            **case._asdict(),
            contender=str(contender),
            threads=contender.threads,
            processes=contender.processes,
            ms=1e3 * statistics.median(taken),
            ms_low=1e3 * min(taken),
            ms_high=1e3 * max(taken),
            ratio=statistics.median(a / b for a, b in zip(taken, seconds[ENGINE], strict=True)),
            updates=case.updates,
            rounds=rounds,
            load=load,
        )
        for contender, taken in seconds.items()
    ]


class Team:
    """The processes of a contender at a case."""

    def __init__(self, contender: Contender, case: Case) -> None:
        """Start the processes, which prepare at once."""
        self._updates, self._ready = case.updates, False
        with process_environment(contender.threads):
            started = [spawn(work, contender, case) for _ in range(contender.processes)]
        self._processes, self._connections = zip(*started, strict=True)

    def wait(self) -> None:
        """Wait until the processes are ready to make updates."""
        for connection in () if self._ready else self._connections:
            connection.recv()
        self._ready = True

    def turn(self, processes: int) -> float:
        """Let some processes make the updates of a turn at the same time; return the seconds for each update."""
        for connection in self._connections[:processes]:
            connection.send(True)
        seconds = [connection.recv() for connection in self._connections[:processes]]
        return statistics.mean(seconds) / (processes * self._updates)

    def end(self) -> None:
        """End the processes, once."""
        for connection, process in zip(self._connections, self._processes, strict=True):
            if process.is_alive():
                connection.send(False)
                process.join()


@contextmanager
def process_environment(threads: int) -> Iterator[None]:
    """Set the environment of child processes: that of the engine's workers for one thread."""
    from normlab.study.worker.strategy import Strategy

    before = dict(os.environ)
    if threads == 1:
        os.environ.update(Strategy().environment(before))
    else:
        os.environ["JAX_PLATFORMS"] = "cpu"
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def work(connection: Connection, contender: Contender, case: Case) -> None:
    """Report when ready, then make updates as long as asked to."""
    turn = {"ours": ours, "flax": flax_loop}.get(contender.library, torch_eager)(contender, case)
    turn()
    connection.send(True)
    while connection.recv():
        connection.send(turn())


def images(case: Case, updates: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw images and classes for a number of updates."""
    draws = np.random.default_rng(0)
    shape = (updates * case.batch_size, 32, 32, 3)
    return draws.normal(size=shape).astype(np.float32), draws.integers(0, 10, shape[0]).astype(np.int32)


def norm_of(name: str) -> str:
    """Name the norm that a network is known with."""
    return "layer" if name == "vit" else "batch"


def network(name: str, norm: "Norm | None" = None) -> "nn.Module":
    """Make a network of the zoo."""
    from normlab import norms
    from normlab.models import mlp, resnet, vgg, vit

    norm = norm or norms.get(norm_of(name))
    if name == "vgg11":
        return vgg.VGG(norm, depth=11)
    if name == "vit":
        return vit.ViTTiny(norm, classes=10, patch=4)
    return resnet.ResNet(norm) if name == "resnet20" else mlp.ConvNet(norm)


def ours(contender: Contender, case: Case) -> Turn:
    """Return the compiled training of `normlab run`."""
    from normlab import norms, study
    from normlab.study.training.compilation import compile_program

    held_out = 20
    inputs, classes = images(case, case.updates)
    data = study.Data(
        np.concatenate([inputs, inputs[:1].repeat(2 * held_out, 0)]),
        np.concatenate([classes, np.arange(2 * held_out) % 10]),
        validation=held_out,
        test=held_out,
    )
    problem = study.supervised(name=case.network, model=partial(network, case.network), data=data)
    program = problem.build(norms.get(norm_of(case.network)), {"batch_size": case.batch_size, "epochs": 1})
    compiled = compile_program(program)
    seeds = itertools.count()
    return lambda: next(compiled.train([LEARNING_RATE], [next(seeds)])).seconds


def flax_loop(contender: Contender, case: Case) -> Turn:
    """Make updates like a plain Flax script."""
    import jax
    import jax.numpy as jnp
    import optax

    from benchmarks.speed._peer_networks import FlaxNetwork

    model, (inputs, classes) = FlaxNetwork(case.network), images(case, case.updates)
    optimizer = optax.sgd(optax.cosine_decay_schedule(LEARNING_RATE, case.updates), momentum=0.9)
    variables = jax.jit(model.init)(jax.random.key(0), inputs[: case.batch_size])
    state = variables["params"], variables.get("batch_stats", {}), optimizer.init(variables["params"])

    @jax.jit
    def update(state: Any, inputs: jax.Array, labels: jax.Array) -> tuple[Any, jax.Array]:
        params, averages, opt_state = state

        def loss(params: Any) -> tuple[jax.Array, Any]:
            logits, after = model.apply({"params": params, "batch_stats": averages}, inputs, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(logits), labels).mean(), after

        (value, after), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(gradients, opt_state)
        return (optax.apply_updates(params, updates), after.get("batch_stats", {}), opt_state), value

    def turn() -> float:
        nonlocal state
        start = time.perf_counter()
        for first in range(0, len(classes), case.batch_size):
            batch = slice(first, first + case.batch_size)
            state, _ = update(state, inputs[batch], classes[batch])
        jax.block_until_ready(state)
        return time.perf_counter() - start

    return turn


def torch_eager(contender: Contender, case: Case) -> Turn:
    """Make updates like a plain PyTorch script."""
    import torch

    from benchmarks.speed._peer_networks import torch_network

    torch.set_num_threads(contender.threads)
    layout = torch.channels_last if contender.library.endswith("channels") else torch.contiguous_format
    drawn, classes = images(case, case.updates)
    inputs = torch.tensor(drawn.transpose(0, 3, 1, 2)).contiguous(memory_format=layout)
    labels = torch.tensor(classes, dtype=torch.long)
    torch.manual_seed(0)
    net = torch_network(case.network).to(memory_format=layout)  # pyright: ignore[reportCallIssue]
    optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE, momentum=0.9)

    def turn() -> float:
        start = time.perf_counter()
        for first in range(0, len(labels), case.batch_size):
            batch = slice(first, first + case.batch_size)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(inputs[batch]), labels[batch]).backward()
            optimizer.step()
        return time.perf_counter() - start

    return turn


def environment() -> str:
    """Name versions, processor and load."""
    peers = f", torch {version('torch')}" if importlib.util.find_spec("torch") else ""
    return f"{_timing.environment('CPU ' + processor())}{peers}"


def processor() -> str:
    """Return the model of the processor, or its architecture."""
    found = [text for text in _lines(Path("/proc/cpuinfo")) if text.startswith("model name")]
    return found[0].partition(":")[2].strip() if found else os.uname().machine


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def heading() -> str:
    """Return the heading of the table."""
    names = "".join(f"{contender!s:>19}" for contender in contenders())
    return f"{'network':9}{'batch':>5}{names}   engine / torch 2, ours 1 / torch 1, ours 2 / torch 2, engine / flax 2"


def line(rows: Sequence[Row]) -> str:
    """Return the line of a case: milliseconds of each contender, then ratios to the faster layout of PyTorch."""
    ms = {row.contender: row.ms for row in rows}
    times = "".join(f"{value:19.2f}" for value in ms.values())
    found = ", ".join(f"{value:.2f}" if value else "-" for value in ratios(ms))
    return f"{rows[0].network:9}{rows[0].batch_size:5}{times}   {found}"


def ratios(ms: Mapping[str, float]) -> list[float]:
    """Divide our times by those of peers; 0 for a peer that is not there."""
    pairs = ((ENGINE, TORCH_2), (OURS_1, TORCH_1), (OURS_2, TORCH_2), (ENGINE, (FLAX_2,)))
    best = [min((ms[str(peer)] for peer in peers if str(peer) in ms), default=0.0) for _, peers in pairs]
    return [ms[str(one)] / other if other else 0.0 for (one, _), other in zip(pairs, best, strict=True)]


def by_case(rows: Sequence[Row]) -> list[list[Row]]:
    """Group rows by network and batch size."""
    return [list(group) for _, group in itertools.groupby(rows, lambda row: (row.network, row.batch_size))]


def summary(rows: Sequence[Row]) -> str:
    """Count the cases in which the engine is at least as fast as PyTorch with two threads."""
    found = [ratios({row.contender: row.ms for row in case})[0] for case in by_case(rows)]
    compared = [ratio for ratio in found if ratio]
    if not compared:
        return "PyTorch is not installed: nothing to compare with."
    kept = sum(ratio <= 1 for ratio in compared)
    return (
        f"The engine, two processes of one thread, takes at most the time of PyTorch with two threads in {kept} of "
        f"{len(compared)} cases."
    )


def read(output: Path) -> list[Row]:
    """Read the measurements that OUTPUT.csv has; none if there is no such file."""
    if not output.with_suffix(".csv").exists():
        return []
    kinds = typing.get_type_hints(Row)
    with output.with_suffix(".csv").open(newline="") as file:
        return [Row(**{name: kinds[name](text) for name, text in row.items()}) for row in csv.DictReader(file)]


def write(output: Path, rows: Sequence[Row]) -> None:
    """Write OUTPUT.csv and the page OUTPUT.md."""
    table = "\n".join([environment(), heading(), *map(line, by_case(rows))])
    _timing.write(output, "An update on images of 32 x 32 pixels, beside PyTorch and Flax", rows, table, summary(rows))


if __name__ == "__main__":
    main()
