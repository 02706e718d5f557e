"""Networks that train without norms: wiring against NumPy, initial weights, and parameters that are treated apart."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normlab import norms
from normlab.functional.kernels import scaled_standardize
from normlab.models.convolution import convolve
from normlab.models.fixup import FixupResNet, fixup_optimizer
from normlab.models.nfnet import STEP, NFResNet, nf_optimizer
from normlab.models.resnet import ResNet

NONE = norms.get("none")
X = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)


def variables_of(kind: Any, spread: float) -> Any:
    """Return initial parameters of a network of depth 8, each moved by noise."""
    variables = kind(NONE, depth=8).init(jax.random.key(0), X, train=True)
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda a: a + spread * rng.normal(size=a.shape).astype(np.float32), variables)["params"]


def relu(x: Any) -> np.ndarray:
    return np.maximum(np.asarray(x, np.float64), 0)


def widened(x: np.ndarray, features: int, stride: int) -> np.ndarray:
    """Skip positions, and append channels of zeros."""
    x = x[:, ::stride, ::stride]
    return np.concatenate([x, np.zeros((*x.shape[:-1], features - x.shape[-1]))], -1)


def conv(x: np.ndarray, kernel: Any, stride: int = 1) -> np.ndarray:
    """Convolve in float32, which the tests of convolutions check."""
    return np.asarray(convolve(jnp.asarray(x, jnp.float32), jnp.asarray(kernel), stride), np.float64)


def test_fixup_is_wired_as_published() -> None:
    p = variables_of(FixupResNet, 0.1)
    y = relu(conv(X, p["stem"]["kernel"]) + p["bias_stem"])
    for i, (features, stride) in enumerate([(16, 1), (32, 2), (64, 2)]):
        b = p[f"block_{i}"]
        shifted = y + b["bias_0"]
        branch = relu(conv(shifted, b["conv_0"]["kernel"], stride) + b["bias_1"]) + b["bias_2"]
        branch = conv(branch, b["conv_1"]["kernel"]) * b["scale"] + b["bias_3"]
        y = relu(branch + (widened(shifted, features, stride) if stride > 1 else y))
    expected = (y.mean((1, 2)) + p["bias_head"]) @ np.asarray(p["head"]["kernel"]) + p["head"]["bias"]
    actual = FixupResNet(NONE, depth=8).apply({"params": p}, X, train=True)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_fixup_starts_as_its_shortcuts_with_smaller_weights_the_deeper_it_is() -> None:
    deep = FixupResNet(NONE, depth=20).init(jax.random.key(0), X, train=True)["params"]
    assert not np.any(deep["head"]["kernel"]) and not np.any(deep["block_4"]["conv_1"]["kernel"])
    expected = np.sqrt(2 / (9 * 64)) * 9**-0.5
    np.testing.assert_allclose(np.std(deep["block_8"]["conv_0"]["kernel"]), expected, rtol=0.03)


def test_scalars_of_fixup_learn_at_a_tenth_of_the_rate() -> None:
    params = variables_of(FixupResNet, 0.1)
    optimizer = fixup_optimizer(0.5, momentum=0.0)
    updates, _ = optimizer.update(jax.tree.map(jnp.ones_like, params), optimizer.init(params), params)
    jax.tree.map(lambda a: np.testing.assert_allclose(a, -0.05 if a.ndim == 0 else -0.5, rtol=1e-6), updates)


def test_the_network_of_standardized_kernels_is_wired_as_published() -> None:
    p, gain = variables_of(NFResNet, 0.1), 1.7139588594436646

    def standardized(x: np.ndarray, layer: Any, stride: int = 1) -> np.ndarray:
        return conv(x, scaled_standardize(layer["kernel"], layer["gain"]), stride) + layer["bias"]

    y = standardized(X, p["stem"])
    for i, (stride, variance) in enumerate([(1, 1.0), (2, 1.04), (2, 1.04)]):
        b = p[f"block_{i}"]
        opened = gain * relu(y) / np.sqrt(variance)
        shortcut = standardized(opened, b["shortcut"], stride) if stride > 1 else y
        branch = standardized(opened, b["conv_0"], stride)
        y = shortcut + STEP * b["alpha"] * standardized(gain * relu(branch), b["conv_1"])
    expected = (gain * relu(y)).mean((1, 2)) @ np.asarray(p["head"]["kernel"]) + p["head"]["bias"]
    actual = NFResNet(NONE, depth=8).apply({"params": p}, X, train=True)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


def test_adaptive_clipping_leaves_the_last_layer_alone() -> None:
    params = variables_of(NFResNet, 0.1)
    optimizer = nf_optimizer(1.0, clipping=0.01, momentum=0.0)
    gradients = jax.tree.map(lambda a: 100 * jnp.ones_like(a), params)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    np.testing.assert_array_equal(updates["head"]["kernel"], -100.0)
    kernel, update = (np.asarray(tree["block_0"]["conv_0"]["kernel"]) for tree in (params, updates))
    sizes = [np.sqrt((array**2).sum((0, 1, 2))) for array in (update, kernel)]
    np.testing.assert_allclose(sizes[0], 0.01 * sizes[1], rtol=1e-4)


@pytest.mark.parametrize("kind", [FixupResNet, NFResNet])
def test_norms_are_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match="Expected the norm 'none' in a network without norms, got 'batch'"):
        kind(norms.get("batch")).init(jax.random.key(0), X, train=True)


@pytest.mark.parametrize("placement", ["post", "pre"])
@pytest.mark.parametrize(("residual", "biases"), [("skipinit", True), ("rezero", False), ("layer_scale", False)])
def test_branches_with_a_factor_start_as_their_shortcuts(residual: Any, biases: bool, placement: Any) -> None:
    net = ResNet(NONE, depth=8, placement=placement, residual=residual)
    params = net.init(jax.random.key(0), X, train=True)["params"]
    block = params["block_1"]
    assert ("bias" in block["conv_0"]) == biases and "bias" not in params["stem"]
    assert block["residual"].shape == ((32,) if residual == "layer_scale" else ())
    np.testing.assert_allclose(block["residual"], 1e-5 if residual == "layer_scale" else 0.0)
    logits = net.apply({"params": params}, X, train=True)
    y = conv(X, params["stem"]["kernel"])
    y = widened(widened(relu(y) if placement == "post" else y, 32, 2), 64, 2)
    if placement == "pre":  # the first shortcut starts after the ReLU, and one follows the last block
        y = widened(widened(relu(conv(X, params["stem"]["kernel"])), 32, 2), 64, 2)
    expected = relu(y).mean((1, 2)) @ np.asarray(params["head"]["kernel"])
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)


def test_a_factor_multiplies_its_branch() -> None:
    plain, scaled = (ResNet(NONE, depth=8, residual=kind) for kind in ("none", "rezero"))
    params = scaled.init(jax.random.key(0), X, train=True)["params"]
    params = {k: {**v, "residual": jnp.asarray(1.0)} if k.startswith("block") else v for k, v in params.items()}
    bare = {k: {n: a for n, a in v.items() if n != "residual"} for k, v in params.items()}
    expected = plain.apply({"params": bare}, X, train=True)
    np.testing.assert_allclose(scaled.apply({"params": params}, X, train=True), expected, rtol=1e-5)


def test_an_unknown_factor_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Expected `residual` to be one of none, rezero, .*got 'rezro'.*`rezero`"):
        ResNet(NONE, depth=8, residual="rezro").init(jax.random.key(0), X, train=True)  # pyright: ignore[reportArgumentType]
