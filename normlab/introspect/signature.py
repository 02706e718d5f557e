"""Check the arguments that a model takes, without importing Flax."""

import inspect
import sys
from collections.abc import Callable, Iterable
from functools import partial

from normlab import expect
from normlab.errors import BadInput, one_line


def check_call(kind: type) -> None:
    """Refuse a Linen module whose `__call__` does not take `train`.

    Raises:
        BadInput: If `train` is missing.
    """
    parameters = inspect.signature(kind.__call__).parameters
    if "train" not in parameters and not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        raise BadInput(
            f"Expected `{kind.__name__}.__call__` to take `train`, got ({', '.join(list(parameters)[1:])}). Write "
            "`def __call__(self, x, *, train)`, and hand it on: `self.norm.linen(train=train)`."
        )


def check_takes(model: Callable[..., object], fields: Iterable[str]) -> None:
    """Refuse a model that does not take a norm and some fields.

    Raises:
        BadInput: If the model takes other arguments.
    """
    given = dict.fromkeys(fields)
    try:
        signature_of(model).bind(None, **given)
    except TypeError as error:
        extra = "".join(f" and `{name}`" for name in given)
        raise BadInput(
            f"Expected `model` to take a norm{extra}, got {expect.shown(model)}: {one_line(error, kind=False)}. Write "
            f"`def model({', '.join(['norm', *given])}): ...`, or a class with these fields."
        ) from None


def signature_of(model: Callable[..., object]) -> inspect.Signature:
    """Return the signature of a model; Flax hides those of NNX constructors."""
    if isinstance(model, type) and (nnx := sys.modules.get("flax.nnx")) and issubclass(model, nnx.Module):
        return inspect.signature(partial(model.__init__, None))
    try:
        return inspect.signature(model)
    except ValueError:  # some functions written in C have none
        return inspect.Signature([inspect.Parameter("_", inspect.Parameter.VAR_POSITIONAL)])
