"""A norm inside a recurrent cell, as a value: what it normalizes, over what, and what it keeps between calls."""

import functools
import itertools
import math
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
from jax import Array, lax

from normlab._core.checks import AxisName, check_epsilon, check_flag, one_element_allowed, resolve_groups
from normlab._core.dtypes import float32_or_wider
from normlab._core.roots import reciprocal_root
from normlab.errors import StatisticsError
from normlab.functional.batch_norm import BatchMoments, Momentum, RunningStatistics, batch_norm, update_batch_norm
from normlab.functional.group_norm import group_norm
from normlab.notation import UnknownNorm, parse, unknown

Path = str
"""Paths that can be normalized: `x`, the input path; `h`, the recurrent path; `c`, an LSTM's state on its way out."""

ALL: tuple[Path, ...] = ("x", "h", "c")

Gates = tuple[Array, ...]
"""An array for each gate of a cell."""


@dataclass(frozen=True, kw_only=True)
class CellNorm:
    """The norm inside a recurrent cell; `cell_norm` makes those that have a name, as `normlab.norms.get(...)` does.

    Attributes:
        kind: The norm.
        paths: Paths to normalize.
        initial_scale: Initial value of every scale.
        epsilon: Added to the variance, inside the root. `None`: as small as keeps gradients from growing where the
            state is zero, see `Cell.zero_gain`; at the usual 1e-5 those of an LSTM with layer norm grow from there
            25,000-fold at each step.
        num_groups: Groups within each gate, for `group`; this or `group_size`.
        group_size: Features per group.
        max_steps: Time steps that can have running statistics of their own: the length of the longest training
            sequence, or more. Later steps, and those that training has never reached, use the last ones.
        clamp: Whether there may be later steps.
        over: Whether a batch statistic of the input path is of one time step or of the sequence.
        momentum: Weight of the OLD running value, a function of the step, or `None` for the average of all batches.
        unbiased_running_var: Whether the running variance counts n / (n - 1).
        axis_name: Mapped axes (devices) whose sequences belong to the same batch.
    """

    kind: Literal["none", "layer", "rms", "group", "batch"]
    paths: tuple[Path, ...] = ALL
    initial_scale: float = 1.0
    epsilon: float | None = None
    num_groups: int | None = None
    group_size: int | None = None
    max_steps: int = 1
    clamp: bool = True
    over: Literal["step", "sequence"] = "step"
    momentum: Momentum = 0.99
    unbiased_running_var: bool = False
    axis_name: AxisName | None = None

    def __post_init__(self) -> None:
        """Check the options."""
        if self.epsilon is not None:
            check_epsilon(self.epsilon)
        check_flag("clamp", self.clamp)
        check_flag("unbiased_running_var", self.unbiased_running_var)
        if isinstance(self.initial_scale, bool) or not isinstance(self.initial_scale, numbers.Real):
            raise TypeError(f"Expected `initial_scale` to be a number, got {self.initial_scale!r}.")
        if not math.isfinite(self.initial_scale):
            raise ValueError(f"Expected `initial_scale` to be finite, got {self.initial_scale}.")
        whole = isinstance(self.max_steps, numbers.Integral) and not isinstance(self.max_steps, bool)
        if not whole or self.max_steps < 1:
            raise ValueError(f"Expected `max_steps` to be a positive whole number, got {self.max_steps!r}.")
        if self.over not in ("step", "sequence"):
            raise ValueError(f"Expected `over` to be 'step' or 'sequence', got {self.over!r}.")
        momentum = self.momentum
        if isinstance(momentum, int | float) and not 0 <= momentum <= 1:
            raise ValueError(f"Expected `momentum`, the weight of the old value, to lie in [0, 1], got {momentum!r}.")

    @property
    def stateful(self) -> bool:
        """True where there are running statistics; then a cell's carry is a `TimedCarry`."""
        return self.kind == "batch"


_EXAMPLE = ("initial_scale", "epsilon")
_BATCH = (*_EXAMPLE, "momentum", "unbiased_running_var", "axis_name")
_STEPS = (*_BATCH, "max_steps", "clamp")

CELL_NORMS: Mapping[str, tuple[CellNorm, tuple[str, ...]]] = {
    "none": (CellNorm(kind="none", paths=()), ()),
    "layer": (CellNorm(kind="layer"), _EXAMPLE),
    "layer_per_gate": (CellNorm(kind="group", num_groups=1), _EXAMPLE),
    "rms": (CellNorm(kind="rms"), _EXAMPLE),
    "group": (CellNorm(kind="group", num_groups=4), (*_EXAMPLE, "num_groups", "group_size")),
    "batch_step": (CellNorm(kind="batch", initial_scale=0.1, max_steps=100), _STEPS),
    "batch_shared": (CellNorm(kind="batch", initial_scale=0.1), _BATCH),
    "batch_input": (
        CellNorm(kind="batch", paths=("x",), over="sequence", max_steps=100, epsilon=1e-5),
        (*_STEPS, "over"),
    ),
}
"""The norms of a cell by name: their defaults, and the options they take.

- `none`.
- `layer` (Ba et al., 2016): over all gates that are added up together, and over the cell state. `layer_per_gate`: over
  each gate by itself.
- `rms` (Zhang & Sennrich, 2019): over what `layer` is over.
- `group` (Wu & He, 2018): within each gate, and within the cell state.
- `batch_step` (Cooijmans et al., 2017): over the batch, at each time step by itself.
- `batch_shared`: the same in training; its running statistics are of all time steps together. This is what a batch norm
  layer in a cell does, and it fails at evaluation; here it can be studied.
- `batch_input` (Laurent et al., 2016): over batch and time steps, or `over='step'` at each time step, of the input path
  alone.
"""


class HasCell(Protocol):
    """A norm as a value that knows how it acts in a cell; see `normlab.norms.Norm`."""

    def cell(self) -> CellNorm:
        """Return how."""
        ...


AnyCellNorm = str | CellNorm | HasCell
"""A name, perhaps with options; what `cell_norm` returned; or a norm of the registry."""


def resolve(norm: AnyCellNorm) -> CellNorm:
    """Return the norm of a cell."""
    if isinstance(norm, str):
        return cell_norm(norm)
    return norm if isinstance(norm, CellNorm) else norm.cell()


def cell_norm(norm: str, **options: Any) -> CellNorm:
    """Return a norm of a recurrent cell.

    >>> cell_norm("batch_step:max_steps=64").initial_scale
    0.1

    Args:
        norm: One of `CELL_NORMS`, perhaps with options.
        **options: Over those of the text.

    Raises:
        UnknownNorm: If there is no such norm.
        ValueError: If there is no such option, or it is out of range.
        TypeError: If an option is of the wrong type.
    """
    name, given = parse(norm)
    options = {**given, **options}
    if name not in CELL_NORMS:
        error = unknown(name, "a norm of recurrent cells", CELL_NORMS)
        if not name.startswith("batch"):
            raise error
        raise UnknownNorm(
            f"{str(error).partition(' Did you mean')[0]} Choose whether batch statistics are of each time step "
            "(batch_step), of the input path alone (batch_input), or shared by all time steps (batch_shared)."
        )
    made, allowed = CELL_NORMS[name]
    for option in options:
        if option not in allowed:
            takes = f"which takes {', '.join(allowed)}" if allowed else "which takes none"
            raise ValueError(f"Expected an option of `{name}` in a cell, {takes}, got {option!r}.")
    if "group_size" in options:
        made = replace(made, num_groups=options.get("num_groups"))
    made = replace(made, **options)
    return replace(made, max_steps=1, clamp=True) if made.over == "sequence" else made


def with_epsilon(norm: CellNorm, zero_gain: float) -> CellNorm:
    """Choose `epsilon` where it is `None`: such that `zero_gain * initial_scale**2 / epsilon` is 1.

    Where the variance is zero a norm is `z * scale / sqrt(epsilon)`. It is at least 1e-5 and below 1.
    """
    if norm.epsilon is not None:
        return norm
    return replace(norm, epsilon=min(max(1e-5, zero_gain * norm.initial_scale**2), 0.999999))


def normalize_examples(norm: CellNorm, z: Gates, scale: Gates, bias: Gates | None, blocks: Sequence[int]) -> Gates:
    """Normalize each example by itself.

    Args:
        norm: One without batch statistics.
        z: For each gate, shape [..., features].
        scale: Gain for each gate, shape [features].
        bias: Shift for each gate, or `None` for 0.
        blocks: How many neighbouring gates layer and RMS norm take together.

    Returns:
        The shapes and dtypes of `z`.
    """
    biases = (None,) * len(z) if bias is None else bias
    if norm.kind == "group":
        return tuple(_groups(norm, *gate) for gate in zip(z, scale, biases, strict=True))
    ends = [0, *itertools.accumulate(blocks)]
    parts = [slice(start, end) for start, end in itertools.pairwise(ends)]
    return tuple(gate for p in parts for gate in _jointly(norm, z[p], scale[p], biases[p]))


def _groups(norm: CellNorm, z: Array, scale: Array, bias: Array | None) -> Array:
    """Group norm within a gate."""
    groups = resolve_groups(z.shape[-1], norm.num_groups, norm.group_size)
    rows = z.reshape(-1, z.shape[-1])
    return group_norm(rows, scale, bias, num_groups=groups, axis=(), epsilon=_epsilon(norm)).reshape(z.shape)


def _jointly(norm: CellNorm, z: Gates, scale: Gates, bias: Sequence[Array | None]) -> Iterator[Array]:
    """Layer or RMS norm over several gates as if they lay side by side.

    They do not: XLA:CPU computes an exponential several times slower where its operand is a slice.
    """
    wide = [float32_or_wider(gate) for gate in z]
    features = sum(gate.shape[-1] for gate in z)
    if features == 1 and not one_element_allowed():
        raise StatisticsError(
            f"Expected {norm.kind} norm in a cell to be over more than one feature, got one. Use a wider cell or no "
            "norm; or say that it is meant: `with normlab.functional.one_element():`."
        )

    def mean(parts: Iterable[Array]) -> Array:
        return functools.reduce(jnp.add, (part.sum(-1, keepdims=True) for part in parts)) / features

    if norm.kind == "layer":
        member = lax.stop_gradient(wide[0][..., :1])  # far from 0 only differences have the digits of the spread
        wide = [gate - member for gate in wide]
        center = mean(wide)
        wide = [gate - center for gate in wide]
    epsilon = _epsilon(norm)
    rstd = reciprocal_root(mean(map(lax.square, wide)) + epsilon, epsilon)
    for gate, centered, s, b in zip(z, wide, scale, bias, strict=True):
        y = centered * (rstd * _expanded(s, gate.ndim).astype(rstd.dtype))
        yield (y if b is None else y + _expanded(b, gate.ndim).astype(rstd.dtype)).astype(gate.dtype)


def normalize_batch(
    norm: CellNorm, z: Gates, scale: Gates, bias: Gates | None, axis: tuple[int, ...], where: Array | None
) -> tuple[Gates, BatchMoments]:
    """Normalize over the batch.

    Args:
        norm: One with batch statistics.
        z: For each gate, shape [*batch, features] or [time, *batch, features].
        scale: Gain for each gate, shape [features].
        bias: Shift for each gate, or `None` for 0.
        axis: Axes reduced: those of the batch, and perhaps time.
        where: True where a sequence has not finished; of the rank of `z`, broadcastable to it.

    Returns:
        Shapes and dtypes of `z`, and the moments of all gates, of the shape of the axes not reduced, counts included.
    """

    def normalize(z: Array, scale: Array, bias: Array | None) -> tuple[Array, BatchMoments]:
        shape = [n for a, n in enumerate(z.shape) if a not in axis]
        scale_, bias_ = (a if a is None else _expanded(a, len(shape), shape) for a in (scale, bias))
        y, m = batch_norm(z, scale_, bias_, axis=axis, epsilon=_epsilon(norm), where=where, axis_name=norm.axis_name)
        return y, replace(m, count=jnp.broadcast_to(jnp.asarray(m.count, m.var.dtype), shape))

    biases = (None,) * len(z) if bias is None else bias
    y, moments = zip(*map(normalize, z, scale, biases), strict=True)
    return y, jax.tree.map(lambda *gates: jnp.concatenate(gates, -1), *moments)


def normalize_running(
    norm: CellNorm, z: Gates, scale: Gates, bias: Gates | None, running: RunningStatistics, row: Array
) -> Gates:
    """Normalize by running statistics.

    Args:
        norm: One with batch statistics.
        z: For each gate, shape [..., features].
        scale: Gain for each gate, shape [features].
        bias: Shift for each gate, or `None` for 0.
        running: Running statistics of all gates, of shape [max_steps, gates * features].
        row: Whose statistics: whole numbers, of the rank of `z` without its last axis and broadcastable to it.
    """

    def normalize(z: Array, scale: Array, bias: Array | None, mean: Array, var: Array) -> Array:
        wide = float32_or_wider(z)
        mean, var, scale = (a.astype(wide.dtype) for a in (mean, var, scale))
        epsilon = _epsilon(norm)
        factor = reciprocal_root(var + epsilon, epsilon) * scale[None]
        y = (wide - mean[row]) * factor[row]
        return (y if bias is None else y + _expanded(bias, y.ndim)).astype(z.dtype)

    biases = (None,) * len(z) if bias is None else bias
    means, variances = (jnp.split(a, len(z), -1) for a in (running.mean, running.var))
    return tuple(map(normalize, z, scale, biases, means, variances))


def _epsilon(norm: CellNorm) -> float:
    assert norm.epsilon is not None
    return norm.epsilon


def _expanded(per_feature: Array, ndim: int, shape: Sequence[int] | None = None) -> Array:
    """A per-feature array with leading axes, of size 1 or as in `shape`."""
    expanded = per_feature.reshape((1,) * (ndim - 1) + per_feature.shape)
    return expanded if shape is None else jnp.broadcast_to(expanded, shape)


def last_row(running: RunningStatistics) -> Array:
    """The last row that training has moved from its start, mean 0 and variance 1; the first where there is none."""
    moved = ((running.mean != 0) | (running.var != 1)).any(-1)
    return jnp.max(jnp.where(moved, jnp.arange(len(moved), dtype=jnp.int32), 0))


def update_rows(
    norm: CellNorm, running: RunningStatistics, moments: BatchMoments, first: Array | int
) -> RunningStatistics:
    """Move running statistics towards those of one call, once, whatever its number of steps.

    A step that fewer than two sequences have reached counts for nothing.

    Args:
        norm: One with batch statistics.
        running: Running statistics, of shape [max_steps, features].
        moments: Moments of the call, of shape [steps, features].
        first: The step of the first of them; what falls beyond the last row is averaged into it.
    """
    rows = jnp.minimum(first + jnp.arange(len(moments.mean), dtype=jnp.int32), norm.max_steps - 1)
    count = jnp.where(jnp.asarray(moments.count) > 1, moments.count, 0)
    if not norm.clamp:  # later steps are NaN
        count = jnp.where((first + jnp.arange(len(count), dtype=jnp.int32) < norm.max_steps)[:, None], count, 0)
    empty = jnp.zeros(running.mean.shape, count.dtype)

    def added(value: Array) -> Array:
        return empty.at[rows].add(value)

    total = added(count)
    mean, var, unbiased_var = (
        added(jnp.where(count > 0, count * part, 0)) / jnp.maximum(total, 1)
        for part in (moments.mean, moments.var, moments.unbiased_var)
    )
    update = functools.partial(
        update_batch_norm, momentum=norm.momentum, unbiased_running_var=norm.unbiased_running_var
    )
    return jax.vmap(update)(running, BatchMoments(mean, var, unbiased_var, total))
