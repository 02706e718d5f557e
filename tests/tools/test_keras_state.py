"""States of Keras in Flax models and back: numbers of a recorded network, and what is refused."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from normlab import linen
from normlab.errors import BadInput
from normlab.tools.keras_state import from_keras, to_keras
from tests.support.states import load

KEY = jax.random.key(0)


class Network(nn.Module):
    """The network of `tests.support.record_states.record_keras`."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        batch: dict[str, Any] = {"use_running_average": not train, "momentum": 0.9, "epsilon": 1e-3}
        x = nn.relu(linen.BatchNorm(**batch)(nn.Conv(6, (3, 3), 2)(x)))
        x = linen.GroupNorm(num_groups=3, epsilon=1e-3)(nn.Conv(12, (3, 3), feature_group_count=6, name="depth")(x))
        x = linen.BatchNorm(use_scale=False, **batch)(nn.ConvTranspose(5, (4, 4), (2, 2), transpose_kernel=True)(x))
        x = nn.relu(nn.ConvTranspose(5, (3, 3))(x))
        x = linen.LayerNorm(epsilon=1e-3)(nn.Dense(7)(x.reshape(x.shape[0], -1)))
        return linen.RMSNorm(epsilon=1e-6)(nn.Dense(7)(x))


def test_a_recorded_network_computes_and_trains_as_in_keras() -> None:
    recorded, model = load("keras"), Network()
    x = jnp.asarray(recorded.inputs)
    found = from_keras(recorded.state, model, jax.eval_shape(model.init, KEY, x), x, momentum=0.9)
    np.testing.assert_allclose(jax.jit(model.apply)(found.variables, x), recorded.evaluated, atol=2e-6)
    train = jax.jit(lambda variables: model.apply(variables, x, train=True, mutable=["batch_stats"]))
    y, after = train(found.variables)
    np.testing.assert_allclose(y, recorded.trained, atol=5e-6)
    for name, layer in (("BatchNorm_0", "batch_normalization"), ("BatchNorm_1", "batch_normalization_1")):
        mean, var = (recorded.after[f"sequential/{layer}/moving_{of}"] for of in ("mean", "variance"))
        np.testing.assert_allclose(after["batch_stats"][name]["mean"], mean, atol=5e-6)
        np.testing.assert_allclose(after["batch_stats"][name]["var"], var, atol=5e-6)
    assert found.report == ()
    assert found.names["sequential/depthwise_conv2d"] == "depth"
    assert found.fields["BatchNorm_0"] == {"epsilon": 1e-3, "momentum": 0.9}
    back = to_keras(model, found.variables, x, names=found.names)
    assert set(back) == set(recorded.state)
    for key, array in recorded.state.items():
        np.testing.assert_array_equal(back[key], array)


class Embedded(nn.Module):
    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = nn.Embed(5, 4)(tokens)
        for _ in range(3):
            x = nn.Dense(4)(x)
        return nn.BatchNorm(use_running_average=True, epsilon=1e-3)(x)


def test_layers_of_one_shape_are_in_the_order_of_their_numbers() -> None:
    layers = {f"net/dense{number}": i for i, number in enumerate(("", "_1", "_2"))}
    state = {f"{name}/kernel": np.full((4, 4), i) for name, i in layers.items()}
    state |= {f"{name}/bias": np.full(4, i) for name, i in layers.items()} | {
        "net/embedding/embeddings": np.ones((5, 4))
    }
    of_norm = {"gamma": 1.0, "beta": 2.0, "moving_mean": 3.0, "moving_variance": 4.0}
    state |= {f"net/norm/{name}": np.full(4, value) for name, value in of_norm.items()}
    state["seeds/seed_generator_state"] = np.zeros(2, np.uint32)
    tokens = jnp.zeros((2, 3), int)
    variables = Embedded().init(KEY, tokens)
    found = from_keras(state, Embedded(), variables, tokens)
    assert [found.variables["params"][f"Dense_{i}"]["bias"][0] for i in range(3)] == [0, 1, 2]
    assert found.report == ("`seeds`: has no counterpart, and was dropped: seed_generator_state.",)
    statistics = found.variables["batch_stats"]["BatchNorm_0"]
    assert statistics["mean"][0] == 3 and statistics["var"][0] == 4
    report = from_keras(state, Embedded(), variables, tokens, momentum=0.9).report
    assert report[1] == "`BatchNorm_0`: has `momentum` 0.99; to train on as Keras does, set `momentum=0.9`."


def test_nnx() -> None:
    model, x = nnx.Linear(2, 3, rngs=nnx.Rngs(0)), jnp.ones((1, 2))
    state = {"dense/kernel": np.arange(6.0).reshape(2, 3), "dense/bias": np.zeros(3)}
    found = from_keras(state, model, None, x)
    np.testing.assert_array_equal(found.model.kernel[...], state["dense/kernel"])
    np.testing.assert_array_equal(
        to_keras(found.model, None, x, names=found.names)["dense/kernel"], state["dense/kernel"]
    )


@pytest.mark.parametrize(
    ("state", "options", "sentence"),
    [
        (
            {"n/gamma": np.ones(2), "n/beta": np.ones(2)},
            {},
            "Expected the model to have `epsilon` 0.001 as in Keras, got 1e-06. Set `epsilon=0.001` in the model, give "
            "the epsilon of `n` if it is another, or take it as it is by `strict=False`.",
        ),
        ({"layers": {}}, {}, "Expected arrays by name in `state`, got {}. Pass what is under `layers`."),
        (
            {"n/gamma": np.ones(2), "n/beta": np.ones(2)},
            {"names": ["n"]},
            "Expected `names` to be a mapping or a function, got ['n']. Leave it out to match by "
            "order, kind and shape.",
        ),
    ],
)
def test_refusals(state: Any, options: Any, sentence: str) -> None:
    x = jnp.ones((1, 2))
    with pytest.raises(BadInput) as error:
        from_keras(state, linen.LayerNorm(), linen.LayerNorm().init(KEY, x), x, **options)
    assert str(error.value) == sentence


def test_epsilon_of_one_norm() -> None:
    x, state = jnp.ones((1, 2)), {"n/gamma": np.ones(2), "n/beta": np.ones(2)}
    found = from_keras(state, linen.LayerNorm(), linen.LayerNorm().init(KEY, x), x, epsilon={"n": 1e-6})
    assert found.fields == {"": {"epsilon": 1e-6}} and found.names == {"n": ""}
