"""Test the live classifier and regressor: river's checks, growth, bad input, and files that continue bit for bit."""

import copy
import functools
import gc
import hashlib
import json
import math
import os
import pickle
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pandas as pd
import pytest
from flax import linen as nn
from flax import nnx
from river import checks, datasets, linear_model, metrics, optim, preprocessing

from normlab import norms
from normlab.functional import StatisticsError
from normlab.norms import Norm
from normlab.river import Classifier, Regressor, _file
from normlab.river._network import Learned, programs

Live = Classifier | Regressor
NAN, INF = math.nan, math.inf


TRACED: list[tuple[int, ...]] = []
"""Shapes of inputs that `Small` has been traced with."""


class Small(nn.Module):
    """Model that compiles quickly."""

    norm: Norm
    outputs: int
    width: int = 4

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        TRACED.append(x.shape)
        x = nn.relu(self.norm.linen(train=train, name="norm")(nn.Dense(self.width, name="dense")(x)))
        return nn.Dense(self.outputs, name="head")(x)


class Linear(nn.Module):
    """Linear model that starts at zero, so that new weights after growth are zero too."""

    norm: Norm
    outputs: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return nn.Dense(self.outputs, kernel_init=nn.initializers.zeros)(x)


class SmallNNX(nnx.Module):
    def __init__(self, norm: Norm, *, inputs: int, outputs: int, rngs: nnx.Rngs) -> None:
        self.dense = nnx.Linear(inputs, 4, rngs=rngs)
        self.norm = norm.nnx(4, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(4, outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.head(self.dropout(nnx.relu(self.norm(self.dense(x)))))


def stream(n: int, names: str = "abc", labels: str = "xy", seed: int = 0) -> list[tuple[dict[Any, float], Any]]:
    """Make examples whose class depends on the first feature."""
    draw = np.random.default_rng(seed)
    rows = draw.normal(size=(n, len(names)))
    return [(dict(zip(names, row.tolist(), strict=True)), labels[int(row[0] > 0) % len(labels)]) for row in rows]


def numbered(examples: list[tuple[dict[Any, float], Any]]) -> list[tuple[dict[Any, float], float]]:
    return [(x, 2.0 * x["a"]) for x, _ in examples]


def taught(model: Any, examples: list[tuple[dict[Any, float], Any]]) -> Any:
    for x, y in examples:
        model.learn_one(x, y)
    return model


def assert_same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("model", [Classifier(Linear, norm="none"), Regressor()], ids=["classifier", "regressor"])
def test_river_finds_nothing_wrong(model: Live) -> None:
    checks.check_estimator(model)


def test_a_linear_model_learns_what_softmax_regression_does() -> None:
    """Compare with NumPy in float64, which has one weight for each pair of feature and class."""
    examples = [
        ({"a": 1.0, 7: -0.5}, "x"),
        ({"a": -1.0}, "y"),
        ({("b", 1): 2, 7: True, "a": np.float32(0.25)}, "x"),
        ({None: 0.5, ("b", 1): np.int64(-1)}, np.str_("z")),
        *stream(20, labels="wxyz"),
    ]
    model = Classifier(Linear, norm="none", optimizer=optax.sgd, learning_rate=0.1)
    weights: dict[Any, dict[Any, float]] = {}
    for x, y in examples:
        weights.setdefault(y, {})
        model.learn_one(x, y)
        scores = {
            k: sum(w.get(name, 0.0) * float(v) for name, v in x.items()) + w.get("bias", 0.0)
            for k, w in weights.items()
        }
        total = sum(map(math.exp, scores.values()))
        for k, w in weights.items():
            error = math.exp(scores[k]) / total - (k == y)
            w["bias"] = w.get("bias", 0.0) - 0.1 * error
            for name, v in x.items():
                w[name] = w.get(name, 0.0) - 0.1 * error * float(v)
        after = {k: sum(w.get(name, 0.0) * float(v) for name, v in x.items()) + w["bias"] for k, w in weights.items()}
        total = sum(map(math.exp, after.values()))
        expected = {k: math.exp(score) / total for k, score in after.items()}
        assert model.predict_proba_one(x) == pytest.approx(expected, rel=1e-5)
        assert model.predict_one(x) == max(expected, key=expected.__getitem__)
    assert model.features[:2] == ("a", 7)


def test_a_burst_is_one_step_along_the_mean_gradient() -> None:
    """Compare with river's own linear regression."""
    examples = numbered(stream(12))
    X, y = pd.DataFrame([x for x, _ in examples]), pd.Series([y for _, y in examples])
    ours = Regressor(Linear, norm="none", optimizer=optax.sgd, learning_rate=0.05)
    theirs = linear_model.LinearRegression(optimizer=optim.SGD(0.05), intercept_lr=0.05)
    for part in (slice(0, 5), slice(5, 12)):
        ours.learn_many(X[part], y[part])
        theirs.learn_many(X[part], y[part])
        np.testing.assert_allclose(ours.predict_many(X), theirs.predict_many(X), rtol=1e-4, atol=1e-6)


class TestWeights:
    """Weights of examples, by river's convention."""

    def test_they_multiply_the_loss_as_in_rivers_regression(self) -> None:
        examples = numbered(stream(12))
        ours = Regressor(Linear, norm="none", optimizer=optax.sgd, learning_rate=0.05)
        theirs = linear_model.LinearRegression(optimizer=optim.SGD(0.05), intercept_lr=0.05)
        for (x, y), w in zip(examples, (1, 0.5, 2.0, 0, np.float32(3), 1.0, 0.25, 4, 1, 0.1, 1.5, True), strict=True):
            ours.learn_one(x, y, w=w)
            theirs.learn_one(x, y, w=float(w))
            assert ours.predict_one(x) == pytest.approx(theirs.predict_one(x), rel=1e-4, abs=1e-6)
        X, y = pd.DataFrame([x for x, _ in examples]), pd.Series([y for _, y in examples])
        for w in (2.0, pd.Series(np.arange(12.0)), pd.Series(np.ones(12)), 1):
            ours.learn_many(X, y, w=w)
            theirs.learn_many(X, y, w=w)
            np.testing.assert_allclose(ours.predict_many(X), theirs.predict_many(X), rtol=1e-4, atol=1e-6)

    def test_a_weighted_class_is_learned_as_at_another_rate(self) -> None:
        x, y = stream(1)[0]
        weighted, faster = (Classifier(Linear, norm="none", optimizer=optax.sgd, learning_rate=r) for r in (0.1, 0.3))
        weighted.learn_one(x, y, w=3.0)
        faster.learn_one(x, y)
        assert weighted.predict_proba_one(x) == pytest.approx(faster.predict_proba_one(x), rel=1e-6)

    @pytest.mark.parametrize("model", [Small, SmallNNX])
    def test_a_weight_of_one_is_none_at_all(self, model: Callable[..., Any]) -> None:
        plain, weighted = (Classifier(model, norm="online") for _ in range(2))
        for x, y in stream(5):
            plain.learn_one(x, y)
            weighted.learn_one(x, y, w=1)
        X, y = pd.DataFrame([x for x, _ in stream(6)]), pd.Series([y for _, y in stream(6)])
        plain.learn_many(X, y)
        for w in ([1.0] * 6, np.ones(6)):
            copy = pickle.loads(pickle.dumps(weighted))
            copy.learn_many(X, y, w=w)
            assert_same(copy.state, plain.state)

    def test_at_zero_norms_see_the_example_and_parameters_stay(self) -> None:
        model = taught(Classifier(Small, norm="batch:statistics='running'", optimizer=optax.sgd), stream(3))
        before = model.state
        model.learn_one({"a": 5.0, "b": -3.0, "c": 9.0}, "x", w=0)
        after = model.state
        changed = {name for name in before if not np.array_equal(before[name], after[name])}
        assert any("mean" in name for name in changed) and any("steps" in name for name in changed)
        assert not any(name.startswith(".params") for name in changed)

    def test_other_weights_compile_nothing(self) -> None:
        model = taught(Classifier(Small, norm="layer"), stream(3))
        model.learn_one(*stream(1)[0], w=2.0)
        TRACED.clear()
        for w in (3.0, 0.1, 0.0, 7, np.float64(0.5)):
            model.learn_one(*stream(1)[0], w=w)
        assert not TRACED

    @pytest.mark.parametrize(
        ("w", "kind", "message"),
        [
            (-1.0, ValueError, "Expected weights to be finite .* and not negative, got -1.0"),
            (NAN, ValueError, "Expected weights to be finite .*, got nan"),
            (INF, ValueError, "Expected weights to be finite .*, got inf"),
            (1e39, ValueError, r"Expected weights to be finite \(in float32\) .*, got 1e\+39"),
            ("2", TypeError, "Expected the weight to be a number in every example, got '2'"),
            (None, TypeError, "Expected the weight to be a number in every example, got None"),
        ],
    )
    def test_bad_weights_are_refused(self, w: Any, kind: type[Exception], message: str) -> None:
        model = taught(Classifier(Small, norm="layer", nonfinite="skip"), stream(3))
        before = model.state
        X, y = pd.DataFrame([x for x, _ in stream(2)]), pd.Series([y for _, y in stream(2)])
        for learn in (
            lambda: model.learn_one(*stream(1)[0], w=w),
            lambda: model.learn_many(X, y, w=w),
            lambda: model.learn_many(X, y, w=[1.0, w]),  # pyright: ignore[reportArgumentType]
        ):
            with pytest.raises(kind, match=message):
                learn()
        assert_same(model.state, before)
        assert model.skipped == 0

    def test_there_is_one_weight_for_each_example(self) -> None:
        X, y = pd.DataFrame({"a": [1.0, 2.0]}), pd.Series([0.0, 1.0])
        for w in ([1.0], [], [1.0] * 3, pd.Series([1.0])):
            with pytest.raises(ValueError, match=f"one weight, or one for each of 2 examples, got {len(w)}"):
                Regressor(Small, norm="none").learn_many(X, y, w=w)  # pyright: ignore[reportArgumentType]
        with pytest.raises(TypeError, match=r"Expected the weight to be a number in every example, got \[1.0\]"):
            Regressor(Small, norm="none").learn_one({"a": 1.0}, 1.0, w=[1.0])  # pyright: ignore[reportArgumentType]

    def test_weights_stay_with_their_examples_where_others_are_skipped(self) -> None:
        X, y = pd.DataFrame({"a": [1.0, NAN, 3.0]}), pd.Series([0.0, 1.0, 2.0])
        a, b = (Regressor(Small, norm="none", nonfinite="skip") for _ in range(2))
        a.learn_many(X, y, w=pd.Series([2.0, 3.0, 0.5]))
        b.learn_many(X.dropna(), y[[0, 2]], w=pd.Series([2.0, 0.5]))
        assert a.skipped == 1
        assert_same(a.state, b.state)

    def test_a_loss_of_all_examples_takes_no_weights(self) -> None:
        def total(outputs: jax.Array, targets: jax.Array) -> jax.Array:
            return optax.squared_error(outputs[:, 0], targets).mean()

        made = {"optimizer": optax.sgd, "learning_rate": 0.1}
        model, each = Regressor(Linear, norm="none", loss=total, **made), Regressor(Linear, norm="none", **made)
        for live in (model, each):
            live.learn_one({"a": 1.0}, 1.0, w=2.0)
        assert model.predict_one({"a": 1.0}) == pytest.approx(each.predict_one({"a": 1.0}))
        with pytest.raises(
            ValueError, match="Expected `loss` to give a number for each of 2 examples, which have weig"
        ):
            model.learn_many(pd.DataFrame({"a": [1.0, 2.0]}), pd.Series([0.0, 1.0]), w=pd.Series([1.0, 2.0]))

    def test_weights_pass_through_a_pipeline(self) -> None:
        piped = preprocessing.StandardScaler() | Classifier(Linear, norm="none", optimizer=optax.sgd)
        bare = Classifier(Linear, norm="none", optimizer=optax.sgd)
        for x, y in stream(4):
            piped.learn_one(x, y, w=4.0)
            bare.learn_one(piped["StandardScaler"].transform_one(x), y, w=4.0)
        assert_same(piped["Classifier"].state, bare.state)


@pytest.mark.parametrize("model", [Small, SmallNNX])
@pytest.mark.parametrize("norm", ["online", "batch:statistics='running'"])
def test_growth_keeps_everything_learned(model: Callable[..., Any], norm: str) -> None:
    """Check parameters, state of the norms and the optimizer's averages; new parts are those of a new model."""
    live = taught(Classifier(model, norm=norm, optimizer=optax.adam, seed=3), stream(10))
    learned, before = live._learned, live.state
    assert learned
    after = learned.with_room(["d", "e"], ["z"]).arrays()
    new = Learned(learned.recipe, 3, "abcdef", "wxyz", (6, 4)).arrays()
    assert before.keys() == after.keys() == new.keys()
    grown = set()
    for name, array in after.items():
        old = tuple(map(slice, before[name].shape))
        np.testing.assert_array_equal(array[old], before[name], err_msg=name)
        expected = new[name].copy()
        expected[old] = before[name]
        np.testing.assert_array_equal(array, expected, err_msg=name)
        if array.shape != before[name].shape:
            grown.add(name)
    assert len(grown) == 3 * 3  # parameters of the first and last layer, and Adam's two averages of each
    assert_same(live.state, before)


def test_a_feature_that_is_missing_is_zero_and_an_unknown_one_nothing() -> None:
    model = taught(Classifier(Small, norm="layer"), stream(20))
    some = model.predict_proba_one({"a": 1.0})
    assert (
        some == model.predict_proba_one({"c": 0, "a": 1.0, "b": 0.0}) == model.predict_proba_one({"a": 1, "new": 9.0})
    )
    assert model.predict_proba_one({}) != some
    assert model.features == ("a", "b", "c")


def test_growth_compiles_as_often_as_room_doubles() -> None:
    TRACED.clear()
    model = Classifier(Small, norm="none", optimizer=optax.sgd)
    for i in (0, 1, 2, 3, 5, 9):
        model.learn_one(dict.fromkeys(range(i + 1), 1.0), i % 2)
    assert set(TRACED) == {(1, 2**k) for k in range(5)}
    times = len(TRACED)
    for i in range(20):
        model.learn_one(dict.fromkeys(range(10), float(i)), i % 2)
    assert len(TRACED) == times


def test_predictions_of_many_compile_for_few_sizes() -> None:
    model = taught(Classifier(Small, norm="layer"), stream(4))
    X = pd.DataFrame([x for x, _ in stream(33)])
    TRACED.clear()
    for n in range(1, 34):
        found = model.predict_proba_many(X[:n])
        assert list(found.index) == list(X.index[:n])
    assert {shape[0] for shape in TRACED} <= {1, 2, 4, 8, 16, 32, 64}
    one = [model.predict_proba_one(x) for x in X.to_dict("records")]
    np.testing.assert_allclose(found, pd.DataFrame(one), rtol=1e-5)


def test_a_new_model_predicts_nothing() -> None:
    X = pd.DataFrame({"a": [1.0, 2.0]})
    classifier, regressor = Classifier(), Regressor()
    assert classifier.predict_proba_one({"a": 1.0}) == {} and classifier.predict_one({"a": 1.0}) is None
    assert classifier.predict_proba_many(X).shape == (2, 0) and classifier.features == ()
    assert regressor.predict_one({"a": 1.0}) == 0.0 and regressor.predict_many(X).tolist() == [0.0, 0.0]


BAD: list[tuple[Any, Any, type[Exception], str]] = [
    ({"a": "red"}, "x", TypeError, "Expected feature 'a' to be a number in every example, got 'red'.*OneHotEncoder"),
    ({"d": "red"}, "x", TypeError, "Expected feature 'd' to be a number"),
    ({"a": None}, "x", TypeError, "Expected feature 'a' to be a number in every example, got None. Leave it out"),
    ({"a": [1.0]}, "x", TypeError, r"Expected feature 'a' to be a number in every example, got \[1.0\]"),
    ({"b": 1.0, "a": NAN}, "x", ValueError, "Expected feature 'a' to be finite .*got nan.*`nonfinite='skip'`"),
    ({"new": -INF}, "x", ValueError, "Expected feature 'new' to be finite .*got -inf"),
    ({"a": 1e39}, "x", ValueError, r"Expected feature 'a' to be finite \(in float32\), got 1e\+39"),
    ({"a": 10**400}, "x", ValueError, "Expected feature 'a' to be finite .*got inf"),
    ({"a": 1.0}, "z", ValueError, "Expected a class among `classes`, 'x', 'y', got 'z'. Declare it"),
    ({"a": 1.0}, None, TypeError, "Expected a class, such as text, a number or a bool, got None"),
    ({"a": 1.0}, NAN, TypeError, "Expected a class, .*got nan"),
    ({"a": 1.0}, ["x"], TypeError, r"Expected a class, .*got \['x'\]"),
]


@pytest.mark.parametrize(("x", "y", "kind", "message"), BAD)
def test_bad_input_is_one_clear_error_and_changes_nothing(x: Any, y: Any, kind: type[Exception], message: str) -> None:
    model = taught(Classifier(Small, norm="online", classes=("x", "y")), stream(3))
    before = model.state
    with pytest.raises(kind, match=message):
        model.learn_one(x, y)
    with pytest.raises(kind, match=message):
        model.learn_many(pd.DataFrame([x, x], dtype=object), pd.Series(["x", y], dtype=object))
    assert_same(model.state, before)
    assert model.features == ("a", "b", "c") and model.skipped == 0
    model.learn_one(*stream(1)[0])


@pytest.mark.parametrize(
    ("y", "kind", "message"),
    [
        (NAN, ValueError, "Expected the target to be finite"),
        (INF, ValueError, "got inf"),
        ("7", TypeError, "Expected the target to be a number in every example, got '7'"),
        (None, TypeError, "Expected the target to be a number"),
    ],
)
def test_bad_targets_are_refused(y: Any, kind: type[Exception], message: str) -> None:
    model = taught(Regressor(Small, norm="layer"), numbered(stream(3)))
    before = model.state
    with pytest.raises(kind, match=message):
        model.learn_one({"a": 1.0}, y)
    assert_same(model.state, before)


def test_examples_that_are_not_finite_can_be_skipped_and_are_counted() -> None:
    examples = numbered(stream(6))
    clean = taught(Regressor(Small, norm="online"), examples)
    bad = [({"a": NAN}, 1.0), ({"a": 1.0, "b": INF}, 1.0), ({"a": 1.0}, NAN), ({"new": 1e300}, 1.0)]
    mixed = [pair for both in zip(examples, bad, strict=False) for pair in both] + examples[4:]
    model = taught(Regressor(Small, norm="online", nonfinite="skip"), mixed)
    assert model.skipped == 4 and model.features == ("a", "b", "c")
    assert_same(model.state, clean.state)
    assert model.predict_one({"a": 1.0, "b": NAN}) == clean.predict_one({"a": 1.0})
    X = pd.DataFrame([x for x, _ in examples]).assign(a=lambda X: X["a"].where(X.index != 2))
    y = pd.Series([y for _, y in examples])
    model.learn_many(X, y)
    clean.learn_many(X.dropna(), y[X["a"].notna()])
    assert model.skipped == 5
    assert_same(model.state, clean.state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "onlin"}, "Did you mean 'online'"),
        ({"nonfinite": "ignore"}, "Expected `nonfinite` to be 'refuse' or 'skip', got 'ignore'"),
        ({"learning_rate": 0.0}, "Expected `learning_rate` to be a positive number, got 0.0"),
        ({"classes": ("x", "x")}, "Expected `classes` to be at least one, each named once, got"),
        ({"classes": ()}, "Expected `classes` to be at least one"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Classifier(**options)


def test_batch_norm_needs_a_burst() -> None:
    """Expect an error for one example, which batch norm cannot average, not a model that silently learns nothing."""
    model = Classifier(Small, norm="batch")
    with pytest.raises(StatisticsError, match=r"more than one element, got one.*Use"):
        model.learn_one({"a": 1.0}, "x")
    assert model.predict_one({"a": 1.0}) is None and model.features == ()
    model.learn_many(pd.DataFrame({"a": [1.0, 2.0, 3.0]}), pd.Series(["x", "y", "x"]))
    before = model.state
    with pytest.raises(StatisticsError):
        model.learn_one({"a": 1.0, "b": 2.0}, "z")
    assert_same(model.state, before)
    assert model.features == ("a",) and model.predict_one({"a": 1.0}) in ("x", "y")


def test_a_model_that_has_diverged_predicts_nothing() -> None:
    model = taught(Regressor(Linear, norm="none", optimizer=optax.sgd, learning_rate=1e30), numbered(stream(9)))
    with pytest.raises(ValueError, match=r"the model has diverged. Scale features before it.*lower `learning_rate`"):
        model.predict_one({"a": 1.0})


def test_outputs_of_a_wrong_shape_are_refused() -> None:
    model = Classifier(lambda norm, outputs: Small(norm, outputs + 1), norm="none")
    with pytest.raises(ValueError, match=r"outputs=2\)` to give outputs of shape \(1, 2\) .*got \(1, 3\)"):
        model.learn_one({"a": 1.0}, "x")
    with pytest.raises(ValueError, match="Expected a target for each of 2 examples, got 1"):
        Classifier(Small).learn_many(pd.DataFrame({"a": [1.0, 2.0]}), pd.Series(["x"]))


def test_memory_is_constant_in_the_length_of_the_stream() -> None:
    model = taught(Classifier(Small, norm="online"), stream(100))

    def used(seed: int) -> tuple[int, int]:
        for x, y in stream(1000, seed=seed):
            model.predict_proba_one(x)
            model.learn_one(x, y)
        gc.collect()
        return tracemalloc.get_traced_memory()[0], len(jax.live_arrays())

    tracemalloc.start()
    try:
        (before, arrays), (after, later) = used(1), used(2)
    finally:
        tracemalloc.stop()
    assert after - before < 1000  # a byte for each example
    assert later == arrays


def huber(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    return optax.huber_loss(outputs[:, 0], targets)


SAVED = {
    "linen": (Classifier, {"model": Small, "norm": "online"}, {"model": Small}),
    "running": (
        Classifier,
        {"model": Small, "norm": "batch:statistics='running'", "optimizer": optax.rmsprop, "nonfinite": "skip"},
        {"model": Small, "optimizer": optax.rmsprop},
    ),
    "nnx": (Classifier, {"model": SmallNNX, "norm": "online", "classes": ("x", "y")}, {"model": SmallNNX}),
    "regressor": (
        Regressor,
        {"model": Small, "norm": "online", "loss": huber, "seed": 3},
        {"model": Small, "loss": huber, "norm": "online"},
    ),
}
"""How it is made, and what loading must be told."""


@pytest.mark.parametrize("case", SAVED)
def test_a_loaded_model_continues_bit_for_bit(case: str, tmp_path: Path) -> None:
    kind, made, told = SAVED[case]
    examples = stream(30) if kind is Classifier else numbered(stream(30))
    model = taught(kind(**made), [*examples[:10], ({"a": 1.0, "d": 2.0}, examples[0][1])])
    model.skipped = 2
    model.save(tmp_path / "model")
    loaded = kind.load(tmp_path / "model", **told)
    assert loaded._get_params() == model._get_params()
    assert (loaded.skipped, loaded.features) == (2, model.features)
    for x, y in examples[10:]:
        assert loaded.predict_one(x) == model.predict_one(x)
        if kind is Classifier:
            assert loaded.predict_proba_one(x) == model.predict_proba_one(x)
        loaded.learn_one(x, y)
        model.learn_one(x, y)
    assert_same(loaded.state, model.state)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_names_of_every_kind_are_read_back(tmp_path: Path) -> None:
    names = ["a", 1, 2.5, None, ("b", (3, None))]
    model = taught(Classifier(Small, norm="none"), [(dict.fromkeys(names, 1.0), y) for y in (True, "x", 7, ("u", 1))])
    model.save(tmp_path / "model")
    loaded = Classifier.load(tmp_path / "model", model=Small)
    assert loaded.features == model.features and set(model.features) == set(names)
    found, expected = (m.predict_proba_one({"a": 1.0}) for m in (loaded, model))
    assert found == expected and list(map(type, found)) == list(map(type, expected))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("live") / "model"
    taught(Classifier(Small, norm="none"), stream(3)).save(path)
    return path


def broken(content: bytes, how: str) -> bytes:
    head, _, rest = content.partition(b"\n")
    return {
        "empty": b"",
        "half of the first line": content[: len(head) // 2],
        "no content": head + b"\n",
        "half": content[: len(content) // 2],
        "last byte missing": content[:-1],
        "longer": content + b"\0",
        "a bit flipped": content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
        "about changed": head + b"\n" + rest.replace(b'"seed": 0', b'"seed": 1'),
        "pickle": pickle.dumps({"format": _file.FORMAT}),
        "other json": b'{"format": "something else"}\n',
        "a list": b"[1, 2]\n",
        "newer": content.replace(b'"version": 1', b'"version": 2', 1),
    }[how]


FOREIGN = "to be a saved model, got another file"
SHORT = "bytes after the first line of .*it was not written or copied completely"
CHANGED = "to be unchanged, got another checksum"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        *((how, FOREIGN) for how in ("empty", "half of the first line", "pickle", "other json", "a list")),
        *((how, SHORT) for how in ("no content", "half", "last byte missing", "longer")),
        *((how, CHANGED) for how in ("a bit flipped", "about changed")),
        ("newer", "to have version 1 or older, got version 2. Update normlab"),
    ],
)
def test_a_file_that_is_not_whole_or_not_ours_is_refused(how: str, message: str, saved: Path, tmp_path: Path) -> None:
    content = broken(saved.read_bytes(), how)
    path = tmp_path / "model"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Classifier.load(path, model=Small)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("kind", "told", "message"),
    [
        (Regressor, {"model": Small}, "to contain a Regressor, got a Classifier. Use its `load`"),
        (Classifier, {}, "Expected `model` as when .* was saved, which has Small. Pass it"),
        (
            Classifier,
            {"model": Small, "loss": huber},
            "Expected `loss` as when .*which has none of its own. Leave it out",
        ),
        (Classifier, {"model": Small, "norm": "layer"}, "Expected `norm` as when .* was saved, 'none', got 'layer'"),
        (Classifier, {"model": Linear}, "Expected `model` to be that of .*, got another: only the .* has .params"),
        (
            Classifier,
            {"model": functools.partial(Small, width=5)},
            r"Expected `model` to be that of .*where .params.* has shape \(4,\) \(float32\), got \(5,\)",
        ),
    ],
)
def test_a_file_of_another_model_is_refused(kind: type[Live], told: dict[str, Any], message: str, saved: Path) -> None:
    with pytest.raises(ValueError, match=message):
        kind.load(saved, **told)


def rewritten(path: Path, change: Callable[[dict[str, Any], list[bytes]], Any]) -> bytes:
    """Return a file with other content and the matching checksum."""
    _, _, content = path.read_bytes().partition(b"\n")
    text, _, data = content.partition(b"\n")
    about, arrays = json.loads(text), [data]
    found = change(about, arrays)
    text = found if isinstance(found, bytes) else json.dumps(about).encode()
    content = text + b"\n" + b"".join(arrays)
    head = {"format": _file.FORMAT, "version": 1, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    return json.dumps(head).encode() + b"\n" + content


def put(name: str, value: Any) -> Callable[[dict[str, Any], list[bytes]], Any]:
    return lambda about, arrays: about.update({name: value})


def listed(place: int, value: Any) -> Callable[[dict[str, Any], list[bytes]], Any]:
    """Change name, type or shape of the first array."""

    def change(about: dict[str, Any], arrays: list[bytes]) -> None:
        about["arrays"][0][place] = value

    return change


def negative_steps(about: dict[str, Any], arrays: list[bytes]) -> None:
    at = 0
    for name, dtype, shape in about["arrays"]:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if name == ".steps":
            arrays[:] = [arrays[0][:at], np.int32(-1).tobytes(), arrays[0][at + size :]]
            return
        at += size
    raise AssertionError


WRONG: dict[str, tuple[Callable[[dict[str, Any], list[bytes]], Any], str]] = {
    **{
        f"{name} is missing": (lambda about, arrays, name=name: about.pop(name), f"its `{name}` is missing")
        for name in (
            *("normlab", "norm", "model", "optimizer", "loss", "learning_rate", "nonfinite", "seed"),
            *("skipped", "features", "targets", "room", "arrays"),
        )
    },
    "no kind": (lambda about, arrays: about.pop("kind"), "its `kind` is missing"),
    "no classes": (lambda about, arrays: about.pop("classes"), "its `classes` is missing"),
    "something else besides": (put("spam", 1), "its 'spam' is unknown"),
    "no object": (lambda about, arrays: b"[1, 2]", "its second line is no JSON object"),
    "no JSON": (lambda about, arrays: b"{spam}", "its second line is no JSON object"),
    "no UTF-8": (lambda about, arrays: b"\xff\xfe", "its second line is no JSON object"),
    "lists in lists": (lambda about, arrays: b"[" * 100_000, "its second line is no JSON object"),
    "another kind": (put("kind", "Clusterer"), "its `kind` is not Classifier or Regressor"),
    "a kind that is no text": (put("kind", ["Classifier"]), "its `kind` is not Classifier or Regressor"),
    "a version that is no text": (put("normlab", 1), "its `normlab` is not text"),
    "a norm that is no text": (put("norm", None), "its `norm` is not text"),
    "a norm that there is not": (put("norm", "onlin"), "to name a known norm: .*Did you mean 'online'"),
    "a norm that cannot be read": (put("norm", "layer:epsilon"), "to name a known norm: "),
    "options that the norm has not": (put("norm", "layer:spam=3"), "to name a norm .*spam"),
    "an option of another type": (
        put("norm", "layer:epsilon="),
        "to name a norm that `model` can be made with, .*epsilon",
    ),
    "a model that is no text": (put("model", {"a": 1}), "its `model` is not text or nothing"),
    "an optimizer that is no text": (put("optimizer", 1), "its `optimizer` is not text or nothing"),
    "a loss that is no text": (put("loss", True), "its `loss` is not text or nothing"),
    "a rate that is text": (put("learning_rate", "0.1"), "its `learning_rate` is not a positive number"),
    "a rate that is NaN": (put("learning_rate", NAN), "its `learning_rate` is not a positive number"),
    "an infinite rate": (put("learning_rate", INF), "its `learning_rate` is not a positive number"),
    "a rate of many digits": (put("learning_rate", 10**400), "its `learning_rate` is not a positive number"),
    "a negative rate": (put("learning_rate", -0.1), "its `learning_rate` is not a positive number"),
    "another way with what is not finite": (put("nonfinite", "ignore"), "its `nonfinite` is not refuse or skip"),
    "a way that has no hash": (put("nonfinite", []), "its `nonfinite` is not refuse or skip"),
    "a negative seed": (put("seed", -1), "its `seed` is not a whole number of 32 bits"),
    "a seed of 33 bits": (put("seed", 2**32), "its `seed` is not a whole number of 32 bits"),
    "a fraction as seed": (put("seed", 0.5), "its `seed` is not a whole number of 32 bits"),
    "a bool as seed": (put("seed", True), "its `seed` is not a whole number of 32 bits"),
    "a negative count": (put("skipped", -1), "its `skipped` is not a count"),
    "a count that is text": (put("skipped", "1"), "its `skipped` is not a count"),
    "features that are no list": (put("features", "abc"), "its `features` is not a list of different names"),
    "a feature twice": (put("features", ["a", "b", "a"]), "its `features` is not a list of different names"),
    "a feature twice in Python": (put("features", [1, True, "a"]), "its `features` is not a list of different names"),
    "a feature without a hash": (put("features", ["a", {"b": 1}]), "its `features` is not a list of different names"),
    "a feature that is NaN": (put("features", ["a", "b", NAN]), "its `features` is not a list of different names"),
    "more features than room": (put("features", list("abcd")), "its `room` does not fit its `features`"),
    "fewer features than room": (put("features", ["a"]), "its `room` does not fit its `features`"),
    "classes twice": (put("targets", ["x", "x"]), "its `targets` is not a list of different names"),
    "more classes than room": (put("targets", ["x", "y", "z"]), "its `room` does not fit its `features` and `targets`"),
    "other classes than declared": (put("classes", ["x", "z"]), "its `targets` are not its `classes`"),
    "no classes that are declared": (put("classes", []), "its `targets` are not its `classes`"),
    "room that is no list": (put("room", 3), "its `room` is not two counts"),
    "room of one": (put("room", [3]), "its `room` is not two counts"),
    "a fraction of room": (put("room", [3.0, 2]), "its `room` is not two counts"),
    "no room": (put("room", [0, 2]), "its `room` does not fit"),
    "room for all": (put("room", [10**12, 2]), "its `room` does not fit its `features` and `targets`"),
    "room for all classes": (put("room", [3, 10**12]), "its `room` does not fit its `features` and `targets`"),
    "arrays that are no list": (put("arrays", {}), "its `arrays` is not a list of names, types and shapes"),
    "an array without a shape": (put("arrays", [["a", "float32"]]), "its `arrays` is not a list of names, types and"),
    "no arrays": (put("arrays", []), r"the shapes of its `arrays` do not match its [\d,]+ bytes of data"),
    "an array twice": (
        lambda about, arrays: about["arrays"].append(about["arrays"][0]),
        "its `arrays` contain a name twice",
    ),
    "a name that is no text": (listed(0, 1), "its `arrays` is not a list of names"),
    "another name": (listed(0, "spam"), "Expected `model` to be that of .*, got another"),
    "objects": (listed(1, "object"), "its array .* is not of numbers"),
    "a type that is none": (listed(1, "spam"), "its array .* is not of numbers"),
    "a type that is a program": (listed(1, "f8,(((" * 20), "its array .* is not of numbers"),
    "text": (listed(1, "<U1"), "its array .* is not of numbers"),
    "several types": (listed(1, "f4,f4"), "its array .* is not of numbers"),
    "a type of the same size": (listed(1, "int32"), r"Expected `model` to be that of .* \(int32\), got"),
    "a type of another size": (listed(1, "float64"), "the shapes of its `arrays` do not match its"),
    "half precision": (listed(1, "bfloat16"), "the shapes of its `arrays` do not match its"),
    "a huge shape": (listed(2, [10**12, 10**12]), "the shapes of its `arrays` do not match its"),
    "a negative length": (listed(2, [-1]), "its `arrays` is not a list of names, types and shapes"),
    "a length that is a fraction": (listed(2, [4.0]), "its `arrays` is not a list of names, types and shapes"),
    "many axes": (listed(2, [1] * 99), "the shapes of its `arrays` do not match its|Expected `model` to be that"),
    "bytes missing": (
        lambda about, arrays: arrays.__setitem__(0, arrays[0][:-1]),
        "the shapes of its `arrays` do not match",
    ),
    "bytes more": (lambda about, arrays: arrays.append(b"\0"), "the shapes of its `arrays` do not match its"),
    "another shape": (lambda about, arrays: reshape(about), "Expected `model` to be that of .*has shape"),
    "negative steps": (negative_steps, "Expected updates to be counted from 0 in .*, got -1"),
}


def reshape(about: dict[str, Any]) -> None:
    array = next(array for array in about["arrays"] if len(array[2]) == 2)
    array[2] = array[2][::-1] if array[2][0] != array[2][1] else [math.prod(array[2])]


@pytest.mark.parametrize("how", WRONG)
def test_a_file_with_a_right_checksum_and_wrong_content_is_one_error(how: str, saved: Path, tmp_path: Path) -> None:
    change, message = WRONG[how]
    path = tmp_path / "model"
    path.write_bytes(rewritten(saved, change))
    with pytest.raises(ValueError, match=f"(?s){message}") as caught:
        Classifier.load(path, model=Small)
    assert type(caught.value) is ValueError
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_fields_of_a_regressor_are_checked(saved: Path, tmp_path: Path) -> None:
    regressor, path = tmp_path / "regressor", tmp_path / "model"
    taught(Regressor(Small, norm="none"), numbered(stream(3))).save(regressor)
    for change, message in (
        (put("targets", ["x"]), "its `targets` are classes, but it is a Regressor"),
        (put("room", [3, 2]), "its `room` does not fit"),
        (put("classes", None), "its 'classes' is unknown"),
    ):
        path.write_bytes(rewritten(regressor, change))
        with pytest.raises(ValueError, match=message):
            Regressor.load(path, model=Small)


def test_the_first_line_is_checked(saved: Path, tmp_path: Path) -> None:
    head, _, content = saved.read_bytes().partition(b"\n")
    path, told = tmp_path / "model", json.loads(head)
    for name, values in {
        "version": ("1", None, True, 0, -1, 1.0, NAN, []),
        "bytes": ("9", None, True, -1, 1.0),
        "sha256": (None, 5, []),
        "format": (None, 5, []),
    }.items():
        for value in values:
            path.write_bytes(json.dumps({**told, name: value}).encode() + b"\n" + content)
            with pytest.raises(ValueError, match=FOREIGN):
                Classifier.load(path, model=Small)
    for first in (b"[" * 100_000, b'{"":' * 100_000):
        path.write_bytes(first + b"\n" + content)
        with pytest.raises(ValueError, match=FOREIGN):
            Classifier.load(path, model=Small)
    path.write_bytes(rewritten(saved, lambda about, arrays: None))  # unchanged content is accepted
    assert_same(Classifier.load(path, model=Small).state, Classifier.load(saved, model=Small).state)


def test_saving_that_fails_keeps_the_old_file(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model"
    path.write_bytes(saved.read_bytes())
    model = Classifier.load(path, model=Small)
    before = model.state
    with pytest.raises(ValueError, match="Expected a model that has learned from an example"):
        Classifier().save(path)

    def no_space(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    for function in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, no_space)
            with pytest.raises(OSError, match="No space left"):
                model.save(path)
    assert path.read_bytes() == saved.read_bytes() and [p.name for p in tmp_path.iterdir()] == ["model"]
    assert_same(model.state, before)
    model.learn_one({frozenset("a"): 1.0}, "x")
    with pytest.raises(TypeError, match=r"Expected names of features .*got frozenset\(\{'a'\}\).*Rename it"):
        model.save(path)
    assert path.read_bytes() == saved.read_bytes()
    model = taught(Classifier(Small, norm="none"), [({NAN: 1.0}, "x")])
    with pytest.raises(TypeError, match=r"Expected names of features .*got nan, which cannot be saved"):
        model.save(path)


COPIES: dict[str, Callable[[Any], Any]] = {"pickle": lambda m: pickle.loads(pickle.dumps(m)), "copy": copy.deepcopy}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("norm", ["online", norms.get("batch:statistics='running'")], ids=str)
def test_a_copy_learns_by_itself(norm: Any, copied: Callable[[Any], Any]) -> None:
    model = taught(Classifier(Small, norm=norm), stream(5))
    again = copied(model)
    before = model.state
    taught(again, stream(5, seed=1))
    assert_same(model.state, before)
    assert_same(taught(model, stream(5, seed=1)).state, again.state)


def test_a_pipeline_ends_with_the_model() -> None:
    model = preprocessing.StandardScaler() | Classifier(Small, norm="online", learning_rate=0.01)
    metric = metrics.Accuracy()
    for x, y in datasets.Phishing().take(600):
        metric.update(y, model.predict_one(x))
        model.learn_one(x, y)
    assert metric.get() > 0.8


def test_models_of_one_recipe_share_their_programs() -> None:
    a, b = (Classifier(Small, norm="none", seed=seed) for seed in (0, 1))
    assert a._recipe() == b._recipe()
    assert programs(a._recipe(), 3, 2) is programs(b._recipe(), 3, 2)
    assert re.match(r"Classifier \(", repr(a))
