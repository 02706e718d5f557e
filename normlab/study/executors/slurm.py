"""Workers as SLURM jobs, through submitit: one job array a submission, one task of the array a configuration.

A job writes each record to the folder of the comparison at once, so nodes must share that folder. A job that is
preempted, or reaches its time limit, returns to the queue and then skips the runs that have a record.
"""

import os
import shlex
import shutil
import signal
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any
from uuid import uuid4

from normlab.errors import BadInput, Fault, one_line
from normlab.extras import importing
from normlab.study.design.records import Configuration, Record, Run, of_problem, run_key
from normlab.study.executors.protocol import Begun, Died, Done, Event
from normlab.study.worker.runner import worker
from normlab.study.worker.store import JOBS, Store, write_whole
from normlab.study.worker.strategy import Strategy, Task, environment

with importing("cluster"):
    import submitit

JOBS_AT_A_TIME = 16
MINUTES = 240
"""Time limit of a job, unless `timeout_min` is given."""

_LOCAL, _SLURM = "local", "slurm"
_SECONDS_BETWEEN_LOOKS = {_LOCAL: 0.1, _SLURM: 2.0}
_OF_ALL_CLUSTERS = ("name", "timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node", "stderr_to_stdout")
"""Options with one name for all clusters of submitit; options for SLURM alone have a prefix there."""


class Slurm:
    """A SLURM cluster, or submitit's imitation of one on this machine."""

    def __init__(self, jobs: int | None, options: Sequence[tuple[str, Any]]) -> None:
        """Store the options.

        Args:
            jobs: Number of configurations at a time; `JOBS_AT_A_TIME` unless given.
            options: Options of the jobs; `cluster` is `slurm` unless it is `local`.

        Raises:
            BadInput: If an option is there twice, or makes a job more than one process.
        """
        self.jobs, self.options = jobs or JOBS_AT_A_TIME, dict(options)
        self.cluster = self.options.pop("cluster", _SLURM)
        if len(dict(options)) < len(options):
            raise BadInput(f"Expected every option in `slurm` once, got {', '.join(key for key, _ in options)}.")
        for name in ("nodes", "tasks_per_node", "ntasks_per_node"):
            if self.options.get(name, 1) != 1:
                raise BadInput(
                    f"Expected `{name}` in `slurm` to be 1, a process for each configuration, got {self.options[name]}."
                )
        if self.cluster not in (_SLURM, _LOCAL):
            raise BadInput(f"Expected `cluster` in `slurm` to be `slurm` or `local`, got `{self.cluster}`.")

    def check(self, strategy: Strategy, output: Path | None) -> None:
        """Check that there are a folder and SLURM, and that submitit knows all options."""
        if output is None:
            raise BadInput(
                "Expected `output` with the executor `slurm`, whose jobs write there, got none. Name a folder."
            )
        if self.cluster == _SLURM and not (shutil.which("sbatch") and shutil.which("srun")):
            raise BadInput(
                "Expected SLURM's `sbatch` and `srun` on this machine, found none. Start from where you submit "
                "jobs, or pass `--slurm cluster=local` to try it on this machine."
            )
        with TemporaryDirectory() as folder:
            self.submitter(Path(folder), strategy)

    def start(self, task: Task, output: Path | None) -> "SlurmPool":
        """Create a pool of jobs, submitted as configurations become ready."""
        assert output is not None
        folder = (output / JOBS).resolve()
        folder.mkdir(exist_ok=True)
        return SlurmPool(task, self, Store(output.resolve()), folder)

    def submitter(self, folder: Path, strategy: Strategy) -> "submitit.AutoExecutor":
        """Build the executor of submitit with these options.

        Raises:
            BadInput: If submitit does not accept the options.
        """
        setup = [f"export {name}={shlex.quote(value)}" for name, value in strategy.environment(os.environ).items()]
        given = {name if name in _OF_ALL_CLUSTERS else f"slurm_{name}": value for name, value in self.options.items()}
        gpus = (
            {"gpus_per_node": strategy.devices}
            if not strategy.one_thread and not any("gpu" in name or "gres" in name for name in given)
            else {}
        )
        own = {"name": "normlab", "timeout_min": MINUTES, "cpus_per_task": 1, "slurm_array_parallelism": self.jobs}
        given["slurm_setup"] = [*setup, *given.get("slurm_setup", [])]
        try:
            submitter = submitit.AutoExecutor(folder, self.cluster)
            submitter.update_parameters(**{**own, **gpus, **given})
        except (NameError, ValueError, TypeError, AssertionError) as error:
            raise BadInput(
                f"Expected `slurm` to contain options of submitit, got something else: {one_line(error)}"
            ) from error
        return submitter


@dataclass(eq=False)
class ConfigurationJob(submitit.helpers.Checkpointable):
    """A job that makes the runs of a configuration that have no record. Sent by pickle.

    Attributes:
        task: The task of the driver.
        configuration: The configuration.
        runs: The runs to make.
        folder: The folder of the comparison.
        sign: A file that tells the driver that the job began: empty, or the reason why it cannot.
    """

    task: Task
    configuration: Configuration
    runs: Sequence[Run]
    folder: Path
    sign: Path

    def __call__(self) -> None:
        """Make the runs that have no record yet."""
        _end_jobs_not_runs()
        store = Store(self.folder)
        try:
            runner = worker(self.task)
        except Fault as fault:
            write_whole(self.sign, str(fault))
            return
        write_whole(self.sign, "")
        for record in runner(self.configuration, [run for run in self.runs if not store.record(self.key(run))]):
            store.add(record)

    def key(self, run: Run) -> str:
        """Compute the key of a run."""
        return run_key(run, of_problem(self.task.identity, run.configuration.problem))


def _end_jobs_not_runs() -> None:
    """End the job where submitit will not queue it again: submitit raises inside whatever code it interrupts."""
    number = signal.Signals[f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"]
    handler = signal.getsignal(number)

    def handle(number: int, frame: FrameType | None) -> None:
        try:
            if callable(handler):
                handler(number, frame)
        except RuntimeError as error:
            raise SystemExit(str(error)) from error

    signal.signal(number, handle)


@dataclass(eq=False)
class _Submitted:
    """A submitted job, with the runs that it still owes."""

    work: ConfigurationJob
    job: "submitit.Job[None]"
    owed: list[Run]
    begun: bool = False


class SlurmPool:
    """Jobs, each for one configuration."""

    def __init__(self, task: Task, cluster: Slurm, store: Store, folder: Path) -> None:
        """Store the task; jobs are submitted later."""
        self.jobs = cluster.jobs
        self._task, self._store, self._folder = task, store, folder
        self._submitter = cluster.submitter(folder, task.strategy)
        self._pause = _SECONDS_BETWEEN_LOOKS[cluster.cluster]
        self._submitted: dict[Configuration, _Submitted] = {}

    def submit(self, configurations: Mapping[Configuration, Sequence[Run]], room: int) -> Collection[Configuration]:
        """Submit one array.

        Raises:
            Fault: If SLURM refuses the array.
        """
        work = [self._work(configuration, runs) for configuration, runs in list(configurations.items())[:room]]
        try:
            with environment(self._task.strategy.environment(os.environ)), self._submitter.batch():
                jobs = [self._submitter.submit(each) for each in work]
        except (OSError, RuntimeError) as error:
            raise Fault(f"SLURM does not take a job: {one_line(error)} Finished runs are kept.") from error
        for each, job in zip(work, jobs, strict=True):
            self._submitted[each.configuration] = _Submitted(each, job, list(each.runs))
        return [each.configuration for each in work]

    def events(self) -> Iterator[Event]:
        """Yield the events that follow from the files and states of the jobs."""
        time.sleep(self._pause)
        for configuration, submitted in list(self._submitted.items()):
            over = submitted.job.done()  # before its files are read: they are complete once it has ended
            yield from self._written(submitted)
            if submitted.begun and not over and submitted.job.state != "RUNNING":
                yield Begun(configuration)  # queued again, where its time does not count
            if over:
                del self._submitted[configuration]
                yield _end(submitted)

    def cancel(self, configuration: Configuration) -> None:
        """Cancel the job."""
        self._submitted[configuration].job.cancel(check=False)
        self._forget(configuration)

    def close(self) -> None:
        """Cancel all jobs."""
        for submitted in self._submitted.values():
            submitted.job.cancel(check=False)
        for configuration in list(self._submitted):
            self._forget(configuration)

    def _forget(self, configuration: Configuration) -> None:
        job = self._submitted.pop(configuration).job
        if isinstance(job, submitit.LocalJob):
            job.wait()  # a child of this process, which must leave none behind

    def _work(self, configuration: Configuration, runs: Sequence[Run]) -> ConfigurationJob:
        work = ConfigurationJob(
            self._task, configuration, list(runs), self._store.directory, self._folder / f"{uuid4().hex}.sign"
        )
        for run in runs:
            self._store.remove(work.key(run))  # a run that is repeated: a job skips runs that have a record
        return work

    def _written(self, submitted: _Submitted) -> Iterator[Begun | Record]:
        """Read the sign of a job, and its records so far."""
        if not submitted.begun and submitted.work.sign.exists():
            if reason := submitted.work.sign.read_text("utf-8"):
                raise Fault(reason)
            submitted.begun = True
            yield Begun(submitted.work.configuration)
        while submitted.owed and (record := self._store.record(submitted.work.key(submitted.owed[0]))):
            submitted.owed.pop(0)
            yield record


def _end(submitted: _Submitted) -> Done | Died:
    job = submitted.job
    if not submitted.owed:
        return Done(submitted.work.configuration)
    return Died(
        submitted.work.configuration, f"job {job.job_id} ended early, in state {job.state} (log: `{job.paths.stderr}`)"
    )
