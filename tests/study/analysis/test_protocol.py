"""The protocol from records to verdicts, calibrated on simulated results: what it claims, finds, counts and repeats."""

import dataclasses
import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from normlab import norms
from normlab.study.analysis.analyse import analyse
from normlab.study.analysis.estimates import BETTER, EQUIVALENT, INCONCLUSIVE, WORSE
from normlab.study.analysis.results import Analysis, CellResult, to_json
from normlab.study.design.budgets import Tier
from normlab.study.design.comparison import Comparison, Settings
from normlab.study.design.factors import Curve, Factor
from normlab.study.design.plan import Plan
from normlab.study.design.problem import Metric, Problem
from normlab.study.design.records import EVALUATE, Configuration, Record, Run, content_key

COPIES = ("layer", *(f"copy_{i}" for i in range(6)))
RATES = (0.01, 0.03, 0.1, 0.3, 1.0)
SIMULATIONS = 200


@pytest.fixture(autouse=True)
def one_norm_under_many_names() -> Iterator[None]:
    entry = norms.get("layer").entry
    for name in COPIES[1:]:
        norms.register(dataclasses.replace(entry, name=name))
    yield
    for name in COPIES[1:]:
        norms.unregister(name)


def comparison_of(names: Sequence[str] = COPIES, seeds: int = 10, margin: float = 0.0, **settings: Any) -> Plan:
    factor = Factor(name="batch_size", label="batch size", flag="--batch-sizes", values=(2, 8), reference=8)
    comparison = Comparison(
        name="simulated",
        title="Simulated",
        question="Is a norm better than itself?",
        problems=(Problem(name="numbers", title="numbers", build=lambda norm, config: None),),  # pyright: ignore
        norms=tuple(names),
        curves=(Curve(name="deployed", title="deployed", factor=factor, config=lambda value: {"batch_size": value}),),
        tiers={"standard": Tier(epochs=1, learning_rates=RATES, tuning_seeds=1, seeds=seeds)},
        baseline=names[0],
        margin=margin,
    )
    fields: dict[str, Any] = {
        "comparison": "simulated",
        "source": "",
        "tier": "standard",
        "problems": ("numbers",),
        "norms": tuple(names),
        "curves": ("deployed",),
        "values": {"deployed": (8,)},
        "learning_rates": RATES,
        "epochs": 1,
        "tuning_seeds": 1,
        "seeds": seeds,
    }
    return Plan(comparison, Settings(**{**fields, **settings}))


Errors = Callable[[Configuration, int], float]


def simulated(plan: Plan, error: Errors, fails: Callable[[Run], bool] = lambda run: False) -> list[Record]:
    """All records of a comparison whose test errors are given, tuned best at 0.1; runs that fail have diverged."""
    records: list[Record] = []
    while runs := plan.pending(records):
        records += [_record(run, error, failed=fails(run)) for run in runs]
    return records


def _record(run: Run, error: Errors, *, failed: bool) -> Record:
    metrics: dict[str, float | None] = {"validation": abs(math.log10(run.learning_rate) + 1), "chance": 0.9}
    if run.stage == EVALUATE:
        metrics |= {"test": error(run.configuration, run.seed), "train_loss": 0.1 + error(run.configuration, run.seed)}
    if failed:
        metrics |= {"validation": None, "test": None}
    status, reason = ("diverged", "The loss is not finite from step 3.") if failed else ("ok", "")
    return Record(key=content_key(run), run=run, identity={}, status=status, reason=reason, metrics=metrics)


def noisy(seed: int, effect: dict[str, float] | None = None, rho: float = 0.5, steps: float = 0.0) -> Errors:
    """Test errors with noise of variance 1 %², of which a norm's partners at the same seed share `rho`."""

    shared, *own = np.random.default_rng(seed).normal(size=(1 + len(COPIES), 100))
    noise = {norm: math.sqrt(rho) * shared + math.sqrt(1 - rho) * row for norm, row in zip(COPIES, own, strict=True)}

    def error(configuration: Configuration, run_seed: int) -> float:
        value = 0.2 + 0.01 * noise[configuration.norm][run_seed] + (effect or {}).get(configuration.norm, 0)
        return float(round(value / steps) * steps if steps else value)

    return error


def result(plan: Plan, error: Errors, **kinds: Any) -> Analysis:
    return analyse(plan.comparison, plan.settings, simulated(plan, error, **kinds))


def verdicts(analysis: Analysis) -> list[str | None]:
    return [cell.gap.verdict for cell in analysis.cells if cell.gap]


def cell_of(analysis: Analysis, norm: str) -> CellResult:
    return next(cell for cell in analysis.cells if cell.norm == norm)


@pytest.mark.parametrize("steps", [0.0, 1 / 517], ids=["continuous", "in steps of a test example"])
@pytest.mark.parametrize("seeds", [5, 10])
def test_a_norm_against_itself_is_claimed_to_differ_at_most_at_the_level(seeds: int, steps: float) -> None:
    plan = comparison_of(seeds=seeds)
    claimed = sum(
        bool({BETTER, WORSE} & set(verdicts(result(plan, noisy(i, steps=steps))))) for i in range(SIMULATIONS)
    )
    level = 0.05
    assert claimed / SIMULATIONS <= level + 3 * math.sqrt(level * (1 - level) / SIMULATIONS)


def test_without_holm_it_would_claim_more() -> None:
    """The calibration above can fail: the uncorrected p-values of the same sets do exceed the level."""
    plan = comparison_of()
    found = [result(plan, noisy(i)) for i in range(SIMULATIONS)]
    raw = sum(any(c.gap.difference.p < 0.05 for c in a.cells if c.gap) for a in found)  # pyright: ignore
    assert raw / SIMULATIONS > 0.1


def test_a_planted_effect_is_found_with_the_stated_power() -> None:
    """`minimal_difference` of the analysis is what is found in 80 % of all cases."""
    plan = comparison_of(COPIES[:2])
    spread = 0.01  # of the difference: variance 2 (1 - rho) at rho = 0.5
    effect = {"copy_0": spread * 1.08}  # Student's is 0.997 for 10 pairs
    found = [result(plan, noisy(i, effect)) for i in range(SIMULATIONS)]
    stated = np.array([analysis.problems[0].minimal_difference for analysis in found], np.float64)
    assert math.sqrt((stated**2).mean()) == pytest.approx(effect["copy_0"], rel=0.05)  # spreads average as squares
    power = sum(verdicts(analysis) == [WORSE] for analysis in found) / SIMULATIONS
    assert abs(power - 0.8) <= 3 * math.sqrt(0.8 * 0.2 / SIMULATIONS)


def test_a_difference_of_the_margin_is_rarely_called_equivalent() -> None:
    plan = comparison_of(COPIES[:2], margin=0.02, seeds=29)
    at_margin = [verdicts(result(plan, noisy(i, {"copy_0": 0.02}))) for i in range(SIMULATIONS)]
    none = [verdicts(result(plan, noisy(i))) for i in range(SIMULATIONS)]
    assert at_margin.count([EQUIVALENT]) / SIMULATIONS <= 0.05
    assert none.count([EQUIVALENT]) / SIMULATIONS > 0.9


def test_seeds_needed_would_decide() -> None:
    effect = {"copy_0": 0.012}
    few = cell_of(result(comparison_of(COPIES[:2], seeds=5, margin=0.005), noisy(4, effect)), "copy_0").gap
    assert few is not None and few.seeds_needed is not None and few.seeds_needed > 5
    enough = comparison_of(COPIES[:2], seeds=few.seeds_needed, margin=0.005)
    decided = [verdicts(result(enough, noisy(i, effect))) == [WORSE] for i in range(50)]
    assert sum(decided) > 25


def test_a_planted_failure_is_counted_and_never_averaged() -> None:
    plan = comparison_of(COPIES[:3])
    analysis = result(plan, noisy(0), fails=lambda run: run.configuration.norm == "copy_0" and run.seed in (2, 7))
    broken, sound = cell_of(analysis, "copy_0"), cell_of(analysis, "copy_1")
    assert (broken.failures.k, broken.failures.n, broken.counts["diverged"]) == (2, 10, 2)
    assert (sound.failures.k, sound.failures.n) == (0, 10)
    low, high = broken.failures.interval
    assert (round(low, 3), round(high, 3)) == (0.057, 0.510)
    assert broken.error.n == 8 and broken.error.mean == pytest.approx(0.2, abs=0.02)
    assert broken.error_counting_failures.mean == pytest.approx(0.8 * broken.error.mean + 0.2 * 0.9)  # pyright: ignore
    assert broken.gap is not None and not broken.gap.difference.paired and broken.gap.difference.n == 8
    statuses = [run.status for run in analysis.runs if run.norm == "copy_0" and run.stage == EVALUATE]
    assert statuses.count("diverged") == 2


def failing(norm: str, seeds: Sequence[int]) -> Callable[[Run], bool]:
    return lambda run: run.stage == EVALUATE and run.configuration.norm == norm and run.seed in seeds


def test_a_verdict_that_failures_contradict_is_not_said() -> None:
    """Copy 0 is better by two margins, and fails: the more often, the less is left of that."""
    plan, effect = comparison_of(COPIES[:2], margin=0.01, seeds=20), {"copy_0": -0.03}
    said = {
        number: cell_of(result(plan, noisy(0, effect), fails=failing("copy_0", range(number))), "copy_0").gap
        for number in (0, 1, 6)
    }
    assert [gap and gap.verdict for gap in said.values()] == [BETTER, INCONCLUSIVE, INCONCLUSIVE]
    assert all(gap and gap.when_trained == BETTER for gap in said.values())
    assert said[0] and said[0].note == "" and said[0].counted == said[0].difference
    assert said[6] and said[6].fails_more and said[6].p_fails_more == pytest.approx(1 / 64)
    assert said[6].note == "better over runs that ended well, but 6 of 20 runs failed, against 0 of 20"
    assert said[1] and not said[1].fails_more and said[1].seeds_needed is None


def test_failures_of_the_worse_norm_contradict_nothing() -> None:
    plan, effect = comparison_of(COPIES[:2], margin=0.01, seeds=20), {"copy_0": 0.03}
    gap = cell_of(result(plan, noisy(0, effect), fails=failing("copy_0", range(3))), "copy_0").gap
    assert gap and gap.verdict == WORSE and gap.note == ""
    other = cell_of(result(plan, noisy(0, effect), fails=failing("layer", range(3))), "copy_0").gap
    assert other and other.verdict == INCONCLUSIVE and other.note.startswith("worse over runs that ended well")


def test_failures_at_other_seeds_keep_norms_from_being_equivalent() -> None:
    plan = comparison_of(COPIES[:2], margin=0.02, seeds=40)
    both = result(plan, noisy(0), fails=lambda run: run.stage == EVALUATE and run.seed < 3)
    one = result(plan, noisy(0), fails=failing("copy_0", range(3)))
    assert verdicts(both) == [EQUIVALENT] and verdicts(one) == [INCONCLUSIVE]


def test_a_failed_run_counts_as_chance_or_as_the_worst_error_of_the_column() -> None:
    plan = comparison_of(COPIES[:3])
    records = simulated(plan, noisy(0, {"copy_1": 0.3}), fails=failing("copy_0", [2]))
    worst = max(r.metrics.get("test") or 0.0 for r in records)
    unknown = [dataclasses.replace(r, metrics={**r.metrics, "chance": None}) for r in records]
    low = [dataclasses.replace(r, metrics={**r.metrics, "chance": 0.1}) for r in records]
    for some, counted in ((records, 0.9), (unknown, worst), (low, worst)):
        cell = cell_of(analyse(plan.comparison, plan.settings, some), "copy_0")
        assert cell.failure_error == counted and cell.error.mean is not None
        assert cell.error_counting_failures.mean == pytest.approx(0.9 * cell.error.mean + 0.1 * counted)


def test_seeds_that_carry_a_difference_are_named() -> None:
    plan = comparison_of(COPIES[:2], margin=0.02, seeds=40)

    def error(configuration: Configuration, seed: int) -> float:
        return noisy(0)(configuration, seed) + 0.3 * (configuration.norm == "copy_0" and seed == 7)

    gap = cell_of(result(plan, error), "copy_0").gap
    assert gap and gap.carried_by == (7,)
    assert gap.verdict == INCONCLUSIVE and gap.note == "seed 7 alone keeps it open"


def test_a_norm_that_any_other_beats_where_both_train_is_not_best() -> None:
    """Copy 0 is lowest where it trains and scatters too much to beat anything; copy 1 fails once and beats the rest."""
    plan = comparison_of(COPIES[:3], margin=0.01, seeds=20)

    def error(configuration: Configuration, seed: int) -> float:
        means = {"layer": 0.2, "copy_0": 0.1, "copy_1": 0.15}
        return means[configuration.norm] + 0.2 * (-1) ** seed * (configuration.norm == "copy_0") + 0.001 * seed

    def fails(run: Run) -> bool:
        return run.stage == EVALUATE and run.configuration.norm != "layer" and run.seed in range(3)

    (standing,) = result(plan, error, fails=fails).problems[0].curves[0].standings
    assert (standing.trained, standing.counted, standing.best) == ("copy_0", "layer", None)


def test_norms_that_are_alike_so_far_say_how_many_runs_it_takes() -> None:
    gap = cell_of(result(comparison_of(COPIES[:2], margin=0.02), noisy(0)), "copy_0").gap
    assert gap and gap.verdict == INCONCLUSIVE and gap.seeds_needed == 29
    assert gap.note == "alike so far; equivalent takes 29 runs"


def test_every_planned_run_has_a_status() -> None:
    plan = comparison_of(COPIES[:2])
    records = simulated(plan, noisy(0))
    some = analyse(plan.comparison, plan.settings, records[:-3])
    assert some.counts == {"planned": len(records), "done": len(records) - 3, "missing": 3}
    assert [run.status for run in some.runs].count("missing") == 3
    none = analyse(plan.comparison, plan.settings, [])
    assert none.counts == {"planned": len(records), "done": 0, "missing": len(records)}


def test_the_order_of_records_and_a_resumed_run_do_not_change_a_byte() -> None:
    plan = comparison_of(values={"deployed": (2, 8)}, default_learning_rate=0.3)
    records = simulated(plan, noisy(0), fails=lambda run: run.seed == 3)
    whole = analyse(plan.comparison, plan.settings, records)
    random.Random(0).shuffle(records)
    half = records[: len(records) // 2]
    again = half + [record for record in simulated(plan, noisy(0), fails=lambda run: run.seed == 3)]
    for other in (records, again):
        analysis = analyse(plan.comparison, plan.settings, other)
        assert to_json(analysis) == to_json(whole)
        assert analysis.runs == whole.runs


def test_costs_are_no_part_of_the_analysis() -> None:
    plan = comparison_of(COPIES[:2])
    records = simulated(plan, noisy(0))
    slow = [dataclasses.replace(record, cost={"step": 7.0}) for record in records]
    analyses = [analyse(plan.comparison, plan.settings, some) for some in (records, slow)]
    assert to_json(analyses[0]) == to_json(analyses[1])
    assert analyses[1].cost(analyses[1].cells[0]).step == 7.0


def test_the_basin_is_what_is_within_the_margin_around_the_best() -> None:
    plan = comparison_of(COPIES[:2], margin=0.6)
    basin = cell_of(result(plan, noisy(0)), "layer").basin  # |log10(rate) + 1|: 1, 0.48, 0, 0.52, 1
    assert basin is not None
    assert (basin.low, basin.high, basin.open_low, basin.open_high) == (0.03, 0.3, False, False)
    assert basin.width == pytest.approx(10)
    wide = cell_of(result(comparison_of(COPIES[:2], margin=2.0), noisy(0)), "layer").basin
    assert wide is not None and wide.open_low and wide.open_high


def test_the_default_rate_is_a_row_of_its_own() -> None:
    plan = comparison_of(COPIES[:2], default_learning_rate=1.0)

    def error(configuration: Configuration, seed: int) -> float:
        return noisy(0)(configuration, seed)

    records = [
        dataclasses.replace(r, metrics={**r.metrics, "test": r.metrics["test"] + 0.1})  # pyright: ignore
        if r.run.stage == EVALUATE and r.run.learning_rate == 1.0
        else r
        for r in simulated(plan, error)
    ]
    cell = cell_of(analyse(plan.comparison, plan.settings, records), "layer")
    assert cell.learning_rate == 0.1 and cell.error.mean == pytest.approx(0.2, abs=0.02)
    assert cell.untuned is not None and cell.untuned.learning_rate == 1.0
    assert cell.untuned.loss is not None and cell.untuned.loss.mean == pytest.approx(0.1)
    assert cell.untuned.loss.paired and cell.untuned.failures.n == 10


def test_a_metric_that_is_no_percentage_needs_a_margin() -> None:
    plan = comparison_of(COPIES[:2])
    problem = dataclasses.replace(plan.comparison.problems[0], metric=Metric(name="squared error", percent=False))
    comparison = dataclasses.replace(plan.comparison, problems=(problem,), margin=None)
    with pytest.raises(ValueError, match="Expected `margin` in the unit of `squared error`"):
        Plan(comparison, plan.settings)
    assert Plan(dataclasses.replace(comparison, margin=2.0), plan.settings).margin(problem.name) == 2.0
    assert Plan(dataclasses.replace(plan.comparison, margin=None), plan.settings).margin(problem.name) == 0.005


def test_a_model_that_ignores_its_norm_is_seen() -> None:
    plan = comparison_of(COPIES[:3])
    same = result(plan, lambda configuration, seed: 0.2 + 0.01 * seed)
    assert same.problems[0].same_for_all_norms
    assert not result(plan, noisy(0)).problems[0].same_for_all_norms
