"""Folders that others may have written: no code of theirs runs, and whatever is wrong with them is one line."""

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from normlab import study
from normlab.cli.main import main
from normlab.study.design import discovery, schema
from normlab.study.design.records import content_key
from normlab.study.design.request import Request, from_python
from normlab.study.driver.driver import ExecutionOptions, Invocation
from normlab.study.worker.run_files import RECORD_BYTES
from normlab.study.worker.store import HEADER_BYTES, Store
from normlab.study.worker.strategy import Strategy
from tests.support.toys import TOY

Edit = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs and no report, as a comparison from a file makes it."""
    toy = tmp_path_factory.mktemp("made") / "toy.py"
    toy.write_text(TOY)
    comparison = discovery.load(str(toy))
    given = {"norms": ["none", "batch"], "curves": ["deployed"], "batch_sizes": [2], "seeds": 3, "extend": False}
    settings = Request(comparison, from_python(given, comparison)).settings(str(toy))
    Invocation(comparison, settings, toy.with_name("out"), "normlab run").complete(
        ExecutionOptions(strategy=Strategy(alone=True))
    )
    return toy.with_name("out")


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "out")


def one_line(capsys: pytest.CaptureFixture[str], folder: Path, *commands: str) -> dict[str, str]:
    """What each command says of a folder that it refuses."""
    toy, said = folder.parent / "own.py", {}
    toy.write_text(TOY)
    for command in commands:
        arguments = {
            "run": ["run", str(toy), "--output", str(folder)],
            "merge": ["merge", str(folder), "--output", str(folder.parent / "all")],
        }.get(command, [command, str(folder)])
        capsys.readouterr()
        assert main(arguments) == 2
        out, said[command] = capsys.readouterr()
        assert (out, said[command].count("\n")) == ("", 1)
        assert len(said[command]) < 1000
    assert not (folder / "report.html").exists()
    assert not (folder.parent / "all").exists()
    return said


class TestTrust:
    """`report`, `merge` and `verify` run no file that a folder names unless they are told to."""

    @pytest.fixture
    def trap(self, made: Path, folder: Path) -> Path:
        """The folder, whose comparison's file is another now; it leaves a marker when it is run."""
        path, marker = folder.parent / "trap.py", folder.parent / "marker"
        path.write_text(f"{TOY}\nopen({str(marker)!r}, 'w').close()\n")
        header = json.loads((folder / "comparison.json").read_text())
        header["settings"]["source"] = str(path)
        (folder / "comparison.json").write_text(json.dumps(header))
        return folder

    def test_a_report_and_a_merge_need_no_code(self, trap: Path, made: Path, tmp_path: Path) -> None:
        assert main(["report", str(trap)]) == 0
        assert main(["merge", str(trap), "--output", str(tmp_path / "all")]) == 0
        assert (tmp_path / "all/analysis.json").read_bytes() == (trap / "analysis.json").read_bytes()
        (tmp_path / "trap.py").unlink()
        assert main(["report", str(trap)]) == 0
        assert not (tmp_path / "marker").exists()

    def test_verify_asks_first_and_says_whether_the_file_has_changed(
        self, trap: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        said = one_line(capsys, trap, "verify")["verify"]
        assert f"Expected `--trust`, since this would run `{tmp_path / 'trap.py'}` (which is not as it was" in said
        header = json.loads((trap / "comparison.json").read_text())
        header["settings"]["source"] = str(tmp_path / "toy.py")
        (trap / "comparison.json").write_text(json.dumps(header))
        (tmp_path / "toy.py").write_text(TOY)
        assert "(as it was recorded)" in one_line(capsys, trap, "verify")["verify"]
        assert not (tmp_path / "marker").exists()

    def test_with_trust_it_runs(self, trap: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w').close()\n")
        assert main(["verify", str(trap), "--trust"]) == 2
        assert "to define `comparison" in capsys.readouterr().err
        assert (tmp_path / "marker").exists()

    def test_names_of_files_import_nothing(self, trap: Path, tmp_path: Path) -> None:
        header = json.loads((trap / "comparison.json").read_text())
        (trap / "evil").mkdir()
        (trap / "evil/__init__.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w').close()\n")
        header["identity"]["code"] = {"normlab": "0" * 64, "comparison": {"evil.module": "0" * 64, "../x.py": "0" * 64}}
        (trap / "comparison.json").write_text(json.dumps(header))
        key = next((trap / "runs").glob("*/*.json")).stem
        done = subprocess.run(
            [sys.executable, "-m", "normlab", "verify", ".", "--run", key],
            cwd=trap,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2 and "Expected `--trust`" in done.stderr
        assert not (tmp_path / "marker").exists()

    def test_a_comparison_by_name_needs_no_trust(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        header = json.loads((folder / "comparison.json").read_text())
        header["settings"]["source"] = "batch_size"
        (folder / "comparison.json").write_text(json.dumps(header))
        assert main(["verify", str(folder)]) == 2
        err = capsys.readouterr().err
        assert "to be part of `toy`, which has changed since" in err
        assert err.count("\n") == 1

    def test_a_report_from_a_folder_is_that_of_the_run(self, toy: Path, tmp_path: Path) -> None:
        text = "from normlab import norms\nimport dataclasses\n"
        text += "mine = dict(name='mine', title='my own norm', colour='#123456')\n"
        text += "norms.register(dataclasses.replace(norms.get('layer').entry, **mine))\n"
        toy.write_text(f"{text}{TOY}")
        comparison = discovery.load(str(toy))
        settings = Request(comparison, from_python({"norms": ["batch", "mine"], "seeds": 2}, comparison)).settings(
            str(toy)
        )
        invocation = Invocation(comparison, settings, tmp_path / "out", "normlab run")
        assert invocation.run(ExecutionOptions(strategy=Strategy(alone=True))) == 0
        files = [tmp_path / "out/report.html", *(tmp_path / "out/tables").iterdir(), tmp_path / "out/analysis.json"]
        before = {path: path.read_bytes() for path in files}
        assert b"my own norm" in before[files[0]] and b"#123456" in before[files[0]]
        discovery.load(str(_plain(toy)))  # which forgets the norm
        assert main(["report", str(tmp_path / "out")]) == 0
        assert {path: path.read_bytes() for path in files} == before

    def test_a_report_of_an_object_that_lived_in_another_process(
        self, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        comparison = discovery.load(str(toy))
        study.run(comparison, norms=["none"], curves=["deployed"], seeds=2, output=tmp_path / "out", progress=False)
        assert main(["report", str(tmp_path / "out")]) == 0
        capsys.readouterr()
        assert main(["verify", str(tmp_path / "out"), "--trust"]) == 2
        assert "got one of an object in a Python process" in capsys.readouterr().err

    def test_a_folder_of_an_earlier_version(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        header = json.loads((folder / "comparison.json").read_text())
        del header["described"]
        (folder / "comparison.json").write_text(json.dumps(header))
        for said in one_line(capsys, folder, "report", "merge", "verify").values():
            assert "one of an earlier version of normlab. Run the command that made the folder again" in said
        Store(folder).check("toy")  # which that command can


def _plain(toy: Path) -> Path:
    toy.write_text(TOY)
    return toy


def put(*path: str | int, value: Any) -> Edit:
    """Replace what is at a place."""

    def edit(header: dict[str, Any]) -> None:
        at: Any = header
        for part in path[:-1]:
            at = at[part]
        at[path[-1]] = value

    return edit


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def without(name: str) -> Edit:
    return lambda header: header.pop(name)


def as_text(edit: Callable[[str], str | bytes]) -> Edit:
    """Change the text of the whole file."""
    return lambda header: edit(json.dumps(header))


HEADERS: dict[str, Edit] = {
    "a number": lambda header: "1",
    "null": lambda header: "null",
    "a list": lambda header: "[]",
    "nothing": lambda header: b"",
    "half of it": as_text(lambda text: text[: len(text) // 2]),
    "no UTF-8": as_text(lambda text: b"\xff\xfe" + text.encode("utf-16-le")),
    "nested 200,000 deep": lambda header: nested(200_000),
    "nested within": as_text(lambda text: text.replace('"command": "normlab run"', f'"command": {nested(900)}')),
    "too large": lambda header: b" " * (HEADER_BYTES + 1),
    "NaN": as_text(lambda text: text.replace('"wall_seconds": ', '"wall_seconds": NaN, "x": ')),
    "an infinity": as_text(lambda text: text.replace('"wall_seconds": ', '"wall_seconds": 1e999, "x": ')),
    "a number of 5,000 digits": as_text(lambda text: text.replace('"seeds": 3', f'"seeds": {"9" * 5000}')),
    "no settings": without("settings"),
    "no identity": without("identity"),
    "an unknown name": put("<script>", value=1),
    "settings that are null": put("settings", value=None),
    "settings that are a list": put("settings", value=[]),
    "an identity that is a list": put("identity", value=[]),
    "an identity whose data are a number": put("identity", "data", value=3),
    "a command that is a number": put("command", value=7),
    "negative seconds": put("wall_seconds", value=-1),
    "no seeds": put("settings", "seeds", value=0),
    "negative seeds": put("settings", "seeds", value=-3),
    "1e308 seeds": put("settings", "seeds", value=1e308),
    "a billion seeds": put("settings", "seeds", value=10**9),
    "a billion tuning seeds": put("settings", "tuning_seeds", value=10**9),
    "a million tuning seeds": put("settings", "tuning_seeds", value=10**6),
    "seeds in words": put("settings", "seeds", value="three"),
    "half an epoch": put("settings", "epochs", value=0.5),
    "extend that is text": put("settings", "extend", value="no"),
    "no norms": put("settings", "norms", value=[]),
    "a norm twice": put("settings", "norms", value=["none", "none"]),
    "norms that are text": put("settings", "norms", value="none"),
    "a norm that is null": put("settings", "norms", value=[None]),
    "a norm that is not described": put("settings", "norms", value=["none", "layer"]),
    "no values": put("settings", "values", value={}),
    "a value twice": put("settings", "values", "deployed", value=[2, 2]),
    "more values than described": put("settings", "values", "deployed", value=[2, 4]),
    "a curve that is not described": put("settings", "curves", value=["isolated"]),
    "an infinite learning rate": put("settings", "learning_rates", value=[1e308]),
    "a negative learning rate": put("settings", "learning_rates", value=[-0.1]),
    "a million learning rates": put("settings", "learning_rates", value=[*range(1, 1_000_000)]),
    "a very long name": put("settings", "comparison", value="x" * 100_000),
    "control characters": put("described", "title", value="\x1b[2J"),
    "half a character": put("described", "title", value="\ud800"),
    "a description that is text": put("described", value="all"),
    "a margin that is negative": put("described", "margin", value=-1),
    "a metric that is null": put("described", "problems", 0, "metric", value=None),
    "a metric without margin": put("described", "problems", 0, "metric", "percent", value=False),
    "a factor that is a number": put("described", "curves", 0, "factor", value=3),
    "no configurations": put("described", "cells", value=[]),
    "a place without configuration": put("described", "places", value=[0, 7]),
    "a negative place": put("described", "places", value=[0, -1]),
    "places exchanged": put("described", "places", value=[1, 0]),
    "a configuration of another problem": put("described", "cells", 0, "problem", value="../../x"),
    "a configuration of objects": put("described", "cells", 0, "config", value={"a": {}}),
    "a colour that is code": put("described", "looks", value={"none": ["red;}</style>", "o"]}),
    "a marker that is unknown": put("described", "looks", value={"none": ["#0072b2", "$x$"]}),
    "a look that is text": put("described", "looks", value={"none": "#0072b2"}),
    "a curve twice": lambda header: header["described"]["curves"].append(header["described"]["curves"][0]),
}


class TestHeaders:
    @pytest.mark.parametrize("case", HEADERS)
    def test_each_command_says_in_one_line_what_is_wrong(
        self, case: str, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = folder / "comparison.json"
        header = json.loads(path.read_text())
        text = HEADERS[case](header)
        content = text if isinstance(text, str | bytes) and not isinstance(text, dict) else json.dumps(header)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        runs = {path: path.read_bytes() for path in folder.glob("runs/??/*")}
        for said in one_line(capsys, folder, "report", "run", "merge", "verify").values():
            assert said.startswith(f"normlab: Expected `{path}` to be what this version of normlab writes, got ")
        assert {path: path.read_bytes() for path in folder.glob("runs/??/*")} == runs

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
    def test_what_is_no_file_is_not_read(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (folder / "comparison.json").unlink()
        os.mkfifo(folder / "comparison.json")
        assert "Expected a folder that `normlab run` wrote" in one_line(capsys, folder, "report")["report"]

    def test_names_and_titles_stand_in_the_report_as_they_are(self, folder: Path) -> None:
        path, evil = folder / "comparison.json", "<script>alert(1)</script> $\\frac{ \"' %s {{ 7 * 7 }} \u202e"
        header = json.loads(path.read_text())
        described = header["described"]
        for name in ("title", "question", "baseline"):
            described[name] = f"{name} {evil}"
        described["fixed"], header["about"], header["command"] = [evil], {"scalar": evil}, evil
        described["titles"] = dict.fromkeys(described["titles"], evil)
        described["problems"][0]["title"] = evil
        described["problems"][0]["metric"]["name"] = evil
        described["curves"][0] |= {"title": evil, "shows": evil, "hides": evil}
        described["curves"][0]["factor"] |= {"name": evil, "label": evil}
        header["settings"]["options"] = {evil: evil}
        path.write_text(json.dumps(header))
        assert main(["report", str(folder)]) == 0
        page = (folder / "report.html").read_text()
        assert "<script>alert" not in page
        assert page.count("<script") == 1
        assert "&lt;script&gt;alert(1)" in page

    def test_names_that_are_paths_stay_in_the_folder(self, folder: Path) -> None:
        evil, path = "../../../evil", folder / "comparison.json"
        header = json.loads(path.read_text().replace('"deployed"', f'"{evil}"'))
        path.write_text(json.dumps(header))
        assert main(["report", str(folder)]) == 0
        assert (folder / "figures/error-scalar-..-..-..-evil.svg").is_file()
        assert not list(folder.parent.rglob("evil*"))


def damaged(edit: Edit) -> Callable[[Path], bytes]:
    """A record whose hash is right again after a change."""

    def content(path: Path) -> bytes:
        fields = json.loads(path.read_text())
        del fields["sha256"]
        edit(fields)
        return json.dumps({**fields, "sha256": content_key(fields)}).encode()

    return content


RECORDS: dict[str, Callable[[Path], bytes]] = {
    "nothing": lambda path: b"",
    "null": lambda path: b"null",
    "a list": lambda path: b"[]",
    "nested 200,000 deep": lambda path: nested(200_000).encode(),
    "no UTF-8": lambda path: b"\xff\xfe\x00",
    "too large": lambda path: b" " * (RECORD_BYTES + 1),
    "NaN": lambda path: path.read_bytes().replace(b'"seed": ', b'"seed": NaN, "x": '),
    "nested in the metrics": damaged(put("metrics", "validation", value=json.loads(nested(400)))),
    "a status that is none": damaged(put("status", value="excellent")),
    "a status that is a list": damaged(put("status", value=["ok"])),
    "an error that is text": damaged(put("metrics", "validation", value="0.1")),
    "an error of 1e308": damaged(put("metrics", "validation", value=1e308)),
    "metrics that are null": damaged(put("metrics", value=None)),
    "a negative time": damaged(put("cost", "run", value=-1)),
    "a time that is text": damaged(put("cost", "run", value="long")),
    "a series that is a number": damaged(put("series", "a", value=3)),
    "a negative seed": damaged(put("run", "seed", value=-1)),
    "another stage": damaged(put("run", "stage", value="admire")),
    "a problem that is a list": damaged(put("run", "cell", "problem", value=[])),
    "a configuration that is null": damaged(put("run", "cell", "config", value=None)),
    "an identity that is text": damaged(put("identity", value="me")),
    "a reason with control characters": damaged(put("reason", value="\x1b]0;title\x07")),
    "an unknown name": damaged(put("more", value=1)),
}


class TestRecords:
    @pytest.mark.parametrize("case", RECORDS)
    def test_it_is_named_and_the_report_of_the_others_is_made(
        self, case: str, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = min(folder.glob("runs/??/*.json"))
        path.write_bytes(RECORDS[case](path))
        capsys.readouterr()
        assert main(["report", str(folder)]) == 0
        out, err = capsys.readouterr()
        assert f"Left out `{path}`" in out
        assert err == ""
        assert (folder / "report.html").exists()
        assert main(["merge", str(folder), "--output", str(folder.parent / "all")]) == 2
        err = capsys.readouterr().err
        assert str(path) in err
        assert err.count("\n") == 1

    def test_series_of_another_shape_are_left_out(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        header = json.loads((folder / "comparison.json").read_text())
        series = {"name": "s", "title": "S", "x_label": "", "y_label": "", "x": [1, 2], "shows": ""}
        series |= dict.fromkeys(("log", "log_x", "during", "at_end"), False)
        header["described"]["problems"][0]["series"] = [series]
        (folder / "comparison.json").write_text(json.dumps(header))
        shapes = {0: [[1.0, 2.0]] * 5, 1: [[1.0, 2.0]] * 4, 2: [[1.0]] * 5}
        for path in folder.glob("runs/??/*.json"):
            fields = json.loads(path.read_text())
            if fields["run"]["stage"] == "evaluate":
                path.write_bytes(damaged(put("series", "s", value=shapes[fields["run"]["seed"]]))(path))
        assert main(["report", str(folder)]) == 0
        assert "4 of 18 runs are still missing" in (folder / "report.html").read_text()
        assert "series-scalar-s.csv" in (folder / "report.html").read_text()
        assert main(["merge", str(folder), "--output", str(folder.parent / "all")]) == 2
        assert "to have the series of `scalar`, got others" in capsys.readouterr().err


class TestSchema:
    def test_places_are_named_and_values_cut_short(self) -> None:
        check = schema.fields({"a": schema.listed(schema.fields({"b": schema.whole(1, 3)}), 5)})
        assert check({"a": [{"b": 3}]}) == {"a": ({"b": 3},)}
        for value, said in {
            4: "a[1].b: expected a whole number from 1 to 3, got 4",
            True: "a[1].b: expected a whole number from 1 to 3, got true",
            "x" * 100: f'a[1].b: expected a whole number from 1 to 3, got "{"x" * 56}...',
        }.items():
            with pytest.raises(schema.Malformed) as caught:
                check({"a": [{"b": 1}, {"b": value}]})
            assert str(caught.value) == said

    def test_a_file_of_a_million_zeros_is_not_a_number(self, tmp_path: Path) -> None:
        path = tmp_path / "x.json"
        path.write_text("1" + "0" * 1_000_000)
        with pytest.raises(schema.Malformed):
            schema.read_json(path, 2**21)
        assert stat.S_ISREG(path.stat().st_mode)
