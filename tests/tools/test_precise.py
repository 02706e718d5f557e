"""Statistics estimated from data: those of the arrays that norms are given, in any model and call."""

import functools
import itertools
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

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
from normlab.errors import BadInput
from normlab.tools import Moments, averaging, collect, cumulative, precise, replicas, reset
from normlab.tools.estimated import KINDS

RNG = np.random.default_rng(0)
X = [2 + 3 * RNG.normal(size=(n, 4)).astype(np.float32) for n in (6, 6, 3)]
ALIKE = X[:2]


class Net(nn.Module):
    """Dense, norm, ReLU, dropout, Dense, norm."""

    norm: Callable[..., nn.Module] = normlab.linen.BatchNorm
    rate: float = 0.0

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        masked = {} if mask is None else {"mask": mask}
        x = self.norm(use_running_average=not train, name="first")(nn.Dense(3)(x), **masked)
        x = nn.Dropout(self.rate, deterministic=not train)(nn.relu(x))
        calls = self.variable("memory", "calls", lambda: jnp.zeros(()))
        if train:
            calls.value += 1
        return self.norm(use_running_average=not train, name="second")(nn.Dense(5)(x), **masked)


class NNXNet(nnx.Module):
    """The same in NNX, its norms in a list."""

    def __init__(
        self, norm: Callable[..., nnx.Module] = normlab.nnx.BatchNorm, rate: float = 0.0, seed: int = 0
    ) -> None:
        rngs = nnx.Rngs(seed)
        self.dense = nnx.List([nnx.Linear(4, 3, rngs=rngs), nnx.Linear(3, 5, rngs=rngs)])
        self.norms = nnx.List([norm(3, rngs=rngs), norm(5, rngs=rngs)])
        self.dropout = nnx.Dropout(rate, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.dropout(nnx.relu(self.norms[0](self.dense[0](x))))
        return self.norms[1](self.dense[1](x))


def start(model: nn.Module, x: np.ndarray = X[0], **options: Any) -> Any:
    return model.init(jax.random.key(1), x, train=False, **options)


@functools.cache
def estimated_once() -> tuple[Net, Any, Any]:
    """Return a network, its variables, and the variables with statistics of `ALIKE`, which many tests compare with."""
    model = Net()
    variables = start(model)
    return model, variables, precise(model, variables, ALIKE).variables


def hidden(variables: Any, x: np.ndarray) -> np.ndarray:
    """Return what the first norm is given, in float64."""
    dense = jax.tree.map(np.float64, variables["params"]["Dense_0"])
    return x @ dense["kernel"] + dense["bias"]


def assert_statistics(found: Any, values: np.ndarray, rtol: float = 2e-6) -> None:
    np.testing.assert_allclose(found["mean"], values.mean(0), rtol=rtol, atol=1e-6)
    np.testing.assert_allclose(found["var"], values.var(0), rtol=rtol)


def same(one: Any, other: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


def refused(message: str) -> Any:
    return pytest.raises(BadInput, match=f"^{re.escape(message)}")


LIBRARIES = pytest.mark.parametrize("norm", [normlab.linen.BatchNorm, nn.BatchNorm], ids=["ours", "flax"])


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


OPTIONS = {"continual": "num_groups=2", "batch_channel": "num_groups=2"}


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
    for key, value in expected.items():
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


@LIBRARIES
def test_calls_are_merged(norm: type[nn.Module]) -> None:
    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, train: bool) -> jax.Array:
            shared = norm(use_running_average=not train, name="shared")
            return shared(x) + shared(10 * x)

    model = Twice()
    found = precise(model, start(model), ALIKE)
    x = np.concatenate(ALIKE).astype(np.float64)
    assert_statistics(found.variables["batch_stats"]["shared"], np.concatenate([x, 10 * x]))
    assert (found.moments["shared"].batches == 4).all()


class Layer(nn.Module):
    """A layer for `nn.scan`."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, None]:
        x = normlab.linen.BatchNorm(use_running_average=not train, name="bn")(nn.Dense(4)(x))
        return x, None


class Stack(nn.Module):
    """Three layers in a scan, which share statistics or not."""

    axes: Any
    carry: Any = False
    transform: str = "scan"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        options = {"variable_axes": self.axes, "split_rngs": {"params": True}}
        if self.transform == "vmap":
            return nn.vmap(Layer, in_axes=(None, None), axis_size=3, **options)(name="layers")(x, train)[0].sum(0)
        return nn.scan(Layer, length=3, in_axes=nn.broadcast, variable_carry=self.carry, **options)(name="layers")(
            x, train
        )[0]


def test_layers_in_a_scan_have_statistics_of_their_own() -> None:
    model = Stack({"params": 0, "batch_stats": 0})
    variables = start(model)
    found = precise(model, variables, ALIKE).variables["batch_stats"]["layers"]["bn"]
    assert found["mean"].shape == (3, 4)
    given = [np.float64(x) for x in ALIKE]
    for i in range(3):
        dense = jax.tree.map(lambda leaf, i=i: np.float64(leaf[i]), variables["params"]["layers"]["Dense_0"])
        given = [h @ dense["kernel"] + dense["bias"] for h in given]
        assert_statistics(jax.tree.map(lambda leaf, i=i: leaf[i], found), np.concatenate(given), rtol=2e-5)
        given = [(h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5) for h in given]


def test_runs_without_statistics_of_their_own_or_without_an_order_are_refused() -> None:
    model, apart = Stack({"params": 0}, carry="batch_stats"), Stack({"params": 0, "batch_stats": 0})
    variables = start(apart)
    shared = {**variables, "batch_stats": jax.tree.map(lambda leaf: leaf[0], variables["batch_stats"])}
    with refused(
        "Expected statistics of its own for each of the 3 runs of `layers/bn`, along the first axis, got statistics of "
        "shape (4,) for features of shape (4,). Write `variable_axes={'batch_stats': 0}` in `nn.scan`, or leave the "
        "norm out by `where=`."
    ):
        precise(model, shared, ALIKE)
    model = Stack({"params": 0, "batch_stats": 0}, transform="vmap")
    with refused("Expected norms whose runs have an order, got `layers/bn` under `vmap`."):
        precise(model, start(model), ALIKE)


@LIBRARIES
def test_running_statistics_of_two_norms_in_sequence_are_settled_after_two_passes(norm: type[nn.Module]) -> None:
    model = Net(norm)
    found = precise(model, start(model), ALIKE, through="evaluation")
    assert (found.passes, found.moving, found.examples) == (2, {}, 12)
    given = []
    for x in ALIKE:
        dense = found.variables["params"]["Dense_1"]
        first = found.variables["batch_stats"]["first"]
        h = (hidden(found.variables, x) - first["mean"]) / np.sqrt(first["var"] + 1e-5)
        given.append(np.maximum(h, 0) @ np.float64(dense["kernel"]) + np.float64(dense["bias"]))
    assert_statistics(found.variables["batch_stats"]["second"], np.concatenate(given), rtol=1e-5)
    again = precise(model, found.variables, ALIKE, through="evaluation")
    same(again.variables, found.variables)
    assert (again.passes, again.change) == (1, {"first": 0, "second": 0})


def test_nnx_by_running_statistics_is_linen() -> None:
    model, linen = NNXNet(), Net()
    found = precise(model, None, ALIKE, through="evaluation")
    params = {
        f"Dense_{i}": {"kernel": layer.kernel[...], "bias": layer.bias[...]} for i, layer in enumerate(model.dense)
    }
    variables = start(linen)
    variables = {**variables, "params": {**variables["params"], **params}}
    expected = precise(linen, variables, ALIKE, through="evaluation").variables["batch_stats"]
    for norm, name in zip(found.model.norms, ("first", "second"), strict=True):
        np.testing.assert_allclose(norm.mean[...], expected[name]["mean"], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(norm.var[...], expected[name]["var"], rtol=1e-5)
    assert found.passes == 2


def test_a_norm_that_feeds_itself_keeps_moving() -> None:
    class Again(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, train: bool) -> jax.Array:
            shared = normlab.linen.BatchNorm(use_running_average=not train, name="shared")
            return shared(nn.relu(shared(x)))

    model = Again()
    found = precise(model, start(model), ALIKE, through="evaluation")
    assert found.passes == 1
    assert found.moving["shared"] > 0.01


def test_batches_that_are_gone_are_refused_only_where_they_are_read_again() -> None:
    model, one = Net(), nn.BatchNorm(use_running_average=None)
    variables = one.init(jax.random.key(0), X[0], use_running_average=True)
    assert precise(one, variables, iter(ALIKE), through="evaluation").passes == 1
    assert precise(model, start(model), iter(ALIKE)).examples == 12
    sentence = (
        "Expected batches that can be read again, got an iterator that is exhausted on pass 2 "
        "(`through='evaluation'`). Pass a list, or an object whose `__iter__` starts anew."
    )
    with refused(sentence):
        precise(model, start(model), iter(ALIKE), through="evaluation")

    class Once:
        def __init__(self) -> None:
            self.batches = iter(ALIKE)

        def __iter__(self) -> Iterator[np.ndarray]:
            return self.batches

    with refused(sentence):
        precise(model, start(model), Once(), through="evaluation")


def test_only_chosen_norms_change() -> None:
    model, variables, everything = estimated_once()
    for where in ("s*", ["second"], lambda site: site.path == "second"):
        found = precise(model, variables, ALIKE, where=where)
        same(found.variables["batch_stats"]["first"], variables["batch_stats"]["first"])
        same(found.variables["batch_stats"]["second"], everything["batch_stats"]["second"])
        assert list(found.moments) == ["second"]


def test_frozen_norms_stay_unless_they_are_named() -> None:
    class Frozen(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, train: bool) -> jax.Array:
            x = normlab.linen.BatchNorm(use_running_average=not train, frozen=True, name="ours")(x)
            x = nn.BatchNorm(use_running_average=True, name="flax")(x)
            return nn.BatchNorm(use_running_average=not train, name="free")(x)

    model = Frozen()
    assert list(precise(model, start(model), ALIKE).moments) == ["free"]
    assert list(precise(model, start(model), ALIKE, where=["ours", "f*"]).moments) == ["ours", "flax", "free"]


def test_models_of_many_devices_are_one_on_one_device() -> None:
    synchronized = Net(partial(normlab.linen.BatchNorm, axis_name="data"))
    flaxs = Net(partial(nn.BatchNorm, axis_name="data"))
    _, variables, expected = estimated_once()
    for model in (synchronized, flaxs):
        found = precise(model, variables, ALIKE).variables["batch_stats"]
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found, expected["batch_stats"])


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_examples_on_many_devices_are_still_one_batch(library: str) -> None:
    mesh = jax.make_mesh((8,), ("data",))
    batches = [np.tile(X[0], (4, 1)), X[2]]  # the second does not divide over the devices
    model, variables = (Net(), start(Net())) if library == "linen" else (NNXNet(), None)
    one, many = (collect(model, variables, batches, mesh=where) for where in (None, mesh))
    for path in one:
        np.testing.assert_allclose(many[path].mean, one[path].mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(many[path].var, one[path].var, rtol=1e-5)
    assert many.examples == 27
    if library == "linen":
        placed = jax.device_put(variables, jax.NamedSharding(mesh, jax.P()))
        found = precise(model, placed, [jax.device_put(batches[0], jax.NamedSharding(mesh, jax.P("data")))]).variables[
            "batch_stats"
        ]["first"]["mean"]
        np.testing.assert_allclose(found, hidden(variables, X[0]).mean(0), rtol=1e-5, atol=1e-6)
        assert found.sharding == placed["batch_stats"]["first"]["mean"].sharding


def test_parts_of_the_data_are_merged_across_files_and_processes(tmp_path: Path) -> None:
    model, variables, expected = estimated_once()
    collect(model, variables, ALIKE[:1]).save(tmp_path / "moments")
    merged = Moments.load(tmp_path / "moments") + collect(model, variables, ALIKE[1:]) + collect(model, variables, [])
    same(replicas.merge(merged).apply(variables), expected)


def test_averages_of_weights_evaluate_after_estimation() -> None:
    model = Net()
    trees = [model.init(jax.random.key(seed), X[0], train=False) for seed in (0, 1)]
    average = averaging.average(trees)
    found = precise(model, average, ALIKE).variables
    assert model.apply(found, X[0], train=False).shape == (6, 5)
    assert_statistics(found["batch_stats"]["first"], hidden(found, np.concatenate(ALIKE)))
    models = [NNXNet(seed=seed) for seed in (0, 1)]
    state = averaging.average([nnx.state(one) for one in models])
    copy = precise(models[0], state, ALIKE).model
    kernel = np.mean([one.dense[0].kernel[...] for one in models], 0)
    np.testing.assert_allclose(copy.dense[0].kernel[...], kernel, rtol=1e-6)
    np.testing.assert_allclose(copy.norms[0].mean[...], (np.concatenate(ALIKE) @ kernel).mean(0), rtol=1e-5, atol=1e-6)
    assert not np.allclose(models[0].dense[0].kernel[...], kernel)


def test_batches_are_counted_and_limited() -> None:
    model, seen = nn.BatchNorm(use_running_average=None), []
    variables = model.init(jax.random.key(0), X[0], use_running_average=True)
    assert precise(model, variables, ALIKE, limit=100, progress=seen.append).examples == 12
    assert seen == [1, 2]
    endless = itertools.cycle(ALIKE)
    assert precise(model, variables, endless, limit=3).examples == 18
    assert next(endless) is X[1]  # no more was read than asked for
    with refused("Expected `limit` to be a positive whole number, or None, got 0. Give one such as 5."):
        precise(model, variables, X, limit=0)


@pytest.mark.parametrize(
    "wrap",
    [lambda x: x, lambda x: (x, 0), lambda x: [x], lambda x: {"inputs": x}, lambda x: {"image": x}, lambda x: {"x": x}],
    ids=["array", "tuple", "list", "inputs", "image", "x"],
)
def test_batches_come_in_many_forms(wrap: Callable[[np.ndarray], object]) -> None:
    model = nn.BatchNorm(use_running_average=None)
    variables = model.init(jax.random.key(0), X[0], use_running_average=True)
    assert collect(model, variables, map(wrap, X[:1])).examples == 6


def test_reset_makes_statistics_fresh() -> None:
    model = Net(normlab.linen.BatchRenorm)
    fresh = start(model)
    used = jax.tree.map(lambda leaf: leaf + 3, fresh)
    found = reset(model, used)
    same(found, {**used, "batch_stats": fresh["batch_stats"]})
    part = reset(model, used, where="sec*")
    same(part["batch_stats"], {**used["batch_stats"], "second": fresh["batch_stats"]["second"]})
    copy = precise(NNXNet(), None, ALIKE).model
    again = reset(copy, where=["norms/0"])
    assert again.norms[0].mean[...].tolist() == [0, 0, 0]
    same(again.norms[1].mean[...], copy.norms[1].mean[...])
    with refused("Expected a glob that matches the path of a norm with running statistics, got `frist`. Did you mean"):
        reset(model, used, where="frist")


def test_models_without_statistics_to_learn_are_refused() -> None:
    layers = nn.Sequential([nn.LayerNorm(), nn.LayerNorm(), nn.LayerNorm()])
    variables = layers.init(jax.random.key(0), X[0])
    with refused("Expected a model with running statistics, found none among its 3 norms (layer, layer, layer)."):
        precise(layers, variables, X)
    dense = nn.Dense(2)
    with refused("Expected a model with running statistics, found no norms."):
        precise(dense, dense.init(jax.random.key(0), X[0]), X)
    fixed = Net(partial(normlab.linen.BatchNorm, frozen=True))
    with refused(
        "Expected a norm that learns its statistics in training, got 2 with fixed ones, such as `first`. Give "
        "`train={...}`, the keywords of a call in training, or name norms in `where=`."
    ):
        precise(fixed, start(fixed), X)
    untold = nn.Sequential([nn.BatchNorm(use_running_average=True)])
    variables = untold.init(jax.random.key(0), X[0])
    untold_mode = "Expected to know how the model is told to train, got a call without an argument such as `train`."
    with refused(untold_mode):
        precise(untold, variables, X)
    with refused(untold_mode):
        precise(untold, variables, X, through="evaluation")
    mixed = nn.Sequential([nn.LayerNorm(), nn.BatchNorm(use_running_average=False)])
    with refused(
        "Expected norms with a running mean of their input in `where`, got `layers_0` (layer). Take norms such as "
        "`layers_1`."
    ):
        precise(mixed, mixed.init(jax.random.key(0), X[0]), X, where="layers_0")


def test_what_does_not_fit_is_refused_in_a_sentence() -> None:
    model = Net()
    variables = start(model)
    with refused("Expected at least one batch, got none. Pass a list of batches, or a loader that is not empty."):
        precise(model, variables, [])
    with refused("Expected at least one batch, got none. Pass a list of batches, or a loader that is not empty."):
        cumulative(model, variables, [])
    with refused("Expected `through` to be 'batch' or 'evaluation', got 'train'. Choose one."):
        precise(model, variables, X, through="train")
    wrong = X[1].copy()
    wrong[2, 1] = np.nan
    with refused(
        "Expected finite inputs of norms, got NaN or infinity at `first` in batch 1, counted from 0. Look at this "
        "batch, and at the weights before this norm."
    ):
        precise(model, variables, [X[0], wrong, X[2]])
    with refused(
        "Expected a batch with one of 'inputs', 'image', 'x', got `pixels`. Give "
        "`call=lambda batch: ((batch[...],), {})`, the arguments of the model."
    ):
        precise(model, variables, [{"pixels": X[0]}])
    with refused("Expected a batch of arrays, a tuple or a dict, got `text`. Give `call="):
        precise(model, variables, ["text"])
    with refused("Expected an array with an axis of examples among the arguments of the model, got none. Give `call="):
        precise(model, variables, [1], call=lambda batch: ((np.float32(0),), {}))
