"""Data that are read while a model is trained: the numbers of those that are all there, and runs that are killed."""

import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("grain", reason="the extra `data` is not installed")

from normlab import norms, study
from normlab.errors import BadInput
from normlab.models.mlp import MLP
from normlab.study.data.dataset import Data, digits
from normlab.study.data.streaming import Streamed
from normlab.study.design import discovery
from normlab.study.design.plan import Plan
from normlab.study.design.program import Program
from normlab.study.design.records import Configuration, Record, Run
from normlab.study.driver.preflight import ignores_norm
from normlab.study.driver.schedule import _in_this_process
from normlab.study.executors.protocol import Died
from normlab.study.executors.scheduler import _Assignment, _Tracker
from normlab.study.training import streaming, supervised
from normlab.study.training.checkpoints import Checkpoint, Progress
from normlab.study.training.compilation import Compiled, compile_program
from normlab.study.training.loop import check
from normlab.study.worker import runner
from normlab.study.worker.outcome import make_record
from normlab.study.worker.runner import ConfigurationRunner
from normlab.study.worker.strategy import Strategy, Task
from tests.support.paths import ROOT
from tests.support.toys import settings_for

IMAGES = (digits().inputs[:300] * 255).astype(np.uint8)
LABELS = digits().labels[:300]
CONFIG = {"batch_size": 16, "epochs": 3}


def whole(**fields: Any) -> Data:
    given: dict[str, Any] = {"test": 60, "mean": (0.3,), "std": (0.4,), "augment": ("flip",), **fields}
    return Data(IMAGES, LABELS, description="digits", **given)


def read(examples: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    return IMAGES[list(examples)], LABELS[list(examples)]


def on_disk(reading: Any = read, **fields: Any) -> Streamed:
    fingerprint = fields.pop("fingerprint", "ab" * 32)
    given = {name: value for name, value in vars(whole(**fields)).items() if name != "inputs"}
    return Streamed(sample=IMAGES[:2], **given, read=reading, fingerprint=fingerprint)


def build(data: Data, norm: str = "batch", **options: Any) -> Program:
    config = {**CONFIG, **options.pop("config", {})}
    problem = study.supervised(name="mlp", model=partial(MLP, hidden=(16,)), data=data, **options)
    return problem.build(norms.get(norm), config)


def run(compiled: Compiled, learning_rate: float = 0.1, seed: int = 3) -> dict[str, float]:
    return next(compiled.train([learning_rate], [seed])).metrics


def train(program: Program) -> dict[str, float]:
    return run(compile_program(program))


@pytest.fixture(autouse=True, scope="module")
def small_windows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Windows of 5 batches and of 50 held-out examples: neither divides what there is."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NORMLAB_CACHE", str(folder))
        patch.setattr(supervised, "WINDOW_BYTES", 5 * 16 * 64)
        patch.setattr(supervised, "EVALUATED_AT_ONCE", 50)
        yield folder / "checkpoints"


@pytest.fixture(scope="module")
def fitted(small_windows: Path) -> Compiled:
    """What reads while it trains."""
    return compile_program(build(on_disk()))


@pytest.fixture(scope="module")
def resident() -> Compiled:
    return compile_program(build(whole()))


class TestNumbers:
    def test_are_those_of_data_that_are_all_there(self, fitted: Compiled, resident: Compiled) -> None:
        program = build(on_disk())
        assert program.window_source and (program.window_source.steps, program.steps) == (5, 36)
        assert run(fitted) == pytest.approx(run(resident), rel=1e-5)

    def test_of_seeds_differ_and_are_repeated(self, fitted: Compiled) -> None:
        first, other, again = (outcome.metrics for outcome in fitted.train([0.1, 0.1, 0.1], [0, 1, 0]))
        assert first == again
        assert first["train_loss"] != other["train_loss"]

    @pytest.mark.parametrize("composition", [{}, {"classes_per_batch": 2}])
    def test_batches_are_those_of_data_that_are_all_there(self, composition: Any) -> None:
        expected = build(whole(), config=composition).init(3).order
        source = build(on_disk(), config=composition).window_source
        assert source
        for skipped in (0, 6):
            labels = [window["labels"] for window in source.windows(3, skipped)]
            np.testing.assert_array_equal(
                np.concatenate(labels)[: (36 - 5 * skipped) * 16], LABELS[expected[5 * skipped :]].ravel()
            )

    def test_divergence_is_found_where_it_happens(self, fitted: Compiled, resident: Compiled) -> None:
        found, expected = (run(compiled, 1e38) for compiled in (fitted, resident))
        assert found["first_nonfinite"] == expected["first_nonfinite"] > 0
        assert found["finite"] == expected["finite"] == 0

    def test_on_several_devices(self, resident: Compiled) -> None:
        shared = compile_program(build(on_disk(), config={"devices": 2}))
        assert run(shared) == pytest.approx(run(resident), rel=1e-4)
        assert shared.moved


class TestPrograms:
    def test_are_checked_before_anything_is_read(self) -> None:
        def never(examples: Sequence[int]) -> Any:
            pytest.fail("read")

        programs = {norms.get(norm): build(on_disk(never), norm) for norm in ("batch", "layer")}
        for program in programs.values():
            check(program)
        assert not ignores_norm(programs)

    def test_hash_tells_data_apart(self) -> None:
        data = on_disk()
        others = [data, replace(data, fingerprint="cd" * 32), replace(data, test=50), replace(data, mean=(0.2,))]
        assert len({build(other).data_hash for other in others}) == 4
        assert "inputs" not in build(data).data

    def test_what_needs_all_data_is_refused(self) -> None:
        extra_metrics = [study.Metric(name="aside")]
        with pytest.raises(ValueError, match=r"Expected data that are all on the device, .* Pass `--no-stream`"):
            build(on_disk(), extra_metrics=extra_metrics, assess=lambda model, outputs: {"aside": 0.0})

    def test_a_fault_while_reading_is_that_of_the_run(self) -> None:
        def broken(examples: Sequence[int]) -> Any:
            raise BadInput("Expected whole files.")

        program = build(on_disk(broken))
        assert program.window_source
        with pytest.raises(BadInput, match="Expected whole files"):
            next(program.window_source.windows(0, 0))

    def test_labels_and_inputs_are_checked(self) -> None:
        with pytest.raises(ValueError, match="integers of 32 bits"):
            replace(on_disk(), labels=np.full(300, 2**40))
        assert on_disk().labels.shape == (300,)
        assert on_disk().sample.shape == (2, 8, 8, 1)


KILLED = """
import os, signal
from tests.study.training import test_streamed
from normlab.study.training import streaming, supervised
supervised.WINDOW_BYTES, supervised.EVALUATED_AT_ONCE, streaming.SAVED_EVERY = 5 * 16 * 64, 50, 0.0
save, saved = streaming.Checkpoint.save, []

def save_and_die(self, progress):
    save(self, progress)
    saved.append(progress)
    if len(saved) == 3:
        os.kill(os.getpid(), signal.SIGKILL)

streaming.Checkpoint.save = save_and_die
test_streamed.train(test_streamed.build(test_streamed.on_disk()))
"""


class TestCheckpoints:
    @pytest.mark.slow
    def test_a_killed_run_goes_on_bit_for_bit(self, small_windows: Path, fitted: Compiled) -> None:
        expected = run(fitted)
        killed = subprocess.run([sys.executable, "-c", KILLED], cwd=ROOT, env=os.environ)
        assert killed.returncode == -signal.SIGKILL
        (left,) = small_windows.iterdir()
        assert left.stat().st_size

        taken: list[int] = []

        def counted(examples: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
            taken.append(len(examples))
            return read(examples)

        assert train(build(on_disk(counted))) == expected
        assert taken.count(5 * 16) == 5  # of 8 windows
        assert not list(small_windows.iterdir())

    def test_other_runs_do_not_find_it(self, fitted: Compiled, monkeypatch: pytest.MonkeyPatch) -> None:
        named: list[Any] = []
        monkeypatch.setattr(streaming, "Checkpoint", lambda *decides: named.append(decides) or Checkpoint(*decides))
        other = compile_program(build(on_disk(fingerprint="cd" * 32)))
        composed = [compile_program(build(on_disk(), config={"classes_per_batch": n})) for n in (1, 2)]
        less = compile_program(build(on_disk(), validation=0.19))
        for compiled, rate, seed in (
            (fitted, 0.1, 3),
            (fitted, 0.1, 3),
            (fitted, 0.2, 3),
            (fitted, 0.1, 4),
            (other, 0.1, 3),
            *((some, 0.1, 3) for some in (*composed, less)),
        ):
            run(compiled, rate, seed)
        assert named[0] == named[1]
        assert len(set(named)) == 7

    def test_damage_starts_anew(self, small_windows: Path) -> None:
        state = {"a": np.arange(3, dtype=np.float32), "b": np.ones((2, 2), np.int32)}
        start = Progress({name: leaf * 0 for name, leaf in state.items()}, np.zeros(0, np.float32), 0, 0.0)
        checkpoint = Checkpoint("a run")
        assert checkpoint.load(start) is start
        checkpoint.save(Progress(state, np.ones(4, np.float32), 2, 1.5))
        found = Checkpoint("a run").load(start)
        assert (found.windows, found.seconds, found.losses.tolist()) == (2, 1.5, [1, 1, 1, 1])
        for name, leaf in state.items():
            np.testing.assert_array_equal(found.state[name], leaf)
            assert found.state[name].dtype == leaf.dtype
        assert Checkpoint("another").load(start) is start
        (path,) = small_windows.iterdir()
        path.write_bytes(path.read_bytes()[:-70])
        assert checkpoint.load(start) is start
        checkpoint.remove()
        assert not path.exists()


class TestLanes:
    """Where runs are stacked, those whose data are read meanwhile are not, whoever asks."""

    @pytest.fixture
    def runner(self, toy: Path, monkeypatch: pytest.MonkeyPatch) -> ConfigurationRunner:
        """Makes records without a run; of norms, `batch` stands for data that are read meanwhile."""
        task = Task(
            source=str(toy),
            settings=settings_for(toy, norms=("none", "batch")),
            identity={"data": {}},
            strategy=Strategy(lanes=16),
        )

        def stack(self: ConfigurationRunner, configuration: Configuration, runs: Sequence[Run]) -> list[Record]:
            return [make_record(task, run, "ok", "") for run in runs]

        monkeypatch.setattr(
            runner, "build", lambda plan, configuration: SimpleNamespace(window_source=configuration.norm == "batch")
        )
        monkeypatch.setattr(ConfigurationRunner, "_stack", stack)
        return ConfigurationRunner(task, Plan(discovery.load(str(toy)), task.settings))

    @pytest.mark.parametrize(("norm", "lanes"), [("batch", 1), ("none", 6)])
    def test_what_is_made_after_a_reason_to_stop(self, runner: ConfigurationRunner, norm: str, lanes: int) -> None:
        runs = [run for run in runner.plan.pending([]) if run.configuration.norm == norm]
        made: list[Record] = []
        for record in _in_this_process(runner, lambda: [runs], lambda: bool(made)):
            made.append(record)
        assert (len(runs), len(made)) == (6, lanes)

    @pytest.mark.parametrize(("norm", "lanes"), [("batch", 1), ("none", 6)])
    def test_what_a_death_and_a_reason_to_stop_cost(self, runner: ConfigurationRunner, norm: str, lanes: int) -> None:
        runs = [run for run in runner.plan.pending([]) if run.configuration.norm == norm]
        (configuration,) = {run.configuration for run in runs}
        under_way = {configuration: _Assignment(list(runs), begun=True)}
        tracker = _Tracker(runner.task, runner.lanes, lambda configuration: math.inf, 0.0, under_way)
        assert not list(tracker.handle(Died(configuration, "it fell")))
        assert list(tracker.deaths) == runs[:lanes]


def test_windows_are_in_order() -> None:
    examples = np.arange(12).reshape(4, 3)
    found = list(on_disk().windows(examples))
    assert len(found) == 4
    for row, window in zip(examples, found, strict=True):
        np.testing.assert_array_equal(window["inputs"], IMAGES[row])
        np.testing.assert_array_equal(window["labels"], LABELS[row])
    assert list(on_disk().windows(examples[4:])) == []
