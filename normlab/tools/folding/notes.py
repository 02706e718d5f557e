"""Advice on rounding folded weights to fewer bits."""

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from normlab.tools.folding.affine import Affine, Numbers

__all__ = ["ADVICE", "notes_on"]

_SPREAD = 10
_FLOAT16 = 65504

ADVICE = (
    "Estimate running statistics (precise statistics) before a fold, not after it.",
    "Fold in float32, and round the folded weights to bfloat16 or int8 afterwards.",
    "Quantization-aware training: freeze the norms first, then fold.",
)
"""Advice that holds for every fold."""


def notes_on(layer: str, affine: Affine, kernel: Numbers, dtype: DTypeLike) -> tuple[str, ...]:
    """Return what rounding a folded kernel costs.

    Args:
        layer: Path of the layer.
        affine: The map that was folded.
        kernel: The kernel after the fold.
        dtype: Dtype in which it is kept.
    """
    notes: list[str] = []
    sizes = np.abs(affine.factor)
    middle, largest = float(np.median(sizes)), float(sizes.max())
    if largest > _SPREAD * middle:
        lost = f"log2({largest / middle:.3g}) = {np.log2(largest / middle):.1f} bits" if middle else "all bits"
        notes.append(f"int8 with one scale for the tensor loses {lost}; take a scale for each output channel.")
    if (most := float(np.abs(kernel).max())) > _FLOAT16:
        notes.append(f"float16 has no number above {_FLOAT16}, and the kernel reaches {most:.6g}; take bfloat16.")
    if jnp.dtype(dtype).itemsize < 4:
        notes.append(f"The kernel of `{layer}` is {jnp.dtype(dtype)} already; fold in float32, and round afterwards.")
    return tuple(notes)
