"""How many examples per second does test-then-train process, as one program, live, and compared with peers?

A network with two hidden layers of 64 predicts each example of a stream, then learns from it, one at a time: in one
compiled program; by the same step, compiled separately, in a Python loop; and in the live wrapper, which takes dicts.
The peers are river's models, and the same network in deep-river, on PyTorch. All contenders take turns in shuffled
rounds of one process; a ratio is a contender's time for an example over the time of the compiled program with the same
norm, within a round. Compile time is not included. Before the rounds, single calls of the live wrapper are timed, and
the memory of the process is measured while no peer is loaded.

    python -m benchmarks.speed.online
    python -m benchmarks.speed.online --examples 20000 --rounds 20 --norms none,online
    python -m benchmarks.speed.online --output benchmarks/results/online-speed-cpu  # writes .csv and .md

Contenders that are not installed are named and left out. deep-river 0.3 needs river 0.25.
"""

import argparse
import functools
import itertools
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from river import datasets, evaluate, linear_model, metrics, preprocessing, tree

from benchmarks.speed._timing import environment, interleave, ratio, write
from normlab import norms
from normlab.introspect.pure import Network, network
from normlab.models.mlp import MLP
from normlab.river import Classifier
from normlab.study.training.objectives import MISCLASSIFICATION
from normlab.study.training.prequential import Learner, LearnerState, test_then_train

NORMS = "none,online,layer,batch:statistics='running'"
PLAIN = "none"
LEARNING_RATE = 0.01
COMPILED, LOOP, LIVE, SCORED, DEEP_RIVER = (
    "compiled pass",
    "Python loop",
    "live wrapper",
    "live, scored by river",
    "deep-river",
)
SHARE = 10
"""Of the compiled pass's examples, one in so many goes through the others, which are slower."""

MEMORY_AT = (1_000, 10_000)


class Stream(NamedTuple):
    """Scaled stream, as arrays and as river examples."""

    inputs: np.ndarray
    labels: np.ndarray
    pairs: list[tuple[dict[str, float], int]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """Contender compared with the compiled pass; microseconds for an example, medians over rounds."""

    contender: str
    norm: str
    microseconds: float
    examples_per_second: float
    ratio: float
    ratio_low: float
    ratio_high: float
    rounds: int

    TITLE: ClassVar = "Speed of test-then-train, one example at a time"
    HEADING: ClassVar = f"{'contender':28}{'norm':28}{'us/example':>12}{'examples/s':>12}{'x compiled':>12}  quartiles"
    BARS: ClassVar = {LOOP: 10.0, DEEP_RIVER: 20.0}
    """Smallest acceptable ratios without a norm."""

    @property
    def within_bar(self) -> bool | None:
        """True if the ratio keeps the bar; `None` without a bar."""
        bar = self.BARS.get(self.contender) if self.norm == PLAIN else None
        return None if bar is None else self.ratio >= bar

    def __str__(self) -> str:
        """Return a row of the table; `!` marks a ratio under the bar."""
        return (
            f"{self.contender:28}{self.norm:28}{self.microseconds:12.1f}{self.examples_per_second:12.0f}"
            f"{self.ratio:11.1f}{'!' if self.within_bar is False else ' '}  "
            f"{self.ratio_low:.1f} to {self.ratio_high:.1f}"
        )


def main() -> None:
    """Measure, print, and write files if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=10_000, help="of the compiled pass; others take a tenth")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--norms", default=NORMS, help="comma-separated; without a norm is always there")
    parser.add_argument("--output", type=Path, help="write OUTPUT.csv and OUTPUT.md")
    args = parser.parse_args()
    try:
        for name, least in (("examples", SHARE), ("rounds", 1)):
            if getattr(args, name) < least:
                raise ValueError(f"Expected `--{name}` to be at least {least}, got {getattr(args, name)}.")
        chosen = dict.fromkeys([PLAIN, *(str(norms.get(text)) for text in norms.parse_list(args.norms))])
    except ValueError as error:
        parser.error(str(error))

    stream = drawn(args.examples)
    notes = [memory(stream), *(latency(stream, norm) for norm in chosen)]
    peers, missing = peers_of(stream)
    heading = f"{environment(jax.devices()[0].device_kind)}\n{versions()}\n{Row.HEADING}"
    print(heading, flush=True)
    rows = measure(stream, list(chosen), peers, args.rounds)
    print(*rows, sep="\n")
    kept = [row.within_bar for row in rows if row.within_bar is not None]
    bars = ", ".join(f"{bar:g} times {name}" for name, bar in Row.BARS.items())
    summary = "\n\n".join([f"{sum(kept)} of {len(kept)} ratios within the bars ({bars}).", *missing, *notes])
    print(summary)
    if args.output:
        write(args.output, Row.TITLE, rows, "\n".join([heading, *map(str, rows)]), summary)


def drawn(n: int) -> Stream:
    """Draw Agrawal's loan stream from river, with nine features scaled online."""
    scaler, pairs = preprocessing.StandardScaler(), []
    for x, y in datasets.synth.Agrawal(seed=0).take(n):
        numbers = {name: float(value) for name, value in x.items()}
        scaler.learn_one(numbers)
        pairs.append((scaler.transform_one(numbers), y))
    rows = [[x[name] for name in sorted(x)] for x, _ in pairs]
    return Stream(np.array(rows, np.float32), np.array([y for _, y in pairs], np.int32), pairs)


def measure(stream: Stream, chosen: list[str], peers: Mapping[str, Callable[[], Any]], rounds: int) -> list[Row]:
    """Time all contenders in turns."""
    some = stream.pairs[: len(stream.pairs) // SHARE]
    contenders: dict[tuple[str, str], Callable[[], Any]] = {}
    for norm in chosen:
        contenders[COMPILED, norm] = compiled(stream, norm)
        contenders[LOOP, norm] = loop(stream, norm, len(some))
        contenders[LIVE, norm] = bare(live(norm), some)
        contenders[SCORED, norm] = scored(live(norm), some)
    contenders |= {(name, PLAIN): call for name, call in peers.items()}
    seconds = {
        name: [second / (len(stream.pairs) if name[0] == COMPILED else len(some)) for second in found]
        for name, found in interleave(contenders, rounds).items()
    }
    return [
        Row(
            contender=contender,
            norm=norm,
            microseconds=1e6 * statistics.median(found),
            examples_per_second=1 / statistics.median(found),
            rounds=rounds,
            **ratio(found, seconds[COMPILED, norm])._asdict(),
        )
        for (contender, norm), found in seconds.items()
    ]


def net(stream: Stream, norm: str) -> Network:
    """Make the network of all contenders but river's models."""
    return network(MLP, norms.get(norm), stream.inputs[:1], hidden=(64, 64), classes=2)


def compiled(stream: Stream, norm: str) -> Callable[[], Any]:
    """Return the whole pass as one program."""
    run, state = test_then_train(net(stream, norm), stream.inputs, stream.labels)
    rate = jnp.float32(LEARNING_RATE)
    return lambda: jax.block_until_ready(run(state, rate))


def loop(stream: Stream, norm: str, n: int) -> Callable[[], Any]:
    """Return a loop over the same step, compiled separately; the state stays on the device, without waiting."""
    model = net(stream, norm)
    learner = Learner(
        network=model,
        objective=optax.softmax_cross_entropy_with_integer_labels,
        error=MISCLASSIFICATION.function,
    )

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state: LearnerState, t: Any, x: Any, y: Any) -> tuple[LearnerState, jax.Array]:
        error = learner.test(state, x, y)
        return learner.train(state, (x, y), jnp.ones(1, bool), t, LEARNING_RATE)[0], error

    def run() -> tuple[LearnerState, jax.Array]:
        state, error = LearnerState(params, model_state, optax.sgd(0.0).init(params)), jnp.zeros(1)
        for t in range(n):
            state, error = step(state, np.int32(t), stream.inputs[t : t + 1], stream.labels[t : t + 1])
        return jax.block_until_ready((state, error))

    params, model_state = jax.tree.map(np.array, model.init(0))
    return run


def live(norm: str) -> Classifier:
    """Return the wrapper around the same net and optimizer."""
    return Classifier(norm=norm, optimizer=optax.sgd, learning_rate=LEARNING_RATE)


def bare(model: Any, pairs: Sequence[tuple[dict[str, float], int]]) -> Callable[[], Any]:
    """Return a loop that predicts each example, then learns from it."""

    def run() -> None:
        for x, y in pairs:
            model.predict_one(x)
            model.learn_one(x, y)

    return run


def scored(model: Any, pairs: Sequence[tuple[dict[str, float], int]]) -> Callable[[], Any]:
    """Return river's own loop."""
    return lambda: evaluate.progressive_val_score(pairs, model, metrics.Accuracy())


def peers_of(stream: Stream) -> tuple[dict[str, Callable[[], Any]], list[str]]:
    """Return river's models and deep-river's, and a line for missing ones."""
    some = stream.pairs[: len(stream.pairs) // SHARE]
    peers = {
        "river LogisticRegression": bare(linear_model.LogisticRegression(), some),
        "river HoeffdingAdaptiveTree": bare(tree.HoeffdingAdaptiveTreeClassifier(seed=0), some),
    }
    try:
        return {**peers, DEEP_RIVER: bare(deep_river(stream.inputs.shape[1]), some)}, []
    except ImportError as error:
        return peers, [f"Left out: {DEEP_RIVER} ({error})."]


def deep_river(features: int) -> Any:
    """Return the same network in PyTorch, with PyTorch's default number of threads.

    Raises:
        ImportError: If deep-river is missing or needs another version of river.
    """
    from deep_river.classification import Classifier as DeepClassifier
    from torch import nn

    class Net(nn.Module):
        def __init__(self, n_features: int = features, **_: Any) -> None:
            super().__init__()
            widths = ((n_features, 64), (64, 64), (64, 2))
            self.layers = nn.ModuleList([nn.Linear(*width) for width in widths])

        def forward(self, x: Any) -> Any:
            for layer in self.layers[:-1]:
                x = nn.functional.relu(layer(x))
            return self.layers[-1](x)

    with warnings.catch_warnings(action="ignore"):
        return DeepClassifier(
            module=Net(),
            loss_fn="cross_entropy",
            optimizer_fn="sgd",
            lr=LEARNING_RATE,
            is_class_incremental=False,
            is_feature_incremental=False,
        )


def latency(stream: Stream, norm: str) -> str:
    """Time single calls of the live wrapper with default options, each until its work is done."""
    model, seconds = Classifier(norm=norm), ([], [])

    def timed(call: Callable[..., Any], *arguments: Any) -> float:
        start = time.perf_counter()
        call(*arguments)
        jax.block_until_ready(model._learned and model._learned.packed)
        return 1e6 * (time.perf_counter() - start)

    for x, y in stream.pairs[: max(20, len(stream.pairs) // SHARE)]:
        seconds[0].append(timed(model.predict_one, x))
        seconds[1].append(timed(model.learn_one, x, y))
    predict, learn = (statistics.quantiles(found[10:], n=10) for found in seconds)
    return (
        f"Live wrapper as it is by default, norm {norm}: `learn_one` {learn[4]:.0f} us (median; nine in ten under "
        f"{learn[8]:.0f}), `predict_one` {predict[4]:.0f} us ({predict[8]:.0f})."
    )


def memory(stream: Stream) -> str:
    """Let the live wrapper learn, and measure the peak memory of the process."""
    try:
        import resource
    except ImportError:
        return "Memory: not known on this platform."
    model, found = live("online"), []
    repeated = itertools.cycle(stream.pairs)
    for before, after in itertools.pairwise((0, *MEMORY_AT)):
        for x, y in itertools.islice(repeated, after - before):
            model.predict_one(x)
            model.learn_one(x, y)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        found.append(f"{peak / 2**20:.1f} MiB after {after} examples")
    return f"Peak memory of the process with the live wrapper: {', '.join(found)}."


def versions() -> str:
    """Name the versions of the peers."""
    found = []
    for name in ("optax", "river", "torch", "deep-river"):
        with suppress(PackageNotFoundError):
            found.append(f"{name} {version(name)}")
    return ", ".join(found)


if __name__ == "__main__":
    main()
