"""Test the study of covariate shift."""

import csv
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments import covariate_shift as study
from experiments.claims import study as command
from experiments.claims.shifted import AFFINE
from experiments.claims.verdicts import Bar, Finding, Verdict

PLAN = study.Extent(seeds=7, networks=("mlp-2",))
SHIFTS = (study.CLEAN, *AFFINE, "noise", "one pixel right", study.REAL)
SPREAD = np.array([0.98, 0.99, 1.0, 1.01, 1.02, 1.0, 1.0])
ERRORS = {
    study.RUNNING: (0.04, 0.80, 0.40, 0.28, 0.38, 0.26),
    study.ADABN: (0.04, 0.04, 0.04, 0.27, 0.36, 0.25),
    study.NONE: (0.05, 0.60, 0.30, 0.26, 0.40, 0.32),
    study.own(4): (0.28, 0.28, 0.28, 0.48, 0.53, 0.49),
    study.own(64): (0.05, 0.05, 0.05, 0.29, 0.37, 0.27),
    study.SORTED: (0.82,) * 6,
    study.TENT: (0.041, 0.041, 0.041, 0.271, 0.361, 0.251),
    study.TENT_SORTED: (0.5,) * 6,
}


def observed(title: str = "MLP", shifts: tuple[str, ...] = SHIFTS, **others: Mapping[str, float]) -> study.Observed:
    """Make errors; `others` are errors by shift for remedies by name of their constant."""
    errors = {}
    for remedy, values in ERRORS.items():
        for shift, value in zip(SHIFTS, values, strict=True):
            errors[shift, remedy] = value * SPREAD
    for n in PLAN.sizes:
        errors |= {(shift, study.own(n)): errors[shift, study.own(64)] for shift in SHIFTS if n not in (4, 64)}
    for remedy, values in others.items():
        errors |= {(shift, getattr(study, remedy)): value * SPREAD for shift, value in values.items()}
    tent = {shift: np.stack([errors[shift, study.TENT]] * len(PLAN.tent_rates)) for shift in shifts}
    return study.Observed(title=title, data="MNIST", errors=errors, tent=tent, tent_rate=1e-3)


def finding(key: str, mlp: study.Observed | None = None, conv: study.Observed | None = None) -> Finding:
    """Judge one claim."""
    found = {"mlp-2": mlp or observed(), **({"conv": conv} if conv else {})}
    return next(one for one in study.judge(PLAN, found).findings if one.claim.key == key)


def bar(text: str, name: str = "mlp-2", **others: Mapping[str, float]) -> Bar:
    """Return the only bar with a text."""
    (one,) = (b for b in study.judge(PLAN, {name: observed(**others)}).bars if text in b.text)
    return one


def sentence(text: str, shifts: tuple[str, ...] = SHIFTS, **others: Mapping[str, float]) -> str:
    """Return the only sentence with a text."""
    found = {"mlp-2": observed(shifts=shifts, **others)}
    (one,) = (line for line in study.judge(PLAN, found).sentences if text in line)
    return one


def everywhere(value: float, names: tuple[str, ...] = SHIFTS) -> dict[str, float]:
    return dict.fromkeys(names, value)


def test_new_statistics_explain_some_shifts_all_or_none() -> None:
    some = finding("story")
    assert some.verdict is Verdict.HOLDS_WHEN
    assert some.when.startswith("for contrast, brightness; less than half for noise, one pixel right, scikit-learn's")
    assert some.seen.mean == pytest.approx(1 / 22, rel=0.1)  # of the real shift
    assert finding("story", mlp=observed(ADABN=everywhere(0.05))).verdict is Verdict.HOLDS
    running = dict(zip(SHIFTS, ERRORS[study.RUNNING], strict=True))
    assert finding("story", mlp=observed(ADABN=running)).verdict is Verdict.FAILS
    assert finding("story", mlp=observed(RUNNING=everywhere(0.04))).verdict is Verdict.UNSEEN  # no shift hurts


def test_networks_are_named_where_they_differ() -> None:
    conv = observed("ConvNet", ADABN={study.REAL: 0.1})
    said = finding("story", conv=conv)
    assert "scikit-learn's digits (ConvNet); less than half for" in said.when
    assert said.network == "ConvNet" and "scikit-learn's digits (MLP)" in said.when


def test_remedies_are_judged_in_both_directions() -> None:
    assert finding("repair").verdict is Verdict.HOLDS
    assert finding("repair", mlp=observed(ADABN=everywhere(0.9))).verdict is Verdict.FAILS
    running = dict(zip(SHIFTS, ERRORS[study.RUNNING], strict=True))
    assert finding("repair", mlp=observed(ADABN=running)).verdict is Verdict.UNSEEN
    assert finding("tent").verdict is Verdict.FAILS
    assert finding("tent", mlp=observed(TENT=everywhere(0.01))).verdict is Verdict.HOLDS
    mixed = finding("tent", mlp=observed(TENT={"noise": 0.1}))
    assert mixed.verdict is Verdict.HOLDS_WHEN and mixed.when.startswith("for noise; the opposite for contrast")
    adabn = dict(zip(SHIFTS, ERRORS[study.ADABN], strict=True))
    assert finding("tent", mlp=observed(TENT=adabn)).verdict is Verdict.UNSEEN


def test_batch_norm_is_more_or_less_robust_than_no_norm() -> None:
    both = finding("robust")
    assert both.verdict is Verdict.HOLDS_WHEN
    assert both.when.startswith("for one pixel right, scikit-learn's digits; the opposite for contrast, brightness")
    assert finding("robust", mlp=observed(NONE={**everywhere(0.9), study.CLEAN: 0.05})).verdict is Verdict.HOLDS
    assert finding("robust", mlp=observed(NONE=everywhere(0.01))).verdict is Verdict.FAILS
    worse = {shift: error + 0.1 for shift, error in zip(SHIFTS, ERRORS[study.RUNNING], strict=True)}
    assert study.rises(observed(NONE=worse), "noise").mean == pytest.approx(0, abs=1e-9)  # worse on clean images, too


def test_sorted_batches_are_a_trap_or_not() -> None:
    assert finding("mixed").verdict is Verdict.HOLDS
    assert finding("mixed").seen.mean == pytest.approx(77, abs=1)
    assert finding("mixed", mlp=observed(SORTED=everywhere(0.06))).verdict is Verdict.FAILS


def test_the_worst_shift_stands_for_all_without_a_real_one() -> None:
    found = {"mlp-2": observed(shifts=SHIFTS[:-1])}
    assert study.headline(found) == ("mlp-2", "contrast")
    assert not [line for line in study.judge(PLAN, found).sentences if "on the real shift" in line]


@pytest.mark.parametrize(
    ("error", "words"), [(0.10, "take away 0.7"), (0.26, "change nothing that shows"), (0.40, "add errors")]
)
def test_the_paragraph_says_what_the_real_shift_does(error: float, words: str) -> None:
    assert words in sentence("on the real shift", ADABN={study.REAL: error})


def test_the_paragraph_says_whether_contrast_is_undone() -> None:
    assert sentence("undo contrast and brightness exactly")
    assert "with contrast the error is +6.0" in sentence("do not undo every change", ADABN={"contrast": 0.1})


def test_the_paragraph_says_where_tent_and_batch_norm_gain() -> None:
    line = sentence("TENT at its rate 0.001", TENT={"noise": 0.1})
    assert "target on noise, more on clean, contrast" in line and "gains is -17.0" in line
    line = sentence("beside a network without norm")
    assert "fewer errors on clean (0.80), one pixel right (0.95)" in line and "more on contrast (1.33)" in line
    line = sentence("sorted by class")
    assert "28.0 with n = 4, 5.0 with n = 16" in line and "+77" in line


def test_bars_can_be_met_and_missed() -> None:
    assert all(one.met for one in study.judge(PLAN, {"mlp-2": observed()}).bars)
    assert not bar("contrast: AdaBN / running", ADABN={"contrast": 0.5}).met
    assert not bar("brightness: AdaBN within", ADABN={"brightness": 0.05}).met
    assert not bar("noise: AdaBN / running in", ADABN={"noise": 0.2}).met
    assert not bar("own n = 4", RUNNING={study.CLEAN: 0.2}).met
    assert not bar("sorted by class", SORTED=everywhere(0.5)).met
    assert not bar("TENT - AdaBN", TENT={"noise": 0.3}).met
    assert not bar("noise: AdaBN / running at most", name="conv").met
    assert bar("noise: AdaBN / running at most", name="conv", ADABN={"noise": 0.2}).met
    assert not bar(f"{study.REAL}: AdaBN / running at most", name="conv").met


def test_missing_data_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(study.study, "", ["--quick", "--data", "tfds:mnist", "--data-dir", str(tmp_path)])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.count("\n") == 1
    assert said.startswith("covariate_shift: Expected the data set `mnist`") and "--data-dir" in said


@pytest.mark.slow
def test_the_command_writes_figures_numbers_and_verdicts(tmp_path: Path) -> None:
    tiny = replace(study.QUICK, examples=200, test=130, steps=20, sizes=(4, 64), tent_rates=(1e-3, 1e-2), tent_batch=65)
    command.main(replace(study.study, quick=tiny), "", ["--quick", "--data", "digits", "--output", str(tmp_path)])
    names = {"covariate_shift.txt", "covariate_shift.csv", "covariate_shift.json", "covariate_shift.svg"}
    assert names <= {path.name for path in tmp_path.iterdir()}
    written = json.loads((tmp_path / "covariate_shift.json").read_text())
    assert [one["claim"]["key"] for one in written["findings"]] == [claim.key for claim in study.study.claims]
    with (tmp_path / "covariate_shift.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["arm"].endswith(", AdaBN")]
    clean, contrast = (
        [float(row["value"]) for row in rows if row["setting"] == name] for name in ("clean", "contrast")
    )
    assert len(clean) == 2 and contrast == pytest.approx(clean, abs=0.01)  # AdaBN does not see contrast
