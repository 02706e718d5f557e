"""Statistics between those that a norm keeps and those of the batch it is given.

References:
    Schneider et al. Improving Robustness Against Common Corruptions by Covariate Shift Adaptation. NeurIPS 2020.
    https://arxiv.org/abs/2006.16971
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from normlab import expect
from normlab._core.dtypes import float32_or_wider
from normlab.errors import BadInput
from normlab.tools.estimation.parts import Part

__all__ = ["BATCH", "Blend"]

SHARE = expect.Kind(
    "a number in [0, 1]",
    lambda value: float(value) if 0 <= expect.finite(value) <= 1 else _refuse(value),
    "It is the weight of the batch, such as 0.5.",
)


@dataclass(frozen=True)
class Blend:
    """The weight of the statistics of a batch beside those that are kept.

    Attributes:
        alpha: Weight of the batch, or `None`.
        source_count: Examples N that the kept statistics count as: a batch of n has the weight n / (n + N); or `None`.
        between: Whether the variance counts the distance of the two means, too.
    """

    alpha: float | None = None
    source_count: float | None = None
    between: bool = False

    def __post_init__(self) -> None:
        """Check the weight.

        Raises:
            BadInput: If not exactly one of `alpha` and `source_count` is there, or it is out of range.
        """
        given = [name for name in ("alpha", "source_count") if getattr(self, name) is not None]
        if len(given) != 1:
            raise BadInput(
                f"Expected either `alpha` or `source_count`, got {'both' if given else 'neither'}. Give `alpha`, the "
                "weight of the batch, or `source_count`, the examples that the running statistics count as."
            )
        expect.check_fields(
            self,
            alpha=expect.optional(SHARE),
            source_count=expect.optional(expect.POSITIVE),
            between=expect.SWITCH,
        )

    def weight(self, size: int) -> float:
        """Return the weight of a batch with this number of examples."""
        if self.alpha is not None:
            return self.alpha
        assert self.source_count is not None
        return size / (size + self.source_count)

    def statistics(self, kept: Mapping[str, Array], batch: Part, weight: float, epsilon: float) -> dict[str, Array]:
        """Return the statistics between kept ones and those of a batch.

        Args:
            kept: Kept statistics: `mean`, and perhaps `var` or `std`.
            batch: Moments of the batch.
            weight: Weight of the batch.
            epsilon: Added to the variance inside the root of `std`.
        """
        mean, new = float32_or_wider(kept["mean"]), jnp.add(batch.near, batch.rest)
        found = {"mean": (1 - weight) * mean + weight * new}
        for name in kept.keys() & {"var", "std"}:
            power = 2 if name == "std" else 1
            var = float32_or_wider(kept[name]) ** power - epsilon
            blended = (1 - weight) * var + weight * jnp.asarray(batch.var)
            if self.between:
                blended += weight * (1 - weight) * jnp.square(new - mean)
            found[name] = (blended + epsilon) ** (1 / power)
        return found


BATCH = Blend(alpha=1.0)
"""The statistics of the batch alone."""


def _refuse(value: object) -> float:
    raise ValueError(value)
