"""Sequences: digits read pixel by pixel, the adding problem, text. NumPy only and deterministic."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from normlab.study.data.dataset import Data, Dataset, digits

PERMUTATION_SEED = 0
"""Seed of the order in which `permuted` reads the pixels."""

WINDOW = 64
"""Characters that are predicted in an example."""

SYMBOLS = 128
"""Number of characters that a model of text distinguishes."""

PARTS = (2048, 256, 512)
"""Largest numbers of windows for training, validation and test."""

SHORTEST = 88 * WINDOW + 1
"""Shortest text, in characters: it makes 64, 8 and 16 windows."""


def rows() -> Data:
    """Return digits as 8 steps of the 8 pixels of a row."""
    return _of_digits(digits().inputs[..., 0])


def pixels() -> Data:
    """Return digits as 64 steps of one pixel, row by row."""
    return _of_digits(digits().inputs.reshape(-1, 64, 1))


def permuted() -> Data:
    """Return digits as 64 steps of one pixel, in one random order that is the same for all digits."""
    return _of_digits(pixels().inputs[:, order()])


def order() -> np.ndarray:
    """Return the pixel that `permuted` reads at each step."""
    return np.random.default_rng(PERMUTATION_SEED).permutation(64)


@cache
def adding(examples: int = 4864, steps: int = 64) -> Data:
    """Make the adding problem (Hochreiter & Schmidhuber, 1997): the sum of the two marked numbers of a sequence.

    Args:
        examples: Number of examples.
        steps: Longest sequence; lengths are drawn from half of this to all of this.

    Returns:
        Inputs of shape (examples, steps, 3) of `sums`, and the sums.
    """
    lengths = np.random.default_rng(0).integers(steps // 2, steps + 1, examples)
    return Data(*sums(lengths, steps, seed=1))


def sums(lengths: Sequence[int] | np.ndarray, steps: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw sequences with a marked number in their first half and another in their second.

    Args:
        lengths: Lengths of the sequences.
        steps: Length to which they are padded.
        seed: Seed of all draws.

    Returns:
        Inputs of shape (examples, steps, 3): numbers in [0, 1), marks, and whether the sequence continues; and the sum
        of the two numbers for each, of mean 1 and variance 1/6.
    """
    lengths, draw = np.asarray(lengths), np.random.default_rng(seed)
    there = np.arange(steps) < lengths[:, None]
    numbers = draw.random((len(lengths), steps)) * there
    first = draw.integers(0, lengths // 2)
    second = draw.integers(lengths // 2, lengths)
    examples = np.arange(len(lengths))
    marks = np.zeros_like(numbers)
    marks[examples, first] = marks[examples, second] = 1
    return np.stack([numbers, marks, there], axis=-1, dtype=np.float32), (numbers * marks).sum(axis=1)


def characters(text: str | None = None) -> Data:
    """Make next-character prediction from a text, cut into windows that do not overlap.

    The beginning of the text is for training, what follows for validation, then for the test; a text longer than
    `PARTS` is cut. Characters are numbered by their frequency in the training part; all after the first `SYMBOLS` - 1
    share the last number.

    Args:
        text: The path of a file in UTF-8, or `tfds:NAME` for a text of TensorFlow Datasets, such as
            `tfds:tiny_shakespeare`. Unless given, the text is the topics of Python's own `help`.

    Returns:
        Inputs and labels of shape (windows, `WINDOW`): characters, and the characters that follow them.

    Raises:
        ValueError: If the text cannot be read, is not UTF-8, or is too short.
    """
    name, content = _topics() if text is None else _named(text)
    whole = content.decode()
    if len(whole) < SHORTEST:
        raise ValueError(f"Expected a text of at least {SHORTEST} characters, got {len(whole)} in {name}.")
    windows = min(sum(PARTS), (len(whole) - 1) // WINDOW)
    test, validation = (windows * part // sum(PARTS) for part in (PARTS[2], PARTS[1]))
    train = windows - test - validation
    known = [character for character, _ in Counter(sorted(whole[: train * WINDOW])).most_common(SYMBOLS - 1)]
    number = {character: index for index, character in enumerate(known)}
    codes = np.array([number.get(character, SYMBOLS - 1) for character in whole[: windows * WINDOW + 1]])
    description = (
        f"{name}, {len(whole):,} characters, {len(set(whole))} different; sha256 of its UTF-8: "
        f"{hashlib.sha256(content).hexdigest()}. Used are the first {windows * WINDOW:,} characters in windows of "
        f"{WINDOW}: {train:,} windows for training, then {validation:,} for validation, then {test:,} for the test."
    )
    return Data(
        codes[:-1].reshape(windows, WINDOW),
        codes[1:].reshape(windows, WINDOW),
        test,
        validation,
        description=description,
    )


def unigram_bits(data: Dataset) -> float:
    """Compute the bits per character of a model that knows only the frequencies of characters in the training part.

    Every count is increased by one, so that no character is impossible.
    """
    train = len(data.labels) - data.validation - data.test
    counts = np.bincount(data.labels[:train].ravel(), minlength=SYMBOLS) + 1
    held_out = data.labels[train : train + data.validation]
    return float(-np.log2(counts / counts.sum())[held_out].mean())


def _of_digits(inputs: np.ndarray) -> Data:
    return Data(inputs, digits().labels, libraries=digits().libraries)


def _topics() -> tuple[str, bytes]:
    from pydoc_data.topics import topics  # part of Python: what `help("SEQUENCES")` and its like print

    return "The topics of Python's `help`", "\n".join(topics[name] for name in sorted(topics)).encode()


def _named(text: str) -> tuple[str, bytes]:
    kind, _, name = text.partition(":")
    if kind == "tfds":
        from normlab.study.data.tfds.text import read_text

        return read_text(name)
    return f"`{Path(text).name}`", _read(text)


def _read(path: str) -> bytes:
    try:
        content = Path(path).read_bytes()
        content.decode()
    except OSError as error:
        raise ValueError(f"Expected a text, got `{path}`, which cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"Expected a text in UTF-8, got `{path}`, where byte {error.start} is none. Convert it, e.g. by `iconv`."
        ) from error
    return content
