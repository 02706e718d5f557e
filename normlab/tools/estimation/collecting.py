"""Collect the moments of a model's norms from batches."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import Any, Literal, TypeAlias, TypedDict

import jax
import numpy as np
from flax import linen as nn
from flax import nnx
from flax.typing import VariableDict
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from normlab import expect
from normlab.errors import BadInput
from normlab.introspect.applied import Variables, check_model
from normlab.introspect.calls import Call as ModuleCall
from normlab.introspect.calls import Module
from normlab.introspect.modes import modes, unknown_mode
from normlab.tools import leaves
from normlab.tools.averaging import Unestimated, without_check
from normlab.tools.batches import Call, default_call, examples
from normlab.tools.capture import Capture
from normlab.tools.estimation import by_batch
from normlab.tools.estimation.estimated import all_fixed, chosen, estimated, form, main
from normlab.tools.estimation.parts import Part, part
from normlab.tools.moments import Form, Moments, SiteMoments
from normlab.tools.select import Where
from normlab.tools.sites import Site, Sites, sites

__all__ = ["Calls", "Collecting", "Collector", "Through", "received"]

Through: TypeAlias = Literal["batch", "evaluation"]
"""Statistics by which norms normalize meanwhile: those of the batch, or their running statistics."""

Given: TypeAlias = VariableDict | nnx.State | Unestimated[Any] | None
"""Variables of a Linen model, or an average of them; `None` or another state for an NNX model."""


Calls: TypeAlias = tuple[tuple[Part, ...], ...]
"""For each call of a norm, for each run of the call: the moments."""


class Collecting(TypedDict, total=False):
    """Options of collecting; see `normlab.tools.precise.precise`."""

    call: Call
    through: Through
    where: Where
    train: Mapping[str, object] | None
    evaluate: Mapping[str, object] | None
    rngs: Mapping[str, Array] | None
    limit: int | None
    weights: Callable[[object], Array] | None
    mesh: Mesh | None
    progress: Callable[[int], object] | None


class Collector:
    """A model, compiled to return the moments of what its norms are given.

    Attributes:
        variables: Variables of the Linen model, or the state of the NNX model.
        norms: The norms, in the order of their first calls; empty before the first batch.
    """

    def __init__(
        self,
        model: Module,
        variables: Given,
        *,
        call: Call = default_call,
        through: Through = "batch",
        where: Where = None,
        train: Mapping[str, object] | None = None,
        evaluate: Mapping[str, object] | None = None,
        rngs: Mapping[str, Array] | None = None,
        limit: int | None = None,
        weights: Callable[[object], Array] | None = None,
        mesh: Mesh | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> None:
        """Prepare a model; see `normlab.tools.precise.precise` for the arguments."""
        check_model(model)
        if through not in ("batch", "evaluation"):
            raise BadInput(f"Expected `through` to be 'batch' or 'evaluation', got {through!r}. Choose one.")
        self._call, self._where, self._rngs, self._weights = call, where, rngs, weights
        self._mesh, self._progress = mesh, progress
        self._limit = expect.optional(expect.WHOLE).of("`limit`", limit)
        self._modes = modes(model, train=train, evaluate=evaluate)
        if through == "evaluation" and not self._modes.known:
            raise unknown_mode()
        self._trains = through == "batch"
        self._dropout = train is not None and "dropout" in (rngs or {})
        self._given = model, without_check(variables)
        self.variables = self._given[1] if isinstance(model, nn.Module) else nnx.state(self._copy(self._trains))
        self.norms: tuple[Site, ...] = ()
        self._capture: Capture[Part] | None = None
        self._weights_of_call: Array | None = None
        self._call_of_norm: ModuleCall | None = None

    def moments(self, variables: Variables, batches: Iterable[object]) -> Moments:
        """Return the moments of the norms' inputs, merged over batches.

        Args:
            variables: Variables of the model, or the state of the NNX model.
            batches: Batches of data.

        Raises:
            BadInput: If there is nothing to estimate, or a moment is not finite.
        """
        total, waiting = Moments(), None
        variables = _placed(variables, self._mesh, whole=True)
        for index, batch in enumerate(itertools.islice(batches, self._limit)):
            launched = self._launched(variables, batch, index)
            if waiting is not None:  # one batch behind, so that the device is never idle
                total = total + received(self.norms, self.variables, *waiting)
            waiting = launched
            if self._progress is not None:
                self._progress(index + 1)
        return total if waiting is None else total + received(self.norms, self.variables, *waiting)

    def _launched(self, variables: Variables, batch: object, index: int) -> tuple[Mapping[str, Calls], int, int]:
        """Call the model with a batch; return what its norms were given, and the size and the number of the batch."""
        args, kwargs = _placed(self._call(batch), self._mesh)
        size = examples(args, kwargs)
        told = self._modes.of(self._trains)
        kwargs = {name: value for name, value in kwargs.items() if name not in told}
        rngs = {name: jax.random.fold_in(key, index) for name, key in (self._rngs or {}).items()}
        given = args if self._weights is None else (_placed(jax.numpy.asarray(self._weights(batch)), self._mesh), *args)
        with by_batch.linen(dropout=self._dropout) if isinstance(self._given[0], nn.Module) else nullcontext():
            capture = self._capture = self._capture or self._prepared(args, kwargs)
            captured = capture(variables, *given, rngs=rngs or None, **{**kwargs, **told})
        return captured.statistics, size, index

    def _prepared(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Capture[Part]:
        """Find the norms, and return the program that takes their moments."""
        try:
            found = self._sites(True, args, kwargs)
        except ValueError:
            if (shared := self._shared(args, kwargs)) is not None:
                raise shared from None
            raise
        self.norms = chosen(found, self._where)
        if not self.norms and not self._modes.known:
            raise unknown_mode()
        if not self.norms:
            raise all_fixed(found)
        by_path = {site.path: site for site in self.norms}

        def statistic(path: str, number: int, x: Array, mask: Array | None, y: Any) -> Part:
            call, self._call_of_norm = self._call_of_norm, None
            return part(by_path[path], x, mask, self._weights_of_call, call, train=self._trains)

        def remembered(call: ModuleCall, /) -> object:
            self._call_of_norm = call
            return call.proceed()

        def weighted(module: Callable[..., object], weights: Array, *args: object, **kwargs: object) -> object:
            self._weights_of_call = weights
            return module(*args, **kwargs)

        model = self._given[0] if isinstance(self._given[0], nn.Module) else self._copy(self._trains)
        method = None if self._weights is None else weighted
        return Capture(model, statistic, paths=by_path, method=method, run=remembered)

    def _sites(self, train: bool, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Sites:
        """Return the norms of the model in a mode."""
        model, variables = self._given
        told = dict(self._modes.of(train))
        kwargs = {name: value for name, value in kwargs.items() if name not in told}
        if isinstance(model, nn.Module):
            return sites(model, variables, *args, train=told, **kwargs)
        return sites(self._copy(train), None, *args, train=told, **kwargs)

    def _shared(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> BadInput | None:
        """Return the error for statistics that the runs of a scan share, which Flax cannot train, if there are any."""
        try:
            found = self._sites(False, args, kwargs)
        except ValueError:
            return None
        shapes = {path: np.shape(leaf) for path, leaf in leaves.by_path(self.variables).items()}
        for site in filter(estimated, found):
            features = tuple(map(site.shape.__getitem__, site.features))
            if "scan" in site.lifted and shapes.get(main(site)) == features:
                return _no_own_statistics(site, site.repeats, features, features)
        return None

    def _copy(self, train: bool) -> nnx.Module:
        model, state = self._given
        assert isinstance(model, nnx.Module)
        twin = by_batch.nnx_copy(model, train=train, dropout=self._dropout)
        if state is not None:
            nnx.update(twin, state)
        return twin


def received(
    norms: Iterable[Site], variables: Variables, statistics: Mapping[str, Calls], size: int, index: int
) -> Moments:
    """Return the moments of a batch from what norms were given.

    Args:
        norms: The norms.
        variables: Variables of the model, whose statistics have the shapes that the moments take.
        statistics: By path of a norm, for each of its calls, for each run of this call: the moments.
        size: Examples in the batch.
        index: Number of the batch, for messages.

    Raises:
        BadInput: If a moment is not finite, or the runs of a scan share statistics.
    """
    found: dict[str, SiteMoments] = {}
    forms: dict[str, Form] = {}
    shapes = {path: np.shape(leaf) for path, leaf in leaves.by_path(variables).items()}
    statistics = jax.device_get(statistics)
    for site in norms:
        for runs in statistics.get(site.path, ()):
            one = _moments(_joined(site, runs, shapes[main(site)]))
            _check_finite(site, one, index)
            found[site.path] = found[site.path] + one if site.path in found else one
            forms[site.path] = form(site)
    return Moments(found, forms, 1, size, (size,))


def _placed(tree: Any, mesh: Mesh | None, *, whole: bool = False) -> Any:
    """Put arrays on the devices of a mesh: examples apart where their number allows it, or all on each device."""
    if mesh is None:
        return tree

    def put(leaf: Any) -> Any:
        placed = leaf.sharding if isinstance(leaf, Array) else None
        there = isinstance(placed, NamedSharding) and placed.mesh == mesh
        if there or not isinstance(leaf, Array | np.ndarray):
            return leaf
        apart = not whole and leaf.ndim > 0 and leaf.shape[0] % mesh.size == 0
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(mesh.axis_names) if apart else PartitionSpec()))

    return jax.tree.map(put, tree)


def _joined(site: Site, runs: tuple[Part, ...], shape: tuple[int, ...]) -> Part:
    """Stack the runs of a call under `scan` as the norm's statistics are, each run having its own."""
    features = np.shape(runs[0].near)
    if len(runs) == 1 and shape == features:
        return runs[0]
    leading = shape[: len(shape) - len(features)]
    if shape != (*leading, *features) or int(np.prod(leading)) != len(runs) or not leading:
        raise _no_own_statistics(site, len(runs), shape, features)
    return jax.tree.map(lambda *each: np.reshape(np.stack(each), (*leading, *np.shape(each[0]))), *runs)


def _no_own_statistics(site: Site, runs: int, shape: tuple[int, ...], features: tuple[int, ...]) -> BadInput:
    return BadInput(
        f"Expected statistics of its own for each of the {runs} runs of `{site.path}`, along the first axis, got "
        f"statistics of shape {shape} for features of shape {features}. Write `variable_axes={{'batch_stats': 0}}` in "
        "`nn.scan`, or leave the norm out by `where=`."
    )


def _moments(part: Part) -> SiteMoments:
    mean = np.add(part.near, part.rest, dtype=np.float64)
    return SiteMoments.of_batch(part.counted, mean, part.var, part.covariance, part.matrix)


def _check_finite(site: Site, moments: SiteMoments, index: int) -> None:
    if not (np.isfinite(moments.mean).all() and np.isfinite(moments.m2).all()):
        raise BadInput(
            f"Expected finite inputs of norms, got NaN or infinity at `{site.path}` in batch {index}, counted from 0. "
            "Look at this batch, and at the weights before this norm."
        )
