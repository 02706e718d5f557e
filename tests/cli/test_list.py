"""`normlab list`: comparisons, norms, problems and budgets, without training."""

import re

import pytest

from normlab import norms
from normlab.cli import listing
from normlab.cli.main import main
from normlab.study.design import discovery
from normlab.study.design.options import Given
from normlab.study.design.plan import Plan
from normlab.study.design.request import Request


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["list", *arguments]) == 0
    return capsys.readouterr().out


def test_the_overview_names_comparisons_norms_and_the_other_lists(capsys: pytest.CaptureFixture[str]) -> None:
    ours = norms.names()  # before comparisons add their own
    out = listed(capsys)
    assert all(name in out for name in (*discovery.known(), *ours))
    for kind in set(listing.KINDS) - {"comparisons"}:
        assert f"normlab list {kind}" in out
    assert listed(capsys, "comparisons").splitlines() == out.splitlines()[1 : 1 + len(discovery.known())]


def test_tiers_have_the_runs_of_their_plans(capsys: pytest.CaptureFixture[str]) -> None:
    comparison = discovery.load("batch_size")
    rows = [line.split() for line in listed(capsys, "tiers", "batch_size").splitlines()[2:-1]]
    assert [row[0] for row in rows] == list(comparison.tiers)
    for name, seeds, programs, runs, *_ in rows:
        plan = Plan(comparison, Request(comparison, {"tier": Given(name, "")}).settings("batch_size"))
        usable = {c: planned for c, planned in plan.of([]).items() if not plan.incompatible(c)}
        assert int(seeds) == comparison.tiers[name].seeds
        assert int(programs) == len(usable) < len(plan.configurations)
        assert int(runs) == sum(len(planned.runs) + planned.to_come for planned in usable.values())


def test_every_budget_of_every_comparison_has_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    out = listed(capsys, "tiers")
    assert listing.SECONDS.keys() == discovery.known().keys()
    assert len(re.findall(r" about [\d.]+ (?:s|min|h) ", out)) == 4 * len(listing.SECONDS)


def test_a_file_has_no_time_before_it_is_measured(toy: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert re.search(r"quick +4 +5 +50 +by --dry-run +scalar\n", listed(capsys, "tiers", str(toy)))


def test_problems_say_which_are_left_out_unless_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    out = listed(capsys, "problems", "batch_size")
    assert re.search(r"  mlp +MLP 100-100\n", out)
    assert re.search(r"resnet20 .*\(by --problems\)\n", out)


def test_one_norm(capsys: pytest.CaptureFixture[str]) -> None:
    assert listed(capsys, "norms", "rms").startswith("rms\n  title        RMS norm\n")
    assert "  modules" not in listed(capsys, "norms", "batch_step")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["tier"], "Did you mean `tiers`?"),
        (["all"], "Expected comparisons, norms, problems, tiers or nothing after `list`, got `all`."),
        (["norms", "BatchNorm"], "Unknown norm `BatchNorm`. Did you mean `batch`?"),
        (["tiers", "batchsize"], "Unknown comparison `batchsize`. Did you mean `batch_size`?"),
        (["tiers", "online", "recurrent"], "Expected nothing more, got `recurrent`."),
    ],
)
def test_mistakes(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", *arguments]) == 2
    out, err = capsys.readouterr()
    assert expected in err
    assert (out, err.count("\n")) == ("", 1)
