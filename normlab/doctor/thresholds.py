"""The bounds of the checks."""

from dataclasses import dataclass

__all__ = ["Thresholds"]


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Bounds beyond which a check finds a fault; each names the code of its check.

    Attributes:
        forgotten: NL110: share of the initial running statistics that is left after all steps.
        same_output: NL101, NL203: change of an output, relative to its scale, that is only rounding.
        decay_updates: NL204: difference of the number of updates in a step from one.
        replicas: NL208: spread of the replicas' statistics, in standard deviations.
        digits: NL301: relative error of a variance computed in one pass.
        lossy: NL301: share of a norm's statistics that may lose digits.
        large_mean: NL301: mean of half-precision inputs in standard deviations.
        effective: NL302: independent samples of a batch.
        lag: NL303: distance between running and true mean, in standard deviations.
        variance_ratio: NL303: ratio of running and true variance, either way.
        standard_errors: NL303: standard errors that a lag must exceed.
        gap: NL304: difference between training and evaluation, relative to the output. Statistics as far behind as
            NL303 tolerates in the median feature give hypot(lag, log(variance_ratio) / 2) / 0.6745, the root mean
            square over features whose distances are normally distributed.
        gap_errors: NL304: standard errors that this difference must exceed.
        gap_ratio: NL304: ratio of this difference to the one that the batches themselves explain.
        batches: NL305: ratio of the variance between batches to the one expected from the variance within.
        features: NL305: share of the features in which the ratio must be no chance.
        significance: NL305: probability of this ratio by chance, over all features together.
        dropout: NL306: ratio of the variances with and without dropout, either way.
        channels: NL305, NL307, NL308: share of the features for which a fault is a warning.
        constant: NL307: variance relative to the squared mean and the median variance.
        small_variance: NL308: variance in units of epsilon.
        scale: NL309: scale relative to the median of the model's scales.
        largest_scale: NL309: scale below which none is too large.
        range: NL309: input relative to the largest number of its type.
        padding: NL310: change of an output at positions that count, relative to its scale.
    """

    forgotten: float = 0.05
    same_output: float = 1e-4
    decay_updates: float = 0.3
    replicas: float = 0.1
    digits: float = 0.01
    lossy: float = 0.01
    large_mean: float = 64.0
    effective: float = 8.0
    lag: float = 0.25
    variance_ratio: float = 1.5
    standard_errors: float = 4.0
    gap: float = 0.48
    gap_errors: float = 3.0
    gap_ratio: float = 2.0
    batches: float = 4.0
    features: float = 0.25
    significance: float = 1e-6
    dropout: float = 1.2
    channels: float = 0.1
    constant: float = 1e-10
    small_variance: float = 10.0
    scale: float = 100.0
    largest_scale: float = 10.0
    range: float = 1 / 8
    padding: float = 1e-3
