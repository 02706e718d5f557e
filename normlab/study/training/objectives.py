"""Losses and errors."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from normlab import expect

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

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            BadInput: If one cannot be what it should.
        """
        expect.check_fields(
            self,
            name=expect.LABEL,
            function=A_LOSS,
            percent=expect.SWITCH,
            margin=expect.optional(expect.MARGIN),
        )


A_LOSS = expect.function("a function of outputs and labels", "Write `lambda outputs, labels: ...`.", arguments=2)


def _misclassified(outputs: Any, labels: Any) -> Any:
    return outputs.argmax(-1) != labels


def _squared_error(outputs: Any, labels: Any) -> Any:
    return ((outputs.reshape(labels.shape) - labels) ** 2).reshape(len(labels), -1).mean(-1)


MISCLASSIFICATION = Error(name="test error", function=_misclassified, percent=True)
MEAN_SQUARED_ERROR = Error(name="mean squared error", function=_squared_error)


def check_transformation(made: object) -> None:
    """Refuse what is no optimizer of Optax.

    Raises:
        BadInput: If it is not.
    """
    if not (hasattr(made, "init") and hasattr(made, "update")):
        raise expect.refusal("`optimizer` to return an `optax.GradientTransformation`", made, AN_OPTIMIZER)


AN_OPTIMIZER = (
    "Give the function itself, `optimizer=optax.adamw`, or one of the learning rate, "
    "`optimizer=lambda rate: optax.adamw(rate, weight_decay=0.1)`."
)
