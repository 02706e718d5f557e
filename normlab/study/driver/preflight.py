"""Checks before anything is written: every configuration is traced, none is compiled.

The configurations of a problem with one norm share a representative, the first that can be trained. The whole step of
the representative is traced, the steps of the others as far as the loss (see `Program.forward`). A dry run traces the
representatives alone, the first of a problem as a whole, the others as far as the loss; so does a run with a time
budget, of which the checks are a part. A run that resumes traces the representatives, and beyond them the
configurations that have runs to make.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from enum import Enum
from typing import NamedTuple

import jax
import jax.numpy as jnp

from normlab.errors import BadInput, one_line
from normlab.norms import Norm
from normlab.study.design.plan import Plan
from normlab.study.design.program import Program
from normlab.study.design.records import Configuration
from normlab.study.driver import limits
from normlab.study.worker.runner import build


class Checked(NamedTuple):
    """The result of the checks: data and libraries by problem, and programs.

    Attributes:
        hashes: See `Program.data_hash`.
        about: See `Program.description`.
        libraries: See `Program.libraries`.
        steps: Number of updates of each program that was built.
        extremes: The programs with the fewest and the most updates of every problem.
        invalid: Reasons of configurations that cannot be run.
        traced: Number of programs that were traced.
    """

    hashes: dict[str, str]
    about: dict[str, str]
    libraries: dict[str, tuple[str, ...]]
    steps: dict[Configuration, int]
    extremes: dict[Configuration, Program]
    invalid: dict[Configuration, str]
    traced: int

    @property
    def built(self) -> int:
        """Number of programs that were built."""
        return len(self.steps)


class Untrainable(BadInput):
    """A configuration that cannot be trained, and is recorded as `invalid` when its turn comes."""


def data_of(
    plan: Plan,
    limit: Callable[[], float] = lambda: math.inf,
    *,
    every: bool = True,
    made: Callable[[], None] = lambda: None,
) -> Checked:
    """Build and trace the program of every configuration that can be run.

    Args:
        plan: The plan of the configurations.
        limit: Returns the seconds that the next configuration may take.
        every: Whether to trace more than the representatives.
        made: Called once the data of every problem have been made.

    Raises:
        OutOfTime: If one takes longer.
        BadInput: If a configuration cannot be traced, none can be run, or a model does not use its norm.
    """
    reasons = {configuration: plan.incompatible(configuration) for configuration in plan.configurations}
    programs: dict[Configuration, Program] = {}
    representatives: dict[tuple[str, str], Configuration] = {}
    runnable = [configuration for configuration, reason in reasons.items() if not reason]
    one_each = list({configuration.problem: configuration for configuration in reversed(runnable)}.values())[::-1]
    for configuration in dict.fromkeys((*one_each, *runnable)):
        try:
            with limits.at_most(limit()):
                alike = configuration.problem, configuration.norm
                if alike in representatives:
                    depth = TraceDepth.FORWARD if every else TraceDepth.NOTHING
                else:
                    depth = TraceDepth.WHOLE if every or configuration in one_each else TraceDepth.FORWARD
                programs[configuration] = traced(plan, configuration, depth)
                representatives.setdefault(alike, configuration)
        except Untrainable as error:
            reasons[configuration] = str(error)
        if configuration == one_each[-1]:
            made()
    if all(reasons.values()):
        raise BadInput(f"Expected at least one norm that can be run. {next(iter(reasons.values()))}")
    programs = {configuration: programs[configuration] for configuration in runnable if configuration in programs}
    first = {configuration.problem: configuration for configuration in reversed(programs)}
    for configuration in first.values():
        _check_norm_is_used(plan, configuration, programs)
    return Checked(
        hashes={problem: programs[configuration].data_hash for problem, configuration in first.items()},
        about={
            problem: text for problem, configuration in first.items() if (text := programs[configuration].description)
        },
        libraries={
            problem: used for problem, configuration in first.items() if (used := programs[configuration].libraries)
        },
        steps={configuration: program.steps for configuration, program in programs.items()},
        extremes=_extremes(programs),
        invalid={configuration: reason for configuration, reason in reasons.items() if reason},
        traced=len(programs if every else representatives),
    )


def trace(plan: Plan, configurations: Iterable[Configuration], limit: Callable[[], float]) -> None:
    """Trace configurations as far as the loss; one that cannot be trained is recorded when its turn comes.

    Args:
        plan: The plan of the configurations.
        configurations: The configurations.
        limit: Returns the seconds that the next configuration may take.

    Raises:
        OutOfTime: If one takes longer.
        BadInput: If a configuration cannot be traced.
    """
    for configuration in configurations:
        with suppress(Untrainable), limits.at_most(limit()):
            traced(plan, configuration, TraceDepth.FORWARD)


def _extremes(programs: Mapping[Configuration, Program]) -> dict[Configuration, Program]:
    by_problem: dict[str, list[Configuration]] = {}
    for configuration in sorted(programs, key=lambda one: programs[one].steps):
        by_problem.setdefault(configuration.problem, []).append(configuration)
    return {end: programs[end] for of in by_problem.values() for end in (of[0], of[-1])}


class TraceDepth(Enum):
    """The part of a program to trace."""

    NOTHING, FORWARD, WHOLE = range(3)


def traced(plan: Plan, configuration: Configuration, trace: TraceDepth = TraceDepth.WHOLE) -> Program:
    """Build the program of a configuration and trace it.

    Raises:
        Untrainable: If a statistic would be over one element, which is a result.
        BadInput: If the program cannot be built or traced for another reason.
    """
    from normlab.functional import StatisticsError
    from normlab.study.training.loop import check

    try:
        program = build(plan, configuration)
        program = replace(program, step=jax.jit(program.step))  # `ignores_norm` uses the same trace
        if trace is not TraceDepth.NOTHING:
            check(program, whole=trace is TraceDepth.WHOLE)
    except Exception as error:
        place = plan.place(configuration)
        factor = plan.curve(place.curve).factor.name
        where = f"`{place.norm}` on `{place.problem}` with {factor} {place.value}"
        kind = Untrainable if isinstance(error, StatisticsError) else BadInput
        raise kind(f"{where}: {one_line(error)}{_remedy(str(error))}") from error
    return program


def _remedy(message: str) -> str:
    """Return advice for two mistakes of models that lead to errors far from their cause; else empty."""
    if "'Norm' object is not callable" in message:
        return " Write `norm.linen(train=train)(x)` in a Linen model, `norm.nnx(features, rngs=rngs)(x)` in an NNX one."
    if "Norm('" in message:
        return " The model is called with its norm alone: make `norm` its first field or argument."
    return ""


def _check_norm_is_used(plan: Plan, first: Configuration, programs: Mapping[Configuration, Program]) -> None:
    """Check that the programs of a problem's first column differ between norms.

    Raises:
        BadInput: If all norms have the same program.
    """
    place = plan.place(first)
    column = {
        configuration: replace(place, norm=configuration.norm)
        for configuration in programs
        if configuration.problem == first.problem
    }
    same = {where: configuration for configuration, where in column.items() if plan.places.get(where) == configuration}
    if ignores_norm({plan.resolve(where)[0]: programs[configuration] for where, configuration in same.items()}):
        raise BadInput(f"`{first.problem}`: {IGNORED}")


IGNORED = (
    "All norms give the same training program: the model does not use the norm that it is given. Call "
    "`norm.linen(train=train)` in a Linen model, `norm.nnx(features, rngs=rngs)` in an NNX one."
)
"""The message for a model that `ignores_norm`."""


def ignores_norm(programs: Mapping[Norm, Program]) -> bool:
    """Check whether different norms all give the same training program.

    Norms of different names that make equal modules do not differ: comparing a norm with itself is no mistake.

    Args:
        programs: Programs of one problem and one factor value.
    """
    texts = map(_text, programs.values())
    first = next(texts)
    if any(text != first for text in texts):
        return False
    modules = [norm.cell() if norm.entry.cell_only else norm.linen(train=True) for norm in programs]
    return any(module != modules[0] for module in modules)


def _text(program: Program) -> str:
    """Lower a step to the text that XLA compiles, constants included."""
    state, data = jax.eval_shape(lambda: program.init(0)), program.sees()
    t, learning_rate = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((), jnp.float32)
    return jax.jit(program.step).lower(state, t, learning_rate, data).as_text()
