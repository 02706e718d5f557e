"""Group whitening: whitening within one example."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from jax import Array

from normlab._core.checks import AxisName, check_features, check_flags, resolve_groups
from normlab._core.dtypes import float32_or_wider
from normlab._core.layer import Layer, Parameters, State, run
from normlab._core.reduction import expand_affine, expand_where, reduction
from normlab._core.sharding import spread_like, whole_along
from normlab._core.standardize import scaled
from normlab.functional.whitening.covariance import check_enough, mapped, spread
from normlab.functional.whitening.inverse_root import check_root, inverse_root

__all__ = ["GroupWhitenLayer", "group_whiten"]

REMEDY = "Use fewer groups, more features or more positions"


def group_whiten(
    x: Array,
    scale: Array | None = None,
    bias: Array | None = None,
    *,
    num_groups: int = 32,
    steps: int = 5,
    exact: bool = False,
    epsilon: float = 1e-5,
    where: Array | None = None,
    axis_name: AxisName | None = None,
    axis_index_groups: Sequence[Sequence[int]] | None = None,
    allow: bool = False,
) -> Array:
    """Whiten groups of neighbouring features against each other, in each example (Huang et al., 2021).

    `y = covariance^(-1/2) (x - mean) * scale + bias`, each group a row of features and positions

    Statistics: of the `num_groups` groups, over the features of a group and all positions, per example, in float32 or
    wider: a mean for each group, as in group norm, and a covariance for each two. After it, groups have mean 0 and
    variance 1, and no two are correlated, up to `steps` of Newton's iteration; see `whiten`.

    Args:
        x: Activations, `[batch, ..., features]`.
        scale: Gain, `[features]`; `None` is 1.
        bias: Shift, `[features]`; `None` is 0.
        num_groups: Number of groups.
        steps: Steps of Newton's iteration.
        exact: Whether to decompose the covariance instead.
        epsilon: Added to the diagonal of the covariance.
        where: True where an element counts, broadcastable to `x`.
        axis_name: Mapped axes over which positions or the features of each group are spread.
        axis_index_groups: Sub-groups of devices along `axis_name` (`jax.pmap` only).
        allow: Whether a group may have no more elements than there are groups, so that `epsilon` decides.

    Returns:
        `y`, with the shape and dtype of `x` (float32 for whole numbers).

    Raises:
        StatisticsError: If a group has no more elements than there are groups, and `allow` is False.
        ValueError: If the features cannot be split so, or a shape or an option does not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.array([[1.0, 2.0, 3.0, 4.0, 4.0, 3.0, 2.0, 9.0]])
        >>> y = group_whiten(x, num_groups=2, exact=True, epsilon=0.0).reshape(2, 4)
        >>> bool(jnp.allclose(y @ y.T / 4, jnp.eye(2), atol=1e-5))
        True

    References:
        Huang, Zhou, Liu, Shao. Group Whitening: Balancing Learning Efficiency and Representational Capacity.
        CVPR 2021. https://arxiv.org/abs/2009.13333
    """
    layer = GroupWhitenLayer(epsilon, num_groups, steps, exact, axis_name, axis_index_groups, allow)
    return run(layer, x, where, scale, bias)


@dataclass(frozen=True)
class GroupWhitenLayer(Layer):
    """Group whitening with its options.

    Attributes:
        epsilon: Added to the diagonal of the covariance.
        num_groups: Number of groups.
        steps: See `group_whiten`.
        exact: See `group_whiten`.
        axis_name: See `group_whiten`.
        axis_index_groups: See `group_whiten`.
        allow: See `group_whiten`.
    """

    epsilon: float = 1e-5
    num_groups: int = 32
    steps: int = 5
    exact: bool = False
    axis_name: AxisName | None = None
    axis_index_groups: Sequence[Sequence[int]] | None = None
    allow: bool = False

    feature_axes: ClassVar[int] = -1

    def __post_init__(self) -> None:
        """Check the options."""
        check_root(self.epsilon, self.steps, self.exact)
        check_flags(self, "allow")

    def initializing(self, x: Array, features: tuple[int, ...], train: bool) -> tuple[Self, bool]:
        """Return the norm of a single device."""
        return replace(self, axis_name=None, axis_index_groups=None), train

    def apply(
        self,
        x: Array,
        parameters: Parameters,
        state: State,
        gradient_state: State,
        *,
        features: tuple[int, ...],
        train: bool,
        mask: Array | None,
    ) -> tuple[Array, State]:
        """Whiten each example; see `Layer`."""
        if x.ndim < 2:
            raise ValueError(f"Expected `x` of shape [batch, ..., features], got {x.shape}. Add a leading axis.")
        for name, array in parameters.items():
            check_features(name, array, x.shape[-1:])
        groups = resolve_groups(x.shape[-1], self.num_groups, None)
        if x.shape[-1] == 0:
            return float32_or_wider(x), state
        split = (*x.shape[:-1], groups, x.shape[-1] // groups)
        rows = whole_along(float32_or_wider(x), x.ndim - 1).reshape(split)
        where = expand_where(mask, x.ndim)
        where = where if where is None else _split(where, groups)
        over = reduction(
            (*range(1, x.ndim - 1), x.ndim), axis_name=self.axis_name, axis_index_groups=self.axis_index_groups
        )
        check_enough(split, over, "groups", REMEDY, self.allow)
        s = spread(rows, over, where, self.epsilon)
        matrix = inverse_root(s.covariance, steps=self.steps, exact=self.exact, epsilon=self.epsilon)
        y = spread_like(mapped(matrix, s.centered, (0, x.ndim - 1)).reshape(x.shape), x)
        affine = expand_affine(parameters, x.shape, features)
        return scaled(y, affine.get("scale"), affine.get("bias")), state


def _split(where: Array, groups: int) -> Array:
    """Split the last axis of a mask into groups."""
    width = where.shape[-1]
    return where.reshape(*where.shape[:-1], *((1, 1) if width == 1 else (groups, width // groups)))
