"""Growth of squared gradients from a layer to the one before it, by mean field theory of wide networks.

References:
    Schoenholz, Gilmer, Ganguli, Sohl-Dickstein. Deep Information Propagation. ICLR 2017.
    https://arxiv.org/abs/1611.01232
    Yang, Pennington, Rao, Sohl-Dickstein, Schoenholz. A Mean Field Theory of Batch Normalization. ICLR 2019.
    https://arxiv.org/abs/1902.08129
"""

import math
from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np

Activation = Literal["relu", "tanh", "linear"]
Elementwise = Callable[[np.ndarray], np.ndarray]

FUNCTIONS: Mapping[Activation, tuple[Elementwise, Elementwise]] = {
    "relu": (lambda x: np.maximum(x, 0), lambda x: (x > 0).astype(np.float64)),
    "tanh": (np.tanh, lambda x: 1 - np.tanh(x) ** 2),
    "linear": (lambda x: x, np.ones_like),
}
"""Activations and their derivatives."""

HE_VARIANCE = 2.0
"""Variance of He's initial weights, times the inputs of a layer."""


def with_batch_norm(batch: int, activation: Activation = "relu") -> float:
    """Return the growth with batch norm before the activation; weights of any scale.

    Args:
        batch: Images in a batch, at least 4.
        activation: In closed form for `relu` and `linear`, by quadrature for others.
    """
    if activation == "tanh":
        return on_the_sphere(batch, activation)
    c = -1 / (batch - 1)
    mean, slope = correlation(c, activation)
    pair = (slope + (batch - 1)) / ((batch - 3) * (1 - mean))
    return pair - 1 / (batch - 3)


def correlation(c: float, activation: Activation = "relu") -> tuple[float, float]:
    """Return the correlation of activations of two units whose inputs have correlation c, and its derivative by c."""
    if activation == "linear":
        return c, 1.0
    angle = math.acos(c)
    return (math.sqrt(1 - c * c) + (math.pi - angle) * c) / math.pi, (math.pi - angle) / math.pi


def on_the_sphere(batch: int, activation: Activation, points: int = 400) -> float:
    """Return the growth with batch norm before any activation, by quadrature.

    A unit's standardized inputs x are uniform on the sphere of radius sqrt(batch) among the vectors of mean zero, and
    the norm of the inputs before is independent of x. With D = diag(f'(x)), G the projection to mean zero and Q that
    to mean zero and orthogonal to x, the growth is

        batch E tr(Q D G D Q) / ((batch - 3) (batch - 1) (E f(x_1)^2 - E f(x_1) f(x_2))).

    Args:
        batch: Images in a batch, at least 4.
        activation: The activation f.
        points: Points of the quadrature in each of two angles.
    """
    function, derivative = FUNCTIONS[activation]
    scaled: Elementwise = lambda x: x * derivative(x)  # noqa: E731
    (square, product), (slope, slopes), (weighted, together) = (
        _moments(batch, f, points) for f in (function, derivative, scaled)
    )
    others = batch - 1
    trace = batch * (slope * (1 - 1 / batch) - weighted / batch)
    trace -= slope - (slope + others * slopes) / batch - (weighted + others * together) / batch
    return batch * trace / ((square - product) * (batch - 3) * (batch - 1))


def _moments(batch: int, f: Elementwise, points: int) -> tuple[float, float]:
    """Return E f(x_1)^2 and E f(x_1) f(x_2) of two standardized inputs in a batch."""
    first, weights = _coordinate(batch - 1, points)
    second, others = _coordinate(batch - 2, points)
    c, radius = -1 / (batch - 1), math.sqrt(batch - 1)
    one = radius * first
    two = radius * (c * first[:, None] + np.sqrt((1 - c * c) * (1 - first[:, None] ** 2)) * second)
    values = f(one)
    return float(weights @ values**2), float((weights * values) @ f(two) @ others)


def _coordinate(dimension: int, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Return points and weights for one coordinate of a uniform point of the unit sphere in a space."""
    angles = (np.arange(points) + 0.5) * np.pi / points
    weights = np.sin(angles) ** (dimension - 2)
    return np.cos(angles), weights / weights.sum()


def without_norm(activation: Activation = "relu", variance: float = HE_VARIANCE, points: int = 100) -> float:
    """Return the growth without a norm where activations keep their size, `variance` E f'(sqrt(q) z)^2.

    The fixed point q = `variance` E f(sqrt(q) z)^2 is found by iteration, expectations over a normal z by quadrature.

    Args:
        activation: The activation f; one with a fixed point.
        variance: Variance of the weights times the inputs of a layer.
        points: Points of the quadrature.
    """
    function, derivative = FUNCTIONS[activation]
    z, weights = np.polynomial.hermite_e.hermegauss(points)
    weights = weights / weights.sum()
    q = 1.0
    for _ in range(1_000):
        q = variance * float(weights @ function(math.sqrt(q) * z) ** 2)
    return variance * float(weights @ derivative(math.sqrt(q) * z) ** 2)
