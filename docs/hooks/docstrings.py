"""Extension of griffe: examples of docstrings as code, and the fields of Linen modules as their signature."""

import re
from typing import Any, TypeGuard

import griffe

_DOCTEST = re.compile(r"(?:^>>> .*\n?(?:^\S.*\n?)*)+", re.MULTILINE)
_ADDRESS = re.compile(r"(https?://\S+)$", re.MULTILINE)
"""Address at the end of a line, as references have one each."""


class Docstrings(griffe.Extension):
    """Prepare objects as mkdocstrings shows them."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Name the section of examples as griffe does, and fence examples outside of it."""
        if obj.docstring:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            text = _ADDRESS.sub(r"<\1>  ", text)
            obj.docstring.value = _DOCTEST.sub(lambda found: f"```pycon\n{found[0].rstrip()}\n```\n", text)

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Give the modules of Linen, which are dataclasses by inheritance, the signature of one."""
        for module in (*pkg["linen"].modules.values(), *pkg["models"].modules.values()):
            for cls in module.classes.values():
                fields = _fields(cls)
                if fields and "__init__" not in cls.members:
                    own = griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)
                    cls.set_member("__init__", griffe.Function("__init__", parameters=griffe.Parameters(own, *fields)))


def _fields(cls: griffe.Class) -> list[griffe.Parameter]:
    """Return the fields of a class and of its bases in this package, the bases' first."""
    found = {}
    for owner in (*reversed(cls.mro()), cls):
        for name, member in owner.members.items():
            if _is_field(member):
                found[name] = griffe.Parameter(
                    name,
                    annotation=member.annotation,
                    kind=griffe.ParameterKind.positional_or_keyword,
                    default=member.value,
                )
    return list(found.values())


def _is_field(member: griffe.Object) -> TypeGuard[griffe.Attribute]:
    """Check for an attribute with an annotation that is there at run time, and is neither private nor a property."""
    return (
        isinstance(member, griffe.Attribute)
        and member.annotation is not None
        and member.runtime
        and "property" not in member.labels
        and not member.name.startswith("_")
    )
