"""Parts that all stages share.

A stage is a module of this package with a function

    def rows(clock: Clock, *, tiny: bool, skip: Collection[str]) -> Iterator[Row]

and an entry in `STAGES` of `benchmarks/accelerator/__main__.py`. The function yields a row as soon as the row is
measured, most valuable rows first. Each stage runs in a process of its own, which may import JAX or PyTorch freely,
owns the memory of the device, and may crash. The stage is stopped after the row during which `clock` ran out, and
killed soon after; a stage asks `clock.left()` before a row that takes long. `tiny` asks for shapes that a CPU manages
in seconds, and `skip` names contenders to leave out. Each row is on disk before the next one starts. The page has a
table for each kind of row without a section of its own.

A stage that knows how much it has to do yields a `plan` first. The harness then reports how much was left at the end,
however the stage ended.
"""

import time
from collections.abc import Collection, Iterator
from typing import Protocol

__all__ = ["PLAN", "Clock", "Json", "Refused", "Row", "Stage", "failed", "plan"]

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
"""Values of JSON."""

Row = dict[str, Json]
"""One measurement: `kind`, which names the table, and the columns. The harness adds `stage`."""

PLAN = "plan"
"""Kind of the row of a plan."""


class Clock:
    """Time of a stage.

    Args:
        seconds: Time that the stage has from now on.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds left, negative when the time is over."""
        return self._end - time.monotonic()


class Stage(Protocol):
    """Module of a stage."""

    def rows(self, clock: Clock, *, tiny: bool, skip: Collection[str]) -> Iterator[Row]:
        """Measure.

        Args:
            clock: Time that the stage has.
            tiny: Whether shapes are such that a CPU manages the stage in seconds.
            skip: Contenders to leave out.

        Yields:
            Each row, as soon as it is measured.

        Raises:
            Refused: If nothing can be measured here, not by other stages either.
        """
        ...


class Refused(Exception):
    """Nothing can be measured here; the message is for the user."""


def plan(count: int, unit: str, *columns: str) -> Row:
    """Return the row of a plan.

    Args:
        count: Number of units that the stage measures if time allows.
        unit: Noun in the plural, such as `checks`.
        columns: Columns whose values together name a unit in the rows to come.
    """
    return {"kind": PLAN, "count": count, "unit": unit, "columns": list(columns)}


def failed(error: BaseException) -> Row:
    """Return the columns of a measurement that failed."""
    return {"error": f"{type(error).__name__}: {error}"[:500]}
