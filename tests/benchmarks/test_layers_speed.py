"""Test the measurement of norms beside other libraries; times are not asserted."""

import csv
import re
from pathlib import Path

import pytest

from benchmarks.speed import _peers as peers
from benchmarks.speed import layers as speed


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """Run the module as users do, in this process."""
    monkeypatch.setattr("sys.argv", ["layers.py", *arguments])
    speed.main()


@pytest.mark.slow
@pytest.mark.parametrize("context", speed.CONTEXTS)
def test_every_context_is_measured(
    context: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--context", context, "--shapes", "16x2x2x32", "--norms", "batch,layer", "--rounds", "2"]
    run(monkeypatch, *given, "--output", str(tmp_path / "layers"))
    with (tmp_path / "layers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = {(row["norm"], row["what"], row["contender"]) for row in rows}
    assert found >= {
        (norm, what, name) for norm in ("batch", "layer") for what in speed.BARS for name in (speed.OURS, "Flax")
    }
    assert all(row["context"] == context and row["shape"] == "16x2x2x32" and row["rounds"] == "2" for row in rows)
    assert all(float(row["ratio"]) == 1 for row in rows if row["contender"] == speed.OURS)
    printed, page = capsys.readouterr().out.splitlines(), (tmp_path / "layers.md").read_text()
    assert printed[1] == speed.HEADING
    assert page.startswith(f"# {speed.TITLE}: {context}\n")
    assert all(line in page for line in printed[:-1])  # the last names the files


@pytest.mark.slow
@pytest.mark.parametrize("norm", peers.NORMS)
def test_contenders_agree_with_numpy_in_float64(norm: str) -> None:
    speed.check(norm)


def test_a_contender_that_computes_something_else_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "contenders", lambda norm, shape: {"haiku": peers.flax("layer", shape)})
    monkeypatch.setattr(speed, "installed", list)
    with pytest.raises(AssertionError, match="rms norm of haiku"):
        speed.check("rms")


def test_a_ratio_is_that_to_the_fastest_of_the_others_on_jax() -> None:
    def row(contender: str, ms: float, ratio: float) -> speed.Row:
        return speed.Row(
            norm="layer",
            shape="8x32",
            context="alone",
            what=speed.FORWARD,
            contender=contender,
            ms=ms,
            least_ms=ms,
            ratio=ratio,
            ratio_low=ratio,
            ratio_high=ratio,
            ratio_of_minima=ratio,
            rounds=2,
        )

    ours, torch, two_pass = row(speed.OURS, 2.6, 1.0), row(speed.TORCH, 0.1, 26.0), row(speed.TWO_PASS, 0.2, 13.0)
    slower = speed.Comparison([ours, row("Flax", 3.0, 0.87), row("Keras", 2.0, 1.3), two_pass, torch])
    assert (slower.closest.contender, slower.within_bar) == ("Keras", False)
    assert re.search(r"2\.60 +3\.00 +- +- +2\.00 +0\.20 +0\.10 +1\.30! +1\.30 to 1\.30 +1\.30 +Keras$", str(slower))
    assert speed.Comparison([ours, row("Flax", 2.1, 1.24), torch]).within_bar


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--norms", "batch,online"], "Expected norms among batch, .*got 'online'"),
        (["--shapes", "16x40"], "Expected features that 32 groups divide evenly, got 40 in 16x40"),
        (["--shapes", "4x32", "--context", "vmap"], "Expected a batch that 8 models divide evenly, got 4 in 4x32"),
        (["--rounds", "0"], "Expected `--rounds` to be at least 1, got 0"),
    ],
)
def test_bad_input_is_one_clear_error(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(monkeypatch, *arguments)
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])
