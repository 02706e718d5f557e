"""Tools for a trained model: find its norms, capture their statistics, estimate its running statistics again."""

from normlab.tools.capture import Capture, Captured
from normlab.tools.select import Where, select
from normlab.tools.sites import Site, Sites, Source, sites

__all__ = ["Capture", "Captured", "Site", "Sites", "Source", "Where", "select", "sites"]
