import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import saturation
from experiments.claims.images import Images, Part
from experiments.claims.study import main
from experiments.claims.trainer import Moment
from experiments.claims.verdicts import Finding, Judgement, Verdict
from experiments.saturation import BATCH, BEYOND, NONE, SLOWER, Arm, Extent, Found, judge
from normlab import norms
from normlab.introspect.pure import network
from normlab.models import MLP

SEEDS, UNITS = 5, 8
AT = np.arange(0, 1_601, 20)
PLAN = Extent(seeds=SEEDS)
JITTER = 1 + 0.02 * np.array([-2, -1, 0, 1, 2])
OTHER = JITTER[::-1]
WIDE = np.array([0.3, 0.6, 1.0, 2.0, 3.5])


def arm(
    *,
    moves: float,
    spread: tuple[float, float],
    beyond: tuple[float, float] = (0.0, 0.0),
    steps: float = 1_000,
    top: float = 0.92,
    jitter: np.ndarray = JITTER,
) -> Arm:
    """Make up an arm whose median and spread change linearly; seeds differ by `jitter`."""
    rising, units = np.linspace(0, 1, len(AT))[None, :, None], np.ones((1, 1, UNITS))
    first, last = spread[0] * (0.99 + 0.01 * jitter[:, None, None]), spread[1] * jitter[:, None, None]
    wide = (first + (last - first) * rising) * units
    middle = moves * jitter[:, None, None] ** 2 * rising * units
    ends = np.clip(jitter * beyond[1], 0, 1)
    shares = beyond[0] + (ends[:, None] - beyond[0]) * np.linspace(0, 1, len(AT))
    accuracy = np.stack([np.interp(AT[3:], [0, steps * factor], [0.1, top]) for factor in jitter])
    return Arm(
        rate=0.3,
        accuracy=accuracy,
        percentiles=np.stack([middle - wide / 2, middle, middle + wide / 2], 2),
        beyond=np.repeat(shares[..., None], 3, -1),
    )


def made(none: Arm, batch: Arm, relu: tuple[Arm, Arm] | None = None) -> Found:
    control = relu or (arm(moves=0.3, spread=(1, 1.2), jitter=OTHER), arm(moves=0.1, spread=(1, 1.2)))
    arms = {("sigmoid", NONE): none, ("sigmoid", BATCH): batch, ("sigmoid", SLOWER): batch}
    arms |= {("relu", NONE): control[0], ("relu", BATCH): control[1], ("relu", SLOWER): control[1]}
    own = {(activation, norm): 0.3 for activation in ("sigmoid", "relu") for norm in ("none", "batch")}
    return Found(at=AT, arms=arms, own=own)


BARE = {"moves": 1.5, "spread": (0.04, 3.3), "beyond": (0.0, 0.5), "steps": 1_500, "jitter": OTHER}
NORMED = {"moves": 0.5, "spread": (1.7, 2.2), "beyond": (0.0, 0.3), "steps": 1_000}


def seen(none: Arm | None = None, batch: Arm | None = None, **options: object) -> Judgement:
    return judge(PLAN, made(none or arm(**BARE), batch or arm(**NORMED), **options))


def found(judgement: Judgement) -> dict[str, Finding]:
    return {finding.claim.key: finding for finding in judgement.findings}


def test_less_saturation_is_not_none():
    findings = found(seen())
    assert findings["saturation"].verdict is Verdict.HOLDS_WHEN
    assert "30 %" in findings["saturation"].when and "50 %" in findings["saturation"].when
    assert findings["saturation"].seen.mean == pytest.approx(-20)
    assert findings["stable"].verdict is Verdict.HOLDS
    assert findings["faster"].verdict is Verdict.HOLDS
    assert findings["faster"].seen.mean == pytest.approx(1.5, rel=0.05)


def test_out_of_saturation_all_along_holds():
    clean = arm(**{**NORMED, "beyond": (0.0, 0.02)})
    assert found(seen(batch=clean))["saturation"].verdict is Verdict.HOLDS


def test_a_layer_that_saturates_in_between_is_a_condition():
    clean = arm(**{**NORMED, "beyond": (0.0, 0.02)})
    clean.beyond[:, 40, 0] = 0.3
    assert found(seen(batch=clean))["saturation"].verdict is Verdict.HOLDS_WHEN


def test_opposite_numbers_fail():
    judgement = seen(none=arm(**NORMED), batch=arm(**{**BARE, "steps": 1_590}))
    assert {finding.verdict for finding in judgement.findings} == {Verdict.FAILS}
    assert "With batch norm more units saturate." in " ".join(judgement.sentences)


def test_wide_intervals_show_nothing():
    judgement = seen(batch=arm(**{**BARE, "steps": 1_400, "jitter": WIDE}), none=arm(**{**BARE, "steps": 1_400}))
    assert {finding.verdict for finding in judgement.findings} == {Verdict.UNSEEN}
    assert "The difference is not visible here." in " ".join(judgement.sentences)


def test_a_stable_median_alone_is_a_condition():
    batch = arm(moves=0.1, spread=(0.04, 3.3), beyond=(0.0, 0.3))
    finding = found(seen(batch=batch))["stable"]
    assert finding.verdict is Verdict.HOLDS_WHEN
    assert "median" in finding.when


def test_movement_is_divided_by_the_spread():
    small, large = arm(moves=0.5, spread=(1, 2)), arm(moves=5, spread=(10, 20))
    np.testing.assert_allclose(small.drift(), large.drift())
    np.testing.assert_allclose(small.breathing(), large.breathing())
    np.testing.assert_allclose(10 * small.movement(), large.movement())


def test_bars_are_met_and_missed():
    assert all(bar.met for bar in seen().bars)
    control = (arm(moves=0.1, spread=(1, 1.2), jitter=OTHER), arm(moves=0.3, spread=(1, 1.2)))
    assert not any(bar.met for bar in seen(none=arm(**NORMED), batch=arm(**BARE), relu=control).bars)


@pytest.mark.parametrize(
    ("none", "batch", "there"),
    [
        (BARE, NORMED, "they start at the centre, with a weak signal"),
        ({**BARE, "beyond": (0.4, 0.5)}, NORMED, "Without the norm units start saturated."),
        (NORMED, BARE, "Units do not start saturated, with the norm or without."),
        (BARE, NORMED, "With batch norm fewer units saturate, but some do"),
        (BARE, {**NORMED, "beyond": (0.0, 0.02)}, "units of this layer are out of saturation at the end"),
    ],
)
def test_sentences_follow_the_numbers(none: dict, batch: dict, there: str):
    assert there in " ".join(seen(none=arm(**none), batch=arm(**batch)).sentences)


@pytest.mark.parametrize(
    ("moves", "there"), [((0.3, 0.1), "more stable there, too"), ((0.1, 0.3), "is less stable there")]
)
def test_the_control_is_told_as_it_is(moves: tuple[float, float], there: str):
    control = tuple(arm(moves=m, spread=(1, 1.2), jitter=j) for m, j in zip(moves, (OTHER, JITTER), strict=True))
    assert there in " ".join(seen(relu=control).sentences)


def test_a_control_that_shows_nothing_is_told():
    control = arm(moves=0.3, spread=(1, 1.2)), arm(moves=0.3, spread=(1, 1.2), jitter=WIDE)
    assert "not shown to be more stable there" in " ".join(seen(relu=control).sentences)


@pytest.fixture(scope="module")
def data() -> Images:
    pixels = np.random.default_rng(0).integers(0, 2, (60, 4, 4, 1)).astype(np.float32)
    part = Part(pixels, np.arange(60, dtype=np.int32) % 3)
    return Images(train=part, validation=part, test=part, classes=3, name="a")


def moment(data: Images, norm: str) -> tuple[list[np.ndarray], dict]:
    net = network(MLP, norms.get(norm), data.train.inputs[:2], hidden=(7, 5), classes=3, activation="sigmoid")
    params, state = net.init(3)
    now = Moment(params, state, jnp.int32(0), jnp.float32(0.1), data.train)
    return [np.asarray(x) for x in saturation.inputs_of_activations(net, now, jnp.asarray(data.test.inputs))], params


def test_inputs_of_activations_are_those_of_the_sigmoids(data: Images):
    seen, params = moment(data, "none")
    x = data.test.inputs.reshape(60, -1)
    for i, inputs in enumerate(seen):
        x = np.asarray(x @ params[f"dense_{i}"]["kernel"] + params[f"dense_{i}"]["bias"])
        np.testing.assert_allclose(inputs, x, rtol=1e-4, atol=1e-5)
        x = np.asarray(jax.nn.sigmoid(x))


def test_batch_norm_takes_the_statistics_of_the_images(data: Images):
    seen, _ = moment(data, "batch:epsilon=1e-12")
    for inputs in seen:
        np.testing.assert_allclose(inputs.mean(0), 0, atol=1e-3)
        np.testing.assert_allclose(inputs.std(0), 1, atol=1e-2)


def test_percentiles_are_those_of_numpy():
    inputs = np.random.default_rng(1).normal(size=(2, 50, 4)).astype(np.float32)
    found = saturation.percentiles(jnp.asarray(inputs))
    for layer, seen in zip(inputs, found, strict=True):
        np.testing.assert_allclose(seen, np.percentile(layer, (15, 50, 85), axis=0), rtol=1e-5)


def test_the_slope_of_a_saturated_sigmoid_is_small():
    assert float(jax.grad(jax.nn.sigmoid)(BEYOND)) <= 0.0702 and math.isclose(
        float(jax.grad(jax.nn.sigmoid)(0.0)), 0.25
    )


@pytest.mark.slow
def test_the_command_runs(tmp_path: Path):
    quick = dataclasses.replace(saturation.study.quick, width=10, steps=40, layers=1)
    study = dataclasses.replace(saturation.study, quick=quick)
    main(study, "", ["--quick", "--data", "digits", "--output", str(tmp_path)])
    assert {path.name for path in tmp_path.iterdir()} == {
        f"saturation.{kind}" for kind in ("txt", "csv", "json", "svg", "png")
    }
