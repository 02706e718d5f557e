"""Tools for a model one already has: find its norms, estimate, fold, convert, freeze, import and export."""

from normlab.tools.capture import Capture, Captured
from normlab.tools.haiku_state import from_haiku, to_haiku
from normlab.tools.keras_state import from_keras, to_keras
from normlab.tools.select import Where, select
from normlab.tools.sites import Site, Sites, Source, sites
from normlab.tools.torch_state import Imported, from_torch, to_torch

__all__ = [
    "Capture",
    "Captured",
    "Imported",
    "Site",
    "Sites",
    "Source",
    "Where",
    "from_haiku",
    "from_keras",
    "from_torch",
    "select",
    "sites",
    "to_haiku",
    "to_keras",
    "to_torch",
]
