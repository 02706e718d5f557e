"""Estimate the time of a comparison from the costs of some of its programs; imports no JAX."""

import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from normlab.study.design.records import Configuration, Record
from normlab.study.driver.ongoing import Ongoing

__all__ = ["Cost", "Work", "about", "costs_of", "remaining", "seconds_of"]


START = 4.0
"""Seconds in which a worker starts, or makes the first initial state of a problem."""


@dataclass(frozen=True)
class Cost:
    """The cost of a program in seconds of one worker.

    Attributes:
        compile: Time to compile it.
        run: Time of a run, evaluation included.
    """

    compile: float
    run: float


@dataclass(frozen=True)
class Work:
    """The work that remains for a configuration.

    Attributes:
        runs: Number of runs, an upper bound while tuning is incomplete, but for runs of a grid that grows.
        steps: Number of updates of a run.
    """

    runs: int
    steps: int


def remaining(ongoing: Ongoing, configurations: Collection[Configuration]) -> dict[Configuration, int]:
    """Count the runs that are still to be made, by configuration, without those that cannot be run."""
    return {
        configuration: len(ongoing.missing(configuration)) + planned.to_come
        for configuration, planned in ongoing.planned.items()
        if configuration in configurations and not ongoing.plan.incompatible(configuration)
    }


def costs_of(records: Iterable[Record]) -> dict[Configuration, Cost]:
    """Collect the costs of the configurations that have runs."""
    found: dict[Configuration, list[Mapping[str, float]]] = {}
    for record in records:
        if record.status in ("ok", "diverged", "collapsed") and "run" in record.cost:
            found.setdefault(record.run.configuration, []).append(record.cost)
    return {
        configuration: Cost(
            compile=max(cost.get("compile", 0.0) for cost in costs),
            run=statistics.median(cost["run"] for cost in costs),
        )
        for configuration, costs in found.items()
    }


def seconds_of(work: Mapping[Configuration, Work], costs: Mapping[Configuration, Cost], workers: int) -> float:
    """Estimate the time of all work.

    In a problem the time of a run is taken as linear in its number of updates: all runs see the same examples as often,
    and every update has a cost of its own.

    Args:
        work: The remaining work.
        costs: Costs of some of the configurations.
        workers: Number of workers that share the work equally.

    Returns:
        Seconds, without those of problems of which nothing is known.
    """
    total = 0.0
    for problem in dict.fromkeys(configuration.problem for configuration in work):
        known = [(work[c].steps, cost) for c, cost in costs.items() if c.problem == problem and c in work]
        if not known:
            continue
        total += START * workers
        compiling = statistics.fmean(cost.compile for _, cost in known)
        for configuration, one in work.items():
            if configuration.problem == problem and one.runs:
                total += compiling + one.runs * _run(one.steps, [(steps, cost.run) for steps, cost in known])
    return total / workers


def _run(steps: int, known: Sequence[tuple[int, float]]) -> float:
    """Interpolate the time of a run between those with the fewest and the most updates."""
    (few, low), (many, high) = min(known), max(known)
    if few == many:
        return statistics.fmean(seconds for _, seconds in known)
    return max(0.0, low + (high - low) * (steps - few) / (many - few))


def about(seconds: float) -> str:
    """Write a time with the precision of an estimate.

    >>> about(4), about(41), about(200), about(9000)
    ('about 10 s', 'about 40 s', 'about 3 min', 'about 2.5 h')
    """
    if seconds < 15:
        return "about 10 s"
    if seconds < 55:
        return f"about {round(seconds, -1):.0f} s"
    if seconds < 90 * 60:
        return f"about {max(1, round(seconds / 60))} min"
    return f"about {seconds / 3600:.{int(seconds < 36000)}f} h"
