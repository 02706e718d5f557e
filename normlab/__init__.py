"""Normalization layers for JAX and Flax, and comparisons that show which one to use.

`normlab.functional` contains the definitions, `normlab.linen` and `normlab.nnx` the modules, `normlab.norms` the
registry, `normlab.kernels` norms of weights, `normlab.study` the comparisons and `normlab.river` models that learn from
streams. Each is imported on first use, so that the command line starts quickly.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from normlab import functional as functional
    from normlab import kernels as kernels
    from normlab import linen as linen
    from normlab import nnx as nnx
    from normlab import norms as norms
    from normlab import river as river
    from normlab import study as study

__version__ = "0.1.0"

__all__ = ["functional", "kernels", "linen", "nnx", "norms", "river", "study"]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"normlab.{name}")
    raise AttributeError(f"module 'normlab' has no attribute {name!r}")
