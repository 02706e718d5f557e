"""Losses and errors."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from normlab import expect
from normlab.notation import PyTree

if TYPE_CHECKING:
    import jax
    import optax

Loss = Callable[[PyTree, "jax.Array"], "jax.Array"]
"""`(outputs, labels) -> number, or one for each example`."""

Optimizer = Callable[["optax.Schedule"], "optax.GradientTransformation"]
"""Makes an optimizer from a learning-rate schedule."""

StreamOptimizer = Callable[["float | jax.Array"], "optax.GradientTransformation"]
"""Makes an optimizer from a constant learning rate."""


@dataclass(frozen=True, kw_only=True)
class Error:
    """Error by which a trained model is judged.

    Attributes:
        name: Name for axes and headings, e.g. `top-5 error`.
        function: `(outputs, labels) -> one number for each example`, lower is better; the mean is reported.
        percent: Whether the error is a fraction, shown in percent.
        margin: See `Metric`.
    """

    name: str
    function: Loss
    percent: bool = False
    margin: float | None = None

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            BadInput: If a field has a wrong type or value.
        """
        expect.check_fields(
            self,
            name=expect.LABEL,
            function=A_LOSS,
            percent=expect.SWITCH,
            margin=expect.optional(expect.MARGIN),
        )


A_LOSS = expect.function("a function of outputs and labels", "Write `lambda outputs, labels: ...`.", arguments=2)


def _misclassified(outputs: "jax.Array", labels: "jax.Array") -> "jax.Array":
    return outputs.argmax(-1) != labels


def _squared_error(outputs: "jax.Array", labels: "jax.Array") -> "jax.Array":
    return ((outputs.reshape(labels.shape) - labels) ** 2).reshape(len(labels), -1).mean(-1)


def cross_entropy(outputs: "jax.Array", labels: "jax.Array") -> "jax.Array":
    """Softmax cross entropy of logits, one number for each label."""
    import optax

    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels)


def mean_cross_entropy(outputs: "jax.Array", labels: "jax.Array") -> "jax.Array":
    """Softmax cross entropy of logits for sequences of labels, one number for each sequence."""
    return cross_entropy(outputs, labels).mean(-1)


def _bits(outputs: "jax.Array", labels: "jax.Array") -> "jax.Array":
    return mean_cross_entropy(outputs, labels) / math.log(2)


MISCLASSIFICATION = Error(name="test error", function=_misclassified, percent=True)
MEAN_SQUARED_ERROR = Error(name="mean squared error", function=_squared_error)
BITS_PER_CHARACTER = Error(name="bits per character", function=_bits, margin=0.05)


def check_transformation(made: object) -> None:
    """Check for an optimizer of Optax.

    Raises:
        BadInput: If `made` is none.
    """
    if not (hasattr(made, "init") and hasattr(made, "update")):
        raise expect.refusal("`optimizer` to return an `optax.GradientTransformation`", made, AN_OPTIMIZER)


AN_OPTIMIZER = (
    "Give the function itself, `optimizer=optax.adamw`, or one of the learning rate, "
    "`optimizer=lambda rate: optax.adamw(rate, weight_decay=0.1)`."
)
