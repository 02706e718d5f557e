"""Variables of a model inside the tree of a checkpoint, which may have an optimizer's state and more beside them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeAlias

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from normlab.errors import BadInput, nearest
from normlab.expect import refusal

__all__ = ["Expected", "Flat", "Keys", "Place", "beside", "found", "sibling", "values_at", "with_values"]

Keys: TypeAlias = tuple[str, ...]
Flat: TypeAlias = dict[Keys, Any]
Shapes: TypeAlias = Mapping[Keys, jax.ShapeDtypeStruct]

_BOX = "value"
"""Key of an array whose variable, or box of metadata, was saved with it."""
_DEPTH = 3
_SHOWN = 8


@dataclass(frozen=True)
class Expected:
    """The variables that a model has.

    Attributes:
        shapes: Their shapes by keys.
        optional: Keys of variables that a checkpoint may have or not, such as those of random streams.
        alone: Whether there is nothing beside them in their dictionary, as in the state of an NNX model.
    """

    shapes: Shapes
    optional: Collection[Keys] = ()
    alone: bool = False

    def owns(self, name: str) -> bool:
        """Return whether what is below a first key belongs to the variables."""
        return self.alone or name in self.first

    @cached_property
    def first(self) -> frozenset[str]:
        """First keys of the variables, such as the names of collections."""
        return frozenset(keys[0] for keys in self.shapes)


@dataclass(frozen=True)
class Place:
    """The place of the variables of a model.

    Attributes:
        keys: Keys of the tree above the variables.
        boxed: Keys of arrays that are below one more key.
        all_boxed: Whether all are, as in `nnx.State`.
    """

    keys: Keys = ()
    boxed: frozenset[Keys] = frozenset()
    all_boxed: bool = False

    def key_of(self, variable: Keys) -> Keys:
        """Return the keys of the array of a variable."""
        return (*variable, _BOX) if self.all_boxed or variable in self.boxed else variable

    def variable_of(self, keys: Keys) -> Keys:
        """Return the keys of the variable of an array."""
        return keys[:-1] if keys[:-1] in self.boxed and keys[-1] == _BOX else keys


def found(tree: object, expected: Expected, key: str | None = None) -> Place:
    """Find the variables of a model: the uppermost dictionary that has all their first keys.

    Args:
        tree: Content of a checkpoint.
        expected: The variables.
        key: Keys above the variables, joined by `/`, where they are known.

    Raises:
        BadInput: If the variables are not there, or several dictionaries have such keys.
    """
    if key is not None:
        keys = tuple(part for part in key.split("/") if part)
        return _place(keys, _node(tree, keys), expected)
    places = [()] if isinstance(tree, Mapping) else []
    for _ in range(_DEPTH):
        fitting = [keys for keys in places if expected.first <= _dictionary(tree, keys).keys()]
        if len(fitting) == 1:
            return _place(fitting[0], _dictionary(tree, fitting[0]), expected)
        if fitting:
            several = ", ".join(f"`{'/'.join(keys)}`" for keys in fitting[:_SHOWN])
            raise BadInput(f"Expected the variables of one model, got {several}. Choose one of them by `key`.")
        places = [
            (*keys, name)
            for keys in places
            for name, part in _dictionary(tree, keys).items()
            if isinstance(part, Mapping)
        ]
    there = ", ".join(map(str, tree)) if isinstance(tree, Mapping) else "none"
    raise BadInput(
        f"Expected a checkpoint with {_named(sorted(expected.first))}, as the model has them, got the keys {there}. "
        "Give the checkpoint of the same model."
    )


def _named(names: Collection[str]) -> str:
    quoted = [f"`{name}`" for name in names]
    return ", ".join([*quoted[:_SHOWN], *["..."] * (len(quoted) > _SHOWN)])


def _dictionary(tree: object, keys: Keys) -> Mapping[str, object]:
    """Return the dictionary below some keys, an empty one where there is none."""
    for key in keys:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree if isinstance(tree, Mapping) else {}


def _node(tree: object, keys: Keys) -> Mapping[str, object]:
    """Return the dictionary below keys that the user named."""
    node = tree
    for at, key in enumerate(keys):
        if not isinstance(node, Mapping) or key not in node:
            known = map(str, node) if isinstance(node, Mapping) else ()
            raise BadInput(f"Expected `{'/'.join(keys[: at + 1])}` in the checkpoint, got none. {nearest(key, known)}")
        node = node[key]
    if not isinstance(node, Mapping):
        raise refusal(f"`{'/'.join(keys)}` to be the variables of a model", node, "Name the key above them.")
    return node


def _place(above: Keys, node: Mapping[str, object], expected: Expected) -> Place:
    """Return the place of the variables in a dictionary."""
    flat = _flat(node)
    boxed = frozenset(keys for keys in (*expected.shapes, *expected.optional) if (*keys, _BOX) in flat)
    return Place(above, boxed, expected.shapes.keys() <= boxed)


def _flat(node: Mapping[str, object], above: Keys = ()) -> Flat:
    """Return what is in nested dictionaries by keys."""
    leaves: Flat = {}
    for name, part in node.items():
        keys = (*above, str(name))
        leaves |= _flat(part, keys) if isinstance(part, Mapping) else {keys: part}
    return leaves


def values_at(tree: object, place: Place, expected: Expected) -> Flat:
    """Return the variables of a model.

    Args:
        tree: Content of a checkpoint.
        place: Where they are.
        expected: The variables.

    Raises:
        BadInput: If one is missing, has another shape, or is not the model's.
    """
    there = _flat(_dictionary(tree, place.keys))
    values = {place.variable_of(keys): leaf for keys, leaf in there.items() if expected.owns(keys[0])}
    for keys, wanted in expected.shapes.items():
        shape = np.shape(values[keys]) if keys in values else None
        if shape != wanted.shape:
            raise _mismatch(keys, f"of shape {wanted.shape}", "none" if shape is None else str(shape))
    for keys, value in values.items():
        if keys not in expected.shapes and keys not in expected.optional:
            raise _mismatch(keys, "not to be", f"one of shape {np.shape(value)}")
    return values


def _mismatch(keys: Keys, wanted: str, got: str) -> BadInput:
    """Return the error for the checkpoint of another model."""
    return BadInput(
        f"Expected `{'/'.join(keys)}` {wanted} in the checkpoint, as in the model, got {got}. Give the checkpoint of "
        "the same model."
    )


def beside(tree: object, place: Place, expected: Expected) -> tuple[str, ...]:
    """Return the paths of what is beside the variables, and beside the dictionaries that they are in."""
    paths = [(*place.keys, str(name)) for name in _dictionary(tree, place.keys) if not expected.owns(str(name))]
    for at, key in enumerate(place.keys):
        above = place.keys[:at]
        paths += [(*above, str(name)) for name in _dictionary(tree, above) if name != key]
    return tuple("/".join(path) for path in paths)


def sibling(tree: object, place: Place, name: str) -> object:
    """Return what is beside the variables by a name; `None` where nothing is."""
    return _dictionary(tree, place.keys).get(name)


def with_values(
    tree: object, place: Place, values: Flat, expected: Expected, others: Mapping[str, object] = MappingProxyType({})
) -> object:
    """Return a tree with other variables; all that is beside them stays as it is, unless it is given.

    Args:
        tree: Content of a checkpoint.
        place: Where the variables are.
        values: The variables after a change.
        expected: The variables before.
        others: New values by name of what is beside the variables.
    """
    node = _dictionary(tree, ())
    if place.keys:
        first, *rest = place.keys
        return {**node, first: with_values(node[first], replace(place, keys=tuple(rest)), values, expected, others)}
    new: dict[str, object] = {name: part for name, part in node.items() if not expected.owns(str(name))}
    nested: dict[str, object] = unflatten_dict({place.key_of(keys): value for keys, value in values.items()})
    return {**new, **others, **nested}
