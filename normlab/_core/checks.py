"""Checks of what norms are given, and the one way to allow statistics over a single element."""

import numbers
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike

from normlab._core.dtypes import float_limits

T = TypeVar("T")

AxisName = str | tuple[str, ...]
"""The name of a mapped axis of devices (or of `jax.vmap`), or several."""


_ONE_ELEMENT: ContextVar[bool] = ContextVar("one_element", default=False)


@contextmanager
def one_element() -> Generator[None]:
    """Let norms take statistics over a single element, where they raise a `StatisticsError` otherwise.

    A mean over one element is that element, so that the output is the bias whatever the input (for RMS norm
    `sign(x) * scale`), and no gradient flows. Within this context no norm raises. It is read while a function is
    traced: enter it around the first call of what `jax.jit` compiles.

    Example:
        >>> from normlab.functional import layer_norm
        >>> with one_element():
        ...     layer_norm(jnp.array([[2.0], [5.0]])).ravel()
        Array([0., 0.], dtype=float32)
    """
    token = _ONE_ELEMENT.set(True)
    try:
        yield
    finally:
        _ONE_ELEMENT.reset(token)


def one_element_allowed() -> bool:
    """Check whether `one_element` is in force."""
    return _ONE_ELEMENT.get()


def check_real(x: Array, name: str = "x") -> None:
    """Raise a `TypeError` unless `x` is of bools, whole numbers of 8 bits or more, or real floats of 16 or more."""
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        raise TypeError(
            f"Expected `{name}` to be real, got {x.dtype}. Normalize `{name}.real` and `{name}.imag` on their own."
        )
    if _is_narrow(x.dtype):
        raise TypeError(
            f"Expected `{name}` in a dtype that JAX promotes to float32, got {x.dtype}. Cast it, as in "
            f"`{name}.astype(jnp.bfloat16)`, and the output back."
        )


def check_dtypes(x: Array, affine: Mapping[str, Array], dtype: DTypeLike | None) -> None:
    """Raise a `TypeError` unless a module can compute in the dtypes of its input, its parameters and its output."""
    check_real(x)
    dtypes: dict[str, DTypeLike | None] = {
        f"`param_dtype` of `{name}`": parameter.dtype for name, parameter in affine.items()
    }
    for name, given in {"`dtype`": dtype, **dtypes}.items():
        if given is not None and (jnp.issubdtype(given, jnp.complexfloating) or _is_narrow(given)):
            raise TypeError(
                f"Expected {name} to be a real float of 16 bits or more, got {jnp.dtype(given)}. Leave it out, and "
                "cast outside of the norm."
            )


def _is_narrow(dtype: DTypeLike) -> bool:
    """Check for a dtype that JAX promotes to nothing by itself: floats below 16 bits, whole numbers below 8."""
    if jnp.issubdtype(dtype, jnp.floating):
        return float_limits(dtype).bits < 16
    return jnp.issubdtype(dtype, jnp.integer) and jnp.iinfo(dtype).bits < 8


def check_features(name: str, array: Array | None, shape: tuple[int, ...]) -> None:
    """Raise a `ValueError` unless `array` is `None` or has `shape`, that of the feature axes of `x`."""
    if array is not None and array.shape != shape:
        remedy = f" Pass `{name}=None` for no {name}." if name in ("scale", "bias") else ""
        raise ValueError(
            f"Expected `{name}` to have shape {shape} (the feature axes of `x`), got {array.shape}.{remedy}"
        )


def check_where(where: Array | None, shape: tuple[int, ...], name: str = "where") -> None:
    """Raise unless `where` is `None` or boolean and broadcastable to `shape`."""
    if where is None:
        return
    if where.dtype != jnp.bool_:
        raise TypeError(f"Expected `{name}` to be boolean, True where elements count, got {where.dtype}.")
    try:
        fits = jnp.broadcast_shapes(where.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"Expected `{name}` to be broadcastable to the shape of `x`, {shape}, got {where.shape}. "
            "Add axes of size 1 where it does not vary."
        )


def check_epsilon(epsilon: float) -> None:
    """Raise unless `epsilon` is a number in [0, 1): a width passed in its place must not go unseen."""
    if isinstance(epsilon, jax.Array):  # traced: a study may vary it
        return
    if isinstance(epsilon, bool) or not isinstance(epsilon, numbers.Real):
        raise TypeError(f"Expected `epsilon` to be a number, got {epsilon!r}.")
    if not 0 <= epsilon < 1:
        raise ValueError(
            f"Expected `epsilon` to lie in [0, 1), got {epsilon!r}. If this is the number of features: Linen norms "
            "read it off their input."
        )


def check_statistics(running: object, kind: type, remedy: str) -> None:
    """Raise a `TypeError` unless running statistics are of the type that a norm keeps.

    Args:
        running: Running statistics.
        kind: The type.
        remedy: A sentence that says how to convert the others.
    """
    if not isinstance(running, kind):
        raise TypeError(f"Expected `running` to be `{kind.__name__}`, got {type(running).__name__}. {remedy}")


def check_flag(name: str, flag: object) -> None:
    """Raise a `TypeError` unless `flag` is a bool or `None`: a width passed in its place must not mean "yes"."""
    if isinstance(flag, jax.Array):
        raise TypeError(
            f"Expected `{name}` to be True, False or None when the function is traced, got an array of {flag.dtype}. "
            f"Name the argument that sets `{name}` in `static_argnames` of `jax.jit` or `nnx.jit`, and pass a bool."
        )
    if flag is not None and not isinstance(flag, bool | np.bool_):
        raise TypeError(
            f"Expected `{name}` to be True, False or None, got {flag!r}. If this is the number of features: Linen "
            "norms read it off their input."
        )


def check_flags(owner: object, *names: str) -> None:
    """Check attributes of a module with `check_flag`."""
    for name in names:
        check_flag(name, getattr(owner, name))


def chosen(name: str, flag: bool, initializer: T) -> T | None:
    """Return the initializer of a parameter, or `None` where `flag` says that there is none."""
    check_flag(name, flag)
    return initializer if flag else None


def check_float32_reductions(force: bool) -> None:
    """Raise a `ValueError` if `force` is False: statistics are always in float32 or wider."""
    check_flag("force_float32_reductions", force)
    if not force:
        raise ValueError(
            "Expected `force_float32_reductions=True`, got False: statistics are always in float32 or wider. "
            "Leave it out."
        )


def choose_groups(num_groups: int | None, group_size: int | None) -> tuple[int | None, int | None]:
    """Let `group_size` alone be enough where `num_groups` is at its default, 32."""
    return (None, group_size) if group_size is not None and num_groups == 32 else (num_groups, group_size)


def resolve_groups(features: int, num_groups: int | None, group_size: int | None) -> int:
    """Return the number of groups that `num_groups` or `group_size` asks for.

    Raises:
        ValueError: If not exactly one is given, or `features` cannot be split so.
    """
    if (num_groups is None) == (group_size is None):
        raise ValueError(
            f"Expected one of `num_groups` and `group_size`, got num_groups={num_groups} and group_size={group_size}."
        )
    name, given = ("num_groups", num_groups) if group_size is None else ("group_size", group_size)
    if isinstance(given, bool) or not isinstance(given, numbers.Integral):
        raise TypeError(f"Expected `{name}` to be a whole number, got {given!r}.")
    given = int(given)
    if given <= 0 or features % given:
        divisors = [d for d in range(1, features + 1) if features % d == 0]
        raise ValueError(
            f"Expected `{name}` to divide the {features} features of `x`, got {given}. Choose one of {divisors}."
        )
    return given if group_size is None else features // given


def choose_mode(attribute: bool | None, argument: bool | None) -> bool:
    """Return the one given of a module's `use_running_average` and its call's."""
    check_flag("use_running_average", argument)
    check_flag("use_running_average", attribute)
    if (attribute is None) == (argument is None):
        raise ValueError(
            "Expected `use_running_average` in the constructor or in the call, and in one of them only, got "
            f"{attribute} and {argument}. Pass False to train, True to evaluate."
        )
    return bool(argument if attribute is None else attribute)
