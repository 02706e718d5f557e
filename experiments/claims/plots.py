"""Figures of studies: lines over seeds, bars, scales with plain numbers."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import ArrayLike

from normlab.norms import colour, marker
from normlab.study.report.figures import STYLES, styles


class Look(NamedTuple):
    """The look of an arm: the norm that gives colour and marker, Matplotlib's dashes, or a colour of its own."""

    norm: str = "none"
    dash: str = "-"
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


def level(axes: Axes, y: float, label: str, *, left: bool = False) -> None:
    """Draw a dashed horizontal line with its label, for published numbers and targets; the label is right or left."""
    at, shift, side = (0, 3, "left") if left else (1, -3, "right")
    axes.axhline(y, color="0.4", linestyle=(0, (4, 3)), linewidth=0.9)
    axes.annotate(label, (at, y), (shift, 2), xycoords=("axes fraction", "data"), textcoords="offset points", ha=side,
                  fontsize="small", color="0.4")  # fmt: skip


def legend(drawing: Figure, axes: Axes, columns: int = 5) -> None:
    """Put the arms of some axes below the whole figure."""
    drawing.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=columns)
