"""Read a data set of TensorFlow Datasets without TensorFlow."""

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TypedDict

import numpy as np

from normlab.study.data.cache import kept
from normlab.study.data.dataset import Data
from normlab.study.data.streaming import Streamed
from normlab.study.data.tfds.folders import DatasetFolder, contents, files_of, fingerprint, json_of, libraries, located
from normlab.study.data.tfds.records import DRAWN, SAMPLE, Examples, blocks_of, standardization
from normlab.study.design.records import content_key

FORMAT = 1
"""Increment when the same files give different arrays."""

RESIDENT_BYTES = 2 * 2**30
"""Larger inputs are read during training. The limit is the same on every machine, so that all make the same runs."""


def read(
    name: str,
    data_dir: str | None = None,
    train_examples: int | None = None,
    size: int | None = None,
    stream: bool | None = None,
) -> Data | Streamed:
    """Read a data set; its arrays are cached on disk by the contents of its files.

    Splits `validation` and `test` are used for validation and for the test. If only one of them exists, it is the test
    set, and each seed draws examples for validation from `train`; if none exists, each seed draws both. A split `test`
    without labels does not count.

    Args:
        name: `NAME`, `NAME/CONFIG`, or one of these and `:VERSION`; the newest version unless given.
        data_dir: Folder of data sets; `TFDS_DATA_DIR` or `~/tensorflow_datasets` unless given.
        train_examples: Number of examples of the split `train`, from the first on; all of them unless given.
        size: Size of square images: the shorter side is resized to it, and the longer one is cropped at both ends.
            Images are not changed unless given.
        stream: Whether inputs are read during training. Unless given, they are if they take over `RESIDENT_BYTES`, or
            their files do if the size of the inputs is unknown.

    Raises:
        BadInput: If there is no such data set, or the content of its files does not fit.
    """
    place = located(name, data_dir)
    taken, where = _taken(place.folder, train_examples, size)
    if taken > RESIDENT_BYTES if stream is None else stream:
        return _streamed(place, train_examples, size, f"{taken / 2**20:,.0f} MiB {where}")
    key = content_key("tfds", FORMAT, contents(place.folder), train_examples, size)
    arrays = kept("data", key, lambda: _to_arrays(Examples(place, train_examples, size)))
    return Data(arrays["inputs"], arrays["labels"], **_of_data(place, arrays))


def _to_arrays(examples: Examples) -> dict[str, np.ndarray]:
    """Read all examples and their metadata, for the cache."""
    inputs, labels = examples.read([0])
    inputs = np.empty((len(examples), *examples.shape), inputs.dtype)
    labels = np.empty((len(examples), *labels.shape[1:]), labels.dtype)
    for block in blocks_of(len(examples)):
        inputs[block], labels[block] = examples.read(block)
    data = Data(inputs, labels)  # checks and converts
    return {
        "inputs": data.inputs,
        "labels": data.labels,
        **_described(examples, data, (data.inputs[block] for block in blocks_of(examples.train))),
    }


def _streamed(place: DatasetFolder, train_examples: int | None, size: int | None, where: str) -> Streamed:
    """Make a data set that is read during training; its labels and metadata are cached."""
    opened = cache(lambda: Examples(place, train_examples, size))
    identity = content_key("tfds", FORMAT, fingerprint(place.folder), libraries(), train_examples, size)
    arrays = kept("data", content_key("streamed", identity), lambda: _without_inputs(opened()))
    return Streamed(
        sample=arrays["inputs"],
        labels=arrays["labels"],
        read=lambda indices: opened().read(indices),
        fingerprint=identity,
        **_of_data(place, arrays, f" Its inputs, {where}, are read while a model is trained."),
    )


def _without_inputs(examples: Examples) -> dict[str, np.ndarray]:
    """Read all labels, two inputs and the metadata, for the cache.

    Every record is read, so that a damaged file is found; only a sample of images is decoded.
    """
    sample = np.linspace(0, examples.train - 1, min(SAMPLE, examples.train)).astype(int)
    labels = np.concatenate([examples.labels(block) for block in blocks_of(len(examples))])
    data = Data(examples.read([0, 1])[0], labels[:2])
    images = (examples.read(sample[block].tolist())[0] for block in blocks_of(len(sample)))
    return {
        "inputs": data.inputs,
        "labels": labels.astype(data.labels.dtype),
        **_described(examples, data, images, f"{len(sample):,} of "),
    }


def _described(examples: Examples, data: Data, images: Iterable[np.ndarray], some: str = "") -> dict[str, np.ndarray]:
    """Return the metadata of examples, for the cache."""
    over = "those for training" if examples.test else "all examples, those that seeds draw for the test included"
    standardized = data.inputs.dtype == np.uint8 and data.inputs.ndim == 4
    mean, std = standardization(images) if standardized else (np.empty(0), np.empty(0))
    words = (
        f" Each channel is standardized by its mean and standard deviation over {some}{over}." if standardized else ""
    )
    numbers = {"test": examples.test, "validation": examples.validation, "about": f"{examples.description}{words}"}
    return {"mean": mean, "std": std, **{name: np.array(value) for name, value in numbers.items()}}


class Metadata(TypedDict):
    """Keyword arguments for `Data`."""

    test: int
    validation: int
    description: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    drawn: tuple[float, float]


def _of_data(place: DatasetFolder, arrays: Mapping[str, np.ndarray], words: str = "") -> Metadata:
    """Return the cached metadata as keyword arguments for `Data`."""
    return {
        "test": int(arrays["test"]),
        "validation": int(arrays["validation"]),
        "description": f"{place.description}: {arrays['about']}{words}",
        "mean": tuple(arrays["mean"].tolist()),
        "std": tuple(arrays["std"].tolist()),
        "drawn": DRAWN,
    }


def _taken(folder: Path, train_examples: int | None, size: int | None) -> tuple[int, str]:
    """Count the bytes of inputs: in memory if the metadata contain their shape, else in files."""
    info, features = json_of(folder / "dataset_info.json"), json_of(folder / "features.json")
    with suppress(AttributeError, LookupError, TypeError, ValueError):  # described in another way
        key = info["supervisedKeys"]["tuple"]["items"][0]["featureKey"] if "supervisedKeys" in info else "image"
        feature = features["featuresDict"]["features"][key]
        array = feature.get("image") or feature["tensor"]
        shape = [int(side) for side in array["shape"]["dimensions"]]
        shape = [size, size, *shape[2:]] if size else shape
        there = {split["name"]: sum(map(int, split["shardLengths"])) for split in info["splits"]}
        examples = min(there["train"], train_examples or there["train"])
        examples += sum(there.get(name, 0) for name in ("validation", "test"))
        if min(shape, default=1) > 0:
            return examples * math.prod(shape) * (1 if array["dtype"] == "uint8" else 4), "in memory"
    return sum(path.stat().st_size for path in files_of(folder)), "in files"
