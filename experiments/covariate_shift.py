"""Do statistics of the source explain why a network with batch norm fails on other images, and do new ones repair it?

A network trains on one kind of images and is tested on others: with another contrast or brightness, with noise, moved
by a pixel, blurred, written as JPEG; and on a real shift, from MNIST to scikit-learn's digits, which other people wrote
and another scanner read. Remedies use no labels: statistics of test batches, statistics of all target images (AdaBN),
and TENT, which also trains scale and bias; a network without norm stands beside them.

    python experiments/covariate_shift.py --output FOLDER
    python experiments/covariate_shift.py --network resnet-20 --seeds 3 --output FOLDER     # CIFAR-10, for a GPU
    python experiments/covariate_shift.py --data digits --quick
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import optax
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.claims import images, networks, plots, shifted
from experiments.claims.estimates import SIGNED, Interval, average, points, ratio
from experiments.claims.images import Images, Part
from experiments.claims.shifted import RECIPES, Recipe, Runs
from experiments.claims.study import Plan, Study, main
from experiments.claims.verdicts import Bar, Claim, Finding, Judgement, Key, Row, judged
from normlab import tools

STORY = Claim(
    key="story",
    text="Under covariate shift a network with batch norm fails because it normalizes by statistics of the source.",
    source="widely read survey of hypotheses on why batch norm works; Li et al. 2016",
)
REPAIR = Claim(
    key="repair",
    text="Statistics of the target, without labels, reduce the errors under covariate shift.",
    source="Li et al. 2016; Nado et al. 2020; Schneider et al. 2020",
    published="ImageNet-C, ResNet-50: mean corruption error 76.7 -> 62.2 % (Schneider et al.)",
)
TENT_HELPS = Claim(
    key="tent",
    text="TENT makes fewer errors than statistics of the target alone.",
    source="Wang et al. 2021",
    published="CIFAR-10-C, ResNet-26: 40.8 % without, 17.3 % with statistics of the target, 14.3 % with TENT",
)
ROBUST = Claim(
    key="robust",
    text="Batch norm makes a network robust to covariate shift.",
    source="widely read tutorials",
)
MIXED = Claim(
    key="mixed",
    text="Statistics of test batches need batches in which the classes are mixed.",
    source="Wang et al. 2021; Boudiaf et al. 2022",
)
RUNNING, ADABN, TENT, SORTED, TENT_SORTED, NONE = (
    "running statistics",
    "AdaBN",
    "TENT",
    "own, sorted by class",
    "TENT, sorted by class",
    "no norm",
)
CLEAN, REAL, OWN = "clean", "scikit-learn's digits", "own statistics"
SORTED_BATCH = 64
HURTS, HALF, TRAP = 1.0, 0.5, 5.0
"""Points of error from which a shift hurts and from which sorting hurts; share of errors that is an explanation."""


@dataclass(frozen=True, kw_only=True)
class Extent(Plan):
    """Extent of the study.

    Attributes:
        networks: Names of `RECIPES`.
        examples: Training images.
        test: Target images of the changes, and validation images by which TENT's rate is chosen.
        steps: Updates, at the largest rate; the recipe's if 0, at the best.
        sizes: Sizes of test batches with statistics of their own.
        tent_rates: Learning rates of TENT's Adam.
        tent_batch: Images in a batch of TENT.
    """

    networks: tuple[str, ...] = ("mlp-2", "conv")
    examples: int = 20_000
    test: int = 3_000
    steps: int = 0
    sizes: tuple[int, ...] = (4, 16, 64, 256)
    tent_rates: tuple[float, ...] = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
    tent_batch: int = 200


@dataclass(frozen=True, kw_only=True)
class Observed:
    """Measurements of one network.

    Attributes:
        title: Name of the network.
        data: Name of the source.
        errors: Errors by shift and remedy, [seeds].
        tent: Errors of TENT by shift, [rates, seeds].
        tent_rate: The rate that is best on changed validation images.
    """

    title: str
    data: str
    errors: Mapping[tuple[str, str], np.ndarray]
    tent: Mapping[str, np.ndarray]
    tent_rate: float

    @property
    def shifts(self) -> list[str]:
        """Names of the shifts, `clean` first."""
        return list(self.tent)

    def error(self, remedy: str, shift: str) -> np.ndarray:
        """Return the errors of a remedy, [seeds]."""
        return self.errors[shift, remedy]


Found = Mapping[str, Observed]


def own(n: int) -> str:
    """Return the name of the remedy of statistics of batches."""
    return f"own, n = {n}"


def measure(plan: Extent) -> Found:
    """Train every network on the source, and test it with every remedy on every target."""
    return {name: observed(plan, RECIPES[name]) for name in plan.networks}


def observed(plan: Extent, recipe: Recipe) -> Observed:
    """Train and test one network."""
    data = recipe.load(plan.data, plan.data_dir, plan.examples)
    seeds, tuning = list(plan.all_seeds()), list(plan.tuning_seeds())
    runs, without = (
        Runs.of(net, trained.params, trained.state)
        for net, trained in (
            shifted.pretrained(recipe, norm, data, seeds, tuning, plan.steps) for norm in ("batch:momentum=0.9", "none")
        )
    )
    meant, checks = targets(plan, data), changed(data.validation.first(plan.test), seed=1)
    first = slice(len(seeds))
    tent = {rate: tented(plan, runs, rate, {**meant, **_marked(checks), **_sorted(meant)}) for rate in plan.tent_rates}
    tries = [np.mean([tent[rate][f"check {name}"][len(seeds) :] for name in checks]) for rate in plan.tent_rates]
    best = plan.tent_rates[int(np.argmin(tries))]
    errors = remedied(plan, runs, without, meant)
    errors |= {(name, TENT): tent[best][name] for name in meant}
    errors |= {(name, TENT_SORTED): tent[best][f"sorted {name}"] for name in meant}
    return Observed(
        title=recipe.title,
        data=data.name,
        errors={key: values[first] for key, values in errors.items()},
        tent={name: np.stack([tent[rate][name][first] for rate in plan.tent_rates]) for name in meant},
        tent_rate=best,
    )


def targets(plan: Extent, data: Images) -> dict[str, Part]:
    """Return the target images by name of the shift, in an order that mixes the classes."""
    found = changed(shifted.shuffled(data.test.first(plan.test)))
    if shifted.is_mnist(plan.data):
        found[REAL] = shifted.shuffled(shifted.whole(images.small_digits(data.test.inputs.shape[1])))
    return found


def changed(part: Part, seed: int = 0) -> dict[str, Part]:
    """Return images as they are, and with every change."""
    changes = shifted.changes(seed)
    return {CLEAN: part, **{name: Part(change(part.inputs), part.labels) for name, change in changes.items()}}


def remedied(plan: Extent, runs: Runs, without: Runs, meant: Mapping[str, Part]) -> dict[tuple[str, str], np.ndarray]:
    """Test every remedy but TENT."""
    adabn, errors = tools.Adapter(runs.module, runs.variables, "adabn"), dict[tuple[str, str], np.ndarray]()
    for name, part in meant.items():
        adabn.reset()
        errors[name, RUNNING], errors[name, NONE] = runs.errors(part), without.errors(part)
        errors[name, ADABN] = shifted.wrong(adabn(part.inputs), part.labels)
        errors |= {(name, own(n)): runs.errors_by_batch(part, n) for n in plan.sizes}
        errors[name, SORTED] = runs.errors_by_batch(by_class(part), SORTED_BATCH)
    return errors


def tented(plan: Extent, runs: Runs, rate: float, meant: Mapping[str, Part]) -> dict[str, np.ndarray]:
    """Adapt by TENT at a rate, online, to each target from the start; [runs] errors by target.

    The entropy of a batch is averaged over runs, which divides gradients; Adam, with its epsilon divided, ignores it.
    """
    optimizer = optax.adam(rate, eps=1e-8 / runs.count)
    adapter, errors = tools.Adapter(runs.module, runs.variables, "tent", optimizer=optimizer), dict[str, np.ndarray]()
    for name, part in meant.items():
        adapter.reset()
        places = shifted.batches(len(part.labels), plan.tent_batch)
        outputs = [adapter(part.inputs[place]) for place in places]
        errors[name] = shifted.wrong(shifted.joined(outputs, places), part.labels)
    return errors


def by_class(part: Part) -> Part:
    """Sort images by class."""
    order = np.argsort(part.labels, kind="stable")
    return Part(part.inputs[order], part.labels[order])


def _marked(parts: Mapping[str, Part]) -> dict[str, Part]:
    return {f"check {name}": part for name, part in parts.items()}


def _sorted(parts: Mapping[str, Part]) -> dict[str, Part]:
    return {f"sorted {name}": by_class(part) for name, part in parts.items()}


def effects(found: Found, of: Callable[[Observed, str], Interval]) -> dict[Key, Interval]:
    """Compute an effect for every network and shift."""
    return {(name, shift): of(one, shift) for name, one in found.items() for shift in one.shifts}


def harm(one: Observed, shift: str) -> Interval:
    """Return by how much a shift raises the error by running statistics, points."""
    return points(one.error(RUNNING, shift), one.error(RUNNING, CLEAN))


def repaired(one: Observed, shift: str) -> Interval:
    """Return the ratio of errors, statistics of the target / of the source."""
    return ratio(one.error(ADABN, shift), one.error(RUNNING, shift))


def explained(one: Observed, shift: str) -> Interval:
    """Return the share of the errors that a shift brings which statistics of the target take away."""
    clean, before, after = one.error(RUNNING, CLEAN), one.error(RUNNING, shift), one.error(ADABN, shift)
    with np.errstate(all="ignore"):
        return average((before - after) / (before - clean))


def sharper(one: Observed, shift: str) -> Interval:
    """Return the difference of errors, TENT - statistics of the target, points."""
    return points(one.error(TENT, shift), one.error(ADABN, shift))


def against_none(one: Observed, shift: str) -> Interval:
    """Return the ratio of errors, batch norm by running statistics / no norm."""
    return ratio(one.error(RUNNING, shift), one.error(NONE, shift))


def rises(one: Observed, shift: str) -> Interval:
    """Return by how much more a shift raises the error with batch norm by running statistics than without, points."""
    normed, bare = (one.error(arm, shift) - one.error(arm, CLEAN) for arm in (RUNNING, NONE))
    return points(normed, bare)


def sorting(one: Observed, shift: str) -> Interval:
    """Return by how much batches of one class raise the error by their own statistics, points."""
    return points(one.error(SORTED, shift), one.error(own(SORTED_BATCH), shift))


def judge(plan: Extent, found: Found) -> Judgement:
    """Compute verdicts, bars and the paragraph."""
    return Judgement(
        findings=tuple(_findings(found)),
        bars=tuple(_bars(found)),
        sentences=tuple(line for one in found.values() for line in _sentences(plan, one)),
    )


def hurting(found: Found) -> list[Key]:
    """Return the networks and shifts in which the shift raises the error."""
    return [key for key, effect in effects(found, harm).items() if effect.mean > HURTS]


def headline(found: Found) -> Key:
    """Return the network and the shift whose effect stands for all: the real shift, or the worst."""
    name, one = list(found.items())[-1]
    worst = max(one.shifts, key=lambda shift: float(np.mean(one.error(RUNNING, shift))))
    return name, REAL if REAL in one.shifts else worst


def _findings(found: Found) -> Iterable[Finding]:
    """Judge each claim by the shifts that it is about."""
    hurt, clean = hurting(found), [(name, CLEAN) for name in found]
    shifts = [key for key in effects(found, harm) if key[1] != CLEAN]
    main = headline(found)
    about = {"titles": {name: one.title for name, one in found.items()}, "data": found[main[0]].data}
    fewer = {"good": lambda i: i.below(1), "bad": lambda i: i.above(1), "headline": main, **about}
    lower = {"good": lambda i: i.below(0), "bad": lambda i: i.above(0), "headline": main, **about}
    half = {"good": lambda i: i.above(HALF), "bad": lambda i: i.below(HALF), "headline": main, **about}
    half["opposite"] = "less than half"
    trap = {"good": lambda i: i.above(TRAP), "bad": lambda i: i.below(TRAP), "headline": (main[0], CLEAN), **about}
    text = "share of the errors of the shift that statistics of the target take away; the claim needs half"
    yield judged(STORY, text, effects(found, explained), hurt, **half)
    text = "test error, statistics of the target / of the source"
    yield judged(REPAIR, text, effects(found, repaired), hurt, **fewer)
    text = "test error, TENT - statistics of the target, points"
    yield judged(TENT_HELPS, text, effects(found, sharper), hurt, **lower)
    text = "errors that the shift adds, batch norm by running statistics - no norm, points"
    yield judged(ROBUST, text, effects(found, rises), shifts, **lower)
    text = f"test error, batches of {SORTED_BATCH} sorted by class - mixed, points"
    yield judged(MIXED, text, effects(found, sorting), clean, **trap)


def _percent(errors: np.ndarray) -> str:
    return f"{100 * np.mean(errors):.1f}"


def _sentences(plan: Extent, one: Observed) -> Iterable[str]:
    arrows = ", ".join(
        f"{shift} {_percent(one.error(RUNNING, shift))} -> {_percent(one.error(ADABN, shift))} "
        f"(ratio {repaired(one, shift).text('{:.3f}')})"
        for shift in one.shifts
    )
    yield f"{one.title}, test error in %, by running statistics -> by statistics of the target: {arrows}."
    yield _affine(one)
    yield from _real(one)
    yield _tent(plan, one)
    yield _own(plan, one)
    yield _none(one)


def _affine(one: Observed) -> str:
    apart = {name: points(one.error(ADABN, name), one.error(ADABN, CLEAN)) for name in shifted.AFFINE}
    worst = max(apart, key=lambda name: abs(apart[name].mean))
    if abs(apart[worst].mean) <= 0.05:
        return f"{one.title}: statistics of the target undo contrast and brightness exactly."
    return (
        f"{one.title}: statistics of the target do not undo every change of contrast and brightness: with {worst} the "
        f"error is {apart[worst].text('{:+.1f}')} points from that of clean images."
    )


def _real(one: Observed) -> Iterable[str]:
    if REAL not in one.shifts:
        return
    share, effect = explained(one, REAL), repaired(one, REAL)
    if effect.below(1):
        verb = f"take away {share.text('{:.2f}')} of the errors that the shift brings"
    elif effect.above(1):
        verb = "add errors"
    else:
        verb = "change nothing that shows"
    yield f"{one.title}: on the real shift, {REAL}, statistics of the target {verb}."


def _tent(plan: Extent, one: Observed) -> str:
    shifts = [shift for shift in one.shifts if shift != CLEAN]
    chosen = {shift: sharper(one, shift) for shift in shifts}
    lower = [shift for shift in shifts if chosen[shift].below(0)]
    higher = [shift for shift in one.shifts if sharper(one, shift).above(0)]
    best = {
        shift: min((points(tried, one.error(ADABN, shift)) for tried in one.tent[shift]), key=lambda i: i.mean)
        for shift in shifts
    }
    shift = min(best, key=lambda name: best[name].mean)
    rates = f"{min(plan.tent_rates):g} to {max(plan.tent_rates):g}"
    return (
        f"{one.title}: TENT at its rate {one.tent_rate:g}, chosen on changed validation images, makes fewer errors "
        f"than statistics of the target on {', '.join(lower) or 'no shift'}, more on {', '.join(higher) or 'none'}; at "
        f"the best of the rates {rates}, taken from the reported images, the most that it gains is "
        f"{best[shift].text('{:+.1f}')} points, on {shift}."
    )


def _own(plan: Extent, one: Observed) -> str:
    sizes = ", ".join(f"{_percent(one.error(own(n), CLEAN))} with n = {n}" for n in plan.sizes)
    trap, tent = sorting(one, CLEAN), points(one.error(TENT_SORTED, CLEAN), one.error(TENT, CLEAN))
    return (
        f"{one.title}: on clean images, statistics of test batches of n give {sizes} (running "
        f"{_percent(one.error(RUNNING, CLEAN))}); sorted by class, batches of {SORTED_BATCH} give "
        f"{_percent(one.error(SORTED, CLEAN))} ({trap.text('{:+.1f}')} points), and TENT "
        f"{_percent(one.error(TENT_SORTED, CLEAN))} ({tent.text('{:+.1f}')})."
    )


def _none(one: Observed) -> str:
    sides = {shift: against_none(one, shift) for shift in one.shifts}
    fewer = [f"{shift} ({i.mean:.2f})" for shift, i in sides.items() if i.below(1)]
    more = [f"{shift} ({i.mean:.2f})" for shift, i in sides.items() if i.above(1)]
    added = {shift: rises(one, shift) for shift in one.shifts if shift != CLEAN}
    less = [f"{shift} ({i.mean:+.1f})" for shift, i in added.items() if i.below(0)]
    worse = [f"{shift} ({i.mean:+.1f})" for shift, i in added.items() if i.above(0)]
    return (
        f"{one.title}: beside a network without norm, batch norm by running statistics makes fewer errors on "
        f"{', '.join(fewer) or 'none'}, more on {', '.join(more) or 'none'} (ratio); with it a shift adds fewer errors "
        f"for {', '.join(less) or 'none'}, more for {', '.join(worse) or 'none'} (points)."
    )


def _bars(found: Found) -> Iterable[Bar]:
    for name, one in found.items():
        dense = networks.dense(name)
        for shift in shifted.AFFINE:
            effect = repaired(one, shift)
            yield Bar.of(f"{one.title}, {shift}: AdaBN / running at most 0.25", effect, "{:.3f}", most=0.25)
            if dense:
                apart = points(one.error(ADABN, shift), one.error(ADABN, CLEAN))
                text = f"{one.title}, {shift}: AdaBN within 0.5 points of clean"
                yield Bar.of(text, apart, SIGNED, least=-0.5, most=0.5)
        yield from _dense(one) if dense else _convolutional(one)
        yield from _of_batches(one, least=15 if dense else 7)


def _dense(one: Observed) -> Iterable[Bar]:
    for shift in (shift for shift in ("noise", "one pixel right", REAL) if shift in one.shifts):
        text = f"{one.title}, {shift}: AdaBN / running in 0.8 to 1.1"
        yield Bar.of(text, repaired(one, shift), "{:.3f}", least=0.8, most=1.1)


def _convolutional(one: Observed) -> Iterable[Bar]:
    for shift, most in (("noise", 0.92), (REAL, 0.95)):
        if shift in one.shifts:
            text = f"{one.title}, {shift}: AdaBN / running at most {most}"
            yield Bar.of(text, repaired(one, shift), "{:.3f}", most=most)


def _of_batches(one: Observed, least: float) -> Iterable[Bar]:
    if (CLEAN, own(4)) in one.errors:
        few = points(one.error(own(4), CLEAN), one.error(RUNNING, CLEAN))
        yield Bar.of(
            f"{one.title}, clean: own n = 4 at least {least} points above running", few, "{:+.1f}", least=least
        )
    by = average(100 * one.error(SORTED, CLEAN))
    yield Bar.of(f"{one.title}, clean: sorted by class at least 60 %", by, "{:.1f}", least=60)
    apart = {shift: sharper(one, shift) for shift in one.shifts}
    worst = max(apart, key=lambda shift: apart[shift].size)
    yield Bar(f"{one.title}: TENT - AdaBN within 1.5 points on every shift",
              f"{apart[worst].text('{:+.2f}')} on {worst}", apart[worst].size <= 1.5)  # fmt: skip


def remedies(plan: Extent) -> list[str]:
    """Return the remedies in the order of the figure."""
    return [NONE, RUNNING, *map(own, plan.sizes), ADABN, TENT, SORTED, TENT_SORTED]


def draw(plan: Extent, found: Found) -> dict[str, Figure]:
    """Draw errors by shift and remedy; and against the size of the test batch and the rate of TENT."""
    with plots.figure(9.6, 0.9 + 3.3 * len(found)) as drawing:
        panels = np.atleast_1d(drawing.subplots(len(found), 1))
        for axes, one in zip(panels, found.values(), strict=True):
            _matrix(plan, axes, one)
    with plots.figure(9.6, 0.6 + 3.2 * len(found)) as batches:
        rows = np.atleast_2d(batches.subplots(len(found), 2))
        for (left, right), one in zip(rows, found.values(), strict=True):
            _by_size(plan, left, one)
            _by_rate(plan, right, one)
        plots.legend(batches, rows[0, 0])
    return {"covariate_shift": drawing, "covariate_shift_batches": batches}


def _matrix(plan: Extent, axes: Axes, one: Observed) -> None:
    columns = remedies(plan)
    table = np.array([[100 * np.mean(one.error(r, shift)) for r in columns] for shift in one.shifts])
    axes.imshow(table, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for (i, j), value in np.ndenumerate(table):
        axes.text(j, i, f"{value:.1f}", ha="center", va="center", color="white" if value > 55 else "black",
                  fontsize="small")  # fmt: skip
    labels = [
        column.replace(", ", ",\n").replace(" statistics", "\nstatistics").replace("by class", "\nby class")
        for column in columns
    ]
    axes.set_xticks(range(len(columns)), labels, fontsize="small")
    axes.set_yticks(range(len(one.shifts)), one.shifts)
    axes.grid(False)
    axes.set(title=f"{one.title}: test error in %, of {_percent(one.error(RUNNING, CLEAN))} on clean {one.data}")


LOOKS = {
    OWN: plots.Look("batch"),
    RUNNING: plots.Look("batch", "--", "#0072b2"),
    ADABN: plots.Look("batch", ":", "#009e73"),
    TENT: plots.Look("batch", "-.", "#b8860b"),
    NONE: plots.Look("none"),
}


def _shown(one: Observed) -> str:
    return headline({"": one})[1]


def _by_size(plan: Extent, axes: Axes, one: Observed) -> None:
    shift = _shown(one)
    means = {name: 100 * np.mean(one.error(name, shift)) for name in LOOKS if name != OWN}
    flat = {name: np.full((1, len(plan.sizes)), mean) for name, mean in means.items()}
    sized = 100 * np.stack([one.error(own(n), shift) for n in plan.sizes], 1)
    plots.lines(axes, plan.sizes, {OWN: sized, **flat}, LOOKS)
    plots.logarithmic(axes, x=True)
    axes.set(title=f"{one.title}, {shift}", xlabel="size of the test batch", ylabel="test error, %", xticks=plan.sizes)


def _by_rate(plan: Extent, axes: Axes, one: Observed) -> None:
    for shift, errors in one.tent.items():
        apart = 100 * (errors - one.error(ADABN, shift)).mean(1)
        axes.plot(plan.tent_rates, apart, marker=".", label=shift)
    axes.axhline(0, color="0.4", linewidth=0.9)
    axes.axvline(one.tent_rate, color="0.4", linewidth=0.9, linestyle=":")
    plots.logarithmic(axes, x=True)
    axes.set_yscale("symlog", linthresh=1)
    low, high = axes.get_ylim()
    ticks = [tick for size in (0, 0.5, 1, 3, 10, 30) for tick in {-size, size} if low <= tick <= high]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.legend(fontsize="x-small", ncols=2, frameon=True, framealpha=0.85, edgecolor="none")
    axes.set(title=f"{one.title}: TENT - AdaBN (dotted: rate chosen)", xlabel="rate of TENT", ylabel="points")


def rows(plan: Extent, found: Found) -> Sequence[Row]:
    """List every number."""
    listed = []
    for one in found.values():
        for (shift, remedy), errors in one.errors.items():
            listed += [("error", f"{one.title}, {remedy}", shift, errors)]
        for shift, tried in one.tent.items():
            for rate, errors in zip(plan.tent_rates, tried, strict=True):
                listed += [("error", f"{one.title}, TENT at {rate:g}", shift, errors)]
    return [
        Row(quantity, arm, setting, seed, float(value))
        for quantity, arm, setting, values in listed
        for seed, value in zip(plan.all_seeds(), values, strict=True)
    ]


QUICK = Extent(
    seeds=2, networks=("mlp-2",), examples=2_000, test=500, steps=100, sizes=(4, 64), tent_rates=(1e-3, 1e-2)
)
CIFAR = Extent(networks=("resnet-20",), data="tfds:cifar10", examples=50_000, seeds=5)
study = Study(
    name="covariate_shift",
    title="Are statistics of the source why batch norm fails on other images?",
    claims=(STORY, REPAIR, TENT_HELPS, ROBUST, MIXED),
    standard=Extent(),
    quick=QUICK,
    measure=measure,
    judge=judge,
    draw=draw,
    rows=rows,
    networks={
        "mlp-2": (Extent(networks=("mlp-2",)), QUICK),
        "conv": (Extent(networks=("conv",)), replace(QUICK, networks=("conv",))),
        "conv-16-32-64": (
            Extent(networks=("conv-16-32-64",), data="tfds:cifar10", examples=40_000),
            replace(QUICK, networks=("conv-16-32-64",), data="tfds:cifar10", steps=4),
        ),
        **{
            name: (replace(CIFAR, networks=(name,)), replace(QUICK, networks=(name,), data=CIFAR.data, steps=4))
            for name in ("conv-32-64-128-128", "resnet-20")
        },
    },
)

if __name__ == "__main__":
    main(study, __doc__ or "")
