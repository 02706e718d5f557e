"""How many models a minute does `normlab run` train, compared with a plain Flax script and a PyTorch one?

All contenders have the same data, networks, optimizer, epochs and cores, and are written and run as their users would,
in processes of their own. They take turns in shuffled rounds; a turn is as many whole trainings as take about `--turn`
seconds. The time before the second update (building, compiling, warming up) is measured separately.

    python -m benchmarks.speed.throughput                          # MLP and conv net, batches of 4 and 32
    python -m benchmarks.speed.throughput --models conv --norms batch --batch-sizes 4 --rounds 3
    python -m benchmarks.speed.throughput --data tfds:mnist tfds:cifar10 --data-dir DIR --norms batch --rounds 3
    python -m benchmarks.speed.throughput --output benchmarks/results/throughput-cpu  # writes .csv and .md

Contenders:
    ours        two processes of one thread, the whole training compiled, as the workers of `normlab run`
    flax        Flax's own layers, a jitted update in a Python loop over NumPy batches
    torch       PyTorch eager (extra `peers`)
    ... x 2     the same as two processes of one thread
"""

import argparse
import csv
import dataclasses
import importlib.util
import itertools
import multiprocessing
import os
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.speed._timing import command_line
from normlab.study.data.dataset import Data
from normlab.study.data.options import chosen
from normlab.study.data.splits import divided, shuffled, sizes

LEARNING_RATE = 0.03
WIDTHS, STRIDES, HIDDEN, CLASSES = (16, 16, 32), (2, 1, 2), (100, 100), 10
"""Sizes of the models in `normlab.models.mlp`."""

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PJRT_NPROC": "1",  # threads of XLA
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false",
}
BARS = {(4, "torch"): 8.0, (4, "flax"): 2.5, (32, "torch"): 3.5, (32, "flax"): 2.2}
"""How many times as long as ours an update of the conv net should take a contender with its default threads."""

LOADING_BAR, MEMORY_BAR = 0.05, 2.0
"""Share of the time of training that may go into making batches, and bytes of memory for each byte of data."""

COMPILE_BAR = 1 / 3
"""How much of the first invocation's time to compile the second should need at most."""

Train = Callable[[int], float]
"""Trains the model of one seed; gives its test error."""


class Case(NamedTuple):
    """Model, data and batch size of a measurement."""

    model: str
    norm: str
    batch_size: int
    data: str = "digits"
    data_dir: str | None = None

    @property
    def epochs(self) -> int:
        """Passes over the training set: a turn should take seconds."""
        return 20 if self.data == "digits" else 1

    @property
    def train(self) -> int:
        """Number of training examples."""
        return sizes(load(self))[0]

    @property
    def steps(self) -> int:
        """Number of updates."""
        return self.epochs * (self.train // self.batch_size)

    @property
    def averaging(self) -> float:
        """Weight of the old value in running averages: a time constant of a twentieth of the training."""
        return max(0.0, 1 - 20 * self.batch_size / (self.epochs * self.train))


@lru_cache(maxsize=1)
def load_from(data: str, data_dir: str | None) -> Data:
    """Load the data, once in each process."""
    return chosen(data, data_dir)


def load(case: Case) -> Data:
    """Load the data of a case."""
    return load_from(case.data, case.data_dir)


class Contender(NamedTuple):
    """Implementation and number of processes: one with default threads, or several with one thread each."""

    library: str
    processes: int

    def __str__(self) -> str:
        """Return the name in the table."""
        return self.library if self.library == "ours" or self.processes == 1 else f"{self.library} x {self.processes}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contender at one case; times are medians over rounds, with their ranges."""

    data: str
    model: str
    norm: str
    batch_size: int
    contender: str
    processes: int
    step_us: float
    step_us_low: float
    step_us_high: float
    models_per_minute: float
    epochs_per_hour: float
    ratio: float
    ratio_low: float
    ratio_high: float
    setup_seconds: float
    test_error: float
    trained: int
    rounds: int


def main() -> None:
    """Measure, print, and write files if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["digits"], help="as in `normlab run`")
    parser.add_argument("--data-dir", help="as in `normlab run`")
    parser.add_argument("--models", nargs="+", choices=("mlp", "conv"), default=["mlp", "conv"])
    parser.add_argument("--norms", nargs="+", choices=("batch", "none"), default=["batch", "none"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[4, 32])
    parser.add_argument("--rounds", type=int, default=5, help="0 leaves out the table and measures the rest")
    parser.add_argument("--turn", type=float, default=2.0, help="seconds; at least one model is trained")
    parser.add_argument("--output", type=Path, help="write OUTPUT.csv and OUTPUT.md")
    args = parser.parse_args()

    rows: list[Row] = []
    print(header())
    product = itertools.product(args.data, args.models, args.norms, args.batch_sizes)
    for data, model, norm, batch_size in product if args.rounds else ():
        measured = measure(Case(model, norm, batch_size, data, args.data_dir), args.rounds, args.turn)
        print(*map(line, measured), sep="\n", flush=True)
        rows += measured
        if args.output:
            write(args.output, rows, [])  # keeps finished measurements if a later one fails
    cases = [Case(model, "batch", 32, data, args.data_dir) for data in args.data for model in args.models]
    costs = [growth(case) if case.data == "digits" else loading(case) for case in cases]
    told = [summary(rows), *costs] if rows else costs
    print(*told, sep="\n")
    if args.output:
        write(args.output, rows, told)
        print(f"wrote {args.output.with_suffix('.csv')} and {args.output.with_suffix('.md')}")


def contenders() -> list[Contender]:
    """Return ours, Flax, and PyTorch if it is installed."""
    peers = ["flax", "torch"] if importlib.util.find_spec("torch") else ["flax"]
    return [Contender("ours", 2), *[Contender(peer, processes) for peer in peers for processes in (1, 2)]]


def measure(case: Case, rounds: int, turn: float) -> list[Row]:
    """Let all contenders train one case, in turns."""
    teams = {contender: Team(contender, case) for contender in contenders()}
    runs = {contender: max(1, round(turn / team.turn(1))) for contender, team in teams.items()}
    seconds: dict[Contender, list[float]] = {contender: [] for contender in teams}
    order, shuffle = list(teams), random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for contender in order:
            wall = teams[contender].turn(runs[contender])
            seconds[contender].append(wall / (runs[contender] * contender.processes))
    for team in teams.values():
        team.end()
    ours = seconds[Contender("ours", 2)]
    return [row(case, contender, team, seconds[contender], ours) for contender, team in teams.items()]


def row(case: Case, contender: Contender, team: "Team", seconds: Sequence[float], ours: Sequence[float]) -> Row:
    """Summarize the rounds of a contender; seconds are per model."""
    ratios = [a / b for a, b in zip(seconds, ours, strict=True)]
    to_us = 1e6 / case.steps
    return Row(
        data=case.data,
        model=case.model,
        norm=case.norm,
        batch_size=case.batch_size,
        contender=str(contender),
        processes=contender.processes,
        step_us=to_us * statistics.median(seconds),
        step_us_low=to_us * min(seconds),
        step_us_high=to_us * max(seconds),
        models_per_minute=60 / statistics.median(seconds),
        epochs_per_hour=3600 * case.epochs / statistics.median(seconds),
        ratio=statistics.median(ratios),
        ratio_low=min(ratios),
        ratio_high=max(ratios),
        setup_seconds=team.setup_seconds,
        test_error=statistics.median(team.errors),
        trained=len(team.errors),
        rounds=len(seconds),
    )


class Team:
    """The processes of a contender at a case, ready to train.

    Attributes:
        setup_seconds: Seconds until the slowest process was ready.
        errors: Test errors of all trained models.
    """

    def __init__(self, contender: Contender, case: Case) -> None:
        """Start the processes and wait until they are ready."""
        threads = ONE_THREAD if contender.processes > 1 else {}
        with environment(JAX_PLATFORMS="cpu", JAX_ENABLE_COMPILATION_CACHE="false", **threads):
            started = [spawn(work, contender.library, case) for _ in range(contender.processes)]
        self._processes, self._connections = zip(*started, strict=True)
        self.setup_seconds = max(self._receive())
        self.errors: list[float] = []

    def turn(self, runs: int) -> float:
        """Let every process train `runs` models with new seeds, and return the seconds until all have."""
        first, each = len(self.errors), range(len(self._connections))
        start = time.perf_counter()
        for i in each:
            self._connections[i].send(range(first + i * runs, first + (i + 1) * runs))
        errors = self._receive()
        seconds = time.perf_counter() - start
        self.errors += [error for one in errors for error in one]
        return seconds

    def end(self) -> None:
        """End the processes."""
        for connection, process in zip(self._connections, self._processes, strict=True):
            connection.send(())
            process.join()

    def _receive(self) -> list[Any]:
        return [connection.recv() for connection in self._connections]


def spawn(target: Callable[..., None], *arguments: Any) -> tuple[Any, Connection]:
    """Start a process that calls `target(connection, *arguments)`."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    return process, ours


@contextmanager
def environment(**changes: str) -> Iterator[None]:
    """Set variables for child processes, which do not inherit the caller's settings of threads and caches."""
    before = dict(os.environ)
    for name in (*ONE_THREAD, "JAX_COMPILATION_CACHE_DIR"):
        os.environ.pop(name, None)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def work(connection: Connection, library: str, case: Case) -> None:
    """Report the time until ready, then train models for received seeds until there are no more."""
    train, seconds = {"ours": ours, "flax": flax_loop, "torch": torch_eager}[library](case)
    connection.send(seconds)
    while seeds := connection.recv():
        connection.send([train(seed) for seed in seeds])


def ours(case: Case) -> tuple[Train, float]:
    """Return the compiled training of `normlab run`."""
    compiled = compile_ours(case)
    return lambda seed: next(compiled.train([LEARNING_RATE], [seed])).metrics["test"], compiled.seconds


def compile_ours(case: Case) -> Any:
    """Compile the program."""
    from normlab.study.training.compilation import compile_program

    return compile_program(program(case))


def program(case: Case, data: Data | None = None) -> Any:
    """Return the program of a configuration."""
    from normlab import norms, study
    from normlab.models import mlp

    model = {"mlp": mlp.MLP, "conv": mlp.ConvNet}[case.model]
    problem = study.supervised(name=case.model, model=model, data=data or load(case))
    norm = norms.get(f"batch:momentum={case.averaging}" if case.norm == "batch" else case.norm)
    return problem.build(norm, {"batch_size": case.batch_size, "epochs": case.epochs})


def flax_loop(case: Case) -> tuple[Train, float]:
    """Train like a plain Flax script."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import linen as nn
    from flax.training import train_state

    class TrainState(train_state.TrainState):
        batch_stats: Any

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, train: bool) -> jax.Array:
            def activate(x: jax.Array) -> jax.Array:
                if case.norm == "batch":
                    x = nn.BatchNorm(use_running_average=not train, momentum=case.averaging)(x)
                return nn.relu(x)

            if case.model == "mlp":
                x = x.reshape(x.shape[0], -1)
                for width in HIDDEN:
                    x = activate(nn.Dense(width)(x))
                return nn.Dense(CLASSES)(x)
            for width, stride in zip(WIDTHS, STRIDES, strict=True):
                x = activate(nn.Conv(width, (3, 3), strides=stride, padding=1)(x))
            return nn.Dense(CLASSES)(x.mean(axis=(1, 2)))

    model, (images, classes) = Model(), floats(case)
    optimizer = optax.sgd(optax.cosine_decay_schedule(LEARNING_RATE, case.steps), momentum=0.9)

    def create(seed: int) -> TrainState:
        variables = model.init(jax.random.key(seed), images[:1], train=False)
        averages = variables.get("batch_stats", {})
        return TrainState.create(apply_fn=model.apply, params=variables["params"], tx=optimizer, batch_stats=averages)

    @jax.jit
    def update(state: TrainState, inputs: jax.Array, labels: jax.Array) -> tuple[TrainState, jax.Array]:
        def loss(params: Any) -> tuple[jax.Array, Any]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, after = state.apply_fn(variables, inputs, train=True, mutable=["batch_stats"])
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), after

        (value, after), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
        return state.apply_gradients(grads=gradients, batch_stats=after.get("batch_stats", {})), value

    @jax.jit
    def error(state: TrainState, inputs: jax.Array, labels: jax.Array) -> jax.Array:
        logits = state.apply_fn({"params": state.params, "batch_stats": state.batch_stats}, inputs, train=False)
        return (jnp.argmax(logits, -1) != labels).mean()

    def train(seed: int, steps: int = case.steps) -> float:
        state = create(seed)
        batches, test = batches_of(case, seed)
        for batch in batches[:steps]:
            state, _ = update(state, images[batch], classes[batch])
        return float(error(state, images[test], classes[test]))

    return train, timed(lambda: train(0, 1))


def torch_eager(case: Case, device: str = "cpu", *, compiled: bool = False) -> tuple[Train, float]:
    """Train like a plain PyTorch script.

    Args:
        case: Model, data and batch size.
        device: PyTorch's name of the device.
        compiled: Whether to compile the network, once for all seeds.
    """
    import torch
    from torch import nn

    images, classes = floats(case)
    inputs = torch.tensor(images, device=device).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor(classes, dtype=torch.long, device=device)

    def activation(norm: type[nn.BatchNorm1d | nn.BatchNorm2d], width: int) -> list[nn.Module]:
        return [*[norm(width, momentum=1 - case.averaging)] * (case.norm == "batch"), nn.ReLU()]

    def model() -> nn.Module:
        layers: list[nn.Module] = []
        if case.model == "mlp":
            layers.append(nn.Flatten())
            for wide, width in zip((inputs[0].numel(), *HIDDEN), HIDDEN, strict=False):
                layers += [nn.Linear(wide, width), *activation(nn.BatchNorm1d, width)]
            return nn.Sequential(*layers, nn.Linear(HIDDEN[-1], CLASSES))
        for wide, width, stride in zip((inputs.shape[1], *WIDTHS), WIDTHS, STRIDES, strict=False):
            layers += [nn.Conv2d(wide, width, 3, stride, padding=1), *activation(nn.BatchNorm2d, width)]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], CLASSES))

    first = model().to(device)
    compiled_first = torch.compile(first) if compiled else None

    def network() -> Any:
        fresh = model().to(device)
        if compiled_first is None:
            return fresh
        first.load_state_dict(fresh.state_dict())
        return compiled_first.train()

    def train(seed: int, steps: int = case.steps) -> float:
        torch.manual_seed(seed)
        net = network()
        optimizer = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, case.steps)
        batches, test = (torch.tensor(indices, dtype=torch.long, device=device) for indices in batches_of(case, seed))
        for batch in batches[:steps]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
        net.eval()
        with torch.no_grad():
            return (net(inputs[test]).argmax(1) != labels[test]).float().mean().item()

    return train, timed(lambda: train(0, 1))


def batches_of(case: Case, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the examples of all batches, shape (steps, batch), and of the test, as `normlab run` draws them."""
    data = load(case)
    parts = divided(data, seed)
    return shuffled(parts["train"], case.batch_size, case.epochs, seed), parts["test"]


def floats(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and labels as in a plain script: converted for the model once."""
    data = load(case)
    return data.prepared(data.inputs), data.labels


def timed(call: Callable[[], Any]) -> float:
    """Return the seconds of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def growth(case: Case) -> str:
    """Report how our cost grows with seeds and learning rates, and the compile time of a second invocation."""
    with (
        tempfile.TemporaryDirectory() as folder,
        environment(JAX_PLATFORMS="cpu", NORMLAB_CACHE=folder, **ONE_THREAD),
    ):
        (compiling, seconds), (again, _) = in_process(case), in_process(case)
    runs = ", ".join(map(str, seconds))
    of_seeds = ", ".join(f"{t / seconds[1]:.1f}" for t in seconds.values())
    of_rates = ", ".join(f"{(compiling + t) / (compiling + seconds[1]):.1f}" for t in seconds.values())
    return (
        f"{case.model}, {case.norm} norm, batch {case.batch_size}, one process: a model in {seconds[1]:.2f} s, "
        f"{runs} seeds in {of_seeds} times that. With the shared compiling, {runs} learning rates in {of_rates} "
        f"times the time of one. Compiling in {compiling:.2f} s, in a second invocation in {again:.2f} s "
        f"({again / compiling:.2f} of the first; the bar is {COMPILE_BAR:.2f})."
    )


def loading(case: Case) -> str:
    """Report the cost of data: loading time, share of each update, and memory."""
    with environment(JAX_PLATFORMS="cpu", JAX_ENABLE_COMPILATION_CACHE="false", **ONE_THREAD):
        seconds, share, peak, size = in_process(case, of_data, None)
        _, _, of_few, few = in_process(case, of_data, case.train // 10)
    return (
        f"{case.data}, {case.model}, one process: {size / 2**20:.0f} MiB of data are there in {seconds:.2f} s; making "
        f"batches of {case.batch_size} takes {share:.1%} of the time of training (the bar is {LOADING_BAR:.0%}). "
        f"Beside a process with {few / 2**20:.0f} MiB it has {(peak - of_few) / (size - few):.2f} bytes for each byte "
        f"more (the bar is {MEMORY_BAR:g}) at its peak of {peak / 2**20:.0f} MiB."
    )


def of_data(connection: Connection, case: Case, train_examples: int | None) -> None:
    """Send the seconds to load, the share of batches in training time, the peak memory and the data's size.

    Args:
        connection: Receiver.
        case: Model and data.
        train_examples: Number of examples; `None` is all.
    """
    import resource

    import jax

    from normlab.study.training.compilation import compile_program

    start = time.perf_counter()
    data = chosen(case.data, case.data_dir, train_examples)
    seconds = time.perf_counter() - start
    made = program(case, data)
    compiled = compile_program(made)
    training = min(next(compiled.train([LEARNING_RATE], [0])).seconds for _ in range(3))

    @jax.jit
    def batches(order: jax.Array, arrays: Any) -> Any:
        def made_of(batch: jax.Array) -> tuple[jax.Array, jax.Array]:
            return data.prepared(arrays["inputs"][batch]), arrays["labels"][batch]

        # A loop writes its state at each step, like the batch of a matrix product.
        return jax.lax.scan(lambda _, batch: (made_of(batch), None), made_of(order[0]), order)[0]

    arguments = jax.device_put((made.init(0).order, dict(made.data)))
    jax.block_until_ready(batches(*arguments))
    making = min(timed(lambda: jax.block_until_ready(batches(*arguments))) for _ in range(3))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    connection.send((seconds, making / training, peak, sum(array.nbytes for array in made.data.values())))


def in_process(case: Case, target: Callable[..., None] | None = None, *arguments: Any) -> Any:
    """Run `costs` or another function in a new process and return what it sends."""
    process, connection = spawn(target or costs, case, *arguments)
    told = connection.recv()
    process.join()
    return told


def costs(connection: Connection, case: Case) -> None:
    """Send the seconds to compile, and for 1, 2, 4 and 8 runs: the least of three times."""
    from normlab.study.training.compilation_cache import use_cache

    use_cache()
    compiled = compile_ours(case)

    def train(runs: int) -> float:
        return timed(lambda: list(compiled.train([LEARNING_RATE] * runs, range(runs))))

    train(1)
    connection.send((compiled.seconds, {runs: min(train(runs) for _ in range(3)) for runs in (1, 2, 4, 8)}))


def header() -> str:
    """Name versions, machine and load, and return the heading of the table."""
    names = ["jax", "flax", *["torch"] * any(contender.library == "torch" for contender in contenders())]
    packages = ", ".join(f"{name} {version(name)}" for name in names)
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    return (
        f"{packages}, Python {platform.python_version()}, {platform.machine()}, {os.cpu_count()} cores, {load}\n"
        f"{'data':14}{'model':6}{'norm':7}{'batch':>5}  {'contender':11}{'us/step':>8}{'range':>16}{'models/min':>12}"
        f"{'epochs/h':>10}"
        f"{'times ours':>12}{'range':>14}{'setup s':>9}{'error':>8}{'trained':>9}"
    )


def line(row: Row) -> str:
    """Return a row of the table; `!` marks a ratio under its bar."""
    us, ratios = f"{row.step_us_low:.0f} to {row.step_us_high:.0f}", f"{row.ratio_low:.1f} to {row.ratio_high:.1f}"
    mark = "!" if row.ratio < bar(row) else " "
    return (
        f"{row.data:14}{row.model:6}{row.norm:7}{row.batch_size:5}  {row.contender:11}{row.step_us:8.0f}{us:>16}"
        f"{row.models_per_minute:12.1f}{row.epochs_per_hour:10.0f}{row.ratio:11.2f}{mark}{ratios:>14}"
        f"{row.setup_seconds:9.1f}{row.test_error:8.3f}{row.trained:9}"
    )


def bar(row: Row) -> float:
    """Return the smallest acceptable ratio, 0 for no bar."""
    return BARS.get((row.batch_size, row.contender), 0.0) if row.model == "conv" else 0.0


def summary(rows: Sequence[Row]) -> str:
    """State how many of the rows with a bar keep it."""
    asked = [row for row in rows if bar(row)]
    kept = sum(row.ratio >= bar(row) for row in asked)
    bars = ", ".join(f"{name} at batch {size} {least:g}" for (size, name), least in BARS.items())
    return f"{kept} of {len(asked)} rows of the conv net keep the bars (times ours, default threads: {bars})."


def write(output: Path, rows: Sequence[Row], told: Sequence[str]) -> None:
    """Write the rows as CSV, and all as a page."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(Row)])
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in rows)
    table = "\n".join([header(), *map(line, rows)])
    page = ["# Models a minute, beside Flax and PyTorch", f"`{command_line()}`", f"```\n{table}\n```", *told]
    output.with_suffix(".md").write_text("\n\n".join(page) + "\n")


if __name__ == "__main__":
    main()
