"""Data sets in memory: inputs, labels, and what is known of them."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from normlab import expect
from normlab.errors import BadInput
from normlab.extras import importing
from normlab.study.data import npz

TRAIN, VALIDATION, TEST = 1024, 256, 517
"""How the 1,797 digits are divided."""

AUGMENTATIONS = ("crop", "flip")
"""See `normlab.study.data.augment`."""

_WHOLE = ("inputs", "labels")
_PARTS = ("x_train", "y_train", "x_test", "y_test")


def _a_way(value: Any) -> str:
    if not isinstance(value, str) or value not in AUGMENTATIONS:
        raise ValueError(value)
    return value


def _drawn(value: Any) -> tuple[float, float]:
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


@dataclass(frozen=True, eq=False)
class Data:
    """A labelled data set. Whatever NumPy takes as an array is taken, converted and checked.

    Attributes:
        inputs: Shape (examples, ...), channels last. Floats become float32, uint8 (images) stays and is scaled to
            [0, 1] where a model takes it (see `prepared`), other integers (tokens) become int32.
        labels: Integers are classes counted from 0, int32, shape (examples,), or (examples, ...) for a loss that takes
            several; floats are targets, float32, shape (examples,) or (examples, ...).
        test: How many of the last examples are the test set; 0 where every seed draws its own.
        validation: How many of those before them are the validation set, likewise.
        description: What the data are, in words, for the report.
        mean: Subtracted from what a model takes, a number for each channel; nothing unless given.
        std: What that is divided by, likewise.
        augment: How examples are changed in training, by the names of `normlab.study.data.augment.WAYS`.
        drawn: How much a seed draws for validation and for the test where there is no such set and the problem does not
            say it: numbers of examples, or below 1 shares.
        libraries: Distributions that the data come from, e.g. `scikit-learn`; their versions are in the key of every
            run.

    Raises:
        ValueError: For what cannot be learned from: NaN, examples of different shapes, a label missing.
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
        inputs, labels = numbers_of("inputs", self.inputs), numbers_of("labels", self.labels)
        if inputs.shape[:1] != labels.shape[:1]:
            raise BadInput(
                f"Expected a label for each example, got {len(inputs)} inputs and {len(labels)} labels. The first axis "
                "of both counts examples."
            )
        if labels.shape[1:] == (1,):
            labels = labels[:, 0]
        if self.validation and not self.test:
            raise BadInput(
                f"Expected `test` where `validation` is given, got {self.validation} and no test set. Give both."
            )
        self._check_images(inputs.shape)
        object.__setattr__(self, "inputs", inputs if inputs.dtype == np.uint8 else _as_jax_has_it("inputs", inputs))
        object.__setattr__(self, "labels", _as_jax_has_it("labels", labels))

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

    @property
    def classes(self) -> bool:
        """Whether labels are classes."""
        return self.labels.dtype == np.int32

    def prepared(self, inputs: Any) -> Any:
        """Make inputs what a model takes: images of uint8 as float32 in [0, 1], all of them standardized.

        Args:
            inputs: Some of this data set's, of NumPy or JAX.
        """
        if inputs.dtype == np.uint8:
            inputs = inputs.astype(np.float32) / np.float32(255)
        if self.mean:
            inputs = inputs - np.asarray(self.mean, np.float32)
        return inputs / np.asarray(self.std, np.float32) if self.std else inputs

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """What programs read, by name."""
        return {"inputs": self.inputs, "labels": self.labels}

    @property
    def fingerprints(self) -> dict[str, np.ndarray]:
        """Metadata that affects training and therefore enters the hash of the data, by name."""
        given = {name: getattr(self, name) for name in ("test", "validation", "mean", "std")}
        found = {name: np.asarray(value) for name, value in given.items() if value}
        found |= {name: np.asarray(place) for place, name in enumerate(self.augment)}
        return {**found, "drawn": np.asarray(self.drawn)}


Source = Data | str | os.PathLike[str] | Callable[..., Data]
"""Where data come from: see `load`."""


def load(source: Source, **options: Any) -> Data:
    """Load data.

    Args:
        source: The data; a function that returns them; or an `.npz` file with `inputs` and `labels`, or with `x_train`,
            `y_train`, `x_test` and `y_test`, in which case the test set is the same for every seed.
        **options: For the function.

    Raises:
        ValueError: If there is no such file, or not the right thing in it.
    """
    if isinstance(source, str | os.PathLike):
        return _from_npz(os.fspath(source))
    data = source(**options) if callable(source) else source
    if not isinstance(data, Data):
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
    """Read 64 pixels and the class a row from the file of scikit-learn, whose import takes a second; else import it."""
    with importing("study"):
        spec = find_spec("sklearn")
        file = Path(spec.origin if spec and spec.origin else "none").with_name("datasets") / "data" / "digits.csv.gz"
        if file.is_file():
            return np.loadtxt(file, delimiter=",")
        from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)
    return np.column_stack([pixels, classes])


def numbers_of(name: str, value: Any) -> np.ndarray:
    """Convert to an array of numbers whose first axis counts examples, at least one.

    Args:
        name: Follows "Expected" in messages.
        value: Anything that NumPy takes as an array.

    Raises:
        BadInput: If it is no such array.
    """
    try:
        array = np.asarray(value)
    except (ValueError, TypeError):  # NumPy's words for examples of different shapes, and a library's for its own
        array = np.asarray(None)
    if array.dtype == object:
        shapes = list(dict.fromkeys(map(np.shape, value))) if np.iterable(value) else []
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


def _as_jax_has_it(name: str, array: np.ndarray) -> np.ndarray:
    """The array as float32 or int32, all of it finite."""
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


def _from_npz(path: str) -> Data:
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
    """Count the bytes that a number takes in the copy that `Data` makes of it."""
    return 0 if dtype in (np.uint8, np.float32, np.int32) else 4


def _joined(train: Data, test: Data) -> Data:
    """One data set whose last examples are the test set."""
    for name, ours, theirs in (("x", train.inputs, test.inputs), ("y", train.labels, test.labels)):
        if (ours.shape[1:], ours.dtype) != (theirs.shape[1:], theirs.dtype):
            raise ValueError(
                f"Expected examples of one shape and type in `{name}_train` and `{name}_test`, got {ours.dtype} of "
                f"{ours.shape[1:]} and {theirs.dtype} of {theirs.shape[1:]}."
            )
    return Data(
        np.concatenate([train.inputs, test.inputs]), np.concatenate([train.labels, test.labels]), len(test.labels)
    )
