"""A model under examination: its norms, and what is measured of them, each when a check first asks for it."""

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx
from flax.typing import VariableDict
from jax import Array
from jax.extend.core import ClosedJaxpr

from normlab.doctor.calling import CallOptions, MeasuringCall, by_run, keep_still, still_norms
from normlab.doctor.measure import CallNumbers, measured
from normlab.doctor.options import Options
from normlab.doctor.places import SAME, at_valid, changes, noisy, of_first, relative_change
from normlab.doctor.pooled import Pooled, pooled
from normlab.doctor.skip import Skip
from normlab.doctor.stepping import Stepped, in_devices, marked, stepped, updates_of
from normlab.doctor.survey import Survey, survey
from normlab.doctor.variables import NormVariables
from normlab.errors import one_line
from normlab.introspect.applied import Variables
from normlab.introspect.calls import Module
from normlab.introspect.markers import Markers
from normlab.introspect.modes import Modes, modes, unknown_mode
from normlab.tools import Captured, Site, Sites, leaves
from normlab.tools.batches import Arguments, examples
from normlab.tools.estimation import by_batch

__all__ = ["Patient", "Series"]

Series: TypeAlias = Mapping[str, tuple[tuple[CallNumbers, ...], ...]]
"""For each norm, for each batch, the measurements of each call; a norm in a `scan` has a path `path[i]` a run."""

_FEW = 512
"""Examples of a call that only looks for a change."""


class Patient:
    """A model, its variables and batches.

    Attributes:
        model: The model; it stays as it is.
        variables: Variables of a Linen model, or the state of an NNX model; `None` where only shapes are known.
        batches: Batches as they were given.
        options: Everything else that was given.
        thresholds: The bounds of the checks.
        replicas: Spread of the replicas' statistics, where the variables had an axis of replicas.
    """

    def __init__(
        self,
        model: Module,
        variables: VariableDict | None,
        batches: Sequence[object],
        options: Options,
        lasting: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        """Take a model in; nothing is computed yet.

        Args:
            model: A module of Linen or NNX.
            variables: Variables of a Linen model, or their shapes.
            batches: Batches of training data.
            options: Everything else.
            lasting: What another patient of the same model knows; see `lasting`.
        """
        vars(self).update(lasting)
        self.model, self.batches, self.options = model, tuple(batches), options
        self._linen = isinstance(model, nn.Module)
        self._shapes = variables
        abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(variables))
        own = None if abstract else variables
        self.variables: Variables | None = own if isinstance(model, nn.Module) else nnx.state(model)
        self.thresholds = options.thresholds
        self.replicas: dict[str, float] = {}

    def lasting(self) -> dict[str, object]:
        """Return what does not depend on the values of variables and batches, compiled programs among it."""
        return {name: vars(self)[name] for name in _LASTING if name in vars(self)}

    @functools.cached_property
    def modes(self) -> Modes:
        """The keywords of a call in training, and at evaluation."""
        return modes(self.model, self.options.method, train=self.options.train, evaluate=self.options.evaluate)

    @functools.cached_property
    def calls(self) -> tuple[Arguments, ...]:
        """The arguments of a call with each batch."""
        modes = {**self.modes.train, **self.modes.evaluate}
        calls = [self.options.call(batch) for batch in self.batches]
        return tuple((args, {k: v for k, v in kwargs.items() if k not in modes}) for args, kwargs in calls)

    @functools.cached_property
    def rngs(self) -> dict[str, Array]:
        """Random streams of a call."""
        key = jax.random.key(self.options.seed)
        return dict(self.options.rngs or {name: jax.random.fold_in(key, i) for i, name in enumerate(_STREAMS)})

    @functools.cached_property
    def call_options(self) -> CallOptions:
        """The way the model is called."""
        return CallOptions(self.model, self.modes, self.options.method, self.rngs, still_norms(self.model))

    # --- structure ---

    @functools.cached_property
    def training(self) -> Survey:
        """The norms in training; those that a step evaluates by statistics that were learned evaluate here, too."""
        found = self._survey(train=True)
        fresh, still = NormVariables(self.variables, found.sites).is_fresh, self._evaluated_by_step
        sites = [replace(one, running=True) if one.path in still and not fresh(one) else one for one in found.sites]
        return Survey(Sites(sites, found.sites.modules), found.failures)

    @functools.cached_property
    def set_aside(self) -> frozenset[str]:
        """The norms that evaluate in training on purpose, by learned statistics: in the step, or as given (NNX)."""
        paths = {*self._evaluated_by_step, *self.call_options.still}
        running = [site for site in self.training.sites if site.running and site.path in paths]
        return frozenset(site.path for site in running if not self.norm_variables.is_fresh(site))

    @functools.cached_property
    def _evaluated_by_step(self) -> frozenset[str]:
        """The norms that the step calls, and always lets evaluate; none where it cannot be traced."""
        if self.options.step is None or not self.batches or self.variables is None:
            return frozenset()
        try:
            markers = self._marked_step[1]
        except Exception:  # for which the checks of the step give the reason
            return frozenset()
        modes: dict[str, set[bool | None]] = {}
        for layer in markers.layers.values():
            modes.setdefault(layer.path, set()).add(layer.running)
        return frozenset(path for path, several in modes.items() if several == {True})

    @functools.cached_property
    def _marked_step(self) -> tuple[ClosedJaxpr, Markers]:
        """The jaxpr of a step, in which the layers are marked."""
        assert self.options.step is not None
        return marked(self.options.step, self.options.state, self.options.read, self.batches[0])

    @functools.cached_property
    def evaluation(self) -> Survey:
        """The norms at evaluation."""
        return self._survey(train=False)

    @property
    def sites(self) -> Sites:
        """The norms: in training, or at evaluation where the call in training fails."""
        return self.training.sites or self.evaluation.sites

    def _survey(self, *, train: bool) -> Survey:
        if not self.calls:
            raise Skip("no batch was given, not even its shape")
        model = self.model if isinstance(self.model, nn.Module) else self._in_mode(self.model, train)
        found = self._survey_of(model, train=train)
        if unbound := tuple(one for one in found.failures if one.unbound):
            with by_batch.linen(dropout=True, options=by_batch.ONE_DEVICE):
                if isinstance(model, nnx.Module):
                    model = by_batch.nnx_copy(model, train=train, dropout=True, options=by_batch.ONE_DEVICE)
                    keep_still(model, self.call_options.still)
                alone = self._survey_of(model, train=train)
            found = Survey(alone.sites, (*unbound, *alone.failures))
        if self._linen and not self.modes.known and any("mean" in site.variables for site in found.sites):
            raise unknown_mode()
        return found

    def _in_mode(self, model: nnx.Module, train: bool) -> nnx.Module:
        twin = nnx.clone(model)
        (twin.train if train else twin.eval)()
        keep_still(twin, self.call_options.still)
        return twin

    def _survey_of(self, model: Module, *, train: bool) -> Survey:
        args, kwargs = self.calls[0]
        variables = self._linen_variables(args, kwargs) if self._linen else None
        mode, method = self.modes.of(train), self.options.method
        return survey(model, variables, args, kwargs, mode=mode, train=train, method=method, rngs=self.rngs)

    def _linen_variables(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> VariableDict:
        """Return the variables of a Linen model, or their shapes where none were given."""
        if self._shapes is not None:
            return self._shapes
        assert isinstance(self.model, nn.Module)
        init = functools.partial(self.model.init, method=self.options.method, **self.modes.evaluate)
        abstract = jax.tree.map(lambda leaf: leaf, (args, dict(kwargs)))
        self._shapes = jax.eval_shape(lambda given: init(self.rngs, *given[0], **given[1]), abstract)
        return self._shapes

    @property
    def known_variables(self) -> Variables:
        """Variables of the model, or their shapes."""
        return self._linen_variables(*self.calls[0]) if self._linen else nnx.state(self.model)

    @functools.cached_property
    def known_leaves(self) -> Mapping[str, Array | np.ndarray]:
        """Variables of the model, or their shapes, by path."""
        return leaves.by_path(self.known_variables)

    @property
    def known_variables_of_linen(self) -> VariableDict | None:
        """Variables of a Linen model, or their shapes; `None` for NNX."""
        return self._linen_variables(*self.calls[0]) if self._linen else None

    # --- measured ---

    @functools.cached_property
    def can_measure(self) -> None:
        """Nothing.

        Raises:
            Skip: If there are no variables or no batches with numbers, or the model cannot be called.
        """
        if self.variables is None:
            raise Skip("no variables were given")
        if not self.calls:
            raise Skip("no batch was given")
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(self.calls)):
            raise Skip("the batches are shapes without numbers")
        if failures := [one for one in self.training.failures if not one.unbound]:
            failure = failures[0]
            raise Skip(f"the model cannot be called in training: {one_line(failure.error, 120)}")
        if not self.lifted_out[0]:
            raise Skip("the model has no norm that can be measured")

    @functools.cached_property
    def lifted_out(self) -> tuple[tuple[Site, ...], tuple[Site, ...]]:
        """The norms that can be measured, and those that cannot: under some `vmap`, and inside recurrent cells."""
        norms = [site for site in self.sites if site.kind not in ("weight", "none")]
        out = [site for site in norms if not site.shape or ("vmap" in site.lifted and not self._is_stacked(site))]
        return tuple(site for site in norms if site not in out), tuple(out)

    def _is_stacked(self, site: Site) -> bool:
        """Return whether a norm under `vmap` has variables of its own in each lane, along the first axis.

        Lanes without are examples, which a batch norm must not take for batches; with a `scan` around or inside, the
        order of both axes is not known.
        """
        shapes = self.known_leaves
        own = [np.shape(shapes[name]) for name in site.variables.values() if name in shapes]
        wide = [shape for shape in own if len(shape) > len(site.features)]
        return "scan" not in site.lifted and bool(wide) and all(shape[0] == site.repeats for shape in wide)

    @functools.cached_property
    def has_dropout(self) -> bool:
        """Whether a dropout reaches a norm in training."""
        return any(site.dropout is not None for site in self.sites)

    @functools.cached_property
    def trained(self) -> Series:
        """Measurements in training, with dropout as the call has it."""
        return self._series(train=True, dropout=True) if self.has_dropout else self.quiet

    @functools.cached_property
    def quiet(self) -> Series:
        """Measurements in training with dropout off."""
        return self._series(train=True, dropout=False)

    @functools.cached_property
    def evaluated(self) -> Series:
        """Measurements at evaluation."""
        return self._series(train=False, dropout=False)

    @functools.cached_property
    def reestimated(self) -> Series:
        """Measurements at evaluation with the statistics of these batches in place of the running ones."""
        values: dict[str, np.ndarray] = {}
        for site in self.lifted_out[0]:
            values |= self._estimated(site)
        assert self.variables is not None
        return self._series(train=False, dropout=False, variables=leaves.replaced(self.variables, values))

    def _estimated(self, site: Site) -> dict[str, np.ndarray]:
        """Return the running statistics that the batches in training imply, by path."""
        running = self.norm_variables.running(site)
        if running is None:
            return {}
        runs = [self.pooled[path] for path in self.runs(site) if path in self.pooled]
        mean, var = (
            np.stack([getattr(run, name) for run in runs]) if runs else np.zeros(0) for name in ("mean", "var")
        )
        if mean.size != running[0].size:
            return {}
        names, epsilon = site.variables, float(getattr(site.module, "epsilon", 0.0))
        known = {"mean": mean, "var": var, "std": np.sqrt(var + epsilon)}
        return {names[role]: value.reshape(running[0].shape) for role, value in known.items() if role in names}

    @functools.cached_property
    def pooled(self) -> dict[str, Pooled]:
        """Moments of each norm's input in training, over all batches."""
        return {path: pooled(self.site_of(path), batches) for path, batches in self.trained.items()}

    @functools.cached_property
    def quiet_pooled(self) -> dict[str, Pooled]:
        """Moments of each norm's input in training without dropout, over all batches."""
        return {path: pooled(self.site_of(path), batches) for path, batches in self.quiet.items()}

    def site_of(self, path: str) -> Site:
        """Return the norm of a path, or of the path of one of its runs."""
        return self.sites.by_path.get(path) or self.sites.by_path[path.rpartition("[")[0]]

    def runs(self, site: Site) -> tuple[str, ...]:
        """Return the paths under which a norm was measured, several in a `scan`."""
        return tuple(path for path in self.trained if self.site_of(path) is site)

    def _series(self, *, train: bool, dropout: bool, variables: Variables | None = None) -> Series:
        self.can_measure  # noqa: B018
        found: dict[str, list[tuple[CallNumbers, ...]]] = {}
        for index in range(len(self.calls)):
            for path, parts in by_run(self.called(index, train, dropout, variables).statistics).items():
                found.setdefault(path, []).append(parts)
        order = {site.path: index for index, site in enumerate(self.sites)}  # of the first calls
        paths = sorted(found, key=lambda path: order[self.site_of(path).path])
        return {path: tuple(found[path]) for path in paths}

    @functools.cached_property
    def random(self) -> frozenset[str]:
        """The norms whose output changes with the random numbers of a call whose dropout is off, in either mode."""
        found = set[str]()
        for train in (True, False) if self.modes.known else (True,):
            series = self.quiet if train else self.evaluated
            again = by_run(self.called(0, train, draw=1).statistics)
            for path, calls in again.items():
                pairs = zip(series[path][0], calls, strict=True)
                if any(relative_change(one.places, other.places) > SAME for one, other in pairs):
                    found.add(path)
        return frozenset(found)

    def called(
        self, index: int, train: bool, dropout: bool = False, variables: Variables | None = None, *, draw: int = 0
    ) -> Captured[CallNumbers]:
        """Call the model with a batch, and measure its norms."""
        given = self.variables if variables is None else variables
        assert given is not None
        captured = self._captures(train, dropout)(given, self.calls[index], draw=draw)
        return Captured(captured.output, captured.variables, jax.device_get(captured.statistics))

    def output(self, variables: Variables, call: Arguments, *, train: bool) -> object:
        """Return the output of a call without dropout."""
        return self._plain_call(train)(variables, call).output

    def changes_of_first(self, call: Arguments, other: Arguments) -> dict[str, tuple[float, float]]:
        """Return how far input and output of each norm at evaluation differ for the first example of two calls."""
        program = MeasuringCall(self.call_options, of_first, self._paths, train=False, dropout=False)
        assert self.variables is not None
        before, after = (jax.device_get(program(self.variables, one).statistics) for one in (call, other))
        return changes(before, after)

    def few(self, index: int = 0) -> Arguments:
        """Return the arguments of a call with the first examples of a batch."""
        args, kwargs = self.calls[index]
        size = examples(args, kwargs)

        def cut(leaf: Array | np.ndarray) -> Array | np.ndarray:
            return leaf[:_FEW] if np.shape(leaf)[:1] == (size,) else leaf

        return jax.tree.map(cut, (args, dict(kwargs)))

    def _captures(self, train: bool, dropout: bool) -> MeasuringCall[CallNumbers]:
        if (train, dropout) not in self._programs:
            by_path, thresholds = {site.path: site for site in self.lifted_out[0]}, self.thresholds

            def statistic(path: str, number: int, x: Array, mask: Array | None, y: object) -> CallNumbers:
                return measured(by_path[path], thresholds, x, mask, y, program.examples)

            program = MeasuringCall(self.call_options, statistic, tuple(by_path), train=train, dropout=dropout)
            self._programs[train, dropout] = program
        return self._programs[train, dropout]

    @functools.cached_property
    def _programs(self) -> dict[tuple[bool, bool], MeasuringCall[CallNumbers]]:
        return {}

    @property
    def _paths(self) -> tuple[str, ...]:
        return tuple(site.path for site in self.lifted_out[0])

    def _plain_call(self, train: bool) -> MeasuringCall[object]:
        if train not in self._plain_calls:
            self._plain_calls[train] = MeasuringCall(self.call_options, lambda *_: None, (), train=train, dropout=False)
        return self._plain_calls[train]

    @functools.cached_property
    def _plain_calls(self) -> dict[bool, MeasuringCall[object]]:
        return {}

    def moved_by_padding(self, *, train: bool) -> dict[str, float]:
        """Return how far noise in padded positions moves the outputs of norms at valid ones.

        Norms whose inputs there change, too, are left out: the layers before them are to blame.

        Raises:
            Skip: If no array of the call has positions that could be padded.
        """
        assert self.options.padding is not None
        masks = [jnp.asarray(self.options.padding(batch)).astype(bool) for batch in self.batches]
        index = next((i for i, mask in enumerate(masks) if mask.any()), None)
        if index is None:
            raise Skip("no batch has padding")
        call, padding = self.calls[index], masks[index]
        statistic = functools.partial(at_valid, padding)
        program = MeasuringCall(self.call_options, statistic, self._paths, train=train, dropout=False)
        assert self.variables is not None
        calls = call, noisy(call, padding, self.options.seed)
        found = changes(*(jax.device_get(program(self.variables, one).statistics) for one in calls))
        return {path: made for path, (given, made) in found.items() if given < SAME}

    # --- steps ---

    @functools.cached_property
    def stepped(self) -> Stepped:
        """The effect of a step of training."""
        if not self.batches:
            raise Skip("no batch was given")
        options = self.options
        assert options.step is not None
        return stepped(options.step, options.state, options.read, self.batches[0])

    @property
    def step_works(self) -> bool:
        """Whether a step of training can be made."""
        try:
            return not self.stepped.lost
        except Exception:
            return False

    @functools.cached_property
    def in_devices(self) -> dict[str, bool]:
        """The norms that the step calls on each device, and whether they reduce over devices there."""
        if self.stepped.lost:
            raise Skip("the step fails, see NL205")
        return in_devices(*self._marked_step)

    @functools.cached_property
    def updates(self) -> dict[str, float]:
        """Updates of its running statistics that a step makes, for each norm where this is known."""
        self.can_measure  # noqa: B018
        found = self.stepped
        state = nnx.state(found.variables) if isinstance(found.variables, nnx.Module) else found.variables
        runs = by_run(self.called(0, True, self.has_dropout, state).statistics)
        made = {site.path: updates_of(site, found, runs.get(site.path, ())) for site in self.sites}
        return {path: one for path, one in made.items() if not math.isnan(one)}

    # --- statistics ---

    @functools.cached_property
    def norm_variables(self) -> NormVariables:
        """The running statistics, scales and biases of the norms."""
        return NormVariables(self.variables, self.sites)

    def running_of(self, path: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the running mean and variance of a measured norm as (features,) each, in the order of its features."""
        site = self.site_of(path)
        running = self.norm_variables.running(site)
        if running is None:
            return None
        runs, features = self.runs(site), self.pooled[path].mean.size
        if running[0].size != len(runs) * features:  # one for all runs
            return None
        mean, var = (one.reshape(len(runs), features)[runs.index(path)] for one in running)
        return mean, var


_STREAMS = ("params", "dropout")
_LASTING = ("modes", "rngs", "training", "evaluation", "lifted_out", "_programs", "_plain_calls")
"""Attributes that do not depend on the values of batches, nor of variables where there is no step."""
