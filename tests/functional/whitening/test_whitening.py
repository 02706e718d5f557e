"""Whitening: published vectors, what it makes of correlated features, its exact derivative, and what it refuses."""

import functools
import pickle
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from normlab import functional as F
from normlab import norms
from normlab.functional import StatisticsError
from normlab.functional.whitening.inverse_root import inverse_root
from tests.support import references

pytestmark = pytest.mark.usefixtures("strict")

X = np.array("0.5 -1.2 2 0.3 1.5 0.4 -0.7 1.1 -0.8 2.2 0.9 -1.6 0.2 -0.5 1.3 0.6".split(), float).reshape(2, 2, 4)
DY = np.array("0.3 -0.7 0.2 0.5 -0.4 0.6 0.1 -0.2 0.8 0.1 -0.3 0.4 -0.6 0.9 -0.5 0.7".split(), float).reshape(2, 2, 4)
Y = """-.22091320 -1.19260161 1.20481937 .37420339 1.65815859 .49928368 -1.49105857 .77026886 -1.00893095 1.36841990
    -.23380456 -1.71497571 -.42831445 -.67510197 .52004376 .57050346"""
DX = """.42772376 -.44569512 .26834310 -.01275317 .00542800 -.04601949 .03382951 -.19562776 .17277558 -.08636167
    .15350165 -.01600389 -.60592735 .57807628 -.45567427 .22438482"""
W = "1.39592564 .30196635 .30196635 .86869934 1.04377159 .15288168 .15288168 1.01105750"
BARE = "use_scale=False,use_bias=False"


def numbers(text: str, *shape: int) -> np.ndarray:
    return np.array(text.split(), float).reshape(shape)


def normal(*shape: int, seed: int = 0, offset: float = 0.0) -> jax.Array:
    return jnp.asarray(offset + np.random.default_rng(seed).normal(size=shape))


def correlated(*shape: int, seed: int = 0) -> jax.Array:
    """Draw features of which each has a part of the one before it."""
    x = np.random.default_rng(seed).normal(size=shape)
    return jnp.asarray(np.cumsum(x, -1) + 3, jnp.float32)


def trained(norm: str, x: jax.Array, mask: Any = None) -> Any:
    """Output, and state that has forgotten its start, of a norm without scale and bias."""
    options = {} if norm.startswith("group") else {"momentum": 0.0}
    module = norms.get(f"{norm},{BARE}").linen(train=True, **options)
    return module.apply(module.init(jax.random.key(0), x), x, mask=mask, mutable=["batch_stats"])


@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
def test_vectors(wide: bool) -> None:
    with jax.enable_x64(wide):
        dtype, digits = (np.float64, 2e-8) if wide else (np.float32, 1e-6)

        @jax.jit
        def run(x: jax.Array, dy: jax.Array) -> Any:
            y, pull, state = jax.vjp(functools.partial(trained, "whiten:group_size=2"), x, has_aux=True)
            return y, pull(dy)[0], state

        y, dx, state = run(jnp.asarray(X, dtype), jnp.asarray(DY, dtype))
        np.testing.assert_allclose(y, numbers(Y, 2, 2, 4), rtol=digits, atol=digits)
        np.testing.assert_allclose(dx, numbers(DX, 2, 2, 4), rtol=digits, atol=digits)
        np.testing.assert_allclose(state["batch_stats"]["matrix"], numbers(W, 2, 2, 2), rtol=max(digits, 1e-6))
        np.testing.assert_allclose(state["batch_stats"]["mean"], X.mean((0, 1)), rtol=1e-6)


def test_the_reference_has_the_vectors() -> None:
    state = {"mean": np.zeros(4), "matrix": np.zeros((2, 2, 2))}
    y, after = references.NORMS["whiten"](X, state, group_size=2, momentum=0.0)
    np.testing.assert_allclose(y, numbers(Y, 2, 2, 4), atol=6e-9)
    np.testing.assert_allclose(after["matrix"], numbers(W, 2, 2, 2), atol=6e-9)


def test_groups_of_one_feature_are_batch_norm() -> None:
    x, scale, bias = correlated(6, 3, 4), jnp.arange(1.0, 5.0), jnp.arange(4.0)
    y, batch = F.whiten(x, scale, bias, group_size=1, exact=True)
    expected, moments = F.batch_norm(x, scale, bias)
    chex.assert_trees_all_close((y, batch.mean), (expected, moments.mean), rtol=1e-5, atol=1e-5)
    newton, _ = F.whiten(x, scale, bias, group_size=1)
    chex.assert_trees_all_close(newton, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_features_of_a_group_are_uncorrelated_and_those_of_two_groups_need_not_be(offset: float) -> None:
    x = correlated(64, 8) + offset
    y, _ = F.whiten(x, group_size=4, exact=True, epsilon=0.0)
    product = np.asarray(y.T @ y) / 64
    for group in (slice(0, 4), slice(4, 8)):
        np.testing.assert_allclose(product[group, group], np.eye(4), atol=3e-5)
    assert np.abs(product[:4, 4:]).max() > 0.1
    more = F.whiten(x, group_size=4, steps=12, epsilon=0.0)[0]
    np.testing.assert_allclose(more, y, atol=1e-3)


def test_five_steps_leave_small_directions_short_of_variance_one() -> None:
    for share, steps, variance in [(1 / 2, 5, 1.0), (1 / 64, 5, 0.59), (1 / 8, 3, 0.77), (1 / 64, 3, 0.16)]:
        s = jnp.diag(jnp.asarray([share, 1 - share]))[None]
        w = inverse_root(s, steps=steps, exact=False, epsilon=0.0)[0]
        np.testing.assert_allclose((w @ s[0] @ w)[0, 0], variance, atol=0.01)


def test_group_whitening_leaves_no_two_groups_of_an_example_correlated() -> None:
    x = correlated(3, 5, 8)
    y = F.group_whiten(x, num_groups=4, exact=True, epsilon=0.0)
    rows = np.moveaxis(np.asarray(y).reshape(3, 5, 4, 2), 2, 1).reshape(3, 4, 10)
    for each in rows:
        np.testing.assert_allclose(each @ each.T / 10, np.eye(4), atol=1e-4)
        np.testing.assert_allclose(each.mean(-1), 0, atol=1e-5)
    chex.assert_trees_all_close(F.group_whiten(x[1:2], num_groups=4, exact=True, epsilon=0.0), y[1:2], atol=1e-5)


def root_of(values: list[float], turned: bool) -> jax.Array:
    """Return a matrix with these eigenvalues."""
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0] if turned else np.eye(3)
    return jnp.asarray(q @ np.diag(values) @ q.T)[None]


@pytest.mark.parametrize("values", [[1.0, 1.0, 1.0], [2.0, 0.5, 0.5], [1.0, 2.0, 3.0]], ids=str)
def test_the_exact_root_has_derivatives_where_eigenvalues_are_equal(values: list[float]) -> None:
    with jax.enable_x64(True):
        s, along, dy = root_of(values, turned=True), normal(1, 3, 3), normal(1, 3, 3, seed=1)
        along = along + jnp.swapaxes(along, -1, -2)

        @jax.jit
        def loss(s: jax.Array) -> jax.Array:
            return (jnp.tanh(inverse_root(s, steps=1, exact=True, epsilon=0.0)) * dy).sum()

        gradient = jax.jit(jax.grad(loss))
        h = 1e-5
        difference = (loss(s + h * along) - loss(s - h * along)) / (2 * h)
        np.testing.assert_allclose(jnp.vdot(gradient(s), along), difference, rtol=1e-7)
        second = jax.jit(lambda s: jax.jvp(gradient, (s,), (along,))[1])(s)
        expected = (gradient(s + h * along) - gradient(s - h * along)) / (2 * h)
        np.testing.assert_allclose(second, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("norm", ["whiten:group_size=4,exact=True", "whiten:group_size=4", "group_whiten:num_groups=2"])
@pytest.mark.parametrize("x", [np.zeros((6, 2, 8)), np.full((6, 2, 8), 7.0)], ids=["zero", "constant"])
def test_a_constant_gives_zero_and_a_finite_gradient(norm: str, x: np.ndarray) -> None:
    y, pull = jax.vjp(lambda x: trained(norm, x)[0], jnp.asarray(x, jnp.float32))
    assert not y.any()
    chex.assert_tree_all_finite(pull(normal(6, 2, 8).astype(jnp.float32)))


@pytest.mark.parametrize("average", ["matrix", "covariance"])
@pytest.mark.parametrize("exact", [False, True], ids=["newton", "exact"])
def test_evaluation_by_the_statistics_of_a_batch_is_training_on_it(average: str, exact: bool) -> None:
    x, norm = correlated(16, 8), norms.get(f"whiten:group_size=4,exact={exact},momentum=0.0", average=average)
    variables = norm.linen(train=True).init(jax.random.key(0), x)
    y, after = norm.linen(train=True).apply(variables, x, mutable=["batch_stats"])
    evaluated = norm.linen(train=False).apply({**variables, **after}, x)
    chex.assert_trees_all_close(evaluated, y, rtol=1e-4, atol=1e-4)
    state: Any = after["batch_stats"]
    by = F.whiten_by(x, state["mean"], state["matrix"])
    assert bool(jnp.allclose(by, y, atol=1e-4)) == (average == "matrix")


@pytest.mark.parametrize("rows", [(6, 1, 1), (6, 2, 8)], ids=["examples", "elements"])
@pytest.mark.parametrize("norm", ["whiten:group_size=4", "whiten:group_size=4,exact=True"])
def test_devices_are_one_batch(norm: str, rows: tuple[int, ...]) -> None:
    x, dy = correlated(6, 2, 8) + 1e3, normal(6, 2, 8).astype(jnp.float32)
    where = jnp.asarray(np.random.default_rng(4).random(rows) < 0.8).at[:2].set(rows[1] > 1)
    exact = "exact" in norm

    def run(x: jax.Array, where: jax.Array, dy: jax.Array, axis_name: str | None) -> Any:
        def f(x: jax.Array) -> Any:
            y, batch = F.whiten(x, group_size=4, exact=exact, where=where, axis_name=axis_name, epsilon=1e-2)
            return jnp.where(where, y, 0), batch

        y, pull, batch = jax.vjp(f, x, has_aux=True)
        return y, pull(dy)[0], batch

    expected = jax.jit(functools.partial(run, axis_name=None))(x, where, dy)
    mapped = jax.shard_map(
        functools.partial(run, axis_name="d"),
        mesh=Mesh(np.asarray(jax.devices()[:3]), ("d",)),
        in_specs=P("d"), out_specs=(P("d"), P("d"), P()),
    )  # fmt: skip
    chex.assert_trees_all_close(jax.jit(mapped)(x, where, dy), expected, rtol=1e-4, atol=1e-4)


def test_group_whitening_joins_devices_that_share_positions() -> None:
    x = correlated(2, 8, 4)
    whole = F.group_whiten(x, num_groups=2)
    f = jax.vmap(lambda x: F.group_whiten(x, num_groups=2, axis_name="d"), 1, 1, axis_name="d")
    parts = jax.jit(f)(x.reshape(2, 4, 2, 4))
    chex.assert_trees_all_close(parts.reshape(x.shape), whole, rtol=1e-5, atol=1e-5)


def test_statistics_of_ghost_batches_are_averages_and_devices_join_them() -> None:
    x = correlated(12, 8)
    y, batch = jax.jit(functools.partial(F.whiten, group_size=2, ghost_batch_size=4))(x)
    chunk = jax.jit(functools.partial(F.whiten, group_size=2))
    parts = [chunk(x[i : i + 4]) for i in (0, 4, 8)]
    chex.assert_trees_all_close(y, jnp.concatenate([part for part, _ in parts]), rtol=1e-5, atol=1e-5)
    for name in ("mean", "matrix", "covariance"):
        average = sum(getattr(part, name) for _, part in parts) / 3
        np.testing.assert_allclose(getattr(batch, name), average, rtol=1e-5, atol=1e-6)
    f = functools.partial(F.whiten, group_size=2, ghost_batch_size=4, axis_name="d")
    spread, joined = jax.jit(jax.vmap(f, axis_name="d"))(x.reshape(3, 4, 8))
    chex.assert_trees_all_close(spread.reshape(y.shape), y, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(joined.matrix[0], batch.matrix, rtol=1e-5, atol=1e-6)


def test_a_scale_of_each_example_comes_after_the_whitening() -> None:
    x, scale = correlated(6, 3, 4), correlated(6, 4)
    plain, _ = F.whiten(x, group_size=2)
    y, _ = F.whiten(x, scale, group_size=2)
    np.testing.assert_allclose(y, plain * scale[:, None], rtol=1e-5)


REFUSED: dict[str, tuple[dict[str, Any], tuple[int, ...], str]] = {
    "whiten": ({}, (32, 2, 64), r"more than 64 elements to whiten 64 features, got 64.*smaller `group_size`.*`allow"),
    "whiten:group_size=64": ({}, (8, 100), r"`group_size` to divide the 100 features of `x`, got 64"),
    "whiten:steps=0": ({}, (8, 64), r"`steps`, of Newton's iteration, to be a positive whole number, got 0"),
    "whiten:axis=(0,1),group_size=2": ({}, (8, 4), r"`axis` to name one feature axis"),
    "whiten:average='var'": ({}, (8, 64), r"`average` to be one of \('matrix', 'covariance'\), got 'var'"),
    "whiten:momentum=2.0": ({}, (8, 64), r"`momentum`, the weight of the old value, to lie in \[0, 1\]"),
    "whiten:group_size=4,ghost_batch_size=4": ({}, (8, 4), r"more than 4 elements to whiten 4 features, got 4"),
    "group_whiten": ({}, (4, 64), r"more than 32 elements to whiten 32 groups, got 2.*fewer groups"),
    "group_whiten:num_groups=3": ({}, (4, 64), r"`num_groups` to divide the 64 features of `x`, got 3"),
    "group_whiten:num_groups=2,exact=3": ({}, (4, 64), r"`exact` to be True, False or None, got 3"),
}


@pytest.mark.parametrize("norm", REFUSED)
def test_bad_input_is_one_line(norm: str) -> None:
    options, shape, message = REFUSED[norm]
    x = jnp.ones(shape)
    with pytest.raises((ValueError, TypeError, StatisticsError), match=message) as caught:
        module = norms.get(norm, **options).linen(train=True)
        variables = module.init(jax.random.key(0), x)
        module.apply(variables, x, mutable=["batch_stats"])
    assert "\n" not in str(caught.value)


def test_too_few_elements_are_taken_where_this_is_meant() -> None:
    x = correlated(3, 8)
    y, _ = F.whiten(x, group_size=4, allow=True)
    assert jnp.isfinite(y).all() and jnp.isfinite(F.group_whiten(x, num_groups=4, allow=True)).all()
    with F.one_element():
        chex.assert_trees_all_close(F.whiten(x, group_size=4)[0], y)


def test_a_matrix_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`matrix` of shape \(groups, group_size, group_size\) for 8 features of `x`"):
        F.whiten_by(jnp.ones((3, 8)), jnp.zeros(8), jnp.ones((8, 8)))


def test_layers_and_norms_are_pickled() -> None:
    for norm in ("whiten:group_size=4,exact=True", "group_whiten:num_groups=2"):
        layer = norms.get(norm).linen(train=True).layer()
        assert pickle.loads(pickle.dumps(layer)) == layer
        assert pickle.loads(pickle.dumps(norms.get(norm))) == norms.get(norm)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [3, 5])
def test_gradients_are_those_of_torch(steps: int) -> None:
    torch: Any = pytest.importorskip("torch")
    x, dy = np.asarray(correlated(12, 6), np.float64), np.asarray(normal(12, 6), np.float64)
    leaf = torch.tensor(x, requires_grad=True)
    parts = []
    for group in torch.split(leaf, 3, 1):
        z = group - group.mean(0)
        s = z.T @ z / len(z) + 1e-5 * torch.eye(3, dtype=z.dtype)
        p, trace = torch.eye(3, dtype=z.dtype), torch.trace(s)
        for _ in range(steps):
            p = 1.5 * p - 0.5 * torch.linalg.matrix_power(p, 3) @ (s / trace)
        parts.append(z @ p / torch.sqrt(trace))
    theirs = torch.cat(parts, 1)
    theirs.backward(torch.tensor(dy))
    with jax.enable_x64(True):
        y, pull = jax.vjp(lambda x: F.whiten(x, group_size=3, steps=steps)[0], jnp.asarray(x))
        np.testing.assert_allclose(y, theirs.detach().numpy(), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(pull(jnp.asarray(dy))[0], leaf.grad.numpy(), rtol=1e-8, atol=1e-9)
