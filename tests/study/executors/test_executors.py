"""Workers on this machine, on SLURM and on Ray: the same bytes from all of them, whoever kills what in the middle."""

import math
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from normlab import study
from normlab.cli.main import main
from normlab.errors import BadInput, Fault
from normlab.study.design import discovery
from normlab.study.design.plan import Plan
from normlab.study.design.records import EVALUATE, Configuration, Record, Run, by_configuration
from normlab.study.design.request import Request, from_python
from normlab.study.driver import schedule
from normlab.study.driver.driver import ExecutionOptions, Invocation
from normlab.study.executors.local import Local, check_devices
from normlab.study.executors.protocol import Begun, Died, Done, Event
from normlab.study.executors.scheduler import DEATHS, work
from normlab.study.worker.identity import describe
from normlab.study.worker.outcome import make_record
from normlab.study.worker.runner import ConfigurationRunner
from normlab.study.worker.store import JOBS, Store
from normlab.study.worker.strategy import Strategy, Task
from tests.support.paths import ROOT
from tests.support.toys import TOY, settings_for

os.environ["RAY_AUTH_MODE"] = "disabled"  # or a token in the home folder decides what can join what
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
HERE = ["--executor", "slurm", "--slurm", "cluster=local"]


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")


SUBMITIT, RAY = needs("submitit"), needs("ray")


def run(toy: Path, output: Path, *arguments: object) -> int:
    """The same small comparison each time, by other ways."""
    what = ["--curves", "deployed", "--no-extend", "--tuning-seeds", "1", "--learning-rates", "0.1", "0.3"]
    return main(["run", str(toy), *what, "--output", str(output), *map(str, arguments)])


def collected(output: Path) -> dict[str, bytes]:
    """What a comparison comes to, but for the table with times."""
    paths = [output / "analysis.json", *output.glob("tables/*")]
    return {path.name: path.read_bytes() for path in paths if path.name != "cells.csv"}


@pytest.fixture(scope="module")
def shared_toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("executors") / "toy.py"
    path.write_text(TOY)
    return path


TWO_COLUMNS = ("--norms", "none", "batch_renorm", "--batch-sizes", 2, 4, "--seeds", 2)


@pytest.fixture(scope="module")
def undisturbed(shared_toy: Path) -> dict[str, bytes]:
    """From one worker that nobody kills."""
    shared_toy.with_suffix(".killed").touch()
    output = shared_toy.with_name("undisturbed")
    assert run(shared_toy, output, *TWO_COLUMNS, "--jobs", 1) == 0
    return collected(output)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A running Ray cluster: its address."""
    code = (
        "import ray, sys; context = ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False); "
        "print(context.address_info['gcs_address'], flush=True); sys.stdin.read()"
    )
    streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", code], env=ENVIRONMENT, text=True, **streams) as process:
        assert process.stdout
        yield process.stdout.readline().strip()
        process.communicate()


@pytest.fixture
def address(cluster: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of a cluster that may take its time."""
    monkeypatch.setattr("normlab.study.executors.ray.JOINED_WITHIN", 120.0)
    return cluster


@pytest.mark.slow
class TestEquality:
    """A worker is killed in the middle of each; all come to the bytes of one that was not disturbed."""

    def killed_on_the_way(self, toy: Path, output: Path, *arguments: object) -> dict[str, bytes]:
        toy.with_suffix(".killed").unlink(missing_ok=True)
        assert run(toy, output, *TWO_COLUMNS, *arguments) == 0
        assert toy.with_suffix(".killed").exists()
        return collected(output)

    def test_two_processes(self, shared_toy: Path, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
        assert self.killed_on_the_way(shared_toy, tmp_path / "out", "--jobs", 2) == undisturbed

    def test_merged_shards(self, shared_toy: Path, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
        shared_toy.with_suffix(".killed").unlink(missing_ok=True)
        for part in (1, 2):
            assert run(shared_toy, tmp_path / str(part), *TWO_COLUMNS, "--jobs", 1, "--shard", f"{part}/2") == 0
        assert main(["merge", str(tmp_path / "1"), str(tmp_path / "2"), "--output", str(tmp_path / "all")]) == 0
        assert collected(tmp_path / "all") == undisturbed

    @SUBMITIT
    def test_jobs_of_submitit(self, shared_toy: Path, tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
        assert self.killed_on_the_way(shared_toy, tmp_path / "out", *HERE, "--jobs", 2) == undisturbed
        (tmp_path / "out/comparison.json").unlink()
        Store(tmp_path / "out").check("toy")  # and a folder with jobs is still known as ours

    @RAY
    def test_tasks_of_ray(
        self,
        shared_toy: Path,
        tmp_path: Path,
        undisturbed: dict[str, bytes],
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        found = self.killed_on_the_way(shared_toy, tmp_path / "out", "--executor", "ray", "--jobs", 2)
        assert found == undisturbed
        out, err = capfd.readouterr()
        assert ("raylet" in out, err) == (False, "")  # Ray says nothing of its own


@pytest.mark.slow
class TestDeaths:
    """What workers elsewhere do when they are killed; those of this machine are in `test_faults.py`."""

    @pytest.mark.parametrize(
        ("way", "how"),
        [
            pytest.param(HERE, "ended early, in state FINISHED", id="slurm", marks=SUBMITIT),
            pytest.param(["--executor", "ray"], "Ray reports WorkerCrashedError", id="ray", marks=RAY),
        ],
    )
    def test_a_run_that_kills_its_worker_each_time_is_an_error_and_the_others_go_on(
        self, way: list[str], how: str, toy: Path, tmp_path: Path, request: pytest.FixtureRequest
    ) -> None:
        joined = ["--ray-address", request.getfixturevalue("address")] if "ray" in way else []
        few = ["--norms", "layer", "--batch-sizes", 2, "--seeds", 3]
        assert run(toy, tmp_path / "out", *few, *way, *joined) == 0
        records = {r.run.seed: r for r in Store(tmp_path / "out").records() if r.run.stage == EVALUATE}
        assert {seed: record.status for seed, record in records.items()} == {0: "ok", 1: "error", 2: "ok"}
        assert records[1].reason.startswith(f"The worker died {DEATHS} times during this run: ")
        assert how in records[1].reason

    @SUBMITIT
    def test_a_job_that_is_preempted_goes_on_where_it_was(self, toy: Path, tmp_path: Path) -> None:
        toy.write_text(TOY.replace("KILLED.touch()\n            os.kill(os.getpid(), signal.SIGKILL)", "preempt()"))
        toy.write_text(
            f"{toy.read_text()}\n\n"
            "def preempt():\n"
            "    KILLED.write_text(str(os.getpid()))\n"
            "    os.kill(os.getpid(), signal.SIGUSR2)\n"
        )
        few = ["--norms", "batch_renorm", "--batch-sizes", 2, "--seeds", 3]
        assert run(toy, tmp_path / "out", *few, *HERE) == 0
        assert {record.status for record in Store(tmp_path / "out").records()} == {"ok"}
        logs = [path.read_text() for path in tmp_path.glob(f"out/{JOBS}/*.err")]
        assert len(logs) == 2  # tuning and evaluation: whoever was preempted is the same job still
        assert sum("this job is timed-out" in log or "this job is preempted" in log for log in logs) == 1


Act = Callable[[Configuration, list[Run]], list[Event]]


class Script:
    """A pool that reports the events it is given."""

    jobs = 1

    def __init__(self, *acts: Act) -> None:
        self.acts, self.given, self.ended = iter(acts), list[tuple[Configuration, list[Run]]](), list[str]()

    def submit(self, configurations: Any, room: int) -> list[Configuration]:
        configuration, runs = next(iter(configurations.items()))
        self.given.append((configuration, list(runs)))
        return [configuration]

    def events(self) -> Iterator[Event]:
        yield from next(self.acts)(*self.given[-1])

    def cancel(self, configuration: Configuration) -> None:
        self.ended.append("cancelled")

    def close(self) -> None:
        self.ended.append("closed")


class TestPool:
    """What a death costs, whoever the workers are."""

    def task(self, toy: Path, **strategy: Any) -> Task:
        settings = settings_for(toy, norms=("none",))
        return Task(source=str(toy), settings=settings, identity={"data": {}}, strategy=Strategy(**strategy))

    def work(
        self,
        toy: Path,
        pool: Script,
        stop: Any = lambda: False,
        limit: Callable[[Configuration], float] = lambda configuration: math.inf,
        **strategy: Any,
    ) -> list[Record]:
        task, made = self.task(toy, **strategy), list[Record]()
        plan = Plan(discovery.load(str(toy)), task.settings)
        self.runs = plan.pending([])[:3]
        lanes = ConfigurationRunner(task, plan).lanes
        for record in work(
            task, pool, lambda: [[r for r in self.runs if r not in {m.run for m in made}]], stop, lanes, limit
        ):
            made.append(record)
        return made

    def test_a_later_round_waits_for_an_earlier_one(self, toy: Path) -> None:
        settings = settings_for(toy, norms=("none", "batch", "rms"))
        task = Task(source=str(toy), settings=settings, identity={"data": {}}, strategy=Strategy())
        plan, made = Plan(discovery.load(str(toy)), settings), set[Run]()
        first, second, third = by_configuration(plan.pending([])).values()
        rounds = [[*second[:1], *third[:1]], [*first[:1], *second[:2]]]
        pool = Script(*[self.ok(toy)] * 4)
        pending = lambda: [[run for run in runs if run not in made] for runs in rounds]  # noqa: E731
        for record in work(task, pool, pending, lambda: False, lambda configuration: 1):
            made.add(record.run)
        assert [runs for _, runs in pool.given] == [second[:1], third[:1], first[:1], second[1:2]]

    def ok(self, toy: Path) -> Act:
        return lambda configuration, runs: [
            Begun(configuration),
            *(make_record(self.task(toy), run, "ok", "") for run in runs),
            Done(configuration),
        ]

    def dies(self, how: str, begun: bool = True) -> Act:
        return lambda configuration, runs: [*([Begun(configuration)] if begun else []), Died(configuration, how)]

    def test_two_deaths_cost_retries_and_nothing_else(self, toy: Path) -> None:
        pool = Script(self.dies("a"), self.dies("b"), self.ok(toy))
        assert [record.status for record in self.work(toy, pool)] == ["ok"] * 3
        assert [len(runs) for _, runs in pool.given] == [3, 3, 3]
        assert pool.ended == ["closed"]

    def test_the_third_ends_the_run_and_says_how_each_came(self, toy: Path) -> None:
        pool = Script(self.dies("a"), self.dies("b"), self.dies("a"), self.ok(toy))
        records = self.work(toy, pool)
        assert [record.status for record in records] == ["error", "ok", "ok"]
        assert records[0].reason == "The worker died 3 times during this run: a; b."

    def test_a_stack_dies_together(self, toy: Path) -> None:
        records = self.work(toy, Script(*[self.dies("a")] * DEATHS, self.ok(toy)), lanes=2)
        assert [record.status for record in records] == ["error", "error", "ok"]

    def test_three_that_do_not_begin_end_it_and_one_that_does_starts_the_count_anew(self, toy: Path) -> None:
        with pytest.raises(RuntimeError, match="Worker processes cannot start: 3 died before their first run: a; b"):
            self.work(toy, Script(self.dies("a", False), self.dies("b", False), self.dies("a", False)))
        early = [self.dies("a", False)] * (DEATHS - 1)
        pool = Script(*early, self.dies("b"), *early, self.ok(toy))
        assert [record.status for record in self.work(toy, pool)] == ["ok"] * 3

    def test_asked_to_stop_it_waits_for_no_run(self, toy: Path) -> None:
        asked: list[bool] = []
        said = self.ok(toy)
        pool = Script(lambda configuration, runs: said(configuration, runs)[:2])
        records = self.work(toy, pool, stop=lambda: bool(asked) or asked.append(True))
        assert [record.run for record in records] == self.runs[:1]
        assert pool.ended == ["closed"]

    def test_a_run_that_takes_too_long_is_a_timeout_and_its_worker_is_dropped(
        self, toy: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = [0.0]
        monkeypatch.setattr("normlab.study.executors.scheduler.monotonic", lambda: now[0])

        def after(seconds: float, *events: Act) -> Callable[..., list[Event]]:
            def act(configuration: Configuration, runs: list[Run]) -> list[Event]:
                now[0] += seconds
                return [each for one in events for each in one(configuration, runs)]

            return act

        said = self.ok(toy)
        waits = [after(4.0)] * 2
        for limit, acts, statuses in (
            (5.0, [lambda c, r: said(c, r)[:2], *waits, said], ["ok", "timeout", "ok"]),
            (9.0, [lambda c, r: said(c, r)[:2], *waits, lambda c, r: said(c, r)[2:]], ["ok", "ok", "ok"]),
            (5.0, [lambda c, r: [Begun(c)], after(4.0), lambda c, r: [Begun(c)], after(4.0), said], ["ok"] * 3),
            (5.0, [lambda c, r: [], *waits, said], ["ok"] * 3),  # a job that waits in its queue
            (5.0, [lambda c, r: [Begun(c)], after(3600.0), said], ["ok"] * 3),  # everything was held up
        ):
            pool = Script(*acts)
            records = self.work(toy, pool, limit=lambda configuration, limit=limit: limit)
            assert [record.status for record in records] == statuses
            assert pool.ended == ["cancelled"] * statuses.count("timeout") + ["closed"]
        pool = Script(lambda c, r: [Begun(c)], *waits, *waits, after(0.0, said))
        records = self.work(toy, pool, limit=lambda configuration: 5.0, lanes=2)
        assert [record.status for record in records] == ["timeout", "timeout", "ok"]


class TestPlace:
    """Workers are what their driver says they are."""

    @pytest.mark.parametrize("name", ["local", pytest.param("slurm", marks=SUBMITIT)])
    def test_a_worker_that_differs_is_refused_by_name(self, name: str, toy: Path, tmp_path: Path) -> None:
        settings = settings_for(toy, norms=("none",))
        strategy = Strategy()
        described = describe(discovery.code(str(toy)), {"scalar": ""}, strategy)
        described["versions"]["flax"] = "0.1"
        task = Task(source=str(toy), settings=settings, identity=described, strategy=strategy)
        plan = Plan(discovery.load(str(toy)), settings)
        executor: Any = Local(1)
        if name == "slurm":
            from normlab.study.executors.slurm import Slurm

            executor = Slurm(1, [("cluster", "local")])
        start = partial(executor.start, output=tmp_path)
        with pytest.raises(Fault, match=r"got `versions flax` [\d.]+ on .* instead of 0\.1\. Install the same there"):
            list(schedule.records(task, plan, lambda: [plan.pending([])], start))

    def test_the_environment_of_a_worker(self) -> None:
        threads = Strategy().environment({"XLA_FLAGS": "--mine"}, 3)
        assert threads["JAX_PLATFORMS"] == "cpu"
        assert threads["XLA_FLAGS"] == "--mine --xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        assert Strategy().environment(threads, 3) == threads
        assert Strategy(lanes=16).environment({}, 1) == {"CUDA_VISIBLE_DEVICES": "1"}
        assert Strategy(lanes=16).environment({"CUDA_VISIBLE_DEVICES": "4, 6"}, 1) == {"CUDA_VISIBLE_DEVICES": "6"}
        assert Strategy(lanes=16).environment({"CUDA_VISIBLE_DEVICES": "4,6"}) == {}
        assert Strategy(alone=True).environment({"XLA_FLAGS": "--mine"}) == {}

    def test_more_workers_than_devices(self) -> None:
        check_devices(2, "gpu", 2)
        check_devices(64, "cpu", 1)
        with pytest.raises(BadInput, match=r"`jobs` to be at most 2 .* 2 of `gpu`.*, got 3"):
            check_devices(3, "gpu", 2)
        with pytest.raises(BadInput, match=r"`jobs` to be at most 1 .* 4 of `tpu`.*, got 2"):
            check_devices(2, "tpu", 4)

    def test_stacks_in_workers_are_those_of_this_process(self, toy: Path, tmp_path: Path) -> None:
        comparison = discovery.load(str(toy))
        given = from_python({"norms": ["none"], "extend": False, "curves": ["deployed"]}, comparison)
        settings = Request(comparison, given).settings(str(toy))
        found = []
        for jobs in (1, 2):
            invocation = Invocation(comparison, settings, tmp_path / str(jobs), "")
            outcome = invocation.complete(ExecutionOptions(executor=Local(jobs), strategy=Strategy(lanes=2)))
            found.append({record.key: (record.status, record.metrics) for record in outcome.records})
        assert found[0] == found[1]
        assert len(found[0]) == 20


FAKE = {
    "sbatch": """
        import os, re, subprocess, sys
        text = open(sys.argv[1]).read()
        array, job = re.search(r"--array=0-(\\d+)%(\\d+)", text), str(os.getpid())
        for task in range(int(array[1]) + 1 if array else 1):
            ids = {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": str(task)} if array else {}
            environment = {**os.environ, "SLURM_JOB_ID": job, **ids}
            streams = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
            subprocess.Popen(["bash", sys.argv[1]], env=environment, start_new_session=True, **streams)
        print("Submitted batch job", job)
    """,
    "srun": """
        import os, sys
        command = sys.argv[1:]
        os.execvp(sys.executable, command[command.index(sys.executable):])
    """,
    "sacct": 'print("JobID|State|NodeList")',
    "scancel": "",
}


class TestSlurm:
    @pytest.fixture
    def slurm(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A scheduler that starts everything at once."""
        folder = tmp_path / "bin"
        folder.mkdir()
        for name, code in FAKE.items():
            lines = code.strip("\n").splitlines()
            indent = len(lines[0]) - len(lines[0].lstrip()) if lines else 0
            body = "\n".join(line[indent:] for line in lines)
            (folder / name).write_text(f"#!{sys.executable}\n{body}\n")
            (folder / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("PYTHONPATH", ENVIRONMENT["PYTHONPATH"])
        return folder

    @SUBMITIT
    def test_configurations_are_tasks_of_an_array_with_the_options_given(
        self, slurm: Path, toy: Path, tmp_path: Path
    ) -> None:
        options = ["partition=gpu", "timeout_min=7", "mem_gb=2"]
        few = ["--norms", "none", "batch", "--batch-sizes", 2, "--seeds", 2]
        assert run(toy, tmp_path / "out", *few, "--executor", "slurm", "--slurm", *options, "--jobs", 2) == 0
        first, second = sorted(tmp_path.glob(f"out/{JOBS}/*_submission.sh"), key=lambda path: path.stat().st_mtime)[:2]
        for path in (first, second):
            text = path.read_text()
            assert "#SBATCH --partition=gpu" in text
            assert "#SBATCH --time=7" in text
            assert "export PJRT_NPROC=1" in text
        assert "#SBATCH --array=0-1%2" in first.read_text()

    @SUBMITIT
    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ([], r"Expected SLURM's `sbatch` and `srun` on this machine, found none\. .* `--slurm cluster=local`"),
            (["--slurm", "cluster=locale"], "`cluster` in `slurm` to be `slurm` or `local`, got `locale`"),
            (
                ["--slurm", "partition"],
                r"Expected each of `--slurm` to be KEY=VALUE as in partition=gpu, got `partition`",
            ),
            (["--slurm", "nodes=2", "cluster=local"], "Expected `nodes` in `slurm` to be 1"),
            (
                ["--slurm", "cluster=local", "partitoin=gpu"],
                "Expected `slurm` to contain options of submitit.*partitoin",
            ),
            (["--slurm", "qos=a", "qos=b"], "every option in `slurm` once"),
        ],
    )
    def test_what_cannot_be_is_one_line_and_writes_nothing(
        self, arguments: list[str], expected: str, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["run", str(toy), "--output", str(tmp_path / "out"), "--executor", "slurm", *arguments]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert not (tmp_path / "out").exists()
        with pytest.raises(BadInput, match=expected):
            raise BadInput(err)

    @SUBMITIT
    def test_jobs_need_a_folder_and_a_file(self, toy: Path, tmp_path: Path) -> None:
        options: dict[str, Any] = {"executor": "slurm", "slurm": ["cluster=local"], "progress": False}
        with pytest.raises(BadInput, match="Expected `output` with the executor `slurm`"):
            study.run(toy, **options)
        with pytest.raises(BadInput, match=r"comparison from a file with `executor`, .* Put it into a file"):
            study.run(discovery.load(str(toy)), output=tmp_path / "out", **options)


class TestRay:
    @pytest.mark.slow
    @RAY
    def test_it_joins_a_running_cluster_without_a_folder(
        self, address: str, toy: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RAY_ADDRESS", address)
        few: dict[str, Any] = {"norms": ["none"], "curves": ["deployed"], "batch_sizes": [2], "extend": False}
        result = study.run(toy, executor="ray", jobs=2, progress=False, **few)
        assert {record.status for record in result.records} == {"ok"}

    @RAY
    @pytest.mark.parametrize(
        ("address", "expected"),
        [
            ("127.0.0.1:1", "Expected a Ray cluster at `127.0.0.1:1`, got: Connection refused. Start one"),
            ("ray://127.0.0.1:10001", "as HOST:PORT, from one of its machines, got `ray://127.0.0.1:10001`"),
            ("silent", "got: nothing that lets a process join within 2 s. Start one"),
        ],
    )
    def test_where_no_cluster_is_one_line_and_nothing_is_written(
        self,
        address: str,
        expected: str,
        toy: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr("normlab.study.executors.ray.JOINED_WITHIN", 2.0)
        with socket.create_server(("127.0.0.1", 0)) as server:
            given = f"127.0.0.1:{server.getsockname()[1]}" if address == "silent" else address
            arguments = ["--output", str(tmp_path / "out"), "--executor", "ray", "--ray-address", given]
            assert main(["run", str(toy), *arguments]) == 2
        out, err = capfd.readouterr()
        assert expected in err
        assert (out, err.count("\n")) == ("", 1)
        assert not (tmp_path / "out").exists()


class TestOptions:
    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            (["--executor", "slrum"], "Unknown executor `slrum`. Did you mean `slurm`?"),
            (["--slurm", "partition=gpu"], "Expected `--slurm` only with the executor `slurm`, got `local`."),
            (["--executor", "slurm", "--ray-address", "auto"], "`--ray-address` only with the executor `ray`"),
        ],
    )
    def test_executors_and_their_own_options(
        self, arguments: list[str], expected: str, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["run", str(toy), "--output", str(tmp_path / "out"), *arguments]) == 2
        assert expected in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(("name", "package"), [("slurm", "submitit"), ("ray", "ray")])
    def test_a_package_that_is_missing(
        self, name: str, package: str, toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(sys.modules, package, None)
        for module in ("slurm", "ray"):
            monkeypatch.delitem(sys.modules, f"normlab.study.executors.{module}", raising=False)
        assert main(["run", str(toy), "--executor", name, "--dry-run"]) == 2
        assert capsys.readouterr().err == (
            f"normlab: Expected `{package}` to be installed, got none. Run `pip install 'normlab[cluster]'`.\n"
        )
