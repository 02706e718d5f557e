"""One step of training of the user's, on copies, and the variables before and after it."""

import copy
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.errors import ModifyScopeVariableError
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import ClosedJaxpr, Jaxpr

from normlab.doctor.measure import CallNumbers
from normlab.doctor.options import Read, State, Step
from normlab.errors import BadInput
from normlab.introspect import linen_hook, nnx_hook
from normlab.introspect.applied import is_layer
from normlab.introspect.graph import bodies
from normlab.introspect.markers import Markers
from normlab.tools import Site, leaves

__all__ = ["Stepped", "in_devices", "marked", "stepped", "updates", "updates_of", "variables_of"]

_tokens = itertools.count()


@dataclass(frozen=True)
class Stepped:
    """Variables before and after steps of training.

    Attributes:
        before: Variables by path.
        after: Variables by path after one step; empty where it failed.
        later: Variables by path after a second step.
        lost: Whether the step failed because it may not write statistics.
        variables: Variables before, for a call of the model.
    """

    before: Mapping[str, np.ndarray]
    after: Mapping[str, np.ndarray]
    later: Mapping[str, np.ndarray]
    lost: bool
    variables: Any


def stepped(step: Step, state: State, read: Read | None, batch: object) -> Stepped:
    """Run two steps on a copy of a state.

    Args:
        step: `(state, batch) -> state`, or a tuple whose first element is the state.
        state: The state; it stays as it is.
        read: `state -> variables` of Linen, or a module of NNX; `None` finds them.
        batch: A batch.
    """
    find = read or variables_of
    variables = find(state)
    before = _by_path(variables)
    copied = _copied(state)
    try:
        copied = _state(step(copied, _copied(batch)), copied)
        after = _by_path(find(copied))
        later = _by_path(find(_state(step(copied, _copied(batch)), copied)))
    except ModifyScopeVariableError:
        return Stepped(before, {}, {}, True, variables)
    return Stepped(before, after, later, False, variables)


def _state(result: State, state: State) -> State:
    """Return the state that a step returned; a step of NNX may return nothing, and change the model."""
    if result is None:
        return state
    same = jax.tree.structure(result) == jax.tree.structure(state)
    if isinstance(state, nnx.Module | nnx.Optimizer) or _holds_module(state):
        return state if not isinstance(result, tuple) or not result or not _holds_module(result[0]) else result[0]
    return result[0] if isinstance(result, tuple) and not same and result else result


def _holds_module(state: object) -> bool:
    parts = state if isinstance(state, tuple | list) else state.values() if isinstance(state, Mapping) else (state,)
    return any(isinstance(part, nnx.Module) for part in parts)


def variables_of(state: State) -> Any:
    """Return the variables in a state: a module of NNX, or `params` and the collections beside them.

    Raises:
        BadInput: If there are none.
    """
    if isinstance(state, nnx.Module) and not isinstance(state, nnx.Optimizer):
        return state
    if isinstance(state, tuple | list) and not hasattr(state, "params"):
        for part in state:
            if isinstance(part, nnx.Module) and not isinstance(part, nnx.Optimizer):
                return part
    if isinstance(state, Mapping) and "params" in state:
        return {name: value for name, value in state.items() if isinstance(value, Mapping)}
    if hasattr(state, "params"):
        return {name: value for name in _COLLECTIONS if (value := getattr(state, name, None)) is not None}
    if isinstance(state, tuple | list):
        for part in state:
            if isinstance(part, Mapping) and "params" in part:
                return variables_of(part)
    raise BadInput(
        f"Expected a state with `params`, or with a module of NNX, got {type(state).__name__}. Give `read`, a function "
        "from the state to the variables."
    )


_COLLECTIONS = ("params", "batch_stats")


def _copied(state: State) -> State:
    if _holds_module(state):
        return nnx.clone(state)
    return jax.tree.map(lambda leaf: jnp.array(leaf) if isinstance(leaf, jax.Array) else copy.deepcopy(leaf), state)


def _by_path(variables: object) -> dict[str, np.ndarray]:
    tree = nnx.state(variables) if isinstance(variables, nnx.Module) else variables
    return {
        path: np.asarray(leaf)
        for path, leaf in leaves.by_path(tree).items()
        if not jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key)
    }


def marked(step: Step, state: State, read: Read | None, batch: object) -> tuple[ClosedJaxpr, Markers]:
    """Return the jaxpr of a step, in which the layers of the model are marked.

    Args:
        step: A step; only shapes are computed.
        state: The state; it stays as it is.
        read: `state -> variables` of Linen, or a module of NNX; `None` finds them.
        batch: A batch.
    """
    markers = Markers()
    with linen_hook.hooked(markers), set_xla_metadata(normlab_step=str(next(_tokens))):
        if _holds_module(state):
            return _jaxpr_of_modules(step, state, read, batch, markers), markers
        return jax.make_jaxpr(step)(state, batch), markers


def in_devices(jaxpr: ClosedJaxpr, markers: Markers) -> dict[str, bool]:
    """Return the norms that a step calls inside of `shard_map` or `pmap`, and whether they reduce over an axis there.

    Args:
        jaxpr: The jaxpr of a step.
        markers: The hook that marked it.
    """
    found: dict[str, bool] = {}
    for body in _mapped(jaxpr.jaxpr):
        _collectives(body, markers, found)
    return found


def _jaxpr_of_modules(step: Step, state: State, read: Read | None, batch: object, markers: Markers) -> ClosedJaxpr:
    """Return the jaxpr of a step whose state has modules of NNX, the layers of the model marked."""
    twin = nnx.clone(state)
    nnx_hook.tap((read or variables_of)(twin), markers, is_layer)
    graph, arrays = nnx.split(twin)

    def of_arrays(arrays: nnx.State, batch: object) -> nnx.State:
        whole: State = nnx.merge(graph, arrays)
        return nnx.state(_state(step(whole, batch), whole))

    return jax.make_jaxpr(of_arrays)(arrays, batch)


def _mapped(jaxpr: Jaxpr) -> Iterator[Jaxpr]:
    """Yield the bodies that run on each device."""
    for equation in jaxpr.eqns:
        for body in bodies(equation):
            if equation.primitive.name in ("shard_map", "xla_pmap"):
                yield body
            else:
                yield from _mapped(body)


def _collectives(body: Jaxpr, markers: Markers, found: dict[str, bool]) -> None:
    """Note which norms have a collective between the marks of their input and output; equations are in order."""
    open_: dict[str, None] = {}
    for equation in body.eqns:
        name = equation.primitive.name
        if name == "name" and (mark := markers.read(equation.params["name"])) is not None:
            layer, out = mark
            if layer.role == "norm" and layer.running is not True:
                open_.pop(layer.path, None) if out else open_.setdefault(layer.path)
                found.setdefault(layer.path, False)
        elif name.startswith(_COLLECTIVES):
            found.update(dict.fromkeys(open_, True))
        for inner in bodies(equation):
            if open_ and _reduces(inner):
                found.update(dict.fromkeys(open_, True))
            if not open_:
                _collectives(inner, markers, found)


_COLLECTIVES = ("psum", "pmean", "all_gather", "all_reduce", "reduce_scatter", "ppermute", "all_to_all")


def _reduces(jaxpr: Jaxpr) -> bool:
    return any(
        equation.primitive.name.startswith(_COLLECTIVES) or any(map(_reduces, bodies(equation)))
        for equation in jaxpr.eqns
    )


def updates_of(site: Site, found: Stepped, numbers: Sequence[CallNumbers]) -> float:
    """Return how many updates of its running statistics a step made; NaN if this is unknown.

    Args:
        site: The norm.
        found: Variables before and after the step.
        numbers: Measurements of the norm's calls in training with the batch of the step.
    """
    before, after, names = found.before, found.after, site.variables
    if not {"mean"} <= names.keys() or names["mean"] not in after:
        return math.nan
    if "step" in names and names["step"] in after:
        return float(np.max(after[names["step"]]) - np.max(before[names["step"]]))
    momentum = getattr(site.module, "momentum", None)
    if len(numbers) != 1 or not isinstance(momentum, float) or "var" not in names:
        return math.nan
    mean, var = np.asarray(numbers[0].mean), np.asarray(numbers[0].var)
    if mean.size != before[names["mean"]].size:
        return math.nan
    deviation = np.sqrt(np.maximum(var, 1e-12))
    pairs = [("mean", mean, deviation), ("var", var, np.maximum(var, 1e-12))]
    old, new, batch = (
        np.concatenate([np.ravel(tree[names[role]] if tree else own) / unit for role, own, unit in pairs])
        for tree in (before, after, None)
    )
    return updates(old, new, batch, momentum)


def updates(old: np.ndarray, new: np.ndarray, batch: np.ndarray, momentum: float) -> float:
    """Return how many updates with the statistics of a batch lie between old and new running statistics.

    The way is projected on the direction to the batch's own, which a difference of dropout's masks hardly turns.

    Args:
        old: Running statistics before a step.
        new: After it.
        batch: Those of the batch.
        momentum: Weight of the old ones in an update.
    """
    way = batch - old
    length = float(np.sum(np.square(way)))
    if length < 1e-10 or not 0 < momentum < 1:
        return float("nan")
    share = float(np.sum((new - old) * way)) / length
    return math.log(max(1 - share, 1e-12)) / math.log(momentum)
