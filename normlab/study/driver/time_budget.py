"""The order of runs under a time budget: a comparison that is small first and grows, so that a table exists early.

Each round is a fair comparison: all of its norms are tuned over the same coarse grid and evaluated with the same seeds.
The last round is the whole comparison, which needs the same runs whatever came before.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from normlab import norms
from normlab.study.analysis.estimates import FEWEST_TO_RECOMMEND
from normlab.study.design.factors import Value
from normlab.study.design.plan import Place, Plan
from normlab.study.design.records import Configuration, Run
from normlab.study.driver.ongoing import Ongoing

FIRST_SEEDS = 2
"""Evaluation seeds of the first rounds, the fewest that show a spread."""


@dataclass(frozen=True)
class Round:
    """Configurations in the order in which they are handed out, and the number of their evaluation seeds."""

    configurations: tuple[Configuration, ...]
    seeds: int


def rounds(plan: Plan) -> tuple[Round, ...]:
    """List the rounds before the whole comparison.

    Problem by problem, since the next may take many times longer:
    1. The two most different values of the first curve that advises, with the baseline and one norm of the other family
       (see `_by_importance`).
    2. The same values, with all norms.

    Then all problems together:
    3. All values of all curves, with all norms.
    4. The same, with enough seeds for a recommendation.
    """
    settings = plan.settings
    curves = sorted(settings.curves, key=lambda name: not plan.curve(name).advises)
    spread = {name: by_distance(settings.values[name], plan.curve(name).factor.reference) for name in curves}
    few, enough = min(FIRST_SEEDS, settings.seeds), min(FEWEST_TO_RECOMMEND, settings.seeds)
    first: list[Round] = []
    for problem in settings.problems:
        ends = [_column(plan, problem, curves[0], value) for value in spread[curves[0]][:2]]
        first += [Round(_distinct(column[:2] for column in ends), few), Round(_distinct(ends), few)]
    every = _distinct(
        _column(plan, problem, curve, value)
        for problem in settings.problems
        for curve in curves
        for value in spread[curve]
    )
    return (*first, Round(every, few), Round(every, enough))


def pending(
    ongoing: Ongoing, rounds: Sequence[Round], configurations: Collection[Configuration]
) -> Iterator[list[Run]]:
    """Yield the runs of every round that have no record, and last those of the whole comparison.

    The last round goes by groups, since a group is evaluated once all of its configurations have been tuned.

    Args:
        ongoing: The plan of the comparison with the records so far.
        rounds: The result of `rounds`; empty for the whole comparison alone, in the order of the plan.
        configurations: The configurations whose runs are asked for.
    """
    planned, known, groups = ongoing.planned, ongoing.known, ongoing.plan.groups
    for each in rounds:
        here = [configuration for configuration in each.configurations if configuration in configurations]
        yield [run for one in here for run in planned[one].first(each.seeds) if run not in known]
    ahead = rounds[-1].configurations if rounds else ()
    first = [one for number in dict.fromkeys(map(ongoing.group, ahead)) for one in groups[number]]
    order = dict.fromkeys((*first, *planned))
    yield [run for one in order if one in configurations for run in ongoing.missing(one)]


def by_distance(values: Sequence[Value], reference: Value | None) -> list[Value]:
    """Sort values so that each is as far as possible from those before it, by their places in the curve.

    The first is the end that is closer to the reference, or the last value where there is no reference. Among equally
    distant values the reference is first.

    >>> by_distance((2, 4, 32, 128), reference=32)
    [128, 2, 32, 4]
    """
    last = len(values) - 1
    near = values.index(reference) if reference in values else last
    first = last if 2 * near >= last else 0
    order = list(dict.fromkeys((first, last - first)))
    while len(order) < len(values):
        rest = [place for place in range(len(values)) if place not in order]
        order.append(max(rest, key=lambda place: (min(abs(place - other) for other in order), place == near)))
    return [values[place] for place in order]


def _column(plan: Plan, problem: str, curve: str, value: Value) -> tuple[Configuration, ...]:
    """List the configurations of a column that can be run, the most important norm first."""
    first = Place(problem=problem, curve=curve, value=value, norm="")
    column = [plan.places[replace(first, norm=norm)] for norm in plan.settings.norms]
    runnable = [configuration for configuration in column if not plan.incompatible(configuration)]
    return tuple(_by_importance(runnable, plan.baseline))


def _by_importance(column: Sequence[Configuration], baseline: str) -> list[Configuration]:
    """Sort a column: the baseline, then in turn a norm of the other family and one of the same.

    The families are norms over several examples and norms of single examples. `none` comes last in its family.
    """
    ordered = sorted(column, key=lambda one: (one.norm != baseline, norms.get(one.norm).name == "none"))
    place: dict[Configuration, int] = {}
    for needs_batch in (True, False):
        family = [one for one in ordered if norms.get(one.norm).needs_batch is needs_batch]
        place |= {one: number for number, one in enumerate(family)}
    return sorted(ordered, key=place.__getitem__)


def _distinct(columns: Iterable[Iterable[Configuration]]) -> tuple[Configuration, ...]:
    return tuple(dict.fromkeys(configuration for column in columns for configuration in column))
