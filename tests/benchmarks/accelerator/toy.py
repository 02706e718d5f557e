"""A stage whose behaviour `skip` chooses."""

import os
import subprocess
import sys
import time
from collections.abc import Collection, Iterator

from benchmarks.accelerator.stage import Clock, Refused, Row


def rows(clock: Clock, *, tiny: bool, skip: Collection[str]) -> Iterator[Row]:
    if "refuse" in skip:
        raise Refused("Expected a device.")
    print("noise on standard output")
    yield {"kind": "toy", "tiny": tiny, "value": 1.5}
    if "crash" in skip:
        os.abort()
    if "raise" in skip:
        raise ValueError("broken")
    if "hang" in skip:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])  # inherits the pipes
        time.sleep(60)
    if "endless" in skip:
        while True:
            time.sleep(0.01)
            yield {"kind": "toy", "left": clock.left()}
