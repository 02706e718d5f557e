"""What must not change when the house is rebuilt: `python -m tests.golden.record` writes it, `test_golden.py` compares.

`interface.json` has the names, kinds and defaults of the parameters of everything public in the layers, and the trees
of their variables. `bits.json` has hashes of outputs, state and gradients of every norm and cell in both APIs, which
hold on one kind of processor and one version of XLA. `help.txt` is what the command line says of itself, and
`analysis.json`, `cells.csv` and `runs.csv` are what is reported of the runs in `results.tar.gz`.
"""

import contextlib
import hashlib
import inspect
import io
import json
import os
import platform
import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from normlab import functional, linen, norms
from normlab import nnx as our_nnx
from tests.support.registered import ALL

FOLDER = Path(__file__).parent
REPORTED = {"analysis.json": "analysis.json", "cells.csv": "tables/cells.csv", "runs.csv": "tables/runs.csv"}
"""Files of a report by the name under which they are kept here."""

OPTIONS = (
    *ALL,
    "batch:ghost_batch_size=2",
    "batch:axis=1",
    "batch:momentum=None,unbiased_running_var=True",
    "batch:use_fast_variance=True",
    "batch:statistics='running'",
    "batch_renorm:r_max=1.5,d_max=0.5",
    "layer:reduction_axes=(1,2,3)",
    "group:num_groups=4",
    "group:group_size=2",
    "instance:epsilon=1e-3",
    "streaming:mix=(0.2,0.5,0.3)",
    "online:guard=None",
)
CELLS = {"simple": "SimpleCell", "lstm": "LSTMCell", "gru": "GRUCell"}
CELL_NORMS = (
    "none",
    "layer",
    "layer_per_gate",
    "rms",
    "group",
    "batch_step:max_steps=4",
    "batch_shared",
    "batch_input",
)
SHAPE = (4, 3, 2, 32)
SEQUENCE = (3, 5, 4)


def parameters_of(thing: Any) -> list[list[str]]:
    """Name, kind and default of each parameter; annotations are left out."""
    return [
        [p.name, p.kind.name, "" if p.default is p.empty else _text(p.default)]
        for p in inspect.signature(thing).parameters.values()
    ]


def _text(value: Any) -> str:
    return getattr(value, "__qualname__", None) or re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def tree_of(variables: Any) -> dict[str, str]:
    """Shape and dtype of each leaf by its path."""
    leaves = jax.tree_util.tree_flatten_with_path(variables)[0]
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def interface() -> dict[str, Any]:
    """Signatures of everything public in the layers, and the trees of norms and cells."""
    signatures = {
        f"{module.__name__}.{name}": parameters_of(thing)
        for module in (functional, linen, our_nnx)
        for name, thing in sorted(vars(module).items())
        if not name.startswith("_") and callable(thing) and getattr(thing, "__module__", "").startswith("normlab")
        if not (inspect.isclass(thing) and issubclass(thing, Exception))
    }
    return {"signatures": signatures, "trees": dict(trees())}


def trees() -> Iterator[tuple[str, dict[str, str]]]:
    """The variables of each norm and cell."""
    x, sequence = jnp.ones(SHAPE), jnp.ones(SEQUENCE)
    for norm in OPTIONS:
        yield f"linen {norm}", tree_of(jax.eval_shape(norms.get(norm).linen(train=True).init, jax.random.key(0), x))
        module = nnx.eval_shape(lambda norm=norm: nnx_norm(norm))
        yield f"nnx {norm}", tree_of(nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.RngState))))
    for cell, norm in ((cell, norm) for cell in CELLS.values() for norm in CELL_NORMS):
        module = linen.RNN(getattr(linen, cell)(8, norm=norm, use_running_average=False))
        yield f"linen {cell} {norm}", tree_of(jax.eval_shape(module.init, jax.random.key(0), sequence))


def nnx_norm(norm: str) -> Any:
    """The NNX module of a norm in training."""
    features = SHAPE[1] if norm == "batch:axis=1" else SHAPE[-1]
    return norms.get(norm).nnx(features, rngs=nnx.Rngs(0))


def varied(variables: Any) -> Any:
    """Variables that are all different from where they start."""
    rng = np.random.default_rng(0)

    def draw(leaf: Any) -> Any:
        whole = jnp.issubdtype(leaf.dtype, jnp.integer)
        return jnp.asarray(3 if whole else rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)

    return jax.tree.map(draw, variables)


def digest(values: Any) -> str:
    """A hash of the bits of all leaves, in their order."""
    whole = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(values)[0]:
        whole.update(f"{jax.tree_util.keystr(path)} {leaf.dtype}{list(leaf.shape)}".encode())
        whole.update(np.asarray(leaf).tobytes())
    return whole.hexdigest()[:16]


def inputs(shape: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    """An input with an offset, and a cotangent."""
    rng = np.random.default_rng(1)
    return jnp.asarray(100 + rng.normal(size=shape), jnp.float32), jnp.asarray(rng.normal(size=shape), jnp.float32)


def linen_bits(module: Any, shape: tuple[int, ...], mask: jax.Array | None, cotangent: jax.Array | None = None) -> str:
    """Output, new state and gradients of a Linen module in training."""
    x, dy = inputs(shape)
    variables = varied(jax.eval_shape(module.init, jax.random.key(0), x))
    given = {} if mask is None else {"mask": mask}

    def training(variables: Any, x: jax.Array, dy: jax.Array) -> Any:
        params, state = variables.get("params", {}), {k: v for k, v in variables.items() if k != "params"}

        def f(params: Any, x: jax.Array) -> Any:
            return module.apply({"params": params, **state}, x, **given, mutable=["batch_stats"])

        y, pull, new = jax.vjp(f, params, x, has_aux=True)
        return y, new, pull(dy)

    return digest(jax.jit(training)(variables, x, dy if cotangent is None else cotangent))


def nnx_bits(module: Any, mask: jax.Array | None) -> str:
    """Output, new state and gradients of an NNX norm in training."""
    x, dy = inputs(SHAPE)
    nnx.update(module, varied(nnx.state(module, nnx.Not(nnx.RngState))))
    given = {} if mask is None else {"mask": mask}
    graph, params, rest = nnx.split(module, nnx.Param, ...)

    @jax.jit
    def training(params: Any, rest: Any, x: jax.Array, dy: jax.Array) -> Any:
        def f(params: Any, x: jax.Array) -> Any:
            module = nnx.merge(graph, params, rest, copy=True)  # whose state may change at this level of tracing
            y = module(x, **given)
            return y, nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.Param)))

        y, pull, new = jax.vjp(f, params, x, has_aux=True)
        return y, new, nnx.to_pure_dict(pull(dy)[0]), pull(dy)[1]

    return digest(training(params, rest, x, dy))


def bits() -> dict[str, str]:
    """Hashes by API, norm and whether there is a mask."""
    mask = jnp.asarray(np.random.default_rng(2).random((4, 3, 2, 1)) < 0.7)
    found = {}
    for norm, where in ((norm, where) for norm in OPTIONS for where in (None, mask)):
        if where is not None and ("ghost" in norm or norm == "none"):
            continue
        masked = "" if where is None else " masked"
        found[f"linen {norm}{masked}"] = linen_bits(norms.get(norm).linen(train=True), SHAPE, where)
        found[f"nnx {norm}{masked}"] = nnx_bits(nnx_norm(norm), where)
    for cell, norm in ((cell, norm) for cell in CELLS.values() for norm in CELL_NORMS):
        module = linen.RNN(getattr(linen, cell)(8, norm=norm, use_running_average=False))
        cotangent = inputs((*SEQUENCE[:2], 8))[1]
        found[f"linen {cell} {norm}"] = linen_bits(module, SEQUENCE, None, cotangent)
    return found


def processor() -> str:
    """What decides the last bit besides the code: versions and the kind of processor."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else platform.processor()
    kind = sorted({line for line in flags.splitlines() if line.startswith(("model name", "flags"))})
    versions = f"jax {jax.__version__}, {platform.machine()}, {os.cpu_count()} processors, {len(jax.devices())} devices"
    return f"{versions}, {hashlib.sha256(repr(kind).encode()).hexdigest()[:8]}"


COMMANDS = ("", "run", "report", "merge", "verify", "list", "fold", "convert")


def help_texts() -> str:
    """What the command line says of itself, 80 columns wide."""
    from normlab.cli.main import main

    said = []
    for command in COMMANDS:
        arguments = [part for part in (command, "batch_size" if command == "run" else "", "--help") if part]
        text = _said(lambda arguments=arguments: main(arguments))
        said.append(f"$ normlab {' '.join(arguments)}\n{text}")
    return "\n".join(said)


def _said(call: Callable[[], object]) -> str:
    text, columns = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "80"
    try:
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            call()
    finally:
        os.environ.pop("COLUMNS") if columns is None else os.environ.update(COLUMNS=columns)
    return text.getvalue()


def reported(folder: Path) -> dict[str, str]:
    """The report's numbers of the kept runs, written in a folder."""
    from normlab.cli.main import main

    with tarfile.open(FOLDER / "results.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["report", str(folder / "results")]) == 0
    return {name: (folder / "results" / file).read_text() for name, file in REPORTED.items()}


def main() -> None:
    """Write all of it, with as many devices as the tests have."""
    import tests.conftest  # noqa: F401

    for name, content in (("interface.json", interface()), ("bits.json", {processor(): bits()})):
        (FOLDER / name).write_text(json.dumps(content, indent=1) + "\n")
    (FOLDER / "help.txt").write_text(help_texts())
    folder = Path(tempfile.mkdtemp())
    for name, text in reported(folder).items():
        (FOLDER / name).write_text(text)
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
