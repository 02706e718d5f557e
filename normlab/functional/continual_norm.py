"""Continual norm: group norm, then batch norm."""

from dataclasses import dataclass

from jax import Array

from normlab._core.checks import choose_groups
from normlab._core.dtypes import float32_or_wider
from normlab._core.layer import Parameters, State
from normlab.functional.batch_norm import BatchNormLayer
from normlab.functional.group_norm import group_norm


@dataclass(frozen=True)
class ContinualNormLayer(BatchNormLayer):
    """Continual norm with its options (Pham et al., 2022): those of batch norm, and of a group norm before it.

    The group norm has no scale and no bias, and the same `epsilon`.

    Attributes:
        num_groups: Number of groups; leave it out beside `group_size`.
        group_size: Features per group.
    """

    num_groups: int | None = 32
    group_size: int | None = None

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
        """Normalize groups, then as batch norm; see `Layer`."""
        x = self.normalized(x, features, mask)
        return super().apply(x, parameters, state, gradient_state, features=features, train=train, mask=mask)

    def normalized(self, x: Array, features: tuple[int, ...], mask: Array | None) -> Array:
        """Return the group norm of `x`, in float32 or wider, whose statistics the batch norm takes."""
        if features != (x.ndim - 1,):
            raise ValueError(f"Expected `axis` to be the last, along which features are grouped, got {self.axis}.")
        num_groups, group_size = choose_groups(self.num_groups, self.group_size)
        x, epsilon = float32_or_wider(x), self.epsilon
        return group_norm(x, num_groups=num_groups, group_size=group_size, epsilon=epsilon, where=mask)
