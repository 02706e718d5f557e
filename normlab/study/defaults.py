"""What a comparison over the batch size need not say: its curves and its budgets."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from normlab import norms
from normlab.study import expect
from normlab.study.config import Curve, Factor, Tier, Value
from normlab.study.errors import BadInput

SIZES = (2, 4, 8, 32, 128)
HALF_DECADES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


_CURVES = {
    "deployed": expect.Several(expect.WHOLE, remedy="Write a tuple, also of a single one: `deployed=(2, 8, 32)`."),
    "isolated": expect.Several(
        expect.WHOLE, empty=True, remedy="Write a tuple: `isolated=(2, 8, 32)`, or `()` for none."
    ),
    "batch_size": expect.optional(expect.WHOLE),
    "reference": expect.optional(expect.WHOLE),
}


def batch_size_curves(
    deployed: Sequence[int] = SIZES,
    isolated: Sequence[int] = SIZES,
    *,
    batch_size: int | None = None,
    reference: int | None = None,
) -> tuple[Curve, ...]:
    """Make the two curves over the batch size: what one gets, and what the statistics alone do.

    Args:
        deployed: Batch sizes of optimizer and statistics, together.
        isolated: Sizes of the statistics' batch, in a batch of the optimizer that is always the same; for norms whose
            statistics cross examples. The others do not change, and are drawn for reference. Empty for no such curve.
        batch_size: That batch of the optimizer; the largest of `isolated` unless given.
        reference: The value of `deployed` that a norm's errors at the others are compared with; the largest unless
            given.

    Raises:
        BadInput: If a size is no positive whole number, or there is none, or it is larger than the batch.
    """
    given = expect.checked("batch_size_curves", locals(), _CURVES)
    curves = (_deployed(given["deployed"], given["reference"] or max(given["deployed"])),)
    if not given["isolated"]:
        return curves
    largest = max(given["isolated"])
    batch = given["batch_size"] or largest
    if largest > batch:
        raise BadInput(
            f"Expected sizes in `isolated` up to `batch_size`, which is {batch}, got {largest}. Leave it out, or give "
            "a larger batch."
        )
    return (*curves, _isolated(given["isolated"], batch))


def tiers(
    *, epochs: int = 20, learning_rates: Sequence[float] = HALF_DECADES, problems: Sequence[str] = ()
) -> dict[str, Tier]:
    """Make the budgets `smoke`, `quick`, `standard` and `paper`.

    Args:
        epochs: Passes over the training set.
        learning_rates: The grid, in any order; `quick` leaves out both ends.
        problems: Those that are compared unless others are asked for; all of the comparison's unless given.

    Raises:
        BadInput: If an argument cannot be what it should.
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


def _deployed(values: tuple[int, ...], reference: int) -> Curve:
    return Curve(
        name="deployed",
        title="As deployed: optimizer and statistics see the same batch",
        factor=Factor(
            name="batch_size",
            label="batch size (examples)",
            flag="--batch-sizes",
            values=values,
            reference=reference,
        ),
        config=lambda value: {"batch_size": value},
        shows="What you get when memory limits the batch, with the learning rate tuned for it and the same number of "
        "epochs at every batch size.",
        hides="Why: noise of the gradient, number of updates and noise of the statistics change together.",
    )


def _isolated(values: tuple[int, ...], batch_size: int) -> Curve:
    def options(norm: str, value: Value) -> Mapping[str, Any]:
        chunked = norms.get(norm).entry.ghost_batches and value != batch_size  # equal: the cell of the other curve
        return {"ghost_batch_size": value} if chunked else {}

    return Curve(
        name="isolated",
        title=f"Isolated: statistics see a part of the batch, the optimizer always {batch_size} examples",
        factor=Factor(
            name="ghost_batch_size",
            label="examples that share statistics",
            flag="--ghost-batch-sizes",
            values=values,
            reference=batch_size if batch_size in values else None,
        ),
        config=lambda value: {"batch_size": batch_size},
        norm_options=options,
        shows="What the number of examples in the statistics does by itself: gradient noise and updates stay as they "
        "are, and norms that do not look across examples cannot change at all.",
        hides="What you get at a small batch: there the gradient is noisier too, and there are more updates.",
        advises=False,
    )
