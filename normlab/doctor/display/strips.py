"""Strip charts: numbers of each norm as places along scales that all norms share."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from normlab.doctor.display.wording import number
from normlab.doctor.findings import Measurement
from normlab.doctor.thresholds import Thresholds

__all__ = ["Column", "Scale", "Strip", "columns"]

_MARKS = 64
"""Most features that are drawn of a norm; of more, as many quantiles."""

_MARGIN = 2.0
"""Per cent of a strip that stay free at each end."""

_LETTER = 4.0
"""Per cent of a strip that a letter of its axis takes."""


@dataclass(frozen=True)
class Scale:
    """The axis of a column: numbers as per cent of its width.

    Attributes:
        forward: Increasing function in whose values the axis is even.
        low: Number at the left end.
        high: Number at the right end.
        ticks: Numbers that are labelled, in groups that are labelled together or not at all.
        bounds: Numbers that a check must not cross.
        crossed: Ranges on the wrong side of the bounds.
    """

    forward: Callable[[float], float]
    low: float
    high: float
    ticks: tuple[tuple[float, ...], ...]
    bounds: tuple[float, ...]
    crossed: tuple[tuple[float, float], ...]

    def place(self, value: float) -> float:
        """Return the place of a number; beyond the ends, that of the end."""
        start, end = self.forward(self.low), self.forward(self.high)
        share = (self.forward(min(max(value, self.low), self.high)) - start) / (end - start)
        return round(_MARGIN + (100 - 2 * _MARGIN) * share, 2)

    def labels(self) -> list[tuple[float, str]]:
        """Return places and texts of the ticks; where two would overlap, the one that comes first in `ticks`."""
        kept: list[tuple[float, str]] = []
        for group in self.ticks:
            new = [(self.place(tick), number(tick)) for tick in group if self.low <= tick <= self.high]
            pairs = [(one, other) for at, one in enumerate(new) for other in (*kept, *new[:at])]
            if not any(_overlap(one, other) for one, other in pairs):
                kept += new
        return sorted(kept)

    def shaded(self) -> list[tuple[float, float]]:
        """Return start and width of the ranges on the wrong side of the bounds."""
        ends = [(0.0 if low <= self.low else self.place(low), high) for low, high in self.crossed]
        return [(start, round((100.0 if high >= self.high else self.place(high)) - start, 2)) for start, high in ends]


@dataclass(frozen=True)
class Strip:
    """The numbers of one norm in one column.

    Attributes:
        text: The number.
        crossed: Whether the number is on the wrong side of the bound.
        said: The same in words.
        inside: Places of features within the bounds.
        outside: Places of features beyond the bounds.
        dot: Place of the number, where the features are not drawn.
        expected: Place of the number that would be no surprise.
    """

    text: str
    crossed: bool
    said: str
    inside: tuple[float, ...] = ()
    outside: tuple[float, ...] = ()
    dot: float | None = None
    expected: float | None = None


@dataclass(frozen=True)
class Column:
    """A column of strips.

    Attributes:
        title: What is drawn.
        unit: Its unit, and the bound.
        scale: The axis.
        strips: Strips by the path of the norm; norms without the number have none.
    """

    title: str
    unit: str
    scale: Scale
    strips: dict[str, Strip]


def columns(measurements: Iterable[Measurement], thresholds: Thresholds) -> list[Column]:
    """Return the columns for which at least one norm has numbers."""
    norms = list(measurements)
    made = (
        _of_features("Running mean", "true mean = 0, in standard deviations", norms, thresholds.lag, _shifts),
        _of_features(
            "Running variance", "ln of its ratio to the true one", norms, math.log(thresholds.variance_ratio), _ratios
        ),
        _gaps(norms, thresholds),
        _effective(norms, thresholds.effective),
    )
    return [column for column in made if column.strips]


def _shifts(norm: Measurement) -> np.ndarray:
    """Return running minus true mean of each feature in standard deviations."""
    if norm.running_mean is None or np.shape(norm.running_mean) != np.shape(norm.mean):
        return np.zeros(0)
    with np.errstate(all="ignore"):
        return (np.float64(norm.running_mean) - np.float64(norm.mean)) / np.sqrt(np.float64(norm.var))


def _ratios(norm: Measurement) -> np.ndarray:
    """Return the logarithm of the ratio of running to true variance of each feature."""
    if norm.running_var is None or np.shape(norm.running_var) != np.shape(norm.var):
        return np.zeros(0)
    with np.errstate(all="ignore"):
        return np.log(np.float64(norm.running_var)) - np.log(np.float64(norm.var))


def _of_features(
    title: str, unit: str, norms: Sequence[Measurement], bound: float, values: Callable[[Measurement], np.ndarray]
) -> Column:
    """Draw a number of each feature, and write the median of its size."""
    known = {norm.path: found[np.isfinite(found)] for norm in norms for found in [np.ravel(values(norm))]}
    known = {path: found for path, found in known.items() if found.size}
    end = _end([float(np.abs(found).max()) for found in known.values()], bound)
    ticks = ((-bound, bound), (0.0,), (-end, end), *((-(10.0**power), 10.0**power) for power in range(6)))
    crossed = ((-end, -bound), (bound, end))
    scale = Scale(lambda value: math.asinh(value / bound), -end, end, ticks, (-bound, bound), crossed)
    strips = {path: _strip_of_features(found, scale, bound, title) for path, found in known.items()}
    return Column(title, f"{unit}; bound ±{number(bound)}", scale, strips)


def _strip_of_features(values: np.ndarray, scale: Scale, bound: float, title: str) -> Strip:
    median = float(np.median(np.abs(values)))
    beyond = int((np.abs(values) > bound).sum())
    drawn = np.sort(values) if values.size <= _MARKS else np.quantile(values, np.linspace(0, 1, _MARKS))
    places = [(scale.place(float(value)), abs(value) > bound) for value in drawn]
    return Strip(
        text=number(median),
        crossed=median > bound,
        said=f"{title}: off by {number(median)} in the median, {beyond} of {values.size} features beyond the bound",
        inside=tuple(dict.fromkeys(place for place, outside in places if not outside)),
        outside=tuple(dict.fromkeys(place for place, outside in places if outside)),
    )


def _gaps(norms: Sequence[Measurement], thresholds: Thresholds) -> Column:
    """Draw the difference between training and evaluation beside the expected one."""
    known = [norm for norm in norms if math.isfinite(norm.gap)]
    bound = thresholds.gap
    end = _end([norm.gap for norm in known], bound)
    ticks = ((0.0,), (bound,), (end,), (0.1,), (1.0,), (10.0,), (100.0,))
    scale = Scale(lambda value: math.asinh(value / bound), 0.0, end, ticks, (bound,), ((bound, end),))
    strips = {norm.path: _gap(norm, scale, thresholds) for norm in known}
    return Column("Training against evaluation", f"relative difference; bound {number(bound)}", scale, strips)


def _gap(norm: Measurement, scale: Scale, thresholds: Thresholds) -> Strip:
    known = math.isfinite(norm.expected_gap)
    surprising = not known or norm.gap > thresholds.gap_ratio * norm.expected_gap
    expected = f", expected {number(norm.expected_gap)}" if known else ""
    return Strip(
        text=number(norm.gap),
        crossed=norm.gap > thresholds.gap and surprising,
        said=f"Outputs in training and at evaluation differ by {number(norm.gap)}{expected}",
        dot=scale.place(norm.gap),
        expected=scale.place(norm.expected_gap) if known else None,
    )


def _effective(norms: Sequence[Measurement], bound: float) -> Column:
    """Draw the independent samples of a batch on a logarithmic axis, for norms that have statistics of batches."""
    known = [norm for norm in norms if norm.running_mean is not None and 0 < norm.effective < math.inf]
    end = max([norm.effective for norm in known], default=1.0)
    end = 10.0 ** math.ceil(math.log10(max(end, 2 * bound)))
    ticks = ((bound,), (1.0,), (end,), *((10.0**power,) for power in range(1, 12)))
    scale = Scale(lambda value: math.log(value), 1.0, end, ticks, (bound,), ((1.0, bound),))
    strips = {
        norm.path: Strip(
            text=number(norm.effective if norm.effective < 100 else round(norm.effective)),
            crossed=norm.effective < bound,
            said=f"{number(norm.effective)} independent samples in a batch",
            dot=scale.place(norm.effective),
        )
        for norm in known
    }
    return Column("Effective samples", f"of a batch, logarithmic; at least {number(bound)}", scale, strips)


def _end(sizes: Sequence[float], bound: float) -> float:
    """Return the end of an axis: the largest number, rounded up to one digit, at least twice the bound."""
    largest = max([*sizes, 2 * bound])
    unit = 10.0 ** math.floor(math.log10(largest))
    return math.ceil(largest / unit) * unit


def _overlap(one: tuple[float, str], other: tuple[float, str]) -> bool:
    """Return whether two labels are less than a letter apart."""
    return abs(one[0] - other[0]) < _LETTER * (len(one[1]) + len(other[1]) + 2) / 2
