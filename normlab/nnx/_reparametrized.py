"""Layers of NNX whose kernel is normalized: the parameter is the raw kernel, and only read."""

from typing import Any, Self

import jax
from flax import nnx

from normlab._core.checks import check_flag
from normlab.functional.kernels import KernelNorm, get, stateless
from normlab.functional.kernels.layers import check_layer, flat_outputs, no_kernel
from normlab.nnx._norm import read, write


class Reparametrized(nnx.Module):
    """A layer that uses a normalized kernel; see `normlab.kernels`.

    The layer keeps the parameters that it has: `kernel` is the raw kernel, which is only read. The norm's own
    parameters, such as `g`, and its state, such as `u`, an `nnx.BatchStat`, are attributes of this module.

    The layer is one with a parameter `kernel` whose last axis has the output features: `Linear`, `Conv`,
    `ConvTranspose`, also grouped and depthwise, and `LinearGeneral` without batch axes, whose output axes count as one.

    Attributes:
        layer: The layer.
        norm: Norm of kernels.
        use_running_average: True at evaluation, False in training, for norms with state.

    Example:
        >>> layer = Reparametrized(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), "weight_norm")
        >>> layer.g.shape, layer(jax.numpy.ones((1, 3))).shape
        ((2,), (1, 2))
    """

    def __init__(
        self, layer: nnx.Module, norm: KernelNorm | str = "standardize", *, use_running_average: bool = False
    ) -> None:
        """Make the norm's parameters and state from the kernel.

        Args:
            layer: The layer.
            norm: Norm of kernels: its string, or a value from `normlab.kernels.get`.
            use_running_average: True at evaluation, False in training; `train()` and `eval()` set it.

        Raises:
            ValueError: If the layer has no kernel that can be normalized.
        """
        check_flag("use_running_average", use_running_average)
        self.layer, self.norm, self.use_running_average = layer, get(norm), use_running_average
        kernel = _flat_kernel(layer)
        for name, value in self.norm.parameters(kernel).items():
            setattr(self, name, nnx.Param(value))
        for name, value in self.norm.state(kernel).items():
            setattr(self, name, nnx.BatchStat(value))

    def __call__(self, *args: Any, update_stats: bool | None = None, **kwargs: Any) -> Any:
        """Call the layer with the normalized kernel.

        Args:
            *args: Arguments of the layer.
            update_stats: Whether the norm's state is replaced; by default in training.
            **kwargs: Keyword arguments of the layer.
        """
        check_flag("update_stats", update_stats)
        train = not self.use_running_average if update_stats is None else update_stats
        return self.plain(train)(*args, **kwargs)

    def plain(self, update_stats: bool = False) -> Any:
        """Return the layer with the normalized kernel as its parameter; all other variables are shared.

        Args:
            update_stats: Whether the norm's state is replaced.
        """
        kernel = _flat_kernel(self.layer)
        state = {name: read(getattr(self, name)) for name in self.norm.state_names}
        new, after = self.norm(kernel, _parameters(self, self.norm), state, train=update_stats)
        if update_stats:
            for name, value in after.items():
                write(getattr(self, name), value)
        return _with_kernel(self.layer, new)

    def set_view(self, use_running_average: bool | None = None) -> None:
        """Set the mode; called by `nnx.view`, and read by `nnx.view_info`, which expects this indentation.

        Args:
          use_running_average: True at evaluation, False in training; None leaves it.
        """
        if use_running_average is not None:
            self.use_running_average = use_running_average


class Standardized(nnx.Module):
    """A layer that normalizes its own kernel, by a norm without state."""

    norm: KernelNorm
    kernel: nnx.Variable[jax.Array]

    def __init__(self, *args: Any, norm: KernelNorm | str = "standardize", **kwargs: Any) -> None:
        """Make the parameters.

        Args:
            *args: Arguments of the layer of Flax.
            norm: Norm of kernels without state.
            **kwargs: Keyword arguments of the layer of Flax.
        """
        super().__init__(*args, **kwargs)
        self.norm = stateless(norm)
        for name, value in self.norm.parameters(read(self.kernel)).items():
            setattr(self, name, nnx.Param(value))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the layer of Flax with the normalized kernel."""
        return super(Standardized, self.plain()).__call__(*args, **kwargs)

    def plain(self) -> Self:
        """Return this layer with the normalized kernel as its parameter, and without a norm."""
        new, _ = self.norm(read(self.kernel), _parameters(self, self.norm))
        plain = _with_kernel(self, new)
        for name in self.norm.parameter_names:
            delattr(plain, name)
        plain.norm = get("none")
        return plain


class StandardizedConv(Standardized, nnx.Conv):
    """A convolution with standardized weights: `nnx.Conv`, its arguments and parameters, then `norm`.

    Attributes:
        norm: Norm of kernels without state, such as `standardize` or `scaled_standardize`, which adds `gain`.
    """


class StandardizedLinear(Standardized, nnx.Linear):
    """A dense layer with standardized weights: `nnx.Linear`, its arguments and parameters, then `norm`.

    Attributes:
        norm: Norm of kernels without state.
    """


def _parameters(module: nnx.Module, norm: KernelNorm) -> dict[str, jax.Array]:
    return {name: read(getattr(module, name)) for name in norm.parameter_names}


def _flat_kernel(layer: nnx.Module) -> jax.Array:
    """Return the kernel of a layer with one axis for its output features."""
    check_layer(layer, (nnx.Einsum,))
    kernel = getattr(layer, "kernel", None)
    if not isinstance(kernel, nnx.Variable):
        raise no_kernel(layer)
    return flat_outputs(read(kernel), getattr(layer, "out_features", 1))


def _with_kernel(layer: Any, kernel: jax.Array) -> Any:
    """Return a layer that shares all variables with another but its kernel."""
    twin = nnx.clone(layer, variables=False)
    twin.kernel = layer.kernel.replace(kernel.reshape(layer.kernel.shape))
    return twin
