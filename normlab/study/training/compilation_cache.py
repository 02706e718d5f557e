"""The on-disk cache of compiled programs."""

import hashlib
import os
import platform
import warnings
from contextlib import suppress
from pathlib import Path

import jax

from normlab.study.data import cache
from normlab.study.design.provenance import usable_cpus

CACHE_BYTES = 512 * 2**20
"""How large the cache of compiled programs may be when a process begins to use it."""


def use_cache() -> Path | None:
    """Let this process keep compiled programs on disk, and load those of processes before it.

    The folder is in `NORMLAB_CACHE`, else in `normlab` of the user's folder for caches; a folder that JAX has been
    given already (`JAX_COMPILATION_CACHE_DIR`) stays, unless `NORMLAB_CACHE` is set. What was not used for longest is
    deleted when the folder outgrows `CACHE_BYTES`. `JAX_ENABLE_COMPILATION_CACHE=false` turns the cache off.

    Returns:
        The folder; `None` if JAX has its own, or if there is none that this user alone can write to: then everything is
        compiled.
    """
    # JAX warns of entries that it cannot read or write, and compiles: two processes may write one entry at a time.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache entry", UserWarning)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    of_jax = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if of_jax and not os.environ.get("NORMLAB_CACHE"):
        return None
    with suppress(OSError, RuntimeError):  # a RuntimeError is a user without a home
        folder = cache.own_folder(_cache_name())  # who can write here can run code
        if folder and os.access(folder, os.W_OK):
            jax.config.update("jax_compilation_cache_dir", str(folder))
            cache.prune(folder, CACHE_BYTES, cache.PROGRAMS)
            return folder
    return None


def _cache_name() -> str:
    """The name of this machine's own folder: compiled code is for one kind of processor, and machines share homes."""
    return hashlib.sha256(_machine().encode()).hexdigest()[:16]


def _machine() -> str:
    """What compiled code depends on: the processor, its features, and among how many of them XLA divides work."""
    threads = os.environ.get("PJRT_NPROC", "")
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    features = {line for line in lines if line.startswith(("model name", "flags", "CPU", "Features"))}  # x86, ARM
    return "\n".join([platform.machine(), str(usable_cpus()), threads, *sorted(features or {platform.processor()})])
