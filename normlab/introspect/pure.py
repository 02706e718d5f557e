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

Model = Callable[..., nn.Module | nnx.Module]
Parameters = TypeVar("Parameters")
State = TypeVar("State")
Outputs = TypeVar("Outputs")
Aux = TypeVar("Aux")
_LinenState = tuple[VariableDict, ArrayLike]


@dataclass(frozen=True, kw_only=True)
class Network(Generic[Parameters, State, Outputs]):
    """A model as functions of its parameters, which an optimizer trains, and of the rest of its state.

    Training changes the rest by other means: running statistics, state that norms carry from one backward pass to the
    next, and the source of random numbers.

    Attributes:
        init: `seed -> (parameters, rest)`.
        train: `(parameters, rest, inputs, t, mask=None) -> (outputs, rest)`, step t of training; the mask, (batch,),
            is True for examples that count, and reaches the module, as `mask=`, unless it is `None`.
        evaluate: `(parameters, rest, inputs) -> outputs`.
        carried: `rest -> (carried, put)`: the part whose gradient is its new value, and a function from another value
            of this part to the rest that contains it.
        module: The Linen module; `None` for NNX.
    """

    init: Callable[[int], tuple[Parameters, State]]
    train: Callable[..., tuple[Outputs, State]]
    evaluate: Callable[[Parameters, State, Array], Outputs]
    carried: Callable[[State], tuple[object, Callable[[object], State]]]
    module: nn.Module | None = None

    def gradients(
        self,
        objective: Callable[[Outputs], tuple[Array, Aux]],
        params: Parameters,
        rest: State,
        inputs: Array,
        t: Array,
        mask: Array | None = None,
    ) -> tuple[tuple[Array, Aux], Parameters, State]:
        """Differentiate one step of training.

        Args:
            objective: `outputs -> (loss, auxiliary output)`.
            params: Parameters.
            rest: State other than parameters.
            inputs: Examples.
            t: Number of the step.
            mask: Examples that count, (batch,); `None` is all of them.

        Returns:
            `(loss, auxiliary output)`, the gradients of the parameters, and the rest of the state after the step:
            running statistics after the forward pass, and the state that norms carry after the backward pass.
        """
        carried, put = self.carried(rest)

        def loss(params: Parameters, carried: object) -> tuple[Array, tuple[Aux, State]]:
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
    def init(seed: int) -> tuple[Collection, _LinenState]:
        variables = dict(module.init(jax.random.key(seed), inputs, train=False))
        return variables.pop("params", {}), (variables, np.uint32(seed))

    def train(
        params: Collection, rest: _LinenState, inputs: Array, t: Array, mask: Array | None = None
    ) -> tuple[object, _LinenState]:
        averages, seed = rest
        rngs = {"params": jax.random.fold_in(jax.random.key(seed), t)}  # what dropout and others fall back to
        variables = {"params": params, **averages}
        options = {"train": True, "mutable": list(averages), "rngs": rngs, **_masked(mask)}
        outputs, averages = module.apply(variables, inputs, **options)
        return outputs, (averages, seed)

    def evaluate(params: Collection, rest: _LinenState, inputs: Array) -> object:
        return module.apply({"params": params, **rest[0]}, inputs, train=False)

    def carried(rest: _LinenState) -> tuple[object, Callable[[object], _LinenState]]:
        variables, seed = rest
        if OVERWRITE_WITH_GRADIENT not in variables:
            return {}, lambda new: rest
        return variables[OVERWRITE_WITH_GRADIENT], lambda new: (
            {**variables, OVERWRITE_WITH_GRADIENT: cast(Collection, new)},
            seed,
        )

    return Network(init=init, train=train, evaluate=evaluate, carried=carried, module=module)


def _nnx(model: Model, norm: Norm) -> Network[nnx.State, nnx.State, object]:
    def make(seed: int) -> nnx.Module:
        module = model(_with_own_stream(norm, seed), rngs=nnx.Rngs(seed))
        if not isinstance(module, nnx.Module):
            raise refusal("`model(norm, rngs=...)` to be an NNX module", module, "Return the module.")
        return module

    module = nnx.eval_shape(lambda: make(0))
    module.train()
    training, _, abstract = nnx.split(module, nnx.Param, ...)
    module.eval()
    evaluating = nnx.split(module, nnx.Param, ...)[0]

    def init(seed: int) -> tuple[nnx.State, nnx.State]:
        _, params, rest = nnx.split(make(seed), nnx.Param, ...)
        return params, _without_keys(rest)

    def merged(graph: nnx.GraphDef[nnx.Module], params: nnx.State, rest: nnx.State) -> Callable[..., object]:
        rest = jax.tree.map(lambda of, leaf: jax.random.wrap_key_data(leaf) if _is_key(of) else leaf, abstract, rest)
        return cast(Callable[..., object], nnx.merge(graph, params, rest))

    def train(
        params: nnx.State, rest: nnx.State, inputs: Array, t: Array, mask: Array | None = None
    ) -> tuple[object, nnx.State]:
        module = merged(training, params, rest)
        outputs = module(inputs, **_masked(mask))
        _, _, rest = nnx.split(module, nnx.Param, ...)
        return outputs, _without_keys(rest)

    def evaluate(params: nnx.State, rest: nnx.State, inputs: Array) -> object:
        return merged(evaluating, params, rest)(inputs)

    def carried(rest: nnx.State) -> tuple[object, Callable[[object], nnx.State]]:
        part, others = nnx.split_state(rest, OverwriteWithGradient, ...)
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


def _with_own_stream(norm: Norm, seed: int) -> Norm:
    """Return the norm with a random stream of its own: other parameters must not depend on how many it draws."""
    rngs = nnx.Rngs(jax.random.fold_in(jax.random.key(seed), 2**32 - 1))  # the model's own count from 0
    make = norm.entry.nnx
    entry = dataclasses.replace(norm.entry, nnx=lambda features, _, options: make(features, rngs, options))
    return dataclasses.replace(norm, entry=entry)


def _without_keys(rest: nnx.State) -> nnx.State:
    """Replace random keys by the numbers behind them, which NumPy can stack."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, rest)


def _is_key(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
