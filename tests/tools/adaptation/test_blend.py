"""Statistics between kept ones and those of a batch."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normlab.tools.adaptation.blend import BATCH, Blend
from normlab.tools.estimation.parts import Part
from tests.tools.nets import refused

KEPT = {"mean": jnp.array([0.0]), "var": jnp.array([1.0])}
OF_BATCH = Part(48.0, jnp.array([2.0]), jnp.array([0.0]), jnp.array([4.0]))


def blend(weight: float, *, between: bool = False) -> tuple[float, float]:
    found = Blend(weight, between=between).statistics(KEPT, OF_BATCH, weight, 0.0)
    return float(found["mean"][0]), float(found["var"][0])


def test_statistics_are_those_by_hand() -> None:
    assert blend(0.25) == (0.5, 1.75)
    assert blend(0.25, between=True) == (0.5, 2.5)
    for between in (False, True):
        assert blend(0.0, between=between) == (0.0, 1.0)
        assert blend(1.0, between=between) == (2.0, 4.0)


def test_the_weight_of_a_batch_is_its_share_of_the_examples() -> None:
    assert Blend(source_count=16).weight(48) == 0.75
    assert Blend(source_count=16).weight(16) == 0.5
    assert Blend(alpha=0.25).weight(48) == 0.25
    assert BATCH.weight(1) == 1


def test_a_deviation_has_epsilon_inside() -> None:
    kept = {"mean": jnp.array([0.0]), "std": jnp.sqrt(jnp.array([1.5]))}
    found = Blend(0.25).statistics(kept, OF_BATCH, 0.25, 0.5)
    assert found.keys() == {"mean", "std"}
    np.testing.assert_allclose(found["std"] ** 2, 1.75 + 0.5, rtol=1e-6)


def test_a_norm_that_keeps_a_mean_alone_gets_no_more() -> None:
    assert Blend(0.5).statistics({"mean": KEPT["mean"]}, OF_BATCH, 0.5, 0.0) == {"mean": 1.0}


def test_statistics_in_half_precision_are_blended_in_float32() -> None:
    found = Blend(0.5).statistics({"mean": jnp.array([1.0], jnp.bfloat16)}, OF_BATCH, 0.5, 0.0)
    assert found["mean"].dtype == jnp.float32


@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=6), st.integers(1, 20))
def test_with_the_distance_of_the_means_it_is_the_variance_of_all_examples(values: list[float], count: int) -> None:
    source = np.random.default_rng(count).normal(1, 2, count)
    kept = {"mean": jnp.array([source.mean()]), "var": jnp.array([source.var()])}
    batch = Part(len(values), jnp.array([np.mean(values)]), jnp.array([0.0]), jnp.array([np.var(values)]))
    rule = Blend(source_count=count, between=True)
    found = rule.statistics(kept, batch, rule.weight(len(values)), 0.0)
    together = np.concatenate([source, values])
    np.testing.assert_allclose(found["mean"][0], together.mean(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found["var"][0], together.var(), rtol=1e-5, atol=1e-5)


def test_a_weight_is_given_once_and_in_range() -> None:
    remedy = (
        "Give `alpha`, the weight of the batch, or `source_count`, the examples that the running statistics count as."
    )
    with refused(f"Expected either `alpha` or `source_count`, got neither. {remedy}"):
        Blend()
    with refused(f"Expected either `alpha` or `source_count`, got both. {remedy}"):
        Blend(0.5, 16)
    for alpha in (-0.1, 1.5, float("nan"), "half"):
        with refused("Expected `alpha` of `Blend` to be a number in [0, 1], or None, got "):
            Blend(alpha)
    with refused("Expected `source_count` of `Blend` to be a positive number, or None, got 0. Give one such as 0.1."):
        Blend(source_count=0)
    with refused("Expected `between` of `Blend` to be true or false, got 2. Write one of them."):
        Blend(0.5, between=2)


@pytest.mark.parametrize("alpha", [0, 1, np.float32(0.5)])
def test_weights_of_any_kind_of_number(alpha: float) -> None:
    assert Blend(alpha).weight(3) == alpha
