"""Compiling a configuration: one trace for all runs, stacks equal to single runs, the cache of compiled programs."""

import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import chex
import jax
import numpy as np
import pytest

from benchmarks.speed import throughput
from normlab import norms, study
from normlab.models import nnx as nnx_models
from normlab.models.convolution import PRODUCTS
from normlab.models.mlp import MLP
from normlab.study.data import cache
from normlab.study.data.dataset import digits
from normlab.study.design.program import Program, Start
from normlab.study.training import compilation_cache
from normlab.study.training.compilation import compile_program, executable, starting
from normlab.study.training.compilation_cache import CACHE_BYTES, _machine, use_cache


def small(norm: str = "batch", batch_size: int = 128) -> Program:
    problem = study.supervised(name="small", model=lambda norm: MLP(norm, hidden=(16,)), data=digits)
    return problem.build(norms.get(norm), {"batch_size": batch_size, "epochs": 1})


class TestCompileProgram:
    def test_a_configuration_is_traced_once(self) -> None:
        program = small()
        chex.clear_trace_counter()
        step = chex.assert_max_traces(program.step, n=1)
        compiled = compile_program(dataclasses.replace(program, step=step))
        outcomes = compiled.train([0.01, 0.01, 0.1, 0.1], [0, 1, 0, 1])
        assert len({outcome.metrics["train_loss"] for outcome in outcomes}) == 4

    def test_same_seed_gives_the_same_numbers(self) -> None:
        first, second = (next(compile_program(small()).train([0.1], [3])).metrics for _ in range(2))
        assert first == second

    def test_runs_are_made_as_they_are_asked_for(self) -> None:
        program, seeds = small(), []
        init = program.init
        program = dataclasses.replace(program, init=lambda seed: seeds.append(seed) or init(seed))
        outcomes = compile_program(program).train([0.1, 0.1], [4, 5])
        next(outcomes)
        assert seeds == [0, 4]

    @pytest.mark.parametrize("norm", ["batch", "layer"])
    def test_stacked_runs_are_those_that_run_alone(self, norm: str) -> None:
        program = small(norm)
        stack, alone = compile_program(program, 2), compile_program(program)
        rates, seeds = [0.01, 0.1, 0.1], [0, 0, 5]
        stacked = list(stack.train(rates, seeds))
        for one, other in zip(stacked, alone.train(rates, seeds), strict=True):
            assert one.metrics["train_loss"] == pytest.approx(other.metrics["train_loss"], rel=1e-4)
            assert one.metrics["test"] == pytest.approx(other.metrics["test"], abs=2.5 / 359)
        assert next(stack.train(rates[:1], seeds[:1])).metrics == stacked[0].metrics

    @pytest.mark.parametrize("model", [MLP, partial(nnx_models.MLP, inputs=64)])
    def test_accelerators_draw_weights_in_one_program(
        self, model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        problem = study.supervised(name="small", model=partial(model, hidden=(16,)), data=digits)
        program = problem.build(norms.get("batch"), {"batch_size": 128, "epochs": 1})
        (_, alone), (_, stack) = (starting(program, lanes)([0.1], [3]) for lanes in (None, 2))
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        compiled = dataclasses.replace(program, init=lambda seed: pytest.fail("not one program"))
        for lanes, expected in ((None, alone), (2, stack)):
            rates, states = starting(compiled, lanes)([0.1], [3])
            assert np.shape(rates) == (() if lanes is None else (lanes,))
            chex.assert_trees_all_close(states, expected, rtol=1e-5, atol=1e-6)
            chex.assert_trees_all_equal_dtypes(states, expected)

    @pytest.mark.parametrize(
        ("backend", "name", "library"), [("gpu", PRODUCTS, True), ("gpu", "a", False), ("cpu", PRODUCTS, False)]
    )
    def test_products_of_stacked_convolutions_are_left_to_the_library(
        self, backend: str, name: str, library: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(jax, "default_backend", lambda: backend)
        lowered: Any = SimpleNamespace(as_text=lambda debug_info: f"x/{name}/y", compile=lambda options: options)
        assert executable(lowered) == ({"xla_gpu_enable_triton_gemm": False} if library else None)

    def test_weights_that_cannot_be_traced_are_drawn_one_by_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        start = Start(np.int32, lambda seed, state: int(seed))
        program = dataclasses.replace(small(), start=start)
        chex.assert_trees_all_equal(starting(program, None)([0.1], [3])[1], program.init(3))

    def test_costs_are_those_of_training(self) -> None:
        few, many = (compile_program(small(batch_size=size)) for size in (8, 512))
        assert few.memory is not None and many.memory is not None
        data = sum(array.nbytes for array in small().data.values())
        assert data < few.memory < many.memory
        assert few.seconds > 0
        assert next(few.train([0.1], [0])).seconds > 0

    def test_a_backend_that_does_not_tell_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(jax.stages.Compiled, "memory_analysis", lambda self: None)
        assert compile_program(small()).memory is None


SCRIPT = """
import json
from jax import monitoring
from normlab import norms, study
from normlab.study.data.dataset import digits
from normlab.study.training.compilation import compile_program
from normlab.study.training.compilation_cache import use_cache
from normlab.models.mlp import ConvNet

events = []
monitoring.register_event_listener(lambda event, **_: events.append(event))
use_cache()
problem = study.supervised(name="small", model=lambda norm: ConvNet(norm, widths=(4,), strides=(2,)), data=digits)
program = problem.build(norms.get("batch"), {"batch_size": 64, "epochs": 1})
metrics = [outcome.metrics for outcome in compile_program(program).train([0.1, 0.3], [0, 1])]
print(json.dumps([metrics, events.count("/jax/compilation_cache/cache_hits")]))
"""


def start(cache: Path, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", SCRIPT]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "NORMLAB_CACHE": str(cache), **environment}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[list[dict[str, float]], int]:
    """Metrics of the runs, and how many programs came from the cache."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    metrics, hits = json.loads(out)
    return metrics, hits


@pytest.fixture
def no_cache_of_jax() -> Iterator[None]:
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)


class TestCache:
    @pytest.mark.slow
    def test_a_cached_program_gives_the_numbers_of_a_fresh_one(self, tmp_path: Path) -> None:
        fresh = start(tmp_path, JAX_ENABLE_COMPILATION_CACHE="false")
        together = [start(tmp_path), start(tmp_path)]
        expected, hits = finish(fresh)
        assert hits == 0
        assert [finish(process)[0] for process in together] == [expected] * 2

        entries = list(tmp_path.glob("*/*"))
        assert finish(start(tmp_path)) == (expected, len(entries))
        for entry in entries:
            entry.write_bytes(entry.read_bytes()[:50])
        assert finish(start(tmp_path)) == (expected, 0)

    @pytest.mark.usefixtures("no_cache_of_jax")
    def test_where_it_is(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("NORMLAB_CACHE", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        of_user = use_cache()
        assert of_user and of_user.parent == tmp_path / "normlab"
        assert use_cache() is None  # what JAX has been given stays
        monkeypatch.setenv("NORMLAB_CACHE", str(tmp_path / "own"))
        assert use_cache() == tmp_path / "own" / of_user.name
        monkeypatch.setattr(compilation_cache, "_machine", lambda: "another")
        another = use_cache()
        assert another and another.name != of_user.name

    @pytest.mark.usefixtures("no_cache_of_jax")
    def test_a_folder_that_cannot_be_is_no_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").touch()
        monkeypatch.setenv("NORMLAB_CACHE", str(tmp_path / "file"))
        assert use_cache() is None
        assert jax.config.values["jax_compilation_cache_dir"] is None

    def test_a_machine_is_told_by_its_processor(self) -> None:
        assert _machine() == _machine()
        assert platform.machine() in _machine()

    def test_the_oldest_entries_go(self, tmp_path: Path) -> None:
        names = [f"jit_{name}-{'0' * 64}-cache" for name in ("0", "1", "2", "alive", "folder", "killed")]
        for age in range(3):
            with (tmp_path / names[age]).open("wb") as file:
                file.truncate(CACHE_BYTES // 2 - 1)
            os.utime(tmp_path / names[age], (1e9 - age, 1e9))
        for name in (names[3], names[5], "of the user", f"of-the-user-{'0' * 64}"):
            (tmp_path / name).touch()
            os.utime(tmp_path / name, (1e9, 1e9 if name != names[3] else time.time()))
        (tmp_path / names[4]).mkdir()
        cache.prune(tmp_path, CACHE_BYTES, cache.PROGRAMS)
        left = sorted(path.name for path in tmp_path.iterdir())
        assert left == sorted([*names[:2], *names[3:5], "of the user", f"of-the-user-{'0' * 64}"])


class TestThroughput:
    def test_peers_train_on_the_batches_of_ours(self) -> None:
        case = throughput.Case("mlp", "batch", 300)
        program = throughput.program(case)
        batches, test = throughput.batches_of(case, 3)
        state = program.init(3)
        assert case.steps == program.steps
        np.testing.assert_array_equal(batches, state.order)
        np.testing.assert_array_equal(test, state.held_out[-len(test) :])

    def test_a_row_tells_how_many_times_as_long_as_ours(self) -> None:
        case, contender = throughput.Case("conv", "batch", 4), throughput.Contender("flax", 1)
        team: Any = SimpleNamespace(setup_seconds=1.0, errors=[0.1, 0.2, 0.3])
        row = throughput.row(case, contender, team, [2.0, 3.0, 4.0], [1.0, 2.0, 1.0])
        assert (row.ratio, row.ratio_low, row.ratio_high) == (2.0, 1.5, 4.0)
        assert (row.models_per_minute, row.test_error, row.trained) == (20.0, 0.2, 3)
        assert row.step_us == pytest.approx(3e6 / 5120)
        assert "!" in throughput.line(row)
        assert "0 of 1 rows" in throughput.summary([row])


def test_a_process_of_somebody_else_keeps_its_own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NORMLAB_CACHE", str(tmp_path))
    options = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [jax.config.values[name] for name in options]
    with compilation_cache.cached():
        jax.jit(lambda x: x * 3 + 1)(jax.numpy.ones(7)).block_until_ready()
        assert Path(jax.config.values[options[0]]).is_relative_to(tmp_path)
    kept = sorted(tmp_path.rglob("*"))
    assert any(path.is_file() for path in kept)
    assert [jax.config.values[name] for name in options] == before
    jax.jit(lambda x: x * 5 + 1)(jax.numpy.ones(7)).block_until_ready()
    assert sorted(tmp_path.rglob("*")) == kept
