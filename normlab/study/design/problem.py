"""Problems: models and data to train, and the metrics to report."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from normlab import expect
from normlab.errors import BadInput, one_line
from normlab.study.design.options import Option

if TYPE_CHECKING:
    from normlab.norms import Norm
    from normlab.study.design.program import Program


MEASURED_AT = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of training at which series are measured."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number that is reported of a model; lower is better.

    Attributes:
        name: For axes and headings, e.g. `test error`.
        percent: Whether the number is a fraction, shown in percent; other numbers are shown unchanged.
        margin: Differences below this are of no practical interest; `Comparison.margin` unless given.
        shared: Whether the number belongs to a baseline other than the norms, and is the same for all norms at a factor
            value; shown once, and drawn across the figure of errors.
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
    """Numbers measured of a model before training, after each quarter of training and at its end.

    Attributes:
        name: Short, for records and files, e.g. `gradient`.
        title: A heading.
        x_label: Label of the x-axis with its unit, e.g. `time step`.
        y_label: Label of the y-axis with its unit.
        x: Position of each number; a single number is drawn over the share of training instead.
        log: Whether the y-axis is logarithmic; then medians over seeds are drawn, else means.
        log_x: Whether the x-axis is logarithmic.
        during: Whether the middle of training is also drawn.
        at_end: Whether only the series at the end is drawn, such as a record of the whole training. Where this is true
            of all series of a problem, nothing is measured before the end.
        shows: Sentences for the report: what the series shows, and how it is measured.
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
        build: `(norm, config) -> Program`: the pure `init`, `step` and `evaluate` of one configuration; `config` holds
            its training fields (`epochs`, and the result of `Curve.config` for the factor's value). The function
            imports JAX inside and raises `ValueError` for what cannot be trained.
        norm_options: `(norm name, config) -> options` of a norm unless its string names them, e.g. the number of groups
            that fits the width.
        spatial: Whether activations have spatial axes; norms that need them are recorded as `invalid` elsewhere.
        recurrent: Whether the norm goes into a recurrent cell. Norms that exist for cells alone are recorded
            as `invalid` where this is false, and norms that no cell takes where it is true.
        metric: The metric that norms are compared by.
        extra_metrics: Further metrics of evaluated models, with names that `Program.evaluate` returns.
        series: Series measured before, during and after training, with names that `Program.series` returns.
        options: Further options of the command line, whose values `build` and `norm_options` find in `config`. They are
            not in the key of a run, which has the hash of the data.
    """

    name: str
    title: str
    build: "Callable[[Norm, Mapping[str, object]], Program]"
    norm_options: Callable[[str, Mapping[str, object]], Mapping[str, object]] = lambda norm, config: {}
    spatial: bool = False
    recurrent: bool = False
    metric: Metric = field(default_factory=Metric)
    extra_metrics: tuple[Metric, ...] = ()
    series: tuple[Series, ...] = ()
    options: "tuple[Option, ...]" = ()

    def __post_init__(self) -> None:
        """Check the fields; see `Factor`."""
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
            extra_metrics=EXTRA_METRICS,
            series=SERIES,
            options=expect.Several(options, empty=True),
        )
        for field_name in ("extra_metrics", "series", "options"):
            names = [named.name for named in getattr(self, field_name)]
            expect.check_distinct(f"`{field_name}` of `Problem`", names)


def _a_norm(value: object) -> str:
    """Convert a norm to its string, after parsing it."""
    from normlab import norms

    if not isinstance(value, str | norms.Norm):
        raise TypeError(value)
    try:
        norms.get(value)
    except (ValueError, TypeError) as error:
        raise BadInput(f"{one_line(error)} See `normlab list norms`.") from error
    return str(value)


def several_norms(*, empty: bool = False) -> expect.Several[str]:
    """Make the kind of a tuple of norms."""
    return expect.Several(NORM, empty, remedy='Write a tuple, also of a single one: `norms=("batch",)`.')


NORM = expect.Kind(
    "the name of a norm",
    _a_norm,
    'Write one such as "batch" or "group:num_groups=8"; `normlab list norms` shows them all.',
)
_METRIC = expect.an(Metric, 'Write `study.Metric(name="...")`.')
EXTRA_METRICS = expect.Several(_METRIC, empty=True, remedy="Write `extra_metrics=(metric,)`, with the comma.")
SERIES = expect.Several(
    expect.an(Series, "Write `study.Series(...)`."), empty=True, remedy="Write `series=(one,)`, with the comma."
)
