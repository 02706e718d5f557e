"""Which runs a comparison needs, derived from what has been recorded: pure, and therefore resumable.

A cell is tuned first (every learning rate x every tuning seed), then evaluated at the chosen learning rate with seeds
that tuning never saw. A cell that cannot be run at all (a norm over spatial axes where there are none) has the records
of its tuning runs, with status `invalid`, and is never evaluated: there is no learning rate to evaluate it at.
"""

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from normlab.study.config import EVALUATE, TUNE, Cell, Comparison, Problem, Record, Run, Settings, canonical_json

if TYPE_CHECKING:
    from normlab.norms import Norm

TUNING_SEEDS_FROM = 1000
"""Tuning seeds count from here, evaluation seeds from 0: they never meet as long as there are fewer of the latter."""


@dataclass(frozen=True)
class Choice:
    """A learning rate, and whether it is the smallest or largest that was tried (the optimum may lie beyond)."""

    learning_rate: float
    edge: bool


def cells(settings: Settings, comparison: Comparison) -> tuple[Cell, ...]:
    """All cells, column by column: within a problem, every norm of a factor value before the next value."""
    del comparison
    return tuple(
        Cell(problem=problem, norm=norm, value=value)
        for problem in settings.problems
        for value in settings.values
        for norm in settings.norms
    )


def choose_learning_rate(records: Sequence[Record]) -> Choice | None:
    """Choose from the tuning records of one cell: least median validation error over seeds.

    A failed run counts as worse than any error; ties, all-failed included, go to the smaller learning rate.

    Args:
        records: The tuning records of one cell, in any order; records of other stages are ignored.

    Returns:
        The choice, or `None` where nothing was tuned or the cell is `invalid`.
    """
    errors: dict[float, list[float]] = {}
    for record in records:
        if record.run.stage == TUNE and record.status != "invalid":
            errors.setdefault(record.run.learning_rate, []).append(validation_error(record))
    if not errors:
        return None
    best = min(errors, key=lambda rate: (statistics.median(errors[rate]), rate))
    return Choice(best, edge=best in (min(errors), max(errors)))


def validation_error(record: Record) -> float:
    """The validation error of a run, infinite where the run failed."""
    value = record.metrics.get("validation") if record.status == "ok" else None
    return math.inf if value is None else value


def planned(comparison: Comparison, settings: Settings, records: Iterable[Record]) -> list[Run]:
    """All runs that are known to be needed, whether done or not, in the order in which they should run."""
    known = {record.run: record for record in records}
    return [run for cell in cells(settings, comparison) for run in _planned_of(cell, settings, known)]


def pending(comparison: Comparison, settings: Settings, records: Iterable[Record]) -> list[Run]:
    """The planned runs that have no record. Empty at the end, not before: tuning results bring evaluation runs."""
    records = list(records)
    done = {record.run for record in records}
    return [run for run in planned(comparison, settings, records) if run not in done]


def relevant(comparison: Comparison, settings: Settings, records: Iterable[Record]) -> list[Record]:
    """The records of planned runs, in the plan's order; those of other grids, seeds or norms are left out."""
    known = {record.run: record for record in records}
    return [known[run] for run in planned(comparison, settings, known.values()) if run in known]


def tuning_runs(cell: Cell, settings: Settings) -> list[Run]:
    """Every learning rate with every tuning seed."""
    seeds = range(TUNING_SEEDS_FROM, TUNING_SEEDS_FROM + settings.tuning_seeds)
    return [
        Run(cell=cell, stage=TUNE, learning_rate=rate, seed=seed) for rate in settings.learning_rates for seed in seeds
    ]


def evaluation_runs(cell: Cell, settings: Settings, learning_rate: float) -> list[Run]:
    """Every evaluation seed at one learning rate."""
    return [Run(cell=cell, stage=EVALUATE, learning_rate=learning_rate, seed=seed) for seed in range(settings.seeds)]


def runs_per_cell(settings: Settings) -> int:
    """How many runs a cell takes that can be run."""
    return len(settings.learning_rates) * settings.tuning_seeds + settings.seeds


def expected_runs(comparison: Comparison, settings: Settings, cell: Cell) -> int:
    """How many records a cell will have."""
    return runs_per_cell(settings) - (settings.seeds if incompatible(comparison, cell) else 0)


def problem_named(comparison: Comparison, name: str) -> Problem:
    """The comparison's problem of that name."""
    return next(problem for problem in comparison.problems if problem.name == name)


def resolve(comparison: Comparison, settings: Settings, cell: Cell) -> "tuple[Norm, dict[str, Any]]":
    """The norm of a cell with the problem's options filled in, and the fields its training sees."""
    from normlab import norms

    problem, norm = problem_named(comparison, cell.problem), norms.get(cell.norm)
    config = {"epochs": settings.epochs, **comparison.config(cell.value)}
    options = {**problem.norm_options(norm.name, config), **norm.options}
    if "group_size" in norm.options and "num_groups" not in norm.options:
        options.pop("num_groups", None)  # the two exclude each other, and what the user wrote wins
    return norms.get(norm.name, **options), config


def run_config(comparison: Comparison, settings: Settings, cell: Cell) -> dict[str, Any]:
    """What a record keeps as its `config`: the training's fields and the norm with all options, as plain JSON."""
    norm, config = resolve(comparison, settings, cell)
    return json.loads(canonical_json({**config, "norm": str(norm)}))


def incompatible(comparison: Comparison, cell: Cell) -> str:
    """Why a cell cannot be run at all, empty where it can."""
    from normlab import norms

    problem = problem_named(comparison, cell.problem)
    if norms.get(cell.norm).needs_spatial and not problem.spatial:
        return f"`{cell.norm}` needs spatial axes, and activations of `{cell.problem}` have none."
    return ""


def _planned_of(cell: Cell, settings: Settings, known: Mapping[Run, Record]) -> Iterator[Run]:
    tuning = tuning_runs(cell, settings)
    yield from tuning
    if all(run in known for run in tuning):
        choice = choose_learning_rate([known[run] for run in tuning])
        if choice is not None:
            yield from evaluation_runs(cell, settings, choice.learning_rate)
