"""The record of a run: status, metrics and costs."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from normlab.errors import one_line
from normlab.study.design import records, schema
from normlab.study.design.records import Record, Run, run_key
from normlab.study.worker.strategy import Task

if TYPE_CHECKING:
    import numpy as np


Metrics = Mapping[str, float]

COLLAPSED_WITHIN = 2.5
"""Standard errors: a validation error that is not further than this below chance means that nothing was learned. Luck
alone takes a model that has learned nothing below that in 0.6 % of runs."""


def status_of(metrics: Metrics, chance: float | None) -> tuple[str, str]:
    """Judge a finished run by its metrics.

    Args:
        metrics: See `loop.training` and `Program.evaluate`; without `test` where it must not be seen. Without
            `validation_sem` the validation error is taken as exact.
        chance: Error of a model that has learned nothing; `None` where that is unknown. On the validation examples it
            is `validation_chance`, where that is among the metrics.

    Returns:
        The status, and the reason if it is not `ok`.
    """
    step = int(metrics["first_nonfinite"])
    if step == 0:
        return "diverged", "The loss is not finite at step 0, before any update: look at model, loss and data."
    if step > 0:
        return "diverged", f"The loss is not finite from step {step}."
    if not metrics["finite"]:
        return "diverged", "Outputs are not finite after training."
    if any(_finite(metrics[name]) is None for name in ("validation", "test") if name in metrics):
        return "diverged", "The metric is not finite after training."
    chance = metrics.get("validation_chance", chance)
    sem = metrics.get("validation_sem", 0.0)
    if chance is not None and metrics["validation"] + COLLAPSED_WITHIN * sem >= chance:
        about = f" ± {sem:.2g}" if sem else ""
        return "collapsed", f"Validation error {metrics['validation']:.3g}{about}, chance is {chance:.3g}."
    return "ok", ""


def make_record(
    task: Task,
    run: Run,
    status: str,
    reason: str,
    metrics: Mapping[str, float | None] | None = None,
    series: Mapping[str, list[list[float | None]]] | None = None,
    cost: Mapping[str, float] | None = None,
) -> Record:
    """Make the record of a run; errors of diverged runs are `None`."""
    of_problem = records.of_problem(task.identity, run.configuration.problem)
    return Record(
        key=run_key(run, of_problem),
        run=run,
        identity=of_problem,
        status=status,
        reason=schema.printable(reason),
        metrics=_kept(metrics, status) if metrics else {"validation": None},
        series=dict(series or {}),
        cost=dict(cost or {}),
    )


TUNING_SEES = ("validation", "validation_sem", "validation_chance", "train_loss", "finite", "first_nonfinite")


def _kept(metrics: Mapping[str, float | None], status: str) -> dict[str, float | None]:
    named = dict.fromkeys(("validation", "test", "train_loss", "chance", *metrics))
    kept = {name: _finite(metrics[name]) for name in named if name in metrics and name not in _JUDGED}
    return {name: None if status == "diverged" and name not in _ALWAYS else value for name, value in kept.items()}


_JUDGED, _ALWAYS = ("finite", "first_nonfinite", "validation_sem", "validation_chance"), ("train_loss", "chance")
"""Metrics that only make a status, and those that a diverged run keeps."""


def rows_of(values: "np.ndarray") -> list[list[float | None]]:
    """Rows of numbers with six digits, which is more than a drawing shows."""
    return [[_finite(float(f"{value:.6g}")) for value in row] for row in values]


def _finite(value: float | None) -> float | None:
    """A number that records hold."""
    return value if value is not None and abs(value) <= schema.LARGEST else None


def failure(error: Exception) -> tuple[str, str]:
    """Status and reason; a statistic over one element is no accident, but a norm where it cannot be."""
    from normlab.functional import StatisticsError

    if isinstance(error, StatisticsError):
        return "invalid", one_line(error)
    oom = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error)
    return "oom" if oom else "error", one_line(error)
