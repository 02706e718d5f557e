"""river's classifier and regressor around a Flax model with a norm."""

import functools
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

import jax
import numpy as np
import optax
from river import base

from normlab import __version__, norms
from normlab.errors import one_line
from normlab.introspect.pure import Model
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
from normlab.river._network import Learned, Loss, Optimizer, Recipe

if TYPE_CHECKING:
    import pandas as pd


def _squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Return the squared error of each example, averaged over its outputs."""
    return ((outputs.reshape(targets.shape) - targets) ** 2).reshape(len(targets), -1).mean(-1)


class _Live:
    """Base of the classifier and the regressor."""

    _loss: ClassVar[Loss]
    """Loss unless given."""
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
        """Copies of all arrays that learning changes: parameters, state of the norms and state of the optimizer."""
        return self._learned.arrays() if self._learned else {}

    def save(self, path: str | PathLike[str]) -> None:
        """Save the model to one file; a loaded model continues bit for bit.

        The file contains arrays and text, no code. If writing fails, a file that was there before stays.

        Args:
            path: Path of the file.

        Raises:
            ValueError: If nothing has been learned.
            TypeError: If the name of a feature or a class is no text, number, bool, `None` or tuple of these.
            OSError: If the system reports an error.
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
        """Load a saved model.

        Files contain no code, so arguments that are functions must be passed again.

        Args:
            path: Path of the file.
            model: The model, if one was given when the saved model was made.
            norm: The norm; needed only if its options are functions.
            optimizer: The optimizer, if one was given.
            loss: The loss, if one was given.

        Raises:
            ValueError: If the file is truncated, damaged, foreign, newer, of the other kind of model, or does not fit
                the arguments.
            OSError: If the system reports an error.
        """
        about, arrays = _file.read(path)
        if about["kind"] != cls.__name__:
            raise ValueError(f"Expected `{path}` to contain a {cls.__name__}, got a {about['kind']}. Use its `load`.")
        code = {"model": model, "optimizer": optimizer, "loss": loss}
        for name, given in code.items():
            saved = {"model": about["model"], "optimizer": about["optimizer"], "loss": about["loss"]}[name]
            if (given is None) != (saved is None):
                had = f"has {saved}. Pass it" if given is None else "has none of its own. Leave it out"
                raise ValueError(f"Expected `{name}` as when `{path}` was saved, which {had}.")
        if norm is not None and str(norms.get(norm)) != about["norm"]:
            raise ValueError(f"Expected `norm` as when `{path}` was saved, {about['norm']!r}, got {str(norm)!r}.")
        if norm is None:
            _check_norm(about["norm"], path)
        loaded = cls(
            model,
            norm or about["norm"],
            optimizer,
            learning_rate=about["learning_rate"],
            loss=loss,
            nonfinite=about["nonfinite"],
            seed=about["seed"],
            **cls._own_options(about),
        )
        features, targets = map(_file.from_json, about["features"]), map(_file.from_json, about["targets"])
        inputs, outputs = about["room"]
        try:
            learned = Learned(loaded._recipe(), loaded.seed, [*features], [*targets], (inputs, outputs))
        except (ValueError, TypeError) as error:  # options of the norm are checked when it is used
            raise ValueError(
                f"Expected `{path}` to name a norm that `model` can be made with, {about['norm']!r}: {one_line(error)}"
            ) from error
        learned.restore(arrays, str(path))
        loaded.skipped, loaded._learned = about["skipped"], learned
        return loaded

    def _about(self, learned: Learned) -> _file.About:
        """Return everything but arrays that a file contains."""
        return {
            "kind": type(self).__name__,
            "normlab": __version__,
            "norm": str(norms.get(self.norm)),
            "model": _name(self.model),
            "optimizer": _name(self.optimizer),
            "loss": _name(self.loss),
            "learning_rate": cast(float, _file.to_json(self.learning_rate)),
            "nonfinite": self.nonfinite,
            "seed": cast(int, _file.to_json(self.seed)),
            "skipped": self.skipped,
            "features": [*map(_file.to_json, learned.features)],
            "targets": [*map(_file.to_json, learned.targets)],
            "room": [learned.inputs, learned.outputs],
        }

    @classmethod
    def _own_options(cls, about: _file.About) -> dict[str, object]:
        """Return the options of this kind of model alone, from a file."""
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
        """Return the targets that are known before the first example, and the initial number of outputs."""
        return (), 1

    def _target(self, y: object) -> Hashable:
        """Check and convert a target."""
        return number(y, "the target")

    def _learn(self, examples: Sequence[Example], targets: Sequence[object], weights: Sequence[object]) -> None:
        """Take one step along the mean gradient of some examples; on an error, nothing changes."""
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
        """Report whether the example and its target are finite; raise if NaN and infinity are refused."""
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
        """Return the network's outputs; features that are not finite count as missing or are refused."""
        if self.nonfinite == REFUSE:
            for example in examples:
                check_finite(example)
        else:
            examples = [{name: v for name, v in example.items() if is_finite(v)} for example in examples]
        return learned.predict(rows(examples, learned.features, learned.inputs))

    def _unit_test_skips(self) -> set[str]:
        """Return the checks of river that do not apply, as for its own gradient descent: a batch is one step."""
        return {"check_learn_many_matches_learn_one"}


class Classifier(_Live, base.MiniBatchClassifier):
    """river classifier around a Flax model with a norm.

    Features and classes may appear at any time; a missing feature is 0. When the network runs out of room, its room
    doubles: it is compiled again, and everything learned so far is kept. Features are not scaled.

    Args:
        model: `model(norm, outputs=k)` returns a Linen module, called as `module(inputs, train=...)`, that maps
            (examples, features) to logits (examples, k); `model(norm, inputs=n, outputs=k, rngs=...)` returns an NNX
            module. A multilayer perceptron with two hidden layers of 64 unless given.
        norm: Norm of the model: a name, a string with options or a `normlab.norms.Norm`.
        optimizer: Function from a learning rate to an optimizer, e.g. `optax.sgd`; RMSprop unless given.
        learning_rate: Learning rate of the optimizer.
        loss: `(logits, classes) -> number, or one for each example`; softmax cross entropy unless given.
        classes: All classes, if they are known: other classes are then refused, and the network never grows for them.
        nonfinite: `"refuse"` raises on NaN or infinity; `"skip"` learns nothing from such an example, counts it in
            `skipped`, and predicts as if the feature were missing.
        seed: Seed of the initial weights.

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

    def learn_one(self, x: Mapping[Hashable, object], y: base.typing.ClfTarget, w: float = 1.0) -> None:
        """Take one step.

        Args:
            x: Numbers and bools by feature.
            y: Class.
            w: Factor of the loss. Norms take statistics of the example regardless of its weight.

        Raises:
            TypeError: If a feature or the weight is no number, or `y` cannot be a class.
            ValueError: If a feature is not finite, `y` is not among `classes`, or the weight is negative or not finite.
            StatisticsError: If the norm needs statistics over more than one example.
        """
        self._learn([read(x)], [y], [w])

    def learn_many(self, X: "pd.DataFrame", y: "pd.Series", w: "float | Iterable[float]" = 1.0) -> None:
        """Take one step along the mean gradient of several examples, over which norms may take statistics.

        The program is compiled once for each number of examples.

        Args:
            X: Examples, one in each row.
            y: Classes of the examples.
            w: One weight, or one for each example; losses are divided by the number of examples, not by the weights.

        Raises:
            TypeError: As `learn_one`.
            ValueError: As `learn_one`.
        """
        self._learn_many(X, y, w)

    def predict_proba_one(self, x: Mapping[Hashable, object], **kwargs: object) -> dict[base.typing.ClfTarget, float]:
        """Return the probability of each class so far; nothing before the first example.

        Args:
            x: Numbers and bools by feature; features that the model has not learned from are ignored.
            **kwargs: Accepted for river, not used.

        Raises:
            TypeError: If a feature is no number.
            ValueError: If a feature is not finite, or the network has diverged.
        """
        if not (learned := self._learned):
            return {}
        (logits,) = self._outputs(learned, [read(x)])
        classes = cast(Iterable[base.typing.ClfTarget], learned.targets)
        return dict(zip(classes, _softmax(logits), strict=True))

    def predict_proba_many(self, X: "pd.DataFrame") -> "pd.DataFrame":
        """Return the probabilities of each class so far, one row for each example.

        Args:
            X: Examples, one in each row.

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

    def _target(self, y: object) -> Hashable:
        label = y.item() if isinstance(y, np.generic) else y
        if label is None or not isinstance(label, Hashable) or label != label:
            raise TypeError(f"Expected a class, such as text, a number or a bool, got {y!r}. Leave such examples out.")
        if self.classes is not None and label not in self.classes:
            raise ValueError(
                f"Expected a class among `classes`, {', '.join(map(repr, self.classes))}, got {label!r}. Declare it, "
                "or leave `classes` out."
            )
        return label

    def _about(self, learned: Learned) -> _file.About:
        classes = None if self.classes is None else [*map(_file.to_json, self.classes)]
        return {**super()._about(learned), "classes": classes}

    @classmethod
    def _own_options(cls, about: _file.About) -> dict[str, object]:
        classes = about.get("classes")
        return {"classes": None if classes is None else tuple(map(_file.from_json, classes))}


class Regressor(_Live, base.MiniBatchRegressor):
    """river regressor around a Flax model with a norm.

    Features may appear at any time; a missing feature is 0. When the network runs out of room, its room doubles: it is
    compiled again, and everything learned so far is kept. Neither features nor targets are scaled.

    Args:
        model: Model as for `Classifier`, with one output.
        norm: Norm of the model: a name, a string with options or a `normlab.norms.Norm`.
        optimizer: Function from a learning rate to an optimizer, e.g. `optax.sgd`; RMSprop unless given.
        learning_rate: Learning rate of the optimizer.
        loss: `(outputs, targets) -> number, or one for each example`, of outputs (examples, 1) and targets (examples,);
            squared error unless given.
        nonfinite: `"refuse"` raises on NaN or infinity; `"skip"` learns nothing from such an example, counts it in
            `skipped`, and predicts as if the feature were missing.
        seed: Seed of the initial weights.

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

    def learn_one(self, x: Mapping[Hashable, object], y: base.typing.RegTarget, w: float = 1.0) -> None:
        """Take one step.

        Args:
            x: Numbers and bools by feature.
            y: Target.
            w: Factor of the loss. Norms take statistics of the example regardless of its weight.

        Raises:
            TypeError: If a feature, the target or the weight is no number.
            ValueError: If any of them is not finite, or the weight is negative.
            StatisticsError: If the norm needs statistics over more than one example.
        """
        self._learn([read(x)], [y], [w])

    def learn_many(self, X: "pd.DataFrame", y: "pd.Series", w: "float | Iterable[float]" = 1.0) -> None:
        """Take one step along the mean gradient of several examples, over which norms may take statistics.

        The program is compiled once for each number of examples.

        Args:
            X: Examples, one in each row.
            y: Targets of the examples.
            w: One weight, or one for each example; losses are divided by the number of examples, not by the weights.

        Raises:
            TypeError: As `learn_one`.
            ValueError: As `learn_one`.
        """
        self._learn_many(X, y, w)

    def predict_one(self, x: Mapping[Hashable, object]) -> base.typing.RegTarget:
        """Return the prediction; 0 before the first example.

        Args:
            x: Numbers and bools by feature; features that the model has not learned from are ignored.

        Raises:
            TypeError: If a feature is no number.
            ValueError: If a feature is not finite, or the network has diverged.
        """
        return self._outputs(self._learned, [read(x)])[0][0] if self._learned else 0.0

    def predict_many(self, X: "pd.DataFrame") -> "pd.Series":
        """Return a prediction for each row.

        Args:
            X: Examples, one in each row.

        Raises:
            TypeError: As `predict_one`.
            ValueError: As `predict_one`.
        """
        import pandas as pd

        found = [output for (output,) in self._outputs(self._learned, read_frame(X))] if self._learned else 0.0
        return pd.Series(found, index=X.index, dtype=float)


_OPTIMIZER: Optimizer = functools.partial(optax.rmsprop, decay=0.999)
"""Better than Adam and plain SGD on most of six streams, each at its best learning rate, and cheaper than Adam."""


def _softmax(logits: Sequence[float]) -> list[float]:
    """Return the softmax in double precision, because river checks that probabilities sum to 1."""
    largest = max(logits)
    powers = [math.exp(logit - largest) for logit in logits]
    total = sum(powers)
    return [power / total for power in powers]


def _check_norm(text: str, path: str | PathLike[str]) -> None:
    """Refuse a file whose norm is unknown.

    Raises:
        ValueError: If the norm is unknown, with the reason.
    """
    try:
        norms.get(text)
    except (ValueError, TypeError) as error:
        raise ValueError(f"Expected `{path}` to name a known norm: {one_line(error)}") from error


def _name(function: object) -> str | None:
    """Return the name of a function, for the message that says it must be passed again."""
    return None if function is None else getattr(function, "__qualname__", repr(function))
