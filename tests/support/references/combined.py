"""References in float64 NumPy, as `tests.support.reference`, of the combined norms."""

from collections.abc import Callable

from tests.support.reference import Result

NORMS: dict[str, Callable[..., Result]] = {}
