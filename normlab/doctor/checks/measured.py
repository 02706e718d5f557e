"""The norms of a patient that were measured, as the checks ask for them."""

from collections.abc import Iterator

import numpy as np

from normlab.doctor.checks.kinds import takes_batch_statistics
from normlab.doctor.measure import Part
from normlab.doctor.patient import Patient
from normlab.tools import Site

__all__ = ["first_broken", "learns", "left_out", "of_batches", "parts_of", "sound"]


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


def left_out(patient: Patient) -> Iterator[str]:
    """Yield why norms are left out of the checks of measurements, a reason for each kind of norms."""
    out = patient.lifted_out[1]
    for reason, paths in (
        ("under `vmap`", [site.path for site in out if "vmap" in site.lifted]),
        ("inside recurrent cells", [site.path for site in out if "vmap" not in site.lifted]),
    ):
        if paths:
            yield f"{_listed(paths)} {'is' if len(paths) == 1 else 'are'} {reason}, where nothing can be measured"
    if (broken := first_broken(patient)) is not None:
        yield f"from `{broken[0]}` on, numbers are not finite"


def _listed(paths: list[str]) -> str:
    return f"`{paths[0]}`" if len(paths) == 1 else f"`{paths[0]}` and {len(paths) - 1} more"
