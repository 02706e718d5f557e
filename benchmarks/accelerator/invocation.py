"""Row of what was run, and when."""

import datetime
import os
import shutil
import subprocess
from collections.abc import Sequence

from benchmarks.accelerator.stage import Row

__all__ = ["invocation", "output_of"]


def invocation(arguments: Sequence[str], *, dry_run: bool) -> Row:
    """Return the command, the commit, and the circumstances."""
    return {
        "stage": "invocation",
        "kind": "invocation",
        "command": " ".join(["python -m benchmarks.accelerator", *arguments]),
        "dry_run": dry_run,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "commit": commit(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "jax_platforms": os.environ.get("JAX_PLATFORMS"),
        "xla_flags": os.environ.get("XLA_FLAGS"),
    }


def commit() -> str | None:
    """Return the commit of the checkout, and whether its files are others; `None` outside of a repository."""
    name = output_of("git", "rev-parse", "HEAD")
    return f"{name}, with changes" if name and output_of("git", "status", "--porcelain") else name


def output_of(*command: str) -> str | None:
    """Return what a command prints; `None` where it is not there or fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    return done.stdout.strip() or None if done.returncode == 0 else None
