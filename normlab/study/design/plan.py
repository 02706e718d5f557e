"""The runs that a comparison needs, derived from its records alone, so that a comparison can be resumed.

A configuration is tuned first (every learning rate x every tuning seed), then evaluated at the chosen learning rate
with seeds that tuning never saw. Configurations whose training differs in the norm alone share one grid: where the
optimum of any of them lies at an end, the shared grid grows there by two points, once. The norms of a column (a
problem, a curve, a factor value) share a grid, and so do all columns of a curve whose factor is an option of the norm.

A configuration that cannot be run at all (a norm over spatial axes where there are none, a statistic over one element)
has the records of its tuning runs, with status `invalid`, and is never evaluated, for want of a learning rate.

A time budget needs results before tuning is complete. They come from a provisional choice over the coarse grid (see
`tuning.coarse`). All norms that share a grid are reported with their provisional choices, or all with their final
ones, so that no norm is compared with another that was tuned over fewer rates. The final choices replace the
provisional ones once every norm of the grid has as many evaluation runs with its final choice as with its provisional
one. Runs at the default learning rate, which follow the grid of a configuration, never make a choice provisional. Runs
of a provisional choice that differs from the final one are additional: they leave the results together with the choice,
and the runs that the comparison needs stay the same.
"""

import json
import math
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from normlab import expect
from normlab.study.design.comparison import Comparison, Settings
from normlab.study.design.factors import Curve, Value
from normlab.study.design.problem import Problem
from normlab.study.design.records import (
    EVALUATE,
    TUNE,
    TUNING_SEEDS_FROM,
    Configuration,
    Record,
    Run,
    canonical_json,
    frozen,
)
from normlab.study.design.tuning import Grid, TunedRate, choose_learning_rate, coarse, further

if TYPE_CHECKING:
    from normlab.norms import Norm


HALF_A_POINT = 0.005
"""The margin of metrics that are fractions, unless a comparison says otherwise."""

Known = Mapping[Run, Record]


@dataclass(frozen=True, kw_only=True)
class Place:
    """The column (problem, curve, value) and the row (norm) of a configuration in a table."""

    problem: str
    curve: str
    value: Value
    norm: str


class Plan:
    """The configurations of a comparison under some settings, and the runs that are needed given some records.

    Attributes:
        places: The configuration at every place of every table, column by column.
        configurations: All configurations, each once, in the order of their first place.
        groups: The configurations grouped by their common grid.
    """

    def __init__(self, comparison: Comparison, settings: Settings) -> None:
        """Resolve every configuration.

        Raises:
            ValueError: If a norm has options that contradict each other, or the comparison needs a margin.
        """
        self.comparison, self.settings = comparison, settings
        self._problems = {problem.name: problem for problem in reversed(comparison.problems)}
        self._margins = {problem.name: _margin(comparison, problem) for problem in comparison.problems}
        self.places = {place: self._configuration(place) for place in self._all_places()}
        self.configurations = tuple(dict.fromkeys(self.places.values()))
        self.groups = tuple(self._grouped())

    def place(self, configuration: Configuration) -> Place:
        """Return the first place of a configuration."""
        return self._first[configuration]

    def problem(self, name: str) -> Problem:
        """Find a problem by name."""
        return self._problems[name]

    def margin(self, problem: str) -> float:
        """Return the margin of a problem: of its metric, else of the comparison, else half a percentage point."""
        return self._margins[problem]

    def curve(self, name: str) -> Curve:
        """Find a curve by name."""
        return next(curve for curve in self.comparison.curves if curve.name == name)

    def resolve(self, place: Place) -> "tuple[Norm, dict[str, object]]":
        """Resolve the norm at a place with all its options, and its training fields with the problem's options.

        Options in the norm's string take precedence over options of the factor, and these over the problem's defaults.
        """
        from normlab import norms

        problem, curve, norm = self.problem(place.problem), self.curve(place.curve), norms.get(place.norm)
        devices = {"devices": self.settings.devices} if self.settings.devices > 1 else {}
        of_curve = _CONFIG.of(f"the result of `config` of the curve `{curve.name}`", curve.config(place.value))
        if both := devices.keys() & of_curve.keys():
            raise ValueError(
                f"Expected no `{both.pop()}`, which the curve `{curve.name}` sets, got {devices['devices']}."
            )
        config: dict[str, object] = {"epochs": self.settings.epochs, **devices, **of_curve, **self._options(problem)}
        defaults = problem.norm_options(norm.name, config)
        options = {**defaults, **curve.norm_options(norm.name, place.value), **norm.options}
        if "group_size" in norm.options and "num_groups" not in norm.options:
            options.pop("num_groups", None)  # they exclude each other, and the user wrote this one
        return norms.get(norm.name, **options), config

    def title(self, norm: str) -> str:
        """Return the title of a norm with the options in its string, or the string itself if the norm is unknown."""
        from normlab import norms

        try:
            spec = norms.get(norm)
        except ValueError:
            return norm
        _, _, options = norm.partition(":")
        return f"{spec.title} ({options})" if options else spec.title

    def look(self, norm: str) -> tuple[str, str]:
        """Return the colour and the marker of a norm in figures."""
        from normlab import norms

        return norms.colour(norm), norms.marker(norm)

    def incompatible(self, configuration: Configuration) -> str:
        """Give the reason why a configuration cannot be run at all; empty where it can."""
        return self._reasons[configuration]

    def of(self, records: Iterable[Record]) -> "dict[Configuration, ConfigurationPlan]":
        """Plan the runs of every configuration, as far as the records determine them."""
        known = {record.run: record for record in records}
        return {
            configuration: planned
            for group in self.groups
            for configuration, planned in self.of_group(group, known).items()
        }

    def of_group(self, group: Sequence[Configuration], known: Known) -> "dict[Configuration, ConfigurationPlan]":
        """Plan the runs of the configurations of a group, which depend on no others."""
        grid = self._grid(group, known)
        planned = {configuration: self._of(configuration, grid, known) for configuration in group}
        provisional = any(self._ahead(configuration, of, known) for configuration, of in planned.items())
        return {configuration: replace(of, provisional=provisional) for configuration, of in planned.items()}

    def planned(self, records: Iterable[Record]) -> list[Run]:
        """List all runs known to be needed, finished or not, in their order of execution."""
        return [run for planned in self.of(records).values() for run in planned.runs]

    def pending(self, records: Iterable[Record]) -> list[Run]:
        """List the planned runs without a record. Tuning results add evaluation runs; at the end the list is empty."""
        known = {record.run: record for record in records}
        return [run for run in self.planned(known.values()) if run not in known]

    def relevant(self, records: Iterable[Record]) -> list[Record]:
        """Select the records of planned runs, in the plan's order, without those of other grids, seeds or norms."""
        known = {record.run: record for record in records}
        return [known[run] for run in self.planned(known.values()) if run in known]

    def tuning_runs(self, configuration: Configuration, grid: Sequence[float]) -> tuple[Run, ...]:
        """Pair every learning rate with every tuning seed."""
        seeds = range(TUNING_SEEDS_FROM, TUNING_SEEDS_FROM + self.settings.tuning_seeds)
        return tuple(
            Run(configuration=configuration, stage=TUNE, learning_rate=rate, seed=seed)
            for rate in grid
            for seed in seeds
        )

    def evaluation_runs(self, configuration: Configuration, rate: float) -> tuple[Run, ...]:
        """List a run for every evaluation seed at one learning rate."""
        seeds = range(self.settings.seeds)
        return tuple(Run(configuration=configuration, stage=EVALUATE, learning_rate=rate, seed=seed) for seed in seeds)

    @property
    def baseline(self) -> str:
        """The declared baseline, or the first norm of the settings where these leave the baseline out."""
        declared, chosen = self.comparison.baseline, self.settings.norms
        return declared if declared in chosen else chosen[0]

    @cached_property
    def devices(self) -> int:
        """The largest number of devices that train one model together."""
        return max(configuration.devices for configuration in self.configurations)

    @cached_property
    def _first(self) -> dict[Configuration, Place]:
        return {configuration: place for place, configuration in reversed(self.places.items())}

    @cached_property
    def _reasons(self) -> dict[Configuration, str]:
        return {configuration: self._reason(configuration) for configuration in self.configurations}

    def _reason(self, configuration: Configuration) -> str:
        from normlab import norms

        norm, problem = norms.get(configuration.norm), self.problem(configuration.problem)
        if norm.entry.cell_only and not problem.recurrent:
            return f"`{configuration.norm}` is a norm of recurrent cells, and `{configuration.problem}` has none."
        if problem.recurrent and norm.entry.cell is None:
            return f"`{configuration.norm}` has no place in the recurrent cell of `{configuration.problem}`."
        if norm.needs_spatial and not problem.spatial:
            return f"`{configuration.norm}` needs spatial axes, and activations of `{configuration.problem}` have none."
        return ""

    def _all_places(self) -> Iterator[Place]:
        for problem in self.settings.problems:
            for curve in self.settings.curves:
                for value in self.settings.values[curve]:
                    for norm in self.settings.norms:
                        yield Place(problem=problem, curve=curve, value=value, norm=norm)

    def _options(self, problem: Problem) -> dict[str, object]:
        options = self.settings.options
        return {option.name: options[option.name] for option in problem.options if option.name in options}

    def _configuration(self, place: Place) -> Configuration:
        norm, config = self.resolve(place)
        of_data = self._options(self.problem(place.problem))  # not in keys, which have a hash of the data
        config = {name: value for name, value in config.items() if name not in of_data}
        plain = json.loads(canonical_json({**config, "norm": str(norm), "statistics": scope(norm, config)}))
        return Configuration(problem=place.problem, norm=place.norm, config=frozen(plain))

    def _grouped(self) -> Iterator[tuple[Configuration, ...]]:
        """Group the configurations that differ in their norm alone."""
        groups: dict[tuple[object, ...], list[Configuration]] = {}
        for configuration in self.configurations:
            rest = tuple((name, value) for name, value in configuration.config if name not in ("norm", "statistics"))
            groups.setdefault((configuration.problem, rest), []).append(configuration)
        yield from map(tuple, groups.values())

    def _grid(self, group: Sequence[Configuration], known: Known) -> Grid:
        """Return the grid of a group, which grows at an end where a tuned configuration has its optimum."""
        base = self.settings.learning_rates
        if not self.settings.extend:
            return Grid(base, final=True)
        found = [known.get(run) for configuration in group for run in self.tuning_runs(configuration, base)]
        there = [record for record in found if record]
        return self._grown(there) if len(there) == len(found) else Grid(base, final=False)

    def _grown(self, tuned: Sequence[Record]) -> Grid:
        base = self.settings.learning_rates
        by_configuration: dict[Configuration, list[Record]] = {}
        for record in tuned:
            by_configuration.setdefault(record.run.configuration, []).append(record)
        chosen = {
            choice.learning_rate for found in by_configuration.values() if (choice := choose_learning_rate(found))
        }
        below, above = further(base)
        below, above = (below if base[0] in chosen else ()), (above if base[-1] in chosen else ())
        return Grid((*below, *base, *above), final=True)

    def _ahead(self, configuration: Configuration, of: "ConfigurationPlan", known: Known) -> bool:
        """Check whether a configuration has more runs with its early choice than with its final one."""
        base = self.tuning_runs(configuration, self.settings.learning_rates)
        if of.early == of.untuned and all(run in known for run in base):
            return False  # planned in any case, at the default learning rate
        return _finished(of.early, known) > _finished(of.evaluation, known)

    def _of(self, configuration: Configuration, grid: Grid, known: Known) -> "ConfigurationPlan":
        if self.incompatible(configuration):
            return ConfigurationPlan(tuning=self.tuning_runs(configuration, self.settings.learning_rates))
        tuning, default = self.tuning_runs(configuration, grid.rates), self.settings.default_learning_rate
        tuned = [known[run] for run in tuning if run in known]
        complete = grid.final and len(tuned) == len(tuning)
        choice = choose_learning_rate(tuned) if complete else None
        first = self.tuning_runs(configuration, coarse(self.settings.learning_rates))
        early = choose_learning_rate([known[run] for run in first]) if all(run in known for run in first) else None
        return ConfigurationPlan(
            tuning=tuning,
            coarse=first,
            early_choice=early,
            early=self.evaluation_runs(configuration, early.learning_rate) if early else (),
            untuned=() if default is None else self.evaluation_runs(configuration, default),
            choice=choice,
            evaluation=self.evaluation_runs(configuration, choice.learning_rate) if choice else (),
            to_come=0 if complete else self.settings.seeds,
        )


@dataclass(frozen=True, kw_only=True)
class ConfigurationPlan:
    """The runs of a configuration, as far as records determine them.

    Attributes:
        tuning: Runs on the grid.
        untuned: Runs at the default learning rate, which need no tuning.
        choice: The tuned learning rate; `None` while tuning is incomplete, and for a configuration that cannot be run.
        evaluation: Runs at the chosen learning rate.
        to_come: The most runs that will be added once tuning is complete.
        coarse: The runs of `tuning` on the coarse grid.
        early_choice: The choice from the coarse grid; `None` while the coarse grid is incomplete.
        early: Runs at the early choice, which are not part of `runs`.
        provisional: Whether the early choice is reported (see the module).
    """

    tuning: tuple[Run, ...]
    untuned: tuple[Run, ...] = ()
    choice: TunedRate | None = None
    evaluation: tuple[Run, ...] = ()
    to_come: int = 0
    coarse: tuple[Run, ...] = ()
    early_choice: TunedRate | None = None
    early: tuple[Run, ...] = ()
    provisional: bool = False

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """All runs, each once, in their order of execution."""
        return tuple(dict.fromkeys((*self.tuning, *self.untuned, *self.evaluation)))

    @property
    def reported_choice(self) -> TunedRate | None:
        """The choice whose runs are reported."""
        return self.early_choice if self.provisional else self.choice

    @property
    def reported(self) -> tuple[Run, ...]:
        """The evaluation runs that are reported."""
        return self.early if self.provisional else self.evaluation

    def first(self, seeds: int) -> tuple[Run, ...]:
        """List the runs that give a first result: the coarse grid, then some evaluation seeds."""
        evaluation = self.early if self.provisional or not self.choice else self.evaluation
        return (*self.coarse, *evaluation[:seeds])


def scope(norm: "Norm", config: Mapping[str, object]) -> str:
    """Describe how many examples share the statistics of a norm in training, and on how many devices.

    >>> from normlab import norms
    >>> scope(norms.get("batch:ghost_batch_size=4"), {"batch_size": 16, "devices": 8})
    '4 examples on 2 devices'
    >>> scope(norms.get("layer"), {"batch_size": 16, "devices": 8})
    '1 example'
    """
    if not norm.needs_batch:
        return "1 example"
    batch, ghost, spread = config.get("batch_size"), norm.options.get("ghost_batch_size"), config.get("devices", 1)
    if not isinstance(batch, int) or not isinstance(spread, int):
        return "the batch"
    examples = ghost if isinstance(ghost, int) and ghost < batch else batch
    devices = math.ceil(examples * spread / batch)
    return f"{examples} example{'s' * (examples > 1)}{f' on {devices} devices' * (devices > 1)}"


def _finished(runs: Iterable[Run], known: Known) -> int:
    return sum(run in known for run in runs)


def _margin(comparison: Comparison, problem: Problem) -> float:
    for margin in (problem.metric.margin, comparison.margin):
        if margin is not None:
            return margin
    if not problem.metric.percent:
        raise ValueError(
            f"Expected `margin` in the unit of `{problem.metric.name}`, the metric of `{problem.name}`, got none. "
            "Give in the comparison the largest difference that would not matter to you."
        )
    return HALF_A_POINT


def _are_fields(value: Mapping[str, Hashable]) -> bool:
    """Check for fields by name with hashable values."""
    return isinstance(value, Mapping) and all(
        isinstance(name, str) and isinstance(field, Hashable) for name, field in value.items()
    )


_CONFIG = expect.Kind(
    "training fields by name, each a number, a text or a tuple",
    expect.kept(_are_fields),
    'Return a dictionary such as `{"batch_size": value}`.',
)
