"""The parts of TensorFlow Datasets 4.9.10 and array_record 0.8.6 that are used, with precise types.

The types of TensorFlow Datasets are trees of anything; `tf_example_pb2` and `__getitems__` are not documented.
"""

from collections.abc import ItemsView, Mapping, Sequence
from typing import Protocol

import numpy as np

Label = np.ndarray | np.generic | int


class TensorInfo(Protocol):
    """Shape and type of a feature."""

    shape: tuple[int | None, ...]
    np_dtype: np.dtype


class Feature(Protocol):
    """A feature of a data set, such as an image."""

    shape: tuple[int, ...]
    np_dtype: np.dtype

    def get_tensor_info(self) -> TensorInfo:
        """Return its shape and type."""
        ...


class Features(Protocol):
    """The features of a data set, by name."""

    def __getitem__(self, name: str) -> Feature: ...

    def __contains__(self, name: str) -> bool: ...

    def items(self) -> ItemsView[str, Feature]:
        """Return names and features."""
        ...

    def deserialize_example_np(self, record: bytes) -> Mapping[str, Label]:
        """Decode a record."""
        ...


class FilePart(Protocol):
    """The part of a file that belongs to a split."""

    filename: str
    take: int


class Split(Protocol):
    """A split of a data set."""

    num_examples: int
    file_instructions: Sequence[FilePart]


class Info(Protocol):
    """Metadata of a data set."""

    features: Features
    splits: Mapping[str, Split]
    supervised_keys: tuple[str, str] | None


class DataSource(Protocol):
    """Records of ArrayRecord files."""

    def __getitems__(self, indices: Sequence[int]) -> Sequence[bytes]: ...


class Builder(Protocol):
    """A data set that is prepared on disk."""

    info: Info

    def as_data_source(self, split: str, *, deserialize_method: object) -> DataSource:
        """Open the files of a split."""
        ...


class _Values(Protocol):
    value: Sequence[int] | Sequence[bytes]


class StoredFeature(Protocol):
    """A feature of a record, as it is stored."""

    int64_list: "_Integers"
    bytes_list: "_Bytes"

    def ListFields(self) -> Sequence[tuple[object, _Values]]:
        """Return the lists that have values."""
        ...


class _Integers(Protocol):
    value: Sequence[int]


class _Bytes(Protocol):
    value: Sequence[bytes]


def stored_features(record: bytes) -> Mapping[str, StoredFeature]:
    """Parse the features of a record by name, without decoding them."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(record).features.feature  # pyright: ignore[reportAttributeAccessIssue]
