"""Checks of the running statistics, and of whether a call uses those of its mode."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from normlab.doctor.checks.kinds import frozen, takes_batch_statistics
from normlab.doctor.checks.registry import Fault, Found, Texts, check
from normlab.doctor.checks.static import change
from normlab.doctor.patient import Patient
from normlab.doctor.skip import Skip
from normlab.tools import Site, leaves
from normlab.tools.batches import Arguments, examples


@check("NL201", "data")
def never_updated(patient: Patient) -> Found:
    """Running statistics as at the start, though parameters moved.

    Mean 0 and variance 1 in all features, while those of another norm moved, or the scale or bias of some norm differs
    between its features. With a `step`, NL205 decides.
    """
    if patient.options.step is not None:
        raise Skip("a `step` was given, by which NL205 decides")
    norms = [site for site in patient.sites if patient.norm_variables.running(site) is not None and not frozen(site)]
    moved = any(not patient.norm_variables.is_fresh(site) for site in norms) or any(
        map(patient.norm_variables.has_learned, patient.sites)
    )
    fresh = [site for site in norms if patient.norm_variables.is_fresh(site) and _has_moved(patient, site, moved)]
    if fresh:
        faults = [Fault(site.path, {"norms as at the start": len(fresh), "of": len(norms)}) for site in fresh]
        yield _LOST.finding("NL201", "error", faults)


def _has_moved(patient: Patient, site: Site, others: bool) -> bool:
    """Return whether the parameters of a norm moved; for one without any, whether those of others did."""
    return patient.norm_variables.has_learned(site) if {"scale", "bias"} & site.variables.keys() else others


_LOST = Texts(
    title="running statistics were never updated",
    why="Evaluation normalizes by mean 0 and variance 1, which are those of no layer.",
    source="HomericIntelligence/Odyssey#5543 (10 % accuracy); hiwonjoon/tf-frrn#2",
    remedy="y, updates = model.apply(variables, x, train=True, mutable=['batch_stats'])  # and keep `updates`",
)


@check("NL202")
def evaluates_in_training(patient: Patient) -> Found:
    """A batch norm that evaluates in the training call.

    It uses running statistics in training, and a training call leaves them as they are. A note where it is meant: the
    norm is frozen; or its statistics were learned, and the step lets it evaluate, or the model of NNX was given with it
    in evaluation mode beside others in training mode.
    """
    sites = [site for site in patient.training.sites if "mean" in site.variables and (site.running or frozen(site))]
    sites = [site for site in sites if site.path in patient.set_aside or _stays(patient, site)]
    meant = {site.path for site in sites if frozen(site)} | patient.set_aside
    texts = Texts(
        title="the norm evaluates while the model trains",
        why="It normalizes by running statistics, learns none, and its gradient knows nothing of the batch.",
        source="google/flax#2279; keras-team/keras#9965",
        remedy="nn.BatchNorm(use_running_average=not train)  # at `{path}`; frozen=True where it is meant",
    )
    if by_accident := [Fault(site.path, {}) for site in sites if site.path not in meant]:
        yield texts.finding("NL202", "error", by_accident)
    if on_purpose := [Fault(site.path, {}) for site in sites if site.path in meant]:
        yield texts.finding("NL202", "note", on_purpose)


def _stays(patient: Patient, site: Site) -> bool:
    """Return whether a training call leaves the statistics of a norm as they are; True where it cannot be made."""
    try:
        after = leaves.by_path(patient.called(0, True).variables)
    except Skip:
        return True
    name = site.variables["mean"]
    return np.array_equal(np.asarray(after[name]), np.asarray(patient.norm_variables.leaves[name]))


@check("NL203", "data")
def batch_statistics_at_evaluation(patient: Patient) -> Found:
    """Batch statistics at evaluation.

    The output of the first example changes by more than 1e-4 of its scale when the others of its batch are replaced:
    the norms in training mode, and those in evaluation mode that change it.
    """
    patient.can_measure  # noqa: B018
    sites = [site for site in patient.evaluation.sites if takes_batch_statistics(site)]
    if not sites:
        return
    variables, call = patient.variables, patient.few()
    assert variables is not None
    size = examples(*call)
    if size < 2:
        raise Skip("batches have one example each")
    before = patient.output(variables, call, train=False)
    if not any(np.shape(leaf)[:1] == (size,) for leaf in jax.tree.leaves(before)):
        raise Skip("the output has no axis of examples in front")
    other = _with_others(call, patient, size)
    after = patient.output(variables, other, train=False)
    first = [
        jax.tree.map(lambda leaf: leaf[0] if np.shape(leaf)[:1] == (size,) else 0.0, one) for one in (before, after)
    ]
    moved = change(*first)
    if math.isnan(moved):
        raise Skip("the output is not finite")
    if moved <= patient.thresholds.same_output:
        return
    texts = Texts(
        title="the output of an example depends on its batch at evaluation",
        why="Predictions change with what else is in the batch, and a batch of one gives nothing.",
        source="Ioffe & Szegedy 2015, https://arxiv.org/abs/1502.03167, section 3.1; google/flax#932",
        remedy="nn.BatchNorm(use_running_average=not train)  # at `{path}`, and train=False at evaluation",
    )
    paths = [site.path for site in sites if not site.running] or _changing(patient, (call, other), sites)
    faults = [Fault(path, {"change of the output": moved}) for path in paths]
    yield from texts.findings("NL203", "error", faults, threshold=patient.thresholds.same_output)


def _changing(patient: Patient, calls: tuple[Arguments, Arguments], sites: Sequence[Site]) -> list[str]:
    """Return the norms that change the first example with others beside it, though it goes in as it was."""
    bound, changes = patient.thresholds.same_output, patient.changes_of_first(*calls)
    known = {site.path for site in sites}
    found = [path for path, (given, made) in changes.items() if given <= bound < made]
    return [path for path in dict.fromkeys(patient.site_of(path).path for path in found) if path in known]


def _with_others(call: Arguments, patient: Patient, size: int) -> Arguments:
    """Return a call whose first example is as before, and the others are of the next batch, or one of this batch."""
    others = patient.few(1) if len(patient.calls) > 1 else call
    if others is not call and jax.tree.map(np.shape, others) == jax.tree.map(np.shape, call):
        return jax.tree.map(lambda leaf, other: _joined(leaf, other[1:], size), call, others)
    arrays, structure = jax.tree.flatten(call)
    first = next(i for i, leaf in enumerate(arrays) if np.shape(leaf)[:1] == (size,))  # others may be no examples
    arrays[first] = _joined(arrays[first], jnp.repeat(jnp.asarray(arrays[first])[1:2], size - 1, axis=0), size)
    return jax.tree.unflatten(structure, arrays)


def _joined(leaf: ArrayLike, others: ArrayLike, size: int) -> ArrayLike:
    if np.shape(leaf)[:1] != (size,):
        return leaf
    return jnp.concatenate([jnp.asarray(leaf)[:1], jnp.asarray(others)])


@check("NL208", "data")
def replicas_differ(patient: Patient) -> Found:
    """Replicas of the model with different running statistics.

    Variables with an axis of replicas in front, whose statistics are more than 0.1 standard deviations apart.
    """
    bound = patient.thresholds.replicas
    faults = [Fault(path, {"spread in deviations": one}) for path, one in patient.replicas.items() if one > bound]
    texts = Texts(
        title="replicas have different running statistics",
        why="Which replica is saved decides what the model does at evaluation.",
        source="pytorch/pytorch#30718; Megvii-BaseDetection/YOLOX#580",
        remedy="variables = normlab.tools.replicas.reduce(variables)",
    )
    yield from texts.findings("NL208", "warning", faults, threshold=bound)
