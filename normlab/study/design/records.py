"""Configurations, runs and records, and the keys of records."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import groupby
from operator import attrgetter
from typing import NotRequired, TypedDict

from normlab.study.design.schema import is_list

TUNE, EVALUATE = "tune", "evaluate"
TUNING_SEEDS_FROM = 1000
"""The first tuning seed. Evaluation seeds count from 0, so the two sets are disjoint up to this many seeds."""
FAILURES = ("diverged", "collapsed", "oom", "error", "timeout")
"""Statuses counted as failures. The others are `ok`, and `invalid` for a configuration that cannot be run at all."""
STATUSES = ("ok", *FAILURES, "invalid")
RETRIED = ("error", "oom", "timeout")
"""Failures that a retry may fix. Divergence and collapse are results."""


class RunIdentity(TypedDict):
    """Everything beside a run that decides its numbers, for the problems of a comparison (see `worker.identity`).

    Attributes:
        code: Hash of this package, and hashes of the user's files.
        versions: Versions of Python and of libraries; `None` for a library that is missing.
        libraries: Versions of further libraries by problem.
        platform: The machine as runs see it.
        data: Hashes of the data by problem.
        strategy: The strategy of the runs.
    """

    code: dict[str, object]
    versions: Mapping[str, str | None]
    libraries: NotRequired[Mapping[str, Mapping[str, str | None]]]
    platform: Mapping[str, object]
    data: Mapping[str, str]
    strategy: str


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """The training that one compiled program does, for many runs. Equal ones share a program (see `plan.Place`).

    Attributes:
        problem: Name of the problem.
        norm: The norm as the user wrote it.
        config: All fields that training reads, by name; `norm`: the norm with every option; and `statistics`: the
            number of examples that share statistics in training, and the number of their devices.
    """

    problem: str
    norm: str
    config: tuple[tuple[str, object], ...]

    def __hash__(self) -> int:
        """Return the hash of all fields, which is computed once: each run and each look-up needs it."""
        return self._hash

    def __getstate__(self) -> dict[str, object]:
        """Leave the hash out of pickles, since hashes of text differ between processes."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @cached_property
    def _hash(self) -> int:
        return hash((self.problem, self.norm, self.config))

    @property
    def devices(self) -> int:
        """The number of devices that train one model together."""
        devices = dict(self.config).get("devices", 1)
        return devices if isinstance(devices, int) else 1


@dataclass(frozen=True, kw_only=True)
class Run:
    """One trained model.

    Attributes:
        configuration: The configuration of the run.
        stage: `tune` or `evaluate`.
        learning_rate: Peak learning rate.
        seed: Decides split, initialization and order; tuning and evaluation seeds are disjoint.
    """

    configuration: Configuration
    stage: str
    learning_rate: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Record:
    """The record of a run, stored as one JSON file.

    Attributes:
        key: sha256 of everything that decides the numbers (`run`, `identity`).
        run: The run, nested as dataclasses.
        identity: Code hash, versions, platform, data hash, strategy.
        status: `ok`, one of `FAILURES`, or `invalid`.
        reason: One line, empty when `ok`.
        metrics: `validation` (always), `test` and further metrics of the program's `evaluate` (evaluation runs only),
            `train_loss`, `chance`; `None` where not finite.
        series: Series of evaluation runs by name: a row of numbers for each measurement; `None` where not finite.
        cost: `compile`: seconds until the configuration's program was ready; `run` and `step`: seconds of training, in
            total and per update; `memory`: bytes that the training program holds on the device; `moved`: bytes that
            collectives send to a device in an update, where there are several. Never part of a comparison.
    """

    key: str
    run: Run
    identity: Mapping[str, object]
    status: str
    reason: str = ""
    metrics: Mapping[str, float | None] = field(default_factory=dict[str, float | None])
    series: Mapping[str, list[list[float | None]]] = field(default_factory=dict[str, list[list[float | None]]])
    cost: Mapping[str, float] = field(default_factory=dict[str, float])


def frozen(config: Mapping[str, object]) -> tuple[tuple[str, object], ...]:
    """Convert fields to a hashable form: sorted, with tuples for lists."""
    return tuple(sorted((name, _frozen(value)) for name, value in config.items()))


def canonical_json(value: object) -> str:
    """Write JSON with sorted keys, the same text for equal values; dataclasses become objects, NaN is an error."""
    return _CANONICAL.encode(value)


def content_key(*parts: object) -> str:
    """Compute the sha256 of the canonical JSON of `parts`."""
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()


def _frozen(value: object) -> object:
    return tuple(map(_frozen, value)) if is_list(value) else value


def as_stored(run: Run) -> dict[str, object]:
    """Give a run as nested dictionaries; its configuration is named `cell`, as files and keys have always named it."""
    fields = dataclasses.asdict(run)
    return {"cell": fields.pop("configuration"), **fields}


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = as_stored(value) if isinstance(value, Run) else dataclasses.asdict(value)
        return {"type": type(value).__name__, **fields}
    raise TypeError(f"Expected something JSON can contain, got {value!r}.")


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain)


def of_problem(identity: RunIdentity, problem: str) -> dict[str, object]:
    """Restrict an identity to the data and libraries of one problem."""
    own: dict[str, object] = {**identity, "data": identity["data"].get(problem, "")}
    own.pop("libraries", None)
    libraries = identity.get("libraries", {}).get(problem, {})
    return {**own, "versions": {**identity.get("versions", {}), **libraries}} if libraries else own


def run_key(run: Run, identity: Mapping[str, object]) -> str:
    """Compute the key of a run. The key is independent of other runs, so that more seeds keep finished runs.

    Args:
        run: The run.
        identity: See `of_problem`.
    """
    return key_from_texts(run, cell_text(run.configuration), canonical_json(identity))


def cell_text(configuration: Configuration) -> str:
    """Write the canonical JSON of a configuration in the key of its runs."""
    return canonical_json(dataclasses.asdict(configuration))


def key_from_texts(run: Run, cell: str, identity: str) -> str:
    """Compute `run_key` from texts that many runs share.

    Args:
        run: The run.
        cell: The `cell_text` of its configuration.
        identity: The canonical JSON of its identity.
    """
    rest: dict[str, object] = {"learning_rate": run.learning_rate, "seed": run.seed, "stage": run.stage, "type": "Run"}
    return hashlib.sha256(f'[{{"cell":{cell},{canonical_json(rest)[1:]},{identity}]'.encode()).hexdigest()


def by_configuration(runs: Sequence[Run]) -> dict[Configuration, list[Run]]:
    """Group runs by configuration, in their order."""
    groups: dict[Configuration, list[Run]] = {}
    for configuration, of in groupby(runs, key=attrgetter("configuration")):
        groups.setdefault(configuration, []).extend(of)
    return groups
