"""Comparison of outputs, tolerances, and the search for the first bad item."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normlab.tools.folding.verify import compare, default_tolerance, first_bad


def test_a_difference_is_measured_by_the_largest_output() -> None:
    expected, found = {"a": jnp.array([1.0, -8.0]), "b": jnp.zeros(0)}, {"a": jnp.array([1.5, -8.0]), "b": jnp.zeros(0)}
    result = compare(expected, found, 0.1)
    assert (result.difference, result.limit, result.close) == (0.5, pytest.approx(0.8), True)
    assert not compare(expected, found, 0.05).close


def test_small_outputs_are_measured_by_one() -> None:
    result = compare(jnp.array([1e-3]), jnp.array([2e-3]), 1e-2)
    assert result.limit == 1e-2 and result.close
    assert compare((), (), 1e-5).difference == 0


def test_nan_is_not_close() -> None:
    assert not compare(jnp.array([1.0, 2.0]), jnp.array([jnp.nan, 2.0]), 1e-2).close
    assert not compare(jnp.array([jnp.nan]), jnp.array([1.0]), 1e-2).close


def test_half_precision_is_compared_in_float64() -> None:
    assert compare(jnp.array([1.0], jnp.bfloat16), jnp.array([1.0078125], jnp.bfloat16), 1e-2).difference == 0.0078125


@pytest.mark.parametrize(
    ("dtypes", "tolerance"),
    [
        (["float32"], 1e-5),
        (["float32", "bfloat16"], 5e-2),
        (["float16"], 5e-2),
        (["float8_e4m3fn"], 5e-2),
        (["float64"], 1e-12),
        (["float64", "float32"], 1e-5),
        (["int32", "float64"], 1e-12),
        (["int8"], 1e-5),
    ],
)
def test_tolerance_of_the_least_precise_dtype(dtypes: list[str], tolerance: float) -> None:
    assert default_tolerance([jnp.dtype(one) for one in dtypes]) == tolerance


@given(st.integers(1, 40), st.data())
def test_the_first_bad_item(count: int, data: st.DataObject) -> None:
    guilty = data.draw(st.sets(st.integers(0, count - 1), min_size=1))
    asked: list[int] = []

    def is_bad(first: object) -> bool:
        assert isinstance(first, list)
        asked.append(len(first))
        return any(item in guilty for item in first)

    assert first_bad(list(range(count)), is_bad) == min(guilty)
    assert len(asked) <= 1 + int(np.ceil(np.log2(count))) + 1


def test_nothing_is_guilty_of_what_is_bad_before() -> None:
    assert first_bad([1, 2], lambda first: True) is None
