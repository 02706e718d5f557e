"""The recommendation: who is best with failures counted, how sure, what it costs, and where the data cannot decide."""

import dataclasses
import re
from collections.abc import Callable

import pytest

from normlab.study.analysis.results import Analysis
from normlab.study.design.problem import Metric
from normlab.study.design.records import EVALUATE, Configuration, Record
from normlab.study.design.request import options
from normlab.study.report import formatting
from normlab.study.report.advice import Choice, recommend, support
from tests.support import synthetic
from tests.support.synthetic import DEPLOYED, ISOLATED, analysis_of, failed

SMALL = dict(
    problems=synthetic.problems()[:1],
    norms=("batch", "layer", "rms"),
    curves=(dataclasses.replace(DEPLOYED, factor=dataclasses.replace(DEPLOYED.factor, values=(2, 32))),),
)
NOISE = (0.1, -0.4, 0.3, 0.0, -0.2, 0.4, -0.3, 0.2, -0.1, 0.0)
"""Of mean zero; times 1 % the same for norms that are to be paired exactly."""


def planted(
    error: Callable[[Configuration], float],
    spread: Callable[[Configuration], float] = lambda configuration: 0.0,
    step: Callable[[Configuration], float] = lambda configuration: 1e-4,
    fails: Callable[[Configuration, int], bool] = lambda configuration, seed: False,
) -> Callable[[Record], Record]:
    """Give every evaluation run its configuration's error, noise that pairs share, and `spread` that they do not."""

    def change(record: Record) -> Record:
        configuration, seed = record.run.configuration, record.run.seed
        cost = {**record.cost, "step": step(configuration)}
        if record.run.stage != EVALUATE:
            return dataclasses.replace(record, cost=cost)
        if fails(configuration, seed):
            return dataclasses.replace(failed(record), cost=cost)
        test = error(configuration) + 0.01 * NOISE[seed % 10] + spread(configuration) * NOISE[3 * seed % 10]
        return dataclasses.replace(record, cost=cost, metrics={**record.metrics, "test": test, "train_loss": test})

    return change


def by_norm(**values: float) -> Callable[[Configuration], float]:
    return lambda configuration: values.get(configuration.norm, values.get("others", 0.0))


MANY = {"seeds": 40}
"""Enough to be sure of one of three norms."""

NEAR = by_norm(batch=0.030, layer=0.031, rms=0.032)


def small(change: Callable[[Record], Record], tier: str = "standard", **comparison: object) -> Analysis:
    return analysis_of(change, tier, **{**SMALL, **comparison})  # pyright: ignore[reportArgumentType]


def first(analysis: Analysis) -> Choice:
    return recommend(analysis).choices[0]


def test_the_lowest_error_is_recommended_whatever_steps_take() -> None:
    """A loaded machine changes times, and must not change the answer."""
    errors, spread = by_norm(batch=0.05, layer=0.030, rms=0.032), by_norm(rms=0.008)
    quiet = by_norm(batch=5e-5, layer=2e-4, rms=1e-4)
    loaded = by_norm(batch=5e-4, layer=1e-5, rms=3e-2)
    choice, again = (first(small(planted(errors, spread, steps), settings=MANY)) for steps in (quiet, loaded))
    assert choice.norm == "layer" and choice.reason == "lowest mean error"
    assert (choice.to_baseline, choice.to_fastest, choice.step_seconds) == (4.0, 4.0, 2e-4)
    assert choice.error and choice.error.mean == pytest.approx(0.030)
    times = dict(step_seconds=None, to_baseline=None, to_fastest=None)
    assert dataclasses.replace(choice, **times) == dataclasses.replace(again, **times)


def test_it_is_sure_with_so_many_seeds_that_a_bad_run_in_ten_would_have_been_seen() -> None:
    change = planted(by_norm(batch=0.05, layer=0.030, rms=0.0302))
    enough, too_few = (recommend(small(change, settings={"seeds": seeds})) for seeds in (36, 35))
    assert enough.choices[0].sure and enough.choices[0].seeds_needed is None
    assert "MLP on digits: use layer norm at batch size 2 and 32; 97 % intervals rule out" in enough.sentence
    choice = too_few.choices[0]
    assert choice.norm == "layer" and not choice.sure and not choice.undecided and choice.seeds_needed == 36
    assert "for now use layer norm" in too_few.sentence
    assert "35 runs miss what goes wrong in one of ten with a chance of 3 % (36 seeds" in too_few.sentence


def test_without_times_the_lowest_mean_decides() -> None:
    timeless = planted(by_norm(batch=0.05, layer=0.030, rms=0.032))
    recommendation = recommend(small(lambda record: dataclasses.replace(timeless(record), cost={})))
    choice = recommendation.choices[0]
    assert choice.norm == "layer" and choice.step_seconds is None and choice.to_baseline is None
    assert "step" not in str(recommendation)


def test_a_norm_that_may_be_better_makes_it_unsure() -> None:
    spread = by_norm(rms=0.05, others=0.0)
    choice = first(small(planted(by_norm(batch=0.05, layer=0.030, rms=0.0305), spread)))
    assert choice.norm == "layer" and not choice.sure and choice.undecided == ("rms",)
    text = recommend(small(planted(by_norm(batch=0.05, layer=0.030, rms=0.0305), spread))).sentence
    assert "RMS norm may still be the better choice" in text


def test_a_seed_that_alone_keeps_a_norm_in_question_is_named() -> None:
    change = planted(by_norm(batch=0.05, layer=0.030, rms=0.0302))

    def one_bad(record: Record) -> Record:
        changed, run = change(record), record.run
        bad = run.stage == EVALUATE and run.configuration.norm == "layer" and run.seed == 7
        error = changed.metrics.get("test")
        return dataclasses.replace(changed, metrics={**changed.metrics, "test": 0.4}) if bad and error else changed

    text = recommend(small(one_bad, settings=MANY)).sentence
    assert "layer norm may still be the better choice" in text and "seed 7 alone keeps that open)" in text


def test_seeds_needed_are_given_where_they_can_be_estimated() -> None:
    errors, spread = by_norm(batch=0.09, layer=0.030, rms=0.031), by_norm(rms=0.05)
    choice = first(small(planted(errors, spread)))
    assert choice.undecided == ("rms",) and choice.seeds_needed is not None and choice.seeds_needed >= 36
    assert f"about {choice.seeds_needed} seeds would decide" in recommend(small(planted(errors, spread))).sentence


@pytest.mark.parametrize("seeds", [10, 40])
def test_an_order_that_failures_reverse_recommends_nothing(seeds: int) -> None:
    errors = by_norm(batch=0.05, layer=0.01, rms=0.03)

    def sometimes(number: int) -> Choice:
        change = planted(errors, fails=lambda configuration, seed: configuration.norm == "layer" and seed < number)
        return first(small(change, settings={"seeds": seeds}))

    assert sometimes(0).norm == "layer"
    for number in (1, 3):
        choice = sometimes(number)
        assert choice.norm is None and not choice.sure
        failing = f"fails in {number} of {seeds} runs, and RMS norm in 0 of {seeds}"
        assert choice.reason == f"where it trains, layer norm has the lowest error, but {failing}"


def test_failures_are_compared_with_those_of_other_norms() -> None:
    """All fail as often: there is no limit of its own, but nothing is sure."""
    change = planted(by_norm(batch=0.05, layer=0.01, rms=0.03), fails=lambda configuration, seed: seed % 2 == 0)
    recommendation = recommend(small(change, settings=MANY))
    assert recommendation.choices[0].norm == "layer"
    assert "(40 of 80 runs failed)" in recommendation.sentence


def test_a_norm_that_fails_more_often_is_out_where_errors_are_alike() -> None:
    change = planted(
        by_norm(batch=0.05, layer=0.030, rms=0.0305),
        fails=lambda configuration, seed: configuration.norm == "rms" and seed < 8,
    )
    assert first(small(change, settings=MANY)).sure
    broken = planted(NEAR, fails=lambda configuration, seed: configuration.norm == "batch" and seed < 8)
    recommendation = recommend(small(broken, settings=MANY))
    assert recommendation.choices[0].norm == "layer" and recommendation.choices[0].reason.startswith(
        "lowest mean error"
    )
    assert "batch norm fails in 8 of 40 runs at batch size 2" in recommendation.sentence


def test_nothing_is_recommended_where_every_run_fails() -> None:
    recommendation = recommend(small(planted(NEAR, fails=lambda configuration, seed: True)))
    assert all(choice.norm is None and not choice.sure for choice in recommendation.choices)
    assert "no norm can be recommended at batch size 2 and 32: runs of every norm failed" in recommendation.sentence


def test_too_few_runs_recommend_nothing_and_say_how_many_would_do() -> None:
    assert all(choice.norm for choice in recommend(small(planted(NEAR), tier="quick")).choices)
    few = recommend(small(planted(NEAR), tier="quick", settings={"seeds": 4}))
    assert not any(choice.norm for choice in few.choices)
    assert "too few runs to recommend a norm, which takes 5" in few.sentence


def test_what_a_number_of_seeds_can_support_is_known_beforehand() -> None:
    assert support(4, 7) == (
        "4 seeds can support no recommendation, which takes 5, or 46 to be sure, and 29 to call norms equivalent."
    )
    assert support(10, 2).startswith(
        "10 seeds can support recommendations for now, none that is sure: with 2 norms that"
    )
    assert support(30, 7).endswith("with 7 norms that takes 46.")
    assert support(46, 7) == ""
    assert "Fewer than 5 support no recommendation, and fewer than 29 (46 with 7 norms)" in help_of("seeds")


def help_of(option: str) -> str:
    return options(None)[option].help


def test_the_break_of_the_baseline_is_said_where_it_is_worst() -> None:
    recommendation = recommend(analysis_of())
    mlp, conv = recommendation.sentences
    assert re.search(r"batch norm loses 1\d\.\d points \[1\d\.\d, 1\d\.\d\] to \S+ norm at batch size 2\.$", mlp)
    assert "loses" not in conv and mlp.count(". ") == 1
    assert {choice.curve for choice in recommendation.choices} == {"deployed"}
    assert [choice.value for choice in recommendation.choices[:5]] == [2, 4, 8, 32, 128]
    assert recommendation.choices[0].norm != "batch"


def test_what_limits_it_comes_first() -> None:
    smoke = recommend(analysis_of(tier="smoke"))
    assert smoke.sentence.startswith("No claim is made: tier `smoke` trains 2 seeds") and not smoke.choices
    assert str(recommend(analysis_of(tier="quick"))).startswith("Exploratory, with 5 seeds per configuration.\n")
    isolated = recommend(analysis_of(curves=(ISOLATED,)))
    assert isolated.sentence == "No recommendation: none of the curves that were run advises."


def test_a_model_that_ignores_its_norm_gets_a_question() -> None:
    recommendation = recommend(small(planted(by_norm(others=0.03), spread=by_norm())))
    assert "all norms gave identical runs; does the model use its norm?" in recommendation.sentence
    assert not recommendation.choices


def test_a_metric_that_is_no_fraction_keeps_its_unit() -> None:
    losses = (dataclasses.replace(synthetic.problems()[0], metric=Metric(name="test loss", percent=False)),)
    text = recommend(small(planted(by_norm(batch=0.5, layer=0.31, rms=0.32)), problems=losses, margin=0.02)).sentence
    assert "The lowest test loss is 0.310 [0.308, 0.312] with layer norm" in text
    assert "%" not in re.sub(r"97 % intervals|a chance of 35 %", "", text) and "points" not in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (formatting.value(Metric(), 0.1789), "17.9"),
        (formatting.value(Metric(), None), formatting.DASH),
        (formatting.value(Metric(percent=False), 1.23456), "1.23"),
        (formatting.value(Metric(percent=False), 123.4), "123"),
        (formatting.value(Metric(percent=False), 12345.6), "12346"),
        (formatting.value(Metric(percent=False), 0.0), "0.00"),
        (formatting.signed(Metric(), 0.1544), "+15.4"),
        (formatting.signed(Metric(), -0.1544), f"{formatting.MINUS}15.4"),
        (formatting.signed(Metric(), -0.0001), "0.0"),
        (formatting.signed(Metric(percent=False), -0.0123), f"{formatting.MINUS}0.0123"),
        (formatting.quantity(Metric(), 0.023), "2.3 %"),
        (formatting.quantity(Metric(percent=False), 0.023), "0.0230"),
        (formatting.interval(Metric(), None), ""),
        (formatting.interval(Metric(), (0.01, 0.034)), "[1.0, 3.4]"),
        (formatting.interval(Metric(), (-0.01, 0.034), sign=True), f"[{formatting.MINUS}1.0, +3.4]"),
        (formatting.half(Metric(), (0.01, 0.034)), "1.2"),
        (formatting.number(0.0005), "0.00050"),
        (formatting.number(12.0), "12"),
        (formatting.number(None), formatting.DASH),
        (formatting.p_value(1e-9), "<0.0001"),
        (formatting.p_value(0.0312), "0.031"),
        (formatting.ratio(1.0384), "1.0x"),
        (formatting.ratio(30.0), "30x"),
        (formatting.seconds(None), formatting.DASH),
        (formatting.seconds(0.00013), "130 µs"),
        (formatting.seconds(0.0000031), "3.1 µs"),
        (formatting.seconds(0.00999), "9.99 ms"),
        (formatting.seconds(0.346), "0.35 s"),
        (formatting.seconds(59.7), "1 min 0 s"),
        (formatting.seconds(252.0), "4 min 12 s"),
        (formatting.seconds(7300.0), "2 h 1 min"),
        (formatting.size(640), "640 B"),
        (formatting.size(1_500_000), "1.5 MB"),
        (formatting.size(999_999), "1 MB"),
        (formatting.size(None), formatting.DASH),
        (formatting.count(1, "seed"), "1 seed"),
        (formatting.listed(["a", "b", "c"], "or"), "a, b or c"),
    ],
)
def test_numbers_for_people(text: str, expected: str) -> None:
    assert text == expected


def test_a_norm_called_no_norm_denies_nothing() -> None:
    change = planted(by_norm(none=0.030, batch=0.05, layer=0.0305), spread=by_norm(layer=0.05))
    text = recommend(small(change, norms=("none", "batch", "layer"))).sentence
    assert "not settled; for now use “no norm” at batch size 2 and 32, but layer norm may" in text


def test_failures_of_the_norm_that_is_used_are_in_the_sentence() -> None:
    change = planted(
        by_norm(batch=0.02, others=0.2), fails=lambda configuration, seed: configuration.norm == "batch" and seed == 3
    )
    recommendation = recommend(small(change))
    assert recommendation.choices[0].norm == "batch"
    assert "(2 of 20 runs failed)" in recommendation.sentence
