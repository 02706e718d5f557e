"""Statistics estimated from data are those of the arrays that norms are given."""

from functools import partial

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import normlab.linen
import normlab.nnx
from normlab import norms
from normlab.tools import collect, cumulative, precise
from normlab.tools.estimation.estimated import KINDS
from tests.tools.nets import (
    ALIKE,
    LIBRARIES,
    Net,
    NNXNet,
    X,
    assert_statistics,
    estimated_once,
    hidden,
    refused,
    same,
    start,
)


@LIBRARIES
def test_statistics_are_those_of_all_examples(norm: type[nn.Module]) -> None:
    model = Net(norm)
    variables = start(model)
    found = precise(model, variables, X)
    assert_statistics(found.variables["batch_stats"]["first"], hidden(variables, np.concatenate(X)))
    assert (found.examples, found.moments.batches, found.moments.sizes, found.passes) == (15, 3, (6, 3), 1)
    assert list(found.moments) == ["first", "second"]
    assert (found.moments["second"].count == 15).all()
    assert found.model is model


def test_the_second_norm_is_given_what_the_first_makes_of_a_batch() -> None:
    _, variables, found = estimated_once()

    def given(x: np.ndarray) -> np.ndarray:
        h = hidden(variables, x)
        h = np.maximum((h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5), 0)
        dense = variables["params"]["Dense_1"]
        return h @ np.float64(dense["kernel"]) + np.float64(dense["bias"])

    assert_statistics(found["batch_stats"]["second"], np.concatenate([given(x) for x in ALIKE]), rtol=1e-5)


def test_nothing_but_statistics_changes_and_nothing_given_does() -> None:
    model, variables, _ = estimated_once()
    before = jax.tree.map(np.array, variables)
    found = precise(model, variables, ALIKE).variables
    same(variables, before)
    same({**found, "batch_stats": 0}, {**before, "batch_stats": 0})
    assert jax.tree.structure(found) == jax.tree.structure(variables)
    frozen = precise(model, flax.core.freeze(variables), ALIKE).variables
    assert isinstance(frozen, flax.core.FrozenDict)
    same(frozen, flax.core.freeze(found))


def test_estimating_twice_is_estimating_once() -> None:
    model, _, once = estimated_once()
    twice = precise(model, once, ALIKE)
    same(once, twice.variables)
    assert twice.change == {"first": 0, "second": 0}
    moved = jax.tree.map(lambda leaf: 4 * leaf, once["batch_stats"])
    again = precise(model, {**once, "batch_stats": moved}, ALIKE).change
    mean, std = (once["batch_stats"]["first"][name] for name in ("mean", "var"))
    expected = np.maximum(3 * np.abs(mean), np.sqrt(std)) / np.sqrt(std)
    assert again["first"] == pytest.approx(expected.max(), rel=1e-6)


OPTIONS = {"continual": "num_groups=2", "batch_channel": "num_groups=2", "whiten": "group_size=4"}


@pytest.mark.parametrize(
    "name",
    [
        *(f"{kind}:{OPTIONS.get(kind, '')}".rstrip(":") for kind in KINDS),
        "batch:unbiased_running_var=True",
        "batch_renorm:epsilon=0.5",
    ],
)
@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_one_batch_gives_the_statistics_that_training_with_momentum_0_keeps(name: str, library: str) -> None:
    x = 1 + 2 * jax.random.normal(jax.random.key(0), (6, 5, 8))
    plain = {"r_max": 1.0, "d_max": 0.0} if name.startswith("batch_renorm") else {}
    norm, kept = norms.get(name), norms.get(name, momentum=0.0, **plain)
    if library == "linen":
        variables = norm.linen(train=False).init(jax.random.key(0), x)
        found = precise(norm.linen(train=True), variables, [x], train={}).variables["batch_stats"]
        expected = kept.linen(train=True).apply(variables, x, mutable=["batch_stats"])[1]["batch_stats"]
    else:
        found = nnx.to_pure_dict(nnx.state(precise(norm.nnx(8, rngs=nnx.Rngs(0)), None, [x]).model, nnx.BatchStat))
        trained = kept.nnx(8, rngs=nnx.Rngs(0))
        trained.train()
        trained(x)
        expected = nnx.to_pure_dict(nnx.state(trained, nnx.BatchStat))
    assert found.keys() == expected.keys()
    buffers = ("chi", "step") if name == "mabn" else ()  # which stay; see `normlab.tools.estimation.estimated.form`
    for key, value in expected.items():
        if key not in buffers:
            np.testing.assert_allclose(found[key], value, rtol=2e-6, atol=1e-6)


def test_corrections_and_running_statistics_of_batch_renorm_play_no_part() -> None:
    renorm = partial(normlab.linen.BatchRenorm, epsilon=0.01, r_max=lambda step: 3.0, initialize_from_first_batch=True)
    plain, model = Net(partial(normlab.linen.BatchNorm, epsilon=0.01)), Net(renorm)  # which see the same arrays
    variables = start(model)
    expected = precise(plain, start(plain), ALIKE).variables["batch_stats"]
    stats = jax.tree.map(lambda leaf: leaf + 7, variables["batch_stats"])
    found = precise(model, {**variables, "batch_stats": stats}, ALIKE).variables["batch_stats"]
    for name in ("first", "second"):
        np.testing.assert_allclose(found[name]["mean"], expected[name]["mean"], rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(found[name]["std"], np.sqrt(expected[name]["var"] + 0.01), rtol=1e-6)
        assert found[name]["step"] == 2


def test_paper_takes_batches_of_one_size() -> None:
    model = Net()
    variables = start(model)
    found = precise(model, variables, ALIKE, estimator="paper").variables["batch_stats"]["first"]
    batches = [hidden(variables, x) for x in ALIKE]
    np.testing.assert_allclose(found["mean"], np.mean([h.mean(0) for h in batches], 0), rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(found["var"], np.mean([h.var(0, ddof=1) for h in batches], 0), rtol=2e-6)
    with refused(
        "Expected batches of one size with `estimator='paper'`, got 6 and 3. Drop the remainder or take 'population'."
    ):
        precise(model, variables, X, estimator="paper")


def test_cumulative_is_training_with_momentum_none() -> None:
    model = Net(partial(normlab.linen.BatchNorm, momentum=None, unbiased_running_var=True))
    variables = expected = start(model)
    for x in X:
        _, changed = model.apply(expected, x, train=True, mutable=["batch_stats", "memory"])
        expected = {**expected, **changed}
    moved = {**variables, "batch_stats": jax.tree.map(lambda leaf: leaf + 1, variables["batch_stats"])}
    found = cumulative(model, moved, X)["batch_stats"]
    jax.tree.map(partial(np.testing.assert_allclose, rtol=5e-6, atol=1e-6), found, expected["batch_stats"])
    copy = cumulative(NNXNet(), None, X)
    np.testing.assert_allclose(copy.norms[0].mean[...], np.mean([copy.dense[0](x).mean(0) for x in X], 0), rtol=1e-5)


@LIBRARIES
def test_masked_elements_do_not_count(norm: type[nn.Module]) -> None:
    model = Net(norm)
    variables = start(model)
    batches = [{"x": x, "mask": np.arange(6)[:, None] < count} for x, count in zip(ALIKE, (6, 2), strict=True)]
    found = precise(model, variables, batches, call=lambda batch: ((batch["x"],), {"mask": batch["mask"]}))
    kept = np.concatenate([x[batch["mask"][:, 0]] for x, batch in zip(ALIKE, batches, strict=True)])
    assert_statistics(found.variables["batch_stats"]["first"], hidden(variables, kept))
    assert (found.moments["first"].count == 8).all()


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_weights_count_examples_as_often(offset: float) -> None:
    model = nn.BatchNorm(use_running_average=None)
    variables = model.init(jax.random.key(0), X[0], use_running_average=True)
    batches = [(x + np.float32(offset), np.arange(len(x)) % 3) for x in X]
    found = precise(model, variables, batches, weights=lambda batch: batch[1])
    repeated = np.concatenate([np.repeat(np.float64(x), weights, 0) for x, weights in batches])
    assert_statistics(found.variables["batch_stats"], repeated, rtol=2e-6)
    assert (found.moments[""].count == len(repeated)).all()
    with refused(
        "Expected a weight for each of the 6 examples of ``, got weights of shape (2,). Return one number an example, "
        "or leave `weights` out."
    ):
        precise(model, variables, X, weights=lambda batch: np.ones(2))


def test_weights_in_nnx_and_beside_a_mask() -> None:
    model = NNXNet()
    found = precise(model, None, ALIKE, weights=lambda batch: jnp.arange(len(batch)) < 2).model
    expected = precise(model, None, [x[:2] for x in ALIKE]).model
    np.testing.assert_allclose(found.norms[0].mean[...], expected.norms[0].mean[...], rtol=1e-6)
    net = Net()
    variables, mask = start(net), np.arange(6)[:, None] < 3
    given = {"call": lambda x: ((x,), {"mask": mask}), "weights": lambda x: np.array([1, 0, 2, 5, 5, 5])}
    both = precise(net, variables, ALIKE, **given).variables["batch_stats"]["first"]
    kept = np.concatenate([x[[0, 2, 2]] for x in ALIKE])
    assert_statistics(both, hidden(variables, kept))


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_the_order_of_batches_does_not_matter(offset: float) -> None:
    model = nn.BatchNorm(use_running_average=None)
    variables = model.init(jax.random.key(0), X[0], use_running_average=True)
    batches = [x + np.float32(offset) for x in X]
    one, two = (collect(model, variables, each)[""] for each in (batches, batches[::-1]))
    np.testing.assert_allclose(one.mean, two.mean, rtol=1e-6)
    np.testing.assert_allclose(one.var, two.var, rtol=1e-6)
    assert_statistics({"mean": one.mean, "var": one.var}, np.concatenate(batches).astype(np.float64), rtol=1e-6)


def test_dropout_is_off_unless_training_has_it() -> None:
    model, (_, variables, expected) = Net(rate=0.5), estimated_once()
    same(precise(model, variables, ALIKE).variables, expected)
    same(precise(model, variables, ALIKE, train={"train": True}).variables, expected)
    on = precise(model, variables, ALIKE, train={"train": True}, rngs={"dropout": jax.random.key(0)}).variables
    assert not np.allclose(on["batch_stats"]["second"]["var"], expected["batch_stats"]["second"]["var"], rtol=0.05)
    same(on["batch_stats"]["first"], expected["batch_stats"]["first"])
    same(
        *(nnx.state(precise(NNXNet(rate=rate), None, ALIKE).model, nnx.BatchStat) for rate in (0.5, 0.0)),
    )


def test_nnx_returns_a_copy_in_the_mode_of_the_model() -> None:
    model = NNXNet()
    model.eval()
    before = jax.tree.map(np.array, nnx.state(model, nnx.Param, nnx.BatchStat))
    found = precise(model, None, ALIKE)
    same(nnx.state(model, nnx.Param, nnx.BatchStat), before)
    copy = found.model
    h = np.concatenate(ALIKE).astype(np.float64) @ np.float64(model.dense[0].kernel[...])
    assert_statistics({"mean": copy.norms[0].mean[...], "var": copy.norms[0].var[...]}, h)
    assert (copy.norms[0].use_running_average, model.norms[0].use_running_average) == (True, True)
    assert list(found.moments) == ["norms/0", "norms/1"]
    assert type(copy.norms[0]) is normlab.nnx.BatchNorm
    assert isinstance(found.variables, nnx.State)
