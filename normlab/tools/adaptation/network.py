"""A model whose batch norms normalize by a blend of running statistics and those of a batch."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
from flax import linen as nn
from flax import nnx
from flax.typing import VariableDict
from jax import Array

from normlab.errors import BadInput
from normlab.introspect.applied import Variables
from normlab.introspect.calls import Module
from normlab.introspect.modes import told
from normlab.tools.adaptation.blend import Blend
from normlab.tools.adaptation.blending import Blending
from normlab.tools.adaptation.targets import adapting, is_batch_norm
from normlab.tools.batches import Call, examples
from normlab.tools.capture import Capture
from normlab.tools.estimation.collecting import received
from normlab.tools.estimation.parts import Part, part
from normlab.tools.moments import Moments
from normlab.tools.select import Where
from normlab.tools.sites import sites

__all__ = ["Batch", "Caller", "Network", "evaluating"]


@dataclass(frozen=True)
class Batch:
    """The arguments of a call.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments, those that say the mode among them.
        rngs: Random streams.
        examples: Size of the batch.
        number: Number of the batch, from 0 on.
    """

    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    rngs: Mapping[str, Array]
    examples: int
    number: int


class Caller:
    """Makes the arguments of a call at evaluation from a batch."""

    def __init__(self, model: Module, call: Call, evaluate: Mapping[str, object] | None, seed: int) -> None:
        """Keep what every call is made with.

        Args:
            model: The model.
            call: `batch -> (args, kwargs)`.
            evaluate: Keywords of a call at evaluation; `None` finds those that the arguments do not have.
            seed: Of the random streams.
        """
        self._model, self._call, self._evaluate, self._key = model, call, evaluate, jax.random.key(seed)

    def __call__(self, batch: object, number: int) -> Batch:
        """Return the arguments of the call."""
        args, kwargs = self._call(batch)
        evaluates = told(self._model, None, args, kwargs, False) if self._evaluate is None else self._evaluate
        rngs = {"dropout": jax.random.fold_in(self._key, number)}
        return Batch(args, {**kwargs, **evaluates}, rngs, examples(args, kwargs), number)


class Network:
    """A compiled model at evaluation, whose batch norms normalize by a blend.

    Attributes:
        model: The model, in evaluation mode where it is of NNX.
        norms: The norms that adapt.
        blending: The hook around them.
    """

    def __init__(
        self, model: Module, variables: Variables, batch: Batch, *, blend: Blend, where: Where, affine: bool
    ) -> None:
        """Find the norms that adapt.

        Args:
            model: The model, in evaluation mode where it is of NNX.
            variables: Variables of the model.
            batch: A batch, whose shapes count.
            blend: The blend.
            where: The norms; see `normlab.tools.select`.
            affine: Whether scale and bias adapt, too.
        """
        self.model, self._start, self._blend = model, variables, blend
        found = sites(model, _of_linen(model, variables), *batch.args, train=batch.kwargs, rngs=batch.rngs)
        self.norms = adapting(found, where, affine=affine)
        self._by_path = {site.path: site for site in self.norms if is_batch_norm(site)}
        self.blending = Blending(self._by_path.values(), blend)
        self._blended = Capture(model, self._moments, paths=self._by_path, run=self.blending)
        self._plain = Capture(model, self._moments, paths=())

    def __call__(self, variables: Variables, batch: Batch) -> tuple[object, Moments]:
        """Return the output of the model, and the moments of what its batch norms were given.

        Raises:
            BadInput: If a moment is not finite.
            StatisticsError: If the batch alone counts, and has one element per statistic.
        """
        self.blending.weight = self._blend.weight(batch.examples)
        captured = self._blended(variables, *batch.args, rngs=batch.rngs, **batch.kwargs)
        norms = self._by_path.values()
        moments = received(norms, self._start, captured.statistics, batch.examples, batch.number)
        return captured.output, moments

    def evaluated(self, variables: Variables, batch: Batch) -> object:
        """Return the output of the model by its running statistics."""
        return self._plain(variables, *batch.args, rngs=batch.rngs, **batch.kwargs).output

    def _moments(self, path: str, number: int, x: Array, mask: Array | None, y: object) -> Part:
        return part(self._by_path[path], x, mask, None)


def evaluating(model: Module, variables: Variables | None) -> tuple[Module, Variables]:
    """Return a model in evaluation mode, of NNX a copy, and its variables.

    Args:
        model: The model; it stays as it is.
        variables: Variables of a Linen model; `None` or another state for NNX.

    Raises:
        BadInput: If a Linen model comes without variables.
    """
    if isinstance(model, nn.Module):
        if variables is None:
            raise BadInput("Expected the variables of a Linen model, got None. Give those of `model.init`.")
        return model, variables
    twin = nnx.clone(model)
    if variables is not None:
        nnx.update(twin, variables)
    twin.eval()
    return twin, nnx.state(twin)


def _of_linen(model: Module, variables: Variables) -> VariableDict | None:
    return variables if isinstance(model, nn.Module) and not isinstance(variables, nnx.State) else None
