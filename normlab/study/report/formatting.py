"""Format numbers for terminal, report and advice; a dash where there is no number.

A metric that is a fraction is shown in percent, its differences in percentage points, with one decimal; any other with
three significant digits. Units stand apart: `value` and `interval` give none, `quantity` and `unit` do.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from normlab.study.analysis.estimates import Difference, Interval
    from normlab.study.analysis.results import Analysis
    from normlab.study.design.problem import Metric

WORTHWHILE = 200
"""Most seeds that are worth their time: a difference that takes more to show is too small to matter."""

SEEDS_NAMED = 20
"""Most seeds that a text lists."""

POINTS_DRAWN, SEEDS_DRAWN = 2000, 10
"""Most single seeds that a figure shows as points, but at least so many of every norm and value."""

DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


def value(metric: "Metric", x: float | None) -> str:
    """Format a value of the metric without its unit, e.g. `2.3`."""
    if x is None:
        return DASH
    return percent(x) if metric.percent else number(x, 3)


def signed(metric: "Metric", x: float | None) -> str:
    """Format a difference of the metric with its sign, e.g. `+15.4`."""
    text = value(metric, x)
    if x is None or not any(digit in text for digit in "123456789"):
        return text.removeprefix(MINUS)
    return text if text.startswith(MINUS) else f"+{text}"


def interval(metric: "Metric", ends: "Interval | None", *, sign: bool = False) -> str:
    """Format an interval of the metric, e.g. `[1.0, 3.4]`; empty where there is none."""
    if ends is None:
        return ""
    low, high = ((signed if sign else value)(metric, end) for end in ends)
    return f"[{low}, {high}]"


def half(metric: "Metric", ends: "Interval | None") -> str:
    """Format half the width of an interval, e.g. `0.4`; empty where there is none."""
    return "" if ends is None else value(metric, (ends[1] - ends[0]) / 2)


def unit(metric: "Metric") -> str:
    """Return the unit of values: `%`, or empty."""
    return "%" if metric.percent else ""


def quantity(metric: "Metric", x: float | None) -> str:
    """Format a value with its unit, e.g. `2.3 %`."""
    return f"{value(metric, x)} {unit(metric)}".rstrip()


def gap(metric: "Metric", difference: "Difference") -> str:
    """Format the size of a difference with its interval, e.g. `17.2 points [15.0, 19.4]`."""
    mean, ends = difference.mean, difference.interval
    if mean is not None and mean < 0:
        mean, ends = -mean, ends and (-ends[1], -ends[0])
    return f"{points(metric, mean)} {interval(metric, ends)}".rstrip()


def points(metric: "Metric", x: float | None) -> str:
    """Format a difference with its unit and without a sign of its own, e.g. `0.5 points`."""
    return f"{value(metric, x)} points" if metric.percent else value(metric, x)


def percent(fraction: float | None, digits: int = 1) -> str:
    """Format a fraction in percent, e.g. `27.8`."""
    return DASH if fraction is None else f"{100 * fraction:.{digits}f}".replace("-", MINUS)


def number(x: float | None, digits: int = 2) -> str:
    """Format a number with some significant digits, e.g. `0.0012`."""
    if x is None:
        return DASH
    if abs(x) >= 10**digits and abs(x) < 1e6:
        return f"{x:.0f}".replace("-", MINUS)
    return f"{x:#.{digits}g}".rstrip(".").replace("-", MINUS)


def p_value(x: float | None) -> str:
    """Format a p-value, with `<0.0001` for small ones."""
    return "<0.0001" if x is not None and x < 1e-4 else number(x)


def rate(x: float | None) -> str:
    """Format a learning rate, e.g. `0.003`."""
    return DASH if x is None else f"{x:g}"


def rates(xs: Iterable[float]) -> str:
    """Join learning rates in a row, e.g. `0.003, 0.01`."""
    return ", ".join(map(rate, xs))


def seeds_so_far(analysis: "Analysis") -> str:
    """Describe the seeds of the evaluated norms, e.g. `5 seeds`, or `2 to 3 of 5 seeds so far`."""
    found = {len(cell.points) for cell in analysis.cells if cell.points} or {analysis.seeds}
    few, many = min(found), max(found)
    if few >= analysis.seeds:
        return count(analysis.seeds, "seed")
    return f"{few if few == many else f'{few} to {many}'} of {count(analysis.seeds, 'seed')} so far"


def tuned_over(rates: tuple[int, int]) -> str:
    """Describe a provisional tuning, e.g. `tuned over 3 of 5 learning rates so far`."""
    tried, planned = rates
    return f"tuned over {f'{tried} of ' if tried < planned else ''}{count(planned, 'learning rate')} so far"


def provisional(analysis: "Analysis") -> str:
    """Describe the provisional tuning of evaluated norms; empty where there is none."""
    found = dict.fromkeys(cell.tuned_over for cell in analysis.cells if cell.tuned_over and cell.points)
    return listed([*map(tuned_over, found)]) if found else ""


def ratio(x: float | None) -> str:
    """Format a ratio, e.g. `1.2x` or `30x`."""
    if x is None:
        return DASH
    return f"{x:#.2g}x" if x < 9.95 else f"{x:.0f}x"


def seconds(x: float | None) -> str:
    """Format a time, e.g. `130 µs`, `2.5 ms`, `0.35 s`, `12 s`, `3 min 20 s` or `2 h 1 min`."""
    if x is None:
        return DASH
    if x < 0.0995:
        return f"{_three(1e6 * x)} µs" if x < 0.0009995 else f"{_three(1e3 * x)} ms"
    if x < 59.5:
        return f"{x:.2g} s" if x < 9.95 else f"{x:.0f} s"
    minutes, rest = divmod(round(x), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def duration(seconds: float) -> str:
    """Format a time that a user chose, in whole seconds and without parts that are zero.

    >>> duration(90), duration(600), duration(3600), duration(5430)
    ('1 min 30 s', '10 min', '1 h', '1 h 30 min 30 s')
    """
    minutes, rest = divmod(max(1, round(seconds)), 60)
    parts = {"h": minutes // 60, "min": minutes % 60, "s": rest}
    return " ".join(f"{number} {unit}" for unit, number in parts.items() if number)


def size(count: float | None) -> str:
    """Format a number of bytes, e.g. `640 B` or `1.5 MB`."""
    if count is None:
        return DASH
    power = 0
    while count >= 999.5 and power < 4:
        count, power = count / 1000, power + 1
    return f"{_three(count) if power else f'{count:.0f}'} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def count(n: int, word: str) -> str:
    """Format a number of things, e.g. `1 seed` or `5 seeds`."""
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def seeds_needed(n: int | None) -> str:
    """Format a number of seeds, `many` where more are not worth their time."""
    return DASH if n is None else str(n) if n <= WORTHWHILE else "many"


def listed(texts: Sequence[str], last: str = "and") -> str:
    """Join words in a row, e.g. `a, b and c`."""
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} {last} {texts[-1]}"


def _three(x: float) -> str:
    """Format a number with at most three significant digits, without trailing zeros behind the point."""
    return f"{x:.3g}" if x < 999.5 else f"{x:.0f}"


def seeds_drawn(cells: int) -> int:
    """Return the number of seeds that a figure of so many cells shows as points, the first ones of each cell.

    >>> seeds_drawn(20), seeds_drawn(1000)
    (100, 10)
    """
    return max(SEEDS_DRAWN, POINTS_DRAWN // max(1, cells))
