"""Figures of studies: lines over seeds, bars, scales with plain numbers."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import ArrayLike

from normlab.norms import colour, marker
from normlab.study.report.figures import STYLES, styles

_FEW = 100
"""Ratio of the ends of a logarithmic axis below which ticks between powers of ten have labels."""


class Look(NamedTuple):
    """The look of an arm: the norm that gives colour and marker, Matplotlib's dashes, or a colour of its own."""

    norm: str = "none"
    dash: str | tuple[int, tuple[int, ...]] = "-"
    colour: str | None = None


@contextmanager
def figure(width: float = 9.6, height: float = 3.6) -> Iterator[Figure]:
    """Make a figure in the style of the reports; draw inside the context."""
    with rc_context(STYLES):
        yield Figure(figsize=(width, height), layout="constrained")


def logarithmic(axes: Axes, *, x: bool = False) -> None:
    """Make an axis logarithmic, with plain numbers as ticks."""
    axis = axes.xaxis if x else axes.yaxis
    (axes.set_xscale if x else axes.set_yscale)("log")
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
    if not x:  # places on the horizontal axis have ticks of their own
        axis.set_minor_locator(LogLocator(subs=(2, 5)))
        axis.set_minor_formatter(FuncFormatter(partial(_between, axis)))


def _between(axis: Axis, value: float, _: int | None) -> str:
    """Label a tick between powers of ten where the axis has few of them."""
    low, high = axis.get_view_interval()
    return f"{value:g}" if high < _FEW * low else ""


def lines(
    axes: Axes,
    places: Sequence[float] | np.ndarray,
    values: Mapping[str, ArrayLike],
    looks: Mapping[str, Look],
    *,
    marked: bool = False,
    bands: bool = True,
) -> None:
    """Draw the mean and the range over seeds of arrays [seeds, places], by arm; places without a number are left out.

    Args:
        axes: Axes to draw on.
        places: Places on the horizontal axis.
        values: Arrays by arm.
        looks: Looks of all arms of the figure, so that an arm looks the same in every panel.
        marked: Whether places have markers.
        bands: Whether the range over seeds is drawn.
    """
    drawn = styles({arm: (look.colour or colour(look.norm), marker(look.norm)) for arm, look in looks.items()})
    for arm, seeds in values.items():
        there = np.where(np.isfinite(seeds), seeds, np.nan)
        known = ~np.isnan(there).all(0)
        at, there = np.asarray(places)[known], there[:, known]
        style, dash = drawn[arm], looks[arm].dash
        mark = style.marker if marked else ""
        axes.plot(at, np.nanmean(there, 0), color=style.colour, linestyle=dash, marker=mark, label=arm)
        if bands:
            axes.fill_between(at, np.nanmin(there, 0), np.nanmax(there, 0), color=style.colour, alpha=0.15, linewidth=0)


def updates(axes: Axes) -> None:
    """Put ticks of the horizontal axis at those of some numbers of updates that it shows."""
    low, high = axes.get_xlim()
    axes.set_xticks([t for t in (20, 50, 100, 200, 400, 800, 1_600, 4_000, 8_000, 16_000) if low <= t <= high])


def ticks(axes: Axes, values: Sequence[float]) -> None:
    """Put ticks of the vertical axis at those of some values that it shows."""
    low, high = axes.get_ylim()
    axes.set_yticks([value for value in values if low <= value <= high])


def level(axes: Axes, y: float, label: str, *, left: bool = False) -> None:
    """Draw a dashed horizontal line with its label at the right or the left, for published numbers and targets."""
    axes.axhline(y, color="0.4", linestyle=(0, (4, 3)), linewidth=0.9)
    place, shift, side = (0, 3, "left") if left else (1, -3, "right")
    axes.annotate(label, (place, y), (shift, 2), xycoords=("axes fraction", "data"), textcoords="offset points",
                  ha=side, fontsize="small", color="0.4")  # fmt: skip


def legend(drawing: Figure, axes: Axes, columns: int = 5) -> None:
    """Put the arms of some axes below the whole figure."""
    drawing.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns)
