"""Workers as SLURM jobs, through submitit: a job array for each hand-out, a task of it for each configuration.

A job adds each record to the folder of the comparison as it comes, so that folder must be one that nodes share. A job
that is preempted, or reaches its time limit, goes back to the queue and leaves out the runs that have a record by then.
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
from typing import Any
from uuid import uuid4

from normlab.errors import BadInput, Fault, one_line
from normlab.extras import importing
from normlab.study.design.records import Configuration, Record, Run, of_problem, run_key
from normlab.study.executors.protocol import Begun, Died, Done, News
from normlab.study.worker.runner import worker
from normlab.study.worker.store import JOBS, Store, write_whole
from normlab.study.worker.strategy import Strategy, Task, environment

with importing("cluster"):
    import submitit

JOBS_AT_A_TIME = 16
MINUTES = 240
"""How long a job may take at a time, unless `timeout_min` says otherwise."""

_LOCAL, _SLURM = "local", "slurm"
_SECONDS_BETWEEN_LOOKS = {_LOCAL: 0.1, _SLURM: 2.0}
_OF_ALL_CLUSTERS = ("name", "timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node", "stderr_to_stdout")
"""Options that submitit gives one name; those of SLURM alone have a prefix there."""


class Slurm:
    """A SLURM cluster, or submitit's imitation of one on this machine."""

    def __init__(self, jobs: int | None, options: Sequence[tuple[str, Any]]) -> None:
        """Take what was asked for.

        Args:
            jobs: How many configurations at a time; `JOBS_AT_A_TIME` unless given.
            options: Of the jobs; `cluster` is `slurm` unless it is `local`.

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
        """Refuse to go on without a folder, without SLURM, or with options that it does not know."""
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

    def hire(self, task: Task, output: Path | None) -> "SlurmCrew":
        """Jobs that are submitted as there are configurations for them."""
        assert output is not None
        folder = (output / JOBS).resolve()
        folder.mkdir(exist_ok=True)
        return SlurmCrew(task, self, Store(output.resolve()), folder)

    def submitter(self, folder: Path, strategy: Strategy) -> "submitit.AutoExecutor":
        """What submits jobs with these options.

        Raises:
            BadInput: If submitit does not take them.
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
                f"Expected `slurm` to hold options of submitit, got something else: {one_line(error)}"
            ) from error
        return submitter


@dataclass(eq=False)
class ConfigurationJob(submitit.helpers.Checkpointable):
    """What a job does: the runs of a configuration that have no record, then it is done. Sent to it by pickle.

    Attributes:
        task: What the driver gives runs of.
        configuration: The configuration.
        runs: Those that it wants.
        folder: Of the comparison.
        sign: A file for one word to the driver: empty that all is well, else why not.
    """

    task: Task
    configuration: Configuration
    runs: Sequence[Run]
    folder: Path
    sign: Path

    def __call__(self) -> None:
        """Do it, or what is left of it."""
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
        """The key of a run."""
        return run_key(run, of_problem(self.task.identity, run.configuration.problem))


def _end_jobs_not_runs() -> None:
    """Where submitit will not queue a job again, it raises that within whatever it interrupts: let that end the job."""
    number = signal.Signals[f"SIG{os.environ.get('SUBMITIT_PREEMPT_SIGNAL', 'USR2')}"]
    handler = signal.getsignal(number)

    def handle(*arguments: Any) -> None:
        try:
            if callable(handler):
                handler(*arguments)
        except RuntimeError as error:
            raise SystemExit(str(error)) from error

    signal.signal(number, handle)


@dataclass(eq=False)
class _Submitted:
    """A job as the driver sees it, with the runs that it still owes."""

    work: ConfigurationJob
    job: "submitit.Job[None]"
    owed: list[Run]
    begun: bool = False


class SlurmCrew:
    """Jobs, each for one configuration."""

    def __init__(self, task: Task, cluster: Slurm, store: Store, folder: Path) -> None:
        """Nothing is submitted yet."""
        self.jobs = cluster.jobs
        self._task, self._store, self._folder = task, store, folder
        self._submitter = cluster.submitter(folder, task.strategy)
        self._pause = _SECONDS_BETWEEN_LOOKS[cluster.cluster]
        self._submitted: dict[Configuration, _Submitted] = {}

    def give(self, configurations: Mapping[Configuration, Sequence[Run]], room: int) -> Collection[Configuration]:
        """Submit one array.

        Raises:
            Fault: If SLURM does not take it.
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

    def news(self) -> Iterator[News]:
        """What jobs have written since."""
        time.sleep(self._pause)
        for configuration, submitted in list(self._submitted.items()):
            over = submitted.job.done()  # asked first: what it wrote before its end is there then
            yield from self._written(submitted)
            if submitted.begun and not over and submitted.job.state != "RUNNING":
                yield Begun(configuration)  # back in the queue, where its time does not count
            if over:
                del self._submitted[configuration]
                yield _end(submitted)

    def drop(self, configuration: Configuration) -> None:
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
            job.wait()  # a child of this process, which leaves none behind

    def _work(self, configuration: Configuration, runs: Sequence[Run]) -> ConfigurationJob:
        work = ConfigurationJob(
            self._task, configuration, list(runs), self._store.directory, self._folder / f"{uuid4().hex}.sign"
        )
        for run in runs:
            self._store.remove(work.key(run))  # a run that is done again; a job leaves out what has a record
        return work

    def _written(self, submitted: _Submitted) -> Iterator[Begun | Record]:
        """The sign of a job, and its records so far."""
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
