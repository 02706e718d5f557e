"""Compile the program of a configuration once for all its runs."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import jax
import numpy as np
from jax.typing import ArrayLike

from normlab.models import stacking
from normlab.models.convolution import PRODUCTS
from normlab.notation import PyTree
from normlab.study.design.program import Program
from normlab.study.training.loop import Outcome, on_devices, replicated, training
from normlab.study.training.streaming import StreamedProgram

Train = Callable[[Sequence[float], Sequence[int]], Iterator[Outcome]]

Begin = Callable[[Sequence[float], Sequence[int]], tuple[ArrayLike, PyTree]]
"""`(learning_rates, seeds) -> (learning rates, states)`, of one run or of a stack."""


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """A program that is ready to run.

    Attributes:
        train: `(learning_rates, seeds) -> outcomes`, lazily: one run, or one stack, at a time.
        seconds: Time to initialize a first state, to trace, and to compile or to load a cached program.
        memory: Bytes that training needs on the device: data, state and temporaries of a step. For stacked runs, the
            share of a lane. `None` if the backend does not report it.
        moved: Bytes that collectives deliver to a device per update; 0 on one device.
    """

    train: Train
    seconds: float
    memory: int | None
    moved: int


def compile_program(
    program: Program, lanes: int | None = None, data: Mapping[str, jax.Array] | None = None
) -> Compiled:
    """Compile training and evaluation, separately so that the cost of training is measured alone.

    Args:
        program: Program of one configuration.
        lanes: Number of runs that `vmap` stacks; `None` for one run after another. A partial stack is padded with
            copies of its last run: there is one program, and the numbers of a run do not depend on the number of
            others.
        data: Data of the program on the device, if other programs share them; put there unless given.
    """
    start = perf_counter()
    here: Mapping[str, jax.Array] = on_devices(program, dict(program.data)) if data is None else data
    if program.window_source:
        streamed = StreamedProgram(program, program.window_source, here)
        train, fitting, lanes = streamed.train, streamed.fitting, None
    else:
        train, fitting = _with_all_data(program, lanes, here)
    seconds = perf_counter() - start
    moved = collective_bytes(fitting.as_text() or "") if program.mesh else 0
    return Compiled(train=train, seconds=seconds, memory=memory_of(fitting, lanes or 1), moved=moved)


def _with_all_data(
    program: Program, lanes: int | None, data: Mapping[str, jax.Array]
) -> tuple[Train, jax.stages.Compiled]:
    """Compile a program whose data are on the device; return the function that makes its runs, and the executable."""
    fit, evaluate = training(program), program.evaluate
    if lanes:
        fit = jax.vmap(fit, in_axes=(0, 0, None), axis_name=stacking.AXIS)
        evaluate = jax.vmap(evaluate, in_axes=(0, None), axis_name=stacking.AXIS)
    begin = starting(program, lanes)
    rates, states = begin([0.0], [0])
    everywhere = replicated(program.mesh) if program.mesh else None
    fitting = executable(jax.jit(fit, out_shardings=everywhere).lower(rates, states, data))
    evaluation = executable(jax.jit(evaluate, out_shardings=everywhere).lower(states, data))
    size = lanes or 1

    def train(learning_rates: Sequence[float], seeds: Sequence[int]) -> Iterator[Outcome]:
        for first in range(0, len(seeds), size):
            stack = slice(first, first + size)
            rates, states = jax.block_until_ready(begin(learning_rates[stack], seeds[stack]))
            start = perf_counter()
            states, metrics, series = jax.block_until_ready(fitting(rates, states, data))
            seconds = (perf_counter() - start) / size
            metrics, series = jax.device_get(({**evaluation(states, data), **metrics}, series))
            for lane in range(len(seeds[stack])):
                yield Outcome(
                    metrics={name: float(np.ravel(value)[lane]) for name, value in metrics.items()},
                    series={name: value[lane] if lanes else value for name, value in series.items()},
                    seconds=seconds,
                    examined=partial(_examined, program, states, lane if lanes else None, data),
                )

    return train, fitting


def _examined(program: Program, states: PyTree, lane: int | None, data: Mapping[str, jax.Array]) -> dict[str, float]:
    """Return the metrics of `Program.examine` for the state of a run, or for one of a stack."""
    if program.examine is None:
        return {}
    state = jax.device_get(states)
    if lane is not None:
        state = jax.tree.map(lambda stacked: stacked[lane], state)
    return {name: float(value) for name, value in program.examine(state, data).items()}


def executable(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compile the programs of runs, those of stacks with their own choice of libraries.

    The products of stacked convolutions are tall and narrow: on an H100, 20 networks ResNet-20 took 22 ms for an update
    with cuBLAS, and 39 ms with the kernels that XLA generates and prefers.
    """
    library = jax.default_backend() == "gpu" and PRODUCTS in lowered.as_text(debug_info=True)
    return lowered.compile({"xla_gpu_enable_triton_gemm": False} if library else None)


def collective_bytes(text: str) -> int:
    """Count the bytes that the collectives of a compiled program deliver to a device, each collective once.

    >>> collective_bytes("%a = (f32[8,2]{1,0}, bf16[3]{0}) all-reduce(%b, %c), to_apply=%add")
    70
    >>> collective_bytes("%a = (f32[4]{0}, f32[32]{0}) all-gather-start(%b), dimensions={0}")
    128
    """
    total = 0
    for result, kind, start in re.findall(rf"= (.+?) ({_COLLECTIVES})(-start)?\(", text):
        shapes = re.findall(r"\b(pred|[a-z]+\d+)\w*\[([\d,]*)\]", result)
        if start and kind != "all-reduce":  # operands come before results
            shapes = shapes[len(shapes) // 2 :]
        total += sum(_width(kind) * math.prod(int(n) for n in sizes.split(",") if n) for kind, sizes in shapes)
    return total


def starting(program: Program, lanes: int | None) -> Begin:
    """Make the function that returns the learning rates and states of one run, or of a stack, before training.

    On accelerators weights are drawn by one compiled program; see `design.program.Start`.
    """
    one_by_one = partial(_inputs, program, lanes)
    start = program.start
    if start is None or program.mesh or jax.default_backend() == "cpu":
        return one_by_one

    def without_weights(seeds: Sequence[int]) -> tuple[ArrayLike, PyTree]:
        return _stacked([(np.uint32(seed), start.host(seed)) for seed in seeds], lanes)

    device = jax.vmap(start.device) if lanes else start.device
    try:
        weights = jax.jit(device).lower(*without_weights([0])).compile()
    except Exception:  # weights that cannot be traced, such as those that NumPy draws
        return one_by_one

    def begin(learning_rates: Sequence[float], seeds: Sequence[int]) -> tuple[ArrayLike, PyTree]:
        return _rates(learning_rates, lanes), weights(*without_weights(seeds))

    return begin


def _inputs(
    program: Program, lanes: int | None, learning_rates: Sequence[float], seeds: Sequence[int]
) -> tuple[ArrayLike, PyTree]:
    """Return learning rates and states, by operations that start one by one."""
    rates, states = _rates(learning_rates, lanes), [program.init(seed) for seed in seeds]
    if lanes:
        return rates, _stacked(jax.device_get(states), lanes)
    return on_devices(program, (rates, states[0]))


def _rates(learning_rates: Sequence[float], lanes: int | None) -> ArrayLike:
    return _stacked([np.float32(rate) for rate in learning_rates], lanes)


def _stacked(runs: Sequence[PyTree], lanes: int | None) -> PyTree:
    """Stack the arrays of runs, with copies of the last for lanes that are left; without lanes return the one run's."""
    if not lanes:
        return runs[0]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *runs, *[runs[-1]] * (lanes - len(runs)))


_COLLECTIVES = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"


def _width(kind: str) -> int:
    """Return the bytes of a number of a type that XLA calls f32, bf16, s8, pred."""
    return max(1, int("".join(filter(str.isdigit, kind)) or 8) // 8)


def memory_of(compiled: jax.stages.Compiled, lanes: int = 1) -> int | None:
    """Count the bytes of an executable's arguments, outputs and temporaries, the share of a lane of a stack.

    XLA's own peak omits these on CPU. `None` if the backend does not report them.
    """
    try:
        stats = compiled.memory_analysis()
        if stats is None:
            return None
        kinds = (stats.argument_size_in_bytes, stats.output_size_in_bytes, stats.temp_size_in_bytes)
    except (AttributeError, NotImplementedError, jax.errors.JaxRuntimeError):
        return None
    return (sum(kinds) - stats.alias_size_in_bytes) // lanes
