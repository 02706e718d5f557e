"""A norm of kernels with its options: the base of all of them, and the one that changes nothing."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import ClassVar

import jax.numpy as jnp
from jax import Array, lax

from normlab._core.checks import check_real
from normlab._core.dtypes import float32_or_wider
from normlab.notation import written


@dataclass(frozen=True, repr=False)
class KernelNorm(ABC):
    """A norm of kernels: a value that compares, hashes, pickles and prints as its string.

    A subclass is a frozen dataclass whose fields are the options, each with a default. It never stores what it
    computes: the raw kernel stays the parameter.

    Attributes:
        name: As in strings, e.g. `weight_norm`.
        title: For people, e.g. `weight norm`.
        parameter_names: Names of its own parameters.
        state_names: Names of its state, which a step in training replaces.
        formula: The new kernel, in the words of the documentation.
        over: Elements that share a statistic.
        paper: Authors and year.
        url: Of the paper.

    Example:
        >>> from normlab import kernels
        >>> kernels.get("standardize:unbiased=True")
        KernelNorm('standardize:unbiased=True')
        >>> kernel, state = kernels.get("centralize")(jnp.array([[1.0], [3.0]]))
        >>> kernel.ravel(), state
        (Array([-1.,  1.], dtype=float32), {})
    """

    name: ClassVar[str]
    title: ClassVar[str]
    parameter_names: ClassVar[tuple[str, ...]] = ()
    state_names: ClassVar[tuple[str, ...]] = ()
    formula: ClassVar[str] = ""
    over: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    url: ClassVar[str] = ""

    @property
    def stateful(self) -> bool:
        """True if the norm keeps state: Linen's `batch_stats`, NNX's `BatchStat`."""
        return bool(self.state_names)

    def parameters(self, kernel: Array) -> dict[str, Array]:
        """Return the initial values of the norm's own parameters for a kernel, in its dtype."""
        return {}

    def state(self, kernel: Array) -> dict[str, Array]:
        """Return the state at the start for a kernel, in float32 or wider."""
        return {}

    def __call__(
        self,
        kernel: Array,
        parameters: Mapping[str, Array] | None = None,
        state: Mapping[str, Array] | None = None,
        *,
        train: bool = False,
    ) -> tuple[Array, Mapping[str, Array]]:
        """Normalize a kernel.

        Args:
            kernel: Raw kernel, `[..., out]`; the output features are the last axis.
            parameters: By `parameter_names`.
            state: By `state_names`.
            train: Whether the state returned is a new one.

        Returns:
            The kernel to use, with the shape and dtype of `kernel`, and the state after it.

        Raises:
            ValueError: If a parameter or a state is missing or unknown, or a shape does not fit.
        """
        parameters, state = parameters or {}, state or {}
        self._check("parameters", parameters, self.parameter_names)
        self._check("state", state, self.state_names)
        return self.normalize(jnp.asarray(kernel), parameters, state, train)

    @abstractmethod
    def normalize(
        self, kernel: Array, parameters: Mapping[str, Array], state: Mapping[str, Array], train: bool
    ) -> tuple[Array, Mapping[str, Array]]:
        """Normalize a kernel by parameters and state that are complete; see `__call__`."""

    def _check(self, what: str, given: Iterable[str], needed: tuple[str, ...]) -> None:
        if set(given) != set(needed):
            raise ValueError(
                f"Expected the {what} of {self.name!r} to be {sorted(needed)}, got {sorted(given)}. "
                f"`{what}(kernel)` makes them."
            )

    def __str__(self) -> str:
        """Return the string that `normlab.kernels.get` takes back; options at their defaults are left out."""
        options = {field.name: getattr(self, field.name) for field in fields(self)}
        changed = {field.name: options[field.name] for field in fields(self) if options[field.name] != field.default}
        return written(self.name, sorted(changed.items()))

    def __repr__(self) -> str:
        """Return the string, marked as a norm of kernels."""
        return f"KernelNorm({str(self)!r})"


@dataclass(frozen=True, repr=False)
class Unchanged(KernelNorm):
    """No norm: the raw kernel is used."""

    name: ClassVar[str] = "none"
    title: ClassVar[str] = "no norm of kernels"
    formula: ClassVar[str] = "w"
    over: ClassVar[str] = "nothing"

    def normalize(
        self, kernel: Array, parameters: Mapping[str, Array], state: Mapping[str, Array], train: bool
    ) -> tuple[Array, Mapping[str, Array]]:
        """Return the kernel."""
        return kernel, {}


def wide_kernel(kernel: Array) -> Array:
    """Return a kernel in float32 or wider.

    Raises:
        TypeError: If it is not real.
        ValueError: If it has fewer than two axes.
    """
    check_real(kernel, "kernel")
    if kernel.ndim < 2:
        raise ValueError(
            f"Expected `kernel` with its output features as the last of two axes or more, got shape {kernel.shape}. "
            "Norms of kernels are for the kernels of dense layers and convolutions."
        )
    return float32_or_wider(kernel)


def inputs_of(kernel: Array) -> tuple[int, ...]:
    """Return the axes of a kernel that lead to one output feature."""
    return tuple(range(kernel.ndim - 1))


def scale_free(kernel: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Divide by the largest magnitude along axes, so that squares stay in range; zeros stay zeros.

    Returns:
        The quotient, and the magnitude as a constant without gradient, 1 where all elements are zero; axes are kept.
    """
    size = lax.stop_gradient(jnp.max(jnp.abs(kernel), axis=axes, keepdims=True))
    size = jnp.where(size > 0, size, 1)
    return kernel / size, size


def times(kernel: Array, name: str, vector: Array | None) -> Array:
    """Multiply the weights of each output feature by an element of a parameter, where there is one."""
    if vector is None:
        return kernel
    check_vector(name, vector, kernel)
    return kernel * vector.astype(kernel.dtype).reshape(*(1,) * (kernel.ndim - 1), -1)


def check_vector(name: str, vector: Array, kernel: Array) -> None:
    """Raise a `ValueError` unless a vector has one element for each output feature of a kernel."""
    if vector.shape != kernel.shape[-1:]:
        raise ValueError(
            f"Expected `{name}` to have shape {kernel.shape[-1:]} (the last axis of `kernel`), got {vector.shape}."
        )
