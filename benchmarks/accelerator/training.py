"""Stage `training`: errors of norms at sizes that a CPU does not reach.

ResNet-20 on images of CIFAR-10 by batch size, and an LSTM that reads MNIST pixel by pixel in a random order. As in
`normlab run`, the validation error of tuning seeds chooses the learning rate, and other seeds have the test error.
Each is one stack of runs, so a row is two trainings of `LANES` models. Data are those of `carry.py` beside this file;
where they are absent, rows have times on noise of the same shape and no errors.

Programs are compiled in threads while others train, so times are those of a busy host.
"""

from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple

import numpy as np
import optax

from benchmarks.accelerator.carry import FOLDER, carried
from benchmarks.accelerator.stage import Clock, Row, failed
from normlab import norms, study
from normlab.models.lstm import LSTMNet
from normlab.models.mlp import ConvNet
from normlab.models.resnet import ResNet
from normlab.study.analysis.estimates import mean_interval
from normlab.study.data.dataset import Data
from normlab.study.design.problem import Problem
from normlab.study.design.program import Program
from normlab.study.design.records import EVALUATE, TUNE, TUNING_SEEDS_FROM, Configuration, Record, Run
from normlab.study.design.tuning import choose_learning_rate
from normlab.study.problems.zoo import MEMBERS
from normlab.study.training.compilation import Compiled, compile_program
from normlab.study.training.compilation_cache import cached
from normlab.study.training.loop import Outcome
from normlab.study.worker.outcome import status_of

__all__ = ["rows"]

LANES = 20
"""Runs in a stack."""
AHEAD = 4
"""Programs that are compiled at a time."""
NORMS = ("batch", "group", "none", "layer", "batch_renorm")
CELL_NORMS = ("none", "layer", "batch_step", "rms", "batch_input")

Prepared = tuple[Program, Compiled]


class Setting(NamedTuple):
    """A problem and its cells.

    Attributes:
        problem: The problem.
        data: Its data.
        real: Whether the data are images; noise has no errors worth a row.
        cells: Norms and batch sizes, most valuable first.
        epochs: Passes over the training set.
        rates: Grid of learning rates.
    """

    problem: Problem
    data: Data
    real: bool
    cells: Sequence[tuple[str, int]]
    epochs: int
    rates: Sequence[float]


def rows(clock: Clock, *, tiny: bool, skip: Collection[str], folder: Path = FOLDER) -> Iterator[Row]:
    """Yield the cells of both settings; the first has two thirds of the time.

    Args:
        clock: See `Stage`.
        tiny: See `Stage`.
        skip: Norms to leave out.
        folder: Folder of the carried data.
    """
    parts = [(images, 0.65), (sequences, 1.0)]
    for make, share in parts:
        setting = make(folder, tiny)
        yield {"kind": "data", "problem": setting.problem.name, "data": setting.data.description, "real": setting.real}
        yield from of_setting(setting, Clock(share * clock.left()), 5 if tiny else LANES, skip)


def images(folder: Path, tiny: bool) -> Setting:
    """Return ResNet-20 on CIFAR-10, a small conv net in a dry run."""
    data, real = data_of("cifar10", (32, 32, 3), folder, tiny)
    member = MEMBERS["resnet20"]
    problem = study.supervised(
        name="resnet20",
        model=lambda norm, classes: (ConvNet if tiny else ResNet)(norm, classes=classes),
        data=data,
        spatial=True,
        optimizer=member.optimizer,
        norm_options={"group": {"num_groups": member.groups}},
    )
    cells = [(norm, size) for size in ((32,) if tiny else (32, 128, 8, 2)) for norm in (NORMS[:1] if tiny else NORMS)]
    return Setting(problem, data, real, cells, epochs=1 if tiny else 3, rates=(0.003, 0.01, 0.03, 0.1, 0.3))


def sequences(folder: Path, tiny: bool) -> Setting:
    """Return an LSTM on MNIST, a pixel a step in one random order."""
    data, real = data_of("mnist", (28, 28, 1), folder, tiny)
    steps = data.inputs[0].size
    order = np.random.default_rng(0).permutation(steps)
    pixels = data.inputs.reshape(len(data.labels), steps, 1)[:, order].astype(np.float32) / 255
    data = Data(pixels, data.labels, test=data.test, description=f"{data.description}, permuted pixels")
    problem = study.supervised(
        name="lstm",
        model=lambda norm, classes: LSTMNet(norm, features=8 if tiny else 100, outputs=classes),
        data=data,
        recurrent=True,
        optimizer=clipped_adam,
        norm_options={"batch_step": {"max_steps": steps}, "batch_input": {"max_steps": steps}},
    )
    cells = [(norm, 64 if tiny else 128) for norm in (CELL_NORMS[:1] if tiny else CELL_NORMS)]
    return Setting(problem, data, real, cells, epochs=1, rates=(0.0003, 0.001, 0.003, 0.01, 0.03))


def clipped_adam(schedule: optax.Schedule) -> optax.GradientTransformation:
    """Return Adam with clipped gradients."""
    return optax.flatten(optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule)))


def data_of(name: str, shape: tuple[int, ...], folder: Path, tiny: bool) -> tuple[Data, bool]:
    """Return carried images, or noise of their shape; in a dry run few small images."""
    if found := carried(name, folder):
        return small(found) if tiny else found, True
    draw, n = np.random.default_rng(0), 200 if tiny else 15_000
    shape = (8, 8, shape[-1]) if tiny else shape
    noise = draw.integers(0, 256, (n, *shape), dtype=np.uint8)
    return Data(noise, np.arange(n) % 10, drawn=(n // 5, n // 5), description="noise"), False


def small(data: Data) -> Data:
    """Return 200 images for each part, every fourth pixel of them, in which every class occurs."""
    train = len(data.labels) - data.test
    kept = np.r_[:200, train : train + min(200, data.test)]
    return Data(data.inputs[kept, ::4, ::4], data.labels[kept], test=len(kept) - 200, description=data.description)


def of_setting(setting: Setting, clock: Clock, lanes: int, skip: Collection[str]) -> Iterator[Row]:
    """Yield a row for each cell until the time is over; programs of the next cells are compiled meanwhile."""
    cells = [cell for cell in setting.cells if cell[0] not in skip]
    pool, a_step = ThreadPoolExecutor(AHEAD), 0.0
    with cached():
        futures = {cell: pool.submit(prepared, setting, *cell, lanes) for cell in cells}
        for cell, future in futures.items():
            if clock.left() <= 0:
                break
            try:
                program, compiled = in_time(future, clock)
                needed = 2 * program.steps * a_step
                if needed > clock.left():
                    raise TimeoutError(f"needs about {needed:.0f} s")
                row = of_cell(setting, program, compiled, lanes)
            except Exception as error:
                row = failed(error)
            else:
                a_step = max(a_step, float(row["update_ms"] or 0.0) / 1e3)
            yield {"kind": "cell", "problem": setting.problem.name, "norm": cell[0], "batch_size": cell[1], **row}
    pool.shutdown(wait=False, cancel_futures=True)


def in_time(future: Future[Prepared], clock: Clock) -> Prepared:
    """Wait for a program.

    Raises:
        TimeoutError: If the time is over before.
    """
    wait([future], clock.left())
    if not future.done():
        raise TimeoutError("not compiled in time")
    return future.result()


def prepared(setting: Setting, norm: str, batch_size: int, lanes: int) -> Prepared:
    """Build and compile the program of a cell."""
    program = built(setting, norm, batch_size)
    return program, compile_program(program, lanes)


def built(setting: Setting, norm: str, batch_size: int) -> Program:
    """Return the program of a cell."""
    config = {"batch_size": batch_size, "epochs": setting.epochs}
    return setting.problem.build(norms.get(norm, **setting.problem.norm_options(norm, config)), config)


def of_cell(setting: Setting, program: Program, compiled: Compiled, lanes: int) -> dict[str, float | int | bool | None]:
    """Choose the learning rate in one stack, and train the models that count in another."""
    if not setting.real:
        return times(list(compiled.train([setting.rates[0]] * lanes, range(lanes))), program, compiled)
    each = lanes // len(setting.rates)
    tuning = [(rate, TUNING_SEEDS_FROM + seed) for rate in setting.rates for seed in range(each)]
    choice = choose_learning_rate(records(TUNE, tuning, program, compiled)[0])
    assert choice is not None  # something was tuned
    found, outcomes = records(EVALUATE, [(choice.learning_rate, seed) for seed in range(lanes)], program, compiled)
    errors = mean_interval([record.metrics["test"] for record in found if record.status == "ok"])
    low, high = errors.interval or (None, None)
    return {
        "learning_rate": choice.learning_rate,
        "edge": choice.edge,
        "test_error": errors.mean,
        "low": low,
        "high": high,
        "succeeded": errors.n,
        "failed": lanes - errors.n,
        **times(outcomes, program, compiled),
    }


def records(
    stage: str, runs: Sequence[tuple[float, int]], program: Program, compiled: Compiled
) -> tuple[list[Record], list[Outcome]]:
    """Train models of the given learning rates and seeds, and judge them as `normlab run` does."""
    outcomes = list(compiled.train(*zip(*runs, strict=True)))
    configuration = Configuration(problem="", norm="", config=())
    found = [
        Record(
            key="",
            run=Run(configuration=configuration, stage=stage, learning_rate=rate, seed=seed),
            identity={},
            status=status_of(outcome.metrics, program.chance)[0],
            metrics=outcome.metrics,
        )
        for (rate, seed), outcome in zip(runs, outcomes, strict=True)
    ]
    return found, outcomes


def times(outcomes: Sequence[Outcome], program: Program, compiled: Compiled) -> dict[str, float | int | bool | None]:
    """Return the columns of the time and memory of a stack."""
    seconds = sum(outcome.seconds for outcome in outcomes)
    return {
        "lanes": len(outcomes),
        "steps": program.steps,
        "update_ms": 1e3 * seconds / program.steps,
        "models_per_minute": 60 * len(outcomes) / seconds,
        "compile_s": compiled.seconds,
        "mb_a_lane": compiled.memory and compiled.memory / 1e6,
    }
