"""Examine a model: find its norms, measure them, and report what is wrong."""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import linen as nn
from flax.typing import VariableDict
from jax import Array
from jax.sharding import Mesh

from normlab import expect
from normlab.doctor.checks import data, state, static, training
from normlab.doctor.checks.data import gaps, lag
from normlab.doctor.checks.registry import CHECKS, Check
from normlab.doctor.findings import Finding, Measurement, Skipped
from normlab.doctor.patient import Options, Patient, limited
from normlab.doctor.report import Report, collected
from normlab.doctor.skip import Skip
from normlab.doctor.stepping import variables_of
from normlab.doctor.thresholds import Thresholds
from normlab.errors import BadInput, nearest, one_line
from normlab.introspect.applied import check_model
from normlab.introspect.calls import Module
from normlab.introspect.modes import Method
from normlab.tools import leaves, replicas
from normlab.tools.batches import Call, default_call

if TYPE_CHECKING:
    import optax

__all__ = ["examine"]

_GROUPS = (static, state, data, training)
"""Modules of checks, which register them when they are imported."""


def examine(
    model: Module,
    variables: VariableDict | None = None,
    batches: Iterable[Any] = (),
    *,
    call: Call = default_call,
    train: Mapping[str, object] | None = None,
    evaluate: Mapping[str, object] | None = None,
    method: Method = None,
    rngs: Mapping[str, Array] | None = None,
    step: Callable[[Any, Any], Any] | None = None,
    state: Any = None,
    read: Callable[[Any], Any] | None = None,
    optimizer: "optax.GradientTransformation | None" = None,
    steps: int | None = None,
    padding: Callable[[Any], Array] | None = None,
    mesh: Mesh | None = None,
    limit: int = 8,
    checks: Collection[str] | None = None,
    ignore: Collection[str] = (),
    thresholds: Thresholds | None = None,
    seed: int = 0,
) -> Report:
    """Examine the norms of a model, Flax's own and those of this package; the model stays as it is.

    Args:
        model: A module of Linen or NNX.
        variables: Variables of a Linen model; `None` takes those in `state`, or checks the structure alone.
        batches: Batches of training data, of which at most `limit` are read. One of `jax.ShapeDtypeStruct` does for
            the structure alone.
        call: `batch -> (args, kwargs)` of the model's call.
        train: Keyword arguments of the call in training; found in the signature where there are some.
        evaluate: Keyword arguments of the call at evaluation, likewise.
        method: The method to be called; `None` is `__call__`.
        rngs: Random streams of the call; `params` and `dropout` unless given.
        step: `(state, batch) -> state`, one step of the optimizer; a tuple's first element is the state. It runs on a
            copy of `state`.
        state: The state that the step is given.
        read: `state -> variables` of a Linen model, or the NNX module; found in the state unless given.
        optimizer: The optimizer, to see whether it shrinks parameters of norms.
        steps: Steps of the whole training.
        padding: `batch -> (batch, positions)` of bools, True where a position is padding.
        mesh: Devices over which the model trains.
        limit: Batches to read, at most.
        checks: Codes of the checks to make; `None` is all.
        ignore: Codes to leave out, each alone or with a glob of paths, such as `NL206@head*`.
        thresholds: Bounds of the checks.
        seed: Seed of everything random.

    Returns:
        The report: the same for the same input.

    Raises:
        BadInput: If the model is no Flax module, the variables are of another model, a code is unknown, or the model
            cannot be told to train.

    Example:
        >>> import jax.numpy as jnp
        >>> model = nn.Sequential([nn.Dense(8), nn.LayerNorm(), nn.Dense(2)])
        >>> x = jax.random.normal(jax.random.key(1), (16, 4))
        >>> report = examine(model, model.init(jax.random.key(0), x), [x])
        >>> report.ok()
        True
    """
    check_model(model)
    bounds = thresholds or Thresholds()
    chosen = _chosen(checks)
    ignored = [_pattern(entry) for entry in ignore]
    options = Options(
        call=call,
        train=train,
        evaluate=evaluate,
        method=method,
        rngs=rngs,
        step=step,
        state=state,
        read=read,
        optimizer=optimizer,
        steps=expect.optional(expect.WHOLE).of("`steps`", steps),
        padding=padding,
        mesh=mesh,
        thresholds=bounds,
        seed=seed,
    )
    patient = _admitted(model, variables, limited(batches, expect.WHOLE.of("`limit`", limit)), options)
    report = _Examination(patient, ignored).report(chosen)
    return report


def _admitted(model: Module, variables: VariableDict | None, batches: tuple[object, ...], options: Options) -> Patient:
    """Return the patient; variables of replicas are merged."""
    if (options.step is None) is not (options.state is None):
        raise BadInput("Expected `step` and `state` with each other, got one alone. Give both, or none.")
    if isinstance(model, nn.Module) and variables is None and options.state is not None:
        variables = (options.read or variables_of)(options.state)
    spread = _spread(model, variables)
    if spread:
        variables = replicas.reduce(variables)
    patient = Patient(model, variables, batches, options)
    patient.replicas = spread
    return patient


def _spread(model: Module, variables: VariableDict | None) -> dict[str, float]:
    """Return how far replicas are apart, if the variables have an axis of replicas in front of each leaf."""
    if not isinstance(model, nn.Module) or variables is None:
        return {}
    first = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(variables)}
    dims = {np.ndim(leaf) for path, leaf in leaves.by_path(variables).items() if path.endswith(("/mean", "/scale"))}
    if len(first) != 1 or first == {()} or min(dims, default=0) < 2:
        return {}
    return replicas.spread(variables)


def _chosen(codes: Collection[str] | None) -> list[Check]:
    for code in codes or ():
        if code not in CHECKS:
            raise BadInput(f"Expected a code of a check, got `{code}`. {nearest(code, CHECKS)}")
    return [CHECKS[code] for code in sorted(CHECKS) if codes is None or code in codes]


def _pattern(entry: str) -> tuple[str, str]:
    code, _, glob = entry.partition("@")
    if code not in CHECKS:
        raise BadInput(f"Expected a code of a check to ignore, got `{entry}`. {nearest(code, CHECKS)}")
    return code, glob or "*"


class _Examination:
    """The checks of a patient, one after another."""

    def __init__(self, patient: Patient, ignored: list[tuple[str, str]]) -> None:
        self._patient, self._ignored = patient, ignored
        self._used: set[tuple[str, str]] = set()
        self._seconds: dict[str, float] = {}

    def report(self, checks: list[Check]) -> Report:
        """Make checks, and return what they found."""
        findings, skipped, passed = list[Finding](), list[Skipped](), list[str]()
        for check in checks:
            made = list(self._made(check))
            found = [one for one in made if isinstance(one, Finding)]
            skipped += [one for one in made if isinstance(one, Skipped)]
            kept = [one for finding in found if (one := self._kept(finding)) is not None]
            findings += kept
            if not made:
                passed.append(check.code)
        findings += self._unused()
        started = time.perf_counter()
        numbers = self._measurements()
        self._seconds["numbers"] = time.perf_counter() - started
        name = type(self._patient.model).__name__
        return Report(collected(findings), tuple(skipped), numbers, name, tuple(passed), self._seconds)

    def _made(self, check: Check) -> Iterator[Finding | Skipped]:
        """Make a check; yield what it found, or why it was skipped."""
        options, started = self._patient.options, time.perf_counter()
        lacking = [need for need in check.needs if need != "data" and getattr(options, need) is None]
        try:
            if lacking:
                raise Skip(f"no `{lacking[0]}` was given")
            if "data" in check.needs:
                self._patient.can_measure  # noqa: B018
            yield from check.run(self._patient)
        except Skip as reason:
            yield Skipped(check.code, f"{reason}.")
        except BadInput:
            raise
        except Exception as error:
            yield Skipped(check.code, f"the check failed: {one_line(error, 200)}")
        finally:
            self._seconds[check.code] = time.perf_counter() - started

    def _kept(self, finding: Finding) -> Finding | None:
        """Return a finding without what is to be ignored; `None` where nothing is left."""
        paths = [finding.path, *finding.others]
        for code, glob in self._ignored:
            out = [path for path in paths if code == finding.code and fnmatchcase(path, glob)]
            if out:
                self._used.add((code, glob))
                paths = [path for path in paths if path not in out]
        if not paths:
            return None
        return finding if paths[0] == finding.path else _moved(finding, paths)

    def _unused(self) -> Iterator[Finding]:
        for code, glob in self._ignored:
            if (code, glob) not in self._used:
                yield Finding(
                    code=code,
                    severity="note",
                    path="",
                    title=f"nothing to ignore for `{code}@{glob}`",
                    evidence={},
                    threshold=None,
                    why="The entry hides nothing today, and may hide a fault tomorrow.",
                    source="",
                    remedy="# leave the entry out of `ignore`",
                )

    def _measurements(self) -> dict[str, Measurement]:
        try:
            self._patient.can_measure  # noqa: B018
        except Skip:
            return {}
        return {path: _measurement(self._patient, path) for path in self._patient.trained}


def _moved(finding: Finding, paths: list[str]) -> Finding:
    """Return a finding about other paths, whose numbers are those of the first it had."""
    values = {name: getattr(finding, name) for name in Finding.__dataclass_fields__}
    return Finding(**{**values, "path": paths[0], "others": tuple(paths[1:])})


def _measurement(patient: Patient, path: str) -> Measurement:
    """Return the numbers of a norm."""
    site, found = patient.site_of(path), patient.pooled[path]
    running = patient.running_of(path)
    both = running is not None and patient.modes.known
    apart, expected = gaps(patient, path) if both else (float("nan"), float("nan"))
    lagging = lag(patient, path)
    mean, var = running if running is not None else (None, None)
    return Measurement(
        path=path,
        kind=site.kind,
        mean=found.mean,
        var=found.var,
        running_mean=mean,
        running_var=var,
        effective=found.n_eff,
        gap=apart,
        expected_gap=expected,
        lag=float("nan") if lagging is None else lagging[0],
    )
