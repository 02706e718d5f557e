"""Figures of a large report are drawn in several processes, since they take half of its time."""

import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from subprocess import DEVNULL, Popen
from tempfile import TemporaryFile
from typing import TypeVar

from normlab.study.design.provenance import usable_cpus

__all__ = ["spread"]

MOST = 8
"""The most processes."""

Work = TypeVar("Work")
Made = TypeVar("Made")


def spread(function: Callable[[Work], Made], work: Sequence[Work]) -> list[Made]:
    """Apply a function to values in a process for each processor; this process is one of them.

    The values of a process that cannot start, or ends early, are left to this process.

    Args:
        function: A function of a module, whose values and results can be pickled.
        work: The values.

    Returns:
        The results in the order of the values.
    """
    jobs = max(1, min(usable_cpus(), MOST, len(work)))
    made = dict[int, list[Made]]()
    with ExitStack() as processes:
        others = [processes.enter_context(_process(function, work[first::jobs])) for first in range(1, jobs)]
        made[0] = [function(one) for one in work[::jobs]]
        for first, results in enumerate(others, start=1):
            made[first] = results() or [function(one) for one in work[first::jobs]]
    return [made[place % jobs][place // jobs] for place in range(len(work))]


@contextmanager
def _process(function: Callable[[Work], Made], work: Sequence[Work]) -> Iterator[Callable[[], list[Made] | None]]:
    """Start a process, and yield a function that waits for its results; it returns `None` after a failure.

    Files instead of pipes let both sides work at their own pace, and the main module of this process, which may be a
    script, is not run again.
    """
    serve = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve()"
    with TemporaryFile() as given, TemporaryFile() as made:
        pickle.dump((function, work), given)
        given.seek(0)
        try:
            process = Popen([sys.executable, "-c", serve], stdin=given, stdout=made, stderr=DEVNULL)
        except OSError:
            yield lambda: None
            return

        def results() -> list[Made] | None:
            if process.wait():
                return None
            made.seek(0)
            return pickle.load(made)

        try:
            yield results
        finally:
            process.kill()
            process.wait()


def serve() -> None:
    """Read a function and values from the input, and write the results to the output."""
    function, work = pickle.load(sys.stdin.buffer)
    pickle.dump([function(one) for one in work], sys.stdout.buffer)
