"""Which parameters of a Linen model are to be trained, where some norms are frozen."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn
from flax.core import unfreeze
from flax.linen.module import InterceptorContext

from normlab.linen._norm import Stateful

Path = tuple[str, ...]
"""Names of a module and those around it, the outermost first."""


def trainable(model: nn.Module, variables: Mapping[str, Any], *inputs: object, **options: Any) -> dict[str, Any]:
    """Return which parameters are to be trained: all but those of norms with `frozen=True`.

    These have a gradient of zero, which weight decay does not ask for: mask it, as in
    `optax.adamw(0.001, mask=trainable(model, variables, x))`, or the whole optimizer by `optax.masked`.

    Args:
        model: A model, or a norm.
        variables: As from `model.init`.
        *inputs: Inputs of a call of the model; only shapes are computed.
        **options: Keyword arguments of the call, such as `train=True` or `rngs`.

    Returns:
        Bools in the tree of `variables["params"]`.

    Example:
        >>> from normlab.linen import BatchNorm
        >>> model, x = BatchNorm(use_running_average=False, frozen=True, use_bias=False), jax.numpy.ones((2, 3))
        >>> trainable(model, model.init(jax.random.key(0), x), x)
        {'scale': False}
    """
    frozen, called = _norms(model, variables, inputs, options)
    params = unfreeze(variables.get("params", {}))
    owners = {_owner(path) for path, _ in jax.tree_util.tree_leaves_with_path(params, is_leaf=_is_boxed)}
    if not owners <= called:  # what `nn.jit` has traced before, it does not call again
        with jax.disable_jit():
            frozen, _ = _norms(model, variables, inputs, options)

    def learns(path: tuple[Any, ...], parameter: Any) -> Any:
        said = _owner(path) not in frozen
        return parameter.replace_boxed(said) if _is_boxed(parameter) else said

    return jax.tree_util.tree_map_with_path(learns, params, is_leaf=_is_boxed)


def _norms(
    model: nn.Module, variables: Mapping[str, Any], inputs: tuple[object, ...], options: Mapping[str, Any]
) -> tuple[set[Path], set[Path]]:
    """Return where the frozen norms of a model are, and all modules that a call of it calls."""
    frozen: set[Path] = set()
    called: set[Path] = set()

    def note(call: Callable[..., Any], given: Any, options: Any, context: InterceptorContext) -> Any:
        called.add(context.module.path)
        if isinstance(context.module, Stateful) and getattr(context.module, "frozen", False):
            frozen.add(context.module.path)
        return call(*given, **options)

    with nn.intercept_methods(note):
        jax.eval_shape(lambda variables: model.apply(variables, *inputs, **options, mutable=True), variables)
    return frozen, called


def _is_boxed(parameter: object) -> bool:
    """Return whether a parameter carries metadata, as `nn.with_partitioning` gives it."""
    return isinstance(parameter, nn.meta.AxisMetadata)


def _owner(path: tuple[Any, ...]) -> Path:
    """The module of a parameter."""
    return tuple(key.key for key in path[:-1])
