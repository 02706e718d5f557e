"""Costs of programs by their size, and the precedence of records."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from normlab.study.design import discovery
from normlab.study.design.comparison import Comparison
from normlab.study.design.program import Program
from normlab.study.design.records import Configuration, Record
from normlab.study.driver import announce, cost_model, driver, preflight
from normlab.study.driver.cost_model import BANDWIDTH, COMPILE, COMPILE_OPERATION, STEP, estimated
from normlab.study.driver.driver import ExecutionOptions, Invocation
from normlab.study.driver.estimate import Cost
from normlab.study.driver.ongoing import Ongoing
from normlab.study.worker.runner import build
from normlab.study.worker.strategy import choose_strategy
from tests.support.toys import TOY, a_record, settings_for

FEW: Mapping[str, Any] = {"curves": ("deployed",), "norms": ("none", "batch"), "values": {"deployed": (2, 4, 8)}}


def a_program(layers: int, steps: int = 100, features: int = 8) -> Program:
    """Return a program whose step is a chain of products."""

    def step(state: Any, t: jax.Array, learning_rate: jax.Array, data: Any) -> tuple[Any, jax.Array]:
        x = state
        for _ in range(layers):
            x = jnp.tanh(x @ state)
        return x, x.sum()

    return Program(
        data={},
        init=lambda seed: jnp.zeros((features, features)),
        step=step,
        evaluate=lambda *_: {},
        steps=steps,
        last=1,
    )


def test_cost_grows_with_operations_with_updates_and_with_what_they_move() -> None:
    small, deep, long, wide = map(
        estimated, (a_program(1), a_program(40), a_program(1, steps=200), a_program(1, features=256))
    )
    assert small and deep and long and wide
    assert deep.compile - small.compile == pytest.approx(39 * 2 * COMPILE_OPERATION)
    assert long == Cost(compile=small.compile, run=2 * small.run)
    assert wide.compile == small.compile > COMPILE
    operands = 4 * 256**2
    assert wide.run > 100 * (STEP + 5 * operands / BANDWIDTH) > 100 * (STEP + 5 * 4 * 8**2 / BANDWIDTH) > 0


def test_a_step_that_the_backend_cannot_analyse_has_no_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax.stages.Lowered, "cost_analysis", lambda self: None)
    assert estimated(a_program(1)) is None


def two_problems(toy: Path) -> Comparison:
    comparison = discovery.load(str(toy))
    (first,) = comparison.problems
    return replace(comparison, problems=(first, replace(first, name="other")))


def test_the_programs_with_the_fewest_and_the_most_updates_of_a_problem_are_taken(toy: Path) -> None:
    toy.write_text(TOY.replace('steps=config["epochs"]', 'steps={2: 5, 4: 9, 8: 1}[config["batch_size"]]'))
    invocation = Invocation(two_problems(toy), settings_for(toy, problems=("scalar", "other"), **FEW), None, "")
    checked = preflight.data_of(invocation.plan, every=False)
    found = [(one.problem, program.steps) for one, program in checked.extremes.items()]
    assert sorted(found) == [("other", 1), ("other", 9), ("scalar", 1), ("scalar", 9)]


@pytest.mark.parametrize(
    ("recorded", "expected"),
    [
        ([], {"scalar": 9.0, "other": 9.0}),
        (["scalar"], {"scalar": 1.0, "other": 9.0}),
        (["scalar", "other"], {"scalar": 1.0, "other": 1.0}),
    ],
)
def test_time_comes_from_records_and_where_there_are_none_from_the_size_of_programs(
    recorded: list[str], expected: dict[str, float], toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(toy, problems=("scalar", "other"), **FEW)
    invocation = Invocation(two_problems(toy), settings, None, "normlab run toy.py")
    plan = invocation.plan
    first = {one.problem: one for one in reversed(plan.configurations)}
    records: list[Record] = [
        replace(a_record(), run=plan.of([])[first[name]].runs[0], status="ok", cost={"run": 1.0, "compile": 1.0})
        for name in recorded
    ]
    given = list[tuple[Mapping[Configuration, Cost], bool]]()

    def time(plan: Any, left: Any, steps: Any, costs: Any, workers: int, *, measured: bool) -> str:
        given.append((costs, measured))
        return ""

    monkeypatch.setattr(announce, "time", time)
    monkeypatch.setattr(cost_model, "estimated", lambda program: Cost(1.0, 9.0))
    checked, strategy = preflight.data_of(plan), choose_strategy(alone=False, share=True)
    invocation._time(
        ExecutionOptions(strategy=strategy), invocation._task(strategy, checked), checked, Ongoing(plan, records)
    )
    ((costs, measured),) = given
    assert {one.problem: cost.run for one, cost in costs.items()} == expected
    assert measured == (len(recorded) == 2)


@pytest.mark.parametrize("fails", ["raise ValueError('no gradient')", "time.sleep(60)"])
def test_a_program_that_cannot_be_traced_has_no_cost(fails: str, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "PATIENCE", 0.2)
    broken = f"def step(state, t, learning_rate, data):\n        if config['batch_size'] == 8:\n            {fails}"
    toy.write_text(TOY.replace("def step(state, t, learning_rate, data):", broken))
    invocation = Invocation(discovery.load(str(toy)), settings_for(toy, **FEW), None, "")
    program = build(invocation.plan, invocation.plan.configurations[-1])
    assert invocation._by_size(program) is None
    assert invocation._by_size(build(invocation.plan, invocation.plan.configurations[0]))
