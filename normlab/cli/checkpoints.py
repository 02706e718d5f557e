"""`normlab fold` and `normlab convert`: write a new checkpoint with other norms, beside the old one."""

import io
import json
import logging
import os
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from rich.console import Console
from rich.table import Table
from rich.text import Text

from normlab.cli.building import Built, built, of_users
from normlab.errors import BadInput, one_line
from normlab.expect import POSITIVE, refusal
from normlab.study.design.request import norm_of
from normlab.tools.checkpoints.changes import Change, Conversion, Fold
from normlab.tools.checkpoints.example import Example
from normlab.tools.checkpoints.files import Saved, check_new, write
from normlab.tools.checkpoints.opened import OPT_STATE, Opened, opened
from normlab.tools.convert import KEPT, Converted, Report, convert, convert_state, model_sites
from normlab.tools.fold import FoldError, FoldReport, fold

__all__ = ["run_convert", "run_fold"]

Parsed: TypeAlias = Mapping[str, Any]
"""Values of the arguments that were given, by name."""

_NAMED = ("method", "rngs", "evaluate", "variables")
_KEYWORDS = ("model", "args", "kwargs", *_NAMED)
"""Keywords that a function of the user's may return; a conversion has no use for two of them."""
_WIDTH = 100
_LIBRARIES = ("flax", "normlab")


@dataclass(frozen=True)
class _Job:
    """A command on a checkpoint.

    Attributes:
        parsed: Its arguments.
        built: The model and its call.
        found: The checkpoint with its model.
    """

    parsed: Parsed
    built: Built
    found: Opened

    @classmethod
    def of(cls, parsed: Parsed, keywords: Sequence[str]) -> "_Job":
        """Check the arguments, make the model, and read the checkpoint."""
        _check_outputs(parsed)
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax logs warnings of a sound checkpoint
        made = built(parsed["source"], keywords)
        example = _example(made)
        with of_users(made):
            return cls(parsed, made, opened(parsed["checkpoint"], example, parsed.get("key")))

    def end(self, report: dict[str, object], lines: Iterable[str], saved: Saved) -> None:
        """Write the report and the checkpoint, and say how to load it."""
        for line in lines:
            print(line)
        if "dry_run" not in self.parsed:
            write(self.parsed["output"], saved)
        if "json" in self.parsed:
            self.parsed["json"].write_text(json.dumps(report, indent=2) + "\n")
        if "dry_run" in self.parsed:
            print("No checkpoint was written (`--dry-run`).")
            return
        print(f"Wrote `{self.parsed['output']}`. Load it, with `{self.built.function}` of `{self.built.file}`:")
        print("    from normlab.tools import restore")
        for line in _loading(self.built, str(self.parsed["output"])):
            print(f"    {line}")


def run_fold(parsed: Parsed) -> int:
    """Fold the batch norms of a checkpoint, and return the exit code.

    Args:
        parsed: Arguments of `normlab fold`.

    Raises:
        BadInput: If anything that was given cannot be used.
    """
    tolerance = _tolerance(parsed.get("tolerance"))
    job = _Job.of(parsed, _KEYWORDS)
    found, example = job.found, job.found.example
    options = {name: parsed[name] for name in ("where", "form") if name in parsed}
    switches = {name: f"no_{name}" not in parsed for name in ("follow", "check")}
    options |= {**switches, "tolerance": tolerance, "evaluate": example.evaluate, **example.options}
    try:
        with of_users(job.built):
            folded = fold(found.model, found.variables, *example.args, **options)
    except FoldError as error:
        return _nothing(str(error))
    for line in _fold_table(folded.report):
        print(line)
    if all(row.how == "kept" for row in folded.report):
        return _nothing("No norm was folded.")
    report = _described(parsed, folded.report, difference=folded.difference)
    saved = found.after(Fold.of(folded, found.expected), folded.model, folded.variables)
    job.end(report, _fold_summary(folded.report, folded.difference, found.beside), saved)
    return 0


def run_convert(parsed: Parsed) -> int:
    """Convert the norms of a checkpoint, and return the exit code.

    Args:
        parsed: Arguments of `normlab convert`.

    Raises:
        BadInput: If anything that was given cannot be used.
    """
    to = _to(parsed["to"])
    job = _Job.of(parsed, [name for name in _KEYWORDS if name not in ("kwargs", "method")])
    found, where, keep = job.found, parsed.get("where"), tuple(parsed.get("keep", KEPT))
    converted = _converted(job, to, where, keep, parsed.get("fresh", "raise"))
    change = Conversion.of(to, where, keep)
    saved, note = _with_moments(found, change, converted)
    lines = [*_convert_table(converted.report), *_kept(found.beside, note)]
    job.end(_described(parsed, converted.report), lines, saved)
    return 0


def _to(given: Sequence[str]) -> str | dict[str, str]:
    """Return the new norm, or the new norms by globs over paths, the norm that has no glob last."""
    by_glob: dict[str, str] = {}
    others: list[str] = []
    for text in given:
        glob, equals, norm = text.partition("=")
        if not equals or ":" in glob:  # `=` is of an option of the norm
            others.append(_norm(text))
        elif not glob or not norm or glob in by_glob:
            remedy = "Write it as in 'stage_*=group', each glob once."
            raise refusal("`--to` to be a norm, or a glob over paths and a norm", text, remedy)
        else:
            by_glob[glob] = _norm(norm)
    if len(others) > 1:
        raise BadInput(
            f"Expected one norm without a glob in `--to`, got `{others[0]}` and `{others[1]}`. Say which norms each is "
            "for, as in 'stage_*=group'."
        )
    return {**by_glob, **dict.fromkeys(["*"] * len(others), *others)} if by_glob else others[0]


def _norm(text: str) -> str:
    return text if text in _LIBRARIES else norm_of(text)


def _converted(
    job: _Job, to: str | dict[str, str], where: Sequence[str] | None, keep: Sequence[str], fresh: Any
) -> Converted[Any]:
    """Convert the model; what is wrong with an option of the new norm is the user's error."""
    found = job.found
    args: tuple[Any, ...] = found.example.args
    rngs: Any = found.example.options.get("rngs")
    options: dict[str, Any] = {"args": args, "rngs": rngs, "where": where, "keep": keep, "fresh": fresh}
    try:
        return convert(found.model, found.variables, to, **options)
    except BadInput:
        raise
    except Exception as error:
        with of_users(job.built):  # a model that fails with its own norms, too
            model_sites(found.model, found.variables, args, rngs)
        if not isinstance(error, ValueError | TypeError):
            raise
        raise BadInput(f"{one_line(error, kind=False)} See `normlab list norms`.") from error


def _with_moments(found: Opened, change: Change, converted: Converted[Any]) -> tuple[Saved, str]:
    """Return the new checkpoint, and a sentence on its state of an optimizer."""
    state, report = found.opt_state, converted.report
    changes = bool(report.fresh or report.dropped)
    if state is None or not changes:
        note = "An optimizer's state has moments of the norms before." if changes else ""
        return found.after(change, converted.model, converted.variables), note
    saved = found.after(change, converted.model, converted.variables, convert_state(state, report))
    return saved, f"Moments in `{OPT_STATE}` are zero for what starts anew, and gone for what was dropped."


def _check_outputs(parsed: Parsed) -> None:
    """Check that nothing that is there would be overwritten."""
    checkpoint, output, report = parsed["checkpoint"], parsed.get("output"), parsed.get("json")
    if output is None and "dry_run" not in parsed:
        raise BadInput("Expected `--output NEW`, a new folder, got none. Give one, or `--dry-run`.")
    if output is not None:
        check_new(output, checkpoint)
    if report is None:
        return
    folder = report.resolve().parent
    if os.path.lexists(report) or not folder.is_dir() or folder.is_relative_to(Path(checkpoint).resolve()):
        remedy = "Nothing is overwritten; its folder has to exist, outside of the checkpoint."
        raise refusal("`--json` to be a new file", str(report), remedy)


def _example(made: Built) -> Example:
    """Return the model and its call, from keywords of the user's."""
    given = made.keywords
    args, kwargs = given.get("args", ()), given.get("kwargs") or {}
    if not isinstance(args, tuple | list):
        raise refusal(f"`args` of `{made.function}()` to be a tuple", args, "Write `(x,)` for a single input.")
    if not isinstance(kwargs, Mapping):
        raise refusal(f"`kwargs` of `{made.function}()` to be a dict", kwargs, "Write keywords of the call by name.")
    options = {name: given[name] for name in ("method", "rngs") if given.get(name) is not None}
    others: dict[str, Any] = {name: given.get(name) for name in ("evaluate", "variables")}
    model: Any = given["model"]
    return Example(model, tuple(args), {**kwargs, **options}, **others)


def _tolerance(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        return POSITIVE.of("`--tolerance`", float(text))
    except ValueError:
        raise refusal("`--tolerance` to be a positive number", text, "Give one such as 1e-4.") from None


def _nothing(reason: str) -> int:
    print(f"normlab: {reason} Nothing was written.", file=sys.stderr)
    return 1


def _loading(made: Built, output: str) -> list[str]:
    """Return the lines of Python that load the new checkpoint."""
    call, path = f"{made.function}()", json.dumps(output)
    if made.form != "keywords":
        return [f"model, variables = restore({path}, {'*' * (made.form == 'inputs')}{call})"]
    written = {"model": 'built["model"]', "args": '*built["args"]', "kwargs": '**built["kwargs"]'}
    named = [name for name in (*written, *_NAMED) if name in made.keywords]
    parts = [written.get(name, f'{name}=built["{name}"]') for name in named]
    return [f"built = {call}", f"model, variables = restore({path}, {', '.join(parts)})"]


def _fold_summary(report: FoldReport, difference: float | None, beside: Sequence[str]) -> list[str]:
    compared = "" if difference is None else f"; outputs differ by {difference:.2g} at most"
    fits = "An optimizer's state is that of the model before." if any(OPT_STATE in path for path in beside) else ""
    return [f"{report.folded} of {len(report)} norms are in a layer or gone{compared}.", *_kept(beside, fits)]


def _kept(beside: Sequence[str], note: str) -> list[str]:
    """Say what else is in the new checkpoint."""
    kept = ", ".join(f"`{path}`" for path in beside)
    text = " ".join([*[f"Copied with it: {kept}."] * bool(kept), *[note] * bool(kept and note)])
    return textwrap.wrap(text, _WIDTH)


def _described(parsed: Parsed, report: FoldReport | Report, **numbers: float | None) -> dict[str, object]:
    """Return a report as values for JSON."""
    paths = {name: os.fspath(parsed[name]) for name in ("source", "checkpoint", "output") if name in parsed}
    return {**paths, "norms": [asdict(row) for row in report], **numbers}


def _fold_table(report: FoldReport) -> list[str]:
    rows = [(row.path, row.into, row.how, row.reason) for row in report]
    return [*_table(("path", "into", "how", "reason"), rows), *_notes(report)]


def _convert_table(report: Report) -> list[str]:
    rows = [
        (row.path, row.before, row.after, *(", ".join(names) or "-" for names in (row.carried, row.fresh, row.dropped)))
        for row in report
    ]
    return [*_table(("path", "before", "after", "carried", "fresh", "dropped"), rows), *_notes(report)]


def _notes(report: FoldReport | Report) -> list[str]:
    """Return the lines of notes, each once, with the norms that it is on."""
    paths: dict[str, list[str]] = {}
    for row in report:
        for note in row.notes:
            paths.setdefault(note, []).append(row.path or "(model)")
    texts = [f"{on[0]}{f' and {len(on) - 1} more' * (len(on) > 1)}: {note}" for note, on in paths.items()]
    return [line for text in texts for line in textwrap.wrap(text, _WIDTH)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table; long cells are wrapped."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    for name in head:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(file=io.StringIO(), width=_WIDTH, color_system=None, legacy_windows=False)
    with console.capture() as captured:
        console.print(table)
    return [line.rstrip() for line in captured.get().splitlines()]
