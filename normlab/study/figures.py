"""The figures of a report as SVG text for inlining: no pyplot, no state, the same bytes for the same analysis.

Text stays text, the background is transparent, and colours are CSS variables with a printable default, so that a
figure follows the page into dark mode. Every series has its own colour (Okabe and Ito's, safe for colour-blind eyes)
and marker.
"""

import io
import math
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from normlab.study.config import Value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from normlab.study.analysis import Analysis, CellResult, ProblemResult

INK, FAINT = "#010203", "#010204"
"""Stand-ins for the page's text and rule colours, which CSS decides."""

PALETTE = (INK, "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = "osD^vPX*"
STYLES: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 8.5,
    "svg.fonttype": "none",
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.4,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
}


def error_figure(analysis: "Analysis", problem: "ProblemResult", name: str) -> str:
    """Draw error against the factor: every seed's point, means with intervals, failed runs along the top.

    Args:
        analysis: Gives norms, factor values and the axis.
        problem: What to draw.
        name: Prefix of the ids inside the SVG, unique on the page.

    Returns:
        An `<svg>` element.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**STYLES, "svg.hashsalt": name}):
        figure = Figure(figsize=(4.8, 3.6), layout="constrained")
        axes = figure.add_subplot()
        places = _places(analysis.values, analysis.factor["log"])
        shown = [norm for norm in analysis.norms if any(problem.cell(norm, v).points for v in analysis.values)]
        for index, norm in enumerate(shown):
            shift = _dodge(places) * ((index + 0.5) / len(shown) - 0.5)
            cells = [problem.cell(norm, value) for value in analysis.values]
            _draw_norm(axes, [place + shift for place in places], cells, _look(analysis.norms.index(norm)))
        axes.set_xticks(places, [str(value) for value in analysis.values])
        axes.grid(visible=False, axis="x")
        axes.set_xlabel(analysis.factor["label"])
        axes.set_ylabel(f"{problem.metric} (%)")
        tops = [cell.error.interval[1] for cell in problem.cells if cell.error.interval]
        _scale_errors(axes, [point.error for cell in problem.cells for point in cell.points] + tops)
        _legend(figure, analysis, shown, failed=any(cell.failures.k for cell in problem.cells))
        return _svg(figure, name, f"{problem.title}: {problem.metric} against {analysis.factor['label']}")


def tuning_figure(analysis: "Analysis", problem: "ProblemResult", name: str) -> str:
    """Draw median validation error against the learning rate, a panel for each factor value, chosen rates circled."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    columns = min(3, len(analysis.values))
    rows = math.ceil(len(analysis.values) / columns)
    with rc_context({**STYLES, "svg.hashsalt": name, "font.size": 7.5}):
        figure = Figure(figsize=(4.8, 0.9 + 1.4 * rows), layout="constrained")
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, value in zip(panels, analysis.values, strict=False):
            for index, norm in enumerate(analysis.norms):
                _draw_tuning(axes, problem.cell(norm, value), _look(index))
            axes.set_title(f"{analysis.factor['name']} {value}".replace("_", " "), fontsize=7.5)
            axes.set_xlabel("learning rate")
            axes.label_outer()
        for axes in panels[len(analysis.values) :]:
            axes.set_visible(False)
        _scale_errors(panels[0], [t.error for cell in problem.cells for t in cell.tuning])
        _scale_rates(panels[0], [t.learning_rate for cell in problem.cells for t in cell.tuning])
        figure.supylabel("median validation error (%)", fontsize=7.5)
        shown = [norm for norm in analysis.norms if any(problem.cell(norm, v).tuning for v in analysis.values)]
        _legend(figure, analysis, shown, failed=False)
        return _svg(figure, name, f"{problem.title}: validation error against the learning rate")


def _look(index: int) -> dict[str, Any]:
    return {
        "color": PALETTE[index % len(PALETTE)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": ("-", "--", ":")[index // len(PALETTE) % 3],
    }


def _places(values: Sequence[Value], log: bool) -> list[float]:
    """Where factor values stand on a linear axis: their logarithm, themselves, or 0, 1, 2 for names."""
    numbers = [value for value in values if isinstance(value, int | float)]
    if len(numbers) < len(values):
        return [float(index) for index in range(len(values))]
    if log and min(numbers) > 0:
        return [math.log2(number) for number in numbers]
    return [float(number) for number in numbers]


def _dodge(places: Sequence[float]) -> float:
    """The width over which norms spread around a factor value, so that their points do not hide each other."""
    ordered = sorted(places)
    return 0.6 * min((b - a for a, b in pairwise(ordered) if b > a), default=1.0)


def _draw_norm(axes: "Axes", places: Sequence[float], cells: "Sequence[CellResult]", look: dict[str, Any]) -> None:
    for place, cell in zip(places, cells, strict=True):
        errors = [100 * point.error for point in cell.points if point.error is not None]
        axes.plot([place] * len(errors), errors, look["marker"], color=look["color"], ms=2.6, mew=0, alpha=0.45)
        if cell.error.mean is not None and cell.error.interval is not None:
            low, high = (max(0.0, 100 * end) for end in cell.error.interval)
            axes.vlines(place, low, high, colors=look["color"], linewidth=1.1)
        if cell.failures.k:
            _draw_failures(axes, place, cell, look["color"])
    means = [math.nan if cell.error.mean is None else 100 * cell.error.mean for cell in cells]
    axes.plot(places, means, **look, linewidth=1.1, ms=4.2, mew=0)


def _draw_failures(axes: "Axes", place: float, cell: "CellResult", color: str) -> None:
    top = axes.get_xaxis_transform()
    axes.plot([place], [1.03], "x", color=color, ms=4.5, mew=1.3, transform=top, clip_on=False)
    axes.text(
        place, 1.06, f"{cell.failures.k}/{cell.failures.n}", color=color, transform=top, ha="center", fontsize=7.5
    )


def _draw_tuning(axes: "Axes", cell: "CellResult", look: dict[str, Any]) -> None:
    points = [(t.learning_rate, math.nan if t.error is None else 100 * t.error) for t in cell.tuning]
    if not points:
        return
    axes.plot(*zip(*points, strict=True), **look, linewidth=0.9, ms=2.8, mew=0)
    chosen = [(rate, error) for rate, error in points if rate == cell.learning_rate]
    axes.plot(*zip(*chosen, strict=True), "o", ms=6.5, mfc="none", mec=look["color"], mew=0.9) if chosen else None


def _scale_errors(axes: "Axes", errors: Sequence[float | None]) -> None:
    """A logarithmic error axis where errors span more than a factor of six, so that small ones can be told apart."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    there = [100 * error for error in errors if error is not None and math.isfinite(error)]
    if not there or min(there) <= 0 or max(there) < 6 * min(there):
        axes.set_ylim(bottom=0)
        return
    axes.set_yscale("log")
    axes.set_ylim(0.85 * min(there), 1.15 * max(there))
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _scale_rates(axes: "Axes", rates: Sequence[float]) -> None:
    """A logarithmic axis with a line for every rate that was tried; only the outer ones have room for a label."""
    from matplotlib.ticker import NullLocator

    ordered = sorted(set(rates))
    if not ordered:
        return
    axes.set_xscale("log")
    axes.set_xticks(ordered, [f"{rate:g}" if rate in (ordered[0], ordered[-1]) else "" for rate in ordered])
    axes.xaxis.set_minor_locator(NullLocator())


def _legend(figure: "Figure", analysis: "Analysis", norms: Sequence[str], *, failed: bool) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **_look(analysis.norms.index(norm)), linewidth=1.1, ms=4.2, mew=0) for norm in norms]
    names = [analysis.names[norm] for norm in norms]
    if failed:
        handles.append(Line2D([], [], color=INK, marker="x", linestyle="none", ms=4.5, mew=1.3))
        names.append("failed runs")
    if handles:
        figure.legend(handles, names, loc="outside lower center", ncols=3, columnspacing=1.4, handlelength=1.8)


def _svg(figure: "Figure", name: str, label: str) -> str:
    """The figure as an element for inlining: own ids, the page's colours, nothing that names another place."""
    from markupsafe import escape

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = text.replace(INK, "currentColor").replace(FAINT, "var(--rule, #c8c8c8)")
    for index, color in enumerate(PALETTE[1:], start=1):
        text = text.replace(color, f"var(--series-{index}, {color})")
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)
