"""Problems on streams: every example is tested, then trained on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, TypedDict, cast

from normlab import expect, norms
from normlab.extras import require
from normlab.norms import Norm
from normlab.study.design.problem import Metric, Problem, Series
from normlab.study.problems.norm_defaults import averages
from normlab.study.problems.supervised import KINDS, NormOptions
from normlab.study.streams.protocol import (
    ALL_TASKS,
    DROP,
    FINAL,
    FORGETTING,
    LOST,
    NOT_RECOVERED,
    PARTS,
    PREFIX,
    RECOVERY,
)
from normlab.study.training.objectives import MISCLASSIFICATION, Error, Loss, StreamOptimizer

if TYPE_CHECKING:
    from normlab.introspect.pure import Model
    from normlab.study.design.options import Option
    from normlab.study.design.program import Program
    from normlab.study.streams.stream import Source


MEMORY = 200
"""Examples that running statistics remember unless a curve or the string of a norm sets another number."""


class Arrival(TypedDict, total=False):
    """Fields of a configuration that decide how examples arrive; the model receives the others."""

    batch_size: int
    varying: bool
    delay: int


PREQUENTIAL_ERROR = Error(name="prequential error", function=MISCLASSIFICATION.function, percent=True, margin=0.005)
"""The share of wrong predictions, each made before its example was learned from."""


def streaming(
    *,
    name: str,
    model: "Model",
    source: "Source | Callable[..., Source]",
    title: str = "",
    loss: Loss | None = None,
    metric: Error = PREQUENTIAL_ERROR,
    optimizer: StreamOptimizer | None = None,
    norm_options: NormOptions | None = None,
    drifting: bool = False,
    tasks: bool = False,
    options: "Sequence[Option]" = (),
) -> Problem:
    """Make a problem from a Flax model and a stream: predict, then learn, each example once.

    If the source has many streams, every seed has its own, and learning rates are chosen on other streams than those
    that are reported on. If there is one real stream, seeds differ in initial weights, and learning rates are chosen on
    the first fifth of the stream, which is not reported on.

    Curves may set `batch_size` (examples of a burst), `varying` (whether bursts have 1 to `2 * batch_size - 1`
    examples) and `delay` (number of examples by which labels are late); other values are passed to the model.

    Running averages of norms are over `MEMORY` examples, unless `norm_options`, the curve or the string of the norm set
    another number.

    Args:
        name: Short name for records and flags.
        model: Like that of `supervised`, with the number of outputs, 1 for numbers: `model(norm, outputs=10)`. If
            bursts vary or labels are late, the module is called with `mask=`, shape (batch,), which is True for
            examples that count.
        source: Source of streams, or a function that returns one.
        title: Title for the report; the name unless given.
        loss: `(outputs, labels) -> one number for each example`. Unless given: softmax cross entropy for classes,
            squared error for numbers.
        metric: Error of predictions.
        optimizer: Makes an optimizer from a learning rate, e.g. `optax.adam`. Unless given: plain SGD.
        norm_options: Options of norms by name, e.g. `{"group": {"num_groups": 4}}`.
        drifting: Whether streams contain the positions of their drifts; then drops and recovery are reported.
        tasks: Whether streams are sequences of tasks; then final errors and forgetting are reported.
        options: Further options of the command line; given ones are passed to the function `source` by name.

    Raises:
        BadInput: If an argument has a wrong type or value, as far as it is known.
    """
    given = expect.checked("streaming", locals(), {**KINDS, **_STREAMING})
    task = _StreamingTask(
        model=model,
        source=source,
        loss=loss,
        metric=metric,
        optimizer=optimizer,
        options_of_norms=given["norm_options"],
        extra_metrics=_extra_metrics(metric, given["drifting"], given["tasks"]),
        option_names=[option.name for option in given["options"]],
    )
    return Problem(
        name=name,
        title=title or name,
        build=task.build,
        norm_options=task.norm_options,
        metric=Metric(name=metric.name, percent=metric.percent, margin=metric.margin),
        extra_metrics=task.extra_metrics,
        series=_series(metric),
        options=given["options"],
    )


def _is_source(value: object) -> bool:
    return callable(value) and not isinstance(value, type)  # a source makes a stream of a seed


_STREAMING: Mapping[str, expect.Check] = {
    "source": expect.Kind(
        "a `Source`, or a function that returns one",
        expect.kept(_is_source),
        "Make one by `streams.from_file(path)`, or `streams.Source(name, lambda seed: stream, replicated=False)`.",
    ),
    "metric": expect.an(Error, "Write `study.Error(name=..., function=...)`."),
    "drifting": expect.SWITCH,
    "tasks": expect.SWITCH,
}


@dataclass(frozen=True, kw_only=True)
class _StreamingTask:
    """A problem on streams; see `streaming`."""

    model: "Model"
    source: "Source | Callable[..., Source]"
    loss: Loss | None
    metric: Error
    optimizer: StreamOptimizer | None
    options_of_norms: NormOptions
    extra_metrics: tuple[Metric, ...]
    option_names: Sequence[str] = ()
    _made: dict[tuple[tuple[str, object], ...], "Source"] = field(default_factory=dict, init=False)

    def build(self, norm: Norm, config: Mapping[str, object]) -> "Program":
        """Build the program of a configuration; see `Problem.build`."""
        require("online", "optax", "river")
        from normlab.introspect.pure import Network, network
        from normlab.study.training.prequential import PrequentialTraining

        arrival = {name: config[name] for name in Arrival.__annotations__ if name in config}
        known = (*arrival, *self.option_names, "epochs", "devices")
        fields = {name: value for name, value in config.items() if name not in known}
        source = self._source(config)
        first = source(0)

        def made(norm: Norm) -> Network:
            return network(self.model, norm, first.inputs[:2], outputs=first.classes or 1, **fields)

        averaged = len(first.tasks) > 0 and norm.entry.averages == "batch"
        return PrequentialTraining(
            source=source,
            network=made(norm),
            forgetful=made(norms.get(norm, momentum=0.0)) if averaged else None,
            error=self.metric,
            loss=self.loss,
            optimizer=self.optimizer,
            extra_metrics=self.extra_metrics,
            **cast(Arrival, arrival),
        ).program()

    def norm_options(self, norm: str, config: Mapping[str, object]) -> Mapping[str, object]:
        """Return the options of a norm; see `Problem.norm_options`."""
        return {
            **averages(norm, MEMORY, cast(Arrival, config).get("batch_size", 1)),
            **self.options_of_norms.get(norm, {}),
        }

    def _source(self, config: Mapping[str, object]) -> "Source":
        from normlab.study.streams.stream import Source

        if isinstance(self.source, Source):
            return self.source
        options = {name: config[name] for name in self.option_names if name in config}
        key = tuple(options.items())
        if key not in self._made:
            found = self.source(**options)
            if not isinstance(found, Source):
                raise expect.refusal("`source` to return a `Source`", found, "Return `streams.Source(...)`.")
            self._made[key] = found
        return self._made[key]


def _extra_metrics(metric: Error, drifting: bool, tasks: bool) -> tuple[Metric, ...]:
    from normlab.study.streams import baselines

    percent = metric.percent
    of_drifts = (
        Metric(name=DROP, percent=percent),
        Metric(name=RECOVERY, percent=False),
        Metric(name=NOT_RECOVERED, percent=True),
        Metric(name=LOST, percent=False),
    )
    of_tasks = tuple(Metric(name=name, percent=percent) for name in (FINAL, FORGETTING, ALL_TASKS))
    others = tuple(Metric(name=name, percent=percent, shared=True) for name in baselines.names(classes=percent))
    return (*of_drifts * drifting, *of_tasks * tasks, *others)


def _series(metric: Error) -> tuple[Series, ...]:
    along = partial(
        Series,
        x_label="share of the stream (%)",
        x=tuple(100 * (part + 1) / PARTS for part in range(PARTS)),
        at_end=True,
    )
    return (
        along(
            name="error",
            title="Error along the stream",
            y_label=f"{metric.name}{' (%)' if metric.percent else ''}",
            shows=f"Mean over each of {PARTS} equal parts of the stream; predictions come before learning. Of a "
            f"single real stream the first {PREFIX:.0%} chose the learning rate.",
        ),
        along(
            name="lag",
            title="How far the running mean is from the true one",
            y_label="difference (true standard deviations)",
            shows="Of what the first norm is given, with the weights of that moment: running mean minus the mean over "
            "the latest part of the stream; mean of absolute values over features. Where a stream drifts, it rises, "
            "and the longer the memory, the longer it stays.",
        ),
        along(
            name="spread",
            title="Running over true variance",
            y_label="ratio",
            shows="Likewise; 1 where the running variance is right.",
            log=True,
        ),
    )
