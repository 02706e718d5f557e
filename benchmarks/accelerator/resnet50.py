"""Stage `resnet50`: the share of a training step of ResNet-50 at 224 pixels that batch norm takes, by batch size.

A step is forward, backward and an update by SGD with momentum, on images that are on the device. Rows of kind `step`
have its time with batch norm, of this library and of Flax; with statistics that training does not take (`frozen`), so
that a scale and a bias per channel are left; and with no norm. Rows of kind `share` compare these four: the share of
batch norm is the time that a step without any norm saves, and the share of statistics the time that frozen ones save.

Weights and statistics are float32 throughout. In rows of bfloat16 the weights are cast for the products; in rows of
float32 the products have the precision that JAX takes by default, which is TF32 on GPUs that have it. The four programs
are compiled at the same time in threads, and measured in turns once all are there.
"""

import statistics
import time
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from benchmarks.accelerator.stage import Clock, Row, failed
from benchmarks.speed._timing import turns
from normlab import norms
from normlab.models.mlp import ConvNet
from normlab.models.resnet import ResNet50
from normlab.norms import Entry, Norm
from normlab.notation import PyTree
from normlab.study.training.compilation import memory_of

__all__ = ["rows"]

TURN, ROUNDS = 0.2, 5
"""Seconds of steps in a turn, and turns of each program."""


def _flax_batch_norm(train: bool, options: Mapping[str, Any]) -> nn.Module:
    return nn.BatchNorm(use_running_average=not train, **options)


def _frozen_batch_norm(train: bool, options: Mapping[str, Any]) -> nn.Module:
    return norms.get("batch").linen(train=False, **options)


def _no_nnx(*_: object) -> None:
    raise NotImplementedError("This stage measures Linen modules alone.")


NORMS = {
    "ours": norms.get("batch"),
    "none": norms.get("none"),
    "frozen": Norm(Entry(name="frozen_batch", title="frozen batch norm", linen=_frozen_batch_norm, nnx=_no_nnx)),
    "Flax": Norm(Entry(name="flax_batch", title="Flax batch norm", linen=_flax_batch_norm, nnx=_no_nnx)),
}


class Cell(NamedTuple):
    """A batch size, and the type of activations and of the weights in the products."""

    batch_size: int
    dtype: str


CELLS = (
    Cell(128, "bfloat16"),
    Cell(32, "bfloat16"),
    Cell(256, "bfloat16"),
    Cell(64, "bfloat16"),
    Cell(128, "float32"),
    Cell(32, "float32"),
    Cell(256, "float32"),
    Cell(64, "float32"),
)
TINY = (Cell(4, "bfloat16"),)


def rows(clock: Clock, *, tiny: bool, skip: Collection[str]) -> Iterator[Row]:
    """Yield the steps of one cell after the other, each followed by its shares; a cell begins if its time is there."""
    needed = 0.0
    for cell in TINY if tiny else CELLS:
        about: Row = {"batch_size": cell.batch_size, "dtype": cell.dtype, "size": 16 if tiny else 224}
        if clock.left() < needed:
            yield {"kind": "step", **about, **failed(TimeoutError(f"not begun, the cell before took {needed:.0f} s"))}
            continue
        start = time.monotonic()
        wanted = [name for name in NORMS if name not in skip]
        yield from ({"kind": row["kind"], **about, **row} for row in of_cell(cell, wanted, tiny=tiny))
        needed = time.monotonic() - start


def of_cell(cell: Cell, wanted: Collection[str], *, tiny: bool) -> Iterator[Row]:
    """Yield the steps of a cell and their shares."""
    with ThreadPoolExecutor(len(wanted)) as pool:
        futures = {name: pool.submit(prepared, NORMS[name], cell, tiny=tiny) for name in wanted}
    steps: dict[str, Step] = {}
    for name, future in futures.items():
        if error := future.exception():
            yield {"kind": "step", "norm": name, **failed(error)}
        else:
            steps[name] = future.result()
    times = measured(steps, 2 if tiny else ROUNDS)
    for name, seconds in times.items():
        yield {"kind": "step", "norm": name, **steps[name].columns(seconds, cell)}
    yield {"kind": "share", **shares({name: statistics.median(each) for name, each in times.items()})}


class Step:
    """A compiled step with its state.

    Args:
        step: `(state, images, labels) -> state`, which reuses the memory of the state.
        state: Parameters, optimizer and running statistics.
        batch: Images and labels.
        compile_s: Seconds to trace and compile.
    """

    def __init__(self, step: jax.stages.Compiled, state: PyTree, batch: tuple[jax.Array, jax.Array], compile_s: float):
        self._step, self._state, self._batch = step, state, batch
        self._compile_s = compile_s

    def run(self, count: int) -> float:
        """Make some steps; return the seconds of one."""
        start = time.perf_counter()
        for _ in range(count):
            self._state = self._step(self._state, *self._batch)
        jax.block_until_ready(self._state)
        return (time.perf_counter() - start) / count

    def columns(self, seconds: list[float], cell: Cell) -> Row:
        """Return the columns of a row."""
        memory = memory_of(self._step)
        return {
            "ms": 1e3 * statistics.median(seconds),
            "least_ms": 1e3 * min(seconds),
            "images_per_s": cell.batch_size / statistics.median(seconds),
            "compile_s": self._compile_s,
            "gb": memory and memory / 1e9,
            "turns": len(seconds),
        }


def prepared(norm: Norm, cell: Cell, *, tiny: bool) -> Step:
    """Compile a step, and put its state and a batch on the device."""
    start = time.perf_counter()
    net = ConvNet(norm) if tiny else ResNet50(norm)
    size = 16 if tiny else 224
    draw = np.random.default_rng(0)
    images = jnp.asarray(draw.normal(size=(cell.batch_size, size, size, 3)), cell.dtype)
    labels = jnp.asarray(draw.integers(0, net.classes, cell.batch_size))
    shapes = jax.eval_shape(partial(net.init, jax.random.key(0), train=True), images)
    variables = jax.tree_util.tree_map_with_path(partial(drawn, draw), shapes)
    parameters = variables.pop("params")
    optimizer = optax.sgd(0.1, momentum=0.9)
    state = jax.device_put((parameters, optimizer.init(parameters), variables))

    def loss(parameters: PyTree, model_state: PyTree, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, Any]:
        cast = jax.tree.map(lambda leaf: leaf.astype(cell.dtype), parameters)
        logits, after = net.apply({"params": cast, **model_state}, images, train=True, mutable=list(model_state))
        errors = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(logits, jnp.float32), labels)
        return errors.mean(), after

    def step(state: PyTree, images: jax.Array, labels: jax.Array) -> PyTree:
        parameters, opt_state, model_state = state
        gradients, after = jax.grad(loss, has_aux=True)(parameters, model_state, images, labels)
        updates, opt_state = optimizer.update(gradients, opt_state)
        return optax.apply_updates(parameters, updates), opt_state, dict(after)

    compiled = jax.jit(step, donate_argnums=0).lower(state, images, labels).compile()
    return Step(compiled, state, (images, labels), time.perf_counter() - start)


def drawn(draw: np.random.Generator, path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    """Draw a variable; Flax's own initializers would take longer to compile than a step."""
    if len(leaf.shape) > 1:
        deviation = (2 / np.prod(leaf.shape[:-1])) ** 0.5
        return draw.normal(scale=deviation, size=leaf.shape).astype(leaf.dtype)
    ones = path[-1].key in ("scale", "var")
    return np.full(leaf.shape, ones, leaf.dtype)


def measured(steps: Mapping[str, Step], rounds: int) -> dict[str, list[float]]:
    """Measure steps in turns; return the seconds of a step in each turn."""
    counts = {}
    for name, step in steps.items():
        step.run(1)
        counts[name] = max(1, round(TURN / step.run(2)))
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _, name in turns(list(steps), rounds):
        times[name].append(steps[name].run(counts[name]))
    return times


def shares(seconds: Mapping[str, float]) -> Row:
    """Compare the median times of steps; a share is missing where one of its steps is."""

    def saved(by: str, of: str) -> float | None:
        return 1 - seconds[by] / seconds[of] if {by, of} <= seconds.keys() else None

    both = {"ours", "Flax"} <= seconds.keys()
    return {
        "batch_norm": saved("none", "ours"),
        "statistics": saved("frozen", "ours"),
        "flax_batch_norm": saved("none", "Flax"),
        "ours_to_flax": seconds["ours"] / seconds["Flax"] if both else None,
    }
