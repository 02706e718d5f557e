"""The program of supervised learning: a loss, mini-batches, a learning rate that decays to zero."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from normlab.introspect.pure import Network
from normlab.norms import Norm
from normlab.study.data.augment import augment
from normlab.study.data.dataset import Dataset
from normlab.study.data.splits import composed, divided, shuffled, sizes
from normlab.study.data.streaming import WINDOW_BYTES, Streamed
from normlab.study.design.problem import Metric, Series
from normlab.study.design.program import Arrays, Program, WindowSource
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

EVALUATED_AT_ONCE = 1024
"""Held-out examples that go through the model together."""


class Learner(NamedTuple):
    """State of supervised training.

    Attributes:
        params: Parameters that the optimizer trains.
        model_state: State of the model that the optimizer does not train; see `Network`.
        opt_state: State of the optimizer.
        order: Examples of all batches, shape (steps, batch).
        train: Examples for training, in a random order.
        held_out: Examples for validation and, behind them, for the test.
        alike: Where batches have a number of classes: batches of examples for training, and of those of the test,
            composed likewise, each of shape (batches, batch).
        seed: Of the run, for what is drawn in training.
    """

    params: Any
    model_state: Any
    opt_state: Any
    order: Any
    train: Any
    held_out: Any
    alike: tuple[Any, ...]
    seed: Any


class Fitted(NamedTuple):
    """A model at some time of its training, as series and extra metrics see it.

    Attributes:
        network: Its functions.
        variant: `norm -> the functions of this model with another norm`.
        norm: The norm that is in it.
        params: Parameters that the optimizer trains.
        model_state: State of the model that the optimizer does not train; see `Network`.
        batch: Inputs and labels of the first batch of training.
        train: Which examples it is trained on, in a random order.
        test: Inputs and labels of the test examples.
        take: `examples -> their inputs and labels`, as the model takes them.
        evaluate: `model_state -> outputs of the test examples`, with this state in place of the model's own.
        alike: See `Learner`.
        loss: `(outputs, labels) -> number`.
        error: `(outputs, labels) -> one number for each example`: the metric.
    """

    network: Network
    variant: Callable[[Norm], Network]
    norm: Norm
    params: Any
    model_state: Any
    batch: tuple[jax.Array, jax.Array]
    train: jax.Array
    test: tuple[jax.Array, jax.Array]
    take: Callable[[jax.Array], tuple[jax.Array, jax.Array]]
    evaluate: Callable[[Any], Any]
    alike: tuple[jax.Array, ...]
    loss: Callable[[Any, jax.Array], jax.Array]
    error: Callable[[Any, jax.Array], jax.Array]


@dataclass(frozen=True, kw_only=True, eq=False)
class SupervisedTraining:
    """Supervised training of one model: what is decided, and the functions of its program.

    Every seed has its own split (`data.split`); every epoch is a new permutation of the training set, and a last batch
    that would be smaller than the others is left out. The learning rate decays to zero along a cosine.

    Attributes:
        data: Inputs and labels; a program on streamed data has a window source.
        made: `norm -> the model`.
        norm: For the model.
        batch_size: Examples an update.
        epochs: Passes over the training set.
        classes_per_batch: How many classes a batch has, drawn anew for each, as its examples are from theirs, so that
            an epoch is as many examples but not each once; unless given a batch is as it comes.
        devices: Among which every batch is divided; statistics of batch norms are still those of the whole batch.
        error: What is measured on held-out examples.
        loss: `(outputs, labels) -> number, or one for each example`; softmax cross entropy or squared error unless
            given.
        optimizer: Made from a learning-rate schedule; SGD with momentum 0.9 unless given.
        chance: Error of a model that has learned nothing; computed for the errors of this package unless given.
        validation: See `data.sizes`.
        test: See `data.sizes`.
        series: What is measured before, during and after training.
        observe: Gives it by name; what it leaves out is NaN.
        extra_metrics: Metrics that are reported beside the error.
        assess: Gives it by name, likewise; it also takes the outputs of the test examples.
    """

    data: Dataset
    made: Callable[[Norm], Network]
    norm: Norm
    batch_size: int
    epochs: int
    error: Error
    classes_per_batch: int | None = None
    devices: int = 1
    loss: Loss | None = None
    optimizer: Optimizer | None = None
    chance: float | None = None
    validation: float | None = None
    test: float | None = None
    series: Sequence[Series] = ()
    observe: Callable[[Fitted], Mapping[str, Any]] = lambda model: {}
    extra_metrics: Sequence[Metric] = ()
    assess: Callable[[Fitted, Any], Mapping[str, Any]] = lambda model, outputs: {}

    def __post_init__(self) -> None:
        """Check what a batch is.

        Raises:
            ValueError: If a batch is larger than the training set or cannot be divided among the devices, or a part of
                the data would be empty.
        """
        training, _ = self.parts
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
            ValueError: If there are too few devices, too many updates, or series of data that are read meanwhile; when
                traced, if outputs do not fit the labels, the loss or the error.
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
            step=self.step,
            forward=self.forward,
            evaluate=self.evaluate,
            steps=self.steps,
            last=self.per_epoch,
            chance=_chance(self.data, self.error) if self.chance is None else self.chance,
            mesh=mesh,
            series=self.measure if self.series else None,
            at_end=all(one.at_end for one in self.series),
            description=_description(self.data),
            window_source=self.window_source,
            libraries=self.data.libraries,
        )

    @cached_property
    def parts(self) -> tuple[int, int]:
        """How many examples there are for training and for validation."""
        return sizes(self.data, self.validation, self.test)

    @property
    def per_epoch(self) -> int:
        """Updates an epoch."""
        return self.parts[0] // self.batch_size

    @property
    def steps(self) -> int:
        """Updates of a run."""
        return self.epochs * self.per_epoch

    @cached_property
    def mesh(self) -> Mesh | None:
        """The devices; `None` is one."""
        return mesh_of(self.devices)

    @cached_property
    def network(self) -> Network:
        """The model with its norm."""
        return self.made(self.norm)

    @cached_property
    def window_source(self) -> WindowSource | None:
        """What reads the data while a model is trained; `None` where all of them are on the device."""
        if not isinstance(self.data, Streamed):
            return None
        return _feed(self.data, self._examples, self.steps, self.batch_size, *self.parts)

    @cached_property
    def _check(self) -> Callable[[Any], None]:
        return _check_of(self.data, self.loss, self.error)

    def init(self, seed: int) -> Learner:
        """The state of a run before its first update."""
        source, (_, validating) = self.window_source, self.parts
        order, train, held_out = _places(source, self.batch_size) if source else self._examples(seed)
        alike = (train, held_out[validating:]) if self.classes_per_batch and not source else ()
        alike = tuple(self._alike(some, max(1, len(some) // self.batch_size), seed) for some in alike)
        params, model_state = self.network.init(seed)
        return Learner(
            params=params,
            model_state=model_state,
            opt_state=self._optimizer_at(0.0).init(params),
            order=order,
            train=train,
            held_out=held_out,
            alike=alike,
            seed=np.uint32(seed),
        )

    def forward(self, state: Learner, t: jax.Array, arrays: Arrays) -> jax.Array:
        """The loss of update t, which is what it differentiates."""
        inputs, labels = self._batch(state, t, arrays)
        return self._mean_loss(self.network.train(state.params, state.model_state, inputs, t)[0], labels)

    def step(self, state: Learner, t: jax.Array, learning_rate: jax.Array, arrays: Arrays) -> tuple[Learner, jax.Array]:
        """Make update t; its state and loss."""
        inputs, labels = self._batch(state, t, arrays)

        def loss_of(outputs: Any) -> tuple[jax.Array, None]:
            return self._mean_loss(outputs, labels), None

        (value, _), gradients, model_state = self.network.gradients(loss_of, state.params, state.model_state, inputs, t)
        updates, opt_state = self._optimizer_at(learning_rate).update(gradients, state.opt_state, state.params)
        params: Any = optax.apply_updates(state.params, updates)
        return state._replace(params=params, model_state=model_state, opt_state=opt_state), value

    def evaluate(self, state: Learner, arrays: Arrays) -> dict[str, jax.Array]:
        """Measure the held-out examples; those of a window where there is a window source."""
        _, validating = self.parts
        outputs = self._outputs(state.held_out, state, arrays)
        errors = self.error.function(outputs, arrays["labels"][state.held_out])
        errors = _numbers("metric", errors, [state.held_out.shape])
        finite = jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(outputs)]).all()
        if self.window_source:
            return {"errors": errors, "finite": finite}
        aside = {}
        if self.extra_metrics:
            aside = self.assess(self.fitted(state, arrays), jax.tree.map(lambda x: x[validating:], outputs))
        return {
            **{
                metric.name: _numbers(metric.name, aside.get(metric.name, jnp.nan), [()])
                for metric in self.extra_metrics
            },
            "validation": errors[:validating].mean(),
            "validation_sem": standard_error(errors[:validating]),
            "test": errors[validating:].mean(),
            "finite": finite,
        }

    def measure(self, state: Learner, arrays: Arrays) -> dict[str, jax.Array]:
        """Take the series at some time of training."""
        found = self.observe(self.fitted(state, arrays))
        missing = {one.name: jnp.full(len(one.x), jnp.nan) for one in self.series}
        return {one.name: _numbers(one.name, {**missing, **found}[one.name], [(len(one.x),)]) for one in self.series}

    def fitted(self, state: Learner, arrays: Arrays) -> Fitted:
        """The model at some time of training."""
        objective, (_, validating) = self._objective, self.parts

        def take(examples: jax.Array) -> tuple[jax.Array, jax.Array]:
            return self.data.prepared(arrays["inputs"][examples]), arrays["labels"][examples]

        return Fitted(
            network=self.network,
            variant=self.made,
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
            alike=state.alike,
            loss=lambda outputs, labels: objective(outputs, labels).mean(),
            error=lambda outputs, labels: jnp.asarray(self.error.function(outputs, labels), jnp.float32),
        )

    @property
    def _objective(self) -> Loss:
        return self.loss or (cross_entropy if self.data.classes else MEAN_SQUARED_ERROR.function)

    def _optimizer_at(self, learning_rate: Any) -> optax.GradientTransformation:
        made = (self.optimizer or _sgd)(lambda t: learning_rate * 0.5 * (1 + jnp.cos(jnp.pi * t / self.steps)))
        check_transformation(made)
        return made

    def _examples(self, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The examples of all batches, those for training, and those held out."""
        parts = divided(self.data, seed, self.validation, self.test)
        train, held_out = parts["train"], np.concatenate([parts["validation"], parts["test"]])
        if self.classes_per_batch:
            return self._alike(train, self.steps, seed), train, held_out
        return shuffled(train, self.batch_size, self.epochs, seed), train, held_out

    def _alike(self, some: np.ndarray, count: int, seed: int) -> np.ndarray:
        """Batches with a number of classes, of some examples."""
        return some[composed(self.data.labels[some], count, self.batch_size, self.classes_per_batch or 1, seed)]

    def _batch(self, state: Learner, t: jax.Array, arrays: Arrays) -> tuple[jax.Array, jax.Array]:
        """Inputs and labels of update t, as the model takes them."""
        batch = state.order[t % self.window_source.steps if self.window_source else t]
        inputs, labels = shared_out((arrays["inputs"][batch], arrays["labels"][batch]), self.mesh)
        if self.data.augment:
            draws = jax.random.fold_in(jax.random.fold_in(jax.random.key(state.seed), 1), t)  # the model has its own
            inputs = augment(self.data.augment, draws, inputs)
        return self.data.prepared(inputs), labels

    def _mean_loss(self, outputs: Any, labels: jax.Array) -> jax.Array:
        self._check(outputs)
        return _numbers("loss", self._objective(outputs, labels), [(), (self.batch_size,)]).mean()

    def _outputs(self, examples: jax.Array, state: Learner, arrays: Arrays) -> Any:
        def of(chunk: jax.Array) -> Any:
            return self.network.evaluate(state.params, state.model_state, self.data.prepared(arrays["inputs"][chunk]))

        return _in_chunks(of, examples)


def _description(data: Dataset) -> str:
    """Describe the data, and say that seeds share examples where no test set stands apart."""
    shared = (
        "" if data.test else "No test set stands apart: learning rates are chosen on examples that other seeds test."
    )
    return f"{data.description} {shared}".strip()


def _feed(
    data: Streamed,
    examples: Callable[[int], tuple[np.ndarray, np.ndarray, np.ndarray]],
    steps: int,
    batch_size: int,
    training: int,
    validating: int,
) -> WindowSource:
    """Windows of the batches that a seed has, in their order, and of its held-out examples."""
    held_out = len(data.labels) - training
    per_window = max(1, min(steps, WINDOW_BYTES // (batch_size * data.sample_inputs()[0].nbytes)))
    sizes = per_window * batch_size, min(EVALUATED_AT_ONCE, held_out)

    def rows(wanted: np.ndarray, size: int) -> np.ndarray:
        return np.resize(wanted, (-(-wanted.size // size), size))  # filled up from its beginning

    def shapes(size: int) -> Arrays:
        named = {"inputs": data.sample_inputs(), "labels": data.labels}
        return {name: jax.ShapeDtypeStruct((size, *array.shape[1:]), array.dtype) for name, array in named.items()}

    return WindowSource(
        steps=per_window,
        fingerprint=lambda seed: data_hash(dict(zip(("order", "train", "held_out"), examples(seed), strict=True))),
        windows=lambda seed, n: data.windows(rows(examples(seed)[0], sizes[0])[n:]),
        held_out=lambda seed: data.windows(rows(examples(seed)[2], sizes[1])),
        shapes=(shapes(sizes[0]), shapes(sizes[1])),
        metrics=lambda errors: {
            "validation": errors[:validating].mean(),
            "validation_sem": float(standard_error(errors[:validating])),
            "test": errors[validating:held_out].mean(),
        },
    )


def _places(source: WindowSource, batch_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the examples of batches, and those that are held out, are within a window."""
    places, held_out = (np.arange(len(shapes["labels"]), dtype=np.int32) for shapes in source.shapes)
    return places.reshape(source.steps, batch_size), places[:0], held_out


def _check_composition(data: Dataset, classes_per_batch: int, batch_size: int) -> None:
    if not data.classes or data.labels.ndim != 1:
        raise ValueError("Expected `labels` to be a class for each example where batches have a number of classes.")
    most = min(len(np.unique(data.labels)), batch_size)
    if not 1 <= classes_per_batch <= most:
        raise ValueError(f"Expected 1 to {most} classes in a batch of {batch_size} examples, got {classes_per_batch}.")


def _sgd(schedule: optax.Schedule) -> optax.GradientTransformation:
    return optax.sgd(schedule, momentum=0.9)


def _in_chunks(function: Callable[[jax.Array], Any], indices: jax.Array) -> Any:
    """Map examples to outputs, a limited number at a time; the last chunk is filled up with examples seen before."""
    n = len(indices)
    if n <= EVALUATED_AT_ONCE:
        return function(indices)
    chunks = jnp.resize(indices, (-(-n // EVALUATED_AT_ONCE), EVALUATED_AT_ONCE))
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:n], jax.lax.map(function, chunks))


def _check_of(data: Dataset, loss: Loss | None, error: Error) -> Callable[[Any], None]:
    """What can be known about outputs from the labels: nothing where loss and error are the user's own."""
    if data.classes and (loss is None or error is MISCLASSIFICATION):
        low, high = int(data.labels.min()), int(data.labels.max())
        return lambda outputs: _check_classes(outputs.shape, low, high)
    if not data.classes and (loss is None or error is MEAN_SQUARED_ERROR):
        return lambda outputs: _check_targets(outputs.shape, data.labels.shape[1:])
    return lambda outputs: None


def _check_classes(shape: tuple[int, ...], low: int, high: int) -> None:
    if len(shape) != 2:
        raise ValueError(
            f"Expected the model's outputs to be logits of shape (batch, classes), got {shape}. End it with "
            f"`nn.Dense({high + 1})`, or give `loss` and `metric`."
        )
    if low < 0 or high >= shape[1]:
        raise ValueError(
            f"Expected `labels` from 0 to {shape[1] - 1}, since the model has {shape[1]} outputs, got {low} to {high}. "
            f"Give it {high + 1} outputs."
        )


def _check_targets(shape: tuple[int, ...], target: tuple[int, ...]) -> None:
    if shape[1:] not in (target, (*target, 1)):
        like = ", ".join(["batch", *map(str, target)])
        raise ValueError(
            f"Expected the model's outputs to be shaped like `labels`, ({like}), got {shape}. Give it as many outputs; "
            "where labels are classes, write `labels.astype(int)`."
        )


def _numbers(name: str, values: Any, shapes: list[tuple[int, ...]]) -> jax.Array:
    if jnp.shape(values) not in shapes:
        raise ValueError(
            f"Expected `{name}` to give shape {' or '.join(map(str, shapes))}, got {jnp.shape(values)}. Return "
            "numbers of that shape."
        )
    return jnp.asarray(values)


def _chance(data: Dataset, error: Error) -> float | None:
    """The error of the best constant answer."""
    if error is MISCLASSIFICATION:
        return float(1 - np.unique(data.labels, return_counts=True)[1].max() / len(data.labels))
    if error is MEAN_SQUARED_ERROR:
        return float(data.labels.var(axis=0, dtype=np.float64).mean())
    return None
