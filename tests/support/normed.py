"""Small models of Linen and NNX, each with a linear layer before a norm, under every transform that Flax has."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx

import normlab.linen
import normlab.nnx

NORMS: dict[str, Callable[[bool], nn.Module]] = {
    "flax-batch": lambda train: nn.BatchNorm(use_running_average=not train, name="norm"),
    "flax-layer": lambda train: nn.LayerNorm(name="norm"),
    "normlab-batch": lambda train: normlab.linen.BatchNorm(use_running_average=not train, name="norm"),
    "normlab-layer": lambda train: normlab.linen.LayerNorm(name="norm"),
}
"""Norms of Linen by library and kind."""

NNX_NORMS: dict[str, Callable[[nnx.Rngs], nnx.Module]] = {
    "flax-batch": lambda rngs: nnx.BatchNorm(FEATURES, rngs=rngs),
    "flax-layer": lambda rngs: nnx.LayerNorm(FEATURES, rngs=rngs),
    "normlab-batch": lambda rngs: normlab.nnx.BatchNorm(FEATURES, rngs=rngs),
    "normlab-layer": lambda rngs: normlab.nnx.LayerNorm(FEATURES, rngs=rngs),
}
"""Norms of NNX by library and kind."""

FEATURES, EXAMPLES = 4, 6


class Block(nn.Module):
    """A dense layer and a norm."""

    norm: str
    train: bool

    @nn.compact
    def __call__(self, x, _=None):
        return NORMS[self.norm](self.train)(nn.Dense(FEATURES, name="dense")(x))


_Compiled = nn.jit(Block)  # a class is traced again unless it is the same


class _Carrying(Block):
    """The block as the body of a scan."""

    @nn.compact
    def __call__(self, x, _=None):
        return super().__call__(x), None


class _Setup(nn.Module):
    """The block with its layers made in `setup`."""

    norm: str
    train: bool

    def setup(self):
        self.dense = nn.Dense(FEATURES)
        self.layer = NORMS[self.norm](self.train).copy(name=None)

    def __call__(self, x):
        return self.layer(self.dense(x))


class Cell(nn.RNNCellBase):
    """A recurrent cell with a norm."""

    norm: str
    train: bool

    @nn.compact
    def __call__(self, carry, x):
        carry = nn.tanh(NORMS[self.norm](self.train)(nn.Dense(FEATURES, name="dense")(x + carry)))
        return carry, carry

    @nn.nowrap
    def initialize_carry(self, rng, input_shape):
        return jnp.zeros((*input_shape[:-1], FEATURES))

    @property
    def num_feature_axes(self):
        return 1


_STACKED = {"variable_axes": {"params": 0, "batch_stats": 0}, "split_rngs": {"params": True}}


class Model(nn.Module):
    """A model with a norm under a transform.

    Attributes:
        norm: One of `NORMS`.
        transform: One of `TRANSFORMS`.
    """

    norm: str
    transform: str

    @nn.compact
    def __call__(self, x, *, train=False):
        given = {"norm": self.norm, "train": train, "name": "block"}
        if self.transform in ("plain", "jit", "remat"):
            kind = {"plain": Block, "jit": _Compiled, "remat": nn.remat(Block)}[self.transform]
            return kind(**given)(x)
        if self.transform == "setup":
            return _Setup(**given)(x)
        if self.transform == "scan":
            return nn.scan(_Carrying, length=3, **_STACKED)(**given)(x, None)[0]
        if self.transform == "vmap":
            return nn.vmap(Block, **_STACKED)(**given)(jnp.stack([x, x + 1])).sum(0)
        if self.transform == "shared":
            block = Block(**given)
            return block(nn.relu(block(x)))
        cell = Cell(self.norm, train)
        return nn.RNN(cell, variable_axes={"batch_stats": 0}, name="block")(jnp.stack([x, x + 1, x - 1], 1))


@dataclass(frozen=True)
class Expected:
    """Facts about the norm of a model.

    Attributes:
        calls: Calls in a pass.
        repeats: Runs of a call.
        lifted: Transforms around it.
        norm: Path of the norm.
    """

    calls: int = 1
    repeats: int = 1
    lifted: tuple[str, ...] = ()
    norm: str = "block/norm"


TRANSFORMS = {
    "plain": Expected(),
    "setup": Expected(norm="block/layer"),
    "jit": Expected(),
    "remat": Expected(lifted=("remat",)),
    "scan": Expected(repeats=3, lifted=("scan",)),
    "vmap": Expected(repeats=2, lifted=("vmap",)),
    "shared": Expected(calls=2),
    "rnn": Expected(repeats=3, lifted=("scan",), norm="Cell_0/norm"),
}
"""Models under transforms, and what their norm is like."""


class NNXBlock(nnx.Module):
    """A linear layer and a norm."""

    def __init__(self, norm, rngs):
        self.linear = nnx.Linear(FEATURES, FEATURES, rngs=rngs)
        self.norm = NNX_NORMS[norm](rngs)

    def __call__(self, x):
        return self.norm(self.linear(x))


class NNXModel(nnx.Module):
    """A model of NNX with a norm under a transform.

    Attributes:
        transform: One of `NNX_TRANSFORMS`.
    """

    def __init__(self, norm, transform, rngs):
        self.transform = transform
        if transform == "list":
            self.blocks = nnx.List([NNXBlock(norm, rngs), NNXBlock(norm, rngs)])
        elif transform == "sequential":
            self.blocks = nnx.Sequential(nnx.Linear(FEATURES, FEATURES, rngs=rngs), NNX_NORMS[norm](rngs), nnx.relu)
        elif transform in ("scan", "vmap"):
            make = nnx.vmap(partial(NNXBlock, norm), in_axes=0, out_axes=0)
            self.blocks = nnx.split_rngs(splits=3)(make)(rngs)
        elif transform == "shared":
            self.first = NNXBlock(norm, rngs)
            self.second = self.first
        else:
            self.block = NNXBlock(norm, rngs)

    def __call__(self, x):
        match self.transform:
            case "list":
                return self.blocks[1](nnx.relu(self.blocks[0](x)))
            case "sequential":
                return self.blocks(x)
            case "shared":
                return self.second(nnx.relu(self.first(x)))
            case "scan":
                return nnx.scan(lambda x, block: (block(x), None), in_axes=(nnx.Carry, 0))(x, self.blocks)[0]
            case "vmap":
                return nnx.vmap(lambda block, x: block(x), in_axes=(0, None))(self.blocks, x).sum(0)
            case "jit":
                return nnx.jit(lambda block, x: block(x))(self.block, x)
            case "remat":
                return nnx.remat(lambda block, x: block(x))(self.block, x)
        return self.block(x)


NNX_TRANSFORMS = {
    "plain": Expected(),
    "list": Expected(norm="blocks/0/norm"),
    "sequential": Expected(norm="blocks/layers/1"),
    "shared": Expected(calls=2, norm="first/norm"),
    "jit": Expected(),
    "remat": Expected(lifted=("remat",)),
    "scan": Expected(repeats=3, lifted=("scan",), norm="blocks/norm"),
    "vmap": Expected(repeats=3, lifted=("vmap",), norm="blocks/norm"),
}
"""Models of NNX under transforms, and what their first norm is like."""


def linen(norm: str, transform: str) -> tuple[Model, dict]:
    """Return a model of Linen and its variables."""
    model, given = abstract(norm, transform)
    keys = iter(jax.random.split(jax.random.key(0), 20))
    return model, jax.tree.map(lambda x: 0.5 + jax.random.uniform(next(keys), x.shape), given)


@cache
def abstract(norm: str, transform: str) -> tuple[Model, dict]:
    """Return a model of Linen and the shapes of its variables."""
    model = Model(norm, transform)
    return model, jax.eval_shape(model.init, jax.random.key(0), inputs())


@cache
def inputs() -> jax.Array:
    """Return a batch."""
    return jax.random.normal(jax.random.key(1), (EXAMPLES, FEATURES))
