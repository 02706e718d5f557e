"""Test that the figures of the documentation show the results in `benchmarks/results`, in text that can be read."""

import csv
import math
import re

import pytest

from benchmarks import figures
from tests.support.paths import ROOT

WIDTH, NARROW = 480, 358
"""Pixels of a figure, and of the column of a page on a screen of 390."""


@pytest.mark.parametrize("name", figures.FIGURES)
def test_the_committed_figure_is_drawn_from_the_results(name: str) -> None:
    drawn = figures.draw(name)
    assert drawn == (ROOT / "docs" / "figures" / f"{name}.svg").read_text(), "Run `python -m benchmarks.figures`."


@pytest.mark.parametrize("name", figures.FIGURES)
def test_text_stays_legible_on_a_telephone(name: str) -> None:
    drawn = figures.draw(name)
    assert 'width="360pt"' in drawn and WIDTH == 360 / 0.75
    sizes = {float(size) / 0.75 for size in re.findall(r"font(?:-size)?: [^;]*?([\d.]+)px", drawn)}
    assert sizes and min(sizes) * NARROW / WIDTH >= 9


def test_every_figure_is_on_a_page() -> None:
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "explanation").glob("*.md"))
    assert {name for name in figures.FIGURES if f"](../figures/{name}.svg)" not in pages} == set()


def test_rounding_errors_are_those_of_this_library() -> None:
    with figures.OFFSETS.open() as file:
        rows = {float(row["offset"]): row for row in csv.DictReader(file)}
    for offset in (1.0, 1e3, 1e6):
        one, two = figures.offset_errors(offset)
        for measured, column in ((one, "one_pass"), (two, "two_passes")):
            assert abs(math.log10(measured / float(rows[offset][column]))) < 0.7


def test_labels_that_would_overlap_are_moved_apart() -> None:
    assert figures._spread([0, 10], [4, 4]) == [0, 10]
    assert figures._spread([5, 5], [4, 4]) == [3, 7]
    assert figures._spread([0, 1, 2, 50], [4, 4, 4, 4]) == [-3, 1, 5, 50]
