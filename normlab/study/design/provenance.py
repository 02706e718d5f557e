"""Hashes of the code and data that decide the numbers of a run."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from normlab.study.design.imports import COMPARISONS

_PACKAGE = Path(__file__).resolve().parents[2]

_READS = "reads the request, which is in the run or in the hash of the data"
_DRIVES = "decides which runs are made, and makes none"
_KEEPS = "stores finished records"
_SHOWS = "shows finished records"
EXCUSED: Mapping[str, str] = {
    "normlab.__main__": _READS,
    "normlab.cli": _READS,
    "normlab.doctor": "looks at a user's model, and is in no comparison",
    "normlab.errors": "texts of messages",
    "normlab.river": "learns from streams by itself, and is in no comparison",
    "normlab.study.analysis": _SHOWS,
    "normlab.study.api": _DRIVES,
    "normlab.study.design.imports": "finds the files that are in the key",
    "normlab.study.design.recorded": _KEEPS,
    "normlab.study.design.request": _READS,
    "normlab.study.design.shard": _DRIVES,
    "normlab.study.driver": _DRIVES,
    "normlab.study.executors": "starts processes, whose environment `worker.strategy` decides, and hands runs and "
    "records between them",
    "normlab.study.report": _SHOWS,
    "normlab.study.worker.identity": "makes the identity itself",
    "normlab.study.worker.run_files": "reads finished records",
    "normlab.study.worker.run_index": "reads finished records",
    "normlab.study.worker.run_schema": "reads finished records",
    "normlab.study.worker.store": _KEEPS,
    "normlab.suggestions": "texts of messages",
}
"""Modules and packages of this package that cannot decide a number, with reasons. All others are in every key."""


@cache  # an edit while a process lives does not change what the process runs
def own_code() -> str:
    """Compute the sha256 of all modules of this package that decide the numbers of a run."""
    return code_hash(deciding(_PACKAGE))


def code_hash(files: Mapping[str, Path]) -> str:
    """Compute the sha256 of the names and contents of files."""
    digest = hashlib.sha256()
    for name, file in files.items():
        content = file.read_bytes()
        digest.update(f"{name} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()


def file_hash(file: Path) -> str:
    """Compute the sha256 of the content of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def modules(package: Path) -> dict[str, Path]:
    """Find the files of all modules of a package, at any depth, by their dotted names, in their order."""
    found = {
        ".".join((package.name, *file.relative_to(package).with_suffix("").parts)).removesuffix(".__init__"): file
        for file in package.rglob("*.py")
        if file.relative_to(package).parts[0] not in COMPARISONS
    }
    return dict(sorted(found.items()))


def deciding(package: Path) -> dict[str, Path]:
    """Select the modules of this package, or of a copy of it, that decide the numbers of a run."""
    return {name: file for name, file in modules(package).items() if not is_excused(name)}


def is_excused(module: str) -> bool:
    """Check whether a module, or a package that contains it, is excused."""
    return any(module == name or module.startswith(f"{name}.") for name in EXCUSED)


def versions(names: Iterable[str]) -> dict[str, str | None]:
    """Find the versions of installed distributions; `None` where a distribution is missing."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def usable_cpus() -> int:
    """Count the processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def data_hash(arrays: Mapping[str, np.ndarray]) -> str:
    """Compute the sha256 of the names, types, shapes and bytes of arrays, for run keys."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)  # without a copy
    return digest.hexdigest()
