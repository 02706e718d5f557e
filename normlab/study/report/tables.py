"""Results as rows of CSV and LaTeX; fractions, seconds and bytes in CSV, formatted numbers in LaTeX."""

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from normlab.study.analysis.estimates import BETTER, EQUIVALENT, INCONCLUSIVE, WORSE, Interval
from normlab.study.analysis.results import (
    Analysis,
    CellResult,
    Cost,
    CurveResult,
    Line,
    ProblemResult,
    RunStatus,
    SeriesResult,
)
from normlab.study.design.problem import MEASURED_AT, Metric
from normlab.study.report import formatting

MARKS = {BETTER: "+", WORSE: "-", EQUIVALENT: "=", INCONCLUSIVE: "?"}
"""Verdicts as single characters, for narrow tables."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""First characters that make a spreadsheet compute a cell of text."""

_LATEX = {
    **{character: rf"\{character}" for character in "%_&#${}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "[": "{[}",
    "*": "{*}",  # behind a line's end, these two would be its options
}


def rows(analysis: Analysis) -> list[dict[str, object]]:
    """Return a dictionary for every cell of the tables; unknown values are `None`."""
    return [_row(cell, cost) for cell, cost in zip(analysis.cells, analysis.costs, strict=True)]


def margins(analysis: Analysis) -> str:
    """Write the margins of the problems, each once: `0.5 points or 0.100`."""
    found = dict.fromkeys(formatting.points(problem.metric, problem.margin) for problem in analysis.problems)
    return formatting.listed(list(found), "or")


def not_run(analysis: Analysis) -> list[str]:
    """Write `Not run: instance norm on MLP 100-100.`, a line for every reason, of which the first sentence follows."""
    found: dict[str, dict[str, dict[str, None]]] = {}
    for problem in analysis.problems:
        for cell in problem.cells:
            if cell.invalid:
                reason = re.split(r"(?<=[.!?])\s", cell.invalid)[0].rstrip(".")
                found.setdefault(reason, {}).setdefault(analysis.names[cell.norm], {})[problem.title] = None
    return [
        f"Not run: {'; '.join(f'{name} on {formatting.listed(list(titles))}' for name, titles in where.items())}. "
        f"{reason}."
        for reason, where in found.items()
    ]


def run_rows(analysis: Analysis) -> list[dict[str, object]]:
    """Return a dictionary for every planned run; numbers have nine digits, enough for float32."""
    return [_run_row(run) for run in analysis.runs]


def series_rows(found: SeriesResult) -> list[dict[str, object]]:
    """Return a dictionary for every norm and position of a series, with the numbers at all times of measurement."""
    return [
        {"norm": norm, "x": x, "seeds": lines[0].seeds, **_at_all_times(lines, place)}
        for norm, lines in found.lines.items()
        for place, x in enumerate(found.series.x)
    ]


def to_csv(lines: Sequence[Mapping[str, object]]) -> str:
    """Write rows as CSV; unknown values are empty, and text that a spreadsheet would compute gets a `'` in front."""
    buffer = io.StringIO()
    names = list(dict.fromkeys(name for line in lines for name in line))
    writer = csv.DictWriter(buffer, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _harmless(value) for name, value in line.items()} for line in lines)
    return buffer.getvalue()


def to_latex(analysis: Analysis, problem: ProblemResult, curve: CurveResult) -> str:
    """Write errors, verdicts and failures of a curve as a `tabular`, norms by values; it needs `booktabs`."""
    lines = [
        *_latex_comments(analysis, problem, curve),
        rf"\begin{{tabular}}{{l{'r' * len(curve.values)}}}",
        r"\toprule",
        _latex_line(latex(str(text)) for text in (curve.factor["label"], *curve.values)),
        r"\midrule",
        *(_latex_line(_latex_row(analysis, problem.metric, curve, norm)) for norm in analysis.norms),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def latex(text: str) -> str:
    """Escape text for LaTeX."""
    escaped = "".join(_LATEX.get(character, character) for character in " ".join(text.split()))
    return re.sub("-(?=-)", "-{}", escaped)


def slug(text: str) -> str:
    """Reduce a name to the characters of a file name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip(".-")[:60] or "unnamed"


def _row(cell: CellResult, cost: Cost) -> dict[str, object]:
    return {
        "problem": cell.problem,
        "curve": cell.curve,
        "value": cell.value,
        "norm": cell.norm,
        "invalid": cell.invalid or None,
        "flat": cell.flat,
        **{f"runs_{status}": count for status, count in cell.counts.items()},
        **_estimate("error", cell.error.mean, cell.error.interval),
        "error_counting_failures": cell.error_counting_failures.mean,
        **dict(zip(("failures_low", "failures_high"), cell.failures.interval, strict=True)),
        **_estimate("train_loss", cell.train_loss.mean, cell.train_loss.interval),
        **_gap(cell),
        **_estimate("change", *(cell.change.mean, cell.change.interval) if cell.change else (None, None)),
        **_tuning(cell),
        **_untuned(cell),
        **{name: value for side, e in cell.side.items() for name, value in _estimate(side, e.mean, e.interval).items()},
        "step_seconds": cost.step,
        "run_seconds": cost.run,
        "compile_seconds": cost.compile,
        "memory_bytes": cost.memory,
        "moved_bytes": cost.moved,
    }


def _estimate(name: str, mean: float | None, interval: Interval | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def _gap(cell: CellResult) -> dict[str, object]:
    gap, difference = cell.gap, cell.gap.difference if cell.gap else None
    return {
        "reference": gap.reference if gap else None,
        **_estimate("difference", *(difference.mean, difference.interval) if difference else (None, None)),
        "paired": difference.paired if difference else None,
        "p": difference.p if difference else None,
        "p_holm": gap.p_holm if gap else None,
        "p_sign_flip": difference.p_sign_flip if difference else None,
        "rho": difference.rho if difference else None,
        "difference_counting_failures": gap.counted.mean if gap else None,
        "p_fails_more": gap.p_fails_more if gap else None,
        "p_fails_less": gap.p_fails_less if gap else None,
        "verdict": gap.verdict if gap else None,
        "note": (gap.note or None) if gap else None,
        "seeds_needed": gap.seeds_needed if gap else None,
    }


def _tuning(cell: CellResult) -> dict[str, object]:
    basin = cell.basin
    return {
        "learning_rate": cell.learning_rate,
        "edge": None if cell.learning_rate is None else cell.edge,
        "provisional": None if cell.learning_rate is None else cell.tuned_over is not None,
        "grid_added": " ".join(formatting.rate(rate) for rate in cell.added) or None,
        "basin_low": basin.low if basin else None,
        "basin_high": basin.high if basin else None,
        "basin_open_low": basin.open_low if basin else None,
        "basin_open_high": basin.open_high if basin else None,
    }


def _untuned(cell: CellResult) -> dict[str, object]:
    untuned = cell.untuned
    loss = untuned.loss if untuned else None
    return {
        "untuned_learning_rate": untuned.learning_rate if untuned else None,
        **_estimate("untuned_error", *(untuned.error.mean, untuned.error.interval) if untuned else (None, None)),
        "untuned_failures": untuned.failures.k if untuned else None,
        "untuned_runs": untuned.failures.n if untuned else None,
        **_estimate("untuned_loss", *(loss.mean, loss.interval) if loss else (None, None)),
    }


def _run_row(run: RunStatus) -> dict[str, object]:
    return {
        "problem": run.problem,
        "norm": run.norm,
        "options": run.options,
        **{f"config_{name}": value for name, value in run.config.items()},
        "stage": run.stage,
        "learning_rate": run.learning_rate,
        "seed": run.seed,
        "status": run.status,
        "reason": run.reason or None,
        **{name: None if x is None else f"{x:.9g}" for name, x in run.metrics.items()},
    }


def _at_all_times(lines: Sequence[Line], place: int) -> dict[str, object]:
    """Make columns such as `at_25_middle`, in percent of the training."""
    return {
        f"at_{100 * share:g}_{name}": None if (number := getattr(line, name)[place]) is None else f"{number:.5g}"
        for share, line in zip(MEASURED_AT, lines, strict=True)
        for name in ("middle", "low", "high")
    }


def _harmless(value: object) -> object:
    if isinstance(value, str) and value.startswith(_FORMULA) and not _is_number(value):
        return f"'{value}"
    return value


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _latex_comments(analysis: Analysis, problem: ProblemResult, curve: CurveResult) -> Iterator[str]:
    """Describe the numbers in a comment; a line break in a name would end it."""
    metric, level, seeds = (
        problem.metric,
        formatting.percent(analysis.level, 0),
        formatting.count(analysis.seeds, "seed"),
    )
    baseline, margin = analysis.names[analysis.baseline], formatting.points(metric, problem.margin)
    texts = (
        f"{problem.title}; {curve.title}: {metric.name} {formatting.unit(metric)}",
        f"mean and half of the {level} % interval over {seeds}; in brackets failed of all runs",
        f"against {baseline} at a margin of {margin}: + better, - worse, = equivalent, ? inconclusive",
        r"\usepackage{booktabs}",
    )
    for text in texts:
        yield f"% {' '.join(text.split())}"


def _latex_line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def _latex_row(analysis: Analysis, metric: Metric, curve: CurveResult, norm: str) -> Iterator[str]:
    yield latex(analysis.names[norm])
    for value in curve.values:
        yield _latex_cell(metric, curve.cell(norm, value))


def _latex_cell(metric: Metric, cell: CellResult) -> str:
    if cell.error.mean is None:
        text = "--"
    else:
        half = formatting.half(metric, cell.error.interval)
        verdict = (cell.gap.verdict if cell.gap else None) or ""
        text = formatting.value(metric, cell.error.mean) + (rf" \pm {half}" if half else "")
        text = f"${text.replace(formatting.MINUS, '-')}{f'^{{{MARKS[verdict]}}}' if verdict else ''}$"
    return text + (f" ({cell.failures.k}/{cell.failures.n})" if cell.failures.k else "")
