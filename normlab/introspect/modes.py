"""Arguments that select training or evaluation in a call of a model."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TypeAlias

from flax import linen as nn

from normlab.errors import BadInput
from normlab.introspect.calls import Module
from normlab.introspect.replaced import Standing

__all__ = ["Method", "Modes", "modes", "told", "unknown_mode"]

Method: TypeAlias = str | Callable[..., object] | None
"""A method of a model, by name or as a function; `None` is `__call__`."""

_TRAINING = {
    **dict.fromkeys(("train", "training", "is_training", "is_train"), True),
    **dict.fromkeys(("deterministic", "eval", "use_running_average"), False),
}
"""Names of arguments that say the mode, and their value in training."""


@dataclass(frozen=True)
class Modes:
    """The keyword arguments by which a call of a model trains, and those by which it evaluates.

    Attributes:
        train: Keywords in training.
        evaluate: Keywords at evaluation.
        known: Whether the model can be told: its signature has such an argument, or the keywords were given, or the
            model is of NNX, whose modules have the methods `train()` and `eval()`.
    """

    train: Mapping[str, object]
    evaluate: Mapping[str, object]
    known: bool

    def of(self, train: bool) -> Mapping[str, object]:
        """Return the keywords of one mode."""
        return self.train if train else self.evaluate


def modes(
    model: Module,
    method: Method = None,
    *,
    train: Mapping[str, object] | None = None,
    evaluate: Mapping[str, object] | None = None,
) -> Modes:
    """Find the arguments that switch a model between training and evaluation.

    The arguments `train`, `training`, `is_training` and `is_train` are True in training; `deterministic`, `eval` and
    `use_running_average` are True at evaluation. All that the signature of the call has are set, but those that a field
    of a Linen model sets.

    Args:
        model: The model.
        method: The method to be called.
        train: Keywords of the call in training, if they are known.
        evaluate: Keywords of the call at evaluation, if they are known.

    Returns:
        The keywords of both modes.

    Example:
        >>> class Net(nn.Module):
        ...     def __call__(self, x, *, train):
        ...         return x
        >>> found = modes(Net())
        >>> dict(found.train), dict(found.evaluate)
        ({'train': True}, {'train': False})
    """
    if isinstance(model, Standing):
        return modes(model.original, method, train=train, evaluate=evaluate)
    found = {name: value for name, value in _TRAINING.items() if name in _parameters(model, method)}
    if isinstance(model, nn.Module):  # whose arguments must not say again what a field says
        found = {name: value for name, value in found.items() if getattr(model, name, None) is None}
    opposite = {name: not value for name, value in found.items()}
    return Modes(
        MappingProxyType(dict(found if train is None else train)),
        MappingProxyType(dict(opposite if evaluate is None else evaluate)),
        bool(found) or not isinstance(model, nn.Module) or (train is not None and evaluate is not None),
    )


def told(
    model: Module, method: Method, args: Sequence[object], kwargs: Mapping[str, object], train: bool | None
) -> Mapping[str, object]:
    """Return the keywords to add to a call of a model so that it trains or evaluates.

    Args:
        model: The model.
        method: The method to be called.
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.
        train: The mode. `None` evaluates, unless the arguments say the mode.

    Returns:
        Keywords that the arguments do not have.
    """
    parameters = list(_parameters(model, method))
    given = {*parameters[: len(args)], *kwargs}
    found = modes(model, method).of(bool(train))
    if train is None and given & _TRAINING.keys():
        return {}
    return {name: value for name, value in found.items() if name not in given}


def unknown_mode() -> BadInput:
    """Return the error for a model with batch norms whose modes are not known."""
    return BadInput(
        "Expected to know how the model is told to train, got a call without an argument such as `train`. Give "
        "`train={...}` and `evaluate={...}`, the keywords of the call in either mode."
    )


def _parameters(model: Module, method: Method) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a method without `self`, which may be bound to the model or not."""
    call = method if callable(method) else getattr(type(model), method or "__call__")
    bound = inspect.ismethod(call)
    return inspect.signature(call if bound else partial(call, None)).parameters
