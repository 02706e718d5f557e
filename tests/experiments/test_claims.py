"""Test the ground of the studies: data, estimates, files, and the page of all claims."""

import dataclasses
import importlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import bias
from experiments.claims import images, study, table
from experiments.claims.estimates import Interval, average, points, ratio, share
from experiments.claims.verdicts import Bar, Claim, Verdict, judged
from normlab.errors import BadInput
from tests.support.paths import ROOT

DATA = images.load("digits")


def test_parts_are_disjoint_and_complete() -> None:
    parts = (DATA.train, DATA.validation, DATA.test)
    rows = np.concatenate([part.inputs.reshape(len(part.labels), -1) for part in parts])
    assert len(rows) == 1797 and DATA.classes == 10
    given = images.digits().inputs.reshape(1797, -1)
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, given.tolist()))
    assert DATA.name == "scikit-learn's digits 8 x 8"


def test_areas_are_averaged() -> None:
    image = np.arange(16.0).reshape(1, 4, 4, 1)
    assert images.averaged(image, 2)[0, ..., 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    assert images.averaged(image, 1, crop=2).item() == 7.5
    assert np.isclose(images.averaged(image, 3).mean(), image.mean())
    assert images.averaged(image, 9).shape == image.shape


def test_data_that_are_no_images_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", inputs=np.zeros((500, 3), np.float32), labels=np.arange(500) % 2)
    with pytest.raises(BadInput, match="Expected images"):
        images.load(f"npz:{tmp_path / 'rows.npz'}")


def test_intervals() -> None:
    seen = average([1.0, 2.0, 3.0])
    assert seen.n == 3 and math.isclose(seen.high, 2 + 4.30265 / math.sqrt(3), rel_tol=1e-4)
    assert seen.text("{:.1f}") == "2.0 (-0.5 to 4.5, n = 3)" and not seen.tells_from(0)
    assert ratio([2.0, 8.0], [1.0, 4.0]).text("{:g}") == "2 (no interval, n = 2)"
    assert points([0.5, 0.4], [0.2, 0.3]).mean == pytest.approx(20)
    assert share([True, False, True]) == "2 of 3"


PLAN = bias.Extent(seeds=3, batches=(2, 8), data="digits")


def found_of(before: float, after: float) -> dict[tuple[str, int], bias.Arm]:
    """Make numbers with a gradient before the activation, and where the bias is said to count."""
    shares = {bias.BEFORE: before, bias.AFTER: after, bias.FIXED: after, bias.NONE: 0.3}
    error = np.array([0.1, 0.2, 0.15])
    return {
        (arm, batch): bias.Arm(gradient=np.full(3, share), bias=np.full(3, share), error=error, without=error - 0.01)
        for arm, share in shares.items()
        for batch in PLAN.batches
    }


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [(1e-8, 0.2, "holds when"), (1e-8, 1e-8, "holds"), (0.2, 0.2, "does not hold")],
)
def test_the_verdict_on_the_bias(before: float, after: float, verdict: str) -> None:
    judgement = bias.judge(PLAN, found_of(before, after))
    (finding,) = judgement.findings
    assert finding.verdict == verdict
    assert finding.when.startswith("the norm stands before") == (verdict == "holds when")
    assert judgement.bars[0].met == (before < 1e-6) and not judgement.bars[1].met
    assert f"at most {before:.1e} of its kernel's" in judgement.sentences[0]


def test_files_and_the_page_of_claims(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, found = PLAN, found_of(1e-8, 0.2)
    about = {"command": "python experiments/bias.py", "seconds": 1, "jax": "0", "device": "cpu"}
    study.write(tmp_path / "claims", bias.study, plan, found, bias.judge(plan, found), about)
    assert {path.suffix for path in (tmp_path / "claims").iterdir()} == {".txt", ".csv", ".json", ".svg", ".png"}
    document = json.loads((tmp_path / "claims" / "bias.json").read_text(), parse_constant=pytest.fail)
    assert document["plan"]["batches"] == [2, 8] and "data_dir" not in document["plan"]
    assert len((tmp_path / "claims" / "bias.csv").read_text().splitlines()) == 1 + 4 * 2 * 4 * 3
    table.main([str(tmp_path / "claims"), "--output", str(tmp_path / "claims.md")])
    page = (tmp_path / "claims.md").read_text()
    assert "1 claim: 1 holds under a condition. 2 of 3 bars are met." in page and "![Is the bias" in page
    assert "(claims/bias.svg)" in page and "**holds when** the norm stands before" in page
    assert "**not met**: errors with and without biases" in page
    assert "wrote" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("verdicts", "bars", "line"),
    [
        (["does not hold", "holds"], [True], "2 claims: 1 holds, 1 does not hold. 1 of 1 bar is met.\n"),
        (["does not hold"] * 2, [], "2 claims: 2 do not hold. 0 of 0 bars are met.\n"),
        (["not visible here", *["holds when"] * 2], [True, True, False],
         "3 claims: 2 hold under a condition, 1 is not visible here. 2 of 3 bars are met.\n"),
    ],
)  # fmt: skip
def test_verdicts_are_counted_in_english(verdicts: list[str], bars: list[bool], line: str) -> None:
    findings = [{"claim": {"text": str(i)}, "verdict": one} for i, one in enumerate(verdicts)]
    document = {"name": "a", "plan": {}, "findings": findings, "bars": [{"met": met} for met in bars]}
    assert table.counts([document]) == line


def tried(name: str, **verdicts: str) -> dict[str, object]:
    """Return the verdicts of a study on claims by text."""
    findings = [
        {
            "claim": {"text": text, "source": "a paper", "published": ""},
            "verdict": verdict,
            "when": "it rains" if verdict == "holds when" else "",
            "effect": "points" if name != "a-deep" or text == "Same" else "steps",
            "seen": {"mean": 1.0, "low": 0.5, "high": 1.5, "n": 3},
            "network": f"net of {name}",
            "data": "tfds:mnist",
        }
        for text, verdict in verdicts.items()
    ]
    about = {"command": "c", "seconds": 1, "jax": "0", "device": "cpu"}
    plan = {} if name == "a" else {"side": 16}
    document = {"name": name, "title": "Is it?", "about": about, "plan": plan, "findings": findings}
    return {**document, "bars": [], "sentences": []}


def test_a_claim_has_one_row_with_a_line_for_each_network() -> None:
    documents = [tried("a", Same="holds", Other="holds"), tried("a-deep", Same="holds", Other="holds when")]
    page = table.page(documents, ".")
    same, other = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if "| a paper" in line
    )
    assert same[0] == "Same" and other[0] == "Other"
    assert (
        same[3]
        == "points: 1 (0.5 to 1.5, n = 3); net of a, MNIST<br>1 (0.5 to 1.5, n = 3); net of a-deep, MNIST 16 x 16"
    )
    assert same[4] == "net of a, MNIST: **holds**<br>net of a-deep, MNIST 16 x 16: **holds**"
    assert same[5] == other[5] == "[a](#a), [figure](./a.svg)<br>[a-deep](#a-deep), [figure](./a-deep.svg)"
    assert other[3].endswith("<br>steps: 1 (0.5 to 1.5, n = 3); net of a-deep, MNIST 16 x 16")
    assert other[4] == "net of a, MNIST: **holds**<br>net of a-deep, MNIST 16 x 16: **holds when** it rains"
    assert "2 claims: 1 holds, 1 differs between networks. 0 of 0 bars are met." in page


def test_a_page_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        table.main([str(tmp_path), "--output", str(tmp_path / "claims.md")])
    assert "Expected .json files of studies" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "1"], "Expected `--seeds` to be at least 2"),
        (["--first-seed", "-1"], "Expected `--first-seed` to be at least 0"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        study.main(bias.study, "", ["--quick", *arguments])
    assert message in capsys.readouterr().err


def test_the_command_is_that_of_anyone(tmp_path: Path) -> None:
    tiny = dataclasses.replace(bias.study, quick=bias.Extent(seeds=2, batches=(4,), steps=10, width=4))
    study.main(tiny, "", ["--quick", "--data", "digits", "--first-seed", "5", "--output", str(tmp_path)])
    document = json.loads((tmp_path / "bias.json").read_text())
    assert document["about"]["command"] == "python experiments/bias.py --quick --first-seed 5 --data digits"
    gradient = [
        row for row in (tmp_path / "bias.csv").read_text().splitlines() if row.startswith("gradient,batch norm b")
    ]
    assert len(gradient) == 2 and all(float(row.rpartition(",")[2]) < 1e-6 for row in gradient)
    assert gradient[0].split(",")[3] == "5"


def test_an_interval_without_ends_survives_the_page() -> None:
    assert table.effect({"mean": 1.0, "low": None, "high": None, "n": 2}) == "1 (no interval, n = 2)"
    assert table.effect(Interval(1.0, 0.5, 1.5, 3)._asdict()) == "1 (0.5 to 1.5, n = 3)"


STUDIES = sorted(path.stem for path in (ROOT / "experiments").glob("*.py") if "study = Study(" in path.read_text())


@pytest.mark.parametrize("name", STUDIES)
def test_a_network_brings_the_plan_that_is_listed_for_it(name: str) -> None:
    found = importlib.import_module(f"experiments.{name}").study
    assert found.name == name
    plans: list[study.Plan] = []

    def stop(plan: study.Plan) -> None:
        plans.append(plan)
        raise BadInput("enough")

    listed = {(): (found.standard, found.quick)} | {("--network", key): pair for key, pair in found.networks.items()}
    for arguments, pair in listed.items():
        for quick, plan in zip(((), ("--quick",)), pair, strict=True):
            with pytest.raises(SystemExit):
                study.main(dataclasses.replace(found, measure=stop), "", [*arguments, *quick])
            assert plans.pop() == plan, (arguments, quick)


@pytest.mark.parametrize(
    ("values", "bounds", "met"),
    [
        ([1.0, 1.1, 1.2], {"least": 0.8}, True),
        ([1.0, 1.1, 1.2], {"least": 0.9}, False),  # the mean is within, an end is not
        ([1.0, 1.1, 1.2], {"most": 1.4}, True),
        ([1.0, 1.1, 1.2], {"most": 1.3}, False),
        ([1.0, 1.1, 1.2], {"least": 0.8, "most": 1.4}, True),
        ([1.0, 1.0], {"least": 0.5}, False),  # no interval
    ],
)
def test_a_bar_is_met_by_all_of_the_interval(values: list[float], bounds: dict[str, float], met: bool) -> None:
    seen = average(values)
    assert Bar.of("a bar", seen, "{:.2f}", **bounds) == Bar("a bar", seen.text("{:.2f}"), met)


def test_the_far_end_of_an_interval() -> None:
    assert Interval(0.1, -0.5, 0.7, 3).size == 0.7 and Interval(-0.1, -0.7, 0.5, 3).size == 0.7


READING = '[a]\n"a bar" = "{}"\n'


def unmet(*texts: str) -> dict[str, Any]:
    bars = [{"text": text, "seen": "2", "met": False} for text in texts]
    return {**tried("a", Same="holds"), "bars": [*bars, {"text": "fine", "seen": "1", "met": True}]}


def test_bars_that_are_not_met_are_listed_with_their_readings(tmp_path: Path) -> None:
    documents = [unmet("a bar", "another")]
    (tmp_path / "readings.toml").write_text(READING.format("too few | seeds"))
    page = table.page(documents, ".", table.read_readings(tmp_path, documents))
    assert "| a bar | 2 | [a](#a) | too few \\| seeds |" in page and "| another | 2 | [a](#a) | not examined |" in page
    assert "| fine |" not in page
    assert "Bars that are not met" not in table.page(documents, ".", table.read_readings(tmp_path / "none", documents))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (READING.replace("a bar", "fine"), "Expected readings of bars that are not met, got 'fine' of 'a'"),
        (READING.replace("[a]", "[b]"), "got 'a bar' of 'b'"),
        ("[a", "Expected TOML in"),
        ('a = "a bar"\n', "Expected for each study a table of bars with a text, got 'a bar' for 'a'"),
        (READING.replace('"{}"', "3"), "Expected for each study a table of bars with a text, got {'a bar': 3} for 'a'"),
        ("\N{LATIN SMALL LETTER E WITH ACUTE}", "Expected TOML in"),
    ],
)
def test_wrong_readings_are_refused(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.json").write_text(json.dumps(unmet("a bar")))
    (tmp_path / "readings.toml").write_text(text, "latin-1")
    with pytest.raises(SystemExit):
        table.main([str(tmp_path), "--output", str(tmp_path / "claims.md")])
    assert message in capsys.readouterr().err and not (tmp_path / "claims.md").exists()


def test_a_case_that_refutes_is_named_where_the_others_are_undecided() -> None:
    seen = {("a", "rain"): Interval(1.0, 0.5, 1.5, 3), ("a", "snow"): Interval(0.0, -1.0, 1.0, 3)}
    sides: dict[str, Any] = {"good": lambda i: i.below(0), "bad": lambda i: i.above(0), "titles": {"a": "A"}}
    claim = Claim(key="k", text="A claim.", source="a paper")
    found = judged(claim, "points", seen, list(seen), headline=("a", "snow"), data="digits", **sides)
    assert (found.verdict, found.when) == (Verdict.FAILS, "the opposite for rain; the effect is that of snow")
    alone = judged(claim, "points", seen, [("a", "rain")], headline=("a", "rain"), data="digits", **sides)
    assert (alone.verdict, alone.when) == (Verdict.FAILS, "the effect is that of rain")
