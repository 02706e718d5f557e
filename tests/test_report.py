"""Analysis and report: what synthetic records show, the same in any order, escaped, offline, and drawn by a browser."""

import csv
import dataclasses
import html
import io
import json
import math
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from normlab.study import plan, report
from normlab.study.analysis import Analysis, analyse, to_json
from normlab.study.config import (
    EVALUATE,
    TUNE,
    Cell,
    Comparison,
    Factor,
    Problem,
    Record,
    Run,
    Settings,
    Tier,
    content_key,
)
from normlab.study.statistics import BETTER, EQUIVALENT, INCONCLUSIVE, WORSE

NORMS = ("none", "batch", "batch_renorm", "layer", "rms", "group", "instance")
VALUES = (2, 4, 8, 32, 128)
RATES = (0.01, 0.03, 0.1, 0.3)
HOSTILE = "<script>alert('$x$')</script>&amp;-->"


def build(norm: object, config: Mapping[str, Any]) -> Any:
    """Nothing here is trained."""
    raise NotImplementedError


def a_comparison(*, title: str = "MLP 64-100-100-10 on digits", norms: tuple[str, ...] = NORMS) -> Comparison:
    tier = Tier(epochs=20, learning_rates=RATES, tuning_seeds=1, seeds=5, leaves_out="A second tuning seed.")
    return Comparison(
        name="batch_size",
        title="Which norm at which batch size",
        question="How does test error depend on the batch?",
        problems=(
            Problem(name="digits-mlp", title=title, build=build),
            Problem(name="digits-conv", title="Small conv net on digits", build=build, spatial=True),
        ),
        norms=norms,
        factor=Factor(
            name="batch_size", label="batch size (examples)", flag="--batch-sizes", values=VALUES, reference=32
        ),
        tiers={
            "quick": tier,
            "standard": dataclasses.replace(tier, seeds=10, leaves_out=""),
            "smoke": dataclasses.replace(tier, seeds=2, claims=False),
        },
        config=lambda value: {"batch_size": value},
        fixed=("SGD with momentum 0.9, cosine schedule.", "Every seed has its own split, the same for every norm."),
    )


def some_settings(comparison: Comparison, tier: str = "standard", **changes: Any) -> Settings:
    spent = comparison.tiers[tier]
    fields = dict(
        comparison=comparison.name,
        source=comparison.name,
        tier=tier,
        problems=tuple(problem.name for problem in comparison.problems),
        norms=comparison.norms,
        values=VALUES,
        learning_rates=spent.learning_rates,
        epochs=spent.epochs,
        tuning_seeds=spent.tuning_seeds,
        seeds=spent.seeds,
    )
    return Settings(**{**fields, **changes})


def a_record(run: Run, status: str, reason: str = "", **metrics: float | None) -> Record:
    timing = {} if status == "invalid" else {"run": 0.4 + 0.01 * run.seed % 7, "compile": 2.5}
    return Record(
        key=content_key(run),
        run=run,
        config={},
        identity={},
        status=status,
        reason=reason,
        metrics=metrics,
        timing=timing,
    )


def level(cell: Cell) -> float:
    """The true error of a cell: batch norm breaks at 2, batch renorm half as much."""
    base = 0.026 if cell.problem == "digits-mlp" else 0.016
    if cell.value == 2 and cell.problem == "digits-mlp":
        base = {"batch": 0.18, "batch_renorm": 0.068}.get(cell.norm, base)
    return base + 0.004 * (cell.norm == "none") - 0.003 * (cell.norm == "batch" and cell.value != 2)


def simulate(
    comparison: Comparison, settings: Settings, fail: Callable[[Run], bool] = lambda run: False
) -> list[Record]:
    """All records of a comparison, with noise that pairs share."""
    records = []
    for cell in plan.cells(settings, comparison):
        tuning = plan.tuning_runs(cell, settings)
        if cell.norm == "instance" and cell.problem == "digits-mlp":
            records += [a_record(run, "invalid", "`instance` needs spatial axes.") for run in tuning]
            continue
        tuned = [
            a_record(run, "ok", validation=level(cell) + 0.02 * abs(math.log10(run.learning_rate / 0.1)))
            for run in tuning
        ]
        choice = plan.choose_learning_rate(tuned)
        assert choice is not None
        records += tuned
        records += [evaluated(run, fail(run)) for run in plan.evaluation_runs(cell, settings, choice.learning_rate)]
    return records


def evaluated(run: Run, failed: bool) -> Record:
    if failed:
        return a_record(run, "diverged", "Loss is not finite at step 12.", test=None, validation=None, train_loss=None)
    shared = np.random.default_rng(run.seed).normal(0, 0.004)
    own = np.random.default_rng(int(content_key(run)[:8], 16)).normal(
        0, 0.0025 + 0.1 * max(0.0, level(run.cell) - 0.05)
    )
    error = max(0.001, level(run.cell) + shared + own)
    return a_record(run, "ok", test=error, validation=error, train_loss=error**2)


COMPARISON = a_comparison()
SETTINGS = some_settings(COMPARISON)


def diverging(run: Run) -> bool:
    return (run.cell.problem, run.cell.norm, run.cell.value) == ("digits-mlp", "none", 128) and run.seed in (1, 4)


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return simulate(COMPARISON, SETTINGS, diverging)


@pytest.fixture(scope="module")
def analysis(records: list[Record]) -> Analysis:
    return analyse(COMPARISON, SETTINGS, records)


def written(
    analysis: Analysis, directory: Path, comparison: Comparison = COMPARISON, settings: Settings = SETTINGS
) -> str:
    path = report.write_html(
        analysis,
        directory,
        comparison=comparison,
        settings=settings,
        identity={"code": "0123abc", "versions": {"jax": "0.10.2", "flax": "0.12.8"}, "platform": "cpu, 2 cores"},
        command="normlab run batch_size --tier standard",
        wall_seconds=252.0,
    )
    return path.read_text("utf-8")


def test_planted_break_is_shown(analysis: Analysis) -> None:
    cell = analysis.problems[0].cell("layer", 2)
    assert cell.gap is not None and cell.gap.verdict == BETTER
    assert cell.gap.p_holm is not None and cell.gap.difference.p is not None
    assert cell.gap.p_holm > cell.gap.difference.p
    standing = analysis.problems[0].standings[0]
    assert "batch" not in standing.candidates and "layer" in standing.candidates
    assert re.search(
        r"batch norm loses 1\d\.\d points \[1\d\.\d, 1\d\.\d\] to \S+ norm at batch size 2", analysis.advice
    )
    assert analysis.advice.count(". ") == 0 and analysis.advice.endswith(".")


def test_change_from_the_reference_value_is_paired_by_seed(analysis: Analysis) -> None:
    mlp = analysis.problems[0]
    change = mlp.cell("batch", 2).change
    assert change is not None and change.paired and change.mean is not None and change.interval is not None
    errors = [{p.seed: p.error for p in mlp.cell("batch", value).points} for value in (2, 32)]
    by_hand = [errors[0][seed] - errors[1][seed] for seed in errors[0]]  # type: ignore[operator]
    assert change.mean == pytest.approx(np.mean(by_hand)) and change.interval[0] > 0.05
    assert mlp.cell("batch", 32).change is None
    low, high = mlp.cell("group", 2).change.interval  # type: ignore[union-attr, misc]
    assert low < 0 < high


def test_no_change_without_the_reference_value(records: list[Record]) -> None:
    analysis = analyse(COMPARISON, some_settings(COMPARISON, values=(2, 8)), records)
    assert analysis.factor["reference"] is None
    assert all(cell.change is None for cell in analysis.cells)


def test_failed_runs_are_counted_and_left_out_of_the_error(analysis: Analysis, tmp_path: Path) -> None:
    cell = analysis.problems[0].cell("none", 128)
    assert (cell.failures.k, cell.failures.n) == (2, 10)
    assert cell.counts["diverged"] == 2 and cell.counts["ok"] == 8
    assert cell.error.n == 8 and cell.error.mean is not None and cell.error.mean < 0.05
    counted = cell.error_counting_failures.mean
    assert counted == pytest.approx((8 * cell.error.mean + 2 * 0.9) / 10)
    assert cell.gap is not None and not cell.gap.difference.paired
    assert "none" not in analysis.problems[0].standings[-1].candidates
    page = written(analysis, tmp_path)
    assert "2 of 10 failed" in page and "diverged: Loss is not finite at step 12 (seeds 1, 4)" in page
    assert "2/10" in page[page.index("<svg") : page.index("</svg>")]


def test_invalid_cells_keep_their_reason_and_miss_nothing(analysis: Analysis) -> None:
    cell = analysis.problems[0].cell("instance", 2)
    assert cell.invalid == "`instance` needs spatial axes." and cell.gap is None and cell.counts["missing"] == 0
    assert analysis.runs == {"planned": 930, "done": 930, "missing": 0}


def test_order_and_foreign_records_do_not_matter(analysis: Analysis, records: list[Record]) -> None:
    foreign = dataclasses.replace(records[0].run, learning_rate=7.0)
    shuffled = [*records, a_record(foreign, "ok", validation=0.0)]
    random.Random(0).shuffle(shuffled)
    again = analyse(COMPARISON, SETTINGS, shuffled)
    assert again == analysis
    assert to_json(again) == to_json(analysis)


def test_the_files_are_the_same_bytes_again(analysis: Analysis, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    pages = [written(analysis, folder) for folder in folders]
    assert pages[0] == pages[1]
    assert sorted(path.name for path in folders[0].iterdir()) == ["analysis.json", "report.html"]
    assert json.loads((folders[0] / "analysis.json").read_text("utf-8"))["advice"] == analysis.advice


def test_json_leaves_out_what_a_repetition_changes(analysis: Analysis) -> None:
    assert analysis.timings[0].compile == 2.5
    assert "timings" not in json.loads(to_json(analysis))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_unfinished_comparisons_say_what_is_missing(records: list[Record], share: float, tmp_path: Path) -> None:
    some = records[: int(share * len(records))]
    partial = analyse(COMPARISON, SETTINGS, some)
    assert partial.runs["done"] == len(some) and partial.runs["missing"] > 0
    assert f"{partial.runs['missing']} of {partial.runs['planned']} runs are still missing" in written(
        partial, tmp_path
    )
    assert "still missing" in printed(partial)


def test_one_run_is_enough_to_report(records: list[Record], tmp_path: Path) -> None:
    evaluated = [record for record in records if record.run.stage == EVALUATE]
    tuned = [r for r in records if r.run.stage == TUNE and r.run.cell == evaluated[0].run.cell]
    partial = analyse(COMPARISON, SETTINGS, [*tuned, evaluated[0]])
    cell = partial.problems[0].cell("none", 2)
    assert cell.error.mean is not None and cell.error.interval is None and cell.gap is None
    written(partial, tmp_path)
    assert "nan" not in printed(partial).lower()


def test_all_runs_failing_is_reported(tmp_path: Path) -> None:
    comparison = a_comparison(norms=("batch", "layer"))
    settings = some_settings(comparison, "quick")
    analysis = analyse(comparison, settings, simulate(comparison, settings, lambda run: True))
    assert all(cell.failures.k == 5 and cell.gap is None for cell in analysis.cells)
    assert "batch norm fails in 5 of 5 runs at batch size 2 and no norm ran there without failures" in analysis.advice
    assert "nan" not in re.sub(r"base64,\S+", "", written(analysis, tmp_path, comparison, settings))


def test_ok_without_a_number_is_no_number() -> None:
    comparison = a_comparison(norms=("batch", "layer"))
    settings = some_settings(comparison, "quick")
    bad = [dataclasses.replace(r, metrics={**r.metrics, "test": math.nan}) for r in simulate(comparison, settings)]
    assert all(cell.error.mean is None for cell in analyse(comparison, settings, bad).cells)


def test_smoke_claims_nothing(tmp_path: Path) -> None:
    settings = some_settings(COMPARISON, "smoke")
    analysis = analyse(COMPARISON, settings, simulate(COMPARISON, settings))
    assert analysis.advice.startswith("No claim is made: tier `smoke` trains 2 seeds")
    assert all(cell.gap is None or cell.gap.verdict is None for cell in analysis.cells)
    assert "No claims." in written(analysis, tmp_path, settings=settings)


def test_few_seeds_are_exploratory(tmp_path: Path) -> None:
    settings = some_settings(COMPARISON, "quick")
    analysis = analyse(COMPARISON, settings, simulate(COMPARISON, settings))
    assert analysis.advice.startswith("Exploratory, with 5 seeds: ")
    page = written(analysis, tmp_path, settings=settings)
    assert "<b>Exploratory.</b>" in page and "A second tuning seed." in page


def test_missing_baseline_is_replaced_and_said(records: list[Record], tmp_path: Path) -> None:
    settings = some_settings(COMPARISON, norms=("layer", "none"))
    analysis = analyse(COMPARISON, settings, records)
    assert analysis.baseline == "layer" and "`batch` is not among the norms" in analysis.baseline_note
    assert html.escape(analysis.baseline_note) in written(analysis, tmp_path, settings=settings)


def test_a_against_a_is_never_called_different() -> None:
    comparison = a_comparison(norms=("batch", "batch:momentum=0.99"))
    settings = some_settings(comparison)
    twins = [
        dataclasses.replace(r, metrics=m) if r.run.cell.norm != "batch" else r
        for r in simulate(comparison, settings)
        for m in [
            evaluated(dataclasses.replace(r.run, cell=dataclasses.replace(r.run.cell, norm="batch")), False).metrics
        ]
    ]
    verdicts = {cell.gap.verdict for cell in analyse(comparison, settings, twins).cells if cell.gap}
    assert verdicts == {EQUIVALENT}


def test_a_claim_needs_its_adjusted_p_value() -> None:
    comparison = dataclasses.replace(a_comparison(), margin=0.0)
    settings = some_settings(comparison)
    for cell in analyse(comparison, settings, simulate(comparison, settings)).cells:
        if cell.gap and cell.gap.verdict in (BETTER, WORSE):
            assert cell.gap.p_holm is not None and cell.gap.p_holm <= 0.05
        if cell.gap and cell.gap.verdict == INCONCLUSIVE and cell.gap.seeds_needed is not None:
            assert cell.gap.seeds_needed > cell.gap.difference.n


def printed(analysis: Analysis, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    report.print_table(analysis, console)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def test_the_table_fits_80_columns_and_is_plain(analysis: Analysis) -> None:
    text = printed(analysis)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text and "2/10 failed" in text and "invalid" in text
    assert re.search(r"layer +2\.\d ±0\.\d \+", text)
    assert " ".join(text.split()).endswith(" ".join(analysis.advice.split()))
    assert max(map(len, printed(analysis, width=50).splitlines())) <= 50


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    comparison = a_comparison(title=HOSTILE, norms=("batch", HOSTILE))
    settings = some_settings(comparison, "quick")
    runs = simulate(comparison, settings, lambda run: run.seed == 0 and run.cell.norm == HOSTILE)
    hostile = [dataclasses.replace(r, reason=r.reason and HOSTILE) for r in runs]
    analysis = analyse(comparison, settings, hostile)
    page = written(analysis, tmp_path, comparison, settings)
    assert "alert(" in page and "<script>alert" not in page and "&amp;amp;" in page
    assert page.count("<script>") == 1
    assert "alert" in printed(analysis)


def test_the_report_loads_nothing(analysis: Analysis, tmp_path: Path) -> None:
    page = written(analysis, tmp_path)
    assert not re.search(r"https?:|//[a-z]|@import|\burl\((?!#)", page)
    assert all(link.startswith(("#", "data:")) for link in re.findall(r'(?:href|src)="([^"]*)"', page))
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', page)) <= set(ids)


def test_csv_leaves_unknown_empty(analysis: Analysis) -> None:
    rows = list(csv.DictReader(io.StringIO(report.to_csv(analysis))))
    assert len(rows) == len(analysis.cells)
    by_cell = {(row["problem"], row["norm"], row["value"]): row for row in rows}
    invalid = by_cell["digits-mlp", "instance", "2"]
    assert invalid["error"] == "" and invalid["learning_rate"] == "" and invalid["invalid"]
    failed = by_cell["digits-mlp", "none", "128"]
    assert failed["runs_diverged"] == "2" and failed["paired"] == "False" and 0 < float(failed["error"]) < 0.1
    assert "None" not in report.to_csv(analysis) and "nan" not in report.to_csv(analysis)


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (report.percent, 0.1789, "17.9"),
        (report.percent, None, report.DASH),
        (report.points, 0.1544, "+15.4"),
        (report.points, -0.0001, "0.0"),
        (report.points, None, report.DASH),
        (report.interval, None, ""),
        (report.interval, (0.01, 0.034), "[1.0, 3.4]"),
        (report.number, 0.0005, "0.00050"),
        (report.number, 12.0, "12"),
        (report.number, None, report.DASH),
        (report.p_value, 1e-9, "<0.0001"),
        (report.seconds, 0.346, "0.35 s"),
        (report.seconds, 59.7, "1 min 0 s"),
        (report.seconds, 252.0, "4 min 12 s"),
        (report.seconds, 7300.0, "2 h 1 min"),
        (report.seconds, None, report.DASH),
    ],
)
def test_numbers_for_people(function: Callable[[Any], str], value: Any, text: str) -> None:
    assert function(value) == text


def test_a_factor_of_names_and_zero_errors_can_be_drawn(tmp_path: Path) -> None:
    factor = Factor(name="drift", label="drift", flag="--drifts", values=("sudden", "slow"))
    comparison = dataclasses.replace(a_comparison(norms=("batch", "layer")), factor=factor)
    settings = some_settings(comparison, "quick", values=factor.values)
    perfect = [dataclasses.replace(r, metrics={**r.metrics, "test": 0.0}) for r in simulate(comparison, settings)]
    page = written(analyse(comparison, settings, perfect), tmp_path, comparison, settings)
    assert "sudden" in page


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

PROBE = """
<script>
const table = document.querySelector("table.sortable"), header = table.tHead.rows[0].cells[1];
const first = () => table.tBodies[0].rows[0].cells[0].textContent.trim().split(/\\s+/).join(" ");
const buttons = document.querySelectorAll("th button").length;
header.firstChild.click(); const ascending = first() + "/" + header.getAttribute("aria-sort");
header.firstChild.click(); const descending = first() + "/" + header.getAttribute("aria-sort");
const overflow = document.documentElement.scrollWidth > document.documentElement.clientWidth;
parent.document.title = JSON.stringify({buttons, ascending, descending, overflow, width: innerWidth});
</script></body>
"""


def browse(page: Path, profile: Path) -> str:
    """The document as a browser leaves it."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM,
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
        *("--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}"),
        "--dump-dom",
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [390, 1280])
def test_a_browser_sorts_and_nothing_overflows(analysis: Analysis, tmp_path: Path, width: int) -> None:
    page = tmp_path / "probe.html"
    probed = written(analysis, tmp_path).replace("</body>", PROBE)
    # A frame, because a window cannot be as narrow as a phone.
    page.write_text(f'<title></title><iframe width="{width}" srcdoc="{html.escape(probed)}"></iframe>', "utf-8")
    title = re.search(r"<title>(.*?)</title>", browse(page, tmp_path / "profile"))
    assert title is not None
    seen = json.loads(html.unescape(title[1]))
    # Batch norm has the highest error at batch size 2; instance norm, invalid there, stays last in both directions.
    assert seen["descending"] == "batch norm baseline/descending"
    assert seen["ascending"].endswith("/ascending") and not seen["ascending"].startswith(("batch norm", "instance"))
    assert seen["width"] == width and seen["buttons"] > 40 and not seen["overflow"]


def test_reporting_modules_load_nothing_heavy() -> None:
    code = "import sys, normlab.study.report as r; print(*(m.split('.')[0] for m in sys.modules), sep='\\n')"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"jax", "scipy", "matplotlib", "jinja2", "rich"} & set(loaded)
