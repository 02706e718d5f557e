"""The on-disk cache of compiled programs."""

import hashlib
import os
import platform
import warnings
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

import jax

from normlab.study.data import cache
from normlab.study.design.provenance import usable_cpus

CACHE_BYTES = 512 * 2**20
"""Limit of the cache of compiled programs, in bytes, when a process starts to use it."""


_OPTIONS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


def use_cache() -> Path | None:
    """Cache the compiled programs of this process on disk, and load those of earlier processes.

    The folder is in `NORMLAB_CACHE`, else in `normlab` of the user's folder for caches. A folder that JAX already uses
    (`JAX_COMPILATION_CACHE_DIR`) stays, unless `NORMLAB_CACHE` is set. The least recently used programs are deleted
    when the folder outgrows `CACHE_BYTES`. `JAX_ENABLE_COMPILATION_CACHE=false` disables the cache.

    Returns:
        The folder; `None` if JAX has its own, or if other users can write to the folder: then everything is compiled.
    """
    # Two processes may write one entry at the same time: JAX then warns, and compiles.
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


@contextmanager
def cached() -> Generator[None]:
    """Use the cache inside, in a process that is not normlab's own, and leave JAX's configuration as it was."""
    from jax.experimental.compilation_cache import compilation_cache

    before = {name: getattr(jax.config, name) for name in _OPTIONS}
    compilation_cache.reset_cache()  # JAX asks once whether there is a cache, and where
    use_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def _cache_name() -> str:
    """Name the folder of this kind of machine: compiled code is for one processor, and machines may share homes."""
    return hashlib.sha256(_machine().encode()).hexdigest()[:16]


def _machine() -> str:
    """Describe everything that compiled code depends on: the processor, its features, and the number of threads."""
    threads = os.environ.get("PJRT_NPROC", "")
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    features = {line for line in lines if line.startswith(("model name", "flags", "CPU", "Features"))}  # x86, ARM
    return "\n".join([platform.machine(), str(usable_cpus()), threads, *sorted(features or {platform.processor()})])
