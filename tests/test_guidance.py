"""Test that pages of advice quote the results, and that each statement has its source."""

import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT

DOCS = ROOT / "docs"
PAGES = (
    DOCS / "which-norm.md",
    DOCS / "results.md",
    DOCS / "migration" / "batch_norm.md",
    *(DOCS / "explanation" / f"{page.stem}.md" for page in (DOCS / "figures").glob("*.svg")),
)
INTERVAL = re.compile(r"\[-?\d[\d.,]*, -?\d[\d.,]*\]|\d[\d.]* ± \d[\d.]*")


def plain(text: str) -> str:
    """Return text on one line."""
    return " ".join(text.split())


def negated(interval: str) -> str:
    """Return the interval of a difference the other way round."""
    ends = interval.strip("[]").split(", ")
    return f"[{', '.join(end[1:] if end.startswith('-') else f'-{end}' for end in reversed(ends))}]"


def bracketed(text: str) -> str:
    """Return text with the intervals of the page of claims, `(+0.1 to +0.2, n = 3)`, as pages of advice write them."""
    return re.sub(r"\(\+?(-?\d[\d.]*) to \+?(-?\d[\d.]*), n", r"[\1, \2]", text)


MEASURED = bracketed(plain(" ".join(page.read_text() for page in (ROOT / "benchmarks" / "results").glob("*.md"))))


@pytest.mark.parametrize("page", [page for page in PAGES if page.exists()], ids=lambda page: page.stem)
def test_intervals_are_those_of_a_results_page(page: Path) -> None:
    quoted = INTERVAL.findall(plain(page.read_text()))
    assert quoted or page.stem in ("large_offsets", "batch_size")
    assert [interval for interval in quoted if interval not in MEASURED and negated(interval) not in MEASURED] == []


def test_each_statement_of_advice_links_to_its_source() -> None:
    page = (DOCS / "which-norm.md").read_text()
    statements = [plain(item) for item in re.findall(r"^- (.*?)(?=\n(?:- |\n|$))", page, re.MULTILINE | re.DOTALL)]
    assert len(statements) > 25
    assert [item for item in statements if "](" not in item and "same page" not in item] == []
