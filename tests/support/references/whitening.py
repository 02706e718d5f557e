"""References in float64 NumPy, as `tests.support.reference`, of the whitening norms."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.support import reference
from tests.support.reference import UNIT, Array, Result, Variables, affine, moments, moved


def root(s: Array, steps: int, exact: bool) -> Array:
    """Return `s^(-1/2)` of one matrix, by its eigenvalues or by Newton's iteration."""
    if exact:
        values, vectors = np.linalg.eigh(s)
        return vectors @ np.diag(values**-0.5) @ vectors.T
    p, trace = np.eye(len(s)), np.trace(s)
    for _ in range(steps):
        p = 1.5 * p - 0.5 * np.linalg.matrix_power(p, 3) @ s / trace
        p = p + UNITS * np.abs(p).max() * reference._noise(p.shape)
    return p / np.sqrt(trace)


UNITS = 4
"""Roundoffs of a step of the iteration: those of four sums of products."""


def whitened(
    rows: Array, where: Array, steps: int, exact: bool, epsilon: float
) -> tuple[Array, Array, Array, Array, Array]:
    """Whiten rows `[k, n]`; return the output, mean, matrix, covariance with `epsilon`, and counts."""
    mean, _, count = moments(rows, (1,), where)
    z = np.where(where, rows - mean, 0)
    n = np.maximum(np.sqrt(count @ count.T), 1)
    s = z @ z.T / n
    deviations = np.sqrt(np.diag(s))
    s = s + (2 + np.sqrt(n)) * reference._noise(s.shape) * np.outer(deviations, deviations) + epsilon * np.eye(len(s))
    s = (s + s.T) / 2
    w = root(s, steps, exact)
    z = rows - mean if np.all(where == where[:1]) else z
    y = w @ z
    return y + UNIT * np.sqrt(len(s)) * np.sign(reference._noise(y.shape)) * (np.abs(w) @ np.abs(z)), mean, w, s, count


def whiten(
    x: Array,
    variables: Variables,
    where: Array | None = None,
    *,
    axis: int = -1,
    group_size: int = 64,
    steps: int = 5,
    exact: bool = False,
    epsilon: float = 1e-5,
    momentum: Any = 0.99,
    average: str = "matrix",
    ghost_batch_size: int | None = None,
    allow: bool = False,
) -> Result:
    """Huang et al., 2019: the average is that of the whitening matrices; 2018: exact, or that of the covariances."""
    rows = np.moveaxis(x, axis, -1)
    mask = np.moveaxis(np.broadcast_to(True if where is None else where, x.shape), axis, -1)
    y, size = np.zeros_like(rows), ghost_batch_size or max(len(x), 1)
    sums: dict[str, list[Array]] = {"mean": [], "matrix": [], "count": [], "pairs": []}
    width = rows.shape[-1]
    for start in range(0, len(x), size):
        chunk, counted = (a[start : start + size].reshape(-1, width).T for a in (rows, mask))
        noted: dict[str, list[Array]] = {name: [] for name in sums}
        for first in range(0, width, group_size):
            group = slice(first, first + group_size)
            out, mean, w, s, count = whitened(chunk[group], counted[group], steps, exact, epsilon)
            y[start : start + size, ..., group] = out.T.reshape(*rows[start : start + size].shape[:-1], -1)
            matrix = s if average == "covariance" else w
            found = (mean[:, 0], matrix, count[:, 0], np.minimum(count, count.T))
            for name, value in zip(noted, found, strict=True):
                noted[name].append(value)
        for name in sums:
            sums[name].append(np.concatenate(noted[name]) if name in ("mean", "count") else np.stack(noted[name]))
    y = affine(np.moveaxis(y, -1, axis), variables, axis)
    if not sums["mean"]:
        return y, {name: value for name, value in variables.items() if name not in ("scale", "bias")}
    count, pairs = sum(sums["count"]), sum(sums["pairs"])
    new_mean = sum(n * a for n, a in zip(sums["count"], sums["mean"], strict=True)) / np.maximum(count, 1)
    new_matrix = sum(n * a for n, a in zip(sums["pairs"], sums["matrix"], strict=True)) / np.maximum(pairs, 1)
    mean = moved(variables, {"mean": np.asarray(new_mean)}, np.asarray(count), momentum)
    return y, mean | moved(variables, {"matrix": np.asarray(new_matrix)}, np.asarray(pairs), momentum)


def group_whiten(
    x: Array,
    variables: Variables,
    where: Array | None = None,
    *,
    num_groups: int = 32,
    steps: int = 5,
    exact: bool = False,
    epsilon: float = 1e-5,
    allow: bool = False,
) -> Result:
    """Huang et al., 2021: each example by itself, a row for each group of features."""
    mask, width = np.broadcast_to(True if where is None else where, x.shape), x.shape[-1] // num_groups

    def rows_of(a: Array) -> Array:
        return np.moveaxis(a.reshape(-1, num_groups, width), 1, 0).reshape(num_groups, -1)

    y = np.zeros_like(x)
    for b in range(len(x)):
        rows, *_ = whitened(rows_of(x[b]), rows_of(mask[b]), steps, exact, epsilon)
        y[b] = np.moveaxis(rows.reshape(num_groups, -1, width), 0, 1).reshape(x[b].shape)
    return affine(y, variables, -1), {}


NORMS: dict[str, Callable[..., Result]] = {"whiten": whiten, "group_whiten": group_whiten}
