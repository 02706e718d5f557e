"""Data that are read from disk while a model is trained. NumPy only until something is read."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from normlab.study.data.dataset import Data

WINDOW_BYTES = 16 * 2**20
"""How much is read, and goes to the device, together; at least a batch."""

AHEAD = 2
"""Windows that are read at a time, each by a thread, before they are needed."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Streamed(Data):
    """A labelled data set that is read while a model is trained. Labels are all there, of the inputs the first two.

    Attributes:
        read: `examples -> their inputs and labels`; may be called by several threads.
        fingerprint: A sha256 of what decides what is read.
    """

    read: Callable[[Sequence[int]], tuple[np.ndarray, np.ndarray]]
    fingerprint: str

    def __post_init__(self) -> None:
        labels = Data(np.zeros(len(self.labels), np.float32), self.labels).labels
        object.__setattr__(self, "labels", self.labels[: len(self.inputs)])
        super().__post_init__()
        object.__setattr__(self, "labels", labels)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Nothing: programs receive windows."""
        return {}

    @property
    def fingerprints(self) -> dict[str, np.ndarray]:
        """See `Data.fingerprints`; `fingerprint` represents the examples."""
        return {"fingerprint": np.frombuffer(bytes.fromhex(self.fingerprint), np.uint8), **super().fingerprints}

    def windows(self, examples: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """Read on ahead: `inputs` and `labels` of a row of examples after the other.

        Args:
            examples: Shape (windows, examples of a window).
        """
        import grain

        def window(number: int) -> dict[str, np.ndarray]:
            found = Data(*self.read(examples[number].tolist()))
            return {"inputs": found.inputs, "labels": found.labels}

        if not len(examples):
            return iter(())
        options = grain.ReadOptions(num_threads=AHEAD, prefetch_buffer_size=AHEAD)
        return iter(grain.MapDataset.range(len(examples)).map(window).to_iter_dataset(options))
