"""The study of single examples: exact facts, verdicts on made-up numbers, and the whole command."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import single_example as module
from experiments.claims import networks
from experiments.claims.images import Images, Part
from experiments.claims.study import main
from experiments.claims.trainer import Trained, logits
from experiments.claims.verdicts import Finding, Verdict
from experiments.single_example import Extent, Found, Outcome, study

PLAN = Extent(seeds=4, networks=("mlp-3", "mlp-10", "conv"), sizes=(1, 2, 64))
NOISE = 0.001 * np.array([0.0, 1.0, -1.0, 2.0])
NONE = np.zeros(4, np.int64)
SINGLE, ZERO, DELETE, FOLD = range(4)


def network_(name: str, **others: object) -> Outcome:
    """Return the measurements of a network as expected, but for some."""
    running = 0.03 + NOISE
    dense = name != "conv"
    expected = Outcome(
        rate=0.1,
        own=np.stack([0.9 + 2 * NOISE, 0.6 + 2 * NOISE, 0.035 + 2 * NOISE], 1),
        running=np.stack([running] * 3, 1),
        moved=np.full(4, 1e-7),
        moved_flips=NONE,
        deleted=0.18 + 3 * NOISE,
        kept=0.19 + 3 * NOISE,
        zero=0.9 + NOISE,
        zero_classes=NONE + 1,
        alone=np.full(4, 0.0 if dense else 0.04),
        alone_classes=NONE + (1 if dense else 2),
        folded_error=running,
        folded=np.full(4, 2e-7),
        folded_flips=NONE,
        refused=dense,
    )
    return dataclasses.replace(expected, **others)


def numbers(only: str | None = None, **others: object) -> Found:
    """Return measurements as expected, but for some of one network or of all."""
    return {name: network_(name, **(others if only in (None, name) else {})) for name in PLAN.networks}


def finding(number: int, found: Found) -> Finding:
    return study.judge(PLAN, found).findings[number]


def said(found: Found) -> str:
    return "\n".join(study.judge(PLAN, found).sentences)


def test_single_examples_are_unstable_by_their_own_statistics_alone() -> None:
    one = finding(SINGLE, numbers())
    assert one.verdict == Verdict.HOLDS_WHEN and "the test batch gives the statistics" in one.when
    assert one.seen.mean == pytest.approx(87.0, abs=0.1)
    assert "all test batches of 1 to 64 give the same outputs up to 1.0e-07" in said(numbers())


@pytest.mark.parametrize("others", [{"moved": np.full(4, 1e-3)}, {"moved_flips": NONE + 3}])
def test_running_statistics_that_depend_on_the_batch_are_unstable(others: dict[str, np.ndarray]) -> None:
    found = numbers("conv", **others)
    assert finding(SINGLE, found).verdict == Verdict.HOLDS
    assert "which must not be" in said(found)


def test_own_statistics_that_cost_nothing_are_not_visible() -> None:
    errors = np.stack([0.03 + 2 * NOISE[::-1]] * 3, 1)
    assert finding(SINGLE, numbers(own=errors)).verdict == Verdict.UNSEEN


def test_own_statistics_that_help_fail() -> None:
    assert finding(SINGLE, numbers(own=np.stack([0.01 + 2 * NOISE] * 3, 1))).verdict == Verdict.FAILS


def test_zero_holds_without_positions_alone() -> None:
    one = finding(ZERO, numbers())
    assert one.verdict == Verdict.HOLDS_WHEN
    assert one.when == (
        "the statistics are over examples alone (MLP 3 x 100, MLP 10 x 100); over positions, too, a single image is "
        "not zero (ConvNet)"
    )
    assert one.network == "ConvNet" and one.seen.mean == pytest.approx(0.04)


def test_zero_holds_if_all_outputs_are_constant_and_fails_if_none_is() -> None:
    assert finding(ZERO, numbers(alone=np.full(4, 1e-7))).verdict == Verdict.HOLDS
    assert finding(ZERO, numbers(alone=np.full(4, 0.5))).verdict == Verdict.FAILS


def test_deleting_fails_where_it_costs_and_folding_is_named() -> None:
    one = finding(DELETE, numbers())
    assert one.verdict == Verdict.FAILS and "folding" in one.when
    assert one.seen.mean == pytest.approx(15.0, abs=0.2)
    assert "folding" not in finding(DELETE, numbers(folded_flips=NONE + 1)).when


def test_deleting_holds_where_it_costs_nothing() -> None:
    free = 0.03 + 1.01 * NOISE
    assert finding(DELETE, numbers(deleted=free)).verdict == Verdict.HOLDS
    one = finding(DELETE, numbers("mlp-3", deleted=free))
    assert one.verdict == Verdict.HOLDS_WHEN and one.when == "the network is MLP 3 x 100"


def test_deleting_is_not_visible_in_noise() -> None:
    assert finding(DELETE, numbers(deleted=0.05 + 100 * NOISE**2 + 20 * NOISE)).verdict == Verdict.UNSEEN


def test_folding_holds_or_fails_by_network() -> None:
    assert finding(FOLD, numbers()).verdict == Verdict.HOLDS
    one = finding(FOLD, numbers("mlp-10", folded=np.full(4, 0.01)))
    assert one.verdict == Verdict.HOLDS_WHEN and one.when == "the network is MLP 3 x 100, ConvNet"
    assert finding(FOLD, numbers(folded_flips=NONE + 1)).verdict == Verdict.FAILS


def test_bars_are_met_by_the_expected_numbers_and_by_no_others() -> None:
    assert all(bar.met for bar in study.judge(PLAN, numbers()).bars)
    others = {name: numbers()[name] for name in ("mlp-10", "conv")}
    assert len(study.judge(dataclasses.replace(PLAN, networks=tuple(others)), others).bars) == 3
    own = np.stack([0.9 + NOISE, 0.3 + NOISE, 0.06 + NOISE], 1)
    wrong = {"deleted": 0.05 + NOISE, "moved_flips": NONE + 1, "folded_flips": NONE + 1, "zero_classes": NONE + 2}
    assert not any(bar.met for bar in study.judge(PLAN, numbers(own=own, **wrong)).bars)


def test_the_paragraph_compares_depths() -> None:
    for deleted, word in ((0.5 + NOISE, "worse"), (0.1 + NOISE, "less bad"), (0.18 + 3 * NOISE, "not clearly diff")):
        assert f"is {word}" in said(numbers("mlp-10", deleted=deleted))


def test_the_paragraph_counts_predictions_and_classes() -> None:
    text = said(numbers())
    assert "and no prediction." in text and "1 class predicted" in text and "2 classes predicted" in text
    assert "the layer refuses a single image" in text and "the layer accepts a single image" in text
    assert "and 1 prediction." in said(numbers("conv", folded_flips=np.array([0, 1, 0, 0])))
    assert "1 to 3 classes" in said(numbers("conv", alone_classes=np.array([1, 2, 3, 1])))


@pytest.fixture(scope="module")
def data() -> Images:
    inputs = np.random.default_rng(0).normal(size=(64, 8, 8, 1)).astype(np.float32)
    part = Part(inputs, np.arange(64, dtype=np.int32) % 3)
    return Images(train=part, validation=part, test=part, classes=3, name="noise")


def drawn(data: Images, name: str) -> Trained:
    """Return two networks with random parameters and statistics."""
    net = networks.made(name, "batch", data)
    params, state = jax.vmap(net.init)(jnp.arange(2, dtype=jnp.uint32))
    generator = np.random.default_rng(1)

    def moved(leaf: jax.Array) -> jax.Array:
        return leaf + 0.3 * generator.random(leaf.shape, np.float32) if leaf.dtype == np.float32 else leaf

    return Trained(*jax.tree.map(moved, (params, state)), ())


def test_a_single_image_by_its_own_statistics_is_zero_in_dense_layers(data: Images) -> None:
    runs = drawn(data, "mlp-2")
    net = networks.made("mlp-2", "batch:statistics=batch", data)
    alone = module.in_batches(net, runs, data.test, 1, copies=2)
    forced = logits(networks.made("mlp-2", "batch", data), module.at_zero(runs.params), runs.state, data.test)
    np.testing.assert_allclose(alone, forced, rtol=1e-5, atol=1e-6)
    assert module.spread(forced).max() < 1e-6 and module.distinct(forced).tolist() == [1, 1]


def test_no_standardization_and_no_affine_step_is_no_norm(data: Images) -> None:
    runs = drawn(data, "mlp-2")
    plain = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.full_like(leaf, path[-1].key == "scale") if "norm" in path[0].key else leaf, runs.params
    )
    net, bare = (networks.made("mlp-2", norm, data) for norm in ("batch", "none"))
    found = logits(net, plain, module.unstandardized(runs.state), data.test)
    np.testing.assert_allclose(found, logits(bare, runs.params, runs.state, data.test), rtol=1e-5, atol=1e-5)


def test_folded_networks_and_batches_of_all_sizes_have_the_same_outputs(data: Images) -> None:
    runs, net = drawn(data, "mlp-2"), networks.made("mlp-2", "batch", data)
    outputs = module.by_size(Extent(sizes=(1, 8)), net, runs, data.test)
    assert module.change(outputs[:, 0], outputs[:, 1]).max() <= module.EXACT
    folded = module.folded_outputs(net, runs, data.test)
    assert module.change(outputs[:, 0], folded).max() <= module.FOLDED_WITHIN
    assert not module.flips(outputs[:, 0], folded).any()


@pytest.mark.parametrize(("name", "refused"), [("mlp-1", True), ("conv", False)])
def test_a_dense_layer_refuses_to_train_on_a_single_image(data: Images, name: str, refused: bool) -> None:
    net = networks.made(name, "batch", data)
    variables = jax.eval_shape(jax.vmap(net.init), jnp.arange(1, dtype=jnp.uint32))
    runs = Trained(*jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), variables), ())
    assert module.refuses(net, runs, data.test) is refused


def test_measures_of_outputs() -> None:
    outputs = np.array([[[0.0, 4.0], [3.0, 1.0]]])
    assert module.change(outputs, outputs + 0.4).tolist() == [pytest.approx(0.1)]
    assert module.change(outputs / 8, outputs / 8 + 0.4).tolist() == [pytest.approx(0.4)]
    assert module.flips(outputs, outputs[:, ::-1]).tolist() == [2]
    assert module.wrong(outputs, Part(np.zeros(2), np.array([1, 1]))).tolist() == [0.5]
    assert module.spread(outputs).tolist() == [1.5] and module.distinct(outputs).tolist() == [2]


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = dataclasses.replace(study.quick, networks=("mlp-1",), side=4, steps=10, test=128)
    options = ["--quick", "--data", "digits", "--output", str(tmp_path)]
    main(dataclasses.replace(study, quick=quick), "", options)
    assert "Folding the norms changes outputs" in capsys.readouterr().out
    kinds = ("txt", "csv", "json", "svg", "png")
    assert {path.name for path in tmp_path.iterdir()} == {f"single_example.{kind}" for kind in kinds}
    found = json.loads((tmp_path / "single_example.json").read_text())
    assert [f["claim"]["key"] for f in found["findings"]] == ["unstable-at-one", "zero-at-one", "just-delete", "fold"]
    assert (
        found["findings"][3]["verdict"] == "holds"
        and found["plan"]["networks"] == ["mlp-1"]
        and found["plan"]["side"] == 4
    )
