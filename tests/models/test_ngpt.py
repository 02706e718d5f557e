"""Test nGPT: against NumPy, and that optimizers leave its kernels on the sphere."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import expit, softmax

from normlab.functional import l2_norm
from normlab.models.ngpt import NGPT, on_the_sphere
from tests.models.test_transformer import turned

Tree = Mapping[str, Any]
QUICK = {"xla_backend_optimization_level": 0}
MODEL = NGPT(vocabulary=11, depth=1, width=8, heads=2)
TOKENS = np.random.default_rng(1).integers(0, 11, (3, 6))
AXES = {"query": (0,), "key": (0,), "value": (0,), "out": (2,), "dense_0": (0,), "dense_1": (1,)}


@pytest.fixture(scope="module")
def start() -> Tree:
    return jax.jit(lambda: MODEL.init(jax.random.key(0), TOKENS, train=True), compiler_options=QUICK)()["params"]


def lengths(p: Tree) -> list[np.ndarray]:
    """Return the lengths of all rows of kernels."""
    kernels = [(p["layer_0"][name]["kernel"], AXES[name]) for name in AXES]
    kernels += [(p["embedding"]["embedding"], (1,)), (p["head"]["kernel"], (0,))]
    return [np.sqrt((np.asarray(kernel, np.float64) ** 2).sum(axes)) for kernel, axes in kernels]


def normalized(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def reference(p: Tree, tokens: np.ndarray) -> np.ndarray:
    h = p["embedding"]["embedding"].astype(np.float64)[tokens]
    own = p["layer_0"]
    for step, branch in (("attention_step", attended), ("mlp_step", perceptron)):
        share = np.abs(own[step]) * 0.05 * np.sqrt(8)
        h = normalized(h + share * (normalized(branch(h, own)) - h))
    return p["logit_scale"] * np.sqrt(8) * (h @ p["head"]["kernel"])


def attended(h: np.ndarray, p: Tree) -> np.ndarray:
    query, key, value = (np.einsum("btc,chd->bthd", h, p[name]["kernel"]) for name in ("query", "key", "value"))
    query, key = (p["qk_scale"] * np.sqrt(8) * normalized(turned(x)) for x in (query, key))
    scores = 2 * np.einsum("bqhd,bkhd->bhqk", query, key)  # the root of four features
    scores = np.where(np.tri(h.shape[1], dtype=bool), scores, -np.inf)
    return np.einsum("bhqk,bkhd,hdc->bqc", softmax(scores, axis=-1), value, p["out"]["kernel"])


def perceptron(h: np.ndarray, p: Tree) -> np.ndarray:
    up, gate = np.split(p["mlp_scale"] * np.sqrt(8) * (h @ p["dense_0"]["kernel"]), 2, axis=-1)
    return (up * gate * expit(gate)) @ p["dense_1"]["kernel"]


def test_logits(start: Tree) -> None:
    rng = np.random.default_rng(3)

    def varied(path: Any, leaf: Any) -> np.ndarray:
        kernel = path[-1].key in ("kernel", "embedding")
        return np.asarray(leaf if kernel else leaf * rng.normal(1, 0.5, leaf.shape), np.float32)

    p = jax.tree_util.tree_map_with_path(varied, start)
    found = jax.jit(partial(MODEL.apply, train=True), compiler_options=QUICK)({"params": p}, TOKENS)
    expected = reference(p, TOKENS)
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_starts_and_stays_on_the_sphere(start: Tree) -> None:
    optimizer = optax.chain(optax.adam(0.1), on_the_sphere())

    def loss(p: Tree) -> jax.Array:
        logits = jnp.asarray(MODEL.apply({"params": p}, TOKENS[:, :-1], train=True))
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(TOKENS[:, 1:])).mean()

    @partial(jax.jit, compiler_options=QUICK)
    def step(p: Tree, state: Any) -> tuple[Any, Any, Any]:
        value, gradients = jax.value_and_grad(loss)(p)
        updates, state = optimizer.update(gradients, state, p)
        return optax.apply_updates(p, updates), state, value

    p, state, losses = start, optimizer.init(start), []
    for _ in range(8):
        for found in lengths(p):
            np.testing.assert_allclose(found, 1, rtol=1e-5)
        p, state, value = step(p, state)
        losses.append(float(value))
    assert losses[-1] < losses[0] - 0.1
    for name in ("qk_scale", "mlp_scale", "attention_step", "mlp_step"):  # learned, and of any length
        assert np.abs(p["layer_0"][name] - start["layer_0"][name]).max() > 1e-3


def test_later_tokens_change_no_earlier_logit(start: Tree) -> None:
    changed = np.where(np.arange(6) < 4, TOKENS, (TOKENS + 1) % 11)
    apply = jax.jit(partial(MODEL.apply, train=False), compiler_options=QUICK)
    before, after = (apply({"params": start}, tokens) for tokens in (TOKENS, changed))
    np.testing.assert_array_equal(before[:, :4], after[:, :4])
    assert np.all(np.any(before[:, 4:] != after[:, 4:], axis=-1))


def test_zeros_have_finite_gradients() -> None:
    np.testing.assert_array_equal(l2_norm(jnp.zeros(3)), 0)
    assert np.isfinite(jax.grad(lambda x: l2_norm(x)[0])(jnp.zeros(3))).all()
    assert float(jnp.linalg.norm(l2_norm(jnp.full(4, 3e2, jnp.float16)).astype(jnp.float32))) == pytest.approx(
        1, rel=1e-3
    )
