"""Planted faults are found, alone, and their fixed versions are silent."""

from dataclasses import replace

import pytest

from benchmarks.doctor.planted import CASES
from normlab.doctor import Report, examine

QUICK = (
    "a bias before batch norm",
    "normlab's batch norm of one row, which it refuses",
    "a slow momentum",
    "batch statistics at evaluation",
    "statistics thrown away",
    "statistics from before a layer was scaled",
    "one-pass variance far from zero",
    "batches of one class",
    "a bias before batch norm, in NNX",
)
"""Cases that run with the quick tests: one or two of each group of checks."""

EACH = [pytest.param(name, id=name, marks=() if name in QUICK else pytest.mark.slow) for name in CASES]


def examined(name: str, strength: float) -> Report:
    report = examine(**CASES[name].build(strength))
    assert not [one for one in report.skipped if "failed" in one.why]
    return report


@pytest.mark.parametrize("name", EACH)
def test_a_planted_fault_is_found_and_nothing_else_is_wrong(name: str) -> None:
    case, report = CASES[name], examined(name, 1.0)
    found = [(one.code, one.severity, one.path) for one in report.findings]
    assert (case.code, case.severity, case.path) in found
    assert {one.code for one in report.findings if one.severity == "error"} <= {case.code}
    assert case.code not in report.passed
    for one in report.findings:
        assert one.title and one.why and one.source and one.remedy
        assert one.why.count(". ") <= 1 and "\n" not in one.remedy and "{path}" not in one.remedy


@pytest.mark.parametrize("name", EACH)
def test_the_fixed_version_is_silent(name: str) -> None:
    report = examined(name, 0.0)
    assert [one for one in report.findings if one.severity != "note" or one.code == CASES[name].code] == []


def test_every_check_has_a_planted_fault() -> None:
    from normlab.doctor.checks.registry import CHECKS

    assert {case.code for case in CASES.values()} == CHECKS.keys()


def test_the_same_input_gives_the_same_bytes_and_another_seed_the_same_faults() -> None:
    keywords = CASES["batches of one class"].build(1.0)
    first = examine(**keywords)
    assert first.json() == examine(**keywords).json()
    others = examine(**keywords, seed=1).findings
    assert [replace(one, evidence={}) for one in first.findings] == [replace(one, evidence={}) for one in others]
