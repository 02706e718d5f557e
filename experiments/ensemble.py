"""Does an ensemble of six networks with batch norm make fewer errors, and is it batch norm's gain?

The script trains sets of six networks that differ in their seed: initial weights and batches. An ensemble averages the
softmax outputs of its members. Each set gives the errors of the members, of the best of them, and of ensembles of two
and three, averaged over all subsets, and of six; several sets make the intervals. The same with layer norm and without
a norm shows whether the gain is batch norm's.

    python experiments/ensemble.py --output FOLDER
    python experiments/ensemble.py --data digits --quick
    python experiments/ensemble.py --network resnet-20    # on CIFAR-10
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.special import softmax

from experiments.claims import images, networks, plots
from experiments.claims.estimates import Interval, average, share
from experiments.claims.images import Images
from experiments.claims.study import Plan, Study, main
from experiments.claims.trainer import Budget, Settings, logits, train, tuned_rate
from experiments.claims.verdicts import Bar, Claim, Finding, Judgement, Row, Verdict

FEWER = Claim(
    key="ensemble-of-six",
    text="An ensemble of six networks with batch norm makes fewer errors than each of them.",
    source="Ioffe & Szegedy 2015, section 4.2.3",
    published="top-5 error on ImageNet 5.82 % by one network, 4.82 % by six: 17 % fewer errors",
)
BY_NORM = Claim(
    key="gain-of-the-norm",
    text="The gain of the ensemble is due to batch norm.",
    source="Ioffe & Szegedy 2015, section 4.2.3, as widely read overviews retell it",
)
PUBLISHED = 100 * (1 - 4.82 / 5.82)
"""Errors that an ensemble of six saves in the paper, percent."""

BATCH, LAYER, NONE = "batch", "layer", "none"
TITLES = {BATCH: "batch norm", LAYER: "layer norm", NONE: "no norm"}
NORMS = {BATCH: "batch:momentum=0.9", LAYER: "layer", NONE: "none"}
MEMBERS, SUBSETS = 6, (2, 3, 6)
OFTEN = 0.8
"""Share of sets in which an ensemble has to beat its best member."""

LOST = 0.5
"""Test error above which a network has not learned."""


@dataclass(frozen=True, kw_only=True)
class Extent(Plan):
    """Extent of the study; a seed is a set of networks."""

    networks: tuple[str, ...] = ("mlp-6",)
    norms: tuple[str, ...] = (BATCH, LAYER, NONE)
    steps: int = 600
    batch: int = 60
    rates: tuple[float, ...] = (0.03, 0.1, 0.3)
    tuning: int = 3
    examples: int = 20_000
    side: int = 14


@dataclass(frozen=True, kw_only=True)
class Sets:
    """Test errors of sets of networks.

    Attributes:
        rate: Learning rate, chosen on validation images.
        members: Errors of the members, [sets, members].
        ensembles: Errors of ensembles by their number of members, averaged over all subsets of a set, [sets].
    """

    rate: float
    members: np.ndarray
    ensembles: Mapping[int, np.ndarray]

    @property
    def one(self) -> np.ndarray:
        """Mean error of the members, [sets]."""
        return self.members.mean(1)

    def saved(self, number: int) -> np.ndarray:
        """Return the share of a member's errors that ensembles save, percent, [sets]."""
        return 100 * (1 - self.ensembles[number] / self.one)

    def beats_best(self) -> np.ndarray:
        """Report whether the ensemble of all makes fewer errors than the best member, [sets]."""
        return self.ensembles[MEMBERS] < self.members.min(1)


Found = Mapping[tuple[str, str], Sets]
"""By network and norm."""


def measure(plan: Extent) -> Found:
    """Train the sets of every network with every norm."""
    data = images.load(plan.data, plan.data_dir, side=plan.side)
    return {(name, norm): trained(plan, data, name, norm) for name in plan.networks for norm in plan.norms}


def trained(plan: Extent, data: Images, name: str, norm: str) -> Sets:
    """Choose the learning rate on validation images, train the members of all sets, and average their outputs."""
    net = networks.made(name, NORMS[norm], data)
    budget = Budget(steps=plan.steps, batch=plan.batch, every=plan.steps, cosine=True)
    run = partial(train, net, data, budget, together=networks.dense(name))
    n = min(plan.examples, len(data.train.labels))
    rate = tuned_rate(net, run, data.validation, plan.rates, plan.tuning_seeds(plan.tuning), n)
    runs = run(Settings(members(plan), rate, examples=n))
    outputs = logits(net, runs.params, runs.state, data.test)
    return ensembled(rate, outputs.reshape(plan.seeds, MEMBERS, *outputs.shape[1:]), data.test.labels)


def members(plan: Extent) -> list[int]:
    """Return the seeds of all members, set by set; no two sets share one."""
    return [MEMBERS * one + member for one in plan.all_seeds() for member in range(MEMBERS)]


def ensembled(rate: float, outputs: np.ndarray, labels: np.ndarray) -> Sets:
    """Average softmax outputs over all subsets of the members.

    Args:
        rate: Learning rate.
        outputs: Logits, [sets, members, images, classes].
        labels: Classes, [images].
    """
    shares = softmax(outputs, axis=-1)
    errors = {}
    for number in SUBSETS:
        subsets = itertools.combinations(range(MEMBERS), number)
        wrong = [(shares[:, subset].mean(1).argmax(-1) != labels).mean(-1) for subset in subsets]
        errors[number] = np.mean(wrong, 0)
    return Sets(rate=rate, members=(outputs.argmax(-1) != labels).mean(-1), ensembles=errors)


def judge(plan: Extent, found: Found) -> Judgement:
    """Compute verdicts, bars and the paragraph."""
    return Judgement(
        findings=tuple(finding for name in plan.networks[:1] for finding in _findings(plan, found, name)),
        bars=tuple(bar for name in plan.networks for bar in _bars(found, name)),
        sentences=tuple(line for name in plan.networks for line in _sentences(plan, found, name)),
    )


def _findings(plan: Extent, found: Found, name: str) -> tuple[Finding, Finding]:
    batch, none = found[name, BATCH], found[name, NONE]
    saved, without = average(batch.saved(MEMBERS)), average(none.saved(MEMBERS))
    more = average(batch.saved(MEMBERS) - none.saved(MEMBERS))
    fewer, by_norm = _fewer(saved, batch.beats_best()), _by_norm(more, without)
    both = {"network": networks.title(name), "data": plan.data}
    partly = "only in part: " if by_norm == Verdict.HOLDS_WHEN else ""
    return (
        Finding(
            claim=FEWER,
            verdict=fewer,
            when=("one of them is an average member; " if fewer == Verdict.HOLDS_WHEN else "")
            + f"the best member is beaten in {share(batch.beats_best())} sets; {_beside_published(saved)}",
            effect="errors of a member that an ensemble of six saves, percent",
            seen=saved,
            **both,
        ),
        Finding(
            claim=BY_NORM,
            verdict=by_norm,
            when=f"{partly}without a norm an ensemble of six saves {without.text('{:.1f} %')}",
            effect="errors that an ensemble of six saves, with batch norm - without, percentage points",
            seen=more,
            **both,
        ),
    )


def _fewer(saved: Interval, beaten: np.ndarray) -> Verdict:
    """Judge the errors that an ensemble saves, and the sets whose best member it beats."""
    if saved.low > 0:
        return Verdict.HOLDS if beaten.mean() >= OFTEN else Verdict.HOLDS_WHEN
    return Verdict.FAILS if saved.high < 0 else Verdict.UNSEEN


def _beside_published(saved: Interval) -> str:
    """Say how the share of saved errors stands beside the published one."""
    if saved.low > PUBLISHED:
        word = "more than"
    elif saved.high < PUBLISHED:
        word = "less than"
    else:
        word = "not clearly another share than"
    return f"{word} the paper's {PUBLISHED:.0f} %"


def _by_norm(more: Interval, without: Interval) -> Verdict:
    """Judge whether the gain is the norm's.

    Args:
        more: Percent of the errors that an ensemble saves with the norm beyond those that it saves without.
        without: Percent that it saves without.
    """
    if more.low > 0:
        return Verdict.HOLDS_WHEN if without.low > 0 else Verdict.HOLDS
    return Verdict.FAILS if without.low > 0 else Verdict.UNSEEN


def _bars(found: Found, name: str) -> tuple[Bar, ...]:
    sets = found[name, BATCH]
    saved, beaten, title = average(sets.saved(MEMBERS)), sets.beats_best(), networks.title(name)
    return (
        Bar(
            f"{title}, batch norm: six below their best member in at least {OFTEN:.0%} of the sets",
            share(beaten),
            bool(beaten.mean() >= OFTEN),
        ),
        Bar.of(
            f"{title}, batch norm: six save 10 to 40 % of the errors of a member",
            saved,
            "{:.1f} %",
            least=10,
            most=40,
        ),
    )


def _sentences(plan: Extent, found: Found, name: str) -> list[str]:
    lines = [_of_sets(networks.title(name), norm, found[name, norm]) for norm in plan.norms]
    batch = found[name, BATCH]
    for norm in plan.norms:
        if norm != BATCH:
            more = average(batch.saved(MEMBERS) - found[name, norm].saved(MEMBERS))
            word = "a larger" if more.low > 0 else "a smaller" if more.high < 0 else "not clearly another"
            lines.append(
                f"With batch norm six {networks.title(name)} save {word} share of the errors than with "
                f"{TITLES[norm]}: {more.text('{:+.1f}')} percentage points."
            )
    return lines


def _of_sets(title: str, norm: str, sets: Sets) -> str:
    errors = ", ".join(f"{average(100 * sets.ensembles[number]).text('{:.2f} %')} by {number}" for number in SUBSETS)
    lost = sets.members > LOST
    failed = f" {share(lost.ravel())} members did not learn (error above {LOST:.0%})." if lost.any() else ""
    return (
        f"{title}, {TITLES[norm]} (learning rate {sets.rate:g}): a member makes "
        f"{average(100 * sets.one).text('{:.2f} %')} errors, the best of six "
        f"{average(100 * sets.members.min(1)).text('{:.2f} %')}; ensembles {errors}. Six save "
        f"{average(sets.saved(MEMBERS)).text('{:.1f} %')}, and beat their best member in {share(sets.beats_best())} "
        f"sets.{failed}"
    )


LOOKS = {TITLES[norm]: plots.Look(norm) for norm in TITLES}


def draw(plan: Extent, found: Found) -> dict[str, Figure]:
    """Draw the error and the share of saved errors against the members of an ensemble, a row for each network."""
    number = len(plan.networks)
    with plots.figure(9.6, 0.6 + 3.4 * number) as drawing:
        panels = drawing.subplots(number, 2, squeeze=False)
        for (left, right), name in zip(panels, plan.networks, strict=True):
            _panels(left, right, plan, found, name)
        plots.legend(drawing, panels[0, 0])
    return {"ensemble": drawing}


def _panels(left: Axes, right: Axes, plan: Extent, found: Found, name: str) -> None:
    places = (1, *SUBSETS)
    by_norm = {TITLES[norm]: found[name, norm] for norm in plan.norms}
    errors = {
        title: 100 * np.stack([sets.one, *(sets.ensembles[number] for number in SUBSETS)], 1)
        for title, sets in by_norm.items()
    }
    saved = {title: np.stack([0 * sets.one, *map(sets.saved, SUBSETS)], 1) for title, sets in by_norm.items()}
    plots.lines(left, places, errors, LOOKS, marked=True)
    plots.lines(right, places, saved, LOOKS, marked=True)
    plots.level(right, PUBLISHED, "paper, six networks", left=True)
    for axes in (left, right):
        axes.set_xticks(places)
        axes.set_xlabel("networks in the ensemble")
    left.set(title=f"{networks.title(name)}: test error", ylabel="percent")
    right.set(title="Errors of a member that are saved", ylabel="percent")


def rows(plan: Extent, found: Found) -> Sequence[Row]:
    """List every number; the seed of a member is one of `members`."""
    lines = list[Row]()
    for (name, norm), sets in found.items():
        arm = f"{name}, {TITLES[norm]}"
        errors = zip(members(plan), sets.members.ravel(), strict=True)
        lines += [Row("error", arm, "member", seed, float(value)) for seed, value in errors]
        for number, values in sets.ensembles.items():
            by_set = zip(plan.all_seeds(), values, strict=True)
            lines += [Row("error", arm, f"ensemble of {number}", seed, float(value)) for seed, value in by_set]
    return lines


QUICK = Extent(seeds=2, norms=(BATCH, NONE), steps=60, rates=(0.1,), examples=2_000)
CIFAR = Extent(networks=("conv", "resnet-20"), data="tfds:cifar10", side=32)
"""Images on which convolutions matter."""

study = Study(
    name="ensemble",
    title="Does an ensemble of networks with batch norm make fewer errors, and is it batch norm's gain?",
    claims=(FEWER, BY_NORM),
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
