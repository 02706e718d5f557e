"""One model on the devices of several processes: every process trains its part, process 1 decides and writes.

All processes run the same command; `executors.process_group` connects them. Process 1 runs the comparison as if it were
alone, and announces every run to the others, which make the same runs at the same time and write nothing.
"""

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from normlab.errors import BadInput, Fault
from normlab.study.design.plan import Plan
from normlab.study.design.records import RETRIED, Configuration, Record, Run, content_key
from normlab.study.driver.driver import ExecutionOptions, Invocation
from normlab.study.executors.process_group import Group, Member, join
from normlab.study.executors.protocol import Begun, Done, Event
from normlab.study.worker.runner import ConfigurationRunner
from normlab.study.worker.strategy import Strategy, Task


def run(invocation: Invocation, execution: ExecutionOptions, member: Member, *, show: bool = False) -> int:
    """Run an invocation as `Invocation.run` does, with the processes of a group.

    Args:
        invocation: The same in all processes; only process 1 writes to its folder.
        execution: Options of the execution; `executor` is ignored.
        member: This process.
        show: Open the report in the browser of process 1.

    Returns:
        The exit code, the same in all processes.

    Raises:
        BadInput: If the input is wrong or differs between processes, before anything is written.
        Fault: If something outside failed, the other processes included; finished runs are kept.
    """
    _check_equal(invocation)
    _pretend(invocation.settings.devices, member.processes)
    with join(member) as group:
        _check_devices(invocation.settings.devices)
        execution = replace(
            execution,
            strategy=Strategy(alone=True, processes=member.processes),
            executor=_Together(group, invocation.plan),
        )
        if member.process > 1:
            return _follow(group, invocation, execution)
        code = invocation.run(execution, show=show)
        group.broadcast(["end", code])
        return code


@dataclass(frozen=True)
class _Together:
    """The executor of process 1."""

    group: Group
    plan: Plan

    def check(self, strategy: Strategy, output: Path | None) -> None:
        """Accept everything: the group has been checked."""

    def start(self, task: Task, output: Path | None) -> "_GroupPool":
        """Check that all processes train the same, and start the pool."""
        self.group.broadcast(["agree", None])
        _agree(self.group, task)
        return _GroupPool(self.group, _runner(task, self.plan))


NOTICED = 1.0
"""Seconds in which the group notices that a process has died, which collectives of a run may notice before."""


class _GroupPool:
    """All processes together as one worker, which has one configuration at a time."""

    jobs = 1

    def __init__(self, group: Group, runner: ConfigurationRunner) -> None:
        """Store the group, and the runner of this process."""
        self._group, self._runner = group, runner
        self._assigned: dict[Configuration, list[Run]] = {}

    def submit(self, configurations: Mapping[Configuration, Sequence[Run]], room: int) -> Collection[Configuration]:
        """Take one configuration."""
        configuration = next(iter(configurations))
        self._assigned[configuration] = list(configurations[configuration])
        return [configuration]

    def events(self) -> Iterator[Event]:
        """Make one run in all processes."""
        ((configuration, runs),) = self._assigned.items()
        yield Begun(configuration)
        run = runs.pop(0)
        self._group.broadcast(["run", _encoded(self._runner.plan, run)])
        (record,) = self._runner(configuration, [run])
        if record.status in RETRIED:  # perhaps because another process has died: the group then ends this one instead
            time.sleep(NOTICED)
        yield record
        _check(record)
        if not runs:
            del self._assigned[configuration]
            yield Done(configuration)

    def cancel(self, configuration: Configuration) -> None:
        """Forget a configuration."""
        self._assigned.pop(configuration, None)

    def close(self) -> None:
        """Do nothing: the other processes wait for the next announcement."""


def _follow(group: Group, invocation: Invocation, execution: ExecutionOptions) -> int:
    """Make the runs that process 1 announces; return its exit code at the end."""
    task = invocation.task(execution)
    runner = _runner(task, invocation.plan)
    while True:
        what, content = group.broadcast()
        if what == "end":
            return content
        if what == "agree":
            _agree(group, task)
        else:
            run = _decoded(runner.plan, content)
            _check(*runner(run.configuration, [run]))


def _runner(task: Task, plan: Plan) -> ConfigurationRunner:
    from normlab.study.training.compilation_cache import use_cache

    use_cache()
    return ConfigurationRunner(task, plan)


def _agree(group: Group, task: Task) -> None:
    code = content_key(task.identity["code"])  # its files may be many, and lines are limited
    group.agree(settings=asdict(task.settings), identity={**task.identity, "code": code})


def _check(record: Record) -> None:
    """End the group where a run failed in this process, since others may wait in a collective for it.

    Process 1 has written the record by then, and the same command resumes behind it.

    Raises:
        Fault: With the reason.
    """
    run = record.run
    if record.status in RETRIED:
        raise Fault(
            f"`{run.configuration.norm}`, seed {run.seed}, learning rate {run.learning_rate:g}: {record.reason}"
        )


Encoded = tuple[int, str, float, int]
"""A run as JSON: the index of its configuration, stage, learning rate and seed."""


def _encoded(plan: Plan, run: Run) -> Encoded:
    """Encode a run for the other processes, which have the same plan."""
    return plan.configurations.index(run.configuration), run.stage, run.learning_rate, run.seed


def _decoded(plan: Plan, content: Encoded) -> Run:
    configuration, stage, learning_rate, seed = content
    return Run(configuration=plan.configurations[configuration], stage=stage, learning_rate=learning_rate, seed=seed)


def _check_equal(invocation: Invocation) -> None:
    """Check that the same devices train all models of a comparison."""
    if any(configuration.devices != invocation.settings.devices for configuration in invocation.plan.configurations):
        raise BadInput(
            f"Expected every model to be trained by the {invocation.settings.devices} devices of `--devices`, got a "
            "comparison that sets their number itself. Run it in one process."
        )


def _pretend(devices: int, processes: int) -> None:
    """Give this process its share of virtual CPU devices, before JAX initializes its backend."""
    if devices % processes:
        raise BadInput(
            f"Expected `--devices` to be those of all {processes} processes together, the same number for each, got "
            f"{devices}."
        )
    import jax

    with suppress(RuntimeError):  # the backend is initialized: `_check_devices` compares
        jax.config.update("jax_num_cpu_devices", devices // processes)


def _check_devices(devices: int) -> None:
    import jax

    if jax.device_count() != devices:
        raise BadInput(
            f"Expected `--devices {jax.device_count()}`, all that the processes have together "
            f"({jax.local_device_count()} here), got {devices}."
        )
