"""A norm whose scale and bias a condition gives, for NNX."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from normlab._core.dtypes import float32_or_wider
from normlab._core.modulation import BareNorm, bare, check_condition, conditioned
from normlab.nnx._norm import Initializer, zeros


class Modulated(nnx.Module):
    """A norm with scale and bias that a linear layer makes of a condition: adaLN, FiLM, conditional norms, SPADE.

    `y = norm(x) * (offset + gain) + shift`, where `shift, gain = split(modulation(activation(condition)))`

    See `normlab.linen.Modulated`. The mode of a norm that trains and evaluates by different statistics is that of
    `norm`; `train()` and `eval()` set it.

    Attributes:
        norm: The norm, without scale and bias of its own.
        modulation: The linear layer.
    """

    def __init__(
        self,
        norm: BareNorm | str,
        num_features: int,
        condition_features: int,
        *,
        offset: float = 1.0,
        kernel_init: Initializer = zeros,
        activation: Callable[[jax.Array], jax.Array] = jax.nn.silu,
        gate: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        """Make the norm and the linear layer.

        Args:
            norm: A norm of `normlab.norms`, or its string.
            num_features: Size of the last axis of `x`.
            condition_features: Size of the last axis of the condition.
            offset: Added to the gain; 0 with a `kernel_init` that is not 0 is FiLM as published.
            kernel_init: Initializer of the linear layer's kernel.
            activation: Applied to the condition first; DiT's is SiLU.
            gate: Whether a call returns a gate, too, for the branch that starts here: adaLN-zero.
            rngs: Random streams; `params` is used.
        """
        self.offset, self.activation, self.gate = offset, activation, gate
        self.norm = bare(norm).nnx(num_features, rngs=rngs)
        self.modulation = nnx.Linear(
            condition_features, (3 if gate else 2) * num_features, kernel_init=kernel_init, rngs=rngs
        )

    def __call__(
        self, x: jax.Array, condition: jax.Array, *, mask: jax.Array | None = None, **inputs: jax.Array
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """Normalize `x` under a condition.

        Args:
            x: Activations, `[batch, *positions, features]`.
            condition: `[batch, d]`, or `[batch, *positions, d]`, where positions may be of size 1.
            mask: True where an element counts for the norm, broadcastable to `x`.
            **inputs: Further inputs of the norm, such as `domain`.

        Returns:
            `y`, and with `gate` also the gate, which is broadcastable to `x`.

        Raises:
            ValueError: If the condition does not fit `x`.
        """
        x, condition = jnp.asarray(x), float32_or_wider(jnp.asarray(condition))
        check_condition(condition, x.shape)
        given = self.modulation(self.activation(condition))
        by, gate = conditioned(given, 3 if self.gate else 2, self.offset, x.ndim)
        y = self.norm(x, mask=mask, scale=by.scale, bias=by.bias, **inputs)
        return y if gate is None else (y, gate.astype(y.dtype))
