"""The command line: what it accepts, what it refuses, and what it leaves behind."""

import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from normlab import norms, study
from normlab.cli.main import main
from normlab.cli.parser import run_parser, source_of
from normlab.errors import BadInput
from normlab.study.design import discovery
from normlab.study.design.comparison import Settings
from normlab.study.design.options import seconds_of
from normlab.study.design.records import EVALUATE, run_key
from normlab.study.design.request import Request, from_file, from_flags, from_python, to_toml
from normlab.study.design.shard import Shard
from normlab.study.driver.driver import UNFINISHED, ExecutionOptions, Invocation
from normlab.study.executors.local import Local
from normlab.study.worker.store import Store
from normlab.study.worker.strategy import Strategy
from tests.support.paths import ENVIRONMENT
from tests.support.toys import TOY


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "normlab", *map(str, arguments)]


INTERRUPTED_IN_A_FINALIZER = """
import os, signal, time

class Dying:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)

Dying()
time.sleep(30)
"""

BAD = {
    "unknown norm": (["batch_size", "--norms", "bach"], "Did you mean `batch`?"),
    "unknown option of a norm": (["batch_size", "--norms", "batch:momentun=0.9"], "'momentum'"),
    "unknown comparison": (["batch_sise"], "Did you mean `batch_size`?"),
    "missing file": (["nowhere/own.py"], "does not exist"),
    "unknown problem": (["batch_size", "--problems", "mpl"], "Did you mean `mlp`?"),
    "unknown tier": (["batch_size", "--tier", "quik"], "Did you mean `quick`?"),
    "misspelt option": (["batch_size", "--bacth-sizes", "2"], "Did you mean `--batch-sizes`?"),
    "abbreviated option": (["batch_size", "--see", "2"], "Did you mean `--seeds`?"),
    "groups that do not divide": (
        ["batch_size", "--norms", "group:num_groups=7", "--problems", "mlp", "--batch-sizes", "8"],
        "7",
    ),
    "batch larger than the training set": (
        ["batch_size", "--norms", "layer", "--problems", "mlp", "--batch-sizes", "2000"],
        "got 2000",
    ),
    "statistics over one element": (
        ["batch_size", "--norms", "batch", "--problems", "mlp", "--curves", "deployed", "--batch-sizes", "1"],
        "batch_size 1",
    ),
    "no norm that can be run": (["batch_size", "--norms", "instance", "--problems", "mlp"], "spatial"),
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
    "unknown curve": (["batch_size", "--curves", "isolate"], "Did you mean `isolated`?"),
    "values of a curve that is left out": (
        ["batch_size", "--curves", "deployed", "--ghost-batch-sizes", "8"],
        "only with its curve `isolated`",
    ),
    "an option twice": (["batch_size", "--seeds", "2", "--seeds=3"], "`--seeds` once, got it 2 times"),
    "an untuned rate that is none": (["batch_size", "--default-learning-rate", "0"], "number or `none`, got `0`"),
    "no tuning seeds": (["batch_size", "--tuning-seeds", "0"], "positive"),
    "a shard beyond the last": (["batch_size", "--shard", "3/2"], "got `3/2`"),
    "half a shard": (["batch_size", "--shard", "1"], "as in 1/2, got `1`"),
    "more shards than can be": (
        ["batch_size", "--shard", "1/9", "--problems", "mlp", "--batch-sizes", "8", "--curves", "deployed"],
        "at most 1 parts",
    ),
    "a duration without unit": (["batch_size", "--time-budget", "90"], "Write a number and its unit, as in `10min`."),
    "no time": (["batch_size", "--time-budget", "0s"], "got `0s`"),
    "missing configuration": (["batch_size", "--config", "my.toml"], "Cannot read `my.toml`"),
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

    def test_a_model_that_ignores_its_norm(self, toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
        toy.write_text(TOY.replace("1e-9 * sum(norm.name.encode())", "0.0"))
        assert main(["run", str(toy), "--norms", "none,batch,layer,instance"]) == 2
        out, err = capsys.readouterr()
        assert err.startswith("normlab: `scalar`: All norms give the same training program: the model does not use")
        assert (out, err.count("\n")) == ("", 1)
        assert main(["run", str(toy), "--norms", "batch", "--dry-run"]) == 0

    def test_a_folder_of_another_comparison(
        self, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        output = tmp_path / "results"
        other = {"settings": {"comparison": "other", "source": "other"}, "identity": {}, "command": ""}
        output.mkdir()
        (output / "notes.txt").write_text("mine")
        assert main(["run", str(toy), "--output", str(output)]) == 2
        assert "contains other files" in capsys.readouterr().err
        (output / "comparison.json").write_text(json.dumps(other))
        assert main(["run", str(toy), "--output", str(output)]) == 2
        assert sorted(path.name for path in output.iterdir()) == ["comparison.json", "notes.txt"]

    def test_unknown_commands_and_folders(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for arguments, expected in {
            ("rnu",): "Did you mean `run`?",
            ("report", str(tmp_path)): "that `normlab run` wrote",
            ("list", "all"): "tiers or nothing after `list`, got `all`",
        }.items():
            assert main(arguments) == 2
            err = capsys.readouterr().err
            assert expected in err
            assert err.count("\n") == 1


class TestHelp:
    def test_it_is_quick_because_it_imports_nothing_heavy(self) -> None:
        code = (
            "import sys; from normlab.cli.main import main; main(['--help']); main(['--version']); "
            "main(['run', '--help']); "
            "heavy = {'jax', 'flax', 'matplotlib', 'scipy', 'sklearn', 'rich', 'numpy'} & set(sys.modules); "
            "sys.exit(f'imported {heavy}' if heavy else 0)"
        )
        result = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)
        assert (result.returncode, result.stderr) == (0, "")
        assert "--dry-run" in result.stdout

    def test_help_of_a_comparison_shows_its_factors_and_exit_codes(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["run", "batch_size", "--help"]) == 0
        out = capsys.readouterr().out
        assert "--batch-sizes" in out
        assert "--ghost-batch-sizes" in out
        assert "3 if the time budget ended" in out

    def test_every_option_has_its_place_and_a_file_its_own(
        self, toy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "80")
        assert main(["run", "--help"]) == 0
        out = capsys.readouterr().out
        assert "`normlab run batch_size --help` shows those" in " ".join(out.split())
        assert max(map(len, out.splitlines())) <= 80
        headings = [line for line in out.splitlines() if line.endswith(":") and not line.startswith(" ")]
        assert headings == ["what is compared:", "how long, and how sure:", "where it runs:", "output:"]
        assert main(["run", str(toy), "--help"]) == 0
        out = capsys.readouterr().out
        own = out.partition("options of `toy`: its curves and data:\n")[2].partition("\n\n")[0]
        assert re.findall(r"^  (--[\w-]+)", own, re.M) == ["--batch-sizes", "--ghost-batch-sizes"]


def run_in_process(toy: Path, output: Path | None = None, **options: Any) -> study.Result:
    """What `normlab run` does, without worker processes."""
    comparison = discovery.load(str(toy))
    return study.run(comparison, output=output, progress=False, **options)


def invocation_of(toy: Path, output: Path, shard: Shard | None = None, **options: Any) -> Invocation:
    comparison = discovery.load(str(toy))
    settings = Request(comparison, from_python(options, comparison)).settings(str(toy))
    return Invocation(comparison, settings, output, "normlab run toy.py", shard)


ALONE = ExecutionOptions(strategy=Strategy(alone=True))


class TestConfiguration:
    def settings(self, toy: Path, *flags: str, config: str = "") -> Settings:
        comparison = discovery.load(str(toy))
        path = toy.with_suffix(".toml")
        path.write_text(config)
        given = from_file(str(path), comparison)
        parsed = run_parser(comparison).parse([str(toy), *flags])
        return Request(comparison, {**given, **from_flags(parsed, comparison)}).settings(str(toy))

    def test_default_then_file_then_flag(self, toy: Path) -> None:
        config = 'seeds = 7\nlearning-rates = [0.3, 1]\nbatch_sizes = [4]\nnorms = ["none", "group:num_groups=2"]\n'
        settings = self.settings(toy, "--seeds", "3", config=config)
        assert (settings.seeds, settings.tuning_seeds) == (3, 2)
        assert settings.learning_rates == (0.3, 1.0)
        assert settings.values == {"deployed": (4,), "isolated": (2, 4)}
        assert settings.norms == ("none", "group:num_groups=2")

    def test_every_setting_has_its_flag(self, toy: Path) -> None:
        flags = (
            "--tier quick --norms batch,group:num_groups=2,epsilon=0.001 --problems scalar --curves isolated deployed "
            "--batch-sizes 8 16 --ghost-batch-sizes 2,8 --learning-rates 1 0.1 --epochs 9 --tuning-seeds 5 --seeds 6 "
            "--no-extend --default-learning-rate 0.2"
        )
        assert self.settings(toy, *flags.split()) == Settings(
            comparison="toy",
            source=str(toy),
            tier="quick",
            problems=("scalar",),
            norms=("batch", "group:epsilon=0.001,num_groups=2"),
            curves=("isolated", "deployed"),
            values={"isolated": (2, 8), "deployed": (8, 16)},
            learning_rates=(0.1, 1.0),
            epochs=9,
            tuning_seeds=5,
            seeds=6,
            extend=False,
            default_learning_rate=0.2,
        )

    @pytest.mark.parametrize("rate", ["none", "0.05"])
    def test_settings_written_as_toml_come_back(self, toy: Path, rate: str) -> None:
        flags = ["--norms", "batch:epsilon=1e-12", "--curves", "isolated", "--default-learning-rate", rate]
        settings = self.settings(toy, *flags, "--learning-rates", "1e-7", "0.1")
        text = to_toml(settings, discovery.load(str(toy)))
        assert text.startswith(f"# normlab run {toy} --config THIS_FILE\n")
        assert self.settings(toy, config=text) == settings

    @pytest.mark.parametrize(
        ("config", "expected"),
        [
            ("seed = 3", "Unknown key `seed` in `toy.toml`. Did you mean `seeds`?"),
            ('seeds = "three"', "Expected `seeds` in `toy.toml` to be a positive whole number, got `three`."),
            ("seeds = 2.5", "Expected `seeds` in `toy.toml` to be a positive whole number, got 2.5."),
            ("seeds = true", "Expected `seeds` in `toy.toml` to be a positive whole number, got True."),
            ("epochs = [3]", "Expected `epochs` in `toy.toml` to be a positive whole number, got [3]."),
            ("learning_rates = 0.1", "Expected `learning_rates` in `toy.toml` to be a list, each a positive number"),
            ('norms = "batch"', "Expected `norms` in `toy.toml` to be a list, each a norm, got `batch`."),
            ("norms = []", "Expected `norms` in `toy.toml` to name at least one, got nothing."),
            ('extend = "no"', "Expected `extend` in `toy.toml` to be true or false, got `no`."),
            ("tuning-seeds = 1\ntuning_seeds = 2", "Expected `tuning_seeds` in `toy.toml` once"),
            ("seeds: 3", "Expected `toy.toml` to be TOML: "),
            ('curves = ["deployed"]\nghost_batch_sizes = [2]', "Expected `ghost_batch_sizes` in `toy.toml` only with"),
        ],
    )
    def test_what_is_wrong_is_named_with_its_file(
        self,
        config: str,
        expected: str,
        toy: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(toy.parent)
        Path("toy.toml").write_text(config)
        assert main(["run", "toy.py", "--config", "toy.toml"]) == 2
        out, err = capsys.readouterr()
        assert err.startswith(f"normlab: {expected}")
        assert (out, err.count("\n")) == ("", 1)
        assert sorted(path.name for path in toy.parent.iterdir()) == ["toy.py", "toy.toml"]

    @pytest.mark.parametrize(
        ("text", "seconds"),
        [("90s", 90), ("8m", 480), ("10min", 600), ("2h", 7200), ("1h30m", 5400), ("1 h 30 min", 5400), ("1.5m", 90)],
    )
    def test_durations(self, text: str, seconds: float) -> None:
        assert seconds_of(text) == seconds

    @pytest.mark.parametrize("text", ["90", "0s", "1h30", "30m1h", "1..5h", "-5m", "nan", "m"])
    def test_what_is_no_duration(self, text: str) -> None:
        with pytest.raises(ValueError, match=re.escape(text)):
            seconds_of(text)

    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            ("--seeds 2 my.py", "my.py"),
            ("my.py --seeds 2", "my.py"),
            ("--norms none rms my.py", "my.py"),
            ("--output batch_size my.py", "my.py"),
            ("--output batch_size --norms rms my.py", "my.py"),
            ("--output=batch_size --no-extend my.py", "my.py"),
            ("--norms layer online --tier smoke batch_size", "batch_size"),
            ("--norms online layer --tier smoke online", "online"),
            ("--batch-sizes 2 8 batch_size", "batch_size"),
            ("--batch-sizes 2 --output batch_size online", "online"),
            ("--norms batch layer batch_size", "batch_size"),
            ("--seeds 2 unknown", "unknown"),
        ],
    )
    def test_options_may_stand_before_the_comparison(self, line: str, expected: str) -> None:
        arguments = line.split()
        last = len(arguments) - 1 - arguments[::-1].index(expected)
        assert source_of(arguments) == (expected, arguments[:last] + arguments[last + 1 :])

    @pytest.mark.parametrize(
        "line",
        [
            "--norms batch online --tier smoke",
            "--output batch_size --norms batch",
            "--output batch_size",
            "--norms batch_size --batch-sizes distributed",
            "--norms one.py --batch-sizes two.py",
        ],
    )
    def test_a_value_of_an_option_is_no_comparison(self, line: str) -> None:
        with pytest.raises(BadInput, match=r"after `run`, got none\. Put it first"):
            source_of(line.split())


@pytest.mark.parametrize(
    ("given", "code", "expected"),
    [
        ("toy.py", 0, "toy.py --tier standard"),
        (
            "--norms none batch --output=out --tier quick --batch-sizes 2 toy.py",
            0,
            "toy.py --norms none batch --batch-sizes 2 --tier standard",
        ),
        ("toy.py --output out --seeds 3", 0, "toy.py --seeds 3 --tier standard"),
        ("toy.py --tier standard", 0, None),
        ("toy.py --shard 1/2", 0, None),
        ("toy.py", 1, None),
        ("toy.py", 3, None),
    ],
)
def test_a_finished_run_names_the_same_comparison_with_more_runs(
    given: str,
    code: int,
    expected: str | None,
    toy: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    quick = TOY[TOY.index("Tier(epochs") : TOY.rindex("},")]
    toy.write_text(TOY.replace(quick, f'{quick}, "standard": {quick}'))
    monkeypatch.chdir(toy.parent)
    monkeypatch.setattr("sys.argv", ["normlab"])
    monkeypatch.setattr(Invocation, "run", lambda *_, **__: code)
    assert main(["run", *given.split()]) == code
    more = re.findall(r"^More runs: \S*normlab run (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert more == ([] if expected is None else [expected])


class TestFiles:
    def test_what_lies_beside_a_file_and_is_imported_counts(self, toy: Path) -> None:
        (toy.parent / "layers.py").write_text("import deeper\nRATE = deeper.RATE\n")
        (toy.parent / "deeper.py").write_text("RATE = 0.5\n")
        (toy.parent / "other.py").write_text("not even Python\n")
        (toy.parent / "parts").mkdir()
        (toy.parent / "parts/__init__.py").write_text("")
        (toy.parent / "parts/one.py").write_text("")
        toy.write_text(TOY.replace("PAUSE = 0.0", "def late():\n    from parts import one\nfrom layers import RATE"))
        names = [str(path.relative_to(toy.parent)) for path in discovery.files(str(toy))]
        assert names == ["toy.py", "deeper.py", "layers.py", "parts/__init__.py", "parts/one.py"]

    def test_it_is_run_again_with_the_file(self, toy: Path) -> None:
        toy.write_text(f"import layers_of_toy\n{TOY}comparison = replace(comparison, title=layers_of_toy.TITLE)\n")
        toy.write_text("from dataclasses import replace\n" + toy.read_text())
        for title in ("one", "another"):
            (toy.parent / "layers_of_toy.py").write_text(f"TITLE = {title!r}\n")
            assert discovery.load(str(toy)).title == title

    def test_its_change_makes_new_runs(self, toy: Path, tmp_path: Path) -> None:
        beside = toy.parent / "beside.py"
        toy.write_text(f"import beside\n{TOY}")
        beside.write_text("A = 1\n")
        invocation = partial(invocation_of, toy, tmp_path / "out", norms=("none",), curves=("deployed",), extend=False)
        first = invocation().complete(ALONE)
        assert invocation().complete(ALONE).header.identity == first.header.identity
        beside.write_text("A = 2\n")
        assert not {r.key for r in invocation().complete(ALONE).records} & {r.key for r in first.records}

    @pytest.mark.parametrize(
        ("flag", "expected"),
        [
            ("--seeds", "to be its own, got"),
            ("--config", "to be its own, got"),
            ("--ghost-batch-sizes", "to be its own, got"),
            ("-b", "to be a flag of the command line, got `-b`"),
        ],
    )
    def test_the_flag_of_a_curve_is_its_own(
        self, flag: str, expected: str, toy: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        toy.write_text(TOY.replace('flag="--batch-sizes"', f'flag="{flag}"'))
        assert main(["run", str(toy)]) == 2
        assert expected in capsys.readouterr().err

    def test_a_file_may_register_norms_each_time_it_is_loaded(self, toy: Path) -> None:
        register = "norms.register(dataclasses.replace(norms.get('layer').entry, name='mine_alone'))"
        toy.write_text(f"import dataclasses\nfrom normlab import norms\n{register}\n{TOY}")
        for _ in range(2):
            discovery.load(str(toy))
        norms.unregister("mine_alone")


class TestShards:
    def test_parts_are_whole_groups_and_make_up_the_whole(self, toy: Path) -> None:
        plan = invocation_of(toy, toy, batch_sizes=(2, 4, 8, 16)).plan
        for parts in (1, 2, 3, 4):
            shards = [Shard(part, parts).configurations(plan) for part in range(1, parts + 1)]
            assert sum(map(len, shards)) == len(plan.configurations)
            assert frozenset().union(*shards) == set(plan.configurations)
            assert all(any(shard.issuperset(group) for shard in shards) for group in plan.groups)
            assert max(map(len, shards)) - min(map(len, shards)) <= max(map(len, plan.groups))

    @pytest.mark.slow
    def test_merged_shards_are_the_bytes_of_the_whole(
        self, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        invocation_of(toy, tmp_path / "whole").run(ALONE)
        for part in (1, 2):
            shard = Shard(part, 2)
            invocation_of(toy, tmp_path / f"part{shard.suffix}", shard).complete(ALONE)
        header = json.loads((tmp_path / "part.1of2/comparison.json").read_text())
        assert header["shard"] == "1/2"
        merge = ["merge", str(tmp_path / "part.2of2"), str(tmp_path / "part.1of2"), "--output", str(tmp_path / "all")]
        for _ in range(2):
            assert main(merge) == 0
            assert (tmp_path / "all/analysis.json").read_bytes() == (tmp_path / "whole/analysis.json").read_bytes()
        parts = [json.loads((tmp_path / f"part.{i}of2/comparison.json").read_text())["wall_seconds"] for i in (1, 2)]
        assert json.loads((tmp_path / "all/comparison.json").read_text())["wall_seconds"] == pytest.approx(sum(parts))

    def test_the_default_folder_names_the_part(self, toy: Path) -> None:
        comparison = discovery.load(str(toy))
        request = Request(comparison, from_python({"shard": "1/2"}, comparison))
        assert request.output(request.settings(str(toy))) == Path("results/toy-quick.1of2")

    def test_the_default_folder_names_the_data(self) -> None:
        comparison = discovery.load("batch_size")
        given = {
            "data": "tfds:mnist:3.0.1",
            "train_examples": 500,
            "augment": ["crop", "flip"],
            "data_dir": "/elsewhere",
        }
        request = Request(comparison, from_python(given, comparison))
        expected = Path("results/batch_size-quick-mnist-3.0.1-500-crop-flip")
        assert request.output(request.settings("batch_size")) == expected


class TestMerge:
    @pytest.fixture
    def folders(self, toy: Path, tmp_path: Path) -> tuple[Path, Path]:
        for name in ("a", "b"):
            invocation_of(toy, tmp_path / name, norms=("none",), extend=False).complete(ALONE)
        return tmp_path / "a", tmp_path / "b"

    def refused(self, capsys: pytest.CaptureFixture[str], *folders: Path) -> str:
        output = folders[0].parent / "all"
        assert main(["merge", *map(str, folders), "--output", str(output)]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert not output.exists()
        return err

    def change(self, path: Path, old: str, new: str) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    def test_the_same_runs_twice_are_one(self, folders: tuple[Path, Path], tmp_path: Path) -> None:
        assert main(["merge", *map(str, folders), "--output", str(tmp_path / "b")]) == 0
        assert len(Store(tmp_path / "b").records()) == len(Store(tmp_path / "a").records())

    def test_other_settings_and_versions_are_named(
        self, folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.change(folders[1] / "comparison.json", '"seeds": 4', '"seeds": 5')
        assert "`seeds` 4 in" in self.refused(capsys, *folders)
        self.change(folders[1] / "comparison.json", '"seeds": 5', '"seeds": 4')
        self.change(folders[1] / "comparison.json", '"python": "3', '"python": "2')
        assert "`versions python` 3" in self.refused(capsys, *folders)

    def test_a_run_with_two_results_is_named(
        self, folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        store = Store(folders[1])
        record = store.records()[0]
        store.add(replace(record, metrics={**record.metrics, "validation": 0.123}))
        err = self.refused(capsys, *folders)
        assert "`validation`" in err
        assert "0.123" in err
        assert record.key[:12] in err

    def test_what_another_try_mended_is_taken(self, folders: tuple[Path, Path], tmp_path: Path) -> None:
        store = Store(folders[1])
        record = store.records()[0]
        Store(folders[0]).add(record)
        store.add(replace(record, status="oom", reason="killed", metrics={"validation": None}))
        assert main(["merge", *map(str, folders), "--output", str(tmp_path / "both")]) == 0
        assert record in Store(tmp_path / "both").records()

    def test_a_damaged_run_is_named(self, folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
        path = sorted(folders[1].glob("runs/??/*.json"))[0]
        path.write_text(path.read_text().replace('"ok"', '"OK"'))
        assert str(path) in self.refused(capsys, *folders)

    def test_what_is_no_folder_of_runs_is_refused(
        self, folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert "that `normlab run` wrote" in self.refused(capsys, folders[0], tmp_path / "nowhere")


@pytest.fixture(scope="module")
def verified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that worker processes filled."""
    toy = tmp_path_factory.mktemp("verify") / "toy.py"
    toy.write_text(TOY)
    invocation = invocation_of(toy, toy.with_name("out"), norms=("none",), curves=("deployed",), batch_sizes=(2,))
    invocation.complete(ExecutionOptions(executor=Local(1)))
    return toy.with_name("out")


class TestVerify:
    def test_the_same_numbers(self, verified: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["verify", str(verified), "--trust"]) == 0
        out = capsys.readouterr().out
        assert "evaluate, seed" in out
        assert out.endswith("Equal, bit by bit.\n")

    def test_other_numbers_and_other_conditions(
        self, verified: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        copy = shutil.copytree(verified, tmp_path / "copy")
        record = next(record for record in Store(copy).records() if record.run.stage == EVALUATE)
        number = record.metrics["test"]
        assert number is not None
        record = replace(record, metrics={**record.metrics, "test": math.nextafter(number, 1)})
        Store(copy).add(record)
        assert main(["verify", str(copy), "--trust", "--run", record.key[:20]]) == 1
        out = capsys.readouterr().out
        assert repr(number) in out
        assert repr(math.nextafter(number, 1)) in out
        assert "Different, where code, versions, machine and data are the same." in out
        other = {**record.identity, "versions": {**record.identity["versions"], "jax": "0.0.1"}}
        key = run_key(record.run, other)
        Store(copy).add(replace(record, key=key, identity=other))
        assert main(["verify", str(copy), "--trust", "--run", key]) == 0
        out = capsys.readouterr().out
        assert "versions jax was 0.0.1, is 0" in out
        assert "equal bits cannot be expected" in out

    def test_one_run_must_be_meant(self, verified: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["verify", str(verified), "--run", "xyz"]) == 2
        assert "which fits 0" in capsys.readouterr().err


class TestPython:
    def test_a_result_has_everything_and_nothing_is_written(
        self, toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(toy.parent)
        result = run_in_process(toy, norms=["none", "batch"], batch_sizes=[2], seeds=3)
        assert capsys.readouterr().out == ""
        assert os.listdir() == ["toy.py"]
        assert result.settings.values["deployed"] == (2,)
        assert {record.status for record in result.records} == {"ok"}
        assert "one number" in result.table()
        assert len(result.rows()) == 6
        assert str(result.recommend())
        assert len(result.plot().axes) >= 2
        assert result.report(toy.parent / "report").read_text().count("study.run(comparison, ")

    def test_it_goes_on_with_the_same_object_where_there_is_an_output(self, toy: Path, tmp_path: Path) -> None:
        def run(comparison: study.Comparison, seeds: int) -> dict[Path, bytes]:
            study.run(comparison, output=tmp_path / "out", seeds=seeds, progress=False)
            return {path: path.read_bytes() for path in tmp_path.glob("out/runs/??/*.json")}

        comparison = discovery.load(str(toy))
        before = run(comparison, seeds=2)
        after = run(comparison, seeds=3)
        assert len(after) == len(before) + 5
        assert before.items() <= after.items()
        assert len(run(discovery.load(str(toy)), seeds=2)) == len(after) + len(before)

    def test_what_is_wrong_is_said(self, toy: Path) -> None:
        for options, expected in {
            ("sedes", 3): "Unknown argument `sedes`. Did you mean `seeds`?",
            ("seeds", 0): "Expected `seeds` to be a positive whole number, got 0.",
            ("norms", "batch"): "Expected `norms` to be a list",
        }.items():
            with pytest.raises(BadInput, match=expected):
                run_in_process(toy, **dict([options]))

    @pytest.mark.slow
    def test_files_run_in_workers_and_scripts_need_their_guard(self, toy: Path, tmp_path: Path) -> None:
        call = "study.run('toy.py', norms=['none'], curves=['deployed'], extend=False, progress=False)"
        scripts = {
            "guarded": f"from normlab import study\nif __name__ == '__main__':\n    print(len({call}.records))\n",
            "bare": f"from normlab import study\n{call}\n",
        }
        results = {}
        for name, script in scripts.items():
            path = tmp_path / f"{name}.py"
            path.write_text(script)
            results[name] = subprocess.run(
                [sys.executable, path], env=ENVIRONMENT, cwd=tmp_path, capture_output=True, text=True
            )
        assert (results["guarded"].stdout, results["guarded"].stderr) == ("20\n", "")
        assert results["bare"].returncode == 1
        assert results["bare"].stderr.endswith('under `if __name__ == "__main__":`: workers import the script again.\n')


class TestRun:
    def test_dry_run_writes_nothing(
        self, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert main(["run", "toy.py", "--norms", "none,batch,instance", "--dry-run"]) == 0
        out = capsys.readouterr().out
        assert "3 norms on scalar; batch size 2, 4; ghost batch size 2, 4: 5 programs, about 50 runs." in out
        assert " s with 2 workers, by the size of programs." in out
        assert "Not run, 2 configurations: `instance` needs spatial axes, and activations of `scalar` have none." in out
        assert "can support no recommendation, which takes 5, or 36 to be sure, and 29 to call norms equivalent." in out
        assert [path.name for path in tmp_path.iterdir()] == ["toy.py"]

    def test_a_run_ends_in_table_report_and_records(
        self, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        output = tmp_path / "out"
        arguments = ["run", str(toy), "--batch-sizes", "2", "--norms", "none", "rms", "--seeds", "2", "--jobs", "1"]
        assert main([*arguments, "--curves", "deployed", "--no-extend", "--output", str(output)]) == 0
        out = capsys.readouterr().out
        assert out.index("2 seeds can support no recommendation, which takes 5") < out.index("scalar  deployed ")
        assert "scalar  deployed     2  none: test error" in out
        assert "1 of 2 runs failed (RuntimeError: seed 1 always fails)" in out
        assert f"Report: {output / 'report.html'}" in out.replace("\n", "")
        assert len(list(output.glob("runs/??/*.json"))) == 16
        before = (output / "analysis.json").read_bytes()
        (output / "report.html").unlink()
        assert main(["report", str(output)]) == 0
        assert (output / "report.html").exists()
        assert (output / "analysis.json").read_bytes() == before

    def test_all_failed_is_code_1(self, toy: Path, tmp_path: Path) -> None:
        arguments = ["run", str(toy), "--norms", "group", "--curves", "deployed", "--batch-sizes", "2", "--jobs", "1"]
        assert main([*arguments, "--output", str(tmp_path / "out")]) == 1
        assert (tmp_path / "out" / "report.html").exists()

    @pytest.mark.slow
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
        assert err.strip() == "normlab: Interrupted. Finished runs are kept; the same command resumes from there."
        assert json.loads((output / "comparison.json").read_text())["wall_seconds"] > 0
        assert 3 <= len(list(output.glob("runs/??/*.json"))) < 50

    @pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
    def test_ctrl_c_while_a_finalizer_runs_is_not_lost(self, tmp_path: Path) -> None:
        path = tmp_path / "finalizer.py"
        path.write_text(INTERRUPTED_IN_A_FINALIZER)
        ended = subprocess.run(command("run", path), env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
        assert ended.stderr == "normlab: Interrupted. Finished runs are kept; the same command resumes from there.\n"
        assert ended.returncode == 130

    def test_a_grid_that_grows_is_announced_with_its_reason(self, toy: Path, tmp_path: Path) -> None:
        console = Console(file=io.StringIO(), width=200)
        invocation = invocation_of(toy, tmp_path / "out", norms=("none",))
        replace(invocation, console=console).complete(ALONE)
        out = console.file.getvalue()
        assert "scalar  deployed 2: the grid grows by 3 and 9 (none best at 0.3)\n" in out
        assert "scalar  deployed 4, isolated 2 4: the grid grows by 3 and 9 (none best at 0.3)\n" in out
        assert out.count("[  2/2]") == 1

    def test_a_time_budget_stops_between_runs_and_says_how_to_go_on(
        self, toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr("normlab.study.driver.driver.monotonic", count().__next__)  # a second each time it is asked
        invocation = invocation_of(toy, tmp_path / "out", norms=("none",))
        assert invocation.run(replace(ALONE, time_budget=12.0)) == UNFINISHED
        there = len(invocation.store.records())
        assert 0 < there < 12
        stopped = f"Stopped by the time budget: {there} of about 24 runs are done. The same command resumes from there."
        assert stopped in capsys.readouterr().out
        assert (tmp_path / "out/report.html").exists()
        assert invocation.run(ALONE) == 0
        assert "Stopped" not in capsys.readouterr().out
        assert len(invocation.store.records()) == 28

    def test_failed_runs_are_tried_again_when_asked(self, toy: Path, tmp_path: Path) -> None:
        invocation = partial(invocation_of, toy, tmp_path / "out", norms=("rms", "group"), curves=("deployed",))
        first = {record.run: record for record in invocation(batch_sizes=(2,)).complete(ALONE).records}
        assert {record.status for record in first.values()} == {"ok", "error", "diverged"}
        again = {record.run: record for record in invocation(batch_sizes=(2,)).complete(ALONE).records}
        assert again == first
        retried = invocation(batch_sizes=(2,)).complete(replace(ALONE, retry_failed=True))
        changed = {record.run.seed for record in retried.records if record.cost != first[record.run].cost}
        assert changed == {1}
        assert {record.run: record.status for record in retried.records} == {r: first[r].status for r in first}

    def test_report_while_a_run_goes_on(self, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        invocation = invocation_of(toy, tmp_path / "out", norms=("none",))
        full = invocation.complete(ALONE)
        store = Store(tmp_path / "out")
        shutil.rmtree(tmp_path / "out/runs")
        capsys.readouterr()
        with store.writing():
            assert main(["report", str(tmp_path / "out")]) == 0
            assert capsys.readouterr().out == "No run has finished yet.\n"
            for record in full.records[:9]:
                store.add(record)
            assert main(["report", str(tmp_path / "out")]) == 0
        assert "still missing" in capsys.readouterr().out
