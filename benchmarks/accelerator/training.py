"""Stage `training`: errors of norms at sizes that a CPU does not reach.

ResNet-20 on images of CIFAR-10 by batch size, and an LSTM that reads MNIST pixel by pixel in a random order, every
second row and column of it. As in `normlab run`, the validation error of tuning seeds chooses the learning rate, and
other seeds have the test error. Each is one stack of runs, so a row is two trainings of a stack. Data are those of
`carry.py` beside this file; where they are absent, rows have times on noise of the same shape and no errors.

Programs of both are compiled in threads while others train, so times are those of a busy host, and rows come as
programs are ready.
"""

import itertools
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
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

AHEAD = 6
"""Programs that are compiled at a time."""
LAST = 1.0
"""Seconds before the end at which rows say what was left out."""
NORMS = ("batch", "group", "none", "layer", "batch_renorm")
CELL_NORMS = ("none", "layer", "batch_step", "rms", "batch_input")

Prepared = tuple[Program, Compiled]

Updates = dict[tuple[str, int], float]
"""Seconds of an update so far, the slowest, by problem and batch size."""


class Setting(NamedTuple):
    """A problem and its cells.

    Attributes:
        problem: The problem.
        data: Its data.
        real: Whether the data are images; noise has no errors worth a row.
        cells: Norms and batch sizes, most valuable first.
        epochs: Passes over the training set.
        rates: Grid of learning rates.
        lanes: Runs in a stack, a multiple of the learning rates.
    """

    problem: Problem
    data: Data
    real: bool
    cells: Sequence[tuple[str, int]]
    epochs: int
    rates: Sequence[float]
    lanes: int


class Cell(NamedTuple):
    """A norm and a batch size of a setting."""

    setting: Setting
    norm: str
    batch_size: int


def rows(clock: Clock, *, tiny: bool, skip: Collection[str], folder: Path = FOLDER) -> Iterator[Row]:
    """Yield the cells of both settings, in turns.

    Args:
        clock: See `Stage`.
        tiny: See `Stage`.
        skip: Norms to leave out.
        folder: Folder of the carried data.
    """
    settings = [make(folder, tiny) for make in (images, sequences)]
    for setting in settings:
        yield {"kind": "data", "problem": setting.problem.name, "data": setting.data.description, "real": setting.real}
    yield from of_settings(settings, clock, skip)


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
    cells = [(norm, size) for size in ((32,) if tiny else (32, 8, 128, 2)) for norm in (NORMS[:1] if tiny else NORMS)]
    rates = (0.003, 0.01, 0.03, 0.1, 0.3)
    return Setting(problem, data, real, cells, epochs=1, rates=rates, lanes=5 if tiny else 10)


def sequences(folder: Path, tiny: bool) -> Setting:
    """Return an LSTM on MNIST, a pixel a step in one random order."""
    data, real = data_of("mnist", (28, 28, 1), folder, tiny)
    smaller = data.inputs[:, ::2, ::2]
    steps = smaller[0].size
    order = np.random.default_rng(0).permutation(steps)
    pixels = smaller.reshape(len(data.labels), steps, 1)[:, order].astype(np.float32) / 255
    description = f"{data.description}, {steps} permuted pixels of every second row and column"
    data = Data(pixels, data.labels, test=data.test, description=description)
    problem = study.supervised(
        name="lstm",
        model=lambda norm, classes: LSTMNet(norm, features=8 if tiny else 100, outputs=classes),
        data=data,
        recurrent=True,
        optimizer=clipped_adam,
        norm_options={"batch_step": {"max_steps": steps}, "batch_input": {"max_steps": steps}},
    )
    cells = [(norm, 64 if tiny else 128) for norm in (CELL_NORMS[:1] if tiny else CELL_NORMS)]
    rates = (0.0003, 0.001, 0.003, 0.01, 0.03)
    return Setting(problem, data, real, cells, epochs=1, rates=rates, lanes=5 if tiny else 20)


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


def of_settings(settings: Sequence[Setting], clock: Clock, skip: Collection[str]) -> Iterator[Row]:
    """Yield a row for each cell; other programs are compiled meanwhile, and what is left at the end has its reason."""
    pool, updates = ThreadPoolExecutor(AHEAD), Updates()
    with cached():
        pending = {pool.submit(prepared, *cell): cell for cell in in_turns(settings) if cell.norm not in skip}
        while pending and clock.left() > LAST:
            ready, _ = wait(pending, clock.left() - LAST, FIRST_COMPLETED)
            for future in [future for future in pending if future in ready][:1]:
                cell = pending.pop(future)
                yield {**named(cell), **of_future(cell, future, clock, updates)}
        for cell in pending.values():
            yield {**named(cell), **failed(TimeoutError("not compiled in time"))}
    pool.shutdown(wait=False, cancel_futures=True)


def in_turns(settings: Sequence[Setting]) -> list[Cell]:
    """Return the cells of all settings, one of each in turn."""
    columns = [[Cell(setting, *cell) for cell in setting.cells] for setting in settings]
    return [cell for row in itertools.zip_longest(*columns) for cell in row if cell]


def named(cell: Cell) -> Row:
    """Return the columns that name a cell."""
    problem = cell.setting.problem.name
    return {"kind": "cell", "problem": problem, "norm": cell.norm, "batch_size": cell.batch_size}


def of_future(cell: Cell, future: Future[Prepared], clock: Clock, updates: Updates) -> Row:
    """Train the models of a cell; return the columns, or those of its failure.

    Args:
        cell: The cell.
        future: Its program, ready or failed.
        clock: Time of the stage.
        updates: Receives the time of this cell's updates.
    """
    key = (cell.setting.problem.name, cell.batch_size)
    try:
        program, compiled = future.result()
        needed = 2 * program.steps * expected(updates, *key)
        if needed > clock.left():
            raise TimeoutError(f"needs about {needed:.0f} s")
        row = of_cell(cell.setting, program, compiled)
        updates[key] = max(updates.get(key, 0.0), float(row["update_ms"] or 0.0) / 1e3)
    except Exception as error:
        return failed(error)
    return {**row}


def expected(updates: Updates, problem: str, batch_size: int) -> float:
    """Return the seconds of an update of this size, or else the least of any size; 0 if there are none."""
    least = min((seconds for (name, _), seconds in updates.items() if name == problem), default=0.0)
    return updates.get((problem, batch_size), least)


def prepared(setting: Setting, norm: str, batch_size: int) -> Prepared:
    """Build and compile the program of a cell."""
    program = built(setting, norm, batch_size)
    return program, compile_program(program, setting.lanes)


def built(setting: Setting, norm: str, batch_size: int) -> Program:
    """Return the program of a cell."""
    config = {"batch_size": batch_size, "epochs": setting.epochs}
    return setting.problem.build(norms.get(norm, **setting.problem.norm_options(norm, config)), config)


def of_cell(setting: Setting, program: Program, compiled: Compiled) -> dict[str, float | int | bool | None]:
    """Choose the learning rate in one stack, and train the models that count in another."""
    lanes = setting.lanes
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
