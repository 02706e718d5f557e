"""Checks of the structure of a model.

Two of them compute where they can, to be sure: NL101 moves a bias, and NL113 compares the inputs of several calls.
"""

from collections.abc import Mapping
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from normlab.doctor.checks.kinds import (
    centres_each_feature,
    group_size,
    is_of_single_examples,
    takes_batch_statistics,
    to_group,
)
from normlab.doctor.checks.measured import calls_are_alike
from normlab.doctor.checks.registry import Fault, Found, Texts, check
from normlab.doctor.patient import Patient
from normlab.doctor.places import relative_change
from normlab.doctor.survey import Failure
from normlab.errors import StatisticsError, one_line
from normlab.tools import Site, leaves

_IOFFE = "Ioffe & Szegedy 2015, https://arxiv.org/abs/1502.03167"


@check("NL101")
def bias_before_norm(patient: Patient) -> Found:
    """A bias right before a norm that subtracts the mean of each feature.

    The layer before has a bias, and the norm is the only consumer of its output. Where there is data, a random vector
    that is added to the bias changes no output in training.
    """
    faults = [Fault(site.path, {}) for site in patient.training.sites if _bias(patient, site) is not None]
    if not faults:
        return
    evidence: Mapping[str, float] = {}
    if patient.variables is not None and not isinstance(jax.tree.leaves(patient.calls)[0], jax.ShapeDtypeStruct):
        moved = _largest_change(patient, faults)
        if moved > (bound := _rounding(patient)):
            faults = [one for one in faults if _largest_change(patient, [one]) <= bound]
            moved = _largest_change(patient, faults) if faults else moved
        evidence = {"largest change of the output": moved}
    texts = Texts(
        title="a redundant bias before the norm",
        why="The norm subtracts the mean, and the bias with it: it costs memory and time, and never learns.",
        source=f"{_IOFFE}, section 3.2; keras-team/keras-cv#697",
        remedy="use_bias=False  # in the layer before `{path}`",
    )
    if faults:
        faults[0] = Fault(faults[0].path, evidence)
        yield texts.finding("NL101", "note", faults, threshold=_rounding(patient) if evidence else None)


def _rounding(patient: Patient) -> float:
    """Return the change of an output that rounding explains, in the coarsest type of a norm's input."""
    dtypes = [site.dtype for site in patient.training.sites if jnp.issubdtype(site.dtype, jnp.floating)]
    return max([patient.thresholds.same_output, *(4 * float(jnp.finfo(dtype).eps) for dtype in dtypes)])


def _bias(patient: Patient, site: Site) -> str | None:
    """Return the path of the bias of the layer before a norm that takes it out; `None` without one."""
    if not centres_each_feature(site) or site.before.kind != "linear" or not site.only_use:
        return None
    name = f"{site.before.path}/bias".lstrip("/")
    for path in (name, f"params/{name}"):
        if path in patient.known_leaves:
            return path
    return None


def _largest_change(patient: Patient, faults: list[Fault]) -> float:
    """Return how far an output in training moves, relative to its scale, when the biases are moved at random."""
    rng, moved = np.random.default_rng(patient.options.seed), dict[str, np.ndarray]()
    by_path = patient.training.sites.by_path
    for fault in faults:
        path = _bias(patient, by_path[fault.path])
        assert path is not None
        bias = np.asarray(patient.norm_variables.leaves[path], np.float32)
        moved[path] = bias + rng.standard_normal(bias.shape).astype(np.float32)
    assert patient.variables is not None
    call = patient.few()
    before = patient.output(patient.variables, call, train=True)
    after = patient.output(leaves.replaced(patient.variables, moved), call, train=True)
    return change(before, after)


def change(before: object, after: object) -> float:
    """Return the largest difference of two trees of arrays, each relative to the largest magnitude in its array.

    NaN if that of any array is.
    """
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    found = [relative_change(a, b) for a, b in pairs if jnp.issubdtype(jnp.asarray(a).dtype, jnp.floating)]
    return float(np.max(found, initial=0.0))


@check("NL102")
def batch_of_one_element(patient: Patient) -> Found:
    """Batch statistics over a single element.

    A batch norm in training covers one element on a device; with `axis_name`, on all devices together.
    """
    spread = {one.path for one in patient.training.failures if one.unbound}  # over an unknown number of devices
    single = [site for site in patient.training.sites if _is_single(site) and site.path not in spread]
    faults = [Fault(site.path, {"elements": 1}) for site in single]
    failed = [one for one in patient.training.failures if isinstance(one.error, StatisticsError)]
    faults += [Fault(one.path, {"elements": one.count}) for one in failed if one.kind.name not in _SINGLE]
    texts = Texts(
        title="batch statistics over one element",
        why="One element is its own mean: the output is the bias whatever goes in. Flax returns it, normlab refuses.",
        source="Wu & He 2018, https://arxiv.org/abs/1803.08494; torch.nn.BatchNorm1d refuses such a batch",
        remedy=to_group(patient.sites.by_path.get(faults[0].path) if faults else None),
    )
    yield from texts.findings("NL102", "error", faults, threshold=1)


_SINGLE = ("group", "instance", "layer", "group_whiten")


def _is_single(site: Site) -> bool:
    if not takes_batch_statistics(site) or site.running:
        return False
    whole = site.count * max(1, site.repeats) if getattr(site.module, "axis_name", None) else site.count
    return whole == 1


@check("NL103")
def example_of_one_element(patient: Patient) -> Found:
    """A group, instance or layer norm over a single element.

    The positions times the features of a group are one.
    """
    faults = [
        Fault(one.path, {"elements": 1}) for one in patient.sites if is_of_single_examples(one) and one.count == 1
    ]
    failed = [*patient.training.failures, *patient.evaluation.failures]
    paths = dict.fromkeys(one.path for one in failed if _failed_at_one(one))
    faults += [Fault(path, {"elements": 1}) for path in paths]
    texts = Texts(
        title="statistics over one element of an example",
        why="One element is its own mean: the output is the bias whatever goes in.",
        source="torch.nn.functional.instance_norm refuses such an input",
        remedy="nn.LayerNorm()  # in place of `{path}`, or fewer groups",
    )
    yield from texts.findings("NL103", "error", faults, threshold=1)


def _failed_at_one(failure: Failure) -> bool:
    return isinstance(failure.error, StatisticsError) and failure.kind.name in _SINGLE


@check("NL104")
def groups_of_one_channel(patient: Patient) -> Found:
    """A group norm with one channel a group, which is instance norm.

    The group size is 1, and there are positions.
    """
    faults = [Fault(one.path, {"channels in a group": 1}) for one in patient.sites if group_size(one) == 1 < one.count]
    texts = Texts(
        title="groups of one channel: instance norm",
        why="Instance norm takes out contrast, which group norm of wider groups keeps.",
        source="Wu & He 2018, https://arxiv.org/abs/1803.08494, section 3",
        remedy="nn.GroupNorm(num_groups=None, group_size=16)  # at `{path}`, or nn.InstanceNorm() if it is meant",
    )
    yield from texts.findings("NL104", "note", faults, threshold=1)


@check("NL105")
def feature_axis_moved(patient: Patient) -> Found:
    """A feature axis that was moved away before the norm.

    A transpose stands between a linear layer and the norm and puts another axis last; or the input is (N, C, H, W) with
    C of at most 4 and H = W, and meets a layer without a transpose.
    """
    texts = Texts(
        title="the norm takes another axis for the features",
        why="Layers of Flax put features last; scale and bias belong to another axis here, and means mix features.",
        source="google/flax#1848 (layouts of torch and Flax)",
        remedy="x = jnp.moveaxis(x, 1, -1)  # before `{path}`, or the norm's axis=1",
    )
    moved = [Fault(site.path, {"axis of the features": _moved_to(site)}) for site in patient.sites if _is_moved(site)]
    if not moved and (first := _channels_first(patient)) is not None:
        moved = [Fault(first.path, {"channels on axis 1": first.shape[1]})]
    yield from texts.findings("NL105", "warning", moved)


def _moved_to(site: Site) -> int:
    """Return the axis at which the features of the layer before are, whose output has them last."""
    order = site.transposed[1]
    return order.index(len(order) - 1) if order else -1


def _is_moved(site: Site) -> bool:
    producer, order = site.transposed
    return bool(order) and producer.kind == "linear" and _moved_to(site) not in site.features


def _channels_first(patient: Patient) -> Site | None:
    """Return the first norm of a model that was given images with channels on axis 1 and left them there."""
    images = [x for x in jax.tree.leaves(patient.calls[0]) if len(np.shape(x)) == 4] if patient.calls else []
    norms = [site for site in patient.sites if len(site.shape) == 4]
    if not images or not norms:
        return None
    _, channels, height, width = np.shape(images[0])
    first = norms[0]
    untouched = first.shape[1] <= channels and first.shape[1] != first.shape[2] and first.features == (3,)
    return first if channels <= 4 < height == width and images[0].shape[3] > 4 and untouched else None


@check("NL106")
def norm_at_the_end(patient: Patient) -> Found:
    """A norm whose output is the model's.

    All consumers of the output are the model's output.
    """
    ends = [site for site in patient.sites if site.after and all(one.kind == "output" for one in site.after)]
    ends = [site for site in ends if site.kind not in ("weight", "none")]
    texts = Texts(
        title="the norm gives the model's output",
        why="A norm fixes mean and scale of the logits, and a batch norm lets examples of a batch change each other's.",
        source=f"{_IOFFE}, section 3.2 (norms stand before nonlinearities)",
        remedy="# leave out `{path}`, or put it before the last layer",
    )
    if of_batch := [Fault(site.path, {}) for site in ends if takes_batch_statistics(site)]:
        yield texts.finding("NL106", "warning", of_batch)
    if others := [Fault(site.path, {}) for site in ends if not takes_batch_statistics(site)]:
        yield texts.finding("NL106", "note", others)


@check("NL108")
def axis_name_not_bound(patient: Patient) -> Found:
    """An `axis_name` that is not bound in training.

    The call in training fails with it; a `step` that binds it clears the finding.
    """
    mesh = patient.options.mesh
    bound = set[str]() if mesh is None else set(map(str, mesh.axis_names))
    failed = [one for one in patient.training.failures if one.unbound and not one.axes <= bound]
    if not failed:
        return
    if patient.options.step is not None and patient.step_works:
        return
    name = getattr(failed[0].module, "axis_name", "")
    texts = Texts(
        title=f"`axis_name={name!r}` is not bound in training",
        why=f"The training call fails: {one_line(failed[0].error, 160)}",
        source="google/flax#1250, #2606",
        remedy="jax.shard_map(step, mesh=mesh, ...)  # with this axis, or axis_name=None at `{path}`",
    )
    yield texts.finding("NL108", "error", [Fault(one.path, {}) for one in failed])


@check("NL110", "steps")
def momentum_too_slow(patient: Patient) -> Found:
    """A momentum too slow for the number of steps.

    `momentum ** steps`, the share of the initial statistics that is left at the end, exceeds 0.05.
    """
    steps = patient.options.steps
    assert steps is not None
    faults: list[Fault] = []
    for site in patient.sites:
        momentum = getattr(site.module, "momentum", None)
        learns = "mean" in site.variables and takes_batch_statistics(site) and not site.running
        if learns and isinstance(momentum, float):
            left = momentum ** (steps * max(1, site.calls))
            if left > patient.thresholds.forgotten:
                faults.append(Fault(site.path, {"share of the initial statistics": left, "momentum": momentum}))
    texts = Texts(
        title=f"momentum too slow for {steps} steps",
        why="At evaluation the norm still uses a part of the mean 0 and the variance 1 that it started with.",
        source="Wu & Johnson 2021, https://arxiv.org/abs/2105.07576, section 3; pytorch/vision#8250 (0.99 by mistake)",
        remedy=f"momentum={_filled(steps, patient.thresholds.forgotten):.3g}  # at `{{path}}`",
    )
    yield from texts.findings("NL110", "warning", faults, threshold=patient.thresholds.forgotten)


def _filled(steps: int, left: float) -> float:
    """Return a momentum that leaves a tenth of a share after a number of steps."""
    return float(np.floor(1000 * (left / 10) ** (1 / max(1, steps))) / 1000)


@check("NL111")
def statistics_in_half_precision(patient: Patient) -> Found:
    """Statistics that are computed in half precision.

    A norm of Flax with `force_float32_reductions=False`, and an input of half precision.
    """
    half = (jnp.dtype("float16"), jnp.dtype("bfloat16"))
    faults = [
        Fault(site.path, {"bits of the dtype": 16})
        for site in patient.sites
        if getattr(site.module, "force_float32_reductions", True) is False and site.dtype in half
    ]
    texts = Texts(
        title="statistics computed in half precision",
        why="A sum of a few thousand numbers in bfloat16 keeps two digits; the variance may be 0 or negative.",
        source="google/flax#612; keras-team/keras#20257",
        remedy="force_float32_reductions=True  # at `{path}`",
    )
    yield from texts.findings("NL111", "error", faults)


@check("NL112")
def norm_of_a_norm(patient: Patient) -> Found:
    """A norm of a norm's output, with nothing between.

    The nearest producer of the input is a norm; continual norm is one on purpose.
    """
    faults = [Fault(one.path, {}) for one in patient.sites if one.before.kind == "norm" and one.kind != "continual"]
    texts = Texts(
        title="a norm right behind another one",
        why="The second one undoes scale and bias of the first, and costs as much again.",
        source="Xiong et al. 2020, https://arxiv.org/abs/2002.04745 (one norm a sublayer)",
        remedy="# leave out one of the norms at `{path}`",
    )
    yield from texts.findings("NL112", "note", faults)


@check("NL113")
def called_several_times(patient: Patient) -> Found:
    """A batch norm that is called several times in a pass.

    Calls exceed one, and the norm learns running statistics; or a loop runs it with the same statistics each time. A
    `scan` with statistics for each run is no such loop. A note where the calls were measured, and the inputs of each
    have the moments of all together, within the bounds of NL303.
    """
    mixed, alike = list[Fault](), list[Fault]()
    for site in patient.training.sites:
        if "mean" not in site.variables or not takes_batch_statistics(site) or site.running:
            continue
        if (calls := _runs(patient, site)) > 1:
            (alike if calls_are_alike(patient, site) else mixed).append(Fault(site.path, {"calls": calls}))
    texts = Texts(
        title="one batch norm for several inputs",
        why="Its running statistics mix inputs of different layers or steps, and fit none of them at evaluation.",
        source="Cooijmans et al. 2017, https://arxiv.org/abs/1603.09025, section 3 (statistics for each time step)",
        remedy="nn.BatchNorm(name=f'{path}_{i}')  # one for each call, or a layer norm",
    )
    yield from texts.findings("NL113", "warning", mixed, threshold=1)
    same = replace(
        texts,
        title="one batch norm for several inputs that are alike",
        why="Its running statistics fit each of them as long as they stay alike.",
        remedy="nn.BatchNorm(name=f'{path}_{i}')  # one for each call, if inputs grow apart",
    )
    yield from same.findings("NL113", "note", alike, threshold=1)


def _runs(patient: Patient, site: Site) -> int:
    """Return how often a pass runs a norm with the same statistics."""
    calls = max(1, site.calls)
    if "scan" not in site.lifted or "vmap" in site.lifted:
        return calls
    shares = len(np.shape(patient.known_leaves[site.variables["mean"]])) == len(site.features)
    return calls * max(1, site.repeats) if shares else calls
