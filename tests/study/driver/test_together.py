"""`normlab run` on the devices of two processes: what one process finds, one writer, and an end for all."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from normlab.cli.main import main
from tests.study.training.test_data_parallel import MODEL

pytestmark = pytest.mark.slow

BUDGET = ("--tier", "smoke", "--seeds", "1", "--learning-rates", "0.1", "--batch-sizes", "8", "--devices", "4")
TIMEOUT = 120


@pytest.fixture
def comparison(tmp_path: Path) -> Path:
    file = tmp_path / "small.py"
    file.write_text(MODEL)
    return file


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def start(file: Path, process: int, port: int, *options: str) -> "subprocess.Popen[str]":
    """Start one of two processes, each with an output folder of its own name."""
    group = ("--coordinator", f"127.0.0.1:{port}", "--process", f"{process}/2")
    output = ("--output", str(file.parent / f"of-{process}"))
    return subprocess.Popen(
        [sys.executable, "-m", "normlab", "run", str(file), *BUDGET, *group, *output, *options],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )


def ended(*processes: "subprocess.Popen[str]") -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each; a process that hangs fails the test."""
    found = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=TIMEOUT)
            found.append((process.returncode, out, err))
    finally:
        for process in processes:
            process.kill()
    return found


def errors_of(folder: Path) -> dict[tuple[Any, ...], dict[str, float]]:
    """Metrics by run."""
    found = {}
    for path in folder.glob("runs/*/*.json"):
        record = json.loads(path.read_text())
        run = record["run"]
        assert record["status"] == "ok", record["reason"]
        found[run["cell"]["norm"], run["stage"], run["seed"]] = record["metrics"]
    return found


def test_two_processes_find_what_one_finds_and_one_of_them_writes(comparison: Path) -> None:
    alone = comparison.parent / "alone"
    assert main(["run", str(comparison), *BUDGET, "--output", str(alone), "--jobs", "1"]) == 0
    port = free_port()
    first, second = ended(*(start(comparison, process, port) for process in (1, 2)))
    assert (first[0], second[0]) == (0, 0), first[2] + second[2]
    assert "Report:" in first[1] and "Report:" not in second[1]
    assert not (comparison.parent / "of-2").exists()
    together, expected = errors_of(comparison.parent / "of-1"), errors_of(alone)
    assert together.keys() == expected.keys()
    for run, metrics in together.items():
        assert metrics == pytest.approx(expected[run], rel=1e-3), run
    header = json.loads((comparison.parent / "of-1" / "comparison.json").read_text())
    assert header["identity"]["strategy"] == "sequential in 2 processes together"


def test_processes_that_were_given_different_things_all_say_so(comparison: Path) -> None:
    port = free_port()
    found = ended(start(comparison, 1, port), start(comparison, 2, port, "--epochs", "7"))
    for code, _, err in found:
        assert code == 2
        assert (
            "Expected `settings.epochs` to be the same in all processes, got 2 in process 1 and 7 in process 2" in err
        )
    assert not list(comparison.parent.glob("of-*/runs/*/*"))


def test_data_of_another_shape_in_one_process_end_both(comparison: Path) -> None:
    other = comparison.parent / "other"
    other.mkdir()
    (other / "small.py").write_text(MODEL.replace("size=(200, 4)", "size=(200, 5)"))
    port = free_port()
    found = ended(start(comparison, 1, port), start(other / "small.py", 2, port))
    for code, _, err in found:
        assert code == 2
        assert "to be the same in all processes" in err and "`identity.data.two`" in err


def test_a_process_that_is_killed_ends_the_other_and_nothing_done_is_lost(comparison: Path) -> None:
    port = free_port()
    long = ("--epochs", "30")
    first, second = (start(comparison, process, port, *long) for process in (1, 2))
    runs, waited = comparison.parent / "of-1" / "runs", time.monotonic() + TIMEOUT
    while not list(runs.glob("*/*.json")) and time.monotonic() < waited and first.poll() is None:
        time.sleep(0.05)
    second.send_signal(signal.SIGKILL)
    (code, _, err), _ = ended(first, second)
    assert code == 1, err
    assert "Process 2 of 2 ended without a word" in err
    kept = {path.name for path in runs.glob("*/*.json")}
    assert kept
    port = free_port()
    found = ended(*(start(comparison, process, port, *long) for process in (1, 2)))
    assert [code for code, _, _ in found] == [0, 0], found
    assert kept < {path.name for path in runs.glob("*/*.json")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--coordinator", "localhost:1"], "`--coordinator`, `--process` and `--devices`"),
        (["--process", "1/2", "--devices", "2"], "got `--process` alone"),
        (["--coordinator", "localhost:1", "--process", "1/2"], "with one device"),
        (["--coordinator", "nowhere", "--process", "1/2", "--devices", "2"], "to be HOST:PORT"),
        (["--coordinator", "localhost:1", "--process", "3/2", "--devices", "2"], "to be i/n with 1 <= i <= n"),
        (["--coordinator", "localhost:1", "--process", "1/2", "--devices", "3"], "the same number for each, got 3"),
        (["--coordinator", "localhost:1", "--process", "1/2", "--devices", "2", "--jobs", "2"], "`--jobs` not with"),
        (
            ["--coordinator", "192.0.2.1:1", "--process", "1/2", "--devices", "2"],
            "`NORMLAB_GROUP_SECRET` to be set in all",
        ),
    ],
)
def test_bad_input(
    comparison: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NORMLAB_GROUP_SECRET", raising=False)
    assert main(["run", str(comparison), *options]) == 2
    assert message in capsys.readouterr().err
