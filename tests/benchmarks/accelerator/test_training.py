"""The stage `training`: protocol, failures, time, and data that are or are not there."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks.accelerator import carry, training
from benchmarks.accelerator.stage import Clock
from normlab.study.data.dataset import Data
from normlab.study.design.records import TUNING_SEEDS_FROM
from normlab.study.training.loop import Outcome


def images(name: str, n: int = 480) -> Data:
    """Return images whose brightness gives their class."""
    size = {"cifar10": (32, 32, 3), "mnist": (28, 28, 1)}[name]
    labels = np.arange(n) % 10
    inputs = np.broadcast_to((25 * labels).astype(np.uint8)[:, None, None, None], (n, *size))
    return Data(inputs, labels, test=200, mean=(0.5,) * size[2], std=(0.25,) * size[2])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Carry images."""
    monkeypatch.setattr(carry, "chosen", lambda data, *_: images(data.removeprefix("tfds:")))
    carry.main([str(tmp_path), "--data-dir", "anywhere"])
    return tmp_path


def test_carried_data_are_those_of_normlab(folder: Path) -> None:
    for name in carry.EXAMPLES:
        found, expected = carry.carried(name, folder), images(name)
        assert found is not None
        np.testing.assert_array_equal(found.inputs, expected.inputs)
        np.testing.assert_array_equal(found.labels, expected.labels)
        assert (found.test, found.mean, found.std) == (expected.test, expected.mean, expected.std)


def test_the_test_set_is_shortened() -> None:
    arrays = carry.shortened(images("mnist"), 50)
    assert (len(arrays["inputs"]), len(arrays["labels"]), int(arrays["test"])) == (330, 330, 50)


def test_absent_data_are_replaced_by_noise(tmp_path: Path) -> None:
    assert carry.carried("mnist", tmp_path) is None
    data, real = training.data_of("cifar10", (32, 32, 3), tmp_path, tiny=True)
    assert (data.description, real) == ("noise", False)


@pytest.mark.slow
def test_every_cell_has_errors_where_there_are_data(folder: Path) -> None:
    found = list(training.rows(Clock(300.0), tiny=True, skip=(), folder=folder))
    assert [(row["kind"], row["problem"], row.get("norm")) for row in found] == [
        ("data", "resnet20", None),
        ("data", "lstm", None),
        *((row["kind"], row["problem"], row["norm"]) for row in found[2:]),
    ]
    assert {(row["problem"], row["norm"]) for row in found[2:]} == {("resnet20", "batch"), ("lstm", "none")}
    cells: list[Any] = [row for row in found if row["kind"] == "cell"]
    assert not [row for row in cells if "error" in row]
    assert all(row["succeeded"] + row["failed"] == row["lanes"] == 5 for row in cells)


@pytest.mark.slow
def test_noise_has_times_alone(tmp_path: Path) -> None:
    setting = training.images(tmp_path, tiny=True)
    row: Any = next(training.of_settings([setting], Clock(300.0), ()))
    assert row["models_per_minute"] > 0 and "test_error" not in row


class Trained:
    """A compiled program whose errors are made up: the validation error is the distance of the rate from 0.1."""

    seconds, memory = 1.0, 5_000_000

    def __init__(self, fails_from: int = 1000, seconds: float = 0.5) -> None:
        self.fails_from, self.each = fails_from, seconds
        self.seen: list[tuple[float, int]] = []

    def train(self, rates: Sequence[float], seeds: Sequence[int]) -> Iterator[Outcome]:
        for rate, seed in zip(rates, seeds, strict=True):
            self.seen.append((rate, seed))
            bad = self.fails_from <= seed < TUNING_SEEDS_FROM
            metrics = {"validation": abs(rate - 0.1), "test": 0.2 + seed / 100, "finite": 1.0}
            yield Outcome({**metrics, "first_nonfinite": 3 if bad else -1}, {}, self.each)


SETTING: Any = SimpleNamespace(real=True, rates=(0.01, 0.1, 1.0), problem=SimpleNamespace(name="a"), cells=(), lanes=6)
PROGRAM: Any = SimpleNamespace(chance=0.9, steps=30)


def test_tuning_seeds_choose_the_rate_and_others_have_the_error() -> None:
    compiled: Any = Trained()
    row: Any = training.of_cell(SETTING, PROGRAM, compiled)
    assert compiled.seen[:6] == [(rate, TUNING_SEEDS_FROM + seed) for rate in SETTING.rates for seed in (0, 1)]
    assert compiled.seen[6:] == [(0.1, seed) for seed in range(6)]
    assert (row["learning_rate"], row["edge"], row["failed"]) == (0.1, False, 0)
    assert row["test_error"] == pytest.approx(0.225)
    assert row["low"] < 0.225 < row["high"]
    assert (row["update_ms"], row["models_per_minute"], row["mb_a_lane"]) == (pytest.approx(100.0), 120.0, 5.0)


def test_failures_are_counted_and_have_no_error() -> None:
    compiled: Any = Trained(fails_from=4)
    row = training.of_cell(SETTING, PROGRAM, compiled)
    assert (row["succeeded"], row["failed"], row["test_error"]) == (4, 2, pytest.approx(0.215))


def test_a_cell_that_does_not_fit_into_the_time_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {("batch", 32): 10, ("batch", 2): 10_000, ("none", 32): 10}
    setting: Any = SimpleNamespace(**{**vars(SETTING), "cells": tuple(steps)})
    monkeypatch.setattr(training, "built", lambda _, *cell: SimpleNamespace(chance=0.9, steps=steps[cell]))
    monkeypatch.setattr(training, "compile_program", lambda program, lanes: Trained(seconds=1.0))
    monkeypatch.setattr(training, "AHEAD", 1)  # in their order
    found = list(training.of_settings([setting], Clock(60.0), ()))
    assert [row.get("error") for row in found] == [None, "TimeoutError: needs about 12000 s", None]


def test_a_program_that_is_not_compiled_in_time_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = Event()
    setting: Any = SimpleNamespace(**{**vars(SETTING), "cells": (("batch", 2), ("none", 2))})
    monkeypatch.setattr(training, "built", lambda *_: PROGRAM)
    monkeypatch.setattr(training, "compile_program", lambda program, lanes: ended.wait(60.0))
    found = training.of_settings([setting], Clock(0.1 + training.LAST), ())
    assert next(found)["error"] == "TimeoutError: not compiled in time"
    ended.set()
    assert [row["norm"] for row in found] == ["none"]


def test_settings_take_turns() -> None:
    first, second = ("batch", 32), ("none", 32)
    settings: Any = [SimpleNamespace(cells=cells) for cells in ([first, second], [second])]
    expected = [(settings[0], *first), (settings[1], *second), (settings[0], *second)]
    assert training.in_turns(settings) == expected


def test_updates_of_a_size_are_expected_to_take_as_long() -> None:
    updates = {("a", 32): 0.25, ("a", 2): 0.125, ("b", 8): 0.0625}
    assert training.expected(updates, "a", 32) == 0.25
    assert training.expected(updates, "a", 8) == 0.125
    assert training.expected(updates, "c", 8) == 0.0


def test_a_program_that_fails_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(program: object, lanes: int) -> None:
        raise ValueError("too large")

    setting: Any = SimpleNamespace(**{**vars(SETTING), "cells": (("batch", 2),)})
    monkeypatch.setattr(training, "built", lambda *_: PROGRAM)
    monkeypatch.setattr(training, "compile_program", fails)
    (row,) = training.of_settings([setting], Clock(60.0), ())
    assert row["error"] == "ValueError: too large"
