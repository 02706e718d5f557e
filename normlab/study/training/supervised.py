"""The program of supervised training: a loss, mini-batches, a learning rate that decays to zero."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jax.typing import ArrayLike

from normlab.introspect.pure import Network
from normlab.models.stacking import stacked
from normlab.norms import Norm
from normlab.notation import PyTree
from normlab.study.data.augment import augment
from normlab.study.data.dataset import Dataset
from normlab.study.data.splits import composed, divided, shuffled, sizes
from normlab.study.data.streaming import WINDOW_BYTES, Streamed
from normlab.study.design.problem import Metric, Series
from normlab.study.design.program import Array, Arrays, Program, Shapes, Start, WindowSource
from normlab.study.design.provenance import data_hash
from normlab.study.training.loop import mesh_of, shared_out, standard_error
from normlab.study.training.objectives import (
    MEAN_SQUARED_ERROR,
    MISCLASSIFICATION,
    Error,
    Loss,
    Optimizer,
    check_transformation,
    cross_entropy,
)
from normlab.study.training.output_checks import check_of_outputs, numbers

EVALUATED_AT_ONCE = 1024
"""Held-out examples that are evaluated together."""
EVALUATED_IN_STACKS = 256
"""The same for each of several models, whose outputs are in memory together."""


class RunExamples(NamedTuple):
    """RunExamples of a run.

    Attributes:
        order: RunExamples of all batches, shape (steps, batch).
        train: RunExamples for training, in random order.
        held_out: RunExamples for validation, then those for the test.
    """

    order: np.ndarray
    train: np.ndarray
    held_out: np.ndarray


class TrainingState(NamedTuple):
    """State of supervised training.

    Attributes:
        params: Parameters that the optimizer trains.
        model_state: State of the model that the optimizer does not train; see `Network`.
        opt_state: State of the optimizer.
        order: RunExamples of all batches, shape (steps, batch).
        train: RunExamples for training, in random order.
        held_out: RunExamples for validation, then those for the test.
        composed: If batches have a number of classes: such batches of training examples and of test examples, each of
            shape (batches, batch).
        seed: Seed of the run.
    """

    params: PyTree
    model_state: PyTree
    opt_state: optax.OptState
    order: Array
    train: Array
    held_out: Array
    composed: tuple[Array, ...]
    seed: jax.Array | np.uint32


class Fitted(NamedTuple):
    """A model at some time of its training, for series and extra metrics.

    Attributes:
        network: The model.
        variant: `norm -> the model with another norm`.
        norm: Norm of the model.
        params: Parameters that the optimizer trains.
        model_state: State of the model that the optimizer does not train; see `Network`.
        batch: Inputs and labels of the first batch of training.
        train: RunExamples for training, in random order.
        test: Inputs and labels of the test examples.
        take: `examples -> their inputs and labels`, prepared for the model.
        evaluate: `model_state -> outputs of the test examples`, with this state in place of the model's own.
        composed: See `TrainingState`.
        loss: `(outputs, labels) -> number`.
        error: `(outputs, labels) -> one number for each example`: the metric.
    """

    network: Network
    variant: Callable[[Norm], Network]
    norm: Norm
    params: PyTree
    model_state: PyTree
    batch: tuple[jax.Array, jax.Array]
    train: Array
    test: tuple[jax.Array, jax.Array]
    take: Callable[[Array], tuple[jax.Array, jax.Array]]
    evaluate: Callable[[PyTree], PyTree]
    composed: tuple[Array, ...]
    loss: Loss
    error: Loss


@dataclass(frozen=True, kw_only=True, eq=False)
class SupervisedTraining:
    """Supervised training of one model: its options, and the functions of its program.

    Every seed has its own split (`data.splits`); every epoch is a new permutation of the training set, and a last batch
    that would be smaller than the others is left out. The learning rate decays to zero along a cosine.

    Attributes:
        data: Inputs and labels; a program on streamed data has a window source.
        make_network: `norm -> the model`.
        norm: Norm of the model.
        batch_size: RunExamples per update.
        epochs: Passes over the training set.
        classes_per_batch: Number of classes in a batch. Classes, and examples of each class, are drawn anew for every
            batch, so an epoch has as many examples but not each once. Unless given, batches are not composed.
        training_size: Number of training examples that are used, the first of the seed's order, or below 1 a share. The
            number of updates is as with all of them, so that fewer examples are seen more often. All unless given.
        devices: Devices that share every batch; statistics of batch norms are still those of the whole batch.
        error: Error that is measured on held-out examples.
        loss: `(outputs, labels) -> number, or one for each example`; softmax cross entropy or squared error unless
            given.
        optimizer: Makes the optimizer from a learning-rate schedule; SGD with momentum 0.9 unless given.
        chance: Error of a model that has learned nothing; computed for the errors of this package unless given.
        validation: See `data.splits.sizes`.
        test: See `data.splits.sizes`.
        series: Series that are measured before, during and after training.
        observe: Measures the series, by name; those it leaves out are NaN.
        extra_metrics: Metrics that are reported beside the error.
        assess: Computes the extra metrics from the model and the outputs of the test examples, by name; those it leaves
            out are NaN.
        examine: Computes extra metrics on the host, by name, from a trained model whose arrays have values; `None` for
            nothing.
    """

    data: Dataset
    make_network: Callable[[Norm], Network]
    norm: Norm
    batch_size: int
    epochs: int
    error: Error
    classes_per_batch: int | None = None
    training_size: float | None = None
    devices: int = 1
    loss: Loss | None = None
    optimizer: Optimizer | None = None
    chance: float | None = None
    validation: float | None = None
    test: float | None = None
    series: Sequence[Series] = ()
    observe: Callable[[Fitted], Mapping[str, ArrayLike]] = lambda model: {}
    extra_metrics: Sequence[Metric] = ()
    assess: Callable[[Fitted, PyTree], Mapping[str, ArrayLike]] = lambda model, outputs: {}
    examine: Callable[[Fitted], Mapping[str, ArrayLike]] | None = None

    def __post_init__(self) -> None:
        """Check the size and the composition of batches.

        Raises:
            ValueError: If a batch is larger than the training set or cannot be divided among the devices, or a part of
                the data would be empty.
        """
        training = self.used
        if not 1 <= self.batch_size <= training:
            raise ValueError(
                f"Expected a batch of 1 to {training} examples (the training set), got {self.batch_size}. Choose a "
                "smaller one."
            )
        if self.batch_size % self.devices:
            raise ValueError(
                f"Expected a batch that {self.devices} devices can share equally, got {self.batch_size} examples. "
                "Choose a multiple."
            )
        if self.classes_per_batch is not None:
            _check_composition(self.data, self.classes_per_batch, self.batch_size)

    def program(self) -> Program:
        """Make the program.

        Raises:
            ValueError: If there are too few devices, too many updates, or series of streamed data; when traced, if
                outputs do not fit the labels, the loss or the error.
        """
        mesh, _ = self.mesh, self.network
        if self.steps >= 2**31:
            raise ValueError(
                f"Expected fewer than 2^31 updates, got {self.steps:,}. Choose fewer epochs or larger batches."
            )
        if self.window_source and (self.series or self.extra_metrics):
            raise ValueError(
                "Expected data that are all on the device, of which series and extra metrics are taken, got data that "
                "are read while a model is trained. Pass `--no-stream`, or take a comparison without them."
            )
        return Program(
            data=self.data.arrays,
            fingerprints=self.data.fingerprints,
            init=self.init,
            start=Start(self._without_weights, self._with_weights),
            step=self.step,
            forward=self.forward,
            evaluate=self.evaluate,
            steps=self.steps,
            last=self.per_epoch,
            chance=_chance(self.data, self.error) if self.chance is None else self.chance,
            mesh=mesh,
            series=self.measure if self.series else None,
            at_end=all(one.at_end for one in self.series),
            examine=self.examined if self.extra_metrics and self.examine else None,
            description=_description(self.data),
            window_source=self.window_source,
            libraries=self.data.libraries,
        )

    @cached_property
    def parts(self) -> tuple[int, int]:
        """Numbers of examples for training and for validation."""
        return sizes(self.data, self.validation, self.test)

    @cached_property
    def used(self) -> int:
        """Number of training examples that are used.

        Raises:
            ValueError: If there are fewer.
        """
        training, size = self.parts[0], self.training_size
        if size is None:
            return training
        used = round(size * training) if size < 1 else round(size)
        if not 1 <= used <= training:
            raise ValueError(f"Expected `training_size` of at most {training:,} examples, got {size:g}. Choose fewer.")
        return used

    @property
    def per_epoch(self) -> int:
        """Updates per epoch."""
        return self.parts[0] // self.batch_size

    @property
    def steps(self) -> int:
        """Updates in a run."""
        return self.epochs * self.per_epoch

    @cached_property
    def mesh(self) -> Mesh | None:
        """Mesh of the devices; `None` for one device."""
        return mesh_of(self.devices)

    @cached_property
    def network(self) -> Network:
        """The model with its norm."""
        return self.make_network(self.norm)

    @cached_property
    def window_source(self) -> WindowSource | None:
        """Source of data that are read during training; `None` if all of them are on the device."""
        data = self.data
        if not isinstance(data, Streamed):
            return None
        training, validating = self.parts
        held_out = len(data.labels) - training
        steps = max(1, min(self.steps, WINDOW_BYTES // (self.batch_size * data.sample_inputs()[0].nbytes)))
        fitting, testing = steps * self.batch_size, min(EVALUATED_AT_ONCE, held_out)
        return WindowSource(
            steps=steps,
            fingerprint=lambda seed: data_hash(self._examples(seed)._asdict()),
            windows=lambda seed, n: data.windows(_rows(self._examples(seed).order, fitting)[n:]),
            held_out=lambda seed: data.windows(_rows(self._examples(seed).held_out, testing)),
            shapes=(_window_shapes(data, fitting), _window_shapes(data, testing)),
            metrics=lambda errors: {
                "validation": errors[:validating].mean(),
                "validation_sem": float(standard_error(errors[:validating])),
                "test": errors[validating:held_out].mean(),
            },
        )

    @cached_property
    def _check(self) -> Callable[[PyTree], None]:
        return check_of_outputs(self.data, self.loss, self.error)

    def init(self, seed: int) -> TrainingState:
        """Return the state of a run before its first update."""
        return self._with_weights(seed, self._without_weights(seed))

    def _without_weights(self, seed: int) -> TrainingState:
        source, (_, validating) = self.window_source, self.parts
        examples = _within_windows(source, self.batch_size) if source else self._examples(seed)
        sets = (examples.train, examples.held_out[validating:]) if self.classes_per_batch and not source else ()
        composed = tuple(self._composed(some, max(1, len(some) // self.batch_size), seed) for some in sets)
        return TrainingState(
            params=None,
            model_state=None,
            opt_state=(),
            **examples._asdict(),
            composed=composed,
            seed=np.uint32(seed),
        )

    def _with_weights(self, seed: int | jax.Array, state: TrainingState) -> TrainingState:
        params, model_state = self.network.init(seed)
        opt_state = self._optimizer_at(0.0).init(params)
        return state._replace(params=params, model_state=model_state, opt_state=opt_state)

    def forward(self, state: TrainingState, t: jax.Array, arrays: Arrays) -> jax.Array:
        """Compute the loss of update t, without its gradient."""
        inputs, labels = self._batch(state, t, arrays)
        return self._mean_loss(self.network.train(state.params, state.model_state, inputs, t)[0], labels)

    def step(
        self, state: TrainingState, t: jax.Array, learning_rate: jax.Array, arrays: Arrays
    ) -> tuple[TrainingState, jax.Array]:
        """Make update t; return the new state and the loss."""
        inputs, labels = self._batch(state, t, arrays)

        def loss_of(outputs: PyTree) -> tuple[jax.Array, None]:
            return self._mean_loss(outputs, labels), None

        (value, _), gradients, model_state = self.network.gradients(loss_of, state.params, state.model_state, inputs, t)
        updates, opt_state = self._optimizer_at(learning_rate).update(gradients, state.opt_state, state.params)
        params: PyTree = optax.apply_updates(state.params, updates)
        return state._replace(params=params, model_state=model_state, opt_state=opt_state), value

    def evaluate(self, state: TrainingState, arrays: Arrays) -> dict[str, jax.Array]:
        """Measure the held-out examples, or those of one window if there is a window source."""
        _, validating = self.parts
        outputs = self._outputs(state.held_out, state, arrays)
        errors = self.error.function(outputs, arrays["labels"][state.held_out])
        errors = numbers("metric", errors, [state.held_out.shape])
        finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(outputs)]).all()
        if self.window_source:
            return {"errors": errors, "finite": finite}
        extra = {}
        if self.extra_metrics:
            extra = self.assess(self.fitted(state, arrays), jax.tree.map(lambda x: x[validating:], outputs))
        return {
            **{
                metric.name: numbers(metric.name, extra.get(metric.name, jnp.nan), [()])
                for metric in self.extra_metrics
            },
            "validation": errors[:validating].mean(),
            "validation_sem": standard_error(errors[:validating]),
            "test": errors[validating:].mean(),
            "finite": finite,
        }

    def measure(self, state: TrainingState, arrays: Arrays) -> dict[str, jax.Array]:
        """Measure the series at some time of training."""
        found = self.observe(self.fitted(state, arrays))
        missing = {one.name: jnp.full(len(one.x), jnp.nan) for one in self.series}
        return {one.name: numbers(one.name, {**missing, **found}[one.name], [(len(one.x),)]) for one in self.series}

    def examined(self, state: TrainingState, arrays: Arrays) -> dict[str, float]:
        """Measure extra metrics of a trained model on the host."""
        found = self.examine(self.fitted(state, arrays)) if self.examine else {}
        names = (metric.name for metric in self.extra_metrics if metric.name in found)
        return {name: float(numbers(name, found[name], [()])) for name in names}

    def fitted(self, state: TrainingState, arrays: Arrays) -> Fitted:
        """Return the model at some time of training."""
        objective, (_, validating) = self._objective, self.parts

        def take(examples: Array) -> tuple[jax.Array, jax.Array]:
            return self.data.prepared(arrays["inputs"][examples]), arrays["labels"][examples]

        return Fitted(
            network=self.network,
            variant=self.make_network,
            norm=self.norm,
            params=state.params,
            model_state=state.model_state,
            batch=take(state.order[0]),
            train=state.train,
            test=take(state.held_out[validating:]),
            take=take,
            evaluate=lambda model_state: self._outputs(
                state.held_out[validating:], state._replace(model_state=model_state), arrays
            ),
            composed=state.composed,
            loss=lambda outputs, labels: objective(outputs, labels).mean(),
            error=lambda outputs, labels: jnp.asarray(self.error.function(outputs, labels), jnp.float32),
        )

    @property
    def _objective(self) -> Loss:
        return self.loss or (cross_entropy if self.data.classes else MEAN_SQUARED_ERROR.function)

    def _optimizer_at(self, learning_rate: float | jax.Array) -> optax.GradientTransformation:
        made = (self.optimizer or _sgd)(lambda t: learning_rate * 0.5 * (1 + jnp.cos(jnp.pi * t / self.steps)))
        check_transformation(made)
        return made

    def _examples(self, seed: int) -> RunExamples:
        parts = divided(self.data, seed, self.validation, self.test)
        train, held_out = parts["train"][: self.used], np.concatenate([parts["validation"], parts["test"]])
        if self.classes_per_batch:
            return RunExamples(self._composed(train, self.steps, seed), train, held_out)
        epochs = -(-self.steps // (self.used // self.batch_size))
        return RunExamples(shuffled(train, self.batch_size, epochs, seed)[: self.steps], train, held_out)

    def _composed(self, some: np.ndarray, count: int, seed: int) -> np.ndarray:
        """Draw batches with a number of classes from some examples."""
        return some[composed(self.data.labels[some], count, self.batch_size, self.classes_per_batch or 1, seed)]

    def _batch(self, state: TrainingState, t: jax.Array, arrays: Arrays) -> tuple[jax.Array, jax.Array]:
        """Return the inputs and labels of update t, prepared for the model."""
        batch = state.order[t % self.window_source.steps if self.window_source else t]
        inputs, labels = shared_out((arrays["inputs"][batch], arrays["labels"][batch]), self.mesh)
        if self.data.augment:
            draws = jax.random.fold_in(jax.random.fold_in(jax.random.key(state.seed), 1), t)  # the model has its own
            inputs = augment(self.data.augment, draws, inputs)
        return self.data.prepared(inputs), labels

    def _mean_loss(self, outputs: PyTree, labels: jax.Array) -> jax.Array:
        self._check(outputs)
        return numbers("loss", self._objective(outputs, labels), [(), (self.batch_size,)]).mean()

    def _outputs(self, examples: Array, state: TrainingState, arrays: Arrays) -> PyTree:
        def of(chunk: Array) -> PyTree:
            return self.network.evaluate(state.params, state.model_state, self.data.prepared(arrays["inputs"][chunk]))

        return _in_chunks(of, examples)


def _description(data: Dataset) -> str:
    """Describe the data, and say that seeds share examples where no test set stands apart."""
    shared = (
        "" if data.test else "No test set stands apart: learning rates are chosen on examples that other seeds test."
    )
    return f"{data.description} {shared}".strip()


def _rows(examples: np.ndarray, size: int) -> np.ndarray:
    """Cut examples into rows of one size; the last row is padded with the first examples."""
    return np.resize(examples, (-(-examples.size // size), size))


def _window_shapes(data: Streamed, size: int) -> Shapes:
    named = {"inputs": data.sample_inputs(), "labels": data.labels}
    return {name: jax.ShapeDtypeStruct((size, *array.shape[1:]), array.dtype) for name, array in named.items()}


def _within_windows(source: WindowSource, batch_size: int) -> RunExamples:
    """Number the examples of batches, and those held out, within their windows."""
    places, held_out = (np.arange(len(shapes["labels"]), dtype=np.int32) for shapes in source.shapes)
    return RunExamples(places.reshape(source.steps, batch_size), places[:0], held_out)


def _check_composition(data: Dataset, classes_per_batch: int, batch_size: int) -> None:
    if not data.classes or data.labels.ndim != 1:
        raise ValueError("Expected `labels` to be a class for each example where batches have a number of classes.")
    most = min(len(np.unique(data.labels)), batch_size)
    if not 1 <= classes_per_batch <= most:
        raise ValueError(f"Expected 1 to {most} classes in a batch of {batch_size} examples, got {classes_per_batch}.")


def _sgd(schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.sgd(schedule, momentum=0.9)


def _in_chunks(function: Callable[[Array], PyTree], indices: Array) -> PyTree:
    """Map examples to outputs, a limited number at a time; the last chunk is padded with the first examples."""
    n, at_once = len(indices), EVALUATED_IN_STACKS if stacked() else EVALUATED_AT_ONCE
    if n <= at_once:
        return function(indices)
    chunks = jnp.resize(indices, (-(-n // at_once), at_once))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:n], jax.lax.map(function, chunks))


def _chance(data: Dataset, error: Error) -> float | None:
    """Return the error of the best constant answer."""
    if error is MISCLASSIFICATION:
        return float(1 - np.unique(data.labels, return_counts=True)[1].max() / len(data.labels))
    if error is MEAN_SQUARED_ERROR:
        return float(data.labels.var(axis=0, dtype=np.float64).mean())
    return None
