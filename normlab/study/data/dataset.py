"""Data sets: inputs, labels and metadata."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from normlab import expect
from normlab.errors import BadInput
from normlab.extras import importing
from normlab.study.data import npz

if TYPE_CHECKING:
    import jax

AnyArray = TypeVar("AnyArray", np.ndarray, "jax.Array")

TRAIN, VALIDATION, TEST = 1024, 256, 517
"""Sizes of the sets of the 1,797 digits."""

AUGMENTATIONS = ("crop", "flip")
"""Names of `normlab.study.data.augment.WAYS`."""

_WHOLE = ("inputs", "labels")
_PARTS = ("x_train", "y_train", "x_test", "y_test")


def _a_way(value: object) -> str:
    if not isinstance(value, str) or value not in AUGMENTATIONS:
        raise ValueError(value)
    return value


def _drawn(value: Iterable[object]) -> tuple[float, float]:
    validation, test = map(expect.SHARE.convert, value)
    return validation, test


_CHANNELS = expect.Kind(
    "numbers, one for each channel", lambda value: tuple(map(expect.finite, value)), "Give a tuple."
)
_WAYS = expect.Several(
    expect.Kind(f"one of {', '.join(AUGMENTATIONS)}", _a_way, "Write one of them."),
    empty=True,
    remedy=f'Write `augment=("{AUGMENTATIONS[0]}",)`, with the comma.',
)
_DRAWN = expect.Kind(
    "a pair, each a number of examples or a share between 0 and 1", _drawn, "Write one such as `(0.2, 0.2)`."
)


class Dataset(ABC):
    """Labelled examples, in memory or on disk.

    Attributes:
        labels: Integers are classes counted from 0, int32, shape (examples,), or (examples, ...) for a loss that takes
            several; floats are targets, float32, shape (examples,) or (examples, ...).
        test: Size of the test set, which is last; 0 if every seed draws its own.
        validation: Size of the validation set, which is before the test set; 0 if every seed draws its own.
        description: Description of the data, for the report.
        mean: Number for each channel that is subtracted from the inputs of a model; nothing unless given.
        std: Number for each channel by which the inputs of a model are then divided; nothing unless given.
        augment: Random changes of examples in training, by the names of `normlab.study.data.augment.WAYS`.
        drawn: Sizes of the validation and the test set that a seed draws, unless the problem or the data decide them:
            numbers of examples, or below 1 shares.
        libraries: Distributions that the data come from, e.g. `scikit-learn`; their versions are in the key of every
            run.
    """

    labels: np.ndarray
    test: int
    validation: int
    description: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: tuple[str, ...]
    drawn: tuple[float, float]
    libraries: tuple[str, ...]

    @abstractmethod
    def sample_inputs(self) -> np.ndarray:
        """Return the inputs of the first two examples: their shape and type are those of all."""

    @property
    @abstractmethod
    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays that programs read, by name."""

    @property
    def classes(self) -> bool:
        """True if labels are classes."""
        return self.labels.dtype == np.int32

    @property
    def fingerprints(self) -> dict[str, np.ndarray]:
        """Metadata that affects training and therefore enters the hash of the data, by name."""
        given = {name: getattr(self, name) for name in ("test", "validation", "mean", "std")}
        found = {name: np.asarray(value) for name, value in given.items() if value}
        found |= {name: np.asarray(place) for place, name in enumerate(self.augment)}
        return {**found, "drawn": np.asarray(self.drawn)}

    def prepared(self, inputs: AnyArray) -> AnyArray:
        """Convert inputs for a model: images of uint8 to float32 in [0, 1], all of them standardized.

        Args:
            inputs: Inputs of this data set, of NumPy or JAX.
        """
        if inputs.dtype == np.uint8:
            inputs = inputs.astype(np.float32) / np.float32(255)
        if self.mean:
            inputs = inputs - np.asarray(self.mean, np.float32)
        return inputs / np.asarray(self.std, np.float32) if self.std else inputs

    def _check_fields(self) -> None:
        """Check and convert the fields that do not depend on the examples."""
        expect.check_fields(
            self,
            test=expect.COUNT,
            validation=expect.COUNT,
            description=expect.TEXT,
            mean=_CHANNELS,
            std=_CHANNELS,
            augment=_WAYS,
            drawn=_DRAWN,
        )

    def _check_sets(self) -> None:
        if self.validation and not self.test:
            raise BadInput(
                f"Expected `test` where `validation` is given, got {self.validation} and no test set. Give both."
            )

    def _check_images(self, shape: tuple[int, ...]) -> None:
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) not in (0, 1, *shape[-1:]):
                raise BadInput(
                    f"Expected `{name}` to have a number for each channel, got {len(numbers)} for inputs "
                    f"of shape {shape[1:]}. Give one, or {shape[-1]}."
                )
        if any(not number > 0 for number in self.std):
            raise BadInput(f"Expected `std` to be positive, got {min(self.std)}. Leave out what never changes.")
        if self.augment and len(shape) != 4:
            raise BadInput(
                f"Expected `augment` to name some of {', '.join(AUGMENTATIONS)}, for images (examples, height, width, "
                f"channels), got {', '.join(self.augment)} for inputs of shape {shape}. Leave it out, or add the axis."
            )


@dataclass(frozen=True, eq=False)
class Data(Dataset):
    """A labelled data set in memory. It accepts whatever NumPy accepts as an array, and converts and checks it.

    Attributes:
        inputs: Shape (examples, ...), channels last. Floats become float32, uint8 (images) stays and is scaled to
            [0, 1] for a model (see `prepared`), other integers (tokens) become int32.
        labels: See `Dataset` for this and all other fields.
        test: Size of the test set.
        validation: Size of the validation set.
        description: Description of the data.
        mean: Mean of each channel.
        std: Standard deviation of each channel.
        augment: Random changes of examples.
        drawn: Sizes of the sets that a seed draws.
        libraries: Distributions that the data come from.

    Raises:
        ValueError: For data that cannot be learned from: NaN, examples of different shapes, a label missing.
    """

    inputs: np.ndarray
    labels: np.ndarray
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
        inputs, labels = numbers_of("inputs", self.inputs), numbers_of("labels", self.labels)
        if inputs.shape[:1] != labels.shape[:1]:
            raise BadInput(
                f"Expected a label for each example, got {len(inputs)} inputs and {len(labels)} labels. The first axis "
                "of both counts examples."
            )
        self._check_sets()
        self._check_images(inputs.shape)
        expect.convert_fields(self, inputs=converted_inputs(inputs), labels=converted_labels(labels))

    def sample_inputs(self) -> np.ndarray:
        """Return the inputs of the first two examples."""
        return self.inputs[:2]

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Inputs and labels."""
        return {"inputs": self.inputs, "labels": self.labels}


DatasetSource = Dataset | str | os.PathLike[str] | Callable[..., Dataset]
"""A data set, or where to load it from; see `load`."""


def load(source: DatasetSource, **options: object) -> Dataset:
    """Load data.

    Args:
        source: The data; a function that returns them; or an `.npz` file with `inputs` and `labels`, or with `x_train`,
            `y_train`, `x_test` and `y_test`, in which case the test set is the same for every seed.
        **options: For the function.

    Raises:
        ValueError: If the file does not exist, or its content is wrong.
    """
    if isinstance(source, str | os.PathLike):
        return from_npz(os.fspath(source))
    data = source(**options) if callable(source) else source
    if not isinstance(data, Dataset):
        raise expect.refusal(
            "`data` to be a `Data`, a function that returns one or an .npz file", data, "Return `Data(inputs, labels)`."
        )
    return data


@cache
def digits() -> Data:
    """Load scikit-learn's 1,797 handwritten digits: 8 x 8 pixels in [0, 1], 10 classes; no download."""
    rows = _rows_of_digits()
    return Data(
        (rows[:, :-1].reshape(-1, 8, 8, 1) / 16).astype(np.float32),
        rows[:, -1].astype(np.int32),
        description="Scikit-learn's 1,797 digits of 8 x 8 pixels; each seed has its own split into "
        f"{TRAIN:,} for training, {VALIDATION} for validation and {TEST} for the test.",
        drawn=(VALIDATION, TEST),
        libraries=("scikit-learn",),
    )


def _rows_of_digits() -> np.ndarray:
    """Read rows of 64 pixels and a class from the file of scikit-learn, whose import takes a second; else import it."""
    with importing("study"):
        spec = find_spec("sklearn")
        file = Path(spec.origin if spec and spec.origin else "none").with_name("datasets") / "data" / "digits.csv.gz"
        if file.is_file():
            return np.loadtxt(file, delimiter=",")
        from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    return np.column_stack([pixels, classes])


def numbers_of(name: str, value: object) -> np.ndarray:
    """Convert to an array of numbers whose first axis counts examples, at least one.

    Args:
        name: Name of the value, for messages.
        value: Any value that NumPy accepts as an array.

    Raises:
        BadInput: If it is no such array.
    """
    try:
        array = np.asarray(value)
    except (ValueError, TypeError):  # of NumPy for examples of different shapes, and of other libraries
        array = np.asarray(None)
    if array.dtype == object:
        items = value if isinstance(value, Iterable) and np.iterable(value) else ()
        shapes = list(dict.fromkeys(map(np.shape, items)))
        if len(shapes) > 1:
            raise BadInput(
                f"Expected examples of one shape in `{name}`, got {shapes[0]} and {shapes[1]}. Resize or pad them."
            )
    if array.dtype.kind not in "biuf" or not array.ndim:
        came = expect.shown(value) if array.dtype == object else f"{array.dtype} of shape {array.shape}"
        raise BadInput(f"Expected `{name}` to be an array of numbers, got {came}. {_remedy(name, array)}")
    if np.ma.is_masked(value):
        raise BadInput(f"Expected numbers all over `{name}`, got some that are masked. Remove or fill them.")
    if not array.size:
        raise BadInput(f"Expected some examples in `{name}`, got none, shape {array.shape}. Look at how it was made.")
    return array


def _remedy(name: str, array: np.ndarray) -> str:
    if name == "labels" and array.ndim == 1:
        return "Number the classes: `np.unique(labels, return_inverse=True)[1]`."
    return "Make it one, e.g. by `np.asarray(..., np.float32)`; columns of text have to be encoded first."


def converted_inputs(inputs: np.ndarray) -> np.ndarray:
    """Convert inputs to uint8, float32 or int32; see `Data`."""
    return inputs if inputs.dtype == np.uint8 else _as_jax_has_it("inputs", inputs)


def converted_labels(labels: np.ndarray) -> np.ndarray:
    """Convert labels to float32 or int32, columns of them to vectors; see `Data`."""
    return _as_jax_has_it("labels", labels[:, 0] if labels.shape[1:] == (1,) else labels)


def _as_jax_has_it(name: str, array: np.ndarray) -> np.ndarray:
    """Convert to float32 or int32; refuse numbers that are not finite or do not fit."""
    kind = np.float32 if array.dtype.kind == "f" else np.int32
    if array.dtype == kind:
        converted = array
    else:
        with np.errstate(over="ignore"):  # to infinity, which is found below
            converted = array.astype(kind)
    wrong = ~np.isfinite(converted) if kind is np.float32 else converted != array
    if wrong.any():
        first = np.argwhere(wrong)[0][0]
        what = "finite numbers" if kind is np.float32 else "integers of 32 bits"
        raise BadInput(
            f"Expected {what} in `{name}`, got {np.count_nonzero(wrong)} others, the first in example {first}: "
            f"{array[first][wrong[first]].ravel()[0]}. Remove or replace them."
        )
    return converted


def from_npz(path: str) -> Data:
    """Load a user's arrays; see `load`.

    Raises:
        ValueError: If the file does not exist, or its content is wrong.
    """
    if not os.path.exists(path):
        raise BadInput(f"Expected `data` to be an .npz file, got `{path}`, which does not exist. Look for it.")
    try:
        inputs, labels, *test = npz.read(path, _WHOLE, _PARTS, copied=_bytes_of_copy)
    except ValueError as error:
        raise ValueError(
            f"Expected an .npz file with `inputs` and `labels`, or with `x_train`, `y_train`, `x_test` and `y_test`, "
            f"got `{path}`: {error}."
        ) from error
    return _joined(Data(inputs, labels), Data(test[0], test[1])) if test else Data(inputs, labels)


def _bytes_of_copy(dtype: np.dtype) -> int:
    """Return the bytes of a number in the copy that `Data` makes."""
    return 0 if dtype in (np.uint8, np.float32, np.int32) else 4


def _joined(train: Data, test: Data) -> Data:
    """Join two data sets; the second becomes the test set."""
    for name, ours, theirs in (("x", train.inputs, test.inputs), ("y", train.labels, test.labels)):
        if (ours.shape[1:], ours.dtype) != (theirs.shape[1:], theirs.dtype):
            raise ValueError(
                f"Expected examples of one shape and type in `{name}_train` and `{name}_test`, got {ours.dtype} of "
                f"{ours.shape[1:]} and {theirs.dtype} of {theirs.shape[1:]}."
            )
    return Data(
        np.concatenate([train.inputs, test.inputs]), np.concatenate([train.labels, test.labels]), len(test.labels)
    )
