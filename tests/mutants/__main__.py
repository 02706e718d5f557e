"""Break the norms on purpose: `python -m tests.mutants`. Each break must make some test fail.

A test that cannot fail is a defect. Each mutant is an edit of the source, applied to a copy of the package, and the
tests that are to notice it, slow ones too. The same tests must pass without it. Prints what was caught and what
survived, and exits with 1 if anything did.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.mutants.catalogue import MUTANTS, Mutant
from tests.support.paths import ROOT

PASSED, FAILED = 0, 1  # pytest's exit codes; the others mean that it did not get to run the tests


def run(edited: Mutant | None, tests: tuple[str, ...]) -> int:
    """Run tests against a copy of the package with the edits of a mutant; return pytest's exit code."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(ROOT / "pyproject.toml", folder)  # marks are declared there
        for part in ("normlab", "tests"):
            shutil.copytree(ROOT / part, Path(folder, part), ignore=shutil.ignore_patterns("__pycache__"))
        if edited is not None:
            mutate(Path(folder, "normlab", edited.file), edited)
        command = [sys.executable, "-W", "error", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*command, *(f"tests/{test}" for test in dict.fromkeys(tests))],
            cwd=folder, env={**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode not in (PASSED, FAILED) or (edited is None and done.returncode):
        print(done.stdout[-3000:] + done.stderr[-3000:])
    return done.returncode


def mutate(path: Path, mutant: Mutant) -> None:
    """Edit a file."""
    text = path.read_text()
    for old, new in zip(mutant.edits[::2], mutant.edits[1::2], strict=True):
        if text.count(old) != 1:
            sys.exit(f"Expected the text of {mutant.name!r} once in {mutant.file}, got {text.count(old)}: {old!r}")
        text = text.replace(old, new)
    path.write_text(text)


def main() -> int:
    """Run all mutants, two at a time."""
    start = time.monotonic()
    for mutant in MUTANTS:  # a mutant that no longer applies shows at once
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(shutil.copy(ROOT / "normlab" / mutant.file, folder))
            mutate(copy, mutant)
            compile(copy.read_text(), mutant.file, "exec")
    with ThreadPoolExecutor(2) as pool:
        whole = pool.submit(run, None, tuple(test for mutant in MUTANTS for test in mutant.tests))
        codes = list(pool.map(lambda mutant: run(mutant, mutant.tests), MUTANTS))
        if whole.result() != PASSED:
            sys.exit("Expected the tests to pass without a mutant, and they do not.")
    for mutant, code in zip(MUTANTS, codes, strict=True):
        print({PASSED: "SURVIVED", FAILED: "caught  "}.get(code, f"exit {code}  "), mutant.name)
    caught = codes.count(FAILED)
    print(f"{caught} of {len(MUTANTS)} caught in {time.monotonic() - start:.0f} s")
    return int(caught < len(MUTANTS))


if __name__ == "__main__":
    sys.exit(main())
