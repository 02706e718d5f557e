"""Stage `layers`: speed of formulations of norms for XLA, in fractions of the bandwidth of a copy.

Rows of kind `copy` have the bandwidth of the device, those of kind `layer` the time of a contender, forward or with the
backward pass, and `fraction`: the least time in which the bytes of the case can be copied, over the measured time. The
output and the gradients of each contender are compared with ours first, which stage `correctness` compares with
float64; other numbers are an error. Contenders take turns within a round.
"""

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from benchmarks.accelerator.cases import BOTH, CASES, FORWARD, OURS, TINY, Case
from benchmarks.accelerator.contenders import CONTENDERS, XLA, training
from benchmarks.accelerator.stage import Clock, Row, failed, plan
from benchmarks.accelerator.timing import bandwidth, seconds, speed

__all__ = ["measured", "rows"]

COPY = "copy"
ROUNDS = 7
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}
"""Largest distance from ours that counts as the same function."""


def rows(clock: Clock, *, tiny: bool, skip: Collection[str]) -> Iterator[Row]:
    """Yield a copy, and the formulations for XLA, of each case."""
    return measured(clock, [name for name in XLA if name not in skip], tiny=tiny)


def measured(clock: Clock, names: Sequence[str], *, tiny: bool) -> Iterator[Row]:
    """Yield a copy and some contenders, of each case until the time is over."""
    cases = TINY if tiny else CASES
    yield plan(len(cases), "cases", "norm", "shape", "dtype")
    for number, case in enumerate(cases):
        if clock.left() < 0:
            return
        yield from of_case(case, number, names, rounds=2 if tiny else ROUNDS)


def of_case(case: Case, seed: int, names: Sequence[str], rounds: int) -> Iterator[Row]:
    """Yield the rows of a case: first the contenders that fail, at the end the times of the others."""
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    arguments, built = prepared(case, seed, [OURS, *names])
    ours: Callable[[], Any] | None = None
    for name, result in built.items():
        try:
            forward, both = result()
            pair = {FORWARD: partial(forward, *arguments[:3]), BOTH: partial(both, *arguments)}
            ours = ours or pair[BOTH]
            apart = distance(pair[BOTH](), ours())
            if not apart <= TOLERANCE[case.dtype]:  # NaN is not
                raise ArithmeticError(f"Expected the numbers of ours, got a distance of {apart:.2g}.")
        except Exception as error:  # a kernel may fail in the compiler, or on the device
            yield {"kind": "layer", **case.columns, "contender": name, **failed(error)}
            if name == OURS:
                return
            continue
        calls |= {(name, what): call for what, call in pair.items() if name in names}
    copy = jax.jit(jnp.negative).lower(arguments[0]).compile()
    times = seconds({(COPY, ""): partial(copy, arguments[0]), **calls}, jax.block_until_ready, rounds)
    copies = times.pop((COPY, ""))
    yield {"kind": "copy", **case.columns, "contender": "jax", **bandwidth(case.bytes, copies)}
    for (name, what), taken in times.items():
        row: Row = {"kind": "layer", **case.columns, "contender": name, "what": what}
        yield row | speed(taken, case.copies(what), copies)


def draw(case: Case, seed: int) -> tuple[Array, Array, Array, Array]:
    """Draw an input, scale, bias, and the cotangent of the output."""
    keys = jax.random.split(jax.random.key(seed), 4)
    x, dy = (jax.random.normal(key, case.shape, case.dtype) for key in keys[:2])
    scale, bias = (jax.random.uniform(key, case.shape[-1:], minval=0.5, maxval=1.5) for key in keys[2:])
    return x, scale, bias, dy


def programs(case: Case, name: str) -> tuple[Any, Any] | None:
    """Return a contender as jitted functions, forward and with the backward pass; `None` where it lacks the norm."""
    norm = CONTENDERS[name](case)
    return None if norm is None else (jax.jit(norm), jax.jit(training(norm)))


def prepared(case: Case, seed: int, names: Sequence[str]) -> tuple[Sequence[Array], dict[str, Callable[[], Any]]]:
    """Compile contenders in threads, and draw their arguments meanwhile.

    Returns:
        The arguments; and by the name of a contender, in their order, a function that returns its programs, or raises.
    """

    def build(name: str) -> tuple[Any, Any] | None:
        pair, shapes = programs(case, name), shapes_of(case)
        return pair and (pair[0].lower(*shapes[:3]).compile(), pair[1].lower(*shapes).compile())

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        built = {name: pool.submit(build, name) for name in dict.fromkeys(names)}
        arguments = draw(case, seed)
    return arguments, {name: each.result for name, each in built.items() if each.exception() or each.result()}


def shapes_of(case: Case) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Return the shapes and dtypes of `draw`."""
    large = jax.ShapeDtypeStruct(case.shape, jnp.dtype(case.dtype))
    small = jax.ShapeDtypeStruct(case.shape[-1:], jnp.float32)
    return large, small, small, large


def distance(found: Any, right: Any) -> float:
    """Return the largest difference of arrays in units of the largest value of the second; NaN where there is any."""
    return float(_distance(found, right))


@jax.jit
def _distance(found: Any, right: Any) -> Array:
    def one(a: Array, b: Array) -> Array:
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        return jnp.abs(a - b).max() / jnp.maximum(jnp.abs(b).max(), jnp.finfo(jnp.float32).tiny)

    return jnp.stack(jax.tree.leaves(jax.tree.map(one, found, right))).max()
