"""The model of a fold and the call for which it is folded, in Linen or NNX."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast

import jax
from flax import linen as nn
from flax import nnx
from flax.typing import VariableDict

from normlab.errors import BadInput
from normlab.expect import refusal
from normlab.introspect.applied import check_model, partitioned
from normlab.introspect.calls import Module
from normlab.introspect.modes import modes
from normlab.tools.folding import linen as in_linen
from normlab.tools.folding import nnx as in_nnx
from normlab.tools.folding.calls import seen
from normlab.tools.folding.network import Network
from normlab.tools.folding.plan import Decision, Form
from normlab.tools.folding.replacement import Replacement
from normlab.tools.folding.values import Values
from normlab.tools.sites import Sites, sites

__all__ = ["Target", "Variables", "called", "target_of"]

Variables = VariableDict | nnx.State
"""Variables of a Linen model, or the state of a model of NNX."""

Options = Mapping[str, Any]
"""Keywords of a call."""


@dataclass(frozen=True)
class Target(ABC):
    """A model and a call of it.

    Attributes:
        model: The model; that of NNX is a copy that evaluates.
        variables: Variables of a Linen model; `None` for NNX.
        args: Arguments of the call, arrays or their shapes.
        evaluate: Keywords of the call that say that it evaluates.
        options: Other keywords of the call; also `method`, and in Linen `rngs`.
    """

    model: Module
    variables: VariableDict | None
    args: tuple[object, ...]
    evaluate: Options
    options: Options

    def sites(self) -> Sites:
        """Return the norms of activations of the model."""
        found = sites(self.model, self.variables, *self.args, train=self.evaluate, **self.options)
        return Sites([site for site in found if site.kind != "weight"], found.modules)

    def network(self, found: Sites, form: Form) -> Network:
        """Return the network as a fold sees it."""
        calls = seen(self.model, self.variables, self.args, {**self.options, **self.evaluate})
        return self._network(found, calls, form)

    @abstractmethod
    def _network(self, found: Sites, calls: Options, form: Form) -> Network: ...

    @abstractmethod
    def built(self, decisions: Collection[Decision], values: Mapping[str, Values]) -> tuple[Module, Variables]:
        """Return the folded model and its variables."""

    @abstractmethod
    def state(self) -> Variables:
        """Return the variables of the model."""

    def outputs(self, model: Module, variables: Variables) -> object:
        """Call a model with the arguments, compiled, and with exact matrix products."""
        arrays, joined, _ = partitioned((self.args, dict(self.options)))

        def call(variables: Variables, arrays: list[Any]) -> object:
            args, options = joined(arrays)
            return called(model, variables, args, {**self.evaluate, **options})

        with jax.default_matmul_precision("highest"):
            return jax.jit(call)(variables, arrays)

    def check_arrays(self) -> None:
        """Refuse a call with shapes in the place of arrays.

        Raises:
            BadInput: If there are any.
        """
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves((self.args, dict(self.options)))):
            raise BadInput("Expected arrays to check the fold with, got shapes. Give arrays, or `check=False`.")


class _Linen(Target):
    """A Linen model."""

    def _network(self, found: Sites, calls: Options, form: Form) -> Network:
        return Network(found, calls, in_linen.reader(self.state()), lambda path: False)

    def built(self, decisions: Collection[Decision], values: Mapping[str, Values]) -> tuple[Module, Variables]:
        """Return the folded model and its variables."""
        model = in_linen.folded_model(cast(nn.Module, self.model), _replacements(decisions))
        return model, in_linen.folded_variables(self.state(), decisions, values)

    def state(self) -> VariableDict:
        """Return the variables of the model."""
        return cast(VariableDict, self.variables)


class _Nnx(Target):
    """A model of NNX."""

    def _network(self, found: Sites, calls: Options, form: Form) -> Network:
        model = cast(nnx.Module, self.model)
        takes = in_nnx.takes_bias(model) if form == "model" else lambda path: False
        return Network(found, calls, in_nnx.reader(model), takes)

    def built(self, decisions: Collection[Decision], values: Mapping[str, Values]) -> tuple[Module, Variables]:
        """Return the folded model and its variables."""
        model = in_nnx.folded_copy(cast(nnx.Module, self.model), _replacements(decisions), values)
        return model, nnx.state(model)

    def state(self) -> nnx.State:
        """Return the variables of the model."""
        return nnx.state(self.model)


def _replacements(decisions: Collection[Decision]) -> dict[str, Replacement]:
    """Return the replacements for the norms that are no longer run, by path."""
    return {one.site.path: Replacement.of(one.site) for one in decisions if one.is_gone}


def target_of(
    model: Module,
    variables: VariableDict | None,
    args: tuple[object, ...],
    evaluate: Options | None,
    options: Options,
) -> Target:
    """Return the model of a fold and its call.

    Raises:
        BadInput: If the model is no Flax module, or there is nothing to call it with.
    """
    check_model(model)
    if not args:
        raise BadInput(
            "Expected the inputs of a call of the model, got none. Give arrays; or with `check=False` shapes, such as "
            "`jax.ShapeDtypeStruct((1, 32, 32, 3), 'float32')`."
        )
    options = _named(model, options)
    told = dict(modes(model, options.get("method"), evaluate=evaluate).evaluate)
    if evaluate is None:  # `nn.merge_param` takes a mode from the call or from a field, not from both
        told = {name: value for name, value in told.items() if getattr(model, name, None) is None}
    told |= {name: value for name, value in options.items() if name in told}
    others = {name: value for name, value in options.items() if name not in told}
    if isinstance(model, nn.Module):
        return _Linen(model, variables, args, told, others)
    if variables is not None:
        raise BadInput("Expected `variables=None` for an NNX model, which has its own, got some. Leave them out.")
    twin = nnx.clone(model)
    twin.eval()
    return _Nnx(twin, None, args, told, others)


def _named(model: Module, options: Options) -> dict[str, Any]:
    """Return options with the name of the method, by which the folded model has it, too."""
    method = options.get("method")
    if not callable(method):
        return dict(options)
    name = getattr(method, "__name__", "")
    if not callable(getattr(type(model), name, None)):
        raise refusal("`method` to be a method of the model", method, "Write its name.")
    return {**options, "method": name}


def called(model: Module, variables: Variables, args: tuple[Any, ...], options: Options) -> object:
    """Call a model of Linen or NNX with variables."""
    if isinstance(model, nn.Module):
        return model.apply(cast(VariableDict, variables), *args, **options)
    others = dict(options)
    method = others.pop("method", None) or "__call__"
    module = nnx.merge(nnx.graphdef(model), variables)
    return getattr(module, method)(*args, **others)
