"""Moments of a norm over all batches, and how many independent samples a batch is worth."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from normlab.doctor.measure import CallNumbers
from normlab.tools import Site

__all__ = ["Pooled", "gap", "pooled"]


@dataclass(frozen=True)
class Pooled:
    """Moments of what a norm was given in training, for each feature.

    Attributes:
        mean: Mean of all elements.
        var: Biased variance of all elements.
        batch_means: Mean of each call, (calls, features).
        batch_vars: Biased variance of each call, (calls, features).
        of_examples: Variance of the examples' means within a call.
        sizes: Examples of each call, (calls,).
        effective: Independent samples that a call's mean is worth: the variance of elements over that of the mean; NaN
            where it is not known.
    """

    mean: np.ndarray
    var: np.ndarray
    batch_means: np.ndarray
    batch_vars: np.ndarray
    of_examples: np.ndarray
    sizes: np.ndarray
    effective: np.ndarray

    @property
    def examples(self) -> float:
        """Examples of a call, on average."""
        return float(self.sizes.mean())

    @property
    def n_eff(self) -> float:
        """Independent samples of a call, the median over features that vary; NaN where none does."""
        varying = self.effective[(self.var > 0) & np.isfinite(self.effective)]
        return float(np.median(varying)) if varying.size else float("nan")


def pooled(site: Site, batches: Sequence[Sequence[CallNumbers]]) -> Pooled:
    """Pool the measurements of a norm.

    Args:
        site: The norm.
        batches: For each batch, the measurements of its calls.
    """
    parts = [part for calls in batches for part in calls]
    means, variances, between = (_stack(parts, name) for name in ("mean", "var", "between"))
    counts = np.stack([np.broadcast_to(np.asarray(part.elements, np.float64), means.shape[1:]) for part in parts])
    examples = np.array([float(np.asarray(part.examples)) for part in parts])
    share = counts / np.maximum(counts.sum(0), 1)
    mean = (means * share).sum(0)
    var = ((variances + np.square(means - mean)) * share).sum(0)
    of_examples, within = _of_examples(means, variances, between, examples)
    size = _size(site, float(examples.mean()))
    positions = counts.sum(0) / max(1.0, examples.sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        effective = np.minimum(size * (within + of_examples) / of_examples, size * positions)
    effective = np.where(of_examples > 0, effective, np.where(np.isnan(of_examples), np.nan, size * positions))
    return Pooled(mean, var, means, variances, of_examples, examples, effective)


def _of_examples(
    means: np.ndarray, variances: np.ndarray, between: np.ndarray, examples: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the variance of the examples' means, and that of the elements about their example's mean."""
    within = np.maximum(variances.mean(0) - between.sum(0) / max(1.0, examples.sum()), 0)
    free = examples.sum() - len(examples)
    if free > 0:
        return between.sum(0) / free, within
    if len(means) > 1:  # of one example each
        return means.var(0, ddof=1), within
    return np.full(means.shape[1:], np.nan), within


def _size(site: Site, examples: float) -> float:
    """Return the examples that share a statistic."""
    return min(getattr(site.module, "ghost_batch_size", None) or examples, examples)


def _stack(parts: Sequence[CallNumbers], name: str) -> np.ndarray:
    return np.stack([np.asarray(getattr(part, name), np.float64) for part in parts])


def gap(training: Sequence[Sequence[CallNumbers]], evaluation: Sequence[Sequence[CallNumbers]]) -> float:
    """Return the difference between a norm's outputs in two modes, relative to those in training; NaN without any."""
    one, two = (
        np.concatenate([np.zeros(0), *(np.asarray(part.places, np.float64) for calls in batches for part in calls)])
        for batches in (training, evaluation)
    )
    if not one.size or one.shape != two.shape or not np.any(one):
        return float("nan")
    return float(np.sqrt(np.mean(np.square(one - two)) / np.mean(np.square(one))))
