"""Verdicts on factorial claims: from made-up numbers in every direction, and from the records of a comparison."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import factorial
from experiments.claims import factorial as ground
from experiments.claims.factorial import Cell, Extent, Net, largest_rate
from experiments.claims.study import write
from experiments.claims.verdicts import Judgement, Verdict
from normlab.cli.main import main as normlab
from normlab.errors import BadInput
from normlab.study.design.factors import Curve, Factor
from normlab.study.design.plan import Plan
from normlab.study.design.records import Record
from tests.support import synthetic

SEEDS = 10
EXTENT = Extent(seeds=SEEDS, data="made up", options={})
RATES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
GRID = np.array(RATES)


def cell(
    error: float,
    *,
    spread: float = 0.001,
    loss: float = 0.1,
    failed: int = 0,
    untuned: float | None = None,
    largest: float = 0.3,
    seed: int = 0,
) -> Cell:
    """Runs around an error; rates up to the largest give it, and the next three times as much."""
    noise = spread * np.random.default_rng(seed).normal(size=SEEDS)
    there = np.arange(SEEDS) < failed
    errors = np.where(there, 0.9, error + noise)
    fixed = np.full(0, 0.0) if untuned is None else untuned + noise
    tuning = {rate: np.full(SEEDS, error if rate <= largest else 3 * error) for rate in RATES}
    losses = np.where(there, np.nan, loss * (1 + noise))
    return Cell(
        errors=errors,
        failed=there,
        validation=errors,
        losses=losses,
        untuned=fixed,
        rate=0.1,
        tuning=tuning,
        chance=0.9,
    )


def net(name: str = "mlp", title: str = "MLP", **curves: Mapping[tuple[str, Any], Cell]) -> Net:
    norms = list(dict.fromkeys(norm for cells in curves.values() for norm, _ in cells))
    values = {curve: list(dict.fromkeys(value for _, value in cells)) for curve, cells in curves.items()}
    return Net(name=name, title=title, norms=norms, values=values, cells=curves)


def judged(judge: Callable[[Extent, Net], Judgement], one: Net) -> tuple[dict[str, str], list[bool], str]:
    """The verdicts by claim, whether the bars are met, and the paragraph."""
    found = judge(EXTENT, one)
    verdicts = {finding.claim.key: str(finding.verdict) for finding in found.findings}
    return verdicts, [bar.met for bar in found.bars], " ".join(found.sentences)


def placed(before: float, after: float, name: str = "mlp", spread: float = 0.001, **none: Any) -> Net:
    cells = {("batch", "before"): cell(before, spread=spread), ("batch", "after"): cell(after, spread=spread, seed=1)}
    lone = cell(**{"error": 0.05, **none})
    return net(name, placement={**cells, ("none", "before"): lone, ("none", "after"): lone})


class TestPlacement:
    @pytest.mark.parametrize(
        ("before", "after", "verdict", "words", "bar"),
        [
            (0.03, 0.04, Verdict.HOLDS, "Before is better", True),
            (0.04, 0.03, Verdict.FAILS, "After is better", True),
            (0.03, 0.06, Verdict.HOLDS, "Before is better", False),
            (0.03, 0.03, Verdict.UNSEEN, "No difference is visible", True),
        ],
    )
    def test_of_rectifiers(self, before: float, after: float, verdict: str, words: str, bar: bool) -> None:
        verdicts, bars, paragraph = judged(factorial.placement, placed(before, after))
        assert verdicts == {"before": verdict}
        assert words in paragraph and bars == [bar]

    @pytest.mark.parametrize(
        ("after", "failed", "verdicts", "bars"),
        [
            (0.05, SEEDS, (Verdict.FAILS, Verdict.HOLDS), [True, True]),
            (0.09, SEEDS, (Verdict.HOLDS, Verdict.HOLDS), [False, True]),
            (0.07, 3, (Verdict.UNSEEN, Verdict.UNSEEN), [False, False]),
            (0.07, 0, (Verdict.UNSEEN, Verdict.FAILS), [False, False]),
        ],
    )
    def test_of_sigmoids(self, after: float, failed: int, verdicts: Sequence[str], bars: list[bool]) -> None:
        found = judged(factorial.placement, placed(0.07, after, "mlp-sigmoid", error=0.1, failed=failed))
        assert found[0] == dict(zip(("dead_zone", "sigmoid"), verdicts, strict=True))
        assert found[1] == bars
        assert (f"{failed} of {SEEDS} runs failed" in found[2]) == bool(failed)

    def test_says_where_networks_without_a_norm_fail(self) -> None:
        one = placed(0.07, 0.05, "mlp-sigmoid", error=0.1)
        none = one.cells["placement"]["none", "before"]
        assert "every run fails" not in judged(factorial.placement, one)[2]
        failing = replace(none, rate=3.0, tuning={**none.tuning, 0.1: np.full(SEEDS, np.inf)})
        one.cells["placement"]["none", "before"] = failing  # pyright: ignore[reportIndexIssue]
        assert "at a learning rate of 3; at learning rates 0.1 every run fails" in judged(factorial.placement, one)[2]


def dropped(few: Sequence[float], many: Sequence[float], losses: Sequence[float] = (0.2, 0.1), **more: Any) -> Net:
    """Errors without a norm at rates 0 and 0.3, then with batch norm, for few and for all examples."""

    def curve(errors: Sequence[float]) -> dict[tuple[str, float], Cell]:
        places = [("none", 0), ("none", 0.3), ("batch", 0), ("batch", 0.3)]
        by_norm = dict(zip(("none", "batch"), losses, strict=True))
        return {
            place: cell(error, loss=by_norm[place[0]], seed=i)
            for i, (place, error) in enumerate(zip(places, errors, strict=True))
        }

    return net(all=curve(many), few=curve(few), **{name: curve(errors) for name, errors in more.items()})


class TestDropout:
    def test_replaced_by_the_norm_which_does_not_regularize(self) -> None:
        one = dropped((0.10, 0.09, 0.09, 0.085), (0.05, 0.06, 0.04, 0.05), longer=(0.05, 0.04, 0.03, 0.03))
        verdicts, bars, paragraph = judged(factorial.dropout, one)
        assert verdicts == {
            "replaces_dropout": Verdict.HOLDS,
            "regularizes": Verdict.FAILS,
            "dropout_harms": Verdict.HOLDS_WHEN,
        }
        assert bars == [True] * 5
        harm = factorial.dropout(EXTENT, one).findings[2]
        assert harm.when.startswith("for all examples; the opposite for a tenth of the examples; the effect is that of")
        assert harm.seen.mean == pytest.approx(1, abs=0.2)
        assert "MLP, four times the updates: batch norm without dropout minus" in paragraph

    def test_longer_training_is_a_condition_of_its_own(self) -> None:
        places, errors = [("none", 0), ("none", 0.3), ("batch", 0), ("batch", 0.3)], (0.05, 0.04, 0.03, 0.03)
        one = dropped((0.10, 0.09, 0.09, 0.085), (0.05, 0.06, 0.04, 0.05), longer=errors)
        fitted = zip(places, errors, (0.01, 0.02, 0.02, 0.03), strict=True)
        one.cells["longer"].update({place: cell(e, loss=loss, seed=i) for i, (place, e, loss) in enumerate(fitted)})  # pyright: ignore[reportAttributeAccessIssue]
        regularizes = factorial.dropout(EXTENT, one).findings[1]
        assert regularizes.verdict == Verdict.HOLDS_WHEN
        assert regularizes.when.startswith("for four times the updates; the opposite for all examples, a")
        assert regularizes.seen.mean == pytest.approx(2, rel=0.1)
        assert len(factorial.dropout(EXTENT, one).bars) == 5

    def test_needed_beside_a_norm_that_regularizes(self) -> None:
        one = dropped((0.10, 0.05, 0.09, 0.06), (0.05, 0.03, 0.05, 0.03), losses=(0.1, 0.2))
        verdicts, bars, paragraph = judged(factorial.dropout, one)
        assert verdicts == {
            "replaces_dropout": Verdict.FAILS,
            "regularizes": Verdict.HOLDS,
            "dropout_harms": Verdict.FAILS,
        }
        assert bars == [False] * 5
        assert "four times" not in paragraph

    def test_replaced_where_there_are_enough_examples(self) -> None:
        found = factorial.dropout(EXTENT, dropped((0.10, 0.05, 0.09, 0.09), (0.05, 0.06, 0.04, 0.04)))
        first = found.findings[0]
        assert first.verdict == Verdict.HOLDS_WHEN and first.when.endswith("the effect is that of all examples")
        assert first.seen.mean < 0
        assert found.findings[2].verdict == Verdict.UNSEEN

    def test_the_rate_is_chosen_by_validation(self) -> None:
        one = dropped((0.10, 0.09, 0.09, 0.085), (0.05, 0.06, 0.04, 0.05))
        tempting = replace(cell(0.01), validation=np.full(SEEDS, 0.5))
        cells = {
            name: {**cells, ("none", 0.5): tempting, ("batch", 0.5): tempting} for name, cells in one.cells.items()
        }
        assert judged(factorial.dropout, net(**cells))[0]["replaces_dropout"] == Verdict.HOLDS


SCALES = (0.01, 0.1, 1.0, 10.0)


def scaled(none: Sequence[float], batch: Sequence[float], largest: Mapping[str, float]) -> Net:
    return net(
        scale={
            (norm, scale): cell(0.05, untuned=error, largest=largest[norm], spread=1e-4)
            for norm, errors in (("none", none), ("batch", batch))
            for scale, error in zip(SCALES, errors, strict=True)
        }
    )


class TestInitialization:
    def test_robust(self) -> None:
        one = scaled((0.9, 0.14, 0.05, 0.9), (0.09, 0.046, 0.04, 0.095), {"none": 0.3, "batch": 1.0})
        verdicts, bars, paragraph = judged(factorial.initialization, one)
        assert verdicts == {"rates": Verdict.HOLDS, "initial_scale": Verdict.HOLDS} and bars == [True] * 4
        assert "0.3 without a norm and 1 with batch norm" in paragraph

    def test_as_fragile_as_without(self) -> None:
        one = scaled((0.06, 0.06, 0.05, 0.06), (0.9, 0.3, 0.04, 0.9), {"none": 1.0, "batch": 0.1})
        verdicts, bars, _ = judged(factorial.initialization, one)
        assert verdicts == {"rates": Verdict.FAILS, "initial_scale": Verdict.FAILS} and bars == [False] * 4

    def test_no_difference(self) -> None:
        one = scaled((0.06, 0.06, 0.05, 0.9), (0.06, 0.06, 0.05, 0.9), {"none": 3.0, "batch": 3.0})
        verdicts, _, paragraph = judged(factorial.initialization, one)
        assert verdicts == {"rates": Verdict.UNSEEN, "initial_scale": Verdict.UNSEEN}
        assert "at least 3 with batch norm" in paragraph

    def test_without_a_norm_nothing_may_learn(self) -> None:
        one = scaled((0.9, 0.9, 0.9, 0.9), (0.09, 0.046, 0.04, 0.095), {"none": 0.3, "batch": 1.0})
        for (norm, _), of in one.cells["scale"].items():
            if norm == "none":
                of.tuning.update({rate: np.full(SEEDS, 0.9) for rate in of.tuning})  # pyright: ignore[reportAttributeAccessIssue]
        verdicts, _, paragraph = judged(factorial.initialization, one)
        assert verdicts["rates"] == Verdict.UNSEEN
        assert "is no rate without a norm and 1 with batch norm (geometric means, n = 0)" in paragraph

    def test_a_network_that_fails_at_every_scale_is_not_robust(self) -> None:
        assert factorial._decades(SCALES, np.full(4, 0.9), 0.9) == 0
        assert factorial._decades(SCALES, np.array([0.89, 0.85, 0.88, 0.89]), 0.9) == 0
        assert factorial._decades(SCALES, np.array([0.1, 0.05, 0.04, 0.9]), 0.9) == pytest.approx(2)
        assert factorial._decades(SCALES, np.array([0.05, 0.9, 0.04, 0.05]), 0.9) == pytest.approx(1)

    def test_a_hard_data_set_has_a_width_too(self) -> None:
        assert factorial._decades(SCALES, np.array([0.51, 0.47, 0.6, 0.9]), 0.9) == pytest.approx(2)
        assert factorial._decades(SCALES, np.array([0.9, 0.54, 0.75, 0.9]), 0.9) == 0

    def test_the_largest_rate_of_each_seed(self) -> None:
        tuning = {
            0.1: np.array([0.1, 0.2, np.inf]),
            0.3: np.array([0.2, 0.1, np.inf]),
            1.0: np.array([0.21, 0.2, np.inf]),
        }
        np.testing.assert_array_equal(largest_rate(replace(cell(0.1), tuning=tuning)), [0.3, 1.0, np.nan])
        hard = {0.1: np.array([0.46, 0.85]), 0.3: np.array([0.6, 0.86]), 1.0: np.array([0.86, 0.87])}
        np.testing.assert_array_equal(largest_rate(replace(cell(0.1), tuning=hard)), [0.3, np.nan])


def sized(gaps: Mapping[int, float], spread: float = 0.001) -> Net:
    cells = {}
    for size, gap in gaps.items():
        cells["none", size] = cell(0.2, spread=spread)
        cells["batch", size] = cell(0.2 + gap, spread=spread, seed=1)
    return net(size=cells)


class TestTrainingSize:
    @pytest.mark.parametrize(
        ("few", "many", "spread", "verdict", "bars", "trend"),
        [
            (0.0, -0.02, 0.001, Verdict.FAILS, [True, True], "grows"),
            (-0.05, -0.02, 0.001, Verdict.HOLDS, [False, True], "shrinks"),
            (0.03, 0.0, 0.001, Verdict.FAILS, [False, False], "grows"),
            (0.0, 0.0, 0.001, Verdict.UNSEEN, [True, False], "does not visibly change"),
            (0.0, -0.06, 0.03, Verdict.UNSEEN, [False, True], "grows"),
        ],
    )
    def test_verdicts(self, few: float, many: float, spread: float, verdict: str, bars: list[bool], trend: str) -> None:
        verdicts, met, paragraph = judged(factorial.training_size, sized({100: few, 1000: many}, spread))
        assert (verdicts, met) == ({"less_data": verdict}, bars)
        assert f"removes {trend} with the examples" in paragraph

    def test_says_from_where_there_is_a_gain(self) -> None:
        found = factorial.training_size(EXTENT, sized({100: 0.0, 500: -0.02, 1000: -0.02}))
        assert found.findings[0].when == "a gain is visible from 500 examples on"


def deep(plain: float, residual: float, none: float, at_32: float = 0.5) -> Net:
    depths = {4: 0.07, 32: at_32, 48: plain}
    return net(
        plain={("batch", d): cell(e, spread=0.01, seed=d) for d, e in depths.items()}
        | {("none", d): cell(none, spread=0.01) for d in depths},
        residual={(norm, d): cell(residual, spread=0.01, seed=1) for d in depths for norm in ("batch", "none")},
    )


class TestDepth:
    @pytest.mark.parametrize(
        ("one", "verdicts", "bars", "words"),
        [
            (deep(0.75, 0.2, 0.3), (Verdict.HOLDS, Verdict.HOLDS), [True] * 4, "makes more errors than"),
            (
                deep(0.2, 0.19, 0.8, 0.1),
                (Verdict.FAILS, Verdict.FAILS),
                [False, False, True, False],
                "makes fewer errors",
            ),
            (deep(0.75, 0.65, 0.75), (Verdict.UNSEEN, Verdict.FAILS), [True, True, True, False], "not differ visibly"),
            (deep(0.75, 0.65, 0.65), (Verdict.UNSEEN, Verdict.UNSEEN), [True, True, True, False], "makes more errors"),
        ],
        ids=["as published", "trains", "as bad without", "unseen"],
    )
    def test_verdicts(self, one: Net, verdicts: Sequence[str], bars: list[bool], words: str) -> None:
        found = judged(factorial.depth, one)
        assert found[0] == dict(zip(("too_deep", "blame"), verdicts, strict=True))
        assert found[1] == bars
        assert words in found[2]


def thinned(second: float, third: float, none: float, spread: float = 0.0005, largest: float = 0.1) -> Net:
    errors = {1: 0.044, 2: second, 3: third}
    return net(
        every={("batch", k): cell(e, spread=spread, seed=k) for k, e in errors.items()}
        | {("none", k): cell(none, spread=spread, largest=largest) for k in errors}
    )


class TestEveryLayer:
    @pytest.mark.parametrize(
        ("one", "verdict", "when", "bars"),
        [
            (thinned(0.044, 0.046, 0.054), Verdict.HOLDS, "", [True] * 3),
            (thinned(0.044, 0.052, 0.054), Verdict.HOLDS_WHEN, "every second layer has one", [True, False, True]),
            (thinned(0.052, 0.053, 0.054, largest=0.3), Verdict.FAILS, "", [False, False, False]),
            (thinned(0.044, 0.044, 0.044), Verdict.UNSEEN, "batch norm has no visible gain", None),
            (thinned(0.034, 0.030, 0.040), Verdict.HOLDS, "fewer norms make fewer errors here", None),
            (thinned(0.034, 0.120, 0.040), Verdict.UNSEEN, "batch norm has no visible gain", None),
            (thinned(0.047, 0.047, 0.4, spread=0.01), Verdict.UNSEEN, "", [False, True, True]),
        ],
    )
    def test_verdicts(self, one: Net, verdict: str, when: str, bars: list[bool] | None) -> None:
        found = factorial.every_layer(EXTENT, one)
        assert (found.findings[0].verdict, found.findings[0].when[: len(when) or 1]) == (verdict, when)
        assert bars is None or [bar.met for bar in found.bars] == bars
        assert "on every 2nd layer" in found.sentences[0]
        assert ("of the gain kept" in found.sentences[0]) == (bars is not None)


@pytest.mark.parametrize("study", factorial.STUDIES.values(), ids=factorial.STUDIES)
def test_nothing_is_said_without_the_runs(study: Any) -> None:
    found = study.judge(EXTENT, (net(other={("batch", 1): cell(0.1)}),))
    assert found == factorial.NOTHING


CURVE = Curve(
    name="placement",
    title="Place of the norm",
    factor=Factor(name="placement", label="place", flag="--placements", values=("before", "after"), log=False),
    config=lambda place: {"batch_size": 32, "placement": place},
)


def simulated(change: Callable[[Record], Record]) -> tuple[Plan, list[Record]]:
    problem = replace(synthetic.problems()[0], name="mlp")
    comparison = synthetic.a_comparison(name="placement", problems=(problem,), norms=("none", "batch"), curves=(CURVE,))
    settings = synthetic.some_settings(comparison)
    return Plan(comparison, settings), synthetic.simulate(comparison, settings, change)


def test_records_become_cells_with_failures_counted(tmp_path: Path) -> None:
    def change(record: Record) -> Record:
        fails = record.run.configuration.norm == "none" and record.run.seed in (1, 4)
        return synthetic.failed(record) if fails else record

    plan, records = simulated(change)
    (one,) = ground.nets(plan, records)
    none = one.cells["placement"]["none", "before"]
    assert none.failed.tolist() == [seed in (1, 4) for seed in range(10)]
    assert none.errors[1] == none.chance == 0.9 and none.untuned[4] == 0.9 and np.isnan(none.losses[1])
    known = {record.run: record for record in records}
    planned = plan.of(records)[plan.places[next(iter(plan.places))]]
    assert none.errors[0] == known[planned.evaluation[0]].metrics["test"]
    assert sorted(none.tuning) == sorted({run.learning_rate for run in planned.tuning})
    with pytest.raises(BadInput, match="Expected a finished comparison, got one without"):
        ground.nets(plan, records[:-1])

    extent = ground.extent(plan.settings)
    placement = factorial.STUDIES["placement"]
    write(tmp_path, placement, extent, (one,), placement.judge(extent, (one,)), {"command": "none"})
    document = json.loads((tmp_path / "placement.json").read_text())
    assert document["findings"][0]["claim"]["key"] == "before" and document["plan"]["seeds"] == 10
    for ending in ("csv", "txt", "svg", "png"):
        assert (tmp_path / f"placement.{ending}").stat().st_size > 100
    assert (tmp_path / "placement.csv").read_text().count('errors,none,"MLP on digits, placement, before"') == 10


def test_a_command_is_stored_without_the_folders_of_a_machine() -> None:
    command = "normlab run depth --output 'my runs/1' --data 'npz:a b.npz' --data-dir DIR --tier smoke"
    assert ground.without_places(command) == "normlab run depth --data 'npz:a b.npz' --tier smoke"


FIGURES = {
    "dropout": dropped((0.10, 0.09, 0.09, 0.085), (0.05, 0.06, 0.04, 0.05)),
    "initialization": scaled((0.9, 0.14, 0.05, 0.9), (0.09, 0.046, 0.04, 0.095), {"none": 0.3, "batch": 1.0}),
    "training_size": sized({100: 0.0, 1000: -0.02}),
    "depth": deep(0.75, 0.2, 0.3),
    "every_layer": thinned(0.044, 0.046, 0.054),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_study_is_written_with_a_line_for_each_norm(name: str, tmp_path: Path) -> None:
    study = factorial.STUDIES[name]
    write(tmp_path, study, EXTENT, (FIGURES[name],), study.judge(EXTENT, (FIGURES[name],)), {})
    document = json.loads((tmp_path / f"{name}.json").read_text())
    assert {finding["claim"]["key"] for finding in document["findings"]} == {claim.key for claim in study.claims}
    assert all(isinstance(bar["met"], bool) for bar in document["bars"]) and document["bars"]
    drawing = study.draw(EXTENT, (FIGURES[name],))[name]
    assert [len(axes.lines) for axes in drawing.axes] == [2] * len(drawing.axes)
    assert len(drawing.axes) == {"dropout": 4, "initialization": 3, "depth": 2}.get(name, 1)


def test_a_folder_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        factorial.main([str(tmp_path)])
    assert "error:" in capsys.readouterr().err


@pytest.mark.slow
def test_the_folder_of_a_run_is_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs, claims = str(tmp_path / "runs"), tmp_path / "claims"
    assert normlab(["run", "training_size", "--tier", "smoke", "--epochs", "1", "--output", runs]) == 0
    factorial.main([runs, "--output", str(claims)])
    assert "Networks with batch norm need fewer examples" in capsys.readouterr().out
    assert {path.suffix for path in claims.iterdir()} == {".json", ".csv", ".txt", ".svg", ".png"}
    with pytest.raises(SystemExit):
        factorial.main([runs, runs])
    assert "Expected one folder of `training_size`" in capsys.readouterr().err
