"""Tools for a model one already has: find its norms, estimate, adapt, fold, convert, freeze, import and export."""

from normlab.tools import averaging, export, replicas
from normlab.tools.adapt import Adaptation, Adapted, Adapter, Record, adabn, blended, prediction_time, tent
from normlab.tools.capture import Capture, Captured
from normlab.tools.checkpoint import Restored, restore
from normlab.tools.convert import Converted, convert, convert_state
from normlab.tools.fold import Folded, FoldError, FoldReport, FoldRow, Shift, fold
from normlab.tools.freeze import freeze
from normlab.tools.haiku_state import from_haiku, to_haiku
from normlab.tools.keras_state import from_keras, to_keras
from normlab.tools.masks import decay_mask, labels, nnx_filter, norm_parameters
from normlab.tools.moments import Estimator, Form, Moments, SiteMoments
from normlab.tools.precise import Precise, collect, cumulative, precise, reset
from normlab.tools.select import Where, select
from normlab.tools.sites import Site, Sites, Source, sites
from normlab.tools.torch_state import Imported, from_torch, to_torch

__all__ = [
    "Adaptation",
    "Adapted",
    "Adapter",
    "Capture",
    "Captured",
    "Converted",
    "Estimator",
    "FoldError",
    "FoldReport",
    "FoldRow",
    "Folded",
    "Form",
    "Imported",
    "Moments",
    "Precise",
    "Record",
    "Restored",
    "Shift",
    "Site",
    "SiteMoments",
    "Sites",
    "Source",
    "Where",
    "adabn",
    "blended",
    "collect",
    "convert",
    "convert_state",
    "cumulative",
    "decay_mask",
    "fold",
    "freeze",
    "from_haiku",
    "from_keras",
    "from_torch",
    "labels",
    "nnx_filter",
    "norm_parameters",
    "precise",
    "prediction_time",
    "reset",
    "restore",
    "select",
    "sites",
    "tent",
    "to_haiku",
    "to_keras",
    "to_torch",
]
