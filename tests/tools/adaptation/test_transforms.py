"""Batch norms under transforms normalize by the batch at evaluation, and their scale and bias learn."""

import jax
import numpy as np
import pytest
from flax import nnx

from normlab.tools import Adapter
from tests.support import normed
from tests.tools.nets import X, refused, start
from tests.tools.test_precise_runs import Stack


def close(found: object, expected: object) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)


@pytest.mark.parametrize("transform", [name for name in normed.TRANSFORMS if name != "vmap"])
def test_transforms_of_linen(transform: str) -> None:
    norm = "flax-batch" if transform in ("jit", "scan") else "normlab-batch"
    model, variables = normed.linen(norm, transform)
    expected, _ = model.apply(variables, normed.inputs(), train=True, mutable=["batch_stats"])
    adapter = Adapter(model, variables, "tent")
    close(adapter(normed.inputs()), expected)
    moved = jax.tree.map(lambda one, other: not np.array_equal(one, other), variables, adapter.variables)
    assert {path[-1].key for path, yes in jax.tree.leaves_with_path(moved) if yes} == {"scale", "bias"}


@pytest.mark.parametrize("transform", [name for name in normed.NNX_TRANSFORMS if name != "vmap"])
def test_transforms_of_nnx(transform: str) -> None:
    norm = "flax-batch" if transform in ("jit", "scan") else "normlab-batch"
    model = normed.NNXModel(norm, transform, nnx.Rngs(0))
    twin, before = nnx.clone(model), nnx.state(model)
    twin.train()
    adapter = Adapter(model, None, "tent")
    close(adapter(normed.inputs()), twin(normed.inputs()))
    pairs = zip(nnx.to_flat_state(before), nnx.to_flat_state(adapter.variables), strict=True)
    moved = {path[-1] for (path, one), (_, other) in pairs if not np.array_equal(one[...], other[...])}
    assert moved == {"scale", "bias"}


def test_runs_that_share_statistics_or_have_no_order_are_refused() -> None:
    variables = start(Stack({"params": 0, "batch_stats": 0}))
    shared = {**variables, "batch_stats": jax.tree.map(lambda leaf: leaf[0], variables["batch_stats"])}
    with refused("Expected statistics of its own for each of the 3 runs of `layers/bn`, along the first axis, got "):
        Adapter(Stack({"params": 0}, carry="batch_stats"), shared, "prediction_time", evaluate={"train": False})(X[0])
    model, variables = normed.linen("flax-batch", "vmap")
    with refused("Expected norms whose runs have an order, got `block/norm` under `vmap`. Leave it out, or use a "):
        Adapter(model, variables, "prediction_time")(normed.inputs())
