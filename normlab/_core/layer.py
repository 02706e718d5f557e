"""The protocol of a norm with its options and without Flax."""

from typing import Any, ClassVar, Protocol

from jax import Array


class StreamLayer(Protocol):
    """A norm with a state that the forward pass changes, and one whose gradient is its new value.

    Attributes:
        names: Of the arrays of the first.
    """

    names: ClassVar[tuple[str, ...]]

    def initial(self, shape: tuple[int, ...]) -> tuple[Any, Any]:
        """Return both states at the start, named tuples."""
        ...

    def train(self, x: Array, state: Any, carried: Any, **options: Any) -> tuple[Array, Any]:
        """Normalize, and return the first state after it, too."""
        ...

    def evaluate(self, x: Array, state: Any, **options: Any) -> Array:
        """Normalize by the first state."""
        ...
