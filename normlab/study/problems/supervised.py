"""Problems of supervised learning, from a model, data and a loss."""

import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Required, SupportsFloat, TypedDict, cast

import numpy as np

from normlab import expect, norms
from normlab.errors import BadInput
from normlab.extras import require
from normlab.introspect.signature import check_call, signature_of
from normlab.norms import Norm
from normlab.study.data.dataset import Dataset, DatasetSource, load
from normlab.study.data.splits import check_enough, sizes
from normlab.study.design.options import Option
from normlab.study.design.problem import EXTRA_METRICS, NORM, SERIES, Metric, Problem, Series
from normlab.study.problems.norm_defaults import averages, ramps_over
from normlab.study.training.objectives import (
    A_LOSS,
    AN_OPTIMIZER,
    MEAN_SQUARED_ERROR,
    MISCLASSIFICATION,
    Error,
    Loss,
    Optimizer,
)

if TYPE_CHECKING:
    from jax.typing import ArrayLike

    from normlab.introspect.pure import Model
    from normlab.notation import PyTree
    from normlab.study.design.program import Program
    from normlab.study.training.supervised import Fitted


Measure = Callable[["Fitted"], Mapping[str, "ArrayLike"]]
Assess = Callable[["Fitted", "PyTree"], Mapping[str, "ArrayLike"]]
NormOptions = Mapping[str, Mapping[str, object]]
"""Options of norms by name."""


class Measures(TypedDict, total=False):
    """Arguments of `supervised` that say what is measured beside the error."""

    series: Sequence[Series]
    measure: Measure
    extra_metrics: Sequence[Metric]
    assess: Assess
    examine: Measure


class TrainingConfig(TypedDict, total=False):
    """Fields of a configuration that training uses; the model receives the others."""

    batch_size: Required[int]
    epochs: Required[int]
    devices: int
    classes_per_batch: int
    training_size: float


LONGER = "longer"
"""Field of a configuration: factor of the number of epochs."""

_COUNTS = ("batch_size", "epochs")


def supervised(
    *,
    name: str,
    model: "Model",
    data: DatasetSource,
    title: str = "",
    loss: Loss | None = None,
    metric: Error | Loss | None = None,
    chance: float | Callable[[Dataset], float] | None = None,
    optimizer: Optimizer | None = None,
    norm_options: NormOptions | None = None,
    spatial: bool = False,
    recurrent: bool = False,
    validation: float | None = None,
    test: float | None = None,
    series: Sequence[Series] = (),
    measure: Measure = lambda model: {},
    extra_metrics: Sequence[Metric] = (),
    assess: Assess = lambda model, outputs: {},
    examine: Measure | None = None,
    options: Sequence[Option] = (),
) -> Problem:
    """Make a problem from a Flax model and labelled data.

    Norms with running averages have them over about one epoch of examples, batch renorm also the schedule of its paper
    scaled to the run, unless `norm_options` or the norm's own string say otherwise.

    Args:
        name: Short name for records and flags.
        model: Linen: `model(norm)` returns a module that is called as `module(inputs, train=...)`. NNX: `model(norm,
            rngs=...)` returns a module that is called as `module(inputs)` after `train()` or `eval()`. The model
            inserts `norm.linen(train=train)` or `norm.nnx(features, rngs=rngs)`. A model with an argument `classes`
            receives the number of classes. Fields of a curve's `config` are passed on, `model(norm, depth=2)`, except
            those of training: `batch_size`, `epochs`, `longer` (a factor of the number of epochs), `training_size`,
            `classes_per_batch` and `devices`.
        data: A `Data`, a function that returns one, or the path of an `.npz` file; see `data.dataset.load`.
        title: Title for the report; the name unless given.
        loss: `(outputs, labels) -> number, or one for each example`. Unless given: softmax cross entropy for integer
            labels, squared error for others.
        metric: An `Error`, or its function. Unless given: the share of wrong classes or the mean squared error, as the
            labels decide; the data are then loaded at once.
        chance: The metric of a model that has learned nothing, or a function of the data that returns it. Unless given:
            the metric of the best constant answer if the metric is one of these two. If unknown, no run counts as
            collapsed.
        optimizer: `learning-rate schedule -> optax.GradientTransformation`, e.g. `optax.adamw`. Unless given: SGD with
            momentum 0.9.
        norm_options: For norms by name, e.g. `{"group": {"num_groups": 4}}`.
        spatial: Whether activations have axes between batch and features, which instance norm needs.
        recurrent: Whether the norm goes into a recurrent cell.
        validation: Size of the set that chooses learning rates: a number of examples, or below 1 a share; without
            effect if the data contain such a set. `Data.drawn` unless given.
        test: Size of the set that is reported on, likewise.
        series: Series that are measured before, during and after training.
        measure: `Fitted -> vectors by name`; a series that a norm does not have is NaN, or left out.
        extra_metrics: Metrics of evaluated models that are reported beside `metric`.
        assess: `(Fitted, outputs of the test examples) -> numbers by name`, likewise; traced once a configuration.
        examine: `Fitted -> numbers by name`, likewise; called after each run that is evaluated, with arrays and outside
            of any compiled program, for functions such as those of `normlab.tools`.
        options: Further options of the command line; given ones are passed to the function `data` by name.

    Raises:
        BadInput: If an argument has a wrong type or value; data and model are checked as far as they are known.
    """
    given = expect.checked("supervised", locals(), {**KINDS, **_SUPERVISED})
    task = SupervisedTask(
        model=model,
        data=data,
        loss=loss,
        metric=given["metric"],
        chance=given["chance"],
        optimizer=optimizer,
        options_of_norms=given["norm_options"],
        validation=given["validation"],
        test=given["test"],
        series=given["series"],
        measure=given["measure"],
        extra_metrics=given["extra_metrics"],
        assess=given["assess"],
        examine=given["examine"],
        option_names=[option.name for option in given["options"]],
    )
    judged = task.error({})
    return Problem(
        name=name,
        title=title or name,
        build=task.build,
        norm_options=task.norm_options,
        spatial=spatial,
        recurrent=recurrent,
        metric=Metric(name=judged.name, percent=judged.percent, margin=judged.margin),
        extra_metrics=given["extra_metrics"],
        series=given["series"],
        options=given["options"],
    )


def _a_model(value: object) -> "Model":
    linen, nnx = sys.modules.get("flax.linen"), sys.modules.get("flax.nnx")
    kinds = tuple(module.Module for module in (linen, nnx) if module)
    if not callable(value) or isinstance(value, kinds):
        name = type(value).__name__
        remedy = (
            f"Write `model={name}`, or `model=lambda norm: {name}(norm)`." if isinstance(value, kinds) else _A_MODEL
        )
        raise expect.refusal("`model` to be a class or function that makes a model from a norm", value, remedy)
    is_linen = linen is not None and isinstance(value, type) and issubclass(value, linen.Module)
    signature = signature_of(value)
    try:
        signature.bind_partial(None)
    except TypeError:
        raise expect.refusal("`model` to take a norm", value, _A_MODEL) from None
    if is_linen and next(iter(signature.parameters)) == "parent":  # what Flax adds behind the fields
        raise expect.refusal("`model` to have a field `norm`", value, _A_MODEL)
    if is_linen and isinstance(value, type):
        check_call(value)
    return cast("Model", value)


def _is_source(value: object) -> bool:
    return not isinstance(value, type) and (isinstance(value, Dataset | str | os.PathLike) or callable(value))


def _a_metric(value: object) -> Error:
    return value if isinstance(value, Error) else _named(A_LOSS.convert(value))


def _a_chance(value: SupportsFloat) -> object:
    return value if callable(value) else expect.finite(value)


def _by_norm(value: object) -> NormOptions:
    if not isinstance(value, Mapping | None):
        raise TypeError(value)
    for name, options in (value or {}).items():
        if not isinstance(options, Mapping) or not all(isinstance(option, str) for option in options):
            raise TypeError(value)
        NORM.of("each name in `norm_options`", name)
    return value or {}


_A_MODEL = "Write a class with a field `norm`, or `lambda norm: Net(norm)`."
_OBSERVER = "Write a function that returns a dictionary."

KINDS: Mapping[str, expect.Check] = {
    "name": expect.NAME,
    "model": expect.Kind("a class or function that makes a model from a norm", _a_model),
    "title": expect.TEXT,
    "loss": expect.optional(A_LOSS),
    "optimizer": expect.optional(
        expect.function("a function of the learning rate that returns an optimizer", AN_OPTIMIZER, arguments=1)
    ),
    "norm_options": expect.Kind(
        "options by the names of norms", _by_norm, 'Write a dictionary such as `{"group": {"num_groups": 8}}`.'
    ),
    "options": expect.Several(expect.an(Option, "Write `study.Option(...)`."), empty=True),
}
"""Kinds of the arguments that all problems share."""

_SUPERVISED: Mapping[str, expect.Check] = {
    "data": expect.Kind(
        "a `Data`, a function that returns one, or the path of an .npz file",
        expect.kept(_is_source),
        "Write `data=study.Data(inputs, labels)`.",
    ),
    "metric": expect.optional(
        expect.Kind("a `study.Error`, or a function of outputs and labels", _a_metric, "Write `study.Error(...)`.")
    ),
    "chance": expect.optional(
        expect.Kind("a finite number, or a function of the data", _a_chance, "Give the error of a model that guesses.")
    ),
    "spatial": expect.SWITCH,
    "recurrent": expect.SWITCH,
    "validation": expect.optional(expect.SHARE),
    "test": expect.optional(expect.SHARE),
    "series": SERIES,
    "measure": expect.function("a function of a `Fitted`", _OBSERVER, arguments=1),
    "extra_metrics": EXTRA_METRICS,
    "assess": expect.function("a function of a `Fitted` and its outputs", _OBSERVER, arguments=2),
    "examine": expect.optional(expect.function("a function of a `Fitted`", _OBSERVER, arguments=1)),
}


@dataclass(frozen=True, kw_only=True)
class SupervisedTask:
    """A supervised problem; see `supervised`. Data are loaded once, on first use."""

    model: "Model"
    data: DatasetSource
    loss: Loss | None
    metric: Error | None
    chance: float | Callable[[Dataset], float] | None
    optimizer: Optimizer | None
    options_of_norms: NormOptions = field(default_factory=dict)
    validation: float | None
    test: float | None
    series: Sequence[Series]
    measure: Measure
    extra_metrics: Sequence[Metric]
    assess: Assess
    examine: Measure | None
    option_names: Sequence[str] = ()
    _loaded: dict[tuple[tuple[str, object], ...], Dataset] = field(default_factory=dict, init=False)

    def loaded(self, config: Mapping[str, object]) -> Dataset:
        """Load the data that the options choose."""
        options = {name: config[name] for name in self.option_names if name in config}
        key = tuple(options.items())
        if key not in self._loaded:
            data = load(self.data, **options)
            check_enough(data, self.validation, self.test)
            if self.loss is None:
                self._check_labels(data, complete="train_examples" not in options)
            self._loaded[key] = data
        return self._loaded[key]

    def _check_labels(self, data: Dataset, *, complete: bool) -> None:
        """Refuse labels that the losses of this package would misread.

        Args:
            data: The data.
            complete: False for a budget of the examples, which may omit a class.

        Raises:
            BadInput: If labels are one-hot, no classes for the metric of classes, or not counted from 0.
        """
        labels, found = data.labels, f"{data.labels.dtype} of shape {data.labels.shape}"
        if (
            labels.ndim == 2
            and labels.shape[1] > 1
            and ((labels == 0) | (labels == 1)).all()
            and (labels.sum(1) == 1).all()
        ):
            raise BadInput(
                f"Expected `labels` to be a class for each example, got one-hot rows, {found}. Write "
                "`labels.argmax(1)`, or give `loss` and `metric`."
            )
        if not data.classes:
            return self._check_targets(labels)
        if labels.ndim != 1:
            raise BadInput(
                f"Expected `labels` to be a class for each example, shape (examples,), got {found}. Write "
                "`labels.astype(float)` if they are numbers to predict, or give `loss` and `metric`."
            )
        there = np.unique(labels)
        if there[0] < 0 or (complete and there[-1] >= len(there)):
            raise BadInput(
                f"Expected `labels` from 0 to {len(there) - 1}, since there are {len(there)} classes, counted from 0 "
                f"without gaps, got {there[0]} to {there[-1]}. Write `np.unique(labels, return_inverse=True)[1]`."
            )
        if complete and len(there) == 1:
            raise BadInput(
                f"Expected `labels` of two classes or more, got {there[0]} for all {len(labels)} examples. Add the "
                "others."
            )
        return None

    def _check_targets(self, labels: np.ndarray) -> None:
        """Refuse classes that are no integers, as far as they differ from numbers to predict."""
        there = np.unique(labels)
        counted = 1 < len(there) <= len(labels) // 2 and (there == np.arange(len(there))).all()
        classes = labels.ndim == 1 and counted
        if self.metric is MISCLASSIFICATION or (classes and self.metric is None):
            came = f"{labels.dtype}, only 0 to {there[-1]:g}" if classes else labels.dtype
            raise BadInput(
                f"Expected `labels` to be classes, integers from 0 on, got {came}. Write `labels.astype(int)`, or "
                "`metric=study.MEAN_SQUARED_ERROR` where they are numbers to predict."
            )

    def error(self, config: Mapping[str, object]) -> Error:
        """Return the error of the problem."""
        return self.metric or (MISCLASSIFICATION if self.loaded(config).classes else MEAN_SQUARED_ERROR)

    def build(self, norm: Norm, config: Mapping[str, object]) -> "Program":
        """Build the program of a configuration; see `Problem.build`.

        Raises:
            ValueError: If the configuration cannot be trained.
        """
        require("study", "optax")
        from normlab.introspect.pure import network
        from normlab.study.training.supervised import SupervisedTraining

        ghost = norm.options.get("ghost_batch_size")
        if isinstance(ghost, int) and ghost > (batch := cast(TrainingConfig, config)["batch_size"]):
            raise ValueError(f"Expected `ghost_batch_size` up to the batch of {batch}, got {ghost}.")
        data, training = self.loaded(config), _training(config)
        used = (*training, LONGER, *self.option_names)
        fields = {name: value for name, value in config.items() if name not in used}
        fields |= self._classes(data)
        first = data.prepared(data.sample_inputs())
        return SupervisedTraining(
            data=data,
            make_network=lambda norm: network(self.model, norm, first, **fields),
            norm=norm,
            error=self.error(config),
            loss=self.loss,
            optimizer=self.optimizer,
            chance=self.chance(data) if callable(self.chance) else self.chance,
            validation=self.validation,
            test=self.test,
            series=self.series,
            observe=self.measure,
            extra_metrics=self.extra_metrics,
            assess=self.assess,
            examine=self.examine,
            **training,
        ).program()

    def _classes(self, data: Dataset) -> dict[str, int]:
        """Return the number of classes, for a model with an argument `classes`."""
        parameter = inspect.signature(self.model).parameters.get("classes")
        if parameter is None or not (data.classes or parameter.default is parameter.empty):
            return {}
        if not data.classes:
            raise ValueError(
                f"Expected `labels` to be classes, integers from 0 on, which the model's `classes` counts, got "
                f"{data.labels.dtype}. Convert them, or take another model."
            )
        return {"classes": int(data.labels.max()) + 1}

    def norm_options(self, norm: str, config: Mapping[str, object]) -> Mapping[str, object]:
        """Return the options of a norm; see `Problem.norm_options`."""
        options = self.options_of_norms.get(norm, {})
        if not norms.get(norm).entry.averages:
            return options
        training, (train, _) = _training(config), sizes(self.loaded(config), self.validation, self.test)
        found = averages(norm, train, training["batch_size"])
        if norm != "batch_renorm":
            return {**found, **options}
        steps = training["epochs"] * max(1, train // training["batch_size"])
        return {**found, **ramps_over(steps), **options}


def _training(config: Mapping[str, object]) -> TrainingConfig:
    """Return the fields of training, with the number of epochs as it is in the end."""
    fields = {name: config[name] for name in TrainingConfig.__annotations__ if name in config}
    fields |= {name: expect.WHOLE.of(f"`{name}`", fields[name]) for name in _COUNTS if name in fields}
    training = cast(TrainingConfig, fields)
    if LONGER in config:
        training["epochs"] *= expect.WHOLE.of(f"`{LONGER}`", config[LONGER])
    return training


def _named(function: Loss) -> Error:
    """Make an error from a function, with its name."""
    name = getattr(function, "__name__", "").strip("<>_").replace("_", " ")
    return Error(name=name if name and name != "lambda" else "error", function=function)
