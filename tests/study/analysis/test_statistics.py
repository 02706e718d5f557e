"""The statistics are calibrated: levels, power, coverage, and known values from scipy."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from normlab.study.analysis import estimates as S

SIMULATIONS = 2000
RNG = np.random.default_rng


def tolerance(rate: float, draws: int = SIMULATIONS) -> float:
    """Three standard errors of an observed rate."""
    return 3 * math.sqrt(rate * (1 - rate) / draws)


def correlated(rng: np.random.Generator, shape: tuple[int, int], rho: float) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays of standard normals that share a fraction `rho` of their variance at each position."""
    shared = rng.normal(size=shape) * math.sqrt(rho)
    return tuple(shared + math.sqrt(1 - rho) * rng.normal(size=shape) for _ in range(2))  # pyright: ignore


@pytest.mark.parametrize("n", [2, 5, 10])
def test_interval_covers_the_mean_at_its_level(n: int) -> None:
    draws = RNG(n).normal(3.0, 2.0, size=(SIMULATIONS, n))
    intervals = [S.mean_interval(row.tolist()).interval for row in draws]
    covered = np.mean([i is not None and i[0] <= 3.0 <= i[1] for i in intervals])
    assert abs(covered - 0.95) <= tolerance(0.95)


@pytest.mark.parametrize("margin", [0.0, 0.3])
@pytest.mark.parametrize("steps", [None, 0.5], ids=["continuous", "in steps"])
@pytest.mark.parametrize("n", [2, 5, 10])
def test_a_against_a_claims_a_difference_at_most_at_the_level(n: int, steps: float | None, margin: float) -> None:
    a, b = correlated(RNG(n), (SIMULATIONS, n), rho=0.6)
    if steps:  # errors are multiples of one test example: differences of a few seeds are often all equal
        a, b = np.round(a / steps) * steps, np.round(b / steps) * steps
    verdicts = [S.verdict(S.paired(x.tolist(), y.tolist()).interval, margin) for x, y in zip(a, b, strict=True)]
    claims = np.mean([v in (S.BETTER, S.WORSE) for v in verdicts])
    assert claims <= 0.05 + tolerance(0.05)


def test_welch_a_against_a_claims_at_most_at_the_level() -> None:
    a, b = correlated(RNG(0), (SIMULATIONS, 6), rho=0.0)
    a[:, 0] = np.nan
    claims = np.mean([S.paired(x.tolist(), y.tolist()).p < 0.05 for x, y in zip(a, b, strict=True)])  # pyright: ignore
    assert claims <= 0.05 + tolerance(0.05)


@pytest.mark.parametrize("n", [5, 10])
def test_planted_effect_is_found_with_four_fifths_of_the_power_of_the_t_test(n: int) -> None:
    effect = 1.2
    a, b = correlated(RNG(n), (SIMULATIONS, n), rho=0.5)  # the difference has variance 2 (1 - rho) = 1
    found = np.mean(
        [
            S.verdict(S.paired(x.tolist(), y.tolist()).interval, 0.0) == S.WORSE
            for x, y in zip(a + effect, b, strict=True)
        ]
    )
    critical, shift = stats.t.ppf(0.975, n - 1), effect * math.sqrt(n)
    power = stats.nct.sf(critical, n - 1, shift)
    assert 0.8 * power - tolerance(float(power)) <= found <= power + tolerance(float(power))


def test_effect_within_the_margin_is_equivalent_and_never_claimed() -> None:
    a, b = correlated(RNG(1), (500, 20), rho=0.9)
    verdicts = [S.verdict(S.paired(x.tolist(), y.tolist()).interval, 1.0) for x, y in zip(a, b, strict=True)]
    assert set(verdicts) <= {S.EQUIVALENT, S.INCONCLUSIVE}
    assert verdicts.count(S.EQUIVALENT) > 490
    assert {S.judge(S.paired(x.tolist(), y.tolist()), 1.0) for x, y in zip(a, b, strict=True)} == {S.INCONCLUSIVE}


def test_paired_agrees_with_scipy() -> None:
    a, b = RNG(2).normal(size=(2, 8))
    ours, theirs = S.paired(a.tolist(), b.tolist()), stats.ttest_rel(a, b)
    interval = theirs.confidence_interval(0.95)
    assert ours.paired and ours.n == 8
    assert ours.mean == pytest.approx(np.mean(a - b))
    assert ours.p == pytest.approx(theirs.pvalue)
    assert ours.interval is not None
    assert ours.interval[0] <= interval.low + 1e-12 and interval.high - 1e-12 <= ours.interval[1]
    symmetric = S.paired([*a, *b], [*b, *a])  # nothing but Student's where there is no skewness
    low, high = stats.ttest_rel([*a, *b], [*b, *a]).confidence_interval(0.95)
    assert symmetric.skewness == pytest.approx(0) and symmetric.interval == pytest.approx((low, high), rel=1e-3)
    assert ours.rho == pytest.approx(np.corrcoef(a, b)[0, 1])
    flips = stats.permutation_test((a - b,), np.sum, permutation_type="samples", n_resamples=2**8)
    assert ours.p_sign_flip == pytest.approx(flips.pvalue)


def test_missing_partners_fall_back_to_welch() -> None:
    a, b = RNG(3).normal(size=(2, 7))
    ours = S.paired([None, math.nan, *a[2:]], b.tolist())
    theirs: Any = stats.ttest_ind(a[2:], b, equal_var=False)
    interval = theirs.confidence_interval(0.95)
    assert not ours.paired and ours.n == 5 and ours.p_sign_flip is None
    assert ours.p == pytest.approx(theirs.pvalue)
    assert ours.interval is not None
    assert ours.interval[0] <= interval.low + 1e-12 and interval.high - 1e-12 <= ours.interval[1]
    assert ours.rho == pytest.approx(np.corrcoef(a[2:], b[2:])[0, 1])


def test_pairs_missing_on_both_sides_stay_paired() -> None:
    a, b = RNG(4).normal(size=(2, 6)).tolist()
    assert S.paired([None, *a], [math.nan, *b]) == S.paired(a, b)


def test_partners_must_be_aligned() -> None:
    with pytest.raises(ValueError, match="partners at the same positions, got 2 and 1"):
        S.paired([1.0, 2.0], [1.0])


@pytest.mark.parametrize(("n", "smallest"), [(3, 0.25), (5, 0.0625), (6, 0.03125), (10, 0.001953125)])
def test_sign_flip_cannot_be_below_its_smallest_value(n: int, smallest: float) -> None:
    values = (10.0 + RNG(n).normal(size=n)).tolist()
    assert S.paired(values, [0.0] * n).p_sign_flip == smallest


def test_sign_flip_gives_up_where_it_cannot_enumerate() -> None:
    assert S.paired(RNG(0).normal(size=23).tolist(), [0.0] * 23).p_sign_flip is None


@pytest.mark.parametrize("values", [[], [None, math.nan, math.inf], [0.5], [0.5, None]])
def test_too_few_values_give_no_interval(values: list[float | None]) -> None:
    estimate = S.mean_interval(values)
    assert estimate.interval is None and estimate.sd is None
    assert estimate.mean in (None, 0.5) and estimate.n in (0, 1)
    difference = S.paired(values, [0.1] * len(values))
    assert difference.interval is None and difference.p is None
    assert S.verdict(difference.interval, 0.005) == S.INCONCLUSIVE


def test_constant_values_claim_nothing_before_an_exact_test_could() -> None:
    few, enough = S.paired([0.05] * 5, [0.02] * 5), S.paired([0.05] * 6, [0.02] * 6)
    assert few.interval is None and few.p == 0.0625 and few.sd == 0 and few.rho is None
    assert enough.interval == pytest.approx((0.03, 0.03)) and enough.p == 0.03125
    assert S.verdict(enough.interval, 0.005) == S.WORSE
    assert S.mean_interval([0.1] * 3).interval is None


def test_rounding_is_not_spread() -> None:
    a = [0.1 + 0.01 * i for i in range(7)]
    difference = S.paired(a, [value - 0.03 for value in a])
    assert difference.sd == 0 and difference.interval is not None
    assert difference.interval[0] == difference.interval[1] == pytest.approx(0.03)


@pytest.mark.parametrize(("k", "n"), [(0, 5), (1, 5), (5, 5), (3, 10), (0, 20), (50, 100)])
def test_wilson_agrees_with_scipy(k: int, n: int) -> None:
    theirs = stats.binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert S.wilson(k, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_without_trials_knows_nothing_and_refuses_nonsense() -> None:
    assert S.wilson(0, 0) == (0.0, 1.0)
    assert round(S.wilson(0, 5)[1], 2) == 0.43
    with pytest.raises(ValueError, match="k=6 and n=5"):
        S.wilson(6, 5)


def test_holm_known_values() -> None:
    assert S.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx((0.03, 0.06, 0.06, 0.02))
    assert S.holm([0.6, None, 0.9]) == (1.0, None, 1.0)
    assert S.holm([]) == ()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_keeps_order_and_never_lowers(p_values: list[float]) -> None:
    adjusted = S.holm(p_values)
    assert all(q is not None and p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    ranked = [q for _, q in sorted(zip(p_values, adjusted, strict=True))]
    assert ranked == sorted(ranked)  # pyright: ignore


def test_holm_keeps_the_family_at_its_level() -> None:
    p_values = RNG(5).uniform(size=(SIMULATIONS, 6))
    claimed = np.mean([min(S.holm(row.tolist())) < 0.05 for row in p_values])  # pyright: ignore
    assert claimed <= 0.05 + tolerance(0.05)


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((-0.03, -0.01), S.BETTER),
        ((0.01, 0.03), S.WORSE),
        ((-0.004, 0.004), S.EQUIVALENT),
        ((-0.004, 0.006), S.INCONCLUSIVE),
        ((-0.03, -0.004), S.INCONCLUSIVE),
        (None, S.INCONCLUSIVE),
    ],
)
def test_verdicts(interval: tuple[float, float] | None, expected: str) -> None:
    assert S.verdict(interval, 0.005) == expected


def test_seeds_needed_decide_with_the_power_they_promise() -> None:
    n = S.seeds_needed(0.012, 0.01, 0.005)
    assert n is not None
    power = stats.nct.sf(stats.t.ppf(0.975, n - 1), n - 1, (0.012 - 0.005) / 0.01 * math.sqrt(n))
    assert 0.75 <= power <= 0.9


def test_seeds_needed_gives_up_at_the_margin_and_without_data() -> None:
    assert S.seeds_needed(0.005, 0.01, 0.005) is None
    assert S.seeds_needed(None, 0.01, 0.005) is None
    assert S.seeds_needed(0.1, None, 0.005) is None
    assert S.seeds_needed(0.1, 0.0, 0.005) == 6
    assert S.seeds_needed(0.2, 0.001, 0.005) == 2


@pytest.mark.parametrize(("n", "student"), [(5, 1.68), (10, 1.00), (20, 0.66)])
def test_minimal_difference_is_found_in_four_of_five_cases(n: int, student: float) -> None:
    effect = S.minimal_difference(1.0, n)
    assert effect / (1 + 8 / n**2) == pytest.approx(student, abs=0.03)  # the published table's value
    differences = RNG(n).normal(effect, 1.0, size=(SIMULATIONS, n))
    found = np.mean([S.verdict(S.paired(row, np.zeros(n)).interval, 0.0) == S.WORSE for row in differences])  # pyright: ignore
    assert abs(found - 0.8) <= tolerance(0.8)
    assert S.minimal_difference(1.0, 1) == math.inf


def test_a_long_tail_makes_an_interval_reach_further_on_its_side() -> None:
    """Hall's transformation of the studentized mean has the normal's quantile at the end that reaches further."""
    values = [0.0, 0.1, -0.1, 0.2, 0.05, -0.05, 0.0, 3.0, 0.1, 0.1]
    difference = S.paired(values, [0.0] * 10)
    assert difference.mean is not None and difference.error is not None and difference.interval is not None
    low, high = difference.interval
    quantile = stats.t.ppf(0.975, 9)
    assert difference.mean - low == pytest.approx(quantile * difference.error)
    t, s = (difference.mean - high) / difference.error, difference.skewness
    assert t < -2 * quantile and s == pytest.approx(stats.skew(values) / math.sqrt(10))
    assert t + s * t**2 / 3 + s**2 * t**3 / 27 + s / 6 == pytest.approx(-quantile)
    mirrored = S.paired([-value for value in values], [0.0] * 10)
    assert mirrored.interval == pytest.approx((-high, -low))
    assert difference.at(0.95) == difference.interval and difference.at(0.97)[1] > high  # pyright: ignore


def test_equivalent_takes_the_runs_that_show_a_bad_one_in_ten() -> None:
    assert 0.9 ** S.runs_to_see() <= 0.05 < 0.9 ** (S.runs_to_see() - 1)
    assert 6 * 0.9 ** S.runs_to_see(6) <= 0.05 < 6 * 0.9 ** (S.runs_to_see(6) - 1)
    near = [0.001 * (-1) ** seed for seed in range(29)]
    assert S.judge(S.paired(near, [0.0] * 29), 0.005) == S.EQUIVALENT
    assert S.judge(S.paired(near[:28], [0.0] * 28), 0.005) == S.INCONCLUSIVE
    assert S.judge(S.paired([*near, 0.3], [0.0] * 30), 0.005) == S.INCONCLUSIVE


def test_what_is_ruled_out_is_one_sided_and_corrected_for_the_number_of_questions() -> None:
    values = RNG(3).normal(0.0, 1.0, size=30)
    difference = S.paired(values, np.zeros(30))  # pyright: ignore
    low, corrected = difference.at(0.97)[0], difference.at(1 - 0.1 / 6)[0]  # pyright: ignore
    assert corrected < low
    for comparisons, end in ((1, low), (3, low), (6, corrected)):
        assert S.rules_out(difference, -end + 1e-9, comparisons) and not S.rules_out(difference, -end, comparisons)
    assert not S.rules_out(S.paired([0.1], [0.1]), 10.0)


@pytest.mark.parametrize(("more", "fewer"), [(5, 0), (3, 0), (6, 1), (2, 2), (0, 4), (0, 0)])
def test_sign_test_agrees_with_scipy(more: int, fewer: int) -> None:
    n = more + fewer
    expected = stats.binomtest(more, n, alternative="greater").pvalue if n else 1.0
    assert S.sign_test(more, fewer) == pytest.approx(expected)
    assert S.sign_test(S.FEWEST_TO_RECOMMEND, 0) <= 0.05 < S.sign_test(S.FEWEST_TO_RECOMMEND - 1, 0)


def test_outliers_are_few_and_far_out() -> None:
    near = [0.0, 0.1, -0.1, 0.2, 0.05, -0.05, 0.0, 0.1]
    assert S.outliers([*near, 3.0]) == (8,)
    assert S.outliers(near) == () and S.outliers([0.0, 9.0, 0.0]) == ()
    assert S.outliers([*near, 3.0, 3.0, 3.0]) == ()
    assert S.outliers([0.0] * 9 + [0.1]) == (9,)
