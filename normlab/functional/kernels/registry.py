"""Which norms of kernels exist, by name."""

from dataclasses import fields, replace
from typing import TypeVar

from normlab.functional.kernels.kernel_norm import KernelNorm
from normlab.notation import check_options, parse, unknown

Kind = TypeVar("Kind", bound=type[KernelNorm])

_KINDS: dict[str, type[KernelNorm]] = {}


def register(kind: Kind) -> Kind:
    """Add a kind of norm of kernels to the registry; can decorate a class.

    Args:
        kind: A subclass of `KernelNorm`, a frozen dataclass. Its `name` must be new.

    Returns:
        `kind`.

    Raises:
        ValueError: If the name is taken or malformed.
    """
    if not kind.name.isidentifier():
        raise ValueError(f"Expected a norm's name to be an identifier, got {kind.name!r}. Use letters, digits and '_'.")
    if kind.name in _KINDS:
        raise ValueError(f"Expected a new norm name, got {kind.name!r}, which is registered. Choose another.")
    _KINDS[kind.name] = kind
    return kind


def unregister(name: str) -> None:
    """Remove a kind of norm of kernels from the registry."""
    del _KINDS[_find(name).name]


def names() -> tuple[str, ...]:
    """Return the names of norms of kernels, in order of registration."""
    return tuple(_KINDS)


def kinds() -> tuple[type[KernelNorm], ...]:
    """Return the classes of norms of kernels, in order of registration."""
    return tuple(_KINDS.values())


def get(norm: str | KernelNorm, **options: object) -> KernelNorm:
    """Return a norm of kernels.

    Args:
        norm: A name, `weight_norm`; a string with options, `standardize:unbiased=True`; or a norm.
        **options: Options, over those of the string.

    Raises:
        UnknownNorm: If no norm has this name; the message names the nearest.
        ValueError: If the string is malformed, or an option is unknown or does not fit.

    Example:
        >>> get("standardize:unbiased=True,epsilon_outside=True")
        KernelNorm('standardize:epsilon_outside=True,unbiased=True')
    """
    if isinstance(norm, KernelNorm):
        check_options(type(norm).__name__, norm.name, options, [field.name for field in fields(norm)])
        return replace(norm, **options)
    name, given = parse(norm)
    kind = _find(name)
    given |= options
    check_options(kind.__name__, name, given, [field.name for field in fields(kind)])
    return kind(**given)


def stateless(norm: str | KernelNorm) -> KernelNorm:
    """Return a norm of kernels that has no state.

    Args:
        norm: See `get`.

    Raises:
        ValueError: If the norm has state.
    """
    norm = get(norm)
    if norm.stateful:
        raise ValueError(f"Expected a norm of kernels without state, got {str(norm)!r}. Use `Reparametrized` for it.")
    return norm


def _find(name: str) -> type[KernelNorm]:
    if name not in _KINDS:
        raise unknown(name, "a norm of kernels", _KINDS)
    return _KINDS[name]
