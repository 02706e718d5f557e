"""Entropy of predictions, and the share of the largest class."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normlab.tools.adaptation.predictions import are_logits, entropy, largest_share


def test_entropy_and_its_gradient_are_those_by_hand() -> None:
    logits = jnp.array([[2.0, 0.0]])
    assert float(entropy(logits)) == pytest.approx(0.36533, abs=5e-6)
    np.testing.assert_allclose(jax.grad(entropy)(logits), [[-0.20999, 0.20999]], atol=5e-6)


def test_entropy_is_a_mean_over_predictions() -> None:
    logits = jnp.zeros((2, 3, 5)).at[0].set(jnp.array([1e4, 0, 0, 0, 0]))
    assert float(entropy(logits)) == pytest.approx(math.log(5) / 2)
    assert float(entropy(jnp.zeros((2, 5), jnp.bfloat16))) == pytest.approx(math.log(5))


def test_a_class_that_is_left_out_does_not_count() -> None:
    logits = jnp.array([[2.0, 0.0, -jnp.inf]])
    assert float(entropy(logits)) == pytest.approx(0.36533, abs=5e-6)
    np.testing.assert_allclose(jax.grad(entropy)(logits), [[-0.20999, 0.20999, 0]], atol=5e-6)
    assert math.isnan(entropy(jnp.array([[2.0, jnp.nan]])))


def test_the_share_is_that_of_the_largest_class() -> None:
    assert largest_share(jnp.array([[2.0, 1.0], [3.0, 0.0], [0.0, 1.0], [5.0, 4.0]])) == 0.75
    assert largest_share(jnp.eye(4).reshape(2, 2, 4)) == 0.25
    assert math.isnan(largest_share(jnp.ones((1, 4))))


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (jnp.ones((2, 3)), True),
        (np.ones((2, 4, 3), np.float32), True),
        (jnp.ones((2, 1)), False),
        (jnp.ones(3), False),
        (jnp.ones((2, 3), int), False),
        ((jnp.ones((2, 3)),), False),
    ],
)
def test_logits_are_arrays_of_numbers_for_classes(output: object, expected: bool) -> None:
    assert are_logits(output) is expected
