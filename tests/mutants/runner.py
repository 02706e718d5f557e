"""Tests against a copy of the package with a deliberate bug, in a process that is used once."""

import multiprocessing
import os
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from tests.mutants.catalogue import Mutant
from tests.support.paths import ROOT

LIBRARIES = ("chex", "flax.linen", "flax.nnx", "jax", "numpy", "optax", "pytest", "scipy.stats")


def processes() -> ProcessPoolExecutor:
    """Return two processes at a time, each for one call, forked from one that has imported the libraries."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*LIBRARIES])
    return ProcessPoolExecutor(2, mp_context=context, max_tasks_per_child=1)


def run(edited: Mutant | None, tests: tuple[str, ...]) -> tuple[int, str]:
    """Run tests against a copy of the package; the folder, the modules and the output of this process change for good.

    Args:
        edited: The bug of the copy; `None` for none.
        tests: Node ids, without `tests/`.

    Returns:
        The exit code of pytest and the end of what it printed.
    """
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as output:
        shutil.copy(ROOT / "pyproject.toml", folder)  # marks are declared there
        for part in ("normlab", "tests", "benchmarks"):
            shutil.copytree(ROOT / part, Path(folder, part), ignore=shutil.ignore_patterns("__pycache__", "results"))
        if edited is not None:
            mutate(Path(folder, "normlab", edited.file), edited)
        _move_to(folder)
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
        options = ("-W", "error", "-x", "-q", "-p", "no:cacheprovider")
        code = pytest.main([*options, *(f"tests/{test}" for test in dict.fromkeys(tests))])
        output.seek(0)
        return int(code), output.read()[-3000:]


def mutate(path: Path, mutant: Mutant) -> None:
    """Edit a file."""
    text = path.read_text()
    for old, new in zip(mutant.edits[::2], mutant.edits[1::2], strict=True):
        if text.count(old) != 1:
            sys.exit(f"Expected the text of {mutant.name!r} once in {mutant.file}, got {text.count(old)}: {old!r}")
        text = text.replace(old, new)
    path.write_text(text)


def _move_to(folder: str) -> None:
    """Import `normlab` and `tests` from a folder from now on, here and in processes that start here."""
    os.chdir(folder)
    os.environ |= {"PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
    sys.dont_write_bytecode = True
    sys.path.insert(0, folder)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("normlab", "tests")]:
        del sys.modules[name]
