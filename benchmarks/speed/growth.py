"""How do time and memory grow with the number of runs, and with everything that makes a comparison larger?

Section `folders` writes folders of 100 to 100,000 runs through the store of the library, so that all of them are
current, and measures each command on them in a process of its own. The numbers in the records are made up; the
comparison is trained only where a command trains. There are two kinds of folders, `wide` (100 runs of each
configuration) and `deep` (few configurations with many seeds).

Section `driver` hands out the runs of such folders to a pool that returns their records at once: the work of the
process that plans, counts and shows progress, without training and files.

The other sections run whole small comparisons into new folders, with one factor larger each time: `seeds`, `rates`,
`norms`, `examples`, `devices` (virtual ones of the processor). An uncounted run of each compiles its programs.

Memory is the largest sum of the resident memory of a command and its workers, polled ten times a second.

    python -m benchmarks.speed.growth                                           # everything, about half an hour
    python -m benchmarks.speed.growth --output benchmarks/results/growth-cpu    # writes .csv, .svg and .md
    python -m benchmarks.speed.growth --sections folders --most 10000 --commands report resume

With `--output`, rows of earlier invocations stay in the table unless they are measured again.
"""

import argparse
import csv
import dataclasses
import io
import math
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.speed._timing import environment
from benchmarks.speed.scaling import cpu_seconds

if TYPE_CHECKING:
    from normlab.study.design.comparison import Comparison, Settings
    from normlab.study.design.records import Configuration, Record, Run
    from normlab.study.driver.driver import ExecutionOptions
    from normlab.study.executors.protocol import Event
    from normlab.study.worker.strategy import Task

BARS = {"seconds": 30.0, "megabytes": 1000.0}
"""The most that a command may take for a folder of 100,000 runs."""

COMPARISON = '''
"""A comparison as large as its environment says, of models that take no time."""

import os

from normlab.study import Comparison, Curve, Factor, Problem, Tier

PROBLEMS, VALUES = (int(part) for part in os.environ["NORMLAB_GROWTH"].split("x"))


def build(norm, config):
    import jax.numpy as jnp
    import numpy as np

    from normlab.study.design.program import Program

    def init(seed):
        return {"w": np.float32(np.random.default_rng(seed).normal())}

    def step(state, t, learning_rate, data):
        w = state["w"] - learning_rate * (state["w"] - data["target"])
        return {"w": w}, (w - data["target"]) ** 2 + 1e-9 * sum(norm.name.encode())

    def evaluate(state, data):
        error = jnp.clip(jnp.abs(state["w"] - data["target"]) / config["batch_size"], 0, 1)
        return {"validation": error, "test": error + 0.01, "finite": jnp.isfinite(error)}

    target = {"target": np.float32(0.5)}
    return Program(data=target, init=init, step=step, evaluate=evaluate, steps=config["epochs"], last=1)


values = tuple(2 * (number + 1) for number in range(VALUES))
comparison = Comparison(
    name="growth",
    title="Growth",
    question="How do time and memory grow?",
    problems=tuple(Problem(name=f"number{n}", title=f"Number {n}", build=build) for n in range(PROBLEMS)),
    norms=("none", "batch"),
    curves=(
        Curve(
            name="deployed",
            title="The batch",
            factor=Factor(name="batch_size", label="batch size", flag="--batch-sizes", values=values, reference=2),
            config=lambda value: {"batch_size": value},
        ),
    ),
    tiers={"quick": Tier(epochs=3, learning_rates=(0.01, 0.03, 0.1, 0.3, 1.0), tuning_seeds=1, seeds=4)},
)
'''

NORMS = ("none", "batch", "batch_renorm", "layer", "rms", "dyt", "batch:momentum=0.9", "layer:epsilon=0.001")
"""Norms of the folders, which have no place in a spatial or recurrent network."""


@dataclass(frozen=True)
class Size:
    """The size of a folder.

    Attributes:
        kind: `wide` or `deep`.
        problems: Number of problems.
        values: Number of values of the factor.
        norms: Number of norms.
        tuning_seeds: Seeds of each of five learning rates.
        seeds: Evaluation seeds.
    """

    kind: str
    problems: int
    values: int
    norms: int
    tuning_seeds: int
    seeds: int

    @property
    def configurations(self) -> int:
        """The number of configurations."""
        return self.problems * self.values * self.norms

    @property
    def runs(self) -> int:
        """The number of runs."""
        return self.configurations * (5 * self.tuning_seeds + self.seeds)


SIZES = (
    Size("wide", problems=1, values=1, norms=2, tuning_seeds=4, seeds=30),
    Size("wide", problems=1, values=5, norms=2, tuning_seeds=4, seeds=80),
    Size("wide", problems=4, values=5, norms=5, tuning_seeds=4, seeds=80),
    Size("wide", problems=10, values=20, norms=5, tuning_seeds=4, seeds=80),
    Size("deep", problems=1, values=2, norms=5, tuning_seeds=1, seeds=5),
    Size("deep", problems=1, values=2, norms=5, tuning_seeds=4, seeds=80),
    Size("deep", problems=2, values=2, norms=5, tuning_seeds=20, seeds=400),
    Size("deep", problems=5, values=4, norms=5, tuning_seeds=20, seeds=900),
)
"""The folders of section `folders`."""

BASE = "batch_size --tier smoke --problems mlp --curves deployed --epochs 2 --no-extend --default-learning-rate none"
"""The small comparison of the other sections, which start from few seeds, rates, norms, examples and one device."""

GROWN: Mapping[str, Mapping[int, str]] = {
    "seeds": {n: f"--norms batch layer --batch-sizes 32 --seeds {n}" for n in (2, 10, 50, 250)},
    "rates": {
        n: "--norms batch layer --batch-sizes 32 --learning-rates " + " ".join(f"{0.01 * (i + 1):g}" for i in range(n))
        for n in (2, 8, 32, 128)
    },
    "norms": {
        n: f"--batch-sizes 32 --norms {' '.join(f'group:num_groups=1,epsilon={i + 1}e-5' for i in range(n))}"
        for n in (2, 4, 8, 16)
    },
    "examples": {
        n: f"--norms batch layer --batch-sizes 32 --epochs 40 --train-examples {n}" for n in (160, 320, 640, 1280)
    },
    "devices": {n: f"--norms batch layer --batch-sizes 32 --devices {n}" for n in (1, 2, 4, 8)},
}
"""Arguments of the small comparison by section and size; a later option replaces one of `BASE`."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measurement.

    Attributes:
        section: `folders`, `driver`, or the factor that grows.
        kind: `wide` or `deep` for a folder, else empty.
        what: The command.
        n: Number of runs in the folder, or the size of the factor.
        configurations: Number of configurations in the folder; 0 where the factor decides.
        seconds: Wall time of the command.
        cpu: Processor time of the command and its workers.
        megabytes: Largest sum of the resident memory of the command and its workers.
        page: Megabytes of its `report.html`; 0 where it writes none.
        load: Load of the machine before.
    """

    section: str
    kind: str
    what: str
    n: int
    configurations: int
    seconds: float
    cpu: float
    megabytes: float
    page: float
    load: float

    HEADING: ClassVar = (
        f"{'section':<10}{'kind':<6}{'command':<16}{'n':>8}{'config.':>9}{'wall s':>9}{'cpu s':>8}{'MB':>7}"
        f"{'page MB':>9}{'load':>6}"
    )

    def __str__(self) -> str:
        """Return a row of the table."""
        names = f"{self.section:<10}{self.kind:<6}{self.what:<16}{self.n:8}{self.configurations or '':>9}"
        return f"{names}{self.seconds:9.1f}{self.cpu:8.1f}{self.megabytes:7.0f}{self.page:9.1f}{self.load:6.1f}"

    @property
    def place(self) -> tuple[object, ...]:
        """The measurements; a new one replaces that of the same place."""
        return self.section, self.kind, self.what, self.n


COMMANDS = ("report, first", "report", "resume", "resume, 10 left", "dry run", "merge", "verify", "list")
"""Commands that are measured on each folder; the first report finds no index of the runs."""


def main() -> None:
    """Measure, print, and write files if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sections = ["folders", "driver", *GROWN]
    parser.add_argument("--sections", nargs="*", choices=sections, default=sections, help="none: draw OUTPUT again")
    parser.add_argument("--kinds", nargs="+", choices=["wide", "deep"], default=["wide", "deep"])
    parser.add_argument("--least", type=int, default=0, help="runs of the smallest folder")
    parser.add_argument("--most", type=int, default=100_000, help="runs of the largest folder")
    parser.add_argument("--commands", nargs="*", choices=COMMANDS, default=COMMANDS, help="none: write folders alone")
    parser.add_argument("--folders", type=Path, help="keep the folders there for later invocations")
    parser.add_argument("--output", type=Path, help="write OUTPUT.csv, OUTPUT.svg and OUTPUT.md")
    args = parser.parse_args()

    machine, _, _ = environment(platform.machine()).rpartition(", load")  # every row has its own
    heading = f"{machine}\n{Row.HEADING}"
    print(heading, flush=True)
    rows = {row.place: row for row in read(args.output)} if args.output else {}
    with tempfile.TemporaryDirectory() as temporary:
        there = args.folders or Path(temporary)
        sizes = [size for size in SIZES if size.kind in args.kinds and args.least <= size.runs <= args.most]
        measured = chain(
            folders(sizes, args.commands, there) if "folders" in args.sections else (),
            (driver(size, Path(temporary)) for size in sizes if "driver" in args.sections),
            (row for section in args.sections if section in GROWN for row in comparisons(section)),
        )
        for row in measured:
            print(row, flush=True)
            rows[row.place] = row
            if args.output:
                write(args.output, heading, list(rows.values()))
        if args.output and rows:
            write(args.output, heading, list(rows.values()))
    print(summary(list(rows.values())))


def order(row: Row) -> tuple[object, ...]:
    """Return the place of a row in the table."""
    return row.section != "folders", row.section != "driver", row.section, row.kind != "wide", row.what, row.n


def folders(sizes: Sequence[Size], commands: Sequence[str], there: Path) -> Iterator[Row]:
    """Measure the commands on folders of some sizes, which are written first unless they are there."""
    for size in sizes:
        root = (there / f"{size.kind}-{size.runs}").resolve()
        environ = {"NORMLAB_GROWTH": f"{size.problems}x{size.values}", "NORMLAB_CACHE": str(there / "cache")}
        source, folder = root / "growth.py", root / "folder"
        if not folder.exists():
            root.mkdir(parents=True, exist_ok=True)
            source.write_text(COMPARISON)
            os.environ.update(environ)
            write_folder(size, source, folder)
        for command in commands:
            yield Row(
                section="folders",
                kind=size.kind,
                what=command,
                n=size.runs,
                configurations=size.configurations,
                **on_folder(command, size, source, folder, environ),
            )


def on_folder(command: str, size: Size, source: Path, folder: Path, environ: Mapping[str, str]) -> dict[str, float]:
    """Prepare a folder for a command, and measure the command."""
    from normlab.study.worker.run_files import INDEX

    run, merged = ["run", *arguments(size, source, folder)], folder.with_name("merged")
    if command == "report, first":
        (folder / "runs" / INDEX).unlink(missing_ok=True)
    if command == "list":
        return measured(["list", "tiers", str(source)], environ)
    if command.startswith("report"):
        return measured(["report", str(folder)], environ, folder)
    if command == "dry run":
        return measured([*run, "--dry-run"], environ)
    if command == "verify":
        return measured(["verify", str(folder), "--trust"], environ, codes=(0, 1))  # the numbers are made up
    if command == "merge":
        halves = halved(folder)
        try:
            return measured(["merge", *map(str, halves), "--output", str(merged)], environ, merged)
        finally:
            for path in (*halves, merged):
                shutil.rmtree(path, ignore_errors=True)
    if command == "resume, 10 left":
        files = sorted(folder.glob("runs/??/*.json"))
        for path in files[:: len(files) // 10][:10]:
            path.unlink()
    return measured(run, environ, folder)


def halved(folder: Path) -> list[Path]:
    """Divide a folder into two, whose runs are the same files."""
    halves = [folder.with_name(name) for name in ("one", "two")]
    for half in halves:
        half.mkdir()
        shutil.copy(folder / "comparison.json", half)
    for number, path in enumerate(folder.glob("runs/??/*.json")):
        target = halves[number % 2] / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, target)
    return halves


def driver(size: Size, there: Path) -> Row:
    """Measure the work of the driver for all runs of a size."""
    from normlab.study.design.plan import Plan
    from normlab.study.driver import schedule, time_budget
    from normlab.study.driver.driver import new_console
    from normlab.study.driver.limits import RunLimit
    from normlab.study.driver.ongoing import Ongoing
    from normlab.study.driver.progress import Display
    from normlab.study.worker.strategy import Strategy, Task

    source = there / "growth.py"
    source.write_text(COMPARISON)
    os.environ["NORMLAB_GROWTH"] = f"{size.problems}x{size.values}"
    comparison, settings, _ = requested(size, source, there / "nowhere")
    identity: Any = {"code": {}, "versions": {}, "platform": {}, "data": {}, "strategy": ""}
    task = Task(source="", settings=settings, identity=identity, strategy=Strategy(lanes=0))
    before, begin, busy = os.getloadavg()[0], time.perf_counter(), time.process_time()
    plan = Plan(comparison, settings)
    ongoing, limit, every = Ongoing(plan, []), RunLimit(plan), frozenset(plan.configurations)
    display = Display(new_console(quiet=True), ongoing, every)
    pending = lambda: list(time_budget.pending(ongoing, (), every))  # noqa: E731
    for record in schedule.records(task, plan, pending, Instant, limit=limit):
        ongoing.add(record)
        limit.add(record)
        display.add(record)
    assert len(ongoing.known) == size.runs
    return Row(
        section="driver",
        kind=size.kind,
        what="driver",
        n=size.runs,
        configurations=size.configurations,
        seconds=time.perf_counter() - begin,
        cpu=time.process_time() - busy,
        megabytes=resident(os.getpid()) / 1e6,
        page=0.0,
        load=before,
    )


class Instant:
    """Two workers that have finished their runs as soon as they are given any."""

    def __init__(self, task: "Task") -> None:
        self.jobs, self._task = 2, task
        self._given: list[tuple[Configuration, Sequence[Run]]] = []

    def submit(self, configurations: "Mapping[Configuration, Sequence[Run]]", room: int) -> "Collection[Configuration]":
        """Take configurations."""
        self._given += list(configurations.items())[:room]
        return list(configurations)[:room]

    def events(self) -> "Iterator[Event]":
        """Yield the events of a configuration."""
        from normlab.study.executors.protocol import Begun, Done

        configuration, runs = self._given.pop(0)
        yield Begun(configuration)
        yield from (made_up(self._task, run) for run in runs)
        yield Done(configuration)

    def cancel(self, configuration: "Configuration") -> None:
        """Do nothing: nothing is under way."""

    def close(self) -> None:
        """Do nothing: there are no processes."""


def comparisons(section: str) -> Iterator[Row]:
    """Measure whole comparisons from nothing, with one factor larger each time."""
    for n, more in GROWN[section].items():
        given = {words[0]: words for words in map(str.split, re.split(r" (?=--)", f"{BASE} {more}"))}
        with tempfile.TemporaryDirectory() as there:
            command = ["run", *chain(*given.values()), "--output", f"{there}/out"]
            found = measured(command, {"NORMLAB_CACHE": f"{there}/cache"}, Path(there, "out"))
        yield Row(section=section, kind="", what="run", n=n, configurations=0, **found)


def measured(
    command: Sequence[str], environ: Mapping[str, str], folder: Path | None = None, codes: Sequence[int] = (0,)
) -> dict[str, float]:
    """Carry out a command of `normlab` in a process of its own, and measure it.

    Args:
        command: The arguments.
        environ: Further variables of the environment.
        folder: The folder with the report that the command writes.
        codes: Exit codes that are no failure.
    """
    before, variables = os.getloadavg()[0], {**os.environ, "JAX_PLATFORMS": "cpu", **environ}
    with tempfile.TemporaryFile("w+") as output:
        begin, busy = time.perf_counter(), cpu_seconds()
        process = subprocess.Popen(
            [sys.executable, "-m", "normlab", *command], env=variables, stdout=output, stderr=subprocess.STDOUT
        )
        most = 0
        while process.poll() is None:
            most = max(most, resident(process.pid))
            time.sleep(0.1)
        seconds, busy = time.perf_counter() - begin, cpu_seconds() - busy
        output.seek(0)
        if process.returncode not in codes:
            raise SystemExit(
                f"`normlab {' '.join(command)}` ended with exit code {process.returncode}:\n{output.read()}"
            )
    page = (folder / "report.html").stat().st_size if folder else 0
    return {"seconds": seconds, "cpu": busy, "megabytes": most / 1e6, "page": page / 1e6, "load": before}


def resident(root: int) -> int:
    """Sum the resident memory of a process and its descendants in bytes, where the system is Linux."""
    parents, sizes = dict[int, int](), dict[int, int]()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            fields = path.read_text().rpartition(")")[2].split()
            parents[int(path.parent.name)], sizes[int(path.parent.name)] = int(fields[1]), int(fields[21])
    total, waiting = 0, [root]
    while waiting:
        process = waiting.pop()
        total += sizes.get(process, 0)
        waiting += [child for child, parent in parents.items() if parent == process]
    return total * os.sysconf("SC_PAGE_SIZE")


def read(output: Path) -> list[Row]:
    """Read the rows of earlier invocations."""
    path = output.with_suffix(".csv")
    if not path.exists():
        return []
    with path.open(newline="") as file:
        of = Row.__annotations__
        return [Row(**{name: of[name](value) for name, value in row.items()}) for row in csv.DictReader(file)]


FIELDS = dataclasses.fields(Row)


def write(output: Path, heading: str, rows: Sequence[Row]) -> None:
    """Write the rows, the figure and the page."""
    rows = sorted(rows, key=order)
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in FIELDS], lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {k: round(v, 2) if isinstance(v, float) else v for k, v in dataclasses.asdict(row).items()} for row in rows
        )
    output.with_suffix(".svg").write_text(drawn(rows))
    parts = [
        "# Growth",
        f"`python -m benchmarks.speed.growth --output benchmarks/results/{output.name}`, section by section; each row "
        "is one measurement. `!` marks what exceeds the goal for 100,000 runs: 30 s, 1,000 MB.",
        f"![Time and memory]({output.name}.svg)",
        summary(rows),
    ]
    parts.append("\n".join(["```", heading, *map(str, rows), "```"]))
    output.with_suffix(".md").write_text("\n\n".join(parts) + "\n")


def summary(rows: Sequence[Row]) -> str:
    """State how each command grows between its two largest folders; `!` marks what is above the bar."""
    lines = []
    by_command: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.configurations:
            by_command.setdefault((row.what, row.kind), []).append(row)
    for (what, kind), found in sorted(by_command.items()):
        *_, small, large = [None, *sorted(found, key=lambda row: row.n)]
        if small is None:
            continue
        times = (large.n - small.n) / 1000
        seconds, megabytes = (
            f"{getattr(large, name):.0f}{'!' * (getattr(large, name) > bar)} {unit}, "
            f"{(getattr(large, name) - getattr(small, name)) / times:.2g} {unit} for each 1,000 more"
            for name, unit, bar in (("seconds", "s", BARS["seconds"]), ("megabytes", "MB", BARS["megabytes"]))
        )
        lines.append(f"- {what}, {large.n:,} runs, {kind}: {seconds}; {megabytes}")
    return "\n".join(lines)


def drawn(rows: Sequence[Row]) -> str:
    """Draw time and memory, those of commands on folders above those of whole comparisons, as an SVG document."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    from benchmarks.figures import QUIET, STYLES

    with rc_context(STYLES):
        figure = Figure(figsize=(7.5, 6.5), facecolor="white", layout="constrained")
        for line, inside in zip(figure.subplots(2, 2), (True, False), strict=True):
            lines = lines_of(rows, folders=inside)
            for axes, name, unit in zip(line, BARS, ("s", "MB"), strict=True):
                for label, found in lines.items():
                    values = [getattr(row, name) for row in found]
                    axes.plot([row.n for row in found], values, "o-", markersize=3, linewidth=1.2, label=label)
                if lines and inside:
                    axes.axhline(BARS[name], color=QUIET, linestyle="--", linewidth=0.8)
                axes.set_xscale("log")
                axes.set_yscale("log")
                axes.set_xlabel("runs in the folder" if inside else "seeds, rates, norms, examples, devices")
                axes.set_title(f"{'a command on a folder' if inside else 'a small comparison'} ({unit})", fontsize=9)
            if lines:
                line[0].legend(fontsize=7, frameon=False)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()


def lines_of(rows: Iterable[Row], *, folders: bool) -> dict[str, list[Row]]:
    """Collect the rows of each line of a panel, in the order of their sizes, without `deep` folders."""
    lines: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.n):
        if bool(row.configurations) is folders and row.kind != "deep":
            lines.setdefault(row.what if folders else row.section, []).append(row)
    return lines


def requested(size: Size, source: Path, folder: Path) -> "tuple[Comparison, Settings, ExecutionOptions]":
    """Read the request of `normlab run` with `arguments`."""
    from normlab.cli.parser import run_parser
    from normlab.study.design import discovery
    from normlab.study.design.request import Request, from_flags
    from normlab.study.driver.driver import ExecutionOptions

    comparison = discovery.load(str(source))
    parsed = run_parser(comparison, str(source)).parse(arguments(size, source, folder))
    request = Request(comparison, from_flags(parsed, comparison))
    return comparison, request.settings(str(source)), ExecutionOptions.of(request)


def write_folder(size: Size, source: Path, folder: Path) -> None:
    """Write a folder of current runs with made-up numbers, as `normlab run` with `arguments` would."""
    from normlab.study.design.recorded import describe
    from normlab.study.driver.driver import Invocation, new_console
    from normlab.study.worker.store import Header, Store

    comparison, settings, execution = requested(size, source, folder)
    invocation = Invocation(comparison, settings, folder, "growth", console=new_console(quiet=True))
    task, store = invocation.task(execution), Store(folder)
    records: list[Record] = []
    with store.writing():
        described = describe(invocation.plan)
        store.write_header(Header(settings=settings, identity=task.identity, command="growth", described=described))
        while pending := invocation.plan.pending(records):
            records += [made_up(task, run) for run in pending]
        for record in records:
            store.add(record)


def made_up(task: "Task", run: "Run") -> "Record":
    """Make a record as large as that of a real run, with numbers that depend on its norm, learning rate and seed."""
    from normlab.study.worker.outcome import make_record

    noise = random.Random(f"{run.seed} {run.configuration.problem}").gauss(0.0, 0.002)
    own = random.Random(repr(run)).gauss(0.0, 0.002)
    error = 0.05 + 0.002 * len(run.configuration.norm) + 0.02 * abs(math.log10(run.learning_rate) + 1) + noise + own
    metrics = {"validation": error, "train_loss": error**2, "finite": True, "first_nonfinite": -1}
    cost = {"compile": 0.31, "memory": 216.0, "run": 0.00064 + abs(own), "step": 0.00021 + abs(own)}
    return make_record(task, run, "ok", "", metrics | ({"test": error} if run.stage == "evaluate" else {}), cost=cost)


def arguments(size: Size, source: Path, folder: Path) -> list[str]:
    """Return the arguments of `normlab run` for a folder."""
    return [
        str(source), "--norms", *NORMS[: size.norms], "--tuning-seeds", str(size.tuning_seeds),
        "--seeds", str(size.seeds), "--no-extend", "--output", str(folder),
    ]  # fmt: skip


if __name__ == "__main__":
    main()
