"""Conversions of norms: the table of what is carried, paths, modes, metadata, and what is refused."""

import functools
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import FrozenDict, freeze
from flax.training.train_state import TrainState
from flax.traverse_util import flatten_dict

import normlab.linen
import normlab.nnx
from normlab import norms
from normlab.errors import BadInput
from normlab.models import MLP
from normlab.norms import Norm
from normlab.tools import sites
from normlab.tools.convert import Converted, convert, convert_state

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (8, 6))
FORMS = ("normlab", "flax", "batch:axis_name=data", "batch:ghost_batch_size=4", "batch:frozen=True")
"""Forms of batch norm between which everything is carried."""


class Net(nn.Module):
    """Two batch norms; the second has no bias and starts at 0."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-3)(nn.Dense(8)(x)))
        norm = nn.BatchNorm(
            use_running_average=not train, use_bias=False, scale_init=nn.initializers.zeros, name="last"
        )
        return norm(nn.Dense(8)(x))

    def double(self, x: jax.Array) -> jax.Array:
        return 2 * x


class OfNNX(nnx.Module):
    """A shared norm, one in a list, one in a dict, one in a tuple."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.dense = nnx.Linear(6, 8, rngs=rngs)
        self.bn = nnx.BatchNorm(8, momentum=0.9, epsilon=1e-3, rngs=rngs)
        self.listed = nnx.List([self.bn, nnx.BatchNorm(8, use_bias=False, rngs=rngs)])
        self.held = nnx.data({"norm": nnx.BatchNorm(8, rngs=rngs)})
        self.pair = nnx.data((nnx.BatchNorm(8, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.bn(self.dense(x)))
        for norm in (*self.listed, self.held["norm"], self.pair[0]):
            x = norm(x)
        return x


def filled(tree: Any) -> Any:
    """Fill a tree with positive numbers, apart for each leaf."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    new = [jax.random.uniform(key, leaf.shape, leaf.dtype, 0.5, 1.5) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, new)


@functools.cache
def net() -> tuple[Net, dict[str, Any]]:
    return Net(), filled(Net().init(KEY, X))


@functools.cache
def one() -> tuple[nn.Module, dict[str, Any]]:
    model = nn.Sequential([nn.Dense(4), nn.BatchNorm(use_running_average=True, momentum=0.9, epsilon=1e-3)])
    return model, filled(model.init(KEY, X))


def of_nnx() -> OfNNX:
    model = OfNNX(nnx.Rngs(0))
    nnx.update(model, filled(nnx.state(model)))
    model.eval()
    return model


def flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    return flatten_dict(dict(tree), sep="/")


def out(converted: Converted[Any]) -> jax.Array:
    if isinstance(converted.model, nnx.Module):
        return converted.model(X)
    return converted.model.apply(converted.variables, X)


def same(one: object, other: object) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return jax.tree.structure(one) == jax.tree.structure(other) and all(np.array_equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("first", FORMS)
@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_forms_of_batch_norm_give_the_same_bits_at_evaluation(library: str, first: str) -> None:
    model, variables = one() if library == "linen" else (of_nnx(), None)
    start = convert(model, variables, first, args=(X,))
    expected = model(X) if isinstance(model, nnx.Module) else model.apply(variables, X)
    assert np.array_equal(out(start), expected)
    for second in FORMS:
        if second == "flax" and ("ghost" in first or "frozen" in first):
            continue
        then = convert(start.model, start.variables, second, args=(X,))
        assert np.array_equal(out(then), expected)
        assert not any(row.fresh or row.dropped for row in then.report)
        assert then.variables is None or same(then.variables, variables)


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_batch_renorm_and_back(library: str) -> None:
    model, variables = net() if library == "linen" else (of_nnx(), None)
    renorm = convert(model, variables, "batch_renorm", args=(X,))
    expected = model(X) if isinstance(model, nnx.Module) else model.apply(variables, X)
    np.testing.assert_allclose(out(renorm), expected, rtol=1e-6, atol=2e-6)
    assert {name for row in renorm.report for name in row.fresh} == {"step"}
    assert all(set(row.carried) >= {"scale", "mean", "std"} for row in renorm.report)
    assert all("r_max=1, d_max=0" in row.notes[0] for row in renorm.report)
    back = convert(renorm.model, renorm.variables, "batch", args=(X,))
    np.testing.assert_allclose(out(back), expected, rtol=1e-6, atol=2e-6)
    assert {name for row in back.report for name in row.dropped} == {"step"} and not back.report[0].notes


def test_the_deviation_of_batch_renorm_has_epsilon_inside() -> None:
    model, variables = net()
    stats = convert(model, variables, "batch_renorm", args=(X,)).variables["batch_stats"]
    old = variables["batch_stats"]
    np.testing.assert_allclose(stats["BatchNorm_0"]["std"] ** 2, old["BatchNorm_0"]["var"] + 1e-3, rtol=1e-6)
    np.testing.assert_allclose(stats["last"]["std"] ** 2, old["last"]["var"] + 1e-5, rtol=1e-6)
    assert stats["last"]["step"].dtype == jnp.int32 and int(stats["last"]["step"]) == 0


def test_a_deviation_below_the_root_of_epsilon_gives_variance_0_and_says_so() -> None:
    model = normlab.linen.BatchRenorm(use_running_average=True, epsilon=0.5)
    variables = model.init(KEY, X)
    variables["batch_stats"]["std"] = jnp.full(6, 0.5)
    back = convert(model, variables, "batch", args=(X,))
    assert np.array_equal(back.variables["batch_stats"]["var"], np.zeros(6))
    assert back.report[0].notes == ("A deviation was smaller than the root of epsilon: its variance is 0.",)


@pytest.mark.parametrize("library", ["linen", "nnx"])
@pytest.mark.parametrize("to", ["group:num_groups=4", "layer", "rms"])
def test_other_kinds_start_anew_and_keep_scale_and_bias_if_asked(library: str, to: str) -> None:
    model, variables = net() if library == "linen" else (of_nnx(), None)
    fresh = convert(model, variables, to, args=(X,), fresh="init")
    assert all(not row.carried and set(row.dropped) >= {"mean", "var"} for row in fresh.report)
    new = _norms_of(fresh)
    assert all(np.array_equal(array, np.full(8, path.endswith("scale"))) for path, array in new.items())
    old = _norms_of(Converted(model, variables, fresh.report))
    kept = convert(model, variables, to, args=(X,), keep=("affine", "epsilon"))
    assert all(np.array_equal(array, old[path]) for path, array in _norms_of(kept).items())
    back = convert(kept.model, kept.variables, "batch", args=(X,), keep=("affine",), fresh="init")
    assert all({"mean", "var"} <= set(row.fresh) for row in back.report)
    assert all(row.notes == (row.notes[0],) and "run `tools.precise`" in row.notes[0] for row in back.report)
    assert np.isfinite(out(back)).all()


def _norms_of(converted: Converted[Any]) -> dict[str, jax.Array]:
    paths = [row.path for row in converted.report]
    if isinstance(converted.model, nnx.Module):
        state = nnx.to_flat_state(nnx.state(converted.model, nnx.Param))
        arrays = {"/".join(map(str, path)): leaf[...] for path, leaf in state}
    else:
        arrays = flat(converted.variables["params"])
    return {path: array for path, array in arrays.items() if path.rpartition("/")[0] in paths}


def test_instance_norm_needs_positions_and_keeps_the_features() -> None:
    x = jnp.ones((2, 3, 4, 5))
    model = nn.BatchNorm(use_running_average=True, axis=1)
    converted = convert(model, model.init(KEY, x), "instance", args=(x,), keep=("affine",))
    assert converted.model.apply(converted.variables, x).shape == x.shape
    assert sites(converted.model, converted.variables, x)[0].module.feature_axes == -3
    layer = convert(model, model.init(KEY, x), "layer", args=(x,), keep=("affine",))
    module = sites(layer.model, layer.variables, x)[0].module
    assert (module.reduction_axes, module.feature_axes, module.epsilon) == (-3, -3, 1e-6)


def module_at(converted: Converted[Any], path: str) -> nn.Module:
    return sites(converted.model, converted.variables, X).by_path[path].module


def test_options_are_kept_unless_they_are_not_named() -> None:
    model, variables = net()
    kept = module_at(convert(model, variables, "normlab", args=(X,)), "BatchNorm_0")
    assert isinstance(kept, normlab.linen.BatchNorm)
    assert (kept.momentum, kept.epsilon, kept.use_fast_variance) == (0.9, 1e-3, False)
    last = module_at(convert(model, variables, "batch_renorm", args=(X,)), "last")
    assert isinstance(last, normlab.linen.BatchRenorm)
    assert last.use_bias is False and last.scale_init is nn.initializers.zeros
    plain = module_at(convert(model, variables, "normlab", args=(X,), keep=()), "BatchNorm_0")
    assert (plain.momentum, plain.epsilon) == (0.99, 1e-5)
    asked = module_at(convert(model, variables, "batch:epsilon=0.5", args=(X,)), "BatchNorm_0")
    assert (asked.momentum, asked.epsilon) == (0.9, 0.5)
    group = module_at(convert(model, variables, "group:num_groups=2", args=(X,), fresh="init"), "BatchNorm_0")
    assert (group.epsilon, group.num_groups) == (1e-3, 2)
    synchronized = module_at(convert(model, variables, "batch:axis_name=data", args=(X,)), "last")
    assert synchronized.axis_name == "data"


def test_paths_methods_fields_and_table_are_those_of_the_model() -> None:
    model, variables = net()
    converted = convert(model, variables, "batch_renorm", args=(X,))
    made = converted.model.init(KEY, X)
    assert flat(made).keys() == flat(converted.variables).keys()
    kernels = [tree["params"]["Dense_0"]["kernel"] for tree in (made, Net().init(KEY, X))]
    assert np.array_equal(*kernels)
    assert np.array_equal(converted.model.apply(converted.variables, X, method="double"), 2 * X)
    assert np.array_equal(converted.model.apply(converted.variables, X, method=Net.double), 2 * X)
    assert np.array_equal(converted.model.bind(converted.variables).double(X), 2 * X)
    assert "BatchNorm_0" in converted.model.tabulate(KEY, X, console_kwargs={"width": 150})
    assert pickle.loads(pickle.dumps(converted.model)).init(KEY, X).keys() == made.keys()
    params = converted.variables["params"]
    state = TrainState.create(apply_fn=converted.model.apply, params=params, tx=optax.sgd(0.1))
    stats = {"batch_stats": converted.variables["batch_stats"]}
    y = jax.jit(lambda state: state.apply_fn({"params": state.params, **stats}, X))(state)
    np.testing.assert_allclose(y, out(converted), rtol=1e-5, atol=1e-5)
    with pytest.raises(BadInput, match=r"^Expected a model with variables, got one without. Call it by `apply`"):
        converted.model.double(X)
    with pytest.raises(AttributeError):
        _ = converted.model.unheard_of


def test_training_updates_the_statistics_of_the_new_norm() -> None:
    model, variables = net()
    converted = convert(model, variables, "normlab", args=(X,))
    y, after = converted.model.apply(converted.variables, X, train=True, mutable=["batch_stats"])
    expected, wanted = model.apply(variables, X, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(y, expected, atol=1e-5)
    for path, value in flat(after["batch_stats"]).items():
        np.testing.assert_allclose(value, flat(wanted["batch_stats"])[path], rtol=1e-5)


def test_conversions_of_conversions_are_one_and_inside_a_larger_model() -> None:
    model, variables = net()
    once = convert(model, variables, "batch_renorm", args=(X,), where="last")
    twice = convert(once.model, once.variables, "batch:ghost_batch_size=4", args=(X,))
    assert {type(module_at(twice, path)) for path in ("BatchNorm_0", "last")} == {normlab.linen.BatchNorm}
    assert type(twice.model) is type(once.model) and twice.model.plan.model == model

    class Larger(nn.Module):
        inner: nn.Module

        @nn.compact
        def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
            return self.inner(x, train=train)

    larger = Larger(twice.model)
    inside = {collection: {"inner": tree} for collection, tree in twice.variables.items()}
    assert np.array_equal(larger.apply(inside, X), out(twice))
    again = convert(larger, inside, "batch_renorm", args=(X,))
    kinds = {site.path: site.kind for site in sites(again.model, again.variables, X)}
    assert kinds == {"inner/BatchNorm_0": "batch_renorm", "inner/last": "batch_renorm"}
    assert {site.calls for site in sites(again.model, again.variables, X)} == {1}
    np.testing.assert_allclose(out(again), out(twice), rtol=1e-6, atol=2e-6)


class Lifted(nn.Module):
    """Norms under lifted transforms, and one that is called twice."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        axes = {"params": 0, "batch_stats": 0}
        block = nn.scan(Block, variable_axes=axes, split_rngs={"params": True}, length=2)
        x, _ = block(train, name="scanned")(x, None)
        x = nn.remat(nn.BatchNorm)(name="rematerialized", use_running_average=not train)(x)
        shared = nn.jit(nn.BatchNorm)(name="shared", use_running_average=not train)
        return shared(shared(x))


class Block(nn.Module):
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return nn.BatchNorm(use_running_average=not self.train)(nn.Dense(6)(x)), None


def test_lifted_and_shared_norms_of_linen() -> None:
    model = Lifted()
    variables = filled(model.init(KEY, X))
    expected = model.apply(variables, X)  # and `nn.jit` has it in its cache
    assert np.array_equal(out(convert(model, variables, "normlab", args=(X,))), expected)
    renorm = convert(model, variables, "batch_renorm", args=(X,))
    np.testing.assert_allclose(out(renorm), expected, rtol=1e-5, atol=1e-5)
    stats = flat(renorm.variables["batch_stats"])
    assert stats["scanned/BatchNorm_0/std"].shape == (2, 6) and stats["scanned/BatchNorm_0/step"].shape == (2,)
    layer = convert(model, variables, "layer", args=(X,), fresh="init")
    assert not np.array_equal(out(layer), expected) and "batch_stats" not in flat(layer.variables)
    np.testing.assert_allclose(out(layer).std(-1), 1, rtol=1e-3)
    assert jax.jit(layer.model.apply)(layer.variables, X).shape == X.shape


def test_given_models_and_variables_stay_as_they_are() -> None:
    model, variables = net()
    before = jax.tree.map(np.array, variables)
    for to in (*FORMS, "batch_renorm", "layer"):
        convert(model, variables, to, args=(X,), fresh="init")
    assert same(before, variables)
    module = of_nnx()
    state, graph = jax.tree.map(np.array, nnx.state(module)), nnx.graphdef(module)
    for to in (*FORMS, "batch_renorm", "layer"):
        convert(module, None, to, fresh="init")
    assert same(state, nnx.state(module)) and nnx.graphdef(module) == graph


def test_frozen_dicts_and_boxes_stay() -> None:
    boxed = nn.with_partitioning(nn.initializers.ones, ("model",))
    model = nn.BatchNorm(use_running_average=True, scale_init=boxed)
    variables = freeze(model.init(KEY, X))
    converted = convert(model, variables, "batch_renorm", args=(X,))
    assert isinstance(converted.variables, FrozenDict)
    for to in ("batch_renorm", "layer"):
        scale = convert(model, variables, to, args=(X,), fresh="init").variables["params"]["scale"]
        assert isinstance(scale, nn.Partitioned) and scale.names == ("model",)
    assert isinstance(converted.model.init(KEY, X)["params"]["scale"], nn.Partitioned)


def test_nnx_shares_what_was_shared_and_keeps_mode_types_and_metadata() -> None:
    model = of_nnx()
    model.bn.scale.set_metadata("note", "kept")
    for to in ("normlab", "batch_renorm", "layer"):
        converted = convert(model, None, to, fresh="init")
        assert isinstance(converted.model, OfNNX)
        assert converted.model.bn is converted.model.listed[0] and converted.model.bn is not model.bn
        assert converted.model.bn.scale.get_metadata()["note"] == "kept"
        assert [row.how for row in converted.report] == ["module"] * 4
        kinds = {type(norm).__module__ for norm in (converted.model.held["norm"], converted.model.pair[0])}
        assert all(kind.startswith("normlab.nnx") for kind in kinds)
    assert convert(model, None, "normlab").model.bn.use_running_average is True
    layers = convert(model, None, "layer", where=["held/*", "pair/*"], fresh="init").model
    back = convert(layers, None, "batch", where="held/norm", fresh="init").model
    assert back.held["norm"].use_running_average is True
    back.train()
    assert back.held["norm"].use_running_average is False
    assert isinstance(
        convert(nnx.LayerNorm(4, rngs=nnx.Rngs(0)), None, "rms", keep=("affine",)).model, normlab.nnx.RMSNorm
    )


def test_stacked_norms_of_nnx_stay_stacked() -> None:
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(key: jax.Array) -> nnx.BatchNorm:
        return nnx.BatchNorm(6, rngs=nnx.Rngs(key))

    stacked = make(jax.random.split(KEY, 3))
    converted = convert(stacked, None, "batch_renorm").model
    assert converted.std.shape == (3, 6) and converted.step.shape == (3,)
    assert convert(stacked, None, "layer", fresh="init").model.scale.shape == (3, 6)


def test_group_norms_of_flax_and_ours() -> None:
    model = nnx.Sequential(nnx.GroupNorm(6, num_groups=3, rngs=nnx.Rngs(0)))
    ours = convert(model, None, "normlab").model
    assert isinstance(ours.layers[0], normlab.nnx.GroupNorm) and ours.layers[0].num_groups == 3
    np.testing.assert_allclose(ours(X), model(X), atol=1e-4)
    theirs = convert(ours, None, "flax").model
    assert isinstance(theirs.layers[0], nnx.GroupNorm) and theirs.layers[0].num_groups == 3


class Held(nn.Module):
    """A model that holds its norm in a field."""

    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = self.norm(use_running_average=not train, name="first")(nn.Dense(6)(x))
        return self.norm(use_running_average=not train, name="second")(x)


def test_a_field_that_holds_the_norm_is_preferred() -> None:
    model = MLP(norms.get("batch:momentum=0.5"), hidden=(8, 8))
    variables = filled(model.init(KEY, X, train=False))
    converted = convert(model, variables, "batch:ghost_batch_size=4", args=(X,))
    assert isinstance(converted.model, MLP) and isinstance(converted.model.norm, Norm)
    assert converted.model.norm == norms.get("batch:momentum=0.5,ghost_batch_size=4")
    assert {row.how for row in converted.report} == {"field"}
    layer = convert(model, variables, "layer", args=(X,), fresh="init")
    assert isinstance(layer.model, MLP) and layer.model.norm.name == "layer"
    some = convert(model, variables, "layer", args=(X,), fresh="init", where=converted.report[0].path)
    assert {row.how for row in some.report} == {"wrapper"}


@pytest.mark.parametrize("norm", [nn.BatchNorm, functools.partial(nn.BatchNorm, momentum=0.5)])
def test_a_class_in_a_field_is_preferred(norm: Callable[..., nn.Module]) -> None:
    model = Held(norm)
    variables = filled(model.init(KEY, X))
    converted = convert(model, variables, "batch_renorm:r_max=1.0,d_max=0.0", args=(X,))
    assert isinstance(converted.model, Held) and {row.how for row in converted.report} == {"field"}
    module = module_at(converted, "second")
    assert isinstance(module, normlab.linen.BatchRenorm) and module.r_max == 1.0
    assert module.momentum == (0.99 if norm is nn.BatchNorm else 0.5)
    layer = convert(model, variables, "layer", args=(X,), fresh="init")  # which takes no mode
    assert {row.how for row in layer.report} == {"wrapper"}


class Transformer(nn.Module):
    """A layer norm, whose mode nothing says unless `told`."""

    told: bool

    @nn.compact
    def __call__(self, x: jax.Array, *, deterministic: bool = True) -> jax.Array:
        return _Told(name="block")(x, deterministic) if self.told else nn.LayerNorm(name="ln_1")(x)


class _Told(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, deterministic: bool) -> jax.Array:
        return nn.LayerNorm(name="ln_1")(x)


class Silent(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.LayerNorm(name="ln_1")(x)


@pytest.mark.parametrize("told", [False, True])
def test_the_mode_of_a_new_batch_norm_is_that_of_the_call_around_it(told: bool) -> None:
    model = Transformer(told)
    variables = model.init(KEY, X)
    converted = convert(model, variables, "batch", args=(X,), fresh="init")
    _, evaluated = converted.model.apply(converted.variables, X, mutable=["batch_stats"])
    assert same(evaluated["batch_stats"], converted.variables["batch_stats"])
    _, trained = converted.model.apply(converted.variables, X, deterministic=False, mutable=["batch_stats"])
    assert not same(trained["batch_stats"], converted.variables["batch_stats"])


class NormAct(nn.BatchNorm):
    """Batch norm with its activation."""

    @nn.compact
    def __call__(self, x: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        return nn.relu(super().__call__(x, *args, **kwargs))


class NormActNNX(nnx.BatchNorm):
    def __call__(self, x: jax.Array, *args: Any, **kwargs: Any) -> jax.Array:
        return nnx.relu(super().__call__(x, *args, **kwargs))


class WithNormAct(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return NormAct(use_running_average=True, name="bn2")(x)


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(BadInput) as caught:
        call()
    return str(caught.value)


def test_a_norm_that_does_more_is_replaced_only_by_name() -> None:
    sentence = (
        "Expected plain batch norms, `bn2` is a `{}`, which does more in `__call__`. Name it in `where=` to replace it "
        "all the same."
    )
    model = WithNormAct()
    variables = model.init(KEY, X)
    assert refused(lambda: convert(model, variables, "normlab", args=(X,))) == sentence.format("NormAct")
    for late in ({"*": "normlab"}, {"*": "normlab", "bn*": "normlab"}):
        assert refused(lambda to=late: convert(model, variables, to, args=(X,))) == sentence.format("NormAct")
    named = convert(model, variables, {"bn*": "normlab", "*": "normlab"}, args=(X,))
    assert named.report[0].path == "bn2"
    named = convert(model, variables, "normlab", args=(X,), where="bn2")
    assert float(named.model.apply(named.variables, X).min()) < 0
    held = nnx.Dict({"bn2": NormActNNX(6, rngs=nnx.Rngs(0))})
    assert refused(lambda: convert(held, None, "normlab")) == sentence.format("NormActNNX")
    assert isinstance(convert(held, None, "normlab", where="bn*").model["bn2"], normlab.nnx.BatchNorm)


def test_a_place_without_a_norm_is_one_if_it_is_named() -> None:
    model = nn.Sequential([nn.Dense(4), normlab.linen.Identity(), nn.LayerNorm()])
    variables = model.init(KEY, X)
    assert [row.path for row in convert(model, variables, "normlab", args=(X,)).report] == ["layers_2"]
    named = convert(model, variables, "rms", args=(X,), where="layers_1", fresh="init")
    assert np.array_equal(named.variables["params"]["layers_1"]["scale"], np.ones(4))
    none = convert(named.model, named.variables, "none", args=(X,), where="layers_1")
    assert np.array_equal(out(none), model.apply(variables, X)) and none.report[0].dropped == ("scale",)


def test_norms_of_domains_start_anew() -> None:
    module = normlab.nnx.DomainBatchNorm(6, num_domains=2, rngs=nnx.Rngs(0))
    converted = convert(module, None, "batch", fresh="init").model
    assert converted.mean.shape == converted.scale.shape == (6,)
    assert convert(converted, None, "domain_batch:num_domains=2", fresh="init").model.mean.shape == (2, 6)


def linen(model: nn.Module, to: Any, x: jax.Array = X, **options: Any) -> Callable[[], object]:
    return lambda: convert(model, model.init(KEY, x), to, args=(x,), **options)


BATCH = nn.BatchNorm(use_running_average=True)
REFUSALS = [
    (
        linen(BATCH, "group:num_groups=4"),
        "Expected `num_groups` to divide the 6 features of ``, got 4. Choose 3 or 6, as in 'group:num_groups=3'.",
    ),
    (
        lambda: convert(nnx.Sequential(nnx.BatchNorm(48, rngs=nnx.Rngs(0))), None, "group", fresh="init"),
        "Expected `num_groups` to divide the 48 features of `layers/0`, got 32. Choose 24 or 48, as in "
        "'group:num_groups=24'.",
    ),
    (
        linen(nn.Sequential([BATCH]), "rms"),
        "Expected variables that `rms` takes over from `batch`, got none for scale of `layers_0`. Pass `fresh='init'` "
        "to start anew; `keep=('affine', ...)` carries scale and bias.",
    ),
    (
        linen(nn.Dense(2), "batch"),
        "Expected a model with norms of activations to convert, got none. Name others in `where=`.",
    ),
    (
        linen(BATCH, 3),
        "Expected `to` to be a norm, its string, or a mapping from paths to norms, got 3. Write one such as 'group'.",
    ),
    (
        linen(normlab.linen.BatchNorm(use_running_average=True, ghost_batch_size=2), "flax"),
        "Expected options that Flax has, `` has `ghost_batch_size=2`. Leave it out by `where=`.",
    ),
    (
        linen(normlab.linen.BatchNorm(use_running_average=True, momentum=None), "flax"),
        "Expected options that Flax has, `` has `momentum=None`. Leave it out by `where=`.",
    ),
    (
        linen(nn.Sequential([normlab.linen.DyT()]), "flax"),
        "Expected norms that Flax has, `layers_0` is dynamic tanh. Convert it to another, or leave it out by `where=`.",
    ),
    (
        linen(Silent(), "batch", keep=("affine",), fresh="init"),
        "Expected to know whether `ln_1` trains, got no `train` or the like in the calls around it. Let the call of "
        "the model or of a block take `train`.",
    ),
    (
        linen(BATCH, "layer", keep=("affine", "gain")),
        "Expected `keep` to be a list of names among epsilon, momentum, axis_name, dtype, affine, got `gain`. Choose "
        "some of them.",
    ),
    (linen(BATCH, "layer", fresh="yes"), "Expected `fresh` to be `raise` or `init`, got `yes`. Choose one of them."),
    (
        lambda: convert(BATCH, BATCH.init(KEY, X), "layer"),
        "Expected the inputs of a call of a Linen model, got (). Give them, as in `args=(x,)`; only shapes count.",
    ),
]


@pytest.mark.parametrize(("call", "sentence"), REFUSALS)
def test_refusals(call: Callable[[], object], sentence: str) -> None:
    assert refused(call) == sentence


def test_a_mapping_names_norms_and_arrays_of_the_call_are_not_lost() -> None:
    model, variables = net()
    converted = convert(model, variables, {"last": "batch_renorm", "*": "normlab"}, args=(X,))
    after = {row.path: row.after for row in converted.report}
    assert after == {"last": "batch_renorm", "BatchNorm_0": "batch"}

    class Masked(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return normlab.linen.LayerNorm(name="ln")(x, scale=jnp.ones((8, 6)))

    assert refused(lambda: convert(Masked(), Masked().init(KEY, X), "flax", args=(X,))) == (
        "Expected norms that take `scale` of their calls, `ln` would be a `LayerNorm`, which does not. Leave it out by "
        "`where=`."
    )


@pytest.mark.parametrize("make", ["adam", "multi"])
def test_moments_of_fresh_parameters_are_dropped(make: str) -> None:
    model, variables = net()
    params = variables["params"]
    if make == "adam":
        optimizer = optax.adam(0.1)
    else:
        labels = jax.tree.map(lambda _: "a", params)
        labels["last"] = {"scale": "b"}
        optimizer = optax.multi_transform({"a": optax.adam(0.1), "b": optax.set_to_zero()}, labels)
    _, state = optimizer.update(params, optimizer.init(params), params)
    converted = convert(model, variables, "rms", args=(X,), fresh="init", where="BatchNorm_0")
    new = convert_state(state, converted.report)
    mu = (new[0] if make == "adam" else new.inner_states["a"].inner_state[0]).mu
    assert mu["BatchNorm_0"].keys() == {"scale"} and not mu["BatchNorm_0"]["scale"].any()
    assert mu["Dense_0"]["kernel"].any()
    if make == "adam":
        updates, _ = optimizer.update(converted.variables["params"], new, converted.variables["params"])
        assert jax.tree.structure(updates) == jax.tree.structure(converted.variables["params"])
        layers = convert(model, variables, "layer:use_bias=True", args=(X,), fresh="init")
        moments = convert_state(state, layers.report)[0].mu
        assert jax.tree.structure(moments) == jax.tree.structure(layers.variables["params"])


def test_moments_of_nnx_too() -> None:
    model = of_nnx()
    optimizer = nnx.Optimizer(model, optax.adam(0.1), wrt=nnx.Param)
    optimizer.update(model, jax.tree.map(jnp.ones_like, nnx.state(model, nnx.Param)))
    converted = convert(model, None, "rms", where=_shared(model), fresh="init")
    new = convert_state(optimizer.opt_state, converted.report)
    moments = dict(nnx.to_flat_state(new[0].mu))
    path = tuple(_shared(model).split("/"))
    fresh = [leaf for at, leaf in moments.items() if "/".join(map(str, at)) == f"{'/'.join(path)}/scale"]
    assert len(fresh) == 1 and not fresh[0][...].any()
    assert {at for at in moments} == {at for at, _ in nnx.to_flat_state(nnx.state(converted.model, nnx.Param))}


def _shared(model: OfNNX) -> str:
    """Return the path of the shared norm."""
    return next("/".join(map(str, path)) for path, node in nnx.iter_graph(model) if node is model.bn)
