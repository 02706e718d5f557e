"""Fields of the small networks that comparisons vary: place and number of norms, dropout, initial weights, skips."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from normlab import norms
from normlab.models.mlp import MLP, ConvNet
from normlab.norms import Norm

LAYER = norms.get("layer")
X = np.random.default_rng(0).normal(size=(6, 8, 8, 1)).astype(np.float32)


class PreActivated(nn.Module):
    """A chain of norm, activation, dense, and a last norm and activation before the head: pre-activation, no skips."""

    norm: Norm
    depth: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.Dense(10, name="stem")(x.reshape(len(x), -1))
        for i in range(self.depth):
            x = nn.Dense(10, name=f"dense_{i}")(nn.relu(self.norm.linen(train=train, name=f"pre_{i}")(x)))
        return nn.Dense(10, name="head")(nn.relu(self.norm.linen(train=train, name="last")(x)))


def renamed(tree: dict[str, Any], depth: int) -> dict[str, Any]:
    """Give the layers of `MLP`, one deeper, the names of the chain."""
    names = {"dense_0": "stem", f"norm_{depth}": "last", "head": "head"}
    names |= {f"dense_{i + 1}": f"dense_{i}" for i in range(depth)} | {f"norm_{i}": f"pre_{i}" for i in range(depth)}
    return {names[name]: layer for name, layer in tree.items()}


@pytest.mark.parametrize("train", [True, False])
def test_pre_activation_in_a_chain_is_the_placement_before(train: bool) -> None:
    depth, batch = 3, norms.get("batch:momentum=0.9")
    ours, chain = MLP(batch, (10,) * (depth + 1)), PreActivated(batch, depth)
    variables = ours.init(jax.random.key(0), X, train=False)
    moved = {collection: renamed(tree, depth) for collection, tree in variables.items()}

    def run(module: nn.Module, variables: Any) -> Any:
        def loss(params: Any) -> tuple[jax.Array, Any]:
            out, state = module.apply({**variables, "params": params}, X, train=train, mutable=["batch_stats"])
            return (out**2).mean(), (out, state["batch_stats"])

        (_, (out, state)), gradients = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        return out, state, gradients

    (out, state, gradients), theirs = run(ours, variables), run(chain, moved)
    assert float(jnp.abs(out).max()) > 0.1
    chex.assert_trees_all_close((out, renamed(state, depth), renamed(gradients, depth)), theirs, rtol=0, atol=1e-4)


def test_the_placement_after_normalizes_what_the_next_layer_sees() -> None:
    module = MLP(LAYER, (16,), placement="after", activation="sigmoid")
    _, seen = module.init_with_output(jax.random.key(0), X, train=True, capture_intermediates=True)
    normed = np.asarray(seen["intermediates"]["norm_0"]["__call__"][0])
    np.testing.assert_allclose(normed.mean(-1), 0, atol=1e-5)
    assert normed.min() < -1  # no output of a sigmoid


@pytest.mark.parametrize("net", [MLP(LAYER, (8,) * 6), ConvNet(LAYER, (4,) * 6, (1,) * 6)], ids=["mlp", "conv"])
@pytest.mark.parametrize(("every", "expected"), [(1, "012345"), (2, "135"), (3, "25"), (6, "5"), (7, "")])
def test_only_every_kth_layer_has_a_norm(net: MLP | ConvNet, every: int, expected: str) -> None:
    shapes = jax.eval_shape(net.clone(every=every).init, jax.random.key(0), X, train=False)
    assert [name[-1] for name in sorted(shapes["params"]) if "norm" in name] == list(expected)


@pytest.mark.parametrize("net", [MLP(LAYER, (50, 50)), ConvNet(LAYER, (32,), (1,))], ids=["mlp", "conv"])
def test_dropout_acts_in_training_alone(net: MLP | ConvNet) -> None:
    net = net.clone(dropout=0.5)
    params = net.init(jax.random.key(0), X, train=False)

    def outputs(seed: int, train: bool) -> jax.Array:
        return net.apply(params, X, train=train, rngs={"dropout": jax.random.key(seed)})

    assert np.array_equal(outputs(1, False), net.clone(dropout=0.0).apply(params, X, train=False))
    assert not np.array_equal(outputs(1, True), outputs(2, True))


@pytest.mark.parametrize("net", [MLP(LAYER, (400,)), ConvNet(LAYER, (100, 100), (1, 1))], ids=["mlp", "conv"])
def test_initial_kernels_are_scaled_and_the_head_is_not(net: MLP | ConvNet) -> None:
    plain, scaled = (net.clone(kernel_scale=c).init(jax.random.key(0), X, train=False)["params"] for c in (1.0, 3.0))
    for name in plain:
        if "kernel" in plain[name]:
            ratio = np.asarray(scaled[name]["kernel"] / plain[name]["kernel"])
            np.testing.assert_allclose(ratio, 1 if name == "head" else 3, rtol=1e-5)


def test_a_residual_layer_is_added_to_its_input_where_widths_agree() -> None:
    module = MLP(LAYER, (12, 12, 9), residual=True)
    out, variables = module.init_with_output(jax.random.key(0), X, train=False, capture_intermediates=True)
    seen = {name: of["__call__"][0] for name, of in variables["intermediates"].items() if name != "__call__"}
    first = nn.relu(seen["norm_0"])  # 64 inputs are no 12
    second = first + nn.relu(seen["norm_1"])
    dense = variables["params"]["dense_2"]
    np.testing.assert_allclose(seen["dense_2"], second @ dense["kernel"] + dense["bias"], rtol=1e-4, atol=1e-5)
    head = variables["params"]["head"]
    np.testing.assert_allclose(out, nn.relu(seen["norm_2"]) @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("net", [MLP, ConvNet])
@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("placement", "pre", "Expected `placement` to be 'before' or 'after', got 'pre'"),
        ("every", 0, "Expected `every` to be a whole number from 1 on, got 0"),
        ("every", -2, "got -2"),
        ("every", 1.5, "got 1.5"),
        ("dropout", 1.0, r"Expected `dropout` to lie in \[0, 1\), got 1.0"),
        ("dropout", -0.1, "got -0.1"),
        ("dropout", float("nan"), "got nan"),
    ],
)
def test_a_field_outside_its_values_is_refused(net: Any, field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(net(LAYER, **{field: value}).init, jax.random.key(0), X, train=False)
