"""Test the study of fine-tuning."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import fine_tuning as study
from experiments.claims import images
from experiments.claims import study as command
from experiments.claims.shifted import RECIPES
from experiments.claims.trainer import loss
from experiments.claims.verdicts import Bar, Finding, Verdict
from normlab import norms, tools
from normlab.introspect.pure import network
from normlab.models.mlp import MLP

PLAN = study.Extent(seeds=7, networks=("mlp-2",))
SPREAD = np.array([0.98, 0.99, 1.0, 1.01, 1.02, 1.0, 1.0])
ERRORS = {
    study.BATCH: (0.38, 0.09),
    study.FROZEN: (0.06, 0.089),
    study.ADAPTED: (0.067, 0.083),
    study.FIXED: (0.061, 0.09),
    study.FOLLOWS: (0.08, 0.09),
    study.GROUP: (0.076, 0.12),
    study.NONE: (0.078, 0.1),
}


def observed(
    title: str = "MLP", before: float = 0.26, anew: float = 0.37, **others: tuple[float, float]
) -> study.Observed:
    """Make errors at batch 2 and 32; `others` are those of arms by name of their constant."""
    errors = {**ERRORS, **{getattr(study, name): pair for name, pair in others.items()}}

    def tuned(arm: str, error: float) -> study.Tuned:
        seen = np.stack([error * SPREAD] * len(PLAN.rates))
        re_estimated = anew * SPREAD if arm == study.BATCH else np.empty(0)
        return study.Tuned(seen, np.zeros(seen.shape, bool), 0.003, seen[0], re_estimated)

    return study.Observed(
        title=title,
        source="MNIST",
        target="digits",
        before=dict.fromkeys((study.BATCH, study.ADAPTED, study.GROUP, study.NONE), before * SPREAD),
        tuned={(arm, b): tuned(arm, e) for arm, pair in errors.items() for b, e in zip((2, 32), pair, strict=True)},
    )


def finding(key: str, **others: tuple[float, float]) -> Finding:
    """Judge one claim."""
    return next(one for one in study.judge(PLAN, {"mlp-2": observed(**others)}).findings if one.claim.key == key)


def sentence(text: str, one: study.Observed) -> str:
    """Return the only sentence with a text."""
    (line,) = (line for line in study.judge(PLAN, {"mlp-2": one}).sentences if text in line)
    return line


def bar(text: str, one: study.Observed) -> Bar:
    """Return the only bar with a text."""
    (found,) = (b for b in study.judge(PLAN, {"mlp-2": one}).bars if text in b.text)
    return found


def gradients(norm: str) -> tuple[dict, dict, dict]:
    """Return the norm's gradients, and its statistics before and after a step of training."""
    net = network(MLP, norms.get(norm), np.zeros((2, 8), np.float32), hidden=(6,))
    params, state = net.init(0)
    x = jax.random.normal(jax.random.key(1), (5, 8)) + 1
    _, found, after = net.gradients(
        lambda y: (loss(y, jnp.arange(5)), None), params, state, x, jnp.zeros((), jnp.int32)
    )
    return found["norm_0"], state[0]["batch_stats"]["norm_0"], after[0]["batch_stats"]["norm_0"]


def test_running_statistics_with_momentum_one_stay_while_scale_and_bias_learn() -> None:
    found, before, after = gradients(study.ARMS[study.FIXED].norm)
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert all(jnp.abs(found[name]).max() > 1e-3 for name in ("scale", "bias"))


def test_frozen_norms_keep_all_and_the_others_follow() -> None:
    found, before, after = gradients(study.ARMS[study.FROZEN].norm)
    jax.tree.map(np.testing.assert_array_equal, before, after)
    assert not any(jnp.abs(leaf).max() for leaf in jax.tree.leaves(found))
    for arm in (study.BATCH, study.FOLLOWS):
        found, before, after = gradients(study.ARMS[arm].norm)
        assert jnp.abs(after["mean"] - before["mean"]).max() > 1e-3 and jnp.abs(found["bias"]).max() > 1e-3


@pytest.mark.parametrize(("arm", "affine"), [(study.FROZEN, True), (study.FIXED, False)])
def test_arms_are_those_of_the_tool_that_freezes(arm: str, affine: bool) -> None:
    model = MLP(norms.get(study.SOURCE), hidden=(6,))
    variables = model.init(jax.random.key(0), np.zeros((2, 8), np.float32), train=False)
    x = jax.random.normal(jax.random.key(1), (5, 8))
    frozen = tools.freeze(model, variables, args=(x,), affine=affine)
    ours = MLP(norms.get(study.ARMS[arm].norm), hidden=(6,))
    outputs = [module.apply(variables, x, train=True, mutable=["batch_stats"]) for module in (frozen.model, ours)]
    jax.tree.map(np.testing.assert_array_equal, *outputs)


def test_freezing_helps_with_small_batches_with_all_or_not() -> None:
    small = finding("freeze", BATCH=(0.38, 0.08))
    assert small.verdict is Verdict.HOLDS and small.when == "the effect is that of batch 2"  # whatever happens at 32
    assert small.seen.mean == pytest.approx(-32, abs=1)
    assert finding("freeze").verdict is Verdict.HOLDS
    assert finding("freeze", BATCH=(0.01, 0.01)).verdict is Verdict.FAILS
    assert finding("freeze", BATCH=ERRORS[study.FROZEN]).verdict is Verdict.UNSEEN


def test_group_norm_and_adapted_statistics_are_judged_by_batch_size() -> None:
    assert finding("groups").verdict is Verdict.HOLDS
    assert finding("groups", GROUP=(0.9, 0.01)).verdict is Verdict.FAILS
    adapted = finding("adapt")
    assert adapted.verdict is Verdict.HOLDS_WHEN and adapted.when.startswith("for batch 32; the opposite for batch 2")
    assert finding("adapt", ADAPTED=(0.2, 0.2)).verdict is Verdict.FAILS
    assert finding("adapt", ADAPTED=ERRORS[study.FROZEN]).verdict is Verdict.UNSEEN


def test_scale_and_bias_may_learn_or_not() -> None:
    assert finding("statistics").verdict is Verdict.HOLDS
    assert finding("statistics", FIXED=(0.2, 0.09)).verdict is Verdict.FAILS


def test_a_result_of_no_clear_side_is_not_visible() -> None:
    one = observed()
    wide = one.tuned[study.FIXED, 2]._replace(error=np.array([0.01, 0.15, 0.02, 0.12, 0.06, 0.0, 0.1]))
    found = {"mlp-2": replace(one, tuned={**one.tuned, (study.FIXED, 2): wide})}
    (said,) = (f for f in study.judge(PLAN, found).findings if f.claim.key == "statistics")
    assert said.verdict is Verdict.UNSEEN


@pytest.mark.parametrize(
    ("before", "words"),
    [(0.26, "is worse than no"), (0.6, "is better than no"), (0.38, "is not visibly different from no")],
)
def test_the_paragraph_compares_with_no_fine_tuning(before: float, words: str) -> None:
    assert words in sentence("by statistics of the batch is", observed(before=before))


def test_the_paragraph_says_which_part_is_at_fault() -> None:
    assert "the training is at fault" in sentence("MLP, batches of 2:", observed())
    assert "the running average is at fault" in sentence("MLP, batches of 2:", observed(anew=0.07))
    assert "lose nothing" in sentence("MLP, batches of 2:", observed(BATCH=(0.05, 0.05)))


def test_the_paragraph_counts_diverged_runs_and_rates_at_the_end_of_the_grid() -> None:
    one = observed()
    assert not [line for line in study.judge(PLAN, {"mlp-2": one}).sentences if "diverged" in line or "grid" in line]
    flags = np.zeros((len(PLAN.rates), 7), bool)
    flags[0, :3] = True
    bad = one.tuned[study.FROZEN, 2]._replace(diverged=flags, rate=PLAN.rates[0])
    one = replace(one, tuned={**one.tuned, (study.FROZEN, 2): bad})
    assert "3 of 7 runs of frozen at batch 2 diverged" in sentence("diverged", one)
    assert sentence("end of the grid", one).endswith("for frozen at batch 2.")


def test_bars_can_be_met_and_missed() -> None:
    assert all(one.met for one in study.judge(PLAN, {"mlp-2": observed()}).bars)
    assert not bar("below batch statistics", observed(BATCH=(0.1, 0.09))).met
    assert not bar("below the source", observed(before=0.1)).met
    assert not bar("within 3 points", observed(BATCH=(0.38, 0.2))).met
    assert not bar("within 4 points", observed(GROUP=(0.2, 0.2))).met


def test_new_images_of_other_data_are_held_out_and_moved() -> None:
    data = RECIPES["mlp-2"].load("digits", None, 500)
    new = study.target(replace(study.QUICK, data="digits"), data)
    assert len(new.train.labels) == (len(data.test.labels) + len(data.validation.labels)) // 4 < study.QUICK.few
    sizes = [len(part.labels) for part in (new.train, new.validation, new.test)]
    assert sum(sizes) == len(data.test.labels) + len(data.validation.labels) and min(sizes) > 100
    assert not new.train.inputs[:, :, 0].any()


def test_new_images_of_mnist_are_the_digits() -> None:
    data = RECIPES["mlp-2"].load("digits", None, 500)
    new = study.target(replace(study.QUICK, data="tfds:mnist"), data)
    assert [len(part.labels) for part in (new.train, new.validation, new.test)] == [200, 300, 1_297]
    assert sum(part.inputs.sum() for part in (new.train, new.validation, new.test)) == pytest.approx(
        images.small_digits().train.inputs.sum()
        + images.small_digits().validation.inputs.sum()
        + images.small_digits().test.inputs.sum(),
        rel=1e-4,
    )


@pytest.mark.slow
def test_the_command_writes_figures_numbers_and_verdicts(tmp_path: Path) -> None:
    tiny = replace(study.QUICK, steps=20, few=40, arms=(study.BATCH, study.FROZEN, study.ADAPTED), rates=(1e-3, 3e-2))
    command.main(replace(study.study, quick=tiny), "", ["--quick", "--data", "digits", "--output", str(tmp_path)])
    names = {"fine_tuning.txt", "fine_tuning.csv", "fine_tuning.json", "fine_tuning.svg", "fine_tuning.png"}
    assert names <= {path.name for path in tmp_path.iterdir()}
    written = json.loads((tmp_path / "fine_tuning.json").read_text())
    assert [one["claim"]["key"] for one in written["findings"]] == ["freeze", "adapt"]
    assert len((tmp_path / "fine_tuning.csv").read_text().splitlines()) == 1 + 2 * (2 + 3 * 3 + 1)
