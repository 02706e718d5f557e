"""Healthy models, about which the doctor must say no more than notes.

Each is trained with a sane optimizer for 100 to 200 steps, most on scikit-learn's digits, or is as it was initialized.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import nnx
from jax.typing import DTypeLike

from benchmarks.doctor.planted import batches, digits
from normlab import linen as nl
from normlab import models, norms, tools
from normlab.models import nnx as nnx_models

Keywords = dict[str, Any]
Build = Callable[[int], Keywords]
Objective = Callable[[Any, Any], Any]
"""Returns the loss, given the output and the batch."""

MODELS: dict[str, Build] = {}
"""For each healthy model, a function from the seed to keywords of `examine`, in float32."""

STEPS = 100
BATCH = norms.get("batch", momentum=0.9)


def healthy(name: str) -> Callable[[Build], None]:
    """Register a healthy model."""

    def register(build: Build) -> None:
        MODELS[name] = cache(build)

    return register


def build(name: str, seed: int = 0, dtype: DTypeLike = jnp.float32) -> Keywords:
    """Return keywords of `examine` for a healthy model.

    Args:
        name: Its name in `MODELS`.
        seed: Seed of initialization and training.
        dtype: Type of parameters and inputs, to which they are cast after training in float32. Running statistics stay
            as they are.
    """
    given = dict(MODELS[name](seed))
    if jnp.dtype(dtype) == jnp.float32:
        return given
    given["batches"] = [_cast(batch, dtype) for batch in given["batches"]]
    if isinstance(given["model"], nnx.Module):
        return given | _cast_nnx(given, dtype)
    return given | {name: _cast(given[name], dtype) for name in ("state", "variables") if name in given}


def _cast(tree: Any, dtype: DTypeLike) -> Any:
    """Return a tree whose floating leaves have a type, but for those in `batch_stats`."""

    def cast(path: Any, leaf: Any) -> Any:
        spared = "batch_stats" in jax.tree_util.keystr(path) or not jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf if spared else leaf.astype(dtype)

    return jax.tree_util.tree_map_with_path(cast, tree)


def _cast_nnx(given: Keywords, dtype: DTypeLike) -> Keywords:
    graph, statistics, rest = nnx.split(given["state"], nnx.BatchStat, ...)
    state = nnx.merge(graph, statistics, _cast(rest, dtype))
    return {"model": state[0], "state": state}


# --- training ---


def cross_entropy(logits: Any, batch: Any) -> Any:
    """Return the cross entropy with the classes at the end of a batch."""
    return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), batch[-1]).mean()


def first(batch: Any) -> tuple[tuple[Any, ...], Keywords]:
    """Return the arguments of a call with a batch whose first part is the input."""
    return (batch[0],), {}


def step_of(
    model: nn.Module, optimizer: optax.GradientTransformation, objective: Objective, call: Any = first
) -> Callable[[Any, Any], Any]:
    """Return a step of training of a Linen model; the state is a dict of params, batch_stats, opt and count."""

    @jax.jit
    def step(state: Any, batch: Any) -> Any:
        args, kwargs = call(batch)
        key = jax.random.fold_in(jax.random.key(1), state["count"])
        rngs = {"params": key, "dropout": jax.random.fold_in(key, 1)}

        def loss(params: Any) -> Any:
            given = {"params": params, "batch_stats": state["batch_stats"]}
            y, kept = model.apply(given, *args, **kwargs, train=True, rngs=rngs, mutable=["batch_stats"])
            return objective(y, batch), kept.get("batch_stats", {})

        gradients, statistics = jax.grad(loss, has_aux=True)(state["params"])
        updates, opt = optimizer.update(gradients, state["opt"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "batch_stats": statistics, "opt": opt, "count": state["count"] + 1}

    return step


def started(model: nn.Module, seed: int, batch: Any, call: Any = first) -> Keywords:
    """Return the variables of a Linen model as they are initialized."""
    args, kwargs = call(batch)
    keys = {name: jax.random.fold_in(jax.random.key(seed), i) for i, name in enumerate(("params", "dropout"))}
    return model.init(keys, *args, **kwargs, train=False)


def state_of(variables: Keywords, optimizer: optax.GradientTransformation) -> Keywords:
    """Return the state that a step begins with."""
    return {
        "params": variables["params"],
        "batch_stats": variables.get("batch_stats", {}),
        "opt": optimizer.init(variables["params"]),
        "count": jnp.zeros((), jnp.int32),
    }


def fitted(
    model: nn.Module,
    given: Sequence[Any],
    seed: int,
    *,
    objective: Objective = cross_entropy,
    call: Any = first,
    steps: int = STEPS,
    rate: float | optax.Schedule = 1e-3,
    train: int | None = None,
) -> Keywords:
    """Train a Linen model by AdamW, whose decay spares norms and biases; return keywords of `examine`.

    Args:
        model: The model.
        given: Batches.
        seed: Seed of the initialization.
        objective: The loss.
        call: `batch -> (args, kwargs)`.
        steps: Steps of the whole training.
        rate: Learning rate, or a function of the step.
        train: Steps to make; `None` is all.
    """
    variables = started(model, seed, given[0], call)
    mask = tools.decay_mask(model, variables, *call(given[0])[0])
    optimizer = optax.adamw(rate, weight_decay=1e-2, mask=mask)
    state, step = state_of(variables, optimizer), step_of(model, optimizer, objective, call)
    order = np.random.default_rng(seed).permutation(steps) % len(given)
    for i in order[: steps if train is None else train]:
        state = step(state, given[i])
    more = {} if call is first else {"call": call}
    return {
        "model": model,
        "batches": list(given[:8]),
        "step": step,
        "state": state,
        "optimizer": optimizer,
        "steps": steps,
        **more,
    }


fresh = partial(fitted, train=0)


def images(size: int = 32) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return batches of the digits, standardized as is usual: pixels have mean 0 and variance 1."""
    return [((x - 0.305) / 0.376, y) for x, y in batches(size, 1792 // size, flat=False)]


# --- the seven of the doctor's charter ---


@healthy("MLP, batch norm, trained")
def _(seed: int) -> Keywords:
    return fitted(models.MLP(BATCH), images(), seed, steps=200)


@healthy("conv net, group norm, trained")
def _(seed: int) -> Keywords:
    return fitted(models.ConvNet(norms.get("group", num_groups=4)), images(), seed)


@healthy("ResNet-20, fresh")
def _(seed: int) -> Keywords:
    return fresh(models.ResNet(BATCH), images(), seed)


@healthy("ResNet-20, trained")
def _(seed: int) -> Keywords:
    return fitted(models.ResNet(BATCH), images(), seed)


@healthy("VGG-11, fresh")
def _(seed: int) -> Keywords:
    return fresh(models.VGG(BATCH, depth=11), images(), seed)


@healthy("ViT of 2 layers, fresh")
def _(seed: int) -> Keywords:
    return fresh(models.ViTTiny(norms.get("layer"), classes=10, patch=2, depth=2), images(), seed)


class MaskedLSTM(nn.Module):
    @nn.compact
    def __call__(self, x: Any, padding: Any, *, train: bool) -> Any:
        valid = ~padding
        h = nn.RNN(nn.OptimizedLSTMCell(16, name="cell"), name="rnn")(x, seq_lengths=valid.sum(1))
        h = nl.LayerNorm(name="norm")(h, mask=valid[..., None])
        mean = jnp.where(valid[..., None], h, 0).sum(1) / valid.sum(1, keepdims=True).astype(h.dtype)
        return nn.Dense(10, name="head")(mean)


def rows(size: int = 32) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return batches of the digits as sequences of rows, of which the last ones are padding at random."""
    rng, made = np.random.default_rng(0), []
    for x, y in images(size):
        padding = np.arange(8) >= rng.integers(4, 9, size=(size, 1))
        made.append((np.where(padding[..., None], 0, x[..., 0]).astype(np.float32), padding, y))
    return made


def with_padding(batch: Any) -> tuple[tuple[Any, ...], Keywords]:
    """Return the arguments of a call, the padding among them."""
    return batch[:2], {}


@healthy("LSTM of Flax, layer norm, padding")
def _(seed: int) -> Keywords:
    found = fitted(MaskedLSTM(), rows(), seed, call=with_padding)
    return found | {"padding": lambda batch: batch[1]}


# --- more networks ---


@healthy("ResNet-56, trained")
def _(seed: int) -> Keywords:
    return fitted(models.ResNet(BATCH, depth=56), images(), seed)


@healthy("ResNet-20, last scales of zero, trained")
def _(seed: int) -> Keywords:
    return fitted(models.ResNet(BATCH, zero_last_scale=True), images(), seed)


@healthy("ResNet-20, pre-activation, fresh")
def _(seed: int) -> Keywords:
    return fresh(models.ResNet(BATCH, placement="pre"), images(), seed)


@healthy("VGG-11, trained, rate decayed")
def _(seed: int) -> Keywords:  # at a constant rate, evaluation is 8 points behind training: the doctor is right to warn
    rate = optax.cosine_decay_schedule(1e-3, STEPS)
    return fitted(models.VGG(BATCH, depth=11), images(), seed, rate=rate)


def text(size: int = 16, length: int = 32) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return batches of bytes of the README, and those that follow."""
    found = np.frombuffer((Path(__file__).parents[2] / "README.md").read_bytes(), np.uint8).astype(np.int32)
    starts = np.random.default_rng(0).integers(0, len(found) - length - 1, size=(40, size))
    pieces = found[starts[..., None] + np.arange(length + 1)]
    return [(piece[:, :-1], piece[:, 1:]) for piece in pieces]


@healthy("GPT, layer norm, trained")
def _(seed: int) -> Keywords:
    return fitted(models.GPT(norms.get("layer"), 256, depth=2, width=32, heads=2), text(), seed, rate=3e-3)


@healthy("GPT, RMS norm also of queries and keys, trained")
def _(seed: int) -> Keywords:
    rms = norms.get("rms")
    return fitted(models.GPT(rms, 256, depth=2, width=32, heads=2, qk_norm=rms), text(), seed, rate=3e-3)


@healthy("ViT of 2 layers, trained")
def _(seed: int) -> Keywords:
    return fitted(models.ViTTiny(norms.get("layer"), classes=10, patch=2, depth=2), images(), seed)


def as_rows(batch: Any) -> tuple[tuple[Any, ...], Keywords]:
    """Return the arguments of a call with an image as a sequence of rows."""
    return (batch[0][..., 0],), {}


@healthy("LSTM with layer norm inside, trained")
def _(seed: int) -> Keywords:
    return fitted(models.LSTMNet(norms.get("layer"), features=16), images(), seed, call=as_rows)


class ConvNorm(nn.Module):
    """Convolution, batch norm, ReLU."""

    features: int
    strides: int = 1
    dtype: Any = None
    transposed: bool = False

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        conv = nn.ConvTranspose if self.transposed else nn.Conv
        strides = (self.strides, self.strides)
        x = conv(self.features, (3, 3), strides=strides, use_bias=False, dtype=self.dtype, name="conv")(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype, name="norm")(x)
        return nn.relu(x)


class UNet(nn.Module):
    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        kept = []
        for i, width in enumerate((8, 16)):
            x = ConvNorm(width, name=f"down_{i}")(x, train=train)
            kept.append(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = ConvNorm(32, name="middle")(x, train=train)
        for i, width in reversed(list(enumerate((8, 16)))):
            x = ConvNorm(width, 2, transposed=True, name=f"up_{i}")(x, train=train)
            x = ConvNorm(width, name=f"joined_{i}")(jnp.concatenate([x, kept[i]], -1), train=train)
        return nn.Conv(1, (1, 1), name="head")(x)


def noisy_images() -> list[tuple[np.ndarray, np.ndarray]]:
    """Return batches of the digits with noise, and which of their pixels have ink."""
    rng = np.random.default_rng(0)
    return [(x + 0.5 * rng.normal(size=x.shape).astype(np.float32), (x > 0).astype(np.float32)) for x, _ in images()]


def ink(logits: Any, batch: Any) -> Any:
    """Return the cross entropy of each pixel."""
    return optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), batch[1].astype(jnp.float32)).mean()


@healthy("U-Net, batch norm, trained")
def _(seed: int) -> Keywords:
    return fitted(UNet(), noisy_images(), seed, objective=ink)


class Autoencoder(nn.Module):
    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        for i, width in enumerate((8, 16)):
            x = ConvNorm(width, 2, name=f"down_{i}")(x, train=train)
        shape = x.shape
        x = nn.Dense(16, name="code")(x.reshape(len(x), -1))
        x = nn.Dense(shape[1] * shape[2] * shape[3], name="open")(x).reshape(shape)
        for i, width in enumerate((16, 8)):
            x = ConvNorm(width, 2, transposed=True, name=f"up_{i}")(x, train=train)
        return nn.Conv(1, (3, 3), name="head")(x)


def reconstruction(y: Any, batch: Any) -> Any:
    """Return the mean squared error of the images themselves."""
    return jnp.square((y - batch[0]).astype(jnp.float32)).mean()


@healthy("autoencoder, batch norm, trained")
def _(seed: int) -> Keywords:
    return fitted(Autoencoder(), images(), seed, objective=reconstruction)


class WithDropout(nn.Module):
    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        for i, width in enumerate((16, 32)):
            x = ConvNorm(width, 2, name=f"block_{i}")(x, train=train)
        x = nn.Dropout(0.5, deterministic=not train)(x.mean((1, 2)))
        return nn.Dense(10, name="head")(x)


@healthy("conv net of Flax, batch norm, dropout behind it, trained")
def _(seed: int) -> Keywords:
    return fitted(WithDropout(), images(), seed)


class Layered(nn.Module):
    """Residual layers, each in a lifted transform or all in one `scan`."""

    scan: bool = False
    remat: bool = False
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        x = nn.Dense(32, dtype=self.dtype, name="stem")(x.reshape(len(x), -1))
        layer = nn.remat(ResidualLayer) if self.remat else ResidualLayer
        if self.scan:
            axes = {"params": 0, "batch_stats": 0}
            layers = nn.scan(layer, variable_axes=axes, split_rngs={"params": True}, length=4)
            x, _ = layers(train, self.dtype, name="layers")(x, None)
        else:
            for i in range(4):
                x, _ = layer(train, self.dtype, name=f"layer_{i}")(x, None)
        return nn.Dense(10, dtype=self.dtype, name="head")(x)


class ResidualLayer(nn.Module):
    train: bool
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Any, _: None) -> tuple[Any, None]:
        h = nn.Dense(x.shape[-1], use_bias=False, dtype=self.dtype, name="dense")(x)
        norm = nn.BatchNorm(use_running_average=not self.train, momentum=0.9, dtype=self.dtype, name="norm")
        return x + nn.relu(norm(h)), None


@healthy("layers in a scan, stacked statistics, trained")
def _(seed: int) -> Keywords:
    return fitted(Layered(scan=True), images(), seed)


@healthy("layers in remat, trained")
def _(seed: int) -> Keywords:
    return fitted(Layered(remat=True), images(), seed)


@healthy("mixed precision, modules of bfloat16, trained")
def _(seed: int) -> Keywords:
    return fitted(Layered(dtype=jnp.bfloat16), images(), seed)


@healthy("MLP, batch renorm, trained")
def _(seed: int) -> Keywords:
    return fitted(models.MLP(norms.get("batch_renorm", momentum=0.9), hidden=(64, 64)), images(), seed)


@healthy("MLP, ghost batches of 16, trained")
def _(seed: int) -> Keywords:
    ghost = norms.get("batch", momentum=0.9, ghost_batch_size=16)
    return fitted(models.MLP(ghost, hidden=(64, 64)), images(64), seed)


class MaskedSet(nn.Module):
    @nn.compact
    def __call__(self, x: Any, padding: Any, *, train: bool) -> Any:
        valid = ~padding[..., None]
        for i in range(2):
            x = nn.Dense(16, use_bias=False, name=f"dense_{i}")(x)
            norm = nl.BatchNorm(use_running_average=not train, momentum=0.9, name=f"norm_{i}")
            x = nn.relu(norm(x, mask=valid))
        x = jnp.where(valid, x, 0).sum(1) / valid.sum(1).astype(x.dtype)
        return nn.Dense(10, name="head")(x)


@healthy("sets of rows, masked batch norm, padding, trained")
def _(seed: int) -> Keywords:
    return fitted(MaskedSet(), rows(), seed, call=with_padding) | {"padding": lambda batch: batch[1]}


@healthy("frozen norms, fine-tuned")
def _(seed: int) -> Keywords:
    given = images()
    found = fitted(models.ResNet(BATCH, depth=8), given, seed)
    trained = {name: found["state"][name] for name in ("params", "batch_stats")}
    frozen = tools.freeze(found["model"], trained, args=(given[0][0],))
    rules = {**dict.fromkeys(("norm", "bias", "other"), optax.adamw(1e-4)), "frozen": optax.set_to_zero()}
    optimizer = optax.multi_transform(rules, frozen.labels)
    state, step = state_of(frozen.variables, optimizer), step_of(frozen.model, optimizer, cross_entropy)
    for batch in given[:20]:
        state = step(state, batch)
    return found | {"model": frozen.model, "state": state, "step": step}


# --- two networks that train each other ---


class Generator(nn.Module):
    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        x = nn.Dense(4 * 32, use_bias=False, name="dense")(x).reshape(-1, 2, 2, 32)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x))
        x = ConvNorm(16, 2, transposed=True, name="up_0")(x, train=train)
        x = ConvNorm(8, 2, transposed=True, name="up_1")(x, train=train)
        return nn.tanh(nn.Conv(1, (3, 3), name="head")(x))


class Discriminator(nn.Module):
    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        x = nn.leaky_relu(nn.Conv(8, (3, 3), strides=(2, 2), name="conv_0")(x), 0.2)
        x = nn.Conv(16, (3, 3), strides=(2, 2), use_bias=False, name="conv_1")(x)
        x = nn.leaky_relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm")(x), 0.2)
        return nn.Dense(1, name="head")(x.reshape(len(x), -1))


@cache
def adversaries(seed: int) -> tuple[list[Any], Keywords, Callable[[Any, Any], Any]]:
    """Train a generator and a discriminator; return batches of noise and images, the state, and the step."""
    makes, judges = Generator(), Discriminator()
    rng, optimizer = np.random.default_rng(seed), optax.adam(1e-3, b1=0.5)
    given = [(rng.normal(size=(32, 16)).astype(np.float32), 2 * x - 1) for x, _ in batches(32, 56, flat=False)]

    @jax.jit
    def step(state: Any, batch: Any) -> Any:
        noise, real = batch
        maker, judge = state["generator"], state["discriminator"]
        target = jnp.repeat(jnp.array([1.0, 0.0]), len(real))[:, None]

        def judged(params: Any, fake: Any) -> tuple[Any, Any]:
            both = jnp.concatenate([real, fake.astype(real.dtype)])
            given = {"params": params, "batch_stats": judge["batch_stats"]}
            y, kept = judges.apply(given, both, train=True, mutable=["batch_stats"])
            return y.astype(jnp.float32), kept["batch_stats"]

        def of_maker(params: Any) -> tuple[Any, Any]:
            given = {"params": params, "batch_stats": maker["batch_stats"]}
            fake, kept = makes.apply(given, noise, train=True, mutable=["batch_stats"])
            y = judged(judge["params"], fake)[0][len(real) :]
            return optax.sigmoid_binary_cross_entropy(y, jnp.ones_like(y)).mean(), (fake, kept["batch_stats"])

        def of_judge(params: Any, fake: Any) -> tuple[Any, Any]:
            y, kept = judged(params, fake)
            return optax.sigmoid_binary_cross_entropy(y, target).mean(), kept

        up, (fake, statistics) = jax.grad(of_maker, has_aux=True)(maker["params"])
        down, own = jax.grad(of_judge, has_aux=True)(judge["params"], fake)
        return {
            "generator": _updated(maker, up, statistics, optimizer),
            "discriminator": _updated(judge, down, own, optimizer),
        }

    state = {
        "generator": state_of(started(makes, seed, given[0]), optimizer),
        "discriminator": state_of(started(judges, seed + 100, (given[0][1],)), optimizer),
    }
    for i in range(2 * STEPS):
        state = step(state, given[i % len(given)])
    return given, state, step


def _updated(state: Keywords, gradients: Any, statistics: Any, optimizer: optax.GradientTransformation) -> Keywords:
    updates, opt = optimizer.update(gradients, state["opt"], state["params"])
    return {**state, "params": optax.apply_updates(state["params"], updates), "opt": opt, "batch_stats": statistics}


def part(name: str, state: Any) -> Keywords:
    """Return the variables of one of the two."""
    return {collection: state[name][collection] for collection in ("params", "batch_stats")}


@healthy("generator, trained")
def _(seed: int) -> Keywords:
    given, state, step = adversaries(seed)
    read = partial(part, "generator")
    return {"model": Generator(), "batches": given[:8], "step": step, "state": state, "read": read, "steps": 2 * STEPS}


@healthy("discriminator, trained")
def _(seed: int) -> Keywords:
    given, state, _ = adversaries(seed)
    variables = part("generator", state)
    both = [
        np.concatenate([x, np.asarray(Generator().apply(variables, z, train=True, mutable=["batch_stats"])[0])])
        for z, x in given[:8]
    ]
    return {
        "model": Discriminator(),
        "variables": part("discriminator", state),
        "batches": both,
        "optimizer": optax.adam(1e-3),
        "steps": 2 * STEPS,
    }


# --- unusual structures ---


class Encoder(nn.Module):
    """Two layers with batch norm, and a last one."""

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        x = x.reshape(len(x), -1)
        for i in range(2):
            x = nn.Dense(32, use_bias=False, name=f"dense_{i}")(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name=f"norm_{i}")(x))
        return nn.Dense(16, name="last")(x)


class Siamese(nn.Module):
    """One encoder for both images of a pair."""

    def setup(self) -> None:
        self.encoder = Encoder()

    def __call__(self, one: Any, other: Any, *, train: bool) -> Any:
        return self.encoder(one, train=train), self.encoder(other, train=train)


def pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    """Return batches of digits and of the same digits with noise."""
    rng = np.random.default_rng(0)
    return [(x, x + 0.3 * rng.normal(size=x.shape).astype(np.float32)) for x, _ in images()]


def both(batch: Any) -> tuple[tuple[Any, ...], Keywords]:
    """Return the arguments of a call with both parts of a batch."""
    return batch[:2], {}


def contrastive(y: Any, batch: Any) -> Any:
    """Return the cross entropy of finding the other image of each pair in the batch."""
    del batch
    one, other = (v.astype(jnp.float32) / (1e-6 + jnp.linalg.norm(v, axis=-1, keepdims=True)) for v in y)
    return optax.softmax_cross_entropy_with_integer_labels(5 * one @ other.T, jnp.arange(len(one))).mean()


@healthy("one encoder called twice, batch norm, trained")
def _(seed: int) -> Keywords:
    return fitted(Siamese(), pairs(), seed, call=both, objective=contrastive)


class DropPath(nn.Module):
    """Stochastic depth, written by hand: branches of some examples are left out."""

    rate: float

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        if not train:
            return x
        shape = (len(x), *[1] * (x.ndim - 1))
        return (
            x * jax.random.bernoulli(self.make_rng("dropout"), 1 - self.rate, shape).astype(x.dtype) / (1 - self.rate)
        )


class StochasticDepth(nn.Module):
    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        x = ConvNorm(16, name="stem")(x, train=train)
        for i in range(3):
            branch = ConvNorm(16, name=f"branch_{i}")(x, train=train)
            x = x + DropPath(0.1 * (i + 1))(branch, train=train)
        return nn.Dense(10, name="head")(x.mean((1, 2)))


@healthy("stochastic depth by hand, batch norm, trained")
def _(seed: int) -> Keywords:
    return fitted(StochasticDepth(), images(), seed)


class Members(nn.Module):
    """Three encoders side by side under `vmap`."""

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        options: Keywords = {"variable_axes": {"params": 0, "batch_stats": 0}, "split_rngs": {"params": True}}
        nets = nn.vmap(lambda net, x: net(x, train=train), in_axes=None, axis_size=3, **options)
        return nn.Dense(10, name="head")(nets(Encoder(name="nets"), x).mean(0))


@healthy("ensemble under vmap, batch norm, trained")
def _(seed: int) -> Keywords:
    return fitted(Members(), images(), seed)


class WithSecondHead(nn.Module):
    """A network with a second head in training, as Inception has it."""

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        x = ConvNorm(16, name="stem")(x, train=train)
        second = None
        if train or self.is_initializing():
            h = nn.Dense(16, use_bias=False, name="second_dense")(x.mean((1, 2)))
            h = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="second_norm")(h))
            second = nn.Dense(10, name="second_head")(h)
        y = nn.Dense(10, name="head")(ConvNorm(32, 2, name="block")(x, train=train).mean((1, 2)))
        return (y, second) if train else y


@healthy("second head in training alone, batch norm, trained")
def _(seed: int) -> Keywords:
    def objective(y: Any, batch: Any) -> Any:
        return cross_entropy(y[0], batch) + 0.3 * cross_entropy(y[1], batch)

    return fitted(WithSecondHead(), images(), seed, objective=objective)


class OnRawTable(nn.Module):
    """Batch norm in place of scaling the columns of a table."""

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="norm_in")(x)
        return nn.Dense(2, name="head")(Encoder(name="encoder")(x, train=train))


def table() -> list[tuple[np.ndarray, np.ndarray]]:
    """Return batches of incomes, ages, counts, answers and heights as they are, and of two classes."""
    rng, made = np.random.default_rng(0), []
    for _ in range(40):
        z = rng.normal(size=(64, 5))
        columns = np.exp(10 + 0.6 * z[:, 0]), 40 + 12 * z[:, 1], rng.poisson(2, 64), z[:, 3] > 0.3, 170 + 8 * z[:, 4]
        made.append((np.stack(columns, 1).astype(np.float32), (z[:, 0] + z[:, 1] * z[:, 4] > 0).astype(np.int32)))
    return made


@healthy("batch norm of a raw table, trained")
def _(seed: int) -> Keywords:
    return fitted(OnRawTable(), table(), seed)


# --- NNX ---


@healthy("ResNet-8 of NNX, trained")
def _(seed: int) -> Keywords:
    given = images()
    model = nnx_models.ResNet(BATCH, depth=8, channels=1, rngs=nnx.Rngs(seed))
    optimizer = optax.adamw(1e-3, weight_decay=1e-2, mask=tools.decay_mask(model))
    state = (model, nnx.Optimizer(model, optimizer, wrt=nnx.Param))

    @nnx.jit
    def step(state: Any, batch: Any) -> None:
        model, optimizer = state
        gradients = nnx.grad(lambda model: cross_entropy(model(batch[0]), batch))(model)
        optimizer.update(model, gradients)

    model.train()
    for i in range(STEPS):
        step(state, given[i % len(given)])
    return {
        "model": model,
        "batches": given[:8],
        "step": step,
        "state": state,
        "optimizer": optimizer,
        "steps": STEPS,
    }


__all__ = ["MODELS", "build", "digits"]
