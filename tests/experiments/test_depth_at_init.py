"""Test the study of gradients in deep networks at initialization."""

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from experiments import depth_at_init as study
from experiments.claims import mean_field
from experiments.claims.estimates import average
from experiments.claims.images import Part
from experiments.claims.study import main
from experiments.claims.trainer import loss
from experiments.claims.verdicts import Verdict

PLAN = study.Extent(
    seeds=4, depth=16, arms=study.ALL, width=16, law_width=256, batches=(8, 128), widths=(256,), width_batch=32
)


@pytest.mark.parametrize(("batch", "expected"), [(8, 1.788), (32, 1.522), (64, 1.493), (128, 1.480)])
def test_law_has_the_published_values(batch: int, expected: float) -> None:
    assert mean_field.with_batch_norm(batch) == pytest.approx(expected, abs=5e-4)


def test_law_of_large_batches_is_pi_over_pi_minus_one() -> None:
    assert mean_field.with_batch_norm(10**6) == pytest.approx(math.pi / (math.pi - 1), rel=1e-5)


@pytest.mark.parametrize("batch", [4, 64])
def test_law_of_linear_layers_in_closed_form(batch: int) -> None:
    assert mean_field.with_batch_norm(batch, "linear") == pytest.approx((batch - 2) / (batch - 3))


@pytest.mark.parametrize("batch", [5, 8, 64])
@pytest.mark.parametrize("activation", ["relu", "linear"])
def test_law_by_quadrature_is_that_in_closed_form(batch: int, activation: mean_field.Activation) -> None:
    expected = mean_field.with_batch_norm(batch, activation)
    assert mean_field.on_the_sphere(batch, activation) == pytest.approx(expected, rel=3e-4)


@pytest.mark.parametrize(("batch", "growth"), [(8, 1.3585), (64, 1.1923)])
def test_law_of_tanh_is_the_growth_of_gradients_through_drawn_batches(batch: int, growth: float) -> None:
    assert mean_field.with_batch_norm(batch, "tanh") == pytest.approx(growth, abs=1e-4)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20_000, batch))
    inputs = x - x.mean(1, keepdims=True)
    sizes = np.sqrt((inputs**2).mean(1, keepdims=True))
    x = inputs / sizes
    f, slope = np.tanh(x), 1 - np.tanh(x) ** 2
    centre = lambda a: a - a.mean(-1, keepdims=True)  # noqa: E731
    g = slope * centre(rng.normal(size=x.shape))  # gradients of mean zero, as the layer above leaves them
    back = centre(g) - x * (g * x).mean(1, keepdims=True)
    spread = np.square(centre(f)).sum() / f.size  # of the inputs of the layer, in place of that of `inputs`
    expected = (np.square(back) / sizes**2).sum() / (batch - 1) / len(x) / (spread * batch / (batch - 1))
    assert growth == pytest.approx(expected, rel=0.01)


def test_law_without_a_norm() -> None:
    assert mean_field.without_norm("relu") == pytest.approx(1)
    assert mean_field.without_norm("tanh", variance=1.0) == pytest.approx(1, abs=0.01)  # the edge of chaos
    z = np.random.default_rng(0).normal(size=400_000)
    q = 0.618
    assert 2 * np.mean(np.tanh(math.sqrt(q) * z) ** 2) == pytest.approx(q, abs=2e-3)
    drawn = 2 * np.mean((1 - np.tanh(math.sqrt(q) * z) ** 2) ** 2)
    assert mean_field.without_norm("tanh") == pytest.approx(drawn, abs=5e-3)


@pytest.mark.parametrize(
    ("arm", "expected"),
    [(study.BATCH, 1.493), (study.TANH, 1.192), (study.LINEAR, 1.016), (study.NONE, 1.0), (study.NONE_TANH, 1.106),
     (study.BATCH_AFTER, None), (study.BATCH_RESIDUAL, None), (study.LARGE_EPSILON, None), (study.LAYER, None)],
    ids=lambda value: getattr(value, "name", ""),
)  # fmt: skip
def test_architectures_with_a_law(arm: study.Arm, expected: float | None) -> None:
    found = study.law(arm, 64)
    assert found == (expected if expected is None else pytest.approx(expected, abs=1e-3))


@pytest.mark.parametrize("c", [-0.9, -0.1, 0.5])
def test_correlation_is_that_of_gaussian_inputs(c: float) -> None:
    a, noise = np.random.default_rng(0).normal(size=(2, 400_000))
    products = 2 * np.maximum(a, 0) * np.maximum(c * a + math.sqrt(1 - c * c) * noise, 0)
    value, slope = mean_field.correlation(c)
    assert products.mean() == pytest.approx(value, abs=0.01)
    difference = mean_field.correlation(c + 1e-6)[0] - mean_field.correlation(c - 1e-6)[0]
    assert slope == pytest.approx(difference / 2e-6, rel=1e-5)


def test_growth_of_a_geometric_profile_is_its_factor_whatever_the_ends() -> None:
    layers = np.arange(1, 33)
    squares = np.stack([1.5**-layers, 0.9**-layers])
    squares[:, [0, 1, -1]] = 7.0
    np.testing.assert_allclose(study.growth(squares), [1.5, 0.9])


def kernels(scale: float = 1.0, depth: int = 3) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Make kernels of a small network."""
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (6, 5), (depth, 5, 5), (5, 4)
    first, middle, last = (jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True))
    return scale * first, scale * middle, last


BATCH = Part(np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32), jnp.arange(8) % 4)


@pytest.mark.parametrize("arm", [study.LAYER_AFTER, study.BATCH_RESIDUAL], ids=lambda arm: arm.name)
def test_gradients_are_those_of_layers_written_out(arm: study.Arm) -> None:
    first, middle, last = kernels()

    def written_out(middle: list[jax.Array]) -> jax.Array:
        if arm == study.LAYER_AFTER:
            norm = nn.LayerNorm(use_bias=False, use_scale=False, epsilon=1e-5)
            h = norm.apply({}, nn.relu(BATCH.inputs @ first))
            for w in middle:
                h = norm.apply({}, nn.relu(h @ w))
        else:
            h = nn.relu(standardized(BATCH.inputs @ first))
            for w in middle:
                h = h + nn.relu(standardized(h @ w))
        return loss(h @ last, BATCH.labels)

    expected = [np.square(g).sum() for g in jax.jit(jax.grad(written_out))(list(middle))]
    np.testing.assert_allclose(squared_gradients(arm), expected, rtol=2e-3)


def squared_gradients(arm: study.Arm, scale: float = 1.0) -> np.ndarray:
    """Return the squared gradients of a small network."""
    return np.asarray(jax.jit(lambda kernels: study.squared_gradients(arm, kernels, BATCH))(kernels(scale)))


def standardized(x: jax.Array) -> jax.Array:
    """Standardize features over the batch."""
    return (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5)


def test_batch_norm_makes_gradients_depend_on_the_scale_of_weights_as_its_inverse() -> None:
    arm = study.BATCH._replace(epsilon=1e-12)
    ones, twice = (squared_gradients(arm, scale) for scale in (1.0, 2.0))
    np.testing.assert_allclose(twice, ones / 4, rtol=1e-3)
    without = [squared_gradients(study.NONE, scale) for scale in (1.0, 2.0)]
    assert without[1][0] > 10 * without[0][0]


def profile(factor: float, first: float = 1.0) -> np.ndarray:
    """Make squared gradients that grow by a factor, and differ a little between seeds."""
    layers = np.arange(1, PLAN.depth + 1)
    seeds = np.array([[-0.01], [-0.005], [0.005], [0.01]])
    return first ** (1 + seeds) * (factor + seeds) ** -(layers - 1.0)


def found(
    batch: float = 1.49,
    *,
    none: float = 1.0,
    residual: float = 1.03,
    layer: float = 0.95,
    after: float = 1.48,
    sensitive: float = 1e15,
    spread: float = 0.0,
) -> study.Found:
    """Make measurements of given growths; `sensitive` is the factor of the gradient at twice the weights, no norm."""
    growths = {study.NONE: none, study.BATCH: batch, study.BATCH_RESIDUAL: residual, study.LAYER: layer}
    growths[study.LAYER_AFTER] = after
    profiles = {}
    for case in study.cases(PLAN):
        base = batch if case.arm == study.BATCH and case.scale == 1 else growths.get(case.arm, 1.0)
        if case.arm == study.BATCH and case.width == 256:
            base = batch + (mean_field.with_batch_norm(case.batch) - mean_field.with_batch_norm(64)) * (batch == 1.49)
        factor = sensitive if case.arm == study.NONE else 0.25
        profiles[case] = profile(base, 1.0 if case.scale == 1 else factor if case.scale > 1 else 1 / factor)
        if spread:
            profiles[case] = profiles[case] * np.exp(spread * np.array([-1, -1, 1, 1])[:, None] * np.arange(PLAN.depth))
    return profiles


def verdicts(found: study.Found) -> dict[str, Verdict]:
    """Judge, and return the verdicts by claim."""
    return {finding.claim.key: finding.verdict for finding in study.judge(PLAN, found).findings}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Verdict.HOLDS_WHEN),
        ({"residual": 1.3}, Verdict.FAILS),
        ({"batch": 1.0}, Verdict.HOLDS),
        ({"batch": 0.7, "residual": 0.7}, Verdict.FAILS),
        ({"spread": 0.5}, Verdict.UNSEEN),
    ],
)
def test_verdict_on_stable_gradients(changes: dict[str, float], expected: Verdict) -> None:
    assert verdicts(found(**changes))["stable"] == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Verdict.HOLDS_WHEN),  # the scale of the weights no longer counts
        ({"sensitive": 2.0}, Verdict.FAILS),
        ({"batch": 1.2, "none": 1.5, "sensitive": 2.0}, Verdict.HOLDS_WHEN),  # less growth
        ({"batch": 1.0, "none": 1.5, "sensitive": 2.0}, Verdict.HOLDS),
        ({"batch": 1.0}, Verdict.HOLDS),
        ({"batch": 1.0, "sensitive": 2.0}, Verdict.UNSEEN),  # nothing to cure
        ({"spread": 0.5}, Verdict.UNSEEN),
    ],
)
def test_verdict_on_the_cure(changes: dict[str, float], expected: Verdict) -> None:
    assert verdicts(found(**changes))["cures"] == expected


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Verdict.HOLDS_WHEN),
        ({"layer": 1.5, "after": 1.0}, Verdict.HOLDS_WHEN),
        ({"after": 1.0}, Verdict.HOLDS),
        ({"layer": 1.5}, Verdict.FAILS),
        ({"spread": 0.5}, Verdict.UNSEEN),
    ],
)
def test_verdict_on_layer_norm(changes: dict[str, float], expected: Verdict) -> None:
    assert verdicts(found(**changes))["layer-norm"] == expected


def test_condition_names_the_place_of_layer_norm() -> None:
    before, after = (study.judge(PLAN, found(**c)).findings[2].when for c in ({}, {"layer": 1.5, "after": 1.0}))
    assert before.startswith("the norm stands before the activation: 0.95")
    assert after.startswith("the norm stands after the activation: 1.50")


def test_bars_are_met_and_missed() -> None:
    bars = study.judge(PLAN, found()).bars
    assert len(bars) == 8
    assert [bar.text for bar in bars if not bar.met] == []
    missed = study.judge(PLAN, found(1.6, none=1.2, residual=1.2, layer=1.2, after=1.6)).bars
    assert [bar.text for bar in missed if bar.met] == ["growth, RMS norm before ReLU: 0.85 to 1.05"]


def test_sentences_follow_the_numbers() -> None:
    text = "\n".join(study.judge(PLAN, found()).sentences)
    assert "\nBatch norm: gradients explode towards the input, growth 1.490" in text
    assert "\nNo norm: gradients neither vanish nor explode, growth 1.000" in text
    assert "multiply the squared gradient of the first layer by 1e+15" in text
    other = "\n".join(study.judge(PLAN, found(0.7)).sentences)
    assert "\nBatch norm: gradients vanish towards the input, growth 0.700" in other
    unclear = "\n".join(study.judge(PLAN, found(spread=0.5)).sentences)
    assert "\nBatch norm: seeds do not tell whether gradients keep their size" in unclear


def test_one_value_without_an_interval_is_unclear() -> None:
    assert study.state(average([1.5, 1.5])) == "unclear"


@pytest.mark.slow
def test_command_writes_everything(tmp_path: Path) -> None:
    quick = dataclasses.replace(study.study.quick, depth=16, width=16, law_width=16, widths=(16,))
    main(dataclasses.replace(study.study, quick=quick), "", ["--quick", "--data", "digits", "--output", str(tmp_path)])
    written = {path.name for path in tmp_path.iterdir()}
    figures = {f"depth_at_init{end}" for end in (".svg", ".png", "-growth.svg", "-growth.png")}
    assert written == {"depth_at_init.txt", "depth_at_init.csv", "depth_at_init.json"} | figures
