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

from benchmarks.accelerator.child import REFUSED
from benchmarks.accelerator.stage import Refused, Row

__all__ = ["supervised"]

ROOT = Path(__file__).resolve().parents[2]
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
        The rows of the stage, and at the end a row of kind `stage` with its time and how it ended.

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
    environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ}
    if tiny:
        environment.setdefault("JAX_PLATFORMS", "cpu")
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    late = threading.Event()

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
                    yield {"stage": stage, **json.loads(line)}
            status = process.wait()
        finally:
            watchdog.cancel()
            kill(process)
    if status == REFUSED:
        raise Refused
    ended = (
        "complete" if status == 0 else "killed at its deadline" if late.is_set() else f"crashed with status {status}"
    )
    spent = time.monotonic() - start
    yield {"stage": stage, "kind": "stage", "ended": ended, "seconds": round(spent, 1), "share": round(seconds, 1)}


def kill(process: "subprocess.Popen[str]") -> None:
    """Kill a process and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
