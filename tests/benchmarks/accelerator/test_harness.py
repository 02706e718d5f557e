"""Test that the command keeps every row, whatever a stage does, and divides its time."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.accelerator import __main__ as command
from benchmarks.accelerator import child, environment, results, supervision
from benchmarks.accelerator.stage import Clock, Refused, Row
from benchmarks.accelerator.supervision import supervised

TOY = "tests.benchmarks.accelerator.toy"


def run(*skip: str, seconds: float = 30.0) -> tuple[list[Row], str]:
    """The rows of the toy, and how it ended."""
    *rows, last = supervised(TOY, seconds, tiny=True, skip=skip)
    assert last["kind"] == "stage" and {row["stage"] for row in (*rows, last)} == {"toy"}
    return rows, str(last["ended"])


FIRST = {"stage": "toy", "kind": "toy", "tiny": True, "value": 1.5}


def test_a_stage_runs_in_a_process_of_its_own() -> None:
    assert run() == ([FIRST], "complete")


@pytest.mark.parametrize(("how", "status"), [("crash", -6), ("raise", 1)])
def test_a_crash_costs_no_row_and_is_reported(how: str, status: int) -> None:
    assert run(how) == ([FIRST], f"crashed with status {status}")


def test_a_stage_that_hangs_is_killed_with_its_children() -> None:
    assert run("hang", seconds=2.0) == ([FIRST], "killed at its deadline")


def test_a_stage_whose_time_is_over_is_stopped_after_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "LAST_ROW", 0.1)
    rows, ended = run("endless", seconds=15.0)
    assert ended == "out of time" and len(rows) > 2
    assert all(float(str(row["left"])) > 0 for row in rows[1:-1])


@pytest.mark.parametrize(
    ("how", "seconds", "done", "ended"),
    [("planned", 30.0, 3, "complete"), ("late", 1.0, 2, "out of time"), ("crash", 30.0, 1, "crashed with status -6")],
)
def test_a_stage_with_a_plan_says_how_much_of_it_is_done(how: str, seconds: float, done: int, ended: str) -> None:
    *_, last = supervised(TOY, seconds, tiny=True, skip=["planned", how])
    assert (last["ended"], last["done"], last["planned"], last["unit"]) == (ended, done, 3, "values")


def test_a_stage_that_finished_its_plan_is_complete_whatever_the_time() -> None:
    assert supervision.how(child.OUT_OF_TIME, late=False, left=0) == "complete"
    assert supervision.how(child.OUT_OF_TIME, late=False, left=None) == "out of time"
    assert supervision.how(-9, late=True, left=0) == "killed at its deadline"


def test_a_stage_does_not_see_the_arguments_of_its_process() -> None:
    (row,) = run("arguments")[0][1:]
    assert row["arguments"] == []


def test_a_stage_that_cannot_measure_here_ends_the_command() -> None:
    with pytest.raises(Refused):
        list(supervised(TOY, 30.0, tiny=False, skip=["refuse"]))


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Three stages that take no time; the calls of the function that runs them."""
    calls: list[tuple[Any, ...]] = []

    def fake(module: str, seconds: float, *, tiny: bool, skip: list[str]) -> Iterator[Row]:
        calls.append((module.rpartition(".")[2], round(seconds, 1), tiny, skip))
        yield {"stage": calls[-1][0], "kind": "toy", "tiny": tiny}
        ended = "crashed with status 1" if "crash" in skip and calls[-1][0] == "a" else "complete"
        yield {"stage": calls[-1][0], "kind": "stage", "ended": ended}

    monkeypatch.setattr(command, "STAGES", {"environment": 10.0, "a": 20.0, "b": 30.0})
    monkeypatch.setattr(command, "supervised", fake)
    return calls


def test_a_stage_leaves_its_time_to_those_behind(stages: list[tuple[Any, ...]]) -> None:
    list(command.budgeted(["a", "b"], 60.0, tiny=True, skip=["x"]))
    assert stages == [("environment", 10.0, True, ["x"]), ("a", 24.0, True, ["x"]), ("b", 60.0, True, ["x"])]


def test_the_file_is_complete_after_every_row(
    stages: list[tuple[Any, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    write = results.write

    def spied(path: Path, rows: list[Row]) -> None:
        write(path, rows)
        seen.append(len(json.loads(path.read_text())["rows"]))

    monkeypatch.setattr(results, "write", spied)
    assert command.main(["--dry-run", "--only", "b", "--budget", "1min", "--output", str(tmp_path / "new")]) == 0
    assert [call[0] for call in stages] == ["environment", "b"]
    assert seen == [2, 3, 4, 5]  # with the row of the invocation
    rows = results.read(tmp_path / "new" / "RESULT.json")
    assert (
        rows[0]["command"]
        == f"python -m benchmarks.accelerator --dry-run --only b --budget 1min --output {tmp_path}/new"
    )
    assert "b, toy: tiny True\n" in capsys.readouterr().out


def test_a_crash_of_a_stage_is_the_exit_status(stages: list[tuple[Any, ...]], tmp_path: Path) -> None:
    assert command.main(["--skip", "crash", "--output", str(tmp_path)]) == 1
    assert [call[0] for call in stages] == ["environment", "a", "b"]


@pytest.mark.parametrize(("text", "seconds"), [("9min", 540), ("300s", 300), ("2.5 min", 150), ("45", 45)])
def test_times(text: str, seconds: float) -> None:
    assert command.seconds(text) == seconds


@pytest.mark.parametrize("arguments", [["--budget", "soon"], ["--budget", "0s"], ["--only", "nothing"]])
def test_bad_input_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(arguments)


def test_without_an_accelerator_only_a_dry_run_measures() -> None:
    with pytest.raises(Refused, match=r"Expected an accelerator that JAX sees, got only a CPU\. Pass `--dry-run`"):
        list(environment.rows(Clock(1), tiny=False, skip=()))
    device, versions = environment.rows(Clock(1), tiny=True, skip=())
    assert device["platform"] == "cpu" and versions["jax"]


@pytest.mark.parametrize(
    ("error", "words"),
    [(AssertionError(), "no device of any of them"), (RuntimeError("no plugin"), "`RuntimeError: no plugin`")],
)
def test_a_platform_that_is_not_here_is_refused_in_one_sentence(
    error: Exception, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def devices() -> None:
        raise error

    monkeypatch.setattr(environment.jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(Refused, match=rf"^Expected a device .*'cuda', got {words}\. Name others"):
        list(environment.rows(Clock(1), tiny=True, skip=()))
