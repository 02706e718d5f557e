"""Recurrent cells: simple, LSTM and GRU, with a norm in each path."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name  # pyright: ignore[reportUnknownVariableType]

from normlab.functional.recurrent.cell_norm import (
    Gates,
    Path,
)

PRODUCT, SUM = "normlab_recurrent_product", "normlab_gate_sum"
"""Names of what the backward pass may keep of a step, beside the state; it computes all but matrix products again.

Of a normalized recurrent path it needs the product before the norm, of another the sum that enters the gate. On CPU
the memory that is saved is the time that is saved.
"""

Carry = Any
"""State of a cell: `(c, h)` of an LSTM, `h` of the others, each of shape [*batch, features]; or a `TimedCarry`."""


class CellParameters(NamedTuple):
    """Parameters of a cell.

    Attributes:
        kernel: Shape [inputs, gates * features].
        recurrent_kernel: Shape [features, gates * features].
        bias: Shape [gates * features].
        recurrent_bias: Shape [gates * features], added to the recurrent path by itself; `None` where the sum of both
            paths is all that counts.
        scales: Scale of each norm, shape [gates * features]; for the cell state [features].
        biases: Bias of each norm that has one: the norm of the cell state.
    """

    kernel: Array
    recurrent_kernel: Array
    bias: Array
    recurrent_bias: Array | None = None
    scales: Mapping[Path, Array] = {}
    biases: Mapping[Path, Array] = {}


class Activations(NamedTuple):
    """Nonlinearities of a cell.

    Attributes:
        gate: Nonlinearity of gates.
        state: Nonlinearity of new content and of an LSTM's cell state on its way out.
        residual: Whether a simple RNN adds its old state inside the nonlinearity.
    """

    gate: Callable[[Array], Array] = jax.nn.sigmoid
    state: Callable[[Array], Array] = jnp.tanh
    residual: bool = False


SIGMOID_AND_TANH = Activations()
"""Activations of the usual cells."""

Memory = Callable[[Array], Array]
"""Normalizes an LSTM's cell state on its way to the output."""


class Cell(NamedTuple):
    """The equations of a cell between its norms.

    Attributes:
        gates: Names of the gates, in the order of the parameters.
        blocks: How many neighbouring gates layer norm takes together.
        paths: Paths that can be normalized.
        zero_gain: A norm without variance multiplies by `scale / sqrt(epsilon)`. The largest square of that (of the
            product of both norms on the way, in an LSTM) by which gradients at a state of zero do not grow from step to
            step, inverted; with an orthogonal recurrent kernel, gates half open, and no input.
        advance: `(carry, input path, recurrent path, memory, activations) -> carry`; both paths come gate by gate.
    """

    gates: tuple[str, ...]
    blocks: tuple[int, ...]
    paths: tuple[Path, ...]
    zero_gain: float
    advance: Callable[[Carry, Gates, Gates, Memory, Activations], Carry]


def _simple(carry: Array, x: Gates, h: Gates, memory: Memory, activations: Activations) -> Array:
    z = checkpoint_name(x[0] + h[0], SUM)
    return activations.state(z + carry if activations.residual else z)


def _lstm(
    carry: tuple[Array, Array], x: Gates, h: Gates, memory: Memory, activations: Activations
) -> tuple[Array, Array]:
    i, f, g, o = (checkpoint_name(a + b, SUM) for a, b in zip(x, h, strict=True))
    c = activations.gate(f) * carry[0] + activations.gate(i) * activations.state(g)
    return c, activations.gate(o) * activations.state(memory(c))


def _gru(carry: Array, x: Gates, h: Gates, memory: Memory, activations: Activations) -> Array:
    r, z = (activations.gate(checkpoint_name(x[k] + h[k], SUM)) for k in (0, 1))
    n = activations.state(x[2] + r * checkpoint_name(h[2], SUM))
    return (1 - z) * n + z * carry


SIMPLE = Cell(("",), (1,), ("x", "h"), 1.0, _simple)
"""`h' = tanh(N(x W) + N(h U) + b)`"""

LSTM = Cell(("i", "f", "g", "o"), (4,), ("x", "h", "c"), 0.5, _lstm)
"""`i, f, g, o = N(x W) + N(h U) + b`, `c' = sigmoid(f) c + sigmoid(i) tanh(g)`, `h' = sigmoid(o) tanh(N(c'))`"""

GRU = Cell(("r", "z", "n"), (2, 1), ("x", "h"), 0.25, _gru)
"""`r, z = sigmoid(N(x W) + N(h U) + b)`, `n = tanh(N(x W) + b + r (N(h U) + b'))`, `h' = (1 - z) n + z h`"""


def row_of(bias: Array, like: Array) -> Array:
    """A bias with the rank of what it is added to."""
    return bias.reshape((1,) * (like.ndim - 1) + bias.shape)


def hidden_of(carry: Carry) -> Array:
    """Return the hidden state of a carry."""
    return cast(tuple[Array, Array], carry)[1] if isinstance(carry, tuple) else carry


def with_hidden(carry: Carry, hidden: Array) -> Carry:
    """Replace the hidden state of a carry."""
    return (carry[0], hidden) if isinstance(carry, tuple) else hidden


def where_kept(new: Array, old: Array, where: Array | None) -> Array:
    """The new state where the sequence goes on, in the type of the old one."""
    new = new.astype(old.dtype)
    return new if where is None else jnp.where(where, new, old)
