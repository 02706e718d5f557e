"""Derivatives: right to second order, in both modes, under masks, at large offsets; and none where there is to be none.

Cotangents are random throughout: the gradient of a plain sum through a norm is zero, whatever the norm does.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.test_util import check_grads

from normlab import functional as F
from normlab import norms
from tests.support import reference
from tests.support.registered import ALL

pytestmark = pytest.mark.usefixtures("strict")

SHAPE = (4, 3, 4)
SMALL = {
    "group": "group:num_groups=2",
    **{f"evonorm_s{i}": f"evonorm_s{i}:num_groups=2" for i in range(3)},
    "continual": "continual:num_groups=2",
    "batch_channel": "batch_channel:num_groups=2",
    "batch_renorm": "batch_renorm:r_max=1.0,d_max=0.0",  # r and d move numerically
}
OWN_BACKWARD = ("online", "streaming", "power", "mabn")  # on purpose no derivative of the forward pass
NORMS = tuple(SMALL.get(name, name) for name in ALL if name not in OWN_BACKWARD)
VARIANTS = (
    "batch:ghost_batch_size=2",
    "batch:ghost_batch_size=3,axis=-1",
    "batch:axis=(1,2),use_scale=False",
    "batch:statistics=running",
    "batch_renorm:statistics=running",
    "layer:reduction_axes=(1,2),feature_axes=-1",
    "layer:reduction_axes=1,feature_axes=-1",
    "layer:reduction_axes=(1,2),feature_axes=(1,2)",
    "rms:reduction_axes=1,feature_axes=-1",
    "group:num_groups=2,reduction_axes=-1",
    "group:num_groups=2,use_bias=False",
    "instance:use_scale=False",
    "whiten:group_size=4,exact=True",
    "whiten:group_size=2,ghost_batch_size=2",
    "group_whiten:num_groups=2,exact=True",
)


@pytest.fixture
def x64(strict: None) -> Iterator[None]:
    """Compute in float64."""
    with jax.enable_x64(True):
        yield


def random_like(tree: Any, seed: int = 0) -> Any:
    """The tree with floats from [0.5, 1.5] and whole numbers 3."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda a: jnp.asarray(rng.uniform(0.5, 1.5, a.shape)) if jnp.issubdtype(a.dtype, jnp.floating) else a + 3, tree
    )


def function_of(norm: str, mask: jax.Array | None = None, **options: Any) -> tuple[Callable[..., jax.Array], Any]:
    """A norm in training as a function of its parameters and its input, and its parameters."""
    module = norms.get(norm).linen(train=True, **options)
    variables = random_like(module.init(jax.random.key(0), jnp.ones(SHAPE)))
    state = {k: v for k, v in variables.items() if k != "params"}

    @jax.jit
    def f(params: Any, x: jax.Array) -> jax.Array:
        return module.apply({"params": params, **state}, x, mask=mask, mutable=["batch_stats"])[0]

    return f, variables.get("params", {})


def normal(seed: int = 0, shape: tuple[int, ...] = SHAPE, dtype: Any = None) -> jax.Array:
    """Normal values, float64 where there is any."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


POINT = 2.0 * np.arange(3)[None, :, None]  # positions apart, so that finite differences are well conditioned
MASK = np.array([[1, 1, 1], [0, 1, 1], [1, 1, 0], [1, 0, 1]], bool)[..., None]


@pytest.mark.parametrize("norm", ["batch", "layer", "rms", "group:num_groups=2"])
def test_first_and_second_derivatives_pass_jax_own_check(x64: None, norm: str) -> None:
    f, params = function_of(norm, jnp.asarray(MASK))
    check_grads(f, (params, normal() + POINT), order=2, modes=("fwd", "rev"), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("norm", "masked"), [*((n, n in NORMS) for n in (*NORMS, *VARIANTS)), (VARIANTS[1], True)])
def test_first_and_second_derivatives_are_central_differences(x64: None, norm: str, masked: bool) -> None:
    f, params = function_of(norm, jnp.asarray(MASK) if masked else None)
    at, along, dy = (params, normal() + POINT), (random_like(params, 1), normal(1)), normal(2)

    def moved(step: jax.Array) -> Any:
        return jax.tree.map(lambda a, d: a + step * d, at, along)

    def loss(at: Any) -> jax.Array:
        return (jnp.tanh(f(*at)) * dy).sum()

    def slope(at: Any) -> jax.Array:
        return jax.jvp(loss, (at,), (along,))[1]

    @jax.jit
    def derivatives(h: jax.Array) -> Any:
        values, gradients = jax.vmap(lambda step: jax.value_and_grad(loss)(moved(step)))(jnp.stack([-h, h]))
        difference = jax.tree.map(lambda a: (a[1] - a[0]) / (2 * h), gradients)
        first = (values[1] - values[0]) / (2 * h)
        gradient = jax.grad(loss)(at)
        projected = sum(jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradient, along)), strict=True))
        second = jax.jvp(jax.grad(loss), (at,), (along,))[1], jax.grad(slope)(at)
        return (first, difference), [(slope(at), second[0]), (projected, second[1])]

    expected, found = derivatives(jnp.asarray(1e-5))
    for each in found:
        chex.assert_trees_all_close(each, expected, rtol=1e-6, atol=1e-7)


def plain(x: jax.Array, scale: jax.Array, bias: jax.Array, where: jax.Array | None, center: bool) -> jax.Array:
    """Layer norm, or RMS norm and a bias, in the two-pass formula, for autodiff to take apart."""
    centered = x - x.mean(-1, keepdims=True, where=where) if center else x
    var = lax.square(centered).mean(-1, keepdims=True, where=where)
    return centered * lax.rsqrt(var + 1e-6) * scale[None, None] + bias[None, None]


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("center", [True, False], ids=["layer", "rms"])
def test_the_derivative_rule_equals_autodiff_of_the_two_pass_formula(x64: None, center: bool, masked: bool) -> None:
    where = jnp.asarray(np.random.default_rng(5).random(SHAPE) < 0.7).at[..., :2].set(True) if masked else None

    def ours(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
        if center:
            return F.layer_norm(x, scale, bias, where=where)
        return F.rms_norm(x, scale, where=where) + bias[None, None]

    theirs = functools.partial(plain, where=where, center=center)
    arguments = (normal(0), normal(1, (4,)), normal(2, (4,)))
    tangents, dy = (normal(3), normal(4, (4,)), normal(5, (4,))), normal(6)

    def derivatives(f: Callable[..., jax.Array]) -> Any:
        def loss(*arguments: jax.Array) -> jax.Array:
            return (jnp.tanh(f(*arguments)) * dy).sum()

        def slope(*arguments: jax.Array) -> jax.Array:
            return jax.jvp(loss, arguments, tangents)[1]

        return {
            "jvp": jax.jvp(f, arguments, tangents),
            "vjp": jax.vjp(f, *arguments)[1](dy),
            "hessian": jax.hessian(loss)(*arguments),
            "reverse of forward": jax.grad(slope, argnums=(0, 1, 2))(*arguments),
        }

    got, expected = jax.jit(lambda: derivatives(ours))(), jax.jit(lambda: derivatives(theirs))()
    chex.assert_trees_all_close(got, expected, rtol=1e-10, atol=1e-11)
    assert float(jnp.abs(expected["hessian"]).max()) > 0.1


CLOSED_FORMS = {
    "layer": ((-1,), 1e-6, True),
    "rms": ((-1,), 1e-6, False),
    "instance": ((1,), 1e-6, True),
    "batch": ((0, 1), 1e-5, True),
    "layer:reduction_axes=(1,2)": ((1, 2), 1e-6, True),
    "group:num_groups=1": ((1, 2), 1e-6, True),
}


WIDE = (4, 6, 8)
WHERE = np.random.default_rng(2).random(WIDE) < 0.8


@functools.cache
def pulled_back(norm: str, masked: bool) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """`(x, dy) -> dx` of a norm without scale and bias."""
    module = norms.get(norm).linen(train=True, use_scale=False, **({} if norm == "rms" else {"use_bias": False}))
    variables = module.init(jax.random.key(0), jnp.ones(WIDE))
    mask = jnp.asarray(WHERE) if masked else None

    @jax.jit
    def pull(x: jax.Array, dy: jax.Array) -> jax.Array:
        return jax.vjp(lambda x: module.apply(variables, x, mask=mask, mutable=["batch_stats"])[0], x)[1](dy)[0]

    return pull


@pytest.mark.parametrize(("offset", "size"), [(0.0, 1.0), (1e4, 1.0), (0.0, 1e-3), (0.0, 300.0)])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("norm", CLOSED_FORMS)
def test_gradient_in_float32_is_the_closed_form(norm: str, masked: bool, offset: float, size: float) -> None:
    axis, epsilon, center = CLOSED_FORMS[norm]
    x = jnp.asarray(offset + size * np.random.default_rng(0).normal(size=WIDE), jnp.float32)
    dy, where = normal(1, WIDE, jnp.float32), WHERE if masked else None

    def closed_form(x: np.ndarray) -> np.ndarray:
        return reference.standardize_vjp(x, np.asarray(dy), axis, epsilon, where, center)

    reference.assert_rounds_to(np.asarray(pulled_back(norm, masked)(x, dy)), closed_form, np.asarray(x))


@pytest.mark.parametrize("norm", [*ALL, "batch:ghost_batch_size=2"])
def test_gradient_is_finite_at_zero(norm: str) -> None:
    f, params = function_of(SMALL.get(norm, norm))
    dy = normal(1, dtype=jnp.float32)
    y, pull = jax.vjp(f, params, jnp.zeros(SHAPE))
    gradients = pull(dy)
    chex.assert_tree_all_finite((y, gradients))
    if norm == "rms":
        np.testing.assert_allclose(gradients[1], 1e3 * dy * params["scale"][None, None], rtol=1e-5)


@pytest.mark.parametrize("limits", [{}, {"r_max": 1.1, "d_max": 0.1}], ids=["free", "clipped"])
def test_batch_renorm_takes_r_and_d_for_constants(limits: dict[str, float]) -> None:
    x, scale, bias, dy = (normal(i, s, jnp.float32) for i, s in enumerate([(6, 4), (4,), (4,), (6, 4)]))
    running = F.RenormStatistics(*(jnp.asarray(a, jnp.float32) for a in ([0.1, 0.2, -3.0, 0.0], [0.5, 0.9, 1.0, 4.0])))

    def with_constants(r: jax.Array, d: jax.Array) -> Callable[..., jax.Array]:
        def f(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
            y, _ = F.batch_norm(x, r * scale, d * scale + bias)
            return y

        return f

    mean, std = x.mean(0), jnp.sqrt(x.var(0) + 1e-5)
    r_max, d_max = limits.get("r_max", 3.0), limits.get("d_max", 5.0)
    r = jnp.clip(std / running.std, 1 / r_max, r_max)
    d = jnp.clip((mean - running.mean) / running.std, -d_max, d_max)
    y, pull = jax.vjp(lambda *a: F.batch_renorm(a[0], running, a[1], a[2], r_max=r_max, d_max=d_max)[0], x, scale, bias)
    expected, expected_pull = jax.vjp(with_constants(r, d), x, scale, bias)
    chex.assert_trees_all_close((y, pull(dy)), (expected, expected_pull(dy)), rtol=1e-5, atol=1e-5)


STATEFUL = [SMALL.get(name, name).partition(":r_max")[0] for name in ALL if norms.get(name).stateful]
BATCH = [
    norm for norm in STATEFUL if norm not in OWN_BACKWARD and hasattr(norms.get(norm).linen(train=True), "statistics")
]


@pytest.mark.parametrize(
    ("norm", "options"),
    [
        *[(norm, {}) for norm in STATEFUL],
        *[(norm, {"statistics": "running"}) for norm in BATCH],
        ("batch_renorm", {"initialize_from_first_batch": True}),
    ],
)
def test_no_gradient_flows_into_or_through_running_statistics(norm: str, options: dict[str, Any]) -> None:
    module = norms.get(norm).linen(train=True, **options)
    variables = module.init(jax.random.key(0), jnp.ones(SHAPE))
    floats = {k: v for k, v in variables["batch_stats"].items() if k != "step"}
    steps = {k: v for k, v in variables["batch_stats"].items() if k == "step"}

    def f(floats: Any, x: jax.Array) -> Any:
        state = {**variables, "batch_stats": {**floats, **steps}}
        y, after = module.apply(state, x, mutable=["batch_stats"])
        return y, {k: v for k, v in after["batch_stats"].items() if k != "step"}

    (y, after), pull = jax.vjp(f, floats, normal(dtype=jnp.float32))
    of_state = pull((jnp.zeros_like(y), jax.tree.map(jnp.ones_like, after)))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(of_state))
    if options.get("statistics") != "running":
        into_state, dx = pull((normal(1, dtype=jnp.float32), jax.tree.map(jnp.zeros_like, after)))
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(into_state))
        assert np.any(dx)


@pytest.mark.parametrize("norm", ["batch", "batch_renorm"])
def test_running_statistics_in_training_are_constants_to_the_input(norm: str) -> None:
    module = norms.get(norm).linen(train=True, statistics="running")
    variables = module.init(jax.random.key(0), jnp.ones(SHAPE))
    dy = normal(1, dtype=jnp.float32)
    _, pull = jax.vjp(lambda x: module.apply(variables, x, mutable=["batch_stats"])[0], normal(dtype=jnp.float32))
    np.testing.assert_allclose(pull(dy)[0], dy, rtol=1e-5)  # mean 0 and deviation 1, up to epsilon


@pytest.mark.parametrize("norm", BATCH)
def test_a_frozen_norm_has_no_gradient_in_scale_and_bias(norm: str) -> None:
    f, params = function_of(norm, frozen=True)
    x, dy = normal(dtype=jnp.float32), normal(1, dtype=jnp.float32)
    _, pull = jax.vjp(f, params, x)
    into_params, dx = pull(dy)
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(into_params))
    assert np.all(np.abs(dx) > 0)


@pytest.mark.parametrize("norm", ["batch", "batch:ghost_batch_size=3", "layer", "rms", "group"])
def test_nan_under_a_mask_reaches_no_second_derivative(norm: str) -> None:
    where = jnp.ones((6, 4), bool).at[2].set(False).at[0, 1].set(False)
    x = jnp.asarray(np.random.default_rng(0).normal(size=where.shape), jnp.float32)
    calls = {
        "batch": lambda x: F.batch_norm(x, where=where)[0],
        "batch:ghost_batch_size=3": lambda x: F.batch_norm(x, where=where, ghost_batch_size=3)[0],
        "layer": lambda x: F.layer_norm(x, where=where),
        "rms": lambda x: F.rms_norm(x, where=where),
        "group": lambda x: F.group_norm(x, num_groups=1, where=where),
    }

    def loss(x: jax.Array) -> jax.Array:
        return (jnp.where(where, calls[norm](x), 0) ** 3).sum()

    def twice(x: jax.Array) -> jax.Array:
        return (jnp.where(where, jax.grad(loss)(x), 0) ** 2).sum()

    hidden, plain = (jax.grad(twice)(jnp.where(where, x, under)) for under in (jnp.nan, 7.0))
    assert jnp.isfinite(hidden).all() and jnp.abs(plain).max() > 1e-3
    np.testing.assert_array_equal(jnp.where(where, hidden, 0), jnp.where(where, plain, 0))


def test_a_single_counted_element_moves_no_running_statistic_of_a_norm_that_uses_the_batch() -> None:
    where = jnp.zeros((6, 4), bool).at[0].set(True)
    running = F.RunningStatistics(jnp.zeros(4), jnp.ones(4), jnp.asarray(3))
    _, batch = F.batch_norm(jnp.ones((6, 4)), where=where)
    after = F.update_batch_norm(running, batch, momentum=0.9)
    np.testing.assert_array_equal(after.var, running.var)
    np.testing.assert_array_equal(after.mean, running.mean)
    assert int(after.step) == 3  # type: ignore[arg-type]
