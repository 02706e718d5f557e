"""Statistics of norms are taken under every transform, and the model computes as without."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import FrozenDict, freeze

import normlab.linen
import normlab.nnx
from normlab.errors import BadInput
from normlab.tools import Capture, sites
from tests.support import normed


def moments(path, call, x, mask, y):
    axes = tuple(range(x.ndim - 1))
    return {"mean": x.mean(axes), "output": jnp.square(y).sum(axes)}


def close(found, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)


def linen_reference(model, variables, path, **options):
    """Return the statistics of the norm in a model that runs without transforms, in the order of its calls."""
    seen = []
    model = normed.Model(model.norm, "plain" if model.transform == "remat" else model.transform)

    def is_run(y):  # and not traced, as the body of a scan is before
        return not isinstance(y, jax.core.Tracer)

    def intercept(call, args, kwargs, context):
        y = call(*args, **kwargs)
        if context.method_name == "__call__" and "/".join(context.module.path) == path and is_run(y):
            seen.append(moments(path, len(seen), args[0], None, y))
        return y

    with jax.disable_jit(), nn.intercept_methods(intercept):
        output = model.apply(variables, normed.inputs(), mutable=["batch_stats"], **options)
    return output, seen


@pytest.mark.parametrize("transform", [name for name in normed.TRANSFORMS if name != "vmap"])
@pytest.mark.parametrize("norm", ["flax-batch", "normlab-layer"])
def test_statistics_are_those_of_the_model_without_transforms(norm, transform):
    expected, (model, variables) = normed.TRANSFORMS[transform], normed.linen(norm, transform)
    (output, changed), seen = linen_reference(model, variables, expected.norm, train=True)

    captured = Capture(model, moments)(variables, normed.inputs(), train=True)

    (calls,) = captured.statistics.values()
    assert list(captured.statistics) == [expected.norm]
    assert [len(runs) for runs in calls] == [expected.repeats] * expected.calls
    close([run for runs in calls for run in runs], seen)
    close(captured.output, output)
    close(captured.variables, {**variables, **changed})


@pytest.mark.parametrize("transform", [name for name in normed.NNX_TRANSFORMS if name != "vmap"])
@pytest.mark.parametrize("norm", ["flax-batch", "normlab-layer"])
def test_statistics_of_nnx_are_those_of_the_first_layer(norm, transform):
    expected, model = normed.NNX_TRANSFORMS[transform], normed.NNXModel(norm, transform, nnx.Rngs(0))
    twin = nnx.clone(model)

    captured = Capture(model, moments, train=True)(None, normed.inputs())

    calls = captured.statistics[expected.norm]
    assert [len(runs) for runs in calls] == [expected.repeats] * expected.calls
    linear = nnx.state(twin)
    for name in expected.norm.replace("norm", "linear").replace("layers/1", "layers/0").split("/"):
        linear = linear[int(name) if name.isdigit() else name]
    kernel, bias = (np.asarray(linear[name][...]) for name in ("kernel", "bias"))
    first = (kernel[0], bias[0]) if transform == "scan" else (kernel, bias)
    close(calls[0][0]["mean"], (np.asarray(normed.inputs()) @ first[0] + first[1]).mean(0))
    assert not np.allclose(calls[-1][-1]["mean"], calls[0][0]["mean"]) or (expected.calls, expected.repeats) == (1, 1)

    twin.train()
    close(captured.output, twin(normed.inputs()))
    close(jax.tree.leaves(captured.variables), jax.tree.leaves(nnx.state(twin)))
    assert jax.tree.structure(captured.variables) == jax.tree.structure(nnx.state(twin))


@pytest.mark.parametrize("norm", ["flax-batch", "normlab-layer"])
def test_runs_without_an_order_are_refused(norm):
    message = "Expected norms whose runs have an order, got `{}` under `vmap`. Leave it out, or use a `scan`."
    model, variables = normed.linen(norm, "vmap")
    with pytest.raises(BadInput) as raised:
        Capture(model, moments)(variables, normed.inputs())
    assert str(raised.value) == message.format("block/norm")
    assert Capture(model, moments, paths=[])(variables, normed.inputs()).statistics == {}
    with pytest.raises(BadInput) as raised:
        Capture(normed.NNXModel(norm, "vmap", nnx.Rngs(0)), moments)(None, normed.inputs())
    assert str(raised.value) == message.format("blocks/norm")


def test_runs_of_nested_scans_come_in_their_order():
    class Inner(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.BatchNorm(use_running_average=True, name="norm")(x) + 1, None

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.scan(Inner, length=2, **stacked)(name="inner")(x, None)[0] + 10, None

    stacked = {"variable_axes": {"params": 0, "batch_stats": 0}, "split_rngs": {"params": True}}
    model = nn.scan(Outer, length=2, **stacked)(name="outer")
    variables = model.init(jax.random.key(0), jnp.zeros((2, 4)), None)
    (runs,) = Capture(model, lambda path, call, x, mask, y: x.mean())(variables, jnp.zeros((2, 4)), None).statistics[
        "inner/norm"
    ]
    np.testing.assert_allclose(runs, [0, 1, 12, 13], atol=1e-3)


def test_one_compiled_program_serves_all_batches_of_a_shape():
    traced = []

    def counted(path, call, x, mask, y):
        traced.append(path)
        return x.sum()

    model, variables = normed.linen("flax-batch", "plain")
    capture = Capture(model, counted, method="__call__")
    sums = [capture(variables, normed.inputs() * scale).statistics["block/norm"][0][0] for scale in (1.0, 2.0)]
    assert traced == ["block/norm"] and sums[0] != sums[1]
    capture(variables, normed.inputs(), train=True)
    capture(variables, normed.inputs()[:3])
    assert len(traced) == 3


def test_runs_of_an_earlier_call_do_not_stay():
    model, variables = normed.linen("flax-batch", "scan")
    capture = Capture(model, moments)
    first, second = (capture(variables, normed.inputs()).statistics["block/norm"] for _ in range(2))
    assert [len(runs) for runs in (*first, *second)] == [3, 3]
    close(first, second)


def test_a_norm_that_is_called_inside_and_outside_of_a_transform_has_its_calls_in_order():
    class Both(nn.Module):
        @nn.compact
        def __call__(self, x):
            norm = nn.BatchNorm(use_running_average=True, name="norm")
            x = norm(x) + 1
            return nn.jit(lambda module, x: module(x))(norm, x)

    model = Both()
    variables = model.init(jax.random.key(0), normed.inputs())
    statistics = Capture(model, lambda path, call, x, mask, y: x.mean())(variables, normed.inputs()).statistics
    (first,), (second,) = statistics["norm"]
    assert float(second) == pytest.approx(float(first) + 1, abs=1e-4)


def test_masks_and_paths_reach_the_statistic():
    class Masked(nn.Module):
        @nn.compact
        def __call__(self, x, mask):
            x = nn.LayerNorm(name="a")(x)
            return nn.BatchNorm(use_running_average=False, name="b")(x=x, mask=mask[:, None])

    model, mask = Masked(), jnp.arange(normed.EXAMPLES) < 2
    variables = model.init(jax.random.key(0), normed.inputs(), mask)

    def counted(path, call, x, mask, y):
        return jnp.asarray(x.shape[0]) if mask is None else mask.sum()

    statistics = Capture(model, counted)(variables, normed.inputs(), mask).statistics
    assert statistics == {"a": ((normed.EXAMPLES,),), "b": ((2,),)}
    assert list(Capture(model, counted, paths={"b"})(variables, normed.inputs(), mask).statistics) == ["b"]


def test_a_mask_that_is_a_constant_or_has_no_name_counts():
    class Masked(nnx.Module):
        def __init__(self):
            self.norm = nnx.RMSNorm(normed.FEATURES, rngs=nnx.Rngs(0))

        def __call__(self, x):
            return self.norm(x, np.arange(normed.FEATURES) < 3)

    captured = Capture(Masked(), lambda path, call, x, mask, y: mask.sum())(None, normed.inputs())
    assert captured.statistics == {"norm": ((3,),)}


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_continual_norm_gives_its_input_after_the_group_norm(library):
    def mean(path, call, x, mask, y):
        return x.reshape(x.shape[0], -1).mean(-1)

    x = 5 + jax.random.normal(jax.random.key(0), (3, 8))
    if library == "linen":
        model = normlab.linen.ContinualNorm(use_running_average=True, num_groups=2)
        captured = Capture(model, mean)(model.init(jax.random.key(0), x), x)
    else:
        captured = Capture(normlab.nnx.ContinualNorm(8, num_groups=2, rngs=nnx.Rngs(0)), mean, train=False)(None, x)
    np.testing.assert_allclose(captured.statistics[""][0][0], np.zeros(3), atol=1e-5)


def test_norms_of_kernels_have_no_statistics_and_norms_of_the_users_can_have():
    class Centred(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x - x.mean(-1, keepdims=True)

    model = nn.Sequential([normlab.linen.Reparametrized(nn.Dense(4), "standardize"), Centred()])
    variables = model.init(jax.random.key(0), normed.inputs())
    assert Capture(model, moments)(variables, normed.inputs()).statistics == {}
    found = Capture(model, moments, recognise=[(Centred, "other")])(variables, normed.inputs()).statistics
    assert list(found) == ["layers_1"]


def test_frozen_variables_stay_frozen_and_nothing_given_is_changed():
    model, variables = normed.linen("flax-batch", "plain")
    before = jax.tree.map(lambda x: x.tobytes(), variables)
    captured = Capture(model, moments)(freeze(variables), normed.inputs(), train=True)
    assert isinstance(captured.variables, FrozenDict)
    assert isinstance(Capture(model, moments)(variables, normed.inputs()).variables, dict)
    assert jax.tree.map(lambda x: x.tobytes(), variables) == before

    twin = normed.NNXModel("flax-batch", "plain", nnx.Rngs(0))
    graph, state = nnx.split(nnx.clone(twin))
    Capture(twin, moments, train=True)(None, normed.inputs())
    assert nnx.graphdef(twin) == graph
    close(nnx.state(twin), state)


def test_the_state_of_nnx_goes_on_from_call_to_call():
    model = nnx.BatchNorm(normed.FEATURES, momentum=0.5, rngs=nnx.Rngs(0))
    capture = Capture(model, moments, train=True)
    first = capture(None, normed.inputs())
    second = capture(first.variables, normed.inputs())
    mean = normed.inputs().mean(0)
    close([first.variables["mean"][...], second.variables["mean"][...]], [mean / 2, mean * 3 / 4])
    nnx.update(model, second.variables)
    close(model.mean[...], mean * 3 / 4)


def test_dropout_draws_from_the_given_streams():
    class Dropping(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.LayerNorm()(nn.Dropout(0.5, deterministic=False)(x))

    model, ones = Dropping(), jnp.ones((4, 4))
    capture = Capture(model, lambda path, call, x, mask, y: x)
    variables = model.init({"params": jax.random.key(0), "dropout": jax.random.key(0)}, ones)
    draws = [capture(variables, ones, rngs={"dropout": jax.random.key(seed)}).statistics for seed in (0, 0, 1)]
    first, again, other = (np.asarray(draw["LayerNorm_0"][0][0]) for draw in draws)
    assert (first == again).all() and (first != other).any() and set(np.unique(first)) == {0.0, 2.0}


def test_lists_take_what_sites_says_is_not_lifted():
    model, variables = normed.linen("flax-batch", "plain")
    (site,) = sites(model, variables, normed.inputs())
    (run,) = Capture(model, moments)(variables, normed.inputs()).statistics[site.path][0]
    assert site.lifted == () and all(isinstance(value, jax.Array) for value in run.values())


def test_a_function_is_refused():
    with pytest.raises(BadInput, match="Expected a Flax module, got a function"):
        Capture(nn.Dense(4).apply, moments)({}, normed.inputs())
