"""The examination: what it refuses, what it leaves out, and that it changes nothing."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

from benchmarks.doctor.planted import Dense, Small, batches, fresh, start, step_of
from normlab.doctor import Thresholds, examine
from normlab.errors import BadInput
from normlab.linen import BatchNorm
from tests.support.shaken import fingerprint

MODEL = Dense(use_bias=True)
GIVEN = batches(count=2)


@pytest.fixture(scope="module")
def variables() -> Any:
    return fresh(MODEL, GIVEN[0][0])


class Silent(nn.Module):
    """A model with a batch norm that is not told its mode."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.BatchNorm(use_running_average=False)(nn.Dense(4)(x))


REFUSED = [
    ({"model": lambda x: x}, "Expected a Flax module, got a function. Pass the module"),
    ({"checks": ["NL999"]}, "Expected a code of a check, got `NL999`."),
    ({"ignore": ["NL1@norm"]}, "Expected a code of a check to ignore, got `NL1@norm`."),
    ({"limit": 0}, "Expected `limit` to be"),
    ({"steps": 0}, "Expected `steps` to be"),
    ({"batches": 3}, "Expected `batches` to be a list of batches, got one batch. Write `[batch]`."),
    ({"batches": np.ones((2, 64))}, "Expected `batches` to be a list of batches, got one batch."),
    ({"model": Small()}, "Expected `variables=None` for an NNX model, which has its own, got some."),
    ({"batches": [np.ones((2, 3))]}, "Expected `params/dense_0/kernel` to have shape (3, 32), got (64, 32)."),
    ({"batches": [np.ones((2, 64))], "call": lambda x: ((x, x), {})}, "Expected a model that can be called with these"),
    (
        {"batches": (np.ones((2, 64)), np.ones(2, int))},
        "got arrays of shapes (2, 64), (2,), which look like one batch. Write `[(inputs, labels)]`.",
    ),
    ({"batches": {"x": np.ones((2, 64))}}, "Expected `batches` to be a list of batches, got one batch."),
    ({"batches": [{"y": np.ones((2, 64))}]}, "Expected a batch with one of 'inputs', 'image', 'x'"),
    ({"step": lambda state, batch: state}, "Expected `step` and `state` with each other, got one alone."),
    ({"step": lambda state, batch: state, "state": 1, "variables": None}, "Expected a state with `params`"),
    (
        {"variables": {"params": {}}},
        "Expected variables with `batch_stats/norm_0/mean` of shape (32,), got none of this name.",
    ),
    ({"model": Silent()}, "Expected to know how the model is told to train"),
]


@pytest.mark.parametrize(("keywords", "sentence"), REFUSED)
def test_bad_input_is_refused_in_one_sentence(variables: Any, keywords: dict[str, Any], sentence: str) -> None:
    given: dict[str, Any] = {"model": MODEL, "variables": variables, "batches": GIVEN, "checks": ["NL101"], **keywords}
    if isinstance(given["model"], Silent):
        given["variables"] = given["model"].init(jax.random.key(0), GIVEN[0][0])
    with pytest.raises(BadInput) as error:
        examine(**given)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_without_numbers_only_the_structure_is_checked() -> None:
    shape = jax.ShapeDtypeStruct((32, 64), jnp.float32)
    report = examine(MODEL, None, [shape])
    assert [one.code for one in report.findings] == ["NL101"]
    assert {"NL102", "NL106", "NL113"} <= set(report.passed)
    skipped = {one.code: one.why for one in report.skipped}
    assert skipped["NL302"] == "no variables were given."
    assert skipped["NL204"] == "no `step` was given."
    assert report.measurements == {}


def test_without_a_batch_nothing_is_checked_and_the_reason_is_said(variables: Any) -> None:
    report = examine(MODEL, variables)
    assert not report.findings and not report.passed
    assert {one.why for one in report.skipped} >= {"no batch was given, not even its shape.", "no batch was given."}


def test_findings_are_ignored_by_code_and_path(variables: Any) -> None:
    for ignore, paths in (([], ["norm_0", "norm_1"]), (["NL101@*_0"], ["norm_1"])):
        (finding,) = examine(MODEL, variables, GIVEN, checks=["NL101"], ignore=ignore).findings
        assert [finding.path, *finding.others] == paths
    assert not examine(MODEL, variables, GIVEN, checks=["NL101"], ignore=["NL101"]).findings
    (note,) = examine(MODEL, variables, GIVEN, checks=["NL106"], ignore=["NL106@head"]).findings
    assert (note.severity, note.title) == ("note", "nothing to ignore for `NL106@head`")


def test_nothing_given_is_changed(variables: Any) -> None:
    model = Small(use_bias=True)
    before = fingerprint(variables), fingerprint(nnx.state(model)), GIVEN[0][0].tobytes()
    examine(MODEL, variables, GIVEN, checks=["NL101", "NL203", "NL302"])
    examine(model, None, GIVEN, checks=["NL101", "NL203", "NL302"])
    assert before == (fingerprint(variables), fingerprint(nnx.state(model)), GIVEN[0][0].tobytes())


def test_the_report_is_json_and_says_whether_all_is_well(variables: Any) -> None:
    report = examine(MODEL, variables, GIVEN, checks=["NL101", "NL302"])
    plain = json.loads(report.json())
    assert [one["code"] for one in plain["findings"]] == ["NL101"]
    assert "seconds" not in plain and "seconds" in json.loads(report.json(timings=True))
    assert report.ok() and not report.ok("note") and report.by_code["NL101"][0].others == ("norm_1",)
    with pytest.raises(BadInput, match="Expected `at` to be `error`, `warning` or `note`, got `fatal`"):
        report.ok("fatal")  # pyright: ignore[reportArgumentType]
    assert str(report).startswith("NL101 note at `norm_0` and 1 more: ")


def test_measurements_are_those_of_the_input(variables: Any) -> None:
    report = examine(MODEL, variables, GIVEN)
    dense = variables["params"]["dense_0"]
    x = np.concatenate([one for one, _ in GIVEN]) @ np.asarray(dense["kernel"], np.float64) + np.asarray(dense["bias"])
    found = report.measurements["norm_0"]
    np.testing.assert_allclose(found.mean, x.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.var, x.var(0), rtol=1e-5)
    assert found.running_mean is not None and not found.running_mean.any()
    np.testing.assert_allclose(found.effective, 32, rtol=1e-5)


def test_thresholds_move_a_check() -> None:
    x = batches(8)
    variables = fresh(MODEL, x[0][0])
    assert not examine(MODEL, variables, x, checks=["NL302"]).findings
    (finding,) = examine(MODEL, variables, x, checks=["NL302"], thresholds=Thresholds(effective=9)).findings
    assert finding.threshold == 9 and finding.evidence["effective samples"] == pytest.approx(8)


class Scanned(nn.Module):
    """Three layers in a scan, each with statistics of its own."""

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        def body(block: Any, x: Any, _: None) -> Any:
            return block(x), None

        scan = nn.scan(body, variable_axes={"params": 0, "batch_stats": 0}, split_rngs={"params": True}, length=3)
        return nn.Dense(10)(scan(Block(train, name="layers"), x, None)[0])


class Block(nn.Module):
    train: bool

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Dense(64, use_bias=False)(x)
        return nn.relu(nn.BatchNorm(use_running_average=not self.train, name="norm")(x))


def test_runs_of_a_scan_have_paths_of_their_own() -> None:
    model = Scanned()
    variables = model.init(jax.random.key(0), GIVEN[0][0], train=False)
    report = examine(model, variables, GIVEN)
    assert list(report.measurements) == ["layers/norm[0]", "layers/norm[1]", "layers/norm[2]"]
    assert report.ok()
    means = [one.mean for one in report.measurements.values()]
    assert not np.allclose(means[0], means[1])


class Reversed(nn.Module):
    """Two batch norms whose names are not in the order of their calls."""

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        for name in ("z", "m", "a"):
            x = nn.Dense(32, use_bias=False, name=f"dense_{name}")(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, name=name)(x))
        return nn.Dense(10)(x)


def test_the_first_norm_is_the_first_that_is_called() -> None:
    model, given = Reversed(), [x + i for i, (x, _) in enumerate(batches(count=4))]
    report = examine(model, fresh(model, given[0]), given, checks=["NL305"])
    assert list(report.measurements) == ["z", "m", "a"]
    assert [one.path for one in report.findings] == ["z"]


class Ensemble(nn.Module):
    """Four models side by side, whose variables all have an axis in front."""

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        axes = {"params": 0, "batch_stats": 0}
        lifted = nn.vmap(Block, variable_axes=axes, split_rngs={"params": True}, in_axes=None, axis_size=4)
        return lifted(train, name="nets")(x)


def test_an_ensemble_is_no_set_of_replicas() -> None:
    model = Ensemble()
    variables = fresh(model, GIVEN[0][0])
    assert {np.shape(leaf)[0] for leaf in jax.tree.leaves(variables)} == {4}
    report = examine(model, variables, GIVEN, checks=["NL102", "NL208", "NL302"])
    assert not report.findings and not report.skipped
    assert {"NL102", "NL208"} <= set(report.passed)


def test_each_network_of_an_ensemble_is_measured_as_if_it_were_alone() -> None:
    model = Ensemble()
    variables = fresh(model, GIVEN[0][0])
    together = examine(model, variables, GIVEN, checks=["NL302"]).measurements
    assert list(together) == [f"nets/norm[{i}]" for i in range(4)]
    kernels = np.asarray(variables["params"]["nets"]["Dense_0"]["kernel"])
    x = np.concatenate([x for x, _ in GIVEN])
    for i, kernel in enumerate(kernels):
        assert together[f"nets/norm[{i}]"].mean == pytest.approx((x @ kernel).mean(0), abs=1e-5)


class OverExamples(nn.Module):
    """A layer norm that `vmap` runs for each example, with the same parameters."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        lifted = nn.vmap(nn.LayerNorm, variable_axes={"params": None}, split_rngs={"params": False})
        return nn.Dense(10)(lifted(name="norm")(x))


def test_norms_of_single_examples_under_vmap_are_left_out_with_the_reason() -> None:
    model = OverExamples()
    report = examine(model, model.init(jax.random.key(0), GIVEN[0][0]), GIVEN, checks=["NL103", "NL302"])
    assert "NL103" in report.passed
    assert [one.why for one in report.skipped] == ["the model has no norm that can be measured."]


class Called(nn.Module):
    """A norm of the first layer that is called again, on what the second makes of its output."""

    factor: float

    def setup(self) -> None:
        self.norm, self.head = nn.BatchNorm(name="norm"), nn.Dense(10)

    def __call__(self, x: Any, *, train: bool) -> Any:
        one = self.norm(x, use_running_average=not train)
        return self.head(one + self.norm(self.factor * x, use_running_average=not train))


@pytest.mark.parametrize(("factor", "severity"), [(1.0, "note"), (1.1, "note"), (4.0, "warning")])
def test_a_norm_that_is_called_twice_on_inputs_that_are_alike_is_a_note(factor: float, severity: str) -> None:
    model = Called(factor)
    variables = model.init(jax.random.key(0), GIVEN[0][0], train=False)
    (finding,) = examine(model, variables, GIVEN, checks=["NL113"]).findings
    assert (finding.severity, finding.path, finding.evidence["calls"]) == (severity, "norm", 2)
    (unmeasured,) = examine(model, None, [jax.ShapeDtypeStruct((32, 64), np.float32)], checks=["NL113"]).findings
    assert unmeasured.severity == "warning"


def learned(model: nn.Module) -> Any:
    """Return a state whose running statistics are those of the data, as after a training."""
    state: Any = start(model, optax.sgd(0.1), GIVEN[0][0])
    step = step_of(model, optax.sgd(0.1))
    for i in range(30):
        state = step(state, GIVEN[i % 2])
    return state


def step_that_evaluates(model: nn.Module) -> Any:
    """Return a step that trains a model by its running statistics."""

    @jax.jit
    def step(state: Any, batch: Any) -> Any:
        def loss(params: Any) -> Any:
            y = model.apply({"params": params, "batch_stats": state["batch_stats"]}, batch[0], train=False)
            return optax.softmax_cross_entropy_with_integer_labels(y, batch[1]).mean()

        gradients = jax.grad(loss)(state["params"])
        return {**state, "params": jax.tree.map(lambda a, b: a - 0.1 * b, state["params"], gradients)}

    return step


def test_a_step_that_evaluates_norms_by_learned_statistics_loses_no_updates() -> None:
    model = Dense()
    state, step = learned(model), step_that_evaluates(model)
    state["batch_stats"] = jax.tree.map(lambda leaf: 2 * leaf + 1, state["batch_stats"])  # of other data
    report = examine(model, None, GIVEN, step=step, state=state)
    assert [(one.code, one.severity, one.path) for one in report.findings] == [("NL202", "note", "norm_0")]
    fresh_state = start(model, optax.sgd(0.1), GIVEN[0][0])
    codes = examine(model, None, GIVEN, step=step, state=fresh_state, checks=["NL202", "NL205"]).by_code
    assert codes.keys() == {"NL205"}


class Two(nnx.Module):
    """A model of NNX with a trunk and a head."""

    def __init__(self) -> None:
        rngs = nnx.Rngs(0)
        self.trunk, self.norm = nnx.Linear(64, 16, use_bias=False, rngs=rngs), nnx.BatchNorm(16, rngs=rngs)
        self.head, self.last = nnx.BatchNorm(16, rngs=rngs), nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.last(self.head(nnx.relu(self.norm(self.trunk(x)))))


def test_a_norm_of_nnx_that_evaluates_beside_others_that_train_is_meant_if_it_has_learned() -> None:
    model = Two()
    model.train()
    model.norm.eval()
    options: dict[str, Any] = {"checks": ["NL202", "NL303"]}
    assert [one.severity for one in examine(model, None, GIVEN, **options).findings] == ["error"]
    model.norm.mean[...] += 1
    assert [(one.code, one.severity, one.path) for one in examine(model, None, GIVEN, **options).findings] == [
        ("NL202", "note", "norm")
    ]
    model.eval()  # as a whole: it was only given so
    assert "NL202" not in examine(model, None, GIVEN, **options).by_code


class Noisy(nn.Module):
    """Noise by hand between two norms, in training alone."""

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, name="before")(x)
        x = x + jax.random.normal(self.make_rng("dropout"), x.shape) if train else x
        return nn.Dense(10)(nn.BatchNorm(use_running_average=not train, momentum=0.9, name="behind")(x))


class NoisyInNNX(nnx.Module):
    """The same in NNX."""

    def __init__(self) -> None:
        self.rngs = nnx.Rngs(0)
        self.before, self.behind = (nnx.BatchNorm(64, momentum=0.9, rngs=self.rngs) for _ in range(2))
        self.head = nnx.Linear(64, 10, rngs=self.rngs)

    def __call__(self, x: Any) -> Any:
        x = self.before(x)
        return self.head(self.behind(x + jax.random.normal(self.rngs.dropout(), x.shape)))


@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_norms_behind_random_numbers_that_cannot_be_turned_off_are_not_compared(library: str) -> None:
    model: Any = Noisy() if library == "linen" else NoisyInNNX()
    if library == "linen":
        variables: Any = jax.tree.map(np.array, fresh(model, GIVEN[0][0]))
        for statistics in variables["batch_stats"].values():
            statistics["mean"] += 1  # no longer as at the start
    else:
        variables = None
        for norm in (model.before, model.behind):
            norm.mean[...] += 1
    report = examine(model, variables, GIVEN, checks=["NL304", "NL306"])
    reason = (
        "the output of `behind` changes with the random numbers of a call, which are no dropout of Flax that can be"
    )
    assert [(one.code, one.why) for one in report.skipped] == [
        (code, f"{reason} turned off.") for code in ("NL304", "NL306")
    ]
    assert [(one.code, one.path) for one in report.findings] == [("NL304", "before")]


def test_what_could_not_be_measured_is_skipped_and_never_passed() -> None:
    x = [np.where(np.arange(64) == 0, np.nan, one).astype(np.float32) for one, _ in GIVEN]
    report = examine(MODEL, fresh(MODEL, GIVEN[0][0]), x)
    assert [one.path for one in report.findings if one.code == "NL311"] == ["norm_0"]
    reasons = {one.code: one.why for one in report.skipped}
    assert reasons["NL302"] == reasons["NL307"] == "from `norm_0` on, numbers are not finite."
    assert not {"NL302", "NL307"} & set(report.passed)


class Backbone(nn.Module):
    """A backbone that evaluates, with a head that trains."""

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        x = nn.relu(nn.BatchNorm(use_running_average=True, momentum=0.99, name="still")(x))
        x = BatchNorm(use_running_average=not train, frozen=True, name="frozen")(x)
        return nn.Dense(10)(nn.BatchNorm(use_running_average=not train, name="learns")(x))


def test_norms_frozen_on_purpose_are_a_note_apart_from_the_error() -> None:
    model = Backbone()
    report = examine(model, fresh(model, GIVEN[0][0]), GIVEN, checks=["NL110", "NL202"], steps=50)
    assert [(one.code, one.severity, one.path, one.others) for one in report.findings] == [
        ("NL202", "error", "still", ()),
        ("NL110", "warning", "learns", ()),
        ("NL202", "note", "frozen", ()),
    ]


def test_a_new_head_on_a_trained_backbone_is_not_said_to_be_forgotten() -> None:
    model = Dense()
    variables = jax.tree.map(np.array, fresh(model, GIVEN[0][0]))
    variables["batch_stats"]["norm_0"]["mean"] += 1
    assert not examine(model, variables, GIVEN, checks=["NL201"]).findings
    variables["params"]["norm_1"]["scale"] *= np.linspace(1, 2, 32, dtype=np.float32)
    assert [one.path for one in examine(model, variables, GIVEN, checks=["NL201"]).findings] == ["norm_1"]


class Mixer(nn.Module):
    """Token mixing: a dense layer over positions between two transposes."""

    back: bool

    @nn.compact
    def __call__(self, x: Any) -> Any:
        x = nn.Dense(16, name="embed")(x.reshape(-1, 8, 8))
        x = nn.Dense(8, name="mix")(x.swapaxes(1, 2))
        return nn.Dense(10)(nn.LayerNorm(name="norm")(x.swapaxes(1, 2) if self.back else x).mean(1))


def test_a_transpose_that_undoes_another_moves_no_axis() -> None:
    model = Mixer(back=True)
    variables = model.init(jax.random.key(0), GIVEN[0][0])
    assert not examine(model, variables, GIVEN, checks=["NL105"]).findings


class Flattened(nn.Module):
    """A batch norm of rows that are the frames of examples."""

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        rows = x.reshape(len(x) * 5, -1)
        rows = nn.BatchNorm(use_running_average=not train, name="norm")(rows)
        return nn.Dense(10)(rows.reshape(len(x), -1))


def test_rows_that_are_parts_of_examples_are_no_examples() -> None:
    rng = np.random.default_rng(0)
    given = [np.repeat(rng.normal(size=(16, 1, 40)), 5, axis=1).astype(np.float32) for _ in range(5)]
    model = Flattened()
    report = examine(model, fresh(model, given[0]), given, checks=["NL302", "NL305"])
    assert report.measurements["norm"].effective == pytest.approx(16, rel=1e-3)
    assert not report.findings


def test_batches_of_different_sizes_are_compared_by_their_sizes() -> None:
    rng = np.random.default_rng(0)
    given = [rng.normal(size=(size, 64)).astype(np.float32) for size in (32, 32, 32, 32, 1)]
    model = Dense()
    assert not examine(model, fresh(model, given[0]), given, checks=["NL305"]).findings


def test_an_entry_of_ignore_that_was_not_checked_is_no_finding(variables: Any) -> None:
    assert not examine(MODEL, variables, GIVEN, checks=["NL106"], ignore=["NL204", "NL206@head"]).findings


@pytest.mark.filterwarnings("ignore:Some donated buffers were not usable")
def test_a_step_may_give_its_arguments_away() -> None:
    model, given = Dense(), [tuple(map(jnp.asarray, one)) for one in GIVEN]
    optimizer = optax.sgd(0.1)
    step = jax.jit(step_of(model, optimizer), donate_argnums=(0, 1))
    state = start(model, optimizer, given[0][0])
    report = examine(model, None, given, step=step, state=state, checks=["NL204", "NL302"])
    assert (report.skipped, set(report.passed)) == ((), {"NL204", "NL302"})


@pytest.mark.parametrize(
    ("optimizer", "found"),
    [
        (optax.noisy_sgd(1e-2, key=0), False),  # it moves parameters at no gradient, whatever their size
        (optax.contrib.schedule_free_adamw(1e-3), False),
        (optax.contrib.schedule_free_adamw(1e-3, weight_decay=1e-2), True),
        (optax.chain(optax.add_decayed_weights(1e-4), optax.noisy_sgd(1e-2, key=0)), True),
        (optax.chain(optax.add_decayed_weights(1e-4), optax.adam(1e-3)), True),  # steps of a size of their own
        (optax.lion(1e-3), True),
        (optax.adam(1e-3), False),
    ],
)
def test_weight_decay_is_a_move_that_depends_on_the_parameters(
    optimizer: optax.GradientTransformation, found: bool, variables: Any
) -> None:
    report = examine(MODEL, variables, GIVEN, optimizer=optimizer, checks=["NL206"])
    assert [one.code for one in report.findings] == ["NL206"] * found
    assert not report.skipped
