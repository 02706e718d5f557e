import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import steps_to_target
from experiments.claims.images import Images, Part
from experiments.claims.race import Arm, Race, multiple
from experiments.claims.study import main
from experiments.claims.verdicts import Finding, Judgement, Verdict
from experiments.steps_to_target import TIMES, Extent, joined, judge, made

AT = np.arange(20, 1_601, 4)
SEEDS = 5
JITTER = 1 + 0.02 * np.array([-2, -1, 0, 1, 2])
WIDE = np.array([0.5, 0.7, 1.0, 1.6, 2.2])
PLAN = Extent(seeds=SEEDS, depths=(3,), fractions=(1, 30))
BASE = 0.03

Speeds = Mapping[tuple[str, int, int], tuple[float, float]]
"""Steps to 0.85 and to 0.95 by norm, multiple, and divisor of the base's rate; infinite for never."""

NEVER = float("inf")
SEEN: Speeds = {
    ("none", 1, 30): (1_500, NEVER),
    ("none", 5, 30): (430, NEVER),
    ("none", 1, 1): (172, 1_400),
    ("none", 5, 1): (NEVER, NEVER),
    ("none", 30, 1): (NEVER, NEVER),
    ("batch", 1, 30): (1_290, NEVER),
    ("batch", 5, 30): (310, 1_500),
    ("batch", 1, 1): (118, 940),
    ("batch", 5, 1): (150, 1_085),
    ("batch", 30, 1): (NEVER, NEVER),
}
"""As in a small network: the norm helps a little at one rate, and a low base makes the large factor."""

TOLD: Speeds = {**SEEN, ("batch", 1, 1): (60, 580), ("batch", 5, 1): (30, 98), ("batch", 30, 1): (40, 130)}
"""As in the paper."""

WORSE: Speeds = {**SEEN, ("batch", 1, 1): (300, 1_580), ("batch", 5, 1): (NEVER, NEVER)}
"""The opposite."""


def curve(to_low: float, to_high: float, jitter: np.ndarray, low: float = 0.85, high: float = 0.95) -> np.ndarray:
    """Rise to `low`, then to `high`, and stay there or, if it is never reached, half-way below."""
    rows = []
    for factor in jitter:
        if np.isinf(to_low):
            rows.append(np.full(len(AT), 0.3 * factor))
        elif np.isinf(to_high):
            rows.append(np.interp(AT, [0, factor * to_low], [0.1, low]))
        else:
            rows.append(np.interp(AT, [0, factor * to_low, factor * to_high], [0.1, low, high]))
    return np.stack(rows)


def race(
    speeds: Speeds,
    *,
    sigmoids: tuple[float, float] = (0.9, 0.1),
    jitter: np.ndarray = JITTER,
    own: float = 0.96,
) -> Race:
    """Make up a race; batch norm's runs differ between seeds by `jitter`, and `own` is its best accuracy."""
    steady, apart = np.ones(SEEDS), 1 + 0.01 * np.array([1, -1, 0, -1, 1])
    curves = {
        Arm(norm, "relu", multiple(BASE, times, below)): curve(
            *steps, jitter if norm == "batch" else apart if below == 30 else steady
        )
        for (norm, times, below), steps in speeds.items()
    }
    best = 0.07
    offset = (jitter - jitter.mean()) / 20
    curves[Arm("batch", "relu", best)] = np.full((SEEDS, len(AT)), own) + offset[:, None]
    for rate in [*(multiple(BASE, times) for times in TIMES), best]:
        for norm, height in zip(("batch", "none"), sigmoids, strict=True):
            curves[Arm(norm, "sigmoid", rate)] = np.full((SEEDS, len(AT)), height) + offset[:, None] / 10
    rates = {("none", "relu"): BASE, ("batch", "relu"): best, ("none", "sigmoid"): best, ("batch", "sigmoid"): best}
    return Race(at=AT, base=BASE, own=rates, curves=curves)


def judged(**options: object) -> Judgement:
    return judge(PLAN, {3: race(options.pop("speeds", SEEN), **options)})


def found(judgement: Judgement) -> dict[str, Finding]:
    return {finding.claim.key: finding for finding in judgement.findings}


def verdicts(judgement: Judgement) -> dict[str, Verdict]:
    return {key: finding.verdict for key, finding in found(judgement).items()}


def test_a_small_gain_at_one_rate_is_neither_2_nor_14():
    seen = found(judged())
    assert {key: finding.verdict for key, finding in seen.items()} == {
        "faster": Verdict.HOLDS,
        "same-rate": Verdict.FAILS,
        "fourteen": Verdict.FAILS,
        "higher-rate": Verdict.HOLDS_WHEN,
        "tolerates": Verdict.HOLDS,
        "accuracy": Verdict.HOLDS,
        "sigmoids": Verdict.HOLDS,
    }
    assert seen["faster"].seen.mean == pytest.approx(1_400 / 940, rel=0.02)
    assert "1/30" in seen["higher-rate"].effect and "from the best rate: 0.87" in seen["higher-rate"].when


def test_every_claim_holds_on_the_numbers_of_the_paper():
    seen = judged(speeds=TOLD)
    assert set(verdicts(seen).values()) == {Verdict.HOLDS}
    assert found(seen)["fourteen"].seen.mean == pytest.approx(1_400 / 98, rel=0.05)


def test_every_claim_fails_on_opposite_numbers():
    speeds = {**WORSE, ("batch", 1, 1): (300, 1_500), ("batch", 5, 30): (1_480, NEVER), ("none", 5, 1): (172, NEVER)}
    seen = verdicts(judged(speeds=speeds, sigmoids=(0.3, 0.1), own=0.9))
    assert seen.pop("higher-rate") is Verdict.FAILS
    assert set(seen.values()) == {Verdict.FAILS}


def test_wide_intervals_show_nothing():
    speeds = {**SEEN, ("batch", 1, 1): (100, 700), ("batch", 5, 1): (100, 700), ("none", 5, 1): (100, 1_400)}
    seen = verdicts(judged(speeds=speeds, jitter=WIDE, own=0.95, sigmoids=(0.9, 0.9)))
    unseen = {key for key, verdict in seen.items() if verdict is Verdict.UNSEEN}
    assert unseen == {"faster", "same-rate", "higher-rate", "tolerates", "accuracy", "sigmoids"}


def test_14_from_a_low_base_names_the_part_of_the_rate():
    speeds = {**SEEN, ("batch", 1, 1): (103, 940)}
    finding = found(judged(speeds=speeds))["fourteen"]
    assert finding.verdict is Verdict.HOLDS_WHEN
    assert finding.seen.mean == pytest.approx(1_500 / 103, rel=0.05)
    assert "30 times below its best one" in finding.when and "without the norm, gives 8.7" in finding.when


def test_the_other_depth_is_named_where_14_needs_a_low_base():
    fast = {**SEEN, ("batch", 1, 1): (103, 940)}
    finding = found(judge(PLAN, {3: race(fast), 10: race(SEEN)}))["fourteen"]
    assert finding.network == "MLP 3 x 100" and "best one (in the MLP 10 x 100 12.5" in finding.when
    finding = found(judge(PLAN, {3: race(SEEN), 10: race(SEEN)}))["higher-rate"]
    assert "; from 1/30 of it in MLP 10 x 100: 4.14" in finding.when


@pytest.mark.parametrize(
    ("none", "batch", "verdict", "times"),
    [
        (0.4, 0.9, Verdict.HOLDS, 5),
        (0.6, 0.9, Verdict.HOLDS, 30),  # at 5 times the network without it is worse, but trains
        (0.9, 0.3, Verdict.FAILS, 5),
        (0.4, 0.3, Verdict.UNSEEN, 5),
    ],
)
def test_a_rate_at_which_only_batch_norm_trains(none: float, batch: float, verdict: Verdict, times: int):
    made_up = race(SEEN)
    for norm, height, at_30 in (("none", none, 0.1), ("batch", batch, 0.9 if times == 30 else batch)):
        made_up.curves[made_up.arm(norm, 5)][:] = height
        made_up.curves[made_up.arm(norm, 30)][:] = at_30
    finding = found(judge(PLAN, {3: made_up}))["tolerates"]
    assert finding.verdict is verdict and finding.effect.startswith(f"highest accuracy at {times} times")


def test_depths_are_compared_at_one_rate():
    races = {depth: race(SEEN) for depth in (3, 10)}
    for one, at_5 in zip(races.values(), (0.6, 0.4), strict=True):
        for norm, times, height in (("none", 5, at_5), ("none", 30, 0.1), ("batch", 5, 0.9), ("batch", 30, 0.9)):
            one.curves[one.arm(norm, times)][:] = height
    finding = found(judge(PLAN, races))["tolerates"]
    assert finding.verdict is Verdict.HOLDS and finding.effect.startswith("highest accuracy at 30 times")
    assert finding.when.startswith(
        "the rate is 30 times the best one in the MLP 3 x 100 and 5 times the best one in the"
    )
    assert "MLP 10 x 100: 80.00" in finding.when


def test_a_claim_that_holds_at_one_depth_names_it():
    bad = {**WORSE, ("batch", 5, 1): (NEVER, NEVER)}
    judgement = judge(PLAN, {3: race(bad, sigmoids=(0.9, 0.9)), 10: race(SEEN, sigmoids=(0.9, 0.1))})
    seen = found(judgement)
    assert seen["faster"].verdict is Verdict.HOLDS_WHEN
    assert seen["faster"].network == "MLP 10 x 100"
    assert "MLP 3 x 100: 0.90 (0.86 to 0.95, n = 3), only 3 of 5 seeds" in seen["faster"].when
    assert seen["sigmoids"].verdict is Verdict.HOLDS_WHEN
    assert "does not train without it (MLP 10 x 100)" in seen["sigmoids"].when
    assert "MLP 3 x 100 reaches 90.0 %" in seen["sigmoids"].when


@pytest.mark.parametrize(
    ("verdicts", "joint"),
    [
        ([Verdict.HOLDS, Verdict.HOLDS], Verdict.HOLDS),
        ([Verdict.HOLDS, Verdict.FAILS], Verdict.HOLDS_WHEN),
        ([Verdict.HOLDS, Verdict.UNSEEN], Verdict.HOLDS_WHEN),
        ([Verdict.FAILS, Verdict.UNSEEN], Verdict.FAILS),
        ([Verdict.UNSEEN, Verdict.UNSEEN], Verdict.UNSEEN),
    ],
)
def test_verdicts_of_depths_are_joined(verdicts: list[Verdict], joint: Verdict):
    assert joined(verdicts) is joint


def test_bars_are_met_and_missed():
    assert all(bar.met for bar in judged().bars)
    other = {**WORSE, ("none", 5, 1): (100, 1_000), ("none", 1, 1): (1_480, 1_590), ("batch", 1, 1): (1_450, NEVER)}
    missed = judged(speeds=other, sigmoids=(0.99, 0.1)).bars
    assert [bar.text for bar in missed if bar.met] == []
    assert len(missed) == 6


def test_no_expectation_was_written_down_for_other_depths():
    assert judge(PLAN, {20: race(SEEN)}).bars == ()


def test_a_rate_at_which_alone_the_target_is_reached_has_counts_and_no_ratio():
    speeds = {**SEEN, ("batch", 1, 30): (NEVER, NEVER), ("batch", 5, 30): (310, 1_500), ("batch", 30, 30): (118, 940)}
    finding = found(judged(speeds=speeds))["higher-rate"]
    assert finding.verdict is Verdict.HOLDS_WHEN and finding.seen.text("{:g}") == "no number"
    assert finding.when.endswith("; from 1/30 of it in MLP 3 x 100: reached in 5 of 5 seeds, by the slower run in 0")


def test_one_seed_of_five_may_reach_it_without_the_norm():
    made_up = race(SEEN)
    made_up.curves[made_up.arm("none", 5)][0] = 0.97
    bar = judge(PLAN, {3: made_up}).bars[1]
    assert bar.met and bar.seen == "without 1 of 5, with 5 of 5"
    made_up.curves[made_up.arm("none", 5)][1] = 0.97
    assert not judge(PLAN, {3: made_up}).bars[1].met


def text(**options: object) -> str:
    return " ".join(judged(**options).sentences)


@pytest.mark.parametrize(
    ("changed", "there", "not_there"),
    [
        ({}, "is slower than the rate itself", "is faster than the rate"),
        ({("batch", 5, 1): (60, 500)}, "is faster than the rate itself", "is slower than"),
        ({("batch", 5, 1): (118, 940)}, "is neither faster nor slower", "is slower than"),
        ({}, "comes from a base whose rate was too low", "is the norm's."),
        ({("none", 1, 1): (1_450, 1_500)}, "most of the gain at 30 times is the norm's", "rate was too low"),
        ({}, "comes after 1,400 (no interval, n = 5) of 1,600 steps.", "so the budget sets it."),
        ({("none", 1, 1): (172, 1_550)}, "of 1,600 steps, so the budget sets it.", "at the edge"),
        ({}, "The base still rises at the end", "at the edge"),
        ({("none", 1, 30): (1_000, NEVER)}, "at the same rate", "The base still rises at the end"),
        ({}, "without the norm never (0 of 5 seeds) at 5 times", "nan"),
    ],
)
def test_sentences_follow_the_numbers(changed: Speeds, there: str, not_there: str):
    paragraph = text(speeds={**SEEN, **changed})
    assert there in paragraph
    assert not_there not in paragraph


def test_sigmoids_are_counted():
    paragraph = text(sigmoids=(0.9, 0.1))
    assert "5 of 5 seeds with and 0 of 5 without come to 80 %" in paragraph
    assert "0 of 5 seeds reach the base's accuracy" in paragraph
    assert "5 of 5 seeds reach the base's accuracy" in text(sigmoids=(0.99, 0.1))


def test_the_edge_of_the_grid_is_named():
    plan = dataclasses.replace(PLAN, rates=(BASE, 0.1))
    assert "at the edge of the grid" in " ".join(judge(plan, {3: race(SEEN)}).sentences)


def test_networks_without_sigmoids_say_nothing_of_them():
    plan = dataclasses.replace(PLAN, network="vgg", activations=("relu",), depths=(11,))
    judgement = judge(plan, {11: race(SEEN)})
    assert "sigmoids" not in found(judgement)
    assert found(judgement)["faster"].network == "VGG-11"
    assert judgement.bars == ()  # they were written for dense networks


@pytest.mark.parametrize(("name", "depth"), [("mlp", 3), ("conv-32-32-64", 3), ("vgg", 11), ("resnet", 20)])
def test_every_network_has_the_same_weights_with_and_without_the_norm(name: str, depth: int):
    part = Part(np.zeros((2, 8, 8, 3), np.float32), np.zeros(2, np.int32))
    data = Images(train=part, validation=part, test=part, classes=10, name="a")
    shapes = [
        jax.eval_shape(made(Extent(network=name), data, depth, norm, "relu").init, jax.ShapeDtypeStruct((), "uint32"))[
            0
        ]
        for norm in ("none", "batch")
    ]
    kernels = [{key: value for key, value in tree.items() if "norm" not in key} for tree in shapes]
    assert kernels[0]["head"] == kernels[1]["head"]
    assert set(kernels[0]) == set(kernels[1])
    assert shapes[0] != shapes[1]


def test_rates_of_sigmoids_are_multiples_of_the_best_rate_alone():
    assert steps_to_target.rates_of(PLAN, 0.03, 0.1, False) == (0.03, 0.1, 0.15, 0.9)
    assert steps_to_target.rates_of(PLAN, 0.03, 0.03, True) == (0.001, 0.005, 0.03, 0.15, 0.9)


@pytest.mark.slow
def test_the_command_runs(tmp_path: Path):
    quick = dataclasses.replace(steps_to_target.study.quick, width=10, steps=40)
    study = dataclasses.replace(steps_to_target.study, quick=quick)
    main(study, "", ["--quick", "--data", "digits", "--output", str(tmp_path)])
    names = {path.name for path in tmp_path.iterdir()}
    figures = ("steps_to_target", "steps_to_target_curves", "steps_to_target_low_rate")
    assert names == {f"{name}.{kind}" for name in figures for kind in ("svg", "png")} | {
        f"steps_to_target.{kind}" for kind in ("txt", "csv", "json")
    }
