"""Which parameters of a Linen model are to be trained, where some norms are frozen."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn
from flax.core import unfreeze

from normlab.linen._calls import Path, is_boxed, owner, visit
from normlab.linen._norm import Stateful


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
    frozen: set[Path] = set()

    def note(module: nn.Module) -> None:
        if isinstance(module, Stateful) and getattr(module, "frozen", False):
            frozen.add(module.path)

    visit(model, variables, inputs, options, note)

    def learns(path: tuple[Any, ...], parameter: Any) -> Any:
        said = owner(path) not in frozen
        return parameter.replace_boxed(said) if is_boxed(parameter) else said

    return jax.tree_util.tree_map_with_path(learns, unfreeze(variables.get("params", {})), is_leaf=is_boxed)
