"""Labels and masks: by the types of modules, in the trees that optimizers take."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import FrozenDict, freeze, unfreeze
from flax.traverse_util import flatten_dict

import normlab.linen
import normlab.nnx
from normlab import norms
from normlab.errors import BadInput
from normlab.introspect.kinds import norm_kind
from normlab.tools.masks import decay_mask, labels, nnx_filter, norm_parameters
from tests.support.registered import ALL

KEY = jax.random.key(0)


class Misnamed(nn.Module):
    """A dense layer with the name of a norm, and a norm with that of a dense layer."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        x = nn.Embed(5, 3, name="norm")(x)
        x = nn.Dense(4, name="LayerNorm_0")(x)
        x = nn.BatchNorm(name="dense", use_running_average=not train)(x)
        return nn.WeightNorm(nn.Dense(2, name="bn"), name="scale")(x)


MISNAMED = {
    "norm/embedding": ("other", True),
    "LayerNorm_0/kernel": ("other", True),
    "LayerNorm_0/bias": ("bias", False),
    "dense/scale": ("norm", False),
    "dense/bias": ("norm", False),
    "bn/kernel": ("other", True),
    "bn/bias": ("bias", False),
    "scale/bn/kernel/scale": ("other", True),
}


def misnamed() -> tuple[nn.Module, dict[str, object], jax.Array]:
    model, x = Misnamed(), jnp.array([0, 1, 2])
    return model, unfreeze(model.init(KEY, x)), x


def flat(tree: object) -> dict[str, object]:
    assert isinstance(tree, dict)
    return flatten_dict(tree, sep="/")


def test_types_count_and_names_do_not() -> None:
    model, variables, x = misnamed()
    assert flat(labels(model, variables, x)) == {path: label for path, (label, _) in MISNAMED.items()}
    assert flat(decay_mask(model, variables, x)) == {path: decays for path, (_, decays) in MISNAMED.items()}
    assert set(norm_parameters(model, variables, x)) == {"dense/scale", "dense/bias"}
    assert set(norm_parameters(model, variables, x, roles=("scale",))) == {"dense/scale"}


def test_labels_and_what_decays_can_be_chosen() -> None:
    model, variables, x = misnamed()
    named = flat(labels(model, variables, x, norm="n", bias="b", other="o"))
    assert set(named.values()) == {"n", "b", "o"}
    every = decay_mask(model, variables, x, biases=True, norms=True)
    assert all(flat(every).values())
    assert not flat(decay_mask(model, variables, x, embeddings=False))["norm/embedding"]
    assert flat(decay_mask(model, variables, x, norms=True))["dense/scale"]
    assert not flat(decay_mask(model, variables, x, norms=True))["LayerNorm_0/bias"]


def test_trees_are_those_of_the_parameters_frozen_or_boxed() -> None:
    boxed = nn.with_partitioning(nn.initializers.ones, ("model",))
    model, x = nn.Sequential([nn.Dense(4), nn.LayerNorm(scale_init=boxed)]), jnp.ones((1, 3))
    variables = freeze(model.init(KEY, x))
    before = jax.tree.structure(variables)
    for tree in (labels(model, variables, x), decay_mask(model, variables, x)):
        assert isinstance(tree, FrozenDict)
        assert jax.tree.structure(tree) == jax.tree.structure(variables["params"])
    scale = decay_mask(model, variables, x)["layers_1"]["scale"]
    assert isinstance(scale, nn.Partitioned) and scale.value is False and scale.names == ("model",)
    assert jax.tree.structure(variables) == before
    assert isinstance(norm_parameters(model, variables, x)["layers_1/scale"], jax.Array)


class Lifted(nn.Module):
    """Norms under lifted transforms, called twice so that `nn.jit` has them in its cache."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        block = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        x, _ = block(name="scanned")(x, None)
        x = nn.remat(nn.LayerNorm)(name="rematerialized")(x)
        return nn.jit(nn.RMSNorm)(name="jitted")(x)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return nn.LayerNorm()(nn.Dense(3)(x)), None


def test_norms_in_lifted_transforms_are_found() -> None:
    model, x = Lifted(), jnp.ones((1, 3))
    variables = model.init(KEY, x)
    model.apply(variables, x)
    wanted = {"scanned/LayerNorm_0/scale", "scanned/LayerNorm_0/bias"}
    wanted |= {"rematerialized/scale", "rematerialized/bias", "jitted/scale"}
    assert {path for path, label in flat(labels(model, variables, x)).items() if label == "norm"} == wanted


class InTraining(nn.Module):
    """A norm that only a training call runs."""

    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool = True) -> jax.Array:
        x = nn.Dropout(0.5)(nn.Dense(2)(x), deterministic=deterministic)
        return x if deterministic else nn.LayerNorm(name="aux")(x)


def test_a_norm_that_only_training_runs_is_found() -> None:
    model, x = InTraining(), jnp.ones((1, 3))
    variables = model.init(KEY, x, deterministic=False)
    assert flat(labels(model, variables, x))["aux/scale"] == "norm"


@pytest.mark.parametrize("norm", ALL)
@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_every_norm_of_the_registry_is_one_with_all_its_parameters(library: str, norm: str) -> None:
    x = jax.ShapeDtypeStruct((2, 8, 8, 64), jnp.float32)
    if library == "linen":
        module = norms.get(norm).linen(train=False)
        variables = jax.eval_shape(module.init, KEY, x)
        found = labels(module, variables, x) if "params" in variables else {}
    else:
        module = norms.get(norm).nnx(64, rngs=nnx.Rngs(0))
        found = labels(module)
    assert set(jax.tree.leaves(found)) <= {"norm"}
    kind = norm_kind(module)
    assert norm == "none" or (kind is not None and kind.name == norms.get(norm).name)


@pytest.mark.parametrize("cell", ["SimpleCell", "LSTMCell", "GRUCell"])
def test_norms_inside_cells_are_norms(cell: str) -> None:
    linen = nn.RNN(getattr(normlab.linen, cell)(4, norm="layer"))
    x = jnp.ones((1, 2, 3))
    found = flat(labels(linen, linen.init(KEY, x), x))
    assert {path.split("/")[1] for path, label in found.items() if label == "norm"} >= {"norm_x", "norm_h"}
    assert all((label == "norm") == ("norm_" in path) for path, label in found.items())
    module = getattr(normlab.nnx, cell)(3, 4, norm="layer", rngs=nnx.Rngs(0))
    states = nnx.to_pure_dict(labels(module))
    assert all((label == "norm") == ("norm_" in path) for path, label in flat(states).items())


class OfNNX(nnx.Module):
    """Norms in attributes, lists and dicts; one is shared."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.LayerNorm = nnx.Linear(3, 4, rngs=rngs)
        self.dense = nnx.BatchNorm(4, rngs=rngs)
        self.listed = nnx.List([self.dense, nnx.LayerNorm(4, rngs=rngs)])
        self.held = nnx.data({"norm": nnx.RMSNorm(4, rngs=rngs)})
        self.bn = nnx.WeightNorm(nnx.Linear(4, 4, rngs=rngs), rngs=rngs)
        self.frozen = normlab.nnx.BatchNorm(4, frozen=True, rngs=rngs)
        self.table = nnx.Embed(3, 4, rngs=rngs)
        self.weight = normlab.nnx.Reparametrized(nnx.Linear(4, 4, rngs=rngs), "weight_norm")


def test_nnx_by_type_too() -> None:
    model = OfNNX(nnx.Rngs(0))
    found = labels(model)
    assert jax.tree.structure(found) == jax.tree.structure(nnx.as_pure(nnx.state(model, nnx.Param)))
    listed = {"/".join(map(str, path)) for path, label in nnx.to_flat_state(found) if label == "norm"}
    wanted = {"dense/scale", "dense/bias", "listed/1/scale", "listed/1/bias", "held/norm/scale"}
    assert {path.replace("listed/0", "dense") for path in listed} == wanted
    mask = decay_mask(model, embeddings=False)
    decaying = {"/".join(map(str, path)) for path, said in nnx.to_flat_state(mask) if said}
    assert decaying == {"LayerNorm/kernel", "bn/layer_instance/kernel", "weight/layer/kernel", "weight/g"}
    parameters = norm_parameters(model)
    assert {"frozen/scale", "frozen/bias"} <= set(parameters)
    assert {path.replace("listed/0", "dense") for path in parameters} == wanted | {"frozen/scale", "frozen/bias"}


def test_filters_take_roles_and_kinds() -> None:
    model = OfNNX(nnx.Rngs(0))

    def chosen(**options: tuple[str, ...]) -> set[str]:
        state = nnx.state(model, nnx_filter(model, **options))
        return {"/".join(map(str, path)).replace("listed/0", "dense") for path, _ in nnx.to_flat_state(state)}

    assert chosen(roles=("scale",)) == {"dense/scale", "listed/1/scale", "held/norm/scale", "frozen/scale"}
    assert chosen(roles=("mean", "var"), kinds=("batch",)) == {
        f"{n}/{s}" for n in ("dense", "frozen") for s in ("mean", "var")
    }
    assert chosen(kinds=("layer", "rms")) == {"listed/1/scale", "listed/1/bias", "held/norm/scale"}
    assert chosen(roles=("g",), kinds=("weight",)) == {"weight/g"}
    assert nnx_filter(model) == nnx_filter(model) and hash(nnx_filter(model)) == hash(nnx_filter(model))


def moved(before: object, after: object) -> dict[str, bool]:
    new = flat(after)
    return {path: not np.array_equal(old, new[path]) for path, old in flat(before).items()}


def step(
    model: nn.Module, variables: dict[str, object], x: jax.Array, optimizer: optax.GradientTransformation
) -> dict[str, bool]:
    """Take a step; return which parameters it moved."""
    params = variables["params"]

    def loss(params: object) -> jax.Array:
        y, _ = model.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
        return jnp.sum(y**2)

    updates, _ = optimizer.update(jax.grad(loss)(params), optimizer.init(params), params)
    return moved(params, optax.apply_updates(params, updates))


def test_a_step_moves_what_its_label_allows() -> None:
    model, variables, x = misnamed()
    rates = {"norm": optax.set_to_zero(), "bias": optax.set_to_zero(), "other": optax.sgd(0.1)}
    optimizer = optax.multi_transform(rates, labels(model, variables, x))
    assert {path for path, has in step(model, variables, x, optimizer).items() if not has} == {
        path for path, (label, _) in MISNAMED.items() if label != "other"
    }


def test_weight_decay_alone_shrinks_only_what_decays() -> None:
    model, variables, x = misnamed()
    params = jax.tree.map(jnp.ones_like, variables["params"])
    optimizer = optax.adamw(0.1, weight_decay=0.5, mask=decay_mask(model, variables, x))
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    assert moved(params, optax.apply_updates(params, updates)) == {
        path: decays for path, (_, decays) in MISNAMED.items()
    }


def test_frozen_norms_have_a_label_of_their_own_and_never_decay() -> None:
    model = nn.Sequential([nn.Dense(3), normlab.linen.BatchNorm(use_running_average=False, frozen=True)])
    x = jnp.ones((2, 3))
    variables = model.init(KEY, x)
    assert labels(model, variables, x)["layers_1"] == {"scale": "frozen", "bias": "frozen"}
    assert decay_mask(model, variables, x, norms=True)["layers_1"] == {"scale": False, "bias": False}


def test_nnx_optimizers_take_both() -> None:
    model = OfNNX(nnx.Rngs(0))
    model.dense.scale[...] = jnp.full(4, 2.0)
    zeros = jax.tree.map(jnp.zeros_like, nnx.state(model, nnx.Param))
    decayed = optax.adamw(0.1, weight_decay=0.5, mask=decay_mask(model))
    kernel = model.LayerNorm.kernel[...]
    nnx.Optimizer(model, decayed, wrt=nnx.Param).update(model, zeros)
    assert jnp.array_equal(model.dense.scale[...], jnp.full(4, 2.0))
    assert not jnp.array_equal(model.LayerNorm.kernel[...], kernel)
    rates = {"norm": optax.sgd(0.5), "bias": optax.set_to_zero(), "other": optax.set_to_zero()}
    ones = jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param))
    kernel = model.LayerNorm.kernel[...]
    nnx.Optimizer(model, optax.multi_transform(rates, labels(model)), wrt=nnx.Param).update(model, ones)
    assert jnp.array_equal(model.dense.scale[...], jnp.full(4, 1.5))
    assert jnp.array_equal(model.LayerNorm.kernel[...], kernel)


REFUSALS = [
    (
        lambda: labels(nn.Dense(1).apply, {}),
        "Expected a Flax module, got a function. Pass the module; the call is built from it.",
    ),
    (
        lambda: decay_mask(nn.Dense(1)),
        "Expected the variables of a Linen model, got None. Give those of `model.init`, then the inputs.",
    ),
    (
        lambda: nnx_filter(nn.Dense(1)),
        "Expected a module of NNX, got a value of type `Dense`. Linen models have `norm_parameters` and `labels`.",
    ),
    (
        lambda: labels(
            nn.Dense(1),
            {"params": {"head": {"kernel": 1.0}, "kernel": jnp.ones((3, 1)), "bias": jnp.ones(1)}},
            jnp.ones((1, 3)),
        ),
        "Expected a call that runs every module with parameters, got none of `head`. Give the inputs of such a call.",
    ),
]


@pytest.mark.parametrize(("call", "sentence"), REFUSALS)
def test_refusals(call: Callable[[], object], sentence: str) -> None:
    with pytest.raises(BadInput) as caught:
        call()
    assert str(caught.value) == sentence
