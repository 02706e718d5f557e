"""Measure the cost of an examination.

The static checks of ResNet-50 are timed from shapes alone; and the measurements of ResNet-20 on batches of 32, beside
a training and an evaluation forward of the same batches. Contenders take turns; compilation is timed apart. The
memory of a measured forward stands beside that of a plain one, as XLA plans both.

A watch of `normlab.doctor.watch` is timed beside a step of training, on ResNet-20 and on a GPT.

    python -m benchmarks.doctor.cost
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.doctor import healthy
from benchmarks.speed._timing import at_least_one, interleave, ratio
from normlab import norms
from normlab.doctor import examine, watch
from normlab.doctor.measure import CallNumbers, measured
from normlab.doctor.patient import Options, Patient
from normlab.introspect.applied import applied
from normlab.introspect.calls import Call
from normlab.introspect.kinds import norm_kind
from normlab.models import GPT, ResNet, ResNet50
from normlab.tools.capture import Statistic

BATCHES, EVERY = 8, 500
STATIC_BAR, RATIO_BAR, MEMORY_BAR = 3.0, 3.0, 1.5
"""Largest acceptable seconds of static checks, and ratios of time and memory of measurements to those of forwards."""


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=at_least_one, default=5)
    rounds = parser.parse_args().rounds
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    seconds, own = zip(*(static() for _ in range(rounds)), strict=True)
    print(
        f"static checks of ResNet-50: {statistics.median(seconds):.2f} s of at most {STATIC_BAR} ({_list(seconds)}), "
        f"{statistics.median(own):.2f} s of a processor ({_list(own)})"
    )
    contenders = passes()
    compiling = {name: _timed(run) for name, run in contenders.items()}
    times = interleave(contenders, rounds, warm_up=0)
    forwards = [a + b for a, b in zip(times["training"], times["evaluation"], strict=True)]
    for name in ("measured", "measured and estimated again", "all forwards of an examination"):
        found = ratio(times[name], forwards)
        print(
            f"{name}: {1e3 * statistics.median(times[name]):.0f} ms for {BATCHES} batches, {found.ratio:.2f} of a "
            f"training and an evaluation forward (quartiles {found.ratio_low:.2f} to {found.ratio_high:.2f})"
        )
    print(f"forwards: {1e3 * statistics.median(forwards):.0f} ms; the bar is {RATIO_BAR}")
    print("first calls with compilation: " + ", ".join(f"{name} {one:.1f} s" for name, one in compiling.items()))
    for mode, (plain, with_numbers) in memory().items():
        print(
            f"memory of a {mode} forward of ResNet-20: {plain / 1e6:.1f} MB, {with_numbers / 1e6:.1f} MB when it is "
            f"measured, {with_numbers / plain:.2f} of it; the bar is {MEMORY_BAR}"
        )
    for name, contenders in watches().items():
        first = {what: _timed(run) for what, run in contenders.items()}
        times = interleave(contenders, rounds, warm_up=0)
        found = ratio(times["watch"], times["step"])
        print(
            f"watch of {name}: {1e3 * statistics.median(times['watch']):.0f} ms, {found.ratio:.1f} steps of "
            f"{1e3 * statistics.median(times['step']):.0f} ms (quartiles {found.ratio_low:.1f} to "
            f"{found.ratio_high:.1f}); {100 * found.ratio / EVERY:.2f} % of a step at every={EVERY}; the first, with "
            f"compilation, {first['watch']:.1f} s"
        )
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")


def static() -> tuple[float, float]:
    """Return the seconds, and those of a processor, of the static checks of ResNet-50, which are traced anew."""
    jax.clear_caches()
    images = jax.ShapeDtypeStruct((32, 224, 224, 3), jnp.float32)
    started = time.process_time()
    seconds = _timed(lambda: examine(ResNet50(norms.get("batch")), None, [images]))
    return seconds, time.process_time() - started


def passes() -> dict[str, Callable[[], Any]]:
    """Return passes over the batches: plain forwards, and those of an examination."""
    model, rng = ResNet(norms.get("batch")), np.random.default_rng(0)
    batches = [rng.normal(size=(32, 32, 32, 3)).astype(np.float32) for _ in range(BATCHES)]
    variables = model.init(jax.random.key(0), batches[0], train=False)
    patient = Patient(model, variables, batches, Options())
    evaluate = jax.jit(lambda variables, x: model.apply(variables, x, train=False))
    train = jax.jit(lambda variables, x: model.apply(variables, x, train=True, mutable=["batch_stats"]))

    def over(step: Callable[..., Any]) -> Callable[[], Any]:
        return lambda: jax.block_until_ready([step(variables, x) for x in batches])

    def measured(*modes: bool) -> None:
        for mode in modes:
            for index in range(BATCHES):
                patient.called(index, mode)

    def everything() -> None:
        measured(True, False, False)
        for _ in range(2):  # an example beside others
            jax.block_until_ready(patient.output(variables, patient.few(), train=False))

    return {
        "training": over(train),
        "evaluation": over(evaluate),
        "measured": lambda: measured(True, False),
        "measured and estimated again": lambda: measured(True, False, False),
        "all forwards of an examination": everything,
    }


def memory() -> dict[str, tuple[int, int]]:
    """Return the bytes beside inputs and outputs of a plain forward of ResNet-20 and of a measured one, by mode."""
    model, x = ResNet(norms.get("batch")), np.zeros((32, 32, 32, 3), np.float32)
    variables = model.init(jax.random.key(0), x, train=False)
    patient = Patient(model, variables, [x], Options())
    by_path = {site.path: site for site in patient.sites}

    def numbers(path: str, number: int, x: Any, mask: Any, y: Any) -> CallNumbers:
        return measured(by_path[path], patient.thresholds, x, mask, y)

    return {
        name: (_planned(model, variables, x, train, None), _planned(model, variables, x, train, numbers))
        for name, train in (("training", True), ("evaluation", False))
    }


def _planned(model: Any, variables: Any, x: Any, train: bool, numbers: Statistic[CallNumbers] | None) -> int:
    """Return the bytes that a compiled forward takes beside inputs and outputs."""
    found: dict[str, CallNumbers] = {}

    def hook(call: Call, /) -> object:
        y, given = call.proceed(), call.input
        if numbers is not None and norm_kind(call.module) is not None:
            found[call.path] = numbers(call.path, 0, jnp.asarray(given), call.mask, y)
        return y

    def forward(variables: Any, x: Any) -> Any:
        found.clear()
        output = applied(model, variables, hook).call(variables, (x,), {"train": train}, None)
        return output, dict(found)

    analysis = jax.jit(forward).lower(variables, x).compile().memory_analysis()
    return int(analysis.temp_size_in_bytes)


def watches() -> dict[str, dict[str, Callable[[], Any]]]:
    """Return, for each network, a step of training and a watch of it."""
    rng = np.random.default_rng(0)
    images = [(rng.normal(size=(32, 32, 32, 3)).astype(np.float32), np.arange(32) % 10) for _ in range(4)]
    tokens = rng.integers(0, 256, size=(4, 16, 65)).astype(np.int32)
    texts = [(piece[:, :-1], piece[:, 1:]) for piece in tokens]
    return {
        "ResNet-20 on batches of 32 images of 32 x 32": _watched(ResNet(norms.get("batch")), images),
        "a GPT of 4 layers and 128 features on 16 x 64 tokens": _watched(GPT(norms.get("layer"), 256), texts),
    }


def _watched(model: Any, batches: Sequence[Any]) -> dict[str, Callable[[], Any]]:
    """Return a step of training and a watch of a model, both compiled at their first call."""
    found = healthy.fitted(model, batches, 0, train=0)
    step, state = found["step"], found["state"]
    count = len(batches)
    watching = watch(model, every=count, batches=count)

    def look() -> None:
        for index, batch in enumerate(batches):
            watching(index + 1, state, batch)  # the last is a multiple of `every`

    return {"step": lambda: jax.block_until_ready(step(state, batches[0])), "watch": look}


def _timed(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _list(seconds: Sequence[float]) -> str:
    return ", ".join(f"{one:.2f}" for one in sorted(seconds))


if __name__ == "__main__":
    main()
