"""What decides the numbers of a run besides its configuration: code, versions, platform, data, strategy."""

import hashlib
import json
import os
import platform
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normlab.study.config import Record, Run, canonical_json, content_key
from normlab.study.imports import COMPARISONS

if TYPE_CHECKING:
    from normlab.study.execute import Strategy

_PACKAGE = Path(__file__).resolve().parents[1]

_READS = "reads what is asked for, which is in the run or in the hash of the data"
_STARTS = "starts processes, whose environment `execute` decides, and hands runs and records between them"
_DRIVES = "decides which runs are made, and makes none"
_KEEPS = "keeps records that are made"
_SHOWS = "shows records that are made"
EXCUSED: Mapping[str, str] = {
    "normlab.__main__": _READS,
    "normlab.study.advice": _SHOWS,
    "normlab.study.analysis": _SHOWS,
    "normlab.study.arguments": _READS,
    "normlab.study.checks": "traces programs before there are runs, and keeps none of them",
    "normlab.study.cli": _READS,
    "normlab.study.described": _KEEPS,
    "normlab.study.downloads": _SHOWS,
    "normlab.study.errors": "words of messages",
    "normlab.study.figures": _SHOWS,
    "normlab.study.group": _STARTS,
    "normlab.study.meeting": _STARTS,
    "normlab.study.identity": "makes the key itself",
    "normlab.study.imports": "finds what is in the key",
    "normlab.study.invocation": _DRIVES,
    "normlab.study.limits": "ends runs that take too long, and changes no number of those that end",
    "normlab.study.local": _STARTS,
    "normlab.study.merge": _KEEPS,
    "normlab.study.pool": _STARTS,
    "normlab.study.progress": _SHOWS,
    "normlab.study.ray_core": _STARTS,
    "normlab.study.report": _SHOWS,
    "normlab.study.result": _DRIVES,
    "normlab.study.shard": _DRIVES,
    "normlab.study.slurm": _STARTS,
    "normlab.study.statistics": _SHOWS,
    "normlab.study.store": _KEEPS,
    "normlab.study.tables": _SHOWS,
    "normlab.study.terminal": _SHOWS,
    "normlab.study.together": _STARTS,
    "normlab.study.verify": _DRIVES,
    "normlab.study.words": _SHOWS,
}
"""Modules of this package that cannot decide a number, and why. All others, new ones included, are in every key."""

_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")


def describe(
    files: Mapping[str, Path],
    data: Mapping[str, str],
    strategy: "Strategy",
    libraries: Mapping[str, Iterable[str]] | None = None,
) -> dict[str, Any]:
    """Collect the identity of the runs that this process would make. Imports JAX.

    Args:
        files: The user's files by name; see `catalogue.code`.
        data: For each problem the hash of its data.
        strategy: How runs are executed.
        libraries: For each problem the libraries that it uses beyond those that all use; see `Program.libraries`.
    """
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    described = {
        "code": {"normlab": own_code(), "comparison": {name: file_hash(file) for name, file in files.items()}},
        "versions": {"python": python, **versions(_LIBRARIES)},
        "libraries": {problem: versions(names) for problem, names in (libraries or {}).items()},
        "platform": _platform(strategy),
        "data": dict(data),
        "strategy": str(strategy),
    }
    return json.loads(canonical_json(described))  # in the order in which a folder gives it back


def of_problem(identity: Mapping[str, Any], problem: str) -> dict[str, Any]:
    """The identity of a problem's runs: without the data and the libraries of other problems."""
    own = {**identity, "data": identity["data"].get(problem, "")}
    libraries = own.pop("libraries", {}).get(problem, {})
    return {**own, "versions": {**own.get("versions", {}), **libraries}} if libraries else own


def files_of(identity: Mapping[str, Any]) -> dict[str, str]:
    """The user's files that an identity has, and the hash of each; none where it is of an older form."""
    code = identity.get("code", {})
    return dict(code.get("comparison", {})) if isinstance(code, Mapping) else {}


def run_key(run: Run, identity: Mapping[str, Any]) -> str:
    """The key of a run. How many other runs there are is not in it: more seeds keep what has been done.

    Args:
        run: The run.
        identity: See `of_problem`.
    """
    return content_key(run, identity)


def differences(one: Any, other: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Where two trees of mappings differ: `versions jax`, and both values."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in sorted({*one, *other}, key=str):
            yield from differences(one.get(key), other.get(key), f"{name} {key}".strip())
    elif one != other:
        yield name, one, other


def outdated(identity: Mapping[str, Any], records: Iterable[Record]) -> str:
    """Say how many records are of another identity, and where it differs; empty where there are none.

    Args:
        identity: Of all runs as they would be made.
        records: Those of a folder. Problems that the identity does not know are left out.
    """
    reasons: Counter[str] = Counter()
    for record in records:
        if record.run.cell.problem in identity["data"]:
            now = of_problem(identity, record.run.cell.problem)
            if changes := [_change(*found) for found in differences(record.identity, now)]:
                reasons["; ".join(dict.fromkeys(changes))] += 1
    if not reasons:
        return ""
    groups = [f"{count} record{'s' * (count > 1)} ({why})" for why, count in reasons.most_common()]
    return f"Set aside, and in none of the numbers: {', '.join(groups)}."


def _change(what: str, then: Any, now: Any) -> str:
    """Put a difference of identities into words."""
    kind, _, name = what.partition(" ")
    if what == "code normlab":
        return "the code of normlab changed"
    if what.startswith("code comparison "):
        file = f"`{what.removeprefix('code comparison ')}`"
        return f"{file} changed" if then and now else f"{file} is {'imported now' if now else 'no longer imported'}"
    if kind in ("code", "data"):
        return f"the {kind} changed"
    if kind in ("versions", "platform"):
        before, after = ("none" if value in (None, "") else value for value in (then, now))
        return f"{name} {before} instead of {after}"
    return f"{what} `{then}` instead of `{now}`"


@cache  # an edit while a process lives does not change what the process runs
def own_code() -> str:
    """The sha256 of all modules of this package that decide the numbers of a run."""
    return code_hash(deciding(_PACKAGE))


def code_hash(files: Mapping[str, Path]) -> str:
    """The sha256 of the names and contents of files."""
    digest = hashlib.sha256()
    for name, file in files.items():
        content = file.read_bytes()
        digest.update(f"{name} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()


def file_hash(file: Path) -> str:
    """The sha256 of the content of a file."""
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
    """Those of the modules of this package, or of a copy of it, that decide the numbers of a run."""
    return {name: file for name, file in modules(package).items() if name not in EXCUSED}


def versions(names: Iterable[str]) -> dict[str, str | None]:
    """The versions of installed distributions; `None` where there is none."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def _platform(strategy: "Strategy") -> dict[str, Any]:
    """What runs see of the machine, whether this process makes them or gives them to others."""
    import jax
    import jax.numpy as jnp

    device = jax.devices()[0]
    environment = {**os.environ, **strategy.environment(os.environ)}
    divided = device.platform == "cpu" and not strategy.one_thread
    return {
        "backend": device.platform,
        "device": device.device_kind,
        "machine": platform.machine(),
        "x64": jnp.zeros(()).dtype == jnp.float64,
        "xla_flags": environment.get("XLA_FLAGS", ""),
        # XLA cuts large matrix products by the processors that it sees, which changes their last digits.
        "cpus": usable_cpus() if divided else 1,
    }


def usable_cpus() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
