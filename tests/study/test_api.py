"""Results from Python: `repr`, tables, data frames, notebooks, and what an interrupt leaves."""

import re
import sys
from pathlib import Path
from typing import Any

import pandas
import pytest

from normlab import study
from normlab.errors import BadInput
from normlab.study.design import discovery
from tests.support.toys import TOY

FEW: dict[str, Any] = {"norms": ["none"], "curves": ["deployed"], "batch_sizes": [2], "extend": False}
RUNS = 10


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> study.Result:
    path = tmp_path_factory.mktemp("toy") / "toy.py"
    path.write_text(TOY)
    return study.run(discovery.load(str(path)), norms=["none", "batch", "rms"], progress=False)


@pytest.fixture
def interrupted(toy: Path) -> study.Comparison:
    """A comparison in which someone presses stop once, at the first evaluation run of seed 1."""
    toy.write_text(TOY.replace("time.sleep(PAUSE)", "STOP and seed == 1 and STOP.pop()()"))
    toy.write_text(toy.read_text() + "\n\ndef stop():\n    raise KeyboardInterrupt\n\n\nSTOP = [stop]\n")
    return discovery.load(str(toy))


@pytest.fixture
def interactive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "ps1", "In : ", raising=False)


class TestResult:
    def test_repr_is_one_line_with_the_place_of_the_runs(self, result: study.Result, toy: Path, tmp_path: Path) -> None:
        assert re.fullmatch(r"<Result of toy: (\d+) of \1 runs, in memory>", repr(result))
        stored = study.run(discovery.load(str(toy)), output=tmp_path / "out", progress=False, **FEW)
        assert repr(stored) == f"<Result of toy: {RUNS} of {RUNS} runs, in {tmp_path / 'out'}>"

    def test_the_table_is_text_that_a_notebook_shows_as_html(
        self, result: study.Result, capsys: pytest.CaptureFixture[str]
    ) -> None:
        table = result.table()
        print(table)
        assert capsys.readouterr().out == f"{result}\n" == f"{table!r}\n"
        assert "one number, deployed" in table
        assert max(map(len, result.table(width=60).splitlines())) <= 60
        assert table._repr_html_().count("<table>") == len(result.settings.curves)

    def test_the_frame_has_the_rows(self, result: study.Result) -> None:
        frame = result.frame()
        assert isinstance(frame, pandas.DataFrame)
        assert list(frame["norm"]) == [row["norm"] for row in result.rows()]
        assert frame.set_index(["curve", "norm", "value"]).loc[("deployed", "batch", 2), "runs_ok"] == 4

    def test_without_pandas_there_is_one_sentence(self, result: study.Result, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pandas", None)
        with pytest.raises(BadInput, match=r"Expected `pandas` .* Run `pip install pandas`\.$"):
            result.frame()

    def test_a_notebook_shows_sentence_figure_and_tables(self, result: study.Result) -> None:
        html = result._repr_html_()
        assert html.index("<strong>") < html.index("<svg") < html.index("<table>")


class TestInterrupt:
    @pytest.mark.usefixtures("interactive")
    def test_an_interactive_session_gets_the_finished_runs(
        self, interrupted: study.Comparison, capsys: pytest.CaptureFixture[str]
    ) -> None:
        result = study.run(interrupted, **FEW)
        assert 0 < len(result.records) < RUNS
        assert repr(result) == f"<Result of toy: {len(result.records)} of {RUNS} runs, in memory>"
        assert "Interrupted. The result has the finished runs; with `output`" in capsys.readouterr().out

    @pytest.mark.usefixtures("interactive")
    def test_the_same_call_resumes_from_a_folder(
        self, interrupted: study.Comparison, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        part = study.run(interrupted, output=tmp_path / "out", **FEW)
        assert f"the same call resumes from `{tmp_path / 'out'}`" in capsys.readouterr().out
        whole = study.run(interrupted, output=tmp_path / "out", progress=False, **FEW)
        assert len(part.records) < len(whole.records) == RUNS
        assert all(record in whole.records for record in part.records)

    def test_a_script_is_interrupted(self, interrupted: study.Comparison) -> None:
        with pytest.raises(KeyboardInterrupt):
            study.run(interrupted, progress=False, **FEW)

    @pytest.mark.usefixtures("interactive")
    def test_an_interrupt_before_the_first_run_leaves_no_result(self, toy: Path, tmp_path: Path) -> None:
        """Runs of earlier calls with other settings are no result of this one."""
        toy.write_text(TOY.replace("time.sleep(PAUSE)", "STOP and STOP.pop()()"))
        toy.write_text(toy.read_text() + "\n\ndef stop():\n    raise KeyboardInterrupt\n\n\nSTOP = []\n")
        comparison = discovery.load(str(toy))
        study.run(comparison, output=tmp_path / "out", progress=False, **FEW)
        stop = comparison.problems[0].build.__globals__
        stop["STOP"].append(stop["stop"])
        with pytest.raises(KeyboardInterrupt):
            study.run(comparison, output=tmp_path / "out", progress=False, **{**FEW, "batch_sizes": [4]})

    @pytest.mark.usefixtures("interactive")
    def test_runs_of_other_code_are_no_result(self, toy: Path, tmp_path: Path) -> None:
        whole = study.run(discovery.load(str(toy)), output=tmp_path / "out", progress=False, **FEW)
        assert len(whole.records) == RUNS
        changed = TOY.replace("import jax.numpy as jnp", "import jax.numpy as jnp; raise KeyboardInterrupt", 1)
        toy.write_text(changed)
        with pytest.raises(KeyboardInterrupt):
            study.run(discovery.load(str(toy)), output=tmp_path / "out", progress=False, **FEW)
