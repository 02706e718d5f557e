"""Strips: numbers keep their order, their side of a bound and their place, whatever they are."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normlab.doctor import Measurement, Report, Thresholds
from normlab.doctor.display.strips import Column, columns
from tests.doctor.reports import DEEP, HEALTHY, SICK, UNKNOWN, layer, measurement

BOUNDS = Thresholds()


def drawn(*norms: Measurement, thresholds: Thresholds = BOUNDS) -> dict[str, Column]:
    return {column.title: column for column in columns(norms, thresholds)}


def test_a_column_for_each_number_that_is_known() -> None:
    titles = ["Running mean", "Running variance", "Training against evaluation", "Effective samples"]
    assert list(drawn(measurement("a"), layer("b"))) == titles
    assert list(drawn(layer("b"))) == list(drawn()) == []
    assert list(drawn(replace(layer("b"), gap=0.1))) == titles[2:3]
    assert {path for column in drawn(measurement("a"), layer("b")).values() for path in column.strips} == {"a"}


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20), st.floats(1e-3, 10))
def test_places_keep_the_order_and_the_side_of_the_bound(values: list[float], bound: float) -> None:
    norm = Measurement(
        path="a", kind="batch", mean=np.zeros(len(values)), var=np.ones(len(values)), running_mean=np.array(values)
    )
    column = drawn(norm, thresholds=Thresholds(lag=bound))["Running mean"]
    scale, strip = column.scale, column.strips["a"]
    places = [scale.place(value) for value in sorted(values)]
    assert places == sorted(places) and 0 <= places[0] and places[-1] <= 100
    assert scale.place(0) == 50 and math.isclose(scale.place(bound) + scale.place(-bound), 100, abs_tol=0.02)
    low, high = scale.place(-bound), scale.place(bound)
    assert all(low <= place <= high for place in strip.inside)
    assert all(place <= low or place >= high for place in strip.outside)
    assert len(strip.inside) + len(strip.outside) <= len(values)
    assert strip.crossed == (float(np.median(np.abs(values))) > bound)


def test_means_are_in_standard_deviations_and_variances_logarithms_of_their_ratio() -> None:
    norm = Measurement(
        path="a",
        kind="batch",
        mean=np.array([1.0, 1.0]),
        var=np.array([4.0, 4.0]),
        running_mean=np.array([2.0, 0.0]),
        running_var=np.array([4 * math.e, 4 * math.e]),
    )
    found = drawn(norm)
    assert found["Running mean"].strips["a"].text == "0.5" and found["Running variance"].strips["a"].text == "1"
    assert found["Running mean"].strips["a"].said == (
        "Running mean: off by 0.5 in the median, 2 of 2 features beyond the bound"
    )
    scale = found["Running mean"].scale
    assert found["Running mean"].strips["a"].outside == (scale.place(-0.5), scale.place(0.5))


def test_many_features_are_drawn_by_quantiles() -> None:
    strip = drawn(measurement("a", features=5000))["Running mean"].strips["a"]
    assert 32 < len(strip.inside) + len(strip.outside) <= 64


def test_features_without_a_number_are_left_out() -> None:
    norm = replace(measurement("a", features=4), var=np.array([0.0, 1.0, np.nan, np.inf]))
    strip = drawn(norm)["Running mean"].strips["a"]
    assert strip.said.endswith("of 2 features beyond the bound")
    assert (
        "dead"
        not in drawn(*UNKNOWN.measurements.values()).get("Running mean", drawn(measurement("x"))["Running mean"]).strips
    )


def test_a_gap_is_beyond_its_bound_only_if_the_batches_do_not_explain_it() -> None:
    def crossed(gap: float, expected: float) -> bool:
        norm = replace(layer("a"), gap=gap, expected_gap=expected)
        return drawn(norm)["Training against evaluation"].strips["a"].crossed

    assert crossed(0.5, 0.1) and crossed(0.5, math.nan)
    assert not crossed(0.5, 0.3) and not crossed(0.25, 0.01)


def test_the_expected_gap_stands_beside_the_measured_one() -> None:
    column = drawn(measurement("a"), replace(layer("b"), gap=0.2))["Training against evaluation"]
    assert column.strips["a"].expected == column.scale.place(0.05) and column.strips["b"].expected is None
    assert column.strips["a"].said.endswith(", expected 0.05")


def test_effective_samples_are_on_a_logarithmic_axis() -> None:
    column = drawn(*(replace(measurement(name), effective=n) for name, n in {"a": 2.0, "b": 20.0, "c": 200.0}.items()))
    strips, scale = column["Effective samples"].strips, column["Effective samples"].scale
    places = [strips[name].dot or 0 for name in "abc"]
    assert math.isclose(places[1] - places[0], places[2] - places[1], abs_tol=0.02)
    assert [strips[name].crossed for name in "abc"] == [True, False, False]
    assert [text for _, text in scale.labels()] == ["1", "8", "100", "1,000"]
    assert scale.shaded() == [(0.0, scale.place(8))]


def test_a_norm_of_single_examples_has_no_samples_of_a_batch() -> None:
    assert drawn(replace(layer("a"), effective=3.0)) == {}
    for unknown in (math.nan, math.inf, 0.0):
        assert "Effective samples" not in drawn(replace(measurement("a"), effective=unknown))


@pytest.mark.parametrize("report", [HEALTHY, SICK, DEEP])
def test_labels_of_an_axis_never_overlap(report: Report) -> None:
    for column in columns(report.measurements.values(), BOUNDS):
        labels = column.scale.labels()
        assert len(labels) >= 3
        for (left, a), (right, b) in itertools.pairwise(labels):
            assert right - left >= 2 * (len(a) + len(b))
        for start, width in column.scale.shaded():
            assert 0 <= start and width > 0 and start + width <= 100


@pytest.mark.parametrize("shift", [0.01, 0.3, 3.0, 30.0])
def test_an_axis_with_two_sides_is_labelled_on_both(shift: float) -> None:
    for column in list(drawn(measurement("a", shift=shift)).values())[:2]:
        labels = column.scale.labels()
        assert [round(place + other, 1) for (place, _), (other, _) in zip(labels, labels[::-1], strict=True)] == [
            100.0
        ] * len(labels)


def test_bounds_are_those_that_were_given() -> None:
    strict = Thresholds(lag=0.001, gap=0.001, effective=1e6, variance_ratio=1.0001)
    assert all(column.strips["a"].crossed for column in drawn(measurement("a"), thresholds=strict).values())
