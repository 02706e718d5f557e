"""Files of a report, beside the page and embedded in it: data, tables and figures."""

import base64
import dataclasses
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import TYPE_CHECKING, TypedDict
from urllib.parse import quote

from markupsafe import Markup

from normlab.study.analysis.results import Analysis, CurveResult, ProblemResult, SeriesResult, to_json
from normlab.study.design.comparison import Comparison, Settings
from normlab.study.design.records import RunIdentity, canonical_json
from normlab.study.design.request import to_toml
from normlab.study.report.apart import spread
from normlab.study.report.tables import rows, run_rows, series_rows, slug, to_csv, to_latex

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

_SAFE = "".join(chr(code) for code in range(33, 127) if chr(code) not in "%#&<>'")


MANY_CELLS = 100
"""Cells of all tables from which on the figures are worth further processes, which take a second to start."""

MOST_EMBEDDED = 2**20
"""Bytes of a file above which the page links to the file beside it, so that browsers open the page at any size."""


@dataclass(frozen=True)
class Download:
    """A file that lies beside the page and is also embedded in it, unless it is large.

    Attributes:
        path: Path relative to the page.
        kind: Media type.
        content: Content in bytes.
        about: Description of the content.
    """

    path: str
    kind: str
    content: bytes
    about: str = ""

    @property
    def name(self) -> str:
        """The name under which a browser saves the file."""
        return self.path.rpartition("/")[2]

    @property
    def embedded(self) -> bool:
        """True if the page contains the file."""
        return len(self.content) <= MOST_EMBEDDED

    @property
    def uri(self) -> str:
        """Return the file as a data URL for an attribute in single quotes; text without base64, a third longer.

        A file that is not embedded has its path instead.
        """
        if not self.embedded:
            return quote(self.path)
        if self.kind.startswith("text/"):
            return Markup(f"data:{self.kind},{quote(self.content, safe=_SAFE)}")
        return Markup(f"data:{self.kind};base64,{base64.b64encode(self.content).decode()}")


@dataclass(frozen=True)
class Figure:
    """A figure of the page, and its files."""

    svg: str
    files: tuple[Download, ...]


def describe(
    analysis: Analysis, comparison: Comparison, settings: Settings, identity: RunIdentity, outdated: str = ""
) -> str:
    """Write all settings as JSON: comparison, request, configurations, identity and outdated records."""
    fields = ("name", "title", "question", "baseline", "margin", "default_learning_rate", "fixed")
    plain = {
        "comparison": {
            **{name: getattr(comparison, name) for name in fields},
            "problems": [
                {
                    **{name: getattr(problem, name) for name in ("name", "title", "spatial", "recurrent")},
                    "metric": dataclasses.asdict(problem.metric),
                }
                for problem in comparison.problems
                if problem.name in settings.problems
            ],
            "curves": [
                {
                    **{name: getattr(curve, name) for name in ("name", "title", "shows", "hides", "advises")},
                    "factor": dataclasses.asdict(curve.factor),
                    "config": {str(value): dict(curve.config(value)) for value in settings.values[curve.name]},
                }
                for curve in comparison.curves
                if curve.name in settings.curves
            ],
        },
        "settings": dataclasses.asdict(settings),
        "cells": configurations(analysis),
        "identity": dict(identity),
        "outdated": outdated,
    }
    return json.dumps(plain, indent=2, ensure_ascii=False, default=str) + "\n"


def figure_files(analysis: Analysis) -> dict[tuple[str, str, str], Figure]:
    """Draw the figures that are not empty by problem, curve and kind."""
    looks = dataclasses.replace(analysis, problems=(), runs=(), costs=(), series=())
    curves = [(looks, *found) for found in _stems(analysis)]
    drawn = spread(_figures_of, curves) if len(analysis.cells) >= MANY_CELLS else map(_figures_of, curves)
    return {key: figure for found in drawn for key, figure in found.items()}


_Curve = tuple[Analysis, str, ProblemResult, CurveResult]
"""The looks of all figures, and the file name, the problem and the result of a curve."""


def _figures_of(found: _Curve) -> dict[tuple[str, str, str], Figure]:
    """Draw the figures of a curve that are not empty."""
    from normlab.study.report import figures  # loads matplotlib

    looks, stem, problem, curve = found
    kinds = {"error": figures.error_figure, "loss": figures.loss_figure, "tuning": figures.tuning_figure}
    return {
        (problem.name, curve.name, kind): _figure(
            drawing, f"{kind}-{stem}", f"{_ABOUT[kind]}: {problem.title}, {curve.title}", for_print=looks.claims
        )
        for kind, draw in kinds.items()
        if (drawing := draw(looks, problem, curve))
    }


_ABOUT = {
    "error": "Error against the factor",
    "loss": "Training loss against the factor",
    "tuning": "Validation error against the learning rate",
}


def series_files(analysis: Analysis) -> list[tuple[SeriesResult, Figure, Download]]:
    """Yield every series with its figure and its numbers."""
    from normlab.study.report import figures  # loads matplotlib

    found = []
    for number, one in enumerate(analysis.series):
        name = f"series-{slug(f'{one.problem}-{one.series.name}')}"
        if any(table.name == f"{name}.csv" for _, _, table in found):
            name = f"{name}.{number}"
        drawing, label = figures.series_figure(analysis, one), f"{one.series.title}: {one.problem}"
        drawn = _figure(drawing, name, label, for_print=analysis.claims)
        csv = to_csv(series_rows(one)).encode()
        found.append((one, drawn, Download(f"tables/{name}.csv", "text/csv;charset=utf-8", csv)))
    return found


def _figure(drawing: "Drawing", name: str, label: str, *, for_print: bool) -> Figure:
    """Render a figure for the page, and as files of a name.

    A PDF contains its fonts, which takes half of the time of a report; figures without claims are for no paper.
    """
    from normlab.study.report import figures

    svg = figures.to_svg(drawing)
    files = [Download(f"figures/{name}.svg", "image/svg+xml", svg.encode())]
    if for_print:
        files.append(Download(f"figures/{name}.pdf", "application/pdf", figures.to_pdf(drawing)))
    return Figure(svg=Markup(figures.inline(svg, name, label)), files=tuple(files))


def norm_keys(analysis: Analysis) -> dict[str, str]:
    """Draw the line and marker of every norm."""
    from normlab.study.report import figures  # loads matplotlib

    return {norm: Markup(figures.key(style)) for norm, style in figures.styles(analysis.looks).items()}


def data_files(
    analysis: Analysis, comparison: Comparison, settings: Settings, identity: RunIdentity, outdated: str = ""
) -> Iterator[Download]:
    """Yield the files of results, runs and settings."""
    config = describe(analysis, comparison, settings, identity, outdated)
    csv, text = "text/csv;charset=utf-8", "text/plain;charset=utf-8"
    yield Download("analysis.json", text, to_json(analysis).encode(), "every number of this page but times")
    yield Download("tables/cells.csv", csv, to_csv(rows(analysis)).encode(), "a row for every norm, value and curve")
    yield Download(
        "tables/runs.csv", csv, to_csv(run_rows(analysis)).encode(), "status and metrics of every planned run"
    )
    yield Download("tables/settings.json", text, config.encode(), "every setting, and what it ran on")
    toml = to_toml(settings, comparison)
    yield Download("tables/settings.toml", text, toml.encode(), "for `normlab run NAME --config`")


def latex_files(analysis: Analysis) -> dict[tuple[str, str], Download]:
    """Write the LaTeX tables by problem and curve."""
    return {
        (problem.name, curve.name): Download(
            f"tables/{stem}.tex", "text/plain;charset=utf-8", to_latex(analysis, problem, curve).encode()
        )
        for stem, problem, curve in _stems(analysis)
    }


def _stems(analysis: Analysis) -> Iterator[tuple[str, ProblemResult, CurveResult]]:
    """Yield every problem and curve with a unique file name."""
    taken: Counter[str] = Counter()
    for problem in analysis.problems:
        for curve in problem.curves:
            stem = slug(f"{problem.name}-{curve.name}")
            taken[stem.lower()] += 1
            again = taken[stem.lower()]
            yield stem if again == 1 else f"{stem}.{again}", problem, curve


class TrainedConfiguration(TypedDict):
    """A configuration for the report: `options` is the norm with all its options, `config` has the training fields."""

    problem: str
    norm: str
    options: str
    config: dict[str, object]


def configurations(analysis: Analysis) -> list[TrainedConfiguration]:
    """List all configurations, each once."""
    found: dict[str, TrainedConfiguration] = {}
    for (problem, norm, options), of in groupby(analysis.runs, key=attrgetter("problem", "norm", "options")):
        for config, _ in groupby(run.config for run in of):
            configuration = TrainedConfiguration(problem=problem, norm=norm, options=options, config=dict(config))
            found.setdefault(canonical_json(configuration), configuration)
    return list(found.values())
