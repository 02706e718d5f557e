"""Metrics that are computed on the host, from the state of each run that is evaluated."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from normlab import norms, study
from normlab.models.mlp import MLP
from normlab.study.data.dataset import Data
from normlab.study.design import discovery
from normlab.study.design.plan import Plan
from normlab.study.design.program import Program
from normlab.study.design.records import EVALUATE, Record
from normlab.study.training.compilation import compile_program
from normlab.study.training.supervised import Fitted
from normlab.study.worker.runner import ConfigurationRunner
from normlab.study.worker.strategy import Strategy, Task
from tests.support.toys import settings_for

NAMES = ("bias", "test again", "left out")


def program(examine: Any) -> Program:
    """An MLP of four features that are two classes."""
    random = np.random.default_rng(0)
    inputs = random.normal(size=(60, 4))
    problem = study.supervised(
        name="toy",
        model=lambda norm, classes: MLP(norm, hidden=(5,), classes=classes),
        data=Data(inputs, (inputs[:, 0] > 0).astype(int)),
        extra_metrics=[study.Metric(name=name) for name in NAMES],
        assess=lambda model, outputs: {"bias": 7.0, "test again": 7.0},
        examine=examine,
    )
    return problem.build(norms.get("batch"), {"batch_size": 8, "epochs": 2})


def seen(model: Fitted) -> dict[str, float]:
    """The first bias of the last layer, and the test error, from values."""
    errors = model.error(model.evaluate(model.model_state), model.test[1])
    return {"bias": float(model.params["head"]["bias"][0]), "test again": float(errors.mean()), "unknown": 1.0}


@pytest.mark.parametrize("lanes", [None, 2])
def test_each_run_is_examined_by_its_own_state(lanes: int | None) -> None:
    outcomes = list(compile_program(program(seen), lanes).train([0.1, 0.3, 0.3], [0, 1, 2]))
    found = [outcome.examined() for outcome in outcomes]
    assert [set(one) for one in found] == [{"bias", "test again"}] * 3  # of the names that are metrics
    assert len({one["bias"] for one in found}) == 3
    for outcome, one in zip(outcomes, found, strict=True):
        assert one["test again"] == pytest.approx(outcome.metrics["test"], abs=1e-6)
        assert outcome.metrics["bias"] == 7 and np.isnan(outcome.metrics["left out"])


def test_nothing_to_examine() -> None:
    (outcome,) = compile_program(program(None)).train([0.1], [0])
    assert program(None).examine is None and outcome.examined() == {}


def test_what_examines_returns_a_number_for_each_name() -> None:
    (outcome,) = compile_program(program(lambda model: {"bias": model.params["head"]["bias"]})).train([0.1], [0])
    with pytest.raises(
        ValueError, match=r"Expected `bias` to give shape \(\), got \(2,\). Return numbers of that shape"
    ):
        outcome.examined()


def test_what_examines_is_a_function_of_a_model() -> None:
    with pytest.raises(ValueError, match="Expected `examine` of `supervised` to be a function of a `Fitted`, or"):
        program(3)


EXAMINES = """

def examine(norm, state, data):
    if norm.name == "dyt":
        raise ValueError("dyt cannot be examined")
    return {"w": state["w"], "test": 0.25}
"""


@pytest.fixture
def records(toy: Path) -> list[Record]:
    """Records of three norms: `group` diverges, and `dyt` fails where it is examined."""
    text = toy.read_text()
    assert text.count("last=1\n") == 1
    toy.write_text(text.replace("last=1\n", "last=1, examine=lambda *given: examine(norm, *given)\n") + EXAMINES)
    settings = settings_for(toy, norms=("none", "group", "dyt"))
    task = Task(source=str(toy), settings=settings, identity={"data": {}}, strategy=Strategy())
    plan = Plan(discovery.load(str(toy)), settings)
    runner, made = ConfigurationRunner(task, plan), list[Record]()
    while runs := plan.pending(made):
        made += runner(runs[0].configuration, [run for run in runs if run.configuration == runs[0].configuration])
    return made


def test_runs_that_are_evaluated_are_examined(records: list[Record]) -> None:
    of_none = [record for record in records if record.run.configuration.norm == "none"]
    assert {record.status for record in of_none} == {"ok"}
    for record in of_none:
        evaluated = record.run.stage == EVALUATE
        assert ("w" in record.metrics) == evaluated
        assert record.metrics.get("test") == (0.25 if evaluated else None)
    assert sum(record.run.stage == EVALUATE for record in of_none) == 3


def test_diverged_runs_are_not_examined(records: list[Record]) -> None:
    found = [record for record in records if record.run.configuration.norm == "group"]
    assert found and all(record.status == "diverged" and "w" not in record.metrics for record in found)


def test_a_failure_is_an_error_of_the_run(records: list[Record]) -> None:
    found = [record for record in records if record.run.configuration.norm == "dyt"]
    evaluated = [record for record in found if record.run.stage == EVALUATE]
    assert {record.status for record in found if record.run.stage != EVALUATE} == {"ok"}
    assert {(record.status, record.reason) for record in evaluated} == {("error", "dyt cannot be examined")}
