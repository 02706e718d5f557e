"""Report on a fold: where each norm went, and why."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, overload

from normlab.tools.folding.notes import ADVICE

__all__ = ["FoldError", "How", "FoldReport", "FoldRow"]

How = Literal["identity", "bias", "affine", "variables", "kept"]
"""Fate of a norm; see `FoldRow`."""


class FoldError(RuntimeError):
    """Error for a folded model whose outputs differ though no fold is the cause."""


@dataclass(frozen=True)
class FoldRow:
    """Fate of one norm.

    Attributes:
        path: Path of the norm.
        into: Path of the layer that has taken it up; empty where none has.
        how: `identity`: the norm is gone. `bias`: its shift is left. `affine`: a multiplication and an addition are
            left. `variables`: it runs, and adds its shift alone. `kept`: it is as it was.
        reason: Why it is not in a layer; empty where it is.
        notes: Advice on rounding the folded weights.
    """

    path: str
    into: str
    how: How
    reason: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class FoldReport(Sequence[FoldRow]):
    """A row for each norm, in the order of the model.

    Attributes:
        rows: The rows.
    """

    rows: tuple[FoldRow, ...]

    @overload
    def __getitem__(self, index: int) -> FoldRow: ...
    @overload
    def __getitem__(self, index: slice) -> "FoldReport": ...
    def __getitem__(self, index: int | slice) -> "FoldRow | FoldReport":
        return FoldReport(self.rows[index]) if isinstance(index, slice) else self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[FoldRow]:
        return iter(self.rows)

    @property
    def by_path(self) -> dict[str, FoldRow]:
        """Rows by the path of the norm."""
        return {row.path: row for row in self.rows}

    @property
    def folded(self) -> int:
        """Number of norms that are in a layer, or gone as they changed nothing."""
        return sum(not row.reason for row in self.rows)

    @property
    def advice(self) -> tuple[str, ...]:
        """When to fold, among other steps before deployment."""
        return ADVICE

    def table(self) -> str:
        """Return the rows as text, a column for each attribute, and notes below."""
        head = ("path", "into", "how", "reason")
        lines = [head, *((row.path, row.into, row.how, row.reason) for row in self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines]
        notes = [f"{row.path}: {note}" for row in self.rows for note in row.notes]
        return "\n".join(line.rstrip() for line in [*text, *notes])

    def __str__(self) -> str:
        return self.table()
