"""Write the page of a measurement, and its rows as a table.

    python -m benchmarks.accelerator.page build/accelerator/RESULT.json --output benchmarks/results/accelerator-h100
    python -m benchmarks.accelerator.page A.json B.json --output PAGE  # stages of B replace those of A

Several results are of one kind of device and one version of JAX. A stage comes whole from the last result that has it.
"""

import argparse
import csv
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

from benchmarks.accelerator import results
from benchmarks.accelerator.cases import BOTH, FORWARD
from benchmarks.accelerator.decision import decisions
from benchmarks.accelerator.goals import goals
from benchmarks.accelerator.merge import SOURCE, merged, of_kind
from benchmarks.accelerator.stage import PLAN, Json, Row

__all__ = ["page", "write"]

OWN_TABLE = ("invocation", "device", "versions", "check", "copy", "layer", "stage", PLAN)
"""Kinds with a section of their own; each other kind is a table as it is."""

PEERS = "peers"
"""Stage whose contenders do not run in JAX."""

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

LAYERS = (
    "Fractions of the bandwidth of a copy, by the median of the rounds and by the fastest: ideal bytes over time. "
    "`best in JAX` has the best median. A device works on a call while the host queues the next, so that the host's "
    "time counts only where it is longer. In JAX it is hidden where a call takes 100 us or more. In PyTorch it may not "
    "be: the columns `graph` are the same calls as a CUDA graph, without the host."
)

NAMES = ("stage", "kind")
"""Columns that name a table, and are in none."""

CASE = ("norm", "shape", "dtype")
"""Columns that name a case of the layers."""

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
    parser.add_argument(
        "results", type=Path, nargs="+", metavar="RESULT.json", help="of `python -m benchmarks.accelerator`"
    )
    parser.add_argument("--output", type=Path, required=True, help="write OUTPUT.md and OUTPUT.csv")
    given = parser.parse_args()
    try:
        rows = merged([results.read(path) for path in given.results])
    except ValueError as error:
        parser.error(str(error))
    write(rows, given.output)
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
    """Return the heading, the device, the versions, and each command with its date."""
    invocations = of_kind(rows, "invocation")
    device, versions = (next(iter(of_kind(rows, kind)), {}) for kind in ("device", "versions"))
    dry = any(invocation.get("dry_run") for invocation in invocations)
    warning = "\n\n**A dry run on tiny shapes: nothing here is a measurement.**" if dry else ""
    packages = ", ".join(f"{name} {version}" for name, version in versions.items() if version and name not in NAMES)
    about = ", ".join(f"{label} {device[name]}" for name, label in DEVICE.items() if device.get(name) is not None)
    commands = listed(map(command, invocations))
    return f"# {device.get('device', 'An accelerator')}\n\n{commands}{warning}\n\n{packages}; {about}."


def command(invocation: Row) -> str:
    """Return a command, and when and on what code it ran."""
    when = f"{invocation.get('date')}, commit {invocation.get('commit')}, load {invocation.get('load')}"
    return f"`{invocation.get('command')}`: {when}, XLA_FLAGS {invocation.get('xla_flags') or 'not set'}"


def correctness(rows: Sequence[Row]) -> str:
    """Return how many checks ran and passed, the largest error by case and dtype, and every check that failed."""
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
    planned = next((row["count"] for row in of_kind(rows, PLAN) if row["unit"] == "checks"), len(checks))
    ran = "" if planned == len(checks) else f"{len(checks)} of {planned} checks ran. "
    passed = f"{ran}{len(checks) - len(failures)} of {len(checks)} checks against float64 passed."
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
        LAYERS,
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
    """Return a row for each case, with a column for each contender, and which of those in JAX is best."""
    names = dict.fromkeys(str(row["contender"]) for row in measured)
    cases: dict[tuple[Json, ...], list[Row]] = {}
    for row in measured:
        if row["what"] == what:
            cases.setdefault(tuple(row[name] for name in CASE), []).append(row)
    return [
        {
            **dict(zip(CASE, case, strict=True)),
            **dict.fromkeys(names),
            **{
                str(row["contender"]): f"{percent(row['fraction'])} ({percent(row['fraction_least'])})" for row in found
            },
            "best in JAX": best_in_jax(found),
        }
        for case, found in cases.items()
    ]


def best_in_jax(found: Sequence[Row]) -> Json:
    """Return the contender in JAX with the best median; `None` where there is none."""
    in_jax = [row for row in found if row["stage"] != PEERS]
    return max(in_jax, key=lambda row: float(str(row["fraction"])))["contender"] if in_jax else None


def bandwidths(rows: Sequence[Row]) -> list[Row]:
    """Return least and median of the copies over cases, by stage and contender."""
    copies: dict[tuple[Json, Json], list[float]] = {}
    for row in of_kind(rows, "copy"):
        copies.setdefault((row["stage"], row["contender"]), []).append(float(str(row["gb_s"])))
    return [
        {"in": stage, "contender": contender, "cases": len(found), "least": min(found), "median": median(found)}
        for (stage, contender), found in copies.items()
    ]


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
    """Return how each stage ended, its time, and what it was run with."""
    ended = of_kind(rows, "stage")
    return f"## Stages\n\n{table(list(map(outcome, ended)))}" if ended else ""


def outcome(row: Row) -> Row:
    """Return the columns of a stage in the table of stages."""
    done = f"{row['done']} of {row['planned']} {row['unit']}" if "planned" in row else None
    others = {name: row[name] for name in ("seconds", "share", *SOURCE) if name in row}
    return {"name": row["stage"], "ended": row["ended"], "done": done, **others}


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
