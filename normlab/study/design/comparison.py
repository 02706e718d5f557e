"""A comparison of norms, and the settings of one of its invocations."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from normlab import expect
from normlab.errors import BadInput, nearest
from normlab.study.design.budgets import TIERS, Tier
from normlab.study.design.factors import Curve, Value, batch_size_curves
from normlab.study.design.problem import NORM, Problem, several_norms


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A question over problems x norms x values of the factors of its curves.

    Attributes:
        name: Short, for the folder and the command, e.g. `batch_size`.
        problems: Models and data.
        title: The heading of the report.
        question: One sentence that ends in a question mark.
        norms: Norm strings (see `normlab.norms.get`).
        curves: Factors; the batch size unless given (see `factors.batch_size_curves`).
        tiers: Budgets by name; `budgets.TIERS` unless given.
        fixed: Sentences about everything that is the same in all runs; printed in the report.
        baseline: The norm to which others are compared, at the same factor value.
        margin: Differences of the metric below this are of no practical interest: in the metric's unit, a fraction
            where it is shown in percent. Unless given, here or by the metric: half a percentage point; other metrics
            need their own.
        default_learning_rate: The learning rate of people who do not tune, in a row of its own; `None` for no such row.
    """

    name: str
    problems: tuple[Problem, ...]
    title: str = "Error against batch size"
    question: str = "Which norm, at which batch size?"
    norms: tuple[str, ...] = ("none", "batch", "batch_renorm", "layer", "rms")
    curves: tuple[Curve, ...] = field(default_factory=batch_size_curves)
    tiers: Mapping[str, Tier] = field(default_factory=lambda: TIERS)
    fixed: tuple[str, ...] = ()
    baseline: str = "batch"
    margin: float | None = None
    default_learning_rate: float | None = None

    def __post_init__(self) -> None:
        """Check the fields, and that budgets name existing problems and curves.

        Raises:
            BadInput: If a field is invalid.
        """
        expect.check_fields(
            self,
            name=expect.NAME,
            problems=expect.Several(_PROBLEM, remedy="Write `problems=(problem,)`, with the comma."),
            title=expect.LABEL,
            question=expect.LABEL,
            norms=several_norms(),
            curves=expect.Several(_CURVE, remedy=_CALL_CURVES),
            tiers=_TIERS,
            fixed=expect.Several(expect.TEXT, empty=True),
            baseline=NORM,
            margin=expect.optional(expect.MARGIN),
            default_learning_rate=expect.optional(expect.POSITIVE),
        )
        problems, curves = ([one.name for one in many] for many in (self.problems, self.curves))
        expect.check_distinct("`problems` of `Comparison`, by name,", problems)
        expect.check_distinct("`curves` of `Comparison`, by name,", curves)
        for name, tier in self.tiers.items():
            _check_known(f"`problems` of the budget `{name}`", tier.problems, problems)
            _check_known(f"`values` of the budget `{name}`", tier.values, curves)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The request of one invocation, with every default resolved. Written to `comparison.json`.

    Attributes:
        comparison: Name of the comparison.
        source: Name or path of the comparison as the user typed it, e.g. `batch_size`; empty for a comparison object of
            this process.
        tier: Name of the budget.
        problems: Names of the problems.
        norms: The norms as strings.
        curves: Names of the curves.
        values: Factor values by curve.
        learning_rates: The grid of every norm.
        epochs: Passes over the training set.
        tuning_seeds: Number of seeds for every learning rate of the grid.
        seeds: Number of evaluation seeds.
        extend: Whether the grid of a column grows where an optimum lies at its end.
        default_learning_rate: The learning rate at which norms are also evaluated untuned; `None` for no such runs.
        devices: Number of devices that train one model together, each with its share of every batch.
        options: Values of the options of the problems.
    """

    comparison: str
    source: str
    tier: str
    problems: tuple[str, ...]
    norms: tuple[str, ...]
    curves: tuple[str, ...]
    values: Mapping[str, tuple[Value, ...]]
    learning_rates: tuple[float, ...]
    epochs: int
    tuning_seeds: int
    seeds: int
    extend: bool = True
    default_learning_rate: float | None = None
    devices: int = 1
    options: Mapping[str, object] = field(default_factory=dict[str, object])


def _check_known(where: str, names: Iterable[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise BadInput(f"Expected {where} to name what the comparison has, got `{name}`. {nearest(name, known)}")


def _by_name(tiers: Mapping[str, object]) -> Mapping[str, Tier]:
    if not isinstance(tiers, Mapping) or not tiers:
        raise TypeError(tiers)
    return {
        expect.NAME.of("the name of a budget", name): _TIER.of(f"`tiers[{name!r}]` of `Comparison`", tier)
        for name, tier in tiers.items()
    }


_CALL_CURVES = "Write `curves=study.batch_size_curves(deployed=(2, 32))`, or a tuple of `study.Curve`s."
_PROBLEM = expect.an(Problem, "Make one with `study.supervised(...)` or `study.streaming(...)`.")
_CURVE = expect.an(Curve, _CALL_CURVES)
_TIER = expect.an(Tier, "Make budgets with `study.tiers(...)`, or one with `study.Tier(...)`.")
_TIERS = expect.Kind(
    "budgets by name", _by_name, "Write `tiers=study.tiers(epochs=20)`, or a dictionary of `study.Tier`s."
)
