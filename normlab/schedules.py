"""Schedules that are plain values, for options of norms, records and keys."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jax import Array


@dataclass(frozen=True)
class Ramp:
    """A value that moves linearly from `start` to `stop` between two steps.

    Any function of the step is a schedule, for example Optax's; this one is a value that compares and prints.

    Attributes:
        start: Value up to step `begin`.
        stop: Value from step `end` on.
        begin: Last step with value `start`.
        end: First step with value `stop`, after `begin`.

    Example:
        >>> r_max = Ramp(1.0, 3.0, begin=5_000, end=40_000)
        >>> float(r_max(0)), float(r_max(22_500)), float(r_max(10**6))
        (1.0, 2.0, 3.0)
    """

    start: float
    stop: float
    begin: int
    end: int

    def __post_init__(self) -> None:
        """Check that `begin` is before `end`."""
        if not 0 <= self.begin < self.end:
            raise ValueError(f"Expected 0 <= `begin` < `end`, got {self.begin} and {self.end}.")

    def __call__(self, step: "Array | int") -> "Array":
        """Return the value at `step`, a float32 scalar."""
        import jax.numpy as jnp

        progress = (jnp.asarray(step, jnp.float32) - self.begin) / (self.end - self.begin)
        return self.start + (self.stop - self.start) * jnp.clip(progress, 0.0, 1.0)
