"""Stage `engine`: models a minute of stacked runs, beside runs one after another, a plain Flax loop and PyTorch.

Rows of kind `stack` have the updates of a training alone, for each number of runs in a stack; `choice` has the number
that the rule of `normlab run` chooses from these, for full stacks, beside the best. Rows of kind `models` have whole
trainings, from initial weights to the test error, of this library and of its peers. The small networks and their peers
are those of `benchmarks.speed.throughput`. While a program is measured, the next ones are compiled.
"""

import importlib
import os
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import NamedTuple

import jax
import numpy as np

from benchmarks.accelerator.stage import Clock, Row, failed
from benchmarks.speed import throughput
from benchmarks.speed.throughput import Case, Contender, Team
from normlab import norms, study
from normlab.models.lstm import LSTMNet
from normlab.models.resnet import ResNet
from normlab.study.data import sequences
from normlab.study.data.dataset import Data
from normlab.study.design.program import Program
from normlab.study.driver.lanes import Choice, Trial
from normlab.study.training.compilation import Compiled, compile_program
from normlab.study.training.loop import on_devices

__all__ = ["rows"]

TURN = 0.5
"""Seconds for which a contender trains whole models; at least two are trained."""

PEERS = 0.3
"""Part of the time that is kept for peers."""

COMPILING = 0.7
"""Part of a network's time after which no program is waited for."""

AHEAD = 2
"""Programs that are compiled at a time; with more of them, tracing in one process, all are late."""

NUMBERS = (1, 4, 16, 64)
"""Numbers of runs in a stack."""

Measure = Callable[[], Row]


class Network(NamedTuple):
    """A network with its data.

    Attributes:
        name: As in tables.
        norm: Its norm.
        batch_size: Examples of an update.
        program: Makes its program.
        share: Its time in units of the other networks' shares.
        numbers: Numbers of runs in a stack; 1 is one run after another.
        case: The same for the contenders in other libraries; `None` without any.
    """

    name: str
    norm: str
    batch_size: int
    program: Callable[[], Program]
    share: float
    numbers: Sequence[int] = NUMBERS
    case: Case | None = None


def rows(clock: Clock, *, tiny: bool, skip: Collection[str]) -> Iterator[Row]:
    """Yield the rows of this library for one network after the other, then those of the peers."""
    networks = [of_case(Case("mlp", "batch", 512), 1.0, (1, 2))] if tiny else all_networks()
    cases = [network.case for network in networks if network.case]
    torch = Torch() if {"torch", "torch.compile"} - set(skip) else None  # PyTorch is imported meanwhile
    try:
        own = Clock((1 - PEERS) * clock.left())
        for i, network in enumerate(networks):
            share = network.share / sum(other.share for other in networks[i:])
            yield from of_network(network, Clock(share * own.left()))
        for contender, measure in peers(cases, torch, clock, tiny).items():
            if contender[0] not in skip:
                yield {"kind": "models", **about(contender[1]), **attempted(contender[0], measure, clock)}
    finally:
        if torch:
            torch.end()


def all_networks() -> list[Network]:
    """Return the networks, those that compile fast first."""
    return [
        of_case(Case("mlp", "batch", 32), 1.5, NUMBERS),
        of_case(Case("conv", "batch", 32), 1.5, NUMBERS),
        Network("lstm", "layer", 64, partial(lstm, 64), 2.0),
        Network("resnet20", "batch", 32, partial(resnet20, 32), 4.0),
    ]


def of_case(case: Case, share: float, numbers: Sequence[int]) -> Network:
    """Return the network of a case of `benchmarks.speed.throughput`."""
    return Network(case.model, case.norm, case.batch_size, partial(throughput.program, case), share, numbers, case)


def about(case: Case) -> Row:
    """Return the columns that name a case."""
    return {"network": case.model, "norm": case.norm, "batch_size": case.batch_size, "steps": case.steps}


def lstm(batch_size: int) -> Program:
    """Return an LSTM on digits that are read pixel by pixel."""
    problem = study.supervised(
        name="lstm",
        model=lambda norm, classes: LSTMNet(norm, outputs=classes),
        data=sequences.permuted,
        recurrent=True,
    )
    return problem.build(norms.get("layer"), {"batch_size": batch_size, "epochs": 2})


def resnet20(batch_size: int) -> Program:
    """Return a ResNet-20 on images of noise in the shape of CIFAR-10: speed does not depend on their content."""
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (2560, 32, 32, 3), dtype=np.uint8)
    data = Data(images, draw.integers(0, 10, len(images)), drawn=(256, 256))
    problem = study.supervised(
        name="resnet20", model=lambda norm, classes: ResNet(norm, classes=classes), data=data, spatial=True
    )
    return problem.build(norms.get("batch"), {"batch_size": batch_size, "epochs": 1})


def of_network(network: Network, clock: Clock) -> Iterator[Row]:
    """Yield whole trainings and updates for each number of runs, and the choice among the numbers."""
    program = network.program()
    about: Row = {
        "network": network.name,
        "norm": network.norm,
        "batch_size": network.batch_size,
        "steps": program.steps,
    }
    data = on_devices(program, dict(program.data))
    pool, late = ThreadPoolExecutor(AHEAD), Clock(COMPILING * clock.left())
    futures = {n: pool.submit(compile_program, program, n if n > 1 else None, data) for n in network.numbers}
    measured: list[Trial] = []
    for runs, future in futures.items():
        wait([future], max(0.0, late.left()))
        contender = f"stacks of {runs}" if runs > 1 else "one after another"
        row = attempted(contender, partial(ours, runs, future, measured), clock)
        yield {"kind": "models", **about, **row}
        if measured and measured[-1].lanes == runs:
            yield {"kind": "stack", **about, **of_trial(measured[-1])}
    pool.shutdown(wait=False, cancel_futures=True)
    if measured:
        yield {"kind": "choice", **about, **chosen(measured, network.numbers)}


def of_trial(trial: Trial) -> Row:
    """Return the columns of a stack."""
    return {
        "lanes": trial.lanes,
        "models_per_minute": trial.models_per_minute(),
        "compile_s": trial.compile_seconds,
        "kb_a_lane": None if trial.memory is None else trial.memory / trial.lanes / 1e3,
    }


def chosen(measured: Sequence[Trial], numbers: Collection[int]) -> Row:
    """Return the columns of the choice, beside the best stack.

    Args:
        measured: Measurements of growing numbers of runs.
        numbers: Numbers that were to be measured; those that are missing were cut by time or failed.
    """
    choice, rates = Choice.of(measured), {trial.lanes: trial.models_per_minute() for trial in measured}
    best = max(rates, key=rates.__getitem__)
    missing = [number for number in numbers if number not in rates]
    return {
        "chosen": choice.lanes,
        "models_per_minute": rates[choice.lanes],
        "best": best,
        "best_models_per_minute": rates[best],
        "share_of_best": rates[choice.lanes] / rates[best],
        "not_measured": ", ".join(map(str, missing)),
    }


def attempted(contender: str, measure: Measure, clock: Clock) -> Row:
    """Return the columns of a contender, or of its failure."""
    try:
        if clock.left() <= 0:
            raise TimeoutError("not begun, the time was over")
        return {"contender": contender, **measure()}
    except Exception as error:
        return {"contender": contender, **failed(error)}


def ours(runs: int, future: Future[Compiled], measured: list[Trial]) -> Row:
    """Train whole models with `normlab run`'s own loop, on the device of this process.

    The column `beside_updates_s` is the part of each time that initial weights, orders of examples and the evaluation
    take.

    Args:
        runs: Number of runs in a stack.
        future: The compiled program.
        measured: Receives the time of the updates alone.

    Raises:
        TimeoutError: If the program is not compiled.
    """
    if not future.done():
        raise TimeoutError("not compiled in time")
    compiled, rates = future.result(), [throughput.LEARNING_RATE] * runs
    updates, beside = list[float](), list[float]()

    def stack(first: int) -> None:
        start = time.perf_counter()
        outcomes = list(compiled.train(rates, range(first * runs, (first + 1) * runs)))
        updates.append(sum(outcome.seconds for outcome in outcomes))
        beside.append(time.perf_counter() - start - updates[-1])

    columns = of_turns(stack, runs)
    memory = compiled.memory and compiled.memory * runs
    measured.append(Trial(lanes=runs, seconds=min(updates), compile_seconds=compiled.seconds, memory=memory))
    return {
        **columns,
        "beside_updates_s": statistics.median(beside[1:]),
        "compile_s": compiled.seconds,
        "kb_a_lane": compiled.memory and compiled.memory / 1e3,
    }


def of_turns(train: Callable[[int], object], models: int = 1) -> Row:
    """Train models for `TURN` seconds after a first time that does not count.

    Args:
        train: Trains models; receives 0, 1, 2, ...
        models: Number of models that a call trains.
    """
    train(0)
    seconds: list[float] = []
    while len(seconds) < 2 or sum(seconds) < TURN:
        seconds.append(throughput.timed(partial(train, len(seconds) + 1)))
    return {
        "models_per_minute": 60 * models / statistics.median(seconds),
        "most": 60 * models / min(seconds),
        "trained": models * len(seconds),
    }


def peers(cases: Sequence[Case], torch: "Torch | None", clock: Clock, tiny: bool) -> dict[tuple[str, Case], Measure]:
    """Return the contenders in other libraries, and on the CPU, by name and case; those that take longest last."""
    workers = 2 if tiny else os.cpu_count() or 1
    made: dict[tuple[str, Case], Measure] = {("Flax", case): partial(flax, case) for case in cases}
    if torch:
        for name in ("torch", "torch.compile"):
            compiled = name == "torch.compile"
            made |= {(name, case): partial(torch.turns, case, clock, compiled=compiled) for case in cases}
    return made | {("CPU", case): partial(on_cpu, case, workers) for case in cases}


def flax(case: Case) -> Row:
    """Train like a plain Flax script."""
    return of_turns(throughput.flax_loop(case)[0])


class Torch:
    """A process that imports PyTorch at once, and trains when it is asked; its memory is free again afterwards."""

    def __init__(self) -> None:
        device = "cpu" if jax.default_backend() == "cpu" else "cuda"
        self._process, self._connection = throughput.spawn(torch_turns, device)

    def turns(self, case: Case, clock: Clock, *, compiled: bool) -> Row:
        """Train with PyTorch.

        Raises:
            RuntimeError: If it fails there, or the time is over.
        """
        try:
            self._connection.send((case, compiled))
            if not self._connection.poll(max(1.0, clock.left())):
                self.end()
                raise RuntimeError("no result in time")
            columns = self._connection.recv()
        except (EOFError, OSError):
            raise RuntimeError("the process has ended") from None
        if "error" in columns:
            raise RuntimeError(columns["error"])
        return columns

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()


def torch_turns(connection: Connection, device: str) -> None:
    """Send the columns of PyTorch, or of its failure, for each case that is received."""
    with suppress(ImportError):  # the first case reports it
        importlib.import_module("torch")
    while True:
        case, compiled = connection.recv()
        try:
            train, setup = throughput.torch_eager(case, device, compiled=compiled)
            connection.send({**of_turns(train), "compile_s": setup})
        except Exception as error:
            connection.send(failed(error))


def on_cpu(case: Case, workers: int) -> Row:
    """Train in single-thread processes of the CPU, as `normlab run` does without an accelerator."""
    team = Team(Contender("ours", workers), case)
    try:
        team.turn(1)
        seconds = team.turn(1)
    finally:
        team.end()
    return {"models_per_minute": 60 * workers / seconds, "trained": workers, "workers": workers}
