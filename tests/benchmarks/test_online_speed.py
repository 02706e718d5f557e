"""Test that the measurement of online learning completes and refuses bad input; times are not asserted."""

import csv
import re
from pathlib import Path

import pytest

from benchmarks.speed import online as online_speed


@pytest.mark.slow
def test_live_and_compiled_are_measured_beside_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(online_speed, "MEMORY_AT", (20, 40))
    monkeypatch.setattr(online_speed, "peers_of", lambda stream: ({}, ["Left out: deep-river (not there)."]))
    arguments = ["--examples", "200", "--rounds", "1", "--norms", "layer", "--output", str(tmp_path / "speed")]
    monkeypatch.setattr("sys.argv", ["online.py", *arguments])
    online_speed.main()
    with (tmp_path / "speed.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    contenders = (online_speed.COMPILED, online_speed.LOOP, online_speed.LIVE, online_speed.SCORED)
    assert [(row["contender"], row["norm"]) for row in rows] == [(c, n) for n in ("none", "layer") for c in contenders]
    for row in rows:
        assert float(row["microseconds"]) * float(row["examples_per_second"]) == pytest.approx(1e6)
        assert float(row["ratio"]) == 1 or row["contender"] != online_speed.COMPILED
    page = (tmp_path / "speed.md").read_text()
    printed = capsys.readouterr().out
    assert all(line in page for line in printed.splitlines()[:-1])  # the last says where it is
    assert "Left out: deep-river (not there)." in page
    assert re.search(r"live wrapper: [\d.]+ MiB after 20 examples, [\d.]+ MiB after 40 examples", page)
    assert re.search(r"norm layer: `learn_one` \d+ us", page)


def test_the_same_errors_come_out_of_the_loop_and_the_pass() -> None:
    """Check that both contenders do the same work."""
    stream = online_speed.drawn(50)
    (_, errors), (_, looped) = online_speed.compiled(stream, "online")(), online_speed.loop(stream, "online", 50)()
    assert errors.shape == (50,) and 0 < float(errors.mean()) < 1
    assert looped.tolist() == errors[-1:].tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--norms", "onlin"], "Did you mean 'online'"),
        (["--examples", "9"], "Expected `--examples` to be at least 10, got 9"),
        (["--rounds", "0"], "Expected `--rounds` to be at least 1, got 0"),
    ],
)
def test_bad_input_is_one_clear_error(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["online.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        online_speed.main()
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])
