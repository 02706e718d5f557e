"""Is the bias before batch norm redundant?

Batch norm subtracts the mean, so a bias before it changes nothing, and its gradient is zero: exactly, not on average.
The script trains an MLP on images at several batch sizes, with the norm before and after the activation and without
one. It measures the gradient of a bias beside its kernel's, and the largest bias at the end; the same networks without
biases have the same initial weights and see the same batches. In two cases the bias counts: the norm stands after the
activation, whose kink the bias moves; and running statistics are held fixed.

    python experiments/bias.py --output FOLDER
    python experiments/bias.py --data digits --quick
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import Array
from matplotlib.figure import Figure

from experiments.claims import images, networks, plots
from experiments.claims.estimates import SIGNED, Interval, average, points
from experiments.claims.images import Images
from experiments.claims.study import Plan, Study, main
from experiments.claims.trainer import Budget, Moment, Settings, error, loss, train
from experiments.claims.verdicts import Bar, Claim, Finding, Judgement, Row, Verdict
from normlab.introspect.pure import Network

REDUNDANT = Claim(
    key="redundant",
    text="The bias of a layer before batch norm is redundant.",
    source="Ioffe & Szegedy 2015, section 3.2; most tutorials",
)
BEFORE, AFTER, FIXED, NONE = "batch norm before", "batch norm after", "running statistics", "no norm"
NORMS = {
    BEFORE: "batch:momentum=0.9",
    AFTER: "batch:momentum=0.9",
    FIXED: "batch:statistics=running,momentum=1.0",
    NONE: "none",
}
LOOKS = {
    BEFORE: plots.Look("batch"),
    AFTER: plots.Look("batch", "--"),
    FIXED: plots.Look("batch", ":"),
    NONE: plots.Look("none"),
}
EXACT, MATTERS = 1e-6, 1e-3
"""Gradient of a bias, as a share of its kernel's, up to which it is rounding, and from which it counts."""


@dataclass(frozen=True, kw_only=True)
class Extent(Plan):
    """Extent of the study; learning rates are proportional to the batch, and `rate` belongs to the largest one."""

    batches: tuple[int, ...] = (2, 8, 32)
    steps: int = 1_000
    width: int = 100
    rate: float = 0.05


@dataclass(frozen=True, kw_only=True)
class Arm:
    """Measurements of one arm at one batch size; arrays [seeds].

    Attributes:
        gradient: Root mean square over training of a bias's gradient, as a share of its kernel's; the larger layer's.
        bias: Largest absolute bias at the end.
        error: Test error.
        without: Test error of the same network without biases.
    """

    gradient: np.ndarray
    bias: np.ndarray
    error: np.ndarray
    without: np.ndarray


Found = Mapping[tuple[str, int], Arm]


def measure(plan: Extent) -> Found:
    """Train every arm at every batch size, with and without biases."""
    data = images.load(plan.data, plan.data_dir, side=14)
    return {(arm, batch): trained(plan, data, arm, batch) for arm in LOOKS for batch in plan.batches}


def made(plan: Extent, data: Images, arm: str, *, bias: bool) -> Network:
    """Make the network of an arm."""
    placement = "after" if arm == AFTER else "before"
    own = {"kernel_scale": networks.LECUN, "placement": placement, "use_bias": bias}
    return networks.made(f"mlp-2x{plan.width}", NORMS[arm], data, **own)


def trained(plan: Extent, data: Images, arm: str, batch: int) -> Arm:
    """Train one arm with and without biases."""
    net, bare = (made(plan, data, arm, bias=bias) for bias in (True, False))
    budget = Budget(steps=plan.steps, batch=batch, every=plan.steps // 10, cosine=True)
    settings = Settings(list(plan.all_seeds()), plan.rate * batch / max(plan.batches))

    def shares(moment: Moment) -> Array:
        def objective(outputs: Array) -> tuple[Array, None]:
            return loss(outputs, moment.batch.labels), None

        _, gradients, _ = net.gradients(objective, moment.params, moment.state, moment.batch.inputs, moment.t)
        layers = [gradients[f"dense_{i}"] for i in range(2)]
        return jnp.array([[jnp.sum(layer[name] ** 2) for name in ("bias", "kernel")] for layer in layers])

    runs = train(net, data, budget, settings, observe=shares)
    squares = np.asarray(runs.seen, np.float64).sum(1)  # over training: [runs, layers, bias and kernel]
    biases = jnp.stack([runs.params[f"dense_{i}"]["bias"] for i in range(2)])
    return Arm(
        gradient=np.sqrt(squares[..., 0] / squares[..., 1]).max(1),
        bias=np.asarray(jnp.abs(biases).max((0, 2))),
        error=error(net, runs, data.test),
        without=error(bare, train(bare, data, budget, settings), data.test),
    )


def judge(plan: Extent, found: Found) -> Judgement:
    """Compute the verdict and the paragraph."""
    largest = {arm: float(np.max([found[arm, batch].gradient for batch in plan.batches])) for arm in LOOKS}
    differences = {key: points(arm.error, arm.without) for key, arm in found.items()}
    return Judgement(
        findings=(_verdict(plan, largest, differences),),
        bars=_bars(plan, largest, found, differences),
        sentences=tuple(_sentences(plan, largest, found, differences)),
    )


def _verdict(plan: Extent, largest: Mapping[str, float], differences: Mapping[tuple[str, int], Interval]) -> Finding:
    exact = largest[BEFORE] <= EXACT
    counts = [arm for arm in (AFTER, FIXED) if largest[arm] >= MATTERS]
    when = "the norm stands before the activation and takes the statistics of the batch"
    return Finding(
        claim=REDUNDANT,
        verdict=(Verdict.HOLDS_WHEN if counts else Verdict.HOLDS) if exact else Verdict.FAILS,
        when=when if counts and exact else "",
        effect="test error with biases - without, points, norm before the activation",
        seen=differences[BEFORE, plan.batches[-1]],
        network=networks.title(f"mlp-2x{plan.width}"),
        data=images.title(plan.data),
    )


def _bars(
    plan: Extent,
    largest: Mapping[str, float],
    found: Found,
    differences: Mapping[tuple[str, int], Interval],
) -> tuple[Bar, ...]:
    size = max(float(found[BEFORE, batch].bias.max()) for batch in plan.batches)
    widest = max((differences[BEFORE, batch] for batch in plan.batches), key=lambda d: d.size)
    return (
        Bar(
            f"gradient of a bias before batch norm at most {EXACT:g} of its kernel's",
            f"{largest[BEFORE]:.1e}",
            largest[BEFORE] <= EXACT,
        ),
        Bar.of("errors with and without biases within 0.3 points", widest, SIGNED, least=-0.3, most=0.3),
        Bar("the bias stays below 1e-6", f"{size:.1e}", size < 1e-6),
    )


def _sentences(
    plan: Extent,
    largest: Mapping[str, float],
    found: Found,
    differences: Mapping[tuple[str, int], Interval],
) -> list[str]:
    lines = []
    for arm in LOOKS:
        biases = average([found[arm, plan.batches[-1]].bias])
        errors = ", ".join(f"{differences[arm, b].text('{:+.2f}')} at batch {b}" for b in plan.batches)
        lines.append(
            f"{arm.capitalize()}: the gradient of a bias is at most {largest[arm]:.1e} of its kernel's; the largest "
            f"bias is {biases.text('{:.2g}')} after training with batches of {plan.batches[-1]}; the test error with "
            f"biases differs by {errors} points."
        )
    return lines


def draw(plan: Extent, found: Found) -> dict[str, Figure]:
    """Draw the gradients and the differences of errors against the batch size."""
    with plots.figure(9.6, 3.8) as drawing:
        left, right = drawing.subplots(1, 2)
        for axes, quantity in ((left, "gradient"), (right, "difference")):
            by_arm = {arm: np.stack([_of(found[arm, b], quantity) for b in plan.batches], 1) for arm in LOOKS}
            plots.lines(axes, plan.batches, by_arm, LOOKS, marked=True)
            plots.logarithmic(axes, x=True)
            axes.set(xlabel="batch size")
        plots.logarithmic(left)
        left.set(title="Gradient of a bias, as a share of its kernel's", ylabel="root mean square over training")
        right.set(title="Test error with biases - without", ylabel="points")
        plots.legend(drawing, left)
    return {"bias": drawing}


def _of(arm: Arm, quantity: str) -> np.ndarray:
    return np.maximum(arm.gradient, 1e-12) if quantity == "gradient" else 100 * (arm.error - arm.without)


def rows(plan: Extent, found: Found) -> Sequence[Row]:
    """List every number."""
    return [
        Row(quantity, name, f"batch {batch}", seed, float(value))
        for (name, batch), arm in found.items()
        for quantity in ("gradient", "bias", "error", "without")
        for seed, value in zip(plan.all_seeds(), getattr(arm, quantity), strict=True)
    ]


study = Study(
    name="bias",
    title="Is the bias before batch norm redundant?",
    claims=(REDUNDANT,),
    standard=Extent(),
    quick=Extent(seeds=2, batches=(8,), steps=100),
    measure=measure,
    judge=judge,
    draw=draw,
    rows=rows,
)

if __name__ == "__main__":
    main(study, __doc__ or "")
