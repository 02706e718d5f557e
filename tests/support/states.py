"""States of other libraries for tests: recorded ones, and numbers that are made again by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

RECORDED = Path(__file__).parents[1] / "tools" / "recorded"
Arrays = dict[str, np.ndarray]


class Recorded(NamedTuple):
    """A network of another library: its state, inputs, outputs of both modes, and its state after a training call."""

    state: Arrays
    inputs: np.ndarray
    evaluated: np.ndarray
    trained: np.ndarray
    after: Arrays


def save(name: str, recorded: Recorded) -> None:
    parts = {"inputs": recorded.inputs, "evaluated": recorded.evaluated, "trained": recorded.trained}
    for part in ("state", "after"):
        parts |= {f"{part}:{key}": array for key, array in getattr(recorded, part).items()}
    np.savez_compressed(RECORDED / f"{name}.npz", **parts)


def load(name: str) -> Recorded:
    with np.load(RECORDED / f"{name}.npz") as file:
        parts = dict(file)
    state, after = (
        {key.removeprefix(f"{part}:"): array for key, array in parts.items() if key.startswith(f"{part}:")}
        for part in ("state", "after")
    )
    return Recorded(state, parts["inputs"], parts["evaluated"], parts["trained"], after)


def numbers(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> Arrays:
    """Return numbers for a state of PyTorch that keep activations near 1, the same whenever they are made."""
    rng = np.random.default_rng(seed)
    return {name: _numbers(name, shape, rng.random(shape)) for name, shape in shapes.items()}


def _numbers(name: str, shape: tuple[int, ...], uniform: np.ndarray) -> np.ndarray:
    if name.endswith("num_batches_tracked"):
        return np.asarray(7, np.int64)
    if name.endswith("running_var") or (name.endswith("weight") and len(shape) == 1):
        return (0.5 + uniform).astype(np.float32)
    spread = np.sqrt(6 / np.prod(shape[1:])) if len(shape) > 1 else 0.3
    return (spread * (2 * uniform - 1)).astype(np.float32)
