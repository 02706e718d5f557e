"""One call for all norms of Linen: make or find the variables, then run the layer."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import canonicalize_dtype
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from jax.nn.initializers import Initializer as Initializer
from jax.typing import DTypeLike

from normlab._core.checks import check_dtypes, check_flag, check_float32_reductions, check_where, choose_mode
from normlab._core.dtypes import output_dtype
from normlab._core.layer import Layer
from normlab._core.modulation import Modulation, modulated
from normlab._core.reduction import Axes, canonical_axes
from normlab.functional.state import check_state

_FLOAT32 = jnp.dtype(jnp.float32)
_AFFINE = ("scale", "bias")
_DTYPE = attrgetter("dtype")


class NormModule(nn.Module):
    """A norm of Linen: fields of the names of its layer's options, and perhaps `use_scale` and `use_bias`."""

    _kind: ClassVar[type[Layer]]

    if TYPE_CHECKING:  # fields of a base would come first
        dtype: DTypeLike | None
        param_dtype: DTypeLike

    @nn.nowrap
    def layer(self) -> Layer:
        """Return the norm with the options of this module."""
        options: dict[str, Any] = {}
        for field in fields(self._kind):
            options[field.name] = getattr(self, field.name)
        return self._kind(**options)


class PerExample(NormModule):
    """The call of norms within one example."""

    @nn.compact
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


class Affine(PerExample):
    """Fields of norms that Flax does not have, before their own."""

    dtype: DTypeLike | None = None
    param_dtype: DTypeLike = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = nn.initializers.zeros
    scale_init: Initializer = nn.initializers.ones
    feature_axes: Axes = -1


class Stateful(NormModule):
    """The call of norms that train and evaluate by different statistics."""

    if TYPE_CHECKING:
        use_running_average: bool | None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        use_running_average: bool | None = None,
        *,
        mask: jax.Array | None = None,
        scale: jax.Array | None = None,
        bias: jax.Array | None = None,
    ) -> jax.Array:
        """Normalize `x`.

        Args:
            x: Activations; for norms of streams `[examples, ..., features]`, the oldest example first.
            use_running_average: Mode of this call; give it here or to the module, not both.
            mask: True where an element counts, broadcastable to `x`.
            scale: Gain of this call, after the module's own: `[batch, features]`, or broadcastable to `x`.
            bias: Shift of this call, of the same kind.
        """
        modes = (self.use_running_average, use_running_average)
        evaluating = modes[0] if modes[1] is None else modes[1]
        if type(evaluating) is not bool or None not in modes:
            evaluating = choose_mode(*modes)
        return normalize(self, x, mask, not evaluating, scale, bias)


def normalize(
    module: NormModule,
    x: jax.Array,
    mask: jax.Array | None,
    train: bool = True,
    scale: jax.Array | None = None,
    bias: jax.Array | None = None,
    **given: jax.Array | None,
) -> jax.Array:
    """Run the layer of `module` with the module's variables; for a compact method.

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
    layer, making = module.layer(), module.is_initializing()
    force = getattr(module, "force_float32_reductions", True)
    if force is not True:
        check_float32_reductions(force)
    x = jnp.asarray(x)
    if mask is not None:
        mask = jnp.asarray(mask)
        check_where(mask, x.shape, "mask")
    features = canonical_axes(getattr(layer, layer.feature_option), x.ndim, layer.feature_option)
    shape = tuple(map(x.shape.__getitem__, features))
    variables: dict[str, nn.Variable] = {}
    state: dict[str, jax.Array] = {}
    slopes: dict[str, jax.Array] = {}
    if layer.stateful:
        needed, optional = layer.names(train)
        names = {"batch_stats": needed}
        if train or making:  # a model that only evaluates can do without
            names[OVERWRITE_WITH_GRADIENT] = layer.gradient_state_names
        start = {"batch_stats": layer.state, OVERWRITE_WITH_GRADIENT: layer.gradient_state}
        variables = state_variables(module, names, lambda c: start[c](shape), optional)
        for name, variable in variables.items():
            (slopes if name in layer.gradient_state_names else state)[name] = variable.value
    affine = _parameters(module, layer, shape, x.ndim)
    dtype = _FLOAT32
    if module.dtype is not None or {x.dtype, *map(_DTYPE, affine.values())} != {dtype}:
        x, dtype = _promoted(x, affine, module.dtype)
    if making:
        layer, train = layer.initializing(x, features, train)
    parameters = affine | given if given else affine
    y, after = layer.apply(x, parameters, state, slopes, features=features, train=train, mask=mask)
    if scale is not None or bias is not None:
        y = modulated(y, Modulation(scale, bias), features, mask)
    if layer.activates:
        y = layer.activated(y, parameters, features)
    if after is not state and not making:
        for name, value in after.items():
            variables[name].value = value
    return y.astype(dtype)


def _parameters(module: NormModule, layer: Layer, shape: tuple[int, ...], ndim: int) -> dict[str, jax.Array]:
    """Make or find scale and bias, as far as the module has them, and the layer's own parameters."""
    parameters: dict[str, jax.Array] = {}
    sets = getattr(layer, layer.affine_sets, 0)
    affine = (sets, *shape) if sets else shape
    for name in _AFFINE:
        used = getattr(module, f"use_{name}", False)
        if type(used) is not bool:
            check_flag(f"use_{name}", used)
        if used:
            init = getattr(module, f"{name}_init")
            init = layer.affine_initializer(name, init) if module.is_initializing() else init
            parameters[name] = module.param(name, init, affine, module.param_dtype)
    for name in layer.parameters:
        if getattr(layer, layer.switches.get(name, ""), True):
            make = partial(layer.parameter_of, ndim, name, shape, module.param_dtype)
            parameters[name] = module.param(name, lambda key, make=make: make())
    return parameters


def _promoted(
    x: jax.Array, parameters: Mapping[str, jax.Array], dtype: DTypeLike | None
) -> tuple[jax.Array, DTypeLike]:
    """Return `x` in a dtype no narrower than the output's, and the output's, which is Flax's choice."""
    check_dtypes(x, parameters, dtype)
    with jax.numpy_dtype_promotion("standard"):
        out = canonicalize_dtype(x, *parameters.values(), dtype=dtype)
        return x.astype(jnp.promote_types(output_dtype(x), out)), out


def state_variables(
    module: nn.Module,
    names: Mapping[str, Sequence[str]],
    start: Callable[[str], Mapping[str, jax.Array]],
    optional: Collection[str] = (),
) -> dict[str, nn.Variable]:
    """Return the variables of a norm's state by name.

    While the module is initialized they are made. Later they are found; where there is none, they are made as Flax's
    are, if their collection is mutable. A part of them is an error.

    Args:
        module: The norm.
        names: Names of the state by collection.
        start: Returns the initial values of a collection by name.
        optional: Names that need not be there, and that may be.

    Raises:
        ValueError: If some are missing, or there are others.
    """
    there = module.variables
    wanted: dict[str, str] = {}
    found: dict[str, str] = {}
    for collection, members in names.items():
        wanted.update(dict.fromkeys(members, collection))
        found.update(dict.fromkeys(there.get(collection, ()), collection))
    if found and not module.is_initializing():
        if found != wanted:
            kind = f"{type(module).__name__} {'/'.join(module.path)}".rstrip()
            check_state(kind, found, [n for n in wanted if n not in optional], [*wanted, *optional])
        wanted = found
    variables: dict[str, nn.Variable] = {}
    for name, collection in wanted.items():
        variables[name] = module.variable(collection, name, lambda c=collection, n=name: start(c)[n])
    return variables
