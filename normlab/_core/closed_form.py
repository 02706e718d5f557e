"""Functions with a derivative in closed form, whose reverse mode keeps their arguments and nothing else.

Autodiff keeps whatever a derivative is made of: a tangent, its slope, each product on the way. Here all of it is
computed again from the input and the statistics, which are arguments. XLA:CPU also writes an expensive array that is
used twice to memory, and allocates this memory in every call; see `again`.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar, cast

import jax
from jax import Array, lax

from normlab._core.standardize import in_taylor_mode

__all__ = ["Formula", "Operands", "again", "closed_form", "recomputed"]

Given = ParamSpec("Given")
Static = TypeVar("Static")
Result = TypeVar("Result")
Operands = tuple[Array | None, ...]
"""Arrays, or their tangents; `None` is no array, or the tangent of none."""

Formula = Callable[..., Array]
"""A function of what is static and of arrays."""


def closed_form(formula: Formula, tangent: Callable[[Static, Operands, Operands], Array]) -> Formula:
    """Return `formula` with a derivative of its own, for which reverse mode keeps the arguments alone.

    Both modes work, and derivatives of any order are those of `formula` and `tangent`. A tangent that `tangent` leaves
    out, such as that of a statistic, has to follow from the others.

    Args:
        formula: A function of something static, which is hashable, and of arrays.
        tangent: Its derivative, linear in the tangents.
    """
    rule = jax.custom_jvp(formula, nondiff_argnums=(0,))

    @rule.defjvp
    def _(static: Static, primals: Operands, tangents: Operands) -> tuple[Array, Array]:
        return rule(static, *primals), tangent(static, primals, tangents)

    return cast("Formula", jax.checkpoint(rule, static_argnums=(0,)))


def recomputed(function: Callable[Given, Result]) -> Callable[Given, Result]:
    """Return `function` of arrays with the derivative of autodiff, for which reverse mode keeps the arguments alone."""
    checkpointed = cast("Callable[Given, Result]", jax.checkpoint(function))

    @wraps(function)
    def called(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        taylor = any(map(in_taylor_mode, jax.tree.leaves((args, kwargs))))
        return function(*args, **kwargs) if taylor else checkpointed(*args, **kwargs)

    return called


def again(x: Array) -> Array:
    """Return `x` as an array of which XLA does not know that it is `x`, so that functions of it are computed again."""
    return lax.optimization_barrier(x)
