"""Data sets of TensorFlow Datasets in ArrayRecord files, read without TensorFlow."""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from normlab.study.cache import kept
from normlab.study.config import content_key
from normlab.study.data import Data
from normlab.study.errors import BadInput, nearest, one_line
from normlab.study.extras import importing, require
from normlab.study.streamed import Streamed

FORMAT = 1
"""To be raised when the same files are to give other arrays than before."""

BLOCK = 1024
"""Examples that are read together."""

RESIDENT_BYTES = 2 * 2**30
"""Larger inputs are read while a model is trained: the same on every machine, whatever its memory, since all machines
are to make the same runs."""

SAMPLE = 10_000
"""Examples that such data are standardized by."""

DRAWN = (0.1, 0.2)
"""Shares that each seed draws for validation and for the test where there is no such split."""


def read(
    name: str,
    data_dir: str | None = None,
    train_examples: int | None = None,
    size: int | None = None,
    stream: bool | None = None,
) -> Data:
    """Read a data set; its arrays are kept on disk, by the contents of its files.

    Where there are splits `validation` and `test`, that is what they are for. Where there is one of them, it is for the
    test, and each seed draws examples for validation from `train`; where there is none, for the test, too. A split
    `test` without labels is none.

    Args:
        name: `NAME`, `NAME/CONFIG`, or one of these and `:VERSION`; the newest version that there is unless given.
        data_dir: Where data sets are; `TFDS_DATA_DIR` or `~/tensorflow_datasets` unless given.
        train_examples: How many of the split `train` there are to be, from the first on; all of them unless given.
        size: Of square images: the shorter side is resized to it, and what the longer one has more is cut off at both
            ends. Images stay as they are unless given.
        stream: Whether inputs are read while a model is trained. Unless given, where they take over `RESIDENT_BYTES`;
            where that cannot be told before they are read, where their files do.

    Raises:
        BadInput: If there is no such data set, or something else in its files.
    """
    place = located(name, data_dir)
    taken, where = _taken(place.folder, train_examples, size)
    if taken > RESIDENT_BYTES if stream is None else stream:
        return _streamed(place, train_examples, size, f"{taken / 2**20:,.0f} MiB {where}")
    key = content_key("tfds", FORMAT, contents(place.folder), train_examples, size)
    arrays = kept("data", key, lambda: _to_arrays(Examples(place, train_examples, size)))
    return Data(arrays["inputs"], arrays["labels"], **_of_data(place, arrays))


class Place(NamedTuple):
    """Where a data set is.

    Attributes:
        folder: Of one version.
        about: Its name and version, in words.
    """

    folder: Path
    about: str


def located(name: str, data_dir: str | None = None) -> Place:
    """Find the folder of a data set; see `read`.

    Raises:
        BadInput: If there is none, or not of this version.
    """
    name, _, version = name.partition(":")
    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    known = _versions(root / name)
    if not known:
        raise BadInput(f"Expected the data set `{name}` in `{root / name}`, got {_instead(root, name)}")
    if version and version not in known:
        raise BadInput(f"Expected version {version} of `{name}` in `{root / name}`, got {', '.join(known)}.")
    newest = "" if version or len(known) == 1 else f", the newest of {', '.join(known)}"
    version = version or known[-1]
    return Place(root / name / version, f"`{name}` {version} of TensorFlow Datasets{newest}")


def contents(folder: Path) -> str:
    """The sha256 of the names and contents of what is read of a folder."""
    digest = hashlib.sha256()
    for path in _files(folder):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()} ".encode())
    return digest.hexdigest()


def fingerprint(folder: Path) -> str:
    """The sha256 of the names, sizes and ends of what is read of a folder; all of a small file is its end."""
    digest = hashlib.sha256()
    for path in _files(folder):
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(max(0, size - 2**20))
            digest.update(f"{path.name} {size} {hashlib.sha256(file.read()).hexdigest()} ".encode())
    return digest.hexdigest()


class Examples:
    """The examples of a data set in one row: for training, for validation, for the test.

    Attributes:
        train: How many there are for training.
        validation: How many for validation; 0 where each seed draws them.
        test: How many for the test, likewise.
        shape: Of an input.
        about: Counts, and what is for what, in words.
    """

    def __init__(self, place: Place, train_examples: int | None = None, size: int | None = None) -> None:
        """Open the files; see `read`.

        Raises:
            BadInput: If there is something else in them.
        """
        builder = _builder(place.folder)
        keys = _keys(builder, place)
        shape = builder.info.features[keys[0]].shape
        if size and len(shape) != 3:
            raise BadInput(f"Expected `--image-size` only for images, got `{keys[0]}` of shape {shape}.")
        self._folder, self._size = place.folder, size

        def rows(split: str) -> _Rows:
            return _Rows(builder, split, keys)

        def labelled(split: str) -> bool:
            return not _without(rows(f"{split}[:1]").labels([0]))

        there = {name: split.num_examples for name, split in builder.info.splits.items() if split.num_examples}
        self.train = _budget(train_examples, there, place)
        held = [name for name in ("validation", "test") if name in there and labelled(name)]
        self.test, self.validation = (*[there[name] for name in reversed(held)], 0, 0)[:2]
        self.about = _about(self.train, held, there)
        self._rows = rows("+".join([f"train[:{self.train}]", *held]))
        self.shape = (size, size, shape[-1]) if size else shape
        if None in self.shape:
            self.shape = self._rows([0])[0][0].shape

    def __len__(self) -> int:
        """How many there are in all."""
        return self.train + self.validation + self.test

    def read(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Read some examples: inputs and labels.

        Raises:
            BadInput: If they cannot be read, have no label or are not of one shape.
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
            BadInput: If they cannot be read, or there is none.
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


class _Rows:
    """The records of some splits, one behind the other."""

    def __init__(self, builder: Any, split: str, keys: tuple[str, str]) -> None:
        self._keys, parts = keys, builder.info.splits[split].file_instructions
        self._files, self._ends = [Path(part.filename) for part in parts], np.cumsum([part.take for part in parts])
        self._parsing, raw = _parsing(builder.info.features, keys), _package().decode.DeserializeMethod.RAW_BYTES
        self._source = builder.as_data_source(split, deserialize_method=raw)

    def __call__(self, indices: Sequence[int]) -> tuple[list[np.ndarray], np.ndarray]:
        """Read inputs and labels of some.

        Raises:
            BadInput: If a file is damaged, or an example lacks something.
        """
        inputs, labels = zip(*self._each(self._parsing.example, indices), strict=True)
        return list(inputs), np.asarray(labels)

    def labels(self, indices: Sequence[int]) -> np.ndarray:
        """Read labels alone, likewise."""
        return np.asarray(self._each(self._parsing.label, indices))

    def _each(self, parse: Callable[[bytes], Any], indices: Sequence[int]) -> list[Any]:
        found = []
        for index, record in zip(indices, self._records(indices), strict=True):
            try:
                found.append(parse(record))
            except Exception as error:  # of what parses, or decodes
                raise self._unusable(index, record, error) from error
        return found

    def _unusable(self, index: int, record: bytes, error: Exception) -> BadInput:
        """What is wrong with a record."""
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
        """Which file cannot be read, and why."""
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


def _to_arrays(examples: Examples) -> dict[str, np.ndarray]:
    """All examples, and what there is to say about them."""
    inputs, labels = examples.read([0])
    inputs = np.empty((len(examples), *examples.shape), inputs.dtype)
    labels = np.empty((len(examples), *labels.shape[1:]), labels.dtype)
    for block in _blocks(len(examples)):
        inputs[block], labels[block] = examples.read(block)
    data = Data(inputs, labels)  # checks and converts
    return {
        "inputs": data.inputs,
        "labels": data.labels,
        **_described(examples, data, (data.inputs[block] for block in _blocks(examples.train))),
    }


def _streamed(place: Place, train_examples: int | None, size: int | None, where: str) -> Streamed:
    """A data set that is read while a model is trained; what is kept of it are labels, and what there is to say."""
    opened = cache(lambda: Examples(place, train_examples, size))
    mark = content_key("tfds", FORMAT, fingerprint(place.folder), _libraries(), train_examples, size)
    arrays = kept("data", content_key("streamed", mark), lambda: _without_inputs(opened()))
    return Streamed(
        arrays["inputs"],
        arrays["labels"],
        read=lambda indices: opened().read(indices),
        fingerprint=mark,
        **_of_data(place, arrays, f" Its inputs, {where}, are read while a model is trained."),
    )


def _without_inputs(examples: Examples) -> dict[str, np.ndarray]:
    """All labels, two inputs, and what there is to say about all of them.

    Every record is read, so that a damaged file is found; of images, only a sample is decoded.
    """
    sample = np.linspace(0, examples.train - 1, min(SAMPLE, examples.train)).astype(int)
    labels = np.concatenate([examples.labels(block) for block in _blocks(len(examples))])
    data = Data(examples.read([0, 1])[0], labels[:2])
    images = (examples.read(sample[block].tolist())[0] for block in _blocks(len(sample)))
    return {
        "inputs": data.inputs,
        "labels": labels.astype(data.labels.dtype),
        **_described(examples, data, images, f"{len(sample):,} of "),
    }


def _described(examples: Examples, data: Data, images: Iterable[np.ndarray], some: str = "") -> dict[str, np.ndarray]:
    """What there is to say about examples."""
    over = "those for training" if examples.test else "all examples, those that seeds draw for the test included"
    standardized = data.inputs.dtype == np.uint8 and data.inputs.ndim == 4
    mean, std = standardization(images) if standardized else (np.empty(0), np.empty(0))
    words = (
        f" Each channel is standardized by its mean and standard deviation over {some}{over}." if standardized else ""
    )
    numbers = {"test": examples.test, "validation": examples.validation, "about": f"{examples.about}{words}"}
    return {"mean": mean, "std": std, **{name: np.array(value) for name, value in numbers.items()}}


def _of_data(place: Place, arrays: Mapping[str, np.ndarray], words: str = "") -> dict[str, Any]:
    """That as fields of `Data`."""
    return {
        "test": int(arrays["test"]),
        "validation": int(arrays["validation"]),
        "about": f"{place.about}: {arrays['about']}{words}",
        "mean": tuple(arrays["mean"].tolist()),
        "std": tuple(arrays["std"].tolist()),
        "drawn": DRAWN,
    }


def _blocks(n: int) -> list[range]:
    return [range(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]


def _package() -> Any:
    """TensorFlow Datasets, with all that it needs to read."""
    require("data")
    with importing("data"):
        import cv2  # noqa: F401
        import tensorflow_datasets as tfds
        from array_record.python import array_record_data_source  # noqa: F401
    return tfds


def _libraries() -> list[str]:
    """Versions of what reads and decodes; to import all of it would take seconds."""
    require("data")
    with importing("data"):
        import cv2

        return [cv2.__version__, version_of("tensorflow-datasets"), version_of("array_record")]


def _builder(folder: Path) -> Any:
    """What TensorFlow Datasets knows of a folder.

    Raises:
        BadInput: If it is no data set, or one in other files.
    """
    told, _ = _json(folder / "dataset_info.json"), _json(folder / "features.json")
    formats = [told.get("fileFormat") or "tfrecord", *told.get("alternativeFileFormats", [])]
    if "array_record" not in formats:
        raise BadInput(
            f"Expected ArrayRecord files in `{folder}`, got {' and '.join(formats)}. Build the data set in another "
            f"folder: {_command(folder.parent.name, 'DIR')}."
        )
    tfds = _package()
    try:
        return tfds.builder_from_directory(folder, file_format="array_record")
    except Exception as error:  # whatever is not as it should be in what describes the data
        raise BadInput(f"Expected a data set of TensorFlow Datasets in `{folder}`, got {one_line(error)}.") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        raise BadInput(f"Expected `{path}`, which is missing: it was never finished. Build it again.") from None
    except (OSError, ValueError, TypeError) as error:
        raise BadInput(f"Expected JSON in `{path}`, got {one_line(error)}. Copy or build it again.") from error


def _keys(builder: Any, place: Place) -> tuple[str, str]:
    """The names of inputs and labels.

    Raises:
        BadInput: If there are none.
    """
    features, told = builder.info.features, builder.info.supervised_keys
    keys = told if told and len(told) == 2 and all(isinstance(key, str) for key in told) else ("image", "label")
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
    """Whether one is missing, which is written as class -1."""
    return labels.dtype.kind == "i" and bool((labels < 0).any())


def _is_number(feature: Any) -> bool:
    """Whether a feature is one array of numbers."""
    info = feature.get_tensor_info()
    return not isinstance(info, Mapping) and np.dtype(info.np_dtype).kind in "biuf"


def _budget(train_examples: int | None, there: Mapping[str, int], place: Place) -> int:
    """How many examples there are to be for training."""
    if "train" not in there:
        raise BadInput(f"Expected a split `train` in `{place.folder}`, got {', '.join(there) or 'no examples'}.")
    if train_examples and train_examples > there["train"]:
        raise BadInput(
            f"Expected `--train-examples` up to {there['train']:,}, which is the split `train` of {place.about}, got "
            f"{train_examples:,}."
        )
    return train_examples or there["train"]


def _about(train: int, held: Sequence[str], there: Mapping[str, int]) -> str:
    """How many examples there are, and which split is for what."""
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
    """What a record holds.

    Attributes:
        example: Its input and label.
        label: That alone.
    """

    example: Callable[[bytes], tuple[np.ndarray, Any]]
    label: Callable[[bytes], Any]


def _parsing(features: Any, keys: tuple[str, str]) -> _Parsing:
    """Leave all to TensorFlow Datasets but plain images with classes, which are read here in a third of the time."""
    tfds, (key, label) = _package(), keys
    image, kind = features[key], features[label].get_tensor_info()
    encoded = isinstance(image, tfds.features.Image) and image.np_dtype == np.uint8 and image.shape[-1] in (1, 3)
    if not encoded or kind.shape != () or np.dtype(kind.np_dtype).kind != "i":

        def parsed(record: bytes) -> Mapping[str, Any]:
            row = features.deserialize_example_np(record)
            if any(row[name] is None for name in keys):
                raise ValueError("something is missing")
            return row

        return _Parsing(
            lambda record: (np.asarray((row := parsed(record))[key]), row[label]), lambda record: parsed(record)[label]
        )
    decode = _decoder(image.shape[-1])

    def label_of(row: Any) -> int:
        return row[label].int64_list.value[0]

    return _Parsing(
        lambda record: (decode((row := _row(record))[key].bytes_list.value[0]), label_of(row)),
        lambda record: label_of(_row(record)),
    )


def _row(record: bytes) -> Any:
    """The features of a record by name, as they are stored."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(record).features.feature  # pyright: ignore[reportAttributeAccessIssue]


def _missing(keys: Iterable[str], record: bytes) -> str | None:
    """The first key that a record has nothing for."""
    with suppress(Exception):  # it may be no record at all
        row = _row(record)
        for key in keys:
            if not any(values.value for _, values in row[key].ListFields()):
                return key
    return None


def _decoder(channels: int) -> Callable[[bytes], np.ndarray]:
    """Decode images of uint8 with so many channels, as they are stored, however a camera was held."""
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
    """What is wrong with a file."""
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


def _taken(folder: Path, train_examples: int | None, size: int | None) -> tuple[int, str]:
    """How many bytes inputs take, and where: in memory if what describes them tells their shape, else in files."""
    told, features = _json(folder / "dataset_info.json"), _json(folder / "features.json")
    with suppress(AttributeError, LookupError, TypeError, ValueError):  # described in another way
        key = told["supervisedKeys"]["tuple"]["items"][0]["featureKey"] if "supervisedKeys" in told else "image"
        feature = features["featuresDict"]["features"][key]
        array = feature.get("image") or feature["tensor"]
        shape = [int(side) for side in array["shape"]["dimensions"]]
        shape = [size, size, *shape[2:]] if size else shape
        there = {split["name"]: sum(map(int, split["shardLengths"])) for split in told["splits"]}
        examples = min(there["train"], train_examples or there["train"])
        examples += sum(there.get(name, 0) for name in ("validation", "test"))
        if min(shape, default=1) > 0:
            return examples * math.prod(shape) * (1 if array["dtype"] == "uint8" else 4), "in memory"
    return sum(path.stat().st_size for path in _files(folder)), "in files"


def _files(folder: Path) -> list[Path]:
    """What is read of a folder; there may be files of other formats, too."""
    described = ("dataset_info.json", "features.json")
    return sorted(path for path in folder.iterdir() if path.name in described or ".array_record" in path.name)


_VERSION = r"\d+\.\d+\.\d+"


def _versions(folder: Path) -> list[str]:
    """The versions in a folder, the newest last."""
    names = [path.name for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    versions = [name for name in names if re.fullmatch(_VERSION, name)]
    return sorted(versions, key=lambda version: tuple(map(int, version.split("."))))


def _instead(root: Path, name: str) -> str:
    """What there is instead of a data set, and what to do."""
    if not root.is_dir():
        there = f"no folder `{root}`. Pass `--data-dir`, or build the data set"
    elif configs := _sets(root / name):
        return f"its configurations {', '.join(configs)}. Pass `--data tfds:{name}/{configs[0]}`, for instance."
    elif "/" in name and re.fullmatch(_VERSION, Path(name).name):
        return f"a version behind a slash. Pass `--data tfds:{Path(name).parent.as_posix()}:{Path(name).name}`."
    else:
        there = f"none there. {nearest(name, _sets(root))} Pass another `--data-dir`, or build the data set"
    return f"{there}: {_command(name, root)}."


def _sets(root: Path) -> list[str]:
    """The data sets in a folder, or the configurations of one."""
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    return [path.name for path in folders if _versions(path) or any(map(_versions, path.iterdir()))]


def _command(name: str, root: Any) -> str:
    return f"`tfds build {name} --data_dir {root} --file_format array_record`, which needs TensorFlow"
