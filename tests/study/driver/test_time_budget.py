"""The order of runs under a time budget: a table that grows, always fair, and ends as it would without a budget."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from normlab import study
from normlab.errors import BadInput
from normlab.study.analysis.analyse import analyse
from normlab.study.analysis.results import Analysis, CellResult, to_json
from normlab.study.design import discovery
from normlab.study.design.plan import Place, Plan
from normlab.study.design.records import EVALUATE, TUNE, Configuration, Record, Run, by_configuration
from normlab.study.driver import time_budget
from normlab.study.driver.ongoing import Ongoing
from normlab.study.driver.progress import Display
from normlab.study.driver.time_budget import by_distance
from normlab.study.report import advice, html
from normlab.study.report.formatting import provisional
from normlab.study.report.terminal import table_text
from tests.support import synthetic
from tests.support.synthetic import DEPLOYED, NORMS, a_comparison, made_up, some_settings
from tests.support.toys import TOY

COARSE = (0.003, 0.03, 0.3)
"""The coarse grid of the synthetic comparison, whose best rate is another: 0.1, or 1 beyond the grid."""
EARLY = 0.3
"""The choice from it: closer to 0.1 than 0.03 is, on the logarithmic axis."""


def plan_for(norms: Sequence[str] = ("batch", "layer"), values: Sequence[int] = (2, 128), **settings: Any) -> Plan:
    comparison = a_comparison(problems=synthetic.problems()[:1], norms=tuple(norms), curves=(DEPLOYED,))
    fields: dict[str, Any] = {"values": {"deployed": tuple(values)}, "default_learning_rate": None, "seeds": 3}
    return Plan(comparison, some_settings(comparison, **{**fields, **settings}))


def waiting(plan: Plan, rounds: Sequence[time_budget.Round], records: Sequence[Record]) -> Iterator[list[Run]]:
    return time_budget.pending(Ongoing(plan, records), rounds, plan.configurations)


def budgeted(plan: Plan) -> Iterator[Record]:
    """Make all records of a plan one by one in the order of a time budget, with one worker."""
    rounds, records = time_budget.rounds(plan), list[Record]()
    while runs := next(filter(None, waiting(plan, rounds, records)), None):
        for run in next(iter(by_configuration(runs).values())):
            records.append(made(plan, run))
            yield records[-1]


def unbudgeted(plan: Plan, records: Sequence[Record] = ()) -> list[Record]:
    """Complete the records of a plan without a time budget."""
    complete = list(records)
    while runs := plan.pending(complete):
        complete += [made(plan, run) for run in runs]
    return complete


def made(plan: Plan, run: Run) -> Record:
    record = made_up(run)
    reason = plan.incompatible(run.configuration)
    return dataclasses.replace(record, status="invalid", reason=reason, metrics={}) if reason else record


def analysed(plan: Plan, records: Sequence[Record]) -> Analysis:
    return analyse(plan.comparison, plan.settings, records, plan)


def with_error(analysis: Analysis) -> dict[tuple[str, object], int]:
    """Numbers of evaluation runs of the cells that have an error."""
    return {(cell.norm, cell.value): cell.error.n for cell in analysis.cells if cell.error.mean is not None}


def size(configuration: Configuration) -> object:
    return dict(configuration.config)["batch_size"]


class TestOrder:
    def test_the_baseline_and_another_family_at_the_ends_then_all_norms_then_all_values(self) -> None:
        plan = plan_for(NORMS, (2, 4, 8, 32, 128))
        runs = [record.run for record in budgeted(plan)]
        order = list(dict.fromkeys((run.configuration.norm, size(run.configuration)) for run in runs))
        norms = ("batch", "layer", "batch_renorm", "rms", "group", "none")
        ends = [(norm, value) for value in (128, 2) for norm in norms]
        pairs = [(norm, value) for value in (128, 2) for norm in norms[:2]]
        inner = [(norm, value) for value in (8, 32, 4) for norm in norms]
        runnable = [place for place in order if place[0] != "instance"]
        assert runnable == list(dict.fromkeys([*pairs, *ends, *inner]))

    def test_a_coarse_grid_then_few_seeds_of_every_configuration_before_more(self) -> None:
        plan = plan_for(seeds=8)
        runs = [record.run for record in budgeted(plan)]
        steps = [
            (configuration.norm, stage, sorted({run.learning_rate for run in of}), sorted({run.seed for run in of}))
            for (configuration, stage), of in (
                (key, list(of)) for key, of in groupby(runs, lambda run: (run.configuration, run.stage))
            )
        ]
        few = [
            ("batch", TUNE, [*COARSE], [1000]),
            ("batch", EVALUATE, [EARLY], [0, 1]),
            ("layer", TUNE, [*COARSE], [1000]),
            ("layer", EVALUATE, [EARLY], [0, 1]),
        ]
        enough = [("batch", EVALUATE, [EARLY], [2, 3, 4]), ("layer", EVALUATE, [EARLY], [2, 3, 4])]
        assert steps[:8] == few * 2
        assert steps[8:12] == enough * 2
        assert {run.learning_rate for run in runs if run.stage == TUNE} >= set(plan.settings.learning_rates)

    def test_the_last_round_is_the_whole_comparison(self) -> None:
        plan = plan_for()
        rounds = list(waiting(plan, time_budget.rounds(plan), []))
        assert len(rounds) == 5
        assert [run.learning_rate for run in by_configuration(rounds[0])[plan.configurations[0]]] == [*COARSE]
        assert set(rounds[-1]) == set(plan.pending([]))

    def test_a_problem_waits_for_the_ends_of_the_one_before(self) -> None:
        comparison = a_comparison(norms=("batch", "layer", "rms"))
        rounds = time_budget.rounds(Plan(comparison, some_settings(comparison)))
        assert [sorted({one.problem for one in of.configurations}) for of in rounds] == [
            *[["digits-mlp"]] * 2,
            *[["digits-conv"]] * 2,
            *[["digits-conv", "digits-mlp"]] * 2,
        ]
        assert [len(of.configurations) for of in rounds[:4]] == [4, 6, 4, 6]
        assert {size(one) for of in rounds[:4] for one in of.configurations} == {2, 128}

    def test_the_last_round_completes_one_grid_before_the_next(self) -> None:
        comparison = a_comparison(norms=("batch", "layer"), problems=synthetic.problems()[:1])
        plan = Plan(comparison, some_settings(comparison))
        records = [made(plan, run) for of in plan.of([]).values() for run in of.coarse]
        records += [made(plan, run) for of in plan.of(records).values() for run in of.early[:5]]
        *earlier, last = waiting(plan, time_budget.rounds(plan), records)
        assert not any(earlier)
        groups = {configuration: number for number, group in enumerate(plan.groups) for configuration in group}
        order = [number for number, _ in groupby(groups[run.configuration] for run in last)]
        assert order[0] == groups[plan.places[Place(problem="digits-mlp", curve="isolated", value=2, norm="batch")]]
        assert sorted(order) == sorted(set(order)) == [*range(len(plan.groups))]

    def test_without_rounds_the_order_is_that_of_the_plan(self) -> None:
        plan = plan_for(NORMS)
        records = [made(plan, run) for run in plan.pending([])]
        for known in ([], records[:7], records):
            assert list(waiting(plan, (), known)) == [plan.pending(known)]

    def test_norms_that_cannot_be_run_take_no_place(self) -> None:
        plan = plan_for(("batch", "instance", "layer"), (128,))
        first = time_budget.rounds(plan)[0]
        assert [configuration.norm for configuration in first.configurations] == ["batch", "layer"]
        assert {record.run.configuration.norm for record in budgeted(plan)} == {"batch", "instance", "layer"}

    @pytest.mark.parametrize(
        ("values", "reference", "expected"),
        [
            ((2, 4, 32, 128), 32, [128, 2, 32, 4]),
            (("calm", "drift", "shock"), None, ["shock", "calm", "drift"]),
            ((1, 2, 3, 4, 5), 1, [1, 5, 3, 2, 4]),
            ((8,), 8, [8]),
        ],
    )
    def test_values_as_different_as_possible(self, values: Any, reference: Any, expected: list[Any]) -> None:
        assert by_distance(values, reference) == expected


class TestResults:
    def test_the_table_only_grows(self) -> None:
        plan, records = plan_for(), list[Record]()
        before: dict[tuple[str, object], int] = {}
        for record in budgeted(plan):
            records.append(record)
            now = with_error(analysed(plan, records))
            assert all(now[place] >= seeds for place, seeds in before.items())
            before = now
        assert before == {(norm, value): 3 for norm in ("batch", "layer") for value in (2, 128)}

    def test_the_norms_of_a_column_are_always_tuned_over_one_grid(self) -> None:
        plan, records, seen = plan_for(("batch", "layer", "none")), list[Record](), set[object]()
        for record in budgeted(plan):
            records.append(record)
            analysis = analysed(plan, records)
            for value in (2, 128):
                grids = {cell.tuned_over for cell in analysis.cells if cell.value == value and cell.points}
                assert len(grids) <= 1
                seen |= grids
        assert seen == {(3, 5), (3, 7), None}

    def test_a_norm_with_more_rates_is_compared_at_its_coarse_choice(self) -> None:
        plan = plan_for(values=(2,), extend=False)
        batch, layer = plan.configurations
        records = [record for record in unbudgeted(plan) if record.run.configuration == batch]
        assert {cell.tuned_over for cell in analysed(plan, records).cells} == {None}
        records += [made(plan, run) for run in plan.of([])[layer].first(0)]
        records += [made(plan, run) for run in plan.of(records)[layer].first(2)[-2:]]
        cells = {cell.norm: cell for cell in analysed(plan, records).cells}
        assert [(cell.tuned_over, cell.learning_rate) for cell in cells.values()] == [((3, 5), EARLY)] * 2
        assert (cells["batch"].error.n, cells["layer"].error.n) == (0, 2)
        assert cells["layer"].gap is None
        wanted = waiting(plan, time_budget.rounds(plan), records)
        assert {(run.configuration, run.learning_rate) for run in next(wanted)} == {(batch, EARLY)}

    def test_a_coarse_choice_of_the_default_learning_rate_is_reported_early(self) -> None:
        plan = plan_for(values=(2,), default_learning_rate=EARLY)
        records = [made(plan, run) for of in plan.of([]).values() for run in of.coarse]
        records += [made(plan, run) for of in plan.of(records).values() for run in of.early[:2]]
        assert with_error(analysed(plan, records)) == {("batch", 2): 2, ("layer", 2): 2}

    def test_resumed_without_a_budget_at_any_time_it_ends_the_same(self) -> None:
        plan = plan_for(("batch", "layer", "none"))
        whole, records = unbudgeted(plan), list(budgeted(plan))
        expected, text = {record.run for record in whole}, to_json(analysed(plan, whole))
        for stopped in range(0, len(records) + 1, 5):
            resumed = unbudgeted(plan, records[:stopped])
            assert {record.run for record in plan.relevant(resumed)} == expected
            assert to_json(analysed(plan, resumed)) == text
        assert len(records) > len(whole)  # the evaluation at the provisional choices

    @pytest.mark.parametrize("default", [None, EARLY])
    def test_nothing_is_provisional_without_a_time_budget(self, default: float | None) -> None:
        """Neither are runs at a default learning rate that the coarse grid would choose."""
        plan = plan_for(("batch", "layer", "none"), default_learning_rate=default)
        records = unbudgeted(plan)
        for stopped in range(len(records)):
            assert {cell.tuned_over for cell in analysed(plan, records[:stopped]).cells} == {None}

    def test_a_grid_of_few_rates_is_its_own_coarse_grid(self) -> None:
        plan = plan_for(learning_rates=COARSE, extend=False)
        assert {record.run for record in budgeted(plan)} == {record.run for record in unbudgeted(plan)}


def test_progress_counts_additional_runs_in_every_round() -> None:
    plan = plan_for(("batch", "layer", "none"))
    ongoing, records = Ongoing(plan, []), list[Record]()
    display = Display(Console(quiet=True), ongoing, plan.configurations)
    for record in budgeted(plan):
        ongoing.add(record)
        display.add(record)
        records.append(record)
        again = Display(Console(quiet=True), Ongoing(plan, records), plan.configurations)
        assert display.all_runs == again.all_runs
    assert display.all_runs == (len(records), len(records))
    assert display._bar.tasks[0].completed == display._bar.tasks[0].total == len(records)


class TestLabels:
    @pytest.fixture
    def stopped(self) -> Analysis:
        """A comparison whose time budget ended with enough seeds for a recommendation at a provisional choice."""
        plan, records = plan_for(seeds=8), list[Record]()
        for record in budgeted(plan):
            if len(records) > 30 and record.run.stage == TUNE:
                break
            records.append(record)
        return analysed(plan, records)

    def test_the_report_says_how_many_rates_were_tried(self, stopped: Analysis) -> None:
        assert {cell.tuned_over for cell in stopped.cells} == {(3, 5)}
        assert provisional(stopped) == "tuned over 3 of 5 learning rates so far"
        recommended = advice.recommend(stopped)
        assert "Provisional: tuned over 3 of 5 learning rates so far. Unfinished:" in recommended.preface
        assert not any(choice.sure for choice in recommended.choices)
        text = table_text(stopped)
        assert "interval over 5 of 8 seeds so far" in text
        assert "~ provisional: tuned over 3 of 5 learning rates so far" in text
        assert all(
            "~" in line for line in text.splitlines() if line.strip().startswith(("batch ", "layer ")) and "±" in line
        )

    def test_the_page_says_it_at_the_top_and_in_the_cells(self, stopped: Analysis, tmp_path: Path) -> None:
        plan = plan_for(seeds=8)
        path = html.write_html(
            stopped,
            tmp_path,
            comparison=plan.comparison,
            settings=plan.settings,
            identity=synthetic.IDENTITY,  # pyright: ignore[reportArgumentType]
            command="normlab run batch_size",
            wall_seconds=300.0,
        )
        page = path.read_text("utf-8")
        assert page.count("Provisional: tuned over 3 of 5 learning rates so far.") == 1
        assert page.count("<small>3 of 5 rates</small>") >= 4
        assert (tmp_path / "tables/cells.csv").read_text().count("provisional") == 1

    def test_additional_runs_are_listed_and_not_counted(self, stopped: Analysis) -> None:
        additional = [run for run in stopped.runs if run.stage == EVALUATE and run.learning_rate == EARLY]
        assert [run.status for run in additional] == ["ok"] * 20
        assert stopped.counts["done"] == sum(run.stage == TUNE and run.status == "ok" for run in stopped.runs) == 12

    def test_many_seeds_of_a_provisional_choice_are_not_sure(self) -> None:
        plan = plan_for(values=(2,), seeds=40)
        records = [made(plan, run) for of in plan.of([]).values() for run in of.coarse]
        records += [made(plan, run) for of in plan.of(records).values() for run in of.early]
        assert [choice.sure for choice in advice.recommend(analysed(plan, records)).choices] == [False]
        final = advice.recommend(analysed(plan, unbudgeted(plan)))
        assert [choice.sure for choice in final.choices] == [True]


class TestInvocation:
    """Comparison objects, whose runs are in this process."""

    OPTIONS: Mapping[str, Any] = {"learning_rates": (0.01, 0.03, 0.1, 0.3, 0.9), "seeds": 3, "curves": ("deployed",)}

    def test_the_results_are_those_of_one_without_a_budget(self, toy: Path) -> None:
        comparison = discovery.load(str(toy))
        whole = study.run(comparison, **self.OPTIONS, progress=False)
        limited = study.run(comparison, **self.OPTIONS, progress=False, time_budget="10m")
        numbers = {record.key: (record.status, record.metrics) for record in limited.records}
        assert numbers.items() >= {record.key: (record.status, record.metrics) for record in whole.records}.items()
        assert to_json(limited.analysis) == to_json(whole.analysis)
        assert [record.run.learning_rate for record in limited.records[:6:2]] == [0.01, 0.1, 0.9]
        assert [record.run.stage for record in limited.records[6:8]] == [EVALUATE] * 2

    @pytest.mark.parametrize(("value", "refused"), [(2, True), (4, False)])
    def test_the_checks_trace_one_configuration_for_each_norm(self, value: int, refused: bool, toy: Path) -> None:
        broken = f"def evaluate(state, data):\n        if config['batch_size'] == {value}:\n            state['gone']"
        toy.write_text(TOY.replace("def evaluate(state, data):", broken))
        comparison = discovery.load(str(toy))
        with pytest.raises(BadInput, match="gone"):
            study.run(comparison, **self.OPTIONS, progress=False)
        with pytest.raises(BadInput, match="gone") if refused else nullcontext():
            limited = study.run(comparison, **self.OPTIONS, progress=False, time_budget="10m")
            failed = {dict(r.run.configuration.config)["batch_size"] for r in limited.records if r.status == "error"}
            assert failed == {4}


def test_cells_have_no_provisional_choice_at_the_end() -> None:
    plan = plan_for()
    cells: tuple[CellResult, ...] = analysed(plan, list(budgeted(plan))).cells
    assert [(cell.tuned_over, cell.learning_rate) for cell in cells] == [(None, 0.1)] * 4
    assert provisional(analysed(plan, unbudgeted(plan))) == ""
