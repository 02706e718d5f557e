"""Batch norm and batch renorm for Linen."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from normlab import functional as F
from normlab._core.axes import Axes, canonical_axes
from normlab._core.checks import AxisName, check_flags, check_float32_reductions, choose_mode
from normlab._core.running import Momentum
from normlab.functional.batch_norm import BatchLayer, Statistics
from normlab.functional.batch_renorm import BatchRenormLayer, Schedule
from normlab.linen._example import affine_parameters, promote
from normlab.linen._state import state_variables

Initializer = Callable[..., Any]


class BatchNorm(nn.Module):
    """Batch norm; see `normlab.functional.batch_norm`.

    Flax's fields in Flax's order, then our own; Flax's parameters and `batch_stats` (`mean`, `var`; and `step` where
    `momentum` is a function or `None`); `use_fast_variance` is off by default. State is not updated during `init`.

    Attributes:
        use_running_average: True at evaluation, False in training; or `None`, and given in the call.
        axis: Feature axis or axes; the others are reduced.
        momentum: Weight of the OLD running value; a function of the step; or `None` for the plain average of all
            batches. PyTorch's momentum is 1 minus this one.
        epsilon: Added to the variance, inside the root.
        dtype: Of the output; `None` is what input and parameters promote to. Statistics are in float32 or wider.
        param_dtype: Of scale and bias.
        use_bias: Whether there is a bias.
        use_scale: Whether there is a scale.
        bias_init: Initializer of the bias.
        scale_init: Initializer of the scale.
        axis_name: Mapped axes (devices) whose examples belong to the same batch.
        axis_index_groups: Sub-groups of devices along `axis_name`.
        use_fast_variance: Whether to use E[x^2] - E[x]^2.
        force_float32_reductions: Always True; there to accept Flax's argument.
        unbiased_running_var: Whether the running variance counts n / (n - 1); matters below ten elements.
        ghost_batch_size: Examples that share statistics in training; see `batch_norm` for remainder and running values.
        statistics: `auto`: the batch in training, running statistics at evaluation. `batch`: the batch in both.
            `running`: running statistics in both, as constants, still updated in training: mean and total variance,
            for which one example is enough; see `normlab.functional.merge_batch_norm`.
        frozen: Running statistics always, no update, no gradient into scale and bias.
    """

    use_running_average: bool | None = None
    axis: Axes = -1
    momentum: Momentum = 0.99
    epsilon: float = 1e-5
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones
    axis_name: AxisName | None = None
    axis_index_groups: Sequence[Sequence[int]] | None = None
    use_fast_variance: bool = False
    force_float32_reductions: bool = True
    unbiased_running_var: bool = False
    ghost_batch_size: int | None = None
    statistics: Statistics = "auto"
    frozen: bool = False

    def layer(self) -> BatchLayer:
        """Return the norm with the options of this module."""
        return BatchLayer(**self._options())

    def _options(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(BatchLayer)}

    def normalized(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Return the array whose statistics are taken, by default `x` itself."""
        return x

    @nn.compact
    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None, *, mask: jax.Array | None = None
    ) -> jax.Array:
        """Normalize `x`; `mask` is True where an element counts, broadcastable to `x`.

        Args:
            x: Activations.
            use_running_average: Mode of this call; give it here or to the module, not both.
            mask: Elements counted.
        """
        layer, making = self.layer(), self.is_initializing()
        check_flags(self, "use_scale", "use_bias")
        check_float32_reductions(self.force_float32_reductions)
        evaluating = choose_mode(self.use_running_average, use_running_average)
        x = jnp.asarray(x)
        mask = mask if mask is None else jnp.asarray(mask)
        features = canonical_axes(self.axis, x.ndim)
        axis = tuple(a for a in range(x.ndim) if a not in features)
        shape = tuple(x.shape[a] for a in features)
        counts = layer.has_step and not (evaluating or layer.frozen)
        variables = state_variables(self, {"batch_stats": layer.state(shape)}, () if counts else ("step",))
        affine = affine_parameters(
            self,
            shape,
            self.scale_init if self.use_scale else None,
            self.bias_init if self.use_bias else None,
        )
        x, dtype = promote(x, affine, self.dtype)
        x = self.normalized(x, mask)
        if making:  # no mapped axis is bound, and a single example is enough to make parameters
            layer = replace(layer, axis_name=None, axis_index_groups=None, ghost_batch_size=None, statistics="auto")
            evaluating = evaluating or F.batch_elements(x, axis) == 1
        state = {name: variable.value for name, variable in variables.items()}
        y, after = layer.apply(x, affine, state, {}, axis=axis, train=not evaluating, mask=mask)
        if not (making or evaluating or layer.frozen):
            for name, value in after.items():
                variables[name].value = value
        return y.astype(dtype)


class BatchRenorm(BatchNorm):
    """Batch renorm; see `normlab.functional.batch_renorm`.

    The fields of `BatchNorm`, then those of batch renorm. State, all arrays: `batch_stats` holds `mean`, `std` (the
    average of standard deviations, as published) and `step`.

    Attributes:
        r_max: Largest correction of the standard deviation, or a function of the step; see `normlab.norms.Ramp`.
        d_max: Largest correction of the mean in standard deviations, or a function of the step.
        initialize_from_first_batch: Whether the first batch's statistics replace the initial 0 and 1.
    """

    r_max: Schedule = 3.0
    d_max: Schedule = 5.0
    initialize_from_first_batch: bool = False

    def layer(self) -> BatchRenormLayer:
        """Return the norm with the options of this module."""
        return BatchRenormLayer(
            **self._options(),
            r_max=self.r_max,
            d_max=self.d_max,
            initialize_from_first_batch=self.initialize_from_first_batch,
        )
