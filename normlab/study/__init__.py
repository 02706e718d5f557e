"""Compare norms: a comparison becomes a plan, the plan runs, the runs become records, the records a report.

Importing this package imports neither JAX nor matplotlib; modules that need them are imported on first use.
"""

import importlib
from typing import TYPE_CHECKING

from normlab.expect import Kind
from normlab.extras import require
from normlab.study.design.budgets import TIERS, Tier, tiers
from normlab.study.design.comparison import Comparison, Settings
from normlab.study.design.factors import Curve, Factor, batch_size_curves
from normlab.study.design.problem import Metric, Problem, Series
from normlab.study.design.records import Configuration, Record, Run

if TYPE_CHECKING:
    from normlab.study.api import Result, run
    from normlab.study.data.dataset import Data
    from normlab.study.data.options import DATA_OPTIONS, chosen
    from normlab.study.design.options import FILE, TEXT, WHOLE, YES_NO, Option
    from normlab.study.problems.streaming import streaming
    from normlab.study.problems.supervised import supervised
    from normlab.study.training.objectives import MEAN_SQUARED_ERROR, MISCLASSIFICATION, Error

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
    "Configuration",
    "Run",
    "Record",
]

_LATER = {
    "run": "api",
    "Result": "api",
    "supervised": "problems.supervised",
    "streaming": "problems.streaming",
    "Error": "training.objectives",
    "MISCLASSIFICATION": "training.objectives",
    "MEAN_SQUARED_ERROR": "training.objectives",
    "Data": "data.dataset",
    "chosen": "data.options",
    "DATA_OPTIONS": "data.options",
    "Option": "design.options",
    "FILE": "design.options",
    "TEXT": "design.options",
    "WHOLE": "design.options",
    "YES_NO": "design.options",
}
"""Modules of the names that are imported on first use, because they import more than a comparison's file needs."""


def __getattr__(name: str) -> object:
    if name in _LATER:
        if name in ("run", "Result"):
            require("study")
        return getattr(importlib.import_module(f"normlab.study.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
