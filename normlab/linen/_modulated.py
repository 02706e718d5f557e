"""A norm whose scale and bias a condition gives, for Linen."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from normlab._core.checks import choose_mode
from normlab._core.dtypes import float32_or_wider
from normlab._core.modulation import BareNorm, bare, check_condition, conditioned
from normlab.linen._norm import Initializer


class Modulated(nn.Module):
    """A norm with scale and bias that a dense layer makes of a condition: adaLN, FiLM, conditional norms, SPADE.

    `y = norm(x) * (offset + gain) + shift`, where `shift, gain = split(dense(activation(condition)))`

    The norm has no scale and no bias of its own; gain, `offset` and shift are added and applied in float32 or wider.
    At the start the dense layer gives 0, so that `y` is the norm of `x`, and the gate is 0.

    Attributes:
        norm: A norm of `normlab.norms`, or its string.
        features: Size of the last axis of `x`, to be checked; `None` is whatever it has.
        offset: Added to the gain; 0 with a `kernel_init` that is not 0 is FiLM as published.
        kernel_init: Initializer of the dense layer's kernel.
        activation: Applied to the condition first; DiT's is SiLU.
        gate: Whether a call returns a gate, too, for the branch that starts here: adaLN-zero.
        use_running_average: True at evaluation, False in training, of a norm that has modes; or `None`, and given in
            the call.

    Example:
        >>> module, x, condition = Modulated("layer"), jnp.ones((2, 3, 8)), jnp.ones((2, 5))
        >>> y, variables = module.init_with_output(jax.random.key(0), x, condition)
        >>> variables["params"]["modulation"]["kernel"].shape
        (5, 16)

    References:
        Peebles, Xie. Scalable Diffusion Models with Transformers. ICCV 2023. https://arxiv.org/abs/2212.09748
        Perez et al. FiLM: Visual Reasoning with a General Conditioning Layer. AAAI 2018.
        https://arxiv.org/abs/1709.07871
        Park et al. Semantic Image Synthesis with Spatially-Adaptive Normalization. CVPR 2019.
        https://arxiv.org/abs/1903.07291
    """

    norm: BareNorm | str
    features: int | None = None
    offset: float = 1.0
    kernel_init: Initializer = nn.initializers.zeros
    activation: Callable[[jax.Array], jax.Array] = nn.silu
    gate: bool = False
    use_running_average: bool | None = None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        condition: jax.Array,
        use_running_average: bool | None = None,
        *,
        mask: jax.Array | None = None,
        **inputs: jax.Array,
    ) -> jax.Array | tuple[jax.Array, jax.Array]:
        """Normalize `x` under a condition.

        Args:
            x: Activations, `[batch, *positions, features]`.
            condition: `[batch, d]`, or `[batch, *positions, d]`, where positions may be of size 1.
            use_running_average: Mode of this call, of a norm that trains and evaluates by different statistics; give it
                here or to the module, not both.
            mask: True where an element counts for the norm, broadcastable to `x`.
            **inputs: Further inputs of the norm, such as `domain`.

        Returns:
            `y`, and with `gate` also the gate, which is broadcastable to `x`.

        Raises:
            ValueError: If the condition does not fit `x`.
        """
        norm, x, condition = bare(self.norm), jnp.asarray(x), float32_or_wider(jnp.asarray(condition))
        check_condition(condition, x.shape)
        train = norm.stateful and not choose_mode(self.use_running_average, use_running_average)
        parts, features = 3 if self.gate else 2, x.shape[-1]
        if self.features not in (None, features):
            raise ValueError(
                f"Expected `x` with {self.features} features (`features`) on its last axis, got {x.shape}."
            )
        dense = nn.Dense(parts * features, kernel_init=self.kernel_init, name="modulation")
        given = dense(self.activation(condition))
        by, gate = conditioned(given, parts, self.offset, x.ndim)
        y = norm.linen(train=train)(x, mask=mask, scale=by.scale, bias=by.bias, **inputs)
        return y if gate is None else (y, gate.astype(y.dtype))
