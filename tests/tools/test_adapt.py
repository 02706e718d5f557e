"""Functions that adapt a model to batches, and what they refuse."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st

import normlab.linen
from normlab.errors import StatisticsError
from normlab.functional import one_element
from normlab.tools import Adapter, adabn, averaging, blended, precise, prediction_time, tent
from tests.tools.nets import Net, NNXNet, X, refused, same, start

SERVED = {"use_running_average": True}


class Deep(nn.Module):
    """Two layers that are each followed by batch norm."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        for width in (8, 6):
            x = nn.Dense(width)(x)
            x = nn.relu(normlab.linen.BatchNorm(use_running_average=not train, epsilon=1e-12)(x))
        return nn.Dense(3)(x)


DEEP = Deep()
OF_DEEP = DEEP.init(jax.random.key(3), X[0], train=False)
DATA = np.random.default_rng(5).normal(size=(64, 4)).astype(np.float32)


@settings(max_examples=10, deadline=None)
@given(st.floats(0.2, 5), st.floats(-3, 3))
def test_adabn_undoes_an_affine_change_of_all_inputs(scale: float, shift: float) -> None:
    def adapted(x: np.ndarray) -> jax.Array:
        return DEEP.apply(adabn(DEEP, OF_DEEP, [x]).variables, x, train=False)

    changed = np.float32(scale) * DATA + np.float32(shift) * np.arange(4, dtype=np.float32)
    np.testing.assert_allclose(adapted(changed), adapted(DATA), rtol=1e-4, atol=1e-4)


def test_adabn_is_precise_on_target_data() -> None:
    model = Net()
    variables = start(model)
    found, expected = (one(model, variables, X) for one in (adabn, precise))
    same(found.variables, expected.variables)
    assert found.change == expected.change
    assert adabn(model, variables, X, where="first").change.keys() == {"first"}


def test_functions_are_adapters_over_batches() -> None:
    model = Net()
    variables = start(model)
    for function, name, options in (
        (prediction_time, "prediction_time", {}),
        (blended, "blended", {"source_count": 4, "between": True}),
        (tent, "tent", {"optimizer": optax.adam(0.1), "steps": 2, "after": True}),
        (tent, "tent", {"episodic": True, "after": True}),
    ):
        adapter: Any = Adapter(model, variables, name, **options)
        found = function(model, variables, iter(X), **options)
        same(found.outputs, [adapter(x) for x in X])
        same(found.variables, adapter.variables)
        assert [one.entropy for one in found.curve] == [one.entropy for one in adapter.curve]
        assert found.model is model and found.collapsed is adapter.collapsed


def test_no_batches_change_nothing() -> None:
    twin = NNXNet()
    found = tent(twin, None, [])
    assert (found.outputs, found.curve, found.collapsed) == ([], [], False)
    assert isinstance(found.model, NNXNet) and found.model is not twin


def sequence(*norms: nn.Module) -> tuple[nn.Module, Any]:
    model = nn.Sequential([nn.Dense(4), *norms])
    return model, model.init(jax.random.key(0), X[0])


def test_a_model_without_batch_norms_says_what_it_has() -> None:
    remedy = "Name them in `where=`; only their scale and bias can adapt."
    for norms, found in (
        ([nn.LayerNorm(), nn.LayerNorm()], "layer norms"),
        ([nn.LayerNorm(), nn.RMSNorm()], "layer norms and RMS norms"),
    ):
        for name in ("tent", "prediction_time", "adabn"):
            with refused(f"Expected batch norms to adapt, found {found}. {remedy}"):
                Adapter(*sequence(*norms), name)(X[0])
    with refused("Expected batch norms to adapt, found no norms. Take a model with batch norms."):
        Adapter(*sequence(), "tent")(X[0])
    frozen = normlab.linen.BatchNorm(frozen=True, use_running_average=True)
    with refused("Expected batch norms to adapt, found frozen ones alone. Name them in `where=`."):
        Adapter(*sequence(frozen), "tent")(X[0])


def test_norms_that_cannot_adapt_are_refused() -> None:
    model, variables = sequence(nn.BatchNorm(use_running_average=True), nn.LayerNorm())
    with refused(
        "Expected batch norms in `where`, got `layers_2` (layer), which keeps no statistics. Leave it out, or take "
        "`tent`, which adapts its scale and bias."
    ):
        prediction_time(model, variables, X, where="*")
    with refused("Expected `where` to name norms, got none. Name one by its path, or leave `where` out."):
        prediction_time(model, variables, X, where=lambda site: False)
    with refused("Expected a glob that matches the path of a norm, got `layer_1`. Did you mean `layers_1`?"):
        prediction_time(model, variables, X, where="layer_1")
    plain = nn.BatchNorm(use_running_average=True, use_scale=False, use_bias=False)
    with refused(
        "Expected norms with a scale or a bias to learn, got none in `layers_1` and the like. Take 'prediction_time', "
        "which needs neither."
    ):
        tent(*sequence(plain), X)


def test_a_norm_that_normalizes_by_the_batch_at_evaluation_is_refused() -> None:
    message = (
        "Expected norms that evaluate by running statistics, got `{}`, which normalizes by the batch. Give "
        "`evaluate={{...}}`, the keywords of a call at evaluation, or leave the norm out by `where=`."
    )
    model = Net()
    with refused(message.format("first")):
        prediction_time(model, start(model), X, evaluate={"train": True})
    for norm in (
        nn.BatchNorm(use_running_average=False),
        normlab.linen.BatchNorm(use_running_average=True, statistics="batch"),
    ):
        with refused(message.format("layers_1")):
            prediction_time(*sequence(norm), X)


def test_one_element_per_statistic_is_refused_where_it_is_all_that_counts() -> None:
    model = Net()
    variables = start(model)
    message = (
        "Expected statistics over more than one element, got one: `x` of shape (1, 3) is reduced over axes (0,). Adapt "
        "to several examples at once, or take `blended`, which keeps a share of the running statistics; or say that it "
        "is meant: `with normlab.functional.one_element():`."
    )
    for name, options in (("prediction_time", {}), ("tent", {}), ("adabn", {}), ("blended", {"alpha": 1.0})):
        adapter = Adapter(model, variables, name, **options)
        adapter(X[0])
        before = adapter.variables
        with pytest.raises(StatisticsError) as raised:
            adapter(X[0][:1])
        assert str(raised.value).startswith(message)
        assert adapter.variables is before and len(adapter.curve) == 1
    with one_element():
        assert np.isfinite(prediction_time(model, variables, [X[0][:1]]).outputs[0]).all()
    found = blended(model, variables, [X[0][:1]], source_count=16)
    assert np.isfinite(found.outputs[0]).all() and np.isnan(found.curve[0].share)
    images = nn.BatchNorm(use_running_average=True)
    x = jax.random.normal(jax.random.key(0), (1, 3, 3, 2))
    assert prediction_time(images, images.init(jax.random.key(0), x), [x]).outputs[0].shape == x.shape


def test_what_is_no_array_of_logits_has_no_entropy() -> None:
    class Pair(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            return nn.BatchNorm(**SERVED)(x), x

    model = Pair()
    variables = model.init(jax.random.key(0), X[0])
    remedy = "Let the model return logits alone."
    with refused(f"Expected logits, an array `[batch, ..., classes]`, got a value of type `tuple` of 2. {remedy}"):
        tent(model, variables, X)
    assert np.isnan(prediction_time(model, variables, X).curve[0].entropy)
    one = nn.BatchNorm(**SERVED)
    with refused("Expected logits, an array `[batch, ..., classes]`, got `"):
        tent(one, one.init(jax.random.key(0), X[0][:, :1]), [X[0][:, :1]])


def test_batches_that_are_not_finite_change_nothing() -> None:
    model = Net()
    adapter = Adapter(model, start(model), "tent")
    adapter(X[0])
    before = adapter.variables
    with refused("Expected finite inputs of norms, got NaN or infinity at `first` in batch 1, counted from 0."):
        adapter(np.full_like(X[0], np.nan))
    assert adapter.variables is before and len(adapter.curve) == 1


def test_arguments_are_checked_before_a_batch() -> None:
    model = Net()
    variables = start(model)
    methods = "('adabn', 'prediction_time', 'blended', 'tent')"
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("shot", {}, f"Expected `method` to be one of {methods}, got 'shot'. Choose one."),
        ("tent", {"steps": 0}, "Expected `steps` to be a positive whole number, got 0. Give one such as 5."),
        ("tent", {"after": 1}, "Expected `after` to be true or false, got 1. Write one of them."),
        (
            "tent",
            {"episodic": True},
            "Expected `after=True` or several `steps` with `episodic=True`, got one step whose outputs come before it: "
            "nothing would be learned. Give `after=True`.",
        ),
        ("tent", {"episodic": 2}, "Expected `episodic` to be true or false, got 2. Write one of them."),
        ("tent", {"seed": -1}, "Expected `seed` to be a whole number from 0 on, got -1. Give one such as 5."),
        (
            "tent",
            {"optimizer": "sgd"},
            "Expected `optimizer` to be an optimizer of optax, got `sgd`. Write one such as `optax.sgd(1e-3)`.",
        ),
        ("tent", {"alpha": 0.5}, "Expected `alpha` with the method 'blended' alone, got it with 'tent'. Leave it out."),
        ("adabn", {"steps": 2}, "Expected `steps` with the method 'tent' alone, got it with 'adabn'. Leave it out."),
        (
            "blended",
            {"optimizer": optax.sgd(1.0)},
            "Expected `optimizer` with the method 'tent' alone, got it with 'blended'. Leave it out.",
        ),
        (
            "blended",
            {},
            "Expected either `alpha` or `source_count`, got neither. Give `alpha`, the weight of the batch",
        ),
    ]
    for method, options, message in cases:
        with refused(message):
            Adapter(model, variables, method, **options)
    with refused("Expected a Flax module, got a function. Pass the module; the call is built from it."):
        Adapter(lambda x: x, None, "tent")
    with refused("Expected the variables of a Linen model, got None. Give those of `model.init`."):
        Adapter(model, None, "tent")


def test_without_optax_all_but_tent_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optax", None)
    model = Net()
    variables = start(model)
    assert prediction_time(model, variables, [X[0]]).outputs[0].shape == (6, 5)
    with refused("Expected `optax` to be installed, got none."):
        tent(model, variables, [X[0]])


def test_averages_of_models_are_taken_where_the_batch_alone_counts() -> None:
    model = Net()
    variables = start(model)
    average: Any = averaging.average([variables, variables])
    np.testing.assert_allclose(
        prediction_time(model, average, [X[0]]).outputs[0],
        prediction_time(model, variables, [jnp.asarray(X[0])]).outputs[0],
    )
    for method, options in (("blended", {"alpha": 0.5}), ("prediction_time", {"where": "first"})):
        with refused("Expected running statistics of these weights, got an average of models: `first` has the "):
            Adapter(model, average, method, **options)
