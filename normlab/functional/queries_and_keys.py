"""Norms of queries and keys: which there are, and with which options."""

from collections.abc import Mapping
from typing import NamedTuple

from normlab.notation import parse, unknown

__all__ = ["Recipe", "recipe"]


class Recipe(NamedTuple):
    """A pair of norms.

    Attributes:
        kind: Name of their class in `normlab.linen` and `normlab.nnx`.
        query: Options of the norm of queries.
        key: Options of the norm of keys.
    """

    kind: str
    query: Mapping[str, object]
    key: Mapping[str, object]


_RECIPES = {
    "rms": Recipe("RMSNorm", {}, {}),
    "layer": Recipe("LayerNorm", {"use_bias": False}, {"use_bias": False}),
    "l2": Recipe("L2Norm", {"use_scale": False, "use_temperature": True}, {"use_scale": False}),
}


def recipe(norm: object, options: Mapping[str, object]) -> Recipe:
    """Return the pair for a norm.

    Args:
        norm: A name, perhaps with options, or a value that prints as one.
        options: Further options of both; `temperature_init` is of the query alone.

    Raises:
        ValueError: If there is none for this norm, or the text is malformed.
    """
    name, given = parse(str(norm))
    if name not in _RECIPES:
        raise unknown(name, "a norm of queries and keys", _RECIPES)
    given = {**given, **options}
    of_both = {option: value for option, value in given.items() if option != "temperature_init"}
    kind, query, key = _RECIPES[name]
    return Recipe(kind, {**query, **given}, {**key, **of_both})
