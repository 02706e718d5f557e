"""The norms of a patient that were measured, as the checks ask for them."""

from collections.abc import Iterator

import numpy as np

from normlab.doctor.checks.kinds import takes_batch_statistics
from normlab.doctor.findings import Skipped
from normlab.doctor.measure import CallNumbers
from normlab.doctor.patient import Patient
from normlab.doctor.pooled import pooled
from normlab.tools import Site

__all__ = ["calls_are_alike", "drawn", "first_broken", "learns", "left_out", "of_batches", "parts_of", "sound"]


def sound(patient: Patient) -> list[str]:
    """Return the norms that were measured, in order, up to the first whose numbers are not finite."""
    broken = first_broken(patient)
    paths = list(patient.trained)
    return paths if broken is None else paths[: paths.index(broken[0])]


def of_batches(patient: Patient) -> list[str]:
    """Return the sound ones that take batch statistics of more than one element in training."""
    return [path for path in sound(patient) if learns(site := patient.site_of(path)) and site.count > 1]


def learns(site: Site) -> bool:
    """Return whether a norm takes batch statistics in training."""
    return takes_batch_statistics(site) and not site.running


def parts_of(patient: Patient, path: str) -> list[CallNumbers]:
    """Return the measurements of all calls of a norm in training."""
    return [part for calls in patient.trained[path] for part in calls]


def calls_are_alike(patient: Patient, site: Site) -> bool:
    """Return whether the inputs of all calls of a norm have the moments of all together; False where not measured."""
    try:
        series = [patient.trained[path] for path in patient.runs(site)]
    except Exception:  # of a model that cannot be called, too: several calls are a fault without any measurement
        return False
    batches = [[part for calls in batch for part in calls] for batch in zip(*series, strict=True)]
    if not batches or not all(len(calls) > 1 for calls in batches):
        return False
    whole, bounds = pooled(site, batches), patient.thresholds
    for calls in zip(*batches, strict=False):
        one = pooled(site, [[call] for call in calls])
        varying = (one.var > 0) & (whole.var > 0)
        far = np.abs(whole.mean - one.mean)[varying] / np.sqrt(one.var[varying])
        log_ratio = np.log(whole.var[varying] / one.var[varying])
        if (
            not varying.any()
            or np.median(far) > bounds.lag
            or abs(np.median(log_ratio)) > np.log(bounds.variance_ratio)
        ):
            return False
    return True


def first_broken(patient: Patient) -> tuple[str, str, float, str] | None:
    """Return the first norm with numbers that are not finite, where they are, how many, and in which mode."""
    for series, mode in ((patient.trained, "in training"), (patient.evaluated, "at evaluation")):
        for path, batches in series.items():
            totals = np.sum([np.asarray(part.broken, np.float64) for calls in batches for part in calls], axis=0)
            if totals.any():
                return path, "input" if totals[0] else "output", float(totals[0] or totals[1]), mode
    return None


def left_out(patient: Patient) -> Iterator[str]:
    """Yield why norms are left out of the checks of measurements, a reason for each kind of norms."""
    out = patient.lifted_out[1]
    for reason, paths in (
        (
            "under `vmap`, where only norms with variables for each lane, along the first axis, can be measured",
            [site.path for site in out if "vmap" in site.lifted],
        ),
        (
            "inside recurrent cells of this package, which compute them in one loop that no module sees",
            [site.path for site in out if "vmap" not in site.lifted],
        ),
    ):
        if paths:
            yield f"{_listed(paths)} {'is' if len(paths) == 1 else 'are'} {reason}"
    if (broken := first_broken(patient)) is not None:
        yield f"from `{broken[0]}` on, numbers are not finite"


def drawn(code: str, paths: list[str]) -> Iterator[Skipped]:
    """Yield why norms are left out of a check that needs dropout off, if there are any; see `Patient.random`."""
    if paths:
        change = "changes" if len(paths) == 1 else "change"
        yield Skipped(
            code,
            f"the output of {_listed(paths)} {change} with the random numbers of a call, which are no dropout of Flax "
            "that can be turned off.",
        )


def _listed(paths: list[str]) -> str:
    return f"`{paths[0]}`" if len(paths) == 1 else f"`{paths[0]}` and {len(paths) - 1} more"
