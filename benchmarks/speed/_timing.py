"""Shared parts of the measurements: turns in shuffled rounds, ratios, and writing of results."""

import argparse
import csv
import dataclasses
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

Name = TypeVar("Name")


class Ratio(NamedTuple):
    """Median and quartiles of a ratio over rounds."""

    ratio: float
    ratio_low: float
    ratio_high: float


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Compare two contenders within each round, because a slowdown of the machine affects both."""
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    quarter = len(ratios) // 4
    return Ratio(statistics.median(ratios), ratios[quarter], ratios[-1 - quarter])


def interleave(
    contenders: Mapping[Name, Callable[[], Any]],
    rounds: int,
    warm_up: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Name, list[float]]:
    """Measure seconds of calls: all contenders once per round, in shuffled order, after `warm_up` uncounted rounds.

    Calls return when their work is done. The clock is of the wall unless given.
    """
    times: dict[Name, list[float]] = {name: [] for name in contenders}
    for turn, name in turns(list(contenders), warm_up + rounds):
        start = clock()
        contenders[name]()
        if turn >= warm_up:
            times[name].append(clock() - start)
    return times


def at_least_one(text: str) -> int:
    """Read the number of rounds from the command line."""
    rounds = int(text)
    if rounds < 1:
        raise argparse.ArgumentTypeError(f"Expected `--rounds` to be at least 1, got {rounds}.")
    return rounds


def turns(names: Sequence[Name], rounds: int) -> Iterator[tuple[int, Name]]:
    """Yield every name once per round, in shuffled order, with the number of the round."""
    order, shuffle = list(names), random.Random(0).shuffle
    for turn in range(rounds):
        shuffle(order)
        for name in order:
            yield turn, name


def environment(device: str, peers: Sequence[str] = ()) -> str:
    """Name versions, those of `peers` too, device and load."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", *peers))
    return f"{packages}, Python {platform.python_version()}, {device}, {os.cpu_count()} cores, {load()}"


def load() -> str:
    """Report how many processes competed for cores over the last minute."""
    return f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"


def command_line() -> str:
    """Return the command of this measurement, from the root of the repository."""
    return " ".join(["python -m", f"benchmarks.speed.{Path(sys.argv[0]).stem}", *sys.argv[1:]])


def write(output: Path, title: str, rows: Sequence[Any], table: str, summary: str) -> None:
    """Write dataclasses as OUTPUT.csv, and their table and summary as the page OUTPUT.md."""
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in dataclasses.fields(rows[0])])
        writer.writeheader()
        writer.writerows(dataclasses.asdict(row) for row in rows)
    command = command_line()
    output.with_suffix(".md").write_text(f"# {title}\n\n`{command}`\n\n```\n{table}\n```\n\n{summary}\n")
    print(f"wrote {output.with_suffix('.csv')} and {output.with_suffix('.md')}")
