"""Checkpoints as users have them: a file that makes a model, and what Orbax wrote of a training."""

import hashlib
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
from flax import nnx
from flax.training.train_state import TrainState

NET = """
import jax
import jax.numpy as jnp
from flax import linen as nn, nnx


class Net(nn.Module):
    features: int = 4

    @nn.compact
    def __call__(self, x, *, train):
        for i in range(2):
            x = nn.Conv(self.features, (3, 3), use_bias=False, name=f"conv_{i}")(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, name=f"norm_{i}")(x))
        return self.head(x, train=train)

    def head(self, x, *, train, scale=1.0):
        return scale * nn.Dense(3, name="head")(nn.LayerNorm(name="last")(x.mean((1, 2))))


class Layers(nnx.Module):
    def __init__(self, rngs):
        self.parts = nnx.List([nnx.Linear(4, 4, use_bias=False, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        for part in self.parts:
            x = part(x)
        return self.dropout(x)


x = jnp.linspace(-1, 1, 96).reshape(2, 4, 4, 3)


def build():
    return Net(), x


def keywords():
    return {"model": Net(), "args": (x,), "evaluate": {"train": False}}


def layers():
    return Layers(nnx.Rngs(0)), jnp.ones((2, 4))


def alone():
    return Layers(nnx.Rngs(0))


def larger():
    return Net(features=6), x


def raising():
    raise ZeroDivisionError("division by zero.")


def leaving():
    raise SystemExit


def number():
    return 3


def misspelt():
    return {"model": Net(), "arguments": (x,)}


def single():
    return {"model": Net(), "args": x}


def listed():
    return {"model": Net(), "args": (x,), "kwargs": [1]}


def without_inputs():
    return Net()


def wrong_inputs():
    return Net(), jnp.ones((2, 3))


class Failing(Net):
    def head(self, x, *, train):
        return super().head(x, train=train) * (1 + "1")


def failing():
    return Failing(), x


def failing_later():
    return {"model": Failing(), "args": (x,), "variables": Net().init(jax.random.key(0), x, train=False)}
"""
"""A Python file of a user's."""


class State(TrainState):
    """A state of training with running statistics."""

    batch_stats: Any = None


def trained_state(net: ModuleType) -> State:
    """Return a state as if the net had been trained, with moments that are no zeros."""
    model, x = net.build()
    variables = shaken(model.init(jax.random.key(0), x, train=False))
    state = State.create(apply_fn=None, tx=optax.adam(1e-3), **variables)
    return state.apply_gradients(grads=variables["params"])


def shaken(variables: Any) -> Any:
    """Return variables that are not those of the start."""
    leaves, structure = jax.tree.flatten(variables)
    keys = jax.random.split(jax.random.key(7), len(leaves))
    moved = [leaf + 0.3 * jax.random.uniform(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, moved)


def trained_layers(net: ModuleType) -> nnx.Module:
    """Return the NNX model as if it had been trained."""
    model, _ = net.layers()
    nnx.update(model, shaken(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))))
    return model


def save(path: Path, tree: Any) -> Path:
    """Write a checkpoint with the checkpointer that the documentation of Orbax shows."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
    return path


def digest(folder: Path) -> str:
    """Return the hash of the names and bytes of all files in a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    named = ((str(path.relative_to(folder)), path.read_bytes()) for path in files)
    return hashlib.sha256(repr([(name, hashlib.sha256(text).hexdigest()) for name, text in named]).encode()).hexdigest()


def evaluated(model: Any, variables: Any, *args: Any) -> jax.Array:
    """Return the outputs of a Linen model at evaluation."""
    return jnp.asarray(model.apply(variables, *args, train=False))


def orbax(path: Path) -> Any:
    """Read a checkpoint as Orbax alone does."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        structure = checkpointer.metadata(path).item_metadata.tree
        arrays = jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), structure)
        return checkpointer.restore(path, restore_args=arrays)
