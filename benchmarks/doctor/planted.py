"""Models with a planted fault, each with a version in which it is fixed."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, PartitionSpec
from sklearn.datasets import load_digits

from normlab import tools
from normlab.linen import BatchNorm, GroupNorm, InstanceNorm

Keywords = dict[str, Any]
KEY = jax.random.key(0)


@dataclass(frozen=True)
class Case:
    """A planted fault.

    Attributes:
        code: Code of the check that finds it.
        severity: Severity of the finding.
        path: Path of the finding.
        build: Returns keywords of `examine`, given the strength of the fault: 0 fixed, 1 strong, a half weak.
        weak: Whether the fault has a weak form.
    """

    code: str
    severity: str
    path: str
    build: Callable[[float], Keywords]
    weak: bool = False


CASES: dict[str, Case] = {}


def case(
    name: str, code: str, severity: str, path: str, *, weak: bool = False
) -> Callable[[Callable[[float], Keywords]], None]:
    """Register a function of the strength of a fault."""

    def register(build: Callable[[float], Keywords]) -> None:
        CASES[name] = Case(code, severity, path, build, weak)

    return register


@cache
def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return the images (1797, 8, 8, 1) and classes of scikit-learn's digits, shuffled."""
    images, classes = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    return (images[order] / 16).astype(np.float32).reshape(-1, 8, 8, 1), classes[order]


def batches(size: int = 32, count: int = 8, *, flat: bool = True) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return batches of the digits."""
    images, classes = digits()
    images = images.reshape(len(images), -1) if flat else images
    slices = [slice(i * size, (i + 1) * size) for i in range(count)]
    return [(images[one], classes[one]) for one in slices]


class Dense(nn.Module):
    """Two layers with a norm between, and a head."""

    norm: Callable[..., Any] = nn.BatchNorm
    use_bias: bool = False
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        for i in range(2):
            x = nn.Dense(32, use_bias=self.use_bias, name=f"dense_{i}")(x)
            x = self.norm(use_running_average=not train, momentum=self.momentum, name=f"norm_{i}")(x)
            x = nn.relu(x)
        return nn.Dense(10, name="head")(x)


def loss(logits: Any, labels: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def step_of(
    model: nn.Module, optimizer: optax.GradientTransformation, *, keep: bool = True, calls: int = 1
) -> Callable[[Any, Any], Any]:
    """Return a step of training of a Linen model; the state is a dict of params, batch_stats and opt."""

    @jax.jit
    def step(state: Any, batch: Any) -> Any:
        inputs, labels = batch

        def objective(params: Any) -> Any:
            stats, total = state["batch_stats"], 0.0
            for _ in range(calls):
                y, updates = model.apply(
                    {"params": params, "batch_stats": stats}, inputs, train=True, mutable=["batch_stats"]
                )
                stats, total = updates["batch_stats"], total + loss(y, labels) / calls
            return total, stats

        gradients, stats = jax.grad(objective, has_aux=True)(state["params"])
        updates, opt = optimizer.update(gradients, state["opt"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "batch_stats": stats if keep else state["batch_stats"], "opt": opt}

    return step


def start(model: nn.Module, optimizer: optax.GradientTransformation, inputs: Any, seed: int = 0) -> Keywords:
    """Return the state that `step_of` begins with."""
    variables = model.init(jax.random.key(seed), inputs, train=False)
    return {
        "params": variables["params"],
        "batch_stats": variables.get("batch_stats", {}),
        "opt": optimizer.init(variables["params"]),
    }


def trained(
    model: nn.Module, *, steps: int = 60, size: int = 32, flat: bool = True, keep: bool = True, seed: int = 0
) -> tuple[Keywords, Callable[[Any, Any], Any]]:
    """Train a model on the digits; return its state and its step."""
    optimizer = optax.sgd(0.05, momentum=0.9)
    rounds = batches(size, 1700 // size, flat=flat)
    state, step = start(model, optimizer, rounds[0][0], seed), step_of(model, optimizer, keep=keep)
    for i in range(steps):
        state = step(state, rounds[i % len(rounds)])
    return state, step


@cache
def trained_dense() -> tuple[nn.Module, Keywords, Callable[[Any, Any], Any]]:
    model = Dense()
    state, step = trained(model)
    return model, state, step


def variables_of(state: Keywords) -> Keywords:
    return {"params": state["params"], "batch_stats": state["batch_stats"]}


def fresh(model: nn.Module, inputs: Any) -> Any:
    return model.init({"params": KEY, "dropout": KEY}, inputs, train=False)


def examined(model: nn.Module, given: list[Any], **more: Any) -> Keywords:
    """Return keywords for a model with fresh variables."""
    first = given[0][0] if isinstance(given[0], tuple) else given[0]
    return {"model": model, "variables": fresh(model, first), "batches": given, **more}


# --- the thirteen of the doctor's charter ---


@case("a bias before batch norm", "NL101", "note", "norm_0")
def _(planted: float) -> Keywords:
    return examined(Dense(use_bias=bool(planted)), batches())


class Pooled(nn.Module):
    norm: Callable[..., Any] = nn.BatchNorm

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        x = nn.Conv(8, (3, 3), use_bias=False, name="conv")(10 * x).mean((1, 2))
        x = self.norm(use_running_average=not train, name="norm")(x)
        return nn.Dense(10, name="head")(x)


@case("batch norm of one row", "NL102", "error", "norm_0")
def _(planted: float) -> Keywords:
    return examined(Dense(), batches(1 if planted else 32))


@case("normlab's batch norm of one row, which it refuses", "NL102", "error", "norm_0")
def _(planted: float) -> Keywords:
    return examined(Dense(norm=BatchNorm), batches(1 if planted else 32))


@case("batch norm behind global pooling at batch 1", "NL102", "error", "norm")
def _(planted: float) -> Keywords:
    return examined(Pooled(), batches(1 if planted else 32, flat=False))


class Narrow(nn.Module):
    norm: Callable[..., Any]
    pools: int

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        for i in range(self.pools):
            x = nn.Conv(16, (3, 3), use_bias=False, name=f"conv_{i}")(x)
            x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(10, name="head")(nn.relu(self.norm(name="norm")(x)).mean((1, 2)))


@case("instance norm of 1 x 1 maps", "NL103", "error", "norm")
def _(planted: float) -> Keywords:
    return examined(Narrow(nn.InstanceNorm, 3 if planted else 1), batches(flat=False))


@case("normlab's instance norm of 1 x 1 maps, which it refuses", "NL103", "error", "norm")
def _(planted: float) -> Keywords:
    model = Narrow(InstanceNorm, 3 if planted else 1)
    images = batches(flat=False)
    if planted:
        return {"model": model, "variables": fresh(Narrow(nn.InstanceNorm, 3), images[0][0]), "batches": images}
    return examined(model, images)


class Transposed(nn.Module):
    back: bool

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        x = nn.Conv(16, (3, 3), use_bias=False, name="conv")(x)
        x = x if self.back else jnp.transpose(x, (0, 3, 1, 2))
        x = nn.relu(nn.LayerNorm(name="norm")(x))
        return nn.Dense(10, name="head")(x.reshape(len(x), -1))


@case("a transpose before layer norm", "NL105", "warning", "norm")
def _(planted: float) -> Keywords:
    return examined(Transposed(back=not planted), batches(flat=False))


class AtTheEnd(nn.Module):
    planted: bool

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        x = nn.relu(nn.Dense(32, name="dense")(x))
        x = nn.Dense(10, name="head", use_bias=not self.planted)(x)
        return nn.BatchNorm(use_running_average=not train, name="norm")(x) if self.planted else x


@case("batch norm of the logits", "NL106", "warning", "norm")
def _(planted: float) -> Keywords:
    return examined(AtTheEnd(bool(planted)), batches())


class Named(nn.Module):
    axis_name: str | None

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        x = nn.Dense(16, use_bias=False, name="dense")(x)
        x = nn.BatchNorm(use_running_average=not train, axis_name=self.axis_name, name="norm")(x)
        return nn.Dense(10, name="head")(nn.relu(x))


@case("an axis name without a mesh", "NL108", "error", "norm")
def _(planted: float) -> Keywords:
    return examined(Named("data" if planted else None), batches())


@case("a slow momentum", "NL110", "warning", "norm_0", weak=True)
def _(planted: float) -> Keywords:
    return examined(Dense(momentum={0: 0.9, 0.5: 0.95}.get(planted, 0.99)), batches(), steps=50)


@case("statistics thrown away", "NL201", "error", "norm_0")
def _(planted: float) -> Keywords:
    model = Dense()
    state, _ = trained(model, keep=not planted)
    return {"model": model, "variables": variables_of(state), "batches": batches()}


@case("a step that throws statistics away", "NL205", "error", "norm_0")
def _(planted: float) -> Keywords:
    model = Dense()
    state, step = trained(model, keep=not planted)
    return {"model": model, "batches": batches(), "step": step, "state": state}


class Fixed(nn.Module):
    running: bool | None

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        x = nn.Dense(16, use_bias=False, name="dense")(x)
        running = not train if self.running is None else self.running
        x = nn.BatchNorm(use_running_average=running, name="norm")(x)
        return nn.Dense(10, name="head")(nn.relu(x))


@case("batch statistics at evaluation", "NL203", "error", "norm")
def _(planted: float) -> Keywords:
    return examined(Fixed(False if planted else None), batches())


@case("weight decay on a norm", "NL206", "warning", "norm_0", weak=True)
def _(planted: float) -> Keywords:
    model, x = Dense(), batches()[0][0]
    mask = None if planted else tools.decay_mask(model, fresh(model, x), x)
    return examined(model, batches(), optimizer=optax.adamw(1e-5 if planted < 1 else 0.01, mask=mask))


def _scaled(factor: float) -> Keywords:
    model, state, _ = trained_dense()
    flat = flatten_dict(variables_of(state), sep="/")
    flat["params/dense_1/kernel"] = flat["params/dense_1/kernel"] * factor
    return {"model": model, "variables": unflatten_dict(flat, sep="/"), "batches": batches()}


@case("statistics from before a layer was scaled", "NL303", "warning", "norm_1", weak=True)
def _(planted: float) -> Keywords:
    return _scaled(1 + 2 * planted)


@case("evaluation with statistics from before a layer was scaled", "NL304", "warning", "norm_1", weak=True)
def _(planted: float) -> Keywords:
    return _scaled(1 + 2 * planted)


class OnInput(nn.Module):
    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        x = nn.BatchNorm(use_running_average=not train, name="norm")(x)
        return nn.Dense(10, name="head")(x)


def _columns(change: Callable[[np.ndarray], None]) -> Keywords:
    rng = np.random.default_rng(0)
    given = [rng.normal(size=(32, 20)).astype(np.float32) for _ in range(6)]
    for one in given:
        change(one)
    return examined(OnInput(), given)


@case("constant columns of the input", "NL307", "warning", "norm", weak=True)
def _(planted: float) -> Keywords:
    def constant(x: np.ndarray) -> None:
        x[:, : round(6 * planted)] = 0.5

    return _columns(constant)


@case("columns of the scale of epsilon", "NL308", "warning", "norm", weak=True)
def _(planted: float) -> Keywords:
    def tiny(x: np.ndarray) -> None:
        x[:, :6] *= {0: 1.0, 0.5: 5e-3}.get(planted, 1e-4)

    return _columns(tiny)


class HalfInput(nn.Module):
    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        x = nn.BatchNorm(use_running_average=not train, name="norm", dtype=jnp.float32)(x)
        return nn.Dense(10, name="head")(x)


def _half(largest: float) -> Keywords:
    rng = np.random.default_rng(0)
    given = [rng.uniform(-largest, largest, size=(32, 20)).astype(np.float32) for _ in range(6)]
    with np.errstate(over="ignore"):
        return examined(HalfInput(), [one.astype(np.float16) for one in given])


@case("float16 near the end of its range", "NL309", "warning", "norm", weak=True)
def _(planted: float) -> Keywords:
    return _half({0: 5.0, 0.5: 1e4}.get(planted, 5e4))


@case("float16 beyond its range", "NL311", "error", "norm")
def _(planted: float) -> Keywords:
    return _half(7e4 if planted else 5.0)


# --- from threads of users ---


class Grouped(nn.Module):
    num_groups: int

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        x = nn.Conv(16, (3, 3), use_bias=False, name="conv")(x)
        x = nn.relu(GroupNorm(num_groups=self.num_groups, name="norm")(x))
        return nn.Dense(10, name="head")(x.mean((1, 2)))


@case("as many groups as channels", "NL104", "note", "norm")
def _(planted: float) -> Keywords:
    return examined(Grouped(16 if planted else 4), batches(flat=False))


@case("images with channels first", "NL105", "warning", "norm")
def _(planted: float) -> Keywords:
    images = [x for x, _ in batches(flat=False)]
    return examined(Grouped(4), [x.transpose(0, 3, 1, 2) for x in images] if planted else images)


def _on_devices(axis_name: str | None) -> Keywords:
    model, optimizer = Named(axis_name), optax.sgd(0.1)
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    whole, part = PartitionSpec(), PartitionSpec("data")

    def of_device(state: Any, inputs: Any, labels: Any) -> Any:
        def objective(params: Any) -> Any:
            variables = {"params": params, "batch_stats": state["batch_stats"]}
            y, updates = model.apply(variables, inputs, train=True, mutable=["batch_stats"])
            return loss(y, labels), updates["batch_stats"]

        gradients, stats = jax.grad(objective, has_aux=True)(state["params"])
        gradients, stats = jax.lax.pmean((gradients, stats), "data")
        updates, opt = optimizer.update(gradients, state["opt"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "batch_stats": stats, "opt": opt}

    @jax.jit
    def step(state: Any, batch: Any) -> Any:
        mapped = jax.shard_map(of_device, mesh=mesh, in_specs=(whole, part, part), out_specs=whole, check_vma=False)
        return mapped(state, *batch)

    given = batches()
    state = start(Named(None), optimizer, given[0][0])
    return {"model": model, "batches": given, "step": step, "state": state}


@case("statistics of each device", "NL109", "warning", "norm")
def _(planted: float) -> Keywords:
    return _on_devices(None if planted else "data")


class Half(nn.Module):
    wide: bool

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        x = nn.Dense(16, use_bias=False, dtype=jnp.bfloat16, name="dense")(x)
        options = {"force_float32_reductions": self.wide, "dtype": jnp.bfloat16}
        x = nn.BatchNorm(use_running_average=not train, name="norm", **options)(x)
        return nn.Dense(10, name="head")(nn.relu(x))


@case("statistics in bfloat16", "NL111", "error", "norm")
def _(planted: float) -> Keywords:
    return examined(Half(wide=not planted), batches())


class Twice(nn.Module):
    planted: bool

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        x = nn.LayerNorm(name="norm_0")(nn.Dense(16, name="dense")(x))
        x = nn.LayerNorm(name="norm_1")(x) if self.planted else x
        return nn.Dense(10, name="head")(nn.relu(x))


@case("a norm of a norm", "NL112", "note", "norm_1")
def _(planted: float) -> Keywords:
    return examined(Twice(bool(planted)), batches())


class Shared(nn.Module):
    planted: bool

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        norms = [nn.BatchNorm(use_running_average=not train, name=f"norm_{i}") for i in range(1 if self.planted else 2)]
        for i in range(2):
            x = nn.Dense(16, use_bias=False, name=f"dense_{i}")(x)
            x = nn.relu(norms[i % len(norms)](x))
        return nn.Dense(10, name="head")(x)


@case("one batch norm for two layers", "NL113", "warning", "norm_0")
def _(planted: float) -> Keywords:
    return examined(Shared(bool(planted)), batches())


@case("a batch norm that evaluates in training", "NL202", "error", "norm")
def _(planted: float) -> Keywords:
    return examined(Fixed(True if planted else None), batches())


@case("two calls in a step", "NL204", "warning", "norm_0")
def _(planted: float) -> Keywords:
    model, state, _ = trained_dense()
    step = step_of(model, optax.sgd(0.05, momentum=0.9), calls=2 if planted else 1)
    return {"model": model, "batches": batches(), "step": step, "state": state}


class FrozenNorm(nn.Module):
    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        x = nn.Dense(16, use_bias=False, name="dense")(x)
        x = BatchNorm(use_running_average=not train, frozen=True, name="norm")(x)
        return nn.Dense(10, name="head")(nn.relu(x))


@case("weight decay moves a frozen norm", "NL207", "warning", "norm")
def _(planted: float) -> Keywords:
    model, given = FrozenNorm(), batches()
    variables = fresh(model, given[0][0])
    optimizer: Any = optax.adamw(0.01, weight_decay=0.1)
    if not planted:
        found = tools.labels(model, variables, given[0][0])
        rules = dict.fromkeys(("norm", "bias", "other"), optimizer)
        optimizer = optax.multi_transform({**rules, "frozen": optax.set_to_zero()}, found)
    return {
        "model": model,
        "batches": given,
        "step": step_of(model, optimizer),
        "state": start(model, optimizer, given[0][0]),
    }


@case("replicas that drifted apart", "NL208", "warning", "norm_0", weak=True)
def _(planted: float) -> Keywords:
    model, state, _ = trained_dense()
    stacked = jax.tree.map(lambda leaf: np.stack([leaf] * 4), variables_of(state))
    if planted:
        apart = planted**3 * np.random.default_rng(0).normal(size=(4, 32))
        stacked["batch_stats"]["norm_0"]["mean"] += apart * np.sqrt(stacked["batch_stats"]["norm_0"]["var"])
    return {"model": model, "variables": stacked, "batches": batches()}


@case("one-pass variance far from zero", "NL301", "error", "norm", weak=True)
def _(planted: float) -> Keywords:
    rng = np.random.default_rng(0)
    offset = {0: 10.0, 0.5: 1e3}.get(planted, 1e4)
    return examined(OnInput(), [(offset + rng.normal(size=(32, 20))).astype(np.float32) for _ in range(6)])


@case("small batches", "NL302", "warning", "norm_0", weak=True)
def _(planted: float) -> Keywords:
    return examined(Dense(), batches({0: 32, 0.5: 7}.get(planted, 4)))


@case("batches of one class", "NL305", "warning", "norm_0", weak=True)
def _(planted: float) -> Keywords:
    images, classes = digits()
    by_class = images[np.argsort(classes, kind="stable")].reshape(len(images), -1)
    mixed, own = images.reshape(len(images), -1), round(32 * planted)
    return examined(
        Dense(),
        [np.concatenate([by_class[i * 170 :][:own], mixed[i * 32 :][: 32 - own]]) for i in range(8)],
    )


class Dropped(nn.Module):
    before: bool
    rate: float = 0.5

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        drop = nn.Dropout(self.rate, deterministic=not train)
        x = nn.Dense(32, use_bias=False, name="dense_0")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm_0")(x))
        x = drop(x) if self.before else x
        x = nn.Dense(32, use_bias=False, name="dense_1")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm_1")(x))
        x = x if self.before else drop(x)
        return nn.Dense(10, name="head")(x)


@case("dropout before batch norm", "NL306", "warning", "norm_1", weak=True)
def _(planted: float) -> Keywords:
    return examined(Dropped(bool(planted), 0.2 if planted == 0.5 else 0.5), batches())


class Masked(nn.Module):
    masked: bool

    @nn.compact
    def __call__(self, x: Any, padding: Any, *, train: bool) -> Any:
        x = nn.Dense(16, use_bias=False, name="dense")(x)
        valid = ~padding[..., None]
        norm = nn.BatchNorm(use_running_average=not train, name="norm")
        x = nn.relu(norm(x, mask=valid) if self.masked else norm(x))
        x = jnp.where(valid, x, 0).sum(1) / valid.sum(1)
        return nn.Dense(10, name="head")(x)


@case("padding in the statistics", "NL310", "warning", "norm", weak=True)
def _(planted: float) -> Keywords:
    rng = np.random.default_rng(0)
    given = []
    for _ in range(6):
        padding = np.arange(12) >= rng.integers(11 if planted == 0.5 else 4, 13, size=(32, 1))
        given.append((np.where(padding[..., None], 0, rng.normal(size=(32, 12, 8))).astype(np.float32), padding))
    model = Masked(not planted)
    variables = model.init(KEY, *given[0], train=False)
    return {
        "model": model,
        "variables": variables,
        "batches": given,
        "call": lambda batch: (batch, {}),
        "padding": lambda batch: batch[1],
    }


class Small(nnx.Module):
    """A model of NNX."""

    def __init__(self, *, use_bias: bool = False, running: bool | None = None) -> None:
        rngs = nnx.Rngs(0)
        self.dense = nnx.Linear(64, 16, use_bias=use_bias, rngs=rngs)
        self.norm = nnx.BatchNorm(16, rngs=rngs, use_running_average=False)
        self.head = nnx.Linear(16, 10, rngs=rngs)
        self.running = running

    def __call__(self, x: Any) -> Any:
        return self.head(nnx.relu(self.norm(self.dense(x), use_running_average=self.running)))


@case("a bias before batch norm, in NNX", "NL101", "note", "norm")
def _(planted: float) -> Keywords:
    return {"model": Small(use_bias=bool(planted)), "batches": batches()}


@case("batch statistics at evaluation, in NNX", "NL203", "error", "norm")
def _(planted: float) -> Keywords:
    return {"model": Small(running=False if planted else None), "batches": batches()}


# --- faults in unusual places ---


class ScannedBlock(nn.Module):
    train: bool

    @nn.compact
    def __call__(self, x: Any, _: None) -> tuple[Any, None]:
        h = nn.Dense(x.shape[-1], use_bias=False, name="dense")(x)
        return x + nn.relu(nn.BatchNorm(use_running_average=not self.train, momentum=0.9, name="norm")(h)), None


class Scanned(nn.Module):
    """Three blocks in a `scan`, with running statistics for each, or with the same ones for all."""

    carried: bool = False

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        x = nn.Dense(32, name="stem")(x)
        if self.carried:
            kept: Keywords = {"variable_axes": {"params": 0}, "variable_carry": "batch_stats"}
        else:
            kept = {"variable_axes": {"params": 0, "batch_stats": 0}}
        blocks = nn.scan(ScannedBlock, split_rngs={"params": True}, length=3, **kept)
        x, _ = blocks(train, name="blocks")(x, None)
        return nn.Dense(10, name="head")(x)


class Ensemble(nn.Module):
    """Three networks side by side, whose outputs are averaged."""

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        axes = {"params": 0, "batch_stats": 0}
        options: Keywords = {"variable_axes": axes, "split_rngs": {"params": True}, "axis_size": 3}
        nets = nn.vmap(lambda net, x: net(x, train=train), in_axes=None, **options)
        return nets(Dense(name="nets"), x).mean(0)


@cache
def _trained(model: nn.Module) -> Keywords:
    return variables_of(trained(model)[0])


def _with_one_moved(model: nn.Module, name: str, index: int, planted: float) -> Keywords:
    """Return keywords for a trained model of whose stacked running means one is far from that of the data."""
    flat = flatten_dict(_trained(model), sep="/")
    flat[name] = flat[name].at[index].add(3 * planted)
    return {"model": model, "variables": unflatten_dict(flat, sep="/"), "batches": batches()}


@case("statistics of one layer in a scan that are not of the data", "NL303", "warning", "blocks/norm[1]")
def _(planted: float) -> Keywords:
    return _with_one_moved(Scanned(), "batch_stats/blocks/norm/mean", 1, planted)


@case("statistics of one network in an ensemble that are not of the data", "NL303", "warning", "nets/norm_1[2]")
def _(planted: float) -> Keywords:
    return _with_one_moved(Ensemble(), "batch_stats/nets/norm_1/mean", 2, planted)


@case("layers in a scan that share statistics", "NL113", "warning", "blocks/norm")
def _(planted: float) -> Keywords:
    found = examined(Scanned(), batches())
    if not planted:
        return found
    blocks = jax.tree.map(lambda leaf: leaf[0], found["variables"]["batch_stats"])  # a carry has to be there
    return found | {"model": Scanned(carried=True), "variables": {**found["variables"], "batch_stats": blocks}}


@case("weight decay on a norm in one of two groups", "NL206", "warning", "norm_1")
def _(planted: float) -> Keywords:
    model, x = Dense(), batches()[0][0]
    variables = fresh(model, x)
    spared = optax.adamw(0.01, mask=lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree))
    groups = {name: "second" if name.endswith(("_1", "head")) else "first" for name in variables["params"]}
    optimizer = optax.multi_transform({"first": spared, "second": optax.adamw(0.01) if planted else spared}, groups)
    return examined(model, batches(), optimizer=optimizer)


class Stuck(nnx.BatchNorm):
    """Batch norm that takes batch statistics in both modes."""

    def __call__(self, x: Any, use_running_average: bool | None = None, **options: Any) -> Any:
        return super().__call__(x, use_running_average=False, **options)


class Listed(nnx.Module):
    """A model of NNX with its layers in lists."""

    def __init__(self, norms: tuple[type[nnx.BatchNorm], ...], axis_name: str | None = None) -> None:
        rngs, widths = nnx.Rngs(0), (64, *[16] * len(norms))
        pairs = itertools.pairwise(widths)
        self.layers = nnx.List([nnx.Linear(a, b, use_bias=False, rngs=rngs) for a, b in pairs])
        self.norms = nnx.List([norm(16, axis_name=axis_name, rngs=rngs) for norm in norms])
        self.head = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = nnx.relu(norm(layer(x)))
        return self.head(x)


@case("batch statistics at evaluation in a list of NNX", "NL203", "error", "norms/1")
def _(planted: float) -> Keywords:
    return {"model": Listed((nnx.BatchNorm, Stuck if planted else nnx.BatchNorm)), "batches": batches()}


@case("statistics of each device, in NNX", "NL109", "warning", "norms/0")
def _(planted: float) -> Keywords:
    model = Listed((nnx.BatchNorm,), None if planted else "data")
    state = (model, nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param))
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    whole, part = PartitionSpec(), PartitionSpec("data")

    @nnx.shard_map(mesh=mesh, in_specs=(whole, part, part), out_specs=whole, check_vma=False)
    def gradients(model: Any, inputs: Any, labels: Any) -> Any:
        return jax.lax.pmean(nnx.grad(lambda model: loss(model(inputs), labels))(model), "data")

    @nnx.jit
    def step(state: Any, batch: Any) -> None:
        model, optimizer = state
        optimizer.update(model, gradients(model, *batch))

    return {"model": model, "batches": batches(), "step": step, "state": state}
