"""The program of learning from a stream: each burst of examples is first predicted, then learned from, once."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from normlab.introspect import statistics
from normlab.introspect.capture import inputs_of
from normlab.introspect.pure import Network
from normlab.study.design.problem import Metric
from normlab.study.design.program import Arrays, Program
from normlab.study.design.provenance import data_hash
from normlab.study.design.records import TUNING_SEEDS_FROM
from normlab.study.streams import baselines
from normlab.study.streams.protocol import (
    ALL_TASKS,
    DROP,
    FINAL,
    FORGETTING,
    LOST,
    NOT_RECOVERED,
    PARTS,
    PREFIX,
    RECOVERED_WITHIN,
    RECOVERY,
    SETTLED,
)
from normlab.study.streams.stream import Source, Stream, bursts
from normlab.study.training.loop import standard_error
from normlab.study.training.objectives import MEAN_SQUARED_ERROR, MISCLASSIFICATION, Error, Loss, check_transformation


class Passing(NamedTuple):
    """State of a pass over a stream.

    Attributes:
        params: Parameters that the optimizer trains.
        model_state: State of the model that the optimizer does not train; see `Network`.
        opt_state: State of the optimizer.
        stream: The stream of this seed, and what arrives when; see `_arranged`.
        errors: Of each example, as predicted before it was learned from; NaN until then. Shape (examples,).
        lag: At the end of each part of the stream, of the first norm that has running statistics: running minus true
            mean in true standard deviations, and running over true variance. Shape (parts, 2).
        by_task: Error on held-out examples of each task, after each task. Shape (tasks, tasks).
    """

    params: Any
    model_state: Any
    opt_state: Any
    stream: Mapping[str, Any]
    errors: Any
    lag: Any
    by_task: Any


class Pass(NamedTuple):
    """What happens at each step of a pass; see `test_then_train`.

    Attributes:
        network: The model.
        objective: `(outputs, labels) -> one number for each example`.
        error: Likewise.
        optimizer: Made from a learning rate.
        masked: Whether some examples of some bursts do not count.
    """

    network: Network
    objective: Loss
    error: Loss
    optimizer: Callable[[Any], optax.GradientTransformation]
    masked: bool

    def test(self, state: Any, inputs: jax.Array, labels: jax.Array) -> jax.Array:
        """Errors of predictions; NaN where an output is not finite, of which the argmax would be class 0."""
        outputs = self.network.evaluate(state.params, state.model_state, inputs)
        finite = jnp.isfinite(outputs).reshape(len(labels), -1).all(-1)
        return jnp.where(finite, self.error(outputs, labels), jnp.nan).astype(jnp.float32)

    def train(
        self, state: Any, inputs: jax.Array, labels: jax.Array, known: jax.Array, t: jax.Array, learning_rate: Any
    ) -> tuple[Any, jax.Array]:
        """One update by a burst's labels, as far as they are known."""

        def mean_loss(outputs: Any) -> tuple[jax.Array, None]:
            losses = jnp.where(known, self.objective(outputs, labels), 0.0)
            return losses.sum() / jnp.maximum(known.sum(), 1), None

        (value, _), gradients, model_state = self.network.gradients(
            mean_loss, state.params, state.model_state, inputs, t, known if self.masked else None
        )
        updates, opt_state = self.optimizer(learning_rate).update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return state._replace(params=params, model_state=model_state, opt_state=opt_state), value


def prequential(
    source: Source,
    network: Network,
    *,
    forgetful: Network | None = None,
    batch_size: int = 1,
    varying: bool = False,
    delay: int = 0,
    error: Error,
    loss: Loss | None = None,
    optimizer: Callable[[Any], optax.GradientTransformation] | None = None,
    extra_metrics: Sequence[Metric] = (),
) -> Program:
    """Make the program of test-then-train.

    Every seed has its own stream, where the source has more than one, and its own initial weights. The learning rate
    is constant: a stream has no end to decay towards.

    Args:
        source: Of streams, which are equally long for all seeds.
        network: The model.
        forgetful: The same with norms whose running statistics are those of their latest batch; see `_of_tasks`.
        batch_size: Examples of a burst: they are predicted together, then learned from together.
        varying: Whether bursts have 1 to `2 * batch_size - 1` examples, as many of each length.
        delay: How late labels come, as in `baselines.errors`; rounded up to whole bursts. Not where bursts vary.
        error: What is measured of predictions.
        loss: `(outputs, labels) -> one number for each example`; softmax cross entropy or squared error unless given.
        optimizer: Made from a learning rate; plain SGD unless given.
        extra_metrics: Metrics beside the error: those of drifts, of tasks and of the baselines.

    Raises:
        ValueError: If the stream is shorter than a burst or than its parts, its labels are no classes where the error
            is that of classes, or labels are to come late in bursts that vary.
    """
    first = source(0)
    n = len(first.labels)
    if n < max(2 * PARTS, batch_size):
        raise ValueError(f"Expected a stream of at least {max(2 * PARTS, batch_size)} examples, got {n}.")
    if error.function is MISCLASSIFICATION.function and not first.classes:
        raise ValueError(
            f"Expected classes as labels for `{error.name}`, got numbers. Declare them by `classes`, or give "
            "`study.streaming` another `metric`."
        )
    if varying and delay > 1:
        raise ValueError(f"Expected `varying` or `delay`, not both, got bursts that vary and labels {delay} late.")
    alike = _places(first, *_arrivals(n, 0, batch_size, varying))  # the same for all seeds unless bursts vary
    steps = len(_arrivals(n, 0, batch_size, varying)[0])
    scored = 0 if source.replicated else round(PREFIX * n)
    chance_before = _chance(first, error, slice(scored)) if scored else None
    path = _first_running(network, first.inputs[:1])
    lag_of = partial(_lag, network, path, window=n // PARTS) if path else None
    does = Pass(
        network=network,
        objective=loss or (_cross_entropy if first.classes else MEAN_SQUARED_ERROR.function),
        error=error.function,
        optimizer=optimizer or optax.sgd,
        masked=varying or delay > 1 or n % batch_size > 0,
    )

    check_transformation(does.optimizer(0.0))

    def places(state: Passing) -> Mapping[str, Any]:
        return state.stream if varying else alike

    def init(seed: int) -> Passing:
        stream = source(seed)
        _check_alike(first, stream, seed)
        params, model_state = network.init(seed)
        compared = extra_metrics and seed < TUNING_SEEDS_FROM  # tuning does not see them, and some take seconds
        found = baselines.errors(stream, delay=delay) if compared else {}
        return Passing(
            params=params,
            model_state=model_state,
            opt_state=does.optimizer(0.0).init(params),
            stream={
                **_arranged(stream, seed, batch_size, varying=varying, delay=delay),
                "baselines": _table([found.get(name) for name in baselines.names(classes=bool(first.classes))], n),
            },
            errors=_table([None], n)[0],
            lag=np.full((PARTS, 2), np.nan, np.float32),
            by_task=_table([None] * len(first.tasks), len(first.tasks)),
        )

    def step(state: Passing, t: jax.Array, learning_rate: jax.Array, arrays: Arrays) -> tuple[Passing, jax.Array]:
        stream = state.stream
        i, j = stream["tested"][t], stream["learned"][t]
        errors = does.test(state, stream["inputs"][i], stream["labels"][i])
        there = jnp.where(stream["there"][t], i, n)
        state = state._replace(errors=state.errors.at[there].set(errors, mode="drop"))
        state, value = does.train(state, stream["inputs"][j], stream["labels"][j], stream["known"][t], t, learning_rate)
        ends = {name: jnp.asarray(of) == t for name, of in places(state).items() if name in ("part", "task")}
        if lag_of:
            newest = jnp.asarray(places(state)["newest"])[t]
            state = state._replace(lag=_written(state.lag, ends["part"], partial(lag_of, state, newest)))
        if first.tasks:
            state = state._replace(by_task=_written(state.by_task, ends["task"], lambda: _by_task(does, state)))
        return state, value

    def evaluate(state: Passing, arrays: Arrays) -> dict[str, jax.Array]:
        found = {
            **_of_drifts(state.errors, first, scored),
            **(_of_tasks(does, forgetful, state) if first.tasks else {}),
            **dict(
                zip(
                    baselines.names(classes=bool(first.classes)),
                    state.stream["baselines"][:, scored:].mean(1),
                    strict=True,
                )
            ),
        }
        return {
            **{metric.name: found.get(metric.name, jnp.nan) for metric in extra_metrics},
            "validation": state.errors[: scored or n].mean(),
            "validation_sem": standard_error(state.errors[: scored or n]),
            **({} if chance_before is None else {"validation_chance": jnp.float32(chance_before)}),
            "test": state.errors[scored:].mean(),
            "finite": jnp.isfinite(state.errors).all(),
        }

    def series(state: Passing, arrays: Arrays) -> dict[str, jax.Array]:
        parts = jnp.asarray(np.arange(n) * PARTS // n)
        errors = jax.ops.segment_sum(state.errors, parts, PARTS) / jnp.bincount(parts, length=PARTS)
        return {"error": errors * (100 if error.percent else 1), "lag": state.lag[:, 0], "spread": state.lag[:, 1]}

    return Program(
        data={"streams": np.frombuffer(bytes.fromhex(_hash(first)), np.uint8)},
        init=init,
        step=step,
        evaluate=evaluate,
        steps=steps,
        last=max(1, steps // PARTS),
        chance=_chance(first, error, slice(scored, n)),
        series=series,
        description=first.description,
        libraries=tuple(dict.fromkeys((*source.libraries, *(["river"] if extra_metrics else [])))),  # of the baselines
    )


class Learner(NamedTuple):
    """A model that learns from a stream.

    Attributes:
        params: Parameters that the optimizer trains.
        model_state: State of the model that the optimizer does not train; see `Network`.
        opt_state: State of the optimizer.
    """

    params: Any
    model_state: Any
    opt_state: Any


def test_then_train(
    network: Network,
    inputs: np.ndarray,
    labels: np.ndarray,
    *,
    batch_size: int = 1,
    loss: Loss | None = None,
    error: Loss | None = None,
    optimizer: Callable[[Any], optax.GradientTransformation] = optax.sgd,
    seed: int = 0,
) -> tuple[Callable[[Learner, jax.Array], tuple[Learner, jax.Array]], Learner]:
    """Make a compiled pass over a stream: each burst is predicted, then learned from, all in one program.

    Args:
        network: The model; see `normlab.introspect.pure.network`.
        inputs: Shape (examples, ...).
        labels: Classes, int32, or numbers, float32; shape (examples,).
        batch_size: Examples of a burst; those at the end that do not fill one are left out.
        loss: `(outputs, labels) -> one number for each example`; softmax cross entropy or squared error unless given.
        error: Likewise; misclassification or squared error unless given.
        optimizer: Made from a learning rate.
        seed: Of the initial weights.

    Returns:
        `(learner, learning rate) -> (learner, errors)`, with an error for each example as predicted before it was
        learned from; and the learner to begin with.
    """
    classes = np.issubdtype(labels.dtype, np.integer)
    does = Pass(
        network=network,
        objective=loss or (_cross_entropy if classes else MEAN_SQUARED_ERROR.function),
        error=error or (MISCLASSIFICATION if classes else MEAN_SQUARED_ERROR).function,
        optimizer=optimizer,
        masked=False,
    )
    steps = len(labels) // batch_size
    bursts_of = [
        jnp.asarray(a[: steps * batch_size].reshape(steps, batch_size, *a.shape[1:])) for a in (inputs, labels)
    ]
    everything = jnp.ones(batch_size, bool)

    def run(learner: Learner, learning_rate: jax.Array) -> tuple[Learner, jax.Array]:
        def step(learner: Learner, at: tuple[jax.Array, ...]) -> tuple[Learner, jax.Array]:
            t, x, y = at
            errors = does.test(learner, x, y)
            return does.train(learner, x, y, everything, t, learning_rate)[0], errors

        learner, errors = jax.lax.scan(step, learner, (jnp.arange(steps), *bursts_of))
        return learner, errors.reshape(-1)

    params, model_state = network.init(seed)
    return jax.jit(run), Learner(params, model_state, optimizer(0.0).init(params))


def _arrivals(n: int, seed: int, batch_size: int, varying: bool) -> tuple[np.ndarray, np.ndarray]:
    """Bursts, as many for all seeds, which a compiled program needs: those that vary may begin with empty ones."""
    index, there = bursts(n, batch_size, varying=varying, seed=seed)
    round_of_sizes = 2 * batch_size - 1
    steps = -(-n // (batch_size * round_of_sizes)) * round_of_sizes if varying else len(index)
    empty = steps - len(index), index.shape[1]
    return np.concatenate([np.full(empty, n - 1, index.dtype), index]), np.concatenate([np.zeros(empty, bool), there])


def _arranged(stream: Stream, seed: int, batch_size: int, *, varying: bool, delay: int) -> dict[str, Any]:
    """The stream as arrays, and for each step what is tested and learned from.

    Returns:
        `inputs`, `labels`; `tested` and `learned`: examples, shape (steps, most); `there` and `known`: which of them
        count; what `_places` gives; `held_out_inputs` and `held_out_labels`: shape (tasks, examples, ...), where there
        are tasks.
    """
    tested, there = _arrivals(len(stream.labels), seed, batch_size, varying)
    late = min(-(-max(0, delay - 1) // batch_size), len(tested))
    arranged = {
        "inputs": stream.inputs,
        "labels": stream.labels,
        "tested": tested,
        "there": there,
        "learned": np.roll(tested, late, axis=0),
        "known": np.roll(there, late, axis=0) & (np.arange(len(tested)) >= late)[:, None],
        **_places(stream, tested, there),
    }
    if stream.held_out is None:
        return arranged
    inputs, labels, tasks = stream.held_out
    order = np.argsort(tasks, kind="stable").reshape(len(stream.tasks), -1)
    return arranged | {"held_out_inputs": inputs[order], "held_out_labels": labels[order]}


def _places(stream: Stream, tested: np.ndarray, there: np.ndarray) -> dict[str, np.ndarray]:
    """Where parts and tasks end.

    Returns:
        `newest`: the latest example of each step, shape (steps,); `part` and `task`: at which step each is over.
    """
    n = len(stream.labels)
    newest = np.maximum.accumulate(np.where(there, tested, 0).max(1))
    ends = {"part": [(part + 1) * n // PARTS for part in range(PARTS)], "task": [*stream.tasks[1:], n]}
    return {"newest": newest, **{name: np.searchsorted(newest, np.array(end) - 1) for name, end in ends.items()}}


def _written(rows: jax.Array, where: jax.Array, make: Callable[[], jax.Array]) -> jax.Array:
    """Rows, some of them new; what is new is made only where there are any."""
    return jax.lax.cond(where.any(), lambda: jnp.where(where[:, None], make(), rows), lambda: rows)


def _first_running(network: Network, inputs: np.ndarray) -> statistics.Path | None:
    """Find the first module that keeps a running mean; `None` where there is none, or the model is not Linen."""
    if network.module is None:
        return None
    shapes = jax.eval_shape(partial(network.module.init, train=False), jax.random.key(0), inputs)
    return next(iter(statistics.paths(shapes)), None)


def _lag(network: Network, path: statistics.Path, state: Passing, last: jax.Array, *, window: int) -> jax.Array:
    """Compare a norm's running statistics with the true ones of its inputs, over the latest examples.

    Returns:
        Absolute difference of means in true standard deviations, and running over true variance: means over features.
    """
    module: Any = network.module
    variables = {"params": state.params, **state.model_state[0]}
    inputs = jax.lax.dynamic_slice_in_dim(state.stream["inputs"], jnp.maximum(last - window + 1, 0), window)
    given = inputs_of(path, lambda: module.apply(variables, inputs, train=False))
    mean, var = statistics.read(variables, path)
    x = given[-1].reshape(-1, given[-1].shape[-1])
    true_mean, true_var = x.mean(0), x.var(0) + 1e-5
    return jnp.stack([(jnp.abs(mean - true_mean) / jnp.sqrt(true_var)).mean(), (var / true_var).mean()])


def _by_task(does: Pass, state: Any) -> jax.Array:
    """Error on the held-out examples of each task."""
    inputs, labels = state.stream["held_out_inputs"], state.stream["held_out_labels"]
    together = inputs.reshape(-1, *inputs.shape[2:]), labels.reshape(-1, *labels.shape[2:])
    return does.test(state, *together).reshape(labels.shape[:2]).mean(1)


def _of_drifts(errors: jax.Array, stream: Stream, scored: int = 0) -> dict[str, jax.Array]:
    """What drifts do to the error, means over the drifts of a stream.

    The level before a drift is the error over the `SETTLED` windows before it, a window being as long as a part of the
    stream. A drift has been recovered from with the first window whose error is within `RECOVERED_WITHIN` of that level
    and from which on that of all examples until the next drift is, too, of which there must be `SETTLED` windows: a
    single window may be lucky. Where there is none, all examples until the next drift count. Drifts that do not leave
    room for this are left out.

    Args:
        errors: Of each example.
        stream: Says where it drifts.
        scored: The first example that is reported on.
    """
    n, window = len(stream.labels), len(stream.labels) // PARTS
    found = []
    for drift, end in zip(stream.drifts, (*stream.drifts, n)[1:], strict=True):
        windows = (end - drift) // window
        if drift - SETTLED * window < scored or windows < SETTLED:
            continue
        before = errors[drift - SETTLED * window : drift].mean()
        after = errors[drift : drift + windows * window].reshape(windows, window).mean(1)
        on = jnp.cumsum(after[::-1])[::-1] / jnp.arange(windows, 0, -1)  # from each window to the last
        back = jnp.maximum(after, on)[: windows - SETTLED + 1] <= before + RECOVERED_WITHIN
        needed = jnp.where(back.any(), window * (1 + jnp.argmax(back)), end - drift)
        lost = jnp.where(jnp.arange(end - drift) < needed, errors[drift:end] - before, 0).sum()
        found.append([after[0] - before, needed, back.any(), lost])
    if not found:
        return {}
    drop, needed, recovered, lost = jnp.asarray(found).mean(0)
    return {DROP: drop, RECOVERY: needed, NOT_RECOVERED: 1 - recovered, LOST: lost}


def _of_tasks(does: Pass, forgetful: Network | None, state: Passing) -> dict[str, jax.Array]:
    """Errors on all tasks at the end, forgetting, and what statistics of all tasks together would change.

    Forgetting is the error on a task at the end minus the lowest since it was learned, a mean over all tasks but the
    last. For the cross-task effect (Pham et al., 2022) running statistics are replaced by those of the held-out
    examples of all tasks: once for every norm, since the statistics of one change what the next is given.
    """
    table = state.by_task
    since = jnp.where(jnp.tril(jnp.ones_like(table)) > 0, table, jnp.inf)
    found = {FINAL: table[-1].mean(), FORGETTING: (table[-1, :-1] - since[:-1].min(0)[:-1]).mean()}
    if forgetful:
        inputs = state.stream["held_out_inputs"]
        for _ in statistics.paths(state.model_state[0]):
            _, model_state = forgetful.train(
                state.params, state.model_state, inputs.reshape(-1, *inputs.shape[2:]), jnp.asarray(0)
            )
            state = state._replace(model_state=model_state)
        found[ALL_TASKS] = found[FINAL] - _by_task(does, state).mean()
    return found


def _hash(stream: Stream) -> str:
    """What a run's key knows of the streams: all of one of them."""
    places = {"drifts": np.array(stream.drifts), "tasks": np.array(stream.tasks)}
    return data_hash({"inputs": stream.inputs, "labels": stream.labels, **places})


def _table(rows: Sequence[np.ndarray | None], width: int) -> np.ndarray:
    """Rows of numbers, NaN where there are none."""
    table = np.full((len(rows), width), np.nan, np.float32)
    for row, values in zip(table, rows, strict=True):
        row[:] = np.nan if values is None else values
    return table


def _check_alike(first: Stream, stream: Stream, seed: int) -> None:
    """Raise unless a stream can be passed by the program of another."""
    ours, theirs = ((s.inputs.shape, s.drifts, len(s.tasks), s.classes) for s in (first, stream))
    if ours != theirs:
        raise ValueError(
            f"Expected streams of all seeds to be alike in shape, drifts, number of tasks and classes, got {ours} for "
            f"seed 0 and {theirs} for seed {seed}."
        )


def _cross_entropy(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels)


def _chance(stream: Stream, error: Error, part: slice) -> float | None:
    """The error of the best constant answer between two drifts, over a part of the stream."""
    if error.function is not MISCLASSIFICATION.function:
        return None
    concept = np.searchsorted(stream.drifts, np.arange(len(stream.labels)), side="right")
    labels, concept = stream.labels[part], concept[part]
    right = sum(np.bincount(labels[concept == one]).max() for one in np.unique(concept))
    return float(1 - right / len(labels))
