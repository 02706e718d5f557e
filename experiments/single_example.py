"""Can a network with batch norm test a single example, and can its norms be deleted?

The script trains networks of several depths, and a convolutional one, with batch norm at batch 64, and tests each of
them in many ways: by running statistics in test batches of 1 to 256 images; by the statistics of the test batches
themselves; with the norms deleted; with the standardization alone deleted, scale and bias kept; with the standardized
value forced to zero; and with the norms folded into the layers around them (`normlab.tools.fold`). A single image has
the statistics of two copies of it, so a test batch of one is measured with two copies.

    python experiments/single_example.py --output FOLDER
    python experiments/single_example.py --data digits --quick
    python experiments/single_example.py --network resnet-20    # on CIFAR-10
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.tree_util import DictKey
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.claims import images, networks, plots
from experiments.claims.estimates import Interval, average, points, ratio
from experiments.claims.images import Images, Part
from experiments.claims.study import Plan, Study, main
from experiments.claims.trainer import (
    Budget,
    Settings,
    Trained,
    Tree,
    error,
    logits,
    train,
    tuned_rate,
)
from experiments.claims.verdicts import Bar, Claim, Finding, Judgement, Row, Verdict
from normlab import norms
from normlab.functional import StatisticsError
from normlab.introspect.pure import Network
from normlab.tools import fold

UNSTABLE = Claim(
    key="unstable-at-one",
    text="A network trained with batch norm at batch 64 is unstable when it tests single examples.",
    source="a widely read article on the drawbacks of batch norm",
)
ZERO = Claim(
    key="zero-at-one",
    text="A batch of one example is normalized to zero, whatever the example.",
    source="a widely read question-and-answer page on batch norm at training and test time",
)
DELETE = Claim(
    key="just-delete",
    text="To test, just delete the batch norm layers.",
    source="a widely read question-and-answer page on batch norm at training and test time",
)
FOLD = Claim(
    key="fold",
    text="To test, batch norm can be folded into the layers around it, with the same outputs.",
    source="Ioffe & Szegedy 2015, section 3.1; Jacob et al. 2018",
)

EXACT, FOLDED_WITHIN, MARGIN = 1e-5, 1e-4, 0.5
"""Largest change of outputs that is rounding, in units of the largest output or of 1; the same after folding; points of
test error that are no harm."""

REFERENCE = "mlp-3"
"""The network of the expectations."""


@dataclass(frozen=True, kw_only=True)
class Extent(Plan):
    """Extent of the study."""

    networks: tuple[str, ...] = ("mlp-3", "mlp-6", "mlp-10", "conv")
    sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    steps: int = 1_000
    batch: int = 64
    rates: tuple[float, ...] = (0.03, 0.1, 0.3)
    tuning: int = 2
    examples: int = 20_000
    test: int = 4_096
    side: int = 14


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Measurements of one network; arrays [seeds] unless said.

    Attributes:
        rate: Learning rate, chosen on validation images.
        own: Test error by the statistics of test batches, [seeds, sizes].
        running: Test error by running statistics, [seeds, sizes].
        moved: Largest change of an output by running statistics between sizes of the test batch, as `EXACT` counts.
        moved_flips: Predictions that changed between them.
        deleted: Test error without the norms.
        kept: Test error without the standardization, with scale and bias.
        zero: Test error with the standardized value forced to zero.
        zero_classes: Classes that are predicted then.
        alone: Spread of the outputs over single images by their own statistics, as a share of that by running ones.
        alone_classes: Classes that are predicted by the statistics of single images.
        folded_error: Test error with the norms folded.
        folded: Largest change of an output by folding, as `EXACT` counts.
        folded_flips: Predictions that folding changed.
        refused: Whether the norm refuses to train on a single image.
    """

    rate: float
    own: np.ndarray
    running: np.ndarray
    moved: np.ndarray
    moved_flips: np.ndarray
    deleted: np.ndarray
    kept: np.ndarray
    zero: np.ndarray
    zero_classes: np.ndarray
    alone: np.ndarray
    alone_classes: np.ndarray
    folded_error: np.ndarray
    folded: np.ndarray
    folded_flips: np.ndarray
    refused: bool


Found = Mapping[str, Outcome]


def measure(plan: Extent) -> Found:
    """Train and test every network."""
    data = images.load(plan.data, plan.data_dir, side=plan.side)
    with jax.default_matmul_precision("highest"):  # GPUs round factors otherwise, by batch sizes differently
        return {name: tested(plan, data, name) for name in plan.networks}


def tested(plan: Extent, data: Images, name: str) -> Outcome:
    """Train one network with every seed, and test it in every way."""
    make = partial(networks.made, name, images=data)
    net, bare, by_batch = (make(norm) for norm in ("batch:momentum=0.9", "none", "batch:statistics=batch"))
    rate, runs = trained(plan, data, net, together=networks.dense(name))
    part = data.test.first(min(plan.test, len(data.test.labels)) // max(plan.sizes) * max(plan.sizes))
    running, own = by_size(plan, net, runs, part), by_size(plan, by_batch, runs, part, copies=2)
    outputs, alone = running[:, 0], own[:, plan.sizes.index(1)]
    folded = folded_outputs(net, runs, part)
    return Outcome(
        rate=rate,
        own=wrong(own, part),
        running=wrong(running, part),
        moved=np.max([change(outputs, running[:, i]) for i in range(len(plan.sizes))], 0),
        moved_flips=np.max([flips(outputs, running[:, i]) for i in range(len(plan.sizes))], 0),
        deleted=error(bare, runs, part),
        kept=error(net, runs._replace(state=unstandardized(runs.state)), part),
        zero=error(net, runs._replace(params=at_zero(runs.params)), part),
        zero_classes=distinct(logits(net, at_zero(runs.params), runs.state, part)),
        alone=spread(alone) / spread(outputs),
        alone_classes=distinct(alone),
        folded_error=wrong(folded, part),
        folded=change(outputs, folded),
        folded_flips=flips(outputs, folded),
        refused=refuses(net, runs, part),
    )


def trained(plan: Extent, data: Images, net: Network, *, together: bool) -> tuple[float, Trained]:
    """Choose the learning rate on validation images, and train with it."""
    budget = Budget(steps=plan.steps, batch=plan.batch, every=plan.steps, cosine=True)
    run = partial(train, net, data, budget, together=together)
    n = min(plan.examples, len(data.train.labels))
    rate = tuned_rate(net, run, data.validation, plan.rates, plan.tuning_seeds(plan.tuning), n)
    return rate, run(Settings(list(plan.all_seeds()), rate, examples=n))


def by_size(plan: Extent, net: Network, runs: Trained, part: Part, *, copies: int = 1) -> np.ndarray:
    """Return the outputs in test batches of every size, [runs, sizes, images, classes].

    Args:
        plan: The plan, with the sizes.
        net: The network.
        runs: Its runs.
        part: The images.
        copies: Copies of which a batch of a single image consists.
    """
    return np.stack([in_batches(net, runs, part, size, copies if size == 1 else 1) for size in plan.sizes], 1)


def in_batches(net: Network, runs: Trained, part: Part, size: int, copies: int = 1) -> np.ndarray:
    """Return the outputs in test batches of one size, one batch after the other, [runs, images, classes]."""

    def evaluate(params: Tree, state: Tree, inputs: Array) -> Array:
        batches = inputs.reshape(-1, size, *inputs.shape[1:])
        outputs = jax.lax.map(lambda batch: net.evaluate(params, state, jnp.repeat(batch, copies, 0)), batches)
        return outputs[:, ::copies].reshape(len(inputs), -1)

    program = jax.jit(evaluate)
    return np.stack([program(*one, part.inputs) for one in _each(runs)])


def wrong(outputs: np.ndarray, part: Part) -> np.ndarray:
    """Return test errors of outputs [..., images, classes]."""
    return (outputs.argmax(-1) != part.labels).mean(-1)


def change(outputs: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the largest change of an output, in units of the largest output or of 1, [runs]."""
    return np.abs(outputs - others).max((1, 2)) / np.maximum(1, np.abs(outputs).max((1, 2)))


def flips(outputs: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Count the predictions that differ, [runs]."""
    return (outputs.argmax(-1) != others.argmax(-1)).sum(-1)


def spread(outputs: np.ndarray) -> np.ndarray:
    """Return the standard deviation of outputs over images, as root mean square over classes, [runs]."""
    return np.sqrt(outputs.astype(np.float64).var(1).mean(-1))


def distinct(outputs: np.ndarray) -> np.ndarray:
    """Count the classes that are predicted, [runs]."""
    return np.array([len(np.unique(run)) for run in outputs.argmax(-1)])


def at_zero(params: Tree) -> Tree:
    """Return parameters with which norms return their bias, as if the standardized value was zero: scales of zero."""
    return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf * (path[-1].key != "scale"), params)


def unstandardized(state: Tree) -> Tree:
    """Return a model state whose running statistics standardize nothing: mean 0, and a deviation of 1 with epsilon."""
    epsilon = norms.get("batch").linen(train=False).epsilon
    variables, seed = state

    def without(path: tuple[DictKey, ...], leaf: Array) -> Array:
        return jnp.full_like(leaf, 0.0 if path[-1].key == "mean" else 1 - epsilon)

    statistics = jax.tree_util.tree_map_with_path(without, variables["batch_stats"])
    return {**variables, "batch_stats": statistics}, seed


def folded_outputs(net: Network, runs: Trained, part: Part) -> np.ndarray:
    """Return the outputs after the norms are folded into the layers, [runs, images, classes].

    Raises:
        RuntimeError: If a norm was kept.
    """
    program: Callable[[Tree, np.ndarray], Array] | None = None
    outputs = []
    assert net.module is not None
    for params, (variables, _) in _each(runs):
        found = fold(net.module, {"params": params, **variables}, part.inputs[:1], check=False)
        if kept := [row.path for row in found.report.rows if row.how == "kept"]:
            raise RuntimeError(f"Expected all norms to fold, got {', '.join(kept)} left. Look at the report of `fold`.")
        program = program or jax.jit(found.apply)
        outputs.append(np.asarray(program(found.variables, part.inputs)))
    return np.stack(outputs)


def refuses(net: Network, runs: Trained, part: Part) -> bool:
    """Report whether the norm refuses to train on a single image."""
    try:
        jax.eval_shape(net.train, *_each(runs)[0], part.inputs[:1], 0)
    except StatisticsError:
        return True
    return False


def _each(runs: Trained) -> list[tuple[Tree, Tree]]:
    number = len(jax.tree.leaves(runs.params)[0])
    return [jax.tree.map(lambda leaf, i=i: leaf[i], (runs.params, runs.state)) for i in range(number)]


class Cost(NamedTuple):
    """Increase of the error of a network by a way to test it.

    Attributes:
        points: Its error minus the error by running statistics, points.
        times: Its error over the error by running statistics.
    """

    points: Interval
    times: Interval


def cost(one: Outcome, errors: np.ndarray) -> Cost:
    """Compare test errors [seeds] with the error by running statistics."""
    deployed = one.running[:, 0]
    return Cost(points(errors, deployed), ratio(errors, deployed))


def own(plan: Extent, one: Outcome, size: int) -> np.ndarray:
    """Return the test error by the statistics of test batches of a size, [seeds]."""
    return one.own[:, plan.sizes.index(size)]


def alike(one: Outcome) -> bool:
    """Report whether the outputs by running statistics are the same in test batches of all sizes."""
    return bool(one.moved.max() <= EXACT and not one.moved_flips.any())


def folds(one: Outcome) -> bool:
    """Report whether folding left the outputs and all predictions as they were."""
    return bool(one.folded.max() <= FOLDED_WITHIN and not one.folded_flips.any())


def titles(names: Sequence[str]) -> str:
    """List networks in a sentence."""
    return ", ".join(map(networks.title, names))


def judge(plan: Extent, found: Found) -> Judgement:
    """Compute verdicts, bars and the paragraph."""
    verdicts = (_unstable, _zero, _delete, _fold)
    return Judgement(
        findings=tuple(verdict(plan, found) for verdict in verdicts),
        bars=_bars(plan, found),
        sentences=tuple(_sentences(plan, found)),
    )


def _finding(
    plan: Extent, claim: Claim, name: str, verdict: Verdict, effect: str, seen: Interval, when: str
) -> Finding:
    return Finding(
        claim=claim,
        verdict=verdict,
        when=when,
        effect=effect,
        seen=seen,
        network=networks.title(name),
        data=plan.data,
    )


def _unstable(plan: Extent, found: Found) -> Finding:
    name, size = plan.networks[0], min(plan.sizes)
    costs = {name: cost(one, own(plan, one, size)).points for name, one in found.items()}
    harmed = [name for name in found if costs[name].low > 0]
    when = "the test batch gives the statistics; by running statistics outputs do not depend on its size"
    if not all(map(alike, found.values())):
        verdict, when = Verdict.HOLDS, "outputs depend on the size of the test batch even by running statistics"
    elif harmed:
        verdict = Verdict.HOLDS_WHEN
    else:
        clear = all(costs[name].high < 0 for name in found)
        verdict, when = Verdict.FAILS if clear else Verdict.UNSEEN, ""
    effect = f"test error by the statistics of a test batch of {size} - by running statistics, points"
    return _finding(plan, UNSTABLE, name, verdict, effect, costs[name], when)


def _zero(plan: Extent, found: Found) -> Finding:
    constant = [name for name, one in found.items() if one.alone.max() <= EXACT]
    others = [name for name in found if name not in constant]
    verdict = (Verdict.HOLDS_WHEN if others else Verdict.HOLDS) if constant else Verdict.FAILS
    when = f"the statistics are over examples alone ({titles(constant)}); over positions, too, a single image is not "
    when += f"zero ({titles(others)})"
    name = (others or constant)[0]
    return _finding(
        plan,
        ZERO,
        name,
        verdict,
        "spread of the outputs over single images, by their own statistics / by running statistics",
        average(found[name].alone),
        when if verdict == Verdict.HOLDS_WHEN else "",
    )


def _delete(plan: Extent, found: Found) -> Finding:
    costs = {name: cost(one, one.deleted).points for name, one in found.items()}
    harmless = [name for name in found if costs[name].high <= MARGIN]
    harmed = [name for name in found if costs[name].low > MARGIN]
    when = ""
    if len(harmless) == len(found):
        verdict = Verdict.HOLDS
    elif harmless:
        verdict, when = Verdict.HOLDS_WHEN, f"the network is {titles(harmless)}"
    elif harmed:
        verdict = Verdict.FAILS
        when = "folding them into the layers keeps the outputs" if all(map(folds, found.values())) else ""
    else:
        verdict = Verdict.UNSEEN
    name = plan.networks[0]
    effect = "test error with the norms deleted - by running statistics, points"
    return _finding(plan, DELETE, name, verdict, effect, costs[name], when)


def _fold(plan: Extent, found: Found) -> Finding:
    good = [name for name, one in found.items() if folds(one)]
    verdict = Verdict.HOLDS if len(good) == len(found) else Verdict.HOLDS_WHEN if good else Verdict.FAILS
    when = f"the network is {titles(good)}" if verdict == Verdict.HOLDS_WHEN else ""
    name = max(found, key=lambda name: found[name].folded.max())
    effect = "largest change of an output, in units of the largest output"
    return _finding(plan, FOLD, name, verdict, effect, average(found[name].folded), when)


def _bars(plan: Extent, found: Found) -> tuple[Bar, ...]:
    moved, folded = (max(float(getattr(one, key).max()) for one in found.values()) for key in ("moved", "folded"))
    turned = sum(int(one.folded_flips.sum()) for one in found.values())
    forced = max(int(one.zero_classes.max()) for one in found.values())
    return (
        *(_bars_of_reference(plan, found[REFERENCE]) if REFERENCE in found else ()),
        Bar(
            f"running statistics: outputs change with the test batch by at most {EXACT:g}",
            f"{moved:.1e}",
            all(map(alike, found.values())),
        ),
        Bar(
            f"folded: outputs change by at most {FOLDED_WITHIN:g}, and no prediction",
            f"{folded:.1e}, {turned} predictions",
            all(map(folds, found.values())),
        ),
        Bar("standardized value forced to zero: one class for all images", f"{forced} at most", forced == 1),
    )


def _bars_of_reference(plan: Extent, one: Outcome) -> tuple[Bar, ...]:
    title, two, many = networks.title(REFERENCE), average(100 * own(plan, one, 2)), own(plan, one, 64)
    beyond, deleted = cost(one, many).points, cost(one, one.deleted)
    return (
        Bar.of(f"{title}: statistics of 2 images, error at least 40 %", two, "{:.1f} %", least=40),
        Bar.of(
            f"{title}: statistics of 64 images within 1.5 points of running statistics",
            beyond,
            "{:+.2f}",
            least=-1.5,
            most=1.5,
        ),
        Bar(
            f"{title}: norms deleted, at least 5 points more and twice the errors",
            f"{deleted.points.text('{:+.1f}')} points, {deleted.times.text('{:.1f}')} times",
            deleted.points.low >= 5 and deleted.times.low >= 2,
        ),
    )


def _sentences(plan: Extent, found: Found) -> list[str]:
    return [
        _of_running(plan, found),
        *(_of_own(plan, name, one) for name, one in found.items()),
        *(_of_deleted(name, one) for name, one in found.items()),
        *_of_depth(found),
        *(_of_zero(name, one) for name, one in found.items()),
        _of_folding(found),
    ]


def _of_running(plan: Extent, found: Found) -> str:
    moved = max(float(one.moved.max()) for one in found.values())
    turned = sum(int(one.moved_flips.sum()) for one in found.values())
    sizes = f"test batches of {min(plan.sizes)} to {max(plan.sizes)}"
    if all(map(alike, found.values())):
        return f"By running statistics all {sizes} give the same outputs up to {moved:.1e} of the largest."
    return (
        f"By running statistics {sizes} change outputs by up to {moved:.1e} of the largest, and {turned} predictions, "
        "which must not be: look for the cause."
    )


def _of_own(plan: Extent, name: str, one: Outcome) -> str:
    listed = ", ".join(
        f"{average(100 * errors).text('{:.1f} %')} of {size}"
        for size, errors in zip(plan.sizes, one.own.T, strict=True)
    )
    deployed = average(100 * one.running[:, 0]).text("{:.1f} %")
    return (
        f"{networks.title(name)} (learning rate {one.rate:g}): {deployed} error by running statistics; by the "
        f"statistics of test batches: {listed}."
    )


def _of_deleted(name: str, one: Outcome) -> str:
    deleted, kept = cost(one, one.deleted), cost(one, one.kept)
    return (
        f"{networks.title(name)} without its norms: {deleted.points.text('{:+.1f}')} points, "
        f"{deleted.times.text('{:.1f}')} times the errors; without the standardization alone: "
        f"{kept.points.text('{:+.1f}')} points."
    )


def _of_depth(found: Found) -> list[str]:
    """Compare the cost of deleting norms between the shallowest and the deepest MLP."""
    mlps = [name for name in found if networks.dense(name)]
    if len(mlps) < 2:
        return []
    first, last = mlps[0], mlps[-1]
    costs = [found[name].deleted - found[name].running[:, 0] for name in (first, last)]
    more = points(costs[1], costs[0])
    word = "worse" if more.low > 0 else "less bad" if more.high < 0 else "not clearly different"
    return [
        f"Deleting the norms is {word} in the {networks.title(last)} than in the {networks.title(first)}: "
        f"{more.text('{:+.1f}')} points."
    ]


def _of_zero(name: str, one: Outcome) -> str:
    forced = f"{average(100 * one.zero).text('{:.1f} %')} error, {_classes(one.zero_classes)}"
    refused = "refuses" if one.refused else "accepts"
    return (
        f"{networks.title(name)} with the standardized value forced to zero: {forced}. By the statistics of a single "
        f"image the outputs spread over images {average(100 * one.alone).text('{:.2g} %')} as far as by running "
        f"statistics, with {_classes(one.alone_classes)}. In training the layer {refused} a single image."
    )


def _classes(counts: np.ndarray) -> str:
    low, high = int(counts.min()), int(counts.max())
    return f"{low if low == high else f'{low} to {high}'} {'class' if high == 1 else 'classes'} predicted"


def _of_folding(found: Found) -> str:
    folded = max(float(one.folded.max()) for one in found.values())
    turned = sum(int(one.folded_flips.sum()) for one in found.values())
    word = "no prediction" if not turned else f"{turned} prediction{'s' if turned > 1 else ''}"
    return f"Folding the norms changes outputs by up to {folded:.1e} of the largest, and {word}."


OWN, RUNNING, FOLDED = "statistics of the test batch", "running statistics", "norms folded"
DELETED, KEPT, ZEROED = "norms deleted", "only standardization deleted", "standardized value zero"
LOOKS = {
    OWN: plots.Look("batch"),
    RUNNING: plots.Look("batch", "--"),
    FOLDED: plots.Look("batch", ":", colour="#1b9e77"),
    DELETED: plots.Look("none"),
    KEPT: plots.Look("none", "--"),
    ZEROED: plots.Look("none", ":", colour="#7570b3"),
}


def draw(plan: Extent, found: Found) -> dict[str, Figure]:
    """Draw the error against the size of the test batch, a panel for each network."""
    number = len(found)
    with plots.figure(2.0 + 2.9 * number, 4.2) as drawing:
        panels = drawing.subplots(1, number, sharey=True, squeeze=False)[0]
        for axes, (name, one) in zip(panels, found.items(), strict=True):
            _panel(axes, plan, one)
            axes.set(title=networks.title(name), xlabel="images in the test batch")
        panels[0].set_ylabel("test error, %")
        plots.legend(drawing, panels[0], columns=min(3, 1 + number))
    return {"single_example": drawing}


def _panel(axes: Axes, plan: Extent, one: Outcome) -> None:
    level = {FOLDED: one.folded_error, DELETED: one.deleted, KEPT: one.kept, ZEROED: one.zero}
    everywhere = {name: np.repeat(errors[:, None], len(plan.sizes), 1) for name, errors in level.items()}
    errors = {OWN: one.own, RUNNING: one.running, **everywhere}
    plots.lines(axes, plan.sizes, {name: 100 * errors[name] for name in LOOKS}, LOOKS)
    plots.logarithmic(axes, x=True)
    plots.logarithmic(axes)
    axes.set_xticks(plan.sizes[::2])
    axes.minorticks_off()
    axes.set_yticks([2, 5, 10, 20, 50, 100])


def rows(plan: Extent, found: Found) -> Sequence[Row]:
    """List every number."""
    single = ("moved", "moved_flips", "deleted", "kept", "zero", "zero_classes", "alone", "alone_classes")
    seeds, lines = plan.all_seeds(), list[Row]()
    for name, one in found.items():
        for quantity in (*single, "folded_error", "folded", "folded_flips"):
            values = zip(seeds, getattr(one, quantity), strict=True)
            lines += [Row(quantity, name, "", seed, float(value)) for seed, value in values]
        for quantity, (i, seed), (j, size) in itertools.product(
            ("own", "running"), enumerate(seeds), enumerate(plan.sizes)
        ):
            lines.append(Row(quantity, name, f"test batch {size}", seed, float(getattr(one, quantity)[i, j])))
    return lines


QUICK = Extent(seeds=2, networks=("mlp-3", "conv"), sizes=(1, 2, 64), steps=60, rates=(0.1,), examples=2_000, test=512)
CIFAR = Extent(networks=("conv", "resnet-20"), data="tfds:cifar10", side=32)
"""Images on which convolutions matter."""

study = Study(
    name="single_example",
    title="Can a network with batch norm test a single example, and can its norms be deleted?",
    claims=(UNSTABLE, ZERO, DELETE, FOLD),
    standard=Extent(),
    quick=QUICK,
    measure=measure,
    judge=judge,
    draw=draw,
    rows=rows,
    networks={name: (replace(CIFAR, networks=(name,)), replace(QUICK, networks=(name,))) for name in CIFAR.networks},
)

if __name__ == "__main__":
    main(study, __doc__ or "")
