"""Other ways to evaluate a trained model, against NumPy in float64: by re-estimated statistics, those of test batches
and of batches like in training; with norms folded into layers, and deleted."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from benchmarks import batch_composition, inference_gap
from normlab import norms, study
from normlab.functional import StatisticsError
from normlab.models.mlp import MLP, ConvNet
from normlab.study.data.dataset import Data
from normlab.study.data.splits import composed
from normlab.study.design.problem import MEASURED_AT
from normlab.study.design.program import Program
from normlab.study.training import inference_measures
from normlab.study.training.loop import training
from normlab.study.training.supervised import Fitted
from normlab.tools import convert, fold

HIDDEN, CLASSES, BATCH, EPSILON = 5, 3, 8, 1e-5


def data(examples: int = 200) -> Data:
    random = np.random.default_rng(0)
    labels = random.integers(0, CLASSES, examples)
    return Data(random.normal(3, 2, (examples, 4)) + labels[:, None], labels)


def mlp(norm: norms.Norm, classes: int) -> MLP:
    return MLP(norm, hidden=(HIDDEN,), classes=classes)


def fitted(
    norm: str, model: Callable[..., Any] = mlp, batch_size: int = BATCH, steps: int = 3, **config: int
) -> tuple[Fitted, Any]:
    """A model after a few steps, and its outputs for the test examples."""
    seen: list[tuple[Fitted, Any]] = []

    def assess(model: Fitted, outputs: Any) -> dict[str, Any]:
        seen.append((model, outputs))
        return {}

    images = config.pop("images", 0)
    given = Data(data().inputs.reshape(-1, 2, 2, 1), data().labels) if images else data()
    problem = study.supervised(name="toy", model=model, data=given, extra_metrics=(study.Metric(),), assess=assess)
    program: Program = problem.build(norms.get(norm), {"batch_size": batch_size, "epochs": 1, **config})
    state = jax.tree.map(jax.numpy.asarray, program.init(0))
    for t in range(steps):
        state, _ = jax.jit(program.step)(state, t, 0.1, program.data)
    program.evaluate(state, {name: jax.numpy.asarray(array) for name, array in program.data.items()})
    return seen[0]


def hidden(model: Fitted, inputs: Any) -> np.ndarray:
    """What the norm is given, in float64."""
    dense = {name: np.asarray(value, np.float64) for name, value in model.params["dense_0"].items()}
    return np.asarray(inputs, np.float64) @ dense["kernel"] + dense["bias"]


def head(model: Fitted, normalized: np.ndarray) -> np.ndarray:
    affine, dense = model.params["norm_0"], model.params["head"]
    x = np.maximum(normalized * np.asarray(affine["scale"], np.float64) + np.asarray(affine["bias"], np.float64), 0)
    return x @ np.asarray(dense["kernel"], np.float64) + np.asarray(dense["bias"], np.float64)


@pytest.mark.parametrize(
    "norm", ["batch", "batch:unbiased_running_var=True", "batch:momentum=None", "batch:frozen=True", "batch_renorm"]
)
def test_reestimated(norm: str) -> None:
    model, _ = fitted(norm)
    x = hidden(model, model.take(model.train[: len(model.train) // BATCH * BATCH])[0])
    state = inference_measures.reestimated(model)
    found = state[0]["batch_stats"]["norm_0"]
    np.testing.assert_allclose(found["mean"], x.mean(0), rtol=1e-5)
    variance = x.var(0, ddof=1 if "unbiased" in norm else 0)
    if norm == "batch_renorm":
        np.testing.assert_allclose(found["std"], np.sqrt(variance + EPSILON), rtol=1e-4)
    else:
        np.testing.assert_allclose(found["var"], variance, rtol=1e-4)
    outputs, spread = model.evaluate(state), np.sqrt(variance + EPSILON)
    expected = head(model, (hidden(model, model.test[0]) - x.mean(0)) / spread)
    np.testing.assert_allclose(outputs, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("norm", ["batch", "batch_renorm"])
def test_reestimated_is_blind_to_the_running_statistics(norm: str) -> None:
    model, _ = fitted(norm, lambda norm, classes: MLP(norm, (HIDDEN, HIDDEN), classes))
    averages, seed = model.model_state
    shifted = jax.tree.map(lambda x: x + 1, averages["batch_stats"])
    other = model._replace(model_state=({**averages, "batch_stats": shifted}, seed))
    for one, same in zip(
        *(jax.tree.leaves(_statistics(inference_measures.reestimated(m))) for m in (model, other)), strict=True
    ):
        np.testing.assert_array_equal(one, same)


def _statistics(model_state: Any) -> Any:
    return [[kept["mean"], kept.get("var", kept.get("std"))] for kept in model_state[0]["batch_stats"].values()]


def test_given_test_examples_come_in_random_order() -> None:
    given = Data(data().inputs, np.sort(data().labels), test=60)
    program = study.supervised(name="toy", model=mlp, data=given).build(
        norms.get("none"), {"batch_size": 8, "epochs": 1}
    )
    first, same, other = (program.init(seed).held_out[-60:] for seed in (0, 0, 1))
    assert sorted(first) == list(range(140, 200))
    assert (first == same).all() and (first != other).any() and (np.diff(first) < 0).any()


def test_own_statistics() -> None:
    model, outputs = fitted("batch")
    inputs, labels = model.test
    batches = hidden(model, inputs).reshape(10, 4, HIDDEN)
    normalized = (batches - batches.mean(1, keepdims=True)) / np.sqrt(batches.var(1, keepdims=True) + EPSILON)
    own = head(model, normalized).reshape(40, -1)
    np.testing.assert_allclose(inference_measures.by_batches(model, inputs, 4), own, rtol=1e-3, atol=1e-4)

    changed = (own.argmax(-1) != labels).mean() - (np.asarray(outputs).argmax(-1) != labels).mean()
    found = inference_measures.changes_by_size(model, outputs, (1, 4, 64))
    np.testing.assert_allclose(found, [np.nan, changed, np.nan], atol=1e-6)


def test_one_element_is_an_error_in_dense_layers_only() -> None:
    model, _ = fitted("batch")
    with pytest.raises(StatisticsError, match="one"):
        inference_measures.by_batches(model, model.test[0], 1)
    images, outputs = fitted("batch", lambda norm, classes: ConvNet(norm, (4,), (1,), classes), images=1)
    assert np.isfinite(inference_measures.changes_by_size(images, outputs, (1,))).all()


@pytest.mark.parametrize("norm", ["layer", "group:num_groups=1", "none"])
def test_norms_within_an_example_have_no_gap(norm: str) -> None:
    model, outputs = fitted(norm, classes_per_batch=1)
    found = inference_measures.compared(model, outputs, model.evaluate(inference_measures.reestimated(model)))
    assert {name: float(value) for name, value in found.items() if name != "error"} == {
        "gap": 0,
        "logit": 0,
        "largest": 0,
        "flipped": 0,
    }
    assert inference_measures.changes_by_size(model, outputs, (1, 4, 40)).tolist() == [0, 0, 0]
    own, deployed = inference_measures.in_batches(model, model.composed[0])
    assert own == deployed


def test_compared() -> None:
    model, outputs = fitted("batch")
    others = -outputs
    found = inference_measures.compared(model, outputs, others)
    labels = np.asarray(model.test[1])
    error, other = ((np.asarray(x).argmax(-1) != labels).mean() for x in (outputs, others))
    assert found["error"] == pytest.approx(other)
    assert found["gap"] == pytest.approx(error - other)
    assert found["logit"] == pytest.approx(2 * np.abs(outputs).mean(), rel=1e-5)
    assert found["largest"] == pytest.approx(2 * min(1, np.abs(outputs).max()), rel=1e-5)
    assert found["flipped"] == 1


def test_batches_like_in_training() -> None:
    model, _ = fitted("batch", classes_per_batch=1)
    of_training, of_test = (np.asarray(batches) for batches in model.composed)
    assert (of_training.shape, of_test.shape) == ((len(model.train) // BATCH, BATCH), (5, BATCH))
    assert set(of_training.ravel()) <= set(np.asarray(model.train).tolist())
    assert not set(of_training.ravel()) & set(of_test.ravel())

    inputs, labels = (np.asarray(x) for x in model.take(model.composed[1]))
    assert (labels == labels[:, :1]).all()
    x = hidden(model, inputs)
    own = head(model, (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + EPSILON))
    kept = model.model_state[0]["batch_stats"]["norm_0"]
    deployed = head(model, (x - kept["mean"]) / np.sqrt(kept["var"] + EPSILON))
    expected = [(outputs.argmax(-1) != labels).mean() for outputs in (own, deployed)]
    assert expected[0] != expected[1]
    np.testing.assert_allclose(inference_measures.in_batches(model, model.composed[1]), expected, atol=1e-6)


def test_series_at_the_end_alone() -> None:
    def built(*ends: bool) -> Program:
        series = [
            study.Series(name=f"s{i}", title="", x_label="", y_label="", x=(0, 1), at_end=end)
            for i, end in enumerate(ends)
        ]
        weights = {one.name: lambda model: model.params["head"]["bias"][:2] for one in series}
        problem = study.supervised(
            name="toy",
            model=mlp,
            data=data(),
            series=series,
            measure=lambda model: {name: of(model) for name, of in weights.items()},
        )
        return problem.build(norms.get("layer"), {"batch_size": BATCH, "epochs": 1})

    def found(program: Program) -> Any:
        state = jax.tree.map(jax.numpy.asarray, program.init(0))
        return jax.jit(training(program))(0.1, state, program.data)[2]

    always, late = found(built(True, False)), found(built(True))
    assert np.isfinite(always["s0"]).all() and len(always["s0"]) == len(MEASURED_AT)
    np.testing.assert_array_equal(late["s0"][-1], always["s0"][-1])
    assert np.isnan(late["s0"][:-1]).all()


class TestComposed:
    labels = np.random.default_rng(1).integers(0, 10, 500)

    @pytest.mark.parametrize("classes", [1, 3, 10])
    def test_shares(self, classes: int) -> None:
        drawn = composed(self.labels, 300, 32, classes, 0)
        assert drawn.dtype == np.int32
        of_batch = np.stack([(self.labels[drawn] == c).sum(1) for c in range(10)])
        assert ((of_batch > 0).sum(0) == classes).all()
        assert set(of_batch[of_batch > 0]) <= {32 // classes, -(-32 // classes)}
        everywhere = of_batch.sum(1) / of_batch.sum()
        np.testing.assert_allclose(everywhere, 0.1, atol=0.04)  # each class as often as the others
        assert len(np.unique(drawn)) > 450  # all examples of a class are drawn

    def test_seed_alone_decides(self) -> None:
        draw = partial(composed, self.labels, 20, 32, 2)
        np.testing.assert_array_equal(draw(3), draw(3))
        assert (draw(3) != draw(4)).any()

    def test_training_takes_them(self) -> None:
        problem = study.supervised(name="toy", model=mlp, data=data())
        program = problem.build(norms.get("batch"), {"batch_size": 16, "epochs": 2, "classes_per_batch": 1})
        state = program.init(0)
        labels = data().labels[state.order]
        assert (labels == labels[:, :1]).all()
        assert not set(state.order.ravel()) & set(state.held_out)

    def test_too_few_classes(self) -> None:
        with pytest.raises(ValueError, match=r"Expected 3 classes among the examples .* got 2 among 10"):
            composed(np.arange(10) % 2, 5, 6, 3, 0)

    @pytest.mark.parametrize(("given", "message"), [(4, "1 to 3 classes"), (0, "1 to 3 classes")])
    def test_impossible(self, given: int, message: str) -> None:
        problem = study.supervised(name="toy", model=mlp, data=data())
        with pytest.raises(ValueError, match=message):
            problem.build(norms.get("batch"), {"batch_size": 16, "epochs": 2, "classes_per_batch": given})

    def test_targets_have_no_classes(self) -> None:
        problem = study.supervised(
            name="toy", model=lambda norm: MLP(norm, classes=1), data=Data(np.eye(30), np.ones(30))
        )
        with pytest.raises(ValueError, match="a class for each example"):
            problem.build(norms.get("none"), {"batch_size": 4, "epochs": 1, "classes_per_batch": 1})


def test_a_norm_that_keeps_a_mean_alone_is_estimated_again() -> None:
    model, _ = fitted("mean_only_batch")
    x = hidden(model, model.take(model.train[: len(model.train) // BATCH * BATCH])[0])
    found = inference_measures.reestimated(model)[0]["batch_stats"]["norm_0"]
    assert set(found) == {"mean"}
    np.testing.assert_allclose(found["mean"], x.mean(0), rtol=1e-5)


def test_statistics_of_a_stream_cannot_be_estimated_again() -> None:
    model, _ = fitted("online")
    assert inference_measures.reestimated(model) is None


def test_a_running_mean_square_is_estimated_again() -> None:
    model, _ = fitted("mabn:buffer_size=2")
    x = hidden(model, model.take(model.train[: len(model.train) // BATCH * BATCH])[0])
    found = inference_measures.reestimated(model)[0]["batch_stats"]["norm_0"]
    np.testing.assert_allclose(found["run"], np.square(x).mean(0), rtol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "batch_renorm", "batch:momentum=0.998", "group:num_groups=1", "none"])
def test_folding_changes_no_output(norm: str) -> None:
    model, outputs = fitted(norm)
    found = inference_measures.folded(model)
    assert (found.shape, found.dtype) == (outputs.shape, outputs.dtype)
    np.testing.assert_allclose(found, outputs, rtol=1e-5, atol=1e-5)


def test_folded_outputs_come_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = fitted("batch")
    whole = inference_measures.folded(model)
    monkeypatch.setattr(inference_measures, "EVALUATED", 16)  # 40 test examples
    np.testing.assert_allclose(inference_measures.folded(model), whole, rtol=1e-5, atol=1e-6)


def test_folded_norms_run_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = fitted("batch")
    folds: list[Any] = []

    def noted(*args: Any, **kwargs: Any) -> Any:
        folds.append(fold(*args, **kwargs))
        return folds[-1]

    monkeypatch.setattr(inference_measures, "fold", noted)
    inference_measures.folded(model)
    assert [row.how for row in folds[0].report] == ["identity"]


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_deleted_norms_leave_the_layers_as_they_are(norm: str) -> None:
    model, outputs = fitted(norm)
    inputs, _ = model.test
    x = np.maximum(hidden(model, inputs), 0)
    dense = {name: np.asarray(value, np.float64) for name, value in model.params["head"].items()}
    found = inference_measures.without_norms(model, inputs)
    np.testing.assert_allclose(found, x @ dense["kernel"] + dense["bias"], rtol=1e-4, atol=1e-5)
    assert np.abs(found - outputs).max() > 0.1

    variables = {"params": model.params, **model.model_state[0]}
    converted = convert(model.network.module, variables, "none", args=(inputs,), keep=())
    np.testing.assert_allclose(converted.model.apply(converted.variables, inputs, train=False), found, rtol=1e-6)


@pytest.mark.parametrize("norm", ["batch", "batch_renorm", "layer"])
def test_one_example_at_a_time_is_evaluated_like_many(norm: str) -> None:
    model, outputs = fitted(norm)
    np.testing.assert_allclose(inference_measures.one_by_one(model, model.test[0]), outputs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("norm", ["batch", "layer", "mabn:buffer_size=2", "online"])
def test_the_comparison_measures_all_of_its_metrics(norm: str) -> None:
    model, outputs = fitted(norm)
    found = {**inference_gap._assess(model, outputs), **inference_gap._examine(model)}
    assert all(np.shape(value) == () for value in found.values())
    metrics = {metric.name for metric in inference_gap.comparison.problems[0].extra_metrics}
    again = {inference_gap.REESTIMATED, inference_gap.GAP, inference_gap.LOGIT, inference_gap.FLIPPED}
    assert metrics - set(found) == (again if norm == "online" else set())
    error = float(model.error(outputs, model.test[1]).mean())
    assert found[inference_gap.FOLDED] == pytest.approx(error) and found[inference_gap.FOLDED_FLIPPED] == 0
    assert found[inference_gap.REMOVED] == pytest.approx(error + found[inference_gap.COST])
    assert np.isnan(found[inference_gap.ALONE]) == (norm == "batch")
    if norm == "layer":
        assert found[inference_gap.OWN] == found[inference_gap.ALONE] == found[inference_gap.GAP] == 0


def test_batches_of_few_classes_are_compared_with_a_random_order() -> None:
    model, outputs = fitted("batch", classes_per_batch=1)
    found = {**batch_composition._assess(model, outputs), **batch_composition._examine(model)}
    assert set(found) == {metric.name for metric in batch_composition.comparison.problems[0].extra_metrics}
    state = inference_measures.reestimated(model)
    error = model.error(model.evaluate(state), model.test[1]).mean()
    assert found[batch_composition.REESTIMATED] == pytest.approx(float(error))
    unknown, _ = fitted("online", classes_per_batch=1)
    assert batch_composition._examine(unknown) == {}
