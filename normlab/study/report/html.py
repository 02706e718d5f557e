"""The report of a comparison: one offline HTML file, and tables and figures beside it.

What else shows a result is here by name: the table of the terminal, and the rows behind the tables.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from normlab.study.analysis.estimates import CAUTIOUS, runs_to_see, wilson
from normlab.study.analysis.results import Analysis, Basin, CellResult, CurveResult, Point, TuningPoint
from normlab.study.design.comparison import Comparison, Settings
from normlab.study.design.factors import Value
from normlab.study.design.records import FAILURES, RunIdentity
from normlab.study.design.request import to_toml
from normlab.study.report import advice, formatting, headline
from normlab.study.report.advice import Choice, Recommendation
from normlab.study.report.files import configurations, data_files, figure_files, latex_files, norm_keys, series_files
from normlab.study.report.tables import margins, not_run, rows
from normlab.study.report.terminal import print_table, table_text
from normlab.study.worker.store import write_whole

__all__ = ["print_table", "prose", "rows", "table_text", "write_html"]

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup


def write_html(
    analysis: Analysis,
    directory: str | os.PathLike[str],
    *,
    comparison: Comparison,
    settings: Settings,
    identity: RunIdentity,
    command: str,
    wall_seconds: float,
    about: Mapping[str, str] | None = None,
    outdated: str = "",
    recommendation: Recommendation | None = None,
) -> Path:
    """Write `report.html`, which opens offline, `analysis.json`, and the folders `tables` and `figures` beside it.

    Each file appears whole or not at all, the page last.

    Args:
        analysis: The analysis.
        directory: Output folder, created if it is missing.
        comparison: The comparison.
        settings: The settings.
        identity: Code, versions and hardware, like in the records.
        command: The command that reproduces the report.
        wall_seconds: Time from start to end.
        about: Descriptions of the data by problem.
        outdated: A sentence on records that are not in the numbers; see `worker.identity.outdated`.
        recommendation: The recommendation; computed from the analysis unless given.

    Returns:
        The path of the HTML file.
    """
    data = list(data_files(analysis, comparison, settings, identity, outdated))
    latex, figures, series = latex_files(analysis), figure_files(analysis), series_files(analysis)
    page = _template().render(
        analysis=analysis,
        comparison=comparison,
        settings=settings,
        tier=comparison.tiers[settings.tier],
        preface=headline.preface(analysis),
        said={(p.name, c.name): headline.headline(analysis, p, c) for p in analysis.problems for c in p.curves},
        recommendation=recommendation or advice.recommend(analysis),
        data=data,
        latex=latex,
        figures=figures,
        series=series,
        about=_of_problems(about or {}),
        keys=norm_keys(analysis),
        moves=any(cost.moved is not None for cost in analysis.costs),
        costs={(cost.problem, cost.curve, cost.norm, cost.value): cost for cost in analysis.costs},
        statuses=_statuses(analysis),
        not_run=not_run(analysis),
        margins=margins(analysis),
        norm_settings=_norm_settings(analysis),
        unseen_failure_rate=wilson(0, settings.seeds, analysis.level)[1],
        environment=list(_flat(identity)),
        command=command,
        toml=to_toml(settings, comparison),
        wall_seconds=wall_seconds,
        outdated=outdated,
    )
    drawn = [*figures.values(), *(figure for _, figure, _ in series)]
    files = [*data, *latex.values(), *(table for _, _, table in series), *(f for figure in drawn for f in figure.files)]
    folder = Path(directory)
    for file in files:
        (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
        write_whole(folder / file.path, file.content)
    return write_whole(folder / "report.html", page)


def _template() -> "Template":
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    own = (_reasons, _basin_width, _basin_ends, _factor, _grown, _sure, _pair, _rates, _at_rate, _runnable, _short)
    environment.filters.update({function.__name__.removeprefix("_"): function for function in own})
    environment.filters["prose"] = prose
    style, script = Markup(_asset("report.css")), Markup(_asset("report.js"))
    environment.globals.update(formatting=formatting, style=style, script=script, step_times=advice.STEP_TIMES)
    environment.globals.update(cautious=CAUTIOUS, runs_to_see=runs_to_see)
    return environment.from_string(_asset("report.html.jinja"))


def _of_problems(about: Mapping[str, str]) -> dict[str, str]:
    """Group problems by the description of their data."""
    return {text: ", ".join(name for name, same in about.items() if same == text) for text in about.values()}


def _asset(name: str) -> str:
    return resources.files("normlab.study.report").joinpath(name).read_text("utf-8")


def prose(text: str) -> "Markup":
    """Escape text for a page, with what stands between backticks as code and numbers beside their `%`."""
    from markupsafe import Markup, escape

    escaped = str(escape(text)).replace(" %", "\N{NO-BREAK SPACE}%")
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", escaped).replace("`", ""))


def _short(text: str) -> str:
    """Abbreviate hashes to twelve digits; the settings, which can be downloaded, have all of them."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{20,}\b", r"\1…", text)


def _runnable(curve: CurveResult, norms: Iterable[str]) -> list[str]:
    """List the norms that can be run at one value of a curve or more."""
    there = {cell.norm for cell in curve.cells if not cell.invalid}
    return [norm for norm in norms if norm in there]


def _factor(curve: CurveResult) -> str:
    """Write the factor of a curve for sentences: `ghost batch size`."""
    return str(curve.factor["name"]).replace("_", " ")


def _grown(curve: CurveResult) -> list[tuple[Value, tuple[float, ...]]]:
    """List the values at which the grid has grown, and the added rates."""
    found = {cell.value: cell.added for cell in curve.cells if cell.added}
    return list(found.items())


def _basin_width(basin: Basin) -> str:
    """Write `30x`; with an open end the width is a lower bound."""
    return f"{'at least ' if basin.open_low or basin.open_high else ''}{formatting.ratio(basin.width)}"


def _basin_ends(basin: Basin) -> str:
    """Write `0.01 to 0.3`."""
    return (
        f"{formatting.rate(basin.low)} to {formatting.rate(basin.high)}"
        if basin.width > 1
        else formatting.rate(basin.low)
    )


def _rates(curve: CurveResult) -> list[float]:
    """Return all learning rates over which norms of a curve were tuned."""
    return sorted({point.learning_rate for cell in curve.cells for point in cell.tuning})


def _at_rate(cell: CellResult, rate: float) -> TuningPoint | None:
    """Find the tuning result of a cell at a learning rate; `None` where there is none."""
    return next((point for point in cell.tuning if point.learning_rate == rate), None)


def _pair(names: Iterable[str]) -> list[tuple[str, str]]:
    """Pair names with themselves, for a list of options."""
    return [(name, name) for name in names]


def _sure(choice: Choice, names: Mapping[str, str]) -> str:
    """Describe whether the data decide a choice, and the norms that stay undecided."""
    if not choice.norm:
        return choice.reason
    if choice.sure:
        return "yes"
    seeds = f"; {advice.seeds_to_decide(choice.seeds_needed)}" if choice.seeds_needed else ""
    if not choice.undecided:
        return f"for now; {choice.seeds_needed} seeds would be sure"
    others = formatting.listed([advice.in_sentence(names[norm]) for norm in choice.undecided], "or")
    return f"no: perhaps {others}{seeds}"


def _reasons(points: Iterable[Point]) -> str:
    """Group reasons of failures: `diverged: loss is not finite (seeds 1, 4)`."""
    seeds: dict[str, list[str]] = {}
    for point in points:
        if point.status in FAILURES:
            why = ": ".join(part for part in (point.status, point.reason.rstrip(".")) if part)
            seeds.setdefault(why, []).append(str(point.seed))
    return "; ".join(f"{why} ({'seed' if len(s) == 1 else 'seeds'} {_first(s)})" for why, s in seeds.items())


def _first(seeds: Sequence[str]) -> str:
    """Write the first seeds, and how many more there are."""
    more = len(seeds) - formatting.SEEDS_NAMED
    return ", ".join(seeds) if more <= 0 else f"{', '.join(seeds[: formatting.SEEDS_NAMED])} and {more} more"


def _statuses(analysis: Analysis) -> dict[str, Counter[str]]:
    """Count planned runs by stage and status; runs that tuning will add have no status yet."""
    counts: dict[str, Counter[str]] = {}
    for run in analysis.runs:
        counts.setdefault(run.stage, Counter())[run.status] += 1
    to_come = analysis.counts["missing"] - sum(run.status == "missing" for run in analysis.runs)
    if to_come:
        counts.setdefault("evaluate", Counter())["missing"] += to_come
    return counts


def _norm_settings(analysis: Analysis) -> list[tuple[str, str, str, list[str]]]:
    """List problem, norm, options and training fields, with equal options grouped."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for one in configurations(analysis):
        training = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in one["config"].items())
        found.setdefault((one["problem"], one["norm"], one["options"]), []).append(training)
    return [(*key, where) for key, where in found.items()]


def _flat(value: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Flatten nested mappings to lines `versions jax`: `0.10.2`."""
    if isinstance(value, Mapping):
        for key in value:
            yield from _flat(value[key], f"{prefix} {key}".strip())
    elif isinstance(value, list | tuple):
        yield prefix, ", ".join(str(item) for item in value)
    else:
        yield prefix, str(value)
