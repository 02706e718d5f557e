"""Break the norms on purpose: `python -m tests.mutants`. Each break must make some test fail.

A test that cannot fail is a defect. Each mutant is an edit of the source, applied to a copy of the package, and the
tests that are to notice it, slow ones too. The same tests must pass without it. Prints what was caught and what
survived, and exits with 1 if anything did.
"""

import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.mutants.catalogue import MUTANTS
from tests.mutants.runner import mutate, processes, run
from tests.support.paths import ROOT

PASSED, FAILED = 0, 1  # pytest's exit codes; the others mean that it did not get to run the tests


def main() -> int:
    """Run all mutants, two at a time."""
    start = time.monotonic()
    for mutant in MUTANTS:  # a mutant that no longer applies shows at once
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(shutil.copy(ROOT / "normlab" / mutant.file, folder))
            mutate(copy, mutant)
            compile(copy.read_text(), mutant.file, "exec")
    with processes() as pool:
        whole = pool.submit(run, None, tuple(test for mutant in MUTANTS for test in mutant.tests))
        found = list(pool.map(run, MUTANTS, (mutant.tests for mutant in MUTANTS)))
        code, output = whole.result()
    if code != PASSED:
        sys.exit(f"{output}\nExpected the tests to pass without a mutant, and they do not.")
    for mutant, (code, output) in zip(MUTANTS, found, strict=True):
        print({PASSED: "SURVIVED", FAILED: "caught  "}.get(code, f"{output}\nexit {code}  "), mutant.name)
    caught = [code for code, _ in found].count(FAILED)
    print(f"{caught} of {len(MUTANTS)} caught in {time.monotonic() - start:.0f} s")
    return int(caught < len(MUTANTS))


if __name__ == "__main__":
    sys.exit(main())
