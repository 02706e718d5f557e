"""Measure this library on an accelerator: correctness, and speed beside other implementations.

One unattended command. Stages run one after the other, most valuable first, each in a process of its own with a share
of the time; a stage that ends early leaves its time to the others, and a stage that crashes costs only its own rows.
Every row is printed, and RESULT.json in the folder of output is complete after every row.

    python -m benchmarks.accelerator                           # whatever accelerator JAX sees; JAX_PLATFORMS chooses
    python -m benchmarks.accelerator --only layers peers       # some stages
    python -m benchmarks.accelerator --dry-run                 # tiny shapes, on a CPU unless JAX_PLATFORMS says else
    python -m benchmarks.accelerator.page RESULT.json --output benchmarks/results/accelerator-h100
"""

import argparse
import os
import re
import signal
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from benchmarks.accelerator import results
from benchmarks.accelerator.invocation import invocation
from benchmarks.accelerator.stage import Refused, Row
from benchmarks.accelerator.supervision import supervised

__all__ = ["STAGES", "budgeted", "main"]

STAGES = {
    "environment": 10.0,
    "correctness": 100.0,
    "layers": 35.0,
    "kernels": 40.0,
    "peers": 70.0,
    "engine": 110.0,
    "resnet50": 80.0,
    "training": 95.0,
}
"""Weights of the stages by name, in the order in which they run: shares of the budget, seconds in nine minutes."""

ALWAYS = "environment"
"""Stage that runs whatever was asked for: results without versions and device are worth little."""


def main(arguments: Sequence[str]) -> int:
    """Measure, print and write; return the exit status."""
    given = parser().parse_args(arguments)
    output = given.output.resolve() / "RESULT.json"
    rows = [invocation(arguments, dry_run=given.dry_run)]
    try:
        for row in budgeted(given.only, given.budget, tiny=given.dry_run, skip=given.skip):
            rows.append(row)
            print(results.line(row), flush=True)
            results.write(output, rows)
    except Refused:  # the stage has said why
        return 2
    print(f"wrote {output}")
    return int(any(row["kind"] == "stage" and str(row["ended"]).startswith("crashed") for row in rows))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--dry-run", action="store_true", help="tiny shapes, on a CPU unless JAX_PLATFORMS says else")
    made.add_argument("--budget", type=seconds, default=540.0, help="time for all stages, as in 9min or 300s")
    made.add_argument(
        "--only", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE", help=", ".join(STAGES)
    )
    made.add_argument("--skip", nargs="+", default=[], metavar="CONTENDER", help="contenders to leave out")
    made.add_argument(
        "--output",
        type=Path,
        default=Path(os.environ.get("OUT") or "build/accelerator"),
        help="folder of RESULT.json (default: $OUT where it is set, else build/accelerator)",
    )
    return made


def seconds(text: str) -> float:
    """Read a time such as 9min, 300s or 300."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(min|s|)", text)
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"Expected a time such as 9min or 300s, got {text!r}.")
    return float(match[1]) * (60 if match[2] == "min" else 1)


def budgeted(stages: Collection[str], budget: float, *, tiny: bool, skip: Collection[str]) -> Iterator[Row]:
    """Run stages in their order, each with its share of the time that is left.

    Args:
        stages: Names in `STAGES`.
        budget: Seconds for all.
        tiny: See `Stage`.
        skip: See `Stage`.

    Yields:
        The rows of all stages.

    Raises:
        Refused: If nothing can be measured here.
    """
    end = time.monotonic() + budget
    names = [name for name in STAGES if name in stages or name == ALWAYS]
    for i, name in enumerate(names):
        share = STAGES[name] / sum(map(STAGES.__getitem__, names[i:]))
        module = f"benchmarks.accelerator.{name}"
        yield from supervised(module, share * (end - time.monotonic()), tiny=tiny, skip=skip)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # the stage ends with this process
    sys.exit(main(sys.argv[1:]))
