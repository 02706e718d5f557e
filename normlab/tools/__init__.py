"""Tools for a trained model: find, convert and freeze its norms, capture and estimate their statistics."""

from normlab.tools.capture import Capture, Captured
from normlab.tools.convert import Converted, convert, convert_state
from normlab.tools.freeze import freeze
from normlab.tools.masks import decay_mask, labels, nnx_filter, norm_parameters
from normlab.tools.select import Where, select
from normlab.tools.sites import Site, Sites, Source, sites

__all__ = [
    "Capture",
    "Captured",
    "Converted",
    "Site",
    "Sites",
    "Source",
    "Where",
    "convert",
    "convert_state",
    "decay_mask",
    "freeze",
    "labels",
    "nnx_filter",
    "norm_parameters",
    "select",
    "sites",
]
