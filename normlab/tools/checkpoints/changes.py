"""Changes of a model that a checkpoint records, so that the model can be made again without the checkpoint before."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import VariableDict

from normlab.expect import refusal
from normlab.tools.checkpoints.example import Example, expected_of, variables_of
from normlab.tools.checkpoints.files import Recorded
from normlab.tools.checkpoints.trees import Expected, Keys
from normlab.tools.convert import convert
from normlab.tools.fold import Folded, Shift
from normlab.tools.folding import linen as in_linen
from normlab.tools.folding import nnx as in_nnx
from normlab.tools.folding.affine import Numbers
from normlab.tools.folding.plan import GONE
from normlab.tools.folding.replacement import Replacement

__all__ = ["Change", "Conversion", "Fold", "changed", "recorded"]

Described: TypeAlias = tuple[tuple[int, ...], str]
"""Shape and dtype."""


@dataclass(frozen=True)
class Fold:
    """Batch norms were folded into layers.

    Attributes:
        replacements: Stand-ins for norms by path: axes, dtype, dtypes of parameters.
        removed: Paths of variables that are gone.
        added: Shapes and dtypes of variables that are new, by path.
    """

    replacements: Mapping[str, Mapping[str, Any]]
    removed: tuple[str, ...]
    added: Mapping[str, Described]

    @classmethod
    def of(cls, folded: Folded, before: Expected) -> "Fold":
        """Describe a fold.

        Args:
            folded: The folded model.
            before: Variables of the model before.
        """
        replacements = _replacements(folded)
        after = expected_of(Example(folded.model, variables=cast(VariableDict, folded.variables)))
        removed = tuple("/".join(keys) for keys in before.shapes if keys not in after.shapes)
        added = {"/".join(k): (s.shape, str(s.dtype)) for k, s in after.shapes.items() if k not in before.shapes}
        return cls({path: _written(one) for path, one in replacements.items()}, removed, added)

    def apply(self, example: Example, expected: Expected) -> tuple[Example, Expected]:
        """Return the folded model, and the variables that it has."""
        new = {
            _keys(path): jax.ShapeDtypeStruct(shape, jnp.dtype(dtype)) for path, (shape, dtype) in self.added.items()
        }
        shapes = {keys: shape for keys, shape in expected.shapes.items() if "/".join(keys) not in self.removed} | new
        replacements = {path: _read(one) for path, one in self.replacements.items()}
        if isinstance(example.model, nnx.Module):
            values: dict[str, dict[str, Numbers]] = {}
            for (*above, name), shape in shapes.items():
                path = "/".join(above)
                if path in replacements or (*above, name) in new:
                    values.setdefault(path, {})[name] = np.zeros(shape.shape)
            example = replace(example, model=in_nnx.folded_copy(example.model, replacements, values))
            return example, expected_of(example)
        model = in_linen.folded_model(example.model, replacements)
        return replace(example, model=model), Expected(shapes)


@dataclass(frozen=True)
class Conversion:
    """Norms were replaced by others; see `normlab.tools.convert`.

    Attributes:
        to: The new norm; or pairs of a glob over paths and a norm, of which the first that matches counts.
        where: Globs over the paths of norms; `None` is all.
        keep: Names of what was kept.
    """

    to: str | Sequence[tuple[str, str]]
    where: tuple[str, ...] | None
    keep: tuple[str, ...]

    @classmethod
    def of(cls, to: str | Mapping[str, str], where: Sequence[str] | None, keep: Sequence[str]) -> "Conversion":
        """Describe a conversion by the arguments of `normlab.tools.convert`."""
        pairs = to if isinstance(to, str) else tuple(to.items())  # of which JSON keeps the order
        return cls(pairs, None if where is None else tuple(where), tuple(keep))

    def apply(self, example: Example, expected: Expected) -> tuple[Example, Expected]:
        """Return the converted model, and the variables that it has."""
        options: dict[str, Any] = {"where": self.where, "keep": self.keep, "fresh": "init"}
        to = self.to if isinstance(self.to, str) else dict(self.to)
        if isinstance(example.model, nnx.Module):
            example = replace(example, model=convert(example.model, None, to, **options).model)
            return example, expected_of(example)
        zeros = variables_of({keys: np.zeros(shape.shape, shape.dtype) for keys, shape in expected.shapes.items()})
        rngs = cast("Mapping[str, jax.Array] | None", example.options.get("rngs"))
        converted = convert(example.model, zeros, to, args=example.args, rngs=rngs, **options)
        variables = cast(VariableDict, converted.variables)
        return replace(example, model=converted.model), expected_of(Example(converted.model, variables=variables))


Change: TypeAlias = Fold | Conversion
_KINDS: Mapping[str, type[Change]] = {"fold": Fold, "convert": Conversion}


def recorded(change: Change) -> Recorded:
    """Return a change as values for JSON."""
    kind = next(name for name, kind in _KINDS.items() if isinstance(change, kind))
    return {"change": kind, **asdict(change)}


def changed(example: Example, changes: tuple[Recorded, ...]) -> tuple[Example, Expected]:
    """Return a model after recorded changes, and the variables that it has.

    Args:
        example: The model before, and a call of it.
        changes: The changes, the first one first.

    Raises:
        BadInput: If the model cannot be called, or a change is of a later version of this package.
    """
    expected = expected_of(example)
    for one in changes:
        options = dict(one)
        kind = _KINDS.get(str(options.pop("change", "")))
        if kind is None or options.keys() != kind.__dataclass_fields__.keys():
            raise refusal(
                "a checkpoint of this version of normlab", one.get("change"), "Load it with the version that wrote it."
            )
        example, expected = kind(**options).apply(example, expected)
    return example, expected


def _replacements(folded: Folded) -> dict[str, Replacement]:
    """Return the stand-ins for the norms that a fold removed."""
    gone = {row.path for row in folded.report if row.how in GONE}
    if isinstance(folded.model, nnx.Module):
        shifts = {"/".join(map(str, path)): node for path, node in nnx.iter_graph(folded.model)}
        return {path: one.replacement for path, one in shifts.items() if path in gone and isinstance(one, Shift)}
    return dict(folded.model.replacements) if gone and isinstance(folded.model, in_linen.FoldedModel) else {}


def _keys(path: str) -> Keys:
    return tuple(path.split("/"))


def _written(replacement: Replacement) -> dict[str, Any]:
    names = [str(jnp.dtype(dtype)) for dtype in replacement.parameters]
    dtype = None if replacement.dtype is None else str(jnp.dtype(replacement.dtype))
    return {"axes": replacement.axes, "dtype": dtype, "parameters": names}


def _read(written: Mapping[str, Any]) -> Replacement:
    dtype = None if written["dtype"] is None else jnp.dtype(written["dtype"])
    return Replacement(tuple(written["axes"]), dtype, tuple(map(jnp.dtype, written["parameters"])))
