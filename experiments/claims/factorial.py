"""Numbers of a comparison that `normlab run` made, by network, curve, norm and value of the factor."""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.claims.study import Plan
from experiments.claims.verdicts import Row
from normlab.errors import BadInput
from normlab.study.design import plan as engine
from normlab.study.design.comparison import Settings
from normlab.study.design.factors import Value
from normlab.study.design.records import Record, Run
from normlab.study.driver.driver import Invocation, current
from normlab.study.worker.store import Header, Store


@dataclass(frozen=True, kw_only=True)
class Extent(Plan):
    """The settings of the runs, for the files of a study."""

    tier: str = ""
    epochs: int = 0
    seeds_to_tune: int = 0
    learning_rates: tuple[float, ...] = ()
    options: Mapping[str, object]


@dataclass(frozen=True, kw_only=True, eq=False)
class Cell:
    """The runs of one norm at one value of a factor; arrays [seeds], NaN for runs that are not there.

    Attributes:
        errors: Test errors with the tuned learning rate; a run that failed counts as chance.
        failed: Whether a run failed: its loss was not finite, or it learned nothing.
        validation: Validation errors of the same runs, for choices.
        losses: Training losses at the end; NaN for runs that failed.
        untuned: Test errors with the default learning rate; empty without such runs.
        rate: The tuned learning rate.
        tuning: Validation errors by learning rate, [tuning seeds]; a run that failed counts as infinite.
        chance: Error of a network that has learned nothing.
    """

    errors: np.ndarray
    failed: np.ndarray
    validation: np.ndarray
    losses: np.ndarray
    untuned: np.ndarray
    rate: float
    tuning: Mapping[float, np.ndarray]
    chance: float


Cells = Mapping[tuple[str, Value], Cell]


@dataclass(frozen=True, kw_only=True, eq=False)
class Net:
    """The results of one network.

    Attributes:
        name: Name of the problem.
        title: Its title.
        norms: Norms that were trained.
        values: Values of the factor by curve.
        cells: Results by curve, norm and value.
    """

    name: str
    title: str
    norms: Sequence[str]
    values: Mapping[str, Sequence[Value]]
    cells: Mapping[str, Cells]

    def has(self, curve: str, norms: Iterable[str] = (), values: Iterable[Value] = ()) -> bool:
        """Report whether norms were trained at some values of a curve."""
        there = self.values.get(curve, ())
        return bool(there) and set(norms) <= set(self.norms) and set(values) <= set(there)


Found = tuple[Net, ...]


def read(folder: Path) -> tuple[str, Extent, Found, dict[str, object]]:
    """Read the folder of a comparison.

    Returns:
        Name of the comparison, the settings, the results, and what is known of the runs.

    Raises:
        BadInput: If the folder has no finished comparison.
    """
    invocation, header = Invocation.of_folder(folder)
    store = invocation.store
    records = store.read()[0] if isinstance(store, Store) else []
    found = nets(invocation.plan, current(invocation.plan, header.identity, records).values())
    return invocation.comparison.name, extent(header.settings), found, _about(header)


def extent(settings: Settings) -> Extent:
    """Return the settings of runs as a plan."""
    options = dict(settings.options)
    return Extent(
        seeds=settings.seeds,
        data=str(options.pop("data", "digits")),
        data_dir=None if (folder := options.pop("data_dir", None)) is None else str(folder),
        tier=settings.tier,
        epochs=settings.epochs,
        seeds_to_tune=settings.tuning_seeds,
        learning_rates=settings.learning_rates,
        options=options,
    )


def nets(plan: engine.Plan, records: Iterable[Record]) -> Found:
    """Arrange the records of a plan.

    Raises:
        BadInput: If runs are missing.
    """
    known = {record.run: record for record in records}
    planned, settings = plan.of(known.values()), plan.settings
    missing = sum(run not in known for of in planned.values() for run in of.runs) + sum(
        of.to_come for c, of in planned.items() if not plan.incompatible(c)
    )
    if missing:
        raise BadInput(f"Expected a finished comparison, got one without {missing} runs. Repeat its `normlab run`.")
    cells = {
        place: _cell(planned[configuration], known, settings)
        for place, configuration in plan.places.items()
        if planned[configuration].choice
    }
    return tuple(
        Net(
            name=problem,
            title=plan.problem(problem).title,
            norms=settings.norms,
            values=settings.values,
            cells={
                curve: {
                    (p.norm, p.value): cell for p, cell in cells.items() if (p.problem, p.curve) == (problem, curve)
                }
                for curve in settings.curves
            },
        )
        for problem in settings.problems
    )


def rows(plan: Extent, found: Found) -> list[Row]:
    """List every number."""
    return [
        Row(quantity, norm, f"{net.title}, {curve}, {value}", seed, float(number))
        for net in found
        for curve, cells in net.cells.items()
        for (norm, value), cell in cells.items()
        for quantity in ("errors", "failed", "losses", "untuned")
        for seed, number in enumerate(getattr(cell, quantity))
    ]


NEAR_CHANCE = 0.9
"""Share of the error of chance from which a network has learned nothing."""


def tolerable(errors: np.ndarray, factor: float, chance: float) -> np.ndarray:
    """Report for settings, along the first axis, whether an error is up to `factor` times the lowest.

    More than half of the way from the lowest to chance is too much, and nothing is tolerable beside a lowest error near
    chance.
    """
    best = errors.min(0)
    return (errors <= np.minimum(factor * best, (best + chance) / 2)) & (best < NEAR_CHANCE * chance)


def largest_rate(cell: Cell, factor: float = 2.0) -> np.ndarray:
    """Return the largest learning rate with a tolerable error, by seed of the tuning; NaN where no network learned."""
    rates = np.array(sorted(cell.tuning))
    fine = tolerable(np.stack([cell.tuning[rate] for rate in rates]), factor, cell.chance)
    return np.where(fine.any(0), np.where(fine, rates[:, None], 0.0).max(0), np.nan)


def failing_rates(cell: Cell) -> list[float]:
    """List the learning rates at which every tuning run failed."""
    return [rate for rate, errors in sorted(cell.tuning.items()) if np.isinf(errors).all()]


def _cell(of: engine.ConfigurationPlan, known: Mapping[Run, Record], settings: Settings) -> Cell:
    evaluated, untuned = ([known[run] for run in runs] for runs in (of.reported, of.untuned))
    chance = float(next((r.metrics["chance"] or np.nan for r in evaluated if "chance" in r.metrics), np.nan))
    tuning: dict[float, list[float]] = {}
    for run in of.tuning:
        tuning.setdefault(run.learning_rate, []).append(_number(known[run], "validation", np.inf))
    return Cell(
        errors=_numbers(evaluated, "test", chance),
        failed=np.array([record.status != "ok" for record in evaluated]),
        validation=_numbers(evaluated, "validation", chance),
        losses=_numbers(evaluated, "train_loss", np.nan),
        untuned=_numbers(untuned, "test", chance),
        rate=of.reported_choice.learning_rate if of.reported_choice else np.nan,
        tuning={rate: np.array(errors) for rate, errors in tuning.items()},
        chance=chance,
    )


def _numbers(records: Sequence[Record], metric: str, of_failed: float) -> np.ndarray:
    return np.array([_number(record, metric, of_failed) for record in records])


def _number(record: Record, metric: str, of_failed: float) -> float:
    value = record.metrics.get(metric)
    return of_failed if record.status != "ok" or value is None else value


def without_places(command: str) -> str:
    """Leave out of a command the folders of one machine, so that it is that of anyone."""
    words = shlex.split(command)
    places = [i for i, word in enumerate(words) if word in ("--output", "--data-dir")]
    return shlex.join(word for i, word in enumerate(words) if i not in places and i - 1 not in places)


def _about(header: Header) -> dict[str, object]:
    identity = header.identity
    return {
        "command": without_places(header.command),
        "jax": identity["versions"].get("jax"),
        "device": f"{identity['platform'].get('backend')}, {identity['platform'].get('device')}",
        "python": identity["versions"].get("python"),
        "seconds": round(header.wall_seconds),
    }
