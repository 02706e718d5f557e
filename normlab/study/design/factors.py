"""Factors, and the curves of a comparison over their values."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import SupportsFloat

from normlab import expect, norms
from normlab.errors import BadInput

Value = int | float | str
"""A value of a factor: a batch size, a sequence length, the name of a drift."""


@dataclass(frozen=True, kw_only=True)
class Factor:
    """The quantity a curve varies.

    Attributes:
        name: The key in records and config files, e.g. `batch_size`.
        label: For axes and headings, with the unit, e.g. `batch size (examples)`.
        flag: The command-line flag that selects values, e.g. `--batch-sizes`; different for every curve.
        values: All values of the curve, in their order in figures and tables.
        log: Whether plots use a logarithmic axis.
        reference: The value to which the errors of a norm at other values are compared; `None` for no comparison.
    """

    name: str
    label: str
    flag: str
    values: tuple[Value, ...]
    log: bool = True
    reference: Value | None = None

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            BadInput: If a field is invalid.
        """
        expect.check_fields(
            self,
            name=expect.NAME,
            label=expect.LABEL,
            flag=_FLAG,
            values=_VALUES,
            log=expect.SWITCH,
            reference=expect.optional(_VALUE),
        )
        if self.reference is not None and self.reference not in self.values:
            raise BadInput(
                f"Expected `reference` of `Factor` to be one of its values, got {expect.shown(self.reference)}. "
                f"Choose one of {', '.join(map(str, self.values))}, or None."
            )
        wrong = [value for value in self.values if not isinstance(value, str) and value <= 0]
        if self.log and wrong:
            raise BadInput(
                f"Expected positive `values` of `Factor` for a logarithmic axis, got {wrong[0]}. Pass `log=False`."
            )


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A factor, and how configurations depend on it. A comparison may have several curves, each with its own claim.

    Attributes:
        name: Short, for flags and records, e.g. `deployed`.
        title: A heading that says what varies and what does not.
        factor: The x-axis.
        config: `factor value -> training fields of a run`, e.g. `{"batch_size": value}`.
        norm_options: `(norm name, factor value) -> options` that the factor gives a norm. A norm whose configuration is
            the same at all values is run once and drawn as a flat reference.
        shows: One sentence for the report: what the curve shows.
        hides: One sentence for the report: what the curve cannot show.
        advises: Whether recommendations rest on this curve.
    """

    name: str
    title: str
    factor: Factor
    config: Callable[[Value], Mapping[str, object]]
    norm_options: Callable[[str, Value], Mapping[str, object]] = lambda norm, value: {}
    shows: str = ""
    hides: str = ""
    advises: bool = True

    def __post_init__(self) -> None:
        """Check the fields; see `Factor`."""
        expect.check_fields(
            self,
            name=expect.NAME,
            title=expect.LABEL,
            factor=expect.an(Factor, "Write `factor=study.Factor(...)`."),
            config=expect.function(
                "a function of the factor's value", 'Write `lambda value: {"batch_size": value}`.', arguments=1
            ),
            norm_options=expect.function(
                "a function of a norm's name and the factor's value", "Write `lambda norm, value: {}`.", arguments=2
            ),
            shows=expect.TEXT,
            hides=expect.TEXT,
            advises=expect.SWITCH,
        )


def _a_value(value: str | SupportsFloat) -> Value:
    return value if isinstance(value, str) else expect.finite(value)


def _a_flag(value: object) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"--\w[\w-]*", value):
        raise ValueError(value)
    return value


def by_curve(values: Mapping[str, object]) -> Mapping[str, tuple[Value, ...]]:
    """Check the values of each curve."""
    if not isinstance(values, Mapping):
        raise TypeError(values)
    return {name: _VALUES.of(f"`values[{name!r}]` of `Tier`", of_curve) for name, of_curve in values.items()}


_VALUE = expect.Kind("a number or text", _a_value, "Give one such as 32.")
_VALUES = expect.Several(_VALUE, remedy="Write a tuple, also of a single one: `values=(2, 32)`.")
_FLAG = expect.Kind("a flag of the command line", _a_flag, "Write one such as `--batch-sizes`.")

SIZES = (2, 4, 8, 32, 128)


_CURVES: Mapping[str, expect.Check] = {
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
    """Make the two curves over the batch size: as deployed, and with the effect of the statistics isolated.

    Args:
        deployed: Batch sizes of optimizer and statistics, together.
        isolated: Batch sizes of the statistics, at one batch size of the optimizer; for norms whose statistics cross
            examples. The other norms do not change, and are drawn for reference. Empty for no such curve.
        batch_size: The batch size of the optimizer in `isolated`; the largest of `isolated` unless given.
        reference: The value of `deployed` to which the errors of a norm at other values are compared; the largest
            unless given.

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
    def options(norm: str, value: Value) -> Mapping[str, object]:
        chunked = (
            norms.get(norm).entry.ghost_batches and value != batch_size
        )  # equal: the same configuration as in `deployed`
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
