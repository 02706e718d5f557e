"""Check that a model gives the same numbers after it was exported."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal, get_args

import jax
import numpy as np

from normlab.errors import nearest
from normlab.expect import refusal
from normlab.extras import MissingExtra, require
from normlab.tools.folding.verify import compare

__all__ = ["Backend", "check"]

Backend = Literal["jax", "tf", "onnx"]
"""Format of the export: StableHLO by `jax.export`, a TensorFlow function, or ONNX."""


def check(model: Callable[..., object], *args: jax.Array | np.ndarray, backend: Backend = "jax") -> float:
    """Export a model, run the export, and return its largest difference from the model.

    Args:
        model: A function of arrays, such as the result of `normlab.tools.fold`, with arrays as outputs.
        *args: Inputs.
        backend: `jax`: by `jax.export`, written and read back where `flatbuffers` is installed. `tf`: by
            `jax.experimental.jax2tf`. `onnx`: by `jax2onnx`, run by `onnxruntime`.

    Returns:
        The largest absolute difference of an output.

    Raises:
        BadInput: If a package of the backend is not installed, or the backend is unknown.

    Example:
        >>> check(jax.numpy.sin, np.ones(3, np.float32))
        0.0
    """
    known = get_args(Backend)
    if backend not in known:
        raise refusal(f"`backend` to be one of {', '.join(known)}", backend, nearest(str(backend), known))
    run = {"jax": _by_jax, "tf": _by_tensorflow, "onnx": _by_onnx}[backend]
    expected = jax.jit(lambda *args: model(*args))(*args)
    return compare(expected, run(model, args), 0.0).difference


def _by_jax(model: Callable[..., object], args: tuple[object, ...]) -> object:
    """Run a model after it was written as StableHLO and read back."""
    exported = jax.export.export(jax.jit(lambda *args: model(*args)))(*args)
    if find_spec("flatbuffers") is not None:
        exported = jax.export.deserialize(exported.serialize())
    return exported.call(*args)


def _by_tensorflow(model: Callable[..., object], args: tuple[object, ...]) -> object:
    """Run a model as a TensorFlow function."""
    if find_spec("tensorflow") is None:
        raise MissingExtra("Expected `tensorflow` to be installed, got none. Run `pip install tensorflow`.")
    from jax.experimental import jax2tf

    converted: Callable[..., object] = jax2tf.convert(lambda *args: model(*args))
    return jax.tree.map(np.asarray, converted(*args))


def _by_onnx(model: Callable[..., Any], args: tuple[Any, ...]) -> object:
    """Run a model as an ONNX graph."""
    require("export", "jax2onnx", "onnxruntime")
    import jax2onnx  # pyright: ignore[reportMissingImports]
    import onnxruntime  # pyright: ignore[reportMissingImports]

    shapes = [jax.ShapeDtypeStruct(np.shape(one), np.asarray(one).dtype) for one in args]
    graph = jax2onnx.to_onnx(lambda *args: model(*args), inputs=shapes)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    return session.run(None, {name: np.asarray(one) for name, one in zip(names, args, strict=True)})
