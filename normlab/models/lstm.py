"""An LSTM whose cell takes a norm."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from normlab import linen as nl
from normlab.introspect.statistics import Statistics, paths, read
from normlab.norms import Norm

NOISE = 0.1
"""Standard deviation of the initial state in training."""


class Trace(NamedTuple):
    """What a network does with sequences.

    Attributes:
        carries: State of each cell after the last step.
        hidden: Hidden states of each cell, shape (batch, time, features).
        outputs: At every step, shape (batch, time, outputs).
    """

    carries: tuple[Any, ...]
    hidden: tuple[Array, ...]
    outputs: Array


class LSTMNet(nn.Module):
    """LSTMs on top of each other, each with the norm inside, and a dense layer.

    In training the state starts from noise: where sequences begin alike (blank pixels), all states of a batch are equal
    without it, and a batch norm divides by the root of epsilon at each such step (Cooijmans et al., 2017).

    Attributes:
        norm: Inside the cells.
        depth: How many cells.
        features: Of each.
        outputs: Of the dense layer.
        symbols: How many symbols inputs tell apart, shape (batch, time); 0 for numbers of shape (batch, time, inputs).
        every_step: Whether there are outputs at every step, or those of the last one alone.
        padded: Whether the last input says if the sequence goes on.
    """

    norm: Norm
    depth: int = 1
    features: int = 32
    outputs: int = 10
    symbols: int = 0
    every_step: bool = False
    padded: bool = False

    @nn.compact
    def __call__(
        self,
        x: Array,
        *,
        train: bool,
        noise: float | Array = NOISE,
        carries: Sequence[Any] | None = None,
        trace: bool = False,
    ) -> Any:
        """Map sequences to outputs.

        Args:
            x: See `symbols`.
            train: Whether norms use the statistics of the batch.
            noise: Standard deviation of the initial state in training.
            carries: State to go on from.
            trace: Whether to give a `Trace`.
        """
        lengths = lengths_of(x) if self.padded else None
        h = jax.nn.one_hot(x, self.symbols) if self.symbols else x[..., :-1] if self.padded else x
        kept, hidden = [], []
        for i in range(self.depth):
            cell = nl.LSTMCell(
                self.features,
                carry_init=partial(_noisy, noise=noise) if train else nn.initializers.zeros_init(),
                norm=self.norm,
                use_running_average=not train,
                name=f"cell_{i}",
            )
            carry, h = nl.RNN(cell, return_carry=True, name=f"rnn_{i}")(
                h,
                initial_carry=carries[i] if carries else None,
                init_key=self.make_rng("params") if train else None,
                seq_lengths=lengths,
            )
            kept.append(carry)
            hidden.append(h)
        head = nn.Dense(self.outputs, name="head")
        if trace:
            return Trace(tuple(kept), tuple(hidden), head(h))
        return head(h if self.every_step else last_of(h, lengths))


def first_hidden(perturbations: Array) -> dict[str, Any]:
    """Return the collection `perturbations` that adds these, (time, batch, features), to the first cell's states."""
    return {"rnn_0": {"hidden": perturbations}}


def first_recurrent_statistics(variables: Mapping[str, Any]) -> Statistics | None:
    """Read the running statistics of the first cell's recurrent path; `None` where its norm keeps none."""
    path = ("cell_0", "norm_h")
    return read(variables, path) if path in paths(variables) else None


def _noisy(key: Array, shape: tuple[int, ...], dtype: Any, *, noise: float | Array) -> Array:
    return noise * jax.random.normal(key, shape, dtype)


def lengths_of(x: Array) -> Array:
    """Return the number of steps of each sequence: its steps are marked in the last input."""
    return x[..., -1].sum(-1).astype(jnp.int32)


def last_of(x: Array, lengths: Array | None) -> Array:
    """What is at the last step of each sequence."""
    if lengths is None:
        return x[:, -1]
    return jnp.take_along_axis(x, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)[:, 0]
