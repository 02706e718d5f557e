"""Images in three parts that are disjoint: for training, for choices, and for the numbers that are reported."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from normlab.errors import BadInput
from normlab.study.data.dataset import Data, digits
from normlab.study.data.options import chosen

SPLIT = 0
"""Seed of the split of data that have no test set, the same for all seeds of a study."""


class Part(NamedTuple):
    """Images, float32 [examples, height, width, channels] in [0, 1] or standardized, and their classes, int32."""

    inputs: np.ndarray
    labels: np.ndarray

    def first(self, n: int) -> "Part":
        """Keep the first examples."""
        return Part(self.inputs[:n], self.labels[:n])


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """Parts of a data set.

    Attributes:
        train: Images to train on.
        validation: Images by which learning rates and the like are chosen.
        test: Images of the reported numbers.
        classes: Number of classes.
        name: Name for tables, e.g. `MNIST 14 x 14`.
    """

    train: Part
    validation: Part
    test: Part
    classes: int
    name: str


def load(
    data: str = "tfds:mnist",
    data_dir: str | None = None,
    *,
    side: int = 14,
    crop: int | None = None,
    standardized: bool = True,
) -> Images:
    """Load images at the size of a study.

    Args:
        data: `digits`, `npz:PATH` or `tfds:NAME`, see `normlab.study.chosen`.
        data_dir: Folder of the data sets of TensorFlow Datasets.
        side: Height and width to which larger images are averaged.
        crop: Height and width of the centre that is kept before; all of it unless given.
        standardized: Whether channels are standardized, if the data set says by what; pixels in [0, 1] otherwise.

    Raises:
        BadInput: If the data are not images, or too few.
    """
    found = chosen(data, data_dir, stream=False if data.startswith("tfds:") else None)
    if not isinstance(found, Data) or found.inputs.ndim != 4 or found.inputs.dtype == np.int32:
        raise BadInput(f"Expected images (examples, height, width, channels), got `{data}`. Choose another data set.")
    plain = found if standardized else replace(found, mean=(), std=())
    inputs = averaged(plain.prepared(found.inputs), side, crop)
    return _parts(inputs, found, f"{title(data)} {inputs.shape[1]} x {inputs.shape[2]}")


def small_digits(side: int = 8) -> Images:
    """Load scikit-learn's digits, by other writers than MNIST's."""
    found = digits()
    return _parts(averaged(found.inputs, side), found, f"scikit-learn's digits {side} x {side}")


def averaged(images: np.ndarray, side: int, crop: int | None = None) -> np.ndarray:
    """Average areas of images, to `side` x `side` pixels; smaller images stay as they are.

    Args:
        images: Shape [examples, height, width, channels], square.
        side: Height and width of the result.
        crop: Height and width of the centre that is kept before.
    """
    size = images.shape[1]
    if crop is not None and crop < size:
        border = (size - crop) // 2
        images, size = images[:, border : border + crop, border : border + crop], crop
    if size <= side:
        return np.ascontiguousarray(images, np.float32)
    edges, cells = np.linspace(0, size, side + 1), np.arange(size)
    shares = np.clip(np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells), 0, None)
    shares = (shares * side / size).astype(np.float32)
    return np.einsum("ih,nhwc,jw->nijc", shares, images, shares, optimize=True).astype(np.float32)


def _parts(inputs: np.ndarray, data: Data, name: str) -> Images:
    labels, test = data.labels, data.test
    if not data.test:
        order = np.random.default_rng(SPLIT).permutation(len(labels))
        inputs, labels, test = inputs[order], labels[order], round(0.3 * len(labels))
    validation = data.validation or min(5_000, (len(labels) - test) // 5)
    if min(validation, test) < 50:
        raise BadInput(f"Expected at least 400 images, got {len(labels)}. Take more data.")
    train = len(labels) - test - validation
    cuts = (slice(0, train), slice(train, train + validation), slice(train + validation, None))
    parts = [Part(inputs[cut], labels[cut]) for cut in cuts]
    return Images(train=parts[0], validation=parts[1], test=parts[2], classes=int(labels.max()) + 1, name=name)


def title(data: str) -> str:
    """Return the name of a data set for tables."""
    kind, _, name = data.partition(":")
    known = {"tfds:mnist": "MNIST", "tfds:cifar10": "CIFAR-10", "digits": "scikit-learn's digits"}
    return known.get(data, name.rpartition("/")[2] or kind)
