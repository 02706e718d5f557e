"""Implementations of a norm in JAX, each a function of `x`, scale and bias."""

import importlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from benchmarks.accelerator.cases import EPSILON, GROUPS, OURS, PALLAS, SAVING, Case

if TYPE_CHECKING:
    from benchmarks.accelerator.pallas import Launch

__all__ = ["CONTENDERS", "KERNELS", "XLA", "Function", "launched", "training"]

Function = Callable[[Array, Array, Array], Array]
"""Maps `x` and, of the shape of its features, scale and bias to the output; RMS norm ignores the bias."""

Make = Callable[[Case], Function | None]
CLASSES = {"batch": "BatchNorm", "layer": "LayerNorm", "rms": "RMSNorm", "group": "GroupNorm"}


def linen(package: str, case: Case) -> Function:
    """Return the Linen module of a package, in training; running statistics are an output that is not used."""
    options: dict[str, Any] = {"epsilon": EPSILON, "dtype": jnp.dtype(case.dtype)}
    options |= {"batch": {"use_running_average": False}, "group": {"num_groups": GROUPS}}.get(case.norm, {})
    module = getattr(importlib.import_module(package), CLASSES[case.norm])(**options)
    features = case.shape[-1]
    state = {"mean": jnp.zeros(features), "var": jnp.ones(features)} if case.norm == "batch" else {}

    def norm(x: Array, scale: Array, bias: Array) -> Array:
        params = {"scale": scale} if case.norm == "rms" else {"scale": scale, "bias": bias}
        return module.apply({"params": params, "batch_stats": state}, x, mutable=["batch_stats"])[0]

    return norm


def saving_x(case: Case) -> Function:
    """Return a norm that saves only its input: one output forward, and statistics again in the backward pass.

    Within one program the compiler would find the statistics twice and save them after all; a barrier prevents this.
    """
    centered, features = case.norm != "rms", case.shape[-1]
    view, axes = {
        "batch": ((-1, features), (0,)),
        "group": ((case.shape[0], -1, GROUPS, features // GROUPS), (1, 3)),
    }.get(case.norm, ((-1, features), (1,)))
    average = partial(jnp.mean, axis=axes, keepdims=True)

    def standardized(x: Array) -> tuple[Array, Array]:
        x = x.astype(jnp.float32).reshape(view)
        x = x - average(x) if centered else x
        rstd = lax.rsqrt(average(lax.square(x)) + EPSILON)
        return (x * rstd).reshape(case.shape), rstd

    @jax.custom_vjp
    def norm(x: Array, scale: Array, bias: Array) -> Array:
        y = standardized(x)[0] * scale
        return (y + bias if centered else y).astype(x.dtype)

    def forward(x: Array, scale: Array, bias: Array) -> tuple[Array, tuple[Array, Array]]:
        return norm(x, scale, bias), (x, scale)

    def backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array, Array]:
        x, scale = saved
        y, rstd = standardized(lax.optimization_barrier(x))
        dy = dy.astype(jnp.float32)
        slope, along = (dy * scale).reshape(view), y.reshape(view)
        dx = slope - along * average(slope * along)
        dx = dx - average(slope) if centered else dx
        every = tuple(range(x.ndim - 1))
        dbias = dy.sum(every) if centered else jnp.zeros_like(scale)
        return (dx * rstd).reshape(case.shape).astype(x.dtype), (dy * y).sum(every), dbias

    norm.defvjp(forward, backward)
    return norm


def pallas(case: Case) -> Function:
    """Return the norm of the kernels in Pallas, for the first device."""
    from benchmarks.accelerator.pallas import Launch  # Triton's route through Pallas may be gone

    device = jax.devices()[0]
    if device.platform == "tpu":
        raise NotImplementedError("Kernels for Triton do not run on a TPU.")
    return launched(case, Launch(getattr(device, "core_count", None) or 132, interpret=device.platform == "cpu"))


def launched(case: Case, launch: "Launch") -> Function:
    """Return the norm of the kernels in Pallas."""
    from benchmarks.accelerator import pallas as kernels

    features = case.shape[-1]
    if case.norm in ("layer", "rms"):
        norm, view = kernels.rows_norm(launch, center=case.norm == "layer", epsilon=EPSILON), (-1, features)
    else:
        pool, samples = (1, 1) if case.norm == "batch" else (features // GROUPS, case.shape[0])
        norm, view = kernels.columns_norm(launch, pool=pool, epsilon=EPSILON), (samples, -1, features)

    def shaped(x: Array, scale: Array, bias: Array) -> Array:
        bias = jnp.zeros_like(bias) if case.norm == "rms" else bias
        return norm(x.reshape(view), scale, bias).reshape(x.shape)

    return shaped


def tokamax(case: Case) -> Function | None:
    """Return the norm of tokamax, with the implementation that it picks; it has layer and RMS norm only."""
    if case.norm not in ("layer", "rms"):
        return None
    layer_norm = importlib.import_module("tokamax").layer_norm

    def norm(x: Array, scale: Array, bias: Array) -> Array:
        center = case.norm == "layer"
        return layer_norm(x, scale, bias if center else None, epsilon=EPSILON, subtract_mean=center)

    return norm


XLA: dict[str, Make] = {
    OURS: partial(linen, "normlab.linen"),
    SAVING: saving_x,
    "Flax": partial(linen, "flax.linen"),
}
KERNELS: dict[str, Make] = {PALLAS: pallas, "tokamax": tokamax}
CONTENDERS = XLA | KERNELS
"""Implementations by name: `None` for a norm that one does not have; one that cannot be made here raises."""


def training(norm: Function) -> Callable[[Array, Array, Array, Array], tuple[Array, Array, Array, Array]]:
    """Return the function of `x`, scale, bias and `dy` that gives the output and all gradients.

    As in a network the cotangent comes after the output: a barrier keeps the compiler from computing both at once.
    """

    def both(x: Array, scale: Array, bias: Array, dy: Array) -> tuple[Array, Array, Array, Array]:
        y, pull = jax.vjp(norm, x, scale, bias)
        y, dy = lax.optimization_barrier((y, dy))
        return y, *pull(dy)

    return both
