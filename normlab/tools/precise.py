"""Running statistics from data while the weights stay as they are: PreciseBN (Wu & Johnson, 2021) and its relatives.

References:
    Wu, Johnson. Rethinking "Batch" in BatchNorm. 2021. https://arxiv.org/abs/2105.07576
    Ioffe, Szegedy. Batch Normalization. ICML 2015. https://arxiv.org/abs/1502.03167
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, TypeVar, Unpack

import numpy as np
from flax import linen as nn
from flax import nnx
from jax import Array
from jax.sharding import Mesh

from normlab.errors import BadInput, nearest
from normlab.introspect.applied import Variables
from normlab.introspect.calls import Module
from normlab.tools import leaves
from normlab.tools.averaging import without_check
from normlab.tools.batches import Call, default_call
from normlab.tools.estimation.changes import changes
from normlab.tools.estimation.collecting import Collecting, Collector, Given, Through
from normlab.tools.moments import Estimator, Moments, check_estimator
from normlab.tools.select import Where
from normlab.tools.sites import Site

__all__ = ["Precise", "collect", "cumulative", "precise", "reset"]

Tree = TypeVar("Tree")

_FRESH = {"mean": 0.0, "var": 1.0, "std": 1.0, "phi": 1.0, "run": 1.0, "chi": 1.0, "matrix": 1.0, "step": 0.0}
_STATISTICS = _FRESH.keys() - {"step"}

STILL = 1e-6
"""Largest change of statistics, in standard deviations, that is none."""


@dataclass(frozen=True, eq=False)
class Precise:
    """A model with statistics estimated from data.

    Attributes:
        variables: Variables of a Linen model; of an NNX model, its state.
        model: The model: the given one for Linen, a copy with the new statistics for NNX.
        moments: Moments of what the norms were given.
        change: How far the statistics of each norm moved, from those given: the largest distance of a feature's mean or
            deviation, in standard deviations, and that of an element of a whitening matrix, beside its diagonal.
        examples: Examples that were read, in each pass.
        passes: Passes over the batches.
        moving: Norms whose statistics the last pass still changed, and by how much; nothing where they are settled.
    """

    variables: Variables
    model: Module
    moments: Moments
    change: Mapping[str, float]
    examples: int
    passes: int
    moving: Mapping[str, float]


def precise(
    model: Module,
    variables: Given,
    batches: Iterable[object],
    *,
    call: Call = default_call,
    estimator: Estimator = "population",
    through: Through = "batch",
    where: Where = None,
    train: Mapping[str, object] | None = None,
    evaluate: Mapping[str, object] | None = None,
    rngs: Mapping[str, Array] | None = None,
    limit: int | None = None,
    weights: Callable[[object], Array] | None = None,
    mesh: Mesh | None = None,
    progress: Callable[[int], object] | None = None,
) -> Precise:
    """Estimate running statistics from data while the weights stay as they are (PreciseBN: Wu & Johnson, 2021).

    Statistics are moments of what each norm is given, so that momentum, schedules and the corrections of batch renorm
    play no part; each norm gets back what it keeps, such as the covariances of whitening, the moments of each domain or
    mean squares. Buffers that only training fills stay. Nothing else changes: neither other collections nor what was
    given.

    Args:
        model: A module of Linen or NNX.
        variables: Variables of a Linen model, or an average of them; `None` for NNX.
        batches: Batches of data; with `through="evaluation"` they are read again in each pass.
        call: `batch -> (args, kwargs)` of the model.
        estimator: `population`: mean and total variance of all elements. `paper`: mean of batch means, and mean of
            batch variances times m / (m - 1), from batches of one size.
        through: Statistics by which norms normalize meanwhile. `batch`: those of the batch, in one pass. `evaluation`:
            those found so far, as the deployed model will normalize; passes repeat until nothing changes, at most as
            many as there are norms.
        where: Norms to estimate: a glob over their paths, several globs, or a function of a `Site`; `None` is all but
            frozen ones.
        train: Keywords of a call in training, such as `{"train": True}`; `None` finds them in the signature. Dropout is
            off unless they are given here and `rngs` has a stream `dropout`.
        evaluate: Keywords of a call at evaluation, likewise.
        rngs: Random streams of the calls; each batch gets its own.
        limit: Batches to read, at most; `None` is all.
        weights: `batch -> weight of each example`; `None` counts all the same.
        mesh: Devices over which the examples of each batch are spread; a batch is still one batch.
        progress: Called with the number of batches read so far.

    Returns:
        The new variables or model, with moments, changes and counts.

    Raises:
        BadInput: If the model keeps no running statistics, there is no batch, batches cannot be read again, or an input
            of a norm is not finite.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = nn.BatchNorm(use_running_average=None)
        >>> variables = model.init(jax.random.key(0), jnp.ones((2, 1)), use_running_average=True)
        >>> batches = [jnp.array([[1.0], [2.0], [3.0]]), jnp.array([[7.0]])]
        >>> found = precise(model, variables, batches)
        >>> found.variables["batch_stats"]
        {'mean': Array([3.25], dtype=float32), 'var': Array([5.1875], dtype=float32)}
        >>> found.examples
        4

    References:
        Wu, Johnson. Rethinking "Batch" in BatchNorm. 2021. https://arxiv.org/abs/2105.07576
    """
    check_estimator(estimator)
    options: Collecting = {"call": call, "through": through, "where": where, "train": train, "evaluate": evaluate}
    options |= {"rngs": rngs, "limit": limit, "weights": weights, "mesh": mesh, "progress": progress}
    collector = Collector(model, variables, **options)
    found = _passes(collector, batches, estimator, once=through == "batch")
    return Precise(
        variables=found.variables,
        model=model if isinstance(model, nn.Module) else _with_statistics(model, variables, found.moments, estimator),
        moments=found.moments,
        change=changes(found.moments, collector.variables, found.variables),
        examples=found.moments.examples,
        passes=found.number,
        moving={} if through == "batch" else _moving(found, collector.norms),
    )


def collect(model: Module, variables: Given, batches: Iterable[object], **options: Unpack[Collecting]) -> Moments:
    """Return the moments of what the norms of a model are given, in one pass.

    Moments of different batches, files or processes can be added, and are written into variables by `Moments.apply`.

    Args:
        model: A module of Linen or NNX.
        variables: Variables of a Linen model, or an average of them; `None` for NNX.
        batches: Batches of data; there may be none.
        **options: Options of `precise`, but for `estimator`.

    Returns:
        Moments, empty without a batch.

    Raises:
        BadInput: If the model keeps no running statistics, or an input of a norm is not finite.
    """
    collector = Collector(model, variables, **options)
    return collector.moments(collector.variables, batches)


def reset(model: Module, variables: Given = None, *, where: str | Iterable[str] | None = None) -> Any:
    """Return variables whose running statistics are those of a fresh model.

    Means and steps are 0, variances, deviations and mean squares 1, and whitening matrices the identity.

    Args:
        model: A module of Linen or NNX.
        variables: Variables of a Linen model; `None` for NNX.
        where: Norms to reset: a glob over their paths, or several; `None` is all.

    Returns:
        New variables for Linen; a copy of the model for NNX. Norms with statistics of other names stay as they are.

    Raises:
        BadInput: If there is no such norm.
    """
    if isinstance(model, nnx.Module):
        graph, state = nnx.split(model)
        return nnx.merge(graph, _reset(state, where))
    return _reset(without_check(variables), where)


def cumulative(model: Module, variables: Given, batches: Iterable[object], **options: Unpack[Collecting]) -> Any:
    """Return running statistics as training with `momentum=None` leaves them: plain averages over the batches.

    Args:
        model: A module of Linen or NNX.
        variables: Variables of a Linen model, or an average of them; `None` for NNX.
        batches: Batches of data.
        **options: Options of `precise`, but for `estimator`.

    Returns:
        New variables for Linen; a copy of the model for NNX.

    Raises:
        BadInput: If the model keeps no running statistics, there is no batch, or an input of a norm is not finite.
    """
    moments = collect(model, variables, batches, **options)
    if not moments.batches:
        raise _none(1)
    if isinstance(model, nnx.Module):
        return _with_statistics(model, variables, moments, "average")
    return moments.apply(without_check(variables), "average")


class _Pass(NamedTuple):
    """The last pass over the batches: its number, what it found, and how far it moved the statistics."""

    number: int
    moments: Moments
    variables: Variables
    moved: Mapping[str, float]


def _passes(collector: Collector, batches: Iterable[object], estimator: Estimator, *, once: bool) -> _Pass:
    """Estimate statistics in passes until they change no more, or as often as there are norms."""
    number, variables = 0, collector.variables
    while True:
        number += 1
        moments = collector.moments(variables, batches)
        if not moments.batches:
            raise _none(number)
        before, variables = variables, moments.apply(variables, estimator)
        moved = changes(moments, before, variables)
        if once or number == len(collector.norms) or max(moved.values(), default=0) <= STILL:
            return _Pass(number, moments, variables, moved)
        if isinstance(batches, Iterator):
            raise _none(number + 1)


def _none(number: int) -> BadInput:
    """Return the error for a pass without a batch."""
    if number == 1:
        return BadInput("Expected at least one batch, got none. Pass a list of batches, or a loader that is not empty.")
    return BadInput(
        f"Expected batches that can be read again, got an iterator that is exhausted on pass {number} "
        "(`through='evaluation'`). Pass a list, or an object whose `__iter__` starts anew."
    )


def _moving(found: _Pass, norms: Sequence[Site]) -> dict[str, float]:
    """Return the norms that are not settled: pass n settles norm n of a sequence, whose change there is its last."""
    moved = {path: change for path, change in found.moved.items() if change > STILL}
    last = norms[found.number - 1]
    return {} if set(moved) == {last.path} and last.calls == 1 else moved


def _with_statistics(model: nnx.Module, variables: Given, moments: Moments, estimator: Estimator) -> nnx.Module:
    """Return a copy of an NNX model, perhaps with another state, with new statistics."""
    twin = nnx.clone(model)
    if variables is not None:
        nnx.update(twin, without_check(variables))
    return moments.apply(twin, estimator)


def _reset(tree: Tree, where: str | Iterable[str] | None) -> Tree:
    """Return a tree with the statistics of a fresh model at some norms."""
    norms = {
        path: names
        for path, names in leaves.statistics(tree).items()
        if _STATISTICS & names.keys() and _FRESH.keys() >= names.keys()
    }
    globs = [where] if isinstance(where, str) else list("*" if where is None else where)
    for glob in globs:
        if not any(fnmatchcase(path, glob) for path in norms):
            raise BadInput(
                f"Expected a glob that matches the path of a norm with running statistics, got `{glob}`. "
                f"{nearest(glob, norms)}"
            )
    there, values = leaves.by_path(tree), dict[str, np.ndarray]()
    for path, names in norms.items():
        if any(fnmatchcase(path, glob) for glob in globs):
            values |= {names[name]: _fresh(name, np.shape(there[names[name]])) for name in names}
    return leaves.replaced(tree, values)


def _fresh(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return a statistic of a fresh model."""
    value = np.eye(shape[-1]) if name == "matrix" else _FRESH[name]
    return np.broadcast_to(value, shape)
