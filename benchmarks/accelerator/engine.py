"""Stage `engine`: models a minute of stacked runs, beside runs one after another, a plain Flax loop and PyTorch.

Rows of kind `stack` have the updates of a training alone, for each number of runs in a stack; `choice` has the number
that the rule of `normlab run` chooses from these, for full stacks, beside the best. Rows of kind `models` have whole
trainings, from initial weights to the test error, of this library and of its peers. The small networks and their peers
are those of `benchmarks.speed.throughput`.
"""

import os
import statistics
import time
from collections.abc import Callable, Collection, Iterator
from functools import partial
from itertools import islice
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
from normlab.study.driver.lanes import CANDIDATES, Choice, Trial, trials
from normlab.study.training.compilation import compile_program, inputs

__all__ = ["rows"]

TURN = 0.5
"""Seconds for which a contender trains whole models; at least two are trained."""

Measure = Callable[[], Row]


class Network(NamedTuple):
    """A network with its data.

    Attributes:
        name: As in tables.
        norm: Its norm.
        batch_size: Examples of an update.
        program: Makes its program.
        case: The same for the contenders in other libraries; `None` without any.
    """

    name: str
    norm: str
    batch_size: int
    program: Callable[[], Program]
    case: Case | None = None


def rows(clock: Clock, *, tiny: bool, skip: Collection[str]) -> Iterator[Row]:
    """Yield the rows of one network after the other, each with half of the time that is left, the last with all."""
    *others, last = [of_case(Case("mlp", "batch", 512))] if tiny else all_networks()
    for network in others:
        yield from of_network(network, Clock(clock.left() / 2), tiny, skip)
    yield from of_network(last, clock, tiny, skip)


def all_networks() -> list[Network]:
    """Return the networks, those that compile fast first."""
    small = [Case("mlp", "batch", 32), Case("conv", "batch", 32)]
    return [
        *map(of_case, small),
        Network("lstm", "layer", 64, partial(lstm, 64)),
        Network("resnet20", "batch", 32, partial(resnet20, 32)),
    ]


def of_case(case: Case) -> Network:
    """Return the network of a case of `benchmarks.speed.throughput`."""
    return Network(case.model, case.norm, case.batch_size, partial(throughput.program, case), case)


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
    images = draw.integers(0, 256, (4096, 32, 32, 3), dtype=np.uint8)
    data = Data(images, draw.integers(0, 10, len(images)), drawn=(512, 512))
    problem = study.supervised(
        name="resnet20", model=lambda norm, classes: ResNet(norm, classes=classes), data=data, spatial=True
    )
    return problem.build(norms.get("batch"), {"batch_size": batch_size, "epochs": 1})


def of_network(network: Network, clock: Clock, tiny: bool, skip: Collection[str]) -> Iterator[Row]:
    """Yield stacks, the choice among them, and whole trainings."""
    program = network.program()
    about: Row = {
        "network": network.name,
        "norm": network.norm,
        "batch_size": network.batch_size,
        "steps": program.steps,
    }
    yield {"kind": "models", **about, **attempted("one after another", partial(ours, program, None))}
    measured: list[Trial] = []
    end = time.monotonic() + clock.left() / 2  # the other half is for peers
    for trial in islice(trials(program, end=end), 2 if tiny else len(CANDIDATES)):
        measured.append(trial)
        yield {"kind": "stack", **about, **of_trial(trial)}
    if measured:
        yield {"kind": "choice", **about, **chosen(measured)}
    lanes = Choice.of(measured).lanes
    others = {f"stacks of {lanes}": partial(ours, program, lanes), **peers(network, clock, tiny)}
    for contender, measure in others.items():
        if contender not in skip and clock.left() > 0:
            yield {"kind": "models", **about, **attempted(contender, measure)}


def of_trial(trial: Trial) -> Row:
    """Return the columns of a stack."""
    return {
        "lanes": trial.lanes,
        "models_per_minute": trial.models_per_minute(),
        "compile_s": trial.compile_seconds,
        "kb_a_lane": None if trial.memory is None else trial.memory / trial.lanes / 1e3,
    }


def chosen(measured: list[Trial]) -> Row:
    """Return the columns of the probe's choice, beside the best stack."""
    choice, rates = Choice.of(measured), {trial.lanes: trial.models_per_minute() for trial in measured}
    best = max(rates, key=rates.__getitem__)
    return {
        "chosen": choice.lanes,
        "models_per_minute": rates[choice.lanes],
        "best": best,
        "best_models_per_minute": rates[best],
        "share_of_best": rates[choice.lanes] / rates[best],
        "probe_s": sum(trial.compile_seconds for trial in measured if trial.lanes in choice.rates),
    }


def attempted(contender: str, measure: Measure) -> Row:
    """Return the columns of a contender, or of its failure."""
    try:
        return {"contender": contender, **measure()}
    except Exception as error:
        return {"contender": contender, **failed(error)}


def ours(program: Program, lanes: int | None) -> Row:
    """Train whole models with `normlab run`'s own loop, on the device of this process.

    The column `start_s` is the part of each time that initial weights and orders of examples take.
    """
    compiled = compile_program(program, lanes)
    size = lanes or 1

    def stack(first: int) -> None:
        seeds = range(first * size, (first + 1) * size)
        list(compiled.train([throughput.LEARNING_RATE] * size, seeds))

    def started() -> object:
        return jax.block_until_ready(inputs(program, lanes, [throughput.LEARNING_RATE] * size, range(size)))

    return {
        **of_turns(stack, size),
        "start_s": throughput.timed(started),
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


def peers(network: Network, clock: Clock, tiny: bool) -> dict[str, Measure]:
    """Return the contenders in other libraries, and on the CPU."""
    case = network.case
    if case is None:
        return {}
    workers = 2 if tiny else os.cpu_count() or 1
    return {
        "Flax": lambda: of_turns(throughput.flax_loop(case)[0]),
        "torch": lambda: in_child(case, clock, compiled=False),
        "torch.compile": lambda: in_child(case, clock, compiled=True),
        "CPU": lambda: on_cpu(case, workers),
    }


def in_child(case: Case, clock: Clock, *, compiled: bool) -> Row:
    """Train with PyTorch in a process of its own, whose memory is free again afterwards.

    Raises:
        RuntimeError: If it fails there, or the time is over.
    """
    device = "cpu" if jax.default_backend() == "cpu" else "cuda"
    process, connection = throughput.spawn(torch_turns, case, device, compiled)
    try:
        if not connection.poll(max(1.0, clock.left())):
            raise RuntimeError("no result in time")
        columns = connection.recv()
    except EOFError:
        raise RuntimeError("the process died") from None
    finally:
        process.kill()
        process.join()
    if "error" in columns:
        raise RuntimeError(columns["error"])
    return columns


def torch_turns(connection: Connection, case: Case, device: str, compiled: bool) -> None:
    """Send the columns of PyTorch, or of its failure."""
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
