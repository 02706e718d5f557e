"""Advice on rounding folded weights to fewer bits."""

import numpy as np

from normlab.tools.folding.affine import Affine, Numbers

__all__ = ["WHEN", "notes_on"]

_SPREAD = 10
_FLOAT16 = 65504

WHEN = (
    "Estimate running statistics (precise statistics) before a fold, not after it.",
    "Fold in float32, and round the folded weights to bfloat16 or int8 afterwards.",
    "Quantization-aware training: freeze the norms first, then fold.",
)
"""Advice that holds for every fold."""


def notes_on(affine: Affine, kernel: Numbers) -> tuple[str, ...]:
    """Return what rounding a folded kernel costs.

    Args:
        affine: The map that was folded.
        kernel: The kernel after the fold.
    """
    notes: list[str] = []
    sizes = np.abs(affine.factor)
    middle, largest = float(np.median(sizes)), float(sizes.max())
    if largest > _SPREAD * middle:
        lost = f"log2({largest / middle:.3g}) = {np.log2(largest / middle):.1f} bits" if middle else "all bits"
        notes.append(f"int8 with one scale for the tensor loses {lost}; take a scale for each output channel.")
    if (most := float(np.abs(kernel).max())) > _FLOAT16:
        notes.append(f"float16 has no number above {_FLOAT16}, and the kernel reaches {most:.6g}; take bfloat16.")
    return tuple(notes)
