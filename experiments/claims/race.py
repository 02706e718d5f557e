"""Networks that race to the accuracy of a base: a network without a norm, at its best learning rate or below it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from experiments.claims.progress import Speedup, first, gain, halfway


class Arm(NamedTuple):
    """Networks that train alike."""

    norm: str
    activation: str
    rate: float


@dataclass(frozen=True, kw_only=True)
class Race:
    """Networks of one depth.

    Attributes:
        at: Updates before each evaluation.
        base: Best learning rate of the network without a norm.
        own: Best learning rates by norm and activation, on validation images.
        curves: Test accuracy, averaged over the last evaluations, [seeds, evaluations].
        activation: The base's activation.
    """

    at: np.ndarray
    base: float
    own: Mapping[tuple[str, str], float]
    curves: Mapping[Arm, np.ndarray]
    activation: str = "relu"

    def arm(self, norm: str, times: int = 1, below: int = 1, activation: str | None = None) -> Arm:
        """Name networks by multiples of a base's rate, which is the best one divided by `below`."""
        return Arm(norm, activation or self.activation, multiple(self.base, times, below))

    def best(self, norm: str, activation: str | None = None) -> Arm:
        """Name networks at the rate that is best for them."""
        kind = activation or self.activation
        return Arm(norm, kind, self.own[norm, kind])

    def target(self, below: int = 1, *, half: bool = False) -> np.ndarray:
        """Return the base's highest accuracy, or its accuracy at half time, by seed."""
        curves = self.curves[self.arm("none", 1, below)]
        return halfway(self.at, curves) if half else curves.max(-1)

    def steps(self, arm: Arm, below: int = 1, *, half: bool = False) -> np.ndarray:
        """Return the steps to the base's accuracy, by seed; NaN for never."""
        return first(self.at, self.curves[arm], self.target(below, half=half))

    def gain(self, arm: Arm, below: int = 1, *, half: bool = False, over: Arm | None = None) -> Speedup:
        """Compare steps to the base's accuracy with those of the base, or of another arm."""
        base = self.arm("none", 1, below)
        return gain(self.at, *(self.curves[one] for one in (base, over or base, arm)), half=half)

    def peak(self, arm: Arm) -> np.ndarray:
        """Return the highest accuracy, by seed."""
        return self.curves[arm].max(-1)


def multiple(base: float, times: int, below: int = 1) -> float:
    """Return a multiple of a base's rate, rounded so that equal rates are equal."""
    return float(f"{base / below * times:.4g}")
