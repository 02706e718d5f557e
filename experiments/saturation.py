"""Does batch norm keep units out of saturation, and the distribution of their inputs stable?

Networks of sigmoids train with and without batch norm, at the learning rate that is best without it on validation
images, and with it at half of the rate, too. Along training the script takes the 15th, 50th and 85th percentile of the
inputs of the last hidden layer's sigmoids over test images, as figure 1 of the paper does; batch norm takes the
statistics of these images. Batch norm's outputs are as wide as its scale, which grows. So the movement of the median is
divided by the mean distance of the two other percentiles. ReLUs, which cannot saturate, are the control.

    python experiments/saturation.py --output FOLDER
    python experiments/saturation.py --network mlp-6 --output FOLDER
    python experiments/saturation.py --data digits --quick
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.claims import images, networks, plots
from experiments.claims.estimates import Interval, average, points, ratio, share
from experiments.claims.images import Images
from experiments.claims.progress import FEW, Speedup, binarized, gain, in_groups, smoothed
from experiments.claims.study import Plan, Study, main
from experiments.claims.trainer import Budget, Moment, Trained, accuracy, at_once, chosen_rate, grid, trainer
from experiments.claims.verdicts import Bar, Claim, Finding, Judgement, Row, Verdict
from normlab.introspect.pure import Network
from normlab.models import MLP

SATURATION = Claim(
    key="saturation",
    text="Batch norm keeps units out of saturation.",
    source="Ioffe & Szegedy 2015, sections 1 and 3.2; widely read tutorials",
)
STABLE = Claim(
    key="stable",
    text="With batch norm the distribution of the inputs of a sigmoid is more stable during training.",
    source="Ioffe & Szegedy 2015, section 4.1, figure 1",
)
FASTER = Claim(
    key="faster",
    text="With batch norm, networks of sigmoids train faster.",
    source="Ioffe & Szegedy 2015, section 4.1, figure 1",
)
PERCENTILES = (15, 50, 85)
BEYOND = 2.5
"""Inputs of a sigmoid from which on it is saturated: its slope is 0.07 of 0.25 at most."""

SMALL = 0.05
"""Share of percentiles beyond up to which units are out of saturation."""

NORMS = {"none": "none", "batch": "batch:momentum=0.9"}
SCALES = {"sigmoid": networks.LECUN, "relu": networks.HE}
"""Factor of LeCun's initial kernels, by activation: LeCun's own, and He's."""

NONE, BATCH, SLOWER = "no norm", "batch norm", "batch norm, half the rate"
LOOKS = {NONE: plots.Look("none"), BATCH: plots.Look("batch"), SLOWER: plots.Look("batch", "--")}


@dataclass(frozen=True, kw_only=True)
class Extent(Plan):
    """Extent of the study.

    Attributes:
        layers: Hidden layers.
        width: Units of a hidden layer.
        rates: Learning rates to choose from.
        tuning: Seeds of choices.
        steps: Updates.
        every: Updates between observations.
        window: Evaluations that are averaged.
        evaluated: Test images of an evaluation.
        observed: Test images of the percentiles.
        units: Units of the last hidden layer whose percentiles are followed.
        group: Networks that train together.
    """

    layers: int = 3
    width: int = 100
    rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    tuning: int = 3
    steps: int = 1_600
    every: int = 20
    window: int = 4
    evaluated: int = 1_000
    observed: int = 300
    units: int = 8
    group: int = 20


class Look(NamedTuple):
    """One observation of a network.

    Attributes:
        accuracy: Share of right classes.
        percentiles: Percentiles of the inputs of activations over images, [layers, percentiles, units].
    """

    accuracy: Array | np.ndarray
    percentiles: Array | np.ndarray


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Networks that train alike.

    Attributes:
        rate: Learning rate.
        accuracy: Test accuracy, averaged over the last evaluations, [seeds, evaluations].
        percentiles: Of followed units of the last hidden layer, [seeds, observations, percentiles, units].
        beyond: Share of all units' percentiles that are beyond `BEYOND`, [seeds, observations, layers].
    """

    rate: float
    accuracy: np.ndarray
    percentiles: np.ndarray
    beyond: np.ndarray

    def median(self) -> np.ndarray:
        """Return the medians of units, [seeds, observations, units]."""
        return self.percentiles[:, :, 1]

    def spread(self) -> np.ndarray:
        """Return the distance of the outer percentiles, [seeds, observations, units]."""
        return self.percentiles[:, :, 2] - self.percentiles[:, :, 0]

    def drift(self) -> np.ndarray:
        """Return the movement of a median as a share of the mean spread; the middle unit, by seed."""
        return np.median(self.median().std(1) / self.spread().mean(1), axis=-1)

    def movement(self) -> np.ndarray:
        """Return the movement of a median, not divided by anything; the middle unit, by seed."""
        return np.median(self.median().std(1), axis=-1)

    def breathing(self) -> np.ndarray:
        """Return the movement of the spread as a share of its mean; the middle unit, by seed."""
        return np.median(self.spread().std(1) / self.spread().mean(1), axis=-1)

    def spread_at(self, observation: int) -> np.ndarray:
        """Return the spread of the middle unit at one time, by seed."""
        return np.median(self.spread()[:, observation], axis=-1)

    def end(self) -> np.ndarray:
        """Return the share of the last hidden layer's percentiles beyond at the end, by seed."""
        return self.beyond[:, -1, -1]


@dataclass(frozen=True, kw_only=True)
class Found:
    """Measurements.

    Attributes:
        at: Updates before each observation.
        arms: Arms by activation and name.
        own: Best rates by activation and norm, on validation images.
    """

    at: np.ndarray
    arms: Mapping[tuple[str, str], Arm]
    own: Mapping[tuple[str, str], float]

    def gain(self, plan: Extent, *, half: bool = False) -> Speedup:
        """Compare the steps of sigmoids to the highest, or to the half-time, accuracy without the norm."""
        bare, normed = (self.arms["sigmoid", name].accuracy for name in (NONE, BATCH))
        return gain(self.at[plan.window - 1 :], bare, bare, normed, half=half)


def measure(plan: Extent) -> Found:
    """Choose rates, then follow the networks."""
    data = binarized(images.load(plan.data, plan.data_dir, side=14))
    keys = [(activation, norm) for activation in SCALES for norm in NORMS]
    courses = {key: course(plan, data, *key) for key in keys}
    own = dict(zip(keys, at_once([each.own for each in courses.values()]), strict=True))
    jobs = [lambda key=key: courses[key].arms(own[key[0], "none"]) for key in keys]
    arms = {
        (activation, name): arm
        for (activation, _), found in zip(keys, at_once(jobs), strict=True)
        for name, arm in found.items()
    }
    return Found(at=Budget(steps=plan.steps, every=plan.every).at(), arms=arms, own=own)


@dataclass(frozen=True, kw_only=True)
class Course:
    """One network with its program."""

    plan: Extent
    data: Images
    net: Network
    run: Callable[..., Trained[Look]]
    norm: str

    def own(self) -> float:
        """Choose a learning rate on validation images."""
        settings = grid(self.plan.tuning_seeds(self.plan.tuning), self.plan.rates)
        runs = in_groups(self.run, settings, self.plan.group)
        return chosen_rate(self.net, runs, self.data.validation, self.plan.rates)

    def arms(self, rate: float) -> dict[str, Arm]:
        """Follow the network at a rate; with the norm at half of it, too."""
        names = {NONE: rate} if self.norm == "none" else {BATCH: rate, SLOWER: rate / 2}
        settings = grid(self.plan.all_seeds(), list(names.values()))
        seen = [some.seen for some in in_groups(self.run, settings, self.plan.group)]
        runs = Look(*(np.concatenate(parts) for parts in zip(*seen, strict=True)))
        return {
            name: self._arm(rate, Look(*(part[i * self.plan.seeds : (i + 1) * self.plan.seeds] for part in runs)))
            for i, (name, rate) in enumerate(names.items())
        }

    def _arm(self, rate: float, seen: Look) -> Arm:
        percentiles = np.asarray(seen.percentiles, np.float64)  # [seeds, observations, layers, percentiles, units]
        return Arm(
            rate=rate,
            accuracy=smoothed(np.asarray(seen.accuracy), self.plan.window),
            percentiles=percentiles[:, :, -1, :, : self.plan.units],
            beyond=(np.abs(percentiles) > BEYOND).mean((-1, -2)),
        )


def course(plan: Extent, data: Images, activation: str, norm: str) -> Course:
    """Make a network and its program."""
    own = {"activation": activation, "kernel_scale": SCALES[activation]}
    net = networks.made(f"mlp-{plan.layers}x{plan.width}", NORMS[norm], data, **own)
    right = accuracy(net, data.test.first(plan.evaluated))
    watched = jnp.asarray(data.test.inputs[: plan.observed])

    def observe(moment: Moment) -> Look:
        return Look(right(moment), percentiles(jnp.stack(inputs_of_activations(net, moment, watched))))

    budget = Budget(steps=plan.steps, every=plan.every)
    return Course(plan=plan, data=data, net=net, run=trainer(net, data, budget, observe=observe), norm=norm)


def inputs_of_activations(net: Network, moment: Moment, x: Array) -> list[Array]:
    """Return the inputs of the activations of an MLP, [images, units] a layer; norms take statistics of the images."""
    module = net.module
    if not isinstance(module, MLP):
        raise TypeError(f"Expected an MLP, got {type(module).__name__}.")
    variables = {"params": moment.params, **moment.state[0]}
    _, changed = module.apply(
        variables,
        x,
        train=True,
        mutable=[*moment.state[0], "intermediates"],
        capture_intermediates=lambda layer, _: (layer.name or "").startswith("norm_"),
    )
    return [jnp.asarray(changed["intermediates"][f"norm_{i}"]["__call__"][0]) for i in range(len(module.hidden))]


def percentiles(inputs: Array) -> Array:
    """Map inputs, [..., images, units], to percentiles over images, [..., percentiles, units]."""
    return jnp.moveaxis(jnp.percentile(inputs, jnp.array(PERCENTILES), axis=-2), 0, -2)


def judge(plan: Extent, found: Found) -> Judgement:
    """Compute verdicts, bars and the paragraph."""
    return Judgement(
        findings=(_saturation(plan, found), _stable(plan, found), _faster(plan, found)),
        bars=_bars(plan, found),
        sentences=tuple(_sentences(plan, found)),
    )


def _finding(plan: Extent, claim: Claim, verdict: Verdict, effect: str, seen: Interval, when: str = "") -> Finding:
    title = f"MLP {plan.layers} x {plan.width}, sigmoids"
    return Finding(claim=claim, verdict=verdict, effect=effect, seen=seen, network=title, data=plan.data, when=when)


def _saturation(plan: Extent, found: Found) -> Finding:
    bare, normed = found.arms["sigmoid", NONE], found.arms["sigmoid", BATCH]
    less = points(normed.end(), bare.end())
    kept = normed.beyond.mean(0).max() <= SMALL
    when = ""
    if less.high < 0:
        verdict = Verdict.HOLDS if kept else Verdict.HOLDS_WHEN
        when = "" if kept else (
            f"it means fewer saturated units, not none: {_percent(normed.end())} of percentiles are beyond {BEYOND:g} "
            f"at the end, and {_percent(bare.end())} without"
        )  # fmt: skip
    else:
        verdict = Verdict.FAILS if less.low > 0 else Verdict.UNSEEN
    effect = f"percentiles beyond {BEYOND:g} at the end, last hidden layer, with - without, points"
    return _finding(plan, SATURATION, verdict, effect, less, when)


def _percent(shares: np.ndarray) -> str:
    return average(100 * shares).text("{:.0f} %")


def stability(found: Found, activation: str = "sigmoid") -> tuple[Interval, Interval]:
    """Return the ratios without / with of drift and of the movement of the spread."""
    bare, normed = found.arms[activation, NONE], found.arms[activation, BATCH]
    return ratio(bare.drift(), normed.drift()), ratio(bare.breathing(), normed.breathing())


def _stable(plan: Extent, found: Found) -> Finding:
    drift, breathing = stability(found)
    better = [kind for kind, r in (("its median", drift), ("its spread", breathing)) if r.low > 1]
    verdict = {2: Verdict.HOLDS, 1: Verdict.HOLDS_WHEN}.get(len(better), Verdict.UNSEEN)
    if not better and (drift.high < 1 or breathing.high < 1):
        verdict = Verdict.FAILS
    when = f"the distribution is {better[0]}" if len(better) == 1 else ""
    effect = "movement of the median as a share of the spread, without / with"
    return _finding(plan, STABLE, verdict, effect, drift, when)


def _faster(plan: Extent, found: Found) -> Finding:
    gain = found.gain(plan)
    effect = "steps to the highest accuracy without the norm, without / with, same rate"
    when = "" if gain.reached == gain.of else f"the norm reaches it in {gain.reached} of {gain.of} seeds"
    return _finding(plan, FASTER, gain.verdict, effect, gain.ratio, when)


def _bars(plan: Extent, found: Found) -> tuple[Bar, ...]:
    bare, normed = found.arms["sigmoid", NONE], found.arms["sigmoid", BATCH]
    drift, breathing = stability(found)
    control = stability(found, "relu")[0]
    lower = normed.drift() < bare.drift()
    starts = [average(arm.spread_at(0)) for arm in (bare, normed)]
    return (
        Bar.of(
            "relative movement of the spread at least 2.5 times as large without the norm",
            breathing,
            "{:.2f}",
            least=2.5,
        ),
        Bar(
            "median's movement / spread lower with batch norm in 4 of 5 seeds",
            f"{share(lower)}, without / with {drift.text('{:.2f}')}",
            float(lower.mean()) >= 1 - FEW,
        ),
        Bar(
            "spread before training below 0.2 without the norm and above 1 with it",
            f"{starts[0].text('{:.3f}')} without, {starts[1].text('{:.2f}')} with",
            starts[0].below(0.2) and starts[1].above(1),
        ),
        Bar(
            "ReLU: median's movement / spread lower with batch norm, without / with above 1",
            control.text("{:.2f}"),
            control.low > 1,
        ),
    )


def _sentences(plan: Extent, found: Found) -> list[str]:
    return [
        _rates_sentence(plan, found),
        _start_sentence(found),
        _end_sentence(found),
        _stable_sentence(found),
        _control_sentence(found),
        f"Steps without the norm / with it: {found.gain(plan, half=True).text()} to the accuracy without the norm at "
        f"half time, {found.gain(plan).text()} to its highest accuracy.",
    ]


def _rates_sentence(plan: Extent, found: Found) -> str:
    bare, normed = found.arms["sigmoid", NONE], found.arms["sigmoid", BATCH]
    heights = [average(100 * arm.accuracy.max(-1)).text("{:.1f} %") for arm in (bare, normed)]
    return (
        f"Sigmoids, {plan.layers} x {plan.width}, at rate {bare.rate:g}, the best without the norm; the best with it "
        f"is {found.own['sigmoid', 'batch']:g}. Highest accuracy: {heights[0]} without, {heights[1]} with."
    )


def _start_sentence(found: Found) -> str:
    bare, normed = found.arms["sigmoid", NONE], found.arms["sigmoid", BATCH]
    wide = [average(bare.spread_at(0)).text("{:.3f}"), average(normed.spread_at(0)).text("{:.2f}")]
    starts = [arm.beyond[:, 0, -1] for arm in (bare, normed)]
    text = (
        f"Before training the inputs of the last hidden layer's sigmoids spread over {wide[0]} without the norm and "
        f"{wide[1]} with it; {_percent(starts[0])} and {_percent(starts[1])} of their percentiles are beyond "
        f"{BEYOND:g}."
    )
    if starts[0].mean() > SMALL:
        return text + " Without the norm units start saturated."
    if bare.spread_at(0).mean() < normed.spread_at(0).mean():
        return text + " Without the norm units do not start saturated: they start at the centre, with a weak signal."
    return text + " Units do not start saturated, with the norm or without."


def _end_sentence(found: Found) -> str:
    arms = {name: found.arms["sigmoid", name] for name in (NONE, BATCH, SLOWER)}
    spreads = ", ".join(f"{name} {average(arm.spread_at(-1)).text('{:.2f}')}" for name, arm in arms.items())
    shares = ", ".join(f"{name} {_percent(arm.end())}" for name, arm in arms.items())
    text = f"At the end their spread is: {spreads}. Percentiles beyond {BEYOND:g}: {shares}. "
    less = points(arms[BATCH].end(), arms[NONE].end())
    if less.high < 0 and arms[BATCH].end().mean() > SMALL:
        return text + "With batch norm fewer units saturate, but some do: its scale and bias are trained."
    if less.high < 0:
        return text + "With batch norm units of this layer are out of saturation at the end."
    if less.low > 0:
        return text + "With batch norm more units saturate."
    return text + "The difference is not visible here."


def _stable_sentence(found: Found) -> str:
    bare, normed = found.arms["sigmoid", NONE], found.arms["sigmoid", BATCH]
    drift, breathing = (each.text("{:.2f}") for each in stability(found))
    drifts = [average(arm.drift()).text("{:.3f}") for arm in (bare, normed)]
    spreads = [average(arm.breathing()).text("{:.3f}") for arm in (bare, normed)]
    raw = ratio(bare.movement(), normed.movement()).text("{:.2f}")
    return (
        f"As a share of the spread, the median moves by {drifts[0]} without the norm and {drifts[1]} with it, without "
        f"/ with {drift}; the spread moves by {spreads[0]} of its mean without and {spreads[1]} with, {breathing}. "
        f"Not divided by the spread, the median's movement compares as {raw}."
    )


def _control_sentence(found: Found) -> str:
    bare, normed = found.arms["relu", NONE], found.arms["relu", BATCH]
    drift = stability(found, "relu")[0]
    drifts = [average(arm.drift()).text("{:.3f}") for arm in (bare, normed)]
    seen = {(True, False): "more stable there, too", (False, True): "less stable there"}
    end = seen.get((drift.low > 1, drift.high < 1), "not shown to be more stable there")
    return (
        f"ReLUs at rate {bare.rate:g}: the median moves by {drifts[0]} of the spread without the norm and {drifts[1]} "
        f"with it, without / with {drift.text('{:.2f}')}; so with the norm the distribution is {end}."
    )


def draw(plan: Extent, found: Found) -> dict[str, Figure]:
    """Draw percentiles of a typical unit with and without the norm, and saturated shares of layers."""
    with plots.figure(12.6, 4.2) as drawing:
        left, middle, right = drawing.subplots(1, 3)
        for axes, name in ((left, NONE), (middle, BATCH)):
            _percentile_panel(axes, found, name)
        middle.sharey(left)
        shares = {
            f"{name}, layer {layer + 1}": found.arms["sigmoid", name].beyond[:, 1:, layer]
            for name in (NONE, BATCH)
            for layer in range(plan.layers)
        }
        dashes = ("-", "--", ":", "-.")
        looks = {
            label: plots.Look("none" if label.startswith(NONE) else "batch", dashes[i % plan.layers % 4])
            for i, label in enumerate(shares)
        }
        plots.lines(right, found.at[1:], shares, looks)
        plots.logarithmic(right, x=True)
        right.set(title=f"Share of percentiles beyond {BEYOND:g}", xlabel="steps", ylim=(0, 1))
        left.set(ylabel="input of the sigmoid")
        plots.legend(drawing, right, 2)
    return {"saturation": drawing}


def _typical(found: Found, name: str) -> np.ndarray:
    """Return the percentiles of the first seed's middle unit by drift, [observations, percentiles]."""
    arm = found.arms["sigmoid", name]
    drift = arm.median()[0].std(0) / arm.spread()[0].mean(0)
    return arm.percentiles[0, 1:, :, int(np.argsort(drift)[len(drift) // 2])]


def _percentile_panel(axes: Axes, found: Found, name: str) -> None:
    """Draw three percentiles of a typical unit; where a sigmoid is saturated is shaded."""
    unit, at = _typical(found, name), found.at[1:]
    for i in range(len(PERCENTILES)):
        plots.lines(axes, at, {name: unit[None, :, i]}, LOOKS)
    axes.fill_between(at, unit[:, 0], unit[:, 2], color=axes.get_lines()[-1].get_color(), alpha=0.15, linewidth=0)
    axes.annotate("saturated", (0.02, 0.98), xycoords="axes fraction", va="top", fontsize="small", color="0.4")
    top = max(2 * BEYOND, *(1.1 * float(np.abs(_typical(found, each)).max()) for each in (NONE, BATCH)))
    for sign in (-1, 1):
        axes.axhspan(sign * BEYOND, sign * top, color="0.5", alpha=0.12, linewidth=0)
    plots.logarithmic(axes, x=True)
    axes.set(title=f"Percentiles of a unit, {name}", xlabel="steps", ylim=(-top, top))


def rows(plan: Extent, found: Found) -> Sequence[Row]:
    """List every number."""
    table = []
    for (activation, name), arm in found.arms.items():
        columns = {
            "highest accuracy": arm.accuracy.max(-1),
            "median's movement / spread": arm.drift(),
            "median's movement": arm.movement(),
            "spread's movement / spread": arm.breathing(),
            "spread at the start": arm.spread_at(0),
            "spread at the end": arm.spread_at(-1),
            **{f"beyond at the end, layer {i + 1}": arm.beyond[:, -1, i] for i in range(plan.layers)},
        }
        table += [
            Row(quantity, name, f"{activation}, rate {arm.rate:g}", seed, float(value))
            for quantity, values in columns.items()
            for seed, value in zip(plan.all_seeds(), values, strict=True)
        ]
    return table


def short(plan: Extent) -> Extent:
    """Shorten a plan so that it shows that everything works."""
    few = {"rates": (0.1, 0.3), "tuning": 1, "evaluated": 300, "observed": 100}
    return dataclasses.replace(plan, seeds=2, steps=100, every=10, group=4, **few)


DEEP = Extent(layers=6)
study = Study(
    name="saturation",
    title="Does batch norm keep units out of saturation?",
    claims=(SATURATION, STABLE, FASTER),
    standard=Extent(),
    quick=short(Extent(layers=2)),
    measure=measure,
    judge=judge,
    draw=draw,
    rows=rows,
    networks={"mlp-6": (DEEP, short(DEEP))},
)

if __name__ == "__main__":
    main(study, __doc__ or "")
