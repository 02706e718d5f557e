import math

import numpy as np
import pytest

from experiments.claims.images import Images, Part
from experiments.claims.progress import binarized, first, halfway, in_groups, smoothed, speedup
from experiments.claims.race import multiple
from experiments.claims.trainer import Settings, Trained

AT = np.array([20, 40, 60, 80])


def test_curves_are_averaged_over_the_last_observations():
    np.testing.assert_allclose(smoothed(np.array([[1.0, 2.0, 6.0, 4.0]]), 2), [[1.5, 4.0, 5.0]])


def test_the_first_step_at_a_target_counts_even_if_the_curve_falls_again():
    curves = np.array([[0.1, 0.5, 0.2, 0.6], [0.1, 0.2, 0.3, 0.4]])
    np.testing.assert_array_equal(first(AT, curves, np.array([0.5, 0.5])), [40.0, math.nan])


def test_half_time_is_at_half_of_the_steps():
    assert halfway(AT, np.array([[1.0, 2.0, 3.0, 4.0]])) == [2.0]


def test_never_is_counted_and_not_averaged():
    some = speedup([800, 800, 900], [400, math.nan, 450])
    assert (some.reached, some.of) == (2, 3)
    assert math.isclose(some.ratio.mean, 2.0)
    assert some.text().endswith("only 2 of 3 seeds")
    assert not some.faster
    never = speedup([800, 900], [math.nan, math.nan])
    assert never.text() == "never (0 of 2 seeds)"
    assert never.slower and never.excludes(1.1)


def test_a_run_that_arrives_where_the_other_does_not_is_faster():
    alone = speedup([math.nan] * 5, [100.0, 110, 120, 130, 140])
    assert alone.faster and not alone.slower and not alone.excludes(1.1) and not alone.reaches(1.1)
    assert alone.text() == "reached in 5 of 5 seeds, by the slower run in 0"
    one = speedup([300.0, *[math.nan] * 4], [100.0, 110, 120, 130, 140])
    assert one.faster and one.text() == "3.00 (no interval, n = 1), reached in 5 of 5 seeds, by the slower run in 1"
    neither = speedup([math.nan] * 5, [math.nan] * 5)
    assert not neither.faster and not neither.slower and not neither.excludes(1.1)


def test_a_wide_interval_does_not_reach_a_factor():
    wide, narrow = speedup([1_000] * 4, [500, 20, 1_000, 100]), speedup([1_000] * 4, [70, 71, 72, 73])
    assert wide.ratio.high > 14 and not wide.reaches(14)
    assert narrow.reaches(14) and not narrow.excludes(14)


def test_groups_have_one_size_and_lose_no_run():
    sizes = []

    def run(settings: Settings) -> Trained[np.ndarray]:
        sizes.append(len(np.asarray(settings.seed)))
        return Trained({}, {}, 10 * np.asarray(settings.seed) + np.asarray(settings.rate))

    settings = Settings(np.arange(5), np.array([0.0, 1.0, 2.0, 3.0, 4.0]))
    seen = np.concatenate([some.seen for some in in_groups(run, settings, 3)])
    assert sizes == [3, 3]
    np.testing.assert_array_equal(seen, 11 * np.arange(5))


@pytest.mark.parametrize("base", [0.003, 0.01, 0.03, 0.1, 0.3, 1.0])
@pytest.mark.parametrize("below", [10, 30])
def test_a_base_below_by_a_factor_comes_back_by_it(base: float, below: int):
    assert multiple(base, below, below) == base == multiple(base, 1)


def test_pixels_are_binarized_at_the_middle_of_the_scale():
    part = Part(np.array([-0.4, 1.1, 1.3, 2.8], np.float32).reshape(4, 1, 1, 1), np.zeros(4, np.int32))
    found = binarized(Images(train=part, validation=part, test=part, classes=1, name="a"))
    assert found.test.inputs.ravel().tolist() == [0.0, 0.0, 1.0, 1.0]
