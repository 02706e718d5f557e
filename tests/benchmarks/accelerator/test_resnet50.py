"""The stage `resnet50`: its rows, and shares of a step."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.accelerator import resnet50
from benchmarks.accelerator.stage import Clock


@pytest.mark.slow
def test_a_cell_has_four_steps_and_their_shares() -> None:
    found = list(resnet50.rows(Clock(300.0), tiny=True, skip=()))
    assert [(row["kind"], row.get("norm")) for row in found] == [
        *(("step", name) for name in resnet50.NORMS),
        ("share", None),
    ]
    assert all(row["dtype"] == "bfloat16" for row in found)
    assert not [row for row in found if "error" in row]


@pytest.mark.slow
def test_without_a_contender_its_shares_are_missing() -> None:
    *steps, shares = resnet50.rows(Clock(300.0), tiny=True, skip={"Flax", "frozen"})
    assert [row["norm"] for row in steps] == ["ours", "none"]
    assert shares["batch_norm"] is not None and shares["flax_batch_norm"] is None and shares["statistics"] is None


def test_cells_without_time_are_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resnet50, "of_cell", lambda cell, wanted, tiny: iter([{"kind": "share", "took": 5}]))
    monkeypatch.setattr(resnet50, "time", SimpleNamespace(monotonic=iter(range(0, 100, 5)).__next__))
    clock: Any = SimpleNamespace(left=iter([9.0, 5.0, 4.9, *[-1.0] * 5]).__next__)
    found = list(resnet50.rows(clock, tiny=False, skip=()))
    assert [row.get("took") for row in found] == [5, 5, *[None] * 6]
    assert {str(row.get("error")) for row in found[2:]} == {"TimeoutError: not begun, the cell before took 5 s"}


def test_a_share_is_what_is_saved() -> None:
    assert resnet50.shares({"ours": 4.0, "Flax": 5.0, "none": 3.0, "frozen": 3.5}) == {
        "batch_norm": 0.25,
        "statistics": 0.125,
        "flax_batch_norm": 0.4,
        "ours_to_flax": 0.8,
    }


@pytest.mark.parametrize(
    ("name", "shape", "expected"), [("scale", (3,), [1, 1, 1]), ("var", (2,), [1, 1]), ("mean", (2,), [0, 0])]
)
def test_vectors_start_as_norms_do(name: str, shape: tuple[int, ...], expected: list[int]) -> None:
    path = (jax.tree_util.DictKey(name),)
    found = resnet50.drawn(np.random.default_rng(0), path, jax.ShapeDtypeStruct(shape, jnp.float32))
    assert (found.tolist(), found.dtype) == (expected, np.float32)


def test_kernels_are_drawn_for_their_inputs() -> None:
    shape = jax.ShapeDtypeStruct((3, 3, 64, 32), jnp.float32)
    found = resnet50.drawn(np.random.default_rng(0), (jax.tree_util.DictKey("kernel"),), shape)
    assert found.std() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)


def test_frozen_statistics_leave_scale_and_bias() -> None:
    layer, x = resnet50.NORMS["frozen"].linen(train=True), jnp.full((2, 3), 5.0)
    variables = layer.init(jax.random.key(0), x)
    assert set(variables["params"]) == {"scale", "bias"}
    y, after = layer.apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_array_equal(after["batch_stats"]["mean"], 0)
    assert jnp.allclose(jnp.asarray(y), 5.0, rtol=1e-4)  # by a mean of 0 and a variance of 1
