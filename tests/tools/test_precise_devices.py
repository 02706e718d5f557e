"""Statistics from many devices, from parts of the data, and of averaged weights."""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import normlab.linen
import normlab.nnx
from normlab.tools import Moments, averaging, collect, precise, replicas
from tests.tools.nets import ALIKE, Net, NNXNet, X, assert_statistics, estimated_once, hidden, same, start


def test_models_of_many_devices_are_one_on_one_device() -> None:
    synchronized = Net(partial(normlab.linen.BatchNorm, axis_name="data"))
    flaxs = Net(partial(nn.BatchNorm, axis_name="data"))
    _, variables, expected = estimated_once()
    for model in (synchronized, flaxs):
        found = precise(model, variables, ALIKE).variables["batch_stats"]
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found, expected["batch_stats"])


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_examples_on_many_devices_are_still_one_batch(library: str) -> None:
    mesh = jax.make_mesh((8,), ("data",))
    batches = [np.tile(X[0], (4, 1)), X[2]]  # the second does not divide over the devices
    model, variables = (Net(), start(Net())) if library == "linen" else (NNXNet(), None)
    one, many = (collect(model, variables, batches, mesh=where) for where in (None, mesh))
    for path in one:
        np.testing.assert_allclose(many[path].mean, one[path].mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(many[path].var, one[path].var, rtol=1e-5)
    assert many.examples == 27
    if library == "linen":
        placed = jax.device_put(variables, jax.NamedSharding(mesh, jax.P()))
        found = precise(model, placed, [jax.device_put(batches[0], jax.NamedSharding(mesh, jax.P("data")))]).variables[
            "batch_stats"
        ]["first"]["mean"]
        np.testing.assert_allclose(found, hidden(variables, X[0]).mean(0), rtol=1e-5, atol=1e-6)
        assert found.sharding == placed["batch_stats"]["first"]["mean"].sharding


def test_parts_of_the_data_are_merged_across_files_and_processes(tmp_path: Path) -> None:
    model, variables, expected = estimated_once()
    collect(model, variables, ALIKE[:1]).save(tmp_path / "moments")
    merged = Moments.load(tmp_path / "moments") + collect(model, variables, ALIKE[1:]) + collect(model, variables, [])
    same(replicas.merge(merged).apply(variables), expected)


def test_averages_of_weights_evaluate_after_estimation() -> None:
    model = Net()
    trees = [model.init(jax.random.key(seed), X[0], train=False) for seed in (0, 1)]
    average = averaging.average(trees)
    found = precise(model, average, ALIKE).variables
    assert model.apply(found, X[0], train=False).shape == (6, 5)
    assert_statistics(found["batch_stats"]["first"], hidden(found, np.concatenate(ALIKE)))
    models = [NNXNet(seed=seed) for seed in (0, 1)]
    state = averaging.average([nnx.state(one) for one in models])
    copy = precise(models[0], state, ALIKE).model
    kernel = np.mean([one.dense[0].kernel[...] for one in models], 0)
    np.testing.assert_allclose(copy.dense[0].kernel[...], kernel, rtol=1e-6)
    np.testing.assert_allclose(copy.norms[0].mean[...], (np.concatenate(ALIKE) @ kernel).mean(0), rtol=1e-5, atol=1e-6)
    assert not np.allclose(models[0].dense[0].kernel[...], kernel)
