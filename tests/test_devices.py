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
import reference
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from normlab import functional as F

pytestmark = pytest.mark.usefixtures("strict")

DEVICES = 4
SHAPE = (8, 3, 6)
Function = Callable[..., Any]
RUNNING = F.RunningStatistics(jnp.linspace(-1, 1, 6), jnp.linspace(0.5, 2, 6))


def mesh(*shape: int, names: tuple[str, ...] = ("d",)) -> Mesh:
    """The first devices as a mesh."""
    return Mesh(np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape), names)


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


def by_mapping(map_: Function) -> Callable[[Function], Function]:
    """The same under `jax.pmap` or `jax.vmap`."""

    def wrap(f: Function) -> Function:
        mapped = map_(f, axis_name="d", in_axes=(0, 0, None, None))

        def g(x: jax.Array, mask: Any, scale: jax.Array, bias: jax.Array) -> Any:
            y, moments = mapped(split(x), split(mask), scale, bias)
            first = jax.tree.map(lambda a: a[0], moments)
            return joined(y), first

        return g

    return wrap


WAYS = {"shard_map": by_shard_map, "pmap": by_mapping(jax.pmap), "vmap": by_mapping(jax.vmap)}


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


def merged_variance(x: np.ndarray, where: np.ndarray | None) -> np.ndarray:
    """Variance from the moments of each device (Chan et al., 1979): feels the rounding of each device's mean."""
    masks = [None] * DEVICES if where is None else np.split(where, DEVICES)
    parts = [reference.moments(part, (0, 1), mask) for part, mask in zip(np.split(x, DEVICES), masks, strict=True)]
    total = sum(n for _, _, n in parts)
    mean = sum(n * m for m, _, n in parts) / total
    return (sum(n * (v + (m - mean) ** 2) for m, v, n in parts) / total).ravel()


SCALE, BIAS = normal(6, seed=1), normal(6, seed=2)


@functools.cache
def differentiated(way: str | None, kind: str, masked: bool) -> Function:
    """`(x, mask, dy) -> (y, moments, gradients)` on devices, or on one; what the mask leaves out is 0."""
    f = norm_of(kind) if way is None else WAYS[way](norm_of(kind, axis_name="d"))

    def run(x: jax.Array, mask: Any, dy: jax.Array) -> Any:
        dy = jnp.where(mask, dy, 0) if masked else dy
        y, pull, moments = jax.vjp(lambda x, s, b: f(x, mask, s, b), x, SCALE, BIAS, has_aux=True)
        return (jnp.where(mask, y, 0) if masked else y), moments, pull(dy)

    return run if way == "pmap" else jax.jit(run)


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("kind", ["batch", "renorm"])
@pytest.mark.parametrize("way", WAYS)
def test_equals_one_device_on_the_whole_batch(way: str, kind: str, masked: bool, offset: float) -> None:
    x, mask, dy = normal(*SHAPE, offset=offset), mask_of() if masked else None, normal(*SHAPE, seed=5)
    x = x if mask is None else jnp.where(mask, x, jnp.nan)
    y, moments, gradients = differentiated(way, kind, masked)(x, mask, dy)
    expected = differentiated(None, kind, masked)(x, mask, dy)
    tolerance = 1e-5 if offset == 0 else 2e-2  # means near 1e4 are off by their last places, 1e-3 of a deviation
    chex.assert_trees_all_close((y, gradients), (expected[0], expected[2]), rtol=tolerance, atol=tolerance)

    where = None if mask is None else np.asarray(mask)
    variables = {"mean": RUNNING.mean, "std": RUNNING.spread, "var": RUNNING.spread, "scale": SCALE, "bias": BIAS}
    variables = {k: np.asarray(v, np.float64) for k, v in variables.items()}

    def f64(x: np.ndarray) -> Any:
        x = np.where(True if where is None else where, x, 0)
        out, state = reference.NORMS["batch" if kind == "batch" else "batch_renorm"](x, variables, where, momentum=0.0)
        state = {"mean": state["mean"], "var": merged_variance(x, where)}
        return np.where(True if where is None else where, out, 0), state

    found = (np.asarray(y), {"mean": np.asarray(moments[0]), "var": np.asarray(moments[1])})
    reference.assert_rounds_to(found, f64, np.asarray(x))


@pytest.mark.parametrize("way", ["shard_map", "pmap", "vmap"])
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


@pytest.mark.parametrize("way", ["shard_map", "vmap"])
def test_groups_of_devices_elsewhere_are_an_error_with_a_remedy(way: str) -> None:
    f = WAYS[way](norm_of("batch", axis_name="d", axis_index_groups=[[0, 1], [2, 3]]))
    with pytest.raises(ValueError, match=r"`axis_index_groups` under `jax\.pmap` only.*Split the mesh axis in two"):
        f(normal(*SHAPE), None, SCALE, BIAS)


def test_an_example_a_device_is_enough() -> None:
    x = normal(DEVICES, 6)
    y, _ = jax.jit(WAYS["shard_map"](norm_of("batch", axis_name="d")))(x, None, SCALE, BIAS)
    chex.assert_trees_all_close(y, F.batch_norm(x, SCALE, BIAS)[0], rtol=1e-5, atol=1e-5)


def collectives(f: Function, *arguments: Any) -> int:
    """Number of all-reduces in what XLA compiles."""
    text = jax.jit(f).lower(*arguments).compile().as_text()
    assert not re.findall(r"\b(?:all-gather|all-to-all|collective-permute|reduce-scatter)\(", text)
    return len(re.findall(r"\ball-reduce(?:-start)?\(", text))


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
@pytest.mark.parametrize("kind", ["batch", "renorm"])
def test_one_collective_forward_and_one_backward(kind: str, masked: bool) -> None:
    x, mask = normal(*SHAPE), mask_of() if masked else None
    f = WAYS["shard_map"](norm_of(kind, axis_name="d"))
    assert collectives(f, x, mask, SCALE, BIAS) == 1

    def backward(x: jax.Array, mask: Any, scale: jax.Array, bias: jax.Array, dy: jax.Array, shared: bool) -> Any:
        _, pull, _ = jax.vjp(lambda x, s, b: f(x, mask, s, b), x, scale, bias, has_aux=True)
        dx, *rest = pull(dy)
        return (dx, rest) if shared else dx

    arguments = (x, mask, SCALE, BIAS, normal(*SHAPE, seed=5))
    assert collectives(functools.partial(backward, shared=False), *arguments) == 2
    assert collectives(functools.partial(backward, shared=True), *arguments) == 2


@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_a_sharded_batch_under_jit_has_global_statistics_with_no_option(masked: bool) -> None:
    x, mask = normal(*SHAPE), mask_of() if masked else None
    sharded = jax.device_put(x, NamedSharding(mesh(DEVICES), P("d")))
    found = jax.jit(lambda x: F.batch_norm(x, SCALE, BIAS, where=mask))(sharded)
    chex.assert_trees_all_close(found, F.batch_norm(x, SCALE, BIAS, where=mask), rtol=1e-5, atol=1e-5)
