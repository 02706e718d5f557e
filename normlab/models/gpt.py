"""A language model that takes a norm as a value.

References:
    Radford et al. Language Models are Unsupervised Multitask Learners. 2019 (GPT-2).
"""

from typing import Literal, get_args

import jax
from flax import linen as nn

from normlab.errors import nearest
from normlab.models.residual import Residual
from normlab.models.transformer import INITIAL, STD, Placement, Stack
from normlab.norms import Norm

__all__ = ["GPT", "Positions"]

Positions = Literal["rotary", "learned"]
"""How a `GPT` knows the positions of tokens."""


class GPT(nn.Module):
    """GPT: tokens predict the next one, each from itself and those before it.

    Weights start as in GPT-2: from a normal distribution of standard deviation 0.02, divided by sqrt(2 depth) in the
    last layer of each branch; biases at 0. With `placement="deep"` the factors of DeepNet stand in place of the latter.
    No dropout.

    A norm takes each token for an example. Batch norm therefore has statistics over all tokens of a batch, in training
    also over later ones; group norm has those of one token. Norms over positions, such as instance norm, are errors.

    Attributes:
        norm: Norm in place of layer norm.
        vocabulary: Number of different tokens.
        depth: Number of layers.
        width: Features of a token.
        heads: Number of attention heads.
        placement: Places of the norms; see [`Stack`][normlab.models.transformer.Stack].
        residual: Learned factors of the branches, likewise.
        qk_norm: Norm of queries and keys, likewise.
        positions: `rotary` rotates queries and keys (RoPE), has no parameters, and works at any length. `learned` adds
            a learned vector for each of `context` positions to the embedding, as in GPT-2.
        context: Largest number of tokens with learned positions.
        tied: Whether the embedding is also the last layer; otherwise that is a dense layer without biases.
    """

    norm: Norm
    vocabulary: int
    depth: int = 4
    width: int = 128
    heads: int = 4
    placement: Placement = "pre"
    residual: Residual = "none"
    qk_norm: Norm | None = None
    positions: Positions = "rotary"
    context: int = 256
    tied: bool = True

    @nn.compact
    def __call__(self, tokens: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Map tokens (batch, time) to the logits of the next ones (batch, time, vocabulary).

        Args:
            tokens: Integers from 0 to `vocabulary` - 1.
            train: Whether norms use the statistics of the batch.
            mask: Tokens that count, shape (batch, time): others, such as padding, are not attended to and enter no
                statistic. Their logits mean nothing.

        Raises:
            ValueError: If `positions` is unknown, or there are more tokens than learned positions.
        """
        embedding = nn.Embed(self.vocabulary, self.width, embedding_init=INITIAL, name="embedding")
        x = self._placed(embedding(tokens))
        x = self._stack().apply(x, train=train, mask=mask)
        if self.tied:
            return embedding.attend(x)
        return nn.Dense(self.vocabulary, use_bias=False, kernel_init=INITIAL, name="head")(x)

    def _placed(self, x: jax.Array) -> jax.Array:
        """Add learned positions."""
        if self.positions not in get_args(Positions):
            hint = nearest(str(self.positions), get_args(Positions))
            raise ValueError(f"Expected known `positions`, got {self.positions!r}. {hint}")
        if self.positions == "rotary":
            return x
        if x.shape[1] > self.context:
            raise ValueError(
                f"Expected at most `context` = {self.context} tokens, got {x.shape[1]}. Raise `context`, or take "
                "`positions='rotary'`."
            )
        return x + self.param("positions", INITIAL, (self.context, self.width))[: x.shape[1]]

    def _stack(self) -> Stack:
        return Stack(
            norm=self.norm,
            depth=self.depth,
            heads=self.heads,
            placement=self.placement,
            residual=self.residual,
            qk_norm=self.qk_norm,
            causal=True,
            rotary=self.positions == "rotary",
            last_std=STD if self.placement == "deep" else STD / (2 * self.depth) ** 0.5,
        )
