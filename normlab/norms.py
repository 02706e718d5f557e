"""The registry: a norm as a value, from a name or a string, giving Linen and NNX modules.

>>> get("group", num_groups=8)
Norm('group:num_groups=8')
>>> get("group:num_groups=8").linen(train=True)
GroupNorm(
    # attributes
    num_groups = 8
    ...

A norm of your own joins with `register`.
"""

# pyright: strict, reportUnknownMemberType=false

import dataclasses
import importlib
import inspect
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, cast

from normlab.catalogue import COLOURS, IN_CELLS, ROWS, Description
from normlab.notation import UnknownNorm, check_options, parse, parse_list, unknown, written
from normlab.schedules import Ramp

if TYPE_CHECKING:
    from flax import linen as nn
    from flax.nnx import Module, Rngs
    from jax import Array

    from normlab.functional import CellNorm

__all__ = [
    "Entry",
    "MARKERS",
    "Norm",
    "Ramp",
    "UnknownNorm",
    "cell_names",
    "colour",
    "get",
    "marker",
    "names",
    "needs",
    "parse_list",
    "register",
    "table",
    "unregister",
]


COLOUR = "#[0-9a-fA-F]{6}"
"""Pattern of a norm's colour."""

MARKERS = "osD^vPX*<>dph8H"
"""The markers that norms may have, by Matplotlib's names: those that can be filled."""


@dataclass(frozen=True, kw_only=True)
class Entry(Description):
    """A kind of norm: its description, and how it is made.

    Attributes:
        linen: `(train, options) -> module`.
        nnx: `(num_features, rngs, options) -> module`.
        cell: `options -> normlab.functional.CellNorm`, how it acts inside a recurrent cell; `None` where it cannot.
    """

    linen: "Callable[[bool, Mapping[str, object]], nn.Module]"
    nnx: "Callable[[int | tuple[int, ...], Rngs, Mapping[str, object]], Any]"
    cell: "Callable[[Mapping[str, object]], CellNorm] | None" = None


@dataclass(frozen=True)
class Norm:
    """A norm with its options: a value that compares, hashes and prints as its string.

    The string gives the norm back where its options are plain values; functions, such as initializers, only print.

    Attributes:
        entry: The kind.
        items: Options, sorted by name.
    """

    entry: Entry
    items: tuple[tuple[str, object], ...] = ()

    @property
    def name(self) -> str:
        """Name of the kind."""
        return self.entry.name

    @property
    def title(self) -> str:
        """Name for people."""
        return self.entry.title

    @property
    def options(self) -> dict[str, object]:
        """Options by name."""
        return dict(self.items)

    @property
    def needs_batch(self) -> bool:
        """True if an example's output in training depends on which others are in its batch."""
        return self.entry.needs_batch

    @property
    def stateful(self) -> bool:
        """True if the norm keeps running statistics: Linen's `batch_stats`, NNX's `BatchStat`."""
        return self.entry.stateful

    @property
    def needs_spatial(self) -> bool:
        """True if the norm, with its options, needs axes between batch and features."""
        option, spared = self.entry.spatial_unless or ("", True)
        return self.entry.needs_spatial and bool(self.options.get(option, not spared)) is not spared

    @property
    def activates(self) -> bool:
        """True if the norm is an activation, too, so that none follows it."""
        return self.entry.activates and self.options.get("nonlinear", True) is not False

    @property
    def linear(self) -> "Norm":
        """The norm without its activation: itself unless it `activates`."""
        return get(self, nonlinear=False) if self.activates else self

    @property
    def bare(self) -> "Norm":
        """The norm without `scale` and `bias` of its own, as `Modulated` takes it."""
        known = ("use_scale", "use_bias")
        if self.entry.module:
            kind = getattr(importlib.import_module("normlab.linen"), self.entry.module)
            known = tuple(field.name for field in dataclasses.fields(kind) if field.name in known)
        return get(self, **dict.fromkeys(known, False))

    def activate(self, x: "Array", activation: "Callable[[Array], Array]") -> "Array":
        """Return the activation of what this norm gave: `x` itself where the norm `activates`.

        Args:
            x: The output of the norm.
            activation: The network's own.
        """
        return x if self.activates else activation(x)

    def linen(self, *, train: bool, **overrides: object) -> "nn.Module":
        """Return the Linen module; `train` picks batch or running statistics where there are both."""
        return self.entry.linen(train, {**self.options, **overrides})

    def nnx(self, num_features: int | tuple[int, ...], *, rngs: "Rngs", **overrides: object) -> Any:
        """Return the NNX module for `num_features` features."""
        return self.entry.nnx(num_features, rngs, {**self.options, **overrides})

    def cell(self, **overrides: object) -> "CellNorm":
        """Return the `normlab.functional.CellNorm` of this norm inside a recurrent cell.

        Raises:
            ValueError: If the norm has no place in a recurrent cell.
        """
        if self.entry.cell is None:
            return _in_cells(self.name)({})  # which says what it takes
        return self.entry.cell({**self.options, **overrides})

    def __str__(self) -> str:
        """Return the string that `get` takes back."""
        return written(self.name, self.items)

    def __repr__(self) -> str:
        """Return the string, marked as a norm."""
        return f"Norm({str(self)!r})"

    def __reduce__(self) -> tuple[Callable[..., "Norm"], tuple[str, tuple[tuple[str, object], ...]]]:
        """Pickle by name and options; the kind is looked up in the registry where it is loaded."""
        if _ENTRIES.get(self.name) is not self.entry:
            raise _unregistered(self.name, "pickled")
        return _unpickled, (self.name, self.items)

    def __deepcopy__(self, memo: object) -> "Norm":
        """Return the norm, which is a value."""
        return self


_ENTRIES: dict[str, Entry] = {}
_SET_BY_CALLS = {"self", "name", "parent", "rngs", "num_features", "use_running_average"}


def register(entry: Entry) -> Entry:
    """Add a kind of norm to the registry.

    Args:
        entry: Its name must be new, and free of `:`, `,` and `=`.

    Returns:
        `entry`.

    Raises:
        ValueError: If the name is taken or malformed, or the colour or the marker cannot be drawn.

    Example:
        >>> from flax import linen as nn
        >>> entry = Entry(
        ...     name="tanh",
        ...     title="tanh",
        ...     linen=lambda train, options: lambda x: nn.tanh(x),
        ...     nnx=lambda num_features, rngs, options: lambda x: nn.tanh(x),
        ... )
        >>> register(entry).name in names()
        True
        >>> unregister("tanh")
    """
    if not entry.name.isidentifier():
        raise ValueError(
            f"Expected a norm's name to be an identifier, got {entry.name!r}. Use letters, digits and '_'."
        )
    if entry.colour and not re.fullmatch(COLOUR, entry.colour):
        raise ValueError(f"Expected a norm's colour as #rrggbb, got {entry.colour!r}. Write one such as '#0072b2'.")
    if entry.marker and entry.marker not in tuple(MARKERS):
        raise ValueError(
            f"Expected a norm's marker among {', '.join(MARKERS)}, got {entry.marker!r}. Choose one of them."
        )
    if entry.name in _ENTRIES:
        raise ValueError(f"Expected a new norm name, got {entry.name!r}, which is registered. Choose another.")
    _ENTRIES[entry.name] = entry
    return entry


def unregister(name: str) -> None:
    """Remove a kind of norm from the registry."""
    del _ENTRIES[_find(name).name]


def names() -> tuple[str, ...]:
    """Return the names of norms that are layers, in order of registration."""
    return tuple(name for name, entry in _ENTRIES.items() if not entry.cell_only)


def cell_names() -> tuple[str, ...]:
    """Return the names of norms that act inside recurrent cells, in order of registration."""
    return tuple(name for name, entry in _ENTRIES.items() if entry.cell)


def colour(norm: "str | Norm") -> str:
    """Return the colour of a norm in every figure, whatever its options.

    Args:
        norm: A norm, or its string. A norm that is registered without a colour, or not at all, has a spare one, which
            depends on its name alone.

    Returns:
        A colour as `#rrggbb`, legible on white and on black.

    Example:
        >>> colour("group:num_groups=8") == colour("group")
        True
    """
    name = _name_of(norm)
    return (_ENTRIES[name].colour if name in _ENTRIES else "") or _spare(name)[0]


def marker(norm: "str | Norm") -> str:
    """Return the marker of a norm in every figure, whatever its options.

    Args:
        norm: See `colour`.

    Returns:
        One of `MARKERS`.

    Example:
        >>> marker("group:num_groups=8")
        'P'
    """
    name = _name_of(norm)
    return (_ENTRIES[name].marker if name in _ENTRIES else "") or _spare(name)[1]


def _name_of(norm: "str | Norm") -> str:
    return str(norm).partition(":")[0].strip()


def _spare(name: str) -> tuple[str, str]:
    """Pick a colour and a marker that no norm of this package has together."""
    return _SPARE[zlib.crc32(name.encode()) % len(_SPARE)]


def needs(entry: Entry) -> str:
    """Return, in words, what a norm needs of its input beside features: `yes` is a batch."""
    if entry.averages == "example":
        return "no, but their order"
    if entry.needs_spatial:
        return "no, but positions"
    return "yes" if entry.needs_batch else "no"


def table() -> str:
    """Return the norms of this package as a table in Markdown, a row each, as in the documentation."""
    columns = ("name", "formula", "statistics over", "needs a batch?", "paper")
    rows = [columns, tuple("---" for _ in columns)]
    for entry in (_find(row.name) for row in ROWS if not row.cell_only):
        paper = f"[{entry.paper}]({entry.url})" if entry.url else entry.paper
        rows.append((f"`{entry.name}`", entry.formula, entry.over, needs(entry), paper))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows).replace("|  |", "| |")


def get(norm: "str | Norm", **options: object) -> Norm:
    """Return a norm.

    Args:
        norm: A name, `batch`; a string with options, `group:num_groups=8,epsilon=1e-3`; or a norm.
        **options: Fields of its module, over those of the string.

    Raises:
        UnknownNorm: If no norm has this name; the message names the nearest.
        ValueError: If the string is malformed.
    """
    if isinstance(norm, Norm):
        entry, given = norm.entry, norm.options
    else:
        name, given = parse(norm)
        entry = _find(name)
    given |= options
    for name in sorted(_SET_BY_CALLS & given.keys()):
        raise ValueError(f"Expected an option of a norm, got {name!r} for {norm!s}: `linen` and `nnx` set it.")
    return Norm(entry, tuple(sorted((name, _plain(value)) for name, value in given.items())))


def _plain(value: object) -> object:
    """Return a value that hashes and prints so that it can be read back: lists as tuples, dtypes by name."""
    if isinstance(value, list):
        return tuple(map(_plain, cast("list[object]", value)))
    if isinstance(value, type) and hasattr(value, "dtype"):  # `jnp.bfloat16` and its like
        dtype: object = getattr(value, "dtype")  # noqa: B009  (no such attribute is known of a type)
        return str(getattr(dtype, "name", value.__name__))
    return value


def _unpickled(name: str, items: tuple[tuple[str, object], ...]) -> Norm:
    """Return the norm that was pickled."""
    if name not in _ENTRIES:
        raise _unregistered(name, "loaded")
    return Norm(_ENTRIES[name], items)


def _unregistered(name: str, when: str) -> UnknownNorm:
    return UnknownNorm(
        f"Expected norm {name!r} to be registered where it is {when}, got no such entry. Import the module that calls "
        "`normlab.norms.register` for it first."
    )


def _find(name: str) -> Entry:
    if name not in _ENTRIES:
        raise unknown(name, "a norm", _ENTRIES)
    return _ENTRIES[name]


def _ours(row: Description) -> Entry:
    """Make the entry of a norm of this package; Flax is imported when a module is made."""
    fixed = dict(row.fixed)

    def linen(train: bool, options: Mapping[str, object]) -> "nn.Module":
        kind = getattr(importlib.import_module("normlab.linen"), row.module)
        known = [f.name for f in dataclasses.fields(kind) if f.name not in fixed]
        options = _axes(row.name, options)
        check_options(row.module, row.name, options, known)
        if row.stateful:
            importlib.import_module("normlab._core.checks").check_flag("train", train)
        return kind(**({"use_running_average": not train} if row.stateful else {}), **fixed, **options)

    def nnx(num_features: int | tuple[int, ...], rngs: "Rngs", options: Mapping[str, object]) -> "Module":
        kind = getattr(importlib.import_module("normlab.nnx"), row.module)
        known = [name for name in _arguments(kind) if name not in fixed]
        options = _axes(row.name, options)
        check_options(row.module, row.name, options, known)
        return kind(num_features, rngs=rngs, **fixed, **options)

    cell = _in_cells(row.name) if row.cell_only or row.name in IN_CELLS else None
    if row.cell_only:
        return Entry(**vars(row), linen=partial(_no_layer, row.name), nnx=partial(_no_layer, row.name), cell=cell)
    return Entry(**vars(row), linen=linen, nnx=nnx, cell=cell)


def _axes(name: str, options: Mapping[str, object]) -> Mapping[str, object]:
    """Take the option `axis`, as functions have it, for both axes of modules that scale what they reduce."""
    if "axis" not in options or name not in ("layer", "rms", "l2", "seednorm", "bhyt"):
        return options
    axis = options["axis"]
    others = {name: value for name, value in options.items() if name != "axis"}
    return {"reduction_axes": axis, "feature_axes": axis, **others}


def _no_layer(name: str, *_: object) -> NoReturn:
    raise ValueError(
        f"Expected a norm that is a layer, got {name!r}, which acts inside recurrent cells. Give it to one, as in "
        f"`normlab.linen.LSTMCell(64, norm={name!r})`."
    )


def _in_cells(name: str) -> "Callable[[Mapping[str, object]], CellNorm]":
    return lambda options: importlib.import_module("normlab.functional").cell_norm(name, **options)


def _arguments(kind: type) -> list[str]:
    """Return the names of what a constructor takes, and of what it passes on to its bases and to its layer."""
    names: list[str] = []
    for owner in kind.__mro__:
        parameters = inspect.signature(owner.__init__).parameters.values() if "__init__" in vars(owner) else ()
        names += [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        if parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return names
    return names + [option.name for option in dataclasses.fields(vars(kind)["_kind"])]


for _row in ROWS:
    register(_ours(_row))
_TAKEN = {(entry.colour, entry.marker) for entry in _ENTRIES.values()}
_SPARE = tuple((colour, marker) for marker in MARKERS for colour in COLOURS if (colour, marker) not in _TAKEN)
"""Colours and markers for norms that come without."""
