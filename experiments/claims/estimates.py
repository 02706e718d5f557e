"""Means over seeds with 95 % intervals, in the words of a sentence."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from normlab.study.analysis.estimates import mean_interval

SIGNED = "{:+.2f}"
"""Format of a difference in percentage points."""


class Interval(NamedTuple):
    """Mean over seeds with its 95 % interval, which is NaN if there are too few seeds."""

    mean: float
    low: float
    high: float
    n: int

    def tells_from(self, value: float) -> bool:
        """Report whether the interval excludes a value."""
        return self.low > value or self.high < value

    def below(self, value: float) -> bool:
        """Report whether all of the interval is below a value; without an interval nothing is."""
        return self.high < value

    def above(self, value: float) -> bool:
        """Report whether all of the interval is above a value; without an interval nothing is."""
        return self.low > value

    @property
    def size(self) -> float:
        """Distance from zero of the end that is farther from it."""
        return max(-self.low, self.high)

    def text(self, form: str) -> str:
        """Format the mean and the interval."""
        if not self.n:
            return "no number"
        known = not math.isnan(self.low)
        within = f"{form.format(self.low)} to {form.format(self.high)}" if known else "no interval"
        return f"{form.format(self.mean)} ({within}, n = {self.n})"


def average(values: ArrayLike) -> Interval:
    """Average over seeds."""
    found = mean_interval([float(v) for v in np.ravel(np.asarray(values))])
    low, high = found.interval or (math.nan, math.nan)
    return Interval(math.nan if found.mean is None else found.mean, low, high, found.n)


def ratio(a: ArrayLike, b: ArrayLike) -> Interval:
    """Average the ratio of paired values over seeds, geometrically."""
    with np.errstate(all="ignore"):
        logs = average(np.log(np.asarray(a, np.float64)) - np.log(np.asarray(b, np.float64)))
        mean, low, high = (float(np.exp(value)) for value in logs[:3])  # infinite where seeds differ by far
    return Interval(mean, low, high, logs.n)


def points(a: ArrayLike, b: ArrayLike) -> Interval:
    """Average the difference of paired errors, a - b, in percentage points."""
    return average(100 * (np.asarray(a, np.float64) - np.asarray(b, np.float64)))


def share(flags: Sequence[bool] | np.ndarray) -> str:
    """Count, as `3 of 5`."""
    return f"{int(np.sum(flags))} of {len(flags)}"
