"""Measure the cost of an examination.

The static checks of ResNet-50 are timed from shapes alone; and the measurements of ResNet-20 on batches of 32, beside
a training and an evaluation forward of the same batches. Contenders take turns; compilation is timed apart.

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

from benchmarks.speed._timing import at_least_one, interleave, ratio
from normlab import norms
from normlab.doctor import examine
from normlab.doctor.patient import Options, Patient
from normlab.models import ResNet, ResNet50

BATCHES = 8
STATIC_BAR, RATIO_BAR = 3.0, 3.0
"""Largest acceptable seconds of static checks, and ratio of measurements to forwards."""


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


def _timed(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _list(seconds: Sequence[float]) -> str:
    return ", ".join(f"{one:.2f}" for one in sorted(seconds))


if __name__ == "__main__":
    main()
