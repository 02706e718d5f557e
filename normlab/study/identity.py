"""What decides the numbers of a run besides its configuration: code, versions, platform, data, strategy."""

import hashlib
import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normlab.study.config import Run, canonical_json, content_key

if TYPE_CHECKING:
    from normlab.study.execute import Strategy

_PACKAGE = Path(__file__).resolve().parents[1]
_DECIDING = (
    "augment",
    "compilation",
    "convolution",
    "data",
    "execute",
    "fed",
    "inference",
    "learning",
    "models",
    "models_nnx",
    "networks",
    "problems",
    "recurrent",
    "resnet",
    "sequences",
    "streamed",
    "tfds_sets",
    "train",
    "vgg",
    "vit",
    "zoo",
)
_SOURCES = ("*.py", "functional/*.py", "linen/*.py", "nnx/*.py", *(f"study/{name}.py" for name in _DECIDING))
_LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "scikit-learn")


def describe(files: Iterable[Path], data: Mapping[str, str], strategy: "Strategy") -> dict[str, Any]:
    """Collect the identity of the runs that this process would make. Imports JAX.

    Args:
        files: Where the comparison is defined.
        data: For each problem the hash of its data.
        strategy: How runs are executed.
    """
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    described = {
        "code": code_hash([*sources(), *files]),
        "versions": {"python": python, **{name: version(name) for name in _LIBRARIES}},
        "platform": _platform(strategy),
        "data": dict(data),
        "strategy": str(strategy),
    }
    return json.loads(canonical_json(described))  # in the order in which a folder gives it back


def of_problem(identity: Mapping[str, Any], problem: str) -> dict[str, Any]:
    """The identity of a problem's runs: without the data of other problems."""
    return {**identity, "data": identity["data"].get(problem, "")}


def run_key(run: Run, identity: Mapping[str, Any]) -> str:
    """The key of a run. How many other runs there are is not in it: more seeds keep what has been done.

    Args:
        run: The run.
        identity: See `of_problem`.
    """
    return content_key(run, identity)


def code_hash(files: Iterable[Path]) -> str:
    """The sha256 of the names and contents of files, in the given order."""
    digest = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.name} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()


def sources() -> list[Path]:
    """The files of this package that decide the numbers of a run."""
    return [file for pattern in _SOURCES for file in sorted(_PACKAGE.glob(pattern))]


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
