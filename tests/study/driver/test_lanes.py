"""The number of runs in a stack: the rule, the probe, and the number that a folder keeps."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from normlab.errors import BadInput
from normlab.study.design import discovery
from normlab.study.design.plan import Plan
from normlab.study.design.request import Request, from_python
from normlab.study.design.shard import Shard
from normlab.study.driver import driver, lanes, verify
from normlab.study.driver.driver import ExecutionOptions, Invocation, new_console
from normlab.study.driver.lanes import Choice, Trial
from normlab.study.executors.local import Local
from normlab.study.worker.runner import build
from normlab.study.worker.store import Store
from normlab.study.worker.strategy import Strategy, choose_strategy, lanes_in
from tests.support.toys import TOY, settings_for

SMALL: Any = {"norms": ("none",), "curves": ("deployed",), "values": {"deployed": (2,)}}

DEFAULTS = ExecutionOptions()


def measured(seconds: Sequence[float], made: list[int] | None = None) -> Iterator[Trial]:
    """Yield a trial of 1, 2, 4, ... runs for each time of a stack."""
    for number, each in zip(lanes.CANDIDATES, seconds, strict=False):
        if made is not None:
            made.append(number)
        yield Trial(lanes=number, seconds=each, compile_seconds=0.0, memory=None)


class TestRule:
    @pytest.mark.parametrize(
        ("seconds", "runs", "chosen", "tried"),
        [
            ([1, 1, 1, 1, 1, 1, 1], (), 64, 7),
            ([1, 2, 3, 4], (), 1, 2),  # the second gains nothing, so the third is not measured
            ([1, 1, 1.8, 3.4], (), 4, 4),  # a gain of 11 %
            ([1, 1, 1.9, 2], (), 2, 3),  # a gain of 5 %
            ([1, 1, 1, 1, 1], (3,), 4, 4),  # a stack of 8 trains 3 models in no less time
            ([1, 1, 1, 1, 1], (8, 2), 8, 5),
            ([1, 1, 1, 1, 1], (8, 0), 8, 5),
            ([1], (), 1, 1),
        ],
    )
    def test_the_last_number_that_gains_is_chosen(
        self, seconds: list[float], runs: tuple[int, ...], chosen: int, tried: int
    ) -> None:
        made: list[int] = []
        choice = Choice.of(measured(seconds, made), runs)
        assert (choice.lanes, made, list(choice.rates)) == (chosen, made[:tried], made)

    def test_padding_trains_no_models(self) -> None:
        (trial,) = (trial for trial in measured([1, 1, 1, 1]) if trial.lanes == 8)
        assert trial.models_per_minute() == 60 * 8
        assert trial.models_per_minute((9, 2)) == 60 * 11 / 3

    def test_the_sentence_names_what_was_measured(self) -> None:
        assert str(Choice.of(measured([2, 2, 4]))) == (
            "Stacks of 2 runs, chosen by a probe; models a minute: 30 in stacks of 1, 60 in stacks of 2, 60 in stacks "
            "of 4."
        )
        assert str(Choice(lanes=1, rates={})) == "Stacks of 1 run."


class TestProbe:
    @pytest.fixture
    def plan(self, toy: Path) -> Plan:
        return Plan(discovery.load(str(toy)), settings_for(toy, **SMALL))

    def test_memory_and_time_end_it(self, plan: Plan) -> None:
        program = build(plan, plan.configurations[0])
        first, second = (trial for _, trial in zip(range(2), lanes.trials(program), strict=False))
        assert (first.lanes, second.lanes) == (1, 2)
        assert first.memory and second.memory and first.memory < second.memory
        assert min(first.seconds, first.compile_seconds) > 0
        assert [trial.lanes for trial in lanes.trials(program, limit=first.memory)] == [1]
        assert [trial.lanes for trial in lanes.trials(program, end=0.0)] == [1]

    def test_all_measured_programs_fit_into_the_memory(self, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lanes, "trials", lambda *_: measured([1] * 7))
        monkeypatch.setattr(lanes, "_room", lambda: 1000.0)
        monkeypatch.setattr(lanes, "_needed", lambda program, number: 240.0 * number)
        assert lanes.choose(plan).lanes == 4

    def test_the_problem_that_takes_longest_decides(self, toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        comparison = discovery.load(str(toy))
        (one,) = comparison.problems
        two = replace(comparison, problems=(replace(one, name="long"), one))
        plan = Plan(two, settings_for(toy, problems=("long", "scalar"), **SMALL))
        short, long, streamed = (SimpleNamespace(window_source=source) for source in (None, None, "disk"))
        configurations = iter((*plan.configurations, *plan.configurations))
        found = list[Any]()

        def recorded(program: Any, *_: object) -> Iterator[Trial]:
            found.append(program)
            return measured([1])

        monkeypatch.setattr(lanes, "_extremes", lambda plan: zip(configurations, (short, long, streamed), strict=False))
        monkeypatch.setattr(lanes, "_seconds_alone", lambda program: 2.0 if program is long else 1.0)
        monkeypatch.setattr(lanes, "trials", recorded)
        assert lanes.choose(plan).lanes == 1
        assert found == [long]

    def test_without_programs_to_stack_there_is_no_choice(self, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lanes, "_extremes", lambda plan: iter(()))
        assert lanes.choose(plan) == Choice(lanes=1, rates={})

    @pytest.mark.slow
    def test_in_a_process_of_its_own(self, toy: Path) -> None:
        choice = lanes.choose_apart(settings_for(toy, **SMALL), 20.0)
        assert choice.rates[1] > 0 and choice.lanes in choice.rates
        toy.write_text("raise SystemExit")
        assert lanes.choose_apart(settings_for(toy, **SMALL), 20.0) == Choice(lanes=16, rates={})


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Take the CPU for an accelerator whose probe chooses 4; return the seconds that each probe was given."""

    def choose(plan: Plan, seconds: float) -> Choice:
        asked.append(seconds)
        return Choice(lanes=4, rates={2: 1.0, 4: 2.0})

    asked: list[float] = []
    monkeypatch.setattr(driver, "choose_strategy", lambda **given: Strategy(lanes=given["lanes"] or 16))
    monkeypatch.setattr(lanes, "choose", choose)
    return asked


class TestFolder:
    def invoke(self, toy: Path, output: Path, execution: ExecutionOptions = DEFAULTS, **changes: Any) -> int:
        """Make the runs, and return the number of lanes in the header."""
        comparison, settings = discovery.load(str(toy)), settings_for(toy, **{**SMALL, **changes})
        Invocation(comparison, settings, output, "", console=new_console(quiet=True)).complete(execution)
        header = Store(output).header()
        assert header
        return lanes_in(header.identity) or 0

    def test_a_folder_keeps_its_number(self, toy: Path, tmp_path: Path, accelerator: list[float]) -> None:
        output = tmp_path / "out"
        assert self.invoke(toy, output) == 4
        before = len(Store(output).records())
        assert self.invoke(toy, output, seeds=4) == 4
        assert accelerator == [lanes.ENOUGH]
        assert len(Store(output).records()) == before + 1
        assert {record.identity["strategy"] for record in Store(output).records()} == {"vmap of 4"}

    def test_a_given_number_needs_no_probe(self, toy: Path, tmp_path: Path, accelerator: list[float]) -> None:
        assert self.invoke(toy, tmp_path / "out", ExecutionOptions(lanes=2)) == 2
        assert self.invoke(toy, tmp_path / "out", ExecutionOptions(strategy=Strategy(lanes=8))) == 8
        assert not accelerator

    def test_the_option_is_a_whole_number(self, toy: Path) -> None:
        comparison = discovery.load(str(toy))
        request = Request(comparison, from_python({"lanes": 3}, comparison))
        assert ExecutionOptions.of(request).lanes == 3
        with pytest.raises(BadInput, match="lanes"):
            Request(comparison, from_python({"lanes": 0}, comparison))

    def test_another_device_is_probed(
        self, toy: Path, tmp_path: Path, accelerator: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.invoke(toy, tmp_path / "out", ExecutionOptions(lanes=2))
        monkeypatch.setattr(driver.identity, "same_device", lambda identity: False)
        assert self.invoke(toy, tmp_path / "out") == 4

    def test_a_time_budget_gives_a_tenth(self, toy: Path, tmp_path: Path, accelerator: list[float]) -> None:
        self.invoke(toy, tmp_path / "out", ExecutionOptions(time_budget=300.0))
        assert accelerator == [30.0]

    def test_parts_have_the_same_number(self, toy: Path, accelerator: list[float]) -> None:
        comparison, settings = discovery.load(str(toy)), settings_for(toy, **SMALL)
        task = Invocation(comparison, settings, None, "", Shard(1, 2)).task(ExecutionOptions())
        assert (task.strategy.lanes, accelerator) == (16, [])

    def test_workers_of_their_own_are_probed_in_a_process_of_its_own(
        self, toy: Path, accelerator: list[float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lanes, "choose_apart", lambda settings, seconds: Choice(lanes=8, rates={}))
        invocation = Invocation(discovery.load(str(toy)), settings_for(toy, **SMALL), None, "")
        assert invocation.task(ExecutionOptions(executor=Local(2))).strategy.lanes == 8
        assert not accelerator
        of_an_object = Invocation(discovery.load(str(toy)), settings_for("", **SMALL), None, "")
        assert of_an_object.task(ExecutionOptions(executor=Local(2))).strategy.lanes == 4

    def test_a_dry_run_measures_nothing_and_says_so(
        self, toy: Path, tmp_path: Path, accelerator: list[float], capsys: pytest.CaptureFixture[str]
    ) -> None:
        invocation = Invocation(discovery.load(str(toy)), settings_for(toy, **SMALL), tmp_path / "out", "")
        invocation.dry_run(ExecutionOptions())
        assert "A probe before the first run chooses the number of runs in a stack" in capsys.readouterr().out
        assert not accelerator
        self.invoke(toy, tmp_path / "out")
        replace(invocation, console=new_console()).dry_run(ExecutionOptions())
        assert "Stacks of 4 runs." in capsys.readouterr().out

    def test_several_devices_a_model_are_refused(self, toy: Path) -> None:
        invocation = Invocation(discovery.load(str(toy)), settings_for(toy, devices=2, **SMALL), None, "")
        with pytest.raises(BadInput, match="Expected `lanes` only where one device trains a model"):
            invocation.task(ExecutionOptions(lanes=2))

    def test_a_stacked_run_is_verified_in_a_stack(self, toy: Path, tmp_path: Path) -> None:
        self.invoke(toy, tmp_path / "out", ExecutionOptions(lanes=2))
        record = Store(tmp_path / "out").records()[0]
        found = verify.verify(discovery.load(str(toy)), settings_for(toy, **SMALL), record)
        assert found.equal and not found.identity


def test_on_cpu_runs_are_stacked_only_where_that_is_asked_for() -> None:
    assert choose_strategy() == Strategy()
    assert choose_strategy(lanes=3) == Strategy(lanes=3)
    assert choose_strategy(alone=True, lanes=3) == Strategy(lanes=3, alone=True)
    assert str(Strategy(lanes=3, alone=True)) == str(Strategy(lanes=3))


@pytest.mark.parametrize("strategy", [Strategy(), Strategy(alone=True), Strategy(lanes=1), Strategy(lanes=64)])
def test_the_number_is_read_from_the_identity(strategy: Strategy) -> None:
    assert lanes_in({"strategy": str(strategy)}) == strategy.lanes
    assert lanes_in({}) is None


def test_programs_with_the_most_updates_come_first_then_those_with_the_fewest(toy: Path) -> None:
    toy.write_text(TOY.replace('steps=config["epochs"]', 'steps={2: 5, 4: 9, 8: 1}[config["batch_size"]]'))
    comparison = discovery.load(str(toy))
    (first,) = comparison.problems
    two = replace(comparison, problems=(first, replace(first, name="other")))
    plan = Plan(two, settings_for(toy, problems=("scalar", "other"), values={"deployed": (2, 4, 8)}))
    found = [(one.problem, program.steps) for one, program in lanes._extremes(plan)]
    assert found == [("scalar", 9), ("other", 9), ("scalar", 1), ("other", 1)]
