"""Formulations for accelerators, on a CPU: the numbers of the others, whatever the elements are."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normlab import norms
from normlab._core import reduction, rows

NORMS = ("layer", "batch", "instance", "group:num_groups=4", "batch:ghost_batch_size=2", "layer:reduction_axes=(1,2,3)")
SHAPE = (6, 9, 5, 32)


@pytest.fixture(params=[True, False], ids=["accelerator", "cpu"])
def on_accelerator(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    for module in (reduction, rows):
        monkeypatch.setattr(module, "on_accelerator", lambda: request.param)
    return request.param


def images(kind: str) -> np.ndarray:
    """Images whose first rows and features, which stand for all, tell much, little, or the least about the others."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=SHAPE)
    if kind == "far":
        x = 1e4 + x
    if kind == "apart":
        x = x + 1e4
        x[:, 0], x[..., :2] = 0, 0
    if kind == "large":
        x = 1e15 * x
    if kind == "constant":
        x = np.full(SHAPE, 3e30)
    return x.astype(np.float32)


def trained(norm: str, x: Any, dy: Any) -> tuple[Any, Any]:
    """Output and gradients of a norm, compiled as one program."""
    module = norms.get(norm).linen(train=True)
    variables = jax.tree.map(lambda a: a + 0.25, module.init(jax.random.key(0), x))
    state = {name: part for name, part in variables.items() if name != "params"}

    @jax.jit
    def run(params: Any, x: Any) -> tuple[Any, Any]:
        forward = lambda params, x: module.apply({"params": params, **state}, x, mutable=["batch_stats"])[0]  # noqa: E731
        y, pull = jax.vjp(forward, params, x)
        return y, pull(dy)

    return run(variables.get("params", {}), x)


def exact(norm: str, x: np.ndarray, dy: np.ndarray) -> Any:
    """The same in float64, in the formulation for CPUs, which other tests compare with NumPy."""
    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        for module in (reduction, rows):
            patch.setattr(module, "on_accelerator", lambda: False)
        return jax.device_get(trained(norm, jnp.asarray(x, jnp.float64), jnp.asarray(dy, jnp.float64)))


@pytest.mark.parametrize("kind", ["near", "far", "apart", "large", "constant"])
@pytest.mark.parametrize("norm", NORMS)
def test_both_formulations_are_exact(norm: str, kind: str, on_accelerator: bool) -> None:
    x, dy = images(kind), np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    found, right = jax.device_get(trained(norm, jnp.asarray(x), jnp.asarray(dy))), exact(norm, x, dy)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True):
        assert np.abs(a - b).max() <= 1e-5 * max(np.abs(b).max(), np.finfo(np.float32).tiny)


def test_an_outlier_first_costs_no_digits(on_accelerator: bool) -> None:
    x = np.random.default_rng(0).normal(size=(1, 65536, 2)).astype(np.float32)
    x[:, 0] = 1e4
    found = reduction.moments(jnp.asarray(x), reduction.all_but((2,), 3))
    np.testing.assert_allclose(found.var.ravel(), x.astype(np.float64).var((0, 1)), rtol=1e-5)


def test_long_rows_are_exact(on_accelerator: bool) -> None:
    rng = np.random.default_rng(0)
    x, dy = (1e3 + rng.normal(size=(3, 9000)), rng.normal(size=(3, 9000)))
    found = jax.device_get(trained("layer", jnp.float32(x), jnp.float32(dy)))
    right = exact("layer", np.float32(x), np.float32(dy))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(right), strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


def test_the_platform_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = norms.get("layer").linen(train=True), jnp.ones((4, 64))
    variables = module.init(jax.random.key(0), x)
    programs = set()
    for platform in ("cpu", "gpu"):
        monkeypatch.setattr(jax, "default_backend", lambda *_, platform=platform: platform)
        programs.add(str(jax.make_jaxpr(module.apply)(variables, x)))
    assert len(programs) == 2


@pytest.mark.parametrize("size", [3, 15, 16, 17, 400])
def test_a_part_bounds_the_distance_of_the_mean(size: int) -> None:
    """The mean of a part may be 4 standard deviations away at most, also if it was chosen to be far."""
    x = np.zeros((1, size, 3), np.float32)
    part = reduction._part(jnp.asarray(x), reduction.all_but((0, 2), 3))
    assert part is not None
    assert 16 * part.shape[1] >= size
    x[:, : part.shape[1]] = 1
    if part.shape[1] < size:
        assert abs(x.mean() - 1) <= 4 * x.std() + 1e-6


def test_no_part_divides_the_batch_alone() -> None:
    assert reduction._part(jnp.ones((64, 8)), reduction.all_but((1,), 2)) is None
