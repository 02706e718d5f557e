"""The doctor has no warning about healthy models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks.doctor import healthy, planted
from normlab.doctor import examine

CHARTER = list(healthy.MODELS)[:7]


def alarms(report) -> list[tuple[str, str, str]]:
    return [(one.code, one.severity, one.path) for one in report.findings if one.severity != "note"]


def failures(report) -> list[str]:
    return [f"{one.code}: {one.why}" for one in report.skipped if "the check failed" in one.why]


def test_the_doctor_has_no_warning_about_a_healthy_model():
    report = examine(**healthy.build("MLP, batch norm, trained", 1, "bfloat16"))

    assert alarms(report) == []
    assert failures(report) == []
    assert {"NL204", "NL205", "NL206", "NL303", "NL304"} <= {*report.passed}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(healthy.MODELS))
def test_the_doctor_has_no_warning_about_any_of_them(name):
    report = examine(**healthy.build(name))

    assert alarms(report) == []
    assert failures(report) == []


def test_there_are_enough_models_beside_those_of_the_charter():
    assert len(healthy.MODELS) >= 20
    assert [name.split(",")[0] for name in CHARTER] == [
        "MLP",
        "conv net",
        "ResNet-20",
        "ResNet-20",
        "VGG-11",
        "ViT of 2 layers",
        "LSTM of Flax",
    ]


def test_half_precision_is_that_of_parameters_and_inputs_but_not_of_statistics(monkeypatch):
    model = healthy.models.MLP(healthy.BATCH, hidden=(4,))
    monkeypatch.setitem(healthy.MODELS, "small", lambda seed: healthy.fitted(model, healthy.images(), seed, steps=2))

    given = healthy.build("small", 0, jnp.bfloat16)

    assert {leaf.dtype.name for leaf in jax.tree.leaves(given["state"]["params"])} == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(given["state"]["batch_stats"])} == {"float32"}
    assert {batch[0].dtype.name for batch in given["batches"]} == {"bfloat16"}
    assert {batch[1].dtype.kind for batch in given["batches"]} == {"i"}


def test_half_precision_of_a_model_of_nnx_leaves_the_statistics_too(monkeypatch):
    def build(seed: int) -> healthy.Keywords:
        model = healthy.nnx_models.MLP(healthy.BATCH, inputs=3, hidden=(4,), rngs=nnx.Rngs(seed))
        optimizer = nnx.Optimizer(model, healthy.optax.adam(0.1), wrt=nnx.Param)
        return {"model": model, "state": (model, optimizer), "batches": [np.ones((2, 3), np.float32)]}

    monkeypatch.setitem(healthy.MODELS, "small", build)

    given = healthy.build("small", 0, jnp.bfloat16)

    model, optimizer = given["state"]
    assert given["model"] is model
    assert {leaf.dtype.name for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))} == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves(nnx.state(model, nnx.BatchStat))} == {"float32"}
    assert isinstance(optimizer, nnx.Optimizer)


def test_a_norm_that_is_frozen_by_an_option_of_its_own_is_a_note():
    given = planted.CASES["weight decay moves a frozen norm"].build(0)

    report = examine(given["model"], planted.variables_of(given["state"]), given["batches"], checks=["NL202"])

    assert [(one.code, one.severity, one.path) for one in report.findings] == [("NL202", "note", "norm")]
