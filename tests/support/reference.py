"""Every norm in float64 NumPy, written from the papers; shares no code with the library.

`NORMS[name](x, variables, where, **options)` takes the variables of a norm's Linen module, flat and by name, and the
module's options. It returns the output and the state after a training step. A norm in the registry needs a row here.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_dtypes
import numpy as np

Array = np.ndarray
Axes = int | Sequence[int]
Variables = dict[str, Array]
Result = tuple[Array, Variables]

UNIT = 2.0**-24
"""Unit roundoff of float32."""


def axes_of(axes: Axes, ndim: int) -> tuple[int, ...]:
    """Return axes as sorted non-negative numbers."""
    return tuple(sorted(a % ndim for a in np.atleast_1d(axes).tolist()))


def others(axes: Axes, ndim: int) -> tuple[int, ...]:
    """Return the axes that are not in `axes`."""
    return tuple(a for a in range(ndim) if a not in axes_of(axes, ndim))


def moments(x: Array, axis: tuple[int, ...], where: Array | None) -> tuple[Array, Array, Array]:
    """Return mean, biased variance and count of the elements in `where`, with axes kept; 0, 0, 0 for no elements."""
    counted = np.broadcast_to(True if where is None else where, x.shape)
    count = counted.sum(axis, keepdims=True)
    mean = np.where(counted, x, 0).sum(axis, keepdims=True) / np.maximum(count, 1)
    roundoffs = 2 + np.sqrt(count)
    mean = mean + roundoffs * _noise(mean.shape) * np.abs(np.where(counted, x, 0)).max(initial=0)
    var = np.where(counted, (x - mean) ** 2, 0).sum(axis, keepdims=True) / np.maximum(count, 1)
    return np.where(count > 0, mean, 0), var * (1 + roundoffs * _noise(var.shape)), count


_noise: Callable[[tuple[int, ...]], Array] = np.zeros


@contextlib.contextmanager
def rounded_statistics(seed: int) -> Iterator[None]:
    """Perturb `moments` like float32, with random signs.

    Adding up n numbers one after the other is a random walk of roundings of growing partial sums. It leaves the mean
    off by sqrt(n) / 3 roundoffs of the largest number (root mean square); three times that, and two for the division,
    is the bound.
    """
    global _noise
    rng = np.random.default_rng(seed)
    _noise = lambda shape: UNIT * rng.choice([-1.0, 1.0], shape)  # noqa: E731
    try:
        yield
    finally:
        _noise = np.zeros


def rstd_of(var: Array, count: Array, epsilon: float) -> Array:
    """Return `1 / sqrt(var + epsilon)`, 0 for no elements; noise makes no variance negative."""
    return np.where(count > 0, 1 / np.sqrt(np.maximum(var, 0) + epsilon), 0)


def affine(y: Array, variables: Variables, features: Axes) -> Array:
    """Return `y * scale + bias` along the feature axes, each if present."""
    shape = [y.shape[a] if a in axes_of(features, y.ndim) else 1 for a in range(y.ndim)]
    y = y * variables["scale"].reshape(shape) if "scale" in variables else y
    return y + variables["bias"].reshape(shape) if "bias" in variables else y


def none(x: Array, variables: Variables, where: Array | None = None) -> Result:
    """Return `x`."""
    return x, {}


def shifted(variables: Variables, offset: float) -> Variables:
    """Return the variables with an offset added to the scale, if there is one."""
    return {name: offset + a if name == "scale" else a for name, a in variables.items()}


def layer(
    x: Array,
    variables: Variables,
    where: Array | None = None,
    *,
    reduction_axes: Axes = -1,
    feature_axes: Axes = -1,
    epsilon: float = 1e-6,
    scale_offset: float = 0.0,
) -> Result:
    """Ba et al., 2016."""
    mean, var, count = moments(x, axes_of(reduction_axes, x.ndim), where)
    return affine((x - mean) * rstd_of(var, count, epsilon), shifted(variables, scale_offset), feature_axes), {}


def rms(
    x: Array,
    variables: Variables,
    where: Array | None = None,
    *,
    reduction_axes: Axes = -1,
    feature_axes: Axes = -1,
    epsilon: float = 1e-6,
    scale_offset: float = 0.0,
) -> Result:
    """Zhang & Sennrich, 2019."""
    mean_square, _, count = moments(x**2, axes_of(reduction_axes, x.ndim), where)
    return affine(x * rstd_of(mean_square, count, epsilon), shifted(variables, scale_offset), feature_axes), {}


def group(
    x: Array,
    variables: Variables,
    where: Array | None = None,
    *,
    num_groups: int | None = 32,
    group_size: int | None = None,
    reduction_axes: Axes | None = None,
    epsilon: float = 1e-6,
) -> Result:
    """Wu & He, 2018: groups of neighbouring features."""
    groups = num_groups if group_size is None else x.shape[-1] // group_size
    assert groups is not None
    split = (*x.shape[:-1], groups, x.shape[-1] // groups)
    reduced = range(1, x.ndim - 1) if reduction_axes is None else axes_of(reduction_axes, x.ndim)
    axis = (*(a for a in reduced if a != x.ndim - 1), x.ndim)
    mask = None if where is None else np.broadcast_to(where, x.shape).reshape(split)
    mean, var, count = moments(x.reshape(split), axis, mask)
    y = (x.reshape(split) - mean) * rstd_of(var, count, epsilon)
    return affine(y.reshape(x.shape), variables, -1), {}


def instance(
    x: Array, variables: Variables, where: Array | None = None, *, feature_axes: Axes = -1, epsilon: float = 1e-6
) -> Result:
    """Ulyanov et al., 2016."""
    mean, var, count = moments(x, others((0, *axes_of(feature_axes, x.ndim)), x.ndim), where)
    return affine((x - mean) * rstd_of(var, count, epsilon), variables, feature_axes), {}


def dyt(
    x: Array, variables: Variables, where: Array | None = None, *, feature_axes: Axes = -1, alpha_init: float = 0.5
) -> Result:
    """Zhu et al., 2025: a learned `alpha`, no statistics; `alpha_init` is in the variables."""
    return affine(np.tanh(variables["alpha"] * x), variables, feature_axes), {}


def batch(
    x: Array,
    variables: Variables,
    where: Array | None = None,
    *,
    axis: Axes = -1,
    epsilon: float = 1e-5,
    ghost_batch_size: int | None = None,
    momentum: Any = 0.99,
    unbiased_running_var: bool = False,
    statistics: str = "auto",
) -> Result:
    """Ioffe & Szegedy, 2015; ghost batches of Hoffer et al., 2017; or running statistics, which then are of all."""
    if statistics == "running":
        shape = [x.shape[a] if a in axes_of(axis, x.ndim) else 1 for a in range(x.ndim)]
        mean, var = (variables[name].reshape(shape) for name in ("mean", "var"))
        after = merged(x, where, axis, variables["mean"], variables["var"], 0.0, variables.get("step"), momentum)
        return affine((x - mean) / np.sqrt(var + epsilon), variables, axis), after

    def standardize(x: Array, mean: Array, var: Array, count: Array) -> Array:
        return (x - mean) * rstd_of(var, count, epsilon)

    y, mean, var, count = chunks(x, where, axis, ghost_batch_size, unbiased_running_var, standardize)
    return affine(y, variables, axis), moved(variables, {"mean": mean, "var": var}, count, momentum)


def batch_renorm(
    x: Array,
    variables: Variables,
    where: Array | None = None,
    *,
    axis: Axes = -1,
    epsilon: float = 1e-5,
    ghost_batch_size: int | None = None,
    momentum: Any = 0.99,
    unbiased_running_var: bool = False,
    r_max: float = 3.0,
    d_max: float = 5.0,
    statistics: str = "auto",
) -> Result:
    """Ioffe, 2017: r and d from the statistics before the update, and the average is that of the deviation."""
    shape = [x.shape[a] if a in axes_of(axis, x.ndim) else 1 for a in range(x.ndim)]
    running_mean, running_std = (variables[name].reshape(shape) for name in ("mean", "std"))
    if statistics == "running":
        y, square = (x - running_mean) / running_std, variables["std"] ** 2
        after = merged(x, where, axis, variables["mean"], square, epsilon, variables["step"], momentum)
        after["std"] = np.sqrt(after.pop("var"))
        return affine(y, variables, axis), after

    def standardize(x: Array, mean: Array, var: Array, count: Array) -> Array:
        r = np.clip(np.sqrt(var + epsilon) / running_std, 1 / r_max, r_max)
        d = np.clip((mean - running_mean) / running_std, -d_max, d_max)
        return (x - mean) * rstd_of(var, count, epsilon) * r + d

    y, mean, var, count = chunks(x, where, axis, ghost_batch_size, unbiased_running_var, standardize)
    return affine(y, variables, axis), moved(variables, {"mean": mean, "std": np.sqrt(var + epsilon)}, count, momentum)


def chunks(
    x: Array,
    where: Array | None,
    features: Axes,
    size: int | None,
    unbiased: bool,
    standardize: Callable[[Array, Array, Array, Array], Array],
) -> tuple[Array, Array, Array, Array]:
    """Standardize consecutive chunks of `size` examples; return the outputs and the moments, averaged by count."""
    counted = np.broadcast_to(True if where is None else where, x.shape)
    axis = others(features, x.ndim)
    shape = [x.shape[a] for a in axes_of(features, x.ndim)]
    outputs, parts = [], []
    for start in range(0, max(len(x), 1), size or max(len(x), 1)):
        here = slice(start, None if size is None else start + size)
        mean, var, count = moments(x[here], axis, counted[here])
        outputs.append(standardize(x[here], mean, var, count))
        bessel = np.where(count > 1, count / np.maximum(count - 1, 1), 1) if unbiased else 1
        parts.append((mean, var * bessel, count))
    total = sum(count for _, _, count in parts)
    mean, var = (sum(p[i] * p[2] for p in parts) / np.maximum(total, 1) for i in (0, 1))
    return np.concatenate(outputs), mean.reshape(shape), var.reshape(shape), np.asarray(total).reshape(shape)


def moved(variables: Variables, new: Variables, count: Array, momentum: Any) -> Variables:
    """Update running averages: `momentum` weighs the old value; fewer than two elements change nothing."""
    step = variables.get("step")
    decay = weight_of_old(momentum, step)
    after = {k: np.where(count > 1, decay * variables[k] + (1 - decay) * v, variables[k]) for k, v in new.items()}
    return after if step is None else {**after, "step": step + np.any(count > 1)}


def weight_of_old(momentum: Any, step: Any) -> Any:
    """Return the momentum as a number."""
    return momentum(step) if callable(momentum) else step / (step + 1) if momentum is None else momentum


def merged(
    x: Array, where: Array | None, axis: Axes, mean: Array, var: Array, epsilon: float, step: Any, momentum: Any
) -> Variables:
    """Merge running mean and variance with a batch, by their mean squares."""
    new_mean, new_var, count = (a.reshape(mean.shape) for a in moments(x, others(axis, x.ndim), where))
    decay = weight_of_old(momentum, step)
    mixed = decay * mean + (1 - decay) * new_mean
    square = decay * (var + mean**2) + (1 - decay) * (new_var + epsilon + new_mean**2)
    after = {"mean": np.where(count > 0, mixed, mean), "var": np.where(count > 0, square - mixed**2, var)}
    return after if step is None else {**after, "step": step + np.any(count > 0)}


def continual(
    x: Array,
    variables: Variables,
    where: Array | None = None,
    *,
    num_groups: int | None = 32,
    group_size: int | None = None,
    epsilon: float = 1e-5,
    **options: Any,
) -> Result:
    """Pham et al., 2022: batch norm of group norm."""
    z, _ = group(x, {}, where, num_groups=num_groups, group_size=group_size, epsilon=epsilon)
    return batch(z, variables, where, epsilon=epsilon, **options)


def online(
    x: Array,
    variables: Variables,
    where: Array | None = None,
    *,
    axis: Axes = -1,
    momentum: float = 0.999,
    backward_momentum: float = 0.99,
    epsilon: float = 1e-5,
    guard: str | None = "layer_scaling",
) -> Result:
    """Chiley et al., 2019: one example after the other."""
    y, _, after = one_by_one(x, variables, where, axis, momentum, epsilon)
    y = affine(y, variables, axis)
    if guard == "layer_scaling":
        mean_square, _, count = moments(y**2, tuple(range(1, x.ndim)), where)
        y = y * rstd_of(mean_square, count, epsilon)
    return np.clip(y, -5, 5) if guard == "clamp" else y, after


def one_by_one(
    x: Array, variables: Variables, where: Array | None, axis: Axes, momentum: float, epsilon: float
) -> tuple[Array, Array, Variables]:
    """Return normalized examples, their divisors, and mean and variance after the last."""
    shape = [x.shape[a] if a in axes_of(axis, x.ndim) else 1 for a in range(x.ndim)]
    mean, var = (variables[name].reshape(shape) for name in ("mean", "var"))
    positions = others((0, *axes_of(axis, x.ndim)), x.ndim)
    y, std = np.zeros(x.shape), np.zeros((len(x), *shape[1:]))
    for i in range(len(x)):
        std[i] = np.sqrt(var + epsilon)[0]
        y[i] = ((x[i] - mean) / std[i])[0]
        its_mean, its_var, count = moments(x[i : i + 1], positions, mask_at(where, x.shape, i))
        apart = its_mean - mean
        new_var = momentum * var + (1 - momentum) * its_var + momentum * (1 - momentum) * apart**2
        var = np.where(count > 0, new_var, var)
        mean = np.where(count > 0, mean + (1 - momentum) * apart, mean)
    flat = variables["mean"].shape
    return y, std, {"mean": mean.reshape(flat), "var": var.reshape(flat)}


def online_vjp(
    x: Array,
    variables: Variables,
    dy: Array,
    where: Array | None = None,
    *,
    axis: Axes = -1,
    momentum: float = 0.999,
    backward_momentum: float = 0.99,
    epsilon: float = 1e-5,
) -> Result:
    """Backward pass of online norm without a guard: the gradient, and the state for the next pass."""
    shape = [x.shape[a] if a in axes_of(axis, x.ndim) else 1 for a in range(x.ndim)]
    along_y, along_one = (variables[name].reshape(shape) for name in ("along_y", "along_one"))
    y, std, _ = one_by_one(x, variables, where, axis, momentum, epsilon)
    positions = others((0, *axes_of(axis, x.ndim)), x.ndim)
    dy, dx = affine(dy, {k: v for k, v in variables.items() if k == "scale"}, axis), []
    for i in range(len(x)):
        counted = mask_at(where, x.shape, i)
        here = np.where(counted, y[i : i + 1], 0)
        first = np.where(counted, dy[i : i + 1], 0) - (1 - backward_momentum) * along_y * here
        second = first / std[i : i + 1] - (1 - backward_momentum) * along_one
        count = counted.sum(positions, keepdims=True)
        along_y = along_y + (first * here).sum(positions, keepdims=True) / np.maximum(count, 1)
        second = np.where(counted, second, 0)
        along_one = along_one + second.sum(positions, keepdims=True) / np.maximum(count, 1)
        dx.append(second)
    flat = variables["mean"].shape
    return np.concatenate(dx), {"along_y": along_y.reshape(flat), "along_one": along_one.reshape(flat)}


def mask_at(where: Array | None, shape: tuple[int, ...], i: int) -> Array:
    """Return the mask of one example."""
    return np.broadcast_to(True if where is None else where, shape)[i : i + 1]


def streaming(
    x: Array,
    variables: Variables,
    where: Array | None = None,
    *,
    axis: Axes = -1,
    momentum: float = 0.7,
    backward_momentum: float = 0.7,
    mix: Sequence[float] = (0.5, 0.5),
    backward_mix: Sequence[float] = (0.5, 0.5, 0.0),
    calls_per_update: int = 1,
    epsilon: float = 1e-5,
) -> Result:
    """Liao et al., 2016: mean and mean square, of a long, a short and the current memory."""
    mean, std, _, after = remembered(x, variables, where, axis, momentum, mix, calls_per_update, epsilon)
    return affine((x - mean) / std, variables, axis), after


def remembered(
    x: Array,
    variables: Variables,
    where: Array | None,
    axis: Axes,
    momentum: float,
    mix: Sequence[float],
    calls_per_update: int,
    epsilon: float,
) -> tuple[Array, Array, Array, Variables]:
    """Return mean and deviation in use, elements of the current memory, and the memories after the call."""
    flat = variables["mean"].shape
    now_mean, now_var, count = (a.reshape(flat) for a in moments(x, others(axis, x.ndim), where))
    old = variables["short_count"]
    seen = old + count

    def squared(mean: Array, var: Array) -> Array:
        return np.stack([mean, var + mean**2])

    long, now = squared(variables["mean"], variables["var"]), squared(now_mean, now_var)
    short = old * squared(variables["short_mean"], variables["short_var"]) + count * now
    short = np.where(seen > 0, short / np.where(seen > 0, seen, 1), long)
    parts = np.stack([long, short, np.where(count > 0, now, long)])
    used = np.tensordot((*mix, 0.0)[:3], parts, 1)
    step = variables["step"] + np.any(count > 0)
    if np.any(count > 0) and step % calls_per_update == 0:
        long, short, seen = momentum * long + (1 - momentum) * short, np.zeros(short.shape), np.zeros(flat)
    short = np.where(seen > 0, short, 0)
    after = {
        "mean": long[0],
        "var": long[1] - long[0] ** 2,
        "short_mean": short[0],
        "short_var": short[1] - short[0] ** 2,
        "short_count": seen,
        "step": step,
    }
    shape = [x.shape[a] if a in axes_of(axis, x.ndim) else 1 for a in range(x.ndim)]
    mean, var = used[0].reshape(shape), np.maximum(used[1] - used[0] ** 2, 0).reshape(shape)
    var = var * (1 + 2 * _noise(var.shape))  # float32 rounds when it mixes, too
    return mean, np.sqrt(var + epsilon), count.reshape(shape), after


def streaming_vjp(
    x: Array,
    variables: Variables,
    dy: Array,
    where: Array | None = None,
    *,
    axis: Axes = -1,
    momentum: float = 0.7,
    backward_momentum: float = 0.7,
    mix: Sequence[float] = (0.5, 0.5),
    backward_mix: Sequence[float] = (0.5, 0.5, 0.0),
    calls_per_update: int = 1,
    epsilon: float = 1e-5,
) -> Result:
    """Backward pass of streaming norm: the gradient, and the state for the next pass."""
    mean, std, count, after = remembered(x, variables, where, axis, momentum, mix, calls_per_update, epsilon)
    counted, reduced = np.broadcast_to(True if where is None else where, x.shape), others(axis, x.ndim)
    dy = affine(dy, {k: v for k, v in variables.items() if k == "scale"}, axis)
    dy, x, flat = np.where(counted, dy, 0), np.where(counted, x, 0), variables["mean"].shape
    now = np.stack([-(dy / std).sum(reduced), -(dy * (x - mean) / (2 * std**3)).sum(reduced)])
    long = np.stack([variables["slope_mean"], variables["slope_var"]])
    short = np.stack([variables["short_slope_mean"], variables["short_slope_var"]])
    here, old = count.reshape(flat) > 0, variables["short_calls"]
    calls = old + here
    short = np.where(here, (old * short + now) / np.maximum(calls, 1), short)
    by_mean, by_var = (
        mixed.reshape(mean.shape) for mixed in np.tensordot(backward_mix, np.stack([long, short, now]), 1)
    )
    dx = dy / std + (by_mean + 2 * (x - mean) * by_var) / np.maximum(count, 1)
    if after["step"] > variables["step"] and after["step"] % calls_per_update == 0:
        long = np.where(calls > 0, backward_momentum * long + (1 - backward_momentum) * short, long)
        short, calls = np.zeros(short.shape), np.zeros(flat)
    names = ("slope_mean", "slope_var", "short_slope_mean", "short_slope_var", "short_calls")
    return np.where(counted, dx, 0), dict(zip(names, (*long, *short, calls), strict=True))


NORMS: dict[str, Callable[..., Result]] = {
    "none": none,
    "batch": batch,
    "batch_renorm": batch_renorm,
    "layer": layer,
    "rms": rms,
    "group": group,
    "instance": instance,
    "dyt": dyt,
    "online": online,
    "streaming": streaming,
    "continual": continual,
}


KERNELS = {
    "simple": (("i",), ("h",)),
    "lstm": (("ii", "if", "ig", "io"), ("hi", "hf", "hg", "ho")),
    "gru": (("ir", "iz", "in"), ("hr", "hz", "hn")),
}
"""Input and recurrent kernels of Flax's Linen cells, in the order of the gates."""
CELL_NORMS: dict[str, dict[str, Any]] = {
    "none": {"epsilon": 0.0},
    "layer": {"initial_scale": 1.0},
    "layer_per_gate": {"initial_scale": 1.0},
    "rms": {"initial_scale": 1.0},
    "group": {"initial_scale": 1.0, "num_groups": 4},
    "batch_step": {"initial_scale": 0.1},
    "batch_shared": {"initial_scale": 0.1},
    "batch_input": {"epsilon": 1e-5, "over": "sequence"},
}
"""Norms in a cell, and the options that change their output, with defaults."""
ZERO_GAIN = {"simple": 1.0, "lstm": 0.5, "gru": 0.25}
"""Default `epsilon` where `initial_scale` is 1: gradients do not grow from a zero state with zero inputs."""


def recurrent(
    cell: str,
    norm: str,
    variables: Variables,
    inputs: Array,
    carry: Sequence[Array],
    lengths: Array | None = None,
    *,
    train: bool = True,
    start: Array | int = 0,
    residual: bool = False,
    momentum: float = 0.99,
    unbiased_running_var: bool = False,
    **options: Any,
) -> tuple[tuple[Array, ...], Variables]:
    """A recurrent network with a norm in its cell, one time step after the other.

    Args:
        cell: `simple`, `lstm` (Ba et al., 2016; Cooijmans et al., 2016) or `gru`.
        norm: Name of the norm.
        variables: Those of the Linen cell by path, such as `ii/kernel`, `norm_x/scale` and `norm_x/mean`.
        inputs: [batch, time, features].
        carry: `(h,)`, or `(c, h)` of the LSTM, each [batch, width].
        lengths: Steps of each sequence; `None` for all.
        train: Whether statistics are those of the batch.
        start: Steps that each sequence has behind it, for evaluation.
        residual: Whether the simple cell adds its state inside the activation.
        momentum: Weight of the old running statistics.
        unbiased_running_var: Whether the running variance counts n / (n - 1).
        **options: Of the norm.

    Returns:
        Outputs [batch, time, width] followed by the last carry; and the running statistics.
    """
    times = np.arange(inputs.shape[1])
    live = times < np.reshape(len(times) if lengths is None else lengths, (-1, 1))
    live = np.broadcast_to(live, inputs.shape[:2])
    steps = None if train else np.broadcast_to(np.reshape(start, (-1, 1)) + times, live.shape)
    own = {**CELL_NORMS[norm], **options}
    own.setdefault("epsilon", min(max(1e-5, ZERO_GAIN[cell] * own.get("initial_scale", 1.0) ** 2), 0.999999))
    normalize = CellNorm(cell, norm, variables, live, steps, own)
    of_inputs, of_hidden = (
        np.concatenate([variables[f"{name}/kernel"] for name in names], -1) for names in KERNELS[cell]
    )
    x = normalize(product(np.where(live[..., None], inputs, 0), of_inputs), "norm_x")
    outputs, state = [], tuple(carry)
    for t in times:
        h = normalize(product(state[-1], of_hidden)[:, None], "norm_h", t)[:, 0]
        new = STEPS[cell](
            x[:, t], h, state, variables, lambda c, t=t: normalize(c[:, None], "norm_c", t)[:, 0], residual
        )
        state = tuple(np.where(live[:, t, None], a, b) for a, b in zip(new, state, strict=True))
        outputs.append(np.where(live[:, t, None], new[-1], 0))
    return (np.stack(outputs, 1), *state), normalize.state(momentum, unbiased_running_var) if train else {}


def simple_step(
    x: Array, h: Array, state: tuple[Array, ...], variables: Variables, norm_c: Any, residual: bool
) -> tuple[Array, ...]:
    """Return `tanh(x + h + b)` of normalized projections; residual: plus `h` of the previous step."""
    return (tanh(x + h + variables["i/bias"] + (state[0] if residual else 0)),)


def lstm_step(
    x: Array, h: Array, state: tuple[Array, ...], variables: Variables, norm_c: Any, residual: bool
) -> tuple[Array, ...]:
    """Ba et al. and Cooijmans et al., 2016: the cell state is normalized only on its way to the output."""
    i, f, g, o = np.split(x + h + np.concatenate([variables[f"h{gate}/bias"] for gate in "ifgo"]), 4, -1)
    c = sigmoid(f) * state[0] + sigmoid(i) * tanh(g)
    return c, sigmoid(o) * tanh(norm_c(c))


def gru_step(
    x: Array, h: Array, state: tuple[Array, ...], variables: Variables, norm_c: Any, residual: bool
) -> tuple[Array, ...]:
    """Cho et al., 2014, in the form where the reset gate comes after the recurrent product."""
    x = x + np.concatenate([variables[f"i{gate}/bias"] for gate in "rzn"])
    (xr, xz, xn), (hr, hz, hn) = (np.split(part, 3, -1) for part in (x, h))
    r, z = sigmoid(xr + hr), sigmoid(xz + hz)
    n = tanh(xn + r * (hn + variables["hn/bias"]))
    return ((1 - z) * n + z * state[0],)


STEPS = {"simple": simple_step, "lstm": lstm_step, "gru": gru_step}


class CellNorm:
    """Norm of a cell, called step by step, which records the running statistics of training.

    Args:
        cell: Kind of cell.
        norm: Name of the norm.
        variables: Those of the cell.
        live: What counts, [batch, time].
        steps: Which step of its sequence each example is at, [batch, time]; `None` trains.
        options: Of the norm.
    """

    def __init__(
        self, cell: str, norm: str, variables: Variables, live: Array, steps: Array | None, options: dict[str, Any]
    ) -> None:
        self.gates, self.norm, self.variables = len(KERNELS[cell][0]), norm, variables
        self.live, self.steps, self.options = live, steps, options
        self.noted: dict[str, list[tuple[Array, Array, Array]]] = {}

    def __call__(self, z: Array, path: str, time: int | None = None) -> Array:
        """Normalize `z` [batch, time, features]: of one time step, or of all."""
        if self.norm == "none" or (self.norm == "batch_input" and path != "norm_x"):
            return z
        now = slice(time, None if time is None else time + 1)
        y = self._batch(z, path, now) if self.norm.startswith("batch") else self._example(z, path)
        own = {key.removeprefix(f"{path}/"): value for key, value in self.variables.items() if key.startswith(path)}
        return affine(y, own, -1)

    def _example(self, z: Array, path: str) -> Array:
        gates = 1 if path == "norm_c" else self.gates
        width, groups = z.shape[-1] // gates, self.options.get("num_groups", 1)
        together = self.norm in ("layer", "rms")
        pools = ([2, 1] if gates == 3 else [gates]) if together else [1 / groups] * gates * groups
        ends = np.cumsum([int(width * pool) for pool in pools])
        normalize = rms if self.norm == "rms" else layer
        parts = [normalize(part, {}, epsilon=self.options["epsilon"])[0] for part in np.split(z, ends[:-1], -1)]
        return np.concatenate(parts, -1)

    def _batch(self, z: Array, path: str, now: slice) -> Array:
        epsilon = self.options["epsilon"]
        if self.steps is not None:
            old = [self.variables[f"{path}/{name}"] for name in ("mean", "var")]
            mean, var = (rows[np.minimum(self.steps[:, now], len(rows) - 1)] for rows in old)
            return (z - mean) / np.sqrt(var + epsilon)
        axis = (0, 1) if self.options.get("over") == "sequence" else (0,)
        mean, var, count = moments(z, axis, self.live[:, now, None])
        self.noted.setdefault(path, []).extend(zip(mean[0], var[0], count[0], strict=True))
        return (z - mean) * rstd_of(var, count, epsilon)

    def state(self, momentum: float, unbiased: bool) -> Variables:
        """Running statistics after the call: every row moves once, the last by all steps from there on.

        A step that fewer than two sequences have reached moves none.
        """
        after = {}
        for path, noted in self.noted.items():
            old = {name: self.variables[f"{path}/{name}"] for name in ("mean", "var")}
            last = len(old["mean"]) - 1
            mean, var, count = (np.zeros(old["mean"].shape) for _ in range(3))
            for t, (its_mean, its_var, its_count) in enumerate(noted):
                row, bessel = min(t, last), its_count / np.maximum(its_count - 1, 1) if unbiased else 1
                its_count = np.where(its_count > 1, its_count, 0)
                share = its_count / np.maximum(count[row] + its_count, 1)
                mean[row] += share * (its_mean - mean[row])
                var[row] += share * (its_var * bessel - var[row])
                count[row] += its_count
            new = moved(old, {"mean": mean, "var": var}, count, momentum)
            after.update({f"{path}/{name}": value for name, value in new.items()})
        return after


def product(x: Array, w: Array) -> Array:
    """Return `x @ w`, rounded under `rounded_statistics`."""
    y = x @ w
    return y + np.sqrt(len(w)) * _noise(y.shape) * (np.abs(x) @ np.abs(w))


def tanh(x: Array) -> Array:
    """Hyperbolic tangent, accurate in float32 to a few roundoffs."""
    y = np.tanh(x)
    return y * (1 + 4 * _noise(y.shape))


def sigmoid(x: Array) -> Array:
    """`1 / (1 + exp(-x))`."""
    return (1 + tanh(x / 2)) / 2


def standardize_vjp(
    x: Array, dy: Array, axis: tuple[int, ...], epsilon: float, where: Array | None = None, center: bool = True
) -> Array:
    """Gradient of `(x - mean) / sqrt(var + epsilon)`, pulled back from `dy`, in closed form."""
    counted = np.broadcast_to(True if where is None else where, x.shape)
    mean, var, count = moments(x if center else x**2, axis, where)
    rstd = rstd_of(var if center else mean, count, epsilon)
    y = (x - mean if center else x) * rstd
    n = np.maximum(count, 1)
    through_mean = dy.sum(axis, keepdims=True) / n if center else 0
    through_var = y * (dy * y).sum(axis, keepdims=True) / n
    return rstd * (dy - np.where(counted, through_mean + through_var, 0))


def assert_rounds_to(actual: Any, f: Callable[[Array], Any], x: Any) -> float:
    """Assert that `actual` is `f(x)` rounded to its dtype, give or take float32 arithmetic.

    Half an ulp of the output is the final rounding. Float32 arithmetic puts means and variances off by some of their
    last places, which an offset of 1e4 magnifies: `f` with statistics so rounded shows what that does to the output.
    Four more roundoffs of the largest output are for scale and bias, whose sum may cancel. A one-pass variance at
    offset 1e4 is off by 1e8 roundoffs.

    Args:
        actual: Array, or tuple or dict of arrays.
        f: Reference in float64, giving the same structure.
        x: Input as the norm got it, already rounded to its dtype.

    Returns:
        The largest error, as a part of the bound.
    """
    x = np.asarray(x, np.float64)
    expected, nearby = leaves(f(x)), []
    for seed in range(4):
        with rounded_statistics(seed):
            nearby.append(leaves(f(x)))
    worst = 0.0
    got = leaves(actual)
    assert got.keys() == expected.keys()
    for name, value in got.items():
        want = expected[name]
        assert value.shape == want.shape, f"{name}: shape {value.shape}, expected {want.shape}"
        if not value.size:
            continue
        info = ml_dtypes.finfo(value.dtype if value.dtype.kind in "fV" else np.float32)
        slack = max(float(np.abs(near[name] - want).max()) for near in nearby)
        bound = float(info.eps) / 2 * np.abs(want) + float(info.smallest_subnormal) / 2
        bound += slack + 4 * UNIT * np.abs(want).max() + float(ml_dtypes.finfo(np.float32).tiny)
        error = np.abs(value.astype(np.float64) - want)
        assert np.all(error <= bound), (
            f"{name} ({value.dtype}): off by {np.nanmax(error):.3g}, {np.nanmax(error / bound):.3g} of the bound; "
            f"{np.isnan(error).sum()} NaN"
        )
        worst = max(worst, float((error / bound).max()))
    return worst


def leaves(tree: Any, name: str = "y") -> dict[str, Array]:
    """Flatten tuples and dicts of arrays, by name."""
    if isinstance(tree, tuple):
        names = [name, *(f"{name}[{i}]" for i in range(1, len(tree)))]
        return {k: v for part, n in zip(tree, names, strict=True) for k, v in leaves(part, n).items()}
    if isinstance(tree, dict):
        return {f"{name}.{key}": np.asarray(value) for key, value in tree.items()}
    return {name: np.asarray(tree)}
