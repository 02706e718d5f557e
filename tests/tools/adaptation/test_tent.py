"""TENT lets scale and bias of norms descend the entropy of predictions."""

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn

import normlab.linen
from normlab.tools import Adapter
from normlab.tools.adaptation.predictions import entropy
from tests.tools.nets import LIBRARIES, Net, X, same, start


def trained(model: nn.Module, variables: dict, x: np.ndarray) -> jax.Array:
    return model.apply(variables, x, train=True, mutable=["batch_stats", "memory"])[0]


def descended(model: nn.Module, variables: dict, x: np.ndarray, rate: float) -> dict:
    """Return variables after a step of scale and bias on the entropy in training mode."""

    def loss(params: dict) -> jax.Array:
        return entropy(trained(model, {**variables, "params": params}, x))

    slopes = jax.grad(loss)(variables["params"])
    params = dict(variables["params"])
    for name in ("first", "second"):
        params[name] = jax.tree.map(lambda leaf, slope: leaf - rate * slope, params[name], slopes[name])
    return {**variables, "params": params}


@LIBRARIES
def test_tent_descends_the_entropy_of_predictions_by_statistics_of_the_batch(norm: type[nn.Module]) -> None:
    model = Net(norm)
    variables = start(model)
    adapter = Adapter(model, variables, "tent", optimizer=optax.sgd(0.5))
    expected = variables
    for x in X:
        np.testing.assert_allclose(adapter(x), trained(model, expected, x), rtol=1e-5, atol=1e-5)
        expected = descended(model, expected, x, 0.5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), adapter.variables, expected)
    assert not np.allclose(expected["params"]["first"]["scale"], variables["params"]["first"]["scale"], atol=1e-3)


def test_tent_moves_scale_and_bias_alone() -> None:
    model = Net()
    variables = start(model)
    adapter = Adapter(model, variables, "tent", optimizer=optax.adamw(0.1))
    for x in X:
        adapter(x)
    moved = jax.tree.map(lambda one, other: not np.array_equal(one, other), variables, adapter.variables)
    assert [
        jax.tree_util.keystr(path, simple=True, separator="/") for path, yes in jax.tree.leaves_with_path(moved) if yes
    ] == [f"params/{norm}/{name}" for norm in ("first", "second") for name in ("bias", "scale")]


def test_predictions_are_those_before_the_last_step_unless_they_are_to_be_after() -> None:
    model = Net()
    variables = start(model)
    states = [variables]
    for _ in range(3):
        states.append(descended(model, states[-1], X[0], 0.5))
    for steps, after in ((1, False), (1, True), (3, False), (3, True)):
        adapter = Adapter(model, variables, "tent", optimizer=optax.sgd(0.5), steps=steps, after=after)
        predicted = trained(model, states[steps if after else steps - 1], X[0])
        found = adapter(X[0])
        np.testing.assert_allclose(found, predicted, rtol=1e-4, atol=1e-5)
        assert adapter.curve[0].entropy == pytest.approx(float(entropy(found)), rel=1e-6)
        final = adapter.variables["params"]["first"]["scale"]
        np.testing.assert_allclose(final, states[steps]["params"]["first"]["scale"], rtol=1e-4, atol=1e-5)
    entropies = [float(entropy(trained(model, state, X[0]))) for state in states]
    assert entropies == sorted(entropies, reverse=True)


def test_an_episode_is_one_batch() -> None:
    model = Net()
    variables = start(model)
    adapter = Adapter(model, variables, "tent", optimizer=optax.adam(0.1), steps=2, episodic=True)
    first = adapter(X[0])
    after = adapter.variables
    adapter(X[1])
    same(adapter(X[0]), first)
    same(adapter.variables, after)
    assert [one.step for one in adapter.curve] == [0, 1, 2]


def test_other_norms_can_be_named_and_then_learn() -> None:
    model = nn.Sequential([nn.Dense(4), nn.LayerNorm(), nn.Dense(3)])
    variables = model.init(jax.random.key(0), X[0])
    adapter = Adapter(model, variables, "tent", where="layers_1", optimizer=optax.sgd(1.0))
    np.testing.assert_allclose(adapter(X[0]), model.apply(variables, X[0]), rtol=1e-6)
    slopes = jax.grad(lambda params: entropy(model.apply({"params": params}, X[0])))(variables["params"])
    moved = adapter.variables["params"]
    jax.tree.map(
        lambda new, old, slope: np.testing.assert_allclose(new, old - slope, rtol=1e-5, atol=1e-6),
        moved["layers_1"],
        variables["params"]["layers_1"],
        slopes["layers_1"],
    )
    same({**moved, "layers_1": 0}, {**variables["params"], "layers_1": 0})
    assert adapter.curve[0].shift == 0


def test_frozen_norms_stay_as_they_are() -> None:
    frozen = normlab.linen.BatchNorm(use_running_average=True, frozen=True)
    model = nn.Sequential([nn.Dense(4), frozen, nn.BatchNorm(use_running_average=True)])
    variables = model.init(jax.random.key(0), X[0])
    adapter = Adapter(model, variables, "tent", optimizer=optax.sgd(1.0))
    trains = nn.Sequential([nn.Dense(4), frozen, nn.BatchNorm(use_running_average=False)])
    expected, _ = trains.apply(variables, X[0], mutable=["batch_stats"])
    np.testing.assert_allclose(adapter(X[0]), expected, rtol=1e-5, atol=1e-6)
    same(adapter.variables["params"]["layers_1"], variables["params"]["layers_1"])
    assert not np.array_equal(adapter.variables["params"]["layers_2"]["bias"], np.zeros(4))
