"""The study engine: models, plan, store, execution."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest

from normlab import norms
from normlab.models.mlp import MLP, ConvNet
from normlab.study.data.dataset import digits
from normlab.study.design import discovery
from normlab.study.design.plan import Plan
from normlab.study.design.provenance import data_hash
from normlab.study.design.records import EVALUATE, TUNE, Configuration, Record, Run, run_key
from normlab.study.design.tuning import TunedRate, choose_learning_rate, further
from normlab.study.driver import schedule
from normlab.study.executors.local import Local
from normlab.study.worker.identity import describe
from normlab.study.worker.outcome import status_of
from normlab.study.worker.strategy import Strategy, Task
from tests.support.registered import GROUPED
from tests.support.toys import TOY, settings_for


def plan_for(toy: Path, **changes: Any) -> Plan:
    return Plan(discovery.load(str(toy)), settings_for(toy, **changes))


def run_all(
    source: Path,
    strategy: Strategy,
    known: Sequence[Record] = (),
    stop: Callable[[list[Record]], bool] = lambda made: False,
    **changes: Any,
) -> list[Record]:
    """Execute a comparison without a folder."""
    comparison, settings = discovery.load(str(source)), settings_for(source, **changes)
    data = {"scalar": data_hash({"target": np.float32(0.5)})}
    described = describe(discovery.code(str(source)), data, strategy)
    task = Task(source=str(source), settings=settings, identity=described, strategy=strategy)
    made = list(known)
    plan = Plan(comparison, settings)
    for record in schedule.records(task, plan, lambda: [plan.pending(made)], Local(2).start, stop=lambda: stop(made)):
        made.append(record)
    return made


def numbers(records: Sequence[Record]) -> dict[Run, Any]:
    return {record.run: (record.key, record.status, dict(record.metrics)) for record in records}


class TestModels:
    @pytest.mark.parametrize("model", [MLP, ConvNet])
    def test_shared_parameters_start_the_same_for_every_norm(self, model: Any) -> None:
        spatial = ["none", "batch_renorm", "instance"]  # the rest are the MLP's
        names = [n for n in norms.names() if not norms.get(n).needs_spatial] if model is MLP else spatial
        options = {name: {"num_groups": 4} for name in GROUPED} | {"whiten": {"group_size": 4, "allow": True}}
        options["group_whiten"] = {"num_groups": 4}
        starts = {}
        for name in names:
            variables = model(norms.get(name, **options.get(name, {}))).init(
                jax.random.key(7), digits().inputs[:2], train=False
            )
            shared = {k: v for k, v in variables["params"].items() if not k.startswith("norm")}
            starts[name] = shared
            assert len(shared) == (3 if model is MLP else 4)
        for name in names:
            chex.assert_trees_all_equal(starts[name], starts["none"])


def record_of(run: Run, validation: float | None = 0.1, status: str = "ok") -> Record:
    return Record(key="", run=run, identity={}, status=status, metrics={"validation": validation})


def tuned(errors: dict[float, Sequence[float | None]]) -> list[Record]:
    """Tuning records; `None` is a failed run."""
    configuration = Configuration(problem="scalar", norm="none", config=(("batch_size", 2), ("norm", "none")))
    return [
        record_of(
            Run(configuration=configuration, stage=TUNE, learning_rate=rate, seed=1000 + i),
            value,
            "ok" if value is not None else "diverged",
        )
        for rate, values in errors.items()
        for i, value in enumerate(values)
    ]


def best_at(rates: Mapping[str, float], runs: Sequence[Run]) -> list[Record]:
    """Records whose validation error is lowest at a norm's rate, on a logarithmic scale."""
    return [record_of(run, abs(math.log(run.learning_rate / rates[run.configuration.norm]))) for run in runs]


class TestPlan:
    @pytest.mark.parametrize(
        ("errors", "chosen", "edge"),
        [
            ({0.1: [0.2], 0.3: [0.1], 1.0: [0.2]}, 0.3, False),
            ({0.1: [0.2], 0.3: [0.1], 1.0: [0.05]}, 1.0, True),
            ({0.1: [0.1], 0.3: [0.1], 1.0: [0.1]}, 0.1, True),
            ({0.1: [0.3], 0.3: [0.1], 1.0: [0.1]}, 0.3, False),
            ({0.1: [0.3, 0.3], 0.3: [0.0, None], 1.0: [0.4, 0.4]}, 0.1, True),
            ({0.1: [None], 0.3: [None]}, 0.1, True),
            ({0.1: [0.2, 0.2, 0.2], 0.3: [0.0, 0.1, 0.9], 1.0: [0.3, 0.3, 0.3]}, 0.3, False),
        ],
    )
    def test_choice_of_the_learning_rate(self, errors: Any, chosen: float, edge: bool) -> None:
        records = tuned(errors)
        assert choose_learning_rate(records) == TunedRate(chosen, edge)
        assert choose_learning_rate(records[::-1]) == TunedRate(chosen, edge)

    def test_nothing_to_choose_from(self) -> None:
        assert choose_learning_rate([]) is None
        invalid = [dataclasses.replace(record, status="invalid") for record in tuned({0.1: [None]})]
        assert choose_learning_rate(invalid) is None

    def test_evaluation_follows_tuning_with_other_seeds(self, toy: Path) -> None:
        plan = plan_for(toy, norms=("none",))
        tuning = plan.pending([])
        assert [run.stage for run in tuning] == [TUNE] * 6
        records = best_at({"none": 0.1}, tuning)
        assert plan.pending(records[:-1]) == tuning[-1:]
        evaluation = plan.pending(records)
        assert {(run.stage, run.learning_rate) for run in evaluation} == {(EVALUATE, 0.1)}
        assert not {run.seed for run in evaluation} & {run.seed for run in tuning}
        assert plan.pending([*records, *map(record_of, evaluation)]) == []

    def test_an_optimum_at_an_end_gives_the_whole_column_two_more_rates_once(self, toy: Path) -> None:
        plan = plan_for(toy, extend=True, values={"deployed": (2, 4)})
        tuning = plan.pending([])
        column = [run for run in tuning if dict(run.configuration.config)["batch_size"] == 2]
        records = best_at({"none": 0.1, "batch": 1e-9}, column)
        more = [run for run in plan.pending(records) if run not in tuning]
        assert {(run.stage, run.configuration.norm, run.learning_rate) for run in more} == {
            (TUNE, norm, rate) for norm in ("none", "batch") for rate in further((0.01, 0.1, 0.3))[0]
        }
        assert {dict(run.configuration.config)["batch_size"] for run in more} == {2}
        records += best_at({"none": 0.1, "batch": 1e-9}, more)
        evaluation = [run for run in plan.pending(records) if run.stage == EVALUATE]
        assert {(run.configuration.norm, run.learning_rate) for run in evaluation} == {
            ("none", 0.1),
            ("batch", min(run.learning_rate for run in more)),
        }
        choices = {
            configuration.norm: found.choice for configuration, found in plan.of(records).items() if found.choice
        }
        assert [choices[norm].edge for norm in ("none", "batch")] == [False, True]
        assert not [run for run in plan.pending(records) if run.stage == TUNE and run in column]

    def test_no_rate_is_added_where_optima_are_inside_or_nothing_can_be_run(self, toy: Path) -> None:
        for norms_ in (("none",), ("none", "instance")):
            plan = plan_for(toy, extend=True, norms=norms_)
            tuning = plan.pending([])
            records = [
                dataclasses.replace(record, status="invalid") if record.run.configuration.norm == "instance" else record
                for record in best_at({"none": 0.1, "instance": 1e-9}, tuning)
            ]
            assert {run.stage for run in plan.pending(records)} == {EVALUATE}

    def test_evaluation_waits_for_the_column(self, toy: Path) -> None:
        plan = plan_for(toy, extend=True)
        tuning = plan.pending([])
        records = best_at({"none": 0.1}, [run for run in tuning if run.configuration.norm == "none"])
        assert {(run.stage, run.configuration.norm) for run in plan.pending(records)} == {(TUNE, "batch")}

    def test_the_default_rate_waits_for_nothing_and_is_shared_where_it_is_chosen(self, toy: Path) -> None:
        plan = plan_for(toy, norms=("none",), default_learning_rate=0.1)
        first = plan.pending([])
        assert {(run.stage, run.learning_rate) for run in first if run.stage == EVALUATE} == {(EVALUATE, 0.1)}
        assert plan.pending(best_at({"none": 0.1}, first)) == []
        assert {run.learning_rate for run in plan.pending(best_at({"none": 0.3}, first))} == {0.3}

    def test_a_norm_that_the_factor_does_not_touch_is_one_configuration(self) -> None:
        comparison = discovery.load("batch_size")
        curves = {curve.name: curve.factor.values for curve in comparison.curves}
        settings = settings_for(
            "batch_size", problems=("mlp",), norms=("layer", "batch"), curves=tuple(curves), values=curves
        )
        plan = Plan(comparison, settings)
        configurations: dict[tuple[str, str], set[Configuration]] = {}
        for place, configuration in plan.places.items():
            configurations.setdefault((place.curve, place.norm), set()).add(configuration)
        sizes = {key: len(found) for key, found in configurations.items()}
        assert sizes == {
            ("deployed", "layer"): 5,
            ("deployed", "batch"): 5,
            ("isolated", "layer"): 1,
            ("isolated", "batch"): 5,
        }
        assert configurations["isolated", "layer"] < configurations["deployed", "layer"]
        assert len(configurations["isolated", "batch"] & configurations["deployed", "batch"]) == 1
        # Those that differ in the norm alone share a grid: the isolated ones, and the deployed ones of the same batch.
        assert sorted(map(len, plan.groups)) == [2, 2, 2, 2, 6]

    def test_records_of_other_settings_do_not_count(self, toy: Path) -> None:
        plan = plan_for(toy, norms=("none",))
        records = [record_of(run) for run in plan.planned([])]
        records += [record_of(run) for run in plan.pending(records)]
        narrow = plan_for(toy, norms=("none",), learning_rates=(0.1,), seeds=1)
        assert {record.run.learning_rate for record in narrow.relevant(records)} == {0.1}
        assert {record.run.stage for record in narrow.relevant(records)} == {TUNE}

    def test_spatial_norms_need_spatial_axes(self, toy: Path) -> None:
        plan = plan_for(toy, norms=("batch", "instance"))
        batch, instance = plan.configurations
        assert not plan.incompatible(batch)
        assert "spatial" in plan.incompatible(instance)
        assert {len(found.runs) for configuration, found in plan.of([]).items() if configuration == instance} == {6}

    def test_a_written_group_size_replaces_the_number_of_groups(self) -> None:
        comparison = discovery.load("batch_size")
        written = {"group": {"num_groups": 10}, "group:group_size=5": {"group_size": 5}}
        settings = settings_for("batch_size", problems=("mlp",), norms=tuple(written))
        plan = Plan(comparison, settings)
        assert [plan.resolve(place)[0].options for place in plan.places] == list(written.values())

    def test_key_changes_with_run_config_and_identity_only(self) -> None:
        run = tuned({0.1: [0.1]})[0].run
        other = dataclasses.replace(run.configuration, config=(("batch_size", 4), ("norm", "none")))
        base = run_key(run, {"code": "a"})
        assert base == run_key(dataclasses.replace(run), {"code": "a"})
        others = [
            run_key(dataclasses.replace(run, seed=1), {"code": "a"}),
            run_key(dataclasses.replace(run, configuration=other), {"code": "a"}),
            run_key(run, {"code": "b"}),
        ]
        assert len({base, *others}) == 4

    @pytest.mark.parametrize(
        ("grid", "below", "above"),
        [
            ((0.003, 0.01, 0.03, 0.1, 0.3), (0.0003, 0.001), (1.0, 3.0)),
            ((0.1, 0.2), (0.025, 0.05), (0.4, 0.8)),
            ((0.1,), (), ()),
        ],
    )
    def test_a_grid_goes_on_as_it_began(self, grid: Any, below: Any, above: Any) -> None:
        assert further(grid) == (below, above)


class TestExecution:
    def test_failures_are_records_and_the_rest_goes_on(self, toy: Path) -> None:
        records = run_all(toy, Strategy(), norms=("none", "rms", "layer", "group", "instance"))
        by_norm = {
            norm: {r.run.seed: r for r in records if r.run.configuration.norm == norm and r.run.stage == EVALUATE}
            for norm in ("none", "rms", "layer", "group", "instance")
        }
        assert {record.status for record in by_norm["none"].values()} == {"ok"}
        for norm in ("rms", "layer"):
            assert [by_norm[norm][seed].status for seed in range(3)] == ["ok", "error", "ok"]
            assert by_norm[norm][1].metrics == {"validation": None}
        assert by_norm["rms"][1].reason == "RuntimeError: seed 1 always fails"
        assert "died 3 times during this run: it was killed, as the system does" in by_norm["layer"][1].reason
        assert {record.status for record in by_norm["group"].values()} == {"diverged"}
        assert by_norm["group"][0].metrics == {"validation": None, "test": None, "train_loss": None, "chance": None}
        assert "step 0, before any update" in by_norm["group"][0].reason
        assert not by_norm["instance"]
        assert {r.status for r in records if r.run.configuration.norm == "instance"} == {"invalid"}
        assert all("test" not in r.metrics for r in records if r.run.stage == TUNE)

    @pytest.mark.slow
    def test_stacks_in_one_process_agree_with_workers(self, toy: Path) -> None:
        alone = {r.run: r for r in run_all(toy, Strategy())}
        stacked = {r.run: r for r in run_all(toy, Strategy(lanes=4))}
        assert alone.keys() == stacked.keys()
        for run, record in alone.items():
            assert stacked[run].key != record.key
            assert stacked[run].metrics == pytest.approx(record.metrics, abs=1e-6)

    def test_the_order_of_work_does_not_change_numbers(self, toy: Path) -> None:
        whole = run_all(toy, Strategy())
        resumed = run_all(toy, Strategy(), known=whole[3:7])
        assert numbers(whole) == numbers(resumed)

    @pytest.mark.slow
    @pytest.mark.parametrize("strategy", [Strategy(), Strategy(alone=True)], ids=str)
    def test_asked_to_stop_it_ends_between_runs_and_goes_on_later(self, toy: Path, strategy: Strategy) -> None:
        first = run_all(toy, strategy, stop=lambda made: len(made) >= 4)
        assert 4 <= len(first) <= 7
        assert numbers(run_all(toy, strategy, known=first)) == numbers(run_all(toy, strategy))

    def test_a_worker_that_is_killed_once_costs_nothing(self, toy: Path) -> None:
        records = run_all(toy, Strategy(), norms=("batch_renorm",))
        assert toy.with_suffix(".killed").exists()
        assert {record.status for record in records} == {"ok"}

    def test_a_configuration_that_does_not_compile_fails_all_its_runs(self, toy: Path) -> None:
        toy.write_text(TOY.replace("def evaluate(state, data):", "def evaluate(state, data):\n        state['gone']"))
        records = run_all(toy, Strategy(alone=True), norms=("none",))
        assert {(record.status, record.reason) for record in records} == {("error", "KeyError: 'gone'")}

    def test_data_that_change_are_found(self, toy: Path) -> None:
        toy.write_text(TOY.replace("np.float32(0.5)", "np.float32(np.random.default_rng().normal())"))
        records = run_all(toy, Strategy(alone=True), norms=("none",))
        assert {record.status for record in records} == {"error"}
        assert "Expected the same data" in records[0].reason

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_a_metric_that_is_not_finite_is_a_failure(self, value: float) -> None:
        metrics = {"first_nonfinite": -1, "finite": 1, "validation": 0.1, "test": 0.1}
        assert status_of(metrics, 0.9)[0] == "ok"
        for name in ("validation", "test"):
            assert status_of({**metrics, name: value}, None)[0] == "diverged"

    def test_workers_that_cannot_start_end_it(self, toy: Path) -> None:
        plan = plan_for(toy)
        task = Task(source="gone.py", settings=plan.settings, identity={"data": {}}, strategy=Strategy())
        with pytest.raises(RuntimeError, match="cannot start"):
            list(schedule.records(task, plan, lambda: [plan.pending([])], Local(1).start))

    def test_without_configurations_that_can_be_run_nothing_is_trained(self, toy: Path) -> None:
        records = run_all(toy, Strategy(lanes=4), norms=("instance",))
        assert {record.status for record in records} == {"invalid"}
