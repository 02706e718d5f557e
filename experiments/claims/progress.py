"""Progress of training: the first step that reaches a target, and ratios of such steps in which "never" is a count."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike

from experiments.claims.estimates import Interval, ratio
from experiments.claims.images import Images, Part
from experiments.claims.trainer import Seen, Settings, Trained
from experiments.claims.verdicts import Verdict

FEW = 0.2
"""Share of seeds, one of five, up to which something happens rarely."""


class Speedup(NamedTuple):
    """Ratio of steps, slower / faster.

    Attributes:
        ratio: Geometric mean over the seeds in which both runs reach the target.
        reached: Seeds in which the faster run reaches it.
        other: Seeds in which the slower run does.
        of: Number of seeds.
    """

    ratio: Interval
    reached: int
    other: int
    of: int

    @property
    def usually(self) -> bool:
        """Report whether both runs reach the target in nearly all seeds."""
        return self.ratio.n >= (1 - FEW) * self.of

    @property
    def never(self) -> bool:
        """Report whether the run that should be faster nearly never arrives, where the other usually does."""
        return self.reached <= FEW * self.of and self.other >= (1 - FEW) * self.of

    @property
    def faster(self) -> bool:
        """Report whether the interval is above 1 in nearly all seeds, or the slower run nearly never arrives."""
        alone = self.other <= FEW * self.of and self.reached >= (1 - FEW) * self.of
        return alone or (self.usually and self.ratio.low > 1)

    @property
    def slower(self) -> bool:
        """Report whether the interval is below 1, or the run that should be faster nearly never arrives."""
        return self.never or self.ratio.high < 1

    @property
    def verdict(self) -> Verdict:
        """Judge the claim that the faster run is faster."""
        return Verdict.HOLDS if self.faster else Verdict.FAILS if self.slower else Verdict.UNSEEN

    def reaches(self, factor: float) -> bool:
        """Report whether the interval includes a factor or exceeds it, and is narrow enough to say so.

        Its lower end is at least the root of the factor: half of the way on a scale of ratios.
        """
        return self.usually and self.ratio.high >= factor and self.ratio.low >= math.sqrt(factor)

    def excludes(self, factor: float) -> bool:
        """Report whether the interval is below a factor, or the run that should be faster nearly never arrives."""
        return self.never or self.ratio.high < factor

    def text(self) -> str:
        """Format the ratio, with the counts of seeds unless it is all of them."""
        if self.other < self.of:
            counts = f"reached in {self.reached} of {self.of} seeds, by the slower run in {self.other}"
            return f"{self.ratio.text('{:.2f}')}, {counts}" if self.ratio.n else counts
        if not self.reached:
            return f"never (0 of {self.of} seeds)"
        counted = "" if self.reached == self.of else f", only {self.reached} of {self.of} seeds"
        return self.ratio.text("{:.2f}") + counted


def smoothed(curves: np.ndarray, window: int) -> np.ndarray:
    """Average the last `window` observations, [..., observations - window + 1]."""
    return np.lib.stride_tricks.sliding_window_view(np.asarray(curves, np.float64), window, axis=-1).mean(-1)


def first(at: np.ndarray, curves: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Return the first step at which curves reach their targets; NaN for never.

    Args:
        at: Steps of the observations.
        curves: Shape [..., observations].
        targets: Shape [...].
    """
    there = curves >= np.asarray(targets)[..., None]
    return np.where(there.any(-1), at[there.argmax(-1)].astype(np.float64), math.nan)


def halfway(at: np.ndarray, curves: np.ndarray) -> np.ndarray:
    """Return the values of curves at half of the last step."""
    return curves[..., int(np.abs(at - at[-1] / 2).argmin())]


def speedup(slower: ArrayLike, faster: ArrayLike) -> Speedup:
    """Compare paired steps, in which NaN is never."""
    a, b = np.asarray(slower, np.float64), np.asarray(faster, np.float64)
    there, other = np.isfinite(b), np.isfinite(a)
    both = there & other
    return Speedup(ratio(a[both], b[both]), int(there.sum()), int(other.sum()), len(both))


def gain(at: np.ndarray, base: np.ndarray, slower: np.ndarray, faster: np.ndarray, *, half: bool = False) -> Speedup:
    """Compare the steps of two runs to the highest accuracy of a base of the same seed, or to that at half time.

    Args:
        at: Steps of the observations.
        base: Accuracies of the base, [seeds, observations].
        slower: Accuracies of the run that is expected to be slower.
        faster: Those of the other one.
        half: Whether the target is the accuracy at half time.
    """
    target = halfway(at, base) if half else base.max(-1)
    return speedup(first(at, slower, target), first(at, faster, target))


def binarized(images: Images) -> Images:
    """Replace pixels by whether they are above the middle of the scale."""
    pixels = images.train.inputs
    middle = (float(pixels.min()) + float(pixels.max())) / 2

    def halved(part: Part) -> Part:
        return Part((part.inputs > middle).astype(np.float32), part.labels)

    return Images(
        train=halved(images.train),
        validation=halved(images.validation),
        test=halved(images.test),
        classes=images.classes,
        name=f"{images.name}, binarized",
    )


def in_groups(run: Callable[[Settings], Trained[Seen]], settings: Settings, size: int) -> Iterator[Trained[Seen]]:
    """Train runs in groups of one size, so that one program serves any number of them; the last group is filled up.

    Args:
        run: From `trainer.trainer`.
        settings: Arguments of the runs; seeds and rates are arrays.
        size: Runs in a group.
    """
    seeds, rates = np.asarray(settings.seed), np.asarray(settings.rate)
    for start in range(0, len(seeds), size):
        index = np.minimum(np.arange(start, start + size), len(seeds) - 1)
        trained = run(settings._replace(seed=seeds[index], rate=rates[index]))
        left = len(seeds) - start
        yield jax.tree.map(lambda leaf, left=left: np.asarray(leaf)[:left], trained)
