"""A compiled call of a model in one mode, which measures its norms."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Generic, TypeVar

from flax import linen as nn
from flax import nnx
from jax import Array

from normlab.introspect.applied import Variables
from normlab.introspect.calls import Module
from normlab.introspect.modes import Method, Modes
from normlab.tools import Capture, Captured
from normlab.tools.batches import Arguments, examples
from normlab.tools.capture import Statistic
from normlab.tools.estimation import by_batch

__all__ = ["Caller", "Program", "by_run"]

Found = TypeVar("Found")


@dataclass(frozen=True)
class Caller:
    """The way a model is called.

    Attributes:
        model: The model.
        modes: The keywords of both modes.
        method: The method to be called.
        rngs: Random streams of a call.
    """

    model: Module
    modes: Modes
    method: Method
    rngs: Mapping[str, Array]


class Program(Generic[Found]):
    """A compiled call of a model in one mode, as on one device.

    Attributes:
        examples: Examples of the call that is being made.
    """

    def __init__(
        self, caller: Caller, statistic: Statistic[Found], paths: tuple[str, ...], *, train: bool, dropout: bool
    ) -> None:
        """Prepare a call; nothing is compiled yet.

        Args:
            caller: How the model is called.
            statistic: Of each call of a norm; see `Capture`.
            paths: Paths of the norms.
            train: The mode.
            dropout: Whether dropout does what the call says; it does nothing otherwise.
        """
        self._caller, self._train, self._dropout, model = caller, train, dropout, caller.model
        self.examples = 0
        if isinstance(model, nnx.Module):
            model = by_batch.nnx_copy(model, train=train, dropout=dropout, options=by_batch.ONE_DEVICE)
        self._capture = Capture(model, statistic, paths=paths, method=caller.method)

    def __call__(self, variables: Variables, call: Arguments) -> Captured[Found]:
        """Call the model."""
        (args, kwargs), caller = call, self._caller
        self.examples = examples(args, kwargs)
        quiet = by_batch.linen(dropout=self._dropout, options=by_batch.ONE_DEVICE)
        with quiet if isinstance(caller.model, nn.Module) else nullcontext():
            return self._capture(variables, *args, rngs=caller.rngs, **{**kwargs, **caller.modes.of(self._train)})


def by_run(statistics: Mapping[str, tuple[tuple[Found, ...], ...]]) -> dict[str, tuple[Found, ...]]:
    """Return the calls of each norm; a norm that a call runs several times has a path for each run."""
    found: dict[str, list[Found]] = {}
    for path, calls in statistics.items():
        for runs in calls:
            for index, part in enumerate(runs):
                found.setdefault(path if len(runs) == 1 else f"{path}[{index}]", []).append(part)
    return {path: tuple(parts) for path, parts in found.items()}
