"""Batches as they come from a loader, and the arguments by which a model is called with one."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import jax
import numpy as np
from jax.typing import ArrayLike

from normlab.errors import BadInput
from normlab.expect import refusal

__all__ = ["Arguments", "Call", "default_call", "examples"]

Arguments: TypeAlias = tuple[tuple[object, ...], Mapping[str, object]]
"""Positional and keyword arguments of a call."""

Call: TypeAlias = Callable[[object], Arguments]
"""`batch -> (args, kwargs)`."""

_NAMES = ("inputs", "image", "x")
_REMEDY = "Give `call=lambda batch: ((batch[...],), {})`, the arguments of the model."


def default_call(batch: object) -> Arguments:
    """Return the arguments of a model from a batch: an array, the first of a tuple, or the inputs of a dict.

    Args:
        batch: An array, or its shape; a tuple or list that starts with the inputs; or a mapping with `inputs`, `image`
            or `x`.

    Returns:
        Positional and keyword arguments.

    Raises:
        BadInput: If the batch is something else.

    Example:
        >>> default_call((np.zeros(2), np.ones(2)))
        ((array([0., 0.]),), {})
    """
    if isinstance(batch, Mapping):
        name = next((name for name in _NAMES if name in batch), None)
        if name is None:
            raise refusal(f"a batch with one of {', '.join(map(repr, _NAMES))}", ", ".join(map(str, batch)), _REMEDY)
        return (batch[name],), {}
    if isinstance(batch, tuple | list) and batch:
        return (batch[0],), {}
    if (isinstance(batch, jax.ShapeDtypeStruct) and batch.shape) or (isinstance(batch, ArrayLike) and np.ndim(batch)):
        return (batch,), {}
    raise refusal("a batch of arrays, a tuple or a dict", batch, _REMEDY)


def examples(args: tuple[object, ...], kwargs: Mapping[str, object]) -> int:
    """Return the size of a batch: of the first axis of the first array among the arguments.

    Raises:
        BadInput: If there is no array with an axis.
    """
    for leaf in jax.tree.leaves((args, dict(kwargs))):
        if np.ndim(leaf):
            return np.shape(leaf)[0]
    raise BadInput(f"Expected an array with an axis of examples among the arguments of the model, got none. {_REMEDY}")
