"""Batch norm and batch renorm for NNX."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from normlab._core.axes import Axes, canonical_axes
from normlab._core.checks import AxisName, check_flag, choose_mode, chosen
from normlab._core.running import Momentum
from normlab.functional.batch_norm import BatchLayer, Statistics
from normlab.functional.batch_renorm import BatchRenormLayer, Schedule
from normlab.nnx._example import NO_METADATA, Affine, Initializer, Metadata, ones, zeros
from normlab.nnx._state import FrozenParam, read, state_variables, write


class BatchNorm(Affine):
    """Batch norm; see `normlab.functional.batch_norm`.

    Flax's arguments, then our own; `use_fast_variance` is off by default, statistics are in float32 or wider, and
    running statistics stay float32 at evaluation.

    Attributes:
        mean: Running mean, an `nnx.BatchStat`, float32.
        var: Running variance, likewise; `std` in `BatchRenorm`.
        step: Updates so far, where `momentum` is a function or `None`.
    """

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        use_running_average: bool | None = False,
        axis: Axes = -1,
        momentum: Momentum = 0.99,
        epsilon: float = 1e-5,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        use_bias: bool = True,
        use_scale: bool = True,
        bias_init: Initializer = zeros,
        scale_init: Initializer = ones,
        axis_name: AxisName | None = None,
        axis_index_groups: Sequence[Sequence[int]] | None = None,
        use_fast_variance: bool = False,
        unbiased_running_var: bool = False,
        ghost_batch_size: int | None = None,
        statistics: Statistics = "auto",
        frozen: bool = False,
        rngs: nnx.Rngs,
        bias_metadata: Metadata = NO_METADATA,
        scale_metadata: Metadata = NO_METADATA,
    ) -> None:
        """Make parameters and state.

        Args:
            num_features: Size of the feature axis, or of each.
            use_running_average: True at evaluation, False in training; `train()` and `eval()` set it.
            axis: Feature axis or axes; the others are reduced.
            momentum: Weight of the OLD running value; a function of the step; or `None` for the plain average of all
                batches. PyTorch's momentum is 1 minus this one.
            epsilon: Added to the variance, inside the root.
            dtype: Of the output; `None` is what input and parameters promote to.
            param_dtype: Of scale and bias.
            use_bias: Whether there is a bias.
            use_scale: Whether there is a scale.
            bias_init: Initializer of the bias.
            scale_init: Initializer of the scale.
            axis_name: Mapped axes (devices) whose examples belong to the same batch.
            axis_index_groups: Sub-groups of devices along `axis_name`.
            use_fast_variance: Whether to use E[x^2] - E[x]^2.
            unbiased_running_var: Whether the running variance counts n / (n - 1); matters below ten elements.
            ghost_batch_size: Examples that share statistics in training; see `batch_norm`.
            statistics: `auto`: the batch in training, running statistics at evaluation. `batch`: the batch in both.
                `running`: running statistics in both, as constants, still updated in training: mean and total variance,
                for which one example is enough; see `normlab.functional.merge_batch_norm`.
            frozen: Running statistics always, no update, no gradient into scale and bias.
            rngs: Random streams; `params` is used.
            bias_metadata: Metadata of the bias variable, such as sharding.
            scale_metadata: Metadata of the scale variable.
        """
        super().__init__(
            num_features,
            dtype=dtype,
            param_dtype=param_dtype,
            scale_init=chosen("use_scale", use_scale, scale_init),
            bias_init=chosen("use_bias", use_bias, bias_init),
            scale_metadata=scale_metadata,
            bias_metadata=bias_metadata,
            rngs=rngs,
        )
        self.use_running_average = use_running_average
        self.axis, self.epsilon, self.momentum = axis, epsilon, momentum
        self.axis_name = axis_name
        self.axis_index_groups = (
            axis_index_groups if axis_index_groups is None else tuple(map(tuple, axis_index_groups))
        )
        self.use_fast_variance, self.unbiased_running_var = use_fast_variance, unbiased_running_var
        self.ghost_batch_size, self.frozen = ghost_batch_size, frozen
        self.statistics: Statistics = statistics
        check_flag("use_running_average", use_running_average)
        BatchNorm.layer(self)  # which checks the options; those of a subclass are not there yet
        for name, value in self._state().items():
            setattr(self, name, nnx.BatchStat(value))

    def __call__(
        self, x: jax.Array, use_running_average: bool | None = None, *, mask: jax.Array | None = None
    ) -> jax.Array:
        """Normalize `x` and, in training, update the state.

        Args:
            x: Activations.
            use_running_average: Overrides the attribute in this call.
            mask: True where an element counts, broadcastable to `x`.
        """
        attribute = self.use_running_average if use_running_average is None else None
        evaluating = choose_mode(attribute, use_running_average)
        x, affine, dtype = self._promoted(x, self.axis)
        mask = mask if mask is None else jnp.asarray(mask)
        x = self.normalized(x, mask)
        layer = self.layer()
        variables = state_variables(self, ("mean", layer.spread, "step"), optional=("step",))
        state = {name: read(variable) for name, variable in variables.items()}
        features = canonical_axes(self.axis, x.ndim)
        axis = tuple(a for a in range(x.ndim) if a not in features)
        y, after = layer.apply(x, affine, state, {}, axis=axis, train=not evaluating, mask=mask)
        if not (evaluating or layer.frozen):
            for name, value in after.items():
                write(variables[name], value)
        return y.astype(dtype)

    @property
    def frozen(self) -> bool:
        """Whether running statistics normalize, nothing is updated, and scale and bias are no `nnx.Param`."""
        return self._frozen

    @frozen.setter
    def frozen(self, frozen: bool) -> None:
        check_flag("frozen", frozen)
        self._frozen = frozen
        kind = FrozenParam if frozen else nnx.Param
        for name in ("scale", "bias"):
            variable = getattr(self, name)
            if variable is not None and type(variable) is not kind:
                setattr(self, name, kind(variable.get_raw_value(), **variable.get_metadata()))

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Set the mode; called by `nnx.view`, and read by `nnx.view_info`, which expects this indentation.

        Args:
          use_running_average: True at evaluation, False in training; None leaves it.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def layer(self) -> BatchLayer:
        """Return the norm with the options of this module."""
        return BatchLayer(**self._options())

    def _options(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(BatchLayer)}

    def _state(self) -> dict[str, jax.Array]:
        return BatchNorm.layer(self).state(self.feature_shape)

    def normalized(self, x: jax.Array, mask: jax.Array | None) -> jax.Array:
        """Return the array whose statistics are taken, by default `x` itself."""
        return x


class BatchRenorm(BatchNorm):
    """Batch renorm; see `normlab.functional.batch_renorm`.

    The arguments of `BatchNorm`, and those of batch renorm. State, all arrays: `mean`, `std` (the average of standard
    deviations, as published) and `step`.
    """

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        r_max: Schedule = 3.0,
        d_max: Schedule = 5.0,
        initialize_from_first_batch: bool = False,
        rngs: nnx.Rngs,
        **options: Any,
    ) -> None:
        """Make parameters and state.

        Args:
            num_features: Size of the feature axis, or of each.
            r_max: Largest correction of the standard deviation, or a function of the step; see `normlab.norms.Ramp`.
            d_max: Largest correction of the mean in standard deviations, or a function of the step.
            initialize_from_first_batch: Whether the first batch's statistics replace the initial 0 and 1.
            rngs: Random streams; `params` is used.
            **options: The arguments of `BatchNorm`.
        """
        super().__init__(num_features, rngs=rngs, **options)
        self.r_max, self.d_max = r_max, d_max
        self.initialize_from_first_batch = initialize_from_first_batch
        self.layer()  # which checks the options

    def layer(self) -> BatchRenormLayer:
        """Return the norm with the options of this module."""
        return BatchRenormLayer(
            **self._options(),
            r_max=self.r_max,
            d_max=self.d_max,
            initialize_from_first_batch=self.initialize_from_first_batch,
        )

    def _state(self) -> dict[str, jax.Array]:
        return BatchRenormLayer(momentum=self.momentum).state(self.feature_shape)
