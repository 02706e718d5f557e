"""Parameters and state of Haiku in Flax models and back: numbers of a recorded network, averages, what is refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from normlab import linen
from normlab import nnx as normlab_nnx
from normlab.errors import BadInput
from normlab.tools.haiku_state import from_haiku, to_haiku
from tests.support.states import Arrays, load

KEY = jax.random.key(0)


class Network(nn.Module):
    """The network of `tests.support.record_states.haiku_network`."""

    flipped: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        batch: dict[str, Any] = {"use_running_average": not train, "momentum": 0.9}
        x = nn.relu(linen.BatchNorm(**batch)(nn.Conv(6, (3, 3), 2)(x)))
        x = linen.GroupNorm(num_groups=3, epsilon=1e-5)(nn.Conv(12, (3, 3), feature_group_count=6)(x))
        up = nn.ConvTranspose(5, (4, 4), (2, 2), transpose_kernel=self.flipped)
        x = linen.BatchNorm(use_scale=False, **batch)(up(x))
        x = nn.relu(nn.ConvTranspose(5, (3, 3))(x))
        x = linen.LayerNorm(epsilon=1e-5)(nn.Dense(7)(x.reshape(x.shape[0], -1)))
        for _ in range(11):
            x = jnp.tanh(nn.Dense(7)(x))
        return linen.RMSNorm(epsilon=1e-5)(x)


def nested(flat: Arrays) -> dict[str, dict[str, np.ndarray]]:
    state: dict[str, dict[str, np.ndarray]] = {}
    for key, array in flat.items():
        module, _, name = key.partition("|")
        state.setdefault(module, {})[name] = array
    return state


@pytest.mark.parametrize("flipped", [False, True])
def test_a_recorded_network_computes_and_trains_as_in_haiku(flipped: bool) -> None:
    recorded, model = load("haiku"), Network(flipped)
    state, x = nested(recorded.state), jnp.asarray(recorded.inputs)
    found = from_haiku(state, model, jax.eval_shape(model.init, KEY, x), x, decay_rate=0.9)
    assert found.report == () and found.names["linear_10"] == "Dense_10" and found.names["linear_2"] == "Dense_2"
    np.testing.assert_allclose(jax.jit(model.apply)(found.variables, x), recorded.evaluated, atol=2e-6)
    if not flipped:
        train = jax.jit(lambda variables: model.apply(variables, x, train=True, mutable=["batch_stats"])[0])
        np.testing.assert_allclose(train(found.variables), recorded.trained, atol=5e-6)
    back = to_haiku(model, found.variables, x, names=found.names)
    assert {name: set(arrays) for name, arrays in back.items()} == {name: set(held) for name, held in state.items()}
    for module, arrays in back.items():
        for name, array in arrays.items():
            if name not in ("hidden", "counter"):
                np.testing.assert_array_equal(array, state[module][name])


def batch_norm_state(**averages: Any) -> dict[str, dict[str, Any]]:
    return {
        "bn": {"scale": np.ones((1, 2)), "offset": np.zeros((1, 2))},
        "bn/~/mean_ema": averages,
        "bn/~/var_ema": {"average": np.ones((1, 2)), "hidden": np.ones((1, 2)), "counter": np.int32(3)},
    }


def test_averages_are_corrected_for_their_start() -> None:
    model, x = linen.BatchNorm(use_running_average=True, momentum=0.9), jnp.ones((3, 2))
    variables = model.init(KEY, x)
    state = batch_norm_state(hidden=np.array([[0.19, 0.38]], np.float32), counter=np.int32(2))
    found = from_haiku(state, model, variables, x, decay_rate=0.9)
    np.testing.assert_allclose(found.variables["batch_stats"]["mean"], [1, 2], rtol=1e-6)
    assert found.fields == {"": {"epsilon": 1e-5, "momentum": 0.9}} and found.names == {"bn": ""}
    with pytest.raises(BadInput) as error:
        from_haiku(state, model, variables, x)
    assert str(error.value) == (
        "Expected `decay_rate` to correct `bn/~/mean_ema/hidden`, which has no `average` beside it, got None. Give the "
        "value of the batch norm."
    )
    untrained = batch_norm_state(hidden=np.zeros((1, 2)), counter=np.int32(0))
    found = from_haiku(untrained, model, variables, x, decay_rate=0.5)
    np.testing.assert_array_equal(found.variables["batch_stats"]["mean"], [0, 0])
    assert found.report == ("the model: has `momentum` 0.9; to train on as Haiku does, set `momentum=0.5`.",)


def test_an_average_goes_on_from_its_value() -> None:
    model, x = linen.BatchNorm(use_running_average=True), jnp.ones((3, 2))
    found = to_haiku(model, model.init(KEY, x), x, names={"bn": ""})
    average = found["bn/~/var_ema"]
    decay, value = np.float32(0.999), np.float32(5)  # Haiku's update
    hidden = average["hidden"] * decay + value * (1 - decay)
    updated = hidden / (1 - decay ** np.float32(average["counter"] + 1))
    np.testing.assert_allclose(updated, average["average"] * decay + value * (1 - decay))
    assert average["counter"].dtype == np.int32 and found["bn"]["scale"].shape == (1, 2)


def test_nnx_and_embeddings() -> None:
    class Model(nnx.Module):
        def __init__(self) -> None:
            self.norm = normlab_nnx.LayerNorm(2, epsilon=1e-5, rngs=nnx.Rngs(0))
            self.embed = nnx.Embed(3, 2, rngs=nnx.Rngs(0))

        def __call__(self, tokens: jax.Array) -> jax.Array:
            return self.norm(self.embed(tokens))

    state = {
        "embed": {"embeddings": np.arange(6.0).reshape(3, 2)},
        "layer_norm": {"scale": np.ones(2), "offset": np.arange(2.0)},
    }
    tokens = jnp.zeros((1, 4), int)
    found = from_haiku(state, Model(), None, tokens)
    assert found.names == {"embed": "embed", "layer_norm": "norm"}
    np.testing.assert_array_equal(found.model.embed.embedding[...], state["embed"]["embeddings"])
    back = to_haiku(found.model, None, tokens, names=found.names)
    np.testing.assert_array_equal(back["layer_norm"]["offset"], state["layer_norm"]["offset"])


def test_refusals() -> None:
    model, x = nn.Dense(2), jnp.ones((1, 2))
    with pytest.raises(BadInput) as error:
        from_haiku({"w": np.ones((2, 2))}, model, model.init(KEY, x), x)  # pyright: ignore[reportArgumentType]
    assert str(error.value) == (
        "Expected arrays by name under `w` of `state`, got `ndarray` of float64, shape (2, 2). Pass Haiku's parameters "
        "and state."
    )
    with pytest.raises(BadInput) as error:
        from_haiku({"linear": {"w": np.ones((2, 3)), "b": np.ones(3)}}, model, model.init(KEY, x), x)
    assert str(error.value) == (
        "Expected every array to be used once, got no place for `linear/w` (2, 3), `linear/b` (3,) and nothing for "
        "`bias` (2,), `kernel` (2, 2). Change the model, say `names=`, or leave them out by `strict=False`."
    )
