"""Comparisons over a factor of the network or of its training: what they vary reaches the network, in every budget."""

from typing import Any

import jax
import numpy as np
import pytest

from normlab import norms
from normlab.errors import BadInput
from normlab.study.design import discovery
from normlab.study.design.options import Given
from normlab.study.design.plan import Place, Plan
from normlab.study.design.program import Program
from normlab.study.design.request import Request, from_flags
from normlab.study.problems import zoo
from normlab.study.training.loop import check

NAMES = ("placement", "dropout", "initialization", "training_size", "depth", "every_layer")
BATCH = 64


def plan_of(name: str, tier: str, **options: Any) -> Plan:
    given = {"tier": tier, **options}
    comparison = discovery.load(name)
    return Plan(comparison, Request(comparison, {k: Given(v, k) for k, v in given.items()}).settings(name))


def config_of(name: str, curve: str, value: Any, problem: str = "mlp") -> dict[str, Any]:
    """The training fields at a place of a comparison, with the epochs of the shortest budget."""
    plan = plan_of(name, "smoke", problems=(problem,))
    return plan.resolve(Place(problem=problem, curve=curve, value=value, norm="batch"))[1]


def program_of(name: str, curve: str, value: Any, problem: str = "mlp", norm: str = "batch") -> Program:
    member = next(one for one in discovery.load(name).problems if one.name == problem)
    config = config_of(name, curve, value, problem)
    return member.build(norms.get(norm, **member.norm_options(norm, config)), config)


def examples(program: Program, seed: int) -> Any:
    """The examples of a run, without its weights."""
    assert program.start
    return program.start.host(seed)


@pytest.mark.parametrize("name", NAMES)
def test_budgets_grow_and_standard_has_ten_seeds(name: str) -> None:
    plans = [plan_of(name, tier) for tier in ("smoke", "quick", "standard")]
    runs = [sum(len(one.runs) + one.to_come for one in plan.of([]).values()) for plan in plans]
    assert runs == sorted(runs) and plans[-1].settings.seeds >= 10
    assert plans[-1].settings.norms == ("none", "batch", "layer")


@pytest.mark.parametrize("name", NAMES)
def test_every_value_makes_a_configuration_of_its_own(name: str) -> None:
    plan = plan_of(name, "standard")
    for problem in plan.settings.problems:
        of = [c for place, c in plan.places.items() if (place.problem, place.norm) == (problem, "batch")]
        values = sum(map(len, plan.settings.values.values()))
        assert len(set(of)) == len(of) == values


@pytest.mark.parametrize(
    ("name", "curve", "value", "problem"),
    [
        ("placement", "placement", "after", "mlp-sigmoid"),
        ("dropout", "few", 0.3, "conv"),
        ("initialization", "scale", 0.1, "mlp"),
        ("training_size", "size", 100, "mlp"),
        ("depth", "residual", 4, "mlp"),
        ("every_layer", "every", 3, "mlp"),
    ],
)
def test_networks_can_be_trained(name: str, curve: str, value: Any, problem: str) -> None:
    check(program_of(name, curve, value, problem))


@pytest.mark.parametrize("problem", [("depth", "mlp"), ("every_layer", "conv")], ids=["mlp", "conv"])
def test_group_norm_has_groups_that_fit(problem: tuple[str, str]) -> None:
    name, member = problem
    program = next(one for one in discovery.load(name).problems if one.name == member)
    config = {"batch_size": BATCH, "epochs": 1}
    built = program.build(norms.get("group", **program.norm_options("group", config)), config)
    jax.eval_shape(lambda: built.init(0))


def test_fewer_examples_are_seen_as_many_times_as_all() -> None:
    whole, few = (program_of("training_size", "size", size) for size in (1000, 100))
    assert whole.steps == few.steps == 2 * (1024 // BATCH)
    for seed in (0, 1):
        states = [examples(program, seed) for program in (whole, few)]
        assert states[1].order.shape == states[0].order.shape == (whole.steps, BATCH)
        assert len(np.unique(states[1].order)) == 100  # all of them, and no others
        assert set(states[1].order.ravel()) <= set(np.asarray(states[0].train))
        np.testing.assert_array_equal(states[0].held_out, states[1].held_out)
    assert set(examples(few, 0).order.ravel()) != set(examples(few, 1).order.ravel())


def test_all_examples_are_drawn_as_without_the_field() -> None:
    problem = zoo.problem("mlp", zoo.mlp(1))
    config = {"batch_size": BATCH, "epochs": 2}
    plain, whole = (problem.build(norms.get("none"), c) for c in (config, {**config, "training_size": 1024}))
    plain, whole = examples(plain, 3), examples(whole, 3)
    np.testing.assert_array_equal(plain.order, whole.order)


def test_a_share_of_the_examples_and_longer_training() -> None:
    few, longer, whole = (program_of("dropout", curve, 0.0) for curve in ("few", "longer", "all"))
    assert len(np.unique(examples(few, 0).order)) == 102
    assert (few.steps, longer.steps) == (whole.steps, 4 * whole.steps)


@pytest.mark.parametrize(
    ("size", "message"), [(2000, "`training_size` of at most 1,024 examples, got 2000"), (40, "a batch of 1 to 40")]
)
def test_sizes_that_do_not_fit_are_refused(size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        zoo.problem("mlp", zoo.mlp(1)).build(
            norms.get("none"), {"batch_size": BATCH, "epochs": 1, "training_size": size}
        )


def test_zero_is_a_value_on_the_command_line() -> None:
    comparison = discovery.load("dropout")
    given = from_flags({"dropouts": ["0", "0.2"]}, comparison)
    settings = Request(comparison, given).settings("dropout")
    assert settings.values["all"] == (0, 0.2)
    with pytest.raises(BadInput, match="Expected each of `--dropouts` to be a number"):
        Request(comparison, from_flags({"dropouts": ["none"]}, comparison))


def test_running_statistics_follow_the_last_updates() -> None:
    options = zoo.problem("mlp", zoo.mlp(2)).norm_options("batch", {"batch_size": BATCH, "epochs": 1})
    assert options["momentum"] == 0.9
    assert zoo.problems("mlp")[0].norm_options("batch", {"batch_size": BATCH, "epochs": 1})["momentum"] > 0.9
