"""Unroll a cell over time."""

import functools
import operator
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name  # pyright: ignore[reportUnknownVariableType]
from jax.core import Tracer
from jax.typing import ArrayLike

from normlab._core.checks import check_flag, check_real
from normlab._core.collectives import Devices, varying_like
from normlab._core.sharding import is_sharded
from normlab.functional.batch_norm import BatchMoments, RunningStatistics
from normlab.functional.recurrent.cell_norm import (
    CellNorm,
    Gates,
    Path,
    last_row,
    normalize_batch,
    normalize_examples,
    normalize_running,
    update_rows,
    with_epsilon,
)
from normlab.functional.recurrent.cells import (
    PRODUCT,
    SIGMOID_AND_TANH,
    SUM,
    Activations,
    Carry,
    Cell,
    CellParameters,
    hidden_of,
    row_of,
    where_kept,
    with_hidden,
)

Running = Mapping[Path, RunningStatistics]
"""Running statistics of what is normalized, each of shape [max_steps, features]."""


class TimedCarry(NamedTuple):
    """State of a cell whose norm has batch statistics: they depend on how far a sequence has come.

    Attributes:
        carry: The cell's own.
        step: Time steps each sequence has taken, int32, shape [*batch].
        length: After how many it ends, likewise; `None` where none does.
    """

    carry: Carry
    step: Array
    length: Array | None = None


def unroll(
    cell: Cell,
    norm: CellNorm,
    parameters: CellParameters,
    inputs: Array,
    carry: Carry,
    *,
    train: bool = False,
    seq_lengths: ArrayLike | None = None,
    running: Running | None = None,
    activations: Activations = SIGMOID_AND_TANH,
    nudges: Array | None = None,
    unroll: int = 1,
) -> tuple[Carry, Array, Running]:
    """Run a cell over sequences.

    Every gate is a sum of the input path, `N(x W)`, and the recurrent path, `N(h U)`, with a norm of its own for each
    (Ba et al., 2016; Cooijmans et al., 2017). The input path of all time steps is one matrix product.

    Statistics: those of `norm`. With batch statistics, a sequence that has finished enters no statistic, and the
    running statistics are moved once, whatever the number of steps.

    Args:
        cell: `SIMPLE`, `LSTM` or `GRU`.
        norm: From `cell_norm`.
        parameters: Parameters of the cell and its norms.
        inputs: Shape [time, *batch, inputs]. What lies past the end of a sequence is never read.
        carry: State before the first step; a `TimedCarry` where `norm` has batch statistics. In training all sequences
            of a batch should be at the same step.
        train: Whether batch statistics are those of the batch, rather than `running`.
        seq_lengths: Steps of each sequence, whole numbers from 0 to `time`, shape [*batch]; `None` means `time`.
        running: Running statistics of what is normalized, where `norm` has them.
        activations: Nonlinearities.
        nudges: Added to the hidden state that each step hands on, shape [time, *batch, features]; the gradient with
            respect to zeros is the gradient at each step.
        unroll: Steps in an iteration of the compiled loop.

    Returns:
        The state after the last step of each sequence; outputs [time, *batch, features], zero past the end of a
        sequence; and the running statistics.

    Raises:
        StatisticsError: If batch statistics would be over one sequence.
        ValueError: If a shape, a length or the number of steps does not fit.

    Example:
        >>> from normlab.functional import SIMPLE
        >>> zeros, ones = jnp.zeros((1, 2)), jnp.ones((1, 2))
        >>> parameters = CellParameters(ones, jnp.ones((2, 2)), jnp.zeros(2))
        >>> carry, outputs, _ = unroll(SIMPLE, CellNorm(kind="none", paths=()), parameters, jnp.ones((3, 1, 1)), zeros)
        >>> outputs.shape, bool((carry == outputs[-1]).all())
        ((3, 1, 2), True)

    References:
        Ba, Kiros, Hinton. Layer Normalization. 2016. https://arxiv.org/abs/1607.06450
        Laurent et al. Batch Normalized Recurrent Neural Networks. ICASSP 2016. https://arxiv.org/abs/1510.01378
        Cooijmans et al. Recurrent Batch Normalization. ICLR 2017. https://arxiv.org/abs/1603.09025
    """
    check_flag("train", train)
    check_inputs(norm, inputs)
    norm = with_epsilon(norm, cell.zero_gain)
    check_lengths(seq_lengths, inputs.shape[1:-1], len(inputs))
    timed = _timed(norm, inputs, carry, seq_lengths)
    where = _unfinished(inputs, timed, seq_lengths)
    if where is not None:
        inputs = jnp.where(where, inputs, 0)
    last = last_row(running["x"]) if running and not train else None
    call = _Call(cell, norm, parameters, train, running or {}, activations, timed.step, last)
    x, moments = call.input_path(inputs, where)

    def body(carry: Carry, at: tuple[Any, ...]) -> tuple[Carry, tuple[Array, Mapping[Path, BatchMoments]]]:
        t, x, where, nudge = at
        new, moments = call.step(carry, t, x, where)
        hidden = hidden_of(new) if nudge is None else hidden_of(new) + nudge
        output = hidden if where is None else jnp.where(where, hidden, 0)
        kept = functools.partial(where_kept, where=where)
        return jax.tree.map(kept, with_hidden(new, hidden), carry), (output, moments)

    kept = jax.checkpoint_policies.save_only_these_names(PRODUCT if "h" in norm.paths else SUM)
    remembered = cast(Any, jax.checkpoint(body, prevent_cse=False, policy=kept))
    start = varying_like(timed.carry, x, parameters, where, nudges, call.running)
    at = (_steps(inputs), x, where, nudges)
    state, (outputs, seen) = lax.scan(remembered, start, at, unroll=len(inputs) == 1 or unroll)
    if train and norm.stateful:
        first = jnp.max(timed.step, initial=jnp.int32(0))
        if devices := Devices.of(norm.axis_name, None):
            first = lax.pmax(first, devices.axis_name)
        of_paths: dict[Path, BatchMoments] = {**moments, **seen}
        running = {path: update_rows(norm, call.running[path], m, first) for path, m in of_paths.items()}
    return _advanced(norm, timed, state, len(inputs), seq_lengths), outputs, running or {}


class _Call(NamedTuple):
    """Constants of a call, the same at all steps; see `unroll`.

    Attributes:
        start: The step each sequence is at.
        last: The last row of running statistics that training has reached, at evaluation.
    """

    cell: Cell
    norm: CellNorm
    parameters: CellParameters
    train: bool
    running: Running
    activations: Activations
    start: Array
    last: Array | None = None

    @property
    def by_step(self) -> bool:
        """True where the input path is normalized in the loop, where it takes no memory of its own.

        Across devices it is not: there one collective for all steps is better than one for each.
        """
        return "x" in self.norm.paths and self.norm.over == "step" and self.norm.axis_name is None

    def input_path(self, inputs: Array, where: Array | None) -> tuple[Gates, dict[Path, BatchMoments]]:
        """The input path of all steps, normalized if it is not `by_step`, and what to keep of its statistics."""
        rows = inputs.reshape(-1, inputs.shape[-1])  # XLA:CPU transposes a product of three axes badly
        x = tuple((rows @ kernel).reshape(*inputs.shape[:-1], -1) for kernel in self.gates(self.parameters.kernel))
        if self.by_step:
            return x, {}
        pooled = self.norm.over == "sequence"
        steps, axis = _steps(inputs, inputs.ndim - 1), tuple(range(0 if pooled else 1, inputs.ndim - 1))
        x, moments = self.normalize("x", x, steps, where, axis)
        if pooled:
            moments = jax.tree.map(operator.itemgetter(None), moments)
        return self.biased(x, self.parameters.bias), moments

    def step(self, carry: Carry, t: Array, x: Gates, where: Array | None) -> tuple[Carry, dict[Path, BatchMoments]]:
        """One step: the new state, and what to keep of its statistics."""
        batch = tuple(range(x[0].ndim - 1))
        moments: dict[Path, BatchMoments] = {}

        def normalize(path: Path, z: Gates) -> Gates:
            y, seen = self.normalize(path, z, t, where, batch)
            moments.update(seen)
            return y

        if self.by_step:
            x = self.biased(normalize("x", x), self.parameters.bias)
        if not self.norm.clamp:  # only where steps are traced can any be late
            late = (self.start + t >= self.norm.max_steps)[..., None]
            x = tuple(jnp.where(late, jnp.nan, a) for a in x)
        hidden, kernels = hidden_of(carry).astype(x[0].dtype), self.gates(self.parameters.recurrent_kernel)
        h = normalize("h", tuple(checkpoint_name(hidden @ kernel, PRODUCT) for kernel in kernels))
        if self.parameters.recurrent_bias is not None:
            h = self.biased(h, self.parameters.recurrent_bias)
        with jax.numpy_dtype_promotion("standard"):  # the state may be wider than the gates, as in Flax
            return self.cell.advance(carry, x, h, lambda c: normalize("c", (c,))[0], self.activations), moments

    def biased(self, path: Gates, bias: Array) -> Gates:
        """A path with the bias of each gate."""
        return tuple(a + row_of(b, a) for a, b in zip(path, self.gates(bias), strict=True))

    def gates(self, joined: Array) -> Gates:
        """Split an array by gates."""
        return tuple(jnp.split(joined, len(self.cell.gates), -1))

    def normalize(
        self, path: Path, z: Gates, t: Array, where: Array | None, axis: tuple[int, ...]
    ) -> tuple[Gates, dict[Path, BatchMoments]]:
        """Normalize a path, over `axis` where statistics are of the batch."""
        norm = self.norm
        if path not in norm.paths:
            return z, {}
        scale, bias = tuple(jnp.split(self.parameters.scales[path], len(z), -1)), None
        if path in self.parameters.biases:
            bias = tuple(jnp.split(self.parameters.biases[path], len(z), -1))
        if not norm.stateful:
            return normalize_examples(norm, z, scale, bias, (1,) if path == "c" else self.cell.blocks), {}
        if self.train:
            y, m = normalize_batch(norm, z, scale, bias, axis, where)
            return y, {path: m}
        start = self.start.reshape((1,) * (z[0].ndim - 1 - self.start.ndim) + self.start.shape)
        row = jnp.zeros_like(start) if self.last is None else jnp.minimum(start + t, self.last)
        return normalize_running(norm, z, scale, bias, self.running[path], row), {}


def initial_rows(norm: CellNorm, features: int) -> RunningStatistics:
    """Running statistics before the first batch: mean 0 and variance 1, for each row."""
    shape = (norm.max_steps, features)
    counted = norm.momentum is None or callable(norm.momentum)
    step = jnp.zeros(norm.max_steps, jnp.int32) if counted else None
    return RunningStatistics(jnp.zeros(shape, jnp.float32), jnp.ones(shape, jnp.float32), step)


def initial_carry(norm: CellNorm, carry: Carry, seq_lengths: ArrayLike | None = None) -> Carry:
    """The state a cell starts in, from its own; `seq_lengths`, shape [*batch], matter to batch statistics alone."""
    if not norm.stateful:
        return carry
    batch = hidden_of(carry).shape[:-1]
    check_lengths(seq_lengths, batch)
    lengths = seq_lengths if seq_lengths is None else jnp.asarray(seq_lengths, jnp.int32)
    return TimedCarry(carry, jnp.zeros(batch, jnp.int32), lengths)


def check_lengths(seq_lengths: ArrayLike | None, batch: tuple[int, ...], steps: int | None = None) -> None:
    """Raise a `ValueError` unless lengths are whole numbers from 0 to `steps`, one a sequence, and not all 0.

    Values are checked where they are known: not under `jax.jit`.
    """
    if seq_lengths is None:
        return
    lengths = cast(Any, seq_lengths if isinstance(seq_lengths, Tracer) else np.asarray(seq_lengths))
    if lengths.shape != batch or not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise ValueError(
            f"Expected `seq_lengths` to be whole numbers of shape {batch}, one for each sequence, got {lengths.dtype} "
            f"of shape {lengths.shape}."
        )
    if isinstance(lengths, Tracer) or 0 in batch:
        return
    low, high = int(lengths.min()), int(lengths.max())
    if low < 0 or (steps is not None and high > steps):
        most = "up" if steps is None else f"to {steps}, the time steps of the input"
        raise ValueError(
            f"Expected `seq_lengths` from 0 {most}, got {low} to {high}. Pad the input, or shorten the lengths."
        )
    if high == 0 != steps:
        raise ValueError("Expected at least one sequence with a step, got `seq_lengths` that are all 0. Leave it out.")


def check_sequences(inputs: Any, seq_lengths: ArrayLike | None, time_major: bool) -> Array:
    """Return sequences as [time, *batch, inputs], checked together with their lengths."""
    inputs = jnp.asarray(inputs)
    if inputs.ndim < 2:
        raise ValueError(f"Expected inputs of shape [*batch, time, features], got {inputs.shape}.")
    inputs = inputs if time_major else jnp.moveaxis(inputs, -2, 0)
    check_lengths(seq_lengths, inputs.shape[1:-1], len(inputs))
    return inputs


def check_inputs(norm: CellNorm, inputs: Array) -> None:
    """Raise where a norm cannot normalize inputs of their dtype, or a cell cannot take them from where they are."""
    if norm.kind != "none":
        check_real(inputs, "inputs")
    if is_sharded(inputs):
        raise ValueError(
            f"Expected inputs of a recurrent cell on mesh axes of type `jax.sharding.AxisType.Auto`, got inputs "
            f"sharded as {jax.typeof(inputs).sharding.spec} over explicit ones. Change the type of the axes, or use "
            "`jax.shard_map` and `axis_name`."
        )


def check_steps(norm: CellNorm) -> None:
    """Raise a `ValueError` where statistics over sequences would be asked of a single step in training."""
    if norm.over == "sequence":
        raise ValueError(
            "Expected whole sequences for statistics over the sequence, got one step in training. Run the cell by "
            "`RNN` of normlab, or use `batch_input:over='step'`."
        )


def flip(x: Array, seq_lengths: ArrayLike | None) -> Array:
    """Reverse sequences [time, *batch, ...] in time, each within its length."""
    if seq_lengths is None:
        return jnp.flip(x, 0)
    lengths = jnp.asarray(seq_lengths, jnp.int32)[None]
    t = _steps(x, lengths.ndim)
    back = jnp.where(t < lengths, lengths - 1 - t, t)
    return jnp.take_along_axis(x, back.reshape(back.shape + (1,) * (x.ndim - back.ndim)), 0)


def _timed(norm: CellNorm, inputs: Array, carry: Carry, seq_lengths: ArrayLike | None) -> TimedCarry:
    """The state with the step each sequence is at, checked."""
    if inputs.ndim < 2:
        raise ValueError(f"Expected inputs with at least time and features, got shape {inputs.shape}.")
    if isinstance(carry, TimedCarry) != norm.stateful:
        wanted = "a `TimedCarry`, since its norm has batch statistics" if norm.stateful else "that of Flax's cell"
        raise ValueError(
            f"Expected the carry of this cell to be {wanted}, got {type(carry).__name__}. Use the cell's "
            "`initialize_carry`."
        )
    if not norm.stateful:
        return TimedCarry(carry, jnp.int32(0))
    if jnp.shape(carry.step) != inputs.shape[1:-1]:
        raise ValueError(
            f"Expected the carry of {inputs.shape[1:-1]} sequences, got steps of shape {jnp.shape(carry.step)}. Use "
            "the cell's `initialize_carry`."
        )
    if not norm.clamp:
        _check_clamp(norm.max_steps, len(inputs), carry.step, seq_lengths)
    return carry


def _check_clamp(most: int, steps: int, start: Array, seq_lengths: ArrayLike | None) -> None:
    """Raise a `ValueError` where sequences are known to have more steps than there are statistics for."""
    lengths = steps if seq_lengths is None or isinstance(seq_lengths, Tracer) else np.asarray(seq_lengths)
    reached = int(np.max(lengths if isinstance(start, Tracer) else np.asarray(start) + lengths, initial=0))
    if reached > most:
        raise ValueError(
            f"Expected sequences of up to {most} steps (`max_steps`, with `clamp=False`), got {reached}. Raise "
            "`max_steps`, or let later steps use the statistics of the last by `clamp=True`."
        )


def _unfinished(inputs: Array, timed: TimedCarry, seq_lengths: ArrayLike | None) -> Array | None:
    """True where a sequence has not finished, shape [time, *batch, 1]; `None` where none does."""
    left = _left(timed, seq_lengths)
    if left is None:
        return None
    return (_steps(inputs, inputs.ndim - 1) < left[None])[..., None]


def _left(timed: TimedCarry, seq_lengths: ArrayLike | None) -> Array | None:
    """Number of steps that each sequence has left."""
    limits = [] if seq_lengths is None else [jnp.asarray(seq_lengths, jnp.int32)]
    limits += [] if timed.length is None else [timed.length - timed.step]
    return jax.tree.reduce(jnp.minimum, limits) if limits else None


def _advanced(norm: CellNorm, timed: TimedCarry, carry: Carry, steps: int, seq_lengths: ArrayLike | None) -> Carry:
    if not norm.stateful:
        return carry
    left = _left(timed, seq_lengths)
    taken = jnp.int32(steps) if left is None else jnp.clip(left, 0, steps)
    return TimedCarry(carry, timed.step + taken, timed.length)


def _steps(inputs: Array, ndim: int = 1) -> Array:
    """Steps of a call, counted from 0, along the first of `ndim` axes."""
    return jnp.arange(len(inputs), dtype=jnp.int32).reshape(-1, *[1] * (ndim - 1))
