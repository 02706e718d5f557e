"""The protocol of a norm with its options and without Flax."""

from collections.abc import Mapping
from typing import Protocol

from jax import Array

State = Mapping[str, Array]
"""Arrays by the names of Flax's variables."""


class Layer(Protocol):
    """A norm with its options: a frozen value that the Linen and the NNX module of the norm both run.

    State is known by name alone; the modules check that no name is missing and none is unknown.
    """

    def state(self, shape: tuple[int, ...]) -> dict[str, Array]:
        """Return the state at the start, which the forward pass changes, for features of `shape`."""
        ...

    def gradient_state(self, shape: tuple[int, ...]) -> dict[str, Array]:
        """Return the state at the start whose gradient is its new value."""
        ...

    def apply(
        self,
        x: Array,
        parameters: State,
        state: State,
        gradient_state: State,
        *,
        axis: tuple[int, ...],
        train: bool,
        mask: Array | None,
    ) -> tuple[Array, State]:
        """Normalize `x`.

        Args:
            x: Activations.
            parameters: `scale` and `bias`, as far as there are, of the shape of the features.
            state: By the names of `state`.
            gradient_state: By the names of `gradient_state`; may be empty where `train` is False.
            axis: Reduced axes.
            train: Whether the statistics of `x` count.
            mask: True where an element counts.

        Returns:
            The output, and the state after it, which is `state` where `train` is False.
        """
        ...
