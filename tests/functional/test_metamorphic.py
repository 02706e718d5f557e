"""Properties that hold whatever the numbers: invariances, and norms that are special cases of one another."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normlab import functional as F
from normlab import norms
from tests.support.registered import ALL

pytestmark = pytest.mark.usefixtures("strict")

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def normal(*shape: int, seed: int = 0) -> jax.Array:
    """Normal values."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


X = normal(4, 3, 2, 8)
SCALE, BIAS = normal(8, seed=1), normal(8, seed=2)


@pytest.mark.parametrize("norm", ["layer", "rms", "group", "instance", "batch"])
def test_blind_to_the_size_of_the_input_and_to_its_offset_unless_rms(norm: str) -> None:
    x = normal(4, 3, 2, 64)
    module = norms.get(norm).linen(train=True, epsilon=0.0)
    variables = module.init(jax.random.key(0), x)
    f = jax.jit(lambda x: module.apply(variables, x, mutable=["batch_stats"])[0])
    chex.assert_trees_all_close(f(7 * x), f(x), **CLOSE)
    shifted = f(x + 3)
    if norm == "rms":
        assert float(jnp.abs(shifted - f(x)).max()) > 0.5
    else:
        chex.assert_trees_all_close(shifted, f(x), **CLOSE)


def test_gradient_of_rms_norm_is_orthogonal_to_its_input() -> None:
    _, pull = jax.vjp(lambda x: F.rms_norm(x, epsilon=0.0), X)
    np.testing.assert_allclose((pull(normal(*X.shape, seed=3))[0] * X).sum(-1), 0.0, atol=1e-5)


def test_one_group_is_layer_norm_over_positions_and_features() -> None:
    expected = F.layer_norm(X, SCALE, BIAS, axis=(1, 2, 3), feature_axes=-1)
    chex.assert_trees_all_close(F.group_norm(X, SCALE, BIAS, num_groups=1), expected, **CLOSE)


def test_a_group_for_each_feature_is_instance_norm() -> None:
    expected = F.instance_norm(X, SCALE, BIAS)
    chex.assert_trees_all_close(F.group_norm(X, SCALE, BIAS, num_groups=8), expected, **CLOSE)


@pytest.mark.parametrize("shape", [(4, 8), (4, 3, 2, 8)], ids=str)
def test_groups_are_of_neighbouring_features(shape: tuple[int, ...]) -> None:
    x = normal(*shape)
    axis = tuple(range(1, len(shape)))
    parts = [F.layer_norm(part, axis=axis) for part in jnp.split(x, 4, axis=-1)]
    chex.assert_trees_all_close(F.group_norm(x, num_groups=4), jnp.concatenate(parts, -1), **CLOSE)
    chex.assert_trees_all_close(F.group_norm(x, group_size=2), jnp.concatenate(parts, -1), **CLOSE)


def test_instance_norm_of_one_position_is_the_bias() -> None:
    with F.one_element():
        y = F.instance_norm(X[:, :1, :1], SCALE, BIAS)
    chex.assert_trees_all_close(y, jnp.broadcast_to(BIAS, (4, 1, 1, 8)))


RUNNING = F.RenormStatistics(normal(8, seed=3), jnp.abs(normal(8, seed=4)) + 0.5)


def test_batch_renorm_that_may_not_correct_is_batch_norm() -> None:
    y, moments = F.batch_renorm(X, RUNNING, SCALE, BIAS, r_max=1.0, d_max=0.0)
    chex.assert_trees_all_close((y, moments), F.batch_norm(X, SCALE, BIAS), **CLOSE)


def test_batch_renorm_without_limits_gives_the_output_of_the_running_statistics() -> None:
    y, _ = F.batch_renorm(X, RUNNING, SCALE, BIAS, r_max=float("inf"), d_max=float("inf"))
    expected = F.normalize(X, RUNNING.mean, RUNNING.std**2, SCALE, BIAS, epsilon=0.0)
    chex.assert_trees_all_close(y, expected, rtol=1e-4, atol=1e-4)


def test_batch_norm_of_two_gives_only_their_order() -> None:
    delta = normal(1, 8)
    y, _ = F.batch_norm(5 + jnp.concatenate([delta, -delta]), epsilon=1e-2)
    expected = delta / jnp.sqrt(delta**2 + 1e-2)
    chex.assert_trees_all_close(y, jnp.concatenate([expected, -expected]), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("norm", ["batch", "renorm"])
def test_ghost_batches_are_separate_calls(norm: str, masked: bool) -> None:
    x, size = normal(7, 3, 8), 3
    where = jnp.asarray(np.random.default_rng(5).random((7, 3, 1)) < 0.7) if masked else None
    f = F.batch_norm if norm == "batch" else functools.partial(F.batch_renorm, running=RUNNING)
    y, moments = f(x, scale=SCALE, bias=BIAS, where=where, ghost_batch_size=size)
    starts = range(0, 7, size)
    parts = [
        f(x[i : i + size], scale=SCALE, bias=BIAS, where=None if where is None else where[i : i + size]) for i in starts
    ]
    chex.assert_trees_all_close(y, jnp.concatenate([part for part, _ in parts]), **CLOSE)
    counts = jnp.stack([jnp.broadcast_to(jnp.asarray(m.count), (8,)) for _, m in parts])
    for name in ("mean", "var", "unbiased_var"):
        average = (counts * jnp.stack([getattr(m, name) for _, m in parts])).sum(0) / counts.sum(0)
        chex.assert_trees_all_close(getattr(moments, name), average, **CLOSE)


def test_a_ghost_batch_as_large_as_the_batch_is_the_batch() -> None:
    for size in (4, 5):
        chex.assert_trees_all_equal(F.batch_norm(X, ghost_batch_size=size), F.batch_norm(X))


@pytest.mark.parametrize("norm", ["batch", "layer", "rms", "group", "instance"])
def test_a_mask_is_the_same_as_leaving_out(norm: str) -> None:
    x = normal(4, 6, 64)
    module = norms.get(norm).linen(train=True)
    if norm in ("layer", "rms"):  # what is reduced is what can be left out: here positions
        module = module.clone(reduction_axes=(1, 2))
    variables = module.init(jax.random.key(0), x)
    mask = (jnp.arange(6) < 4).reshape(1, 6, 1)
    y, state = module.apply(variables, x, mask=mask, mutable=["batch_stats"])
    expected = module.apply(variables, x[:, :4], mutable=["batch_stats"])
    chex.assert_trees_all_close((y[:, :4], state), expected, **CLOSE)


@pytest.mark.parametrize("norm", ALL)
def test_models_under_vmap_are_never_mixed(norm: str) -> None:
    module = norms.get(norm).linen(train=True)
    xs = jnp.stack([normal(4, 2, 64, seed=5), 100 + 10 * normal(4, 2, 64, seed=6)])
    variables = jax.vmap(lambda key, x: module.init(key, x))(jax.random.split(jax.random.key(0), 2), xs)
    dy = normal(4, 2, 64, seed=7)

    def run(variables: object, x: jax.Array) -> object:
        out, pull, state = jax.vjp(lambda x: module.apply(variables, x, mutable=["batch_stats"]), x, has_aux=True)
        return out, state, pull(dy)

    together = jax.jit(jax.vmap(run))(variables, xs)
    for i in range(2):
        alone = jax.jit(run)(jax.tree.map(lambda a, i=i: a[i], variables), xs[i])
        chex.assert_trees_all_close(jax.tree.map(lambda a, i=i: a[i], together), alone, rtol=1e-4, atol=1e-4)


def test_the_cumulative_average_is_the_plain_mean_of_all_batches() -> None:
    state = F.RunningStatistics(jnp.zeros(8), jnp.ones(8), jnp.zeros((), jnp.int32))
    batches = normal(5, 6, 8)
    for batch in batches:
        state = F.update_batch_norm(state, F.batch_norm(batch)[1], momentum=None)
    chex.assert_trees_all_close(state.mean, batches.mean((0, 1)), **CLOSE)
    chex.assert_trees_all_close(state.var, batches.var(1).mean(0), **CLOSE)
    assert state.step is not None and int(state.step) == 5


def test_running_variance_of_pairs_is_half_the_variance_unless_unbiased() -> None:
    x = normal(4000, 2, 8)

    def average(unbiased: bool) -> jax.Array:
        def step(state: F.RunningStatistics, batch: jax.Array) -> tuple[F.RunningStatistics, None]:
            moments = F.batch_norm(batch)[1]
            return F.update_batch_norm(state, moments, momentum=None, unbiased_running_var=unbiased), None

        start = F.RunningStatistics(jnp.zeros(8), jnp.ones(8), jnp.zeros((), jnp.int32))
        return jax.lax.scan(step, start, x)[0].var

    np.testing.assert_allclose(average(False), 0.5, atol=0.05)
    np.testing.assert_allclose(average(True), 1.0, atol=0.1)
