"""A comparison's result for people: a table on the terminal, and one HTML file that needs no network.

Figures and template load matplotlib and jinja2 when a report is written, not before.
"""

import base64
import csv
import dataclasses
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normlab.study.analysis import Analysis, CellResult, ProblemResult, to_json
from normlab.study.config import FAILURES, Comparison, Settings, Value
from normlab.study.statistics import BETTER, EQUIVALENT, INCONCLUSIVE, WORSE, Interval, wilson

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

MARKS = {BETTER: "+", WORSE: "-", EQUIVALENT: "=", INCONCLUSIVE: "?"}
COLOURS = {BETTER: "green", WORSE: "red"}
EDGE = "^"
DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"

_CELL_WIDTH = 12


def print_table(analysis: Analysis, console: "Console") -> None:
    """Print errors, failures and verdicts, a table for each problem, then the advice.

    Args:
        analysis: What to print.
        console: Where; plain text without colour if it is no terminal.
    """
    plus_minus = "±" if console.encoding.lower().startswith("utf") else "+-"
    for problem in analysis.problems:
        console.print()
        console.print(f"{problem.title}: {problem.metric} in %", markup=False, highlight=False, style="bold")
        for values in _chunks(analysis, console.width):
            console.print(_table(analysis, problem, values, plus_minus))
    console.print()
    for line in _legend(analysis, plus_minus):
        console.print(line, markup=False, highlight=False, style="dim")
    console.print()
    console.print(analysis.advice, markup=False, highlight=False)


def write_html(
    analysis: Analysis,
    directory: str | os.PathLike[str],
    *,
    comparison: Comparison,
    settings: Settings,
    identity: Mapping[str, Any],
    command: str,
    wall_seconds: float,
) -> Path:
    """Write `report.html`, which opens offline, and `analysis.json` beside it; each appears whole or not at all.

    Args:
        analysis: What to report.
        directory: Where to; made if it is not there.
        comparison: The question and what is fixed.
        settings: What was asked for.
        identity: Code, versions and hardware, as in the records.
        command: What reproduces it.
        wall_seconds: Time from start to end.

    Returns:
        The path of the HTML file.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    filters = (percent, points, number, p_value, seconds, interval, reasons)
    environment.filters.update({function.__name__: function for function in filters})
    source = resources.files("normlab.study").joinpath("report.html.jinja").read_text("utf-8")
    template = environment.from_string(source)
    config = describe(comparison, settings, identity)
    html = template.render(
        analysis=analysis,
        comparison=comparison,
        tier=comparison.tiers[settings.tier],
        settings=settings,
        figures=_figures(analysis),
        timings={(timing.problem, timing.norm, timing.value): timing for timing in analysis.timings},
        config=config,
        downloads=_downloads(analysis, config),
        environment=list(_flat(identity)),
        command=command,
        wall_seconds=wall_seconds,
        statuses=_statuses(analysis),
        invalid=_invalid(analysis),
        unseen_failure_rate=wilson(0, settings.seeds, analysis.level)[1],
    )
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "analysis.json", to_json(analysis))
    return _write(folder / "report.html", html)


def describe(comparison: Comparison, settings: Settings, identity: Mapping[str, Any]) -> str:
    """Give every setting as JSON text: the comparison, what was asked for, and what it ran on."""
    problems = [problem for problem in comparison.problems if problem.name in settings.problems]
    plain = {
        "comparison": {
            **{name: getattr(comparison, name) for name in ("name", "title", "question", "baseline", "margin")},
            "fixed": comparison.fixed,
            "factor": dataclasses.asdict(comparison.factor),
            "problems": [
                {name: getattr(problem, name) for name in ("name", "title", "metric", "chance", "spatial")}
                for problem in problems
            ],
            "configs": {str(value): dict(comparison.config(value)) for value in settings.values},
        },
        "settings": dataclasses.asdict(settings),
        "identity": dict(identity),
    }
    return json.dumps(plain, indent=2, ensure_ascii=False, default=str)


def to_csv(analysis: Analysis) -> str:
    """Give one line for each cell as CSV text; what is not known is empty. Fractions and seconds, not percent."""
    buffer = io.StringIO()
    timings = {(timing.problem, timing.norm, timing.value): timing for timing in analysis.timings}
    rows = [_row(cell) for cell in analysis.cells]
    for row, cell in zip(rows, analysis.cells, strict=True):
        timing = timings[cell.problem, cell.norm, cell.value]
        row.update(run_seconds=timing.run, compile_seconds=timing.compile)
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def percent(fraction: float | None, digits: int = 1) -> str:
    """A fraction in percent; a dash where there is none."""
    return DASH if fraction is None else f"{100 * fraction:.{digits}f}".replace("-", MINUS)


def points(fraction: float | None) -> str:
    """A difference in percentage points, with its sign; a dash where there is none."""
    if fraction is None:
        return DASH
    rounded = round(100 * fraction, 1)
    return f"{rounded:+.1f}".replace("-", MINUS) if rounded else "0.0"


def interval(ends: Interval | None, *, sign: bool = False) -> str:
    """An interval in percent, empty where there is none."""
    if ends is None:
        return ""
    low, high = (points(end) if sign else percent(end) for end in ends)
    return f"[{low}, {high}]"


def number(value: float | None, digits: int = 2) -> str:
    """A number with some significant digits; a dash where there is none."""
    return DASH if value is None else f"{value:#.{digits}g}".rstrip(".").replace("-", MINUS)


def p_value(value: float | None) -> str:
    """A p-value, `<0.0001` below that; a dash where there is none."""
    return "<0.0001" if value is not None and value < 1e-4 else number(value)


def seconds(value: float | None) -> str:
    """A time for people, e.g. `0.35 s`, `12 s`, `3 min 20 s`; a dash where there is none."""
    if value is None:
        return DASH
    if value < 9.95:
        return f"{value:.2g} s"
    if round(value) < 60:
        return f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _chunks(analysis: Analysis, width: int) -> Iterator[Sequence[Value]]:
    """Factor values in groups that fit the width."""
    names = max(len(norm) for norm in analysis.norms) + 2
    size = max(1, (width - names) // (_CELL_WIDTH + 1))
    for start in range(0, len(analysis.values), size):
        yield analysis.values[start : start + size]


def _table(analysis: Analysis, problem: ProblemResult, values: Sequence[Value], plus_minus: str) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    table.add_column(Text(str(analysis.factor["name"]).replace("_", " ")), overflow="fold")
    for value in values:
        table.add_column(Text(str(value)), justify="right", min_width=_CELL_WIDTH, overflow="fold")
    for norm in analysis.norms:
        cells = [_cell_text(problem.cell(norm, value), plus_minus) for value in values]
        table.add_row(Text(norm, style="bold" if norm == analysis.baseline else ""), *cells)
    return table


def _cell_text(cell: CellResult, plus_minus: str) -> "Text":
    """`17.9 ±2.1 -^`, with `2/5 failed` below where runs failed."""
    from rich.text import Text

    if cell.invalid:
        return Text("invalid ", style="dim")
    verdict = cell.gap.verdict if cell.gap else None
    ends = cell.error.interval
    half = f" {plus_minus}{percent((ends[1] - ends[0]) / 2)}" if ends else ""
    mean = percent(cell.error.mean) if cell.error.mean is not None else "..." if cell.counts["missing"] else "none"
    text = Text(f"{mean}{half} ")
    text.append(MARKS.get(verdict or "", " "), style=COLOURS.get(verdict or "", ""))
    text.append(EDGE if cell.edge else " ")
    if cell.failures.k:
        text.append(f"\n{cell.failures.k}/{cell.failures.n} failed", style="red")
    return text


def _legend(analysis: Analysis, plus_minus: str) -> Iterator[str]:
    yield f"{plus_minus} half of the {analysis.level:.0%} interval over {analysis.seeds} seeds"
    if analysis.claims:
        marks = ", ".join(f"{mark} {verdict}" for verdict, mark in MARKS.items())
        yield f"against {analysis.baseline}, margin {percent(analysis.margin)}: {marks}"
    if any(cell.edge for cell in analysis.cells):
        yield f"{EDGE} chosen learning rate is at the edge of the grid"
    yield from (f"{where}: {reason}" for where, _, reason in _invalid(analysis))
    if analysis.baseline_note:
        yield analysis.baseline_note
    if analysis.runs["missing"]:
        yield f"{analysis.runs['missing']} of {analysis.runs['planned']} runs are still missing"


def _figures(analysis: Analysis) -> dict[str, dict[str, Any]]:
    from markupsafe import Markup

    from normlab.study.figures import error_figure, tuning_figure

    return {
        problem.name: {
            "error": Markup(error_figure(analysis, problem, f"error{index}")),
            "tuning": Markup(tuning_figure(analysis, problem, f"tuning{index}")),
        }
        for index, problem in enumerate(analysis.problems)
    }


def _downloads(analysis: Analysis, config: str) -> list[dict[str, str]]:
    files = {
        f"{analysis.comparison}-settings.json": ("application/json", config),
        f"{analysis.comparison}-analysis.json": ("application/json", to_json(analysis)),
        f"{analysis.comparison}-cells.csv": ("text/csv", to_csv(analysis)),
    }
    return [{"name": name, "uri": _data_uri(kind, text)} for name, (kind, text) in files.items()]


def _data_uri(kind: str, text: str) -> str:
    return f"data:{kind};charset=utf-8;base64,{base64.b64encode(text.encode()).decode()}"


def reasons(cell: CellResult) -> str:
    """Why runs of a cell failed, equal reasons together: `diverged: loss is not finite (seeds 1, 4)`."""
    seeds: dict[str, list[str]] = {}
    for point in cell.points:
        if point.status in FAILURES:
            why = ": ".join(part for part in (point.status, point.reason.rstrip(".")) if part)
            seeds.setdefault(why, []).append(str(point.seed))
    return "; ".join(f"{why} ({'seed' if len(s) == 1 else 'seeds'} {', '.join(s)})" for why, s in seeds.items())


def _invalid(analysis: Analysis) -> list[tuple[str, str, str]]:
    """Cells that cannot be run, equal reasons together: where, at which values, why."""
    values: dict[tuple[str, str], list[str]] = {}
    for problem in analysis.problems:
        for cell in problem.cells:
            if cell.invalid:
                where = f"{analysis.names[cell.norm]} on {problem.title}"
                values.setdefault((where, cell.invalid), []).append(str(cell.value))
    return [(where, ", ".join(found), reason) for (where, reason), found in values.items()]


def _statuses(analysis: Analysis) -> dict[str, int]:
    total: dict[str, int] = {}
    for cell in analysis.cells:
        for status, count in cell.counts.items():
            total[status] = total.get(status, 0) + count
    return total


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested mappings as lines `versions jax`: `0.10.2`."""
    if isinstance(value, Mapping):
        for key in value:
            yield from _flat(value[key], f"{prefix} {key}".strip())
    elif isinstance(value, list | tuple):
        yield prefix, ", ".join(str(item) for item in value)
    else:
        yield prefix, str(value)


def _row(cell: CellResult) -> dict[str, Any]:
    gap, low_high = cell.gap, (None, None)
    difference = gap.difference if gap else None
    return {
        "problem": cell.problem,
        "norm": cell.norm,
        "value": cell.value,
        "invalid": cell.invalid,
        "learning_rate": cell.learning_rate,
        "edge": cell.edge,
        **{f"runs_{status}": count for status, count in cell.counts.items()},
        "error": cell.error.mean,
        "error_low": (cell.error.interval or low_high)[0],
        "error_high": (cell.error.interval or low_high)[1],
        "error_counting_failures": cell.error_counting_failures.mean,
        "failures_low": cell.failures.interval[0],
        "failures_high": cell.failures.interval[1],
        "train_loss": cell.train_loss,
        "change": cell.change.mean if cell.change else None,
        "change_low": ((cell.change.interval if cell.change else None) or low_high)[0],
        "change_high": ((cell.change.interval if cell.change else None) or low_high)[1],
        "reference": gap.reference if gap else None,
        "difference": difference.mean if difference else None,
        "difference_low": ((difference.interval if difference else None) or low_high)[0],
        "difference_high": ((difference.interval if difference else None) or low_high)[1],
        "paired": difference.paired if difference else None,
        "p": difference.p if difference else None,
        "p_holm": gap.p_holm if gap else None,
        "p_sign_flip": difference.p_sign_flip if difference else None,
        "rho": difference.rho if difference else None,
        "verdict": gap.verdict if gap else None,
        "seeds_needed": gap.seeds_needed if gap else None,
    }


def _write(path: Path, text: str) -> Path:
    """Write a file so that no reader sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path
