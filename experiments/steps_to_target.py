"""Does batch norm speed up training, and by how much?

The base is a network without a norm at the learning rate that is best for it on validation images; networks with and
without batch norm train at this rate and at 5 and 30 times the rate, and so they do from bases whose rate is a tenth
and a thirtieth of the best one. Networks of sigmoids do the same, and at rates of their own. For each the script counts
the steps to the base's own highest test accuracy on that seed, as the paper does, and to its accuracy at half time,
which depends less on the end of the budget. A target that is never reached is counted, not averaged.

    python experiments/steps_to_target.py --output FOLDER
    python experiments/steps_to_target.py --network vgg-11 --output FOLDER
    python experiments/steps_to_target.py --data digits --quick
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jax import Array
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from experiments.claims import images, networks, plots
from experiments.claims.estimates import Interval, average, points, share
from experiments.claims.images import Images
from experiments.claims.progress import FEW, Speedup, binarized, in_groups, smoothed
from experiments.claims.race import Arm, Race, multiple
from experiments.claims.study import Plan, Study, main
from experiments.claims.trainer import Budget, Result, Trained, accuracy, at_once, chosen_rate, grid, trainer
from experiments.claims.verdicts import Bar, Claim, Finding, Judgement, Row, Verdict, signed
from normlab.introspect.pure import Network

PAPER = "Ioffe & Szegedy 2015, section 4.2.2"
FASTER = Claim(
    key="faster",
    text="Batch norm speeds up training.",
    source=f"{PAPER}; widely read tutorials",
    published="13.3 million steps with, 31.0 million without (Inception, ImageNet)",
)
SAME_RATE = Claim(
    key="same-rate",
    text="At the same learning rate batch norm takes 2.3 times fewer steps to the same accuracy.",
    source=PAPER,
    published="31.0 / 13.3 million steps = 2.3",
)
FOURTEEN = Claim(
    key="fourteen",
    text="With batch norm and a higher learning rate, training takes 14 times fewer steps to the same accuracy.",
    source=f"{PAPER}; widely read tutorials, one of which writes 14 steps fewer",
    published="31.0 / 2.1 million steps = 14 at 5 times the rate; 31.0 / 2.7 = 11 at 30 times",
)
HIGHER = Claim(
    key="higher-rate",
    text="Networks with batch norm train faster at 5 times the learning rate.",
    source=PAPER,
    published="13.3 / 2.1 million steps = 6.3",
)
TOLERATES = Claim(
    key="tolerates",
    text="Batch norm allows learning rates at which the network without it fails.",
    source=f"{PAPER}; widely read tutorials",
    published="Inception at 5 times its rate diverges; with batch norm 30 times works",
)
ENDS = Claim(
    key="accuracy",
    text="Networks with batch norm end at a higher accuracy.",
    source=PAPER,
    published="72.2 % without, 72.7 % with, 74.8 % at 30 times the rate",
)
SIGMOIDS = Claim(
    key="sigmoids",
    text="With batch norm, networks of sigmoids can be trained.",
    source=f"{PAPER}; widely read tutorials",
    published="69.8 % with, at chance without (Inception, ImageNet)",
)

TIMES = (1, 5, 30)
"""Multiples of the base's rate, as in the paper."""

SAME, FULL = 2.3, 14.0
"""Published ratios of steps, at the same rate and at 5 times the rate."""

TRAINS, NOTHING = 0.8, 0.5
"""Shares of the base's accuracy from which a network counts as trained, and up to which it does not."""

EXPECTED = (3, 10)
"""Depths of the dense networks for which expectations were written down."""

NORMS = {"none": "none", "batch": "batch:momentum=0.9"}


@dataclass(frozen=True, kw_only=True)
class Extent(Plan):
    """Extent of the study.

    Attributes:
        network: Name of the network without its depth: `mlp`, `vgg`, `resnet`; or whole, see `networks.described`.
        depths: Depths of the network: hidden layers, or the depth in its name.
        activations: The first one is the base's.
        rates: Learning rates to choose from.
        tuning: Seeds of choices.
        fractions: Divisors of the base's best rate.
        steps: Updates.
        batch: Images in a batch.
        every: Updates between evaluations.
        window: Evaluations that are averaged.
        evaluated: Test images of an evaluation.
        width: Units of a hidden layer.
        side: Height and width of the images.
        group: Dense networks that train together.
    """

    network: str = "mlp"
    depths: tuple[int, ...] = (3, 10)
    activations: tuple[str, ...] = ("relu", "sigmoid")
    rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    tuning: int = 3
    fractions: tuple[int, ...] = (1, 10, 30)
    steps: int = 1_600
    batch: int = 60
    every: int = 20
    window: int = 4
    evaluated: int = 1_000
    width: int = 100
    side: int = 14
    group: int = 20

    @property
    def dense(self) -> bool:
        """Report whether layers are dense, so that networks train together."""
        return self.network == "mlp"

    def name(self, depth: int) -> str:
        """Return the name of the network of a depth, see `networks.described`."""
        names = {"mlp": f"mlp-{depth}x{self.width}", "vgg": f"vgg-{depth}", "resnet": f"resnet-{depth}"}
        return names.get(self.network, self.network)

    def title(self, depth: int) -> str:
        """Return the title of the network of a depth."""
        return networks.title(self.name(depth))


Found = Mapping[int, Race]
"""Networks by depth."""


@dataclass(frozen=True, kw_only=True)
class Contest:
    """One network with its program."""

    plan: Extent
    data: Images
    net: Network
    run: Callable[..., Trained[Array]]

    def trained(self, seeds: Sequence[int], rates: Sequence[float]) -> Iterator[Trained[Array]]:
        """Train at all rates with all seeds, rates first, in groups."""
        settings = grid(seeds, rates)
        return in_groups(self.run, settings, self.plan.group if self.plan.dense else len(seeds))

    def own(self) -> float:
        """Choose a learning rate on validation images."""
        seeds = self.plan.tuning_seeds(self.plan.tuning)
        runs = self.trained(seeds, self.plan.rates)
        return chosen_rate(self.net, runs, self.data.validation, self.plan.rates)

    def curves(self, rates: Sequence[float]) -> np.ndarray:
        """Return test accuracies, averaged over the last evaluations, [rates, seeds, evaluations]."""
        seen = np.concatenate([some.seen for some in self.trained(self.plan.all_seeds(), rates)])
        return smoothed(seen, self.plan.window).reshape(len(rates), self.plan.seeds, -1)


def measure(plan: Extent) -> Found:
    """Choose rates, then train every arm."""
    data = images.load(plan.data, plan.data_dir, side=plan.side)
    data = binarized(data) if plan.dense else data
    return {depth: raced(plan, data, depth) for depth in plan.depths}


def raced(plan: Extent, data: Images, depth: int) -> Race:
    """Train the networks of one depth."""
    keys = [(norm, activation) for activation in plan.activations for norm in NORMS]
    contests = {key: contest(plan, data, depth, *key) for key in keys}
    own = dict(zip(keys, _all(plan, [contest.own for contest in contests.values()]), strict=True))
    base = own["none", plan.activations[0]]
    rates = {key: rates_of(plan, base, own[key], key[1] == plan.activations[0]) for key in keys}
    jobs = [lambda key=key: contests[key].curves(rates[key]) for key in keys]
    curves = {
        Arm(*key, rate): curve
        for key, found in zip(keys, _all(plan, jobs), strict=True)
        for rate, curve in zip(rates[key], found, strict=True)
    }
    budget = Budget(steps=plan.steps, every=plan.every)
    at = budget.at()[plan.window - 1 :]
    return Race(at=at, base=base, own=own, curves=curves, activation=plan.activations[0])


def rates_of(plan: Extent, base: float, own: float, main: bool) -> tuple[float, ...]:
    """Return the rates of a network: multiples of those of the bases, and its own; for sigmoids of the best base."""
    divisors = plan.fractions if main else (1,)
    return tuple(sorted({multiple(base, times, below) for times in TIMES for below in divisors} | {own}))


def contest(plan: Extent, data: Images, depth: int, norm: str, activation: str) -> Contest:
    """Make a network and its program."""
    budget = Budget(steps=plan.steps, batch=plan.batch, every=plan.every)
    net = made(plan, data, depth, norm, activation)
    observe = accuracy(net, data.test.first(plan.evaluated))
    return Contest(plan=plan, data=data, net=net, run=trainer(net, data, budget, observe=observe, together=plan.dense))


def made(plan: Extent, data: Images, depth: int, norm: str, activation: str) -> Network:
    """Make a network of a depth."""
    fields = {"activation": activation} if plan.dense else {}
    return networks.made(plan.name(depth), NORMS[norm], data, **fields)


def _all(plan: Extent, jobs: Sequence[Callable[[], Result]]) -> list[Result]:
    return at_once(jobs) if plan.dense else [job() for job in jobs]


def judge(plan: Extent, found: Found) -> Judgement:
    """Compute verdicts, bars and the paragraph."""
    findings = [_faster(plan, found), _same_rate(plan, found), _fourteen(plan, found), _higher(plan, found)]
    findings += [_tolerates(plan, found), _ends(plan, found)]
    findings += [_sigmoids(plan, found)] if "sigmoid" in plan.activations else []
    return Judgement(
        findings=tuple(findings),
        bars=tuple(
            bar for depth, race in found.items() if plan.dense and depth in EXPECTED for bar in _bars(plan, depth, race)
        ),
        sentences=tuple(line for depth, race in found.items() for line in _sentences(plan, depth, race)),
    )


def _finding(
    plan: Extent,
    claim: Claim,
    verdicts: Mapping[int, Verdict],
    effect: str,
    seen: Mapping[int, Interval] | Mapping[int, Speedup],
    when: str = "",
) -> Finding:
    """Join the verdicts of depths; the effect is that of the first depth at which the claim holds."""
    verdict = joined(list(verdicts.values()))
    good = [depth for depth, value in verdicts.items() if value is Verdict.HOLDS]
    depth = (good or list(verdicts))[0]
    if verdict is Verdict.HOLDS_WHEN and not when:
        when = "the network is " + " or ".join(plan.title(d) for d in good)
    effects = {d: value.text() if isinstance(value, Speedup) else value.text("{:.2f}") for d, value in seen.items()}
    others = [f"{plan.title(d)}: {text}" for d, text in effects.items() if d != depth]
    own = seen[depth]
    return Finding(
        claim=claim,
        verdict=verdict,
        effect=effect,
        seen=own.ratio if isinstance(own, Speedup) else own,
        network=plan.title(depth),
        data=plan.data,
        when="; ".join(part for part in (when, _counted(own), *others) if part),
    )


def _counted(seen: Interval | Speedup) -> str:
    """Say how many seeds reach the target, unless it is all of them."""
    if isinstance(seen, Speedup) and seen.reached < seen.of:
        return f"the target is reached in {seen.reached} of {seen.of} seeds"
    return ""


def joined(verdicts: Sequence[Verdict]) -> Verdict:
    """Join verdicts on one claim in several cases: some of them holding is a condition."""
    if len(set(verdicts)) == 1:
        return verdicts[0]
    if {Verdict.HOLDS, Verdict.HOLDS_WHEN} & set(verdicts):
        return Verdict.HOLDS_WHEN
    return Verdict.FAILS


def _factor(gain: Speedup, factor: float) -> Verdict:
    if gain.excludes(factor):
        return Verdict.FAILS
    return Verdict.HOLDS if gain.reaches(factor) else Verdict.UNSEEN


def _faster(plan: Extent, found: Found) -> Finding:
    gains = {depth: race.gain(race.arm("batch")) for depth, race in found.items()}
    verdicts = {depth: gain.verdict for depth, gain in gains.items()}
    effect = "steps to the base's highest accuracy, without / with, at the base's best rate"
    return _finding(plan, FASTER, verdicts, effect, gains)


def _same_rate(plan: Extent, found: Found) -> Finding:
    gains = {depth: race.gain(race.arm("batch")) for depth, race in found.items()}
    verdicts = {depth: _factor(gain, SAME) for depth, gain in gains.items()}
    effect = "steps to the base's highest accuracy, without / with, at the base's best rate"
    return _finding(plan, SAME_RATE, verdicts, effect, gains)


def _fourteen(plan: Extent, found: Found) -> Finding:
    effect = "steps to the base's highest accuracy, without / with, at {} times the base's {}"
    verdicts, seen = {}, {}
    for depth, race in found.items():
        gains = {times: race.gain(race.arm("batch", times)) for times in TIMES[1:]}
        kinds = [_factor(gain, FULL) for gain in gains.values()]
        verdicts[depth] = Verdict.HOLDS if Verdict.HOLDS in kinds else kinds[0]
        seen[depth] = next((g for g in gains.values() if _factor(g, FULL) is Verdict.HOLDS), gains[TIMES[1]])
    if not any(value is Verdict.HOLDS for value in verdicts.values()):
        for depth, race in found.items():
            for below, times in _low(plan):
                gain = race.gain(race.arm("batch", times, below), below)
                if _factor(gain, FULL) is Verdict.HOLDS:
                    return _low_fourteen(plan, depth, found, times, below, effect.format(times, "rate"))
    return _finding(plan, FOURTEEN, verdicts, effect.format(TIMES[1], "best rate"), seen)


def _low(plan: Extent) -> list[tuple[int, int]]:
    """List raised rates of bases below the best rate, as (divisor, multiple)."""
    return [(below, times) for below in plan.fractions if below > 1 for times in TIMES if times > 1]


def _low_fourteen(plan: Extent, depth: int, found: Found, times: int, below: int, effect: str) -> Finding:
    race = found[depth]
    gains = {d: one.gain(one.arm("batch", times, below), below) for d, one in found.items()}
    alone = race.gain(race.arm("none", times, below), below)
    tuned = race.gain(race.arm("batch", TIMES[1]))
    others = "".join(f" (in the {plan.title(d)} {gain.text()})" for d, gain in gains.items() if d != depth)
    return Finding(
        claim=FOURTEEN,
        verdict=Verdict.HOLDS_WHEN,
        effect=effect,
        seen=gains[depth].ratio,
        network=plan.title(depth),
        data=plan.data,
        when=f"the base's rate is {below} times below its best one{others}, and then the raised rate alone, without "
        f"the norm, gives {alone.text()}; at {TIMES[1]} times the best rate: {tuned.text()}",
    )


def _higher(plan: Extent, found: Found) -> Finding:
    def gain(race: Race, below: int = 1) -> Speedup:
        return race.gain(race.arm("batch", 5, below), below, over=race.arm("batch", 1, below))

    gains = {depth: gain(race) for depth, race in found.items()}
    verdicts = {depth: value.verdict for depth, value in gains.items()}
    effect = "steps to the base's highest accuracy with batch norm, at the base's best rate / at 5 times the rate"
    lowest = max(plan.fractions)
    low = {depth: gain(race, lowest) for depth, race in found.items()} if lowest > 1 else {}
    if Verdict.HOLDS not in verdicts.values() and any(value.faster for value in low.values()):
        depth = next(depth for depth, value in low.items() if value.faster)
        return Finding(
            claim=HIGHER,
            verdict=Verdict.HOLDS_WHEN,
            effect=effect.replace("the base's best rate", f"1/{lowest} of the base's best rate"),
            seen=low[depth].ratio,
            network=plan.title(depth),
            data=plan.data,
            when="the base's rate is far below its best one; from the best rate: "
            + ", ".join(f"{gains[d].text()} in {plan.title(d)}" for d in found)
            + "".join(
                f"; from 1/{lowest} of it in {plan.title(d)}: {low[d].text()}"
                for d in found
                if d != depth or low[d].other < low[d].of
            ),
        )
    return _finding(plan, HIGHER, verdicts, effect, gains)


def _tolerates(plan: Extent, found: Found) -> Finding:
    """Judge whether there is a raised rate at which networks train with the norm, and do not without."""
    kinds = {depth: {times: _trains_alone(race, times) for times in TIMES[1:]} for depth, race in found.items()}
    rates = {depth: next((t for t, v in by.items() if v is Verdict.HOLDS), TIMES[1]) for depth, by in kinds.items()}
    verdicts = {depth: by[rates[depth]] for depth, by in kinds.items()}
    holding = [depth for depth, verdict in verdicts.items() if verdict is Verdict.HOLDS]
    times = rates[holding[0]] if holding else TIMES[1]
    differences = {
        depth: points(*(race.peak(race.arm(norm, times)) for norm in reversed(NORMS))) for depth, race in found.items()
    }
    effect = f"highest accuracy at {times} times the base's best rate, with - without, points"
    alike = len(holding) == len(found) and {rates[depth] for depth in holding} == {times}
    when = "the rate is " + " and ".join(f"{rates[d]} times the best one in the {plan.title(d)}" for d in holding)
    return _finding(plan, TOLERATES, verdicts, effect, differences, when if holding and not alike else "")


def _trains_alone(race: Race, times: int) -> Verdict:
    """Judge whether a network trains with the norm at a multiple of the base's best rate, and fails without.

    To fail is to stay below half of the base's highest accuracy, to train is to reach 80 % of it, in nearly all seeds.
    """
    bare, normed = (race.peak(race.arm(norm, times)) / race.target() for norm in NORMS)
    trained = float((normed >= TRAINS).mean())
    if trained >= 1 - FEW and float((bare <= NOTHING).mean()) >= 1 - FEW:
        return Verdict.HOLDS
    return Verdict.FAILS if trained <= FEW and float((bare >= TRAINS).mean()) >= 1 - FEW else Verdict.UNSEEN


def _ends(plan: Extent, found: Found) -> Finding:
    higher = {depth: points(race.peak(race.best("batch")), race.target()) for depth, race in found.items()}
    verdicts = {d: signed(gain) for d, gain in higher.items()}
    effect = "highest accuracy, each at the rate that is best for it, with - without, points"
    return _finding(plan, ENDS, verdicts, effect, higher)


def _sigmoids(plan: Extent, found: Found) -> Finding:
    def verdict(race: Race) -> Verdict:
        shares = {norm: race.peak(race.best(norm, "sigmoid")) / race.target() for norm in NORMS}
        if (shares["batch"] < TRAINS).any():
            return Verdict.FAILS
        return Verdict.HOLDS if (shares["none"] <= NOTHING).all() else Verdict.UNSEEN

    differences = {
        depth: points(*(race.peak(race.best(norm, "sigmoid")) for norm in reversed(NORMS)))
        for depth, race in found.items()
    }
    verdicts = {depth: verdict(race) for depth, race in found.items()}
    bare = {depth: average(100 * race.peak(race.best("none", "sigmoid"))) for depth, race in found.items()}
    effect = "highest accuracy of sigmoids, each at the rate that is best for it, with - without, points"
    if joined(list(verdicts.values())) is not Verdict.HOLDS_WHEN:
        return _finding(plan, SIGMOIDS, verdicts, effect, differences)
    need = " and ".join(plan.title(depth) for depth, kind in verdicts.items() if kind is Verdict.HOLDS)
    train = [f"{plan.title(depth)} reaches {bare[depth].text('{:.1f} %')} without the norm" for depth, kind in
             verdicts.items() if kind is Verdict.UNSEEN]  # fmt: skip
    when = "; ".join([f"the network is one that does not train without it ({need})", *train])
    return _finding(plan, SIGMOIDS, verdicts, effect, differences, when)


def _bars(plan: Extent, depth: int, race: Race) -> list[Bar]:
    where, same, seeds = f"depth {depth}", race.gain(race.arm("batch")), plan.seeds
    bare, normed = race.gain(race.arm("none", 5)), race.gain(race.arm("batch", 5))
    return [
        Bar(
            f"{where}: batch norm at the base's best rate at least 1.2 times fewer steps",
            same.text(),
            same.reached == seeds and same.ratio.low >= 1.2,
        ),
        Bar(
            f"{where}: at 5 times the rate the base's accuracy is reached without the norm by 1 of 5 seeds at most, "
            "with the norm by all",
            f"without {bare.reached} of {seeds}, with {normed.reached} of {seeds}",
            bare.reached <= FEW * seeds and normed.reached == seeds,
        ),
        *_low_bars(plan, where, race),
        *_sigmoid_bars(plan, where, race),
    ]


def _low_bars(plan: Extent, where: str, race: Race) -> list[Bar]:
    below = max(plan.fractions)
    if below == 1:
        return []
    bare, normed = (race.arm(norm, 30, below) for norm in NORMS)
    both, alone = race.gain(normed, below), race.gain(bare, below)
    part = race.gain(normed, below, over=bare)
    start = f"{where}, from a base at 1/{below} of its best rate, 30 times the rate:"
    return [
        Bar(f"{start} with batch norm at least 8 times fewer steps", both.text(), both.usually and both.ratio.low >= 8),
        Bar(f"{start} without at least 4 times", alone.text(), alone.usually and alone.ratio.low >= 4),
        Bar(f"{start} without / with above 1.1", part.text(), part.usually and part.ratio.above(1.1)),
    ]


def _sigmoid_bars(plan: Extent, where: str, race: Race) -> list[Bar]:
    if "sigmoid" not in plan.activations:
        return []
    reached = np.isfinite(race.steps(race.arm("batch", 5, activation="sigmoid")))
    text = f"{where}: sigmoids with batch norm at 5 times the rate never reach the base's accuracy"
    return [Bar(text, f"reached by {share(reached)}", not reached.any())]


def _sentences(plan: Extent, depth: int, race: Race) -> list[str]:
    lines = [_base_sentence(plan, depth, race), *(_gains_sentence(race, half=half) for half in (False, True))]
    lines += [_times_sentence(race)]
    lines += [_low_sentence(race, below) for below in plan.fractions if below > 1]
    lines += [_accuracy_sentence(race)]
    return lines + ([_sigmoid_sentence(race)] if "sigmoid" in plan.activations else [])


def _base_sentence(plan: Extent, depth: int, race: Race) -> str:
    reached = average(race.steps(race.arm("none")))
    late = reached.mean >= 0.9 * race.at[-1]
    edge = race.base in (min(plan.rates), max(plan.rates))
    return (
        f"{plan.title(depth)}: the base's best rate is {race.base:g}"
        + (", at the edge of the grid" if edge else "")
        + f"; its highest accuracy is {average(100 * race.target()).text('{:.1f} %')} and comes after "
        f"{reached.text('{:,.0f}')} of {race.at[-1]:,} steps" + (", so the budget sets it." if late else ".")
    )


def _gains_sentence(race: Race, *, half: bool) -> str:
    gains = {(norm, times): race.gain(race.arm(norm, times), half=half) for norm in reversed(NORMS) for times in TIMES}
    goal = "the base's accuracy at half time" if half else "the base's highest accuracy"
    normed = ", ".join(f"{gains['batch', times].text()} at {_rate(times)}" for times in TIMES)
    bare = ", ".join(f"{gains['none', times].text()} at {times} times" for times in TIMES if times > 1)
    own = race.best("batch")
    return (
        f"Steps to {goal}, base / arm: with batch norm {normed}, {race.gain(own, half=half).text()} at "
        f"{own.rate:g}, the rate that is best for it; without the norm {bare}."
    )


def _rate(times: int) -> str:
    return "the same rate" if times == 1 else f"{times} times the rate"


def _times_sentence(race: Race) -> str:
    gain = race.gain(race.arm("batch", 5), over=race.arm("batch"))
    if gain.faster:
        return f"With batch norm, 5 times the base's best rate is faster than the rate itself, {gain.text()}."
    if gain.slower:
        return f"With batch norm, 5 times the base's best rate is slower than the rate itself: {gain.text()}."
    return f"With batch norm, 5 times the base's best rate is neither faster nor slower: {gain.text()}."


def _low_sentence(race: Race, below: int) -> str:
    base = race.arm("none", 1, below)
    same, top, alone = (race.gain(race.arm(*key, below), below) for key in (("batch", 1), ("batch", 30), ("none", 30)))
    five, five_alone = (race.gain(race.arm(norm, 5, below), below) for norm in reversed(NORMS))
    part = race.gain(race.arm("batch", 30, below), below, over=race.arm("none", 30, below))
    late = average(race.steps(base, below)).mean >= 0.9 * race.at[-1]
    text = (
        f"From a base at 1/{below} of its best rate ({base.rate:g}): with batch norm {same.text()} at the same rate, "
        f"{five.text()} at 5 times and {top.text()} at 30 times; without the norm {five_alone.text()} at 5 times and "
        f"{alone.text()} at 30 times; the norm's own part at 30 times is {part.text()}."
    )
    if alone.usually and top.usually and alone.ratio.mean > math.sqrt(top.ratio.mean) > 1:
        text += " So most of the gain at 30 times comes from a base whose rate was too low."
    elif top.usually and part.faster:
        text += " So most of the gain at 30 times is the norm's."
    return text + (" The base still rises at the end, so the budget sets its highest accuracy." if late else "")


def _accuracy_sentence(race: Race) -> str:
    arms = {
        "base": race.arm("none"),
        "base at 5 times": race.arm("none", 5),
        "batch norm at the same rate": race.arm("batch"),
        "at 5 times": race.arm("batch", 5),
        "at 30 times": race.arm("batch", 30),
        f"at its own rate {race.best('batch').rate:g}": race.best("batch"),
    }
    values = ", ".join(f"{name} {average(100 * race.peak(arm)).text('{:.1f}')}" for name, arm in arms.items())
    return f"Highest accuracy, %: {values}."


def _sigmoid_sentence(race: Race) -> str:
    arms = [race.best("batch", "sigmoid"), race.best("none", "sigmoid"), race.arm("batch", 5, activation="sigmoid")]
    normed, bare, fast = (average(100 * race.peak(arm)).text("{:.1f} %") for arm in arms)
    trained = [share(race.peak(arm) >= TRAINS * race.target()) for arm in arms]
    reached = share(np.isfinite(race.steps(arms[-1])))
    return (
        f"Sigmoids, highest accuracy: with batch norm {normed} at rate {arms[0].rate:g}, without {bare} at "
        f"{arms[1].rate:g}; {trained[0]} seeds with and {trained[1]} without come to {100 * TRAINS:.0f} % of the "
        f"base's accuracy. At 5 times its rate, with the norm: {fast}; {reached} seeds reach the base's accuracy."
    )


def shown(race: Race, below: int, sigmoids: bool) -> dict[str, Arm]:
    """Name the arms of a figure."""
    arms = {
        "base": race.arm("none", 1, below),
        "base, x 5": race.arm("none", 5, below),
        "base, x 30": race.arm("none", 30, below),
        "batch norm": race.arm("batch", 1, below),
        "batch norm, x 5": race.arm("batch", 5, below),
        "batch norm, x 30": race.arm("batch", 30, below),
    }
    if sigmoids and below == 1:
        arms["batch norm, x 5, sigmoids"] = race.arm("batch", 5, activation="sigmoid")
    return arms


LOOKS = {
    "base": plots.Look("none"),
    "base, x 5": plots.Look("none", "--"),
    "base, x 30": plots.Look("none", ":"),
    "batch norm": plots.Look("batch"),
    "batch norm, x 5": plots.Look("batch", "--"),
    "batch norm, x 30": plots.Look("batch", ":"),
    "batch norm, x 5, sigmoids": plots.Look("group", "--"),
}


def draw(plan: Extent, found: Found) -> dict[str, Figure]:
    """Draw ratios against the rate, and accuracy against steps."""
    figures = {"steps_to_target": _ratios(plan, found)}
    for below in (1, max(plan.fractions)):
        name = "steps_to_target_curves" if below == 1 else "steps_to_target_low_rate"
        figures[name] = _curves(plan, found, below)
    return figures


TICKS = (0.1, 0.2, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99)


def _curves(plan: Extent, found: Found, below: int) -> Figure:
    with plots.figure(4.8 * max(2, len(found)), 4.4) as drawing:
        panels = drawing.subplots(1, len(found), squeeze=False)[0]
        for axes, (depth, race) in zip(panels, found.items(), strict=True):
            arms = shown(race, below, "sigmoid" in plan.activations)
            plots.lines(axes, race.at, {name: race.curves[arm] for name, arm in arms.items()}, LOOKS)
            target = race.target(below)
            plots.logarithmic(axes, x=True)
            plots.updates(axes)
            axes.set_yscale("logit", one_half="0.5", use_overline=False)
            axes.set_yticks(TICKS, [f"{tick:g}" for tick in TICKS])
            axes.yaxis.set_minor_formatter(NullFormatter())
            plots.level(axes, float(target.mean()), "base's highest", left=True)
            _dots(axes, race, arms, below)
            rate = race.arm("none", 1, below).rate
            axes.set(title=f"{plan.title(depth)}, base at rate {rate:g}", xlabel="steps")
        panels[0].set(ylabel="test accuracy")
        plots.legend(drawing, panels[0], 4)
    return drawing


def _dots(axes: Axes, race: Race, arms: Mapping[str, Arm], below: int) -> None:
    """Mark the step at which an arm reaches the base's accuracy, where most seeds do."""
    height = float(race.target(below).mean())
    lines = {str(line.get_label()): line.get_color() for line in axes.get_lines()}
    for name, arm in arms.items():
        steps = race.steps(arm, below)
        if np.isfinite(steps).mean() > 0.5:
            place = math.exp(float(np.log(steps[np.isfinite(steps)]).mean()))
            axes.plot(place, height, "o", color=lines[name], markersize=6, markeredgecolor="white", zorder=5)


def _ratios(plan: Extent, found: Found) -> Figure:
    with plots.figure(4.8 * max(2, len(found)), 4.2) as drawing:
        panels = drawing.subplots(1, len(found), squeeze=False)[0]
        for axes, (depth, race) in zip(panels, found.items(), strict=True):
            _ratio_panel(axes, plan, race)
            axes.set(title=plan.title(depth), xlabel="learning rate; no marker: never reached")
        panels[0].set(ylabel="steps to the base's highest accuracy, base / arm")
        plots.legend(drawing, panels[0], 2)
    return drawing


def _ratio_panel(axes: Axes, plan: Extent, race: Race) -> None:
    rates = sorted({multiple(race.base, times, below) for times in TIMES for below in plan.fractions})
    looks, values = {}, {}
    for below in sorted({1, max(plan.fractions)}, reverse=True):
        start = race.steps(race.arm("none", 1, below), below)
        base = "base at its best rate" if below == 1 else f"base at 1/{below} of its best rate"
        for norm, label in (("none", "without"), ("batch", "with batch norm")):
            arms = [Arm(norm, race.activation, rate) for rate in rates]
            looks[f"{label}, {base}"] = plots.Look(norm, "-" if below > 1 else "--")
            values[f"{label}, {base}"] = np.stack([start / race.steps(arm, below) for arm in arms], 1)
    plots.lines(axes, rates, values, looks, marked=True)
    for arm in values.values():
        _counts(axes, rates, arm)
    plots.logarithmic(axes, x=True)
    plots.logarithmic(axes)
    plots.level(axes, SAME, "2.3, published, same rate")
    plots.level(axes, FULL, "14, published, 5 times the rate", left=True)
    axes.axhline(1, color="0.4", linewidth=0.8)
    axes.axvline(race.base, color="0.4", linestyle=":", linewidth=0.9)
    axes.annotate("base's best rate", (race.base, 0), (3, 4), xycoords=("data", "axes fraction"),
                  textcoords="offset points", rotation=90, fontsize="small", color="0.4")  # fmt: skip
    axes.set(ylim=(0.2, max(40.0, 1.3 * max(float(np.nan_to_num(arm).max()) for arm in values.values()))))


def _counts(axes: Axes, rates: Sequence[float], ratios: np.ndarray) -> None:
    """Write at a point how many seeds reach the target, unless it is all or none of them."""
    for rate, values in zip(rates, ratios.T, strict=True):
        there = np.isfinite(values)
        if there.any() and not there.all():
            axes.annotate(f"{there.sum()}/{len(there)}", (rate, values[there].mean()), (5, -11),
                          textcoords="offset points", fontsize="small", color="0.3")  # fmt: skip


def rows(plan: Extent, found: Found) -> Sequence[Row]:
    """List every number: peaks, and steps to the targets of every base."""
    table = []
    for depth, race in found.items():
        for arm in race.curves:
            name = f"{'batch norm' if arm.norm == 'batch' else 'no norm'}, {arm.activation}, rate {arm.rate:g}"
            columns = {("highest accuracy", f"depth {depth}"): race.peak(arm)}
            for below in plan.fractions:
                place = f"depth {depth}, base at rate {race.arm('none', 1, below).rate:g}"
                columns["steps to highest accuracy", place] = race.steps(arm, below)
                columns["steps to half-time accuracy", place] = race.steps(arm, below, half=True)
            table += [
                Row(quantity, name, place, seed, float(value))
                for (quantity, place), values in columns.items()
                for seed, value in zip(plan.all_seeds(), values, strict=True)
            ]
    return table


def short(plan: Extent) -> Extent:
    """Shorten a plan so that it shows that everything works."""
    few = {"rates": (0.01, 0.1), "tuning": 1, "fractions": (1, 30)}
    return dataclasses.replace(plan, seeds=2, steps=100, every=10, evaluated=300, group=10, **few)


CIFAR = Extent(
    seeds=5,
    data="tfds:cifar10",
    activations=("relu",),
    rates=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
    steps=4_000,
    batch=128,
    every=50,
    side=32,
)
SMALL = dataclasses.replace(
    CIFAR, network="conv-16-32-64", depths=(3,), seeds=10, steps=1_600, batch=64, every=40, side=16
)
"""A conv net on small images, for two processors."""
NETWORKS = {
    "mlp-20": Extent(depths=(20,)),
    SMALL.network: SMALL,
    "conv-32-32-64": dataclasses.replace(CIFAR, network="conv-32-32-64", depths=(3,)),
    "vgg-11": dataclasses.replace(CIFAR, network="vgg", depths=(11,)),
    "resnet-20": dataclasses.replace(CIFAR, network="resnet", depths=(20,)),
}
study = Study(
    name="steps_to_target",
    title="Does batch norm speed up training?",
    claims=(FASTER, SAME_RATE, FOURTEEN, HIGHER, TOLERATES, ENDS, SIGMOIDS),
    standard=Extent(),
    quick=short(Extent(depths=(1,))),
    measure=measure,
    judge=judge,
    draw=draw,
    rows=rows,
    networks={name: (plan, short(plan)) for name, plan in NETWORKS.items()},
)

if __name__ == "__main__":
    main(study, __doc__ or "")
