"""Models whose kernels are normalized outside of them: once a step, for good, and the start of weight norm."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx as flax_nnx

from normlab import kernels, linen, nnx
from tests.support.paths import ROOT

KEY = jax.random.key(0)
X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 5, 3)), jnp.float32)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


class Net(nn.Module):
    """A convolution, one with standardized weights, and a dense layer, with batch norm between them."""

    norms: tuple[str, str, str] = ("weight_norm", "standardize", "spectral_norm:initial_steps=1")

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Apply the layers."""
        x = linen.Reparametrized(nn.Conv(4, (3,)), self.norms[0])(x)
        x = linen.Reparametrized(nn.Dense(4), self.norms[1])(x)
        x = nn.relu(linen.BatchNorm(use_running_average=not train)(x))
        return linen.Reparametrized(nn.Dense(2), self.norms[2])(x.mean(1), update_stats=train)


MODEL, PLAIN = Net(), Net(("none",) * 3)


class Twin(flax_nnx.Module):
    """The same in NNX."""

    def __init__(self, rngs: flax_nnx.Rngs) -> None:
        """Make the layers."""
        self.layers = flax_nnx.List(
            [
                nnx.Reparametrized(flax_nnx.Conv(3, 4, (3,), rngs=rngs), "weight_norm"),
                nnx.StandardizedLinear(4, 4, norm="weight_norm", rngs=rngs),
                nnx.Reparametrized(flax_nnx.Linear(4, 2, rngs=rngs), "spectral_norm:initial_steps=1"),
            ]
        )
        self.norm = nnx.BatchNorm(4, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layers."""
        return self.layers[2](flax_nnx.relu(self.norm(self.layers[1](self.layers[0](x)))).mean(1))


def test_linen_folds_into_the_plain_model() -> None:
    model, plain = MODEL, PLAIN
    variables = model.init(KEY, X)
    before = jax.tree.map(jnp.copy, variables)
    folded = kernels.fold(model, variables, X)
    chex.assert_trees_all_equal_shapes(folded, plain.init(KEY, X))
    np.testing.assert_allclose(plain.apply(folded, X), model.apply(variables, X), **CLOSE)
    chex.assert_trees_all_equal(variables, before)


def test_nnx_folds_into_the_plain_model() -> None:
    model = Twin(flax_nnx.Rngs(0))
    model.eval()
    before = flax_nnx.to_pure_dict(flax_nnx.state(model))
    expected = model(X)
    folded = kernels.fold(model)
    assert [type(layer).__name__ for layer in folded.layers] == [
        "Conv",
        "StandardizedLinear",
        "Linear",
    ]
    assert not any(isinstance(leaf, nnx.Reparametrized) for _, leaf in flax_nnx.iter_graph(folded))
    np.testing.assert_allclose(folded(X), expected, **CLOSE)
    folded.layers[0].bias[...] += 1
    folded.train()
    folded(X)
    chex.assert_trees_all_equal(flax_nnx.to_pure_dict(flax_nnx.state(model)), before)  # nothing is shared


def test_kernels_of_linen_once_a_step() -> None:
    model, plain = MODEL, PLAIN
    variables = model.init(KEY, X)
    rest = {"batch_stats": variables["batch_stats"]}

    def hoisted(params: Any) -> Any:
        once = kernels.apply(model, {"params": params, **rest}, X, update_stats=True, train=True)
        losses = [(plain.apply({**once, **rest}, part) ** 2).sum() for part in (X[:2], X[2:])]
        return sum(losses), once["batch_stats"]

    def inside(params: Any) -> Any:
        return (model.apply({"params": params, **rest}, X) ** 2).sum()

    slopes, state = jax.jit(jax.grad(hoisted, has_aux=True))(variables["params"])
    chex.assert_trees_all_close(slopes, jax.jit(jax.grad(inside))(variables["params"]), rtol=1e-4, atol=1e-5)
    _, after = model.apply(variables, X, train=True, mutable=["batch_stats"])
    before, new, expected = (
        tree["Reparametrized_2"]["u"] for tree in (rest["batch_stats"], state, after["batch_stats"])
    )
    assert float(jnp.abs(new - before).max()) > 1e-5
    np.testing.assert_allclose(new, expected, **CLOSE)
    chex.assert_trees_all_equal(state["BatchNorm_0"], rest["batch_stats"]["BatchNorm_0"])


def test_kernels_of_nnx_once_a_step() -> None:
    model, twin = Twin(flax_nnx.Rngs(0)), Twin(flax_nnx.Rngs(0))

    @flax_nnx.jit
    def hoisted(model: Any) -> Any:
        def loss(model: Any) -> Any:
            plain = kernels.apply(model, update_stats=True)
            return (plain(X) ** 2).sum()

        return flax_nnx.grad(loss)(model)

    @flax_nnx.jit
    def inside(model: Any) -> Any:
        return flax_nnx.grad(lambda model: (model(X) ** 2).sum())(model)

    slopes = [flax_nnx.to_pure_dict(step(one)) for step, one in ((hoisted, model), (inside, twin))]
    chex.assert_trees_all_close(*slopes, rtol=1e-4, atol=1e-5)
    states = [flax_nnx.to_pure_dict(flax_nnx.state(one)) for one in (model, twin)]
    chex.assert_trees_all_close(*states, **CLOSE)  # also the running statistics, which both share
    assert float(jnp.abs(model.norm.mean[...]).max()) > 0


def test_standardized_layers_fold() -> None:
    model = linen.StandardizedDense(2, norm="scaled_standardize")
    variables = model.init(KEY, X)
    folded = kernels.fold(model, variables, X)
    assert set(folded["params"]) == {"kernel", "bias"}
    np.testing.assert_allclose(nn.Dense(2).apply(folded, X), model.apply(variables, X), **CLOSE)
    twin = nnx.StandardizedLinear(3, 2, norm="scaled_standardize", rngs=flax_nnx.Rngs(0))
    plain = kernels.fold(twin)
    assert set(flax_nnx.to_pure_dict(flax_nnx.state(plain))) == {"kernel", "bias"}
    np.testing.assert_allclose(plain(X), twin(X), **CLOSE)
    assert hasattr(twin, "gain")


class Block(nn.Module):
    """Layers of a stack."""

    norms: tuple[str, str]

    @nn.compact
    def __call__(self, x: jax.Array, _: None = None) -> tuple[jax.Array, None]:
        """Apply the layers."""
        x = x + linen.Reparametrized(nn.Dense(3), self.norms[0])(x)
        return x + linen.Reparametrized(nn.Dense(3), self.norms[1], update_stats=False)(x), None


def stack(*norms: str, axis: int = 0) -> nn.Module:
    """Blocks in a scan."""
    axes = {"params": axis, "batch_stats": axis}
    return nn.scan(nn.jit(Block), variable_axes=axes, split_rngs={"params": True}, length=2)(norms)


def test_layers_in_a_scan_fold() -> None:
    model, x = stack("weight_norm", "spectral_norm"), X[0]
    variables = model.init(KEY, x)
    folded = kernels.fold(model, variables, x)
    assert folded["params"]["Dense_0"]["kernel"].shape == (2, 3, 3)
    np.testing.assert_allclose(stack("none", "none").apply(folded, x)[0], model.apply(variables, x)[0], **CLOSE)


def test_kernels_stacked_along_another_axis_are_refused() -> None:
    model, x = stack("standardize", "none", axis=1), X[0]
    with pytest.raises(ValueError, match=r"stacked along the first axis, got \(3, 2, 3\) in Dense_0"):
        kernels.fold(model, model.init(KEY, x), x)


def standardized(y: Any) -> None:
    """Check mean and standard deviation."""
    np.testing.assert_allclose(y.mean(tuple(range(y.ndim - 1))), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(tuple(range(y.ndim - 1))), 1, rtol=1e-4)


def test_weight_norm_starts_from_a_batch() -> None:
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            first = linen.Reparametrized(nn.DenseGeneral((2, 2)), "weight_norm")(3 * x + 1)
            return first, linen.Reparametrized(nn.Dense(2), "weight_norm")(nn.relu(first.reshape(*x.shape[:-1], 4)))

    variables = Two().init(KEY, X)
    new = kernels.initialize_weight_norm(Two(), variables, X)
    for y in Two().apply(new, X):
        standardized(y)
    for name in ("DenseGeneral_0", "Dense_0"):
        chex.assert_trees_all_equal(new["params"][name]["kernel"], variables["params"][name]["kernel"])
    kernel = np.asarray(variables["params"]["DenseGeneral_0"]["kernel"], np.float64).reshape(3, 4)
    t = (3 * np.asarray(X) + 1) @ (kernel / np.linalg.norm(kernel, axis=0))
    np.testing.assert_allclose(new["params"]["Reparametrized_0"]["g"], 1 / t.std((0, 1)), rtol=1e-4)
    np.testing.assert_allclose(
        new["params"]["DenseGeneral_0"]["bias"].ravel(), -t.mean((0, 1)) / t.std((0, 1)), rtol=1e-4, atol=1e-5
    )


def test_weight_norm_of_nnx_starts_from_a_batch() -> None:
    model = Twin(flax_nnx.Rngs(0))
    statistics = flax_nnx.to_pure_dict(flax_nnx.state(model, flax_nnx.BatchStat))
    assert kernels.initialize_weight_norm(model, X) is model
    chex.assert_trees_all_equal(flax_nnx.to_pure_dict(flax_nnx.state(model, flax_nnx.BatchStat)), statistics)
    standardized(model.layers[0](X))
    standardized(model.layers[1](model.layers[0](X)))
    alone = nnx.StandardizedLinear(3, 2, norm="weight_norm", use_bias=False, rngs=flax_nnx.Rngs(0))
    y = kernels.initialize_weight_norm(alone, X + 1)(X + 1)
    np.testing.assert_allclose(y.std((0, 1)), 1, rtol=1e-4)
    assert float(jnp.abs(y.mean((0, 1))).min()) > 1e-3


def test_a_layer_that_is_called_twice_starts_from_no_batch() -> None:
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            layer = linen.Reparametrized(nn.Dense(3), "weight_norm")
            return layer(layer(x))

    class TwiceNNX(flax_nnx.Module):
        def __init__(self) -> None:
            self.layer = nnx.Reparametrized(flax_nnx.Linear(3, 3, rngs=flax_nnx.Rngs(0)), "weight_norm")

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.layer(self.layer(x))

    for run in (
        lambda: kernels.initialize_weight_norm(Twice(), Twice().init(KEY, X), X),
        lambda: kernels.initialize_weight_norm(TwiceNNX(), X),
    ):
        with pytest.raises(ValueError, match="to be called once, got two calls"):
            run()


def test_the_table_has_a_row_for_each_and_is_that_of_the_page() -> None:
    rows = kernels.table().splitlines()
    assert [row.split("`")[1] for row in rows[2:]] == list(kernels.names())
    assert {row.count("|") for row in rows} == {7}
    assert "\n".join(rows[2:]) in (ROOT / "docs" / "how-to" / "kernels.md").read_text()
