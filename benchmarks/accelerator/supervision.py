"""A stage in a process group of its own, which ends at its deadline."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from benchmarks.accelerator.child import OUT_OF_TIME, REFUSED
from benchmarks.accelerator.stage import PLAN, Json, Refused, Row

__all__ = ["supervised"]

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "OPENBLAS_NUM_THREADS": "1",  # NumPy's threads wait by spinning, on the cores that compile
}
LAST_ROW = 0.9
"""Part of its time after which a stage starts no row; the rest is for the row that is being measured."""


def supervised(module: str, seconds: float, *, tiny: bool, skip: Collection[str]) -> Iterator[Row]:
    """Run a stage in a child process.

    Args:
        module: Name of its module; the last part is the name of the stage.
        seconds: Time after which the process and its own children are killed.
        tiny: See `Stage`.
        skip: See `Stage`.

    Yields:
        The rows of the stage, and at the end a row of kind `stage` with its time, how it ended, and how much of its
        plan was left.

    Raises:
        Refused: If the stage found that nothing can be measured here, and said why on standard error.
    """
    start, stage = time.monotonic(), module.rpartition(".")[2]
    command = [
        sys.executable,
        "-m",
        "benchmarks.accelerator.child",
        module,
        f"--end={time.time() + LAST_ROW * seconds}",
    ]
    command += ["--tiny"] * tiny + (["--skip", *skip] if skip else [])
    environment = {**ENVIRONMENT, **os.environ}
    if tiny:
        environment.setdefault("JAX_PLATFORMS", "cpu")
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    late, progress = threading.Event(), Progress()

    def end() -> None:
        late.set()
        kill(process)

    watchdog = threading.Timer(seconds, end)
    watchdog.start()
    with process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                with contextlib.suppress(json.JSONDecodeError):  # half a line of a stage that was killed
                    row = json.loads(line)
                    progress.note(row)
                    yield {"stage": stage, **row}
            status = process.wait()
        finally:
            watchdog.cancel()
            kill(process)
    if status == REFUSED:
        raise Refused
    ended = how(status, late=late.is_set(), left=progress.left())
    spent = time.monotonic() - start
    about: Row = {"ended": ended, "seconds": round(spent, 1), "share": round(seconds, 1)}
    yield {"stage": stage, "kind": "stage", **about, **progress.columns()}


class Progress:
    """Part of a plan that is behind a stage."""

    def __init__(self) -> None:
        self._plan: Row | None = None
        self._seen: set[tuple[str, ...]] = set()

    def note(self, row: Row) -> None:
        """Take note of a row of the stage."""
        if row["kind"] == PLAN:
            self._plan = row
        elif self._plan is not None:
            columns = self._plan["columns"]
            assert isinstance(columns, list)
            self._seen.add(tuple(str(row.get(str(name))) for name in columns))

    def left(self) -> int | None:
        """Return the number of units that no row is about; `None` without a plan."""
        return None if self._plan is None else int(str(self._plan["count"])) - len(self._seen)

    def columns(self) -> dict[str, Json]:
        """Return the columns `done`, `planned` and `unit`; none without a plan."""
        if self._plan is None:
            return {}
        return {"done": len(self._seen), "planned": self._plan["count"], "unit": self._plan["unit"]}


def how(status: int, *, late: bool, left: int | None) -> str:
    """Return how a stage ended, in words.

    Args:
        status: Its exit status.
        late: Whether it was killed at its deadline.
        left: See `Progress`; a stage that has nothing left is complete, whatever its clock says.
    """
    if status in (0, OUT_OF_TIME):
        return "out of time" if status == OUT_OF_TIME and left != 0 else "complete"
    return "killed at its deadline" if late else f"crashed with status {status}"


def kill(process: "subprocess.Popen[str]") -> None:
    """Kill a process and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
