"""Problems from a user's own model and data. Importing this imports neither JAX nor Flax."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from normlab import norms
from normlab.norms import Norm, Ramp
from normlab.study.config import Metric, Problem, Series
from normlab.study.data import Data, Source, load, sizes

if TYPE_CHECKING:
    from normlab.study.arguments import Option
    from normlab.study.learning import Fitted
    from normlab.study.train import Program

Measure = Callable[["Fitted"], Mapping[str, Any]]
Assess = Callable[["Fitted", Any], Mapping[str, Any]]
Loss = Callable[[Any, Any], Any]
Optimizer = Callable[[Callable[[Any], Any]], Any]


@dataclass(frozen=True, kw_only=True)
class Error:
    """What a trained model is judged by.

    Attributes:
        name: For axes and headings, e.g. `top-5 error`.
        function: `(outputs, labels) -> one number for each example`, lower is better; the mean is reported.
        percent: Whether it is a fraction, shown in percent.
        margin: See `Metric`.
    """

    name: str
    function: Loss
    percent: bool = False
    margin: float | None = None


def _misclassified(outputs: Any, labels: Any) -> Any:
    return outputs.argmax(-1) != labels


def _squared_error(outputs: Any, labels: Any) -> Any:
    return ((outputs.reshape(labels.shape) - labels) ** 2).reshape(len(labels), -1).mean(-1)


_TRAINING = ("batch_size", "epochs", "devices", "classes_per_batch")
"""What of a cell's config training takes; the model takes the rest."""

MISCLASSIFICATION = Error(name="test error", function=_misclassified, percent=True)
MEAN_SQUARED_ERROR = Error(name="mean squared error", function=_squared_error)


def supervised(
    *,
    name: str,
    model: Callable[..., Any],
    data: Source,
    title: str = "",
    loss: Loss | None = None,
    metric: Error | Loss | None = None,
    chance: float | Callable[[Data], float] | None = None,
    optimizer: Optimizer | None = None,
    norm_options: Mapping[str, Mapping[str, Any]] | None = None,
    spatial: bool = False,
    recurrent: bool = False,
    validation: float | None = None,
    test: float | None = None,
    series: Sequence[Series] = (),
    measure: Measure = lambda model: {},
    side: Sequence[Metric] = (),
    assess: Assess = lambda model, outputs: {},
    options: "Sequence[Option]" = (),
) -> Problem:
    """Make a problem from a Flax model and labelled data.

    Norms with running averages have them over about one epoch of examples, batch renorm also the schedule of its paper
    scaled to the run, unless `norm_options` or the norm's own string say otherwise.

    Args:
        name: Short, for records and flags.
        model: Linen: `model(norm)` gives a module that is called as `module(inputs, train=...)`. NNX: `model(norm,
            rngs=...)` gives a module that is called as `module(inputs)` after `train()` or `eval()`. The norm goes
            into it as `norm.linen(train=train)` or `norm.nnx(features, rngs=rngs)`. A model that has an argument
            `classes` is told how many there are. What a curve sets besides the batch size, classes in a batch, epochs
            and devices is handed on: `model(norm, depth=2)`.
        data: A `Data`, a function that returns one, or the path of an `.npz` file; see `normlab.study.data.load`.
        title: For people; the name unless given.
        loss: `(outputs, labels) -> number, or one for each example`. Unless given: softmax cross entropy for integer
            labels, squared error for others.
        metric: An `Error`, or its function. Unless given: the share of wrong classes or the mean squared error, for
            which labels are looked at now.
        chance: The metric of a model that has learned nothing, or a function of the data that gives it. Unless given:
            that of the best constant answer where the metric is one of these two, else unknown, and then no run is
            found to have collapsed.
        optimizer: `learning-rate schedule -> optax.GradientTransformation`, e.g. `optax.adamw`. Unless given: SGD with
            momentum 0.9.
        norm_options: For norms by name, e.g. `{"group": {"num_groups": 4}}`.
        spatial: Whether activations have axes between batch and features, which instance norm needs.
        recurrent: Whether the norm goes into a recurrent cell.
        validation: How much of the data chooses learning rates: a number of examples, or below 1 a share; without
            effect where the data bring their own. Unless given, what the data say, which is 0.2 unless they are told.
        test: How much is reported on, likewise.
        series: What is measured of a model before, during and after training.
        measure: `Fitted -> vectors by name`; a norm that has no such thing gives NaN, or leaves it out.
        side: What is reported of evaluated models beside the metric.
        assess: `(Fitted, outputs of the test examples) -> numbers by name`, likewise.
        options: What can be asked for on the command line besides; what is given is handed to the function `data` by
            name.
    """
    error = metric if metric is None or isinstance(metric, Error) else _named(metric)
    task = Task(
        model=model,
        data=data,
        loss=loss,
        given_error=error,
        chance=chance,
        optimizer=optimizer,
        given_options=norm_options or {},
        validation=validation,
        test=test,
        observed={"series": series, "measure": measure, "side": side, "assess": assess},
        asked=[option.name for option in options],
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
        side=tuple(side),
        series=tuple(series),
        options=tuple(options),
    )


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a supervised problem does; see `supervised`. Data are loaded when they are needed, and once."""

    model: Callable[..., Any]
    data: Source
    loss: Loss | None
    given_error: Error | None
    chance: float | Callable[[Data], float] | None
    optimizer: Optimizer | None
    given_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    validation: float | None
    test: float | None
    observed: Mapping[str, Any] = field(default_factory=dict)
    asked: Sequence[str] = ()
    _loaded: dict[tuple[Any, ...], Data] = field(default_factory=dict, init=False)

    def loaded(self, config: Mapping[str, Any]) -> Data:
        """The data, as far as options decide what they are."""
        options = {name: config[name] for name in self.asked if name in config}
        key = tuple(options.items())
        if key not in self._loaded:
            self._loaded[key] = load(self.data, **options)
        return self._loaded[key]

    def error(self, config: Mapping[str, Any]) -> Error:
        """What is measured."""
        return self.given_error or (MISCLASSIFICATION if self.loaded(config).classes else MEAN_SQUARED_ERROR)

    def build(self, norm: Norm, config: Mapping[str, Any]) -> "Program":
        """The program of a cell; see `Problem.build`.

        Raises:
            ValueError: For what cannot be trained.
        """
        from normlab.study.learning import learn
        from normlab.study.networks import network

        ghost = norm.options.get("ghost_batch_size")
        if isinstance(ghost, int) and ghost > config["batch_size"]:
            raise ValueError(f"Expected `ghost_batch_size` up to the batch of {config['batch_size']}, got {ghost}.")
        data = self.loaded(config)
        training = {name: config[name] for name in _TRAINING if name in config}
        fields = {name: value for name, value in config.items() if name not in (*training, *self.asked)}
        fields |= self._classes(data)
        first = data.prepared(data.inputs[:2])
        return learn(
            data,
            lambda norm: network(self.model, norm, first, **fields),
            norm,
            error=self.error(config),
            loss=self.loss,
            optimizer=self.optimizer,
            chance=self.chance(data) if callable(self.chance) else self.chance,
            validation=self.validation,
            test=self.test,
            **self.observed,
            **training,
        )

    def _classes(self, data: Data) -> dict[str, int]:
        """How many there are, for a model that wants to know."""
        parameter = inspect.signature(self.model).parameters.get("classes")
        if parameter is None or not (data.classes or parameter.default is parameter.empty):
            return {}
        if not data.classes:
            raise ValueError(
                f"Expected `labels` to be classes, integers from 0 on, which the model's `classes` counts, got "
                f"{data.labels.dtype}. Convert them, or take another model."
            )
        return {"classes": int(data.labels.max()) + 1}

    def norm_options(self, norm: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """Options of a norm; see `Problem.norm_options`."""
        options = self.given_options.get(norm, {})
        if not norms.get(norm).entry.averages:
            return options
        train, _ = sizes(self.loaded(config), self.validation, self.test)
        ramps = _ramps(config["epochs"] * max(1, train // config["batch_size"])) if norm == "batch_renorm" else {}
        return {**averages(norm, train, config["batch_size"]), **ramps, **options}


def averages(norm: str, memory: int, batch_size: int) -> dict[str, float]:
    """Options by which the running statistics of a norm remember so many examples; none where it has no such option.

    Args:
        norm: Its name.
        memory: In examples: what is older weighs less than 1 / e.
        batch_size: Examples an update.
    """
    seen = {"batch": batch_size, "example": 1, "": 0}[norms.get(norm).entry.averages]
    return {"momentum": max(0.0, 1 - seen / memory)} if seen else {}


def _ramps(steps: int) -> dict[str, Any]:
    """Batch renorm's limits, opened between 10 % and 35 % of the updates."""
    begin = round(0.1 * steps)
    end = max(begin + 1, round(0.35 * steps))
    return {
        "r_max": Ramp(1.0, 3.0, begin, end),
        "d_max": Ramp(0.0, 5.0, begin, end),
        "initialize_from_first_batch": True,
    }


def _named(function: Loss) -> Error:
    """A function as an error that has its name."""
    name = getattr(function, "__name__", "").strip("<>_").replace("_", " ")
    return Error(name=name if name and name != "lambda" else "error", function=function)
