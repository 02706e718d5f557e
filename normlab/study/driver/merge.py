"""Merge folders of one comparison: the parts of `--shard`, or the runs of several machines of one kind."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from normlab.errors import BadInput
from normlab.study.design.recorded import RecordedPlan, fits
from normlab.study.design.records import RETRIED, Record, of_problem
from normlab.study.worker.identity import differences
from normlab.study.worker.store import Header, Store


def merge(folders: Sequence[Path], output: Path, command: str) -> Store:
    """Write the union of the runs in some folders to a folder, which may be one of them or contain runs already.

    Returns:
        The folder of the union.

    Raises:
        BadInput: If settings or identities differ, or a run has different numbers in two folders; nothing is written.
        Fault: If the output cannot be written.
    """
    first = _header(folders[0])
    store = Store(output)
    store.check(first.settings.comparison)
    sources = {output: known} if (known := store.header()) else {}
    sources |= {folder: _header(folder) for folder in folders}
    for folder, other in sources.items():
        _check_same(folders[0], first, folder, other)
    stores = {folder: store if folder == output else Store(folder) for folder in sources}
    found = _union(stores, first)
    used = {folder for folder, _ in found.values()}
    seconds = sum(sources[folder].wall_seconds for folder in used)
    header = dataclasses.replace(first, command=command, wall_seconds=seconds, shard="")
    with store.writing():
        store.write_header(header)
        for folder, record in found.values():
            if folder != output:
                store.share(stores[folder], record.key)
    return store


def _header(folder: Path) -> Header:
    return Store(folder).recorded()[0]


def _check_same(first: Path, header: Header, folder: Path, other: Header) -> None:
    ours, theirs = (_comparable(side) for side in (header, other))
    for what, one, two in differences(ours, theirs):
        raise BadInput(
            f"Expected folders of one comparison with the same settings, code, versions and kind of machine, got "
            f"`{what}` {_short(one)} in `{first}` and {_short(two)} in `{folder}`."
        )


def _comparable(header: Header) -> dict[str, object]:
    """Select the fields that must be equal. Paths may differ: the content of files is in the identity."""
    files = ("source", "options")
    settings = {name: value for name, value in dataclasses.asdict(header.settings).items() if name not in files}
    return {**settings, **header.identity}


def _union(stores: Mapping[Path, Store], header: Header) -> dict[str, tuple[Path, Record]]:
    """Collect all runs of this identity by key, each once, with the first folder that has it."""
    found: dict[str, tuple[Path, Record]] = {}
    plan = RecordedPlan(header.settings, header.described)
    configurations = frozenset(plan.configurations)
    for folder, store in stores.items():
        for path in store.damaged():
            raise BadInput(
                f"Expected a run in `{path}`, got something else. Run the command that made `{folder}` again, which "
                "repeats it; or delete the file to leave it out."
            )
        for record in store.records():
            if record.identity != of_problem(header.identity, record.run.configuration.problem):
                continue
            if record.run.configuration in configurations and not fits(plan, record):
                raise BadInput(
                    f"Expected run {record.key[:12]} in `{folder}` to have the series of "
                    f"`{record.run.configuration.problem}`, got others. Delete its file to leave it out."
                )
            before, known = found.setdefault(record.key, (folder, record))
            if known.status in RETRIED or record.status in RETRIED:  # a successful retry replaces the failure
                found[record.key] = (before, known) if record.status in RETRIED else (folder, record)
            elif (known.status, known.metrics, known.series) != (record.status, record.metrics, record.series):
                raise BadInput(_contradiction(before, known, folder, record))
    return found


def _contradiction(before: Path, known: Record, folder: Path, record: Record) -> str:
    configuration = record.run.configuration
    ours, theirs = ({"status": side.status, **side.metrics} for side in (known, record))
    name, one, two = next(differences(ours, theirs))
    return (
        f"Expected a run to have the same numbers everywhere, got `{name}` {one} in `{before}` and {two} in `{folder}` "
        f"for run {record.key[:12]} (`{configuration.norm}` on `{configuration.problem}`, seed {record.run.seed}). "
        "`normlab verify` shows which one is repeatable."
    )


def _short(value: object) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
