"""The study engine: data, models, training, plan, store, execution."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normlab import norms
from normlab.study import catalogue, execute, identity, plan
from normlab.study.config import EVALUATE, TUNE, Cell, Record, Run, Settings
from normlab.study.data import data_hash, digits, permutations, split
from normlab.study.errors import BadInput
from normlab.study.invocation import Invocation
from normlab.study.models import MLP, Conv3x3, ConvNet
from normlab.study.store import Header, Store
from normlab.study.train import check, compile_cell, compile_stack, supervised

TOY = (Path(__file__).parent / "toy.py").read_text()


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    path = tmp_path / "toy.py"
    path.write_text(TOY)
    return path


def settings_for(source: Path | str, **changes: Any) -> Settings:
    fields: dict[str, Any] = {
        "comparison": "toy",
        "source": str(source),
        "tier": "quick",
        "problems": ("scalar",),
        "norms": ("none", "batch"),
        "values": (2,),
        "learning_rates": (0.01, 0.1, 0.3),
        "epochs": 3,
        "tuning_seeds": 2,
        "seeds": 3,
    }
    return Settings(**{**fields, **changes})


def run_all(source: Path, strategy: execute.Strategy, known: Sequence[Record] = (), **changes: Any) -> list[Record]:
    """Execute a comparison without a folder."""
    comparison, settings = catalogue.load(str(source)), settings_for(source, **changes)
    described = identity.describe(source, {"scalar": "data"}, str(strategy))
    task = execute.Task(source=str(source), settings=settings, identity=described, strategy=strategy)
    made = list(known)
    for record in execute.records(task, comparison, lambda: plan.pending(comparison, settings, made), jobs=2):
        made.append(record)
    return made


def numbers(records: Sequence[Record]) -> dict[Run, Any]:
    return {record.run: (record.key, record.status, dict(record.metrics)) for record in records}


class TestData:
    def test_split_is_disjoint_complete_and_decided_by_the_seed(self) -> None:
        parts = split(1797, 3)
        assert [len(parts[name]) for name in ("train", "validation", "test")] == [1024, 256, 517]
        assert sorted(np.concatenate(list(parts.values()))) == list(range(1797))
        chex.assert_trees_all_equal(parts, split(1797, 3))
        assert (parts["train"] != split(1797, 4)["train"]).any()

    def test_split_leaves_something_to_test_on(self) -> None:
        with pytest.raises(ValueError, match="below 1280 examples"):
            split(1280, 0)

    def test_digits_are_images_in_the_unit_interval(self) -> None:
        data = digits()
        assert data.inputs.shape == (1797, 8, 8, 1)
        assert (data.inputs.dtype, data.labels.dtype) == (np.float32, np.int32)
        assert (data.inputs.min(), data.inputs.max()) == (0, 1)
        assert np.bincount(data.labels).min() > 170

    def test_every_epoch_has_its_own_order(self) -> None:
        indices = np.arange(100, 120, dtype=np.int32)
        orders = permutations(indices, 3, seed=0)
        assert (np.sort(orders, axis=1) == indices).all()
        assert len({tuple(order) for order in orders}) == 3
        assert (orders != permutations(indices, 3, seed=1)).any()

    def test_hash_sees_values_types_and_names(self) -> None:
        a = np.arange(4, dtype=np.int32)
        hashes = [data_hash(d) for d in ({"a": a}, {"b": a}, {"a": a + 1}, {"a": a.astype(np.float32)}, {"a": a[None]})]
        assert len(set(hashes)) == len(hashes)


class TestModels:
    @pytest.mark.parametrize("model", [MLP, ConvNet])
    def test_shared_parameters_start_the_same_for_every_norm(self, model: Any) -> None:
        spatial = ["none", "batch_renorm", "instance"]  # the rest are the MLP's
        names = [n for n in norms.names() if not norms.get(n).needs_spatial] if model is MLP else spatial
        options = {"group": {"num_groups": 4}}
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

    @pytest.mark.parametrize(("size", "stride"), [(8, 1), (8, 2), (7, 2)])
    def test_convolution_is_xlas(self, stride: int, size: int) -> None:
        x = jax.random.normal(jax.random.key(0), (2, size, size, 3))
        module = Conv3x3(5, stride)
        variables = module.init(jax.random.key(1), x)
        side = -(-size // stride)
        cotangent = jax.random.normal(jax.random.key(2), (2, side, side, 5))

        def ours(kernel: jax.Array, x: jax.Array) -> jax.Array:
            y: Any = module.apply({"params": {**variables["params"], "kernel": kernel}}, x)
            return jnp.vdot(y, cotangent)

        def theirs(kernel: jax.Array, x: jax.Array) -> jax.Array:
            y = jax.lax.conv_general_dilated(
                x, kernel, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            return jnp.vdot(y, cotangent)

        mine, reference = (
            jax.jit(jax.value_and_grad(f, (0, 1)))(variables["params"]["kernel"], x) for f in (ours, theirs)
        )
        chex.assert_trees_all_close(mine, reference, rtol=1e-4, atol=1e-4)


def small(norm: str = "batch", batch_size: int = 128, epochs: int = 1) -> Any:
    return supervised(digits(), MLP(norms.get(norm), hidden=(16,)), batch_size=batch_size, epochs=epochs)


class TestTraining:
    def test_a_cell_is_traced_once(self) -> None:
        program = small()
        chex.clear_trace_counter()
        step = chex.assert_max_traces(program.step, n=1)
        run = compile_cell(dataclasses.replace(program, step=step))
        losses = {run(rate, seed)["train_loss"] for rate in (0.01, 0.1) for seed in (0, 1)}
        assert len(losses) == 4

    def test_same_seed_gives_the_same_numbers(self) -> None:
        assert compile_cell(small())(0.1, 3) == compile_cell(small())(0.1, 3)

    @pytest.mark.parametrize("norm", ["batch", "layer"])
    def test_stacked_runs_are_those_that_run_alone(self, norm: str) -> None:
        program = small(norm)
        stack, alone = compile_stack(program, 4), compile_cell(program)
        rates, seeds = [0.01, 0.1, 0.1], [0, 0, 5]
        stacked = stack(rates, seeds)
        for result, rate, seed in zip(stacked, rates, seeds, strict=True):
            expected = alone(rate, seed)
            assert result["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)
            assert result["test"] == pytest.approx(expected["test"], abs=2.5 / 517)
        assert stack(rates[:1], seeds[:1]) == stacked[:1]

    def test_it_learns(self) -> None:
        metrics = compile_cell(small(batch_size=32, epochs=5))(0.1, 0)
        assert metrics["finite"] == 1
        assert metrics["first_nonfinite"] == -1
        assert metrics["test"] < 0.1

    def test_a_smaller_last_batch_is_left_out(self) -> None:
        program = small(batch_size=300, epochs=2)
        assert (program.steps, program.last) == (6, 3)
        assert program.init(0).order.shape == (6, 300)

    def test_a_batch_larger_than_the_training_set_is_refused(self) -> None:
        with pytest.raises(ValueError, match="1 to 1024 examples"):
            small(batch_size=1025)

    def test_check_finds_shapes_that_do_not_fit(self) -> None:
        check(small("layer"))
        with pytest.raises(ValueError, match="group"):
            check(supervised(digits(), MLP(norms.get("group:num_groups=7")), batch_size=8, epochs=1))

    def test_divergence_is_seen_in_the_loss_and_in_outputs(self) -> None:
        metrics = compile_cell(small("none", batch_size=32))(1e30, 0)
        assert metrics["first_nonfinite"] > 0
        status, reason = execute.status_of(metrics, 0.9)
        assert status == "diverged"
        assert f"step {int(metrics['first_nonfinite'])}" in reason
        only_outputs = {"first_nonfinite": -1, "finite": 0, "validation": 0.9}
        assert execute.status_of(only_outputs, 0.9)[0] == "diverged"

    @pytest.mark.parametrize(("error", "status"), [(0.84, "ok"), (0.86, "collapsed"), (0.95, "collapsed")])
    def test_collapse_is_near_chance_or_above(self, error: float, status: str) -> None:
        assert execute.status_of({"first_nonfinite": -1, "finite": 1, "validation": error}, 0.9)[0] == status


def record_of(run: Run, validation: float | None = 0.1, status: str = "ok") -> Record:
    return Record(key="", run=run, config={}, identity={}, status=status, metrics={"validation": validation})


def tuned(errors: dict[float, Sequence[float | None]]) -> list[Record]:
    """Tuning records; `None` is a failed run."""
    cell = Cell(problem="scalar", norm="none", value=2)
    return [
        record_of(
            Run(cell=cell, stage=TUNE, learning_rate=rate, seed=1000 + i),
            value,
            "ok" if value is not None else "diverged",
        )
        for rate, values in errors.items()
        for i, value in enumerate(values)
    ]


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
        assert plan.choose_learning_rate(records) == plan.Choice(chosen, edge)
        assert plan.choose_learning_rate(records[::-1]) == plan.Choice(chosen, edge)

    def test_nothing_to_choose_from(self) -> None:
        assert plan.choose_learning_rate([]) is None
        invalid = [dataclasses.replace(record, status="invalid") for record in tuned({0.1: [None]})]
        assert plan.choose_learning_rate(invalid) is None

    def test_evaluation_follows_tuning_with_other_seeds(self, toy: Path) -> None:
        comparison, settings = catalogue.load(str(toy)), settings_for(toy, norms=("none",))
        tuning = plan.pending(comparison, settings, [])
        assert [run.stage for run in tuning] == [TUNE] * 6
        records = [record_of(run, abs(run.learning_rate - 0.1)) for run in tuning]
        assert plan.pending(comparison, settings, records[:-1]) == tuning[-1:]
        evaluation = plan.pending(comparison, settings, records)
        assert {(run.stage, run.learning_rate) for run in evaluation} == {(EVALUATE, 0.1)}
        assert not {run.seed for run in evaluation} & {run.seed for run in tuning}
        assert plan.pending(comparison, settings, [*records, *map(record_of, evaluation)]) == []

    def test_records_of_other_settings_do_not_count(self, toy: Path) -> None:
        comparison, settings = catalogue.load(str(toy)), settings_for(toy, norms=("none",))
        records = [record_of(run) for run in plan.planned(comparison, settings, [])]
        records += [record_of(run) for run in plan.pending(comparison, settings, records)]
        narrow = settings_for(toy, norms=("none",), learning_rates=(0.1,), seeds=1)
        assert all(run.run.learning_rate == 0.1 for run in plan.relevant(comparison, narrow, records))
        assert {record.run.stage for record in plan.relevant(comparison, narrow, records)} == {TUNE}

    def test_spatial_norms_need_spatial_axes(self, toy: Path) -> None:
        comparison = catalogue.load(str(toy))
        assert not plan.incompatible(comparison, Cell(problem="scalar", norm="batch", value=2))
        assert "spatial" in plan.incompatible(comparison, Cell(problem="scalar", norm="instance", value=2))

    def test_a_written_group_size_replaces_the_number_of_groups(self) -> None:
        comparison = catalogue.load("batch_size")
        settings = settings_for("batch_size")
        for norm, options in {"group": {"num_groups": 10}, "group:group_size=5": {"group_size": 5}}.items():
            cell = Cell(problem="digits-mlp", norm=norm, value=8)
            assert plan.resolve(comparison, settings, cell)[0].options == options

    def test_key_changes_with_run_config_and_identity_only(self) -> None:
        run = tuned({0.1: [0.1]})[0].run
        base = identity.run_key(run, {"epochs": 2}, {"code": "a"})
        assert base == identity.run_key(dataclasses.replace(run), {"epochs": 2}, {"code": "a"})
        others = [
            identity.run_key(dataclasses.replace(run, seed=1), {"epochs": 2}, {"code": "a"}),
            identity.run_key(run, {"epochs": 3}, {"code": "a"}),
            identity.run_key(run, {"epochs": 2}, {"code": "b"}),
        ]
        assert len({base, *others}) == 4


class TestStore:
    def header(self, comparison: str = "toy") -> Header:
        settings = dataclasses.replace(settings_for("toy.py"), comparison=comparison)
        return Header(settings=settings, identity={"code": "x"}, command="normlab run toy.py", wall_seconds=1.5)

    def test_records_and_header_come_back_as_they_were(self, tmp_path: Path) -> None:
        store = Store(tmp_path / "new" / "folder")
        store.write_header(self.header())
        record = dataclasses.replace(tuned({0.1: [None]})[0], key="ab" * 32, timing={"run": 0.5})
        store.add(record)
        assert list(store.records()) == [record]
        assert store.header() == self.header()

    def test_half_written_files_are_not_read(self, tmp_path: Path) -> None:
        store = Store(tmp_path)
        store.write_header(self.header())
        store.add(dataclasses.replace(tuned({0.1: [0.1]})[0], key="ab" * 32))
        (tmp_path / "runs" / "ab" / "abcd.json.17.tmp").write_text('{"key": "ab')
        assert len(list(store.records())) == 1

    def test_foreign_folders_are_refused(self, tmp_path: Path) -> None:
        store = Store(tmp_path / "a")
        store.check("toy")
        store.write_header(self.header("other"))
        with pytest.raises(BadInput, match="holds the comparison `other`"):
            store.check("toy")
        store.check("other")
        (tmp_path / "b").mkdir()
        Store(tmp_path / "b").check("toy")
        (tmp_path / "b" / "thesis.tex").write_text("years of work")
        with pytest.raises(BadInput, match="holds other things"):
            Store(tmp_path / "b").check("toy")
        with pytest.raises(BadInput, match="Expected a folder"):
            Store(tmp_path / "b" / "thesis.tex").check("toy")


class TestExecution:
    def test_failures_are_records_and_the_rest_goes_on(self, toy: Path) -> None:
        records = run_all(toy, execute.Strategy(), norms=("none", "rms", "layer", "group", "instance"))
        by_norm = {
            norm: {r.run.seed: r for r in records if r.run.cell.norm == norm and r.run.stage == EVALUATE}
            for norm in ("none", "rms", "layer", "group", "instance")
        }
        assert {record.status for record in by_norm["none"].values()} == {"ok"}
        for norm in ("rms", "layer"):
            assert [by_norm[norm][seed].status for seed in range(3)] == ["ok", "error", "ok"]
            assert by_norm[norm][1].metrics == {"validation": None}
        assert by_norm["rms"][1].reason == "RuntimeError: seed 1 always fails"
        assert "signal 9" in by_norm["layer"][1].reason
        assert {record.status for record in by_norm["group"].values()} == {"diverged"}
        assert by_norm["group"][0].metrics == {"validation": None, "test": None, "train_loss": None}
        assert not by_norm["instance"]
        assert {r.status for r in records if r.run.cell.norm == "instance"} == {"invalid"}
        assert all("test" not in r.metrics for r in records if r.run.stage == TUNE)

    def test_stacks_in_one_process_agree_with_workers(self, toy: Path) -> None:
        alone = {r.run: r for r in run_all(toy, execute.Strategy())}
        stacked = {r.run: r for r in run_all(toy, execute.Strategy(lanes=4))}
        assert alone.keys() == stacked.keys()
        for run, record in alone.items():
            assert stacked[run].key != record.key
            assert stacked[run].metrics == pytest.approx(record.metrics, abs=1e-6)

    def test_the_order_of_work_does_not_change_numbers(self, toy: Path) -> None:
        whole = run_all(toy, execute.Strategy())
        resumed = run_all(toy, execute.Strategy(), known=whole[3:7])
        assert numbers(whole) == numbers(resumed)

    def test_workers_that_cannot_start_end_it(self, toy: Path) -> None:
        comparison, settings = catalogue.load(str(toy)), settings_for(toy)
        task = execute.Task(source="gone.py", settings=settings, identity={"data": {}}, strategy=execute.Strategy())
        with pytest.raises(RuntimeError, match="cannot start"):
            list(execute.records(task, comparison, lambda: plan.pending(comparison, settings, []), jobs=1))

    def test_without_cells_that_can_be_run_nothing_is_trained(self, toy: Path) -> None:
        records = run_all(toy, execute.Strategy(lanes=4), norms=("instance",))
        assert {record.status for record in records} == {"invalid"}


def invoke(toy: Path, output: Path, **changes: Any) -> dict[Run, Any]:
    comparison, settings = catalogue.load(str(toy)), settings_for(toy, **changes)
    code = Invocation(comparison, settings, output, "normlab run toy.py").run(1, strategy=execute.Strategy(lanes=2))
    assert code == 0
    return {record.run: record.timing for record in Store(output).records()}


class TestResume:
    def test_more_seeds_keep_what_is_there(self, toy: Path, tmp_path: Path) -> None:
        before = invoke(toy, tmp_path / "out", seeds=2)
        after = invoke(toy, tmp_path / "out", seeds=4)
        assert len(after) == len(before) + 4
        assert all(after[run] == timing for run, timing in before.items())

    def test_changed_code_and_config_make_new_runs(self, toy: Path, tmp_path: Path) -> None:
        invoke(toy, tmp_path / "out")
        count = len(list(Store(tmp_path / "out").records()))
        toy.write_text(TOY + "# changed\n")
        invoke(toy, tmp_path / "out")
        assert len(list(Store(tmp_path / "out").records())) == 2 * count
        invoke(toy, tmp_path / "out", epochs=4)
        assert len(list(Store(tmp_path / "out").records())) == 3 * count

    def test_killed_and_resumed_is_as_if_never_killed(self, toy: Path, tmp_path: Path) -> None:
        def command(output: Path) -> list[str]:
            return [sys.executable, "-m", "normlab", "run", str(toy), "--output", str(output), "--jobs", "2"]

        toy.write_text(TOY.replace("PAUSE = 0.0", "PAUSE = 0.05"))
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        process = subprocess.Popen(command(tmp_path / "a"), env=environment, stdout=subprocess.DEVNULL)
        while process.poll() is None and len(list((tmp_path / "a").glob("runs/??/*.json"))) < 5:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        survived = set((tmp_path / "a").glob("runs/??/*.json"))
        assert survived
        for output in (tmp_path / "a", tmp_path / "b"):
            subprocess.run(command(output), env=environment, stdout=subprocess.DEVNULL, check=True)
        first, second = (list(Store(tmp_path / name).records()) for name in ("a", "b"))
        assert len(first) == 40
        assert numbers(first) == numbers(second)
        assert (tmp_path / "a/analysis.json").read_bytes() == (tmp_path / "b/analysis.json").read_bytes()
        assert json.loads((tmp_path / "a/comparison.json").read_text())["settings"]["seeds"] == 4
