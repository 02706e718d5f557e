"""How should a network with batch norm be fine-tuned with small batches?

Networks train on MNIST and are fine-tuned on a few of scikit-learn's digits, by other writers, with small and with
larger batches: with statistics of the batch, as usual; frozen, which keeps statistics, scale and bias; frozen after the
statistics were taken from the new images (AdaBN); by running statistics, while scale and bias learn, with statistics
that stay and with statistics that follow; and with group norm or no norm from the start. Equal epochs make more updates
with smaller batches, so arms compare within a batch size.

    python experiments/fine_tuning.py --output FOLDER
    python experiments/fine_tuning.py --network conv --output FOLDER
    python experiments/fine_tuning.py --data digits --quick
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.claims import images, networks, plots, shifted
from experiments.claims.estimates import Interval, average, points, share
from experiments.claims.images import Images, Part
from experiments.claims.shifted import RECIPES, Recipe, Runs
from experiments.claims.study import Plan, Study, main
from experiments.claims.trainer import Budget, Trained, Tree, best_rate, grid, train
from experiments.claims.verdicts import Bar, Claim, Finding, Judgement, Key, Row, judged
from normlab import tools
from normlab.introspect.pure import Network

FREEZE = Claim(
    key="freeze",
    text="Freeze batch norm when fine-tuning with small batches.",
    source="widely read article on the drawbacks of batch norm; detectors since He et al. 2017",
)
STATISTICS = Claim(
    key="statistics",
    text="In fine-tuning, it is enough to freeze the statistics of batch norm; scale and bias can learn.",
    source="widely read article on the drawbacks of batch norm",
)
ADAPT = Claim(
    key="adapt",
    text="Before freezing, take the statistics from the new images.",
    source="Li et al. 2016",
)
GROUPS = Claim(
    key="groups",
    text="With small batches, group norm is better than batch norm.",
    source="Wu & He 2018",
    published="ImageNet, ResNet-50, batch 2, from scratch: 34.7 % error with batch norm, 24.1 % with group norm",
)
BATCH, FROZEN, ADAPTED, FIXED, FOLLOWS, GROUP, NONE = (
    "batch statistics",
    "frozen",
    "AdaBN, then frozen",
    "statistics fixed",
    "statistics follow",
    "group norm",
    "no norm",
)
SOURCE, WITHIN = "batch:momentum=0.9", 1.0
"""Batch norm of the source; points that are no loss."""

TICKS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 60, 90)


class Arm(NamedTuple):
    """A way to fine-tune.

    Attributes:
        source: Norm in the training on the source.
        norm: Norm in fine-tuning.
        adapted: Whether statistics come from the new images before.
    """

    source: str
    norm: str
    adapted: bool = False


ARMS = {
    BATCH: Arm(SOURCE, SOURCE),
    FROZEN: Arm(SOURCE, "batch:frozen=True"),
    ADAPTED: Arm(SOURCE, "batch:frozen=True", adapted=True),
    FIXED: Arm(SOURCE, "batch:statistics=running,momentum=1.0"),
    FOLLOWS: Arm(SOURCE, "batch:statistics=running,momentum=0.99"),
    GROUP: Arm("group:num_groups=4", "group:num_groups=4"),
    NONE: Arm("none", "none"),
}
LOOKS = {
    BATCH: plots.Look("batch"),
    FROZEN: plots.Look("batch", "--", "#0072b2"),
    ADAPTED: plots.Look("batch", ":", "#56b4e9"),
    FIXED: plots.Look("batch", "-.", "#009e73"),
    FOLLOWS: plots.Look("batch", (0, (6, 1, 1, 1, 1, 1)), "#b8860b"),
    GROUP: plots.Look("group"),
    NONE: plots.Look("none"),
}


@dataclass(frozen=True, kw_only=True)
class Extent(Plan):
    """Extent of the study.

    Attributes:
        networks: Names of `RECIPES`.
        examples: Training images of the source.
        steps: Updates on the source, at the largest rate; the recipe's if 0, at the best.
        few: New images to fine-tune on.
        epochs: Epochs of fine-tuning.
        batches: Batch sizes.
        rates: Learning rates of fine-tuning.
        tries: Seeds by which rates are chosen.
        arms: Names of the arms.
    """

    networks: tuple[str, ...] = ("mlp-2", "conv")
    examples: int = 20_000
    steps: int = 0
    few: int = 200
    epochs: int = 4
    batches: tuple[int, ...] = (2, 32)
    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
    tries: int = 3
    arms: tuple[str, ...] = tuple(ARMS)


class Tuned(NamedTuple):
    """Fine-tuned runs of an arm at a batch size.

    Attributes:
        errors: Test errors, [rates, seeds].
        diverged: Whether weights are not finite, likewise.
        rate: The rate that is best on validation images, by other seeds.
        error: Test errors at this rate, [seeds].
        re_estimated: The same with statistics taken from the new images after training; empty unless of `BATCH`.
    """

    errors: np.ndarray
    diverged: np.ndarray
    rate: float
    error: np.ndarray
    re_estimated: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Observed:
    """Measurements of one network.

    Attributes:
        title: Name of the network.
        source: Name of the source.
        target: Name of the target.
        before: Test errors before fine-tuning, [seeds], by arm; that of `BATCH` is that of all with its statistics.
        tuned: Runs by arm and batch size.
    """

    title: str
    source: str
    target: str
    before: Mapping[str, np.ndarray]
    tuned: Mapping[tuple[str, int], Tuned]

    def error(self, arm: str, batch: int) -> np.ndarray:
        """Return the test errors of an arm, [seeds]."""
        return self.tuned[arm, batch].error


Found = Mapping[str, Observed]


def measure(plan: Extent) -> Found:
    """Train every network on the source, and fine-tune with every arm."""
    return {name: observed(plan, RECIPES[name]) for name in plan.networks}


def observed(plan: Extent, recipe: Recipe) -> Observed:
    """Train and fine-tune one network."""
    data = recipe.load(plan.data, plan.data_dir, plan.examples)
    new, starts, before = target(plan, data), dict[tuple[str, bool], Tree](), dict[str, np.ndarray]()
    seeds, tuning = list(plan.all_seeds()), list(plan.tuning_seeds(plan.tries))
    arms = {name: ARMS[name] for name in plan.arms}
    for norm in dict.fromkeys(arm.source for arm in arms.values()):
        net, trained = shifted.pretrained(recipe, norm, data, seeds, tuning, plan.steps)
        starts[norm, False] = trained.params, trained.state
        if norm == SOURCE:
            starts[norm, True] = adapted(net, trained, new.train)
    for name in (name for name in (BATCH, ADAPTED, GROUP, NONE) if name in arms):
        arm = arms[name]
        before[name] = Runs.of(_net(recipe, arm.source, data), *starts[arm.source, arm.adapted]).errors(new.test)
    tuned = {
        (name, batch): one
        for batch in plan.batches
        for norm in dict.fromkeys(arm.norm for arm in arms.values())
        for name, one in fine_tuned(plan, recipe, new, norm, batch, _of_norm(arms, norm, starts)).items()
    }
    return Observed(
        title=recipe.title,
        source=data.name,
        target=new.name,
        before={name: errors[: len(seeds)] for name, errors in before.items()},
        tuned=tuned,
    )


def target(plan: Extent, data: Images) -> Images:
    """Return the new images: scikit-learn's digits for MNIST, held-out images moved by a pixel for other data."""
    if shifted.is_mnist(plan.data):
        name, found = "scikit-learn's digits", shifted.whole(images.small_digits(data.test.inputs.shape[1]))
    else:
        held_out = shifted.united(data.validation, data.test)
        name = f"{data.name}, a pixel to the right"
        found = Part(shifted.one_pixel_right(held_out.inputs), held_out.labels)
    x, y = shifted.shuffled(found)
    few = min(plan.few, len(y) // 4)
    validation = few + min(300, (len(y) - few) // 4)
    cuts = (slice(0, few), slice(few, validation), slice(validation, None))
    train_part, validation_part, test_part = (Part(x[cut], y[cut]) for cut in cuts)
    return Images(train=train_part, validation=validation_part, test=test_part, classes=data.classes, name=name)


def adapted(net: Network, trained: Trained, part: Part) -> Tree:
    """Return parameters and state with the statistics of images."""
    runs = Runs.of(net, trained.params, trained.state)
    found = tools.adabn(runs.module, runs.variables, [part.inputs]).variables["batch_stats"]["model"]
    return trained.params, ({**trained.state[0], "batch_stats": found}, trained.state[1])


def fine_tuned(
    plan: Extent, recipe: Recipe, new: Images, norm: str, batch: int, starts: Mapping[str, Tree]
) -> dict[str, Tuned]:
    """Fine-tune arms of one norm at a batch size with every rate and seed, in one program."""
    net, seeds = _net(recipe, norm, new), [*plan.all_seeds(), *plan.tuning_seeds(plan.tries)]
    steps = max(1, plan.epochs * len(new.train.labels) // batch)
    budget = Budget(steps=steps, batch=batch, every=steps, cosine=True)
    one = grid(seeds, plan.rates)
    settings = one._replace(seed=np.tile(one.seed, len(starts)), rate=np.tile(one.rate, len(starts)))
    every = [start for start in starts.values() for _ in plan.rates]
    begun = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *every)
    runs = train(net, new, budget, settings, start=begun, together=recipe.together)
    size = len(one.seed)
    return {
        name: _tuned(plan, net, new, jax.tree.map(lambda a, i=i: a[i * size : (i + 1) * size], runs), name == BATCH)
        for i, name in enumerate(starts)
    }


def _tuned(plan: Extent, net: Network, new: Images, runs: Trained, estimate: bool) -> Tuned:
    shape, seeds = (len(plan.rates), -1), plan.seeds
    tested = Runs.of(net, runs.params, runs.state)
    united, cut = shifted.united(new.validation, new.test), len(new.validation.labels)
    right = tested.right(united)
    checked, errors = (1 - part.mean(0).reshape(shape) for part in (right[:cut], right[cut:]))
    finite = [np.isfinite(leaf).all(tuple(range(1, leaf.ndim))) for leaf in jax.tree.leaves(runs.params)]
    rate = best_rate(checked[:, seeds:], plan.rates)
    at, re_estimated = plan.rates.index(rate), np.empty(0)
    if estimate:
        first = at * errors.shape[1]
        kept = jax.tree.map(lambda a: jnp.nan_to_num(a[first : first + seeds]), (runs.params, runs.state[0]))
        some = runs._replace(params=kept[0], state=(kept[1], ()))
        re_estimated = Runs.of(net, *adapted(net, some, new.train)).errors(new.test)
    diverged = ~np.all(finite, 0).reshape(shape)[:, :seeds]
    return Tuned(errors[:, :seeds], diverged, rate, errors[at, :seeds], re_estimated)


def _net(recipe: Recipe, norm: str, data: Images) -> Network:
    return networks.made(recipe.network, norm, data)


def _of_norm(arms: Mapping[str, Arm], norm: str, starts: Mapping[tuple[str, bool], Tree]) -> dict[str, Tree]:
    return {name: starts[arm.source, arm.adapted] for name, arm in arms.items() if arm.norm == norm}


def effects(plan: Extent, found: Found, arm: str, other: str) -> dict[Key, Interval]:
    """Return the difference of test errors, arm - other, points, by network and batch size."""
    return {
        (name, f"batch {batch}"): points(one.error(arm, batch), one.error(other, batch))
        for name, one in found.items()
        for batch in plan.batches
    }


def judge(plan: Extent, found: Found) -> Judgement:
    """Compute verdicts, bars and the paragraph."""
    return Judgement(
        findings=tuple(_findings(plan, found)),
        bars=tuple(bar for one in found.values() for bar in _bars(plan, one)),
        sentences=tuple(line for one in found.values() for line in _sentences(plan, one)),
    )


def _findings(plan: Extent, found: Found) -> Iterable[Finding]:
    name, one = next(iter(found.items()))
    small = f"batch {min(plan.batches)}"
    smallest = [(other, small) for other in found]
    about = {
        "headline": (name, small),
        "titles": {name: one.title for name, one in found.items()},
        "data": f"{one.source}, then {one.target}",
    }
    lower: Mapping[str, Callable[[Interval], bool]] = {"good": lambda i: i.below(0), "bad": lambda i: i.above(0)}
    tried = ((FREEZE, FROZEN, BATCH, smallest), (GROUPS, GROUP, BATCH, smallest), (ADAPT, ADAPTED, FROZEN, None))
    for claim, arm, other, keys in tried:
        if {arm, other} <= {*plan.arms}:
            seen = effects(plan, found, arm, other)
            text = f"test error, {arm} - {other}, points"
            yield judged(claim, text, seen, keys or list(seen), **lower, **about)
    if FIXED in plan.arms:
        seen = effects(plan, found, FIXED, FROZEN)
        no_loss: Mapping[str, Callable[[Interval], bool]] = {
            "good": lambda i: i.below(WITHIN),
            "bad": lambda i: i.above(WITHIN),
        }
        yield judged(STATISTICS, f"test error, {FIXED} - {FROZEN}, points", seen, smallest, **no_loss, **about)


def _sentences(plan: Extent, one: Observed) -> Iterable[str]:
    for batch in plan.batches:
        said = ", ".join(f"{arm} {_seen(one.tuned[arm, batch])}" for arm in plan.arms)
        yield f"{one.title}, {one.target}, test error in % after fine-tuning with batches of {batch}: {said}."
    small = min(plan.batches)
    yield _against_source(one, small)
    if BATCH in plan.arms and FROZEN in plan.arms:
        yield _cause(one, small)
    yield from _edges(plan, one)
    yield from _diverged(plan, one)


def _seen(tuned: Tuned) -> str:
    return f"{average(100 * tuned.error).text('{:.1f}')} at rate {tuned.rate:g}"


def _against_source(one: Observed, batch: int) -> str:
    apart = points(one.error(BATCH, batch), one.before[BATCH])
    if apart.above(0):
        verdict = "worse than no fine-tuning"
    else:
        verdict = "better than no fine-tuning" if apart.below(0) else "not visibly different from no fine-tuning"
    return (
        f"{one.title}: with batches of {batch}, fine-tuning by statistics of the batch is {verdict} "
        f"({apart.text('{:+.1f}')} points; {100 * one.before[BATCH].mean():.1f} % before)."
    )


def _cause(one: Observed, batch: int) -> str:
    tuned = one.tuned[BATCH, batch]
    frozen = one.error(FROZEN, batch)
    lost, left = (points(errors, frozen) for errors in (tuned.error, tuned.re_estimated))
    beyond = points(tuned.re_estimated - frozen, (tuned.error - frozen) / 2)
    if not lost.above(0):
        said = "statistics of the batch lose nothing against frozen ones that shows"
    elif beyond.above(0):
        said = "most of the loss stays with statistics taken anew after training: the training is at fault, not the"
        said += " running average"
    elif beyond.below(0):
        said = "statistics taken anew after training take away most of the loss: the running average is at fault"
    else:
        said = "whether most of the loss stays with statistics taken anew after training does not show"
    return (
        f"{one.title}, batches of {batch}: {said} ({lost.text('{:+.1f}')} points above frozen, "
        f"{left.text('{:+.1f}')} with statistics taken anew)."
    )


def _edges(plan: Extent, one: Observed) -> Iterable[str]:
    ends = {min(plan.rates), max(plan.rates)}
    at = [f"{arm} at batch {batch}" for (arm, batch), tuned in one.tuned.items() if tuned.rate in ends]
    if at:
        yield f"{one.title}: the best learning rate is at the end of the grid for {', '.join(at)}."


def _diverged(plan: Extent, one: Observed) -> Iterable[str]:
    for (arm, batch), tuned in one.tuned.items():
        flags = tuned.diverged[plan.rates.index(tuned.rate)]
        if flags.any():
            yield f"{one.title}: {share(flags)} runs of {arm} at batch {batch} diverged, and count as constant answers."


def _bars(plan: Extent, one: Observed) -> Iterable[Bar]:
    small, large = min(plan.batches), max(plan.batches)
    gain = points(one.error(FROZEN, small), one.error(BATCH, small))
    where = f"{one.title}, batch {small}"
    yield Bar.of(f"{where}: frozen at least 10 points below batch statistics", gain, "{:+.1f}", most=-10)
    better = points(one.error(FROZEN, small), one.before[BATCH])
    yield Bar.of(f"{where}: frozen at least 10 points below the source", better, "{:+.1f}", most=-10)
    if large > small:
        even = points(one.error(FROZEN, large), one.error(BATCH, large))
        text = f"{one.title}, batch {large}: frozen within 3 points of batch statistics"
        yield Bar.of(text, even, "{:+.1f}", least=-3, most=3)
    if GROUP in plan.arms:
        near = points(one.error(GROUP, small), one.error(FROZEN, small))
        yield Bar.of(f"{where}: group norm within 4 points of frozen", near, "{:+.1f}", least=-4, most=4)


def draw(plan: Extent, found: Found) -> dict[str, Figure]:
    """Draw errors against the batch size, and against the learning rate with the smallest batches."""
    with plots.figure(9.6, 0.9 + 3.3 * len(found)) as drawing:
        panels = np.atleast_2d(drawing.subplots(len(found), 2))
        for (left, right), one in zip(panels, found.values(), strict=True):
            _by_batch(plan, left, one)
            _by_rate(plan, right, one)
        plots.legend(drawing, panels[0, 0], 4)
    return {"fine_tuning": drawing}


def _by_batch(plan: Extent, axes: Axes, one: Observed) -> None:
    values = {arm: 100 * np.stack([one.error(arm, batch) for batch in plan.batches], 1) for arm in plan.arms}
    plots.lines(axes, plan.batches, values, LOOKS, marked=True)
    plots.logarithmic(axes, x=True)
    plots.logarithmic(axes)
    plots.level(axes, 100 * float(one.before[BATCH].mean()), "source, batch norm, not tuned")
    axes.set(
        title=f"{one.title}: at the rates chosen", xlabel="batch size", ylabel="test error, %", xticks=plan.batches
    )
    plots.ticks(axes, TICKS)


def _by_rate(plan: Extent, axes: Axes, one: Observed) -> None:
    small = min(plan.batches)
    values = {arm: 100 * one.tuned[arm, small].errors.T for arm in plan.arms}
    plots.lines(axes, plan.rates, values, LOOKS, marked=True)
    plots.logarithmic(axes, x=True)
    plots.logarithmic(axes)
    plots.level(axes, 100 * float(one.before[BATCH].mean()), "source, batch norm, not tuned")
    axes.set(title=f"{one.title}: batches of {small}", xlabel="learning rate", ylabel="test error, %")
    plots.ticks(axes, TICKS)


def rows(plan: Extent, found: Found) -> Sequence[Row]:
    """List every number."""
    listed = []
    for one in found.values():
        listed += [("error before", f"{one.title}, {name}", "", errors) for name, errors in one.before.items()]
        for (arm, batch), tuned in one.tuned.items():
            title, at = f"{one.title}, {arm}", f"batch {batch}, rate "
            listed += [
                ("error", title, f"{at}{rate:g}", errors) for rate, errors in zip(plan.rates, tuned.errors, strict=True)
            ]
            listed += [("error, chosen rate", title, f"{at}{tuned.rate:g}", tuned.error)]
            if len(tuned.re_estimated):
                listed += [("error, statistics taken anew", title, f"{at}{tuned.rate:g}", tuned.re_estimated)]
    return [
        Row(quantity, arm, setting, seed, float(value))
        for quantity, arm, setting, values in listed
        for seed, value in zip(plan.all_seeds(), values, strict=True)
    ]


QUICK = Extent(
    seeds=2,
    networks=("mlp-2",),
    examples=2_000,
    steps=100,
    epochs=1,
    batches=(2,),
    rates=(3e-3, 1e-2),
    tries=1,
    arms=(BATCH, FROZEN, ADAPTED, FIXED, GROUP),
)
study = Study(
    name="fine_tuning",
    title="How should a network with batch norm be fine-tuned with small batches?",
    claims=(FREEZE, GROUPS, ADAPT, STATISTICS),
    standard=Extent(),
    quick=QUICK,
    measure=measure,
    judge=judge,
    draw=draw,
    rows=rows,
    networks={name: (Extent(networks=(name,)), replace(QUICK, networks=(name,))) for name in ("mlp-2", "conv")},
)

if __name__ == "__main__":
    main(study, __doc__ or "")
