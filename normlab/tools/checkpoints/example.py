"""A model and a call of it, and the variables that the model has."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import jax
import numpy as np
from flax import linen as nn
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from flax.typing import VariableDict

from normlab.errors import BadInput, one_line
from normlab.introspect.applied import check_model, partitioned
from normlab.introspect.calls import Module
from normlab.introspect.modes import Method, modes
from normlab.tools.checkpoints.trees import Expected, Flat, Keys

__all__ = ["Example", "expected_of", "flat_state", "flat_variables", "variables_of", "with_state"]


@dataclass(frozen=True)
class Example:
    """A model and a call of it.

    Attributes:
        model: A model of Linen or NNX.
        args: Inputs of a call of the model, arrays or their shapes.
        options: Keywords of the call; also `method` and `rngs`.
        evaluate: Keywords of the call that say that the model evaluates; found in its signature unless given.
        variables: Variables of a Linen model, of which shapes count; made by `model.init` unless given.
    """

    model: Module
    args: tuple[object, ...] = ()
    options: Mapping[str, object] = field(default_factory=dict)
    evaluate: Mapping[str, object] | None = None
    variables: VariableDict | None = None


def expected_of(example: Example) -> Expected:
    """Return the variables that the model has; nothing is computed but shapes.

    Raises:
        BadInput: If the model is no Flax module, or cannot be called.
    """
    check_model(example.model)
    if isinstance(example.model, nnx.Module):
        flat = flat_state(example.model)
        optional = [keys for keys, variable in flat.items() if isinstance(variable, nnx.RngState)]
        shapes = {keys: _shape(variable.get_value()) for keys, variable in flat.items() if keys not in optional}
        return Expected(shapes, optional, alone=True)
    variables = _initial(example) if example.variables is None else example.variables
    return Expected({keys: _shape(leaf) for keys, leaf in flat_variables(nn.unbox(variables)).items()})


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(leaf), getattr(leaf, "dtype", np.result_type(type(leaf))))


def _initial(example: Example) -> VariableDict:
    """Return the shapes of the variables with which a Linen model starts."""
    model, options = cast(nn.Module, example.model), dict(example.options)
    if not example.args:
        raise BadInput("Expected the inputs of a call of a Linen model, got none. Give them after the model.")
    method = cast(Method, options.pop("method", None))
    rngs = cast("Mapping[str, jax.Array]", options.pop("rngs", None) or {})
    told = modes(model, method, evaluate=example.evaluate).evaluate
    arrays, joined, _ = partitioned((example.args, {**told, **options}))

    def init(arrays: list[jax.Array]) -> VariableDict:
        args, kwargs = joined(arrays)
        return model.init({"params": jax.random.key(0), **rngs}, *args, method=method, **kwargs)

    try:
        return jax.eval_shape(init, arrays)
    except Exception as error:  # code of the user's
        raise BadInput(
            f"Expected a model that `init` can call with the inputs, got {type(error).__name__}: "
            f"{one_line(error, kind=False).rstrip('.')}. Give other inputs, or `variables`."
        ) from error


def flat_variables(variables: VariableDict) -> Flat:
    """Return the variables of a Linen model by keys."""
    return flatten_dict({name: dict(collection) for name, collection in variables.items()})


def flat_state(model: nnx.Module) -> dict[Keys, nnx.Variable[Any]]:
    """Return the variables of an NNX model by keys, which are text also for lists."""
    flat = nnx.to_flat_state(nnx.state(model))
    return {_texts(keys): variable for keys, variable in flat}


def with_state(model: nnx.Module, values: Flat) -> nnx.Module:
    """Return a copy of an NNX model with other values; variables without one keep theirs."""
    twin = nnx.clone(model)
    flat = nnx.to_flat_state(nnx.state(twin))
    new = {keys: variable.replace(values.get(_texts(keys), variable.get_value())) for keys, variable in flat}
    nnx.update(twin, nnx.from_flat_state(new))
    return twin


def _texts(keys: tuple[object, ...]) -> Keys:
    return tuple(map(str, keys))


def variables_of(values: Flat) -> VariableDict:
    """Return the variables of a Linen model from values by keys."""
    return unflatten_dict(values)
