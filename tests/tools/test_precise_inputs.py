"""Batches in many forms, limits, fresh statistics, and what is refused."""

import itertools
from collections.abc import Callable
from functools import partial

import jax
import numpy as np
import pytest
from flax import linen as nn

import normlab.linen
import normlab.nnx
from normlab.tools import collect, cumulative, precise, reset
from tests.tools.nets import ALIKE, Net, NNXNet, X, refused, same, start


def test_batches_are_counted_and_limited() -> None:
    model, seen = nn.BatchNorm(use_running_average=None), []
    variables = model.init(jax.random.key(0), X[0], use_running_average=True)
    assert precise(model, variables, ALIKE, limit=100, progress=seen.append).examples == 12
    assert seen == [1, 2]
    endless = itertools.cycle(ALIKE)
    assert precise(model, variables, endless, limit=3).examples == 18
    assert next(endless) is X[1]  # no more was read than asked for
    with refused("Expected `limit` to be a positive whole number, or None, got 0. Give one such as 5."):
        precise(model, variables, X, limit=0)


@pytest.mark.parametrize(
    "wrap",
    [lambda x: x, lambda x: (x, 0), lambda x: [x], lambda x: {"inputs": x}, lambda x: {"image": x}, lambda x: {"x": x}],
    ids=["array", "tuple", "list", "inputs", "image", "x"],
)
def test_batches_come_in_many_forms(wrap: Callable[[np.ndarray], object]) -> None:
    model = nn.BatchNorm(use_running_average=None)
    variables = model.init(jax.random.key(0), X[0], use_running_average=True)
    assert collect(model, variables, map(wrap, X[:1])).examples == 6


def test_reset_makes_statistics_fresh() -> None:
    model = Net(normlab.linen.BatchRenorm)
    fresh = start(model)
    used = jax.tree.map(lambda leaf: leaf + 3, fresh)
    found = reset(model, used)
    same(found, {**used, "batch_stats": fresh["batch_stats"]})
    part = reset(model, used, where="sec*")
    same(part["batch_stats"], {**used["batch_stats"], "second": fresh["batch_stats"]["second"]})
    copy = precise(NNXNet(), None, ALIKE).model
    again = reset(copy, where=["norms/0"])
    assert again.norms[0].mean[...].tolist() == [0, 0, 0]
    same(again.norms[1].mean[...], copy.norms[1].mean[...])
    with refused("Expected a glob that matches the path of a norm with running statistics, got `frist`. Did you mean"):
        reset(model, used, where="frist")


def test_models_without_statistics_to_learn_are_refused() -> None:
    layers = nn.Sequential([nn.LayerNorm(), nn.LayerNorm(), nn.LayerNorm()])
    variables = layers.init(jax.random.key(0), X[0])
    with refused("Expected a model with running statistics, found none among its 3 norms (layer, layer, layer)."):
        precise(layers, variables, X)
    dense = nn.Dense(2)
    with refused("Expected a model with running statistics, found no norms."):
        precise(dense, dense.init(jax.random.key(0), X[0]), X)
    fixed = Net(partial(normlab.linen.BatchNorm, frozen=True))
    with refused(
        "Expected a norm that learns its statistics in training, got 2 with fixed ones, such as `first`. Give "
        "`train={...}`, the keywords of a call in training, or name norms in `where=`."
    ):
        precise(fixed, start(fixed), X)
    untold = nn.Sequential([nn.BatchNorm(use_running_average=True)])
    variables = untold.init(jax.random.key(0), X[0])
    untold_mode = "Expected to know how the model is told to train, got a call without an argument such as `train`."
    with refused(untold_mode):
        precise(untold, variables, X)
    with refused(untold_mode):
        precise(untold, variables, X, through="evaluation")
    mixed = nn.Sequential([nn.LayerNorm(), nn.BatchNorm(use_running_average=False)])
    with refused(
        "Expected norms with running statistics of batches in `where`, got `layers_0` (layer), which keeps none. Take "
        "norms such as `layers_1`."
    ):
        precise(mixed, mixed.init(jax.random.key(0), X[0]), X, where="layers_0")


def test_what_does_not_fit_is_refused_in_a_sentence() -> None:
    model = Net()
    variables = start(model)
    with refused("Expected at least one batch, got none. Pass a list of batches, or a loader that is not empty."):
        precise(model, variables, [])
    with refused("Expected at least one batch, got none. Pass a list of batches, or a loader that is not empty."):
        cumulative(model, variables, [])
    with refused("Expected `through` to be 'batch' or 'evaluation', got 'train'. Choose one."):
        precise(model, variables, X, through="train")
    with refused("Expected `estimator` to be one of ('population', 'paper', 'average'), got 'fvcore'. Choose one."):
        precise(model, variables, iter([]), estimator="fvcore")
    with refused("Expected a Flax module, got a function."):
        precise(model.apply, variables, X)
    with refused("Expected the variables of a Linen model, got None."):
        precise(model, None, X)
    wrong = X[1].copy()
    wrong[2, 1] = np.nan
    with refused(
        "Expected finite inputs of norms, got NaN or infinity at `first` in batch 1, counted from 0. Look at this "
        "batch, and at the weights before this norm."
    ):
        precise(model, variables, [X[0], wrong, X[2]])
    with refused(
        "Expected a batch with one of 'inputs', 'image', 'x', got `pixels`. Give "
        "`call=lambda batch: ((batch[...],), {})`, the arguments of the model."
    ):
        precise(model, variables, [{"pixels": X[0]}])
    with refused("Expected a batch of arrays, a tuple or a dict, got `text`. Give `call="):
        precise(model, variables, ["text"])
    with refused("Expected an array with an axis of examples among the arguments of the model, got none. Give `call="):
        precise(model, variables, [1], call=lambda batch: ((np.float32(0),), {}))
