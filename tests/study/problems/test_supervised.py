"""Supervised problems: data, their faults, both Flax APIs, losses and metrics, what is found before a run."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from sklearn.datasets import load_digits

from normlab import norms, study
from normlab.errors import BadInput
from normlab.models import stacking
from normlab.models.mlp import MLP
from normlab.norms import Entry, Norm
from normlab.study.data.dataset import Data, digits, load
from normlab.study.data.splits import divided, shuffled, sizes, split
from normlab.study.design.comparison import Settings
from normlab.study.design.plan import Plan
from normlab.study.design.problem import Problem
from normlab.study.design.program import Program
from normlab.study.design.provenance import data_hash
from normlab.study.design.request import Request, from_python
from normlab.study.driver.preflight import data_of, ignores_norm
from normlab.study.training.compilation import compile_program
from normlab.study.training.loop import check
from normlab.study.worker.outcome import status_of


class LinenNet(nn.Module):
    """Layers without names, dropout, and a norm between them."""

    norm: Norm
    outputs: int = 3

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = nn.relu(self.norm.linen(train=train)(nn.Dense(16)(x)))
        x = nn.Dropout(0.5, deterministic=not train)(nn.Dense(16)(x))
        return nn.Dense(self.outputs)(self.norm.linen(train=train)(x))


class NNXNet(nnx.Module):
    """The same."""

    def __init__(self, norm: Norm, outputs: int = 3, *, rngs: nnx.Rngs) -> None:
        self.first = nnx.Linear(4, 16, rngs=rngs)
        self.norm = norm.nnx(16, rngs=rngs)
        self.second = nnx.Linear(16, 16, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.norm2 = norm.nnx(16, rngs=rngs)
        self.head = nnx.Linear(16, outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = nnx.relu(self.norm(self.first(x)))
        return self.head(self.norm2(self.dropout(self.second(x))))


ENDED = {"first_nonfinite": -1, "finite": 1}
BOTH = pytest.mark.parametrize("net", [LinenNet, NNXNet])
CONFIG = {"batch_size": 16, "epochs": 5}


def three_classes(n: int = 300) -> Data:
    inputs = np.random.default_rng(0).normal(size=(n, 4))
    return Data(inputs, (inputs[:, 0] > 0).astype(int) + (inputs[:, 1] > 0))


def a_line(n: int = 300) -> Data:
    inputs = np.random.default_rng(0).normal(size=(n, 4))
    return Data(inputs, inputs[:, 0] - inputs[:, 1])


def problem(net: Any = LinenNet, data: Any = three_classes, **options: Any) -> Problem:
    return study.supervised(name="net", model=net, data=data, **options)


def build(norm: str = "batch", net: Any = LinenNet, data: Any = three_classes, **options: Any) -> Program:
    made, config = problem(net, data, **options), CONFIG
    return made.build(norms.get(norm, **made.norm_options(norm, config)), config)


def small(norm: str = "batch", batch_size: int = 128, epochs: int = 1) -> Program:
    made = study.supervised(name="small", model=partial(MLP, hidden=(16,)), data=digits, validation=256, test=517)
    return made.build(norms.get(norm), {"batch_size": batch_size, "epochs": epochs})


def train(program: Program, learning_rate: float = 0.1, seed: int = 0) -> dict[str, float]:
    return next(compile_program(program).train([learning_rate], [seed])).metrics


class TestData:
    def test_split_is_disjoint_complete_and_decided_by_the_seed(self) -> None:
        parts = split(1797, 3)
        assert [len(parts[name]) for name in ("train", "validation", "test")] == [1024, 256, 517]
        assert sorted(np.concatenate(list(parts.values()))) == list(range(1797))
        chex.assert_trees_all_equal(parts, split(1797, 3))
        assert (parts["train"] != split(1797, 4)["train"]).any()

    def test_a_given_test_set_is_the_same_for_every_seed(self) -> None:
        parts = [split(10, seed, 5, 2, fixed=3) for seed in (0, 1)]
        for part in parts:
            assert part["test"].tolist() == [7, 8, 9]
            assert sorted([*part["train"], *part["validation"]]) == list(range(7))
        assert (parts[0]["train"] != parts[1]["train"]).any()

    def test_split_leaves_something_to_test_on(self) -> None:
        with pytest.raises(ValueError, match="below 1280 examples"):
            split(1280, 0)

    def test_sizes_are_counts_or_shares(self) -> None:
        data = three_classes(100)
        assert sizes(data, 0.2, 0.2) == (60, 20)
        assert sizes(data, 30, 0.1) == (60, 30)
        assert sizes(Data(data.inputs, data.labels, test=50), 0.2, 0.2) == (40, 10)
        for parts in ((0.5, 0.5), (60, 40), (0.001, 0.2), (0.2, 0.001)):
            with pytest.raises(ValueError, match="Change `validation` or `test`"):
                sizes(data, *parts)

    def test_digits_are_images_in_the_unit_interval(self) -> None:
        data = digits()
        assert data.inputs.shape == (1797, 8, 8, 1)
        assert (data.inputs.dtype, data.labels.dtype) == (np.float32, np.int32)
        assert (data.inputs.min(), data.inputs.max()) == (0, 1)
        assert np.bincount(data.labels).min() > 170

    def test_every_epoch_has_its_own_order(self) -> None:
        indices = np.arange(100, 120, dtype=np.int32)
        orders = shuffled(indices, 5, 3, seed=0).reshape(3, 20)
        assert (np.sort(orders, axis=1) == indices).all()
        assert len({tuple(order) for order in orders}) == 3
        assert (orders != shuffled(indices, 5, 3, seed=1).reshape(3, 20)).any()

    def test_a_last_batch_that_would_be_smaller_is_left_out(self) -> None:
        batches = shuffled(np.arange(20, dtype=np.int32), 6, 2, seed=0)
        assert batches.shape == (6, 6)
        assert all(len(set(epoch.ravel())) == 18 for epoch in np.split(batches, 2))

    def test_a_given_test_set_is_taken_in_an_order_of_the_seed(self) -> None:
        data = Data(np.zeros((200, 1)), np.zeros(200, int), test=50)
        first, second = (divided(data, seed)["test"] for seed in (0, 1))
        assert sorted(first) == sorted(second) == list(range(150, 200))
        assert (np.sort(first) != first).any() and (first != second).any()

    def test_hash_sees_values_types_and_names(self) -> None:
        a = np.arange(4, dtype=np.int32)
        hashes = [data_hash(d) for d in ({"a": a}, {"b": a}, {"a": a + 1}, {"a": a.astype(np.float32)}, {"a": a[None]})]
        assert len(set(hashes)) == len(hashes)

    def test_types(self) -> None:
        images = Data(np.full((2, 8, 8, 3), 51, np.uint8), np.array([[0], [1]], np.uint8))
        assert images.inputs.dtype == np.uint8  # a quarter of the memory
        assert images.prepared(images.inputs).dtype == np.float32
        np.testing.assert_allclose(images.prepared(images.inputs), 0.2)
        assert (images.labels.dtype, images.labels.tolist()) == (np.int32, [0, 1])
        tokens = Data(np.arange(6).reshape(2, 3), np.array([0.5, 1.5]))
        assert (tokens.inputs.dtype, tokens.labels.dtype) == (np.int32, np.float32)
        assert not tokens.classes

    @pytest.mark.parametrize(
        ("inputs", "labels", "message"),
        [
            (np.zeros((3, 2)), [0, 1], "a label for each example, got 3 inputs and 2 labels"),
            (
                [[1.0, np.nan], [1.0, 2.0]],
                [0, 1],
                "finite numbers in `inputs`, got 1 others, the first in example 0: nan",
            ),
            ([[1.0], [1e300]], [0, 1], "finite numbers in `inputs`, got 1 others, the first in example 1"),
            ([[1.0], [2.0]], [0.5, np.inf], "finite numbers in `labels`"),
            ([[1], [2**40]], [0, 1], "integers of 32 bits in `inputs`"),
            ([np.zeros((8, 8)), np.zeros((7, 8))], [0, 1], r"one shape in `inputs`, got \(8, 8\) and \(7, 8\)"),
            ([["a"], ["b"]], [0, 1], "`inputs` to be an array of numbers, got <U1"),
            ([[1.0], [2.0]], ["cat", "dog"], "`labels` to be an array of numbers"),
            (1.0, [0], "`inputs` to be an array of numbers"),
        ],
    )
    def test_faults(self, inputs: Any, labels: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            Data(inputs, labels)
        assert "\n" not in str(caught.value)


class TestFiles:
    def test_one_array_of_examples(self, tmp_path: Path) -> None:
        data = three_classes()
        np.savez(tmp_path / "data.npz", inputs=data.inputs, labels=data.labels, names=np.array(["a", None], object))
        found = load(tmp_path / "data.npz")
        chex.assert_trees_all_equal((found.inputs, found.labels), (data.inputs, data.labels))
        assert found.test == 0

    def test_a_test_set_of_its_own_comes_last(self, tmp_path: Path) -> None:
        x, y = np.arange(10.0).reshape(5, 2), np.arange(5)
        np.savez(tmp_path / "data.npz", x_train=x[:3], y_train=y[:3], x_test=x[3:], y_test=y[3:])
        found = load(str(tmp_path / "data.npz"))
        chex.assert_trees_all_equal((found.inputs, found.labels), (x.astype(np.float32), y.astype(np.int32)))
        assert found.test == 2

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"x": np.zeros((3, 2))}, "`inputs` and `labels`, or .* there is x in it"),
            ({}, "there is nothing in it"),
            (
                {"inputs": np.array([np.zeros((8, 8)), np.zeros((7, 8))], object), "labels": np.array([0, 1])},
                "`inputs` holds Python objects, which is how examples of different shapes are saved",
            ),
            (
                {"x_train": np.zeros((2, 8)), "y_train": [0, 1], "x_test": np.zeros((1, 7)), "y_test": [0]},
                r"one shape and type in `x_train` and `x_test`, got float32 of \(8,\) and float32 of \(7,\)",
            ),
            (
                {"x_train": np.zeros((2, 8)), "y_train": [0], "x_test": np.zeros((1, 8)), "y_test": [0, 1]},
                "a label for each example",
            ),
        ],
    )
    def test_wrong_contents(self, tmp_path: Path, arrays: Mapping[str, Any], message: str) -> None:
        np.savez(tmp_path / "data.npz", **arrays)
        with pytest.raises(ValueError, match=message) as caught:
            load(tmp_path / "data.npz")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("contents", [b"", b"no archive", b"PK\x03\x04 cut"])
    def test_no_archive(self, tmp_path: Path, contents: bytes) -> None:
        (tmp_path / "data.npz").write_bytes(contents)
        with pytest.raises(ValueError, match=r"Expected an \.npz file .*data\.npz"):
            load(tmp_path / "data.npz")

    def test_one_array_is_no_archive(self, tmp_path: Path) -> None:
        np.save(tmp_path / "data.npy", np.zeros(3))
        with pytest.raises(ValueError, match=r"Expected an \.npz file"):
            load(tmp_path / "data.npy")

    def test_no_file_and_no_data(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="does not exist"):
            load(tmp_path / "data.npz")
        with pytest.raises(ValueError, match="a function that returns one"):
            load(lambda: np.zeros(3))  # pyright: ignore[reportArgumentType]


class TestTraining:
    def test_it_learns(self) -> None:
        metrics = train(small(batch_size=32, epochs=5))
        assert metrics["finite"] == 1
        assert metrics["first_nonfinite"] == -1
        assert metrics["test"] < 0.1

    def test_a_smaller_last_batch_is_left_out(self) -> None:
        program = small(batch_size=300, epochs=2)
        assert (program.steps, program.last) == (6, 3)
        assert program.init(0).order.shape == (6, 300)

    def test_a_batch_larger_than_the_training_set_is_refused(self) -> None:
        with pytest.raises(ValueError, match="1 to 1024 examples"):
            small(batch_size=1025)

    def test_statistics_of_more_than_the_batch_are_refused(self) -> None:
        build("batch:ghost_batch_size=16")
        with pytest.raises(ValueError, match="`ghost_batch_size` up to the batch of 16, got 17"):
            build("batch:ghost_batch_size=17")

    def test_check_finds_options_that_do_not_fit(self) -> None:
        check(small("layer"))
        with pytest.raises(ValueError, match="group"):
            check(small("group:num_groups=7"))

    def test_divergence_is_seen_in_the_loss_and_in_outputs(self) -> None:
        metrics = train(small("none", batch_size=32), 1e30)
        assert metrics["first_nonfinite"] > 0
        status, reason = status_of(metrics, 0.9)
        assert status == "diverged"
        assert f"step {int(metrics['first_nonfinite'])}" in reason
        only_outputs = {"first_nonfinite": -1, "finite": 0, "validation": 0.9}
        assert status_of(only_outputs, 0.9)[0] == "diverged"

    @pytest.mark.parametrize(
        ("error", "n", "status"),
        [
            (0.84, 256, "ok"),
            (0.86, 256, "collapsed"),
            (0.95, 256, "collapsed"),
            (0.89, 256, "collapsed"),
            (0.89, 10_000, "ok"),
            (0.9, 10_000, "collapsed"),
        ],
    )
    def test_collapse_is_near_chance_or_above(self, error: float, n: int, status: str) -> None:
        sem = (error * (1 - error) / n) ** 0.5
        metrics = {**ENDED, "validation": error, "validation_sem": sem, "test": error}
        assert status_of(metrics, 0.9)[0] == status

    @pytest.mark.parametrize(
        ("bits", "sem", "status"),
        [
            (4.17, 0.02, "ok"),
            (4.17, 0.0, "ok"),
            (4.31, 0.02, "collapsed"),
            (4.32, 0.0, "collapsed"),
            (5, 0, "collapsed"),
        ],
    )
    def test_bits_below_chance_are_no_collapse(self, bits: float, sem: float, status: str) -> None:
        """A text whose characters have an entropy of 4.32 bits: what is predicted better has learned something."""
        found, reason = status_of({**ENDED, "validation": bits, "validation_sem": sem}, 4.32)
        assert found == status
        assert ("chance is 4.32" in reason) == (found == "collapsed")

    def test_without_a_standard_error_the_number_is_taken_as_it_is(self) -> None:
        assert status_of({**ENDED, "validation": 0.899}, 0.9)[0] == "ok"
        assert status_of({**ENDED, "validation": 0.9}, 0.9)[0] == "collapsed"
        assert status_of({**ENDED, "validation": 0.9}, None)[0] == "ok"

    def test_chance_of_the_validation_examples_comes_first(self) -> None:
        metrics = {**ENDED, "validation": 0.4, "validation_sem": 0.01}
        assert status_of({**metrics, "validation_chance": 0.5}, 0.3)[0] == "ok"
        assert status_of({**metrics, "validation_chance": 0.4}, 0.5)[0] == "collapsed"

    @pytest.mark.parametrize("n", [50, 256, 2000])
    @pytest.mark.parametrize("majority", [0.1, 0.5, 0.9])
    def test_simulated_models_that_learned_nothing_collapse_and_others_do_not(self, n: int, majority: float) -> None:
        """Of answers by one class at most 4 % pass; of models that are eight standard errors better 99.5 % do."""
        random, chance = np.random.default_rng(0), 1 - majority

        def collapsed(error: float) -> float:
            found = random.binomial(n, error, 5000) / n
            judged = [
                status_of({**ENDED, "validation": one, "validation_sem": (one * (1 - one) / n) ** 0.5}, chance)
                for one in found
            ]
            return float(np.mean([status == "collapsed" for status, _ in judged]))

        assert collapsed(chance) >= 0.96
        assert collapsed(min(1.0, chance * 1.5)) >= 0.995
        better = chance - 8 * (chance * (1 - chance) / n) ** 0.5
        if better > 0:
            assert collapsed(better) <= 0.005

    def test_simulated_losses_of_tokens(self) -> None:
        """Losses spread by 2.5 bits: 1,000 tokens tell 4.32 bits from chance, and those from 0.5 bits less."""
        random = np.random.default_rng(0)

        def collapsed(mean: float) -> float:
            losses = random.gamma((mean / 2.5) ** 2, 2.5**2 / mean, (2000, 1000))
            sems = losses.std(1) / 1000**0.5
            judged = [
                status_of({**ENDED, "validation": one, "validation_sem": sem}, 4.32)[0]
                for one, sem in zip(losses.mean(1), sems, strict=True)
            ]
            return float(np.mean([status == "collapsed" for status in judged]))

        assert collapsed(4.32) >= 0.985
        assert collapsed(3.82) <= 0.005

    def test_a_model_that_answers_by_one_class_collapses(self) -> None:
        class Constant(nn.Module):
            norm: Norm

            @nn.compact
            def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
                return nn.Dense(3)(0 * self.norm.linen(train=train)(x))

        constant, learning = build(net=Constant), build()
        for program, status in ((constant, "collapsed"), (learning, "ok")):
            metrics = train(program)
            expected = (metrics["validation"] * (1 - metrics["validation"]) / 60) ** 0.5
            assert metrics["validation_sem"] == pytest.approx(expected, rel=1e-4)
            assert status_of(metrics, program.chance)[0] == status

    def test_a_loss_that_is_not_finite_before_any_update_is_not_the_learning_rates_fault(self) -> None:
        metrics = train(build("none", loss=lambda outputs, labels: jnp.log(-jnp.abs(outputs.sum(-1)))))
        assert metrics["first_nonfinite"] == 0
        status, reason = status_of(metrics, None)
        assert status == "diverged"
        assert "before any update" in reason

    def test_a_given_test_set_is_what_is_reported(self) -> None:
        data = three_classes()
        spoilt = Data(data.inputs, np.where(np.arange(300) < 250, data.labels, (data.labels + 1) % 3), test=50)
        metrics = train(build("none", data=spoilt))
        assert metrics["validation"] < 0.3 < 0.6 < metrics["test"]
        whole = Data(spoilt.inputs, spoilt.labels)
        assert build("none", data=spoilt).data_hash != build("none", data=whole).data_hash

    def test_it_is_said_where_seeds_share_examples(self) -> None:
        data = three_classes()
        given = Data(data.inputs, data.labels, test=50, description="Three classes.")
        drawn = Data(data.inputs, data.labels, description="Three classes.")
        assert build(data=given).description == "Three classes."
        shared = "No test set stands apart: learning rates are chosen on examples that other seeds test."
        assert (build(data=drawn).description, build().description) == (f"Three classes. {shared}", shared)

    def test_many_held_out_examples_are_evaluated_in_chunks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        whole = train(build())
        monkeypatch.setattr("normlab.study.training.supervised.EVALUATED_AT_ONCE", 50)
        assert train(build()) == pytest.approx(whole)

    def test_stacked_models_are_evaluated_on_fewer_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("normlab.study.training.supervised.EVALUATED_IN_STACKS", 50)
        program = build()
        data = jax.device_put(dict(program.data))
        states = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), program.init(0))

        def evaluate(axis: str | None) -> Callable[..., Any]:
            return jax.vmap(program.evaluate, in_axes=(0, None), axis_name=axis)

        assert "scan" in str(jax.make_jaxpr(evaluate(stacking.AXIS))(states, data))
        assert "scan" not in str(jax.make_jaxpr(evaluate(None))(states, data))
        chex.assert_trees_all_close(evaluate(stacking.AXIS)(states, data), evaluate(None)(states, data), rtol=1e-5)


class TestModels:
    @BOTH
    def test_either_api_learns_with_dropout(self, net: Any) -> None:
        program = build("batch", net)
        check(program)
        first, again, other = (train(program, seed=seed) for seed in (0, 0, 1))
        assert first == again
        assert first["train_loss"] != other["train_loss"]
        assert first["test"] < 0.4 < (program.chance or 0)

    @BOTH
    def test_stacked_runs_are_those_that_run_alone(self, net: Any) -> None:
        alone = [train(build("batch", net), seed=seed) for seed in (0, 1)]
        stacked = [outcome.metrics for outcome in compile_program(build("batch", net), 2).train([0.1, 0.1], [0, 1])]
        for one, other in zip(alone, stacked, strict=True):
            assert one == pytest.approx(other, rel=1e-3, abs=0.05)

    @BOTH
    def test_dropout_draws_anew_at_every_step_and_never_at_evaluation(self, net: Any) -> None:
        program = build("none", net)
        state, data = program.init(0), dict(program.data)
        still = state._replace(order=np.broadcast_to(state.order[:1], state.order.shape))
        step = jax.jit(program.step)
        after, first = step(still, 0, 0.0, data)
        assert first != step(after, 1, 0.0, data)[1]
        chex.assert_trees_all_equal(program.evaluate(state, data), program.evaluate(after, data))

    @BOTH
    def test_shared_parameters_start_the_same_for_every_norm(self, net: Any) -> None:
        starts = {norm: build(norm, net).init(7).params for norm in ("none", "batch", "rms", "batch_renorm", "layer")}
        shared = {key for key in starts["none"] if "orm" not in str(key)}
        assert len(shared) == 3
        for start in starts.values():
            chex.assert_trees_all_equal(*({key: params[key] for key in shared} for params in (start, starts["none"])))
        other = build("none", net).init(8).params
        assert any((a != b).any() for a, b in zip(*map(jax.tree.leaves, (other, starts["none"])), strict=True))

    @BOTH
    def test_running_statistics_follow_training(self, net: Any) -> None:
        program = build("batch", net)
        state = program.init(0)
        after, _ = jax.jit(program.step)(state, 0, 0.1, dict(program.data))
        assert jax.tree.structure(after) == jax.tree.structure(state)
        moved = [
            (a != b).any() for a, b in zip(*map(jax.tree.leaves, (after.model_state, state.model_state)), strict=True)
        ]
        assert sum(map(bool, moved)) >= 4

    def test_functions_and_partials_are_models(self) -> None:
        def by_hand(norm: Norm, rngs: nnx.Rngs) -> NNXNet:
            return NNXNet(norm, rngs=rngs)

        expected = build("batch", NNXNet).init(0).params
        for net in (by_hand, partial(NNXNet, outputs=3), lambda norm, *, rngs: NNXNet(norm, rngs=rngs)):
            chex.assert_trees_all_equal(build("batch", net).init(0).params, expected)
        check(build("batch", lambda norm: LinenNet(norm)))

    @pytest.mark.parametrize("net", [lambda norm: "a word", lambda norm, rngs: "a word", lambda norm: LinenNet])
    def test_what_is_no_model(self, net: Any) -> None:
        with pytest.raises(ValueError, match=r"Expected `model\(norm"):
            build("batch", net)


class TestLossAndMetric:
    def test_classes(self) -> None:
        made, program = problem(), build()
        assert made.metric == study.Metric(name="test error", percent=True)
        labels = three_classes().labels
        assert program.chance == pytest.approx(1 - np.bincount(labels).max() / len(labels))

    @BOTH
    def test_targets(self, net: Any) -> None:
        made = problem(partial(net, outputs=1), a_line)
        assert made.metric == study.Metric(name="mean squared error", percent=False)
        program = build("layer", partial(net, outputs=1), a_line)
        assert program.chance == pytest.approx(a_line().labels.var())
        assert train(program)["test"] < 0.6 * a_line().labels.var()

    def test_several_targets(self) -> None:
        data = Data(a_line().inputs, a_line().inputs[:, :2])
        program = build("none", partial(LinenNet, outputs=2), data)
        assert program.chance == pytest.approx(data.labels.var(axis=0).mean())
        check(program)

    def test_of_the_users_own(self) -> None:
        def worst_of_three(outputs: jax.Array, labels: jax.Array) -> jax.Array:
            return outputs.argmin(-1) == labels

        def smoothed(outputs: jax.Array, labels: jax.Array) -> jax.Array:
            soft = optax.smooth_labels(jax.nn.one_hot(labels, 3), 0.1)
            return optax.softmax_cross_entropy(outputs, soft).mean()

        options: dict[str, Any] = {"loss": smoothed, "metric": worst_of_three, "optimizer": optax.adamw}
        assert problem(**options).metric == study.Metric(name="worst of three", percent=False)
        program = build("batch", **options)
        assert program.chance is None
        assert build("batch", **options, chance=0.4).chance == 0.4
        assert train(program, 0.01)["test"] < 0.1

    def test_the_optimizer_gets_a_learning_rate_that_decays_to_zero(self) -> None:
        rates: list[Callable[[Any], Any]] = []

        def optimizer(schedule: Any) -> optax.GradientTransformation:
            rates.append(schedule)
            return optax.sgd(schedule)

        program = build("none", optimizer=optimizer)
        jax.jit(program.step).lower(program.init(0), 0, 0.5, dict(program.data))
        assert float(rates[0](0)) == 0
        plain = build("none", optimizer=lambda schedule: optax.sgd(lambda t: schedule(t + program.steps)))
        before = plain.init(0)
        after, _ = jax.jit(plain.step)(before, 0, 0.5, dict(plain.data))
        chex.assert_trees_all_close(after.params, before.params, atol=1e-6)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"net": partial(LinenNet, outputs=2)}, "`labels` from 0 to 1, since the model has 2 outputs, got 0 to 2"),
            ({"data": Data(np.ones((30, 4)), np.arange(30) % 3 - 1)}, "`labels` from 0 to 2, .* got -1 to 1"),
            ({"data": a_line}, r"outputs to be shaped like `labels`, .* got \(16, 3\)"),
            ({"loss": lambda outputs, labels: outputs}, r"`loss` to give shape \(\) or \(16,\), got \(16, 3\)"),
            ({"metric": lambda outputs, labels: outputs.mean()}, r"`metric` to give shape \(120,\), got \(\)"),
        ],
    )
    def test_what_does_not_fit_is_found_before_a_run(self, options: Any, message: str) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            check(build("layer", **options))
        assert "\n" not in str(caught.value)


class TestNormOptions:
    def test_running_averages_are_over_an_epoch_and_renorm_opens_with_the_run(self) -> None:
        made, config = problem(norm_options={"group": {"num_groups": 4}, "batch": {"epsilon": 1e-3}}), CONFIG
        assert made.norm_options("batch", config) == {"momentum": 1 - 16 / 180, "epsilon": 1e-3}
        assert made.norm_options("group", config) == {"num_groups": 4}
        assert made.norm_options("online", config) == {"momentum": 1 - 1 / 180}  # of examples, not batches
        assert made.norm_options("streaming", config) == {"momentum": 1 - 16 / 180}
        assert made.norm_options("layer", config) == {}
        renorm = made.norm_options("batch_renorm", config)
        assert renorm["momentum"] == 1 - 16 / 180
        ramp = renorm["r_max"]
        assert (ramp.begin, ramp.end) == (round(0.1 * 55), round(0.35 * 55))

    def test_data_are_loaded_once_and_not_before_they_are_needed(self) -> None:
        calls: list[int] = []

        def source() -> Data:
            calls.append(1)
            return three_classes()

        made = problem(data=source, metric=study.MISCLASSIFICATION)
        assert not calls
        made.norm_options("batch", CONFIG)
        made.build(norms.get("none"), CONFIG)
        assert len(calls) == 1


class Deaf(nn.Module):
    """A model that does not use its norm."""

    norm: Norm

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        return nn.Dense(3)(nn.relu(nn.Dense(8)(x)))


class DeafNNX(nnx.Module):
    """Likewise."""

    def __init__(self, norm: Norm, *, rngs: nnx.Rngs) -> None:
        self.layer = nnx.Linear(4, 3, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.layer(x)


class TestIgnoredNorm:
    def ignores(self, net: Any, *names: str) -> bool:
        return ignores_norm({norms.get(name): build(name, net) for name in names})

    @pytest.mark.parametrize("net", [Deaf, DeafNNX])
    def test_is_found(self, net: Any) -> None:
        assert self.ignores(net, "none", "batch", "layer")

    @BOTH
    def test_is_not_found_where_the_norm_is_used(self, net: Any) -> None:
        assert not self.ignores(net, "none", "batch", "layer")
        assert not self.ignores(net, "batch", "batch:epsilon=0.01")

    def test_a_norm_compared_with_itself_is_no_mistake(self) -> None:
        batch = norms.get("batch").entry
        norms.register(Entry(name="again", title="batch norm again", linen=batch.linen, nnx=batch.nnx, stateful=True))
        try:
            assert not self.ignores(LinenNet, "batch", "again")
            assert not self.ignores(Deaf, "batch")
            assert self.ignores(Deaf, "batch", "again", "layer")
        finally:
            norms.unregister("again")


class TestChecks:
    @pytest.mark.parametrize(
        ("made", "message"),
        [
            (
                problem(data=Data(np.ones((60, 4)), np.arange(60) % 5)),
                r"`none` on `net` with batch_size 4: Expected `labels` from 0 to 2",
            ),
            (problem(Deaf), "`net`: .* does not use the norm"),
        ],
    )
    def test_a_fault_is_one_line_that_says_where(self, made: Problem, message: str) -> None:
        comparison = study.Comparison(name="mine", problems=(made,))
        settings = Settings(
            comparison="mine",
            source="",
            tier="smoke",
            problems=("net",),
            norms=("none", "batch"),
            curves=("deployed",),
            values={"deployed": (4,)},
            learning_rates=(0.1,),
            epochs=1,
            tuning_seeds=1,
            seeds=1,
        )
        with pytest.raises(BadInput, match=message) as caught:
            data_of(Plan(comparison, settings))
        assert "\n" not in str(caught.value)

    def test_a_fault_at_one_value_is_found_before_the_first_run_and_not_by_a_dry_run(self) -> None:
        class Picky(LinenNet):
            @nn.compact
            def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
                x = nn.Dense(self.outputs)(self.norm.linen(train=train)(x))
                return x.reshape(7, -1) if len(x) == 8 else x

        comparison = study.Comparison(name="mine", problems=(problem(Picky),))
        settings = Request(comparison, from_python({"tier": "smoke", "norms": ("none", "batch")}, comparison)).settings(
            ""
        )
        plan = Plan(comparison, replace(settings, curves=("deployed",), values={"deployed": (4, 8, 16)}))
        checked = data_of(plan, every=False)
        assert (checked.built, checked.traced) == (6, 2)
        with pytest.raises(BadInput, match="`none` on `net` with batch_size 8: "):
            data_of(plan)

    def test_digits_are_those_of_scikit_learn(self) -> None:
        theirs: Any = load_digits()
        np.testing.assert_array_equal(digits().inputs[..., 0], (theirs.images / 16).astype(np.float32))
        np.testing.assert_array_equal(digits().labels, theirs.target)


class TestDefaults:
    def test_curves(self) -> None:
        deployed, isolated = study.batch_size_curves(deployed=(2, 8), isolated=(2, 8, 32))
        assert deployed.config(8) == {"batch_size": 8}
        assert (deployed.factor.reference, isolated.factor.reference) == (8, 32)
        assert [isolated.config(value)["batch_size"] for value in (2, 8, 32)] == [32] * 3
        assert isolated.norm_options("batch", 8) == {"ghost_batch_size": 8}
        assert isolated.norm_options("batch", 32) == isolated.norm_options("layer", 8) == {}
        assert (deployed.advises, isolated.advises) == (True, False)
        assert [curve.name for curve in study.batch_size_curves(isolated=())] == ["deployed"]

    def test_budgets(self) -> None:
        assert study.TIERS["quick"].learning_rates == (0.003, 0.01, 0.03, 0.1, 0.3)
        assert study.TIERS["smoke"].learning_rates == (0.03, 0.1)
        assert study.tiers(learning_rates=(0.1,), epochs=1)["smoke"].learning_rates == (0.1,)
        assert {tier.epochs for tier in study.tiers(epochs=7).values()} == {2, 7}

    def test_a_name_and_a_problem_are_enough(self) -> None:
        comparison = study.Comparison(name="mine", problems=(problem(),))
        assert [curve.name for curve in comparison.curves] == ["deployed", "isolated"]
        assert comparison.tiers == study.TIERS
