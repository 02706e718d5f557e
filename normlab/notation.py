"""Parse the text of norms: `batch`, `group:num_groups=8,epsilon=1e-3`, and lists of them."""

import ast
import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, TypeAlias

from normlab.schedules import Ramp
from normlab.suggestions import suggestion

PyTree: TypeAlias = Any
"""A tree of arrays in the sense of `jax.tree`: parameters, the state of a model or of an optimizer."""

_WORDS = {"true": True, "false": False, "none": None, "inf": math.inf, "-inf": -math.inf}


class UnknownNorm(ValueError):
    """Error for an unknown name."""


_LISTED = 15
"""Most names that an error lists."""


def unknown(name: str, what: str, known: Iterable[str]) -> UnknownNorm:
    """Make the error for an unknown name, which suggests the nearest known one."""
    known = list(known)
    meant = suggestion(name, known)
    hint = f" Did you mean {meant!r}?" if meant else ""
    listed = ", ".join(known[:_LISTED]) + f" and {len(known) - _LISTED} more" * (len(known) > _LISTED)
    return UnknownNorm(f"Expected {what} among {listed}, got {name!r}.{hint}")


def check_options(kind: str, norm: str, options: Iterable[str], known: Iterable[str]) -> None:
    """Refuse options that a norm does not have.

    Args:
        kind: Name of the norm's class, for the message.
        norm: Name of the norm, likewise.
        options: Names of the options given.
        known: Names of the options there are.

    Raises:
        ValueError: If an option is unknown; the message names the nearest.
    """
    known = list(known)
    for option in options:
        if option not in known:
            meant = suggestion(option, known)
            hint = f" Did you mean {meant!r}?" if meant else ""
            raise ValueError(f"Expected an option of {kind}, got {option!r} for norm {norm!r}.{hint}")


def written(name: str, options: Iterable[tuple[str, object]]) -> str:
    """Write a norm as text, which `parse` reads.

    >>> written("group", [("num_groups", 8)])
    'group:num_groups=8'
    """
    text = ",".join(f"{option}={value!r}" for option, value in options)
    return f"{name}:{text}" if text else name


def parse(norm: str) -> tuple[str, dict[str, object]]:
    """Return the name and the options of a norm.

    >>> parse("group:num_groups=8,epsilon=1e-3")
    ('group', {'num_groups': 8, 'epsilon': 0.001})

    Raises:
        ValueError: If the text is malformed.
    """
    name, options = _parsed(norm)
    return name, dict(options)


@lru_cache(maxsize=1024)
def _parsed(norm: str) -> tuple[str, Mapping[str, object]]:
    """Parse a text once, without looking up the norm."""
    name, _, text = norm.partition(":")
    return name.strip(), _parse_options(norm, text)


def parse_list(text: str) -> list[str]:
    """Split `batch,group:num_groups=8,epsilon=1e-3,layer` at the commas between norms.

    >>> parse_list("batch,group:num_groups=8,epsilon=1e-3,layer")
    ['batch', 'group:num_groups=8,epsilon=1e-3', 'layer']
    """
    norms: list[str] = []
    for part in _split(text):
        if norms and ":" in norms[-1] and "=" in part and ":" not in part.partition("=")[0]:
            norms[-1] += "," + part
        else:
            norms.append(part)
    return norms


def _split(text: str) -> list[str]:
    """Split at commas outside brackets and quotes."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def _parse_options(norm: str, text: str) -> dict[str, object]:
    options: dict[str, object] = {}
    for part in _split(text):
        name, equals, value = part.partition("=")
        if not equals or not name.strip().isidentifier():
            raise ValueError(f"Expected options as in 'group:num_groups=8,epsilon=1e-3', got {part!r} in {norm!r}.")
        if name.strip() in options:
            raise ValueError(f"Expected each option once, got {name.strip()!r} twice in {norm!r}.")
        options[name.strip()] = _parse_value(value.strip())
    return options


def _parse_value(text: str) -> object:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        tree = ast.parse(text, mode="eval").body
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id == "Ramp":
            arguments = [ast.literal_eval(a) for a in tree.args]
            return Ramp(*arguments, **{k.arg: ast.literal_eval(k.value) for k in tree.keywords if k.arg})
        return ast.literal_eval(tree)
    except (SyntaxError, ValueError):
        return text  # a bare word, such as statistics=batch
