"""Time of a comparison before it is run: arithmetic, measurements, and the lines that say so."""

import io
import math
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Task, TaskID

from normlab.cli.main import main
from normlab.study.design import discovery
from normlab.study.design.plan import Plan
from normlab.study.design.records import Configuration, Record
from normlab.study.driver import announce, progress
from normlab.study.driver.estimate import START, Cost, Work, about, costs_of, remaining, seconds_of
from normlab.study.driver.ongoing import Ongoing
from tests.support.toys import a_record, settings_for


@pytest.fixture
def plan(toy: Path) -> Plan:
    settings = settings_for(toy, norms=("none", "batch", "instance"), values={"deployed": (2, 4)})
    return Plan(discovery.load(str(toy)), settings)


def finished(plan: Plan, index: int = 0) -> Record:
    """A record of the first run of a configuration."""
    run = plan.of([])[plan.configurations[index]].runs[0]
    return replace(a_record(), run=run, status="ok", cost={"run": 2.0, "compile": 5.0})


def test_what_remains_is_what_can_be_run_and_has_no_record(plan: Plan) -> None:
    usable = [c for c in plan.configurations if not plan.incompatible(c)]
    left = remaining(Ongoing(plan, []), plan.configurations)
    assert set(left) == set(usable) and len(usable) == 4
    assert set(left.values()) == {3 * 2 + 3}
    after = remaining(Ongoing(plan, [finished(plan)]), plan.configurations)
    assert after == left | {plan.configurations[0]: 8}
    assert set(remaining(Ongoing(plan, []), usable[:1])) == set(usable[:1])


def test_costs_are_those_of_runs_that_were_trained(plan: Plan) -> None:
    first, second = finished(plan), finished(plan, 1)
    other = replace(first, run=replace(first.run, seed=7), cost={"run": 4.0, "compile": 5.0})
    records = [first, other, replace(second, status="error")]
    assert costs_of(records) == {plan.configurations[0]: Cost(compile=5.0, run=3.0)}


def a_configuration(number: int, problem: str = "mlp") -> Configuration:
    return Configuration(problem=problem, norm="batch", config=(("number", number),))


def test_time_is_linear_in_updates_between_measured_programs() -> None:
    few, some, many = map(a_configuration, range(3))
    work = {few: Work(1, 100), some: Work(10, 200), many: Work(0, 300)}
    costs = {few: Cost(compile=2.0, run=1.0), many: Cost(compile=4.0, run=3.0)}
    assert seconds_of(work, costs, workers=1) == pytest.approx(START + 2 * 3.0 + 1 * 1.0 + 10 * 2.0)
    assert seconds_of(work, costs, workers=2) == pytest.approx(START + (2 * 3.0 + 1 * 1.0 + 10 * 2.0) / 2)
    assert seconds_of(work, {few: costs[few]}, workers=1) == pytest.approx(START + 2 * 2.0 + 11 * 1.0)


def test_a_problem_that_was_not_measured_makes_a_lower_bound(plan: Plan) -> None:
    known, unknown = a_configuration(0), a_configuration(1, "conv")
    left, steps = {known: 500, unknown: 500}, {known: 10, unknown: 10}
    said = announce.time(plan, left, steps, {known: Cost(1.0, 1.0)}, workers=2, measured=True)
    assert said == "More than 4 min with 2 workers, by the 1 program measured."
    said = announce.time(plan, left, steps, {known: Cost(1.0, 1.0), unknown: Cost(1.0, 2.0)}, workers=2, measured=True)
    assert said == "About 13 min with 2 workers, by the 2 programs measured."
    said = announce.time(plan, left, steps, {known: Cost(1.0, 1.0)}, workers=2, measured=False)
    assert said == "More than 4 min with 2 workers, by the size of programs."
    assert announce.time(plan, left, steps, {}, workers=2, measured=False) == ""
    assert announce.time(plan, {known: 0}, steps, {}, workers=2, measured=False) == "All runs are there."


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.1, "10 s"), (44, "40 s"), (58, "1 min"), (3500, "58 min"), (7000, "1.9 h"), (9e4, "25 h")],
)
def test_times_are_rough(seconds: float, expected: str) -> None:
    assert about(seconds) == f"about {expected}"


def test_a_run_opens_with_its_size_and_ends_with_commands_that_can_be_typed(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(toy.parent)
    monkeypatch.setattr("sys.argv", ["env/bin/normlab"])
    few = ["--curves", "deployed", "--batch-sizes", "2", "--no-extend", "--jobs", "1", "--time-budget", "10min"]
    assert main(["run", "--norms", "none", "instance", "toy.py", *few]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Does the engine work? 2 norms on scalar; batch size 2: 1 program, about 10 runs."
    about, stops = "About 10 s with 1 worker, by the size of programs.", "Stops after 10 min."
    assert lines[1].startswith(f"{about} {stops} Runs are kept in `results/toy-quick`: Ctrl-C is safe")
    assert sum("instance" in line and "spatial axes" in line for line in lines) == 1
    assert not any(line.startswith("[") and "instance" in line for line in lines)
    assert any(line.startswith("[  1/1] scalar") for line in lines)
    assert lines[-1] == "See it again: env/bin/normlab report results/toy-quick"
    again = ["run", "toy.py", "--norms", "none", *few, "--dry-run"]
    assert main(again) == 0
    assert "1 norm on scalar; batch size 2: 1 program, about 10 runs, of which 10 are there." in capsys.readouterr().out
    toy.write_text(f"{toy.read_text()}# changed")
    assert main(again) == 0
    assert "Set aside, and in none of the numbers: 16 records (`toy.py` changed)." in capsys.readouterr().out


def test_a_log_reports_the_time_that_is_left(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.01)
    console = Console(file=io.StringIO(), width=100)
    with progress.Display(console, ongoing := Ongoing(plan, []), plan.configurations) as display:
        while "compile\n" not in console.file.getvalue():
            time.sleep(0.01)
        ongoing.add(record := finished(plan))
        display.add(record)
        while "left\n" not in console.file.getvalue():
            time.sleep(0.01)
    lines = console.file.getvalue().splitlines()
    assert re.fullmatch(r"\S+ m?s: 0 of about 36 runs, the first programs compile", lines[0])
    assert re.fullmatch(r"\S+ m?s: 1 of about 36 runs, about 10 s left", lines[-1])
    assert all(line.count("of about") == 1 for line in lines)


@pytest.mark.parametrize(("budget", "expected"), [(170, "stops in about 3 min"), (math.inf, "about 1.9 h left")])
def test_the_time_that_is_left_ends_with_the_time_budget(budget: float, expected: str, plan: Plan) -> None:
    console = Console(file=io.StringIO(), width=100)
    display = progress.Display(console, ongoing := Ongoing(plan, []), plan.configurations, time.monotonic() + budget)
    ongoing.add(record := finished(plan))
    display.add(record)
    display._report_time(200.0)
    assert console.file.getvalue() == f"3 min 20 s: 1 of about 36 runs, {expected}\n"


def test_the_bar_ends_with_the_time_budget() -> None:
    task = Task(TaskID(0), "", 100, 0, _get_time=lambda: 0.0)
    assert progress._TimeLeft(math.inf).render(task).plain == "-:--:--"
    assert re.fullmatch("0:02:(50|49)", progress._TimeLeft(time.monotonic() + 170).render(task).plain)
    assert progress._TimeLeft(time.monotonic() - 1).render(task).plain == "0:00:00"


@pytest.mark.parametrize("console", [Console(file=io.StringIO(), force_terminal=True), Console(quiet=True)])
def test_a_terminal_has_a_bar_and_silence_no_clock(
    console: Console, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.001)
    monkeypatch.setattr(progress.Display, "_report_time", lambda *_: pytest.fail("reported the time"))
    with progress.Display(console, Ongoing(plan, []), plan.configurations) as display:
        time.sleep(0.02)
        assert not display._clock._thread.is_alive()
