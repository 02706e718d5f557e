"""Modules that stand for others, and norms whose place another norm takes when a model is called."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from flax import linen as nn

__all__ = ["Path", "Standing", "is_replaced", "placed", "replacing"]

Path = tuple[str, ...]

_replaced: ContextVar[frozenset[Path]] = ContextVar("replaced", default=frozenset())


class Standing(nn.Module):
    """A module that stands for another: it is called as the other is, and has its variables."""

    @property
    def original(self) -> nn.Module:
        """The other module."""
        raise NotImplementedError


def is_replaced(path: Path) -> bool:
    """Return whether the norm at a path will not run: another takes its place."""
    return path in _replaced.get()


@contextmanager
def replacing(paths: Iterable[Path]) -> Iterator[None]:
    """Announce that other norms take the places of those at some paths."""
    token = _replaced.set(_replaced.get() | frozenset(paths))
    try:
        yield
    finally:
        _replaced.reset(token)


@contextmanager
def placed(path: Path) -> Iterator[None]:
    """Announce that the norm that now runs at a path is the one that took the place."""
    token = _replaced.set(_replaced.get() - {path})
    try:
        yield
    finally:
        _replaced.reset(token)
