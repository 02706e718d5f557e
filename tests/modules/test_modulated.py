"""Norms under conditions: adaLN, FiLM, conditional batch and instance norm, SPADE, and AdaIN."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from normlab import functional, linen, norms
from normlab import nnx as our_nnx
from normlab.errors import StatisticsError
from tests.functional.combined.test_combined import X, numbers

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.key(0)
GAMMA, SHIFT = numbers(".5 -.5 0 1 .1 .2 .3 .4").reshape(2, 4), numbers(".1 0 -.1 .2 0 .5 0 -.5").reshape(2, 4)
ADALN = (
    ".23232428 -.70572947 1.31145894 .02356763 1.76209268 -.10481666 -1.62732841 1.45779987 -.72607631 2.14509598 "
    ".63806706 -2.18233066 -.33746420 -1.15664243 1.79469596 -.07050011"
)


def draw(seed: int, *shape: int, dtype: str = "float32") -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def with_kernel(module: nn.Module, kernel: Any, *given: Any) -> Any:
    """Variables of a Linen module whose dense layer has a kernel."""
    variables = module.init(KEY, *given)
    dense = variables["params"]["modulation"]
    return {
        **variables,
        "params": {**variables["params"], "modulation": {**dense, "kernel": jnp.asarray(kernel, "float32")}},
    }


def test_gives_the_vector_of_the_specification() -> None:
    """The condition is which example it is, so that the rows of the kernel are shift and gain of each."""
    module = linen.Modulated("layer", activation=lambda c: c)
    given = (jnp.asarray(X, "float32"), jnp.eye(2))
    y = module.apply(with_kernel(module, np.concatenate([SHIFT, GAMMA], 1), *given), *given)
    np.testing.assert_allclose(y.ravel(), numbers(ADALN), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("norm", ["layer", "rms", "batch", "instance", "group:num_groups=2", "none"])
def test_at_the_start_it_is_the_norm_and_the_gate_is_closed(norm: str) -> None:
    x, condition = draw(0, 3, 5, 8), draw(1, 3, 4)
    module = linen.Modulated(norms.get(norm), gate=True, use_running_average=False if norm == "batch" else None)
    variables = module.init(KEY, x, condition)
    assert variables["params"].keys() == {"modulation"}
    (y, gate), _ = module.apply(variables, x, condition, mutable=["batch_stats"])
    bare = norms.get(norm).bare.linen(train=True)
    expected, _ = bare.apply(bare.init(KEY, x), x, mutable=["batch_stats"])
    chex.assert_trees_all_close((y, gate), (expected, jnp.zeros((3, 1, 8))), atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 4), (3, 5, 2, 4), (3, 1, 2, 4)], ids=["example", "position", "column"])
def test_conditions_act_on_examples_or_positions(shape: tuple[int, ...]) -> None:
    x, condition, kernel = draw(0, 3, 5, 2, 8), draw(1, *shape), draw(2, 4, 24)
    mask = jnp.ones((3, 5, 1, 1), bool).at[1, 2:].set(False)
    module = linen.Modulated("instance", offset=0.5, gate=True)
    y, gate = module.apply(with_kernel(module, kernel, x, condition), x, condition, mask=mask)
    made = np.asarray(nn.silu(condition) @ kernel)
    shift, gain, opened = np.split(made[:, None, None] if len(shape) == 2 else made, 3, -1)
    plain = np.asarray(functional.instance_norm(x, where=mask))
    np.testing.assert_allclose(y, plain * (0.5 + gain) + shift, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(gate, opened, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_nnx_gives_what_linen_gives(norm: str) -> None:
    x, condition, kernel = draw(0, 3, 5, 8), draw(1, 3, 4), draw(2, 4, 16)
    ours = our_nnx.Modulated(norm, 8, 4, rngs=nnx.Rngs(0))
    ours.modulation.kernel.set_value(kernel)
    for train in (True, False):
        module = linen.Modulated(norm, 8, use_running_average=not train if norm == "batch" else None)
        ours.train() if train else ours.eval()
        variables = with_kernel(module, kernel, x, condition)
        if norm == "batch":
            variables = {
                **variables,
                "batch_stats": {"BatchNorm_0": {n: getattr(ours.norm, n)[...] for n in ("mean", "var")}},
            }
        y, _ = module.apply(variables, x, condition, mutable=["batch_stats"])
        chex.assert_trees_all_close(ours(x, condition), y, rtol=1e-5, atol=1e-5)


def test_the_gain_is_added_in_float32() -> None:
    x, condition = draw(0, 3, 5, 8, dtype="bfloat16"), jnp.ones((3, 4), "bfloat16")
    module = linen.Modulated(norms.get("layer", dtype="float32"), activation=lambda c: c)
    y = module.apply(with_kernel(module, np.full((4, 16), 1e-4), x, condition), x, condition)
    plain = functional.layer_norm(x.astype("float32"))
    np.testing.assert_allclose(y, plain * (1 + 4e-4) + 4e-4, rtol=1e-5, atol=1e-6)  # beside 1, bfloat16 has no 4e-4


@pytest.mark.parametrize("shape", [(2, 4), (3, 6, 4), (3, 5, 1, 4), (4,)])
def test_conditions_of_the_wrong_batch_or_rank_are_refused(shape: tuple[int, ...]) -> None:
    x, message = (
        draw(0, 3, 5, 8),
        r"`condition` of shape \[batch, d\] or \[batch, \*positions, d\] for `x` of shape .*got",
    )
    with pytest.raises(ValueError, match=message):
        linen.Modulated("layer").init(KEY, x, jnp.ones(shape))
    with pytest.raises(ValueError, match=message):
        our_nnx.Modulated("layer", 8, 4, rngs=nnx.Rngs(0))(x, jnp.ones(shape))


def test_what_is_no_norm_and_other_features_are_refused() -> None:
    x, condition = draw(0, 3, 5, 8), draw(1, 3, 4)
    wrong: Any = nn.LayerNorm()
    with pytest.raises(TypeError, match="`norm` to be a norm or its string, got LayerNorm"):
        linen.Modulated(wrong).init(KEY, x, condition)
    with pytest.raises(ValueError, match=r"`x` with 6 features \(`features`\) on its last axis, got \(3, 5, 8\)"):
        linen.Modulated("layer", 6).init(KEY, x, condition)


def test_adain_of_itself_is_itself_and_takes_the_moments_of_a_style() -> None:
    x, style = 1e3 + draw(0, 3, 5, 2, 8), 7 + 3 * draw(1, 3, 9, 8)
    np.testing.assert_allclose(functional.adain(x, x), x, rtol=1e-6)
    where = jnp.ones((3, 9, 1), bool).at[:, 4:].set(False)
    y = functional.adain(x, jnp.where(where, style, jnp.nan), style_where=where)
    np.testing.assert_allclose(y.mean((1, 2)), style[:, :4].mean(1), rtol=1e-5)
    np.testing.assert_allclose(y.std((1, 2)), style[:, :4].std(1), rtol=1e-4)


def test_gradients_of_adain_reach_content_and_style() -> None:
    x, style, dy = (draw(i, 2, 5, 3) for i in range(3))

    def plain(x: jax.Array, style: jax.Array) -> jax.Array:
        def std(a: jax.Array) -> jax.Array:
            return jnp.sqrt(a.var(1, keepdims=True) + 1e-5)

        return (x - x.mean(1, keepdims=True)) / std(x) * std(style) + style.mean(1, keepdims=True)

    found, expected = (jax.vjp(f, x, style)[1](dy) for f in (functional.adain, plain))
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)


def test_bad_styles_are_refused() -> None:
    x = draw(0, 3, 5, 8)
    for shape in ((2, 5, 8), (3, 5, 7), (8,)):
        with pytest.raises(ValueError, match=r"`style` of shape \[batch, \*positions, features\].*got"):
            functional.adain(x, jnp.ones(shape))
    with pytest.raises(StatisticsError, match="a style with more positions"):
        functional.adain(x, x[:, :1])


def test_further_inputs_reach_the_norm() -> None:
    """Domains are those of the call, in both kinds of module."""
    x, condition, domain = draw(0, 4, 3, 6), draw(1, 4, 5), jnp.array([0, 1, 0, 1])
    module = linen.Modulated("domain_batch:num_domains=2", use_running_average=False)
    variables = module.init(KEY, x, condition, domain=domain)
    y, _ = module.apply(variables, x, condition, domain=domain, mutable=["batch_stats"])
    plain, _ = functional.domain_batch_norm(x, domain, num_domains=2)
    np.testing.assert_allclose(y, plain, rtol=1e-5, atol=1e-6)
    ours = our_nnx.Modulated("domain_batch:num_domains=2", 6, condition_features=5, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(ours(x, condition, domain=domain), plain, rtol=1e-5, atol=1e-6)
