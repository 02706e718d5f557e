"""State of NNX norms by name, and parameters that no optimizer sees."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from normlab.functional.state import check_state

_STATISTICS = ("mean", "var", "std", "step")


class OverwriteWithGradient(nnx.Variable):
    """A variable whose gradient is its new value: no optimizer may have it, and `overwrite_with_gradient` sets it."""


class FrozenParam(nnx.Variable):
    """Scale or bias of a frozen norm: no `nnx.Param`, so that no gradient is taken and no weight decay shrinks it.

    `nnx.state(model, nnx.Param)` leaves it out; save and load `nnx.state(model)`. A state of `nnx.Param` loads into it
    by `nnx.update`, as a state or as a pure dict.
    """


def state_variables(
    module: nnx.Module, names: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, nnx.Variable[jax.Array]]:
    """Return the variables of a norm's state by name.

    `nnx.update` adds to a module what it does not have, and says nothing.

    Args:
        module: The norm.
        names: Of its state.
        optional: Names that need not be there.

    Raises:
        ValueError: If one is no variable, or there are others.
    """
    attributes = vars(module)
    found = [
        name
        for name, value in attributes.items()
        if isinstance(value, nnx.BatchStat | OverwriteWithGradient)
        or (name in _STATISTICS and isinstance(value, jax.Array | np.ndarray))  # from a pure dict, which brings no type
    ]
    known = [name for name in names if name not in optional or isinstance(attributes.get(name), nnx.Variable)]
    check_state(type(module).__name__, found, known, known)
    return {name: attributes[name] for name in known}


def read(variable: nnx.Variable[jax.Array]) -> jax.Array:
    """Return the value of a variable, which can be NumPy's where it was restored."""
    return jnp.asarray(variable[...])


def write(variable: nnx.Variable[jax.Array], value: jax.Array) -> None:
    """Give a variable a new value, of any dtype; assigning to `variable[...]` writes into restored NumPy arrays."""
    variable.set_value(value)
