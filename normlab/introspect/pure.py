"""A Flax model, Linen or NNX, as pure functions."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx
from flax.typing import Collection, VariableDict
from jax import Array
from jax.typing import ArrayLike

from normlab.expect import refusal
from normlab.introspect.compat import OVERWRITE_WITH_GRADIENT
from normlab.introspect.signature import check_call, check_takes
from normlab.nnx import OverwriteWithGradient
from normlab.norms import Norm

__all__ = ["Model", "Network", "network"]

Model = Callable[..., nn.Module | nnx.Module]
Parameters = TypeVar("Parameters")
ModelState = TypeVar("ModelState")
Outputs = TypeVar("Outputs")
Aux = TypeVar("Aux")
_LinenState = tuple[VariableDict, ArrayLike]


@dataclass(frozen=True, kw_only=True)
class Network(Generic[Parameters, ModelState, Outputs]):
    """A model as pure functions of its parameters and its model state.

    The model state is everything that training changes without an optimizer: running statistics, the values that norms
    carry from one backward pass to the next, and the state of random number generators.

    Attributes:
        init: `seed -> (parameters, model_state)`; the seed may be traced.
        train: `(parameters, model_state, inputs, t, mask=None) -> (outputs, model_state)`, step t of training. The
            mask, (batch,), is True for examples that count; the module receives `mask=` only if there is one.
        evaluate: `(parameters, model_state, inputs) -> outputs`.
        carried: `model_state -> (carried, put)`: the part whose gradient is its new value, and a function that returns
            the model state with another such part.
        module: The Linen module; `None` for NNX.
    """

    init: Callable[[int | Array], tuple[Parameters, ModelState]]
    train: Callable[..., tuple[Outputs, ModelState]]
    evaluate: Callable[[Parameters, ModelState, Array], Outputs]
    carried: Callable[[ModelState], tuple[object, Callable[[object], ModelState]]]
    module: nn.Module | None = None

    def gradients(
        self,
        objective: Callable[[Outputs], tuple[Array, Aux]],
        params: Parameters,
        model_state: ModelState,
        inputs: Array,
        t: Array,
        mask: Array | None = None,
    ) -> tuple[tuple[Array, Aux], Parameters, ModelState]:
        """Differentiate one step of training.

        Args:
            objective: `outputs -> (loss, auxiliary output)`.
            params: Parameters.
            model_state: State that training changes without the optimizer.
            inputs: Examples.
            t: Number of the step.
            mask: Examples that count, (batch,); `None` is all of them.

        Returns:
            `(loss, auxiliary output)`, the gradients of the parameters, and the model state after the step:
            running statistics from the forward pass and the values that norms carry from the backward pass.
        """
        carried, put = self.carried(model_state)

        def loss(params: Parameters, carried: object) -> tuple[Array, tuple[Aux, ModelState]]:
            outputs, after = self.train(params, put(carried), inputs, t, mask)
            value, aux = objective(outputs)
            return value, (aux, after)

        (value, (aux, after)), (gradients, new) = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, carried)
        return (value, aux), gradients, self.carried(after)[1](new)


def network(model: Model, norm: Norm, inputs: np.ndarray, **fields: object) -> Network[Any, Any, Any]:
    """Make a network from a model; a model that takes `rngs` is NNX.

    Under one seed all parameters except the norm's start the same for every norm: Linen draws them by the path of
    their module, and in NNX the norm draws from a stream of its own.

    Args:
        model: `model(norm)` returns a Linen module, called as `module(inputs, train=...)`; `model(norm, rngs=...)`
            returns an NNX module, called as `module(inputs)`.
        norm: Norm of the model.
        inputs: A few examples, from which a Linen module is initialized.
        **fields: Further arguments of the model.

    Raises:
        ValueError: If the model returns neither.
    """
    is_nnx = _is_nnx(model)
    check_takes(model, [*fields, *["rngs"] * is_nnx])
    if fields:
        model = functools.partial(model, **fields)
    if is_nnx:
        return _nnx(model, norm)
    module = model(norm)
    if not isinstance(module, nn.Module):
        raise refusal(
            "`model(norm)` to be a Linen module, or `model(norm, rngs=...)` an NNX one", module, "Return the module."
        )
    check_call(type(module))
    return _linen(module, inputs)


def _linen(module: nn.Module, inputs: np.ndarray) -> Network[Collection, _LinenState, object]:
    def init(seed: int | Array) -> tuple[Collection, _LinenState]:
        variables = dict(module.init(jax.random.key(seed), inputs, train=False))
        kept = seed.astype(jnp.uint32) if isinstance(seed, Array) else np.uint32(seed)
        return variables.pop("params", {}), (variables, kept)

    def train(
        params: Collection, model_state: _LinenState, inputs: Array, t: Array, mask: Array | None = None
    ) -> tuple[object, _LinenState]:
        averages, seed = model_state
        rngs = {"params": jax.random.fold_in(jax.random.key(seed), t)}  # default stream of dropout and others
        variables = {"params": params, **averages}
        options = {"train": True, "mutable": list(averages), "rngs": rngs, **_masked(mask)}
        outputs, averages = module.apply(variables, inputs, **options)
        return outputs, (averages, seed)

    def evaluate(params: Collection, model_state: _LinenState, inputs: Array) -> object:
        return module.apply({"params": params, **model_state[0]}, inputs, train=False)

    def carried(model_state: _LinenState) -> tuple[object, Callable[[object], _LinenState]]:
        variables, seed = model_state
        if OVERWRITE_WITH_GRADIENT not in variables:
            return {}, lambda new: model_state
        return variables[OVERWRITE_WITH_GRADIENT], lambda new: (
            {**variables, OVERWRITE_WITH_GRADIENT: cast(Collection, new)},
            seed,
        )

    return Network(init=init, train=train, evaluate=evaluate, carried=carried, module=module)


def _nnx(model: Model, norm: Norm) -> Network[nnx.State, nnx.State, object]:
    def make(seed: int | Array) -> nnx.Module:
        module = model(_with_own_stream(norm, seed), rngs=nnx.Rngs(jax.random.key(seed)))
        if not isinstance(module, nnx.Module):
            raise refusal("`model(norm, rngs=...)` to be an NNX module", module, "Return the module.")
        return module

    module = nnx.eval_shape(lambda: make(0))
    module.train()
    training, _, abstract = nnx.split(module, nnx.Param, ...)
    module.eval()
    evaluating = nnx.split(module, nnx.Param, ...)[0]

    def init(seed: int | Array) -> tuple[nnx.State, nnx.State]:
        _, params, model_state = nnx.split(make(seed), nnx.Param, ...)
        return params, _without_keys(model_state)

    def merged(graph: nnx.GraphDef[nnx.Module], params: nnx.State, model_state: nnx.State) -> Callable[..., object]:
        model_state = jax.tree.map(
            lambda of, leaf: jax.random.wrap_key_data(leaf) if _is_key(of) else leaf, abstract, model_state
        )
        return cast(Callable[..., object], nnx.merge(graph, params, model_state))

    def train(
        params: nnx.State, model_state: nnx.State, inputs: Array, t: Array, mask: Array | None = None
    ) -> tuple[object, nnx.State]:
        module = merged(training, params, model_state)
        outputs = module(inputs, **_masked(mask))
        _, _, model_state = nnx.split(module, nnx.Param, ...)
        return outputs, _without_keys(model_state)

    def evaluate(params: nnx.State, model_state: nnx.State, inputs: Array) -> object:
        return merged(evaluating, params, model_state)(inputs)

    def carried(model_state: nnx.State) -> tuple[object, Callable[[object], nnx.State]]:
        part, others = nnx.split_state(model_state, OverwriteWithGradient, ...)
        return part, lambda new: nnx.merge_state(cast(nnx.State, new), others)

    return Network(init=init, train=train, evaluate=evaluate, carried=carried)


def _masked(mask: Array | None) -> dict[str, Array]:
    """Pass a mask only if there is one: models that never see one need not take it."""
    return {} if mask is None else {"mask": mask}


def _is_nnx(model: Callable[..., object]) -> bool:
    while isinstance(model, functools.partial):
        model = model.func
    if isinstance(model, type):  # Flax's metaclass hides the arguments of NNX classes
        return issubclass(model, nnx.Module)
    return "rngs" in inspect.signature(model).parameters


def _with_own_stream(norm: Norm, seed: int | Array) -> Norm:
    """Return the norm with a random stream of its own: other parameters must not depend on how many it draws."""
    rngs = nnx.Rngs(jax.random.fold_in(jax.random.key(seed), 2**32 - 1))  # the model's own streams count from 0
    make = norm.entry.nnx
    entry = dataclasses.replace(norm.entry, nnx=lambda features, _, options: make(features, rngs, options))
    return dataclasses.replace(norm, entry=entry)


def _without_keys(model_state: nnx.State) -> nnx.State:
    """Replace random keys by the numbers behind them, which NumPy can stack."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, model_state)


def _is_key(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
