"""Comparisons from Python: `study.run` does the same as `normlab run` and returns the result."""

import multiprocessing
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from normlab import expect
from normlab.errors import BadInput, Fault
from normlab.extras import MissingExtra
from normlab.study.design import discovery
from normlab.study.design.comparison import Comparison, Settings
from normlab.study.design.options import FOLDER
from normlab.study.design.plan import Plan
from normlab.study.design.records import Record
from normlab.study.design.request import Request, from_python
from normlab.study.driver.driver import ExecutionOptions, Invocation, new_console
from normlab.study.worker.store import Header

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

    from normlab.norms import Norm
    from normlab.study.analysis.results import Analysis
    from normlab.study.report.advice import Recommendation
    from normlab.study.report.notebook import Table


@dataclass(frozen=True, kw_only=True, repr=False)
class Result:
    """The result of a comparison. A notebook shows its headline, figure and tables.

    Attributes:
        comparison: The comparison.
        settings: The settings of this invocation.
        records: A record for every run.
        header: RunIdentity, command and time, like in a folder.
        plan: The configurations and their runs.
        outdated: A sentence on the records of a folder that have another identity; empty where none has.
        folder: The folder of the runs; `None` for runs in memory.
    """

    comparison: Comparison
    settings: Settings
    records: tuple[Record, ...]
    header: Header
    plan: Plan = field(repr=False, compare=False)
    outdated: str = ""
    folder: Path | None = None

    def __repr__(self) -> str:
        """Return a line with the comparison, the finished runs and their place."""
        counts = self.analysis.counts
        place = "in memory" if self.folder is None else f"in {self.folder}"
        return f"<Result of {self.comparison.name}: {counts['done']} of {counts['planned']} runs, {place}>"

    def __str__(self) -> str:
        """Return the table."""
        return str(self.table())

    def _repr_html_(self) -> str:
        from normlab.study.report import notebook

        return notebook.result_html(self.analysis)

    @cached_property
    def analysis(self) -> "Analysis":
        """Estimates, intervals and verdicts."""
        from normlab.study.analysis.analyse import analyse

        return analyse(self.comparison, self.settings, self.records, self.plan)

    def table(self, width: int = 100) -> "Table":
        """Write errors, failures and verdicts as text of `width` characters, and the recommendation.

        A notebook shows the tables as HTML.
        """
        from normlab.study.report import html, notebook

        text = html.table_text(self.analysis, width, self._recommendation)
        return notebook.Table(text, notebook.table_html(self.analysis))

    def plot(self) -> "Figure":
        """Draw a matplotlib figure with a panel for every problem and curve."""
        from normlab.study.report import figures

        return figures.plot(self.analysis)

    def recommend(self) -> "Recommendation":
        """Recommend a norm for each factor value, with certainty and cost, or none where the data cannot decide."""
        return self._recommendation

    @cached_property
    def _recommendation(self) -> "Recommendation":
        from normlab.study.report import advice

        return advice.recommend(self.analysis)

    def rows(self) -> list[dict[str, object]]:
        """Return a dictionary for every cell of the tables."""
        from normlab.study.report import html

        return html.rows(self.analysis)

    def frame(self) -> "DataFrame":
        """Return `rows` as a data frame of pandas.

        Raises:
            MissingExtra: If pandas is not installed.
        """
        try:
            from pandas import DataFrame
        except ImportError:
            raise MissingExtra("Expected `pandas` to be installed, got none. Run `pip install pandas`.") from None
        return DataFrame(self.rows())

    def report(self, folder: str | os.PathLike[str]) -> Path:
        """Write the HTML report and its tables to a folder; return the path of the HTML file."""
        from normlab.study.report import html

        return html.write_html(
            self.analysis,
            folder,
            comparison=self.comparison,
            settings=self.settings,
            identity=self.header.identity,
            command=self.header.command,
            wall_seconds=self.header.wall_seconds,
            about=self.header.about,
            outdated=self.outdated,
            recommendation=self._recommendation,
        )


def run(
    comparison: Comparison | str | os.PathLike[str],
    *,
    tier: str | None = None,
    norms: "Iterable[str | Norm] | None" = None,
    problems: Iterable[str] | None = None,
    curves: Iterable[str] | None = None,
    seeds: int | None = None,
    output: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
    progress: bool = True,
    **options: object,
) -> Result:
    """Run a comparison and return the result.

    A comparison from a file or by name runs in worker processes, so a script must call this under
    `if __name__ == "__main__":`. A `Comparison` object runs in this process, since its functions cannot be sent to
    other processes.

    An interrupt in a notebook or another interactive session (the stop button, Ctrl-C) ends the runs and returns the
    result of those that have finished, if any. A script is interrupted as usual. Either way, a call with `output` can
    be repeated and resumes.

    Args:
        comparison: The object, a name that `normlab list` shows, or the path of a file that defines one.
        tier: Budget; `quick` unless given.
        norms: Norms to compare; those of the comparison unless given.
        problems: Some of the comparison's problems.
        curves: Some of the comparison's curves.
        seeds: Number of evaluation seeds; that of the budget unless given.
        output: Folder for the runs, from which the same call resumes. A `Comparison` object resumes in the same process
            only, since no file shows whether it has changed. Without a folder nothing is written.
        jobs: Configurations at a time, each in a worker of its own; on CPU one a core unless given.
        progress: Whether to show the progress.
        **options: The other options of `normlab run`, e.g. `batch_sizes=(2, 8)`, `learning_rates=(0.01, 0.1)`, or
            `executor="slurm", slurm=["partition=gpu"]`.

    Raises:
        BadInput: If an argument is unknown or invalid, or the comparison cannot be run.
        Fault: If something outside failed; with `output`, finished runs are kept.
        KeyboardInterrupt: If a script is interrupted, or an interactive session before the first run has finished.
    """
    _refuse_in_workers()
    source = "" if isinstance(comparison, Comparison) else _SOURCE.of("`comparison`", comparison)
    found = comparison if isinstance(comparison, Comparison) else discovery.load(source)
    progress = expect.SWITCH.of("`progress`", progress)
    options |= {"tier": tier, "norms": norms, "problems": problems, "curves": curves, "seeds": seeds, "jobs": jobs}
    given = {name: value for name, value in options.items() if value is not None}
    request = Request(found, from_python(given, found))
    for name in {"coordinator", "process"} & request.given.keys():
        raise BadInput(
            f"Expected `{name}` on the command line of `normlab run` only: a process of a group ends with it."
        )
    settings = request.settings(source)
    folder = None if output is None else FOLDER.of("`output`", output)
    call = ", ".join(
        [repr(source) if source else "comparison", *(f"{name}={value!r}" for name, value in given.items())]
    )
    console = new_console(quiet=not progress)
    invocation = Invocation(found, settings, folder, f"study.run({call})", request.get("shard"), console)
    try:
        outcome = invocation.complete(ExecutionOptions.of(request))
    except Fault as error:
        raise Fault(f"{error}{_HINT if source and 'cannot start' in str(error) else ''}") from error
    except KeyboardInterrupt:
        outcome = invocation.so_far() if hasattr(sys, "ps1") else None  # Python sets `ps1` in interactive sessions
        if outcome is None:
            raise
        resumes = f"the same call resumes from `{folder}`." if folder else "with `output`, the same call would resume."
        console.print(f"Interrupted. The result has the finished runs; {resumes}", markup=False, soft_wrap=True)
    return Result(
        comparison=found,
        settings=settings,
        records=tuple(outcome.records),
        header=outcome.header,
        plan=invocation.plan,
        outdated=outcome.outdated,
        folder=folder,
    )


def _path_of_comparison(value: str | os.PathLike[str]) -> str:
    path = os.fspath(value)
    return path if isinstance(path, str) and path else expect.TEXT.convert(None)


_SOURCE = expect.Kind(
    "a `Comparison`, the name of one, or the path of a file that defines one",
    _path_of_comparison,
    "Make one with `study.Comparison(...)`.",
)

_HINT = ' In a script, call `study.run` under `if __name__ == "__main__":`: workers import the script again.'


def _refuse_in_workers() -> None:
    """End a worker that imports a script with an unguarded call of `run`; its parent reports the remedy."""
    if multiprocessing.parent_process() and multiprocessing.current_process().name == "normlab-worker":
        raise SystemExit(1)
