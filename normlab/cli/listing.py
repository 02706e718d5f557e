"""`normlab list`: comparisons, norms, problems, and budgets with their runs and minutes."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from normlab import norms
from normlab.errors import BadInput, nearest
from normlab.study.design import discovery
from normlab.study.design.comparison import Comparison
from normlab.study.design.options import Given
from normlab.study.design.plan import Plan
from normlab.study.design.provenance import usable_cpus
from normlab.study.design.request import DEFAULT_TIER, Request, norm_of
from normlab.study.driver.estimate import about, remaining
from normlab.study.driver.ongoing import Ongoing

__all__ = ["KINDS", "SECONDS", "lines"]

SECONDS: Mapping[str, tuple[float, float]] = {
    "batch_composition": (3.0, 0.15),
    "batch_size": (2.5, 0.3),
    "depth": (8.0, 0.8),
    "distributed": (10.0, 2.0),
    "dropout": (4.0, 0.8),
    "every_layer": (7.0, 0.8),
    "inference_gap": (12.0, 1.0),
    "initialization": (3.5, 0.4),
    "online": (3.0, 0.15),
    "placement": (4.0, 0.4),
    "recurrent": (10.0, 4.0),
    "training_size": (3.5, 0.4),
    "transformer": (6.0, 25.0),
}
"""Seconds of one core to compile a program and to make a run, by comparison: means over problems, rounded.

They were measured on a server, at the epochs of the largest budget and with the default data. Elsewhere half or twice
as much is possible.
"""


def lines(kind: str | None = None, source: str | None = None) -> Iterator[str]:
    """Yield the lines of a list.

    Args:
        kind: One of `KINDS`; an overview unless given.
        source: Name or file of a comparison, for lists of its parts.

    Raises:
        BadInput: If the kind or the comparison is unknown.
    """
    if kind is None:
        yield from _overview()
    elif kind not in KINDS:
        hint = nearest(kind, KINDS, "See `normlab list --help`.")
        raise BadInput(f"Expected {', '.join(KINDS)} or nothing after `list`, got `{kind}`. {hint}")
    elif kind == "norms" and source:
        yield from _row(norms.get(norm_of(source)))
    else:
        yield from KINDS[kind]([source] if source else list(discovery.known()))


def _overview() -> Iterator[str]:
    yield "Comparisons, for `normlab run NAME`:"
    known = norms.names()  # before comparisons add their own
    yield from _comparisons(list(discovery.known()))
    yield f"Norms, for `--norms`: {', '.join(known)}"
    yield "More:"
    yield "  normlab list norms              formula, statistics and paper of each norm"
    yield "  normlab list problems [NAME]    models and data of each comparison"
    yield "  normlab list tiers [NAME]       budgets of each comparison, with runs and minutes"


def _comparisons(sources: Sequence[str]) -> Iterator[str]:
    for source in sources:
        yield f"  {source:<20}{discovery.load(source).question}"


def _norms(_: Sequence[str]) -> Iterator[str]:
    for index, name in enumerate(norms.names()):
        yield from [""] * (index > 0)
        yield from _row(norms.get(name))


def _row(norm: norms.Norm) -> Iterator[str]:
    """Yield the registry's row of a norm."""
    entry = norm.entry
    parts = {
        "title": entry.title,
        "output": entry.formula,
        "statistics": f"over {entry.over}" if entry.over else "",
        "needs batch": norms.needs(entry),
        "paper": f"{entry.paper}, {entry.url}" if entry.url else "",
        "modules": f"normlab.linen.{entry.module}, normlab.nnx.{entry.module}" if entry.module else "",
    }
    yield entry.name
    yield from (f"  {name:<13}{text}" for name, text in parts.items() if text)


def _problems(sources: Sequence[str]) -> Iterator[str]:
    for source in sources:
        comparison = discovery.load(source)
        chosen = Request(comparison, {}).settings(source).problems
        yield f"{source}:"
        width = max(len(problem.name) for problem in comparison.problems) + 2
        for problem in comparison.problems:
            yield f"  {problem.name:<{width}}{problem.title}{'' if problem.name in chosen else _CHOOSE}"


_CHOOSE = " (by --problems)"


def _tiers(sources: Sequence[str]) -> Iterator[str]:
    for source in sources:
        comparison = discovery.load(source)
        yield f"{source}: {comparison.question}"
        yield f"  {'tier':<12}{'seeds':>5}{'programs':>10}{'runs':>8}   {'time':<17}problems"
        for tier in comparison.tiers:
            yield _tier(comparison, source, tier)
    cores = f"{usable_cpus()} core{'s' * (usable_cpus() > 1)}"
    yield (
        f"The default is {DEFAULT_TIER}. Runs are those before any grid grows. Times are rough, for {cores} of this "
        "machine, without GPU: `normlab run NAME --tier TIER --dry-run` estimates."
    )


def _tier(comparison: Comparison, source: str, tier: str) -> str:
    settings = Request(comparison, {"tier": Given(tier, "`--tier`")}).settings(source)
    plan = Plan(comparison, settings)
    runs = remaining(Ongoing(plan, []), plan.configurations)
    compiling, run = SECONDS.get(source, (0.0, 0.0))
    run *= settings.epochs / max(other.epochs for other in comparison.tiers.values())
    seconds = (len(runs) * compiling + sum(runs.values()) * run) / usable_cpus()
    time = about(seconds) if seconds else "by --dry-run"
    problems = ", ".join(settings.problems)
    return f"  {tier:<12}{settings.seeds:>5}{len(runs):>10}{sum(runs.values()):>8}   {time:<17}{problems}"


KINDS: Mapping[str, Callable[[Sequence[str]], Iterator[str]]] = {
    "comparisons": _comparisons,
    "norms": _norms,
    "problems": _problems,
    "tiers": _tiers,
}
"""Lists by name."""
