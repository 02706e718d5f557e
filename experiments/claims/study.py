"""A study: claims, a plan, measurements, verdicts and figures, and the command that runs them."""

import argparse
import csv
import dataclasses
import json
import math
import os
import platform
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import jax
from matplotlib.figure import Figure

from experiments.claims.verdicts import Claim, Judgement, Row
from normlab.errors import BadInput
from normlab.study.report.figures import to_svg


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Extent of a study; studies add what they vary.

    Attributes:
        seeds: Seeds, each with its own weights and batches.
        first_seed: The first of them: other ones make a replication. Choices have seeds of their own.
        data: Data set, see `images.load`.
        data_dir: Folder of the data sets of TensorFlow Datasets.
    """

    seeds: int = 10
    first_seed: int = 0
    data: str = "tfds:mnist"
    data_dir: str | None = None

    def all_seeds(self) -> range:
        """Return the seeds whose numbers are reported."""
        return range(self.first_seed, self.first_seed + self.seeds)

    def tuning_seeds(self, n: int = 1) -> range:
        """Return seeds for choices; they are not among those whose numbers are reported."""
        return range(1_000_000 + self.first_seed, 1_000_000 + self.first_seed + n)


AnyPlan = TypeVar("AnyPlan", bound=Plan)
Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class Study(Generic[AnyPlan, Found]):
    """A study.

    Attributes:
        name: Name of its module.
        title: Title, a question.
        claims: Claims that it tries.
        standard: Plan of the reported numbers.
        quick: Plan of a few minutes, which shows that everything works.
        measure: `plan -> found`; trains.
        judge: `(plan, found) -> judgement`; computes every word and number from `found`.
        draw: `(plan, found) -> figures`, by name; the first one has the name of the study.
        rows: `(plan, found) -> rows`, the numbers of every seed.
        networks: Plans of other networks, standard and quick, by the names that `--network` takes.
    """

    name: str
    title: str
    claims: tuple[Claim, ...]
    standard: AnyPlan
    quick: AnyPlan
    measure: Callable[[AnyPlan], Found]
    judge: Callable[[AnyPlan, Found], Judgement]
    draw: Callable[[AnyPlan, Found], Mapping[str, Figure]]
    rows: Callable[[AnyPlan, Found], Sequence[Row]]
    networks: Mapping[str, tuple[AnyPlan, AnyPlan]] = field(default_factory=dict)

    def of_network(self, network: str) -> "Study[AnyPlan, Found]":
        """Return the study of one of `networks`, whose files lie beside those of its own network: `NAME-NETWORK`."""
        standard, quick = self.networks[network]
        return dataclasses.replace(self.named(network), standard=standard, quick=quick, networks={})

    def named(self, network: str) -> "Study[AnyPlan, Found]":
        """Return the study with files that name a network."""
        name = f"{self.name}-{network}"

        def draw(plan: AnyPlan, found: Found) -> Mapping[str, Figure]:
            return {name + key.removeprefix(self.name): figure for key, figure in self.draw(plan, found).items()}

        return dataclasses.replace(self, name=name, draw=draw)


def main(study: Study[AnyPlan, Found], description: str, arguments: Sequence[str] | None = None) -> None:
    """Run a study from the command line: measure, print, and write files if asked to.

    Args:
        study: The study.
        description: Help text: the docstring of its module.
        arguments: Arguments in place of those of the process.
    """
    parser = _parser(study, description)
    options = parser.parse_args(arguments)
    network = getattr(options, "network", None)
    chosen = study.of_network(network) if network else study
    plan = chosen.quick if options.quick else chosen.standard
    given = {name: value for name, value in vars(options).items() if name in _CHOSEN and value is not None}
    plan = dataclasses.replace(plan, **given)
    if plan.seeds < 2:
        parser.error(f"Expected `--seeds` to be at least 2, so that there are intervals, got {plan.seeds}.")
    if plan.first_seed < 0:
        parser.error(f"Expected `--first-seed` to be at least 0, got {plan.first_seed}.")
    began = time.perf_counter()
    try:
        found = study.measure(plan)
    except BadInput as error:
        parser.exit(2, f"{study.name}: {error}\n")
    judgement = chosen.judge(plan, found)
    print(text(judgement))
    if options.output:
        about = {**_about(_command(study.name, options)), "seconds": round(time.perf_counter() - began)}
        write(options.output, chosen, plan, found, judgement, about)


def _parser(study: Study[AnyPlan, Found], description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="folder for figures, numbers and verdicts")
    parser.add_argument("--quick", action="store_true", help="a few minutes; shows that everything works")
    parser.add_argument(
        "--seeds", type=int, help=f"default {study.standard.seeds}, or {study.quick.seeds} with --quick"
    )
    parser.add_argument("--first-seed", type=int, default=0, help="another one makes a replication; default 0")
    default = f"default {study.standard.data}" + (", or the network's" if study.networks else "")
    parser.add_argument("--data", help=f"digits, npz:PATH or tfds:NAME; {default}")
    parser.add_argument("--data-dir", help="folder of the data sets of TensorFlow Datasets")
    if study.networks:
        parser.add_argument("--network", choices=list(study.networks), help="another network than the study's own")
    return parser


_CHOSEN = ("seeds", "first_seed", "data", "data_dir")


def text(judgement: Judgement) -> str:
    """Return the findings, the paragraph and the bars as plain text."""
    lines = [
        f"{finding.verdict.upper()}: {finding.claim.text} {finding.effect}: {finding.seen.text('{:.3g}')}"
        + (f"; {finding.when}" if finding.when else "")
        for finding in judgement.findings
    ]
    lines += ["", *judgement.sentences, ""]
    lines += [f"{'met   ' if bar.met else 'NOT MET'} {bar.text}: {bar.seen}" for bar in judgement.bars]
    return "\n".join(lines)


def write(
    folder: Path,
    study: Study[AnyPlan, Found],
    plan: AnyPlan,
    found: Found,
    judgement: Judgement,
    about: Mapping[str, object],
) -> None:
    """Write figures (SVG, PNG), numbers (CSV), verdicts (JSON) and the text.

    Args:
        folder: Folder, which is made.
        study: The study.
        plan: Its plan.
        found: Its measurements.
        judgement: Their judgement.
        about: Command, versions and device.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{study.name}.txt").write_text(text(judgement) + "\n")
    with (folder / f"{study.name}.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows([*row[:4], f"{row.value:.6g}"] for row in study.rows(plan, found))
    document = {"name": study.name, "title": study.title, "about": dict(about), **_document(plan, judgement)}
    (folder / f"{study.name}.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    for name, figure in study.draw(plan, found).items():
        (folder / f"{name}.svg").write_text(to_svg(figure))
        figure.savefig(folder / f"{name}.png", dpi=150)
    print(f"wrote {study.name}.txt, .csv, .json and its figures in {folder}")


def _document(plan: Plan, judgement: Judgement) -> dict[str, object]:
    """Return plan and judgement for JSON, in which NaN is null."""
    said = dataclasses.asdict(judgement)
    for finding, entry in zip(judgement.findings, said["findings"], strict=True):
        entry["seen"] = {key: None if math.isnan(value) else value for key, value in finding.seen._asdict().items()}
    return {
        "plan": {key: value for key, value in dataclasses.asdict(plan).items() if key != "data_dir"},
        **said,
        "bars": [bar._asdict() for bar in judgement.bars],
    }


def _command(name: str, options: argparse.Namespace) -> str:
    """Return the command that makes the same numbers anywhere."""
    words = ["python", f"experiments/{name}.py", *["--quick"] * options.quick]
    for option in ("network", "seeds", "first_seed", "data"):
        value = getattr(options, option, None)
        words += [f"--{option.replace('_', '-')}", str(value)] if value else []
    return shlex.join(words)


def _about(command: str) -> dict[str, object]:
    return {
        "command": command,
        "jax": jax.__version__,
        "device": f"{jax.default_backend()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
    }
