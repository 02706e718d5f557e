"""A language model on the unit sphere, without norm layers.

References:
    Loshchilov et al. nGPT: Normalized Transformer with Representation Learning on the Hypersphere. ICLR 2025.
        https://arxiv.org/abs/2410.01131
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax.tree_util import KeyPath, keystr, tree_map_with_path
from jax.typing import DTypeLike

from normlab.functional import l2_norm
from normlab.models.transformer import rotated, visible
from normlab.notation import PyTree

__all__ = ["NGPT", "on_the_sphere"]

STEP = 0.05
"""Initial share of the way that a branch moves a token."""

_EMBEDDING_AXIS = {
    "embedding": -1, "query": 0, "key": 0, "value": 0, "out": -1, "dense_0": 0, "dense_1": -1, "head": 0
}  # fmt: skip
"""Axis of each kernel that has the features of a token."""


class NGPT(nn.Module):
    """nGPT: a GPT whose tokens, queries, keys and rows of kernels have length 1.

    A branch f moves a token h along the sphere: `l2(h + |step| (l2(f(h)) - h))`, with a learned `step` for each
    feature that starts at 0.05. Learned factors give queries and keys, the MLP and the logits their size. There are no
    norms, no biases and no tied embedding; positions are rotary.

    Train it without weight decay and warm-up, and with `on_the_sphere` as the last part of the optimizer.

    Attributes:
        vocabulary: Number of different tokens.
        depth: Number of layers.
        width: Features of a token.
        heads: Number of attention heads.
    """

    vocabulary: int
    depth: int = 4
    width: int = 128
    heads: int = 4

    @nn.compact
    def __call__(self, tokens: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Map tokens (batch, time) to the logits of the next ones (batch, time, vocabulary).

        Args:
            tokens: Integers from 0 to `vocabulary` - 1.
            train: Has no effect.
            mask: Tokens that are attended to, shape (batch, time).
        """
        embedding_init = partial(_start, name="embedding")
        h = nn.Embed(self.vocabulary, self.width, embedding_init=embedding_init, name="embedding")(tokens)
        for i in range(self.depth):
            h = _Block(self.heads, name=f"layer_{i}")(h, mask)
        factor = _factor(self, "logit_scale", (self.vocabulary,), base=self.width**-0.5)
        return factor * _dense(self.vocabulary, "head")(h)


class _Block(nn.Module):
    """Attention and MLP, each of which moves the tokens."""

    heads: int

    @nn.compact
    def __call__(self, h: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Map tokens of length 1, (batch, time, width), to the same."""
        h = self._moved("attention_step", h, self._attention(h, mask))
        return self._moved("mlp_step", h, self._mlp(h))

    def _moved(self, name: str, h: jax.Array, branch: jax.Array) -> jax.Array:
        width = h.shape[-1]
        step = jnp.abs(_factor(self, name, (width,), base=width**-0.5, start=STEP))
        return l2_norm(h + step * (l2_norm(branch) - h))

    def _attention(self, h: jax.Array, mask: jax.Array | None) -> jax.Array:
        _, time, width = h.shape
        features = width // self.heads
        project = partial(nn.DenseGeneral, (self.heads, features), use_bias=False)
        query, key, value = (
            project(kernel_init=partial(_start, name=name), name=name)(h) for name in ("query", "key", "value")
        )
        factor = _factor(self, "qk_scale", (self.heads, features), base=width**-0.5)
        query, key = (factor * l2_norm(rotated(x)) for x in (query, key))
        query = (
            query * features
        )  # attention divides logits by sqrt(features), and they are to be as many times as large
        mixed = nn.dot_product_attention(query, key, value, mask=visible(time, mask, causal=True))
        return nn.DenseGeneral(
            width, axis=(-2, -1), use_bias=False, kernel_init=partial(_start, name="out"), name="out"
        )(mixed)

    def _mlp(self, h: jax.Array) -> jax.Array:
        width = h.shape[-1]
        factor = _factor(self, "mlp_scale", (8 * width,), base=1.0)
        up, gate = jnp.split(factor * width**0.5 * _dense(8 * width, "dense_0")(h), 2, axis=-1)
        return _dense(width, "dense_1")(up * nn.silu(gate))


def on_the_sphere() -> optax.GradientTransformation:
    """Make the last part of an optimizer of `NGPT`: after an update each kernel's rows have length 1 again.

    Example:
        >>> optimizer = optax.chain(optax.adam(1e-3), on_the_sphere())
    """

    def projected(path: KeyPath, update: jax.Array, parameter: jax.Array) -> jax.Array:
        *_, module, leaf = ["", *keystr(path, simple=True, separator="/").split("/")]
        if leaf not in ("kernel", "embedding"):
            return update
        return l2_norm(parameter + update, axis=_EMBEDDING_AXIS[module]) - parameter

    def of(updates: PyTree, params: PyTree) -> PyTree:
        return tree_map_with_path(projected, updates, params)

    return optax.stateless(of)


def _start(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32, *, name: str) -> jax.Array:
    """Draw a kernel whose rows have length 1 and any direction."""
    return l2_norm(jax.random.normal(key, shape, dtype), axis=_EMBEDDING_AXIS[name])


def _dense(features: int, name: str) -> nn.Dense:
    return nn.Dense(features, use_bias=False, kernel_init=partial(_start, name=name), name=name)


def _factor(module: nn.Module, name: str, shape: tuple[int, ...], *, base: float, start: float = 1.0) -> jax.Array:
    """Make a learned factor that starts at `start`; the parameter starts at `base`, which sets how fast it learns."""
    return module.param(name, nn.initializers.constant(base), shape) * (start / base)
