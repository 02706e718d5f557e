"""Tuning: the grid of learning rates, and the choice from it."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from normlab.study.design.records import TUNE, Record


@dataclass(frozen=True)
class TunedRate:
    """The learning rate that tuning chose.

    Attributes:
        learning_rate: The chosen learning rate.
        edge: Whether it is an end of the grid, beyond which the optimum may lie.
    """

    learning_rate: float
    edge: bool


@dataclass(frozen=True)
class Grid:
    """The learning rates of a group of configurations.

    Attributes:
        rates: Learning rates in ascending order.
        final: Whether the grid will grow no further.
    """

    rates: tuple[float, ...]
    final: bool


def coarse(grid: Sequence[float]) -> tuple[float, ...]:
    """Select the ends and the middle of a grid, over which a norm is tuned first under a time budget.

    >>> coarse((0.003, 0.01, 0.03, 0.1, 0.3))
    (0.003, 0.03, 0.3)
    """
    return tuple(grid) if len(grid) <= 3 else (grid[0], grid[len(grid) // 2], grid[-1])


def further(grid: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Continue the pattern of a grid by two points below and two points above.

    >>> further((0.01, 0.03, 0.1, 0.3))
    ((0.001, 0.003), (1.0, 3.0))
    >>> further((0.1,))
    ((), ())
    """
    if len(grid) < 2:
        return (), ()
    period = min(3, len(grid))
    step_down, step_up = grid[period - 1] / grid[0], grid[-1] / grid[-period]
    if period == 2:
        return _rounded(grid[0] / step_down**2, grid[0] / step_down), _rounded(grid[1] * step_up, grid[1] * step_up**2)
    return _rounded(*(rate / step_down for rate in grid[:2])), _rounded(*(rate * step_up for rate in grid[-2:]))


def choose_learning_rate(records: Sequence[Record]) -> TunedRate | None:
    """Choose the learning rate with the least median validation error over seeds.

    A failed run counts as worse than any error; ties, all-failed included, go to the smaller learning rate.

    Args:
        records: The tuning records of one configuration, in any order; records of other stages are ignored.

    Returns:
        The choice, or `None` where nothing was tuned or the configuration is `invalid`.
    """
    errors: dict[float, list[float]] = {}
    for record in records:
        if record.run.stage == TUNE and record.status != "invalid":
            errors.setdefault(record.run.learning_rate, []).append(validation_error(record))
    if not errors:
        return None
    best = min(errors, key=lambda rate: (statistics.median(errors[rate]), rate))
    return TunedRate(best, edge=best in (min(errors), max(errors)))


def validation_error(record: Record) -> float:
    """Return the validation error of a run, infinite where the run failed."""
    value = record.metrics.get("validation") if record.status == "ok" else None
    return math.inf if value is None else value


def _rounded(*rates: float) -> tuple[float, ...]:
    """Round to six digits, to remove binary rounding errors."""
    return tuple(float(f"{rate:.6g}") for rate in rates)
