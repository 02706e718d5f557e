"""A report as a page: one file that loads nothing, escapes everything, and says first what to fix."""

import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib import resources
from pathlib import Path

import pytest

from normlab.doctor import Report
from normlab.doctor.display import files
from normlab.doctor.display.page import page
from normlab.errors import BadInput
from tests.doctor.reports import BIAS, DEEP, EVALUATION, HEALTHY, HOSTILE, LAG, REPORTS, SICK, report

EMPTY = {"meta", "link", "wbr", "br"}
DRAWN = {"rect", "path", "circle", "line"}


class Page(HTMLParser):
    """Elements, attributes and text of a page whose elements all end."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open, self.elements, self.text = list[str](), list[tuple[str, dict[str, str | None]]](), list[str]()
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        assert len(attrs) == len(dict(attrs)), f"an attribute of {tag} twice"
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        assert tag in DRAWN

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self) -> str:
        return " ".join("".join(self.text).split())


PAGES = {name: page(one) for name, one in REPORTS.items()}


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_loaded_and_nothing_runs(name: str) -> None:
    parsed = Page(PAGES[name])
    tags = {tag for tag, _ in parsed.elements}
    assert not tags & {"script", "img", "iframe", "object", "embed", "use", "image", "base", "form", "b>"}
    for tag, attributes in parsed.elements:
        assert not any(key.startswith("on") for key in attributes)
        assert tag == "a" or not any(
            "//" in (value or "") for key, value in attributes.items() if key in ("href", "src")
        )
        assert "src" not in attributes and "style" not in attributes
    for link in parsed.all("a"):
        assert re.match(r"#|https?://", link["href"] or "")
    assert [one["href"] for one in parsed.all("link")] == ["data:,"]
    assert "default-src 'none'" in PAGES[name] and not re.search(r"url\(|@import", PAGES[name])


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere_and_drawings_are_described(name: str) -> None:
    parsed = Page(PAGES[name])
    names = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(names) == len(set(names))
    assert {(one["href"] or "")[1:] for one in parsed.all("a") if (one["href"] or "").startswith("#")} <= set(names)
    for _, attributes in parsed.elements:
        for key in ("aria-labelledby", "aria-describedby"):
            assert key not in attributes or attributes[key] in names
    for drawing in parsed.all("svg"):
        inner = "viewbox" in drawing or "x" in drawing
        assert inner or drawing.get("aria-hidden") == "true" or (drawing["role"] == "img" and drawing["aria-label"])
    assert parsed.all("html")[0]["lang"] == "en" and len(parsed.all("h1")) == 1


def test_the_first_words_are_the_verdict_and_its_remedy() -> None:
    sick, healthy = Page(PAGES["sick"]).words, Page(PAGES["healthy"]).words
    first = "Fix first: NL203, batch statistics at evaluation, at encoder/block_0/norm_0 and 39 more."
    assert first in sick and "BatchNorm(use_running_average=not train)" in sick.partition("Findings")[0]
    assert sick.index(first) < sick.index("1 error, 2 warnings, 1 note") < sick.index("Findings")
    assert "The norms of ResNet Healthy: 16 checks found nothing. 6 checks were not made." in healthy
    assert "Findings" not in healthy and "Nothing was checked." in Page(PAGES["nothing"]).words
    assert "Healthy but for 1 note: 16 checks found nothing." in Page(page(report([BIAS]))).words


def test_a_card_has_everything_that_is_known_of_a_finding() -> None:
    words = Page(page(report([LAG]))).words.partition("Findings")[2]
    expected = (
        "warning NL303 estimated from the batches Running statistics lag behind. stem/norm and 1 more "
        "All 2 places stem/norm stem/norm_1 lag 0.61 > 0.25 variance ratio 2.25 standard errors 19,292 The deployed "
        "model normalizes by statistics that its inputs do not have. variables = normlab.tools.precise(model, "
        "variables, batches).variables Source: Wu & Johnson, Rethinking “Batch” in BatchNorm, 2021"
    )
    assert "".join(expected.split()) in "".join(words.split())


def test_remedies_are_as_they_were_given() -> None:
    remedy = "f(a,\n  b)  # <b>&"
    source = page(report([replace(LAG, remedy=remedy)]))
    assert source.count("f(a,\n  b)  # &lt;b&gt;&amp;</pre>") == 2


def test_hostile_text_is_only_text() -> None:
    words = Page(PAGES["unknown"]).words
    assert "\x1b" not in PAGES["unknown"]
    assert words.count("<script>alert('x')</script>/") >= 6 and "<b>" in words
    assert words.count(" ".join(HOSTILE.replace("\x1b", " ").split())) >= 6


def test_only_addresses_of_the_web_are_links() -> None:
    sources = {
        "see https://arxiv.org/abs/1502.03167, section 3.": ["https://arxiv.org/abs/1502.03167"],
        "javascript:alert(1) and <a href='http://x.y'>": ["http://x.y"],
        "flax#1435": [],
    }
    for source, expected in sources.items():
        links = [one["href"] for one in Page(page(report([replace(LAG, source=source)]))).all("a")]
        assert [link for link in links if not (link or "").startswith("#")] == expected


def test_every_norm_has_a_row_with_its_findings() -> None:
    parsed = Page(PAGES["deep"])
    rows = [one for one in parsed.all("th") if one.get("scope") == "row"]
    assert len(rows) == len(DEEP.measurements) == 60
    assert len([one for one in parsed.all("svg") if one.get("class") == "strip"]) == 4 * 60
    assert len(PAGES["deep"]) < 400_000
    path = next(iter(DEEP.measurements))
    linked = Page(page(replace(DEEP, findings=(replace(EVALUATION, path=path, others=()),))))
    assert f"{path} batch NL203" in linked.words


def test_numbers_that_are_not_known_are_dashes() -> None:
    parsed = Page(PAGES["unknown"])
    dashes = [one for one in parsed.all("span") if one.get("title") == "not measured"]
    assert len(dashes) == 3 * 2 and parsed.words.count("\N{EN DASH}") == 3 * 2
    drawn = re.findall(r'[dxy]="[^"]*"|c[xy]="[^"]*"', PAGES["unknown"])
    assert len(drawn) > 20 and not re.search("nan|inf", " ".join(drawn))


def test_the_same_report_is_the_same_page() -> None:
    assert page(SICK) == page(SICK) == PAGES["sick"]


def test_a_page_replaces_an_older_one_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "report.html"
    assert SICK.html(target) == target and target.read_text("utf-8") == PAGES["sick"]
    assert HEALTHY.html(str(target)) == target and target.read_text("utf-8") == PAGES["healthy"]
    assert os.listdir(target.parent) == ["report.html"]


def test_where_no_page_can_be(tmp_path: Path) -> None:
    with pytest.raises(
        BadInput, match=r"Expected the path of the page to be a file, got the folder `.*`\. Name a file in it\."
    ):
        SICK.html(tmp_path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(
        BadInput,
        match=r"Expected the path of the page to be in a folder, got `.*/file/a/b.html`, and `.*/file` is a file\. "
        r"Give another path\.",
    ):
        SICK.html(tmp_path / "file" / "a" / "b.html")
    with pytest.raises(
        BadInput, match=r"Expected to write `.*`, got the error `file name too long`. Give another path."
    ):
        files.write(tmp_path / ("x" * 300), "")
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "mine"


def schemes() -> list[dict[str, str]]:
    """Return the colours of the light and the dark scheme, and those on paper."""
    style = resources.files("normlab.doctor.display").joinpath("templates", "report.css").read_text()
    found = [
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{3,6});", block))
        for block in re.findall(r":root \{(.*?)\}", style, re.S)
    ]
    return [found[0], found[0] | found[1], found[0] | found[2]]


def contrast(one: str, other: str) -> float:
    """Return the contrast of two colours by WCAG."""

    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
        parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colours", schemes(), ids=["light", "dark", "print"])
def test_colours_can_be_read(colours: dict[str, str]) -> None:
    tones = ("good", "error", "warning", "note")
    texts = [("ink", "paper"), ("soft", "paper"), ("soft", "wash"), ("accent", "paper"), ("accent", "wash")]
    texts += (
        [(tone, f"{tone}-wash") for tone in tones] + [("ink", f"{tone}-wash") for tone in tones] + [("error", "paper")]
    )
    for text, ground in texts:
        assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
    for line, ground in [("limit", "wash"), ("accent", "error-wash"), ("error", "error-wash"), ("ink", "error-wash")]:
        assert contrast(colours[line], colours[ground]) >= 2.9, (line, ground)


def test_without_findings_or_norms_there_is_a_page() -> None:
    assert "No check was made." in Page(page(Report((), (), {}))).words
