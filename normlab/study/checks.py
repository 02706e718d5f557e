"""What is checked before anything is written: every cell is traced, none is compiled."""

from normlab.study import execute
from normlab.study.config import Cell
from normlab.study.errors import BadInput, one_line
from normlab.study.plan import Plan


def data_of(plan: Plan) -> dict[str, str]:
    """Trace the program of every cell that can be run.

    Returns:
        For each problem the hash of its data.

    Raises:
        BadInput: If a cell cannot be traced, none can be run, or a model does not use its norm.
    """
    reasons = {cell: plan.incompatible(cell) for cell in plan.cells}
    if all(reasons.values()):
        raise BadInput(f"Expected at least one norm that can be run. {next(iter(reasons.values()))}")
    hashes: dict[str, str] = {}
    for cell in [cell for cell, reason in reasons.items() if not reason]:
        found = trace(plan, cell)
        hashes.setdefault(cell.problem, found)
    for problem in hashes:
        _check_norm_is_used(plan, problem)
    return hashes


def trace(plan: Plan, cell: Cell) -> str:
    """Trace the program of a cell and hash its data.

    Raises:
        BadInput: If it cannot be built or traced.
    """
    from normlab.study import train
    from normlab.study.data import data_hash

    try:
        program = execute.build(plan, cell)
        train.check(program)
    except Exception as error:
        place = plan.place(cell)
        factor = plan.curve(place.curve).factor.name
        where = f"`{place.norm}` on `{place.problem}` with {factor} {place.value}"
        raise BadInput(f"{where}: {one_line(error)}") from error
    return data_hash(program.data)


def _check_norm_is_used(plan: Plan, problem: str) -> None:
    """Compare the programs of a problem's first column.

    Raises:
        BadInput: If they are the same for all norms.
    """
    from normlab.study import networks

    places = [place for place, cell in plan.places.items() if place.problem == problem and not plan.incompatible(cell)]
    column = [place for place in places if (place.curve, place.value) == (places[0].curve, places[0].value)]
    programs = {plan.resolve(place)[0]: execute.build(plan, plan.places[place]) for place in column}
    if networks.ignores_norm(programs):
        raise BadInput(f"`{problem}`: {networks.IGNORED}")
