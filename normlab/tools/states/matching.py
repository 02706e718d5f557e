"""Which layer of another library's state belongs to which module of a Flax model: by name, order, kind and shape."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

from normlab.errors import BadInput, nearest
from normlab.expect import refusal, shown
from normlab.introspect.modules import Owner

__all__ = [
    "Entry",
    "Fits",
    "Item",
    "Matched",
    "Names",
    "check_known",
    "gathered",
    "in_order",
    "items",
    "matched",
    "some",
    "titled",
    "unused",
]

Names = Mapping[str, str] | Callable[[str], str | None]
"""Path of a module by the name of a layer; a function returns `None` for a layer that it does not name."""

One = TypeVar("One")
_COUNT = re.compile(r"_(\d+)$")

_SHOWN = 4
"""Most arrays that an error names on each side."""


@dataclass(frozen=True, eq=False)
class Entry:
    """A layer in the state of another library.

    Attributes:
        name: Name of the layer.
        arrays: Arrays of the layer by the last part of their keys.
        keys: Whole keys by the same parts.
        counted: Whether the library counts layers of one name in the order in which they are made.
    """

    name: str
    arrays: Mapping[str, np.ndarray]
    keys: Mapping[str, str]
    counted: bool = False

    def __str__(self) -> str:
        shapes = (f"{key} {array.shape}" for key, array in self.arrays.items())
        return f"{titled(self.name)} ({', '.join(shapes)})"


def titled(name: str) -> str:
    """Return the path of a module or the name of a layer for a message; the model itself has none."""
    return f"`{name}`" if name else "the model"


class Item(NamedTuple):
    """An array of a state, with the name of its layer, its part of the key, and the whole key."""

    name: str
    part: str
    key: str
    value: object


def items(state: Mapping[str, object], separator: str) -> list[Item]:
    """Return the arrays of a flat state, whose keys are the name of a layer and a part.

    Raises:
        BadInput: If the state is not flat.
    """
    found: list[Item] = []
    for key, value in state.items():
        if isinstance(value, Mapping):
            raise refusal("arrays by name in `state`", value, f"Pass what is under `{key}`.")
        name, _, part = key.rpartition(separator)
        found.append(Item(name, part, key, value))
    return found


def gathered(items: Iterable[Item], *, counted: bool = False) -> list[Entry]:
    """Return the layers of a state, in its order."""
    layers: dict[str, list[Item]] = {}
    for item in items:
        layers.setdefault(item.name, []).append(item)
    return [
        Entry(
            name,
            {item.part: np.asarray(item.value) for item in parts},
            {item.part: item.key for item in parts},
            counted,
        )
        for name, parts in layers.items()
    ]


Fits = Callable[[Entry, Owner], bool]


class Matched(NamedTuple):
    """Layers with their modules, and what is left of both."""

    pairs: list[tuple[Entry, Owner]]
    entries: list[Entry]
    owners: list[Owner]


def matched(entries: Sequence[Entry], owners: Sequence[Owner], fits: Fits, names: Names | None) -> Matched:
    """Match layers and modules: by name where there is one, else in order, else where kind and shape leave no choice.

    Args:
        entries: Layers in the order of the state.
        owners: Modules in the order of the calls.
        fits: Whether kind and shapes of a layer are those of a module.
        names: Paths of modules by names of layers; `None` for none.

    Raises:
        BadInput: If a name is unknown or does not fit, or there is a choice.
    """
    pairs = _named(entries, owners, fits, names) if names is not None else []
    left = _without(entries, [entry for entry, _ in pairs]), _without(owners, [owner for _, owner in pairs])
    lone_entries = [entry for entry in left[0] if not any(fits(entry, owner) for owner in left[1])]
    lone_owners = [owner for owner in left[1] if not any(fits(entry, owner) for entry in left[0])]
    found = _in_order_or_unique(_without(left[0], lone_entries), _without(left[1], lone_owners), fits)
    return Matched(pairs + found, lone_entries, lone_owners)


def _in_order_or_unique(entries: Sequence[Entry], owners: Sequence[Owner], fits: Fits) -> list[tuple[Entry, Owner]]:
    if len(entries) == len(owners) and all(map(fits, entries, owners)):
        return list(zip(entries, owners, strict=True))
    pairs: list[tuple[Entry, Owner]] = []
    for owner in owners:
        candidates = [entry for entry in entries if fits(entry, owner)]
        others = [other for other in owners if fits(candidates[0], other)]
        if len(others) == len(candidates) and _counted(candidates):
            candidates.sort(key=lambda entry: _number(entry.name))
            pairs.append((candidates[[other is owner for other in others].index(True)], owner))
            continue
        if len(candidates) > 1:
            raise _choice(titled(owner.path), [titled(entry.name) for entry in candidates], (candidates[0].name, owner))
        if len(others) > 1:
            raise _choice(titled(candidates[0].name), [titled(one.path) for one in others], (candidates[0].name, owner))
    return pairs


def _counted(entries: Sequence[Entry]) -> bool:
    """Return whether the names are one name that the library counted: `linear`, `linear_1`; or there is one layer."""
    alike = len({_COUNT.sub("", entry.name) for entry in entries}) == 1
    return len(entries) == 1 or (alike and all(entry.counted for entry in entries))


def in_order(entries: Sequence[Entry]) -> list[Entry]:
    """Return layers with those of one counted name in the order of their numbers, at the places that they have."""
    stems = [_COUNT.sub("", entry.name) for entry in entries]
    sorted_ = {stem: iter(sorted(_alike(entries, stem), key=lambda entry: _number(entry.name))) for stem in set(stems)}
    return [next(sorted_[stem]) for stem in stems]


def _alike(entries: Sequence[Entry], stem: str) -> list[Entry]:
    return [entry for entry in entries if _COUNT.sub("", entry.name) == stem]


def _number(name: str) -> int:
    return int(found.group(1)) if (found := _COUNT.search(name)) else 0


def _choice(one: str, candidates: Sequence[str], example: tuple[str, Owner]) -> BadInput:
    more = f" and {len(candidates) - 2} more" if len(candidates) > 2 else ""
    return BadInput(
        f"Expected one candidate for {one} by order, kind and shape, got {candidates[0]} and {candidates[1]}{more}. "
        f'Say which it is: `names={{"{example[0]}": "{example[1].path}"}}`, if so.'
    )


def _named(entries: Sequence[Entry], owners: Sequence[Owner], fits: Fits, names: Names) -> list[tuple[Entry, Owner]]:
    by_path = {owner.path: owner for owner in owners}
    pairs: list[tuple[Entry, Owner]] = []
    for entry, path in _paths(entries, names).items():
        entry = next(one for one in entries if one.name == entry)
        if path not in by_path:
            remedy = nearest(path, by_path)
            raise BadInput(f"Expected the path of a module for {titled(entry.name)}, got `{path}`. {remedy}")
        owner = by_path[path]
        if any(owner is other for _, other in pairs):
            raise BadInput(f"Expected a module for each layer, got `{path}` twice. Change `names`.")
        if not fits(entry, owner):
            raise BadInput(f"Expected a layer that fits {described(owner)}, got {entry}. Change `names` or the model.")
        pairs.append((entry, owner))
    return pairs


def _paths(entries: Sequence[Entry], names: Names) -> dict[str, str]:
    if callable(names):
        return {entry.name: path for entry in entries if (path := names(entry.name)) is not None}
    check_known("names", names, entries)
    return dict(names)


def check_known(option: str, value: object, entries: Sequence[Entry]) -> None:
    """Refuse a mapping by names of layers with a name that no layer has.

    Args:
        option: Name of the mapping, for the message.
        value: The mapping; anything else passes.
        entries: The layers.

    Raises:
        BadInput: If a name is unknown.
    """
    known = [entry.name for entry in entries]
    for name in value if isinstance(value, Mapping) else ():
        if name not in known:
            raise BadInput(
                f"Expected names of layers of the state in `{option}`, got {shown(name)}. {nearest(str(name), known)}"
            )


def described(owner: Owner) -> str:
    """Return a module's path, kind and arrays, for a message."""
    arrays = ", ".join(f"{name} {shape}" for name, shape in owner.shapes.items())
    return f"{titled(owner.path)} ({owner.kind}: {arrays})"


def unused(entries: Sequence[Entry], paths: Sequence[str]) -> str:
    """Return the sentence for layers without a module, and modules or arrays without a layer."""
    keys = [f"`{key}` {entry.arrays[part].shape}" for entry in entries for part, key in entry.keys.items()]
    sides = [f"no place for {some(keys)}"] * bool(keys) + [f"nothing for {some(list(paths))}"] * bool(paths)
    return f"Expected every array to be used once, got {' and '.join(sides)}"


def some(names: Sequence[str]) -> str:
    """Return the first few names and the number of others."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _without(layers: Sequence[One], left_out: Sequence[One]) -> list[One]:
    return [layer for layer in layers if not any(layer is one for one in left_out)]
