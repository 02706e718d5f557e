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
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypedDict, Unpack, cast

from normlab.notation import UnknownNorm, check_options, parse, parse_list, unknown, written
from normlab.schedules import Ramp

if TYPE_CHECKING:
    from flax import linen as nn
    from flax.nnx import Module, Rngs

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
class Entry:
    """A kind of norm.

    Attributes:
        name: As in strings, e.g. `batch_renorm`.
        title: For people, e.g. `batch renorm`.
        linen: `(train, options) -> module`.
        nnx: `(num_features, rngs, options) -> module`.
        needs_batch: Whether an example's output in training depends on which others are in its batch. That of online
            norm depends on the examples before it, however they were cut into batches.
        ghost_batches: Whether it can take the statistics of parts of a batch, by the option `ghost_batch_size`.
        stateful: Whether it keeps running statistics.
        averages: What one update of them sees, where the option `momentum` is the weight of the old value: `batch` or
            `example`; empty where there is no such option.
        needs_spatial: Whether it needs axes between batch and features.
        cell: `options -> normlab.functional.CellNorm`, how it acts inside a recurrent cell; `None` where it cannot.
        cell_only: Whether it is a norm inside recurrent cells and no layer.
        module: Name of its class in `normlab.linen` and `normlab.nnx`; empty for norms of other packages.
        formula: The output before `scale` and `bias`, in the words of the documentation.
        over: Elements that share a statistic.
        paper: Authors and year.
        url: Of the paper.
        colour: Its colour in figures, as `#rrggbb`; a spare one where empty, see `colour`.
        marker: Its marker in figures, one of `MARKERS`; a spare one where empty, see `marker`.
    """

    name: str
    title: str
    linen: "Callable[[bool, Mapping[str, object]], nn.Module]"
    nnx: "Callable[[int | tuple[int, ...], Rngs, Mapping[str, object]], Any]"
    needs_batch: bool = False
    ghost_batches: bool = False
    stateful: bool = False
    averages: Literal["batch", "example", ""] = ""
    needs_spatial: bool = False
    cell: "Callable[[Mapping[str, object]], CellNorm] | None" = None
    cell_only: bool = False
    module: str = ""
    formula: str = ""
    over: str = ""
    paper: str = ""
    url: str = ""
    colour: str = ""
    marker: str = ""


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
        """True if the norm needs axes between batch and features."""
        return self.entry.needs_spatial

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
_OURS: list[str] = []
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
    for entry in map(_find, _OURS):
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


class _OfBatch(TypedDict):
    """Fields of `Entry` that norms over the batch share."""

    needs_batch: bool
    stateful: bool
    averages: Literal["batch"]


class _Row(TypedDict, total=False):
    """Fields of `Entry` that describe a norm of this package."""

    needs_batch: bool
    ghost_batches: bool
    stateful: bool
    averages: Literal["batch", "example", ""]
    needs_spatial: bool
    formula: str
    over: str
    paper: str
    url: str
    colour: str
    marker: str


def _ours(name: str, title: str, module: str, *, in_cells: bool = False, **row: Unpack[_Row]) -> None:
    """Register a norm of this package; Flax is imported when a module is made."""

    def linen(train: bool, options: Mapping[str, object]) -> "nn.Module":
        kind = getattr(importlib.import_module("normlab.linen"), module)
        check_options(module, name, options, [f.name for f in dataclasses.fields(kind)])
        if row.get("stateful"):
            importlib.import_module("normlab._core.checks").check_flag("train", train)
        return kind(**({"use_running_average": not train} if row.get("stateful") else {}), **options)

    def nnx(num_features: int | tuple[int, ...], rngs: "Rngs", options: Mapping[str, object]) -> "Module":
        kind = getattr(importlib.import_module("normlab.nnx"), module)
        check_options(module, name, options, _arguments(kind))
        return kind(num_features, rngs=rngs, **options)

    _OURS.append(name)
    cell = _in_cells(name) if in_cells else None
    register(Entry(name=name, title=title, linen=linen, nnx=nnx, cell=cell, module=module, **row))


def _only_in_cells(name: str, title: str, **needs: Unpack[_Row]) -> None:
    """Register a norm of this package that is no layer."""

    def no_layer(*_: object) -> NoReturn:
        raise ValueError(
            f"Expected a norm that is a layer, got {name!r}, which acts inside recurrent cells. Give it to one, as in "
            f"`normlab.linen.LSTMCell(64, norm={name!r})`."
        )

    register(Entry(name=name, title=title, linen=no_layer, nnx=no_layer, cell=_in_cells(name), cell_only=True, **needs))


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


_GREY, _VERMILION, _BLUE, _GREEN = "#717171", "#d55e00", "#0072b2", "#009e73"
_PINK, _OCHRE, _SKY, _VIOLET = "#d4639f", "#b98a14", "#2f98de", "#8052d6"
_COLOURS = (_VERMILION, _BLUE, _GREEN, _PINK, _OCHRE, _SKY, _VIOLET)
"""Colours for norms: after Okabe and Ito, apart for colour-blind eyes, a contrast of 3 to white and to near-black."""

_BATCH: _OfBatch = {"needs_batch": True, "stateful": True, "averages": "batch"}
_STANDARDIZED = "(x - mean) / sqrt(var + ε)"

_ours("none", "no norm", "Identity", in_cells=True, formula="x", over="nothing", colour=_GREY, marker="o")
_ours(
    "batch",
    "batch norm",
    "BatchNorm",
    ghost_batches=True,
    **_BATCH,
    formula=f"{_STANDARDIZED}; running averages at inference",
    over="batch and positions",
    paper="Ioffe & Szegedy 2015",
    url="https://arxiv.org/abs/1502.03167",
    colour=_VERMILION,
    marker="s",
)
_ours(
    "batch_renorm",
    "batch renorm",
    "BatchRenorm",
    ghost_batches=True,
    **_BATCH,
    formula="(x - mean) / std · r + d, r and d towards the running statistics",
    over="batch and positions",
    paper="Ioffe 2017",
    url="https://arxiv.org/abs/1702.03275",
    colour=_BLUE,
    marker="D",
)
_ours(
    "layer",
    "layer norm",
    "LayerNorm",
    in_cells=True,
    formula=_STANDARDIZED,
    over="features, at each position",
    paper="Ba et al. 2016",
    url="https://arxiv.org/abs/1607.06450",
    colour=_GREEN,
    marker="^",
)
_ours(
    "rms",
    "RMS norm",
    "RMSNorm",
    in_cells=True,
    formula="x / sqrt(mean(x²) + ε)",
    over="features, at each position",
    paper="Zhang & Sennrich 2019",
    url="https://arxiv.org/abs/1910.07467",
    colour=_PINK,
    marker="v",
)
_ours(
    "group",
    "group norm",
    "GroupNorm",
    in_cells=True,
    formula=_STANDARDIZED,
    over="a group of features and positions",
    paper="Wu & He 2018",
    url="https://arxiv.org/abs/1803.08494",
    colour=_VIOLET,
    marker="P",
)
_ours(
    "instance",
    "instance norm",
    "InstanceNorm",
    needs_spatial=True,
    formula=_STANDARDIZED,
    over="positions, for each feature",
    paper="Ulyanov et al. 2016",
    url="https://arxiv.org/abs/1607.08022",
    colour=_OCHRE,
    marker="X",
)
_ours(
    "dyt",
    "dynamic tanh",
    "DyT",
    formula="tanh(alpha · x), alpha learned",
    over="nothing",
    paper="Zhu et al. 2025",
    url="https://arxiv.org/abs/2503.10622",
    colour=_SKY,
    marker="*",
)
_ours(
    "online",
    "online norm",
    "OnlineNorm",
    stateful=True,
    averages="example",
    formula=f"{_STANDARDIZED} by the examples before; a backward pass of its own; then layer scaling",
    over="positions of the examples so far",
    paper="Chiley et al. 2019",
    url="https://arxiv.org/abs/1905.05894",
    colour=_SKY,
    marker="<",
)
_ours(
    "streaming",
    "streaming norm",
    "StreamingNorm",
    **_BATCH,
    formula=f"{_STANDARDIZED}, statistics and their gradients from a long and a short memory",
    over="batch and positions, now and before",
    paper="Liao et al. 2016",
    url="https://arxiv.org/abs/1610.06160",
    colour=_BLUE,
    marker=">",
)
_ours(
    "continual",
    "continual norm",
    "ContinualNorm",
    ghost_batches=True,
    **_BATCH,
    formula="batch norm of group norm",
    over="a group of features, then batch and positions",
    paper="Pham et al. 2022",
    url="https://arxiv.org/abs/2203.16102",
    colour=_OCHRE,
    marker="d",
)
_only_in_cells("layer_per_gate", "layer norm, each gate", colour=_SKY, marker="h")
_only_in_cells("batch_step", "batch norm, each time step", **_BATCH, colour=_VERMILION, marker="p")
_only_in_cells("batch_shared", "batch norm, shared over time", **_BATCH, colour=_BLUE, marker="8")
_only_in_cells("batch_input", "batch norm, input path", **_BATCH, colour=_OCHRE, marker=">")

_TAKEN = {(entry.colour, entry.marker) for entry in _ENTRIES.values()}
_SPARE = tuple((colour, marker) for marker in MARKERS for colour in _COLOURS if (colour, marker) not in _TAKEN)
"""Colours and markers for norms that come without."""
