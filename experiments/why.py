"""Why does batch norm work?

Along the training of a network by plain SGD, so that the direction measured is the direction taken, the script steps
along the gradient g of the loss L on the batch of the update and measures, in training mode on the same batch:

- range: the largest minus the smallest L(w - eta g), for eta of several multiples of the learning rate;
- predictiveness: the largest |g - g(w - eta g)| / |g|;
- smoothness, beta: the largest |g - g(w - eta g)| / |eta g|; a gradient that turns around gives about 2 / rate whatever
  the curvature, so it is measured at fixed distances |eta g|, too;
- internal covariate shift of a layer, as Santurkar et al. define it: the gradient of its kernel before and after the
  layers below, and only they, have made their update;
- drift: how far the mean of the input of an activation moves during training, in its standard deviations.

The arms are no norm, batch norm, layer norm as a control, and batch norm followed by noise whose mean and variance
change at every update, so that distributions are unstable. The noise is swept: 1 is as published.

    python experiments/why.py --output FOLDER
    python experiments/why.py --data digits --quick
    python experiments/why.py --network vgg-11 --output FOLDER   # CIFAR-10, 5 seeds; needs an accelerator

References:
    Santurkar, Tsipras, Ilyas, Madry. How Does Batch Normalization Help Optimization? NeurIPS 2018.
    https://arxiv.org/abs/1805.11604
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jax import Array
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.claims import images, networks, plots
from experiments.claims.estimates import Interval, average, points, ratio, share
from experiments.claims.images import Images, Part
from experiments.claims.study import Plan, Study, main
from experiments.claims.trainer import Budget, Moment, Settings, Trained, Tree, best_rate, logits, loss, new, train
from experiments.claims.verdicts import Bar, Claim, Finding, Judgement, Row, Verdict
from normlab import linen, norms
from normlab.introspect.pure import Network
from normlab.norms import Entry, Norm

SHIFT = Claim(
    key="shift",
    text="Batch norm reduces internal covariate shift.",
    source="Ioffe & Szegedy 2015; most tutorials",
    published="Santurkar et al. 2018, VGG on CIFAR-10: shift with batch norm as large as without it, or larger",
)
SMOOTH = Claim(
    key="smooth",
    text="Batch norm makes the landscape of the loss smoother.",
    source="Santurkar et al. 2018",
    published="VGG on CIFAR-10: range, predictiveness and beta smaller with batch norm nearly everywhere (figure 4)",
)
NOISE = Claim(
    key="noise",
    text="With noise that makes distributions less stable than without a norm, batch norm is as good as without noise.",
    source="Santurkar et al. 2018",
    published="VGG on CIFAR-10: noisy batch norm trains nearly as fast as batch norm, faster than no norm (figure 2)",
)
NONE, BATCH, LAYER = "no norm", "batch norm", "layer norm"
MEAN_FACTOR = 0.125
"""Mean of the noise's factor above 1."""

COST = 1.0
"""Points of test error that noise may cost where batch norm counts as equally good with it."""

MEASURES = ("range", "predictiveness", "beta")


@dataclass(frozen=True, kw_only=True)
class Extent(Plan):
    """Extent of the study.

    Attributes:
        network: Name, see `networks.described`.
        rates: Learning rates, the lowest first.
        noises: Noise in multiples of the published one, the smallest first.
        multiples: Probes along the gradient, in multiples of the learning rate.
        distances: Probes at fixed distances from the weights.
        steps: Updates.
        every: Updates between measurements.
        batch: Images in a batch.
        side: Height and width of the images.
    """

    network: str = "mlp-5"
    rates: tuple[float, ...] = (0.03, 0.1, 0.3)
    noises: tuple[float, ...] = (0.1, 0.3, 1.0)
    multiples: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    distances: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3)
    steps: int = 600
    every: int = 30
    batch: int = 64
    side: int = 14

    def arms(self) -> tuple[str, ...]:
        """Return the names of all arms."""
        return (NONE, BATCH, *map(noisy, self.noises), LAYER)


def noisy(noise: float) -> str:
    """Name the arm of batch norm with noise."""
    return f"batch norm, noise x {noise:g}" if noise else BATCH


class NoisyBatchNorm(nn.Module):
    """Batch norm, and noise after it in training, of another mean and variance at every update.

    Variables of the collection `noise`: `size`, in multiples of the published noise, and `correction`, 1 where
    evaluation multiplies by the mean of the noise's factor and 0 otherwise.
    """

    train: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Normalize, then distort."""
        size = self.variable("noise", "size", lambda: jnp.zeros(())).value
        correction = self.variable("noise", "correction", lambda: jnp.zeros(())).value
        x = linen.BatchNorm(use_running_average=not self.train, momentum=0.9, name="batch")(x)
        if not self.train:
            return x * (1 + MEAN_FACTOR * correction * size)
        return distorted(x, size, self.make_rng("noise"))


def distorted(x: Array, size: Array | float, key: Array) -> Array:
    """Return factor * x + shift, whose means over elements are drawn for each feature (Santurkar et al., section 2.2).

    Args:
        x: Shape [batch, ..., features].
        size: 1 for the published noise: means of the shift from -0.5 to 0.5, of the factor from 1 to 1.25, elements
            within 0.1 of the former and with a standard deviation of 0.1 about the latter; 0 for none.
        key: Random key.
    """
    features, elements = jax.random.split(key)
    shift, factor = jax.random.uniform(features, (2, *x.shape[-1:]))
    even = jax.random.uniform(elements, (2, *x.shape), minval=jnp.nextafter(-1.0, 0.0))  # one draw compiles faster
    shift = shift - 0.5 + 0.1 * even[0]
    factor = 2 * MEAN_FACTOR * factor + 0.1 * math.sqrt(2) * jax.lax.erf_inv(even[1])
    return (1 + size * factor) * x + size * shift


def _no_nnx(*_: object) -> object:
    raise NotImplementedError("Expected a Linen model. This norm of a study has no NNX module.")


NOISY = Norm(
    Entry(
        name="noisy",
        title="noisy batch norm",
        needs_batch=True,
        stateful=True,
        linen=lambda train, options: NoisyBatchNorm(train, **options),
        nnx=_no_nnx,
    )
)


class Probe(NamedTuple):
    """Loss and gradient at other weights, beside the gradient g at those of the update.

    Attributes:
        loss: The loss there.
        change: |g - g there| / |g|.
        cosine: Cosine of both.
        layer_change: `change` of single layers' kernels, [layers].
        layer_cosine: `cosine` of them, [layers].
    """

    loss: Array
    change: Array
    cosine: Array
    layer_change: Array
    layer_cosine: Array


class Seen(NamedTuple):
    """Measurements before an update; leading axes [runs, updates] after training.

    Attributes:
        loss: Loss on the batch of the update.
        size: Norm of the gradient.
        ahead: Probes in multiples of the learning rate.
        fixed: Probes at fixed distances.
        below: Probes after the update of the layers below: that of a layer has its place among the layers.
        means: Mean of the inputs of every activation, over the batch, by hidden layer.
        spreads: Standard deviation, likewise.
    """

    loss: Array
    size: Array
    ahead: Probe
    fixed: Probe
    below: Probe
    means: tuple[Array, ...]
    spreads: tuple[Array, ...]


def layers(params: Tree) -> dict[str, int]:
    """Return the places of the layers in a network by the names of its modules: a norm has that of its layer."""

    def order(name: str) -> tuple[float, ...]:
        numbers = name.split("_")[1:]
        return tuple(map(int, numbers)) if numbers else (math.inf,)  # the head

    places = sorted({order(name) for name in params})
    return {name: places.index(order(name)) for name in params}


def kernels(params: Tree) -> list[Array]:
    """List the kernels, from the first layer to the head."""
    places = layers(params)
    named = {name: module["kernel"] for name, module in params.items() if "kernel" in module}
    return [named[name] for name in sorted(named, key=places.__getitem__)]


def compared(old: Tree, other: Tree) -> tuple[Array, Array]:
    """Return the relative change of a gradient, and the cosine of both."""
    size, difference = optax.tree.norm(old), optax.tree.norm(optax.tree.sub(old, other))
    tiny = jnp.finfo(jnp.float32).tiny
    product = optax.tree.vdot(old, other)
    return difference / jnp.maximum(size, tiny), product / jnp.maximum(size * optax.tree.norm(other), tiny)


def observer(plan: Extent, net: Network) -> Callable[[Moment], Seen]:
    """Return the observation of a network in training."""

    def observe(moment: Moment) -> Seen:
        gradient = partial(gradient_at, net, moment)
        value, gradients = gradient(moment.params)
        size = optax.tree.norm(gradients)
        depth = len(set(layers(moment.params).values()))
        etas, below = directions(plan, moment.rate, size, depth)
        probes = jax.lax.map(lambda row: probed(gradient, moment.params, gradients, *row), (etas, below))
        n, fixed = len(plan.multiples), len(plan.distances)
        cuts = (slice(0, n), slice(n, n + fixed), slice(n + fixed, None))
        return Seen(
            value, size, *(jax.tree.map(lambda a, cut=cut: a[cut], probes) for cut in cuts), *inside(net, moment)
        )

    return observe


def gradient_at(net: Network, moment: Moment, params: Tree) -> tuple[Array, Tree]:
    """Return loss and gradient at other parameters, on the batch of the update."""
    _, state, t, _, batch = moment
    (value, _), found, _ = net.gradients(
        lambda outputs: (loss(outputs, batch.labels), None), params, state, batch.inputs, t
    )
    return value, found


def directions(plan: Extent, rate: Array, size: Array, depth: int) -> tuple[Array, Array]:
    """Return the step sizes of all probes, and the number of layers, from the first on, that each of them moves.

    Args:
        plan: Extent, with the multiples of the rate and the distances.
        rate: Learning rate of the update.
        size: Norm of the gradient.
        depth: Layers of the network, with the head.
    """
    fixed = jnp.asarray(plan.distances) / jnp.maximum(size, jnp.finfo(jnp.float32).tiny)
    etas = jnp.concatenate([rate * jnp.asarray(plan.multiples), fixed, jnp.full(depth, rate)])
    return etas, jnp.concatenate([jnp.full(len(etas) - depth, depth), jnp.arange(depth)])


def probed(
    gradient: Callable[[Tree], tuple[Array, Tree]], params: Tree, gradients: Tree, eta: Array, below: Array
) -> Probe:
    """Step along the gradient, in the layers below one of them, and compare the gradient there."""
    places = layers(params)
    moved = {
        name: optax.tree.add_scale(params[name], -eta * (places[name] < below), gradients[name]) for name in params
    }
    there, other = gradient(moved)
    single = [compared(*pair) for pair in zip(kernels(gradients), kernels(other), strict=True)]
    changes, cosines = (jnp.stack(column) for column in zip(*single, strict=True))
    return Probe(there, *compared(gradients, other), changes, cosines)


def inside(net: Network, moment: Moment) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Return means and standard deviations of the inputs of all activations, in training mode."""
    variables, seed = moment.state
    _, found = net.module.apply(
        {"params": moment.params, **variables},
        moment.batch.inputs,
        train=True,
        rngs={"params": jax.random.fold_in(jax.random.key(seed), moment.t)},  # the noise of the update
        mutable=[*variables, "intermediates"],
        capture_intermediates=lambda module, method: method == "__call__" and (module.name or "").startswith("norm_"),
    )
    captured = found["intermediates"]
    places = layers({name: None for name in captured})
    outputs = [captured[name]["__call__"][0] for name in sorted(captured, key=places.__getitem__)]
    axes = tuple(range(outputs[0].ndim - 1))
    return tuple(a.mean(axes) for a in outputs), tuple(a.std(axes) for a in outputs)


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Measurements of one arm; leading axes [rates, seeds], then measured updates where there are any.

    Attributes:
        loss: Loss on the batches of updates.
        low: Smallest loss along the gradient.
        range: Largest minus smallest loss along the gradient.
        predictiveness: Largest relative change of the gradient along it.
        least: Smallest one.
        beta: Largest change of the gradient for a distance, at multiples of the learning rate.
        cosine: Smallest cosine of the gradient before and after a step.
        fixed: As `beta`, at fixed distances, [rates, seeds, updates, distances].
        shift: Relative change of a layer's gradient by the update of the layers below, [..., updates, layers].
        shift_cosine: Cosine of both, [..., updates, layers].
        drift: Drift by hidden layer, median over units, and of all units in the last place, [rates, seeds, layers + 1].
        error: Test error, [rates, seeds].
        corrected: Test error where evaluation multiplies by the mean of the noise's factor.
        rate: Learning rate of the lowest error on validation images, of seeds for choices.
    """

    loss: np.ndarray
    low: np.ndarray
    range: np.ndarray
    predictiveness: np.ndarray
    least: np.ndarray
    beta: np.ndarray
    cosine: np.ndarray
    fixed: np.ndarray
    shift: np.ndarray
    shift_cosine: np.ndarray
    drift: np.ndarray
    error: np.ndarray
    corrected: np.ndarray
    rate: float

    def diverged(self) -> np.ndarray:
        """Return which runs have numbers that are not finite, [rates, seeds]."""
        return ~(np.isfinite(self.loss).all(-1) & np.isfinite(self.predictiveness).all(-1))

    def median(self, measure: str, rate: int) -> np.ndarray:
        """Return the median over updates of a measure at a learning rate, NaN for runs that diverged."""
        values = np.where(self.diverged()[rate][:, None], np.nan, getattr(self, measure)[rate])
        return np.median(values, -1)


Found = Mapping[str, Arm]


def measure(plan: Extent) -> Found:
    """Train all arms; batch norm without and with noise is one program."""
    data = images.load(plan.data, plan.data_dir, side=plan.side)
    found: dict[str, Arm] = {}
    noises = {noisy(noise): noise for noise in (0.0, *plan.noises)}
    for norm, sizes in ((norms.get("none"), {NONE: 0.0}), (NOISY, noises), (norms.get("layer"), {LAYER: 0.0})):
        found |= measured(plan, data, networks.made(plan.network, norm, data), sizes)
    return {arm: found[arm] for arm in plan.arms()}


def measured(plan: Extent, data: Images, net: Network, sizes: Mapping[str, float]) -> dict[str, Arm]:
    """Train the arms of one network, which differ in the size of the noise."""
    seeds = [*plan.all_seeds(), *plan.tuning_seeds(2)]
    shape = (len(sizes), len(plan.rates), len(seeds))
    size, rate, seed = (a.ravel() for a in np.meshgrid(list(sizes.values()), plan.rates, seeds, indexing="ij"))
    settings, together = Settings(seed, rate), networks.dense(plan.network)
    budget = Budget(steps=plan.steps, batch=plan.batch, every=plan.every, momentum=0.0)
    start = with_noise(new(net, settings), size=size)
    runs = train(net, data, budget, settings, observe=observer(plan, net), start=start, together=together)

    def divided(values: np.ndarray | Array) -> np.ndarray:
        return np.asarray(values).reshape(*shape, *values.shape[1:])

    found = (divided(e) for e in errors(net, runs, data, together=together))
    return summaries(plan, list(sizes), jax.tree.map(divided, runs.seen), *found)


def summaries(
    plan: Extent, arms: Sequence[str], seen: Seen, validation: np.ndarray, test: np.ndarray, corrected: np.ndarray
) -> dict[str, Arm]:
    """Reduce the measurements of arms, [arms, rates, seeds, ...]; seeds for choices come last."""
    n = len(plan.all_seeds())
    reported = jax.tree.map(lambda a: a[:, :, :n, :-1], seen)  # there is no update after the last observation
    return {
        arm: summary(
            plan,
            jax.tree.map(lambda a, i=i: a[i], reported),
            test[i][:, :n],
            corrected[i][:, :n],
            best_rate(validation[i][:, n:], plan.rates),
        )
        for i, arm in enumerate(arms)
    }


def errors(net: Network, runs: Trained, data: Images, *, together: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return errors on validation and test images, and on test images with the correction for noise, all [runs]."""
    both, n = Part(*map(np.concatenate, zip(data.validation, data.test, strict=True))), len(data.validation.labels)
    plain = runs.params, runs.state
    corrected = with_noise(plain, correction=np.ones(len(runs.state[1])))
    models = [plain] if corrected is plain else [plain, corrected]
    stacked = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *models)
    wrong = logits(net, *stacked, both, together=together).argmax(-1) != both.labels
    several = wrong.reshape(len(models), -1, len(both.labels))
    return several[0, :, :n].mean(-1), several[0, :, n:].mean(-1), several[-1, :, n:].mean(-1)


def with_noise(start: tuple[Tree, Tree], **variables: np.ndarray) -> tuple[Tree, Tree]:
    """Return weights and model state with other variables of the noise, where there is noise.

    Args:
        start: Parameters and model state, with a leading axis of runs.
        **variables: New values by name, [runs].
    """
    params, (state, seed) = start
    if "noise" not in state:
        return start
    values = {name: jnp.asarray(value, jnp.float32) for name, value in variables.items()}
    noise = {norm: {**old, **values} for norm, old in state["noise"].items()}
    return params, ({**state, "noise": noise}, seed)


def summary(plan: Extent, seen: Seen, test: np.ndarray, corrected: np.ndarray, rate: float) -> Arm:
    """Reduce the measurements of an arm, arrays [rates, seeds, updates, ...], to those that are reported."""
    rates = np.asarray(plan.rates)[:, None, None]
    lengths = rates[..., None] * np.asarray(plan.multiples) * seen.size[..., None]
    ahead, size = seen.ahead, seen.size[..., None]
    spread = [s.mean(2) for s in seen.spreads]
    with np.errstate(all="ignore"):
        drifts = [m.std(2, ddof=1) / s for m, s in zip(seen.means, spread, strict=True)]
        beta = (ahead.change * size / lengths).max(-1)
    drifts.append(np.concatenate(drifts, -1))
    return Arm(
        loss=seen.loss,
        low=ahead.loss.min(-1),
        range=ahead.loss.max(-1) - ahead.loss.min(-1),
        predictiveness=ahead.change.max(-1),
        least=ahead.change.min(-1),
        beta=beta,
        cosine=ahead.cosine.min(-1),
        fixed=seen.fixed.change * size / np.asarray(plan.distances),
        shift=np.diagonal(seen.below.layer_change, axis1=-2, axis2=-1),
        shift_cosine=np.diagonal(seen.below.layer_cosine, axis1=-2, axis2=-1),
        drift=np.stack([np.median(d, -1) for d in drifts], -1),
        error=test,
        corrected=corrected,
        rate=rate,
    )


def compare(found: Found, measure: str, rate: int, arm: str = BATCH) -> Interval:
    """Return the ratio of an arm to no norm, of medians over updates; runs that diverged have no part in it."""
    return ratio(found[arm].median(measure, rate), found[NONE].median(measure, rate))


def compare_fixed(found: Found, rate: int, distance: int, arm: str = BATCH) -> Interval:
    """Return the ratio to no norm of beta at a fixed distance."""
    lost = found[arm].diverged()[rate] | found[NONE].diverged()[rate]
    ours, base = (np.median(found[a].fixed[rate][..., distance], -1) for a in (arm, NONE))
    return ratio(np.where(lost, np.nan, ours), base)


def lower(found: Found, measure: str, rate: int) -> np.ndarray:
    """Return the share of updates at which a measure is lower with batch norm; without a number none is not lower."""
    ours, base = (np.nan_to_num(getattr(found[arm], measure)[rate], nan=np.inf) for arm in (BATCH, NONE))
    return (ours < base).mean(-1)


def by_layer(found: Found, field: str, rate: int, arm: str = BATCH) -> np.ndarray:
    """Return the median over updates of a measure of layers, [seeds, layers]; NaN for runs that diverged."""
    values = np.median(getattr(found[arm], field)[rate], 1)
    return np.where(found[arm].diverged()[rate][:, None], np.nan, values)


def shifts(found: Found, rate: int, arm: str = BATCH) -> list[Interval]:
    """Return the cosine with a norm minus that without one, by layer from the second to the head.

    The first layer has no layer below.
    """
    differences = by_layer(found, "shift_cosine", rate, arm) - by_layer(found, "shift_cosine", rate, NONE)
    return [average(column) for column in differences.T[1:]]


def own(plan: Extent, arm: Arm, field: str = "error") -> np.ndarray:
    """Return a number of every seed at the arm's own learning rate."""
    return getattr(arm, field)[plan.rates.index(arm.rate)]


def costs(plan: Extent, found: Found, noise: float) -> Interval:
    """Return the test error with noise minus that of batch norm, at own rates, in points."""
    return points(own(plan, found[noisy(noise)]), own(plan, found[BATCH]))


def drifts_of(plan: Extent, found: Found, arm: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the drift of an arm and that without a norm, both at the arm's own rate, [seeds]."""
    rate = plan.rates.index(found[arm].rate)
    return found[arm].drift[rate, :, -1], found[NONE].drift[rate, :, -1]


def drifting(plan: Extent, found: Found, arm: str) -> Interval:
    """Return the drift of an arm as a multiple of that without a norm, both at the arm's own rate."""
    return ratio(*drifts_of(plan, found, arm))


def judge(plan: Extent, found: Found) -> Judgement:
    """Compute the verdicts and the paragraph."""
    place = {"network": networks.title(plan.network), "data": plan.data}
    shift, shift_when = judge_shift(plan, found)
    smooth, smooth_when = judge_smooth(plan, found)
    findings = (
        Finding(claim=SHIFT, verdict=shift, when=shift_when, seen=shifts(found, 0)[-2], **place,
                effect=f"cosine of the last hidden layer's gradient, batch norm - no norm, rate {plan.rates[0]:g}"),
        Finding(claim=SMOOTH, verdict=smooth, when=smooth_when, seen=compare(found, "beta", 0), **place,
                effect=f"beta, batch norm / no norm, rate {plan.rates[0]:g}"),
        judge_noise(plan, found),
    )  # fmt: skip
    return Judgement(findings=findings, bars=tuple(_bars(plan, found)), sentences=tuple(_sentences(plan, found)))


def judge_shift(plan: Extent, found: Found) -> tuple[Verdict, str]:
    """Judge whether batch norm reduces internal covariate shift, by the cosine, layer by layer."""
    seen = {(i, rate): interval for rate in range(len(plan.rates)) for i, interval in enumerate(shifts(found, rate), 2)}
    less = {key for key, interval in seen.items() if interval.low > 0}
    more = {key for key, interval in seen.items() if interval.high < 0}
    if len(less) == len(seen):
        return Verdict.HOLDS, ""
    if not less:
        return (Verdict.FAILS if more else Verdict.UNSEEN), ""
    last = max(i for i, _ in seen)

    def listed(keys: set[tuple[int, int]]) -> str:
        parts = []
        for rate, value in enumerate(plan.rates):
            places = ["the head" if i == last else f"layer {i}" for i, r in sorted(keys) if r == rate]
            parts += [f"{', '.join(places)} at rate {value:g}"] if places else []
        return "; ".join(parts)

    return Verdict.HOLDS_WHEN, f"less in {listed(less)}" + (f"; more in {listed(more)}" if more else "")


def judge_smooth(plan: Extent, found: Found) -> tuple[Verdict, str]:
    """Judge whether the landscape is smoother with batch norm, by all measures at all rates."""
    seen = {(measure, rate): compare(found, measure, rate) for measure in MEASURES for rate in range(len(plan.rates))}
    seen |= {
        (f"beta at distance {distance:g}", rate): compare_fixed(found, rate, i)
        for i, distance in enumerate(plan.distances)
        for rate in range(len(plan.rates))
    }
    smoother = [key for key, interval in seen.items() if interval.high < 1]
    rougher = [key for key, interval in seen.items() if interval.low > 1]
    unclear = [key for key in seen if key not in smoother and key not in rougher]
    if len(smoother) == len(seen):
        return Verdict.HOLDS, ""
    if not smoother:
        return (Verdict.FAILS if rougher else Verdict.UNSEEN), ""
    parts = {"less": smoother, "not told apart": unclear, "more": rougher}
    return Verdict.HOLDS_WHEN, ". ".join(f"{name}: {_by_rates(plan, keys)}" for name, keys in parts.items() if keys)


def _by_rates(plan: Extent, keys: Sequence[tuple[str, int]]) -> str:
    """List measures with the learning rates at which they are meant."""
    rates = {name: ", ".join(f"{plan.rates[rate]:g}" for n, rate in keys if n == name) for name, _ in keys}
    return "; ".join(f"{name} (rates {listed})" for name, listed in rates.items())


def unstable(plan: Extent, found: Found) -> dict[tuple[float, int], Interval]:
    """Return by noise and rate, where the drift is above that without a norm, by how much, as a multiple."""
    drifts = {
        (noise, rate): ratio(found[noisy(noise)].drift[rate, :, -1], found[NONE].drift[rate, :, -1])
        for noise in plan.noises
        for rate in range(len(plan.rates))
    }
    return {case: drift for case, drift in drifts.items() if drift.above(1)}


def judge_noise(plan: Extent, found: Found) -> Finding:
    """Judge whether batch norm is as good with noise that makes distributions less stable than without a norm.

    Only noise whose drift is above that without a norm tries the claim, at the rate at which it is.
    """
    drifts = unstable(plan, found)
    cost = {(n, rate): points(found[noisy(n)].error[rate], found[BATCH].error[rate]) for n, rate in drifts}
    cheap = [case for case, seen in cost.items() if seen.below(COST)]
    if cheap:
        verdict = Verdict.HOLDS if len(cheap) == len(cost) else Verdict.HOLDS_WHEN
    else:
        verdict = Verdict.FAILS if any(seen.above(0) for seen in cost.values()) else Verdict.UNSEEN
    named = "; ".join(
        f"x {n:g} at rate {plan.rates[rate]:g}, {seen.text('{:.2f}')}" for (n, rate), seen in drifts.items()
    )
    words = [f"drift as a multiple of that without a norm: {named}" if named else "no noise drifts more than no norm"]
    if verdict is Verdict.HOLDS_WHEN:
        words.insert(0, "the noise is " + ", ".join(f"x {n:g} at rate {plan.rates[rate]:g}" for n, rate in cheap))
    effect, seen = f"noise x {plan.noises[-1]:g} - no noise, points, own rates", costs(plan, found, plan.noises[-1])
    if cost:
        (noise, rate), seen = min(cost.items(), key=lambda one: one[1].mean)
        effect = f"noise x {noise:g} - no noise, points, rate {plan.rates[rate]:g}, where it costs least"
    return Finding(
        claim=NOISE,
        verdict=verdict,
        when="; ".join(words),
        effect=f"test error, {effect}",
        seen=seen,
        network=networks.title(plan.network),
        data=plan.data,
    )


def _than(seen: Interval) -> str:
    """Compare a drift with that without a norm."""
    relation = "above" if seen.low > 1 else "below" if seen.high < 1 else "not told from"
    return f"{seen.text('{:.2f}')} times, {relation} that without a norm"


def _bars(plan: Extent, found: Found) -> list[Bar]:
    bars = []
    for measure, most, rates in (("predictiveness", 0.4, 2), ("range", 0.6, 2), ("beta", 0.6, 1)):
        for i, rate in enumerate(plan.rates[:rates]):
            text = f"{measure}, batch norm / no norm, at rate {rate:g}: at most {most:g}"
            bars.append(Bar.of(text, compare(found, measure, i), "{:.2f}", most=most))
    second = min(1, len(plan.rates) - 1)
    for measure in MEASURES:
        seen = average(100 * lower(found, measure, second))
        text = f"{measure} lower with batch norm at 75 % or more of the updates, rate {plan.rates[second]:g}"
        bars.append(Bar.of(text, seen, "{:.0f}", least=75))
    above = by_layer(found, "shift_cosine", 0)[:, -2] > by_layer(found, "shift_cosine", 0, NONE)[:, -2]
    text = f"cosine of the last hidden layer higher with batch norm in every seed, rate {plan.rates[0]:g}"
    return [*bars, Bar(text, share(above), bool(above.all()))]


def _sentences(plan: Extent, found: Found) -> list[str]:
    lines = [_diverged_words(plan, found)]
    for i, rate in enumerate(plan.rates):
        lines += [_smooth_words(plan, found, i, arm) for arm in (BATCH, LAYER)]
        lines.append(_edge_words(rate, found, i))
    for i, _ in enumerate(plan.rates):
        lines.append(_shift_words(plan, found, i))
    lines.append(_coupling_words(plan, found))
    lines += [_noise_words(plan, found, noise) for noise in plan.noises]
    return [*lines, _drift_words(plan, found), _error_words(plan, found)]


def _diverged_words(plan: Extent, found: Found) -> str:
    lost = [
        f"{share(arm.diverged()[i])} at rate {rate:g} with {name}"
        for name, arm in found.items()
        for i, rate in enumerate(plan.rates)
        if arm.diverged()[i].any()
    ]
    return f"Runs that diverged, which no ratio contains: {', '.join(lost)}." if lost else "No run diverged."


def _smooth_words(plan: Extent, found: Found, rate: int, arm: str) -> str:
    ratios = [f"{m} {compare(found, m, rate, arm).text('{:.2f}')}" for m in MEASURES]
    ratios += [
        f"beta at distance {distance:g} {compare_fixed(found, rate, i, arm).text('{:.2f}')}"
        for i, distance in enumerate(plan.distances)
    ]
    words = f"Rate {plan.rates[rate]:g}, {arm} / no norm: {'; '.join(ratios)}"
    if arm == BATCH:
        shares = [f"{m} {100 * lower(found, m, rate).mean():.0f} %" for m in MEASURES]
        words += f"; updates at which it is lower: {', '.join(shares)}"
    return words + "."


def _edge_words(rate: float, found: Found, i: int) -> str:
    parts = [
        f"{arm} {average(found[arm].median('beta', i) * rate / 2).text('{:.2f}')} times 2 / rate, smallest cosine "
        f"{average(found[arm].median('cosine', i)).text('{:+.2f}')}"
        for arm in (NONE, BATCH, LAYER)
    ]
    return f"Rate {rate:g}, beta: {'; '.join(parts)}."


def _shift_words(plan: Extent, found: Found, rate: int) -> str:
    parts = []
    for arm in (NONE, BATCH, LAYER, noisy(plan.noises[-1])):
        cosines, changes = (by_layer(found, field, rate, arm)[:, 1:] for field in ("shift_cosine", "shift"))
        listed = [f"{average(c).mean:.3f} ({average(d).mean:.2f})" for c, d in zip(cosines.T, changes.T, strict=True)]
        parts.append(f"{arm} {', '.join(listed)}")
    return (
        f"Rate {plan.rates[rate]:g}, cosine of a layer's gradient before and after the layers below have made their "
        f"update, in brackets its relative change, from the second layer to the head: {'; '.join(parts)}."
    )


def _coupling_words(plan: Extent, found: Found) -> str:
    """Say what the same measure says of the hypothesis that batch norm decouples layers."""
    none, batch = (1 - by_layer(found, "shift_cosine", 0, arm)[:, -2] for arm in (NONE, BATCH))
    seen = ratio(batch, none)
    relation = "less coupled" if seen.high < 1 else "more coupled" if seen.low > 1 else "not told apart in coupling"
    return (
        f"One minus this cosine measures the coupling of layers: with batch norm the last hidden layer is {relation}, "
        f"{seen.text('{:.2f}')} times at rate {plan.rates[0]:g} (from {average(none).mean:.3g} to "
        f"{average(batch).mean:.3g})."
    )


def _noise_words(plan: Extent, found: Found, noise: float) -> str:
    arm = found[noisy(noise)]
    each = [
        f"{points(arm.error[i], found[BATCH].error[i]).text('{:+.2f}')} at rate {rate:g}"
        for i, rate in enumerate(plan.rates)
    ]
    correction = points(own(plan, arm, "corrected"), own(plan, arm))
    against = points(own(plan, arm), own(plan, found[NONE]))
    smooth = ratio(arm.median("beta", 0), found[BATCH].median("beta", 0))
    return (
        f"Noise x {noise:g}: test error minus that of batch norm {', '.join(each)} points, at own rates "
        f"{costs(plan, found, noise).text('{:+.2f}')}; minus that without a norm {against.text('{:+.2f}')}; its drift "
        f"is {_than(drifting(plan, found, noisy(noise)))}; beta {smooth.text('{:.2f}')} times batch norm's at rate "
        f"{plan.rates[0]:g}; evaluation times {1 + MEAN_FACTOR * noise:.4g} changes its error by "
        f"{correction.text('{:+.2f}')} points."
    )


def _drift_words(plan: Extent, found: Found) -> str:
    parts = [f"{name} {average(arm.drift[0, :, -1]).text('{:.3f}')}" for name, arm in found.items()]
    return f"Drift of a unit's mean in its standard deviations, rate {plan.rates[0]:g}: {'; '.join(parts)}."


def _error_words(plan: Extent, found: Found) -> str:
    parts = [f"{n} {average(100 * own(plan, arm)).text('{:.2f}')} at {arm.rate:g}" for n, arm in found.items()]
    return f"Test error at own rates, %: {'; '.join(parts)}."


def looks(plan: Extent) -> dict[str, plots.Look]:
    """Return the looks of all arms."""
    dashes = ((0, (1, 1.3)), (0, (6, 1.5, 1, 1.5)), "--")
    noise = {noisy(n): plots.Look("batch", dashes[-1 - i % 3]) for i, n in enumerate(reversed(plan.noises))}
    return {NONE: plots.Look("none"), BATCH: plots.Look("batch"), LAYER: plots.Look("layer"), **noise}


def draw(plan: Extent, found: Found) -> dict[str, Figure]:
    """Draw the landscape and the shift, beta at fixed distances, and the sweep of the noise."""
    return {"why": _landscape(plan, found), "why-distance": _distances(plan, found), "why-noise": _sweep(plan, found)}


def _landscape(plan: Extent, found: Found) -> Figure:
    shown = {arm: look for arm, look in looks(plan).items() if arm in (NONE, BATCH, LAYER, noisy(plan.noises[-1]))}
    at, rate = np.arange(0, plan.steps, plan.every), f"rate {plan.rates[0]:g}"
    with plots.figure(9.6, 7.2) as drawing:
        (a, b), (c, d) = drawing.subplots(2, 2)
        for arm in (NONE, BATCH):
            ours, style = found[arm], norms.colour(shown[arm].norm)
            top = ours.low[0] + ours.range[0]
            _band(a, at, ours.low[0], top, style)
            _band(b, at, ours.least[0], ours.predictiveness[0], style)
        a.set(title=f"Loss along the gradient, {rate}", xlabel="update", ylabel="smallest to largest, mean over seeds")
        b.set(title=f"Change of the gradient along it, {rate}", xlabel="update", ylabel="relative, smallest to largest")
        for axes in (a, b):
            plots.logarithmic(axes)
        betas = {arm: _by_rate(plan, found[arm]) for arm in shown}
        plots.lines(c, plan.rates, betas, shown, marked=True)
        plots.logarithmic(c)
        plots.logarithmic(c, x=True)
        c.set_xticks(plan.rates)
        c.plot(plan.rates, 2 / np.asarray(plan.rates), color="0.4", linestyle=(0, (4, 3)), linewidth=0.9)
        c.set(title="beta; dashed: 2 / rate", xlabel="learning rate", ylabel="median over updates")
        _bars_by_layer(d, found, shown)
        d.set(title=f"Internal covariate shift, {rate}", ylabel="cosine; 1 is no shift")
        plots.legend(drawing, c, 4)
    return drawing


def _by_rate(plan: Extent, arm: Arm) -> np.ndarray:
    return np.stack([arm.median("beta", i) for i in range(len(plan.rates))], 1)


def _band(axes: Axes, at: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str) -> None:
    """Draw the mean over seeds of a range."""
    bottom, top = (np.ma.masked_invalid(edge).mean(0).clip(1e-6) for edge in (low, high))
    axes.fill_between(at, bottom, top, color=colour, alpha=0.3, linewidth=0)
    axes.plot(at, top, color=colour)
    axes.plot(at, bottom, color=colour, linewidth=0.8)


def _bars_by_layer(axes: Axes, found: Found, shown: Mapping[str, plots.Look]) -> None:
    """Draw the cosine of every layer from the second one on, a bar an arm, with the range over seeds."""
    for i, (arm, look) in enumerate(shown.items()):
        cosines = np.ma.masked_invalid(by_layer(found, "shift_cosine", 0, arm)[:, 1:])
        mean, at = cosines.mean(0), np.arange(cosines.shape[1]) + (i - (len(shown) - 1) / 2) * 0.2
        errors = abs(np.ma.stack([cosines.min(0), cosines.max(0)]) - mean)
        hatch = "////" if look.dash != "-" else None
        axes.bar(at, mean, 0.18, yerr=errors, color=norms.colour(look.norm), hatch=hatch, edgecolor="white",
                 error_kw={"elinewidth": 0.8})  # fmt: skip
    count = cosines.shape[1]
    axes.set_xticks(range(count), [f"layer {i}" if count < 8 else str(i) for i in range(2, count + 1)] + ["head"])


def _distances(plan: Extent, found: Found) -> Figure:
    shown = {arm: look for arm, look in looks(plan).items() if arm in (NONE, BATCH, LAYER)}
    with plots.figure(3.4 * len(plan.rates) + 0.4, 3.6) as drawing:
        panels = drawing.subplots(1, len(plan.rates), sharey=True, squeeze=False)[0]
        for i, (axes, rate) in enumerate(zip(panels, plan.rates, strict=True)):
            values = {arm: np.median(found[arm].fixed[i], 1) for arm in shown}
            plots.lines(axes, plan.distances, values, shown, marked=True)
            plots.logarithmic(axes)
            plots.logarithmic(axes, x=True)
            axes.set_xticks(plan.distances)
            plots.level(axes, 2 / rate, "2 / rate")
            axes.set(title=f"rate {rate:g}", xlabel="distance from the weights")
        panels[0].set(ylabel="beta at a fixed distance")
        plots.legend(drawing, panels[0])
    return drawing


def _sweep(plan: Extent, found: Found) -> Figure:
    arms = [BATCH, *map(noisy, plan.noises)]
    with plots.figure(9.6, 3.8) as drawing:
        left, right = drawing.subplots(1, 2)
        errors = np.stack([100 * own(plan, found[arm]) for arm in arms], 1)
        drifts = np.stack([np.divide(*drifts_of(plan, found, arm)) for arm in arms], 1)
        bases = (float(100 * own(plan, found[NONE]).mean()), 1)
        for axes, values, base in zip((left, right), (errors, drifts), bases, strict=True):
            plots.lines(axes, range(len(arms)), {BATCH: values}, {BATCH: plots.Look("batch")}, marked=True)
            axes.set_xticks(range(len(arms)), ["0", *(f"{noise:g}" for noise in plan.noises)])
            axes.set(xlabel="noise, multiples of the published one")
            plots.level(axes, base, "no norm")
        left.set(title="Batch norm with noise, own rates", ylabel="test error, %")
        plots.logarithmic(right)
        right.set(title="Drift of a unit's mean, same rates", ylabel="multiple of that without a norm")
    return drawing


def rows(plan: Extent, found: Found) -> Sequence[Row]:
    """List every number."""
    lines = []
    for name, arm in found.items():
        for i, rate in enumerate(plan.rates):
            numbers = {m: arm.median(m, i) for m in (*MEASURES, "cosine")}
            numbers |= {
                "test error": arm.error[i],
                "test error, corrected": arm.corrected[i],
                "drift": arm.drift[i, :, -1],
            }
            fixed = np.median(arm.fixed[i], 1)
            numbers |= {f"beta at distance {d:g}": fixed[:, k] for k, d in enumerate(plan.distances)}
            for field, quantity in (("shift", "shift"), ("shift_cosine", "cosine of shift")):
                values = by_layer(found, field, i, name)
                numbers |= {f"{quantity}, layer {k + 1}": values[:, k] for k in range(1, values.shape[1])}
            lines += [
                Row(quantity, name, f"rate {rate:g}", seed, float(value))
                for quantity, values in numbers.items()
                for seed, value in zip(plan.all_seeds(), values, strict=True)
            ]
    return lines


STANDARD = Extent()
_CONVOLUTION = {"data": "tfds:cifar10", "seeds": 5, "steps": 3_000, "every": 150, "batch": 128, "side": 32}
QUICK = Extent(seeds=2, network="mlp-2x32", rates=(0.03, 0.1), noises=(0.1, 1.0), distances=(0.03, 0.3), steps=120)

study = Study(
    name="why",
    title="Why does batch norm work?",
    claims=(SHIFT, SMOOTH, NOISE),
    standard=STANDARD,
    quick=QUICK,
    measure=measure,
    judge=judge,
    draw=draw,
    rows=rows,
    networks={
        "conv-16-32-64": (
            Extent(network="conv-16-32-64", data="tfds:cifar10", side=16),
            replace(QUICK, network="conv-16-32-64"),
        ),
        **{
            name: (Extent(network=name, **_CONVOLUTION), replace(QUICK, network=name, side=32))
            for name in ("vgg-11", "conv-32-64-64-128")
        },
    },
)

if __name__ == "__main__":
    main(study, __doc__ or "")
