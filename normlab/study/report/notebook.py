"""Results in a notebook: HTML without outside references, legible on light and on dark pages."""

from collections.abc import Iterable, Sequence
from importlib import resources

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from normlab.study.analysis.results import Analysis
from normlab.study.report import figures, formatting, html
from normlab.study.report.headline import headlines
from normlab.study.report.tables import margins, not_run

__all__ = ["Table", "result_html", "table_html"]


class Table(str):
    """The tables of a result as text, which a notebook shows as HTML."""

    html: str

    def __new__(cls, text: str, html: str = "") -> "Table":
        """Store the HTML beside the text."""
        table = super().__new__(cls, text)
        table.html = html
        return table

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return self.html


def result_html(analysis: Analysis) -> str:
    """Write the headlines, the tables, and between them the figure where there is something to draw."""
    drawn = any(cell.points for cell in analysis.cells)
    return _html(analysis, headlines(analysis), figures.plot(analysis)._repr_html_() if drawn else "")


def table_html(analysis: Analysis) -> str:
    """Write the tables."""
    return _html(analysis)


def _html(analysis: Analysis, sentences: Sequence[str] = (), figure: str = "") -> str:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["prose"] = html.prose
    text = resources.files("normlab.study.report").joinpath("notebook.html.jinja").read_text("utf-8")
    return environment.from_string(text).render(
        analysis=analysis,
        sentences=sentences,
        figure=Markup(figure),
        formatting=formatting,
        notes=[". ".join(_legend(analysis)) + ".", *not_run(analysis)],
    )


def _legend(analysis: Analysis) -> Iterable[str]:
    level = formatting.percent(analysis.level, 0)
    yield f"Mean ± half of the {level} % interval over {formatting.seeds_so_far(analysis)}"
    if tuned := formatting.provisional(analysis):
        yield f"Provisional: {tuned}"
    if analysis.claims:
        yield f"Verdicts are against {analysis.names[analysis.baseline]} at a margin of {margins(analysis)}"
    if analysis.baseline_note:
        yield analysis.baseline_note.rstrip(".")
