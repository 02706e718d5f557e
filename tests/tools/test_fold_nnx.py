"""Folding in NNX: a copy of the model is rewritten, wherever its norms are."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from normlab import nnx as ours
from normlab import norms
from normlab.errors import BadInput
from normlab.tools import Shift, fold
from normlab.tools.fold import Folded
from tests.support.shaken import fingerprint, shake

ROWS = np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
RNGS = nnx.Rngs(0)


class Net(nnx.Module):
    """A network of parts, written as a function of itself."""

    def __init__(self, call: Callable[..., jax.Array], **parts: Any) -> None:
        self.call = call
        for name, part in parts.items():
            setattr(self, name, part)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.call(self, x)


def norm(features: int = 4, **options: Any) -> nnx.BatchNorm:
    return nnx.BatchNorm(features, rngs=RNGS, **options)


def dense(features: int = 4, **options: Any) -> nnx.Linear:
    return nnx.Linear(4, features, rngs=RNGS, **options)


def folded(model: nnx.Module, x: np.ndarray = ROWS, **options: Any) -> Folded:
    """Fold a model in training mode, and check what holds for every fold."""
    shake(model)
    model.train()
    before, graph = fingerprint(nnx.state(model)), nnx.graphdef(model)
    result = fold(model, None, x, **options)
    assert fingerprint(nnx.state(model)) == before
    assert nnx.graphdef(model) == graph
    twin: Any = nnx.clone(model)
    twin.eval()
    expected, found = np.asarray(twin(x)), np.asarray(result.model(x))  # pyright: ignore
    bound = 1e-5 * max(1, np.abs(expected).max())
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound)
    np.testing.assert_allclose(result(x), found, rtol=0, atol=bound)
    return result


def hows(result: Folded) -> dict[str, tuple[str, str]]:
    return {row.path: (row.how, row.into) for row in result.report}


def test_a_layer_of_flax_is_given_a_bias() -> None:
    net = Net(lambda net, x: net.bn(net.dense(x)), dense=dense(use_bias=False), bn=norm())
    result = folded(net)
    assert hows(result) == {"bn": ("bias", "dense")}
    model: Any = result.model
    assert model.dense.use_bias and isinstance(model.dense.bias, nnx.Param)
    assert model.bn.bias is None and model.bn.scale is None
    assert net.dense.bias is None and not net.dense.use_bias


def test_a_layer_behind_is_given_a_bias() -> None:
    head = nnx.Conv(4, 2, (3,), use_bias=False, padding="VALID", rngs=RNGS)
    net = Net(lambda net, x: net.head(net.bn(nnx.relu(x))), bn=norm(), head=head)
    assert hows(folded(net, np.ones((2, 5, 4), np.float32))) == {"bn": ("identity", "head")}


def test_layers() -> None:
    layers: list[tuple[nnx.Module, tuple[int, ...], int]] = [
        (nnx.Conv(4, 6, (3,), feature_group_count=2, rngs=RNGS), (2, 5, 4), 6),
        (nnx.Conv(4, 8, (3,), feature_group_count=4, rngs=RNGS), (2, 5, 4), 8),
        (nnx.ConvTranspose(4, 4, (3,), strides=(2,), rngs=RNGS), (2, 5, 4), 4),
        (nnx.ConvTranspose(4, 4, (3,), transpose_kernel=True, rngs=RNGS), (2, 5, 4), 4),
        (nnx.LinearGeneral(4, 3, rngs=RNGS), (2, 4), 3),
    ]
    for layer, shape, features in layers:
        x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        net = Net(lambda net, x: net.bn(net.layer(x)), layer=layer, bn=norm(features))
        assert hows(folded(net, x)) == {"bn": ("identity", "layer")}
    net = Net(lambda net, x: net.bn(net.layer(x)), layer=nnx.Embed(7, 4, rngs=RNGS), bn=norm())
    assert hows(folded(net, np.arange(6))) == {"bn": ("identity", "layer")}


def test_containers() -> None:
    class Held(nnx.Module):
        def __init__(self) -> None:
            self.listed = nnx.List([dense(), norm()])
            self.named = nnx.Dict(dense=dense(), bn=norm())
            self.plain = nnx.data([dense(), norm()])
            self.mapped = nnx.data({"dense": dense(), "bn": norm()})
            self.pair = nnx.data((dense(), norm()))
            self.sequence = nnx.Sequential(dense(), norm(), nnx.relu)

        def __call__(self, x: jax.Array) -> jax.Array:
            for part in (self.listed, self.plain, self.pair):
                x = nnx.relu(part[1](part[0](x)))
            for part in (self.named, self.mapped):
                x = nnx.relu(part["bn"](part["dense"](x)))
            return self.sequence(x)

    result = folded(Held())
    assert hows(result) == {
        "listed/1": ("identity", "listed/0"),
        "plain/1": ("identity", "plain/0"),
        "pair/1": ("identity", "pair/0"),
        "named/bn": ("identity", "named/dense"),
        "mapped/bn": ("identity", "mapped/dense"),
        "sequence/layers/1": ("identity", "sequence/layers/0"),
    }
    assert not jax.tree.leaves(nnx.state(result.model, nnx.BatchStat))


def test_shared_norms_stay_shared() -> None:
    bn = norm()
    net = Net(lambda net, x: net.b(nnx.relu(net.a(nnx.relu(x)))), a=bn, b=bn)
    result = folded(net)
    model: Any = result.model
    assert model.a is model.b and isinstance(model.a, Shift)
    assert [(row.how, row.reason) for row in result.report] == [("affine", "`a` is called 2 times.")]


def test_a_wrapped_layer() -> None:
    for wrapped, path in (
        (nnx.WeightNorm(dense(), rngs=RNGS), "layer/layer_instance"),
        (ours.Reparametrized(dense(), "weight_norm"), "layer/layer"),
    ):
        net = Net(lambda net, x: net.bn(net.layer(x)), layer=wrapped, bn=norm())
        shake(net.bn)
        result = fold(net, None, ROWS)
        assert [(row.how, row.reason) for row in result.report] == [
            ("affine", f"The kernel of `{path}` is normalized on its way.")
        ]


def test_variables_for_a_model_that_stays() -> None:
    net = Net(lambda net, x: net.bn(net.dense(x)), dense=dense(use_bias=False), bn=norm())
    result = folded(net, form="variables")
    model: Any = result.model
    assert hows(result) == {"bn": ("variables", "dense")}
    assert isinstance(model.bn, nnx.BatchNorm) and model.dense.bias is None
    assert np.array_equal(model.bn.scale[...], np.ones(4))


def test_norms_of_this_package() -> None:
    for make in (ours.BatchNorm, ours.BatchRenorm):
        net = Net(lambda net, x: net.bn(net.dense(x)), dense=dense(), bn=make(4, rngs=RNGS))
        assert hows(folded(net)) == {"bn": ("identity", "dense")}
    net = Net(lambda net, x: net.ln(net.no(net.dense(x))), dense=dense(), ln=norms.get("layer").nnx(4, rngs=RNGS))
    net.no = norms.get("none").nnx(4, rngs=RNGS)
    assert hows(folded(net)) == {"no": ("identity", ""), "ln": ("kept", "")}


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kind", [nnx.BatchNorm, ours.BatchNorm])
def test_outputs_have_the_dtype_of_the_norm(kind: Any, affine: bool) -> None:
    layer = nnx.Linear(4, 4, dtype=jnp.bfloat16, rngs=RNGS)
    bn = kind(4, use_scale=affine, use_bias=affine, rngs=RNGS)
    net = Net(lambda net, x: net.bn(net.dense(x)), dense=layer, bn=bn)
    shake(net)
    result = fold(net, None, ROWS)
    assert result.report.folded == 1
    net.eval()
    assert result(ROWS).dtype == net(jnp.asarray(ROWS)).dtype


def test_a_norm_alone() -> None:
    result = folded(norm())
    assert isinstance(result.model, Shift)
    assert hows(result) == {"": ("affine", "")}


def test_training_is_refused() -> None:
    net = Net(lambda net, x: net.bn(net.dense(x), use_running_average=False), dense=dense(), bn=norm())
    sentence = (
        "Expected a model that evaluates by running statistics, got train=True for `bn`: a fold is exact only at "
        "evaluation."
    )
    with pytest.raises(BadInput) as error:
        fold(net, None, ROWS)
    assert str(error.value) == sentence
    net.call = lambda net, x: net.bn(net.dense(x))
    model: Any = fold(net, None, ROWS, check=False).model
    model.train()
    with pytest.raises(BadInput) as error:
        model(ROWS)
    assert str(error.value) == sentence
    model.eval()
    assert model(ROWS).shape == (6, 4)


def test_variables_are_the_models_own() -> None:
    with pytest.raises(BadInput) as error:
        fold(norm(), {"params": {}}, ROWS)
    assert str(error.value) == (
        "Expected `variables=None` for an NNX model, which has its own, got some. Leave them out."
    )


def test_a_folded_model_splits_and_merges() -> None:
    result = folded(Net(lambda net, x: net.bn(net.dense(x)), dense=dense(), bn=norm()))
    graph, state = nnx.split(result.model)
    merged: Any = nnx.merge(graph, state)
    np.testing.assert_allclose(nnx.jit(lambda model, x: model(x))(merged, ROWS), result(ROWS), rtol=1e-6, atol=1e-6)


def test_methods() -> None:
    class Two(nnx.Module):
        def __init__(self) -> None:
            self.dense, self.bn = dense(), norm()

        def encode(self, x: jax.Array) -> jax.Array:
            return self.bn(self.dense(x))

    net = Two()
    shake(net)
    result = fold(net, None, ROWS, method="encode")
    assert hows(result) == {"bn": ("identity", "dense")}
    net.eval()
    np.testing.assert_allclose(result(ROWS), net.encode(jnp.asarray(ROWS)), rtol=1e-5, atol=1e-5)
