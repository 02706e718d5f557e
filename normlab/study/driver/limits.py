"""How long things may take: a run until its worker is stopped, and what is checked before the first run."""

import math
import signal
import statistics
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from normlab.study.design.plan import Plan
from normlab.study.design.records import RETRIED, Configuration, Record

TIMES = 10.0
"""A run may take this many times as long as the median run of its column, compiling included."""
LEAST = 600.0
"""It may always take so many seconds."""
UNKNOWN = 24 * 3600.0
"""Seconds for a run where none of its column has ended yet, so that nothing is known of how long they take."""


class RunLimit:
    """Seconds that a run of a configuration may take: as given, else by the runs of its column that have ended."""

    def __init__(self, plan: Plan, given: float | None = None) -> None:
        """Know nothing but what was given."""
        self._given = given
        self._column = {configuration: number for number, group in enumerate(plan.groups) for configuration in group}
        self._seconds: dict[int, list[float]] = {}

    def add(self, record: Record) -> None:
        """Take note of a run that went all the way."""
        if record.status not in (*RETRIED, "invalid") and "run" in record.cost:
            seconds = record.cost["run"] + record.cost.get("compile", 0.0)
            self._seconds.setdefault(self._column[record.run.configuration], []).append(seconds)

    def __call__(self, configuration: Configuration) -> float:
        """Give the limit of a configuration's next run."""
        if self._given is not None:
            return self._given
        ended = self._seconds.get(self._column[configuration])
        return max(LEAST, TIMES * statistics.median(ended)) if ended else UNKNOWN


class OutOfTime(BaseException):
    """Time is over. No `Exception`, so that no model's code that is interrupted takes it for one of its own."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Interrupt what takes longer, in the main thread of a system that has such a clock; elsewhere there is no limit.

    Raises:
        OutOfTime: After so many seconds.
    """

    def ring(number: int, frame: FrameType | None) -> None:
        raise OutOfTime

    alone = threading.current_thread() is not threading.main_thread()
    if math.isinf(seconds) or alone or not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
