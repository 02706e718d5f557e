"""Draw the figures of the documentation from the results in this folder.

    python -m benchmarks.figures             # writes docs/figures/*.svg
    python -m benchmarks.figures --measure   # measures the rounding errors of `large_offsets` anew first

Every figure is 480 pixels wide with text of 13, so that text keeps 9 pixels on a telephone. The background is white,
because an image cannot follow the colours of a page. The same results give the same bytes.
"""

import argparse
import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import jax
import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Annotation
from matplotlib.ticker import FuncFormatter, NullLocator

from normlab import norms
from normlab.functional import layer_norm
from normlab.study.design import discovery

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.typing import RcKeyType

__all__ = ["FIGURES", "draw", "offset_errors"]

RESULTS = Path(__file__).parent / "results"
FOLDER = Path(__file__).parents[1] / "docs" / "figures"
OFFSETS = RESULTS / "large_offsets.csv"

INK, FAINT, QUIET = "#1c2024", "#d9dbdd", "#5f666d"
STYLES: "dict[RcKeyType, object]" = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.75,
    "svg.fonttype": "none",
    "svg.hashsalt": "normlab",
    "text.parse_math": False,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.left": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
}

Row = Mapping[str, str]
Estimate = tuple[float, float, float]
"""A mean with the ends of its 95 % interval."""


@dataclass(frozen=True)
class Curve:
    """A line of a figure.

    Attributes:
        label: Text at one end of the line.
        norm: Gives the colour and the marker.
        points: An estimate at each place of the axis; without an interval where its ends are NaN.
        dash: Line style; differs between options of one norm.
        beside: Where the label is: `left` of the first point, `right` of it, or at the `end`.
    """

    label: str
    norm: str
    points: tuple[Estimate, ...]
    dash: str = "-"
    beside: Literal["left", "right", "end"] = "left"


def draw(name: str) -> str:
    """Return a figure as an SVG document."""
    return FIGURES[name]()


def batch_size() -> str:
    """Draw error against batch size on MNIST."""
    rows = [row for row in _read("batch_size-mnist-standard") if row["curve"] == "deployed"]
    names = ("batch", "batch_renorm", "none", "group", "layer")
    found = {norm: _along(rows, norm) for norm in names}
    curves = [Curve(norms.get(norm).title, norm, found[norm]) for norm in names]
    curves[0] = Curve(f"batch norm {found['batch'][0][0]:.1f} %", "batch", found["batch"])
    with _canvas(
        3.75, "With two examples a batch, batch norm makes\nten times the errors; norms within an example do not"
    ) as figure:
        axes = figure.add_subplot()
        _curves(axes, curves, _values(rows))
        _log_errors(axes, (2, 3, 5, 10, 20), (1.7, 32))
        axes.set_xlabel("batch size")
        axes.set_ylabel("test error on MNIST (%)")
    return _svg(figure)


def every_norm() -> str:
    """Draw the error of every norm at two examples, in an MLP and in a conv net."""
    rows = [row for row in _read("batch_size-digits-every-norm") if row["value"] == "2"]
    found = {
        problem: {row["norm"]: _estimate(row) for row in rows if row["problem"] == problem and not row["invalid"]}
        for problem in ("mlp", "conv")
    }
    order = sorted(found["conv"], key=lambda norm: found["mlp"].get(norm, (math.inf,))[0])
    missing = (math.nan, math.nan, math.nan)
    with _canvas(
        6.9,
        "Two examples a batch break six of 23 norms in an MLP,\nand none in a conv net, which averages over positions",
    ) as figure:
        panels = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        for axes, problem, title in zip(panels, found, ("MLP", "conv net"), strict=True):
            _dots(axes, [(norms.get(norm).title, norm, found[problem].get(norm, missing)) for norm in order])
            axes.set_title(title, fontsize=9.75)
            axes.grid(axis="x", color=FAINT, linewidth=0.6)
        for place, norm in enumerate(order):
            if norm not in found["mlp"]:
                panels[0].text(2, place, "needs positions", va="center", color=QUIET)
        panels[0].set_xscale("log")
        panels[0].set_xlim(1.5, 36)
        panels[0].set_xticks([2, 5, 10, 20], ["2", "5", "10", "20"])
        panels[0].xaxis.set_minor_locator(NullLocator())
        panels[1].set_xlim(1, 5.9)
        figure.supxlabel("test error on digits at a batch of 2 (%)", fontsize=9.75)
    return _svg(figure)


def ten_norms() -> str:
    """Draw the errors of twelve norms on CIFAR-10 at three batch sizes."""
    rows = _read("batch_size-cifar10-ten-norms")
    found = {row["norm"]: _along(rows, row["norm"]) for row in rows}
    order = sorted(found, key=lambda norm: found[norm][0][0])
    with _canvas(
        4.6, "On CIFAR-10 two examples a batch cost batch norm 9 points,\nwhitening 12 and switchable norm 2"
    ) as figure:
        panels = figure.subplots(1, 3, sharey=True)
        for place, (axes, value) in enumerate(zip(panels, _values(rows), strict=True)):
            _dots(axes, [(norms.get(norm).title, norm, found[norm][place]) for norm in order])
            axes.set_title(f"batch of {value}", fontsize=9.75)
            axes.grid(axis="x", color=FAINT, linewidth=0.6)
            axes.set_xlim(42, 66)
        figure.supxlabel("test error on CIFAR-10 (%)", fontsize=9.75)
    return _svg(figure)


def few_classes() -> str:
    """Draw error against the number of classes in a batch."""
    rows = _read("batch_composition-digits-standard")
    names = ("batch", "batch_renorm", "none", "group", "layer")
    found = {norm: _along(rows, norm) for norm in names}
    chance = 100 * float(_cell(rows, "batch", "1")["error_counting_failures"])
    found["batch"] = ((chance, math.nan, math.nan), *found["batch"][1:])
    labels = {"batch": "batch norm: 8 of\n10 runs collapse"}
    curves = [Curve(labels.get(norm, norms.get(norm).title), norm, found[norm]) for norm in names]
    with _canvas(
        3.75, "Batches of one class: most runs of batch norm\nlearn nothing; two classes are enough"
    ) as figure:
        axes = figure.add_subplot()
        _curves(axes, curves, _values(rows), label_room=2.0)
        _log_errors(axes, (2, 5, 10, 20, 50, 100), (1.2, 170))
        axes.set_xlabel("classes in a batch of 32")
        axes.set_ylabel("test error on digits (%)")
    return _svg(figure)


def inference_gap() -> str:
    """Draw the points that running statistics cost, against the batch size."""
    rows = _read("inference_gap-digits-standard")
    column = "test error as deployed minus that"
    kinds: dict[str, tuple[str, str, Literal["right", "end"]]] = {
        "batch:momentum=0.5": ("too fast (momentum 0.5)", ":", "right"),
        "batch:momentum=0.998": ("too slow\n(0.998)", "--", "end"),
        "batch": ("one epoch", "-", "end"),
    }
    curves = [
        Curve(label, norm, _along(rows, norm, column), dash, beside) for norm, (label, dash, beside) in kinds.items()
    ]
    with _canvas(
        3.5, "Running statistics that follow too fast or too slowly\ncost up to 13 points; over an epoch they cost none"
    ) as figure:
        axes = figure.add_subplot()
        _curves(axes, curves, _values(rows), label_room=0.3, end_room=1.1)
        axes.set_yticks([0, 5, 10, 15])
        axes.set_xlabel("batch size")
        axes.set_ylabel("points of error that\nre-estimating wins back")
    return _svg(figure)


def folding() -> str:
    """Draw the error of networks as deployed, with norms folded into layers, and with norms deleted."""
    found = _read("inference_gap-digits-folded")
    ways = {
        "as deployed": "error",
        "folded": "test error with norms folded into layers",
        "deleted": "test error with norms deleted",
    }
    labels = {"batch": "batch", "batch_renorm": "batch renorm", "group": "group", "layer": "layer"}
    with _canvas(
        4.6, "Folding changes no prediction; deleting batch norm\nor batch renorm costs 24 to 60 points of error"
    ) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, problem, title in zip(panels, ("mlp", "conv"), ("MLP", "conv net"), strict=True):
            rows = [row for row in found if row["problem"] == problem]
            lines = [
                (f"{label}, {way}", norm, _estimate(_cell(rows, norm, "32"), column))
                for norm, label in labels.items()
                for way, column in ways.items()
                if way != "folded" or norms.get(norm).entry.averages
            ]
            _dots(axes, lines)
            axes.set_title(title, fontsize=9.75)
            axes.set_xlim(-4, 105)
            axes.set_xticks([0, 25, 50, 75])
        figure.supxlabel("test error on digits (%)", fontsize=9.75)
    return _svg(figure)


def recurrent() -> str:
    """Draw the error of an LSTM for each norm inside it."""
    rows = _read("recurrent-permuted-standard")
    labels = {
        "batch_step:epsilon=1e-05": "batch, each step, ε 1e-5",
        "batch_step": "batch, each step",
        "none": "no norm",
        "rms": "RMS",
        "batch_input": "batch, input path",
        "layer": "layer",
        "batch_step:epsilon=1e-05,initial_scale=1.0": "batch, each step, scale 1",
        "layer:epsilon=1e-05": "layer, ε 1e-5",
        "batch_shared": "batch, shared over time",
    }
    with _canvas(
        4.0, "In an LSTM, statistics of each time step help;\nstatistics shared over time triple the errors"
    ) as figure:
        axes = figure.add_subplot()
        _dots(axes, [(label, norm, _estimate(_cell(rows, norm, "1"))) for norm, label in labels.items()])
        axes.set_xlim(0, 82)
        figure.supxlabel("test error on permuted digits (%)", fontsize=9.75)
    return _svg(figure)


def streams() -> str:
    """Draw the error of each norm on three streams, one example at a time."""
    rows = [row for row in _read("online-standard") if row["curve"] == "burst" and row["value"] == "1"]
    titles = {"agrawal": "loans", "led": "LED digits", "permuted-digits": "pixels reordered"}
    labels = {
        "batch": "batch",
        "batch:statistics='running'": "batch, running",
        "online": "online",
        "none": "no norm",
        "layer": "layer",
        "rms": "RMS",
        "group": "group",
        "continual:statistics='running'": "continual, running",
        "streaming": "streaming",
    }
    with _canvas(
        4.3, "One example at a time, batch norm cannot learn;\nno other norm is best on all three streams"
    ) as figure:
        panels = figure.subplots(1, len(titles), sharey=True)
        for axes, (problem, title) in zip(panels, titles.items(), strict=True):
            chosen = [row for row in rows if row["problem"] == problem]
            _dots(
                axes, [(label, norm, _estimate(_cell(chosen, norm, "1"))) for norm, label in labels.items()], digits=0
            )
            axes.set_title(title, fontsize=9.75)
            box = {"facecolor": "white", "edgecolor": "none", "pad": 3}
            axes.text(
                0.5,
                0,
                "impossible",
                transform=axes.get_yaxis_transform(),
                ha="center",
                va="center",
                color=QUIET,
                bbox=box,
            )
        for axes, limits, ticks in zip(
            panels, ((11, 19), (30, 35), (17, 23)), ((12, 15, 18), (31, 34), (18, 20, 22)), strict=True
        ):
            axes.set_xlim(*limits)
            axes.set_xticks(ticks)
        figure.supxlabel("error, each example predicted before it is learned (%)", fontsize=9.75)
    return _svg(figure)


def devices() -> str:
    """Draw the error of a batch of 16 on eight devices, by whose statistics are used."""
    discovery.load("distributed")  # registers its norms, with their colours
    rows = _read("distributed-digits-standard")
    labels = {
        "batch_device": ("batch, each device", "batch_device"),
        "batch_2_devices": ("batch, pairs of devices", "batch_2_devices"),
        "batch_4_devices": ("batch, four devices", "batch_4_devices"),
        "batch_all_devices": ("batch, all devices", "batch_all_devices"),
        "batch_renorm": ("batch renorm, each device", "batch_renorm"),
        "group": ("group", "group"),
    }
    with _canvas(
        3.2, "Two examples a device: statistics of two devices\nalready win back what each device loses"
    ) as figure:
        axes = figure.add_subplot()
        _dots(axes, [(label, norm, _estimate(_cell(rows, row, "8"))) for row, (label, norm) in labels.items()])
        axes.set_xlim(0, 21.5)
        figure.supxlabel("test error on digits, a batch of 16 on 8 devices (%)", fontsize=9.75)
    return _svg(figure)


def large_offsets() -> str:
    """Draw the rounding error of layer norm against the mean of its input."""
    with OFFSETS.open() as file:
        rows = list(csv.DictReader(file))
    places = [float(row["offset"]) for row in rows]
    lines = {"one_pass": ("one pass,\nE[x²] - E[x]²", "--"), "two_passes": ("two passes\n(the default)", "-")}
    with _canvas(
        3.5, "A variance in one pass loses its digits where the mean\nis large; in two passes it keeps them"
    ) as figure:
        axes = figure.add_subplot()
        style = {"color": norms.colour("layer"), "marker": norms.marker("layer")}
        for column, (label, dash) in lines.items():
            errors = [float(row[column]) for row in rows]
            axes.plot(places, errors, dash, **style)
            axes.annotate(label, (places[-1], errors[-1]), (10, 0), textcoords="offset points", va="center")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(0.6, 1e8)
        axes.set_xticks([1, 1e2, 1e4, 1e6], ["1", "100", "10,000", "1,000,000"])
        axes.set_ylim(1e-7, 3e4)
        axes.set_yticks([1e-6, 1e-3, 1, 1e3], ["0.000001", "0.001", "1", "1,000"])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("mean of the input, in standard deviations")
        axes.set_ylabel("largest error of the output")
    return _svg(figure)


FIGURES: dict[str, Callable[[], str]] = {
    figure.__name__: figure
    for figure in (
        batch_size,
        every_norm,
        ten_norms,
        few_classes,
        inference_gap,
        folding,
        recurrent,
        streams,
        devices,
        large_offsets,
    )
}
"""The figures by the names of their files in `docs/figures`."""


def offset_errors(offset: float) -> tuple[float, float]:
    """Return the largest errors of layer norm on `offset + N(0, 1)`, 64 rows of 512 features, in float32.

    Args:
        offset: Mean of the input.

    Returns:
        The error with `E[x^2] - E[x]^2`, and with two passes, both beside float64.
    """
    x = offset + jax.random.normal(jax.random.key(0), (64, 512))
    exact = np.asarray(x, np.float64)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-6)
    one, two = (
        float(np.abs(np.asarray(layer_norm(x, use_fast_variance=fast)) - exact).max()) for fast in (True, False)
    )
    return one, two


def _measure() -> None:
    """Write the rounding errors that `large_offsets` draws."""
    lines = ["offset,one_pass,two_passes"]
    for offset in (1, 10, 100, 1000, 10_000, 100_000, 1_000_000):
        lines.append(",".join([str(offset), *(f"{error:.2g}" for error in offset_errors(offset))]))
    OFFSETS.write_text("\n".join(lines) + "\n")


def _read(name: str) -> list[dict[str, str]]:
    with (RESULTS / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _values(rows: Iterable[Row]) -> list[str]:
    """Return the values of the factor in the order of the file."""
    return list(dict.fromkeys(row["value"] for row in rows))


def _cell(rows: Iterable[Row], norm: str, value: str) -> Row:
    (found,) = (row for row in rows if (row["norm"], row["value"]) == (norm, value))
    return found


def _along(rows: Sequence[Row], norm: str, column: str = "error") -> tuple[Estimate, ...]:
    return tuple(_estimate(_cell(rows, norm, value), column) for value in _values(rows))


def _estimate(row: Row, column: str = "error") -> Estimate:
    """Return a column's mean and interval in percent; NaN where nothing was measured."""
    mean, low, high = (100 * float(row[column + end] or "nan") for end in ("", "_low", "_high"))
    return mean, low, high


def _curves(
    axes: Axes, curves: Sequence[Curve], values: Sequence[str], label_room: float = 1.5, end_room: float = 0.3
) -> None:
    """Draw curves over evenly spaced values, with labels beside their ends.

    Args:
        axes: Where to draw.
        curves: Drawn in reverse, so that the first is on top.
        values: Labels of the axis.
        label_room: Space left of the first value, in units of the distance of values.
        end_room: Space right of the last.
    """
    width = 0.12
    for index, curve in reversed(list(enumerate(curves))):
        shift = width * (index / (len(curves) - 1) - 0.5) if len(curves) > 1 else 0.0
        style = {"color": norms.colour(curve.norm), "marker": norms.marker(curve.norm)}
        places = [place + shift for place in range(len(values))]
        means = [mean for mean, _, _ in curve.points]
        measured = [not math.isnan(low) for _, low, _ in curve.points]
        axes.plot(places, means, curve.dash, **style)
        for place, (mean, low, high), known in zip(places, curve.points, measured, strict=True):
            if known:
                axes.vlines(place, low, high, color=style["color"], linewidth=1.2)
            else:
                axes.plot(place, mean, color="white", marker=style["marker"], markeredgecolor=style["color"])
    axes.set_xlim(-label_room, len(values) - 1 + end_room)
    axes.set_xticks(range(len(values)), values)
    for curve in curves:
        place = len(values) - 1 if curve.beside == "end" else 0
        axes.annotate(
            curve.label,
            (place, curve.points[place][0]),
            (-11 if curve.beside == "left" else 11, 0),
            textcoords="offset points",
            ha="right" if curve.beside == "left" else "left",
            va="center",
            color=norms.colour(curve.norm),
            gid=curve.beside,
        )


def _settle(figure: Figure) -> None:
    """Move the labels of curves apart that would overlap."""
    figure.canvas.draw()
    for axes in figure.axes:
        labels = [text for text in axes.texts if isinstance(text, Annotation) and text.get_gid()]
        for beside in {text.get_gid() for text in labels}:
            texts = sorted((text for text in labels if text.get_gid() == beside), key=_height)
            sizes = [14.0 * (1 + text.get_text().count("\n")) for text in texts]
            for text, height in zip(texts, _spread([_height(text) for text in texts], sizes), strict=True):
                text.set_position((text.get_position()[0], height - _height(text)))
                text.set_gid(None)


def _height(label: Annotation) -> float:
    """Return the height in points of the place that a label belongs to."""
    assert label.axes is not None
    return float(label.axes.transData.transform(label.xy)[1]) * 72 / label.axes.figure.dpi


def _spread(wanted: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """Return places for labels in ascending order that do not overlap, each group centred on its wanted places."""
    groups: list[list[int]] = []
    places = list(wanted)
    for index in range(len(wanted)):
        groups.append([index])
        while True:
            group = groups[-1]
            total = sum(sizes[i] for i in group)
            start = sum(wanted[i] for i in group) / len(group) - total / 2
            for i in group:
                places[i] = start + sizes[i] / 2
                start += sizes[i]
            if len(groups) == 1:
                break
            below, first = groups[-2][-1], group[0]
            if places[first] - places[below] >= (sizes[first] + sizes[below]) / 2:
                break
            groups[-2:] = [groups[-2] + group]
    return places


def _dots(axes: Axes, rows: Sequence[tuple[str, str, Estimate]], digits: int = 1) -> None:
    """Draw an estimate with its interval in each row, from the top, and its number."""
    for place, (_, norm, (mean, low, high)) in enumerate(rows):
        if math.isnan(mean):
            continue
        axes.hlines(place, low, high, color=norms.colour(norm), linewidth=1.6)
        axes.plot(mean, place, color=norms.colour(norm), marker=norms.marker(norm), markersize=7)
        if digits:
            axes.annotate(
                f"{mean:.{digits}f}", (high, place), (5, 0), textcoords="offset points", va="center", color=QUIET
            )
    axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)


def _log_errors(axes: Axes, ticks: Sequence[float], limits: tuple[float, float]) -> None:
    """Give the axis of errors a logarithmic scale with plain numbers."""
    axes.set_yscale("log")
    axes.set_ylim(*limits)
    axes.set_yticks(ticks)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())


@contextmanager
def _canvas(height: float, title: str) -> "Iterator[Figure]":
    """Make a figure 5 inches wide, 480 pixels, with a title that states the finding."""
    with rc_context(STYLES):
        figure = Figure(figsize=(5, height), facecolor="white", layout=ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1))
        figure.suptitle(title, x=0.025, ha="left", fontsize=10.5, fontweight="bold")
        yield figure
        _settle(figure)


def _svg(figure: Figure) -> str:
    """Write the figure as an SVG document, the same bytes each time."""
    buffer = io.StringIO()
    with rc_context(STYLES):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def main() -> None:
    """Write every figure."""
    parser = argparse.ArgumentParser(description="Draw the figures of the documentation.")
    parser.add_argument("--measure", action="store_true", help="measure rounding errors anew")
    if parser.parse_args().measure:
        _measure()
    FOLDER.mkdir(exist_ok=True)
    for name in FIGURES:
        (FOLDER / f"{name}.svg").write_text(draw(name))


if __name__ == "__main__":
    main()
