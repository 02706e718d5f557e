"""Choose norms of a model by path."""

from collections.abc import Callable, Collection, Sequence
from fnmatch import fnmatchcase
from typing import TypeAlias

from normlab.errors import BadInput, nearest
from normlab.expect import refusal
from normlab.tools.sites import Site, Sites

__all__ = ["Where", "select"]

Where: TypeAlias = str | Sequence[str] | Callable[[Site], bool] | None
"""Norms of a model: all, a glob over paths, several of them, or a function of a site."""


def select(sites: Sites, where: Where = None) -> tuple[Site, ...]:
    """Return the norms that are meant, in the order of the model.

    Args:
        sites: Norms of a model.
        where: `None` is all; a glob over paths such as `block_*/norm_0`, where `*` stands for `/`, too; a sequence of
            globs; or a function that returns whether a site is meant.

    Raises:
        BadInput: If a glob matches no norm, or `where` is of another kind.

    Example:
        >>> select(Sites([]), None)
        ()
    """
    if where is None:
        return tuple(sites)
    if callable(where):
        return tuple(site for site in sites if where(site))
    globs = [where] if isinstance(where, str) else where
    if not isinstance(globs, Collection) or not all(isinstance(glob, str) for glob in globs):
        raise refusal("`where` to be a glob, a list of globs, or a function of a site", where, "Write one of them.")
    for glob in globs:
        if not any(fnmatchcase(path, glob) for path in sites.by_path):
            raise _no_norm(sites, glob)
    return tuple(site for site in sites if any(fnmatchcase(site.path, glob) for glob in globs))


def _no_norm(sites: Sites, glob: str) -> BadInput:
    """Return the error for a glob that matches no norm."""
    if glob in sites.modules:
        after = [site.path for site in sites if site.before.path == glob and site.before.kind == "linear"]
        if after:
            return BadInput(
                f"Expected the path of a norm, got `{glob}`. `{glob}` is no norm; its norm is `{after[0]}`."
            )
        return BadInput(
            f"Expected the path of a norm, got `{glob}`. `{glob}` is no norm. {nearest(glob, sites.by_path)}"
        )
    return BadInput(f"Expected a glob that matches the path of a norm, got `{glob}`. {nearest(glob, sites.by_path)}")
