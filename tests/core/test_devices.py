"""Statistics across devices: what one device would get from the whole batch, by one collective forward."""

import functools
import re
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from normlab import functional as F
from normlab import linen, norms
from tests.support.registered import ALL, GROUPED

pytestmark = pytest.mark.usefixtures("strict")

DEVICES = 4
SHAPE = (8, 3, 6)
Function = Callable[..., Any]
Wrap = Callable[[Function], Function]
RUNNING = F.RenormStatistics(jnp.linspace(-1, 1, 6), jnp.linspace(0.5, 2, 6))


def mesh(*shape: int, names: tuple[str, ...] = ("d",), kind: AxisType = AxisType.Auto) -> Mesh:
    """The first devices as a mesh."""
    return Mesh(np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape), names, axis_types=(kind,) * len(names))


def normal(*shape: int, seed: int = 0, offset: float = 0.0) -> jax.Array:
    """Normal values."""
    return jnp.asarray(offset + np.random.default_rng(seed).normal(size=shape), jnp.float32)


def split(tree: Any) -> Any:
    """Give arrays a leading axis of devices."""
    return jax.tree.map(lambda a: a.reshape(DEVICES, -1, *a.shape[1:]), tree)


def joined(tree: Any) -> Any:
    """Undo `split`."""
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), tree)


def by_shard_map(f: Function) -> Function:
    """Run `f(x, mask, scale, bias) -> (y, moments)` on shards of the batch."""
    return jax.shard_map(
        f, mesh=mesh(DEVICES), in_specs=(P("d"), P("d"), P(), P()), out_specs=(P("d"), P()), check_vma=True
    )


def by_mapping(map_: Function) -> Wrap:
    """The same under `jax.pmap` or `jax.vmap`."""

    def wrap(f: Function) -> Function:
        mapped = map_(f, axis_name="d", in_axes=(0, 0, None, None))

        def g(x: jax.Array, mask: Any, scale: jax.Array, bias: jax.Array) -> Any:
            y, moments = mapped(split(x), split(mask), scale, bias)
            first = jax.tree.map(lambda a: a[0], moments)
            return joined(y), first

        return g

    return wrap


def by_models_on_shards(f: Function) -> Function:
    """Two models under `jax.vmap` inside `jax.shard_map`, the second of other data; the result of the first."""
    models = jax.vmap(f, in_axes=(0, None, None, None))
    sharded = jax.shard_map(
        models, mesh=mesh(DEVICES), in_specs=(P(None, "d"), P("d"), P(), P()), out_specs=(P(None, "d"), P())
    )

    def g(x: jax.Array, *rest: Any) -> Any:
        return jax.tree.map(lambda a: a[0], sharded(jnp.stack([x, 3 * x]), *rest))

    return g


def by_shards_of_models(f: Function) -> Function:
    """The other way around: `jax.vmap` over `jax.shard_map`."""
    sharded = jax.vmap(by_shard_map(f), in_axes=(0, None, None, None))

    def g(x: jax.Array, *rest: Any) -> Any:
        return jax.tree.map(lambda a: a[0], sharded(jnp.stack([x, 3 * x]), *rest))

    return g


def by_sharding(kind: AxisType) -> Wrap:
    """No map: a batch that is sharded under `jax.jit`; statistics are global with no option."""
    placed = NamedSharding(mesh(DEVICES, kind=kind), P("d"))

    def wrap(f: Function) -> Function:
        return lambda x, mask, scale, bias: f(*jax.device_put((x, mask), placed), scale, bias)

    return wrap


WAYS: dict[str, Wrap] = {
    "shard_map": by_shard_map,
    "pmap": by_mapping(jax.pmap),
    "vmap": by_mapping(jax.vmap),
    "vmap in shard_map": by_models_on_shards,
    "shard_map in vmap": by_shards_of_models,
    "jit": by_sharding(AxisType.Auto),
    "jit, explicit": by_sharding(AxisType.Explicit),
}
MAPS = ("shard_map", "pmap", "vmap")


def name_of(way: str) -> dict[str, str]:
    """The option that joins the devices."""
    return {} if way.startswith("jit") else {"axis_name": "d"}


def norm_of(kind: str, **options: Any) -> Function:
    """A batch norm as a function of what the ways pass."""

    def f(x: jax.Array, mask: Any, scale: jax.Array, bias: jax.Array) -> Any:
        if kind == "batch":
            y, moments = F.batch_norm(x, scale, bias, where=mask, **options)
        else:
            y, moments = F.batch_renorm(x, RUNNING, scale, bias, where=mask, **options)
        return y, (moments.mean, moments.var, moments.unbiased_var)

    return f


def mask_of() -> jax.Array:
    """A mask that leaves a different number on each device, and nothing on the last."""
    mask = np.random.default_rng(3).random((8, 3, 1)) < 0.6
    mask[0] = True
    mask[6:] = False
    return jnp.asarray(mask)


SCALE, BIAS = normal(6, seed=1), normal(6, seed=2)


@functools.cache
def differentiated(way: str | None, kind: str, masked: bool, **options: Any) -> Function:
    """`(x, mask, dy) -> (y, moments, gradients)` on devices, or on one; what the mask leaves out is 0."""
    f = norm_of(kind, **options) if way is None else WAYS[way](norm_of(kind, **name_of(way), **options))

    def run(x: jax.Array, mask: Any, dy: jax.Array) -> Any:
        dy = jnp.where(mask, dy, 0) if masked else dy
        y, pull, moments = jax.vjp(lambda x, s, b: f(x, mask, s, b), x, SCALE, BIAS, has_aux=True)
        return (jnp.where(mask, y, 0) if masked else y), moments, pull(dy)

    return run if way == "pmap" else jax.jit(run)


def inputs(masked: bool, offset: float = 0.0) -> tuple[jax.Array, Any, jax.Array]:
    """Activations, with NaN under the mask, the mask, and a cotangent."""
    x, mask = normal(*SHAPE, offset=offset), mask_of() if masked else None
    return x if mask is None else jnp.where(mask, x, jnp.nan), mask, normal(*SHAPE, seed=5)


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("kind", ["batch", "renorm"])
@pytest.mark.parametrize("way", WAYS)
def test_equals_one_device_on_the_whole_batch(way: str, kind: str, masked: bool) -> None:
    given = inputs(masked)
    found, expected = (differentiated(where, kind, masked)(*given) for where in (way, None))
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["batch", "renorm"])
@pytest.mark.parametrize("way", WAYS)
def test_in_half_precision_only_the_output_is_rounded(way: str, kind: str) -> None:
    x, mask, dy = inputs(masked=True)
    given = (x.astype(jnp.bfloat16), mask, dy.astype(jnp.bfloat16))
    (y, moments, pulled), expected = (differentiated(where, kind, True)(*given) for where in (way, None))
    assert y.dtype == pulled[0].dtype == jnp.bfloat16
    chex.assert_trees_all_close(moments, expected[1], rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(pulled[1:], expected[2][1:], rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close((y, pulled[0]), (expected[0], expected[2][0]), rtol=2**-8, atol=2**-8)


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("kind", ["batch", "renorm"])
@pytest.mark.parametrize("way", WAYS)
def test_an_offset_costs_no_digits_across_devices(way: str, kind: str, masked: bool) -> None:
    """Mean 1e4 and deviation 1, from the first step on: running statistics are far away, and not used."""
    x, mask, dy = inputs(masked, offset=1e4)
    y, (mean, var, _), (dx, dscale, dbias) = differentiated(way, kind, masked)(x, mask, dy)
    expected = in_float64(kind, x, mask, dy)
    found = {"y": y, "mean": mean, "var": var, "dx": dx, "dscale": dscale, "dbias": dbias}
    for name, value in found.items():
        scale = np.abs(expected[name]).max()
        assert np.abs(np.asarray(value, np.float64) - expected[name]).max() <= 1e-5 * scale, name


def in_float64(kind: str, x: jax.Array, mask: Any, dy: jax.Array) -> dict[str, np.ndarray]:
    """Batch norm and renorm of the whole batch, and their derivatives, by their formulas."""
    counted = np.broadcast_to(True if mask is None else np.asarray(mask), x.shape)
    n = counted.sum((0, 1))
    x, dy, scale, bias, running_mean, running_var = (
        np.asarray(a, np.float64) for a in (x, dy, SCALE, BIAS, RUNNING.mean, RUNNING.std)
    )
    x, dy = np.where(counted, x, 0), np.where(counted, dy, 0)
    mean = x.sum((0, 1)) / n
    var = np.where(counted, (x - mean) ** 2, 0).sum((0, 1)) / n
    std = np.sqrt(var + 1e-5)
    normal = np.where(counted, (x - mean) / std, 0)
    r = d = 0.0
    if kind == "renorm":
        r = np.clip(std / running_var, 1 / 3, 3)
        d = np.clip((mean - running_mean) / running_var, -5, 5)
    gain = scale * (r if kind == "renorm" else 1)
    within = dy - dy.sum((0, 1)) / n - normal * (dy * normal).sum((0, 1)) / n
    corrected = normal * (r if kind == "renorm" else 1) + d
    return {
        "y": np.where(counted, corrected * scale + bias, 0),
        "mean": mean,
        "var": var,
        "dx": np.where(counted, gain / std * within, 0),
        "dscale": (dy * corrected).sum((0, 1)),
        "dbias": dy.sum((0, 1)),
    }


@pytest.mark.parametrize("way", MAPS)
def test_gradient_taken_inside_the_map_is_that_of_the_sum_over_devices(way: str) -> None:
    x, dy = normal(*SHAPE), normal(*SHAPE, seed=5)

    def inside(x: jax.Array, dy: jax.Array, scale: jax.Array, bias: jax.Array) -> Any:
        _, pull = jax.vjp(lambda x, s, b: F.batch_norm(x, s, b, axis_name="d")[0], x, scale, bias)
        dx, dscale, dbias = pull(dy)
        if way != "shard_map":  # shard_map sums gradients of what all devices share by itself
            dscale, dbias = jax.lax.psum((dscale, dbias), "d")
        return dx, (dscale, dbias)

    dx, shared = jax.jit(WAYS[way](inside))(x, dy, SCALE, BIAS)
    expected = jax.vjp(lambda x, s, b: F.batch_norm(x, s, b)[0], x, SCALE, BIAS)[1](dy)
    chex.assert_trees_all_close((dx, *shared), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("kind", ["layer", "rms", "group", "instance", "layer, fast"])
def test_reduced_axes_may_be_spread_over_devices(kind: str, masked: bool) -> None:
    x, dy = normal(2, 8, 6, offset=3.0), normal(2, 8, 6, seed=5)
    mask = jnp.asarray(np.random.default_rng(1).random((2, 8, 6)) < 0.8) if masked else None
    calls: dict[str, Function] = {
        "layer": functools.partial(F.layer_norm, axis=(1, 2), feature_axes=2),
        "layer, fast": functools.partial(F.layer_norm, axis=(1, 2), feature_axes=2, use_fast_variance=True),
        "rms": lambda x, s, b, **o: F.rms_norm(x, s, axis=(1, 2), feature_axes=2, **o) + b[None, None],
        "group": functools.partial(F.group_norm, num_groups=3),
        "instance": F.instance_norm,
    }
    norm = calls[kind]
    spread = jax.shard_map(
        lambda x, mask, s, b: norm(x, s, b, where=mask, axis_name="d"),
        mesh=mesh(DEVICES), in_specs=(P(None, "d"), P(None, "d"), P(), P()), out_specs=P(None, "d"),
    )  # fmt: skip

    def differentiated(f: Function) -> Any:
        y, pull = jax.vjp(f, x, SCALE, BIAS)
        return y, pull(dy)

    found = jax.jit(lambda: differentiated(lambda x, s, b: spread(x, mask, s, b)))()
    expected = jax.jit(lambda: differentiated(lambda x, s, b: norm(x, s, b, where=mask)))()
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")], ids=str)
def test_several_axes_of_devices(names: tuple[str, ...]) -> None:
    spec = P(("a", "b"))
    f = jax.shard_map(
        lambda x, mask, s, b: norm_of("batch", axis_name=names)(x, mask, s, b),
        mesh=mesh(2, 4, names=("a", "b")), in_specs=(spec, spec, P(), P()), out_specs=(spec, P()),
    )  # fmt: skip
    x, mask = normal(16, 3, 6), jnp.asarray(np.random.default_rng(1).random((16, 3, 1)) < 0.6)

    def pulled(f: Function) -> Any:
        y, pull, moments = jax.vjp(lambda x: f(x, mask, SCALE, BIAS), x, has_aux=True)
        return y, moments, pull(normal(16, 3, 6, seed=5))

    chex.assert_trees_all_close(jax.jit(lambda: pulled(f))(), pulled(norm_of("batch")), rtol=1e-5, atol=1e-5)


def test_one_axis_of_two_leaves_the_other_apart() -> None:
    spec = P(("a", "b"))
    f = jax.shard_map(
        lambda x: F.batch_norm(x, axis_name="b")[0], mesh=mesh(2, 4, names=("a", "b")), in_specs=spec, out_specs=spec
    )
    x = normal(16, 6)
    halves = jnp.concatenate([F.batch_norm(half)[0] for half in (x[:8], x[8:])])
    chex.assert_trees_all_close(jax.jit(f)(x), halves, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups", [[[0, 1], [2, 3]], [[0, 3], [2, 1]]], ids=str)
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_groups_of_devices_under_pmap(groups: list[list[int]], masked: bool) -> None:
    x, dy, mask = split(normal(*SHAPE)), split(normal(*SHAPE, seed=5)), split(mask_of()) if masked else None

    def f(x: jax.Array, mask: Any, dy: jax.Array) -> Any:
        options = {"axis_name": "d", "axis_index_groups": groups, "where": mask}
        y, pull, m = jax.vjp(lambda x: F.batch_norm(x, SCALE, BIAS, **options), x, has_aux=True)
        return y, pull(dy)[0], m.mean, m.unbiased_var

    found = jax.pmap(f, axis_name="d")(x, mask, dy)
    for group in groups:
        pick = jax.tree.map(lambda a, group=group: joined(a[np.array(group)]), (x, mask, dy))
        y, pull, m = jax.vjp(lambda x: F.batch_norm(x, SCALE, BIAS, where=pick[1]), pick[0], has_aux=True)  # noqa: B023
        ours = [a[np.array(group)] for a in found]
        chex.assert_trees_all_close((joined(ours[0]), joined(ours[1])), (y, pull(pick[2])[0]), rtol=1e-5, atol=1e-5)
        chex.assert_trees_all_close((ours[2][0], ours[3][1]), (m.mean, m.unbiased_var), rtol=1e-5, atol=1e-5)


def test_groups_of_devices_under_shard_map_that_checks_nothing() -> None:
    groups = [[0, 3], [2, 1]]
    x = normal(*SHAPE)
    f = jax.shard_map(
        lambda x: F.batch_norm(x, axis_name="d", axis_index_groups=groups)[0],
        mesh=mesh(DEVICES), in_specs=P("d"), out_specs=P("d"), check_vma=False,
    )  # fmt: skip
    y = split(jax.jit(f)(x))
    for group in np.array(groups):
        chex.assert_trees_all_close(joined(y[group]), F.batch_norm(joined(split(x)[group]))[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("way", ["shard_map", "vmap"])
def test_groups_of_devices_elsewhere_are_an_error_with_a_remedy(way: str) -> None:
    f = WAYS[way](norm_of("batch", axis_name="d", axis_index_groups=[[0, 1], [2, 3]]))
    with pytest.raises(ValueError, match=r"`axis_index_groups` under `jax\.pmap`.*Split the mesh axis in two"):
        f(normal(*SHAPE), None, SCALE, BIAS)


@pytest.mark.parametrize("groups", [[[0, 1]], [[0, 1], [1, 2]], [[0, 1], [2, 4]], [[0, 1], [2, 3], [0, 1]]], ids=str)
def test_groups_must_partition_the_axis(groups: list[list[int]]) -> None:
    f = WAYS["vmap"](norm_of("batch", axis_name="d", axis_index_groups=groups))
    with pytest.raises(ValueError, match=r"every index of 'd', 0 to 3, once, got"):
        f(normal(*SHAPE), None, SCALE, BIAS)


def test_an_example_a_device_is_enough() -> None:
    x = normal(DEVICES, 6)
    y, _ = jax.jit(WAYS["shard_map"](norm_of("batch", axis_name="d")))(x, None, SCALE, BIAS)
    chex.assert_trees_all_close(y, F.batch_norm(x, SCALE, BIAS)[0], rtol=1e-5, atol=1e-5)


COLLECTIVE = r"\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\("


def collectives(f: Function, *arguments: Any) -> list[str]:
    """Names of the collectives in what XLA compiles."""
    return re.findall(COLLECTIVE, jax.jit(f).lower(*arguments).compile().as_text())


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("kind", ["batch", "renorm"])
@pytest.mark.parametrize("way", ["shard_map", "vmap in shard_map", "shard_map in vmap"])
def test_one_collective_forward_and_one_backward(way: str, kind: str, masked: bool) -> None:
    x, mask = normal(*SHAPE), mask_of() if masked else None
    f = WAYS[way](norm_of(kind, axis_name="d"))
    assert collectives(f, x, mask, SCALE, BIAS) == ["all-reduce"]

    def backward(x: jax.Array, mask: Any, scale: jax.Array, bias: jax.Array, dy: jax.Array, shared: bool) -> Any:
        _, pull, _ = jax.vjp(lambda x, s, b: f(x, mask, s, b), x, scale, bias, has_aux=True)
        dx, *rest = pull(dy)
        return (dx, rest) if shared else dx

    arguments = (x, mask, SCALE, BIAS, normal(*SHAPE, seed=5))
    assert collectives(functools.partial(backward, shared=False), *arguments) == ["all-reduce"] * 2
    assert collectives(functools.partial(backward, shared=True), *arguments) == ["all-reduce"] * 2


@pytest.mark.parametrize("ghost", [2, 1])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("kind", ["batch", "renorm"])
@pytest.mark.parametrize("way", MAPS)
def test_chunks_of_a_device_with_moments_of_all(way: str, kind: str, masked: bool, ghost: int) -> None:
    """Both options: each device on its own, running statistics shared, and equal to chunks of the whole batch."""
    given = inputs(masked)
    found, expected = (differentiated(where, kind, masked, ghost_batch_size=ghost)(*given) for where in (way, None))
    chex.assert_trees_all_close(found, expected, rtol=1e-5, atol=1e-5)


def test_chunks_of_a_device_need_one_collective_for_the_moments_and_none_else() -> None:
    f, x = WAYS["shard_map"](norm_of("batch", axis_name="d", ghost_batch_size=2)), normal(*SHAPE)
    assert collectives(f, x, None, SCALE, BIAS) == ["all-reduce"]
    assert collectives(lambda x: f(x, None, SCALE, BIAS)[0], x) == []
    assert collectives(jax.grad(lambda x: (f(x, None, SCALE, BIAS)[0] ** 3).mean()), x) == []


def test_a_chunk_larger_than_the_batch_of_a_device_is_an_error() -> None:
    f = WAYS["vmap"](norm_of("batch", axis_name="d", ghost_batch_size=4))
    with pytest.raises(ValueError, match=r"at most the 2 examples of a device, got 4.*split the mesh axis in two"):
        f(normal(*SHAPE), None, SCALE, BIAS)


def sharded(kind: AxisType, *shape: int, names: tuple[str, ...] = ("d",)) -> Function:
    """Put arrays on a mesh, their first axis sharded over all of it."""
    return functools.partial(jax.device_put, device=NamedSharding(mesh(*shape, names=names, kind=kind), P(names)))


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("ghost", [4, 2, 1])
def test_chunks_within_devices_are_statistics_of_a_device_under_jit(kind: AxisType, ghost: int, masked: bool) -> None:
    x, dy = normal(16, 3, 6), normal(16, 3, 6, seed=5)
    mask = jnp.asarray(np.random.default_rng(3).random((16, 3, 1)) < 0.8) if masked else None

    def run(x: jax.Array, mask: Any, dy: jax.Array) -> Any:
        f = functools.partial(F.batch_norm, where=mask, ghost_batch_size=ghost)
        y, pull, moments = jax.vjp(f, x, SCALE, BIAS, has_aux=True)
        return y, moments, pull(dy)

    on_devices = sharded(kind, DEVICES)((x, mask, dy))
    chex.assert_trees_all_close(jax.jit(run)(*on_devices), jax.jit(run)(x, mask, dy), rtol=1e-5, atol=1e-5)
    assert collectives(lambda *given: (run(*given)[0], run(*given)[2][0]), *on_devices) == []
    assert collectives(lambda *given: run(*given)[1], *on_devices) == ["all-reduce"]


@pytest.mark.parametrize(
    ("kind", "shape", "names"),
    [(AxisType.Auto, (8,), ("d",)), (AxisType.Explicit, (4, 2), ("group", "member"))],
    ids=["auto", "explicit"],
)
def test_chunks_across_devices_are_statistics_of_a_group_under_jit(
    kind: AxisType, shape: tuple[int, ...], names: tuple[str, ...]
) -> None:
    x, dy = normal(16, 3, 6), normal(16, 3, 6, seed=5)

    def run(x: jax.Array, dy: jax.Array) -> Any:
        y, pull, moments = jax.vjp(
            lambda x: F.batch_norm(x, SCALE, BIAS, ghost_batch_size=4), x, has_aux=True
        )  # two devices of eight
        return y, moments, pull(dy)

    on_devices = sharded(kind, *shape, names=names)((x, dy))
    compiled = jax.jit(run).lower(*on_devices).compile()
    chex.assert_trees_all_close(compiled(*on_devices), run(x, dy), rtol=1e-5, atol=1e-5)
    assert set(re.findall(COLLECTIVE, compiled.as_text())) == {"all-reduce"}


@pytest.mark.parametrize("ghost", [4, 6])
def test_chunks_that_cut_devices_of_an_explicit_axis_are_an_error(ghost: int) -> None:
    x = sharded(AxisType.Explicit, 8)(normal(16, 6))
    with pytest.raises(ValueError, match=r"cut a batch of 16 between devices.*got [46]\. Take a device's share"):
        jax.jit(lambda x: F.batch_norm(x, ghost_batch_size=ghost))(x)


@pytest.mark.parametrize("where", ["everywhere", "one for all"])
def test_chunks_on_an_explicit_axis_take_a_mask_that_lies_elsewhere(where: str) -> None:
    x = normal(16, 3, 6)
    mask = jnp.ones((1, 1, 1), jnp.bool_) if where == "one for all" else mask_of().repeat(2, 0)
    mask = jax.device_put(mask, NamedSharding(mesh(8, kind=AxisType.Explicit), P()))
    f = functools.partial(F.batch_norm, ghost_batch_size=2)
    found = jax.jit(lambda x, mask: f(x, where=mask))(sharded(AxisType.Explicit, 8)(x), mask)
    chex.assert_trees_all_close(found, f(x, where=jnp.asarray(np.asarray(mask))), rtol=1e-5, atol=1e-5)


def test_a_remainder_is_fine_where_another_axis_is_sharded() -> None:
    x = normal(6, 8, 5)
    placed = jax.device_put(x, NamedSharding(mesh(8, kind=AxisType.Explicit), P(None, "d")))
    found = jax.jit(lambda x: F.batch_norm(x, ghost_batch_size=4))(placed)
    chex.assert_trees_all_close(found, F.batch_norm(x, ghost_batch_size=4), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("names", ["lane", ("lane", "d")], ids=str)
def test_a_named_lane_inside_shard_map_is_an_error_with_a_remedy(names: Any) -> None:
    x = normal(2, 8, 6)

    def of(check: bool) -> Function:
        lanes = jax.vmap(lambda x: F.batch_norm(x, axis_name=names)[0], axis_name="lane")
        spec = P(None, "d")
        return jax.shard_map(lanes, mesh=mesh(DEVICES), in_specs=spec, out_specs=spec, check_vma=check)

    with pytest.raises(ValueError, match=r"no axis of `jax\.vmap` inside `jax\.shard_map`.*Pass `check_vma=False`"):
        of(True)(x)
    if names == ("lane", "d"):
        expected = F.batch_norm(x.reshape(16, 6))[0].reshape(x.shape)
        chex.assert_trees_all_close(jax.jit(of(False))(x), expected, rtol=1e-5, atol=1e-5)


def test_groups_of_features_on_several_explicit_devices_are_an_error() -> None:
    x = jax.device_put(normal(4, 16), NamedSharding(mesh(8, kind=AxisType.Explicit), P(None, "d")))
    chex.assert_trees_all_close(F.group_norm(x, num_groups=8), F.group_norm(normal(4, 16), num_groups=8), atol=1e-5)
    with pytest.raises(ValueError, match=r"groups of 8 features to lie within devices.*AxisType\.Auto"):
        F.group_norm(x, num_groups=2)


class Net(nn.Module):
    """Two norms with a dense layer between, in the order of use."""

    norm: str
    train: bool
    axis_name: str | None = "d"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        options = {"momentum": 0.9} | ({"axis_name": self.axis_name} if self.axis_name else {})
        x = nn.relu(norms.get(self.norm, **options).linen(train=self.train)(nn.Dense(8)(x)))
        return norms.get(self.norm, **options).linen(train=self.train)(nn.Dense(6)(x))


def step_of(net: nn.Module, names: tuple[str, ...] = ()) -> Function:
    """A training step `(variables, x, dy) -> (variables, y)`: gradients of `y . dy` over the whole batch."""

    def step(variables: Any, x: jax.Array, dy: jax.Array) -> Any:
        def loss(params: Any) -> Any:
            y, state = net.apply({**variables, "params": params}, x, mutable=["batch_stats"])
            return (y * dy).sum(), (y, state)

        gradients, (y, state) = jax.grad(loss, has_aux=True)(variables["params"])
        gradients = jax.lax.psum(gradients, names) if names else gradients
        params = jax.tree.map(lambda p, g: p - 0.1 * g, variables["params"], gradients)
        return {"params": params, **state}, y

    return step


NETS = ("batch", "batch_renorm:initialize_from_first_batch=True", "batch:use_fast_variance=True")


@pytest.mark.parametrize("norm", NETS)
def test_linen_trains_across_devices_as_on_one(norm: str) -> None:
    x, dy = normal(8, 5), normal(8, 6, seed=5)
    variables = Net(norm, train=False).init(jax.random.key(0), x)
    expected, y = step_of(Net(norm, train=True, axis_name=None))(variables, x, dy)

    step = jax.shard_map(
        step_of(Net(norm, train=True)), mesh=mesh(DEVICES), in_specs=(P(), P("d"), P("d")), out_specs=(P(), P("d"))
    )
    chex.assert_trees_all_close(jax.jit(step)(variables, x, dy), (expected, y), rtol=1e-5, atol=1e-5)
    assert len(collectives(step, variables, x, dy)) <= 2 * 2 + 1  # the last is that of the weights' gradients
    assert len(collectives(lambda *given: step(*given)[1], variables, x, dy)) == 2

    parts, y_parts = jax.pmap(step_of(Net(norm, train=True), ("d",)), axis_name="d", in_axes=(None, 0, 0))(
        variables, split(x), split(dy)
    )
    first = jax.tree.map(lambda a: a[0], parts)
    chex.assert_trees_all_close((first, joined(y_parts)), (expected, y), rtol=1e-5, atol=1e-5)
    for device in range(1, DEVICES):
        chex.assert_trees_all_equal(first, jax.tree.map(lambda a, k=device: a[k], parts))


@pytest.mark.parametrize("norm", NETS)
def test_nnx_trains_across_devices_as_on_one(norm: str) -> None:
    x, dy = normal(8, 6), normal(8, 6, seed=5)

    def of(**options: Any) -> tuple[Any, Any]:
        return nnx.split(norms.get(norm, **options).nnx(6, rngs=nnx.Rngs(0)))

    (alone, state), (joint, _) = of(), of(axis_name="d")

    def step(graph: Any, state: Any, x: jax.Array, dy: jax.Array) -> Any:
        module = nnx.merge(graph, state)
        module.train()
        gradients = nnx.grad(lambda module: (module(x) * dy).sum())(module)
        y = module(x)
        return nnx.to_pure_dict(nnx.state(module)), nnx.to_pure_dict(gradients), y

    f = jax.shard_map(
        functools.partial(step, joint), mesh=mesh(DEVICES), in_specs=(P(), P("d"), P("d")), out_specs=(P(), P(), P("d"))
    )
    chex.assert_trees_all_close(jax.jit(f)(state, x, dy), step(alone, state, x, dy), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["linen", "nnx"])
@pytest.mark.parametrize(
    "norm", ["layer", "rms", "group:num_groups=1", "group:num_groups=2,use_scale=False,use_bias=False"]
)
def test_modules_take_features_that_are_spread_over_devices(norm: str, kind: str) -> None:
    """Parameters are spread with the features; a group of features is the group of that number on every device."""
    x, dy = normal(2, 3, 16), normal(2, 3, 16, seed=5)
    if "num_groups=2" in norm:  # features 0, 1 of every device are one group
        order = jnp.arange(16).reshape(DEVICES, 2, 2).swapaxes(0, 1).ravel()
    else:
        order = jnp.arange(16)

    def run(name: str | None, features: int) -> Function:
        value = norms.get(norm, **({"axis_name": name} if name else {}))
        if kind == "linen":
            module = value.linen(train=True)
            return lambda params, x: module.apply({"params": params}, x)
        graph, state = nnx.split(value.nnx(features, rngs=nnx.Rngs(0)))
        return lambda params, x: nnx.merge(graph, nnx.replace_by_pure_dict(state, params) or state)(x)

    def params_of(features: int) -> Any:
        names = [] if "use_scale=False" in norm else ["scale"] if norm == "rms" else ["scale", "bias"]
        return {name: normal(features, seed=i) for i, name in enumerate(names)}

    f = jax.shard_map(
        run("d", 4), mesh=mesh(DEVICES), in_specs=(P("d"), P(None, None, "d")), out_specs=P(None, None, "d")
    )

    def pulled(f: Function, x: jax.Array, dy: jax.Array) -> Any:
        y, pull = jax.vjp(f, params_of(16), x)
        return y, pull(dy)

    y, (dparams, dx) = jax.jit(functools.partial(pulled, f))(x, dy)
    whole, (dwhole, dx_whole) = pulled(run(None, 16), x[..., order], dy[..., order])
    chex.assert_trees_all_close((y[..., order], dx[..., order]), (whole, dx_whole), rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(dparams, dwhole, rtol=1e-5, atol=1e-5)
    assert collectives(f, params_of(16), x) == ["all-reduce"]


def test_evaluation_by_running_statistics_needs_no_devices() -> None:
    x = normal(4, 5)
    net = Net("batch", train=False)
    variables = net.init(jax.random.key(0), x)
    chex.assert_trees_all_close(net.apply(variables, x), Net("batch", train=False, axis_name=None).apply(variables, x))


def test_one_device_is_said_and_only_for_the_axes_named() -> None:
    x = normal(4, 6)
    alone = F.batch_norm(x)
    with F.one_device("d"):
        chex.assert_trees_all_equal(F.batch_norm(x, axis_name="d"), alone)
        chex.assert_trees_all_equal(F.batch_norm(x, axis_name=("d",), axis_index_groups=[[0]]), alone)
        with pytest.raises(ValueError, match=r"'e' is not bound here.*one_device\('e'\)"):
            F.batch_norm(x, axis_name="e")
        with pytest.raises(ValueError, match=r"'e' is not bound here"):
            F.batch_norm(x, axis_name=("d", "e"))
        with F.one_device("e"):
            chex.assert_trees_all_equal(F.batch_norm(x, axis_name=("d", "e")), alone)
        with pytest.raises(ValueError, match=r"'e' is not bound here"):
            F.batch_norm(x, axis_name=("d", "e"))
    with pytest.raises(ValueError, match=r"'d' is not bound here"):
        F.batch_norm(x, axis_name="d")
    with pytest.raises(TypeError, match=r"each a string, got \('d',\)"), F.one_device(("d",)):  # pyright: ignore[reportArgumentType]
        pass


def test_one_device_leaves_an_axis_that_is_bound_as_it_is() -> None:
    given = inputs(masked=False)
    with F.one_device("d", "elsewhere"):
        f = WAYS["shard_map"](norm_of("batch", axis_name=("elsewhere", "d")))
        y, moments = jax.jit(lambda x: f(x, None, SCALE, BIAS))(given[0])
    expected = differentiated(None, "batch", False)(*given)
    chex.assert_trees_all_close((y, moments), expected[:2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("names", [(), ("d", "d")], ids=str)
def test_axis_names_are_at_least_one_and_each_once(names: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="at least one axis, and each once"):
        F.batch_norm(normal(4, 6), axis_name=names)


@functools.cache
def stepped(norm: str) -> Function:
    """`(trained, stats, x, dy, mask) -> (y, gradients, state, evaluated)` of a Linen norm."""
    module, evaluating = (norms.get(norm).linen(train=train) for train in (True, False))
    masked = {} if norm == "none" else {"mask"}

    def step(trained: Any, stats: Any, x: jax.Array, dy: jax.Array, mask: Any) -> Any:
        options = dict.fromkeys(masked, mask)

        def f(trained: Any, x: jax.Array) -> Any:
            return module.apply({**trained, "batch_stats": stats}, x, mutable=["batch_stats"], **options)

        y, pull, after = jax.vjp(f, trained, x, has_aux=True)
        return y, pull(dy), after, evaluating.apply({**trained, "batch_stats": stats, **after}, x, **options)

    return jax.jit(step)


def many(names: tuple[str, ...]) -> list[str]:
    """Norms, with groups that devices do not cut; one that divides what it has rounded has a larger epsilon."""
    larger = {"batch_channel": ",epsilon=0.1"}
    return [f"{name}:num_groups=8{larger.get(name, '')}" if name in GROUPED else name for name in names]


VARIANTS = (
    "batch:statistics='running',momentum=None",
    "batch:ghost_batch_size=2",
    "batch_renorm:initialize_from_first_batch=True",
    "batch_renorm:statistics='running'",
)


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("sharded", ["batch", "features"])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize("norm", [*many(ALL), *VARIANTS])
def test_every_norm_on_every_mesh_is_that_of_one_device(norm: str, kind: AxisType, sharded: str, masked: bool) -> None:
    x, dy = normal(16, 3, 16, offset=2.0), normal(16, 3, 16, seed=5)
    mask = jnp.asarray(np.random.default_rng(3).random((16, 3, 1)) < 0.7) if masked else None
    variables = dict(norms.get(norm).linen(train=True).init(jax.random.key(0), x))
    stats = variables.pop("batch_stats", {})
    expected = stepped(norm)(variables, stats, x, dy, mask)

    grid = mesh(8, kind=kind)
    spec, mask_spec = (P("d"), P("d")) if sharded == "batch" else (P(None, None, "d"), P())
    x, dy = jax.device_put((x, dy), NamedSharding(grid, spec))
    mask = mask if mask is None else jax.device_put(mask, NamedSharding(grid, mask_spec))
    found = [stepped(norm)(variables, stats, x, dy, mask)]
    if kind == AxisType.Explicit:  # where a type says more with a mesh that is set
        with jax.set_mesh(grid):
            found.append(stepped(norm)(variables, stats, x, dy, mask))
    for result in found:
        chex.assert_trees_all_close(jax.device_get(result), jax.device_get(expected), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("norm", ["none", "layer", "batch_step"])
def test_cells_on_explicit_devices_are_an_error_with_a_remedy(norm: str) -> None:
    rnn = linen.RNN(linen.LSTMCell(4, norm=norm, use_running_average=False))
    x = jax.device_put(normal(8, 3, 6), NamedSharding(mesh(8, kind=AxisType.Explicit), P("d")))
    with pytest.raises(ValueError, match=r"type `jax\.sharding\.AxisType\.Auto`, got inputs sharded.*`jax\.shard_map`"):
        rnn.init(jax.random.key(0), x)
