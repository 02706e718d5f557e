"""Checkpoints of long runs: a killed run resumes with bit-identical results."""

from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from normlab.notation import PyTree
from normlab.study.data import cache
from normlab.study.design.records import content_key

FORMAT = 1
"""Increment when the file format changes."""

BYTES = 8 * 2**30
"""Limit of the folder, in bytes: checkpoints that nobody resumes are deleted."""


class Progress(NamedTuple):
    """Progress of a run.

    Attributes:
        state: State after the last update.
        losses: Losses of all updates so far.
        windows: Windows of data that were used.
        seconds: Time that was used.
    """

    state: PyTree
    losses: np.ndarray
    windows: int
    seconds: float


class Checkpoint:
    """The file of a run, in the folder `checkpoints` of the caches; nothing is saved if it cannot be written."""

    def __init__(self, *decides: object) -> None:
        """Name the file of a run by everything that decides its numbers, as values for JSON."""
        self._path: Path | None = None
        if jax.process_count() > 1:  # they could be killed at different steps
            return
        with suppress(OSError, RuntimeError):  # a RuntimeError is a user without a home
            folder = cache.own_folder("checkpoints")
            self._path = folder and folder / f"{content_key('checkpoint', FORMAT, *decides)}.npy"

    def load(self, start: Progress) -> Progress:
        """Return the progress that was saved last, or `start`."""
        found = cache.read(self._path) if self._path else None
        if found is None:
            return start
        leaves, structure = jax.tree.flatten(start.state)
        saved = [
            np.frombuffer(found[str(i)].tobytes(), leaf.dtype).reshape(leaf.shape) for i, leaf in enumerate(leaves)
        ]
        state = jax.tree.unflatten(structure, saved)
        return Progress(state, np.array(found["losses"]), int(found["windows"]), float(found["seconds"]))

    def save(self, progress: Progress) -> None:
        """Replace the file atomically."""
        leaves = jax.tree.leaves(jax.device_get(progress.state))
        arrays = {str(i): np.frombuffer(np.asarray(leaf).tobytes(), np.uint8) for i, leaf in enumerate(leaves)}
        arrays |= {name: np.asarray(getattr(progress, name)) for name in ("losses", "windows", "seconds")}
        if self._path:
            with suppress(OSError):
                cache.write(self._path, arrays)
                cache.prune(self._path.parent, BYTES, cache.ARRAYS)

    def remove(self) -> None:
        """Delete the file of a finished run."""
        if self._path:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
