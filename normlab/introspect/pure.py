"""A Flax model, Linen or NNX, as pure functions."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT

from normlab.expect import refusal
from normlab.introspect.signature import check_call, check_takes
from normlab.nnx import OverwriteWithGradient
from normlab.norms import Norm
from normlab.notation import PyTree

Model = Callable[..., nn.Module | nnx.Module]
"""Makes a Flax model from a norm; see `network`."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """A model as pure functions of its parameters and its model state.

    The model state is everything that training changes without an optimizer: running statistics, the values that norms
    carry from one backward pass to the next, and the state of random number generators.

    Attributes:
        init: `seed -> (parameters, model_state)`.
        train: `(parameters, model_state, inputs, t, mask=None) -> (outputs, model_state)`, step t of training. The
            mask, (batch,), is True for examples that count; the module receives `mask=` only if there is one.
        evaluate: `(parameters, model_state, inputs) -> outputs`.
        carried: `model_state -> (carried, put)`: the part whose gradient is its new value, and a function that returns
            the model state with another such part.
        module: The Linen module; `None` for NNX.
    """

    init: Callable[[int], tuple[PyTree, PyTree]]
    train: Callable[..., tuple[PyTree, PyTree]]
    evaluate: Callable[[PyTree, PyTree, jax.Array], PyTree]
    carried: Callable[[PyTree], tuple[PyTree, Callable[[PyTree], PyTree]]]
    module: nn.Module | None = None

    def gradients(
        self,
        objective: Callable[[PyTree], tuple[jax.Array, PyTree]],
        params: PyTree,
        model_state: PyTree,
        inputs: jax.Array,
        t: jax.Array,
        mask: jax.Array | None = None,
    ) -> tuple[tuple[jax.Array, PyTree], PyTree, PyTree]:
        """Differentiate one step of training.

        Args:
            objective: `outputs -> (loss, anything else)`.
            params: Parameters.
            model_state: State that training changes without the optimizer.
            inputs: Examples.
            t: Number of the step.
            mask: Examples that count, (batch,); `None` is all of them.

        Returns:
            `(loss, anything else)`, the gradients of the parameters, and the model state after the step:
            running statistics from the forward pass and the values that norms carry from the backward pass.
        """
        carried, put = self.carried(model_state)

        def loss(params: PyTree, carried: PyTree) -> tuple[jax.Array, PyTree]:
            outputs, after = self.train(params, put(carried), inputs, t, mask)
            value, aux = objective(outputs)
            return value, (aux, after)

        (value, (aux, after)), (gradients, new) = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, carried)
        return (value, aux), gradients, self.carried(after)[1](new)


def network(model: Model, norm: Norm, inputs: np.ndarray, **fields: object) -> Network:
    """Make a network from a model; one that takes `rngs` is NNX.

    Under one seed all parameters that are not the norm's start the same for every norm: Linen draws them by the path of
    their module, and in NNX the norm draws from a stream of its own.

    Args:
        model: `model(norm)` gives a Linen module, called as `module(inputs, train=...)`; `model(norm, rngs=...)` gives
            an NNX module, called as `module(inputs)`.
        norm: For the model.
        inputs: A few examples.
        **fields: For the model, too.

    Raises:
        ValueError: If the model is neither.
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


def _linen(module: nn.Module, inputs: np.ndarray) -> Network:
    def init(seed: int) -> tuple[PyTree, PyTree]:
        variables = dict(module.init(jax.random.key(seed), inputs, train=False))
        return variables.pop("params", {}), (variables, np.uint32(seed))

    def train(
        params: PyTree, model_state: PyTree, inputs: jax.Array, t: jax.Array, mask: jax.Array | None = None
    ) -> tuple[PyTree, PyTree]:
        averages, seed = model_state
        rngs = {"params": jax.random.fold_in(jax.random.key(seed), t)}  # what dropout and others fall back to
        variables = {"params": params, **averages}
        options = {"train": True, "mutable": list(averages), "rngs": rngs, **_masked(mask)}
        outputs, averages = module.apply(variables, inputs, **options)
        return outputs, (averages, seed)

    def evaluate(params: PyTree, model_state: PyTree, inputs: jax.Array) -> PyTree:
        return module.apply({"params": params, **model_state[0]}, inputs, train=False)

    def carried(model_state: PyTree) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
        variables, seed = model_state
        if OVERWRITE_WITH_GRADIENT not in variables:
            return {}, lambda new: model_state
        return variables[OVERWRITE_WITH_GRADIENT], lambda new: ({**variables, OVERWRITE_WITH_GRADIENT: new}, seed)

    return Network(init=init, train=train, evaluate=evaluate, carried=carried, module=module)


def _nnx(model: Model, norm: Norm) -> Network:
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

    def init(seed: int) -> tuple[PyTree, PyTree]:
        _, params, model_state = nnx.split(make(seed), nnx.Param, ...)
        return params, _without_keys(model_state)

    def merged(graph: nnx.GraphDef[nnx.Module], params: PyTree, model_state: PyTree) -> Callable[..., PyTree]:
        model_state = jax.tree.map(
            lambda of, leaf: jax.random.wrap_key_data(leaf) if _is_key(of) else leaf, abstract, model_state
        )
        return nnx.merge(graph, params, model_state)

    def train(
        params: PyTree, model_state: PyTree, inputs: jax.Array, t: jax.Array, mask: jax.Array | None = None
    ) -> tuple[PyTree, PyTree]:
        module = merged(training, params, model_state)
        outputs = module(inputs, **_masked(mask))
        _, _, model_state = nnx.split(module, nnx.Param, ...)
        return outputs, _without_keys(model_state)

    def evaluate(params: PyTree, model_state: PyTree, inputs: jax.Array) -> PyTree:
        return merged(evaluating, params, model_state)(inputs)

    def carried(model_state: PyTree) -> tuple[PyTree, Callable[[PyTree], PyTree]]:
        part, others = nnx.split_state(model_state, OverwriteWithGradient, ...)
        return part, lambda new: nnx.merge_state(new, others)

    return Network(init=init, train=train, evaluate=evaluate, carried=carried)


def _masked(mask: jax.Array | None) -> dict[str, jax.Array]:
    """Return the mask as a keyword argument, if there is one: models that never receive one need not accept it."""
    return {} if mask is None else {"mask": mask}


def _is_nnx(model: Model) -> bool:
    while isinstance(model, functools.partial):
        model = model.func
    if isinstance(model, type):  # Flax's metaclass hides the arguments of NNX classes
        return issubclass(model, nnx.Module)
    return "rngs" in inspect.signature(model).parameters


def _with_own_stream(norm: Norm, seed: int) -> Norm:
    """Let a norm draw its parameters from a stream of its own: other parameters must not depend on their number."""
    rngs = nnx.Rngs(jax.random.fold_in(jax.random.key(seed), 2**32 - 1))  # the model's own count from 0
    make = norm.entry.nnx
    entry = dataclasses.replace(norm.entry, nnx=lambda features, _, options: make(features, rngs, options))
    return dataclasses.replace(norm, entry=entry)


def _without_keys(model_state: PyTree) -> PyTree:
    """Replace random keys by their key data, which NumPy can stack."""
    return jax.tree.map(lambda leaf: jax.random.key_data(leaf) if _is_key(leaf) else leaf, model_state)


def _is_key(leaf: jax.Array | jax.ShapeDtypeStruct) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
