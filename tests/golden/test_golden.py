"""Interfaces, numbers and texts are as they were recorded; `python -m tests.golden.record` records them again."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.golden import record


def kept(name: str) -> Any:
    return json.loads((record.FOLDER / name).read_text())


def test_signatures_and_trees() -> None:
    now = json.loads(json.dumps(record.interface()))
    for part, was in kept("interface.json").items():
        assert now[part].keys() == was.keys()
        for name, value in was.items():
            assert now[part][name] == value, name


@pytest.mark.slow
def test_bits_of_outputs_state_and_gradients() -> None:
    known = kept("bits.json")
    if record.processor() not in known:
        pytest.skip(f"Recorded on {', '.join(known)}, not on {record.processor()}: last bits may differ.")
    was, now = known[record.processor()], record.bits()
    assert now.keys() == was.keys()
    assert {name: value for name, value in now.items() if was[name] != value} == {}


def test_help() -> None:
    assert record.help_texts() == (record.FOLDER / "help.txt").read_text()


def test_report_of_kept_runs(tmp_path: Path) -> None:
    for name, text in record.reported(tmp_path).items():
        assert text == (record.FOLDER / name).read_text(), name
