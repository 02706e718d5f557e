"""One call for all norms of NNX: read the variables, run the layer, write its state."""

import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from operator import attrgetter
from types import MappingProxyType
from typing import Any, ClassVar, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn.dtypes import canonicalize_dtype
from jax.nn.initializers import Initializer as Initializer
from jax.typing import DTypeLike

from normlab._core.checks import check_dtypes, check_flag, check_where, choose_mode, chosen
from normlab._core.dtypes import output_dtype
from normlab._core.layer import Layer
from normlab._core.modulation import Modulation, modulated
from normlab._core.reduction import canonical_axes
from normlab.errors import nearest
from normlab.functional.state import check_state

Metadata = Mapping[str, Any]
zeros, ones = nnx.initializers.zeros_init(), nnx.initializers.ones_init()
NO_METADATA: Metadata = MappingProxyType({})

_DTYPE, _FLOAT32 = attrgetter("dtype"), jnp.dtype(jnp.float32)
_STATISTICS = ("mean", "var", "std", "step")


class OverwriteWithGradient(nnx.Variable):
    """A variable whose gradient is its new value: no optimizer may have it, and `overwrite_with_gradient` sets it."""


class FrozenParam(nnx.Variable):
    """Scale or bias of a frozen norm: no `nnx.Param`, so that no gradient is taken and no weight decay shrinks it.

    `nnx.state(model, nnx.Param)` leaves it out; save and load `nnx.state(model)`. A state of `nnx.Param` loads into it
    by `nnx.update`, as a state or as a pure dict.
    """


class NormOptions(TypedDict, total=False):
    """Options that all norms take.

    Attributes:
        dtype: Dtype of the output; `None`, the default, promotes input and parameters.
        param_dtype: Dtype of the parameters; float32 by default.
        use_scale: Whether there is a scale; True by default.
        use_bias: Whether there is a bias; True by default.
        scale_init: Initializer of the scale.
        bias_init: Initializer of the bias.
        scale_metadata: Metadata of the scale variable, such as sharding.
        bias_metadata: Metadata of the bias variable.
    """

    dtype: DTypeLike | None
    param_dtype: DTypeLike
    use_scale: bool
    use_bias: bool
    scale_init: Initializer
    bias_init: Initializer
    scale_metadata: Metadata
    bias_metadata: Metadata


class NormModule(nnx.Module):
    """A norm of NNX: attributes of the names of its layer's options, parameters, and state.

    Attributes:
        scale: Parameter of shape `num_features`, or `None`.
        bias: Parameter of the same shape, or `None`.
    """

    _kind: ClassVar[type[Layer]]

    def __init__(
        self,
        num_features: int | Sequence[int],
        *,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        use_scale: bool = True,
        use_bias: bool = True,
        scale_init: Initializer = ones,
        bias_init: Initializer = zeros,
        scale_metadata: Metadata = NO_METADATA,
        bias_metadata: Metadata = NO_METADATA,
        rngs: nnx.Rngs,
        **options: object,
    ) -> None:
        self.feature_shape = shape = feature_shape(num_features)
        self.num_features = shape[0] if len(shape) == 1 else shape
        self.dtype, self.param_dtype = dtype, param_dtype
        self.scale, self.bias = nnx.data(None), nnx.data(None)
        self._configure(**options)
        layer = self.layer()  # which checks the options
        sets = getattr(layer, layer.affine_sets, 0)
        affine = (sets, *shape) if sets else shape
        for name, init, metadata in (
            ("scale", chosen("use_scale", use_scale, scale_init), scale_metadata),
            ("bias", chosen("use_bias", use_bias, bias_init), bias_metadata),
        ):
            if init is not None:
                init = layer.affine_initializer(name, init)
                init = nnx.Param(init(rngs.params(), affine, param_dtype), **metadata)
            setattr(self, name, nnx.data(init))
        for name in parameters_of(layer):
            setattr(self, name, nnx.Param(layer.parameter(name, shape, param_dtype)))
        for name, value in layer.state(shape).items():
            setattr(self, name, nnx.BatchStat(value))
        for name, value in layer.gradient_state(shape).items():
            setattr(self, name, OverwriteWithGradient(value))

    def _configure(self, **options: object) -> None:
        known = [field.name for field in fields(self._kind)]
        for name, value in options.items():
            if name not in known:
                raise TypeError(f"Expected an option of {type(self).__name__}, got {name!r}. {nearest(name, known)}")
            setattr(self, name, value)
        for field in fields(self._kind):
            if not hasattr(self, field.name):
                setattr(self, field.name, field.default)

    def layer(self) -> Layer:
        """Return the norm with the options of this module."""
        options: dict[str, Any] = {}
        for field in fields(self._kind):
            options[field.name] = getattr(self, field.name)
        return self._kind(**options)


class PerExample(NormModule):
    """The call of norms within one example."""

    def __call__(
        self,
        x: jax.Array,
        *,
        mask: jax.Array | None = None,
        scale: jax.Array | None = None,
        bias: jax.Array | None = None,
    ) -> jax.Array:
        """Normalize `x`.

        Args:
            x: Activations.
            mask: True where an element counts, broadcastable to `x`.
            scale: Gain of this call, after the module's own: `[batch, features]`, or broadcastable to `x`.
            bias: Shift of this call, of the same kind.
        """
        return normalize(self, x, mask, scale=scale, bias=bias)


class Stateful(NormModule):
    """The call of norms that train and evaluate by different statistics."""

    def __init__(self, num_features: int | Sequence[int], *, use_running_average: bool | None, **options: Any) -> None:
        check_flag("use_running_average", use_running_average)
        self.use_running_average = use_running_average
        super().__init__(num_features, **options)

    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        mask: jax.Array | None = None,
        scale: jax.Array | None = None,
        bias: jax.Array | None = None,
    ) -> jax.Array:
        """Normalize `x` and, in training, update the state.

        Args:
            x: Activations; for norms of streams `[examples, ..., features]`, the oldest example first.
            use_running_average: Overrides the attribute in this call.
            mask: True where an element counts, broadcastable to `x`.
            scale: Gain of this call, after the module's own: `[batch, features]`, or broadcastable to `x`.
            bias: Shift of this call, of the same kind.
        """
        attribute = self.use_running_average if use_running_average is None else None
        evaluating = choose_mode(attribute, use_running_average)
        return normalize(self, x, mask, not evaluating, scale, bias)

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Set the mode; called by `nnx.view`, and read by `nnx.view_info`, which expects this indentation.

        Args:
          use_running_average: True at evaluation, False in training; None leaves it.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average


def normalize(
    module: NormModule,
    x: jax.Array,
    mask: jax.Array | None,
    train: bool = True,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    **given: jax.Array | None,
) -> jax.Array:
    """Run the layer of `module` with the module's variables.

    Args:
        module: The norm.
        x: Activations.
        mask: True where an element counts, broadcastable to `x`.
        train: Whether the statistics of `x` count.
        scale: Gain of this call, after the module's own.
        bias: Shift of this call.
        **given: Further arrays of this call, by the names by which the layer knows them.

    Raises:
        ValueError: If state is missing or unknown, or an option or a shape does not fit.
        TypeError: If a dtype or an option is of the wrong kind.
    """
    layer = module.layer()
    x = jnp.asarray(x)
    features = canonical_axes(getattr(layer, layer.feature_option), x.ndim, layer.feature_option)
    shape = tuple(map(x.shape.__getitem__, features))
    if shape != module.feature_shape:
        raise ValueError(
            f"Expected `x` with {module.num_features} features (`num_features`), got {x.shape}, which has {shape}."
        )
    parameters: dict[str, jax.Array] = {}
    for name in ("scale", "bias", *parameters_of(layer)):
        variable = getattr(module, name)
        if variable is not None:
            parameters[name] = read(variable)
    dtype = _FLOAT32
    if module.dtype is not None or {x.dtype, *map(_DTYPE, parameters.values())} != {dtype}:
        x, dtype = _promoted(x, parameters, module.dtype)
    if mask is not None:
        mask = jnp.asarray(mask)
        check_where(mask, x.shape, "mask")
    variables: dict[str, nnx.Variable[jax.Array]] = {}
    state: dict[str, jax.Array] = {}
    slopes: dict[str, jax.Array] = {}
    if layer.stateful:
        needed, optional = layer.names(train)
        names = dict.fromkeys((*needed, *optional, *layer.gradient_state_names))
        variables = state_variables(module, list(names), optional)
        for name, variable in variables.items():
            (slopes if name in layer.gradient_state_names else state)[name] = read(variable)
    inputs = parameters | given if given else parameters
    y, after = layer.apply(x, inputs, state, slopes, features=features, train=train, mask=mask)
    if scale is not None or bias is not None:
        y = modulated(y, Modulation(scale, bias), features, mask)
    if layer.activates:
        y = layer.activated(y, inputs, features)
    if after is not state:
        for name, value in after.items():
            write(variables[name], value)
    return y.astype(dtype)


def parameters_of(layer: Layer) -> list[str]:
    """Return the names of the parameters of a norm that are neither `scale` nor `bias`."""
    return [name for name in layer.parameters if getattr(layer, layer.switches.get(name, ""), True)]


def _promoted(
    x: jax.Array, parameters: Mapping[str, jax.Array], dtype: DTypeLike | None
) -> tuple[jax.Array, DTypeLike]:
    """Return `x` in a dtype no narrower than the output's, and the output's, which is Flax's choice."""
    check_dtypes(x, parameters, dtype)
    with jax.numpy_dtype_promotion("standard"):
        out = canonicalize_dtype(x, *parameters.values(), dtype=dtype)
        return x.astype(jnp.promote_types(output_dtype(x), out)), out


def state_variables(
    module: nnx.Module, names: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, nnx.Variable[jax.Array]]:
    """Return the variables of a norm's state by name.

    `nnx.update` adds to a module what it does not have, and says nothing.

    Args:
        module: The norm.
        names: Names of the state.
        optional: Names that need not be there.

    Raises:
        ValueError: If one is no variable, or there are others.
    """
    attributes = vars(module)
    found = [
        name
        for name, value in attributes.items()
        if isinstance(value, nnx.BatchStat | OverwriteWithGradient)
        or (name in _STATISTICS and isinstance(value, jax.Array | np.ndarray))  # from a pure dict, which brings no type
    ]
    known = [name for name in names if name not in optional or isinstance(attributes.get(name), nnx.Variable)]
    check_state(type(module).__name__, found, known, known)
    return {name: attributes[name] for name in known}


def read(variable: nnx.Variable[jax.Array]) -> jax.Array:
    """Return the value of a variable, which can be NumPy's where it was restored."""
    return jnp.asarray(variable[...])


def write(variable: nnx.Variable[jax.Array], value: jax.Array) -> None:
    """Give a variable a new value, of any dtype; assigning to `variable[...]` writes into restored NumPy arrays."""
    variable.set_value(value)


def groups_of(axis_index_groups: Sequence[Sequence[int]] | None) -> tuple[tuple[int, ...], ...] | None:
    """Return groups as what an attribute of a module can be."""
    return axis_index_groups if axis_index_groups is None else tuple(map(tuple, axis_index_groups))


def feature_shape(num_features: int | Sequence[int]) -> tuple[int, ...]:
    """Return the sizes of the feature axes, checked."""
    sizes = tuple(num_features) if isinstance(num_features, Iterable) else (num_features,)
    if any(isinstance(n, bool) or not isinstance(n, numbers.Integral) or int(n) < 1 for n in sizes):
        raise ValueError(f"Expected `num_features` to be positive whole numbers, got {num_features!r}.")
    return tuple(int(n) for n in sizes)
