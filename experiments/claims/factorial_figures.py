"""Figures of factorial claims: errors against the factor, a line a norm."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.claims import plots
from experiments.claims.factorial import Cell, Cells, Found, Net
from normlab import norms
from normlab.study.design.factors import Value

Quantity = Callable[[Cell], np.ndarray]


def errors(cell: Cell) -> np.ndarray:
    """Return test errors in %."""
    return 100 * cell.errors


def losses(cell: Cell) -> np.ndarray:
    """Return training losses."""
    return cell.losses


def untuned(cell: Cell) -> np.ndarray:
    """Return test errors at the fixed learning rate in %."""
    return 100 * cell.untuned


def by_factor(found: Found, label: str, *, log: bool = False, names: Mapping[str, str] | None = None) -> Figure:
    """Draw errors against the factor, a panel for each network and curve."""
    panels = [(net, curve) for net in found for curve in net.values]
    with plots.figure(min(14.4, 4.2 * len(panels) + 0.6), 3.6) as drawing:
        row = drawing.subplots(1, len(panels), squeeze=False)[0]
        for axes, (net, curve) in zip(row, panels, strict=True):
            lines(axes, net.cells[curve], net.values[curve], net.norms, errors, log=log)
            title = f"{net.title}, {names[curve]}" if names else net.title
            axes.set(title=title, xlabel=label)
        row[0].set(ylabel="test error (%)")
        plots.legend(drawing, row[0])
    return drawing


def dropout(found: Found) -> Figure:
    """Draw errors and, below, training losses against the dropout rate."""
    titles = {"all": "all examples", "few": "a tenth of the examples", "longer": "4 times the updates"}
    panels = [(net, curve) for net in found for curve in net.values]
    with plots.figure(min(14.4, 3.6 * len(panels) + 0.6), 5.6) as drawing:
        grid = drawing.subplots(2, len(panels), squeeze=False)
        for (top, below), (net, curve) in zip(grid.T, panels, strict=True):
            lines(top, net.cells[curve], net.values[curve], net.norms, errors)
            lines(below, net.cells[curve], net.values[curve], net.norms, losses)
            top.set(title=f"{net.title}, {titles[curve]}")
            below.set(xlabel="dropout rate")
        grid[0, 0].set(ylabel="test error (%)")
        grid[1, 0].set(ylabel="training loss")
        plots.legend(drawing, grid[0, 0])
    return drawing


def initialization(found: Found) -> Figure:
    """Draw errors against the learning rate, and against the scale at a fixed and at the tuned learning rate."""
    with plots.figure(11.4, 3.4 * len(found) + 0.4) as drawing:
        grid = drawing.subplots(len(found), 3, squeeze=False)
        for (left, middle, right), net in zip(grid, found, strict=True):
            _against_rates(left, net)
            cells, scales = net.cells["scale"], net.values["scale"]
            if all(cell.untuned.size for cell in cells.values()):
                lines(middle, cells, scales, net.norms, untuned, log=True)
            lines(right, cells, scales, net.norms, errors, log=True)
            for axes, title in ((middle, "fixed learning rate"), (right, "tuned learning rate")):
                axes.set(title=f"{net.title}, {title}", xlabel="scale of the initial kernels")
            for axes in (left, middle, right):
                plots.logarithmic(axes)
            left.set(ylabel="error (%)")
        plots.legend(drawing, grid[0, 2])
    return drawing


def _against_rates(axes: Axes, net: Net) -> None:
    """Draw validation errors at scale 1 against the learning rate; failed runs count as chance."""
    cells = {norm: net.cells["scale"][norm, 1] for norm in net.norms if (norm, 1) in net.cells["scale"]}
    rates = sorted({rate for cell in cells.values() for rate in cell.tuning})
    drawn = {
        named(norm): 100 * np.stack([np.minimum(cell.tuning[rate], cell.chance) for rate in rates], 1)
        for norm, cell in cells.items()
    }
    plots.lines(axes, rates, drawn, looks(net.norms), marked=True)
    plots.logarithmic(axes, x=True)
    axes.set(title=f"{net.title}, validation", xlabel="learning rate")


def lines(
    axes: Axes, cells: Cells, values: Sequence[Value], trained: Sequence[str], quantity: Quantity, *, log: bool = False
) -> None:
    """Draw a line for each norm; names of values are at equal distances."""
    named_values = any(isinstance(value, str) for value in values)
    places = range(len(values)) if named_values else [float(value) for value in values]
    drawn = {
        named(norm): np.stack([quantity(cells[norm, value]) for value in values], 1)
        for norm in trained
        if all((norm, value) in cells for value in values)
    }
    plots.lines(axes, places, drawn, looks(trained), marked=True)
    if log:
        plots.logarithmic(axes, x=True)
    if named_values or not log:
        axes.set_xticks(list(places), [str(value) for value in values])


def looks(trained: Sequence[str]) -> dict[str, plots.Look]:
    """Return the looks of norms by their titles."""
    return {named(norm): plots.Look(norm) for norm in trained}


def named(norm: str) -> str:
    """Return the title of a norm in lower case."""
    title = norms.get(norm).title
    return title[:1].lower() + title[1:]


DRAWINGS: Mapping[str, Callable[[Found], Figure]] = {
    "placement": lambda found: by_factor(found, "place of the norm"),
    "dropout": dropout,
    "initialization": initialization,
    "training_size": lambda found: by_factor(found, "training examples", log=True),
    "depth": lambda found: by_factor(found, "hidden layers", names={"plain": "plain", "residual": "residual"}),
    "every_layer": lambda found: by_factor(found, "layers to a norm"),
}
"""Functions that draw by the names of comparisons."""
