"""Learning from streams: the compiled pass against a plain loop, what it measures, and the comparison made of it."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from normlab import norms
from normlab.cli.main import main
from normlab.functional import StatisticsError
from normlab.introspect.pure import Network, network
from normlab.norms import Norm
from normlab.study.design.program import Program
from normlab.study.problems.streaming import PREQUENTIAL_ERROR
from normlab.study.streams.protocol import (
    ALL_TASKS,
    DROP,
    FINAL,
    FORGETTING,
    LOST,
    NOT_RECOVERED,
    PARTS,
    PREFIX,
    RECOVERY,
)
from normlab.study.streams.stream import Source, Stream, bursts
from normlab.study.training import prequential, stream_measures
from normlab.study.training.compilation import compile_program

N, FEATURES, CLASSES = 2 * PARTS + 7, 3, 4


class Linear(nn.Module):
    """Norm, then a dense layer."""

    norm: Norm
    outputs: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> jax.Array:
        """Map (batch, features) to (batch, outputs)."""
        counted = {} if mask is None else {"mask": mask[:, None]}
        return nn.Dense(self.outputs, name="head")(self.norm.linen(train=train, name="norm")(x, **counted))


def made(seed: int, *, n: int = N, tasks: tuple[int, ...] = (), drifts: tuple[int, ...] = ()) -> Stream:
    """Random examples; those held out of a task lie around its number."""
    random = np.random.default_rng(seed)
    of = np.repeat(np.arange(len(tasks)), 6)
    held_out = (random.normal(size=(len(of), FEATURES)) + of[:, None], random.integers(0, CLASSES, len(of)), of)
    return Stream(
        name="made",
        inputs=random.normal(size=(n, FEATURES)),
        labels=random.integers(0, CLASSES, n),
        classes=CLASSES,
        tasks=tasks,
        drifts=drifts,
        held_out=held_out if tasks else None,
    )


SOURCE = Source("made", made, True)


def program(norm: str = "none", source: Source = SOURCE, **options: Any) -> Program:
    """A pass over streams of `source`."""
    model = network(Linear, norms.get(norm), source(0).inputs[:2], outputs=CLASSES)
    return training(model, source, **options).program()


def training(model: Network, source: Source, **options: Any) -> prequential.PrequentialTraining:
    """Test-then-train of a model."""
    return prequential.PrequentialTraining(source=source, network=model, **{"error": PREQUENTIAL_ERROR, **options})


@functools.cache
def passed(norm: str = "none", source: Source = SOURCE, seed: int = 3, **options: Any) -> prequential.StreamState:
    """The state after a pass."""
    of = program(norm, source, **options)

    def train(state: Any) -> Any:
        step = functools.partial(of.step, learning_rate=jnp.float32(0.3), arrays={})
        return jax.lax.scan(lambda state, t: step(state, t), state, jnp.arange(of.steps))[0]

    return jax.jit(train)(of.init(seed))


def in_turn(seed: int, index: np.ndarray, there: np.ndarray, late: int) -> tuple[np.ndarray, np.ndarray]:
    """The same in float64, one burst after the other: softmax regression, tested before it learns."""
    stream = made(seed)
    model = network(Linear, norms.get("none"), stream.inputs[:2], outputs=CLASSES)
    head = model.init(seed)[0]["head"]
    w, b = np.asarray(head["kernel"], np.float64), np.asarray(head["bias"], np.float64)
    x, y, errors = stream.inputs.astype(np.float64), stream.labels, np.full(N, np.nan)
    for t in range(len(index)):
        now = index[t][there[t]]
        errors[now] = (x[now] @ w + b).argmax(-1) != y[now]
        if t >= late:
            known = index[t - late][there[t - late]]
            logits = x[known] @ w + b
            p = np.exp(logits - logits.max(-1, keepdims=True))
            g = p / p.sum(-1, keepdims=True) - np.eye(CLASSES)[y[known]]
            w, b = w - 0.3 * x[known].T @ g / max(1, len(known)), b - 0.3 * g.sum(0) / max(1, len(known))
    return errors, w


@pytest.mark.parametrize(
    ("options", "late"),
    [
        ({}, 0),
        ({"delay": 1}, 0),
        ({"delay": 6}, 5),
        ({"batch_size": 8}, 0),
        ({"batch_size": 8, "delay": 10}, 2),
        ({"batch_size": 4, "varying": True}, 0),
    ],
)
def test_each_example_is_tested_then_learned_once(options: dict[str, Any], late: int) -> None:
    state = passed(**options)
    index, there = bursts(N, options.get("batch_size", 1), varying=options.get("varying", False), seed=3)
    assert there.sum() == N
    errors, w = in_turn(3, index, there, late)
    assert not np.isnan(errors).any()
    np.testing.assert_array_equal(state.errors, errors)
    np.testing.assert_allclose(state.learner.params["head"]["kernel"], w, atol=1e-5)


def test_the_compiled_pass_by_itself_is_that_of_the_study() -> None:
    stream = made(3)
    model = network(Linear, norms.get("online"), stream.inputs[:2], outputs=CLASSES)
    run, learner = prequential.test_then_train(model, stream.inputs, stream.labels, seed=3)
    after, errors = run(learner, jnp.float32(0.3))
    state = passed("online")
    np.testing.assert_array_equal(errors, state.errors)
    jax.tree.map(np.testing.assert_array_equal, after.params, state.learner.params)
    jax.tree.map(np.testing.assert_array_equal, after.model_state, state.learner.model_state)
    assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(after.model_state[0]["_overwrite_with_gradient"]))


@pytest.mark.parametrize("norm", ["online", "batch:statistics='running'", "streaming", "layer"])
def test_examples_that_do_not_count_change_nothing(norm: str) -> None:
    def stream(seed: int, value: float = 0.0) -> Stream:
        found = made(seed)
        found.inputs[-1] = value
        return found

    index, there = bursts(N, 4, varying=True, seed=3)
    assert (index[~there] == N - 1).all()
    assert (~there).any()
    states = [
        passed(norm, Source("made", functools.partial(stream, value=value), True), batch_size=4, varying=True)
        for value in (0.0, 1e3)
    ]
    np.testing.assert_array_equal(states[0].errors[:-1], states[1].errors[:-1])


def test_a_statistic_over_one_example_is_refused() -> None:
    with pytest.raises(StatisticsError, match="more than one element"):
        passed("batch")


def of_drifts(errors: np.ndarray, drifts: tuple[int, ...], scored: int = 0) -> dict[str, float]:
    """What is found of errors along a stream."""
    found = stream_measures.drift_metrics(
        jnp.asarray(errors, jnp.float32), made(0, n=len(errors), drifts=drifts), scored
    )
    return {name: float(value) for name, value in found.items()}


def test_drops_and_recoveries_are_those_of_the_errors() -> None:
    errors = np.zeros(50 * 10)  # windows of 10, levels over 50
    errors[200:235] = 1  # the fourth window is half wrong, the fifth is right
    errors[300:] = 1  # never recovered from
    assert of_drifts(errors, (5, 200, 300)) == pytest.approx(
        {
            DROP: 1.0,
            RECOVERY: (50 + 200) / 2,
            NOT_RECOVERED: 0.5,
            LOST: (35 + 200) / 2,
        }
    )
    assert of_drifts(errors, (200,), scored=160) == {}
    assert of_drifts(errors, (480,)) == {}


def test_a_rise_that_stays_is_no_recovery_however_lucky_a_window() -> None:
    random, n = np.random.default_rng(0), 10_000
    found = []
    for rise in (0.05, 0.0):
        chances = np.where(np.arange(n) < n // 2, 0.2, 0.2 + rise)
        streams = [random.random(n) < chances for _ in range(20)]
        found.append([of_drifts(errors, (n // 2,))[NOT_RECOVERED] for errors in streams])
    assert np.mean(found[0]) >= 0.8
    assert np.mean(found[1]) <= 0.1


def test_forgetting_is_the_rise_since_the_best() -> None:
    table = np.array([[0.2, 0.9, 0.9], [0.5, 0.1, 0.9], [0.4, 0.6, 0.3]], np.float32)
    found = stream_measures.task_metrics(jnp.asarray(table))
    assert float(found[FORGETTING]) == pytest.approx((0.2 + 0.5) / 2)
    assert float(found[FINAL]) == pytest.approx((0.4 + 0.6 + 0.3) / 3)


def test_each_task_is_tested_when_one_ends() -> None:
    source = Source("tasks", functools.partial(made, tasks=(0, 40, 80)), True)
    state = passed(source=source)
    stream = source(3)
    assert stream.held_out is not None
    head = state.learner.params["head"]
    wrong = (stream.held_out[0] @ head["kernel"] + head["bias"]).argmax(-1) != stream.held_out[1]
    np.testing.assert_allclose(state.by_task[-1], np.asarray(wrong).reshape(3, 6).mean(1))
    assert not np.isnan(state.by_task).any()
    assert (state.by_task[0] != state.by_task[-1]).any()


def test_the_cross_task_effect_is_that_of_statistics_of_all_tasks() -> None:
    source = Source("tasks", functools.partial(made, tasks=(0, 40, 80)), True)
    norm = "batch:statistics='running',momentum=0.9"
    state = passed(norm, source)
    forgetful = network(Linear, norms.get(norm, momentum=0.0), source(0).inputs[:2], outputs=CLASSES)
    found = training(forgetful, source, forgetful=forgetful)._task_metrics(state)
    stream, norms_of = source(3), state.learner.params["norm"]
    assert stream.held_out is not None
    x = stream.held_out[0].astype(np.float64)
    x = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * norms_of["scale"] + norms_of["bias"]
    wrong = (x @ state.learner.params["head"]["kernel"] + state.learner.params["head"]["bias"]).argmax(
        -1
    ) != stream.held_out[1]
    expected = float(state.by_task[-1].mean() - np.asarray(wrong).mean())
    assert float(found[ALL_TASKS]) == pytest.approx(expected, abs=1e-6)


def test_lag_is_running_against_true_statistics() -> None:
    state, stream = passed("batch:statistics='running',momentum=0.9"), made(3)
    mean, var = np.zeros(FEATURES), np.ones(FEATURES)
    for x in stream.inputs.astype(np.float64):
        mean, var = mean + 0.1 * (x - mean), 0.9 * var + 0.09 * (x - mean) ** 2
    latest = stream.inputs[-(N // PARTS) :].astype(np.float64)
    true_mean, true_var = latest.mean(0), latest.var(0) + 1e-5
    expected = (np.abs(mean - true_mean) / np.sqrt(true_var)).mean(), (var / true_var).mean()
    np.testing.assert_allclose(state.lag[-1], expected, rtol=1e-4)
    assert not np.isnan(state.lag).any()
    assert np.isnan(passed("layer").lag).all()


def test_lag_of_continual_norm_is_of_what_its_groups_give() -> None:
    state = passed("continual:statistics='running',momentum=0.9,num_groups=1", batch_size=2)
    stream, index = made(3), bursts(N, 2)[0]
    x = stream.inputs.astype(np.float64)
    x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    mean, var = np.zeros(FEATURES), np.ones(FEATURES)
    for now in index[:-1]:
        batch = x[now].mean(0), x[now].var(0)
        mean, var = mean + 0.1 * (batch[0] - mean), 0.9 * var + 0.1 * (batch[1] + 0.9 * (batch[0] - mean) ** 2)
    last = x[N - 1]  # alone in its burst
    mean, var = mean + 0.1 * (last - mean), 0.9 * var + 0.09 * (last - mean) ** 2
    latest = x[-(N // PARTS) :]
    expected = (np.abs(mean - latest.mean(0)) / np.sqrt(latest.var(0) + 1e-5)).mean()
    np.testing.assert_allclose(state.lag[-1, 0], expected, rtol=1e-3)
    assert not np.isnan(state.lag).any()


def test_the_training_loss_is_of_examples_whatever_the_bursts() -> None:
    of = program(batch_size=4, varying=True)
    outcome = next(iter(compile_program(of, None, dict(of.data)).train([0.3], [0])))
    assert outcome.metrics["train_loss"] > 0.1


def test_chance_knows_tasks() -> None:
    def stream(seed: int) -> Stream:
        found = made(seed, drifts=(60,))
        found.labels[:60], found.labels[60:] = 1, 2
        return found

    assert program(source=Source("two", stream, True)).chance == 0


def test_chance_is_that_of_the_part_that_is_judged() -> None:
    """A single stream chooses by its beginning, which has more classes here than what is reported on."""

    def stream(seed: int) -> Stream:
        found = made(0)
        found.labels[round(PREFIX * N) :] = 1
        return found

    of, prefix = program(source=Source("one", stream, False)), round(PREFIX * N)
    assert of.chance == 0
    metrics = compile_program(of, None, dict(of.data)).train([0.3], [0])
    found = next(iter(metrics)).metrics
    most = np.bincount(stream(0).labels[:prefix]).max()
    assert found["validation_chance"] == pytest.approx(1 - most / prefix)
    error = found["validation"]
    assert found["validation_sem"] == pytest.approx((error * (1 - error) / prefix) ** 0.5, rel=1e-4)


def test_what_is_not_finite_is_no_answer() -> None:
    def stream(seed: int) -> Stream:
        found = made(seed)
        found.inputs[60:] *= 1e30
        return found

    of = program(source=Source("wild", stream, True))
    outcome = next(iter(compile_program(of, None, dict(of.data)).train([0.3], [0])))
    assert not outcome.metrics["finite"]
    assert np.isnan(outcome.metrics["test"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"varying": True, "delay": 5}, "`varying` or `delay`, not both"),
        ({"source": Source("numbers", lambda seed: numbers(), True)}, "Expected classes as labels"),
    ],
)
def test_passes_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        program(**options)


def numbers() -> Stream:
    """Targets instead of classes."""
    found = made(0)
    return Stream(name="numbers", inputs=found.inputs, labels=found.labels / 2, classes=0)


def test_a_single_stream_is_scored_behind_its_prefix() -> None:
    state = passed(source=Source("one", made, False))
    found = program(source=Source("one", made, False)).evaluate(state, {})
    scored = round(0.2 * N)
    assert float(found["validation"]) == pytest.approx(float(state.errors[:scored].mean()))
    assert float(found["test"]) == pytest.approx(float(state.errors[scored:].mean()))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Source("short", functools.partial(made, n=20), True), "stream of at least 100 examples, got 20"),
        (Source("odd", lambda seed: made(seed, n=N + seed), True), r"streams of all seeds to be alike.*\(110, 3\)"),
    ],
)
def test_streams_that_cannot_be_passed(source: Source, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        program(source=source).init(3)


FILE = """
from normlab import study
from normlab.study import streams


def model(norm, outputs):
    from normlab.models.mlp import MLP

    return MLP(norm, hidden=(8,), classes=outputs)


def source(stream):
    return streams.from_file(stream)


comparison = study.Comparison(
    name="mine",
    problems=(
        study.streaming(
            name="mine",
            model=model,
            source=source,
            options=(study.Option(name="stream", kind=study.FILE, metavar="PATH", help="my stream"),),
        ),
    ),
    norms=("none", "batch", "online"),
    baseline="none",
    curves=(
        study.Curve(
            name="burst",
            title="Bursts",
            factor=study.Factor(name="batch_size", label="examples", flag="--bursts", values=(1, 4), reference=1),
            config=lambda size: {"batch_size": size},
        ),
    ),
    tiers={"quick": study.Tier(epochs=1, learning_rates=(0.1, 0.3), tuning_seeds=1, seeds=2, extend=False)},
)
"""


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a comparison."""
    folder = tmp_path_factory.mktemp("mine")
    (folder / "mine.py").write_text(FILE)
    rows = np.random.default_rng(0).normal(size=(600, 2))
    lines = ["a,b,sum", *(f"{a},{b},{'more' if a + b > 0 else 'less'}" for a, b in rows)]
    (folder / "mine.csv").write_text("\n".join(lines))
    assert main(typed(folder)) == 0
    return folder / "out"


def typed(folder: Path) -> list[str]:
    """What is typed."""
    return ["run", f"{folder / 'mine.py'}", "--stream", f"{folder / 'mine.csv'}", "--output", f"{folder / 'out'}"]


def records(output: Path) -> list[dict[str, Any]]:
    """All records."""
    return [json.loads(path.read_text()) for path in sorted((output / "runs").rglob("*.json"))]


def test_what_cannot_be_is_invalid_with_the_reason(output: Path) -> None:
    of_batch = [r for r in records(output) if r["run"]["cell"]["norm"] == "batch"]
    alone = [r for r in of_batch if r["run"]["cell"]["config"]["batch_size"] == 1]
    assert {r["status"] for r in alone} == {"invalid"}
    assert {r["run"]["stage"] for r in alone} == {"tune"}
    assert all("more than one element" in r["reason"] for r in alone)
    assert {r["status"] for r in of_batch if r not in alone} == {"ok"}
    assert "more than one element" in (output / "report.html").read_text()


def test_baselines_stand_beside_the_norms(output: Path) -> None:
    from normlab.study.streams import baselines
    from normlab.study.streams.recorded import from_file

    stream = from_file(output.parent / "mine.csv")(0)
    scored = round(0.2 * len(stream.labels))
    expected = {name: errors[scored:].mean() for name, errors in baselines.errors(stream).items()}
    evaluated = [r for r in records(output) if r["run"]["stage"] == "evaluate"]
    assert len(evaluated) == 10
    for record in evaluated:
        assert {name: record["metrics"][name] for name in expected} == pytest.approx(expected, abs=1e-6)
    page = (output / "report.html").read_text()
    assert "<small>without a network</small>" in page
    assert all(name in page for name in expected)


def test_what_is_measured_along_the_stream_is_in_the_report(output: Path) -> None:
    page = (output / "report.html").read_text()
    assert "How far the running mean is from the true one" in page
    assert "before training" not in page
    evaluated = [r for r in records(output) if r["run"]["stage"] == "evaluate"]
    for record in evaluated:
        *_, last = record["series"]["error"]
        assert len(last) == PARTS
        assert None not in last


def test_going_on_does_nothing_more(output: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (output / "runs").rglob("*.json")}
    assert main(typed(output.parent)) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (output / "runs").rglob("*.json")}


def test_a_stream_that_is_not_there(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = typed(output.parent)
    assert main([*command[:2], "--output", f"{output.parent / 'other'}", "--stream", "nowhere.csv"]) == 2
    assert "nowhere.csv" in capsys.readouterr().err
    assert not (output.parent / "other").exists()


def test_the_file_of_the_comparison_on_streams_needs_its_stream(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "online", "--problems", "file", "--tier", "smoke", "--dry-run"]) == 2
    assert "--stream PATH" in capsys.readouterr().err
