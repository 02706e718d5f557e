"""Tools for a trained model: estimate its running statistics again, exchange numbers with other libraries."""

from normlab.tools.haiku_state import from_haiku, to_haiku
from normlab.tools.keras_state import from_keras, to_keras
from normlab.tools.torch_state import Imported, from_torch, to_torch

__all__ = ["Imported", "from_haiku", "from_keras", "from_torch", "to_haiku", "to_keras", "to_torch"]
