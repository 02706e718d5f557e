"""Budgets: epochs, seeds and learning rates of a comparison, by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import SupportsIndex

from normlab import expect
from normlab.study.design.factors import Value, by_curve
from normlab.study.design.problem import several_norms
from normlab.study.design.records import TUNING_SEEDS_FROM


@dataclass(frozen=True, kw_only=True)
class Tier:
    """A budget. `claims` is False where there are too few seeds for claims.

    Attributes:
        epochs: Passes over the training set.
        learning_rates: The grid, the same for every norm and factor value.
        tuning_seeds: Seeds per learning rate, never used again for evaluation.
        seeds: Evaluation seeds.
        problems: Problems of this budget; all problems of the comparison unless given.
        norms: Norms of this budget; all norms of the comparison unless given.
        values: Factor values of this budget by curve; other curves have all of their values.
        extend: Whether a grid grows by two points where an optimum is at its end (see `plan`).
        untuned: Whether every norm is also evaluated at `Comparison.default_learning_rate`.
        leaves_out: One sentence for the report: what a larger budget would add.
    """

    epochs: int
    learning_rates: tuple[float, ...]
    tuning_seeds: int
    seeds: int
    problems: tuple[str, ...] = ()
    norms: tuple[str, ...] = ()
    values: Mapping[str, tuple[Value, ...]] = field(default_factory=dict[str, tuple[Value, ...]])
    extend: bool = True
    untuned: bool = True
    claims: bool = True
    leaves_out: str = ""

    def __post_init__(self) -> None:
        """Check the fields; see `Factor`. Learning rates are sorted."""
        expect.check_fields(
            self,
            epochs=expect.WHOLE,
            learning_rates=expect.Several(expect.POSITIVE),
            tuning_seeds=expect.WHOLE,
            seeds=_SEEDS,
            problems=expect.Several(expect.NAME, empty=True),
            norms=several_norms(empty=True),
            values=_TIER_VALUES,
            extend=expect.SWITCH,
            untuned=expect.SWITCH,
            claims=expect.SWITCH,
            leaves_out=expect.TEXT,
        )
        object.__setattr__(self, "learning_rates", tuple(sorted(self.learning_rates)))


def _few(value: SupportsIndex) -> int:
    if expect.whole(value) > TUNING_SEEDS_FROM:
        raise ValueError(value)
    return expect.whole(value)


_SEEDS = expect.Kind(f"a positive whole number up to {TUNING_SEEDS_FROM}", _few, "Give one such as 5.")
_TIER_VALUES = expect.Kind(
    "values by the name of their curve", by_curve, 'Write a dictionary such as `{"deployed": (2, 32)}`.'
)

HALF_DECADES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


def tiers(
    *, epochs: int = 20, learning_rates: Sequence[float] = HALF_DECADES, problems: Sequence[str] = ()
) -> dict[str, Tier]:
    """Make the budgets `smoke`, `quick`, `standard` and `paper`.

    Args:
        epochs: Passes over the training set.
        learning_rates: The grid, in any order; `quick` leaves out both ends.
        problems: Problems of every budget; all problems of the comparison unless given.

    Raises:
        BadInput: If an argument is invalid.
    """
    grid = tuple(sorted(expect.Several(expect.POSITIVE).of("`learning_rates` of `tiers`", learning_rates)))
    epochs = expect.WHOLE.of("`epochs` of `tiers`", epochs)
    inner, middle = grid[1:-1] if len(grid) > 4 else grid, len(grid) // 2
    tier = partial(Tier, problems=expect.Several(expect.NAME, empty=True).of("`problems` of `tiers`", problems))
    return {
        "smoke": tier(
            epochs=min(2, epochs),
            learning_rates=grid[middle : middle + 2],
            tuning_seeds=1,
            seeds=2,
            extend=False,
            untuned=False,
            claims=False,
            leaves_out="Smoke only shows that everything runs; its errors mean nothing.",
        ),
        "quick": tier(
            epochs=epochs,
            learning_rates=inner,
            tuning_seeds=1,
            seeds=5,
            leaves_out=f"Quick tunes over {len(inner)} learning rates with 1 seed each and evaluates with 5 seeds; "
            f"standard takes {len(grid)} learning rates with 2 seeds each, and 10 seeds.",
        ),
        "standard": tier(
            epochs=epochs,
            learning_rates=grid,
            tuning_seeds=2,
            seeds=10,
            leaves_out="Standard evaluates with 10 seeds; paper takes 20.",
        ),
        "paper": tier(epochs=epochs, learning_rates=grid, tuning_seeds=2, seeds=20),
    }


TIERS = tiers()
