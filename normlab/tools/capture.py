"""Statistics of what goes into the norms of a model, and of what comes out, reduced on the device."""

import functools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.core import FrozenDict, freeze
from jax import Array
from jax.custom_batching import custom_vmap
from jax.extend.core import get_opaque_trace_state

from normlab._core.reduction import canonical_axes
from normlab.errors import BadInput
from normlab.functional.combined.representative import RepresentativeBatchNormLayer
from normlab.functional.continual_norm import ContinualNormLayer
from normlab.introspect.applied import Static, Variables, applied, partitioned
from normlab.introspect.calls import Call, Hook, Module, variable_of
from normlab.introspect.kinds import Recognised, norm_kind
from normlab.introspect.modes import Method
from normlab.linen import ContinualNorm, RepresentativeBatchNorm
from normlab.nnx import ContinualNorm as NNXContinualNorm
from normlab.nnx import RepresentativeBatchNorm as NNXRepresentativeBatchNorm

__all__ = ["Capture", "Captured", "Statistic", "counted"]

Found = TypeVar("Found")
Statistic: TypeAlias = Callable[[str, int, Array, Array | None, Any], Found]
"""`(path, call, input, mask, output) -> tree of arrays` of a norm, traced as a part of the model."""

_Key: TypeAlias = tuple[str, int]


@dataclass(frozen=True)
class Captured(Generic[Found]):
    """One call of a model, with statistics of its norms.

    Attributes:
        output: Output of the model.
        variables: Variables after the call: of Linen all, those that the call changed replaced; of NNX the state.
        statistics: By path of a norm: for each of its calls in order, for each run of this call in order, what the
            statistic returned. A call has several runs under `scan`.
    """

    output: Any
    variables: Variables
    statistics: Mapping[str, tuple[tuple[Found, ...], ...]]


class Capture(Generic[Found]):
    """A compiled model that returns statistics of its norms with each call.

    Statistics are a part of the compiled program, so that no activation outlives its layer. Those of norms inside
    `scan`, `remat`, `nn.jit` and other transforms reach the host by ordered callbacks; all others are outputs.

    Example:
        >>> model, x = nn.Sequential([nn.Dense(4), nn.LayerNorm()]), jax.numpy.ones((2, 3))
        >>> variables = model.init(jax.random.key(0), x)
        >>> means = Capture(model, lambda path, call, x, mask, y: x.mean(0))
        >>> ((mean,),) = means(variables, x).statistics["layers_1"]
        >>> mean.shape
        (4,)
    """

    def __init__(
        self,
        model: Module,
        statistic: Statistic[Found],
        *,
        paths: Collection[str] | None = None,
        method: Method = None,
        train: bool | None = None,
        recognise: Recognised = (),
        run: Hook = Call.proceed,
        stacked: bool = False,
    ) -> None:
        """Prepare a model; it stays as it is.

        Args:
            model: A module of Linen or NNX.
            statistic: `(path, call, input, mask, output) -> tree of arrays`, called with each call of a norm while the
                model is traced. `call` counts the calls of the norm in the trace; `input` is the array whose
                statistics the norm takes, which is its first argument, in continual norm after the group norm, in
                representative batch norm after its own centering; `mask` is `None` unless the call has one.
            paths: Paths of the norms; `None` is all, but not the norms of kernels.
            method: The method to be called; `None` is `__call__`.
            train: The mode of an NNX model; `None` leaves it. The call of a Linen model says its own.
            recognise: Further types of norms, each with its kind.
            run: Calls a norm whose statistics are taken, as `Call.proceed` does, or in another way.
            stacked: Whether to take the lanes of a `vmap` for runs, in the order of the axis; they are refused
                otherwise.

        Raises:
            BadInput: If the model is no Flax module.
        """
        self._model, self._statistic, self._paths = model, statistic, paths
        self._recognise, self._run_norm, self._stacked = recognise, run, stacked
        self._options: dict[str, Any] = {"method": method, "train": train, "recognise": recognise}
        self._own = None if isinstance(model, nn.Module) else applied(model, None, self._around, **self._options)
        self._outputs: dict[_Key, Found] = {}
        self._received: dict[_Key, list[Found]] = {}
        self._calls: dict[str, int] = {}
        self._calls_back = False
        self._outermost: object = None
        self._compiled = jax.jit(self._run, static_argnums=0)

    def __call__(
        self, variables: Variables | None, *args: object, rngs: Mapping[str, Array] | None = None, **kwargs: object
    ) -> Captured[Found]:
        """Call the model.

        Args:
            variables: Variables of a Linen model; the state of an NNX model, `None` for its own.
            *args: Arguments of the call.
            rngs: Random streams of the call.
            **kwargs: Keyword arguments of the call.

        Raises:
            BadInput: If a norm is under `vmap`, where its runs have no order, unless lanes are `stacked`.
        """
        arrays, joined, key = partitioned((args, kwargs))
        given: Any = self._own.variables if variables is None and self._own else variables
        self._received.clear()
        output, after, outputs = self._compiled(Static(key, joined), given, arrays, rngs)
        if self._calls_back:
            jax.effects_barrier()
        whole = _replaced(given, after) if isinstance(self._model, nn.Module) else after
        return Captured(output, whole, _by_path(outputs, self._received))

    def _run(self, static: Static, variables: Any, arrays: list[Any], rngs: Any) -> tuple[Any, Any, dict[_Key, Found]]:
        """Call the model while it is traced; return output, variables and statistics."""
        self._outputs, self._calls = {}, {}
        self._outermost = get_opaque_trace_state(convention="flax")
        call = self._own or applied(self._model, variables, self._around, **self._options)
        args, kwargs = static.joined(arrays)
        output, after = call.call(variables, args, kwargs, rngs)
        outputs, self._outputs = self._outputs, {}
        return output, after, outputs

    def _around(self, call: Call, /) -> object:
        """Take the statistics of a call of a norm."""
        kind = norm_kind(call.module, self._recognise)
        x, chosen = call.input, self._paths is None or call.path in self._paths
        if kind is None or kind.name == "weight" or not chosen or not isinstance(x, Array | np.ndarray):
            return call.proceed()
        number = self._calls.get(call.path, 0)
        self._calls[call.path] = number + 1
        y, x, mask = self._run_norm(call), jnp.asarray(x), call.mask
        found = self._statistic(call.path, number, counted(call.module, x, mask), mask, y)
        if get_opaque_trace_state(convention="flax") == self._outermost:
            self._outputs[call.path, number] = found
        else:
            self._calls_back = True
            self._call_back((call.path, number), jax.lax.stop_gradient(found), 0)
        return y

    def _call_back(self, key: _Key, found: Found, lanes: int) -> None:
        """Send the statistics of a run of a call to the host, with so many axes of lanes in front.

        Raises:
            BadInput: If the run has lanes, and they are refused.
        """

        @custom_vmap
        def sent(found: Found) -> Found:
            jax.debug.callback(functools.partial(self._receive, key, lanes), found, ordered=True)
            return found

        @sent.def_vmap
        def _(size: int, batched: list[Found], found: Found) -> tuple[Found, Found]:
            if not self._stacked:
                raise BadInput(
                    f"Expected norms whose runs have an order, got `{key[0]}` under `vmap`. Leave it out, or use a "
                    "`scan`."
                )
            whole = jax.tree.map(
                lambda leaf, has: leaf if has else jnp.broadcast_to(leaf, (size, *leaf.shape)), found, batched[0]
            )
            self._call_back(key, whole, lanes + 1)
            return whole, jax.tree.map(lambda _: True, whole)

        sent(found)

    def _receive(self, key: _Key, lanes: int, found: Found) -> None:
        """Keep the statistics of a run of a call, those of each lane on their own."""
        if lanes:
            leaves, structure = jax.tree.flatten(found)
            for lane in zip(*leaves, strict=True):
                self._receive(key, lanes - 1, jax.tree.unflatten(structure, lane))
        else:
            self._received.setdefault(key, []).append(found)


def _replaced(variables: Variables, changed: Variables) -> Variables:
    """Return variables of Linen with some collections replaced, frozen if they were."""
    whole = {**variables, **changed}
    return freeze(whole) if isinstance(variables, FrozenDict) else whole


def _by_path(
    outputs: Mapping[_Key, Found], received: Mapping[_Key, list[Found]]
) -> dict[str, tuple[tuple[Found, ...], ...]]:
    """Return statistics by path, calls in the order in which they were traced."""
    runs = {key: (found,) for key, found in outputs.items()} | {key: tuple(all) for key, all in received.items()}
    calls: dict[str, list[tuple[Found, ...]]] = {}
    for path, number in sorted(runs):  # the body of a scan is traced twice, and its first calls are never run
        calls.setdefault(path, []).append(runs[path, number])
    return {path: tuple(several) for path, several in calls.items()}


def counted(module: Module, x: Array, mask: Array | None) -> Array:
    """Return the array whose statistics a norm takes, given its input."""
    is_other = isinstance(module, _OF_ANOTHER_ARRAY)
    layer = module.layer() if is_other else None
    if isinstance(layer, ContinualNormLayer):
        return layer.normalized(x, canonical_axes(layer.axis, x.ndim), mask)
    if isinstance(layer, RepresentativeBatchNormLayer):
        parameters = {"center_weight": variable_of(module, "params", "center_weight")}
        return layer.centred(x, parameters, canonical_axes(layer.axis, x.ndim), mask)
    return x


_OF_ANOTHER_ARRAY = (ContinualNorm, NNXContinualNorm, RepresentativeBatchNorm, NNXRepresentativeBatchNorm)
