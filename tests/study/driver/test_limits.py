"""Runs that do not end, and processes that are told to: workers are stopped, and nobody outlives who started it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from normlab import study
from normlab.cli.main import main
from normlab.errors import BadInput
from normlab.study.design import discovery
from normlab.study.design.plan import Plan
from normlab.study.design.records import EVALUATE, Record
from normlab.study.driver import limits
from normlab.study.driver.limits import LEAST, TIMES, UNKNOWN, OutOfTime, RunLimit, at_most
from normlab.study.worker.store import Store
from tests.support.paths import ENVIRONMENT
from tests.support.toys import TOY, a_record, settings_for

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")

HANGS = """

def hang():
    Path(__file__).with_suffix(f".{os.getpid()}.pid").touch()
    while True:
        time.sleep(0.01)


def hang_in_callback(seed):
    return hang() if seed == 1 else seed
"""


@pytest.fixture
def hanging(toy: Path) -> Path:
    """A comparison in which seed 1 does not end: of `batch` in its initialization, of `rms` in a callback."""
    text = TOY.replace('norm.name == "rms" and seed == 1', "False")
    text = text.replace("        time.sleep(PAUSE)\n", '        norm.name == "batch" and seed == 1 and hang()\n')
    text = text.replace('return {"w": np', 'return {"seed": np.int32(seed), "w": np')
    text = text.replace('return {"w": w}', 'return {**state, "w": w + 1e-9 * wait(state["seed"])}')
    text = text.replace(
        "    def step(",
        "    def wait(seed):\n"
        "        import jax\n"
        '        return jax.pure_callback(hang_in_callback, seed, seed) if norm.name == "rms" else 0\n\n'
        "    def step(",
    )
    toy.write_text(text + HANGS)
    return toy


def run(toy: Path, output: Path, *options: object, norms: tuple[str, ...] = ("none", "batch", "rms")) -> list[str]:
    few = ["--tuning-seeds", 1, "--learning-rates", 0.1, "--seeds", 3, "--jobs", 2]
    where = ["--curves", "deployed", "--batch-sizes", 2, "--norms", *norms, "--output", output]
    return ["run", *map(str, (toy, *where, *few, *options))]


def evaluated(output: Path) -> dict[tuple[str, int], str]:
    records = [record for record in Store(output).records() if record.run.stage == EVALUATE]
    return {(record.run.configuration.norm, record.run.seed): record.status for record in records}


def workers(toy: Path) -> list[int]:
    """The processes that hang, or did."""
    return [int(path.suffixes[0][1:]) for path in toy.parent.glob("*.pid")]


def gone(process: int) -> bool:
    """Whether a process has ended, waited for by its parent or not."""
    try:
        return (
            "\nState:\tZ" in Path(f"/proc/{process}/status").read_text()
            if Path("/proc/self").exists()
            else _dead(process)
        )
    except OSError:
        return True


def _dead(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


def until(condition: Any, process: "subprocess.Popen[str] | None" = None) -> None:
    """Wait for something that comes soon; a minute is for machines that are busy."""
    for _ in range(1200):
        if condition():
            return
        assert process is None or process.poll() is None
        time.sleep(0.05)
    raise AssertionError("It has not come about within a minute.")


@pytest.mark.slow
class TestRuns:
    def test_a_run_that_does_not_end_is_a_timeout_and_the_others_are_made(
        self, hanging: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(run(hanging, tmp_path / "out", "--run-timeout", "8s")) == 0
        expected = {(norm, seed): "ok" for norm in ("none", "batch", "rms") for seed in range(3)}
        assert evaluated(tmp_path / "out") == {**expected, ("batch", 1): "timeout", ("rms", 1): "timeout"}
        out = capsys.readouterr().out
        assert "1 of 3 runs failed (No end after 8 s, the limit of `--run-timeout`: the worker was stopped.)" in out
        assert "1/3 failed" in out
        assert "timeout: No end after 8 s" in (tmp_path / "out/report.html").read_text()
        until(lambda: all(map(gone, workers(hanging))))
        hanging.write_text(hanging.read_text() + "\n")
        assert len(workers(hanging)) == 2

    def test_a_time_budget_is_kept_where_a_run_does_not_end(
        self, hanging: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        arguments = run(hanging, tmp_path / "out", "--time-budget", "12s", norms=("batch",))
        assert main(arguments) == 3
        assert "Stopped by the time budget: " in capsys.readouterr().out
        assert ("batch", 1) not in evaluated(tmp_path / "out")
        assert Store(tmp_path / "out").damaged() == []
        until(lambda: all(map(gone, workers(hanging))))

    @POSIX
    @pytest.mark.parametrize(
        ("option", "code", "said"),
        [
            ("--run-timeout", 2, "Expected each model to be built within the 1 s of `run_timeout`, got no end."),
            ("--time-budget", 3, "Stopped by the time budget before the first run."),
        ],
    )
    def test_a_model_that_is_never_built(
        self, option: str, code: int, said: str, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        toy.write_text(TOY.replace("time.sleep(PAUSE)", "time.sleep(1e6)"))
        assert main(run(toy, tmp_path / "out", option, "1s")) == code
        out, err = capsys.readouterr()
        assert err.startswith(f"normlab: {said}")
        assert (out, err.count("\n")) == ("", 1)
        assert not (tmp_path / "out").exists()

    def test_what_runs_in_this_process_cannot_have_a_limit(self, toy: Path) -> None:
        with pytest.raises(BadInput, match="Expected a comparison from a file with `run_timeout`, got an object"):
            study.run(discovery.load(str(toy)), run_timeout=5, progress=False)


class TestLimit:
    def limit(self, toy: Path, seconds: list[float], given: float | None = None, **changes: Any) -> float:
        plan = Plan(discovery.load(str(toy)), settings_for(toy, values={"deployed": (2, 4)}))
        limit, configuration = RunLimit(plan, given), plan.configurations[0]
        for each in seconds:
            limit.add(self.record(plan, each, **changes))
        return limit(configuration)

    def record(self, plan: Plan, seconds: float, column: int = 0, status: str = "ok") -> Record:
        configuration = next(
            configuration for configuration in plan.configurations if plan.groups[column][1] == configuration
        )
        run = plan.evaluation_runs(configuration, 0.1)[0]
        return Record(key="", run=run, identity={}, status=status, cost={"run": seconds, "compile": 1.0})

    def test_it_is_what_was_given_or_ten_times_the_median_of_the_column(self, toy: Path) -> None:
        assert self.limit(toy, []) == UNKNOWN
        assert self.limit(toy, [99.0, 199.0, 9999.0]) == TIMES * 200.0
        assert self.limit(toy, [1.0, 2.0]) == LEAST
        assert self.limit(toy, [99.0], given=3.0) == 3.0
        assert self.limit(toy, [99.0], column=1) == UNKNOWN
        assert self.limit(toy, [99.0], status="diverged") == TIMES * 100.0
        for status in ("timeout", "oom", "error", "invalid"):
            assert self.limit(toy, [99.0], status=status) == UNKNOWN

    @POSIX
    def test_code_of_a_model_cannot_take_the_clock_for_its_own(self) -> None:
        def stubborn() -> None:
            while True:
                try:
                    time.sleep(10)
                except Exception:
                    pass

        before = signal.getsignal(signal.SIGALRM)
        with pytest.raises(OutOfTime), at_most(0.05):
            stubborn()
        with at_most(0.05):
            pass
        time.sleep(0.1)
        assert signal.getsignal(signal.SIGALRM) == before
        assert limits.OutOfTime not in Exception.__subclasses__()
        assert a_record().status == "diverged"


@pytest.mark.slow
@POSIX
class TestEnd:
    @pytest.fixture
    def started(self, hanging: Path, tmp_path: Path) -> "Iterator[subprocess.Popen[str]]":
        """A process whose worker hangs."""
        command = [sys.executable, "-m", "normlab", *run(hanging, tmp_path / "out", norms=("batch",))]
        with subprocess.Popen(
            command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            yield process
            process.kill()

    @pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
    def test_a_signal_is_one_sentence_and_the_end_of_the_children(
        self, name: str, started: "subprocess.Popen[str]", hanging: Path, tmp_path: Path
    ) -> None:
        if signal.getsignal(getattr(signal, name)) == signal.SIG_IGN:
            pytest.skip(f"{name} is ignored here, by `nohup` for instance, and in every process that is started.")
        until(lambda: workers(hanging), started)
        started.send_signal(getattr(signal, name))
        _, err = started.communicate(timeout=60)
        assert err == "normlab: Interrupted. Finished runs are kept; the same command resumes from there.\n"
        assert started.returncode == 128 + getattr(signal, name)
        until(lambda: all(map(gone, workers(hanging))))
        header = Store(tmp_path / "out").header()
        assert header
        assert header.wall_seconds > 0

    def test_workers_end_with_a_parent_that_is_killed(self, started: "subprocess.Popen[str]", hanging: Path) -> None:
        until(lambda: workers(hanging), started)
        started.kill()
        until(lambda: all(map(gone, workers(hanging))))

    @pytest.mark.skipif(not Path("/proc/self").exists(), reason="children are found in /proc")
    def test_workers_that_are_starting_do_too(self, started: "subprocess.Popen[str]") -> None:
        until(lambda: children(started.pid), started)
        found = children(started.pid)
        started.kill()
        until(lambda: all(map(gone, found)))


def children(parent: int) -> list[int]:
    return [
        int(child) for path in Path(f"/proc/{parent}/task").glob("*/children") for child in path.read_text().split()
    ]


class TestMemory:
    @POSIX
    def test_a_limit_under_which_nothing_can_be_loaded(self, toy: Path) -> None:
        command = f"ulimit -v 1000000 && exec {sys.executable} -m normlab run {toy}"
        result = subprocess.run(["sh", "-c", command], env=ENVIRONMENT, capture_output=True, text=True)
        assert result.returncode == 1
        assert result.stderr.startswith("normlab: Expected at least 2048 MiB of address space")
        assert result.stderr.count("\n") == 1

    @pytest.mark.parametrize(
        "error",
        [
            MemoryError(),
            OSError(12, "Cannot allocate memory"),
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes"),
            ImportError("libx.so: failed to map segment from shared object"),
        ],
    )
    def test_memory_that_runs_out_is_one_line(
        self, error: Exception, toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def fail(*_: Any) -> None:
            raise error

        monkeypatch.setattr("normlab.cli.main._run", fail)
        assert main(["run", str(toy)]) == 1
        err = capsys.readouterr().err
        assert err.startswith("normlab: Out of memory (")
        assert err.count("\n") == 1
