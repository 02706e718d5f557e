"""Checks of what a model, a loss or a metric returns, while its program is traced."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from normlab.notation import PyTree
from normlab.study.data.dataset import Dataset
from normlab.study.training.objectives import MEAN_SQUARED_ERROR, MISCLASSIFICATION, Error, Loss


def numbers(name: str, values: ArrayLike, shapes: Sequence[tuple[int, ...]]) -> jax.Array:
    """Check the shape of what a user's function returns.

    Args:
        name: Name of the function, for the message.
        values: Numbers that it returned.
        shapes: Shapes that they may have.

    Raises:
        ValueError: If they have another shape.
    """
    if jnp.shape(values) not in shapes:
        raise ValueError(
            f"Expected `{name}` to give shape {' or '.join(map(str, shapes))}, got {jnp.shape(values)}. Return "
            "numbers of that shape."
        )
    return jnp.asarray(values)


def check_of_outputs(data: Dataset, loss: Loss | None, error: Error) -> Callable[[PyTree], None]:
    """Make the check of a model's outputs against the labels; it checks nothing if loss and error are a user's own."""
    if data.classes and (loss is None or error is MISCLASSIFICATION):
        low, high = int(data.labels.min()), int(data.labels.max())
        return lambda outputs: _check_classes(outputs.shape, low, high)
    if not data.classes and (loss is None or error is MEAN_SQUARED_ERROR):
        return lambda outputs: _check_targets(outputs.shape, data.labels.shape[1:])
    return lambda outputs: None


def _check_classes(shape: tuple[int, ...], low: int, high: int) -> None:
    if len(shape) != 2:
        raise ValueError(
            f"Expected the model's outputs to be logits of shape (batch, classes), got {shape}. End it with "
            f"`nn.Dense({high + 1})`, or give `loss` and `metric`."
        )
    if low < 0 or high >= shape[1]:
        raise ValueError(
            f"Expected `labels` from 0 to {shape[1] - 1}, since the model has {shape[1]} outputs, got {low} to {high}. "
            f"Give it {high + 1} outputs."
        )


def _check_targets(shape: tuple[int, ...], target: tuple[int, ...]) -> None:
    if shape[1:] not in (target, (*target, 1)):
        like = ", ".join(["batch", *map(str, target)])
        raise ValueError(
            f"Expected the model's outputs to be shaped like `labels`, ({like}), got {shape}. Give it as many outputs; "
            "where labels are classes, write `labels.astype(int)`."
        )
