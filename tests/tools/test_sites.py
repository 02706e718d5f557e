"""The norms of a model are found with their neighbours, under every transform."""

import json

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import freeze

import normlab.linen
import normlab.nnx
from normlab import models, norms
from normlab.errors import BadInput
from normlab.models import nnx as nnx_models
from normlab.tools import Site, Source, sites
from tests.support import normed
from tests.support.registered import ALL

IMAGES = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)


def only(found) -> Site:
    (site,) = found
    return site


MODES = [(norm, train) for norm in normed.NORMS for train in (False, True) if "batch" in norm or not train]


@pytest.mark.parametrize("transform", normed.TRANSFORMS)
@pytest.mark.parametrize(("norm", "train"), MODES)
def test_a_norm_of_linen_is_found_under_every_transform(norm, transform, train):
    expected, (model, variables) = normed.TRANSFORMS[transform], normed.abstract(norm, transform)
    library, kind = norm.split("-")

    site = only(sites(model, variables, normed.inputs(), train=train))

    assert (site.path, site.kind, site.library) == (expected.norm, kind, library)
    assert (site.calls, site.repeats, site.lifted) == (expected.calls, expected.repeats, expected.lifted)
    assert site.shape == (normed.EXAMPLES, normed.FEATURES) and site.features == (1,) and site.dtype == jnp.float32
    assert site.count == (normed.EXAMPLES if kind == "batch" else normed.FEATURES)
    assert site.before == Source("linear", expected.norm.rpartition("/")[0] + "/dense", "Dense") and site.only_use
    assert site.running == (None if kind == "layer" else not train)
    roles = {"scale": "params", "bias": "params"} | (
        {"mean": "batch_stats", "var": "batch_stats"} if kind == "batch" else {}
    )
    assert site.variables == {role: f"{collection}/{expected.norm}/{role}" for role, collection in roles.items()}
    assert site.module.scope is None and type(site.module).__name__ in ("BatchNorm", "LayerNorm")


@pytest.mark.parametrize("transform", normed.NNX_TRANSFORMS)
@pytest.mark.parametrize(("norm", "train"), MODES)
def test_a_norm_of_nnx_is_found_under_every_transform(norm, transform, train):
    expected, (library, kind) = normed.NNX_TRANSFORMS[transform], norm.split("-")
    model = nnx.eval_shape(lambda: normed.NNXModel(norm, transform, nnx.Rngs(0)))

    found = sites(model, None, normed.inputs(), train=train)

    site, linear = found[0], expected.norm.replace("norm", "linear").replace("layers/1", "layers/0")
    assert len(found) == (2 if transform == "list" else 1)
    assert (site.path, site.kind, site.library) == (expected.norm, kind, library)
    assert (site.calls, site.repeats, site.lifted) == (expected.calls, expected.repeats, expected.lifted)
    assert site.before == Source("linear", linear, "Linear") and site.only_use
    assert site.running == (None if kind == "layer" else not train)
    roles = ["scale", "bias", *(["mean", "var"] if kind == "batch" else [])]
    assert site.variables == {role: f"{expected.norm}/{role}" for role in site.variables}
    assert sorted(site.variables) == sorted(roles)
    assert site.module is dict((("/".join(map(str, p)), m) for p, m in nnx.iter_graph(model)))[expected.norm]


@pytest.mark.parametrize(("placement", "before"), [("post", 0), ("pre", 9)])
def test_all_norms_of_a_residual_network_are_found(placement, before):
    model = models.ResNet(norms.get("batch"), placement=placement)
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((2, 32, 32, 3)), train=False))

    found = sites(model, variables, IMAGES)

    assert len(found) == 19 and all(site.kind == "batch" and site.library == "normlab" for site in found)
    assert [site.before.kind for site in found].count("operation") == before
    assert [site.before.kind for site in found].count("linear") == 19 - before
    assert all(site.only_use for site in found if site.before.kind == "linear")
    if placement == "post":
        assert {site.path: site.before.path for site in found} == {
            "norm_stem": "stem",
            **{f"block_{i}/norm_{j}": f"block_{i}/conv_{j}" for i in range(9) for j in range(2)},
        }
        assert all(site.count == 2 * site.shape[1] ** 2 for site in found)


def test_all_norms_of_a_residual_network_of_nnx_are_found():
    model = nnx.eval_shape(lambda: nnx_models.ResNet(norms.get("batch"), rngs=nnx.Rngs(0)))
    found = sites(model, None, IMAGES)
    assert len(found) == 19 and all(site.before.kind == "linear" for site in found)
    assert found.by_path["block_3/norm_1"].before.path == "block_3/conv_1"


@pytest.mark.parametrize("name", ALL)
def test_each_kind_of_the_registry_has_its_name(name):
    x = jnp.ones((4, 8, 8, 64))
    model = nn.Sequential([nn.Dense(64), norms.get(name).linen(train=False), nn.Dense(2)])
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), x))
    assert only(sites(model, variables, x)).kind == norms.get(name).name
    twin = nnx.eval_shape(lambda: nnx.Sequential(norms.get(name).nnx(64, rngs=nnx.Rngs(0)), nnx.relu))
    assert only(sites(twin, None, x)).kind == norms.get(name).name


class Net(nn.Module):
    """A network by a function of itself and its input, to write a case in a line."""

    call: object

    @nn.compact
    def __call__(self, x, train=False):
        return self.call(x)


def found_in(call, x=None, **options):
    model, x = Net(call), normed.inputs() if x is None else x
    return sites(
        model, jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(x.shape, x.dtype))), x, **options
    )


def batch(**options):
    return nn.BatchNorm(use_running_average=True, **options)


def test_casts_and_calls_are_passed_on_the_way_to_the_layer_before():
    def call(x):
        y = jax.jit(lambda y: jax.lax.optimization_barrier(y.astype(jnp.bfloat16)))(nn.Dense(4, name="dense")(x))
        return batch()(jax.checkpoint(lambda y: y.astype(jnp.float32))(y))

    site = only(found_in(call))
    assert site.before == Source("linear", "dense", "Dense") and site.only_use


@pytest.mark.parametrize(
    ("between", "kind", "operation"),
    [
        (nn.relu, "operation", "max"),
        (lambda x: x + 1, "operation", "add"),
        (lambda x: x.T.T, "operation", "transpose"),
        (lambda x: x.astype(int).astype(float), "operation", "convert_element_type"),
        (lambda x: jax.lax.cond(x.sum() > 0, lambda x: x, lambda x: -x, x), "unknown", "cond"),
        (lambda x: jax.lax.fori_loop(0, 2, lambda _, x: x * 2, x), "unknown", "scan"),
        (lambda x: jax.lax.while_loop(lambda x: x.sum() > 0, lambda x: x - 1, x), "unknown", "while"),
    ],
)
def test_an_operation_between_layer_and_norm_is_their_neighbour(between, kind, operation):
    first, second = found_in(lambda x: nn.LayerNorm()(between(batch()(nn.Dense(4)(x)))))
    assert second.before == Source(kind, "", operation)
    assert set(first.after) == {Source(kind, "", operation)} or operation == "cond"
    assert first.before.kind == "linear"


def test_each_use_of_an_output_counts():
    def call(x):
        y = nn.Dense(4, name="dense")(x)
        z = batch(name="norm")(y)
        return nn.Dense(2, name="head")(z) + (z + y).sum()

    site = only(found_in(call))
    assert not site.only_use
    assert sorted(one.kind for one in site.after) == ["linear", "operation"]


def test_a_sown_value_is_no_use():
    class Sowing(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = nn.Dense(4)(x)
            self.sow("intermediates", "y", y)
            return batch()(y)

    model = Sowing()
    variables = model.init(jax.random.key(0), normed.inputs())
    assert only(sites(model, variables, normed.inputs())).only_use


def test_the_ends_of_the_model_are_neighbours():
    site = only(found_in(lambda x: batch()(x)))
    assert (site.before, site.after) == (Source("input"), (Source("output"),))


def test_a_norm_that_is_the_model_has_the_empty_path():
    model = nn.LayerNorm()
    site = only(sites(model, model.init(jax.random.key(0), normed.inputs()), normed.inputs()))
    assert site.path == "" and site.variables["scale"] == "params/scale"


def test_norms_and_linear_layers_next_to_each_other():
    first, second = found_in(
        lambda x: nn.Dense(2, name="head")(nn.LayerNorm(name="second")(batch(name="first")(nn.Dense(4)(x))))
    )
    assert first.after == (Source("norm", "second", "LayerNorm"),)
    assert second.before == Source("norm", "first", "BatchNorm") and second.only_use
    assert second.after == (Source("linear", "head", "Dense"),)


@pytest.mark.parametrize(("train", "before"), [(True, "dropout"), (False, "linear")])
def test_dropout_is_there_in_training_alone(train, before):
    class Dropping(nn.Module):
        @nn.compact
        def __call__(self, x, *, deterministic):
            y = nn.Dropout(0.5, name="drop")(nn.Dense(4, name="dense")(x), deterministic=deterministic)
            return nn.Dropout(0.5)(nn.LayerNorm()(y), deterministic=deterministic)

    model = Dropping()
    variables = model.init(jax.random.key(0), normed.inputs(), deterministic=True)
    site = only(sites(model, variables, normed.inputs(), train=train))
    assert site.before.kind == before and site.only_use
    assert [one.kind for one in site.after] == ["dropout" if train else "output"]


def test_an_embedding_is_a_linear_layer_and_a_learned_array_a_variable():
    def call(x):
        y = nn.Embed(10, 4, name="embed")(x)
        return nn.LayerNorm(name="a")(y), nn.LayerNorm(name="b")(nn.Dense(4, name="dense")(y).astype(jnp.float32))

    first, second = found_in(call, jnp.zeros((2,), int))
    assert first.before == Source("linear", "embed", "Embed") and not first.only_use
    assert second.before.path == "dense"

    class Learned(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x + nn.LayerNorm()(self.param("table", nn.initializers.ones, (4,)))

    model = Learned()
    site = only(sites(model, model.init(jax.random.key(0), normed.inputs()), normed.inputs()))
    assert site.before == Source("operation", "params/table", "variable")


def test_names_of_modules_do_not_matter():
    site = only(found_in(lambda x: batch(name="dense")(nn.Dense(4, name="LayerNorm_0")(x))))
    assert (site.path, site.kind, site.before.path) == ("dense", "batch", "LayerNorm_0")


def test_a_layer_with_a_layer_named_kernel_is_not_linear():
    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.relu(nn.Dense(4, name="kernel")(x))

    site = only(found_in(lambda x: nn.LayerNorm()(Outer(name="outer")(x))))
    assert site.before == Source("operation", operation="max")


def test_further_arrays_of_a_call_are_named():
    def call(x):
        y = normlab.linen.LayerNorm(name="plain")(x=x)
        return normlab.linen.LayerNorm(name="given")(mask=x > 0, scale=x.mean(-1, keepdims=True), bias=None, x=y)

    plain, given = found_in(call)
    assert (plain.given, given.given) == ((), ("mask", "scale"))
    assert given.before.path == "plain"


@pytest.mark.parametrize("train", [False, True])
def test_norms_inside_recurrent_cells_are_found_by_their_variables(train):
    class Recurrent(nn.Module):
        @nn.compact
        def __call__(self, x, train=False):
            cell = normlab.linen.LSTMCell(3, norm="batch_shared", use_running_average=not train, name="cell")
            return normlab.linen.RNN(cell)(x)

    x = jnp.ones((2, 4, 5))
    model = Recurrent()
    found = sites(model, jax.eval_shape(model.init, jax.random.key(0), x), x, train=train)
    assert [site.path for site in found] == ["cell/norm_x", "cell/norm_h", "cell/norm_c"]
    for site in found:
        assert (site.kind, site.library, site.lifted, site.repeats) == ("batch", "normlab", ("scan",), 0)
        assert site.running is not train and site.before == Source("unknown", operation="cell")
        roles = ["mean", "scale", "var", *(["bias"] if site.path.endswith("c") else [])]
        assert sorted(site.variables) == sorted(roles)
    assert found[1].variables["mean"] == "batch_stats/cell/norm_h/mean"

    twin = normlab.nnx.RNN(normlab.nnx.LSTMCell(5, 3, norm="layer", rngs=nnx.Rngs(0)))
    found = sites(twin, None, x)
    assert [(site.path, site.kind) for site in found] == [(f"cell/norm_{path}", "layer") for path in "xhc"]
    assert found[1].variables == {"scale": "cell/norm_h/scale"} and found[1].module is twin.cell.norm_h


def test_a_norm_behind_a_cell_whose_layers_only_give_kernels_is_found():
    """The cell asks dense layers for their kernels; JAX drops the marks of inputs that they do not use."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.RNN(nn.OptimizedLSTMCell(4), name="rnn")(x)
            return nn.Dense(2, name="head")(nn.LayerNorm(name="norm")(x))

    x = jnp.ones((2, 3, 5))

    site = only(sites(Model(), jax.eval_shape(Model().init, jax.random.key(0), x), x))

    assert (site.path, site.before.kind, [one.path for one in site.after]) == ("norm", "operation", ["head"])


def test_a_norm_that_is_transformed_itself_is_found_inside():
    remat = only(found_in(lambda x: nn.remat(nn.BatchNorm)(use_running_average=True, name="norm")(nn.Dense(4)(x))))
    assert (remat.path, remat.library, remat.lifted) == ("norm", "flax", ("remat",)) and remat.before.kind == "linear"
    kind = nn.vmap(nn.LayerNorm, variable_axes={"params": 0}, split_rngs={"params": True})
    stacked = only(found_in(lambda x: kind(name="norm")(x), jnp.ones((3, 2, 4))))
    assert (stacked.lifted, stacked.repeats, stacked.shape) == (("vmap",), 3, (2, 4))


def test_stacked_parameters_of_one_input_are_a_vmap():
    kind = nn.vmap(nn.LayerNorm, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=3)
    site = only(found_in(lambda x: kind(name="norm")(x)))
    assert (site.lifted, site.repeats) == (("vmap",), 3)


def test_scans_in_scans_multiply_their_runs():
    class Inner(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.LayerNorm(name="norm")(nn.Dense(4, name="dense")(x)), None

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.scan(nn.remat(Inner), length=2, **STACKED)(name="inner")(x, None)[0], None

    site = only(found_in(lambda x: nn.scan(Outer, length=3, **STACKED)(name="outer")(x, None)[0]))
    assert (site.path, site.repeats, site.lifted) == ("outer/inner/norm", 6, ("scan", "remat"))


STACKED = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}


def test_a_loop_of_unknown_length_has_unknown_repeats():
    class Looping(nn.Module):
        @nn.compact
        def __call__(self, x):
            if self.is_initializing():
                return nn.LayerNorm(name="norm")(x)
            return nn.while_loop(lambda _, x: x.sum() > 0, lambda module, x: nn.LayerNorm(name="norm")(x) - 1, self, x)

    model = Looping()
    site = only(sites(model, model.init(jax.random.key(0), normed.inputs()), normed.inputs()))
    assert (site.lifted, site.repeats, site.before.kind) == (("while",), 0, "unknown")


def test_a_norm_in_a_branch_or_in_a_part_of_the_devices_is_found_there():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    class Branching(nn.Module):
        @nn.compact
        def __call__(self, x):
            norm = nn.LayerNorm(name="norm")
            if self.is_initializing():
                return norm(x)
            return nn.cond(x.sum() > 0, lambda module, x: module(x), lambda module, x: x, norm, x)

    class Sharded(nnx.Module):
        def __init__(self):
            self.norm = nnx.LayerNorm(4, rngs=nnx.Rngs(0))

        def __call__(self, x):
            spec = jax.sharding.PartitionSpec("data")
            return jax.shard_map(self.norm, mesh=mesh, in_specs=spec, out_specs=spec)(x)

    model = Branching()
    branch = only(sites(model, model.init(jax.random.key(0), normed.inputs()), normed.inputs()))
    part = only(sites(Sharded(), None, normed.inputs()))
    assert (branch.lifted, branch.repeats, branch.before) == (("cond",), 1, Source("unknown", operation="cond"))
    assert (part.lifted, part.repeats, part.before) == (("shard_map",), 1, Source("unknown", operation="shard_map"))
    assert branch.after == (Source("unknown", operation="cond"),)


def test_a_body_that_is_compiled_already_is_traced_again():
    model, variables = normed.linen("flax-batch", "jit")
    for _ in range(2):
        jax.jit(model.apply)(variables, normed.inputs())
        assert len(sites(model, variables, normed.inputs())) == 1


def test_one_compiled_layer_in_two_places_has_two_calls():
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x):
            block = nn.jit(normed.Block)("flax-layer", False, name="block")
            return block(block(x))

    model = Twice()
    site = only(sites(model, model.init(jax.random.key(0), normed.inputs()), normed.inputs()))
    assert site.calls == 2 and site.before.path == "block/dense"


def test_calls_with_different_producers_have_no_common_one():
    def call(x):
        norm = batch(name="norm")
        return norm(nn.Dense(4, name="a")(x)) + norm(nn.Dense(4, name="b")(x))

    site = only(found_in(call))
    assert (site.calls, site.before) == (2, Source("unknown", operation="several")) and site.only_use


@pytest.mark.parametrize("method", ["encode", lambda model, x: model.encode(x)])
def test_another_method_can_be_called(method):
    class Encoder(nn.Module):
        def setup(self):
            self.norm, self.head = nn.LayerNorm(), nn.RMSNorm()

        def encode(self, x):
            return self.norm(x)

        def __call__(self, x):
            return self.head(self.encode(x))

    model = Encoder()
    variables = model.init(jax.random.key(0), normed.inputs())
    assert [site.path for site in sites(model, variables, normed.inputs())] == ["norm", "head"]
    assert [site.path for site in sites(model, variables, normed.inputs(), method=method)] == ["norm"]


@pytest.mark.parametrize("method", ["encode", lambda model, x: model.encode(x)])
def test_another_method_of_nnx_can_be_called(method):
    class Encoder(nnx.Module):
        def __init__(self):
            self.norm, self.head = nnx.LayerNorm(4, rngs=nnx.Rngs(0)), nnx.RMSNorm(4, rngs=nnx.Rngs(0))

        def encode(self, x):
            return self.norm(x=x)

        def __call__(self, x):
            return self.head(self.encode(x))

    assert [site.path for site in sites(Encoder(), None, normed.inputs(), method=method)] == ["norm"]


class Activated(nn.BatchNorm):
    """A norm that does more in its call."""

    @nn.compact
    def __call__(self, x):
        return nn.relu(super().__call__(x))


class Renamed(nn.BatchNorm):
    """A norm with a name of the user's, and Flax's call."""


class Own(nn.Module):
    """A norm that no library has, with a linear layer inside."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(4, name="gate")(x) * (x - x.mean(-1, keepdims=True))


@pytest.mark.parametrize(("norm", "library"), [(Activated, "user"), (Renamed, "flax")])
def test_a_subclass_with_a_call_of_its_own_is_the_users(norm, library):
    site = only(found_in(lambda x: norm(use_running_average=True)(nn.Dense(4)(x))))
    assert (site.kind, site.library, site.calls, site.before.kind) == ("batch", library, 1, "linear")


def test_a_subclass_of_nnx_with_a_call_of_its_own_is_the_users():
    class More(nnx.LayerNorm):
        def __call__(self, x):
            return nnx.relu(super().__call__(x))

    model = nnx.Sequential(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), More(4, rngs=nnx.Rngs(0)))
    site = only(sites(model, None, normed.inputs()))
    assert (site.kind, site.library, site.before.path) == ("layer", "user", "layers/0")


def test_a_norm_of_the_users_is_recognised_by_its_type():
    def call(x):
        return nn.Dense(2, name="head")(Own(name="own")(nn.Dense(4, name="dense")(x)))

    assert len(found_in(call)) == 0
    site = only(found_in(call, recognise=[(Own, "other")]))
    assert (site.path, site.kind, site.library, site.features) == ("own", "other", "user", (1,))
    assert site.before == Source("linear", "dense", "Dense")
    assert site.after == (Source("linear", "head", "Dense"),)


@pytest.mark.parametrize("wrapped", ["reparametrized", "flax", "standardized"])
def test_norms_of_kernels_are_sites_that_values_pass(wrapped):
    layers = {
        "reparametrized": (
            lambda: normlab.linen.Reparametrized(nn.Dense(4, name="inner"), "weight_norm", name="outer")
        ),
        "flax": lambda: nn.WeightNorm(nn.Dense(4, name="inner"), name="outer"),
        "standardized": lambda: normlab.linen.StandardizedDense(4, norm="scaled_standardize", name="outer"),
    }

    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x):
            return batch(name="norm")(layers[wrapped]()(x))

    model = Normed()
    variables = model.init(jax.random.key(0), normed.inputs())
    kernel, norm = sites(model, variables, normed.inputs())
    assert (kernel.path, kernel.kind, kernel.count) == ("outer", "weight", 0)
    inner = [site for site in sites(model, variables, normed.inputs()).modules if site.endswith(("inner", "layer"))]
    assert norm.before.path == (inner[0] if inner else "outer") and norm.before.kind == "linear" and norm.only_use


def test_a_reparametrized_layer_of_nnx_is_found():
    layer = normlab.nnx.Reparametrized(nnx.Linear(4, 4, rngs=nnx.Rngs(0)), "weight_norm")
    kernel, norm = sites(nnx.Sequential(layer, nnx.LayerNorm(4, rngs=nnx.Rngs(0))), None, normed.inputs())
    assert (kernel.path, kernel.kind, kernel.variables) == ("layers/0", "weight", {"g": "layers/0/g"})
    assert norm.before == Source("linear", "layers/0/layer", "Linear")


@pytest.mark.parametrize(
    ("norm", "count"),
    [
        (nn.BatchNorm(use_running_average=True), 2 * 15),
        (normlab.linen.BatchNorm(use_running_average=True, ghost_batch_size=1), 15),
        (normlab.linen.BatchNorm(use_running_average=True, axis=1), 2 * 5 * 8),
        (nn.LayerNorm(), 8),
        (nn.LayerNorm(reduction_axes=(1, 2, 3), feature_axes=-1), 15 * 8),
        (normlab.linen.RMSNorm(), 8),
        (nn.GroupNorm(num_groups=4), 15 * 2),
        (nn.GroupNorm(num_groups=None, group_size=4), 15 * 4),
        (normlab.linen.GroupNorm(num_groups=2), 15 * 4),
        (normlab.linen.GroupNorm(num_groups=2, reduction_axes=-1), 4),
        (nn.InstanceNorm(), 15),
        (normlab.linen.OnlineNorm(use_running_average=True), 15),
        (normlab.linen.LocalResponseNorm(), 5),
        (normlab.linen.Identity(), 0),
        (normlab.linen.DyT(), 0),
    ],
)
def test_the_elements_of_a_statistic_are_counted(norm, count):
    x = jnp.ones((2, 3, 5, 8))
    variables = jax.eval_shape(lambda: norm.init(jax.random.key(0), x))
    assert only(sites(norm, variables, x)).count == count


class Moded(nn.Module):
    """A model that is told its mode by two arguments."""

    @nn.compact
    def __call__(self, x, train, deterministic=True):
        return nn.BatchNorm(use_running_average=not train)(x) + deterministic


def test_the_mode_is_told_in_every_way():
    model = Moded()
    variables = model.init(jax.random.key(0), normed.inputs(), False)

    def running(*args, **options):
        return only(sites(model, variables, normed.inputs(), *args, **options)).running

    assert running() is True and running(train=False) is True
    assert running(train=True) is False and running(train={"train": True}) is False
    assert running(True) is False and running(False) is True
    assert running(False, train=True) is True  # the call says it


def test_the_mode_of_nnx_is_left_to_the_keywords_that_are_given():
    model = nnx.BatchNorm(4, rngs=nnx.Rngs(0))
    model.train()
    assert only(sites(model, None, normed.inputs())).running is True
    assert only(sites(model, None, normed.inputs(), train={})).running is False
    assert only(sites(model, None, normed.inputs(), train={"use_running_average": True})).running is True
    assert model.use_running_average is False


def test_nothing_given_is_changed():
    model, variables = normed.linen("flax-batch", "scan")
    before, copy = jax.tree.map(lambda x: x.tobytes(), variables), model.copy()
    sites(model, variables, normed.inputs(), train=True)
    assert jax.tree.map(lambda x: x.tobytes(), variables) == before and model == copy

    twin = normed.NNXModel("flax-batch", "list", nnx.Rngs(0))
    graph, state = nnx.split(twin)
    state = jax.tree.map(lambda x: x.tobytes(), state)
    sites(twin, None, normed.inputs(), train=True)
    assert nnx.graphdef(twin) == graph
    assert jax.tree.map(lambda x: x.tobytes(), nnx.state(twin)) == state


def test_frozen_and_boxed_variables_are_read():
    def call(x):
        init = nn.with_partitioning(nn.initializers.ones, ("model",))
        return nn.LayerNorm(scale_init=init, name="norm")(nn.Dense(4)(x))

    model = Net(call)
    variables = freeze(model.init(jax.random.key(0), normed.inputs()))
    site = only(sites(model, variables, normed.inputs()))
    assert site.variables == {"scale": "params/norm/scale", "bias": "params/norm/bias"} and site.lifted == ()


def test_sites_are_a_sequence_with_a_table_and_json():
    found = found_in(lambda x: nn.LayerNorm(name="b")(batch(name="a")(nn.Dense(4, name="dense")(x))))
    assert (len(found), found[0].path, [site.path for site in found[:2]]) == (2, "a", ["a", "b"])
    assert found.by_path["b"] is found[1] and repr(found) == "Sites(a, b)" and "dense" in found.modules
    assert found.table() == (
        "path  kind   input   count  calls  before        after\n"
        "a     batch  (6, 4)  6      1      linear dense  norm b\n"
        "b     layer  (6, 4)  4      1      norm a        output"
    )
    again = found_in(lambda x: nn.LayerNorm(name="b")(batch(name="a")(nn.Dense(4, name="dense")(x))))
    assert found.json() == again.json()
    first, second = json.loads(found.json())
    assert (first["path"], first["module"], first["dtype"], first["running"]) == ("a", "BatchNorm", "float32", True)
    assert second["before"] == {"kind": "norm", "path": "a", "operation": "BatchNorm"}


def refused(message, *args, **options):
    with pytest.raises(BadInput) as raised:
        sites(*args, **options)
    assert str(raised.value) == message


def test_a_model_that_is_no_module_is_refused():
    model = nn.Dense(4)
    for function in (lambda x: x, model.apply, jax.jit(model.apply)):
        refused("Expected a Flax module, got a function. Pass the module; the call is built from it.", function, {})
    refused(
        "Expected a Flax module, got the class `Dense`. Pass an instance of `nn.Module` or `nnx.Module`.", nn.Dense, {}
    )
    refused("Expected a Flax module, got 3. Pass an instance of `nn.Module` or `nnx.Module`.", 3, {})


@pytest.mark.parametrize(("library", "title"), [("equinox", "an Equinox"), ("haiku", "a Haiku")])
def test_a_module_of_another_library_is_refused(library, title):
    kind = type("Module", (), {"__module__": f"{library}._src.module", "__call__": lambda self, x: x})
    refused(
        f"Expected a Flax module, got {title} one. Only states are converted, see `from_haiku` in `normlab.tools`.",
        type("Net", (kind,), {})(),
        {},
    )


def test_variables_of_another_model_are_refused():
    x, model = normed.inputs(), nn.Sequential([nn.Dense(4), nn.LayerNorm()])
    other = nn.Sequential([nn.Dense(5), nn.LayerNorm()]).init(jax.random.key(0), x)
    refused(
        "Expected `params/layers_0/bias` to have shape (4,), got (5,). Pass the variables of this model, for inputs of "
        "this shape.",
        model,
        other,
        x,
    )
    missing = {"params": {"layers_0": model.init(jax.random.key(0), x)["params"]["layers_0"]}}
    refused(
        "Expected variables with `params/layers_1/bias` of shape (4,), got none of this name. Pass the variables of "
        "this model.",
        model,
        missing,
        x,
    )


def test_variables_that_do_not_belong_to_the_library_are_refused():
    refused("Expected the variables of a Linen model, got None. Give those of `model.init`.", nn.LayerNorm(), None, 1.0)
    refused(
        "Expected `variables=None` for an NNX model, which has its own, got some. Leave them out.",
        nnx.LayerNorm(4, rngs=nnx.Rngs(0)),
        {},
        normed.inputs(),
    )


def test_errors_of_the_model_stay_as_they_are():
    model = Net(lambda x: nn.Dense(4)(x) @ jnp.ones((5, 5)))
    with pytest.raises(TypeError, match="dot_general"):
        sites(model, {"params": {"Dense_0": {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}}}, normed.inputs())
