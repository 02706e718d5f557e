"""Norms of other libraries, as pure functions of one form; a library is imported when one of its norms is asked for."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from normlab import norms

EPSILON = 1e-5
"""Epsilon of every contender; all other options are the defaults of its library."""

GROUPS = 32
THREADS = 2
"""Threads of torch."""

NORMS = ("batch", "layer", "rms", "group", "instance")
"""Norms that every library has."""


class Layer(NamedTuple):
    """Norm in training.

    Attributes:
        params: Scale and bias, in the form of the library.
        state: Running statistics; empty where there are none.
        apply: `(params, state, x) -> (y, state)`.
        feature_axis: Axis of the features in the layout of the library: -1, or 1 where features follow the batch.
    """

    params: Any
    state: Any
    apply: Callable[[Any, Any, Array], tuple[Array, Any]]
    feature_axis: int = -1


def ours(norm: str, shape: tuple[int, ...]) -> Layer:
    """Return a module of `normlab.linen`."""
    return _linen(norms.get(norm, epsilon=EPSILON).linen(train=True), shape)


def flax(norm: str, shape: tuple[int, ...], *, two_pass: bool = False) -> Layer:
    """Return a module of Flax, with its default variance in one pass, or with that in two."""
    modules: dict[str, Callable[..., nn.Module]] = {
        "batch": partial(nn.BatchNorm, use_running_average=False),
        "layer": nn.LayerNorm,
        "rms": nn.RMSNorm,
        "group": partial(nn.GroupNorm, num_groups=GROUPS),
        "instance": nn.InstanceNorm,
    }
    variance = {"use_fast_variance": False} if two_pass and norm != "rms" else {}
    return _linen(modules[norm](epsilon=EPSILON, **variance), shape)


def _linen(module: nn.Module, shape: tuple[int, ...]) -> Layer:
    state = dict(module.init(jax.random.key(0), jnp.zeros(shape)))
    params = state.pop("params")

    def apply(params: Any, state: Any, x: Array) -> tuple[Array, Any]:
        return module.apply({"params": params, **state}, x, mutable=list(state))  # pyright: ignore[reportReturnType]

    return Layer(params, state, apply)


def equinox(norm: str, shape: tuple[int, ...]) -> Layer:
    """Return a module of equinox: of one example, mapped over the batch; layer and RMS norm, over positions, too."""
    import equinox as eqx

    features = shape[-1]
    if norm in ("layer", "rms"):
        kind = eqx.nn.LayerNorm if norm == "layer" else partial(eqx.nn.RMSNorm, use_bias=False)
        params, static = eqx.partition(kind(features, eps=EPSILON), eqx.is_inexact_array)

        def by_position(params: Any, state: Any, x: Array) -> tuple[Array, Any]:
            each = eqx.combine(params, static)
            for _ in range(x.ndim - 1):
                each = jax.vmap(each)
            return each(x), state

        return Layer(params, (), by_position)
    if norm == "batch":
        module, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(features, "batch", eps=EPSILON, mode="batch")
        params, static = eqx.partition(module, eqx.is_inexact_array)

        def by_batch(params: Any, state: Any, x: Array) -> tuple[Array, Any]:
            each = jax.vmap(eqx.combine(params, static), axis_name="batch", in_axes=(0, None), out_axes=(0, None))
            return each(x, state)

        return Layer(params, state, by_batch, feature_axis=1)
    groups = GROUPS if norm == "group" else features
    params, static = eqx.partition(eqx.nn.GroupNorm(groups, features, eps=EPSILON), eqx.is_inexact_array)
    return Layer(params, (), lambda params, state, x: (jax.vmap(eqx.combine(params, static))(x), state), feature_axis=1)


def haiku(norm: str, shape: tuple[int, ...]) -> Layer:
    """Return a module of haiku."""
    import haiku as hk

    both: Mapping[str, Any] = {"create_scale": True, "create_offset": True, "eps": EPSILON}
    modules: dict[str, Callable[[], Callable[[Array], Array]]] = {
        "batch": lambda: partial(hk.BatchNorm(**both, decay_rate=0.99), is_training=True),
        "layer": lambda: hk.LayerNorm(-1, **both),
        "rms": lambda: hk.RMSNorm(-1, eps=EPSILON),
        "group": lambda: hk.GroupNorm(GROUPS, eps=EPSILON),
        "instance": lambda: hk.InstanceNorm(**both),
    }
    function = hk.transform_with_state(lambda x: modules[norm]()(x))
    params, state = function.init(jax.random.key(0), jnp.zeros(shape))
    return Layer(params, state, lambda params, state, x: function.apply(params, state, None, x))


def keras(norm: str, shape: tuple[int, ...]) -> Layer:
    """Return a layer of Keras 3 on JAX."""
    os.environ["KERAS_BACKEND"] = "jax"  # the only way to choose it, before the first import
    import keras as library

    layers = library.layers
    layer: Any = {
        "batch": layers.BatchNormalization,
        "layer": layers.LayerNormalization,
        "rms": layers.RMSNormalization,
        "group": partial(layers.GroupNormalization, groups=GROUPS),
        "instance": partial(layers.GroupNormalization, groups=-1),
    }[norm](epsilon=EPSILON)
    layer.build(shape)
    options = {"training": True} if norm == "batch" else {}
    params = [variable.value for variable in layer.trainable_variables]
    state = [variable.value for variable in layer.non_trainable_variables]
    return Layer(params, state, lambda params, state, x: layer.stateless_call(params, state, x, **options))


LIBRARIES: dict[str, Callable[[str, tuple[int, ...]], Layer]] = {
    "ours": ours,
    "Flax": flax,
    "equinox": equinox,
    "haiku": haiku,
    "Keras": keras,
    "two-pass": partial(flax, two_pass=True),
}
"""Contenders on JAX by name; `two-pass` are Flax's norms with the variance that keeps its digits."""

PACKAGES = {"equinox": "equinox", "haiku": "dm-haiku", "Keras": "keras", "torch": "torch"}
"""Packages of the contenders that the extra `peers` brings."""


def torch_call(norm: str, x: np.ndarray, dy: np.ndarray, backward: bool) -> Callable[[], Any]:
    """Return the eager call of `torch.nn.functional`; features are last in memory, as `channels_last` has them.

    Args:
        norm: Name of the norm.
        x: Input, features last.
        dy: Cotangent of the output.
        backward: Whether gradients of input, scale and bias are computed, too.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads would slow the next contender
    import torch
    from torch.nn import functional

    torch.set_num_threads(THREADS)
    features = x.shape[-1]
    by_position = norm in ("layer", "rms")
    source, cotangent = (torch.tensor(a) if by_position else torch.tensor(a).movedim(-1, 1) for a in (x, dy))
    scale, bias, zero, one = torch.ones(features), torch.zeros(features), torch.zeros(features), torch.ones(features)
    given = [source, scale] if norm == "rms" else [source, scale, bias]
    calls: dict[str, Callable[[], Any]] = {
        "batch": lambda: functional.batch_norm(
            source, zero, one, scale, bias, training=True, momentum=0.01, eps=EPSILON
        ),
        "layer": lambda: functional.layer_norm(source, (features,), scale, bias, eps=EPSILON),
        "rms": lambda: functional.rms_norm(source, (features,), scale, eps=EPSILON),
        "group": lambda: functional.group_norm(source, GROUPS, scale, bias, eps=EPSILON),
        "instance": lambda: functional.instance_norm(source, weight=scale, bias=bias, eps=EPSILON),
    }
    call = calls[norm]
    for array in given:
        array.requires_grad_()

    def forward() -> Any:
        with torch.no_grad():
            return call()

    return (lambda: torch.autograd.grad(call(), given, cotangent)) if backward else forward
