"""Networks with two norms, and batches, from which statistics are estimated."""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import normlab.linen
import normlab.nnx
from normlab.errors import BadInput
from normlab.tools import precise

RNG = np.random.default_rng(0)
X = [2 + 3 * RNG.normal(size=(n, 4)).astype(np.float32) for n in (6, 6, 3)]
ALIKE = X[:2]


class Net(nn.Module):
    """Dense, norm, ReLU, dropout, Dense, norm."""

    norm: Callable[..., nn.Module] = normlab.linen.BatchNorm
    rate: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        masked = {} if mask is None else {"mask": mask}
        x = self.norm(use_running_average=not train, name="first")(nn.Dense(3)(x), **masked)
        x = nn.Dropout(self.rate, deterministic=not train)(nn.relu(x))
        calls = self.variable("memory", "calls", lambda: jnp.zeros(()))
        if train:
            calls.value += 1
        return self.norm(use_running_average=not train, name="second")(nn.Dense(5)(x), **masked)


class NNXNet(nnx.Module):
    """The same in NNX, its norms in a list."""

    def __init__(
        self, norm: Callable[..., nnx.Module] = normlab.nnx.BatchNorm, rate: float = 0.0, seed: int = 0
    ) -> None:
        rngs = nnx.Rngs(seed)
        self.dense = nnx.List([nnx.Linear(4, 3, rngs=rngs), nnx.Linear(3, 5, rngs=rngs)])
        self.norms = nnx.List([norm(3, rngs=rngs), norm(5, rngs=rngs)])
        self.dropout = nnx.Dropout(rate, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.dropout(nnx.relu(self.norms[0](self.dense[0](x))))
        return self.norms[1](self.dense[1](x))


def start(model: nn.Module, x: np.ndarray = X[0], **options: Any) -> Any:
    return model.init(jax.random.key(1), x, train=False, **options)


@functools.cache
def estimated_once() -> tuple[Net, Any, Any]:
    """Return a network, its variables, and the variables with statistics of `ALIKE`, which many tests compare with."""
    model = Net()
    variables = start(model)
    return model, variables, precise(model, variables, ALIKE).variables


def hidden(variables: Any, x: np.ndarray) -> np.ndarray:
    """Return what the first norm is given, in float64."""
    dense = jax.tree.map(np.float64, variables["params"]["Dense_0"])
    return x @ dense["kernel"] + dense["bias"]


def assert_statistics(found: Any, values: np.ndarray, rtol: float = 2e-6) -> None:
    np.testing.assert_allclose(found["mean"], values.mean(0), rtol=rtol, atol=1e-6)
    np.testing.assert_allclose(found["var"], values.var(0), rtol=rtol)


def same(one: Any, other: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


def refused(message: str) -> Any:
    return pytest.raises(BadInput, match=f"^{re.escape(message)}")


LIBRARIES = pytest.mark.parametrize("norm", [normlab.linen.BatchNorm, nn.BatchNorm], ids=["ours", "flax"])
