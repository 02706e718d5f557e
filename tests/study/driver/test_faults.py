"""What goes wrong outside of the program: nothing that was finished is lost, and one sentence says how to go on."""

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from normlab import study
from normlab.cli.main import main
from normlab.errors import BadInput, Fault
from normlab.study.design import discovery
from normlab.study.design.records import EVALUATE
from normlab.study.design.request import Request, from_python
from normlab.study.driver.driver import ExecutionOptions, Invocation
from normlab.study.worker.store import Store, write_whole
from normlab.study.worker.strategy import Strategy
from tests.support.paths import ENVIRONMENT, ROOT
from tests.support.toys import TOY

NOBODY = 65534


def complete(toy: Path, output: Path, **options: Any) -> Store:
    """What `normlab run` does, in this process and without a report."""
    comparison = discovery.load(str(toy))
    settings = Request(comparison, from_python({"norms": ["none"], **options}, comparison)).settings(str(toy))
    Invocation(comparison, settings, output, "normlab run toy.py").complete(
        ExecutionOptions(strategy=Strategy(alone=True))
    )
    return Store(output)


def contents(output: Path) -> dict[Path, bytes]:
    """The files of all finished runs."""
    return {path: path.read_bytes() for path in output.glob("runs/??/*.json")}


class TestDisk:
    def test_a_full_disk_keeps_finished_runs_and_leaves_no_halves(
        self, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(path: Path, content: str) -> Path:
            if path.parent.parent.name == "runs" and len(contents(output)) == 5:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write_whole(path, content)

        output = tmp_path / "out"
        monkeypatch.setattr("normlab.study.worker.store.write_whole", full)
        with pytest.raises(Fault, match=r"No space left on device. Finished runs are kept; .* same command resumes"):
            complete(toy, output)
        before = contents(output)
        assert len(before) == 5
        monkeypatch.undo()
        after = contents(complete(toy, output).directory)
        assert len(after) == 28
        assert before.items() <= after.items()

    @pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of files")
    def test_a_write_that_the_system_cuts_short(self, tmp_path: Path) -> None:
        limited = TOY.replace("time.sleep(PAUSE)", "seed == 1001 and limit()")
        (tmp_path / "script.py").write_text(
            f"{limited}\n\n"
            "def limit():\n"
            "    import resource\n"
            "    resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))\n\n\n"
            "from normlab import study\n"
            "study.run(comparison, norms=['none'], output='out', progress=False)\n"
        )
        command = [sys.executable, "script.py"]
        result = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
        assert "Fault: Cannot write to `out`: File too large. Finished runs are kept" in result.stderr
        store = Store(tmp_path / "out")
        assert [record.run.seed for record in store.records()] == [1000]
        assert store.damaged() == []
        assert not list(tmp_path.glob("out/**/*.tmp"))

    @pytest.fixture
    def read_only(self) -> Iterator[Path]:
        """A folder in which nobody can write, root neither."""
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "out"
            folder.mkdir()
            Path(name).chmod(0o755)
            folder.chmod(0o555)
            if os.geteuid() == 0:  # whom no mode keeps from writing
                os.seteuid(NOBODY)
            yield folder
            os.seteuid(os.getuid())
            folder.chmod(0o755)

    @pytest.mark.skipif(sys.platform == "win32", reason="Windows has other permissions")
    def test_a_read_only_folder(self, read_only: Path) -> None:
        store = Store(read_only)
        with pytest.raises(BadInput, match=r"Permission denied\. Choose another with `--output`"), store.writing():
            pass
        with pytest.raises(Fault, match=r"Cannot write the report .*Permission denied. The runs are kept"):
            with store.reporting():
                assert store.records() == []  # what is there can be read, and is printed
                write_whole(read_only / "report.html", "")
        assert list(read_only.iterdir()) == []

    def test_an_output_that_cannot_be(self, toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["run", str(toy), "--output", str(toy / "out")]) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"normlab: Cannot write to `{toy / 'out'}`: Not a directory. Choose another")
        assert err.count("\n") == 1


class TestRecords:
    @pytest.mark.parametrize("damage", ["truncated", "empty", "not text", "of another run", "changed", "older"])
    def test_a_damaged_record_is_named_set_aside_and_repeated(
        self, damage: str, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        store = complete(toy, tmp_path / "out")
        before = contents(store.directory)
        path, other = sorted(before)[:2]
        content = {
            "truncated": before[path][:100],
            "empty": b"",
            "not text": b"\xff\x00" * 50,
            "of another run": before[other],
            "changed": before[path].replace(b'"epochs": 3', b'"epochs": 4'),
            "older": b'{"key": "x", "run": {"cell": {"problem": "a", "norm": "b", "value": 2}}, "timing": {}}',
        }[damage]
        path.write_bytes(content)
        capsys.readouterr()
        complete(toy, store.directory)
        out = capsys.readouterr().out
        assert f"`{path}` does not contain the run of its name; it is `{path.name}.corrupt` now" in out
        assert path.with_name(f"{path.name}.corrupt").read_bytes() == content
        after = contents(store.directory)
        assert after.keys() == before.keys()
        assert {path: after[path] for path in before if path != min(before)}.items() <= before.items()
        assert json.loads(after[path])["metrics"] == json.loads(before[path])["metrics"]

    def test_a_report_leaves_a_damaged_record_out_and_as_it_is(
        self, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        store = complete(toy, tmp_path / "out", curves=["deployed"])
        path = min(contents(store.directory))
        path.write_text("{")
        assert main(["report", str(store.directory)]) == 0
        assert f"Left out `{path}`" in capsys.readouterr().out
        assert path.read_text() == "{"

    def test_what_killed_processes_left_half_written_is_removed_and_nothing_else(
        self, toy: Path, tmp_path: Path
    ) -> None:
        store = complete(toy, tmp_path / "out")
        folder, end = store.directory, f"{uuid4().hex}.tmp"
        run = next(folder.glob("runs/??/*.json"))
        of_runs = [folder / f"comparison.json.{end}", run.with_name(f"{run.name}.{end}")]
        of_reports = [folder / f"{name}.{end}" for name in ("report.html", "tables/cells.csv", "figures/a-b.svg")]
        of_user = [
            *(folder / place / "notes.tmp" for place in (".", "tables", "figures", "mine", "runs", run.parent.name)),
            folder / f"mine/report.html.{end}",
            folder / f"thesis.doc.{end}",
            folder / "comparison.json.17.tmp",
            folder / f"tables/cells.csv.{'x' * 32}.tmp",
            run.with_name("notes.tmp"),
            run.with_name(f"{run.name}.17.tmp"),
        ]
        for path in (*of_runs, *of_reports, *of_user):
            path.parent.mkdir(exist_ok=True)
            path.write_text("{")
        folders = [
            folder / "x.tmp",
            folder / f"report.html.{'0' * 32}.tmp",
            run.with_name(f"{run.name}.{'0' * 32}.tmp"),
        ]
        for path in folders:
            path.mkdir()
        (folder / f"analysis.json.{'1' * 32}.tmp").symlink_to(tmp_path / "toy.py")
        of_user += [*folders, folder / f"analysis.json.{'1' * 32}.tmp"]
        complete(toy, folder)
        assert not any(path.exists() for path in of_runs)
        assert all(path.exists() for path in (*of_reports, *of_user))
        assert main(["report", str(folder)]) == 0
        assert not any(path.exists() for path in of_reports)
        assert all(path.exists() for path in of_user)


class TestProcesses:
    def test_the_second_on_one_folder_is_refused(
        self, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with Store(tmp_path / "out").writing():
            assert main(["run", str(toy), "--output", str(tmp_path / "out")]) == 2
        err = capsys.readouterr().err
        assert f"Expected to be alone in `{tmp_path / 'out'}`, where process {os.getpid()} on " in err
        assert err.count("\n") == 1
        with Store(tmp_path / "out").writing():
            pass

    def test_ctrl_c_in_python_keeps_what_is_done(self, toy: Path, tmp_path: Path) -> None:
        toy.write_text(TOY.replace("time.sleep(PAUSE)", "STOP and seed == 1 and STOP.pop()()"))
        toy.write_text(toy.read_text() + "\n\ndef stop():\n    raise KeyboardInterrupt\n\n\nSTOP = [stop]\n")
        comparison = discovery.load(str(toy))
        with pytest.raises(KeyboardInterrupt):
            study.run(comparison, norms=["none"], output=tmp_path / "out", progress=False)
        before = contents(tmp_path / "out")
        assert before
        header = Store(tmp_path / "out").header()
        assert header
        assert header.wall_seconds > 0

    def test_a_file_system_without_locks_is_no_obstacle(
        self, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(*_: Any, **__: Any) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr("normlab.study.worker.store._lock", refuse)
        assert complete(toy, tmp_path / "out").records()

    def test_a_clock_that_jumps_changes_no_time_that_is_reported(
        self, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        straight = complete(toy, tmp_path / "straight")
        jumps = random.Random(0)
        monkeypatch.setattr(time, "time", lambda: jumps.uniform(-1e9, 1e9))
        monkeypatch.setattr(time, "time_ns", lambda: jumps.randrange(10**18))
        jumping = complete(toy, tmp_path / "jumping")
        header = jumping.header()
        assert header
        assert 0 < header.wall_seconds < 1e6
        for one, other in zip(straight.records(), jumping.records(), strict=True):
            assert (one.key, one.metrics) == (other.key, other.metrics)
            assert all(0 <= seconds < 1e6 for name, seconds in other.cost.items() if name != "memory")

    @pytest.mark.slow
    def test_a_worker_that_the_system_kills(self, toy: Path, tmp_path: Path) -> None:
        norms = ["--norms", "none", "batch_renorm", "layer"]
        arguments = ["--curves", "deployed", "--batch-sizes", "2", "--no-extend", "--seeds", "3", "--jobs", "2"]
        assert main(["run", str(toy), *norms, *arguments, "--output", str(tmp_path / "out")]) == 0
        evaluated = [record for record in Store(tmp_path / "out").records() if record.run.stage == EVALUATE]
        found = {(record.run.configuration.norm, record.run.seed): record for record in evaluated}
        assert len(found) == 9
        assert toy.with_suffix(".killed").exists()
        failed = {run: record.status for run, record in found.items() if record.status != "ok"}
        assert failed == {("layer", 1): "error"}
        assert "died 3 times during this run: it was killed" in found["layer", 1].reason


KILLS = 50


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals")
@pytest.mark.parametrize("command", ["report", "merge"])
def test_fifty_kills_while_a_report_or_a_merge_is_written_leave_nothing_half(
    command: str, toy: Path, tmp_path: Path
) -> None:
    """The kills come before, within and after the writing of each file; `killing.py` checks the folder after each."""
    whole = complete(toy, tmp_path / "whole", batch_sizes=[2], ghost_batch_sizes=[2], extend=False)
    for name, seeds in (("old", range(2)), ("rest", range(2, 4))):
        part = Store(tmp_path / name)
        shutil.copytree(whole.directory, part.directory)
        part.write_header(replace(part.recorded()[0], wall_seconds=0.0))  # a second merge adds it up again
        for record in part.records():
            if record.run.stage == EVALUATE and record.run.seed not in seeds:
                part.remove(record.key)
    script = [sys.executable, "-m", "tests.support.killing", command, str(tmp_path), str(KILLS)]
    result = subprocess.run(script, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True)
    assert (result.stdout, result.stderr, result.returncode) == (f"{KILLS} kills\n", "", 0)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signals")
class TestKill:
    def test_fifty_kills_lose_nothing_and_change_nothing(self, toy: Path, tmp_path: Path) -> None:
        """Kill the whole process group before, while and after runs are written; the times are those of seed 0."""
        toy.write_text(TOY.replace("PAUSE = 0.0", "PAUSE = 0.05"))
        killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
        moments, finished = random.Random(0), dict[Path, bytes]()
        for _ in range(KILLS):
            self.start_and_kill(toy, killed, moments)
            assert Store(killed).damaged() == []
            now = contents(killed)
            assert finished.items() <= now.items()
            finished = now
        assert 10 < len(finished) < 70  # there was something to lose, and something left to do
        for output in (killed, undisturbed):
            subprocess.run(self.command(toy, output), env=ENVIRONMENT, stdout=subprocess.DEVNULL, check=True)
        assert finished.items() <= contents(killed).items()
        assert contents(killed).keys() == {killed / p.relative_to(undisturbed) for p in contents(undisturbed)}
        assert (killed / "analysis.json").read_bytes() == (undisturbed / "analysis.json").read_bytes()
        assert not list(killed.rglob("*.tmp"))

    def command(self, toy: Path, output: Path) -> list[str]:
        return [sys.executable, "-m", "normlab", "run", str(toy), "--output", str(output), "--jobs", "1"]

    def start_and_kill(self, toy: Path, output: Path, moments: random.Random) -> None:
        """Kill during the start, or a moment after the first new run."""
        there, early, wait = len(contents(output)), moments.random() < 0.7, moments.random()
        process = subprocess.Popen(
            self.command(toy, output),
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        if not early:
            while process.poll() is None and len(list(output.glob("runs/??/*.json"))) == there:
                time.sleep(0.002)
        time.sleep(wait * (0.9 if early else 0.15))
        with contextlib.suppress(ProcessLookupError):  # it was done
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
