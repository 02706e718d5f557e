"""Modules in the order of a call: paths, kinds, shapes, axes before flattening, lifted transformations."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from flax import nnx

from normlab import linen, norms
from normlab import nnx as normlab_nnx
from normlab.errors import BadInput
from normlab.introspect.modules import owners
from normlab.models.resnet import ResNet

KEY = jax.random.key(0)
X = jax.ShapeDtypeStruct((2, 4, 4, 3), jnp.float32)


def found(model: nn.Module, x: Any = X, **options: Any) -> list[Any]:
    variables = jax.eval_shape(lambda x: model.init(KEY, x, **options), x)
    return owners(model, variables, x, **options)


class Setup(nn.Module):
    """Modules made in another order than they are called, one of them twice."""

    lift: Callable[[Any], Any] = lambda kind: kind

    def setup(self) -> None:
        self.second = self.lift(nn.Dense)(3)
        self.first = nn.Conv(3, (3, 3), use_bias=False)
        self.norm = nn.BatchNorm(use_running_average=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.norm(self.second(self.first(x)))
        return self.second(x)


@pytest.mark.parametrize("lift", [lambda kind: kind, nn.jit, nn.remat], ids=["plain", "jit", "remat"])
def test_modules_come_in_the_order_of_their_first_calls(lift: Any) -> None:
    for _ in range(2):  # the second time `nn.jit` is warm
        assert [(one.path, one.kind) for one in found(Setup(lift))] == [
            ("first", "conv"),
            ("second", "dense"),
            ("norm", "batch"),
        ]
    conv, dense, norm = found(Setup(lift))
    assert conv.shapes == {"kernel": (3, 3, 3, 3)} and conv.inputs == (2, 4, 4, 3)
    assert dense.shapes == {"kernel": (3, 3), "bias": (3,)}
    assert norm.shapes == {"scale": (3,), "bias": (3,), "mean": (3,), "var": (3,)}
    assert conv.module.kernel_size == (3, 3) and dense.flattening is None


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (linen.BatchNorm(True), "batch"),
        (linen.BatchRenorm(True), "batch_renorm"),
        (nn.LayerNorm(), "layer"),
        (linen.RMSNorm(), "rms"),
        (nn.GroupNorm(num_groups=3), "group"),
        (linen.InstanceNorm(), "instance"),
        (nn.ConvTranspose(2, (2, 2)), "conv_transpose"),
        (nn.DenseGeneral((2, 2)), "dense"),
        (linen.DyT(), "other"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_kinds_are_types_and_not_names(module: nn.Module, kind: str) -> None:
    assert [one.kind for one in found(module.clone(name="Dense_0"))] == [kind]


def test_a_network_of_the_package() -> None:
    kinds = [one.kind for one in found(ResNet(norms.get("batch"), depth=8), train=False)]
    assert kinds == ["conv", "batch"] * 7 + ["dense"]


def test_nnx_comes_in_the_order_of_its_calls() -> None:
    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.a = nnx.Linear(16, 2, rngs=rngs)
            self.norms = nnx.List([normlab_nnx.BatchNorm(3, frozen=True, rngs=rngs)])
            self.shared = self.norms[0]
            self.b = nnx.Conv(3, 1, (3, 3), rngs=rngs)
            self.rngs = nnx.Rngs(0)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.a(nnx.relu(self.b(self.shared(self.norms[0](x)))).reshape(2, 16))

    model = Model(nnx.Rngs(0))
    listed = owners(model, None, X)
    assert [(one.path, one.kind) for one in listed] == [("norms/0", "batch"), ("b", "conv"), ("a", "dense")]
    assert set(listed[0].shapes) == {"scale", "bias", "mean", "var"} and listed[2].flattening.shape == (4, 4, 1)
    assert type(model.a) is nnx.Linear and isinstance(listed[0].module, normlab_nnx.BatchNorm)


class Flat(nn.Module):
    before: Callable[[jax.Array], jax.Array]
    after: Callable[[jax.Array], jax.Array] = nn.relu

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.after(self.before(x).reshape(x.shape[0], -1))
        return nn.Dense(5)(nn.remat(nn.Dense)(48, name="flat")(x))


@pytest.mark.parametrize(
    ("before", "after", "shape", "reordered"),
    [
        (nn.relu, nn.relu, (4, 4, 3), False),
        (nn.relu, lambda x: x * jnp.mean(x) + jnp.tanh(x), (4, 4, 3), False),
        (jax.jit(lambda x: x.mean((1, 2), keepdims=True)), jax.jit(jnp.sin), (1, 1, 3), False),
        (lambda x: jnp.moveaxis(x, 3, 1), nn.relu, (3, 4, 4), True),
        (lambda x: nn.relu(x.swapaxes(1, 2)), nn.gelu, (4, 4, 3), True),
    ],
)
def test_axes_before_flattening(before: Any, after: Any, shape: tuple[int, ...], reordered: bool) -> None:
    flat, other = found(Flat(before, after))
    assert flat.path == "flat" and flat.flattening is not None
    assert (flat.flattening.shape, flat.flattening.reordered) == (shape, reordered)
    assert other.flattening is None


def test_layers_beyond_another_layer_are_not_flattened() -> None:
    flat, other = found(Flat(nn.relu, lambda x: x @ jnp.ones((48, 48))))
    assert flat.flattening is None and other.flattening is None


def test_a_stack_of_layers_and_what_is_no_flax_module_are_refused() -> None:
    class Body(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
            return nn.Dense(3)(x), None

    stacked = nn.scan(Body, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)()
    variables = jax.eval_shape(lambda x: stacked.init(KEY, x, None), X)
    with pytest.raises(BadInput) as error:
        owners(stacked, variables, X, None)
    assert str(error.value) == (
        "Expected `Dense_0/bias` to have the shape (3,) in the variables, as the module has it, got (2, 3). Lifted "
        "transformations such as `nn.scan` stack arrays: convert the layers one at a time."
    )
    with pytest.raises(BadInput) as error:
        owners(len, {}, X)  # pyright: ignore[reportArgumentType]
    assert str(error.value) == (
        "Expected `model` to be a Flax module, got the function `len`. Pass the module, and its variables beside it."
    )
