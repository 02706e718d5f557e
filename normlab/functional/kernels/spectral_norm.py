"""Spectral norm: kernels are divided by their largest singular value, which a power iteration follows."""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import Array, lax

from normlab._core.checks import check_epsilon
from normlab._core.dtypes import output_dtype
from normlab.functional.kernels.kernel_norm import (
    KernelNorm,
    check_vector,
    scale_free,
    wide_kernel,
)


def spectral_norm(
    kernel: Array, u: Array, *, steps: int = 1, epsilon: float = 1e-12, coefficient: float | None = None
) -> tuple[Array, Array]:
    """Divide a kernel by its largest singular value (Miyato et al., 2018).

    With `m` the kernel as a matrix `[-1, out]`, `steps` times `v = m u / ||m u||`, then `u = m' v / ||m' v||`; then
    `sigma = v' m u` and `kernel' = kernel / sigma`, or `kernel * coefficient / max(sigma, coefficient)`.

    Statistics: over the whole kernel, in float32 or wider. The gradient flows through `sigma`, and not through `u` and
    `v`. A kernel of zeros stays as it is, and so does its `u`. The norm of a convolution's kernel as a matrix is not
    that of the convolution as a linear map.

    Args:
        kernel: Raw kernel, `[..., out]`.
        u: Estimate of the right singular vector, `[out]`.
        steps: Iterations before `sigma` is taken.
        epsilon: Least length that a vector is divided by, for a kernel whose largest weight is 1.
        coefficient: Bound of the singular value: kernels below it are left as they are.

    Returns:
        The kernel to use, with the shape and dtype of `kernel`, and the new `u`, in float32 or wider.

    Raises:
        ValueError: If a shape does not fit.

    Example:
        >>> kernel, u = spectral_norm(jnp.array([[4.0, 0.0], [0.0, 1.0]]), jnp.array([0.8, 0.6]), steps=20)
        >>> kernel
        Array([[1.  , 0.  ],
               [0.  , 0.25]], dtype=float32)

    References:
        Miyato, Kataoka, Koyama, Yoshida. Spectral Normalization for Generative Adversarial Networks. ICLR 2018.
        https://arxiv.org/abs/1802.05957
    """
    kernel = jnp.asarray(kernel)
    check_vector("u", u, kernel)
    matrix, size = scale_free(_matrix(kernel), (0, 1))
    u, v = _iterated(lax.stop_gradient(matrix), lax.stop_gradient(u).astype(matrix.dtype), steps, epsilon)
    sigma = _product(v, _product(matrix, u))
    if coefficient is None:
        new = matrix / jnp.where(sigma > 0, sigma, 1 / size)
    else:
        new = matrix * size * (coefficient / jnp.maximum(size * sigma, coefficient))
    return new.reshape(kernel.shape).astype(output_dtype(kernel)), u


def initial_u(kernel: Array, *, steps: int = 15, epsilon: float = 1e-12) -> Array:
    """Return an estimate of the right singular vector of a kernel, `[out]`, from a fixed random start.

    Args:
        kernel: Raw kernel, `[..., out]`.
        steps: Iterations from the start.
        epsilon: See `spectral_norm`.
    """
    kernel = jnp.asarray(kernel)
    matrix, _ = scale_free(lax.stop_gradient(_matrix(kernel)), (0, 1))
    start = jax.random.normal(jax.random.key(0), matrix.shape[1:], matrix.dtype)
    return _iterated(matrix, start / _length(start), steps, epsilon)[0]


def _matrix(kernel: Array) -> Array:
    wide = wide_kernel(kernel)
    return wide.reshape(-1, wide.shape[-1])


def _iterated(matrix: Array, u: Array, steps: int, epsilon: float) -> tuple[Array, Array]:
    """Return the singular vectors after some iterations; `u` stays where the matrix maps it to zero."""

    def step(_: Array, vectors: tuple[Array, Array]) -> tuple[Array, Array]:
        u, v = vectors
        v = _unit(_product(matrix, u), v, epsilon)
        return _unit(_product(v, matrix), u, epsilon), v

    start = u, jnp.zeros(matrix.shape[:1], matrix.dtype)
    return lax.fori_loop(0, steps, step, start, unroll=steps <= 4)  # pyright: ignore[reportUnknownVariableType]


def _unit(vector: Array, otherwise: Array, epsilon: float) -> Array:
    length = _length(vector)
    return jnp.where(length > 0, vector / jnp.maximum(length, epsilon), otherwise)


def _length(vector: Array) -> Array:
    return jnp.sqrt(lax.square(vector).sum())


def _product(left: Array, right: Array) -> Array:
    """Multiply in full precision, which accelerators do not by default."""
    return jnp.matmul(left, right, precision=lax.Precision.HIGHEST)


@dataclass(frozen=True, repr=False)
class SpectralNorm(KernelNorm):
    """Spectral norm; see `spectral_norm`.

    In training each call iterates and stores the new `u`; at evaluation it iterates from the stored `u`, and stores
    nothing.

    Attributes:
        steps: Iterations of each call.
        initial_steps: Iterations when `u` is made.
        epsilon: Least length that a vector is divided by.
        coefficient: Bound of the singular value; `None` divides by the singular value.
    """

    steps: int = 1
    initial_steps: int = 15
    epsilon: float = 1e-12
    coefficient: float | None = None

    name: ClassVar[str] = "spectral_norm"
    title: ClassVar[str] = "spectral norm"
    state_names: ClassVar[tuple[str, ...]] = ("u",)
    formula: ClassVar[str] = "w / sigma, the largest singular value"
    over: ClassVar[str] = "the whole kernel"
    paper: ClassVar[str] = "Miyato et al. 2018"
    url: ClassVar[str] = "https://arxiv.org/abs/1802.05957"

    def __post_init__(self) -> None:
        check_epsilon(self.epsilon)
        for name, least in (("steps", 1), ("initial_steps", 0)):
            count = getattr(self, name)
            if isinstance(count, bool) or not isinstance(count, Integral) or int(count) < least:
                raise ValueError(f"Expected `{name}` to be a whole number from {least} on, got {count!r}.")
        bound = self.coefficient
        if bound is not None and (isinstance(bound, bool) or not isinstance(bound, Real) or not float(bound) > 0):
            raise ValueError(f"Expected `coefficient` to be a positive number or None, got {bound!r}.")

    def state(self, kernel: Array) -> dict[str, Array]:
        """Return `u` after `initial_steps` iterations."""
        return {"u": initial_u(kernel, steps=self.initial_steps, epsilon=self.epsilon)}

    def normalize(
        self, kernel: Array, parameters: Mapping[str, Array], state: Mapping[str, Array], train: bool
    ) -> tuple[Array, Mapping[str, Array]]:
        """Divide a kernel by its singular value; see `KernelNorm`."""
        new, u = spectral_norm(kernel, state["u"], steps=self.steps, epsilon=self.epsilon, coefficient=self.coefficient)
        return new, {"u": u} if train else state
