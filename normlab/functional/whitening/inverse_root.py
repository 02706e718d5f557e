"""Inverse square roots of covariances: by Newton's iteration, and exact with a derivative that is always finite."""

import numbers
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
from jax import Array, lax

from normlab._core.checks import check_epsilon, check_flag
from normlab._core.roots import reciprocal_root

__all__ = ["check_root", "inverse_root"]

_product = partial(jnp.matmul, precision=lax.Precision.HIGHEST)
"""Half the digits of an accelerator's default are lost by the powers of an iteration."""


def check_root(epsilon: float, steps: int, exact: bool) -> None:
    """Raise unless the options of `inverse_root` are a small number, a positive whole number and a bool."""
    check_epsilon(epsilon)
    check_flag("exact", exact)
    if isinstance(steps, bool) or not isinstance(steps, numbers.Integral) or int(steps) < 1:
        raise ValueError(
            f"Expected `steps`, of Newton's iteration, to be a positive whole number, got {steps!r}. Published are 5."
        )


def inverse_root(covariance: Array, *, steps: int, exact: bool, epsilon: float) -> Array:
    """Return `covariance^(-1/2)`, symmetric.

    Newton's iteration starts from the identity, `P = 1.5 P - 0.5 P^3 S / trace(S)`, and each step widens the range of
    variances that it takes to 1: directions with the least of them stay short of it.

    Args:
        covariance: Symmetric matrices `[..., k, k]` with `epsilon` on their diagonals.
        steps: Of the iteration.
        exact: Whether to decompose instead.
        epsilon: The least eigenvalue there can be, beyond rounding.

    Returns:
        Matrices of the same shape; NaN where squares have left the range of their dtype.
    """
    if exact:
        roots: _Roots = _decomposed(epsilon, covariance)
        return roots[0]
    return _newton(steps, epsilon, covariance)


def _newton(steps: int, epsilon: float, covariance: Array) -> Array:
    identity = jnp.broadcast_to(jnp.eye(covariance.shape[-1], dtype=covariance.dtype), covariance.shape)
    trace = jnp.trace(covariance, axis1=-2, axis2=-1)[..., None, None]
    rest = covariance / trace
    root = change = 1.5 * identity - 0.5 * rest
    for _ in range(steps - 1):  # `rest` is `P S`: computed from `P` alone, roundings grow until the iteration diverges
        rest = _product(rest, change)
        change = 1.5 * identity - 0.5 * _product(root, rest)
        root = _product(change, root)
    return root * reciprocal_root(trace, epsilon)


_Roots = tuple[Array, Array, Array, Array]
"""Inverse square root, square root, eigenvectors, and roots of the eigenvalues."""


def _decompose(epsilon: float, covariance: Array) -> _Roots:
    values, vectors = cast("tuple[Array, Array]", jnp.linalg.eigh(covariance))
    values = jnp.sqrt(jnp.maximum(values, epsilon))
    turned = jnp.swapaxes(vectors, -1, -2)
    inverse = _product(vectors / values[..., None, :], turned)
    return inverse, _product(vectors * values[..., None, :], turned), vectors, values


_decomposed = jax.custom_jvp(_decompose, nondiff_argnums=(0,))


@_decomposed.defjvp
def _decomposed_jvp(epsilon: float, primals: tuple[Array], tangents: tuple[Array]) -> tuple[_Roots, _Roots]:
    """The root of `S` solves `R R = S`, so that `R dR + dR R = dS`, and its inverse `W dS W = -(R dW + dW R)`.

    Eigenvectors of equal eigenvalues have no derivative, and need none here: they only solve these equations.
    """
    inverse, root, vectors, values = roots = _decomposed(epsilon, *primals)
    change = 0.5 * (tangents[0] + jnp.swapaxes(tangents[0], -1, -2))
    solved = partial(_solved, root, vectors, values)
    along = solved(-_product(_product(inverse, change), inverse)), solved(change)
    return roots, (*along, jnp.zeros_like(vectors), jnp.zeros_like(values))


def _solved(root: Array, vectors: Array, values: Array, right: Array) -> Array:
    """Return `X` of `root X + X root = right`; eigenvectors and roots of eigenvalues are constants to autodiff."""

    def both(x: Array) -> Array:
        return _product(root, x) + _product(x, root)

    def solve(_: object, right: Array) -> Array:
        turned = jnp.swapaxes(vectors, -1, -2)
        apart = _product(_product(turned, right), vectors) / (values[..., :, None] + values[..., None, :])
        return _product(_product(vectors, apart), turned)

    return lax.custom_linear_solve(both, right, solve, symmetric=True)
