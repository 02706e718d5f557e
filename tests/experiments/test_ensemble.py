"""The study of ensembles: exact facts, verdicts on made-up numbers, and the whole command."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from experiments import ensemble as module
from experiments.claims.study import main
from experiments.claims.verdicts import Finding, Verdict
from experiments.ensemble import BATCH, MEMBERS, NONE, SUBSETS, Extent, Found, Sets, study

PLAN = Extent(seeds=5, norms=(BATCH, NONE))
NOISE = np.array([0.0, 1.0, -1.0, 2.0, -2.0])


def sets(saved: float, best: float = 10.0, noise: float = 1.0) -> Sets:
    """Return sets of networks that make 4 % errors.

    Args:
        saved: Percent that an ensemble of six saves.
        best: Percent by which the best member is below the others' mean.
        noise: Factor of the differences between sets, in percent.
    """
    of_best = (1 - best / 100) * 0.04
    members = np.full((5, MEMBERS), (MEMBERS * 0.04 - of_best) / (MEMBERS - 1))
    members[:, 0] = of_best
    return Sets(rate=0.1, members=members, ensembles={k: 0.04 * (1 - (saved + noise * NOISE) / 100) for k in SUBSETS})


def numbers(batch: Sets, none: Sets) -> Found:
    return {("mlp-6", BATCH): batch, ("mlp-6", NONE): none}


def finding(number: int, batch: Sets, none: Sets) -> Finding:
    return study.judge(PLAN, numbers(batch, none)).findings[number]


def said(batch: Sets, none: Sets) -> str:
    return "\n".join(study.judge(PLAN, numbers(batch, none)).sentences)


def test_an_ensemble_that_saves_errors_holds() -> None:
    one = finding(0, sets(25), sets(20))
    assert one.verdict == Verdict.HOLDS and one.seen.mean == pytest.approx(25)
    assert one.when == "the best member is beaten in 5 of 5 sets; more than the paper's 17 %"


def test_an_ensemble_that_its_best_member_beats_holds_for_average_members() -> None:
    one = finding(0, sets(8, best=10), sets(20))
    assert one.verdict == Verdict.HOLDS_WHEN and one.when.startswith("one of them is an average member; ")
    assert "beaten in 0 of 5 sets; less than the paper's" in one.when


def test_an_ensemble_that_makes_more_errors_fails_and_noise_is_not_visible() -> None:
    assert finding(0, sets(-20), sets(20)).verdict == Verdict.FAILS
    assert finding(0, sets(2, noise=20), sets(20)).verdict == Verdict.UNSEEN
    assert "not clearly another share than the paper's" in finding(0, sets(17, noise=3), sets(20)).when


def test_the_gain_is_not_the_norms_if_there_is_as_much_without() -> None:
    one = finding(1, sets(20), sets(20, noise=-1))
    assert one.verdict == Verdict.FAILS and one.when.startswith("without a norm an ensemble of six saves 20.0 %")


def test_the_gain_is_the_norms_if_there_is_none_without() -> None:
    assert finding(1, sets(20), sets(0, noise=-1)).verdict == Verdict.HOLDS


def test_the_gain_is_partly_the_norms_if_there_is_less_without() -> None:
    one = finding(1, sets(30), sets(10, noise=2))
    assert one.verdict == Verdict.HOLDS_WHEN and one.when.startswith("only in part: ")
    assert one.seen.mean == pytest.approx(20)


def test_a_gain_that_is_nowhere_clear_is_not_visible() -> None:
    assert finding(1, sets(3, noise=20), sets(2, noise=-20)).verdict == Verdict.UNSEEN


def test_bars_are_met_by_the_expected_numbers_and_by_no_others() -> None:
    assert all(bar.met for bar in study.judge(PLAN, numbers(sets(25), sets(20))).bars)
    assert not any(bar.met for bar in study.judge(PLAN, numbers(sets(5), sets(20))).bars)
    assert not study.judge(PLAN, numbers(sets(60), sets(20))).bars[1].met


@pytest.mark.parametrize(("none", "word"), [(10, "a larger"), (40, "a smaller"), (25, "not clearly another")])
def test_the_paragraph_compares_norms(none: float, word: str) -> None:
    assert f"six MLP 6 x 100 save {word} share of the errors than with no norm" in said(sets(25), sets(none, noise=-1))


def test_the_paragraph_counts_networks_that_did_not_learn() -> None:
    assert "did not learn" not in said(sets(25), sets(20))
    lost = sets(20)
    lost.members[2, 3] = 0.9
    assert "1 of 30 members did not learn (error above 50%)." in said(sets(25), lost)


def test_an_ensemble_averages_the_softmax_of_its_members() -> None:
    generator = np.random.default_rng(0)
    outputs, labels = generator.normal(size=(2, MEMBERS, 40, 3)), generator.integers(0, 3, 40)
    found = module.ensembled(0.1, outputs, labels)
    shares = np.exp(outputs) / np.exp(outputs).sum(-1, keepdims=True)
    np.testing.assert_allclose(found.ensembles[6], (shares.mean(1).argmax(-1) != labels).mean(-1))
    pairs = [(shares[:, i] + shares[:, j]).argmax(-1) != labels for i in range(MEMBERS) for j in range(i)]
    np.testing.assert_allclose(found.ensembles[2], np.mean(pairs, (0, 2)))
    np.testing.assert_allclose(found.members, (outputs.argmax(-1) != labels).mean(-1))


def test_alike_members_save_nothing_and_broken_ones_are_wrong() -> None:
    outputs = np.repeat(np.eye(3)[None, None, [0, 1, 2, 0]], MEMBERS, 1)
    found = module.ensembled(0.1, outputs, np.array([0, 1, 1, 0]))
    assert found.saved(6).tolist() == [0.0] and found.beats_best().tolist() == [False]
    outputs[0, 0] = np.nan
    assert module.ensembled(0.1, outputs, np.array([1, 1, 2, 2])).ensembles[6].tolist() == [1.0]


def test_sets_share_no_member() -> None:
    first, other = (module.members(dataclasses.replace(PLAN, first_seed=seed)) for seed in (0, 5))
    assert len(set(first + other)) == 2 * 5 * MEMBERS


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = dataclasses.replace(study.quick, networks=("mlp-1",), steps=10)
    main(dataclasses.replace(study, quick=quick), "", ["--quick", "--data", "digits", "--output", str(tmp_path)])
    assert "save" in capsys.readouterr().out
    kinds = ("txt", "csv", "json", "svg", "png")
    assert {path.name for path in tmp_path.iterdir()} == {f"ensemble.{kind}" for kind in kinds}
    assert len(json.loads((tmp_path / "ensemble.json").read_text())["findings"]) == 2
    assert (tmp_path / "ensemble.csv").read_text().count("\n") == 1 + 2 * 2 * (MEMBERS + len(SUBSETS))
