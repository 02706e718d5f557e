"""The program of learning from a stream: predict each burst of examples, then learn from it, once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from normlab.introspect import statistics
from normlab.introspect.pure import Network
from normlab.notation import PyTree
from normlab.study.design.problem import Metric
from normlab.study.design.program import Array, Arrays, Program, Start
from normlab.study.design.provenance import data_hash
from normlab.study.design.records import TUNING_SEEDS_FROM
from normlab.study.streams import baselines
from normlab.study.streams.protocol import ALL_TASKS, FINAL, PARTS, PREFIX
from normlab.study.streams.stream import Source, Stream
from normlab.study.training import stream_measures as measures
from normlab.study.training.arrivals import Arranged, Ends, arranged, arrivals, ends_of
from normlab.study.training.loop import standard_error
from normlab.study.training.objectives import (
    MEAN_SQUARED_ERROR,
    MISCLASSIFICATION,
    Error,
    Loss,
    StreamOptimizer,
    check_transformation,
    cross_entropy,
)


class LearnerState(NamedTuple):
    """State of a model that learns from a stream.

    Attributes:
        params: Parameters that the optimizer trains.
        model_state: State of the model that the optimizer does not train; see `Network`.
        opt_state: State of the optimizer.
    """

    params: PyTree
    model_state: PyTree
    opt_state: optax.OptState


@dataclass(frozen=True, kw_only=True)
class Learner:
    """A model that predicts bursts of examples, then learns from them.

    Attributes:
        network: The model.
        objective: `(outputs, labels) -> one number for each example`.
        error: `(outputs, labels) -> one number for each example`.
        optimizer: Makes the optimizer from a learning rate.
        masked: Whether some examples of some bursts do not count.
    """

    network: Network
    objective: Loss
    error: Loss
    optimizer: StreamOptimizer = optax.sgd
    masked: bool = False

    def init(self, seed: int | jax.Array) -> LearnerState:
        """Return the state before the first burst."""
        params, model_state = self.network.init(seed)
        return LearnerState(params, model_state, self.optimizer(0.0).init(params))

    def test(self, state: LearnerState, inputs: jax.Array, labels: jax.Array) -> jax.Array:
        """Compute the errors of predictions; NaN where outputs are not finite, since their argmax would be class 0."""
        outputs = self.network.evaluate(state.params, state.model_state, inputs)
        finite = jnp.isfinite(outputs).reshape(len(labels), -1).all(-1)
        return jnp.where(finite, self.error(outputs, labels), jnp.nan).astype(jnp.float32)

    def train(
        self,
        state: LearnerState,
        burst: tuple[jax.Array, jax.Array],
        known: jax.Array,
        t: jax.Array,
        learning_rate: float | jax.Array,
    ) -> tuple[LearnerState, jax.Array]:
        """Update the model once.

        Args:
            state: State before the update.
            burst: Inputs and labels.
            known: Whether each label is known, shape (batch,).
            t: Number of the step.
            learning_rate: Learning rate of this step.

        Returns:
            The new state, and the loss.
        """
        inputs, labels = burst

        def mean_loss(outputs: jax.Array) -> tuple[jax.Array, None]:
            losses = jnp.where(known, self.objective(outputs, labels), 0.0)
            return losses.sum() / jnp.maximum(known.sum(), 1), None

        (value, _), gradients, model_state = self.network.gradients(
            mean_loss, state.params, state.model_state, inputs, t, known if self.masked else None
        )
        updates, opt_state = self.optimizer(learning_rate).update(gradients, state.opt_state, state.params)
        return LearnerState(optax.apply_updates(state.params, updates), model_state, opt_state), value


class StreamState(NamedTuple):
    """State of a pass over a stream.

    Attributes:
        learner: The model.
        stream: The stream of this seed, as arrays.
        baselines: Errors of the baselines, shape (baselines, examples); NaN where they are not measured.
        errors: Error of each example, predicted before it was learned from; NaN until then. Shape (examples,).
        lag: At the end of each part of the stream, of the first norm that has running statistics: running minus true
            mean in true standard deviations, and running over true variance. Shape (parts, 2).
        by_task: Error on held-out examples of each task, after each task. Shape (tasks, tasks).
    """

    learner: LearnerState
    stream: Arranged
    baselines: Array
    errors: Array
    lag: Array
    by_task: Array


@dataclass(frozen=True, kw_only=True, eq=False)
class PrequentialTraining:
    """Test-then-train of one model: its options, and the functions of its program.

    Every seed has its own stream, if the source has more than one, and its own initial weights. The learning rate is
    constant: a stream has no end to decay towards.

    Attributes:
        source: Source of streams, which are equally long for all seeds.
        network: The model.
        error: Error that is measured of predictions.
        forgetful: The model with norms whose running statistics are those of their latest batch; it measures the
            cross-task effect. `None` if the norm has no such statistics.
        batch_size: Examples of a burst: they are predicted together, then learned from together.
        varying: Whether bursts have 1 to `2 * batch_size - 1` examples, equally many of each length.
        delay: Delay of labels, as in `baselines.errors`; rounded up to whole bursts. Not for bursts that vary.
        loss: `(outputs, labels) -> one number for each example`; softmax cross entropy or squared error unless given.
        optimizer: Makes the optimizer from a learning rate; plain SGD unless given.
        extra_metrics: Metrics beside the error: those of drifts, of tasks and of the baselines.
    """

    source: Source
    network: Network
    error: Error
    forgetful: Network | None = None
    batch_size: int = 1
    varying: bool = False
    delay: int = 0
    loss: Loss | None = None
    optimizer: StreamOptimizer | None = None
    extra_metrics: Sequence[Metric] = ()

    def __post_init__(self) -> None:
        """Check the stream against the options.

        Raises:
            ValueError: If the stream is shorter than a burst or than its parts, its labels are no classes although the
                error is that of classes, or labels are late in bursts that vary.
        """
        shortest = max(2 * PARTS, self.batch_size)
        if self.examples < shortest:
            raise ValueError(f"Expected a stream of at least {shortest} examples, got {self.examples}.")
        if self.error.function is MISCLASSIFICATION.function and not self.first.classes:
            raise ValueError(
                f"Expected classes as labels for `{self.error.name}`, got numbers. Declare them by `classes`, or give "
                "`study.streaming` another `metric`."
            )
        if self.varying and self.delay > 1:
            raise ValueError(
                f"Expected `varying` or `delay`, not both, got bursts that vary and labels {self.delay} late."
            )
        check_transformation(self.learner.optimizer(0.0))

    def program(self) -> Program:
        """Make the program."""
        steps = len(arrivals(self.examples, 0, self.batch_size, self.varying)[0])
        return Program(
            data={"streams": np.frombuffer(bytes.fromhex(_hash(self.first)), np.uint8)},
            init=self.init,
            start=Start(self._without_learner, self._with_learner),
            step=self.step,
            evaluate=self.evaluate,
            steps=steps,
            last=max(1, steps // PARTS),
            chance=measures.chance(self.first, self.error, slice(self.scored, self.examples)),
            series=self.series,
            description=self.first.description,
            libraries=tuple(dict.fromkeys((*self.source.libraries, *["river"] * bool(self.extra_metrics)))),
        )

    @cached_property
    def first(self) -> Stream:
        """The stream of seed 0."""
        return self.source(0)

    @property
    def examples(self) -> int:
        """Number of examples in a stream."""
        return len(self.first.labels)

    @property
    def scored(self) -> int:
        """First example that is reported on; a single stream chooses learning rates by the examples before it."""
        return 0 if self.source.replicated else round(PREFIX * self.examples)

    @cached_property
    def learner(self) -> Learner:
        """The model as it learns."""
        return Learner(
            network=self.network,
            objective=self.loss or (cross_entropy if self.first.classes else MEAN_SQUARED_ERROR.function),
            error=self.error.function,
            optimizer=self.optimizer or optax.sgd,
            masked=self.varying or self.delay > 1 or self.examples % self.batch_size > 0,
        )

    def init(self, seed: int) -> StreamState:
        """Return the state of a run before its first burst."""
        return self._with_learner(seed, self._without_learner(seed))

    def _without_learner(self, seed: int) -> StreamState:
        stream = self.source(seed)
        _check_alike(self.first, stream, seed)
        compared = self.extra_metrics and seed < TUNING_SEEDS_FROM  # tuning ignores them, and some take seconds
        found = baselines.errors(stream, delay=self.delay) if compared else {}
        return StreamState(
            learner=LearnerState(None, None, ()),
            stream=arranged(stream, seed, self.batch_size, varying=self.varying, delay=self.delay),
            baselines=_table([found.get(name) for name in self._baselines], self.examples),
            errors=_table([None], self.examples)[0],
            lag=np.full((PARTS, 2), np.nan, np.float32),
            by_task=_table([None] * len(self.first.tasks), len(self.first.tasks)),
        )

    def _with_learner(self, seed: int | jax.Array, state: StreamState) -> StreamState:
        return state._replace(learner=self.learner.init(seed))

    def step(
        self, state: StreamState, t: jax.Array, learning_rate: jax.Array, arrays: Arrays
    ) -> tuple[StreamState, jax.Array]:
        """Predict the burst of step t, then learn from it; return the new state and the loss."""
        state = self._test(state, t)
        stream, examples = state.stream, state.stream.learned[t]
        burst = stream.inputs[examples], stream.labels[examples]
        learner, value = self.learner.train(state.learner, burst, stream.known[t], t, learning_rate)
        return self._measure(state._replace(learner=learner), t), value

    def evaluate(self, state: StreamState, arrays: Arrays) -> dict[str, jax.Array]:
        """Measure a finished pass."""
        errors, chosen_by = jnp.asarray(state.errors), state.errors[: self.scored or self.examples]
        found = {
            **measures.drift_metrics(errors, self.first, self.scored),
            **(self._task_metrics(state) if self.first.tasks else {}),
            **dict(zip(self._baselines, state.baselines[:, self.scored :].mean(1), strict=True)),
        }
        return {
            **{metric.name: found.get(metric.name, jnp.nan) for metric in self.extra_metrics},
            "validation": chosen_by.mean(),
            "validation_sem": standard_error(chosen_by),
            **({} if self._chance_before is None else {"validation_chance": jnp.float32(self._chance_before)}),
            "test": errors[self.scored :].mean(),
            "finite": jnp.isfinite(errors).all(),
        }

    def series(self, state: StreamState, arrays: Arrays) -> dict[str, jax.Array]:
        """Measure error, lag and spread along the stream."""
        lag, spread = jnp.asarray(state.lag).T
        parts = jnp.asarray(np.arange(self.examples) * PARTS // self.examples)
        errors = jax.ops.segment_sum(state.errors, parts, PARTS) / jnp.bincount(parts, length=PARTS)
        return {
            "error": errors * (100 if self.error.percent else 1),
            "lag": lag,
            "spread": spread,
        }

    @cached_property
    def _baselines(self) -> tuple[str, ...]:
        return baselines.names(classes=bool(self.first.classes))

    @cached_property
    def _chance_before(self) -> float | None:
        """Chance on the examples that choose learning rates, if they are not those reported on."""
        return measures.chance(self.first, self.error, slice(self.scored)) if self.scored else None

    @cached_property
    def _ends(self) -> Ends | None:
        """Ends of parts and tasks, if they are the same for all seeds."""
        if self.varying:
            return None
        return ends_of(self.first, *arrivals(self.examples, 0, self.batch_size, False))

    @cached_property
    def _running_norm(self) -> statistics.Path | None:
        return measures.first_running_norm(self.network.module, self.first.inputs[:1])

    def _test(self, state: StreamState, t: jax.Array) -> StreamState:
        """Predict the burst of step t."""
        stream, examples = state.stream, state.stream.tested[t]
        errors = self.learner.test(state.learner, stream.inputs[examples], stream.labels[examples])
        counted = jnp.where(stream.arrived[t], examples, self.examples)
        return state._replace(errors=jnp.asarray(state.errors).at[counted].set(errors, mode="drop"))

    def _measure(self, state: StreamState, t: jax.Array) -> StreamState:
        """Measure what is due at the end of a part or a task."""
        ends = self._ends or state.stream.ends
        if self._running_norm:
            newest = jnp.asarray(ends.newest)[t]
            lag = _updated(state.lag, jnp.asarray(ends.part) == t, partial(self._lag, state, newest))
            state = state._replace(lag=lag)
        if self.first.tasks:
            by_task = _updated(state.by_task, jnp.asarray(ends.task) == t, partial(self._by_task, state))
            state = state._replace(by_task=by_task)
        return state

    def _lag(self, state: StreamState, last: jax.Array) -> jax.Array:
        """Compare running with true statistics over the latest examples, as many as a part of the stream has."""
        module, path, window = self.network.module, self._running_norm, self.examples // PARTS
        assert module is not None and path is not None
        inputs = jax.lax.dynamic_slice_in_dim(state.stream.inputs, jnp.maximum(last - window + 1, 0), window)
        variables = {"params": state.learner.params, **state.learner.model_state[0]}
        return measures.lag(module, path, variables, inputs)

    def _by_task(self, state: StreamState) -> jax.Array:
        """Compute the error on the held-out examples of each task."""
        assert state.stream.held_out is not None
        inputs, labels = map(jnp.asarray, state.stream.held_out)
        together = inputs.reshape(-1, *inputs.shape[2:]), labels.reshape(-1, *labels.shape[2:])
        return self.learner.test(state.learner, *together).reshape(labels.shape[:2]).mean(1)

    def _task_metrics(self, state: StreamState) -> dict[str, jax.Array]:
        """Measure tasks at the end of the stream, and the cross-task effect (Pham et al., 2022).

        For the cross-task effect running statistics are replaced by those of the held-out examples of all tasks: once
        for every norm, since the statistics of one norm change the inputs of the next.
        """
        found = measures.task_metrics(jnp.asarray(state.by_task))
        if self.forgetful and state.stream.held_out:
            learner, inputs = state.learner, state.stream.held_out[0]
            inputs = inputs.reshape(-1, *inputs.shape[2:])
            for _ in statistics.paths(learner.model_state[0]):
                _, model_state = self.forgetful.train(learner.params, learner.model_state, inputs, jnp.asarray(0))
                learner = learner._replace(model_state=model_state)
            found[ALL_TASKS] = found[FINAL] - self._by_task(state._replace(learner=learner)).mean()
        return found


def test_then_train(
    network: Network,
    inputs: np.ndarray,
    labels: np.ndarray,
    *,
    batch_size: int = 1,
    optimizer: StreamOptimizer = optax.sgd,
    seed: int = 0,
) -> tuple[Callable[[LearnerState, jax.Array], tuple[LearnerState, jax.Array]], LearnerState]:
    """Make a compiled pass over a stream: predict each burst, then learn from it, all in one program.

    The loss is softmax cross entropy for classes and the squared error for numbers.

    Args:
        network: The model; see `normlab.introspect.pure.network`.
        inputs: Shape (examples, ...).
        labels: Classes, int32, or numbers, float32; shape (examples,).
        batch_size: Examples of a burst; examples at the end that do not fill one are left out.
        optimizer: Makes the optimizer from a learning rate.
        seed: Seed of the initial weights.

    Returns:
        `(state, learning rate) -> (state, errors)`, with an error for each example, predicted before it was learned
        from; and the initial state.
    """
    classes = np.issubdtype(labels.dtype, np.integer)
    learner = Learner(
        network=network,
        objective=cross_entropy if classes else MEAN_SQUARED_ERROR.function,
        error=(MISCLASSIFICATION if classes else MEAN_SQUARED_ERROR).function,
        optimizer=optimizer,
    )
    steps = len(labels) // batch_size
    bursts = [jnp.asarray(a[: steps * batch_size].reshape(steps, batch_size, *a.shape[1:])) for a in (inputs, labels)]
    everything = jnp.ones(batch_size, bool)

    def run(state: LearnerState, learning_rate: jax.Array) -> tuple[LearnerState, jax.Array]:
        def step(state: LearnerState, at: tuple[jax.Array, ...]) -> tuple[LearnerState, jax.Array]:
            t, x, y = at
            errors = learner.test(state, x, y)
            return learner.train(state, (x, y), everything, t, learning_rate)[0], errors

        state, errors = jax.lax.scan(step, state, (jnp.arange(steps), *bursts))
        return state, errors.reshape(-1)

    return jax.jit(run), learner.init(seed)


def _updated(rows: Array, due: jax.Array, make: Callable[[], jax.Array]) -> jax.Array:
    """Replace the rows that are due; new ones are computed only if there are any."""
    return jax.lax.cond(due.any(), lambda: jnp.where(due[:, None], make(), rows), lambda: jnp.asarray(rows))


def _hash(stream: Stream) -> str:
    """Hash all of a stream, for the keys of runs."""
    places = {"drifts": np.array(stream.drifts), "tasks": np.array(stream.tasks)}
    return data_hash({"inputs": stream.inputs, "labels": stream.labels, **places})


def _table(rows: Sequence[np.ndarray | None], width: int) -> np.ndarray:
    """Stack rows of numbers, NaN for those that are missing."""
    table = np.full((len(rows), width), np.nan, np.float32)
    for row, values in zip(table, rows, strict=True):
        row[:] = np.nan if values is None else values
    return table


def _check_alike(first: Stream, stream: Stream, seed: int) -> None:
    """Raise unless one program serves both streams."""
    ours, theirs = ((s.inputs.shape, s.drifts, len(s.tasks), s.classes) for s in (first, stream))
    if ours != theirs:
        raise ValueError(
            f"Expected streams of all seeds to be alike in shape, drifts, number of tasks and classes, got {ours} for "
            f"seed 0 and {theirs} for seed {seed}."
        )
