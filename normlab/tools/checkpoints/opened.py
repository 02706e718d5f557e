"""A checkpoint together with the model whose variables it holds."""

import os
from dataclasses import dataclass
from functools import cached_property
from typing import cast

from flax import linen as nn
from flax import nnx
from flax.typing import VariableDict

from normlab.introspect.calls import Module
from normlab.tools.checkpoints.changes import Change, changed, recorded
from normlab.tools.checkpoints.example import Example, flat_state, flat_variables, variables_of, with_state
from normlab.tools.checkpoints.files import Saved, read
from normlab.tools.checkpoints.trees import Expected, Flat, Place, beside, found, sibling, values_at, with_values

__all__ = ["OPT_STATE", "Opened", "opened"]

OPT_STATE = "opt_state"
"""Key of an optimizer's state, as in the `TrainState` of Flax."""


@dataclass(frozen=True, eq=False)
class Opened:
    """A checkpoint and its model.

    Attributes:
        saved: Content of the checkpoint.
        example: The model, as it is after the changes that the checkpoint records, and a call of it.
        expected: The variables that the model has.
        place: Where they are in the checkpoint.
        values: Their values.
    """

    saved: Saved
    example: Example
    expected: Expected
    place: Place
    values: Flat

    @cached_property
    def model(self) -> Module:
        """The model; of NNX, with the values of the checkpoint."""
        model = self.example.model
        return with_state(model, self.values) if isinstance(model, nnx.Module) else model

    @property
    def variables(self) -> VariableDict | None:
        """Variables of a Linen model; `None` for NNX."""
        return variables_of(self.values) if isinstance(self.example.model, nn.Module) else None

    @property
    def beside(self) -> tuple[str, ...]:
        """Keys of what is beside the variables."""
        return beside(self.saved.tree, self.place, self.expected)

    @property
    def opt_state(self) -> object:
        """State of an optimizer beside the variables; `None` where there is none, or its arrays are boxed."""
        return None if self.place.all_boxed else sibling(self.saved.tree, self.place, OPT_STATE)

    def after(self, change: Change, model: Module, variables: object, opt_state: object = None) -> Saved:
        """Return the content of a new checkpoint.

        Args:
            change: The change.
            model: The model after it.
            variables: Variables of a Linen model after it; not read for NNX.
            opt_state: State of an optimizer, in the place of that beside the variables; `None` leaves it.
        """
        values = _values(model, variables, self.values)
        others = {} if opt_state is None else {OPT_STATE: opt_state}
        tree = with_values(self.saved.tree, self.place, values, self.expected, others)
        key = "/".join(self.place.keys)
        return Saved(tree, (*self.saved.changes, recorded(change)), key, self.saved.metadata)


def _values(model: Module, variables: object, before: Flat) -> Flat:
    """Return the values of the variables of a model after a change; random streams stay as the checkpoint has them."""
    if not isinstance(model, nnx.Module):
        return flat_variables(cast(VariableDict, variables))
    flat = flat_state(model)
    new = {keys: one.get_value() for keys, one in flat.items() if not isinstance(one, nnx.RngState)}
    return new | {keys: value for keys, value in before.items() if isinstance(flat.get(keys), nnx.RngState)}


def opened(path: str | os.PathLike[str], example: Example, key: str | None = None) -> Opened:
    """Read the checkpoint of a model.

    Args:
        path: Folder of the checkpoint.
        example: The model as it was made, and a call of it.
        key: Keys above the variables, joined by `/`; found unless given.

    Raises:
        BadInput: If there is no checkpoint, or it is that of another model.
    """
    saved = read(path)
    example, expected = changed(example, saved.changes)
    place = found(saved.tree, expected, saved.key if key is None else key)
    return Opened(saved, example, expected, place, values_at(saved.tree, place, expected))
