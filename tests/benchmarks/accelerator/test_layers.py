"""Test that contenders compute the same function, and that all programs of the device lower for it."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, use_abstract_mesh

from benchmarks.accelerator import contenders, kernels, layers, peers, timing
from benchmarks.accelerator.cases import BOTH, CASES, FORWARD, TINY, Case
from benchmarks.accelerator.cell_checks import cell_checks
from benchmarks.accelerator.norm_checks import norm_checks
from benchmarks.accelerator.pallas import Launch
from benchmarks.accelerator.stage import Clock, Row

ODD = (
    Case("layer", (37, 70), "float32"),
    Case("rms", (70, 33), "bfloat16"),
    Case("batch", (3, 7, 5, 150), "float32"),
    Case("group", (3, 5, 5, 96), "bfloat16"),
)
"""Sizes that fill no tile, and more tiles than programs."""


@pytest.mark.parametrize("case", ODD, ids=lambda case: case.norm)
def test_contenders_are_the_norm_with_its_gradients(case: Case) -> None:
    arguments = layers.draw(case, 0)
    norms = (
        contenders.linen("normlab.linen", case),
        contenders.saving_x(case),
        contenders.launched(case, Launch(2, interpret=True)),
    )
    right, *others = jax.jit(lambda *given: [contenders.training(norm)(*given) for norm in norms])(*arguments)
    bound = 1e-2 if case.dtype == "bfloat16" else 2e-5
    for found in others:
        assert [part.dtype for part in found] == [part.dtype for part in right]
        for a, b in zip(found, right, strict=True):
            a, b = (np.asarray(part, np.float64) for part in (a, b))
            np.testing.assert_allclose(a, b, atol=bound * max(1.0, np.abs(b).max()), rtol=0)


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch) -> Case:
    """The only case there is."""
    monkeypatch.setattr(layers, "TINY", TINY[:1])
    return TINY[0]


def test_the_stage_measures_contenders_and_reports_those_it_cannot(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(case: Case) -> contenders.Function:
        return lambda x, scale, bias: 1.01 * contenders.saving_x(case)(x, scale, bias)

    def broken(case: Case) -> contenders.Function:
        raise ImportError("gone")

    made = {"ours": contenders.CONTENDERS["ours"], "wrong": wrong, "broken": broken, "lacking": lambda case: None}
    for name in ("CONTENDERS", "XLA"):
        monkeypatch.setattr(layers, name, {**made, "skipped": broken})
    plan, first, second, copy, *timed = layers.rows(Clock(60), tiny=True, skip=["skipped"])
    assert (plan["count"], plan["unit"]) == (1, "cases")
    assert (first["contender"], second["contender"]) == ("wrong", "broken")
    assert str(first["error"]).startswith("ArithmeticError: Expected the numbers of ours, got a distance of 0.01")
    assert second["error"] == "ImportError: gone"
    assert copy["kind"] == "copy" and float(str(copy["gb_s_best"])) >= float(str(copy["gb_s"])) > 0
    assert [(row["contender"], row["what"]) for row in timed] == [("ours", FORWARD), ("ours", BOTH)]


def test_kernels_are_compared_with_ours_which_is_not_timed_again(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "KERNELS", {"ours, saves x": None})
    _, copy, *timed = kernels.rows(Clock(60), tiny=True, skip=())
    assert copy["kind"] == "copy"
    assert [(row["contender"], row["what"]) for row in timed] == [("ours, saves x", FORWARD), ("ours, saves x", BOTH)]


def test_fractions_are_ideal_bytes_over_time() -> None:
    row = timing.speed([2.0, 1.0, 3.0], CASES[0].copies(BOTH), [0.5, 0.4, 0.6])
    assert row == {"us": 2e6, "us_least": 1e6, "fraction": 0.625, "fraction_least": 1.0, "rounds": 3}
    assert (CASES[0].norm, CASES[0].copies(FORWARD), CASES[1].norm, CASES[1].copies(BOTH)) == ("layer", 1, "batch", 4)
    assert timing.bandwidth(2_000_000_000, [2.0, 1.0, 4.0]) == {"gb_s": 2.0, "gb_s_best": 4.0}


def test_contenders_take_turns_and_a_turn_waits_once() -> None:
    log: list[str] = []
    calls = {name: functools.partial(log.append, name) for name in "ab"}
    times = timing.seconds(calls, lambda _: log.append("wait"), rounds=3)
    assert {name: len(of_name) for name, of_name in times.items()} == {"a": 3, "b": 3}
    assert log[:8] == ["a", "wait"] * 2 + ["b", "wait"] * 2  # to choose the repeats
    assert log.count("a") == log.count("b") == 2 + 3 * timing.MOST and log.count("wait") == 4 + 6


def test_without_torch_the_reason_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (row,) = peers.rows(Clock(60), tiny=True, skip=())
    assert row["contender"] == "torch" and str(row["error"]).startswith("ModuleNotFoundError")


@pytest.mark.slow
def test_torch_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    plan, *rows = peers.rows(Clock(60), tiny=True, skip=["torch.compile"])
    assert plan["count"] == len(TINY)
    assert [row for row in rows if "error" in row] == []
    assert {row["norm"] for row in rows} == {"layer", "rms", "batch", "group"}


class FakeCuda:
    """CUDA of a PyTorch without a device: records what is asked of it."""

    def __init__(self, log: list[str], broken: bool) -> None:
        self.log, self.broken = log, broken

    def Stream(self) -> Any:
        return SimpleNamespace(wait_stream=lambda other: self.log.append("wait"))

    def current_stream(self) -> Any:
        return self.Stream()

    def stream(self, stream: Any) -> Any:
        return contextlib.nullcontext()

    def CUDAGraph(self) -> Any:
        return SimpleNamespace(replay=lambda: self.log.append("replay"))

    @contextlib.contextmanager
    def graph(self, graph: Any) -> Iterator[None]:
        self.log.append("record")
        yield
        if self.broken:
            raise RuntimeError("operation not permitted when stream is capturing")


def test_a_graph_is_recorded_after_a_warm_up_and_launches_without_the_call() -> None:
    log: list[str] = []
    launch = peers.graph_of(SimpleNamespace(cuda=FakeCuda(log, broken=False)), lambda: log.append("call") or 5)
    assert log == ["wait", *["call"] * peers.WARM_UP, "wait", "record", "call"]
    assert launch() == 5 and log[-1] == "replay" and log.count("call") == peers.WARM_UP + 1


def test_a_graph_that_fails_costs_no_plain_number(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def timed(torch: Any, case: Case, contender: str, *_: Any) -> Iterator[Row]:
        yield {"kind": "layer", "contender": contender, "us": 1.0}

    monkeypatch.setattr(peers, "prepared", lambda *_: (None, {BOTH: lambda: None}))
    monkeypatch.setattr(peers, "timed", timed)
    torch = SimpleNamespace(cuda=FakeCuda([], broken=True))
    plain, graph = peers.measured(torch, case, "torch", graphs=True, rounds=1)
    assert (plain["contender"], plain["us"]) == ("torch", 1.0)
    assert graph["contender"] == "torch, graph" and str(graph["error"]).startswith("RuntimeError: operation not")


H100 = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=None, platform="gpu")


def lower(function: Callable[..., Any], *arguments: Any, platform: str = "cuda") -> str:
    """Lower a function for a device that is not here."""
    with use_abstract_mesh(AbstractMesh((), (), abstract_device=H100)):
        return jax.jit(function).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()


EACH = {(case.norm, case.dtype): case for case in CASES}
"""The last case of each norm and dtype."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
@pytest.mark.parametrize("case", EACH.values(), ids=[" ".join(key) for key in EACH])
def test_programs_of_layers_lower(case: Case) -> None:
    shapes = layers.shapes_of(case)
    in_pallas = contenders.training(contenders.launched(case, Launch()))
    assert lower(in_pallas, *shapes).count("custom_call") >= 2
    for name in ("ours", "ours, saves x", "Flax"):
        norm = contenders.CONTENDERS[name](case)
        assert norm is not None
        for platform in ("cuda", "tpu"):
            assert "func.func public @main" in lower(contenders.training(norm), *shapes, platform=platform)


@pytest.mark.slow
def test_programs_of_correctness_lower() -> None:
    for check in (*norm_checks(tiny=True), *cell_checks(tiny=True)):  # special ones are for the devices that are here
        assert "func.func public @main" in lower(check.program, *check.draws[0][1])
