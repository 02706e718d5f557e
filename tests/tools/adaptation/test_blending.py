"""Batch norms of every kind normalize by the batch at evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from normlab import norms
from normlab.tools import Adapter
from normlab.tools.estimation.estimated import OF_INPUT
from tests.tools.nets import LIBRARIES, Net, X, start

OPTIONS = {"continual": "num_groups=2", "batch_channel": "num_groups=2", "batch_renorm": "epsilon=0.01"}
PLAIN = {"batch_renorm": {"r_max": 1.0, "d_max": 0.0}}
NAMES = [f"{kind}:{OPTIONS.get(kind, '')}".rstrip(":") for kind in OF_INPUT]


def close(found: object, expected: object) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)


@pytest.mark.parametrize("name", [*NAMES, "batch:unbiased_running_var=True", "batch:statistics=running"])
@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_statistics_of_the_batch_give_the_output_of_training(name: str, library: str) -> None:
    x = 1 + 2 * jax.random.normal(jax.random.key(0), (6, 5, 8))
    norm = norms.get(name)
    auto = {"statistics": "auto"} if "statistics" in name else {}
    trains = norms.get(name, **PLAIN.get(norm.name, {}), **auto)
    if library == "linen":
        variables = norm.linen(train=False).init(jax.random.key(0), x)
        found = Adapter(norm.linen(train=False), variables, "prediction_time")(x)
        expected, _ = trains.linen(train=True).apply(variables, x, mutable=["batch_stats"])
    else:
        found = Adapter(norm.nnx(8, rngs=nnx.Rngs(0)), None, "prediction_time")(x)
        trained = trains.nnx(8, rngs=nnx.Rngs(0))
        trained.train()
        expected = trained(x)
    close(found, expected)


@LIBRARIES
def test_masked_elements_do_not_count(norm: type[nn.Module]) -> None:
    model = Net(norm)
    variables, mask = start(model), np.array([[True]] * 4 + [[False]] * 2)
    adapter = Adapter(model, variables, "prediction_time", call=lambda batch: ((batch[0],), {"mask": batch[1]}))
    padded = np.concatenate([X[0][:4], np.full((2, 4), 1e3, np.float32)])
    plain = Adapter(model, variables, "prediction_time")
    np.testing.assert_allclose(adapter((padded, mask))[:4], plain(X[0][:4]), rtol=1e-5, atol=1e-5)


def test_norms_that_are_not_named_evaluate_by_running_statistics() -> None:
    model = Net()
    variables = start(model)
    found = Adapter(model, variables, "prediction_time", where="first")(X[0])
    _, changed = model.apply(variables, X[0], train=True, mutable=True, capture_intermediates=True)
    x = nn.relu(changed["intermediates"]["first"]["__call__"][0])
    dense, bn = variables["params"]["Dense_1"], variables["params"]["second"]
    x = (x @ dense["kernel"] + dense["bias"]) / np.sqrt(1 + 1e-5) * bn["scale"] + bn["bias"]
    np.testing.assert_allclose(found, x, rtol=1e-5, atol=1e-5)


def test_boxes_of_statistics_stay() -> None:
    variables = start(Net())
    boxed = {
        **variables,
        "batch_stats": jax.tree.map(lambda leaf: nn.Partitioned(leaf, (None,)), variables["batch_stats"]),
    }
    adapter = Adapter(Net(), boxed, "prediction_time")
    close(adapter(X[0]), Adapter(Net(), variables, "prediction_time")(X[0]))
    assert jax.tree.structure(adapter.variables) == jax.tree.structure(boxed)


def test_large_statistics_are_those_of_the_batch_exactly() -> None:
    model = nn.BatchNorm(use_running_average=True, epsilon=0.0)
    x = jnp.array([[3.0], [5.0]])
    variables = model.init(jax.random.key(0), x)
    kept = {**variables, "batch_stats": {"mean": jnp.array([1e30]), "var": jnp.array([1e30])}}
    np.testing.assert_array_equal(Adapter(model, kept, "prediction_time")(x), [[-1.0], [1.0]])


def test_a_norm_that_is_called_twice_blends_with_what_it_keeps_each_time() -> None:
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            norm = nn.BatchNorm(use_running_average=True, epsilon=0.0)
            return norm(x), norm(3 * x + 1)

    class NNXTwice(nnx.Module):
        def __init__(self) -> None:
            self.norm = nnx.BatchNorm(1, epsilon=0.0, rngs=nnx.Rngs(0))

        def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            return self.norm(x), self.norm(3 * x + 1)

    x = jnp.array([[0.0], [4.0]])
    expected = [(each - each.mean() / 2) / jnp.sqrt((1 + each.var()) / 2) for each in (x, 3 * x + 1)]
    for model, variables in ((Twice(), Twice().init(jax.random.key(0), x)), (NNXTwice(), None)):
        close(list(Adapter(model, variables, "blended", alpha=0.5)(x)), expected)
