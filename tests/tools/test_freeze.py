"""Frozen norms: what normalizes, what a step of training moves, and what is refused."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import freeze as frozen_dict
from flax.traverse_util import flatten_dict

import normlab.linen
import normlab.nnx
from normlab.errors import BadInput
from normlab.tools.convert import Converted
from normlab.tools.freeze import freeze

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (8, 6))


class Net(nn.Module):
    """Flax's batch norm, ours, and a layer norm."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="flax")(nn.Dense(6)(x))
        x = normlab.linen.BatchNorm(use_running_average=not train, momentum=0.9, name="ours")(nn.relu(x))
        return nn.LayerNorm(name="layer")(nn.Dense(6)(x))


class OfNNX(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.dense = nnx.Linear(6, 6, rngs=rngs)
        self.flax = nnx.BatchNorm(6, momentum=0.9, rngs=rngs)
        self.ours = normlab.nnx.BatchNorm(6, momentum=0.9, rngs=rngs)
        self.layer = nnx.LayerNorm(6, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.layer(self.dense(nnx.relu(self.ours(self.flax(self.dense(x))))))


def varied(tree: Any) -> Any:
    """Return a tree whose leaves vary, with positive numbers."""
    return jax.tree.map(lambda leaf: jnp.abs(leaf) + jnp.linspace(0.5, 1.0, leaf.size).reshape(leaf.shape), tree)


def linen() -> tuple[Net, dict[str, Any]]:
    model = Net()
    return model, varied(model.init(KEY, X))


def of_nnx() -> OfNNX:
    model = OfNNX(nnx.Rngs(0))
    nnx.update(model, varied(nnx.state(model)))
    return model


def step_of_linen(frozen: Converted[Any]) -> set[str]:
    """Take a step with weight decay; return the variables that it moved."""
    params = frozen.variables["params"]
    rates = {name: optax.adamw(0.1, weight_decay=0.1) for name in ("norm", "bias", "other")}
    optimizer = optax.multi_transform({**rates, "frozen": optax.set_to_zero()}, frozen.labels)

    def loss(params: Any) -> tuple[jax.Array, Any]:
        variables = {**frozen.variables, "params": params}
        y, after = frozen.model.apply(variables, X, train=True, mutable=["batch_stats"])
        return jnp.sum(y**3), after

    @jax.jit
    def step(params: Any) -> dict[str, Any]:
        gradients, after = jax.grad(loss, has_aux=True)(params)
        updates, _ = optimizer.update(gradients, optimizer.init(params), params)
        return {**after, "params": optax.apply_updates(params, updates)}

    new = step(params)
    return differing(flatten_dict(frozen.variables, sep="/"), flatten_dict(new, sep="/"))


def step_of_nnx(frozen: Converted[Any]) -> set[str]:
    model = nnx.clone(frozen.model)
    model.train()
    optimizer = nnx.Optimizer(model, optax.adamw(0.1, weight_decay=0.1), wrt=nnx.Param)
    optimizer.update(model, nnx.grad(lambda model: jnp.sum(model(X) ** 3))(model))
    states = (nnx.to_flat_state(nnx.state(one)) for one in (frozen.model, model))
    before, after = ({"/".join(map(str, path)): leaf[...] for path, leaf in state} for state in states)
    return differing(before, after)


def differing(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    assert before.keys() == after.keys()
    return {path for path in before if not np.array_equal(before[path], after[path])}


def moved(library: str, **options: Any) -> tuple[set[str], Converted[Any]]:
    """Return the variables of norms that a step moves."""
    if library == "linen":
        frozen = freeze(*linen(), args=(X,), **options)
        paths = step_of_linen(frozen)
        paths = {path.partition("/")[2] for path in paths}
    else:
        frozen = freeze(of_nnx(), **options)
        paths = step_of_nnx(frozen)
    assert any("kernel" in path for path in paths)
    return {path for path in paths if "ense" not in path}, frozen


AFFINE = {f"{norm}/{name}" for norm in ("flax", "ours") for name in ("scale", "bias")}
STATISTICS = {f"{norm}/{name}" for norm in ("flax", "ours") for name in ("mean", "var")}
LAYER = {"layer/scale", "layer/bias"}


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_frozen_batch_norms_do_not_move_and_the_layer_norm_learns(library: str) -> None:
    paths, frozen = moved(library)
    assert paths == LAYER
    assert {row.path for row in frozen.report} == {"flax", "ours"}
    assert all(row.after == "batch:frozen=True" and not row.fresh for row in frozen.report)


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_scale_and_bias_can_learn_on_running_statistics(library: str) -> None:
    assert moved(library, affine=False)[0] == AFFINE | LAYER


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_scale_and_bias_alone_are_frozen_in_all_norms(library: str) -> None:
    paths, frozen = moved(library, statistics=False)
    assert paths == STATISTICS and not frozen.report


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_named_norms_are_frozen_and_the_others_stay(library: str) -> None:
    paths, _ = moved(library, where=["ours", "layer"])
    assert paths == {path for path in AFFINE | STATISTICS if path.startswith("flax")}


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_frozen_norms_normalize_by_running_statistics_in_training(library: str) -> None:
    if library == "linen":
        model, variables = linen()
        frozen = freeze(model, variables, args=(X,))
        expected = model.apply(variables, X)
        y, _ = frozen.model.apply(frozen.variables, X, train=True, mutable=["batch_stats"])
        assert frozen.labels is not None and frozen.labels["Dense_0"] == {"kernel": "other", "bias": "bias"}
    else:
        model = of_nnx()
        frozen = freeze(model)
        frozen.model.train()
        y = frozen.model(X)
        model.eval()
        expected = model(X)
        assert isinstance(frozen.model.ours.scale, normlab.nnx.FrozenParam)
        assert isinstance(frozen.labels, nnx.State) and set(jax.tree.leaves(frozen.labels)) == {"norm", "bias", "other"}
    assert np.array_equal(y, expected)


def test_nothing_given_is_changed() -> None:
    model, variables = linen()
    before = jax.tree.map(np.array, variables)
    module = of_nnx()
    state, graph = jax.tree.map(np.array, nnx.state(module)), nnx.graphdef(module)
    for options in ({}, {"affine": False}, {"statistics": False}):
        freeze(model, variables, args=(X,), **options)
        freeze(module, **options)
    assert jax.tree.all(jax.tree.map(np.array_equal, before, variables))
    assert jax.tree.all(jax.tree.map(np.array_equal, state, nnx.state(module))) and nnx.graphdef(module) == graph


def test_frozen_dicts_and_boxes_have_labels_in_their_place() -> None:
    boxed = nn.with_partitioning(nn.initializers.ones, ("model",))
    model = nn.BatchNorm(use_running_average=False, scale_init=boxed)
    variables = frozen_dict(model.init(KEY, X))
    for options in ({}, {"statistics": False}):
        labels = freeze(model, variables, args=(X,), **options).labels
        assert jax.tree.structure(labels) == jax.tree.structure(variables["params"])
        assert jax.tree.leaves(labels) == ["frozen", "frozen"]


def test_batch_renorms_keep_their_kind() -> None:
    model = normlab.linen.BatchRenorm(use_running_average=False)
    frozen = freeze(model, model.init(KEY, X), args=(X,))
    assert frozen.report[0].after == "batch_renorm:frozen=True" and not frozen.report[0].notes


class NormAct(nn.BatchNorm):
    @nn.compact
    def __call__(self, x: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        return nn.relu(super().__call__(x, *args, **kwargs))


def of(model: nn.Module, **options: Any) -> Callable[[], object]:
    return lambda: freeze(model, model.init(KEY, X), args=(X,), **options)


REFUSALS = [
    (
        of(nn.LayerNorm(), statistics=False, affine=False),
        "Expected to freeze statistics, or scale and bias, got neither. Pass one of them as True.",
    ),
    (
        of(nn.Sequential([nn.LayerNorm(), nn.RMSNorm()])),
        "Expected a model with running statistics, found none among its 2 norms (layer, rms). Pass "
        "`statistics=False` to freeze scale and bias alone.",
    ),
    (
        of(nn.Sequential([normlab.linen.OnlineNorm(use_running_average=True)])),
        "Expected norms that can be frozen, `layers_0` is online norm. Leave it out by `where=`, or pass "
        "`statistics=False`.",
    ),
    (
        of(nn.Sequential([NormAct(use_running_average=True)])),
        "Expected plain batch norms, `layers_0` is a `NormAct`, which does more in `__call__`. Name it in `where=` to "
        "replace it all the same.",
    ),
    (
        lambda: freeze(nn.LayerNorm(), nn.LayerNorm().init(KEY, X)),
        "Expected the inputs of a call of a Linen model, got (). Give them, as in `args=(x,)`; only shapes count.",
    ),
]


@pytest.mark.parametrize(("call", "sentence"), REFUSALS)
def test_refusals(call: Callable[[], object], sentence: str) -> None:
    with pytest.raises(BadInput) as caught:
        call()
    assert str(caught.value) == sentence
