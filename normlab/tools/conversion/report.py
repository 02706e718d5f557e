"""Say for each norm of a model how it was converted."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeAlias, TypeVar, overload

import jax
from flax import linen as nn
from flax import nnx
from flax.typing import Key, PathParts, VariableDict

__all__ = ["Converted", "How", "Path", "Report", "Row"]

How: TypeAlias = Literal["field", "wrapper", "module"]
Path: TypeAlias = PathParts
Model = TypeVar("Model", bound=nn.Module | nnx.Module)


@dataclass(frozen=True)
class Row:
    """A norm that was converted.

    Attributes:
        path: Path of the norm, joined by `/`.
        before: Kind of the norm before, such as `batch`.
        after: The norm after, with its options, such as `group:num_groups=8`.
        how: `field`: by a field of the model that holds the norm. `wrapper`: by a module around the model. `module`:
            the module was replaced in an NNX model.
        carried: Names of the variables that keep their values.
        fresh: Names of the variables that start anew.
        dropped: Names of the variables that the new norm does not have.
        notes: Sentences on what else to do.
    """

    path: str
    before: str
    after: str
    how: How
    carried: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report(Sequence[Row]):
    """How the norms of a model were converted, a row each.

    Attributes:
        rows: The norms, in the order of the model.
        names: Names at the top of the tree of parameters, by which an optimizer's state is recognised.
        fresh: Parameters that start anew, by path in the tree of parameters.
        dropped: Paths of parameters that are no longer there.
    """

    rows: tuple[Row, ...]
    names: frozenset[Key] = frozenset()
    fresh: Mapping[Path, jax.ShapeDtypeStruct] = field(default_factory=dict)
    dropped: tuple[Path, ...] = ()

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | Sequence[Row]:
        return self.rows[index]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def table(self) -> str:
        """Return the norms as a table of text, a row each, then the notes."""
        columns = ("path", "before", "after", "how", "carried", "fresh", "dropped")
        rows = [columns, *(_cells(row) for row in self.rows)]
        wide = [max(len(row[i]) for row in rows) for i in range(len(columns))]
        lines = ["  ".join(map(str.ljust, row, wide)).rstrip() for row in rows]
        notes = dict.fromkeys(f"{row.path or '(model)'}: {note}" for row in self.rows for note in row.notes)
        return "\n".join([*lines, *notes])


def _cells(row: Row) -> tuple[str, ...]:
    lists = (", ".join(names) or "-" for names in (row.carried, row.fresh, row.dropped))
    return (row.path or "(model)", row.before, row.after, row.how, *lists)


@dataclass(frozen=True)
class Converted(Generic[Model]):
    """A model whose norms were converted.

    Attributes:
        model: The model; of the class of the one that was given, unless a module had to be put around a Linen model.
        variables: Variables of a Linen model; `None` for NNX.
        report: How each norm was converted.
        labels: Labels of parameters, for `optax.multi_transform`; only where norms were frozen.
    """

    model: Model
    variables: VariableDict | None
    report: Report
    labels: Mapping[str, object] | nnx.State | None = None
