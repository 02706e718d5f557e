"""Workers that start before there is a task: what they compile, when they start, how they end."""

import ast
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from normlab.errors import BadInput
from normlab.study.design import discovery
from normlab.study.design.plan import Plan
from normlab.study.driver import preflight
from normlab.study.driver.driver import ExecutionOptions, Invocation
from normlab.study.executors import local
from normlab.study.executors.local import Local, Warm
from normlab.study.executors.protocol import Begun
from normlab.study.worker.runner import before_the_task
from normlab.study.worker.strategy import Strategy
from tests.support.toys import TOY, settings_for


@pytest.fixture
def two_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "usable_cpus", lambda: 2)


@pytest.mark.parametrize("every", [True, False])
def test_they_start_after_the_data_of_every_problem_have_been_made(
    every: bool, toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    comparison = discovery.load(str(toy))
    (first,) = comparison.problems
    two = replace(comparison, problems=(first, replace(first, name="other")))
    plan = Plan(two, settings_for(toy, problems=("scalar", "other"), values={"deployed": (2, 4)}))
    events, build = list[str](), preflight.build

    def recorded(plan: Plan, configuration: Any) -> Any:
        events.append(configuration.problem)
        return build(plan, configuration)

    monkeypatch.setattr(preflight, "build", recorded)
    checked = preflight.data_of(plan, every=every, made=lambda: events.append("made"))
    assert events[:3] == ["scalar", "other", "made"]
    assert events.count("made") == 1 and len(events) == checked.built + 1
    assert list(checked.steps) == list(plan.configurations)


def test_their_number_leaves_a_processor_to_the_checks(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_for(toy)

    def number(cpus: int, jobs: int | None, most: int = 100) -> int:
        monkeypatch.setattr(local, "usable_cpus", lambda: cpus)
        warm = Local(jobs).warm(settings, most)
        return warm._jobs if warm else 0

    assert [number(*given) for given in [(1, None), (2, None), (8, None), (8, 3), (2, 4)]] == [0, 1, 7, 3, 1]
    assert number(64, None, most=2) == 2
    assert Local(2).warm(replace(settings, source=""), 100) is None


@pytest.mark.parametrize("change", ["same", "other data", "failed"])
def test_a_task_takes_over_what_fits_it(change: str, toy: Path) -> None:
    settings = settings_for(toy)
    runner = before_the_task(settings, Strategy())
    (first,) = runner.first_of_each_problem()
    assert first == runner.plan.configurations[0]
    if change == "failed":
        runner._programs[first] = ValueError("gone")
    runner.compile(first)
    checked = preflight.data_of(runner.plan)
    task = Invocation(discovery.load(str(toy)), settings, None, "")._task(Strategy(), checked)
    ready = runner._programs[first]
    if change == "other data":
        task = replace(task, identity={**task.identity, "data": {"scalar": "f" * 64}})
    runner.adopt(task)
    assert (runner._programs.get(first) is ready) == (change == "same")
    assert bool(runner._data) == (change == "same")
    (record,) = runner(first, runner.plan.pending([])[:1])
    assert record.status == ("error" if change == "other data" else "ok")
    assert change != "other data" or "Expected the same data" in record.reason


def test_an_unused_worker_lets_the_function_of_the_data_clean_up(toy: Path) -> None:
    begun, cleaned = toy.with_suffix(".begun"), toy.with_suffix(".cleaned")
    waits = f"try:\n        Path({str(begun)!r}).touch()\n        time.sleep(60)\n    finally:\n        "
    toy.write_text(TOY.replace("import jax.numpy as jnp", f"{waits}Path({str(cleaned)!r}).touch()", 1))
    with Warm(Local(1), settings_for(toy), 1) as warm:
        warm.start(Strategy())
        (process,) = [one.process for one in warm._workers]
        while not begun.exists() and process.is_alive():
            time.sleep(0.05)
    assert cleaned.exists() and not process.is_alive()


def test_a_dead_one_is_not_handed_over(toy: Path) -> None:
    toy.write_text(TOY.replace("def build(norm, config):", "def build(norm, config):\n    os._exit(1)"))
    with Warm(Local(1), settings_for(toy), 2) as warm:
        warm.start(Strategy())
        for one in warm._workers:
            one.process.join()
        assert warm.take() is None


def test_files_beside_the_comparison_hide_no_module_from_them(toy: Path) -> None:
    beside, found = str(toy.parent), toy.with_suffix(".path")
    toy.write_text(
        TOY.replace("PAUSE = 0.0", f"PAUSE = 0.0\nimport sys\nPath({str(found)!r}).write_text(repr(sys.path))")
    )
    with Warm(Local(1), settings_for(toy), 1) as warm, discovery.importing(toy):
        warm.start(Strategy())
        (process,) = [one.process for one in warm._workers]
        while not found.exists() and process.is_alive():
            time.sleep(0.05)
        assert beside in sys.path
    assert ast.literal_eval(found.read_text()).count(beside) == 1  # while its code runs


def test_their_first_runs_have_begun_when_they_are_handed_out(toy: Path) -> None:
    """A program that compiles forever before there is a task is stopped like one that compiles later."""
    settings = settings_for(toy)
    plan = Plan(discovery.load(str(toy)), settings)
    task = Invocation(plan.comparison, settings, None, "")._task(Strategy(), preflight.data_of(plan))
    toy.write_text(TOY.replace("def build(norm, config):", "def build(norm, config):\n    time.sleep(60)"))
    with Warm(Local(1), settings, 1) as warm:
        warm.start(Strategy())
        pool = local.LocalPool(task, 1, warm)
        try:
            runs = plan.pending([])[:1]
            pool.submit({runs[0].configuration: runs}, 1)
            assert next(pool.events()) == Begun(runs[0].configuration)
        finally:
            pool.close()


def started(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Record for every process that starts whether it gets warm."""
    found, spawned = list[bool](), local._spawned

    def recorded(strategy: Strategy, index: int, settings: Any = None) -> Any:
        found.append(settings is not None)
        return spawned(strategy, index, settings)

    monkeypatch.setattr(local, "_spawned", recorded)
    return found


def test_a_fresh_comparison_uses_them_and_one_that_resumes_starts_none(
    toy: Path, two_processors: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, output, kinds = settings_for(toy, norms=("none",)), toy.with_name("out"), started(monkeypatch)
    invocation: Callable[[int], Invocation] = lambda seeds: Invocation(  # noqa: E731
        discovery.load(str(toy)), replace(settings, seeds=seeds), output, ""
    )
    done = invocation(3).complete(ExecutionOptions(executor=Local(1)))
    assert (done.done, kinds) == (9, [True])
    cold = Invocation(discovery.load(str(toy)), settings, None, "").task(ExecutionOptions())
    assert cold.identity == done.header.identity
    done = invocation(4).complete(ExecutionOptions(executor=Local(1)))
    assert (done.done, kinds) == (10, [True, False])


def test_a_given_limit_of_runs_needs_workers_that_compile_under_it(toy: Path, two_processors: None) -> None:
    invocation = Invocation(discovery.load(str(toy)), settings_for(toy), None, "")
    assert invocation._warm(ExecutionOptions(executor=Local(1)))
    assert invocation._warm(ExecutionOptions(executor=Local(1), run_timeout=5.0)) is None


def test_bad_input_ends_them_and_writes_nothing(
    toy: Path, two_processors: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds, output = started(monkeypatch), toy.with_name("out")
    toy.write_text(TOY.replace('config["batch_size"]', '(1 / (4 - config["batch_size"]))', 1))
    invocation = Invocation(
        discovery.load(str(toy)), settings_for(toy, norms=("none",), values={"deployed": (2, 4)}), output, ""
    )
    with pytest.raises(BadInput, match="division by zero"):
        invocation.complete(ExecutionOptions(executor=Local(1)))
    assert kinds == [True] and not output.exists()
