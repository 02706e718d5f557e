"""How fast are the norms, compared with those of Flax, equinox, haiku, Keras on JAX, and PyTorch?

Forward, and forward plus backward (gradients of input, scale and bias), in one process: contenders take turns in
shuffled rounds, and the table contains medians, and the ratio of our time to that of the fastest of the others on JAX,
in medians and in minima. For reference there are columns of PyTorch, eager on two threads, and of Flax with
`use_fast_variance=False`: `two-pass`. Compile time is not included.

    python -m benchmarks.speed.layers                                       # all norms and shapes, each norm alone
    python -m benchmarks.speed.layers --context program --norms layer,batch --shapes 2048x768,16x32x32x64
    python -m benchmarks.speed.layers --output benchmarks/results/layers-cpu  # writes .csv and .md

Contexts:
    alone      the norm as a compiled program
    program    Dense - norm - ReLU - Dense, as one compiled program
    vmap       8 models side by side, each with an eighth of the batch
    scan       20 steps of one compiled loop; an output is the next input, and training moves scale and bias

All contenders get the same epsilon and otherwise the defaults of their libraries, for batch norm with running
statistics: Flax, haiku's batch and instance norm, and equinox take other formulas for the variance than ours, and those
that take the mean of squares lose the digits of data far from 0. Features are last, but for the batch, group and
instance norms of equinox, which get them in its layout, after the batch. Each contender that is measured is first
compared with float64 NumPy at a small size.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from benchmarks.speed._peers import EPSILON, GROUPS, LIBRARIES, NORMS, PACKAGES, Layer, torch_call
from benchmarks.speed._shapes import SHAPES
from benchmarks.speed._timing import at_least_one, environment, interleave, ratio, write
from benchmarks.speed.norms import FORWARD, TRAINING, Call, draw, shape_of, sizes

CONTEXTS = ("alone", "program", "vmap", "scan")
MODELS, STEPS = 8, 20
SMALL_SHAPES = ("2048x768", "16x32x32x64", "4x56x56x256")
BARS = {FORWARD: 1.25, TRAINING: 1.0}
"""Largest acceptable ratio to the fastest peer on JAX."""

TITLE = "Speed of the norms beside other libraries"
OURS, TORCH, TWO_PASS = "ours", "torch", "two-pass"
COLUMNS = (*LIBRARIES, TORCH)
HEADING = (
    f"{'norm':10}{'shape':14}{'what':20}{''.join(f'{name:>9}' for name in COLUMNS)}"
    f"{'ratio':>8}   {'quartiles':14}{'minima':>7}  to"
)

Step = Callable[..., Any]
"""`(params, state, x) -> (y, state)`, or `(params, state, x, dy) -> (y, state, gradients)`."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contender; milliseconds over rounds, and ratios of ours to it within rounds."""

    norm: str
    shape: str
    context: str
    what: str
    contender: str
    ms: float
    least_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    ratio_of_minima: float
    rounds: int


class Comparison(NamedTuple):
    """All contenders of one norm at one shape."""

    rows: Sequence[Row]

    @property
    def closest(self) -> Row:
        """The fastest of the others on JAX, with the defaults of their libraries."""
        return min((row for row in self.rows if row.contender not in (OURS, TORCH, TWO_PASS)), key=lambda row: row.ms)

    @property
    def within_bar(self) -> bool:
        """Check the ratio to the fastest of the others on JAX."""
        return self.closest.ratio <= BARS[self.closest.what]

    def __str__(self) -> str:
        """Return a line of the table; `!` marks a ratio over the bar."""
        one, times = self.closest, {row.contender: f"{row.ms:.2f}" for row in self.rows}
        columns = "".join(f"{times.get(name, '-'):>9}" for name in COLUMNS)
        return (
            f"{one.norm:10}{one.shape:14}{one.what:20}{columns}"
            f"{one.ratio:8.2f}{' ' if self.within_bar else '!'}  {f'{one.ratio_low:.2f} to {one.ratio_high:.2f}':14}"
            f"{one.ratio_of_minima:7.2f}  {one.contender}"
        )


def main() -> None:
    """Measure, print, and write files if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context", choices=CONTEXTS, default=CONTEXTS[0])
    parser.add_argument("--norms", default=",".join(NORMS), help="comma-separated")
    parser.add_argument("--shapes", help="comma-separated names, or sizes as in 64x8x8x32")
    parser.add_argument("--rounds", type=at_least_one, default=21)
    parser.add_argument("--output", type=Path, help="write OUTPUT.csv and OUTPUT.md")
    args = parser.parse_args()
    try:
        chosen = [known(text) for text in args.norms.split(",")]
        shapes = [divided(text, args.context) for text in (args.shapes or default(args.context)).split(",")]
    except ValueError as error:
        parser.error(str(error))

    heading = f"{environment(jax.devices()[0].device_kind, installed())}\n{HEADING}"
    print(heading)
    found: list[Comparison] = []
    for norm in chosen:
        check(norm)
    for shape in shapes:
        for norm in chosen:
            if norm == "instance" and len(shape) < 3:
                continue
            for what in (FORWARD, TRAINING):
                found.append(measure(norm, shape, args.context, what, args.rounds))
                print(found[-1], flush=True)
    kept = sum(one.within_bar for one in found)
    bars = ", ".join(f"{what} {bar}" for what, bar in BARS.items())
    summary = f"{kept} of {len(found)} rows within the bars beside the fastest of the others on JAX ({bars})."
    print(summary)
    if args.output:
        table = "\n".join([heading, *map(str, found)])
        write(args.output, f"{TITLE}: {args.context}", [row for one in found for row in one.rows], table, summary)


def known(norm: str) -> str:
    """Check that the libraries have a norm."""
    if norm not in NORMS:
        raise ValueError(f"Expected norms among {', '.join(NORMS)}, got {norm!r}.")
    return norm


def default(context: str) -> str:
    """Return the shapes that are measured by default."""
    return ",".join((*SHAPES, *SMALL_SHAPES) if context == "alone" else SMALL_SHAPES[:2])


def divided(text: str, context: str) -> tuple[int, ...]:
    """Return the shape of a name or of sizes, with features that groups can share, and a batch that models can."""
    shape = shape_of(text, devices=1)
    if shape[-1] % GROUPS:
        raise ValueError(f"Expected features that {GROUPS} groups divide evenly, got {shape[-1]} in {sizes(shape)}.")
    if context == "vmap" and shape[0] % MODELS:
        raise ValueError(f"Expected a batch that {MODELS} models divide evenly, got {shape[0]} in {sizes(shape)}.")
    return shape


def installed() -> list[str]:
    """Return the packages of the contenders that are installed."""
    return [package for name, package in PACKAGES.items() if find_spec(name.lower())]


def contenders(norm: str, shape: tuple[int, ...]) -> dict[str, Layer]:
    """Return the norms of the libraries that are installed."""
    present = [OURS, "Flax", *(name for name in LIBRARIES if PACKAGES.get(name) in installed())]
    present += [TWO_PASS] if norm != "rms" else []
    return {name: LIBRARIES[name](norm, shape) for name in present}


def measure(norm: str, shape: tuple[int, ...], context: str, what: str, rounds: int) -> Comparison:
    """Time all contenders."""
    x, dy = draw(shape)
    part = (shape[0] // MODELS, *shape[1:]) if context == "vmap" else shape
    calls: dict[str, Callable[[], Any]] = {
        name: compiled(layer, context, what, x, dy) for name, layer in contenders(norm, part).items()
    }
    if context == "alone" and TORCH in installed():
        calls[TORCH] = torch_call(norm, np.asarray(x), np.asarray(dy), backward=what == TRAINING)
    seconds = interleave(calls, rounds)
    return Comparison(
        [
            Row(
                norm=norm,
                shape=sizes(shape),
                context=context,
                what=what,
                contender=name,
                ms=1e3 * statistics.median(times),
                least_ms=1e3 * min(times),
                ratio_of_minima=min(seconds[OURS]) / min(times),
                rounds=rounds,
                **ratio(seconds[OURS], times)._asdict(),
            )
            for name, times in seconds.items()
        ]
    )


def compiled(layer: Layer, context: str, what: str, x: Array, dy: Array) -> Call:
    """Compile a step in a context."""
    if context == "program":
        layer = between(layer, x.shape[-1])
    step: Step = layer.apply if what == FORWARD else backward(layer.apply)
    params, state = layer.params, layer.state
    batch = [jnp.moveaxis(a, -1, layer.feature_axis) for a in ((x,) if what == FORWARD else (x, dy))]
    if context == "vmap":
        params, state = jax.tree.map(lambda a: jnp.stack([a] * MODELS), (params, state))
        batch = [a.reshape(MODELS, -1, *a.shape[1:]) for a in batch]
        step = jax.vmap(step)
    return Call(repeated(step) if context == "scan" else step, (params, state, *batch)).compiled()


def between(layer: Layer, features: int) -> Layer:
    """Return the network Dense - norm - ReLU - Dense."""
    kernels = [jax.random.normal(jax.random.key(i), (features, features)) / features**0.5 for i in range(2)]

    def dense(x: Array, kernel: Array) -> Array:
        return jnp.moveaxis(jnp.tensordot(x, kernel, (layer.feature_axis, 0)), -1, layer.feature_axis)

    def apply(params: Any, state: Any, x: Array) -> tuple[Array, Any]:
        first, norm, second = params
        y, state = layer.apply(norm, state, dense(x, first))
        return dense(jax.nn.relu(y), second), state

    return layer._replace(params=(kernels[0], layer.params, kernels[1]), apply=apply)


def backward(apply: Step) -> Step:
    """Return a step with gradients of parameters and input."""

    def step(params: Any, state: Any, x: Array, dy: Array) -> Any:
        y, pull, state = jax.vjp(lambda params, x: apply(params, state, x), params, x, has_aux=True)
        return y, state, pull(dy)

    return step


def repeated(step: Step) -> Step:
    """Return a loop of `STEPS` steps: an output is the next input, and parameters follow their gradients."""

    def loop(params: Any, state: Any, x: Array, *dy: Array) -> Any:
        def body(carry: Any, _: None) -> tuple[Any, None]:
            params, state, x = carry
            y, state, *gradients = step(params, state, x, *dy)
            for slope, dx in gradients:
                params, y = jax.tree.map(lambda p, g: p - 1e-3 * g, params, slope), y + 1e-3 * dx
            return (params, state, y), None

        return lax.scan(body, (params, state, x), length=STEPS)[0]

    return loop


def check(norm: str) -> None:
    """Raise an `AssertionError` unless outputs and gradients of all contenders are those of float64 NumPy.

    At a small size, for data around 0. Libraries name scale and bias in their own ways: gradients are known by value.
    """
    shape = (4, 3, 3, 2 * GROUPS)
    x, dy = draw(shape)
    y, dx, affine = reference(norm, np.asarray(x, np.float64), np.asarray(dy, np.float64))
    for name, layer in contenders(norm, shape).items():
        found, _, (slopes, slope) = compiled(layer, "alone", TRAINING, x, dy)()
        close = closeness(f"{norm} norm of {name}")
        close(jnp.moveaxis(found, layer.feature_axis, -1), y)
        close(jnp.moveaxis(slope, layer.feature_axis, -1), dx)
        leaves = sorted(jax.tree.leaves(slopes), key=lambda a: float(jnp.abs(a - affine[0].reshape(a.shape)).max()))
        for leaf, expected in zip(leaves, affine, strict=True):
            close(leaf, expected.reshape(leaf.shape))
    if TORCH in installed():
        source, *slopes = torch_call(norm, np.asarray(x), np.asarray(dy), backward=True)()
        close = closeness(f"{norm} norm of {TORCH}")
        close(source if norm in ("layer", "rms") else source.movedim(1, -1), dx)
        for leaf, expected in zip(slopes, affine, strict=True):
            close(leaf, expected)


def closeness(what: str) -> Callable[[Any, np.ndarray], None]:
    """Return a comparison with an expected array."""

    def close(found: Any, expected: np.ndarray) -> None:
        np.testing.assert_allclose(np.asarray(found), expected, atol=2e-4, rtol=2e-4, err_msg=what)

    return close


def reference(norm: str, x: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Return output, gradient of the input, and gradients of scale and bias (of scale alone, for RMS norm)."""
    pool = x.shape[-1] // GROUPS if norm == "group" else 1
    axis = {"batch": (0, 1, 2), "layer": (3,), "rms": (3,), "group": (1, 2, 4), "instance": (1, 2)}[norm]

    def mean(a: np.ndarray) -> np.ndarray:
        groups = a.reshape(*a.shape[:-1], -1, pool) if norm == "group" else a
        return np.broadcast_to(groups.mean(axis, keepdims=True), groups.shape).reshape(a.shape)

    centered = x if norm == "rms" else x - mean(x)
    rstd = 1 / np.sqrt(mean(centered**2) + EPSILON)
    y = centered * rstd
    dx = rstd * (dy - y * mean(dy * y) - (0 if norm == "rms" else mean(dy)))
    affine = [(dy * y).sum((0, 1, 2)), dy.sum((0, 1, 2))]
    return y, dx, affine[:1] if norm == "rms" else affine


if __name__ == "__main__":
    main()
