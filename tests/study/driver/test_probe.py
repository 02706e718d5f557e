"""The probe: its programs, its place after the first making of the data, its end, and the precedence of records."""

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from normlab.study.design import discovery
from normlab.study.design.comparison import Comparison
from normlab.study.design.plan import Plan
from normlab.study.design.records import Configuration, Record
from normlab.study.driver import announce, preflight
from normlab.study.driver.driver import ExecutionOptions, Invocation
from normlab.study.driver.estimate import Cost
from normlab.study.driver.probe import Probe, representatives
from normlab.study.worker.strategy import choose_strategy
from tests.support.toys import TOY, a_record, settings_for

FEW: Mapping[str, Any] = {"curves": ("deployed",), "norms": ("none", "batch"), "values": {"deployed": (2, 4, 8)}}


def two_problems(toy: Path) -> Comparison:
    comparison = discovery.load(str(toy))
    (first,) = comparison.problems
    return replace(comparison, problems=(first, replace(first, name="other")))


def test_programs_with_the_most_updates_come_first_then_those_with_the_fewest(toy: Path) -> None:
    toy.write_text(TOY.replace('steps=config["epochs"]', 'steps={2: 5, 4: 9, 8: 1}[config["batch_size"]]'))
    plan = Plan(two_problems(toy), settings_for(toy, problems=("scalar", "other"), **FEW))
    found = [(one.problem, program.steps) for one, program in representatives(plan)]
    assert found == [("scalar", 9), ("other", 9), ("scalar", 1), ("other", 1)]


@pytest.mark.parametrize("every", [True, False])
def test_it_starts_after_the_data_of_every_problem_have_been_made(
    every: bool, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(two_problems(toy), settings_for(toy, problems=("scalar", "other"), **FEW))
    events, build = list[str](), preflight.build

    def recorded(plan: Plan, configuration: Configuration) -> Any:
        events.append(configuration.problem)
        return build(plan, configuration)

    monkeypatch.setattr(preflight, "build", recorded)
    checked = preflight.data_of(plan, every=every, made=lambda: events.append("made"))
    assert events[:3] == ["scalar", "other", "made"]
    assert events.count("made") == 1 and len(events) == checked.built + 1
    assert list(checked.steps) == list(plan.configurations)


def test_its_end_lets_the_function_of_the_data_clean_up(toy: Path) -> None:
    begun, cleaned = toy.with_suffix(".begun"), toy.with_suffix(".cleaned")
    waits = f"try:\n        Path({str(begun)!r}).touch()\n        time.sleep(60)\n    finally:\n        "
    toy.write_text(TOY.replace("import jax.numpy as jnp", f"{waits}Path({str(cleaned)!r}).touch()", 1))
    with Probe(settings_for(toy, **FEW), choose_strategy(alone=False, share=True)) as probe:
        assert probe.costs(Plan(discovery.load(str(toy)), settings_for(toy, **FEW)), wait=0.0) == {}
        probe.start()
        while not begun.exists() and probe._process.is_alive():
            time.sleep(0.05)
    assert cleaned.exists()


class Measured:
    """A probe that has measured some programs."""

    def __init__(self, costs: dict[Configuration, Cost]) -> None:
        self._costs = costs

    def costs(self, plan: Plan, *, wait: float) -> dict[Configuration, Cost]:
        return self._costs


@pytest.mark.parametrize(
    ("recorded", "measured", "expected"),
    [
        ([], ["scalar", "other"], {"scalar": 9.0, "other": 9.0}),
        (["scalar"], ["scalar", "other"], {"scalar": 1.0, "other": 9.0}),
        (["scalar"], ["other"], {"scalar": 1.0, "other": 9.0}),
        (["scalar", "other"], ["scalar", "other"], {"scalar": 1.0, "other": 1.0}),
        (["scalar"], None, {"scalar": 1.0}),
    ],
)
def test_time_comes_from_records_and_where_there_are_none_from_the_probe(
    recorded: list[str],
    measured: list[str] | None,
    expected: dict[str, float],
    toy: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = settings_for(toy, problems=("scalar", "other"), **FEW)
    invocation = Invocation(two_problems(toy), settings, None, "normlab run toy.py")
    plan = invocation.plan
    first = {one.problem: one for one in reversed(plan.configurations)}
    records: list[Record] = [
        replace(a_record(), run=plan.of([])[first[name]].runs[0], status="ok", cost={"run": 1.0, "compile": 1.0})
        for name in recorded
    ]
    probe: Any = None if measured is None else Measured({first[name]: Cost(1.0, 9.0) for name in measured})
    given = list[Mapping[Configuration, Cost]]()
    monkeypatch.setattr(announce, "time", lambda plan, left, steps, costs, workers: given.append(costs) or "")
    checked, strategy = preflight.data_of(plan), choose_strategy(alone=False, share=True)
    execution = ExecutionOptions(strategy=strategy)
    task = invocation._task(strategy, checked)
    invocation._time(execution, task, checked, records, probe, wait=0.0)
    assert [{one.problem: cost.run for one, cost in costs.items()} for costs in given] == [expected]
