"""Check the arguments that a model takes. Imports no Flax."""

import inspect
import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from normlab import expect
from normlab.errors import BadInput, one_line


def check_call(kind: type) -> None:
    """Refuse a Linen module that does not take `train`.

    Raises:
        BadInput: If it does not.
    """
    parameters = inspect.signature(kind.__call__).parameters
    if "train" not in parameters and not any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        raise BadInput(
            f"Expected `{kind.__name__}.__call__` to take `train`, got ({', '.join(list(parameters)[1:])}). Write "
            "`def __call__(self, x, *, train)`, and hand it on: `self.norm.linen(train=train)`."
        )


def check_takes(model: Callable[..., Any], fields: Iterable[str]) -> None:
    """Refuse a model that cannot be made with a norm and some fields.

    Raises:
        BadInput: If it does not take them.
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


def signature_of(model: Callable[..., Any]) -> inspect.Signature:
    """Signature of a model; Flax hides those of the constructors of NNX."""
    if isinstance(model, type) and (nnx := sys.modules.get("flax.nnx")) and issubclass(model, nnx.Module):
        return inspect.signature(partial(model.__init__, None))
    try:
        return inspect.signature(model)
    except ValueError:  # some of what is written in C has none
        return inspect.Signature([inspect.Parameter("_", inspect.Parameter.VAR_POSITIONAL)])
