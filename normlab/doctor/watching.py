"""Examine a model again and again while it trains."""

import math
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import jax
from flax import linen as nn
from flax import nnx
from jax import Array

from normlab import expect
from normlab.doctor.examination import Examination, chosen
from normlab.doctor.findings import Finding, Measurement
from normlab.doctor.options import Options, State
from normlab.doctor.patient import Patient
from normlab.doctor.stepping import variables_of
from normlab.doctor.thresholds import Thresholds
from normlab.introspect.applied import check_model
from normlab.introspect.calls import Module
from normlab.introspect.modes import Method
from normlab.tools.batches import Call, default_call

__all__ = ["Watch", "Watched"]

WATCHED = ("NL202", "NL203", "NL302", "NL303", "NL304", "NL305", "NL307", "NL308", "NL309", "NL311")
"""Checks that a training can change."""


@dataclass(frozen=True)
class Watched:
    """The norms of a model at one step.

    Attributes:
        step: The step.
        findings: The faults, the worst first.
        scalars: Numbers for a logger by name, such as `norms/block_0/norm_1/lag`; those that are not finite are left
            out.
        measurements: Numbers of each norm by path.
    """

    step: int
    findings: tuple[Finding, ...]
    scalars: Mapping[str, float]
    measurements: Mapping[str, Measurement]


class Watch:
    """Examine a model every so many steps, without callbacks; programs are compiled at the first examination.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = nn.Sequential([nn.Dense(8), nn.LayerNorm(), nn.Dense(2)])
        >>> x = jax.random.normal(jax.random.key(1), (16, 4))
        >>> variables = model.init(jax.random.key(0), x)
        >>> watch = Watch(model, every=100)
        >>> seen = [watch(step, variables, x) for step in range(101)]
        >>> [one.step for one in seen if one is not None]
        [0, 100]
    """

    def __init__(
        self,
        model: Module,
        *,
        every: int = 500,
        batches: int = 4,
        call: Call = default_call,
        train: Mapping[str, object] | None = None,
        evaluate: Mapping[str, object] | None = None,
        method: Method = None,
        rngs: Mapping[str, Array] | None = None,
        checks: Collection[str] = WATCHED,
        thresholds: Thresholds | None = None,
        seed: int = 0,
    ) -> None:
        """Prepare to watch a model.

        Args:
            model: A module of Linen or NNX.
            every: Steps between examinations.
            batches: The latest batches to examine the model with.
            call: `batch -> (args, kwargs)` of the model's call.
            train: Keyword arguments of the call in training; found in the signature where there are some.
            evaluate: Keyword arguments of the call at evaluation, likewise.
            method: The method to be called; `None` is `__call__`.
            rngs: Random streams of the call.
            checks: Codes of the checks to make; those of structure are of `examine`.
            thresholds: Bounds of the checks.
            seed: Seed of everything random.

        Raises:
            BadInput: If the model is no Flax module, a number is not positive, or a code is unknown.
        """
        check_model(model)
        self._model = model
        self._every = expect.WHOLE.of("`every`", every)
        self._recent: deque[object] = deque(maxlen=expect.WHOLE.of("`batches`", batches))
        self._checks = chosen(checks)
        self._options = Options(
            call=call,
            train=train,
            evaluate=evaluate,
            method=method,
            rngs=rngs,
            thresholds=thresholds or Thresholds(),
            seed=seed,
        )
        self._lasting: dict[str, object] = {}

    def __call__(self, step: int, state: State, batch: object) -> Watched | None:
        """Look at a step.

        Args:
            step: Number of the step, from 0 on.
            state: Variables of the Linen model, or a state with `params` and `batch_stats`; the NNX model.
            batch: The batch of the step; batches of the last steps before an examination are kept until then.

        Returns:
            The findings and numbers of this step; `None` between examinations.
        """
        maxlen = self._recent.maxlen or 1
        if -step % self._every < maxlen:
            self._recent.append(jax.device_get(batch))  # a step may give the batch away
        if step % self._every:
            return None
        patient = self._patient(state)
        report = Examination(patient).report(self._checks)
        self._lasting = patient.lasting()
        self._recent.clear()
        return Watched(step, report.findings, _scalars(report.measurements, report.findings), report.measurements)

    def _patient(self, state: State) -> Patient:
        """Return the patient of now, which shares the compiled programs of the first."""
        batches = tuple(self._recent)
        if isinstance(self._model, nn.Module):
            model, variables = self._model, variables_of(state)
        else:
            found = variables_of(state)
            assert isinstance(found, nnx.Module)
            model, variables = found, None
        return Patient(model, variables, batches, self._options, self._lasting)


def _scalars(measurements: Mapping[str, Measurement], findings: tuple[Finding, ...]) -> dict[str, float]:
    """Return numbers by name."""
    found = {"norms/findings": float(sum(one.severity != "note" for one in findings))}
    for path, one in measurements.items():
        numbers = {"lag": one.lag, "effective": one.effective, "gap": one.gap, "expected_gap": one.expected_gap}
        found |= {f"norms/{path}/{name}": value for name, value in numbers.items() if math.isfinite(value)}
    return found
