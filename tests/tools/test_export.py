"""Exports give the numbers of the model."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from normlab.errors import BadInput
from normlab.extras import MissingExtra
from normlab.tools import export
from normlab.tools.fold import Folded, fold
from tests.support.shaken import shake, shaken

ROWS = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)


def linen() -> Folded:
    net = nn.Sequential(
        [
            nn.Conv(8, (3,), use_bias=False),
            nn.BatchNorm(use_running_average=True),
            nn.relu,
            nn.Conv(8, (3,), feature_group_count=4),
            nn.BatchNorm(use_running_average=True),
            nn.Dense(3),
        ]
    )
    return fold(net, shaken(net.init(jax.random.key(0), ROWS)), ROWS)


def ours() -> Folded:
    rngs = nnx.Rngs(0)
    net = nnx.Sequential(nnx.Linear(4, 3, use_bias=False, rngs=rngs), nnx.BatchNorm(3, rngs=rngs), nnx.relu)
    shake(net)
    return fold(net, None, ROWS)


@pytest.mark.parametrize("make", [linen, ours])
def test_what_jax_exports_is_the_same_bit_by_bit(make: Any) -> None:
    folded = make()
    assert folded.report.folded == len(folded.report)
    assert export.check(folded, ROWS) == 0.0
    exported = jax.export.export(jax.jit(lambda x: folded(x)))(ROWS)
    again = jax.export.deserialize(exported.serialize())
    assert np.array_equal(again.call(ROWS), jax.jit(lambda x: folded(x))(ROWS))


def test_without_flatbuffers_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    monkeypatch.setattr(jax.export, "deserialize", None)
    assert export.check(jnp.sin, ROWS) == 0.0


def test_a_difference_is_seen() -> None:
    calls: list[int] = []

    def changing(x: jax.Array) -> jax.Array:
        calls.append(0)
        return x + len(calls)

    assert export.check(changing, np.zeros(2, np.float32)) == 1.0


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    monkeypatch.setattr("normlab.extras.find_spec", lambda name: None)
    with pytest.raises(MissingExtra) as error:
        export.check(jnp.sin, ROWS, backend="onnx")
    assert str(error.value) == (
        "Expected `jax2onnx` and `onnxruntime` to be installed, got none. Run `pip install 'normlab[export]'`."
    )
    with pytest.raises(MissingExtra) as error:
        export.check(jnp.sin, ROWS, backend="tf")
    assert str(error.value) == "Expected `tensorflow` to be installed, got none. Run `pip install tensorflow`."


def test_an_unknown_backend() -> None:
    with pytest.raises(BadInput) as error:
        export.check(jnp.sin, ROWS, backend="onx")  # pyright: ignore
    assert str(error.value) == "Expected `backend` to be one of jax, tf, onnx, got `onx`. Did you mean `onnx`?"


def test_onnx_by_packages_of_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of calls, with packages that only look like the real ones."""
    seen: dict[str, Any] = {}

    def to_onnx(function: Any, inputs: list[jax.ShapeDtypeStruct]) -> SimpleNamespace:
        seen["function"], seen["inputs"] = function, inputs
        return SimpleNamespace(SerializeToString=lambda: b"graph")

    class Session:
        def __init__(self, graph: bytes, providers: list[str]) -> None:
            assert graph == b"graph" and providers == ["CPUExecutionProvider"]

        def get_inputs(self) -> list[SimpleNamespace]:
            return [SimpleNamespace(name="in_0"), SimpleNamespace(name="in_1")]

        def run(self, names: None, given: dict[str, np.ndarray]) -> list[np.ndarray]:
            return [np.asarray(seen["function"](given["in_0"], given["in_1"])) + np.float32(0.5)]

    for name, members in (("jax2onnx", {"to_onnx": to_onnx}), ("onnxruntime", {"InferenceSession": Session})):
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("normlab.extras.find_spec", lambda name: object())
    x = np.ones(2, np.float32)
    assert export.check(jnp.subtract, x, 3 * x, backend="onnx") == 0.5
    assert seen["inputs"] == [jax.ShapeDtypeStruct((2,), np.float32)] * 2


@pytest.mark.slow
def test_onnx() -> None:
    pytest.importorskip("jax2onnx")
    pytest.importorskip("onnxruntime")
    assert export.check(linen(), ROWS, backend="onnx") < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("make", [linen, ours])
def test_tensorflow(make: Any) -> None:
    pytest.importorskip("tensorflow")
    assert export.check(make(), ROWS, backend="tf") < 1e-5
