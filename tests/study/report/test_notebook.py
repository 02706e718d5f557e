"""Views of results for notebooks: complete, escaped, self-contained and small."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from normlab.study.analysis.analyse import analyse
from normlab.study.analysis.results import Analysis
from normlab.study.design.records import TUNE
from normlab.study.report import figures, notebook
from normlab.study.report.headline import headlines
from normlab.study.report.html import prose
from tests.support.synthetic import NORMS, VALUES, a_comparison, problems, simulate, some_settings


class Page(HTMLParser):
    """Collects tags, ids and the text of cells."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.ids += [identity] if (identity := given.get("id")) else []
        linked = [given[name] for name in ("href", "src", "xlink:href") if name in given]
        self.references += [text for text in linked if text]


@pytest.fixture(scope="module")
def analysis() -> Analysis:
    comparison = a_comparison(problems=problems(title="MLP <b>on</b> digits"))
    settings = some_settings(comparison)
    return analyse(comparison, settings, simulate(comparison, settings))


def cells(html: str, row: str) -> list[str]:
    """Text of the cells of the first row whose heading starts with some text."""
    found = re.search(rf"<tr><th>{re.escape(row)}.*?</tr>", html, re.DOTALL)
    assert found
    inner = re.findall(r"<td>(.*?)</td>", found[0], re.DOTALL)
    return [" ".join(re.sub(r"<[^>]*>", " ", text).split()) for text in inner]


def test_tables_have_a_row_for_every_norm_with_intervals_verdicts_and_failures(analysis: Analysis) -> None:
    html = notebook.table_html(analysis)
    curves = sum(len(problem.curves) for problem in analysis.problems)
    assert html.count("<table>") == curves
    assert html.count("<tr>") == curves * (1 + len(NORMS)) - 2  # instance norm cannot be run on the MLP
    assert len(cells(html, "batch norm")) == len(VALUES)
    assert re.fullmatch(r"1[78]\.\d ±\d\.\d", cells(html, "batch norm")[0])
    assert re.fullmatch(r"2\.\d ±\d\.\d better", cells(html, "layer norm")[0])
    assert cells(html, "no norm")[-1].endswith("2 of 10 failed")
    assert html.count("instance norm on MLP") == 1


def test_titles_are_escaped(analysis: Analysis) -> None:
    html = notebook.result_html(analysis)
    assert "b" not in Page(html).tags
    assert "<strong>MLP &lt;b&gt;on&lt;/b&gt; digits: " in html


def test_the_page_of_a_result_is_self_contained_and_small(analysis: Analysis) -> None:
    html = notebook.result_html(analysis)
    page = Page(html)
    assert all(prose(sentence) in html for sentence in headlines(analysis))
    assert "http" not in html
    assert page.ids and len(set(page.ids)) == len(page.ids)
    assert {reference.removeprefix("#") for reference in page.references} <= set(page.ids)
    assert len(html) < 150_000


def test_figures_take_the_colours_of_the_page_and_never_share_ids(analysis: Analysis) -> None:
    one = figures.plot(analysis)._repr_html_()
    other = figures.plot(replace(analysis, problems=analysis.problems[:1]))._repr_html_()
    assert "currentColor" in one and figures.INK not in one
    assert set(Page(one).ids).isdisjoint(Page(other).ids)


def test_an_interim_table_has_the_seeds_and_the_rates_so_far() -> None:
    comparison = a_comparison()
    settings = some_settings(comparison)
    records = [r for r in simulate(comparison, settings) if r.run.stage == TUNE or r.run.seed < 3]
    interim = analyse(comparison, settings, records)
    html = notebook.table_html(interim)
    assert "% interval over 3 of 10 seeds so far." in html and "rates" not in html
    early = tuple(
        replace(
            problem,
            curves=tuple(
                replace(curve, cells=tuple(replace(cell, tuned_over=(3, 5)) for cell in curve.cells))
                for curve in problem.curves
            ),
        )
        for problem in interim.problems
    )
    html = notebook.table_html(replace(interim, problems=early))
    assert "Provisional: tuned over 3 of 5 learning rates so far." in html
    assert "3 of 5 rates" in cells(html, "layer norm")[0]


def test_cells_without_runs_are_to_come() -> None:
    comparison = a_comparison()
    settings = some_settings(comparison)
    records = [r for r in simulate(comparison, settings) if r.run.configuration.norm != "layer"]
    html = notebook.table_html(analyse(comparison, settings, records))
    assert set(cells(html, "layer norm")) == {"to come"}


def test_there_is_no_figure_before_the_first_evaluation() -> None:
    comparison = a_comparison()
    settings = some_settings(comparison)
    tuned = [record for record in simulate(comparison, settings) if record.run.stage == TUNE]
    html = notebook.result_html(analyse(comparison, settings, tuned))
    assert "Unfinished: nothing has been evaluated yet" in html
    assert "<svg" not in html
    assert set(cells(html, "batch norm")) == {"to come"}
