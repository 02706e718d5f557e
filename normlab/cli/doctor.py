"""`normlab doctor`: examine a model that a function of the user's returns, show the report and write it."""

import inspect
import io
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import jax

from normlab import doctor
from normlab.cli.building import Built, built, described
from normlab.cli.parser import FAIL_ON, FailOn
from normlab.doctor import Report
from normlab.doctor.display import files, text
from normlab.errors import BadInput, Fault, nearest
from normlab.expect import WHOLE, refusal
from normlab.extras import require

__all__ = ["finds"]

IGNORE = "NORMLAB_DOCTOR_IGNORE"
"""Environment variable of checks to leave out, written like `--ignore`."""

_INPUTS = "args"
"""The name of inputs in what functions for other commands return."""

_PRINTED = "-"
"""The name of a file that stands for the standard output."""

_SHORT = 0.01
"""Seconds of a stage that is not worth a line."""


def finds(
    source: str,
    *,
    html: Path | None = None,
    json: str | None = None,
    fail_on: FailOn = "warning",
    ignore: str = "",
    limit: str | None = None,
    static: bool = False,
    timings: bool = False,
    traceback: bool = False,  # shown by `main`, as for every command
) -> bool:
    """Examine a model, and show and write the report.

    Args:
        source: `FILE.py:FUNCTION`; the function returns keywords of `examine`.
        html: File of the page.
        json: File of the report as JSON; `-` prints it in place of the text.
        fail_on: Severity from which on a finding is a failure, or `never`.
        ignore: Checks to leave out, with commas between them.
        limit: Batches to read at most.
        static: Whether to look at the structure alone.
        timings: Whether to show the seconds of each stage.
        traceback: Whether to show where a model fails that cannot be examined.

    Returns:
        Whether there is such a finding.

    Raises:
        BadInput: If an option is wrong, or the model cannot be examined.
    """
    if fail_on not in FAIL_ON:
        remedy = nearest(fail_on, FAIL_ON, "Write one of them.")
        raise refusal("`--fail-on` to be `error`, `warning`, `note` or `never`", fail_on, remedy)
    _check_files(html, json)
    chosen = {} if limit is None else {"limit": _whole(limit)}
    with _in_one_sentence(source), redirect_stdout(sys.stderr):  # the user's code may print
        report = _examined(source, _codes(ignore), chosen, static)
    if not report.findings and not report.passed:
        why = report.skipped[0].why if report.skipped else "no check was chosen."
        raise BadInput(f"Expected something to examine, got nothing: {why} Give `batches`, or the shape of one.")
    _show(report, html, json, timings)
    return fail_on != "never" and not report.ok(fail_on)


def _examined(source: str, ignore: Sequence[str], chosen: Mapping[str, object], static: bool) -> Report:
    """Examine what a function returns."""
    known = (*inspect.signature(doctor.examine).parameters, _INPUTS)
    keywords: dict[str, Any] = {**_keywords(built(source, known), source), **chosen}
    own = keywords.get("ignore", ())
    own = _codes(own) if isinstance(own, str) else own
    keywords["ignore"] = [*own, *_codes(os.environ.get(IGNORE, "")), *ignore]
    return doctor.examine(**(_of_shapes(keywords) if static else keywords))


def _check_files(html: Path | None, json: str | None) -> None:
    """Check that the reports can be made and written, before anything takes time."""
    require("doctor", "rich", *["jinja2"] * (html is not None))
    if html is not None and str(html) == _PRINTED:
        raise BadInput("Expected `--html` to name a file, got `-`. Only `--json -` prints the report.")
    if html is not None:
        files.check(html, "`--html`")
    if json is not None and json != _PRINTED:
        files.check(Path(json), "`--json`")


def _whole(given: str) -> int:
    """Convert the value of `--limit`."""
    return WHOLE.of("`--limit`", int(given) if given.isdecimal() else given)


def _codes(given: str) -> list[str]:
    return [part.strip() for part in given.split(",") if part.strip()]


def _keywords(found: Built, source: str) -> dict[str, Any]:
    """Return the keywords of `examine` that a function returned."""
    if _INPUTS in found.keywords or found.form == "model":
        came = {"model": "a model", "inputs": "a tuple"}.get(found.form, f"a dict with `{_INPUTS}`")
        raise BadInput(
            f"Expected `{source}` to return a dict of the keywords of `normlab.doctor.examine`, got {came}. "
            'Write `return {"model": model, "variables": variables, "batches": batches}`.'
        )
    return dict(found.keywords)


def _of_shapes(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Return keywords with the shapes of the first batch in place of all batches, and without a step to be made."""
    batches: Iterable[object] = keywords.get("batches", ())
    first = [jax.tree.map(_shape, batch) for batch, _ in zip(batches, range(1), strict=False)]
    return {name: value for name, value in keywords.items() if name not in ("step", "state")} | {"batches": first}


def _shape(leaf: Any) -> Any:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if hasattr(leaf, "shape") and hasattr(leaf, "dtype") else leaf


@contextmanager
def _in_one_sentence(source: str) -> Iterator[None]:
    """Raise `BadInput` for any failure of the model that an argument names."""
    try:
        yield
    except (BadInput, Fault):
        raise
    except (Exception, SystemExit) as error:
        raise BadInput(
            f"Expected a model that can be examined from `{source}`, got {described(error, source)}. "
            "`--traceback` shows the calls."
        ) from error


def _show(report: Report, html: Path | None, json: str | None, timings: bool) -> None:
    """Print the report, and write it to files."""
    if json == _PRINTED:
        sys.stdout.write(report.json(timings=timings))
    else:
        _print(report, timings)
    written = [report.html(html)] if html else []
    if json not in (None, _PRINTED):
        written.append(files.write(Path(json), report.json(timings=timings)))
    for path in written:
        print(f"Wrote {path}", file=sys.stderr if json == _PRINTED else sys.stdout)


def _print(report: Report, timings: bool) -> None:
    """Print the report as text: in colour and at most as wide as the terminal, if there is one."""
    from rich.console import Console

    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # names may have letters that the terminal has not
    if sys.stdout.isatty():
        console = Console()
        console.width = min(console.width, text.WIDTH)
        text.print_table(report, console)
    else:
        sys.stdout.write(report.table())
    if timings:
        cost = sorted((report.cost or {}).items(), key=lambda stage: -stage[1])
        print("\nSeconds:")
        print("\n".join(f"{seconds:8.2f}  {stage}" for stage, seconds in cost if seconds >= _SHORT))
