"""One model on several devices: the same training, the scope of its statistics in every record, and what it moves."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import chex
import jax
import pytest

from normlab import norms, study
from normlab.cli.main import main
from normlab.errors import BadInput
from normlab.study.design import discovery
from normlab.study.design.plan import Plan, scope
from normlab.study.design.program import Program
from normlab.study.design.request import Request
from normlab.study.training.compilation import compile_program
from normlab.study.training.loop import mesh_of
from tests.study.problems.test_supervised import LinenNet, NNXNet, three_classes

DISTRIBUTED = discovery.load("distributed")
MODEL = '''
"""A small problem."""
import numpy as np
from normlab import study
from normlab.models.mlp import MLP
from normlab.study.data.dataset import Data

def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4))
    return Data(x, (x[:, 0] > 0).astype(np.int32))

comparison = study.Comparison(
    name="small",
    problems=(study.supervised(name="two", model=lambda norm: MLP(norm, hidden=(8,), classes=2), data=data),),
    norms=("batch", "layer", "batch:ghost_batch_size=4"),
    curves=study.batch_size_curves((8, 16), ()),
)
'''


def build(norm: str, devices: int, model: Any = LinenNet, batch_size: int = 16) -> Program:
    problem = study.supervised(name="small", model=model, data=three_classes)
    return problem.build(norms.get(norm), {"batch_size": batch_size, "epochs": 1, "devices": devices})


def metrics(program: Program) -> dict[str, float]:
    return next(compile_program(program).train([0.1], [0])).metrics


@pytest.mark.parametrize(
    ("norm", "devices"), [("batch", 8), ("batch:ghost_batch_size=4", 4), ("batch_renorm", 2), ("layer", 2)]
)
def test_devices_train_the_model_that_one_trains(norm: str, devices: int) -> None:
    alone, together = metrics(build(norm, 1)), metrics(build(norm, devices))
    chex.assert_trees_all_close(together, alone, rtol=2e-4)


def test_nnx_models_are_trained_by_devices_too() -> None:
    alone, together = (metrics(build("batch", devices, NNXNet)) for devices in (1, 4))
    chex.assert_trees_all_close(together, alone, rtol=2e-4)


def test_what_a_device_moves_is_gradients_and_statistics() -> None:
    """Gradients at least; averages of running statistics, and statistics where devices share them."""
    moved = {norm: compile_program(build(norm, 8)).moved for norm in ("layer", "batch", "batch:ghost_batch_size=2")}
    parameters = jax.tree.leaves(build("layer", 8).init(0).params)
    gradients = 4 * sum(leaf.size for leaf in parameters)
    assert gradients <= moved["layer"] < moved["batch:ghost_batch_size=2"] < moved["batch"]
    assert compile_program(build("batch", 1)).moved == 0


def test_a_batch_is_shared_equally() -> None:
    with pytest.raises(ValueError, match="a batch that 8 devices can share equally, got 12 examples"):
        build("batch", 8, batch_size=12)


def test_more_devices_than_there_are() -> None:
    with pytest.raises(ValueError, match=r"Expected 16 devices for one model, got 8 \(cpu\).*jax_num_cpu_devices', 16"):
        mesh_of(16)


def test_every_record_says_what_its_statistics_cover(tmp_path: Path) -> None:
    file = tmp_path / "small.py"
    file.write_text(MODEL)
    budget = ["--tier", "smoke", "--seeds", "1", "--learning-rates", "0.1", "--jobs", "1", "--batch-sizes", "8", "16"]
    for devices in (1, 4):
        command = ["run", str(file), *budget, "--devices", str(devices), "--output", str(tmp_path / str(devices))]
        assert main(command) == 0
    found = {}
    for path in tmp_path.glob("*/runs/*/*.json"):
        record = json.loads(path.read_text())
        assert record["status"] == "ok"
        config = record["run"]["cell"]["config"]
        found[record["run"]["cell"]["norm"], config["batch_size"], config.get("devices", 1)] = config["statistics"]
        assert ("moved" in record["cost"]) == ("devices" in config)
    assert found == {
        ("batch", 8, 1): "8 examples",
        ("batch", 16, 1): "16 examples",
        ("batch", 8, 4): "8 examples on 4 devices",
        ("batch", 16, 4): "16 examples on 4 devices",
        ("layer", 8, 1): "1 example",
        ("layer", 16, 1): "1 example",
        ("layer", 8, 4): "1 example",
        ("layer", 16, 4): "1 example",
        ("batch:ghost_batch_size=4", 8, 1): "4 examples",
        ("batch:ghost_batch_size=4", 16, 1): "4 examples",
        ("batch:ghost_batch_size=4", 8, 4): "4 examples on 2 devices",
        ("batch:ghost_batch_size=4", 16, 4): "4 examples",
    }


def test_a_scope_without_a_batch_size() -> None:
    assert scope(norms.get("batch"), {"epochs": 1}) == "the batch"


def test_a_problem_that_ignores_the_number_of_devices_is_an_error() -> None:
    def ignorant(norm: norms.Norm, config: Any) -> Program:
        return build(str(norm), 1)

    problem = study.Problem(name="ignorant", title="Ignorant", build=ignorant)
    comparison = study.Comparison(name="c", problems=(problem,), norms=("batch", "layer"))
    with pytest.raises(BadInput, match=r"a program for the 4 devices of `config\['devices'\]`, got one for 1"):
        study.run(comparison, tier="smoke", devices=4, progress=False)


def test_the_comparison_divides_its_batch_as_its_rows_say() -> None:
    settings = Request(DISTRIBUTED, {}).settings("distributed")
    plan = Plan(DISTRIBUTED, settings)
    found = {
        (place.norm, place.value): dict(configuration.config)["statistics"]
        for place, configuration in plan.places.items()
    }
    assert {norm: found[norm, 8] for norm in settings.norms} == {
        "batch_device": "2 examples",
        "batch_2_devices": "4 examples on 2 devices",
        "batch_4_devices": "8 examples on 4 devices",
        "batch_all_devices": "16 examples on 8 devices",
        "batch_renorm": "2 examples",
        "group": "1 example",
    }
    assert {found[norm, 1] for norm in settings.norms if norm != "group"} == {"16 examples"}
    assert plan.devices == 8


def test_a_number_of_devices_is_set_by_the_curve_or_by_the_option() -> None:
    settings = Request(DISTRIBUTED, {}).settings("distributed")
    with pytest.raises(ValueError, match="no `devices`, which the curve `devices` sets, got 4"):
        Plan(DISTRIBUTED, dataclasses.replace(settings, devices=4))


def test_processes_are_joined_by_the_command_line_only() -> None:
    with pytest.raises(BadInput, match="`coordinator` on the command line"):
        study.run(DISTRIBUTED, coordinator="localhost:1", progress=False)
