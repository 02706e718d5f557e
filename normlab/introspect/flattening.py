"""Find the axes that inputs of layers had before they were flattened, in the trace of a model."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, cast

from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

__all__ = ["Flattening", "flattenings"]

_REORDERS = frozenset(
    {"concatenate", "conv_general_dilated", "cumsum", "dot_general", "dynamic_slice", "gather", "rev", "roll", "sort"}
    | {"transpose", "scan", "while", "cond"}
)
"""Operations beyond which the order of elements is not followed; other ones of equal shape keep the order."""


@dataclass(frozen=True)
class Flattening:
    """Axes of an example before it was flattened.

    Attributes:
        shape: Sizes of the axes that became one.
        reordered: Whether the axes were permuted right before.
    """

    shape: tuple[int, ...]
    reordered: bool


class _Frame(NamedTuple):
    """A jaxpr and the place that calls it."""

    jaxpr: Jaxpr
    call: JaxprEqn | None = None
    outer: "_Frame | None" = None


def flattenings(jaxpr: Jaxpr) -> dict[str, Flattening]:
    """Return the axes before flattening of every named array whose examples are flat, by name.

    Args:
        jaxpr: Trace with arrays named by `jax.ad_checkpoint.checkpoint_name`; the first array of a name counts.
    """
    found: dict[str, Flattening | None] = {}
    for name, var, frame in _named(_Frame(jaxpr)):
        if name not in found:
            found[name] = _flattening(var, frame)
    return {name: flattening for name, flattening in found.items() if flattening is not None}


def _flattening(var: Var, frame: _Frame) -> Flattening | None:
    for eqn, at in _origins(var, frame):
        if eqn.primitive.name != "reshape":
            continue
        before, after = _shape(eqn.invars[0]), _shape(eqn.outvars[0])
        if len(before) > 2 == len(after) and before[0] == after[0]:
            reordered = any(one.primitive.name == "transpose" for one, _ in _origins(eqn.invars[0], at))
            return Flattening(before[1:], reordered)
    return None


def _named(frame: _Frame) -> Iterator[tuple[str, Var, _Frame]]:
    """Yield named arrays with their names, in the order of the trace."""
    for eqn in frame.jaxpr.eqns:
        if eqn.primitive.name == "name":
            yield eqn.params["name"], cast(Var, eqn.invars[0]), frame
        for inner in _inner(eqn):
            yield from _named(_Frame(inner, eqn, frame))


def _origins(var: object, frame: _Frame) -> Iterator[tuple[JaxprEqn, _Frame]]:
    """Yield the operations behind an array, followed back through those that keep shape and order of its elements."""
    waiting, seen = [(var, frame)], set()
    while waiting:
        var, frame = waiting.pop()
        if not isinstance(var, Var) or (id(var), id(frame.call)) in seen:
            continue
        seen.add((id(var), id(frame.call)))
        eqn = next((one for one in frame.jaxpr.eqns if var in one.outvars), None)
        if eqn is None:
            waiting += _outside(var, frame)
        elif len(inner := _inner(eqn)) == 1 and len(inner[0].outvars) == len(eqn.outvars):
            waiting.append((inner[0].outvars[eqn.outvars.index(var)], _Frame(inner[0], eqn, frame)))
        elif alike := [one for one in eqn.invars if _shape(one) == _shape(var) and _follows(eqn)]:
            waiting += [(one, frame) for one in alike]
        else:
            yield eqn, frame


def _shape(array: Var | Literal) -> tuple[int, ...]:
    return tuple(getattr(array.aval, "shape", ()))


def _follows(eqn: JaxprEqn) -> bool:
    return eqn.primitive.name not in _REORDERS


def _outside(var: Var, frame: _Frame) -> list[tuple[object, _Frame]]:
    """Return the argument that an input of a jaxpr is, if the call hands over its arguments as they are."""
    if frame.call is None or frame.outer is None or len(frame.call.invars) != len(frame.jaxpr.invars):
        return []
    if var not in frame.jaxpr.invars:
        return []
    given = frame.call.invars[frame.jaxpr.invars.index(var)]
    return [(given, frame.outer)] if _shape(given) == _shape(var) else []


def _inner(eqn: JaxprEqn) -> list[Jaxpr]:
    """Return the jaxprs that an operation calls."""
    if not _follows(eqn) and eqn.primitive.name != "scan":
        return []
    found = [getattr(value, "jaxpr", value) for value in eqn.params.values()]
    return [one for one in found if isinstance(one, Jaxpr)]
