"""What a comparison is, as values: frozen dataclasses, no JAX.

A *factor* is the x-axis of a *curve*, a *problem* is data, a model and a metric, a *cell* is what one compiled program
trains, a *run* is one trained model. Everything that decides a number is a field here, and goes into the run's key.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from normlab.study import expect
from normlab.study.errors import BadInput, nearest, one_line

if TYPE_CHECKING:
    from normlab.norms import Norm
    from normlab.study.arguments import Option
    from normlab.study.train import Program

Value = int | float | str
"""A value of a factor: a batch size, a sequence length, the name of a drift."""

TUNE, EVALUATE = "tune", "evaluate"
TUNING_SEEDS_FROM = 1000
"""Tuning seeds count from here, evaluation seeds from 0: they never meet as long as there are fewer of the latter."""
FAILURES = ("diverged", "collapsed", "oom", "error", "timeout")
"""Statuses counted as failures. The others are `ok`, and `invalid` for what cannot be run at all."""
STATUSES = ("ok", *FAILURES, "invalid")
RETRIED = ("error", "oom", "timeout")
"""Failures that another try may fix. Divergence and collapse are results."""

MEASURED_AT = (0.0, 0.25, 0.5, 0.75, 1.0)
"""At which shares of training series are measured."""


@dataclass(frozen=True, kw_only=True)
class Factor:
    """The quantity a curve varies.

    Attributes:
        name: The key in records and config files, e.g. `batch_size`.
        label: For axes and headings, with the unit, e.g. `batch size (examples)`.
        flag: The command-line flag that selects values, e.g. `--batch-sizes`; another for every curve.
        values: All values of the curve, in the order they are shown.
        log: Whether plots use a logarithmic axis.
        reference: The value that a norm's errors at the others are compared with; `None` for no such comparison.
    """

    name: str
    label: str
    flag: str
    values: tuple[Value, ...]
    log: bool = True
    reference: Value | None = None

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            BadInput: If one cannot be what it should.
        """
        expect.check_fields(
            self,
            name=expect.NAME,
            label=expect.LABEL,
            flag=_FLAG,
            values=_VALUES,
            log=expect.SWITCH,
            reference=expect.optional(_VALUE),
        )
        if self.reference is not None and self.reference not in self.values:
            raise BadInput(
                f"Expected `reference` of `Factor` to be one of its values, got {expect.shown(self.reference)}. "
                f"Choose one of {', '.join(map(str, self.values))}, or None."
            )
        wrong = [value for value in self.values if not isinstance(value, str) and value <= 0]
        if self.log and wrong:
            raise BadInput(
                f"Expected positive `values` of `Factor` for a logarithmic axis, got {wrong[0]}. Pass `log=False`."
            )


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A factor and what varies with it. A comparison may draw several, each with its own claim.

    Attributes:
        name: Short, for flags and records, e.g. `deployed`.
        title: A heading that says what varies and what does not.
        factor: The x-axis.
        config: `factor value -> training fields of a run`, e.g. `{"batch_size": value}`.
        norm_options: `(norm name, factor value) -> options` that the factor gives a norm. A norm whose cells come out
            the same at all values is run once and drawn as a flat reference.
        shows: One sentence for the report: what can be read off this curve.
        hides: One sentence for the report: what cannot.
        advises: Whether recommendations rest on this curve.
    """

    name: str
    title: str
    factor: Factor
    config: Callable[[Value], Mapping[str, Any]]
    norm_options: Callable[[str, Value], Mapping[str, Any]] = lambda norm, value: {}
    shows: str = ""
    hides: str = ""
    advises: bool = True

    def __post_init__(self) -> None:
        """Check the fields; see `Factor`."""
        expect.check_fields(
            self,
            name=expect.NAME,
            title=expect.LABEL,
            factor=expect.an(Factor, "Write `factor=study.Factor(...)`."),
            config=expect.function(
                "a function of the factor's value", 'Write `lambda value: {"batch_size": value}`.', arguments=1
            ),
            norm_options=expect.function(
                "a function of a norm's name and the factor's value", "Write `lambda norm, value: {}`.", arguments=2
            ),
            shows=expect.TEXT,
            hides=expect.TEXT,
            advises=expect.SWITCH,
        )


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What is reported of a model; lower is better.

    Attributes:
        name: For axes and headings, e.g. `test error`.
        percent: Whether it is a fraction, shown in percent; any other number is shown as it is.
        margin: Differences below this are of no practical interest; see `Comparison.margin`, which holds unless given.
        shared: Whether it is that of something beside the norms, such as a baseline, and therefore the same for all of
            them at a factor value; shown once, and drawn across the figure of errors.
    """

    name: str = "test error"
    percent: bool = True
    margin: float | None = None
    shared: bool = False

    def __post_init__(self) -> None:
        """Check the fields; see `Factor`."""
        expect.check_fields(
            self,
            name=expect.LABEL,
            percent=expect.SWITCH,
            margin=expect.optional(expect.MARGIN),
            shared=expect.SWITCH,
        )


@dataclass(frozen=True, kw_only=True)
class Series:
    """Numbers that are measured of a model before training, at each quarter of it and at its end.

    Attributes:
        name: Short, for records and files, e.g. `gradient`.
        title: A heading.
        x_label: What the numbers lie along, with its unit, e.g. `time step`.
        y_label: What they are, with the unit.
        x: Where each of them lies; for a single number the share of training takes its place.
        log: Whether the numbers are drawn on a logarithmic axis; then medians over seeds are drawn, else means.
        log_x: Whether where they lie is.
        during: Whether the middle of training is drawn, too.
        at_end: Whether only what is there at the end is drawn, such as a record of the whole training. Where that is so
            of all series of a problem, nothing is measured before.
        shows: Sentences for the report: what can be read off it, and how it is measured.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    x: tuple[float, ...]
    log: bool = False
    log_x: bool = False
    during: bool = False
    at_end: bool = False
    shows: str = ""

    def __post_init__(self) -> None:
        """Check the fields; see `Factor`."""
        switches = dict.fromkeys(("log", "log_x", "during", "at_end"), expect.SWITCH)
        texts = dict.fromkeys(("title", "x_label", "y_label", "shows"), expect.TEXT)
        expect.check_fields(self, name=expect.NAME, x=expect.Several(expect.NUMBER), **texts, **switches)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A data set, a model family, a loss and a metric. `normlab.study.supervised` makes one from a Flax model.

    Attributes:
        name: Short, for records and flags, e.g. `mlp`.
        title: For people, e.g. `MLP 64-100-100-10 on digits`.
        build: `(norm, config) -> Program`: the pure `init`, `step` and `evaluate` of one cell; `config` holds the
            training fields of that cell (`epochs`, and what `Curve.config` gives for the factor's value). It imports
            JAX inside and raises `ValueError` for what cannot be trained.
        norm_options: `(norm name, config) -> options` that a norm gets here unless its string names them, e.g. the
            number of groups that fits the width.
        spatial: Whether activations have spatial axes; norms that need them are recorded as `invalid` elsewhere.
        recurrent: Whether the norm goes into a recurrent cell; norms of cells are recorded as `invalid` elsewhere, and
            norms that no cell takes are here.
        metric: What is reported.
        side: What else is reported of evaluated models; names are those that `Program.evaluate` gives.
        series: What is measured before, during and after training; names are those that `Program.series` gives.
        options: What can be asked for on the command line besides; `build` and `norm_options` find what was given in
            `config`. None of it is in a run's key, which has the hash of the data.
    """

    name: str
    title: str
    build: "Callable[[Norm, Mapping[str, Any]], Program]"
    norm_options: Callable[[str, Mapping[str, Any]], Mapping[str, Any]] = lambda norm, config: {}
    spatial: bool = False
    recurrent: bool = False
    metric: Metric = field(default_factory=Metric)
    side: tuple[Metric, ...] = ()
    series: tuple[Series, ...] = ()
    options: "tuple[Option, ...]" = ()

    def __post_init__(self) -> None:
        """Check the fields; see `Factor`."""
        from normlab.study.arguments import Option  # which knows comparisons

        options = expect.an(Option, "Write `study.Option(...)`.")
        expect.check_fields(
            self,
            name=expect.NAME,
            title=expect.LABEL,
            build=expect.function(
                "a function of a norm and a config", "Write `lambda norm, config: program`.", arguments=2
            ),
            norm_options=expect.function(
                "a function of a norm's name and a config", "Write `lambda norm, config: {}`.", arguments=2
            ),
            spatial=expect.SWITCH,
            recurrent=expect.SWITCH,
            metric=_METRIC,
            side=SIDE,
            series=SERIES,
            options=expect.Several(options, empty=True),
        )
        for field_name in ("side", "series", "options"):
            names = [named.name for named in getattr(self, field_name)]
            expect.check_distinct(f"`{field_name}` of `Problem`", names)


@dataclass(frozen=True, kw_only=True)
class Tier:
    """How much is spent. `claims` is False where the number of seeds allows none.

    Attributes:
        epochs: Passes over the training set.
        learning_rates: The grid, the same for every norm and factor value.
        tuning_seeds: Seeds per learning rate, never used again for evaluation.
        seeds: Evaluation seeds.
        problems: Those of this tier; all of the comparison's unless given.
        norms: Likewise.
        values: For each curve the factor values of this tier; curves that are not named have all of theirs.
        extend: Whether a grid grows by two points where an optimum is at its end (see `plan`).
        untuned: Whether every norm is evaluated at `Comparison.default_learning_rate`, too.
        leaves_out: One sentence for the report: what a larger tier would add.
    """

    epochs: int
    learning_rates: tuple[float, ...]
    tuning_seeds: int
    seeds: int
    problems: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()
    values: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    extend: bool = True
    untuned: bool = True
    claims: bool = True
    leaves_out: str = ""

    def __post_init__(self) -> None:
        """Check the fields; see `Factor`. Learning rates are sorted."""
        expect.check_fields(
            self,
            epochs=expect.WHOLE,
            learning_rates=expect.Several(expect.POSITIVE),
            tuning_seeds=expect.WHOLE,
            seeds=_SEEDS,
            problems=expect.Several(expect.NAME, empty=True),
            norms=_norms(empty=True),
            values=_TIER_VALUES,
            extend=expect.SWITCH,
            untuned=expect.SWITCH,
            claims=expect.SWITCH,
            leaves_out=expect.TEXT,
        )
        object.__setattr__(self, "learning_rates", tuple(sorted(self.learning_rates)))


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A question over problems x norms x values of the factors of its curves.

    Attributes:
        name: Short, for the folder and the command, e.g. `batch_size`.
        problems: On what.
        title: The heading of the report.
        question: One sentence that ends in a question mark.
        norms: Norm strings (see `normlab.norms.get`).
        curves: Over what; over the batch size unless given (see `normlab.study.defaults`).
        tiers: Budgets by name; those of `normlab.study.defaults` unless given.
        fixed: Sentences that say what is the same in all runs; printed in the report.
        baseline: The norm others are compared with, in the same cell.
        margin: Differences of the metric below this are of no practical interest: in the metric's unit, a fraction
            where it is shown in percent. Unless given, here or by the metric: half a percentage point; other metrics
            need their own.
        default_learning_rate: What people take who do not tune; a row of its own. `None` for no such row.
    """

    name: str
    problems: tuple[Problem, ...]
    title: str = "Error against batch size"
    question: str = "Which norm, at which batch size?"
    norms: tuple[str, ...] = ("none", "batch", "batch_renorm", "layer", "rms")
    curves: tuple[Curve, ...] = field(default_factory=lambda: _defaults().batch_size_curves())
    tiers: Mapping[str, Tier] = field(default_factory=lambda: _defaults().TIERS)
    fixed: tuple[str, ...] = ()
    baseline: str = "batch"
    margin: float | None = None
    default_learning_rate: float | None = None

    def __post_init__(self) -> None:
        """Check the fields, and that budgets name what there is.

        Raises:
            BadInput: If one cannot be what it should.
        """
        expect.check_fields(
            self,
            name=expect.NAME,
            problems=expect.Several(_PROBLEM, remedy="Write `problems=(problem,)`, with the comma."),
            title=expect.LABEL,
            question=expect.LABEL,
            norms=_norms(),
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
    """What one invocation asks for, every default resolved. Written to `comparison.json`.

    Attributes:
        comparison: Name of the comparison.
        source: What the user typed: `batch_size`, or the path of a file; empty for a comparison that only lives in this
            process.
        values: For each curve, its factor values.
        devices: How many of them train one model together, each with its share of every batch.
        options: What was given for options of the problems.
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
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One compile, many runs. Equal cells are one, wherever they stand (see `plan.Place`).

    Attributes:
        problem: Name of the problem.
        norm: The norm as it was asked for.
        config: All fields that the training sees, by name; `norm`: the norm with every option; and `statistics`: how
            many examples share statistics in training, and on how many devices they are.
    """

    problem: str
    norm: str
    config: tuple[tuple[str, Any], ...]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One trained model.

    Attributes:
        cell: Where it belongs.
        stage: `tune` or `evaluate`.
        learning_rate: Peak learning rate.
        seed: Drives split, initialization and order; tuning and evaluation seeds are disjoint.
    """

    cell: Cell
    stage: str
    learning_rate: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Record:
    """What is kept of a run: one JSON file.

    Attributes:
        key: sha256 of everything that decides the numbers (`run`, `identity`).
        run: The run, nested as dataclasses.
        identity: Code hash, versions, platform, data hash, strategy.
        status: `ok`, one of `FAILURES`, or `invalid`.
        reason: One line, empty when `ok`.
        metrics: `validation` (always), `test` and what else the program's `evaluate` gives (evaluation runs only),
            `train_loss`, `chance`; non-finite is None.
        series: Of evaluation runs, by name: a row of numbers for each time they were taken; non-finite is None.
        cost: `compile`: seconds until the cell's program was ready; `run` and `step`: seconds of training, all of it
            and per update; `memory`: bytes that the training program holds on the device; `moved`: bytes that
            collectives give to a device in an update, where there are several. Never part of a comparison.
    """

    key: str
    run: Run
    identity: Mapping[str, Any]
    status: str
    reason: str = ""
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    series: Mapping[str, list[list[float | None]]] = field(default_factory=dict)
    cost: Mapping[str, float] = field(default_factory=dict)


def frozen(config: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """`config` as a cell holds it: sorted, and lists as tuples, so that it can be hashed."""
    return tuple(sorted((name, _frozen(value)) for name, value in config.items()))


def canonical_json(value: Any) -> str:
    """`value` as JSON with sorted keys, the same text for equal values; dataclasses become objects, NaN is an error."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain)


def content_key(*parts: Any) -> str:
    """The sha256 of the canonical JSON of `parts`."""
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()


def _check_known(where: str, names: Iterable[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise BadInput(f"Expected {where} to name what the comparison has, got `{name}`. {nearest(name, known)}")


def _a_value(value: Any) -> Value:
    return value if isinstance(value, str) else expect.finite(value)


def _a_flag(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"--\w[\w-]*", value):
        raise ValueError(value)
    return value


def _a_norm(value: Any) -> str:
    """A norm as its string, which has been read."""
    from normlab import norms

    if not isinstance(value, str | norms.Norm):
        raise TypeError(value)
    try:
        norms.get(value)
    except (ValueError, TypeError) as error:
        raise BadInput(f"{one_line(error)} See `normlab list`.") from error
    return str(value)


def _few(value: Any) -> int:
    if expect.whole(value) > TUNING_SEEDS_FROM:
        raise ValueError(value)
    return expect.whole(value)


def _by_curve(values: Any) -> Mapping[str, tuple[Value, ...]]:
    if not isinstance(values, Mapping):
        raise TypeError(values)
    return {name: _VALUES.of(f"`values[{name!r}]` of `Tier`", found) for name, found in values.items()}


def _by_name(tiers: Any) -> Mapping[str, Tier]:
    if not isinstance(tiers, Mapping) or not tiers:
        raise TypeError(tiers)
    return {
        expect.NAME.of("the name of a budget", name): _TIER.of(f"`tiers[{name!r}]` of `Comparison`", tier)
        for name, tier in tiers.items()
    }


def _norms(*, empty: bool = False) -> expect.Several:
    return expect.Several(NORM, empty, remedy='Write a tuple, also of a single one: `norms=("batch",)`.')


_CALL_CURVES = "Write `curves=study.batch_size_curves(deployed=(2, 32))`, or a tuple of `study.Curve`s."
_SEEDS = expect.Kind(f"a positive whole number up to {TUNING_SEEDS_FROM}", _few, "Give one such as 5.")
_VALUE = expect.Kind("a number or text", _a_value, "Give one such as 32.")
_VALUES = expect.Several(_VALUE, remedy="Write a tuple, also of a single one: `values=(2, 32)`.")
_FLAG = expect.Kind("a flag of the command line", _a_flag, "Write one such as `--batch-sizes`.")
NORM = expect.Kind(
    "the name of a norm", _a_norm, 'Write one such as "batch" or "group:num_groups=8"; `normlab list` shows them all.'
)
_METRIC = expect.an(Metric, 'Write `study.Metric(name="...")`.')
SIDE = expect.Several(_METRIC, empty=True, remedy="Write `side=(metric,)`, with the comma.")
SERIES = expect.Several(
    expect.an(Series, "Write `study.Series(...)`."), empty=True, remedy="Write `series=(one,)`, with the comma."
)
_PROBLEM = expect.an(Problem, "Make one with `study.supervised(...)` or `study.streaming(...)`.")
_CURVE = expect.an(Curve, _CALL_CURVES)
_TIER = expect.an(Tier, "Make budgets with `study.tiers(...)`, or one with `study.Tier(...)`.")
_TIERS = expect.Kind(
    "budgets by name", _by_name, "Write `tiers=study.tiers(epochs=20)`, or a dictionary of `study.Tier`s."
)
_TIER_VALUES = expect.Kind(
    "values by the name of their curve", _by_curve, 'Write a dictionary such as `{"deployed": (2, 32)}`.'
)


def _defaults() -> Any:
    from normlab.study import defaults  # which is made of what is above

    return defaults


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__, **dataclasses.asdict(value)}
    raise TypeError(f"Expected something JSON can hold, got {value!r}.")
