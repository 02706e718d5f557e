"""Data that are read from disk during training. NumPy only until something is read."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from normlab import expect
from normlab.study.data.dataset import Data, Dataset, converted_inputs, converted_labels, numbers_of

WINDOW_BYTES = 16 * 2**20
"""Bytes that are read, and sent to the device, together; at least a batch."""

AHEAD = 2
"""Windows that are read in advance, each by a thread."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Streamed(Dataset):
    """A labelled data set whose inputs are read from disk during training. All labels are in memory.

    Attributes:
        sample: Inputs of the first two examples.
        labels: See `Dataset` for this and all fields that are not explained here.
        read: `examples -> their inputs and labels`; several threads may call it.
        fingerprint: A sha256 of everything that decides the examples.
        test: Size of the test set.
        validation: Size of the validation set.
        description: Description of the data.
        mean: Mean of each channel.
        std: Standard deviation of each channel.
        augment: Random changes of examples.
        drawn: Sizes of the sets that a seed draws.
        libraries: Distributions that the data come from.
    """

    sample: np.ndarray
    labels: np.ndarray
    read: Callable[[Sequence[int]], tuple[np.ndarray, np.ndarray]]
    fingerprint: str
    test: int = 0
    validation: int = 0
    description: str = ""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    augment: tuple[str, ...] = ()
    drawn: tuple[float, float] = (0.2, 0.2)
    libraries: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._check_fields()
        sample, labels = numbers_of("inputs", self.sample), numbers_of("labels", self.labels)
        self._check_sets()
        self._check_images(sample.shape)
        expect.convert_fields(self, sample=converted_inputs(sample), labels=converted_labels(labels))

    def sample_inputs(self) -> np.ndarray:
        """Return the inputs of the first two examples."""
        return self.sample

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Nothing: programs receive windows."""
        return {}

    @property
    def fingerprints(self) -> dict[str, np.ndarray]:
        """See `Dataset`; `fingerprint` represents the examples."""
        return {"fingerprint": np.frombuffer(bytes.fromhex(self.fingerprint), np.uint8), **super().fingerprints}

    def windows(self, examples: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """Read `inputs` and `labels` of one row of examples after another, some in advance.

        Args:
            examples: Shape (windows, examples of a window).
        """
        import grain

        def window(number: int) -> dict[str, np.ndarray]:
            return Data(*self.read(examples[number].tolist())).arrays

        if not len(examples):
            return iter(())
        options = grain.ReadOptions(num_threads=AHEAD, prefetch_buffer_size=AHEAD)
        return iter(grain.MapDataset.range(len(examples)).map(window).to_iter_dataset(options))
