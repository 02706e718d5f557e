"""References in float64 NumPy, as `tests.support.reference`, of the norms by moving statistics."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.support.reference import Array, Axes, Result, Variables, affine, axes_of, moments, others


def power(
    x: Array,
    variables: Variables,
    where: Array | None = None,
    *,
    axis: Axes = -1,
    momentum: float = 0.9,
    backward_momentum: float = 0.9,
    epsilon: float = 1e-5,
    num_groups: int = 1,
    warmup_steps: int = 10000,
) -> Result:
    """Shen et al., 2020."""
    z, _, _, psi, count = power_parts(x, variables, where, axis, epsilon, num_groups, warmup_steps)
    step, flat = variables["step"], variables["phi"].shape
    old = step / (step + 1) if step < warmup_steps else momentum
    moved = np.where(count > 1, old * variables["phi"].reshape(psi.shape) + (1 - old) * psi, 0)
    phi = np.where(count > 1, moved, variables["phi"].reshape(psi.shape))
    return affine(z, variables, axis), {"phi": phi.reshape(flat), "step": step + np.any(count > 1)}


def power_parts(
    x: Array, variables: Variables, where: Array | None, axis: Axes, epsilon: float, num_groups: int, warmup_steps: int
) -> tuple[Array, Array, Array, Array, Array]:
    """Return `z`, the two factors that made it of `x`, the mean square of the batch, and the elements behind it."""
    by_group = 1 / np.sqrt(group_means(x**2, where, axis, num_groups)[0] + epsilon)
    h = x * by_group
    psi, _, count = moments(h**2, others(axis, x.ndim), where)
    warm = variables.get("step", np.inf) < warmup_steps
    by_feature = 1 / np.sqrt((psi if warm else variables["phi"].reshape(psi.shape)) + epsilon)
    return h * by_feature, by_group, by_feature, psi, count


def group_means(x: Array, where: Array | None, axis: Axes, num_groups: int) -> tuple[Array, Array]:
    """Return means over the features of each group at each position, of the shape of `x`, and their counts."""
    if num_groups == 1:
        mean, _, count = moments(x, axes_of(axis, x.ndim), where)
        return np.broadcast_to(mean, x.shape), np.broadcast_to(count, x.shape)
    split = (*x.shape[:-1], num_groups, x.shape[-1] // num_groups)
    mask = None if where is None else np.broadcast_to(where, x.shape).reshape(split)
    mean, _, count = moments(x.reshape(split), (x.ndim,), mask)
    mean, count = (np.broadcast_to(a, split).reshape(x.shape) for a in (mean, count))
    return mean, count


def power_vjp(
    x: Array, variables: Variables, dy: Array, where: Array | None = None, *, axis: Axes = -1, **options: Any
) -> Result:
    """Backward pass of power norm: the gradient, and the state for the next pass."""
    given = {"epsilon": 1e-5, "num_groups": 1, "warmup_steps": 10000, "backward_momentum": 0.9, "momentum": 0.9}
    given |= options
    counted = np.broadcast_to(True if where is None else where, x.shape)
    x = np.where(counted, x, 0)
    args = (axis, given["epsilon"], given["num_groups"], given["warmup_steps"])
    z, by_group, by_feature, _, count = power_parts(x, variables, where, *args)
    q = np.where(counted, affine(dy, {k: v for k, v in variables.items() if k == "scale"}, axis), 0)
    nu = variables["nu"].reshape(count.shape)
    t = q - nu * z
    along = np.where(counted, t * z, 0).sum(others(axis, x.ndim), keepdims=True) / np.maximum(count, 1) * (count > 1)
    dh = t * by_feature
    mean, _ = group_means(dh * x * by_group, where, axis, given["num_groups"])
    dx = by_group * dh - x * by_group**2 * mean
    new = nu + (1 - given["backward_momentum"]) * along
    return np.where(counted, dx, 0), {"nu": new.reshape(variables["nu"].shape)}


def mabn(
    x: Array,
    variables: Variables,
    where: Array | None = None,
    *,
    axis: Axes = -1,
    momentum: float = 0.98,
    epsilon: float = 1e-5,
    buffer_size: int = 16,
    warmup_steps: int = 100,
    clip_from: int = 100,
    ghost_batch_size: int | None = None,
) -> Result:
    """Yan et al., 2020: chunk by chunk, feature by feature."""
    y, run, chi = np.zeros(x.shape), variables["run"], variables["chi"]
    step = variables["step"] + 1
    plain = step <= buffer_size or step < warmup_steps
    used, any_counted = [], False
    for part, square, count in chunks_of(x, where, axis, ghost_batch_size, run.shape):
        chi = shifted(chi, square, count)
        var = square if plain else chi.mean(0)
        used.append((var, count > 1))
        any_counted |= bool(np.any(count > 1))
        y[part] = x[part] * spread(factors(var, run, epsilon, step < clip_from)[1] / np.sqrt(var + epsilon), x, axis)
    some = np.sum([seen for _, seen in used], 0) if used else np.zeros(run.shape)
    total = np.sum([np.where(seen, var, 0) for var, seen in used], 0) if used else np.zeros(run.shape)
    average = total / np.maximum(some, 1)
    after = np.where(some > 0, momentum * run + (1 - momentum) * average, run)
    state = {"run": after, "chi": chi, "step": variables["step"] + any_counted}
    return affine(y, variables, axis), state


def chunks_of(x: Array, where: Array | None, axis: Axes, size: int | None, shape: tuple[int, ...]) -> list[Any]:
    """Return the slice, the mean square and the count of each chunk of a batch."""
    size, found = size or max(1, len(x)), []
    for start in range(0, len(x), size):
        part = slice(start, start + size)
        mask = None if where is None else np.broadcast_to(where, x.shape)[part]
        square, _, count = moments(x[part] ** 2, others(axis, x.ndim), mask)
        found.append((part, square.reshape(shape), count.reshape(shape)))
    return found


def shifted(buffer: Array, value: Array, count: Array) -> Array:
    """Return a buffer with a value in front, where it is of more than one element."""
    return np.where(count > 1, np.stack([value, *buffer[:-1]]), buffer)


def factors(var: Array, run: Array, epsilon: float, free: object) -> tuple[Array, Array]:
    """Return the deviation, and the correction towards the running one."""
    r = np.clip(np.sqrt((var + epsilon) / (run + epsilon)), 1 / 5, 5)
    return np.sqrt(var + epsilon), np.ones_like(r) if free else r


def spread(a: Array, x: Array, axis: Axes) -> Array:
    """Give an array of features the rank of `x`."""
    return a.reshape([n if i in axes_of(axis, x.ndim) else 1 for i, n in enumerate(x.shape)])


def mabn_vjp(
    x: Array, variables: Variables, dy: Array, where: Array | None = None, *, axis: Axes = -1, **options: Any
) -> Result:
    """Backward pass of moving average batch norm: the gradient, and the state for the next pass."""
    given = {"epsilon": 1e-5, "warmup_steps": 100, "clip_from": 100, "ghost_batch_size": None, "momentum": 0.98}
    given |= options
    counted = np.broadcast_to(True if where is None else where, x.shape)
    x = np.where(counted, x, 0)
    q = np.where(counted, affine(dy, {k: v for k, v in variables.items() if k == "scale"}, axis), 0)
    dx, chi, gz, run = np.zeros(x.shape), variables["chi"], variables["gz"], variables["run"]
    step = variables["step"] + 1
    plain = step <= len(chi) or step < given["warmup_steps"]
    for part, square, count in chunks_of(x, where, axis, given["ghost_batch_size"], run.shape):
        chi = shifted(chi, square, count)
        std, r = factors(square if plain else chi.mean(0), run, given["epsilon"], step < given["clip_from"])
        z, here = x[part] / spread(std, x, axis), q[part] * spread(r, x, axis)
        now = (here * z).sum(others(axis, x.ndim)).reshape(run.shape) / np.maximum(count, 1)
        gz = shifted(gz, now, count)
        dx[part] = (here - z * spread(now if plain else gz.mean(0), x, axis)) / spread(std, x, axis)
    return np.where(counted, dx, 0), {"gz": gz}


def evaluated_power(x: Array, variables: Variables, *, axis: Axes = -1, **options: Any) -> Array:
    """Power norm at evaluation."""
    z, *_ = power_parts(x, variables, None, axis, options.get("epsilon", 1e-5), options.get("num_groups", 1), 0)
    return affine(z, variables, axis)


def evaluated_mabn(x: Array, variables: Variables, *, axis: Axes = -1, epsilon: float = 1e-5, **options: Any) -> Array:
    """Moving average batch norm at evaluation."""
    return affine(x / np.sqrt(spread(variables["run"], x, axis) + epsilon), variables, axis)


NORMS: dict[str, Callable[..., Result]] = {"power": power, "mabn": mabn}
VJPS: dict[str, Callable[..., Result]] = {"power": power_vjp, "mabn": mabn_vjp}
EVALUATED: dict[str, Callable[..., Array]] = {"power": evaluated_power, "mabn": evaluated_mabn}
"""`(x, variables, **options) -> output` at evaluation, by name, of norms whose state is no mean and variance."""
