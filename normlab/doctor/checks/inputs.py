"""Checks of what goes into the norms: digits, range, dead channels, padding."""

import jax.numpy as jnp
import numpy as np

from normlab.doctor.checks.kinds import takes_batch_statistics
from normlab.doctor.checks.measured import first_broken, learns, of_batches, parts_of, sound
from normlab.doctor.checks.registry import Fault, Found, Texts, check
from normlab.doctor.patient import Patient
from normlab.tools import Site

__all__ = ["constant"]

_HALF = ("float16", "bfloat16")


@check("NL301", "data", "finite")
def one_pass_variance(patient: Patient) -> Found:
    """A variance that loses its digits in one pass.

    Half a rounding error of E[x²] relative to the variance, 2⁻²⁴ (mean² + var) / var, exceeds 0.01 in more than one
    statistic and in 1 %, where the norm takes one pass (Flax's `use_fast_variance`). For inputs of half precision, a
    note where the mean exceeds 64 standard deviations: they have few digits themselves.
    """
    faults, halves = list[Fault](), list[Fault]()
    for path in sound(patient):
        site, parts = patient.site_of(path), parts_of(patient, path)
        lossy = max(float(part.lossy) for part in parts)
        share = lossy / max(1.0, float(parts[0].statistics))
        one_pass = getattr(site.module, "use_fast_variance", False) and site.kind != "rms" and not site.running
        if one_pass and lossy > 1 and share > patient.thresholds.lossy:
            faults.append(Fault(path, {"share of the statistics that lose digits": share, "statistics": lossy}))
        far = _mean_in_deviations(patient, path)
        if str(site.dtype) in _HALF and far > patient.thresholds.large_mean:
            halves.append(Fault(path, {"mean in standard deviations": far}))
    texts = Texts(
        title="a variance that rounding decides",
        why="E[x²] - E[x]² subtracts two large numbers: the variance is off by percents, or 0.",
        source="Chan, Golub & LeVeque 1983, https://doi.org/10.1080/00031305.1983.10483115; google/flax#1491; "
        "tensorflow/tensorflow#118701",
        remedy="use_fast_variance=False  # at `{path}`; or normlab's norms, which are exact at any offset",
    )
    yield from texts.findings("NL301", "error", faults, threshold=patient.thresholds.lossy)
    few = Texts(
        title="half-precision inputs far from zero have few digits",
        why="A number 64 deviations from zero has at most a few steps of bfloat16 within a deviation.",
        source="Kalamkar et al. 2019, https://arxiv.org/abs/1905.12322, section 2 (bfloat16 has 8 bits of significand)",
        remedy="# subtract the mean before the cast to half precision, ahead of `{path}`",
    )
    yield from few.findings("NL301", "note", halves, threshold=patient.thresholds.large_mean)


def _mean_in_deviations(patient: Patient, path: str) -> float:
    found = patient.pooled[path]
    varying = found.var > 0
    far = np.abs(found.mean[varying]) / np.sqrt(found.var[varying])
    return float(np.median(far)) if far.size else 0.0


@check("NL307", "data", "finite")
def constant_channels(patient: Patient) -> Found:
    """Constant or dead channels before a batch norm.

    The variance in every batch is 0, or below 1e-10 of the squared mean plus the median variance; a warning for more
    than 10 % of the channels.
    """
    many, few = list[Fault](), list[Fault]()
    for path in of_batches(patient):
        share = float(np.mean(constant(patient, path)))
        fault = Fault(path, {"share of constant channels": share})
        if share > patient.thresholds.channels:
            many.append(fault)
        elif share:
            few.append(fault)
    first = next(iter([*many, *few]), None)
    if first is None:
        return
    given = patient.site_of(first.path).before.kind == "input"
    texts = Texts(
        title="constant channels of the input" if given else "dead channels before the norm",
        why="The norm divides rounding errors by sqrt(epsilon); the channel carries nothing, or noise.",
        source="Mehta et al. 2019, https://arxiv.org/abs/1811.12495 (filters that die under batch norm)",
        remedy="# drop these columns of the data"
        if given
        else "# look at learning rate and weight decay before `{path}`",
    )
    yield from texts.by_share("NL307", many, few, threshold=patient.thresholds.channels)


def constant(patient: Patient, path: str) -> np.ndarray:
    """Return which features of a norm's input are constant in every batch."""
    found = patient.pooled[path]
    least = patient.thresholds.constant * (np.square(found.batch_means) + np.median(found.batch_vars, 1)[:, None])
    return ((found.batch_vars == 0) | (found.batch_vars < least)).all(0)


@check("NL308", "data", "finite")
def variance_below_epsilon(patient: Patient) -> Found:
    """A variance that is not large against epsilon.

    The variance is below 10 epsilon, so that outputs shrink by sqrt(var / (var + epsilon)): of a feature in batch
    norms, of an example in layer and instance norms; a warning for more than 10 % of them. Constant ones do not count.
    """
    many, few = list[Fault](), list[Fault]()
    for path in sound(patient):
        site = patient.site_of(path)
        if not (learns(site) or site.kind in ("layer", "instance")) or not getattr(site.module, "epsilon", 0.0):
            continue
        share = _small(patient, path, site)
        fault = Fault(path, {"share below 10 epsilon": share, "epsilon": float(site.module.epsilon)})
        if share > patient.thresholds.channels:
            many.append(fault)
        elif share:
            few.append(fault)
    texts = Texts(
        title="variances as small as epsilon",
        why="The output is smaller than it should be, and its scale follows the input's.",
        source="Ioffe & Szegedy 2015, https://arxiv.org/abs/1502.03167, algorithm 1",
        remedy="epsilon=1e-8  # at `{path}`, or scale the input up",
    )
    yield from texts.by_share("NL308", many, few, threshold=patient.thresholds.channels)


def _small(patient: Patient, path: str, site: Site) -> float:
    if not learns(site):
        parts = parts_of(patient, path)
        return float(np.mean([float(part.small) / max(1.0, float(part.statistics)) for part in parts]))
    found, dead = patient.pooled[path], constant(patient, path)
    small = found.batch_vars.mean(0) < patient.thresholds.small_variance * float(site.module.epsilon)
    return float(np.mean(small & ~dead))


@check("NL309", "data", "finite")
def exploding(patient: Patient) -> Found:
    """A scale that explodes, or an input near the end of its type's range.

    The largest scale is more than 100 times the median of the model's scales, and more than 10; or the input's largest
    magnitude is above an eighth of the largest number of its type.
    """
    bounds = patient.thresholds
    scales = {
        site.path: np.abs(one)
        for site in patient.sites
        if (one := patient.norm_variables.parameter(site, "scale")) is not None
    }
    together = np.concatenate([one.ravel() for one in scales.values()]) if scales else np.zeros(1)
    typical = float(np.median(together[together > 0])) if (together > 0).any() else 0.0
    largest = {path: float(one.max(initial=0)) for path, one in scales.items()}
    least = max(bounds.scale * typical, bounds.largest_scale)
    faults = [
        Fault(path, {"largest scale": one, "median scale": typical}) for path, one in largest.items() if one > least
    ]
    texts = Texts(
        title="a scale that explodes",
        why="One channel outweighs all others, and its gradient with it.",
        source="Wei et al. 2022, https://arxiv.org/abs/2209.13325 (scales of layer norm amplify outliers)",
        remedy="optax.clip_by_global_norm(1.0)  # before the optimizer, and look at the data ahead of `{path}`",
    )
    yield from texts.findings("NL309", "warning", faults, threshold=least)
    near = [fault for path in sound(patient) if (fault := _near_the_end(patient, path)) is not None]
    ranged = Texts(
        title="an input near the end of its type's range",
        why="A few times larger, and the input is infinite, and everything behind it.",
        source="Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740",
        remedy="dtype=jnp.bfloat16  # in place of float16 ahead of `{path}`, or a norm before",
    )
    yield from ranged.findings("NL309", "warning", near, threshold=bounds.range, certain=False)


def _near_the_end(patient: Patient, path: str) -> Fault | None:
    site = patient.site_of(path)
    if not jnp.issubdtype(site.dtype, jnp.floating):
        return None
    share = max(float(part.largest) for part in parts_of(patient, path)) / float(jnp.finfo(site.dtype).max)
    return Fault(path, {"share of the range": share}) if share > patient.thresholds.range else None


@check("NL310", "padding")
def padding_counts(patient: Patient) -> Found:
    """Padding that is counted.

    Noise in padded positions of the input changes a norm's output at valid ones by more than 1e-3 of its scale, though
    its input there is as before.
    """
    patient.can_measure  # noqa: B018
    faults: dict[str, Fault] = {}
    for train in (True, False) if patient.modes.known else (True,):
        for path, moved in patient.moved_by_padding(train=train).items():
            site = patient.site_of(path)
            if moved > patient.thresholds.padding and (train or not takes_batch_statistics(site)):
                faults.setdefault(path, Fault(path, {"change at valid positions": moved}))
    texts = Texts(
        title="padding counts in the statistics",
        why="An example's output depends on how far its batch was padded.",
        source="pytorch/pytorch#81985, #70529; tensorflow/tensorflow#30161",
        remedy="norm(x, mask=mask[..., None])  # at `{path}`, True where a position counts",
    )
    if faults:
        yield texts.finding("NL310", "warning", list(faults.values()), threshold=patient.thresholds.padding)


@check("NL311", "data")
def not_finite(patient: Patient) -> Found:
    """A norm with NaN or infinity in its input or output.

    The first such norm; other checks of data leave out the norms from there on.
    """
    broken = first_broken(patient)
    if broken is None:
        return
    path, at, count, mode = broken
    texts = Texts(
        title=f"the norm's {at} is not finite {mode}",
        why="Everything behind it is NaN, and with batch statistics every example of the batch.",
        source="Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740",
        remedy="jax.config.update('jax_debug_nans', True)  # then call the model; the layers before `{path}` are first",
    )
    yield texts.finding("NL311", "error", [Fault(path, {"elements that are not finite": count})], threshold=0)
