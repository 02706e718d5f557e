"""Digits, ranges, sizes and transformations: every norm of the registry keeps its numbers under them."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.experimental.jet import jet
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from normlab import functional as F
from normlab import linen, nnx, norms
from normlab.functional import StatisticsError
from normlab.functional.recurrent.cell_norm import cell_norm, normalize_examples, with_epsilon
from tests.functional.test_contract import expect, mask_of
from tests.support import reference
from tests.support.registered import ALL, GROUPED

SHAPES = {"rows": (64, 64), "images": (8, 5, 7, 32), "long": (20000, 4, 32)}
BARE = "use_scale=False,use_bias=False"
CENTERED = {
    "batch": {},
    "batch:ghost_batch_size=4": {},
    f"batch:use_fast_variance=False,{BARE}": {},
    "batch_renorm:r_max=1,d_max=0": {},
    "layer": {},
    "layer:reduction_axes=(0,-1)": {},
    "group": {"images", "positions"},
    "instance": {"positions"},
    "continual": {"positions"},
    "streaming:mix=(0,1)": {},
}
"""Norms whose output for a constant input is the bias, and what they need."""


def draw(shape: tuple[int, ...], offset: float = 0.0, size: float = 1.0, seed: int = 1) -> jax.Array:
    return jnp.asarray(offset + size * np.random.default_rng(seed).normal(size=shape), jnp.float32)


@functools.cache
def initial(norm: str, shape: tuple[int, ...]) -> Any:
    """Variables as a user starts with them."""
    return jax.jit(norms.get(norm).linen(train=True).init)(jax.random.key(0), jnp.ones((2, *shape[1:])))


def train(norm: str, variables: Any, x: jax.Array, mask: jax.Array | None = None) -> Any:
    module = norms.get(norm).linen(train=True)
    return module.apply(variables, x, mask=mask, mutable=["batch_stats"])


def shapes_of(norm: str) -> list[str]:
    return [name for name in SHAPES if name != "rows" or not (norm in GROUPED or norms.get(norm).needs_spatial)]


LARGE = {"batch_channel": "batch_channel:num_groups=4"}
"""Norms that divide what they have rounded, which groups of few elements magnify, with larger groups."""

EXACT = [LARGE.get(norm, norm) for norm in ALL]
EVERY = [(norm, shape) for norm in EXACT for shape in shapes_of(norm)]


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize(("norm", "shape"), EVERY)
def test_an_offset_costs_no_digits(norm: str, shape: str, masked: bool) -> None:
    """At 1e6 numbers are 0.06 apart in float32; the output is that of these numbers, to 3e-6."""
    if shape == "long" and norm.startswith(("online", "group_whiten")):
        pytest.skip("The reference is a Python loop over examples.")
    x0, variables = SHAPES[shape], initial(norm, SHAPES[shape])
    where = mask_of((x0[0], *[1] * (len(x0) - 1))) if masked else None
    run = jax.jit(functools.partial(train, norm))
    for offset in (0.0, 1e4, 1e6):
        x = draw(x0, offset)
        y, _ = run(variables, x, where)
        expected, _ = expect(norm, variables, where)(np.asarray(x, np.float64))
        kept = np.asarray(y if where is None else jnp.where(where, y, 0), np.float64)
        assert np.abs(kept - expected).max() <= 3e-6 * max(1, np.abs(expected).max() / 8)


@pytest.mark.parametrize("norm", EXACT)
def test_an_offset_costs_no_digits_of_the_gradient(norm: str) -> None:
    """Beside the same derivative of the same numbers in float64."""

    def gradients(variables: Any, x: jax.Array, dy: jax.Array) -> Any:
        params, rest = {"params": variables.get("params", {})}, {k: v for k, v in variables.items() if k != "params"}
        f = lambda p, x: (train(norm, {**p, **rest}, x)[0] * dy).sum()  # noqa: E731
        return jax.jit(jax.grad(f, (0, 1)))(params, x)

    x0 = SHAPES["images"]
    variables, dy = initial(norm, x0), draw(x0, seed=5)
    for offset in (0.0, 1e4, 1e6):
        x = draw(x0, offset)
        found = gradients(variables, x, dy)
        with jax.enable_x64(True):
            wide = [jax.tree.map(lambda a: jnp.asarray(np.asarray(a), _wide(a)), t) for t in (variables, x, dy)]
            expected = gradients(*wide)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            a, b = np.asarray(a, np.float64), np.asarray(b)
            assert np.abs(a - b).max() <= 3e-6 * np.abs(b).max()


def _wide(a: jax.Array) -> Any:
    return np.float64 if jnp.issubdtype(a.dtype, jnp.floating) else a.dtype


CONSTANTS = (4321.7, -1e-3, 1e6 + 0.3, 1e18)
WAYS = ("eager", "jit", "vmap", "masked", "half")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("norm", CENTERED)
def test_a_constant_gives_the_bias_exactly(norm: str, way: str) -> None:
    shape = SHAPES["images"]
    variables = initial(norm, shape)
    mask = mask_of((8, 5, 1, 1)).at[:, 0].set(False) if way == "masked" else None  # the first is not counted
    plain: Callable[..., Any] = lambda x: train(norm, variables, x, mask)[0]  # noqa: E731
    run = {"jit": jax.jit(plain), "vmap": lambda x: jax.vmap(plain)(x[None])[0]}.get(way, plain)
    for value in CONSTANTS:
        if way == "half" and value > 1e4:
            continue
        x = jnp.full(shape, value, jnp.bfloat16 if way == "half" else jnp.float32)
        assert not np.asarray(run(x), np.float32).any(), value
    columns = jnp.broadcast_to(jnp.linspace(1.1, 7e3, shape[-1], dtype=jnp.float32), shape)
    if norm.startswith(("batch", "streaming")) or norm == "instance":  # a constant for each feature
        assert not np.asarray(run(columns)).any()


def test_a_constant_gives_the_bias_exactly_across_devices() -> None:
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("d",))
    f = lambda x: F.batch_norm(x, axis_name="d")[0]  # noqa: E731
    for value in CONSTANTS:
        x = jnp.full((8, 5), value, jnp.float32)
        assert not np.asarray(jax.jit(jax.shard_map(f, mesh=mesh, in_specs=P("d"), out_specs=P("d")))(x)).any()
    apart = jnp.repeat(jnp.asarray([1e6, 1e6 + 1, 1e6 + 2, 1e6 + 5], jnp.float32), 2)[:, None]
    y = jax.jit(jax.shard_map(f, mesh=mesh, in_specs=P("d"), out_specs=P("d")))(apart)
    expected, *_ = reference.batch(np.asarray(apart, np.float64), {"mean": np.zeros(1), "var": np.ones(1)})
    np.testing.assert_allclose(y, expected, atol=1e-6)


@pytest.mark.parametrize("norm", ["layer", "layer_per_gate", "group:num_groups=2"])
def test_an_offset_costs_a_cell_no_digits(norm: str) -> None:
    """Gates of a cell whose sums lie far from 0, normalized together or each by itself."""
    spec = with_epsilon(cell_norm(norm), 0.0)
    ones, blocks = (jnp.ones(16),) * 4, (4,)
    groups = {"layer": (1, 64), "layer_per_gate": (4, 16), "group:num_groups=2": (8, 8)}[norm]
    for offset in (0.0, 1e4, 1e6):
        z = draw((6, 64), offset)
        y = jnp.concatenate(normalize_examples(spec, tuple(jnp.split(z, 4, -1)), ones, None, blocks), -1)
        wide = np.asarray(z, np.float64).reshape(6, *groups)
        mean, var = wide.mean(-1, keepdims=True), wide.var(-1, keepdims=True)
        assert np.abs(y - ((wide - mean) / np.sqrt(var + spec.epsilon)).reshape(6, 64)).max() <= 3e-6
    constant = normalize_examples(spec, (jnp.full((6, 16), 4321.7),) * 4, ones, None, blocks)
    assert not np.asarray(constant).any()


@pytest.mark.parametrize("norm", [n for n in ALL if n not in ("none", "mean_only_batch")])  # which square nothing
@pytest.mark.parametrize("size", [1e25, 1e30])
def test_squares_that_overflow_are_loud(norm: str, size: float) -> None:
    """Never the bias in silence: NaN, or the right answer."""
    shape = SHAPES["images"]
    variables = initial(norm, shape)
    x = draw(shape, 0.0, size)
    y, after = jax.jit(functools.partial(train, norm))(variables, x)
    expected, _ = expect(norm, variables)(np.asarray(x, np.float64))
    assert (np.isnan(y) | np.isclose(y, expected, rtol=1e-5)).all()
    if "batch_stats" in after and norm not in ("continual", "mean_only_batch"):  # groups pass NaN on; no squares
        evaluated = norms.get(norm).linen(train=False).apply({**variables, **after}, draw(shape))
        assert np.isnan(np.asarray(evaluated)).any()


@pytest.mark.parametrize("norm", ["layer", "rms", "group", "instance", "batch"])
def test_squares_that_vanish_are_loud(norm: str) -> None:
    """Without an epsilon that hides them: scale-invariant where squares fit, NaN where they do not."""
    shape = SHAPES["images"]
    variables = initial(norm, shape)
    run = jax.jit(functools.partial(train, f"{norm}:epsilon=0.0"))
    y, _ = run(variables, draw(shape))
    small, _ = run(variables, draw(shape) * 2.0**-40)
    np.testing.assert_allclose(small, y, rtol=1e-6, atol=1e-6)
    smaller, _ = run(variables, draw(shape) * 1e-25)
    assert np.isnan(np.asarray(smaller)).all()


ONE = {
    "layer": (4, 3, 1),
    "rms": (4, 1),
    "group:num_groups=6": (4, 6),
    "instance": (4, 1, 6),
    "batch": (1, 6),
    "batch_renorm": (1, 6),
    "batch:ghost_batch_size=1": (4, 6),
    "continual:num_groups=6": (4, 6),
    "online": (4, 1),
}


@pytest.mark.parametrize("norm", ONE)
def test_a_statistic_over_one_element_is_one_error_with_one_way_to_allow_it(norm: str) -> None:
    x = jnp.arange(1.0, 1 + np.prod(ONE[norm])).reshape(ONE[norm])
    init = functools.partial(norms.get(norm).linen(train=True).init, jax.random.key(0))
    if norm.startswith("batch"):  # whose batch need not be that of a call
        variables = init(x)
    else:
        with pytest.raises(StatisticsError, match="one_element"):
            init(x)
        with F.one_element():
            variables = init(x)
    with pytest.raises(StatisticsError, match=r"more than one element, got one.*`with normlab.functional.one_element"):
        jax.eval_shape(functools.partial(train, norm), variables, x)
    live: Any = norms.get(norm).nnx(ONE[norm][-1], rngs=nnx_rngs())
    with pytest.raises(StatisticsError, match="one_element"):
        live(x)
    with F.one_element():
        y, _ = train(norm, variables, x)
        assert y.shape == x.shape and np.isfinite(y).all()
        assert norm in ("rms", "online", "batch_renorm") or not y.any()
    with pytest.raises(StatisticsError):
        jax.eval_shape(functools.partial(train, norm), variables, x)


def nnx_rngs() -> Any:
    from flax import nnx as flax_nnx

    return flax_nnx.Rngs(0)


@pytest.mark.parametrize("norm", [n for n in ALL if n not in ("none", "batch_renorm")])
def test_no_features_are_an_empty_array(norm: str) -> None:
    x = jnp.zeros((4, 3, 0))
    y, _ = norms.get(norm).linen(train=True).init_with_output(jax.random.key(0), x)
    assert y.shape == x.shape


SIZES = ((2, 6, 10), (5, 3, 4))


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("norm", [*ALL, "layer:reduction_axes=(1,2,3)", "batch:momentum=None", "group:group_size=4"])
def test_exports_with_symbolic_sizes(norm: str, training: bool) -> None:
    """Exported, serialized, read again, called at two sizes."""
    shape = (2, 6, 10, 32)
    variables = initial(norm, shape)
    module = norms.get(norm).linen(train=training)

    @jax.jit
    def f(variables: Any, x: jax.Array) -> Any:
        return module.apply(variables, x, mutable=["batch_stats"])

    of_variables = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), variables)
    x = jax.ShapeDtypeStruct(export.symbolic_shape("b, h, w, 32"), jnp.float32)
    again = export.deserialize(export.export(f)(of_variables, x).serialize())
    for sizes in SIZES:
        x = draw((*sizes, 32), 3.0)
        for found, expected in zip(
            jax.tree.leaves(again.call(variables, x)), jax.tree.leaves(f(variables, x)), strict=True
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("norm", ALL)
def test_taylor_mode_is_forward_mode_twice(norm: str, training: bool) -> None:
    if training and norm in ("online", "streaming", "power", "mabn"):
        pytest.skip("Their backward pass is not a derivative, and there is no forward mode.")
    shape = (4, 3, 32)
    variables, x, direction = initial(norm, shape), draw(shape), draw(shape, seed=5)
    module = norms.get(norm).linen(train=training)

    def f(x: jax.Array) -> jax.Array:
        return module.apply(variables, x, mutable=["batch_stats"])[0]

    _, (first, second) = jet(f, (x,), ((direction, jnp.zeros_like(x)),))
    along = lambda g: lambda x: jax.jvp(g, (x,), (direction,))[1]  # noqa: E731
    np.testing.assert_allclose(first, along(f)(x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(second, along(along(f))(x), rtol=1e-4, atol=1e-4)


def test_nnx_norms_keep_the_digits_and_the_rules_of_linen() -> None:
    x = draw((16, 8), 1e6)
    for name in ("BatchNorm", "LayerNorm", "RMSNorm"):
        y = getattr(nnx, name)(8, rngs=nnx_rngs())(x)
        options = {"use_running_average": False} if name == "BatchNorm" else {}
        expected, _ = getattr(linen, name)(**options).init_with_output(jax.random.key(0), x)
        np.testing.assert_array_equal(y, expected)


def test_a_cell_of_one_feature_is_refused() -> None:
    rnn, x = linen.RNN(linen.SimpleCell(1, norm="layer")), jnp.ones((2, 3, 2))
    with pytest.raises(StatisticsError, match=r"more than one feature, got one.*one_element"):
        rnn.init(jax.random.key(0), x)


def test_limits_of_batch_renorm_are_constants() -> None:
    running = F.RenormStatistics(jnp.zeros(3), jnp.ones(3))
    f = lambda r, d: (F.batch_renorm(draw((8, 3), 9.0, 5.0), running, r_max=r, d_max=d)[0] ** 2).sum()  # noqa: E731
    assert jax.grad(f, (0, 1))(jnp.float32(3.0), jnp.float32(5.0)) == (0, 0)
