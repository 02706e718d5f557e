"""Estimates, tests and verdicts over a few repeated runs, independent of their content.

Everywhere lower is better, `None` and non-finite values are missing, and what the data do not allow is `None`, never
NaN. Means have Student-t intervals: over five values a percentile bootstrap of nominal 95 % covers 83 %. Differences,
which verdicts rest on, have at each end the wider of Student's interval and Hall's, which follows the skewness that a
few bad runs bring. Measured error rates and power: `docs/explanation/statistics.md`, made by
`benchmarks/error_rates.py`.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

BETTER, WORSE, EQUIVALENT, INCONCLUSIVE = "better", "worse", "equivalent", "inconclusive"

Interval = tuple[float, float]

CAUTIOUS = 0.97
"""Level of intervals that show the absence of a difference: 95 % is too little where errors are skewed."""

UNSEEN = 0.1
"""The share of bad runs that must show, with a chance of 95 %, before norms are called equivalent or a choice sure."""

FEWEST_TO_RECOMMEND = 5
"""Fewest runs by which a test can show that a norm fails more often: if all of five fail, p is 1 / 2**5."""

_MOST_SIGN_FLIPS = 22
"""Pairs up to which all sign flips are counted."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean and its interval.

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
    """The mean of `a - b`, its interval and test.

    Attributes:
        mean: Mean difference, negative where `a` is lower; `None` where one side is empty.
        interval: Interval of the mean difference, or `None`: at each end the wider of Student's and Hall's.
        p: Two-sided p of Student's t-test, or `None`.
        p_sign_flip: Two-sided p of the exact sign-flip test; `None` unpaired or with too many pairs to enumerate.
        rho: Observed correlation over the complete pairs; `None` below three pairs or where one side is constant.
        sd: Standard deviation of one difference, `None` where unknown.
        n: Pairs; for Welch the size of the smaller side.
        paired: Whether partners were compared; False where some were missing and Welch's test was used.
        error: Standard error of the mean difference, `None` where unknown.
        freedom: Its degrees of freedom.
        skewness: Skewness of the mean difference: the skewness of one difference over the root of `n`.
    """

    mean: float | None
    interval: Interval | None
    p: float | None
    p_sign_flip: float | None
    rho: float | None
    sd: float | None
    n: int
    paired: bool
    error: float | None = None
    freedom: float = 0.0
    skewness: float = 0.0

    def at(self, level: float) -> Interval | None:
        """Compute the interval of the mean difference at another level."""
        if self.mean is None or self.error is None:
            return None
        return _interval(self.mean, self.error, self.freedom, self.n, level, self.skewness)


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
            f"Expected `values_a` and `values_b` to have partners at the same positions, got {len(values_a)} and "
            f"{len(values_b)} values. Put `None` where a partner is missing."
        )
    a, b = _numbers(values_a), _numbers(values_b)
    there = np.isfinite(a) & np.isfinite(b)
    if np.array_equal(np.isfinite(a), np.isfinite(b)):
        return _matched(a[there], b[there], level)
    return _welch(a[np.isfinite(a)], b[np.isfinite(b)], level, rho=_correlation(a[there], b[there]))


def wilson(k: int, n: int, level: float = 0.95) -> Interval:
    """Compute the Wilson score interval of a proportion: `k` of `n`; (0, 1) without any trial.

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
    """Judge a difference by its interval, lower being better.

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


def judge(difference: Difference, margin: float) -> str:
    """Judge a difference like `verdict`, with `equivalent` only where bad runs would have shown.

    A failure mode that strikes one side in a tenth of its runs is absent from 10 runs with a chance of 35 %, and then
    they are what runs without it would be: whoever calls those equivalent is wrong as often. So it takes
    `runs_to_see` runs, and an interval of the level `CAUTIOUS`.
    """
    shown = verdict(difference.interval, margin)
    if shown != EQUIVALENT:
        return shown
    enough = difference.n >= runs_to_see() and verdict(difference.at(CAUTIOUS), margin) == EQUIVALENT
    return EQUIVALENT if enough else INCONCLUSIVE


def rules_out(difference: Difference, margin: float, comparisons: int = 1) -> bool:
    """Decide whether `a` is shown not to be lower than `b` by the margin or more, as one of several tests."""
    interval = difference.at(max(CAUTIOUS, 1 - 0.1 / comparisons))  # one-sided, 5 % in all
    return interval is not None and interval[0] > -margin


def runs_to_see(comparisons: int = 1, share: float = UNSEEN, level: float = 0.95) -> int:
    """Count the runs that show a failure mode of some share at least once, in each of several norms, at a level.

    >>> runs_to_see(), runs_to_see(6)
    (29, 46)
    """
    return math.ceil(math.log((1 - level) / max(1, comparisons)) / math.log(1 - share))


def sign_test(more: int, fewer: int) -> float:
    """Compute the exact one-sided p of `more` against `fewer` where either is as likely (McNemar's test)."""
    n = more + fewer
    return sum(math.comb(n, k) for k in range(more, n + 1)) / 2**n


def outliers(values: Sequence[float]) -> tuple[int, ...]:
    """Find the places of values that are more than five robust standard deviations from the median, if they are few.

    Args:
        values: Finite numbers.

    Returns:
        Places in order; none where more than a fifth of the values would be outliers, which are then a part of it.
    """
    if len(values) < 4:
        return ()
    distance = np.abs(np.asarray(values) - np.median(values))
    spread = max(1.4826 * float(np.median(distance)), 1e-12 * float(np.abs(values).max()))
    found = tuple(int(place) for place in np.flatnonzero(distance > 5 * spread))
    return found if 5 * len(found) <= len(values) else ()


def seeds_needed(
    mean: float | None, sd: float | None, margin: float, *, level: float = 0.95, power: float = 0.8, most: int = 1000
) -> int | None:
    """Estimate the total number of replicates that would decide, if difference and spread are as observed.

    Args:
        mean: Observed mean difference.
        sd: Observed standard deviation of one difference.
        margin: See `verdict`.
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
    """Compute the smallest true difference that `n` replicates of spread `sd` find with chance `power` (approximate).

    The last factor is what Hall's interval costs beside Student's, fitted to simulations of normal data.
    """
    if n < 2:
        return math.inf
    student = (_t_quantile((1 + level) / 2, n - 1) + _t_quantile(power, n - 1)) * sd / math.sqrt(n)
    return student * (1 + 8 / n**2)


def _matched(a: np.ndarray, b: np.ndarray, level: float) -> Difference:
    difference = a - b
    if len(a) and np.ptp(difference) <= 1e-12 * max(np.abs(a).max(), np.abs(b).max()):
        difference = np.full_like(difference, difference[0])  # spread that is only rounding is none
    n, p_sign_flip = len(difference), _sign_flip(difference)
    mean = float(difference.mean()) if n else None
    sd = _sd(difference) if n > 1 else None
    error = None if sd is None else sd / math.sqrt(n)
    found = Difference(
        mean=mean,
        interval=None,
        p=_t_test(mean, error, n, p_sign_flip),
        p_sign_flip=p_sign_flip,
        rho=_correlation(a, b),
        sd=sd,
        n=n,
        paired=True,
        error=error,
        freedom=n - 1,
        skewness=_third(difference) / error**3 if error else 0.0,
    )
    return replace(found, interval=found.at(level))


def _t_test(mean: float | None, error: float | None, n: int, p_if_constant: float | None) -> float | None:
    if mean is None or error is None:
        return None
    return _t_two_sided(mean / error, n - 1) if error else p_if_constant


def _welch(a: np.ndarray, b: np.ndarray, level: float, rho: float | None) -> Difference:
    n = min(len(a), len(b))
    mean = float(a.mean() - b.mean()) if n else None
    if mean is None or n < 2:
        return Difference(mean=mean, interval=None, p=None, p_sign_flip=None, rho=rho, sd=None, n=n, paired=False)
    squares = np.array([_sd(a) ** 2 / len(a), _sd(b) ** 2 / len(b)])
    error = math.sqrt(squares.sum())
    freedom = float(squares.sum() ** 2 / (squares**2 / [len(a) - 1, len(b) - 1]).sum()) if error else n - 1
    found = Difference(
        mean=mean,
        interval=None,
        p=_t_two_sided(mean / error, freedom) if error else None,
        p_sign_flip=None,
        rho=rho,
        sd=math.sqrt(_sd(a) ** 2 + _sd(b) ** 2),
        n=n,
        paired=False,
        error=error,
        freedom=freedom,
        skewness=(_third(a) - _third(b)) / error**3 if error else 0.0,
    )
    return replace(found, interval=found.at(level))


def _interval(
    mean: float, error: float, freedom: float, n: int, level: float, skewness: float = 0.0
) -> Interval | None:
    if error == 0:
        return (mean, mean) if n >= _enough_when_constant(level) else None
    low, high = reach(freedom, skewness, level)
    return mean - float(low) * error, mean + float(high) * error


def reach(freedom: float, skewness: float, level: float) -> Interval:
    """Compute how many standard errors an interval of a mean extends down and up; also for arrays.

    Hall (1992): with the skewness `s` of the mean, `t + s t^2 / 3 + s^2 t^3 / 27 + s / 6` has the normal's quantiles to
    a higher order than the studentized mean `t`, and a closed inverse. A long tail to the right makes it reach further
    up than Student's quantile and less far down; the wider of the two is taken at each end.
    """
    from scipy import special

    quantile = special.stdtrit(freedom, (1 + level) / 2)
    s = np.where(np.abs(skewness) < 1e-4, 1e-4, skewness)
    down, up = (sign * 3 / s * (np.cbrt(1 + s * (sign * quantile - s / 6)) - 1) for sign in (1, -1))
    return np.maximum(quantile, down)[()], np.maximum(quantile, up)[()]


def _third(values: np.ndarray) -> float:
    """Compute the third central moment of the mean of values, with the spread of `_sd`."""
    n, sd = len(values), _sd(values)
    centred = values - values.mean()
    second = float((centred**2).mean())
    return float((centred**3).mean()) / second**1.5 * sd**3 / n**2 if sd else 0.0


def _enough_when_constant(level: float) -> int:
    """Return the fewest values at which the exact sign-flip test, with p of at least 2 / 2**n, can reach a level."""
    return math.ceil(1 - math.log2(1 - level) - 1e-9)


def _sign_flip(difference: np.ndarray) -> float | None:
    """Compute the share of the 2**n sign patterns whose sum is at least as far from zero as the observed one."""
    if not 2 <= len(difference) <= _MOST_SIGN_FLIPS:
        return None
    reached = abs(difference.sum()) - 1e-9 * np.abs(difference).sum()
    if reached <= 0:
        return 1.0
    middle = len(difference) // 2
    left, right = (_signed_sums(part) for part in (difference[:middle], difference[middle:]))
    right.sort()
    above = len(right) - np.searchsorted(right, reached - left)  # as many are below minus that
    return 2 * float(above.sum()) / (len(left) * len(right))


def _signed_sums(values: np.ndarray) -> np.ndarray:
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return sums


def _correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    if len(a) < 3 or not _sd(a) or not _sd(b):
        return None
    return float(np.clip(np.corrcoef(a, b)[0, 1], -1.0, 1.0))


def _sd(values: np.ndarray) -> float:
    """Compute the sample standard deviation, exactly 0 where the values differ by rounding only."""
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
