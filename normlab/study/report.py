"""A comparison's result for people: one HTML file that needs no network, and tables and figures beside it.

What else shows a result is here by name: the table of the terminal, and the rows behind the tables.
"""

import base64
import dataclasses
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from normlab.study import advice, words
from normlab.study.advice import Choice
from normlab.study.analysis import Analysis, Basin, CurveResult, Point, ProblemResult, RunStatus, to_json
from normlab.study.arguments import to_toml
from normlab.study.config import FAILURES, Comparison, Settings, Value
from normlab.study.statistics import wilson
from normlab.study.store import write_whole
from normlab.study.tables import rows, run_rows, slug, to_csv, to_latex
from normlab.study.terminal import print_table, table_text

__all__ = ["print_table", "table_text", "rows", "write_html", "describe"]


_SAFE = "".join(chr(code) for code in range(33, 127) if chr(code) not in "%#&<>'")


@dataclass(frozen=True)
class Download:
    """A file that the page holds and that lies beside it, too.

    Attributes:
        path: Relative to the page.
        kind: Its media type.
        content: Its bytes.
        about: What it holds.
    """

    path: str
    kind: str
    content: bytes
    about: str = ""

    @property
    def name(self) -> str:
        """What the browser saves it as."""
        return self.path.rpartition("/")[2]

    @property
    def uri(self) -> str:
        """The file as a link for an attribute in single quotes; text as text, since base64 is a third longer."""
        from markupsafe import Markup

        if self.kind.startswith("text/"):
            return Markup(f"data:{self.kind},{quote(self.content, safe=_SAFE)}")
        return Markup(f"data:{self.kind};base64,{base64.b64encode(self.content).decode()}")


@dataclass(frozen=True)
class Figure:
    """A figure for the page, and as files."""

    svg: str
    files: tuple[Download, ...]


def write_html(
    analysis: Analysis,
    directory: str | os.PathLike[str],
    *,
    comparison: Comparison,
    settings: Settings,
    identity: Mapping[str, Any],
    command: str,
    wall_seconds: float,
) -> Path:
    """Write `report.html`, which opens offline, `analysis.json`, and the folders `tables` and `figures` beside it.

    Each file appears whole or not at all, the page last.

    Args:
        analysis: What to report.
        directory: Where to; made if it is not there.
        comparison: The question and what is fixed.
        settings: What was asked for.
        identity: Code, versions and hardware, as in the records.
        command: What reproduces it.
        wall_seconds: Time from start to end.

    Returns:
        The path of the HTML file.
    """
    data = list(_data(analysis, comparison, settings, identity))
    latex, figures = _latex(analysis), _figures(analysis)
    page = _template().render(
        analysis=analysis,
        comparison=comparison,
        settings=settings,
        tier=comparison.tiers[settings.tier],
        recommendation=advice.recommend(analysis),
        step_times=advice.STEP_TIMES,
        data=data,
        latex=latex,
        figures=figures,
        keys=_keys(analysis),
        costs={(cost.problem, cost.curve, cost.norm, cost.value): cost for cost in analysis.costs},
        statuses=_statuses(analysis),
        invalid=_invalid(analysis),
        norm_settings=_norm_settings(analysis),
        unseen_failure_rate=wilson(0, settings.seeds, analysis.level)[1],
        environment=list(_flat(identity)),
        command=command,
        toml=to_toml(settings, comparison),
        wall_seconds=wall_seconds,
    )
    files = [*data, *latex.values(), *(file for figure in figures.values() for file in figure.files)]
    folder = Path(directory)
    for file in files:
        (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
        write_whole(folder / file.path, file.content)
    return write_whole(folder / "report.html", page)


def describe(analysis: Analysis, comparison: Comparison, settings: Settings, identity: Mapping[str, Any]) -> str:
    """Give every setting as JSON text: the comparison, what was asked for, every cell, and what it ran on."""
    fields = ("name", "title", "question", "baseline", "margin", "default_learning_rate", "failure_limit", "fixed")
    problems = [problem for problem in comparison.problems if problem.name in settings.problems]
    curves = [curve for curve in comparison.curves if curve.name in settings.curves]
    plain = {
        "comparison": {
            **{name: getattr(comparison, name) for name in fields},
            "problems": [
                {"name": p.name, "title": p.title, "spatial": p.spatial, "metric": dataclasses.asdict(p.metric)}
                for p in problems
            ],
            "curves": [
                {
                    **{name: getattr(curve, name) for name in ("name", "title", "shows", "hides", "advises")},
                    "factor": dataclasses.asdict(curve.factor),
                    "config": {str(value): dict(curve.config(value)) for value in settings.values[curve.name]},
                }
                for curve in curves
            ],
        },
        "settings": dataclasses.asdict(settings),
        "cells": [
            {"problem": problem, "norm": norm, "options": options, "config": config}
            for problem, norm, options, config in _cells(analysis)
        ],
        "identity": dict(identity),
    }
    return json.dumps(plain, indent=2, ensure_ascii=False, default=str) + "\n"


def _figures(analysis: Analysis) -> dict[tuple[str, str, str], Figure]:
    """Figures by problem, curve and kind."""
    from markupsafe import Markup

    from normlab.study import figures

    kinds = {"error": figures.error_figure, "loss": figures.loss_figure, "tuning": figures.tuning_figure}
    found = {}
    for stem, problem, curve in _stems(analysis):
        for kind, draw in kinds.items():
            drawing, name = draw(analysis, problem, curve), f"{kind}-{stem}"
            svg = figures.to_svg(drawing)
            found[problem.name, curve.name, kind] = Figure(
                svg=Markup(figures.inline(svg, name, f"{_ABOUT[kind]}: {problem.title}, {curve.title}")),
                files=(
                    Download(f"figures/{name}.svg", "image/svg+xml", svg.encode()),
                    Download(f"figures/{name}.pdf", "application/pdf", figures.to_pdf(drawing)),
                ),
            )
    return found


_ABOUT = {
    "error": "Error against the factor",
    "loss": "Training loss against the factor",
    "tuning": "Validation error against the learning rate",
}


def _keys(analysis: Analysis) -> list[str]:
    """The colour and marker of every norm."""
    from markupsafe import Markup

    from normlab.study import figures

    return [Markup(figures.key(index)) for index in range(len(analysis.norms))]


def _template() -> Any:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    plain = (
        words.percent,
        words.number,
        words.p_value,
        words.rate,
        words.ratio,
        words.seconds,
        words.size,
        words.count,
    )
    own = (_reasons, _basin_width, _basin_ends, _factor, _grown, _sure, _pair)
    environment.filters.update(
        {function.__name__.removeprefix("_"): function for function in (*plain, words.unit, *own)}
    )
    environment.filters.update(
        value_of=lambda x, metric: words.value(metric, x),
        quantity_of=lambda x, metric: words.quantity(metric, x),
        points_of=lambda x, metric: words.points(metric, x),
        signed_of=lambda x, metric: words.signed(metric, x),
        half_of=lambda ends, metric: words.half(metric, ends),
        signed_interval_of=lambda ends, metric: words.interval(metric, ends, sign=True),
    )
    environment.globals.update(style=Markup(_asset("report.css")), script=Markup(_asset("report.js")))
    return environment.from_string(_asset("report.html.jinja"))


def _asset(name: str) -> str:
    return resources.files("normlab.study").joinpath(name).read_text("utf-8")


def _data(
    analysis: Analysis, comparison: Comparison, settings: Settings, identity: Mapping[str, Any]
) -> Iterator[Download]:
    config = describe(analysis, comparison, settings, identity)
    csv, text = "text/csv;charset=utf-8", "text/plain;charset=utf-8"
    yield Download("analysis.json", text, to_json(analysis).encode(), "every number of this page but times")
    yield Download("tables/cells.csv", csv, to_csv(rows(analysis)).encode(), "a row for every norm, value and curve")
    yield Download(
        "tables/runs.csv", csv, to_csv(run_rows(analysis)).encode(), "status and metrics of every planned run"
    )
    yield Download("tables/settings.json", text, config.encode(), "every setting, and what it ran on")
    toml = to_toml(settings, comparison)
    yield Download("tables/settings.toml", text, toml.encode(), "for `normlab run NAME --config`")


def _latex(analysis: Analysis) -> dict[tuple[str, str], Download]:
    """Tables by problem and curve."""
    return {
        (problem.name, curve.name): Download(
            f"tables/{stem}.tex", "text/plain;charset=utf-8", to_latex(analysis, problem, curve).encode()
        )
        for stem, problem, curve in _stems(analysis)
    }


def _stems(analysis: Analysis) -> Iterator[tuple[str, ProblemResult, CurveResult]]:
    """Every problem and curve with a file name of its own."""
    taken: Counter[str] = Counter()
    for problem in analysis.problems:
        for curve in problem.curves:
            stem = slug(f"{problem.name}-{curve.name}")
            taken[stem.lower()] += 1
            again = taken[stem.lower()]
            yield stem if again == 1 else f"{stem}.{again}", problem, curve


def _factor(curve: CurveResult) -> str:
    """A curve's factor in a sentence: `ghost batch size`."""
    return str(curve.factor["name"]).replace("_", " ")


def _grown(curve: CurveResult) -> list[tuple[Value, tuple[float, ...]]]:
    """The values at which the grid has grown, and by which rates."""
    found = {cell.value: cell.added for cell in curve.cells if cell.added}
    return list(found.items())


def _basin_width(basin: Basin) -> str:
    """`30x`; an end that may lie further out makes the width a lower bound."""
    return f"{'at least ' if basin.open_low or basin.open_high else ''}{words.ratio(basin.width)}"


def _basin_ends(basin: Basin) -> str:
    """`0.01 to 0.3`."""
    return f"{words.rate(basin.low)} to {words.rate(basin.high)}" if basin.width > 1 else words.rate(basin.low)


def _pair(names: Iterable[str]) -> list[tuple[str, str]]:
    """Names that stand for themselves in a list to choose from."""
    return [(name, name) for name in names]


def _sure(choice: Choice, names: Mapping[str, str]) -> str:
    """Whether the data decide a choice, and if not, between what."""
    if not choice.norm:
        return choice.reason
    if choice.sure:
        return "yes"
    seeds = f"; about {choice.seeds_needed} seeds would tell" if choice.seeds_needed else ""
    others = words.listed([advice.in_sentence(names[norm]) for norm in choice.undecided], "or")
    return f"no: perhaps {others}{seeds}"


def _reasons(points: Iterable[Point]) -> str:
    """Why runs failed, equal reasons together: `diverged: loss is not finite (seeds 1, 4)`."""
    seeds: dict[str, list[str]] = {}
    for point in points:
        if point.status in FAILURES:
            why = ": ".join(part for part in (point.status, point.reason.rstrip(".")) if part)
            seeds.setdefault(why, []).append(str(point.seed))
    return "; ".join(f"{why} ({'seed' if len(s) == 1 else 'seeds'} {', '.join(s)})" for why, s in seeds.items())


def _invalid(analysis: Analysis) -> list[tuple[str, str]]:
    """Norms that cannot be run on a problem, and why."""
    found = {
        (f"{analysis.names[cell.norm]} on {problem.title}", cell.invalid): None
        for problem in analysis.problems
        for cell in problem.cells
        if cell.invalid
    }
    return list(found)


def _statuses(analysis: Analysis) -> dict[str, Counter[str]]:
    """Planned runs by stage and status; those that tuning will bring have no status yet."""
    counts: dict[str, Counter[str]] = {}
    for run in analysis.runs:
        counts.setdefault(run.stage, Counter())[run.status] += 1
    to_come = analysis.counts["planned"] - len(analysis.runs)
    if to_come:
        counts.setdefault("evaluate", Counter())["missing"] += to_come
    return counts


def _cells(analysis: Analysis) -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    """Every cell that is trained: problem, norm, the norm with its options, what the training sees."""
    seen: dict[str, RunStatus] = {}
    for run in analysis.runs:
        seen.setdefault(repr((run.problem, run.norm, run.options, sorted(run.config.items(), key=str))), run)
    for run in seen.values():
        yield run.problem, run.norm, run.options, run.config


def _norm_settings(analysis: Analysis) -> list[tuple[str, str, str, list[str]]]:
    """Problem, norm, all its options, and with what training; equal options together."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for problem, norm, options, config in _cells(analysis):
        training = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in config.items())
        found.setdefault((problem, norm, options), []).append(training)
    return [(*key, where) for key, where in found.items()]


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings as lines `versions jax`: `0.10.2`."""
    if isinstance(value, Mapping):
        for key in value:
            yield from _flat(value[key], f"{prefix} {key}".strip())
    elif isinstance(value, list | tuple):
        yield prefix, ", ".join(str(item) for item in value)
    else:
        yield prefix, str(value)
