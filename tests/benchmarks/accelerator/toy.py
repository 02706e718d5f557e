"""A stage whose behaviour `skip` chooses."""

import os
import subprocess
import sys
import time
from collections.abc import Collection, Iterator

from benchmarks.accelerator.stage import Clock, Refused, Row, plan


def rows(clock: Clock, *, tiny: bool, skip: Collection[str]) -> Iterator[Row]:
    if "refuse" in skip:
        raise Refused("Expected a device.")
    print("noise on standard output")
    if "planned" in skip:
        yield plan(3, "values", "value")
    yield {"kind": "toy", "tiny": tiny, "value": 1.5}
    if "crash" in skip:
        os.abort()
    if "raise" in skip:
        raise ValueError("broken")
    if "late" in skip:
        time.sleep(max(0.0, clock.left()))
        yield {"kind": "toy", "value": 2.5}
    elif "planned" in skip:
        yield from ({"kind": "toy", "value": value} for value in (2.5, 2.5, 3.5))
    if "arguments" in skip:
        yield {"kind": "toy", "arguments": list(sys.argv[1:])}
    if "hang" in skip:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])  # inherits the pipes
        time.sleep(60)
    if "endless" in skip:
        while True:
            time.sleep(0.01)
            yield {"kind": "toy", "left": clock.left()}
