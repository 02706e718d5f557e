"""Scale and bias of a call: for each example and position, after a norm's own, in every norm."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normlab import functional, norms
from tests.support.registered import ALL

SHAPE = (4, 3, 2, 64)
SHAPES = [(4, 64), (1, 64), (64,), (4, 1, 1, 64), (4, 3, 2, 64), (1, 3, 1, 1)]


def draw(seed: int, shape: tuple[int, ...], dtype: str = "float32") -> jax.Array:
    """Draw numbers around 1."""
    return jnp.asarray(np.random.default_rng(seed).uniform(0.5, 1.5, shape), dtype)


def spread(array: jax.Array) -> np.ndarray:
    """Give an array of a call the rank of `x`, in float64."""
    shape = (array.shape[0], 1, 1, 64) if array.ndim == 2 else array.shape
    return np.asarray(array, np.float64).reshape(shape)


@pytest.mark.parametrize("name", ALL)
def test_every_norm_takes_scale_and_bias_in_a_call(name: str) -> None:
    norm, x = norms.get(name), draw(0, SHAPE)
    module = norm.linen(train=True)
    variables = module.init(jax.random.key(0), x)
    plain = np.asarray(module.apply(variables, x, mutable=["batch_stats"])[0], np.float64)
    scale, bias = draw(1, (4, 64)), draw(2, SHAPE)
    y, _ = module.apply(variables, x, scale=scale, bias=bias, mutable=["batch_stats"])
    np.testing.assert_allclose(y, plain * spread(scale) + spread(bias), rtol=1e-5, atol=1e-5)
    ours = norm.nnx(64, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(ours(x, scale=scale, bias=bias), y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["layer", "batch", "none"])
def test_shapes_that_broadcast(name: str, shape: tuple[int, ...]) -> None:
    module, x, scale = norms.get(name).linen(train=True), draw(0, SHAPE), draw(1, shape)
    variables = module.init(jax.random.key(0), x)
    plain, _ = module.apply(variables, x, mutable=["batch_stats"])
    y, _ = module.apply(variables, x, scale=scale, mutable=["batch_stats"])
    np.testing.assert_allclose(y, np.asarray(plain) * spread(scale), rtol=1e-5)


@pytest.mark.parametrize("shape", [(3, 64), (4, 63), (4, 3, 64), (2, 3, 2, 64), (1, 4, 3, 2, 64)])
def test_shapes_that_do_not_fit_are_refused(shape: tuple[int, ...]) -> None:
    module, x = norms.get("layer").linen(train=True), draw(0, SHAPE)
    variables = module.init(jax.random.key(0), x)
    with pytest.raises(ValueError, match=r"Expected `bias` with one value for each feature.*got \("):
        module.apply(variables, x, bias=draw(1, shape))


def test_functions_take_what_modules_take() -> None:
    x, scale, bias = draw(0, SHAPE), draw(1, (4, 64)), draw(2, (64,))
    running = functional.RunningStatistics(jnp.zeros(64), jnp.ones(64))
    renorm = functional.RenormStatistics(jnp.zeros(64), jnp.ones(64))
    memory, slopes = functional.initial_streaming((64,))
    errors = functional.OnlineErrors(jnp.zeros(64), jnp.zeros(64))
    calls = {
        "layer": lambda **affine: functional.layer_norm(x, **affine),
        "group": lambda **affine: functional.group_norm(x, num_groups=4, **affine),
        "instance": lambda **affine: functional.instance_norm(x, **affine),
        "dyt": lambda **affine: functional.dyt(x, **affine),
        "batch": lambda **affine: functional.batch_norm(x, **affine)[0],
        "batch_renorm": lambda **affine: functional.batch_renorm(x, renorm, **affine)[0],
        "streaming": lambda **affine: functional.streaming_norm(x, memory, slopes, **affine)[0],
        "online": lambda **affine: functional.online_norm(x, running, errors, **affine)[0],
        "online, evaluated": lambda **affine: functional.evaluate_online_norm(x, running, **affine),
    }
    for name, call in calls.items():
        expected = np.asarray(call()) * spread(scale) + np.asarray(bias)
        np.testing.assert_allclose(call(scale=scale, bias=bias), expected, rtol=1e-5, atol=1e-5, err_msg=name)
    expected = np.asarray(functional.layer_norm(x, bias)) + spread(scale)
    np.testing.assert_allclose(functional.layer_norm(x, bias, scale), expected, rtol=1e-5)


def test_gradients_reach_scale_and_bias_of_a_call() -> None:
    module, x, dy = norms.get("group:num_groups=4").linen(train=True), draw(0, SHAPE), draw(3, SHAPE)
    variables = module.init(jax.random.key(0), x)
    scale, bias = draw(1, (4, 64)), draw(2, (4, 64))
    by_scale, by_bias = jax.grad(
        lambda scale, bias: jnp.sum(dy * module.apply(variables, x, scale=scale, bias=bias)), (0, 1)
    )(scale, bias)
    y = np.asarray(module.apply(variables, x), np.float64)
    np.testing.assert_allclose(by_scale, (y * np.asarray(dy)).sum((1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(by_bias, np.asarray(dy, np.float64).sum((1, 2)), rtol=1e-5)


def test_half_precision_is_rounded_once() -> None:
    x, scale, bias = draw(0, SHAPE, "bfloat16"), draw(1, (4, 64), "bfloat16"), draw(2, (4, 64), "bfloat16")
    wide = functional.layer_norm(x.astype(jnp.float32), scale.astype(jnp.float32), bias.astype(jnp.float32))
    narrow = functional.layer_norm(x, scale, bias)
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_array_equal(narrow, wide.astype(jnp.bfloat16))


@pytest.mark.parametrize("train", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("name", ALL)
def test_what_a_mask_hides_reaches_no_gradient(name: str, train: bool) -> None:
    """The gradients of parameters and of scale and bias of the call stay finite beside hidden NaN."""
    norm, mask = norms.get(name), jnp.arange(3)[None, :, None, None] < 2
    x = jnp.where(mask, draw(0, SHAPE), jnp.nan)
    module = norm.linen(train=train)
    variables = dict(module.init(jax.random.key(0), draw(0, SHAPE)))

    def loss(params: Any, scale: jax.Array, bias: jax.Array) -> jax.Array:
        y, _ = module.apply({**variables, **params}, x, mask=mask, scale=scale, bias=bias, mutable=["batch_stats"])
        return jnp.sum(jnp.where(mask, y, 0) * draw(3, SHAPE))

    params = {"params": variables["params"]} if "params" in variables else {}
    gradients = jax.grad(loss, (0, 1, 2))(params, draw(1, (4, 64)), draw(2, (4, 64)))
    assert all(bool(jnp.all(jnp.isfinite(g))) for g in jax.tree.leaves(gradients))


@pytest.mark.parametrize("name", ["layer", "rms", "l2"])
def test_the_axis_of_functions_is_both_axes_of_modules(name: str) -> None:
    axes: tuple[int, ...] = (-2, -1)
    both, one = norms.get(name, reduction_axes=axes, feature_axes=axes), norms.get(name, axis=axes)
    x = draw(0, SHAPE)

    def results(norm: norms.Norm) -> Any:
        linen = norm.linen(train=True).init_with_output(jax.random.key(0), x)
        return linen, norm.nnx((2, 64), rngs=nnx.Rngs(0))(x)

    jax.tree.map(np.testing.assert_array_equal, results(one), results(both))
