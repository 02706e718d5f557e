"""Estimates, tests and verdicts over a few repeated runs; nothing here knows what was run.

Everywhere lower is better, `None` and non-finite values are missing, and what the data do not allow is `None`, never
NaN. Student-t intervals are used throughout: over five values a percentile bootstrap of nominal 95 % covers 83 %.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BETTER, WORSE, EQUIVALENT, INCONCLUSIVE = "better", "worse", "equivalent", "inconclusive"

Interval = tuple[float, float]

_MOST_SIGN_FLIPS = 22
"""Pairs up to which all sign flips are enumerated: 2 million sums."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean and how sure it is.

    Attributes:
        mean: Mean of the values that are there; `None` without any.
        interval: Student-t interval of the mean; `None` where the values do not allow one (see `mean_interval`).
        sd: Sample standard deviation; `None` below two values.
        n: Number of values that are there.
    """

    mean: float | None
    interval: Interval | None
    sd: float | None
    n: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The mean of `a - b` and how sure it is.

    Attributes:
        mean: Mean difference, negative where `a` is lower; `None` where one side is empty.
        interval: Student-t interval of the mean difference, or `None`.
        p: Two-sided p of the t-test that belongs to `interval`, or `None`.
        p_sign_flip: Two-sided p of the exact sign-flip test; `None` unpaired or with too many pairs to enumerate.
        rho: Observed correlation over the complete pairs; `None` below three pairs or where one side is constant.
        sd: Standard deviation of one difference, `None` where unknown.
        n: Pairs; for Welch the size of the smaller side.
        paired: Whether partners were compared; False where some were missing and Welch's test was used.
    """

    mean: float | None
    interval: Interval | None
    p: float | None
    p_sign_flip: float | None
    rho: float | None
    sd: float | None
    n: int
    paired: bool


def mean_interval(values: Sequence[float | None], level: float = 0.95) -> Estimate:
    """Estimate a mean with its Student-t interval.

    Equal values give the interval no width, which is luck rather than certainty when there are few of them and the
    metric moves in steps. Their interval is `None` up to the number of values at which an exact sign-flip test could
    reach the level (6 at 95 %), and the point itself from there on.

    Args:
        values: One value a replicate; `None` and non-finite values are left out.
        level: Confidence level, e.g. 0.95.

    Returns:
        The estimate over the values that are there.
    """
    there = _present(values)
    n = len(there)
    if n < 2:
        return Estimate(mean=float(there[0]) if n else None, interval=None, sd=None, n=n)
    mean, sd = float(there.mean()), _sd(there)
    return Estimate(mean=mean, interval=_interval(mean, sd / math.sqrt(n), n - 1, n, level), sd=sd, n=n)


def paired(values_a: Sequence[float | None], values_b: Sequence[float | None], level: float = 0.95) -> Difference:
    """Compare two sides whose values at the same position share their randomness.

    Pairing divides the variance by up to `1 / (1 - rho)`. Where one partner of a pair is missing, pairs would be a
    selection, so everything that is there is compared without pairing (Welch's test).

    Args:
        values_a: One value a replicate, `None` where missing.
        values_b: The partners, in the same order.
        level: Confidence level of the interval.

    Returns:
        The difference `a - b`.

    Raises:
        ValueError: If the lengths differ.
    """
    if len(values_a) != len(values_b):
        raise ValueError(
            f"Expected `values_a` and `values_b` to hold partners at the same positions, got {len(values_a)} and "
            f"{len(values_b)} values. Put `None` where a partner is missing."
        )
    a, b = _numbers(values_a), _numbers(values_b)
    there = np.isfinite(a) & np.isfinite(b)
    if np.array_equal(np.isfinite(a), np.isfinite(b)):
        return _matched(a[there], b[there], level)
    return _welch(a[np.isfinite(a)], b[np.isfinite(b)], level, rho=_correlation(a[there], b[there]))


def wilson(k: int, n: int, level: float = 0.95) -> Interval:
    """Give the Wilson score interval of a proportion: `k` of `n`; (0, 1) without any trial.

    Raises:
        ValueError: If not `0 <= k <= n`.
    """
    if not 0 <= k <= n:
        raise ValueError(f"Expected `0 <= k <= n`, got k={k} and n={n}. Pass the failures first, then all trials.")
    if n == 0:
        return 0.0, 1.0
    z = _normal_quantile((1 + level) / 2)
    centre = (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    low = 0.0 if k == 0 else centre - half
    high = 1.0 if k == n else centre + half
    return low, high


def holm(p_values: Sequence[float | None]) -> tuple[float | None, ...]:
    """Adjust p-values for their number by Holm's step-down method; a `None` (no test) is kept and not counted."""
    order = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, index) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p))
        adjusted[index] = highest
    return tuple(adjusted)


def verdict(interval: Interval | None, margin: float) -> str:
    """Say what an interval of a difference shows, lower being better.

    Args:
        interval: Interval of `a - b`, or `None` where there is none.
        margin: Differences below this are of no practical interest.

    Returns:
        `better` (entirely below `-margin`), `worse` (entirely above `margin`), `equivalent` (inside both), or else
        `inconclusive`.
    """
    if interval is None:
        return INCONCLUSIVE
    low, high = interval
    if high < -margin:
        return BETTER
    if low > margin:
        return WORSE
    return EQUIVALENT if -margin < low and high < margin else INCONCLUSIVE


def seeds_needed(
    mean: float | None, sd: float | None, margin: float, *, level: float = 0.95, power: float = 0.8, most: int = 1000
) -> int | None:
    """Estimate how many replicates in total would decide, were the difference and its spread as observed.

    Args:
        mean: Observed mean difference.
        sd: Observed standard deviation of one difference.
        margin: As in `verdict`.
        level: Level of the interval that decides.
        power: Chance of a decision at that number.
        most: Numbers above this are as good as never.

    Returns:
        The number, or `None` where the data give no estimate or it exceeds `most`.
    """
    if mean is None or sd is None:
        return None
    distance = abs(abs(mean) - margin)

    def decides(n: int) -> bool:
        return minimal_difference(sd, n, level=level, power=power) <= distance

    numbers = range(2 if sd else _enough_when_constant(level), most + 1)
    index = bisect_left(numbers, True, key=decides)
    return numbers[index] if index < len(numbers) else None


def minimal_difference(sd: float, n: int, *, level: float = 0.95, power: float = 0.8) -> float:
    """Give the smallest true difference that `n` replicates of spread `sd` find with chance `power` (approximate)."""
    if n < 2:
        return math.inf
    return (_t_quantile((1 + level) / 2, n - 1) + _t_quantile(power, n - 1)) * sd / math.sqrt(n)


def _matched(a: np.ndarray, b: np.ndarray, level: float) -> Difference:
    difference = a - b
    if len(a) and np.ptp(difference) <= 1e-12 * max(np.abs(a).max(), np.abs(b).max()):
        difference = np.full_like(difference, difference[0])  # spread that is only rounding is none
    estimate = mean_interval(difference.tolist(), level)
    p_sign_flip = _sign_flip(difference)
    return Difference(
        mean=estimate.mean,
        interval=estimate.interval,
        p=_t_test(estimate.mean, estimate.sd, estimate.n, p_sign_flip),
        p_sign_flip=p_sign_flip,
        rho=_correlation(a, b),
        sd=estimate.sd,
        n=estimate.n,
        paired=True,
    )


def _t_test(mean: float | None, sd: float | None, n: int, p_if_constant: float | None) -> float | None:
    if mean is None or sd is None:
        return None
    if sd == 0:
        return p_if_constant
    return _t_two_sided(mean / (sd / math.sqrt(n)), n - 1)


def _welch(a: np.ndarray, b: np.ndarray, level: float, rho: float | None) -> Difference:
    n = min(len(a), len(b))
    mean = float(a.mean() - b.mean()) if n else None
    if mean is None or n < 2:
        return Difference(mean=mean, interval=None, p=None, p_sign_flip=None, rho=rho, sd=None, n=n, paired=False)
    squares = np.array([_sd(a) ** 2 / len(a), _sd(b) ** 2 / len(b)])
    error = math.sqrt(squares.sum())
    freedom = float(squares.sum() ** 2 / (squares**2 / [len(a) - 1, len(b) - 1]).sum()) if error else n - 1
    return Difference(
        mean=mean,
        interval=_interval(mean, error, freedom, n, level),
        p=_t_two_sided(mean / error, freedom) if error else None,
        p_sign_flip=None,
        rho=rho,
        sd=math.sqrt(_sd(a) ** 2 + _sd(b) ** 2),
        n=n,
        paired=False,
    )


def _interval(mean: float, error: float, freedom: float, n: int, level: float) -> Interval | None:
    if error == 0:
        return (mean, mean) if n >= _enough_when_constant(level) else None
    half = _t_quantile((1 + level) / 2, freedom) * error
    return mean - half, mean + half


def _enough_when_constant(level: float) -> int:
    """The number of values at which the exact sign-flip test, 2 / 2**n at the least, can reach the level."""
    return math.ceil(1 - math.log2(1 - level) - 1e-9)


def _sign_flip(difference: np.ndarray) -> float | None:
    """The share of the 2**n sign patterns whose sum is at least as far from zero as the observed one."""
    if not 2 <= len(difference) <= _MOST_SIGN_FLIPS:
        return None
    sums = difference[:1]  # by symmetry the first sign stays
    for value in difference[1:]:
        sums = np.concatenate([sums + value, sums - value])
    observed = abs(difference.sum())
    return float(np.mean(np.abs(sums) >= observed - 1e-9 * np.abs(difference).sum()))


def _correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    if len(a) < 3 or not _sd(a) or not _sd(b):
        return None
    return float(np.clip(np.corrcoef(a, b)[0, 1], -1.0, 1.0))


def _sd(values: np.ndarray) -> float:
    """The sample standard deviation, exactly 0 where the values differ by rounding only."""
    if len(values) < 2 or np.ptp(values) <= 1e-12 * np.abs(values).max():
        return 0.0
    return float(values.std(ddof=1))


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([math.nan if value is None else float(value) for value in values], dtype=np.float64)


def _present(values: Sequence[float | None]) -> np.ndarray:
    numbers = _numbers(values)
    return numbers[np.isfinite(numbers)]


def _t_quantile(probability: float, freedom: float) -> float:
    from scipy import special  # a tenth of the import time of scipy.stats

    return float(special.stdtrit(freedom, probability))


def _t_two_sided(t: float, freedom: float) -> float:
    from scipy import special

    return float(2 * special.stdtr(freedom, -abs(t)))


def _normal_quantile(probability: float) -> float:
    from scipy import special

    return float(special.ndtri(probability))
