"""Measure how often the doctor is wrong about healthy models, and how often it finds a planted fault.

Rows are added to `OUTPUT.csv` after each model, and those that are there already are not made again. The tables of
`docs/doctor.md` are written from all rows.

    python -m benchmarks.doctor.rates --quick            # the charter's models alone, one seed, float32
    python -m benchmarks.doctor.rates --seeds 5          # everything
    python -m benchmarks.doctor.rates --seeds 0          # the tables alone
"""

import argparse
import ast
import csv
import inspect
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from importlib.metadata import version
from pathlib import Path

import jax

from normlab.doctor import Report, examine
from normlab.doctor.checks.registry import CHECKS, Check
from normlab.doctor.findings import ORDER
from normlab.study.analysis.estimates import wilson
from normlab.study.training.compilation_cache import use_cache

ROOT = Path(__file__).parents[2]
DTYPES = ("float32", "bfloat16")
STRENGTHS = {"strong": 1.0, "weak": 0.5, "fixed": 0.0}
QUICK_HEALTHY, QUICK_PLANTED = 7, 13
BEGIN, END = "<!-- tables: python -m benchmarks.doctor.rates -->", "<!-- end of the tables -->"


@dataclass(frozen=True, kw_only=True)
class Row:
    """An examination.

    Attributes:
        kind: `healthy`, or the strength of a planted fault: `strong`, `weak` or `fixed`.
        model: Name of the model.
        code: Code of the planted fault; empty for healthy models.
        expected: Severity and path of the planted fault.
        seed: Seed of initialization and training.
        dtype: Type of parameters and inputs.
        made: Codes of the checks that were made.
        found: Findings as `CODE severity path`, the worst first, with `; ` between.
        failed: Checks that failed, and how.
        seconds: Time of the examination with compilation, on a machine that had other work.
        versions: Versions of Python, JAX and Flax.
        command: The command.
    """

    kind: str
    model: str
    code: str
    expected: str
    seed: int
    dtype: str
    made: str
    found: str
    failed: str
    seconds: float
    versions: str
    command: str

    @property
    def findings(self) -> list[tuple[str, str, str]]:
        """Code, severity and path of each finding."""
        parts = [one.split(" ", 2) for one in self.found.split("; ") if one]
        return [(part[0], part[1], part[2]) for part in parts]

    @property
    def alarms(self) -> set[str]:
        """Codes of the warnings and errors."""
        return {code for code, severity, _ in self.findings if severity != "note"}

    @property
    def detected(self) -> bool:
        """True if the planted fault was found at its norm with its severity, and no other error was."""
        others = [code for code, severity, _ in self.findings if severity == "error" and code != self.code]
        severity, path = self.expected.split(" ", 1)
        return (self.code, severity, path) in self.findings and not others

    @property
    def silent(self) -> bool:
        """True if there is no warning, no error, and no note of the code that was planted."""
        return not self.alarms and all(code != self.code for code, _, _ in self.findings)

    @property
    def key(self) -> tuple[str, str, int, str]:
        """The examination, apart from its result."""
        return self.kind, self.model, self.seed, self.dtype


@dataclass(frozen=True)
class Trial:
    """An examination that is to be made; see `Row`."""

    kind: str
    model: str
    seed: int
    dtype: str
    build: Callable[[], Mapping[str, object]]
    code: str = ""
    expected: str = ""

    @property
    def key(self) -> tuple[str, str, int, str]:
        """The examination, as in `Row`."""
        return self.kind, self.model, self.seed, self.dtype


def main() -> None:
    """Examine models, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the charter's models alone, one seed, float32")
    parser.add_argument("--seeds", type=int, default=1, help="seeds of the healthy models; 0 writes the tables alone")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/doctor", help="OUTPUT.csv")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/doctor.md", help="the page with the tables")
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", 4)
    use_cache()
    path = args.output.with_suffix(".csv")
    done = {row.key for row in read(path)}
    for trial in trials(1 if args.quick else args.seeds, quick=args.quick):
        if trial.key not in done:
            row = made(trial)
            add(path, row)
            print(
                f"{row.kind:8} {row.dtype:9}{row.seed} {row.model}: {row.found or 'nothing'} {row.failed}", flush=True
            )
            jax.clear_caches()
    write_tables(args.page, read(path))


def trials(seeds: int, *, quick: bool) -> Iterator[Trial]:
    """Yield the examinations: healthy models of the first seed in float32, planted faults, and the rest."""
    if seeds:
        yield from _of_healthy(0, "float32", quick)
        yield from _of_planted(quick)
    for seed in range(seeds):
        for dtype in DTYPES[: 1 if quick else None]:
            if (seed, dtype) != (0, "float32"):
                yield from _of_healthy(seed, dtype, quick)


def _of_healthy(seed: int, dtype: str, quick: bool) -> Iterator[Trial]:
    from benchmarks.doctor import healthy

    for name in list(healthy.MODELS)[: QUICK_HEALTHY if quick else None]:
        yield Trial("healthy", name, seed, dtype, partial(healthy.build, name, seed, dtype))


def _of_planted(quick: bool) -> Iterator[Trial]:
    from benchmarks.doctor import planted

    for name, case in list(planted.CASES.items())[: QUICK_PLANTED if quick else None]:
        for kind, strength in STRENGTHS.items():
            if kind != "weak" or case.weak:
                build, expected = partial(case.build, strength), f"{case.severity} {case.path}"
                yield Trial(kind, name, 0, "float32", build, case.code, expected)


def made(trial: Trial) -> Row:
    """Make an examination."""
    started = time.perf_counter()
    report = examine(**trial.build())
    return Row(
        kind=trial.kind,
        model=trial.model,
        code=trial.code,
        expected=trial.expected,
        seed=trial.seed,
        dtype=trial.dtype,
        made=" ".join(sorted({*report.passed, *report.by_code})),
        found="; ".join(f"{one.code} {one.severity} {one.path}" for one in report.findings),
        failed=_failed(report),
        seconds=round(time.perf_counter() - started, 1),
        versions=f"Python {sys.version.split()[0]}, jax {version('jax')}, flax {version('flax')}",
        command="python -m benchmarks.doctor.rates",
    )


def _failed(report: Report) -> str:
    return "; ".join(f"{one.code}: {one.why}" for one in report.skipped if "the check failed" in one.why)


def read(path: Path) -> list[Row]:
    """Return the rows of a file; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [
            Row(**{**row, "seed": int(row["seed"]), "seconds": float(row["seconds"])}) for row in csv.DictReader(file)
        ]


def add(path: Path, row: Row) -> None:
    """Append a row to a file."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(asdict(row))


# --- tables ---


def severities(check: Check) -> list[str]:
    """Return the severities that a check gives, the worst first, as its source says them."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(check.run)))
    said = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    if any(isinstance(node, ast.Attribute) and node.attr == "by_share" for node in ast.walk(tree)):
        said |= {"warning", "note"}
    return [severity for severity in ORDER if severity in said]


def interval(k: int, n: int) -> str:
    """Return a 95 % interval of a rate in percent: by the rule of three where nothing was seen, else Wilson's."""
    if n == 0:
        return ""
    low, high = (0.0, min(1.0, 3 / n)) if k == 0 else wilson(k, n)
    return f"{100 * low:.0f} to {100 * high:.0f} %"


def rates(rows: Sequence[Row]) -> list[str]:
    """Return the table of false alarms and of planted faults, a line for each check."""
    lines = [
        "| check | runs | models | alarms | 95 % of runs | 95 % of models | strong | weak | fixed silent |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    healthy = [row for row in rows if row.kind == "healthy"]
    for code in sorted(CHECKS):
        runs = [row for row in healthy if code in row.made.split()]
        alarmed = [row for row in runs if code in row.alarms]
        models, wrong = {row.model for row in runs}, {row.model for row in alarmed}
        planted = {kind: [row for row in rows if row.kind == kind and row.code == code] for kind in STRENGTHS}
        cells = [
            f"{sum(row.silent if kind == 'fixed' else row.detected for row in found)} of {len(found)}" if found else ""
            for kind, found in planted.items()
        ]
        first = [len(runs), len(models), len(alarmed)]
        ends = [interval(len(alarmed), len(runs)), interval(len(wrong), len(models))]
        lines.append("| " + " | ".join(map(str, [code, *first, *ends, *cells])) + " |")
    return lines


def checks() -> list[str]:
    """Return the table of checks, from their docstrings."""
    lines = ["| check | severity | finds | measured by |", "|---|---|---|---|"]
    for code, check in sorted(CHECKS.items()):
        measured = check.measured_by.replace("|", "\\|")
        lines.append(f"| {code} | {', '.join(severities(check))} | {check.finds} | {measured} |")
    return lines


def models(rows: Sequence[Row]) -> list[str]:
    """Return the table of healthy models: runs, and the codes of warnings, errors and notes."""
    lines = ["| model | runs | warnings and errors | notes |", "|---|---|---|---|"]
    healthy = [row for row in rows if row.kind == "healthy"]
    for model in dict.fromkeys(row.model for row in healthy):
        own = [row for row in healthy if row.model == model]
        alarms = sorted({code for row in own for code in row.alarms})
        notes = sorted({code for row in own for code, severity, _ in row.findings if severity == "note"})
        lines.append(f"| {model} | {len(own)} | {', '.join(alarms) or 'none'} | {', '.join(notes)} |")
    return lines


def summary(rows: Sequence[Row]) -> str:
    """Return the counts in a sentence or two."""
    healthy = [row for row in rows if row.kind == "healthy"]
    alarmed = [row for row in healthy if row.alarms]
    names, seeds = {row.model for row in healthy}, {row.seed for row in healthy}
    of_type = [f"{sum(row.dtype == dtype for row in healthy)} in {dtype}" for dtype in DTYPES]
    counts = {kind: [row for row in rows if row.kind == kind] for kind in STRENGTHS}
    strong, weak, fixed = counts["strong"], counts["weak"], counts["fixed"]
    return (
        f"{len(healthy)} runs of {len(names)} healthy models, seeds {', '.join(map(str, sorted(seeds)))} "
        f"({', '.join(of_type)}): {len(alarmed)} with a warning or an error. Planted faults that were found: "
        f"{sum(row.detected for row in strong)} of {len(strong)} strong ones, {sum(row.detected for row in weak)} of "
        f"{len(weak)} weak ones; fixed versions that were silent: {sum(row.silent for row in fixed)} of {len(fixed)}. "
        f"{rows[0].versions}; CPU."
    )


def write_tables(page: Path, rows: Sequence[Row]) -> None:
    """Write the tables between the markers of a page; nothing where there are no rows."""
    if not rows:
        return
    text = page.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    parts = [summary(rows), *("\n".join(table) for table in (rates(rows), checks(), models(rows)))]
    titles = ["", "### Rates\n\n", "### Checks\n\n", "### Healthy models\n\n"]
    body = "\n\n".join(title + part for title, part in zip(titles, parts, strict=True))
    page.write_text(f"{before}{BEGIN}\n\n{body}\n\n{END}{after}", "utf-8")


if __name__ == "__main__":
    main()
