"""Processes that compute references in NumPy, while the process of the device compiles."""

import os
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context

import jax

__all__ = ["processes"]

MOST = 4
"""Most processes: references take far less time than compiling."""


def processes() -> Executor:
    """Return processes that leave the accelerator alone; they start when they are first needed."""
    count = min(MOST, os.cpu_count() or 1)
    return ProcessPoolExecutor(count, get_context("spawn"), initializer=leave_accelerator)


def leave_accelerator() -> None:
    """Let JAX use the CPU alone, in a new process: modules of references import JAX."""
    jax.config.update("jax_platforms", "cpu")
