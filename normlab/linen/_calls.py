"""Which modules a call of a Linen model calls."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import linen as nn
from flax.core import unfreeze
from flax.linen.module import InterceptorContext

Path = tuple[str, ...]
"""Names of a module and those around it, the outermost first."""


def visit(
    model: nn.Module,
    variables: Mapping[str, Any],
    inputs: tuple[object, ...],
    options: Mapping[str, Any],
    note: Callable[[nn.Module], None],
) -> None:
    """Call a function with every module that a call of a model calls; only shapes are computed.

    Args:
        model: A model.
        variables: As from `model.init`.
        inputs: Inputs of the call.
        options: Keyword arguments of the call.
        note: Called with a module after each call of it, and more than once if need be.
    """
    params = unfreeze(variables.get("params", {}))
    owners = {owner(path) for path, _ in jax.tree_util.tree_leaves_with_path(params, is_leaf=is_boxed)}
    if not owners <= _visit(model, variables, inputs, options, note):
        with jax.disable_jit():  # what `nn.jit` has traced before, it does not call again
            _visit(model, variables, inputs, options, note)


def _visit(
    model: nn.Module,
    variables: Mapping[str, Any],
    inputs: tuple[object, ...],
    options: Mapping[str, Any],
    note: Callable[[nn.Module], None],
) -> set[Path]:
    called: set[Path] = set()

    def intercepted(call: Callable[..., Any], given: Any, options: Any, context: InterceptorContext) -> Any:
        result = call(*given, **options)
        called.add(context.module.path)
        note(context.module)
        return result

    with nn.intercept_methods(intercepted):
        jax.eval_shape(lambda variables: model.apply(variables, *inputs, **options, mutable=True), variables)
    return called


def is_boxed(parameter: object) -> bool:
    """Return whether a parameter carries metadata, as `nn.with_partitioning` gives it."""
    return isinstance(parameter, nn.meta.AxisMetadata)


def owner(path: tuple[Any, ...]) -> Path:
    """Return the path of the module that a parameter is of."""
    return tuple(key.key for key in path[:-1])
