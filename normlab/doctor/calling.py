"""A compiled call of a model in one mode, which measures its norms."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Generic, TypeVar

import jax
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

__all__ = ["CallOptions", "MeasuringCall", "by_run"]

Found = TypeVar("Found")


@dataclass(frozen=True)
class CallOptions:
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


class MeasuringCall(Generic[Found]):
    """A compiled call of a model in one mode, as on one device.

    Attributes:
        examples: Examples of the call that is being made.
    """

    def __init__(
        self, options: CallOptions, statistic: Statistic[Found], paths: tuple[str, ...], *, train: bool, dropout: bool
    ) -> None:
        """Prepare a call; nothing is compiled yet.

        Args:
            options: How the model is called.
            statistic: Of each call of a norm; see `Capture`.
            paths: Paths of the norms.
            train: The mode.
            dropout: Whether dropout does what the call says; it does nothing otherwise.
        """
        self._options, self._train, self._dropout, model = options, train, dropout, options.model
        self.examples = 0
        if isinstance(model, nnx.Module):
            model = by_batch.nnx_copy(model, train=train, dropout=dropout, options=by_batch.ONE_DEVICE)
        self._capture = Capture(model, statistic, paths=paths, method=options.method, stacked=True)

    def __call__(self, variables: Variables, call: Arguments, *, draw: int = 0) -> Captured[Found]:
        """Call the model.

        Args:
            variables: Variables of a Linen model, or the state of an NNX model.
            call: Arguments and keyword arguments.
            draw: Another number lets the call draw other random numbers.
        """
        (args, kwargs), rngs = call, self._options.rngs
        self.examples = examples(args, kwargs)
        if draw and isinstance(variables, nnx.State):
            variables = _advanced(variables, draw)
        elif draw:
            rngs = {name: jax.random.fold_in(key, draw) for name, key in rngs.items()}
        quiet = by_batch.linen(dropout=self._dropout, options=by_batch.ONE_DEVICE)
        with quiet if isinstance(self._options.model, nn.Module) else nullcontext():
            return self._capture(variables, *args, rngs=rngs, **{**kwargs, **self._options.modes.of(self._train)})


def _advanced(state: nnx.State, draws: int) -> nnx.State:
    """Return the state of a model whose random streams have made more draws."""
    counts, rest = nnx.split_state(state, nnx.RngCount, ...)
    return nnx.merge_state(jax.tree.map(lambda count: count + draws, counts), rest)


def by_run(statistics: Mapping[str, tuple[tuple[Found, ...], ...]]) -> dict[str, tuple[Found, ...]]:
    """Return the calls of each norm; a norm that a call runs several times has a path for each run."""
    found: dict[str, list[Found]] = {}
    for path, calls in statistics.items():
        for runs in calls:
            for index, part in enumerate(runs):
                found.setdefault(path if len(runs) == 1 else f"{path}[{index}]", []).append(part)
    return {path: tuple(parts) for path, parts in found.items()}
