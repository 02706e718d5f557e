"""The norms of a patient that were measured, as the checks ask for them."""

import numpy as np

from normlab.doctor.checks.kinds import takes_batch_statistics
from normlab.doctor.measure import Part
from normlab.doctor.patient import Patient
from normlab.tools import Site

__all__ = ["first_broken", "learns", "of_batches", "parts_of", "sound"]


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


def parts_of(patient: Patient, path: str) -> list[Part]:
    """Return the measurements of all calls of a norm in training."""
    return [part for calls in patient.trained[path] for part in calls]


def first_broken(patient: Patient) -> tuple[str, str, float, str] | None:
    """Return the first norm with numbers that are not finite, where they are, how many, and in which mode."""
    for series, mode in ((patient.trained, "in training"), (patient.evaluated, "at evaluation")):
        for path, batches in series.items():
            totals = np.sum([np.asarray(part.broken, np.float64) for calls in batches for part in calls], axis=0)
            if totals.any():
                return path, "input" if totals[0] else "output", float(totals[0] or totals[1]), mode
    return None
