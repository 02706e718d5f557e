"""The plan that is kept up to date with every record is the plan of all records, at the cost of one group."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from normlab.study.design.plan import ConfigurationPlan, Plan
from normlab.study.design.records import Configuration, Record, Run
from normlab.study.driver import time_budget
from normlab.study.driver.driver import new_console
from normlab.study.driver.ongoing import Ongoing
from normlab.study.driver.progress import Display
from tests.support.synthetic import a_comparison, made_up, some_settings


def plan_for(**changes: Any) -> Plan:
    comparison = a_comparison(norms=("none", "batch", "layer"))
    return Plan(comparison, some_settings(comparison, seeds=3, **changes))


@pytest.fixture
def planned_groups(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[Configuration, ...]]:
    """Counts how often each group is planned."""
    found, of_group = Counter[tuple[Configuration, ...]](), Plan.of_group

    def counted(
        self: Plan, group: Sequence[Configuration], known: Mapping[Run, Record]
    ) -> dict[Configuration, ConfigurationPlan]:
        found[tuple(group)] += 1
        return of_group(self, group, known)

    monkeypatch.setattr(Plan, "of_group", counted)
    return found


@pytest.mark.parametrize("extend", [False, True])
def test_it_is_the_plan_of_all_records_at_any_time(extend: bool) -> None:
    plan, records = plan_for(extend=extend), list[Record]()
    ongoing = Ongoing(plan, [])
    while runs := next(filter(None, time_budget.pending(ongoing, (), plan.configurations)), None):
        for run in runs[:17]:
            records.append(made_up(run))
            ongoing.add(records[-1])
        assert dict(ongoing.planned) == plan.of(records)
        assert [run for one in plan.of(records) for run in ongoing.missing(one)] == plan.pending(records)
    assert plan.pending(records) == []


def test_a_record_plans_its_own_group_alone(planned_groups: Counter[tuple[Configuration, ...]]) -> None:
    plan = plan_for()
    ongoing, run = Ongoing(plan, []), plan.pending([])[0]
    assert ongoing.planned
    planned_groups.clear()
    ongoing.add(made_up(run))
    assert ongoing.planned
    assert list(ongoing.missing(run.configuration))
    assert [run.configuration in group for group in planned_groups] == [True]
    assert planned_groups.total() == 1


def test_progress_plans_a_group_once_for_each_configuration_that_a_record_completes(
    planned_groups: Counter[tuple[Configuration, ...]],
) -> None:
    plan = plan_for(default_learning_rate=None)
    ongoing, runs = Ongoing(plan, []), plan.pending([])
    display = Display(new_console(quiet=True), ongoing, plan.configurations)
    planned_groups.clear()
    for run in runs:
        record = made_up(run)
        ongoing.add(record)
        display.add(record)
    assert planned_groups.total() == len(plan.configurations)  # its last rate completes both of its grids
