"""The study of running averages: exact facts, verdicts on made-up numbers, and the whole command."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import averages as module
from experiments.averages import AVERAGES, MOMENTA, PLAIN, PRECISE, Extent, Found, Schedule, exponential, study
from experiments.claims import networks
from experiments.claims.images import Images, Part
from experiments.claims.study import main
from experiments.claims.trainer import Budget, Settings, train
from experiments.claims.verdicts import Verdict
from normlab.tools import precise

SEEDS = 5
PLAN = Extent(seeds=SEEDS, schedules=(Schedule(0.1), Schedule(0.1, cosine=True)), at=(20, 1_000))
NOISE = 0.001 * np.array([0.0, 1.0, -1.0, 2.0, -2.0])


def numbers(**above: float) -> Found:
    """Return test errors: 5 % by all statistics, and points above it by name, `name` or `name_20` after 20 updates."""
    names = {PLAIN: "plain", PRECISE: "precise"} | {exponential(m): f"{m:g}"[2:] for m in MOMENTA}

    def errors(name: str, t: int, shift: float) -> np.ndarray:
        key = names.get(name, name)
        points = above.get(f"{key}_{t}", above.get(key, 0.0))
        return 0.05 + points / 100 + (NOISE * (1 + shift) if points else NOISE)

    cells = [(schedule, t) for schedule in PLAN.schedules for t in PLAN.at]
    return {
        cell: {name: errors(name, cell[1], 0.1 * i) for i, name in enumerate((*AVERAGES, PRECISE))} for cell in cells
    }


def verdicts(found: Found) -> list[Verdict]:
    return [finding.verdict for finding in study.judge(PLAN, found).findings]


def test_a_plain_average_that_is_always_better_holds() -> None:
    found = numbers(**{"5": 2.0, "9": 2.0, "99": 2.0, "999": 2.0})
    assert verdicts(found) == [Verdict.HOLDS, Verdict.HOLDS]


def test_a_plain_average_that_is_always_worse_fails() -> None:
    assert verdicts(numbers(plain=2.0))[0] == Verdict.FAILS


def test_a_plain_average_that_beats_slow_averages_alone_holds_against_them() -> None:
    found = numbers(**{"plain": 1.0, "999": 5.0, "99_20": 4.0})
    finding = study.judge(PLAN, found).findings[0]
    assert finding.verdict == Verdict.HOLDS_WHEN
    won, lost = finding.when.split("; it is clearly worse against ")
    assert won == "against momentum 0.99 (after 20 updates), momentum 0.999 (always)"
    assert lost == "momentum 0.5 (always), momentum 0.9 (always), momentum 0.99 (after 1,000 updates)"
    assert finding.seen.mean == pytest.approx(1.0, abs=0.01)


def test_equal_averages_are_not_visible() -> None:
    assert verdicts(numbers()) == [Verdict.UNSEEN, Verdict.UNSEEN]


def test_precise_statistics_that_are_worse_fail() -> None:
    assert verdicts(numbers(precise=3.0))[1] == Verdict.FAILS


def test_precise_statistics_that_are_worse_at_some_moments_hold_at_others() -> None:
    finding = study.judge(PLAN, numbers(precise_20=3.0, plain=1.0)).findings[1]
    assert finding.verdict == Verdict.HOLDS_WHEN
    assert "constant 0.1 after 20 updates" in finding.when and "1,000" not in finding.when
    assert finding.seen.mean == pytest.approx(3.0, abs=0.02)


def test_wide_intervals_are_said_beside_a_verdict() -> None:
    found = numbers(plain=2.0)
    cell = found[PLAN.schedules[0], 20]
    cell[PRECISE] = cell[PRECISE] + 10 * NOISE
    finding = study.judge(PLAN, found).findings[1]
    assert finding.verdict == Verdict.HOLDS
    assert finding.when == "at 1 of 4 moments the interval reaches beyond 0.5 points"


def test_bars_are_met_by_the_expected_numbers_and_by_no_others() -> None:
    expected = numbers(**{"precise": 0.01, "plain": 2.3, "99_20": 17.0, "999": 3.5, "99": 0.2})
    assert all(bar.met for bar in study.judge(PLAN, expected).bars)
    other = numbers(**{"9": 1.0, "precise": 2.0, "plain": 1.5, "99_20": 1.5})
    assert not any(bar.met for bar in study.judge(PLAN, other).bars)


@pytest.mark.parametrize(
    ("above", "said"),
    [
        ({"99_20": 17.0}, "which costs 17.0"),
        ({}, "which makes no clear difference: +0.00"),
        ({"momentum 0.99, debiased_20": 3.0}, "which gains -3.0"),
    ],
)
def test_the_paragraph_says_what_the_start_costs(above: dict[str, float], said: str) -> None:
    line = study.judge(PLAN, numbers(**above)).sentences[2]
    assert "still weighs 82%" in line and said in line


def test_the_paragraph_counts_comparisons() -> None:
    sentences = study.judge(PLAN, numbers(**{"plain": 1.0, "999": 5.0})).sentences
    assert "clearly better than an exponential one in 4 and clearly worse in 12 of 16 comparisons" in sentences[3]
    assert "without the weight of their start, lie in points: 1.00 (constant 0.1), 1.00 (cosine 0.1)" in sentences[4]


@pytest.fixture(scope="module")
def data() -> Images:
    inputs = np.random.default_rng(0).normal(size=(64, 2, 2, 1)).astype(np.float32)
    part = Part(inputs, np.arange(64, dtype=np.int32) % 3)
    return Images(train=part, validation=part, test=part, classes=3, name="noise")


def test_carried_averages_are_those_of_layers_and_leave_training_alone(data: Images) -> None:
    budget, settings = Budget(steps=5, batch=8, every=5), Settings([0, 1], 0.1)
    net = networks.made("mlp-1", "batch:momentum=0.0", data)
    carried = train(module.carrying(net), data, budget, settings)
    layer = train(networks.made("mlp-1", "batch:momentum=0.9", data), data, budget, settings)
    jax.tree.map(np.testing.assert_array_equal, carried.params, layer.params)
    found = jax.tree.map(lambda stack: stack[:, MOMENTA.index(0.9)], carried.state[1])
    expected = layer.state[0]["batch_stats"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, dict(expected))


def test_a_debiased_average_is_the_weighted_mean_of_the_batches() -> None:
    batches = np.random.default_rng(0).normal(size=(7, 3))
    start = {"mean": jnp.zeros((len(MOMENTA) + 1, 3)), "var": jnp.ones((len(MOMENTA) + 1, 3))}
    stack = start
    for t, batch in enumerate(batches):
        decays = jnp.append(jnp.array(MOMENTA), t / (t + 1))
        stack = jax.tree.map(lambda old, batch=batch, decays=decays: module.moved(old, batch, decays), stack)
    found = module.debiased(stack, jnp.array(len(batches)))
    for i, momentum in enumerate(MOMENTA):
        weights = momentum ** np.arange(len(batches))[::-1]
        expected = weights @ batches / weights.sum()
        for name in ("mean", "var"):
            np.testing.assert_allclose(found[name][i], expected, rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(stack["var"][-1], batches.mean(0), rtol=1e-5, atol=1e-6)


def test_precise_statistics_are_those_of_the_tool(data: Images) -> None:
    net = networks.made("mlp-2", "batch:momentum=0.0", data)
    params, state = net.init(0)
    batches = data.train.inputs.reshape(4, 16, 2, 2, 1)
    found = module.precise_statistics(net, params, state, jnp.asarray(batches))
    expected = precise(net.module, {"params": params, **state[0]}, list(batches)).variables["batch_stats"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, dict(expected))


@pytest.mark.slow
def test_the_command(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = dataclasses.replace(study.quick, at=(5, 10), network="mlp-1", precise=128, test=100)
    main(dataclasses.replace(study, quick=quick), "", ["--quick", "--data", "digits", "--output", str(tmp_path)])
    assert "points above precise statistics" in capsys.readouterr().out.lower()
    assert {path.name for path in tmp_path.iterdir()} == {
        f"averages.{kind}" for kind in ("txt", "csv", "json", "svg", "png")
    }
    found = json.loads((tmp_path / "averages.json").read_text())
    assert len(found["findings"]) == 2 and len(found["bars"]) == 5
    assert (tmp_path / "averages.csv").read_text().count("\n") == 1 + 2 * 2 * (len(AVERAGES) + 1)
