"""States of PyTorch in Flax models and back: numbers of recorded networks, names, orders, what is refused and said."""

import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from flax.core import FrozenDict, freeze
from hypothesis import given, settings
from hypothesis import strategies as st

from normlab import linen, norms
from normlab import nnx as normlab_nnx
from normlab.errors import BadInput
from normlab.models.resnet import ResNet50
from normlab.tools.torch_state import from_torch, to_torch
from tests.support.states import Arrays, load, numbers

MACHINE_EPSILON = float(np.finfo(np.float32).eps)
KEY = jax.random.key(0)


def last(x: np.ndarray) -> jax.Array:
    return jnp.asarray(np.moveaxis(x, 1, -1))


def close(found: Any, expected: np.ndarray, tolerance: float) -> None:
    assert np.abs(np.asarray(found) - expected).max() <= tolerance * max(1.0, np.abs(expected).max())


class Network(nn.Module):
    """The network of `tests.support.record_states.torch_network`."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        batch: dict[str, Any] = {"use_running_average": not train, "momentum": 0.9, "unbiased_running_var": True}
        x = nn.relu(linen.BatchNorm(**batch)(nn.Conv(8, (3, 3), padding=1)(x)))
        x = nn.Conv(8, (3, 3), 2, padding=1, feature_group_count=4, use_bias=False)(x)
        x = nn.relu(linen.GroupNorm(num_groups=2, epsilon=1e-5)(x))
        x = nn.ConvTranspose(6, (4, 4), (2, 2), padding=((2, 2), (2, 2)), transpose_kernel=True)(x)
        x = nn.ConvTranspose(5, (3, 3), padding=((1, 1), (1, 1)))(linen.InstanceNorm(epsilon=1e-5)(x))
        x = nn.relu(linen.BatchNorm(use_scale=False, use_bias=False, **batch)(x))
        x = nn.Dense(12)(x.reshape(x.shape[0], -1))
        x = nn.Dense(12, use_bias=False, name="last")(linen.LayerNorm(epsilon=1e-5)(x))
        return linen.RMSNorm(epsilon=MACHINE_EPSILON)(x)


class NNXNetwork(nnx.Module):
    """The same network for NNX, with attributes in another order than the calls."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        batch: dict[str, Any] = {"momentum": 0.9, "unbiased_running_var": True, "rngs": rngs}
        self.rms = normlab_nnx.RMSNorm(12, epsilon=MACHINE_EPSILON, rngs=rngs)
        self.dense = nnx.List([nnx.Linear(320, 12, rngs=rngs), nnx.Linear(12, 12, use_bias=False, rngs=rngs)])
        self.layer = normlab_nnx.LayerNorm(12, epsilon=1e-5, rngs=rngs)
        self.first = nnx.Conv(3, 8, (3, 3), padding=1, rngs=rngs)
        self.batch = normlab_nnx.BatchNorm(8, **batch)
        self.grouped = nnx.Conv(8, 8, (3, 3), 2, padding=1, feature_group_count=4, use_bias=False, rngs=rngs)
        self.group = normlab_nnx.GroupNorm(8, num_groups=2, epsilon=1e-5, rngs=rngs)
        two, one = ((2, 2), (2, 2)), ((1, 1), (1, 1))
        self.up = nnx.ConvTranspose(8, 6, (4, 4), (2, 2), padding=two, transpose_kernel=True, rngs=rngs)
        self.instance = normlab_nnx.InstanceNorm(6, epsilon=1e-5, rngs=rngs)
        self.across = nnx.ConvTranspose(6, 5, (3, 3), padding=one, rngs=rngs)
        self.plain = normlab_nnx.BatchNorm(5, use_scale=False, use_bias=False, **batch)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.group(self.grouped(nnx.relu(self.batch(self.first(x)))))
        x = nnx.relu(self.plain(self.across(self.instance(self.up(nnx.relu(x))))))
        x = self.layer(self.dense[0](x.reshape(x.shape[0], -1)))
        return self.rms(self.dense[1](x))


def without_counters(state: Arrays) -> Arrays:
    return {key: array for key, array in state.items() if not key.endswith("tracked")}


def test_a_recorded_network_computes_and_trains_as_in_torch() -> None:
    recorded, model = load("torch"), Network()
    x = last(recorded.inputs)
    shapes = jax.eval_shape(model.init, KEY, x)
    found = from_torch(recorded.state, model, shapes, x)
    close(jax.jit(model.apply)(found.variables, x), recorded.evaluated, 2e-6)
    train = jax.jit(lambda variables: model.apply(variables, x, train=True, mutable=["batch_stats"]))
    y, after = train(found.variables)
    close(y, recorded.trained, 5e-6)
    for name, layer in (("BatchNorm_0", "1"), ("BatchNorm_1", "9")):
        close(after["batch_stats"][name]["mean"], recorded.after[f"{layer}.running_mean"], 5e-6)
        close(after["batch_stats"][name]["var"], recorded.after[f"{layer}.running_var"], 5e-6)
    assert found.report == ("`BatchNorm_0` and 1 more: `num_batches_tracked` has no counterpart, and was dropped.",)
    assert found.names["14"] == "last"


def test_the_state_comes_back_bit_by_bit() -> None:
    recorded, model = load("torch"), Network()
    x = last(recorded.inputs)
    found = from_torch(recorded.state, model, jax.eval_shape(model.init, KEY, x), x)
    back = to_torch(model, found.variables, x, names=found.names)
    assert set(back) == set(recorded.state)
    for key, array in without_counters(recorded.state).items():
        np.testing.assert_array_equal(back[key], array)
        assert back[key].dtype == array.dtype and back[key].flags.c_contiguous and back[key].flags.writeable
    assert back["1.num_batches_tracked"].dtype == np.int64


def test_nnx_is_matched_by_its_calls_and_given_models_stay() -> None:
    recorded, model = load("torch"), NNXNetwork(nnx.Rngs(0))
    x = last(recorded.inputs)
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))
    found = from_torch(recorded.state, model, None, x)
    assert isinstance(found.model, NNXNetwork) and found.model is not model and found.variables == {}
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(nnx.state(model)), before)
    assert found.names["12"] == "dense/0"
    trained, call = nnx.clone(found.model), nnx.jit(lambda model, x: model(x))
    close(call(trained, x), recorded.trained, 5e-6)
    close(trained.batch.var[...], recorded.after["1.running_var"], 5e-6)
    found.model.eval()
    close(call(found.model, x), recorded.evaluated, 2e-6)
    back = to_torch(found.model, None, x, names=found.names)
    for key, array in without_counters(recorded.state).items():
        np.testing.assert_array_equal(back[key], array)


def test_nnx_in_place() -> None:
    model, x = nnx.Linear(2, 3, rngs=nnx.Rngs(0)), jnp.ones((1, 2))
    found = from_torch({"weight": np.ones((3, 2)), "bias": np.arange(3.0)}, model, None, x, inplace=True)
    assert found.model is model and type(model) is nnx.Linear
    np.testing.assert_array_equal(model(x), [[2, 3, 4]])


def test_the_running_variance_is_unbiased_and_momentum_the_weight_of_the_old_value() -> None:
    state = {
        "weight": np.ones(1),
        "bias": np.zeros(1),
        "running_mean": np.zeros(1),
        "running_var": np.ones(1),
        "num_batches_tracked": np.zeros((), np.int64),
    }
    x = jnp.asarray([[1.0], [3.0]])
    model = linen.BatchNorm(use_running_average=False)
    found = from_torch(state, model, model.init(KEY, x), x, momentum=0.1)
    assert found.fields == {"": {"epsilon": 1e-5, "unbiased_running_var": True, "momentum": 0.9}}
    assert found.report == (
        "the model: has `momentum` 0.99; to train on as PyTorch does, set `momentum=0.9`.",
        "the model: averages biased variances; to train on as PyTorch does, set `unbiased_running_var=True`.",
        "the model: `num_batches_tracked` has no counterpart, and was dropped.",
    )
    fields: dict[str, Any] = dict(found.fields[""])
    trained = linen.BatchNorm(use_running_average=False, **fields)
    _, after = trained.apply(found.variables, x, mutable=["batch_stats"])
    np.testing.assert_allclose([after["batch_stats"]["mean"][0], after["batch_stats"]["var"][0]], [0.2, 1.1], rtol=1e-6)
    flax = nn.BatchNorm(use_running_average=False, momentum=0.9)
    report = from_torch(state, flax, flax.init(KEY, x), x).report
    assert (
        report[0] == "the model: averages biased variances, PyTorch unbiased ones; `normlab`'s batch norm can do both."
    )
    _, after = flax.apply(found.variables, x, mutable=["batch_stats"])
    np.testing.assert_allclose(after["batch_stats"]["var"], [1.0], rtol=1e-6)


def test_batches_are_counted_where_the_average_is_cumulative() -> None:
    state = numbers({"running_mean": (2,), "running_var": (2,), "num_batches_tracked": ()})
    model = linen.BatchNorm(use_running_average=False, momentum=None, use_scale=False, use_bias=False)
    x = jnp.ones((3, 2))
    found = from_torch(state, model, model.init(KEY, x), x, momentum=None)
    step = found.variables["batch_stats"]["step"]
    assert step == 7 and step.dtype == jnp.int32 and found.fields[""]["momentum"] is None
    assert to_torch(model, found.variables, x)["num_batches_tracked"] == 7
    del state["num_batches_tracked"]
    found = from_torch(state, model, model.init(KEY, x), x, momentum=None, eps=1e-5)
    assert "the model: `step` stays as it was: the layer has no `num_batches_tracked`." in found.report


def test_a_frozen_batch_norm_needs_its_epsilon() -> None:
    state, x = (
        numbers({"bn.weight": (2,), "bn.bias": (2,), "bn.running_mean": (2,), "bn.running_var": (2,)}),
        jnp.ones((1, 2)),
    )
    model = linen.BatchNorm(use_running_average=True, frozen=True)
    variables = model.init(KEY, x)
    with pytest.raises(BadInput) as error:
        from_torch(state, model, variables, x)
    assert str(error.value) == (
        "Expected `eps` of `bn`, a frozen batch norm by its lack of `num_batches_tracked`: old ones had 0, newer ones "
        "1e-5. Give `eps={'bn': 1e-5}`, or the value for all norms."
    )
    found = from_torch(state, model, variables, x, eps={"bn": 1e-5})
    assert found.report == ()
    assert set(to_torch(model, found.variables, x, names=found.names)) == set(state)
    thawed = linen.BatchNorm(use_running_average=True, momentum=0.9, unbiased_running_var=True)
    report = from_torch(state, thawed, variables, x, strict=False).report
    assert report == ("the model: was frozen in PyTorch, by its lack of a counter; set `frozen=True` to keep it so.",)


def test_another_epsilon_is_refused_or_said() -> None:
    state, x = numbers({"ln.weight": (2,), "ln.bias": (2,)}), jnp.ones((1, 2))
    model = linen.LayerNorm()
    variables = model.init(KEY, x)
    with pytest.raises(BadInput) as error:
        from_torch(state, model, variables, x)
    assert str(error.value) == (
        "Expected the model to have `epsilon` 1e-05 as in PyTorch, got 1e-06. Set `epsilon=1e-05` in the model, give "
        "the epsilon of `ln` if it is another, or take it as it is by `strict=False`."
    )
    assert from_torch(state, model, variables, x, eps=1e-6).report == ()
    report = from_torch(state, model, variables, x, strict=False).report
    assert report == ("the model: expected `epsilon` 1e-05 as in PyTorch, got 1e-06.",)
    shifted = linen.LayerNorm(epsilon=1e-5, scale_offset=1.0)
    assert from_torch(state, shifted, variables, x).report == (
        "the model: adds 1 to its scale, and so must the layer.",
    )


class ResNet18(nn.Module):
    """torchvision's network, with the names of `normlab.models.resnet`."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        def layer(y: jax.Array, features: int, size: int, stride: int, names: tuple[str, str], block: str) -> jax.Array:
            kernel, padding = (size, size), size // 2
            conv = nn.Conv(features, kernel, stride, padding=padding, use_bias=False, name=f"{block}{names[0]}")
            return linen.BatchNorm(not train, momentum=0.9, name=f"{block}{names[1]}")(conv(y))

        x = nn.relu(layer(x, 64, 7, 2, ("stem", "norm_stem"), ""))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for i in range(8):
            x = BasicBlock(64 * 2 ** (i // 2), 2 if i in (2, 4, 6) else 1, train, name=f"block_{i}")(x)
        return nn.Dense(10, name="head")(x.mean((1, 2)))


class BasicBlock(nn.Module):
    features: int
    stride: int
    train: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def norm(name: str) -> nn.Module:
            return linen.BatchNorm(not self.train, momentum=0.9, name=name)

        def conv(size: int, stride: int, name: str) -> nn.Module:
            padding = size // 2
            return nn.Conv(self.features, (size, size), stride, padding=padding, use_bias=False, name=name)

        y = nn.relu(norm("norm_0")(conv(3, self.stride, "conv_0")(x)))
        y = norm("norm_1")(conv(3, 1, "conv_1")(y))
        x = x if self.stride == 1 else norm("norm_shortcut")(conv(1, self.stride, "shortcut")(x))
        return nn.relu(x + y)


def resnet_shapes() -> dict[str, tuple[int, ...]]:
    return {key: tuple(shape) for key, shape in json.loads(str(load("resnet18").state["shapes"])).items()}


@pytest.mark.parametrize("names", ["auto", "torchvision", "timm"])
def test_resnet18_of_torchvision_computes_the_same(names: Any) -> None:
    recorded, model = load("resnet18"), ResNet18()
    state, x = numbers(resnet_shapes()), last(recorded.inputs)
    variables = jax.eval_shape(model.init, KEY, x)
    found = from_torch(state, model, variables, x, names=names)
    assert found.names["layer2.0.downsample.1"] == "block_2/norm_shortcut" and found.names["fc"] == "head"
    back = to_torch(model, found.variables, x, names="torchvision")
    assert set(back) == set(state)
    for key, array in without_counters(state).items():
        np.testing.assert_array_equal(back[key], array)
    if names == "timm":
        close(jax.jit(model.apply)(found.variables, x), recorded.evaluated, 2e-6)


@pytest.mark.slow
def test_resnet18_of_torchvision_trains_the_same() -> None:
    recorded, model = load("resnet18"), ResNet18()
    state, x = numbers(resnet_shapes()), last(recorded.inputs)
    found = from_torch(state, model, jax.eval_shape(model.init, KEY, x), x)
    train = jax.jit(lambda variables: model.apply(variables, x, train=True, mutable=["batch_stats"])[0])
    close(train(found.variables), recorded.trained, 5e-6)


def resnet50_shapes() -> dict[str, tuple[int, ...]]:
    """Shapes of the state of torchvision's network of 50 layers, in its order."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(conv: str, bn: str, outputs: int, inputs: int, size: int) -> None:
        shapes[f"{conv}.weight"] = (outputs, inputs, size, size)
        shapes.update({f"{bn}.{part}": (outputs,) for part in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{bn}.num_batches_tracked"] = ()

    layer("conv1", "bn1", 64, 3, 7)
    inputs = 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512)), 1):
        for block in range(blocks):
            for i, (outputs, size) in enumerate(((width, 1), (width, 3), (4 * width, 1)), 1):
                layer(f"layer{stage}.{block}.conv{i}", f"layer{stage}.{block}.bn{i}", outputs, inputs, size)
                inputs = outputs
            if block == 0:
                skipped = 64 if stage == 1 else 2 * width
                layer(f"layer{stage}.0.downsample.0", f"layer{stage}.0.downsample.1", 4 * width, skipped, 1)
    return shapes | {"fc.weight": (1000, 2048), "fc.bias": (1000,)}


def test_names_of_resnet50_are_the_order_of_its_calls() -> None:
    state = {key: np.broadcast_to(np.float32(0), shape) for key, shape in resnet50_shapes().items()}
    model = ResNet50(norms.get("batch"))
    x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: model.init(KEY, x, train=False), x)
    named = from_torch(state, model, variables, x, names="torchvision", train=False)
    ordered = from_torch(state, model, variables, x, train=False)
    assert named.names == ordered.names and len(named.names) == 107
    assert named.names["layer4.2.bn3"] == "block_15/norm_2"


class Pair(nn.Module):
    """Two layers of one shape; called in an order of choice."""

    swapped: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        a, b = nn.Dense(3, name="a"), nn.Dense(3, name="b")
        y = a(b(x)) if self.swapped else b(a(x))
        return nn.Dense(2, name="head")(nn.LayerNorm(epsilon=1e-5, name="norm")(y))


ONE = jnp.ones((1, 3))
PAIR = numbers(
    {"x.weight": (3, 3), "x.bias": (3,), "y.weight": (3, 3), "y.bias": (3,), "n.weight": (3,), "n.bias": (3,)}
    | {"h.weight": (2, 3), "h.bias": (2,)}
)
VARIABLES = Pair().init(KEY, ONE)


def reordered(first: str) -> Arrays:
    return {key: PAIR[key] for key in sorted(PAIR, key=lambda key: not key.startswith(first))}


def test_layers_are_matched_in_order() -> None:
    assert from_torch(PAIR, Pair(), VARIABLES, ONE).names == {"x": "a", "y": "b", "n": "norm", "h": "head"}
    assert from_torch(PAIR, Pair(True), VARIABLES, ONE).names == {"x": "b", "y": "a", "n": "norm", "h": "head"}


def test_a_choice_is_refused_with_both_candidates() -> None:
    with pytest.raises(BadInput) as error:
        from_torch(reordered("n"), Pair(), VARIABLES, ONE)
    assert str(error.value) == (
        "Expected one candidate for `a` by order, kind and shape, got `x` and `y`. Say which it is: "
        '`names={"x": "a"}`, if so.'
    )
    found = from_torch(reordered("n"), Pair(), VARIABLES, ONE, names={"y": "a"})
    assert found.names == {"x": "b", "y": "a", "n": "norm", "h": "head"}
    found = from_torch(reordered("n"), Pair(), VARIABLES, ONE, names=lambda name: {"x": "a"}.get(name))
    assert found.names == {"x": "a", "y": "b", "n": "norm", "h": "head"}
    with pytest.raises(
        BadInput, match=r"^Expected one candidate for `x` by order, kind and shape, got `a` and `b`\. Say"
    ):
        from_torch({key: array for key, array in PAIR.items() if key[0] != "y"}, Pair(), VARIABLES, ONE)


@pytest.mark.parametrize(
    ("changes", "names", "sentence"),
    [
        (
            {"z.weight": np.zeros((7, 7))},
            "auto",
            "Expected every array to be used once, got no place for `z.weight` (7, 7). Change the model, say `names=`, "
            "or leave them out by `strict=False`.",
        ),
        (
            {"h.weight": np.zeros((5, 3)), "h.bias": np.zeros(5)},
            "auto",
            "Expected every array to be used once, got no place for `h.weight` (5, 3), `h.bias` (5,) and nothing for "
            "`head/bias` (2,), `head/kernel` (3, 2). Change the model, say `names=`, or leave them out by "
            "`strict=False`.",
        ),
        (
            {f"{name}.weight": np.zeros(9) for name in "pqrstu"},
            "auto",
            "Expected every array to be used once, got no place for `p.weight` (9,), `q.weight` (9,), `r.weight` (9,), "
            "`s.weight` (9,) and 2 more. Change the model, say `names=`, or leave them out by `strict=False`.",
        ),
        ({}, {"z": "a"}, "Expected names of layers of the state in `names`, got `z`. Known: h, n, x, y."),
        ({}, {"x": "hed"}, "Expected the path of a module for `x`, got `hed`. Did you mean `head`?"),
        ({}, {"x": "a", "y": "a"}, "Expected a module for each layer, got `a` twice. Change `names`."),
        (
            {},
            {"x": "head"},
            "Expected a layer that fits `head` (dense: bias (2,), kernel (3, 2)), got `x` (weight (3, 3), bias (3,)). "
            "Change `names` or the model.",
        ),
        (
            {},
            "torch",
            "Expected `names` to be a mapping or a function, got `torch`. Leave it out to match by order, kind and "
            "shape.",
        ),
        (
            {},
            "torchvision",
            "Expected the names of a residual network of torchvision or timm, such as `layer1.0.conv1`, got `x`. Say "
            "`names='auto'`, or give the paths of the modules.",
        ),
        ({"model": {}}, "auto", "Expected arrays by name in `state`, got {}. Pass what is under `model`."),
        (
            {"h.parametrizations.weight.original0": np.zeros((2, 1))},
            "auto",
            "Expected plain weights in `state`, got `h.parametrizations.weight.original0`. Call `torch.nn.utils."
            "parametrize.remove_parametrizations(layer, 'weight')` of the layer before `state_dict()`.",
        ),
    ],
)
def test_arrays_without_a_place_and_wrong_names_are_refused(changes: Any, names: Any, sentence: str) -> None:
    with pytest.raises(BadInput) as error:
        from_torch(PAIR | changes, Pair(), VARIABLES, ONE, names=names)
    assert str(error.value) == sentence


@pytest.mark.parametrize("option", ["eps", "flatten"])
def test_options_of_unknown_layers_are_refused(option: str) -> None:
    with pytest.raises(BadInput) as error:
        from_torch(PAIR, Pair(), VARIABLES, ONE, **{option: {"nn": 0}})
    assert str(error.value) == f"Expected names of layers of the state in `{option}`, got `nn`. Did you mean `n`?"


def test_arrays_without_a_place_are_left_out_on_demand() -> None:
    state = {key: array for key, array in PAIR.items() if key[0] != "h"} | {"z.weight": np.zeros((7, 7))}
    found = from_torch(state, Pair(), VARIABLES, ONE, strict=False)
    assert found.report == (
        "`PyTorch`: Expected every array to be used once, got no place for `z.weight` (7, 7) and nothing for "
        "`head/bias` (2,), `head/kernel` (3, 2); left out.",
    )
    kept = found.variables["params"]["head"]["kernel"]
    np.testing.assert_array_equal(kept, VARIABLES["params"]["head"]["kernel"])
    np.testing.assert_array_equal(found.variables["params"]["a"]["kernel"], state["x.weight"].T)


@pytest.mark.parametrize(
    ("model", "state", "sentence"),
    [
        (
            linen.InstanceNorm(epsilon=1e-5),
            {"n.weight": (4,), "n.bias": (4,), "n.running_mean": (4,), "n.running_var": (4,)},
            "`n` is an instance norm with running statistics, which Flax has none of: make it with "
            "`track_running_stats=False`.",
        ),
        (
            nn.ConvTranspose(6, (3, 3), use_bias=False),
            {"c.weight": (4, 3, 3, 3)},
            "`c` is a transposed convolution in groups, which Flax has none of.",
        ),
    ],
)
def test_layers_that_flax_lacks_are_refused(model: nn.Module, state: Any, sentence: str) -> None:
    x = jnp.ones((1, 5, 5, 4))
    with pytest.raises(BadInput) as error:
        from_torch(numbers(state), model, jax.eval_shape(model.init, KEY, x), x)
    assert str(error.value).startswith("Expected every array to be used once, got no place for `")
    assert str(error.value).endswith(f". {sentence}")


def test_batch_renorm_is_refused() -> None:
    model, x = linen.BatchRenorm(use_running_average=True), jnp.ones((2, 3))
    with pytest.raises(BadInput) as error:
        from_torch({}, model, model.init(KEY, x), x)
    assert str(error.value) == (
        "Expected a norm that keeps a variance at the model, got batch renorm, which keeps a standard deviation. Take "
        "`BatchNorm` here, and `functional.as_batch_renorm` for its statistics."
    )


class Flat(nn.Module):
    """A dense layer after a reshape of choice."""

    reshape: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(2, use_bias=False)(nn.relu(self.reshape(x)))


def test_rows_after_a_flatten_are_those_of_channels_last() -> None:
    weight = np.random.default_rng(0).normal(size=(2, 24)).astype(np.float32)
    x = np.random.default_rng(1).uniform(size=(5, 4, 3, 2)).astype(np.float32)  # N, C, H, W
    expected = x.reshape(5, 24) @ weight.T
    for reshape in (lambda x: x.reshape(5, -1), jax.vmap(jnp.ravel), jax.jit(lambda x: x.reshape(5, -1) + 0)):
        model = Flat(reshape)
        variables = model.init(KEY, last(x))
        found = from_torch({"fc.weight": weight}, model, variables, last(x))
        close(model.apply(found.variables, last(x)), expected, 2e-6)
        np.testing.assert_array_equal(to_torch(model, found.variables, last(x))["Dense_0.weight"], weight)
    model = Flat(lambda x: jnp.moveaxis(x, -1, 1).reshape(5, -1))
    with pytest.raises(BadInput) as error:
        from_torch({"fc.weight": weight}, model, variables, last(x))
    assert str(error.value) == (
        "Expected to see which axes were flattened ahead of `fc`, got (4, 3, 2) after a transposition. Give PyTorch's "
        "axes without the batch, such as `flatten={'fc': (channels, length)}`, or `()` if both models have the same "
        "order."
    )
    found = from_torch({"fc.weight": weight}, model, variables, last(x), flatten={"fc": ()})
    close(model.apply(found.variables, last(x)), expected, 2e-6)


def test_a_flattened_sequence_is_asked_for() -> None:
    weight = np.random.default_rng(0).normal(size=(2, 12)).astype(np.float32)
    x = np.random.default_rng(1).uniform(size=(5, 4, 3)).astype(np.float32)
    model = Flat(lambda x: x.reshape(5, -1))
    variables = model.init(KEY, jnp.asarray(x))
    with pytest.raises(
        BadInput, match=r"^Expected to see which axes were flattened ahead of `fc`, got \(4, 3\)\. Give"
    ):
        from_torch({"fc.weight": weight}, model, variables, x)
    found = from_torch({"fc.weight": weight}, model, variables, jnp.asarray(x), flatten={"fc": ()})
    close(model.apply(found.variables, x), x.reshape(5, 12) @ weight.T, 2e-6)
    found = from_torch({"fc.weight": weight}, model, variables, jnp.asarray(x), flatten={"fc": (3, 4)})
    close(model.apply(found.variables, x), x.transpose(0, 2, 1).reshape(5, 12) @ weight.T, 2e-6)
    to_torch(model, found.variables, jnp.asarray(x), flatten={"Dense_0": (3, 4)})


def test_padding_that_differs_is_said() -> None:
    class Padded(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x = nn.Conv(2, (3, 3), 2, use_bias=False)(nn.Conv(2, (3, 3), use_bias=False)(x))
            return nn.ConvTranspose(2, (3, 3), (2, 2), use_bias=False)(x)

    x = jnp.ones((1, 8, 8, 2))
    state = numbers({f"{i}.weight": (2, 2, 3, 3) for i in range(3)})
    assert from_torch(state, Padded(), jax.eval_shape(Padded().init, KEY, x), x).report == (
        "`Conv_0`: pads by 'SAME', with a stride mostly at the end alone; PyTorch's `padding=1` is `padding=1` here, "
        "too.",
        "`ConvTranspose_0`: pads by 'SAME'; PyTorch's `padding=p` is `padding=((k - 1 - p, k - 1 - p + "
        "output_padding), ...)` here.",
    )


def test_given_trees_stay_and_keep_their_kind() -> None:
    class Boxed(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return nn.Dense(3, kernel_init=nn.with_partitioning(nn.initializers.ones, ("in", "out")))(x)

    variables = freeze(Boxed().init(KEY, ONE))
    state = {"module.fc.weight": np.eye(3), "module.fc.bias": np.full(3, 1 / 3)}
    found = from_torch(state, Boxed(), variables, ONE)
    assert isinstance(found.variables, FrozenDict)
    kernel = found.variables["params"]["Dense_0"]["kernel"]
    assert isinstance(kernel, nn.Partitioned) and kernel.names == ("in", "out")
    np.testing.assert_array_equal(kernel.value, np.eye(3))
    np.testing.assert_array_equal(variables["params"]["Dense_0"]["kernel"].value, np.ones((3, 3)))
    assert found.names == {"fc": "Dense_0"}
    assert found.report == ("`Dense_0`: `bias` was rounded from float64 to float32.",)


def test_several_axes_of_features_and_parameters_of_a_model() -> None:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            token = self.param("token", nn.initializers.zeros, (1, 1, 4))
            heads = nn.DenseGeneral((2, 3))(nn.Embed(5, 4, name="embed")(x) + token)
            x = nn.DenseGeneral(4, axis=(-2, -1), name="out")(heads)
            axes = (-2, -1)
            return nn.LayerNorm(epsilon=1e-5, reduction_axes=axes, feature_axes=axes)(x)

    tokens = jnp.zeros((2, 3), int)
    state = numbers(
        {"token": (1, 1, 4), "e.weight": (5, 4), "h.weight": (6, 4), "h.bias": (6,), "o.weight": (4, 6), "o.bias": (4,)}
        | {"n.weight": (3, 4), "n.bias": (3, 4)}
    )
    model = Model()
    found = from_torch(state, model, model.init(KEY, tokens), tokens)
    params = found.variables["params"]
    np.testing.assert_array_equal(params["DenseGeneral_0"]["kernel"], state["h.weight"].T.reshape(4, 2, 3))
    np.testing.assert_array_equal(params["out"]["kernel"], state["o.weight"].T.reshape(2, 3, 4))
    np.testing.assert_array_equal(params["token"], state["token"])
    back = to_torch(model, found.variables, tokens, names=found.names)
    assert set(back) == set(state)
    for key, array in state.items():
        np.testing.assert_array_equal(back[key], array)


def test_names_in_to_torch() -> None:
    assert "a.bias" in to_torch(Pair(), VARIABLES, ONE)
    assert "net.a.bias" in to_torch(Pair(), VARIABLES, ONE, names=lambda path: f"net.{path}")
    with pytest.raises(BadInput) as error:
        to_torch(Pair(), VARIABLES, ONE, names="timm")
    assert str(error.value) == (
        "Expected the paths of a residual network of `normlab.models.resnet`, such as `block_0/conv_0`, got `a`. Say "
        "`names='auto'`, or give the names of the layers."
    )
    wrong: Any = lambda path: None  # noqa: E731
    with pytest.raises(BadInput) as error:
        to_torch(Pair(), VARIABLES, ONE, names=wrong)
    assert str(error.value) == ("Expected `names('a')` to be the name of a layer, got None. Return one for every path.")
    with pytest.raises(BadInput) as error:
        to_torch(Pair(), VARIABLES, ONE, names=lambda path: "net")
    assert str(error.value) == "Expected a name for each module, got `net` twice. Change `names`."
    more = {"params": {**VARIABLES["params"], "aside": {"kernel": jnp.ones(1)}}}
    with pytest.raises(BadInput) as error:
        to_torch(Pair(), more, ONE)
    assert str(error.value) == (
        "Expected the call to reach every array, got none of `aside/kernel`. Pass arguments that do."
    )


KINDS: dict[str, Callable[[int], nn.Module]] = {
    "dense": lambda width: nn.Dense(width),
    "conv": lambda width: nn.Conv(width, (3, 1), use_bias=False),
    "up": lambda width: nn.ConvTranspose(width, (2, 3), transpose_kernel=width % 2 == 0),
    "batch": lambda width: linen.BatchNorm(True, momentum=None if width % 2 else 0.9),
    "layer": lambda width: linen.LayerNorm(epsilon=1e-5, use_bias=width % 2 == 0),
    "rms": lambda width: linen.RMSNorm(epsilon=MACHINE_EPSILON),
}


@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(sorted(KINDS)), st.integers(2, 4)), min_size=1, max_size=5), st.booleans())
def test_from_torch_undoes_to_torch(layers: list[tuple[str, int]], flat: bool) -> None:
    flattening = [lambda x: x.reshape(x.shape[0], -1), nn.Dense(3)] if flat else []
    model = nn.Sequential([*(KINDS[kind](width) for kind, width in layers), *flattening])
    x = jax.ShapeDtypeStruct((2, 3, 2, 2), jnp.float32)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.integers(1, 99, leaf.shape).astype(leaf.dtype)), jax.eval_shape(model.init, KEY, x)
    )
    names = {f"{i}": f"layers_{i}" for i in range(len(model.layers))}
    state = to_torch(model, variables, x, names=names)
    jax.tree.map(np.testing.assert_array_equal, from_torch(state, model, variables, x).variables, variables)


def test_torch_itself_loads_the_state() -> None:
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2)).to(torch.bfloat16)
    model = nn.Sequential([nn.Dense(4), linen.BatchNorm(use_running_average=True), nn.Dense(2)])
    variables = model.init(KEY, ONE)
    found = from_torch(net.state_dict(), model, variables, ONE)  # tensors; NumPy knows no bfloat16
    back = to_torch(model, found.variables, ONE, names=found.names)
    net.float().load_state_dict({key: torch.tensor(array) for key, array in back.items()})
    close(model.apply(found.variables, ONE), net.eval()(torch.ones(1, 3)).detach().numpy(), 2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("library", ["torchvision.models", "timm.models"])
def test_resnet50_computes_the_same(library: str) -> None:
    torch, models = pytest.importorskip("torch"), pytest.importorskip(library)
    net = models.resnet50().eval()
    shapes = {key: tuple(tensor.shape) for key, tensor in net.state_dict().items()}
    assert shapes == resnet50_shapes()
    state = numbers(shapes)
    net.load_state_dict({key: torch.tensor(array) for key, array in state.items()})
    images = np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)
    model, x = ResNet50(norms.get("batch")), last(images)
    variables = jax.eval_shape(lambda x: model.init(KEY, x, train=False), x)
    found = from_torch(state, model, variables, x, names=library.partition(".")[0], train=False)
    close(
        jax.jit(lambda v: model.apply(v, x, train=False))(found.variables),
        net(torch.tensor(images)).detach().numpy(),
        2e-6,
    )


def test_a_norm_after_a_flatten_has_the_order_of_its_inputs() -> None:
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            x = x.reshape(x.shape[0], -1)
            return nn.Dense(2, use_bias=False)(linen.BatchNorm(True, momentum=0.9, unbiased_running_var=True)(x))

    state = numbers(
        {f"bn.{part}": (24,) for part in ("weight", "bias", "running_mean", "running_var")}
        | {"bn.num_batches_tracked": (), "fc.weight": (2, 24)}
    )
    x = np.random.default_rng(1).uniform(size=(5, 4, 3, 2)).astype(np.float32)  # N, C, H, W
    normalized = (x.reshape(5, 24) - state["bn.running_mean"]) / np.sqrt(state["bn.running_var"] + 1e-5)
    expected = (normalized * state["bn.weight"] + state["bn.bias"]) @ state["fc.weight"].T
    found = from_torch(state, Model(), jax.eval_shape(Model().init, KEY, last(x)), last(x))
    close(Model().apply(found.variables, last(x)), expected, 2e-6)
    back = to_torch(Model(), found.variables, last(x), names=found.names)
    for key, array in without_counters(state).items():
        np.testing.assert_array_equal(back[key], array)
