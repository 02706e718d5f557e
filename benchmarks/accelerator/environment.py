"""Stage `environment`: device and versions."""

import importlib
import os
import platform
from collections.abc import Collection, Iterator
from importlib.metadata import PackageNotFoundError, version

import jax

from benchmarks.accelerator.invocation import output_of
from benchmarks.accelerator.stage import Clock, Refused, Row

__all__ = ["rows"]

PACKAGES = ("normlab", "jax", "jaxlib", "flax", "numpy", "optax", "torch", "triton", "tokamax")


def rows(clock: Clock, *, tiny: bool, skip: Collection[str]) -> Iterator[Row]:
    """Yield the device and the versions.

    Raises:
        Refused: If JAX finds no accelerator, and this is no dry run.
    """
    try:
        devices = jax.devices()
    except Exception as error:  # each platform fails in its own way
        asked = os.environ.get("JAX_PLATFORMS")
        raise Refused(
            f"Expected a device of the platforms that JAX_PLATFORMS names, {asked!r}, got {reason(error)}. "
            "Name others, or pass `--dry-run` without JAX_PLATFORMS for tiny shapes on a CPU."
        ) from error
    first = devices[0]
    if first.platform == "cpu" and not tiny:
        raise Refused("Expected an accelerator that JAX sees, got only a CPU. Pass `--dry-run` for tiny shapes on it.")
    limit = (first.memory_stats() or {}).get("bytes_limit")
    yield {
        "kind": "device",
        "platform": first.platform,
        "device": first.device_kind,
        "count": len(devices),
        "memory_gb": None if limit is None else round(limit / 1e9, 1),
        "cores": getattr(first, "core_count", None),
        "platform_version": first.client.platform_version,
        "driver": driver(),
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
    }
    yield {"kind": "versions", "python": platform.python_version(), **{name: version_of(name) for name in PACKAGES}}


def reason(error: Exception) -> str:
    """Return what an error says; JAX fails in an assertion without words where a plugin finds no device."""
    return f"`{type(error).__name__}: {error}`" if str(error) else "no device of any of them"


def driver() -> str | None:
    """Return the version of NVIDIA's driver."""
    return output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def version_of(package: str) -> str | None:
    """Return the version of a package: of its distribution, or what the module says that was put on the path."""
    try:
        return version(package)
    except PackageNotFoundError:
        try:
            return str(getattr(importlib.import_module(package), "__version__", "unknown"))
        except ImportError:
            return None
