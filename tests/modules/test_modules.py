"""The Flax modules: Flax's own as peer, our options, the lifted transformations, and checkpoints."""

import dataclasses
import functools
import inspect
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen as nn
from flax import nnx as flax_nnx

from normlab import functional as F
from normlab import linen, nnx, norms
from normlab.norms import Ramp
from tests.support.registered import ALL

pytestmark = pytest.mark.usefixtures("strict")

KINDS = ("BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm")
SHAPE = (4, 3, 2, 32)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
KEY = jax.random.key(0)


def normal(*shape: int, seed: int = 0, dtype: Any = jnp.float32) -> jax.Array:
    """Normal values with a mean of one."""
    return jnp.asarray(1 + np.random.default_rng(seed).normal(size=shape), dtype)


X = normal(*SHAPE)
MASK = jnp.asarray(np.random.default_rng(1).random(SHAPE) < 0.7).at[:, :2].set(True)  # Flax is NaN where none counts
OURS = {
    "BatchNorm": {"unbiased_running_var", "ghost_batch_size", "statistics", "frozen"},
    "LayerNorm": {"scale_offset"},
    "RMSNorm": {"scale_offset"},
    "GroupNorm": {"feature_axes"},
}
"""Options after Flax's."""

GIVEN = {"RMSNorm": ["scale", "bias", "gate"]}
"""Arguments of a call, after Flax's; scale and bias for the others."""


def training(kind: str) -> dict[str, Any]:
    """The option that makes a batch norm train."""
    return {"use_running_average": False} if kind.startswith("Batch") else {}


def values(module: Any) -> dict[str, jax.Array]:
    """Variables of an NNX module by name."""
    return {path[-1]: v[...] for path, v in nnx_flat(module)}


def nnx_flat(module: Any) -> Any:
    """Variables of an NNX module with their paths."""
    return flax_nnx.to_flat_state(flax_nnx.state(module, flax_nnx.Variable))


@pytest.mark.parametrize("kind", KINDS)
def test_linen_fields_are_flax_fields_in_flax_order(kind: str) -> None:
    def fields(module: type) -> list[tuple[str, Any]]:
        return [(f.name, f.default) for f in dataclasses.fields(module) if f.name not in ("parent", "name")]

    theirs, ours = fields(getattr(nn, kind)), fields(getattr(linen, kind))
    assert [name for name, _ in ours[: len(theirs)]] == [name for name, _ in theirs]
    assert {name for name, _ in ours[len(theirs) :]} == OURS.get(kind, set())
    different = {a[0] for a, b in zip(ours, theirs, strict=False) if a[1] != b[1] and not callable(a[1])}
    assert different <= {"use_fast_variance"}
    calls = [inspect.signature(getattr(m, kind).__call__).parameters.values() for m in (linen, nn)]
    ours, theirs = map(list, calls)
    assert [(p.name, p.kind) for p in ours[: len(theirs)]] == [(p.name, p.kind) for p in theirs]
    assert [(p.name, p.kind, p.default) for p in ours[len(theirs) :]] == [
        (name, inspect.Parameter.KEYWORD_ONLY, None) for name in GIVEN.get(kind, ["scale", "bias"])
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_nnx_arguments_are_flax_arguments(kind: str) -> None:
    theirs, ours = (inspect.signature(getattr(m, kind).__init__).parameters for m in (flax_nnx, nnx))
    assert [name for name in ours if name not in OURS.get(kind, ())] == [
        name for name in theirs if name != "promote_dtype"
    ]
    for name, parameter in ours.items():
        if name in theirs:
            assert parameter.kind == theirs[name].kind, name
            if name != "use_fast_variance" and not name.endswith(("_init", "_metadata")):
                assert parameter.default == theirs[name].default, name
    calls = [inspect.signature(getattr(m, kind).__call__).parameters.values() for m in (nnx, flax_nnx)]
    ours, theirs = map(list, calls)
    assert [(p.name, p.kind) for p in ours[: len(theirs)]] == [(p.name, p.kind) for p in theirs]
    assert [(p.name, p.kind, p.default) for p in ours[len(theirs) :]] == [
        (name, inspect.Parameter.KEYWORD_ONLY, None) for name in GIVEN.get(kind, ["scale", "bias"])
    ]


OPTIONS: list[tuple[str, dict[str, Any]]] = [
    *((kind, {}) for kind in KINDS),
    *((kind, {"use_scale": False, "epsilon": 0.1}) for kind in KINDS),
    *((kind, {"use_bias": False, "scale_init": nn.initializers.normal()}) for kind in KINDS if kind != "RMSNorm"),
    *(
        (kind, {"bias_init": nn.initializers.normal(), "param_dtype": jnp.bfloat16})
        for kind in KINDS
        if kind != "RMSNorm"
    ),
    ("BatchNorm", {"axis": 1, "momentum": 0.5}),
    ("LayerNorm", {"reduction_axes": (1, 2, 3), "feature_axes": -1}),
    ("GroupNorm", {"num_groups": 8}),
    ("GroupNorm", {"num_groups": None, "group_size": 2}),
    ("InstanceNorm", {"feature_axes": 2}),
]
ONLY_LINEN: list[tuple[str, dict[str, Any]]] = [
    ("BatchNorm", {"axis": (1, -1)}),
    ("RMSNorm", {"reduction_axes": (1, 2), "feature_axes": (1, 2)}),
    ("LayerNorm", {"reduction_axes": (-1, -2), "feature_axes": (-2, -1)}),
    ("BatchNorm", {"axis": (3, 1), "use_bias": False}),
    ("GroupNorm", {"num_groups": 4, "reduction_axes": (2, 3)}),
]


def with_masks(cases: list[tuple[str, dict[str, Any]]]) -> list[Any]:
    """Each case, and a masked one for the plain ones."""
    return [(k, o, False) for k, o in cases] + [(k, o, True) for k, o in cases if not o]


@pytest.mark.parametrize(("kind", "options", "masked"), with_masks(OPTIONS + ONLY_LINEN))
def test_linen_gives_flax_tree_and_flax_numbers(kind: str, options: dict[str, Any], masked: bool) -> None:
    plain, options = not options, {**options, **training(kind)}
    mask = MASK if masked else None
    flax = getattr(nn, kind)(**options)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        theirs = flax.init(KEY, X)
        expected = jax.jit(lambda: flax.apply(theirs, X, mask=mask, mutable=["batch_stats"]))()
    for fast in ({"use_fast_variance": True}, {}) if plain else ({},):
        module = getattr(linen, kind)(**options, **fast)
        variables = module.init(KEY, X)
        chex.assert_trees_all_equal(variables, theirs)
        y, state = jax.jit(functools.partial(module.apply, mutable=["batch_stats"]))(variables, X, mask=mask)
        chex.assert_trees_all_equal_dtypes((y, state), expected)
        chex.assert_trees_all_close((y, state), expected, **CLOSE)


@pytest.mark.parametrize(("kind", "options", "masked"), with_masks(OPTIONS))
def test_nnx_gives_flax_variables_and_flax_numbers(kind: str, options: dict[str, Any], masked: bool) -> None:
    mask, features = MASK if masked else None, SHAPE[options.get("axis", options.get("feature_axes", -1))]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        flax = getattr(flax_nnx, kind)(features, **options, rngs=flax_nnx.Rngs(0))
        before = values(flax)
        y = flax(X, mask=mask)
    for fast in ({"use_fast_variance": True}, {}):
        module = getattr(nnx, kind)(features, **options, **fast, rngs=flax_nnx.Rngs(0))
        chex.assert_trees_all_equal(values(module), before)
        assert {path: type(v) for path, v in nnx_flat(module)} == {path: type(v) for path, v in nnx_flat(flax)}
        ours = module(X, mask=mask)
        assert ours.dtype == y.dtype
        chex.assert_trees_all_close((ours, values(module)), (y, values(flax)), **CLOSE)


@pytest.mark.parametrize("norm", ALL)
def test_linen_and_nnx_make_the_same_variables(norm: str) -> None:
    variables = norms.get(norm).linen(train=True).init(KEY, X)
    flat = {name: leaf for part in variables.values() for name, leaf in part.items()}
    chex.assert_trees_all_equal(values(norms.get(norm).nnx(SHAPE[-1], rngs=flax_nnx.Rngs(0))), flat)


@pytest.mark.parametrize("param", ["float32", "bfloat16"])
@pytest.mark.parametrize("output", [None, "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("given", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["BatchNorm", "LayerNorm"])
def test_dtypes_are_flax_choice_and_statistics_stay_float32(kind: str, given: str, output: Any, param: str) -> None:
    options = {**training(kind), "dtype": output, "param_dtype": jnp.dtype(param)}
    x = X.astype(given)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        flax = getattr(nn, kind)(**options)
        expected = jax.eval_shape(functools.partial(flax.init_with_output, mutable=True), KEY, x)
    found = jax.eval_shape(functools.partial(getattr(linen, kind)(**options).init_with_output, mutable=True), KEY, x)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, expected)
    module = getattr(nnx, kind)(SHAPE[-1], dtype=output, param_dtype=jnp.dtype(param), rngs=flax_nnx.Rngs(0))
    assert flax_nnx.eval_shape(lambda module, x: module(x), module, x).dtype == expected[0].dtype
    assert all(v.dtype == jnp.float32 for _, v in nnx_flat(module) if isinstance(v, flax_nnx.BatchStat))


def test_half_precision_evaluation_keeps_running_statistics_in_float32() -> None:
    x = (300 + normal(64, 8)).astype(jnp.bfloat16)
    module = nnx.BatchNorm(8, use_running_average=True, dtype=jnp.bfloat16, rngs=flax_nnx.Rngs(0))
    module.mean[...] = jnp.full(8, 301.0)
    expected = (x.astype(jnp.float32) - 301) / np.sqrt(1 + 1e-5)
    np.testing.assert_allclose(module(x).astype(jnp.float32), expected, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("kind", ["BatchNorm", "BatchRenorm"])
def test_momentum_as_a_schedule_and_as_the_plain_average(kind: str) -> None:
    batches = normal(3, 6, 5)
    for momentum in (None, lambda step: step / (step + 1), optax.piecewise_constant_schedule(0.0, {})):
        module = getattr(linen, kind)(use_running_average=False, momentum=momentum)
        variables = module.init(KEY, batches[0])
        assert int(variables["batch_stats"]["step"]) == 0
        for batch in batches:
            variables = {**variables, **module.apply(variables, batch, mutable=["batch_stats"])[1]}
        last = momentum is not None and momentum(2) == 0
        expected = (batches[-1] if last else batches).reshape(-1, 5).mean(0)
        chex.assert_trees_all_close(variables["batch_stats"]["mean"], expected, **CLOSE)
        assert int(variables["batch_stats"]["step"]) == 3


def test_a_momentum_of_numpy_is_a_number() -> None:
    running, batch = F.RunningStatistics(jnp.zeros(1), jnp.ones(1)), F.batch_moments(jnp.array([[1.0], [3.0]]))
    after = F.update_batch_norm(running, batch, momentum=np.float32(0.5))  # pyright: ignore[reportArgumentType]
    np.testing.assert_allclose(after.mean, 1.0)
    assert norms.get("batch", momentum=np.float32(0.5)).linen(train=True).layer().momentum == 0.5


@pytest.mark.parametrize("kind", ["BatchNorm", "BatchRenorm"])
def test_momentum_weighs_the_old_value(kind: str) -> None:
    x = normal(6, 5)
    module = getattr(linen, kind)(use_running_average=False, momentum=0.9)
    _, after = module.apply(module.init(KEY, x), x, mutable=["batch_stats"])
    chex.assert_trees_all_close(after["batch_stats"]["mean"], 0.1 * x.mean(0), **CLOSE)


@pytest.mark.parametrize("kind", ["BatchNorm", "BatchRenorm"])
def test_unbiased_running_variance_is_that_of_the_sample(kind: str) -> None:
    x = normal(3, 5)
    module = getattr(linen, kind)(use_running_average=False, momentum=0.0, unbiased_running_var=True)
    _, after = module.apply(module.init(KEY, x), x, mutable=["batch_stats"])
    found = after["batch_stats"]["var"] if kind == "BatchNorm" else after["batch_stats"]["std"] ** 2 - 1e-5
    chex.assert_trees_all_close(found, x.var(0, ddof=1), **CLOSE)


@pytest.mark.parametrize("kind", ["BatchNorm", "BatchRenorm"])
def test_statistics_of_the_batch_at_evaluation_and_running_ones_in_training(kind: str) -> None:
    x = normal(6, 5)
    make = functools.partial(getattr(linen, kind))
    variables = make(use_running_average=False).init(KEY, x)
    batch_y = (x - x.mean(0, keepdims=True)) / jnp.sqrt(x.var(0, keepdims=True) + 1e-5)
    y, after = make(use_running_average=True, statistics="batch").apply(variables, x, mutable=["batch_stats"])
    chex.assert_trees_all_close(y, batch_y, **CLOSE)
    chex.assert_trees_all_equal(after["batch_stats"], variables["batch_stats"])
    y, after = make(use_running_average=False, statistics="running").apply(variables, x, mutable=["batch_stats"])
    chex.assert_trees_all_close(y, x, **CLOSE)  # mean 0 and deviation 1
    _, trained = make(use_running_average=False).apply(variables, x, mutable=["batch_stats"])
    chex.assert_trees_all_close(after["batch_stats"]["mean"], trained["batch_stats"]["mean"], **CLOSE)
    assert float(jnp.abs(after["batch_stats"]["mean"]).max()) > 0


@pytest.mark.parametrize("statistics", ["auto", "batch", "running"])
@pytest.mark.parametrize("kind", ["BatchNorm", "BatchRenorm"])
def test_a_frozen_norm_uses_running_statistics_and_stays(kind: str, statistics: Any) -> None:
    x, options = normal(6, 5), {"statistics": statistics, "frozen": True}
    module = getattr(linen, kind)(use_running_average=False, **options)
    variables = module.init(KEY, x)
    y, after = module.apply(variables, x, mutable=["batch_stats"])
    chex.assert_trees_all_close(y, x, **CLOSE)
    chex.assert_trees_all_equal(after["batch_stats"], variables["batch_stats"])
    ours = getattr(nnx, kind)(5, **options, rngs=flax_nnx.Rngs(0))
    chex.assert_trees_all_close(ours(x), x, **CLOSE)
    chex.assert_trees_all_equal(values(ours), {k: v for part in variables.values() for k, v in part.items()})


def test_ghost_batches_in_both() -> None:
    x, options = normal(6, 2, 5), {"ghost_batch_size": 2}
    module = linen.BatchNorm(use_running_average=False, **options)
    y, after = module.apply(module.init(KEY, x), x, mutable=["batch_stats"])
    parts = x.reshape(3, 4, 5)
    standard = (parts - parts.mean(1, keepdims=True)) / jnp.sqrt(parts.var(1, keepdims=True) + 1e-5)
    chex.assert_trees_all_close(y, standard.reshape(x.shape), **CLOSE)
    chex.assert_trees_all_close(after["batch_stats"]["var"], 0.99 + 0.01 * parts.var(1).mean(0), **CLOSE)
    ours = nnx.BatchNorm(5, **options, rngs=flax_nnx.Rngs(0))
    chex.assert_trees_all_close((ours(x), ours.var[...]), (y, after["batch_stats"]["var"]), **CLOSE)
    evaluating = linen.BatchNorm(use_running_average=True, **options)
    assert evaluating.apply(evaluating.init(KEY, x), x[:1]).shape == (1, 2, 5)


@pytest.mark.parametrize("kind", ["BatchNorm", "BatchRenorm"])
def test_one_example_makes_the_parameters_and_making_them_updates_nothing(kind: str) -> None:
    make = getattr(linen, kind)
    for options in ({}, {"statistics": "batch"}, {"axis_name": "devices"}, {"ghost_batch_size": 4}):
        one = make(use_running_average=False, **options).init(KEY, normal(1, 5))
        chex.assert_trees_all_equal(one, make(use_running_average=False, **options).init(KEY, normal(6, 5)))
        start = {"mean": 0.0, "var": 1.0, "std": 1.0, "step": 0}
        assert all(np.all(leaf == start[name]) for name, leaf in one["batch_stats"].items())


@pytest.mark.parametrize("kind", ["BatchNorm", "BatchRenorm"])
def test_mode_in_the_call(kind: str) -> None:
    x = normal(6, 5)
    module = getattr(linen, kind)()
    variables = module.init(KEY, x, use_running_average=False)
    for mode in (True, False):
        y, _ = module.apply(variables, x, use_running_average=mode, mutable=["batch_stats"])
        made, _ = getattr(linen, kind)(mode).apply(variables, x, mutable=["batch_stats"])
        chex.assert_trees_all_equal(y, made)
    ours = getattr(nnx, kind)(5, rngs=flax_nnx.Rngs(0))
    before = values(ours)
    chex.assert_trees_all_close(ours(x, use_running_average=True), x, **CLOSE)
    chex.assert_trees_all_equal(values(ours), before)


def test_batch_renorm_starts_as_batch_norm_where_its_schedules_do() -> None:
    x = 3 + 2 * normal(6, 5)
    ramps = {"r_max": Ramp(1.0, 3.0, begin=1, end=3), "d_max": optax.linear_schedule(0.0, 5.0, 2, 1)}
    module = linen.BatchRenorm(use_running_average=False, **ramps)
    variables = module.init(KEY, x)
    batch_y, _ = linen.BatchNorm(use_running_average=False).init_with_output(KEY, x)
    y, after = module.apply(variables, x, mutable=["batch_stats"])
    chex.assert_trees_all_close(y, batch_y, **CLOSE)
    ours = nnx.BatchRenorm(5, **ramps, rngs=flax_nnx.Rngs(0))
    for step in range(4):
        r_max, d_max = 1 + min(max(step - 1, 0), 2), 2.5 * min(max(step - 1, 0), 2)
        fixed = linen.BatchRenorm(use_running_average=False, r_max=float(r_max), d_max=float(d_max))
        y, after = module.apply(variables, x, mutable=["batch_stats"])
        expected, _ = fixed.apply(variables, x, mutable=["batch_stats"])
        chex.assert_trees_all_close(y, expected, **CLOSE)
        chex.assert_trees_all_close(ours(x), y, **CLOSE)
        variables = {**variables, **after}


def test_batch_renorm_starts_from_the_first_batch() -> None:
    x, later = 50 + 7 * normal(6, 5), 40 + 9 * normal(6, 5, seed=3)
    module = linen.BatchRenorm(use_running_average=False, momentum=0.9, initialize_from_first_batch=True)
    variables = module.init(KEY, x)
    y, after = module.apply(variables, x, mutable=["batch_stats"])
    batch_y, _ = linen.BatchNorm(use_running_average=False).init_with_output(KEY, x)
    chex.assert_trees_all_close(y, batch_y, rtol=1e-4, atol=1e-4)
    std, stats = jnp.sqrt(x.var(0) + 1e-5), after["batch_stats"]
    chex.assert_trees_all_close((stats["mean"], stats["std"]), (x.mean(0), std), **CLOSE)
    _, after = module.apply({**variables, **after}, later, mutable=["batch_stats"])
    expected = 0.9 * std + 0.1 * jnp.sqrt(later.var(0) + 1e-5)
    chex.assert_trees_all_close(after["batch_stats"]["std"], expected, **CLOSE)
    ours = nnx.BatchRenorm(5, momentum=0.9, initialize_from_first_batch=True, rngs=flax_nnx.Rngs(0))
    ours(x), ours(later)
    chex.assert_trees_all_close(ours.std[...], expected, **CLOSE)


class Block(nn.Module):
    """A layer of a network that is scanned, mapped or rematerialized."""

    norm: str
    train: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, _: Any = None) -> tuple[jax.Array, None]:
        """Dense, then a norm."""
        y = nn.Dense(x.shape[-1], use_bias=False)(x)
        return norms.get(self.norm).linen(train=self.train)(y), None


SMALL = ("batch", "batch_renorm", "layer", "group:num_groups=4")


@pytest.mark.parametrize("norm", ["batch_renorm", "layer"])
def test_layers_under_linen_scan(norm: str) -> None:
    x = normal(6, 8)

    def stack(train: bool) -> nn.Module:
        axes = {"params": 0, "batch_stats": 0}
        return nn.scan(Block, variable_axes=axes, split_rngs={"params": True}, length=3)(norm, train)

    variables = stack(True).init(KEY, x)
    (y, _), after = jax.jit(functools.partial(stack(True).apply, mutable=["batch_stats"]))(variables, x)
    h, states = x, []
    for i in range(3):
        layer = jax.tree.map(lambda a, i=i: a[i], variables)
        (h, _), state = Block(norm).apply(layer, h, mutable=["batch_stats"])
        states.append(state)
    chex.assert_trees_all_close((y, after), (h, jax.tree.map(lambda *a: jnp.stack(a), *states)), rtol=1e-4, atol=1e-4)
    assert stack(False).apply({**variables, **after}, x)[0].shape == x.shape


def test_steps_under_linen_scan_carry_the_running_statistics() -> None:
    xs = normal(4, 6, 8)

    def over_time(train: bool) -> nn.Module:
        state = {"variable_carry": "batch_stats"} if train else {"variable_broadcast": ["params", "batch_stats"]}
        scan = nn.scan(Over, **{"variable_broadcast": "params", **state}, split_rngs={"params": False})
        return scan(train)

    variables = {"batch_stats": {"norm": linen.BatchNorm(False).init(KEY, xs[0])["batch_stats"]}}
    variables["params"] = {"norm": linen.BatchNorm(False).init(KEY, xs[0])["params"]}
    (_, ys), after = over_time(True).apply(variables, None, xs, mutable=["batch_stats"])
    expected = variables
    for i, x in enumerate(xs):
        layer = {k: v["norm"] for k, v in expected.items()}
        y, state = linen.BatchNorm(False).apply(layer, x, mutable=["batch_stats"])
        chex.assert_trees_all_close(ys[i], y, **CLOSE)
        expected = {**expected, "batch_stats": {"norm": state["batch_stats"]}}
    chex.assert_trees_all_close(after["batch_stats"], expected["batch_stats"], **CLOSE)
    assert over_time(False).apply(variables, None, xs)[1].shape == xs.shape


class Over(nn.Module):
    """A batch norm as a step of a scan."""

    train: bool

    @nn.compact
    def __call__(self, carry: None, x: jax.Array) -> tuple[None, jax.Array]:
        """Normalize one step."""
        return carry, linen.BatchNorm(not self.train, name="norm")(x)


@pytest.mark.parametrize("norm", SMALL)
def test_models_under_linen_vmap(norm: str) -> None:
    xs = jnp.stack([normal(6, 8), 9 + 3 * normal(6, 8, seed=3)])
    axes = {"params": 0, "batch_stats": 0}
    models = nn.vmap(Block, variable_axes=axes, split_rngs={"params": True}, in_axes=0, out_axes=0)(norm)
    variables = models.init(KEY, xs)
    (y, _), after = models.apply(variables, xs, mutable=["batch_stats"])
    for i in range(2):
        one = jax.tree.map(lambda a, i=i: a[i], variables)
        (expected, _), state = Block(norm).apply(one, xs[i], mutable=["batch_stats"])
        chex.assert_trees_all_close(
            (y[i], jax.tree.map(lambda a, i=i: a[i], after)), (expected, state), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("lift", [nn.remat, nn.jit], ids=["remat", "jit"])
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_linen_remat_and_jit_update_once(norm: str, lift: Any) -> None:
    x, dy = normal(6, 8), normal(6, 8, seed=3)
    variables = Block(norm).init(KEY, x)

    def run(module: Any) -> Any:
        def loss(params: Any) -> Any:
            (y, _), after = module.apply({**variables, "params": params}, x, mutable=["batch_stats"])
            return (y * dy).sum(), after

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    chex.assert_trees_all_close(run(lift(Block)(norm)), run(Block(norm)), rtol=1e-4, atol=1e-4)


class Net(flax_nnx.Module):
    """Dense and a norm, for NNX's transformations."""

    def __init__(self, norm: str, rngs: flax_nnx.Rngs) -> None:
        """Make the layers."""
        self.dense = flax_nnx.Linear(8, 8, use_bias=False, rngs=rngs)
        self.norm = norms.get(norm).nnx(8, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layers."""
        return self.norm(self.dense(x))


@pytest.mark.parametrize("norm", SMALL)
def test_nnx_jit_keeps_the_updates(norm: str) -> None:
    x, dy = normal(6, 8), normal(6, 8, seed=3)

    def step(model: Net) -> Any:
        return flax_nnx.value_and_grad(lambda model: (model(x) * dy).sum())(model)

    eager, jitted = Net(norm, flax_nnx.Rngs(0)), Net(norm, flax_nnx.Rngs(0))
    compiled = flax_nnx.jit(step)
    for _ in range(2):
        expected, found = step(eager), compiled(jitted)
        chex.assert_trees_all_close(found[0], expected[0], rtol=1e-4)
        chex.assert_trees_all_close(
            flax_nnx.to_pure_dict(found[1]), flax_nnx.to_pure_dict(expected[1]), rtol=1e-3, atol=1e-4
        )
    chex.assert_trees_all_close(values(jitted.norm), values(eager.norm), **CLOSE)


@pytest.mark.parametrize("norm", SMALL)
def test_nnx_vmap_and_scan(norm: str) -> None:
    xs = jnp.stack([normal(6, 8), 9 + 3 * normal(6, 8, seed=3)])

    @flax_nnx.split_rngs(splits=2)
    @flax_nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs: flax_nnx.Rngs) -> Net:
        return Net(norm, rngs)

    def one(models: Net, i: int) -> Net:
        definition, state = flax_nnx.split(models)
        return flax_nnx.merge(definition, jax.tree.map(lambda a: a[i], state))

    models = make(flax_nnx.Rngs(0))
    alone = [one(models, i) for i in range(2)]
    ys = flax_nnx.vmap(lambda model, x: model(x), in_axes=(0, 0), out_axes=0)(models, xs)
    for i, model in enumerate(alone):
        chex.assert_trees_all_close(ys[i], model(xs[i]), rtol=1e-4, atol=1e-4)
        chex.assert_trees_all_close(values(one(models, i).norm), values(model.norm), **CLOSE)

    layers = make(flax_nnx.Rngs(1))
    h, alone = xs[0], [one(layers, i) for i in range(2)]
    scan = flax_nnx.scan(lambda x, model: model(x), in_axes=(flax_nnx.Carry, 0), out_axes=flax_nnx.Carry)
    y = scan(xs[0], layers)
    for model in alone:
        h = model(h)
    chex.assert_trees_all_close(y, h, rtol=1e-4, atol=1e-4)
    chex.assert_trees_all_close(values(one(layers, 1).norm), values(alone[1].norm), **CLOSE)


@pytest.mark.parametrize("norm", ["batch", "batch_renorm"])
def test_nnx_train_and_eval_and_view(norm: str) -> None:
    model, x = Net(norm, flax_nnx.Rngs(0)), 100 * normal(6, 8)
    model.eval()
    before = values(model.norm)
    evaluated = model(x)
    chex.assert_trees_all_equal(values(model.norm), before)
    model.train()
    trained = model(x)
    assert float(jnp.abs(values(model.norm)["mean"] - before["mean"]).max()) > 0
    assert float(jnp.abs(trained - evaluated).max()) > 1e-3
    after = values(model.norm)
    view = flax_nnx.view(model, use_running_average=True)
    view(x)
    chex.assert_trees_all_equal(values(model.norm), after)
    flax_nnx.view(model, use_running_average=False)(x)
    assert float(jnp.abs(values(model.norm)["mean"] - after["mean"]).max()) > 0


@pytest.mark.parametrize("norm", ["batch:momentum=None", "batch_renorm:r_max=Ramp(1.0, 3.0, begin=1, end=9)"])
def test_a_checkpoint_holds_all_of_the_state(norm: str, tmp_path: Path) -> None:
    x = normal(6, 8)
    module = norms.get(norm).linen(train=True)
    variables = module.init(KEY, x)
    variables = {**variables, **module.apply(variables, x, mutable=["batch_stats"])[1]}
    model = norms.get(norm).nnx(8, rngs=flax_nnx.Rngs(0))
    model(x)
    state = flax_nnx.to_pure_dict(flax_nnx.state(model))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves((variables, state)))
    with ocp.StandardCheckpointer() as checkpointer:
        for name, tree in (("linen", variables), ("nnx", state)):
            checkpointer.save(tmp_path / name, tree)
            checkpointer.wait_until_finished()
            chex.assert_trees_all_equal(checkpointer.restore(tmp_path / name, jax.eval_shape(lambda t=tree: t)), tree)
        restored = checkpointer.restore(tmp_path / "nnx", state)
    fresh = norms.get(norm).nnx(8, rngs=flax_nnx.Rngs(1))
    kept = flax_nnx.state(fresh)
    flax_nnx.replace_by_pure_dict(kept, restored)
    flax_nnx.update(fresh, kept)
    chex.assert_trees_all_equal(fresh(x), model(x))
    assert int(fresh.step[...]) == 2


@pytest.mark.parametrize("norm", ["batch", "layer", "group", "instance"])
def test_torch_agrees(norm: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x, epsilon = normal(4, 3, 2, 32), 1e-5
    peers = {
        "batch": lambda: torch.nn.BatchNorm2d(32, eps=epsilon, momentum=0.1),
        "layer": lambda: torch.nn.LayerNorm(32, eps=epsilon),
        "group": lambda: torch.nn.GroupNorm(32, 32, eps=epsilon),
        "instance": lambda: torch.nn.InstanceNorm2d(32, eps=epsilon),
    }
    order = (0, 1, 2, 3) if norm == "layer" else (0, 3, 1, 2)
    peer = peers[norm]()
    expected = peer(torch.tensor(np.array(x.transpose(order)))).detach().numpy().transpose(np.argsort(order))
    options = {"momentum": 0.9, "unbiased_running_var": True} if norm == "batch" else {}
    module = norms.get(norm).linen(train=True, epsilon=epsilon, **options)
    y, after = module.apply(module.init(KEY, x), x, mutable=["batch_stats"])
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    if norm == "batch":
        np.testing.assert_allclose(after["batch_stats"]["var"], peer.running_var.numpy(), rtol=1e-4)


def test_view_refuses_unknown_modes_and_describes_known_ones() -> None:
    norm = nnx.BatchNorm(4, rngs=flax_nnx.Rngs(0))
    assert flax_nnx.view(norm, use_running_average=True).use_running_average is True
    with pytest.raises(ValueError, match="Unused keys"):
        flax_nnx.view(norm, use_running_avg=True)
    assert "use_running_average" in flax_nnx.view_info(norm)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
def test_whole_numbers_keep_their_digits(dtype: Any) -> None:
    x = jnp.arange(100_000, 100_004)
    expected = np.array([-1.3416408, -0.4472136, 0.4472136, 1.3416408])
    linen_y = linen.LayerNorm(dtype=dtype).init_with_output(jax.random.key(0), x)[0]
    for y in (linen_y, nnx.LayerNorm(4, dtype=dtype, rngs=flax_nnx.Rngs(0))(x), F.layer_norm(x)):
        np.testing.assert_allclose(np.asarray(y, np.float64), expected, rtol=4e-3)
        assert y.dtype in (jnp.float32, dtype)


def test_numpy_is_taken_as_flax_takes_it() -> None:
    x = np.random.default_rng(0).normal(size=(6, 4))
    width, axis = np.int64(4), np.int64(-1)
    y = linen.BatchNorm(np.bool_(False), axis=axis, epsilon=np.float32(1e-5)).init_with_output(jax.random.key(0), x)[0]
    np.testing.assert_allclose(y, nnx.BatchNorm(width, axis=axis, rngs=flax_nnx.Rngs(0))(x), rtol=1e-6)


def test_making_parameters_needs_no_whole_chunks() -> None:
    module = linen.BatchNorm(use_running_average=False, ghost_batch_size=2)
    assert module.init(jax.random.key(0), jnp.ones((3, 4)))["params"]["scale"].shape == (4,)


def test_an_offset_of_the_scale_leaves_the_bias_alone() -> None:
    module = linen.LayerNorm(scale_offset=1.0, bias_init=nn.initializers.ones)
    params = module.init(jax.random.key(0), X)["params"]
    assert not np.any(params["scale"]) and np.all(params["bias"] == 1)
