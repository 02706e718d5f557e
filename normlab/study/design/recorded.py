"""The description of a comparison in its folder: plain data that its report needs, so that none of its code runs.

The process that runs the comparison writes the result of `describe` into `comparison.json`; `RecordedPlan` is the plan
from that data.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any, NoReturn

from normlab import expect, norms
from normlab.study.design import schema
from normlab.study.design.budgets import Tier
from normlab.study.design.comparison import Comparison, Settings
from normlab.study.design.factors import Curve, Factor, Value
from normlab.study.design.plan import Place, Plan
from normlab.study.design.problem import MEASURED_AT, Metric, Problem, Series
from normlab.study.design.records import Configuration, Record, frozen
from normlab.study.design.schema import Malformed

MOST_RUNS = 1_000_000
"""The most runs that a folder may plan."""


def describe(plan: Plan) -> dict[str, object]:
    """Describe the comparison of a plan as JSON data, with everything that a report needs."""
    comparison, settings, numbers = (
        plan.comparison,
        plan.settings,
        {configuration: i for i, configuration in enumerate(plan.configurations)},
    )
    return {
        **{name: getattr(comparison, name) for name in _OF_COMPARISON},
        "fixed": list(comparison.fixed),
        "tier": {name: getattr(comparison.tiers[settings.tier], name) for name in ("claims", "leaves_out")},
        "problems": [_problem(plan.problem(name)) for name in settings.problems],
        "curves": [_curve(plan.curve(name), settings.values[name]) for name in settings.curves],
        "titles": {norm: plan.title(norm) for norm in settings.norms},
        "looks": {norm: plan.look(norm) for norm in settings.norms},
        "cells": [
            {
                "problem": configuration.problem,
                "norm": configuration.norm,
                "config": dict(configuration.config),
                "incompatible": plan.incompatible(configuration),
            }
            for configuration in plan.configurations
        ],
        "places": [numbers[configuration] for configuration in plan.places.values()],
    }


class RecordedPlan(Plan):
    """The plan of a comparison from the description in a folder; it can be reported and not trained."""

    def __init__(self, settings: Settings, described: Mapping[str, Any]) -> None:
        """Rebuild the plan.

        Args:
            settings: Settings in the folder.
            described: Result of `describe`, checked by `DESCRIBED`.

        Raises:
            Malformed: If the two contradict each other, or there would be more than `MOST_RUNS` runs.
        """
        _check_agrees(settings, described)
        cells: Sequence[Mapping[str, Any]] = described["cells"]
        configurations = [
            Configuration(problem=cell["problem"], norm=cell["norm"], config=frozen(cell["config"])) for cell in cells
        ]
        places: Sequence[int] = described["places"]
        self._titles: Mapping[str, str] = described["titles"]
        self._looks: Mapping[str, tuple[str, str]] = described.get("looks", {})
        self._reasons = {
            configuration: given["incompatible"] for configuration, given in zip(configurations, cells, strict=True)
        }
        self._recorded = {
            Place(problem=problem, curve=curve, value=value, norm=norm): configurations[number]
            for (problem, curve, value, norm), number in zip(_coordinates(settings), places, strict=True)
        }
        if any((place.problem, place.norm) != (of.problem, of.norm) for place, of in self._recorded.items()):
            raise Malformed(
                "expected every place to have a configuration of its problem and norm, got another", "places"
            )
        try:
            with expect.recorded():
                super().__init__(_comparison(settings, described), settings)
        except ValueError as error:
            raise Malformed(str(error), "described") from error

    def title(self, norm: str) -> str:
        """Return the recorded title of a norm."""
        return self._titles[norm]

    def look(self, norm: str) -> tuple[str, str]:
        """Return the recorded colour and marker of a norm; folders of earlier versions have none."""
        return self._looks.get(norm) or super().look(norm)

    def _configuration(self, place: Place) -> Configuration:
        return self._recorded[place]


def fits(plan: Plan, record: Record) -> bool:
    """Check that the series of a record have the shapes that its problem declares."""
    problem = plan.problem(record.run.configuration.problem)
    return all(
        len(rows) == len(MEASURED_AT) and all(len(row) == len(series.x) for row in rows)
        for series in problem.series
        if (rows := record.series.get(series.name)) is not None
    )


_LINE, _TEXT = schema.text(2000), schema.text(20_000)
_VALUE = schema.any_of(schema.number(), schema.text())
_POSITIVE = schema.number(positive=True)
_OF_COMPARISON = ("name", "title", "question", "baseline", "margin", "default_learning_rate")

_METRIC = schema.fields(
    {
        "name": _LINE,
        "percent": schema.flag,
        "margin": schema.optional(schema.number(low=0)),
        "shared": schema.flag,
    }
)
_SERIES = schema.fields(
    {
        **dict.fromkeys(("name", "title", "x_label", "y_label"), _LINE),
        "shows": _TEXT,
        "x": schema.listed(schema.number(), 100_000, least=1),
        **dict.fromkeys(("log", "log_x", "during", "at_end"), schema.flag),
    }
)
_FACTOR = schema.fields(
    {
        **dict.fromkeys(("name", "label", "flag"), _LINE),
        "values": schema.listed(_VALUE, 1000, least=1),
        "log": schema.flag,
        "reference": schema.optional(_VALUE),
    }
)
_COLOUR, _MARKER = schema.text(pattern=norms.COLOUR), schema.one_of(*norms.MARKERS)


def _look(value: object) -> tuple[str, str]:
    """Check for the colour and the marker of a norm."""
    if not schema.is_list(value) or len(value) != 2:
        raise Malformed("expected a colour and a marker")
    return _COLOUR(value[0]), _MARKER(value[1])


_CONFIG = schema.table(schema.plain(3, objects=False))
_PROBLEM = schema.fields(
    {
        **dict.fromkeys(("name", "title"), _LINE),
        "spatial": schema.flag,
        "recurrent": schema.flag,
        "metric": _METRIC,
        "side": schema.listed(_METRIC, 100),
        "series": schema.listed(_SERIES, 100),
    }
)
_CURVE = schema.fields(
    {
        **dict.fromkeys(("name", "title"), _LINE),
        **dict.fromkeys(("shows", "hides"), _TEXT),
        "advises": schema.flag,
        "factor": _FACTOR,
        "configs": schema.listed(schema.table(schema.plain(3)), 1000, least=1),
    }
)

DESCRIBED = schema.fields(
    {
        **dict.fromkeys(("name", "title", "question", "baseline"), _LINE),
        "margin": schema.optional(schema.number(low=0)),
        "default_learning_rate": schema.optional(_POSITIVE),
        "fixed": schema.listed(_TEXT, 1000),
        "tier": schema.fields({"claims": schema.flag, "leaves_out": _TEXT}),
        "problems": schema.listed(_PROBLEM, 100, least=1),
        "curves": schema.listed(_CURVE, 100, least=1),
        "titles": schema.table(_LINE, keys=_LINE),
        "cells": schema.listed(
            schema.fields({"problem": _LINE, "norm": _LINE, "config": _CONFIG, "incompatible": _TEXT}), MOST_RUNS
        ),
        "places": schema.listed(schema.whole(0, MOST_RUNS), MOST_RUNS, least=1),
    },
    {"looks": schema.table(_look, keys=_LINE)},
)
"""Check of the result of `describe`, as far as it can be checked without settings."""


def _problem(problem: Problem) -> dict[str, object]:
    return {
        **{name: getattr(problem, name) for name in ("name", "title", "spatial", "recurrent")},
        "metric": dataclasses.asdict(problem.metric),
        "side": [dataclasses.asdict(metric) for metric in problem.extra_metrics],
        "series": [dataclasses.asdict(series) for series in problem.series],
    }


def _curve(curve: Curve, values: Iterable[Value]) -> dict[str, object]:
    return {
        **{name: getattr(curve, name) for name in ("name", "title", "shows", "hides", "advises")},
        "factor": dataclasses.asdict(curve.factor),
        "configs": [dict(curve.config(value)) for value in values],
    }


def _check_agrees(settings: Settings, described: Mapping[str, Any]) -> None:
    """Check the names and numbers of a description against the settings.

    Raises:
        Malformed: If they differ.
    """
    names = {kind: tuple(each["name"] for each in described[kind]) for kind in ("problems", "curves")}
    for kind, expected in (("problems", settings.problems), ("curves", settings.curves)):
        if names[kind] != expected:
            raise Malformed("expected those of the settings, in their order, got others", kind)
    for curve in described["curves"]:
        if len(curve["configs"]) != len(settings.values[curve["name"]]):
            raise Malformed("expected one for each value of the settings", "curves", curve["name"], "configs")
    for problem in described["problems"]:
        for kind in ("side", "series"):
            if len({one["name"] for one in problem[kind]}) < len(problem[kind]):
                raise Malformed("expected every name once, got one twice", "problems", problem["name"], kind)
    if described["titles"].keys() != set(settings.norms):
        raise Malformed("expected those of the norms of the settings, got others", "titles")
    places, configurations = described["places"], described["cells"]
    if len(places) != sum(1 for _ in _coordinates(settings)):
        raise Malformed(f"expected one for each norm in each column of the settings, got {len(places)}", "places")
    if set(places) != set(range(len(configurations))):
        raise Malformed("expected the numbers of all configurations, and no others", "places")
    runs = len(settings.learning_rates) * settings.tuning_seeds + 2 * settings.seeds
    if len(configurations) * runs > MOST_RUNS:
        raise Malformed(f"expected at most {MOST_RUNS} runs, got {len(configurations) * runs}", "cells")


def _coordinates(settings: Settings) -> Iterable[tuple[str, str, Value, str]]:
    """Yield problem, curve, value and norm of every place, in the plan's order."""
    for problem, curve in product(settings.problems, settings.curves):
        for value, norm in product(settings.values[curve], settings.norms):
            yield problem, curve, value, norm


def _comparison(settings: Settings, described: Mapping[str, Any]) -> Comparison:
    """Build the comparison, with functions that only look up recorded values."""
    tier = Tier(
        epochs=settings.epochs,
        learning_rates=settings.learning_rates,
        tuning_seeds=settings.tuning_seeds,
        seeds=settings.seeds,
        **described["tier"],
    )
    return Comparison(
        **{name: described[name] for name in _OF_COMPARISON},
        fixed=described["fixed"],
        norms=settings.norms,
        tiers={settings.tier: tier},
        problems=tuple(
            Problem(
                **{name: of[name] for name in ("name", "title", "spatial", "recurrent")},
                build=_refuse,
                metric=Metric(**of["metric"]),
                extra_metrics=tuple(Metric(**metric) for metric in of["side"]),
                series=tuple(Series(**series) for series in of["series"]),
            )
            for of in described["problems"]
        ),
        curves=tuple(
            Curve(
                **{name: of[name] for name in ("name", "title", "shows", "hides", "advises")},
                factor=Factor(**of["factor"]),
                config=dict(zip(settings.values[of["name"]], of["configs"], strict=True)).__getitem__,
            )
            for of in described["curves"]
        ),
    )


def _refuse(*_: object) -> NoReturn:
    raise TypeError("A comparison that a folder describes cannot be trained.")
