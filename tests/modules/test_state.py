"""State of norms: its precision, its names, what restores it, and what optimizers see of frozen norms."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx as flax_nnx
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT

from normlab import functional as F
from normlab import linen, nnx, norms

KEY = jax.random.key(0)
X = jnp.asarray(2 + 3 * np.random.default_rng(0).normal(size=(8, 3, 4)), jnp.float32)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
Step = Callable[[Any], Any]


def cast(tree: Any, dtype: Any = jnp.bfloat16) -> Any:
    """Cast all floats, as a tree map over all variables does."""
    return jax.tree.map(lambda a: a.astype(dtype) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree)


def linen_step(module: nn.Module, x: jax.Array = X) -> tuple[Any, Step]:
    """Running statistics of a Linen module, and what one batch makes of them."""
    variables = module.init(KEY, x)
    return variables["batch_stats"], lambda stats: module.apply(
        {**variables, "batch_stats": stats}, x, mutable=["batch_stats"]
    )[1]["batch_stats"]


def nnx_step(module: Any, x: jax.Array = X) -> tuple[Any, Step]:
    """The same of an NNX module."""
    graph, state, rest = flax_nnx.split(module, flax_nnx.BatchStat, ...)

    def step(state: Any) -> Any:
        module = flax_nnx.merge(graph, state, rest)
        module(x)
        return flax_nnx.state(module, flax_nnx.BatchStat)

    return state, step


def layers(norm: str) -> dict[str, tuple[Any, Step]]:
    """A norm as a layer in Linen and NNX."""
    value = norms.get(norm)
    return {"linen": linen_step(value.linen(train=True)), "nnx": nnx_step(value.nnx(4, rngs=flax_nnx.Rngs(0)))}


def cells(norm: str) -> dict[str, tuple[Any, Step]]:
    """A norm in a cell in Linen and NNX."""
    ours = linen.RNN(linen.SimpleCell(4, norm=norm, use_running_average=False))
    theirs = nnx.RNN(nnx.SimpleCell(4, 4, norm=norm, rngs=flax_nnx.Rngs(0)), rngs=False)
    return {"linen": linen_step(ours), "nnx": nnx_step(theirs)}


LAYERS = (
    "batch",
    "batch:momentum=None",
    "batch:statistics='running'",
    "batch:ghost_batch_size=4",
    "batch_renorm",
    "batch_renorm:statistics='running'",
    "batch_renorm:initialize_from_first_batch=True",
    "online",
    "streaming:calls_per_update=2",
    "continual:num_groups=2",
)
CELLS = ("batch_step:max_steps=3", "batch_shared", "batch_input", "batch_input:over='step',max_steps=3,momentum=None")


@pytest.mark.parametrize("api", ["linen", "nnx"])
@pytest.mark.parametrize(("make", "norm"), [(layers, n) for n in LAYERS] + [(cells, n) for n in CELLS])
def test_running_averages_from_half_precision_do_not_round_away(make: Any, norm: str, api: str) -> None:
    start, step = make(norm)[api]

    @jax.jit
    def thousand(state: Any) -> Any:
        return jax.lax.scan(lambda state, _: (step(state), None), step(state), length=999)[0]

    found, expected = thousand(cast(start)), thousand(start)
    chex.assert_trees_all_equal_dtypes(found, start)
    chex.assert_trees_all_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["batch", "batch_renorm"])
def test_a_thousand_equal_batches_give_their_moments(kind: str) -> None:
    start, step = layers(kind)["linen"]
    state, step = cast(start), jax.jit(step)
    for _ in range(1000):
        state = step(state)
    spread = state["var"] if kind == "batch" else state["std"] ** 2
    x = np.asarray(X, np.float64).reshape(-1, 4)
    np.testing.assert_allclose(state["mean"], x.mean(0), rtol=1e-3)
    np.testing.assert_allclose(spread, x.var(0), rtol=1e-3)


def test_a_count_that_was_cast_still_counts() -> None:
    start, step = layers("batch_renorm")["linen"]
    state = {**cast(start), "step": jnp.asarray(256, jnp.bfloat16)}  # where 256 + 1 is 256
    assert int(step(state)["step"]) == 257


def test_evaluation_from_half_precision_does_not_square_in_it() -> None:
    module = linen.BatchRenorm(use_running_average=True, use_bias=False, use_scale=False)
    stats = {"mean": jnp.zeros(4), "std": jnp.full(4, 1.7), "step": jnp.int32(3)}
    half = cast(stats)
    wide = jax.tree.map(lambda a: a.astype(jnp.float32), half)
    chex.assert_trees_all_equal(*(module.apply({"batch_stats": s}, X) for s in (half, {**wide, "step": stats["step"]})))


@pytest.mark.parametrize("norm", ["online", "streaming", "power", "mabn"])
def test_a_gradient_in_half_precision_cannot_be_a_state(norm: str) -> None:
    module = norms.get(norm).linen(train=True)
    variables = module.init(KEY, X)
    half = cast(variables[OVERWRITE_WITH_GRADIENT])

    def loss(carried: Any, x: jax.Array) -> jax.Array:
        given = {**variables, OVERWRITE_WITH_GRADIENT: carried}
        return (module.apply(given, x, mutable=["batch_stats"])[0] ** 2).sum()

    with pytest.raises(
        TypeError, match=r"in float32 or wider, since its gradient is its new value.*got bfloat16\. Cast"
    ):
        jax.grad(loss)(half, X)
    chex.assert_trees_all_equal(
        *(jax.grad(loss, 1)(c, X) for c in (half, variables[OVERWRITE_WITH_GRADIENT]))
    )  # where nothing is differentiated by it, its dtype does not matter


# --- names


def trained(module: nn.Module, times: int = 3) -> dict[str, Any]:
    """Variables after some batches."""
    variables = module.init(KEY, X)
    for _ in range(times):
        variables = {**variables, **module.apply(variables, X, mutable=["batch_stats"])[1]}
    return dict(variables)


def drop(tree: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A tree without the leaves of a name."""
    return {k: drop(v, name) if isinstance(v, Mapping) else v for k, v in tree.items() if k != name}


MODULES: dict[str, nn.Module] = {
    **{norm: norms.get(norm).linen(train=True) for norm in ("batch", "batch_renorm", "online", "streaming")},
    "continual": norms.get("continual:num_groups=2,momentum=None").linen(train=True),
    "cell": linen.RNN(linen.LSTMCell(4, norm="batch_step:momentum=None,max_steps=3", use_running_average=False)),
}


def leaves_of(norm: str) -> list[str]:
    """Names of a norm's state."""
    found = {
        "batch": "mean var",
        "batch_renorm": "mean std step",
        "continual": "mean var step",
        "cell": "mean var step",
    }
    streams = {
        "online": "mean var along_y along_one",
        "streaming": "mean var short_mean short_var short_count step slope_mean slope_var short_slope_mean "
        "short_slope_var short_calls",
    }
    return (found | streams)[norm].split()


@pytest.mark.parametrize(("norm", "name"), [(norm, name) for norm in MODULES for name in leaves_of(norm)])
def test_half_of_a_state_is_refused(norm: str, name: str) -> None:
    module = MODULES[norm]
    variables = jax.eval_shape(module.init, KEY, X)
    apply = functools.partial(module.apply, mutable=["batch_stats", OVERWRITE_WITH_GRADIENT])
    jax.eval_shape(apply, variables, X)
    with pytest.raises(ValueError, match=rf"Expected the state of .*`{name}` missing\. "):
        jax.eval_shape(apply, drop(variables, name), X)


@pytest.mark.parametrize("norm", MODULES)
def test_a_state_with_other_names_is_refused(norm: str) -> None:
    module = MODULES[norm]
    variables = jax.eval_shape(module.init, KEY, X)

    def added(tree: Mapping[str, Any]) -> dict[str, Any]:
        more = {"moving_mean": tree["mean"]} if "mean" in tree else {}
        return {k: added(v) if isinstance(v, Mapping) else v for k, v in tree.items()} | more

    with pytest.raises(ValueError, match="`moving_mean` unknown"):
        jax.eval_shape(functools.partial(module.apply, mutable=["batch_stats"]), added(variables), X)


def test_no_state_at_all_is_made_as_in_flax() -> None:
    module = linen.BatchRenorm(use_running_average=False)
    variables = module.init(KEY, X)
    _, after = module.apply({"params": variables["params"]}, X, mutable=["batch_stats"])
    chex.assert_trees_all_equal(after, module.apply(variables, X, mutable=["batch_stats"])[1])


@pytest.mark.parametrize("momentum", [0.9, None, lambda step: 0.9], ids=["number", "none", "schedule"])
def test_evaluation_does_not_ask_for_the_count_of_updates(momentum: Any) -> None:
    variables = trained(nn.BatchNorm(use_running_average=False, momentum=0.5))
    expected = nn.BatchNorm(use_running_average=True).apply(variables, X)
    for options in ({"use_running_average": True}, {"use_running_average": False, "frozen": True}):
        module = linen.BatchNorm(momentum=momentum, **options)
        for mutable in (False, ["batch_stats"]):
            found = module.apply(variables, X, mutable=mutable)
            y, after = found if mutable else (found, {"batch_stats": variables["batch_stats"]})
            chex.assert_trees_all_close(y, expected, **CLOSE)
            chex.assert_trees_all_equal(after["batch_stats"], variables["batch_stats"])
    training = linen.BatchNorm(use_running_average=False, momentum=momentum)
    if momentum == 0.9:
        training.apply(variables, X, mutable=["batch_stats"])
        return
    with pytest.raises(ValueError, match=r"`step` missing\. Add `step`, the number of updates behind the averages"):
        training.apply(variables, X, mutable=["batch_stats"])
    given = {**variables, "batch_stats": {**variables["batch_stats"], "step": jnp.int32(3)}}
    _, after = training.apply(given, X, mutable=["batch_stats"])
    weight = 0.75 if momentum is None else 0.9
    mean = weight * variables["batch_stats"]["mean"] + (1 - weight) * X.mean((0, 1))
    chex.assert_trees_all_close(after["batch_stats"]["mean"], mean, **CLOSE)


def test_a_cell_evaluates_without_the_count_of_updates() -> None:
    def model(evaluate: bool) -> nn.Module:
        return linen.RNN(linen.SimpleCell(4, norm="batch_step:momentum=None,max_steps=3", use_running_average=evaluate))

    variables = trained(model(evaluate=False))
    chex.assert_trees_all_equal(*(model(evaluate=True).apply(v, X) for v in (variables, drop(variables, "step"))))


def test_a_count_that_is_there_is_kept_where_nothing_depends_on_it() -> None:
    variables = trained(linen.BatchNorm(use_running_average=False, momentum=None))
    _, after = linen.BatchNorm(use_running_average=False).apply(variables, X, mutable=["batch_stats"])
    assert int(after["batch_stats"]["step"]) == 4
    module = nnx.BatchNorm(4, rngs=flax_nnx.Rngs(0))
    counted = nnx.BatchNorm(4, momentum=None, rngs=flax_nnx.Rngs(0))
    counted(X)
    flax_nnx.update(module, flax_nnx.state(counted))
    module(X)
    assert int(flax_nnx.to_pure_dict(flax_nnx.state(module))["step"]) == 2


# --- batch norm as batch renorm, and back


class Two(nn.Module):
    """A batch norm, and perhaps another within another module."""

    kind: str
    deep: bool = True

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply both."""
        x = getattr(linen, self.kind)(use_running_average=False, name="first")(x)
        return Two(self.kind, deep=False, name="inner")(nn.Dense(4)(x)) if self.deep else x


def test_linen_statistics_of_batch_norm_resume_as_batch_renorm_and_back() -> None:
    variables = trained(Two("BatchNorm"), 30)
    old = variables["batch_stats"]
    with pytest.raises(
        ValueError, match=r"BatchRenorm first.*`std`, `step` missing and `var` unknown.*as_batch_renorm`"
    ):
        Two("BatchRenorm").apply(variables, X, mutable=["batch_stats"])
    stats = F.as_batch_renorm(old, step=30)
    np.testing.assert_allclose(stats["first"]["std"], np.sqrt(np.asarray(old["first"]["var"]) + 1e-5), rtol=1e-6)
    _, after = Two("BatchRenorm").apply({**variables, "batch_stats": stats}, X, mutable=["batch_stats"])
    assert int(after["batch_stats"]["first"]["step"]) == 31
    moved = 0.99 * stats["first"]["std"] + 0.01 * jnp.sqrt(X.var((0, 1)) + 1e-5)
    chex.assert_trees_all_close(after["batch_stats"]["first"]["std"], moved, **CLOSE)
    with pytest.raises(ValueError, match=r"`var` missing and `std` unknown\. .*as_batch_norm`"):
        Two("BatchNorm").apply({**variables, "batch_stats": stats}, X, mutable=["batch_stats"])
    chex.assert_trees_all_close(F.as_batch_norm(stats), old, rtol=1e-5, atol=1e-6)
    clipped = F.as_batch_norm({"mean": jnp.zeros(1), "std": jnp.full(1, 1e-3), "step": jnp.int32(1)}, step=True)
    chex.assert_trees_all_equal(clipped, {"mean": jnp.zeros(1), "var": jnp.zeros(1), "step": jnp.int32(1)})


def test_nnx_statistics_of_batch_norm_resume_as_batch_renorm_and_back() -> None:
    old = nnx.BatchNorm(4, rngs=flax_nnx.Rngs(0))
    old(X)
    for given in (flax_nnx.state(old), flax_nnx.to_pure_dict(flax_nnx.state(old))):
        wrong = nnx.BatchRenorm(4, rngs=flax_nnx.Rngs(0))
        flax_nnx.update(wrong, given)
        for mode in (True, False):
            with pytest.raises(ValueError, match=r"state of BatchRenorm.*`var` unknown\. Convert.*as_batch_renorm`"):
                wrong(X, use_running_average=mode)
    with pytest.raises(ValueError, match="not available in state"):
        flax_nnx.replace_by_pure_dict(flax_nnx.state(wrong, flax_nnx.Param), given)

    new = nnx.BatchRenorm(4, rngs=flax_nnx.Rngs(0))
    stats = F.as_batch_renorm(flax_nnx.to_pure_dict(flax_nnx.state(old, flax_nnx.BatchStat)))
    flax_nnx.update(new, stats)
    chex.assert_trees_all_close(*(m(X, use_running_average=True) for m in (new, old)), **CLOSE)
    new(X)
    assert int(new.step[...]) == 2
    back = nnx.BatchNorm(4, rngs=flax_nnx.Rngs(0))
    flax_nnx.update(back, F.as_batch_norm(flax_nnx.to_pure_dict(flax_nnx.state(new, flax_nnx.BatchStat))))
    chex.assert_trees_all_close(*(m(X, use_running_average=True) for m in (new, back)), **CLOSE)
    flax_nnx.update(back, flax_nnx.state(nnx.OnlineNorm(4, rngs=flax_nnx.Rngs(0))))
    with pytest.raises(ValueError, match=r"state of BatchNorm.*`along_one`, `along_y` unknown"):
        back(X)


# --- NNX modules from NumPy


def net(norm: str) -> Any:
    """An NNX module with a norm."""
    if norm.startswith("cell"):
        cell = nnx.LSTMCell(4, 4, norm="batch_step:max_steps=3,momentum=None", rngs=flax_nnx.Rngs(0))
        return nnx.RNN(cell, rngs=False)
    return norms.get(norm).nnx(4, rngs=flax_nnx.Rngs(0))


@pytest.mark.parametrize("writeable", [True, False])
@pytest.mark.parametrize("norm", ["batch:momentum=None", "batch_renorm", "online", "streaming", "cell"])
def test_an_nnx_module_restored_from_numpy_leaves_the_checkpoint_as_it_is(norm: str, writeable: bool) -> None:
    model = net(norm)
    model(X)
    saved = jax.tree.map(np.array, flax_nnx.to_pure_dict(flax_nnx.state(model)))
    for leaf in jax.tree.leaves(saved):
        leaf.flags.writeable = writeable
    before = jax.tree.map(np.copy, saved)
    again = net(norm)
    flax_nnx.update(again, saved)
    for _ in range(2):
        chex.assert_trees_all_equal(again(X), model(X))
    chex.assert_trees_all_equal(saved, before)


# --- frozen norms


class Frozen(nn.Module):
    """A frozen norm before a trained one."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Apply both."""
        x = linen.BatchNorm(use_running_average=not train, frozen=True)(x)
        return nn.Dense(1)(linen.BatchNorm(use_running_average=not train)(x))


@pytest.mark.parametrize("whole", [True, False], ids=["masked optimizer", "masked decay"])
def test_a_frozen_linen_norm_stays_under_weight_decay(whole: bool) -> None:
    model = Frozen()
    variables = model.init(KEY, X, train=True)
    params, stats = variables["params"], variables["batch_stats"]
    mask = linen.trainable(model, variables, X, train=True)
    assert jax.tree.structure(mask) == jax.tree.structure(params)
    hidden = {path for path, value in flax.traverse_util.flatten_dict(mask).items() if not value}
    assert hidden == {("BatchNorm_0", "scale"), ("BatchNorm_0", "bias")}
    decay = {"learning_rate": 1e-2, "weight_decay": 0.1}
    optimizer = optax.masked(optax.adamw(**decay), mask) if whole else optax.adamw(**decay, mask=mask)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        def loss(params: Any) -> jax.Array:
            given = {"params": params, "batch_stats": stats}
            return (model.apply(given, X, train=True, mutable=["batch_stats"])[0] ** 2).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state, start = optimizer.init(params), params
    for _ in range(20):
        params, state = step(params, state)
    chex.assert_trees_all_equal(params["BatchNorm_0"], start["BatchNorm_0"])
    assert float(jnp.abs(params["BatchNorm_1"]["scale"] - 1).max()) > 1e-3


class Lifted(nn.Module):
    """A layer for lifted transformations."""

    frozen: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, _: Any = None) -> tuple[jax.Array, None]:
        """Dense, then a norm."""
        return linen.BatchNorm(use_running_average=False, frozen=self.frozen)(nn.Dense(4)(x)), None


def scanned(module: Any) -> Any:
    """Three layers by `nn.scan`."""
    return nn.scan(module, variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True}, length=3)


@pytest.mark.parametrize("lift", [nn.jit, nn.remat, scanned], ids=["jit", "remat", "scan"])
def test_frozen_norms_are_found_in_lifted_modules_that_were_traced_before(lift: Any) -> None:
    model = lift(Lifted)()
    variables = model.init(KEY, X)
    for _ in range(2):
        mask = linen.trainable(model, variables, X)
        assert not any(mask["BatchNorm_0"].values()) and all(mask["Dense_0"].values())
    assert all(jax.tree.leaves(linen.trainable(lift(Lifted)(frozen=False), variables, X)))


@pytest.mark.parametrize("kind", ["BatchNorm", "BatchRenorm"])
def test_a_frozen_nnx_norm_is_out_of_sight_of_optimizers(kind: str) -> None:
    usual, frozen = (getattr(nnx, kind)(4, frozen=f, rngs=flax_nnx.Rngs(0)) for f in (False, True))
    usual.scale.set_value(jnp.full(4, 2.0))
    usual(X)
    for given in (flax_nnx.state(usual), flax_nnx.to_pure_dict(flax_nnx.state(usual))):
        flax_nnx.update(frozen, given)
        assert type(frozen.scale) is type(frozen.bias) is nnx.FrozenParam
        chex.assert_trees_all_equal(frozen.scale[...], usual.scale[...])
    model = flax_nnx.Sequential(frozen, flax_nnx.Linear(4, 1, rngs=flax_nnx.Rngs(1)))
    before = flax_nnx.to_pure_dict(flax_nnx.state(frozen))
    optimizer = flax_nnx.Optimizer(model, optax.adamw(1e-2, weight_decay=0.1), wrt=flax_nnx.Param)

    @flax_nnx.jit
    def step(model: Any, optimizer: Any) -> None:
        optimizer.update(model, flax_nnx.grad(lambda model: (model(X) ** 2).mean())(model))

    for _ in range(5):
        step(model, optimizer)
    chex.assert_trees_all_equal(flax_nnx.to_pure_dict(flax_nnx.state(frozen)), before)


def test_freezing_later_takes_parameters_out_of_sight_too() -> None:
    norm = nnx.BatchNorm(4, scale_metadata={"note": "kept"}, use_bias=False, rngs=flax_nnx.Rngs(0))
    norm.frozen = True
    assert norm.frozen and not flax_nnx.to_flat_state(flax_nnx.state(norm, flax_nnx.Param)) and norm.bias is None
    norm.frozen = False
    assert type(norm.scale) is flax_nnx.Param and norm.scale.get_metadata()["note"] == "kept"
    merged = flax_nnx.merge(*flax_nnx.split(nnx.BatchNorm(4, frozen=True, rngs=flax_nnx.Rngs(0))))
    assert merged.frozen is True and type(merged.bias) is nnx.FrozenParam


def test_a_parameter_with_metadata_is_frozen_too() -> None:
    boxed = nn.with_partitioning(nn.initializers.ones, (None,))
    model, x = linen.BatchNorm(use_running_average=False, frozen=True, scale_init=boxed), jnp.ones((4, 3))
    mask = linen.trainable(model, model.init(jax.random.key(0), x), x)
    assert not any(jax.tree.leaves(mask)) and len(jax.tree.leaves(mask)) == 2
    bare = linen.LayerNorm(use_scale=False, use_bias=False)
    assert linen.trainable(bare, bare.init(jax.random.key(0), x), x) == {}


def test_what_a_user_adds_to_an_nnx_norm_is_his_own() -> None:
    norm = nnx.BatchNorm(3, rngs=flax_nnx.Rngs(0))
    norm.extra, norm.weight = flax_nnx.Variable(jnp.ones(2)), flax_nnx.Param(jnp.ones(2))
    norm.seen = flax_nnx.Intermediate(jnp.ones(1))
    assert np.isfinite(norm(jnp.arange(12.0).reshape(4, 3))).all()
