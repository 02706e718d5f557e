"""The data of a comparison: `--data` and its options. NumPy only until something is read."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

import numpy as np

from normlab.errors import BadInput
from normlab.expect import Kind, refusal
from normlab.study.data.dataset import AUGMENTATIONS, Data, Dataset, digits, from_npz
from normlab.study.data.splits import sizes
from normlab.study.data.streaming import Streamed
from normlab.study.design.options import FILE, FOLDER, WHOLE, YES_NO, Option


class DataOptions(TypedDict, total=False):
    """Options of `chosen`, by name."""

    data: str
    data_dir: str | None
    train_examples: int | None
    augment: Sequence[str]
    image_size: int | None
    stream: bool | None


def chosen(
    data: str = "digits",
    data_dir: str | None = None,
    train_examples: int | None = None,
    augment: Sequence[str] = (),
    image_size: int | None = None,
    stream: bool | None = None,
) -> Data | Streamed:
    """Load the data that the options of the command line choose; pass it to `supervised` with `DATA_OPTIONS`.

    Args:
        data: `digits`; `npz:PATH`, a user's own arrays, see `load`; or `tfds:NAME[:VERSION]`, see `tfds.read.read`.
        data_dir: Folder of the data sets of TensorFlow Datasets.
        train_examples: A budget: only the first examples outside of given validation and test sets are used.
        augment: See `Data`.
        image_size: Size to which images of TensorFlow Datasets are resized.
        stream: Whether inputs of TensorFlow Datasets are read during training; large ones are unless given.

    Raises:
        BadInput: If there are no such data.
    """
    kind, name = _parts(data)
    if kind == "tfds":
        from normlab.study.data.tfds.read import read

        found = read(name, data_dir, train_examples, image_size, stream)
        if train_examples:
            _check_enough(found, train_examples)
    else:
        for option, value in (("--data-dir", data_dir), ("--image-size", image_size), ("--stream", stream)):
            if value:
                raise BadInput(f"Expected `{option}` only with data `tfds:NAME`, got it with `{data}`.")
        found = digits() if kind == "digits" else from_npz(name)
        found = _first(found, train_examples) if train_examples else found
    return replace(found, augment=tuple(augment)) if augment else found


def _first(data: Data, n: int) -> Data:
    """Keep the first examples outside of given validation and test sets, and these sets."""
    free = len(data.labels) - data.validation - data.test
    if n > free:
        raise BadInput(
            f"Expected `--train-examples` up to {free:,}, which is all that there are, got {n:,}. Choose fewer."
        )
    stay = np.r_[:n, free : len(data.labels)]
    validation, test = (part / free if part >= 1 else part for part in data.drawn)
    first = replace(data, inputs=data.inputs[stay], labels=data.labels[stay], drawn=(validation, test))
    _check_enough(first, n)
    return replace(first, description=_description(data, first))


def _description(data: Data, first: Data) -> str:
    """Describe data of which only the first are left, and the new division of the digits."""
    before, n = (len(one.labels) - one.validation - one.test for one in (data, first))
    what, divided, _ = data.description.partition("; each seed has its own split into")
    if not divided:
        outside = " that are not given for validation or test" if data.test else ""
        return f"{what} Of the {before:,} examples{outside}, the first {n:,} are used.".strip()
    train, validating = sizes(first)
    return (
        f"{what}, of which the first {n:,} are used{divided} {train:,} for training, {validating:,} for validation and "
        f"{n - train - validating:,} for the test."
    )


def _check_enough(data: Dataset, n: int) -> None:
    """Refuse a budget that is too small for the sets that seeds draw."""
    try:
        sizes(data)
    except ValueError:
        raise BadInput(
            f"Expected `--train-examples` to leave examples to train on and for each part that seeds draw, got {n:,}. "
            "Choose more."
        ) from None


def _parts(data: object) -> tuple[str, str]:
    """Split the name of data into kind and name."""
    kind, _, name = data.partition(":") if isinstance(data, str) else ("", "", "")
    if data != "digits" and not (kind in ("npz", "tfds") and name):
        raise refusal("data to be `digits`, `npz:PATH` or `tfds:NAME[:VERSION]`", data, _ONE_OF_THEM)
    return kind, name


def _absolute(data: object) -> str:
    """Make the path in the name of data absolute, for workers in other folders."""
    kind, name = _parts(data)
    return f"npz:{FILE.convert(name)}" if kind == "npz" else str(data)


def _named(data: str) -> str:
    """Shorten the name of data for the name of a folder."""
    kind, name = _parts(data)
    return Path(name).stem if kind == "npz" else (name or kind).replace("/", "-").replace(":", "-")


def _text(value: object) -> str:
    """Make the path of a text absolute, for workers in other folders."""
    if isinstance(value, str) and value.startswith("tfds:") and value != "tfds:":
        return value
    return str(FILE.convert(value))


def _way(value: object) -> str:
    if not isinstance(value, str) or value not in AUGMENTATIONS:
        raise ValueError(value)
    return value


_ONE_OF_THEM = "Write one of them."

DATA_OPTIONS = (
    Option(
        name="data",
        kind=Kind("`digits`, `npz:PATH` or `tfds:NAME[:VERSION]`", _absolute, _ONE_OF_THEM),
        metavar="DATA",
        help="`digits` (the default), `npz:PATH` for arrays of your own, or `tfds:NAME[:VERSION]` for a data set of "
        "TensorFlow Datasets that is on this disk",
        folder=_named,
    ),
    Option(
        name="data_dir",
        kind=Kind(FOLDER.words, lambda value: str(FOLDER.convert(value).expanduser().resolve()), FOLDER.remedy),
        metavar="FOLDER",
        help="where data sets of TensorFlow Datasets are (default: $TFDS_DATA_DIR, else ~/tensorflow_datasets)",
    ),
    Option(
        name="train_examples",
        kind=WHOLE,
        metavar="N",
        help="a budget: only the first N examples for training are used; validation is drawn out of them, and the test "
        "where the data bring none",
        folder=lambda n: f"{n}",
    ),
    Option(
        name="augment",
        kind=Kind(f"one of {', '.join(AUGMENTATIONS)}", _way, _ONE_OF_THEM),
        many=True,
        metavar="WAY",
        help="change images at random in training: crop (out of 4 black pixels around) and flip (left to right)",
        folder="-".join,
    ),
    Option(
        name="image_size",
        kind=WHOLE,
        metavar="N",
        help="resize the shorter side of the images of a data set to N pixels, and cut out the centre",
        folder=lambda size: f"{size}px",
    ),
    Option(
        name="stream",
        kind=YES_NO,
        help="read inputs from disk while a model is trained (default: where they take over 2 GiB)",
    ),
)
"""For `normlab.study.supervised`, whose `data` is `chosen`."""

TEXT_OPTION = Option(
    name="text",
    kind=Kind("the path of a file or `tfds:NAME`", _text, "Write one of them."),
    metavar="TEXT",
    help="text to learn, as the path of a file in UTF-8, or `tfds:NAME` for a text of TensorFlow Datasets that is in "
    "$TFDS_DATA_DIR or ~/tensorflow_datasets, such as tiny_shakespeare (default: the topics of Python's `help`)",
)
"""For problems whose `data` are `normlab.study.data.sequences.characters`."""
