"""How much faster is `normlab run` with two worker processes than with one?

The same comparison runs from scratch into new folders, with one worker and with two in turns, in shuffled rounds. An
uncounted run before the first round compiles the programs. Wall time is for the whole command; its parts are the start
(until the first record: imports, plan, workers, the first run), the work (until the last record) and the report (until
the command ends). `cores` is the average number of cores that its processes kept busy: with two workers, a value well
below two means that others also used the machine.

    python -m benchmarks.speed.scaling                                            # seven norms in a conv net
    python -m benchmarks.speed.scaling --output benchmarks/results/scaling-cpu    # writes .csv and .md
    python -m benchmarks.speed.scaling --jobs 4 -- my_comparison.py --tier quick  # arguments of `normlab run`
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from benchmarks.speed._timing import environment, turns, write

WORK = "batch_size --tier smoke --problems conv --curves deployed --epochs 60".split()
"""A minute of training with one worker."""

BAR = 0.85
"""Least acceptable speed-up, as a share of the number of workers: 1.7 with two."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One invocation, in seconds; `start`, `work` and `report` are the parts of `wall`."""

    round: int
    jobs: int
    wall: float
    start: float
    work: float
    report: float
    cores: float

    HEADING: ClassVar = f"{'round':>5}{'jobs':>6}{'wall s':>9}{'start':>8}{'work':>8}{'report':>8}{'cores':>8}"

    def __str__(self) -> str:
        """Return a row of the table."""
        parts = f"{self.start:8.1f}{self.work:8.1f}{self.report:8.1f}"
        return f"{self.round:5}{self.jobs:6}{self.wall:9.1f}{parts}{self.cores:8.2f}"


def main() -> None:
    """Measure, print, and write files if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="worker processes, compared with one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="write OUTPUT.csv and OUTPUT.md")
    parser.add_argument(
        "arguments", nargs="*", default=WORK, help=f"arguments of `normlab run`; default: {' '.join(WORK)}"
    )
    args = parser.parse_args()
    for name, least in (("jobs", 2), ("rounds", 1)):
        if getattr(args, name) < least:
            parser.error(f"Expected `--{name}` to be at least {least}, got {getattr(args, name)}.")

    heading = f"{environment(platform.machine())}\nnormlab run {' '.join(args.arguments)}\n{Row.HEADING}"
    print(heading, flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        invoke(args.arguments, args.jobs, Path(folder))
        for turn, jobs in turns([1, args.jobs], args.rounds):
            rows.append(Row(round=turn + 1, jobs=jobs, **invoke(args.arguments, jobs, Path(folder))))
            print(rows[-1], flush=True)
    print(summary(rows))
    if args.output:
        write(args.output, "Scaling with worker processes", rows, "\n".join([heading, *map(str, rows)]), summary(rows))


def invoke(arguments: Sequence[str], jobs: int, folder: Path) -> dict[str, float]:
    """Run the comparison into a new folder, and return the seconds of its parts; `folder` keeps compiled programs."""
    with tempfile.TemporaryDirectory(dir=folder) as output:
        command = [sys.executable, "-m", "normlab", "run", *arguments, "--jobs", str(jobs), "--output", f"{output}/out"]
        variables = {**os.environ, "JAX_PLATFORMS": "cpu", "NORMLAB_CACHE": str(folder / "cache")}
        begin, busy = time.time(), cpu_seconds()
        done = subprocess.run(command, env=variables, capture_output=True, text=True)
        end, busy = time.time(), cpu_seconds() - busy
        if done.returncode:
            raise SystemExit(
                f"`{' '.join(command[1:])}` ended with exit code {done.returncode}:\n{done.stderr.strip()}"
            )
        written = [path.stat().st_mtime for path in Path(output).glob("out/runs/**/*.json")]
    first, last = min(written), max(written)
    return {
        "wall": end - begin,
        "start": first - begin,
        "work": last - first,
        "report": end - last,
        "cores": busy / (end - begin),
    }


def cpu_seconds() -> float:
    """Return the processor time in seconds of all child processes that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def summary(rows: Sequence[Row]) -> str:
    """State the speedup by more workers; `!` marks a speedup below the bar."""
    jobs = max(row.jobs for row in rows)
    one, more = ([row for row in rows if row.jobs == n] for n in (1, jobs))
    bar = BAR * jobs
    walls, works = (
        [getattr(a, part) / getattr(b, part) for a, b in zip(one, more, strict=True)] for part in ("wall", "work")
    )
    mark = "!" if statistics.median(walls) < bar else ""
    starts = " and ".join(f"{statistics.median(row.start / row.wall for row in rows):.0%}" for rows in (one, more))
    return (
        f"{jobs} workers are {span(walls)}{mark} times as fast as one, {span(works)} without start and report; median "
        f"and range of {len(one)} rounds. The bar is {bar:g}. The start is {starts} of the wall time with 1 and with "
        f"{jobs}."
    )


def span(values: Sequence[float]) -> str:
    """Write a median and a range."""
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


if __name__ == "__main__":
    main()
