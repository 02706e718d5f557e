"""Test the ground of the studies: data, training, estimates, files, and the page of all claims."""

import dataclasses
import importlib
import json
import math
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import bias
from experiments.claims import images, study, table, trainer
from experiments.claims.estimates import Interval, average, points, ratio, share
from experiments.claims.trainer import Budget, Moment, Settings
from normlab import norms
from normlab.errors import BadInput
from normlab.introspect.pure import network
from normlab.models import MLP
from tests.support.paths import ROOT

DATA = images.load("digits")
NET = network(MLP, norms.get("batch:momentum=0.9"), DATA.train.inputs[:2], hidden=(8,))
BUDGET = Budget(steps=6, batch=8, every=3)


def test_parts_are_disjoint_and_complete() -> None:
    parts = (DATA.train, DATA.validation, DATA.test)
    rows = np.concatenate([part.inputs.reshape(len(part.labels), -1) for part in parts])
    assert len(rows) == 1797 and DATA.classes == 10
    given = images.digits().inputs.reshape(1797, -1)
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, given.tolist()))
    assert DATA.name == "scikit-learn's digits 8 x 8"


def test_areas_are_averaged() -> None:
    image = np.arange(16.0).reshape(1, 4, 4, 1)
    assert images.averaged(image, 2)[0, ..., 0].tolist() == [[2.5, 4.5], [10.5, 12.5]]
    assert images.averaged(image, 1, crop=2).item() == 7.5
    assert np.isclose(images.averaged(image, 3).mean(), image.mean())
    assert images.averaged(image, 9).shape == image.shape


def test_data_that_are_no_images_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", inputs=np.zeros((500, 3), np.float32), labels=np.arange(500) % 2)
    with pytest.raises(BadInput, match="Expected images"):
        images.load(f"npz:{tmp_path / 'rows.npz'}")


def test_runs_depend_on_their_own_settings_alone() -> None:
    def seen(moment: Moment) -> jnp.ndarray:
        return jnp.concatenate([moment.batch.labels.astype(jnp.float32), moment.rate[None]])

    pair = trainer.train(NET, DATA, BUDGET, Settings([3, 4], [0.1, 0.2]), observe=seen)
    alone = trainer.train(NET, DATA, BUDGET, Settings(4, 0.2), observe=seen, together=False)
    assert np.array_equal(pair.seen[1], alone.seen[0]) and pair.seen.shape == (2, 3, 9)
    assert not np.array_equal(pair.seen[0], pair.seen[1])
    same = trainer.logits(NET, pair.params, pair.state, DATA.test)[1]
    np.testing.assert_allclose(same, trainer.logits(NET, alone.params, alone.state, DATA.test)[0], rtol=1e-4, atol=1e-4)


def test_batches_come_from_the_first_examples() -> None:
    def seen(moment: Moment) -> jnp.ndarray:
        return moment.batch.labels

    found = trainer.train(NET, DATA, BUDGET, Settings(0, 0.1, examples=2), observe=seen).seen
    assert set(np.unique(found)) == set(DATA.train.labels[:2].tolist())


def test_the_scale_is_of_hidden_kernels_alone() -> None:
    start = Budget(steps=3, batch=8, every=3)
    small, large = (trainer.train(NET, DATA, start, Settings(0, 0.0, scale=c)).params for c in (1.0, 3.0))
    np.testing.assert_allclose(large["dense_0"]["kernel"], 3 * small["dense_0"]["kernel"], rtol=1e-6)
    assert np.array_equal(large["head"]["kernel"], small["head"]["kernel"])


def test_the_update_is_that_of_optax() -> None:
    import jax
    import optax

    budget = Budget(steps=2, batch=8, every=1, cosine=True)
    taken = trainer.train(NET, DATA, budget, Settings(5, 0.3), observe=lambda moment: (moment.batch, moment.params))
    (inputs, labels), params_at = taken.seen
    params, state = NET.init(np.uint32(5))
    optimizer = optax.sgd(optax.cosine_decay_schedule(0.3, 2), momentum=0.9)
    slots = optimizer.init(params)
    for t in range(2):
        _, gradients, state = NET.gradients(
            lambda out, t=t: (trainer.loss(out, labels[0, t]), None), params, state, inputs[0, t], jnp.int32(t)
        )
        updates, slots = optimizer.update(gradients, slots, params)
        params = optax.apply_updates(params, updates)
        found = jax.tree.map(lambda a, t=t: a[0, t + 1], params_at)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), found, params)


def test_an_uneven_budget_is_refused() -> None:
    with pytest.raises(ValueError, match="a multiple of `every`, got 10 and 3"):
        trainer.trainer(NET, DATA, Budget(steps=10, every=3))


def test_the_lowest_error_chooses_and_divergence_never_does() -> None:
    errors = np.array([[0.3, 0.3], [0.1, 0.2], [np.nan, 0.0]])
    assert trainer.best_rate(errors, (0.1, 0.2, 0.3)) == 0.2
    settings = trainer.grid([7, 8], (0.1, 0.2))
    assert list(settings.seed) == [7, 8, 7, 8] and np.allclose(settings.rate, [0.1, 0.1, 0.2, 0.2])


def test_intervals() -> None:
    seen = average([1.0, 2.0, 3.0])
    assert seen.n == 3 and math.isclose(seen.high, 2 + 4.30265 / math.sqrt(3), rel_tol=1e-4)
    assert seen.text("{:.1f}") == "2.0 (-0.5 to 4.5, n = 3)" and not seen.tells_from(0)
    assert ratio([2.0, 8.0], [1.0, 4.0]).text("{:g}") == "2 (no interval, n = 2)"
    assert points([0.5, 0.4], [0.2, 0.3]).mean == pytest.approx(20)
    assert share([True, False, True]) == "2 of 3"


PLAN = bias.Extent(seeds=3, batches=(2, 8), data="digits")


def found_of(before: float, after: float) -> dict[tuple[str, int], bias.Arm]:
    """Make numbers with a gradient before the activation, and where the bias is said to count."""
    shares = {bias.BEFORE: before, bias.AFTER: after, bias.FIXED: after, bias.NONE: 0.3}
    error = np.array([0.1, 0.2, 0.15])
    return {
        (arm, batch): bias.Arm(gradient=np.full(3, share), bias=np.full(3, share), error=error, without=error - 0.01)
        for arm, share in shares.items()
        for batch in PLAN.batches
    }


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [(1e-8, 0.2, "holds when"), (1e-8, 1e-8, "holds"), (0.2, 0.2, "does not hold")],
)
def test_the_verdict_on_the_bias(before: float, after: float, verdict: str) -> None:
    judgement = bias.judge(PLAN, found_of(before, after))
    (finding,) = judgement.findings
    assert finding.verdict == verdict
    assert finding.when.startswith("the norm stands before") == (verdict == "holds when")
    assert judgement.bars[0].met == (before < 1e-6) and not judgement.bars[1].met
    assert f"at most {before:.1e} of its kernel's" in judgement.sentences[0]


def test_files_and_the_page_of_claims(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, found = PLAN, found_of(1e-8, 0.2)
    about = {"command": "python experiments/bias.py", "seconds": 1, "jax": "0", "device": "cpu"}
    study.write(tmp_path / "claims", bias.study, plan, found, about)
    assert {path.suffix for path in (tmp_path / "claims").iterdir()} == {".txt", ".csv", ".json", ".svg", ".png"}
    document = json.loads((tmp_path / "claims" / "bias.json").read_text(), parse_constant=pytest.fail)
    assert document["plan"]["batches"] == [2, 8] and "data_dir" not in document["plan"]
    assert len((tmp_path / "claims" / "bias.csv").read_text().splitlines()) == 1 + 4 * 2 * 4 * 3
    table.main([str(tmp_path / "claims"), "--output", str(tmp_path / "claims.md")])
    page = (tmp_path / "claims.md").read_text()
    assert "1 claims: 1 holds when. 2 of 3 bars are met." in page and "![Is the bias" in page
    assert "(claims/bias.svg)" in page and "**holds when** the norm stands before" in page
    assert "**not met**: errors with and without biases" in page
    assert "wrote" in capsys.readouterr().out


def test_a_page_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        table.main([str(tmp_path), "--output", str(tmp_path / "claims.md")])
    assert "Expected .json files of studies" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "1"], "Expected `--seeds` to be at least 2"),
        (["--first-seed", "-1"], "Expected `--first-seed` to be at least 0"),
        (["--data", "nowhere"], "nowhere"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        study.main(bias.study, "", ["--quick", *arguments])
    assert message in capsys.readouterr().err


def test_the_command_is_that_of_anyone(tmp_path: Path) -> None:
    tiny = dataclasses.replace(bias.study, quick=bias.Extent(seeds=2, batches=(4,), steps=10, width=4))
    study.main(tiny, "", ["--quick", "--data", "digits", "--first-seed", "5", "--output", str(tmp_path)])
    document = json.loads((tmp_path / "bias.json").read_text())
    assert document["about"]["command"] == "python experiments/bias.py --quick --first-seed 5 --data digits"
    gradient = [
        row for row in (tmp_path / "bias.csv").read_text().splitlines() if row.startswith("gradient,batch norm b")
    ]
    assert len(gradient) == 2 and all(float(row.rpartition(",")[2]) < 1e-6 for row in gradient)
    assert gradient[0].split(",")[3] == "5"


def test_an_interval_without_ends_survives_the_page() -> None:
    assert table.effect({"mean": 1.0, "low": None, "high": None, "n": 2}) == "1 (no interval, n = 2)"
    assert table.effect(Interval(1.0, 0.5, 1.5, 3)._asdict()) == "1 (0.5 to 1.5, n = 3)"


STUDIES = sorted(path.stem for path in (ROOT / "experiments").glob("*.py") if "study = Study(" in path.read_text())


@pytest.mark.parametrize("name", STUDIES)
def test_a_network_brings_the_plan_that_is_listed_for_it(name: str) -> None:
    found = importlib.import_module(f"experiments.{name}").study
    assert found.name == name
    plans: list[study.Plan] = []

    def stop(plan: study.Plan) -> None:
        plans.append(plan)
        raise BadInput("enough")

    listed = {(): (found.standard, found.quick)} | {("--network", key): pair for key, pair in found.networks.items()}
    for arguments, pair in listed.items():
        for quick, plan in zip(((), ("--quick",)), pair, strict=True):
            with pytest.raises(SystemExit):
                study.main(dataclasses.replace(found, measure=stop), "", [*arguments, *quick])
            assert plans.pop() == plan, (arguments, quick)
