"""State of Linen norms by name."""

from collections.abc import Collection, Mapping

import jax
from flax import linen as nn

from normlab.functional.state import check_state

Collections = Mapping[str, Mapping[str, jax.Array]]
"""Initial values by collection and name."""


def state_variables(module: nn.Module, start: Collections, optional: Collection[str] = ()) -> dict[str, nn.Variable]:
    """Return the variables of a norm's state by name.

    While the module is initialized they are made. Later they are found; where there is none, they are made as Flax's
    are, if their collection is mutable. A part of them is an error.

    Args:
        module: The norm.
        start: Initial values of what is made.
        optional: Names that need not be there, and that may be.

    Raises:
        ValueError: If some are missing, or there are others.
    """
    collections = {name: collection for collection, values in start.items() for name in values}
    there = module.variables
    found = {name: collection for collection in start for name in there.get(collection, {})}
    if found and not module.is_initializing():
        kind = f"{type(module).__name__} {'/'.join(module.path)}".rstrip()
        check_state(kind, found, [n for n in collections if n not in optional], [*collections, *optional])
        collections = found
    return {
        name: module.variable(collection, name, lambda c=collection, n=name: start[c][n])
        for name, collection in collections.items()
    }
