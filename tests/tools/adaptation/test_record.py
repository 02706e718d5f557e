"""Predictions have collapsed where nearly all are one class, three batches in a row."""

import math

import pytest

from normlab.tools import Record
from normlab.tools.adaptation.record import has_collapsed


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([], False),
        ([0.91, 0.95], False),
        ([0.91, 0.95, 1.0], True),
        ([0.9, 0.9, 0.9], False),
        ([1.0, 1.0, 0.5, 1.0, 1.0], False),
        ([0.1, 1.0, 1.0, 1.0, 0.1], True),
        ([1.0, 1.0, math.nan, 1.0], False),
    ],
)
def test_three_batches_in_a_row(shares: list[float], expected: bool) -> None:
    curve = [Record(step, 0.1, 0.0, 8, 0.0, share) for step, share in enumerate(shares)]
    assert has_collapsed(curve) is expected
