"""Comparing norms: a comparison becomes a plan, the plan runs, the runs become records, the records a report.

Importing this package imports neither JAX nor matplotlib; the modules that need them are imported where they are used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from normlab.study.config import Cell, Comparison, Curve, Factor, Metric, Problem, Record, Run, Series, Settings, Tier
from normlab.study.extras import require

if TYPE_CHECKING:
    from normlab.study.arguments import FILE, TEXT, WHOLE, YES_NO, Option
    from normlab.study.data import Data
    from normlab.study.defaults import TIERS, batch_size_curves, tiers
    from normlab.study.expect import Kind
    from normlab.study.problems import MEAN_SQUARED_ERROR, MISCLASSIFICATION, Error, supervised
    from normlab.study.result import Result, run
    from normlab.study.sources import DATA_OPTIONS, chosen
    from normlab.study.stream_problems import streaming

__all__ = [
    "Comparison",
    "Curve",
    "Factor",
    "Metric",
    "Problem",
    "Series",
    "Tier",
    "Option",
    "Kind",
    "FILE",
    "TEXT",
    "WHOLE",
    "YES_NO",
    "supervised",
    "streaming",
    "Data",
    "chosen",
    "DATA_OPTIONS",
    "Error",
    "MISCLASSIFICATION",
    "MEAN_SQUARED_ERROR",
    "batch_size_curves",
    "tiers",
    "TIERS",
    "run",
    "Result",
    "Settings",
    "Cell",
    "Run",
    "Record",
]

_LATER = {
    "run": "result",
    "Result": "result",
    "supervised": "problems",
    "streaming": "stream_problems",
    "Error": "problems",
    "MISCLASSIFICATION": "problems",
    "MEAN_SQUARED_ERROR": "problems",
    "Data": "data",
    "chosen": "sources",
    "DATA_OPTIONS": "sources",
    "Option": "arguments",
    "Kind": "expect",
    "FILE": "arguments",
    "TEXT": "arguments",
    "WHOLE": "arguments",
    "YES_NO": "arguments",
    "batch_size_curves": "defaults",
    "tiers": "defaults",
    "TIERS": "defaults",
}
"""Names whose modules import more than a comparison's file needs."""


def __getattr__(name: str) -> Any:
    if name in _LATER:
        if name in ("run", "Result"):
            require("study")
        return getattr(importlib.import_module(f"normlab.study.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
