"""Rates of false alarms and of found faults are counted, and written into the page."""

import sys
from pathlib import Path

import pytest

from benchmarks.doctor import healthy, planted, rates
from normlab.doctor import Report, Skipped
from normlab.doctor.checks.registry import CHECKS, Fault, Texts

COMMON = {"failed": "", "seconds": 1.0, "versions": "Python 3, jax 0, flax 0", "command": "command", "dtype": "float32"}


def healthy_row(found: str, *, model: str = "m", seed: int = 0, made: str = "NL101 NL303") -> rates.Row:
    return rates.Row(kind="healthy", model=model, code="", expected="", seed=seed, made=made, found=found, **COMMON)


def planted_row(kind: str, found: str, expected: str = "warning norm") -> rates.Row:
    return rates.Row(kind=kind, model="p", code="NL303", expected=expected, seed=0, made="NL303", found=found, **COMMON)


@pytest.mark.parametrize(
    ("found", "detected", "silent"),
    [
        ("NL303 warning norm", True, False),
        ("NL304 warning norm; NL303 warning norm", True, False),
        ("NL201 error norm; NL303 warning norm", False, False),
        ("NL303 warning other", False, False),
        ("NL303 note norm", False, False),
        ("NL101 note norm", False, True),
        ("", False, True),
    ],
)
def test_a_fault_is_found_at_its_place_with_its_severity_and_no_other_error(found, detected, silent):
    row = planted_row("strong", found)

    assert (row.detected, row.silent) == (detected, silent)


def test_a_finding_without_a_path_is_read():
    assert planted_row("strong", "NL203 error ").findings == [("NL203", "error", "")]


@pytest.mark.parametrize(
    ("k", "n", "expected"),
    [(0, 0, ""), (0, 30, "0 to 10 %"), (0, 2, "0 to 100 %"), (1, 10, "2 to 40 %"), (10, 10, "72 to 100 %")],
)
def test_an_interval_is_by_the_rule_of_three_or_wilsons(k, n, expected):
    assert rates.interval(k, n) == expected


def test_rates_count_only_runs_in_which_the_check_was_made():
    rows = [
        healthy_row("NL303 warning norm"),
        healthy_row("NL101 note norm", seed=1),
        healthy_row("", model="n", made="NL101"),
        planted_row("strong", "NL303 warning norm"),
        planted_row("weak", ""),
        planted_row("fixed", ""),
    ]

    lines = {line.split(" | ")[0].lstrip("| "): line for line in rates.rates(rows)}

    assert lines["NL303"] == "| NL303 | 2 | 1 | 1 | 9 to 91 % | 21 to 100 % | 1 of 1 | 0 of 1 | 1 of 1 |"
    assert lines["NL101"] == "| NL101 | 3 | 2 | 0 | 0 to 100 % | 0 to 100 % |  |  |  |"


def test_the_table_of_checks_is_that_of_the_docstrings():
    lines = rates.checks()

    assert len(lines) == 2 + len(CHECKS)
    assert "| NL307 | warning, note | Constant or dead channels before a batch norm |" in "\n".join(lines)
    assert all(rates.severities(check) for check in CHECKS.values())


def examined(*, strength: float, **_: object) -> Report:
    texts = Texts(title="title", why="why", source="source", remedy="remedy")
    found = [texts.finding("NL101", "note", [Fault("norm", {})])] if strength else []
    skipped = (Skipped("NL102", "no batch was given."), Skipped("NL103", "the check failed: why."))
    return Report(tuple(found), skipped, {}, passed=("NL104",))


def test_rows_are_added_once_and_tables_written(tmp_path: Path, monkeypatch, capsys):
    page, output = tmp_path / "page.md", tmp_path / "doctor"
    page.write_text(f"before\n{rates.BEGIN}\nstale\n{rates.END}\nafter\n")
    case = planted.Case("NL101", "note", "norm", lambda strength: {"strength": strength})
    monkeypatch.setattr(planted, "CASES", {"a bias": case})
    monkeypatch.setattr(healthy, "MODELS", {"twin": lambda seed: {"strength": 0, "batches": []}})
    monkeypatch.setattr(rates, "examine", examined)
    monkeypatch.setattr(rates, "use_cache", lambda: None)
    monkeypatch.setattr(rates.jax.config, "update", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["rates", "--quick", "--output", str(output), "--page", str(page)])

    rates.main()
    first = output.with_suffix(".csv").read_text()
    rates.main()

    assert output.with_suffix(".csv").read_text() == first
    rows = rates.read(output.with_suffix(".csv"))
    assert [row.made for row in rows] == ["NL104", "NL101 NL104", "NL104"]
    assert {row.failed for row in rows} == {"NL103: the check failed: why."}
    assert [(row.kind, row.found) for row in rows] == [
        ("healthy", ""),
        ("strong", "NL101 note norm"),
        ("fixed", ""),
    ]
    text = page.read_text()
    assert text.startswith(f"before\n{rates.BEGIN}") and text.endswith(f"{rates.END}\nafter\n")
    assert "stale" not in text and "1 runs of 1 healthy models" in text and "1 of 1 strong ones" in text
    assert capsys.readouterr().out.count("\n") == 3


def test_the_page_is_that_of_the_rows_and_of_the_docstrings(tmp_path: Path):
    page = rates.ROOT / "docs/doctor.md"
    copy = tmp_path / "doctor.md"
    copy.write_text(page.read_text("utf-8"), "utf-8")

    rates.write_tables(copy, rates.read(rates.ROOT / "benchmarks/results/doctor.csv"))

    assert copy.read_text("utf-8") == page.read_text("utf-8"), "run `python -m benchmarks.doctor.rates --seeds 0`"
