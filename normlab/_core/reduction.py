"""A reduction: what statistics are taken over."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from normlab._core.checks import AxisName, one_element_allowed
from normlab._core.collectives import Devices
from normlab.errors import StatisticsError


class Over(NamedTuple):
    """A reduction: the elements that share a statistic. Hashable, so that it can be a static argument.

    Attributes:
        axis: Reduced axes of the array, non-negative.
        inner: Those of them along which scale and bias do not vary.
        devices: Whose elements count, too; `None` for this device alone.
        pool: Neighbours on the last axis that share a statistic, which is repeated for each of them.
        center: Whether the mean is subtracted.
    """

    axis: tuple[int, ...]
    inner: tuple[int, ...] = ()
    devices: Devices | None = None
    pool: int = 1
    center: bool = True


def elements(shape: Sequence[int], over: Over) -> int:
    """Return how many elements, devices included, one statistic covers if all count."""
    return math.prod(shape[a] for a in over.axis) * over.pool * (over.devices.size if over.devices else 1)


def check_more_than_one(shape: Sequence[int], over: Over, remedy: str) -> None:
    """Raise a `StatisticsError` where statistics would be over a single element and `one_element` is not in force.

    Args:
        shape: Of `x`.
        over: What statistics are taken over.
        remedy: What else to do, a sentence without its end.
    """
    if elements(shape, over) == 1 and not one_element_allowed():
        groups = f" in groups of {over.pool} features" if over.pool > 1 else ""
        raise StatisticsError(
            f"Expected statistics over more than one element, got one: `x` of shape {tuple(shape)} is reduced over "
            f"axes {over.axis}{groups}. {remedy}; or say that it is meant: `with normlab.functional.one_element():`."
        )


def over(
    axis: tuple[int, ...],
    *,
    affine: tuple[int, ...] = (),
    axis_name: AxisName | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    pool: int = 1,
    center: bool = True,
) -> Over:
    """Describe a reduction over `axis` and `axis_name`; scale and bias vary along the axes in `affine`."""
    inner = tuple(a for a in axis if a not in affine)
    return Over(axis, inner if affine else (), Devices.of(axis_name, axis_index_groups), pool, center)
