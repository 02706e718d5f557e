"""Test that the measurement of the tools completes; times are not asserted."""

import csv
import sys
from pathlib import Path

import pytest

from benchmarks.speed import tools
from normlab.models import MLP


def test_every_pass_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "MODELS", {"mlp": (lambda norm: MLP(norm, hidden=(4,)), (8, 3))})
    monkeypatch.setattr(sys, "argv", ["tools.py", "--rounds", "2", "--output", str(tmp_path / "speed")])
    tools.main()
    with (tmp_path / "speed.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["what"] for row in rows] == [
        tools.EVALUATION,
        tools.FOLDED,
        tools.TRAINING,
        "precise, by batch",
        "precise, by running",
    ]
    assert all(float(row["ratio"]) > 0 and row["rounds"] == "2" for row in rows)
    assert "`python -m benchmarks.speed.tools --rounds 2" in (tmp_path / "speed.md").read_text()


def test_an_unknown_model_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["tools.py", "--models", "alexnet"])
    with pytest.raises(SystemExit):
        tools.main()
    assert "Expected models among resnet, mlp, got 'alexnet'." in capsys.readouterr().err
