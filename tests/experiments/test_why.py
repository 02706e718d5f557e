"""Test the study of why batch norm works."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import why as study
from experiments.claims.images import Part
from experiments.claims.study import main, text
from experiments.claims.trainer import Moment, loss
from experiments.claims.verdicts import Finding, Verdict
from normlab import linen
from normlab.introspect.pure import network
from normlab.models import MLP

PLAN = study.Extent(seeds=6, rates=(0.03, 0.1), noises=(0.1, 0.3, 1.0), distances=(0.1,), steps=90)
INPUTS = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
JITTER = np.array([-0.02, -0.015, -0.01, 0.01, 0.015, 0.02])


def test_noise_has_the_published_moments_and_size_zero_changes_nothing() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(500, 400)), jnp.float32)
    shift = study.distorted(jnp.zeros_like(x), 1.0, jax.random.key(0))
    factor = study.distorted(jnp.ones_like(x), 1.0, jax.random.key(0)) - shift
    np.testing.assert_allclose(factor.mean(), 1 + study.MEAN_FACTOR, atol=0.015)
    np.testing.assert_allclose(factor.std(0), 0.1, atol=0.02)
    assert 1 <= factor.mean(0).min() + 0.02 and factor.mean(0).max() <= 1.25 + 0.02
    np.testing.assert_allclose(shift.std(0), 0.1 / math.sqrt(3), atol=0.01)
    np.testing.assert_allclose(shift.mean(0).std(), 1 / math.sqrt(12), atol=0.03)
    assert (study.distorted(x, 0.0, jax.random.key(0)) == x).all()


def test_batch_norm_without_noise_is_batch_norm_and_the_correction_counts_in_evaluation_alone() -> None:
    module = study.NoisyBatchNorm(train=True)
    variables = module.init({"params": jax.random.key(0), "noise": jax.random.key(1)}, INPUTS)
    ours, _ = module.apply(variables, INPUTS, mutable=["batch_stats"], rngs={"noise": jax.random.key(2)})
    plain = linen.BatchNorm(use_running_average=False)
    assert (ours == plain.init_with_output(jax.random.key(0), INPUTS)[0]).all()

    evaluate = study.NoisyBatchNorm(train=False)
    noise = {"size": jnp.asarray(0.3), "correction": jnp.asarray(1.0)}
    corrected = evaluate.apply({**variables, "noise": noise}, INPUTS)
    np.testing.assert_allclose(corrected, evaluate.apply(variables, INPUTS) * (1 + 0.3 * study.MEAN_FACTOR), rtol=1e-6)


def test_layers_are_those_of_modules_in_the_order_of_the_network() -> None:
    dense = study.layers({"dense_0": 0, "dense_10": 0, "dense_2": 0, "head": 0, "norm_10": 0})
    assert dense == {"dense_0": 0, "dense_2": 1, "dense_10": 2, "norm_10": 2, "head": 3}
    assert study.layers({"norm_1_0": 0, "conv_1_0": 0, "conv_0_1": 0, "head": 0})["norm_1_0"] == 1


def test_comparison_of_gradients() -> None:
    one, other = {"a": jnp.array([3.0, 0.0])}, {"a": jnp.array([0.0, 4.0])}
    assert [float(v) for v in study.compared(one, other)] == pytest.approx([5 / 3, 0])
    assert [float(v) for v in study.compared(one, {"a": -one["a"]})] == pytest.approx([2, -1])


def test_observation_is_that_of_steps_made_by_hand() -> None:
    plan = dataclasses.replace(PLAN, multiples=(1.0, 2.0), distances=(0.2,))
    net = network(MLP, study.NOISY, INPUTS, hidden=(4, 3), classes=3)
    batch, rate, t = Part(INPUTS, jnp.arange(8) % 3), 0.5, jnp.asarray(7)
    params, state = study.with_noise(net.init(0), size=np.ones(()))
    seen = jax.jit(lambda: study.observer(plan, net)(Moment(params, state, t, jnp.asarray(rate), batch)))()

    @jax.jit
    def gradient(at: study.Tree) -> tuple[jax.Array, study.Tree]:
        (value, _), found, _ = net.gradients(lambda out: (loss(out, batch.labels), None), at, state, INPUTS, t)
        return value, found

    def moved(eta: float, names: Mapping[str, object]) -> study.Tree:
        step = {name: jax.tree.map(lambda p, g: p - eta * g, params[name], first[name]) for name in names}
        return gradient({**params, **step})

    _, first = gradient(params)
    value, there = moved(2 * rate, params)
    np.testing.assert_allclose(seen.ahead.loss[1], value, rtol=1e-5)
    np.testing.assert_allclose(seen.ahead.change[1], study.compared(first, there)[0], rtol=1e-4)
    _, there = moved(0.2 / float(seen.size), params)
    np.testing.assert_allclose(seen.fixed.cosine[0], study.compared(first, there)[1], rtol=1e-4)
    _, there = moved(rate, ("dense_0", "norm_0", "dense_1", "norm_1"))  # below the head
    expected = study.compared(first["head"]["kernel"], there["head"]["kernel"])
    np.testing.assert_allclose(seen.below.layer_change[2, 2], expected[0], rtol=1e-4)
    np.testing.assert_allclose(seen.below.layer_cosine[2, 2], expected[1], rtol=1e-4)
    assert abs(seen.below.layer_change[0, 0]) < 1e-6  # no layer is below the first
    assert [m.shape for m in seen.means] == [(4,), (3,)]
    assert all((abs(m) > 1e-3).any() for m in seen.means)  # of batch norm alone they are zero: noise is part of them


def test_summary_of_a_quadratic_has_its_curvature_as_beta() -> None:
    curvature, shape = 5.0, (2, 4, 3)
    rates = np.asarray(PLAN.rates)[:, None, None, None]
    multiples, size = np.asarray(PLAN.multiples), np.full(shape, 2.0)
    ahead = study.Probe(rates * multiples * size[..., None], curvature * rates * multiples * np.ones((*shape, 1)),
                        np.ones((*shape, 4)), np.ones(()), np.ones(()))  # fmt: skip
    fixed = ahead._replace(change=curvature * np.asarray(PLAN.distances) / size[..., None])
    diagonal = np.arange(9.0).reshape(3, 3) * np.ones((*shape, 1, 1))
    below = ahead._replace(layer_change=diagonal, layer_cosine=diagonal)
    means = np.array([0.0, 1.0, 2.0])[:, None] * np.array([1.0, 2.0, 3.0]) * np.ones((*shape, 1))
    seen = study.Seen(size, size, ahead, fixed, below, (means,), (np.full(means.shape, 4.0),))
    arm = study.summary(PLAN, seen, np.zeros((2, 4)), np.zeros((2, 4)), 0.1)
    np.testing.assert_allclose(arm.beta, curvature)
    np.testing.assert_allclose(arm.fixed, curvature)
    np.testing.assert_allclose(arm.range[1, 0], 0.1 * 3.5 * 2)
    np.testing.assert_allclose(arm.predictiveness[0], curvature * 0.03 * 4)
    np.testing.assert_allclose(arm.shift[0, 0, 0], [0, 4, 8])
    np.testing.assert_allclose(arm.drift, 0.5)  # the middle unit: deviation 2 over 4


def arm(
    smooth: float = 1.0, *, cosine: float = 0.7, drift: float = 0.4, error: float = 0.04, spread: float = 1.0
) -> study.Arm:
    """Make the measurements of an arm, which differ a little between seeds.

    Args:
        smooth: Range, predictiveness, beta.
        cosine: Of the shift of all layers but the first.
        drift: Of all units.
        error: Test error.
        spread: Differences between seeds, as a multiple.
    """
    draw = np.random.default_rng(int(1e4 * (smooth + cosine + drift + 7 * error)))
    noise = spread * np.array([draw.permutation(JITTER) for _ in range(2)]) + spread * draw.normal(0, 1e-3, (2, 6))
    seeds = (1 + noise)[..., None] * np.ones((2, 6, 3))
    cosines = np.concatenate([np.ones((2, 6, 3, 1)), cosine * seeds[..., None] * np.ones(3)], -1)
    errors = error + 0.1 * (noise - noise.mean(1, keepdims=True))
    return study.Arm(
        loss=seeds, low=seeds, range=smooth * seeds, predictiveness=smooth * seeds, least=0.1 * smooth * seeds,
        beta=smooth * seeds, cosine=0.5 * seeds, fixed=smooth * seeds[..., None], shift=1 - cosines + 0.01,
        shift_cosine=cosines, drift=drift * seeds[:, :, :1] * np.ones(3), error=errors, corrected=errors - 0.01,
        rate=0.1,
    )  # fmt: skip


def found(batch: study.Arm | None = None, **others: study.Arm) -> dict[str, study.Arm]:
    """Make the measurements of all arms; `low`, `middle` and `high` are those of batch norm with noise."""
    ours = batch or arm(0.3, cosine=0.95, drift=0.01, error=0.03)
    low, middle, high = (others.get(key, ours) for key in ("low", "middle", "high"))
    noise = dict(zip(map(study.noisy, PLAN.noises), (low, middle, high), strict=True))
    return {study.NONE: others.get("none", arm()), study.BATCH: ours, **noise, study.LAYER: others.get("layer", arm())}


def finding(found: study.Found, key: str) -> Finding:
    """Judge, and return the finding on a claim."""
    (one,) = [finding for finding in study.judge(PLAN, found).findings if finding.claim.key == key]
    return one


def test_verdict_on_the_shift() -> None:
    assert finding(found(), "shift").verdict == Verdict.HOLDS
    assert finding(found(arm(cosine=0.4)), "shift").verdict == Verdict.FAILS
    assert finding(found(arm(cosine=0.705, spread=4)), "shift").verdict == Verdict.UNSEEN


def test_condition_of_the_shift_names_layers_and_rates() -> None:
    cosines = arm(cosine=0.95).shift_cosine.copy()
    cosines[..., 1] = 0.3 * (1 + JITTER[:, None])
    seen = finding(found(dataclasses.replace(arm(), shift_cosine=cosines)), "shift")
    assert seen.verdict == Verdict.HOLDS_WHEN
    parts = (
        "layer 3, the head at rate 0.03; layer 3, the head at rate 0.1",
        "layer 2 at rate 0.03; layer 2 at rate 0.1",
    )
    assert seen.when == f"less in {parts[0]}; more in {parts[1]}"


def test_verdict_on_smoothness() -> None:
    assert finding(found(), "smooth").verdict == Verdict.HOLDS
    assert finding(found(arm(2.0)), "smooth").verdict == Verdict.FAILS
    assert finding(found(arm(1.01, spread=4)), "smooth").verdict == Verdict.UNSEEN


def test_condition_of_smoothness_names_measures_and_rates() -> None:
    beta = arm(0.3).beta.copy()
    beta[1] = arm(1.01, spread=4).beta[1]
    seen = finding(found(dataclasses.replace(arm(0.3), beta=beta, fixed=arm(2.0).fixed)), "smooth")
    assert seen.verdict == Verdict.HOLDS_WHEN
    assert "predictiveness (rates 0.03, 0.1); beta (rates 0.03)" in seen.when
    assert "not told apart: beta (rates 0.1)" in seen.when
    assert seen.when.endswith("more: beta at distance 0.1 (rates 0.03, 0.1)")


WEAK, MIDDLE = arm(0.3, drift=0.012, error=0.0301), arm(0.3, drift=0.02, error=0.0302)


@pytest.mark.parametrize(
    ("high", "expected", "words"),
    [
        (arm(drift=0.8, error=0.031), Verdict.HOLDS, "x 1 at rate 0.03, 2.00"),
        (arm(drift=0.8, error=0.08), Verdict.FAILS, "x 1 at rate 0.1, 2.00"),
        (arm(drift=0.2, error=0.08), Verdict.UNSEEN, "no noise drifts more than no norm"),  # does not try the claim
        (arm(drift=0.8, error=0.031, spread=9), Verdict.UNSEEN, "x 1 at rate"),
    ],
)
def test_verdict_on_noise(high: study.Arm, expected: Verdict, words: str) -> None:
    seen = finding(found(low=WEAK, middle=MIDDLE, high=high), "noise")
    assert seen.verdict == expected
    assert words in seen.when


def test_noise_may_be_cheap_up_to_a_size() -> None:
    unstable, strong = arm(drift=0.8, error=0.031), arm(drift=0.9, error=0.08)
    seen = finding(found(low=WEAK, middle=unstable, high=strong), "noise")
    assert seen.verdict == Verdict.HOLDS_WHEN
    assert seen.when.startswith("the noise is x 0.3 at rate 0.03, x 0.3 at rate 0.1; drift as a multiple of that")
    dear = finding(found(low=strong, middle=strong, high=strong), "noise")
    assert dear.verdict == Verdict.FAILS and "where it costs least" in dear.effect


def test_noise_is_judged_at_the_rate_at_which_it_drifts() -> None:
    high = arm(drift=0.8, error=0.08)
    high.drift[0] = 0.1  # at rate 0.03 it is more stable than no norm
    seen = finding(found(low=WEAK, middle=MIDDLE, high=high), "noise")
    assert seen.verdict == Verdict.FAILS and "rate 0.1, where it costs least" in seen.effect
    assert "rate 0.03" not in seen.when


@pytest.mark.parametrize(("drift", "words"), [(0.8, "above"), (0.1, "below"), (0.401, "not told from")])
def test_sentence_on_the_drift_of_noise(drift: float, words: str) -> None:
    (line,) = [s for s in study.judge(PLAN, found(high=arm(drift=drift))).sentences if s.startswith("Noise x 1:")]
    assert f"n = 6) times, {words} that without a norm" in line


def test_bars_are_met_and_missed() -> None:
    assert all(bar.met for bar in study.judge(PLAN, found()).bars)
    missed = study.judge(PLAN, found(arm(2.0, cosine=0.4))).bars
    assert len(missed) == 9 and not any(bar.met for bar in missed)


def test_runs_that_diverged_are_counted_and_left_out() -> None:
    broken = arm()
    broken.loss[1, 2, 1:] = np.nan
    broken.beta[1, 2] = 1e6
    broken.fixed[1, 2] = 1e6
    seen = found(none=broken)
    lines = study.judge(PLAN, seen).sentences
    assert lines[0] == "Runs that diverged, which no ratio contains: 1 of 6 at rate 0.1 with no norm."
    assert study.judge(PLAN, found()).sentences[0] == "No run diverged."
    ratios = study.compare(seen, "beta", 1), study.compare_fixed(seen, 1, 0)
    assert [r.n for r in ratios] == [5, 5]
    assert all(r.mean > 0.28 for r in ratios)
    assert study.lower(seen, "beta", 1).tolist() == [1] * 6
    assert all(study.draw(PLAN, seen))


@pytest.mark.parametrize(
    ("cosine", "words"), [(0.95, "less coupled"), (0.4, "more coupled"), (0.7, "not told apart in coupling")]
)
def test_sentence_on_coupling(cosine: float, words: str) -> None:
    (line,) = [line for line in study.judge(PLAN, found(arm(cosine=cosine))).sentences if "coupling" in line]
    assert f"the last hidden layer is {words}" in line


def test_sentences_have_the_numbers_of_their_arms() -> None:
    body = text(study.judge(PLAN, found(layer=arm(2.0), high=arm(error=0.05))))
    assert "Rate 0.03, batch norm / no norm: range 0.30" in body
    assert "Rate 0.03, layer norm / no norm: range 2.00" in body
    assert "updates at which it is lower: range 100 %, predictiveness 100 %, beta 100 %" in body
    assert "Rate 0.1, beta: no norm 0.05" in body
    assert "Noise x 1: test error minus that of batch norm +2.00" in body
    assert "evaluation times 1.125 changes its error by -1.00" in body
    assert "Test error at own rates, %: no norm 4.00" in body


def test_networks_have_plans_of_their_own() -> None:
    for name, (plan, quick) in study.study.networks.items():
        assert plan.network == quick.network == name
        assert plan.steps % plan.every == 0
        assert plan.steps // plan.every == study.STANDARD.steps // study.STANDARD.every


@pytest.mark.slow
@pytest.mark.parametrize("network", [[], ["--network", "conv"]])
def test_command_writes_everything(tmp_path: Path, network: list[str]) -> None:
    quick = dataclasses.replace(
        study.study.quick, network="mlp-2x8", rates=(0.1,), noises=(1.0,), distances=(0.1,), steps=2, every=1, batch=8
    )
    arguments = ["--quick", "--data", "digits", *network, "--output", str(tmp_path)]
    networks = {"conv": (quick, dataclasses.replace(quick, network="conv"))}
    main(dataclasses.replace(study.study, quick=quick, networks=networks), "", arguments)
    written = {path.name for path in tmp_path.iterdir()}
    name = "-".join(["why", *network[1:]])
    figures = {f"{name}{part}.{end}" for part in ("", "-distance", "-noise") for end in ("svg", "png")}
    assert written == {f"{name}.txt", f"{name}.csv", f"{name}.json"} | figures
