"""The index of a folder of runs: the content of many files in one, with the stamp that each had when it was read.

A run in the index counts as long as its file has the same stamp; other files are read. The index can be deleted at any
time, and folders of few runs have none. Its first line has the configurations and the identities, which runs share,
each further line a run, and the last line a hash of the others.
"""

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256

from normlab.study.design import schema
from normlab.study.design.records import Configuration, Record, Run
from normlab.study.design.schema import Malformed
from normlab.study.worker import run_schema

__all__ = ["Stamp", "decode", "encode"]

Stamp = tuple[int, int, int, int]
"""The number of a file, its size, and the times of its last two kinds of changes, which identify the content."""

SETTLED = 2 * 10**9
"""Nanoseconds after which a further change of a file changes its stamp, where the clock of a file system is coarse."""

_VERSION = 1
_SHARED = schema.fields(
    {
        "version": schema.whole(_VERSION, _VERSION),
        "cells": schema.listed(run_schema.configuration, 10**6),
        "identities": schema.listed(run_schema.identity, 10**6),
    }
)


def encode(runs: Iterable[tuple[Stamp, Record]]) -> bytes:
    """Write an index of runs, without those whose files changed a moment ago.

    Args:
        runs: Stamps and records; records share the objects of equal configurations and identities.
    """
    latest = time.time_ns() - SETTLED
    settled = [(stamp, record) for stamp, record in runs if max(stamp[2:]) < latest]
    configurations = {id(record.run.configuration): record.run.configuration for _, record in settled}
    identities = {id(record.identity): record.identity for _, record in settled}
    cells = [{"problem": one.problem, "norm": one.norm, "config": dict(one.config)} for one in configurations.values()]
    shared = {"version": _VERSION, "cells": cells, "identities": list(identities.values())}
    numbers = {key: number for of in (configurations, identities) for number, key in enumerate(of)}
    lines = [shared, *(_row(stamp, record, numbers) for stamp, record in settled)]
    content = "\n".join(map(json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode, lines)).encode()
    return b"\n".join((content, sha256(content).hexdigest().encode()))


def decode(content: bytes) -> dict[str, tuple[Stamp, Record]]:
    """Read the stamps and records of an index by key; none of one that is damaged or of another version."""
    content, _, digest = content.rpartition(b"\n")
    if sha256(content).hexdigest().encode() != digest:
        return {}
    first, *lines = content.split(b"\n")
    try:
        shared = _SHARED(schema.parse_json(first))
        runs = [_run(schema.parse_json(line), shared["cells"], shared["identities"]) for line in lines]
    except (Malformed, ValueError, TypeError, IndexError):
        return {}
    return {record.key: (stamp, record) for stamp, record in runs}


def _row(stamp: Stamp, record: Record, numbers: Mapping[int, int]) -> list[object]:
    run = record.run
    return [
        record.key, stamp, numbers[id(run.configuration)], run.stage, run.learning_rate, run.seed,
        numbers[id(record.identity)], record.status, record.reason, record.metrics, record.series, record.cost,
    ]  # fmt: skip


def _run(
    row: Sequence[object], configurations: Sequence[Configuration], identities: Sequence[Mapping[str, object]]
) -> tuple[Stamp, Record]:
    """Check a line of an index.

    Raises:
        Malformed: If it has something else than a run.
        ValueError: If it is longer or shorter.
        IndexError: If it names something that the first line does not have.
        TypeError: If it is no list.
    """
    key, stamp, cell, stage, rate, seed, identity, status, reason, metrics, series, cost = row
    run = Run(
        configuration=configurations[run_schema.PLACE(cell)],
        stage=run_schema.STAGE(stage),
        learning_rate=run_schema.LEARNING_RATE(rate),
        seed=run_schema.SEED(seed),
    )
    run_schema.SERIES(series)
    record = Record(
        key=run_schema.KEY(key),
        run=run,
        identity=identities[run_schema.PLACE(identity)],
        status=run_schema.STATUS(status),
        reason=run_schema.REASON(reason),
        metrics=run_schema.METRICS(metrics),
        series=series,  # pyright: ignore[reportArgumentType]  # as in the file, which has been checked
        cost=run_schema.COST(cost),
    )
    return tuple(stamp), record  # pyright: ignore  # a stamp of another form is that of no file
