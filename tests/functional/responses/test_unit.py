"""L2 norm, local response norm, and what RMS and layer norm take beside: offset and gate."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx as flax_nnx

from normlab import functional as F
from normlab import linen, models, nnx, norms
from tests.support import references
from tests.support.vectors import COTANGENT, SCALE, X, numbers, pulled

pytestmark = pytest.mark.usefixtures("strict")

KEY, X32 = jax.random.key(0), jnp.asarray(X, jnp.float32)
L2 = numbers("""
    .20797258 -.49913420 .83189033 .12478355 .73989544 .19730545 -.34528454 .54258999
    -.26891706 .73952191 .30253169 -.53783412 .13074409 -.32686023 .84983659 .39223227""")
L2_DX = numbers("""
    .06937217 -.15817430 -.13845649 .17472575 -.08029036 .32716220 -.00528068 -.01284166
    .22850353 .14475182 -.05537868 .05363148 -.34753344 .47660132 -.03631780 .59170082""")
RMS = numbers("""
    .45753952 -.89844125 1.99653610 .19965361 1.62776917 .35514964 -.82868248 .86814356
    -.59161739 1.33113914 .72607589 -.86053439 .28763675 -.58834790 2.03960606 .62757110""")


@pytest.mark.parametrize("wide", [False, True], ids=["float32", "float64"])
def test_vectors(wide: bool) -> None:
    tolerance = {"rtol": 0, "atol": 6e-9} if wide else {"rtol": 1e-6, "atol": 1e-6}
    y, _, dx = pulled("l2:use_scale=False", {}, wide)
    np.testing.assert_allclose(y, L2, **tolerance)
    np.testing.assert_allclose(dx, L2_DX, **tolerance)
    y, _, dx = pulled("rms:scale_offset=1.0", {"scale": SCALE - 1}, wide)
    np.testing.assert_allclose(y, RMS, **tolerance)
    np.testing.assert_allclose(dx, pulled("rms", {"scale": SCALE}, wide)[2], **tolerance)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("l2:use_temperature=True,additive=True,epsilon=0.1", {"scale": SCALE, "temperature": np.array(1.7)}),
        ("l2:epsilon=0.5", {"scale": SCALE}),
        ("local_response:size=4,alpha=0.5,beta=1.5", {}),
    ],
)
def test_gradients_in_float64_are_differences_of_the_reference(name: str, params: dict[str, Any]) -> None:
    norm, rng = norms.get(name), np.random.default_rng(0)
    _, by_params, dx = pulled(name, params, wide=True)
    along = {k: rng.normal(size=v.shape) for k, v in params.items()}, rng.normal(size=X.shape)

    def loss(step: float) -> float:
        at = {k: v + step * along[0][k] for k, v in params.items()}
        y, _ = references.NORMS[norm.name](X + step * along[1], at, **norm.options)
        return float((y * COTANGENT).sum())

    expected = (loss(1e-5) - loss(-1e-5)) / 2e-5
    found = sum(float((by_params[k] * d).sum()) for k, d in along[0].items()) + float((dx * along[1]).sum())
    assert abs(found - expected) < 1e-8 * max(1, abs(expected))


@pytest.mark.parametrize("additive", [False, True], ids=["largest", "added"])
def test_a_vector_of_zeros_gives_zeros_and_no_gradient(additive: bool) -> None:
    x = X32.at[0, 0].set(0)
    for epsilon in (1e-12, 0.0):
        y, pull = jax.vjp(lambda x, e=epsilon: F.l2_norm(x, epsilon=e, additive=additive), x)
        (dx,) = pull(jnp.asarray(COTANGENT, jnp.float32))
        assert not np.any(y[0, 0]) and not np.any(dx[0, 0])
        assert np.isfinite(dx).all() and np.all(dx[0, 1])
        second = jax.grad(lambda x, e=epsilon: (jax.grad(lambda x: (F.l2_norm(x, epsilon=e) ** 3).sum())(x) ** 2).sum())
        assert np.isfinite(second(x)).all()


def test_squares_in_half_precision_do_not_overflow() -> None:
    x = 300 * jnp.asarray(X, jnp.float16)
    y = F.l2_norm(x)
    assert y.dtype == jnp.float16
    np.testing.assert_allclose(y, L2, rtol=2**-9, atol=2**-10)


def test_lengths() -> None:
    np.testing.assert_allclose(jnp.linalg.norm(F.l2_norm(X32), axis=-1), 1.0, rtol=1e-6)
    np.testing.assert_allclose(F.l2_norm(X32, temperature=2.0), 2 * F.l2_norm(X32), rtol=1e-6)
    short = F.l2_norm(1e-14 * X32)
    np.testing.assert_allclose(short, 1e-2 * X32, rtol=1e-6)
    np.testing.assert_allclose(F.l2_norm(X32, additive=True, epsilon=1e-6) * 2, F.rms_norm(X32, epsilon=2.5e-7), 1e-5)


def test_local_response_is_that_of_torch() -> None:
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(size=(2, 3, 7)).astype("float32") * 5
    for size in (1, 4, 5, 9):
        theirs = torch.nn.functional.local_response_norm(torch.tensor(x).movedim(-1, 1), size, 0.1, 0.75, 2.0)
        ours = F.local_response(jnp.asarray(x), size=size, alpha=0.1, k=2.0)
        np.testing.assert_allclose(ours, theirs.movedim(1, -1).numpy(), rtol=1e-6)


def test_a_window_of_all_features_is_a_power_of_their_squares() -> None:
    expected = X32 / (1 + 0.5 * (X32**2).sum(-1, keepdims=True)) ** 0.75
    np.testing.assert_allclose(F.local_response(X32, size=9, alpha=0.5, divide=False), expected, rtol=1e-6)


def test_a_window_of_an_even_size_has_one_more_neighbour_before() -> None:
    y = F.local_response(jnp.asarray([3.0, 1.0, 2.0]), size=2, alpha=1.0, beta=1.0, divide=False)
    np.testing.assert_allclose(y, [3 / 10, 1 / 11, 2 / 6], rtol=1e-6)


def test_an_offset_of_the_scale_starts_where_ones_do() -> None:
    for kind in (linen.RMSNorm, linen.LayerNorm):
        y, variables = kind(scale_offset=1.0).init_with_output(KEY, X32)
        assert not np.any(variables["params"]["scale"])
        np.testing.assert_array_equal(y, kind().init_with_output(KEY, X32)[0])
    live = nnx.RMSNorm(4, scale_offset=1.0, rngs=flax_nnx.Rngs(0))
    assert live.scale is not None and not np.any(live.scale[...])
    given = linen.RMSNorm(scale_offset=1.0, scale_init=jax.nn.initializers.constant(0.5)).init(KEY, X32)
    np.testing.assert_array_equal(given["params"]["scale"], 0.5)
    per_example = jnp.asarray([[0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 1.0, 1.0]], jnp.float32)
    np.testing.assert_allclose(
        F.layer_norm(X32, per_example, scale_offset=1.0), F.layer_norm(X32) * (1 + per_example[:, None]), rtol=1e-5
    )
    with pytest.raises(TypeError, match="`scale_offset` to be a number"):
        linen.LayerNorm(scale_offset=True).init(KEY, X32)


def test_blocks_with_an_offset_start_as_the_identity() -> None:
    norm = models.resnet.starting_at_zero(norms.get("rms:scale_offset=1.0"))
    assert not np.any(norm.linen(train=True).init_with_output(KEY, X32)[0])


def test_a_gate_multiplies_in_float32_before_the_bias_of_a_call() -> None:
    gate, bias = jnp.asarray(COTANGENT, jnp.bfloat16), X32[:, 0]
    silu = np.asarray(gate, np.float64) / (1 + np.exp(-np.asarray(gate, np.float64)))
    module = linen.RMSNorm(scale_offset=1.0)
    variables = {"params": {"scale": jnp.asarray(SCALE - 1, jnp.float32)}}
    y = module.apply(variables, X32, gate=gate, scale=bias, bias=bias)
    at = np.asarray(bias, np.float64)[:, None]
    np.testing.assert_allclose(y, RMS * silu * at + at, rtol=1e-5, atol=1e-6)
    live = nnx.RMSNorm(4, scale_offset=1.0, rngs=flax_nnx.Rngs(0))
    np.testing.assert_allclose(live(X32, gate=gate), F.rms_norm(X32, gate=gate), rtol=1e-6)
    with pytest.raises(ValueError, match="`gate` with one value for each feature"):
        module.apply(variables, X32, gate=gate[..., :3])


def test_nan_of_a_hidden_gate_reaches_no_gradient() -> None:
    mask = jnp.ones((2, 2, 4), bool).at[:, :, 1].set(False)
    hidden = jnp.where(mask, X32, jnp.nan)

    def loss(x: jax.Array, gate: jax.Array) -> jax.Array:
        return jnp.where(mask, F.rms_norm(x, gate=gate, where=mask) * COTANGENT.astype("float32"), 0).sum()

    for gradient in jax.grad(loss, (0, 1))(hidden, hidden):
        assert np.isfinite(gradient).all() and not np.any(gradient[..., 1])


def test_bad_input_is_an_error_of_one_line() -> None:
    for options, message in (
        ({"size": 0}, "`size` to be a positive whole number"),
        ({"k": 0.0}, "`k` to be positive"),
        ({"feature_axes": (0, 1)}, "`feature_axes` to name a single axis"),
    ):
        with pytest.raises(ValueError, match=message):
            F.local_response(X32, **options)
    with pytest.raises(F.StatisticsError, match="more than one element"):
        F.l2_norm(jnp.ones((4, 1)))
