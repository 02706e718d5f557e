"""Averages of the weights of several models, and the running statistics of such an average.

References:
    Izmailov et al. Averaging Weights Leads to Wider Optima and Better Generalization. UAI 2018.
    https://arxiv.org/abs/1803.05407
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, Literal, NoReturn, TypeVar, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from normlab.errors import BadInput
from normlab.tools import leaves

__all__ = ["Statistics", "Unestimated", "average", "ema", "without_check"]

Variables = TypeVar("Variables")
Statistics = Literal["reestimate", "average", "copy"]
"""`reestimate`: statistics have to be estimated again before evaluation. `average`: statistics are averaged, as
weights are. `copy`: statistics of the newest model."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Unestimated(Mapping[str, object], Generic[Variables]):
    """Variables whose running statistics are those of other weights: a model refuses to evaluate by them.

    `tools.precise` takes them, and returns variables that evaluate. It is a pytree, for loops and checkpoints.

    Attributes:
        variables: The variables behind the refusal.
    """

    variables: Variables

    def __getitem__(self, name: str) -> object:
        self._refuse()

    def __iter__(self) -> Iterator[str]:
        self._refuse()

    def __len__(self) -> int:
        self._refuse()

    def _refuse(self) -> NoReturn:
        norm = next(iter(leaves.statistics(self.variables)))
        raise BadInput(
            f"Expected running statistics of these weights, got an average of models: `{norm}` has the statistics of "
            "other weights. Call tools.precise first, or statistics='copy'."
        )


def average(trees: Iterable[Variables], *, statistics: Statistics = "reestimate") -> Variables | Unestimated[Variables]:
    """Return the plain average of the variables of several models (stochastic weight averaging: Izmailov et al., 2018).

    Args:
        trees: Variables of one model, the newest last: trees of Linen, or states of NNX.
        statistics: Statistics of the average; see `Statistics`.

    Returns:
        The average, of which leaves that are no floating numbers are those of the last tree; `Unestimated` if its
        statistics are to be estimated again.

    Raises:
        BadInput: If there is no tree, or trees differ in a path or a shape.

    Example:
        >>> average([{"params": {"w": np.float32(1)}}, {"params": {"w": np.float32(3)}}])
        {'params': {'w': np.float32(2.0)}}
    """
    _check(statistics)
    given = [without_check(tree) for tree in trees]
    if not given:
        raise BadInput("Expected the variables of at least one model to average, got none. Pass a list of them.")
    *others, newest = given
    for tree in others:
        _check_alike(tree, newest)
    kept = _kept(newest, statistics)

    def mean(path: str, last: Array | np.ndarray, *rest: Array | np.ndarray) -> Array | np.ndarray:
        if path in kept or not jnp.issubdtype(last.dtype, jnp.floating):
            return last
        wide = jnp.promote_types(last.dtype, jnp.float32)
        total = last.astype(wide)
        for leaf in rest:
            total = total + leaf.astype(wide)
        return (total / len(given)).astype(last.dtype)

    return _with_check(leaves.mapped(mean, newest, *others), statistics)


def ema(
    old: Variables | Unestimated[Variables],
    new: Variables,
    decay: float | Array,
    *,
    statistics: Statistics = "reestimate",
) -> Variables | Unestimated[Variables]:
    """Return `decay * old + (1 - decay) * new`: one step of an exponential moving average, also under `jax.jit`.

    Args:
        old: The average so far; at first the variables of the model.
        new: Variables of the model after a step.
        decay: Weight of the old average.
        statistics: Statistics of the average; see `Statistics`.

    Returns:
        The average in the dtypes of `old`, of which leaves that are no floating numbers are those of `new`;
        `Unestimated` if its statistics are to be estimated again.

    Raises:
        BadInput: If `decay` is a number outside of 0 to 1, or the trees differ in a path or a shape.

    Example:
        >>> ema({"params": {"w": np.float32(1)}}, {"params": {"w": np.float32(3)}}, 0.75)
        {'params': {'w': np.float32(1.5)}}
    """
    _check(statistics)
    if isinstance(decay, int | float) and not 0 <= decay <= 1:
        raise BadInput(f"Expected `decay`, the weight of the old average, to lie in [0, 1], got {decay}. Take 0.999.")
    old, new = without_check(old), without_check(new)
    _check_alike(old, new)
    kept = _kept(new, statistics)

    def moved(path: str, before: Array | np.ndarray, after: Array | np.ndarray) -> Array | np.ndarray:
        if path in kept or not jnp.issubdtype(after.dtype, jnp.floating):
            return after
        wide = jnp.promote_types(before.dtype, jnp.float32)
        first, second = before.astype(wide), after.astype(wide)
        return (first + (1 - decay) * (second - first)).astype(before.dtype)

    return _with_check(leaves.mapped(moved, old, new), statistics)


def without_check(variables: Variables | Unestimated[Variables]) -> Variables:
    """Return the variables behind `Unestimated`, or the variables as they are."""
    return cast(Variables, variables.variables if isinstance(variables, Unestimated) else variables)


def _with_check(variables: Variables, statistics: Statistics) -> Variables | Unestimated[Variables]:
    stale = statistics == "reestimate" and leaves.statistics(variables)
    return Unestimated(variables) if stale else variables


def _kept(variables: object, statistics: Statistics) -> set[str]:
    """Return the paths of leaves that are not averaged."""
    if statistics == "average":
        return set()
    return {path for paths in leaves.statistics(variables).values() for path in paths.values()}


def _check(statistics: Statistics) -> None:
    if statistics not in get_args(Statistics):
        raise BadInput(
            f"Expected `statistics` to be one of {get_args(Statistics)}, got {statistics!r}. "
            "Take 'reestimate' and call tools.precise before evaluation."
        )


def _check_alike(one: object, other: object) -> None:
    first, second = ({path: np.shape(leaf) for path, leaf in leaves.by_path(tree).items()} for tree in (one, other))
    for path in dict.fromkeys((*first, *second)):
        shapes = [str(shapes.get(path, "nothing")) for shapes in (first, second)]
        if shapes[0] != shapes[1]:
            raise BadInput(
                f"Expected the variables of one model, got {shapes[0]} and {shapes[1]} at `{path}`. "
                "Average models of one architecture."
            )
