"""Norms by moving statistics: the published numbers, both passes call after call, devices, training, and bad input."""

import functools
import pickle
from collections.abc import Callable, Iterator, Mapping
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
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from normlab import functional as F
from normlab import nnx, norms
from tests.support import references
from tests.support.references import moving

pytestmark = pytest.mark.usefixtures("strict")

KEY = jax.random.key(0)
X = np.reshape([.5, -1.2, 2, .3, 1.5, .4, -.7, 1.1, -.8, 2.2, .9, -1.6, .2, -.5, 1.3, .6], (2, 2, 4))  # fmt: skip
DY = np.reshape([.3, -.7, .2, .5, -.4, .6, .1, -.2, .8, .1, -.3, .4, -.6, .9, -.5, .7], (2, 2, 4))  # fmt: skip
AFFINE = {"scale": [1.1, 0.9, 1.2, 0.8], "bias": [0.1, -0.2, 0.3, 0.0]}


@pytest.fixture
def x64(strict: None) -> Iterator[None]:
    """Compute in float64."""
    with jax.enable_x64(True):
        yield


def split(state: Mapping[str, Any], dtype: Any = jnp.float32) -> dict[str, Any]:
    """Flat variables as Linen's collections."""
    arrays = {k: jnp.asarray(v, jnp.int32 if k == "step" else dtype) for k, v in state.items()}
    collections: dict[str, dict[str, Any]] = {"params": {}, "batch_stats": {}, OVERWRITE_WITH_GRADIENT: {}}
    for name, array in arrays.items():
        place = {"scale": "params", "bias": "params", "nu": OVERWRITE_WITH_GRADIENT, "gz": OVERWRITE_WITH_GRADIENT}
        collections[place.get(name, "batch_stats")][name] = array
    return collections


def flat(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Undo `split`, in float64."""
    return {k: np.asarray(v, np.float64) for part in variables.values() for k, v in part.items()}


@functools.cache
def stepped(norm: str) -> Callable[..., Any]:
    """`(variables, x, dy, mask) -> (y, gradients, variables after both passes)`, parameters as they were."""
    module = norms.get(norm).linen(train=True)

    @jax.jit
    def step(variables: Any, x: jax.Array, dy: jax.Array, mask: Any = None) -> Any:
        stats = {"batch_stats": variables["batch_stats"]}
        trained = {k: v for k, v in variables.items() if k != "batch_stats"}

        def f(trained: Any, x: jax.Array) -> Any:
            return module.apply({**trained, **stats}, x, mask=mask, mutable=["batch_stats"])

        y, pull, after = jax.vjp(f, trained, x, has_aux=True)
        trained, dx = pull(dy)
        state = {**variables, **after, OVERWRITE_WITH_GRADIENT: trained[OVERWRITE_WITH_GRADIENT]}
        return y, {**trained["params"], "x": dx}, state

    return step


def drawn(norm: str, size: int, step: int) -> dict[str, Any]:
    """Flat variables away from where they start, after some calls."""
    rng = np.random.default_rng(3)
    made = norms.get(norm).linen(train=True).init(KEY, jnp.ones((2, size)))
    return {
        name: step if name == "step" else rng.uniform(0.5, 1.5, leaf.shape) - (name in ("nu", "gz"))
        for part in made.values()
        for name, leaf in part.items()
    }


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_power_norm_gives_the_published_numbers(x64: None, dtype: str) -> None:
    state = {"phi": [0.9, 1.2, 0.7, 1.1], "nu": [0.3, -0.2, 0.1, 0.4], "step": 10000, **AFFINE}
    x, dy = jnp.asarray(X, dtype), jnp.asarray(DY, dtype)
    y, gradients, after = stepped("power:num_groups=2")(split(state, dtype), x, dy)
    close: dict[str, Any] = {"rtol": 1e-6, "atol": 2e-7} if dtype == "float32" else {"rtol": 0, "atol": 6e-9}
    # fmt: off
    expected_y = [.73067860, -1.27250765, 2.30590981, .16001666, 1.68440043, .09937446, -.78896807, .91006484,
                  -.46038039, .89193474, 1.29442124, -.94017871, .70897580, -1.27875074, 2.14165563, .45204209]
    expected_dx = [-.15176972, -.06324848, -.02995818, .19972426, -.18117612, .67938856, -.09362470, -.05958888,
                   .63980945, .23265778, -.06179063, -.03475243, -1.49990553, -.59980486, -.27588587, .59773699]
    # fmt: on
    np.testing.assert_allclose(y.ravel(), expected_y, **close)
    np.testing.assert_allclose(gradients["x"].ravel(), expected_dx, **close)
    np.testing.assert_allclose(gradients["scale"], [-1.14386035, 0.07633093, -0.77239086, -0.20205833], **close)
    found = flat(after)
    np.testing.assert_allclose(found["phi"], [0.87681194, 1.21318342, 0.74654795, 1.07345043], **close)
    np.testing.assert_allclose(found["nu"], [0.24627344, -0.17608550, 0.06017880, 0.36561350], **close)
    assert found["step"] == 10001


CASES = [
    ("power", 3, (4, 3, 6)),
    ("power:warmup_steps=2,momentum=0.7,backward_momentum=0.6", 0, (4, 6)),
    ("power:num_groups=3,warmup_steps=0,epsilon=0.1", 7, (1, 6)),
    ("mabn:buffer_size=3,warmup_steps=0,clip_from=0", 2, (5, 6)),
    ("mabn:buffer_size=4,momentum=0.7,epsilon=0.1,warmup_steps=52,clip_from=51", 50, (4, 3, 6)),
    ("mabn:buffer_size=4,ghost_batch_size=2", 500, (6, 2, 6)),
    ("mabn:buffer_size=2,ghost_batch_size=3,clip_from=502", 500, (8, 2, 6)),
]


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize(("norm", "step", "shape"), CASES)
def test_both_passes_are_those_of_the_reference_call_after_call(
    x64: None, norm: str, step: int, shape: tuple[int, ...], masked: bool
) -> None:
    spec, variables = norms.get(norm), split(drawn(norm, shape[-1], step), jnp.float64)
    for call in range(4):
        rng = np.random.default_rng(call)
        x, dy = rng.normal(1, 2, shape), rng.normal(size=shape)
        mask = rng.random((*shape[:-1], shape[-1])) < 0.5 if masked else None
        seen = np.broadcast_to(True if mask is None else mask, shape)
        expected, after = references.NORMS[spec.name](x, flat(variables), mask, **spec.options)
        dx, carried = moving.VJPS[spec.name](x, flat(variables), dy, mask, **spec.options)
        bias, was = variables["params"]["bias"], flat(variables)
        y, gradients, variables = stepped(norm)(variables, jnp.where(seen, x, jnp.nan), jnp.asarray(dy), mask)
        close: dict[str, Any] = {"rtol": 1e-11, "atol": 1e-11}
        np.testing.assert_allclose(np.where(seen, y, 0), np.where(seen, expected, 0), **close)
        np.testing.assert_allclose(np.where(seen, 0, y), np.where(seen, 0, bias), **close)  # what is hidden
        np.testing.assert_allclose(gradients["x"], dx, **close)
        over = tuple(range(len(shape) - 1))
        dscale = (np.where(seen, dy * (expected - was["bias"]) / was["scale"], 0)).sum(over)
        np.testing.assert_allclose(gradients["scale"], dscale, **close)
        new = flat({k: v for k, v in variables.items() if k != "params"})
        chex.assert_trees_all_close(new, {**after, **carried}, **close)


@pytest.mark.parametrize("norm", ["power:num_groups=3,axis=-1", "power:axis=1", "mabn:axis=1,buffer_size=3"])
def test_evaluation_is_by_the_running_mean_square(norm: str) -> None:
    spec, x = norms.get(norm), np.random.default_rng(1).normal(size=(4, 6, 6))
    variables = split(drawn(norm, 6, 3))
    evaluating = spec.linen(train=False)
    y, after = evaluating.apply(variables, jnp.asarray(x, jnp.float32), mutable=["batch_stats"])
    expected = moving.EVALUATED[spec.name](x, flat(variables), **spec.options)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_equal(after["batch_stats"], variables["batch_stats"])
    kept = {"phi", "run"} & variables["batch_stats"].keys()
    alone = {"params": variables["params"], "batch_stats": {k: variables["batch_stats"][k] for k in kept}}
    chex.assert_trees_all_equal(evaluating.apply(alone, jnp.asarray(x, jnp.float32)), y)


def test_inference_of_power_norm_is_a_function() -> None:
    variables, x = split(drawn("power", 6, 3)), jnp.asarray(np.random.default_rng(1).normal(size=(4, 6)), jnp.float32)
    phi = variables["batch_stats"]["phi"]
    y = F.evaluate_power_norm(x, phi, **variables["params"], num_groups=2)
    chex.assert_trees_all_equal(norms.get("power:num_groups=2").linen(train=False).apply(variables, x), y)


def test_without_memory_they_are_batch_norm_that_centres_nothing() -> None:
    rng = np.random.default_rng(0)
    x, dy = (jnp.asarray(rng.normal(1, 2, (6, 4)), jnp.float32) for _ in range(2))

    def plain(x: jax.Array) -> jax.Array:
        return x / jnp.sqrt((x**2).mean(0, keepdims=True) + 1e-5)

    expected, pull = jax.vjp(plain, x)
    y, found = jax.vjp(lambda x: F.mabn(x, *F.initial_mabn((4,), buffer_size=1))[0], x)
    chex.assert_trees_all_close((y, found(dy)), (expected, pull(dy)), rtol=1e-5, atol=1e-6)  # to the gradient
    scaled = F.rms_norm(x, epsilon=1e-5)
    y, _ = F.power_norm(x, F.PowerMemory(jnp.ones(4), jnp.int32(0)), F.PowerSlopes(jnp.zeros(4)))
    np.testing.assert_allclose(y, plain(scaled), rtol=1e-5)


def test_the_warm_up_averages_all_batches_alike() -> None:
    memory, slopes, seen = F.PowerMemory(jnp.full(4, 7.0), jnp.int32(0)), F.PowerSlopes(jnp.zeros(4)), []
    x = jnp.zeros((5, 4))
    for call in range(3):
        x = jnp.asarray(np.random.default_rng(call).normal(size=(5, 4)), jnp.float32)
        seen.append((F.rms_norm(x, epsilon=1e-5) ** 2).mean(0))
        _, memory = F.power_norm(x, memory, slopes, warmup_steps=3)
        np.testing.assert_allclose(memory.phi, np.mean(seen, 0), rtol=1e-5)
    _, after = F.power_norm(x, memory, slopes, warmup_steps=3)
    np.testing.assert_allclose(after.phi, 0.9 * memory.phi + 0.1 * seen[-1], rtol=1e-5)


def test_pairs_are_as_batches_of_two_but_for_their_running_mean_square() -> None:
    rng = np.random.default_rng(2)
    x, dy = (jnp.asarray(rng.normal(size=(6, 3, 5)), jnp.float32) for _ in range(2))
    start = split(drawn("mabn:buffer_size=4,clip_from=9999", 5, 500))
    y, gradients, whole = stepped("mabn:buffer_size=4,clip_from=9999,ghost_batch_size=2")(start, x, dy)
    parts, each, variables = [], [], start
    for i in range(0, 6, 2):
        part, by, variables = stepped("mabn:buffer_size=4,clip_from=9999")(variables, x[i : i + 2], dy[i : i + 2])
        parts.append(part)
        each.append(by["x"])
    chex.assert_trees_all_close((y, gradients["x"]), tuple(map(jnp.concatenate, (parts, each))), rtol=1e-5, atol=1e-6)
    for collection, name in (("batch_stats", "chi"), (OVERWRITE_WITH_GRADIENT, "gz")):
        np.testing.assert_allclose(whole[collection][name], variables[collection][name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("way", ["vmap", "shard_map"])
@pytest.mark.parametrize("norm", ["power:warmup_steps=0", "mabn:buffer_size=3,warmup_steps=0,clip_from=0"])
def test_devices_are_one_batch(norm: str, way: str) -> None:
    rng = np.random.default_rng(4)
    x, dy = (jnp.asarray(rng.normal(size=(8, 3, 4)), jnp.float32) for _ in range(2))
    mask = jnp.asarray(rng.random((8, 3, 1)) < 0.6).at[:2].set(False)
    variables = split(drawn(norm, 4, 9))
    y, gradients, after = stepped(norm)(variables, x, dy, mask)

    def device(variables: Any, *given: jax.Array) -> Any:
        y, gradients, after = stepped(f"{norm},axis_name='d'")(variables, *given)
        return y, gradients["x"], {k: after[k] for k in ("batch_stats", OVERWRITE_WITH_GRADIENT)}

    if way == "shard_map":
        mesh = Mesh(np.asarray(jax.devices()[:4]), ("d",))
        spread = jax.shard_map(
            device, mesh=mesh, in_specs=(P(), P("d"), P("d"), P("d")), out_specs=(P("d"), P("d"), P())
        )
        found = jax.jit(spread)(variables, x, dy, mask)
    else:
        parts = (a.reshape(4, 2, *a.shape[1:]) for a in (x, dy, mask))
        ys, dxs, states = jax.vmap(device, (None, 0, 0, 0), axis_name="d")(variables, *parts)
        found = ys.reshape(x.shape), dxs.reshape(x.shape), jax.tree.map(lambda a: a[-1], states)
    expected = y, gradients["x"], {k: after[k] for k in ("batch_stats", OVERWRITE_WITH_GRADIENT)}
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-6)


class Net(nn.Module):
    """A small net around a norm."""

    norm: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Two layers."""
        x = nn.relu(self.norm.linen(train=train)(nn.Dense(8)(x)))
        return nn.Dense(2)(x)


TASK = jnp.asarray(1 + np.random.default_rng(0).normal(size=(6, 3)), jnp.float32), jnp.asarray(np.arange(6) % 2)
TRAINED = ["power:warmup_steps=2", "mabn:buffer_size=2,warmup_steps=3,clip_from=3"]


def cross_entropy(y: jax.Array, labels: jax.Array) -> jax.Array:
    """Its mean."""
    return optax.softmax_cross_entropy_with_integer_labels(y, labels).mean()


@pytest.mark.parametrize("norm", TRAINED)
def test_training_in_linen_and_nnx_is_the_same(norm: str) -> None:
    (x, labels), module = TASK, Net(norms.get(norm))
    variables: Any = module.init(KEY, x, train=True)
    statistics = variables.pop("batch_stats")
    state = TrainState.create(apply_fn=module.apply, params=variables, tx=optax.sgd(0.1))
    live = flax_nnx.List(
        [
            flax_nnx.Linear(3, 8, rngs=flax_nnx.Rngs(0)),
            norms.get(norm).nnx(8, rngs=flax_nnx.Rngs(0)),
            flax_nnx.Linear(8, 2, rngs=flax_nnx.Rngs(0)),
        ]
    )
    for layer, name in ((live[0], "Dense_0"), (live[2], "Dense_1")):
        layer.kernel.set_value(variables["params"][name]["kernel"])
    optimizer = flax_nnx.Optimizer(live, optax.sgd(0.1), wrt=flax_nnx.Param)
    wanted = flax_nnx.DiffState(0, (flax_nnx.Param, nnx.OverwriteWithGradient))

    @jax.jit
    def step(state: TrainState, statistics: Any) -> Any:
        def loss(params: Any) -> Any:
            y, after = state.apply_fn({**params, "batch_stats": statistics}, x, train=True, mutable=["batch_stats"])
            return cross_entropy(y, labels), after["batch_stats"]

        (value, after), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
        return state.apply_gradients(grads=gradients), after, value

    @flax_nnx.jit
    def live_step(live: Any, optimizer: Any) -> None:
        def loss(live: Any) -> jax.Array:
            return cross_entropy(live[2](flax_nnx.relu(live[1](live[0](x)))), labels)

        optimizer.update(live, nnx.overwrite_with_gradient(live, flax_nnx.grad(loss, argnums=wanted)(live)))

    losses = []
    for _ in range(5):
        state, statistics, value = step(state, statistics)
        live_step(live, optimizer)
        losses.append(float(value))
    assert losses[-1] < losses[0]
    (ours,) = [{**part} for part in statistics.values()]
    ours |= next(iter(state.params[OVERWRITE_WITH_GRADIENT].values()))
    assert any(np.any(np.asarray(ours[name])) for name in ("nu", "gz") if name in ours)
    found = {name: getattr(live[1], name)[...] for name in ours}
    chex.assert_trees_all_close(found, ours, rtol=1e-4, atol=1e-5)
    after: Any = state.params
    np.testing.assert_allclose(live[2].kernel[...], after["params"]["Dense_1"]["kernel"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("norm", TRAINED)
def test_the_gradient_is_the_new_state_under_vmap_and_remat_and_scan(norm: str) -> None:
    rng, module = np.random.default_rng(6), norms.get(norm).linen(train=True)
    xs, dys = (jnp.asarray(rng.normal(size=(3, 4, 5)), jnp.float32) for _ in range(2))
    start = split(drawn(norm, 5, 2))

    def step(variables: Any, x: jax.Array, dy: jax.Array, wrap: Any = lambda f: f) -> Any:
        @wrap
        def loss(carried: Any, x: jax.Array) -> Any:
            y, after = module.apply({**variables, OVERWRITE_WITH_GRADIENT: carried}, x, mutable=["batch_stats"])
            return (y * dy).sum(), after

        (carried, dx), after = jax.grad(loss, (0, 1), has_aux=True)(variables[OVERWRITE_WITH_GRADIENT], x)
        return {**variables, **after, OVERWRITE_WITH_GRADIENT: carried}, dx

    @jax.jit
    def ways() -> Any:
        state, each = start, []
        for x, dy in zip(xs, dys, strict=True):
            state, dx = step(state, x, dy)
            each.append(dx)
        scanned = jax.lax.scan(lambda v, xd: step(v, *xd), start, (xs, dys))
        again, once = step(start, xs[0], dys[0], jax.checkpoint), step(start, xs[0], dys[0])
        models = jax.tree.map(lambda a, b: jnp.stack([a, b]), start, state)
        together = jax.vmap(step)(models, xs[1:], dys[1:])
        alone = jax.tree.map(lambda *a: jnp.stack(a), step(start, xs[1], dys[1]), step(state, xs[2], dys[2]))
        return (scanned, again, together), ((state, jnp.stack(each)), once, alone)

    chex.assert_trees_all_close(*ways(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", ["power", "mabn"])
def test_there_is_no_forward_mode(norm: str) -> None:
    variables, x = split(drawn(norm, 4, 0)), jnp.ones((3, 4))
    module = norms.get(norm).linen(train=True)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: module.apply(variables, x, mutable=["batch_stats"])[0], (x,), (x,))


@pytest.mark.parametrize("norm", ["power:num_groups=2", "mabn:ghost_batch_size=2"])
def test_modules_and_memories_are_pickled(norm: str) -> None:
    module = norms.get(norm).linen(train=True)
    assert pickle.loads(pickle.dumps(module)) == module
    memory = F.initial_mabn((3,), buffer_size=2)
    chex.assert_trees_all_equal(pickle.loads(pickle.dumps(memory)), memory)


ERRORS = {
    "power:num_groups=5": "`num_groups` to divide the 4 features of `x`, got 5",
    "power:num_groups=4": r"more than one element, got one: .* Use fewer groups or more features",
    "power:num_groups=2,axis=1": "`axis` to be the last, along which features are grouped, with `num_groups`, got 1",
    "power:momentum=1.5": "`momentum`, the weight of the old value, to lie in .* got 1.5",
    "power:backward_momentum=-1": "`backward_momentum`, the weight of the old value, .* got -1",
    "power:warmup_steps=-1": "`warmup_steps` to be a whole number of calls, 0 or more, got -1",
    "mabn:buffer_size=0": "`buffer_size` to be a positive whole number, got 0",
    "mabn:clip_from=0.5": "`clip_from` to be a whole number of calls, 0 or more, got 0.5",
    "mabn:ghost_batch_size=0": "`ghost_batch_size` to be a positive whole number or None, got 0",
    "mabn:ghost_batch_size=2,axis_name='d'": "one of `ghost_batch_size` and `axis_name`, got 2 and 'd'",
}


@pytest.mark.parametrize("norm", ERRORS)
def test_errors_say_what_was_expected(norm: str) -> None:
    with pytest.raises(ValueError, match=ERRORS[norm]) as raised:
        norms.get(norm).linen(train=True).init(KEY, jnp.ones((2, 3, 4)))
    assert len(str(raised.value).splitlines()) == 1


def test_one_element_is_enough_where_no_batch_divides_itself() -> None:
    memory, slopes, x = F.PowerMemory(jnp.ones(4), jnp.int32(0)), F.PowerSlopes(jnp.zeros(4)), jnp.ones((1, 4))
    with pytest.raises(F.StatisticsError, match=r"got one: .*`warmup_steps=0`; or say that it is meant"):
        F.power_norm(x, memory, slopes)
    assert F.power_norm(x, memory, slopes, warmup_steps=0)[0].shape == x.shape


def test_a_buffer_of_another_length_is_refused() -> None:
    variables = split(drawn("mabn:buffer_size=3", 4, 0))
    with pytest.raises(ValueError, match=r"`chi` to have shape \(4, 4\).*got \(3, 4\)"):
        norms.get("mabn:buffer_size=4").linen(train=True).apply(variables, jnp.ones((2, 4)), mutable=["batch_stats"])


@pytest.mark.parametrize("norm", ["power", "mabn"])
def test_a_batch_of_one_counted_element_moves_nothing(norm: str) -> None:
    module, x = norms.get(norm).linen(train=True), jnp.arange(24.0).reshape(4, 6)
    variables, alone = module.init(jax.random.key(0), x), (jnp.arange(4) == 1)[:, None]
    _, after = module.apply(variables, x, mask=alone, mutable=["batch_stats"])
    chex.assert_trees_all_equal(after["batch_stats"], variables["batch_stats"])
    learned = "_overwrite_with_gradient"

    def output(slopes: object) -> jax.Array:
        y, _ = module.apply({**variables, learned: slopes}, x, mask=alone, mutable=["batch_stats"])
        return jnp.sum(y * x)

    chex.assert_trees_all_equal(jax.grad(output)(variables[learned]), variables[learned])
