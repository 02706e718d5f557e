"""Normalization layers for JAX and Flax, and the comparison that tells which one to use.

`normlab.functional` holds the definitions, `normlab.linen` and `normlab.nnx` the modules, `normlab.norms` the registry,
`normlab.study` the comparisons and `normlab.river` models that learn from streams. Each is imported when first used,
so that the command line starts quickly.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from normlab import functional as functional
    from normlab import linen as linen
    from normlab import nnx as nnx
    from normlab import norms as norms
    from normlab import river as river
    from normlab import study as study

__version__ = "0.1.0"

_SUBMODULES = ("functional", "linen", "nnx", "norms", "river", "study")


def __getattr__(name: str) -> ModuleType:
    if name in _SUBMODULES:
        return importlib.import_module(f"normlab.{name}")
    raise AttributeError(f"module 'normlab' has no attribute {name!r}")
