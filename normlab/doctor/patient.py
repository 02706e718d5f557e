"""A model under examination: its norms, and what is measured of them, each when a check first asks for it."""

import functools
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx
from flax.typing import VariableDict
from jax import Array

from normlab.doctor.measure import Part, measured
from normlab.doctor.options import Options
from normlab.doctor.padding import at_valid, noisy, relative_change
from normlab.doctor.pooled import Pooled, pooled
from normlab.doctor.program import Caller, Program, by_run
from normlab.doctor.skip import Skip
from normlab.doctor.stepping import Stepped, marked, stepped, updates
from normlab.doctor.survey import Survey, survey
from normlab.errors import BadInput, one_line
from normlab.introspect.applied import Variables
from normlab.introspect.calls import Module
from normlab.introspect.modes import Modes, modes, unknown_mode
from normlab.tools import Captured, Site, Sites, leaves
from normlab.tools.batches import Arguments, examples
from normlab.tools.estimation import by_batch
from normlab.tools.estimation.estimated import is_moments

__all__ = ["Patient", "Series", "limited"]

Series: TypeAlias = Mapping[str, tuple[tuple[Part, ...], ...]]
"""For each norm, for each batch, the measurements of each call; a norm in a `scan` has a path `path[i]` a run."""

_FEW = 512
"""Examples of a call that only looks for a change."""

_SAME = 1e-5
"""Change of an input that is only rounding."""


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
        told = {**self.modes.train, **self.modes.evaluate}
        calls = [self.options.call(batch) for batch in self.batches]
        return tuple((args, {k: v for k, v in kwargs.items() if k not in told}) for args, kwargs in calls)

    @functools.cached_property
    def rngs(self) -> dict[str, Array]:
        """Random streams of a call."""
        key = jax.random.key(self.options.seed)
        return dict(self.options.rngs or {name: jax.random.fold_in(key, i) for i, name in enumerate(_STREAMS)})

    @functools.cached_property
    def caller(self) -> Caller:
        """The way the model is called."""
        return Caller(self.model, self.modes, self.options.method, self.rngs)

    # --- structure ---

    @functools.cached_property
    def training(self) -> Survey:
        """The norms in training."""
        return self._survey(train=True)

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
        model = self.model if isinstance(self.model, nn.Module) else _in_mode(self.model, train)
        found = self._survey_of(model, train=train)
        if unbound := tuple(one for one in found.failures if one.unbound):
            with by_batch.linen(dropout=True, options=by_batch.ONE_DEVICE):
                if isinstance(model, nnx.Module):
                    model = by_batch.nnx_copy(model, train=train, dropout=True, options=by_batch.ONE_DEVICE)
                alone = self._survey_of(model, train=train)
            found = Survey(alone.sites, (*unbound, *alone.failures))
        if self._linen and not self.modes.known and any("mean" in site.variables for site in found.sites):
            raise unknown_mode()
        return found

    def _survey_of(self, model: Module, *, train: bool) -> Survey:
        args, kwargs = self.calls[0]
        variables = self._linen_variables(args, kwargs) if self._linen else None
        told, method = self.modes.of(train), self.options.method
        return survey(model, variables, args, kwargs, told=told, train=train, method=method, rngs=self.rngs)

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
        """The norms that can be measured, and those that cannot: under `vmap`, and inside recurrent cells."""
        norms = [site for site in self.sites if site.kind not in ("weight", "none")]
        out = [site for site in norms if "vmap" in site.lifted or not site.shape]
        return tuple(site for site in norms if site not in out), tuple(out)

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
        running = self.running(site)
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
        found: dict[str, list[tuple[Part, ...]]] = {}
        for index in range(len(self.calls)):
            for path, parts in by_run(self.called(index, train, dropout, variables).statistics).items():
                found.setdefault(path, []).append(parts)
        order = {site.path: index for index, site in enumerate(self.sites)}  # of the first calls
        paths = sorted(found, key=lambda path: order[self.site_of(path).path])
        return {path: tuple(found[path]) for path in paths}

    def called(
        self, index: int, train: bool, dropout: bool = False, variables: Variables | None = None
    ) -> Captured[Part]:
        """Call the model with a batch, and measure its norms."""
        given = self.variables if variables is None else variables
        assert given is not None
        captured = self._captures(train, dropout)(given, self.calls[index])
        return Captured(captured.output, captured.variables, jax.device_get(captured.statistics))

    def output(self, variables: Variables, call: Arguments, *, train: bool) -> object:
        """Return the output of a call without dropout."""
        return self._plain_call(train)(variables, call).output

    def few(self, index: int = 0) -> Arguments:
        """Return the arguments of a call with the first examples of a batch."""
        args, kwargs = self.calls[index]
        size = examples(args, kwargs)

        def cut(leaf: Array | np.ndarray) -> Array | np.ndarray:
            return leaf[:_FEW] if np.shape(leaf)[:1] == (size,) else leaf

        return jax.tree.map(cut, (args, dict(kwargs)))

    def _captures(self, train: bool, dropout: bool) -> Program[Part]:
        if (train, dropout) not in self._programs:
            by_path, thresholds = {site.path: site for site in self.lifted_out[0]}, self.thresholds

            def statistic(path: str, number: int, x: Array, mask: Array | None, y: object) -> Part:
                return measured(by_path[path], thresholds, x, mask, y, program.examples)

            program = Program(self.caller, statistic, tuple(by_path), train=train, dropout=dropout)
            self._programs[train, dropout] = program
        return self._programs[train, dropout]

    @functools.cached_property
    def _programs(self) -> dict[tuple[bool, bool], Program[Part]]:
        return {}

    @property
    def _paths(self) -> tuple[str, ...]:
        return tuple(site.path for site in self.lifted_out[0])

    def _plain_call(self, train: bool) -> Program[object]:
        if train not in self._plain_calls:
            self._plain_calls[train] = Program(self.caller, lambda *_: None, (), train=train, dropout=False)
        return self._plain_calls[train]

    @functools.cached_property
    def _plain_calls(self) -> dict[bool, Program[object]]:
        return {}

    def moved_by_padding(self, *, train: bool) -> dict[str, float]:
        """Return how far noise in padded positions moves the outputs of norms at valid ones, relative to their scale.

        Norms whose inputs at valid positions move, too, are left out: the layers before them are to blame.

        Raises:
            Skip: If no array of the call has positions that could be padded.
        """
        assert self.options.padding is not None
        masks = [jnp.asarray(self.options.padding(batch)).astype(bool) for batch in self.batches]
        index = next((i for i, mask in enumerate(masks) if mask.any()), None)
        if index is None:
            raise Skip("no batch has padding")
        padding = masks[index]
        calls = self.calls[index], noisy(self.calls[index], padding, self.options.seed)
        program = Program(self.caller, functools.partial(at_valid, padding), self._paths, train=train, dropout=False)
        assert self.variables is not None
        before, after = (jax.device_get(program(self.variables, call).statistics) for call in calls)
        moved: dict[str, float] = {}
        for path, calls_before in before.items():
            pairs = zip(calls_before[0][0], after[path][0][0], strict=True)
            given, made = (relative_change(one, two) for one, two in pairs)
            if given < _SAME:
                moved[path] = made
        return moved

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
        if not self._linen:
            raise Skip("the norms of an NNX model inside of a step are not followed")
        assert self.options.step is not None
        if self.stepped.lost:
            raise Skip("the step fails, see NL205")
        return marked(self.options.step, self.options.state, self.batches[0])

    @functools.cached_property
    def updates(self) -> dict[str, float]:
        """Updates of its running statistics that a step makes, for each norm where this can be told."""
        self.can_measure  # noqa: B018
        found = self.stepped
        state = nnx.state(found.variables) if isinstance(found.variables, nnx.Module) else found.variables
        runs = by_run(self.called(0, True, self.has_dropout, state).statistics)
        made = {site.path: self._updates(site, runs.get(site.path)) for site in self.sites}
        return {path: one for path, one in made.items() if not math.isnan(one)}

    def _updates(self, site: Site, parts: tuple[Part, ...] | None) -> float:
        before, after, names = self.stepped.before, self.stepped.after, site.variables
        if not {"mean"} <= names.keys() or names["mean"] not in after:
            return math.nan
        if "step" in names and names["step"] in after:
            return float(np.max(after[names["step"]]) - np.max(before[names["step"]]))
        momentum = getattr(site.module, "momentum", None)
        if parts is None or len(parts) != 1 or not isinstance(momentum, float) or "var" not in names:
            return math.nan
        if parts[0].mean.size != before[names["mean"]].size:
            return math.nan
        mean, var = np.asarray(parts[0].mean), np.asarray(parts[0].var)
        deviation = np.sqrt(np.maximum(var, 1e-12))
        pairs = [("mean", mean, deviation), ("var", var, np.maximum(var, 1e-12))]
        old, new, batch = (
            np.concatenate([np.ravel(tree[names[role]] if tree else own) / unit for role, own, unit in pairs])
            for tree in (before, after, None)
        )
        return updates(old, new, batch, momentum)

    # --- statistics ---

    def running_of(self, path: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the running mean and variance of a measured norm as (features,) each, in the order of its features."""
        site = self.site_of(path)
        running = self.running(site)
        if running is None:
            return None
        runs = self.runs(site)
        mean, var = (one.reshape(len(runs), -1) if one.size % len(runs) == 0 else one for one in running)
        index = runs.index(path)
        return (mean[index], var[index]) if mean.shape[0] == len(runs) and mean.ndim == 2 else None

    def running(self, site: Site) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the running mean and variance of a norm; `None` where it keeps none, or not both."""
        names = site.variables
        if not is_moments(site) or not {"var", "std"} & names.keys() or self.variables is None:
            return None
        there = self.leaves
        mean = np.asarray(there[names["mean"]], np.float64)
        if "var" in names:
            return mean, np.asarray(there[names["var"]], np.float64)
        epsilon = float(getattr(site.module, "epsilon", 0.0))
        return mean, np.maximum(np.square(np.asarray(there[names["std"]], np.float64)) - epsilon, 0)

    @functools.cached_property
    def leaves(self) -> Mapping[str, Array | np.ndarray]:
        """Variables by path."""
        return dict(leaves.by_path(self.variables))

    def parameter(self, site: Site, role: str) -> np.ndarray | None:
        """Return a variable of a norm; `None` where it has none."""
        name = site.variables.get(role)
        return None if name is None or name not in self.leaves else np.asarray(self.leaves[name], np.float64)

    @functools.cached_property
    def untouched(self) -> bool:
        """Whether the model is as it was initialized: statistics 0 and 1, scales and biases constant."""
        return all(self.is_fresh(site) and not self.has_learned(site) for site in self.sites)

    def is_fresh(self, site: Site) -> bool:
        """Return whether the running statistics of a norm, if it has any, are mean 0 and variance 1."""
        running = self.running(site)
        if running is None:
            return True
        mean, var = running
        return not mean.any() and np.allclose(var, 1, rtol=0, atol=1e-4)

    def has_learned(self, site: Site) -> bool:
        """Return whether the scale or the bias of a norm differs between its features, as none does at the start."""
        values = [self.parameter(site, role) for role in ("scale", "bias")]
        return any(one is not None and one.size > 1 and np.ptp(one) > 0 for one in values)


_STREAMS = ("params", "dropout")
_LASTING = ("modes", "rngs", "training", "evaluation", "lifted_out", "_programs", "_plain_calls")
"""Attributes that do not depend on the values of variables and batches."""


def _in_mode(model: nnx.Module, train: bool) -> nnx.Module:
    twin = nnx.clone(model)
    (twin.train if train else twin.eval)()
    return twin


def limited(batches: Iterable[object], limit: int) -> tuple[object, ...]:
    """Return the first batches."""
    if isinstance(batches, Mapping | str | Array | np.ndarray) or not isinstance(batches, Iterable):
        raise BadInput("Expected `batches` to be a list of batches, got one batch. Write `[batch]`.")
    several = batches if isinstance(batches, tuple | list) else ()
    arrays = [one for one in several if isinstance(one, np.ndarray | Array | jax.ShapeDtypeStruct)]
    if len({(len(one.shape), str(one.dtype)) for one in arrays}) > 1:
        raise BadInput(
            "Expected `batches` to be a list of batches that are alike, got arrays of shapes "
            f"{', '.join(str(one.shape) for one in arrays)}, which look like one batch. Write `[(inputs, labels)]`."
        )
    return tuple(itertools.islice(batches, limit))
