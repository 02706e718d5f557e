"""Walk over the jaxpr of a model: what stands before and after each marked layer, and how often each is run."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var
from jax.extend.core import Literal as Constant

from normlab.introspect.markers import Layer, Markers

__all__ = ["CALLS", "SAME", "Crossing", "Source", "Value", "bodies", "lifted", "repeats", "stacked", "walk"]

CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "remat2": "jaxpr",
    "closed_call": "call_jaxpr",
}
"""Primitives that only call a jaxpr, and the parameter that has it."""

SAME = ("convert_element_type", "copy", "copy_p", "sharding_constraint", "optimization_barrier", "name")
"""Primitives whose outputs are their inputs, in another dtype of real numbers or another place."""


class Source(NamedTuple):
    """A neighbour of a layer: what produces its input, or consumes its output.

    Attributes:
        kind: `input` and `output` are the model's; `linear` is a layer whose own parameters are `kernel` and perhaps
            `bias`, or an embedding; `unknown` lies outside of a loop's body, or inside of another's.
        path: Path of a layer, or of a variable.
        operation: Name of the primitive, or of the layer's class.
    """

    kind: Literal["input", "linear", "norm", "dropout", "operation", "output", "unknown"]
    path: str = ""
    operation: str = ""


@dataclass(eq=False)
class Value:
    """A value of the jaxpr.

    Attributes:
        origin: Its producer; for the value inside of a layer, the value that came in.
        uses: Its consumers; for a layer's mark, the value behind it.
        operands: The values that it was computed from, where they are of the same body.
        permutation: Order of the operand's axes in it, where it is a transpose.
        entered: For a layer's output, the value that went into the layer.
    """

    origin: "Source | Value"
    uses: "list[Source | Value]" = field(default_factory=list)
    operands: "Sequence[Value]" = ()
    permutation: tuple[int, ...] = ()
    entered: "Value | None" = None

    def producer(self) -> Source:
        """Return the nearest producer."""
        origin = self.root().origin
        assert not isinstance(origin, Value)
        return origin

    def root(self) -> "Value":
        """Return the value as its producer gave it."""
        value = self
        while isinstance(value.origin, Value):
            value = value.origin
        return value

    def transposed(self) -> "tuple[Source, tuple[int, ...]]":
        """Return the producer of what the value is a transpose of, and the order of the axes; `()` for none."""
        value, order = self.root(), ()
        while value.permutation:
            order = tuple(value.permutation[axis] for axis in order) if order else value.permutation
            value = value.operands[0].root()
        before = value.entered.root().permutation if value.entered is not None else ()
        if order and len(before) == len(order) and all(before[axis] == i for i, axis in enumerate(order)):
            order = ()  # back to what it was before the layer
        return value.producer(), order

    def reached_from(self, kind: str, stops: Collection[str]) -> Source | None:
        """Return the nearest layer of a kind that the value was computed from, if no layer of `stops` is between."""
        seen, waiting = set[int](), [self.root()]
        for value in waiting:  # which grows, the nearest first
            origin = value.producer()
            if origin.kind == kind:
                return origin
            if id(value) in seen or origin.kind in stops:
                continue
            seen.add(id(value))
            waiting.extend(operand.root() for operand in value.operands)
        return None

    def consumers(self) -> Iterator[Source]:
        """Yield a consumer for each use."""
        for use in self.uses:
            if isinstance(use, Value):
                yield from use.consumers()
            else:
                yield use


@dataclass(eq=False)
class Crossing:
    """A call of a layer in the jaxpr.

    Attributes:
        layer: The layer.
        before: The value that came in.
        around: Primitives in whose bodies the call is, with the number of runs of each, the outermost first; 0 runs are
            an unknown number.
        shape: Shape of the input in the jaxpr, with axes of `vmap`.
        after: The values that came out.
    """

    layer: Layer
    before: Value
    around: tuple[tuple[str, int], ...]
    shape: tuple[int, ...]
    after: list[Value] = field(default_factory=list)


_Values = dict[Var, Value]
_Around = tuple[tuple[str, int], ...]


def walk(jaxpr: ClosedJaxpr, markers: Markers, inputs: Sequence[Source]) -> list[Crossing]:
    """Find the calls of layers in a jaxpr, and their neighbours.

    Args:
        jaxpr: The jaxpr of a model.
        markers: The hook that marked it.
        inputs: What each input of the jaxpr is.

    Returns:
        The calls, in the order in which they run.
    """
    walker = _Walker(markers)
    walker.body(jaxpr.jaxpr, [Value(one) for one in inputs], (), Source("output"))
    return walker.crossings


@dataclass(eq=False)
class _Walker:
    """The walk over one jaxpr."""

    markers: Markers
    crossings: list[Crossing] = field(default_factory=list)
    latest: dict[Layer, Crossing] = field(default_factory=dict)

    def body(self, jaxpr: Jaxpr, given: Sequence[Value], around: _Around, end: Source | None) -> list[Value]:
        """Walk over a jaxpr; return its outputs.

        Args:
            jaxpr: The jaxpr.
            given: Its inputs.
            around: Primitives in whose bodies it is.
            end: Consumer of its outputs; `None` where the equation around the body passes them on.
        """
        values: _Values = dict(zip(jaxpr.invars, given, strict=True))
        values |= {var: Value(Source("operation", operation="constant")) for var in jaxpr.constvars}
        for equation in jaxpr.eqns:
            outputs = self.equation(equation, [_at(values, var) for var in equation.invars], around)
            values |= zip(equation.outvars, outputs, strict=True)
        outputs = [_at(values, var) for var in jaxpr.outvars]
        if end is not None:
            for value in outputs:
                value.uses.append(end)
        return outputs

    def equation(self, equation: JaxprEqn, given: list[Value], around: _Around) -> list[Value]:
        """Walk over an equation; return its outputs."""
        name = equation.primitive.name
        if name == "name" and (mark := self.markers.read(equation.params["name"])):
            return [self.mark(*mark, given[0], getattr(equation.invars[0].aval, "shape", ()), around)]
        if name in SAME and not _rounds(equation):
            return given[: len(equation.outvars)]
        if name in CALLS:
            inner = (*around, (name, 1)) if name == "remat2" else around
            return self.called(equation.params[CALLS[name]], given, inner)
        return self.operation(equation, given, around)

    def called(self, jaxpr: Jaxpr | ClosedJaxpr, given: list[Value], around: _Around) -> list[Value]:
        """Walk over a jaxpr that is only called, as if it stood in place of the call."""
        return self.body(_open(jaxpr), given, around, None)

    def operation(self, equation: JaxprEqn, given: list[Value], around: _Around) -> list[Value]:
        """Walk over an operation, and over the bodies that it has, each on its own."""
        name, inner = equation.primitive.name, list(bodies(equation))
        this = Source("unknown" if inner else "operation", operation=name)
        for value in given:
            value.uses.append(this)
        for body in inner:
            outside = [Value(this) for _ in body.invars]
            self.body(body, outside, (*around, (name, _runs(equation))), this)
        order = tuple(equation.params["permutation"]) if name == "transpose" else ()
        return [Value(this, operands=given, permutation=order) for _ in equation.outvars]

    def mark(self, layer: Layer, out: bool, value: Value, shape: tuple[int, ...], around: _Around) -> Value:
        """Pass the mark at an input or output of a layer."""
        neighbour = _neighbour(layer)
        if not out:
            self.latest[layer] = Crossing(layer, value, around, shape)
            self.crossings.append(self.latest[layer])
            inside = Value(value)
            value.uses.append(neighbour or inside)
            return inside
        crossing = self.latest.get(layer)  # JAX takes out the mark of an input that the layer does not use
        behind = Value(neighbour or value, operands=(value,), entered=crossing.before if crossing else None)
        value.uses.append(behind)
        if crossing:
            crossing.after.append(behind)
        return behind


def _neighbour(layer: Layer) -> Source | None:
    """Return a layer as the neighbour of others; `None` for one that values pass."""
    if layer.role == "weight":
        return None
    return Source(layer.role, layer.path, type(layer.module).__name__)


def _rounds(equation: JaxprEqn) -> bool:
    """Return whether an equation makes whole numbers of others, or the reverse."""
    dtypes = [getattr(var.aval, "dtype", None) for var in (*equation.invars, *equation.outvars)]
    return any(dtype is not None and not jnp.issubdtype(dtype, jnp.inexact) for dtype in dtypes)


def _at(values: _Values, var: Var | Constant) -> Value:
    if isinstance(var, Constant):
        return Value(Source("operation", operation="constant"))
    return values[var]


def bodies(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """Yield the jaxprs among the parameters of an equation."""
    for parameter in equation.params.values():
        for one in parameter if isinstance(parameter, tuple | list) else (parameter,):
            if isinstance(one, Jaxpr | ClosedJaxpr):
                yield _open(one)


def _open(jaxpr: Jaxpr | ClosedJaxpr) -> Jaxpr:
    return jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr


def _runs(equation: JaxprEqn) -> int:
    """Return how often an equation runs its body; 0 for an unknown number."""
    name = equation.primitive.name
    return int(equation.params["length"]) if name == "scan" else int(name in ("cond", "shard_map"))


def lifted(crossing: Crossing) -> tuple[str, ...]:
    """Return the transforms that have a body around a call of a layer, the outermost first."""
    return tuple(name.rstrip("2") for name, _ in crossing.around)


def repeats(crossing: Crossing) -> int:
    """Return how often these transforms run a call of a layer; 0 for an unknown number."""
    return math.prod(runs for _, runs in crossing.around)


def stacked(crossing: Crossing) -> int:
    """Return the size of the axes that `vmap` adds to the input of a layer."""
    return math.prod(crossing.shape) // max(1, math.prod(crossing.layer.shape))
