"""Seconds of calls that a device queues."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.accelerator.stage import Row
from benchmarks.speed._timing import Name, turns

__all__ = ["bandwidth", "seconds", "speed"]

TURN = 0.02
"""Seconds of the calls between two measurements: enough to hide the queueing of the first."""

MOST = 50
"""Most calls between two measurements."""


def seconds(
    calls: Mapping[Name, Callable[[], Any]], wait: Callable[[Any], Any], rounds: int
) -> dict[Name, list[float]]:
    """Measure all calls once in each round, in shuffled order.

    Args:
        calls: Functions without arguments by name, compiled and called once before.
        wait: Waits for the result of the last of several calls.
        rounds: Number of rounds.

    Returns:
        Seconds of a call by name, one for each round.
    """
    repeats = {name: min(MOST, max(1, round(TURN / once(call, wait)))) for name, call in calls.items()}
    times: dict[Name, list[float]] = {name: [] for name in calls}
    for _, name in turns(list(calls), rounds):
        start = time.perf_counter()
        result = None
        for _ in range(repeats[name]):
            result = calls[name]()
        wait(result)
        times[name].append((time.perf_counter() - start) / repeats[name])
    return times


def once(call: Callable[[], Any], wait: Callable[[Any], Any]) -> float:
    """Return the seconds of the second of two calls."""
    wait(call())
    start = time.perf_counter()
    wait(call())
    return time.perf_counter() - start


def speed(times: list[float], copies: float, copy: list[float]) -> Row:
    """Return the columns of a measurement.

    Args:
        times: Seconds of a call in each round.
        copies: Least time in units of a copy.
        copy: Seconds of a copy in each round.

    Returns:
        Medians and minima of microseconds, and the fractions of the bandwidth of a copy that they are.
    """
    median, least = statistics.median(times), min(times)
    return {
        "us": 1e6 * median,
        "us_least": 1e6 * least,
        "fraction": copies * statistics.median(copy) / median,
        "fraction_least": copies * min(copy) / least,
        "rounds": len(times),
    }


def bandwidth(size: int, times: list[float]) -> Row:
    """Return the columns of a copy of `size` bytes, which are read and written."""
    return {"gb_s": 2e-9 * size / statistics.median(times), "gb_s_best": 2e-9 * size / min(times)}
