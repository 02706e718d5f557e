"""Which running average should batch norm test with?

Batch norm trains with the mean and variance of each batch, and needs others to test with. Averages do not touch the
training, so the script carries all of them along in one: exponential averages of several momenta from mean 0 and
variance 1, as in Flax; the same without the weight of their start, as in Caffe; and the plain average of all batches so
far. At several moments it stops to take the statistics of training images with the weights as they are ("precise",
`normlab.tools.precise`), and tests the network with each of them. The learning rate is constant, constant and large,
or decays along a cosine.

    python experiments/averages.py --output FOLDER
    python experiments/averages.py --data digits --quick
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import DictKey
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.claims import images, networks, plots
from experiments.claims.estimates import SIGNED, Interval, points
from experiments.claims.images import Images
from experiments.claims.study import Plan, Study, main
from experiments.claims.trainer import Budget, Moment, Settings, Tree, train
from experiments.claims.verdicts import Bar, Claim, Finding, Judgement, Row, Verdict
from normlab.introspect.pure import Network

PLAIN_BEATS = Claim(
    key="plain-beats-exponential",
    text="The plain average of all batches usually beats an exponential moving average.",
    source="a widely read question-and-answer page on batch norm at training and test time",
)
WHOLE_SET = Claim(
    key="whole-training-set",
    text="The statistics to test with are those of the whole training set.",
    source="Ioffe & Szegedy 2015, algorithm 2; widely read overviews and surveys",
)

MOMENTA = (0.5, 0.9, 0.99, 0.999)
"""Weights of the old value; 0.99 is the default of Flax and of normlab."""

PLAIN, PRECISE = "plain average", "precise"
MARGIN = 0.5
"""Points of test error up to which statistics are as good as others."""


def exponential(momentum: float, *, debiased: bool = False) -> str:
    """Return the name of an exponential average."""
    return f"momentum {momentum:g}" + (", debiased" if debiased else "")


AVERAGES = (*map(exponential, MOMENTA), *(exponential(m, debiased=True) for m in MOMENTA), PLAIN)
"""The averages, in the order in which they are stacked."""


class Schedule(NamedTuple):
    """Learning rate, and whether it decays along a cosine."""

    rate: float
    cosine: bool = False

    def __str__(self) -> str:
        """Return its name in sentences."""
        return f"{'cosine' if self.cosine else 'constant'} {self.rate:g}"


@dataclass(frozen=True, kw_only=True)
class Extent(Plan):
    """Extent of the study; the bars are about the first schedule."""

    schedules: tuple[Schedule, ...] = (Schedule(0.1), Schedule(0.1, cosine=True), Schedule(0.5))
    at: tuple[int, ...] = (20, 50, 100, 300, 1_000)
    batch: int = 64
    network: str = "mlp-3"
    examples: int = 20_000
    precise: int = 4_096
    test: int = 4_000


Cell = tuple[Schedule, int]
Found = Mapping[Cell, Mapping[str, np.ndarray]]
"""Test errors [seeds] by average, for each schedule and each number of updates."""


def carrying(net: Network) -> Network:
    """Carry averages of the statistics of batches along in the model state of a network with `momentum=0`.

    The model state is `(model state, averages)`: exponential averages by `MOMENTA`, then the plain one.
    """

    def init(seed: int | Array) -> tuple[Tree, Tree]:
        params, state = net.init(seed)
        return params, (state, jax.tree.map(lambda leaf: jnp.stack([leaf] * (len(MOMENTA) + 1)), _statistics(state)))

    def train(params: Tree, model_state: Tree, inputs: Array, t: Array, mask: Array | None = None) -> tuple[Tree, Tree]:
        state, averages = model_state
        outputs, state = net.train(params, state, inputs, t, mask)
        decays = jnp.append(jnp.array(MOMENTA), t / (t + 1))
        return outputs, (state, jax.tree.map(lambda old, new: moved(old, new, decays), averages, _statistics(state)))

    def carried(model_state: Tree) -> tuple[Tree, Callable[[Tree], Tree]]:
        part, put = net.carried(model_state[0])
        return part, lambda new: (put(new), model_state[1])

    def evaluate(params: Tree, model_state: Tree, inputs: Array) -> Array:
        return net.evaluate(params, model_state[0], inputs)

    return replace(net, init=init, train=train, evaluate=evaluate, carried=carried)


def moved(old: Array, new: Array, decays: Array) -> Array:
    """Move averages [averages, ...] towards the statistics of a batch."""
    decays = decays.reshape(-1, *[1] * new.ndim)
    return decays * old + (1 - decays) * new


def debiased(averages: Tree, t: Array) -> Tree:
    """Take the weight of the start, mean 0 and variance 1, out of exponential averages after t updates."""
    weight = jnp.array(MOMENTA) ** t

    def without_start(path: tuple[DictKey, ...], leaf: Array) -> Array:
        left = weight.reshape(-1, *[1] * (leaf.ndim - 1))
        return (leaf[: len(MOMENTA)] - left * (path[-1].key == "var")) / (1 - left)

    return jax.tree_util.tree_map_with_path(without_start, averages)


def precise_statistics(net: Network, params: Tree, state: Tree, batches: Array) -> Tree:
    """Return mean and total variance of what each norm is given; `normlab.tools.precise` where it can be traced.

    Args:
        net: A network with `momentum=0`.
        params: Parameters.
        state: Model state.
        batches: Training images, [batches, images, ...]; each batch is normalized by its own statistics.
    """
    of_batches = jax.lax.map(lambda batch: _statistics(net.train(params, state, batch, 0)[1]), batches)
    return _total(of_batches)


def _total(each: Tree) -> Tree:
    """Return mean and total variance over batches of equal sizes, the first axis."""
    if "mean" in each:
        return {"mean": each["mean"].mean(0), "var": each["var"].mean(0) + each["mean"].var(0)}
    return {name: _total(part) for name, part in each.items()}


def measure(plan: Extent) -> Found:
    """Train by every schedule; schedules of one kind share a program."""
    data = images.load(plan.data, plan.data_dir, side=14)
    net, decays = networks.made(plan.network, "batch:momentum=0.0", data), attrgetter("cosine")
    found: dict[Cell, Mapping[str, np.ndarray]] = {}
    for cosine, group in itertools.groupby(sorted(plan.schedules, key=decays), key=decays):
        schedules = list(group)
        errors = trained(plan, data, net, [schedule.rate for schedule in schedules], cosine=cosine)
        for (i, schedule), (j, t) in itertools.product(enumerate(schedules), enumerate(plan.at)):
            names = (*AVERAGES, PRECISE)
            found[schedule, t] = {name: errors[i, :, j, k] for k, name in enumerate(names)}
    return {key: found[key] for key in itertools.product(plan.schedules, plan.at)}


def trained(plan: Extent, data: Images, net: Network, rates: Sequence[float], *, cosine: bool) -> np.ndarray:
    """Train one network for each rate and seed; return test errors [rates, seeds, moments, statistics]."""
    every = math.gcd(*plan.at)
    budget = Budget(steps=plan.at[-1], batch=plan.batch, every=every, cosine=cosine)
    seeds, n = list(plan.all_seeds()), min(plan.examples, len(data.train.labels))
    settings = Settings(np.tile(seeds, len(rates)), np.repeat(np.asarray(rates, np.float32), len(seeds)), examples=n)
    runs = train(carrying(net), data, budget, settings, observe=errors_at(plan, data, net))
    places = [list(budget.at()).index(t) for t in plan.at]
    return np.asarray(runs.seen)[:, places].reshape(len(rates), len(seeds), len(places), -1)


def errors_at(plan: Extent, data: Images, net: Network) -> Callable[[Moment], Array]:
    """Return an observation: the test error by all statistics, at the moments of the plan; NaN at others."""
    part = data.test.first(plan.test)
    inputs, labels = jnp.asarray(part.inputs), jnp.asarray(part.labels)
    batches = jnp.asarray(_batches(data.train.inputs[: min(plan.precise, plan.examples)], plan.batch))

    def error(moment: Moment, statistics: Tree) -> Array:
        variables, seed = moment.state[0]
        outputs = net.evaluate(moment.params, ({**variables, "batch_stats": statistics}, seed), inputs)
        return (outputs.argmax(-1) != labels).mean()

    def errors(moment: Moment) -> Array:
        state, averages = moment.state
        exact = precise_statistics(net, moment.params, state, batches)
        parts = (averages, debiased(averages, moment.t), averages, exact)
        cuts = (slice(0, len(MOMENTA)), slice(None), slice(len(MOMENTA), None), None)
        stacks = [jax.tree.map(lambda leaf, cut=cut: leaf[cut], tree) for tree, cut in zip(parts, cuts, strict=True)]
        return jax.lax.map(lambda one: error(moment, one), jax.tree.map(lambda *a: jnp.concatenate(a), *stacks))

    def nothing(_: Moment) -> Array:
        return jnp.full(len(AVERAGES) + 1, jnp.nan)

    return lambda moment: jax.lax.cond(jnp.isin(moment.t, jnp.array(plan.at)), errors, nothing, moment)


def _statistics(state: Tree) -> Tree:
    return state[0]["batch_stats"]


def _batches(inputs: np.ndarray, size: int) -> np.ndarray:
    whole = len(inputs) // size * size
    return inputs[:whole].reshape(-1, size, *inputs.shape[1:])


@dataclass(frozen=True)
class Compared:
    """The plain average minus an exponential one, points of test error.

    Attributes:
        cell: Schedule and number of updates.
        momentum: Momentum of the exponential average, from mean 0 and variance 1.
        difference: The difference; negative where the plain average is better.
    """

    cell: Cell
    momentum: float
    difference: Interval

    @property
    def wins(self) -> bool:
        """Report whether the plain average is clearly better."""
        return self.difference.high < 0

    @property
    def loses(self) -> bool:
        """Report whether the plain average is clearly worse."""
        return self.difference.low > 0


def compared(plan: Extent, found: Found) -> list[Compared]:
    """Compare the plain average with every exponential one, everywhere."""
    cells = itertools.product(plan.schedules, plan.at)
    return [
        Compared(cell, m, points(found[cell][PLAIN], found[cell][exponential(m)]))
        for cell, m in itertools.product(cells, MOMENTA)
    ]


def above(found: Found, cell: Cell, average: str) -> Interval:
    """Return the points of test error by an average above those by precise statistics."""
    return points(found[cell][average], found[cell][PRECISE])


def beyond_best(found: Found, cell: Cell) -> tuple[str, Interval]:
    """Return the best average of a cell, and the points of test error by precise statistics above those by it."""
    best = min(AVERAGES, key=lambda average: found[cell][average].mean())
    return best, points(found[cell][PRECISE], found[cell][best])


def judge(plan: Extent, found: Found) -> Judgement:
    """Compute verdicts, bars and the paragraph."""
    return Judgement(
        findings=(_plain_verdict(plan, found), _whole_verdict(plan, found)),
        bars=_bars(plan, found),
        sentences=tuple(_sentences(plan, found)),
    )


def _plain_verdict(plan: Extent, found: Found) -> Finding:
    pairs = compared(plan, found)
    wins, losses = [p for p in pairs if p.wins], [p for p in pairs if p.loses]
    if wins and losses:
        verdict = Verdict.HOLDS_WHEN
    else:
        verdict = Verdict.HOLDS if wins else Verdict.FAILS if losses else Verdict.UNSEEN
    last = plan.schedules[0], plan.at[-1]
    when = f"against {_by_momentum(plan, wins)}; it is clearly worse against {_by_momentum(plan, losses)}"
    return Finding(
        claim=PLAIN_BEATS,
        verdict=verdict,
        when=when if verdict == Verdict.HOLDS_WHEN else "",
        effect=f"test error by the plain average - by momentum 0.9, points, {last[0]}, after {last[1]:,} updates",
        seen=points(found[last][PLAIN], found[last][exponential(0.9)]),
        network=networks.title(plan.network),
        data=plan.data,
    )


def _by_momentum(plan: Extent, pairs: Sequence[Compared]) -> str:
    """List where comparisons are, e.g. `momentum 0.99 (after 20 and 50 updates)`."""
    parts = []
    for momentum in MOMENTA:
        there = [p.cell for p in pairs if p.momentum == momentum]
        times = [t for t in plan.at if any(cell[1] == t for cell in there)]
        everywhere = list(itertools.product(plan.schedules, times))
        if len(there) == len(plan.schedules) * len(plan.at):
            places = "always"
        elif len(there) == len(everywhere):
            places = f"after {', '.join(f'{t:,}' for t in times)} updates"
        else:
            places = f"at {len(there)} of {len(plan.schedules) * len(plan.at)} moments"
        parts += [f"{exponential(momentum)} ({places})"] if there else []
    return ", ".join(parts)


def _whole_verdict(plan: Extent, found: Found) -> Finding:
    cells = list(itertools.product(plan.schedules, plan.at))
    beyond = {cell: beyond_best(found, cell)[1] for cell in cells}
    worse = [cell for cell in cells if beyond[cell].low > MARGIN]
    gains = [cell for cell in cells if any(above(found, cell, average).low > 0 for average in AVERAGES)]
    unsettled = [cell for cell in cells if np.fmax(beyond[cell].high, beyond[cell].mean) > MARGIN]
    if worse:
        verdict = Verdict.FAILS if len(worse) == len(cells) else Verdict.HOLDS_WHEN
    else:
        verdict = Verdict.HOLDS if gains else Verdict.UNSEEN
    places = ", ".join(f"{schedule} after {t:,} updates" for schedule, t in worse)
    when = f"the moment is not one of these, at which an average is better: {places}" if worse else ""
    if unsettled and not worse:
        when = f"at {len(unsettled)} of {len(cells)} moments the interval reaches beyond {MARGIN:g} points"
    worst = max(cells, key=lambda cell: beyond[cell].mean)
    return Finding(
        claim=WHOLE_SET,
        verdict=verdict,
        when=when,
        effect="test error by precise statistics - by the best average, points, at the worst of "
        f"{len(cells)} moments ({worst[0]}, after {worst[1]:,} updates)",
        seen=beyond[worst],
        network=networks.title(plan.network),
        data=plan.data,
    )


def _bars(plan: Extent, found: Found) -> tuple[Bar, ...]:
    first, last = plan.at[0], plan.at[-1]
    steady = plan.schedules[0]
    end = steady, last
    sma, fast, slow = (above(found, end, name) for name in (PLAIN, exponential(0.9), exponential(0.999)))
    turn = points(found[steady, first][exponential(0.99)], found[steady, first][PLAIN])
    worst = max((beyond_best(found, cell)[1] for cell in found), key=lambda d: d.high)
    where = f"{steady}, after {last:,} updates"
    return (
        Bar.of(f"{where}: plain - precise at least 0.5 points", sma, SIGNED, least=0.5),
        Bar.of(f"{where}: momentum 0.9 within 0.5 points of precise", fast, SIGNED, least=-0.5, most=0.5),
        Bar.of(f"{where}: momentum 0.999 - precise at least 1 point", slow, SIGNED, least=1),
        Bar.of(f"{steady}, after {first:,} updates: momentum 0.99 - plain at least 5 points", turn, SIGNED, least=5),
        Bar.of(f"precise nowhere more than {MARGIN:g} points above the best average", worst, SIGNED, most=MARGIN),
    )


def _sentences(plan: Extent, found: Found) -> list[str]:
    first, last = plan.at[0], plan.at[-1]
    shown = (PLAIN, *map(exponential, MOMENTA))
    lines = []
    for schedule in plan.schedules:
        numbers = ", ".join(f"{name} {above(found, (schedule, last), name).text(SIGNED)}" for name in shown)
        lines.append(f"Points above precise statistics, {schedule}, after {last:,} updates: {numbers}.")
    lines.append(_start(found, (plan.schedules[0], first)))
    pairs = compared(plan, found)
    wins, losses = (sum(getattr(p, name) for p in pairs) for name in ("wins", "loses"))
    lines.append(
        f"The plain average is clearly better than an exponential one in {wins} and clearly worse in {losses} of "
        f"{len(pairs)} comparisons."
    )
    lines.append(_apart(plan, found, last))
    return lines


def _start(found: Found, cell: Cell) -> str:
    """Say how much the start of an exponential average costs early in training."""
    raw, without = (above(found, cell, exponential(0.99, debiased=d)) for d in (False, True))
    share = 0.99 ** cell[1]
    gain = points(found[cell][exponential(0.99)], found[cell][exponential(0.99, debiased=True)])
    effect = "costs" if gain.low > 0 else "gains" if gain.high < 0 else "makes no clear difference:"
    return (
        f"After {cell[1]:,} updates ({cell[0]}) the start of momentum 0.99 still weighs {share:.0%}: the error is "
        f"{raw.text(SIGNED)} points above that by precise statistics, and {without.text(SIGNED)} without the "
        f"start, which {effect} {gain.text(SIGNED if 'no' in effect else '{:.2f}')} points."
    )


def _apart(plan: Extent, found: Found, last: int) -> str:
    """Say how far averages without the weight of their start are from each other at the end, by schedule."""
    parts = []
    for schedule in plan.schedules:
        means = [100 * float(found[schedule, last][name].mean()) for name in AVERAGES[len(MOMENTA) :]]
        parts.append(f"{max(means) - min(means):.2f} ({schedule})")
    return (
        f"Between the best and the worst average after {last:,} updates, without the weight of their start, lie in "
        f"points: {', '.join(parts)}."
    )


LOOKS = {
    exponential(0.5): plots.Look("batch", colour="#9ecae1"),
    exponential(0.9): plots.Look("batch", colour="#4292c6"),
    exponential(0.99): plots.Look("batch", colour="#08519c"),
    exponential(0.99, debiased=True): plots.Look("batch", "--", colour="#08519c"),
    exponential(0.999): plots.Look("batch", colour="#54278f"),
    exponential(0.999, debiased=True): plots.Look("batch", "--", colour="#54278f"),
    PLAIN: plots.Look("none", colour="#d94801"),
}

BANDS = (exponential(0.9), exponential(0.99), PLAIN)
"""Lines whose range over seeds is drawn."""


def draw(plan: Extent, found: Found) -> dict[str, Figure]:
    """Draw the points above precise statistics against updates, a panel for each schedule."""
    number = len(plan.schedules)
    with plots.figure(2.0 + 3.4 * number, 4.4) as drawing:
        panels = drawing.subplots(1, number, sharey=True, squeeze=False)[0]
        for axes, schedule in zip(panels, plan.schedules, strict=True):
            _panel(axes, plan, found, schedule)
        panels[0].set_ylabel("test error above precise statistics, points")
        plots.legend(drawing, panels[0], columns=min(4, 1 + number))
    return {"averages": drawing}


def _panel(axes: Axes, plan: Extent, found: Found, schedule: Schedule) -> None:
    differences = {
        name: np.stack([100 * (found[schedule, t][name] - found[schedule, t][PRECISE]) for t in plan.at], 1)
        for name in LOOKS
    }
    for name, values in differences.items():
        plots.lines(axes, plan.at, {name: values}, LOOKS, marked=True, bands=name in BANDS)
    plots.logarithmic(axes, x=True)
    axes.set_xticks(plan.at)
    axes.minorticks_off()
    axes.set_yscale("symlog", linthresh=1.0, linscale=1.0)
    ticks = (-1, -0.5, 0, 0.5, 1, 2, 5, 10, 20, 50)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.axhline(0, color="0.4", linewidth=0.9)
    axes.set(title=f"Learning rate {schedule}", xlabel="updates")


def rows(plan: Extent, found: Found) -> Sequence[Row]:
    """List every number."""
    return [
        Row("error", name, f"{schedule}, {t} updates", seed, float(value))
        for (schedule, t), errors in found.items()
        for name, values in errors.items()
        for seed, value in zip(plan.all_seeds(), values, strict=True)
    ]


study = Study(
    name="averages",
    title="Which running average should batch norm test with?",
    claims=(PLAIN_BEATS, WHOLE_SET),
    standard=Extent(),
    quick=Extent(seeds=2, schedules=(Schedule(0.1),), at=(20, 50), precise=512, test=500),
    measure=measure,
    judge=judge,
    draw=draw,
    rows=rows,
)

if __name__ == "__main__":
    main(study, __doc__ or "")
