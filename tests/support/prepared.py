"""Write small data sets as ArrayRecord files, as TensorFlow Datasets does, without TensorFlow."""

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

Row = Mapping[str, Any]


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Builder that writes rows in their order."""

    name = "tiny"
    VERSION = tfds.core.Version("1.0.0")

    def __init__(
        self, root: Path, version: str, rows: Mapping[str, Sequence[Row]], features: Mapping[str, Any], keys: Any
    ) -> None:
        self._given, self.VERSION = (rows, features, keys), tfds.core.Version(version)
        super().__init__(data_dir=root, file_format="array_record")

    def _info(self) -> Any:
        _, features, keys = self._given
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(dict(features)),
            supervised_keys=keys,
            disable_shuffling=True,
        )

    def _split_generators(self, _: Any) -> Mapping[str, Iterator[tuple[int, Row]]]:
        return {split: self._generate_examples(rows) for split, rows in self._given[0].items()}

    def _generate_examples(self, rows: Sequence[Row]) -> Iterator[tuple[int, Row]]:
        return iter(enumerate(rows))


def write(
    root: Path,
    rows: Mapping[str, Sequence[Row]],
    features: Mapping[str, Any],
    *,
    keys: Any = ("image", "label"),
    version: str = "1.0.0",
    shards: int = 1,
) -> Path:
    """Write a data set `tiny`, and return the folder of its version."""
    builder = Builder(root, version, rows, features, keys)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(num_shards=shards))
    return root / "tiny" / version


def leave_out(path: Path, index: int, key: str) -> None:
    """Rewrite a file without one feature of one example."""
    reader = array_record_module.ArrayRecordReader(str(path))
    records = reader.read_all()
    reader.close()
    example = tf_example_pb2.Example.FromString(records[index])
    del example.features.feature[key]
    records[index] = example.SerializeToString()
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()


def png(pixels: np.ndarray) -> io.BytesIO:
    """Encode an image as PNG."""
    return io.BytesIO(cv2.imencode(".png", pixels[..., ::-1])[1].tobytes())


def images(n: int, shape: tuple[int, ...] = (6, 5, 3), seed: int = 0) -> np.ndarray:
    """Draw images of random pixels."""
    return np.random.default_rng(seed).integers(0, 256, (n, *shape)).astype(np.uint8)


def of_images(pixels: Sequence[np.ndarray], labels: Sequence[int]) -> list[Row]:
    """Make rows of images and their classes."""
    return [{"image": png(image), "label": int(label)} for image, label in zip(pixels, labels, strict=True)]
