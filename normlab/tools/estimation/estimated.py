"""Norms whose running statistics follow from moments of batches, and how each keeps them."""

from collections.abc import Mapping

from normlab.errors import BadInput
from normlab.tools.moments import Form
from normlab.tools.select import Where, select
from normlab.tools.sites import Site, Sites

__all__ = ["all_fixed", "chosen", "estimated", "form", "is_moments", "main"]

OF_INPUT = ("batch", "batch_renorm", "continual", "mean_only_batch", "batch_channel", "switchable", "representative")
"""Norms that keep the mean, and perhaps the variance, of one array; see `normlab.tools.capture.counted`."""

KINDS = (*OF_INPUT, "evonorm_b0", "evonorm_b1", "evonorm_b2", "domain_batch", "whiten", "power", "mabn")
"""Norms whose running statistics follow from moments of batches."""

_MAIN: Mapping[str, str] = {
    **dict.fromkeys(("evonorm_b0", "evonorm_b1", "evonorm_b2"), "var"),
    "power": "phi",
    "mabn": "run",
}
_KEPT = ("mean", "var", "std", "phi", "run", "matrix", "step")

_STREAMS: Mapping[str, str] = {
    "online": "whose statistics follow a stream, one example after another",
    "streaming": "whose statistics are memories of a stream, one call after another",
}


def estimated(site: Site) -> bool:
    """Return whether a norm keeps running statistics that follow from moments of batches."""
    return site.kind in KINDS and _MAIN.get(site.kind, "mean") in site.variables


def is_moments(site: Site) -> bool:
    """Return whether a norm keeps running moments of one array, and nothing else."""
    return site.kind in OF_INPUT and "mean" in site.variables


def main(site: Site) -> str:
    """Return the path of the running statistic that has the shape of the moments."""
    return site.variables[_MAIN.get(site.kind, "mean")]


def chosen(found: Sites, where: Where) -> tuple[Site, ...]:
    """Return the norms whose statistics are to be estimated; without `where`, those that learn them in training.

    Args:
        found: Norms of a model in training.
        where: Which of them; see `normlab.tools.select`.

    Raises:
        BadInput: If the model has no such norm, or `where` names a norm of another kind.
    """
    norms = [site for site in found if site.kind != "weight"]
    running = [site for site in norms if estimated(site)]
    if not norms:
        raise BadInput("Expected a model with running statistics, found no norms.")
    if not running:
        raise _nothing(norms)
    if where is None:
        return tuple(site for site in running if not _is_fixed(site))
    for site in (meant := select(found, where)):
        if not estimated(site):
            raise BadInput(
                f"Expected norms with running statistics of batches in `where`, got `{site.path}` ({site.kind}), "
                f"{_STREAMS.get(site.kind, 'which keeps none')}. Take norms such as `{running[0].path}`."
            )
    return meant


def _nothing(norms: list[Site]) -> BadInput:
    """Return the error for a model without a norm that can be estimated."""
    kinds = ", ".join(site.kind for site in norms)
    for site in norms:
        if site.kind in _STREAMS:
            return BadInput(
                f"Expected a model with running statistics of batches, found none among its {len(norms)} norms "
                f"({kinds}), such as `{site.path}`, {_STREAMS[site.kind]}. Train on for a while to renew them."
            )
    return BadInput(f"Expected a model with running statistics, found none among its {len(norms)} norms ({kinds}).")


def all_fixed(found: Sites) -> BadInput:
    """Return the error for a model none of whose norms learns its statistics."""
    paths = [site.path for site in found if estimated(site)]
    return BadInput(
        f"Expected a norm that learns its statistics in training, got {len(paths)} with fixed ones, such as "
        f"`{paths[0]}`. Give `train={{...}}`, the keywords of a call in training, or name norms in `where=`."
    )


def _is_fixed(site: Site) -> bool:
    return bool(site.running or getattr(site.module, "frozen", False))


def form(site: Site) -> Form:
    """Return how a norm keeps its statistics.

    The `step` of moving average batch norm is no part: it counts for buffers of batches, which stay as they are.
    """
    kept = {name: path for name, path in site.variables.items() if name in _KEPT}
    if site.kind == "mabn":
        kept.pop("step", None)
    rooted = "matrix" in kept and site.module.average == "matrix"
    return Form(
        kept,
        epsilon=float(site.module.epsilon) if kept.keys() & {"std", "matrix"} else 0.0,
        unbiased=bool(getattr(site.module, "unbiased_running_var", False)),
        steps=int(site.module.steps) if rooted else 0,
        exact=bool(site.module.exact) if rooted else False,
    )
