"""Tools for a trained model: find its norms, capture their statistics, estimate its running statistics again."""

from normlab.tools import averaging, replicas
from normlab.tools.capture import Capture, Captured
from normlab.tools.moments import Estimator, Form, Moments, SiteMoments
from normlab.tools.precise import Precise, collect, cumulative, precise, reset
from normlab.tools.select import Where, select
from normlab.tools.sites import Site, Sites, Source, sites

__all__ = [
    "Capture",
    "Captured",
    "Estimator",
    "Form",
    "Moments",
    "Precise",
    "Site",
    "SiteMoments",
    "Sites",
    "Source",
    "Where",
    "collect",
    "cumulative",
    "precise",
    "reset",
    "select",
    "sites",
]
