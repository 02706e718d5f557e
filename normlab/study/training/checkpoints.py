"""Where a long run is, kept on disk so that a killed one goes on, with the same numbers."""

from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from normlab.study.data import cache
from normlab.study.design.records import content_key

FORMAT = 1
"""To be raised when what is kept is to be understood in another way."""

BYTES = 8 * 2**30
"""How large the folder may be: what was left by runs that nobody goes on with is deleted."""


class Progress(NamedTuple):
    """Where a run is.

    Attributes:
        state: After the last update; arrays.
        losses: Of all updates so far.
        windows: How many windows of data they took.
        seconds: They took.
    """

    state: Any
    losses: np.ndarray
    windows: int
    seconds: float


class Checkpoint:
    """The file of a run, in the folder `checkpoints` of the caches. Where none can be written, there is none."""

    def __init__(self, *decides: Any) -> None:
        """Find the file of a run by all that decides its numbers, as something JSON can hold."""
        self._path: Path | None = None
        if jax.process_count() > 1:  # which could be killed at different places
            return
        with suppress(OSError, RuntimeError):  # a RuntimeError is a user without a home
            folder = cache.own_folder("checkpoints")
            self._path = folder and folder / f"{content_key('checkpoint', FORMAT, *decides)}.npy"

    def load(self, start: Progress) -> Progress:
        """Give what was saved last, or the start where that is nothing."""
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
        """Replace what was saved before; nobody finds half of it."""
        leaves = jax.tree.leaves(jax.device_get(progress.state))
        arrays = {str(i): np.frombuffer(np.asarray(leaf).tobytes(), np.uint8) for i, leaf in enumerate(leaves)}
        arrays |= {name: np.asarray(getattr(progress, name)) for name in ("losses", "windows", "seconds")}
        if self._path:
            with suppress(OSError):
                cache.write(self._path, arrays)
                cache.prune(self._path.parent, BYTES, cache.ARRAYS)

    def remove(self) -> None:
        """Delete it: the run is done."""
        if self._path:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
