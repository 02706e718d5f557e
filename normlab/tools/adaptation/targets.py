"""Which norms of a model adapt."""

from normlab import norms
from normlab.errors import BadInput
from normlab.tools.estimation.estimated import is_moments
from normlab.tools.select import Where, select
from normlab.tools.sites import Site, Sites

__all__ = ["adapting", "is_batch_norm"]


def adapting(found: Sites, where: Where, *, affine: bool) -> tuple[Site, ...]:
    """Return the norms that adapt: those that are named, or all batch norms that are not frozen.

    Args:
        found: Norms of a model at evaluation.
        where: Which of them; see `normlab.tools.select`.
        affine: Whether it is their scale and bias that adapt, so that other norms may be named.

    Raises:
        BadInput: If there are none, or one that is meant cannot adapt.
    """
    known = [site for site in found if site.kind not in ("weight", "none")]
    if where is None:
        meant = tuple(site for site in known if is_batch_norm(site) and not _is_frozen(site))
        if not meant:
            raise _none(known)
    else:
        meant = tuple(site for site in select(found, where) if site in known)
    if not meant:
        raise BadInput("Expected `where` to name norms, got none. Name one by its path, or leave `where` out.")
    for site in meant:
        if is_batch_norm(site):
            _check_evaluates(site)
        elif not affine:
            raise BadInput(
                f"Expected batch norms in `where`, got `{site.path}` ({site.kind}), which keeps no statistics. Leave "
                "it out, or take `tent`, which adapts its scale and bias."
            )
    return meant


def is_batch_norm(site: Site) -> bool:
    """Return whether a norm keeps running moments of its input, and is called as a module."""
    return is_moments(site) and bool(site.shape)


def _is_frozen(site: Site) -> bool:
    return bool(getattr(site.module, "frozen", False))


def _none(known: list[Site]) -> BadInput:
    """Return the error for a model without batch norms that may adapt."""
    kinds = list(dict.fromkeys(_title(site) for site in known))
    if any(map(is_batch_norm, known)):
        return BadInput("Expected batch norms to adapt, found frozen ones alone. Name them in `where=`.")
    if not kinds:
        return BadInput("Expected batch norms to adapt, found no norms. Take a model with batch norms.")
    return BadInput(
        f"Expected batch norms to adapt, found {' and '.join(kinds)}. Name them in `where=`; only their scale and bias "
        "can adapt."
    )


def _title(site: Site) -> str:
    known = site.kind in norms.names()
    return f"{norms.get(site.kind).title if known else site.kind}s"


def _check_evaluates(site: Site) -> None:
    """Refuse a norm that normalizes by the batch at evaluation.

    Raises:
        BadInput: If it does.
    """
    if site.running is False or getattr(site.module, "statistics", "auto") == "batch":
        raise BadInput(
            f"Expected norms that evaluate by running statistics, got `{site.path}`, which normalizes by the batch. "
            "Give `evaluate={...}`, the keywords of a call at evaluation, or leave the norm out by `where=`."
        )
