"""Load the models that `normlab fold` and `normlab convert` wrote."""

import os
from collections.abc import Mapping
from typing import NamedTuple

from flax import nnx
from flax.typing import VariableDict

from normlab.introspect.calls import Module
from normlab.tools.checkpoints.example import Example
from normlab.tools.checkpoints.opened import opened

__all__ = ["Restored", "restore"]


class Restored(NamedTuple):
    """A model and its variables.

    Attributes:
        model: The model, with its norms folded or converted.
        variables: Its variables: those of a Linen model, or the state of a model of NNX.
    """

    model: Module
    variables: VariableDict | nnx.State


def restore(
    path: str | os.PathLike[str],
    model: Module,
    *args: object,
    evaluate: Mapping[str, object] | None = None,
    variables: VariableDict | None = None,
    **kwargs: object,
) -> Restored:
    """Return a model whose norms were folded or converted, and its variables, from its checkpoint.

    The checkpoint records how the model was changed; the checkpoint before need not be there any more.

    Args:
        path: Folder that `normlab fold` or `normlab convert` wrote.
        model: The model before, a module of Linen or NNX; it stays as it is.
        *args: Inputs of a call of a Linen model; only shapes count.
        evaluate: Keywords of the call that say that the model evaluates; found in its signature unless given.
        variables: Variables of a Linen model before, whose shapes are those of the checkpoint before; made by
            `model.init` unless given.
        **kwargs: Other keywords of the call; also `method` and `rngs`.

    Returns:
        The model, and its variables: those of a Linen model, or the state of a model of NNX.

    Raises:
        BadInput: If there is no checkpoint, or it is that of another model.
    """
    found = opened(path, Example(model, args, kwargs, evaluate, variables))
    values = found.variables
    return Restored(found.model, nnx.state(found.model) if values is None else values)
