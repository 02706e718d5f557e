"""Values are spread over processes: the same results in the same order, whatever happens to the other processes."""

import os
import sys
from subprocess import Popen
from typing import Any

import pytest

from normlab.study.report import apart


def process_of(_: int) -> int:
    return os.getpid()


def squared(number: int) -> int:
    return number**2


def dies_elsewhere(parent: int) -> int:
    if os.getpid() != parent:
        os._exit(7)
    return parent


@pytest.fixture(autouse=True)
def three_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "usable_cpus", lambda: 3)


def test_results_are_in_order_and_made_in_several_processes() -> None:
    assert apart.spread(squared, range(7)) == [0, 1, 4, 9, 16, 25, 36]
    made_in = apart.spread(process_of, range(7))
    assert made_in[::3] == [os.getpid()] * 3
    assert len(set(made_in)) == 3


def test_there_are_no_more_processes_than_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "Popen", None)
    assert apart.spread(squared, []) == []
    assert apart.spread(squared, [3]) == [9]


def test_values_of_a_process_that_dies_are_left_to_this_one() -> None:
    assert apart.spread(dies_elsewhere, [os.getpid()] * 4) == [os.getpid()] * 4


def test_without_processes_this_one_does_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert apart.spread(squared, range(5)) == [0, 1, 4, 9, 16]


def test_an_error_here_ends_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    started = list[Popen[bytes]]()

    def popen(*args: Any, **options: Any) -> Popen[bytes]:
        started.append(Popen(*args, **options))
        return started[-1]

    monkeypatch.setattr(apart, "Popen", popen)
    with pytest.raises(TypeError):
        apart.spread(squared, ["2", 2, 2])  # pyright: ignore
    assert len(started) == 2
    assert all(process.returncode is not None for process in started)
