"""Why a norm is not folded, in one sentence each; an empty text where it can be."""

from normlab.tools.folding.affine import Affine, Numbers
from normlab.tools.folding.kernels import Layout
from normlab.tools.folding.network import Network, divisor_of
from normlab.tools.sites import Site, Source

__all__ = ["FOLDED", "not_affine", "not_before", "not_behind"]

FOLDED = ("batch", "batch_renorm")
"""Kinds of norms that are fixed maps at evaluation."""

_HARMLESS = ("remat", "checkpoint", "jit")


def not_affine(site: Site, network: Network) -> str:
    """Return why a norm is no fixed multiplication and addition for each feature."""
    seen, name = network.seen.get(site.path), f"`{site.path}`"
    if site.library == "user":
        return f"{name} is a `{type(site.module).__name__}`, which does more in `__call__` than a norm."
    if seen is not None and seen.given:
        return f"{name} is given `{seen.given[0]}` in its call."
    if site.kind == "none":
        return ""
    if site.kind not in FOLDED:
        return f"{name} takes its statistics from its input (kind `{site.kind}`)."
    if getattr(site.module, "statistics", "auto") == "batch":
        return f"{name} normalizes by its batch at evaluation, too (`statistics='batch'`)."
    if stacked := [one for one in site.lifted if one not in _HARMLESS]:
        return f"{name} runs inside `{stacked[0]}`, with parameters for many calls."
    if reason := _not_positive(name, divisor_of(network, site)):
        return reason
    return ""


def _not_positive(name: str, variance: Numbers) -> str:
    wrong = variance.ravel()[~(variance.ravel() > 0)]
    return f"{name} has a running variance of {wrong[0]:.3g}, which is not above 0." if wrong.size else ""


def not_before(site: Site, network: Network) -> str:
    """Return why a norm cannot go into the layer before it."""
    name, before = f"`{site.path}`", site.before
    if site.calls > 1:
        return f"{name} is called {site.calls} times."
    if before.kind != "linear":
        return _no_layer(name, before)
    if not site.only_use:
        return f"The output of `{before.path}` is used elsewhere, not only by {name}."
    if reason := _not_once(network, before.path):
        return reason
    layout = network.layout(before.path)
    if layout is None or not _fits(site, network, before.path, layout.outputs):
        return f"The features of {name} are not the output axis of the kernel of `{before.path}`."
    return ""


def _no_layer(name: str, before: Source) -> str:
    if before.kind == "unknown":
        return f"The producer of the input of {name} is unknown."
    where = {"input": "an input of the model", "norm": f"the norm `{before.path}`", "dropout": f"`{before.path}`"}
    return f"{name} follows {where.get(before.kind, f'`{before.operation}`')}, not a layer."


def _not_once(network: Network, layer: str) -> str:
    """Return why a layer does not use its kernel once, and as it is."""
    seen = network.seen[layer]
    if seen.calls > 1:
        return f"`{layer}` is called {seen.calls} times."
    if seen.wrapped:
        return f"The kernel of `{layer}` is normalized on its way."
    stacked = seen.kernel != network.kernel_shape(layer)
    return f"`{layer}` has a stack of kernels, as under `nn.vmap`." if stacked else ""


def _fits(site: Site, network: Network, layer: str, axes: tuple[int, ...]) -> bool:
    """Return whether the features of a norm are the last axes of its input, and as many as some of a kernel."""
    ndim, shape = len(site.shape), network.kernel_shape(layer)
    last = tuple(range(ndim - len(axes), ndim))
    return tuple(site.features) == last and [site.shape[i] for i in last] == [shape[i] for i in axes]


def not_behind(site: Site, network: Network, affine: Affine) -> str:
    """Return why a norm whose only consumer is a layer cannot go into this layer."""
    name, after = f"`{site.path}`", site.after
    layer = after[0].path
    if reason := _not_once(network, layer):
        return reason
    layout = network.layout(layer)
    if layout is None or not _reads(site, network, layer, layout):
        return f"The features of {name} are not the input axis of the kernel of `{layer}`."
    if layout.pads and affine.shift.any():
        return (
            f"{name} comes before `{layer}`, which pads with zeros: its shift would be missing at the border. Use "
            "padding='VALID' or leave it."
        )
    return ""


def _reads(site: Site, network: Network, layer: str, layout: Layout) -> bool:
    """Return whether a layer reads the features of a norm along the input axes of its kernel."""
    ndim, axes = len(site.shape), layout.inputs
    last = tuple(range(ndim - len(axes), ndim))
    shape = network.kernel_shape(layer)
    read = getattr(network.seen[layer].module, "axis", -1)
    chosen = tuple(axis % ndim for axis in ((read,) if isinstance(read, int) else read))
    sizes = [shape[i] * layout.groups for i in axes]
    return bool(axes) and tuple(site.features) == last == chosen and [site.shape[i] for i in last] == sizes
