"""Does batch norm take a quarter of the training time?

The same networks with batch norm, with batch norm folded, and without a norm: a forward pass in training, a whole
update (forward, backward, SGD) and an evaluation. Contenders take turns in shuffled rounds and the clock is the
processor time of one thread, because wall time says little on a machine that is shared. A share is the median over
rounds of 1 - time without / time with. One invocation is not enough: each is a process of its own, and intervals are
over invocations, which are the "seeds" of this study.

    python experiments/step_cost.py --output FOLDER
    python experiments/step_cost.py --quick

The data are noise, so `--data` has no effect. The numbers are those of one device, which the figure names.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from matplotlib.figure import Figure

from benchmarks.speed._timing import interleave
from experiments.claims import networks, plots
from experiments.claims.estimates import Interval, average
from experiments.claims.study import Plan, Study, main
from experiments.claims.trainer import loss
from experiments.claims.verdicts import Bar, Claim, Finding, Judgement, Row, Verdict
from normlab.tools import fold

TUTORIALS = "a widely read tutorial on the drawbacks of batch norm"
QUARTER = Claim(
    key="quarter",
    text="Batch norm takes a quarter of the training time.",
    source=TUTORIALS,
    published="1/4 of an update: ResNet-50 on a Titan X, cuDNN of 2017",
)
GROWS = Claim(key="grows", text="Its share of the time grows with the batch.", source=TUTORIALS)
FREE = Claim(
    key="free",
    text="At evaluation, folded into the layer before, batch norm costs nothing.",
    source="Jacob et al. 2018, section 3.2",
)
WITH, WITHOUT, FOLDED = "batch norm", "no norm", "batch norm, folded"
FORWARD, UPDATE, EVALUATION = "forward", "update", "evaluation"
CLASSES, LARGEST, NOISE = 10, 0.25, 0.05
"""Classes; the share that the claim names; the share up to which evaluations count as equally fast."""

ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
Key = tuple[str, int]
"""A network and a batch size."""


@dataclass(frozen=True, kw_only=True)
class Extent(Plan):
    """Extent of the study; `seeds` are invocations."""

    seeds: int = 5
    rounds: int = 15
    batches: tuple[tuple[str, tuple[int, ...]], ...] = (
        ("MLP 3 x 512", (16, 64, 512)),
        ("conv net", (8, 32, 128)),
        ("ResNet-20", (4, 16)),
    )
    data: str = "noise"

    def cells(self) -> list[Key]:
        """List networks and batch sizes."""
        return [(name, batch) for name, several in self.batches for batch in several]


NETWORKS: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "MLP 3 x 512": ("mlp-3x512", (28, 28, 1)),
    "conv net": ("conv", (32, 32, 3)),
    "ResNet-20": ("resnet-20", (32, 32, 3)),
}
"""Names of the networks, see `networks.described`, and shapes of their images."""

Found = Mapping[Key, Mapping[tuple[str, str], np.ndarray]]
"""Seconds [invocations, rounds] of a pass of an arm, by network and batch size."""


def measure(plan: Extent) -> Found:
    """Measure every network, once in each of several processes."""
    context = multiprocessing.get_context("spawn")
    found: list[dict[Key, dict[tuple[str, str], list[float]]]] = []
    with _on_one_thread():
        for _ in plan.all_seeds():
            with context.Pool(1) as pool:
                found.append(pool.apply(invocation, (plan,)))
    return {
        cell: {key: np.asarray([one[cell][key] for one in found]) for key in found[0][cell]} for cell in plan.cells()
    }


@contextmanager
def _on_one_thread() -> Iterator[None]:
    """Start processes whose XLA has one thread on one processor."""
    before = os.environ.get("XLA_FLAGS")
    os.environ["XLA_FLAGS"] = f"{before or ''} {ONE_THREAD}".strip()
    try:
        yield
    finally:
        if before is None:
            del os.environ["XLA_FLAGS"]
        else:
            os.environ["XLA_FLAGS"] = before


def invocation(plan: Extent) -> dict[Key, dict[tuple[str, str], list[float]]]:
    """Measure every network in this process."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    return {(name, batch): _timed(passes(name, batch), plan.rounds) for name, batch in plan.cells()}


def _timed(contenders: Mapping[tuple[str, str], Callable[[], Any]], rounds: int) -> dict[tuple[str, str], list[float]]:
    """Let the arms of one pass take turns; a weight that another pass has just read would be in the cache."""
    found = dict[tuple[str, str], list[float]]()
    for what in (FORWARD, UPDATE, EVALUATION):
        arms = {key: call for key, call in contenders.items() if key[1] == what}
        found |= interleave(arms, rounds, clock=time.process_time)
    return found


def passes(name: str, batch: int) -> dict[tuple[str, str], Callable[[], Any]]:
    """Return the passes of a network with, without and with folded batch norm, by arm and pass."""
    network, shape = NETWORKS[name]
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(batch, *shape)), jnp.float32)
    labels = jnp.asarray(rng.integers(0, CLASSES, batch))
    found = dict[tuple[str, str], Callable[[], Any]]()
    for arm, norm in ((WITH, "batch"), (WITHOUT, "none")):
        model = networks.model(network, norm, classes=CLASSES)
        variables = model.init(jax.random.key(0), x, train=False)
        for what, program in _programs(model).items():
            found[arm, what] = _call(program, variables, x, labels)
        if arm == WITH:
            folded = fold(model, variables, x, evaluate={"train": False})
            found[FOLDED, EVALUATION] = _call(jax.jit(folded.apply), folded.variables, x)
    return found


def _programs(model: nn.Module) -> dict[str, Callable[..., Any]]:
    def forward(variables: Any, x: jax.Array, labels: jax.Array) -> Any:
        return model.apply(variables, x, train=True, mutable=["batch_stats"])

    def update(variables: Any, x: jax.Array, labels: jax.Array) -> Any:
        others = {name: value for name, value in variables.items() if name != "params"}

        def objective(params: Any) -> Any:
            outputs, after = model.apply({"params": params, **others}, x, train=True, mutable=["batch_stats"])
            return loss(outputs, labels), after

        gradients, after = jax.grad(objective, has_aux=True)(variables["params"])
        return optax.apply_updates(variables["params"], jax.tree.map(lambda g: -0.1 * g, gradients)), after

    def evaluation(variables: Any, x: jax.Array, labels: jax.Array) -> Any:
        return model.apply(variables, x, train=False)

    return {
        what: jax.jit(program) for what, program in ((FORWARD, forward), (UPDATE, update), (EVALUATION, evaluation))
    }


def _call(program: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    return lambda: jax.block_until_ready(program(*arguments))


def share(found: Found, cell: Key, what: str, arm: str = WITH) -> np.ndarray:
    """Return the share of a pass's time that an arm takes beyond no norm, by invocation."""
    times = found[cell]
    return np.median(1 - times[WITHOUT, what] / times[arm, what], axis=-1)


def judge(plan: Extent, found: Found) -> Judgement:
    """Compute the verdicts and the paragraph."""
    updates = {cell: average(share(found, cell, UPDATE)) for cell in plan.cells()}
    folded = {cell: average(share(found, cell, EVALUATION, FOLDED)) for cell in plan.cells()}
    return Judgement(
        findings=(_quarter(plan, updates), _grows(plan, found), _free(plan, folded)),
        bars=_bars(plan, updates, folded),
        sentences=tuple(_sentences(plan, found, updates, folded)),
    )


def _quarter(plan: Extent, updates: Mapping[Key, Interval]) -> Finding:
    largest = max(updates, key=lambda cell: updates[cell].mean)
    reach = [cell for cell, seen in updates.items() if seen.low >= LARGEST]
    every = len(reach) == len(updates)
    if reach:
        verdict = Verdict.HOLDS if every else Verdict.HOLDS_WHEN
    else:
        verdict = Verdict.FAILS if all(seen.high < LARGEST for seen in updates.values()) else Verdict.UNSEEN
    when = ", ".join(map(_named, reach)) if reach and not every else _device()
    return _finding(QUARTER, verdict, f"share of an update, the largest: {_named(largest)}", updates[largest], when)


def _grows(plan: Extent, found: Found) -> Finding:
    growths = dict[str, Interval]()
    for name, several in plan.batches:
        if len(several) > 1:
            first, last = (share(found, (name, batch), UPDATE) for batch in (several[0], several[-1]))
            growths[name] = average(last - first)
    more = [name for name, seen in growths.items() if seen.low > 0]
    less = [name for name, seen in growths.items() if seen.high < 0]
    decides = max(growths, key=lambda name: growths[name].mean)
    if len(more) == len(growths):
        verdict, when = Verdict.HOLDS, _device()
    elif more:
        falls = f"; it falls in {' and '.join(less)}" if less else ""
        verdict, when = Verdict.HOLDS_WHEN, f"the network is {' or '.join(more)}{falls}"
    elif less:
        verdict, when = Verdict.FAILS, _device()
    else:
        verdict, when = Verdict.UNSEEN, _device()
    effect = f"share of an update, largest - smallest batch, where it grows most: {decides}"
    return _finding(GROWS, verdict, effect, growths[decides], when)


def _free(plan: Extent, folded: Mapping[Key, Interval]) -> Finding:
    widest = max(folded, key=lambda cell: folded[cell].mean)
    free = [cell for cell, seen in folded.items() if seen.high <= NOISE]
    costs = [cell for cell, seen in folded.items() if seen.low > NOISE]
    if len(free) == len(folded):
        verdict = Verdict.HOLDS
    elif costs:
        verdict = Verdict.HOLDS_WHEN if free else Verdict.FAILS
    else:
        verdict = Verdict.UNSEEN
    when = ", ".join(map(_named, free)) if verdict == Verdict.HOLDS_WHEN else _device()
    return _finding(FREE, verdict, f"share of an evaluation, the largest: {_named(widest)}", folded[widest], when)


def _finding(claim: Claim, verdict: Verdict, effect: str, seen: Interval, when: str) -> Finding:
    return Finding(
        claim=claim,
        verdict=verdict,
        effect=effect,
        seen=seen,
        network="MLP, conv net, ResNet-20",
        data="noise",
        when=when,
    )


def _named(cell: Key) -> str:
    return f"{cell[0]} at batch {cell[1]}"


def _device() -> str:
    return f"on {jax.default_backend().upper()}, one thread"


def _bars(plan: Extent, updates: Mapping[Key, Interval], folded: Mapping[Key, Interval]) -> tuple[Bar, ...]:
    conv = {cell: seen for cell, seen in updates.items() if cell[0] == "conv net"}
    largest = max(updates.values(), key=lambda seen: seen.high)
    slowest = max(folded, key=lambda cell: folded[cell].size)
    return (
        *(
            Bar.of(f"share of an update, {_named(cell)}, between 0.03 and 0.30", seen, "{:.2f}", least=0.03, most=0.30)
            for cell, seen in conv.items()
        ),
        Bar.of("no share of an update above 0.25", largest, "{:.2f}", most=LARGEST),
        Bar(
            f"evaluation with folded norms within {NOISE:g} of no norm",
            f"{folded[slowest].text('{:+.2f}')}, {_named(slowest)}",
            folded[slowest].size <= NOISE,
        ),
    )


def _sentences(
    plan: Extent, found: Found, updates: Mapping[Key, Interval], folded: Mapping[Key, Interval]
) -> Iterator[str]:
    for cell in plan.cells():
        forward, evaluation = (average(share(found, cell, what)) for what in (FORWARD, EVALUATION))
        yield (
            f"{_named(cell)}: batch norm takes {updates[cell].text('{:.2f}')} of an update, "
            f"{forward.text('{:.2f}')} of a forward pass in training, {evaluation.text('{:.2f}')} of an evaluation, "
            f"and {folded[cell].text('{:.2f}')} of an evaluation where it is folded."
        )


def draw(plan: Extent, found: Found) -> dict[str, Figure]:
    """Draw the parts of an update by network and batch size: batch norm's forward, its backward, and the rest."""
    with plots.figure(9.6, 3.8) as drawing:
        axes = drawing.subplots()
        cells = plan.cells()
        places = np.arange(len(cells))
        totals = np.array([share(found, cell, UPDATE).mean() for cell in cells])
        forwards = np.array([_of_update(found, cell).mean() for cell in cells])
        parts = {
            "rest of the update": 1 - totals,
            "batch norm, backward": totals - forwards,
            "batch norm, forward": forwards,
        }
        below = np.zeros(len(cells))
        for (name, heights), colour in zip(parts.items(), ("0.85", "#8db3d9", "#2f6ea6"), strict=True):
            axes.bar(places, heights, bottom=below, color=colour, label=name, width=0.7)
            below = below + heights
        plots.level(axes, 1 - LARGEST, "a quarter")
        axes.set_xticks(places, [f"{name}\n{batch}" for name, batch in cells])
        axes.set(title=f"Processor time of an update {_device()}", ylabel="share", ylim=(0, 1.02))
        plots.legend(drawing, axes)
    return {"step_cost": drawing}


def _of_update(found: Found, cell: Key) -> np.ndarray:
    """Return the forward pass of batch norm as a share of the update, by invocation."""
    times = found[cell]
    return np.median((times[WITH, FORWARD] - times[WITHOUT, FORWARD]) / times[WITH, UPDATE], axis=-1)


def rows(plan: Extent, found: Found) -> Sequence[Row]:
    """List the median seconds of every pass."""
    return [
        Row(f"seconds of {what}", arm, _named(cell), seed, float(np.median(times[i])))
        for cell in plan.cells()
        for (arm, what), times in found[cell].items()
        for i, seed in enumerate(plan.all_seeds())
    ]


study = Study(
    name="step_cost",
    title="Does batch norm take a quarter of the training time?",
    claims=(QUARTER, GROWS, FREE),
    standard=Extent(),
    quick=Extent(seeds=2, rounds=3, batches=(("MLP 3 x 512", (16, 64)), ("conv net", (8,)))),
    measure=measure,
    judge=judge,
    draw=draw,
    rows=rows,
)

if __name__ == "__main__":
    main(study, __doc__ or "")
