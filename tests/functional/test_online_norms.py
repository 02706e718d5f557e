"""Norms for streams: backward passes with a state, and running statistics that learn from single examples."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx as flax_nnx
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.training.train_state import TrainState

from normlab import functional as F
from normlab import nnx, norms
from normlab.introspect.pure import network
from normlab.study.design.factors import batch_size_curves
from tests.support import reference, references

pytestmark = pytest.mark.usefixtures("strict")

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
KEY = jax.random.key(0)
VJPS: Mapping[str, Callable[..., reference.Result]] = {
    "online": reference.online_vjp,
    "streaming": reference.streaming_vjp,
}
BACKWARD = ("online:guard=None", "streaming")


def normal(*shape: int, seed: int = 0, dtype: Any = jnp.float32) -> jax.Array:
    """Normal values with a mean of one."""
    return jnp.asarray(1 + np.random.default_rng(seed).normal(size=shape), dtype)


def flat(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Variables by name, in float64."""
    return {k: np.asarray(v, np.float64) for part in variables.values() for k, v in part.items()}


@functools.cache
def stepped(norm: str) -> Callable[..., Any]:
    """`(variables, x, dy, mask) -> (y, dx, variables after both passes)`, parameters as they were."""
    module = norms.get(norm).linen(train=True)

    @jax.jit
    def step(variables: Any, x: jax.Array, dy: jax.Array, mask: Any = None) -> Any:
        carried = variables[OVERWRITE_WITH_GRADIENT]

        def f(x: jax.Array, carried: Any) -> Any:
            return module.apply({**variables, OVERWRITE_WITH_GRADIENT: carried}, x, mask=mask, mutable=["batch_stats"])

        y, pull, after = jax.vjp(f, x, carried, has_aux=True)
        dx, carried = pull(dy)
        return y, dx, {**variables, **after, OVERWRITE_WITH_GRADIENT: carried}

    return step


def drawn(norm: str, shape: tuple[int, ...]) -> Any:
    """Variables of a norm, floats away from where they start."""
    variables = norms.get(norm).linen(train=True).init(KEY, jnp.ones(shape))
    rng = np.random.default_rng(3)
    ours = {k: jax.tree.map(lambda a: jnp.asarray(rng.uniform(0.5, 1.5, a.shape), a.dtype), v)
            for k, v in variables.items() if k != "batch_stats"}  # fmt: skip
    moving = {k: v + 0.3 if k in ("mean", "var") else v for k, v in variables["batch_stats"].items()}
    return {**ours, "batch_stats": moving}


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        ("online:guard=None,momentum=0.8,backward_momentum=0.7", (5, 4)),
        ("online:guard=None,momentum=0.8,backward_momentum=0.7", (1, 4)),
        ("online:guard=None,momentum=0.9,axis=1", (6, 4, 3, 2)),
        ("streaming", (5, 4)),
        ("streaming:mix=(0.7,0.3),backward_mix=(0.7,0.0,0.3)", (1, 4)),
        ("streaming:mix=(0.2,0.5,0.3),backward_mix=(0.2,0.5,0.3),calls_per_update=3,backward_momentum=0.4", (4, 3, 2)),
    ],
)
def test_both_passes_are_those_of_the_reference_call_after_call(
    norm: str, shape: tuple[int, ...], masked: bool
) -> None:
    spec = norms.get(norm)
    variables = drawn(norm, shape)
    for call in range(5):
        rng = np.random.default_rng(call)
        mask = rng.random((*shape[:-1], 1)) < 0.6 if masked else None
        x, dy = normal(*shape, seed=call), normal(*shape, seed=call + 9)
        hidden = x if mask is None else jnp.where(mask, x, jnp.nan)
        state, wide = flat(variables), [np.asarray(a, np.float64) for a in (x, dy)]
        y, after = references.NORMS[spec.name](wide[0], state, mask, **spec.options)
        options = {k: v for k, v in spec.options.items() if k != "guard"}
        dx, carried = VJPS[spec.name](wide[0], state, wide[1], mask, **options)
        found, found_dx, variables = stepped(norm)(variables, hidden, dy, mask)
        shown = np.asarray(found) if mask is None else np.where(mask, found, 0)
        chex.assert_trees_all_close(shown, np.where(True if mask is None else mask, y, 0), rtol=2e-5, atol=2e-5)
        np.testing.assert_allclose(found_dx, dx, rtol=2e-5, atol=5e-5)
        new = flat({k: v for k, v in variables.items() if k != "params"})
        chex.assert_trees_all_close(new, {**after, **carried}, rtol=2e-5, atol=5e-5)


@pytest.mark.parametrize("guard", ["layer_scaling", "clamp", None])
def test_guards(guard: F.Guard) -> None:
    x = jnp.asarray([[3.0, -7.0, 4.9], [0.5, 6.0, 0.0]])
    y, pull = jax.vjp(lambda x: F.guarded(x, guard, epsilon=0.0), x)
    expected = {
        "layer_scaling": x / np.sqrt((np.asarray(x) ** 2).mean(1, keepdims=True)),
        "clamp": jnp.asarray([[3.0, -5.0, 4.9], [0.5, 5.0, 0.0]]),
        None: x,
    }
    np.testing.assert_allclose(y, expected[guard], rtol=1e-6)
    (dx,) = pull(normal(2, 3))
    if guard == "clamp":
        np.testing.assert_array_equal(dx, jnp.where(jnp.abs(x) > 5, 0, normal(2, 3)))
    if guard == "layer_scaling":
        np.testing.assert_allclose((dx * x).sum(1), 0, atol=1e-5)


def test_a_stream_may_be_cut_anywhere() -> None:
    variables, x, dy = drawn("online", (6, 3, 4)), normal(6, 3, 4), normal(6, 3, 4, seed=1)
    whole_y, whole_dx, whole = stepped("online")(variables, x, dy)
    ys, dxs = [], []
    for size in (1, 1, 4):
        part = slice(len(ys) and sum(map(len, ys)), sum(map(len, ys)) + size)
        y, dx, variables = stepped("online")(variables, x[part], dy[part])
        ys.append(y)
        dxs.append(dx)
    chex.assert_trees_all_close(
        (jnp.concatenate(ys), jnp.concatenate(dxs), variables), (whole_y, whole_dx, whole), **CLOSE
    )


@pytest.mark.parametrize("norm", BACKWARD)
def test_what_a_backward_pass_carries_grows_with_the_loss(norm: str) -> None:
    variables, x, dy = drawn(norm, (6, 4)), normal(6, 4), normal(6, 4, seed=1)
    none = jax.tree.map(jnp.zeros_like, variables[OVERWRITE_WITH_GRADIENT])
    variables = {**variables, OVERWRITE_WITH_GRADIENT: none}
    of_sum, of_mean = (stepped(norm)(variables, x, dy / n)[2][OVERWRITE_WITH_GRADIENT] for n in (1, 6))
    chex.assert_trees_all_close(jax.tree.map(lambda a: 6 * a, of_mean), of_sum, **CLOSE)


@pytest.mark.parametrize("mask", [None, (4, 3, 5)], ids=str)
def test_streaming_norm_of_the_present_is_batch_norm(mask: Any) -> None:
    where = None if mask is None else jnp.asarray(np.random.default_rng(0).random(mask) < 0.7).at[:2].set(True)
    x, scale, bias, dy = normal(4, 3, 5), normal(5, seed=1), normal(5, seed=2), normal(4, 3, 5, seed=3)
    memory, slopes = F.initial_streaming((5,))
    shares: dict[str, Any] = {"mix": (0, 1), "backward_mix": (0, 0, 1)}

    def counted(y: jax.Array) -> jax.Array:
        return y if where is None else jnp.where(where, y, 0)

    @jax.jit
    def both(*a: jax.Array) -> Any:
        y, pull = jax.vjp(
            lambda x, *affine: counted(F.streaming_norm(x, memory, slopes, *affine, where=where, **shares)[0]), *a
        )
        expected, expected_pull = jax.vjp(lambda *a: counted(F.batch_norm(*a, where=where)[0]), *a)
        return (y, pull(dy)), (expected, expected_pull(dy))

    chex.assert_trees_all_close(*both(x, scale, bias), rtol=1e-5, atol=1e-5)


def test_the_short_memory_is_of_all_calls_since_the_update() -> None:
    memory, slopes = F.initial_streaming((3,))
    first, second = normal(4, 3), normal(2, 3, seed=1)
    norm = functools.partial(F.streaming_norm, mix=(0, 1), calls_per_update=2, epsilon=0.0)
    _, memory = norm(first, memory, slopes)
    np.testing.assert_array_equal(memory.mean, 0)
    y, memory = norm(second, memory, slopes)
    both = np.concatenate([first, second])
    np.testing.assert_allclose(y, (np.asarray(second) - both.mean(0)) / both.std(0), rtol=1e-4)
    np.testing.assert_allclose(memory.mean, 0.3 * both.mean(0), rtol=1e-5)
    assert not memory.short_count.any() and not memory.short_mean.any()


def test_continual_norm_is_batch_norm_of_group_norm() -> None:
    x, mask = normal(6, 3, 8), jnp.asarray(np.random.default_rng(1).random((6, 3, 1)) < 0.8)
    options: dict[str, Any] = {"momentum": 0.9, "ghost_batch_size": 2}
    module = norms.get("continual:num_groups=4").linen(train=True, **options)
    variables = module.init(KEY, x)
    y, after = module.apply(variables, x, mask=mask, mutable=["batch_stats"])
    plain = norms.get("batch").linen(train=True, **options)
    grouped = F.group_norm(x, num_groups=4, epsilon=1e-5, where=mask)
    chex.assert_trees_all_close(
        (y, after), plain.apply(variables, grouped, mask=mask, mutable=["batch_stats"]), **CLOSE
    )
    ours = norms.get("continual:num_groups=4").nnx(8, rngs=flax_nnx.Rngs(0), **options)
    np.testing.assert_allclose(ours(x, mask=mask), y, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", ["batch", "batch_renorm"])
def test_running_statistics_of_single_examples_are_mean_and_variance_of_all(norm: str) -> None:
    x, var = normal(12, 4), {"batch": lambda v: v["var"], "batch_renorm": lambda v: v["std"] ** 2 - 1e-5}[norm]
    module = norms.get(norm).linen(train=True, statistics="running", momentum=None)
    variables = module.init(KEY, x[:1])
    step = jax.jit(functools.partial(module.apply, mutable=["batch_stats"]))
    nothing = step(variables, x[:1] * jnp.nan, mask=jnp.zeros((1, 1), bool))[1]
    chex.assert_trees_all_equal(nothing["batch_stats"], variables["batch_stats"])
    for n, example in enumerate(x):
        y, after = step(variables, example[None])
        state = variables["batch_stats"]
        std = state["std"] if "std" in state else jnp.sqrt(state["var"] + 1e-5)
        np.testing.assert_allclose(y[0], (example - state["mean"]) / std, rtol=1e-5, atol=1e-6)
        variables = {**variables, **after}
        np.testing.assert_allclose(after["batch_stats"]["mean"], x[: n + 1].mean(0), rtol=1e-5)
        np.testing.assert_allclose(var(after["batch_stats"]), x[: n + 1].var(0), rtol=1e-4, atol=2e-6)
    assert int(variables["batch_stats"]["step"]) == 12


def test_a_momentum_that_is_scheduled_weighs_the_spread_between_examples_too() -> None:
    running, seen = F.RunningStatistics(jnp.zeros(2), jnp.ones(2), jnp.asarray(0)), []
    for n, x in enumerate(normal(6, 1, 2)):
        running = F.merge_batch_norm(running, F.batch_moments(x), momentum=lambda step: 0.5 + 0.05 * step.astype(float))
        seen = [(w * (0.5 + 0.05 * n), a) for w, a in seen] + [(0.5 - 0.05 * n, np.asarray(x[0], np.float64))]
    first = 1 - sum(w for w, _ in seen)
    mean = sum(w * a for w, a in seen)
    square = first * 1 + sum(w * a**2 for w, a in seen)
    np.testing.assert_allclose(running.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(running.var, square - mean**2, rtol=1e-5)


class Net(nn.Module):
    """A small net around a norm; the state of the norm is that of a part of it."""

    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Two layers."""
        x = nn.relu(self.norm.linen(train=train)(nn.Dense(8)(x), mask=None if mask is None else mask[:, None]))
        return nn.Dense(2)(x)


class NNXNet(flax_nnx.Module):
    """The same in NNX."""

    def __init__(self, norm: Any, *, rngs: flax_nnx.Rngs) -> None:
        self.first, self.last = flax_nnx.Linear(3, 8, rngs=rngs), flax_nnx.Linear(8, 2, rngs=rngs)
        self.norm = norm.nnx(8, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Two layers."""
        return self.last(flax_nnx.relu(self.norm(self.first(x), mask=None if mask is None else mask[:, None])))


def task(n: int = 4) -> tuple[jax.Array, jax.Array]:
    """Inputs and labels."""
    return normal(n, 3), jnp.asarray(np.arange(n) % 2)


def cross_entropy(y: jax.Array, labels: jax.Array) -> jax.Array:
    """Its mean."""
    return optax.softmax_cross_entropy_with_integer_labels(y, labels).mean()


@pytest.mark.parametrize("norm", BACKWARD[1:])
def test_flax_train_state_carries_what_linen_norms_need(norm: str) -> None:
    (x, labels), module = task(), Net(norms.get(norm))
    variables = module.init(KEY, x[:1], train=True)
    statistics = variables.pop("batch_stats")
    state = TrainState.create(apply_fn=module.apply, params=variables, tx=optax.sgd(0.1))
    losses = []

    @jax.jit
    def step(state: TrainState, statistics: Any) -> Any:
        def loss(params: Any) -> Any:
            y, after = state.apply_fn({**params, "batch_stats": statistics}, x, train=True, mutable=["batch_stats"])
            return cross_entropy(y, labels), after["batch_stats"]

        (value, after), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
        return state.apply_gradients(grads=gradients), after, gradients, value

    for _ in range(3):
        state, statistics, gradients, value = step(state, statistics)
        chex.assert_trees_all_equal(state.params[OVERWRITE_WITH_GRADIENT], gradients[OVERWRITE_WITH_GRADIENT])
        losses.append(float(value))
    assert losses[2] < losses[0]
    assert any(np.any(leaf) for leaf in jax.tree.leaves(state.params[OVERWRITE_WITH_GRADIENT]))


@pytest.mark.parametrize("norm", BACKWARD[:1])
def test_nnx_optimizer_and_the_helper_do_the_same(norm: str) -> None:
    (x, labels), module = task(), NNXNet(norms.get(norm), rngs=flax_nnx.Rngs(0))
    net = network(functools.partial(NNXNet), norms.get(norm), np.asarray(x))
    params, model_state = net.init(0)
    flax_nnx.update(module, params)
    optimizer = flax_nnx.Optimizer(module, optax.sgd(0.1), wrt=flax_nnx.Param)
    wrt = flax_nnx.DiffState(0, flax_nnx.Any(flax_nnx.Param, nnx.OverwriteWithGradient))

    @flax_nnx.jit
    def step(module: Any, optimizer: Any) -> None:
        gradients = flax_nnx.grad(lambda module: cross_entropy(module(x), labels), argnums=wrt)(module)
        optimizer.update(module, nnx.overwrite_with_gradient(module, gradients))

    ours = jax.jit(functools.partial(net.gradients, lambda y: (cross_entropy(y, labels), None)))
    for t in range(3):
        step(module, optimizer)
        _, by_params, model_state = ours(params, model_state, x, jnp.asarray(t))
        params = jax.tree.map(lambda a, b: a - 0.1 * b, params, by_params)
    chex.assert_trees_all_close(flax_nnx.state(module, flax_nnx.Param), params, **CLOSE)
    carried = flax_nnx.state(module, nnx.OverwriteWithGradient)
    chex.assert_trees_all_close(carried, net.carried(model_state)[0], **CLOSE)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(carried))
    before = jax.tree.map(jnp.copy, carried)
    gradients = flax_nnx.grad(lambda module: cross_entropy(module(x), labels))(module)  # by parameters alone
    chex.assert_trees_all_equal(nnx.overwrite_with_gradient(module, gradients), gradients)
    chex.assert_trees_all_equal(flax_nnx.state(module, nnx.OverwriteWithGradient), before)


@pytest.mark.parametrize(
    ("model", "norm"),
    [(Net, BACKWARD[0]), (NNXNet, BACKWARD[1]), (Net, "batch:statistics='running'"), (NNXNet, "layer")],
)
def test_a_network_carries_the_state_of_both_passes_and_never_reads_masked_examples(model: Any, norm: str) -> None:
    (x, labels), mask = task(), jnp.asarray([True, True, False, False])
    net = network(functools.partial(model), norms.get(norm), np.asarray(x))
    params, model_state = net.init(0)

    @jax.jit
    def stepped(x: jax.Array, labels: jax.Array, mask: Any) -> Any:
        def objective(y: jax.Array) -> tuple[jax.Array, jax.Array]:
            losses = optax.softmax_cross_entropy_with_integer_labels(y, labels)
            return (losses if mask is None else jnp.where(mask, losses, 0)).sum() / 2, y

        return net.gradients(objective, params, model_state, x, jnp.asarray(0), mask)

    (value, y), *new = stepped(x, labels, mask)
    (alone, alone_y), *expected = stepped(x[:2], labels[:2], None)
    chex.assert_trees_all_close(((value, y[:2]), new), ((alone, alone_y), expected), **CLOSE)
    changed = [bool(np.any(a != b)) for a, b in zip(*map(jax.tree.leaves, (new[1], model_state)), strict=True)]
    assert any(changed) == (norm != "layer")
    assert bool(jax.tree.leaves(net.carried(model_state)[0])) == (norm in BACKWARD)


@pytest.mark.parametrize("norm", BACKWARD)
def test_the_gradient_is_the_new_state_under_vmap_and_remat_and_scan(norm: str) -> None:
    module = norms.get(norm).linen(train=True)
    variables, xs, dys = drawn(norm, (3, 4)), normal(3, 3, 4), normal(3, 3, 4, seed=1)

    def step(variables: Any, x: jax.Array, dy: jax.Array, wrap: Any = lambda f: f) -> Any:
        @wrap
        def loss(carried: Any, x: jax.Array) -> Any:
            y, after = module.apply({**variables, OVERWRITE_WITH_GRADIENT: carried}, x, mutable=["batch_stats"])
            return (y * dy).sum(), after

        (carried, dx), after = jax.grad(loss, (0, 1), has_aux=True)(variables[OVERWRITE_WITH_GRADIENT], x)
        return {**variables, **after, OVERWRITE_WITH_GRADIENT: carried}, dx

    state, each, compiled = variables, [], jax.jit(step)
    for x, dy in zip(xs, dys, strict=True):
        state, dx = compiled(state, x, dy)
        each.append(dx)
    scanned = jax.jit(lambda: jax.lax.scan(lambda v, xd: step(v, xd[0], xd[1]), variables, (xs, dys)))()
    chex.assert_trees_all_close(scanned, (state, jnp.stack(each)), **CLOSE)
    again = jax.jit(functools.partial(step, wrap=jax.checkpoint))(variables, xs[0], dys[0])
    chex.assert_trees_all_close(again, compiled(variables, xs[0], dys[0]), **CLOSE)
    models = jax.tree.map(lambda a, b: jnp.stack([a, b]), variables, state)
    together = jax.jit(jax.vmap(step))(models, xs[1:], dys[1:])
    alone = [compiled(variables, xs[1], dys[1]), compiled(state, xs[2], dys[2])]
    chex.assert_trees_all_close(together, jax.tree.map(lambda *a: jnp.stack(a), *alone), **CLOSE)


@pytest.mark.parametrize("norm", BACKWARD)
def test_float64_stays_float64(norm: str) -> None:
    with jax.enable_x64(True):
        spec, variables = norms.get(norm), jax.tree.map(lambda a: a.astype("float64"), drawn(norm, (5, 4)))
        if "step" in variables["batch_stats"]:
            variables["batch_stats"]["step"] = jnp.asarray(0, jnp.int32)
        x, dy = normal(5, 4, dtype=jnp.float64), normal(5, 4, seed=1, dtype=jnp.float64)
        y, dx, after = stepped(norm)(variables, x, dy)
        state, wide = flat(variables), (np.asarray(x), np.asarray(dy))
        expected, _ = references.NORMS[spec.name](wide[0], state, **spec.options)
        expected_dx, carried = VJPS[spec.name](wide[0], state, wide[1])
        chex.assert_trees_all_close((y, dx), (expected, expected_dx), rtol=1e-12, atol=1e-12)
        chex.assert_trees_all_close(dict(after[OVERWRITE_WITH_GRADIENT]), carried, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", BACKWARD)
def test_there_is_no_forward_mode(norm: str) -> None:
    variables, x = drawn(norm, (3, 4)), normal(3, 4)
    module = norms.get(norm).linen(train=True)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: module.apply(variables, x, mutable=["batch_stats"])[0], (x,), (x,))


@pytest.mark.parametrize("norm", BACKWARD)
def test_a_model_that_only_evaluates_needs_no_state_of_the_backward_pass(norm: str) -> None:
    variables, x = drawn(norm, (3, 4)), normal(3, 4)
    kept = {k: v for k, v in variables.items() if k != OVERWRITE_WITH_GRADIENT}
    y = norms.get(norm).linen(train=False).apply(kept, x)
    v = flat(variables)
    expected = (np.asarray(x) - v["mean"]) / np.sqrt(v["var"] + 1e-5) * v["scale"] + v["bias"]
    np.testing.assert_allclose(y, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "norm", ["online:guard=None,momentum=0.9", "streaming:mix=(1,0)", "batch:statistics='running'"]
)
def test_an_offset_costs_no_digits_once_statistics_have_found_it(norm: str) -> None:
    module, x = norms.get(norm).linen(train=True), jnp.asarray(np.random.default_rng(0).integers(-8, 8, (300, 2)) / 4.0)

    @jax.jit
    def run(x: jax.Array, offset: jax.Array) -> jax.Array:
        def step(variables: Any, x: jax.Array) -> Any:
            y, after = module.apply(variables, x[None], mutable=["batch_stats"])
            return {**variables, **after}, y[0]

        variables = dict(module.init(KEY, x[:1]))
        variables["batch_stats"] = {**variables["batch_stats"], "mean": jnp.full(2, offset)}
        return jax.lax.scan(step, variables, x + offset)[1]

    x = x.astype(jnp.float32)
    near, far = (run(x, jnp.float32(offset)) for offset in (0.0, 1e4))
    np.testing.assert_allclose(far, near, atol=1e-2)


def test_norms_that_know_no_ghost_batches_are_handed_none() -> None:
    isolated = batch_size_curves()[1]
    ours = ("none", "batch", "batch_renorm", "layer", "rms", "group", "instance", "online", "streaming", "continual")
    given = {name: set(isolated.norm_options(name, 2)) for name in ours}
    assert {name for name, options in given.items() if options} == {"batch", "batch_renorm", "continual"}


ERRORS: dict[str, tuple[Callable[[], Any], str]] = {
    "guard": (lambda: _called("online:guard='clip'"), r"`guard` to be one of .*'clamp'.* got 'clip'"),
    "momentum": (lambda: _called("online:momentum=1.5"), r"`momentum`, the weight of the old value, .* got 1.5"),
    "backward": (lambda: _called("streaming:backward_momentum=-1"), "`backward_momentum`, the weight of the old"),
    "mix": (lambda: _called("streaming:mix=(0.5,0.6)"), r"`mix` to be 2 or 3 shares .* add up to 1, got \(0.5, 0.6\)"),
    "calls": (
        lambda: _called("streaming:calls_per_update=0"),
        "`calls_per_update` to be a positive whole number, got 0",
    ),
    "first axis": (lambda: _called("online:axis=0"), r"its first axis in `axis`"),
    "last axis": (
        lambda: _called("continual:axis=1"),
        "`axis` to be the last, along which features are grouped, got 1",
    ),
    "groups": (lambda: _called("continual:num_groups=5"), "`num_groups` to divide the 4 features"),
}


def _called(norm: str) -> Any:
    module = norms.get(norm).linen(train=True)
    return module.init_with_output(KEY, jnp.ones((2, 3, 4)))


@pytest.mark.parametrize("case", ERRORS)
def test_errors_say_what_was_expected(case: str) -> None:
    call, message = ERRORS[case]
    with pytest.raises(ValueError, match=message):
        call()
