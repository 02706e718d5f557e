"""The figures of a comparison: no pyplot, no state, the same bytes for the same analysis.

One set of drawing functions gives figures for a page (SVG in its colours), for a paper (SVG, PDF) and for a notebook.
Text stays text, at least 9 pixels high where a figure is as wide as a telephone. Every norm has the colour and marker
of the registry; further options of the same norm differ in dashes and in the filling of markers.
"""

import io
import math
import re
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
from matplotlib.transforms import offset_copy

from normlab.study.analysis.estimates import Interval
from normlab.study.analysis.results import Analysis, CellResult, CurveResult, Line, Numbers, ProblemResult, SeriesResult
from normlab.study.design.problem import MEASURED_AT, Metric
from normlab.study.report import formatting

if TYPE_CHECKING:
    from matplotlib.typing import FillStyleType, RcKeyType

INK, FAINT = "#1c2024", "#c8c8ca"
"""Colour of text and rules; the CSS of a page replaces it."""

BESIDE = "#767676"
"""Colour of everything that is no norm, legible on white and on black."""

DODGE = 0.15
"""Largest distance of a mark from its tick, in distances of neighbouring ticks."""

FEW = 6
"""Up to so many values stand at equal distances, each with its label."""

WIDTH = 4.8
"""Width of a figure in inches: at 360 pixels a point is a pixel."""

TEXT = 9.5
"""Size of text in points."""

_Dash = Literal["-"] | tuple[int, tuple[float, ...]]
_DASHES: tuple[_Dash, ...] = ("-", (0, (4, 1.6)), (0, (1, 1.3)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)))
_FILLS: "tuple[FillStyleType, ...]" = ("full", "none", "left", "top", "right")
_FLAT: _Dash = (0, (9, 3))
"""The line of a norm that the factor does not touch."""

STYLES: "dict[RcKeyType, object]" = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": TEXT,
    "axes.titlesize": TEXT,
    "axes.labelsize": TEXT,
    "figure.labelsize": TEXT,
    "xtick.labelsize": TEXT,
    "ytick.labelsize": TEXT,
    "legend.fontsize": TEXT,
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
        drawn = inline(svg, f"figure-{sha256(svg.encode()).hexdigest()[:8]}", label)
        return f'<div style="--rule: rgba(128, 128, 128, 0.4)">{drawn}</div>'

    def _repr_svg_(self) -> str:
        return to_svg(self)


@dataclass(frozen=True)
class Style:
    """The look of a norm in a figure.

    Attributes:
        colour: Colour, as `#rrggbb`.
        marker: Matplotlib's name of the marker.
        dash: Dashes of its line.
        fill: Filling of its markers.
        group: Id of its marks in an SVG, `norm-` and the number of the norm.
    """

    colour: str
    marker: str
    dash: _Dash
    fill: "FillStyleType"
    group: str

    def marks(self, size: float) -> "_Marks":
        """Return the options of a plot of markers without a line."""
        hollow = self.fill != "full"
        edge = size / 5 if hollow else 0.0
        return {
            "color": self.colour, "marker": self.marker, "fillstyle": self.fill, "markersize": size,
            "markeredgewidth": edge, "linestyle": "none", "gid": self.group,
        }  # fmt: skip


class _Marks(TypedDict):
    color: str
    marker: str
    fillstyle: "FillStyleType"
    markersize: float
    markeredgewidth: float
    linestyle: _Dash | Literal["none"]
    gid: str


def styles(looks: Mapping[str, tuple[str, str]]) -> dict[str, Style]:
    """Return the look of norms by their strings.

    Args:
        looks: Colours and markers; norms that have the same ones differ in dashes and in the filling of markers.
    """
    seen: Counter[tuple[str, str]] = Counter()
    found: dict[str, Style] = {}
    for number, (norm, look) in enumerate(looks.items()):
        turn = seen[look] % len(_DASHES)
        found[norm] = Style(*look, dash=_DASHES[turn], fill=_FILLS[turn], group=f"norm-{number}")
        seen[look] += 1
    return found


def plot(analysis: Analysis) -> Drawing:
    """Draw error against the factor, a row for every problem and a panel for every curve."""
    rows, columns = len(analysis.problems), max(len(problem.curves) for problem in analysis.problems)
    above = max(_above(curve) for problem in analysis.problems for curve in problem.curves) / 72
    with _figure(WIDTH * columns, (3.3 + above) * rows + 0.6) as figure:
        panels = figure.subplots(rows, columns, squeeze=False)
        for problem, line in zip(analysis.problems, panels, strict=True):
            for axes, curve in zip(line, problem.curves, strict=False):
                _draw_errors(axes, analysis, problem, curve)
                axes.set_title(f"{problem.title}, {curve.name}", pad=_above(curve))
            for axes in line[len(problem.curves) :]:
                axes.set_visible(False)
        cells = analysis.cells
        _legend(figure, analysis, _drawn(cells), _flat(cells), columns=4)
    return figure


def error_figure(analysis: Analysis, problem: ProblemResult, curve: CurveResult) -> Figure | None:
    """Draw error against the factor: points of seeds, means with intervals, failed runs along the top.

    Args:
        analysis: The analysis.
        problem: One of its problems.
        curve: One of the curves of the problem.

    Returns:
        The figure; `None` without an evaluation run.
    """
    if not any(cell.points for cell in curve.cells):
        return None
    with _figure(WIDTH, 3.3 + _above(curve) / 72) as figure:
        _draw_errors(figure.add_subplot(), analysis, problem, curve)
        _legend(figure, analysis, _drawn(curve.cells), _flat(curve.cells))
    return figure


def loss_figure(analysis: Analysis, problem: ProblemResult, curve: CurveResult) -> Figure | None:
    """Draw the final training loss against the factor, means with intervals; `None` without one."""
    if all(cell.train_loss.mean is None for cell in curve.cells):
        return None
    with _figure(WIDTH, 3.0) as figure:
        axes = figure.add_subplot()
        for style, cells, places in _rows(analysis, curve):
            means = [_number(cell.train_loss.mean) for cell in cells]
            _draw_means(axes, places, means, [cell.train_loss.interval for cell in cells], style, flat=cells[0].flat)
        _label_factor(axes, curve)
        axes.set_ylabel("training loss")
        ends = [end for cell in curve.cells for end in cell.train_loss.interval or ()]
        _scale(axes, [cell.train_loss.mean for cell in curve.cells], ends)
        _legend(figure, analysis, _drawn(curve.cells), _flat(curve.cells))
    return figure


def tuning_figure(analysis: Analysis, problem: ProblemResult, curve: CurveResult) -> Figure | None:
    """Draw median validation error against the learning rate; basins shaded, chosen rates circled.

    Args:
        analysis: The analysis.
        problem: One of its problems.
        curve: One of the curves of the problem.

    Returns:
        A figure with a panel for every value that has been tuned; `None` without one.
    """
    tuned = [(cell.value, t) for cell in curve.cells for t in cell.tuning if t.error is not None]
    values = [value for value in curve.values if value in {there for there, _ in tuned}]
    if not values:
        return None
    columns = 2 if len(values) in (2, 4) else min(3, len(values))
    rows = math.ceil(len(values) / columns)
    with _figure(WIDTH, 0.9 + 1.5 * rows) as figure:
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
        for axes, value in zip(panels, values, strict=False):
            for norm, style in styles(analysis.looks).items():
                _draw_tuning(axes, problem.metric, curve.cell(norm, value), style)
            axes.set_title(f"{curve.factor['name']} {value}".replace("_", " "))
        for axes in panels[len(values) :]:
            axes.set_visible(False)
        for axes in panels[max(0, len(values) - columns) : len(values)]:  # the lowest of each column
            axes.tick_params(labelbottom=True)
            axes.set_xlabel("learning rate")
        _scale(panels[0], [_shown(problem.metric, t.error) for _, t in tuned])
        _scale_rates(panels[0], [t.learning_rate for cell in curve.cells for t in cell.tuning])
        figure.supylabel(_with_unit("median validation error", problem.metric))
        _legend(figure, analysis, {cell.norm for cell in curve.cells if cell.tuning})
    return figure


def series_figure(analysis: Analysis, found: SeriesResult) -> Figure:
    """Draw a series, a line for every norm with a band from the lowest to the highest seed, a panel for every time."""
    series, panels = found.series, _panels(found)
    with _figure(WIDTH, 3.0) as figure:
        row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        looks = styles(analysis.looks)
        for axes, (title, x, lines) in zip(row, panels, strict=True):
            for norm, line in lines.items():
                _draw_line(axes, x, line, looks[norm], analysis.norms.index(norm), series.log)
            axes.set_title(title)
            axes.set_xlabel(series.x_label if len(series.x) > 1 else "share of training (%)")
            if series.log_x:
                _label_decades(axes, x)
        row[0].set_ylabel(series.y_label)
        if series.log:
            _scale_decades(row[0])
        elif all(x is None or x >= 0 for _, _, lines in panels for line in lines.values() for x in line.low):
            row[0].set_ylim(bottom=0)
        _legend(figure, analysis, found.lines)
    return figure


def to_svg(figure: Figure) -> str:
    """Write the figure as an SVG document."""
    buffer = io.StringIO()
    with rc_context({**STYLES, "svg.hashsalt": "normlab"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", buffer.getvalue(), flags=re.DOTALL)
    text = re.sub(r"<[^>]*>", lambda tag: re.sub(r"(\d+\.\d\d)\d+", r"\1", tag[0]), text)
    text = re.sub(r' (d|x|y)="[^"]*"', lambda at: re.sub(r"(\d+\.\d)\d", r"\1", at[0]), text)
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
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)


def key(style: Style) -> str:
    """Draw the line and marker of a norm as a small element for a page."""
    with _figure(0.34, 0.17) as figure:
        axes = figure.add_subplot()
        axes.set_axis_off()
        axes.plot([0, 2], [0, 0], color=style.colour, linestyle=style.dash, linewidth=1.3)
        axes.plot([1], [0], **style.marks(5.5))
        axes.set_xlim(0, 2)
    return inline(to_svg(figure), f"key-{style.group}", "").replace('role="img" aria-label=""', 'aria-hidden="true"')


@contextmanager
def _figure(width: float, height: float) -> Iterator[Drawing]:
    """Make a figure and lay it out once: a permanent layout engine would move elements with every drawing."""
    with rc_context(STYLES):
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


def _places(curve: CurveResult) -> list[float]:
    """Compute positions of factor values: 0, 1, 2 for names and for few values, else numbers or their logarithms."""
    values = curve.values
    numbers = [value for value in values if isinstance(value, int | float)]
    if len(values) <= FEW or len(numbers) < len(values):
        return [float(index) for index in range(len(values))]
    if curve.factor["log"] and min(numbers) > 0:
        return [math.log2(number) for number in numbers]
    return [float(number) for number in numbers]


def _rows(analysis: Analysis, curve: CurveResult) -> Iterator[tuple[Style, list[CellResult], list[float]]]:
    """Yield style, cells and positions of every norm with results, norms side by side around each factor value."""
    shown = [norm for norm in analysis.norms if any(curve.cell(norm, value).points for value in curve.values)]
    places, looks = _places(curve), styles(analysis.looks)
    width = 2 * DODGE * min((b - a for a, b in pairwise(sorted(places)) if b > a), default=1.0)
    for position, norm in enumerate(shown):
        shift = width * (position / max(1, len(shown) - 1) - 0.5) if len(shown) > 1 else 0.0
        yield looks[norm], [curve.cell(norm, value) for value in curve.values], [place + shift for place in places]


def _draw_errors(axes: Axes, analysis: Analysis, problem: ProblemResult, curve: CurveResult) -> None:
    metric, rows = problem.metric, list(_rows(analysis, curve))
    for style, cells, places in rows:
        if not cells[0].flat:
            _draw_points(axes, metric, places, cells, style, formatting.seeds_drawn(len(curve.cells)))
    for style, cells, places in rows:
        means = [_number(_shown(metric, cell.error.mean)) for cell in cells]
        intervals = [_shown_interval(metric, cell.error.interval) for cell in cells]
        _draw_means(axes, places, means, intervals, style, flat=cells[0].flat)
    _draw_failures(axes, curve, rows)
    _draw_shared(axes, problem, curve)
    _label_factor(axes, curve)
    axes.set_ylabel(_with_unit(metric.name, metric))
    ends = [end for cell in curve.cells for end in cell.error.interval or ()]
    errors = [point.error for cell in curve.cells for point in cell.points]
    _scale(axes, [_shown(metric, error) for error in errors], [_number(_shown(metric, end)) for end in ends])


def _draw_shared(axes: Axes, problem: ProblemResult, curve: CurveResult) -> None:
    """Draw named grey lines at shared metrics that are not far above the norms' errors."""
    top = max((_number(_shown(problem.metric, cell.error.mean)) for cell in curve.cells if cell.points), default=0)
    places = _places(curve)
    wide = [places[0] - 0.5, *places[1:-1], places[-1] + 0.5]
    for metric in (metric for metric in problem.side if metric.shared):
        found = [_number(_shown(metric, curve.shared(metric, value).mean)) for value in curve.values]
        if not all(value <= 1.1 * top for value in found):
            continue
        axes.plot(wide, found if len(places) > 1 else found * 2, color=BESIDE, linewidth=0.8, linestyle=":", zorder=1)
        axes.annotate(metric.name, (wide[0], found[0]), (0, 2), textcoords="offset points", color=BESIDE)


def _draw_points(
    axes: Axes, metric: Metric, places: Sequence[float], cells: Sequence[CellResult], style: Style, seeds: int
) -> None:
    """Draw the first seeds of each cell as points."""
    points = [
        (place, _shown(metric, point.error))
        for place, cell in zip(places, cells, strict=True)
        for point in cell.points[:seeds]
        if point.error is not None
    ]
    if points:
        axes.plot(*zip(*points, strict=True), **style.marks(2.6), alpha=0.4)


def _draw_means(
    axes: Axes,
    places: Sequence[float],
    means: Sequence[float],
    intervals: Sequence[Interval | None],
    style: Style,
    *,
    flat: bool,
) -> None:
    """Draw means joined by a line, with intervals; a flat reference as a line with a band across the axes."""
    colour, group = style.colour, style.group
    if flat:
        if math.isfinite(means[0]):
            axes.axhline(means[0], color=colour, linestyle=_FLAT, linewidth=0.9, gid=group)
            axes.plot(places[:1], means[:1], **style.marks(4.6))
        if intervals[0]:
            axes.axhspan(*intervals[0], color=colour, alpha=0.07, linewidth=0, gid=group)
        return
    for place, ends in zip(places, intervals, strict=True):
        if ends:
            axes.vlines(place, max(0.0, ends[0]), ends[1], colors=colour, linewidth=1.1, gid=group)
    axes.plot(places, means, color=colour, linestyle=style.dash, linewidth=1.1, gid=group)
    axes.plot(places, means, **style.marks(4.6))


def _draw_failures(
    axes: Axes, curve: CurveResult, rows: Sequence[tuple[Style, Sequence[CellResult], Sequence[float]]]
) -> None:
    """Write `2/10 failed` above the axes, a line for every norm of which runs failed, with its marker."""
    lines: Counter[float] = Counter()
    for style, cells, _ in rows:
        for place, cell in zip(_places(curve), cells[:1] if cells[0].flat else cells, strict=False):
            if not cell.failures.k:
                continue
            above = 7 + 11 * lines[place]
            lines[place] += 1
            at = offset_copy(axes.get_xaxis_transform(), axes.get_figure(root=True), -7, above, units="points")
            axes.plot([place], [1], transform=at, clip_on=False, **style.marks(4.6))
            text = (
                f"{cell.failures.k}/{cell.failures.n} failed"
                if len(curve.values) <= 4
                else (f"{cell.failures.k}/{cell.failures.n}")
            )
            axes.annotate(
                text, (place, 1), (-2, above), xycoords=axes.get_xaxis_transform(), textcoords="offset points",
                va="center", annotation_clip=False, gid=style.group,
            )  # fmt: skip


def _above(curve: CurveResult) -> float:
    """Return the height in points of the lines above the axes."""
    failing = Counter(cell.value for cell in curve.cells if cell.failures.k)
    return 6.0 + 11 * max(failing.values(), default=0)


def _draw_tuning(axes: Axes, metric: Metric, cell: CellResult, style: Style) -> None:
    """Draw a learning-rate curve, thick within its basin, the chosen rate circled."""
    points = [(t.learning_rate, _number(_shown(metric, t.error))) for t in cell.tuning]
    if not points:
        return
    colour, group = style.colour, style.group
    axes.plot(*zip(*points, strict=True), color=colour, linestyle=style.dash, linewidth=0.9, gid=group)
    axes.plot(*zip(*points, strict=True), **style.marks(3.8))
    if cell.basin:
        within = [point for point in points if cell.basin.low <= point[0] <= cell.basin.high]
        line = {"linewidth": 5, "alpha": 0.25, "solid_capstyle": "round", "gid": group}
        axes.plot(*zip(*within, strict=True), color=colour, **line)
    chosen = [point for point in points if point[0] == cell.learning_rate]
    if chosen:
        axes.plot(*zip(*chosen, strict=True), "o", ms=6.5, mfc="none", mec=colour, mew=0.9, gid=group)


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


def _draw_line(axes: Axes, x: Sequence[float], line: Line, style: Style, number: int, log: bool) -> None:
    def there(values: Numbers) -> list[float]:
        return [math.nan if y is None or (log and y <= 0) else y for y in values]

    colour, group, few = style.colour, style.group, max(1, len(x) // 6)
    axes.fill_between(x, there(line.low), there(line.high), color=colour, alpha=0.1, linewidth=0, gid=group)
    axes.plot(x, there(line.middle), color=colour, linestyle=style.dash, linewidth=1.1, gid=group)
    axes.plot(x, there(line.middle), **style.marks(4.2), markevery=(number % few, few))


def _label_factor(axes: Axes, curve: CurveResult) -> None:
    places = _places(curve)
    axes.set_xticks(places, [str(value) for value in curve.values])
    axes.grid(visible=False, axis="x")
    axes.set_xlabel(curve.factor["label"])
    margin = 0.4 * (places[-1] - places[0]) / (len(places) - 1) if len(places) > 1 else 0.5
    axes.set_xlim(places[0] - margin, places[-1] + margin)


def _label_decades(axes: Axes, x: Sequence[float]) -> None:
    """Use a logarithmic axis with at most three labels, the first, the middle and the last place."""
    axes.set_xscale("log")
    places = sorted({x[0], x[len(x) // 2], x[-1]})
    axes.set_xticks(places, [f"{place:g}" for place in places])
    axes.xaxis.set_minor_locator(NullLocator())


def _scale(axes: Axes, numbers: Sequence[float | None], ends: Sequence[float] = ()) -> None:
    """Use a logarithmic axis where numbers span more than a factor of six, to distinguish small ones.

    Args:
        axes: The axes.
        numbers: What is drawn.
        ends: Ends of intervals, which are on the axis but do not decide its kind.
    """
    there = [number for number in numbers if number is not None and math.isfinite(number)]
    if not there or min(there) <= 0 or max(there) < 6 * min(there):
        if not there or min(there) >= 0:
            axes.set_ylim(bottom=0)
        return
    bottom, top = min(there), max(there)
    low = min((end for end in ends if bottom / 3 <= end), default=bottom)
    axes.set_yscale("log")
    axes.set_ylim(0.85 * min(bottom, low), 1.15 * max(top, *ends, top))
    wide = top > 1000 * bottom
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _scale_decades(axes: Axes) -> None:
    """Use a logarithmic axis, labelled at powers of ten, and between them where there are few."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=(1.0,) if high > 100 * low else (1.0, 2.0, 5.0), numticks=7))
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
    figure: Figure, analysis: Analysis, drawn: Container[str], *signs: tuple[bool, Line2D], columns: int = 3
) -> None:
    """Draw the legend: the norms that are drawn, then the signs that occur."""
    looks = styles(analysis.looks)
    shown = [norm for norm in analysis.norms if norm in drawn]
    marks = [_key(looks[norm], analysis.names[norm]) for norm in shown]
    handles = [*marks, *(sign for there, sign in signs if there)]
    if not handles:
        return
    longest = max((len(str(mark.get_label())) for mark in marks), default=0)
    columns = max(1, min(columns, int(figure.get_figwidth() / (0.55 + longest / 15))))  # inches; 15 letters in each
    lines = -(-len(handles) // columns)
    figure.set_figheight(figure.get_figheight() + 0.19 * max(0, lines - 3))  # what is drawn keeps its height
    legend = figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, columnspacing=1.4, handlelength=2.4
    )
    for norm, mark, text in zip(shown, legend.legend_handles, legend.get_texts(), strict=False):
        text.set_gid(looks[norm].group)
        if mark:
            mark.set_gid(looks[norm].group)


def _key(style: Style, label: str) -> Line2D:
    """Make a line with a marker for a legend."""
    marks = {**style.marks(4.6), "linestyle": style.dash}
    return Line2D([], [], **marks, linewidth=1.1, label=label)


def _drawn(cells: Sequence[CellResult]) -> set[str]:
    """Return the norms with evaluation runs."""
    return {cell.norm for cell in cells if cell.points}


def _flat(cells: Sequence[CellResult]) -> tuple[bool, Line2D]:
    """Return whether there are flat references, and their sign."""
    sign = Line2D([], [], color=INK, linestyle=_FLAT, lw=0.9, label="flat reference")
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
