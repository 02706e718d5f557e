"""The process of one stage: writes each row as a line of JSON to standard output, and all else to standard error."""

import argparse
import importlib
import json
import os
import sys
import time
from typing import cast

from benchmarks.accelerator.stage import Clock, Refused, Stage

__all__ = ["OUT_OF_TIME", "REFUSED"]

REFUSED = 2
"""Exit status of a stage that found that nothing can be measured here."""

OUT_OF_TIME = 3
"""Exit status of a stage that was stopped, or stopped by itself, because its time was over."""


def main() -> int:
    """Run one stage; return 0, `REFUSED` or `OUT_OF_TIME`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", help="name of its module")
    parser.add_argument("--end", type=float, required=True, help="time since the epoch after which no row is started")
    parser.add_argument("--tiny", action="store_true", help="use shapes for a CPU")
    parser.add_argument("--skip", nargs="*", default=[], help="contenders to leave out")
    given = parser.parse_args()
    sys.argv[1:] = []  # libraries parse them, too
    lines = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print, too
    clock = Clock(given.end - time.time())
    stage = cast(Stage, importlib.import_module(given.stage))
    try:
        for row in stage.rows(clock, tiny=given.tiny, skip=frozenset(given.skip)):
            print(json.dumps(row), file=lines, flush=True)
            if clock.left() <= 0:
                break
    except Refused as refused:
        print(refused, file=sys.stderr)
        return REFUSED
    return OUT_OF_TIME if clock.left() <= 0 else 0


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # without waiting for threads that compile what nobody will run
