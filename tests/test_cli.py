"""The command line: what it accepts, what it refuses, and what it leaves behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from normlab.study.cli import main

TOY = (Path(__file__).parent / "toy.py").read_text()
ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "normlab", *map(str, arguments)]


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    path = tmp_path / "toy.py"
    path.write_text(TOY)
    return path


BAD = {
    "unknown norm": (["batch_size", "--norms", "bach"], "'batch'"),
    "unknown option of a norm": (["batch_size", "--norms", "batch:momentun=0.9"], "'momentum'"),
    "unknown comparison": (["batch_sise"], "Did you mean `batch_size`?"),
    "missing file": (["nowhere/own.py"], "does not exist"),
    "unknown problem": (["batch_size", "--problems", "digits-mpl"], "Did you mean `digits-mlp`?"),
    "unknown tier": (["batch_size", "--tier", "quik"], "Did you mean `quick`?"),
    "misspelt option": (["batch_size", "--bacth-sizes", "2"], "Did you mean `--batch-sizes`?"),
    "abbreviated option": (["batch_size", "--see", "2"], "Did you mean `--seeds`?"),
    "groups that do not divide": (
        ["batch_size", "--norms", "group:num_groups=7", "--problems", "digits-mlp", "--batch-sizes", "8"],
        "7",
    ),
    "batch larger than the training set": (
        ["batch_size", "--norms", "layer", "--problems", "digits-mlp", "--batch-sizes", "2000"],
        "got 2000",
    ),
    "statistics over one element": (
        ["batch_size", "--norms", "batch", "--problems", "digits-mlp", "--batch-sizes", "1"],
        "batch_size 1",
    ),
    "no norm that can be run": (["batch_size", "--norms", "instance", "--problems", "digits-mlp"], "spatial"),
    "a norm twice": (["batch_size", "--norms", "batch", "batch"], "twice"),
    "a batch size twice": (["batch_size", "--batch-sizes", "2,8", "2"], "twice"),
    "a learning rate twice": (["batch_size", "--learning-rates", "0.1,0.10"], "twice"),
    "a batch size of zero": (["batch_size", "--batch-sizes", "0"], "positive"),
    "a batch size that is no number": (["batch_size", "--batch-sizes", "two"], "`two`"),
    "a negative learning rate": (["batch_size", "--learning-rates=-0.1"], "positive"),
    "an infinite learning rate": (["batch_size", "--learning-rates", "inf"], "positive"),
    "no seeds": (["batch_size", "--seeds", "0"], "positive"),
    "seeds that tune": (["batch_size", "--seeds", "1001"], "1000"),
    "half an epoch": (["batch_size", "--epochs", "0.5"], "whole"),
    "no jobs": (["batch_size", "--jobs", "0"], "positive"),
    "an option without value": (["batch_size", "--seeds"], "--seeds"),
    "two comparisons": (["batch_size", "batch_size"], "batch_size"),
    "nothing": ([], "after `run`"),
}


class TestBadInput:
    @pytest.mark.parametrize("case", BAD)
    def test_one_line_code_2_and_nothing_written(
        self, case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        arguments, expected = BAD[case]
        assert main(["run", *arguments]) == 2
        out, err = capsys.readouterr()
        assert expected in err
        assert (out, err.count("\n")) == ("", 1)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("x = 1\n", "define `comparison"),
            ("comparison = 1\n", "got int"),
            ("comparison = (\n", "SyntaxError"),
            ("import no_such_module_anywhere\n", "no_such_module_anywhere"),
        ],
    )
    def test_files_without_a_comparison(
        self, text: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "own.py").write_text(text)
        assert main(["run", str(tmp_path / "own.py")]) == 2
        err = capsys.readouterr().err
        assert expected in err
        assert err.count("\n") == 1

    def test_a_folder_of_another_comparison(
        self, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        output = tmp_path / "results"
        other = {"settings": {"comparison": "other", "source": "other"}, "identity": {}, "command": ""}
        output.mkdir()
        (output / "notes.txt").write_text("mine")
        assert main(["run", str(toy), "--output", str(output)]) == 2
        assert "holds other things" in capsys.readouterr().err
        (output / "comparison.json").write_text(json.dumps(other))
        assert main(["run", str(toy), "--output", str(output)]) == 2
        assert sorted(path.name for path in output.iterdir()) == ["comparison.json", "notes.txt"]

    def test_unknown_commands_and_folders(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for arguments, expected in {
            ("rnu",): "Did you mean `run`?",
            ("report", str(tmp_path)): "that `normlab run` wrote",
            ("list", "norms"): "no arguments",
        }.items():
            assert main(arguments) == 2
            err = capsys.readouterr().err
            assert expected in err
            assert err.count("\n") == 1


class TestHelp:
    def test_it_is_quick_because_it_imports_nothing_heavy(self) -> None:
        code = (
            "import sys; from normlab.study.cli import main; main(['--help']); main(['--version']); "
            "main(['run', '--help']); "
            "heavy = {'jax', 'flax', 'matplotlib', 'scipy', 'sklearn', 'rich', 'numpy'} & set(sys.modules); "
            "sys.exit(f'imported {heavy}' if heavy else 0)"
        )
        result = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)
        assert (result.returncode, result.stderr) == (0, "")
        assert "--dry-run" in result.stdout

    def test_help_of_a_comparison_shows_its_factor(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["run", "batch_size", "--help"]) == 0
        assert "--batch-sizes" in capsys.readouterr().out

    def test_list_names_comparisons_and_norms(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["list"]) == 0
        out = capsys.readouterr().out
        assert "How does test error depend on the batch?" in out
        assert "batch_renorm" in out


class TestRun:
    def test_dry_run_writes_nothing(
        self, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert main(["run", "toy.py", "--norms", "none,batch,instance", "--dry-run"]) == 0
        out = capsys.readouterr().out
        assert "6 cells, 2 of them invalid: 4 compiles and 40 runs" in out
        assert [path.name for path in tmp_path.iterdir()] == ["toy.py"]

    def test_a_run_ends_in_table_report_and_records(
        self, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        output = tmp_path / "out"
        arguments = ["run", str(toy), "--batch-sizes", "2", "--norms", "none", "rms", "--seeds", "2", "--jobs", "1"]
        assert main([*arguments, "--output", str(output)]) == 0
        out = capsys.readouterr().out
        assert "scalar      2  none:" in out
        assert "1 of 2 runs failed (RuntimeError: seed 1 always fails)" in out
        assert f"Report: {output / 'report.html'}" in out.replace("\n", "")
        assert len(list(output.glob("runs/??/*.json"))) == 16
        before = (output / "analysis.json").read_bytes()
        (output / "report.html").unlink()
        assert main(["report", str(output)]) == 0
        assert (output / "report.html").exists()
        assert (output / "analysis.json").read_bytes() == before

    def test_all_failed_is_code_1(self, toy: Path, tmp_path: Path) -> None:
        arguments = ["run", str(toy), "--norms", "group", "--batch-sizes", "2", "--jobs", "1"]
        assert main([*arguments, "--output", str(tmp_path / "out")]) == 1
        assert (tmp_path / "out" / "report.html").exists()

    def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(self, toy: Path, tmp_path: Path) -> None:
        toy.write_text(TOY.replace("PAUSE = 0.0", "PAUSE = 0.1"))
        output = tmp_path / "out"
        process = subprocess.Popen(
            command("run", toy, "--output", output, "--jobs", 2),
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        while process.poll() is None and len(list(output.glob("runs/??/*.json"))) < 3:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to parent and workers
        _, err = process.communicate(timeout=30)
        assert process.returncode == 130
        assert err.strip() == "normlab: Interrupted. Finished runs are kept; the same command goes on from there."
        assert json.loads((output / "comparison.json").read_text())["wall_seconds"] > 0
        assert 3 <= len(list(output.glob("runs/??/*.json"))) < 40
