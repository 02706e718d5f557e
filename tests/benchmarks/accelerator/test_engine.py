"""The stage `engine`: its rows, the probe's choice beside the best, and contenders that fail."""

from collections.abc import Callable, Iterator, Sequence
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.accelerator import engine
from benchmarks.accelerator.stage import Clock
from benchmarks.speed.throughput import Case
from normlab.study.driver.lanes import Trial
from normlab.study.training.loop import Outcome, check


def trial(lanes: int, seconds: float) -> Trial:
    return Trial(lanes=lanes, seconds=seconds, compile_seconds=2.0, memory=3000 * lanes)


@pytest.mark.slow
def test_a_network_has_stacks_a_choice_and_whole_trainings() -> None:
    found = list(engine.rows(Clock(300.0), tiny=True, skip={"torch", "torch.compile", "CPU"}))
    assert not [row for row in found if "error" in row]
    assert [row["lanes"] for row in found if row["kind"] == "stack"] == [1, 2]
    (choice,) = [row for row in found if row["kind"] == "choice"]
    assert choice["not_measured"] == ""
    contenders = [row["contender"] for row in found if row["kind"] == "models"]
    assert contenders == ["one after another", "stacks of 2", "Flax"]


@pytest.mark.slow
@pytest.mark.parametrize("network", engine.all_networks(), ids=lambda network: network.name)
def test_networks_can_be_traced(network: engine.Network) -> None:
    program = network.program()
    assert program.steps > 20
    check(program, whole=False)


def network(monkeypatch: pytest.MonkeyPatch, compile_program: Callable[..., object]) -> engine.Network:
    monkeypatch.setattr(engine, "compile_program", compile_program)
    program: Any = SimpleNamespace(steps=3, data={}, mesh=None)
    return engine.Network("a", "batch", 2, lambda: program, 1.0, (1, 2))


class Trained:
    """A compiled program whose runs take no time."""

    seconds, memory = 2.0, 3000

    def train(self, rates: Sequence[float], seeds: Sequence[int]) -> Iterator[Outcome]:
        yield from (Outcome({}, {}, 0.25) for _ in seeds)


def test_each_number_has_a_training_and_its_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "TURN", 0.0)
    found = list(engine.of_network(network(monkeypatch, lambda *_: Trained()), Clock(60.0)))
    assert [row["kind"] for row in found] == ["models", "stack", "models", "stack", "choice"]
    assert [row["models_per_minute"] for row in found if row["kind"] == "stack"] == [240.0, 240.0]
    assert [row["kb_a_lane"] for row in found if row["kind"] == "stack"] == [3.0, 3.0]
    assert found[-1]["chosen"] == 1


def test_numbers_that_time_cuts_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = Event()

    def compile_program(program: object, runs: int | None, data: object) -> object:
        if runs:
            ended.wait(60.0)
        return Trained()

    monkeypatch.setattr(engine, "TURN", 0.0)
    found = list(engine.of_network(network(monkeypatch, compile_program), Clock(1.0)))
    ended.set()
    assert [row.get("error") for row in found] == [None, None, "TimeoutError: not compiled in time", None]
    assert found[-1]["not_measured"] == "2"


def test_without_time_nothing_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(engine.of_network(network(monkeypatch, lambda *_: Trained()), Clock(-1.0)))
    assert [row["error"] for row in found] == ["TimeoutError: not begun, the time was over"] * 2


def test_the_choice_is_compared_with_the_best() -> None:
    row = engine.chosen([trial(1, 1.0), trial(2, 1.0), trial(4, 1.9), trial(8, 1.9)], (1, 2, 4, 8, 16))
    assert (row["chosen"], row["models_per_minute"]) == (2, 120.0)
    assert (row["best"], row["best_models_per_minute"]) == (8, pytest.approx(60 * 8 / 1.9))
    assert row["share_of_best"] == pytest.approx(1.9 / 4)
    assert row["not_measured"] == "16"


def test_columns_of_a_stack_are_per_lane() -> None:
    row = engine.of_trial(trial(4, 2.0))
    assert row == {"lanes": 4, "models_per_minute": 120.0, "compile_s": 2.0, "kb_a_lane": 3.0}


def test_a_contender_that_fails_has_a_row() -> None:
    def fails() -> engine.Row:
        raise ValueError("no such device")

    assert engine.attempted("torch", fails, Clock(60.0)) == {
        "contender": "torch",
        "error": "ValueError: no such device",
    }


def test_the_first_turn_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, seen = iter([0.3, 0.1, 0.2]), list[int]()

    def timed(call: engine.Measure) -> float:
        call()
        return next(seconds)

    monkeypatch.setattr(engine.throughput, "timed", timed)
    assert engine.of_turns(seen.append, models=2) == {"models_per_minute": 600.0, "most": 1200.0, "trained": 6}
    assert seen == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_child_that_fails_says_why() -> None:
    torch = engine.Torch()
    try:
        for _ in range(2):  # the process outlives a failure
            with pytest.raises(RuntimeError, match=r"\w+Error: "):
                torch.turns(Case("mlp", "batch", 512, data="npz:nowhere.npz"), Clock(60.0), compiled=False)
    finally:
        torch.end()
    with pytest.raises(RuntimeError, match="has ended"):
        torch.turns(Case("mlp", "batch", 512), Clock(60.0), compiled=False)
