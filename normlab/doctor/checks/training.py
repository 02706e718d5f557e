"""Checks of a step of training and of its optimizer."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from normlab.doctor.checks.kinds import frozen, takes_batch_statistics
from normlab.doctor.checks.registry import Fault, Found, Texts, check
from normlab.doctor.patient import Patient
from normlab.doctor.skip import Skip
from normlab.tools import Site, leaves

if TYPE_CHECKING:
    import optax

_UPDATES = 10


@check("NL109", "step")
def statistics_of_each_device(patient: Patient) -> Found:
    """Statistics of each device, though devices share a batch.

    The step calls a batch norm inside of `shard_map` or `pmap`, and nothing between its input and output reduces over a
    mapped axis; `ghost_batch_size` says that it is meant.
    """
    faults = []
    for path, reduces in patient.in_devices.items():
        site = patient.sites.by_path.get(path)
        if site is None or reduces or not takes_batch_statistics(site) or site.running:
            continue
        if not getattr(site.module, "ghost_batch_size", None):
            faults.append(Fault(path, {}))
    texts = Texts(
        title="each device takes statistics of its own part of the batch",
        why="The batch that the norm sees is smaller than the batch, and replicas learn different statistics.",
        source="google/flax#319, #902",
        remedy="nn.BatchNorm(axis_name='data')  # at `{path}`, with the name of the mapped axis",
    )
    yield from texts.findings("NL109", "warning", faults)


@check("NL204", "step")
def several_updates(patient: Patient) -> Found:
    """Several updates of the running statistics in a step.

    The share of the way from the old statistics to the batch's own that a step went, 1 - momentum ** k, gives k, the
    median over norms; a counter of steps gives it where there is one. k exceeds 1.3.
    """
    if patient.stepped.lost:
        raise Skip("the step fails, see NL205")
    updates = patient.updates
    if not updates:
        return
    k = float(np.median(list(updates.values())))
    texts = Texts(
        title=f"{k:.2g} updates of the running statistics in a step",
        why="The effective momentum is momentum ** k: most often the training call runs k times in a step.",
        source="andreped/GradientAccumulator#6; giotto-ai/giotto-deep#75 (accumulation of gradients)",
        remedy="momentum=momentum ** (1 / calls)  # at `{path}`, or keep the statistics of one call a step",
    )
    most = 1 + patient.thresholds.decay_updates
    if k > most:
        faults = [Fault(path, {"updates in a step": one}) for path, one in updates.items() if one > most]
        yield texts.finding("NL204", "warning", faults, threshold=most, certain=False)


@check("NL205", "step")
def updates_lost(patient: Patient) -> Found:
    """Updates of the running statistics that are lost.

    They are the same to the bit after two steps, or the step fails because it may not write them.
    """
    found, norms = patient.stepped, [site for site in patient.sites if _learns(site)]
    faults = [Fault(site.path, {}) for site in norms if found.lost or _same(patient, site)]
    texts = Texts(
        title="a step loses the updates of the running statistics",
        why="Evaluation normalizes by the statistics that the model started with.",
        source="HomericIntelligence/Odyssey#5543 (10 % accuracy); google/flax#1489",
        remedy="state = state.replace(batch_stats=updates['batch_stats'])  # after apply(..., mutable=['batch_stats'])",
    )
    yield from texts.findings("NL205", "error", faults)


def _learns(site: Site) -> bool:
    return "mean" in site.variables and not frozen(site) and not site.running


def _same(patient: Patient, site: Site) -> bool:
    names = [site.variables[role] for role in ("mean", "var", "std") if role in site.variables]
    before, later = patient.stepped.before, patient.stepped.later
    return all(name in later and np.array_equal(before[name], later[name]) for name in names)


@check("NL206", "optimizer")
def weight_decay_on_norms(patient: Patient) -> Found:
    """Weight decay on the scale or bias of a norm.

    At gradients of zero, the optimizer's first ten updates differ between parameters of one and of zero. Noise that
    the optimizer adds is the same in both.
    """
    moved = _moved_by_decay(patient)
    faults = []
    for site in patient.sites:
        names = [site.variables[role] for role in ("scale", "bias") if role in site.variables]
        far = max((moved.get(name.removeprefix("params/"), 0.0) for name in names), default=0.0)
        if far > 0 and site.kind != "weight":
            faults.append(Fault(site.path, {"update at no gradient": far}))
    texts = Texts(
        title="weight decay on the scale or bias of a norm",
        why="The scale shrinks, which changes nothing that the network can represent; recipes leave it out.",
        source="He et al. 2019, https://arxiv.org/abs/1812.01187, section 3.1; huggingface/transformers#4360",
        remedy="optax.adamw(rate, mask=normlab.tools.decay_mask(model, variables, x))  # spares `{path}`",
    )
    yield from texts.findings("NL206", "warning", faults, threshold=0)


def _moved_by_decay(patient: Patient) -> dict[str, float]:
    """Return how far the optimizer moves each parameter because of its size, by path."""
    optimizer = patient.options.optimizer
    assert optimizer is not None
    if isinstance(patient.model, nnx.Module):
        tree: Any = nnx.as_pure(nnx.state(patient.model, nnx.Param))
    else:
        tree = patient.known_variables["params"]
    ones = jax.tree.map(lambda leaf: jnp.ones(jnp.shape(leaf), leaf.dtype), tree)
    total = none = jax.tree.map(jnp.zeros_like, ones)
    for at_one, at_zero in zip(_updates(optimizer, ones), _updates(optimizer, none), strict=True):
        total = jax.tree.map(lambda so_far, a, b: so_far + jnp.abs(a - b), total, at_one, at_zero)
    return {path: float(jnp.max(leaf, initial=0)) for path, leaf in leaves.by_path(total).items()}


def _updates(optimizer: "optax.GradientTransformation", parameters: "optax.Params") -> Iterator["optax.Updates"]:
    """Yield the first updates at gradients of zero; several, as a schedule may start at a rate of 0."""
    gradients, state = jax.tree.map(jnp.zeros_like, parameters), optimizer.init(parameters)
    for _ in range(_UPDATES):
        update, state = optimizer.update(gradients, state, parameters)
        yield update


@check("NL207", "step")
def frozen_norm_moves(patient: Patient) -> Found:
    """A frozen norm whose scale or bias a step moves.

    Its scale or bias is not the same to the bit after a step.
    """
    before, after = patient.stepped.before, patient.stepped.after
    faults = []
    for site in patient.sites:
        names = [site.variables[role] for role in ("scale", "bias") if role in site.variables]
        moved = [name for name in names if name in after and not np.array_equal(before[name], after[name])]
        if getattr(site.module, "frozen", False) is True and moved:
            far = max(float(np.max(np.abs(after[name] - before[name]), initial=0)) for name in moved)
            faults.append(Fault(site.path, {"largest change in a step": far}))
    texts = Texts(
        title="the optimizer moves a frozen norm",
        why="A norm that should stay as it was trained drifts, by gradient or by weight decay alone.",
        source="idstcv/SoftTriple#4; google-deepmind/optax#296",
        remedy="optax.multi_transform({..., 'frozen': optax.set_to_zero()}, normlab.tools.labels(model, variables, x))",
    )
    yield from texts.findings("NL207", "warning", faults, threshold=0)
