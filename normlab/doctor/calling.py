"""A compiled call of a model in one mode, which measures its norms."""

from collections.abc import Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Generic, TypeVar

import jax
from flax import linen as nn
from flax import nnx
from jax import Array

from normlab.introspect import nnx_hook
from normlab.introspect.applied import Variables
from normlab.introspect.calls import Module
from normlab.introspect.kinds import is_dropout, norm_kind
from normlab.introspect.modes import Method, Modes
from normlab.tools import Capture, Captured
from normlab.tools.batches import Arguments, examples
from normlab.tools.capture import Statistic
from normlab.tools.estimation import by_batch

__all__ = ["CallOptions", "MeasuringCall", "by_run", "keep_still", "still_norms"]

Found = TypeVar("Found")


@dataclass(frozen=True)
class CallOptions:
    """The way a model is called.

    Attributes:
        model: The model.
        modes: The keywords of both modes.
        method: The method to be called.
        rngs: Random streams of a call.
        still: Paths of norms of an NNX model that evaluate in training, too.
    """

    model: Module
    modes: Modes
    method: Method
    rngs: Mapping[str, Array]
    still: Collection[str] = ()


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
            keep_still(model, options.still)
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


def still_norms(model: Module) -> frozenset[str]:
    """Return the paths of an NNX model's norms that evaluate while another norm or dropout of it trains.

    None if the whole model is in evaluation mode.
    """
    if not isinstance(model, nnx.Module):
        return frozenset()
    modules = {path: one for path, one in nnx_hook.modules(model).items() if norm_kind(one) or is_dropout(one)}
    modes = {path: _evaluates(one) for path, one in modules.items()}
    still = frozenset(path for path, evaluates in modes.items() if evaluates and norm_kind(modules[path]))
    return still if False in modes.values() else frozenset()


def _evaluates(module: nnx.Module) -> bool | None:
    """Return whether a norm or a dropout of NNX evaluates; `None` if it has no mode, or none is set."""
    mode = getattr(module, "use_running_average", getattr(module, "deterministic", None))
    return mode if isinstance(mode, bool) else None


def keep_still(model: nnx.Module, paths: Collection[str]) -> None:
    """Put norms of an NNX model into evaluation mode, in place."""
    for path, module in nnx_hook.modules(model).items():
        if path in paths:
            setattr(module, "use_running_average", True)  # noqa: B010


def by_run(statistics: Mapping[str, tuple[tuple[Found, ...], ...]]) -> dict[str, tuple[Found, ...]]:
    """Return the calls of each norm; a norm with several runs or lanes in a call has a path for each."""
    found: dict[str, list[Found]] = {}
    for path, calls in statistics.items():
        for runs in calls:
            for index, part in enumerate(runs):
                found.setdefault(path if len(runs) == 1 else f"{path}[{index}]", []).append(part)
    return {path: tuple(parts) for path, parts in found.items()}
