"""Run every study, with its own network and with larger ones, and write the page of the claims.

    python -m experiments.claims.all --output FOLDER --data-dir DIR     # everything; needs an accelerator
    python -m experiments.claims.all --output FOLDER --networks larger --studies why dropout
    python -m experiments.claims.all --output FOLDER --quick --data digits --networks own

Each run is a process of its own. A run whose result is in the folder is left out, so the same command resumes; runs
that fail are listed at the end, with the ends of their logs in FOLDER/logs. Comparisons keep their runs in FOLDER/runs.
"""

import argparse
import importlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.claims import table

STUDIES = (
    "bias", "step_cost", "depth_at_init", "averages", "ensemble", "fine_tuning", "saturation", "single_example",
    "covariate_shift", "whitening", "steps_to_target", "why",
)  # fmt: skip
"""Studies with a plan of their own, the cheap ones first."""

OWN, LARGER = "own", "larger"
"""Words for a study's own network, and for all others."""


class Setting(NamedTuple):
    """Options of `normlab run` for a network.

    Attributes:
        data: Options that belong to the data, and are left out with other data.
        others: Options whatever the data.
    """

    data: str
    others: str = "--norms none batch"


_MNIST = "--data tfds:mnist --image-size 14 --train-examples 22222 --epochs 2"
_CIFAR = "--data tfds:cifar10 --epochs 20"
_CONV = {"conv": Setting(_CIFAR, "--problems conv --norms none batch layer")}
_SMALL = "--data tfds:cifar10 --image-size 16 --train-examples 22222 --epochs 2"
_NARROW = "--problems conv-narrow --norms none batch"
"""A conv net on small images, for two processors."""
COMPARISONS: Mapping[str, Mapping[str, Setting]] = {
    "placement": {
        OWN: Setting(_MNIST),
        "conv-narrow": Setting(_SMALL, f"{_NARROW} layer"),
        **_CONV,
    },
    "dropout": {
        OWN: Setting(_MNIST),
        "conv-narrow": Setting(_SMALL, f"{_NARROW} --curves all few --learning-rates 0.01 0.03 0.1 0.3"),
        **_CONV,
    },
    "initialization": {
        OWN: Setting(_MNIST),
        "conv-narrow": Setting(_SMALL, f"{_NARROW} --scales 0.1 1 10 --learning-rates 0.01 0.03 0.1 0.3 1 3"),
        **_CONV,
    },
    "training_size": {
        OWN: Setting(f"{_MNIST} --training-sizes 100 500 2000 20000"),
        "conv-narrow": Setting(f"{_SMALL} --training-sizes 200 2000 20000", _NARROW),
        "conv": Setting(f"{_CIFAR} --training-sizes 500 5000 45000", "--problems conv --norms none batch layer"),
        "resnet-20": Setting(f"{_CIFAR} --training-sizes 500 5000 45000", "--problems resnet20 --norms none batch"),
    },
    "depth": {OWN: Setting(_MNIST.replace("22222", "14222"))},
    "every_layer": {
        OWN: Setting(_MNIST, "--norms none batch --problems mlp"),
        "conv-narrow": Setting(_SMALL, _NARROW),
        "mlp-20": Setting(_MNIST, "--norms none batch --problems mlp20"),
        **_CONV,
    },
}
"""Comparisons that `experiments/factorial.py` judges, by name and network."""


class Job(NamedTuple):
    """A run.

    Attributes:
        name: Name of its files.
        commands: Modules with their arguments, one after the other.
        command: The command that its result names.
    """

    name: str
    commands: tuple[tuple[str, ...], ...]
    command: str


def jobs(options: argparse.Namespace) -> Iterator[Job]:
    """List all runs that are asked for."""
    for name in options.studies:
        make = _comparison if name in COMPARISONS else _study
        for network, words in networks(name).items():
            if words & set(options.networks):
                yield make(options, name, network)


def networks(name: str) -> dict[str, set[str]]:
    """Return the networks of a study, each with the words that choose it: its name, `own` or `larger`."""
    if name in COMPARISONS:
        return {network: {network, OWN if network == OWN else LARGER} for network in COMPARISONS[name]}
    study = importlib.import_module(f"experiments.{name}").study
    own = study.standard
    parts = [  # a study of several networks takes each of them alone, too
        one
        for one, (plan, _) in study.networks.items()
        if one in getattr(own, "networks", ()) and plan.data == own.data
    ]
    return {OWN: {OWN}} | {one: {one} if one in parts else {one, LARGER} for one in study.networks}


def _study(options: argparse.Namespace, name: str, network: str) -> Job:
    given = ["--quick"] * options.quick
    given += [] if network == OWN else ["--network", network]
    given += _given("seeds", options) + _given("data", options)
    places = ["--output", str(options.output), *_given("data_dir", options)]
    command = shlex.join(["python", f"experiments/{name}.py", *given])
    return Job(_named(name, network), ((f"experiments.{name}", *given, *places),), command)


def _comparison(options: argparse.Namespace, name: str, network: str) -> Job:
    setting, named = COMPARISONS[name][network], _named(name, network)
    given = ["--tier", "smoke" if options.quick else "standard", *setting.others.split(), *_given("seeds", options)]
    data = _given("data", options) or ([] if options.quick else setting.data.split())
    given += data
    folder = str(options.output / "runs" / named)
    stored = any(word.startswith("tfds:") for word in data)  # `normlab run` takes no `--data-dir` otherwise
    places = ["--output", folder, *(_given("data_dir", options) if stored else ())]
    run = ("normlab", "run", name, *given, *places)
    judge = ("experiments.factorial", folder, "--output", str(options.output))
    judge += () if network == OWN else ("--network", network)
    return Job(named, (run, judge), shlex.join(["normlab", "run", name, *given]))


def _named(name: str, network: str) -> str:
    return name if network == OWN else f"{name}-{network}"


def _given(option: str, options: argparse.Namespace) -> list[str]:
    value = getattr(options, option)
    return [] if value is None else [f"--{option.replace('_', '-')}", str(value)]


def done(job: Job, output: Path) -> bool:
    """Report whether the result of a run is there.

    Raises:
        FileExistsError: If there is a result of another command.
    """
    file = output / f"{job.name}.json"
    if not file.is_file():
        return False
    command = json.loads(file.read_text())["about"]["command"]
    if command != job.command:
        raise FileExistsError(
            f"Expected no result, or one of `{job.command}`, got one of `{command}`. Choose another `--output`."
        )
    return True


def run(job: Job, output: Path) -> str:
    """Run the commands of a job; return why it failed, or nothing."""
    log = output / "logs" / f"{job.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        for module, *arguments in job.commands:
            ended = subprocess.run(
                [sys.executable, "-m", module, *arguments], stdout=file, stderr=subprocess.STDOUT, check=False
            )
            if ended.returncode:
                return last_line(log.read_text()) or f"it ended with {ended.returncode}"
    return ""


def last_line(text: str) -> str:
    """Return the last line of a log that is not empty."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def run_all(listed: Sequence[Job], output: Path, runner: Callable[[Job, Path], str] = run) -> dict[str, str]:
    """Run jobs in turn, each unless its result is there; return why some of them failed, by name.

    Args:
        listed: The jobs.
        output: Folder of results.
        runner: Runs a job; returns why it failed, or nothing.
    """
    failures = dict[str, str]()
    for i, job in enumerate(listed, 1):
        began, said = time.perf_counter(), "is there"
        try:
            if not done(job, output):
                reason = runner(job, output) or ("" if done(job, output) else "it wrote no result")
                said = f"{'failed' if reason else 'done'} after {time.perf_counter() - began:.0f} s"
                failures |= {job.name: reason} if reason else {}
        except FileExistsError as error:
            said, failures[job.name] = "failed", str(error)
        print(f"{i} of {len(listed)}: {job.name} {said}", flush=True)
    return failures


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder for results and the page")
    every = (*STUDIES, *COMPARISONS)
    made.add_argument("--studies", nargs="+", choices=every, default=every, metavar="STUDY", help=", ".join(every))
    made.add_argument(
        "--networks", nargs="+", default=[OWN, LARGER], metavar="NETWORK",
        help=f"`{OWN}`, `{LARGER}`, or names such as conv or resnet-20; studies without them are left out; "
        "default: all",
    )  # fmt: skip
    made.add_argument("--quick", action="store_true", help="the smallest budgets; shows that everything works")
    made.add_argument("--seeds", type=int, help="in place of those of the plans")
    made.add_argument("--data", help="digits, npz:PATH or tfds:NAME for all studies, in place of each network's")
    made.add_argument("--data-dir", help="folder of the data sets of TensorFlow Datasets")
    made.add_argument("--dry-run", action="store_true", help="list the commands, and run nothing")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run studies and write the page; return 1 if some of them failed."""
    options = parser().parse_args(arguments)
    listed = list(jobs(options))
    known = {OWN, LARGER}.union(*(networks(name) for name in options.studies))
    unknown = [word for word in options.networks if word not in known]
    if unknown or not listed:
        got = " ".join(unknown or options.networks)
        parser().error(f"Expected networks of the studies, got {got}. `--dry-run` lists them.")
    if options.dry_run:
        print("\n".join(f"{job.name}: {job.command}" for job in listed))
        return 0
    options.output.mkdir(parents=True, exist_ok=True)
    failures = run_all(listed, options.output)
    if documents := table.read(options.output):
        (options.output / "claims.md").write_text(table.page(documents, "."))
        print(f"wrote {options.output / 'claims.md'}: {len(documents)} studies")
    for name, reason in failures.items():
        print(f"FAILED {name}: {reason}")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
