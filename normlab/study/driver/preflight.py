"""What is checked before anything is written: every cell is traced, none is compiled.

The cells of a curve that differ in the factor's value alone share a representative, the first that can be trained. Its
whole step is traced, that of the others as far as the loss (see `Program.forward`); a dry run traces it alone.
"""

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from enum import Enum
from typing import NamedTuple

import jax
import jax.numpy as jnp

from normlab.errors import BadInput, one_line
from normlab.norms import Norm
from normlab.study.design.plan import Plan
from normlab.study.design.program import Program
from normlab.study.design.records import Cell
from normlab.study.driver import limits
from normlab.study.worker.runner import build


class Checked(NamedTuple):
    """What a comparison's data are: for each problem their hash, words where there are any, and whose they are.

    Attributes:
        hashes: See `Program.data_hash`.
        about: See `Program.description`.
        libraries: See `Program.libraries`.
        built: How many programs could be built.
        traced: How many of them were traced.
    """

    hashes: dict[str, str]
    about: dict[str, str]
    libraries: dict[str, tuple[str, ...]]
    built: int
    traced: int


class Untrainable(BadInput):
    """A cell that is recorded as `invalid` when its turn comes."""


def data_of(plan: Plan, limit: Callable[[], float] = lambda: math.inf, *, every: bool = True) -> Checked:
    """Build the program of every cell that can be run, and trace it.

    Args:
        plan: Of the cells.
        limit: Gives the seconds that the next cell may take.
        every: Whether to trace more than the representatives.

    Raises:
        OutOfTime: If one takes longer.
        BadInput: If a cell cannot be traced, none can be run, or a model does not use its norm.
    """
    reasons = {cell: plan.incompatible(cell) for cell in plan.cells}
    programs: dict[Cell, Program] = {}
    representatives: dict[Hashable, Cell] = {}
    for cell, reason in reasons.items():
        if not reason:
            try:
                with limits.at_most(limit()):
                    known = _alike(plan, cell) in representatives
                    trace = Trace.NOTHING if known and not every else Trace.FORWARD if known else Trace.WHOLE
                    programs[cell] = traced(plan, cell, trace)
                    representatives.setdefault(_alike(plan, cell), cell)
            except Untrainable as error:
                reasons[cell] = str(error)
    if all(reasons.values()):
        raise BadInput(f"Expected at least one norm that can be run. {next(iter(reasons.values()))}")
    first = {cell.problem: cell for cell in reversed(programs)}
    for cell in first.values():
        _check_norm_is_used(plan, cell, programs)
    return Checked(
        hashes={problem: programs[cell].data_hash for problem, cell in first.items()},
        about={problem: about for problem, cell in first.items() if (about := programs[cell].description)},
        libraries={problem: used for problem, cell in first.items() if (used := programs[cell].libraries)},
        built=len(programs),
        traced=len(programs if every else representatives),
    )


class Trace(Enum):
    """How much of a program is traced."""

    NOTHING, FORWARD, WHOLE = range(3)


def _alike(plan: Plan, cell: Cell) -> Hashable:
    """What cells have in common that differ in the value of a factor alone."""
    place = plan.place(cell)
    return place.problem, place.curve, place.norm


def traced(plan: Plan, cell: Cell, trace: Trace = Trace.WHOLE) -> Program:
    """Build the program of a cell and trace it.

    Raises:
        Untrainable: If a statistic would be over one element: a norm where it cannot be, which is a result.
        BadInput: If it cannot be built or traced for another reason.
    """
    from normlab.functional import StatisticsError
    from normlab.study.training.loop import check

    try:
        program = build(plan, cell)
        program = replace(program, step=jax.jit(program.step))  # which keeps the trace for `ignores_norm`
        if trace is not Trace.NOTHING:
            check(program, whole=trace is Trace.WHOLE)
    except Exception as error:
        place = plan.place(cell)
        factor = plan.curve(place.curve).factor.name
        where = f"`{place.norm}` on `{place.problem}` with {factor} {place.value}"
        kind = Untrainable if isinstance(error, StatisticsError) else BadInput
        raise kind(f"{where}: {one_line(error)}") from error
    return program


def _check_norm_is_used(plan: Plan, first: Cell, programs: Mapping[Cell, Program]) -> None:
    """Compare the programs of a problem's first column.

    Raises:
        BadInput: If they are the same for all norms.
    """
    place = plan.place(first)
    column = {cell: replace(place, norm=cell.norm) for cell in programs if cell.problem == first.problem}
    same = {where: cell for cell, where in column.items() if plan.places.get(where) == cell}
    if ignores_norm({plan.resolve(where)[0]: programs[cell] for where, cell in same.items()}):
        raise BadInput(f"`{first.problem}`: {IGNORED}")


IGNORED = (
    "All norms give the same training program: the model does not use the norm that it is given. Call "
    "`norm.linen(train=train)` in a Linen model, `norm.nnx(features, rngs=rngs)` in an NNX one."
)
"""For people whose model `ignores_norm`."""


def ignores_norm(programs: Mapping[Norm, Program]) -> bool:
    """Tell whether norms that differ all give the same training program.

    Norms of different names that make equal modules do not differ: comparing a norm with itself is no mistake.

    Args:
        programs: Of one problem and one factor value.
    """
    texts = map(_text, programs.values())
    first = next(texts)
    if any(text != first for text in texts):
        return False
    modules = [norm.cell() if norm.entry.cell_only else norm.linen(train=True) for norm in programs]
    return any(module != modules[0] for module in modules)


def _text(program: Program) -> str:
    """A step as XLA is given it, constants included."""
    state, data = jax.eval_shape(lambda: program.init(0)), program.sees()
    t, learning_rate = jax.ShapeDtypeStruct((), jnp.int32), jax.ShapeDtypeStruct((), jnp.float32)
    return jax.jit(program.step).lower(state, t, learning_rate, data).as_text()
