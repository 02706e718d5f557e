"""Why does batch norm fail in recurrence, and when does it work?

An LSTM reads the pixels of handwritten digits one by one, in a fixed random order; sequences longer than 64 steps start
over. The arms differ in the set over which statistics are taken:

- `vertical`: only the input path, over batch and time steps together (`batch_input`).
- `per step`: all paths, over the batch, separately at each time step (`batch_step`).
- `shared`: all paths, one statistic for all time steps, like the running ones of a batch norm layer ("horizontal"). In
  training it is the same network as `per step`, so it is that network with other statistics: weights are paired.
- `plain` (no norm) and `layer` (layer norm), for reference.

At every time step, with noise on the initial state as in training, the script measures the norm of the gradient of the
loss with respect to the hidden state, the root mean square of the hidden state, and the standard deviation over the
batch of the input of the recurrent norm: at initialization for several sequence lengths and initial scales; after a
short training (Adam, gradients clipped at norm 1) for several initial scales, with the error on test examples. Only the
scales vary: batch norms on the recurrent path have the published epsilon, 1e-5, and layer norm the epsilon of its
default scale. The last measurement is the trap of layer norm: zero inputs from a zero state have no variance, so the
gradient grows by up to 1 / sqrt(epsilon) at each step.

    python experiments/recurrent_gradients.py                        # five seeds
    python experiments/recurrent_gradients.py --output FOLDER        # writes figures (SVG, PNG) and the findings
    python experiments/recurrent_gradients.py --quick                # two seeds, shorter; a smoke test
"""

import argparse
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.claims.estimates import average, ratio
from experiments.claims.plots import logarithmic
from normlab.linen import RNN, LSTMCell
from normlab.norms import colour, get, marker
from normlab.study.data.dataset import digits
from normlab.study.data.splits import shuffled, split
from normlab.study.report.figures import STYLES, styles, to_svg

HIDDEN, BATCH, CLASSES, PIXELS = 32, 64, 10, 64
NOISE, LEARNING_RATE = 0.1, 0.01
"""Standard deviation of the initial state in training; learning rate of Adam."""

SMALL, LARGE = 0.1, 1.0
"""Initial scales that the findings compare."""

ARMS: tuple[str, ...] = ("plain", "layer", "vertical", "per step", "shared")
PLAIN, LAYER, VERTICAL, PER_STEP, SHARED = ARMS
NORMS: dict[str, str] = {
    PLAIN: "none",
    LAYER: "layer",
    VERTICAL: "batch_input:momentum={m}",
    PER_STEP: "batch_step:max_steps={t},momentum={m},epsilon=1e-5",
    SHARED: "batch_shared:momentum={m},epsilon=1e-5",
}
TRAP = ("layer", "layer:initial_scale=1.0,epsilon=1e-5")
"""Layer norm with its defaults in a cell, and as in a feed-forward network."""

QUANTITIES = {
    "gradient": "gradient norm of the state",
    "activation": "RMS of the state",
    "spread": "sd over the batch, recurrent path",
}
"""Fields of `Profile`, with labels for figures."""

Tree = Any
Numbers = Array | np.ndarray


@dataclass(frozen=True)
class Plan:
    """Extent of the measurements."""

    seeds: int = 5
    scales: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    lengths: tuple[int, ...] = (16, 64, 128)
    trained_length: int = 64
    epochs: int = 10


QUICK = Plan(seeds=2, scales=(0.1, 1.0), lengths=(16,), trained_length=16, epochs=1)


class Profile(NamedTuple):
    """Measurements of a network over time; arrays [scales, seeds, time], or without leading axes.

    Attributes:
        gradient: Norm of the gradient of the mean loss with respect to the hidden state, over batch and features.
        activation: Root mean square of the hidden state.
        spread: Standard deviation over the batch of the input of the recurrent norm, root mean square over features.
        parameters: Norm of the gradient of all parameters; no time axis.
    """

    gradient: Numbers
    activation: Numbers
    spread: Numbers
    parameters: Numbers


class Trained(NamedTuple):
    """Measurements of trained networks; arrays [scales, seeds, ...]."""

    profile: Profile
    error: Numbers


class Shift(NamedTuple):
    """Difference of running statistics of the recurrent path at a time step from shared ones, [scales, seeds, time].

    Attributes:
        mean: Distance of the means in shared standard deviations, root mean square over features.
        spread: Ratio of the standard deviations, geometric mean over features.
    """

    mean: Numbers
    spread: Numbers


class Found(NamedTuple):
    """All measurements: by arm, and by length if there are several; the trap by norm."""

    initial: dict[tuple[str, int], Profile]
    trained: dict[str, Trained]
    shift: Shift
    trap: dict[str, Numbers]


class Draw(NamedTuple):
    """Random choices of a seed: the key of its network, and its examples for training and test."""

    key: Array
    train: Array
    test: Array


def draws(plan: Plan) -> Draw:
    """Return the draws of all seeds, stacked; batches are [seeds, updates, batch] indices."""
    splits = [split(len(digits().labels), seed) for seed in range(plan.seeds)]
    orders = [shuffled(part["train"], BATCH, plan.epochs, seed) for seed, part in enumerate(splits)]
    return Draw(
        key=jax.random.split(jax.random.key(0), plan.seeds),
        train=jnp.asarray(orders),
        test=jnp.asarray([part["test"] for part in splits]),
    )


class Net(nn.Module):
    """LSTM that reads sequences, and a linear layer on its last state."""

    norm: str
    train: bool = True
    noise: float = NOISE

    @nn.compact
    def __call__(self, x: Array, key: Array) -> tuple[Array, Array]:
        """Return logits, and hidden states [batch, time, features]."""
        carry_init = nn.initializers.normal(self.noise)
        cell = LSTMCell(
            HIDDEN, norm=self.norm, use_running_average=not self.train, carry_init=carry_init, name="lstm", parent=self
        )
        hidden = RNN(cell, name="rnn")(x, init_key=key)
        return nn.Dense(CLASSES, name="head")(hidden[:, -1]), hidden


def norm_of(arm: str, steps: int, momentum: float = 0.0) -> str:
    """Return the norm of an arm for sequences of `steps`; at momentum 0, running statistics are those of the batch."""
    return NORMS[arm].format(t=steps, m=momentum)


def sequences(steps: int) -> np.ndarray:
    """Return all digits as sequences [examples, steps, 1], in a fixed permutation of their pixels."""
    order = np.resize(np.random.default_rng(0).permutation(PIXELS), steps)
    return digits().inputs.reshape(-1, PIXELS, 1)[:, order]


def new_nets(plan: Plan) -> Tree:
    """Return the parameters of new networks with all norms, by seed; kernels depend only on the seed."""
    keys = draws(plan).key
    return jax.jit(jax.vmap(lambda key: Net("layer").init(key, jnp.zeros((2, 1, 1)), key)["params"]))(keys)


def with_norm(params: Tree, norm: str, scales: Sequence[float]) -> Tree:
    """Return the parameters of networks with a norm, [scales * seeds], with initial scales set."""
    kept = {f"norm_{path}" for path in get(norm).cell().paths}
    lstm = {name: leaf for name, leaf in params["lstm"].items() if not name.startswith("norm_") or name in kept}
    params = repeated({**params, "lstm": lstm}, len(scales))
    for name in kept:
        old = params["lstm"][name]["scale"]
        factor = jnp.repeat(jnp.asarray(scales), len(old) // len(scales))
        params["lstm"][name]["scale"] = jnp.full_like(old, 1) * factor[:, None]
    return params


def losses(logits: Array, labels: Array) -> Array:
    """Return the mean cross-entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def recurrent_kernel(params: Tree) -> Array:
    """Return the recurrent kernels of all gates side by side."""
    return jnp.concatenate([params["lstm"][gate]["kernel"] for gate in ("hi", "hf", "hg", "ho")], -1)


@partial(jax.jit, static_argnames=("norm", "noise", "swapped"))
def profile(norm: str, params: Tree, draw: Draw, x: Array, noise: float = NOISE, swapped: bool = False) -> Profile:
    """Measure networks, each on its first batch; `swapped` uses running statistics of this batch, as constants."""
    labels = jnp.asarray(digits().labels)

    def one(net: tuple[Tree, Draw]) -> Profile:
        params, draw = net
        batch = draw.train[0]
        return profile_one(norm, params, x[batch], labels[batch], draw.key, noise, swapped)

    return jax.lax.map(one, (params, draw))


def profile_one(norm: str, params: Tree, x: Array, labels: Array, key: Array, noise: float, swapped: bool) -> Profile:
    """Measure a network on one batch."""
    state, net = {}, Net(norm, noise=noise)
    if swapped:
        _, state = net.apply({"params": params}, x, key, mutable=["batch_stats"])
        net = Net(norm, train=False, noise=noise)

    def loss(params: Tree, perturbations: Array) -> tuple[Array, Array]:
        given = {"params": params, **state, "perturbations": {"rnn": {"hidden": perturbations}}}
        (logits, hidden), _ = net.apply(given, x, key, mutable=["batch_stats"])
        return losses(logits, labels), jnp.swapaxes(hidden, 0, 1)

    perturbations = jnp.zeros((x.shape[1], len(x), HIDDEN))
    (by_params, by_hidden), hidden = jax.grad(loss, (0, 1), has_aux=True)(params, perturbations)
    spread = (hidden @ recurrent_kernel(params)).std(1)
    return Profile(
        gradient=jnp.sqrt(jnp.square(by_hidden).sum((1, 2))),
        activation=jnp.sqrt(jnp.square(hidden).mean((1, 2))),
        spread=jnp.sqrt(jnp.square(spread).mean(1)),
        parameters=optax.tree.norm(by_params),
    )


@partial(jax.jit, static_argnames="norm")
def train(norm: str, params: Tree, draw: Draw, x: Array) -> Tree:
    """Train networks and return their variables."""
    labels = jnp.asarray(digits().labels)
    return jax.lax.map(lambda net: train_one(norm, net[0], net[1], x, labels), (params, draw))


def train_one(norm: str, params: Tree, draw: Draw, x: Array, labels: Array) -> Tree:
    """Train a network and return its variables."""
    net = Net(norm)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(LEARNING_RATE))
    state = {k: v for k, v in net.init(draw.key, x[:2], draw.key).items() if k != "params"}

    def update(carry: tuple[Tree, Tree], at: tuple[Array, Array]) -> tuple[tuple[Tree, Tree], None]:
        variables, optimizing = carry
        batch, key = at

        def loss(params: Tree) -> tuple[Array, Tree]:
            (logits, _), state = net.apply({**variables, "params": params}, x[batch], key, mutable=["batch_stats"])
            return losses(logits, labels[batch]), state

        gradients, state = jax.grad(loss, has_aux=True)(variables["params"])
        updates, optimizing = optimizer.update(gradients, optimizing, variables["params"])
        return ({"params": optax.apply_updates(variables["params"], updates), **state}, optimizing), None

    start = ({"params": params, **state}, optimizer.init(params))
    return jax.lax.scan(update, start, (draw.train, jax.random.split(draw.key, len(draw.train))))[0][0]


def shared(statistics: Tree) -> Tree:
    """Return the running statistics of norms that share them: the average over time steps, [networks, 1, features]."""
    return jax.tree.map(lambda rows: rows.mean(1, keepdims=True), statistics)


@partial(jax.jit, static_argnames="norm")
def error(norm: str, variables: Tree, draw: Draw, x: Array) -> Array:
    """Return the error of networks on test examples, with running statistics, from a zero state."""
    labels, net = jnp.asarray(digits().labels), Net(norm, train=False, noise=0.0)

    def one(at: tuple[Tree, Array]) -> Array:
        variables, test = at
        return (net.apply(variables, x[test], jax.random.key(0))[0].argmax(-1) != labels[test]).mean()

    return jax.lax.map(one, (variables, draw.test))


def shift(statistics: Tree) -> Shift:
    """Compare the running statistics of time steps with shared ones."""
    steps, pooled = statistics["lstm"]["norm_h"], shared(statistics)["lstm"]["norm_h"]
    distance = (steps["mean"] - pooled["mean"]) / jnp.sqrt(pooled["var"])
    return Shift(
        mean=jnp.sqrt(jnp.square(distance).mean(-1)),
        spread=jnp.exp(0.5 * jnp.log(steps["var"] / pooled["var"]).mean(-1)),
    )


def measure(plan: Plan) -> Found:
    """Measure everything."""
    params, scales, steps = new_nets(plan), plan.scales, plan.trained_length
    inputs = {length: jnp.asarray(sequences(length)) for length in {*plan.lengths, steps}}

    def nets(arm: str, norm: str) -> tuple[Tree, Draw]:
        several = scales if arm != PLAIN else scales[:1]  # a network without a norm has no scale
        return with_norm(params, norm, several), repeated(draws(plan), len(several))

    def initial(case: tuple[str, int]) -> Profile:
        arm, length = case
        norm = norm_of(arm, length)
        return by_scale(plan, profile(norm, *nets(arm, norm), inputs[length], swapped=arm == SHARED))

    def variables(arm: str) -> tuple[Tree, Draw]:
        norm = norm_of(arm, steps, 0.9)
        new, draw = nets(arm, norm)
        return train(norm, new, draw, inputs[steps]), draw

    def trained(arm: str) -> Trained:
        return by_scale(plan, after(arm, steps, *found[arm], inputs[steps]))

    own = (PLAIN, LAYER, VERTICAL, PER_STEP)
    cases = list(itertools.product(ARMS, plan.lengths))
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # each program keeps about one core busy
        found: dict[str, tuple[Tree, Draw]] = dict(zip(own, pool.map(variables, own), strict=True))
        per_step, draw = found[PER_STEP]
        statistics = per_step["batch_stats"]
        found[SHARED] = {**per_step, "batch_stats": shared(statistics)}, draw
        return Found(
            initial=dict(zip(cases, pool.map(initial, cases), strict=True)),
            trained=dict(zip(ARMS, pool.map(trained, ARMS), strict=True)),
            shift=by_scale(plan, shift(statistics)),
            trap=dict(zip(TRAP, pool.map(partial(trapped, plan, params), TRAP), strict=True)),
        )


def after(arm: str, steps: int, variables: Tree, draw: Draw, x: Array) -> Trained:
    """Measure trained nets."""
    norm = norm_of(arm, steps)
    return Trained(profile(norm, variables["params"], draw, x, swapped=arm == SHARED), error(norm, variables, draw, x))


def repeated(tree: Tree, times: int) -> Tree:
    """Repeat arrays along their first axis, as a whole."""
    return jax.tree.map(lambda a: jnp.concatenate([a] * times), tree)


def by_scale(plan: Plan, tree: Tree) -> Tree:
    """Divide the first axis, networks, into scales and seeds; repeat measurements that have a single scale."""

    def divided(a: Array) -> np.ndarray:
        several = np.asarray(a).reshape(-1, plan.seeds, *a.shape[1:])
        return np.repeat(several, len(plan.scales) // len(several), 0)

    return jax.tree.map(divided, tree)


def trapped(plan: Plan, params: Tree, norm: str) -> np.ndarray:
    """Return the gradient norm of new networks at every step of zeros, from a zero state: [seeds, time]."""
    nets = with_norm(params, norm, [get(norm).cell().initial_scale])
    x = jnp.zeros((len(digits().labels), max(plan.lengths), 1))
    return np.asarray(profile(norm, nets, draws(plan), x, noise=0.0).gradient)


def sentences(plan: Plan, found: Found) -> list[str]:
    """State the findings; every number is measured."""
    steps, small, large = plan.trained_length, plan.scales.index(SMALL), plan.scales.index(LARGE)
    lines = [
        f"LSTM of {HIDDEN} units, permuted digits, batch {BATCH}, {plan.seeds} seeds, {plan.epochs} epochs of "
        "training; in brackets 95 % intervals over seeds."
    ]
    for arm in (VERTICAL, PER_STEP, SHARED, LAYER):
        gradient = found.initial[arm, steps].parameters
        lines.append(
            f"At initialization, {steps} steps, {arm}: the gradient of the parameters at scale {LARGE:g} is "
            f"{ratio(gradient[large], gradient[small]).text('{:.3g}')} times that at scale {SMALL:g}."
        )
    for arm in ARMS:
        parts = []
        for length in plan.lengths:
            gradient = found.initial[arm, length].gradient[usual(plan, arm)]
            parts.append(f"over {length} steps {ratio(gradient[:, 0], gradient[:, -1]).text('{:.2g}')}")
        lines.append(
            f"At initialization, {at_scale(plan, arm)}: the gradient at the first step, as a share of that at the "
            f"last, is {', '.join(parts)}."
        )
    for arm in (PER_STEP, SHARED):
        spread = found.trained[arm].profile.spread[usual(plan, arm)]
        lines.append(
            f"After training, {arm}: the standard deviation over the batch of the input of the recurrent norm at the "
            f"last step is {ratio(spread[:, -1], spread[:, 0]).text('{:.3g}')} times that at the first."
        )
    lines += [swap(found, at, scale) for at, scale in enumerate(plan.scales)]
    lines += [against(plan, found, arm) for arm in (PLAIN, LAYER, VERTICAL)]
    per_step = found.trained[PER_STEP].error
    lines.append(
        f"Trained per step, scale {LARGE:g} instead of {SMALL:g}: error "
        f"{points(per_step[large] - per_step[small], 'higher', 'lower')}."
    )
    return [*lines, *(trap_line(norm, found.trap[norm]) for norm in TRAP)]


def usual(plan: Plan, arm: str) -> int:
    """Return the index of the default scale of an arm's norm."""
    return plan.scales.index(get(norm_of(arm, 1)).cell().initial_scale)


def at_scale(plan: Plan, arm: str) -> str:
    """Name an arm with its default scale, at which arms are compared."""
    return arm if arm == PLAIN else f"{arm} (scale {plan.scales[usual(plan, arm)]:g})"


def points(difference: Numbers, higher: str, lower: str) -> str:
    """State a difference of errors in percentage points, and its direction."""
    seen = average(100 * difference)
    way = (higher if seen.mean > 0 else lower) if seen.tells_from(0) else "not distinguishable"
    return f"{way}, difference {seen.text('{:+.1f}')} points"


def swap(found: Found, at: int, scale: float) -> str:
    """State the effect of swapping the statistics of a trained network, and their distance."""
    own, swapped = found.trained[PER_STEP].error[at], found.trained[SHARED].error[at]
    mean, spread = found.shift.mean[at], found.shift.spread[at]
    return (
        f"The same trained networks, scale {scale:g}, evaluated with shared statistics instead of those of each step: "
        f"error {points(swapped - own, 'higher', 'lower')}, from {average(100 * own).text('{:.1f}')} %. Means of "
        f"single steps are up to {average(mean.max(1)).text('{:.2f}')} shared standard deviations away, and their "
        f"standard deviations between {average(spread.min(1)).text('{:.2f}')} and "
        f"{average(spread.max(1)).text('{:.2f}')} times the shared one."
    )


def against(plan: Plan, found: Found, arm: str) -> str:
    """Compare the error of an arm with the error of statistics per step."""
    own, other = (found.trained[a].error[usual(plan, a)] for a in (PER_STEP, arm))
    return (
        f"Trained {at_scale(plan, arm)}: error {average(100 * other).text('{:.1f}')} %; compared with "
        f"{at_scale(plan, PER_STEP)} it is {points(other - own, 'higher', 'lower')}."
    )


def trap_line(norm: str, gradient: Numbers) -> str:
    """State how the gradient grows over steps of zeros."""
    gradient = np.asarray(gradient)[:, ::-1]  # by distance from the last step
    finite = int(np.isfinite(gradient).all(0).argmin()) or gradient.shape[1]
    growth = ratio(gradient[:, 1], gradient[:, 0])
    end = f"over {gradient.shape[1] - 1} steps it is finite" if finite == gradient.shape[1] else (
        f"{finite} steps back it is no longer finite"
    )  # fmt: skip
    word = "grows" if growth.low > 1 else "shrinks" if growth.high < 1 else "neither clearly grows nor shrinks"
    return (
        f"Zeros from a zero state, `{norm}`: backwards the gradient {word}, by {growth.text('{:.3g}')} in a step; "
        f"{end}."
    )


def draw(plan: Plan, found: Found) -> dict[str, Figure]:
    """Draw the figures, by name."""
    steps = plan.trained_length
    moments = ("at initialization", "after training")
    profiles = ({arm: found.initial[arm, steps] for arm in ARMS}, {arm: found.trained[arm].profile for arm in ARMS})
    with rc_context(STYLES):
        time = Figure(figsize=(9.6, 7.2), layout="constrained")
        for row, (quantity, label) in zip(time.subplots(3, 2, sharex=True), QUANTITIES.items(), strict=True):
            for axes, moment, by_arm in zip(row, moments, profiles, strict=True):
                lines(
                    axes,
                    range(1, steps + 1),
                    {arm: getattr(by_arm[arm], quantity)[usual(plan, arm)] for arm in ARMS},
                    label=partial(at_scale, plan),
                )
                axes.set(title=moment, xlabel="time step", ylabel=label)
                logarithmic(axes)
        time.legend(*time.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(ARMS))

        scales = Figure(figsize=(9.6, 3.6), layout="constrained")
        panels = scales.subplots(1, len(plan.lengths) + 1, squeeze=False)[0]
        for axes, length in zip(panels, plan.lengths, strict=False):
            lines(axes, plan.scales, {arm: found.initial[arm, length].parameters.T for arm in ARMS}, marked=True)
            axes.set(title=f"{length} steps, at initialization", ylabel="gradient norm of the parameters")
            logarithmic(axes)
        lines(panels[-1], plan.scales, {arm: 100 * found.trained[arm].error.T for arm in ARMS}, marked=True)
        panels[-1].set(title=f"{steps} steps, after training", ylabel="test error, %")
        for axes in panels:
            axes.set(xlabel="initial scale")
            logarithmic(axes, x=True)
        scales.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(ARMS))

        trap = Figure(figsize=(4.8, 3.6), layout="constrained")
        axes = trap.subplots()
        lines(axes, range(max(plan.lengths)), {norm: found.trap[norm][:, ::-1] for norm in TRAP})
        axes.set(title="zeros from a zero state", xlabel="steps back", ylabel=QUANTITIES["gradient"])
        logarithmic(axes)
        axes.legend()
    return {"time": time, "scales": scales, "trap": trap}


def lines(
    axes: Axes,
    places: Sequence[float],
    values: Mapping[str, Numbers],
    marked: bool = False,
    label: Callable[[str], str] = str,
) -> None:
    """Draw the mean and the range over seeds of arrays [seeds, places] by arm; a logarithmic axis omits zeros."""
    norms = {arm: NORMS.get(arm, arm) for arm in values}
    looks = styles({arm: (colour(norm), marker(norm)) for arm, norm in norms.items()}).values()
    for (arm, seeds), look in zip(values.items(), looks, strict=True):
        there = np.where(np.isfinite(seeds), seeds, np.nan)
        known = np.isfinite(there).all(0)
        at, there = np.asarray(places)[known], there[:, known]
        marks = look.marker if marked else None
        axes.plot(at, there.mean(0), color=look.colour, linestyle=look.dash, marker=marks, label=label(arm))
        axes.fill_between(at, there.min(0), there.max(0), color=look.colour, alpha=0.15, linewidth=0)


def main() -> None:
    """Measure, print, and write files if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="folder for figures and `seen.txt`")
    parser.add_argument("--seeds", type=int, help=f"default {Plan().seeds}, or {QUICK.seeds} with --quick")
    parser.add_argument("--quick", action="store_true", help="shorter sequences, fewer seeds and scales")
    args = parser.parse_args()
    plan = QUICK if args.quick else Plan()
    seeds = plan.seeds if args.seeds is None else args.seeds
    if seeds < 2:
        parser.error(f"Expected `--seeds` to be at least 2, so that there are intervals, got {seeds}.")
    plan = replace(plan, seeds=seeds)
    found = measure(plan)
    text = "\n".join(sentences(plan, found))
    print(text)
    if args.output:
        write(args.output, text, draw(plan, found))


def write(folder: Path, text: str, figures: Mapping[str, Figure]) -> None:
    """Write the findings as text, and the figures as SVG and PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "seen.txt").write_text(text + "\n")
    for name, figure in figures.items():
        (folder / f"{name}.svg").write_text(to_svg(figure))
        figure.savefig(folder / f"{name}.png", dpi=150)
    print(f"wrote {', '.join(figures)} (.svg, .png) and seen.txt in {folder}")


if __name__ == "__main__":
    main()
