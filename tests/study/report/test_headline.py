"""Headlines: what is ruled out comes first, values with one answer are one clause, and no norm is a winner unshown."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest

from normlab.study.analysis.analyse import analyse
from normlab.study.analysis.estimates import BETTER, WORSE
from normlab.study.analysis.results import Analysis
from normlab.study.design.factors import Curve, Factor
from normlab.study.design.problem import Metric
from normlab.study.design.records import EVALUATE, Configuration, Record
from normlab.study.report.headline import headlines, where
from tests.support import synthetic
from tests.support.synthetic import DEPLOYED, ISOLATED, a_comparison, analysis_of, failed, simulate, some_settings

NORMS = ("batch", "layer", "rms")
Errors = Callable[[str, Any], float]
NOISE = (0.1, -0.4, 0.3, 0.0, -0.2, 0.4, -0.3, 0.2, -0.1, 0.0)


def of(*values: Any, name: str = "batch_size", curve: Curve = DEPLOYED) -> Curve:
    factor = Factor(name=name, label=name.replace("_", " "), flag="--values", values=values)
    return dataclasses.replace(curve, factor=factor, config=lambda value: {"batch_size": value})


def planted(error: Errors, fails: Callable[[Configuration, int], bool] = lambda *_: False) -> synthetic.Change:
    """Give every evaluation run its error and noise that differs between norms."""

    def change(record: Record) -> Record:
        configuration, seed = record.run.configuration, record.run.seed
        if record.run.stage != EVALUATE:
            return record
        if fails(configuration, seed):
            return failed(record)
        value = dict(configuration.config)["batch_size"]
        test = error(configuration.norm, value) + 0.02 * NOISE[(3 * seed + sum(map(ord, configuration.norm))) % 10]
        return dataclasses.replace(record, metrics={**record.metrics, "test": test, "train_loss": test})

    return change


def said(error: Errors, *values: Any, norms: tuple[str, ...] = NORMS, name: str = "batch_size", **more: Any) -> str:
    """The headline of one problem."""
    settings, fails = more.pop("settings", None), more.pop("fails", lambda *_: False)
    fields: dict[str, Any] = dict(
        problems=synthetic.problems()[:1], norms=norms, curves=(of(*values, name=name),), baseline=norms[0]
    )
    analysis = analysis_of(planted(error, fails), more.pop("tier", "standard"), settings, **{**fields, **more})
    (text,) = headlines(analysis)
    return text


def breaks_at_2(norm: str, value: Any) -> float:
    return 0.178 if (norm, value) == ("batch", 2) else 0.021


def test_what_is_ruled_out_comes_first_then_the_values_without_a_difference() -> None:
    assert said(breaks_at_2, 2, 4, 8, 32) == (
        "Avoid batch norm at batch size 2 (17.8 % against 2.1 %). From 4 up the 10 seeds show no difference."
    )


def test_values_with_the_same_answer_are_one_clause() -> None:
    def error(norm: str, value: Any) -> float:
        return 0.1 + 0.01 * value if norm == "batch" and value < 8 else 0.021

    assert said(error, 2, 4, 8) == (
        "Avoid batch norm at batch size 2 and 4 (14.0 % against 2.1 % at 4). At 8 the 10 seeds show no difference."
    )
    assert said(error, 2, 4, 6) == (
        "Avoid batch norm at any batch size (16.0 % against 2.1 % at 6). The 10 seeds show no other difference."
    )
    assert said(error, 2, 3, 4, 8).startswith("Avoid batch norm up to batch size 4 (14.0 % against 2.1 % at 4).")


def test_norms_with_the_same_answer_are_one_clause() -> None:
    errors = {"batch": 0.1, "layer": 0.2}
    text = said(lambda norm, _: errors.get(norm, 0.021), 2, norms=(*NORMS, "group", "none"))
    assert text == (
        "Avoid batch norm and layer norm at batch size 2 (up to 20.0 % against 2.1 %). "
        "The 10 seeds show no other difference."
    )


def test_where_few_are_left_these_are_named() -> None:
    text = said(lambda norm, value: 0.021 if norm == "rms" or value > 2 else 0.1 + 0.01 * len(norm), 2, 32)
    assert text == (
        "Avoid every norm but RMS norm at batch size 2 (15.0 % or more against 2.1 %). "
        "At 32 the 10 seeds show no difference."
    )


def test_of_many_clauses_the_worst_are_there() -> None:
    many = (*NORMS, "group", "batch_renorm", "none")

    def error(norm: str, value: Any) -> float:
        return 0.1 + 0.01 * value if norm == many[value % 5] else 0.021

    text = said(error, 1, 2, 3, 4, 5, norms=many)
    assert text.startswith("Avoid batch norm at batch size 5 (15.0 % against 2.1 %), batch renorm at 4 (14.0 %")
    assert text.count("against") == 3 and "(13.0 % against 2.1 %) and others in the table." in text


def test_without_a_difference_nothing_is_avoided() -> None:
    assert said(lambda *_: 0.021, 2, 4, 8) == "The 10 seeds show no difference at any batch size."
    assert said(lambda *_: 0.021, 2) == "The 10 seeds show no difference at batch size 2."


def test_an_unsettled_difference_rules_nothing_out() -> None:
    """A point of difference within the noise, but significant: the margin is not exceeded for certain."""
    text = said(lambda norm, _: {"batch": 0.031, "layer": 0.021}.get(norm, 0.024), 2, margin=0.02)
    assert text == "No norm is shown to differ by more than 2.0 points at batch size 2."
    text = said(lambda norm, _: {"batch": 0.1, "layer": 0.033}.get(norm, 0.021), 2, margin=0.02)
    assert text.endswith("(10.0 % against 2.1 %). No other norm is shown to differ by more than 2.0 points.")


def test_equivalence_is_said_where_it_is_shown() -> None:
    assert said(lambda *_: 0.021, 2, 4, settings={"seeds": 40}, margin=0.05) == (
        "All norms are equivalent at any batch size."
    )


def test_a_norm_that_fails_more_often_is_ruled_out_with_its_failures() -> None:
    def fails(configuration: Configuration, seed: int) -> bool:
        return configuration.norm == "batch" and dict(configuration.config)["batch_size"] == 2 and seed < 8

    text = said(lambda *_: 0.021, 2, 4, fails=fails)
    assert text == "Avoid batch norm at batch size 2 (8 of 10 runs fail). At 4 the 10 seeds show no difference."


@pytest.mark.parametrize(("norms", "baseline"), [(NORMS, "layer"), ((*NORMS, "group", "none"), "layer")])
def test_failures_and_errors_are_separate_evidence(norms: tuple[str, ...], baseline: str) -> None:
    """Bounds on an error hold for every norm that they are said of, and so do shares of failed runs."""
    text = said(
        lambda norm, _: {"batch": 0.3, "rms": 0.03}.get(norm, 0.021), 2, norms=norms, baseline=baseline,
        fails=lambda configuration, seed: configuration.norm == "rms" and seed < 9,
    )  # fmt: skip
    assert text.startswith(
        "Avoid RMS norm at batch size 2 (9 of 10 runs fail) and batch norm at 2 (30.0 % against 2.1 %)."
    )


def test_bounds_are_those_of_the_errors() -> None:
    """The largest excess is over another norm than the largest error where two columns differ."""
    text = said(
        lambda norm, value: {"layer": 0.02 if value == 2 else 0.3}.get(norm, 0.35 if value == 4 else 0.33), 2, 4
    )
    assert text == "Avoid every norm but layer norm at any batch size (33.0 % or more against 2.0 % at 2)."


def test_shares_of_failures_are_bounds_too() -> None:
    def fails(configuration: Configuration, seed: int) -> bool:
        return seed < {"batch": 10, "rms": 9}.get(configuration.norm, 0)

    assert said(lambda *_: 0.021, 2, fails=fails) == (
        "Avoid every norm but layer norm at batch size 2 (at least 9 of 10 runs fail)."
    )


def test_a_wide_difference_that_few_seeds_do_not_settle_is_open() -> None:
    def error(norm: str, value: Any) -> float:
        return {"batch": 0.06, "rms": 0.05}.get(norm, 0.04) if value == 2 else 0.021

    def noisy(record: Record) -> Record:
        record = planted(error)(record)
        far = 0.2 * (record.run.seed == 1) * (record.run.configuration.norm == "batch")
        wide = dict(record.run.configuration.config)["batch_size"] == 2
        test = (record.metrics.get("test") or 0.0) + far * wide
        return dataclasses.replace(record, metrics={**record.metrics, "test": test})

    fields: dict[str, Any] = dict(problems=synthetic.problems()[:1], norms=NORMS, baseline="batch")
    (text,) = headlines(analysis_of(noisy, "standard", {"seeds": 5}, curves=(of(2, 4),), **fields))
    assert text == "The 5 seeds show no difference at any batch size (9.9 % against 3.9 % at 2 is open)."
    (text,) = headlines(analysis_of(noisy, "standard", {"seeds": 5}, curves=(of(2),), **fields))
    assert text == "The 5 seeds show no difference at batch size 2 (9.9 % against 3.9 % is open)."


def test_an_order_that_failures_reverse_is_said() -> None:
    def fails(configuration: Configuration, seed: int) -> bool:
        return configuration.norm == "layer" and seed < 3

    text = said(lambda norm, _: 0.01 if norm == "layer" else 0.05, 2, fails=fails)
    assert text == "Layer norm has the lowest error but fails in 3 of 10 runs at batch size 2."


def test_norms_of_which_every_run_fails_are_ruled_out() -> None:
    text = said(lambda *_: 0.021, 2, fails=lambda configuration, seed: configuration.norm == "rms")
    assert text.startswith("Avoid RMS norm at batch size 2 (10 of 10 runs fail).")
    assert said(lambda *_: 0.021, 2, fails=lambda *_: True) == "Runs of every norm fail at batch size 2."


def test_too_few_runs_compare_nothing() -> None:
    text = said(lambda *_: 0.021, 2, 4, settings={"seeds": 4})
    assert text == "4 runs of each norm are too few to compare them at any batch size."


def test_a_plain_difference_over_too_few_runs_rules_nothing_out() -> None:
    def error(norm: str, value: Any) -> float:
        return breaks_at_2(norm, value) + 1e-3 * value

    text = said(error, 2, 4, settings={"seeds": 4})
    assert text == "4 runs of each norm are too few to compare them at any batch size."
    assert said(error, 2, 4, settings={"seeds": 5}).startswith("Avoid batch norm at batch size 2")


def test_no_norm_is_quoted() -> None:
    assert said(lambda norm, _: 0.1 if norm == "none" else 0.02, 2, norms=("batch", "none", "layer")).startswith(
        "Avoid “no norm” at batch size 2 (10.0 % against 2.0 %)."
    )


def test_a_metric_without_a_unit_has_none() -> None:
    losses = (dataclasses.replace(synthetic.problems()[0], metric=Metric(name="test loss", percent=False)),)
    text = said(breaks_at_2, 2, 4, problems=losses, margin=0.005)
    assert text.startswith("Avoid batch norm at batch size 2 (0.178 against 0.0210).")


def test_each_problem_has_its_own_sentence() -> None:
    mlp, conv = headlines(analysis_of())
    assert mlp.startswith("MLP on digits: Avoid batch norm")
    assert conv.startswith("conv net on digits: The ") or conv.startswith("conv net on digits: Avoid")


def test_two_advising_curves_are_told_apart() -> None:
    texts = headlines(analysis_of(curves=(DEPLOYED, dataclasses.replace(ISOLATED, advises=True))))
    assert [text.partition(":")[0] for text in texts[:2]] == ["MLP on digits, deployed", "MLP on digits, isolated"]


def test_a_tier_without_claims_says_what_would_answer() -> None:
    (text,) = headlines(analysis_of(tier="smoke"))
    assert text.startswith("Tier `smoke` shows whether everything runs") and "`--tier quick`" in text
    assert "Avoid" not in text and "norm" not in text


def test_curves_that_do_not_advise_make_no_headline() -> None:
    (text,) = headlines(analysis_of(curves=(ISOLATED,)))
    assert text == "These curves show causes and not which norm to use; the tables have the differences."


def test_a_model_that_ignores_its_norm_gets_a_question() -> None:
    def same(record: Record) -> Record:
        metrics = {**record.metrics, "test": 0.1, "train_loss": 0.1}
        return dataclasses.replace(record, metrics=metrics if record.run.stage == EVALUATE else record.metrics)

    texts = headlines(analysis_of(same, problems=synthetic.problems()[:1]))
    assert texts == ("All norms gave identical runs; does the model use its norm?",)


@pytest.mark.parametrize("share", [0.0, 0.5, 0.97])
def test_unfinished_comparisons_say_so(share: float) -> None:
    comparison = a_comparison(norms=NORMS, curves=(of(2, 4, 8),), problems=synthetic.problems()[:1])
    settings = some_settings(comparison)
    records = simulate(comparison, settings, planted(breaks_at_2))
    records = sorted(records, key=lambda record: record.run.stage != "tune")
    analysis = analyse(comparison, settings, records[: int(share * len(records))])
    texts = headlines(analysis)
    assert (
        texts[0].startswith("Unfinished: ")
        and f"{analysis.counts['missing']} of {analysis.counts['planned']}" in (texts[0])
    )
    assert len(texts) == 1 or "cannot be compared yet" in texts[1] or "Avoid" in texts[1]
    assert "no difference at any" not in " ".join(texts)


def test_finished_norms_are_compared_while_others_are_missing() -> None:
    comparison = a_comparison(norms=NORMS, curves=(of(2, 4),), problems=synthetic.problems()[:1])
    settings = some_settings(comparison)
    records = simulate(comparison, settings, planted(breaks_at_2))
    done = [record for record in records if record.run.stage != EVALUATE or record.run.configuration.norm != "rms"]
    unfinished, text = headlines(analyse(comparison, settings, done))
    assert unfinished.startswith("Unfinished: ") and text == (
        "Avoid batch norm at batch size 2 (17.8 % against 2.1 %). At 4 the 10 seeds show no difference so far."
    )


@pytest.mark.parametrize(
    ("name", "every", "some", "text"),
    [
        ("batch_size", (2, 4, 8), (2,), "at batch size 2"),
        ("batch_size", (2, 4, 8), (4, 8), "from batch size 4 up"),
        ("batch_size", (2, 4, 8), (2, 8), "at batch size 2 and 8"),
        ("batch_size", (2, 4, 8, 16), (2, 4, 8), "up to batch size 8"),
        ("batch_size", (8, 4, 2), (4, 2), "at batch size 4 and 2"),
        ("batch_size", (2, 4, 8), (2, 4, 8), "at any batch size"),
        ("batch_size", (2,), (2,), "at batch size 2"),
        ("classes_per_batch", (1, 2, 4), (1,), "with 1 class per batch"),
        ("classes_per_batch", (1, 2, 4), (1, 2), "with 1 and 2 classes per batch"),
        ("classes_per_batch", (1, 2, 4), (2, 4), "from 2 classes per batch up"),
        ("classes_per_batch", (1, 2, 4), (1, 2, 4), "at any number of classes per batch"),
        ("devices", (1, 2, 4, 8), (1,), "with 1 device"),
        ("devices", (1, 2, 4, 8), (1, 2, 4), "up to 4 devices"),
        ("depth", (1, 2), (2,), "at depth 2"),
        ("arrival", ("varying", "late"), ("late",), "with late arrival"),
        ("arrival", ("varying", "late"), ("varying", "late"), "with any arrival"),
    ],
)
def test_values_read_naturally(name: str, every: tuple[Any, ...], some: tuple[Any, ...], text: str) -> None:
    assert where(curve_result(name, every), some) == text


def test_values_are_short_once_the_factor_is_named() -> None:
    curve = curve_result("devices", (1, 2, 4, 8))
    assert where(curve, (4, 8), short=True) == "from 4 up" and where(curve, (2, 8), short=True) == "with 2 and 8"
    assert where(curve_result("batch_size", (2, 4)), (2,), short=True) == "at 2"


def curve_result(name: str, values: tuple[Any, ...]) -> Any:
    analysis = analysis_of(
        planted(lambda *_: 0.1), "smoke", problems=synthetic.problems()[:1], norms=("layer",),
        curves=(of(*values, name=name),), baseline="layer",
    )  # fmt: skip
    return analysis.problems[0].curves[0]


def random_analysis(seed: int) -> Analysis:
    """Errors and failures without a pattern, of four norms at four values."""
    import random

    draw = random.Random(seed)
    table = {(n, v): draw.choice((0.02, 0.021, 0.03, 0.1)) for n in (*NORMS, "none") for v in (2, 4, 8, 16)}
    rates = {n: draw.choice((0, 0, 0, 3, 9)) for n in (*NORMS, "none")}
    return analysis_of(
        planted(lambda norm, value: table[norm, value], lambda c, seed: seed < rates[c.norm]),
        problems=synthetic.problems()[:1],
        norms=(*NORMS, "none"),
        curves=(of(2, 4, 8, 16),),
    )


@pytest.mark.parametrize("seed", range(12))
def test_no_norm_is_avoided_or_left_over_unless_it_is_shown(seed: int) -> None:
    """Every norm that is ruled out has a verdict or its failures against it, and nothing is called better."""
    analysis = random_analysis(seed)
    (text,) = headlines(analysis)
    assert not re.search(r"\b(use|best|better|winner)\b", text)
    curve = analysis.problems[0].curves[0]
    for norm in analysis.norms:
        against = [
            gap
            for standing in curve.standings
            for gap in (standing.gaps.get(norm), curve.cell(norm, standing.value).gap)
            if gap
        ]
        shown = any(gap.verdict == WORSE or gap.fails_more for gap in against)
        shown |= norm == analysis.baseline and any(
            cell.gap and (cell.gap.verdict == BETTER or cell.gap.fails_less) for cell in curve.cells
        )
        named = re.search(rf"[Aa]void [^(]*{analysis.names[norm]}", text.partition("every norm but")[0])
        assert shown or not named, (norm, text)


@pytest.mark.parametrize("margin", [0.0, 0.01])
def test_a_lowest_norm_that_was_not_chosen_beforehand_takes_more_evidence(margin: float) -> None:
    """The lowest of many norms is low by chance, which must not rule out others that are at the margin."""
    import numpy as np

    names = ("batch", "layer", "rms", "none", "group", "batch_renorm", "online")
    comparison = a_comparison(
        problems=synthetic.problems()[:1], norms=names, curves=(of(2, 4, 8, 16),), margin=margin, baseline="batch"
    )
    settings = some_settings(comparison)
    records = simulate(comparison, settings)
    avoided = baseline = 0
    for seed in range(25):
        random = np.random.default_rng(seed)
        drawn = [
            dataclasses.replace(
                record,
                metrics={
                    **record.metrics,
                    "test": 0.1 + margin * (record.run.configuration.norm != "layer") + 0.01 * random.normal(),
                },
            )
            if record.run.stage == EVALUATE
            else record
            for record in records
        ]
        analysis = analyse(comparison, settings, drawn)
        avoided += "Avoid" in headlines(analysis)[0]
        baseline += any(cell.gap and cell.gap.verdict in (BETTER, WORSE) for cell in analysis.cells)
    assert baseline <= avoided <= baseline + 3, (baseline, avoided)
