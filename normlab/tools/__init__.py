"""Tools for a trained model: find its norms, capture their statistics, estimate them again, fold them away."""

from normlab.tools.capture import Capture, Captured
from normlab.tools.fold import Folded, FoldError, FoldReport, FoldRow, Shift, fold
from normlab.tools.select import Where, select
from normlab.tools.sites import Site, Sites, Source, sites

__all__ = [
    "Capture",
    "Captured",
    "FoldError",
    "FoldReport",
    "FoldRow",
    "Folded",
    "Shift",
    "Site",
    "Sites",
    "Source",
    "Where",
    "fold",
    "select",
    "sites",
]
