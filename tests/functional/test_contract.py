"""What every norm in the registry keeps, on the inputs that break norms; a new norm is picked up by its name."""

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from normlab import norms
from normlab.functional import StatisticsError, one_element
from tests.support import reference, references
from tests.support.references import combined
from tests.support.registered import ALL

pytestmark = pytest.mark.usefixtures("strict")

SHAPE = (4, 3, 2, 64)
INPUTS = {"1": (0.0, 1.0), "1e-3": (0.0, 1e-3), "300": (0.0, 300.0), "1e4 + 1": (1e4, 1.0), "1e4 + 300": (1e4, 300.0)}
DTYPES = ("float32", "bfloat16", "float16")
NEED_BATCH = tuple(name for name in ALL if norms.get(name).entry.ghost_batches)


def reference_of(norm: str) -> Callable[..., reference.Result]:
    """The float64 reference of a norm, with its options."""
    spec = norms.get(norm)
    assert spec.name in references.NORMS, (
        f"Norm {spec.name!r} is registered but has no float64 reference: add its row to `references.NORMS`."
    )
    options = {k: v for k, v in spec.options.items() if k not in ("use_scale", "use_bias")}  # seen in the variables
    return functools.partial(references.NORMS[spec.name], **options)


@functools.cache
def module_of(norm: str, dtype: str = "float32") -> Any:
    """A norm's Linen module in training, its output in `dtype`."""
    module = norms.get(norm).linen(train=True)
    return module.clone(dtype=jnp.dtype(dtype)) if hasattr(module, "dtype") else module


@functools.cache
def compiled(norm: str, dtype: str = "float32") -> Callable[..., Any]:
    """`(variables, x, mask) -> (y, new variables)` of a norm in training."""
    return jax.jit(functools.partial(module_of(norm, dtype).apply, mutable=["batch_stats"]))


@functools.cache
def variables_of(norm: str, shape: tuple[int, ...] = SHAPE) -> Any:
    """Parameters and state of a norm, all different from where they start."""
    variables = jax.jit(module_of(norm).init)(jax.random.key(0), jnp.ones(shape))
    rng = np.random.default_rng(0)

    def draw(leaf: jax.Array) -> jax.Array:
        whole = jnp.issubdtype(leaf.dtype, jnp.integer)
        return jnp.asarray(np.full(leaf.shape, 3) if whole else rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)

    return jax.tree.map(draw, variables)


def flat(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Variables by name, in float64."""
    return {k: np.asarray(v, np.float64) for part in variables.values() for k, v in part.items()}


def draw(offset: float = 0.0, size: float = 1.0, dtype: str = "float32", shape: tuple[int, ...] = SHAPE) -> jax.Array:
    """A fixed normal input."""
    return jnp.asarray(offset + size * np.random.default_rng(1).normal(size=shape), dtype)


def expect(norm: str, variables: Any, mask: Any = None) -> Callable[[np.ndarray], reference.Result]:
    """The reference as a function of the input alone; outputs that a mask leaves out are 0."""
    where = None if mask is None else np.asarray(mask)

    def f(x: np.ndarray) -> reference.Result:
        y, state = reference_of(norm)(np.where(True if where is None else where, x, 0), flat(variables), where)
        return np.where(True if where is None else where, y, 0), state

    return f


def seen(result: Any, mask: Any = None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Output and state as the reference gives them; outputs that a mask leaves out are 0."""
    y, variables = result
    kept = np.asarray(y) if mask is None else np.where(mask, y, np.zeros((), y.dtype))
    return kept, {k: np.asarray(v) for k, v in variables.get("batch_stats", {}).items()}


def check(norm: str, x: jax.Array, mask: Any = None, dtype: str = "float32") -> float:
    """Assert that output and state in training are the reference's; return the error as a part of the bound."""
    variables = variables_of(norm, x.shape)
    result = compiled(norm, dtype)(variables, x, mask=mask)
    assert result[0].dtype == jnp.dtype(dtype) and result[0].shape == x.shape
    return reference.assert_rounds_to(seen(result, mask), expect(norm, variables, mask), np.asarray(x))


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", ALL)
def test_rounds_to_the_float64_reference(norm: str, dtype: str, inputs: str) -> None:
    if norm == "continual" and inputs == "1e4 + 1" and dtype != "float32":
        pytest.skip("Groups are constant there: what is left for the batch norm is the rounding of group norm.")
    if norm in ("evonorm_b2", "evonorm_s0", "evonorm_s1") and inputs == "1e4 + 1" and dtype == "float16":
        pytest.skip("They do not centre: 1e4 over the root of epsilon, where a group is constant, is beyond float16.")
    check(norm, draw(*INPUTS[inputs], dtype), dtype=dtype)


def state_of(norm: str) -> set[str]:
    """Names of a norm's state at evaluation."""
    return {*module_of(norm).layer().names(False)[0]} if norms.get(norm).stateful else set()


OPTIONS = [
    ("batch:axis=1", SHAPE),
    ("batch:axis=(1,-1)", SHAPE),
    ("batch:axis=(3,1),unbiased_running_var=True", SHAPE),
    ("batch:momentum=None,epsilon=0.1", (7, 5)),
    ("batch:ghost_batch_size=2", SHAPE),
    ("batch:ghost_batch_size=3", (7, 2, 5)),
    ("batch:ghost_batch_size=3,unbiased_running_var=True", (8, 5)),
    ("batch:ghost_batch_size=8,axis=1", (4, 3, 2)),
    ("batch:use_scale=False,use_bias=False,unbiased_running_var=True", (2, 5)),
    ("batch:momentum=Ramp(0.5, 0.9, begin=1, end=9)", (4, 5)),
    ("batch_renorm:axis=1,r_max=1.25,d_max=0.5", SHAPE),
    ("batch_renorm:ghost_batch_size=3,unbiased_running_var=True,momentum=None", (8, 5)),
    ("batch_renorm:use_scale=False", (4, 5)),
    ("batch_renorm:use_bias=False,epsilon=0.1", (4, 5)),
    ("layer:reduction_axes=(1,2,3),feature_axes=-1", SHAPE),
    ("layer:reduction_axes=(-1,1),feature_axes=(-1,1),epsilon=0.1", SHAPE),
    ("layer:reduction_axes=1,feature_axes=-1", SHAPE),
    ("layer:use_scale=False", (3, 5)),
    ("rms:reduction_axes=(1,2,3),feature_axes=3", SHAPE),
    ("rms:reduction_axes=(1,2),feature_axes=(1,2)", SHAPE),
    ("rms:use_scale=False,epsilon=0.1", (3, 5)),
    ("rms:scale_offset=1.0,reduction_axes=(-2,-1),feature_axes=(-2,-1)", (2, 3, 4)),
    ("layer:scale_offset=1", (3, 5)),
    ("derf:feature_axes=1", (3, 5, 2)),
    ("seednorm:num_heads=2,epsilon=0.1", (3, 6)),
    ("seednorm:reduction_axes=(1,2),feature_axes=-1,use_scale=False", (2, 3, 4)),
    ("bhyt:learn_lam=False,lam_init=3.0,bound=0.5", (3, 5)),
    ("bhyt:reduction_axes=(-2,-1),feature_axes=-1", (2, 3, 4)),
    ("l2:additive=True,epsilon=0.1,use_temperature=True", (3, 5)),
    ("l2:reduction_axes=(-2,-1),feature_axes=(-2,-1),epsilon=0.5", (2, 3, 4)),
    ("local_response:size=4,alpha=0.5,beta=1.5,k=2.0,divide=False", (3, 6)),
    ("local_response:size=3,feature_axes=1,alpha=0.1", (3, 6, 2)),
    ("local_response:size=9,alpha=0.1", (3, 4)),
    ("group:num_groups=2", (3, 6)),
    ("group:group_size=4", SHAPE),
    ("group:num_groups=8,reduction_axes=(2,3)", SHAPE),
    ("group:num_groups=8,reduction_axes=1", SHAPE),
    ("group:num_groups=8,reduction_axes=(0,-1),use_bias=False", SHAPE),
    ("instance:feature_axes=1", SHAPE),
    ("instance:feature_axes=(1,3),use_scale=False,use_bias=False", SHAPE),
    ("batch:statistics='running'", (1, 5)),
    ("batch:statistics='running',momentum=None,axis=1,ghost_batch_size=2", (4, 3, 2)),
    ("batch_renorm:statistics='running',momentum=Ramp(0.5, 0.9, begin=1, end=9)", (1, 5)),
    ("online:axis=1,momentum=0.9", (4, 3, 2)),
    ("online:guard=None,momentum=0.5,use_bias=False", (7, 5)),
    ("online:guard='clamp',momentum=0.9,epsilon=0.1", (7, 5)),
    ("streaming:axis=(1,-1),momentum=0.5", (4, 3, 2)),
    ("streaming:mix=(0.7,0.3),epsilon=0.1,use_scale=False", (1, 5)),
    ("streaming:mix=(0.2,0.5,0.3),calls_per_update=3", (7, 5)),
    ("continual:num_groups=2,ghost_batch_size=4", (8, 3, 6)),
    ("continual:group_size=4,statistics='running'", (1, 3, 8)),
    ("whiten:group_size=4,steps=3", SHAPE),
    ("whiten:axis=1,group_size=3,exact=True,average='covariance',use_scale=False", (7, 3, 5)),
    ("whiten:group_size=4,ghost_batch_size=3,momentum=None,allow=True", (7, 2, 8)),
    ("group_whiten:num_groups=8,exact=True", SHAPE),
    ("group_whiten:num_groups=4,use_bias=False,epsilon=0.1", (3, 5, 8)),
    ("mean_only_batch:axis=1,momentum=None,ghost_batch_size=3", (7, 3, 2)),
    ("mean_only_batch:statistics='running',momentum=0.5", (1, 5)),
    ("batch_channel:num_groups=2,ghost_batch_size=4,momentum=None", (8, 3, 6)),
    ("batch_channel:group_size=4,channel_affine='feature',statistics='running'", (1, 3, 8)),
    ("batch_channel:num_groups=2,channel_affine=None,use_bias=False", (4, 6)),
    ("representative:axis=1,momentum=0.5,ghost_batch_size=3", (7, 3, 2)),
    ("representative:momentum=None,unbiased_running_var=True", (7, 5)),
    ("switchable:axis=1,momentum=0.5,ghost_batch_size=3,unbiased_running_var=True", (7, 3, 2)),
    ("switchable:momentum=None", (7, 5)),
    ("switchable:axis=(1,3),use_scale=False,statistics='running'", (4, 3, 2, 3)),
    ("domain_batch:splits=3,unbiased_running_var=True,momentum=None", (6, 2, 5)),
    ("domain_batch:splits=2,share_affine=True,axis=1,momentum=0.5", (4, 3, 2)),
    ("domain_batch:splits=1,statistics='running'", (1, 5)),
]


@pytest.mark.parametrize(("norm", "shape"), OPTIONS)
def test_options_are_those_of_the_reference(norm: str, shape: tuple[int, ...]) -> None:
    check(norm, draw(0.5, 2.0, shape=shape))
    check(norm, draw(1e4, 1.0, shape=shape))


MASKS = {"(B,1,1,1)": (4, 1, 1, 1), "(B,T,1,1)": (4, 3, 1, 1), "(B,T,W,C)": SHAPE, "(T,1,1)": (3, 1, 1), "(C,)": (64,)}


def mask_of(shape: tuple[int, ...]) -> jax.Array:
    """A mask that counts about two in three, and the first in any case."""
    mask = np.random.default_rng(2).random(shape) < 0.67
    mask.flat[0] = True
    return jnp.asarray(mask)


VARIANTS = ("batch:ghost_batch_size=3", "batch_renorm:unbiased_running_var=True")


@pytest.mark.parametrize(
    ("norm", "mask"), [*itertools.product(ALL, MASKS), *itertools.product(VARIANTS, ["(B,T,1,1)", "(B,T,W,C)"])]
)
def test_masked_elements_are_never_read(norm: str, mask: str) -> None:
    where = mask_of(MASKS[mask])
    x = jnp.where(where, draw(3.0, 2.0), jnp.nan)
    check(norm, x, where)


@pytest.mark.parametrize("norm", [*ALL, "batch:ghost_batch_size=3", "group:reduction_axes=(1,3)"])
def test_nan_under_a_mask_reaches_no_gradient(norm: str) -> None:
    where = mask_of((4, 3, 1, 1))
    variables = variables_of(norm)
    params, rest = variables.get("params", {}), {k: v for k, v in variables.items() if k != "params"}
    dy = draw(shape=SHAPE)

    @jax.jit
    def gradients(params: Any, x: jax.Array) -> Any:
        def loss(params: Any, x: jax.Array) -> jax.Array:
            y, _ = module_of(norm).apply({"params": params, **rest}, x, mask=where, mutable=["batch_stats"])
            return jnp.where(where, y * dy, 0).sum()

        return jax.grad(loss, argnums=(0, 1))(params, x)

    zeros, nans = (gradients(params, jnp.where(where, draw(), fill)) for fill in (0.0, jnp.nan))
    chex.assert_tree_all_finite(nans)
    chex.assert_trees_all_equal(nans, zeros)
    assert not np.any(np.where(where, 0, nans[1]))


@pytest.mark.parametrize("norm", [*ALL, "batch:ghost_batch_size=2", "batch_renorm:initialize_from_first_batch=True"])
def test_a_batch_that_is_masked_out_changes_nothing(norm: str) -> None:
    variables = variables_of(norm)
    mask = jnp.zeros((4, 1, 1, 1), bool)
    y, after = compiled(norm)(variables, draw(), mask=mask)
    chex.assert_tree_all_finite((y, after))
    chex.assert_trees_all_equal(after.get("batch_stats", {}), variables.get("batch_stats", {}))
    one = jnp.zeros(SHAPE, bool).at[0, 0, 0].set(True)  # element per feature, which is too few for some
    for x, counted in [(draw() * jnp.nan, mask), *([(draw(), one)] if norms.get(norm).entry.ghost_batches else [])]:
        _, after = compiled(norm)(variables, x, mask=counted)
        chex.assert_trees_all_equal(after.get("batch_stats", {}), variables.get("batch_stats", {}))


@pytest.mark.parametrize("norm", ALL)
def test_an_example_that_is_masked_out_gives_finite_outputs_and_gradients(norm: str) -> None:
    variables, mask = variables_of(norm), jnp.asarray([True, False, True, True]).reshape(4, 1, 1, 1)

    def f(x: jax.Array) -> jax.Array:
        return compiled(norm)(variables, x, mask=mask)[0]

    y, pull = jax.vjp(f, draw())
    chex.assert_tree_all_finite((y, pull(draw(0.5))))
    check(norm, draw(), mask)


@pytest.mark.parametrize("norm", [name for name in NEED_BATCH if not norms.get(name).needs_spatial])
def test_batch_statistics_over_one_element_are_an_error(norm: str) -> None:
    module, x = norms.get(norm).linen(train=True), jnp.ones((1, 64))
    variables = module.init(jax.random.key(0), x)
    with pytest.raises(StatisticsError, match=r"more than one element.*Use a larger batch, `axis_name`"):
        jax.eval_shape(lambda x: module.apply(variables, x, mutable=["batch_stats"]), x)
    evaluating = norms.get(norm).linen(train=False)
    assert evaluating.apply(variables, x).shape == (1, 64)


@pytest.mark.parametrize("norm", [*ALL, "batch:ghost_batch_size=2"])
def test_an_empty_batch_is_empty_and_changes_nothing(norm: str) -> None:
    variables = variables_of(norm)
    y, after = compiled(norm)(variables, jnp.zeros((0, *SHAPE[1:])))
    assert y.shape == (0, *SHAPE[1:])
    chex.assert_trees_all_equal(after.get("batch_stats", {}), variables.get("batch_stats", {}))


@pytest.mark.parametrize("norm", [*ALL, "batch:ghost_batch_size=3"])
def test_eager_and_jit_and_vmap_and_scan_give_the_same(norm: str) -> None:
    variables, masks = variables_of(norm), jnp.stack([mask_of(SHAPE), jnp.ones(SHAPE, bool)])
    xs = jnp.stack([draw(1e4), draw(0.0, 300.0)])
    f = functools.partial(module_of(norm).apply, mutable=["batch_stats"])

    def one(x: jax.Array, mask: jax.Array) -> Any:
        return f(variables, x, mask=mask)

    ways = {
        "eager": [one(x, m) for x, m in zip(xs, masks, strict=True)],
        "jit": [compiled(norm)(variables, x, mask=m) for x, m in zip(xs, masks, strict=True)],
        "vmap": jax.vmap(one)(xs, masks),
        "scan": jax.jit(lambda: jax.lax.scan(lambda _, xm: (None, one(*xm)), None, (xs, masks))[1])(),
    }
    for i in range(2):
        f64 = expect(norm, variables, masks[i])
        for results in ways.values():
            result = results[i] if isinstance(results, list) else jax.tree.map(lambda a, i=i: a[i], results)
            reference.assert_rounds_to(seen(result, masks[i]), f64, np.asarray(xs[i]))


@pytest.mark.parametrize("norm", ALL)
def test_a_training_loop_traces_once(norm: str) -> None:
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(variables: Any, x: jax.Array) -> Any:
        return {**variables, **module_of(norm).apply(variables, x, mutable=["batch_stats"])[1]}

    variables = variables_of(norm)
    for size in (1.0, 2.0, 3.0):
        variables = step(variables, draw(size=size))


@pytest.mark.parametrize("norm", [n for n in ALL if {"var", "std"} & state_of(n) and not n.startswith("evonorm")])
def test_evaluation_uses_the_running_statistics_and_leaves_them(norm: str) -> None:
    variables = variables_of(norm)
    y, after = norms.get(norm).linen(train=False).apply(variables, draw(), mutable=["batch_stats"])
    chex.assert_trees_all_equal(after, {"batch_stats": variables["batch_stats"]})
    v = flat(variables)

    def expected(x: np.ndarray) -> np.ndarray:
        if norm in references.EVALUATED:
            return references.EVALUATED[norm](x, v)
        if norm in combined.NORMS:
            return combined.evaluated(norm, x, v)
        if norm == "continual":
            x, _ = reference.group(x, {}, epsilon=1e-5)
        std = v["std"] if "std" in v else np.sqrt(v["var"] + 1e-5)
        y = (x - v["mean"]) / std * v["scale"] + v["bias"]
        return y / np.sqrt((y**2).mean((1, 2, 3), keepdims=True) + 1e-5) if norm == "online" else y

    reference.assert_rounds_to(np.asarray(y), expected, np.asarray(draw()))


@pytest.mark.parametrize("norm", ALL)
def test_nnx_gives_the_same_numbers_as_linen(norm: str) -> None:
    from flax import nnx

    variables, where = variables_of(norm), mask_of((4, 3, 1, 1))
    module = norms.get(norm).nnx(SHAPE[-1], rngs=nnx.Rngs(0))
    values = {k: v for part in variables.values() for k, v in part.items()}
    state = nnx.state(module)
    for (name,), variable in nnx.to_flat_state(state):
        variable.set_value(values[name])
    nnx.update(module, state)
    y = module(draw(1e4), mask=where)
    expected = compiled(norm)(variables, draw(1e4), mask=where)
    stats = {k[0]: v[...] for k, v in nnx.to_flat_state(nnx.state(module, nnx.BatchStat))}
    chex.assert_trees_all_close(
        (y, stats), (expected[0], dict(expected[1].get("batch_stats", {}))), rtol=1e-5, atol=1e-2
    )


@st.composite
def case(draw: st.DrawFn, family: str) -> tuple[str, tuple[int, ...], tuple[int, ...], int]:
    """A norm with axes, a shape, the shape of a mask, and a seed."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=2, max_size=4)))
    axes = sorted(draw(st.sets(st.integers(0, len(shape) - 1), min_size=1, max_size=len(shape) - 1)))
    if family == "batch":
        if np.prod([n for a, n in enumerate(shape) if a not in axes]) == 1:
            shape = tuple(n + 1 for n in shape)
        norm = f"batch:axis={tuple(axes)}"
    else:
        features = sorted(draw(st.sets(st.integers(0, len(shape) - 1), min_size=1)))
        norm = f"{family}:reduction_axes={tuple(axes)},feature_axes={tuple(features)}"
    mask = tuple(n if draw(st.booleans()) else 1 for n in shape)
    return norm, shape, mask[draw(st.integers(0, len(mask))) :], draw(st.integers(0, 99))


@pytest.mark.parametrize("family", ["batch", "layer", "rms"])
@settings(max_examples=10, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_any_shape_and_axes_and_mask(family: str, data: st.DataObject) -> None:
    norm, shape, mask, seed = data.draw(case(family))
    rng = np.random.default_rng(seed)
    x, where = jnp.asarray(rng.normal(size=shape), jnp.float32), jnp.asarray(rng.random(mask) < 0.7)
    with one_element():
        variables = variables_of(norm, shape)
    hidden = jnp.where(where.reshape((1,) * (x.ndim - where.ndim) + where.shape), x, jnp.nan)
    with one_element():
        result = compiled(norm)(variables, hidden, mask=where)
    reference.assert_rounds_to(seen(result, where), expect(norm, variables, where), np.asarray(x))
