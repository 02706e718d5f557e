"""The identity of runs: code, versions, platform, data and strategy; and differences between two identities."""

import json
import os
import platform
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from normlab.study.design.provenance import file_hash, own_code, usable_cpus, versions
from normlab.study.design.records import Record, RunIdentity, canonical_json, of_problem

if TYPE_CHECKING:
    from normlab.study.worker.strategy import Strategy


_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")


def describe(
    files: Mapping[str, Path],
    data: Mapping[str, str],
    strategy: "Strategy",
    libraries: Mapping[str, Iterable[str]] | None = None,
) -> RunIdentity:
    """Collect the identity of the runs that this process would make. Imports JAX.

    Args:
        files: The user's files by name; see `discovery.code`.
        data: Hashes of the data by problem.
        strategy: Strategy of the runs.
        libraries: Further libraries by problem; see `Program.libraries`.
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
    return json.loads(canonical_json(described))  # in the order of JSON in a folder


def same_device(identity: Mapping[str, object]) -> bool:
    """Check whether runs with an identity were made on a device like the first of this process."""
    import jax

    platform = identity.get("platform", {})
    return isinstance(platform, Mapping) and platform.get("device") == jax.devices()[0].device_kind


def files_of(identity: Mapping[str, object]) -> dict[str, str]:
    """Return the hashes of the user's files in an identity; none for identities of older versions."""
    code = identity.get("code", {})
    return dict(code.get("comparison", {})) if isinstance(code, Mapping) else {}


def differences(one: object, other: object, name: str = "") -> Iterator[tuple[str, object, object]]:
    """Yield the differences of two trees of mappings: a name such as `versions jax`, and both values."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        for key in sorted({*one, *other}, key=str):
            yield from differences(one.get(key), other.get(key), f"{name} {key}".strip())
    elif one != other:
        yield name, one, other


def outdated(identity: RunIdentity, records: Iterable[Record]) -> str:
    """Report the number of records with another identity, and the differences; empty where there are none.

    Args:
        identity: The current identity.
        records: Records of a folder; problems that are not in the identity are ignored.
    """
    reasons: Counter[str] = Counter()
    for problem, of in _by_problem(records).items():
        if problem in identity["data"]:
            now = of_problem(identity, problem)
            for shared, count in of:
                if changes := [_change(*found) for found in differences(shared, now)]:
                    reasons["; ".join(dict.fromkeys(changes))] += count
    if not reasons:
        return ""
    groups = [f"{count} record{'s' * (count > 1)} ({why})" for why, count in reasons.most_common()]
    return f"Set aside, and in none of the numbers: {', '.join(groups)}."


def _by_problem(records: Iterable[Record]) -> dict[str, list[tuple[Mapping[str, object], int]]]:
    """Count the records of a problem that share an identity, the object itself, as those of a folder do."""
    there = list(records)
    shared = {id(record.identity): record.identity for record in there}
    counts = Counter((record.run.configuration.problem, id(record.identity)) for record in there)
    found: dict[str, list[tuple[Mapping[str, object], int]]] = {}
    for (problem, number), count in counts.items():
        found.setdefault(problem, []).append((shared[number], count))
    return found


def _change(what: str, then: object, now: object) -> str:
    """Describe a difference of identities."""
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


def _platform(strategy: "Strategy") -> dict[str, object]:
    """Describe the machine as runs see it, in this process or in workers."""
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
