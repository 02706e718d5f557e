"""Norms of queries and keys inside Flax's attention."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from normlab import linen, norms
from normlab import nnx as our_nnx
from normlab.notation import UnknownNorm

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.key(0)
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 8)), jnp.float32)


class Attention(nn.Module):
    """Dot-product attention with normalized queries and keys."""

    norm: str

    @nn.compact
    def __call__(self, query: jax.Array, key: jax.Array, value: jax.Array, **options: Any) -> jax.Array:
        """Attend."""
        of_query, of_key = linen.qk_norm(self.norm)
        return nn.dot_product_attention(of_query(query), of_key(key), value, **options)


class LiveAttention(nnx.Module):
    """The same in NNX."""

    def __init__(self, norm: str, features: int, rngs: nnx.Rngs) -> None:
        """Make the norms."""
        self.query_norm, self.key_norm = our_nnx.qk_norm(norm, features, rngs=rngs)

    def __call__(self, query: jax.Array, key: jax.Array, value: jax.Array, **options: Any) -> jax.Array:
        """Attend."""
        return nnx.dot_product_attention(self.query_norm(query), self.key_norm(key), value, **options)


def test_layer_norm_is_flax_own_normalization() -> None:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        theirs = nn.MultiHeadDotProductAttention(2, normalize_qk=True)
        expected, variables = theirs.init_with_output(KEY, X)
        params = dict(variables["params"])
        scales = {"query_norm": params.pop("query_ln"), "key_norm": params.pop("key_ln")}
        ours = nn.MultiHeadDotProductAttention(2, attention_fn=Attention("layer"))
        y = ours.apply({"params": {**params, "attention_fn": scales}}, X)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", ["rms:scale_offset=1.0", "l2:temperature_init=3.0"])
def test_both_apis_train_inside_attention(norm: str) -> None:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        module = nn.MultiHeadDotProductAttention(2, attention_fn=Attention(norm))
        params = module.init(KEY, X)["params"]
        gradient = jax.grad(lambda params: (module.apply({"params": params}, X) ** 2).sum())(params)
        live = nnx.MultiHeadAttention(
            2, 8, decode=False, attention_fn=LiveAttention(norm, 4, nnx.Rngs(0)), rngs=nnx.Rngs(0)
        )
        live_gradient = nnx.grad(lambda live: (live(X) ** 2).sum())(live)
    names = {"query_norm", "key_norm"} if norm.startswith("rms") else {"query_norm"}
    for found in (gradient["attention_fn"], nnx.to_pure_dict(live_gradient)["attention_fn"]):
        assert set(found) == names
        assert all(np.any(leaf) for leaf in jax.tree.leaves(found))


def test_the_query_alone_has_the_temperature() -> None:
    query, key = linen.qk_norm("l2:temperature_init=3.0")
    assert np.allclose(jnp.linalg.norm(query.init_with_output(KEY, X)[0], axis=-1), 3.0)
    assert np.allclose(jnp.linalg.norm(key.init_with_output(KEY, X)[0], axis=-1), 1.0)


def test_heads_and_features_together() -> None:
    query, _ = linen.qk_norm(norms.get("rms"), reduction_axes=(-2, -1), feature_axes=(-2, -1))
    heads = X.reshape(2, 3, 2, 4)
    y, variables = query.init_with_output(KEY, heads)
    assert variables["params"]["scale"].shape == (2, 4)
    expected = linen.RMSNorm().init_with_output(KEY, X)[0]
    np.testing.assert_allclose(y.reshape(X.shape), expected, rtol=1e-6)
    live, _ = our_nnx.qk_norm("rms", (2, 4), reduction_axes=(-2, -1), feature_axes=(-2, -1), rngs=nnx.Rngs(0))
    np.testing.assert_allclose(live(heads), y, rtol=1e-6)


def test_norms_without_a_recipe_are_refused() -> None:
    with pytest.raises(UnknownNorm, match="a norm of queries and keys among rms, layer, l2, got 'batch'"):
        linen.qk_norm("batch")
