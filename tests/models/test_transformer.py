"""Test transformers: every placement against NumPy, today's ViT by bits, causality, initial weights, masks, export."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, get_args

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import export
from scipy.special import erf, softmax

from normlab import norms
from normlab.models.gpt import GPT
from normlab.models.residual import Residual
from normlab.models.transformer import INITIAL, OBSERVED, Block, Placement, Stack, rotated
from normlab.models.vit import ViTTiny, squares
from tests.support.registered import ALL, GROUPED

Tree = Mapping[str, Any]
QUICK = {"xla_backend_optimization_level": 0}
PLACEMENTS: tuple[Placement, ...] = get_args(Placement)
RESIDUALS: tuple[Residual, ...] = get_args(Residual)
LAYER, RMS = norms.get("layer"), norms.get("rms")
VOCABULARY, WIDTH, HEADS = 11, 8, 2
TOKENS = np.random.default_rng(1).integers(0, VOCABULARY, (3, 6))


def gpt(norm: Any = LAYER, **fields: Any) -> GPT:
    return GPT(norms.get(norm), **{"vocabulary": VOCABULARY, "depth": 2, "width": WIDTH, "heads": HEADS, **fields})


def filled(module: nn.Module, x: np.ndarray, seed: int = 5) -> Tree:
    """Make variables with NumPy: kernels of a useful size, others about their initial values."""
    rng = np.random.default_rng(seed)

    def fill(path: Any, leaf: Any) -> np.ndarray:
        name, values = path[-1].key, rng.normal(size=leaf.shape)
        if name == "kernel":
            values /= np.sqrt(np.prod(leaf.shape[:-1]) if path[-2].key == "out" else leaf.shape[0])
        elif name in ("scale", "var", "alpha") or name.startswith("residual"):
            values = 1 + 0.3 * np.abs(values)
        return values.astype(leaf.dtype)

    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))
    return jax.tree_util.tree_map_with_path(fill, shapes)


def logits(module: nn.Module, variables: Tree, x: np.ndarray, **options: Any) -> np.ndarray:
    apply = partial(module.apply, **{"train": False, **options})
    return np.asarray(jax.jit(apply, compiler_options=QUICK)(variables, x))


def observed(module: nn.Module, variables: Tree, x: np.ndarray) -> Tree:
    apply = partial(module.apply, train=False, mutable=[OBSERVED])
    return jax.jit(apply, compiler_options=QUICK)(variables, x)[1][OBSERVED]


class TestAgainstNumPy:
    @pytest.mark.parametrize("placement", PLACEMENTS)
    @pytest.mark.parametrize(
        "fields",
        [
            {"qk_norm": LAYER, "residual": "layer_scale", "positions": "learned", "context": 7, "tied": False},
            {"qk_norm": None, "residual": "rezero"},
        ],
        ids=["learned", "rotary"],
    )
    def test_logits(self, placement: Placement, fields: dict[str, Any]) -> None:
        module = gpt(placement=placement, **fields)
        p = filled(module, TOKENS)["params"]
        assert ("bias" in p["layer_1"]["dense_1"]) == (fields["residual"] != "rezero")
        expected = reference(p, TOKENS, placement)
        found = logits(module, {"params": p}, TOKENS)
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-4 * np.abs(expected).max())


def reference(p: Tree, tokens: np.ndarray, placement: str) -> np.ndarray:
    """Compute the logits of a GPT of two layers with layer norm in float64."""
    table = p["embedding"]["embedding"].astype(np.float64)
    x = table[tokens]
    if "positions" in p:
        x = x + p["positions"][: x.shape[1]]
    if placement == "peri":
        x = normalized(x, p["norm_embedding"])
    for number in (1, 2):
        own = p[f"layer_{number - 1}"]
        attention = partial(attended, p=own["attention"], rotary="positions" not in p)
        mlp = partial(perceptron, p=own)
        if placement == "parallel":
            h = normalized(x, own["norm_0"])
            x = x + own["residual_0"] * attention(h) + own["residual_1"] * mlp(h)
            continue
        for i, f in enumerate((attention, mlp)):
            norm, factor = partial(normalized, p=own[f"norm_{i}"]), own[f"residual_{i}"]
            if placement == "pre":
                x = x + factor * f(norm(x))
            elif placement == "post":
                x = norm(x + factor * f(x))
            elif placement == "peri":
                x = x + factor * normalized(f(norm(x)), own[f"norm_{i}_out"])
            elif placement == "res_post":
                x = x + factor * norm(f(x))
            elif placement == "deep":
                x = norm(math.sqrt(2) * x + factor * f(x))
            else:
                assert placement == "scaled"
                x = x + factor * f(norm(x) / math.sqrt(number))
    assert ("norm_last" in p) == (placement not in ("post", "deep"))
    x = normalized(x, p["norm_last"]) if "norm_last" in p else x
    return x @ (p["head"]["kernel"] if "head" in p else table.T)


def attended(x: np.ndarray, p: Tree, rotary: bool) -> np.ndarray:
    def projected(name: str) -> np.ndarray:
        y = np.einsum("btc,chd->bthd", x, p[name]["kernel"].astype(np.float64))
        return y + p[name].get("bias", 0)

    query, key, value = map(projected, ("query", "key", "value"))
    if "norm_query" in p:
        query, key = normalized(query, p["norm_query"]), normalized(key, p["norm_key"])
    if rotary:
        query, key = turned(query), turned(key)
    scores = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
    scores = np.where(np.tri(x.shape[1], dtype=bool), scores, -np.inf)
    mixed = np.einsum("bhqk,bkhd->bqhd", softmax(scores, axis=-1), value)
    return np.einsum("bthd,hdc->btc", mixed, p["out"]["kernel"]) + p["out"].get("bias", 0)


def turned(x: np.ndarray) -> np.ndarray:
    """Multiply pairs of features, as complex numbers, by rotations."""
    half = x.shape[-1] // 2
    rates = 10_000.0 ** (-np.arange(half) / half)
    turns = np.exp(1j * np.arange(x.shape[1])[:, None] * rates)[:, None]
    pairs = (x[..., :half] + 1j * x[..., half:]) * turns
    return np.concatenate([pairs.real, pairs.imag], axis=-1)


def perceptron(x: np.ndarray, p: Tree) -> np.ndarray:
    y = x @ p["dense_0"]["kernel"].astype(np.float64) + p["dense_0"].get("bias", 0)
    y = y * (1 + erf(y / np.sqrt(2))) / 2
    return y @ p["dense_1"]["kernel"] + p["dense_1"].get("bias", 0)


def normalized(x: np.ndarray, p: Tree) -> np.ndarray:
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-6) * p["scale"] + p["bias"]


class OfFlax(nn.Module):
    """The ViT as it was: Flax's attention, norms before the branches."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        dense = partial(nn.Dense, kernel_init=INITIAL)
        x = dense(192, name="embedding")(squares(x, 4))
        token = self.param("class_token", INITIAL, (1, 1, 192))
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, 192)), x], axis=1)
        x = x + self.param("positions", INITIAL, (1, *x.shape[1:]))
        for i in range(2):
            x = OfFlaxLayer(name=f"layer_{i}")(x, train)
        x = LAYER.linen(train=train, name="norm_last")(x)
        return dense(10, name="head")(x[:, 0])


class OfFlaxLayer(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = LAYER.linen(train=train, name="norm_0")(x)
        x = x + nn.MultiHeadDotProductAttention(3, kernel_init=INITIAL, name="attention")(y)
        y = LAYER.linen(train=train, name="norm_1")(x)
        y = nn.gelu(nn.Dense(768, kernel_init=INITIAL, name="dense_0")(y), approximate=False)
        return x + nn.Dense(192, kernel_init=INITIAL, name="dense_1")(y)


def test_the_vit_is_that_of_flax_to_the_last_bit() -> None:
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)

    def start_and_logits(module: nn.Module) -> Any:
        key = jax.random.key(7)
        return jax.jit(lambda: module.init_with_output(key, x, train=True), compiler_options=QUICK)()

    ours, theirs = (start_and_logits(module) for module in (ViTTiny(LAYER, classes=10, patch=4, depth=2), OfFlax()))
    chex.assert_trees_all_equal(ours, theirs)


class TestCausality:
    @pytest.mark.parametrize("name", [name for name in ALL if not norms.get(name).needs_spatial])
    def test_later_tokens_change_no_earlier_logit(self, name: str) -> None:
        options = {"num_groups": 2} if name in GROUPED else {}
        few = "group_whiten" in name  # the features of a head are too few for it
        module = gpt(norms.get(name, **options), depth=1, qk_norm=None if few else norms.get(name, **options))
        changed = TOKENS.copy()
        changed[:, 4:] = (changed[:, 4:] + 1) % VOCABULARY
        variables = filled(module, TOKENS)
        apply = jax.jit(partial(module.apply, train=False), compiler_options=QUICK)
        before, after = apply(variables, TOKENS), apply(variables, changed)
        np.testing.assert_array_equal(before[:, :4], after[:, :4])
        assert np.all(np.any(before[:, 4:] != after[:, 4:], axis=-1))

    def test_a_vit_sees_all_tokens(self) -> None:
        x = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype(np.float32)
        module = ViTTiny(LAYER, classes=3, patch=4, depth=1)
        variables, other = filled(module, x), x.copy()
        other[:, -1, -1] += 1
        assert np.any(logits(module, variables, x) != logits(module, variables, other))


class TestNormsOfTokens:
    def test_ghost_batches_are_whole_sequences(self) -> None:
        tokens, ghost = np.random.default_rng(2).integers(0, VOCABULARY, (4, 6)), norms.get("batch", ghost_batch_size=2)
        variables = filled(gpt("batch", qk_norm=norms.get("batch")), tokens)

        def training(norm: Any, x: np.ndarray) -> np.ndarray:
            apply = partial(gpt(norm, qk_norm=norms.get(norm)).apply, train=True, mutable=["batch_stats"])
            return np.asarray(jax.jit(apply, compiler_options=QUICK)(variables, x)[0])

        both = training(ghost, tokens)
        np.testing.assert_allclose(both[:2], training("batch", tokens[:2]), rtol=1e-4, atol=1e-4)
        assert np.abs(both - training("batch", tokens)).max() > 1e-2

    def test_a_norm_over_positions_is_refused(self) -> None:
        with pytest.raises(ValueError, match="position"):
            jax.eval_shape(lambda: gpt("instance").init(jax.random.key(0), TOKENS, train=True))

    @pytest.mark.parametrize("name", ["layer", "batch"])
    def test_padding_changes_nothing(self, name: str) -> None:
        module = gpt(name, qk_norm=norms.get(name))
        variables, mask = filled(module, TOKENS), np.arange(6) < np.array([6, 3, 4])[:, None]
        apply = jax.jit(partial(module.apply, train=True, mutable=["batch_stats"]), compiler_options=QUICK)
        padded, statistics = apply(variables, TOKENS, mask=mask)
        other, others = apply(variables, np.where(mask, TOKENS, 0), mask=mask)
        np.testing.assert_array_equal(padded[mask], other[mask])
        chex.assert_trees_all_equal(statistics, others)
        if name == "layer":
            alone = logits(module, variables, TOKENS[1:2, :3])
            np.testing.assert_allclose(padded[1:2, :3], alone, rtol=1e-5, atol=1e-5)

    def test_leading_padding_leaves_logits_finite(self) -> None:
        mask = np.arange(6) >= np.array([0, 3, 6])[:, None]
        module = gpt("rms")
        assert np.isfinite(logits(module, filled(module, TOKENS), TOKENS, mask=mask)).all()


class TestRotation:
    def test_logits_depend_on_distances_alone(self) -> None:
        query, key = np.random.default_rng(0).normal(size=(2, 1, 1, 1, 8)).astype(np.float32)
        many = [rotated(jnp.tile(x, (1, 12, 1, 1)))[0, :, 0] for x in (query, key)]
        products = np.asarray(many[0] @ many[1].T)
        for distance in range(12):
            np.testing.assert_allclose(np.diagonal(products, distance), products[0, distance], rtol=1e-4, atol=1e-5)
        assert np.ptp(products[0]) > 0.1
        np.testing.assert_array_equal(many[0][0], query[0, 0, 0])

    def test_stays_in_bfloat16(self) -> None:
        assert rotated(jnp.ones((1, 2, 1, 4), jnp.bfloat16)).dtype == jnp.bfloat16


class TestStart:
    @pytest.mark.parametrize("placement", [place for place in PLACEMENTS if place not in ("post", "deep")])
    @pytest.mark.parametrize("residual", ["rezero", "skipinit"])
    def test_blocks_without_a_factor_are_the_identity(self, placement: Placement, residual: Residual) -> None:
        x = np.random.default_rng(0).normal(size=(2, 3, WIDTH)).astype(np.float32)
        np.testing.assert_array_equal(started(x, placement, residual), x)
        if residual == "rezero":  # the test can fail
            assert np.abs(started(x, placement, "none") - x).max() > 1e-5

    def test_layer_scale_is_small(self) -> None:
        x = np.random.default_rng(0).normal(size=(2, 3, WIDTH)).astype(np.float32)
        whole, small = (started(x, "peri", residual) - x for residual in ("none", "layer_scale"))
        assert 0 < np.abs(small).max() < 1e-4 < np.abs(whole).max()

    @pytest.mark.parametrize(
        ("placement", "value", "last"),
        [("pre", 1, (2 * 2) ** -0.5), ("deep", (8 * 2) ** -0.25, (8 * 2) ** -0.25)],
    )
    def test_standard_deviations(self, placement: Placement, value: float, last: float) -> None:
        module = GPT(LAYER, vocabulary=50, depth=2, width=128, placement=placement, tied=False, positions="learned")
        start = jax.jit(lambda: module.init(jax.random.key(0), TOKENS, train=False)["params"], compiler_options=QUICK)()
        layer = start["layer_1"]
        expected = {
            "query": (layer["attention"]["query"]["kernel"], 1),
            "key": (layer["attention"]["key"]["kernel"], 1),
            "value": (layer["attention"]["value"]["kernel"], value),
            "out": (layer["attention"]["out"]["kernel"], last),
            "dense_0": (layer["dense_0"]["kernel"], value),
            "dense_1": (layer["dense_1"]["kernel"], last),
            "head": (start["head"]["kernel"], 1),
            "embedding": (start["embedding"]["embedding"], 1),
            "positions": (start["positions"], 1),
        }
        for name, (kernel, factor) in expected.items():
            assert float(kernel.std()) == pytest.approx(0.02 * factor, rel=0.05), name


def started(x: np.ndarray, placement: Placement, residual: Residual) -> np.ndarray:
    block = Block(Stack(norm=LAYER, depth=1, heads=HEADS, placement=placement, residual=residual), 0)
    start = partial(block.init_with_output, train=True)
    return np.asarray(jax.jit(start, compiler_options=QUICK)(jax.random.key(0), x)[0])


def variances(placement: Placement, depth: int = 6) -> np.ndarray:
    """Return the variance of the residual stream before each block and after the last, with weights of unit gain."""
    module = gpt(depth=depth, width=64, heads=4, placement=placement)
    starting = {"scale": np.ones_like, "bias": np.zeros_like}
    variables = jax.tree_util.tree_map_with_path(
        lambda path, leaf: starting.get(path[-1].key, np.asarray)(leaf), filled(module, TOKENS)
    )
    found = observed(module, variables, TOKENS)
    pairs = np.array([found[f"layer_{i}"]["variance"] for i in range(depth)])
    np.testing.assert_array_equal(pairs[1:, 0], pairs[:-1, 1])
    return np.array([pairs[0, 0], *pairs[:, 1]])


class TestResidualStream:
    def test_pre_grows(self) -> None:
        found = variances("pre")
        assert np.all(np.diff(found) > 0.2)
        assert variances("scaled")[-1] < found[-1]

    def test_peri_adds_a_unit_for_each_branch(self) -> None:
        found = variances("peri")
        assert found[0] == pytest.approx(1, abs=0.1)
        slopes = np.diff(found)
        assert np.all((slopes > 1.0) & (slopes < 3.2)) and slopes.mean() == pytest.approx(2, abs=0.6)

    @pytest.mark.parametrize("placement", ["post", "deep"])
    def test_post_stays(self, placement: Placement) -> None:
        np.testing.assert_allclose(variances(placement)[1:], 1, rtol=1e-3)


def test_attention_logits_are_observed() -> None:
    module = gpt(depth=1, positions="learned")
    p = filled(module, TOKENS, seed=4)["params"]
    found = observed(module, {"params": p}, TOKENS)
    x = p["embedding"]["embedding"][TOKENS].astype(np.float64) + p["positions"][:6]
    h, attention = normalized(x, p["layer_0"]["norm_0"]), p["layer_0"]["attention"]
    query, key = (
        np.einsum("btc,chd->bhtd", h, attention[name]["kernel"]) + attention[name]["bias"][:, None]
        for name in ("query", "key")
    )
    scores = np.abs(query @ key.swapaxes(2, 3) / 2)
    (largest,) = found["layer_0"]["attention"]["largest_logit"]
    assert float(largest) == pytest.approx((scores * np.tri(6)).max(), rel=1e-4)
    assert largest < 0.99 * scores.max()  # the largest is of a later token


def test_qk_norm_bounds_attention_logits() -> None:
    bound = math.sqrt(WIDTH / HEADS)

    def largest(qk_norm: Any) -> float:
        module = gpt("rms", depth=1, qk_norm=qk_norm)
        p = jax.tree.map(lambda leaf: 10 * leaf, filled(module, TOKENS)["params"])
        if qk_norm:
            for name in ("norm_query", "norm_key"):
                p["layer_0"]["attention"][name]["scale"] = np.ones(WIDTH // HEADS, np.float32)  # shared by heads
        return float(observed(module, {"params": p}, TOKENS)["layer_0"]["attention"]["largest_logit"][0])

    assert largest(RMS) <= bound * 1.0001 < largest(None)


def test_one_trace_for_all_values() -> None:
    module = gpt(depth=1)
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def apply(variables: Tree, tokens: jax.Array) -> Any:
        return module.apply(variables, tokens, train=True)

    for seed in range(2):
        apply(filled(module, TOKENS, seed), jnp.asarray((TOKENS + seed) % VOCABULARY))


def test_exports_with_symbolic_batch_and_time() -> None:
    module = gpt(depth=1, placement="peri", qk_norm=RMS)
    variables = filled(module, TOKENS)
    batch, time = export.symbolic_shape("b, t")
    shape = jax.ShapeDtypeStruct((batch, time), jnp.int32)
    exported = export.export(jax.jit(partial(module.apply, train=False)))(variables, shape)
    for tokens in (TOKENS.astype(np.int32), TOKENS[:1, :2].astype(np.int32)):
        expected = logits(module, variables, tokens)
        np.testing.assert_allclose(exported.call(variables, tokens), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"placement": "prae"}, "Expected a known `placement`, got 'prae'. Did you mean `pre`?"),
        ({"residual": "zero"}, "Expected `residual` to be one of none, rezero, skipinit, layer_scale, got 'zero'."),
        ({"positions": "sine"}, "Expected known `positions`, got 'sine'. Known: learned, rotary."),
        ({"heads": 3}, "Expected `heads` to divide the width, 8, got 3. Choose a divisor."),
        ({"heads": 8}, "Expected an even number of features in a head to rotate, got 1. Choose other heads."),
        ({"positions": "learned", "context": 5}, "Expected at most `context` = 5 tokens, got 6. Raise `context`, or"),
    ],
)
def test_what_cannot_be_built(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as raised:
        jax.eval_shape(lambda: gpt(**fields).init(jax.random.key(0), TOKENS, train=False))
    assert str(raised.value).startswith(message)
