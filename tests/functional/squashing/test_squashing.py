"""Dynamic tanh and its like: published numbers, identities, gradients, devices, and bad input."""

import functools
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from normlab import functional as F
from normlab import linen, norms
from tests.support import references
from tests.support.vectors import BIAS, COTANGENT, PER_FEATURE, SCALE, X, numbers, pulled

pytestmark = pytest.mark.usefixtures("strict")

NAMES = ("dyt", "derf", "seednorm", "bhyt")
DYT = numbers("""
    .36941053 -.68334461 1.21391299 .11910803 .79866385 -.02236221 -.10365065 .40041617
    -.31794386 .52044912 .80627881 -.53122942 .20963479 -.42042680 .98600396 .23305009""")
DYT_DX = numbers("""
    .15510245 -.22414700 .05039692 .19556665 -.13124888 .25948161 .05321109 -.05995836
    .37648107 .01616406 -.14796022 .08944883 -.32672188 .38070601 -.20195803 .25623835""")
SEEDNORM = numbers("""
    .60126298 -1.58831382 3.72121754 .54458990 1.74515241 .41775403 -.99301903 1.21246775
    -.52072420 .94122654 .48681135 -.29338880 .35209196 -.91062394 3.29648262 1.40103359""")
SEEDNORM_DX = numbers("""
    .31879944 -.52607379 -.19010976 .86669889 -.29370888 .76162179 -.16710223 -.06740905
    .24443722 .30008354 -.43768439 -.14423430 -1.03878849 1.34006630 -.51586410 2.00617426""")
BETA = np.array([0.2, -0.1, 0.3, 0.1])
VECTORS: dict[str, tuple[dict[str, Any], np.ndarray, np.ndarray]] = {
    "dyt": ({"scale": SCALE, "bias": BIAS, "alpha": np.array(0.5)}, DYT, DYT_DX),
    "seednorm": ({"scale": SCALE, "alpha": PER_FEATURE, "beta": BETA}, SEEDNORM, SEEDNORM_DX),
}


@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("name", VECTORS)
def test_vectors(name: str, wide: bool) -> None:
    params, y, dx = VECTORS[name]
    found = pulled(name, params, wide)
    tolerance = {"rtol": 0, "atol": 6e-9} if wide else {"rtol": 1e-6, "atol": 1e-6}
    np.testing.assert_allclose(found[0], y, **tolerance)
    np.testing.assert_allclose(found[2], dx, **tolerance)
    if name == "dyt":
        np.testing.assert_allclose(found[1]["alpha"], -1.19339448, **tolerance)


PARAMS: dict[str, dict[str, Any]] = {
    "derf": {"scale": SCALE, "bias": BIAS, "alpha": np.array(0.7), "shift": np.array(-0.3)},
    "seednorm:num_heads=2": {"scale": SCALE, "alpha": PER_FEATURE, "beta": BETA},
    "bhyt": {"scale": SCALE, "lam": np.array(5.0)},
}


@pytest.mark.parametrize("name", PARAMS)
def test_gradients_in_float64_are_differences_of_the_reference(name: str) -> None:
    """All gradients along one random direction, by the reference two steps apart."""
    norm, params, rng = norms.get(name), PARAMS[name], np.random.default_rng(0)
    _, by_params, dx = pulled(name, params, wide=True)
    along = {k: rng.normal(size=v.shape) for k, v in params.items()}, rng.normal(size=X.shape)

    def loss(step: float) -> float:
        at = {k: v + step * along[0][k] for k, v in params.items()}
        y, _ = references.NORMS[norm.name](X + step * along[1], at, **norm.options)
        return float((y * COTANGENT).sum())

    expected = (loss(1e-5) - loss(-1e-5)) / 2e-5
    found = sum(float((by_params[k] * d).sum()) for k, d in along[0].items()) + float((dx * along[1]).sum())
    assert abs(found - expected) < 1e-8 * max(1, abs(expected))


def test_identities() -> None:
    x = jnp.asarray(X, jnp.float32)
    np.testing.assert_array_equal(F.seednorm(x), F.rms_norm(x))
    np.testing.assert_array_equal(norms.get("seednorm").linen(train=True).init_with_output(KEY, x)[0], F.rms_norm(x))
    np.testing.assert_allclose(F.dyt(x, alpha=1e-4) / 1e-4, x, rtol=1e-6)
    np.testing.assert_allclose(F.derf(x, alpha=1e-4) / 1e-4, 2 / np.sqrt(np.pi) * x, rtol=1e-6)
    np.testing.assert_allclose(F.bhyt(x, lam=3.0), F.dyt(F.rms_norm(x), alpha=0.3), rtol=1e-6)
    heads = F.seednorm(x, beta=jnp.asarray(BETA, jnp.float32), num_heads=2)
    first = np.tanh((X[..., :2] * BETA[:2]).sum(-1, keepdims=True)) + 1
    np.testing.assert_allclose(heads[..., :2], np.asarray(F.rms_norm(x))[..., :2] * first, rtol=1e-6)


KEY = jax.random.key(0)


@pytest.mark.parametrize("name", NAMES)
def test_each_position_is_by_itself(name: str) -> None:
    module, x = norms.get(name).linen(train=True), jnp.asarray(X, jnp.float32)
    variables = module.init(KEY, x)
    alone = jnp.stack([module.apply(variables, x[:, i]) for i in range(2)], 1)
    np.testing.assert_allclose(module.apply(variables, x), alone, rtol=1e-6)


@pytest.mark.parametrize("name", ["seednorm", "bhyt", "l2"])
def test_features_that_devices_share_are_those_of_one(name: str) -> None:
    rng = np.random.default_rng(0)
    x, dy = (jnp.asarray(rng.normal(size=(3, 8)), jnp.float32) for _ in range(2))
    module = norms.get(name).linen(train=True)
    params = module.init(KEY, x)["params"]
    params = jax.tree.map(lambda a: jnp.asarray(rng.uniform(0.5, 1.5, a.shape), jnp.float32), params)
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("d",))
    specs = jax.tree.map(lambda a: P("d") if a.ndim else P(), params)

    def run(params: Any, x: jax.Array, axis_name: str | None = "d") -> jax.Array:
        return module.clone(axis_name=axis_name).apply({"params": params}, x)

    spread = jax.shard_map(run, mesh=mesh, in_specs=(specs, P(None, "d")), out_specs=P(None, "d"))
    y, pull = jax.vjp(jax.jit(spread), params, x)
    expected, expected_pull = jax.vjp(functools.partial(run, axis_name=None), params, x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    for a, b in zip(jax.tree.leaves(pull(dy)), jax.tree.leaves(expected_pull(dy)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_an_axis_name_is_without_effect_where_there_are_no_statistics() -> None:
    x = jnp.asarray(X, jnp.float32)
    for kind in (linen.DyT, linen.Derf):
        expected, variables = kind().init_with_output(KEY, x)
        np.testing.assert_array_equal(kind(axis_name="d").apply(variables, x), expected)


def test_lam_is_a_constant_where_it_is_not_learned() -> None:
    y, variables = linen.BHyT(learn_lam=False, lam_init=5.0).init_with_output(KEY, jnp.asarray(X, jnp.float32))
    assert set(variables["params"]) == {"scale"}
    np.testing.assert_allclose(y, F.bhyt(jnp.asarray(X, jnp.float32), lam=5.0), rtol=1e-6)


def test_bad_input_is_an_error_of_one_line() -> None:
    x = jnp.ones((2, 6))
    with pytest.raises(ValueError, match=r"Expected `num_heads` to divide the 6 features of `x`, got 4"):
        F.seednorm(x, beta=jnp.ones(6), num_heads=4)
    with pytest.raises(ValueError, match=r"`num_heads=1` where other axes than the last are reduced"):
        F.seednorm(x, beta=jnp.ones((2, 6)), num_heads=2, axis=(0, 1))
    with pytest.raises(ValueError, match=r"`beta` to have shape \(6,\)"):
        F.seednorm(x, beta=jnp.ones(5))
    with pytest.raises(TypeError, match="`learn_lam` to be True, False or None"):
        linen.BHyT(learn_lam=1).init(KEY, x)  # pyright: ignore[reportArgumentType]
    with pytest.raises(F.StatisticsError, match="more than one element"):
        F.bhyt(jnp.ones((4, 1)))


@pytest.mark.parametrize("name", NAMES)
def test_modules_are_pickled(name: str) -> None:
    module = norms.get(name).linen(train=True)
    assert pickle.loads(pickle.dumps(module)) == module
