"""One sentence for the person who asked: which norm at which factor values, and how sure the data are."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from normlab.study.config import Value
from normlab.study.statistics import BETTER, EQUIVALENT, WORSE, Difference

if TYPE_CHECKING:
    from normlab.study.analysis import Analysis, ProblemResult, Standing


def advise(analysis: "Analysis") -> str:
    """Say in one sentence what to use; what the data cannot decide is said to be undecided.

    Per problem and factor value the candidates are the norms without failures that are not shown worse, by more than
    the margin, than the one with the lowest mean error. Where the baseline is not among them, those shown better than
    it are named.
    """
    if not analysis.claims:
        return (
            f"No claim is made: tier `{analysis.tier}` trains {_count(analysis.seeds, 'seed')} per cell, which shows "
            "that everything runs, not which norm is better."
        )
    parts = [_of_problem(analysis, problem) for problem in analysis.problems]
    return f"{_how_sure(analysis)}: {'; '.join(parts)}."


def _how_sure(analysis: "Analysis") -> str:
    words = _count(analysis.seeds, "seed")
    words = f"Exploratory, with {words}" if analysis.exploratory else f"With {words}"
    missing = analysis.runs["missing"]
    return f"{words} and {_count(missing, 'run')} still missing" if missing else words


def _of_problem(analysis: "Analysis", problem: "ProblemResult") -> str:
    reached = {cell.value for cell in problem.cells if cell.points}
    done = [standing for standing in problem.standings if standing.value in reached]
    if not done:
        return f"for {problem.title}, nothing has been evaluated yet"
    broken = [standing for standing in done if analysis.baseline not in standing.candidates]
    sound = [standing for standing in done if analysis.baseline in standing.candidates]
    parts = [_breaks(analysis, problem, standing) for standing in broken]
    if sound:
        parts.append(_holds(analysis, problem, sound, everywhere=not broken))
    return f"for {problem.title}, " + ", and ".join(parts)


def _breaks(analysis: "Analysis", problem: "ProblemResult", standing: "Standing") -> str:
    """The baseline is shown worse, fails or cannot be run: say so, and what remains."""
    name, where = analysis.names[analysis.baseline], _at(analysis, [standing.value])
    cell = problem.cell(analysis.baseline, standing.value)
    gap = standing.gaps.get(analysis.baseline)
    if cell.failures.k:
        what = f"{name} fails in {cell.failures.k} of {_count(cell.failures.n, 'run')} {where}"
    elif gap and gap.verdict == WORSE:
        what = f"{name} loses {_points(gap.difference)} to {analysis.names[gap.reference]} {where}"
    elif cell.invalid:
        what = f"{name} cannot be run {where}"
    else:
        what = f"{name} has no result {where}"
    if not standing.candidates:
        return f"{what} and no norm ran there without failures"
    shown = [norm for norm in standing.candidates if _beats_baseline(problem, norm, standing.value)]
    return f"{what} (use {_either(analysis, shown or standing.candidates)} there)"


def _beats_baseline(problem: "ProblemResult", norm: str, value: Value) -> bool:
    gap = problem.cell(norm, value).gap
    return gap is not None and gap.verdict == BETTER


def _holds(analysis: "Analysis", problem: "ProblemResult", standings: Sequence["Standing"], *, everywhere: bool) -> str:
    """The baseline is not shown worse: say so, and against whom that is open."""
    name, where = analysis.names[analysis.baseline], _at(analysis, [standing.value for standing in standings])
    others = [
        norm
        for norm in analysis.norms
        if norm != analysis.baseline and all(norm in standing.candidates for standing in standings)
    ]
    text = f"{name} is not shown" if everywhere else "is not shown"
    text += f" more than {_percent(analysis.margin)} points worse than the best {where}"
    if not others:
        return text
    runnable = {cell.norm for cell in problem.cells if not cell.invalid}
    names = "any other norm" if runnable == {analysis.baseline, *others} else _either(analysis, others)
    return f"{text}, {_separation(analysis, standings, others, names)}"


def _separation(analysis: "Analysis", standings: Sequence["Standing"], others: Sequence[str], names: str) -> str:
    """Whether the norms that remain are shown equal or merely not told apart."""
    among = {analysis.baseline, *others}
    verdicts = [gap.verdict for standing in standings for norm, gap in standing.gaps.items() if norm in among]
    if all(verdict == EQUIVALENT for verdict in verdicts):
        return f"as good as {names}"
    return f"but the data cannot decide between it and {names}"


def _points(difference: Difference) -> str:
    """The size of a difference with its interval, in percentage points."""
    size = f"{_percent(difference.mean or 0.0)} points"
    if difference.interval is None:
        return size
    return f"{size} [{', '.join(_percent(end) for end in difference.interval)}]"


def _at(analysis: "Analysis", values: Sequence[Value]) -> str:
    """`at batch size 4 to 32`: neighbours in the order of the comparison become a range."""
    name = str(analysis.factor["name"]).replace("_", " ")
    order = list(analysis.values)
    places = [order.index(value) for value in values]
    consecutive = len(places) > 2 and places == list(range(places[0], places[-1] + 1))
    text = f"{values[0]} to {values[-1]}" if consecutive else _listed([str(value) for value in values], "and")
    return f"at {name} {text}"


def _either(analysis: "Analysis", norms: Sequence[str]) -> str:
    return _listed([analysis.names[norm] for norm in norms], "or")


def _listed(words: Sequence[str], last: str) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f}"


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
