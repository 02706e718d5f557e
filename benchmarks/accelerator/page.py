"""Write the page of a measurement, and its rows as a table.

python -m benchmarks.accelerator.page build/accelerator/RESULT.json --output benchmarks/results/accelerator-h100
"""

import argparse
import csv
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.accelerator import results
from benchmarks.accelerator.cases import BOTH, FORWARD
from benchmarks.accelerator.decision import decisions
from benchmarks.accelerator.goals import goals
from benchmarks.accelerator.stage import Json, Row

__all__ = ["page", "write"]

OWN_TABLE = ("invocation", "device", "versions", "check", "copy", "layer", "stage")
"""Kinds with a section of their own; each other kind is a table as it is."""


ABOUT = {
    "engine": "`stack`: models a minute by updates alone, for each number of runs that `vmap` stacks. `choice`: the "
    "number that the rule of `normlab run` chooses from these, for full stacks, beside the best. `models`: whole "
    "trainings, from initial weights to the test error, the median of several; `most` is the fastest, and "
    "`beside_updates_s` the part that initial weights, orders of examples and the evaluation take. Programs of a "
    "network were compiled side by side.",
    "resnet50": "A training step of ResNet-50, in milliseconds. `frozen` is batch norm with statistics that training "
    "does not take. `batch_norm` is the share of a step that is saved without any norm, `statistics` the share that "
    "frozen statistics save, and `flax_batch_norm` the share of Flax's batch norm.",
    "training": "The LSTM reads every second row and column. The validation error of tuning seeds chose each learning "
    "rate. `test_error` is the mean of the other "
    "seeds that did not fail, with its 95 % interval from `low` to `high`. Programs were compiled on the same host "
    "meanwhile.",
}
"""Sentences before the tables of a stage."""

NAMES = ("stage", "kind")
"""Columns that name a table, and are in none."""

DEVICE = {
    "count": "devices",
    "memory_gb": "GB for JAX",
    "cores": "multiprocessors",
    "driver": "driver",
    "platform_version": "platform",
    "cpus": "CPU cores",
}
"""Columns of the device, and their words."""


def main() -> None:
    """Read, and write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="RESULT.json of `python -m benchmarks.accelerator`")
    parser.add_argument("--output", type=Path, required=True, help="write OUTPUT.md and OUTPUT.csv")
    given = parser.parse_args()
    if not given.result.is_file():
        parser.error(f"Expected the RESULT.json of a measurement, got `{given.result}`, which is no file.")
    write(results.read(given.result), given.output)
    print(f"wrote {given.output.with_suffix('.md')} and {given.output.with_suffix('.csv')}")


def write(rows: Sequence[Row], output: Path) -> None:
    """Write the page OUTPUT.md and all rows as OUTPUT.csv."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".md").write_text(page(rows))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with output.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({name: flat(value) for name, value in row.items()} for row in rows)


def page(rows: Sequence[Row]) -> str:
    """Return the page: circumstances, then a section for each stage that was run."""
    sections = [circumstances(rows), correctness(rows), layers(rows), *others(rows), stages(rows)]
    return "\n\n".join(filter(None, sections)) + "\n"


def circumstances(rows: Sequence[Row]) -> str:
    """Return the heading, the device, the versions and the command."""
    invocation, device, versions = (
        next(iter(of_kind(rows, kind)), {}) for kind in ("invocation", "device", "versions")
    )
    dry = "\n\n**A dry run on tiny shapes: nothing here is a measurement.**" if invocation.get("dry_run") else ""
    packages = ", ".join(f"{name} {version}" for name, version in versions.items() if version and name not in NAMES)
    about = ", ".join(f"{label} {device[name]}" for name, label in DEVICE.items() if device.get(name) is not None)
    when = f"{invocation.get('date')}, commit {invocation.get('commit')}, load {invocation.get('load')}"
    return (
        f"# {device.get('device', 'An accelerator')}\n\n`{invocation.get('command')}`{dry}\n\n"
        f"{packages}; {about}; {when}; XLA_FLAGS {invocation.get('xla_flags') or 'not set'}."
    )


def correctness(rows: Sequence[Row]) -> str:
    """Return how many checks passed and the largest error by case and dtype, and every check that failed."""
    checks = of_kind(rows, "check")
    if not checks:
        return ""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in checks:
        groups.setdefault((str(row["case"]), str(row["dtype"])), []).append(row)
    summary = [
        {
            "case": case,
            "dtype": dtype,
            "passed": f"{sum(row['ok'] is True for row in found)} of {len(found)}",
            "largest error": largest([0.0, *(largest_error(row) for row in found if "errors" in row)]),
            "tolerance": found[0]["tolerance"],
        }
        for (case, dtype), found in groups.items()
    ]
    failures = [row for row in checks if not row["ok"]]
    passed = f"{len(checks) - len(failures)} of {len(checks)} checks against float64 passed."
    failed = f"\n\nFailed:\n\n{table(failures)}" if failures else ""
    return f"## Correctness\n\n{passed}\n\n{table(summary)}{failed}"


def largest_error(row: Row) -> float:
    """Return the largest error of a check; NaN is larger than any."""
    errors = row["errors"]
    assert isinstance(errors, dict)
    return largest(float(str(error)) for error in errors.values())


def largest(errors: Iterable[float]) -> float:
    """Return the largest of some errors; NaN is larger than any."""
    return max(errors, key=lambda error: (math.isnan(error), error))


def layers(rows: Sequence[Row]) -> str:
    """Return the fractions of the bandwidth of a copy, what failed, and the decisions."""
    measured = [row for row in of_kind(rows, "layer") if "fraction" in row]
    if not measured:
        return ""
    failures = [row for row in of_kind(rows, "layer") if "error" in row]
    parts = [
        "## Layers",
        "Fractions of the bandwidth of a copy, by the median of the rounds and by the fastest: ideal bytes over time.",
        *(f"### {what.capitalize()}\n\n{table(fractions(measured, what))}" for what in (FORWARD, BOTH)),
        f"### Bandwidth of a copy, GB/s\n\n{table(bandwidths(rows))}",
    ]
    if failures:
        parts.append(f"### Not measured\n\n{table(distinct(failures, ('contender', 'error')))}")
    parts.append(f"### Decisions\n\nBy medians and by minima, with the backward pass:\n\n{listed(decisions(rows))}")
    if reached := list(goals(rows)):
        parts.append(f"### Goals for layer and RMS norm at 64 MB or more\n\n{listed(reached)}")
    return "\n\n".join(parts)


def listed(sentences: Iterable[object]) -> str:
    """Return sentences as a list in Markdown."""
    return "\n".join(f"- {sentence}" for sentence in sentences)


def fractions(measured: Sequence[Row], what: str) -> list[Row]:
    """Return a row for each case, with a column for each contender."""
    names = dict.fromkeys(str(row["contender"]) for row in measured)
    cases: dict[tuple[str, ...], Row] = {}
    for row in measured:
        if row["what"] == what:
            case = {name: row[name] for name in ("norm", "shape", "dtype")}
            into = cases.setdefault(tuple(map(str, case.values())), {**case, **dict.fromkeys(names)})
            into[str(row["contender"])] = f"{percent(row['fraction'])} ({percent(row['fraction_least'])})"
    return list(cases.values())


def bandwidths(rows: Sequence[Row]) -> list[Row]:
    """Return the copies of JAX and of PyTorch at each case."""
    names = ("norm", "shape", "dtype", "contender", "gb_s", "gb_s_best")
    return [{name: row[name] for name in names} for row in of_kind(rows, "copy")]


def others(rows: Sequence[Row]) -> list[str]:
    """Return a section for each other stage, a table for each kind of its rows."""
    found = [row for row in rows if row["kind"] not in OWN_TABLE]
    sections = []
    for stage in dict.fromkeys(row["stage"] for row in found):
        of_stage = [row for row in found if row["stage"] == stage]
        kinds = dict.fromkeys(str(row["kind"]) for row in of_stage)
        tables = (f"### {kind.capitalize()}\n\n{table(of_kind(of_stage, kind))}" for kind in kinds)
        parts = f"## {str(stage).capitalize()}", ABOUT.get(str(stage), ""), *tables
        sections.append("\n\n".join(filter(None, parts)))
    return sections


def stages(rows: Sequence[Row]) -> str:
    """Return how each stage ended, and its time."""
    ended = of_kind(rows, "stage")
    renamed = [{"name": row["stage"], **row} for row in ended]
    return f"## Stages\n\n{table(renamed)}" if ended else ""


def of_kind(rows: Iterable[Row], kind: str) -> list[Row]:
    """Return the rows of a kind."""
    return [row for row in rows if row["kind"] == kind]


def distinct(rows: Iterable[Row], columns: Sequence[str]) -> list[Row]:
    """Return the different values of some columns, with the number of rows that have them."""
    keys = [tuple(str(row.get(name)) for name in columns) for row in rows]
    return [{**dict(zip(columns, key, strict=True)), "rows": keys.count(key)} for key in dict.fromkeys(keys)]


def table(rows: Sequence[Row]) -> str:
    """Return rows as a table in Markdown, without `stage` and `kind`."""
    columns = list(dict.fromkeys(name for row in rows for name in row if name not in NAMES))
    lines = [columns, ["---"] * len(columns), *([cell(row.get(name)) for name in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(value: Json) -> str:
    """Return a value as the text of a cell."""
    if value is None:
        return ""
    return " ".join(results.text(value).split()).replace("|", "\\|")


def flat(value: Json) -> Json:
    """Return a value that fits a cell of a CSV file."""
    return json.dumps(value) if isinstance(value, dict | list) else value


def percent(value: Json) -> str:
    """Return a fraction in percent."""
    return f"{100 * float(str(value)):.0f}%"


if __name__ == "__main__":
    main()
