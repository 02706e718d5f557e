"""Repeat a recorded run: the same code on the same kind of machine must give the same numbers, bit by bit."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from normlab.errors import BadInput, Fault
from normlab.study.design import discovery
from normlab.study.design.comparison import Comparison, Settings
from normlab.study.design.plan import Plan
from normlab.study.design.provenance import file_hash
from normlab.study.design.records import EVALUATE, Record
from normlab.study.driver import preflight, schedule
from normlab.study.executors.local import Local
from normlab.study.worker.identity import describe, differences, files_of
from normlab.study.worker.store import Header
from normlab.study.worker.strategy import Task, choose_strategy, lanes_in


@dataclass(frozen=True, kw_only=True)
class Verification:
    """A recorded run and its repetition.

    Attributes:
        recorded: The record.
        repeated: The record of the repetition.
        identity: Differences of code, versions, platform, data or strategy, each with both values. With any difference,
            equal bits cannot be expected and there is no verdict.
    """

    recorded: Record
    repeated: Record
    identity: tuple[tuple[str, object, object], ...]

    @property
    def equal(self) -> bool:
        """True if status and all metrics are equal."""
        return (self.recorded.status, self.recorded.metrics) == (self.repeated.status, self.repeated.metrics)

    @property
    def failed(self) -> bool:
        """True if the numbers differ under equal conditions."""
        return not self.equal and not self.identity

    def lines(self) -> Iterator[str]:
        """Yield the lines of the comparison, the verdict last."""
        names = dict.fromkeys((*self.recorded.metrics, *self.repeated.metrics))
        yield f"{'':<12}{'recorded':<24}now"
        yield f"{'status':<12}{self.recorded.status:<24}{self.repeated.status}"
        for name in names:
            yield f"{name:<12}{self.recorded.metrics.get(name)!r:<24}{self.repeated.metrics.get(name)!r}"
        for what, then, now in self.identity:
            yield f"{what} was {then}, is {now}"
        yield self._verdict()

    def _verdict(self) -> str:
        if self.identity:
            how = "The numbers are equal nevertheless." if self.equal else "The different numbers show nothing."
            return f"The conditions differ, so that equal bits cannot be expected. {how}"
        return "Equal, bit by bit." if self.equal else "Different, where code, versions, machine and data are the same."


def choose(records: Sequence[Record], prefix: str | None) -> Record:
    """Choose the record whose key has a prefix, or a random successful evaluation run.

    Raises:
        BadInput: If no record fits, or several do.
    """
    if prefix is None:
        candidates = [r for r in records if r.run.stage == EVALUATE and r.status == "ok"]
        if not candidates:
            raise BadInput("Expected an evaluation run that ended well, found none. Name another with `--run`.")
        return random.choice(candidates)
    found = [record for record in records if record.key.startswith(prefix)]
    if len(found) != 1:
        raise BadInput(f"Expected `--run` to be the start of one run's key, got `{prefix}`, which fits {len(found)}.")
    if found[0].status == "invalid":
        raise BadInput(f"Expected `--run` to name a run that was trained, got `{prefix}`: {found[0].reason}")
    return found[0]


def load(header: Header, *, trust: bool) -> Comparison:
    """Load the comparison of a folder; comparisons of this package need no trust.

    Raises:
        BadInput: If the folder names a file that is not trusted, or no file.
    """
    source = header.settings.source
    if not source:
        raise BadInput("Expected the folder of a comparison from a file, got one of an object in a Python process.")
    if trust or source in discovery.known():
        return discovery.load(source)
    recorded = files_of(header.identity)
    same = recorded == {name: file_hash(file) for name, file in discovery.beside(source, recorded).items()}
    how = "as it was recorded" if same else "which is not as it was recorded"
    raise BadInput(
        f"Expected `--trust`, since this would run `{source}` ({how}), got none. Read that file first, and those "
        "beside it that it imports."
    )


def verify(comparison: Comparison, settings: Settings, record: Record) -> Verification:
    """Repeat a run in a fresh worker process.

    Args:
        comparison: The comparison, from its file.
        settings: The settings under which the run was planned.
        record: The record of the run to repeat.

    Raises:
        BadInput: If the comparison has changed so much that the run is no longer part of it.
        Fault: If no process can be started.
    """
    configuration = record.run.configuration
    changed = f"Expected run {record.key[:12]} to be part of `{settings.comparison}`, which has changed since"
    file = discovery.locate(settings.source)
    try:
        with discovery.importing(file):
            plan = Plan(comparison, settings)
    except Exception as error:  # the settings are a folder's, and may name things that no longer exist
        raise BadInput(f"{changed}.") from error
    if configuration not in plan.configurations:
        raise BadInput(f"{changed}.")

    strategy = choose_strategy(devices=plan.devices, lanes=lanes_in(record.identity))
    with discovery.importing(file):
        program = preflight.traced(plan, configuration)
    files = discovery.code(settings.source, files_of(record.identity))
    libraries = {configuration.problem: program.libraries}
    now = describe(files, {configuration.problem: program.data_hash}, strategy, libraries)
    task = Task(source=settings.source, settings=settings, identity=now, strategy=strategy)
    made: list[Record] = []
    try:
        for repeated in schedule.records(task, plan, lambda: [] if made else [[record.run]], Local(1).start):
            made.append(repeated)
    except RuntimeError as error:
        raise Fault(str(error)) from error
    conditions = tuple(differences(record.identity, made[0].identity))
    return Verification(recorded=record, repeated=made[0], identity=conditions)
