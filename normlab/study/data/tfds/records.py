"""Decode and standardize the records of a data set."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from normlab.errors import BadInput, one_line
from normlab.study.data.tfds.compat import Builder, Feature, Features, Label, StoredFeature, stored_features
from normlab.study.data.tfds.folders import DatasetFolder, builder_of, package

Parsed = TypeVar("Parsed")

BLOCK = 1024
"""Examples that are read together."""

SAMPLE = 10_000
"""Examples by which streamed images are standardized."""

DRAWN = (0.1, 0.2)
"""Shares that each seed draws for validation and for the test if there are no such splits."""


class Examples:
    """The examples of a data set in one sequence: for training, for validation, for the test.

    Attributes:
        train: Number of examples for training.
        validation: Number of examples for validation; 0 if each seed draws them.
        test: Number of examples for the test; 0 if each seed draws them.
        shape: Shape of an input.
        description: Counts, and the use of each split.
    """

    def __init__(self, place: DatasetFolder, train_examples: int | None = None, size: int | None = None) -> None:
        """Open the files; see `read`.

        Raises:
            BadInput: If their content does not fit.
        """
        builder = builder_of(place.folder)
        keys = _keys(builder, place)
        shape = builder.info.features[keys[0]].shape
        if size and len(shape) != 3:
            raise BadInput(f"Expected `--image-size` only for images, got `{keys[0]}` of shape {shape}.")
        self._folder, self._size = place.folder, size

        def rows(split: str) -> _Records:
            return _Records(builder, split, keys)

        def labelled(split: str) -> bool:
            return not _without(rows(f"{split}[:1]").labels([0]))

        there = {name: split.num_examples for name, split in builder.info.splits.items() if split.num_examples}
        self.train = _budget(train_examples, there, place)
        held = [name for name in ("validation", "test") if name in there and labelled(name)]
        self.test, self.validation = (*[there[name] for name in reversed(held)], 0, 0)[:2]
        self.description = _description(self.train, held, there)
        self._rows = rows("+".join([f"train[:{self.train}]", *held]))
        self.shape = (size, size, shape[-1]) if size else shape
        if None in self.shape:
            self.shape = self._rows([0])[0][0].shape

    def __len__(self) -> int:
        """Return the number of all examples."""
        return self.train + self.validation + self.test

    def read(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Read some examples: inputs and labels.

        Raises:
            BadInput: If they cannot be read, have no label or differ in shape.
        """
        inputs, labels = self._rows(indices)
        self._check(labels, indices)
        if self._size:
            inputs = [_square(image, self._size) for image in inputs]
        other = next((image.shape for image in inputs if image.shape != self.shape), None)
        if other:
            raise BadInput(
                f"Expected inputs of one shape in `{self._folder}`, got {self.shape} and {other}. Pass `--image-size` "
                "to resize images, or save what are no images as .npz, padded."
            )
        return np.stack(inputs), labels

    def labels(self, indices: Sequence[int]) -> np.ndarray:
        """Read some labels alone.

        Raises:
            BadInput: If they cannot be read or are missing.
        """
        labels = self._rows.labels(indices)
        self._check(labels, indices)
        return labels

    def _check(self, labels: np.ndarray, indices: Sequence[int]) -> None:
        if _without(labels):
            raise BadInput(
                f"Expected a label for each example in `{self._folder}`, got {labels.min()} in example "
                f"{indices[np.argwhere(labels < 0)[0][0]]}. Leave out what has none."
            )


class _Records:
    """The records of some splits, one after another."""

    def __init__(self, builder: Builder, split: str, keys: tuple[str, str]) -> None:
        self._keys, parts = keys, builder.info.splits[split].file_instructions
        self._files, self._ends = [Path(part.filename) for part in parts], np.cumsum([part.take for part in parts])
        self._parsing, raw = _parsing(builder.info.features, keys), package().decode.DeserializeMethod.RAW_BYTES
        self._source = builder.as_data_source(split, deserialize_method=raw)

    def __call__(self, indices: Sequence[int]) -> tuple[list[np.ndarray], np.ndarray]:
        """Read inputs and labels of some records.

        Raises:
            BadInput: If a file is damaged, or an example lacks something.
        """
        inputs, labels = zip(*self._each(self._parsing.example, indices), strict=True)
        return list(inputs), np.asarray(labels)

    def labels(self, indices: Sequence[int]) -> np.ndarray:
        """Read the labels of some records."""
        return np.asarray(self._each(self._parsing.label, indices))

    def _each(self, parse: Callable[[bytes], Parsed], indices: Sequence[int]) -> list[Parsed]:
        found = []
        for index, record in zip(indices, self._records(indices), strict=True):
            try:
                found.append(parse(record))
            except Exception as error:  # of what parses, or decodes
                raise self._unusable(index, record, error) from error
        return found

    def _unusable(self, index: int, record: bytes, error: Exception) -> BadInput:
        """Make the error for a record."""
        folder, missing = self._files[0].parent, _missing(self._keys, record)
        if missing:
            return BadInput(
                f"Expected `{missing}` in each example of `{folder}`, got none in example {index}. Leave out what has "
                "none."
            )
        return BadInput(f"Expected examples that can be decoded in `{folder}`, got example {index}: {one_line(error)}.")

    def _records(self, indices: Sequence[int]) -> Sequence[bytes]:
        try:
            return self._source.__getitems__(indices)
        except Exception as error:  # of the library that reads
            file, error = self._culprit(indices) or (self._files[0].parent, error)
            raise _damaged(file, error) from error

    def _culprit(self, indices: Sequence[int]) -> tuple[Path, Exception] | None:
        """Find the file that cannot be read, and the reason."""
        numbers = np.searchsorted(self._ends, indices, side="right")
        for number in np.unique(numbers):
            try:
                self._source.__getitems__(np.asarray(indices)[numbers == number].tolist())
            except Exception as error:
                return self._files[number], error
        return None


def standardization(blocks: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean and standard deviation of each channel of images of uint8, scaled to [0, 1]; at least 1 / 255.

    Args:
        blocks: Images, each block of shape (examples, height, width, channels).
    """
    n, total, squares = 0, np.zeros(()), np.zeros(())
    for block in blocks:
        values = block.reshape(-1, block.shape[-1]).astype(np.float64)
        n, total, squares = n + len(values), total + values.sum(0), squares + (values * values).sum(0)  # all exact
    mean = total / n
    return mean / 255, np.sqrt(np.maximum(squares / n - mean**2, 1)) / 255


def blocks_of(n: int) -> list[range]:
    """Cut `n` examples into blocks that are decoded together."""
    return [range(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]


def _keys(builder: Builder, place: DatasetFolder) -> tuple[str, str]:
    """Find the names of inputs and labels.

    Raises:
        BadInput: If the data set has none.
    """
    features, named = builder.info.features, builder.info.supervised_keys
    keys = named if named and len(named) == 2 and all(isinstance(key, str) for key in named) else ("image", "label")
    for key in keys:
        if key not in features or not _is_number(features[key]):
            there = ", ".join(f"`{name}` ({type(feature).__name__})" for name, feature in sorted(features.items()))
            what = "labels" if key == keys[1] else "inputs"
            raise BadInput(
                f"Expected {what} in `{key}` of `{place.folder}`, numbers or classes, got {there}. Save what can be "
                f"learned from it as .npz, and pass `--data npz:PATH`."
            )
    return keys


def _without(labels: np.ndarray) -> bool:
    """Check for a missing label, which is stored as class -1."""
    return labels.dtype.kind == "i" and bool((labels < 0).any())


def _is_number(feature: Feature) -> bool:
    """Check for a feature that is one array of numbers."""
    info = feature.get_tensor_info()
    return not isinstance(info, Mapping) and np.dtype(info.np_dtype).kind in "biuf"


def _budget(train_examples: int | None, there: Mapping[str, int], place: DatasetFolder) -> int:
    """Return the number of examples for training."""
    if "train" not in there:
        raise BadInput(f"Expected a split `train` in `{place.folder}`, got {', '.join(there) or 'no examples'}.")
    if train_examples and train_examples > there["train"]:
        raise BadInput(
            f"Expected `--train-examples` up to {there['train']:,}, which is the split `train` of {place.description}, "
            f"got {train_examples:,}."
        )
    return train_examples or there["train"]


def _description(train: int, held: Sequence[str], there: Mapping[str, int]) -> str:
    """Describe the number of examples and the use of each split."""
    budget = "" if train == there["train"] else f" (the first of {there['train']:,})"
    drawn, tested = (f"{share:.0%}" for share in DRAWN)
    if not held:
        rule = (
            f". There is no split to test on: each seed draws {drawn} of them for validation and {tested} for the test."
        )
    elif len(held) == 2:
        rule = f", {there['validation']:,} for validation and {there['test']:,} for the test, each a split of its own."
    else:
        none = "none for validation" if held == ["test"] else "no other one with labels"
        rule = (
            f", {there[held[0]]:,} for the test, which is the split `{held[0]}`. There is {none}: each seed draws "
            f"{drawn} of those for training."
        )
    return f"{train:,} examples for training{budget}{rule}"


class _Parsing(NamedTuple):
    """Parsers of a record.

    Attributes:
        example: `record -> its input and label`.
        label: `record -> its label`.
    """

    example: Callable[[bytes], tuple[np.ndarray, Label]]
    label: Callable[[bytes], Label]


def _parsing(features: Features, keys: tuple[str, str]) -> _Parsing:
    """Make the parsers: plain images with classes are read here, in a third of the time of TensorFlow Datasets."""
    tfds, (key, label) = package(), keys
    image, kind = features[key], features[label].get_tensor_info()
    encoded = isinstance(image, tfds.features.Image) and image.np_dtype == np.uint8 and image.shape[-1] in (1, 3)
    if not encoded or kind.shape != () or np.dtype(kind.np_dtype).kind != "i":

        def parsed(record: bytes) -> Mapping[str, Label]:
            row = features.deserialize_example_np(record)
            if any(row[name] is None for name in keys):
                raise ValueError("something is missing")
            return row

        return _Parsing(
            lambda record: (np.asarray((row := parsed(record))[key]), row[label]), lambda record: parsed(record)[label]
        )
    decode = _decoder(image.shape[-1])

    def label_of(row: Mapping[str, StoredFeature]) -> int:
        return row[label].int64_list.value[0]

    return _Parsing(
        lambda record: (decode((row := stored_features(record))[key].bytes_list.value[0]), label_of(row)),
        lambda record: label_of(stored_features(record)),
    )


def _missing(keys: Iterable[str], record: bytes) -> str | None:
    """Find the first key that is missing in a record."""
    with suppress(Exception):  # it may be no record at all
        row = stored_features(record)
        for key in keys:
            if not any(values.value for _, values in row[key].ListFields()):
                return key
    return None


def _decoder(channels: int) -> Callable[[bytes], np.ndarray]:
    """Make a decoder of images of uint8 with this many channels, which ignores the orientation of the camera."""
    import cv2

    colours = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB

    def decode(content: bytes) -> np.ndarray:
        image = None
        with suppress(cv2.error):  # for no bytes at all, say
            image = cv2.imdecode(np.frombuffer(content, np.uint8), colours | cv2.IMREAD_IGNORE_ORIENTATION)
        if image is None:
            raise ValueError(f"an image of {len(content)} bytes that OpenCV cannot decode")
        return image.reshape(*image.shape[:2], channels)

    return decode


def _square(image: np.ndarray, size: int) -> np.ndarray:
    """Resize the shorter side, and cut out the centre."""
    import cv2

    scale = size / min(image.shape[:2])
    height, width = (max(size, round(side * scale)) for side in image.shape[:2])
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    top, left = (height - size) // 2, (width - size) // 2
    return resized.reshape(height, width, -1)[top : top + size, left : left + size]


def _damaged(path: Path, error: Exception) -> BadInput:
    """Make the error for a file."""
    text = str(error)
    if "Too many open files" in text:
        return BadInput(
            f"Expected to have all ArrayRecord files in `{path.parent}` open together, got {one_line(error)}. Allow "
            "more with `ulimit -n`."
        )
    if "out of bound" in text:
        return BadInput(
            f"Expected as many examples in `{path}` as `dataset_info.json` beside it says, got fewer: "
            f"{one_line(error)}. Copy or build both again."
        )
    if not path.exists():
        what = "is missing"
    elif "Postscript" in text or "64KB" in text:  # riegeli's words for a file that does not end as it should
        what = f"is cut off, at {path.stat().st_size:,} bytes"
    else:
        what = f"is damaged{' (wrong checksum)' if 'hash mismatch' in text else ''}"
    return BadInput(f"Expected whole ArrayRecord files, got `{path}`, which {what}: {one_line(error)}. Copy it again.")
