"""The figures of a comparison: no pyplot, no state, the same bytes for the same analysis.

One set of drawing functions gives figures for a page (SVG in its colours), for a paper (SVG, PDF) and for a notebook.
Text stays text. Every norm has its own colour (Okabe and Ito's, safe for colour-blind eyes) and marker.
"""

import io
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, TypedDict

from markupsafe import escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from normlab.study.analysis.estimates import Interval
from normlab.study.analysis.results import Analysis, CellResult, CurveResult, Line, Numbers, ProblemResult, SeriesResult
from normlab.study.design.factors import Value
from normlab.study.design.problem import MEASURED_AT, Metric
from normlab.study.report import formatting

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

INK, FAINT = "#1c2024", "#c8c8ca"
"""Colour of text and rules; the CSS of a page replaces it."""

BESIDE = "#767676"
"""Colour of everything that is no norm, legible on white and on black."""

PALETTE = (INK, "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = "osD^vPX*"
LINES: tuple[Literal["-", "--", ":"], ...] = ("-", "--", ":")
_DASHED = (0, (5, 2))
"""The line of a norm that the factor does not touch."""

STYLES: "dict[RcKeyType, object]" = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.4,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
}


class Drawing(Figure):
    """A figure that a notebook displays without pyplot."""

    def _repr_html_(self) -> str:
        """Write the figure in the colours of the page; ids from its content never clash with those of another."""
        svg = to_svg(self)
        label = "; ".join(filter(None, (axes.get_title() for axes in self.axes)))
        return inline(svg, f"figure-{sha256(svg.encode()).hexdigest()[:8]}", label)

    def _repr_svg_(self) -> str:
        return to_svg(self)


def plot(analysis: Analysis) -> Drawing:
    """Draw error against the factor, a row for every problem and a panel for every curve."""
    rows, columns = len(analysis.problems), max(len(problem.curves) for problem in analysis.problems)
    with _figure(4.8 * columns, 3.3 * rows + 0.6) as figure:
        panels = figure.subplots(rows, columns, squeeze=False)
        for problem, line in zip(analysis.problems, panels, strict=True):
            for axes, curve in zip(line, problem.curves, strict=False):
                _draw_errors(axes, analysis, problem, curve)
                axes.set_title(f"{problem.title}, {curve.name}", fontsize=8.5)
            for axes in line[len(problem.curves) :]:
                axes.set_visible(False)
        cells = analysis.cells
        _legend(figure, analysis, cells, _flat(cells), _failed(cells), columns=4)
    return figure


def error_figure(analysis: Analysis, problem: ProblemResult, curve: CurveResult) -> Figure:
    """Draw error against the factor: every seed's point, means with intervals, failed runs along the top."""
    with _figure(4.8, 3.6) as figure:
        _draw_errors(figure.add_subplot(), analysis, problem, curve)
        _legend(figure, analysis, curve.cells, _flat(curve.cells), _failed(curve.cells))
    return figure


def loss_figure(analysis: Analysis, problem: ProblemResult, curve: CurveResult) -> Figure:
    """Draw the final training loss against the factor, means with intervals."""
    with _figure(4.8, 3.0) as figure:
        axes = figure.add_subplot()
        for index, cells, places in _rows(analysis, curve):
            means = [_number(cell.train_loss.mean) for cell in cells]
            _draw_means(axes, places, means, [cell.train_loss.interval for cell in cells], index, flat=cells[0].flat)
        _label_factor(axes, curve)
        axes.set_ylabel("training loss")
        tops = [cell.train_loss.interval[1] for cell in curve.cells if cell.train_loss.interval]
        _scale(axes, [*(cell.train_loss.mean for cell in curve.cells), *tops])
        _legend(figure, analysis, curve.cells, _flat(curve.cells))
    return figure


def tuning_figure(analysis: Analysis, problem: ProblemResult, curve: CurveResult) -> Figure:
    """Draw median validation error against the learning rate, a panel a value; basins shaded, chosen rates circled."""
    columns = min(3, len(curve.values))
    rows = math.ceil(len(curve.values) / columns)
    with _figure(4.8, 0.9 + 1.4 * rows, font_size=7.5) as figure:
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, value in zip(panels, curve.values, strict=False):
            for index, norm in enumerate(analysis.norms):
                _draw_tuning(axes, problem.metric, curve.cell(norm, value), index)
            axes.set_title(f"{curve.factor['name']} {value}".replace("_", " "), fontsize=7.5)
            axes.set_xlabel("learning rate")
            axes.label_outer()
        for axes in panels[len(curve.values) :]:
            axes.set_visible(False)
        _scale(panels[0], [_shown(problem.metric, t.error) for cell in curve.cells for t in cell.tuning])
        _scale_rates(panels[0], [t.learning_rate for cell in curve.cells for t in cell.tuning])
        figure.supylabel(_with_unit("median validation error", problem.metric), fontsize=7.5)
        _legend(figure, analysis, curve.cells)
    return figure


def series_figure(analysis: Analysis, found: SeriesResult) -> Figure:
    """Draw a series, a line for every norm with a band from the lowest to the highest seed, a panel for every time."""
    series, panels = found.series, _panels(found)
    with _figure(4.8, 3.0, font_size=7.5) as figure:
        row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (title, x, lines) in zip(row, panels, strict=True):
            for norm, line in lines.items():
                _draw_line(axes, x, line, analysis.norms.index(norm), series.log)
            axes.set_title(title, fontsize=7.5)
            axes.set_xlabel(series.x_label if len(series.x) > 1 else "share of training (%)")
            if series.log_x:
                axes.set_xscale("log")
                axes.set_xticks(x, [f"{place:g}" for place in x])
                axes.xaxis.set_minor_locator(NullLocator())
        row[0].set_ylabel(series.y_label)
        if series.log:
            _scale_decades(row[0])
        elif all(x is None or x >= 0 for _, _, lines in panels for line in lines.values() for x in line.low):
            row[0].set_ylim(bottom=0)
        problem = next(problem for problem in analysis.problems if problem.name == found.problem)
        cells = [cell for cell in problem.curve(found.curve).cells if cell.norm in found.lines]
        _legend(figure, analysis, cells)
    return figure


def to_svg(figure: Figure) -> str:
    """Write the figure as an SVG document."""
    buffer = io.StringIO()
    with rc_context({**STYLES, "svg.hashsalt": "normlab"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", buffer.getvalue(), flags=re.DOTALL)
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d+\.\d\d)\d+", r"\1", tag[0]), text)
    text = re.sub(r'<g id="\w+"/>|(?<=<g) id="[a-zA-Z.]\w+_\d+"', "", text)  # groups that nothing refers to
    text = re.sub(r"\s*\n\s*", "\n", text)
    return re.sub(r"(<g[^>]*)>\n((?:<use [^>]*/>\n)+)", _shared_style, text)


def to_pdf(figure: Figure) -> bytes:
    """Write the figure as a PDF with fonts and without a date, so that the bytes are reproducible."""
    buffer = io.BytesIO()
    with rc_context(STYLES):
        figure.savefig(buffer, format="pdf", transparent=True, metadata={"CreationDate": None})
    return buffer.getvalue()


def inline(svg: str, name: str, label: str) -> str:
    """Convert a figure to an element of a page: unique ids, the page's colours, no external references.

    Args:
        svg: From `to_svg`.
        name: Prefix of the ids, unique on the page.
        label: Text for screen readers.

    Returns:
        An `<svg>` element, in which the marks of a norm have the class `norm-` and its number.
    """
    text = svg[svg.index("<svg") :]
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", text)
    text = re.sub(r'\bid="(norm-\d+)"', r'class="\1"', text)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = text.replace(INK, "currentColor").replace(FAINT, "var(--rule, #c8c8ca)")
    for index, color in enumerate(PALETTE[1:], start=1):
        text = text.replace(color, f"var(--series-{index}, {color})")
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)


def key(index: int) -> str:
    """Draw the colour and marker of a norm as a small element for a page."""
    with _figure(0.34, 0.17) as figure:
        axes = figure.add_subplot()
        axes.set_axis_off()
        axes.plot([0, 1, 2], [0, 0, 0], **_look(index), markevery=[1], linewidth=1.3, ms=5, mew=0)
        axes.set_xlim(0, 2)
    return inline(to_svg(figure), f"key-{index}", "").replace('role="img" aria-label=""', 'aria-hidden="true"')


@contextmanager
def _figure(width: float, height: float, font_size: float = 8.5) -> Iterator[Drawing]:
    """Make a figure and lay it out once: a permanent layout engine would move elements with every drawing."""
    with rc_context({**STYLES, "font.size": font_size}):
        figure = Drawing(figsize=(width, height))
        yield figure
        ConstrainedLayoutEngine().execute(figure)


def _shared_style(group: re.Match[str]) -> str:
    """Move the style of markers to their group, which saves a third of the size of a figure."""
    head, markers = group.groups()
    styles = set(re.findall(r' style="[^"]*"', markers))
    if len(styles) != 1 or "style=" in head:
        return group[0]
    style = styles.pop()
    return f"{head}{style}>\n{markers.replace(style, '')}"


class _Look(TypedDict):
    color: str
    marker: str
    linestyle: Literal["-", "--", ":", "none"]


def _look(index: int) -> _Look:
    return {
        "color": PALETTE[index % len(PALETTE)],
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": LINES[index // len(PALETTE) % len(LINES)],
    }


def _places(values: Sequence[Value], log: bool) -> list[float]:
    """Compute positions of factor values on a linear axis: logarithms, values, or 0, 1, 2 for names."""
    numbers = [value for value in values if isinstance(value, int | float)]
    if len(numbers) < len(values):
        return [float(index) for index in range(len(values))]
    if log and min(numbers) > 0:
        return [math.log2(number) for number in numbers]
    return [float(number) for number in numbers]


def _rows(analysis: Analysis, curve: CurveResult) -> Iterator[tuple[int, list[CellResult], list[float]]]:
    """Yield number, cells and positions of every norm with results, norms side by side around each factor value."""
    shown = [norm for norm in analysis.norms if any(curve.cell(norm, value).points for value in curve.values)]
    places = _places(curve.values, curve.factor["log"])
    width = 0.6 * min((b - a for a, b in pairwise(sorted(places)) if b > a), default=1.0)
    for position, norm in enumerate(shown):
        shift = width * ((position + 0.5) / len(shown) - 0.5)
        cells = [curve.cell(norm, value) for value in curve.values]
        yield analysis.norms.index(norm), cells, [place + shift for place in places]


def _draw_errors(axes: Axes, analysis: Analysis, problem: ProblemResult, curve: CurveResult) -> None:
    metric = problem.metric
    for index, cells, places in _rows(analysis, curve):
        if not cells[0].flat:
            _draw_points(axes, metric, places, cells, index)
        means = [_number(_shown(metric, cell.error.mean)) for cell in cells]
        intervals = [_shown_interval(metric, cell.error.interval) for cell in cells]
        _draw_means(axes, places, means, intervals, index, flat=cells[0].flat)
        _draw_failures(axes, places, cells, index)
    _draw_shared(axes, problem, curve)
    _label_factor(axes, curve)
    axes.set_ylabel(_with_unit(metric.name, metric))
    tops = [cell.error.interval[1] for cell in curve.cells if cell.error.interval]
    errors = [point.error for cell in curve.cells for point in cell.points]
    _scale(axes, [_shown(metric, error) for error in (*errors, *tops)])


def _draw_shared(axes: Axes, problem: ProblemResult, curve: CurveResult) -> None:
    """Draw named grey lines at shared metrics that are not far above the norms' errors."""
    top = max((_number(_shown(problem.metric, cell.error.mean)) for cell in curve.cells if cell.points), default=0)
    places = _places(curve.values, curve.factor["log"])
    for metric in (metric for metric in problem.side if metric.shared):
        found = [_number(_shown(metric, curve.shared(metric, value).mean)) for value in curve.values]
        if not all(value <= 1.1 * top for value in found):
            continue
        wide = [places[0] - 0.5, *places[1:-1], places[-1] + 0.5]
        axes.plot(wide, found if len(places) > 1 else found * 2, color=BESIDE, linewidth=0.8, linestyle=":", zorder=1)
        axes.annotate(metric.name, (wide[0], found[0]), (0, 2), textcoords="offset points", fontsize=6, color=BESIDE)


def _draw_points(axes: Axes, metric: Metric, places: Sequence[float], cells: Sequence[CellResult], index: int) -> None:
    """Draw every seed as a point."""
    points = [
        (place, _shown(metric, point.error))
        for place, cell in zip(places, cells, strict=True)
        for point in cell.points
        if point.error is not None
    ]
    if points:
        look: _Look = {**_look(index), "linestyle": "none"}
        axes.plot(*zip(*points, strict=True), **look, ms=2.6, mew=0, alpha=0.45, gid=f"norm-{index}")


def _draw_means(
    axes: Axes,
    places: Sequence[float],
    means: Sequence[float],
    intervals: Sequence[Interval | None],
    index: int,
    *,
    flat: bool,
) -> None:
    """Draw means joined by a line, with intervals; a flat reference as a line with a band across the axes."""
    look, gid = _look(index), f"norm-{index}"
    if flat:
        if math.isfinite(means[0]):
            axes.axhline(means[0], color=look["color"], linestyle=_DASHED, linewidth=0.9, gid=gid)
            middle = axes.get_yaxis_transform()
            spot = 0.06 + 0.88 * (index + 0.5) / 8
            axes.plot([spot], [means[0]], look["marker"], color=look["color"], ms=4.2, mew=0, transform=middle, gid=gid)
        if intervals[0]:
            axes.axhspan(*intervals[0], color=look["color"], alpha=0.07, linewidth=0, gid=gid)
        return
    for place, ends in zip(places, intervals, strict=True):
        if ends:
            axes.vlines(place, max(0.0, ends[0]), ends[1], colors=look["color"], linewidth=1.1, gid=gid)
    axes.plot(places, means, **look, linewidth=1.1, ms=4.2, mew=0, gid=gid)


def _draw_failures(axes: Axes, places: Sequence[float], cells: Sequence[CellResult], index: int) -> None:
    color, top, gid = _look(index)["color"], axes.get_xaxis_transform(), f"norm-{index}"
    for place, cell in zip(places, cells[:1] if cells[0].flat else cells, strict=False):
        if cell.failures.k:
            text = f"{cell.failures.k}/{cell.failures.n}"
            axes.plot([place], [1.03], "x", color=color, ms=4.5, mew=1.3, transform=top, clip_on=False, gid=gid)
            axes.text(place, 1.06, text, color=color, transform=top, ha="center", fontsize=7.5, gid=gid)


def _draw_tuning(axes: Axes, metric: Metric, cell: CellResult, index: int) -> None:
    """Draw a learning-rate curve, thick within its basin, the chosen rate circled."""
    look, gid = _look(index), f"norm-{index}"
    points = [(t.learning_rate, _number(_shown(metric, t.error))) for t in cell.tuning]
    if not points:
        return
    axes.plot(*zip(*points, strict=True), **look, linewidth=0.9, ms=2.8, mew=0, gid=gid)
    if cell.basin:
        within = [point for point in points if cell.basin.low <= point[0] <= cell.basin.high]
        line = {"linewidth": 5, "alpha": 0.25, "solid_capstyle": "round", "gid": gid}
        axes.plot(*zip(*within, strict=True), color=look["color"], **line)
    chosen = [point for point in points if point[0] == cell.learning_rate]
    if chosen:
        axes.plot(*zip(*chosen, strict=True), "o", ms=6.5, mfc="none", mec=look["color"], mew=0.9, gid=gid)


def _panels(found: SeriesResult) -> list[tuple[str, Sequence[float], dict[str, Line]]]:
    """List heading, x-axis and lines of every panel; a series of single numbers has one panel, along the training."""
    if len(found.series.x) == 1:
        shares = [100 * share for share in MEASURED_AT]
        return [("", shares, {norm: _along(lines) for norm, lines in found.lines.items()})]
    if found.series.at_end:
        return [("", found.series.x, {norm: lines[-1] for norm, lines in found.lines.items()})]
    titles = {0: "before training", **({2: "halfway"} if found.series.during else {}), 4: "after training"}
    return [(title, found.series.x, {n: lines[i] for n, lines in found.lines.items()}) for i, title in titles.items()]


def _along(lines: Sequence[Line]) -> Line:
    """Join lines of one point each to one line."""
    low, middle, high = (tuple(getattr(line, name)[0] for line in lines) for name in ("low", "middle", "high"))
    return Line(middle=middle, low=low, high=high, seeds=lines[0].seeds)


def _draw_line(axes: Axes, x: Sequence[float], line: Line, index: int, log: bool) -> None:
    def there(numbers: Numbers) -> list[float]:
        return [math.nan if y is None or (log and y <= 0) else y for y in numbers]

    look, gid, few = _look(index), f"norm-{index}", max(1, len(x) // 6)
    axes.fill_between(x, there(line.low), there(line.high), color=look["color"], alpha=0.1, linewidth=0, gid=gid)
    axes.plot(x, there(line.middle), **look, markevery=(index % few, few), linewidth=1.1, ms=3.6, mew=0, gid=gid)


def _label_factor(axes: Axes, curve: CurveResult) -> None:
    places = _places(curve.values, curve.factor["log"])
    axes.set_xticks(places, [str(value) for value in curve.values])
    axes.grid(visible=False, axis="x")
    axes.set_xlabel(curve.factor["label"])


def _scale(axes: Axes, numbers: Sequence[float | None]) -> None:
    """Use a logarithmic axis where numbers span more than a factor of six, to distinguish small ones."""
    there = [number for number in numbers if number is not None and math.isfinite(number)]
    if not there or min(there) <= 0 or max(there) < 6 * min(there):
        if not there or min(there) >= 0:
            axes.set_ylim(bottom=0)
        return
    wide = max(there) > 1000 * min(there)
    axes.set_yscale("log")
    axes.set_ylim(0.85 * min(there), 1.15 * max(there))
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _scale_decades(axes: Axes) -> None:
    """Use a logarithmic axis, labelled at powers of ten."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(base=10, numticks=7))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _scale_rates(axes: Axes, rates: Sequence[float]) -> None:
    """Use a logarithmic axis; only the outer rates have room for a label."""
    ordered = sorted(set(rates))
    if not ordered:
        return
    axes.set_xscale("log")
    outer = sorted({ordered[0], ordered[-1]})
    axes.set_xticks(outer, [formatting.rate(rate) for rate in outer])
    axes.xaxis.set_minor_locator(NullLocator())


def _legend(
    figure: Figure, analysis: Analysis, cells: Sequence[CellResult], *signs: tuple[bool, Line2D], columns: int = 3
) -> None:
    """Draw the legend: the norms that were tried, then the signs that occur."""
    norms = [index for index, norm in enumerate(analysis.norms) if any(c.norm == norm and c.tuning for c in cells)]
    marks = [
        Line2D([], [], **_look(index), lw=1.1, ms=4.2, mew=0, label=analysis.names[analysis.norms[index]])
        for index in norms
    ]
    handles = [*marks, *(sign for there, sign in signs if there)]
    if not handles:
        return
    longest = max((len(str(mark.get_label())) for mark in marks), default=0)
    columns = max(1, min(columns, int(figure.get_figwidth() / (0.55 + longest / 17))))  # inches; 17 letters in each
    lines = -(-len(handles) // columns)
    figure.set_figheight(figure.get_figheight() + 0.17 * max(0, lines - 3))  # what is drawn keeps its height
    legend = figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, columnspacing=1.4, handlelength=1.8
    )
    for index, mark, text in zip(norms, legend.legend_handles, legend.get_texts(), strict=False):
        text.set_gid(f"norm-{index}")
        if mark:
            mark.set_gid(f"norm-{index}")


def _failed(cells: Sequence[CellResult]) -> tuple[bool, Line2D]:
    """Return whether there are failed runs, and their sign."""
    sign = Line2D([], [], color=INK, marker="x", linestyle="none", ms=4.5, mew=1.3, label="failed runs")
    return any(cell.failures.k for cell in cells), sign


def _flat(cells: Sequence[CellResult]) -> tuple[bool, Line2D]:
    """Return whether there are flat references, and their sign."""
    sign = Line2D([], [], color=INK, linestyle=_DASHED, lw=0.9, label="flat reference")
    return any(cell.flat and cell.points for cell in cells), sign


def _with_unit(name: str, metric: Metric) -> str:
    return f"{name} ({formatting.unit(metric)})" if formatting.unit(metric) else name


def _shown(metric: Metric, x: float | None) -> float | None:
    return 100 * x if x is not None and metric.percent else x


def _shown_interval(metric: Metric, ends: Interval | None) -> Interval | None:
    scale = 100 if metric.percent else 1
    return None if ends is None else (scale * ends[0], scale * ends[1])


def _number(x: float | None) -> float:
    return math.nan if x is None else x
