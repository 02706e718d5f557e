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
"""Standard errors below chance that a validation error needs to show learning. A model that has learned nothing gets
there by luck in 0.6 % of runs."""


def status_of(metrics: Metrics, chance: float | None) -> tuple[str, str]:
    """Judge a finished run by its metrics.

    Args:
        metrics: See `loop.training` and `Program.evaluate`; without `test` for tuning runs. Without `validation_sem`
            the validation error counts as exact.
        chance: Error of a model that has learned nothing; `None` if unknown. The metric `validation_chance` replaces it
            where there is one.

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
        metrics=_recorded(metrics, status) if metrics else {"validation": None},
        series=dict(series or {}),
        cost=dict(cost or {}),
    )


TUNING_SEES = ("validation", "validation_sem", "validation_chance", "train_loss", "finite", "first_nonfinite")


def _recorded(metrics: Mapping[str, float | None], status: str) -> dict[str, float | None]:
    named = dict.fromkeys(("validation", "test", "train_loss", "chance", *metrics))
    finite = {name: _finite(metrics[name]) for name in named if name in metrics and name not in _JUDGED}
    return {name: None if status == "diverged" and name not in _ALWAYS else value for name, value in finite.items()}


_JUDGED, _ALWAYS = ("finite", "first_nonfinite", "validation_sem", "validation_chance"), ("train_loss", "chance")
"""Metrics that only decide the status, and metrics that a diverged run keeps."""


def rows_of(values: "np.ndarray") -> list[list[float | None]]:
    """Round to six digits, which is more than a figure shows."""
    return [[_finite(float(f"{value:.6g}")) for value in row] for row in values]


def _finite(value: float | None) -> float | None:
    """Return a number that records can contain, else `None`."""
    return value if value is not None and abs(value) <= schema.LARGEST else None


def failure(error: Exception) -> tuple[str, str]:
    """Return status and reason of an exception; a statistic over one element makes the configuration invalid."""
    from normlab.functional import StatisticsError

    if isinstance(error, StatisticsError):
        return "invalid", one_line(error)
    oom = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error)
    return "oom" if oom else "error", one_line(error)
