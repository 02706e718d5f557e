"""The study of recurrent cells: sequences, what is measured along them, and what the engine learned for it."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normlab import norms, study
from normlab.cli.main import main
from normlab.cli.parser import run_parser
from normlab.errors import BadInput
from normlab.models.lstm import LSTMNet
from normlab.norms import Norm
from normlab.study.data import sequences
from normlab.study.data.dataset import Data, digits
from normlab.study.data.splits import sizes, split
from normlab.study.design import discovery
from normlab.study.design.budgets import Tier
from normlab.study.design.comparison import Comparison
from normlab.study.design.factors import Curve, Factor
from normlab.study.design.plan import Plan
from normlab.study.design.problem import Problem
from normlab.study.design.program import Program
from normlab.study.design.request import Request, from_flags, from_python, to_toml
from normlab.study.training import sequence_measures
from normlab.study.training.compilation import compile_program
from normlab.study.training.loop import training
from normlab.study.training.sequence_measures import gradients, one_by_one

SERIES = study.Series(name="path", title="Path", x_label="place", y_label="weight", x=(1, 2, 3), during=True)
ONCE = study.Series(name="once", title="Once", x_label="", y_label="weight", x=(0,), log=True)
SIDE = study.Metric(name="distance", percent=False)


def scalar(norm: Norm, config: Mapping[str, Any], *, steps: int = 6, measured: bool = True) -> Program:
    """A number that moves to a target; `rms` has no series, `group` diverges."""
    target = Path(config["target"]).read_text() if "target" in config else "0.5"

    def init(seed: int) -> dict[str, Any]:
        return {"w": np.float32(np.random.default_rng(seed).random() + 1)}

    def step(state: Any, t: jax.Array, learning_rate: jax.Array, data: Any) -> tuple[Any, jax.Array]:
        w = state["w"] - learning_rate * (state["w"] - data["target"]) * config.get("depth", 1)
        w = w * jnp.nan if norm.name == "group" else w
        return {"w": w}, (w - data["target"]) ** 2 + 1e-9 * sum(norm.name.encode())

    def evaluate(state: Any, data: Any) -> dict[str, jax.Array]:
        error = jnp.abs(state["w"] - data["target"])
        return {"validation": error, "test": error, "finite": jnp.isfinite(error), SIDE.name: -error}

    def series(state: Any, data: Any) -> dict[str, jax.Array]:
        w = state["w"] * jnp.nan if norm.name == "rms" else state["w"]
        return {"path": jnp.stack([w, 2 * w, jnp.nan * w]), "once": w[None]}

    return Program(
        data={"target": np.asarray(target, np.float32)},
        init=init,
        step=step,
        evaluate=evaluate,
        steps=steps,
        last=1,
        series=series if measured else None,
        description=f"the number {target.strip()}",
    )


TARGET = study.Option(name="target", kind=study.FILE, metavar="PATH", help="file with the number")


def a_comparison(**changes: Any) -> Comparison:
    made = Problem(
        name="scalar",
        title="one number",
        build=scalar,
        metric=study.Metric(name="distance", percent=False, margin=0.1),
        extra_metrics=(SIDE,),
        series=(SERIES, ONCE),
        options=(TARGET,),
    )
    fields: dict[str, Any] = {
        "name": "walk",
        "problems": (made,),
        "norms": ("none", "rms", "group"),
        "baseline": "none",
        "curves": (
            Curve(
                name="depth",
                title="Depth",
                factor=Factor(name="depth", label="depth", flag="--depths", values=(1, 2), reference=1),
                config=lambda value: {"depth": value},
            ),
        ),
        "tiers": {"quick": Tier(epochs=1, learning_rates=(0.1, 0.3), tuning_seeds=1, seeds=3, extend=False)},
    }
    return Comparison(**{**fields, **changes})


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> tuple[study.Result, Path]:
    folder = tmp_path_factory.mktemp("walk") / "walk"
    result = study.run(a_comparison(), output=folder, progress=False)
    result.report(folder)
    return result, folder


class TestSequences:
    def test_the_permutation_is_one_and_is_published(self) -> None:
        assert sorted(sequences.order()) == list(range(64))
        assert (sequences.order() == np.random.default_rng(sequences.PERMUTATION_SEED).permutation(64)).all()
        flat = digits().inputs.reshape(-1, 64)
        np.testing.assert_array_equal(sequences.permuted().inputs[..., 0], flat[:, sequences.order()])
        np.testing.assert_array_equal(sequences.pixels().inputs[..., 0], flat)
        np.testing.assert_array_equal(sequences.rows().inputs.reshape(-1, 64), flat)

    def test_sums_are_of_the_two_marked_numbers(self) -> None:
        data = sequences.adding(500, 20)
        numbers, marks, there = np.moveaxis(data.inputs, -1, 0)
        lengths = there.sum(1).astype(int)
        assert {*lengths} == set(range(10, 21))
        assert (marks.sum(1) == 2).all() and not marks[there == 0].any() and not numbers[there == 0].any()
        first, second = np.sort(np.argsort(-marks, axis=1, kind="stable")[:, :2], axis=1).T
        assert (first < lengths // 2).all() and (second >= lengths // 2).all()
        np.testing.assert_allclose(data.labels, (numbers * marks).sum(1), rtol=1e-6)
        assert data.labels.var() == pytest.approx(1 / 6, abs=0.03)
        np.testing.assert_array_equal(data.inputs, sequences.adding.__wrapped__(500, 20).inputs)

    def test_text_is_divided_where_it_stands(self, tmp_path: Path) -> None:
        text = "".join("abcé"[i * i % 7 % 4] for i in range(101 * sequences.WINDOW))
        (tmp_path / "text").write_text(text, "utf-8")
        data = sequences.characters(str(tmp_path / "text"))
        train, validation = sizes(data, 0.5, 0.5)
        assert (train, validation, data.test) == (100 - 9 - 18, 9, 18)
        parts = split(100, 3, train, validation, fixed=validation + data.test)
        assert sorted(parts["train"]) == list(range(train))
        assert [*parts["validation"], *parts["test"]] == list(range(train, 100))
        names = {code: character for code, character in zip(data.inputs.ravel(), text, strict=False)}
        assert "".join(names[code] for code in data.labels.ravel()) == text[1 : 100 * sequences.WINDOW + 1]
        assert hashlib.sha256(text.encode()).hexdigest() in data.description and "6,464 characters" in data.description

    def test_without_a_path_there_is_the_text_of_help(self) -> None:
        data = sequences.characters()
        assert len(data.labels) == sum(sequences.PARTS) and "Python's `help`" in data.description
        assert 3 < sequences.unigram_bits(data) < 6

    def test_rare_characters_are_one(self, tmp_path: Path) -> None:
        text = "".join(chr(0x4E00 + i // 2 % 900) for i in range(100 * sequences.WINDOW))
        (tmp_path / "text").write_text(text, "utf-8")
        assert sequences.characters(str(tmp_path / "text")).inputs.max() == sequences.SYMBOLS - 1

    def test_a_validation_set_needs_a_test_set(self) -> None:
        with pytest.raises(ValueError, match="Expected `test` where `validation` is given"):
            Data(np.zeros((4, 1)), np.zeros(4), validation=1)


class TestText:
    FLAGS = ("run", "recurrent", "--tier", "smoke", "--problems", "text", "--norms", "none")

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "Expected a text of at least 5633 characters, got 0"),
            (b"short", "Expected a text of at least 5633 characters, got 5"),
            (b"caf\xe9" * 400, "Expected a text in UTF-8, got `.*`, where byte 3 is none"),
            (None, "Expected the path of a file, got `.*`, which does not exist"),
        ],
    )
    def test_what_is_no_text(
        self,
        content: bytes | None,
        message: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.chdir(tmp_path)
        path = tmp_path / "text"
        if content is not None:
            path.write_bytes(content)
        before = sorted(tmp_path.iterdir())
        assert main([*self.FLAGS, "--text", str(path)]) == 2
        error = capsys.readouterr().err
        assert re.search(message, error) and error.count("\n") == 1
        assert sorted(tmp_path.iterdir()) == before

    def test_help_names_it(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["run", "recurrent", "--help"]) == 0
        assert "--text TEXT" in capsys.readouterr().out

    def test_it_needs_its_problem(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["run", "recurrent", "--problems", "rows", "--text", __file__]) == 2
        assert "`--text` only with its problem, which is not among `problems`" in capsys.readouterr().err


class TestOptions:
    def test_they_reach_settings_file_and_data(self, tmp_path: Path) -> None:
        comparison, path = a_comparison(), tmp_path / "number"
        path.write_text("0.25")
        parsed = run_parser(comparison).parse(["walk", "--target", str(path)])
        settings = Request(comparison, from_flags(parsed, comparison)).settings("walk")
        assert settings.options == {"target": str(path)}
        (tmp_path / "settings.toml").write_text(to_toml(settings, comparison))
        assert f'target = "{path}"' in to_toml(settings, comparison)
        plan = Plan(comparison, settings)
        assert plan.resolve(plan.place(plan.configurations[0]))[1]["target"] == str(path)
        assert "target" not in dict(plan.configurations[0].config)

    def test_other_content_makes_other_runs_and_the_same_none(self, tmp_path: Path) -> None:
        comparison, path, folder = a_comparison(norms=("none",)), tmp_path / "number", tmp_path / "out"

        def keys(content: str) -> set[str]:
            path.write_text(content)
            study.run(comparison, output=folder, progress=False, target=str(path), depths=(1,))
            return {file.stem for file in folder.glob("runs/??/*.json")}

        first = keys("0.25")
        assert len(first) == 5 and keys("0.25") == first
        assert len(keys("0.75")) == 10
        assert json.loads((folder / "comparison.json").read_text())["about"] == {"scalar": "the number 0.75"}

    def test_an_option_may_not_hide_another(self) -> None:
        problem = dataclasses.replace(a_comparison().problems[0], options=(dataclasses.replace(TARGET, name="seeds"),))
        with pytest.raises(BadInput, match="Expected the option of problem `scalar` to be its own, got `--seeds`"):
            run_parser(a_comparison(problems=(problem,)))

    def test_a_tier_may_choose_problems_and_norms(self) -> None:
        comparison = discovery.load("recurrent")
        settings = Request(comparison, from_python({"tier": "smoke"}, comparison)).settings("recurrent")
        assert settings.problems == ("rows",) and settings.norms == ("none", "batch_step")


class TestSeries:
    @pytest.mark.parametrize("lanes", [None, 2])
    def test_they_are_taken_on_the_way_and_change_nothing(self, lanes: int | None) -> None:
        norm = norms.get("none")
        measured, plain = scalar(norm, {}), scalar(norm, {}, measured=False)
        ours, theirs = (next(compile_program(p, lanes).train([0.1], [0])) for p in (measured, plain))
        assert ours.metrics == theirs.metrics and theirs.series == {}
        w = measured.init(0)["w"]
        walk = [w := w - 0.1 * (w - 0.5) * bool(t) for t in range(7)]
        np.testing.assert_allclose(ours.series["once"][:, 0], [walk[t] for t in (0, 2, 3, 4, 6)], rtol=1e-5)
        assert ours.series["path"].shape == (5, 3)

    def test_without_them_the_program_is_one_loop(self) -> None:
        norm, data = norms.get("none"), {"target": jnp.float32(0.5)}
        texts = [
            jax.jit(training(scalar(norm, {}, measured=measured))).lower(0.1, {"w": jnp.float32(1)}, data).as_text()
            for measured in (False, True)
        ]
        assert [text.count("stablehlo.while") for text in texts] == [1, 2]

    def test_records_have_them_after_evaluation_alone(self, walked: tuple[study.Result, Path]) -> None:
        result, _ = walked
        for record in result.records:
            assert bool(record.series) == (record.run.stage == "evaluate")
            assert (SIDE.name in record.metrics) == (record.run.stage == "evaluate")
        rows = next(r for r in result.records if r.series and r.run.configuration.norm == "none").series["path"]
        numbers = np.asarray(rows, float)
        assert numbers.shape == (5, 3) and np.isnan(numbers[:, 2]).all()
        np.testing.assert_allclose(numbers[:, 1], 2 * numbers[:, 0], rtol=1e-5)

    def test_norms_without_one_and_failed_runs_are_left_out(self, walked: tuple[study.Result, Path]) -> None:
        path, once = walked[0].analysis.series
        assert (path.curve, path.value) == ("depth", 1) and set(path.lines) == {"none", "group"}
        assert path.without == ("rms",)
        assert path.lines["group"][0].middle[0] is not None and path.lines["group"][4].middle[0] is None
        taken = [r.series["once"][0][0] for r in walked[0].records if r.series and r.run.configuration.norm == "none"]
        starts = np.asarray(taken[:3], float)
        line = once.lines["none"][0]
        assert line.seeds == 3 and (line.low[0], line.high[0]) == (starts.min(), starts.max())
        assert line.middle[0] == np.median(starts)

    def test_going_on_gives_the_same_bytes(self, walked: tuple[study.Result, Path], tmp_path: Path) -> None:
        _, folder = walked
        comparison = a_comparison()
        study.run(comparison, output=tmp_path / "again", progress=False, seeds=1)
        study.run(comparison, output=tmp_path / "again", progress=False).report(tmp_path / "again")
        for name in ("analysis.json", "tables/series-scalar-path.csv", "figures/series-scalar-once.svg"):
            assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()

    def test_the_report_shows_them(self, walked: tuple[study.Result, Path]) -> None:
        page = (walked[1] / "report.html").read_text()
        for text in (
            "Before, during and after training",
            "Not there for RMS norm.",
            "Beside the error",
            "Tuning runs that failed, by depth and learning rate",
            "1 of 1",
            "Data of scalar: the number 0.5",
            "by more than 0.100, or equivalent",
        ):
            assert text in page
        assert (walked[1] / "tables/series-scalar-path.csv").read_text().startswith("norm,x,seeds,at_0_middle")

    def test_failures_at_each_rate(self, walked: tuple[study.Result, Path]) -> None:
        cell = walked[0].analysis.problems[0].curve("depth").cell("group", 1)
        assert [(t.failures, t.runs, t.statuses) for t in cell.tuning] == [(1, 1, {"diverged": 1})] * 2

    def test_side_metrics_have_intervals(self, walked: tuple[study.Result, Path]) -> None:
        cell = walked[0].analysis.problems[0].curve("depth").cell("none", 2)
        assert cell.side[SIDE.name].n == 3 and cell.error.mean is not None
        assert cell.side[SIDE.name].mean == pytest.approx(-cell.error.mean)


class TestInvalid:
    @pytest.fixture
    def plans(self) -> Iterator[dict[str, Plan]]:
        given = {"recurrent": ["batch", "batch_renorm", "instance", "layer", "batch_step"]}
        given["batch_size"] = ["layer_per_gate", "batch_step", "batch_shared", "batch_input", "layer"]
        plans = {}
        for name, names in given.items():
            comparison = discovery.load(name)
            chosen = {"norms": names, "problems": [comparison.problems[0].name], "curves": [comparison.curves[0].name]}
            plans[name] = Plan(comparison, Request(comparison, from_python(chosen, comparison)).settings(name))
        yield plans

    def test_both_ways(self, plans: dict[str, Plan]) -> None:
        reasons = {
            name: {one.norm: plan.incompatible(one) for one in plan.configurations} for name, plan in plans.items()
        }
        for norm in ("batch", "batch_renorm", "instance"):
            assert reasons["recurrent"].pop(norm) == f"`{norm}` has no place in the recurrent cell of `rows`."
        for norm in ("layer_per_gate", "batch_step", "batch_shared", "batch_input"):
            expected = f"`{norm}` is a norm of recurrent cells, and `mlp` has none."
            assert reasons["batch_size"].pop(norm) == expected
        assert set(reasons["recurrent"].values()) == set(reasons["batch_size"].values()) == {""}


class Leaky(LSTMNet):
    """A network whose examples see each other."""

    def __call__(self, x: jax.Array, **options: Any) -> Any:
        found = super().__call__(x, **options)
        seen = x.mean()
        return found._replace(outputs=found.outputs + seen) if options.get("trace") else found + seen


def small(norm: str, data: Data, depth: int = 1, net: Any = LSTMNet, **fields: Any) -> Program:
    """A network of one or two small cells."""
    gap = study.Metric(name="gap", percent=False)
    measured = [study.Series(name=name, title="", x_label="", y_label="", x=(0,)) for name in ("from_zero",)]
    problem = study.supervised(
        name="small",
        model=lambda norm, depth: net(norm, depth=depth, features=8, **fields),
        data=data,
        recurrent=True,
        norm_options={"group": {"num_groups": 2}},
        series=[*measured, dataclasses.replace(measured[0], name="parameter_gradient")],
        measure=gradients,
        extra_metrics=[gap, *(dataclasses.replace(gap, name=name) for name in ("blank", "alone", "error"))],
        assess=lambda model, out: {**one_by_one(model, out), "gap": sequence_measures.gap(model, out)},
    )
    config = {"batch_size": 16, "epochs": 1, "depth": depth}
    return problem.build(norms.get(norm, **problem.norm_options(norms.get(norm).name, config)), config)


@pytest.fixture(scope="module")
def blank_at_first() -> Data:
    """Sequences of 12 steps that begin with zeros, and that labels can be told from."""
    inputs = np.random.default_rng(0).normal(size=(100, 12, 2))
    inputs[:, :9] = 0
    return Data(inputs, (inputs[:, 9:].sum((1, 2)) > 0).astype(int))


class TestMeasures:
    @pytest.mark.parametrize("norm", ["layer", "batch_step:max_steps=20"])
    def test_one_by_one_is_what_a_batch_gives(self, norm: str) -> None:
        program = small(norm, sequences.adding(120, 12), depth=1 + (norm == "layer"), outputs=1, padded=True)
        found = jax.jit(program.evaluate)(program.init(0), dict(program.data))
        assert found["blank"] == 0.0
        assert found["alone"] < 1e-5 and abs(found["error"]) < 1e-5
        assert (abs(found["gap"]) < 1e-6) == (norm == "layer")

    def test_examples_that_see_each_other_are_found(self, blank_at_first: Data) -> None:
        program = small("none", blank_at_first, net=Leaky)
        found = jax.jit(program.evaluate)(program.init(0), dict(program.data))
        assert found["blank"] > 1e-3 and found["alone"] > 1e-3

    def test_layer_norm_as_elsewhere_explodes_from_a_zero_state(self, blank_at_first: Data) -> None:
        program = small("layer:epsilon=1e-05,initial_scale=1.0", blank_at_first)
        assert program.series is not None
        found = jax.jit(program.series)(program.init(0), dict(program.data))
        assert found["from_zero"][0] > 1e6 > 1e3 > found["parameter_gradient"][0] > 0

    def test_depth_reaches_the_model(self, blank_at_first: Data) -> None:
        params = [small("none", blank_at_first, depth=depth).init(0).params for depth in (1, 2)]
        assert [sorted(name for name in of if name.startswith("cell")) for of in params] == [
            ["cell_0"],
            ["cell_0", "cell_1"],
        ]
        jax.tree.map(np.testing.assert_array_equal, params[0]["cell_0"], params[1]["cell_0"])

    def test_a_field_that_the_model_does_not_take_is_named(self, blank_at_first: Data) -> None:
        problem = study.supervised(name="deaf", model=partial(LSTMNet), data=blank_at_first, recurrent=True)
        with pytest.raises(ValueError, match="`model` to take a norm and `width`"):
            problem.build(norms.get("none"), {"batch_size": 16, "epochs": 1, "width": 2})
