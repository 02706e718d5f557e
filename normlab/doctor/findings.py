"""Findings of an examination: what is wrong, where, by which number, and what to do about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

__all__ = ["ORDER", "Finding", "Measurement", "Severity", "Skipped"]

Severity: TypeAlias = Literal["error", "warning", "note"]
"""`error` is a wrong result, `warning` a likely harm, `note` a matter of style or cost."""

ORDER: tuple[Severity, ...] = ("error", "warning", "note")
"""Severities, the worst first."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A fault of a model, with its evidence.

    Attributes:
        code: Code of the check, such as `NL303`.
        severity: How bad it is.
        path: Path of the norm, the first one where several have the same fault; empty for the whole model.
        title: The fault, in a few words.
        evidence: Numbers that were measured, by name.
        threshold: The bound that the first of them crossed; `None` for a fact of the model's structure.
        why: The harm it does, in at most two sentences.
        source: A paper or a thread of a library's users.
        remedy: A line to paste.
        certain: Whether the fault is a fact rather than an estimate from data.
        others: Paths of further norms with the same fault.
    """

    code: str
    severity: Severity
    path: str
    title: str
    evidence: Mapping[str, float]
    threshold: float | None
    why: str
    source: str
    remedy: str
    certain: bool = True
    others: tuple[str, ...] = ()

    def sort_key(self) -> tuple[int, str, str]:
        """Return the key by which findings are sorted: the worst first, then by code and path."""
        return ORDER.index(self.severity), self.code, self.path


@dataclass(frozen=True)
class Skipped:
    """A check that was not made, or not of every norm.

    Attributes:
        code: Code of the check.
        why: The reason, in one sentence.
    """

    code: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Numbers of one norm in training, over all batches.

    Attributes:
        path: Path of the norm.
        kind: Its kind.
        mean: Mean of each feature of its input, (features,).
        var: Variance of each feature of its input, (features,).
        running_mean: Running mean, (features,); `None` where the norm keeps none.
        running_var: Running variance, (features,).
        effective: Independent samples of a batch, median over features; NaN where it is not known.
        gap: Difference between the outputs in training and at evaluation, relative to the former; NaN for one mode.
        expected_gap: The same with the statistics of these batches in place of the running ones; NaN where not known.
        lag: Distance between running and true mean in standard deviations, median over features; NaN without both.
    """

    path: str
    kind: str
    mean: np.ndarray = field(default_factory=lambda: np.zeros(0))
    var: np.ndarray = field(default_factory=lambda: np.zeros(0))
    running_mean: np.ndarray | None = None
    running_var: np.ndarray | None = None
    effective: float = float("nan")
    gap: float = float("nan")
    expected_gap: float = float("nan")
    lag: float = float("nan")
