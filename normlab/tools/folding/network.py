"""A network as a fold sees it: its norms, the calls of its modules, and the values of its variables."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from normlab.tools.folding.affine import Affine, Numbers, affine_of, as_float64
from normlab.tools.folding.calls import Seen
from normlab.tools.folding.kernels import Layout, Weights
from normlab.tools.folding.layouts import KERNELS, layout_of
from normlab.tools.sites import Site

__all__ = ["Network", "affine_at", "divisor_of"]


@dataclass(frozen=True)
class Network:
    """A network as a fold sees it.

    Attributes:
        sites: The norms, in the order of the model.
        seen: Calls of all modules, by path.
        read: Returns the variable of a module, by the module's path and the variable's name; `None` if there is none.
        takes_bias: Whether a layer without a bias, given by its path, can be given one.
    """

    sites: Sequence[Site]
    seen: Mapping[str, Seen]
    read: Callable[[str, str], np.ndarray | None]
    takes_bias: Callable[[str], bool]

    def weights(self, path: str) -> Weights:
        """Return kernel and bias of a layer in float64; masked where the layer masks its kernel."""
        name = self.kernel_name(path)
        kernel, bias = self.read(path, name), self.read(path, "bias")
        assert kernel is not None
        values = as_float64(kernel)
        mask = getattr(self.seen[path].module, "mask", None)
        if mask is not None:
            values = values * np.asarray(mask)
        return Weights(values, None if bias is None else as_float64(bias))

    def kernel_shape(self, path: str) -> tuple[int, ...]:
        """Return the shape of the kernel of a layer."""
        kernel = self.read(path, self.kernel_name(path))
        assert kernel is not None
        return kernel.shape

    def kernel_name(self, path: str) -> str:
        """Return the name of the kernel of a layer."""
        return next(name for name in KERNELS if self.read(path, name) is not None)

    def layout(self, path: str) -> Layout | None:
        """Return the layout of the kernel of a layer; see `layout_of`."""
        return layout_of(self.seen[path].module, self.kernel_shape(path))


def divisor_of(network: Network, site: Site) -> Numbers:
    """Return the square of the number that a batch norm divides by, less `epsilon` where the norm adds it."""
    std, variance = (network.read(site.path, name) for name in ("std", "var"))
    if std is not None:
        return as_float64(std) * np.abs(as_float64(std))
    assert variance is not None
    return as_float64(variance)


def affine_at(network: Network, site: Site) -> Affine:
    """Return the batch norm at a site as an affine map; batch renorm's deviation has `epsilon` inside."""
    mean, scale, bias = (network.read(site.path, name) for name in ("mean", "scale", "bias"))
    assert mean is not None
    renorm = network.read(site.path, "std") is not None
    epsilon = 0.0 if renorm else site.module.epsilon
    return affine_of(mean, divisor_of(network, site), epsilon, scale, bias)
