"""Transformer blocks: attention and an MLP, with the norm at the place of one's choice.

References:
    Vaswani et al. Attention Is All You Need. NeurIPS 2017 (`post`). https://arxiv.org/abs/1706.03762
    Xiong et al. On Layer Normalization in the Transformer Architecture. ICML 2020 (`pre`).
        https://arxiv.org/abs/2002.04745
    Kim et al. Peri-LN. ICML 2025 (`peri`). https://arxiv.org/abs/2502.02732
    Liu et al. Swin Transformer V2. CVPR 2022 (`res_post`). https://arxiv.org/abs/2111.09883
    Wang et al. DeepNet: Scaling Transformers to 1,000 Layers. 2022 (`deep`). https://arxiv.org/abs/2203.00555
    Sun et al. The Curse of Depth in Large Language Models. 2025 (`scaled`). https://arxiv.org/abs/2502.05795
    Chowdhery et al. PaLM. JMLR 2023 (`parallel`). https://arxiv.org/abs/2204.02311
    Henry et al. Query-Key Normalization for Transformers. EMNLP Findings 2020. https://arxiv.org/abs/2010.04245
    Su et al. RoFormer. 2021 (rotary positions). https://arxiv.org/abs/2104.09864
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn

from normlab import norms
from normlab.errors import nearest
from normlab.models.residual import Residual, check_residual, weighted
from normlab.norms import Norm

__all__ = ["INITIAL", "OBSERVED", "STD", "Attention", "Block", "Placement", "Stack", "rotated", "visible"]

Placement = Literal["pre", "post", "peri", "res_post", "deep", "scaled", "parallel"]
"""Places of the norms of a block; see `Stack`."""

STD = 0.02
"""Standard deviation of initial weights."""

INITIAL = nn.initializers.normal(STD)
"""Initializer of weights."""

ROTARY_BASE = 10_000.0
"""Ratio of the fastest to the slowest rotation, nearly."""

OBSERVED = "intermediates"
"""Collection of observations of blocks: `largest_logit` of attention, and the variance of the residual stream."""


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Blocks of a transformer, one after another.

    A block has two branches f, attention and then an MLP, and N is the norm:

    | `placement` | a branch | norm after the embedding | norm after the last block |
    |---|---|---|---|
    | `pre` | x + f(N(x)) | | yes |
    | `post` | N(x + f(x)) | | |
    | `peri` | x + N2(f(N1(x))) | yes | yes |
    | `res_post` | x + N(f(x)) | | yes |
    | `deep` | N(a x + f(x)), a = (2 depth)^(1/4) | | |
    | `scaled` | x + f(N(x) / sqrt(l)), l = 1, 2, ... is the number of the block | | yes |
    | `parallel` | x + attention(N(x)) + MLP(N(x)) | | yes |

    With `deep` the initial weights of values, of the output of attention and of the MLP are (8 depth)^(-1/4) times as
    large.

    Attributes:
        norm: The norm; without its activation if it has one.
        depth: Number of blocks.
        heads: Number of attention heads.
        placement: Places of the norms.
        residual: Learned factor of a branch, after its norms. `skipinit`: a number that starts at 0. `rezero`: the
            same, and no biases in dense layers. `layer_scale`: a number for each feature that starts at 1e-5.
        qk_norm: Norm of queries and keys over the features of a head, before they are rotated. Heads share its scale.
        causal: Whether a token sees only itself and earlier ones. A norm then takes each token for an example, because
            statistics over positions would show it later ones.
        rotary: Whether queries and keys are rotated by their positions.
        last_std: Standard deviation of the initial weights of the last layer of a branch.
    """

    norm: Norm
    depth: int
    heads: int
    placement: Placement = "pre"
    residual: Residual = "none"
    qk_norm: Norm | None = None
    causal: bool = False
    rotary: bool = False
    last_std: float = STD

    def __post_init__(self) -> None:
        """Check the choices.

        Raises:
            ValueError: If a placement or a factor is unknown.
        """
        if self.placement not in get_args(Placement):
            hint = nearest(str(self.placement), get_args(Placement))
            raise ValueError(f"Expected a known `placement`, got {self.placement!r}. {hint}")
        check_residual(self.residual)

    def apply(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Apply the blocks and the norms around them.

        Call this inside a Linen module. Its parameters then contain `layer_0`, `layer_1` and so on, and
        `norm_embedding` and `norm_last` where they exist.

        Args:
            x: Shape (batch, tokens, width).
            train: Whether norms use the statistics of the batch.
            mask: Tokens that count, shape (batch, tokens): others are not attended to and are in no statistic.
        """
        if self.placement == "peri":
            x = self.normalized(x, "norm_embedding", train=train, mask=mask)
        for number in range(self.depth):
            x = Block(self, number, name=f"layer_{number}")(x, train=train, mask=mask)
        if self.placement in ("post", "deep"):
            return x
        return self.normalized(x, "norm_last", train=train, mask=mask)

    def normalized(
        self, x: jax.Array, name: str, *, train: bool, mask: jax.Array | None, norm: Norm | None = None
    ) -> jax.Array:
        """Normalize tokens inside a Linen module.

        Args:
            x: Shape (batch, tokens, ..., features).
            name: Name of the norm's parameters.
            train: See `apply`.
            mask: See `apply`.
            norm: Another norm than that of the stack.
        """
        norm, shape = (norm or self.norm).linear, x.shape
        if mask is not None:
            mask = mask.reshape(*mask.shape, *[1] * (x.ndim - 2))
        if self.causal:
            norm, x = _counting_tokens(norm, prod(shape[1:-1])), x.reshape(-1, shape[-1])
            mask = None if mask is None else jnp.broadcast_to(mask, (*shape[:-1], 1)).reshape(-1, 1)
        module = norm.linen(train=train, name=name)
        return (module(x) if mask is None else module(x, mask=mask)).reshape(shape)

    @property
    def biased(self) -> bool:
        """True if dense layers have biases."""
        return self.residual != "rezero"

    def initial(self, *, last: bool) -> nn.initializers.Initializer:
        """Return the initializer of the weights that `deep` shrinks, of the last layer of a branch or of others."""
        std = self.last_std if last else STD
        return nn.initializers.normal(std * (8 * self.depth) ** -0.25 if self.placement == "deep" else std)


class Block(nn.Module):
    """Attention and MLP with norms and shortcuts.

    Attributes:
        stack: The stack that the block belongs to.
        number: Number of the block in it, from 0.
    """

    stack: Stack
    number: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Map (batch, tokens, width) to the same shape; see `Stack.apply`."""
        _observe(self, "variance", lambda: _variance(x, mask))
        normalized = partial(self.stack.normalized, train=train, mask=mask)
        attention = Attention(self.stack, name="attention")
        branches = (lambda h: attention(h, train=train, mask=mask), self._mlp)
        if self.stack.placement == "parallel":
            h = normalized(x, "norm_0")
            x = x + self._weighted(0, branches[0](h)) + self._weighted(1, branches[1](h))
        else:
            for i, branch in enumerate(branches):
                x = self._joined(i, x, branch, normalized)
        _observe(self, "variance", lambda: _variance(x, mask))
        return x

    def _joined(
        self,
        i: int,
        x: jax.Array,
        branch: Callable[[jax.Array], jax.Array],
        normalized: Callable[[jax.Array, str], jax.Array],
    ) -> jax.Array:
        """Add branch i, with its norms."""
        place, name = self.stack.placement, f"norm_{i}"
        h = normalized(x, name) if place in ("pre", "peri", "scaled") else x
        if place == "scaled":
            h = h / (self.number + 1) ** 0.5
        h = branch(h)
        if place in ("peri", "res_post"):
            h = normalized(h, f"{name}_out" if place == "peri" else name)
        if place == "deep":
            x = x * (2 * self.stack.depth) ** 0.25
        x = x + self._weighted(i, h)
        return normalized(x, name) if place in ("post", "deep") else x

    def _weighted(self, i: int, h: jax.Array) -> jax.Array:
        """Multiply branch i by its learned factor."""
        return weighted(self, self.stack.residual, f"residual_{i}", h)

    def _mlp(self, h: jax.Array) -> jax.Array:
        width, dense = h.shape[-1], partial(nn.Dense, use_bias=self.stack.biased)
        h = dense(4 * width, kernel_init=self.stack.initial(last=False), name="dense_0")(h)
        h = nn.gelu(h, approximate=False)
        return dense(width, kernel_init=self.stack.initial(last=True), name="dense_1")(h)


class Attention(nn.Module):
    """Attention of tokens to tokens, with the parameters of Flax's `MultiHeadDotProductAttention`.

    Attributes:
        stack: The stack that it belongs to.
    """

    stack: Stack

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Map (batch, tokens, width) to the same shape; see `Stack.apply`.

        Raises:
            ValueError: If heads do not divide the width, or half of a head's features is no whole number to rotate.
        """
        stack, (_, tokens, width) = self.stack, x.shape
        if width % stack.heads:
            raise ValueError(f"Expected `heads` to divide the width, {width}, got {stack.heads}. Choose a divisor.")
        project = partial(nn.DenseGeneral, (stack.heads, width // stack.heads), use_bias=stack.biased)
        query = project(kernel_init=INITIAL, name="query")(x)
        key = project(kernel_init=INITIAL, name="key")(x)
        value = project(kernel_init=stack.initial(last=False), name="value")(x)
        if stack.qk_norm:
            normalized = partial(stack.normalized, train=train, mask=mask, norm=stack.qk_norm)
            query, key = normalized(query, "norm_query"), normalized(key, "norm_key")
        if stack.rotary:
            query, key = rotated(query), rotated(key)
        seen = visible(tokens, mask, causal=stack.causal)
        _observe(self, "largest_logit", lambda: _largest_logit(query, key, seen))
        mixed = nn.dot_product_attention(query, key, value, mask=seen)
        return nn.DenseGeneral(
            width, axis=(-2, -1), use_bias=stack.biased, kernel_init=stack.initial(last=True), name="out"
        )(mixed)


def rotated(x: jax.Array) -> jax.Array:
    """Rotate pairs of features by angles that grow with the position (RoPE), in float32.

    Feature i of the first half and feature i of the second half are a pair, as in GPT-NeoX and LLaMA.

    Args:
        x: Queries or keys, shape (batch, tokens, heads, features).

    Raises:
        ValueError: If the number of features is odd.
    """
    tokens, features = x.shape[1], x.shape[-1]
    if features % 2:
        raise ValueError(
            f"Expected an even number of features in a head to rotate, got {features}. Choose other heads."
        )
    rates = ROTARY_BASE ** -(jnp.arange(0, features, 2) / features)
    angles = (jnp.arange(tokens)[:, None] * rates)[:, None]
    first, second = jnp.split(x, 2, axis=-1)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def visible(tokens: int, mask: jax.Array | None, *, causal: bool) -> jax.Array | None:
    """Return which tokens see which, broadcastable to (batch, heads, tokens, tokens); `None` if all see all."""
    earlier = jnp.tri(tokens, dtype=bool)[None, None] if causal else None
    return nn.combine_masks(earlier, None if mask is None else mask[:, None, None, :], dtype=bool)


def _counting_tokens(norm: Norm, tokens: int) -> Norm:
    """Return the norm for tokens as examples: ghost batches are as many whole sequences as before."""
    size = norm.options.get("ghost_batch_size")
    return norms.get(norm, ghost_batch_size=size * tokens) if isinstance(size, int) else norm


def _observe(module: nn.Module, name: str, value: Callable[[], jax.Array]) -> None:
    """Store a value in `OBSERVED`, which costs nothing unless a caller makes it mutable."""
    if module.is_mutable_collection(OBSERVED):
        module.sow(OBSERVED, name, value())


def _variance(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Compute the variance over the features of a token, as a mean over tokens."""
    return x.var(-1).mean(where=mask)


def _largest_logit(query: jax.Array, key: jax.Array, seen: jax.Array | None) -> jax.Array:
    """Compute the largest absolute logit of attention."""
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) / query.shape[-1] ** 0.5
    return jnp.abs(logits).max(where=seen, initial=0.0)
