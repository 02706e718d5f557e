"""Record networks of PyTorch, Keras and Haiku for the tests of states, which run without these libraries.

`KERAS_BACKEND=jax python -m tests.support.record_states` writes `tests/tools/recorded`; it needs the extra `peers`.
"""

import json
from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import keras
import numpy as np
import torch
import torchvision
from keras import layers
from torch import nn

from tests.support.states import Arrays, Recorded, numbers, save

RNG = np.random.default_rng(0)


def _inputs(shape: tuple[int, ...]) -> np.ndarray:
    """Return normal numbers of few digits, which take little space."""
    return (np.round(8 * RNG.normal(size=shape)) / 8).astype(np.float32)


def record_torch(name: str, network: nn.Module, shape: tuple[int, ...], kept: bool = True) -> None:
    """Record a network; large states are not kept but made again from their shapes."""
    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    state = numbers(shapes)
    network.load_state_dict({key: torch.tensor(array) for key, array in state.items()})
    inputs = _inputs(shape)
    evaluated = network.eval()(torch.tensor(inputs)).detach().numpy()
    trained = network.train()(torch.tensor(inputs)).detach().numpy()
    after = {key: tensor.numpy() for key, tensor in network.state_dict().items() if "running" in key}
    stored = state if kept else {"shapes": np.asarray(json.dumps(shapes))}
    save(name, Recorded(stored, inputs, evaluated, trained, after if kept else {}))


def torch_network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4, bias=False),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 6, 4, 2, 1),
        nn.InstanceNorm2d(6, affine=True),
        nn.ConvTranspose2d(6, 5, 3, 1, 1),
        nn.BatchNorm2d(5, affine=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * 64, 12),
        nn.LayerNorm(12),
        nn.Linear(12, 12, bias=False),
        nn.RMSNorm(12),
    )


def record_keras() -> None:
    network = keras.Sequential(
        [
            keras.Input((8, 8, 4)),
            layers.Conv2D(6, 3, strides=2, padding="same"),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
            layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2),
            layers.GroupNormalization(3),
            layers.Conv2DTranspose(5, 4, strides=2, padding="same"),
            layers.BatchNormalization(scale=False, momentum=0.9),
            layers.Conv2DTranspose(5, 3, padding="same"),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dropout(0.0),
            layers.Dense(7),
            layers.LayerNormalization(),
            layers.Dense(7),
            layers.RMSNormalization(),
        ]
    )
    for weight in network.weights:
        if weight.dtype == "float32":
            low = 0.5 if weight.path.endswith(("gamma", "variance", "scale")) else -0.3
            weight.assign(RNG.uniform(low, low + 0.6, weight.shape))
    inputs = _inputs((4, 8, 8, 4))
    state = {weight.path: weight.numpy() for weight in network.weights}
    evaluated, trained = np.asarray(network(inputs)), np.asarray(network(inputs, training=True))
    after = {weight.path: weight.numpy() for weight in network.weights if "/moving_" in weight.path}
    save("keras", Recorded(state, inputs, evaluated, trained, after))


def haiku_network(x: jax.Array, train: bool) -> jax.Array:
    x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(hk.Conv2D(6, 3, 2)(x), train))
    x = hk.GroupNorm(3)(hk.Conv2D(12, 3, feature_group_count=6)(x))
    x = hk.BatchNorm(False, True, 0.9)(hk.Conv2DTranspose(5, 4, 2)(x), train)
    x = jax.nn.relu(hk.Conv2DTranspose(5, 3)(x)).reshape(x.shape[0], -1)
    x = hk.LayerNorm(-1, True, True)(hk.Linear(7)(x))
    for _ in range(11):  # enough for `linear_10`, which JAX sorts before `linear_2`
        x = jnp.tanh(hk.Linear(7)(x))
    return hk.RMSNorm(-1)(x)


def record_haiku() -> None:
    network = hk.transform_with_state(haiku_network)
    inputs = _inputs((4, 8, 8, 4))
    params, state = network.init(jax.random.key(0), inputs, True)
    for i in range(3):
        _, state = network.apply(params, state, None, inputs * i + 1, True)
    params = jax.tree.map(lambda leaf: leaf + RNG.uniform(-0.1, 0.1, leaf.shape).astype(np.float32), params)
    evaluated, _ = network.apply(params, state, None, inputs, False)
    trained, after = network.apply(params, state, None, inputs, True)
    merged = hk.data_structures.merge(jax.tree.map(jnp.asarray, params), jax.tree.map(jnp.asarray, state))
    save("haiku", Recorded(_flat(merged), inputs, np.asarray(evaluated), np.asarray(trained), _flat(after)))


def _flat(tree: Any) -> Arrays:
    return {f"{module}|{name}": np.asarray(leaf) for module, held in tree.items() for name, leaf in held.items()}


if __name__ == "__main__":
    resnet: Callable[..., nn.Module] = torchvision.models.resnet18
    record_torch("torch", torch_network(), (4, 3, 8, 8))
    record_torch("resnet18", resnet(num_classes=10), (2, 3, 64, 64), kept=False)
    record_keras()
    record_haiku()
