"""Test the study of whitening."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import whitening as study
from experiments.claims import images, networks
from experiments.claims import study as command
from experiments.claims.verdicts import Finding, Verdict

PLAN = study.Extent(seeds=7, steps=400, rounds=7)
SPREAD, ROUNDS = np.array([0.98, 0.99, 1.0, 1.01, 1.02, 1.0, 1.0]), np.array([0.97, 0.98, 0.99, 1.0, 1.01, 1.02, 1.04])
PLACES = (study.OWN, study.EVALUATED, study.ACTIVATED)
CORRELATION = {study.NONE: 0.4, study.BATCH: 0.3, study.ITERATIVE: 0.1, study.EXACT: 0.001}
SECONDS = {study.NONE: 1.0, study.BATCH: 1.2, study.ITERATIVE: 3.0, study.EXACT: 9.0}
SPEED = {study.NONE: 1.0, study.BATCH: 1.5, study.ITERATIVE: 2.0, study.EXACT: 2.0}


def found(
    speed: Mapping[str, float] = {},
    seconds: Mapping[str, float] = {},
    places: Mapping[tuple[str, str], float] = {},
    across: float = 0.2,
) -> study.Found:
    """Make measurements: accuracies grow with steps times speed, by seed."""
    at = np.arange(0, PLAN.steps + 1, 20)
    arms = {}
    for name in study.LOOKS:
        rate = {**SPEED, **speed}[name] * SPREAD[:: -1 if name == study.NONE else 1]
        values = {place: places.get((name, place), CORRELATION[name]) * SPREAD for place in PLACES}
        all_pairs = across if name == study.ITERATIVE else 0.3
        arms[name] = study.Arm(
            rate=0.1,
            accuracy=1 - 0.9 * np.exp(-at * rate[:, None] / 100),
            error=(0.05 if name == study.NONE else 0.04) * SPREAD,
            correlation={(place, within): v if within else all_pairs * SPREAD
                         for place, v in values.items() for within in (True, False)},
            seconds={**SECONDS, **seconds}[name] * np.roll(ROUNDS, len(arms)),
        )  # fmt: skip
    return arms


def finding(key: str, of: study.Found) -> Finding:
    """Judge one claim."""
    return next(one for one in study.judge(PLAN, of).findings if one.claim.key == key)


def sentence(text: str, of: study.Found) -> str:
    """Return the only sentence with a text."""
    (line,) = (line for line in study.judge(PLAN, of).sentences if text in line)
    return line


def test_correlation_counts_pairs_of_a_group_and_all() -> None:
    a = np.array([1.0, -1.0, 1.0, -1.0])
    b = np.array([1.0, 1.0, -1.0, -1.0])
    within, everywhere = study.correlation(np.stack([a, 3 * a + 1, b, -b], 1), 2)
    assert within == pytest.approx(1) and everywhere == pytest.approx(np.sqrt(4 / 12))
    within, everywhere = study.correlation(np.stack([a, b, a, b], 1), 2)
    assert within == pytest.approx(0) and everywhere == pytest.approx(np.sqrt(4 / 12))
    assert study.correlation(np.stack([a, np.full(4, 7.0)], 1), 2) == (0, 0)  # constants do not count


@pytest.mark.parametrize(("arm", "most"), [(study.EXACT, 0.01), (study.ITERATIVE, 0.2)])
def test_whitening_takes_the_correlation_of_its_own_batch(arm: str, most: float) -> None:
    plan = replace(study.QUICK, group=8)
    data = images.load("digits", side=8)
    x = data.train.inputs[:256]
    left = {}
    for name in (study.BATCH, arm):
        net = networks.made("mlp-1x16", study.arms(plan)[name], data)
        params, state = net.init(0)
        (output,) = study.normalized(net, params, state, x, train=True)
        left[name] = study.correlation(np.asarray(output), plan.group)[0]
        assert study.normalized(net, params, state, x, train=False)[0].shape == output.shape
    assert left[arm] < most < left[study.BATCH] and left[arm] < 0.6 * left[study.BATCH]


def test_norms_are_found_in_the_order_of_layers() -> None:
    hidden = tuple(range(3, 15))
    net = networks.made("mlp-12", "none", images.load("digits", side=8), hidden=hidden)
    params, state = jax.eval_shape(lambda: net.init(0))
    outputs = jax.eval_shape(
        lambda p, s: study.normalized(net, p, s, jnp.ones((2, 8, 8, 1)), train=False), params, state
    )
    assert [x.shape[1] for x in outputs] == list(hidden)


def test_turns_are_shuffled_and_the_first_does_not_count() -> None:
    calls: list[str] = []
    contenders = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    seconds = study.timed(contenders, replace(PLAN, rounds=6))
    assert len(calls) == 21 and {len(values) for values in seconds.values()} == {6}
    rounds = ["".join(calls[i : i + 3]) for i in range(0, 21, 3)]
    assert all(set(one) == set("abc") for one in rounds) and len(set(rounds)) > 1


def test_whitening_takes_correlation_away_or_not() -> None:
    assert finding("whitens", found()).verdict is Verdict.HOLDS
    after = {(study.ITERATIVE, study.ACTIVATED): 0.3}
    alone = finding("whitens", found(places=after))
    assert alone.verdict is Verdict.HOLDS_WHEN and "before the activation alone" in alone.when
    part = finding("whitens", found(places=dict.fromkeys([(study.ITERATIVE, place) for place in PLACES], 0.25)))
    assert part.verdict is Verdict.HOLDS_WHEN and "; in part" in part.when
    worse = {(study.ITERATIVE, study.EVALUATED): 0.5}
    assert finding("whitens", found(places=worse)).verdict is Verdict.FAILS
    same = found(places={(study.ITERATIVE, study.EVALUATED): 0.3})
    same[study.ITERATIVE].correlation[study.EVALUATED, True][:] = 0.3 * SPREAD[::-1]
    assert finding("whitens", same).verdict is Verdict.UNSEEN


def test_whitening_is_faster_in_steps_in_time_or_not() -> None:
    steps = finding("faster", found())
    assert steps.verdict is Verdict.HOLDS_WHEN and steps.when.startswith("steps are counted, not time")
    assert 1.1 < steps.seen.mean < 1.5
    both = finding("faster", found(seconds={study.ITERATIVE: 1.2}))
    assert both.verdict is Verdict.HOLDS and both.when.startswith("an update takes 1.0")
    assert finding("faster", found(speed={study.ITERATIVE: 1.1})).verdict is Verdict.FAILS
    assert finding("faster", found(speed={study.ITERATIVE: 0.2})).verdict is Verdict.FAILS  # never there
    assert finding("faster", found(speed={study.ITERATIVE: 1.5})).verdict is Verdict.UNSEEN


def test_whitening_is_dear_or_not() -> None:
    assert finding("costly", found()).verdict is Verdict.HOLDS
    exact = finding("costly", found(seconds={study.ITERATIVE: 1.2}))
    assert exact.verdict is Verdict.HOLDS_WHEN and exact.when.startswith("the decomposition is exact")
    cheap = {study.ITERATIVE: 1.1, study.EXACT: 1.1}
    assert finding("costly", found(seconds=cheap)).verdict is Verdict.FAILS
    near = {study.ITERATIVE: 1.32, study.EXACT: 1.32}
    assert finding("costly", found(seconds=near)).verdict is Verdict.UNSEEN


def test_the_paragraph_says_what_whitening_does_to_all_pairs() -> None:
    assert "lowers it, too" in sentence("Over all pairs", found())
    assert "raises it" in sentence("Over all pairs", found(across=0.4))
    same = found(across=0.3)
    same[study.ITERATIVE].correlation[study.EVALUATED, False][:] = 0.3 * SPREAD[::-1]
    assert "does not change it" in sentence("Over all pairs", same)


def test_the_paragraph_counts_runs_that_never_reach_the_target() -> None:
    line = sentence("Whitening, exact beside batch norm", found(speed={study.EXACT: 0.2}))
    assert "never (0 of 7 seeds)" in line
    assert "never" not in sentence("Whitening, iterative beside batch norm", found())


def test_bars_can_be_met_and_missed() -> None:
    assert all(bar.met for bar in study.judge(PLAN, found()).bars)
    left = {(study.EXACT, study.OWN): 0.1, (study.ITERATIVE, study.OWN): 0.29}
    bad = study.judge(PLAN, found(places=left, seconds={study.EXACT: 1.0})).bars
    assert not any(bar.met for bar in bad)


@pytest.mark.slow
def test_the_command_writes_figures_numbers_and_verdicts(tmp_path: Path) -> None:
    tiny = replace(study.QUICK, steps=80, network="mlp-1x40")
    command.main(replace(study.study, quick=tiny), "", ["--quick", "--data", "digits", "--output", str(tmp_path)])
    names = {"whitening.txt", "whitening.csv", "whitening.json", "whitening.svg", "whitening.png"}
    assert names <= {path.name for path in tmp_path.iterdir()}
    written = json.loads((tmp_path / "whitening.json").read_text())
    assert [one["claim"]["key"] for one in written["findings"]] == [claim.key for claim in study.study.claims]
    exact, _, _ = written["bars"]
    assert exact["met"]
