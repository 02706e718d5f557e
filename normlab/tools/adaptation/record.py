"""A record of each batch that a model adapts to."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Record", "has_collapsed"]

MOST, RECORDS = 0.9, 3


@dataclass(frozen=True)
class Record:
    """One batch that a model adapted to.

    Attributes:
        step: Number of the batch, from 0 on.
        entropy: Mean entropy of the predictions that were returned, in nats; NaN where the output is no array of
            logits `[batch, ..., classes]`.
        shift: Distance of the batch's statistics from those of the model as it was given, in standard deviations of
            the latter, at the feature that is furthest.
        examples: Examples in the batch.
        seconds: Seconds that the batch took, compilation included.
        share: Share of the class that was predicted most often; NaN as the entropy, and for a single prediction.
    """

    step: int
    entropy: float
    shift: float
    examples: int
    seconds: float
    share: float


def has_collapsed(curve: Sequence[Record]) -> bool:
    """Return whether nearly all predictions were one class in three batches in a row."""
    run = 0
    for record in curve:
        run = run + 1 if record.share > MOST else 0
        if run == RECORDS:
            return True
    return False
