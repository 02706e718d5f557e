"""Checks of what goes into the norms, and of what they make of it in training and at evaluation."""

import math

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import betainc
from jax.typing import ArrayLike

from normlab.doctor.checks.kinds import takes_batch_statistics
from normlab.doctor.checks.registry import Fault, Found, Texts, check
from normlab.doctor.findings import Severity
from normlab.doctor.measure import Part
from normlab.doctor.patient import Patient
from normlab.doctor.pooled import gap
from normlab.doctor.skip import Skip
from normlab.tools import Site

_HALF = ("float16", "bfloat16")


def _sound(patient: Patient) -> list[str]:
    """Return the norms that were measured, in order, up to the first whose numbers are not finite."""
    broken = _first_broken(patient)
    paths = list(patient.trained)
    return paths if broken is None else paths[: paths.index(broken[0])]


def _of_batches(patient: Patient) -> list[str]:
    """Return those of them that take batch statistics in training."""
    return [path for path in _sound(patient) if _learns(site := patient.site_of(path)) and site.count > 1]


def _learns(site: Site) -> bool:
    return takes_batch_statistics(site) and not site.running


@check("NL301", "data")
def one_pass_variance(patient: Patient) -> Found:
    """A variance that loses its digits in one pass.

    Half a rounding error of E[x²] relative to the variance, 2⁻²⁴ (mean² + var) / var, exceeds 0.01 in more than one
    statistic and in 1 %, where the norm takes one pass (Flax's `use_fast_variance`). For inputs of half precision, a
    note where the mean exceeds 64 standard deviations: they have few digits themselves.
    """
    bound, faults, halves = patient.thresholds.digits, list[Fault](), list[Fault]()
    for path in _sound(patient):
        site, parts = patient.site_of(path), _parts(patient, path)
        lossy = max(_number(part.lossy) for part in parts)
        share = lossy / max(1.0, _number(parts[0].statistics))
        if getattr(site.module, "use_fast_variance", False) and lossy > 1 and share > 0.01:
            faults.append(Fault(path, {"share of the statistics that lose digits": share, "statistics": lossy}))
        far = _mean_in_deviations(patient, path)
        if str(site.dtype) in _HALF and far > patient.thresholds.large_mean:
            halves.append(Fault(path, {"mean in standard deviations": far}))
    texts = Texts(
        title="a variance that rounding decides",
        why="E[x²] - E[x]² subtracts two large numbers: the variance is off by percents, or 0.",
        source="Chan, Golub & LeVeque 1983, https://doi.org/10.1080/00031305.1983.10483115; google/flax#1491",
        remedy="use_fast_variance=False  # at `{path}`; or normlab's norms, which are exact at any offset",
    )
    if faults:
        yield texts.finding("NL301", "error", faults, threshold=bound)
    few = Texts(
        title="half-precision inputs far from zero have few digits",
        why="A number 64 deviations from zero has at most a few steps of bfloat16 within a deviation.",
        source="keras-team/keras-core#866",
        remedy="# subtract the mean before the cast to half precision, ahead of `{path}`",
    )
    if halves:
        yield few.finding("NL301", "note", halves, threshold=patient.thresholds.large_mean)


def _mean_in_deviations(patient: Patient, path: str) -> float:
    found = patient.pooled[path]
    varying = found.var > 0
    far = np.abs(found.mean[varying]) / np.sqrt(found.var[varying])
    return float(np.median(far)) if far.size else 0.0


def _parts(patient: Patient, path: str) -> list[Part]:
    return [part for calls in patient.trained[path] for part in calls]


def _number(x: ArrayLike) -> float:
    return float(np.asarray(x))


@check("NL302", "data")
def few_effective_samples(patient: Patient) -> Found:
    """A batch norm whose batches are worth few independent samples.

    Positions of an example are alike: the variance of elements over that of the examples' means, times the examples of
    a batch (of a ghost batch), at most its elements; the median over features is below 8.
    """
    bound, faults = patient.thresholds.effective, list[Fault]()
    for path in _of_batches(patient):
        n_eff = patient.pooled[path].n_eff
        if n_eff < bound * (1 - 1e-3):
            faults.append(Fault(path, {"effective samples": n_eff, "examples": patient.pooled[path].examples}))
    texts = Texts(
        title="batch statistics of few effective samples",
        why="The statistics are noise, and evaluation uses others than training did.",
        source="Wu & He 2018, https://arxiv.org/abs/1803.08494; Wu & Johnson 2021, https://arxiv.org/abs/2105.07576",
        remedy="normlab.tools.convert(model, variables, to='group')  # or a larger batch at `{path}`",
    )
    if faults:
        yield texts.finding("NL302", "warning", faults, threshold=bound, certain=False)


@check("NL303", "data")
def running_statistics_lag(patient: Patient) -> Found:
    """Running statistics that lag behind the batches.

    The median feature's running mean is more than 0.25 standard deviations from the mean of these batches, or its
    variance off by a factor of 1.5, and by at least 4 standard errors: those of these batches and of the running
    average together. A model as it was initialized is left out, and norms that were never updated (NL201, NL205).
    """
    if patient.untouched:
        raise Skip("the model is as it was initialized")
    bounds, faults = patient.thresholds, list[Fault]()
    for path in _of_batches(patient):
        site = patient.site_of(path)
        if site.calls > 1 or patient.is_fresh(site):
            continue
        found = lag(patient, path)
        if found is None:
            continue
        mean, log_ratio, error = found
        far = mean > max(bounds.lag, bounds.standard_errors * error)
        wide = abs(log_ratio) > max(math.log(bounds.variance_ratio), bounds.standard_errors * math.sqrt(2) * error)
        if far or wide:
            evidence = {"lag of the mean in deviations": mean, "running variance over variance": math.exp(log_ratio)}
            faults.append(Fault(path, evidence if far else dict(reversed(evidence.items()))))
    texts = Texts(
        title="running statistics are not those of the data",
        why="Evaluation normalizes by statistics of other weights or other data than the model has now.",
        source="Wu & Johnson 2021, https://arxiv.org/abs/2105.07576, section 3; facebookresearch/fvcore#152",
        remedy="variables = normlab.tools.precise(model, variables, batches).variables",
    )
    if faults:
        threshold = bounds.lag if "lag" in next(iter(faults[0].evidence)) else bounds.variance_ratio
        yield texts.finding("NL303", "warning", faults, threshold=threshold, certain=False)


def lag(patient: Patient, path: str) -> tuple[float, float, float] | None:
    """Return how far running statistics are from the batches', medians over features.

    Returns:
        Distance of the means in standard deviations, logarithm of the ratio of the variances, and the standard error of
        the former; `None` without statistics.
    """
    running, found = patient.running_of(path), patient.pooled[path]
    if running is None or running[0].shape != found.mean.shape:
        return None
    varying = (found.var > 0) & (running[1] > 0)
    if not varying.any():
        return None
    std = np.sqrt(found.var[varying])
    mean = float(np.median(np.abs(running[0] - found.mean)[varying] / std))
    log_ratio = float(np.median(np.log(running[1][varying] / found.var[varying])))
    n_eff, calls = found.n_eff, len(found.batch_means)
    momentum = getattr(patient.site_of(path).module, "momentum", None)
    kept = (1 - momentum) / (1 + momentum) if isinstance(momentum, float) else 0.0
    error = math.sqrt((1 / calls + kept) / n_eff) if n_eff > 0 else float("inf")
    return mean, log_ratio, error


@check("NL304", "data")
def training_and_evaluation_part(patient: Patient) -> Found:
    """Training and evaluation that part.

    The root mean square of the difference of a norm's outputs in both modes, dropout off, over that in training: the
    first norm with more than 0.3 that is also more than twice the difference that remains with the statistics of these
    very batches in place of the running ones, which grows with depth and with the noise of small batches; and more than
    3 sqrt(Σ 1 / effective samples) over the batch norms up to there. A model as it was initialized is left out.
    """
    if patient.untouched:
        raise Skip("the model is as it was initialized")
    if not patient.modes.known:
        raise Skip("the modes of the model are not known")
    bounds, noise = patient.thresholds, 0.0
    for path in _sound(patient):
        site = patient.site_of(path)
        if _learns(site):
            n_eff = patient.pooled[path].n_eff
            noise += 1 / n_eff if n_eff > 0 else 0.0
        if not _learns(site) or patient.running(site) is None or patient.is_fresh(site):
            continue
        apart, expected = gaps(patient, path)
        if apart > max(bounds.gap, 3 * math.sqrt(noise), bounds.gap_ratio * expected):
            evidence = {"difference of the modes": apart, "expected of these batches": expected}
            yield _PARTED.finding("NL304", "warning", [Fault(path, evidence)], threshold=bounds.gap, certain=False)
            return


_PARTED = Texts(
    title="training and evaluation give different outputs",
    why="The model is evaluated as another function than it was trained as.",
    source="pytorch/pytorch#4741, #5406; google/flax#2279",
    remedy="variables = normlab.tools.precise(model, variables, batches).variables  # then look at `{path}`",
)


def gaps(patient: Patient, path: str) -> tuple[float, float]:
    """Return the difference of a norm's outputs in both modes, and that with the statistics of these batches.

    The latter is the former's expectation for right statistics, corrected for the part of each batch in them.
    """
    batches = patient.quiet[path]
    apart = gap(batches, patient.evaluated.get(path, ()))
    expected = gap(batches, patient.reestimated.get(path, ()))
    more = math.sqrt(len(batches) / (len(batches) - 1)) if len(batches) > 1 else 1.0
    return apart, expected * more


@check("NL305", "data")
def batches_differ(patient: Patient) -> Found:
    """Batches that are not alike.

    Analysis of variance of the examples' means at the first batch norm, of at least 4 batches: the ratio F exceeds 4 in
    the median feature, and a quarter of the features have p < 1e-6 over all features together. Behind a batch norm the
    means are forced, so that later ones say nothing.
    """
    paths = _of_batches(patient)
    if not paths:
        return
    found = patient.pooled[paths[0]]
    batches, examples = len(found.batch_means), found.examples
    if batches < 4:
        raise Skip(f"{batches} of at least 4 batches were given")
    if examples < 2:
        raise Skip("batches have one example each")
    bounds, varying = patient.thresholds, found.of_examples > 0
    if not varying.any():
        return
    ratio = found.batch_means.var(0, ddof=1)[varying] * examples / found.of_examples[varying]
    chance = _survival(ratio, batches - 1, batches * (examples - 1))
    share = float(np.mean(chance * ratio.size < bounds.significance))
    median = float(np.median(ratio))
    if median > bounds.batches and share > 0.25:
        texts = Texts(
            title="batches are not alike",
            why="Each batch has a mean of its own, by class, source or time: the norm takes the difference away.",
            source="Ioffe 2017, https://arxiv.org/abs/1702.03275, section 3; facebookresearch/moco#70",
            remedy="# shuffle the training data over all classes and sources, ahead of `{path}`",
        )
        evidence = {"F of the median feature": median, "share of the features": share}
        yield texts.finding("NL305", "warning", [Fault(paths[0], evidence)], threshold=bounds.batches, certain=False)


def _survival(ratio: np.ndarray, between: float, within: float) -> np.ndarray:
    """Return the probability of a larger F by chance."""
    return np.asarray(betainc(within / 2, between / 2, jnp.asarray(within / (within + between * ratio))))


@check("NL306", "data")
def dropout_before_batch_norm(patient: Patient) -> Found:
    """Dropout before a batch norm, with no norm between.

    A dropout reaches the input, and the variance with it over that without is above 1.2, or below 1 / 1.2, in the
    median feature.
    """
    bound, faults = patient.thresholds.dropout, list[Fault]()
    for path in _of_batches(patient):
        site = patient.site_of(path)
        if site.dropout is None:
            continue
        with_dropout, without = patient.pooled[path].var, patient.quiet_pooled[path].var
        varying = (without > 0) & (with_dropout > 0)
        ratio = float(np.median(with_dropout[varying] / without[varying])) if varying.any() else 1.0
        if not 1 / bound <= ratio <= bound:
            faults.append(Fault(path, {"variance with dropout over without": ratio}))
    texts = Texts(
        title="dropout changes the variance that the norm learns",
        why="Dropout is off at evaluation, where the running variance is that of training: outputs have another scale.",
        source="Li et al. 2019, https://arxiv.org/abs/1801.05134",
        remedy="# put the dropout behind the last batch norm, after `{path}`",
    )
    if faults:
        yield texts.finding("NL306", "warning", faults, threshold=bound, certain=False)


@check("NL307", "data")
def constant_channels(patient: Patient) -> Found:
    """Constant or dead channels before a batch norm.

    The variance in every batch is 0, or below 1e-10 of the squared mean plus the median variance; a warning for more
    than 10 % of the channels.
    """
    many, few = list[Fault](), list[Fault]()
    for path in _of_batches(patient):
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
    graded: tuple[tuple[Severity, list[Fault]], ...] = ("warning", many), ("note", few)
    for severity, faults in graded:
        if faults:
            yield texts.finding("NL307", severity, faults, threshold=patient.thresholds.channels, certain=False)


def constant(patient: Patient, path: str) -> np.ndarray:
    """Return which features of a norm's input are constant in every batch."""
    found = patient.pooled[path]
    least = patient.thresholds.constant * (np.square(found.batch_means) + np.median(found.batch_vars, 1)[:, None])
    return ((found.batch_vars == 0) | (found.batch_vars < least)).all(0)


@check("NL308", "data")
def variance_below_epsilon(patient: Patient) -> Found:
    """A variance that is not large against epsilon.

    The variance is below 10 epsilon, so that outputs shrink by sqrt(var / (var + epsilon)): of a feature in batch
    norms, of an example in layer and instance norms; a warning for more than 10 % of them. Constant ones do not count.
    """
    many, few = list[Fault](), list[Fault]()
    for path in _sound(patient):
        site = patient.site_of(path)
        if not (_learns(site) or site.kind in ("layer", "instance")) or not getattr(site.module, "epsilon", 0.0):
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
    graded: tuple[tuple[Severity, list[Fault]], ...] = ("warning", many), ("note", few)
    for severity, faults in graded:
        if faults:
            yield texts.finding("NL308", severity, faults, threshold=patient.thresholds.channels, certain=False)


def _small(patient: Patient, path: str, site: Site) -> float:
    if not _learns(site):
        parts = _parts(patient, path)
        return float(np.mean([_number(part.small) / max(1.0, _number(part.statistics)) for part in parts]))
    found, dead = patient.pooled[path], constant(patient, path)
    small = found.batch_vars.mean(0) < patient.thresholds.small_variance * float(site.module.epsilon)
    return float(np.mean(small & ~dead))


@check("NL309", "data")
def exploding(patient: Patient) -> Found:
    """A scale that explodes, or an input near the end of its type's range.

    The largest scale is more than 100 times the median of the model's scales, and more than 10; or the input's largest
    magnitude is above an eighth of the largest number of its type.
    """
    bounds = patient.thresholds
    scales = {site.path: np.abs(one) for site in patient.sites if (one := patient.parameter(site, "scale")) is not None}
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
    if faults:
        yield texts.finding("NL309", "warning", faults, threshold=bounds.scale)
    near = [fault for path in _sound(patient) if (fault := _near_the_end(patient, path)) is not None]
    ranged = Texts(
        title="an input near the end of its type's range",
        why="A few times larger, and the input is infinite, and everything behind it.",
        source="Micikevicius et al. 2018, https://arxiv.org/abs/1710.03740",
        remedy="dtype=jnp.bfloat16  # in place of float16 ahead of `{path}`, or a norm before",
    )
    if near:
        yield ranged.finding("NL309", "warning", near, threshold=bounds.range, certain=False)


def _near_the_end(patient: Patient, path: str) -> Fault | None:
    site = patient.site_of(path)
    if not jnp.issubdtype(site.dtype, jnp.floating):
        return None
    share = max(_number(part.largest) for part in _parts(patient, path)) / float(jnp.finfo(site.dtype).max)
    return Fault(path, {"share of the range": share}) if share > patient.thresholds.range else None


@check("NL311", "data")
def not_finite(patient: Patient) -> Found:
    """A norm with NaN or infinity in its input or output.

    The first such norm; other checks of data leave out the norms from there on.
    """
    broken = _first_broken(patient)
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


def _first_broken(patient: Patient) -> tuple[str, str, float, str] | None:
    """Return the first norm with numbers that are not finite, where they are, how many, and in which mode."""
    for series, mode in ((patient.trained, "in training"), (patient.evaluated, "at evaluation")):
        for path, batches in series.items():
            totals = np.sum([np.asarray(part.broken, np.float64) for calls in batches for part in calls], axis=0)
            if totals.any():
                return path, "input" if totals[0] else "output", float(totals[0] or totals[1]), mode
    return None


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


__all__ = ["constant", "gaps", "lag", "not_finite"]
