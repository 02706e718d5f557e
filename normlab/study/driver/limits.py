"""Time limits of runs in workers, and of the checks before the first run."""

import math
import signal
import threading
from bisect import insort
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from normlab.study.design.plan import Plan
from normlab.study.design.records import RETRIED, Configuration, Record

TIMES = 10.0
"""Limit of a run, as a multiple of the median run of its column, compiling included."""
LEAST = 600.0
"""The least limit, in seconds."""
UNKNOWN = 24 * 3600.0
"""Limit in seconds while no run of its column has ended."""


class RunLimit:
    """Limit of the runs of a configuration in seconds: as given, else by the finished runs of its column."""

    def __init__(self, plan: Plan, given: float | None = None) -> None:
        """Store the limit, if one is given."""
        self._given = given
        self._column = {configuration: number for number, group in enumerate(plan.groups) for configuration in group}
        self._seconds: dict[int, list[float]] = {}  # sorted, since the limit is asked for after every run

    def add(self, record: Record) -> None:
        """Add the time of a run that was trained to its end."""
        if record.status not in (*RETRIED, "invalid") and "run" in record.cost:
            seconds = record.cost["run"] + record.cost.get("compile", 0.0)
            insort(self._seconds.setdefault(self._column[record.run.configuration], []), seconds)

    def __call__(self, configuration: Configuration) -> float:
        """Return the limit of a configuration's next run."""
        if self._given is not None:
            return self._given
        ended = self._seconds.get(self._column[configuration])
        return max(LEAST, TIMES * (ended[len(ended) // 2] + ended[~(len(ended) // 2)]) / 2) if ended else UNKNOWN


class OutOfTime(BaseException):
    """The time limit has passed. Not an `Exception`, so that the interrupted code of a model does not catch it."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Interrupt the code inside after some seconds, in the main thread of systems with interval timers.

    Raises:
        OutOfTime: After `seconds`.
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
