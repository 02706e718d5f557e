"""Test networks: published sizes, wiring against NumPy, both Flax APIs, every norm, convolutions against Flax's."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from scipy.special import erf, expit, softmax

from normlab import norms
from normlab.introspect.pure import network
from normlab.models import convolution, resnet, stacking
from normlab.models import nnx as nnx_models
from normlab.models.convolution import Conv, convolve, halved
from normlab.models.mlp import MLP
from normlab.models.resnet import ConvLayer, ResNet, ResNet50
from normlab.models.vgg import VGG
from normlab.models.vit import ViTTiny
from normlab.norms import Norm
from normlab.study.training.compilation import collective_bytes
from tests.support.registered import ALL, GROUPED

Tree = Mapping[str, Any]
QUICK = {"xla_backend_optimization_level": 0}
"""For XLA: half the time to compile."""

KEY = jax.random.key(7, impl="unsafe_rbg")
"""Of the kind that compiles fastest."""


def norm_of(name: str, groups: int = 4) -> Norm:
    return norms.get(name, **({"num_groups": groups} if name in GROUPED else {}))


def images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def shapes_of(module: nn.Module, x: np.ndarray) -> Tree:
    return jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))


def filled(shapes: Tree, spread: float = 0.0) -> Tree:
    """Make variables with NumPy: kernels of a useful size, other variables within `spread` of their initial values."""
    rng = np.random.default_rng(5)

    def fill(path: Any, leaf: Any) -> np.ndarray:
        name, around = path[-1].key, spread * rng.normal(size=leaf.shape)
        if name == "kernel":
            around = rng.normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
        elif name in ("scale", "var", "alpha", "lam"):
            around = 1 + np.abs(around)
        return around.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def outputs(module: nn.Module, variables: Tree, x: np.ndarray, train: bool = False) -> tuple[Any, Any]:
    apply = partial(module.apply, train=train, mutable=["batch_stats"])
    return jax.jit(apply, compiler_options=QUICK)(variables, x)


class TestPublishedSizes:
    @pytest.mark.parametrize(
        ("module", "size", "parameters"),
        [
            (ResNet(norm_of("batch")), 32, 269_722),
            (ResNet(norm_of("batch"), placement="pre"), 32, 269_722),
            (ResNet(norm_of("batch"), depth=56), 32, 853_018),
            (ResNet50(norm_of("batch")), 224, 25_557_032),
            (VGG(norm_of("batch"), depth=11), 32, 9_231_114),
            (VGG(norm_of("batch"), depth=16), 32, 14_728_266),
            (ViTTiny(norm_of("layer")), 224, 5_717_416),
        ],
        ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
    )
    def test_parameters(self, module: Any, size: int, parameters: int) -> None:
        x = np.zeros((2, size, size, 3), np.float32)
        logits, variables = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), x, train=True))
        assert count(variables["params"]) == parameters
        assert logits.shape == (2, module.classes)

    def test_parameters_in_nnx(self) -> None:
        net = nnx.eval_shape(lambda: nnx_models.ResNet(norm_of("batch"), rngs=nnx.Rngs(0)))
        assert count(nnx.state(net, nnx.Param)) == 269_722

    @pytest.mark.parametrize("name", ALL)
    @pytest.mark.parametrize(
        ("model", "size"), [(partial(VGG, depth=11), 33), (partial(ViTTiny, patch=4, depth=1), 8)], ids=["vgg", "vit"]
    )
    def test_every_norm_fits(self, model: Callable[..., Any], size: int, name: str) -> None:
        module, x = model(norm_of(name), classes=7), images(2, size, size, 1)
        logits, _ = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), x, train=True))
        assert logits.shape == (2, 7)


def count(tree: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


class TestTraining:
    @pytest.mark.parametrize("name", ALL)
    def test_every_norm_trains_a_residual_network(self, name: str) -> None:
        x, labels = images(4, 8, 8, 1), np.arange(4)
        state = filled(shapes_of(ResNet(norm_of(name), depth=8), x), spread=0.1)
        net = network(partial(ResNet, depth=8), norm_of(name), x)

        def update(params: Any, model_state: Any) -> tuple[Any, Any, Any]:
            (loss, _), gradients, model_state = net.gradients(
                lambda out: (cross_entropy(out, labels), ()), params, model_state, jnp.asarray(x), jnp.int32(0)
            )
            return loss, gradients, model_state

        params, model_state = state["params"], ({k: v for k, v in state.items() if k != "params"}, np.uint32(0))
        loss, gradients, after = jax.jit(update, compiler_options=QUICK)(params, model_state)
        assert jnp.isfinite(loss)
        check_gradients(gradients, params)
        moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), after, model_state)
        assert any(jax.tree.leaves(moved)) == norms.get(name).stateful

    def test_resnet50_at_224(self) -> None:
        module, x, labels = ResNet50(norm_of("batch")), images(2, 224, 224, 3), np.array([3, 998])
        variables = filled(shapes_of(module, x))

        def loss(params: Any) -> tuple[jax.Array, Any]:
            out, after = module.apply({**variables, "params": params}, x, train=True, mutable=["batch_stats"])
            return cross_entropy(out, labels), after

        step = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK)
        (before, after), gradients = step(variables["params"])
        check_gradients(gradients, variables["params"])
        assert all(
            jax.tree.leaves(jax.tree.map(lambda a, b: np.any(a != b), after["batch_stats"], variables["batch_stats"]))
        )
        (now, _), _ = step(jax.tree.map(lambda p, g: p - 0.01 * g, variables["params"], gradients))
        assert now < before


def cross_entropy(logits: Any, labels: np.ndarray) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def check_gradients(gradients: Any, like: Any) -> None:
    """Check that a finite gradient reaches every parameter."""
    chex.assert_trees_all_equal_shapes(gradients, like)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.all(np.isfinite(leaf)) and np.any(leaf != 0), jax.tree_util.keystr(path)


BASIC = (ConvLayer(8), ConvLayer(8))
SCALED = [name for name in ALL if name != "grn" and hasattr(norm_of(name).linen(train=True), "scale_init")]
BOTTLENECK = (ConvLayer(4, 1), ConvLayer(4), ConvLayer(8, 1))


class TestZeroLastScale:
    @pytest.mark.parametrize(("name", "layers"), [("batch", BOTTLENECK), *((name, BASIC) for name in SCALED)])
    def test_blocks_start_as_the_identity(self, name: str, layers: Any) -> None:
        x = np.abs(images(4, 4, 4, 8))  # as after a ReLU

        def start(zero_last_scale: bool) -> jax.Array:
            block = resnet._Block(norm_of(name), layers, "post", zero_last_scale, first=False)
            variables = jax.eval_shape(lambda: block.init(KEY, x, train=False))
            parts = [k for k in variables if k != "params"]

            def run() -> Any:
                variables = block.init(KEY, x, train=False)
                return block.apply(variables, x, train=True, mutable=parts)[0]

            return jax.jit(run, compiler_options=QUICK)()

        np.testing.assert_array_equal(start(True), x)
        if name == "batch":  # the test can fail
            assert np.max(np.abs(start(False) - x)) > 0.1

    def test_a_norm_without_a_scale_stays(self) -> None:
        none = norms.get("none")
        assert resnet.starting_at_zero(none) is none

    def test_only_where_the_last_norm_is_last(self) -> None:
        with pytest.raises(ValueError, match="Expected `placement='post'` with `zero_last_scale`, got 'pre'"):
            shapes_of(ResNet(norm_of("batch"), placement="pre", zero_last_scale=True), images(1, 8, 8, 1))


class TestAgainstNumPy:
    """Wiring, compared with float64 networks written from the papers, with the same weights."""

    @pytest.mark.parametrize("placement", ["post", "pre"])
    def test_resnet(self, placement: Any) -> None:
        x = images(3, 8, 8, 3)
        module = ResNet(norm_of("batch"), depth=14, placement=placement)
        variables = filled(shapes_of(module, x), spread=0.3)
        logits, _ = outputs(module, variables, x, train=True)
        check_close(logits, residual(variables, x, placement, True, [1, 1, 2, 1, 2, 1]))

    @pytest.mark.parametrize("placement", ["post", "pre"])
    def test_resnet50(self, placement: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        blocks = resnet._bottleneck_blocks()
        assert [max(layer.stride for layer in block) for block in blocks] == [1] * 3 + ([2] + 3 * [1]) + (
            [2] + 5 * [1]
        ) + [2, 1, 1]
        monkeypatch.setattr(resnet, "_bottleneck_blocks", lambda: blocks[2:5])
        x = images(2, 20, 20, 3)
        module = ResNet50(norm_of("batch"), classes=5, placement=placement)
        variables = filled(shapes_of(module, x), spread=0.3)
        check_close(outputs(module, variables, x)[0], residual(variables, x, placement, False, [1, 2, 1]))

    def test_vgg(self) -> None:
        x = images(2, 20, 20, 3)
        module = VGG(norm_of("layer"), depth=11)
        p = filled(shapes_of(module, x), spread=0.3)["params"]
        y = x.astype(np.float64)
        for stage, layers in enumerate((1, 1, 2, 2, 2)):
            for i in range(layers):
                y = conv(y, p[f"conv_{stage}_{i}"]) + p[f"conv_{stage}_{i}"]["bias"]
                y = np.maximum(layer_norm(y, p[f"norm_{stage}_{i}"]), 0)
            y = pool(y, 2, 0)
        check_close(outputs(module, {"params": p}, x)[0], dense(y.mean((1, 2)), p["head"]))

    def test_vit(self) -> None:
        x = images(2, 8, 12, 3)
        module = ViTTiny(norm_of("layer"), classes=5, patch=4, depth=2)
        p = filled(shapes_of(module, x), spread=0.3)["params"]
        tokens = [x[:, i : i + 4, j : j + 4].reshape(2, -1) for i in (0, 4) for j in (0, 4, 8)]
        y = dense(np.stack(tokens, 1).astype(np.float64), p["embedding"])
        y = np.concatenate([np.repeat(p["class_token"], 2, 0), y], 1) + p["positions"]
        for i in range(2):
            y = transformer_layer(y, p[f"layer_{i}"])
        check_close(outputs(module, {"params": p}, x)[0], dense(layer_norm(y, p["norm_last"])[:, 0], p["head"]))

    @pytest.mark.parametrize(("name", "activate"), [("relu", lambda y: np.maximum(y, 0)), ("sigmoid", expit)])
    def test_mlp(self, name: Any, activate: Callable[[Any], Any]) -> None:
        x = images(3, 8, 8, 1)
        module = MLP(norm_of("layer"), hidden=(20, 30), activation=name)
        p = filled(shapes_of(module, x), spread=0.3)["params"]
        y = x.reshape(3, -1).astype(np.float64)
        for i in range(2):
            y = activate(layer_norm(dense(y, p[f"dense_{i}"]), p[f"norm_{i}"]))
        check_close(outputs(module, {"params": p}, x)[0], dense(y, p["head"]))


def residual(variables: Tree, x: np.ndarray, placement: str, train: bool, strides: list[int]) -> np.ndarray:
    """Compute the logits of a residual network, basic or bottleneck, with batch norm."""
    p, statistics = variables["params"], variables["batch_stats"]

    def active(y: np.ndarray, *path: str, relu: bool = True) -> np.ndarray:
        own, kept = p, statistics
        for key in path:
            own, kept = own[key], kept[key]
        mean, var = (y.mean((0, 1, 2)), y.var((0, 1, 2))) if train else (kept["mean"], kept["var"])
        y = (y - mean) / np.sqrt(var + 1e-5) * own["scale"] + own["bias"]
        return np.maximum(y, 0) if relu else y

    bottleneck = "conv_2" in p["block_0"]
    y = conv(x.astype(np.float64), p["stem"], 2 if bottleneck else 1)
    y = active(y, "norm_stem") if placement == "post" else y
    y = pool(y, 3, 1) if bottleneck else y
    for i, stride in enumerate(strides):
        name = f"block_{i}"
        block = p[name]
        steps = (1, stride, 1) if bottleneck else (stride, 1)
        start = z = y
        for j, step in enumerate(steps):
            if placement == "pre":
                z = active(z, name, f"norm_{j}")
                start = z if j == 0 and (i == 0 or "shortcut" in block) else start
            z = conv(z, block[f"conv_{j}"], step)
            if placement == "post":
                z = active(z, name, f"norm_{j}", relu=j < len(steps) - 1)
        if "shortcut" in block:
            start = conv(start, block["shortcut"], stride)
            start = active(start, name, "norm_shortcut", relu=False) if placement == "post" else start
        elif start.shape != z.shape:
            start = start[:, ::stride, ::stride]
            start = np.concatenate([start, np.zeros((*z.shape[:3], z.shape[3] - start.shape[3]))], -1)
        y = np.maximum(z + start, 0) if placement == "post" else z + start
    y = active(y, "norm_last") if placement == "pre" else y
    return dense(y.mean((1, 2)), p["head"])


def conv(x: np.ndarray, layer: Tree, stride: int = 1) -> np.ndarray:
    """Convolve, one position of the kernel at a time, without bias."""
    kernel = layer["kernel"].astype(np.float64)
    size, (height, width) = len(kernel), x.shape[1:3]
    border = (size // 2,) * 2
    x = np.pad(x, ((0, 0), border, border, (0, 0)))
    places = [(i, j) for i in range(size) for j in range(size)]
    return sum((x[:, i : i + height, j : j + width] @ kernel[i, j] for i, j in places), np.zeros(()))[
        :, ::stride, ::stride
    ]


def pool(x: np.ndarray, size: int, before: int) -> np.ndarray:
    """Max-pool windows two positions apart; the first starts `before` positions outside."""
    places = [range(max(0, i - before), min(n, i - before + size)) for n in x.shape[1:3] for i in range(0, n, 2)]
    rows, columns = places[: -(-x.shape[1] // 2)], places[-(-x.shape[1] // 2) :]
    return np.stack([np.stack([x[:, r][:, :, c].max((1, 2)) for c in columns], 1) for r in rows], 1)


def transformer_layer(x: np.ndarray, p: Tree) -> np.ndarray:
    y, attention = layer_norm(x, p["norm_0"]), p["attention"]
    query, key, value = (
        np.einsum("btc,chd->bhtd", y, attention[name]["kernel"]) + attention[name]["bias"][:, None]
        for name in ("query", "key", "value")
    )
    assert query.shape[1:] == (3, x.shape[1], 64)
    mixed = softmax(query @ key.swapaxes(2, 3) / 8, axis=-1) @ value
    x = x + np.einsum("bhtd,hdc->btc", mixed, attention["out"]["kernel"]) + attention["out"]["bias"]
    y = dense(layer_norm(x, p["norm_1"]), p["dense_0"])
    return x + dense(y * (1 + erf(y / np.sqrt(2))) / 2, p["dense_1"])


def layer_norm(x: np.ndarray, p: Tree) -> np.ndarray:
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-6) * p["scale"] + p["bias"]


def dense(x: np.ndarray, p: Tree) -> np.ndarray:
    return x @ p["kernel"].astype(np.float64) + p["bias"]


def check_close(ours: Any, reference: np.ndarray) -> None:
    assert reference.std() > 0.01
    np.testing.assert_allclose(ours, reference, rtol=2e-4, atol=2e-4 * float(np.abs(reference).max()))


class TestBothAPIs:
    @pytest.mark.parametrize(
        ("linen", "own"),
        [
            (
                partial(MLP, hidden=(20, 30), activation="sigmoid"),
                partial(nnx_models.MLP, inputs=192, hidden=(20, 30), activation="sigmoid"),
            ),
            (partial(ResNet, depth=8), partial(nnx_models.ResNet, depth=8)),
        ],
        ids=["mlp", "resnet"],
    )
    def test_numbers_are_the_same(self, linen: Any, own: Any) -> None:
        x = images(4, 8, 8, 3)
        module = linen(norm_of("batch"))
        variables = filled(shapes_of(module, x), spread=0.3)
        net = nnx.eval_shape(lambda: own(norm_of("batch"), rngs=nnx.Rngs(0)))
        assert shapes(nnx.state(net, nnx.Param)) == shapes(variables["params"])
        assert shapes(nnx.state(net, nnx.BatchStat)) == shapes(variables["batch_stats"])
        state = nnx.state(net, (nnx.Param, nnx.BatchStat))
        nnx.replace_by_pure_dict(state, merge(variables["params"], variables["batch_stats"]))

        for train in (True, False):
            net.train() if train else net.eval()
            logits, after = jax.jit(partial(called, nnx.graphdef(net)), compiler_options=QUICK)(state, x)
            ours, averages = outputs(module, variables, x, train)
            np.testing.assert_allclose(logits, ours, rtol=1e-4, atol=1e-5)
            chex.assert_trees_all_close(nnx.to_pure_dict(after), dict(averages["batch_stats"]), rtol=1e-4, atol=1e-6)

    def test_masks_reach_the_norms_of_an_mlp(self) -> None:
        x, mask = images(4, 6), np.array([True, True, True, False])

        def call(x: jax.Array, **counted: Any) -> jax.Array:
            return nnx_models.MLP(norm_of("batch"), inputs=6, hidden=(5,), rngs=nnx.Rngs(KEY))(x, **counted)

        call = jax.jit(call, compiler_options=QUICK)
        np.testing.assert_allclose(call(x, mask=mask)[:3], call(x[:3]), rtol=1e-4, atol=1e-5)


def called(graph: Any, state: Any, x: jax.Array) -> Any:
    net = nnx.merge(graph, state)
    return net(x), nnx.state(net, nnx.BatchStat)


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    tree = nnx.to_pure_dict(tree) if isinstance(tree, nnx.State) else tree
    return {jax.tree_util.keystr(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def merge(a: Tree, b: Tree) -> dict[str, Any]:
    both = {key: merge(a[key], b[key]) for key in a.keys() & b.keys()}
    return {**a, **b, **both}


class TestStart:
    @pytest.mark.parametrize("model", [ResNet, partial(ResNet, placement="pre"), VGG, partial(ViTTiny, patch=4)])
    def test_names_of_shared_parameters_do_not_depend_on_the_norm(self, model: Any) -> None:
        """Compare names, because Linen draws a parameter by the seed and the path of its module."""

        def shared(name: str) -> dict[str, Any]:
            params = shapes_of(model(norm_of(name)), images(2, 8, 8, 1))["params"]
            return {path: shape for path, shape in shapes(params).items() if "norm_" not in path}

        assert len(shared("none")) >= 20
        assert shared("batch") == shared("none")

    def test_residual_convolutions_start_as_published(self) -> None:
        init = jax.jit(resnet.convolution(64, 3).init, compiler_options=QUICK)
        kernel = np.asarray(init(KEY, images(1, 4, 4, 32))["params"]["kernel"])
        assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.03)
        assert np.abs(kernel).max() > 3 * kernel.std()  # not cut off


class TestConvolutions:
    @pytest.mark.parametrize(
        ("batch", "channels", "size", "stride", "side"),
        [(5, 3, 1, 2, 7), (5, 3, 3, 1, 8), (8, 3, 3, 2, 7), (8, 6, 3, 1, 7), (5, 6, 3, 2, 8), (8, 3, 7, 2, 9)],
    )
    def test_are_those_of_flax(
        self, batch: int, channels: int, size: int, stride: int, side: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        x, border = images(batch, side, side, channels), [(size // 2, size // 2)] * 2
        theirs, ours = nn.Conv(5, (size, size), stride, border), Conv(5, size, stride)
        variables = filled(jax.eval_shape(lambda: theirs.init(jax.random.key(0), x)), spread=1.0)
        cotangent = images(batch, -(-side // stride), -(-side // stride), 5, seed=1)

        def pulled(module: nn.Module) -> Any:
            apply: Any = module.apply
            gradient = jax.value_and_grad(lambda v, x: jnp.vdot(apply(v, x), cotangent), (0, 1))
            return jax.jit(gradient, compiler_options=QUICK)(variables, x)

        reference = pulled(theirs)
        chex.assert_trees_all_close(pulled(ours), reference, rtol=1e-4, atol=1e-4)
        monkeypatch.setattr(convolution.jax, "default_backend", lambda: "gpu")
        chex.assert_trees_all_close(pulled(ours), reference, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        ("channels", "features", "size", "stride", "side"),
        [(5, 4, 3, 1, 7), (4, 5, 3, 1, 6), (4, 4, 3, 2, 7), (4, 4, 3, 2, 8), (4, 4, 1, 1, 4), (4, 2, 7, 1, 5)],
    )
    def test_stacks_are_matrix_products(
        self, channels: int, features: int, size: int, stride: int, side: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(convolution.jax, "default_backend", lambda: "gpu")
        x, kernels = images(3, 2, side, side, channels), images(3, size, size, channels, features, seed=1)

        def gradients(apply: Callable[..., jax.Array], axis: str | None) -> Any:
            def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
                return jnp.sin(apply(x, kernel, stride)).sum()

            made = jax.vmap(jax.value_and_grad(loss, (0, 1)), axis_name=axis)
            return jax.jit(made, compiler_options=QUICK)

        stacked = gradients(convolve, stacking.AXIS)
        reference = gradients(convolution._by_xla, None)(x, kernels)
        chex.assert_trees_all_close(stacked(x, kernels), reference, rtol=1e-4, atol=1e-4)
        assert ".convolution" not in stacked.lower(x, kernels).as_text()
        assert ".convolution" in stacked.lower(x[:1], kernels[:1]).as_text()
        assert convolution.PRODUCTS in stacked.lower(x, kernels).as_text(debug_info=True)
        assert convolution.PRODUCTS not in stacked.lower(x[:1], kernels[:1]).as_text(debug_info=True)
        half = (array.astype(jnp.bfloat16) for array in (x, kernels))
        assert jax.eval_shape(jax.vmap(convolve, axis_name=stacking.AXIS), *half).dtype == jnp.bfloat16

    @pytest.mark.parametrize("backend", ["cpu", "gpu"])
    def test_images_and_kernels_may_differ_in_dtype(self, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(convolution.jax, "default_backend", lambda: backend)
        x, kernel = jax.ShapeDtypeStruct((2, 4, 4, 3), jnp.bfloat16), jax.ShapeDtypeStruct((3, 3, 3, 2), jnp.float32)
        assert jax.eval_shape(convolve, x, kernel).dtype == jnp.float32
        assert jax.eval_shape(convolve, x, jax.ShapeDtypeStruct(kernel.shape, jnp.bfloat16)).dtype == jnp.bfloat16

    @pytest.mark.parametrize(("batch", "channels"), [(3, 2), (8, 4)])
    def test_derivatives_compose(self, batch: int, channels: int) -> None:
        x, kernel = images(2, batch, 4, 4, channels), images(2, 3, 3, channels, 2, seed=1)
        towards = images(2, 3, 3, channels, 2, seed=2)

        def derivatives(apply: Callable[..., jax.Array]) -> Any:
            def one(x: jax.Array, kernel: jax.Array, towards: jax.Array) -> Any:
                def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
                    return jnp.tanh(apply(x, kernel)).sum()

                first, second = jax.jvp(jax.grad(loss, 1), (x, kernel), (x, towards))
                return first, second, jax.grad(lambda k: jnp.vdot(jax.grad(loss)(x, k), x))(kernel)

            return jax.jit(jax.vmap(one), compiler_options=QUICK)(x, kernel, towards)

        reference = derivatives(lambda x, kernel: convolution._by_xla(x, kernel, 1))
        chex.assert_trees_all_close(derivatives(convolve), reference, rtol=1e-3, atol=1e-3)

    @pytest.mark.parametrize(("batch", "side", "convolutions"), [(5, 6, 5), (8, 6, 5), (8, 4, 2)])
    def test_all_are_canonical_in_loops(self, batch: int, side: int, convolutions: int) -> None:
        """XLA:CPU computes others without its library; where the last image is tiny there are matrix products."""
        x, kernels = jnp.ones((batch, side, side, 8)), [jnp.ones((3, 3, 8, 8)), jnp.ones((3, 3, 8, 8))]

        def loss(kernels: list[jax.Array]) -> jax.Array:
            return jnp.tanh(convolve(jnp.tanh(convolve(x, kernels[0])), kernels[1], 2)).sum()

        def step(kernels: list[jax.Array], _: None) -> tuple[list[jax.Array], None]:
            return jax.grad(loss)(kernels), None

        train = jax.jit(lambda kernels: jax.lax.scan(step, kernels, length=3)[0], compiler_options=QUICK)
        made = [line for line in str(train.lower(kernels).compile().as_text()).splitlines() if " convolution(" in line]
        assert len(made) == convolutions
        assert all("dim_labels=b01f_01io->b01f" in line and "reversal" not in line for line in made)

    @pytest.mark.parametrize("use_bias", [True, False])
    def test_start_as_those_of_flax(self, use_bias: bool) -> None:
        nets = Conv(5, use_bias=use_bias), nn.Conv(5, (3, 3), use_bias=use_bias)
        init = jax.jit(lambda key, x: [net.init(key, x) for net in nets], compiler_options=QUICK)
        chex.assert_trees_all_equal(*init(KEY, images(1, 4, 4, 3)))

    def test_patches_are_gathered_while_they_are_few(self, monkeypatch: pytest.MonkeyPatch) -> None:
        x, kernel = jnp.ones((5, 4, 4, 3)), jnp.ones((3, 3, 3, 2))

        def gathers(at_once: int) -> bool:
            monkeypatch.setattr(convolution, "_AT_ONCE", at_once)
            return "conv_general_dilated" not in str(jax.make_jaxpr(lambda *a: convolve(*a))(x, kernel))

        assert gathers(5 * 4 * 4 * 27)
        assert not gathers(5 * 4 * 4 * 27 - 1)

    @pytest.mark.parametrize(("batch", "channels"), [(16, 3), (16, 8), (6, 8)])
    def test_examples_stay_on_their_devices(self, batch: int, channels: int) -> None:
        """Devices exchange the gradient of a kernel, and nothing else."""
        shared = NamedSharding(Mesh(np.asarray(jax.devices()[:2]), ("data",)), PartitionSpec("data"))
        x, kernel = jax.device_put(images(batch, 4, 4, channels), shared), images(3, 3, channels, 4, seed=1)
        gradients = jax.grad(lambda x, kernel: jnp.tanh(convolve(x, kernel)).sum(), (0, 1))
        compiled = jax.jit(gradients, compiler_options=QUICK).lower(x, kernel).compile()
        assert collective_bytes(str(compiled.as_text())) == kernel.nbytes
        chex.assert_trees_all_close(
            compiled(x, kernel), jax.jit(gradients)(np.asarray(x), kernel), rtol=1e-4, atol=1e-5
        )

    @pytest.mark.parametrize("side", [6, 7, 1])
    def test_halving_takes_the_largest(self, side: int) -> None:
        x, cotangent = images(2, side, side, 3), images(2, -(-side // 2), -(-side // 2), 3, seed=1)

        @partial(jax.jit, static_argnums=0, compiler_options=QUICK)
        def pulled(function: Callable[..., Any], x: np.ndarray) -> Any:
            y, pull = jax.vjp(function, x)
            return y, pull(cotangent)

        theirs = pulled(lambda x: nn.max_pool(x, (2, 2), (2, 2), "SAME"), x)
        chex.assert_trees_all_equal(pulled(halved, x), theirs)
        np.testing.assert_array_equal(theirs[0], pool(x, 2, 0))


class TestBadOptions:
    @pytest.mark.parametrize(
        ("module", "message"),
        [
            (ResNet(norm_of("none"), depth=21), "Expected `depth` to be 6n \\+ 2 .* got 21"),
            (ResNet(norm_of("none"), depth=2), "Expected `depth` to be 6n \\+ 2 .* got 2"),
            (ResNet(norm_of("none"), placement="Pre"), "Expected `placement` to be 'post' or 'pre', got 'Pre'"),  # pyright: ignore
            (VGG(norm_of("none"), depth=12), "Expected `depth` to be one of 11, 13, 16, 19, got 12"),
            (ViTTiny(norm_of("none"), patch=3), "Expected images that `patch` = 3 divides, got 8 x 8 pixels"),
            (MLP(norm_of("none"), activation="tanh"), "Expected `activation` to be 'relu' or 'sigmoid', got 'tanh'"),  # pyright: ignore
        ],
    )
    def test_say_what_was_expected(self, module: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            shapes_of(module, images(1, 8, 8, 1))
