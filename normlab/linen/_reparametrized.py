"""Layers of Linen whose kernel is normalized: the parameter is the raw kernel, and only read."""

from collections.abc import Mapping
from typing import Any, cast

import jax
from flax import linen as nn

from normlab._core.checks import check_flag
from normlab.functional.kernels import KernelNorm, get, stateless
from normlab.functional.kernels.layers import check_layer, flat_outputs, no_kernel


class Reparametrized(nn.Module):
    """A layer that uses a normalized kernel; see `normlab.kernels`.

    The layer has the parameters that it has without this module: `kernel` is the raw kernel, which is only read. The
    norm's own parameters, such as `g`, and its state, such as `u` in `batch_stats`, belong to this module.

    The layer is one with a parameter `kernel` whose last axis has the output features: `Dense`, `Conv`,
    `ConvTranspose`, also grouped and depthwise, and `DenseGeneral` without batch dimensions, whose output axes count as
    one.

    Attributes:
        layer: The layer.
        norm: Norm of kernels: its string, or a value from `normlab.kernels.get`.
        update_stats: True in training, False at evaluation, for norms with state; or given in the call.

    Example:
        >>> layer = Reparametrized(nn.Dense(2), "weight_norm")
        >>> variables = layer.init(jax.random.key(0), jax.numpy.ones((1, 3)))
        >>> jax.tree.map(jax.numpy.shape, variables)["params"]
        {'g': (2,), 'layer': {'bias': (2,), 'kernel': (3, 2)}}
    """

    layer: nn.Module
    norm: KernelNorm | str = "standardize"
    update_stats: bool | None = None

    @nn.compact
    def __call__(self, *args: object, update_stats: bool | None = None, **kwargs: object) -> object:
        """Call the layer with the normalized kernel.

        Args:
            *args: Arguments of the layer.
            update_stats: Overrides the attribute: whether the norm's state is replaced.
            **kwargs: Keyword arguments of the layer.

        Raises:
            ValueError: If the layer has no kernel that can be normalized, or `update_stats` is missing.
        """
        norm = get(self.norm)
        train = self._trains(norm, update_stats)
        if not isinstance(self.layer, nn.Module) or isinstance(self.layer, nn.RNNCellBase):
            raise no_kernel(self.layer)
        check_layer(self.layer, (nn.Einsum, nn.ConvLocal))
        if self.is_initializing():
            self.layer(*args, **kwargs)  # makes the raw parameters
        kernel = self._normalized(norm, train)

        def replaced(variables: Mapping[str, Any]) -> Mapping[str, Any]:
            return {**variables, "params": {**variables["params"], "kernel": kernel}}

        return nn.map_variables(lambda layer: layer(*args, **kwargs), "params", replaced)(self.layer)

    @nn.nowrap
    def _trains(self, norm: KernelNorm, update_stats: bool | None) -> bool:
        """Return whether this call replaces the state."""
        chosen = self.update_stats if update_stats is None else update_stats
        check_flag("update_stats", chosen)
        if chosen is None and norm.stateful:
            raise ValueError(
                f"Expected `update_stats` in the constructor or in the call, as {norm.name!r} has state, got None. "
                "Pass True to train, False to evaluate."
            )
        return bool(chosen) and not self.is_initializing()

    @nn.nowrap
    def _normalized(self, norm: KernelNorm, train: bool) -> jax.Array:
        """Normalize the kernel, with this module's variables."""
        raw = raw_kernel(self.layer)
        kernel = flat_outputs(raw, getattr(self.layer, "features", ()) or 1)
        parameters = {
            name: self.param(name, lambda _, name=name: norm.parameters(kernel)[name]) for name in norm.parameter_names
        }
        state = {
            name: self.variable("batch_stats", name, lambda name=name: norm.state(kernel)[name])
            for name in norm.state_names
        }
        new, after = norm(kernel, parameters, {name: variable.value for name, variable in state.items()}, train=train)
        if train:
            for name, value in after.items():
                state[name].value = value
        return new.reshape(raw.shape)


def raw_kernel(layer: nn.Module) -> jax.Array:
    """Return the kernel of a layer that is bound to variables.

    Raises:
        ValueError: If it has none.
    """
    parameters = layer.variables.get("params", {})
    if "kernel" not in parameters:
        raise no_kernel(layer)
    return nn.unbox(parameters["kernel"])


class Standardized(nn.Module):
    """A layer that normalizes its own kernel where it reads it, by a norm without state."""

    norm: KernelNorm | str = "standardize"

    @nn.nowrap
    def param(self, name: str, init_fn: Any, *init_args: Any, unbox: bool = True, **init_kwargs: Any) -> Any:
        """Make or find a parameter; the kernel is normalized on its way out."""
        value: jax.Array = cast(Any, super().param(name, init_fn, *init_args, unbox=unbox, **init_kwargs))
        if name != "kernel":
            return value
        norm = stateless(self.norm)
        parameters = {
            name: self.param(name, lambda _, name=name: norm.parameters(value)[name]) for name in norm.parameter_names
        }
        return norm(value, parameters)[0]


class StandardizedConv(Standardized, nn.Conv):
    """A convolution with standardized weights: `nn.Conv`, its fields and parameters, then `norm`.

    Attributes:
        norm: Norm of kernels without state, such as `standardize` or `scaled_standardize`, which adds `gain`.
    """


class StandardizedDense(Standardized, nn.Dense):
    """A dense layer with standardized weights: `nn.Dense`, its fields and parameters, then `norm`.

    Attributes:
        norm: Norm of kernels without state.
    """
