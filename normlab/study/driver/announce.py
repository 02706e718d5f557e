"""Sentences before the runs of a comparison: its size, its time, and configurations that cannot be run."""

from collections.abc import Collection, Iterable, Iterator, Mapping

from normlab.study.design.plan import Plan
from normlab.study.design.records import Configuration
from normlab.study.driver.estimate import Cost, Work, about, remaining, seconds_of
from normlab.study.driver.ongoing import Ongoing
from normlab.study.report.formatting import count, listed

__all__ = ["cannot_run", "described", "size", "stacks", "time"]


def size(ongoing: Ongoing, configurations: Collection[Configuration]) -> str:
    """Say what is compared, and how many runs that takes."""
    plan, settings = ongoing.plan, ongoing.plan.settings
    left = remaining(ongoing, configurations)
    done = sum(len(ongoing.planned[one].runs) - len(ongoing.missing(one)) for one in left)
    curves = [
        f"{plan.curve(name).factor.label} {', '.join(map(str, settings.values[name]))}" for name in settings.curves
    ]
    there = f", of which {done} are there" if done else ""
    return (
        f"{count(len(settings.norms), 'norm')} on {listed(settings.problems)}; {'; '.join(curves)}: "
        f"{count(len(left), 'program')}, about {done + sum(left.values())} runs{there}."
    )


def time(
    plan: Plan,
    left: Mapping[Configuration, int],
    steps: Mapping[Configuration, int],
    costs: Mapping[Configuration, Cost],
    workers: int,
    *,
    measured: bool,
) -> str:
    """Say how long the remaining runs take, and whether costs were measured or are estimates; empty without any."""
    work = {
        configuration: Work(runs, steps[configuration])
        for configuration, runs in left.items()
        if configuration in steps
    }
    if not any(one.runs for one in work.values()):
        return "All runs are there."
    known, problems = {one.problem for one in costs}, {one.problem for one in work}
    if not known & problems:
        return ""
    text = about(seconds_of(work, costs, workers)).replace("about", "About" if problems <= known else "More than")
    source = f"by the {count(len(costs), 'program')} measured" if measured else "by the size of programs"
    return f"{text} with {count(workers, 'worker')}, {source}."


def stacks(lanes: int | None) -> str:
    """Say how many runs of a configuration an accelerator trains together."""
    if lanes:
        return f"Stacks of {count(lanes, 'run')}."
    return "A probe before the first run chooses the number of runs in a stack; `--lanes` gives it."


def cannot_run(reasons: Iterable[str]) -> str:
    """Say in one line what cannot be run, from the reason of each configuration; empty where everything can."""
    reasons = list(reasons)
    if not reasons:
        return ""
    return f"Not run, {count(len(reasons), 'configuration')}: {' '.join(sorted(set(reasons)))}"


def described(plan: Plan) -> Iterator[str]:
    """Yield the lines of a plan, one for each setting."""
    settings = plan.settings
    yield f"Problems: {', '.join(settings.problems)}"
    yield f"Norms: {', '.join(settings.norms)}"
    for name in settings.curves:
        yield f"Curve {name}: {plan.curve(name).factor.label} {', '.join(map(str, settings.values[name]))}"
    yield (
        f"Learning rates: {', '.join(f'{rate:g}' for rate in settings.learning_rates)}, "
        f"{count(settings.tuning_seeds, 'tuning seed')} each"
        f"{', and two beyond an end where an optimum lies' if settings.extend else ''}; "
        f"{count(settings.seeds, 'evaluation seed')}; {count(settings.epochs, 'epoch')}"
    )
