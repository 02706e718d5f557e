"""Do gradients explode in deep networks with batch norm, before any training?

In new networks of many equal layers the squared norm of the gradient of a layer's kernel changes from layer to layer by
a factor, the growth: above 1 it explodes towards the input, below 1 it vanishes. The script measures the growth on real
images for batch norm, layer norm, RMS norm and no norm, before and after the ReLU, with and without residual
connections, with other activations, at several batch sizes and widths, and compares it with the law of mean field
theory where there is one (`law`). Initial weights of another scale show whether the size of the gradient depends on
them.

    python experiments/depth_at_init.py --output FOLDER
    python experiments/depth_at_init.py --data digits --quick

References:
    Yang, Pennington, Rao, Sohl-Dickstein, Schoenholz. A Mean Field Theory of Batch Normalization. ICLR 2019.
    https://arxiv.org/abs/1902.08129
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.claims import images, plots
from experiments.claims.estimates import Interval, average, ratio
from experiments.claims.images import Images, Part
from experiments.claims.mean_field import Activation, with_batch_norm, without_norm
from experiments.claims.study import Plan, Study, main
from experiments.claims.trainer import at_once, loss
from experiments.claims.verdicts import Bar, Claim, Finding, Judgement, Row, Verdict
from normlab.functional import batch_norm, layer_norm, rms_norm
from normlab.norms import colour

LIMIT = math.pi / (math.pi - 1)
"""Growth that batch norm and ReLU have in the limit of large batches, and layer norm after a ReLU."""

STABLE = Claim(
    key="stable",
    text="Gradients do not vanish or explode in deep networks with batch norm.",
    source="widely read tutorials; Ioffe & Szegedy 2015, section 3.3, as a conjecture",
    published=f"Yang et al. 2019: squared gradients grow by at least {LIMIT:.3f} a layer with ReLU",
)
CURES = Claim(
    key="cures",
    text="Batch norm cures exploding gradients.",
    source="widely read tutorials",
    published="Yang et al. 2019: batch norm itself makes them explode",
)
LAYER_NORM = Claim(
    key="layer-norm",
    text="Gradients do not explode with layer norm, unlike with batch norm.",
    source="widely read tutorials, after Yang et al. 2019",
)
EXPLODES, VANISHES = 1.1, 0.85
"""Growth from which gradients explode, and below which they vanish."""

DEPENDS, INDEPENDENT = 1e3, 10.0
"""Factors of the squared gradient, at twice the initial weights, from and up to which its size depends on them."""


class Arm(NamedTuple):
    """An architecture of equal layers.

    Attributes:
        norm: Norm of each layer.
        after: Whether the norm stands after the activation.
        residual: Whether a layer adds to its input.
        activation: `relu`, `tanh`, or `linear` for none.
        epsilon: Epsilon of the norm.
    """

    norm: Literal["none", "batch", "layer", "rms"]
    after: bool = False
    residual: bool = False
    activation: Activation = "relu"
    epsilon: float = 1e-5

    @property
    def name(self) -> str:
        """Name for tables and sentences."""
        words = [{"none": "no norm", "batch": "batch norm", "layer": "layer norm", "rms": "RMS norm"}[self.norm]]
        words += ["after ReLU"] if self.after else []
        words += [{"tanh": "tanh", "linear": "linear"}[self.activation]] if self.activation != "relu" else []
        words += ["residual"] if self.residual else []
        words += [f"epsilon {self.epsilon:g}"] if self.epsilon != Arm._field_defaults["epsilon"] else []
        return ", ".join(words)


BATCH, NONE, LAYER, RMS = Arm("batch"), Arm("none"), Arm("layer"), Arm("rms")
BATCH_AFTER, LAYER_AFTER, RMS_AFTER = (arm._replace(after=True) for arm in (BATCH, LAYER, RMS))
BATCH_RESIDUAL, NONE_RESIDUAL, LAYER_RESIDUAL = (arm._replace(residual=True) for arm in (BATCH, NONE, LAYER))
LINEAR, TANH = BATCH._replace(activation="linear"), BATCH._replace(activation="tanh")
NONE_TANH = NONE._replace(activation="tanh")
LARGE_EPSILON = BATCH._replace(epsilon=0.99)
ALL = (
    NONE, BATCH, LAYER, RMS, BATCH_AFTER, LAYER_AFTER, RMS_AFTER, BATCH_RESIDUAL, NONE_RESIDUAL, LAYER_RESIDUAL,
    LINEAR, TANH, NONE_TANH, LARGE_EPSILON,
)  # fmt: skip
NEEDED = (NONE, BATCH, LAYER, LAYER_AFTER, BATCH_RESIDUAL)
"""Arms that verdicts are about."""


@dataclass(frozen=True, kw_only=True)
class Extent(Plan):
    """Extent of the study.

    Attributes:
        arms: Architectures, at `width` and `batch`; `NEEDED` are among them.
        depth: Layers.
        width: Units of a layer.
        batch: Images in a batch.
        law_width: Width at which batch norm is compared with the law.
        batches: Batch sizes at which it is.
        widths: Widths at which it is, at `width_batch`.
        width_batch: Images in a batch there.
        scales: Factors of the initial kernels, with and without batch norm, beside 1.
    """

    arms: tuple[Arm, ...] = ALL
    depth: int = 32
    width: int = 128
    batch: int = 64
    law_width: int = 256
    batches: tuple[int, ...] = (8, 32, 128)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    width_batch: int = 32
    scales: tuple[float, ...] = (0.5, 2.0)


class Case(NamedTuple):
    """One measurement: an architecture, its width, its batch size and the factor of its initial kernels."""

    arm: Arm
    width: int
    batch: int
    scale: float = 1.0


Found = Mapping[Case, np.ndarray]
"""Squared norm of the gradient of every layer's kernel, [seeds, layers]."""


def law(arm: Arm, batch: int) -> float | None:
    """Return the growth of an architecture by mean field theory, if the theory has a number for it."""
    if arm.after or arm.residual or arm.epsilon != Arm._field_defaults["epsilon"]:
        return None
    if arm.norm == "batch":
        return with_batch_norm(batch, arm.activation)
    return without_norm(arm.activation) if arm.norm == "none" else None


def cases(plan: Extent) -> list[Case]:
    """List all measurements, each once."""
    found = [Case(arm, plan.width, plan.batch) for arm in plan.arms]
    found += [Case(BATCH, plan.law_width, batch) for batch in plan.batches]
    found += [Case(BATCH, width, plan.width_batch) for width in plan.widths]
    found += [Case(arm, plan.width, plan.batch, scale) for arm in (NONE, BATCH) for scale in plan.scales]
    return list(dict.fromkeys(found))


def measure(plan: Extent) -> Found:
    """Measure all cases; those that differ only in the scale of the weights share a program."""
    data = images.load(plan.data, plan.data_dir, side=14)
    shapes = list(dict.fromkeys(case._replace(scale=1.0) for case in cases(plan)))
    programs = {shape: jax.jit(partial(profiles, plan, data, shape)) for shape in shapes}
    listed = cases(plan)
    jobs = [partial(programs[case._replace(scale=1.0)], seeds(plan), case.scale) for case in listed]
    return {case: np.asarray(found, np.float64) for case, found in zip(listed, at_once(jobs), strict=True)}


def seeds(plan: Plan) -> np.ndarray:
    """Return the seeds of the networks."""
    return np.asarray(plan.all_seeds(), np.uint32)


def profiles(plan: Extent, data: Images, case: Case, seeds: Array, scale: Array) -> Array:
    """Return the squared gradients of new networks, each on a batch of its own, [seeds, layers]."""
    inputs, labels = data.train.inputs.reshape(len(data.train.labels), -1), jnp.asarray(data.train.labels)

    def one(seed: Array) -> Array:
        draw, first, middle, last = jax.random.split(jax.random.key(seed), 4)
        chosen = jax.random.choice(draw, len(labels), (case.batch,), replace=False)
        he = nn.initializers.he_normal()
        shape = (case.width, case.width)
        kernels = (
            scale * he(first, (inputs.shape[-1], case.width)),
            scale * jax.vmap(lambda key: he(key, shape))(jax.random.split(middle, plan.depth)),
            nn.initializers.lecun_normal()(last, (case.width, data.classes)),
        )
        return squared_gradients(case.arm, kernels, Part(jnp.asarray(inputs)[chosen], labels[chosen]))

    return jax.lax.map(one, seeds)


def squared_gradients(arm: Arm, kernels: tuple[Array, Array, Array], batch: Part) -> Array:
    """Return the squared norm of the gradient of every middle layer's kernel.

    Args:
        arm: The architecture.
        kernels: Kernel of the first layer [inputs, width], of the middle ones [layers, width, width], of the head.
        batch: Flat images and their classes.
    """
    first, middle, last = kernels

    def objective(middle: Array) -> Array:
        h = layer(arm, batch.inputs @ first)
        h, _ = jax.lax.scan(lambda h, w: (h * arm.residual + layer(arm, h @ w), None), h, middle)
        return loss(h @ last, batch.labels)

    return jnp.square(jax.grad(objective)(middle)).sum((1, 2))


def layer(arm: Arm, x: Array) -> Array:
    """Normalize and activate, in the order of the architecture."""
    activations: dict[str, Callable[[Array], Array]] = {"relu": nn.relu, "tanh": jnp.tanh, "linear": lambda x: x}
    norms: dict[str, Callable[[Array], Array]] = {
        "none": lambda x: x,
        "batch": lambda x: batch_norm(x, epsilon=arm.epsilon)[0],
        "layer": partial(layer_norm, epsilon=arm.epsilon),
        "rms": partial(rms_norm, epsilon=arm.epsilon),
    }
    activate, norm = activations[arm.activation], norms[arm.norm]
    return norm(activate(x)) if arm.after else activate(norm(x))


def window(depth: int) -> np.ndarray:
    """Return the layers, from 1, over which growth is measured: those far from both ends."""
    return np.arange(min(8, depth // 4), depth - 2)


def growth(squares: np.ndarray) -> np.ndarray:
    """Return the factor by which squared gradients grow from a layer to the one before it, [seeds].

    Args:
        squares: Squared gradients, [seeds, layers].
    """
    at = window(squares.shape[1])
    with np.errstate(all="ignore"):
        logs = np.log(squares[:, at - 1])
    centred = at - at.mean()
    return np.exp(-(logs * centred).sum(1) / (centred**2).sum())


def state(seen: Interval) -> str:
    """Say whether gradients explode, vanish, stay, or whether seeds disagree."""
    if seen.low > EXPLODES:
        return "explode"
    if seen.high < VANISHES:
        return "vanish"
    return "stay" if VANISHES <= seen.low and seen.high <= EXPLODES else "unclear"


class Seen(NamedTuple):
    """Estimates over seeds.

    Attributes:
        arms: Growth by architecture.
        batches: Growth of batch norm by batch size.
        widths: Growth of batch norm by width.
        scales: Squared gradient of the first layer at a scale of the initial weights, as a multiple of that at 1.
        against: Growth with batch norm as a multiple of growth without a norm.
    """

    arms: Mapping[Arm, Interval]
    batches: Mapping[int, Interval]
    widths: Mapping[int, Interval]
    scales: Mapping[tuple[Arm, float], Interval]
    against: Interval


def estimates(plan: Extent, found: Found) -> Seen:
    """Estimate everything that words and bars need."""

    def of(case: Case) -> Interval:
        return average(growth(found[case]))

    base = {arm: Case(arm, plan.width, plan.batch) for arm in plan.arms}
    scaled = {(arm, scale): base[arm]._replace(scale=scale) for arm in (NONE, BATCH) for scale in plan.scales}
    return Seen(
        arms={arm: of(case) for arm, case in base.items()},
        batches={batch: of(Case(BATCH, plan.law_width, batch)) for batch in plan.batches},
        widths={width: of(Case(BATCH, width, plan.width_batch)) for width in plan.widths},
        scales={key: ratio(found[case][:, 0], found[base[key[0]]][:, 0]) for key, case in scaled.items()},
        against=ratio(growth(found[base[BATCH]]), growth(found[base[NONE]])),
    )


def judge(plan: Extent, found: Found) -> Judgement:
    """Compute the verdicts and the paragraph."""
    seen = estimates(plan, found)
    network, data = f"MLP {plan.depth} x {plan.width}, new", plan.data
    stable, stable_when = judge_stable(seen)
    cures, cures_when = judge_cures(seen)
    placed, placed_when = judge_layer_norm(seen)
    effect = "growth of the squared gradient a layer, towards the input"
    findings = (
        Finding(claim=STABLE, verdict=stable, when=stable_when, effect=f"{effect}, plain batch norm and ReLU",
                seen=seen.arms[BATCH], network=network, data=data),
        Finding(claim=CURES, verdict=cures, when=cures_when, effect=f"{effect}, batch norm / no norm",
                seen=seen.against, network=network, data=data),
        Finding(claim=LAYER_NORM, verdict=placed, when=placed_when, effect=f"{effect}, layer norm after the ReLU",
                seen=seen.arms[LAYER_AFTER], network=network, data=data),
    )  # fmt: skip
    return Judgement(findings=findings, bars=tuple(_bars(plan, seen)), sentences=tuple(_sentences(plan, found, seen)))


def judge_stable(seen: Seen) -> tuple[Verdict, str]:
    """Judge whether gradients neither vanish nor explode with batch norm."""
    plain = {state(seen.arms[BATCH]), *(state(interval) for interval in seen.batches.values())}
    residual = seen.arms[BATCH_RESIDUAL]
    if plain == {"stay"}:
        return Verdict.HOLDS, ""
    if not plain & {"explode", "vanish"}:
        return Verdict.UNSEEN, ""
    words = f"growth {residual.text('{:.2f}')}, without them {seen.arms[BATCH].text('{:.2f}')}"
    if state(residual) == "stay":
        return Verdict.HOLDS_WHEN, f"layers have residual connections: {words}"
    return Verdict.FAILS, f"residual connections do not change it: {words}" if state(residual) != "unclear" else ""


def judge_cures(seen: Seen) -> tuple[Verdict, str]:
    """Judge whether batch norm cures exploding gradients."""
    batch, none = (state(seen.arms[arm]) for arm in (BATCH, NONE))
    independent = insulated(seen)
    changes = {scale: seen.scales[BATCH, scale].mean for arm, scale in seen.scales if arm == BATCH}
    scale = f"weights {' or '.join(f'{s:g}' for s in sorted(changes))} times as large change the squared gradient by a "
    scale += f"factor of {max(max(change, 1 / change) for change in changes.values()):.1f} at most"
    if batch == "stay":
        cured = none == "explode" or independent
        return (Verdict.HOLDS, scale if independent else "") if cured else (Verdict.UNSEEN, "")
    if batch != "explode":
        return Verdict.UNSEEN, ""
    if none == "explode" and seen.against.high < 1:
        return Verdict.HOLDS_WHEN, "less growth is enough; gradients still explode"
    if independent:
        return Verdict.HOLDS_WHEN, f"initial weights have a wrong scale: {scale}, but it grows from layer to layer"
    return Verdict.FAILS, "they explode with batch norm" + ("; without a norm they do not" if none == "stay" else "")


def insulated(seen: Seen) -> bool:
    """Report whether the gradient's size depends on the scale of the initial weights, but not with batch norm."""
    scales = {scale for _, scale in seen.scales}
    none, batch = ([seen.scales[arm, scale] for scale in scales] for arm in (NONE, BATCH))
    depends = any(i.low > DEPENDS or i.high < 1 / DEPENDS for i in none)
    return depends and all(1 / INDEPENDENT < i.mean < INDEPENDENT for i in batch)


def judge_layer_norm(seen: Seen) -> tuple[Verdict, str]:
    """Judge whether gradients do not explode with layer norm."""
    before, after = state(seen.arms[LAYER]), state(seen.arms[LAYER_AFTER])
    safe = {"stay", "vanish"}
    words = f"{seen.arms[LAYER].text('{:.2f}')} before, {seen.arms[LAYER_AFTER].text('{:.2f}')} after"
    if before in safe and after in safe:
        return Verdict.HOLDS, ""
    if before in safe and after == "explode":
        return Verdict.HOLDS_WHEN, f"the norm stands before the activation: {words}"
    if before == "explode" and after in safe:
        return Verdict.HOLDS_WHEN, f"the norm stands after the activation: {words}"
    return (Verdict.FAILS if before == after == "explode" else Verdict.UNSEEN), ""


def _bars(plan: Extent, seen: Seen) -> list[Bar]:
    compared = [(plan.law_width, batch, interval) for batch, interval in seen.batches.items()]
    compared += [(width, plan.width_batch, interval) for width, interval in seen.widths.items()]
    wide = {(width, batch): interval for width, batch, interval in compared if width >= 256}
    bars = [_of_law(width, batch, interval) for (width, batch), interval in wide.items()]
    inside = [(arm, 0.85, 1.05) for arm in (NONE, LAYER, RMS)] + [(LAYER_AFTER, 1.4, 1.55)]
    for arm, low, high in inside:
        if arm in seen.arms:
            text = f"growth, {arm.name}{'' if arm.after else ' before ReLU'}: {low:g} to {high:g}"
            text = text.replace("no norm before ReLU", "no norm")
            bars.append(Bar.of(text, seen.arms[arm], "{:.3f}", least=low, most=high))
    residual = seen.arms[BATCH_RESIDUAL]
    return [*bars, Bar.of(f"growth, {BATCH_RESIDUAL.name}: at most 1.1", residual, "{:.3f}", most=1.1)]


def _of_law(width: int, batch: int, seen: Interval) -> Bar:
    within = 0.04 if batch >= 128 else 0.03
    share = Interval(*(value / with_batch_norm(batch) for value in seen[:3]), seen.n)
    text = f"growth / law within {within:.0%}, batch norm, width {width}, batch {batch}"
    return Bar.of(text, share, "{:.3f}", least=1 - within, most=1 + within)


def _sentences(plan: Extent, found: Found, seen: Seen) -> list[str]:
    words = {
        "explode": "gradients explode towards the input",
        "vanish": "gradients vanish towards the input",
        "stay": "gradients neither vanish nor explode",
        "unclear": "seeds do not tell whether gradients keep their size",
    }
    lines = [
        f"New networks of {plan.depth} layers of {plan.width} units, batches of {plan.batch}; growth is the factor of "
        f"the squared gradient from a layer to the one before it, between layers {window(plan.depth)[0]} and "
        f"{window(plan.depth)[-1]}; explosion is growth above {EXPLODES:g}, vanishing below {VANISHES:g}."
    ]
    for arm, interval in seen.arms.items():
        squares = found[Case(arm, plan.width, plan.batch)]
        ends = ratio(squares[:, 0], squares[:, -1])
        lines.append(
            f"{arm.name[0].upper()}{arm.name[1:]}: {words[state(interval)]}, growth {interval.text('{:.3f}')}"
            f"{_law_words(arm, plan.batch)}; squared gradient of the first layer over the last {ends.text('{:.2g}')}."
        )
    lines += [
        f"Batch norm and ReLU, width {plan.law_width}, batch {batch}: growth {interval.text('{:.3f}')}, law "
        f"{with_batch_norm(batch):.3f}."
        for batch, interval in seen.batches.items()
    ]
    lines += [
        f"Initial weights times {scale:g} multiply the squared gradient of the first layer by "
        f"{interval.text('{:.2g}')}, {arm.name}."
        for (arm, scale), interval in seen.scales.items()
    ]
    return lines


def _law_words(arm: Arm, batch: int) -> str:
    expected = law(arm, batch)
    if expected is not None:
        return f" (law {expected:.3f})"
    return f" (limit of large batches for batch norm {LIMIT:.3f})" if arm == LAYER_AFTER else ""


def draw(plan: Extent, found: Found) -> dict[str, Figure]:
    """Draw the gradients against the layer, and the growth of all architectures and widths."""
    return {"depth_at_init": _profiles(plan, found), "depth_at_init-growth": _growths(plan, found)}


def _profiles(plan: Extent, found: Found) -> Figure:
    base = {arm: found[Case(arm, plan.width, plan.batch)] for arm in plan.arms}
    relu = {arm: squares for arm, squares in base.items() if arm.activation == "relu" and arm.epsilon < 0.5}
    plain = {arm.name: squares for arm, squares in relu.items() if not arm.residual}
    ends = (NONE, BATCH, LAYER, BATCH_RESIDUAL, NONE_RESIDUAL, LAYER_RESIDUAL)
    residual = {arm.name: base[arm] for arm in ends if arm in base}
    sizes = {f"batch {batch}": found[Case(BATCH, plan.law_width, batch)] for batch in plan.batches}
    looks = {arm.name: plots.Look(arm.norm, "--" if arm.after or arm.residual else "-") for arm in plan.arms}
    batches = {size: plots.Look("batch", dash) for size, dash in zip(sizes, ("-", "-.", ":") * 9, strict=False)}
    with plots.figure(11.4, 4.6) as drawing:
        panels = drawing.subplots(1, 3)
        for axes, values, look in zip(panels, (sizes, plain, residual), (batches, looks, looks), strict=True):
            layers = np.arange(1, plan.depth + 1)
            relative = {arm: squares / squares[:, -1:] for arm, squares in values.items()}
            plots.lines(axes, layers, relative, look)
            plots.logarithmic(axes)
            axes.set(xlabel="layer")
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=1 if values is sizes else 2)
        for batch, squares in zip(plan.batches, sizes.values(), strict=True):
            _draw_law(panels[0], with_batch_norm(batch), squares)
        panels[0].set(title=f"Batch norm, width {plan.law_width}; law dashed", ylabel="squared gradient / last layer's")
        panels[1].set(title=f"Plain, width {plan.width}, batch {plan.batch}")
        panels[2].set(title="Residual (dashed) and plain")
    return drawing


def _draw_law(axes: Axes, rate: float, squares: np.ndarray) -> None:
    """Draw the law through the middle of the measured window."""
    at = window(squares.shape[1])
    centre = np.log(squares / squares[:, -1:]).mean(0)[at - 1].mean()
    axes.plot(at, np.exp(centre) * rate ** (at.mean() - at), color="0.2", linestyle=(0, (4, 3)), linewidth=1.1)


def _growths(plan: Extent, found: Found) -> Figure:
    seen = estimates(plan, found)
    with plots.figure(9.6, 4.2) as drawing:
        left, right = drawing.subplots(1, 2, width_ratios=(1.35, 1))
        for place, (arm, interval) in enumerate(reversed(seen.arms.items())):
            left.plot(interval.mean, place, "o", color=colour(arm.norm), markersize=5)
            left.plot(interval[1:3], (place, place), color=colour(arm.norm))
        left.set_yticks(range(len(seen.arms)), [arm.name for arm in reversed(seen.arms)])
        left.axvspan(VANISHES, EXPLODES, color="0.5", alpha=0.12, linewidth=0)
        left.axvline(LIMIT, color="0.4", linestyle=(0, (4, 3)), linewidth=0.9)
        left.set(title=f"Growth a layer, width {plan.width}, batch {plan.batch}",
                 xlabel=f"growth; dashed: π / (π - 1) = {LIMIT:.3f}; grey: stays")  # fmt: skip
        by_width = np.stack([growth(found[Case(BATCH, width, plan.width_batch)]) for width in plan.widths], 1)
        plots.lines(right, plan.widths, {BATCH.name: by_width}, {BATCH.name: plots.Look("batch")}, marked=True)
        plots.logarithmic(right, x=True)
        right.set_xticks(plan.widths)
        plots.level(right, with_batch_norm(plan.width_batch), "law")
        right.set(
            title=f"Batch norm and ReLU, batch {plan.width_batch}", xlabel="width", ylabel="growth a layer", ylim=(1, 2)
        )
    return drawing


def rows(plan: Extent, found: Found) -> Sequence[Row]:
    """List every number."""
    lines = []
    for case, squares in found.items():
        setting = f"width {case.width}, batch {case.batch}, weights x {case.scale:g}"
        for seed, slope, values in zip(plan.all_seeds(), growth(squares), squares, strict=True):
            lines.append(Row("growth", case.arm.name, setting, seed, float(slope)))
            lines += [
                Row(f"squared gradient of layer {i}", case.arm.name, setting, seed, float(value))
                for i, value in enumerate(values, 1)
            ]
    return lines


STANDARD = Extent()
study = Study(
    name="depth_at_init",
    title="Do gradients explode in deep networks with batch norm?",
    claims=(STABLE, CURES, LAYER_NORM),
    standard=STANDARD,
    quick=dataclasses.replace(
        STANDARD, seeds=2, arms=NEEDED, width=64, law_width=64, batches=(8,), widths=(64,), width_batch=8
    ),
    measure=measure,
    judge=judge,
    draw=draw,
    rows=rows,
)

if __name__ == "__main__":
    main(study, __doc__ or "")
