"""Test error rates and power on simulated results, by smaller runs of `benchmarks/error_rates.py` with fixed seeds."""

import math

import numpy as np
import pytest

from benchmarks import error_rates as rates
from normlab.study.analysis import estimates
from normlab.study.analysis.estimates import BETTER, EQUIVALENT, runs_to_see

LEVEL = 0.05
SIMULATIONS = 2000


def tolerance(draws: int) -> float:
    """Return three standard errors of a rate at the level."""
    return 3 * math.sqrt(LEVEL * (1 - LEVEL) / draws)


@pytest.mark.parametrize("noise", rates.NOISES, ids=lambda noise: noise.title)
def test_the_script_has_the_intervals_of_the_library(noise: rates.Noise) -> None:
    first, second = noise.draw(np.random.default_rng(0), (5, 12))
    low, high = rates.intervals(first, second, 0.97)
    for row in range(5):
        found = estimates.paired(first[row].tolist(), second[row].tolist()).at(0.97)
        assert found == pytest.approx((low[row], high[row]), rel=1e-6)


@pytest.mark.parametrize("seeds", [10, 30])
@pytest.mark.parametrize("noise", rates.NOISES, ids=lambda noise: noise.title)
def test_norms_that_differ_are_rarely_called_equivalent(noise: rates.Noise, seeds: int) -> None:
    assert rates.false_equivalent(noise, seeds, SIMULATIONS) <= LEVEL + tolerance(SIMULATIONS)


def test_without_a_minimum_of_runs_they_would_be() -> None:
    """Show that the test above can fail: normal theory errs on rare bad runs and on skewed errors."""
    bad = [rates.false_equivalent(rates.NOISES[-1], n, SIMULATIONS, student=True) for n in (5, 10, 20)]
    assert min(bad) > LEVEL + tolerance(SIMULATIONS) and bad[1] > 0.2
    (skewed,) = (noise for noise in rates.NOISES if noise.title == "lognormal (1.0), one norm")
    assert rates.false_equivalent(skewed, 30, SIMULATIONS, student=True) > 0.09


@pytest.mark.parametrize("seeds", [5, 10, 20, 30])
def test_at_most_a_fifth_of_the_power_is_lost(seeds: int) -> None:
    found = rates.power(seeds, 5_000)
    for name in (BETTER,) if seeds < runs_to_see() else (BETTER, EQUIVALENT):
        ours, students = found[name]
        assert students == pytest.approx(0.8, abs=0.05) and ours >= 0.79 * students


@pytest.mark.parametrize("seeds", [10, 20, 40])
def test_a_norm_that_collapses_at_hard_seeds_is_neither_better_nor_recommended(seeds: int) -> None:
    said = rates.hard_seeds(seeds, 100)
    assert said["better"] <= LEVEL + tolerance(100) and said["use"] <= LEVEL + tolerance(100)


@pytest.mark.parametrize("field", rates.FIELDS, ids=lambda field: field.title)
def test_a_wrong_recommendation_is_rarely_sure(field: rates.Field) -> None:
    wrong, _ = rates.sure(field, runs_to_see(len(field.means) - 1), 60)
    assert wrong <= LEVEL + tolerance(60)


def test_a_right_recommendation_is_sure_from_the_minimum_of_runs_on() -> None:
    assert [rates.sure(rates.FIELDS[0], seeds, 20) for seeds in (28, 29)] == [(0.0, 0.0), (0.0, 1.0)]


def test_columns_of_one_norm_under_many_names_claim_a_difference_at_most_at_the_level() -> None:
    found = rates.alike_reports(30)
    assert found["column"] <= LEVEL + tolerance(150)
    assert found["report"] <= 5 * LEVEL + 3 * math.sqrt(0.25 * 0.75 / 30)


def test_headlines_rarely_rule_out_a_norm_at_the_margin() -> None:
    """The lowest of seven norms is not the baseline, so every comparison with it was chosen afterwards."""
    assert rates.false_headlines(*rates.HEADLINES[1], 60) <= LEVEL + tolerance(60)


def test_the_script_prints_its_tables(capsys: pytest.CaptureFixture[str]) -> None:
    rates.main(["--simulations", "20", "--reports", "5"])
    printed = capsys.readouterr().out
    assert printed.count("| --- |") == 8 and "| +30 points in 10 % of runs | 0.0 (" in printed


def test_one_test_set_for_all_seeds_hides_what_another_would_show() -> None:
    drawn, fixed = (rates.missed(14, fixed=fixed, splits=20) for fixed in (False, True))
    assert fixed > 0.5 > drawn
