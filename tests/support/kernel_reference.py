"""Every norm of kernels in float64 NumPy, written from the papers; shares no code with the library.

`NORMS[name](kernel, variables, at, **options)` takes the norm's parameters and state by name. Constants of the backward
pass are taken at the kernel `at`. It returns the new kernel and the state after a step in training.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

Array = np.ndarray
Variables = dict[str, Array]
Result = tuple[Array, Variables]


def inputs(kernel: Array) -> tuple[int, ...]:
    """Return the axes of a kernel that lead to an output feature."""
    return tuple(range(kernel.ndim - 1))


def none(kernel: Array, variables: Variables, at: Array) -> Result:
    """Return the kernel."""
    return kernel, {}


def centralize(kernel: Array, variables: Variables, at: Array) -> Result:
    """Subtract means."""
    return kernel - kernel.mean(inputs(kernel)), {}


def standardize(
    kernel: Array,
    variables: Variables,
    at: Array,
    epsilon: float = 1e-5,
    unbiased: bool = False,
    epsilon_outside: bool = False,
) -> Result:
    """Subtract means and divide by standard deviations."""
    var = kernel.var(inputs(kernel), ddof=int(unbiased))
    deviation = np.sqrt(var) + epsilon if epsilon_outside else np.sqrt(var + epsilon)
    return (kernel - kernel.mean(inputs(kernel))) / deviation, {}


def scaled_standardize(
    kernel: Array, variables: Variables, at: Array, epsilon: float = 1e-4, activation_gain: float = 1.0
) -> Result:
    """Standardize to variance 1 / fan-in, with a gain."""
    fan_in = kernel.size / kernel.shape[-1]
    square = np.maximum(kernel.var(inputs(kernel)) * fan_in, epsilon)
    return variables["gain"] * activation_gain * (kernel - kernel.mean(inputs(kernel))) / np.sqrt(square), {}


def weight_norm(kernel: Array, variables: Variables, at: Array, scale_init: str = "norm") -> Result:
    """Give columns their lengths."""
    return variables["g"] * kernel / np.sqrt((kernel**2).sum(inputs(kernel))), {}


def spectral_norm(
    kernel: Array,
    variables: Variables,
    at: Array,
    steps: int = 1,
    initial_steps: int = 15,
    coefficient: float | None = None,
) -> Result:
    """Divide by the largest singular value that an iteration finds; its vectors are constants."""
    matrix, u = at.reshape(-1, at.shape[-1]), variables["u"]
    for _ in range(steps):
        v = matrix @ u
        v /= np.linalg.norm(v)
        u = matrix.T @ v
        u /= np.linalg.norm(u)
    sigma = v @ kernel.reshape(matrix.shape) @ u
    factor = 1 / sigma if coefficient is None else coefficient / max(sigma, coefficient)
    return kernel * factor, {"u": u}


NORMS: dict[str, Callable[..., Result]] = {
    function.__name__: function
    for function in (none, centralize, standardize, scaled_standardize, weight_norm, spectral_norm)
}


def slope(name: str, kernel: Array, variables: Variables, direction: Any, **options: Any) -> Array:
    """Return the derivative of the new kernel along a direction of the kernel and the parameters.

    Args:
        name: The norm.
        kernel: Raw kernel.
        variables: Parameters and state.
        direction: A change of the kernel, and changes of parameters by name.
        **options: Options of the norm.
    """

    def moved(step: float) -> Array:
        there = {key: value + step * direction[1].get(key, 0) for key, value in variables.items()}
        return NORMS[name](kernel + step * direction[0], there, kernel, **options)[0]

    step = 1e-5
    return (8 * (moved(step) - moved(-step)) - moved(2 * step) + moved(-2 * step)) / (12 * step)
