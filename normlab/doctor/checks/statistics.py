"""Checks of batch statistics and of running ones, and of what the modes make of them."""

import math

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import betainc

from normlab.doctor.checks.kinds import to_group
from normlab.doctor.checks.measured import drawn, learns, of_batches, sound
from normlab.doctor.checks.registry import Fault, Found, Texts, check
from normlab.doctor.patient import Patient
from normlab.doctor.pooled import gap
from normlab.doctor.skip import Skip
from normlab.tools import Site

__all__ = ["gaps", "lag", "survival"]


@check("NL302", "data", "finite")
def few_effective_samples(patient: Patient) -> Found:
    """A batch norm whose batches are worth few independent samples.

    Positions of an example are alike: the variance of elements over that of the examples' means, times the examples of
    a batch (of a ghost batch), at most its elements; the median over features is below 8.
    """
    bound, faults = patient.thresholds.effective, list[Fault]()
    for path in of_batches(patient):
        n_eff = patient.pooled[path].n_eff
        if n_eff < bound * (1 - 1e-3):
            faults.append(Fault(path, {"effective samples": n_eff, "examples": patient.pooled[path].examples}))
    texts = Texts(
        title="batch statistics of few effective samples",
        why="The statistics are noise, and evaluation uses others than training did.",
        source="Wu & He 2018, https://arxiv.org/abs/1803.08494; Wu & Johnson 2021, https://arxiv.org/abs/2105.07576",
        remedy=to_group(patient.site_of(faults[0].path) if faults else None),
    )
    yield from texts.findings("NL302", "warning", faults, threshold=bound, certain=False)


@check("NL303", "data", "finite")
def running_statistics_lag(patient: Patient) -> Found:
    """Running statistics that lag behind the batches.

    The median feature's running mean is more than 0.25 standard deviations from the mean of these batches, or its
    variance off by a factor of 1.5, and by at least 4 standard errors: those of these batches and of the running
    average together. A model as it was initialized is left out, and norms that were never updated (NL201, NL205).
    """
    if patient.norm_variables.untouched:
        raise Skip("the model is as it was initialized")
    bounds, faults = patient.thresholds, list[Fault]()
    for path in of_batches(patient):
        site = patient.site_of(path)
        if site.calls > 1 or patient.norm_variables.is_fresh(site):
            continue
        found = lag(patient, path)
        if found is None:
            continue
        mean, log_ratio, error = found
        far = mean > max(bounds.lag, bounds.standard_errors * error)
        wide = abs(log_ratio) > max(math.log(bounds.variance_ratio), bounds.standard_errors * math.sqrt(2) * error)
        if far or wide:
            of_mean = {"lag of the mean in deviations": mean}
            of_var = {"ratio of the variances, either way": math.exp(abs(log_ratio))}
            of_var["running variance over variance"] = math.exp(log_ratio)
            faults.append(Fault(path, {**of_mean, **of_var} if far else {**of_var, **of_mean}))
    texts = Texts(
        title="running statistics are not those of the data",
        why="Evaluation normalizes by statistics of other weights or other data than the model has now.",
        source="Wu & Johnson 2021, https://arxiv.org/abs/2105.07576, section 3",
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


@check("NL304", "data", "finite")
def training_and_evaluation_part(patient: Patient) -> Found:
    """Training and evaluation that differ.

    The root mean square of the difference of a norm's outputs in both modes, dropout off, over that in training: the
    first norm with more than 0.48, as much as statistics within the bounds of NL303 explain; that is also more than
    twice the difference that remains with the statistics of these very batches in place of the running ones, which
    grows with depth and with the noise of small batches; and more than 3 sqrt(Σ 1 / effective samples) over the batch
    norms up to there. A model as it was initialized is left out, and norms whose output changes with the random numbers
    of a call though dropout is off.
    """
    if patient.norm_variables.untouched:
        raise Skip("the model is as it was initialized")
    if not patient.modes.known:
        raise Skip("the modes of the model are not known")
    bounds, noise = patient.thresholds, 0.0
    compared = [path for path in sound(patient) if _parts(patient, patient.site_of(path))]
    yield from drawn("NL304", [path for path in compared if path in patient.random])
    for path in sound(patient):
        if learns(patient.site_of(path)):
            n_eff = patient.pooled[path].n_eff
            noise += 1 / n_eff if n_eff > 0 else 0.0
        if path not in compared or path in patient.random:
            continue
        apart, expected = gaps(patient, path)
        if apart > max(bounds.gap, bounds.gap_errors * math.sqrt(noise), bounds.gap_ratio * expected):
            evidence = {"difference of the modes": apart, "expected of these batches": expected}
            yield _PARTED.finding("NL304", "warning", [Fault(path, evidence)], threshold=bounds.gap, certain=False)
            return


def _parts(patient: Patient, site: Site) -> bool:
    """Return whether a norm computes with other statistics in training than at evaluation, and these were learned."""
    return (
        learns(site) and patient.norm_variables.running(site) is not None and not patient.norm_variables.is_fresh(site)
    )


_PARTED = Texts(
    title="training and evaluation give different outputs",
    why="At evaluation the model computes another function than the one that was trained.",
    source="pytorch/pytorch#4741, #5406",
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


@check("NL305", "data", "finite")
def batches_differ(patient: Patient) -> Found:
    """Batches that are not alike.

    Analysis of variance of the examples' means at the first batch norm, of at least 4 batches: the ratio F exceeds 4 in
    the median feature, and a quarter of the features have p < 1e-6 over all features together. Behind a batch norm the
    means are forced, so that later ones say nothing.
    """
    paths = [path for path in of_batches(patient) if patient.site_of(path).calls == 1]
    if not paths:
        return
    found = patient.pooled[paths[0]]
    batches, examples = len(found.batch_means), found.sizes.sum()
    if batches < 4:
        raise Skip(f"{batches} of at least 4 batches were given")
    if examples - batches < batches:
        raise Skip("most batches have one example")
    bounds, varying = patient.thresholds, found.of_examples > 0
    if not varying.any():
        return
    means, sizes = found.batch_means[:, varying], found.sizes[:, None]
    apart = np.square(means - (means * sizes).sum(0) / examples)
    ratio = (apart * sizes).sum(0) / (batches - 1) / found.of_examples[varying]
    chance = survival(ratio, batches - 1, examples - batches)
    share = float(np.mean(chance * ratio.size < bounds.significance))
    median = float(np.median(ratio))
    if median > bounds.batches and share > bounds.features:
        texts = Texts(
            title="batches are not alike",
            why="Each batch has a mean of its own, by class, source or time: the norm takes the difference away.",
            source="Ioffe 2017, https://arxiv.org/abs/1702.03275 (minibatches that are not i.i.d.); Wu & Johnson 2021, "
            "https://arxiv.org/abs/2105.07576",
            remedy="# shuffle the training data over all classes and sources, ahead of `{path}`",
        )
        evidence = {"F of the median feature": median, "share of the features": share}
        yield texts.finding("NL305", "warning", [Fault(paths[0], evidence)], threshold=bounds.batches, certain=False)


def survival(ratio: np.ndarray, between: float, within: float) -> np.ndarray:
    """Return the probability of a larger F by chance."""
    return np.asarray(betainc(within / 2, between / 2, jnp.asarray(within / (within + between * ratio))))


@check("NL306", "data", "finite")
def dropout_before_batch_norm(patient: Patient) -> Found:
    """Dropout before a batch norm, with no norm between.

    A dropout reaches the input, and the variance with it over that without is above 1.2, or below 1 / 1.2, in the
    median feature. Random numbers of the user's own, which cannot be turned off, are no dropout that is found.
    """
    bound, faults = patient.thresholds.dropout, list[Fault]()
    paths = of_batches(patient)
    reached = [path for path in paths if patient.site_of(path).dropout is not None]
    yield from drawn("NL306", [path for path in paths if path not in reached and path in patient.random])
    for path in reached:
        with_dropout, without = patient.pooled[path].var, patient.quiet_pooled[path].var
        varying = (without > 0) & (with_dropout > 0)
        ratio = float(np.median(with_dropout[varying] / without[varying])) if varying.any() else 1.0
        if not 1 / bound <= ratio <= bound:
            either = {"ratio of the variances, either way": max(ratio, 1 / ratio)}
            faults.append(Fault(path, {**either, "variance with dropout over without": ratio}))
    texts = Texts(
        title="dropout changes the variance that the norm learns",
        why="Dropout is off at evaluation, where the running variance is that of training: outputs have another scale.",
        source="Li et al. 2019, https://arxiv.org/abs/1801.05134",
        remedy="# put the dropout behind the last batch norm, after `{path}`",
    )
    yield from texts.findings("NL306", "warning", faults, threshold=bound, certain=False)
