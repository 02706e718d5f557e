"""The numbers behind the checks, against definitions."""

import math
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import stats

from normlab.doctor.checks.kinds import centres_each_feature
from normlab.doctor.checks.static import change
from normlab.doctor.checks.statistics import survival
from normlab.doctor.measure import CallNumbers, measured
from normlab.doctor.places import relative_change
from normlab.doctor.pooled import gap, pooled
from normlab.doctor.stepping import updates
from normlab.doctor.thresholds import Thresholds
from normlab.linen import BatchNorm
from normlab.tools import Site, Source, sites

RNG = np.random.default_rng(0)


def site_of(x: Any, norm: nn.Module | None = None) -> Site:
    norm = norm or nn.BatchNorm(use_running_average=False)
    variables = norm.init(jax.random.key(0), x)
    return sites(norm, variables, x)[0]


def part(x: Any, mask: Any = None, norm: nn.Module | None = None) -> CallNumbers:
    x = jnp.asarray(x)
    return measured(site_of(x, norm), Thresholds(), x, None if mask is None else jnp.asarray(mask), x)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_moments_of_a_call(offset: float) -> None:
    x = (offset + RNG.normal(size=(16, 5, 3))).astype(np.float32)
    wide = x.astype(np.float64)
    found = part(x)
    np.testing.assert_allclose(found.mean, wide.mean((0, 1)), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(found.var, wide.var((0, 1)), rtol=1e-4)
    of_example = wide.mean(1)
    np.testing.assert_allclose(found.between, np.square(of_example - of_example.mean(0)).sum(0), rtol=1e-3)
    assert float(found.examples) == 16 and float(found.elements) == 80
    assert float(found.largest) == pytest.approx(np.abs(x).max())


def test_masked_elements_do_not_count() -> None:
    x = RNG.normal(size=(8, 6, 3)).astype(np.float32)
    mask = RNG.random((8, 6, 1)) < 0.6
    mask[0] = False
    found = part(np.where(mask, x, np.nan), mask)
    counted = np.broadcast_to(mask, x.shape)
    kept = x[counted].reshape(-1, 3).astype(np.float64)
    np.testing.assert_allclose(found.mean, kept.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.var, kept.var(0), rtol=1e-5)
    assert float(found.examples) == 7 and not np.asarray(found.broken).any()
    assert np.isfinite(np.asarray(found.between)).all()


def n_eff(x: Any, batches: int = 1, norm: nn.Module | None = None) -> float:
    parts = [part(one, norm=norm) for one in np.split(np.asarray(x, np.float32), batches)]
    return pooled(site_of(jnp.asarray(x)[: len(x) // batches], norm), [[one] for one in parts]).n_eff


def test_rows_are_worth_their_number() -> None:
    assert n_eff(RNG.normal(size=(32, 50))) == pytest.approx(32, rel=1e-4)
    assert n_eff(RNG.normal(size=(32, 50)), batches=4) == pytest.approx(8, rel=1e-4)


def test_equal_positions_are_worth_one() -> None:
    x = np.broadcast_to(RNG.normal(size=(16, 1, 1, 20)), (16, 6, 6, 20))
    assert n_eff(x) == pytest.approx(16, rel=1e-3)


def test_independent_positions_are_worth_their_number() -> None:
    assert n_eff(RNG.normal(size=(16, 6, 6, 200))) == pytest.approx(16 * 36, rel=0.15)


def test_a_ghost_batch_is_worth_its_own_examples() -> None:
    ghost = BatchNorm(ghost_batch_size=8, use_running_average=False)
    assert n_eff(RNG.normal(size=(32, 50)), norm=ghost) == pytest.approx(8, rel=1e-4)


def test_single_examples_are_compared_between_batches() -> None:
    x = np.broadcast_to(RNG.normal(size=(12, 1, 400)), (12, 5, 400)) + 0.1 * RNG.normal(size=(12, 5, 400))
    assert n_eff(x, batches=12) == pytest.approx(1, rel=0.1)


def test_pooled_moments_are_those_of_all_elements() -> None:
    x = RNG.normal(size=(40, 3)) + np.repeat([[0.0], [3.0]], 20, axis=0)
    found = pooled(site_of(jnp.asarray(x[:20])), [[part(one.astype(np.float32))] for one in np.split(x, 2)])
    np.testing.assert_allclose(found.mean, x.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.var, x.var(0), rtol=1e-5)
    assert found.batch_means.shape == (2, 3) and found.examples == 20


def test_the_gap_is_a_ratio_of_root_mean_squares() -> None:
    y = [SimpleNamespace(places=np.array([3.0, 4.0])), SimpleNamespace(places=np.array([0.0, 0.0]))]
    z = [SimpleNamespace(places=np.array([0.0, 4.0])), SimpleNamespace(places=np.array([0.0, 0.0]))]
    one: Any = [[y[0]], [y[1]]]
    other: Any = [[z[0]], [z[1]]]
    assert gap(one, other) == pytest.approx(3 / 5)
    assert gap(one, one) == 0
    assert math.isnan(gap([[y[1]]], other)) and math.isnan(gap(one, [[z[0]]]))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("k", [0, 1, 2, 3])
@pytest.mark.parametrize("momentum", [0.5, 0.9, 0.999])
def test_updates_of_a_step_are_counted(k: int, momentum: float) -> None:
    old, batch = RNG.normal(size=20), RNG.normal(size=20)
    new = batch + momentum**k * (old - batch)
    assert updates(old, new, batch, momentum) == pytest.approx(k, abs=1e-6)
    dropped = batch + 0.05 * RNG.normal(size=20)  # seen under another mask of dropout
    assert updates(old, new, dropped, momentum) == pytest.approx(k, abs=0.25)


def test_statistics_that_are_the_batch_already_tell_nothing() -> None:
    batch = RNG.normal(size=20)
    assert math.isnan(updates(batch, batch, batch, 0.9))


def test_the_tail_of_f_is_that_of_scipy() -> None:
    ratio = np.array([0.5, 1.0, 2.0, 4.0, 9.0])
    np.testing.assert_allclose(survival(ratio, 7, 8 * 31), stats.f.sf(ratio, 7, 8 * 31), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize(
    ("norm", "centres"),
    [
        (nn.BatchNorm(use_running_average=False), True),
        (nn.InstanceNorm(), True),
        (nn.GroupNorm(num_groups=4), True),
        (nn.GroupNorm(num_groups=2), False),
        (nn.LayerNorm(), False),
        (nn.RMSNorm(), False),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, nn.Module) else str(one),
)
def test_kinds_that_centre_each_feature(norm: nn.Module, centres: bool) -> None:
    assert centres_each_feature(site_of(jnp.ones((2, 3, 3, 4)), norm)) is centres


class Through(nn.Module):
    """Layers between a linear layer, a dropout, and a norm."""

    steps: tuple[str, ...]

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Conv(4, (3, 3), name="conv")(x)
        x = nn.Dropout(0.5, deterministic=False, name="dropout")(x)
        for step in self.steps:
            if step == "dense":
                x = nn.Dense(4)(x)
            elif step == "layer":
                x = nn.LayerNorm()(x)
            elif step == "add":
                x = x + nn.relu(x)
            elif step == "first":
                x = x.transpose(0, 3, 1, 2)
            elif step == "turn":
                x = x.transpose(0, 2, 1, 3)
        return nn.BatchNorm(use_running_average=False, name="norm")(x)


@pytest.mark.parametrize(
    ("steps", "dropout", "order"),
    [
        ((), "dropout", ()),
        (("add", "dense", "add"), "dropout", ()),
        (("layer", "dense"), None, ()),
        (("dense", "first"), "dropout", (0, 3, 1, 2)),
        (("dense", "turn"), "dropout", (0, 2, 1, 3)),
        (("dense", "turn", "first"), "dropout", (0, 3, 2, 1)),
        (("dense", "first", "add"), "dropout", ()),
    ],
)
def test_what_a_norm_is_computed_from(steps: tuple[str, ...], dropout: str | None, order: tuple[int, ...]) -> None:
    model, x = Through(steps), jax.ShapeDtypeStruct((2, 4, 4, 3), jnp.float32)
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = jax.eval_shape(model.init, rngs, x)
    site = sites(model, variables, x, rngs=rngs).by_path["norm"]
    assert site.dropout == dropout
    assert site.transposed[1] == order
    if order:
        assert site.transposed[0] == Source("linear", "Dense_0", "Dense")
        moved = np.zeros((2, 3, 5, 7)).transpose(order).shape
        assert moved == tuple((2, 3, 5, 7)[axis] for axis in order)


def test_changes_of_what_is_not_finite() -> None:
    assert np.isnan(relative_change([np.inf, 1.0], [np.inf, 1.0]))
    assert relative_change([1.0], [np.inf]) == np.inf
    assert np.isnan(change([np.ones(2), np.array([np.inf])], [np.ones(2), np.array([np.inf])]))


def test_the_bound_of_the_modes_is_what_tolerated_statistics_explain() -> None:
    bounds, rng = Thresholds(), np.random.default_rng(0)
    lag, log_ratio = rng.normal(size=(2, 100_000))
    lag *= bounds.lag / np.median(np.abs(lag))
    log_ratio *= np.log(bounds.variance_ratio) / np.median(np.abs(log_ratio))
    tolerated = np.sqrt(np.mean(np.square(lag) + np.square(log_ratio / 2)))
    assert bounds.gap == pytest.approx(tolerated, rel=0.02)
