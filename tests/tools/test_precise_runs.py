"""Statistics of norms that are called or run several times, and passes over the data."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from flax import linen as nn

import normlab.linen
import normlab.nnx
from normlab.tools import precise
from tests.tools.nets import (
    ALIKE,
    LIBRARIES,
    Net,
    NNXNet,
    X,
    assert_statistics,
    estimated_once,
    hidden,
    refused,
    same,
    start,
)


@LIBRARIES
def test_calls_are_merged(norm: type[nn.Module]) -> None:
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, train: bool) -> jax.Array:
            shared = norm(use_running_average=not train, name="shared")
            return shared(x) + shared(10 * x)

    model = Twice()
    found = precise(model, start(model), ALIKE)
    x = np.concatenate(ALIKE).astype(np.float64)
    assert_statistics(found.variables["batch_stats"]["shared"], np.concatenate([x, 10 * x]))
    assert (found.moments["shared"].batches == 4).all()


class Layer(nn.Module):
    """A layer for `nn.scan`."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, None]:
        x = normlab.linen.BatchNorm(use_running_average=not train, name="bn")(nn.Dense(4)(x))
        return x, None


class Stack(nn.Module):
    """Three layers in a scan, which share statistics or not."""

    axes: Any
    carry: Any = False
    broadcast: Any = False
    transform: str = "scan"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        options = {"variable_axes": self.axes, "split_rngs": {"params": True}}
        if self.transform == "vmap":
            return nn.vmap(Layer, in_axes=(None, None), axis_size=3, **options)(name="layers")(x, train)[0].sum(0)
        return nn.scan(
            Layer,
            length=3,
            in_axes=nn.broadcast,
            variable_carry=self.carry,
            variable_broadcast=self.broadcast,
            **options,
        )(name="layers")(x, train)[0]


def test_layers_in_a_scan_have_statistics_of_their_own() -> None:
    model = Stack({"params": 0, "batch_stats": 0})
    variables = start(model)
    found = precise(model, variables, ALIKE).variables["batch_stats"]["layers"]["bn"]
    assert found["mean"].shape == (3, 4)
    given = [np.float64(x) for x in ALIKE]
    for i in range(3):
        dense = jax.tree.map(lambda leaf, i=i: np.float64(leaf[i]), variables["params"]["layers"]["Dense_0"])
        given = [h @ dense["kernel"] + dense["bias"] for h in given]
        assert_statistics(jax.tree.map(lambda leaf, i=i: leaf[i], found), np.concatenate(given), rtol=2e-5)
        given = [(h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5) for h in given]


def test_runs_without_statistics_of_their_own_or_without_an_order_are_refused() -> None:
    model, apart = Stack({"params": 0}, carry="batch_stats"), Stack({"params": 0, "batch_stats": 0})
    variables = start(apart)
    shared = {**variables, "batch_stats": jax.tree.map(lambda leaf: leaf[0], variables["batch_stats"])}
    for shares in (model, Stack({"params": 0}, broadcast="batch_stats")):
        with refused(
            "Expected statistics of its own for each of the 3 runs of `layers/bn`, along the first axis, got "
            "statistics of shape (4,) for features of shape (4,). Write `variable_axes={'batch_stats': 0}` in "
            "`nn.scan`, or leave the norm out by `where=`."
        ):
            precise(shares, shared, ALIKE)
    model = Stack({"params": 0, "batch_stats": 0}, transform="vmap")
    with refused("Expected norms whose runs have an order, got `layers/bn` under `vmap`."):
        precise(model, start(model), ALIKE)


@LIBRARIES
def test_running_statistics_of_two_norms_in_sequence_are_settled_after_two_passes(norm: type[nn.Module]) -> None:
    model = Net(norm)
    found = precise(model, start(model), ALIKE, through="evaluation")
    assert (found.passes, found.moving, found.examples) == (2, {}, 12)
    given = []
    for x in ALIKE:
        dense = found.variables["params"]["Dense_1"]
        first = found.variables["batch_stats"]["first"]
        h = (hidden(found.variables, x) - first["mean"]) / np.sqrt(first["var"] + 1e-5)
        given.append(np.maximum(h, 0) @ np.float64(dense["kernel"]) + np.float64(dense["bias"]))
    assert_statistics(found.variables["batch_stats"]["second"], np.concatenate(given), rtol=1e-5)
    again = precise(model, found.variables, ALIKE, through="evaluation")
    same(again.variables, found.variables)
    assert (again.passes, again.change) == (1, {"first": 0, "second": 0})


def test_nnx_by_running_statistics_is_linen() -> None:
    model, linen = NNXNet(), Net()
    found = precise(model, None, ALIKE, through="evaluation")
    params = {
        f"Dense_{i}": {"kernel": layer.kernel[...], "bias": layer.bias[...]} for i, layer in enumerate(model.dense)
    }
    variables = start(linen)
    variables = {**variables, "params": {**variables["params"], **params}}
    expected = precise(linen, variables, ALIKE, through="evaluation").variables["batch_stats"]
    for norm, name in zip(found.model.norms, ("first", "second"), strict=True):
        np.testing.assert_allclose(norm.mean[...], expected[name]["mean"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(norm.var[...], expected[name]["var"], rtol=1e-5)
    assert found.passes == 2


def test_a_norm_that_feeds_itself_keeps_moving() -> None:
    class Again(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, train: bool) -> jax.Array:
            shared = normlab.linen.BatchNorm(use_running_average=not train, name="shared")
            return shared(nn.relu(shared(x)))

    model = Again()
    found = precise(model, start(model), ALIKE, through="evaluation")
    assert found.passes == 1
    assert found.moving["shared"] > 0.01


def test_batches_that_are_gone_are_refused_only_where_they_are_read_again() -> None:
    model, one = Net(), nn.BatchNorm(use_running_average=None)
    variables = one.init(jax.random.key(0), X[0], use_running_average=True)
    assert precise(one, variables, iter(ALIKE), through="evaluation").passes == 1
    assert precise(model, start(model), iter(ALIKE)).examples == 12
    sentence = (
        "Expected batches that can be read again, got an iterator that is exhausted on pass 2 "
        "(`through='evaluation'`). Pass a list, or an object whose `__iter__` starts anew."
    )
    with refused(sentence):
        precise(model, start(model), iter(ALIKE), through="evaluation")

    class Once:
        def __init__(self) -> None:
            self.batches = iter(ALIKE)

        def __iter__(self) -> Iterator[np.ndarray]:
            return self.batches

    with refused(sentence):
        precise(model, start(model), Once(), through="evaluation")


def test_only_chosen_norms_change() -> None:
    model, variables, everything = estimated_once()
    for where in ("s*", ["second"], lambda site: site.path == "second"):
        found = precise(model, variables, ALIKE, where=where)
        same(found.variables["batch_stats"]["first"], variables["batch_stats"]["first"])
        same(found.variables["batch_stats"]["second"], everything["batch_stats"]["second"])
        assert list(found.moments) == ["second"]


def test_frozen_norms_stay_unless_they_are_named() -> None:
    class Frozen(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, train: bool) -> jax.Array:
            x = normlab.linen.BatchNorm(use_running_average=not train, frozen=True, name="ours")(x)
            x = nn.BatchNorm(use_running_average=True, name="flax")(x)
            return nn.BatchNorm(use_running_average=not train, name="free")(x)

    model = Frozen()
    assert list(precise(model, start(model), ALIKE).moments) == ["free"]
    assert list(precise(model, start(model), ALIKE, where=["ours", "f*"]).moments) == ["ours", "flax", "free"]
