"""Does whitening a layer's activations do more than batch norm, and at which cost?

Batch norm gives each unit mean 0 and variance 1; whitening also removes the correlation of units, within groups, by
Newton's iteration (IterNorm) or by an exact decomposition (ZCA). An MLP trains with either, with batch norm and without
norm, each at the learning rate that is best on validation images. The script measures the correlation that is left
after the norm and after the activation, the steps to the best accuracy of the network without norm, and the time of an
update, by turns in shuffled rounds.

    python experiments/whitening.py --output FOLDER
    python experiments/whitening.py --network mlp-10 --output FOLDER
    python experiments/whitening.py --network conv-32-64-128-128 --seeds 5 --output FOLDER    # CIFAR-10, for a GPU
    python experiments/whitening.py --data digits --quick
"""

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from flax import linen as nn
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.claims import images, networks, plots
from experiments.claims.estimates import Interval, average, points, ratio
from experiments.claims.images import Images, Part
from experiments.claims.progress import Speedup, gain, in_groups, smoothed
from experiments.claims.study import Plan, Study, main
from experiments.claims.trainer import (
    Budget,
    Settings,
    Trained,
    Tree,
    accuracy,
    chosen_rate,
    error,
    grid,
    trainer,
)
from experiments.claims.verdicts import Bar, Claim, Finding, Judgement, Row, Verdict
from normlab import norms
from normlab.introspect.pure import Network

WHITENS = Claim(
    key="whitens",
    text="Batch norm leaves units correlated; whitening does not.",
    source="Ioffe & Szegedy 2015, section 3; Huang et al. 2018, 2019",
)
FASTER = Claim(
    key="faster",
    text="Whitening trains in fewer steps than batch norm.",
    source="Huang et al. 2018, 2019",
)
COSTLY = Claim(
    key="costly",
    text="Whitening every layer is expensive beside batch norm.",
    source="Ioffe & Szegedy 2015, section 3",
)
NONE, BATCH, ITERATIVE, EXACT = "no norm", "batch norm", "whitening, iterative", "whitening, exact"
LOOKS = {
    NONE: plots.Look("none"),
    BATCH: plots.Look("batch"),
    ITERATIVE: plots.Look("whiten", colour="#0072b2"),  # the registry's colour of batch norm's whole family is one
    EXACT: plots.Look("whiten", "--", "#56b4e9"),
}
OWN, EVALUATED, ACTIVATED = "by statistics of the batch", "by running statistics", "after ReLU"
"""Places of measurement: behind the norm in training and in evaluation, and behind the activation after it."""

SMOOTH, DEARER, HALF = 4, 1.1, 0.5
"""Observations that accuracies are averaged over; ratio of times from which a norm is dearer; ratio of correlations
above which whitening is partial."""


@dataclass(frozen=True, kw_only=True)
class Extent(Plan):
    """Extent of the study.

    Attributes:
        network: Name, see `networks.described`.
        side: Height and width of the images.
        group: Units that are whitened together.
        steps: Updates.
        batch: Images in a batch.
        examples: Training images.
        rates: Learning rates to choose from.
        tries: Seeds by which rates are chosen.
        tested: Test images of accuracies along training and of correlations.
        rounds: Rounds in which times are measured.
        timed: Updates in a turn.
    """

    network: str = "mlp-3"
    side: int = 14
    group: int = 20
    steps: int = 1_600
    batch: int = 60
    examples: int = 60_000
    rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    tries: int = 2
    tested: int = 1_000
    rounds: int = 30
    timed: int = 40


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Measurements of one norm.

    Attributes:
        rate: Learning rate.
        accuracy: Test accuracy along training, [seeds, observations].
        error: Test error at the end, [seeds].
        correlation: Root mean square correlation of units, by place and by whether pairs are of one group, [seeds].
        seconds: Seconds of an update, [rounds].
    """

    rate: float
    accuracy: np.ndarray
    error: np.ndarray
    correlation: Mapping[tuple[str, bool], np.ndarray]
    seconds: np.ndarray


Found = Mapping[str, Arm]


def arms(plan: Extent) -> dict[str, str]:
    """Return the norms."""
    whitening = f"whiten:group_size={plan.group},epsilon=1e-3,momentum=0.9"
    return {NONE: "none", BATCH: "batch:momentum=0.9", ITERATIVE: whitening, EXACT: f"{whitening},exact=True"}


def measure(plan: Extent) -> Found:
    """Train with every norm, then measure times."""
    data = images.load(plan.data, plan.data_dir, side=plan.side)
    data = replace(data, train=data.train.first(plan.examples))
    nets = {name: networks.made(plan.network, norm, data) for name, norm in arms(plan).items()}
    trained = {name: tuned(plan, net, data) for name, net in nets.items()}
    times = timed({name: update(plan, net, data, trained[name][1]) for name, net in nets.items()}, plan)
    return {name: arm(plan, nets[name], data, *trained[name], times[name]) for name in nets}


def tuned(plan: Extent, net: Network, data: Images) -> tuple[float, Trained]:
    """Choose the learning rate on validation images, and train every seed at it."""
    budget = Budget(steps=plan.steps, batch=plan.batch)
    together = networks.dense(plan.network)
    run = trainer(net, data, budget, observe=accuracy(net, data.test.first(plan.tested)), together=together)
    rate = plan.rates[0]
    if len(plan.rates) > 1:
        groups = in_groups(run, grid(plan.tuning_seeds(plan.tries), plan.rates), plan.seeds)
        rate = chosen_rate(net, groups, data.validation, plan.rates)
    return rate, run(Settings(list(plan.all_seeds()), rate))


def arm(plan: Extent, net: Network, data: Images, rate: float, runs: Trained, seconds: np.ndarray) -> Arm:
    """Measure trained runs."""
    part = data.test.first(plan.tested)
    return Arm(
        rate=rate,
        accuracy=np.asarray(runs.seen),
        error=error(net, runs, data.test),
        correlation=correlations(plan, net, runs, part),
        seconds=seconds,
    )


def correlations(plan: Extent, net: Network, runs: Trained, part: Part) -> dict[tuple[str, bool], np.ndarray]:
    """Return correlations of runs, averaged over layers, by place and by whether pairs are of one group."""
    program = jax.jit(partial(normalized, net), static_argnames="train")
    found: dict[tuple[str, bool], list[float]] = {}
    for i in range(plan.seeds):
        params, state = jax.tree.map(lambda leaf, i=i: leaf[i], (runs.params, runs.state))
        layers = {train: program(params, state, part.inputs, train=train) for train in (True, False)}
        places = {OWN: layers[True], EVALUATED: layers[False], ACTIVATED: [nn.relu(x) for x in layers[False]]}
        for place, outputs in places.items():
            values = np.array([correlation(np.asarray(x), plan.group) for x in outputs])
            for column, within in enumerate((True, False)):
                found.setdefault((place, within), []).append(float(np.sqrt(np.mean(values[:, column] ** 2))))
    return {key: np.array(values) for key, values in found.items()}


def normalized(net: Network, params: Tree, state: Tree, inputs: np.ndarray, *, train: bool) -> list[jax.Array]:
    """Return the outputs of the norms, [elements, features] each, by statistics of the images or running ones."""
    assert net.module is not None
    options = {"capture_intermediates": _is_norm, "mutable": ["intermediates", "batch_stats"]}
    _, seen = net.module.apply({"params": params, **state[0]}, inputs, train=train, **options)
    layers = sorted(seen["intermediates"].items(), key=lambda item: int(item[0].rpartition("_")[2]))
    return [layer["__call__"][0].reshape(-1, layer["__call__"][0].shape[-1]) for _, layer in layers]


def _is_norm(module: nn.Module, method: str) -> bool:
    return (module.name or "").startswith("norm_") and method == "__call__"


def correlation(x: np.ndarray, group: int) -> tuple[float, float]:
    """Return the root mean square correlation of pairs of units of one group, and of all pairs.

    Args:
        x: Shape [elements, features]; constant features do not count.
        group: Features in a group of neighbours.
    """
    deviations = x.astype(np.float64) - x.mean(0, dtype=np.float64)
    sizes = np.sqrt((deviations**2).mean(0))
    alive = sizes > 1e-6
    z = deviations / np.where(alive, sizes, 1)
    squares = (z.T @ z / len(z)) ** 2
    pairs = alive[:, None] & alive & ~np.eye(len(alive), dtype=bool)
    groups = np.arange(len(alive)) // group
    same = pairs & (groups[:, None] == groups)
    return tuple(float(np.sqrt(squares[mask].mean())) if mask.any() else 0.0 for mask in (same, pairs))


def update(plan: Extent, net: Network, data: Images, runs: Trained) -> Callable[[], object]:
    """Return a function that makes updates of one run; the first call compiles."""
    budget = Budget(steps=plan.timed, batch=plan.batch, every=plan.timed)
    run, start = trainer(net, data, budget, together=False), jax.tree.map(lambda a: a[:1], (runs.params, runs.state))
    return lambda: jax.block_until_ready(run(Settings([plan.first_seed], 1e-3), start))


def timed(contenders: Mapping[str, Callable[[], object]], plan: Extent) -> dict[str, np.ndarray]:
    """Measure seconds of an update, in shuffled rounds: of the processor where it computes, else of the clock."""
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    order, shuffle = list(contenders), random.Random(0).shuffle
    for turn in range(plan.rounds + 1):
        shuffle(order)
        for name in order:
            began = clock()
            contenders[name]()
            if turn:  # the first round compiles
                seconds[name].append((clock() - began) / plan.timed)
    return {name: np.array(values) for name, values in seconds.items()}


class Progress(NamedTuple):
    """Steps of batch norm / of another arm, to two targets.

    Attributes:
        best: To the largest accuracy of the network without norm, of the same seed.
        half: To its accuracy at half time.
    """

    best: Speedup
    half: Speedup


def progress(plan: Extent, found: Found, slower: str, faster: str) -> Progress:
    """Compare the steps of two arms."""
    at = Budget(steps=plan.steps, batch=plan.batch).at()[SMOOTH - 1 :]
    curves = {name: smoothed(one.accuracy, SMOOTH) for name, one in found.items()}
    return Progress(*(gain(at, curves[NONE], curves[slower], curves[faster], half=half) for half in (False, True)))


def dearer(found: Found, name: str, other: str = BATCH) -> Interval:
    """Return the ratio of the times of an update, over rounds."""
    return ratio(found[name].seconds, found[other].seconds)


def left(found: Found, name: str, place: str, within: bool = True) -> Interval:
    """Return the ratio of correlations, an arm / batch norm."""
    key = place, within
    return ratio(found[name].correlation[key], found[BATCH].correlation[key])


def judge(plan: Extent, found: Found) -> Judgement:
    """Compute verdicts, bars and the paragraph."""
    return Judgement(
        findings=(_whitens(plan, found), _faster(plan, found), _costly(plan, found)),
        bars=tuple(_bars(found)),
        sentences=tuple(_sentences(plan, found)),
    )


def _whitens(plan: Extent, found: Found) -> Finding:
    normed, active = (left(found, ITERATIVE, place) for place in (EVALUATED, ACTIVATED))
    if normed.below(1):
        verdict = Verdict.HOLDS if active.below(1) and normed.below(HALF) else Verdict.HOLDS_WHEN
    else:
        verdict = Verdict.FAILS if normed.above(1) else Verdict.UNSEEN
    conditions = ["units are of one group"]
    if verdict is Verdict.HOLDS_WHEN:
        conditions += ["before the activation alone"] if not active.below(1) else ["in part"]
    return Finding(
        claim=WHITENS,
        verdict=verdict,
        effect="correlation within groups after the norm, iterative whitening / batch norm",
        seen=normed,
        network=networks.title(plan.network),
        data=plan.data,
        when="; ".join([*conditions, f"after ReLU the ratio is {active.text('{:.2f}')}"]),
    )


def _faster(plan: Extent, found: Found) -> Finding:
    steps, times = progress(plan, found, BATCH, ITERATIVE), dearer(found, ITERATIVE)
    verdict = steps.best.verdict
    if verdict is Verdict.HOLDS and steps.best.ratio.mean <= times.mean:
        verdict = Verdict.HOLDS_WHEN
    counted = "steps are counted, not time" if verdict is Verdict.HOLDS_WHEN else ""
    return Finding(
        claim=FASTER,
        verdict=verdict,
        effect="steps to the largest accuracy without norm, batch norm / iterative whitening",
        seen=steps.best.ratio,
        network=networks.title(plan.network),
        data=plan.data,
        when="; ".join(filter(None, [counted, f"an update takes {times.mean:.2f} times as long"])),
    )


def _costly(plan: Extent, found: Found) -> Finding:
    times, exact = dearer(found, ITERATIVE), dearer(found, EXACT)
    if times.above(DEARER):
        verdict = Verdict.HOLDS
    elif exact.above(DEARER):
        verdict = Verdict.HOLDS_WHEN
    else:
        verdict = Verdict.FAILS if times.below(DEARER) and exact.below(DEARER) else Verdict.UNSEEN
    only = "the decomposition is exact; " if verdict is Verdict.HOLDS_WHEN else ""
    return Finding(
        claim=COSTLY,
        verdict=verdict,
        effect="time of an update, iterative whitening / batch norm, over rounds",
        seen=times,
        network=networks.title(plan.network),
        data=plan.data,
        when=f"{only}the exact decomposition takes {exact.mean:.2f} times batch norm's; {jax.default_backend()}",
    )


def _sentences(plan: Extent, found: Found) -> Iterable[str]:
    for place in (OWN, EVALUATED, ACTIVATED):
        words = ", ".join(
            f"{name} {average(one.correlation[place, True]).text('{:.3f}')} and "
            f"{average(one.correlation[place, False]).mean:.3f}"
            for name, one in found.items()
        )
        yield f"Root mean square correlation of units, of one group and of all, {place}: {words}."
    yield _elsewhere(found)
    for name in (BATCH, ITERATIVE, EXACT):
        yield _steps(plan, found, name)
    best = {name: points(found[name].error, found[BATCH].error) for name in (ITERATIVE, EXACT)}
    errors = ", ".join(f"{name} {average(100 * one.error).text('{:.2f}')} at rate {one.rate:g}"
                       for name, one in found.items())  # fmt: skip
    apart = ", ".join(f"{name} {difference.text('{:+.2f}')}" for name, difference in best.items())
    yield f"Test error in %: {errors}; minus batch norm's, points: {apart}."


def _elsewhere(found: Found) -> str:
    across = left(found, ITERATIVE, EVALUATED, within=False)
    if across.below(1):
        said = "whitening within groups lowers it, too"
    else:
        said = "whitening within groups raises it" if across.above(1) else "whitening within groups does not change it"
    return f"Over all pairs of units, most of them of different groups, {said} (ratio {across.text('{:.2f}')})."


def _steps(plan: Extent, found: Found, name: str) -> str:
    slower = NONE if name == BATCH else BATCH
    steps, times = progress(plan, found, slower, name), dearer(found, name, slower)
    time = steps.best.ratio.mean / times.mean
    return (
        f"{name.capitalize()} beside {slower}: steps to the largest accuracy without norm, {slower} / {name}, "
        f"{steps.best.text()}, to the accuracy of half time {steps.half.text()}; time of an update, {name} / {slower}, "
        f"{times.text('{:.2f}')} over rounds; time to the largest accuracy, {slower} / {name}, {time:.2f}."
    )


def _bars(found: Found) -> Iterable[Bar]:
    exact = float(found[EXACT].correlation[OWN, True].max())
    yield Bar("exact whitening leaves a correlation of at most 0.05 within groups of its own batch", f"{exact:.3f}",
              exact <= 0.05)  # fmt: skip
    iterative = left(found, ITERATIVE, OWN)
    yield Bar.of("iterative whitening leaves at most half of batch norm's", iterative, "{:.2f}", most=0.5)
    times = dearer(found, EXACT, ITERATIVE)
    yield Bar("an update with the exact decomposition takes longer than with Newton's iteration", times.text("{:.2f}"),
              times.above(1))  # fmt: skip


def draw(plan: Extent, found: Found) -> dict[str, Figure]:
    """Draw correlations, accuracies along training, and costs."""
    with plots.figure(11.5, 3.9) as drawing:
        left_panel, middle, right = drawing.subplots(1, 3, width_ratios=(1.15, 1, 0.9))
        _correlations(left_panel, found)
        at = Budget(steps=plan.steps, batch=plan.batch).at()[SMOOTH - 1 :]
        curves = {name: 100 * (1 - smoothed(one.accuracy, SMOOTH)) for name, one in found.items()}
        plots.lines(middle, at, curves, LOOKS)
        plots.logarithmic(middle, x=True)
        plots.logarithmic(middle)
        plots.ticks(middle, (1, 2, 3, 5, 10, 20, 50, 90))
        plots.level(middle, float(curves[NONE].min(-1).mean()), "best without norm")
        plots.updates(middle)
        middle.set(title="Error along training", xlabel="updates", ylabel="test error, %")
        _costs(plan, right, found)
        plots.legend(drawing, middle)
    return {"whitening": drawing}


def _correlations(axes: Axes, found: Found) -> None:
    places = [(OWN, True), (EVALUATED, True), (ACTIVATED, True), (EVALUATED, False)]
    labels = ["own\nstatistics", "running\nstatistics", "after\nReLU", "running,\nall pairs"]
    _bars_of(axes, found, list(found), [[one.correlation[key] for key in places] for one in found.values()])
    axes.set_xticks(range(len(places)), labels)
    axes.set(title="Correlation of units of one group", ylabel="root mean square")


def _costs(plan: Extent, axes: Axes, found: Found) -> None:
    names = [ITERATIVE, EXACT]
    values = []
    for name in names:
        steps, times = progress(plan, found, BATCH, name).best.ratio.mean, dearer(found, name).mean
        values.append([[1 / steps], [times], [times / steps]])
    _bars_of(axes, found, names, values)
    axes.axhline(1, color="0.4", linewidth=0.9)
    axes.set_xticks(range(3), ["steps to\ntarget", "time of an\nupdate", "time to\ntarget"])
    axes.set(title="Whitening / batch norm")


def _bars_of(axes: Axes, found: Found, names: Sequence[str], values: Sequence[Sequence[Sequence[float]]]) -> None:
    """Draw groups of bars, one for each name, with a dot for each seed."""
    width = 0.8 / len(names)
    for i, (name, groups) in enumerate(zip(names, values, strict=True)):
        places = np.arange(len(groups)) + (i - (len(names) - 1) / 2) * width
        look = LOOKS[name]
        axes.bar(
            places, [np.mean(group) for group in groups], 0.9 * width, color=look.colour or norms.colour(look.norm)
        )
        for place, group in zip(places, groups, strict=True):
            axes.plot([place] * len(group), group, ".", color="black", markersize=2)


def rows(plan: Extent, found: Found) -> Sequence[Row]:
    """List every number; rounds of times count as seeds do."""
    at = Budget(steps=plan.steps, batch=plan.batch).at()
    listed = []
    for name, one in found.items():
        seeds = list(plan.all_seeds())
        listed += [("error", name, f"rate {one.rate:g}", seeds, one.error)]
        listed += [
            ("correlation", name, f"{place}, {'one group' if within else 'all pairs'}", seeds, values)
            for (place, within), values in one.correlation.items()
        ]
        listed += [("accuracy", name, f"step {t}", seeds, one.accuracy[:, i]) for i, t in enumerate(at)]
        listed += [("seconds of an update", name, "round", range(plan.rounds), one.seconds)]
    return [
        Row(quantity, arm, setting, seed, float(value))
        for quantity, arm, setting, seeds, values in listed
        for seed, value in zip(seeds, values, strict=True)
    ]


QUICK = Extent(seeds=2, steps=100, rates=(0.1,), tries=1, tested=400, rounds=3, network="mlp-2x40", side=8, timed=20)
CONVNET = Extent(
    network="conv-32-64-128-128",
    side=32,
    group=16,
    steps=8_000,
    batch=128,
    data="tfds:cifar10",
)
SMALL = replace(CONVNET, network="conv-16-32-64", side=16, steps=1_600, batch=64)
"""A conv net on small images, for two processors."""
study = Study(
    name="whitening",
    title="Does whitening do more than batch norm?",
    claims=(WHITENS, FASTER, COSTLY),
    standard=Extent(),
    quick=QUICK,
    measure=measure,
    judge=judge,
    draw=draw,
    rows=rows,
    networks={
        "mlp-10": (Extent(network="mlp-10"), replace(QUICK, network="mlp-6x40")),
        SMALL.network: (SMALL, replace(QUICK, network="conv-16-32", group=16)),
        CONVNET.network: (CONVNET, replace(QUICK, network="conv-16-32", group=16)),
    },
)

if __name__ == "__main__":
    main(study, __doc__ or "")
