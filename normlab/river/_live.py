"""river's classifier and regressor around a Flax model with a norm."""

import functools
import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, Self

import jax
import numpy as np
import optax
from river import base

from normlab import __version__, norms
from normlab.errors import one_line
from normlab.river import _file
from normlab.river._examples import (
    REFUSE,
    SKIP,
    Example,
    check_finite,
    check_weights,
    is_finite,
    names_of,
    not_finite,
    number,
    read,
    read_frame,
    rows,
)
from normlab.river._network import Learned, Recipe

if TYPE_CHECKING:
    import pandas as pd

Model = Callable[..., Any]
Optimizer = Callable[[float], optax.GradientTransformation]
Loss = Callable[[Any, Any], Any]


def _squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """The mean over outputs of each example."""
    return ((outputs.reshape(targets.shape) - targets) ** 2).reshape(len(targets), -1).mean(-1)


class _Live:
    """What a classifier and a regressor share."""

    _loss: ClassVar[Loss]
    """Where none is given."""
    _classify: ClassVar[bool]

    def __init__(
        self,
        model: Model | None = None,
        norm: str | norms.Norm = "online",
        optimizer: Optimizer | None = None,
        learning_rate: float = 0.001,
        loss: Loss | None = None,
        nonfinite: str = REFUSE,
        seed: int = 0,
    ) -> None:
        norms.get(norm)
        if nonfinite not in (REFUSE, SKIP):
            raise ValueError(f"Expected `nonfinite` to be {REFUSE!r} or {SKIP!r}, got {nonfinite!r}.")
        if callable(learning_rate) or not learning_rate > 0:
            raise ValueError(f"Expected `learning_rate` to be a positive number, got {learning_rate!r}.")
        self.model = model
        self.norm = norm
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.loss = loss
        self.nonfinite = nonfinite
        self.seed = seed
        self.skipped = 0
        self._learned: Learned | None = None

    @property
    def features(self) -> tuple[Hashable, ...]:
        """Names of the features so far, in the order of the network's inputs."""
        return tuple(self._learned.features) if self._learned else ()

    @property
    def state(self) -> dict[str, np.ndarray]:
        """Copies of all that learning changes: parameters, statistics, what norms carry, state of the optimizer."""
        return self._learned.arrays() if self._learned else {}

    def save(self, path: str | PathLike[str]) -> None:
        """Write everything into one file, from which `load` goes on bit for bit.

        The file holds arrays and text, no code. Where writing fails, what was there stays.

        Args:
            path: Of the file.

        Raises:
            ValueError: If nothing has been learned.
            TypeError: If the name of a feature or a class is no text, number, bool, `None` or tuple of these.
            OSError: As the system says.
        """
        if not self._learned:
            raise ValueError("Expected a model that has learned from an example, got a new one. Save it later.")
        _file.write(path, self._about(self._learned), self.state)

    @classmethod
    def load(
        cls,
        path: str | PathLike[str],
        *,
        model: Model | None = None,
        norm: str | norms.Norm | None = None,
        optimizer: Optimizer | None = None,
        loss: Loss | None = None,
    ) -> Self:
        """Read a model that was saved.

        Args:
            path: Of the file.
            model: As when it was made: files hold no code.
            norm: Likewise; needed only where its options are functions.
            optimizer: Likewise.
            loss: Likewise.

        Raises:
            ValueError: If the file is truncated, damaged, foreign, newer, of the other kind of model, or does not fit
                what is given.
            OSError: As the system says.
        """
        about, arrays = _file.read(path)
        if about["kind"] != cls.__name__:
            raise ValueError(f"Expected `{path}` to hold a {cls.__name__}, got a {about['kind']}. Use its `load`.")
        code = {"model": model, "optimizer": optimizer, "loss": loss}
        for name, given in code.items():
            if (given is None) != (about[name] is None):
                had = f"has {about[name]}. Pass it" if given is None else "has none of its own. Leave it out"
                raise ValueError(f"Expected `{name}` as when `{path}` was saved, which {had}.")
        if norm is not None and str(norms.get(norm)) != about["norm"]:
            raise ValueError(f"Expected `norm` as when `{path}` was saved, {about['norm']!r}, got {str(norm)!r}.")
        if norm is None:
            _check_norm(about["norm"], path)
        options = {name: about[name] for name in ("learning_rate", "nonfinite", "seed")}
        loaded = cls(norm=norm or about["norm"], **code, **options, **cls._own_options(about))
        features, targets = (map(_file.from_json, about[name]) for name in ("features", "targets"))
        try:
            learned = Learned(loaded._recipe(), loaded.seed, [*features], [*targets], tuple(about["room"]))
        except (ValueError, TypeError) as error:  # options of the norm are checked when it is used
            raise ValueError(
                f"Expected `{path}` to name a norm that `model` can be made with, {about['norm']!r}: {one_line(error)}"
            ) from error
        learned.restore(arrays, str(path))
        loaded.skipped, loaded._learned = about["skipped"], learned
        return loaded

    def _about(self, learned: Learned) -> dict[str, Any]:
        """All but arrays that a file holds."""
        return {
            "kind": type(self).__name__,
            "normlab": __version__,
            "norm": str(norms.get(self.norm)),
            **{name: _name(getattr(self, name)) for name in ("model", "optimizer", "loss")},
            **{n: _file.to_json(getattr(self, n)) for n in ("learning_rate", "nonfinite", "seed", "skipped")},
            "features": [*map(_file.to_json, learned.features)],
            "targets": [*map(_file.to_json, learned.targets)],
            "room": [learned.inputs, learned.outputs],
        }

    @classmethod
    def _own_options(cls, about: Mapping[str, Any]) -> dict[str, Any]:
        """Options of this kind of model alone, from a file."""
        return {}

    def _recipe(self) -> Recipe:
        return Recipe(
            model=self.model,
            norm=self.norm,
            optimizer=self.optimizer or _OPTIMIZER,
            learning_rate=self.learning_rate,
            loss=self.loss or type(self)._loss,
            classify=self._classify,
        )

    def _declared(self) -> tuple[tuple[Hashable, ...], int]:
        """Targets that are known before the first example, and outputs to begin with."""
        return (), 1

    def _target(self, y: Any) -> Hashable:
        """Check a target."""
        return number(y, "the target")

    def _learn(self, examples: Sequence[Example], targets: Sequence[Any], weights: Sequence[Any]) -> None:
        """Take one step along the mean gradient of some examples; nothing changes where it cannot be taken."""
        if len(targets) != len(examples):
            raise ValueError(f"Expected a target for each of {len(examples)} examples, got {len(targets)}.")
        weights = check_weights(weights, len(examples))
        given = [(x, self._target(y), w) for x, y, w in zip(examples, targets, weights, strict=True)]
        counted = [(x, y, w) for x, y, w in given if self._counts(x, y)]
        if counted:
            self._step(*zip(*counted, strict=True))
        self.skipped += len(given) - len(counted)

    def _learn_many(self, X: "pd.DataFrame", y: "pd.Series", w: "float | Iterable[float]") -> None:
        examples = read_frame(X)
        weights = list(w) if isinstance(w, Iterable) and not isinstance(w, str) else [w] * len(examples)
        self._learn(examples, list(y), weights)

    def _counts(self, example: Example, target: Any) -> bool:
        """Tell whether all is finite, or raise."""
        if all(map(is_finite, example.values())) and (self._classify or is_finite(target)):
            return True
        if self.nonfinite == REFUSE:
            check_finite(example)
            raise not_finite("the target", target)
        return False

    def _step(self, examples: Sequence[Example], targets: Sequence[Hashable], weights: Sequence[float]) -> None:
        learned, names = self._learned, names_of(examples)
        if learned is None:
            declared, outputs = self._declared()
            learned = Learned(self._recipe(), self.seed, (), declared, (len(names) or 1, outputs))
        learned = learned.with_room(names, targets if self._classify else ())
        learned.learn(rows(examples, learned.features, learned.inputs), targets, weights)
        self._learned = learned

    def _outputs(self, learned: Learned, examples: Sequence[Example]) -> list[list[float]]:
        """The network's outputs; features that are not finite count as missing, or are refused."""
        if self.nonfinite == REFUSE:
            for example in examples:
                check_finite(example)
        else:
            examples = [{name: v for name, v in example.items() if is_finite(v)} for example in examples]
        return learned.predict(rows(examples, learned.features, learned.inputs))

    def _unit_test_skips(self) -> set[str]:
        """As river's own models that descend gradients: many examples are one step along their mean gradient."""
        return {"check_learn_many_matches_learn_one"}


class Classifier(_Live, base.MiniBatchClassifier):
    """A classifier for river around a Flax model with a norm.

    Features and classes may appear at any time; a feature that is missing is 0. The network makes room for twice as
    many when it has none left, which compiles it anew, and all it has learned stays in place. Features are not scaled.

    Args:
        model: `model(norm, outputs=k)` gives a Linen module, called as `module(inputs, train=...)`, that maps
            (examples, features) to logits (examples, k); `model(norm, inputs=n, outputs=k, rngs=...)` gives an NNX
            module. A multilayer perceptron with two hidden layers of 64 unless given.
        norm: The norm in it: a name, a string with options or a `normlab.norms.Norm`.
        optimizer: Made from a learning rate, e.g. `optax.sgd`; RMSprop unless given.
        learning_rate: For the optimizer.
        loss: `(logits, classes) -> number, or one for each example`; softmax cross entropy unless given.
        classes: All there are, where that is known: others are then refused, and the network never grows for one.
        nonfinite: `"refuse"` raises at a NaN or infinity; `"skip"` learns nothing from such an example and counts it in
            `skipped`, and predicts as if that feature were missing.
        seed: Of the initial weights.

    Example:
        >>> from river import datasets, evaluate, metrics, preprocessing
        >>> model = preprocessing.StandardScaler() | Classifier(norm="layer")
        >>> metric = evaluate.progressive_val_score(datasets.Phishing(), model, metrics.Accuracy())
        >>> metric.get() > 0.85
        True
    """

    _classify = True
    _loss = staticmethod(optax.softmax_cross_entropy_with_integer_labels)

    def __init__(
        self,
        model: Model | None = None,
        norm: str | norms.Norm = "online",
        optimizer: Optimizer | None = None,
        learning_rate: float = 0.001,
        loss: Loss | None = None,
        classes: Sequence[base.typing.ClfTarget] | None = None,
        nonfinite: str = REFUSE,
        seed: int = 0,
    ) -> None:
        if classes is not None and not 0 < len(set(classes)) == len(classes):
            raise ValueError(f"Expected `classes` to be at least one, each named once, got {classes!r}.")
        super().__init__(model, norm, optimizer, learning_rate, loss, nonfinite, seed)
        self.classes = classes

    def learn_one(self, x: Mapping[Hashable, Any], y: base.typing.ClfTarget, w: float = 1.0) -> None:
        """Take one step.

        Args:
            x: Numbers and bools by feature.
            y: The class.
            w: The weight, by which the loss is multiplied. Norms take statistics of the example whatever its weight.

        Raises:
            TypeError: If a feature or the weight is no number, or `y` cannot be a class.
            ValueError: If a feature is not finite, `y` is not among `classes`, or the weight is negative or not finite.
            StatisticsError: If the norm needs statistics over more than one example.
        """
        self._learn([read(x)], [y], [w])

    def learn_many(self, X: "pd.DataFrame", y: "pd.Series", w: "float | Iterable[float]" = 1.0) -> None:
        """Take one step along the mean gradient of a burst, over which norms may take statistics.

        Each size of a burst is compiled once.

        Args:
            X: A row for each example.
            y: Their classes.
            w: One weight, or one for each of them; the mean is over their number, not over the weights.

        Raises:
            TypeError: As `learn_one`.
            ValueError: As `learn_one`.
        """
        self._learn_many(X, y, w)

    def predict_proba_one(self, x: Mapping[Hashable, Any], **kwargs: Any) -> dict[base.typing.ClfTarget, float]:
        """Return the probability of each class so far; of none before the first example.

        Args:
            x: Numbers and bools by feature; those that have not been learned from are left out.
            **kwargs: river's; not used.

        Raises:
            TypeError: If a feature is no number.
            ValueError: If a feature is not finite, or the network has diverged.
        """
        if not (learned := self._learned):
            return {}
        (logits,) = self._outputs(learned, [read(x)])
        return dict(zip(learned.targets, _softmax(logits), strict=True))

    def predict_proba_many(self, X: "pd.DataFrame") -> "pd.DataFrame":
        """Return the probabilities of each class so far, a row for each example.

        Args:
            X: As for `learn_many`.

        Raises:
            TypeError: As `predict_proba_one`.
            ValueError: As `predict_proba_one`.
        """
        import pandas as pd

        if not (learned := self._learned):
            return pd.DataFrame(index=X.index)
        probabilities = [_softmax(logits) for logits in self._outputs(learned, read_frame(X))]
        return pd.DataFrame(probabilities, columns=pd.Index(list(learned.targets)), index=X.index)

    @property
    def _multiclass(self) -> bool:
        return True

    def _declared(self) -> tuple[tuple[Hashable, ...], int]:
        classes = tuple(self.classes or ())
        return classes, len(classes) or 2

    def _target(self, y: Any) -> Hashable:
        label = y.item() if isinstance(y, np.generic) else y
        if label is None or not isinstance(label, Hashable) or label != label:
            raise TypeError(f"Expected a class, such as text, a number or a bool, got {y!r}. Leave such examples out.")
        if self.classes is not None and label not in self.classes:
            raise ValueError(
                f"Expected a class among `classes`, {', '.join(map(repr, self.classes))}, got {label!r}. Declare it, "
                "or leave `classes` out."
            )
        return label

    def _about(self, learned: Learned) -> dict[str, Any]:
        classes = None if self.classes is None else [*map(_file.to_json, self.classes)]
        return {**super()._about(learned), "classes": classes}

    @classmethod
    def _own_options(cls, about: Mapping[str, Any]) -> dict[str, Any]:
        classes = about["classes"]
        return {"classes": None if classes is None else tuple(map(_file.from_json, classes))}


class Regressor(_Live, base.MiniBatchRegressor):
    """A regressor for river around a Flax model with a norm.

    Features may appear at any time; a feature that is missing is 0. The network makes room for twice as many when it
    has none left, which compiles it anew, and all it has learned stays in place. Neither features nor targets are
    scaled.

    Args:
        model: As for `Classifier`, with one output.
        norm: The norm in it: a name, a string with options or a `normlab.norms.Norm`.
        optimizer: Made from a learning rate, e.g. `optax.sgd`; RMSprop unless given.
        learning_rate: For the optimizer.
        loss: `(outputs, targets) -> number, or one for each example`, of outputs (examples, 1) and targets (examples,);
            squared error unless given.
        nonfinite: `"refuse"` raises at a NaN or infinity; `"skip"` learns nothing from such an example and counts it in
            `skipped`, and predicts as if that feature were missing.
        seed: Of the initial weights.

    Example:
        >>> from river import datasets, evaluate, metrics, preprocessing
        >>> model = preprocessing.TargetStandardScaler(Regressor(norm="layer"))
        >>> model = preprocessing.StandardScaler() | model
        >>> metric = evaluate.progressive_val_score(datasets.TrumpApproval(), model, metrics.MAE())
        >>> metric.get() < 1
        True
    """

    _classify = False
    _loss = staticmethod(_squared_error)

    def learn_one(self, x: Mapping[Hashable, Any], y: base.typing.RegTarget, w: float = 1.0) -> None:
        """Take one step.

        Args:
            x: Numbers and bools by feature.
            y: The target.
            w: The weight, by which the loss is multiplied. Norms take statistics of the example whatever its weight.

        Raises:
            TypeError: If a feature, the target or the weight is no number.
            ValueError: If one is not finite, or the weight is negative.
            StatisticsError: If the norm needs statistics over more than one example.
        """
        self._learn([read(x)], [y], [w])

    def learn_many(self, X: "pd.DataFrame", y: "pd.Series", w: "float | Iterable[float]" = 1.0) -> None:
        """Take one step along the mean gradient of a burst, over which norms may take statistics.

        Each size of a burst is compiled once.

        Args:
            X: A row for each example.
            y: Their targets.
            w: One weight, or one for each of them; the mean is over their number, not over the weights.

        Raises:
            TypeError: As `learn_one`.
            ValueError: As `learn_one`.
        """
        self._learn_many(X, y, w)

    def predict_one(self, x: Mapping[Hashable, Any]) -> base.typing.RegTarget:
        """Return the prediction; 0 before the first example.

        Args:
            x: Numbers and bools by feature; those that have not been learned from are left out.

        Raises:
            TypeError: If a feature is no number.
            ValueError: If a feature is not finite, or the network has diverged.
        """
        return self._outputs(self._learned, [read(x)])[0][0] if self._learned else 0.0

    def predict_many(self, X: "pd.DataFrame") -> "pd.Series":
        """Return a prediction for each row.

        Args:
            X: As for `learn_many`.

        Raises:
            TypeError: As `predict_one`.
            ValueError: As `predict_one`.
        """
        import pandas as pd

        found = [output for (output,) in self._outputs(self._learned, read_frame(X))] if self._learned else 0.0
        return pd.Series(found, index=X.index, dtype=float)


_OPTIMIZER: Optimizer = functools.partial(optax.rmsprop, decay=0.999)
"""Ahead of Adam and plain SGD on most of six streams, each at its best learning rate, and cheaper than Adam."""


def _softmax(logits: Sequence[float]) -> list[float]:
    """In double precision, where river checks that probabilities sum to 1."""
    largest = max(logits)
    powers = [math.exp(logit - largest) for logit in logits]
    total = sum(powers)
    return [power / total for power in powers]


def _check_norm(text: str, path: str | PathLike[str]) -> None:
    """Refuse a file that names no norm.

    Raises:
        ValueError: With the reason.
    """
    try:
        norms.get(text)
    except (ValueError, TypeError) as error:
        raise ValueError(f"Expected `{path}` to name a norm that there is: {one_line(error)}") from error


def _name(function: Any) -> str | None:
    """For people who read that it is missing."""
    return None if function is None else getattr(function, "__qualname__", repr(function))
