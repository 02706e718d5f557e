"""Report, tables and figures: what records show, escaped, offline, the same bytes again, and small."""

import csv
import dataclasses
import html
import io
import itertools
import json
import math
import random
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from normlab import norms
from normlab.study.analysis.analyse import analyse
from normlab.study.analysis.estimates import BETTER, INCONCLUSIVE, WORSE
from normlab.study.analysis.results import Analysis, Basin, Cost, Point, to_json
from normlab.study.design.comparison import Comparison, Settings
from normlab.study.design.problem import Metric
from normlab.study.design.records import EVALUATE, Record
from normlab.study.design.request import Request, from_file
from normlab.study.report import advice, figures, files, formatting, headline, tables
from normlab.study.report import html as report
from normlab.study.report.formatting import MINUS
from tests.support import synthetic
from tests.support.synthetic import (
    DEPLOYED,
    IDENTITY,
    a_comparison,
    analysis_of,
    failed,
    simulate,
    some_settings,
    two_diverge,
)

HOSTILE = "<script>alert('$x$')</script>&amp;--> % _ # { } ~ ^ \\ \""
COMPARISON = a_comparison()
SETTINGS = some_settings(COMPARISON)
SHORT = dataclasses.replace(DEPLOYED, factor=dataclasses.replace(DEPLOYED.factor, values=(2, 128), reference=None))
SMALL: Mapping[str, Any] = dict(problems=synthetic.problems()[:1], norms=("batch", "layer"), curves=(SHORT,))


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return simulate(COMPARISON, SETTINGS)


@pytest.fixture(scope="module")
def analysis(records: list[Record]) -> Analysis:
    return analyse(COMPARISON, SETTINGS, records)


@pytest.fixture(scope="module")
def folder(analysis: Analysis, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("report")
    written(analysis, directory)
    return directory


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text("utf-8")


def written(
    analysis: Analysis, directory: Path, comparison: Comparison = COMPARISON, settings: Settings = SETTINGS
) -> str:
    path = report.write_html(
        analysis,
        directory,
        comparison=comparison,
        settings=settings,
        identity=IDENTITY,
        command="normlab run batch_size --tier standard",
        wall_seconds=252.0,
    )
    return path.read_text("utf-8")


def small(
    directory: Path, change: synthetic.Change = two_diverge, tier: str = "quick", **fields: Any
) -> tuple[Analysis, str]:
    """A small comparison's analysis and page."""
    comparison = a_comparison(**{**SMALL, **fields})
    settings = some_settings(comparison, tier)
    analysis = analyse(comparison, settings, simulate(comparison, settings, change))
    return analysis, written(analysis, directory, comparison, settings)


def without_links(page: str) -> str:
    return re.sub(r"href='data:[^']*'", "", page)


def text_of(page: str) -> str:
    body = re.sub(r"<(script|style|svg).*?</\1>", " ", without_links(page), flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def test_the_answer_comes_first_then_the_figure_then_the_table(analysis: Analysis, page: str) -> None:
    text = text_of(page)
    problem = analysis.problems[0]
    answer = headline.headline(analysis, problem, problem.curve("deployed"))
    assert answer.startswith("Avoid batch norm") and text.count(answer) == 1
    assert text.index(analysis.problems[0].title) < text.index(answer) < text.index("Test error in %, by batch size")
    assert page.index(answer[:40]) < page.index('aria-label="Error against') < page.index('class="grid')
    sure = "for now; 44 seeds would be sure"
    assert re.search(rf"batch size 2 MLP on digits layer norm 2\.\d ± 0\.\d % {sure} 135 µs 1\.0x", text)


def test_nothing_is_said_twice(analysis: Analysis, page: str) -> None:
    text = text_of(page)
    twice = [advice.STEP_TIMES, *headline.headlines(analysis), *tables.not_run(analysis)]
    twice += [text for curve in COMPARISON.curves for text in (curve.shows, curve.hides)]
    sentences = [part.partition(": ")[2] if ": Avoid" in part or ": No norm" in part else part for part in twice]
    assert {sentence: text.count(sentence.replace("`", "")) for sentence in sentences} == dict.fromkeys(sentences, 1)


def test_curves_without_advice_are_causes(page: str) -> None:
    text = text_of(page)
    causes = text.index("Causes Curves on which no advice rests.")
    assert text.index("Test error in %, by batch size") < causes < text.index("by ghost batch size (examples)")
    for curve in COMPARISON.curves:
        assert f"{curve.title} {curve.shows} Cannot show: {curve.hides}" in text
    assert "no norm flat reference" in text


def test_planted_break_is_shown_with_all_its_numbers(analysis: Analysis, page: str) -> None:
    gap = analysis.problems[0].curve("deployed").cell("layer", 2).gap
    assert gap is not None and gap.verdict == BETTER and gap.difference.mean is not None
    difference = f"{100 * gap.difference.mean:+.1f}".replace("-", MINUS)
    interval = rf"\[{MINUS}1\d\.\d, {MINUS}1\d\.\d\]"
    row = rf"layer norm digits-mlp deployed 2 2\.\d ± 0\.\d {difference} {interval} better <0\.0001 0/10"
    assert re.search(row, text_of(page))


def test_failed_runs_are_counted_and_left_out_of_the_error(analysis: Analysis, page: str) -> None:
    cell = analysis.problems[0].curve("deployed").cell("none", 128)
    assert (cell.failures.k, cell.failures.n) == (2, 10) and cell.error.mean is not None
    counted = cell.error_counting_failures.mean
    assert counted == pytest.approx((8 * cell.error.mean + 2 * 0.9) / 10)
    text = text_of(page)
    assert "no norm digits-mlp deployed 128 2 of 10 [5.7, 51.0]" in text
    assert text.count("no norm digits-mlp isolated all 2 of 10") == 1
    assert "diverged: The loss is not finite from step 12 (seeds 1, 4)" in text
    assert "2/10" in page[page.index('aria-label="Error') : page.index("</svg>", page.index('aria-label="Error'))]


def test_verdicts_that_failures_contradict_say_so(tmp_path: Path) -> None:
    def breaks(record: Record) -> Record:
        run = record.run
        hard = run.stage == EVALUATE and run.configuration.norm == "layer" and run.seed in (1, 2, 3)
        return failed(record) if hard else record

    analysis, page = small(tmp_path, breaks, "standard")
    gap = analysis.problems[0].curves[0].cell("layer", 2).gap
    assert gap is not None and gap.when_trained == BETTER and gap.verdict == INCONCLUSIVE
    assert f"inconclusive{gap.note}" in text_of(page).replace("inconclusive ", "inconclusive")
    assert "where it trains, layer norm has the lowest error, but fails in 3 of 10 runs, and batch norm in 0" in page


def test_grids_that_grew_and_basins_are_said(analysis: Analysis, page: str) -> None:
    cell = analysis.problems[0].curve("deployed").cell("none", 128)
    assert (cell.learning_rate, cell.added) == (1.0, (1.0, 3.0))
    text = text_of(page)
    assert "Grids have grown at 128 by 1, 3." in text and "no norm flat reference 1 at least 10x 0.3 to 3" in text
    open_low = Basin(low=0.01, high=0.3, open_low=True, open_high=False)
    assert (report._basin_width(open_low), report._basin_ends(open_low)) == ("at least 30x", "0.01 to 0.3")
    single = Basin(low=0.1, high=0.1, open_low=False, open_high=False)
    assert (report._basin_width(single), report._basin_ends(single)) == ("1.0x", "0.1")


def test_untuned_norms_have_rows_of_their_own(tmp_path: Path) -> None:
    def worse(record: Record) -> Record:
        untuned = record.run.stage == EVALUATE and record.run.learning_rate == 0.01
        return dataclasses.replace(record, metrics={**record.metrics, "test": 0.5}) if untuned else record

    _, page = small(tmp_path, worse, default_learning_rate=0.01)
    text = text_of(page)
    assert "layer norm, untuned learning rate 0.01 50.0" in text
    assert re.search(
        r"layer norm, untuned digits-mlp deployed 128 50\.0 \+47\.\d \[\+4\d\.\d, \+4\d\.\d\] to tuned", text
    )
    assert 'value="untuned"' in page
    _, page = small(tmp_path, default_learning_rate=None)
    assert "untuned" not in text_of(page) and 'value="untuned"' not in page


def test_costs_settings_and_statuses_are_there(analysis: Analysis, page: str) -> None:
    text = text_of(page)
    assert "batch renorm 180 µs 1.4x 1.5 MB 2.5 s" in text
    assert f"runs, tuning included {analysis.counts['done']} of {analysis.counts['planned']}" in text
    assert re.search(r"tune \d+ 25 0 evaluate \d+ 0 4", text) and "wall time 4 min 12 s" in text
    assert re.search(r"batch norm digits-mlp batch:\S*ghost_batch_size=2\S* batch size 128, epochs 20", text)
    assert "versions jax 0.10.2" in text and "normlab run batch_size --tier standard" in text


def test_invalid_cells_keep_their_reason(analysis: Analysis, page: str) -> None:
    cell = analysis.problems[0].curve("deployed").cell("instance", 2)
    assert cell.invalid and cell.gap is None and cell.counts["missing"] == 0
    (sentence,) = tables.not_run(analysis)
    assert sentence == f"Not run: instance norm on MLP on digits. {cell.invalid}"
    assert sentence.replace("`", "") in text_of(page) and " ".join(printed(analysis).split()).endswith(sentence)
    assert not re.search(r"^instance ", printed(analysis).partition("conv net")[0], re.MULTILINE)


def test_order_and_foreign_records_do_not_matter(analysis: Analysis, records: list[Record]) -> None:
    foreign = dataclasses.replace(records[0].run, learning_rate=7.0)
    shuffled = [*records, synthetic.made_up(foreign)]
    random.Random(0).shuffle(shuffled)
    again = analyse(COMPARISON, SETTINGS, shuffled)
    assert again == analysis
    assert to_json(again) == to_json(analysis)


def test_all_files_are_the_same_bytes_again(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        small(folder)
    files = [{path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")} for folder in folders]
    assert files[0] == files[1]
    assert {str(path) for path in files[0]} == {
        "analysis.json",
        "report.html",
        *(f"tables/{name}" for name in ("cells.csv", "runs.csv", "settings.json", "settings.toml")),
        "tables/digits-mlp-deployed.tex",
        *(
            f"figures/{kind}-digits-mlp-deployed.{end}"
            for kind in ("error", "loss", "tuning")
            for end in ("svg", "pdf")
        ),
    }


def test_the_page_holds_the_files_beside_it_and_is_small(folder: Path, page: str) -> None:
    links = re.findall(r'download="([^"]+)" href=\'data:([^,]*),([^\']*)\'', page)
    for name, kind, content in links:
        beside = next(folder.rglob(name)).read_bytes()
        assert decoded(kind, content) == beside, name
    assert {name for name, *_ in links} == {path.name for path in folder.rglob("*.*")} - {"report.html"}
    assert len(page.encode()) < 3_000_000


def test_a_large_file_is_beside_the_page_alone(
    analysis: Analysis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MOST_EMBEDDED", 20_000)
    monkeypatch.setattr(files, "figure_files", lambda analysis: {})
    made = list(files.data_files(analysis, COMPARISON, SETTINGS, synthetic.IDENTITY))  # pyright: ignore
    large = {one.path for one in made if len(one.content) > 20_000}
    assert "tables/runs.csv" in large and "tables/settings.toml" not in large
    assert {one.path for one in made if one.uri == one.path} == large
    assert {one.path for one in made if one.uri.startswith("data:")} == {one.path for one in made} - large


def test_texts_list_a_limited_number_of_seeds() -> None:
    points = [Point(seed=n, status="diverged", reason="NaN.", error=None, train_loss=None) for n in range(900)]
    assert report._reasons(points[:2]) == "diverged: NaN (seeds 0, 1)"
    assert report._reasons(points).endswith("18, 19 and 880 more)")
    assert len(report._reasons(points)) < 200


def test_figures_draw_a_limited_number_of_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formatting, "POINTS_DRAWN", 400)
    analysis = synthetic.analysis_of(
        settings={"seeds": 150, "problems": ("digits-mlp",), "curves": ("deployed",), "values": {"deployed": (4, 8)}},
        norms=("batch", "layer"),
    )
    (problem,) = analysis.problems
    figure = figures.error_figure(analysis, problem, problem.curves[0])
    assert figure
    drawn = [len(line.get_xdata()) for line in figure.axes[0].lines]  # pyright: ignore[reportArgumentType]
    assert max(drawn) == 2 * formatting.seeds_drawn(4) == 200


def decoded(kind: str, content: str) -> bytes:
    import base64
    from urllib.parse import unquote_to_bytes

    return base64.b64decode(content) if kind.endswith(";base64") else unquote_to_bytes(content)


def test_json_leaves_out_what_a_repetition_changes(analysis: Analysis, records: list[Record]) -> None:
    slower = [dataclasses.replace(record, cost={name: 2 * x for name, x in record.cost.items()}) for record in records]
    again = analyse(COMPARISON, SETTINGS, slower)
    assert again.costs != analysis.costs and to_json(again) == to_json(analysis)


def test_settings_can_be_given_back(folder: Path) -> None:
    given = from_file(str(folder / "tables" / "settings.toml"), COMPARISON)
    again = Request(COMPARISON, given).settings(SETTINGS.source)
    assert again == SETTINGS
    settings = json.loads((folder / "tables" / "settings.json").read_text("utf-8"))
    assert settings["comparison"]["curves"][1]["config"]["2"] == {"batch_size": 128}
    assert {cell["norm"] for cell in settings["cells"]} == set(SETTINGS.norms)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_unfinished_comparisons_say_what_is_missing(share: float, tmp_path: Path) -> None:
    comparison = a_comparison(**SMALL)
    settings = some_settings(comparison)
    records = simulate(comparison, settings)
    some = records[: int(share * len(records))]
    partial = analyse(comparison, settings, some)
    assert partial.counts["done"] == len(some) and partial.counts["missing"] > 0
    missing = f"{partial.counts['missing']} of {partial.counts['planned']} runs are still missing"
    page = written(partial, tmp_path, comparison, settings)
    assert missing in text_of(page) and missing in printed(partial)
    assert "nan" not in (text_of(page) + printed(partial)).lower()


def test_all_runs_failing_is_reported(tmp_path: Path) -> None:
    analysis, page = small(tmp_path, lambda record: failed(record) if record.run.stage == EVALUATE else record)
    assert all(cell.failures.k == 5 and cell.gap is None for cell in analysis.cells)
    text = text_of(page)
    assert "Runs of every norm fail at any batch size." in text
    assert "undecided" in text and "nan" not in text.lower()
    assert "error-digits-mlp-deployed.svg" in page and not list(tmp_path.glob("figures/loss-*"))


def test_there_are_no_empty_figures(tmp_path: Path) -> None:
    comparison = a_comparison(**SMALL)
    settings = some_settings(comparison)
    tuned = [record for record in simulate(comparison, settings) if record.run.stage != EVALUATE]
    for records, kinds in (([], set()), (tuned, {"tuning"})):
        page = written(analyse(comparison, settings, records), tmp_path / str(len(records)), comparison, settings)
        drawn = (tmp_path / str(len(records))).glob("figures/*.svg")
        assert {path.name.partition("-")[0] for path in drawn} == kinds
        assert page.count("<figure>") == len(kinds)


def test_ok_without_a_number_is_no_number(tmp_path: Path) -> None:
    def empty(record: Record) -> Record:
        return dataclasses.replace(record, metrics={**record.metrics, "test": math.nan})

    analysis, page = small(tmp_path, empty)
    assert all(cell.error.mean is None for cell in analysis.cells) and "nan" not in text_of(page).lower()


def test_banners_say_what_limits_the_result(tmp_path: Path) -> None:
    analysis, page = small(tmp_path, tier="smoke")
    assert "Tier <code>smoke</code> shows whether everything runs" in page
    assert all(cell.gap is None or cell.gap.verdict is None for cell in analysis.cells)
    analysis, page = small(tmp_path, tier="quick", norms=("layer", "none"))
    few = "Tier quick, 5 seeds per configuration; verdicts from fewer than 10 are a first look."
    assert few in text_of(page) and "A second tuning seed." in page
    assert "5 seeds; verdicts from fewer than 10 are a first look" in " ".join(printed(analysis).split())
    assert analysis.baseline == "layer" and "<code>batch</code> is not among the norms; <code>layer</code>" in page

    def same(record: Record) -> Record:
        metrics = {**record.metrics, "test": 0.1, "train_loss": 0.1}
        return dataclasses.replace(record, metrics=metrics if record.run.stage == EVALUATE else record.metrics)

    question = "All norms gave identical runs; does the model use its norm?"
    assert text_of(small(tmp_path, same)[1]).count(question) == 1


def test_a_claim_needs_its_adjusted_p_value() -> None:
    for cell in analysis_of(margin=0.0).cells:
        if cell.gap and cell.gap.verdict in (BETTER, WORSE):
            assert cell.gap.p_holm is not None and cell.gap.p_holm <= 0.05
        if cell.gap and cell.gap.verdict == INCONCLUSIVE and cell.gap.seeds_needed is not None:
            assert cell.gap.seeds_needed > cell.gap.difference.n


def test_change_from_the_reference_value_is_paired_by_seed(analysis: Analysis) -> None:
    curve = analysis.problems[0].curve("deployed")
    change = curve.cell("batch", 2).change
    assert change is not None and change.paired and change.mean is not None and change.interval is not None
    errors = [{p.seed: p.error for p in curve.cell("batch", value).points} for value in (2, 32)]
    by_hand = [errors[0][seed] - errors[1][seed] for seed in errors[0]]  # type: ignore[operator]
    assert change.mean == pytest.approx(np.mean(by_hand)) and change.interval[0] > 0.05
    assert curve.cell("batch", 32).change is None


def printed(analysis: Analysis, width: int = 80, encoding: str = "utf-8") -> str:
    buffer = io.BytesIO()
    file = io.TextIOWrapper(buffer, encoding=encoding, write_through=True)
    report.print_table(analysis, Console(file=file, width=width, force_terminal=False))
    return buffer.getvalue().decode(encoding)


def test_the_table_fits_and_ends_with_the_answer(analysis: Analysis) -> None:
    text = printed(analysis)
    assert max(map(len, text.splitlines())) <= 80
    assert "\x1b" not in text and "2/10 failed" in text
    assert re.search(r"layer +2\.\d ±0\.\d \+", text)
    words = " ".join(text.split())
    for answer in headline.headlines(analysis):
        assert words.index("against batch, margin 0.5 points") < words.index(answer)
    assert re.search(r"digits-mlp 2 layer 2\.\d for now; 44 seeds 135 µs 1\.0x", words)
    assert max(map(len, printed(analysis, width=50).splitlines())) <= 50
    assert report.table_text(analysis, width=80).split() == text.split()
    assert max(map(len, report.table_text(analysis).splitlines())) <= 100


def test_baselines_without_a_network_are_rows(tmp_path: Path) -> None:
    shared = Metric(name="majority", shared=True)

    def guessed(record: Record) -> Record:
        return dataclasses.replace(record, metrics={**record.metrics, "majority": 0.9})

    analysis, page = small(tmp_path, guessed, "standard", problems=synthetic.problems(extra_metrics=(shared,))[:1])
    assert re.search(r"^majority +90\.0 ±0\.0 +90\.0 ±0\.0", printed(analysis), re.MULTILINE)
    assert text_of(page).count("majority without a network 90.0") == 1


def test_many_seeds_are_called_a_small_difference(analysis: Analysis, tmp_path: Path) -> None:
    assert advice.seeds_to_decide(44) == "about 44 seeds would decide"
    assert advice.seeds_to_decide(587) == "the difference is too small to matter here"
    assert all(not re.search(r"\b\d{3,} seeds", text) for text in (printed(analysis), str(advice.recommend(analysis))))


def test_prose_has_code_and_no_backticks() -> None:
    assert report.prose("Give `--tier <a>` & go") == "Give <code>--tier &lt;a&gt;</code> &amp; go"
    assert report.prose("cut off: `with norm") == "cut off: with norm"


def test_a_page_has_no_backticks_and_no_long_hashes(tmp_path: Path) -> None:
    comparison = a_comparison(**SMALL, fixed=("Trained by `optax.sgd`.",))
    settings = some_settings(comparison, "quick")
    analysis = analyse(comparison, settings, simulate(comparison, settings))
    identity = {**IDENTITY, "data": {"digits": "0123456789abcdef" * 4}}
    page = report.write_html(
        analysis, tmp_path, comparison=comparison, settings=settings, identity=identity, command="normlab run",
        wall_seconds=1.0,
    ).read_text("utf-8")  # fmt: skip
    text = text_of(re.sub(r"<pre>.*?</pre>", "", page, flags=re.DOTALL))  # files, as they are
    assert "`" not in text and "Trained by <code>optax.sgd</code>." in page
    assert "data digits 0123456789ab… " in text and not re.search(r"[0-9a-f]{40}", text)
    assert "0123456789abcdef" * 4 in (tmp_path / "tables" / "settings.json").read_text("utf-8")


def test_a_terminal_without_unicode_gets_a_table(analysis: Analysis) -> None:
    assert "+-0." in printed(analysis, encoding="ascii") and "130 us" in printed(analysis, encoding="ascii")


def hostile(tmp_path: Path) -> tuple[Analysis, str]:
    curve = dataclasses.replace(
        DEPLOYED,
        title=HOSTILE,
        shows=HOSTILE,
        hides=HOSTILE,
        factor=dataclasses.replace(DEPLOYED.factor, label=HOSTILE, values=(HOSTILE, "=1+1"), reference=None),
    )
    problem = synthetic.problems(HOSTILE, metric=Metric(name=HOSTILE))[0]

    def bad(record: Record) -> Record:
        first = record.run.stage == EVALUATE and record.run.seed == 0
        return failed(record, HOSTILE) if first else record

    fields: dict[str, Any] = dict(
        problems=(problem,), curves=(curve,), title=HOSTILE, question=HOSTILE, fixed=(HOSTILE,)
    )
    comparison = a_comparison(**{**SMALL, **fields})
    settings = some_settings(comparison, "quick")
    analysis = analyse(comparison, settings, simulate(comparison, settings, bad))
    analysis = dataclasses.replace(analysis, names={name: f"{name} {HOSTILE}" for name in analysis.names})
    return analysis, written(analysis, tmp_path, comparison, settings)


def test_hostile_text_is_escaped_everywhere(tmp_path: Path) -> None:
    analysis, page = hostile(tmp_path)
    assert "alert(" in page and "<script>alert" not in page and "&amp;amp;" in page
    assert page.count("<script>") == 1 and page.count("</script>") == 1
    for svg in (tmp_path / "figures").glob("*.svg"):
        import xml.etree.ElementTree as ET

        texts = [element.text for element in ET.fromstring(svg.read_text("utf-8")).iter() if element.text]
        assert any("<script>" in text for text in texts), svg
    assert "alert" in printed(analysis)


def test_csv_cannot_be_computed_and_leaves_unknown_empty(analysis: Analysis, tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(tables.to_csv(report.rows(analysis)))))
    assert len(rows) == len(analysis.cells) == len(report.rows(analysis))
    by_place = {tuple(row[name] for name in ("problem", "curve", "norm", "value")): row for row in rows}
    invalid = by_place["digits-mlp", "deployed", "instance", "2"]
    assert invalid["error"] == "" and invalid["learning_rate"] == "" and invalid["invalid"]
    diverged = by_place["digits-mlp", "deployed", "none", "128"]
    assert diverged["runs_diverged"] == "2" and diverged["paired"] == "False" and 0 < float(diverged["error"]) < 0.1
    assert float(by_place["digits-mlp", "deployed", "batch", "2"]["step_seconds"]) == 130e-6
    text = tables.to_csv(report.rows(analysis))
    assert "None" not in text and "nan" not in text
    lines = tables.to_csv([{"a": "=1+1", "b": -0.5, "c": "-0.5", "d": '@x,"\n'}])
    assert next(csv.DictReader(io.StringIO(lines))) == {"a": "'=1+1", "b": "-0.5", "c": "-0.5", "d": "'@x,\"\n"}
    hostile(tmp_path)
    assert "\n=1+1" not in (tmp_path / "tables" / "cells.csv").read_text("utf-8").replace(",", "\n")


def test_every_planned_run_has_a_row(analysis: Analysis) -> None:
    rows = list(csv.DictReader(io.StringIO(tables.to_csv(tables.run_rows(analysis)))))
    assert len(rows) == analysis.counts["planned"] == len(analysis.runs)
    assert {row["status"] for row in rows} == {"ok", "diverged", "invalid"}
    assert rows[0]["config_batch_size"] == "2" and float(rows[0]["validation"]) > 0


def test_latex_is_balanced_and_escaped(tmp_path: Path, analysis: Analysis) -> None:
    problem = analysis.problems[0]
    table = tables.to_latex(analysis, problem, problem.curve("deployed"))
    assert r"no norm & $3.9 \pm 0.3^{+}$" in table and r"^{-}$ (2/10) \\" in table
    hostile(tmp_path)
    text = next((tmp_path / "tables").glob("*.tex")).read_text("utf-8")
    for document in (table, text):
        body = [line for line in document.splitlines() if not line.startswith("%")]
        columns = re.search(r"\{(lr+)\}", document)
        rows = [line for line in body if line.endswith(r"\\")]
        assert columns and rows and all(len(re.findall(r"(?<!\\)&", row)) == len(columns[1]) - 1 for row in rows)
        bare = re.sub(r"\\[{}%_&#$]", "", "\n".join(body))
        assert bare.count("{") == bare.count("}") and not re.search(r"[%#~<>|]|(?<!\$)_", bare)
        assert bare.count("$") % 2 == 0
    assert r"\textbackslash{}" in text and r"\textasciitilde{}" in text and r"\textasciicircum{}" in text


@pytest.mark.parametrize(
    ("text", "escaped"),
    [
        ("a_b & 5 % #1 $x$ {y}", r"a\_b \& 5 \% \#1 \$x\$ \{y\}"),
        ("~^\\", r"\textasciitilde{}\textasciicircum{}\textbackslash{}"),
        ("a\nb", "a b"),
        ("*[x] ---", r"{*}{[}x] -{}-{}-"),
    ],
)
def test_latex_escapes(text: str, escaped: str) -> None:
    assert tables.latex(text) == escaped


def test_names_become_file_names_of_their_own(tmp_path: Path) -> None:
    assert tables.slug("../../etc/pass wd") == "etc-pass-wd" and tables.slug("//") == "unnamed"
    problem = synthetic.problems()[0]
    twins = tuple(dataclasses.replace(problem, name=name) for name in ("a b", "a-b"))
    small(tmp_path, problems=twins)
    assert {path.name for path in (tmp_path / "tables").glob("*.tex")} == {"a-b-deployed.tex", "a-b-deployed.2.tex"}


def test_the_report_loads_nothing(page: str) -> None:
    bare = without_links(page)
    assert not re.search(r"https?:|//[a-z]|@import|\burl\((?!#)", re.sub(r"(?m)^//.*$", "", bare).replace(" // ", " "))
    assert all(link.startswith(("#", "data:")) for link in re.findall(r'(?:href|src)="([^"]*)"', bare))
    ids = re.findall(r'\sid="([^"]+)"', bare)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', bare)) <= set(ids)


def test_figures_for_papers_have_real_colours_and_embedded_fonts(folder: Path) -> None:
    svg = (folder / "figures" / "error-digits-mlp-deployed.svg").read_text("utf-8")
    assert "var(" not in svg and "currentColor" not in svg and "#0072b2" in svg and "batch norm" in svg
    pdf = (folder / "figures" / "error-digits-mlp-deployed.pdf").read_bytes()
    assert pdf.startswith(b"%PDF") and b"/FontFile2" in pdf and b"/Type3" not in pdf and b"CreationDate" not in pdf


def test_a_notebook_gets_one_figure_with_a_panel_for_each_curve(analysis: Analysis) -> None:
    figure = figures.plot(analysis)
    assert [axes.get_title() for axes in figure.axes] == [
        f"{title}, {curve}" for title in ("MLP on digits", "conv net on digits") for curve in ("deployed", "isolated")
    ]
    assert "<svg" in figure._repr_svg_()  # pyright: ignore[reportAttributeAccessIssue]
    assert "matplotlib.pyplot" not in sys.modules


NINE = tuple(f"group:num_groups={number}" for number in range(1, 9))


@pytest.mark.parametrize("values", [(2, 128), (1, 2, 4, 8, 32, 128), (1, 2, 3, 4, 8, 32, 64, 128)])
@pytest.mark.parametrize("chosen", [("batch",), ("batch", "layer"), ("batch", "layer", *NINE)])
def test_marks_stand_near_their_ticks(values: tuple[int, ...], chosen: tuple[str, ...]) -> None:
    curve = dataclasses.replace(SHORT, factor=dataclasses.replace(SHORT.factor, values=values, log=True))
    analysis = analysis_of(tier="quick", problems=synthetic.problems()[:1], norms=chosen, curves=(curve,))
    found = analysis.problems[0].curves[0]
    figure = figures.error_figure(analysis, analysis.problems[0], found)
    assert figure
    axes = figure.axes[0]
    ticks = [float(tick) for tick in axes.get_xticks()]
    assert [label.get_text() for label in axes.get_xticklabels()] == [str(value) for value in values]
    apart = min(b - a for a, b in itertools.pairwise(ticks))
    drawn = [place for line in axes.lines for place in np.asarray(line.get_xdata(), float)]
    assert drawn and max(min(abs(place - tick) for tick in ticks) for place in drawn) <= 0.15 * apart + 1e-9
    if len(values) <= 6:
        assert ticks == list(range(len(values)))


def test_every_norm_has_the_colour_and_marker_of_the_registry(folder: Path) -> None:
    svg = (folder / "figures" / "error-digits-mlp-deployed.svg").read_text("utf-8")
    for number, norm in enumerate(COMPARISON.norms):
        groups = re.findall(rf'<g id="norm-{number}".*?</g>\n</g>', svg, re.DOTALL)
        assert norm == "instance" or any(norms.colour(norm) in group for group in groups), norm


def test_options_of_a_norm_differ_in_dash_and_filling() -> None:
    four = ("group", "batch", "group:num_groups=2", "group:num_groups=4")
    looks = figures.styles({norm: (norms.colour(norm), norms.marker(norm)) for norm in four}).values()
    assert [look.colour for look in looks] == [norms.colour(norm) for norm in ("group", "batch", "group", "group")]
    assert [look.marker for look in looks] == [norms.marker(norm) for norm in ("group", "batch", "group", "group")]
    group, batch, *others = looks
    assert len({look.dash for look in (group, *others)}) == len({look.fill for look in (group, *others)}) == 3
    assert (batch.dash, batch.fill) == (group.dash, group.fill)


def test_text_of_figures_can_be_read_on_a_telephone(folder: Path) -> None:
    """At 390 pixels a figure is 358 wide, beside the margins of the page."""
    for path in (folder / "figures").glob("*.svg"):
        svg = path.read_text("utf-8")
        width = float(re.findall(r'viewBox="0 0 ([\d.]+)', svg)[0])
        sizes = [float(size) for size in re.findall(r"font(?:-size)?: ([\d.]+)px", svg)]
        assert sizes and min(sizes) * 358 / width >= 9, path


def test_a_factor_of_names_and_zero_errors_can_be_drawn(tmp_path: Path) -> None:
    curve = dataclasses.replace(
        DEPLOYED, factor=dataclasses.replace(DEPLOYED.factor, values=("sudden", "slow"), reference=None)
    )

    def perfect(record: Record) -> Record:
        return dataclasses.replace(record, metrics={**record.metrics, "test": 0.0, "train_loss": 0.0})

    assert "sudden" in text_of(small(tmp_path, perfect, curves=(curve,))[1])


def test_a_metric_that_is_no_fraction_is_shown_as_it_is(tmp_path: Path) -> None:
    problem = synthetic.problems(metric=Metric(name="test loss", percent=False))[:1]
    _, page = small(tmp_path, problems=problem, margin=0.005)
    number = rf"{MINUS}0\.1\d\d"
    row = rf"layer norm digits-mlp deployed 2 0\.02\d\d ± 0\.00\d\d\d {number} \[{MINUS}0\.\d+, {MINUS}0\.\d+\]"
    assert re.search(row, text_of(page))
    assert not re.search(r"\d points|percentage", text_of(page))
    svg = next((tmp_path / "figures").glob("error*.svg")).read_text("utf-8")
    assert ">test loss<" in svg and "0.02" in svg


def test_unknown_costs_are_dashes(tmp_path: Path) -> None:
    analysis, page = small(tmp_path, lambda record: dataclasses.replace(record, cost={}))
    assert analysis.costs[0] == Cost(
        problem="digits-mlp", curve="deployed", norm="batch", value=2, step=None, run=None, compile=None, memory=None,
        moved=None,
    )  # fmt: skip
    assert "batch norm baseline none" in text_of(page)


def test_reporting_loads_no_jax_and_draws_only_when_asked() -> None:
    code = "import sys, normlab.study.report.html as r; print(*(m.split('.')[0] for m in sys.modules), sep='\\n')"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"jax", "scipy", "matplotlib", "jinja2"} & set(loaded)
