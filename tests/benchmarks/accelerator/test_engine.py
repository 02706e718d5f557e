"""The stage `engine`: its rows, the probe's choice beside the best, and contenders that fail."""

from types import SimpleNamespace

import pytest

from benchmarks.accelerator import engine
from benchmarks.accelerator.stage import Clock
from benchmarks.speed.throughput import Case
from normlab.study.driver.lanes import Trial
from normlab.study.training.loop import check


def trial(lanes: int, seconds: float) -> Trial:
    return Trial(lanes=lanes, seconds=seconds, compile_seconds=2.0, memory=3000 * lanes)


@pytest.mark.slow
def test_a_network_has_stacks_a_choice_and_whole_trainings() -> None:
    found = list(engine.rows(Clock(300.0), tiny=True, skip={"torch", "torch.compile", "CPU"}))
    assert not [row for row in found if "error" in row]
    assert [row["lanes"] for row in found if row["kind"] == "stack"] == [1, 2]
    (choice,) = [row for row in found if row["kind"] == "choice"]
    contenders = [row["contender"] for row in found if row["kind"] == "models"]
    assert contenders == ["one after another", f"stacks of {choice['chosen']}", "Flax"]


@pytest.mark.slow
@pytest.mark.parametrize("network", engine.all_networks(), ids=lambda network: network.name)
def test_networks_can_be_traced(network: engine.Network) -> None:
    program = network.program()
    assert program.steps > 20
    check(program, whole=False)


def test_the_end_of_the_time_leaves_out_what_is_worth_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "ours", lambda program, lanes: {"models_per_minute": 1.0})
    monkeypatch.setattr(engine, "trials", lambda program, end: iter([trial(1, 1.0)]))
    network = engine.Network("a", "batch", 2, lambda: SimpleNamespace(steps=3))  # pyright: ignore
    assert [row["kind"] for row in engine.of_network(network, Clock(-1.0), True, ())] == ["models", "stack", "choice"]


def test_the_choice_is_compared_with_the_best() -> None:
    row = engine.chosen([trial(1, 1.0), trial(2, 1.0), trial(4, 1.9), trial(8, 1.9)])
    assert (row["chosen"], row["models_per_minute"]) == (2, 120.0)
    assert (row["best"], row["best_models_per_minute"]) == (8, pytest.approx(60 * 8 / 1.9))
    assert row["share_of_best"] == pytest.approx(1.9 / 4)
    assert row["probe_s"] == 6.0  # of 1, 2 and 4: no run waits for 8


def test_columns_of_a_stack_are_per_lane() -> None:
    row = engine.of_trial(trial(4, 2.0))
    assert row == {"lanes": 4, "models_per_minute": 120.0, "compile_s": 2.0, "kb_a_lane": 3.0}


def test_a_contender_that_fails_has_a_row() -> None:
    def fails() -> engine.Row:
        raise ValueError("no such device")

    assert engine.attempted("torch", fails) == {"contender": "torch", "error": "ValueError: no such device"}


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
    with pytest.raises(RuntimeError, match=r"\w+Error: "):
        engine.in_child(Case("mlp", "batch", 512, data="npz:nowhere.npz"), Clock(60.0), compiled=False)
