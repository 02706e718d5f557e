"""The arithmetic of folding beside NumPy in float64, and beside the layers of Flax in float64."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from normlab.tools.folding.affine import Affine, affine_of
from normlab.tools.folding.kernels import Layout, Weights, into_input, into_output
from normlab.tools.folding.layouts import is_known, layout_of, normalizes_kernel
from normlab.tools.folding.notes import notes_on

KERNEL, BIAS = np.array([[1.0, 2], [3, 4]]), np.array([0.5, -1])
NORM = affine_of([1, -2], [3.99999, 0.24999], 1e-5, [2, 3], [0.1, 0.2])


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape)


def some(features: tuple[int, ...], shift: bool = True) -> Affine:
    return Affine(draw(*features, seed=1) + 0.1, draw(*features, seed=2) * shift)


def test_vector_of_a_dense_layer() -> None:
    kernel, bias = into_output(Weights(KERNEL, BIAS), NORM, Layout())
    np.testing.assert_allclose(NORM.factor, [1, 6], rtol=1e-15)
    np.testing.assert_allclose(NORM.shift, [-0.9, 12.2], rtol=1e-15)
    np.testing.assert_allclose(kernel, [[1, 12], [3, 24]], rtol=1e-15)
    np.testing.assert_allclose(bias, [-0.4, 6.2], rtol=1e-14)
    np.testing.assert_allclose(np.ones(2) @ kernel + bias, [3.6, 42.2], rtol=1e-14)


def test_vector_of_a_dense_layer_behind() -> None:
    kernel, bias = into_input(Weights(np.ones((2, 1)), np.zeros(1)), NORM, Layout())
    np.testing.assert_allclose(kernel, [[1], [6]], rtol=1e-15)
    np.testing.assert_allclose(bias, [11.3], rtol=1e-15)


def test_a_layer_without_bias_gets_one() -> None:
    kernel, bias = into_output(Weights(KERNEL, None), NORM, Layout())
    assert np.array_equal(bias, NORM.shift)
    assert np.array_equal(kernel, KERNEL * NORM.factor)
    _, bias = into_input(Weights(KERNEL, None), NORM, Layout())
    np.testing.assert_allclose(bias, NORM.shift @ KERNEL, rtol=1e-15)


def test_batch_norm_without_scale_and_bias() -> None:
    affine = affine_of([2.0], [3.0], 1.0, None, None)
    assert affine == Affine(np.array([0.5]), np.array([-1.0]))


@pytest.mark.parametrize(
    ("affine", "identity"),
    [
        (affine_of([0.0], np.float32([1 - 1e-5]), 1e-5, [1.0], [0.0]), True),
        (affine_of([0.0], [1.0], 1e-5, [1.0], [0.0]), False),
        (affine_of([0.0], [1.0], 0.9e-7, None, None), True),
        (affine_of([0.0], [1.0], 1.1e-7, None, None), False),
        (affine_of([1e-9], [1.0], 0.0, None, None), False),
        (affine_of([0.0], [1.0], 0.0, [-1.0], None), False),
        (affine_of([0.0], [1.0], 0.0, [0.0], None), False),
        (affine_of([0.0, 0.0], [1.0, 1.1], 0.0, None, None), False),
    ],
)
def test_identity(affine: Affine, identity: bool) -> None:
    assert affine.is_identity is identity


@given(groups=st.integers(1, 4), inputs=st.integers(1, 3), outputs=st.integers(1, 3), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_groups_in_numpy(groups: int, inputs: int, outputs: int, seed: int) -> None:
    """A position of a grouped convolution: each group of outputs reads its group of inputs."""
    kernel, bias = draw(groups, inputs, outputs, seed=seed), draw(groups, outputs, seed=seed)
    x, shift = draw(groups, inputs, seed=seed), draw(groups, inputs, seed=seed + 100)
    factor, layout = draw(groups, inputs, seed=seed + 200), Layout(groups=groups)
    stored = Weights(kernel.transpose(1, 0, 2).reshape(inputs, -1)[None], bias.ravel())  # a kernel of one position
    new = into_input(stored, Affine(factor.ravel(), shift.ravel()), layout)
    assert new.bias is not None
    moved = new.kernel[0].reshape(inputs, groups, outputs).transpose(1, 0, 2)
    expected = np.einsum("gi,gio->go", factor * x + shift, kernel) + bias
    found = np.einsum("gi,gio->go", x, moved) + new.bias.reshape(groups, outputs)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-9)


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...], tuple[int, ...]]] = {
    "dense": (nn.Dense(5), (3, 4), (5,)),
    "no bias": (nn.Dense(5, use_bias=False), (3, 4), (5,)),
    "general": (nn.DenseGeneral((2, 3), axis=(-2, -1)), (3, 4, 5), (2, 3)),
    "conv": (nn.Conv(5, (3, 2), strides=2), (2, 6, 6, 4), (5,)),
    "grouped": (nn.Conv(6, (3,), feature_group_count=2), (2, 6, 4), (6,)),
    "depthwise": (nn.Conv(8, (3,), feature_group_count=4), (2, 6, 4), (8,)),
    "masked": (nn.Conv(2, (3,), mask=jnp.arange(24).reshape(3, 4, 2) % 2), (2, 6, 4), (2,)),
    "transposed": (nn.ConvTranspose(4, (3, 2), strides=(2, 2)), (2, 3, 3, 4), (4,)),
    "transposed kernel": (nn.ConvTranspose(4, (3, 2), transpose_kernel=True), (2, 3, 3, 4), (4,)),
    "embedding": (nn.Embed(7, 4), (5,), (4,)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_into_the_layer_before_in_float64(name: str) -> None:
    layer, shape, features = LAYERS[name]
    with jax.enable_x64(True):
        x = jnp.arange(5) if name == "embedding" else jnp.asarray(draw(*shape))
        layer = layer.clone(param_dtype=jnp.float64)
        parameters, affine = layer.init(jax.random.key(0), x)["params"], some(features)
        parameters = jax.tree.map(lambda leaf: jnp.asarray(draw(*leaf.shape)), parameters)
        (kind,) = {"kernel", "embedding"} & set(parameters)
        layout = layout_of(layer, parameters[kind].shape)
        assert layout is not None
        new = into_output(Weights(*(as_numpy(parameters.get(name)) for name in (kind, "bias"))), affine, layout)
        expected = affine.factor * np.asarray(layer.apply({"params": parameters}, x)) + affine.shift
        given = {kind: new.kernel} if new.bias is None else {kind: new.kernel, "bias": new.bias}
        found = np.asarray(with_bias(layer).apply({"params": given}, x))
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def as_numpy(values: jax.Array | None) -> np.ndarray | None:
    return None if values is None else np.asarray(values)


def with_bias(layer: nn.Module) -> nn.Module:
    return layer.clone(use_bias=True) if hasattr(layer, "use_bias") else layer


@pytest.mark.parametrize(
    ("layer", "shape", "features", "shift"),
    [
        (nn.Dense(5), (3, 4), (4,), True),
        (nn.DenseGeneral((2, 3), axis=(-2, -1)), (3, 4, 5), (4, 5), True),
        (nn.Conv(5, (3, 2), padding="VALID"), (2, 6, 6, 4), (4,), True),
        (nn.Conv(6, (3,), padding="CIRCULAR", feature_group_count=2), (2, 6, 4), (4,), True),
        (nn.Conv(8, (3,), padding=0, feature_group_count=4, kernel_dilation=2), (2, 6, 4), (4,), True),
        (nn.Conv(5, (1, 1), strides=2), (2, 6, 6, 4), (4,), True),
        (nn.Conv(5, (3, 3)), (2, 6, 6, 4), (4,), False),
        (nn.ConvTranspose(3, (3, 3), strides=(2, 2)), (2, 3, 3, 4), (4,), False),
        (nn.ConvTranspose(4, (3, 3), transpose_kernel=True), (2, 3, 3, 4), (4,), False),
    ],
)
def test_into_the_layer_behind_in_float64(
    layer: nn.Module, shape: tuple[int, ...], features: tuple[int, ...], shift: bool
) -> None:
    with jax.enable_x64(True):
        x, affine = draw(*shape), some(features, shift)
        layer = layer.clone(param_dtype=jnp.float64)
        parameters = layer.init(jax.random.key(0), jnp.asarray(x))["params"]
        parameters = jax.tree.map(lambda leaf: jnp.asarray(draw(*leaf.shape)), parameters)
        layout = layout_of(layer, parameters["kernel"].shape)
        assert layout is not None and layout.pads is not shift
        new = into_input(Weights(np.asarray(parameters["kernel"]), np.asarray(parameters["bias"])), affine, layout)
        expected = layer.apply({"params": parameters}, jnp.asarray(affine.factor * x + affine.shift))
        found = layer.apply({"params": new._asdict()}, jnp.asarray(x))
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("layer", "pads"),
    [
        (nn.Conv(2, (3,)), True),
        (nn.Conv(2, (3,), padding="CAUSAL"), True),
        (nn.Conv(2, (3,), padding=[(0, 1)]), True),
        (nn.Conv(2, (3,), padding=1), True),
        (nn.Conv(2, (1,), padding=1), True),
        (nn.Conv(2, (3,), padding=[(0, 0)], input_dilation=2), True),
        (nn.Conv(2, (3,), padding=[(0, 0)], input_dilation=None), False),
        (nn.Conv(2, (3,), padding="REFLECT"), False),
        (nn.Conv(2, 1), False),
    ],
)
def test_which_convolutions_see_zeros(layer: nn.Conv, pads: bool) -> None:
    kernel = layer.init(jax.random.key(0), jnp.ones((1, 4, 2)))["params"]["kernel"]
    layout = layout_of(layer, kernel.shape)
    assert layout is not None and layout.pads is pads


def nnx_layers() -> dict[str, Callable[[nnx.Rngs], nnx.Module]]:
    return {
        "linear": lambda rngs: nnx.Linear(2, 3, rngs=rngs),
        "general": lambda rngs: nnx.LinearGeneral((2, 3), (4,), axis=(-2, -1), rngs=rngs),
        "grouped": lambda rngs: nnx.Conv(4, 6, (3,), feature_group_count=2, rngs=rngs),
        "transposed": lambda rngs: nnx.ConvTranspose(2, 3, (3,), transpose_kernel=True, rngs=rngs),
        "embedding": lambda rngs: nnx.Embed(2, 3, rngs=rngs),
    }


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("linear", Layout()),
        ("general", Layout((-1,), (-3, -2))),
        ("grouped", Layout(groups=2, pads=True)),
        ("transposed", Layout((-2,), (-1,), pads=True)),
        ("embedding", Layout(inputs=(), table=True)),
    ],
)
def test_layers_of_nnx_have_the_layouts_of_linen(name: str, layout: Layout) -> None:
    layer = nnx_layers()[name](nnx.Rngs(0))
    kernel = getattr(layer, "kernel", None) or layer.embedding  # pyright: ignore
    assert layout_of(layer, kernel.shape) == layout
    assert is_known(layer)


def test_kernels_that_belong_to_no_layout() -> None:
    assert layout_of(nn.Einsum((2, 3), "ab,bc->ac"), (2, 3)) is None
    assert layout_of(nn.ConvLocal(2, (3,)), (4, 6, 2)) is None
    assert layout_of(nn.DenseGeneral(3, batch_dims=0), (2, 3, 3)) is None
    assert layout_of(nnx.LinearGeneral(2, 3, batch_axis={0: 4}, rngs=nnx.Rngs(0)), (4, 2, 3)) is None


def test_a_layer_of_another_class_ends_in_inputs_and_outputs() -> None:
    assert layout_of(object(), (3, 3, 2, 4)) == Layout(pads=True)
    assert layout_of(object(), (2, 4)) == Layout()
    assert not is_known(object())


def test_layers_whose_kernel_is_normalized() -> None:
    from normlab import linen

    dense = nn.Dense(2)
    for module in (
        nn.WeightNorm(dense),
        nn.SpectralNorm(dense),
        linen.Reparametrized(dense),
        linen.StandardizedDense(2),
    ):
        assert normalizes_kernel(module)
    assert not normalizes_kernel(dense)


def test_notes_on_rounding() -> None:
    even, spread = np.ones(3), np.array([1.0, 1.0, 10.1])

    def notes(factor: np.ndarray, kernel: np.ndarray, dtype: str = "float32") -> tuple[str, ...]:
        return notes_on("conv", Affine(factor, even), kernel, dtype)

    assert notes(even, even[None]) == ()
    assert notes(np.array([1.0, 1.0, 10.0]), even[None]) == ()
    assert notes(spread, even[None]) == (
        "int8 with one scale for the tensor loses log2(10.1) = 3.3 bits; take a scale for each output channel.",
    )
    assert notes(np.array([0.0, 0.0, 1.0]), even[None]) == (
        "int8 with one scale for the tensor loses all bits; take a scale for each output channel.",
    )
    assert notes(even, np.array([[-65505.0]])) == (
        "float16 has no number above 65504, and the kernel reaches 65505; take bfloat16.",
    )
    assert notes(even, np.array([[65504.0]])) == ()
    assert notes(even, even[None], "bfloat16") == (
        "The kernel of `conv` is bfloat16 already; fold in float32, and round afterwards.",
    )
