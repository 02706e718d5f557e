"""Call the batch norms of a model at evaluation by other statistics than those that they keep."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from jax import Array

from normlab._core.reduction import all_but, canonical_axes, check_more_than_one
from normlab.introspect.calls import Call, Module, variable_of
from normlab.tools.adaptation.blend import Blend
from normlab.tools.capture import counted
from normlab.tools.estimation.estimated import form
from normlab.tools.estimation.parts import part
from normlab.tools.sites import Site

__all__ = ["Blending"]

REMEDY = "Adapt to several examples at once, or take `blended`, which keeps a share of the running statistics"


class Blending:
    """A hook that lets batch norms normalize by a blend of their statistics and those of the batch.

    Attributes:
        weight: Weight of the batch, as of now.
    """

    def __init__(self, norms: Iterable[Site], blend: Blend) -> None:
        """Prepare the hook.

        Args:
            norms: The batch norms; all else is called as it is.
            blend: The blend.
        """
        self.weight = 1.0
        self._norms, self._blend = {site.path: site for site in norms}, blend

    def __call__(self, call: Call, /) -> object:
        """Call a norm by the blend; no statistics change.

        Raises:
            StatisticsError: If the batch alone counts, and has one element per statistic.
        """
        site = self._norms.get(call.path)
        if site is None:
            return call.proceed()
        mask, kept = call.mask, form(site)
        x = counted(call.module, jnp.asarray(call.input), mask)
        if self.weight == 1:
            over = all_but(canonical_axes(site.module.axis, x.ndim), x.ndim)
            check_more_than_one(x.shape, over, REMEDY)
        names = {name: path for name, path in kept.variables.items() if name != "step"}
        values = {name: variable_of(call.module, _collection(path), name) for name, path in names.items()}
        blended = self._blend.statistics(values, part(site, x, mask, None), self.weight, kept.epsilon)
        with _holding(call.module, names, blended):
            return call.proceed()


@contextmanager
def _holding(module: Module, names: Mapping[str, str], values: Mapping[str, Array]) -> Iterator[None]:
    """Let variables of a module have other values within the context."""
    before = {name: _raw(module, name, path) for name, path in names.items()}
    try:
        for name, path in names.items():
            _put(module, name, path, _boxed(before[name], values[name]))
        yield
    finally:
        for name, path in names.items():
            _put(module, name, path, before[name])


def _raw(module: Module, name: str, path: str) -> object:
    if isinstance(module, nn.Module):
        return module.get_variable(_collection(path), name)
    return getattr(module, name).get_raw_value()


def _put(module: Module, name: str, path: str, value: object) -> None:
    if isinstance(module, nn.Module):
        module.put_variable(_collection(path), name, value)
    else:
        variable: nnx.Variable = getattr(module, name)
        variable.set_raw_value(value)


def _boxed(before: object, value: Array) -> object:
    return before.replace_boxed(value) if isinstance(before, nn.meta.AxisMetadata) else value


def _collection(path: str) -> str:
    return path.partition("/")[0]
