"""Arrays of another library's layers in the variables of a Flax model, and back."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx
from flax.traverse_util import flatten_dict
from flax.typing import VariableDict

from normlab.errors import BadInput
from normlab.expect import refusal, shown
from normlab.introspect.modules import Owner, is_norm, own_variables, owners
from normlab.tools.states.layout import Places
from normlab.tools.states.matching import Entry, Matched, Names, matched, some, titled, unused

__all__ = ["Call", "Imported", "Library", "exported", "flat", "imported", "name_of", "paths_of"]

Model = nn.Module | nnx.Module
Values = Mapping[tuple[str, str], np.ndarray]
"""Arrays by the path of the module and the name in the module."""


@dataclass(frozen=True)
class Imported:
    """A model with the numbers of another library.

    Attributes:
        model: The model; for NNX the one with the numbers.
        variables: Variables of the Linen model with the numbers; empty for NNX.
        names: Paths of modules by names of layers; takes the numbers back as `names` of `to_torch` and the like.
        fields: Fields that norms need to compute and to train on as the other library does, by path.
        report: Sentences about everything that the numbers alone do not carry over.
    """

    model: Model
    variables: VariableDict
    names: Mapping[str, str]
    fields: Mapping[str, Mapping[str, object]]
    report: tuple[str, ...]


@dataclass(frozen=True)
class Call:
    """A call of a model, by which its modules are found in order.

    Attributes:
        model: A model of Linen or NNX.
        variables: Variables of the Linen model.
        args: Arguments; shapes do.
        kwargs: Keyword arguments.
    """

    model: Model
    variables: VariableDict | None
    args: tuple[object, ...]
    kwargs: dict[str, object]

    def owners(self) -> list[Owner]:
        """Return the modules with arrays, in the order of the call."""
        found = owners(self.model, self.variables, *self.args, **self.kwargs)
        for owner in found:
            if owner.kind == "batch_renorm":
                raise BadInput(
                    f"Expected a norm that keeps a variance at {titled(owner.path)}, got batch renorm, which keeps a "
                    "standard deviation. Take `BatchNorm` here, and `functional.as_batch_renorm` for its statistics."
                )
        return found

    def arrays(self) -> dict[tuple[str, str], object]:
        """Return the parameters and statistics."""
        if isinstance(self.model, nnx.Module):
            return {key: variable.get_value() for key, variable in _nnx_variables(self.model)}
        collections = (dict(self.variables or {}).get(name, {}) for name in ("params", "batch_stats"))
        flat = (flatten_dict(nn.meta.unbox(collection)).items() for collection in collections)
        return {("/".join(path[:-1]), path[-1]): leaf for items in flat for path, leaf in items}


@dataclass
class Notes:
    """Sentences about modules, each with the modules that it is about."""

    paths: dict[str, list[str]] = field(default_factory=dict)

    def add(self, path: str, text: str) -> None:
        """Note a sentence about a module."""
        self.paths.setdefault(text, []).append(path)

    def sentences(self) -> tuple[str, ...]:
        """Return every sentence once, after the modules."""
        return tuple(f"{_first(paths)}: {text}" for text, paths in self.paths.items())


def _first(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{titled(paths[0])}{more}"


def paths_of(names: object) -> Names | None:
    """Return the paths of modules by names of layers as they were given.

    Raises:
        BadInput: If they are neither a mapping nor a function, and there are some.
    """
    if names is None or isinstance(names, Mapping) or callable(names):
        return cast(Names | None, names)
    raise refusal("`names` to be a mapping or a function", names, "Leave it out to match by order, kind and shape.")


def name_of(names: object, separator: str) -> Callable[[str], str]:
    """Return the function from the path of a module to the name of a layer: given, or the path.

    Args:
        names: Paths by names of layers, a function from path to name, or `None`.
        separator: Replaces `/` in paths that are names.

    Raises:
        BadInput: If the names are something else; from the function, if a name is none.
    """
    found = paths_of(names)
    if callable(found):
        return lambda path: _text(path, found(path))
    by_path = {path: name for name, path in (found or {}).items()}
    return lambda path: by_path.get(path, path.replace("/", separator))


def _text(path: str, name: object) -> str:
    if not isinstance(name, str):
        raise refusal(f"`names({path!r})` to be the name of a layer", name, "Return one for every path.")
    return name


Parts = dict[str, np.ndarray]
Check = Callable[[Entry, Owner, Notes, bool], None]


@dataclass(frozen=True)
class Library:
    """How another library keeps layers.

    Attributes:
        title: Name of the library.
        places: Places of a module's arrays in a layer of a name.
        optional: Parts of keys that a module need not have, or a layer.
        epsilon: Epsilon of a norm of the library, by name of the layer and kind of module.
        momentum: Weight of the old running value in the library; `None` is the plain average of all batches.
        unbiased: Whether batch norms average unbiased variances.
        explain: Sentence about layers and modules that do not fit, or nothing.
        check: Checks a pair, by the layer, the module, the notes, and whether to raise.
        added: Further parts of a layer, by the module and the parts that it has.
    """

    title: str
    places: Callable[[str, Owner], Places]
    optional: frozenset[str]
    epsilon: Callable[[str, str], float]
    momentum: float | Literal["unknown"] | None
    unbiased: bool = False
    explain: Callable[[Sequence[Entry], Sequence[Owner]], str] = lambda entries, owners: ""
    check: Check = lambda entry, owner, notes, strict: None
    added: Callable[[Owner, Parts], Parts] = lambda owner, parts: {}

    def fits(self, entry: Entry, owner: Owner) -> bool:
        """Return whether a layer has the arrays of a module."""
        places = self.places(entry.name, owner)
        wanted = {place.key for place in places.values()}
        if not wanted - self.optional <= set(entry.arrays) <= wanted | self.optional:
            return False
        return all(
            _shape(places[name].layout.read, entry.arrays[places[name].key]) == shape
            for name, shape in owner.shapes.items()
            if places[name].key in entry.arrays
        )


def _shape(read: Callable[[np.ndarray], np.ndarray], array: np.ndarray) -> tuple[int, ...] | None:
    try:
        return read(array).shape
    except ValueError:  # another number of axes, or of elements
        return None


def imported(
    library: Library, entries: Sequence[Entry], call: Call, names: Names | None, *, strict: bool, inplace: bool = False
) -> Imported:
    """Return a model with the arrays of layers.

    Raises:
        BadInput: If an array has no place or a place no array, a choice is open, or an epsilon differs.
    """
    found, notes = call.owners(), Notes()
    match = matched(entries, found, library.fits, names)
    _account(library, match, call, notes, strict)
    fields: dict[str, Mapping[str, object]] = {}
    for entry, owner in match.pairs:
        if is_norm(owner.kind):
            fields[owner.path] = _fields(library, entry, owner, notes, strict)
        library.check(entry, owner, notes, strict)
    model, variables = _written(call, _read(library, match.pairs, notes), notes, inplace)
    return Imported(
        model, variables, {entry.name: owner.path for entry, owner in match.pairs}, fields, notes.sentences()
    )


def exported(library: Library, call: Call, name_of: Callable[[str], str]) -> dict[str, Parts]:
    """Return the arrays of a model as the library keeps them, by name of the layer and part of the key.

    Raises:
        BadInput: If an array belongs to no module that the call reaches, or two modules have one name.
    """
    held = call.arrays()
    state: dict[str, Parts] = {}
    found = call.owners()
    _check_reached(held, found)
    for owner in found:
        name = name_of(owner.path)
        if name in state:
            raise BadInput(f"Expected a name for each module, got {titled(name)} twice. Change `names`.")
        places = library.places(name, owner)
        library.check(Entry(name, {}, {}), owner, Notes(), True)  # whether the order of its inputs is known
        parts = {
            places[part].key: places[part].layout.write(np.asarray(held[owner.path, part])) for part in owner.shapes
        }
        parts = {key: np.array(array, order="C") for key, array in parts.items()}
        state[name] = {**parts, **library.added(owner, parts)}
    return state


def flat(layers: Mapping[str, Parts], separator: str) -> Parts:
    """Return the arrays of layers by whole keys."""
    named = ((name, part, array) for name, parts in layers.items() for part, array in parts.items())
    return {f"{name}{separator}{part}" if name else part: array for name, part, array in named}


def _check_reached(held: Iterable[tuple[str, str]], found: Sequence[Owner]) -> None:
    reached = {owner.path for owner in found}
    missed = [f"`{_joined(path, name)}`" for path, name in held if path not in reached]
    if missed:
        raise BadInput(f"Expected the call to reach every array, got none of {some(missed)}. Pass arguments that do.")


def _account(library: Library, match: Matched, call: Call, notes: Notes, strict: bool) -> None:
    """Refuse or note arrays without a place, and places without an array."""
    reached = {owner.path for owner in (*match.owners, *(owner for _, owner in match.pairs))}
    missed = [f"`{_joined(path, name)}`" for path, name in call.arrays() if path not in reached]
    places = [
        f"`{_joined(owner.path, name)}` {shape}" for owner in match.owners for name, shape in owner.shapes.items()
    ]
    entries = [entry for entry in match.entries if not set(entry.arrays) <= library.optional]
    for entry in match.entries:
        if entry not in entries:
            notes.add(entry.name, f"has no counterpart, and was dropped: {', '.join(entry.arrays)}.")
    if not (entries or places or missed):
        return
    sentence = unused(entries, [*places, *missed])
    if strict:
        why = library.explain(entries, match.owners)
        raise BadInput(f"{sentence}. {why or 'Change the model, say `names=`, or leave them out by `strict=False`.'}")
    notes.add(library.title, f"{sentence}; left out.")


def _joined(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


def _fields(library: Library, entry: Entry, owner: Owner, notes: Notes, strict: bool) -> dict[str, object]:
    """Return the fields of a norm of the library, and refuse or note those of the module that differ."""
    theirs = library.epsilon(entry.name, owner.kind)
    ours = getattr(owner.module, "epsilon", None)
    if isinstance(ours, float | int) and not math.isclose(ours, theirs, rel_tol=1e-6):
        said = f"`epsilon` {theirs:g} as in {library.title}, got {ours:g}"
        if strict:
            raise BadInput(
                f"Expected {titled(owner.path)} to have {said}. Set `epsilon={theirs:g}` in the model, give the "
                f"epsilon of {titled(entry.name)} if it is another, or take it as it is by `strict=False`."
            )
        notes.add(owner.path, f"expected {said}.")
    if offset := getattr(owner.module, "scale_offset", 0.0):
        notes.add(owner.path, f"adds {offset:g} to its scale, and so must the layer.")
    if owner.kind != "batch":
        return {"epsilon": theirs}
    unbiased = {"unbiased_running_var": True} if library.unbiased else {}
    return {"epsilon": theirs, **unbiased, **_momentum(library, owner, notes)}


def _momentum(library: Library, owner: Owner, notes: Notes) -> dict[str, object]:
    if library.momentum == "unknown" or getattr(owner.module, "frozen", False):
        return {}
    ours, theirs = getattr(owner.module, "momentum", None), library.momentum
    same = isinstance(ours, float | int) and theirs is not None and math.isclose(ours, theirs)
    if not same and ours is not theirs:
        notes.add(
            owner.path, f"has `momentum` {shown(ours)}; to train on as {library.title} does, set `momentum={theirs}`."
        )
    return {"momentum": theirs}


def _read(library: Library, pairs: Sequence[tuple[Entry, Owner]], notes: Notes) -> dict[tuple[str, str], np.ndarray]:
    values: dict[tuple[str, str], np.ndarray] = {}
    for entry, owner in pairs:
        places = library.places(entry.name, owner)
        for name in owner.shapes:
            if places[name].key in entry.arrays:
                values[owner.path, name] = places[name].layout.read(entry.arrays[places[name].key])
            else:
                notes.add(owner.path, f"`{name}` stays as it was: the layer has no `{places[name].key}`.")
        known = {place.key for place in places.values()}
        for key in (key for key in entry.arrays if key not in known):
            notes.add(owner.path, f"`{key}` has no counterpart, and was dropped.")
    return values


def _written(call: Call, values: Values, notes: Notes, inplace: bool) -> tuple[Model, VariableDict]:
    """Return the model and the variables with new values in place of the old ones, which stay as they are."""
    if isinstance(call.model, nnx.Module):
        model = call.model if inplace else nnx.clone(call.model)
        for key, variable in _nnx_variables(model):
            if key in values:
                variable.set_value(_cast(values[key], variable.get_value(), key, notes))
        return model, {}

    def replaced(path: tuple[Any, ...], leaf: Any) -> Any:
        collection, *owner, name = (part.key for part in path)
        key = ("/".join(owner), name)
        if collection not in ("params", "batch_stats") or key not in values:
            return leaf
        if isinstance(leaf, nn.meta.AxisMetadata):
            return leaf.replace_boxed(_cast(values[key], nn.meta.unbox(leaf), key, notes))
        return _cast(values[key], leaf, key, notes)

    return call.model, jax.tree_util.tree_map_with_path(replaced, call.variables, is_leaf=_is_boxed)


def _is_boxed(leaf: object) -> bool:
    return isinstance(leaf, nn.meta.AxisMetadata)


def _cast(array: np.ndarray, old: Any, key: tuple[str, str], notes: Notes) -> jax.Array:
    new = array.astype(old.dtype)
    if not np.array_equal(new.astype(array.dtype), array, equal_nan=True):
        notes.add(key[0], f"`{key[1]}` was rounded from {array.dtype} to {old.dtype}.")
    return jnp.asarray(new)


def _nnx_variables(model: nnx.Module) -> list[tuple[tuple[str, str], nnx.Variable[object]]]:
    found = ((path, own_variables(module)) for path, module in nnx.iter_modules(model))
    return [(("/".join(map(str, path)), name), variable) for path, own in found for name, variable in own]
