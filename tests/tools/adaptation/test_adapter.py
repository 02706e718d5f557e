"""A model adapts to each batch, then predicts it; nothing that was given changes."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import normlab.linen
import normlab.nnx
from normlab.tools import Adapter, Record
from normlab.tools.adapt import Adaptation
from normlab.tools.adaptation.predictions import entropy
from tests.tools.nets import Net, NNXNet, X, same, start

METHODS: dict[Adaptation, dict] = {"adabn": {}, "prediction_time": {}, "blended": {"alpha": 0.5}, "tent": {}}


@pytest.mark.parametrize("method", ["tent", "adabn"])
def test_a_reset_model_begins_again_bit_by_bit(method: Adaptation) -> None:
    model = Net()
    variables = start(model)
    options = {"optimizer": optax.adam(0.1)} if method == "tent" else {}
    adapter = Adapter(model, variables, method, **options)
    first = [adapter(x) for x in X[:2]]
    curve, moved = adapter.curve, adapter.variables
    adapter.reset()
    same(adapter.variables, variables)
    assert adapter.curve == []
    same([adapter(x) for x in X[:2]], first)
    same(adapter.variables, moved)
    assert [(one.step, one.entropy, one.shift) for one in adapter.curve] == [
        (one.step, one.entropy, one.shift) for one in curve
    ]


@pytest.mark.parametrize("method", METHODS)
def test_nothing_that_was_given_changes(method: Adaptation) -> None:
    model, twin = Net(), NNXNet()
    variables = flax.core.freeze(start(model))
    before = jax.tree.map(np.array, variables)
    state = jax.tree.map(np.array, nnx.state(twin, nnx.Param, nnx.BatchStat))
    x = np.array(X[0])
    adapter, of_nnx = (
        Adapter(one, given, method, **METHODS[method]) for one, given in ((model, variables), (twin, None))
    )
    for each in (adapter, of_nnx):
        each(x)
    same(variables, before)
    same(nnx.state(twin, nnx.Param, nnx.BatchStat), state)
    np.testing.assert_array_equal(x, X[0])
    assert isinstance(adapter.variables, flax.core.FrozenDict)
    assert type(twin.norms[0]) is normlab.nnx.BatchNorm and not twin.norms[0].use_running_average
    if method in ("prediction_time", "blended"):
        same(adapter.variables, variables)


def test_statistics_are_kept_by_all_but_adabn() -> None:
    model = Net()
    variables = start(model)
    for method, options in METHODS.items():
        adapter = Adapter(model, variables, method, **options)
        adapter(X[0])
        kept = np.array_equal(
            adapter.variables["batch_stats"]["first"]["mean"], variables["batch_stats"]["first"]["mean"]
        )
        assert kept is (method != "adabn")
        same(adapter.variables["memory"], variables["memory"])


def test_adabn_evaluates_by_the_statistics_of_all_batches_so_far() -> None:
    model = normlab.linen.BatchNorm(use_running_average=True, epsilon=0.0)
    x = [jnp.array([[1.0], [2.0], [3.0]]), jnp.array([[6.0], [8.0]])]
    adapter = Adapter(model, model.init(jax.random.key(0), x[0]), "adabn")
    np.testing.assert_allclose(adapter(x[0]), (x[0] - 2) / np.sqrt(2 / 3), rtol=1e-6)
    np.testing.assert_allclose(adapter(x[1]), (x[1] - 4) / np.sqrt(6.8), rtol=1e-6)
    same(adapter.variables["batch_stats"], {"mean": np.float32([4]), "var": np.float32([6.8])})
    assert [one.shift for one in adapter.curve] == [2, 7]


def test_blended_statistics_are_those_by_hand() -> None:
    model = normlab.linen.BatchNorm(use_running_average=True, epsilon=0.0)
    x = jnp.array([[0.0], [4.0]])  # mean 2, variance 4
    variables = model.init(jax.random.key(0), x)
    for options, mean, var in (
        ({"alpha": 0.25}, 0.5, 1.75),
        ({"alpha": 0.25, "between": True}, 0.5, 2.5),
        ({"source_count": 6}, 0.5, 1.75),
        ({"source_count": 6, "between": True}, 0.5, 2.5),
    ):
        found = Adapter(model, variables, "blended", **options)(x)
        np.testing.assert_allclose(found, (x - mean) / np.sqrt(var), rtol=1e-6)


def test_the_weight_counts_examples_and_not_elements() -> None:
    model = normlab.linen.BatchNorm(use_running_average=True, epsilon=0.0)
    x = jax.random.normal(jax.random.key(0), (48, 5, 1))
    found = Adapter(model, model.init(jax.random.key(0), x), "blended", source_count=16)(x)
    mean, var = 0.75 * x.mean(), 0.25 + 0.75 * x.var()
    np.testing.assert_allclose(found, (x - mean) / np.sqrt(var), rtol=1e-4, atol=1e-6)


def test_a_model_is_compiled_once_for_each_shape() -> None:
    traced = []

    class Counting(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
            traced.append(x.shape)
            return nn.BatchNorm(use_running_average=not train)(x)

    model = Counting()
    variables = model.init(jax.random.key(0), X[0], train=False)
    for method, options in METHODS.items():
        adapter = Adapter(model, variables, method, **options)
        adapter(X[0])
        adapter(X[2])
        traced.clear()
        for _ in range(2):
            adapter(X[0])
            adapter(X[1])
            adapter(X[2])
            adapter.reset()
        assert traced == []
        adapter(X[0][:5])
        assert len(traced) == {"prediction_time": 1, "blended": 1, "adabn": 2, "tent": 2}[method]


def test_records_say_what_happened() -> None:
    model = normlab.linen.BatchNorm(use_running_average=True, epsilon=0.0)
    x = jnp.array([[8.0, 1.0], [12.0, -1.0]])
    adapter = Adapter(model, model.init(jax.random.key(0), x), "prediction_time")
    adapter(x)
    adapter(x[::-1])
    first, second = adapter.curve
    expected = float(entropy(jnp.array([[-1.0, 1.0], [1.0, -1.0]])))
    assert first == Record(0, pytest.approx(expected), 10.0, 2, first.seconds, 0.5)
    assert second == Record(1, pytest.approx(expected), 10.0, 2, second.seconds, 0.5)
    assert first.seconds > 0


def test_the_shift_is_in_deviations_of_the_model() -> None:
    model = normlab.linen.BatchNorm(use_running_average=True)
    x = jnp.array([[8.0], [12.0]])
    variables = model.init(jax.random.key(0), x)
    kept = {**variables, "batch_stats": {"mean": jnp.array([0.0]), "var": jnp.array([25.0])}}
    adapter = Adapter(model, kept, "prediction_time")
    adapter(x)
    assert adapter.curve[0].shift == pytest.approx(2)
    assert np.isnan([adapter.curve[0].entropy, adapter.curve[0].share]).all()  # one feature is no logits


def test_keywords_of_evaluation_and_of_a_call() -> None:
    class Named(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, phase: str) -> jax.Array:
            return nn.BatchNorm(use_running_average=phase == "serve")(x)

    model = Named()
    variables = model.init(jax.random.key(0), X[0], "serve")
    expected, _ = model.apply(variables, X[0], "learn", mutable=["batch_stats"])
    found = Adapter(model, variables, "prediction_time", evaluate={"phase": "serve"})(X[0])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    call = Adapter(model, variables, "prediction_time", call=lambda batch: ((batch["a"], "serve"), {}))
    np.testing.assert_array_equal(call({"a": X[0]}), found)

    class Placed(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, train: bool) -> jax.Array:
            return nn.BatchNorm(use_running_average=not train)(x)

    for call in (lambda x: ((x, False), {}), lambda x: ((x,), {"train": False}), lambda x: ((x,), {})):
        np.testing.assert_array_equal(Adapter(Placed(), variables, "prediction_time", call=call)(X[0]), found)


def test_a_model_that_draws_at_evaluation_draws_by_the_seed() -> None:
    model = nn.Sequential([nn.BatchNorm(use_running_average=True), nn.Dropout(0.5, deterministic=False)])
    variables = model.init(jax.random.key(0), X[0])
    one, twin, other = (Adapter(model, variables, "prediction_time", seed=seed) for seed in (1, 1, 2))
    first, second = one(X[0]), one(X[0])
    assert not np.array_equal(first, second) and not np.array_equal(first, other(X[0]))
    same([twin(X[0]), twin(X[0])], [first, second])
    one.reset()
    same(one(X[0]), first)


def test_models_and_states_of_nnx() -> None:
    model = NNXNet()
    given = nnx.state(NNXNet(seed=3))
    twin = nnx.clone(model)
    nnx.update(twin, given)
    twin.train()
    adapter = Adapter(model, given, "tent", optimizer=optax.sgd(0.5))
    np.testing.assert_allclose(adapter(X[0]), nnx.clone(twin)(X[0]), rtol=1e-5, atol=1e-5)
    moved = adapter.model
    assert isinstance(moved, NNXNet) and not moved.norms[0].use_running_average
    np.testing.assert_array_equal(moved.norms[0].scale[...], adapter.variables["norms"][0]["scale"][...])
    assert not np.array_equal(moved.norms[0].scale[...], twin.norms[0].scale[...])
    np.testing.assert_array_equal(moved.dense[0].kernel[...], twin.dense[0].kernel[...])
    twin.eval()
    same(*(nnx.state(one, (nnx.Param, nnx.BatchStat)) for one in (Adapter(model, given, "tent").model, twin)))


def test_predictions_of_one_class_have_collapsed() -> None:
    model = nn.BatchNorm(use_running_average=True)
    centres = 3 * np.eye(3, dtype=np.float32)
    variables = model.init(jax.random.key(0), centres)
    one, mixed = (Adapter(model, variables, "blended", alpha=0.1) for _ in range(2))
    noise = np.random.default_rng(0).normal(size=(3, 24, 3)).astype(np.float32) / 2
    for part in noise:
        assert not one.collapsed
        one(centres[np.zeros(24, int)] + part)
        mixed(centres[np.arange(24) % 3] + part)
    assert one.collapsed and not mixed.collapsed
    assert one.curve[0].share > 0.9 and mixed.curve[0].share < 0.5
    one.reset()
    assert not one.collapsed


@pytest.mark.parametrize("method", ["adabn", "tent"])
def test_examples_on_many_devices_are_one_batch(method: Adaptation) -> None:
    model = Net()
    variables, x = start(model), np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    apart = jax.device_put(x, jax.NamedSharding(jax.make_mesh((8,), ("data",)), jax.P("data")))
    one, many = (Adapter(model, variables, method) for _ in range(2))
    for _ in range(2):
        np.testing.assert_allclose(many(apart), one(x), rtol=1e-5, atol=1e-5)
    assert len(apart.sharding.device_set) == 8
