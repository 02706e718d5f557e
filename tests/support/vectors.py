"""Inputs of the published test vectors, and a norm's output and gradients for them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from normlab import norms


def numbers(text: str, shape: tuple[int, ...] = (2, 2, 4)) -> np.ndarray:
    """Return the numbers in a text as an array."""
    return np.array(text.split(), np.float64).reshape(shape)


X = numbers(".5 -1.2 2 .3 1.5 .4 -.7 1.1 -.8 2.2 .9 -1.6 .2 -.5 1.3 .6")
COTANGENT = numbers(".3 -.7 .2 .5 -.4 .6 .1 -.2 .8 .1 -.3 .4 -.6 .9 -.5 .7")
SCALE, BIAS = np.array([1.1, 0.9, 1.2, 0.8]), np.array([0.1, -0.2, 0.3, 0.0])
PER_FEATURE = np.array([0.5, 1.0, 1.5, 2.0])


def pulled(name: str, params: dict[str, np.ndarray], wide: bool) -> tuple[Any, dict[str, Any], Any]:
    """Return output, gradients of parameters and gradient of the input, in float64 or float32."""
    dtype = "float64" if wide else "float32"
    with jax.enable_x64(wide):
        module = norms.get(name).linen(train=True)
        x, dy = jnp.asarray(X, dtype), jnp.asarray(COTANGENT, dtype)
        given = {k: jnp.asarray(v, dtype) for k, v in params.items()}
        y, pull = jax.vjp(lambda params, x: module.apply({"params": params}, x), given, x)
        by_params, dx = pull(dy)
        assert y.dtype == dtype
        return np.asarray(y), {k: np.asarray(v) for k, v in by_params.items()}, np.asarray(dx)
