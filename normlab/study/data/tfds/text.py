"""Read a text of TensorFlow Datasets without TensorFlow."""

from normlab.errors import BadInput, one_line
from normlab.study.data.tfds.compat import stored_features
from normlab.study.data.tfds.folders import builder_of, located, package

_ORDER = ("train", "validation", "test")


def read_text(name: str) -> tuple[str, bytes]:
    """Read the feature `text` of all examples, those of `train` first, then those of `validation` and `test`.

    Args:
        name: `NAME`, such as `tiny_shakespeare`, or `NAME:VERSION`; see `read.read`.

    Returns:
        Name and version of the data set, and the text.

    Raises:
        BadInput: If there is no such data set, or no text in it.
    """
    place = located(name)
    builder = builder_of(place.folder)
    if "text" not in builder.info.features:
        known = ", ".join(feature for feature, _ in builder.info.features.items())
        raise BadInput(f"Expected a feature `text` in `{place.folder}`, got {known}. Choose a data set of text.")
    raw, parts = package().decode.DeserializeMethod.RAW_BYTES, list[bytes]()
    for split in sorted(builder.info.splits, key=lambda split: (*_ORDER, split).index(split)):
        source = builder.as_data_source(split, deserialize_method=raw)
        try:
            records = source.__getitems__(range(builder.info.splits[split].num_examples))
            parts += [stored_features(record)["text"].bytes_list.value[0] for record in records]
        except Exception as error:  # of the libraries that read
            raise BadInput(
                f"Expected records with a text in `{place.folder}`, got {one_line(error)}. Copy or build it again."
            ) from error
    return place.description, b"".join(parts)
