"""References in float64 NumPy, as `tests.support.reference`, of the combined norms."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.support import reference
from tests.support.reference import (
    Array,
    Axes,
    Result,
    Variables,
    affine,
    axes_of,
    merged,
    moments,
    moved,
    others,
    rstd_of,
)


def kept(x: Array, axis: Axes) -> list[int]:
    """Return the shape of a per-feature array of the rank of `x`."""
    return [x.shape[a] if a in axes_of(axis, x.ndim) else 1 for a in range(x.ndim)]


def positions_of(x: Array, axis: Axes) -> tuple[int, ...]:
    """Return the axes that are neither batch nor features."""
    return tuple(a for a in others(axis, x.ndim) if a)


def mean_only_batch(
    x: Array,
    variables: Variables,
    where: Array | None = None,
    *,
    axis: Axes = -1,
    ghost_batch_size: int | None = None,
    momentum: Any = 0.99,
    statistics: str = "auto",
) -> Result:
    """Salimans & Kingma, 2016: no division."""
    if statistics == "running":
        after = merged(x, where, axis, variables["mean"], variables["mean"], 0.0, variables.get("step"), momentum)
        after.pop("var")
        return affine(x - variables["mean"].reshape(kept(x, axis)), variables, axis), after

    def centre(x: Array, mean: Array, var: Array, count: Array) -> Array:
        return x - mean

    y, mean, _, count = reference.chunks(x, where, axis, ghost_batch_size, False, centre)
    return affine(y, variables, axis), moved(variables, {"mean": mean}, count, momentum)


def batch_channel(
    x: Array,
    variables: Variables,
    where: Array | None = None,
    *,
    num_groups: int | None = 32,
    group_size: int | None = None,
    channel_affine: str | None = "group",
    epsilon: float = 1e-5,
    **options: Any,
) -> Result:
    """Qiao et al., 2019: group norm of batch norm, each with scale and bias."""
    y, after = reference.batch(x, variables, where, epsilon=epsilon, **options)
    return of_channels(y, variables, where, num_groups, group_size, epsilon), after


def of_channels(
    y: Array, variables: Variables, where: Array | None, num_groups: int | None, group_size: int | None, epsilon: float
) -> Array:
    """Return the second half of batch-channel norm."""
    features = y.shape[-1]
    second = {
        name: np.repeat(variables[f"channel_{name}"], features // len(variables[f"channel_{name}"]))
        for name in ("scale", "bias")
        if f"channel_{name}" in variables
    }
    return reference.group(y, second, where, num_groups=num_groups, group_size=group_size, epsilon=epsilon)[0]


def pooled(x: Array, where: Array | None, axis: Axes) -> Array:
    """Return the mean of each feature over the positions of an example."""
    positions = positions_of(x, axis)
    return moments(x, positions, where)[0] if positions else x


def representative(
    x: Array,
    variables: Variables,
    where: Array | None = None,
    *,
    axis: Axes = -1,
    epsilon: float = 1e-5,
    **options: Any,
) -> Result:
    """Gao et al., 2021: `u`, its batch norm, and a gate."""
    shape = kept(x, axis)
    center, gain, shift = (variables[n].reshape(shape) for n in ("center_weight", "scale_weight", "scale_bias"))
    state = {name: a for name, a in variables.items() if name in ("mean", "var", "step")}
    u = x + center * pooled(x, where, axis)
    z, after = reference.batch(u, state, where, axis=axis, epsilon=epsilon, **options)
    return affine(z * reference.sigmoid(gain * pooled(z, where, axis) + shift), variables, axis), after


def mixed(
    x: Array, variables: Variables, where: Array | None, axis: Axes, epsilon: float, of_batch: tuple[Array, Array, Any]
) -> Array:
    """Return the output of switchable norm with given moments of the batch."""
    positions, features = positions_of(x, axis), axes_of(axis, x.ndim)
    sets = [moments(x, (*positions, *features), where), of_batch]
    if positions:
        sets.insert(0, moments(x, positions, where))
    shares = []
    for name in ("mean_weight", "var_weight"):
        weight = variables.get(name, np.ones(3))[-len(sets) :]
        shares.append(np.exp(weight) / np.exp(weight).sum())
    mean = sum(a * m for a, (m, _, _) in zip(shares[0], sets, strict=True))
    if not positions:
        sets[0] = (sets[0][0], bessel(*sets[0][1:]), sets[0][2])
    var = sum(b * v for b, (_, v, _) in zip(shares[1], sets, strict=True))
    return affine((x - mean) * rstd_of(np.asarray(var), np.ones(()), epsilon), variables, axis)


def bessel(var: Array, count: Array) -> Array:
    """Return an unbiased variance."""
    return var * np.where(count > 1, count / np.maximum(count - 1, 1), 1)


def switchable(
    x: Array,
    variables: Variables,
    where: Array | None = None,
    *,
    axis: Axes = -1,
    epsilon: float = 1e-5,
    momentum: Any = 0.99,
    ghost_batch_size: int | None = None,
    unbiased_running_var: bool = False,
    statistics: str = "auto",
) -> Result:
    """Luo et al., 2019; without positions as the authors' norm of one dimension, with unbiased variances."""
    shape = kept(x, axis)
    if statistics == "running":
        mean, var = (variables[name].reshape(shape) for name in ("mean", "var"))
        after = merged(x, where, axis, variables["mean"], variables["var"], 0.0, variables.get("step"), momentum)
        return mixed(x, variables, where, axis, epsilon, (mean, var, None)), after
    counted = np.broadcast_to(True if where is None else where, x.shape)
    flat, size = not positions_of(x, axis), ghost_batch_size or max(len(x), 1)
    outputs, parts = [], []
    for start in range(0, max(len(x), 1), size):
        here = slice(start, start + size)
        mean, var, count = moments(x[here], others(axis, x.ndim), counted[here])
        spread = bessel(var, count) if flat else var
        outputs.append(mixed(x[here], variables, counted[here], axis, epsilon, (mean, spread, count)))
        parts.append((mean, bessel(var, count) if flat or unbiased_running_var else var, count))
    total = sum(count for _, _, count in parts)
    mean, var = (sum(p[i] * p[2] for p in parts) / np.maximum(total, 1) for i in (0, 1))
    flat_shape = variables["mean"].shape
    new = {"mean": mean.reshape(flat_shape), "var": var.reshape(flat_shape)}
    return np.concatenate(outputs), moved(variables, new, np.asarray(total).reshape(flat_shape), momentum)


def of_domain(variables: Variables, d: int) -> Variables:
    """Return the variables of one domain, of which scale and bias may be of all."""
    shared = variables["mean"].ndim - 1
    return {
        name: a if name in ("scale", "bias") and a.ndim == shared else a[d]
        for name, a in variables.items()
        if name != "domain"
    }


def domain_batch(
    x: Array,
    variables: Variables,
    where: Array | None = None,
    *,
    num_domains: int | None = None,
    splits: int | None = None,
    share_affine: bool = False,
    domain: Any = None,
    **options: Any,
) -> Result:
    """Chang et al., 2019: batch norm of the examples of each domain."""
    domains = splits or num_domains or 1
    if domain is None:
        domain = np.zeros(len(x), int) if splits is None else np.repeat(np.arange(splits), len(x) // splits)
    domain, y = np.broadcast_to(domain, len(x)), np.zeros(x.shape)
    counted, after = np.broadcast_to(True if where is None else where, x.shape), []
    for d in range(domains):
        here = domain == d
        y[here], state = reference.batch(x[here], of_domain(variables, d), counted[here], **options)
        after.append(state)
    return y, {name: np.stack([state[name] for state in after]) for name in after[0]}


NORMS: dict[str, Callable[..., Result]] = {
    "mean_only_batch": mean_only_batch,
    "batch_channel": batch_channel,
    "representative": representative,
    "switchable": switchable,
    "domain_batch": domain_batch,
}


def evaluated(name: str, x: Array, variables: Variables, where: Array | None = None, **options: Any) -> Array:
    """Return the output of one of `NORMS` by running statistics, of `options` that decide it."""
    axis, epsilon = options.get("axis", -1), options.get("epsilon", 1e-5)
    if name == "domain_batch":
        domain = np.broadcast_to(options.get("domain", 0), len(x))
        y = [by_running(x[i : i + 1], of_domain(variables, d), axis, epsilon) for i, d in enumerate(domain)]
        return np.concatenate(y)
    if name == "mean_only_batch":
        return affine(x - variables["mean"].reshape(kept(x, axis)), variables, axis)
    if name == "batch_channel":
        groups = (options.get("num_groups", 32), options.get("group_size"))
        return of_channels(by_running(x, variables, axis, epsilon), variables, where, *groups, epsilon)
    if name == "switchable":
        mean, var = (variables[n].reshape(kept(x, axis)) for n in ("mean", "var"))
        return mixed(x, variables, where, axis, epsilon, (mean, var, None))
    center, gain, shift = (variables[n].reshape(kept(x, axis)) for n in ("center_weight", "scale_weight", "scale_bias"))
    u, state = x + center * pooled(x, where, axis), {n: variables[n] for n in ("mean", "var")}
    z = by_running(u, state, axis, epsilon)
    return affine(z * reference.sigmoid(gain * pooled(z, where, axis) + shift), variables, axis)


def by_running(x: Array, variables: Variables, axis: Axes, epsilon: float) -> Array:
    """Return the output of batch norm at evaluation."""
    mean, var = (variables[n].reshape(kept(x, axis)) for n in ("mean", "var"))
    return affine((x - mean) / np.sqrt(var + epsilon), variables, axis)
