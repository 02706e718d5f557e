"""`normlab doctor`: exit codes, files, options, and one sentence for whatever cannot be examined."""

import inspect
import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from normlab import doctor
from normlab.cli.main import main
from normlab.doctor import Report
from tests.doctor.reports import BIAS, HEALTHY, LAG, SICK, report
from tests.support.paths import ENVIRONMENT

Kept = dict[str, Any]

FILE = """
import numpy as np
from flax import linen as nn
from flax import nnx


def build():
    print("a line of the user's")
    return {"model": nn.Dense(3), "batches": [np.ones((4, 2), np.float32)] * 3}


def ignoring():
    return {**build(), "ignore": ["NL101"]}


def ignoring_text():
    return {**build(), "ignore": "NL101, NL102"}


def stepping():
    return {**build(), "step": lambda state, batch: state, "state": 1, "limit": 3}


def labelled():
    return {"model": nn.Dense(3), "batches": iter([({"x": np.ones((4, 2))}, np.ones(4, int), "cats")])}


def empty():
    return {"model": nn.Dense(3)}


def alone():
    return nn.Dense(3)


def pair():
    return nn.Dense(3), np.ones((4, 2))


def inputs():
    return {"model": nn.Dense(3), "args": (np.ones((4, 2)),)}


def no_model():
    return {"model": len, "batches": []}


def misspelt():
    return {"model": nn.Dense(3), "batch": []}


def failing():
    raise RuntimeError("no data.\\nhere")


def leaving():
    raise SystemExit
"""

DICT = 'Write `return {"model": model, "variables": variables, "batches": batches}`.'


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    """Examine nothing: keep the keywords, and return the report that the test puts under `report`."""
    kept: Kept = {"report": HEALTHY}
    signature = inspect.signature(doctor.examine)

    def examine(**keywords: Any) -> Report:
        kept.update(keywords)
        if isinstance(kept["report"], BaseException):
            raise kept["report"]
        return kept["report"]

    examine.__signature__ = signature  # pyright: ignore[reportFunctionMemberAccess]
    monkeypatch.setattr(doctor, "examine", examine)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("NORMLAB_DOCTOR_IGNORE", raising=False)
    Path("net.py").write_text(FILE)
    return kept


@pytest.mark.parametrize(
    ("found", "options", "code"),
    [
        (HEALTHY, "", 0),
        (report([BIAS]), "", 0),
        (report([LAG]), "", 1),
        (SICK, "", 1),
        (SICK, "--fail-on error", 1),
        (SICK, "--fail-on never", 0),
        (report([LAG]), "--fail-on error", 0),
        (report([LAG]), "--fail-on warning", 1),
        (report([BIAS]), "--fail-on note", 1),
        (HEALTHY, "--fail-on note", 0),
    ],
)
def test_the_exit_code_is_that_of_the_worst_finding(
    given: Kept, capsys: pytest.CaptureFixture[str], found: Report, options: str, code: int
) -> None:
    given["report"] = found
    assert main(["doctor", "net.py:build", *options.split()]) == code
    out, err = capsys.readouterr()
    assert out == found.table(100) and err == "a line of the user's\n"


def test_what_the_function_returns_is_examined(given: Kept) -> None:
    assert main(["doctor", "net.py"]) == 0
    assert set(given) == {"report", "model", "batches", "ignore"}
    assert len(given["batches"]) == 3 and given["ignore"] == []


@pytest.mark.parametrize(
    ("source", "variable", "option", "expected"),
    [
        ("ignoring", "NL102", "NL206@head*,NL103", ["NL101", "NL102", "NL206@head*", "NL103"]),
        ("ignoring_text", " NL103 ,NL104@a*b,", "", ["NL101", "NL102", "NL103", "NL104@a*b"]),
        ("build", "", "NL101 , NL102,", ["NL101", "NL102"]),
    ],
)
def test_checks_to_ignore_are_those_of_the_function_the_environment_and_the_option(
    given: Kept, monkeypatch: pytest.MonkeyPatch, source: str, variable: str, option: str, expected: list[str]
) -> None:
    monkeypatch.setenv("NORMLAB_DOCTOR_IGNORE", variable)
    assert main(["doctor", f"net.py:{source}", f"--ignore={option}"]) == 0
    assert given["ignore"] == expected


def test_the_limit_of_the_option_goes_before_that_of_the_function(given: Kept) -> None:
    assert main(["doctor", "net.py:stepping"]) == 0 and given["limit"] == 3
    assert main(["doctor", "net.py:stepping", "--limit", "5"]) == 0 and given["limit"] == 5


def test_the_structure_alone_is_examined_by_shapes(given: Kept) -> None:
    assert main(["doctor", "net.py:stepping", "--static"]) == 0
    assert given["batches"] == [jax.ShapeDtypeStruct((4, 2), np.float32)]
    assert "step" not in given and "state" not in given
    assert main(["doctor", "net.py:labelled", "--static"]) == 0
    (inputs, labels, word), *more = given["batches"]
    assert not more and inputs["x"].shape == (4, 2) and labels.dtype == np.int64 and word == "cats"
    assert main(["doctor", "net.py:empty", "--static"]) == 0 and given["batches"] == []


def test_json_alone_is_printed_where_it_is_asked_for(given: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    given["report"] = SICK
    assert main(["doctor", "net.py", "--json", "-", "--html", "page.html"]) == 1
    out, err = capsys.readouterr()
    assert out == SICK.json() and json.loads(out)["findings"][0]["code"] == "NL203"
    assert err == "a line of the user's\nWrote page.html\n"
    assert not Path("-").exists()


def test_reports_are_written_over_older_ones(given: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    for found in (SICK, HEALTHY):
        given["report"] = found
        main(["doctor", "net.py", "--json", "new/report.json", "--html", "new/report.html"])
        assert capsys.readouterr().out.endswith("Wrote new/report.html\nWrote new/report.json\n")
        assert Path("new/report.json").read_text() == found.json()
        assert Path("new/report.html").read_text("utf-8").startswith("<!doctype html>")
    assert sorted(os.listdir("new")) == ["report.html", "report.json"]


def test_seconds_are_shown_on_demand(given: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    given["report"] = replace(HEALTHY, cost={"NL101": 0.004, "NL303": 1.25, "numbers": 12.5})
    assert main(["doctor", "net.py", "--timings"]) == 0
    assert capsys.readouterr().out == f"{HEALTHY.table()}\nSeconds:\n   12.50  numbers\n    1.25  NL303\n"
    assert main(["doctor", "net.py", "--timings", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["seconds"] == {"NL101": 0.004, "NL303": 1.25, "numbers": 12.5}
    assert main(["doctor", "net.py", "--json", "-"]) == 0
    assert "seconds" not in json.loads(capsys.readouterr().out)


def test_a_terminal_without_the_letters_of_a_name(given: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    given["report"] = report([replace(LAG, path="größe", others=())])
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert main(["doctor", "net.py"]) == 1
    sys.stdout.flush()
    assert b"NL303  warning  gr??e\n" in written.getvalue()


def test_a_terminal_has_colours_and_its_own_width(given: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    given["report"] = SICK
    written = io.StringIO()
    monkeypatch.setattr(written, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdout", written)
    for name, value in {"TERM": "xterm-256color", "COLUMNS": "140"}.items():
        monkeypatch.setenv(name, value)
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    main(["doctor", "net.py"])
    assert "\x1b[1;31mFix first" in written.getvalue()
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("NO_COLOR", "1")
    written.seek(0)
    written.truncate()
    main(["doctor", "net.py"])
    lines = written.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines if "\x1b" not in line) <= 60


BAD: Mapping[str, tuple[str, str]] = {
    "no source": ("", "Expected `FILE.py:build`, got none. See `normlab doctor --help`."),
    "no file": (
        "other.py:build",
        "Expected a Python file and its function, as in `net.py:build`, got `other.py:build`. There is no file "
        "`other.py`.",
    ),
    "no function": ("net.py:buid", "Expected `net.py` to define the function `buid`, got none. Did you mean `build`?"),
    "a model alone": (
        "net.py:alone",
        f"Expected `net.py:alone` to return a dict of the keywords of `normlab.doctor.examine`, got a model. {DICT}",
    ),
    "a tuple": (
        "net.py:pair",
        f"Expected `net.py:pair` to return a dict of the keywords of `normlab.doctor.examine`, got a tuple. {DICT}",
    ),
    "inputs for other commands": (
        "net.py:inputs",
        "Expected `net.py:inputs` to return a dict of the keywords of `normlab.doctor.examine`, got a dict with "
        f"`args`. {DICT}",
    ),
    "a misspelt keyword": (
        "net.py:misspelt",
        "Expected keywords that the command knows from `net.py:misspelt`, got `batch`. Did you mean `batches`?",
    ),
    "a function that fails": (
        "net.py:failing",
        "Expected `net.py:failing` to return a model, got RuntimeError: no data, from line 53 of `net.py`. "
        "`--traceback` shows the calls.",
    ),
    "a function that ends the process": (
        "net.py:leaving",
        "Expected `net.py:leaving` to return a model, got SystemExit, from line 57 of `net.py`. "
        "`--traceback` shows the calls.",
    ),
    "an unknown severity": (
        "net.py --fail-on warnings",
        "Expected `--fail-on` to be `error`, `warning`, `note` or `never`, got `warnings`. Did you mean `warning`?",
    ),
    "nothing like a severity": (
        "net.py --fail-on 3",
        "Expected `--fail-on` to be `error`, `warning`, `note` or `never`, got `3`. Write one of them.",
    ),
    "no batches": ("net.py --limit 0", "Expected `--limit` to be a positive whole number, got 0. Give one such as 5."),
    "half a batch": (
        "net.py --limit 1.5",
        "Expected `--limit` to be a positive whole number, got `1.5`. Give one such as 5.",
    ),
    "a page without a name": (
        "net.py --html -",
        "Expected `--html` to name a file, got `-`. Only `--json -` prints the report.",
    ),
    "a folder as a page": (
        "net.py --html folder",
        "Expected `--html` to be a file, got the folder `folder`. Name a file in it.",
    ),
    "a folder as JSON": (
        "net.py --json folder",
        "Expected `--json` to be a file, got the folder `folder`. Name a file in it.",
    ),
    "a file as a folder": (
        "net.py --json net.py/report.json",
        "Expected `--json` to be in a folder, got `net.py/report.json`, and `net.py` is a file. Give another path.",
    ),
    "an unknown option": ("net.py --skip NL101", "Unknown option `--skip`. Did you mean `--ignore`?"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence(given: Kept, capsys: pytest.CaptureFixture[str], name: str) -> None:
    Path("folder").mkdir()
    arguments, sentence = BAD[name]
    assert main(["doctor", *arguments.split()]) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"normlab: {sentence}\n")
    assert "model" not in given and sorted(os.listdir()) == ["folder", "net.py"]


def test_a_model_that_is_none(given: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "net.py:no_model"]) == 2
    assert "Expected `net.py:no_model` to return a Flax model, got the function `len`." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TypeError("wrong.\nmore"), "got TypeError: wrong"),
        (ValueError(), "got ValueError"),
        (SystemExit(0), "got SystemExit: 0"),
        (MemoryError("much"), "got MemoryError: much"),
    ],
)
def test_a_model_that_fails_is_one_sentence(
    given: Kept, capsys: pytest.CaptureFixture[str], error: BaseException, said: str
) -> None:
    given["report"] = error
    assert main(["doctor", "net.py"]) == 2
    sentence = f"normlab: Expected a model that can be examined from `net.py`, {said}, from line "
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"a line of the user's\n{sentence}")
    assert err.endswith(f"of `{__file__}`. `--traceback` shows the calls.\n")
    assert main(["doctor", "net.py", "--traceback"]) == 2
    err = capsys.readouterr().err
    assert "Traceback (most recent call last):" in err and f"{type(error).__name__}" in err
    assert err.splitlines()[-1].startswith(sentence)


def test_a_refusal_of_the_examination_is_said_as_it_is(given: Kept, capsys: pytest.CaptureFixture[str]) -> None:
    given["report"] = doctor_refusal()
    assert main(["doctor", "net.py"]) == 2
    assert capsys.readouterr().err.endswith("normlab: Expected this, got that. Do so.\n")


def doctor_refusal() -> Exception:
    from normlab.errors import BadInput

    return BadInput("Expected this, got that. Do so.")


NET = """
import jax, numpy as np
from flax import linen as nn
import normlab.linen


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, *, train: bool):
        x = nn.Dense(16, use_bias=False, name="dense")(x)
        x = nn.relu(normlab.linen.BatchNorm(use_running_average={mode}, name="norm")(x))
        return nn.Dense(3, name="head")(x)


def build():
    x = np.random.default_rng(0).normal(size=(32, 8)).astype(np.float32)
    model = Net()
    return {{"model": model, "variables": model.init(jax.random.key(0), x, train=False), "batches": [x, x[::-1]]}}
"""


def _examined(folder: Path, mode: str, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "net.py").write_text(NET.format(mode=mode))
    command = [sys.executable, "-m", "normlab", "doctor", "net.py:build", *options]
    return subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_healthy_model_in_a_process_of_its_own(tmp_path: Path) -> None:
    finished = _examined(tmp_path, "not train", "--html", "page.html")
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.startswith("Healthy: ") and "NL204, NL205 and NL207: No `step` was given." in finished.stdout
    assert "Numbers of each norm" in (tmp_path / "page.html").read_text("utf-8")


@pytest.mark.slow
def test_a_model_with_a_fault_in_a_process_of_its_own(tmp_path: Path) -> None:
    finished = _examined(tmp_path, "False", "--json", "-")
    assert (finished.returncode, finished.stderr) == (1, "")
    assert ("NL203", "error", "norm") in [
        (one["code"], one["severity"], one["path"]) for one in json.loads(finished.stdout)["findings"]
    ]


def test_the_structure_of_a_real_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (tmp_path / "net.py").write_text(NET.format(mode="not train"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(["doctor", "net.py:build", "--static"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Healthy: ") and "NL303" in out.partition("Not checked:")[2]
